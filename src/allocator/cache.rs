//! Thread caches: free blocks that a thread takes and gives without a lock, and its counters.
//!
//! Each small class has a stack of block addresses, kept apart from the blocks, so that neither a block's memory need be
//! read to hand it out, nor a write after free can lead astray. Stacks start small and grow with use. Medium blocks
//! have bins of a few chunks each.
//!
//! A cache belongs to one thread at a time. When its thread ends, the next new thread takes it over.

use core::ptr;

use super::Heap;
use super::arena::Arena;
use super::arena::medium_chunk_bytes;
use super::chunk::Chunk;
use super::chunk::FRONT;
use super::chunk::UNIT;
use super::header::Header;
use super::header::MEDIUM;
use super::header::write_canary;
use super::kernel::Kernel;
use super::size_class::small_bytes;
use super::slab::Slab;
use crate::stats_page::CacheCounters;
use crate::stats_page::FoundBy;
use crate::stats_page::HeapErrorKind;
use crate::stats_page::Policy;
use crate::stats_page::SMALL_CLASSES;
use crate::stats_page::Word;

/// Most blocks of a class in a cache.
const fn most_blocks(class: usize) -> usize {
    let fitting = (8 << 10) / small_bytes(class);
    if fitting > 64 {
        64
    } else if fitting < 12 {
        12
    } else {
        fitting
    }
}

/// Blocks of a class that a new cache holds at most.
const FIRST_CAPACITY: u16 = 8;

/// First slot of each class, and behind the last.
static SLOT: [u16; SMALL_CLASSES + 1] = {
    let mut slots = [0; SMALL_CLASSES + 1];
    let mut class = 0;
    while class < SMALL_CLASSES {
        slots[class + 1] = slots[class] + most_blocks(class) as u16;
        class += 1;
    }
    slots
};
const SLOTS: usize = SLOT_COUNT;
const SLOT_COUNT: usize = {
    let mut count = 0;
    let mut class = 0;
    while class < SMALL_CLASSES {
        count += most_blocks(class);
        class += 1;
    }
    count
};

/// Chunks of medium blocks up to this size are cached.
const LARGEST_CACHED: usize = 64 << 10;
/// Bins for them: four for each doubling from 1 KiB on.
const MEDIUM_BINS: usize = 25;
/// Chunks in a bin.
const MEDIUM_DEPTH: usize = 8;
/// Most bytes of medium chunks in a cache.
const MEDIUM_BYTES: usize = 256 << 10;
/// A bin also serves requests that leave this part of a chunk unused.
const SPARE_PART: usize = 8;

/// Bytes of medium chunks given back to their arenas between two consolidations; glibc consolidates whenever a free
/// chunk reaches 64 KiB (malloc.c, `FASTBIN_CONSOLIDATION_THRESHOLD`).
const CONSOLIDATE: usize = 64 << 10;

/// Smaller changes of what a thread has in use are not told.
const WORTH_TELLING: i64 = 4096;

/// Times that a thread finds its arena's lock taken before it moves to another arena.
const PATIENCE: u32 = 64;

#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Medium {
    chunk: usize,
    size: usize,
}

#[derive(Debug)]
#[repr(C)]
struct MediumBin {
    count: usize,
    chunks: [Medium; MEDIUM_DEPTH],
}

/// See the module's description. Zero bytes are an empty cache, but for what `begin` sets.
#[derive(Debug)]
#[repr(C)]
pub struct Cache {
    /// What the tracer reads.
    pub counters: CacheCounters,
    pub(crate) secret: u64,
    pub(crate) arena: *mut Arena,
    /// The next cache without a thread.
    pub(crate) next_idle: *mut Cache,
    /// Bytes of medium chunks given back since the last consolidation.
    given_back: usize,
    /// Bytes in use that were told last.
    told: i64,
    /// With so many bytes requested, the next block is a sample; never with the largest number. Other threads store it only
    /// when the set-up changes.
    pub(crate) sample_at: Word,
    /// State of the generator of random numbers.
    pub(crate) random: Word,
    impatience: u32,
    capacity: [u16; SMALL_CLASSES],
    slots: [usize; SLOTS],
    medium: [MediumBin; MEDIUM_BINS],
}

