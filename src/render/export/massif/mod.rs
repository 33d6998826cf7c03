//! valgrind's massif format, which ms_print and massif-visualizer open.
//!
//! Nothing describes the format but its readers. ms_print takes a `#` and what follows it in a line for a comment, wants
//! snapshots numbered from 0, and dies of a tree with a node larger than its snapshot. massif-visualizer wants exactly
//! one `desc:` line, the lines between snapshots that ms_print skips, and one more space before each level of a tree.
//! Both read times as decimals.

#[cfg(test)]
mod tests;
mod tree;

use std::fmt::Write as _;

use self::tree::Tree;
use crate::render::words;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::TimelinePoint;
use crate::units::Timestamp;

/// Most snapshots; massif itself keeps 100 unless told otherwise.
const MOST_SNAPSHOTS: usize = 200;

/// Sizes at a moment that was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Snapshot {
    time: Timestamp,
    bytes: u64,
}

/// The main address space: break and anonymous memory over time, and the call paths behind what is left of them.
pub(in crate::render) fn massif(report: &Report) -> Vec<u8> {
    let mut out = String::new();
    let Some(space) = report.main() else {
        push_head(&mut out, "nothing ran", "");
        return out.into_bytes();
    };
    let command = words::command(&space.program, &space.arguments);
    push_head(&mut out, &description(report, space), &command);
    let snapshots = thinned(&snapshots(report, space));
    let peak = peak(&snapshots);
    for (number, snapshot) in snapshots.iter().enumerate() {
        let is_peak = peak == Some(number);
        let is_last = number + 1 == snapshots.len();
        let tree = is_last
            .then(|| Tree::of(report, space, snapshot.bytes))
            .flatten();
        push_snapshot(&mut out, number, *snapshot);
        match tree {
            Some(tree) => {
                out.push_str(if is_peak { "peak\n" } else { "detailed\n" });
                tree.write(&mut out);
            }
            None if is_peak => {
                out.push_str("peak\n");
                push_bare_root(&mut out, snapshot.bytes);
            }
            None => out.push_str("empty\n"),
        }
    }
    out.into_bytes()
}

fn push_head(out: &mut String, description: &str, command: &str) {
    // A `String` takes all that is written to it.
    let _ = writeln!(out, "desc: {}", line(description));
    let _ = writeln!(out, "cmd: {}", line(command));
    out.push_str("time_unit: ms\n");
}

/// What `mem_heap_B` means here: massif counts what malloc handed out, breaktrace what the kernel did.
fn description(report: &Report, space: &SpaceReport) -> String {
    let tool = &report.tool;
    let heap = if space.program_break.end_bytes.is_some() {
        "the heap below the program break and private anonymous memory together"
    } else {
        "private anonymous memory; the program break is not known"
    };
    let others = match report.totals.address_spaces {
        0 | 1 => "",
        _ => ", of several programs the one whose heap grew most",
    };
    format!(
        "{} {}: mem_heap_B is {heap}, as the kernel sees them, of process {}{others}; what malloc adds is in it, stacks are not",
        tool.name, tool.version, space.pid
    )
}

/// Every size that is known to have been reached, in order of time. Never empty.
fn snapshots(report: &Report, space: &SpaceReport) -> Vec<Snapshot> {
    let mut snapshots = Vec::new();
    for point in &space.timeline.points {
        let (reached, end) = (
            reached(point),
            together(point.break_bytes, point.anonymous_bytes),
        );
        if reached > end {
            snapshots.push(Snapshot {
                time: point.time_ns,
                bytes: reached,
            });
        }
        snapshots.push(Snapshot {
            time: point.time_ns,
            bytes: end,
        });
    }
    let last = Snapshot {
        time: space.ended_ns.unwrap_or(report.end.duration_ns),
        bytes: together(
            space.program_break.end_bytes.unwrap_or(0),
            space.anonymous.end_bytes,
        ),
    };
    if snapshots
        .last()
        .is_none_or(|latest| latest.time < last.time || latest.bytes != last.bytes)
    {
        let time = snapshots
            .last()
            .map_or(last.time, |latest| latest.time.max(last.time));
        snapshots.push(Snapshot { time, ..last });
    }
    snapshots
}

fn together(break_bytes: u64, anonymous_bytes: u64) -> u64 {
    break_bytes.saturating_add(anonymous_bytes)
}

/// The largest sum that was certainly reached within a bucket: when one was at its largest, the other was at its
/// smallest or above. Exact where only one of them moved.
fn reached(point: &TimelinePoint) -> u64 {
    together(point.break_bytes, point.anonymous_bytes)
        .max(together(point.break_max_bytes, point.anonymous_min_bytes))
        .max(together(point.break_min_bytes, point.anonymous_max_bytes))
}

/// The first snapshot, and of each of so many stretches the largest and the last.
fn thinned(snapshots: &[Snapshot]) -> Vec<Snapshot> {
    if snapshots.len() <= MOST_SNAPSHOTS {
        return snapshots.to_vec();
    }
    let stretch = snapshots.len().div_ceil(MOST_SNAPSHOTS / 2 - 1);
    let mut kept = snapshots[..1].to_vec();
    for stretch in snapshots[1..].chunks(stretch) {
        let largest = largest(stretch);
        kept.extend(largest.map(|index| stretch[index]));
        if largest != Some(stretch.len() - 1) {
            kept.extend(stretch.last());
        }
    }
    kept
}

/// The first of the largest.
fn largest(snapshots: &[Snapshot]) -> Option<usize> {
    let bytes = snapshots.iter().map(|snapshot| snapshot.bytes).max()?;
    snapshots
        .iter()
        .position(|snapshot| snapshot.bytes == bytes)
}

/// The largest snapshot: the last one if it is as large as any, as of that one the call paths are known.
fn peak(snapshots: &[Snapshot]) -> Option<usize> {
    let first = largest(snapshots)?;
    let last = snapshots.len() - 1;
    let last_is_as_large = snapshots[last].bytes == snapshots[first].bytes;
    Some(if last_is_as_large { last } else { first })
}

fn push_snapshot(out: &mut String, number: usize, snapshot: Snapshot) {
    let nanoseconds = snapshot.time.0;
    let _ = write!(
        out,
        "#-----------\nsnapshot={number}\n#-----------\ntime={}.{:06}\nmem_heap_B={}\nmem_heap_extra_B=0\nmem_stacks_B=0\nheap_tree=",
        nanoseconds / 1_000_000,
        nanoseconds % 1_000_000,
        snapshot.bytes
    );
}

/// A tree of its root alone marks the peak for ms_print without telling of call paths what is not known.
fn push_bare_root(out: &mut String, bytes: u64) {
    let _ = writeln!(
        out,
        "n0: {bytes} (heap allocation functions) call paths are known of the last snapshot alone"
    );
}

/// Text as a part of a line: harmless, and without what ms_print takes for the beginning of a comment.
fn line(text: &str) -> String {
    words::harmless(text).replace('#', r"\u{23}")
}
