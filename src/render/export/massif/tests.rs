//! Massif files as their readers take them.

use super::*;
use crate::event::StackId;
use crate::render::export::tests::code;
use crate::render::export::tests::every_report;
use crate::render::export::tests::function;
use crate::render::export::tests::module;
use crate::render::export::tests::python;
use crate::render::export::tests::stack;
use crate::render::tests::KIB;
use crate::render::tests::program;
use crate::report::Culprit;
use crate::report::Growth;
use crate::report::StackGrowth;
use crate::report::StackReport;
use crate::report::Stacks;

/// A snapshot as a reader has it.
#[derive(Debug)]
struct Read {
    time: String,
    bytes: u64,
    heap_tree: String,
    tree: Option<Node>,
}

#[derive(Debug)]
struct Node {
    bytes: u64,
    label: String,
    children: Vec<Node>,
}

/// Reads as massif-visualizer does, and panics where ms_print or it would refuse.
fn read(report: &Report) -> Vec<Read> {
    let text = String::from_utf8(massif(report)).unwrap();
    let mut lines = text.lines();
    assert!(lines.next().unwrap().starts_with("desc: "));
    assert!(lines.next().unwrap().starts_with("cmd: "));
    assert_eq!(lines.next(), Some("time_unit: ms"));
    let mut snapshots = Vec::new();
    while let Some(line) = lines.next() {
        assert_eq!(line, "#-----------");
        let mut value = |key: &str| lines.next().unwrap().strip_prefix(key).unwrap().to_owned();
        assert_eq!(value("snapshot="), snapshots.len().to_string());
        value("#-----------");
        let time = value("time=");
        let bytes = value("mem_heap_B=").parse().unwrap();
        assert_eq!(value("mem_heap_extra_B="), "0");
        assert_eq!(value("mem_stacks_B="), "0");
        let heap_tree = value("heap_tree=");
        let tree = (heap_tree != "empty").then(|| node(&mut lines, 0));
        if let Some(tree) = &tree {
            assert_eq!(tree.bytes, bytes);
        }
        snapshots.push(Read {
            time,
            bytes,
            heap_tree,
            tree,
        });
    }
    let times: Vec<f64> = snapshots
        .iter()
        .map(|read| read.time.parse().unwrap())
        .collect();
    assert!(times.is_sorted());
    snapshots
}

fn node<'a>(lines: &mut impl Iterator<Item = &'a str>, level: usize) -> Node {
    let line = lines.next().unwrap();
    assert!(
        !line.contains('#'),
        "ms_print takes this for a comment: {line}"
    );
    let (indent, rest) = line.split_at(level);
    assert_eq!(indent.trim(), "");
    let (count, rest) = rest.strip_prefix('n').unwrap().split_once(": ").unwrap();
    let (bytes, label) = rest.split_once(' ').unwrap();
    let count: usize = count.parse().unwrap();
    let read = Node {
        bytes: bytes.parse().unwrap(),
        label: label.to_owned(),
        children: (0..count).map(|_| node(lines, level + 1)).collect(),
    };
    let sum: u64 = read.children.iter().map(|child| child.bytes).sum();
    assert!(sum <= read.bytes, "{read:?}");
    assert!(
        read.children
            .is_sorted_by_key(|child| std::cmp::Reverse(child.bytes))
    );
    read
}

/// Frames: malloc, parse inlined into load, main, a place without symbols, a Python function.
fn stacks() -> Stacks {
    let named = |name, file, line| function(name, Some(file), Some(line));
    let stack = |id, frames: &[u32], culprit| StackReport {
        culprit,
        ..stack(id, frames)
    };
    Stacks {
        recorded: 4,
        truncated: 0,
        distinct: 4,
        left_out: 0,
        modules: vec![module("/usr/bin/app", None)],
        frames: vec![
            code(0, 0x10, &[function("malloc", None, None)]),
            code(
                0,
                0x2f0,
                &[named("parse", "app.c", 7), named("load", "app.c", 90)],
            ),
            code(0, 0x3abc, &[named("main", "app.c", 120)]),
            code(0, 0x4000, &[]),
            python("Table.<fill#1>", "/srv/table.py", 12),
        ],
        stacks: vec![
            stack(
                1,
                &[0, 1, 2],
                Some(Culprit {
                    depth: 1,
                    function: 0,
                }),
            ),
            stack(
                2,
                &[0, 1, 2],
                Some(Culprit {
                    depth: 1,
                    function: 1,
                }),
            ),
            stack(5, &[3, 4, 2], None),
        ],
    }
}

