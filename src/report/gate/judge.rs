//! The judgement: what was measured, held against a baseline and limits.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;

use super::baseline::Baseline;
use super::baseline::Measurement;
use super::baseline::Measurements;
use super::limits::Effective;
use super::limits::LimitError;
use super::limits::Limits;
use super::measured::median;
use super::metrics::Better;
use super::metrics::METRICS;
use super::metrics::Metric;
use super::metrics::MetricUnit;
use super::paths;
use super::paths::PathChange;
use super::subject::Mismatch;
use super::subject::MismatchKind;
use super::subject::Subject;
use super::subject::ending;
use crate::event::Outcome;
use crate::report::Schema;
use crate::report::Tool;
use crate::report::json;

/// The name by which judgements are known.
pub const JUDGEMENT_SCHEMA_NAME: &str = "breaktrace.judgement";
/// The version of their schema.
pub const JUDGEMENT_SCHEMA_VERSION: u32 = 1;

/// What came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Everything that is limited is within its limits.
    Passed,
    /// A figure is beyond its limit by the median of the runs, but the runs overlap with what is allowed.
    Inconclusive,
    /// A figure is beyond its limit, could not be measured although it is limited, or the program did not end as it should.
    Failed,
}

/// What came out for one metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MetricOutcome {
    /// Beyond its limit.
    Regressed,
    /// It is limited, and was not measured.
    Missing,
    /// Beyond its limit by the median only.
    Inconclusive,
    /// More than the baseline, and within its limit.
    Tolerated,
    /// Less than the baseline.
    Improved,
    /// Within its limit, or the same as the baseline.
    Fine,
    /// The baseline has no value for it.
    New,
    /// No limit concerns it.
    NotLimited,
}

/// One metric, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JudgedMetric {
    /// Its name.
    pub metric: String,
    /// The program whose figure it is; `null` for the whole recording.
    pub program: Option<String>,
    /// What it counts.
    pub unit: MetricUnit,
    /// Which way is good.
    pub better: Better,
    /// Whether it depends on the program alone.
    pub repeatable: bool,
    /// The median of the runs; `null` when it was not measured.
    pub value: Option<u64>,
    /// The baseline's median; `null` without one.
    pub baseline: Option<u64>,
    /// The runs, where they differ; otherwise empty.
    pub values: Vec<u64>,
    /// The baseline's runs, likewise.
    pub baseline_values: Vec<u64>,
    /// By how much it is more than the baseline.
    pub delta: Option<i64>,
    /// The same as a share of the baseline; `null` where that is 0.
    pub change: Option<f64>,
    /// The limit as it was written; `null` without one.
    pub limit: Option<String>,
    /// Most that it may be; `null` without a limit.
    pub most: Option<u64>,
    /// Least that it may be; `null` where shrinking is no failure.
    pub least: Option<u64>,
    /// What came out.
    pub outcome: MetricOutcome,
}

impl JudgedMetric {
    /// `break.peak`, or `cc1:break.peak`.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.program {
            Some(program) => format!("{program}:{}", self.metric),
            None => self.metric.clone(),
        }
    }

    /// Whether it makes the verdict fail.
    #[must_use]
    pub fn fails(&self) -> bool {
        matches!(
            self.outcome,
            MetricOutcome::Regressed | MetricOutcome::Missing
        )
    }
}

/// How the program's end was judged.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct JudgedEnding {
    /// As it should be.
    pub expected: Outcome,
    /// As it was.
    pub found: Outcome,
    /// Whether that is the same.
    pub holds: bool,
}

