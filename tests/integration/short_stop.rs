//! Processes that are stopped for a moment and looked into: they must not notice.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::time::Duration;

use breaktrace::heap_walk::Image;
use breaktrace::mapping::MappingKind;
use breaktrace::tracer::AttachError;
use breaktrace::tracer::LiveImage;
use breaktrace::tracer::ShortStop;

use crate::support::Running;
use crate::support::breaktrace;
use crate::support::compile;
use crate::support::fact;
use crate::support::finish;
use crate::support::fixture;
use crate::support::number;
use crate::support::send;
use crate::support::skip;
use crate::support::state;
use crate::support::status;
use crate::support::stop;
use crate::support::threads_of;
use crate::support::tracer_of;
use crate::support::wait_until;
use crate::support::wait_until_idle;

fn puppet() -> Running {
    let mut puppet = Running::start_obedient(&mut Command::new(fixture("puppet")));
    assert_eq!(puppet.line(), "ready");
    puppet
}

#[track_caller]
fn expect_all_stand(pid: u32) {
    for tid in threads_of(pid) {
        assert!(
            matches!(state(tid), 't' | 'Z' | 'X'),
            "thread {tid}: {}",
            state(tid)
        );
    }
}

#[track_caller]
fn expect_free(pid: u32) {
    for tid in threads_of(pid) {
        // None has ended meanwhile.
        assert!(matches!(tracer_of(tid), Some(0) | None), "thread {tid}");
        assert_ne!(state(tid), 't', "thread {tid}");
    }
}

/// Where a thread's own variables are, there is the address itself (`tcbhead_t`, sysdeps/x86_64/nptl/tls.h).
#[track_caller]
fn expect_thread_pointers(stop: &ShortStop) {
    let image = LiveImage::of_process(stop.process()).unwrap();
    let pointers: BTreeSet<u64> = stop
        .threads()
        .iter()
        .map(|thread| thread.thread_pointer.unwrap())
        .collect();
    assert_eq!(pointers.len(), stop.threads().len());
    if cfg!(target_arch = "x86_64") {
        let addresses: Vec<u64> = pointers.into_iter().collect();
        let mut words = Vec::new();
        image.read_words(&addresses, &mut words);
        assert!(
            words
                .iter()
                .zip(&addresses)
                .all(|(word, address)| *word == Some(*address))
        );
    }
}

#[test]
fn one_thread_and_forty_stand_and_go_on() {
    for more in [0, 39] {
        let mut puppet = puppet();
        let pid = puppet.pid();
        assert_eq!(
            puppet.ask(&format!("threads {more}")),
            format!("threads {more}")
        );
        for _ in 0..5 {
            let stop = ShortStop::begin(pid).unwrap();
            expect_all_stand(pid);
            assert_eq!((stop.threads().len(), stop.missed()), (more + 1, 0));
            let stood: BTreeSet<u32> = stop.threads().iter().map(|thread| thread.tid).collect();
            assert_eq!(stood, threads_of(pid).into_iter().collect());
            expect_thread_pointers(&stop);
            stop.release();
            expect_free(pid);
            assert_eq!(puppet.ask("ping"), "ping");
        }
        puppet.finish().expect_code(0);
    }
}

#[test]
fn a_thread_that_never_rests_stands_as_well() {
    let mut puppet = puppet();
    assert_eq!(puppet.ask("spin"), "spin");
    let stop = ShortStop::begin(puppet.pid()).unwrap();
    expect_all_stand(puppet.pid());
    assert_eq!((stop.threads().len(), stop.missed()), (2, 0));
    drop(stop);
    expect_free(puppet.pid());
    puppet.tell("quit");
    puppet.finish().expect_code(0);
}

#[test]
fn a_stopped_process_stays_stopped() {
    let mut puppet = puppet();
    puppet.ask("threads 3");
    let pid = puppet.pid();
    stop(pid);
    for _ in 0..3 {
        let stop = ShortStop::begin(pid).unwrap();
        assert_eq!((stop.threads().len(), stop.missed()), (4, 0));
        expect_all_stand(pid);
        expect_thread_pointers(&stop);
        drop(stop);
        assert!(
            threads_of(pid)
                .into_iter()
                .all(|tid| tracer_of(tid) == Some(0))
        );
        wait_until("all have stopped again", || {
            threads_of(pid).into_iter().all(|tid| state(tid) == 'T')
        });
    }
    puppet.tell("ping");
    assert!(!puppet.says_something());
    assert!(send(pid, libc::SIGCONT));
    assert_eq!(puppet.line(), "ping");
    puppet.finish().expect_code(0);
}