fn growth(stack: Option<u32>, of_break: u64, of_anonymous: u64) -> StackGrowth {
    let growth = |net_bytes| Growth {
        net_bytes,
        grown_bytes: net_bytes * 2,
        ..Growth::default()
    };
    StackGrowth {
        stack: stack.map(StackId),
        program_break: growth(of_break),
        anonymous: growth(of_anonymous),
    }
}

/// A heap of 1 MiB at the end beside 60 KiB of anonymous memory.
fn with_stacks(growth: Vec<StackGrowth>) -> Report {
    let mut report = program(&["app"], &[512 << 10, 512 << 10]);
    report.stacks = Some(stacks());
    report.address_spaces[0].growth = growth;
    report
}

const TOTAL: u64 = 1024 * KIB + 60 * KIB;

#[test]
fn sizes_are_break_and_anonymous_memory_of_each_point() {
    let report = program(&["sort", "#1"], &[512 << 10, -(256 << 10), 4096]);
    let snapshots = read(&report);
    let kib: Vec<u64> = snapshots.iter().map(|read| read.bytes / KIB).collect();
    // Before a size at the end of a bucket stands a larger one of the same bucket: 512 + 60 before the break fell to 256,
    // and 256 + 72 before it rose to 260. The last is the state at the end.
    assert_eq!(kib, [572, 572, 316, 328, 320, 320]);
    let text = String::from_utf8(massif(&report)).unwrap();
    assert!(text.contains("\ncmd: sort '\\u{23}1'\n"), "{text}");
    assert!(text.contains("of process 4711;"), "{text}");
}

#[test]
fn the_largest_sum_of_a_bucket_is_one_that_was_reached() {
    let point = TimelinePoint {
        break_bytes: 10,
        break_min_bytes: 5,
        break_max_bytes: 90,
        anonymous_bytes: 30,
        anonymous_min_bytes: 20,
        anonymous_max_bytes: 40,
        ..TimelinePoint::default()
    };
    assert_eq!(reached(&point), 110, "not 130, as the two may not have met");
    let alone = TimelinePoint {
        anonymous_bytes: 20,
        anonymous_max_bytes: 20,
        ..point
    };
    assert_eq!(reached(&alone), 110, "exact, as one stood still");
}

#[test]
fn a_peak_before_the_end_is_marked_without_call_paths() {
    let mut report = program(&["app"], &[512 << 10, -(256 << 10)]);
    report.stacks = Some(stacks());
    report.address_spaces[0].growth = vec![growth(Some(1), 256 * KIB, 0)];
    let snapshots = read(&report);
    let peaks: Vec<&Read> = snapshots
        .iter()
        .filter(|read| read.heap_tree == "peak")
        .collect();
    assert_eq!(peaks.len(), 1);
    let most = snapshots.iter().map(|read| read.bytes).max();
    assert_eq!(Some(peaks[0].bytes), most);
    assert!(peaks[0].tree.as_ref().unwrap().children.is_empty());
    let last = snapshots.last().unwrap();
    assert_eq!(last.heap_tree, "detailed");
    assert!(!last.tree.as_ref().unwrap().children.is_empty());
}

#[test]
fn the_last_snapshot_has_callers_below_the_culprit_with_inlined_functions_apart() {
    let mut report = with_stacks(vec![
        growth(Some(1), 600 * KIB, 0),
        growth(Some(2), 300 * KIB, 0),
        growth(Some(5), 0, 50 * KIB),
        growth(None, 124 * KIB, 10 * KIB),
    ]);
    for point in &mut report.address_spaces[0].timeline.points {
        point.anonymous_max_bytes = point.anonymous_bytes;
    }
    let snapshots = read(&report);
    let last = snapshots.last().unwrap();
    assert_eq!((last.bytes, last.heap_tree.as_str()), (TOTAL, "peak"));
    let tree = last.tree.as_ref().unwrap();
    let labels: Vec<(u64, &str)> = tree
        .children
        .iter()
        .map(|child| (child.bytes / KIB, child.label.as_str()))
        .collect();
    assert_eq!(
        labels,
        [
            (600, "0x2F0: parse (app.c:7)"),
            (300, "0x2F0: load (app.c:90)"),
            (
                134,
                "(no call stack: from before the recording, or not recorded)"
            ),
            (50, "0x4000: ??? (in /usr/bin/app)"),
        ]
    );
    let load = &tree.children[0].children[0];
    assert_eq!(load.label, "0x2F0: load (app.c:90)");
    assert_eq!(load.children[0].label, "0x3ABC: main (app.c:120)");
    assert_eq!(
        tree.children[3].children[0].label,
        r"Table.<fill\u{23}1> (/srv/table.py:12)"
    );
    assert_eq!(
        tree.children.iter().map(|child| child.bytes).sum::<u64>(),
        TOTAL
    );
}

