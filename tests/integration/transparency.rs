//! A program under trace behaves as it does without: what it writes, how it ends, what it inherits, which signals reach
//! it.

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use crate::support::Ended;
use crate::support::Running;
use crate::support::breaktrace;
use crate::support::can_fix_addresses;
use crate::support::child_running;
use crate::support::compile;
use crate::support::fact;
use crate::support::finish;
use crate::support::fixture;
use crate::support::not_here;
use crate::support::number;
use crate::support::send;
use crate::support::skip;
use crate::support::spare_locale;
use crate::support::stop;
use crate::support::wait_until_idle;
use crate::support::wait_until_stopped;

const SEIZED: [&[&str]; 2] = [&["run", "-q", "--"], &["run", "-q", "--no-seccomp", "--"]];

/// Changes a child before it execs; system calls only.
type Prepare = fn() -> std::io::Result<()>;

fn prepared(command: &mut Command, prepare: Prepare) -> &mut Command {
    // SAFETY: what the tests pass makes system calls only.
    unsafe { command.pre_exec(prepare) }
}

fn nothing() -> std::io::Result<()> {
    Ok(())
}

fn plain(program: &Path, arguments: &[&str], prepare: Prepare) -> Ended {
    let mut command = Command::new(program);
    // As under breaktrace.
    spare_locale(&mut command);
    finish(prepared(command.args(arguments), prepare))
}

fn under(options: &[&str], program: &Path, arguments: &[&str], prepare: Prepare) -> Ended {
    finish(prepared(
        breaktrace().args(options).arg(program).args(arguments),
        prepare,
    ))
}

#[track_caller]
fn expect_alike(program: &Path, arguments: &[&str], prepare: Prepare) {
    let plain = plain(program, arguments, prepare);
    for options in SEIZED {
        let traced = under(options, program, arguments, prepare);
        let told = |ended: &Ended| (ended.stdout.clone(), ended.stderr.clone(), ended.ending());
        assert_eq!(told(&traced), told(&plain), "{options:?} {arguments:?}");
    }
}

#[test]
fn programs_end_as_they_do_without_us() {
    for how in [
        "0", "3", "255", "thread", "abort", "segv", "signal1", "signal2", "signal9", "signal13",
        "signal15", "signal34", "signal64", "pipe",
    ] {
        expect_alike(&fixture("ends"), &[how], nothing);
    }
}

#[test]
fn sigpipe_is_as_it_was() {
    let ignored: Prepare = || {
        // SAFETY: takes numbers.
        unsafe { libc::signal(libc::SIGPIPE, libc::SIG_IGN) };
        Ok(())
    };
    expect_alike(&fixture("ends"), &["pipe"], ignored);
    let survived = under(SEIZED[0], &fixture("ends"), &["pipe"], ignored);
    assert!(
        survived.expect_code(0).stdout.contains("written -1 32"),
        "{survived:?}"
    );
}

#[test]
fn real_time_signals_arrive_in_order_with_their_values() {
    expect_alike(&fixture("signals"), &["queued"], nothing);
    let traced = under(SEIZED[0], &fixture("signals"), &["queued"], nothing);
    assert!(traced.stdout.contains("received 5 60"), "{traced:?}");
}

#[test]
fn the_signals_that_libc_keeps_for_itself_arrive() {
    let Some(program) = compile("libc_signals", &["-pthread"]) else {
        return skip("no C compiler");
    };
    expect_alike(&program, &[], nothing);
    let traced = under(SEIZED[0], &program, &[], nothing);
    assert_eq!(traced.stdout, "setuid 0\ncancelled 1\nsignal 1\n");
}

#[test]
fn a_child_that_stops_is_seen_to_stop_and_to_continue() {
    expect_alike(&fixture("signals"), &["jobs"], nothing);
    let traced = under(SEIZED[0], &fixture("signals"), &["jobs"], nothing);
    assert!(traced.stdout.contains("stopped true 19"), "{traced:?}");
}

