//! Blocks that were not freed, by what leads to them: against what the program says of itself, and against Valgrind.

use std::path::PathBuf;
use std::process::Command;

use breaktrace::event::LeakSearch;
use breaktrace::report::AllocatorReport;
use breaktrace::report::Report;

use crate::support::Ended;
use crate::support::Traced;
use crate::support::breaktrace;
use crate::support::compile;
use crate::support::finish;
use crate::support::folder;
use crate::support::python;
use crate::support::skip;
use crate::support::trace;
use crate::support::valgrind;

const LEAKS: [&str; 3] = ["--allocator", "bundled", "--leaks"];
const LEAKS_BY_PATH: [&str; 5] = [
    "--allocator",
    "bundled",
    "--leaks",
    "--sample-allocations",
    "1",
];

fn program() -> Option<PathBuf> {
    compile("leaks", &["-O2", "-g", "-pthread"])
}

fn run(options: &[&str], words: &[&str]) -> Option<Traced> {
    let Some(program) = program() else {
        skip("there is no C compiler");
        return None;
    };
    let command = std::iter::once(program.as_os_str()).chain(words.iter().map(AsRef::as_ref));
    Some(trace(options, command))
}

#[track_caller]
fn allocator(report: &Report, space: usize) -> &AllocatorReport {
    report.address_spaces[space].allocator.as_ref().unwrap()
}

/// A number of blocks, and their bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct BlockCount {
    blocks: u64,
    bytes: u64,
}

/// The live blocks by what leads to them.
#[derive(Debug)]
struct Found {
    reachable: BlockCount,
    possibly_lost: BlockCount,
    lost: BlockCount,
    indirectly_lost: BlockCount,
    searched_bytes: u64,
    unreadable_bytes: u64,
}

fn leaks(report: &Report, space: usize) -> Option<&LeakSearch> {
    allocator(report, space).walk.as_ref()?.leaks.as_deref()
}

#[track_caller]
fn found(report: &Report, space: usize) -> Found {
    let leaks = leaks(report, space).unwrap();
    assert!(leaks.complete && leaks.stopped.is_none(), "{leaks:?}");
    let walk = allocator(report, space).walk.as_ref().unwrap();
    let count = |blocks: Option<u64>, bytes: Option<u64>| BlockCount {
        blocks: blocks.unwrap(),
        bytes: bytes.unwrap(),
    };
    let less = |all: BlockCount, part: BlockCount| BlockCount {
        blocks: all.blocks - part.blocks,
        bytes: all.bytes - part.bytes,
    };
    let live = count(Some(walk.live_blocks), Some(walk.live_bytes));
    let all_lost = count(Some(leaks.lost_blocks), Some(leaks.lost_bytes));
    let possibly_lost = count(leaks.possibly_lost_blocks, leaks.possibly_lost_bytes);
    let indirectly_lost = count(leaks.indirectly_lost_blocks, leaks.indirectly_lost_bytes);
    Found {
        reachable: less(less(live, all_lost), possibly_lost),
        possibly_lost,
        lost: less(all_lost, indirectly_lost),
        indirectly_lost,
        searched_bytes: leaks.searched_bytes.unwrap(),
        unreadable_bytes: leaks.unreadable_bytes.unwrap(),
    }
}

/// Lost blocks, and bytes of them, that a function asked for.
#[track_caller]
fn lost_of(report: &Report, function: &str) -> BlockCount {
    let samples = allocator(report, 0).samples.as_ref().unwrap();
    let path = samples.paths.iter().find(|path| {
        let culprit = path.culprit.as_ref();
        culprit.is_some_and(|culprit| culprit.name == function)
    });
    let lost = path
        .unwrap_or_else(|| panic!("{function} is not named"))
        .lost
        .unwrap();
    BlockCount {
        blocks: lost.samples,
        bytes: lost.estimated_bytes,
    }
}

/// A line of what the program says: a name, blocks, bytes.
#[track_caller]
fn told(ended: &Ended, name: &str) -> BlockCount {
    let line = ended
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))
        .unwrap_or_else(|| panic!("{name}: {}", ended.stdout));
    let (blocks, bytes) = line.split_once(' ').unwrap();
    BlockCount {
        blocks: blocks.parse().unwrap(),
        bytes: bytes.parse().unwrap(),
    }
}

fn sum(ended: &Ended, names: &[&str]) -> BlockCount {
    let mut sum = BlockCount::default();
    for count in names.iter().map(|name| told(ended, name)) {
        sum.blocks += count.blocks;
        sum.bytes += count.bytes;
    }
    sum
}

