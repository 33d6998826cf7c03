//! The kernel's view: events and report tell what the programs themselves print, call by call and byte by byte.

use crate::support::between_marks;
use crate::support::calls;
use crate::support::compile;
use crate::support::expect_same_calls;
use crate::support::fixture;
use crate::support::installed;
use crate::support::skip;
use crate::support::told;
use crate::support::trace;

use std::ffi::OsString;

use breaktrace::units::Address;

#[test]
fn every_move_of_the_break_is_recorded_as_the_program_saw_it() {
    for options in [&[][..], &["--no-seccomp"], &["--verify"]] {
        let traced = trace(options, [fixture("brk_moves")]);
        traced.ended.expect_code(0);
        let moves = told(&traced.ended.stdout);
        assert!(moves.len() > 10);
        expect_same_calls(&between_marks(&traced.events), &moves);
        let heap = &traced.report.address_spaces[0].program_break;
        let start = traced.ended.number("heap_start");
        assert_eq!(heap.start, Some(Address(start)));
        assert_eq!(heap.end, Some(Address(traced.ended.number("last"))));
        assert_eq!(heap.start_bytes, Some(0));
        assert!(heap.exact);
        let places = moves
            .iter()
            .map(|step| crate::support::number(step["after"].as_str().unwrap()));
        assert_eq!(
            heap.peak_bytes,
            places.clone().max().map(|highest| highest - start)
        );
        // Before `main`, the break rose once and for all to where the program found it.
        let mut before = traced.ended.number("first");
        let (mut grown, mut shrunk) = (before - start, 0);
        for after in places {
            grown += after.saturating_sub(before);
            shrunk += before.saturating_sub(after);
            before = after;
        }
        assert_eq!((heap.grown_bytes, heap.shrunk_bytes), (grown, shrunk));
        assert_eq!(heap.refused_calls, 2);
        assert!(heap.advised_bytes == 0 && heap.query_calls >= 2);
    }
}

#[test]
fn every_mapping_call_is_recorded_as_the_program_made_it() {
    for options in [&[][..], &["--no-seccomp"]] {
        let traced = trace(options, [fixture("mappings")]);
        traced.ended.expect_code(0);
        expect_same_calls(&between_marks(&traced.events), &told(&traced.ended.stdout));
    }
}

/// The changes of anonymous memory that a fixture expects.
fn changes(stdout: &str) -> Vec<i64> {
    stdout
        .lines()
        .filter_map(|line| line.strip_prefix("anonymous ")?.parse().ok())
        .collect()
}

fn sums(changes: &[i64]) -> (u64, u64) {
    let grown = changes.iter().filter(|change| **change > 0).sum::<i64>();
    let shrunk = -changes.iter().filter(|change| **change < 0).sum::<i64>();
    (grown.cast_unsigned(), shrunk.cast_unsigned())
}

#[test]
fn anonymous_memory_is_counted_as_the_program_expects() {
    let traced = |way: &str| {
        trace(
            &["--no-aslr", "--verify"],
            [fixture("mappings").into_os_string(), way.into()],
        )
    };
    let idle = traced("nothing");
    let idle = &idle.report.address_spaces[0].anonymous;
    for way in [
        "plain",
        "remapped",
        "remapped_over",
        "protected",
        "advised",
        "replaced",
        "shared",
        "file",
        "system_v",
    ] {
        let traced = traced(way);
        let space = &traced.report.address_spaces[0];
        let changes = changes(&traced.ended.stdout);
        let (grown, shrunk) = sums(&changes);
        let recorded = (
            space.anonymous.grown_bytes - idle.grown_bytes,
            space.anonymous.shrunk_bytes - idle.shrunk_bytes,
        );
        // Where memory is put over memory, both directions may count the part that went under.
        let under = recorded.0.saturating_sub(grown);
        if matches!(way, "remapped_over" | "replaced") {
            assert_eq!(recorded, (grown + under, shrunk + under), "{way}");
        } else {
            assert_eq!(recorded, (grown, shrunk), "{way}");
        }
        assert_eq!(
            space.anonymous.end_bytes, idle.end_bytes,
            "{way}: all was unmapped"
        );
        assert_eq!(
            space.anonymous.reserved_bytes, idle.reserved_bytes,
            "{way}: all was unmapped"
        );
        let (advised, freed) = (
            space.anonymous.dontneed_bytes,
            space.anonymous.lazily_freed_bytes,
        );
        let expected = if way == "advised" {
            (256 << 10, 128 << 10)
        } else {
            (0, 0)
        };
        assert_eq!((advised, freed), expected, "{way}");
        let mut highest = 0;
        let mut now = 0;
        for change in changes {
            now += change;
            highest = highest.max(now);
        }
        if highest > 64 << 10 {
            let peak = idle.end_bytes + highest.cast_unsigned();
            assert_eq!(
                space.anonymous.peak_bytes, peak,
                "{way}: the peak lies in the measured part"
            );
        }
    }
}

#[test]
fn threads_that_call_at_once_are_all_counted() {
    for options in [&[][..], &["--no-seccomp"]] {
        let traced = trace(options, [fixture("threads")]);
        traced.ended.expect_code(0);
        let recorded = between_marks(&traced.events);
        for name in ["brk", "mmap", "munmap"] {
            let count = recorded
                .iter()
                .filter(|event| event["event"] == name)
                .count() as u64;
            assert_eq!(count, traced.ended.number(name), "{name}");
        }
        let space = &traced.report.address_spaces[0];
        assert_eq!(
            traced.report.processes[0].threads,
            1 + traced.ended.number("threads")
        );
        let heap = &space.program_break;
        assert_eq!(heap.shrunk_bytes, traced.ended.number("break_shrunk"));
        assert_eq!(
            heap.end_bytes.unwrap() - heap.start_bytes.unwrap(),
            heap.grown_bytes - heap.shrunk_bytes
        );
        let before = heap.grown_bytes - traced.ended.number("break_grown");
        assert_eq!(
            heap.end_bytes.unwrap(),
            heap.start_bytes.unwrap() + before + traced.ended.number("break_net")
        );
        // What each round keeps is still there; the threads' stacks come on top.
        let kept = traced.ended.number("mapped") - traced.ended.number("unmapped");
        assert!(space.anonymous.end_bytes >= kept, "{:?}", space.anonymous);
        assert!(space.anonymous.shrunk_bytes >= traced.ended.number("unmapped"));
    }
}

