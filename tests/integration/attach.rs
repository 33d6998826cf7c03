//! Joining running processes, and leaving them as they were.

use std::fs;
use std::path::Path;
use std::process::Command;

use breaktrace::event::EndReason;
use breaktrace::event::Origin;
use breaktrace::event::Outcome;
use breaktrace::report::Report;
use breaktrace::report::SpaceOrigin;
use breaktrace::units::Address;
use tempfile::TempDir;

use crate::support::Ended;
use crate::support::Files;
use crate::support::Running;
use crate::support::breaktrace;
use crate::support::expect_consistency;
use crate::support::fact;
use crate::support::fixture;
use crate::support::folder;
use crate::support::is_snapshot;
use crate::support::number;
use crate::support::send;
use crate::support::state;
use crate::support::status;
use crate::support::stop;
use crate::support::threads_of;
use crate::support::tracer_of;
use crate::support::wait_until;
use crate::support::wait_until_idle;

/// breaktrace, attached.
struct Attached {
    running: Running,
    files: Files,
    _folder: TempDir,
}

impl Attached {
    /// Attaches, and returns once all threads are under trace.
    #[track_caller]
    fn to(pids: &[u32]) -> Self {
        Self::with(&[], pids)
    }

    #[track_caller]
    fn with(options: &[&str], pids: &[u32]) -> Self {
        let folder = folder();
        let files = Files::within(folder.path());
        let mut command = breaktrace();
        command.arg("attach").args(files.options()).args(options);
        command.args(pids.iter().map(u32::to_string));
        let mut running = Running::start(&mut command);
        let distinct: std::collections::BTreeSet<_> = pids.iter().collect();
        wait_until("breaktrace has attached", || {
            running.has_ended()
                || files.count(|event| is_snapshot(event, "attach")) >= distinct.len()
        });
        Self {
            running,
            files,
            _folder: folder,
        }
    }

    /// Ends the recording as Ctrl-C does.
    #[track_caller]
    fn detach(self) -> (Ended, Report) {
        self.running.send(libc::SIGINT);
        self.finish()
    }

    #[track_caller]
    fn finish(self) -> (Ended, Report) {
        let ended = self.running.finish();
        ended.expect_code(0);
        let report = self.files.report();
        expect_consistency(&report);
        (ended, report)
    }
}

fn puppet() -> Running {
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    puppet
}

#[track_caller]
fn expect_free(pid: u32) {
    for tid in threads_of(pid) {
        // A thread that has ended meanwhile is not traced either.
        assert_eq!(tracer_of(tid).unwrap_or(0), 0, "thread {tid} of {pid}");
    }
}

fn place(answer: &str) -> Address {
    Address(number(answer.rsplit(' ').next().unwrap()))
}

#[test]
fn growth_while_attached_is_what_the_program_did() {
    let mut puppet = puppet();
    let first = place(&puppet.ask("brk 65536"));
    let attached = Attached::to(&[puppet.pid()]);
    puppet.ask("brk 8192");
    puppet.ask("brk 20480");
    let last = place(&puppet.ask("brk -4096"));
    puppet.ask("mmap 262144");
    puppet.ask("mmap 100000");
    puppet.ask("munmap");
    let (_, report) = attached.detach();
    expect_free(puppet.pid());
    assert_eq!(report.end.reason, Some(EndReason::Interrupted));
    let process = &report.processes[0];
    assert_eq!(
        (process.origin, process.outcome),
        (Origin::Attached, Some(Outcome::Detached))
    );
    let space = &report.address_spaces[0];
    assert_eq!(space.origin, SpaceOrigin::Attached);
    let heap = &space.program_break;
    assert_eq!((heap.grow_calls, heap.grown_bytes), (2, 8192 + 20480));
    assert_eq!((heap.shrink_calls, heap.shrunk_bytes), (1, 4096));
    assert_eq!(heap.end, Some(last));
    assert_eq!(
        heap.start.map(|start| start + heap.start_bytes.unwrap()),
        Some(first)
    );
    let anonymous = &space.anonymous;
    assert_eq!(
        (anonymous.grow_calls, anonymous.grown_bytes),
        (2, 262_144 + 102_400)
    );
    assert_eq!(
        (anonymous.shrink_calls, anonymous.shrunk_bytes),
        (1, 102_400)
    );
    // What comes after is not recorded, and works.
    assert_eq!(place(&puppet.ask("brk 4096")), last + 4096);
    puppet.finish().expect_code(0);
}

