//! The report: everything that a renderer may show, as numbers with units and no layout.
//!
//! Made by the model from events alone, so a recorded log gives the same report as the live program. JSON is this
//! structure as it stands; `docs/report-schema.md` describes it field by field. Within a schema version, fields are
//! only added. What is not known is `null`, and a notice or the field's description says why.

mod allocator;
mod comparison;
mod culprit;
mod explanation;
mod focus;
pub mod gate;
mod heap;
mod json;
mod samples;
#[cfg(test)]
mod schema;
mod stacks;
mod symbolize;

pub use allocator::AllocatorChecks;
pub use allocator::AllocatorClaims;
pub use allocator::AllocatorDifference;
pub use allocator::AllocatorMoment;
pub use allocator::AllocatorReport;
pub use allocator::FoundHeapError;
pub use allocator::HeapErrorCount;
pub use allocator::HeapErrors;
pub use allocator::InUseMeasure;
pub use allocator::StepAllocator;
pub use allocator::StepFigures;
pub use comparison::COMPARISON_SCHEMA_NAME;
pub use comparison::COMPARISON_SCHEMA_VERSION;
pub use comparison::Column;
pub use comparison::Comparison;
pub use comparison::Row;
pub use comparison::Run;
pub use explanation::Explained;
pub use explanation::MallocReport;
pub use explanation::SettingsChange;
pub use explanation::StepExplanation;
pub use explanation::StepReason;
pub use explanation::StepTerm;
pub use explanation::StepTermKind;
pub use focus::PathOrder;
pub use focus::PathSelection;
pub use heap::ClassGrowth;
pub use heap::GrowthTrend;
pub use heap::HEAP_SCHEMA_NAME;
pub use heap::HEAP_SCHEMA_VERSION;
pub use heap::HeapConfidence;
pub use heap::HeapDocument;
pub use heap::HeapGrowth;
pub use heap::HeapLook;
pub use heap::HeapLooks;
pub use heap::HeapMoment;
pub use heap::HeapSums;
pub use heap::HeapTarget;
pub use heap::HeapVerdict;
pub use heap::HeapVerdictKind;
pub use heap::MappedGrowth;
pub use heap::chunk_sizes;
#[cfg(test)]
pub(crate) use heap::tests as heap_tests;
pub use json::ReadError;
pub use json::SCHEMA_NAME;
pub use json::SCHEMA_VERSION;
pub use json::from_json;
pub use json::to_json;
pub use samples::SampleSum;
pub use samples::SampledPath;
pub use samples::SampledStack;
pub use samples::Samples;
pub use stacks::CallPath;
pub use stacks::Culprit;
pub use stacks::Growth;
pub use stacks::StackFrame;
pub use stacks::StackGrowth;
pub use stacks::StackModule;
pub use stacks::StackReport;
pub use stacks::Stacks;
pub use symbolize::name_culprits;
pub use symbolize::symbolize;

use serde::Deserialize;
use serde::Serialize;

use crate::event::EndReason;
use crate::event::MemoryFigures;
use crate::event::Notice;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::PageFigures;
use crate::event::Recording;
use crate::event::SpaceId;
use crate::event::StackId;
use crate::units::Address;
use crate::units::Timestamp;

/// A whole recording, summed up.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Report {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// What was recorded, how, and on what machine.
    pub recording: Recording,
    /// How the recording ended.
    pub end: RecordingEnd,
    /// Sums over all address spaces.
    pub totals: Totals,
    /// The address space that the verdict is about: the one whose heap grew most; `null` when nothing ran.
    pub main_space: Option<SpaceId>,
    /// Processes, in order of appearance; of thousands, those of the address spaces that are listed.
    pub processes: Vec<ProcessReport>,
    /// Address spaces, in order of appearance: one for each program that ran, as `exec` begins a new one. Of thousands,
    /// those that grew most; `totals` counts all.
    pub address_spaces: Vec<SpaceReport>,
    /// The call stacks that are named elsewhere; `null` when none were recorded.
    #[serde(default)]
    pub stacks: Option<Stacks>,
    /// What could not be seen or done, and why.
    pub notices: Vec<Notice>,
}

/// Name and version of a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Schema {
    /// Always `breaktrace.report` for reports.
    pub name: String,
    /// Raised when a field changes its meaning or goes.
    pub version: u32,
}

/// The program that wrote a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// Its version.
    pub version: String,
}

/// How a recording ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RecordingEnd {
    /// Why; `null` when the recording breaks off or still goes on.
    pub reason: Option<EndReason>,
    /// Time of the last event, in nanoseconds since the start.
    pub duration_ns: Timestamp,
    /// Events recorded.
    pub events: u64,
}

