//! Annotations for GitHub Actions: workflow commands on standard output.
//!
//! GitHub shows ten errors of a step, and fifty of a job; what is more than nine is told in one.

use std::fmt::Write;

use crate::render::words;
use crate::report::gate::Judgement;
use crate::report::gate::MetricOutcome;

use super::text;
use super::value;

/// Annotations of one kind that a step can show, less the one that sums up the rest.
const MOST: usize = 9;

/// Writes a line for each failure and each warning.
#[must_use]
pub fn annotations(judgement: &Judgement) -> String {
    let mut errors = Vec::new();
    if let Some(ending) = judgement.ending.as_ref().filter(|ending| !ending.holds) {
        errors.push((
            "program".to_owned(),
            format!(
                "the program {}, and should have {}",
                text::how_it_ended(ending.found),
                text::how_it_should_have_ended(ending.expected)
            ),
        ));
    }
    // The paths explain the first figure; each of the others would repeat them.
    let mut why = judgement
        .call_paths
        .iter()
        .find(|change| change.grown_delta > 0)
        .map(|change| {
            format!(
                "\nmost of it: {} by {} ({})",
                value::delta(crate::report::gate::MetricUnit::Bytes, change.grown_delta),
                change.path,
                text::path_change(change)
            )
        });
    for metric in judgement.failing() {
        let why = why.take().unwrap_or_default();
        errors.push((
            format!("heap: {}", metric.full_name()),
            format!("{}{why}", value::sentence(metric)),
        ));
    }
    let warnings: Vec<(String, String)> = judgement
        .metrics
        .iter()
        .filter(|metric| metric.outcome == MetricOutcome::Inconclusive)
        .map(|metric| {
            (
                format!("heap: {}", metric.full_name()),
                format!(
                    "{} (inconclusive: the runs overlap)",
                    value::sentence(metric)
                ),
            )
        })
        .collect();
    let mut out = String::new();
    write(&mut out, "error", &errors);
    write(&mut out, "warning", &warnings);
    out
}

fn write(out: &mut String, level: &str, annotations: &[(String, String)]) {
    for (title, message) in annotations.iter().take(MOST) {
        line(out, level, title, message);
    }
    if let Some(rest) = annotations.len().checked_sub(MOST).filter(|rest| *rest > 0) {
        line(out, level, "heap", &format!("and {rest} more figures"));
    }
}

fn line(out: &mut String, level: &str, title: &str, message: &str) {
    let message: Vec<String> = message.lines().map(words::harmless).collect();
    let _ = writeln!(
        out,
        "::{level} title={}::{}",
        property(&words::harmless(title)),
        data(&message.join("\n"))
    );
}

/// As GitHub's toolkit writes the text of a command (`escapeData`).
fn data(text: &str) -> String {
    text.replace('%', "%25")
        .replace('\r', "%0D")
        .replace('\n', "%0A")
}

/// As it writes properties (`escapeProperty`).
fn property(text: &str) -> String {
    data(text).replace(':', "%3A").replace(',', "%2C")
}
