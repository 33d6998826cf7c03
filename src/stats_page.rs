//! What the bundled allocator counts, where, and how another process finds it.
//!
//! This file is compiled twice: into the library that is preloaded into a program, and into breaktrace, which reads
//! the program's memory. It is the only thing that both must agree on. Whatever changes the layout of a structure
//! here raises [`LAYOUT_VERSION`].
//!
//! The page is one private mapping of a memfd named [`NAME`], so that it shows up in `/proc/<pid>/maps` after launch,
//! fork, exec or attach; a forked child has a copy, like the rest of its heap. From it lists lead to the counters of
//! each thread cache and each arena. Each counter has one writer at a time (the thread that owns the cache, the
//! holder of the arena's lock), so plain stores do; whoever reads adds up.
//!
//! At any moment at which no thread is inside the allocator:
//!
//! ```text
//! obtained = in use + overhead + free in pool + top
//! ```
//!
//! The terms are counted apart from each other, so the equation is a check of the counters, not their definition.

use core::mem::size_of;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// First word of a complete page; stored last.
pub const MAGIC: u64 = u64::from_le_bytes(*b"brktrace");

/// Raised with every change of a layout in this file.
pub const LAYOUT_VERSION: u32 = 2;

/// Name of the memfd behind the page, as `/proc/<pid>/maps` shows it: `/memfd:breaktrace-stats (deleted)`.
pub const NAME: &core::ffi::CStr = c"breaktrace-stats";

/// Size classes of small blocks.
pub const SMALL_CLASSES: usize = 48;

/// Heap errors that the page keeps; later ones overwrite the oldest.
pub const KEPT_ERRORS: usize = 16;

/// The sixth argument of each memory call that the allocator makes. The kernel looks at no sixth argument of brk,
/// munmap, mremap and madvise, and for private anonymous memory at no offset of mmap (mm/mmap.c, `do_mmap`); a
/// tracer sees it. A multiple of every page size, as mmap wants of an offset.
///
/// For brk, munmap, mremap and madvise the fourth or fifth argument are free as well: see [`Cause`].
pub const SIGNATURE: u64 = 0x6272_6561_0000;

/// Why the allocator made a memory call: fourth argument of its brk, munmap and madvise calls. The fifth is the size in
/// bytes of the request that caused it, 0 where there was none; for [`Cause::Announce`] the address of the page, for
/// [`Cause::HeapError`] the number of the error (1 for the first), for samples the address of the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Cause {
    /// A request for a block that no free memory could hold.
    Request = 1,
    /// free or realloc left more at the top than the policy keeps.
    Trim = 2,
    /// malloc_trim.
    MallocTrim = 3,
    /// The policy gives back whole free pages.
    Eager = 4,
    /// The allocator's own records: thread caches, arenas.
    Records = 5,
    /// A large block was freed, or resized.
    Release = 6,
    /// No memory call: `madvise(page, 0, MADV_DONTNEED)`, which does nothing, tells where the page is.
    Announce = 7,
    /// No memory call: the same, tells that an error was recorded.
    HeapError = 8,
    /// No memory call: the same, tells that the block was handed out and is a sample. The fourth argument has the size
    /// asked for in the bits from [`DETAIL`] on.
    Sampled = 9,
    /// No memory call: the same, tells that a sample was freed, or is about to be resized.
    SampleFreed = 10,
}

/// First bit of the fourth argument that does not belong to the cause.
pub const DETAIL: u32 = 8;

impl Cause {
    /// The cause with this number.
    #[must_use]
    pub fn from_number(number: u64) -> Option<Self> {
        Some(match number {
            1 => Self::Request,
            2 => Self::Trim,
            3 => Self::MallocTrim,
            4 => Self::Eager,
            5 => Self::Records,
            6 => Self::Release,
            7 => Self::Announce,
            8 => Self::HeapError,
            9 => Self::Sampled,
            10 => Self::SampleFreed,
            _ => return None,
        })
    }
}

/// What a counter counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Bytes.
    Bytes,
    /// How many, or how often.
    Count,
}

/// Name, unit and meaning of a counter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CounterInfo {
    /// Its name in JSON, in text and in the code.
    pub name: &'static str,
    /// What it counts.
    pub unit: Unit,
    /// Its meaning, one paragraph.
    pub meaning: &'static str,
}

