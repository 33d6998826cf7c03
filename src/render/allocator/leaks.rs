//! What leads to the blocks that were never freed: what is lost, and who asked for it.

use crate::event::BlockCount;
use crate::event::LeaksFound;
use crate::render::call_paths;
use crate::render::style::Line;
use crate::render::style::Tone;
use crate::render::table::Cell;
use crate::render::table::Column;
use crate::render::table::Table;
use crate::render::words;
use crate::report::LostSums;
use crate::report::Report;
use crate::report::SampleSum;
use crate::report::SampledPath;
use crate::report::Samples;
use crate::report::SpaceReport;
use crate::units::ByteSize;
use crate::units::Exact;

/// Call paths listed unless all are asked for.
const LISTED: usize = 5;
/// Sizes listed where no call path is known.
const LISTED_SIZES: usize = 4;

/// How many blocks are lost, the call paths that asked for most of them, and what that rests on.
pub(in crate::render) fn leaks(
    report: &Report,
    space: &SpaceReport,
    verbose: bool,
    width: usize,
) -> Vec<Line> {
    let Some(allocator) = &space.allocator else {
        return Vec::new();
    };
    let is_asked_for = report.recording.capture.leaks && allocator.setup.is_some();
    let found = match &allocator.leaks {
        Some(leaks) => match (&leaks.found, &leaks.stopped) {
            (Some(found), _) => found,
            (None, Some(why)) => return unknown(why, width),
            (None, None) => return unknown("the search was not made", width),
        },
        None if is_asked_for => {
            let why = "the program's memory was not there to be searched when it ended";
            return unknown(why, width);
        }
        None => return Vec::new(),
    };
    let mut lines = paragraph(Tone::Strong, &format!("Leaks: {}", sums(found)), width);
    let samples = allocator.samples.as_ref();
    let listed = samples.map_or_else(Vec::new, |samples| listed(samples, verbose));
    if let Some(samples) = samples.filter(|_| !listed.is_empty()) {
        lines.extend(table(&listed, samples).lines(width));
    }
    let remark = remark(found, samples, listed.len());
    lines.extend(paragraph(Tone::Faint, &remark, width));
    lines
}

fn unknown(why: &str, width: usize) -> Vec<Line> {
    paragraph(Tone::Plain, &format!("Leaks: not known; {why}"), width)
}

fn paragraph(tone: Tone, text: &str, width: usize) -> Vec<Line> {
    let lines = words::wrap(text, width);
    lines.iter().map(|text| Line::of(tone, text)).collect()
}

fn sums(found: &LeaksFound) -> String {
    let with = |count: BlockCount, what: &str| {
        let blocks = words::count(count.blocks, "block", "blocks");
        format!("{blocks} with {} {what}", ByteSize(count.bytes))
    };
    let mut parts = Vec::new();
    if found.lost.blocks == 0 {
        parts.push("nothing is lost".to_owned());
    } else {
        parts.push(with(found.lost, "lost"));
    }
    for (count, what) in [
        (found.indirectly_lost, "lost with them"),
        (found.possibly_lost, "possibly lost"),
        (found.reachable, "still reachable"),
    ] {
        if count.blocks > 0 {
            parts.push(with(count, what));
        }
    }
    parts.join("; ")
}

/// The call paths with most lost bytes.
fn listed(samples: &Samples, verbose: bool) -> Vec<(&SampledPath, LostSums)> {
    let mut paths: Vec<(&SampledPath, LostSums)> = samples
        .paths
        .iter()
        .filter_map(|path| Some((path, path.lost?)))
        .filter(|(_, lost)| lost.total().samples > 0)
        .collect();
    paths.sort_by_key(|(_, lost)| std::cmp::Reverse(*lost));
    if !verbose && paths.len() > LISTED + 1 {
        paths.truncate(LISTED);
    }
    paths
}

fn table(listed: &[(&SampledPath, LostSums)], samples: &Samples) -> Table {
    let mark = if samples.interval_bytes == 1 { "" } else { "~" };
    let bytes = |sum: SampleSum| match sum.samples {
        0 => "–".to_owned(),
        _ => format!("{mark}{}", ByteSize(sum.estimated_bytes)),
    };
    let blocks = |sum: SampleSum| match sum.samples {
        0 => "–".to_owned(),
        _ => format!("{mark}{}", Exact(sum.estimated_blocks)),
    };
    let mut table = Table::new(vec![
        Column::number("lost").space(0),
        Column::number("blocks"),
        Column::number("with them").rank(1),
        Column::number("possibly").rank(2),
        Column::words("by").cuttable(),
    ]);
    for (path, lost) in listed {
        table.row(vec![
            Cell::of(Tone::Strong, &bytes(lost.lost)),
            Cell::plain(blocks(lost.lost)),
            Cell::plain(bytes(lost.indirectly_lost)),
            Cell::plain(bytes(lost.possibly_lost)),
            Cell::plain(call_paths::way(path.culprit.as_ref(), &path.path)),
        ]);
    }
    table
}

/// What is not listed, and what the figures rest on.
fn remark(found: &LeaksFound, samples: Option<&Samples>, listed: usize) -> String {
    let mut parts = Vec::new();
    if let Some(samples) = samples {
        let is_lost = |path: &&SampledPath| path.lost.is_some_and(|lost| lost.total().samples > 0);
        let lost = samples.paths.iter().filter(is_lost).count();
        let rest = lost.saturating_sub(listed);
        if rest > 0 {
            parts.push(words::count(
                rest as u64,
                "more call path",
                "more call paths",
            ));
        }
    } else if found.lost.blocks > 0 {
        let sizes: Vec<String> = found
            .largest_lost
            .iter()
            .take(LISTED_SIZES)
            .map(|size| format!("{} of {}", Exact(size.blocks), ByteSize(size.size_bytes)))
            .collect();
        parts.push(format!("lost: {}", sizes.join(", ")));
        parts.push("--sample-allocations 1 tells who asked for them".to_owned());
    }
    if found.lost.blocks > 0 {
        parts.push(format!(
            "lost is what no word leads to in the {} searched",
            ByteSize(found.searched_bytes)
        ));
    } else {
        parts.push(format!("{} searched", ByteSize(found.searched_bytes)));
    }
    if found.unreadable_bytes > 0 {
        parts.push(format!(
            "{} could not be read: what only they lead to is called lost here",
            ByteSize(found.unreadable_bytes)
        ));
    }
    parts.join("; ")
}