/// A recording, judged.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Judgement {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// What came out.
    pub verdict: Verdict,
    /// The program, without its folder, and its arguments.
    pub command: Vec<String>,
    /// How it ended; `null` where the recording is not of its end.
    pub ending: Option<JudgedEnding>,
    /// How often it ran.
    pub runs: u32,
    /// How often the baseline's program ran; `null` without a baseline.
    pub baseline_runs: Option<u32>,
    /// Whether all runs agreed in all repeatable metrics; `null` for one run.
    pub is_repeatable: Option<bool>,
    /// The metrics: what fails first, then in the order of `breaktrace metrics`.
    pub metrics: Vec<JudgedMetric>,
    /// Call paths that came, grew, shrank or went, the largest change first; empty without a baseline.
    pub call_paths: Vec<PathChange>,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

/// What a judgement needs to know besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct JudgeOptions {
    /// Differences to the baseline that are no obstacle.
    pub allowed_mismatches: Vec<MismatchKind>,
    /// How the program should end, instead of as in the baseline, or with 0.
    pub expected_exit: Option<u8>,
}

/// Why nothing can be judged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Refusal {
    /// The baseline is of something else.
    #[error("the baseline cannot be compared with: {}", words(.0))]
    Incomparable(Vec<Mismatch>),
    /// Neither limits nor a baseline.
    #[error("there is neither a baseline nor a limit to hold it against")]
    NothingToHoldAgainst,
    /// A limit does not fit its metric.
    #[error(transparent)]
    Limit(#[from] LimitError),
}

fn words(mismatches: &[Mismatch]) -> String {
    let words: Vec<&str> = mismatches
        .iter()
        .map(|mismatch| mismatch.words.as_str())
        .collect();
    words.join("; ")
}

/// Judges what was measured. With a baseline, what is repeatable may not grow unless `limits` say otherwise.
///
/// # Errors
///
/// The baseline is of something else, or there is nothing to hold the figures against.
pub fn judge(
    subject: &Subject,
    baseline: Option<&Baseline>,
    limits: &Limits,
    options: &JudgeOptions,
) -> Result<Judgement, Refusal> {
    if baseline.is_none() && limits.is_empty() {
        return Err(Refusal::NothingToHoldAgainst);
    }
    let mut notes = Vec::new();
    let mut effective = Limits::default();
    if let Some(baseline) = baseline {
        let mismatches = mismatches(subject, baseline);
        let (allowed, refused): (Vec<_>, Vec<_>) = mismatches
            .into_iter()
            .partition(|mismatch| options.allowed_mismatches.contains(&mismatch.kind));
        if !refused.is_empty() {
            return Err(Refusal::Incomparable(refused));
        }
        notes.extend(allowed.into_iter().map(|mismatch| mismatch.words));
        notes.extend(told_differences(subject, baseline));
        effective.add("@all", "+0".parse()?)?;
    }
    effective.append(limits);
    let mut metrics = judged(
        None,
        &subject.metrics,
        baseline.map(|baseline| &baseline.metrics),
        &effective,
    )?;
    if effective.concerns_programs() {
        let none = Measurements::new();
        for program in programs(subject, baseline, &effective) {
            let before = baseline.map(|baseline| baseline.programs.get(&program).unwrap_or(&none));
            let now = subject.programs.get(&program).unwrap_or(&none);
            metrics.extend(judged(Some(&program), now, before, &effective)?);
        }
    }
    // Of equals the order stays.
    metrics.sort_by_key(|metric| match metric.outcome {
        MetricOutcome::Regressed | MetricOutcome::Missing => 0,
        MetricOutcome::Inconclusive => 1,
        _ => 2,
    });
    let ending = judged_ending(subject, baseline, options);
    let is_repeatable = (subject.runs > 1).then(|| {
        METRICS
            .iter()
            .filter(|metric| metric.repeatable)
            .filter_map(|metric| subject.metrics.get(metric.name))
            .all(|measurement| matches!(measurement, Measurement::Same(_)))
    });
    notes.extend(remarks(subject, &metrics));
    let fails = ending.as_ref().is_some_and(|ending| !ending.holds)
        || metrics.iter().any(JudgedMetric::fails);
    let is_open = metrics
        .iter()
        .any(|metric| metric.outcome == MetricOutcome::Inconclusive);
    Ok(Judgement {
        schema: Schema {
            name: JUDGEMENT_SCHEMA_NAME.to_owned(),
            version: JUDGEMENT_SCHEMA_VERSION,
        },
        tool: Tool {
            name: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
        },
        verdict: match (fails, is_open) {
            (true, _) => Verdict::Failed,
            (false, true) => Verdict::Inconclusive,
            (false, false) => Verdict::Passed,
        },
        command: subject.command.clone(),
        ending,
        runs: subject.runs,
        baseline_runs: baseline.map(|baseline| baseline.runs),
        is_repeatable,
        metrics,
        call_paths: baseline.map_or_else(Vec::new, |baseline| {
            paths::changes_since(&baseline.call_paths, &subject.paths)
        }),
        notes,
    })
}