const LOST: [&str; 4] = ["lose_small", "lose_large", "lose_list", "lose_ring"];

/// What the program says of its blocks is what was found.
#[track_caller]
fn expect_told(found: &Found, ended: &Ended) {
    assert_eq!(found.lost, sum(ended, &LOST));
    assert_eq!(
        found.indirectly_lost,
        sum(ended, &["with_list", "with_ring"])
    );
    assert_eq!(found.possibly_lost, sum(ended, &["keep_insides"]));
    assert_eq!(found.reachable, sum(ended, &["keep_array", "keep_list"]));
    assert_eq!(found.unreadable_bytes, 0);
}

#[test]
fn lost_and_kept_blocks_are_told_apart_as_the_program_knows_them() {
    for more in [&[][..], &["--guard"], &["--heap-policy", "eager"]] {
        let Some(traced) = run(&[&LEAKS_BY_PATH, more].concat(), &[]) else {
            return;
        };
        traced.ended.expect_code(0);
        expect_told(&found(&traced.report, 0), &traced.ended);
        for names in [
            &["lose_small"][..],
            &["lose_large"],
            &["lose_list", "with_list"],
            &["lose_ring", "with_ring"],
        ] {
            let lost = lost_of(&traced.report, names[0]);
            assert_eq!(lost, sum(&traced.ended, names), "{names:?}");
        }
        for name in ["keep_array", "keep_list", "keep_insides"] {
            let lost = lost_of(&traced.report, name);
            assert_eq!(lost, BlockCount::default(), "{name}");
        }
    }
}

#[test]
fn without_samples_the_same_is_found() {
    let Some(traced) = run(&LEAKS, &[]) else {
        return;
    };
    expect_told(&found(&traced.report, 0), &traced.ended);
    assert_eq!(allocator(&traced.report, 0).samples, None);
}

/// What Valgrind's summary says of a kind of leaks.
fn summed_up(summary: &str, kind: &str) -> BlockCount {
    let line = summary
        .lines()
        .find_map(|line| line.split_once(kind).map(|(_, rest)| rest));
    let numbers: Vec<u64> = line
        .unwrap_or_else(|| panic!("{kind}: {summary}"))
        .split(|letter: char| !letter.is_ascii_digit() && letter != ',')
        .filter_map(|number| number.replace(',', "").parse().ok())
        .collect();
    BlockCount {
        blocks: numbers[1],
        bytes: numbers[0],
    }
}

#[test]
fn valgrind_judges_the_same() {
    let Some(valgrind) = valgrind() else {
        return skip("there is no valgrind");
    };
    let (Some(program), Some(traced)) = (program(), run(&LEAKS, &[])) else {
        return;
    };
    let valgrind = Command::new(valgrind)
        .args(["--leak-check=full", "--leak-check-heuristics=none"])
        .arg(program)
        .output()
        .unwrap();
    let summary = String::from_utf8_lossy(&valgrind.stderr);
    let found = found(&traced.report, 0);
    for (kind, ours) in [
        ("definitely lost:", found.lost),
        ("indirectly lost:", found.indirectly_lost),
        ("possibly lost:", found.possibly_lost),
        ("still reachable:", found.reachable),
    ] {
        assert_eq!(summed_up(&summary, kind), ours, "{kind} {summary}");
    }
}

#[test]
fn what_waiting_threads_keep_is_not_lost() {
    let Some(traced) = run(&LEAKS_BY_PATH, &["threads"]) else {
        return;
    };
    let found = found(&traced.report, 0);
    // Each thread has a block on its stack and one in its own variables.
    assert_eq!(found.lost, sum(&traced.ended, &LOST));
    let kept = lost_of(&traced.report, "wait_for_ever");
    assert_eq!(kept, BlockCount::default());
    let least = sum(&traced.ended, &["keep_array", "keep_list"]);
    assert!(found.reachable.blocks >= least.blocks + 8, "{found:?}");
}

#[test]
fn a_forked_child_is_judged_by_its_own_memory() {
    let Some(traced) = run(&LEAKS_BY_PATH, &["fork"]) else {
        return;
    };
    let (parent, child) = (found(&traced.report, 0), found(&traced.report, 1));
    assert_eq!(parent.lost, BlockCount::default());
    assert_eq!(parent.reachable.blocks, 17 + 11);
    assert_eq!(child.lost.blocks, 17 + 1, "the array, and the list's first");
    assert_eq!(child.indirectly_lost.blocks, 10);
    assert_eq!(child.possibly_lost, parent.possibly_lost);
}