/// Sums over all address spaces of a recording.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Totals {
    /// Processes seen.
    pub processes: u64,
    /// Threads seen, first threads included.
    pub threads: u64,
    /// Address spaces seen.
    pub address_spaces: u64,
    /// Bytes by which program breaks grew.
    pub break_grown_bytes: u64,
    /// Bytes by which program breaks shrank.
    pub break_shrunk_bytes: u64,
    /// Calls that raised a break.
    pub break_grow_calls: u64,
    /// Calls that lowered a break.
    pub break_shrink_calls: u64,
    /// Bytes of anonymous memory that became usable.
    pub anonymous_grown_bytes: u64,
    /// Bytes of anonymous memory that were unmapped or made unusable.
    pub anonymous_shrunk_bytes: u64,
    /// Calls by name, all processes together.
    pub calls: Vec<CallCount>,
}

/// How often one call was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CallCount {
    /// The call's name, as in section 2 of the manual.
    pub name: String,
    /// Calls made, failed ones included.
    pub calls: u64,
    /// Calls that failed; for brk, those that were refused.
    pub failed: u64,
}

/// One process (thread group).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessReport {
    /// Its number, in the namespace of breaktrace.
    pub pid: u32,
    /// Its parent, if observed.
    pub parent: Option<u32>,
    /// How it came under observation.
    pub origin: Origin,
    /// When it did.
    pub started_ns: Timestamp,
    /// When it was no longer observed; `null` when the recording ended first.
    pub ended_ns: Option<Timestamp>,
    /// How that came; `null` when the recording ended first.
    pub outcome: Option<Outcome>,
    /// The program it ran last.
    pub program: String,
    /// That program's arguments, its name first.
    pub arguments: Vec<String>,
    /// Address spaces it used, in order.
    pub address_spaces: Vec<SpaceId>,
    /// Threads seen in it, the first included.
    pub threads: u64,
}

/// One address space: the memory of one program from its exec (or from the attach, or the fork) to its end.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpaceReport {
    /// Its number in this recording.
    pub id: SpaceId,
    /// The process it belongs to: the first one, if several share it.
    pub pid: u32,
    /// The program that ran in it.
    pub program: String,
    /// That program's arguments, its name first.
    pub arguments: Vec<String>,
    /// How it came to be.
    pub origin: SpaceOrigin,
    /// When it did, or when its observation began.
    pub started_ns: Timestamp,
    /// When it ended; `null` when the recording ended first.
    pub ended_ns: Option<Timestamp>,
    /// The program break.
    #[serde(rename = "break")]
    pub program_break: BreakReport,
    /// Private memory without a file, outside the break's heap: large blocks, arenas, other allocators' heaps,
    /// thread stacks.
    pub anonymous: AnonymousReport,
    /// Calls by name.
    pub calls: Vec<CallCount>,
    /// Memory at the first snapshot; `null` when none could be taken.
    pub memory_at_start: Option<MemoryFigures>,
    /// Memory at the last snapshot; `null` when none could be taken.
    pub memory_at_end: Option<MemoryFigures>,
    /// Break and mappings over time. Empty for address spaces beyond the detailed ones.
    pub timeline: TimelineReport,
    /// The address space from bottom to top at the last snapshot; empty when none could be taken, or for address
    /// spaces beyond the detailed ones.
    pub layout: Vec<LayoutSegment>,
    /// Since when it was seen to be so; `null` when none was.
    #[serde(default)]
    pub layout_ns: Option<Timestamp>,
    /// The same at snapshots before that one, earliest first, where it was another: at most sixteen of them, spread over time.
    #[serde(default)]
    pub earlier_layouts: Vec<LayoutMoment>,
    /// Largest sum of the heap below the break and of usable anonymous memory while observed; `null` when the break was never
    /// known.
    #[serde(default)]
    pub peak_bytes: Option<u64>,
    /// How the model compared with `/proc`.
    pub checks: Checks,
    /// The bundled allocator's own account, or what was seen of the heap of the program's own malloc; `null` when nothing was.
    #[serde(default)]
    pub allocator: Option<AllocatorReport>,
    /// glibc's malloc in it, as seen at memory calls; `null` where none was.
    #[serde(default)]
    pub malloc: Option<MallocReport>,
    /// The heap of the program's own malloc as last looked through from outside; `null` when that was not done.
    #[serde(default)]
    pub heap: Option<HeapMoment>,
    /// Growth by stack, the largest net growth first; empty when no stacks were recorded.
    #[serde(default)]
    pub growth: Vec<StackGrowth>,
    /// The same by call path, stacks with the same functions together: what to compare between builds.
    #[serde(default)]
    pub call_paths: Vec<CallPath>,
}

