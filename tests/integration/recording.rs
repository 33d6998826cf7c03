//! Recordings: a log gives the same report as the live program, however and wherever it breaks off.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use breaktrace::event::NoticeCode;
use breaktrace::report::Report;
use serde_json::Value;

use crate::support::Files;
use crate::support::Running;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::fixture;
use crate::support::folder;
use crate::support::is_snapshot;
use crate::support::wait_until;

/// Records a program into files.
#[track_caller]
fn record(folder: &Path, options: &[&str], program: &[&str]) -> Files {
    let files = Files::within(folder);
    let mut command = breaktrace();
    command
        .arg("run")
        .args(files.options())
        .args(options)
        .arg("--")
        .args(program);
    finish(&mut command).expect_calm();
    files
}

fn path_of(name: &str) -> String {
    fixture(name).display().to_string()
}

/// What `breaktrace report --json` prints.
#[track_caller]
fn shown(path: &Path) -> String {
    let ended = finish(breaktrace().args(["report", "--json"]).arg(path));
    ended.expect_code(0);
    assert_eq!(ended.stderr, "");
    ended.stdout
}

/// Fails with the first lines that differ, as the whole would fill screens.
#[track_caller]
fn expect_same_text(found: &str, wanted: &str, what: &str) {
    for (number, (found, wanted)) in found.lines().zip(wanted.lines()).enumerate() {
        assert_eq!(found, wanted, "{what}, line {}", number + 1);
    }
    assert_eq!(found.len(), wanted.len(), "{what}");
}

#[test]
fn a_log_gives_the_live_report_byte_for_byte() {
    let [brk_moves, mappings, threads, fork_tree, exec, ends] = [
        "brk_moves",
        "mappings",
        "threads",
        "fork_tree",
        "exec_from_thread",
        "ends",
    ]
    .map(path_of);
    for (options, program) in [
        (&[][..], &[brk_moves.as_str()][..]),
        (&["--verify"], &[&brk_moves]),
        (&["--no-seccomp", "--every", "5ms"], &[&mappings]),
        (&[], &[&threads]),
        (&["--no-follow"], &[&fork_tree]),
        (&[], &[&fork_tree]),
        (&[], &[&exec]),
        (&["--no-aslr"], &[&ends, "segv"]),
        (
            &[],
            &["sh", "-c", "ls /usr | sort -r | head -3; kill -9 $$"],
        ),
    ] {
        let folder = folder();
        let files = record(folder.path(), options, program);
        let live = fs::read_to_string(&files.report).unwrap();
        let what = format!("{options:?} {program:?}");
        expect_same_text(&shown(&files.events), &live, &what);
        expect_same_text(&shown(&files.report), &live, &what);
    }
}

#[test]
fn the_log_of_an_attached_process_gives_its_report() {
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    let folder = folder();
    let files = Files::within(folder.path());
    let mut command = breaktrace();
    command
        .arg("attach")
        .args(files.options())
        .arg(puppet.pid().to_string());
    let running = Running::start(&mut command);
    wait_until("breaktrace has attached", || {
        files.count(|event| is_snapshot(event, "attach")) > 0
    });
    puppet.ask("brk 4096");
    puppet.ask("mmap 4096");
    running.send(libc::SIGINT);
    running.finish().expect_code(0);
    assert_eq!(
        shown(&files.events),
        fs::read_to_string(&files.report).unwrap()
    );
}

#[test]
fn text_is_the_same_live_and_from_either_recording() {
    let folder = folder();
    let text = folder.path().join("report.txt");
    let files = record(
        folder.path(),
        &["-o", text.to_str().unwrap()],
        &[&path_of("brk_moves")],
    );
    let live = fs::read_to_string(&text).unwrap();
    for recording in [&files.report, &files.events] {
        let ended = finish(breaktrace().arg("report").arg(recording));
        assert_eq!(ended.expect_code(0).stdout, live);
        let again = folder.path().join("again.txt");
        finish(
            breaktrace()
                .arg("report")
                .arg(recording)
                .arg("-o")
                .arg(&again),
        )
        .expect_code(0);
        assert_eq!(fs::read_to_string(&again).unwrap(), live);
    }
}

/// Every line of a log is an object with the fields that all events have.
#[test]
fn every_line_of_the_log_stands_for_itself() {
    let folder = folder();
    let files = record(folder.path(), &[], &[&path_of("fork_tree")]);
    let text = fs::read_to_string(&files.events).unwrap();
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!(header["schema"]["name"], "breaktrace.events");
    let mut last = 0;
    for line in lines.clone() {
        let event: Value = serde_json::from_str(line).unwrap();
        for field in ["t", "pid", "tid", "space"] {
            assert!(event[field].is_u64(), "{field}: {line}");
        }
        assert!(event["event"].is_string(), "{line}");
        let time = event["t"].as_u64().unwrap();
        assert!(time >= last, "time runs backwards: {line}");
        last = time;
    }
    let closing: Value = serde_json::from_str(lines.next_back().unwrap()).unwrap();
    assert_eq!(closing["event"], "recording_ended");
}

/// Whether a report says that something is missing.
fn says_incomplete(report: &Report) -> bool {
    report.end.reason.is_none()
        && report
            .notices
            .iter()
            .any(|notice| notice.code == NoticeCode::Incomplete)
}

