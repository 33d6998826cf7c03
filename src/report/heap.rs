//! The heap of a program's own malloc, as looked through from outside.

use serde::Deserialize;
use serde::Serialize;

use crate::event::HeapExamination;
use crate::units::Timestamp;

/// A heap at one moment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapMoment {
    /// When it was looked through.
    pub time_ns: Timestamp,
    /// What was found.
    #[serde(flatten)]
    pub examination: HeapExamination,
}
