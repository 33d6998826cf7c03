//! What the bundled allocator tells, beside what the kernel saw.

use serde::Deserialize;
use serde::Serialize;

use super::Samples;
use crate::event::AllocatorAbsence;
use crate::event::AllocatorCause;
use crate::event::AllocatorFigures;
use crate::event::AllocatorSetup;
use crate::event::ClassReading;
use crate::event::HeapError;
use crate::event::HeapErrorKind;
use crate::event::HeapWalk;
use crate::event::ReadingMoment;
use crate::event::StackId;
use crate::units::Timestamp;

/// The malloc library of one address space, where it is not simply the C library's own.
///
/// A forked child has its parent's counters at first: all figures are since the program began, the parent's part
/// included.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorReport {
    /// `bundled`; or `glibc 2.36` for the program's own malloc, looked through from outside at snapshots and at the end; or
    /// the file of the library that was preloaded instead: such a library tells nothing of itself, and all else here is
    /// `null` or empty.
    pub name: String,
    /// What `in_use_bytes` and what follows from it count.
    #[serde(default)]
    pub in_use_is: InUseMeasure,
    /// How the bundled allocator is set up; `null` where it was not found.
    pub setup: Option<AllocatorSetup>,
    /// Why there are no figures; `null` where there are some, or where nothing told.
    pub absence: Option<AllocatorAbsence>,
    /// The figures as last read; `null` when none were.
    pub last: Option<AllocatorMoment>,
    /// The figures of the reading with the most bytes obtained; `null` when none were read, or for address spaces
    /// beyond the detailed ones. The counters `…_peak_bytes` are exact; this is the nearest moment that was seen.
    pub largest: Option<AllocatorMoment>,
    /// The figures that an address space began with: for a forked child the parent's as last read before the fork, for
    /// one that breaktrace attached to the first that were read; `null` where the program began with zeros.
    pub at_start: Option<AllocatorMoment>,
    /// Size classes of small blocks at the last reading that had them.
    pub classes: Vec<ClassReading>,
    /// Errors found in the program's use of its heap.
    pub heap_errors: HeapErrors,
    /// What samples of its blocks tell; `null` where none were taken.
    #[serde(default)]
    pub samples: Option<Samples>,
    /// The heap as looked through from outside at the end; `null` when that was not done.
    pub walk: Option<HeapWalk>,
    /// How the allocator's account compared with the kernel's.
    pub checks: AllocatorChecks,
    /// What the figures say about malloc; `null` without figures.
    pub claims: Option<AllocatorClaims>,
}

/// What counts as in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum InUseMeasure {
    /// What was asked for.
    #[default]
    Requested,
    /// What the blocks hold, as malloc_usable_size(3) tells: what was asked for, rounded up. Seen from outside, nothing
    /// tells what was asked for.
    Usable,
}

/// The allocator's figures at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorMoment {
    /// When they were read.
    pub time_ns: Timestamp,
    /// On what occasion; at a call, the allocator has not yet counted that call.
    pub moment: ReadingMoment,
    /// Whether no thread was running meanwhile; otherwise the figures belong to slightly different moments.
    pub still: bool,
    /// The figures.
    pub figures: AllocatorFigures,
}

/// Errors in the program's use of its heap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapErrors {
    /// How many were found.
    pub total: u64,
    /// How many of each kind.
    pub by_kind: Vec<HeapErrorCount>,
    /// The first ones.
    pub kept: Vec<FoundHeapError>,
}

/// How many heap errors of one kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapErrorCount {
    /// The kind.
    pub kind: HeapErrorKind,
    /// How many.
    pub errors: u64,
}

/// A heap error and when it was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FoundHeapError {
    /// When it was found.
    pub time_ns: Timestamp,
    /// Process in which it was found.
    pub pid: u32,
    /// The error.
    pub error: HeapError,
    /// The call stack of the thread that noticed; `null` when it was not recorded, or found from outside.
    #[serde(default)]
    pub stack: Option<StackId>,
    /// Where the block was allocated; `null` when not known: the block was no sample (`--sample-allocations`).
    #[serde(default)]
    pub allocated_stack: Option<StackId>,
    /// Where the block was freed; `null` when it was not, or it is not known: only where every block is a sample.
    #[serde(default)]
    pub freed_stack: Option<StackId>,
}

