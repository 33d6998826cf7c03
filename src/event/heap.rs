//! What a program's heap looks like from outside, whichever malloc it uses.
//!
//! Words are those of glibc's malloc.c: an *arena* is a set of chunks under one lock, a *chunk* is a block with its
//! header, the *top* is the last chunk of an arena, from which new ones are cut. Bytes of chunks count their headers.

use serde::Deserialize;
use serde::Serialize;

use super::ReadingMoment;
use crate::units::Address;

/// A program's heap as it was looked through from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapExamination {
    /// On what occasion.
    pub moment: ReadingMoment,
    /// Whether the program stood still throughout. Otherwise it did while arenas and thread caches were read, and ran
    /// while the chunks were.
    pub still: bool,
    /// The allocators that were recognised: those in charge of blocks first, pools on top of them last.
    pub allocators: Vec<RecognisedAllocator>,
    /// The heaps of glibc's malloc: mostly one; several when there are several C libraries (dlmopen(3)); none when nobody
    /// has called it.
    pub heaps: Vec<GlibcHeap>,
    /// Where the process had its memory at that moment; absent where that was not asked, or is told elsewhere.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<ProcessMemory>,
    /// What the look cost.
    pub cost: ExaminationCost,
    /// What could not be done, and why; empty when all was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<String>,
}

/// An allocator that was recognised in a program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RecognisedAllocator {
    /// Its name as its authors write it: `glibc malloc`, `jemalloc`, `mimalloc`, `tcmalloc`, `musl mallocng`, `Go`, `CPython`, `V8`, …
    pub name: String,
    /// Its version; `null` when not known.
    pub version: Option<String>,
    /// The file that brings it; `null` when not known.
    pub file: Option<String>,
    /// What it does here.
    pub role: AllocatorRole,
    /// By what it was recognised, in words.
    pub evidence: String,
    /// Bytes mapped that are its own; `null` when they cannot be told from others'.
    pub mapped_bytes: Option<u64>,
    /// Of these, bytes in memory; `null` likewise.
    pub resident_bytes: Option<u64>,
    /// Of these, bytes given back with `MADV_FREE` that the kernel has not taken yet; `null` likewise.
    pub lazily_free_bytes: Option<u64>,
    /// What of it cannot be seen from outside, in words; `null` when all that matters can.
    pub not_visible: Option<String>,
}

/// What an allocator does in a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AllocatorRole {
    /// `malloc` is its; or the program has no malloc, and its blocks come from here, as in a program of Go without C.
    InCharge,
    /// It serves a part of the program beside malloc: Go's runtime in a program that also uses C.
    Beside,
    /// It takes large pieces from malloc or mmap and deals them out itself: CPython's arenas, V8's heap.
    Above,
    /// It is there, and nobody has called it yet.
    Unused,
    /// It is there; whether it is used cannot be told.
    Unknown,
}

/// Where a process has its memory, as `/proc/<pid>/status` tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ProcessMemory {
    /// Bytes in memory (`VmRSS`).
    pub resident_bytes: u64,
    /// Of these, private memory without a file (`RssAnon`): the heap is in it.
    pub resident_anonymous_bytes: u64,
    /// Of these, pages of files (`RssFile`): the program, its libraries, and files that it maps.
    pub resident_file_bytes: u64,
    /// Of these, shared memory (`RssShmem`).
    pub resident_shared_bytes: u64,
    /// Bytes swapped out (`VmSwap`).
    pub swapped_bytes: u64,
}

/// What a look at a heap cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExaminationCost {
    /// Nanoseconds from beginning to end.
    pub total_ns: u64,
    /// Nanoseconds that the program was stopped for it; `null` when it stood still for another reason.
    pub stopped_ns: Option<u64>,
    /// Bytes of its memory that were read.
    pub read_bytes: u64,
}

