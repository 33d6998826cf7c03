//! A judgement as JUnit XML: a test case for each limited metric, as GitLab, Jenkins and others show them.

use std::fmt::Write;

use crate::render::words;
use crate::report::gate::JudgedMetric;
use crate::report::gate::Judgement;
use crate::report::gate::MetricOutcome;
use crate::report::gate::Verdict;

use super::text;
use super::value;

/// Writes a judgement.
#[must_use]
pub fn junit(judgement: &Judgement) -> String {
    let limited: Vec<&JudgedMetric> = judgement
        .metrics
        .iter()
        .filter(|metric| metric.most.is_some() || metric.fails())
        .collect();
    let ending_fails = judgement
        .ending
        .as_ref()
        .is_some_and(|ending| !ending.holds);
    let cases = limited.len() + usize::from(judgement.ending.is_some());
    let failures = judgement.failing().count() + usize::from(ending_fails);
    let skipped = limited
        .iter()
        .filter(|metric| metric.outcome == MetricOutcome::Inconclusive)
        .count();
    let suite = escaped(&words::harmless(&judgement.command.join(" ")));
    let mut out = String::from("<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n");
    let _ = writeln!(
        out,
        "<testsuites name=\"breaktrace\" tests=\"{cases}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\">"
    );
    let _ = writeln!(
        out,
        "  <testsuite name=\"breaktrace: {suite}\" tests=\"{cases}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\">"
    );
    if let Some(ending) = &judgement.ending {
        let message = format!(
            "the program {}, and should have {}",
            text::how_it_ended(ending.found),
            text::how_it_should_have_ended(ending.expected)
        );
        let failure = (!ending.holds).then_some(message);
        case(&mut out, "ending", "failure", failure.as_deref());
    }
    for metric in limited {
        let sentence = value::sentence(metric);
        let (element, message) = if metric.fails() {
            ("failure", Some(sentence.as_str()))
        } else if metric.outcome == MetricOutcome::Inconclusive {
            ("skipped", Some(sentence.as_str()))
        } else {
            ("failure", None)
        };
        case(&mut out, &metric.full_name(), element, message);
    }
    if judgement.verdict == Verdict::Failed {
        let mut paths = String::new();
        for change in &judgement.call_paths {
            let _ = writeln!(
                paths,
                "{}  {}  ({})",
                value::delta(crate::report::gate::MetricUnit::Bytes, change.grown_delta),
                words::harmless(&change.path),
                text::path_change(change)
            );
        }
        if !paths.is_empty() {
            let _ = writeln!(out, "    <system-out>{}</system-out>", escaped(&paths));
        }
    }
    out.push_str("  </testsuite>\n</testsuites>\n");
    out
}

fn case(out: &mut String, name: &str, element: &str, message: Option<&str>) {
    let name = escaped(name);
    let _ = match message {
        None => writeln!(
            out,
            "    <testcase classname=\"breaktrace\" name=\"{name}\"/>"
        ),
        Some(message) => {
            let message = escaped(message);
            writeln!(
                out,
                "    <testcase classname=\"breaktrace\" name=\"{name}\">\n      <{element} message=\"{message}\"/>\n    </testcase>"
            )
        }
    };
}

/// Text that XML 1.0 takes; control characters are no part of it, and were made visible before.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&apos;"),
            '\n' => out.push('\n'),
            other => out.push_str(&words::harmless(other.encode_utf8(&mut [0; 4]))),
        }
    }
    // Not characters, by the definition of XML.
    out.replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}