/// How the allocator's account of its memory calls compared with those that were traced, and whether its figures add
/// up. Checked is whenever figures were read while no thread was running, but not in the midst of a call.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorChecks {
    /// Comparisons made, each of all counters of calls and of bytes that they moved.
    pub made: u64,
    /// Comparisons in which something differed.
    pub differing: u64,
    /// Readings that could not be compared: threads were running, or there was nothing yet to compare with.
    pub skipped: u64,
    /// The first differences.
    pub differences: Vec<AllocatorDifference>,
    /// Times that `obtained = in use + overhead + free + top` was looked at.
    pub sums_made: u64,
    /// Times that it did not hold. A thread that was stopped inside the allocator explains it; of a program with one
    /// thread that exited nothing does.
    pub sums_differing: u64,
    /// By how many bytes the sum exceeded `obtained` the first time it did not hold; negative when it fell short;
    /// `null` when it always held.
    pub first_sum_difference_bytes: Option<i64>,
}

/// A counter that differs from what was traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorDifference {
    /// When it was noticed.
    pub time_ns: Timestamp,
    /// The counter's name.
    pub counter: String,
    /// By how much the allocator's counter grew since comparison began.
    pub counted: u64,
    /// By how much it should have, from the calls that were traced.
    pub traced: u64,
}

/// What the figures as last read say about malloc. Ratios are `null` where they would divide by zero.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorClaims {
    /// Requests for memory that were served: blocks handed out, and calls of realloc that left the block in its place.
    pub requests: u64,
    /// Memory calls that the allocator made for them, as it counts them: brk, mmap, munmap, mremap, madvise.
    pub kernel_calls: u64,
    /// The first by the second.
    pub requests_per_kernel_call: Option<f64>,
    /// Most bytes obtained by most bytes in use, though not of the same moment.
    pub obtained_per_in_use_at_peak: Option<f64>,
    /// Bytes obtained by bytes in use.
    pub obtained_per_in_use: Option<f64>,
    /// Share of the bytes obtained that is in use, 0 to 1.
    pub in_use_share: Option<f64>,
    /// Share that is overhead.
    pub overhead_share: Option<f64>,
    /// Share that is kept free for the next requests.
    pub free_share: Option<f64>,
    /// Share that no block has used: the top.
    pub top_share: Option<f64>,
    /// Bytes that the program has freed, as they were asked for.
    pub freed_bytes: u64,
    /// Bytes of address space that the allocator gave back to the kernel, by brk and munmap.
    pub returned_bytes: u64,
    /// Bytes that it gave back by madvise while they stayed obtained.
    pub advised_bytes: u64,
}

/// Why the allocator made a call, and how it stood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepAllocator {
    /// Why; `null` for mmap and mremap, which leave no room to say so.
    pub cause: Option<AllocatorCause>,
    /// Bytes of the request that caused it; `null` if none did, or it is not known.
    pub request_bytes: Option<u64>,
    /// How the allocator stood; `null` when its figures were not read.
    pub figures: Option<StepFigures>,
}

/// How the allocator stood when it made a call: neither the call nor the request that caused it is counted yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepFigures {
    /// Bytes that the program had asked for since it began.
    pub requested_bytes: u64,
    /// Bytes asked for in blocks not freed.
    pub in_use_bytes: u64,
    /// Bytes obtained and neither in use nor free.
    pub overhead_bytes: u64,
    /// Bytes kept for the next request.
    pub free_bytes: u64,
    /// Bytes at the end that no block had used.
    pub top_bytes: u64,
    /// Bytes obtained from the kernel and not given back.
    pub obtained_bytes: u64,
}
