//! The heap of a program's own malloc, as looked through from outside: in reports, and in a document of its own.

mod document;
mod growth;
mod sums;
#[cfg(test)]
pub(crate) mod tests;
mod verdict;

pub use document::HEAP_SCHEMA_NAME;
pub use document::HEAP_SCHEMA_VERSION;
pub use document::HeapDocument;
pub use document::HeapTarget;
pub use growth::ClassGrowth;
pub use growth::GrowthTrend;
pub use growth::HeapGrowth;
pub use growth::HeapLook;
pub use growth::HeapLooks;
pub use growth::MappedGrowth;
pub use growth::chunk_sizes;
pub use sums::HeapSums;
pub use verdict::HeapConfidence;
pub use verdict::HeapVerdict;
pub use verdict::HeapVerdictKind;

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