/// A medium chunk for a block.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MediumTaken {
    pub(crate) chunk: Chunk,
    pub(crate) size: usize,
    pub(crate) arena: u32,
    pub(crate) zeroed: bool,
}

fn medium_bin(size: usize) -> usize {
    let units = size / 256;
    let doubling = units.ilog2();
    ((doubling as usize - 2) * 4 + (units >> (doubling - 2)) - 4).min(MEDIUM_BINS - 1)
}

impl Cache {
    /// Makes zero bytes a cache.
    pub(crate) fn begin(&mut self, secret: u64, arena: *mut Arena) {
        self.secret = secret;
        self.arena = arena;
        self.sample_at.set(u64::MAX);
        self.capacity = [FIRST_CAPACITY; SMALL_CLASSES];
    }

    /// A free block of a class, if the cache has one, made a live one of `size` bytes.
    ///
    /// # Safety
    ///
    /// The calling thread owns the cache.
    #[inline(always)]
    pub(crate) unsafe fn take_small(&mut self, class: usize, size: usize) -> Option<usize> {
        let count = self.counters.cached[class].get();
        if count == 0 {
            return None;
        }
        let slot = usize::from(SLOT[class]) + count as usize - 1;
        // SAFETY: a class's count never exceeds its slots.
        let block = unsafe { *self.slots.get_unchecked(slot) };
        // SAFETY: blocks in the cache are blocks of slabs.
        unsafe {
            let header = Header::read(block);
            if !header.is_free_small(block, self.secret, class) {
                return None;
            }
            self.counters.cached[class].set(count - 1);
            header.taken(size).write(block);
            // Where there is no byte left, it is the last one asked for: its value is nobody's concern yet.
            let last = small_bytes_fast(class) - super::header::HEADER_BYTES - 1;
            write_canary(block + size.min(last));
        }
        self.counters.allocated[class].add(1);
        self.count_requested(size);
        Some(block)
    }

    /// Puts a free block into the cache, if there is room.
    #[inline(always)]
    pub(crate) fn give_small(&mut self, class: usize, block: usize) -> bool {
        let count = self.counters.cached[class].get();
        if count >= u32::from(self.capacity[class]) {
            return false;
        }
        let slot = usize::from(SLOT[class]) + count as usize;
        // SAFETY: a class's capacity never exceeds its slots.
        unsafe { *self.slots.get_unchecked_mut(slot) = block };
        self.counters.cached[class].set(count + 1);
        true
    }

    /// Counts bytes asked for.
    #[inline(always)]
    pub(crate) fn count_requested(&mut self, size: usize) {
        let counters = &self.counters;
        let requested = counters.requested_bytes.get().wrapping_add(size as u64);
        counters.requested_bytes.set(requested);
        let live = requested
            .wrapping_sub(counters.released_bytes.get())
            .cast_signed();
        if live > counters.peak_bytes.get().cast_signed() {
            counters.peak_bytes.set(live.cast_unsigned());
        }
    }

    /// Counts bytes asked for that are given back.
    #[inline(always)]
    pub(crate) fn count_released(&mut self, size: usize) {
        self.counters.released_bytes.add(size as u64);
    }

    /// By how much the bytes in use changed since this was asked last; `None` if it is not worth telling.
    pub(crate) fn untold(&mut self) -> Option<i64> {
        let requested = self.counters.requested_bytes.get();
        let live = requested
            .wrapping_sub(self.counters.released_bytes.get())
            .cast_signed();
        let change = live - self.told;
        if change.abs() < WORTH_TELLING {
            return None;
        }
        self.told = live;
        Some(change)
    }

