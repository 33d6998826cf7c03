//! Several looks at a heap: a line for each as it comes, and what they tell together.

use crate::report::ClassGrowth;
use crate::report::HeapGrowth;
use crate::report::HeapLook;
use crate::report::HeapSums;
use crate::report::chunk_sizes;
use crate::units::ByteDelta;
use crate::units::ByteSize;
use crate::units::Exact;

use super::super::TextOptions;
use super::super::style::Line;
use super::super::style::Tone;
use super::super::table::Cell;
use super::super::table::Column;
use super::super::table::Table;
use super::super::words;

/// Sizes that are listed unless all are asked for.
const LISTED_CLASSES: usize = 8;

/// A look in one line, with what changed since the one before it; the first under a heading. Ends with a newline.
#[must_use]
pub fn heap_look(look: &HeapLook, previous: Option<&HeapLook>, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let sums = &look.sums;
    let before = previous.map(|look| &look.sums);
    let mut line = Line::of(
        Tone::Plain,
        &format!("{:>10}", words::duration(look.time_ns.0)),
    );
    let mut figure = |now: Option<u64>, before: Option<u64>| {
        let now_text = now.map_or_else(|| "unknown".to_owned(), |now| ByteSize(now).to_string());
        line.push(Tone::Plain, &format!("  {now_text:>8}"));
        let change = now.zip(before).map(|(now, before)| change(now, before));
        let text = match change {
            Some(0) => "=".to_owned(),
            Some(change) => ByteDelta(change).to_string(),
            None => String::new(),
        };
        line.push(change.map_or(Tone::Faint, tone), &format!(" {text:>9}"));
    };
    figure(
        Some(sums.in_use_bytes),
        before.map(|sums| sums.in_use_bytes),
    );
    figure(Some(sums.free_bytes()), before.map(HeapSums::free_bytes));
    figure(
        sums.resident_bytes,
        before.and_then(|sums| sums.resident_bytes),
    );
    let heading = previous.is_none().then(|| {
        let titles = ["in use", "free", "in memory"].map(|title| format!("  {title:<18}"));
        Line::of(Tone::Faint, &format!("{:>10}{}", "time", titles.concat()))
    });
    heading
        .into_iter()
        .chain([line])
        .map(|line| {
            let width = options.width.max(TextOptions::NARROWEST);
            line.cut(width).paint(options.color) + "\n"
        })
        .collect()
}

fn change(now: u64, before: u64) -> i64 {
    let difference = i64::try_from(now.abs_diff(before)).unwrap_or(i64::MAX);
    if now >= before {
        difference
    } else {
        -difference
    }
}

fn tone(change: i64) -> Tone {
    match change.signum() {
        1 => Tone::Growth,
        -1 => Tone::Shrinkage,
        _ => Tone::Faint,
    }
}

/// First and last look, and what is between.
pub(super) fn table(growth: &HeapGrowth, width: usize) -> Vec<Line> {
    let (Some(first), Some(last)) = (growth.looks.first(), growth.looks.last()) else {
        return Vec::new();
    };
    let heading = format!(
        "{} in {}",
        words::count(growth.total_looks, "look", "looks"),
        words::duration(growth.duration_ns)
    );
    let mut table = Table::new(vec![
        Column::words("").space(0),
        Column::number("first"),
        Column::number("last"),
        Column::number("change"),
        Column::number("a second").rank(1),
    ]);
    let mut row = |name: &str, first: Option<u64>, last: Option<u64>| {
        let (Some(first), Some(last)) = (first, last) else {
            return;
        };
        let change = change(last, first);
        let rate = rate(change, growth.duration_ns)
            .map_or_else(|| "–".to_owned(), |rate| ByteDelta(rate).to_string());
        table.row(vec![
            Cell::plain(name),
            Cell::plain(ByteSize(first)),
            Cell::plain(ByteSize(last)),
            Cell::of(tone(change), &ByteDelta(change).to_string()),
            Cell::plain(rate),
        ]);
    };
    let (a, b) = (&first.sums, &last.sums);
    row("in use", Some(a.in_use_bytes), Some(b.in_use_bytes));
    if a.mapped_bytes.max(b.mapped_bytes) > 0 {
        row("  mapped alone", Some(a.mapped_bytes), Some(b.mapped_bytes));
    }
    row("free", Some(a.free_bytes()), Some(b.free_bytes()));
    row("obtained", Some(a.obtained_bytes), Some(b.obtained_bytes));
    row("heap in memory", a.resident_bytes, b.resident_bytes);
    row(
        "process in memory",
        first.memory.map(|memory| memory.resident_bytes),
        last.memory.map(|memory| memory.resident_bytes),
    );
    let mut lines = vec![Line::of(Tone::Faint, &heading)];
    lines.extend(table.lines(width));
    lines
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    reason = "a rate, shown with three digits; the cast saturates"
)]
fn rate(change: i64, duration_ns: u64) -> Option<i64> {
    (duration_ns > 0).then(|| (change as f64 * 1e9 / duration_ns as f64).round() as i64)
}

/// The sizes that grew.
pub(super) fn classes(growth: &HeapGrowth, verbose: bool, width: usize) -> Vec<Line> {
    if growth.classes.is_empty() {
        return Vec::new();
    }
    let listed = if verbose {
        growth.classes.len()
    } else {
        LISTED_CLASSES
    };
    let mut table = Table::new(vec![
        Column::number("sizes that grew").space(0),
        Column::number("chunks"),
        Column::number("change"),
        Column::number("bytes"),
        Column::number("a second").rank(1),
        Column::words("").rank(2),
    ]);
    let steps = growth.total_looks.saturating_sub(1);
    for class in growth.classes.iter().take(listed) {
        table.row(cells(class, growth.duration_ns, steps));
    }
    let mut lines = table.lines(width);
    if let Some(more @ 1..) = growth.classes.len().checked_sub(listed) {
        lines.push(Line::of(Tone::Faint, &format!("  {more} more sizes")));
    }
    lines
}

fn cells(class: &ClassGrowth, duration_ns: u64, steps: u64) -> Vec<Cell> {
    let rate = rate(class.delta_bytes, duration_ns)
        .map_or_else(|| "–".to_owned(), |rate| ByteDelta(rate).to_string());
    let often = if class.each_time {
        "each time".to_owned()
    } else {
        format!("{} of {steps} times", class.grew_times)
    };
    let chunks = match class.delta_chunks {
        0 => "0".to_owned(),
        1.. => format!("+{}", Exact(class.delta_chunks.unsigned_abs())),
        _ => format!("−{}", Exact(class.delta_chunks.unsigned_abs())),
    };
    vec![
        Cell::plain(chunk_sizes(class.from_bytes, class.to_bytes)),
        Cell::plain(Exact(class.chunks)),
        Cell::plain(chunks),
        Cell::of(
            tone(class.delta_bytes),
            &ByteDelta(class.delta_bytes).to_string(),
        ),
        Cell::plain(rate),
        Cell::of(Tone::Faint, &often),
    ]
}
