//! `--live` in a real terminal, tmux's: keys are sent, screens are read.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::python;
use crate::support::skip;
use crate::support::tracer_of;
use crate::support::wait_until;

/// A terminal with a shell in it.
struct Terminal {
    tmux: PathBuf,
    socket: PathBuf,
}

impl Terminal {
    fn open(folder: &Path) -> Option<Self> {
        let Some(tmux) = installed(&["tmux"]) else {
            skip("tmux is not installed");
            return None;
        };
        let terminal = Self {
            tmux,
            socket: folder.join("tmux"),
        };
        terminal.tmux(&[
            "-f",
            "/dev/null",
            "new-session",
            "-d",
            "-x",
            "100",
            "-y",
            "30",
            "sh",
        ]);
        terminal.line(&format!("cd '{}'; PS1='ready> '", folder.display()));
        Some(terminal)
    }

    fn tmux(&self, words: &[&str]) -> String {
        let output = Command::new(&self.tmux)
            .arg("-S")
            .arg(&self.socket)
            .args(words)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8(output.stdout).unwrap()
    }

    fn keys(&self, keys: &[&str]) {
        self.tmux(&[&["send-keys"], keys].concat());
    }

    fn line(&self, text: &str) {
        self.tmux(&["send-keys", "-l", text]);
        self.keys(&["Enter"]);
    }

    fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"])
    }

    fn wait_for(&self, text: &str) -> String {
        let mut screen = String::new();
        wait_until(&format!("`{text}` on the screen"), || {
            screen = self.screen();
            screen.contains(text)
        });
        screen
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        self.tmux(&["kill-server"]);
    }
}

const GROW: &str = "
import sys
keep = []
def hoard():
    keep.append(bytearray(9 << 20))
hoard()
print('program said this', flush=True)
if sys.argv[1:]:
    import time
    while True:
        time.sleep(0.05)
";

fn program(command: &Command) -> String {
    command.get_program().to_str().unwrap().to_owned()
}

/// `before` and `after` the view, the terminal's settings are the same.
fn expect_restored(folder: &Path) {
    let settings = |name| fs::read_to_string(folder.join(name)).unwrap();
    wait_until("the settings of the terminal", || {
        fs::metadata(folder.join("after")).is_ok_and(|file| file.len() > 0)
    });
    assert!(settings("before").contains("icanon"));
    assert_eq!(settings("before"), settings("after"));
}

#[test]
fn a_program_that_ends_stays_in_view_and_its_output_comes_afterwards() {
    let (Some(python), folder) = (python(), folder()) else {
        return;
    };
    let Some(terminal) = Terminal::open(folder.path()) else {
        return;
    };
    fs::write(folder.path().join("grow.py"), GROW).unwrap();
    terminal.line(&format!(
        "stty -a > before; {} run --live -- {} grow.py; stty -a > after; echo status $?",
        program(&breaktrace()),
        python.display()
    ));
    let screen = terminal.wait_for("exited with 0");
    assert!(!screen.contains("program said this"), "{screen}");
    // At its end the program has given it back.
    terminal.keys(&["o"]);
    terminal.wait_for("by grown");
    terminal.wait_for("hoard (grow.py:");
    terminal.keys(&["s"]);
    terminal.wait_for("snapshot written: breaktrace-");
    terminal.tmux(&["resize-window", "-x", "80", "-y", "24"]);
    wait_until("a smaller picture", || {
        terminal
            .screen()
            .lines()
            .all(|line| line.chars().count() <= 80)
    });
    terminal.tmux(&["resize-window", "-x", "100", "-y", "30"]);
    terminal.keys(&["?"]);
    terminal.wait_for("pause the view; the program runs on");
    terminal.keys(&["Escape"]);
    terminal.keys(&["q"]);
    terminal.wait_for("status 0");
    let all = terminal.tmux(&["capture-pane", "-p", "-S", "-200"]);
    assert!(all.contains("program said this"), "{all}");
    assert!(all.contains("heap grew"), "{all}");
    expect_restored(folder.path());
    let snapshot = fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .find(|path| {
            path.extension()
                .is_some_and(|extension| extension == "json")
        })
        .unwrap();
    let read = finish(breaktrace().arg("report").arg(&snapshot));
    read.expect_code(0);
    assert!(read.stdout.contains("hoard (grow.py:"), "{}", read.stdout);
}

