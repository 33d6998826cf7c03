//! A judgement as text.

use crate::event::Outcome;
use crate::render::TextOptions;
use crate::render::page::Page;
use crate::render::style::Tone;
use crate::render::table::Cell;
use crate::render::table::Column;
use crate::render::table::Table;
use crate::render::words;
use crate::report::gate::JudgedMetric;
use crate::report::gate::Judgement;
use crate::report::gate::Metric;
use crate::report::gate::MetricOutcome;
use crate::report::gate::MetricUnit;
use crate::report::gate::PathChange;
use crate::report::gate::Verdict;

use super::value;

/// Call paths that are shown without `-v`.
const FEW_PATHS: usize = 6;

/// Shows a judgement: what fails first, what is as it was in one line. `verbose` shows all metrics.
#[must_use]
pub fn judgement(judgement: &Judgement, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut page = Page::new(options);
    heading(&mut page, judgement);
    table(&mut page, judgement);
    paths(&mut page, &judgement.call_paths);
    for note in &judgement.notes {
        page.entry(Tone::Faint, "note: ", note);
    }
    verdict(&mut page, judgement);
    page.paint(options.color)
}

fn heading(page: &mut Page, judgement: &Judgement) {
    let program = judgement.command.first().map_or("", String::as_str);
    let command = words::command(program, &judgement.command);
    let runs = match (judgement.runs, judgement.is_repeatable) {
        (1, _) => "1 run".to_owned(),
        (runs, Some(true)) => format!("{runs} runs, all alike"),
        (runs, _) => format!("{runs} runs, medians"),
    };
    let against = match judgement.baseline_runs {
        Some(1) => "against a baseline of 1 run".to_owned(),
        Some(runs) => format!("against a baseline of {runs} runs"),
        None => "against limits alone".to_owned(),
    };
    page.push(Tone::Strong, &words::cut(&command, page.width));
    page.push(Tone::Faint, &format!("{runs}, {against}"));
    page.push(Tone::Plain, "");
}

fn is_shown(metric: &JudgedMetric, verbose: bool) -> bool {
    verbose
        || match metric.outcome {
            MetricOutcome::Fine | MetricOutcome::New => {
                metric.baseline.is_none() && metric.most.is_some()
            }
            // What changes from run to run is no news.
            MetricOutcome::NotLimited => {
                metric.repeatable && metric.delta.is_some_and(|delta| delta != 0)
            }
            _ => true,
        }
}

fn table(page: &mut Page, judgement: &Judgement) {
    let has_baseline = judgement.baseline_runs.is_some();
    let mut columns = vec![Column::words("metric").space(0)];
    if has_baseline {
        columns.push(Column::number("baseline"));
    }
    columns.push(Column::number("now"));
    if has_baseline {
        columns.push(Column::number("change"));
        columns.push(Column::number("").space(1).rank(2));
    }
    columns.push(Column::words("limit").space(3).rank(1).cuttable());
    columns.push(Column::words("").space(2));
    let mut table = Table::new(columns);
    let mut unchanged = 0;
    let mut rows = 0;
    for metric in &judgement.metrics {
        if !is_shown(metric, page.verbose) {
            unchanged += usize::from(metric.most.is_some());
            continue;
        }
        rows += 1;
        let tone = tone(metric.outcome);
        let mut cells = vec![Cell::of(tone, &metric.full_name())];
        if has_baseline {
            cells.push(Cell::plain(value::or_dash(metric.unit, metric.baseline)));
        }
        cells.push(Cell::plain(value::or_dash(metric.unit, metric.value)));
        if has_baseline {
            let delta = metric.delta.map(|delta| value::delta(metric.unit, delta));
            cells.push(Cell::plain(delta.unwrap_or_default()));
            cells.push(Cell::plain(value::change(metric.change)));
        }
        let limit =
            metric
                .limit
                .as_deref()
                .unwrap_or(if metric.repeatable { "" } else { "(advisory)" });
        cells.push(Cell::of(Tone::Faint, limit));
        cells.push(Cell::of(tone, value::outcome(metric.outcome)));
        table.row(cells);
    }
    if rows > 0 {
        page.lines.extend(table.lines(page.width));
    }
    if unchanged > 0 {
        let figures = if unchanged == 1 {
            "figure is"
        } else {
            "figures are"
        };
        let other = if rows > 0 { "other " } else { "" };
        let text = if has_baseline {
            format!("{unchanged} {other}limited {figures} as in the baseline (-v shows them)")
        } else {
            format!("{unchanged} {other}limited {figures} within their limits (-v shows them)")
        };
        page.push(Tone::Faint, &text);
    }
    page.push(Tone::Plain, "");
}

fn tone(outcome: MetricOutcome) -> Tone {
    match outcome {
        MetricOutcome::Regressed | MetricOutcome::Missing => Tone::Warning,
        MetricOutcome::Inconclusive => Tone::Strong,
        MetricOutcome::NotLimited | MetricOutcome::New => Tone::Faint,
        MetricOutcome::Tolerated | MetricOutcome::Improved | MetricOutcome::Fine => Tone::Plain,
    }
}