#[test]
fn signals_from_outside_keep_sender_and_value() {
    for options in SEIZED {
        let mut running = Running::start(
            breaktrace()
                .args(options)
                .arg(fixture("signals"))
                .arg("outside"),
        );
        let pid = u32::try_from(number(fact(&running.line(), "ready"))).unwrap();
        let own = std::process::id();
        for (signal, value) in [
            (libc::SIGUSR1, 5),
            (libc::SIGRTMIN() + 5, 6),
            (64, 7),
            (libc::SIGCHLD, 8),
        ] {
            let content = libc::sigval {
                sival_ptr: std::ptr::without_provenance_mut(value),
            };
            // SAFETY: sends a number to a process that this test started.
            let sent = unsafe { libc::sigqueue(pid.cast_signed(), signal, content) };
            assert_eq!(sent, 0);
            assert_eq!(
                running.line(),
                format!(
                    "signal {signal} code {} from {own} value {value}",
                    libc::SI_QUEUE
                )
            );
        }
        assert!(send(pid, libc::SIGTERM));
        let ended = running.finish();
        assert_eq!(ended.expect_code(0).stdout, "over\n");
    }
}

#[test]
fn a_stopped_program_stays_stopped_until_it_is_continued() {
    for options in SEIZED {
        let program = fixture("puppet");
        let mut running = Running::start_obedient(breaktrace().args(options).arg(&program));
        assert_eq!(running.line(), "ready");
        assert_eq!(running.ask("threads 3"), "threads 3");
        let pid = child_running(running.pid(), &program);
        stop(pid);
        running.tell("ping");
        assert!(!running.says_something(), "it runs although it was stopped");
        assert!(send(pid, libc::SIGCONT));
        assert_eq!(running.line(), "ping");
        // And by itself.
        wait_until_idle(pid);
        running.tell("stop");
        wait_until_stopped(pid);
        assert!(
            !running.says_something(),
            "it runs although it stopped itself"
        );
        assert!(send(pid, libc::SIGCONT));
        assert_eq!(running.line(), "continued");
        running.finish().expect_code(0);
    }
}

/// What `report_inherited` prints, without what cannot be hidden or differs by nature.
fn inherited(ended: &Ended, with_filter: bool) -> Vec<String> {
    ended.expect_code(0);
    // SAFETY: asks for a number.
    let is_root = unsafe { libc::geteuid() } == 0;
    ended
        .stdout
        .lines()
        // The test makes each program the leader of its process group, and breaktrace is the leader then.
        .filter(|line| !line.starts_with("leads its group"))
        // Documented: the filter shows, and without rights of its own it needs no_new_privs.
        .filter(|line| !(with_filter && line.starts_with("status Seccomp")))
        .filter(|line| !(with_filter && !is_root && line.starts_with("status NoNewPrivs")))
        .map(str::to_owned)
        .collect()
}

#[track_caller]
fn expect_same_inheritance(prepare: Prepare) {
    let program = fixture("report_inherited");
    let arguments = ["", "an argument", "\t"];
    let plain = plain(&program, &arguments, prepare);
    for options in SEIZED {
        let traced = under(options, &program, &arguments, prepare);
        let with_filter = !options.contains(&"--no-seccomp");
        let found = inherited(&traced, with_filter);
        let wanted = inherited(&plain, with_filter);
        for (found, wanted) in found.iter().zip(&wanted) {
            assert_eq!(found, wanted, "{options:?}");
        }
        assert_eq!(found.len(), wanted.len(), "{options:?}");
    }
}

#[test]
fn programs_inherit_what_breaktrace_was_given() {
    expect_same_inheritance(nothing);
}

#[test]
fn programs_inherit_signals_limits_and_odd_settings() {
    expect_same_inheritance(|| {
        // SAFETY: system calls with numbers and valid pointers only.
        unsafe {
            let mut set: libc::sigset_t = std::mem::zeroed();
            for signal in [
                libc::SIGUSR2,
                libc::SIGTERM,
                libc::SIGCHLD,
                libc::SIGINT,
                40,
            ] {
                libc::sigaddset(&raw mut set, signal);
            }
            libc::sigprocmask(libc::SIG_SETMASK, &raw const set, std::ptr::null_mut());
            for signal in [libc::SIGUSR1, libc::SIGHUP, libc::SIGINT, libc::SIGPIPE, 50] {
                libc::signal(signal, libc::SIG_IGN);
            }
            libc::umask(0o027);
            libc::setpriority(libc::PRIO_PROCESS, 0, 3);
            let limit = libc::rlimit {
                rlim_cur: 200,
                rlim_max: 300,
            };
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit);
            let limit = libc::rlimit {
                rlim_cur: 4 << 20,
                rlim_max: 16 << 20,
            };
            libc::setrlimit(libc::RLIMIT_STACK, &raw const limit);
            libc::prctl(libc::PR_SET_TIMERSLACK, 70_000);
            libc::personality(0x004_0000);
            // Open beyond exec, on purpose.
            libc::dup2(0, 77);
        }
        Ok(())
    });
}