#[test]
fn a_running_process_runs_on() {
    let mut puppet = puppet();
    puppet.ask("spin");
    let attached = Attached::to(&[puppet.pid()]);
    assert_eq!(puppet.ask("ping"), "ping");
    attached.detach();
    expect_free(puppet.pid());
    let spinning = |pid| threads_of(pid).into_iter().any(|tid| state(tid) == 'R');
    wait_until("its busy thread runs", || spinning(puppet.pid()));
    assert_eq!(puppet.ask("ping"), "ping");
}

#[test]
fn a_sleeping_process_sleeps_on() {
    let mut puppet = puppet();
    wait_until_idle(puppet.pid());
    puppet.tell("nap 500");
    let (_, report) = Attached::to(&[puppet.pid()]).detach();
    assert_eq!(report.processes[0].outcome, Some(Outcome::Detached));
    expect_free(puppet.pid());
    assert_eq!(puppet.line(), "slept 0", "its sleep was not cut short");
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut puppet = puppet();
    puppet.ask("threads 2");
    stop(puppet.pid());
    let attached = Attached::to(&[puppet.pid()]);
    puppet.tell("ping");
    assert!(!puppet.says_something(), "attaching made it run");
    attached.detach();
    expect_free(puppet.pid());
    wait_until("it is stopped as before", || state(puppet.pid()) == 'T');
    assert!(!puppet.says_something(), "detaching made it run");
    puppet.send(libc::SIGCONT);
    assert_eq!(puppet.line(), "ping");
    assert_eq!(puppet.finish().expect_code(0).stdout, "");
}

#[test]
fn a_process_that_is_stopped_and_continued_meanwhile_does_both() {
    let mut puppet = puppet();
    puppet.ask("threads 2");
    let attached = Attached::to(&[puppet.pid()]);
    stop(puppet.pid());
    puppet.tell("ping");
    assert!(!puppet.says_something(), "it runs although it was stopped");
    puppet.send(libc::SIGCONT);
    assert_eq!(puppet.line(), "ping");
    // And stopped once more, to stay so.
    stop(puppet.pid());
    attached.detach();
    wait_until("it is stopped", || state(puppet.pid()) == 'T');
    puppet.tell("ping");
    assert!(!puppet.says_something(), "detaching made it run");
    puppet.send(libc::SIGCONT);
    assert_eq!(puppet.line(), "ping");
}

#[test]
fn a_process_whose_first_thread_has_gone_is_joined_by_the_others() {
    let mut zombie = Running::start_obedient(&mut Command::new(fixture("zombie_leader")));
    assert_eq!(zombie.line(), "ready");
    assert_eq!(state(zombie.pid()), 'Z');
    let attached = Attached::to(&[zombie.pid()]);
    zombie.ask("brk 40960");
    zombie.ask("mmap 65536");
    let (_, report) = attached.detach();
    expect_free(zombie.pid());
    let space = &report.address_spaces[0];
    assert_eq!(space.program_break.grown_bytes, 40960);
    assert_eq!(space.anonymous.grown_bytes, 65536);
    assert!(
        space.checks.made > 0,
        "its mappings were read: {:?}",
        space.checks
    );
    assert_eq!(zombie.ask("ping"), "ping");
    zombie.finish().expect_code(0);
}

#[test]
fn several_processes_are_joined_at_once() {
    let mut puppets = [puppet(), puppet(), puppet()];
    let pids: Vec<u32> = puppets.iter().map(Running::pid).collect();
    // One of them twice, and once by the number of a thread: it is one process all the same.
    puppets[0].ask("threads 1");
    let thread = threads_of(pids[0])
        .into_iter()
        .find(|tid| *tid != pids[0])
        .unwrap();
    let folder = folder();
    let files = Files::within(folder.path());
    let mut command = breaktrace();
    command
        .arg("attach")
        .args(files.options())
        .args(pids.iter().map(u32::to_string));
    command.args([pids[1].to_string(), thread.to_string()]);
    let running = Running::start(&mut command);
    wait_until("breaktrace has attached", || {
        files.count(|event| is_snapshot(event, "attach")) == 3
    });
    for (index, puppet) in puppets.iter_mut().enumerate() {
        puppet.ask(&format!("brk {}", 4096 * (index + 1)));
    }
    running.send(libc::SIGTERM);
    running.finish().expect_code(0);
    let report = files.report();
    expect_consistency(&report);
    assert_eq!(report.processes.len(), 3);
    for (index, pid) in pids.iter().enumerate() {
        expect_free(*pid);
        let space = report
            .address_spaces
            .iter()
            .find(|space| space.pid == *pid)
            .unwrap();
        assert_eq!(space.program_break.grown_bytes, 4096 * (index as u64 + 1));
    }
}

