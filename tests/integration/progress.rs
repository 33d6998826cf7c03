//! The line that says how a long recording goes: what of it reaches a terminal, which is a pseudo-terminal of ours.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::io::Read;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::Arc;
use std::sync::Mutex;
use std::thread;
use std::thread::JoinHandle;

use crate::support::Running;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::send;
use crate::support::tracer_of;
use crate::support::wait_until;

/// What takes the line away.
const CLEAR: &str = "\r\x1b[K";
/// A recording that is long enough to be told of.
const LONG: &str = "4s";

/// A pseudo-terminal.
pub(crate) struct Terminal {
    /// Our side.
    master: File,
    /// The programs' side.
    slave: File,
}

impl Terminal {
    pub(crate) fn open() -> Self {
        let (mut master, mut slave) = (-1, -1);
        let size = libc::winsize {
            ws_row: 24,
            ws_col: 100,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: two places for numbers, no name, no settings, and a size.
        let status = unsafe {
            libc::openpty(
                &raw mut master,
                &raw mut slave,
                std::ptr::null_mut(),
                std::ptr::null(),
                &raw const size,
            )
        };
        assert_eq!(status, 0);
        // SAFETY: both were just opened, and nobody else has them. Programs get the slave by name only.
        unsafe {
            for number in [master, slave] {
                libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC);
            }
            Self {
                master: File::from_raw_fd(master),
                slave: File::from_raw_fd(slave),
            }
        }
    }

    pub(crate) fn end(&self) -> Stdio {
        self.slave.try_clone().unwrap().into()
    }

    /// Begins to read what is written to it.
    pub(crate) fn read(self) -> Shown {
        let text = Arc::new(Mutex::new(String::new()));
        let filled = Arc::clone(&text);
        let Self { mut master, slave } = self;
        let reader = thread::spawn(move || {
            let mut bytes = [0; 4096];
            // EIO: nobody has the other side open any more.
            while let Ok(count @ 1..) = master.read(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]);
                filled.lock().unwrap().push_str(&text);
            }
        });
        Shown {
            text,
            reader,
            slave,
        }
    }
}

/// What was written to a terminal.
pub(crate) struct Shown {
    text: Arc<Mutex<String>>,
    reader: JoinHandle<()>,
    slave: File,
}

impl Shown {
    fn so_far(&self) -> String {
        self.text.lock().unwrap().clone()
    }

    /// All of it, once everybody has closed the terminal.
    pub(crate) fn whole(self) -> String {
        drop(self.slave);
        self.reader.join().unwrap();
        let text = self.text.lock().unwrap();
        text.clone()
    }
}

/// breaktrace, killed if the test fails.
struct Traced(Child);

impl Traced {
    fn start(words: &[&str], terminal: &Terminal) -> Self {
        let mut command = breaktrace();
        command
            .arg(words[0])
            // Where reading symbols takes long, that is said on the terminal as well.
            .arg("--no-symbols")
            .args(&words[1..])
            .env("TERM", "xterm")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(terminal.end());
        Self(command.spawn().unwrap())
    }

