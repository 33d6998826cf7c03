//! Gates: is this recording worse than it may be? Metrics, baselines, limits, and the judgement that follows from them.
//!
//! A recording (or several of the same program) is summed up as a [`Subject`]; [`judge`] holds it against a [`Baseline`]
//! and [`Limits`]. Nothing passes by accident: what is limited and was not measured fails.

mod baseline;
mod diff;
mod judge;
mod limits;
mod measured;
mod metrics;
mod paths;
mod subject;
#[cfg(test)]
pub(crate) mod tests;

pub use baseline::BASELINE_SCHEMA_NAME;
pub use baseline::BASELINE_SCHEMA_VERSION;
pub use baseline::Baseline;
pub use baseline::BaselineError;
pub use baseline::LARGEST_BASELINE;
pub use baseline::Measurement;
pub use baseline::Measurements;
pub use baseline::RecordedOn;
pub use diff::DIFF_SCHEMA_NAME;
pub use diff::DIFF_SCHEMA_VERSION;
pub use diff::MetricChange;
pub use diff::RecordingDiff;
pub use diff::Side;
pub use diff::StepChange;
pub use diff::StepChangeKind;
pub use diff::count_paths;
pub use judge::JUDGEMENT_SCHEMA_NAME;
pub use judge::JUDGEMENT_SCHEMA_VERSION;
pub use judge::JudgeOptions;
pub use judge::JudgedEnding;
pub use judge::JudgedMetric;
pub use judge::Judgement;
pub use judge::MetricOutcome;
pub use judge::Refusal;
pub use judge::Verdict;
pub use judge::judge;
pub use judge::update_of;
pub use limits::Effective;
pub use limits::LARGEST_LIMITS_FILE;
pub use limits::Limit;
pub use limits::LimitError;
pub use limits::Limits;
pub use limits::Scope;
pub use limits::Tolerance;
pub use measured::Measured;
pub use measured::Values;
pub use measured::median;
pub use metrics::Better;
pub use metrics::Combined;
pub use metrics::METRICS;
pub use metrics::Metric;
pub use metrics::MetricUnit;
pub use paths::PathChange;
pub use subject::Fingerprint;
pub use subject::Mismatch;
pub use subject::MismatchKind;
pub use subject::PathFigures;
pub use subject::Subject;
pub use subject::Unfit;
