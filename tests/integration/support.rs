//! What the tests share: to run programs with a watchdog, to record them, and to look at processes.

use std::ffi::OsStr;
use std::fs;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Stdio;
use std::sync::mpsc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use breaktrace::report::Report;
use breaktrace::report::SpaceReport;
use serde_json::Value;
use tempfile::TempDir;

/// After this long a program under test hangs, and is killed with everything it started.
const PATIENCE: Duration = Duration::from_secs(60);

/// Passes a test that lacks something that could be installed, and says so; fails it where everything has to run.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("BREAKTRACE_TEST_REQUIRE").is_none(),
        "cannot run, though BREAKTRACE_TEST_REQUIRE is set: {reason}"
    );
    // Past the capture of the test harness: whoever runs the tests should see it.
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Passes a test that this machine rules out, whatever is installed, and says so.
pub(crate) fn not_here(reason: &str) {
    let _ = writeln!(std::io::stderr(), "skipped: {reason}");
}

/// Whether address space randomization can be turned off: containers often forbid it.
pub(crate) fn can_fix_addresses() -> bool {
    Command::new("setarch")
        .args(["-R", "true"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// The program under test.
pub(crate) fn breaktrace() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_breaktrace"));
    spare_locale(&mut command);
    command
}

/// What decides about characters.
pub(crate) const LOCALE: [&str; 3] = ["LC_ALL", "LC_CTYPE", "LANG"];

/// Takes a locale away that is not UTF-8, so that text in pipes and files is the same on every machine.
pub(crate) fn spare_locale(command: &mut Command) {
    let chosen = LOCALE
        .iter()
        .filter_map(|name| std::env::var(name).ok())
        .find(|locale| !locale.is_empty());
    let is_utf8 = |locale: &String| locale.to_lowercase().replace('-', "").contains("utf8");
    if chosen.is_some_and(|locale| !is_utf8(&locale)) {
        for name in LOCALE {
            command.env_remove(name);
        }
    }
}

/// A fixture that Cargo built as an example.
pub(crate) fn fixture(name: &str) -> PathBuf {
    let tests = std::env::current_exe().unwrap();
    let path = tests
        .ancestors()
        .nth(2)
        .unwrap()
        .join("examples")
        .join(name);
    assert!(
        path.exists(),
        "{} is missing: `cargo test` builds it, `cargo build --examples` too",
        path.display()
    );
    path
}

/// Compiles a fixture that is written in C; `None` if there is no compiler that can.
pub(crate) fn compile(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(name)
        .with_extension("c");
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let compiled = folder.path().join(name);
    let result = Command::new("cc")
        .arg("-O0")
        .args(flags)
        .arg("-o")
        .arg(&compiled)
        .arg(&source)
        .output();
    match result {
        Ok(output) if output.status.success() => {
            // In one step, as tests run at the same time and one may be running the program already.
            let place =
                Path::new(env!("CARGO_TARGET_TMPDIR")).join(name.to_owned() + &flags.concat());
            fs::rename(&compiled, &place).unwrap();
            Some(place)
        }
        _ => None,
    }
}

/// The first of these programs that exists.
pub(crate) fn installed(candidates: &[&str]) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    candidates
        .iter()
        .flat_map(|name| std::env::split_paths(&path).map(move |folder| folder.join(name)))
        .find(|candidate| candidate.is_file())
}

/// Valgrind, if it is there and can start: it needs the C library's debug symbols for that (Debian's libc6-dbg).
pub(crate) fn valgrind() -> Option<PathBuf> {
    let valgrind = installed(&["valgrind"])?;
    let output = Command::new(&valgrind).args(["-q", "true"]).output().ok()?;
    output.status.success().then_some(valgrind)
}

/// The Python that is no script in front of another one, if there is one.
pub(crate) fn python() -> Option<PathBuf> {
    let usual = PathBuf::from("/usr/bin/python3");
    if usual.is_file() {
        Some(usual)
    } else {
        installed(&["python3"])
    }
}

/// A folder that goes with the test.
pub(crate) fn folder() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// How a program ended, and what it wrote.
#[derive(Debug)]
pub(crate) struct Ended {
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) status: ExitStatus,
}