#[test]
fn children_and_threads_born_meanwhile_are_recorded_and_released() {
    let mut puppet = puppet();
    let attached = Attached::to(&[puppet.pid()]);
    let child = number(fact(&puppet.ask("fork 12288"), "fork"));
    puppet.ask("threads 3");
    let (_, report) = attached.detach();
    expect_free(puppet.pid());
    assert_eq!(report.totals.processes, 2, "{:#?}", report.processes);
    let child = report
        .processes
        .iter()
        .find(|process| u64::from(process.pid) == child)
        .unwrap();
    assert_eq!(
        (child.origin, child.outcome),
        (Origin::Forked, Some(Outcome::Exited(0)))
    );
    assert_eq!(
        report
            .space(child.address_spaces[0])
            .unwrap()
            .program_break
            .grown_bytes,
        12288
    );
    assert_eq!(report.processes[0].threads, 4);
    assert_eq!(puppet.ask("ping"), "ping");
}

#[test]
fn children_are_left_alone_on_request() {
    let mut puppet = puppet();
    let attached = Attached::with(&["--no-follow"], &[puppet.pid()]);
    puppet.ask("fork 12288");
    puppet.ask("brk 4096");
    let (_, report) = attached.detach();
    assert_eq!(report.totals.processes, 1);
    assert_eq!(report.totals.break_grown_bytes, 4096);
    assert_eq!(puppet.ask("ping"), "ping");
}

#[test]
fn killing_breaktrace_leaves_the_process_alive_and_well() {
    let mut puppet = puppet();
    puppet.ask("threads 2");
    puppet.ask("spin");
    let attached = Attached::to(&[puppet.pid()]);
    puppet.ask("brk 8192");
    attached.running.send(libc::SIGKILL);
    let files = Files {
        report: attached.files.report.clone(),
        events: attached.files.events.clone(),
    };
    attached.running.finish().expect_signal(libc::SIGKILL);
    assert!(!files.report.exists(), "a report that nobody finished");
    assert!(
        files.count(|event| event["event"] == "brk") >= 1,
        "the log has what was seen"
    );
    for order in ["brk 4096", "mmap 65536", "munmap", "threads 1", "fork 4096"] {
        puppet.ask(order);
    }
    expect_free(puppet.pid());
    puppet.finish().expect_code(0);
}

#[test]
fn the_end_of_the_process_ends_the_recording() {
    let mut puppet = puppet();
    let attached = Attached::to(&[puppet.pid()]);
    puppet.tell("quit");
    puppet.finish().expect_code(0);
    let (_, report) = attached.finish();
    assert_eq!(report.end.reason, Some(EndReason::Finished));
    assert_eq!(report.processes[0].outcome, Some(Outcome::Exited(0)));
}

#[test]
fn a_process_that_is_killed_meanwhile_is_an_event_and_no_error() {
    let mut puppet = puppet();
    puppet.ask("threads 3");
    let attached = Attached::to(&[puppet.pid()]);
    puppet.send(libc::SIGKILL);
    puppet.finish().expect_signal(libc::SIGKILL);
    let (_, report) = attached.finish();
    assert_eq!(
        report.processes[0].outcome,
        Some(Outcome::Killed {
            signal: libc::SIGKILL,
            core_dumped: false
        })
    );
}

#[test]
fn a_time_limit_ends_the_recording_and_not_the_process() {
    let mut puppet = puppet();
    let (_, report) = Attached::with(&["--duration", "100ms"], &[puppet.pid()]).finish();
    assert_eq!(report.end.reason, Some(EndReason::TimeLimit));
    expect_free(puppet.pid());
    assert_eq!(puppet.ask("ping"), "ping");
}

#[test]
fn a_second_attach_starts_where_the_first_ended() {
    let mut puppet = puppet();
    for round in 1..=3 {
        let attached = Attached::to(&[puppet.pid()]);
        let last = place(&puppet.ask("brk 4096"));
        let (_, report) = attached.detach();
        let heap = &report.address_spaces[0].program_break;
        assert_eq!(
            (heap.grown_bytes, heap.end),
            (4096, Some(last)),
            "round {round}"
        );
    }
}