#[test]
fn quitting_lets_an_attached_program_live_on() {
    let (Some(python), folder) = (python(), folder()) else {
        return;
    };
    let Some(terminal) = Terminal::open(folder.path()) else {
        return;
    };
    fs::write(folder.path().join("grow.py"), GROW).unwrap();
    let mut child = Command::new(python)
        .args(["grow.py", "stay"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    terminal.line(&format!(
        "stty -a > before; {} attach --live {pid}; stty -a > after; echo status $?",
        program(&breaktrace()),
    ));
    terminal.wait_for("quit and detach");
    terminal.wait_for("resident");
    assert!(tracer_of(pid).is_some_and(|tracer| tracer != 0));
    terminal.keys(&["p"]);
    terminal.wait_for("VIEW PAUSED");
    terminal.keys(&["q"]);
    terminal.wait_for("status 0");
    expect_restored(folder.path());
    assert_eq!(tracer_of(pid), Some(0));
    assert!(child.try_wait().unwrap().is_none(), "it lives on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn quitting_a_program_that_runs_asks_what_becomes_of_it() {
    let (Some(python), folder) = (python(), folder()) else {
        return;
    };
    let Some(terminal) = Terminal::open(folder.path()) else {
        return;
    };
    fs::write(folder.path().join("grow.py"), GROW).unwrap();
    terminal.line(&format!(
        "stty -a > before; {} run --live -- {} grow.py stay; stty -a > after; echo over",
        program(&breaktrace()),
        python.display()
    ));
    terminal.wait_for("hoard");
    terminal.keys(&["q"]);
    terminal.wait_for("The program is still running");
    terminal.keys(&["e"]);
    terminal.wait_for("SIGTERM");
    expect_restored(folder.path());
}

fn gone(tracer: u32) -> bool {
    !Path::new(&format!("/proc/{tracer}")).exists()
}

#[test]
fn a_terminal_that_goes_away_lets_an_attached_program_go() {
    let (Some(python), folder) = (python(), folder()) else {
        return;
    };
    let Some(terminal) = Terminal::open(folder.path()) else {
        return;
    };
    fs::write(folder.path().join("grow.py"), GROW).unwrap();
    let mut child = Command::new(python)
        .args(["grow.py", "stay"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    terminal.line(&format!("{} attach --live {pid}", program(&breaktrace())));
    terminal.wait_for("quit and detach");
    let tracer = tracer_of(pid).unwrap();
    assert_ne!(tracer, 0);
    drop(terminal);
    wait_until("breaktrace to end with its terminal", || gone(tracer));
    assert_eq!(tracer_of(pid), Some(0));
    assert!(child.try_wait().unwrap().is_none(), "it lives on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn where_the_hangup_is_ignored_the_recording_outlives_its_terminal() {
    let (Some(python), folder) = (python(), folder()) else {
        return;
    };
    let Some(terminal) = Terminal::open(folder.path()) else {
        return;
    };
    let code = GROW.replace(
        "while True",
        "import os\n    while not os.path.exists('stop')",
    );
    fs::write(folder.path().join("grow.py"), code).unwrap();
    terminal.line(&format!(
        "trap '' HUP; {} run --live -o kept.json -- {} grow.py stay > said",
        program(&breaktrace()),
        python.display()
    ));
    terminal.wait_for("hoard");
    drop(terminal);
    fs::write(folder.path().join("stop"), "").unwrap();
    let kept = folder.path().join("kept.json");
    wait_until("the report of the whole run", || kept.exists());
    let read = finish(breaktrace().arg("report").arg(&kept));
    read.expect_code(0);
    assert!(
        read.stdout.contains("stay exited 0 after"),
        "{}",
        read.stdout
    );
    let said = fs::read_to_string(folder.path().join("said")).unwrap();
    assert_eq!(said, "program said this\n");
}

#[test]
fn a_request_to_end_gives_the_terminal_back() {
    let (Some(python), folder) = (python(), folder()) else {
        return;
    };
    let Some(terminal) = Terminal::open(folder.path()) else {
        return;
    };
    fs::write(folder.path().join("grow.py"), GROW).unwrap();
    let mut child = Command::new(python)
        .args(["grow.py", "stay"])
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let pid = child.id();
    terminal.line(&format!(
        "stty -a > before; {} attach --live {pid}; stty -a > after; echo over",
        program(&breaktrace()),
    ));
    terminal.wait_for("quit and detach");
    let tracer = tracer_of(pid).unwrap();
    let asked = Command::new("kill")
        .arg(tracer.to_string())
        .status()
        .unwrap();
    assert!(asked.success());
    expect_restored(folder.path());
    assert!(child.try_wait().unwrap().is_none(), "it lives on");
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn without_a_terminal_the_view_is_refused_before_anything_runs() {
    let folder = folder();
    let mark = folder.path().join("mark");
    let mut command = Command::new("setsid");
    command
        .arg("-w")
        .arg(program(&breaktrace()))
        .args(["run", "--live", "--", "touch"])
        .arg(&mark);
    let ended = finish(&mut command);
    ended.expect_code(2);
    assert!(
        ended.stderr.contains("there is no terminal"),
        "{}",
        ended.stderr
    );
    assert!(ended.stderr.contains("try:"), "{}", ended.stderr);
    assert!(!mark.exists());
}