/// Declares the counters, once: the structure, its table, its values in the order of the table.
macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident: $unit:ident;)*) => {
        /// The allocator's figures at one moment, added up over its thread caches and arenas.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counters {
            $($(#[doc = $doc])+ pub $name: u64,)*
        }

        /// All counters, in the order of [`Counters::values`].
        pub const COUNTERS: &[CounterInfo] = &[
            $(CounterInfo { name: stringify!($name), unit: Unit::$unit, meaning: concat!($($doc),+) },)*
        ];

        impl Counters {
            /// The values, in the order of [`COUNTERS`].
            #[must_use]
            pub fn values(&self) -> [u64; COUNTERS.len()] {
                [$(self.$name),*]
            }

            /// Counters with these values, in the order of [`COUNTERS`].
            #[must_use]
            pub fn from_values(values: [u64; COUNTERS.len()]) -> Self {
                let [$($name),*] = values;
                Self { $($name),* }
            }
        }
    };
}

counters! {
    /// Bytes that the program has asked for since it began; realloc asks for what the block grows by, or anew when
    /// the block moves.
    requested_bytes: Bytes;
    /// Bytes asked for in blocks that are not freed.
    in_use_bytes: Bytes;
    /// Highest `in_use_bytes`. Exact while one thread allocates. With several, threads compare notes whenever they need
    /// more than their caches hold: the true peak may be higher by what the caches served in between, some hundred KiB for
    /// each thread at most.
    in_use_peak_bytes: Bytes;
    /// Bytes obtained from the kernel and not given back: by brk and by mmap, the allocator's own records included.
    obtained_bytes: Bytes;
    /// Highest `obtained_bytes`.
    obtained_peak_bytes: Bytes;
    /// Bytes obtained and neither in use nor free: headers, rounding, records.
    overhead_bytes: Bytes;
    /// Of the overhead: what live blocks take beyond what was asked for, header included.
    block_overhead_bytes: Bytes;
    /// Of the overhead: records of slabs, segments, thread caches and arenas, and the ends of slabs that hold no block.
    record_bytes: Bytes;
    /// Bytes kept for the next request: in free chunks, in slabs, in thread caches.
    free_bytes: Bytes;
    /// Of the free bytes: chunks in bins.
    free_chunk_bytes: Bytes;
    /// Of the free bytes: small blocks in slabs.
    free_slab_bytes: Bytes;
    /// Of the free bytes: blocks in thread caches.
    cached_bytes: Bytes;
    /// Bytes at the end of each arena that no block has used since they were obtained or joined to it.
    top_bytes: Bytes;
    /// Blocks not freed.
    live_blocks: Count;
    /// Blocks handed out since the program began.
    allocated_blocks: Count;
    /// Blocks freed since the program began, those that realloc moved included.
    freed_blocks: Count;
    /// Blocks handed out by malloc itself.
    malloc_calls: Count;
    /// Blocks handed out by calloc.
    calloc_calls: Count;
    /// Blocks handed out with an alignment: aligned_alloc, posix_memalign, memalign, valloc, pvalloc.
    aligned_calls: Count;
    /// Calls of realloc with a block and a size.
    realloc_calls: Count;
    /// Of these, those that left the block where it was.
    realloc_in_place: Count;
    /// Requests that failed for lack of memory, or were larger than an object can be.
    failed_requests: Count;
    /// Requests served by the thread's own cache.
    cache_hits: Count;
    /// Requests for which a lock was taken, or the kernel asked.
    cache_misses: Count;
    /// Blocks above the mmap threshold that are not freed.
    live_large_blocks: Count;
    /// Free chunks in bins.
    free_chunks: Count;
    /// Chunks split.
    splits: Count;
    /// Chunks joined with a free neighbour or the top.
    coalesces: Count;
    /// Slabs made.
    slabs_made: Count;
    /// Slabs given up, all their blocks being free.
    slabs_released: Count;
    /// Times that memory at the top was given back.
    trims: Count;
    /// brk calls that asked to move the break.
    brk_calls: Count;
    /// Of these, those that were refused.
    brk_refused: Count;
    /// Bytes by which brk calls raised the break.
    brk_grown_bytes: Bytes;
    /// Bytes by which brk calls lowered it.
    brk_shrunk_bytes: Bytes;
    /// mmap calls.
    mmap_calls: Count;
    /// Bytes mapped by mmap, and by mremap in growing.
    mapped_bytes: Bytes;
    /// munmap calls.
    munmap_calls: Count;
    /// Bytes unmapped by munmap, and by mremap in shrinking.
    unmapped_bytes: Bytes;
    /// mremap calls.
    mremap_calls: Count;
    /// madvise calls that gave pages back.
    madvise_calls: Count;
    /// Bytes of whole pages given back by madvise while they stayed obtained.
    advised_bytes: Bytes;
    /// Times that a thread found an arena's lock taken.
    lock_waits: Count;
    /// Arenas in use; the first is the one at the program break.
    arenas: Count;
    /// Thread caches made; those of ended threads are taken over by new ones.
    thread_caches: Count;
    /// Times that somebody else was found to have moved the program break.
    foreign_break_moves: Count;
    /// Heap errors found.
    heap_errors: Count;
}

