//! A judgement as Markdown: for a pull request's comment and a step's summary.

use std::fmt::Write;

use crate::render::words;
use crate::report::gate::Judgement;
use crate::report::gate::MetricOutcome;
use crate::report::gate::MetricUnit;
use crate::report::gate::PathChange;
use crate::report::gate::Verdict;

use super::text;
use super::value;

/// Rows that are written; GitHub takes a mebibyte for a step's summary.
const MOST_ROWS: usize = 200;
/// Call paths that are written.
const MOST_PATHS: usize = 20;

/// Writes a judgement.
#[must_use]
pub fn markdown(judgement: &Judgement) -> String {
    let mut out = String::new();
    let icon = match judgement.verdict {
        Verdict::Passed => "✅ passed",
        Verdict::Inconclusive => "⚠️ inconclusive",
        Verdict::Failed => "❌ failed",
    };
    let _ = writeln!(out, "### Heap: {icon}\n");
    let _ = writeln!(out, "{}\n", code(&judgement.command.join(" ")));
    if let Some(ending) = judgement.ending.as_ref().filter(|ending| !ending.holds) {
        let _ = writeln!(
            out,
            "The program **{}**, and should have {}.\n",
            text::how_it_ended(ending.found),
            text::how_it_should_have_ended(ending.expected)
        );
    }
    rows(&mut out, judgement);
    paths(&mut out, &judgement.call_paths);
    for note in &judgement.notes {
        let _ = writeln!(out, "> {}\n", escaped(note));
    }
    out
}

fn rows(out: &mut String, judgement: &Judgement) {
    let is_told = |outcome| !matches!(outcome, MetricOutcome::NotLimited);
    let told: Vec<_> = judgement
        .metrics
        .iter()
        .filter(|metric| is_told(metric.outcome))
        .collect();
    if told.is_empty() {
        return;
    }
    let _ = writeln!(out, "| metric | baseline | now | change | limit | |");
    let _ = writeln!(out, "| --- | ---: | ---: | ---: | --- | --- |");
    for metric in told.iter().take(MOST_ROWS) {
        let delta = metric.delta.map(|delta| {
            let share = value::change(metric.change);
            let delta = value::delta(metric.unit, delta);
            if share.is_empty() {
                delta
            } else {
                format!("{delta} ({share})")
            }
        });
        let outcome = value::outcome(metric.outcome);
        let _ = writeln!(
            out,
            "| {} | {} | {} | {} | {} | {} |",
            code(&metric.full_name()),
            value::or_dash(metric.unit, metric.baseline),
            value::or_dash(metric.unit, metric.value),
            delta.unwrap_or_default(),
            metric.limit.as_deref().map(code).unwrap_or_default(),
            if metric.fails() {
                format!("**{outcome}**")
            } else {
                outcome.to_owned()
            }
        );
    }
    if told.len() > MOST_ROWS {
        let _ = writeln!(out, "\n{} more", told.len() - MOST_ROWS);
    }
    out.push('\n');
}

/// Call paths that changed, folded away.
pub(super) fn paths(out: &mut String, changes: &[PathChange]) {
    if changes.is_empty() {
        return;
    }
    let _ = writeln!(
        out,
        "<details><summary>{}</summary>\n",
        words::count(
            changes.len() as u64,
            "call path changed",
            "call paths changed"
        )
    );
    let _ = writeln!(out, "| growth | calls | call path |\n| ---: | --- | --- |");
    for change in changes.iter().take(MOST_PATHS) {
        let _ = writeln!(
            out,
            "| {} | {} | {} |",
            value::delta(MetricUnit::Bytes, change.grown_delta),
            text::path_change(change),
            code(&change.path)
        );
    }
    let _ = writeln!(out, "\n</details>\n");
}

/// Text that means nothing to Markdown.
pub(super) fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in words::harmless(text).chars() {
        match character {
            '\\' | '`' | '*' | '_' | '{' | '}' | '[' | ']' | '(' | ')' | '#' | '+' | '!' | '|'
            | '~' | '@' => {
                out.push('\\');
                out.push(character);
            }
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '&' => out.push_str("&amp;"),
            other => out.push(other),
        }
    }
    out
}

/// Text as code, also within a table, where a bar ends the cell.
pub(super) fn code(text: &str) -> String {
    let text = words::harmless(text).replace('|', "\\|").replace('\n', " ");
    let longest = text
        .split(|c| c != '`')
        .map(str::len)
        .max()
        .unwrap_or_default();
    let fence = "`".repeat(longest + 1);
    if longest > 0 {
        format!("{fence} {text} {fence}")
    } else {
        format!("{fence}{text}{fence}")
    }
}