impl Ended {
    /// The same, without what differs by nature: whether a core was dumped.
    pub(crate) fn ending(&self) -> (Option<i32>, Option<i32>) {
        (self.status.code(), self.status.signal())
    }

    /// Panics unless it ended with this exit code; shows what it wrote.
    #[track_caller]
    pub(crate) fn expect_code(&self, code: i32) -> &Self {
        assert_eq!(
            self.ending(),
            (Some(code), None),
            "\nstdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self.expect_calm()
    }

    /// Panics unless it ended by this signal; shows what it wrote.
    #[track_caller]
    pub(crate) fn expect_signal(&self, signal: i32) -> &Self {
        assert_eq!(
            self.ending(),
            (None, Some(signal)),
            "\nstdout: {}\nstderr: {}",
            self.stdout,
            self.stderr
        );
        self.expect_calm()
    }

    /// Panics if breaktrace did.
    #[track_caller]
    pub(crate) fn expect_calm(&self) -> &Self {
        assert!(!self.stderr.contains("panicked at"), "{}", self.stderr);
        self
    }

    /// The value of a `key value` line that a fixture printed.
    #[track_caller]
    pub(crate) fn fact(&self, key: &str) -> &str {
        fact(&self.stdout, key)
    }

    #[track_caller]
    pub(crate) fn number(&self, key: &str) -> u64 {
        number(self.fact(key))
    }
}

#[track_caller]
pub(crate) fn fact<'a>(text: &'a str, key: &str) -> &'a str {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("no `{key}` among:\n{text}"))
}

/// A number, decimal or hexadecimal.
#[track_caller]
pub(crate) fn number(text: &str) -> u64 {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .unwrap_or_else(|_| panic!("`{text}` is no number"))
}

/// Kills a process group when it is not called off in time.
struct Watchdog {
    call_off: mpsc::Sender<()>,
}

impl Watchdog {
    fn over(group: u32) -> Self {
        let (call_off, called_off) = mpsc::channel();
        thread::spawn(move || {
            if called_off.recv_timeout(PATIENCE) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = writeln!(
                    std::io::stderr(),
                    "watchdog: process group {group} hangs, killing it"
                );
                kill_group(group);
            }
        });
        Self { call_off }
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        let _ = self.call_off.send(());
    }
}

fn kill_group(group: u32) {
    // SAFETY: takes numbers; the group is one that a test started.
    unsafe { libc::killpg(group.cast_signed(), libc::SIGKILL) };
}

/// Sends a signal; whether there was somebody to receive it.
pub(crate) fn send(pid: u32, signal: i32) -> bool {
    // SAFETY: takes numbers; the process is one that a test started.
    unsafe { libc::kill(pid.cast_signed(), signal) == 0 }
}

/// A program that runs while the test goes on.
#[derive(Debug)]
pub(crate) struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    stderr: Option<JoinHandle<String>>,
    watchdog: Option<Watchdog>,
}

impl std::fmt::Debug for Watchdog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Watchdog")
    }
}

impl Running {
    /// Starts a program in a process group of its own.
    pub(crate) fn start(command: &mut Command) -> Self {
        command.process_group(0);
        Self::start_as_it_is(command)
    }

