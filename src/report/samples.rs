//! Samples of the blocks that the bundled allocator handed out, by the call stacks that asked for them.

use serde::Deserialize;
use serde::Serialize;

use crate::event::StackId;
use crate::symbols::Function;

/// What samples of an address space's blocks tell.
///
/// A block of `size` bytes is a sample with the probability `1 − exp(−size / interval)`, so that each sample stands for a
/// known number of blocks like it: the estimates. With an interval of 1 every block is a sample, and the estimates are
/// exact. Resizing a block counts as freeing it and asking for another.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Samples {
    /// Mean number of requested bytes between two samples.
    pub interval_bytes: u64,
    /// All that was asked for while samples were taken.
    pub requested: SampleSum,
    /// Of that, what was not freed by the end; of a forked child, also what its parent had.
    pub live: SampleSum,
    /// Of `live`, what nothing points to any more; `null` where that was not searched, or not to the end.
    #[serde(default)]
    pub lost: Option<SampleSum>,
    /// Samples that were not followed, as too many were live: they count as requested, and never as live.
    pub not_followed: u64,
    /// By stack: those with most live bytes first, of equals those that requested most.
    pub by_stack: Vec<SampledStack>,
    /// Of `requested`, what belongs to stacks that are not listed.
    pub left_out_requested: SampleSum,
    /// Of `live`, what belongs to stacks that are not listed.
    pub left_out_live: SampleSum,
    /// By call path: the stacks whose functions are the same taken together. Empty before functions were looked up.
    #[serde(default)]
    pub paths: Vec<SampledPath>,
}

/// Samples, and what they stand for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SampleSum {
    /// Estimated bytes that were asked for.
    pub estimated_bytes: u64,
    /// Estimated blocks, rounded.
    pub estimated_blocks: u64,
    /// Samples.
    pub samples: u64,
    /// Bytes of these that were asked for.
    pub sampled_bytes: u64,
}

impl SampleSum {
    /// Adds another sum.
    pub fn add(&mut self, other: Self) {
        for (sum, value) in [
            (&mut self.estimated_bytes, other.estimated_bytes),
            (&mut self.estimated_blocks, other.estimated_blocks),
            (&mut self.samples, other.samples),
            (&mut self.sampled_bytes, other.sampled_bytes),
        ] {
            *sum = sum.saturating_add(value);
        }
    }
}

/// Samples with one stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SampledStack {
    /// The stack; `null` where none was recorded.
    pub stack: Option<StackId>,
    /// What was asked for with it.
    pub requested: SampleSum,
    /// Of that, what was not freed by the end.
    pub live: SampleSum,
    /// Of that, what nothing points to any more; `null` where that was not searched, or not to the end.
    #[serde(default)]
    pub lost: Option<SampleSum>,
}

/// Samples with one call path.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SampledPath {
    /// The function that is to be named; `null` for what has no stack.
    pub culprit: Option<Function>,
    /// The functions from the culprit outwards, as in `call_paths`.
    pub path: Vec<String>,
    /// The stacks.
    pub stacks: Vec<StackId>,
    /// What was asked for.
    pub requested: SampleSum,
    /// Of that, what was not freed by the end.
    pub live: SampleSum,
    /// Of that, what nothing points to any more; `null` where that was not searched, or not to the end.
    #[serde(default)]
    pub lost: Option<SampleSum>,
}