    fn end(mut self) -> ExitStatus {
        wait_until("breaktrace has ended", || {
            self.0.try_wait().unwrap().is_some()
        });
        self.0.wait().unwrap()
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        if let Ok(None) = self.0.try_wait() {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

fn sleeper() -> Running {
    Running::start(Command::new("sleep").arg("1000").stdin(Stdio::null()))
}

/// The line was shown, taken away, and nothing of it came afterwards. Returns what came then.
#[track_caller]
fn expect_shown_and_cleared(text: &str) -> &str {
    let (before, after) = text
        .rsplit_once(CLEAR)
        .unwrap_or_else(|| panic!("nothing was taken away: {text:?}"));
    assert!(before.starts_with("\rbreaktrace: "), "{text:?}");
    assert!(before.contains(" events"), "{text:?}");
    assert!(before.contains("  break "), "{text:?}");
    assert!(!before.contains('\n'), "{text:?}");
    assert!(!after.replace("\r\n", "\n").contains('\r'), "{text:?}");
    after
}

#[test]
fn attached_to_a_long_sleeper_it_is_shown_and_gone_before_the_report() {
    let (sleeper, terminal) = (sleeper(), Terminal::open());
    let traced = Traced::start(&["attach", &sleeper.pid().to_string()], &terminal);
    let shown = terminal.read();
    wait_until("the line shows", || shown.so_far().contains(" events"));
    assert!(send(traced.0.id(), libc::SIGINT));
    assert!(traced.end().success());
    let text = shown.whole();
    let report = expect_shown_and_cleared(&text);
    assert!(report.contains("break"), "{report:?}");
    assert!(report.contains("sleep"), "{report:?}");
}

#[test]
fn it_is_gone_when_the_program_dies() {
    let (sleeper, terminal) = (sleeper(), Terminal::open());
    let pid = sleeper.pid().to_string();
    let folder = folder();
    let file = folder.path().join("r.json");
    let traced = Traced::start(&["attach", "-o", file.to_str().unwrap(), &pid], &terminal);
    let shown = terminal.read();
    wait_until("the line shows", || shown.so_far().contains(" events"));
    sleeper.send(libc::SIGKILL);
    assert!(traced.end().success());
    assert_eq!(expect_shown_and_cleared(&shown.whole()), "");
}

#[test]
fn nothing_of_it_gets_into_a_pipe() {
    let sleeper = sleeper();
    let ended = finish(breaktrace().env("TERM", "xterm").args([
        "attach",
        "--duration",
        LONG,
        &sleeper.pid().to_string(),
    ]));
    ended.expect_code(0);
    assert!(!ended.stderr.contains(['\r', '\x1b']), "{:?}", ended.stderr);
    assert!(!ended.stdout.contains(['\r', '\x1b']), "{:?}", ended.stdout);
}

#[test]
fn quiet_turns_it_off() {
    let (sleeper, terminal) = (sleeper(), Terminal::open());
    let pid = sleeper.pid().to_string();
    let traced = Traced::start(&["attach", "-q", "--duration", LONG, &pid], &terminal);
    let shown = terminal.read();
    assert!(traced.end().success());
    assert_eq!(shown.whole(), "");
}

const SPEAKER: &str = "printf one; sleep 4; echo two";

#[test]
fn a_program_on_the_same_terminal_has_it_to_itself() {
    let terminal = Terminal::open();
    let folder = folder();
    let file = folder.path().join("r.json");
    let words = ["run", "-o", file.to_str().unwrap(), "sh", "-c", SPEAKER];
    let traced = Traced::start(&words, &terminal);
    let shown = terminal.read();
    assert!(traced.end().success());
    // Its stdout is elsewhere, its stderr is the terminal.
    assert_eq!(shown.whole(), "");

    let terminal = Terminal::open();
    let mut program = Command::new("sh")
        .args(["-c", SPEAKER])
        .stdin(Stdio::null())
        .stdout(terminal.end())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let pid = program.id().to_string();
    let traced = Traced::start(&["attach", "-o", file.to_str().unwrap(), &pid], &terminal);
    let shown = terminal.read();
    assert!(traced.end().success());
    assert!(program.wait().unwrap().success());
    assert_eq!(shown.whole(), "onetwo\r\n");
}

#[test]
fn a_launched_program_that_writes_elsewhere_leaves_the_terminal_to_it() {
    let terminal = Terminal::open();
    let folder = folder();
    let (report, out) = (folder.path().join("r.json"), folder.path().join("out"));
    let go = folder.path().join("go");
    assert!(Command::new("mkfifo").arg(&go).status().unwrap().success());
    let redirected = format!(
        "exec >'{}' 2>&1; printf one; read order <'{}'; echo two; exit 7",
        out.display(),
        go.display()
    );
    let words = [
        "run",
        "-o",
        report.to_str().unwrap(),
        "sh",
        "-c",
        &redirected,
    ];
    let traced = Traced::start(&words, &terminal);
    let shown = terminal.read();
    wait_until("the line shows", || shown.so_far().contains(" events"));
    fs::write(&go, "go\n").unwrap();
    assert_eq!(traced.end().code(), Some(7));
    assert_eq!(expect_shown_and_cleared(&shown.whole()), "");
    assert_eq!(fs::read_to_string(&out).unwrap(), "onetwo\n");
}

/// Fills a terminal of which nobody reads.
fn fill(terminal: &Terminal) {
    use std::os::fd::AsRawFd;
    let path = format!("/proc/self/fd/{}", terminal.slave.as_raw_fd());
    let mut end = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(Path::new(&path))
        .unwrap();
    loop {
        match end.write(b"x") {
            Ok(_) => {}
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_terminal_that_takes_nothing_holds_up_nobody() {
    let (sleeper, terminal) = (sleeper(), Terminal::open());
    fill(&terminal);
    let folder = folder();
    let file = folder.path().join("r.json");
    let pid = sleeper.pid().to_string();
    let words = [
        "attach",
        "--duration",
        LONG,
        "-o",
        file.to_str().unwrap(),
        &pid,
    ];
    let traced = Traced::start(&words, &terminal);
    assert!(traced.end().success());
    assert_eq!(tracer_of(sleeper.pid()), Some(0));
    assert!(file.exists());
    // What the program and the shell write must wait as ever: the description that they share still blocks.
    use std::os::fd::AsRawFd;
    // SAFETY: takes numbers.
    let flags = unsafe { libc::fcntl(terminal.slave.as_raw_fd(), libc::F_GETFL) };
    assert_eq!(flags & libc::O_NONBLOCK, 0);
}
