//! A judgement's figures as OpenMetrics: GitLab's metrics report shows how they changed in a merge request.

use std::fmt::Write;

use crate::report::gate::Judgement;
use crate::report::gate::Metric;
use crate::report::gate::MetricUnit;

/// Writes the figures.
#[must_use]
pub fn openmetrics(judgement: &Judgement) -> String {
    let mut metrics: Vec<_> = judgement.metrics.iter().collect();
    // All values of a metric stand together, in an order that does not depend on the verdict.
    metrics.sort_by(|a, b| (&a.metric, &a.program).cmp(&(&b.metric, &b.program)));
    let mut out = String::new();
    let mut last = "";
    for metric in metrics {
        let Some(value) = metric.value else {
            continue;
        };
        let suffix = match metric.unit {
            MetricUnit::Bytes => "_bytes",
            MetricUnit::Count => "",
            MetricUnit::Nanoseconds => "_nanoseconds",
            MetricUnit::BasisPoints => "_basis_points",
        };
        let name = format!("breaktrace_{}{suffix}", metric.metric.replace('.', "_"));
        if last != metric.metric {
            let _ = writeln!(out, "# TYPE {name} gauge");
            if !suffix.is_empty() {
                let _ = writeln!(out, "# UNIT {name} {}", &suffix[1..]);
            }
            if let Some(known) = Metric::named(&metric.metric) {
                let _ = writeln!(out, "# HELP {name} {}", known.meaning);
            }
            last = &metric.metric;
        }
        let _ = match &metric.program {
            Some(program) => writeln!(out, "{name}{{program=\"{}\"}} {value}", escaped(program)),
            None => writeln!(out, "{name} {value}"),
        };
    }
    out.push_str("# EOF\n");
    out
}

fn escaped(text: &str) -> String {
    crate::render::words::harmless(text)
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}
