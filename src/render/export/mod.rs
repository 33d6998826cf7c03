//! Reports in the formats of other people's tools: `docs/formats.md`.
//!
//! One file per format, each with one function from the report to bytes. The same report gives the same bytes.

mod chrome_trace;
mod csv;
mod folded;
mod frames;
mod massif;
mod measure;
mod openmetrics;
mod pprof;
mod protobuf;
mod speedscope;

#[cfg(test)]
pub(super) mod tests;

pub(super) use chrome_trace::chrome_trace;
pub(super) use csv::csv;
pub(super) use folded::folded;
pub(super) use massif::massif;
pub use measure::Measure;
pub(super) use openmetrics::openmetrics;
pub(super) use openmetrics::prometheus;
pub(super) use pprof::pprof;
pub(super) use speedscope::speedscope;

use super::Format;
use crate::event::StackMode;
use crate::report::Report;

/// Why a report cannot be written in a format.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ExportError {
    /// The format shows call stacks, and none were recorded.
    #[error("cannot write {format}: the recording is without call stacks")]
    NoStacks {
        /// Which format.
        format: Format,
    },
}

impl ExportError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::NoStacks { .. } => Some("record again with --stacks all, the default".into()),
        }
    }
}

/// Whether the report has what the format shows. A recording of stacks in which nothing grew has: nothing, known.
///
/// # Errors
///
/// The format is of stacks, and none were recorded.
pub(super) fn check(report: &Report, format: Format) -> Result<(), ExportError> {
    if format.is_of_stacks()
        && report.stacks.is_none()
        && report.recording.capture.stacks == StackMode::Off
    {
        return Err(ExportError::NoStacks { format });
    }
    Ok(())
}

/// JSON on one line.
fn json_line(value: &impl serde::Serialize) -> Vec<u8> {
    // Writing to memory does not fail, and no value of ours has keys that are not strings.
    let mut bytes = serde_json::to_vec(value).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}