impl Counters {
    /// Whether `obtained = in use + overhead + free + top` holds, as it does whenever no thread is inside the allocator.
    #[must_use]
    pub fn adds_up(&self) -> bool {
        self.obtained_bytes
            == self
                .in_use_bytes
                .wrapping_add(self.overhead_bytes)
                .wrapping_add(self.free_bytes)
                .wrapping_add(self.top_bytes)
    }
}

/// One size class of small blocks at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassFigures {
    /// Bytes of a block of this class, its header of 8 bytes included.
    pub block_bytes: u64,
    /// Blocks handed out since the program began.
    pub allocated: u64,
    /// Blocks not freed.
    pub live: u64,
    /// Free blocks in thread caches.
    pub cached: u64,
    /// Free blocks in slabs.
    pub free: u64,
}

/// Bytes of a block of small class `class`, header included: steps of 16 up to 512, of 32 up to 1024.
#[must_use]
pub const fn small_block_bytes(class: usize) -> u64 {
    if class < 32 {
        16 * (class as u64 + 1)
    } else {
        512 + 32 * (class as u64 - 31)
    }
}

/// What to do with memory that is no longer needed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u32)]
pub enum Policy {
    /// Keep all of it; only malloc_trim and the unmapping of large blocks give back.
    Never = 1,
    /// Give back what lies at the top beyond a threshold, as glibc does.
    #[default]
    Trim = 2,
    /// Give back the top at once, and whole free pages below it by `MADV_DONTNEED`.
    Eager = 3,
}

impl Policy {
    /// The policy with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [Self::Never, Self::Trim, Self::Eager]
            .into_iter()
            .find(|policy| *policy as u32 == number)
    }

    /// Its name on the command line and in the environment.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Never => "never",
            Self::Trim => "trim",
            Self::Eager => "eager",
        }
    }
}

/// Names of the environment variables that set the allocator up; breaktrace's options set them. Sizes are bytes.
pub mod environment {
    /// `never`, `trim` or `eager`.
    pub const POLICY: &str = "BREAKTRACE_HEAP_POLICY";
    /// `1` for red zones, fill patterns and quarantine.
    pub const GUARD: &str = "BREAKTRACE_GUARD";
    /// `report` or `abort`.
    pub const ON_HEAP_ERROR: &str = "BREAKTRACE_ON_HEAP_ERROR";
    /// From which size on a block is mapped by itself; fixed then, otherwise it grows as glibc's does.
    pub const MMAP_THRESHOLD: &str = "BREAKTRACE_MMAP_THRESHOLD";
    /// How much the top may hold before `trim` gives back.
    pub const TRIM_THRESHOLD: &str = "BREAKTRACE_TRIM_THRESHOLD";
    /// How much more than needed is obtained at a time.
    pub const TOP_PAD: &str = "BREAKTRACE_TOP_PAD";
    /// Most arenas.
    pub const ARENA_MAX: &str = "BREAKTRACE_ARENA_MAX";
    /// Mean number of requested bytes between two blocks that are told to the tracer; 1 for all, 0 for none.
    pub const SAMPLE_INTERVAL: &str = "BREAKTRACE_SAMPLE_INTERVAL";
}