    fn take_medium(&mut self, need: usize) -> Option<Medium> {
        let own = medium_bin(need);
        let most = need + need / SPARE_PART;
        for bin in own..=(own + 1).min(MEDIUM_BINS - 1) {
            let bin = &mut self.medium[bin];
            for index in (0..bin.count).rev() {
                let medium = bin.chunks[index];
                if (need..=most).contains(&medium.size) {
                    bin.count -= 1;
                    bin.chunks[index] = bin.chunks[bin.count];
                    self.counters.medium_cached_bytes.sub(medium.size as u64);
                    return Some(medium);
                }
            }
        }
        None
    }

    fn give_medium(&mut self, chunk: Chunk, size: usize) -> bool {
        let bin = &mut self.medium[medium_bin(size)];
        // Few of the large ones, as each is much memory.
        let depth = if size > 16 << 10 { 2 } else { MEDIUM_DEPTH };
        if bin.count >= depth
            || self.counters.medium_cached_bytes.get() as usize + size > MEDIUM_BYTES
        {
            return false;
        }
        bin.chunks[bin.count] = Medium {
            chunk: chunk.0,
            size,
        };
        bin.count += 1;
        self.counters.medium_cached_bytes.add(size as u64);
        true
    }
}

#[inline(always)]
fn small_bytes_fast(class: usize) -> usize {
    usize::from(super::size_class::BLOCK_BYTES[class])
}

impl<K: Kernel> Heap<K> {
    /// The arena of a cache, locked. A thread that often finds it taken moves to another one.
    pub(super) fn lock_arena(&self, cache: &mut Cache) -> *mut Arena {
        // SAFETY: arenas are never unmapped.
        unsafe {
            if (*cache.arena).lock.try_take() {
                return cache.arena;
            }
            cache.impatience += 1;
            if cache.impatience >= PATIENCE {
                cache.impatience = 0;
                cache.arena = self.another_arena(cache.arena);
            }
            let waited = (*cache.arena).lock.take(&self.kernel);
            if waited {
                (*cache.arena).counters.lock_waits.add(1);
            }
            cache.arena
        }
    }

    /// Fills the stack of a class, which is empty; whether there is a block now.
    ///
    /// # Safety
    ///
    /// The calling thread owns the cache.
    pub(super) unsafe fn refill(&self, cache: &mut Cache, class: usize, request: usize) -> bool {
        let capacity = cache.capacity[class];
        let wanted = usize::from(capacity / 2).max(1);
        cache.capacity[class] = (capacity * 2).min(most_blocks(class) as u16);
        let first = usize::from(SLOT[class]);
        let arena = self.lock_arena(cache);
        let blocks = &mut cache.slots[first..first + wanted];
        // SAFETY: the lock is held; the slots hold nothing while the count is 0.
        let taken = unsafe {
            let taken = (*arena).take_small(self, class, request, blocks);
            (*arena).lock.give(&self.kernel);
            taken
        };
        // The lowest address is handed out first, as it was cut first.
        blocks[..taken].reverse();
        cache.counters.cached[class].set(taken as u32);
        taken > 0
    }

    /// Makes room in a full stack: a larger one, or the older half of its blocks back to their slabs.
    ///
    /// # Safety
    ///
    /// The calling thread owns the cache.
    pub(super) unsafe fn make_room(&self, cache: &mut Cache, class: usize) {
        let most = most_blocks(class) as u16;
        if cache.capacity[class] < most && self.policy() != Policy::Eager {
            cache.capacity[class] = (cache.capacity[class] * 2).min(most);
            return;
        }
        let count = cache.counters.cached[class].get() as usize;
        // SAFETY: the caller's promise.
        unsafe { self.give_back_small(cache, class, count.div_ceil(2)) };
    }

