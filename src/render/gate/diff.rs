//! What changed between two recordings, as text and as Markdown.

use std::fmt::Write;

use crate::render::TextOptions;
use crate::render::explanation;
use crate::render::page::Page;
use crate::render::style::Tone;
use crate::render::table::Cell;
use crate::render::table::Column;
use crate::render::table::Table;
use crate::render::words;
use crate::report::gate::Better;
use crate::report::gate::MetricChange;
use crate::report::gate::MetricUnit;
use crate::report::gate::RecordingDiff;
use crate::report::gate::Side;
use crate::report::gate::StepChange;
use crate::report::gate::StepChangeKind;

use super::markdown;
use super::text;
use super::value;

/// Steps that are shown without `-v`.
const FEW_STEPS: usize = 10;

/// Shows what changed; `verbose` shows what did not as well.
#[must_use]
pub fn diff(diff: &RecordingDiff, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut page = Page::new(options);
    page.entry(Tone::Strong, "before  ", &side(&diff.before));
    page.entry(Tone::Strong, "after   ", &side(&diff.after));
    for difference in &diff.differences {
        page.entry(Tone::Strong, "differs ", difference);
    }
    page.push(Tone::Plain, "");
    table(&mut page, diff);
    text::paths(&mut page, &diff.call_paths);
    steps(&mut page, diff);
    for note in &diff.notes {
        page.entry(Tone::Faint, "note: ", note);
    }
    for (name, side) in [("before", &diff.before), ("after", &diff.after)] {
        if !side.has_paths {
            page.entry(
                Tone::Faint,
                "note: ",
                &format!("{name} has no call stacks, so call paths are not compared"),
            );
        }
    }
    page.paint(options.color)
}

fn side(side: &Side) -> String {
    let program = side.command.first().map_or("", String::as_str);
    let mut words = words::command(program, &side.command);
    if let Some(file) = &side.file {
        words = format!("{file}: {words}");
    }
    if side.runs > 1 {
        let _ = write!(words, ", {} runs", side.runs);
    }
    if side.allocator != "system" {
        let _ = write!(words, ", malloc: {}", side.allocator);
    }
    let _ = write!(words, ", {}", text::how_it_ended(side.outcome));
    words
}

/// Largest relative change first; what changed only in itself (time) last.
fn sorted(diff: &RecordingDiff, verbose: bool) -> Vec<&MetricChange> {
    diff.metrics
        .iter()
        .filter(|change| verbose || change.before != change.after)
        // Sizes and times that only jitter are no news.
        .filter(|change| {
            verbose
                || change.repeatable
                || change.unit != MetricUnit::Nanoseconds
                    && change.change.is_none_or(|share| share.abs() >= 0.1)
        })
        .collect()
}

fn tone(change: &MetricChange) -> Tone {
    match change.delta {
        Some(delta) if delta > 0 && change.better == Better::Lower && change.repeatable => {
            Tone::Growth
        }
        Some(delta) if delta < 0 && change.better == Better::Lower && change.repeatable => {
            Tone::Shrinkage
        }
        _ => Tone::Plain,
    }
}

fn full_name(change: &MetricChange) -> String {
    match &change.program {
        Some(program) => format!("{program}:{}", change.metric),
        None => change.metric.clone(),
    }
}

fn table(page: &mut Page, diff: &RecordingDiff) {
    let changes = sorted(diff, page.verbose);
    if changes.is_empty() {
        page.push(Tone::Plain, "no figure changed (-v shows them)");
        page.push(Tone::Plain, "");
        return;
    }
    let mut table = Table::new(vec![
        Column::words("metric").space(0),
        Column::number("before"),
        Column::number("after"),
        Column::number("change"),
        Column::number("").space(1),
        Column::words("").space(2).rank(1),
    ]);
    for change in changes {
        let tone = tone(change);
        let delta = change.delta.map(|delta| value::delta(change.unit, delta));
        table.row(vec![
            Cell::of(tone, &full_name(change)),
            Cell::plain(value::or_dash(change.unit, change.before)),
            Cell::plain(value::or_dash(change.unit, change.after)),
            Cell::of(tone, &delta.unwrap_or_default()),
            Cell::plain(value::change(change.change)),
            Cell::of(
                Tone::Faint,
                if change.repeatable { "" } else { "(advisory)" },
            ),
        ]);
    }
    page.lines.extend(table.lines(page.width));
    let same = diff
        .metrics
        .iter()
        .filter(|change| change.before == change.after)
        .count();
    if !page.verbose && same > 0 {
        page.push(
            Tone::Faint,
            &format!("{same} figures did not change (-v shows them)"),
        );
    }
    page.push(Tone::Plain, "");
}