/// What went wrong in the program's heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum HeapErrorKind {
    /// A block was freed that is free already.
    DoubleFree = 1,
    /// free or realloc was given what malloc never gave.
    ForeignPointer = 2,
    /// Bytes behind the end of the block were changed.
    WritePastEnd = 3,
    /// Bytes before the start of the block were changed.
    WriteBeforeStart = 4,
    /// A block was changed after it was freed.
    WriteAfterFree = 5,
    /// The allocator's own records were changed, and it cannot be told from which block.
    RecordsChanged = 6,
}

impl HeapErrorKind {
    /// The kind with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [
            Self::DoubleFree,
            Self::ForeignPointer,
            Self::WritePastEnd,
            Self::WriteBeforeStart,
            Self::WriteAfterFree,
            Self::RecordsChanged,
        ]
        .into_iter()
        .find(|kind| *kind as u32 == number)
    }
}

/// Where a heap error was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum FoundBy {
    /// In free.
    Free = 1,
    /// In realloc.
    Realloc = 2,
    /// In malloc or another request for memory.
    Malloc = 3,
    /// When a block left the quarantine.
    Quarantine = 4,
    /// In malloc_usable_size.
    UsableSize = 5,
    /// When the heap was looked through at the end of the program.
    Exit = 6,
}

impl FoundBy {
    /// The place with this number.
    #[must_use]
    pub fn from_number(number: u32) -> Option<Self> {
        [
            Self::Free,
            Self::Realloc,
            Self::Malloc,
            Self::Quarantine,
            Self::UsableSize,
            Self::Exit,
        ]
        .into_iter()
        .find(|place| *place as u32 == number)
    }
}

/// A word with one writer at a time and any number of readers.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct Word(AtomicU64);

impl Word {
    /// A word with this value.
    #[must_use]
    pub const fn new(value: u64) -> Self {
        Self(AtomicU64::new(value))
    }

    /// Its value.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }

    /// Sets it.
    #[inline(always)]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Adds to it. The writer must be the only one: no other addition is lost only then.
    #[inline(always)]
    pub fn add(&self, amount: u64) {
        self.set(self.get().wrapping_add(amount));
    }

    /// Takes from it, likewise.
    #[inline(always)]
    pub fn sub(&self, amount: u64) {
        self.set(self.get().wrapping_sub(amount));
    }

    /// Adds to it among several writers, and returns the sum.
    pub fn add_shared(&self, amount: u64) -> u64 {
        self.0.fetch_add(amount, Relaxed).wrapping_add(amount)
    }

    /// Takes from it among several writers.
    pub fn sub_shared(&self, amount: u64) {
        self.0.fetch_sub(amount, Relaxed);
    }

    /// Raises it to `value` among several writers, if it is lower.
    pub fn raise_shared(&self, value: u64) {
        self.0.fetch_max(value, Relaxed);
    }
}

/// Like [`Word`], with 32 bits.
#[derive(Debug, Default)]
#[repr(transparent)]
pub struct HalfWord(AtomicU32);

impl HalfWord {
    /// A word with this value.
    #[must_use]
    pub const fn new(value: u32) -> Self {
        Self(AtomicU32::new(value))
    }

    /// Its value.
    #[inline(always)]
    #[must_use]
    pub fn get(&self) -> u32 {
        self.0.load(Relaxed)
    }

    /// Sets it.
    #[inline(always)]
    pub fn set(&self, value: u32) {
        self.0.store(value, Relaxed);
    }
}