/// Every thread of `pid` is traced by `tracer`.
#[track_caller]
fn expect_all_traced(pid: u32, tracer: u32, count: usize) {
    let threads = threads_of(pid);
    // Threads that were joined may still be there for a moment, on their way out.
    assert!(threads.len() >= count, "{threads:?}");
    for tid in threads {
        let Some(found) = status_of_thread(pid, tid) else {
            continue;
        };
        assert_eq!(found, tracer, "thread {tid} of {pid} was missed");
    }
}

/// The tracer of a thread; `None` when it has ended.
fn status_of_thread(pid: u32, tid: u32) -> Option<u32> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{tid}/status")).ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.map(|value| value.trim().to_owned())
    };
    let dead = field("State:").is_some_and(|state| state.starts_with(['X', 'Z']));
    if dead {
        return None;
    }
    field("TracerPid:")?.parse().ok()
}

#[test]
fn no_thread_is_missed_while_threads_come_and_go_all_the_time() {
    let rounds = if std::env::var_os("BREAKTRACE_SOAK").is_some() {
        200
    } else {
        20
    };
    let mut churn = Running::start_obedient(&mut Command::new(fixture("thread_churn")));
    assert_eq!(churn.line(), "ready");
    let pid = churn.pid();
    for round in 0..rounds {
        let attached = Attached::to(&[pid]);
        let held = number(fact(&churn.ask("hold"), "held"));
        expect_all_traced(pid, attached.running.pid(), usize::try_from(held).unwrap());
        if round % 2 == 0 {
            // Let go in the middle of the churn, and while it holds still in the other rounds.
            assert_eq!(churn.ask("go"), "going");
        }
        let (_, report) = attached.detach();
        assert_eq!(report.processes.len(), 1, "round {round}");
        if round % 2 != 0 {
            expect_free(pid);
            assert_eq!(churn.ask("go"), "going");
        }
    }
    expect_free(pid);
    let ended = churn.finish();
    assert!(
        ended.expect_code(0).stdout.contains("\nhealthy\n"),
        "{ended:?}"
    );
}

#[test]
fn signals_that_come_while_attaching_and_detaching_are_not_lost() {
    let mut receiver = Running::start(Command::new(fixture("signals")).arg("outside"));
    let pid = u32::try_from(number(fact(&receiver.line(), "ready"))).unwrap();
    for round in 0..10 {
        let folder = folder();
        let files = Files::within(folder.path());
        let mut command = breaktrace();
        command
            .arg("attach")
            .args(files.options())
            .args(["--duration", "20ms"])
            .arg(pid.to_string());
        let attaching = Running::start(&mut command);
        for value in 0..5 {
            let content = libc::sigval {
                sival_ptr: std::ptr::without_provenance_mut(value),
            };
            // SAFETY: sends a number to a process that this test started.
            let sent = unsafe { libc::sigqueue(pid.cast_signed(), 45, content) };
            assert_eq!(sent, 0);
            let line = receiver.line();
            assert!(
                line.ends_with(&format!("value {value}")),
                "round {round}, value {value}: {line}"
            );
        }
        attaching.finish().expect_code(0);
    }
    assert!(send(pid, libc::SIGTERM));
    assert_eq!(receiver.finish().expect_code(0).stdout, "over\n");
}

#[test]
fn nothing_of_breaktrace_stays_in_the_process() {
    let puppet = puppet();
    let look = || {
        let read = |name: &str| {
            let mut text =
                fs::read_to_string(Path::new("/proc").join(puppet.pid().to_string()).join(name))
                    .unwrap();
            // Resident pages may come and go.
            text.truncate(text.find("VmPeak").unwrap_or(text.len()));
            text
        };
        let descriptors = fs::read_dir(format!("/proc/{}/fd", puppet.pid()))
            .unwrap()
            .count();
        (
            read("maps"),
            read("status"),
            status(puppet.pid(), "Seccomp"),
            status(puppet.pid(), "SigCgt"),
            descriptors,
        )
    };
    wait_until("it waits for orders", || state(puppet.pid()) == 'S');
    let before = look();
    Attached::to(&[puppet.pid()]).detach();
    wait_until("it waits for orders", || state(puppet.pid()) == 'S');
    assert_eq!(look(), before);
}