#[test]
fn a_process_that_is_stopped_or_continued_while_it_stands_does_so_afterwards() {
    let mut puppet = puppet();
    let pid = puppet.pid();
    wait_until_idle(pid);
    let held = ShortStop::begin(pid).unwrap();
    assert!(send(pid, libc::SIGSTOP));
    drop(held);
    wait_until("it has stopped", || state(pid) == 'T');
    let held = ShortStop::begin(pid).unwrap();
    assert!(send(pid, libc::SIGCONT));
    drop(held);
    assert_eq!(puppet.ask("ping"), "ping");
    puppet.finish().expect_code(0);
}

#[test]
fn a_sleep_lasts_as_long_as_it_would() {
    let mut puppet = puppet();
    puppet.tell("nap 200");
    for _ in 0..20 {
        drop(ShortStop::begin(puppet.pid()).unwrap());
    }
    assert_eq!(puppet.line(), "slept 0");
    puppet.finish().expect_code(0);
}

#[test]
fn no_signal_of_a_storm_is_lost_or_doubled() {
    const SIGNALS: usize = 1500;
    let mut receiver = Running::start(Command::new(fixture("signals")).arg("handled"));
    let pid = u32::try_from(number(fact(&receiver.line(), "ready"))).unwrap();
    let sender = std::thread::spawn(move || {
        for value in 0..SIGNALS {
            let content = libc::sigval {
                sival_ptr: std::ptr::without_provenance_mut(value),
            };
            // EAGAIN: as many wait as may (RLIMIT_SIGPENDING).
            // SAFETY: sends a number to a process that this test started.
            while unsafe { libc::sigqueue(pid.cast_signed(), 45, content) } != 0 {
                std::thread::yield_now();
            }
        }
    });
    let mut stops = 0;
    while !sender.is_finished() || stops < 50 {
        let stop = ShortStop::begin(pid).unwrap();
        assert_eq!((stop.threads().len(), stop.missed()), (1, 0));
        stops += 1;
    }
    sender.join().unwrap();
    for count in 0..SIGNALS {
        assert_eq!(receiver.line(), format!("handled {} {count}", count + 1));
    }
    assert!(send(pid, libc::SIGTERM));
    assert_eq!(receiver.finish().expect_code(0).stdout, "over\n");
}

#[test]
fn no_thread_runs_on_while_threads_come_and_go() {
    let mut churn = Running::start_obedient(&mut Command::new(fixture("thread_churn")));
    assert_eq!(churn.line(), "ready");
    for _ in 0..100 {
        let stop = ShortStop::begin(churn.pid()).unwrap();
        assert_eq!(stop.missed(), 0);
        expect_all_stand(churn.pid());
        let there = threads_of(churn.pid());
        assert!(
            stop.threads()
                .iter()
                .all(|thread| there.contains(&thread.tid))
        );
    }
    expect_free(churn.pid());
    let ended = churn.finish();
    assert!(
        ended.expect_code(0).stdout.contains("healthy\n"),
        "{ended:?}"
    );
}

#[test]
fn a_process_whose_first_thread_has_gone_stands_by_the_others() {
    let mut zombie = Running::start_obedient(&mut Command::new(fixture("zombie_leader")));
    assert_eq!(zombie.line(), "ready");
    let stop = ShortStop::begin(zombie.pid()).unwrap();
    assert_eq!((stop.threads().len(), stop.missed()), (1, 0));
    assert_ne!(stop.threads()[0].tid, zombie.pid());
    expect_thread_pointers(&stop);
    drop(stop);
    zombie.finish().expect_code(0);
}

#[test]
fn processes_that_end_or_exec_meanwhile_do_so() {
    for _ in 0..100 {
        let mut child = Command::new("true").spawn().unwrap();
        match ShortStop::begin(child.id()) {
            Ok(stop) => assert_eq!(stop.missed(), 0),
            Err(AttachError::NoSuchProcess(_) | AttachError::Zombie(_)) => {}
            Err(error) => panic!("{error:?}"),
        }
        assert!(child.wait().unwrap().success());
    }
    let script = "[ $1 -gt 0 ] && exec sh -c \"$0\" \"$0\" $(($1 - 1)) || echo over";
    let mut chain = Running::start(Command::new("sh").args(["-c", script, script, "200"]));
    let pid = chain.pid();
    while !chain.has_ended() {
        if let Ok(stop) = ShortStop::begin(pid) {
            assert_eq!(stop.missed(), 0);
        }
    }
    assert_eq!(chain.finish().expect_code(0).stdout, "over\n");
}

#[test]
fn threads_that_exec_take_the_process_with_them_as_ever() {
    for _ in 0..100 {
        let mut running = Running::start(&mut Command::new(fixture("exec_from_thread")));
        while !running.has_ended() {
            drop(ShortStop::begin(running.pid()));
        }
        let alone = finish(&mut Command::new(fixture("exec_from_thread")));
        let ended = running.finish();
        assert_eq!(ended.ending(), alone.ending());
        assert_eq!(ended.stdout.lines().count(), alone.stdout.lines().count());
    }
}

