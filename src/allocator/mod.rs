//! The bundled allocator.
//!
//! ```text
//!   request ─→ thread cache ─→ slab ───┐
//!                │                     ├─→ arena: chunks ─→ program break, or mapped segments
//!                └────── medium ───────┘
//!           ─→ large ─────────────────────→ a mapping of its own
//! ```
//!
//! Small blocks (up to 1016 bytes) come from slabs, medium ones are chunks, large ones (from the mmap threshold on) are
//! mappings. Each block has a header of 8 bytes, which makes every free a check. Everything is counted where it happens
//! (`stats_page`).
//!
//! This module uses `core` and `stats_page` only. It is compiled into the preloaded library, and into breaktrace for
//! its tests and documentation. What it needs from outside it asks of a [`kernel::Kernel`]; which thread owns which
//! [`Cache`] is its caller's business.
//!
//! Addresses are `usize`: a heap is arithmetic on addresses. Pointers are made from them where memory is touched.
#![allow(
    clippy::cast_possible_truncation,
    reason = "only 64-bit machines are supported: usize is u64, and smaller fields have checked bounds"
)]

mod arena;
mod bins;
mod cache;
#[cfg(any(test, debug_assertions))]
mod check;
mod chunk;
mod classify;
mod guard;
mod header;
pub mod kernel;
mod large;
mod lock;
mod sampling;
mod size_class;
mod slab;
#[cfg(test)]
mod tests;
#[cfg(not(preload))]
pub mod walk;

use core::cell::UnsafeCell;
use core::mem::size_of;
use core::ptr;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::AtomicPtr;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

pub use cache::Cache;

use arena::Arena;
use chunk::Chunk;
use guard::Quarantine;
use header::Header;
use header::LARGE;
use header::MEDIUM;
use header::canary_is_right;
use kernel::Kernel;
use large::LargeFreed;
use large::LargeRecord;
use lock::Lock;
use size_class::LARGEST_SMALL;
use size_class::class_of;
use size_class::small_bytes;

#[cfg(not(preload))]
pub(crate) use sampling::EVERY_BLOCK;

/// Bytes of an arena's record.
#[cfg(not(preload))]
pub(crate) const ARENA_BYTES: usize = size_of::<Arena>();

use crate::stats_page::Cause;
use crate::stats_page::Counters;
use crate::stats_page::FoundBy;
use crate::stats_page::HeapErrorKind;
use crate::stats_page::KEPT_ERRORS;
use crate::stats_page::LAYOUT_VERSION;
use crate::stats_page::MAGIC;
use crate::stats_page::Page;
use crate::stats_page::Policy;
use crate::stats_page::SMALL_CLASSES;
use crate::stats_page::Sum;

/// What every block's address is a multiple of.
pub const ALIGNMENT: usize = 16;

/// Largest request: an object must not exceed `PTRDIFF_MAX` (C11, 6.5.6; malloc(3)).
pub const LARGEST_REQUEST: usize = isize::MAX as usize - (1 << 20);

/// Largest request that an arena serves, whatever the mmap threshold.
const LARGEST_MEDIUM: usize = 1 << 30;
/// Up to here freed large blocks raise the mmap threshold, as in glibc (malloc.c, `DEFAULT_MMAP_THRESHOLD_MAX`).
const LARGEST_DYNAMIC_THRESHOLD: usize = 32 << 20;
/// Most bytes behind the end of a medium block that are left to it: its header has 16 bits for them.
const MOST_SLACK: usize = 16 << 10;
/// Most arenas.
pub const MOST_ARENAS: usize = 256;
/// Idle caches that keep their blocks for the next thread.
const IDLE_CACHES_KEPT: usize = 4;

/// `value` rounded up to a multiple of `unit`, a power of two. The sum must not overflow.
#[inline(always)]
pub(crate) const fn round_up(value: usize, unit: usize) -> usize {
    (value + unit - 1) & !(unit - 1)
}

/// `value` rounded down to a multiple of `unit`, a power of two.
#[inline(always)]
pub(crate) const fn round_down(value: usize, unit: usize) -> usize {
    value & !(unit - 1)
}

/// How a heap is set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// What to do with memory that is no longer needed.
    pub policy: Policy,
    /// Whether blocks have red zones, fill patterns and a quarantine.
    pub guard: bool,
    /// Whether a heap error ends the program.
    pub abort_on_error: bool,
    /// From which size on a block is mapped by itself; `None` begins at 128 KiB and grows as in glibc.
    pub mmap_threshold: Option<usize>,
    /// How many bytes the top may hold; `None` begins at 128 KiB and grows with the mmap threshold, as in glibc.
    pub trim_threshold: Option<usize>,
    /// How many bytes more than needed are obtained at a time.
    pub top_pad: usize,
    /// Most arenas.
    pub arena_max: usize,
    /// Mean number of requested bytes between two samples; 1 makes every block one, 0 none.
    pub sample_interval: usize,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            policy: Policy::Trim,
            guard: false,
            abort_on_error: false,
            mmap_threshold: None,
            trim_threshold: None,
            top_pad: 128 << 10,
            arena_max: 16,
            sample_interval: 0,
        }
    }
}

/// A heap. One per process; `const`-constructible, so that it is ready before any constructor has run.
pub struct Heap<K> {
    /// Where memory comes from.
    pub kernel: K,
    page: AtomicPtr<Page>,
    /// All memory ever obtained lies between these.
    lowest: AtomicUsize,
    highest: AtomicUsize,
    secret: AtomicUsize,
    /// The thresholds still follow the blocks freed.
    dynamic: AtomicBool,
    trim_keep: AtomicUsize,
    /// An error was found with `abort_on_error`, and the program ends as soon as no lock is held.
    abort_pending: AtomicBool,
    /// For the lists of caches and arenas.
    lists: Lock,
    errors: Lock,
    /// For `shared`, and for guarded blocks.
    shared_lock: Lock,
    idle_caches: UnsafeCell<*mut Cache>,
    idle_count: UnsafeCell<usize>,
    /// The cache of threads that have none: ended ones, and all with guarded blocks.
    shared: UnsafeCell<*mut Cache>,
    quarantine: UnsafeCell<Quarantine>,
    large_freed: LargeFreed,
    arenas: [AtomicPtr<Arena>; MOST_ARENAS],
    main: UnsafeCell<Arena>,
}