#[test]
fn the_founding_experiment_is_told_to_the_byte() {
    let Some(program) = compile("founding_experiment", &[]) else {
        return skip("no C compiler");
    };
    let traced = trace(&["--verify"], [program]);
    traced.ended.expect_code(0);
    let heap = &traced.report.address_spaces[0].program_break;
    let seen: Vec<u64> = traced
        .ended
        .stdout
        .lines()
        .filter_map(|line| Some(crate::support::number(line.split_once(" break ")?.1)))
        .collect();
    assert_eq!(seen.len(), 10, "{}", traced.ended.stdout);
    // sbrk(0) made no call and malloc none before the first block, so the program saw the heap's start.
    assert_eq!(heap.start, Some(Address(seen[0])));
    assert_eq!(heap.end, seen.last().copied().map(Address));
    let moves: Vec<i64> = seen
        .windows(2)
        .map(|pair| pair[1].cast_signed() - pair[0].cast_signed())
        .filter(|change| *change != 0)
        .collect();
    let steps: Vec<i64> = heap
        .steps
        .kept
        .iter()
        .map(|step| step.delta_bytes)
        .collect();
    assert_eq!(steps, moves);
    assert_eq!(heap.grow_calls, moves.len() as u64);
}

/// Programs to trace without exact expectations: nothing may differ, whatever they do.
fn all_sorts() -> Vec<Vec<OsString>> {
    let mut programs: Vec<Vec<OsString>> = vec![
        vec![fixture("threads").into(), "8".into()],
        vec![fixture("fork_tree").into()],
        vec![fixture("exec_from_thread").into()],
        vec![fixture("untraced_child").into()],
        vec![fixture("mappings").into()],
        vec![fixture("signals").into(), "jobs".into()],
        vec![fixture("ends").into(), "thread".into()],
        vec!["ls".into(), "-l".into(), "/usr".into()],
        vec![
            "sh".into(),
            "-c".into(),
            "ls / | sort | wc -l; (exit 3); echo $?".into(),
        ],
    ];
    let scripts = [
        (
            crate::support::python(),
            "-c",
            "import threading, subprocess\n\
             lists = [list(range(30000)) for _ in range(5)]\n\
             t = [threading.Thread(target=lambda: [bytearray(300000) for _ in range(9)]) for _ in range(3)]\n\
             [x.start() for x in t]; [x.join() for x in t]\n\
             print(subprocess.run(['echo', 'child'], capture_output=True).stdout, sum(map(len, lists)))",
        ),
        (
            installed(&["perl"]),
            "-e",
            "my @l = map { \"x\" x 1000 } 1..5000; print scalar(@l), `echo child`;",
        ),
    ];
    for (program, option, script) in scripts {
        match program {
            Some(path) => programs.push(vec![path.into(), option.into(), script.into()]),
            None => skip("python3 or perl is not installed"),
        }
    }
    programs
}

#[test]
fn the_model_equals_proc_after_every_call() {
    for program in all_sorts() {
        let shown = format!("{program:?}");
        let plain =
            crate::support::finish(std::process::Command::new(&program[0]).args(&program[1..]));
        let traced = trace(&["--verify"], program);
        assert_eq!(
            traced.ended.ending(),
            plain.ending(),
            "{shown}: {}",
            traced.ended.stderr
        );
        for space in &traced.report.address_spaces {
            let made: u64 = space.calls.iter().map(|call| call.calls).sum();
            let checks = &space.checks;
            assert!(checks.made > 0 || made == 0, "{shown}: {checks:?}");
        }
    }
}

#[test]
fn with_and_without_the_filter_the_same_calls_are_seen() {
    for name in ["brk_moves", "mappings", "fork_tree", "exec_from_thread"] {
        let [with, without] = [&["--no-aslr"][..], &["--no-aslr", "--no-seccomp"]]
            .map(|options| trace(options, [fixture(name)]).report);
        assert_eq!(with.totals, without.totals, "{name}");
    }
}

#[test]
#[cfg(target_arch = "x86_64")]
fn advice_below_the_break_counts_for_the_heap() {
    let Some(perl) = installed(&["perl"]) else {
        return skip("perl is not installed");
    };
    // madvise is call 28 on x86-64, brk is 12; the aligned page in the middle of what the break just gained.
    let script = "my $b = syscall(12, 0); my $n = ($b + 4095) & ~4095; syscall(12, $n + 0x40000); \
                  syscall(28, $n + 0x10000, 0x8000, 4); syscall(28, $n + 0x20000, 0x4000, 8); \
                  require POSIX; POSIX::_exit(0);";
    let traced = trace(
        &["--verify"],
        [perl.into_os_string(), "-e".into(), script.into()],
    );
    traced.ended.expect_code(0);
    let (made, failed) = calls(&traced.report, "madvise");
    assert!(made >= 2 && failed == 0);
    assert_eq!(
        traced.report.address_spaces[0].program_break.advised_bytes,
        0x8000 + 0x4000
    );
}