#[test]
fn a_process_that_execs_from_its_threads_all_the_time_can_be_stopped_and_attached_to() {
    let Some(program) = compile("exec_storm", &["-pthread"]) else {
        return skip("no C compiler");
    };
    // Far more than there is time for.
    let storm = Running::start(Command::new(program).arg("1000000000"));
    for _ in 0..100 {
        assert_eq!(ShortStop::begin(storm.pid()).unwrap().missed(), 0);
    }
    for _ in 0..5 {
        let mut command = breaktrace();
        command
            .args(["attach", "--duration", "10ms"])
            .arg(storm.pid().to_string());
        finish(&mut command).expect_code(0);
    }
    assert_eq!(tracer_of(storm.pid()), Some(0));
}

#[test]
fn a_thread_that_sleeps_uninterruptibly_is_gone_on_without() {
    let Some(program) = compile("vfork_waits", &["-pthread"]) else {
        return skip("no C compiler");
    };
    let mut waiter = Running::start_obedient(&mut Command::new(program));
    assert_eq!(waiter.line(), "ready");
    let pid = waiter.pid();
    wait_until("the first thread waits for its child", || state(pid) == 'D');
    let stop = ShortStop::begin(pid).unwrap();
    assert_eq!((stop.threads().len(), stop.missed()), (1, 1));
    assert_ne!(stop.threads()[0].tid, pid);
    assert!(stop.release() >= Duration::from_millis(50));
    // The kernel lets go of it when our tracing thread is gone for good.
    wait_until("nobody traces it", || tracer_of(pid) == Some(0));
    expect_free(pid);
    let ended = waiter.finish();
    assert_eq!(ended.expect_code(0).stdout, "over\n");
}

