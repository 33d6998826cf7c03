//! Why a move of the break, or of anonymous memory, was as large as it was: glibc's own arithmetic, applied to what was read
//! of its malloc at the call.

use serde::Deserialize;
use serde::Serialize;

use crate::event::MallocSettings;
use crate::units::Timestamp;

/// Why glibc's malloc made a call, and what its size is made of. The terms add up to the step's `delta_bytes`, always.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepExplanation {
    /// What it was for.
    pub reason: StepReason,
    /// Bytes of the chunk that was asked for, header included; `null` when only the bounds are known, or there was none.
    pub chunk_bytes: Option<u64>,
    /// Fewest bytes that malloc can have been asked for; `null` when nothing was asked for.
    pub request_min_bytes: Option<u64>,
    /// Most bytes that it can have been; the same where it is known exactly. An exact chunk alone leaves 16 sizes, as malloc
    /// rounds up to multiples of 16.
    pub request_max_bytes: Option<u64>,
    /// What the size is made of; empty where only the reason is known.
    pub terms: Vec<StepTerm>,
}

impl StepExplanation {
    /// Of which only the reason is known.
    pub(crate) fn plain(reason: StepReason) -> Self {
        Self {
            reason,
            chunk_bytes: None,
            request_min_bytes: None,
            request_max_bytes: None,
            terms: Vec::new(),
        }
    }
}

/// What a call of malloc's was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum StepReason {
    /// The top was too small for a request: the break was raised (`sysmalloc`).
    Request,
    /// As free trims: the top had reached the trim threshold, and the pad was kept (`systrim`). A malloc_trim(3) with the pad
    /// as its argument does the same.
    TrimByFree,
    /// As only malloc_trim(3) trims, with whatever it was told to keep.
    MallocTrim,
    /// A chunk from the mmap threshold on: a mapping of its own.
    MappedChunk,
    /// Such a chunk was freed.
    UnmappedChunk,
    /// Such a chunk was freed, and as it was larger than the mmap threshold, that became its size.
    UnmappedChunkRaisedThreshold,
    /// Such a chunk was reallocated, and its mapping with it; the request is the new one.
    ResizedChunk,
    /// brk was refused, so the main arena goes on in a mapping.
    BreakRefused,
    /// Address space for a thread's arena, or a further heap of it.
    ArenaReserved,
    /// The first part of it was opened.
    ArenaOpened,
    /// A thread's arena grew (`grow_heap`).
    ArenaGrew,
    /// Somebody else had moved the break: malloc gives up the old top, and gets whole pages again (`correction` in
    /// `sysmalloc`), right after the growth that met the gap.
    AfterForeignMove,
    /// The program, or another library, moved the break by itself.
    NotMalloc,
    /// The size does not follow from malloc's arithmetic.
    Unexplained,
}

/// A part of a step's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepTerm {
    /// Which.
    pub kind: StepTermKind,
    /// Its bytes; negative for what is taken off.
    pub bytes: i64,
}

/// Kinds of parts of a step's size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum StepTermKind {
    /// The chunk that was asked for.
    Chunk,
    /// The chunk and the rounding to pages together, where only their sum is known.
    ChunkAndRounding,
    /// What is obtained ahead of need (`M_TOP_PAD`).
    TopPad,
    /// The smallest chunk: so much of the top always stays.
    SmallestChunk,
    /// What the top still had.
    LeftInTop,
    /// Up to whole pages; for what is given back, down to whole pages.
    PageRounding,
    /// What the top has, when memory is given back.
    Top,
    /// What is kept of it.
    Kept,
    /// The header of a mapping's chunk.
    Header,
    /// What was open already from the last time that the heap was so large.
    AlreadyOpen,
    /// Up to the alignment of chunks.
    Alignment,
    /// As much as the old top had, which cannot be joined to what lies behind the gap.
    LostTop,
    /// Up to what malloc maps at least where brk is refused (1 MiB, `MMAP_AS_MORECORE_SIZE`), with what the old top had,
    /// which cannot be joined.
    MappingRounding,
}

/// How many moves glibc's arithmetic explained.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explained {
    /// Growths of the break for a request.
    pub break_requests: u64,
    /// Of these, those of which the chunk was known exactly at once; of earlier ones it may have become known later.
    pub break_requests_exact: u64,
    /// Trims as free makes them.
    pub trims_by_free: u64,
    /// Trims by malloc_trim.
    pub trims_by_malloc_trim: u64,
    /// Mappings that are chunks.
    pub mapped_chunks: u64,
    /// Those given back.
    pub unmapped_chunks: u64,
    /// Times that arenas of threads grew.
    pub arena_growths: u64,
    /// Times that the main arena went on in a mapping, as brk was refused.
    pub break_refusals: u64,
    /// Moves of the break by which malloc made up for those of others.
    #[serde(default)]
    pub after_foreign_moves: u64,
    /// Times that the end of a thread's arena was given back by madvise (`shrink_heap`): its size stays, its pages go.
    #[serde(default)]
    pub arena_shrinks: u64,
    /// Bytes of address space that these calls named.
    #[serde(default)]
    pub arena_shrunk_bytes: u64,
    /// Times that malloc_trim(3) gave back pages inside of free chunks by madvise (`mtrim`).
    #[serde(default)]
    pub malloc_trim_advices: u64,
    /// Bytes of address space that these calls named.
    #[serde(default)]
    pub malloc_trim_advised_bytes: u64,
    /// Moves of the break that were not malloc's.
    pub not_malloc: u64,
    /// Moves of the break, seen with malloc at work, that its arithmetic does not explain.
    pub unexplained: u64,
}

/// glibc's malloc in one address space: its settings, and what its arithmetic explained.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MallocReport {
    /// The file that brings it; `null` when not known.
    pub file: Option<String>,
    /// glibc's version; `null` when its file does not say.
    pub version: Option<String>,
    /// The settings as first seen.
    pub first_settings: MallocSettings,
    /// The settings as last seen.
    pub last_settings: MallocSettings,
    /// When they changed, and to what; the first changes.
    pub changes: Vec<SettingsChange>,
    /// What was explained.
    pub explained: Explained,
}

/// A change of malloc's settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SettingsChange {
    /// When it was seen.
    pub time_ns: Timestamp,
    /// What they are since.
    pub settings: MallocSettings,
}
