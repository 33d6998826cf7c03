//! Whether the allocator's account and the kernel's agree, and whether its figures add up.

use crate::event::Outcome;
use crate::report::AllocatorChecks;
use crate::report::InUseMeasure;
use crate::report::Report;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::units::ByteSize;
use crate::units::Exact;

use super::Paragraph;
use crate::render::style::Tone;
use crate::render::verdict;
use crate::render::words;

/// Differences listed unless all are asked for.
const LISTED_DIFFERENCES: usize = 3;

/// How the account compares with the calls that were traced, in all processes.
pub(in crate::render) fn checks(report: &Report, verbose: bool) -> Vec<Paragraph> {
    let told: Vec<(&SpaceReport, &AllocatorChecks)> = report
        .address_spaces
        .iter()
        .filter_map(|space| Some((space, space.allocator.as_ref()?)))
        // The program's own malloc keeps no count of its calls that could be compared.
        .filter(|(_, allocator)| {
            allocator.last.is_some() && allocator.in_use_is == InUseMeasure::Requested
        })
        .map(|(space, allocator)| (space, &allocator.checks))
        .collect();
    if told.is_empty() {
        return Vec::new();
    }
    let mut paragraphs = vec![comparison(&told)];
    paragraphs.extend(differences(&told, verbose));
    let (unclear, clear): (Vec<_>, Vec<_>) = told
        .into_iter()
        .filter(|(_, checks)| checks.sums_differing > 0)
        .partition(|(space, _)| may_have_stopped_inside(report, space));
    if let Some(text) = failed_sum(&clear) {
        let text = format!("malloc's sum did not hold {text}");
        paragraphs.push(Paragraph::of(Tone::Warning, "", text));
    }
    if let Some(text) = failed_sum(&unclear) {
        let text =
            format!("malloc's sum was open {text}: a thread may have been stopped inside malloc");
        paragraphs.push(Paragraph::of(Tone::Plain, "", text));
    }
    paragraphs
}

/// Whether a thread may have been stopped for good while it was inside the allocator: one of several when another ended
/// the process, or any when a signal did; and so in a forked child, for the threads that it has not.
fn may_have_stopped_inside(report: &Report, space: &SpaceReport) -> bool {
    let of_process = |space: &SpaceReport| {
        verdict::process_of(report, space).is_none_or(|process| {
            process.threads > 1 || !matches!(process.outcome, Some(Outcome::Exited(_)))
        })
    };
    let of_parent = match space.origin {
        SpaceOrigin::Forked(parent) => report.space(parent).is_none_or(of_process),
        SpaceOrigin::Exec | SpaceOrigin::Attached => false,
    };
    of_process(space) || of_parent
}

fn comparison(told: &[(&SpaceReport, &AllocatorChecks)]) -> Paragraph {
    let sum = |of: fn(&AllocatorChecks) -> u64| {
        told.iter()
            .map(|(_, checks)| of(checks))
            .fold(0, u64::saturating_add)
    };
    let made = sum(|checks| checks.made);
    let differing = sum(|checks| checks.differing);
    let times = words::count(made, "time", "times");
    let held = if sum(|checks| checks.sums_made) > 0 && sum(|checks| checks.sums_differing) == 0 {
        "; its sum held"
    } else {
        ""
    };
    let (tone, text) = match (made, differing) {
        (0, _) => (
            Tone::Plain,
            "not checked against malloc's own count: it was never read while all threads stood still"
                .to_owned(),
        ),
        (_, 0) => (
            Tone::Faint,
            format!("checked against malloc's own count {times}: equal{held}"),
        ),
        _ => (
            Tone::Warning,
            format!("checked against malloc's own count {times}: {differing} differed"),
        ),
    };
    Paragraph::of(tone, "", text)
}

fn differences(told: &[(&SpaceReport, &AllocatorChecks)], verbose: bool) -> Vec<Paragraph> {
    let all: Vec<_> = told
        .iter()
        .flat_map(|(_, checks)| &checks.differences)
        .collect();
    let listed = if verbose {
        all.len()
    } else {
        LISTED_DIFFERENCES
    };
    let mut paragraphs: Vec<Paragraph> = all
        .iter()
        .take(listed)
        .map(|difference| {
            let text = format!(
                "at {}, {}: malloc counted {}, traced {}",
                words::duration(difference.time_ns.0),
                difference.counter,
                Exact(difference.counted),
                Exact(difference.traced),
            );
            Paragraph::of(Tone::Plain, "  ", text)
        })
        .collect();
    let rest = all.len().saturating_sub(listed) as u64;
    if rest > 0 {
        let text = words::count(rest, "more difference", "more differences");
        paragraphs.push(Paragraph::of(Tone::Faint, "  ", text));
    }
    paragraphs
}

/// `1 of 2 times, by 8 B`; `None` of no failed sums.
fn failed_sum(failed: &[(&SpaceReport, &AllocatorChecks)]) -> Option<String> {
    let (_, first) = failed.first()?;
    let sum = |of: fn(&AllocatorChecks) -> u64| {
        failed
            .iter()
            .map(|(_, checks)| of(checks))
            .fold(0, u64::saturating_add)
    };
    let by = match first.first_sum_difference_bytes {
        Some(bytes) => format!(", by {}", ByteSize(bytes.unsigned_abs())),
        None => String::new(),
    };
    Some(format!(
        "{} of {}{by}",
        sum(|checks| checks.sums_differing),
        words::count(sum(|checks| checks.sums_made), "time", "times"),
    ))
}
