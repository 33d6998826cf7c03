//! Baselines: what a program's heap was once, in a small file that is committed with the program.
//!
//! Keys are sorted and times, process numbers and addresses left out, so that a change of the file is a change of the
//! program.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;

use super::metrics::Metric;
use super::metrics::MetricUnit;
use super::subject::Fingerprint;
use super::subject::PathFigures;
use super::subject::Subject;
use crate::event::Outcome;
use crate::report::Schema;
use crate::report::Tool;
use crate::report::json;

/// The name by which baselines are known.
pub const BASELINE_SCHEMA_NAME: &str = "breaktrace.baseline";
/// The version of their schema.
pub const BASELINE_SCHEMA_VERSION: u32 = 1;
/// Larger files are no baselines, in bytes.
pub const LARGEST_BASELINE: u64 = 16 << 20;
/// Call paths that a baseline keeps.
pub(super) const MOST_PATHS: usize = 40;

/// What the runs measured: one value if all were equal, otherwise each run's, in order of size.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(untagged)]
pub enum Measurement {
    /// All runs measured this.
    Same(u64),
    /// They differed.
    Each(Vec<u64>),
}

impl Measurement {
    /// Of these runs; `None` without any.
    #[must_use]
    pub fn of(values: &[u64]) -> Option<Self> {
        let first = *values.first()?;
        if values.iter().all(|value| *value == first) {
            return Some(Self::Same(first));
        }
        let mut values = values.to_vec();
        values.sort_unstable();
        Some(Self::Each(values))
    }

    /// The values, at least one.
    #[must_use]
    pub fn values(&self) -> Vec<u64> {
        match self {
            Self::Same(value) => vec![*value],
            Self::Each(values) => values.clone(),
        }
    }
}

/// Where a baseline was recorded; told, and not held against another machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RecordedOn {
    /// Kernel release.
    pub kernel: String,
    /// Processors.
    pub processors: Option<u32>,
}

/// Measurements by the metric's name.
pub type Measurements = BTreeMap<String, Measurement>;

/// What a program's heap was once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Baseline {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// The program, without its folder, and its arguments.
    pub command: Vec<String>,
    /// What must be the same for figures to be comparable.
    pub fingerprint: Fingerprint,
    /// What may differ.
    pub recorded_on: RecordedOn,
    /// How the program ended.
    pub outcome: Outcome,
    /// How often it ran.
    pub runs: u32,
    /// Figures of the whole recording.
    pub metrics: Measurements,
    /// Figures of each program in it, by name; empty when only one ran.
    #[serde(default)]
    pub programs: BTreeMap<String, Measurements>,
    /// The call paths that made memory grow most, innermost function first.
    #[serde(default)]
    pub call_paths: BTreeMap<String, PathFigures>,
}

/// Figures that are worth a line in a committed file: time never is the same.
fn lasting(metrics: &Measurements) -> Measurements {
    metrics
        .iter()
        .filter(|(name, _)| {
            Metric::named(name).is_none_or(|metric| metric.unit != MetricUnit::Nanoseconds)
        })
        .map(|(name, measurement)| (name.clone(), measurement.clone()))
        .collect()
}

impl Baseline {
    /// Of what was measured.
    #[must_use]
    pub fn of(subject: &Subject) -> Self {
        let mut paths: Vec<(&String, &PathFigures)> = subject.paths.iter().collect();
        paths.sort_by_key(|(path, figures)| (std::cmp::Reverse(figures.grown_bytes), *path));
        Self {
            schema: Schema {
                name: BASELINE_SCHEMA_NAME.to_owned(),
                version: BASELINE_SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            command: subject.command.clone(),
            fingerprint: subject.fingerprint.clone(),
            recorded_on: subject.recorded_on.clone(),
            outcome: subject.outcome,
            runs: subject.runs,
            metrics: lasting(&subject.metrics),
            programs: subject
                .programs
                .iter()
                .map(|(name, metrics)| (name.clone(), lasting(metrics)))
                .collect(),
            call_paths: paths
                .into_iter()
                .take(MOST_PATHS)
                .map(|(path, figures)| (path.clone(), *figures))
                .collect(),
        }
    }

    /// Writes it as indented JSON with a final newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::document(self)
    }

    /// Reads one.
    ///
    /// # Errors
    ///
    /// It is no baseline, one of a later version, or broken.
    pub fn from_json(text: &str) -> Result<Self, BaselineError> {
        #[derive(Deserialize)]
        struct Head {
            schema: Schema,
        }
        let head: Head = serde_json::from_str(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => BaselineError::Foreign,
            _ => BaselineError::Broken(error.to_string()),
        })?;
        if head.schema.name != BASELINE_SCHEMA_NAME {
            return Err(BaselineError::Other(head.schema.name));
        }
        if head.schema.version != BASELINE_SCHEMA_VERSION {
            return Err(BaselineError::Version(head.schema.version));
        }
        let baseline: Self =
            serde_json::from_str(text).map_err(|error| BaselineError::Broken(error.to_string()))?;
        let all = baseline.programs.values().chain([&baseline.metrics]);
        let has_empty = all
            .flat_map(BTreeMap::values)
            .any(|measurement| measurement.values().is_empty());
        if has_empty || baseline.metrics.is_empty() {
            return Err(BaselineError::Empty);
        }
        Ok(baseline)
    }
}

/// Why a file is no baseline.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum BaselineError {
    /// JSON, but not ours.
    #[error("it is no document of breaktrace's")]
    Foreign,
    /// Another document.
    #[error("it is a `{0}`, not a baseline")]
    Other(String),
    /// A later version.
    #[error(
        "it has version {0} of the baseline's schema, and this breaktrace knows version {BASELINE_SCHEMA_VERSION}"
    )]
    Version(u32),
    /// Not to be read.
    #[error("it is broken: {0}")]
    Broken(String),
    /// Nothing to compare with.
    #[error("it has no figures")]
    Empty,
}

impl BaselineError {
    /// What to do about it.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Version(_) => "install the breaktrace that wrote it, or make a new one: breaktrace run --save-baseline".to_owned(),
            _ => "baselines are made by `breaktrace run --save-baseline FILE -- PROGRAM`".to_owned(),
        }
    }
}
