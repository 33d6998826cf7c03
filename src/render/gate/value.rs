//! Values of metrics in words.

use crate::render::words;
use crate::report::gate::JudgedMetric;
use crate::report::gate::MetricOutcome;
use crate::report::gate::MetricUnit;
use crate::units::ByteDelta;
use crate::units::ByteSize;

/// `17.2 MiB`, `251`, `1.20 s`, `7.50 %`.
pub(in crate::render) fn value(unit: MetricUnit, value: u64) -> String {
    match unit {
        MetricUnit::Bytes => ByteSize(value).to_string(),
        MetricUnit::Count => value.to_string(),
        MetricUnit::Nanoseconds => words::duration(value),
        MetricUnit::BasisPoints => format!("{}.{:02} %", value / 100, value % 100),
    }
}

/// The same; `–` for what is not known.
pub(super) fn or_dash(unit: MetricUnit, known: Option<u64>) -> String {
    known.map_or_else(|| "–".to_owned(), |known| value(unit, known))
}

/// `+1.7 MiB`, `−3`, `0`.
pub(super) fn delta(unit: MetricUnit, delta: i64) -> String {
    let sign = match delta {
        0 => "",
        1.. => "+",
        _ => "−",
    };
    match unit {
        MetricUnit::Bytes if delta != 0 => ByteDelta(delta).to_string(),
        _ => format!("{sign}{}", value(unit, delta.unsigned_abs())),
    }
}

/// `+9.9 %`; empty where nothing changed, or there was nothing before.
pub(super) fn change(share: Option<f64>) -> String {
    match share {
        Some(share) if share != 0.0 => {
            let percent = share * 100.0;
            let sign = if percent < 0.0 { "−" } else { "+" };
            let percent = percent.abs();
            if percent < 0.01 {
                format!("{sign}<0.01 %")
            } else if percent < 9.995 {
                format!("{sign}{percent:.2} %")
            } else if percent < 999.5 {
                format!("{sign}{percent:.1} %")
            } else {
                format!("{sign}{percent:.0} %")
            }
        }
        _ => String::new(),
    }
}

/// What came out, in a word.
pub(super) fn outcome(outcome: MetricOutcome) -> &'static str {
    match outcome {
        MetricOutcome::Regressed => "REGRESSED",
        MetricOutcome::Missing => "NOT MEASURED",
        MetricOutcome::Inconclusive => "inconclusive",
        MetricOutcome::Tolerated => "within limit",
        MetricOutcome::Improved => "improved",
        MetricOutcome::Fine => "ok",
        MetricOutcome::New => "new",
        MetricOutcome::NotLimited => "not limited",
    }
}

/// Why a metric fails or is open, in one sentence.
pub(super) fn sentence(metric: &JudgedMetric) -> String {
    let name = metric.full_name();
    let now = or_dash(metric.unit, metric.value);
    let limit = metric.limit.as_deref().unwrap_or("none");
    match (metric.outcome, metric.value, metric.baseline) {
        (MetricOutcome::Missing, None, Some(baseline)) => format!(
            "{name} was not measured; the baseline has {}",
            value(metric.unit, baseline)
        ),
        (MetricOutcome::Missing, None, None) => {
            format!("{name} was not measured, and is limited ({limit})")
        }
        (MetricOutcome::Missing, Some(_), _) => {
            format!(
                "{name} is limited by its baseline ({limit}), and the baseline has no value for it"
            )
        }
        (_, _, Some(baseline)) => format!(
            "{name} was {} and is {now} ({}{}); the limit is {limit}{}",
            value(metric.unit, baseline),
            delta(metric.unit, metric.delta.unwrap_or_default()),
            match change(metric.change) {
                change if change.is_empty() => String::new(),
                change => format!(", {change}"),
            },
            bounds(metric)
        ),
        _ => format!("{name} is {now}; the limit is {limit}{}", bounds(metric)),
    }
}

fn bounds(metric: &JudgedMetric) -> String {
    match (metric.least, metric.most) {
        (Some(least), Some(most)) => format!(
            ": {} to {}",
            value(metric.unit, least),
            value(metric.unit, most)
        ),
        (None, Some(most)) => format!(": at most {}", value(metric.unit, most)),
        _ => String::new(),
    }
}