/// What one thread cache counts: first part of each cache in the program's memory. Sums since the program began, or
/// since the fork that it was copied at, unless another meaning is given.
#[derive(Debug)]
#[repr(C)]
pub struct CacheCounters {
    /// Address of the next thread cache; 0 after the last.
    pub next: Word,
    /// Blocks handed out, by class.
    pub allocated: [Word; SMALL_CLASSES],
    /// Blocks freed, by class.
    pub freed: [Word; SMALL_CLASSES],
    /// Blocks in the cache now, by class.
    pub cached: [HalfWord; SMALL_CLASSES],
    /// Bytes asked for.
    pub requested_bytes: Word,
    /// Bytes asked for, of blocks freed.
    pub released_bytes: Word,
    /// Highest that the first exceeded the second by.
    pub peak_bytes: Word,
    /// Medium blocks handed out.
    pub medium_allocated: Word,
    /// Medium blocks freed.
    pub medium_freed: Word,
    /// Bytes of the chunks of medium blocks handed out.
    pub medium_allocated_bytes: Word,
    /// Bytes of the chunks of medium blocks freed.
    pub medium_freed_bytes: Word,
    /// Bytes of chunks in the cache now.
    pub medium_cached_bytes: Word,
    /// Large blocks handed out.
    pub large_allocated: Word,
    /// Large blocks freed.
    pub large_freed: Word,
    /// Bytes of the mappings of large blocks handed out.
    pub large_allocated_bytes: Word,
    /// Bytes of the mappings of large blocks freed.
    pub large_freed_bytes: Word,
    /// Blocks handed out by calloc.
    pub calloc_calls: Word,
    /// Blocks handed out with an alignment.
    pub aligned_calls: Word,
    /// Calls of realloc with a block and a size.
    pub realloc_calls: Word,
    /// Of these, those that left the block where it was.
    pub realloc_in_place: Word,
    /// Blocks handed out by realloc because it moved one.
    pub realloc_moved: Word,
    /// Requests that failed.
    pub failed_requests: Word,
    /// Requests that the cache could not serve.
    pub misses: Word,
}

/// What one arena counts: first part of each arena in the program's memory. State now, unless another meaning is given.
#[derive(Debug)]
#[repr(C)]
pub struct ArenaCounters {
    /// Address of the next arena; 0 after the last.
    pub next: Word,
    /// Address of the newest segment; 0 without one.
    pub segments: Word,
    /// Bytes of records at the ends of segments.
    pub segment_record_bytes: Word,
    /// Bytes of the top chunk.
    pub top_bytes: Word,
    /// Free chunks in bins.
    pub free_chunks: Word,
    /// Their bytes.
    pub free_chunk_bytes: Word,
    /// Bytes of slabs that hold no block: their records and ends.
    pub slab_record_bytes: Word,
    /// Free blocks in slabs, by class, those never used included.
    pub slab_free: [Word; SMALL_CLASSES],
    /// Chunks split, since the program began.
    pub splits: Word,
    /// Chunks joined, since the program began.
    pub coalesces: Word,
    /// Slabs made, since the program began.
    pub slabs_made: Word,
    /// Slabs given up, since the program began.
    pub slabs_released: Word,
    /// Times that memory at the top was given back, since the program began.
    pub trims: Word,
    /// Times that a thread found the lock taken, since the program began.
    pub lock_waits: Word,
}

impl ArenaCounters {
    /// Those of an empty arena.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            next: Word::new(0),
            segments: Word::new(0),
            segment_record_bytes: Word::new(0),
            top_bytes: Word::new(0),
            free_chunks: Word::new(0),
            free_chunk_bytes: Word::new(0),
            slab_record_bytes: Word::new(0),
            slab_free: [const { Word::new(0) }; SMALL_CLASSES],
            splits: Word::new(0),
            coalesces: Word::new(0),
            slabs_made: Word::new(0),
            slabs_released: Word::new(0),
            trims: Word::new(0),
            lock_waits: Word::new(0),
        }
    }
}

impl Default for ArenaCounters {
    fn default() -> Self {
        Self::new()
    }
}