// SAFETY: what is not atomic is used under a lock, as its comment says; `main` has its own.
unsafe impl<K: Kernel + Sync> Sync for Heap<K> {}

impl<K> core::fmt::Debug for Heap<K> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Heap").finish_non_exhaustive()
    }
}

/// What was found at an address that was given back.
enum Given {
    Small {
        class: usize,
        size: usize,
        header: Header,
    },
    Medium {
        chunk: Chunk,
        chunk_size: usize,
        size: usize,
        header: Header,
    },
    Large(LargeRecord),
    Guarded,
    /// Not a live block; reported.
    Nothing,
}

impl<K: Kernel> Heap<K> {
    /// A heap that has not begun.
    pub const fn new(kernel: K) -> Self {
        Self {
            kernel,
            page: AtomicPtr::new(ptr::null_mut()),
            lowest: AtomicUsize::new(usize::MAX),
            highest: AtomicUsize::new(0),
            secret: AtomicUsize::new(0),
            dynamic: AtomicBool::new(true),
            trim_keep: AtomicUsize::new(0),
            abort_pending: AtomicBool::new(false),
            lists: Lock::new(),
            errors: Lock::new(),
            shared_lock: Lock::new(),
            idle_caches: UnsafeCell::new(ptr::null_mut()),
            idle_count: UnsafeCell::new(0),
            shared: UnsafeCell::new(ptr::null_mut()),
            quarantine: UnsafeCell::new(Quarantine::new()),
            large_freed: LargeFreed::new(),
            arenas: [const { AtomicPtr::new(ptr::null_mut()) }; MOST_ARENAS],
            main: UnsafeCell::new(Arena::new()),
        }
    }

    /// Whether [`Heap::begin`] was called.
    #[inline(always)]
    pub fn has_begun(&self) -> bool {
        !self.page.load(Acquire).is_null()
    }

    /// Begins: from now on blocks can be had. `page` is zeroed memory that lives as long as the heap; if several threads
    /// begin at once, one wins, and the others' pages are left alone. Whether this call won.
    ///
    /// # Safety
    ///
    /// `page` is writable and nobody else's.
    pub unsafe fn begin(&self, page: *mut Page, secret: u64, setup: &Setup) -> bool {
        self.lists.take(&self.kernel);
        let first = !self.has_begun();
        if first {
            let arena = self.main.get();
            self.secret.store(secret as usize, Relaxed);
            // SAFETY: the page is the caller's, and nobody uses the arena before the page is known.
            unsafe {
                (*arena).secret = secret;
                self.arenas[0].store(arena, Release);
                (*page).size.set(size_of::<Page>() as u32);
                (*page).layout_version.set(LAYOUT_VERSION);
                (*page).secret.set(secret);
                (*page).arenas.set(arena as u64);
                (*page).arena_count.set(1);
                self.page.store(page, Release);
                self.set_up(setup);
                core::sync::atomic::fence(Release);
                // Stored last: a tracer that sees it sees a complete page.
                (*page).magic.set(MAGIC);
            }
        }
        self.lists.give(&self.kernel);
        first
    }

    /// Changes the set-up; blocks handed out before keep what they have.
    pub fn set_up(&self, setup: &Setup) {
        let settings = &self.page().settings;
        settings.policy.set(setup.policy as u32);
        settings.guard.set(u32::from(setup.guard));
        settings.abort_on_error.set(u32::from(setup.abort_on_error));
        settings
            .arena_max
            .set(setup.arena_max.clamp(1, MOST_ARENAS) as u32);
        settings.top_pad.set(setup.top_pad as u64);
        settings.mmap_threshold.set(
            setup
                .mmap_threshold
                .unwrap_or(128 << 10)
                .min(LARGEST_MEDIUM) as u64,
        );
        settings
            .trim_threshold
            .set(setup.trim_threshold.unwrap_or(128 << 10) as u64);
        let interval = setup.sample_interval as u64;
        if settings.sample_interval.get() != interval {
            settings.sample_interval.set(interval);
            self.begin_sampling_everywhere();
        }
        self.dynamic.store(
            setup.mmap_threshold.is_none() && setup.trim_threshold.is_none(),
            Relaxed,
        );
    }

    /// The set-up as it is now.
    pub fn setup(&self) -> Setup {
        let settings = &self.page().settings;
        let fixed = !self.dynamic.load(Relaxed);
        Setup {
            policy: self.policy(),
            guard: settings.guard.get() != 0,
            abort_on_error: settings.abort_on_error.get() != 0,
            mmap_threshold: fixed.then(|| settings.mmap_threshold.get() as usize),
            trim_threshold: fixed.then(|| settings.trim_threshold.get() as usize),
            top_pad: settings.top_pad.get() as usize,
            arena_max: settings.arena_max.get() as usize,
            sample_interval: settings.sample_interval.get() as usize,
        }
    }

    /// The statistics page. The heap must have begun.
    #[inline(always)]
    pub fn page(&self) -> &Page {
        // SAFETY: the page lives as long as the heap; everything in it is atomic.
        unsafe { &*self.page.load(Relaxed) }
    }

    #[inline(always)]
    fn secret(&self) -> u64 {
        self.secret.load(Relaxed) as u64
    }

    fn policy(&self) -> Policy {
        Policy::from_number(self.page().settings.policy.get()).unwrap_or_default()
    }

    fn top_pad(&self) -> usize {
        if self.policy() == Policy::Eager {
            return 0;
        }
        self.page().settings.top_pad.get() as usize
    }

    fn trim_threshold(&self) -> usize {
        // The pad itself is never a reason to give back: the next request would fetch it again.
        (self.page().settings.trim_threshold.get() as usize).max(self.top_pad() + (64 << 10))
    }

    fn trim_keep(&self) -> usize {
        self.trim_keep.load(Relaxed)
    }

    fn arena(&self, index: u32) -> Option<*mut Arena> {
        let arena = self.arenas.get(index as usize)?.load(Acquire);
        (!arena.is_null()).then_some(arena)
    }

    // ---- requests ----------------------------------------------------------------------------------------------