/// The heap of one glibc malloc.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct GlibcHeap {
    /// The file that brings it: libc.so.6, or a static program; `null` when not known.
    pub file: Option<String>,
    /// glibc's version, `2.36`; `null` when the file does not say (static programs).
    pub version: Option<String>,
    /// Where its `main_arena` is.
    pub main_arena: Address,
    /// Its settings; `null` when they were not found.
    pub settings: Option<MallocSettings>,
    /// Sums over all arenas.
    pub total: ArenaFigures,
    /// The arenas, the main one first; of more than a thousand the first.
    pub arenas: Vec<Arena>,
    /// Chunks that are mappings of their own.
    pub mapped: MappedChunks,
    /// Caches of threads.
    pub thread_caches: ThreadCaches,
    /// What mallinfo2(3) would say, field by field.
    pub mallinfo: Mallinfo,
    /// Bytes in memory that `malloc_trim(0)` would give back now; `null` when it is not known what is in memory.
    pub trimmable_bytes: Option<u64>,
    /// Chunks in use by size, smallest first; those that are mappings of their own are not among them.
    pub classes: Vec<ChunkClass>,
    /// The last chunks in use below the top of the main arena, highest first: they keep the break where it is.
    pub pins: Vec<Pin>,
    /// What was checked.
    pub checks: Vec<HeapCheck>,
}

/// How a malloc is set up, by tunables, mallopt(3), or by what it has learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MallocSettings {
    /// `M_TRIM_THRESHOLD`: free gives back what the top holds beyond.
    pub trim_threshold_bytes: u64,
    /// `M_TOP_PAD`: asked for beyond what is needed, and kept when giving back.
    pub top_pad_bytes: u64,
    /// `M_MMAP_THRESHOLD`: chunks from this size on are mappings of their own.
    pub mmap_threshold_bytes: u64,
    /// Whether that threshold grows when such a chunk is freed.
    pub mmap_threshold_is_dynamic: bool,
    /// `M_MMAP_MAX`: most such chunks.
    pub mmap_max: u64,
    /// `M_ARENA_MAX`; 0 means as many as there are processors make useful.
    pub arena_max: u64,
    /// Chunks that a thread cache holds of one size; `null` where there are no thread caches (before 2.26).
    pub tcache_count: Option<u64>,
    /// Largest block that goes to a thread cache; `null` likewise.
    pub tcache_max_bytes: Option<u64>,
    /// To a multiple of this the break is moved where transparent huge pages were asked for
    /// (`glibc.malloc.hugetlb=1`); 0 when not, `null` before 2.35.
    pub thp_page_bytes: Option<u64>,
    /// Huge pages that malloc maps (`glibc.malloc.hugetlb=2`); 0 for none, `null` before 2.35.
    pub huge_page_bytes: Option<u64>,
}

/// How the memory of arenas is used. `system = in use + cached + fast + binned + top + other`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ArenaFigures {
    /// Bytes obtained from the kernel, by the arena's own account.
    pub system_bytes: u64,
    /// Bytes of chunks that the program has and has not freed.
    pub in_use_bytes: u64,
    /// How many.
    pub in_use_chunks: u64,
    /// Bytes of freed chunks that wait in thread caches. mallinfo(3) counts them as in use.
    pub cached_bytes: u64,
    /// How many.
    pub cached_chunks: u64,
    /// Bytes of freed chunks in fast bins: not joined with their neighbours yet.
    pub fast_bytes: u64,
    /// How many.
    pub fast_chunks: u64,
    /// Bytes of free chunks in the other bins.
    pub binned_bytes: u64,
    /// How many.
    pub binned_chunks: u64,
    /// Bytes of the top.
    pub top_bytes: u64,
    /// Bytes that are neither: ends of segments, headers of heaps, memory between that somebody else took with sbrk(2).
    pub other_bytes: u64,
    /// Bytes in memory of all that; `null` when not known.
    pub resident_bytes: Option<u64>,
    /// Of the fast, binned and top bytes, those in memory; `null` likewise.
    pub free_resident_bytes: Option<u64>,
    /// Of these, what `malloc_trim(0)` would give back; `null` likewise.
    pub trimmable_bytes: Option<u64>,
    /// Of these, what lies in pages that also hold a chunk in use or in a thread cache, so that nothing can give it back; `null`
    /// likewise.
    pub fragmented_bytes: Option<u64>,
    /// Bytes that are swapped out, and were not looked at; `null` likewise.
    pub swapped_bytes: Option<u64>,
    /// Bytes of `system_bytes` that were not found; 0 when the sum holds.
    pub not_found_bytes: u64,
}

