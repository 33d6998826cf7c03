//! What goes wrong is said: what, why, and what to do next, with the right exit code, and nothing half-done left behind.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use tempfile::TempDir;

use crate::support::Ended;
use crate::support::Running;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::fixture;
use crate::support::folder;
use crate::support::installed;
use crate::support::not_here;
use crate::support::skip;
use crate::support::state;
use crate::support::status;
use crate::support::tracer_of;
use crate::support::wait_until;

/// One failure, told to a person: it names the thing, says why, and knows a next step if there is one.
#[track_caller]
fn expect_failure(ended: &Ended, code: i32, words: &[&str]) {
    ended.expect_code(code);
    let text = &ended.stderr;
    let lowercase = text.to_lowercase();
    for word in words {
        assert!(
            lowercase.contains(&word.to_lowercase()),
            "no `{word}` in: {text}"
        );
    }
    assert!(text.starts_with("breaktrace: "), "{text}");
    assert!(text.lines().count() <= 4, "one failure, told once: {text}");
    assert!(
        !text.contains("Os {") && !text.contains("Error("),
        "words for people: {text}"
    );
    assert_eq!(ended.stdout, "");
}

#[track_caller]
fn expect_next_step(ended: &Ended) {
    assert!(
        ended.stderr.contains("\n  try: "),
        "no next step: {}",
        ended.stderr
    );
}