#[test]
fn what_somebody_else_traces_is_refused_by_name_and_can_be_read() {
    let puppet = puppet();
    let mut command = breaktrace();
    command.arg("attach").arg(puppet.pid().to_string());
    let other = Running::start(&mut command);
    wait_until("it is traced", || {
        tracer_of(puppet.pid()) == Some(other.pid())
    });
    match ShortStop::begin(puppet.pid()) {
        Err(error @ AttachError::AlreadyTraced { tracer, .. }) => {
            assert_eq!(tracer, other.pid());
            assert!(error.hint().is_some());
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(tracer_of(puppet.pid()), Some(other.pid()));
    assert!(LiveImage::of_process(puppet.pid()).is_ok());
    other.send(libc::SIGINT);
    other.finish().expect_code(0);
    puppet.finish().expect_code(0);
}

/// Set for the test program itself when it is to hold this process, or to do so again and again.
const HOLD: &str = "BREAKTRACE_TEST_HOLD";

/// Not a test by itself: the others start it as a process of its own.
#[test]
#[ignore = "the other tests run it as a program"]
fn holder() {
    let Ok(pid) = std::env::var(HOLD) else {
        return;
    };
    let pid = pid.parse().unwrap();
    let count = |folder: &str| {
        fs::read_dir(format!("/proc/self/{folder}"))
            .unwrap()
            .count()
    };
    drop(ShortStop::begin(pid).unwrap());
    let before = (count("fd"), count("task"));
    for _ in 0..300 {
        let stop = ShortStop::begin(pid).unwrap();
        let image = LiveImage::of_process(pid).unwrap();
        expect_thread_pointers(&stop);
        assert!(!image.is_gone());
    }
    // Threads are in the folder until they are gone for good.
    wait_until("all threads have ended", || count("task") <= before.1);
    assert_eq!(count("fd"), before.0);
    let _stop = ShortStop::begin(pid).unwrap();
    println!("\nholds");
    loop {
        std::thread::park();
    }
}

fn hold(pid: u32) -> Running {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", "short_stop::holder", "--ignored", "--nocapture"])
        .env(HOLD, pid.to_string());
    let mut holder = Running::start(&mut command);
    while holder.line() != "holds" {}
    holder
}

#[test]
fn dying_while_it_stands_lets_it_go_on_and_nothing_is_leaked_before() {
    for signal in [libc::SIGKILL, libc::SIGINT] {
        let mut puppet = puppet();
        puppet.ask("threads 5");
        let pid = puppet.pid();
        let descriptors = || fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
        let maps = || fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
        let before = (descriptors(), maps(), status(pid, "SigCgt"));
        let holder = hold(pid);
        expect_all_stand(pid);
        holder.send(signal);
        wait_until("it is let go", || {
            threads_of(pid)
                .into_iter()
                .all(|tid| tracer_of(tid) == Some(0))
        });
        assert_eq!(puppet.ask("ping"), "ping");
        assert_eq!((descriptors(), maps(), status(pid, "SigCgt")), before);
        puppet.finish().expect_code(0);
    }
}

#[test]
fn a_signal_that_is_under_way_survives_our_death() {
    let mut receiver = Running::start(Command::new(fixture("signals")).arg("handled"));
    let pid = u32::try_from(number(fact(&receiver.line(), "ready"))).unwrap();
    let mut expected = 0;
    for _ in 0..3 {
        let sender = std::thread::spawn(move || {
            for _ in 0..200 {
                assert!(send(pid, 45));
                std::thread::yield_now();
            }
        });
        let holder = hold(pid);
        holder.send(libc::SIGKILL);
        sender.join().unwrap();
        for _ in 0..200 {
            expected += 1;
            assert!(receiver.line().starts_with(&format!("handled {expected} ")));
        }
    }
    assert!(send(pid, libc::SIGTERM));
    assert_eq!(receiver.finish().expect_code(0).stdout, "over\n");
}

/// What smaps says of a mapping: its start, and a field in bytes.
fn smaps(pid: u32, field: &str) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap();
    let mut found = Vec::new();
    let mut start = 0;
    for line in text.lines() {
        let first = line.split(' ').next().unwrap();
        if let Some((from, _)) = first.split_once('-') {
            start = u64::from_str_radix(from, 16).unwrap();
        } else if let Some(rest) = line
            .strip_prefix(field)
            .and_then(|rest| rest.strip_prefix(':'))
        {
            let kib: u64 = rest.trim().trim_end_matches(" kB").parse().unwrap();
            found.push((start, kib * 1024));
        }
    }
    found
}

#[test]
fn residency_is_what_smaps_says_also_after_reading() {
    let mut puppet = puppet();
    puppet.ask("threads 20");
    puppet.ask("brk 1000000");
    puppet.ask("mmap 3000000");
    let pid = puppet.pid();
    wait_until_idle(pid);
    let image = LiveImage::of_process(pid).unwrap();
    for _ in 0..2 {
        let (resident, swapped) = (smaps(pid, "Rss"), smaps(pid, "Swap"));
        let mut seen = 0;
        for mapping in image.mappings() {
            if !matches!(
                mapping.kind(),
                MappingKind::Heap | MappingKind::Anonymous | MappingKind::Stack
            ) {
                continue;
            }
            let found = image.residency(mapping.start.0, mapping.end.0).unwrap();
            let sum = |stretches: &[(u64, u64)]| stretches.iter().map(|(from, to)| to - from).sum();
            assert!(
                resident.contains(&(mapping.start.0, sum(&found.resident))),
                "{mapping:?}"
            );
            assert!(
                swapped.contains(&(mapping.start.0, sum(&found.swapped))),
                "{mapping:?}"
            );
            seen += 1;
        }
        assert!(seen > 20, "{seen}");
        let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        for mapping in image.mappings() {
            let length = usize::try_from(mapping.bytes()).unwrap().min(4 << 20);
            let (mut by_us, mut by_kernel) = (vec![1; length], vec![1; length]);
            let read = image.read(mapping.start.0, &mut by_us);
            let truth = memory.read_at(&mut by_kernel, mapping.start.0).unwrap_or(0);
            // Both end where a page has no contents, such as behind the end of a mapped file.
            if mapping.kind() != MappingKind::Kernel {
                assert_eq!(read, truth, "{mapping:?}");
                assert!(by_us == by_kernel, "{mapping:?}");
            }
        }
        if !has_pagemap_scan() {
            // Pages that were read cannot be told from memory.
            break;
        }
    }
    assert!(image.read_bytes() > 1_000_000);
    puppet.finish().expect_code(0);
}

/// Linux 6.7.
fn has_pagemap_scan() -> bool {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next(), numbers.next()) >= (Some(6), Some(7))
}

#[test]
fn memory_can_be_read_on_when_threads_have_ended_and_not_after_an_exec() {
    let mut zombie = Running::start_obedient(&mut Command::new(fixture("zombie_leader")));
    assert_eq!(zombie.line(), "ready");
    let mut image = LiveImage::of_process(zombie.pid()).unwrap();
    let start = image.mappings()[0].start.0;
    assert_eq!(
        image.word(start).map(|word| word & 0xffff_ffff),
        Some(0x464c_457f)
    );
    assert!(image.refresh());
    zombie.finish().expect_code(0);

    let mut shell =
        Running::start_obedient(Command::new("sh").args(["-c", "echo ready; read x; exec cat"]));
    assert_eq!(shell.line(), "ready");
    let image = LiveImage::of_process(shell.pid()).unwrap();
    assert!(!image.is_gone());
    shell.tell("x");
    wait_until("cat runs", || {
        status(shell.pid(), "Name").as_deref() == Some("cat")
    });
    assert!(image.is_gone());
    let start = image.mappings()[0].start.0;
    assert_eq!(image.residency(start, start + image.page_size()), None);
    shell.finish().expect_code(0);
}