/// What the allocator counts as a whole: calls to the kernel, since the program began unless another meaning is given.
#[derive(Debug)]
#[repr(C)]
pub struct KernelCounters {
    /// Bytes obtained and not given back, now.
    pub obtained_bytes: Word,
    /// Highest of these.
    pub obtained_peak_bytes: Word,
    /// Bytes asked for and not freed, as threads have last told.
    pub told_bytes: Word,
    /// Highest of these.
    pub told_peak_bytes: Word,
    /// Bytes of thread caches and arenas, of the page, and of mappings' parts that no block or segment uses, now.
    pub record_bytes: Word,
    /// brk calls that asked to move the break.
    pub brk_calls: Word,
    /// Of these, those that were refused.
    pub brk_refused: Word,
    /// Bytes by which they raised it.
    pub brk_grown_bytes: Word,
    /// Bytes by which they lowered it.
    pub brk_shrunk_bytes: Word,
    /// mmap calls.
    pub mmap_calls: Word,
    /// Bytes that they mapped, and that mremap added.
    pub mapped_bytes: Word,
    /// munmap calls.
    pub munmap_calls: Word,
    /// Bytes that they unmapped, and that mremap took away.
    pub unmapped_bytes: Word,
    /// mremap calls.
    pub mremap_calls: Word,
    /// madvise calls that gave pages back.
    pub madvise_calls: Word,
    /// Bytes that they were about.
    pub advised_bytes: Word,
    /// Times that somebody else was found to have moved the program break.
    pub foreign_break_moves: Word,
}

/// How the allocator was set up.
#[derive(Debug)]
#[repr(C)]
pub struct Settings {
    /// A [`Policy`].
    pub policy: HalfWord,
    /// 1 with red zones, fill patterns and quarantine.
    pub guard: HalfWord,
    /// 1 if a heap error ends the program.
    pub abort_on_error: HalfWord,
    /// Most arenas.
    pub arena_max: HalfWord,
    /// From which size in bytes on a block is mapped by itself, now.
    pub mmap_threshold: Word,
    /// How many bytes the top may hold before `trim` gives back, now.
    pub trim_threshold: Word,
    /// How many bytes more than needed are obtained at a time.
    pub top_pad: Word,
    /// Mean number of requested bytes between two samples; 1 when every block is one, 0 for none.
    pub sample_interval: Word,
}

/// One heap error.
#[derive(Debug)]
#[repr(C)]
pub struct ErrorRecord {
    /// Its number, from 1; 0 while it is being written.
    pub number: Word,
    /// A [`HeapErrorKind`].
    pub kind: HalfWord,
    /// A [`FoundBy`].
    pub found_by: HalfWord,
    /// Address of the block, or the pointer that was given.
    pub address: Word,
    /// Bytes that were asked for when the block was handed out; `u64::MAX` when not known.
    pub size: Word,
    /// Address of the first changed byte; 0 when not known, or where nothing was changed.
    pub changed: Word,
    /// Thread that noticed.
    pub tid: Word,
}

/// The page.
#[derive(Debug)]
#[repr(C)]
pub struct Page {
    /// [`MAGIC`] once the page is complete.
    pub magic: Word,
    /// [`LAYOUT_VERSION`] of the library.
    pub layout_version: HalfWord,
    /// Size of this structure in bytes.
    pub size: HalfWord,
    /// Version of the library's package, ended by a zero byte.
    pub version: [u8; 24],
    /// Address of the first thread cache; 0 without one.
    pub caches: Word,
    /// Thread caches made.
    pub cache_count: Word,
    /// Address of the first arena; 0 without one.
    pub arenas: Word,
    /// Arenas made.
    pub arena_count: Word,
    /// How the allocator was set up.
    pub settings: Settings,
    /// Calls to the kernel.
    pub kernel: KernelCounters,
    /// Heap errors recorded.
    pub error_count: Word,
    /// The latest of them: number n is at (n − 1) mod [`KEPT_ERRORS`].
    pub errors: [ErrorRecord; KEPT_ERRORS],
    /// Secret that is part of every block's header.
    pub secret: Word,
}

const _: () = assert!(size_of::<Page>() <= 4096);

/// Structures that are copied out of a program's memory as they stand.
///
/// # Safety
///
/// The type has no padding and consists of integers only, so that any bytes are a value of it.
pub unsafe trait Plain: Sized {
    /// The value with these bytes; `None` unless there are exactly as many as it takes.
    #[must_use]
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        (bytes.len() == size_of::<Self>())
            // SAFETY: the length was checked, alignment is not asked for, and any bytes are a value (see above).
            .then(|| unsafe { bytes.as_ptr().cast::<Self>().read_unaligned() })
    }
}

