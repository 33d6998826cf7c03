//! Signals to breaktrace, sudden deaths, time limits, snapshots on request.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::os::unix::process::CommandExt;
use std::process::Command;
use std::process::Stdio;

use breaktrace::event::EndReason;
use breaktrace::event::Outcome;

use crate::support::Files;
use crate::support::Running;
use crate::support::breaktrace;
use crate::support::child_running;
use crate::support::expect_consistency;
use crate::support::fact;
use crate::support::fixture;
use crate::support::folder;
use crate::support::is_gone;
use crate::support::is_snapshot;
use crate::support::number;
use crate::support::send;
use crate::support::wait_until;

fn run(files: &Files, options: &[&str], program: &str, argument: Option<&str>) -> Command {
    let mut command = breaktrace();
    command
        .arg("run")
        .args(files.options())
        .args(options)
        .arg("--");
    command.arg(fixture(program)).args(argument);
    command
}

#[test]
fn killing_breaktrace_ends_what_it_runs() {
    for options in [&[][..], &["--no-seccomp"]] {
        let folder = folder();
        let files = Files::within(folder.path());
        let mut running = Running::start_obedient(&mut run(&files, options, "puppet", None));
        assert_eq!(running.line(), "ready");
        running.ask("threads 2");
        let pid = child_running(running.pid(), &fixture("puppet"));
        running.send(libc::SIGKILL);
        wait_until("the program has gone, too", || is_gone(pid));
        running.finish().expect_signal(libc::SIGKILL);
        assert!(
            files.count(|event| event["event"] == "mmap") > 0,
            "the log has what was seen"
        );
        assert!(!files.report.exists());
    }
}

#[test]
fn signals_to_breaktrace_reach_the_program_and_the_report_still_comes() {
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGQUIT] {
        let folder = folder();
        let files = Files::within(folder.path());
        let mut running = Running::start_obedient(&mut run(&files, &[], "puppet", None));
        assert_eq!(running.line(), "ready");
        running.ask("brk 8192");
        running.send(signal);
        wait_until("it has ended", || running.has_ended());
        running.finish().expect_signal(signal);
        let report = files.report();
        expect_consistency(&report);
        assert!(
            matches!(report.processes[0].outcome, Some(Outcome::Killed { signal: by, .. }) if by == signal),
            "{:#?}",
            report.processes
        );
        assert_eq!(report.end.reason, Some(EndReason::Finished));
    }
}

#[test]
fn an_interrupt_that_the_program_handles_ends_nobody() {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut running = Running::start(&mut run(&files, &[], "signals", Some("count")));
    let pid = u32::try_from(number(fact(&running.line(), "ready"))).unwrap();
    running.send(libc::SIGINT);
    assert_eq!(running.line(), "interrupt 1");
    running.send(libc::SIGINT);
    assert_eq!(running.line(), "interrupt 2");
    assert!(send(pid, libc::SIGTERM));
    assert_eq!(running.finish().expect_code(0).stdout, "interrupts 2\n");
    assert_eq!(
        files.report().processes[0].outcome,
        Some(Outcome::Exited(0))
    );
}

/// A new pseudo-terminal: the side of the person, and the side of the program.
fn terminal() -> (File, File) {
    let (mut person, mut program) = (-1, -1);
    // SAFETY: the call fills both numbers; the descriptors belong to nobody else.
    unsafe {
        let null = std::ptr::null_mut();
        assert_eq!(
            libc::openpty(
                &raw mut person,
                &raw mut program,
                null,
                null.cast(),
                null.cast()
            ),
            0
        );
        libc::fcntl(person, libc::F_SETFD, libc::FD_CLOEXEC);
        libc::fcntl(program, libc::F_SETFD, libc::FD_CLOEXEC);
        (File::from_raw_fd(person), File::from_raw_fd(program))
    }
}

