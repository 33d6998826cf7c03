//! Who asked for blocks, and who never freed them: what samples tell, by call path.

use crate::render::call_paths;
use crate::render::style::Line;
use crate::render::style::Tone;
use crate::render::table::Cell;
use crate::render::table::Column;
use crate::render::table::Table;
use crate::render::words;
use crate::report::SampleSum;
use crate::report::SampledPath;
use crate::report::Samples;
use crate::report::SpaceReport;
use crate::units::ByteSize;
use crate::units::Exact;

/// Call paths listed unless all are asked for.
const LISTED: usize = 5;

/// The call paths whose blocks were never freed, those that asked for most, and how exact that is.
pub(in crate::render) fn samples(space: &SpaceReport, verbose: bool, width: usize) -> Vec<Line> {
    let Some(samples) = space
        .allocator
        .as_ref()
        .and_then(|allocator| allocator.samples.as_ref())
    else {
        return Vec::new();
    };
    let listed = listed(&samples.paths, verbose);
    let mut columns = Vec::new();
    if samples.lost.is_some() {
        columns.push(Column::number("lost").space(0));
        columns.push(Column::number("blocks"));
    }
    columns.extend([
        Column::number("never freed").space(if columns.is_empty() { 0 } else { 2 }),
        Column::number("blocks"),
        Column::number("requested").rank(2),
        Column::number("blocks").rank(1),
        Column::words("by").cuttable(),
    ]);
    let mut table = Table::new(columns);
    for path in &listed {
        table.row(row(path, samples));
    }
    let mut lines = if listed.is_empty() {
        Vec::new()
    } else {
        table.lines(width)
    };
    lines.extend(
        words::wrap(&remark(samples, &listed), width)
            .iter()
            .map(|text| Line::of(Tone::Faint, text)),
    );
    lines
}

/// Those with most live bytes, and of the others those that asked for most.
fn listed(paths: &[SampledPath], verbose: bool) -> Vec<&SampledPath> {
    if verbose || paths.len() <= LISTED + 1 {
        return paths.iter().collect();
    }
    let live = paths.iter().filter(|path| path.live.samples > 0).count();
    // They are sorted by what is live, so that a busy path of which all is freed may be far down.
    let mut listed: Vec<&SampledPath> = paths.iter().take(live.min(LISTED - 1)).collect();
    let mut others: Vec<&SampledPath> = paths.iter().skip(listed.len()).collect();
    others.sort_by_key(|path| std::cmp::Reverse(path.requested));
    listed.extend(others.into_iter().take(LISTED - listed.len()));
    listed
}

fn row(path: &SampledPath, samples: &Samples) -> Vec<Cell> {
    let mark = if samples.interval_bytes == 1 { "" } else { "~" };
    let bytes = |sum: SampleSum| format!("{mark}{}", ByteSize(sum.estimated_bytes));
    let blocks = |sum: SampleSum| format!("{mark}{}", Exact(sum.estimated_blocks));
    let pair = |sum: SampleSum, tone| match sum.samples {
        0 => [Cell::plain("–"), Cell::plain("–")],
        _ => [Cell::of(tone, &bytes(sum)), Cell::plain(blocks(sum))],
    };
    let mut cells = Vec::new();
    if samples.lost.is_some() {
        cells.extend(pair(path.lost.unwrap_or_default(), Tone::Warning));
    }
    cells.extend(pair(path.live, Tone::Strong));
    cells.extend([
        Cell::plain(bytes(path.requested)),
        Cell::plain(blocks(path.requested)),
        Cell::plain(call_paths::way(path.culprit.as_ref(), &path.path)),
    ]);
    cells
}

/// What is not listed, and how far the figures can be trusted.
fn remark(samples: &Samples, listed: &[&SampledPath]) -> String {
    let mut parts = Vec::new();
    let rest = samples.paths.len() - listed.len();
    if rest > 0 {
        let (mut live, mut requested) = (SampleSum::default(), SampleSum::default());
        let is_listed = |path: &SampledPath| listed.iter().any(|one| std::ptr::eq(*one, path));
        for path in samples.paths.iter().filter(|path| !is_listed(path)) {
            live.add(path.live);
            requested.add(path.requested);
        }
        parts.push(format!(
            "{}: {} never freed of {} requested",
            words::count(rest as u64, "more call path", "more call paths"),
            ByteSize(live.estimated_bytes),
            ByteSize(requested.estimated_bytes),
        ));
    }
    parts.push(match samples.interval_bytes {
        1 => "every block was recorded".to_owned(),
        interval => format!(
            "estimated from {}, one for every {} requested",
            words::count(samples.requested.samples, "sample", "samples"),
            ByteSize(interval)
        ),
    });
    if samples.not_followed > 0 {
        parts.push(format!(
            "{} not followed to their end, as too many were live",
            words::count(samples.not_followed, "sample was", "samples were")
        ));
    }
    parts.join("; ")
}