#[test]
fn pointers_in_shared_and_read_only_memory_and_far_inside_of_blocks_count() {
    let Some(traced) = run(&LEAKS, &["hidden"]) else {
        return;
    };
    let found = found(&traced.report, 0);
    assert_eq!(found.lost, BlockCount::default(), "{found:?}");
    assert_eq!(found.reachable.blocks, 17 + 11 + 4);
    // Of the wide block only what was written is read.
    assert!(found.searched_bytes < 32 << 20, "{found:?}");
}

#[test]
fn of_a_program_that_frees_everything_nothing_is_lost() {
    let Some(program) = program() else {
        return skip("there is no C compiler");
    };
    let ended = finish(
        breaktrace()
            .arg("run")
            .args(LEAKS)
            .arg("--")
            .arg(program)
            .arg("nothing"),
    );
    ended.expect_code(0);
    assert!(
        ended.stderr.contains("lost      nothing"),
        "{}",
        ended.stderr
    );
}

#[test]
fn a_program_that_was_replaced_is_not_judged_and_the_next_one_is() {
    let Some(traced) = run(&LEAKS, &["exec"]) else {
        return;
    };
    let judged: Vec<&AllocatorReport> = traced
        .report
        .address_spaces
        .iter()
        .filter_map(|space| space.allocator.as_ref())
        .filter(|allocator| allocator.setup.is_some())
        .collect();
    assert_eq!(judged.len(), 2);
    assert_eq!(judged[0].walk, None);
    let leaks = judged[1].walk.as_ref().unwrap().leaks.as_ref().unwrap();
    assert!(leaks.complete && leaks.lost_blocks == 0, "{leaks:?}");
}

#[test]
fn a_program_that_was_killed_is_judged_rightly_or_not_at_all() {
    let Some(traced) = run(&LEAKS, &["killed"]) else {
        return;
    };
    // Whether the kernel still shows the memory differs between versions.
    if leaks(&traced.report, 0).is_some() {
        expect_told(&found(&traced.report, 0), &traced.ended);
    }
}

#[test]
fn the_text_tells_what_is_lost_and_what_is_in_doubt() {
    let Some(program) = program() else {
        return skip("there is no C compiler");
    };
    let ended = finish(
        breaktrace()
            .arg("run")
            .args(LEAKS_BY_PATH)
            .arg("--")
            .arg(&program),
    );
    let text: Vec<&str> = ended.stderr.split_whitespace().collect();
    let text = text.join(" ");
    for part in [
        "lost 38 blocks with 2.00 MiB, to which no pointer leads: 2 of 1 MiB, 21 of 100 B, 15 of 80 B",
        "to 13 blocks with 624 B only pointers to their inside lead",
        "2.05 KiB 21 2.05 KiB 21 2.05 KiB 21 lose_small (leaks.c:",
        "– – 49.8 KiB 17",
    ] {
        assert!(text.contains(part), "{part}: {text}");
    }
}

#[test]
fn a_replayed_log_gives_the_same_leaks() {
    let Some(program) = program() else {
        return skip("there is no C compiler");
    };
    let folder = folder();
    let (events, report) = (folder.path().join("e.jsonl"), folder.path().join("r.json"));
    finish(
        breaktrace()
            .args(["run", "-q"])
            .args(LEAKS_BY_PATH)
            .arg("--events")
            .arg(&events)
            .arg("-o")
            .arg(&report)
            .arg("--")
            .arg(program),
    )
    .expect_code(0);
    let again = finish(breaktrace().arg("report").arg(&events).arg("--json"));
    assert!(again.stdout.contains("indirectly_lost"));
    assert!(again.stdout == std::fs::read_to_string(&report).unwrap());
}

#[test]
fn python_does_the_same_while_its_leaks_are_looked_for() {
    let Some(python) = python() else {
        return skip("there is no python3");
    };
    let script = "import json; print(json.dumps({str(i): [i] * 3 for i in range(500)}))";
    let alone = Command::new(&python).args(["-c", script]).output().unwrap();
    let ended = finish(
        breaktrace()
            .args(["run", "-q"])
            .args(LEAKS)
            .arg("--")
            .arg(python)
            .args(["-c", script]),
    );
    ended.expect_code(0);
    assert_eq!(ended.stdout.as_bytes(), alone.stdout);
}

#[test]
fn leaks_are_looked_for_with_the_bundled_allocator_only() {
    let ended = finish(breaktrace().args(["run", "--leaks", "--", "true"]));
    assert!(
        ended.stderr.contains("--allocator bundled"),
        "{}",
        ended.stderr
    );
    assert_ne!(ended.ending().0, Some(0));
}