    /// Starts a program that leads its process group by what `command` does already.
    pub(crate) fn start_as_it_is(command: &mut Command) -> Self {
        let mut child = command
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("{command:?}: {error}"));
        let stderr = child.stderr.take().unwrap();
        Self {
            watchdog: Some(Watchdog::over(child.id())),
            stdin: child.stdin.take(),
            stdout: BufReader::new(child.stdout.take().unwrap()),
            stderr: Some(thread::spawn(move || read_all(stderr))),
            child,
        }
    }

    /// Starts a program that takes orders.
    pub(crate) fn start_obedient(command: &mut Command) -> Self {
        Self::start(command.stdin(Stdio::piped()))
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output, which must come.
    #[track_caller]
    pub(crate) fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        if line.is_empty() {
            panic!("it ended instead of answering: {:?}", self.child.wait());
        }
        line.trim_end().to_owned()
    }

    pub(crate) fn tell(&mut self, order: &str) {
        let stdin = self.stdin.as_mut().expect("started with a stdin");
        writeln!(stdin, "{order}").unwrap();
    }

    /// Sends an order and returns the answer.
    #[track_caller]
    pub(crate) fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.line()
    }

    /// Whether output comes within a moment.
    pub(crate) fn says_something(&self) -> bool {
        use std::os::fd::AsRawFd;
        if !self.stdout.buffer().is_empty() {
            return true;
        }
        let mut poll = libc::pollfd {
            fd: self.stdout.get_ref().as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: one valid structure.
        unsafe { libc::poll(&raw mut poll, 1, 100) > 0 }
    }

    pub(crate) fn send(&self, signal: i32) {
        assert!(send(self.pid(), signal));
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        self.child.try_wait().unwrap().is_some()
    }

    /// Closes its stdin and waits for its end.
    pub(crate) fn finish(mut self) -> Ended {
        self.stdin = None;
        let mut stdout = String::new();
        let mut bytes = Vec::new();
        self.stdout.read_to_end(&mut bytes).unwrap();
        stdout.push_str(&String::from_utf8_lossy(&bytes));
        let stderr = self.stderr.take().unwrap().join().unwrap();
        let status = self.child.wait().unwrap();
        self.watchdog = None;
        Ended {
            stdout,
            stderr,
            status,
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // After `finish` there is nobody left; otherwise the test failed or is done with it.
        if self.watchdog.take().is_some() {
            kill_group(self.child.id());
            let _ = self.child.wait();
        }
    }
}

fn read_all(mut stream: impl Read) -> String {
    let mut bytes = Vec::new();
    let _ = stream.read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Runs a program to its end, with an empty stdin unless `command` says otherwise.
pub(crate) fn finish(command: &mut Command) -> Ended {
    Running::start(command).finish()
}

/// Waits for a condition that must come true.
#[track_caller]
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "in vain waited until {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// A field of `/proc/PID/status`; `None` when there is no such process.
pub(crate) fn status(pid: u32, field: &str) -> Option<String> {
    fs::read_to_string(format!("/proc/{pid}/status"))
        .ok()?
        .lines()
        .find_map(|line| {
            Some(
                line.strip_prefix(field)?
                    .strip_prefix(':')?
                    .trim()
                    .to_owned(),
            )
        })
}

/// R, S, T, t, Z …; X when there is no such process.
pub(crate) fn state(pid: u32) -> char {
    status(pid, "State")
        .and_then(|state| state.chars().next())
        .unwrap_or('X')
}

pub(crate) fn is_gone(pid: u32) -> bool {
    matches!(state(pid), 'X' | 'Z')
}

/// The process that traces this thread; 0 for none.
pub(crate) fn tracer_of(tid: u32) -> Option<u32> {
    status(tid, "TracerPid")?.parse().ok()
}

/// The threads of a process.
pub(crate) fn threads_of(pid: u32) -> Vec<u32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .collect()
}

/// Waits until all threads of a process sleep, each in a call of its own.
///
/// Before this, one may still be on its way from a stop that has nothing to do with what the test is about to do.
#[track_caller]
pub(crate) fn wait_until_idle(pid: u32) {
    wait_until("all threads sleep", || {
        threads_of(pid).into_iter().all(|tid| state(tid) == 'S')
    });
}

/// Stops a process whose threads all sleep, and waits until each has stopped.
///
/// Under trace one thread stops first for its tracer to let the signal through, and the others only when the whole
/// process stops: then no thread gets back to the program before SIGCONT.
#[track_caller]
pub(crate) fn stop(pid: u32) {
    wait_until_idle(pid);
    assert!(send(pid, libc::SIGSTOP));
    wait_until_stopped(pid);
}

#[track_caller]
pub(crate) fn wait_until_stopped(pid: u32) {
    wait_until("all threads have stopped", || {
        threads_of(pid)
            .into_iter()
            .all(|tid| matches!(state(tid), 't' | 'T'))
    });
}

/// The only child of a process, once it has one that runs `program`.
pub(crate) fn child_running(parent: u32, program: &Path) -> u32 {
    let mut found = 0;
    wait_until("the program has begun", || {
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))
            .unwrap_or_default();
        found = children
            .split_whitespace()
            .filter_map(|pid| pid.parse().ok())
            .find(|pid: &u32| {
                fs::read_link(format!("/proc/{pid}/exe")).is_ok_and(|exe| exe == program)
            })
            .unwrap_or(0);
        found != 0
    });
    found
}