// SAFETY: 64-bit words, then 32-bit words in even number, then 64-bit words.
unsafe impl Plain for CacheCounters {}
// SAFETY: 64-bit words only.
unsafe impl Plain for ArenaCounters {}
// SAFETY: 32-bit words come in pairs, and the bytes of `version` are a multiple of 8.
unsafe impl Plain for Page {}

const _: () = assert!(SMALL_CLASSES.is_multiple_of(2));

/// Adds up what the parts count.
#[derive(Debug)]
pub struct Sum {
    counters: Counters,
    classes: [ClassFigures; SMALL_CLASSES],
    /// Bytes of live blocks, headers and rounding included.
    live_block_bytes: u64,
    released_bytes: u64,
    moved_blocks: u64,
    caches: u64,
    peak_of_cache: u64,
}

impl Sum {
    /// Begins with the page.
    #[must_use]
    pub fn of(page: &Page) -> Self {
        let kernel = &page.kernel;
        let mut classes = [ClassFigures::default(); SMALL_CLASSES];
        for (class, figures) in classes.iter_mut().enumerate() {
            figures.block_bytes = small_block_bytes(class);
        }
        Self {
            counters: Counters {
                obtained_bytes: kernel.obtained_bytes.get(),
                obtained_peak_bytes: kernel.obtained_peak_bytes.get(),
                in_use_peak_bytes: kernel.told_peak_bytes.get(),
                record_bytes: kernel.record_bytes.get(),
                brk_calls: kernel.brk_calls.get(),
                brk_refused: kernel.brk_refused.get(),
                brk_grown_bytes: kernel.brk_grown_bytes.get(),
                brk_shrunk_bytes: kernel.brk_shrunk_bytes.get(),
                mmap_calls: kernel.mmap_calls.get(),
                mapped_bytes: kernel.mapped_bytes.get(),
                munmap_calls: kernel.munmap_calls.get(),
                unmapped_bytes: kernel.unmapped_bytes.get(),
                mremap_calls: kernel.mremap_calls.get(),
                madvise_calls: kernel.madvise_calls.get(),
                advised_bytes: kernel.advised_bytes.get(),
                foreign_break_moves: kernel.foreign_break_moves.get(),
                arenas: page.arena_count.get(),
                thread_caches: page.cache_count.get(),
                heap_errors: page.error_count.get(),
                ..Counters::default()
            },
            classes,
            live_block_bytes: 0,
            released_bytes: 0,
            moved_blocks: 0,
            caches: 0,
            peak_of_cache: 0,
        }
    }

    /// Adds a thread cache.
    pub fn add_cache(&mut self, cache: &CacheCounters) {
        let mut live = cache
            .medium_allocated_bytes
            .get()
            .wrapping_sub(cache.medium_freed_bytes.get())
            .wrapping_add(cache.large_allocated_bytes.get())
            .wrapping_sub(cache.large_freed_bytes.get());
        let mut allocated = cache
            .medium_allocated
            .get()
            .wrapping_add(cache.large_allocated.get());
        let mut freed = cache
            .medium_freed
            .get()
            .wrapping_add(cache.large_freed.get());
        let mut cached_bytes = cache.medium_cached_bytes.get();
        for (class, figures) in self.classes.iter_mut().enumerate() {
            let taken = cache.allocated[class].get();
            let given = cache.freed[class].get();
            let cached = u64::from(cache.cached[class].get());
            figures.allocated = figures.allocated.wrapping_add(taken);
            figures.live = figures.live.wrapping_add(taken.wrapping_sub(given));
            figures.cached = figures.cached.wrapping_add(cached);
            allocated = allocated.wrapping_add(taken);
            freed = freed.wrapping_add(given);
            let block = figures.block_bytes;
            live = live.wrapping_add(block.wrapping_mul(taken.wrapping_sub(given)));
            cached_bytes = cached_bytes.wrapping_add(block.wrapping_mul(cached));
        }
        self.live_block_bytes = self.live_block_bytes.wrapping_add(live);
        self.released_bytes = self.released_bytes.wrapping_add(cache.released_bytes.get());
        self.moved_blocks = self.moved_blocks.wrapping_add(cache.realloc_moved.get());
        self.caches += 1;
        self.peak_of_cache = cache.peak_bytes.get();
        let sum = &mut self.counters;
        let large = cache
            .large_allocated
            .get()
            .wrapping_sub(cache.large_freed.get());
        for (total, amount) in [
            (&mut sum.allocated_blocks, allocated),
            (&mut sum.freed_blocks, freed),
            (&mut sum.cached_bytes, cached_bytes),
            (&mut sum.live_large_blocks, large),
            (&mut sum.requested_bytes, cache.requested_bytes.get()),
            (&mut sum.calloc_calls, cache.calloc_calls.get()),
            (&mut sum.aligned_calls, cache.aligned_calls.get()),
            (&mut sum.realloc_calls, cache.realloc_calls.get()),
            (&mut sum.realloc_in_place, cache.realloc_in_place.get()),
            (&mut sum.failed_requests, cache.failed_requests.get()),
            (&mut sum.cache_misses, cache.misses.get()),
        ] {
            *total = total.wrapping_add(amount);
        }
    }