#[test]
fn a_child_signal_that_is_ignored_does_not_keep_breaktrace_from_its_work() {
    expect_same_inheritance(|| {
        // SAFETY: takes numbers.
        unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
        Ok(())
    });
}

#[test]
fn closed_descriptors_stay_closed() {
    expect_same_inheritance(|| {
        // SAFETY: takes a number.
        unsafe { libc::close(0) };
        Ok(())
    });
    expect_same_inheritance(|| {
        // SAFETY: takes a number.
        unsafe { libc::close(2) };
        Ok(())
    });
    // Who has no stdout cannot tell so by it: this one ends when it cannot print.
    expect_alike(&fixture("puppet"), &[], || {
        // SAFETY: takes a number.
        unsafe { libc::close(1) };
        Ok(())
    });
    let silent = under(SEIZED[0], &fixture("puppet"), &[], || {
        // SAFETY: takes a number.
        unsafe { libc::close(1) };
        Ok(())
    });
    silent.expect_code(98);
}

#[test]
fn variables_are_added_and_the_others_stay() {
    let program = fixture("report_inherited");
    let mut command = breaktrace();
    command
        .args([
            "run",
            "-q",
            "--env",
            "BREAKTRACE_NEW=a=b",
            "--env",
            "HOME=",
            "--",
        ])
        .arg(&program);
    let traced = finish(&mut command);
    let mut direct = Command::new(&program);
    spare_locale(&mut direct);
    let plain = finish(direct.env("BREAKTRACE_NEW", "a=b").env("HOME", ""));
    let environment = |ended: &Ended| {
        let mut lines: Vec<_> = ended
            .stdout
            .lines()
            .filter(|line| line.starts_with("environment "))
            .map(str::to_owned)
            .collect();
        lines.sort();
        lines
    };
    assert_eq!(environment(&traced), environment(&plain));
}

#[test]
fn randomization_is_off_on_request_only() {
    if !can_fix_addresses() {
        return not_here("address space randomization cannot be turned off here");
    }
    let with = |options: &[&str]| {
        let ended = finish(
            breaktrace()
                .args(["run", "-q"])
                .args(options)
                .arg("--")
                .arg(fixture("brk_moves")),
        );
        ended.expect_code(0).number("heap_start")
    };
    assert_eq!(with(&["--no-aslr"]), with(&["--no-aslr"]));
    // Eight equal places by chance: less likely than a broken machine, given 2^28 places or so.
    let places: Vec<_> = (0..8).map(|_| with(&[])).collect();
    assert!(
        places.iter().any(|place| *place != places[0]),
        "{places:x?}"
    );
}

#[test]
fn stdin_belongs_to_the_program() {
    let mut command = breaktrace();
    command.args(["run", "-q", "--", "cat"]);
    command.stdin(Stdio::from(
        std::fs::File::open(Path::new("/proc/self/limits")).unwrap(),
    ));
    let traced = finish(&mut command);
    let mut direct = Command::new("cat");
    direct.stdin(Stdio::from(
        std::fs::File::open(Path::new("/proc/self/limits")).unwrap(),
    ));
    assert_eq!(traced.expect_code(0).stdout, finish(&mut direct).stdout);
}

#[test]
fn the_report_is_on_stderr_and_the_programs_output_stays_its_own() {
    let plain = plain(&fixture("ends"), &["7"], nothing);
    let traced = under(&["run", "--"], &fixture("ends"), &["7"], nothing);
    assert_eq!(traced.expect_code(7).stdout, plain.stdout);
    assert!(
        traced.stderr.starts_with(&plain.stderr),
        "{}",
        traced.stderr
    );
    assert!(
        traced.stderr.len() > plain.stderr.len() + 100,
        "{}",
        traced.stderr
    );
}

#[test]
fn a_child_that_must_not_be_traced_still_gets_its_memory() {
    expect_alike(&fixture("untraced_child"), &[], nothing);
}

#[test]
fn breaktrace_under_breaktrace_says_why_it_cannot_or_works() {
    // The outer one traces the inner one, and with it everything that the inner one would trace.
    let program = fixture("ends");
    let mut command = breaktrace();
    command
        .args(["run", "-q", "--"])
        .arg(breaktrace().get_program())
        .args(["run", "-q", "--"])
        .arg(&program)
        .arg("9");
    let ended = finish(&mut command);
    ended.expect_calm();
    assert!(
        ended.status.code() == Some(9)
            || (ended.status.code() == Some(125) && ended.stderr.contains("breaktrace:")),
        "{ended:?}"
    );
}