/// A program under `breaktrace run`, from beginning to end.
#[derive(Debug)]
pub(crate) struct Traced {
    pub(crate) ended: Ended,
    pub(crate) report: Report,
    pub(crate) events: Vec<Value>,
}

/// Runs a program under breaktrace with these options, and reads report and events.
///
/// Whatever the program is, some things hold: the model equals `/proc`, and the sums fit.
#[track_caller]
pub(crate) fn trace<S: AsRef<OsStr>>(
    options: &[&str],
    program: impl IntoIterator<Item = S>,
) -> Traced {
    let traced = trace_unchecked(options, program);
    expect_consistency(&traced.report);
    traced
}

/// As `trace`, where something that is not recorded may change what is.
#[track_caller]
pub(crate) fn trace_unchecked<S: AsRef<OsStr>>(
    options: &[&str],
    program: impl IntoIterator<Item = S>,
) -> Traced {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut command = breaktrace();
    command
        .arg("run")
        .args(files.options())
        .args(options)
        .arg("--")
        .args(program);
    let ended = finish(&mut command);
    ended.expect_calm();
    assert!(files.report.exists(), "no report: {ended:?}");
    Traced {
        ended,
        report: files.report(),
        events: files.events(),
    }
}

/// Where a recording goes.
pub(crate) struct Files {
    pub(crate) report: PathBuf,
    pub(crate) events: PathBuf,
}

impl Files {
    pub(crate) fn within(folder: &Path) -> Self {
        Self {
            report: folder.join("report.json"),
            events: folder.join("events.jsonl"),
        }
    }

    pub(crate) fn options(&self) -> [&OsStr; 5] {
        [
            "-q".as_ref(),
            "--events".as_ref(),
            self.events.as_os_str(),
            "-o".as_ref(),
            self.report.as_os_str(),
        ]
    }

    #[track_caller]
    pub(crate) fn report(&self) -> Report {
        let text = fs::read_to_string(&self.report).unwrap();
        breaktrace::report::from_json(&text).unwrap()
    }

    /// The events so far, the header left out.
    #[track_caller]
    pub(crate) fn events(&self) -> Vec<Value> {
        let text = fs::read_to_string(&self.events).unwrap_or_default();
        let complete = text.rfind('\n').map_or(0, |end| end + 1);
        text[..complete]
            .lines()
            .skip(1)
            .map(|line| serde_json::from_str(line).unwrap())
            .collect()
    }

    /// How often something happened so far.
    pub(crate) fn count(&self, wanted: impl Fn(&Value) -> bool) -> usize {
        self.events().iter().filter(|event| wanted(event)).count()
    }
}

/// Whether an event is a snapshot for this reason.
pub(crate) fn is_snapshot(event: &Value, reason: &str) -> bool {
    event["event"] == "snapshot" && event["reason"] == reason
}