/// How an address space came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum SpaceOrigin {
    /// A program was executed: everything from its first instruction on is recorded.
    Exec,
    /// It was there when breaktrace attached: what happened before is not known.
    Attached,
    /// fork(2) copied it from this one.
    Forked(SpaceId),
}

/// The story of one program break. Sizes are measured from the start of the heap.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct BreakReport {
    /// Where the heap starts; `null` when `/proc` did not tell and no call was seen.
    pub start: Option<Address>,
    /// Where the break was last; `null` likewise.
    pub end: Option<Address>,
    /// Size of the heap when observation began.
    pub start_bytes: Option<u64>,
    /// Size of the heap last.
    pub end_bytes: Option<u64>,
    /// Largest size of the heap while observed.
    pub peak_bytes: Option<u64>,
    /// Whether the break is known to the byte; at attach it is known to the page until the first call.
    pub exact: bool,
    /// Calls that raised it.
    pub grow_calls: u64,
    /// Bytes by which they did.
    pub grown_bytes: u64,
    /// Calls that lowered it.
    pub shrink_calls: u64,
    /// Bytes by which they did: memory that went back to the kernel.
    pub shrunk_bytes: u64,
    /// Calls that merely asked where it is.
    pub query_calls: u64,
    /// Calls that the kernel refused.
    pub refused_calls: u64,
    /// Share of the growth that went back, 0 to 1; `null` without growth.
    pub returned_ratio: Option<f64>,
    /// Bytes below the break given back by madvise while the break stayed (address space, not pages).
    pub advised_bytes: u64,
    /// How much of the heap was in memory at the last snapshot; `null` when not known.
    pub pages_at_end: Option<PageFigures>,
    /// Every move when there were few; otherwise the first, the last and the largest.
    pub steps: Steps,
}

/// Private anonymous memory of an address space, without the heap below the break and the main stack.
///
/// *Usable* leaves out what is mapped `PROT_NONE`: that is address space in reserve, and counts as memory only from
/// the mprotect that opens it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AnonymousReport {
    /// Usable bytes when observation began.
    pub start_bytes: u64,
    /// Usable bytes last.
    pub end_bytes: u64,
    /// Largest number of usable bytes while observed.
    pub peak_bytes: u64,
    /// Bytes last held in reserve without access.
    pub reserved_bytes: u64,
    /// Distinct stretches of usable memory last.
    pub areas: u64,
    /// Calls that made memory usable: mmap, mremap, mprotect.
    pub grow_calls: u64,
    /// Bytes by which they did.
    pub grown_bytes: u64,
    /// Calls that unmapped usable memory or closed it to all access: munmap, mremap, mprotect, mmap over it.
    pub shrink_calls: u64,
    /// Bytes by which they did.
    pub shrunk_bytes: u64,
    /// Share of the growth that went back, 0 to 1; `null` without growth.
    pub returned_ratio: Option<f64>,
    /// Bytes advised away with `MADV_DONTNEED`: given back while staying mapped. Address space, not pages: the same
    /// page counts each time, and pages never touched count too.
    pub dontneed_bytes: u64,
    /// Bytes advised away with `MADV_FREE`: the kernel takes them when memory is short.
    pub lazily_freed_bytes: u64,
    /// The largest moves.
    pub steps: Steps,
}

/// Moves of the break, or of anonymous memory.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Steps {
    /// How many there were.
    pub total: u64,
    /// Those that were kept, in order.
    pub kept: Vec<Step>,
}

/// One move of the break, or of anonymous memory.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Step {
    /// Its number among all moves, from 1.
    pub number: u64,
    /// When.
    pub time_ns: Timestamp,
    /// Thread that called.
    pub tid: u32,
    /// The call that did it: `brk`, `mmap`, `munmap`, `mremap`, `mprotect`.
    pub call: String,
    /// By how much, in bytes; negative when memory went back.
    pub delta_bytes: i64,
    /// Size afterwards: of the heap for moves of the break, of all usable anonymous memory for the others.
    pub after_bytes: u64,
    /// The break before and after, or the first and last address of what changed.
    pub from: Address,
    /// See `from`.
    pub to: Address,
    /// Why the bundled allocator did it; `null` for calls of the program itself, and of other allocators.
    #[serde(default)]
    pub allocator: Option<StepAllocator>,
    /// The call stack that did it; `null` when it was not recorded.
    #[serde(default)]
    pub stack: Option<StackId>,
    /// Why glibc's malloc did it, and what its size is made of; `null` where that is not known.
    #[serde(default)]
    pub explanation: Option<StepExplanation>,
}