    /// Gives the oldest `count` blocks of a class back to their slabs.
    unsafe fn give_back_small(&self, cache: &mut Cache, class: usize, count: usize) {
        let first = usize::from(SLOT[class]);
        let total = cache.counters.cached[class].get() as usize;
        let mut held: *mut Arena = ptr::null_mut();
        for index in first..first + count {
            let block = cache.slots[index];
            // SAFETY: blocks in the cache are blocks of slabs; a header that was overwritten is not followed.
            unsafe {
                let header = Header::read(block);
                let slab = if header.is_free_small(block, self.secret(), class) {
                    Slab::at(block - header.slab_distance(), self.secret())
                } else {
                    None
                };
                let Some(slab) = slab else {
                    self.drop_broken(block, class, FoundBy::Free);
                    continue;
                };
                let arena = (*slab).arena;
                if arena != held {
                    if !held.is_null() {
                        (*held).lock.give(&self.kernel);
                    }
                    if (*arena).lock.take(&self.kernel) {
                        (*arena).counters.lock_waits.add(1);
                    }
                    held = arena;
                }
                if !(*arena).give_small(self, slab, block) {
                    self.found(HeapErrorKind::DoubleFree, FoundBy::Free, block, None, 0);
                    self.lose(small_bytes(class));
                }
            }
        }
        if !held.is_null() {
            // SAFETY: it is held.
            unsafe { (*held).lock.give(&self.kernel) };
        }
        cache.slots.copy_within(first + count..first + total, first);
        cache.counters.cached[class].set((total - count) as u32);
    }

    /// Takes the newest block of a class, whose header is broken, out of the cache.
    #[cold]
    pub(super) fn drop_newest(&self, cache: &mut Cache, class: usize) {
        let count = cache.counters.cached[class].get();
        let block = cache.slots[usize::from(SLOT[class]) + count as usize - 1];
        cache.counters.cached[class].set(count - 1);
        self.drop_broken(block, class, FoundBy::Malloc);
    }

    /// Reports a free block whose header was overwritten; the block is never used again.
    #[cold]
    fn drop_broken(&self, block: usize, class: usize, found_by: FoundBy) {
        // SAFETY: the block before, if there is one, is in the same slab; otherwise the slab's record is there.
        let culprit = unsafe { self.overflowing_neighbour(block, class) };
        match culprit {
            Some((neighbour, size)) => {
                self.found(
                    HeapErrorKind::WritePastEnd,
                    found_by,
                    neighbour,
                    Some(size),
                    neighbour + size,
                );
            }
            None => self.found(
                HeapErrorKind::WriteAfterFree,
                found_by,
                block,
                None,
                block - 8,
            ),
        }
        self.lose(small_bytes(class));
    }

    /// Gives all blocks of a cache back.
    ///
    /// # Safety
    ///
    /// The calling thread owns the cache.
    pub(super) unsafe fn empty_cache(&self, cache: &mut Cache) {
        for class in 0..SMALL_CLASSES {
            let count = cache.counters.cached[class].get() as usize;
            if count > 0 {
                // SAFETY: the caller's promise.
                unsafe { self.give_back_small(cache, class, count) };
            }
            cache.capacity[class] = FIRST_CAPACITY;
        }
        // SAFETY: the caller's promise.
        unsafe { self.empty_medium(cache) };
    }

    /// Gives the medium chunks of a cache back.
    unsafe fn empty_medium(&self, cache: &mut Cache) {
        for bin in 0..MEDIUM_BINS {
            while cache.medium[bin].count > 0 {
                cache.medium[bin].count -= 1;
                let medium = cache.medium[bin].chunks[cache.medium[bin].count];
                cache.counters.medium_cached_bytes.sub(medium.size as u64);
                // SAFETY: chunks in the cache are in use as far as their arena knows.
                unsafe { self.free_chunk(Chunk(medium.chunk)) };
            }
        }
    }