/// Runs a program that cannot be run, with outputs that must not appear.
#[track_caller]
fn cannot_run(program: &Path, code: i32, words: &[&str]) {
    let folder = folder();
    let [report, events] = ["report.json", "events.jsonl"].map(|name| folder.path().join(name));
    let mut command = breaktrace();
    command
        .arg("run")
        .arg("-o")
        .arg(&report)
        .arg("--events")
        .arg(&events)
        .arg("--")
        .arg(program);
    // A folder that may not be searched would come before the program that does not exist.
    let ended = finish(command.env("PATH", "/usr/bin:/bin"));
    expect_failure(&ended, code, words);
    expect_next_step(&ended);
    let left: Vec<_> = fs::read_dir(folder.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

fn write_executable(folder: &TempDir, name: &str, content: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// The beginning of a 64-bit ELF file for a machine, with one program header of type PT_INTERP that names `interpreter`.
fn elf(machine: u16, interpreter: &str) -> Vec<u8> {
    let mut file = Vec::new();
    file.extend(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    // ET_DYN, the machine, version, entry, program headers, section headers, flags.
    file.extend(3_u16.to_le_bytes());
    file.extend(machine.to_le_bytes());
    file.extend(1_u32.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(64_u64.to_le_bytes());
    file.extend(0_u64.to_le_bytes());
    file.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 1, 64, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // PT_INTERP, readable, at offset 120.
    let length = interpreter.len() as u64 + 1;
    file.extend(3_u32.to_le_bytes());
    file.extend(4_u32.to_le_bytes());
    for word in [120_u64, 120, 120, length, length, 1] {
        file.extend(word.to_le_bytes());
    }
    file.extend(interpreter.as_bytes());
    file.push(0);
    file.resize(4096, 0);
    file
}

const OWN: u16 = if cfg!(target_arch = "x86_64") {
    62
} else {
    183
};
const OTHER: (u16, &str) = (22, "s390");

#[test]
fn programs_that_do_not_exist() {
    cannot_run(
        Path::new("no-such-program-here"),
        127,
        &["no-such-program-here", "no such program"],
    );
    cannot_run(
        Path::new("/no/such/folder/program"),
        127,
        &["/no/such/folder/program"],
    );
    cannot_run(Path::new("/etc/passwd/x"), 127, &["/etc/passwd/x"]);
}

#[test]
fn programs_that_may_not_be_executed() {
    cannot_run(Path::new("/usr"), 126, &["/usr", "directory"]);
    cannot_run(Path::new("/etc/passwd"), 126, &["/etc/passwd", "execut"]);
}

#[test]
fn programs_for_other_machines() {
    let folder = folder();
    let program = write_executable(&folder, "foreign", &elf(OTHER.0, "/lib/ld.so"));
    cannot_run(&program, 126, &["foreign", OTHER.1]);
    let program = write_executable(&folder, "nonsense", b"\0\x01\x02\x03");
    cannot_run(&program, 126, &["nonsense"]);
    let program = write_executable(&folder, "empty", b"");
    cannot_run(&program, 126, &["empty"]);
}

#[test]
fn programs_whose_interpreter_is_missing() {
    let folder = folder();
    let program = write_executable(&folder, "dynamic", &elf(OWN, "/no/such/ld.so"));
    cannot_run(&program, 127, &["dynamic", "interpreter", "/no/such/ld.so"]);
    let program = write_executable(&folder, "script", b"#!/no/such/shell -x\necho\n");
    cannot_run(&program, 127, &["script", "interpreter", "/no/such/shell"]);
    let program = write_executable(&folder, "windows", b"#!/bin/sh\r\necho\r\n");
    cannot_run(&program, 127, &["windows", "interpreter", "/bin/sh\\r"]);
}

#[test]
fn scripts_without_a_mark_are_refused_as_the_kernel_does() {
    let folder = folder();
    let program = write_executable(&folder, "markless", b"echo hello\n");
    cannot_run(&program, 126, &["markless", "#!"]);
}

fn attach(pid: u32) -> Ended {
    finish(breaktrace().arg("attach").arg(pid.to_string()))
}

#[test]
fn processes_that_do_not_exist() {
    let highest: u32 = fs::read_to_string("/proc/sys/kernel/pid_max")
        .unwrap()
        .trim()
        .parse()
        .unwrap();
    let ended = attach(highest + 1);
    expect_failure(&ended, 1, &[&(highest + 1).to_string(), "no such process"]);
    expect_next_step(&ended);
}

#[test]
fn processes_that_have_ended_already() {
    let mut child = Command::new("true").spawn().unwrap();
    wait_until("it has ended", || state(child.id()) == 'Z');
    let ended = attach(child.id());
    child.wait().unwrap();
    expect_failure(&ended, 1, &[&child.id().to_string(), "ended"]);
    expect_next_step(&ended);
}

#[test]
fn breaktrace_itself_and_who_traces_it() {
    let program = breaktrace().get_program().to_owned();
    // exec keeps the number.
    let mut command = Command::new("sh");
    command.args(["-c", "exec \"$0\" attach $$"]).arg(&program);
    expect_failure(&finish(&mut command), 1, &["breaktrace itself"]);
    // The shell's parent is the breaktrace that traces it, and that traces the inner one as well.
    let mut command = breaktrace();
    command
        .args([
            "run",
            "-q",
            "--",
            "sh",
            "-c",
            "\"$0\" attach $PPID; exit $?",
        ])
        .arg(&program);
    let ended = finish(&mut command);
    expect_failure(&ended, 1, &["tracing this breaktrace"]);
    expect_next_step(&ended);
}

#[test]
fn kernel_threads() {
    if fs::read_to_string("/proc/2/comm").ok().as_deref() != Some("kthreadd\n") {
        return not_here("process 2 is not the kernel's: this is a PID namespace");
    }
    let ended = attach(2);
    expect_failure(&ended, 1, &["2", "kernel thread"]);
    expect_next_step(&ended);
}

#[test]
fn processes_that_somebody_else_traces() {
    let Some(strace) = installed(&["strace"]) else {
        return skip("strace is not installed");
    };
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    let pid = puppet.pid();
    let mut command = Command::new(strace);
    let other = Running::start(command.args(["-o", "/dev/null", "-p", &pid.to_string()]));
    wait_until("strace has attached", || {
        tracer_of(pid) == Some(other.pid())
    });
    let ended = attach(pid);
    expect_failure(
        &ended,
        1,
        &[
            &pid.to_string(),
            &other.pid().to_string(),
            "strace",
            "already traced",
        ],
    );
    expect_next_step(&ended);
    assert_eq!(
        tracer_of(pid),
        Some(other.pid()),
        "the other tracer was not disturbed"
    );
    assert_eq!(puppet.ask("ping"), "ping");
}

#[test]
fn one_of_several_processes_cannot_be_joined() {
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    let ended = finish(breaktrace().args(["attach", &puppet.pid().to_string(), "2147483646"]));
    expect_failure(&ended, 1, &["2147483646"]);
    assert_eq!(tracer_of(puppet.pid()), Some(0));
    assert_eq!(puppet.ask("ping"), "ping");
}

#[track_caller]
fn expect_refusal_by_owner(ended: &Ended, pid: u32) {
    expect_failure(ended, 1, &[&pid.to_string(), "root"]);
    expect_next_step(ended);
}

#[test]
fn processes_of_other_users() {
    // SAFETY: asks for a number.
    if unsafe { libc::geteuid() } != 0 {
        return match status(1, "Uid") {
            Some(users) if users.starts_with("0\t") => expect_refusal_by_owner(&attach(1), 1),
            _ => not_here("there is no process of another user that is known to last"),
        };
    }
    let Some(setpriv) = installed(&["setpriv"]) else {
        return skip("setpriv is not installed");
    };
    // Where the tests are built may not be open to others.
    let folder = folder();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = folder.path().join("breaktrace");
    fs::copy(breaktrace().get_program(), &program).unwrap();
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    let mut command = Command::new(setpriv);
    command
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(&program);
    let ended = finish(command.args(["attach", &puppet.pid().to_string()]));
    expect_refusal_by_owner(&ended, puppet.pid());
    assert_eq!(puppet.ask("ping"), "ping");
}

/// A program that leaves a mark when it runs.
fn marking(folder: &TempDir) -> (Vec<String>, PathBuf) {
    let mark = folder.path().join("it-ran");
    let script = format!("echo > {}", mark.display());
    (["sh", "-c", &script].map(String::from).into(), mark)
}

#[test]
fn outputs_that_cannot_be_written_are_refused_before_anything_runs() {
    for option in ["-o", "--events"] {
        let folder = folder();
        let (program, mark) = marking(&folder);
        let places = [
            ("/no/such/folder/x.json", "/no/such/folder/x.json"),
            ("/usr", "/usr"),
        ];
        for (place, word) in places {
            let mut command = breaktrace();
            command
                .args(["run", "--format", "json", option, place, "--"])
                .args(&program);
            let ended = finish(&mut command);
            expect_failure(&ended, 125, &[word]);
            expect_next_step(&ended);
            assert!(!mark.exists(), "{option} {place}: it ran all the same");
        }
    }
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    let pid = puppet.pid().to_string();
    let ended = finish(breaktrace().args(["attach", "-o", "/no/such/folder/x.json", &pid]));
    expect_failure(&ended, 1, &["/no/such/folder/x.json"]);
    assert_eq!(puppet.ask("ping"), "ping");
}

#[test]
fn an_error_that_nobody_can_be_told_is_still_an_error() {
    let nobody = || {
        std::fs::File::options()
            .write(true)
            .open("/dev/full")
            .unwrap()
    };
    let refused = breaktrace()
        .args(["attach", "999999999"])
        .stderr(nobody())
        .status()
        .unwrap();
    assert_eq!(refused.code(), Some(1));
    let folder = folder();
    let kept = folder.path().join("kept.json");
    let ran = breaktrace()
        .args(["run", "--events", "/dev/full", "-o"])
        .arg(&kept)
        .args(["--", "true"])
        .stderr(nobody())
        .status()
        .unwrap();
    assert_eq!(ran.code(), Some(125));
    assert!(kept.exists());
}

#[test]
fn a_full_disk_costs_the_record_and_not_the_program() {
    for options in [
        &["-q", "-o", "/dev/full", "--format", "json"][..],
        &["-q", "--events", "/dev/full"],
    ] {
        let folder = folder();
        let (program, mark) = marking(&folder);
        let ended = finish(
            breaktrace()
                .arg("run")
                .args(options)
                .arg("--")
                .args(&program),
        );
        ended.expect_code(125);
        assert!(ended.stderr.contains("/dev/full"), "{}", ended.stderr);
        assert!(
            ended.stderr.to_lowercase().contains("space"),
            "{}",
            ended.stderr
        );
        expect_next_step(&ended);
        assert!(mark.exists(), "the program did its work: {options:?}");
    }
}

#[test]
fn a_report_that_was_there_is_kept_when_the_new_one_fails() {
    let folder = folder();
    let report = folder.path().join("report.json");
    fs::write(&report, "precious").unwrap();
    let ended = finish(
        breaktrace()
            .arg("run")
            .arg("-o")
            .arg(&report)
            .args(["--", "no-such-program-here"])
            .env("PATH", "/usr/bin:/bin"),
    );
    ended.expect_code(127);
    assert_eq!(fs::read_to_string(&report).unwrap(), "precious");
}

#[test]
fn wrong_command_lines() {
    for line in [
        &["run"][..],
        &["run", "--"],
        &["run", "--no-such-option", "--", "true"],
        &["run", "--format", "pdf", "--", "true"],
        &["run", "-o", "report.pdf", "--", "true"],
        &["run", "--env", "NOTHING", "--", "true"],
        &["run", "--env", "=x", "--", "true"],
        &["run", "--duration", "soon", "--", "true"],
        &["run", "--duration", "0s", "--", "true"],
        &["run", "--every", "0ms", "--", "true"],
        &["attach"],
        &["attach", "abc"],
        &["attach", "0"],
        &["attach", "--", "-1"],
        &["attach", "99999999999999999999"],
        &["report"],
        &["no-such-command"],
    ] {
        let ended = finish(breaktrace().args(line));
        ended.expect_code(2);
        assert_eq!(ended.stdout, "", "{line:?}");
        assert!(!ended.stderr.is_empty(), "{line:?}");
    }
}

#[test]
fn users_that_do_not_exist() {
    let ended = finish(breaktrace().args(["run", "--user", "no-such-user-here", "--", "true"]));
    expect_failure(&ended, 125, &["no-such-user-here"]);
    expect_next_step(&ended);
}

fn show(path: &Path) -> Ended {
    finish(breaktrace().arg("report").arg(path))
}

#[test]
fn recordings_that_cannot_be_shown() {
    let folder = folder();
    let write = |name: &str, content: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        path
    };
    let newer_report = br#"{"schema":{"name":"breaktrace.report","version":999},"other":1}"#;
    let newer_log = br#"{"schema":{"name":"breaktrace.events","version":999},"other":1}
{"x":1}
"#;
    let cut_report = br#"{"schema":{"name":"breaktrace.report","version":1},"tool":{"na"#;
    let hollow_report = br#"{"schema":{"name":"breaktrace.report","version":1}}"#;
    for (path, words) in [
        (folder.path().join("missing.json"), &["missing.json"][..]),
        (folder.path().to_path_buf(), &["directory"]),
        (write("empty", b""), &["empty"]),
        (write("text", b"hello\nworld\n"), &["text"]),
        (
            write("binary", &[0, 159, 146, 150, 255, 10, 0]),
            &["binary"],
        ),
        (
            write("foreign.json", br#"{"name":"something else"}"#),
            &["foreign.json", "breaktrace"],
        ),
        (write("list.json", b"[1,2,3]"), &["list.json"]),
        (write("newer.json", newer_report), &["newer.json", "999"]),
        (write("newer.jsonl", newer_log), &["newer.jsonl", "999"]),
        (write("cut.json", cut_report), &["cut.json"]),
        (write("hollow.json", hollow_report), &["hollow.json"]),
    ] {
        let ended = show(&path);
        expect_failure(&ended, 1, words);
        expect_next_step(&ended);
    }
}