#[test]
fn ctrl_c_on_a_terminal_reaches_the_program_once() {
    use std::io::Write;
    let folder = folder();
    let files = Files::within(folder.path());
    let (mut person, program) = terminal();
    let mut command = run(&files, &[], "signals", Some("count"));
    command.stdin(Stdio::from(program.try_clone().unwrap()));
    // SAFETY: system calls with numbers only.
    unsafe {
        command.pre_exec(|| {
            libc::setsid();
            libc::ioctl(0, libc::TIOCSCTTY, 0);
            Ok(())
        });
    }
    let mut running = Running::start_as_it_is(&mut command);
    let pid = u32::try_from(number(fact(&running.line(), "ready"))).unwrap();
    for expected in ["interrupt 1", "interrupt 2"] {
        person.write_all(b"\x03").unwrap();
        assert_eq!(running.line(), expected);
    }
    // A third that came along would be counted before this is.
    assert!(send(pid, libc::SIGTERM));
    assert_eq!(running.finish().expect_code(0).stdout, "interrupts 2\n");
    drop(program);
}

#[test]
fn a_program_that_is_killed_at_any_moment_is_an_event_and_no_error() {
    for round in 0..12 {
        let folder = folder();
        let files = Files::within(folder.path());
        let options = if round % 3 == 0 {
            &["--no-seccomp"][..]
        } else {
            &[]
        };
        let mut running = Running::start_obedient(&mut run(&files, options, "thread_churn", None));
        assert_eq!(running.line(), "ready");
        let pid = child_running(running.pid(), &fixture("thread_churn"));
        // Each round a little later in its life.
        for _ in 0..round {
            running.ask("?");
        }
        assert!(send(pid, libc::SIGKILL));
        running.finish().expect_signal(libc::SIGKILL);
        let report = files.report();
        assert!(
            matches!(
                report.processes[0].outcome,
                Some(Outcome::Killed {
                    signal: libc::SIGKILL,
                    ..
                })
            ),
            "round {round}: {:#?}",
            report.processes
        );
        assert_eq!(
            report.end.reason,
            Some(EndReason::Finished),
            "round {round}"
        );
    }
}

#[test]
fn a_time_limit_asks_the_program_to_end() {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut running =
        Running::start_obedient(&mut run(&files, &["--duration", "200ms"], "puppet", None));
    assert_eq!(running.line(), "ready");
    wait_until("the time is over", || running.has_ended());
    running.finish().expect_signal(libc::SIGTERM);
    let report = files.report();
    assert_eq!(report.end.reason, Some(EndReason::TimeLimit));
    assert!(matches!(
        report.processes[0].outcome,
        Some(Outcome::Killed {
            signal: libc::SIGTERM,
            ..
        })
    ));
}

#[test]
fn snapshots_come_on_request_and_at_intervals() {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut running =
        Running::start_obedient(&mut run(&files, &["--every", "20ms"], "puppet", None));
    assert_eq!(running.line(), "ready");
    running.send(libc::SIGUSR1);
    wait_until("a snapshot was taken on request", || {
        files.count(|event| is_snapshot(event, "request")) > 0
    });
    wait_until("two were taken by the clock", || {
        files.count(|event| is_snapshot(event, "interval")) > 1
    });
    assert_eq!(
        running.ask("ping"),
        "ping",
        "the signal was for breaktrace, not for the program"
    );
    running.finish().expect_code(0);
    let report = files.report();
    expect_consistency(&report);
    // One that falls into a call cannot be compared.
    let checks = &report.address_spaces[0].checks;
    assert!(checks.made + checks.skipped >= 4, "{checks:?}");
}

#[test]
fn resident_memory_at_the_end_is_known() {
    let folder = folder();
    let files = Files::within(folder.path());
    let mut running = Running::start_obedient(&mut run(&files, &[], "puppet", None));
    assert_eq!(running.line(), "ready");
    running.finish().expect_code(0);
    let report = files.report();
    let memory = report.address_spaces[0]
        .memory_at_end
        .expect("memory at the end");
    assert!(
        memory.resident_bytes > 4096 && memory.virtual_bytes > memory.resident_bytes,
        "{memory:?}"
    );
}