/// Sizes over time, in buckets of equal length; buckets in which nothing changed are left out.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TimelineReport {
    /// Length of a bucket in nanoseconds; 0 when there are no points.
    pub bucket_ns: u64,
    /// The buckets with a change, in order.
    pub points: Vec<TimelinePoint>,
}

/// One bucket of a timeline: the values at its end and its extremes. A value holds until the next point.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct TimelinePoint {
    /// Time of the last change in the bucket, in nanoseconds since the recording began.
    pub time_ns: Timestamp,
    /// Size of the heap at that time.
    pub break_bytes: u64,
    /// Smallest size of the heap in the bucket.
    pub break_min_bytes: u64,
    /// Largest size of the heap in the bucket.
    pub break_max_bytes: u64,
    /// Usable anonymous memory at that time.
    pub anonymous_bytes: u64,
    /// Smallest in the bucket.
    pub anonymous_min_bytes: u64,
    /// Largest in the bucket.
    pub anonymous_max_bytes: u64,
    /// Resident memory by the last snapshot in the bucket; `null` when none fell into it.
    pub resident_bytes: Option<u64>,
    /// Bytes asked for in blocks not freed, by the last reading of the bundled allocator in the bucket; `null` when
    /// none fell into it.
    #[serde(default)]
    pub allocator_in_use_bytes: Option<u64>,
    /// Most of these in the bucket's readings; `null` likewise.
    #[serde(default)]
    pub allocator_in_use_max_bytes: Option<u64>,
    /// Bytes that the bundled allocator had from the kernel, by the last reading in the bucket, the call at which it
    /// was read included; `null` likewise.
    #[serde(default)]
    pub allocator_obtained_bytes: Option<u64>,
}

/// An address space at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayoutMoment {
    /// When.
    pub time_ns: Timestamp,
    /// From bottom to top.
    pub segments: Vec<LayoutSegment>,
}

/// One stretch of an address space, as in the textbook picture.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LayoutSegment {
    /// What it is.
    pub kind: SegmentKind,
    /// First address.
    pub start: Address,
    /// First address after it.
    pub end: Address,
    /// Bytes mapped within; for gaps, the bytes between `start` and `end`.
    pub bytes: u64,
    /// Mappings within; 0 for gaps.
    pub mappings: u64,
    /// The file it comes from, if it is one.
    pub name: Option<String>,
}

/// Parts of the textbook picture of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum SegmentKind {
    /// The program's code and constants (read-only parts of its file).
    Text,
    /// The program's initialized data (writable parts of its file).
    Data,
    /// The program's zero-initialized data.
    Bss,
    /// From the start of the heap to the program break.
    Heap,
    /// Nothing is mapped here.
    Gap,
    /// Shared libraries and other files.
    Files,
    /// Anonymous memory.
    Anonymous,
    /// Memory shared with other processes.
    Shared,
    /// The first thread's stack.
    Stack,
    /// The kernel's own mappings: vdso, vvar.
    Kernel,
}

/// How the model, built from events alone, compared with `/proc/<pid>/maps`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Checks {
    /// Comparisons made.
    pub made: u64,
    /// Comparisons in which something differed.
    pub differing: u64,
    /// Snapshots that could not be compared, because a thread was inside a memory call meanwhile.
    pub skipped: u64,
    /// The first differences, in words.
    pub differences: Vec<Difference>,
}

/// Something that `/proc/<pid>/maps` shows otherwise than the events tell.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Difference {
    /// When it was noticed.
    pub time_ns: Timestamp,
    /// First address concerned.
    pub start: Address,
    /// First address after it.
    pub end: Address,
    /// What the events tell.
    pub expected: String,
    /// What `/proc` shows.
    pub found: String,
}

impl Report {
    /// The address space with this number.
    #[must_use]
    pub fn space(&self, id: SpaceId) -> Option<&SpaceReport> {
        // Numbers ascend, and each space appears once.
        self.address_spaces
            .binary_search_by_key(&id, |space| space.id)
            .ok()
            .map(|index| &self.address_spaces[index])
    }

    /// The address space that the verdict is about.
    #[must_use]
    pub fn main(&self) -> Option<&SpaceReport> {
        self.space(self.main_space?)
    }
}
