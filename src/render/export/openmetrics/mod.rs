//! The state at the end as metrics, for Prometheus and whatever reads its formats.
//!
//! Two dialects of the same families. OpenMetrics 1.0 (the text format that a Prometheus server asks for) knows units and
//! info metrics and has an end mark; it names a counter's family without `_total`. The older text format 0.0.4 is what
//! node_exporter reads from `*.prom` files (its textfile collector): it refuses types that it does not know, and loses type
//! and help of a counter whose family is named the new way. Neither gets timestamps, which that collector refuses.

mod families;
mod heaps;
#[cfg(test)]
mod tests;

use self::families::Family;
use self::families::Kind;
use crate::render::words;
use crate::report::Report;

/// Longest value of a label, in characters: names of template instances can fill pages.
const LONGEST_LABEL: usize = 256;

/// OpenMetrics 1.0, with its end mark.
pub(in crate::render) fn openmetrics(report: &Report) -> Vec<u8> {
    let mut out = String::new();
    for family in families::of(report) {
        push_family(&mut out, &family, Dialect::OpenMetrics);
    }
    out.push_str("# EOF\n");
    out.into_bytes()
}

/// The Prometheus text format 0.0.4.
pub(in crate::render) fn prometheus(report: &Report) -> Vec<u8> {
    let mut out = String::new();
    for family in families::of(report) {
        push_family(&mut out, &family, Dialect::Prometheus);
    }
    out.into_bytes()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Dialect {
    OpenMetrics,
    Prometheus,
}

fn push_family(out: &mut String, family: &Family, dialect: Dialect) {
    // What is not known has no samples, and a family without samples says nothing.
    if family.samples.is_empty() {
        return;
    }
    let name = match dialect {
        Dialect::OpenMetrics => family.name.clone(),
        Dialect::Prometheus => sample_name(family),
    };
    // Help texts are ours, of one line each, and have nothing to escape: a test looks.
    push_line(out, &["# HELP ", &name, " ", &family.help]);
    push_line(
        out,
        &["# TYPE ", &name, " ", type_name(family.kind, dialect)],
    );
    if let (Some(unit), Dialect::OpenMetrics) = (family.unit, dialect) {
        push_line(out, &["# UNIT ", &name, " ", unit.name()]);
    }
    let sample_name = sample_name(family);
    for sample in &family.samples {
        let labels: Vec<String> = sample
            .labels
            .iter()
            .map(|(name, value)| format!("{name}=\"{}\"", escaped_label(value)))
            .collect();
        if labels.is_empty() {
            push_line(out, &[&sample_name, " ", &sample.value]);
        } else {
            push_line(
                out,
                &[&sample_name, "{", &labels.join(","), "} ", &sample.value],
            );
        }
    }
}

fn push_line(out: &mut String, parts: &[&str]) {
    out.extend(parts.iter().copied());
    out.push('\n');
}

/// The name that samples have: in OpenMetrics each type has its suffix, which the family's name leaves out.
fn sample_name(family: &Family) -> String {
    let suffix = match family.kind {
        Kind::Counter => "_total",
        Kind::Info => "_info",
        Kind::Gauge => "",
    };
    format!("{}{suffix}", family.name)
}

fn type_name(kind: Kind, dialect: Dialect) -> &'static str {
    match (kind, dialect) {
        (Kind::Counter, _) => "counter",
        (Kind::Gauge, _) | (Kind::Info, Dialect::Prometheus) => "gauge",
        (Kind::Info, Dialect::OpenMetrics) => "info",
    }
}

/// A label's value as it stands between quotes; harmless text has no line ends.
fn escaped_label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"")
}

/// Text of the program's as a label's value: harmless, and of bounded length.
fn label(text: &str) -> String {
    let text = words::harmless(text);
    match text.char_indices().nth(LONGEST_LABEL) {
        None => text,
        Some(_) => {
            let kept: String = text.chars().take(LONGEST_LABEL - 1).collect();
            kept + "…"
        }
    }
}
