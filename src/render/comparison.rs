//! A comparison as a table: allocators side by side, the first as the measure.

use super::TextOptions;
use super::style::Line;
use super::style::Tone;
use super::table::Cell;
use super::table::Column;
use super::table::Table;
use super::words;
use crate::event::Outcome;
use crate::report::Comparison;
use crate::report::Row;
use crate::report::RowUnit;
use crate::units::ByteSize;

/// Shows a comparison, a table of several if the line is too short for all allocators.
#[must_use]
pub fn comparison(comparison: &Comparison, options: TextOptions) -> String {
    let mut lines = vec![heading(comparison)];
    lines.push(Line::default());
    for group in groups(comparison, options.width) {
        // The columns' names are a row, as no two tables have the same.
        lines.extend(
            table(comparison, &group)
                .lines(options.width)
                .into_iter()
                .skip(1),
        );
        lines.push(Line::default());
    }
    lines.extend(remarks(comparison).iter().flat_map(|remark| {
        words::wrap(remark, options.width)
            .into_iter()
            .map(|line| Line::of(Tone::Plain, &line))
    }));
    let mut text = String::new();
    for line in lines {
        text.push_str(line.paint(options.color).trim_end());
        text.push('\n');
    }
    text
}

fn heading(comparison: &Comparison) -> Line {
    let program = comparison.command.first().map_or("", String::as_str);
    let mut line = Line::of(Tone::Strong, &words::command(program, &comparison.command));
    if comparison.runs > 1 {
        line.push(
            Tone::Faint,
            &format!("  medians of {} runs each", comparison.runs),
        );
    }
    line
}

/// Columns that fit beside each other; the first is in each group, as all are measured by it.
fn groups(comparison: &Comparison, width: usize) -> Vec<Vec<usize>> {
    const NAMES: usize = 14;
    const VALUE: usize = 20;
    let fitting = (width.saturating_sub(NAMES) / VALUE).max(2);
    let others: Vec<usize> = (1..comparison.columns.len()).collect();
    if others.is_empty() {
        return vec![vec![0]];
    }
    others
        .chunks(fitting - 1)
        .map(|chunk| [&[0], chunk].concat())
        .collect()
}

fn table(comparison: &Comparison, group: &[usize]) -> Table {
    let mut columns = vec![Column::words("").space(0)];
    columns.extend(group.iter().map(|_| Column::number("").space(3)));
    let mut table = Table::new(columns);
    let names = group
        .iter()
        .map(|&index| Cell::of(Tone::Strong, &short_name(&comparison.columns[index].name)));
    table.row([Cell::plain("")].into_iter().chain(names).collect());
    for row in &comparison.rows {
        let mut cells = vec![Cell::plain(row.name.replace('_', " "))];
        cells.extend(group.iter().map(|&index| cell(row, index)));
        table.row(cells);
    }
    table
}

fn short_name(name: &str) -> String {
    words::cut(words::program(name).trim_end_matches(".so"), 18)
}

fn cell(row: &Row, index: usize) -> Cell {
    let Some(value) = row.values.get(index).copied().flatten() else {
        return Cell::of(Tone::Faint, "–");
    };
    let text = match row.unit {
        RowUnit::Bytes => ByteSize(value).to_string(),
        RowUnit::Count => value.to_string(),
        RowUnit::Nanoseconds => words::duration(value),
    };
    let first = row.values.first().copied().flatten();
    match first.filter(|&first| index > 0 && first > 0) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "shown with two digits behind the point"
        )]
        Some(first) => Cell::plain(format!("{text}  {:.2}×", value as f64 / first as f64)),
        None if index > 0 => Cell::plain(format!("{text}       ")),
        None => Cell::plain(text),
    }
}

/// What a reader must know before believing the numbers.
fn remarks(comparison: &Comparison) -> Vec<String> {
    let mut remarks = Vec::new();
    for column in &comparison.columns {
        if !column.same_result {
            remarks.push(format!(
                "{}: output or ending differ from the first run's; it ended {}",
                column.name,
                ending(column.outcome)
            ));
        }
        match column.heap_errors {
            Some(errors) if errors > 0 => remarks.push(format!(
                "{}: {} found; `breaktrace run --allocator bundled` tells which",
                column.name,
                words::count(errors, "heap error", "heap errors")
            )),
            _ => {}
        }
        if column.differences > 0 {
            remarks.push(format!(
                "{}: {} between what was traced and what /proc or the allocator says",
                column.name,
                words::count(column.differences, "difference", "differences")
            ));
        }
    }
    if remarks.is_empty() {
        remarks.push("output and ending were the same in all runs".to_owned());
    }
    remarks.push(
        "time includes tracing and depends, like resident memory, on the machine's load".to_owned(),
    );
    remarks
}

fn ending(outcome: Option<Outcome>) -> String {
    match outcome {
        Some(Outcome::Exited(code)) => format!("with status {code}"),
        Some(Outcome::Killed { signal, .. }) => format!("by {}", words::signal(signal)),
        Some(Outcome::Detached | Outcome::Vanished) | None => "unseen".to_owned(),
    }
}