impl Judgement {
    /// Writes it as indented JSON with a final newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::document(self)
    }

    /// How many metrics are limited.
    #[must_use]
    pub fn limited(&self) -> usize {
        self.metrics
            .iter()
            .filter(|metric| metric.most.is_some() || metric.outcome == MetricOutcome::Missing)
            .count()
    }

    /// The metrics that make it fail.
    pub fn failing(&self) -> impl Iterator<Item = &JudgedMetric> {
        self.metrics.iter().filter(|metric| metric.fails())
    }
}

fn mismatches(subject: &Subject, baseline: &Baseline) -> Vec<Mismatch> {
    let mut mismatches = baseline.fingerprint.mismatches(&subject.fingerprint);
    if baseline.command != subject.command {
        mismatches.push(Mismatch {
            kind: MismatchKind::Command,
            words: format!(
                "the command was `{}` and is `{}`",
                baseline.command.join(" "),
                subject.command.join(" ")
            ),
        });
    }
    mismatches
}

/// What may differ, and may explain a difference.
fn told_differences(subject: &Subject, baseline: &Baseline) -> Vec<String> {
    let (before, now) = (&baseline.recorded_on, &subject.recorded_on);
    let mut words = Vec::new();
    if subject.has_threads
        && let (Some(before), Some(now)) = (before.processors, now.processors)
        && before != now
    {
        words.push(format!(
            "the baseline was recorded on {before} processors, this on {now}: threads may have more or fewer arenas"
        ));
    }
    words
}

fn programs(subject: &Subject, baseline: Option<&Baseline>, limits: &Limits) -> BTreeSet<String> {
    let named = limits.programs().map(str::to_owned);
    let before = baseline
        .into_iter()
        .flat_map(|baseline| baseline.programs.keys());
    let seen = subject.programs.keys().chain(before).cloned();
    named.chain(seen).collect()
}

fn judged_ending(
    subject: &Subject,
    baseline: Option<&Baseline>,
    options: &JudgeOptions,
) -> Option<JudgedEnding> {
    let found = subject.outcome;
    let expected = match (options.expected_exit, baseline) {
        (Some(code), _) => Outcome::Exited(code),
        (None, Some(baseline)) => baseline.outcome,
        (None, None) => Outcome::Exited(0),
    };
    if found == Outcome::Detached && baseline.is_none_or(|baseline| baseline.outcome == found) {
        return None;
    }
    Some(JudgedEnding {
        expected,
        found,
        holds: ending(expected) == ending(found),
    })
}

fn judged(
    program: Option<&str>,
    now: &Measurements,
    before: Option<&Measurements>,
    limits: &Limits,
) -> Result<Vec<JudgedMetric>, LimitError> {
    let mut judged = Vec::new();
    for metric in METRICS {
        let effective = limits.of(program, metric)?;
        let has_limit = effective.cap.is_some() || effective.tolerance.is_some();
        // Of programs only what somebody wants to know.
        if program.is_some() && !has_limit {
            continue;
        }
        let base = before.and_then(|before| before.get(metric.name));
        let found = now.get(metric.name);
        if found.is_none() && base.is_none() && !effective.is_named {
            continue;
        }
        judged.push(judge_one(metric, program, found, base, &effective)?);
    }
    Ok(judged)
}