fn steps(page: &mut Page, diff: &RecordingDiff) {
    if diff.steps.is_empty() {
        return;
    }
    page.push(Tone::Strong, "moves of the break that only one of them has");
    let most = if page.verbose { usize::MAX } else { FEW_STEPS };
    for step in diff.steps.iter().take(most) {
        let sign = sign(step.kind);
        let delta = value::delta(MetricUnit::Bytes, step.delta_bytes);
        page.entry(
            Tone::Plain,
            &format!("{sign} #{:<5} {delta:>10}  ", step.number),
            &cause(step),
        );
    }
    let rest = diff.steps.len().saturating_sub(most) as u64 + diff.steps_left_out;
    if rest > 0 {
        page.push(Tone::Faint, &format!("  and {rest} more"));
    }
    page.push(Tone::Plain, "");
}

fn sign(kind: StepChangeKind) -> char {
    match kind {
        StepChangeKind::Came => '+',
        StepChangeKind::Went => '−',
    }
}

fn cause(step: &StepChange) -> String {
    let sum = step
        .explanation
        .as_ref()
        .map(|explanation| explanation::sum(step.delta_bytes, explanation));
    match (&step.path, sum) {
        (Some(path), Some(sum)) => format!("{path}; {sum}"),
        (Some(path), None) => path.clone(),
        (None, Some(sum)) => sum,
        (None, None) => String::new(),
    }
}

/// Writes what changed as Markdown.
#[must_use]
pub fn diff_markdown(diff: &RecordingDiff) -> String {
    let mut out = String::from("### Heap: what changed\n\n");
    let _ = writeln!(out, "- before: {}", markdown::code(&side(&diff.before)));
    let _ = writeln!(out, "- after: {}", markdown::code(&side(&diff.after)));
    for difference in &diff.differences {
        let _ = writeln!(out, "- {}", markdown::escaped(difference));
    }
    out.push('\n');
    let changes = sorted(diff, false);
    if changes.is_empty() {
        out.push_str("No figure changed.\n\n");
    } else {
        out.push_str("| metric | before | after | change |\n| --- | ---: | ---: | ---: |\n");
        for change in changes {
            let delta = change.delta.map(|delta| value::delta(change.unit, delta));
            let share = value::change(change.change);
            let _ = writeln!(
                out,
                "| {} | {} | {} | {}{} |",
                markdown::code(&full_name(change)),
                value::or_dash(change.unit, change.before),
                value::or_dash(change.unit, change.after),
                delta.unwrap_or_default(),
                if share.is_empty() {
                    String::new()
                } else {
                    format!(" ({share})")
                }
            );
        }
        out.push('\n');
    }
    markdown::paths(&mut out, &diff.call_paths);
    if !diff.steps.is_empty() {
        let _ = writeln!(
            out,
            "<details><summary>{}</summary>\n\n| | number | size | cause |\n| --- | ---: | ---: | --- |",
            words::count(
                diff.steps.len() as u64,
                "move of the break differs",
                "moves of the break differ"
            )
        );
        for step in diff.steps.iter().take(FEW_STEPS * 3) {
            let _ = writeln!(
                out,
                "| {} | {} | {} | {} |",
                sign(step.kind),
                step.number,
                value::delta(MetricUnit::Bytes, step.delta_bytes),
                markdown::code(&cause(step))
            );
        }
        out.push_str("\n</details>\n\n");
    }
    for note in &diff.notes {
        let _ = writeln!(out, "> {}\n", markdown::escaped(note));
    }
    out
}