/// What must hold for every report.
#[track_caller]
pub(crate) fn expect_consistency(report: &Report) {
    for space in &report.address_spaces {
        assert_eq!(
            space.checks.differing, 0,
            "the model of `{}` differs from /proc: {:#?}",
            space.program, space.checks.differences
        );
        let heap = &space.program_break;
        if let (Some(start), Some(end)) = (heap.start_bytes, heap.end_bytes) {
            assert_eq!(
                start + heap.grown_bytes,
                end + heap.shrunk_bytes,
                "break of `{}`: {heap:#?}",
                space.program
            );
        }
        let anonymous = &space.anonymous;
        assert_eq!(
            anonymous.start_bytes + anonymous.grown_bytes,
            anonymous.end_bytes + anonymous.shrunk_bytes,
            "anonymous memory of `{}`: {:#?}",
            space.program,
            breaktrace::report::AnonymousReport {
                steps: breaktrace::report::Steps::default(),
                ..anonymous.clone()
            }
        );
    }
    let sum = |of: fn(&SpaceReport) -> u64| report.address_spaces.iter().map(of).sum::<u64>();
    assert_eq!(
        report.totals.break_grown_bytes,
        sum(|space| space.program_break.grown_bytes)
    );
    assert_eq!(
        report.totals.break_shrunk_bytes,
        sum(|space| space.program_break.shrunk_bytes)
    );
    assert_eq!(
        report.totals.anonymous_grown_bytes,
        sum(|space| space.anonymous.grown_bytes)
    );
    assert_eq!(
        report.totals.anonymous_shrunk_bytes,
        sum(|space| space.anonymous.shrunk_bytes)
    );
}

/// How often a call was made, and how often it failed, all processes together.
pub(crate) fn calls(report: &Report, name: &str) -> (u64, u64) {
    report
        .totals
        .calls
        .iter()
        .find(|call| call.name == name)
        .map_or((0, 0), |call| (call.calls, call.failed))
}

/// The memory calls between a fixture's two marks, without times and numbers of processes.
#[track_caller]
pub(crate) fn between_marks(events: &[Value]) -> Vec<Value> {
    let is_mark = |event: &Value, number: u64| {
        event["event"] == "munmap" && event["address"] == "0x1" && event["length"] == number
    };
    let begin = events
        .iter()
        .position(|event| is_mark(event, 1))
        .expect("the first mark");
    let end = events
        .iter()
        .position(|event| is_mark(event, 2))
        .expect("the second mark");
    events[begin + 1..end]
        .iter()
        .filter(|event| is_call(event))
        .map(without_origin)
        .collect()
}

fn is_call(event: &Value) -> bool {
    let other = [
        "process_started",
        "thread_started",
        "thread_ended",
        "exec",
        "process_ended",
        "snapshot",
        "notice",
        "recording_ended",
        "malloc_seen",
        "heap_examined",
        "module_seen",
        "function_seen",
        "stack_seen",
        "code_named",
    ];
    !other.iter().any(|name| event["event"] == *name)
}

fn without_origin(event: &Value) -> Value {
    let mut event = event.clone();
    let fields = event.as_object_mut().unwrap();
    for field in ["t", "pid", "tid", "space"] {
        assert!(fields.remove(field).is_some(), "no `{field}`");
    }
    // Where a call comes from its program does not tell.
    fields.remove("stack");
    fields.remove("malloc");
    event
}

/// What a fixture printed as JSON: the calls that it made.
#[track_caller]
pub(crate) fn told(stdout: &str) -> Vec<Value> {
    stdout
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

/// Fails with the first place where two lists of calls part.
#[track_caller]
pub(crate) fn expect_same_calls(recorded: &[Value], told: &[Value]) {
    for (index, (recorded, told)) in recorded.iter().zip(told).enumerate() {
        assert_eq!(
            recorded, told,
            "call {index}: recorded, and as the program tells"
        );
    }
    assert_eq!(
        recorded.len(),
        told.len(),
        "calls recorded, and calls that the program tells"
    );
}