    /// Hands out a block of `size` bytes, at a multiple of 16; null without memory.
    ///
    /// # Safety
    ///
    /// `cache` is null or the calling thread's own.
    #[inline(always)]
    pub unsafe fn allocate(&self, cache: *mut Cache, size: usize) -> *mut u8 {
        if size <= LARGEST_SMALL && !cache.is_null() {
            // SAFETY: the caller's promise.
            if let Some(block) = unsafe { (*cache).take_small(class_of(size), size) } {
                // SAFETY: as above; the block is new.
                unsafe {
                    if (*cache).is_sample_due() {
                        self.sample(&*cache, block, size);
                    }
                }
                return ptr::with_exposed_provenance_mut(block);
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.allocate_slowly(cache, size) }
    }

    /// As [`Heap::allocate`], for all that the cache's stacks cannot serve.
    ///
    /// # Safety
    ///
    /// As there.
    #[cold]
    #[inline(never)]
    pub unsafe fn allocate_slowly(&self, cache: *mut Cache, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        let block = unsafe { self.request(cache, size, false) };
        block.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
    }

    /// Hands out a block of `size` zeroed bytes; null without memory.
    ///
    /// # Safety
    ///
    /// As for [`Heap::allocate`].
    pub unsafe fn allocate_zeroed(&self, cache: *mut Cache, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; the block has `size` bytes.
        unsafe {
            let block = if size <= LARGEST_SMALL {
                let block = self.allocate(cache, size);
                if !block.is_null() {
                    block.write_bytes(0, size);
                }
                block
            } else {
                let block = self.request(cache, size, true);
                block.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
            };
            if !block.is_null() {
                self.with_counters(cache, |cache| cache.counters.calloc_calls.add(1));
            }
            block
        }
    }

    /// Hands out a block of `size` bytes at a multiple of `alignment`, a power of two; null without memory.
    ///
    /// # Safety
    ///
    /// As for [`Heap::allocate`].
    pub unsafe fn allocate_aligned(
        &self,
        cache: *mut Cache,
        alignment: usize,
        size: usize,
    ) -> *mut u8 {
        debug_assert!(alignment.is_power_of_two());
        // SAFETY: the caller's promise.
        unsafe {
            let block = if alignment <= ALIGNMENT {
                self.allocate(cache, size)
            } else {
                self.with_cache(cache, |cache, guarded| {
                    let possible = size <= LARGEST_REQUEST && alignment <= LARGEST_REQUEST / 4;
                    let block = if !possible {
                        None
                    } else if guarded {
                        self.request_guarded(cache, alignment, size, false)
                    } else {
                        self.raw_aligned(cache, alignment, size)
                            .inspect(|_| cache.count_requested(size))
                    };
                    self.sample_or_count_failure(cache, block, size);
                    block
                })
                .map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
            };
            if !block.is_null() {
                self.with_counters(cache, |cache| cache.counters.aligned_calls.add(1));
            }
            block
        }
    }

    unsafe fn request(&self, cache: *mut Cache, size: usize, zeroed: bool) -> Option<usize> {
        // SAFETY: the caller's promise.
        unsafe {
            self.with_cache(cache, |cache, guarded| {
                let block = if size > LARGEST_REQUEST {
                    None
                } else if guarded {
                    self.request_guarded(cache, ALIGNMENT, size, zeroed)
                } else {
                    self.raw(cache, size, zeroed)
                        .inspect(|_| cache.count_requested(size))
                };
                self.sample_or_count_failure(cache, block, size);
                block
            })
        }
    }

    /// After a request: makes the block a sample if it is its turn.
    unsafe fn sample_or_count_failure(&self, cache: &Cache, block: Option<usize>, size: usize) {
        match block {
            // SAFETY: the caller owns the cache; the block is new.
            Some(block) if cache.is_sample_due() => unsafe { self.sample(cache, block, size) },
            Some(_) => {}
            None => cache.counters.failed_requests.add(1),
        }
    }

    /// A block of `size` bytes, counted as handed out but not as asked for.
    unsafe fn raw(&self, cache: &mut Cache, size: usize, zeroed: bool) -> Option<usize> {
        // SAFETY: the caller owns the cache.
        unsafe {
            if size <= LARGEST_SMALL {
                return self.raw_small(cache, size);
            }
            let threshold = self.page().settings.mmap_threshold.get() as usize;
            if size >= threshold
                && let Some(block) = self.raw_large(cache, ALIGNMENT, size)
            {
                return Some(block);
            }
            // glibc as well tries the heap where the kernel refuses a mapping.
            if size > LARGEST_MEDIUM {
                return None;
            }
            match self.take_medium(cache, size) {
                Some(taken) => {
                    self.write_medium(taken, size);
                    cache.counters.medium_allocated.add(1);
                    cache.counters.medium_allocated_bytes.add(taken.size as u64);
                    let block = taken.chunk.block();
                    if zeroed && !taken.zeroed {
                        ptr::with_exposed_provenance_mut::<u8>(block).write_bytes(0, size);
                    }
                    Some(block)
                }
                None if size < threshold => self.raw_large(cache, ALIGNMENT, size),
                None => None,
            }
        }
    }

    unsafe fn raw_small(&self, cache: &mut Cache, size: usize) -> Option<usize> {
        let class = class_of(size);
        loop {
            // `take_small` counts what is asked for; here the caller does.
            let (requested, peak) = (
                cache.counters.requested_bytes.get(),
                cache.counters.peak_bytes.get(),
            );
            // SAFETY: the caller owns the cache.
            unsafe {
                if let Some(block) = cache.take_small(class, size) {
                    cache.counters.requested_bytes.set(requested);
                    cache.counters.peak_bytes.set(peak);
                    return Some(block);
                }
                if cache.counters.cached[class].get() > 0 {
                    self.drop_newest(cache, class);
                } else {
                    cache.counters.misses.add(1);
                    if !self.refill(cache, class, size) {
                        return None;
                    }
                }
            }
        }
    }

    unsafe fn raw_large(&self, cache: &mut Cache, alignment: usize, size: usize) -> Option<usize> {
        let (block, length) = self.map_large(size, alignment)?;
        cache.counters.misses.add(1);
        cache.counters.large_allocated.add(1);
        cache.counters.large_allocated_bytes.add(length as u64);
        Some(block)
    }

    unsafe fn raw_aligned(
        &self,
        cache: &mut Cache,
        alignment: usize,
        size: usize,
    ) -> Option<usize> {
        let threshold = self.page().settings.mmap_threshold.get() as usize;
        // SAFETY: the caller owns the cache.
        unsafe {
            if size.checked_add(alignment)? >= threshold
                && let Some(block) = self.raw_large(cache, alignment, size)
            {
                return Some(block);
            }
            if size.checked_add(alignment)? > LARGEST_MEDIUM {
                return None;
            }
            cache.counters.misses.add(1);
            let arena = self.lock_arena(cache);
            let need = arena::medium_chunk_bytes(size);
            let taken = (*arena).take_aligned(self, alignment, need, size);
            let index = (*arena).index;
            (*arena).lock.give(&self.kernel);
            let taken = taken?;
            let taken = cache::MediumTaken {
                chunk: taken.chunk,
                size: taken.size,
                arena: index,
                zeroed: false,
            };
            self.write_medium(taken, size);
            cache.counters.medium_allocated.add(1);
            cache.counters.medium_allocated_bytes.add(taken.size as u64);
            Some(taken.chunk.block())
        }
    }

    // ---- giving back -------------------------------------------------------------------------------------------

    /// Takes a block back. Null is no block; what is no live block is reported and otherwise left alone.
    ///
    /// # Safety
    ///
    /// `cache` is null or the calling thread's own. The 8 bytes before `block` can be read, and if it is a live block,
    /// nobody uses it any more.
    #[inline(always)]
    pub unsafe fn free(&self, cache: *mut Cache, block: *mut u8) {
        if block.is_null() {
            return;
        }
        let address = block.expose_provenance();
        // What may be a large block is looked at more closely: if it was freed before, its header is gone. So is what
        // cannot be a block at all.
        if !cache.is_null() && !self.is_doubtful(address) {
            // SAFETY: the caller's promise.
            unsafe {
                let secret = (*cache).secret;
                let header = Header::read(address);
                let class = usize::from(header.marked_kind());
                if header.is_live(address, secret) && class < SMALL_CLASSES {
                    let size = header.small_size();
                    if canary_is_right(address + size) && (*cache).give_small(class, address) {
                        header.freed().write(address);
                        (*cache).counters.freed[class].add(1);
                        (*cache).count_released(size);
                        return;
                    }
                }
            }
        }
        // SAFETY: the caller's promise.
        unsafe { self.free_slowly(cache, block) };
    }

    /// As [`Heap::free`], for all that does not simply go to the cache's stacks.
    ///
    /// # Safety
    ///
    /// As there, and `block` is not null.
    #[cold]
    #[inline(never)]
    pub unsafe fn free_slowly(&self, cache: *mut Cache, block: *mut u8) {
        let block = block.expose_provenance();
        // SAFETY: the caller's promise.
        unsafe {
            self.with_cache(cache, |cache, guarded| {
                if !self.can_be_read(block, guarded) {
                    self.report_unreadable(block, FoundBy::Free);
                    return;
                }
                match self.look_at(block, Some(FoundBy::Free)) {
                    Given::Nothing => {}
                    Given::Guarded => self.free_guarded(cache, block, FoundBy::Free),
                    mut given => {
                        if self.end_sample(block) {
                            given.is_no_sample();
                        }
                        cache.count_released(given.size());
                        self.count_freed(cache, &given);
                        self.raw_free(cache, block, &given);
                    }
                }
            });
        }
    }

    #[inline(always)]
    fn is_doubtful(&self, block: usize) -> bool {
        block % large::PLACE_UNIT == large::PLACE
            || block < self.lowest.load(Relaxed)
            || block >= self.highest.load(Relaxed)
    }

    /// Whether the header of what may be a large block is there; with guarded blocks, of any.
    fn can_be_read(&self, block: usize, guarded: bool) -> bool {
        let doubtful = guarded || self.is_doubtful(block);
        // SAFETY: words that are read at any time; a stale value only costs the question.
        let at_break = unsafe { (*self.main.get()).break_range() };
        !doubtful || at_break.contains(&block) || (block > 8 && self.kernel.is_readable(block - 8))
    }

    /// What a pointer given to free or realloc is. Reports what is wrong with it, unless nobody is named who found it.
    unsafe fn look_at(&self, block: usize, by: Option<FoundBy>) -> Given {
        let secret = self.secret();
        // SAFETY: the caller's promise: the word before the block can be read; further words only once it is known to
        // be a header.
        unsafe {
            let header = Header::read(block);
            if !header.is_live(block, secret) {
                if let Some(by) = by {
                    self.report_bad_pointer(block, header, by);
                }
                return Given::Nothing;
            }
            match header.kind() {
                kind if usize::from(kind) < SMALL_CLASSES => {
                    let size = header.small_size();
                    if !canary_is_right(block + size) {
                        self.found_by(
                            HeapErrorKind::WritePastEnd,
                            by,
                            block,
                            Some(size),
                            block + size,
                        );
                        if by.is_some() {
                            self.mend_end(block, size, small_bytes(usize::from(kind)));
                        }
                    }
                    Given::Small {
                        class: usize::from(kind),
                        size,
                        header,
                    }
                }
                MEDIUM => {
                    let chunk = Chunk::of_block(block);
                    let tag = chunk.tag();
                    let slack = header.data() as usize & 0xffff;
                    if !tag.is_valid(chunk.0, secret) || tag.size() < chunk::FRONT + slack {
                        self.found_by(HeapErrorKind::WriteBeforeStart, by, block, None, chunk.0);
                        return Given::Nothing;
                    }
                    let size = tag.size() - chunk::FRONT - slack;
                    if !canary_is_right(block + size) {
                        self.found_by(
                            HeapErrorKind::WritePastEnd,
                            by,
                            block,
                            Some(size),
                            block + size,
                        );
                        if by.is_some() {
                            header::write_canary(block + size);
                        }
                    }
                    Given::Medium {
                        chunk,
                        chunk_size: tag.size(),
                        size,
                        header,
                    }
                }
                LARGE => match LargeRecord::of(block, secret) {
                    Some(record) => {
                        if !canary_is_right(block + record.size) {
                            let changed = block + record.size;
                            self.found_by(
                                HeapErrorKind::WritePastEnd,
                                by,
                                block,
                                Some(record.size),
                                changed,
                            );
                            if by.is_some() {
                                header::write_canary(changed);
                            }
                        }
                        Given::Large(record)
                    }
                    None => {
                        self.found_by(HeapErrorKind::WriteBeforeStart, by, block, None, 0);
                        Given::Nothing
                    }
                },
                header::GUARDED => Given::Guarded,
                _ => {
                    self.found_by(HeapErrorKind::RecordsChanged, by, block, None, block - 8);
                    Given::Nothing
                }
            }
        }
    }

    /// After a write past the end of a small block was reported: one write, one report. If all that it changed is the first
    /// byte of the next block's header, that block is as good as before.
    #[cold]
    unsafe fn mend_end(&self, block: usize, size: usize, block_bytes: usize) {
        // SAFETY: the caller's promise: a live block of a slab, behind which there is another, or the slab's guard.
        unsafe {
            if size < block_bytes - header::HEADER_BYTES {
                header::write_canary(block + size);
                return;
            }
            let next = block + block_bytes;
            let mended = Header::read(next).mended_low();
            // A live block whose end is not where its header says has lost more than a byte.
            let is_whole = match mended.state(next, self.secret()) {
                header::State::Live => canary_is_right(next + mended.small_size()),
                header::State::Free => true,
                header::State::Broken => false,
            };
            if is_whole {
                header::write_low_guard(next, mended);
            }
        }
    }

    fn count_freed(&self, cache: &mut Cache, given: &Given) {
        let counters = &cache.counters;
        match *given {
            Given::Small { class, .. } => counters.freed[class].add(1),
            Given::Medium { chunk_size, .. } => {
                counters.medium_freed.add(1);
                counters.medium_freed_bytes.add(chunk_size as u64);
            }
            Given::Large(record) => {
                counters.large_freed.add(1);
                counters.large_freed_bytes.add(record.length as u64);
            }
            Given::Guarded | Given::Nothing => {}
        }
    }

    /// Gives a block's memory back that was counted as freed.
    unsafe fn raw_free(&self, cache: &mut Cache, block: usize, given: &Given) {
        // SAFETY: the caller's promise: nobody uses the block any more.
        unsafe {
            match *given {
                Given::Small { class, header, .. } => {
                    header.freed().write(block);
                    if !cache.give_small(class, block) {
                        self.make_room(cache, class);
                        // There is room now.
                        cache.give_small(class, block);
                    }
                }
                Given::Medium {
                    chunk,
                    chunk_size,
                    header,
                    ..
                } => {
                    header.freed().write(block);
                    self.give_medium(cache, chunk, chunk_size);
                }
                Given::Large(record) => {
                    self.raise_thresholds(record.length);
                    self.large_freed.note(block, record.size);
                    self.unmap_large(record);
                }
                Given::Guarded | Given::Nothing => {}
            }
        }
    }

    /// A program that frees large blocks will ask for more of them: from the heap, as mapping each costs page faults
    /// (glibc's malloc.c, "dynamic mmap threshold").
    fn raise_thresholds(&self, length: usize) {
        let settings = &self.page().settings;
        if self.dynamic.load(Relaxed)
            && length > settings.mmap_threshold.get() as usize
            && length <= LARGEST_DYNAMIC_THRESHOLD
        {
            settings.mmap_threshold.set(length as u64);
            settings.trim_threshold.set(2 * length as u64);
        }
    }

    // ---- resizing ----------------------------------------------------------------------------------------------

    /// Changes the size of a block, in place where it can; null without memory, and then the block is as it was. Null as
    /// `block` asks for a new one.
    ///
    /// # Safety
    ///
    /// As for [`Heap::free`], but the block is used on if null is returned.
    pub unsafe fn resize(&self, cache: *mut Cache, block: *mut u8, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe {
            if block.is_null() {
                return self.allocate(cache, size);
            }
            let address = block.expose_provenance();
            let resized = self.with_cache(cache, |cache, guarded| {
                cache.counters.realloc_calls.add(1);
                if size > LARGEST_REQUEST {
                    cache.counters.failed_requests.add(1);
                    return None;
                }
                if !self.can_be_read(address, guarded) {
                    self.report_unreadable(address, FoundBy::Realloc);
                    return None;
                }
                let mut given = self.look_at(address, Some(FoundBy::Realloc));
                if matches!(given, Given::Nothing) {
                    return None;
                }
                let was_sample = self.end_sample(address);
                if was_sample {
                    given.is_no_sample();
                }
                let old = match given {
                    Given::Guarded => self.guarded_size(address),
                    _ => given.size(),
                };
                if let Some(block) = self.resize_in_place(cache, address, &given, size) {
                    if size > old {
                        cache.count_requested(size - old);
                    } else {
                        cache.count_released(old - size);
                    }
                    cache.counters.realloc_in_place.add(1);
                    cache.draw_again_for(old.min(size));
                    if cache.is_sample_due() {
                        self.sample(cache, block, size);
                    }
                    return Some(block);
                }
                let new = if guarded {
                    self.request_guarded(cache, ALIGNMENT, size, false)
                } else {
                    self.raw(cache, size, false)
                        .inspect(|_| cache.count_requested(size))
                };
                let Some(new) = new else {
                    cache.counters.failed_requests.add(1);
                    if was_sample {
                        // It lives on, and so does what it stands for.
                        self.sample(cache, address, old);
                    }
                    return None;
                };
                if cache.is_sample_due() {
                    self.sample(cache, new, size);
                }
                ptr::copy_nonoverlapping(
                    block,
                    ptr::with_exposed_provenance_mut::<u8>(new),
                    old.min(size),
                );
                cache.counters.realloc_moved.add(1);
                if matches!(given, Given::Guarded) {
                    self.free_guarded(cache, address, FoundBy::Realloc);
                } else {
                    cache.count_released(old);
                    self.count_freed(cache, &given);
                    self.raw_free(cache, address, &given);
                }
                Some(new)
            });
            resized.map_or(ptr::null_mut(), ptr::with_exposed_provenance_mut)
        }
    }

    /// Where the block is with its new size, if its memory need not be copied.
    unsafe fn resize_in_place(
        &self,
        cache: &mut Cache,
        block: usize,
        given: &Given,
        size: usize,
    ) -> Option<usize> {
        // SAFETY: the caller's promise: the block is live, and is what `given` says.
        unsafe {
            match *given {
                Given::Small { class, header, .. } => {
                    if size > LARGEST_SMALL {
                        return None;
                    }
                    // A block that shrinks to less than half its class is worth moving.
                    let wanted = class_of(size);
                    if wanted > class || small_bytes(wanted) * 2 < small_bytes(class) {
                        return None;
                    }
                    header.resized(size).write(block);
                    let room = small_bytes(class) - header::HEADER_BYTES;
                    if size < room {
                        header::write_canary(block + size);
                    }
                    Some(block)
                }
                Given::Medium {
                    chunk,
                    chunk_size,
                    header,
                    ..
                } => {
                    let threshold = self.page().settings.mmap_threshold.get() as usize;
                    if size <= LARGEST_SMALL / 2
                        || (size >= threshold && size > 2 * chunk_size)
                        || size > LARGEST_MEDIUM
                    {
                        return None;
                    }
                    let need = arena::medium_chunk_bytes(size);
                    let index = header.data() >> 16;
                    let mut new_size = chunk_size;
                    if need > chunk_size
                        || chunk_size - need >= (chunk_size / 16).clamp(32, MOST_SLACK)
                    {
                        let arena = self.arena(index)?;
                        if (*arena).lock.take(&self.kernel) {
                            (*arena).counters.lock_waits.add(1);
                        }
                        let grown = if need > chunk_size {
                            (*arena).grow(self, chunk, chunk_size, need)
                        } else {
                            Some((*arena).shrink(self, chunk, chunk_size, need))
                        };
                        (*arena).lock.give(&self.kernel);
                        new_size = grown?;
                    }
                    let counters = &cache.counters;
                    if new_size > chunk_size {
                        counters
                            .medium_allocated_bytes
                            .add((new_size - chunk_size) as u64);
                    } else {
                        counters
                            .medium_freed_bytes
                            .add((chunk_size - new_size) as u64);
                    }
                    let taken = cache::MediumTaken {
                        chunk,
                        size: new_size,
                        arena: index,
                        zeroed: false,
                    };
                    self.write_medium(taken, size);
                    Some(block)
                }
                Given::Large(record) => {
                    let threshold = self.page().settings.mmap_threshold.get() as usize;
                    // What became small belongs into an arena.
                    if size < threshold.min(128 << 10) / 2 {
                        return None;
                    }
                    let (block, length) = self.remap_large(block, record, size)?;
                    let counters = &cache.counters;
                    if length > record.length {
                        counters
                            .large_allocated_bytes
                            .add((length - record.length) as u64);
                    } else {
                        counters
                            .large_freed_bytes
                            .add((record.length - length) as u64);
                    }
                    Some(block)
                }
                Given::Guarded | Given::Nothing => None,
            }
        }
    }

    /// How many bytes of a block may be used: exactly those that were asked for. 0 for null, and for what is no block.
    ///
    /// # Safety
    ///
    /// The 8 bytes before `block` can be read.
    pub unsafe fn usable_size(&self, block: *mut u8) -> usize {
        if block.is_null() || !self.has_begun() {
            return 0;
        }
        let address = block.expose_provenance();
        // SAFETY: the caller's promise.
        let size = unsafe {
            match self.look_at(address, Some(FoundBy::UsableSize)) {
                Given::Guarded => self.guarded_size(address),
                given => given.size(),
            }
        };
        self.settle();
        size
    }

    // ---- caches and arenas -------------------------------------------------------------------------------------

    /// A cache for a new thread; null without memory.
    pub fn acquire_cache(&self) -> *mut Cache {
        self.lists.take(&self.kernel);
        let cache = self.idle_or_new_cache();
        self.lists.give(&self.kernel);
        cache
    }

    fn idle_or_new_cache(&self) -> *mut Cache {
        // SAFETY: the lock is held; caches are never unmapped.
        unsafe {
            let idle = *self.idle_caches.get();
            if !idle.is_null() {
                *self.idle_caches.get() = (*idle).next_idle;
                *self.idle_count.get() -= 1;
                return idle;
            }
            let length = round_up(size_of::<Cache>(), self.kernel.page_size());
            let Some(start) = self.map(length) else {
                return ptr::null_mut();
            };
            let page = self.page();
            page.kernel.record_bytes.add_shared(length as u64);
            let cache = ptr::with_exposed_provenance_mut::<Cache>(start);
            (*cache).begin(self.secret(), self.arena_for_new_cache());
            self.begin_sampling(&*cache, page.cache_count.get());
            (*cache).counters.next.set(page.caches.get());
            page.cache_count.add_shared(1);
            core::sync::atomic::fence(Release);
            page.caches.set(start as u64);
            cache
        }
    }

    /// As in glibc, each thread has an arena to itself while there are not too many: a thread that waits for another, or
    /// leaves its blocks behind in a shared arena, costs more than an arena. The first has the one at the break.
    fn arena_for_new_cache(&self) -> *mut Arena {
        let page = self.page();
        let caches = page.cache_count.get() as usize;
        let count = page.arena_count.get() as usize;
        let mut arena = ptr::null_mut();
        if caches >= count && count < page.settings.arena_max.get() as usize {
            arena = self.new_arena(count);
        }
        if arena.is_null() {
            arena = self.arenas[caches % count].load(Acquire);
        }
        arena
    }

    /// Takes the cache of an ending thread back.
    ///
    /// # Safety
    ///
    /// The cache was the calling thread's, which uses it no more.
    pub unsafe fn release_cache(&self, cache: *mut Cache) {
        // SAFETY: the caller's promise; the lists are changed under their lock.
        unsafe {
            // A few idle caches keep their blocks, for programs whose threads come and go.
            if *self.idle_count.get() >= IDLE_CACHES_KEPT {
                self.empty_cache(&mut *cache);
            }
            self.lists.take(&self.kernel);
            (*cache).next_idle = *self.idle_caches.get();
            *self.idle_caches.get() = cache;
            *self.idle_count.get() += 1;
            self.lists.give(&self.kernel);
        }
        self.settle();
    }

    /// A new arena, or `current` if there are enough. A thread that moved among arenas would leave holes in each.
    fn another_arena(&self, current: *mut Arena) -> *mut Arena {
        self.lists.take(&self.kernel);
        let page = self.page();
        let count = page.arena_count.get() as usize;
        let mut arena = ptr::null_mut();
        // SAFETY: the lock is held.
        let threads = page.cache_count.get() as usize - unsafe { *self.idle_count.get() };
        if count < (page.settings.arena_max.get() as usize).min(threads) {
            arena = self.new_arena(count);
        }
        if arena.is_null() {
            arena = current;
        }
        self.lists.give(&self.kernel);
        arena
    }

    fn new_arena(&self, index: usize) -> *mut Arena {
        let length = round_up(size_of::<Arena>(), self.kernel.page_size());
        let Some(start) = self.map(length) else {
            return ptr::null_mut();
        };
        let page = self.page();
        page.kernel.record_bytes.add_shared(length as u64);
        let arena = ptr::with_exposed_provenance_mut::<Arena>(start);
        let main = self.main.get();
        // SAFETY: the memory is new and zero, which is an empty arena; `next` is a word of its own.
        unsafe {
            (*arena).secret = self.secret();
            (*arena).index = index as u32;
            (*arena).lowest = usize::MAX;
            (*arena).counters.next.set((*main).counters.next.get());
            self.arenas[index].store(arena, Release);
            core::sync::atomic::fence(Release);
            (*main).counters.next.set(start as u64);
        }
        page.arena_count.add_shared(1);
        arena
    }

    /// Runs `action` with the thread's cache, or under a lock with the one that all without a cache share. The second
    /// argument says whether new blocks are guarded.
    unsafe fn with_cache<T: Default>(
        &self,
        cache: *mut Cache,
        action: impl FnOnce(&mut Cache, bool) -> T,
    ) -> T {
        let result = if !cache.is_null() {
            // SAFETY: the calling thread owns it.
            let cache = unsafe { &mut *cache };
            let result = action(cache, false);
            self.hear(cache);
            result
        } else if !self.has_begun() {
            T::default()
        } else {
            self.shared_lock.take(&self.kernel);
            // SAFETY: the lock is held.
            unsafe {
                if (*self.shared.get()).is_null() {
                    *self.shared.get() = self.acquire_cache();
                }
                let shared = *self.shared.get();
                let result = if shared.is_null() {
                    T::default()
                } else {
                    let result = action(&mut *shared, self.page().settings.guard.get() != 0);
                    self.hear(&mut *shared);
                    result
                };
                self.shared_lock.give(&self.kernel);
                result
            }
        };
        self.settle();
        result
    }

    /// Notes what a thread has in use, for the peak of all.
    fn hear(&self, cache: &mut Cache) {
        let Some(change) = cache.untold() else {
            return;
        };
        let kernel = &self.page().kernel;
        let now = kernel.told_bytes.add_shared(change.cast_unsigned());
        if change > 0 && now.cast_signed() > 0 {
            kernel.told_peak_bytes.raise_shared(now);
        }
    }

    unsafe fn with_counters(&self, cache: *mut Cache, action: impl FnOnce(&mut Cache)) {
        // SAFETY: the caller's promise.
        unsafe { self.with_cache(cache, |cache, _| action(cache)) };
    }

    /// malloc_trim: gives back what can be given back, but for `keep` bytes at the top; whether anything went.
    ///
    /// # Safety
    ///
    /// `cache` is null or the calling thread's own.
    pub unsafe fn trim(&self, cache: *mut Cache, keep: usize) -> bool {
        let kernel = &self.page().kernel;
        let given = || {
            kernel.brk_shrunk_bytes.get() + kernel.unmapped_bytes.get() + kernel.advised_bytes.get()
        };
        let before = given();
        // SAFETY: the caller's promise.
        unsafe {
            self.with_cache(cache, |cache, _| self.empty_cache(cache));
            self.lists.take(&self.kernel);
            let mut idle = *self.idle_caches.get();
            while !idle.is_null() {
                self.empty_cache(&mut *idle);
                idle = (*idle).next_idle;
            }
            self.lists.give(&self.kernel);
            self.trim_keep.store(keep, Relaxed);
            for index in 0..MOST_ARENAS {
                let Some(arena) = self.arena(index as u32) else {
                    break;
                };
                (*arena).lock.take(&self.kernel);
                (*arena).trim(self);
                (*arena).lock.give(&self.kernel);
            }
        }
        self.settle();
        given() != before
    }

    /// The figures now. Exact if no other thread is inside the allocator.
    pub fn counters(&self) -> Counters {
        if !self.has_begun() {
            return Counters::default();
        }
        let page = self.page();
        let mut sum = Sum::of(page);
        let mut cache = page.caches.get() as usize;
        while cache != 0 {
            // SAFETY: caches are never unmapped, and their counters are atomic.
            let counters = unsafe { &(*ptr::with_exposed_provenance::<Cache>(cache)).counters };
            sum.add_cache(counters);
            cache = counters.next.get() as usize;
        }
        for index in 0..MOST_ARENAS {
            let Some(arena) = self.arena(index as u32) else {
                break;
            };
            // SAFETY: as for caches.
            sum.add_arena(unsafe { &(*arena).counters });
        }
        sum.finish().0
    }

    // ---- fork --------------------------------------------------------------------------------------------------

    /// Before fork: takes all locks, so that the child's copy of the heap is whole.
    pub fn before_fork(&self) {
        self.shared_lock.take(&self.kernel);
        self.lists.take(&self.kernel);
        for index in 0..MOST_ARENAS {
            if let Some(arena) = self.arena(index as u32) {
                // SAFETY: arenas are never unmapped.
                unsafe { (*arena).lock.take(&self.kernel) };
            }
        }
        self.errors.take(&self.kernel);
    }

    /// After fork, in the parent and in the child: gives the locks back.
    ///
    /// In the child the caches of the threads that are gone are left alone for good: fork may have caught one between two
    /// stores, a block both in its slab and in the cache, or live and cached. Only caches that were idle already are whole.
    ///
    /// # Safety
    ///
    /// Called by the thread that called [`Heap::before_fork`], or by its copy.
    pub unsafe fn after_fork(&self) {
        self.errors.give(&self.kernel);
        for index in 0..MOST_ARENAS {
            if let Some(arena) = self.arena(index as u32) {
                // SAFETY: arenas are never unmapped.
                unsafe { (*arena).lock.give(&self.kernel) };
            }
        }
        self.lists.give(&self.kernel);
        self.shared_lock.give(&self.kernel);
    }

    // ---- errors ------------------------------------------------------------------------------------------------

    /// As [`Heap::found`], if somebody is named.
    fn found_by(
        &self,
        kind: HeapErrorKind,
        by: Option<FoundBy>,
        block: usize,
        size: Option<usize>,
        changed: usize,
    ) {
        if let Some(by) = by {
            self.found(kind, by, block, size, changed);
        }
    }

    /// Records a heap error and tells the tracer. `changed` is the first changed byte, or 0.
    #[cold]
    fn found(
        &self,
        kind: HeapErrorKind,
        by: FoundBy,
        block: usize,
        size: Option<usize>,
        changed: usize,
    ) {
        self.errors.take(&self.kernel);
        let page = self.page();
        let number = page.error_count.get() + 1;
        let record = &page.errors[(number as usize - 1) % KEPT_ERRORS];
        record.number.set(0);
        core::sync::atomic::fence(Release);
        record.kind.set(kind as u32);
        record.found_by.set(by as u32);
        record.address.set(block as u64);
        record.size.set(size.map_or(u64::MAX, |size| size as u64));
        record.changed.set(changed as u64);
        record.tid.set(u64::from(self.kernel.thread_id()));
        core::sync::atomic::fence(Release);
        record.number.set(number);
        page.error_count.set(number);
        self.errors.give(&self.kernel);
        self.kernel.announce(
            ptr::from_ref(page).expose_provenance(),
            Cause::HeapError,
            0,
            number,
        );
        if page.settings.abort_on_error.get() != 0 {
            self.abort_pending.store(true, Relaxed);
        }
    }

    /// Ends the program if an error was found and it should: only here, where no lock is held.
    #[inline(always)]
    fn settle(&self) {
        if self.abort_pending.load(Relaxed) {
            self.kernel.abort();
        }
    }

    /// `bytes` of free memory are never used again, as something about them is broken: they count as records.
    fn lose(&self, bytes: usize) {
        self.page().kernel.record_bytes.add_shared(bytes as u64);
    }

    // ---- the kernel's side, counted ----------------------------------------------------------------------------

    fn obtained(&self, start: usize, bytes: usize) {
        self.lowest.fetch_min(start, Relaxed);
        self.highest.fetch_max(start + bytes, Relaxed);
        let kernel = &self.page().kernel;
        let now = kernel.obtained_bytes.add_shared(bytes as u64);
        kernel.obtained_peak_bytes.raise_shared(now);
    }

    /// Somebody else took memory from the end of the heap at the break.
    fn taken_away(&self, bytes: usize) {
        self.page().kernel.obtained_bytes.sub_shared(bytes as u64);
    }

    fn foreign_break_move(&self) {
        self.page().kernel.foreign_break_moves.add_shared(1);
    }

    fn move_break(&self, from: usize, to: usize, cause: Cause, request: usize) -> usize {
        let kernel = &self.page().kernel;
        let got = self.kernel.move_break(to, cause, request);
        kernel.brk_calls.add_shared(1);
        if got != to {
            kernel.brk_refused.add_shared(1);
        } else if to > from {
            kernel.brk_grown_bytes.add_shared((to - from) as u64);
            self.obtained(from, to - from);
        } else {
            kernel.brk_shrunk_bytes.add_shared((from - to) as u64);
            kernel.obtained_bytes.sub_shared((from - to) as u64);
        }
        got
    }

    fn map(&self, length: usize) -> Option<usize> {
        let kernel = &self.page().kernel;
        kernel.mmap_calls.add_shared(1);
        let start = self.kernel.map(length)?;
        kernel.mapped_bytes.add_shared(length as u64);
        self.obtained(start, length);
        Some(start)
    }

    fn unmap(&self, start: usize, length: usize, cause: Cause) {
        let kernel = &self.page().kernel;
        kernel.munmap_calls.add_shared(1);
        if self.kernel.unmap(start, length, cause) {
            kernel.unmapped_bytes.add_shared(length as u64);
            kernel.obtained_bytes.sub_shared(length as u64);
        } else {
            // A hole in a mapping makes two of one, and the kernel may have a limit there (vm.max_map_count).
            kernel.record_bytes.add_shared(length as u64);
        }
    }

    fn remap(&self, start: usize, old: usize, new: usize) -> Option<usize> {
        let kernel = &self.page().kernel;
        kernel.mremap_calls.add_shared(1);
        let at = self.kernel.remap(start, old, new, true)?;
        self.lowest.fetch_min(at, Relaxed);
        if new > old {
            kernel.mapped_bytes.add_shared((new - old) as u64);
            self.obtained(at + old, new - old);
        } else {
            kernel.unmapped_bytes.add_shared((old - new) as u64);
            kernel.obtained_bytes.sub_shared((old - new) as u64);
        }
        Some(at)
    }

    fn give_back(&self, start: usize, length: usize, cause: Cause) {
        let kernel = &self.page().kernel;
        kernel.madvise_calls.add_shared(1);
        if self.kernel.give_back(start, length, cause) {
            kernel.advised_bytes.add_shared(length as u64);
        }
    }
}

impl Given {
    /// Takes note that the mark was taken from the block's header.
    fn is_no_sample(&mut self) {
        if let Self::Small { header, .. } | Self::Medium { header, .. } = self {
            *header = header.as_no_sample();
        }
    }

    /// Bytes asked for.
    fn size(&self) -> usize {
        match *self {
            Self::Small { size, .. } | Self::Medium { size, .. } => size,
            Self::Large(record) => record.size,
            Self::Guarded | Self::Nothing => 0,
        }
    }
}