    /// Takes a chunk for a medium block of `size` bytes.
    ///
    /// # Safety
    ///
    /// The calling thread owns the cache.
    pub(super) unsafe fn take_medium(&self, cache: &mut Cache, size: usize) -> Option<MediumTaken> {
        let need = medium_chunk_bytes(size);
        if (1024..=LARGEST_CACHED).contains(&need)
            && let Some(medium) = cache.take_medium(need)
        {
            let chunk = Chunk(medium.chunk);
            // SAFETY: the header of a block in the cache was written when it was freed.
            let header = unsafe { Header::read(chunk.block()) };
            return Some(MediumTaken {
                chunk,
                size: medium.size,
                arena: header.data() >> 16,
                zeroed: false,
            });
        }
        cache.counters.misses.add(1);
        let arena = self.lock_arena(cache);
        // SAFETY: the lock is held.
        unsafe {
            let taken = (*arena).take(self, need, size);
            let index = (*arena).index;
            (*arena).lock.give(&self.kernel);
            let taken = taken?;
            Some(MediumTaken {
                chunk: taken.chunk,
                size: taken.size,
                arena: index,
                zeroed: taken.zeroed,
            })
        }
    }

    /// Frees the chunk of a medium block whose header says that it is free.
    ///
    /// # Safety
    ///
    /// The calling thread owns the cache; nobody uses the block any more.
    pub(super) unsafe fn give_medium(&self, cache: &mut Cache, chunk: Chunk, size: usize) {
        if (1024..=LARGEST_CACHED).contains(&size)
            && self.policy() != Policy::Eager
            && cache.give_medium(chunk, size)
        {
            return;
        }
        // SAFETY: the caller's promise.
        unsafe {
            self.free_chunk(chunk);
            // What waits in caches may be all that keeps much free memory from the top.
            cache.given_back += size;
            if cache.given_back >= CONSOLIDATE {
                cache.given_back = 0;
                self.consolidate(cache);
            }
        }
    }

    /// Gives the medium chunks of a cache back, and empty slabs of its arena.
    #[cold]
    unsafe fn consolidate(&self, cache: &mut Cache) {
        if self.policy() == Policy::Never {
            return;
        }
        // SAFETY: the caller owns the cache.
        unsafe {
            self.empty_medium(cache);
            let arena = self.lock_arena(cache);
            (*arena).release_empty_slabs(self);
            (*arena).lock.give(&self.kernel);
        }
    }

    /// Gives a chunk back to its arena.
    unsafe fn free_chunk(&self, chunk: Chunk) {
        // SAFETY: the chunk held a medium block, whose header names the arena.
        unsafe {
            let index = Header::read(chunk.block()).data() >> 16;
            let Some(arena) = self.arena(index) else {
                self.found(
                    HeapErrorKind::WriteAfterFree,
                    FoundBy::Free,
                    chunk.block(),
                    None,
                    chunk.0 + 8,
                );
                self.lose(chunk.tag().size());
                return;
            };
            if (*arena).lock.take(&self.kernel) {
                (*arena).counters.lock_waits.add(1);
            }
            (*arena).free(self, chunk);
            (*arena).lock.give(&self.kernel);
        }
    }

    /// Writes the header of a medium block and its canary.
    ///
    /// # Safety
    ///
    /// The chunk is the caller's and holds `size` bytes.
    pub(super) unsafe fn write_medium(&self, taken: MediumTaken, size: usize) {
        let slack = taken.size - FRONT - size;
        debug_assert!((1..1 << 16).contains(&slack));
        let header = Header::other(
            taken.chunk.block(),
            self.secret(),
            MEDIUM,
            slack as u32 | taken.arena << 16,
        );
        // SAFETY: the caller's promise.
        unsafe {
            header.write(taken.chunk.block());
            write_canary(taken.chunk.block() + size);
        }
    }
}

const _: () = assert!(UNIT == 16);