#[test]
fn a_log_that_is_cut_anywhere_is_shown_as_far_as_it_goes_or_refused() {
    let folder = folder();
    let files = record(folder.path(), &[], &[&path_of("brk_moves")]);
    let log = fs::read(&files.events).unwrap();
    let header = log.iter().position(|byte| *byte == b'\n').unwrap();
    let last_line = log[..log.len() - 1]
        .iter()
        .rposition(|byte| *byte == b'\n')
        .unwrap()
        + 1;
    let cut = folder.path().join("cut.jsonl");
    // Everywhere, and where it matters: around the ends of the first lines and of the last.
    let everywhere = (0..40).map(|part| log.len() * part / 40);
    let edges = [
        header - 1,
        header,
        header + 1,
        header + 2,
        last_line - 1,
        last_line,
        last_line + 1,
        log.len() - 2,
    ];
    for length in everywhere.chain(edges) {
        fs::write(&cut, &log[..length]).unwrap();
        let ended = finish(breaktrace().args(["report", "--json"]).arg(&cut));
        ended.expect_calm();
        if length < header {
            ended.expect_code(1);
            assert_eq!(ended.stdout, "", "cut at {length}");
            assert!(
                ended.stderr.contains("cut.jsonl"),
                "cut at {length}: {}",
                ended.stderr
            );
        } else {
            ended.expect_code(0);
            let report = breaktrace::report::from_json(&ended.stdout).unwrap();
            assert!(
                says_incomplete(&report),
                "cut at {length} of {}: {:#?}",
                log.len(),
                report.notices
            );
            let text = finish(breaktrace().arg("report").arg(&cut));
            text.expect_code(0);
        }
    }
    // Without its last newline it is complete all the same.
    fs::write(&cut, &log[..log.len() - 1]).unwrap();
    assert_eq!(shown(&cut), fs::read_to_string(&files.report).unwrap());
}

#[test]
fn a_damaged_line_in_the_middle_is_named() {
    let folder = folder();
    let files = record(folder.path(), &[], &[&path_of("brk_moves")]);
    let log = fs::read_to_string(&files.events).unwrap();
    let mut lines: Vec<_> = log.lines().map(str::to_owned).collect();
    lines[7] = lines[7].replace('"', "'");
    let damaged = folder.path().join("damaged.jsonl");
    fs::write(&damaged, lines.join("\n") + "\n").unwrap();
    let ended = finish(breaktrace().arg("report").arg(&damaged));
    ended.expect_code(1);
    assert!(
        ended.stderr.contains("damaged.jsonl") && ended.stderr.contains("line 8"),
        "{}",
        ended.stderr
    );
}

#[test]
fn after_a_crash_of_breaktrace_the_log_is_good_so_far() {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut command = breaktrace();
    command
        .arg("run")
        .args(files.options())
        .arg("--")
        .arg(fixture("puppet"));
    let mut running = Running::start_obedient(&mut command);
    assert_eq!(running.line(), "ready");
    running.ask("brk 8192");
    running.ask("mmap 4096");
    wait_until("the last call was written", || {
        files
            .count(|event| event["event"] == "mmap" && event["length"] == 4096 && event["fd"] == -1)
            > 0
    });
    running.send(libc::SIGKILL);
    running.finish().expect_signal(libc::SIGKILL);
    let report = breaktrace::report::from_json(&shown(&files.events)).unwrap();
    assert!(says_incomplete(&report), "{:#?}", report.notices);
    assert!(report.totals.break_grown_bytes >= 8192);
}

#[test]
fn a_log_can_be_read_while_it_is_written() {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut command = breaktrace();
    command
        .arg("run")
        .args(files.options())
        .arg("--")
        .arg(fixture("puppet"));
    let mut running = Running::start_obedient(&mut command);
    assert_eq!(running.line(), "ready");
    let before = files.count(|event| event["event"] == "brk");
    running.ask("brk 8192");
    wait_until("the calls are in the log", || {
        files.count(|event| event["event"] == "brk") == before + 2
    });
    running.finish().expect_code(0);
}

#[test]
fn the_report_goes_where_it_was_asked_to() {
    let program = path_of("ends");
    let run = |options: &[&str]| {
        let mut command = breaktrace();
        command.arg("run").args(options).args(["--", &program, "0"]);
        let ended = finish(&mut command);
        ended.expect_code(0);
        ended
    };
    let is_report = |text: &str| breaktrace::report::from_json(text).is_ok();

    let ended = run(&["--json"]);
    assert_eq!(ended.stdout, "to stdout: 0\n");
    assert!(
        is_report(ended.stderr.strip_prefix("to stderr\n").unwrap()),
        "{}",
        ended.stderr
    );

    let ended = run(&["--json", "-o", "-"]);
    assert!(
        is_report(ended.stdout.strip_prefix("to stdout: 0\n").unwrap()),
        "{}",
        ended.stdout
    );

    let ended = run(&["-q"]);
    assert_eq!(
        (ended.stdout.as_str(), ended.stderr.as_str()),
        ("to stdout: 0\n", "to stderr\n")
    );

    let folder = folder();
    let [json, text, other] =
        ["a.json", "b.txt", "c.dat"].map(|name| folder.path().join(name).display().to_string());
    let ended = run(&["-o", &json, "-o", &text, "-o", &other, "--format", "json"]);
    assert_eq!(ended.stdout, "to stdout: 0\n");
    let read = |path: &str| fs::read_to_string(path).unwrap();
    assert!(is_report(&read(&json)) && is_report(&read(&other)) && !is_report(&read(&text)));
    assert_eq!(read(&json), read(&other));
}

#[test]
fn a_reader_that_goes_away_is_no_reason_to_panic() {
    let folder = folder();
    let files = record(folder.path(), &[], &[&path_of("mappings")]);
    // `report` writes into a pipe that nobody reads.
    let mut command = Command::new("sh");
    command.args(["-c", "\"$0\" report --json \"$1\" | head -c 10"]);
    command
        .arg(breaktrace().get_program())
        .arg(&files.report)
        .stdin(Stdio::null());
    let ended = finish(&mut command);
    assert_eq!(ended.expect_code(0).stdout.len(), 10);
}