/// What a metric may be.
#[derive(Clone, Copy, Debug, Default)]
struct Bounds {
    most: Option<u64>,
    least: Option<u64>,
    /// What the tolerance alone allows.
    most_by_growth: Option<u64>,
    /// Some limit needed a baseline, and there is none.
    lacks_baseline: bool,
}

fn bounds(metric: &Metric, base: Option<u64>, effective: &Effective) -> Result<Bounds, LimitError> {
    let mut bounds = Bounds {
        most: effective.cap,
        ..Bounds::default()
    };
    let Some(tolerance) = &effective.tolerance else {
        return Ok(bounds);
    };
    // Where neither way is good, growing is no failure, unless somebody named this very metric.
    if metric.better == Better::Neither && !effective.is_tolerance_named && !tolerance.both_ways {
        return Ok(bounds);
    }
    let Some(base) = base else {
        bounds.lacks_baseline = true;
        return Ok(bounds);
    };
    let allowance = tolerance.allowance(metric, base)?;
    let most = base.saturating_add(allowance);
    bounds.most_by_growth = Some(most);
    bounds.most = Some(bounds.most.map_or(most, |cap| cap.min(most)));
    if tolerance.both_ways {
        bounds.least = Some(base.saturating_sub(allowance));
    }
    Ok(bounds)
}

fn judge_one(
    metric: &Metric,
    program: Option<&str>,
    found: Option<&Measurement>,
    base: Option<&Measurement>,
    effective: &Effective,
) -> Result<JudgedMetric, LimitError> {
    let values = found.map(Measurement::values).unwrap_or_default();
    let baseline_values = base.map(Measurement::values).unwrap_or_default();
    let value = median(&values);
    let baseline = median(&baseline_values);
    let bounds = bounds(metric, baseline, effective)?;
    let outcome = outcome(metric, &values, &baseline_values, bounds, effective);
    let delta = value
        .zip(baseline)
        .and_then(|(value, baseline)| i64::try_from(i128::from(value) - i128::from(baseline)).ok());
    let only_if_they_differ = |values: Vec<u64>| {
        let differ = values.first() != values.last();
        if differ { values } else { Vec::new() }
    };
    Ok(JudgedMetric {
        metric: metric.name.to_owned(),
        program: program.map(str::to_owned),
        unit: metric.unit,
        better: metric.better,
        repeatable: metric.repeatable,
        value,
        baseline,
        delta,
        #[expect(
            clippy::cast_precision_loss,
            reason = "a share, shown with a few digits"
        )]
        change: delta
            .zip(baseline.filter(|baseline| *baseline != 0))
            .map(|(delta, baseline)| delta as f64 / baseline as f64),
        values: only_if_they_differ(values),
        baseline_values: only_if_they_differ(baseline_values),
        limit: (!effective.text.is_empty() && (bounds.most.is_some() || bounds.lacks_baseline))
            .then(|| effective.text.clone()),
        most: bounds.most,
        least: bounds.least,
        outcome,
    })
}