#[test]
fn what_is_less_than_a_hundredth_is_added_up() {
    let report = with_stacks(vec![
        growth(Some(1), 1000 * KIB, 0),
        growth(Some(2), 2 * KIB, 0),
        growth(Some(5), 3 * KIB, 0),
    ]);
    let snapshots = read(&report);
    let children = &snapshots.last().unwrap().tree.as_ref().unwrap().children;
    let small = children.last().unwrap();
    assert_eq!(
        small.label,
        "in 2 places, all below massif's threshold (1.00%)"
    );
    assert_eq!(small.bytes, 5 * KIB);
}

#[test]
fn growth_that_exceeds_the_size_makes_no_tree() {
    let snapshots = read(&with_stacks(vec![growth(Some(1), TOTAL + 1, 0)]));
    assert!(
        snapshots
            .last()
            .unwrap()
            .tree
            .as_ref()
            .is_none_or(|tree| tree.children.is_empty())
    );
}

#[test]
fn stacks_deeper_than_a_reader_likes_are_cut_at_their_outer_end() {
    let mut report = with_stacks(vec![growth(Some(9), 900 * KIB, 0)]);
    let stacks = report.stacks.as_mut().unwrap();
    stacks.stacks.push(StackReport {
        id: StackId(9),
        frames: vec![3; 500],
        truncated: None,
        culprit: None,
    });
    let snapshots = read(&report);
    let mut node = &snapshots.last().unwrap().tree.as_ref().unwrap().children[0];
    let mut levels = 1;
    while let Some(caller) = node.children.first() {
        (node, levels) = (caller, levels + 1);
    }
    assert_eq!(levels, 60);
}

#[test]
fn thousands_of_points_become_few_snapshots_that_keep_the_peak_and_the_ends() {
    let mut report = program(&["app"], &[4096]);
    let space = &mut report.address_spaces[0];
    space.timeline.points = (0..1024)
        .map(|index: u64| {
            let size = if index == 611 {
                1 << 40
            } else {
                index % 7 * 4096
            };
            TimelinePoint {
                time_ns: Timestamp(index * 1_000_003),
                break_bytes: size,
                break_min_bytes: size,
                break_max_bytes: size,
                ..TimelinePoint::default()
            }
        })
        .collect();
    let snapshots = read(&report);
    assert!(
        (100..=200).contains(&snapshots.len()),
        "{}",
        snapshots.len()
    );
    let peak = snapshots
        .iter()
        .find(|read| read.heap_tree == "peak")
        .unwrap();
    assert_eq!((peak.bytes, peak.time.as_str()), (1 << 40, "611.001833"));
    assert_eq!(snapshots[0].time, "0.000000");
    assert_eq!(snapshots.last().unwrap().bytes, 4096 + 60 * KIB);
}

#[test]
fn what_stays_unknown_is_said_and_nothing_is_made_up() {
    let mut report = program(&["app"], &[4096]);
    report.address_spaces[0].program_break.end_bytes = None;
    let text = String::from_utf8(massif(&report)).unwrap();
    assert!(text.contains("the program break is not known"), "{text}");
    report.main_space = None;
    let text = String::from_utf8(massif(&report)).unwrap();
    assert_eq!(text, "desc: nothing ran\ncmd: \ntime_unit: ms\n");
}

#[test]
fn positions_that_lead_nowhere_cost_their_label() {
    let mut report = with_stacks(vec![growth(Some(1), 900 * KIB, 0)]);
    report.stacks.as_mut().unwrap().frames.truncate(1);
    report.stacks.as_mut().unwrap().modules.clear();
    let snapshots = read(&report);
    let tree = snapshots.last().unwrap().tree.as_ref().unwrap();
    assert_eq!(tree.children[0].label, "???");
}

#[test]
fn every_report_is_one_that_readers_take() {
    for (name, report) in every_report() {
        assert!(!read(&report).is_empty(), "{name}");
    }
}
