//! A heap looked at from outside, for people: what follows first, then what the memory is used for, then the details.

mod composition;
mod details;
mod growth;
mod section;
#[cfg(test)]
mod tests;

pub use growth::heap_look;
pub(super) use section::section;

use crate::event::CheckOutcome;
use crate::event::HeapExamination;
use crate::report::GrowthTrend;
use crate::report::HeapConfidence;
use crate::report::HeapDocument;
use crate::report::HeapVerdict;
use crate::units::ByteSize;

use super::TextOptions;
use super::page::Page;
use super::style::Line;
use super::style::Tone;
use super::words;

/// Columns of a command line.
const LONGEST_COMMAND: usize = 60;

/// Writes what was found; ends with a newline.
#[must_use]
pub fn heap(document: &HeapDocument, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut page = Page::new(options);
    headlines(&mut page, document);
    let examination = &document.examination;
    if let Some(growth) = &document.growth {
        page.section(growth::table(growth, page.width));
        page.section(growth::classes(growth, page.verbose, page.width));
    }
    page.section(composition::lines(&document.sums, page.width));
    for heap in &examination.heaps {
        page.section(details::arenas(heap, page.verbose, page.width));
        page.section(details::sizes(heap, page.verbose, page.width));
    }
    push_entries(&mut page, &entries(document, options.verbose));
    page.paint(options.color)
}

/// What tables do not show, each with the word that stands at the left edge.
fn entries(document: &HeapDocument, verbose: bool) -> Vec<(&'static str, String)> {
    let examination = &document.examination;
    let mut entries = Vec::new();
    entries.extend(composition::obtained(&document.sums).map(|text| ("obtained", text)));
    for heap in &examination.heaps {
        entries.extend(details::entries(heap, verbose));
    }
    for fact in &document.verdict.evidence {
        entries.push(("also", fact.clone()));
    }
    for advice in &document.verdict.advice {
        entries.push(("try", advice.clone()));
    }
    if !examination.heaps.is_empty() {
        entries.push(("checked", checked(&document.verdict, examination)));
        if verbose {
            entries.extend(every_check(examination));
        }
    } else {
        entries.extend(
            document
                .verdict
                .doubts
                .iter()
                .map(|doubt| ("unknown", doubt.clone())),
        );
    }
    entries.push(("cost", cost(examination)));
    entries
}

/// Entries under each other after an empty line; the same word at the left edge stands there once.
fn push_entries(page: &mut Page, entries: &[(&'static str, String)]) {
    page.lines.push(Line::default());
    let mut last = "";
    for (lead, text) in entries {
        let word = if *lead == last { "" } else { lead };
        page.entry(Tone::Plain, &format!("{word:<10}"), text);
        last = lead;
    }
}

fn headlines(page: &mut Page, document: &HeapDocument) {
    let verdict = &document.verdict;
    match &document.growth {
        Some(growth) if growth.trend != GrowthTrend::Level => {
            page.paragraph(Tone::Strong, &format!("breaktrace: {}", growth.summary));
            page.paragraph(Tone::Strong, &verdict.summary);
        }
        Some(growth) => {
            page.paragraph(Tone::Strong, &format!("breaktrace: {}", verdict.summary));
            page.paragraph(Tone::Plain, &growth.summary);
        }
        None => page.paragraph(Tone::Strong, &format!("breaktrace: {}", verdict.summary)),
    }
    let line = target(document);
    page.paragraph(Tone::Plain, &line);
}

/// What was looked at: `python3 app.py (pid 4242), 3 threads, 107 MiB in memory; glibc 2.36`.
fn target(document: &HeapDocument) -> String {
    let target = &document.target;
    let mut parts = Vec::new();
    let name = target
        .program
        .as_ref()
        .map(|program| words::command(program, &target.arguments))
        // A line of it tells which program it is.
        .map(|command| words::cut(&command, LONGEST_COMMAND));
    let what = match (&target.core, name, target.pid) {
        (Some(core), Some(name), _) => format!("{name}, as in the core file {core}"),
        (Some(core), None, _) => format!("core file {core}"),
        (None, Some(name), Some(pid)) => format!("{name} (pid {pid})"),
        (None, Some(name), None) => name,
        (None, None, Some(pid)) => format!("process {pid}"),
        (None, None, None) => "unknown program".to_owned(),
    };
    parts.push(what);
    parts.extend(
        target
            .threads
            .map(|threads| words::count(threads, "thread", "threads")),
    );
    parts.extend(
        document
            .memory
            .map(|memory| format!("{} in memory", ByteSize(memory.resident_bytes))),
    );
    let glibc: Vec<String> = document
        .examination
        .heaps
        .iter()
        .map(|heap| match &heap.version {
            Some(version) => format!("glibc {version}"),
            None => "glibc".to_owned(),
        })
        .collect();
    let malloc = if glibc.is_empty() {
        String::new()
    } else {
        format!("; {}", glibc.join(" and "))
    };
    format!("{}{malloc}", parts.join(", "))
}

/// How far the figures can be relied on.
fn checked(verdict: &HeapVerdict, examination: &HeapExamination) -> String {
    let checks = || examination.heaps.iter().flat_map(|heap| &heap.checks);
    let total = checks().count();
    let hold = checks()
        .filter(|check| check.outcome == CheckOutcome::Holds)
        .count();
    let sum = match verdict.confidence {
        HeapConfidence::Nothing => "nothing could be checked".to_owned(),
        HeapConfidence::AllHold if examination.still => {
            format!("all {total} checks hold, and the program stood still: figures are exact")
        }
        HeapConfidence::AllHold => {
            format!("all {total} checks hold: chunks add up to what the arenas obtained")
        }
        HeapConfidence::Moving => {
            format!("{hold} of {total} checks hold, the program ran meanwhile")
        }
        HeapConfidence::Partly | HeapConfidence::Doubtful => {
            format!("{hold} of {total} checks hold")
        }
    };
    if verdict.doubts.is_empty() {
        sum
    } else {
        format!("{sum}; {}", verdict.doubts.join("; "))
    }
}

fn every_check(examination: &HeapExamination) -> Vec<(&'static str, String)> {
    let checks = examination.heaps.iter().flat_map(|heap| &heap.checks);
    checks
        .map(|check| {
            let outcome = match check.outcome {
                CheckOutcome::Holds => "holds",
                CheckOutcome::Fails => "fails",
                CheckOutcome::Moving => "moved",
                CheckOutcome::Unknown => "unknown",
            };
            let detail = check
                .detail
                .as_ref()
                .map(|detail| format!(": {detail}"))
                .unwrap_or_default();
            ("checked", format!("{outcome}  {}{detail}", check.what))
        })
        .collect()
}

fn cost(examination: &HeapExamination) -> String {
    let cost = &examination.cost;
    let stood = match cost.stopped_ns {
        Some(stopped) => format!("; the program stood still for {}", words::duration(stopped)),
        None => String::new(),
    };
    format!(
        "{} read in {}{stood}",
        ByteSize(cost.read_bytes),
        words::duration(cost.total_ns)
    )
}