fn outcome(
    metric: &Metric,
    values: &[u64],
    baseline: &[u64],
    bounds: Bounds,
    effective: &Effective,
) -> MetricOutcome {
    let is_limited = bounds.most.is_some() || bounds.lacks_baseline;
    let Some(value) = median(values) else {
        return if is_limited {
            MetricOutcome::Missing
        } else {
            MetricOutcome::NotLimited
        };
    };
    let (lowest, highest) = ends(values).unwrap_or((value, value));
    let (base_lowest, base_highest) = ends(baseline).unwrap_or((0, u64::MAX));
    let is_above = bounds.most.is_some_and(|most| value > most);
    let is_below = bounds.least.is_some_and(|least| value < least);
    if is_above || is_below {
        let cap_is_certain = effective.cap.is_some_and(|cap| lowest > cap);
        let growth_is_certain =
            bounds.most_by_growth.is_some_and(|most| value > most) && lowest > base_highest;
        let shrinking_is_certain = highest < base_lowest;
        let is_certain = if is_above {
            cap_is_certain || growth_is_certain
        } else {
            shrinking_is_certain
        };
        return if is_certain {
            MetricOutcome::Regressed
        } else {
            MetricOutcome::Inconclusive
        };
    }
    if bounds.lacks_baseline {
        // A limit that names a metric must not be passed by its absence.
        return if effective.is_tolerance_named {
            MetricOutcome::Missing
        } else if bounds.most.is_some() {
            MetricOutcome::Fine
        } else {
            MetricOutcome::New
        };
    }
    match median(baseline) {
        _ if !is_limited => MetricOutcome::NotLimited,
        Some(base) if value < base && metric.better == Better::Lower => MetricOutcome::Improved,
        Some(base) if value > base => MetricOutcome::Tolerated,
        _ => MetricOutcome::Fine,
    }
}

/// The smallest and the largest.
fn ends(values: &[u64]) -> Option<(u64, u64)> {
    Some((*values.iter().min()?, *values.iter().max()?))
}

fn remarks(subject: &Subject, metrics: &[JudgedMetric]) -> Vec<String> {
    let mut remarks = Vec::new();
    let varying: Vec<String> = metrics
        .iter()
        .filter(|metric| metric.repeatable && !metric.values.is_empty())
        .map(JudgedMetric::full_name)
        .collect();
    if !varying.is_empty() {
        remarks.push(format!(
            "the runs differ in {}: medians are judged",
            varying.join(", ")
        ));
    } else if subject.runs == 1 && subject.has_threads {
        remarks.push(
            "the program has threads, whose order may change its figures: --runs 5 tells whether it does".to_owned(),
        );
    }
    for metric in metrics {
        let (Some(value), Some(most)) = (metric.value, metric.most) else {
            continue;
        };
        let is_cap = metric
            .limit
            .as_deref()
            .is_some_and(|limit| limit.contains("<="));
        if is_cap && most > 0 && value <= most && u128::from(value) * 10 >= u128::from(most) * 9 {
            remarks.push(format!("{} is close to its cap", metric.full_name()));
        }
    }
    let improved = metrics
        .iter()
        .filter(|metric| metric.outcome == MetricOutcome::Improved)
        .count();
    if improved > 0 && !metrics.iter().any(JudgedMetric::fails) {
        remarks.push(format!(
            "{improved} limited {} better than the baseline: `breaktrace check --update` takes them over, so that they stay so",
            if improved == 1 { "figure is" } else { "figures are" }
        ));
    }
    remarks
}

/// What an update of a baseline changes, by metric: old and new value.
#[must_use]
pub fn update_of(before: &Baseline, after: &Baseline) -> Vec<(String, Option<u64>, Option<u64>)> {
    fn values(baseline: &Baseline) -> BTreeMap<(Option<&str>, &str), u64> {
        let own = baseline.metrics.iter().map(|entry| (None, entry));
        let others = baseline.programs.iter().flat_map(|(name, metrics)| {
            metrics
                .iter()
                .map(move |entry| (Some(name.as_str()), entry))
        });
        own.chain(others)
            .filter_map(|(program, (name, measurement))| {
                Some(((program, name.as_str()), median(&measurement.values())?))
            })
            .collect()
    }
    let (old, new) = (values(before), values(after));
    let keys: BTreeSet<_> = old.keys().chain(new.keys()).collect();
    keys.into_iter()
        .filter(|key| old.get(*key) != new.get(*key))
        .map(|key| {
            let name = match key.0 {
                Some(program) => format!("{program}:{}", key.1),
                None => key.1.to_owned(),
            };
            (name, old.get(key).copied(), new.get(key).copied())
        })
        .collect()
}
