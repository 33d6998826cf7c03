//! The list of metrics.

use serde_json::json;

use crate::render::TextOptions;
use crate::render::page::Page;
use crate::render::style::Tone;
use crate::report::gate::Better;
use crate::report::gate::Combined;
use crate::report::gate::METRICS;
use crate::report::gate::MetricUnit;

/// The list for people.
#[must_use]
pub fn metrics(options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut page = Page::new(options);
    let widest = METRICS
        .iter()
        .map(|metric| metric.name.len())
        .max()
        .unwrap_or_default();
    let mut group = "";
    for metric in METRICS {
        if group != metric.group() {
            if !group.is_empty() {
                page.push(Tone::Plain, "");
            }
            group = metric.group();
        }
        let kind = match (metric.repeatable, metric.better) {
            (false, _) => "advisory",
            (true, Better::Neither) => "neutral",
            (true, Better::Lower) => "gates",
        };
        let unit = match metric.unit {
            MetricUnit::Bytes => "bytes",
            MetricUnit::Count => "count",
            MetricUnit::Nanoseconds => "time",
            MetricUnit::BasisPoints => "percent",
        };
        let combined = match metric.combined {
            Combined::Largest => "largest",
            Combined::Sum => "sum",
        };
        page.entry(
            Tone::Plain,
            &format!(
                "{:<widest$}  {unit:<7}  {combined:<7}  {kind:<8}  ",
                metric.name
            ),
            metric.meaning,
        );
    }
    page.push(Tone::Plain, "");
    for text in [
        "largest, sum: how the figure of a recording follows from its address spaces.",
        "gates: depends on the program alone, and with a baseline may not grow unless a limit says otherwise. neutral: likewise, but neither way is better. advisory: depends on the machine as well; limited only where a limit names it.",
        "Groups for limits: @all, @heap, @break, @mapped, @calls, @allocator, @malloc.",
    ] {
        page.paragraph(Tone::Faint, text);
    }
    page.paint(options.color)
}

/// The list for programs.
#[must_use]
pub fn metrics_json() -> String {
    let metrics: Vec<_> = METRICS
        .iter()
        .map(|metric| {
            json!({
                "name": metric.name,
                "unit": metric.unit,
                "better": metric.better,
                "repeatable": metric.repeatable,
                "combined": metric.combined,
                "meaning": metric.meaning,
            })
        })
        .collect();
    format!("{:#}\n", json!({ "metrics": metrics }))
}