    /// Adds an arena.
    pub fn add_arena(&mut self, arena: &ArenaCounters) {
        let mut slab_free = 0_u64;
        for (figures, free) in self.classes.iter_mut().zip(&arena.slab_free) {
            figures.free = figures.free.wrapping_add(free.get());
            slab_free = slab_free.wrapping_add(figures.block_bytes.wrapping_mul(free.get()));
        }
        let records = arena
            .segment_record_bytes
            .get()
            .wrapping_add(arena.slab_record_bytes.get());
        let sum = &mut self.counters;
        for (total, amount) in [
            (&mut sum.record_bytes, records),
            (&mut sum.free_slab_bytes, slab_free),
            (&mut sum.top_bytes, arena.top_bytes.get()),
            (&mut sum.free_chunks, arena.free_chunks.get()),
            (&mut sum.free_chunk_bytes, arena.free_chunk_bytes.get()),
            (&mut sum.splits, arena.splits.get()),
            (&mut sum.coalesces, arena.coalesces.get()),
            (&mut sum.slabs_made, arena.slabs_made.get()),
            (&mut sum.slabs_released, arena.slabs_released.get()),
            (&mut sum.trims, arena.trims.get()),
            (&mut sum.lock_waits, arena.lock_waits.get()),
        ] {
            *total = total.wrapping_add(amount);
        }
    }

    /// The figures, and those of each class.
    #[must_use]
    pub fn finish(self) -> (Counters, [ClassFigures; SMALL_CLASSES]) {
        let mut sum = self.counters;
        let mut classes = self.classes;
        // What one thread took another may have freed, so parts may be negative, and so may be sums that were read
        // while threads ran, or in the midst of a request: less than nothing is nothing.
        for figures in &mut classes {
            figures.live = difference(figures.live, 0);
        }
        sum.live_large_blocks = difference(sum.live_large_blocks, 0);
        sum.in_use_bytes = difference(sum.requested_bytes, self.released_bytes);
        if self.caches == 1 {
            sum.in_use_peak_bytes = self.peak_of_cache;
        }
        sum.in_use_peak_bytes = sum.in_use_peak_bytes.max(sum.in_use_bytes);
        sum.block_overhead_bytes = difference(self.live_block_bytes, sum.in_use_bytes);
        sum.overhead_bytes = sum.block_overhead_bytes.wrapping_add(sum.record_bytes);
        sum.free_bytes = sum
            .free_chunk_bytes
            .wrapping_add(sum.free_slab_bytes)
            .wrapping_add(sum.cached_bytes);
        sum.live_blocks = difference(sum.allocated_blocks, sum.freed_blocks);
        sum.malloc_calls = sum
            .allocated_blocks
            .wrapping_sub(sum.calloc_calls)
            .wrapping_sub(sum.aligned_calls)
            .wrapping_sub(self.moved_blocks);
        sum.malloc_calls = difference(sum.malloc_calls, 0);
        sum.cache_hits = difference(sum.allocated_blocks, sum.cache_misses);
        (sum, classes)
    }
}

/// `a` − `b`, both modulo 2^64; 0 where that is negative.
fn difference(a: u64, b: u64) -> u64 {
    let difference = a.wrapping_sub(b);
    if difference > u64::MAX / 2 {
        0
    } else {
        difference
    }
}