/// The call paths that changed; nothing where none did.
pub(super) fn paths(page: &mut Page, changes: &[PathChange]) {
    if changes.is_empty() {
        return;
    }
    page.push(Tone::Strong, "call paths that changed");
    let most = if page.verbose { usize::MAX } else { FEW_PATHS };
    for change in changes.iter().take(most) {
        let what = path_change(change);
        let delta = value::delta(MetricUnit::Bytes, change.grown_delta);
        page.entry(
            Tone::Plain,
            &format!("{delta:>11}  "),
            &format!("{}  ({what})", change.path),
        );
    }
    if changes.len() > most {
        let rest = changes.len() - most;
        page.push(
            Tone::Faint,
            &format!("             and {rest} more (-v shows them)"),
        );
    }
    page.push(Tone::Plain, "");
}

/// `new, 40 calls`, `12 → 40 calls`.
pub(super) fn path_change(change: &PathChange) -> String {
    let calls = |calls| words::count(calls, "call", "calls");
    match (&change.before, &change.after) {
        (None, Some(after)) => format!("new, {}", calls(after.grow_calls)),
        (Some(before), None) => format!("gone, was {}", calls(before.grow_calls)),
        (Some(before), Some(after)) if before.grow_calls != after.grow_calls => {
            format!("{} → {}", before.grow_calls, calls(after.grow_calls))
        }
        (_, Some(after)) => calls(after.grow_calls),
        (None, None) => String::new(),
    }
}

fn verdict(page: &mut Page, judgement: &Judgement) {
    if let Some(ending) = judgement.ending.as_ref().filter(|ending| !ending.holds) {
        page.entry(
            Tone::Warning,
            "FAILED: ",
            &format!(
                "the program {}, and should have {}",
                how_it_ended(ending.found),
                how_it_should_have_ended(ending.expected)
            ),
        );
    }
    let failing = judgement.failing().count();
    let limited = judgement.limited();
    match judgement.verdict {
        Verdict::Failed if failing == 0 => {}
        Verdict::Failed => {
            let what = if failing == 1 { "is" } else { "are" };
            page.entry(
                Tone::Warning,
                "FAILED: ",
                &format!("{failing} of {} {what} beyond the limit", figures(limited)),
            );
        }
        Verdict::Inconclusive => page.entry(
            Tone::Strong,
            "INCONCLUSIVE: ",
            "medians are beyond their limits, but the runs overlap with what is allowed; more runs (--runs) may tell",
        ),
        Verdict::Passed => {
            let text = match limited {
                1 => "the one limited figure is within its limit".to_owned(),
                limited => format!("all {limited} limited figures are within their limits"),
            };
            page.entry(Tone::Strong, "passed: ", &text);
        }
    }
}

fn figures(number: usize) -> String {
    words::count(number as u64, "limited figure", "limited figures")
}

/// `exited with 1`.
#[must_use]
pub fn how_it_ended(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("exited with {code}"),
        Outcome::Killed { signal, .. } => format!("was killed by {}", words::signal(signal)),
        Outcome::Detached => "was let go".to_owned(),
        Outcome::Vanished => "ended unseen".to_owned(),
    }
}

pub(super) fn how_it_should_have_ended(outcome: Outcome) -> String {
    match outcome {
        Outcome::Killed { signal, .. } => format!("been killed by {}", words::signal(signal)),
        Outcome::Detached => "been let go".to_owned(),
        other => how_it_ended(other),
    }
}

/// What an update of a baseline changes: old and new value by the metric's name.
#[must_use]
pub fn update(changes: &[(String, Option<u64>, Option<u64>)], options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut page = Page::new(options);
    if changes.is_empty() {
        page.push(Tone::Plain, "nothing changed");
        return page.paint(options.color);
    }
    let mut table = Table::new(vec![
        Column::words("metric").space(0),
        Column::number("old"),
        Column::words("").space(1),
        Column::number("new").space(1),
        Column::number("change"),
    ]);
    for (name, old, new) in changes {
        let metric = Metric::named(name.rsplit(':').next().unwrap_or(name));
        let unit = metric.map_or(MetricUnit::Count, |metric| metric.unit);
        let delta = old
            .zip(*new)
            .and_then(|(old, new)| i64::try_from(i128::from(new) - i128::from(old)).ok());
        table.row(vec![
            Cell::plain(name),
            Cell::plain(value::or_dash(unit, *old)),
            Cell::plain("→"),
            Cell::plain(value::or_dash(unit, *new)),
            Cell::plain(
                delta
                    .map(|delta| value::delta(unit, delta))
                    .unwrap_or_default(),
            ),
        ]);
    }
    page.lines.extend(table.lines(page.width));
    page.paint(options.color)
}