/// An arena.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Arena {
    /// Where its `malloc_state` is.
    pub address: Address,
    /// Whether it is the main arena, which grows by brk.
    pub is_main: bool,
    /// Whether its memory is known to be one piece; the main arena loses this for good when brk is refused, or somebody
    /// else moves the break.
    pub contiguous: bool,
    /// Threads that use it; `null` before glibc 2.23.
    pub threads: Option<u64>,
    /// Stretches of memory that it consists of.
    pub segments: u64,
    /// Where its top is.
    pub top: Address,
    /// How its memory is used.
    #[serde(flatten)]
    pub figures: ArenaFigures,
}

/// Chunks that are mappings of their own, as they are larger than the mmap threshold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MappedChunks {
    /// How many, by malloc's own account; `null` when that was not found.
    pub chunks: Option<u64>,
    /// Bytes in them, by malloc's own account; `null` likewise.
    pub bytes: Option<u64>,
    /// How many were found.
    pub found_chunks: u64,
    /// Bytes in those.
    pub found_bytes: u64,
    /// Of these, bytes in memory; `null` when not known.
    pub resident_bytes: Option<u64>,
}

/// Caches of threads (`tcache`, glibc 2.26 and later).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ThreadCaches {
    /// Threads that were asked.
    pub threads: u64,
    /// Of these, threads in which a cache was found; the others have none, or it was not found.
    pub found: u64,
    /// Freed chunks in them.
    pub chunks: u64,
    /// Bytes of those.
    pub bytes: u64,
}

/// The fields of mallinfo2(3), by their names there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Mallinfo {
    /// Bytes of all arenas.
    pub arena: u64,
    /// Free chunks in bins, and one top of each arena.
    pub ordblks: u64,
    /// Chunks in fast bins.
    pub smblks: u64,
    /// Mapped chunks; `null` when not known.
    pub hblks: Option<u64>,
    /// Bytes in them; `null` likewise.
    pub hblkhd: Option<u64>,
    /// Bytes in fast bins.
    pub fsmblks: u64,
    /// Bytes in use; those in thread caches count as such.
    pub uordblks: u64,
    /// Free bytes: in bins, fast bins, tops.
    pub fordblks: u64,
    /// Bytes of the main arena's top.
    pub keepcost: u64,
}

/// Chunks in use whose sizes lie in one range.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ChunkClass {
    /// Smallest size of the range, header included. A block of `malloc(n)` has `n + 8` bytes, rounded up to 16, 32 at least.
    pub from_bytes: u64,
    /// Largest size of the range; the same for chunks of up to 1024 bytes.
    pub to_bytes: u64,
    /// How many.
    pub chunks: u64,
    /// Bytes in them.
    pub bytes: u64,
}

/// A chunk in use that keeps the top from reaching further down.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Pin {
    /// Where its block is, as malloc returned it.
    pub address: Address,
    /// Bytes of the chunk.
    pub bytes: u64,
    /// Whether it waits in a thread cache: freed, yet in the way.
    pub cached: bool,
    /// Bytes by which the break could drop if this and all pins above it were gone.
    pub drop_bytes: u64,
}

/// Something that must hold of a sound heap, and whether it does.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapCheck {
    /// What should hold, in words: `chunks add up to what the arenas obtained`.
    pub what: String,
    /// Whether it does.
    pub outcome: CheckOutcome,
    /// Figures, or the reason; `null` when there is nothing to add.
    pub detail: Option<String>,
}

/// What came of a check.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum CheckOutcome {
    /// It holds.
    Holds,
    /// It does not hold, and nothing explains it: figures may be wrong.
    Fails,
    /// It does not hold exactly, as the program ran meanwhile, or a thread stood in the middle of malloc.
    Moving,
    /// It could not be checked.
    Unknown,
}
