//! An arena: segments of memory from the kernel, divided into chunks.
//!
//! The first arena's segments lie at the program break; when the break cannot be moved, and in all other arenas, they
//! are mappings. A segment begins with its record. The newest one ends with the *top*, from which chunks are cut when
//! no bin has one; older ones end with a chunk marked `END`.
//!
//! At any time while the lock is free, for the bytes of an arena's segments:
//!
//! ```text
//! segments = segment records + chunks in use + free chunks + top
//! chunks in use = slabs + chunks of medium blocks (live or in thread caches)
//! ```

use core::mem::size_of;

use super::Heap;
use super::bins::Bins;
use super::bins::bin_of;
use super::chunk::Chunk;
use super::chunk::END;
use super::chunk::FRONT;
use super::chunk::IN_USE;
use super::chunk::PREVIOUS_FREE;
use super::chunk::SMALLEST;
use super::chunk::UNIT;
use super::kernel::Kernel;
use super::lock::Lock;
use super::round_down;
use super::round_up;
use crate::stats_page::ArenaCounters;
use crate::stats_page::Cause;
use crate::stats_page::FoundBy;
use crate::stats_page::HeapErrorKind;
use crate::stats_page::Policy;
use crate::stats_page::SMALL_CLASSES;
use crate::stats_page::Word;

/// Least bytes of a mapped segment.
const MAPPED_SEGMENT: usize = 1 << 20;
/// Most bytes of a mapped segment that no single request needs.
const LARGEST_MAPPED_SEGMENT: usize = 32 << 20;
/// How many chunks of a bin are looked at for one that fits.
const LOOKS: usize = 12;

/// First bytes of a segment.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Segment {
    /// Says that it is one, see [`Segment::check`].
    pub(crate) check: u64,
    /// The segment before it, 0 for none.
    pub(crate) next: usize,
    /// First byte that the kernel gave.
    pub(crate) start: usize,
    /// First byte behind those; 0 for a segment at the break that is still growing.
    pub(crate) end: usize,
    /// 1 if it lies at the program break.
    pub(crate) at_break: usize,
    padding: usize,
}

/// Bytes of a segment's record.
pub(crate) const SEGMENT_RECORD: usize = size_of::<Segment>();
const _: () = assert!(SEGMENT_RECORD.is_multiple_of(UNIT));

impl Segment {
    pub(crate) fn check(address: usize, secret: u64) -> u64 {
        (address as u64 ^ secret).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x7365_676d
    }
}

/// A chunk in use, as it was just taken.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taken {
    pub(crate) chunk: Chunk,
    pub(crate) size: usize,
    /// Whether it is zero behind the block's header.
    pub(crate) zeroed: bool,
}

/// See the module's description. All fields but `lock` belong to the holder of the lock. An arena of zero bytes is
/// empty; `secret` is set before its first use.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Arena {
    pub(crate) counters: ArenaCounters,
    pub(crate) lock: Lock,
    /// 0 for the one at the break.
    pub(crate) index: u32,
    pub(crate) secret: u64,
    /// First byte of the top; 0 without one.
    pub(crate) top: usize,
    /// First byte behind it.
    pub(crate) top_end: usize,
    /// From here to the end of the top, no byte was written since the kernel gave it.
    fresh: usize,
    /// All segments lie between these.
    pub(crate) lowest: usize,
    highest: usize,
    /// Where the break was before this arena moved it first; 0 if it never did.
    break_start: usize,
    /// Where the break was when this arena moved it last; 0 if it never did.
    break_end: usize,
    /// Whether the top lies at the break.
    top_at_break: bool,
    /// Whether somebody lowered the break into memory in use: it is left alone from then on.
    break_lost: bool,
    /// Whether a free chunk was found overwritten. Its neighbours and its bin cannot be relied on: chunks are no longer
    /// joined.
    pub(super) damaged: bool,
    /// Bytes mapped for segments, for the size of the next.
    mapped: usize,
    pub(super) bins: Bins,
    /// First slab with a free block, by class; 0 for none.
    pub(super) partial: [usize; SMALL_CLASSES],
    /// First slab without a live block, by class; 0 for none. How many there are.
    pub(super) empty: [usize; SMALL_CLASSES],
    pub(super) empty_slabs: [u32; SMALL_CLASSES],
    /// Slabs, by class.
    pub(super) slabs: [u32; SMALL_CLASSES],
}

impl Arena {
    pub(crate) const fn new() -> Self {
        Self {
            counters: ArenaCounters::new(),
            lock: Lock::new(),
            index: 0,
            secret: 0,
            top: 0,
            top_end: 0,
            fresh: 0,
            lowest: usize::MAX,
            highest: 0,
            break_start: 0,
            break_end: 0,
            top_at_break: false,
            break_lost: false,
            damaged: false,
            mapped: 0,
            bins: Bins::new(),
            partial: [0; SMALL_CLASSES],
            empty: [0; SMALL_CLASSES],
            empty_slabs: [0; SMALL_CLASSES],
            slabs: [0; SMALL_CLASSES],
        }
    }

    /// From the first address ever obtained at the break to its end. Part of it may be others'.
    pub(super) fn break_range(&self) -> core::ops::Range<usize> {
        self.break_start..self.break_end
    }

    fn top_size(&self) -> usize {
        self.top_end - self.top
    }

    /// Moves the top. The first word of the top is its tag, so that the chunk before it finds it valid.
    fn set_top(&mut self, top: usize, end: usize) {
        debug_assert!(end - top >= UNIT);
        self.top = top;
        self.top_end = end;
        self.lowest = self.lowest.min(top);
        self.highest = self.highest.max(end);
        self.counters.top_bytes.set((end - top) as u64);
        // SAFETY: the top has at least 16 bytes, and the caller holds the lock.
        unsafe { Chunk(top).write_tag(end - top, IN_USE, self.secret) };
    }

    /// Takes a chunk of at least `need` bytes for a request of `request` bytes.
    ///
    /// # Safety
    ///
    /// The caller holds the lock. `need` is a multiple of [`UNIT`] and at least [`SMALLEST`].
    pub(crate) unsafe fn take<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        need: usize,
        request: usize,
    ) -> Option<Taken> {
        debug_assert!(need.is_multiple_of(UNIT) && need >= SMALLEST);
        // SAFETY: the caller's promises.
        if let Some(taken) = unsafe { self.take_from_bins(heap, need) } {
            return Some(taken);
        }
        if self.top_size() < need + UNIT {
            // Rather what waits empty than more from the kernel.
            // SAFETY: as above.
            let again = unsafe {
                self.release_empty_slabs(heap)
                    .then(|| self.take_from_bins(heap, need))
            };
            if let Some(Some(taken)) = again {
                return Some(taken);
            }
            if self.top_size() < need + UNIT {
                self.extend(heap, need, request).then_some(())?;
            }
        }
        let chunk = Chunk(self.top);
        let zeroed = chunk.0 >= self.fresh;
        self.fresh = self.fresh.max(chunk.0 + need);
        // SAFETY: the chunk is the first part of the top.
        unsafe { chunk.write_tag(need, IN_USE, self.secret) };
        self.set_top(chunk.0 + need, self.top_end);
        Some(Taken {
            chunk,
            size: need,
            zeroed,
        })
    }

    unsafe fn take_from_bins<K: Kernel>(&mut self, heap: &Heap<K>, need: usize) -> Option<Taken> {
        let own = bin_of(need);
        // SAFETY: chunks in bins are free, and the caller holds the lock.
        unsafe {
            // Its own bin also has chunks that are too small.
            if let Some((chunk, size)) = self.lowest_in(heap, own, need) {
                return self.take_free(heap, chunk, size, need);
            }
            loop {
                let bin = self.bins.first_filled(own + 1)?;
                if let Some((chunk, size)) = self.lowest_in(heap, bin, need) {
                    return self.take_free(heap, chunk, size, need);
                }
                // An overwritten bin was given up; in the last, of all sizes, none that was looked at fits.
                if self.bins.head(bin) != 0 {
                    return None;
                }
            }
        }
    }

    /// Of the first chunks of a bin that hold `need` bytes the one at the lowest address, so that the top becomes free
    /// sooner; and its size.
    unsafe fn lowest_in<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        bin: usize,
        need: usize,
    ) -> Option<(Chunk, usize)> {
        let mut found: Option<(Chunk, usize)> = None;
        let mut candidate = self.bins.head(bin);
        for _ in 0..LOOKS {
            if candidate == 0 {
                break;
            }
            let chunk = Chunk(candidate);
            // SAFETY: chunks in bins are free, and the caller holds the lock; links are followed only where they can be
            // those of chunks.
            unsafe {
                let tag = chunk.tag();
                if !tag.is_valid(chunk.0, self.secret) || tag.has(IN_USE) {
                    self.drop_bin(heap, bin, chunk);
                    return None;
                }
                if tag.size() >= need && found.is_none_or(|(lowest, _)| chunk < lowest) {
                    found = Some((chunk, tag.size()));
                }
                candidate = chunk.links().0;
            }
            if !self.may_be_chunk(candidate) {
                self.drop_bin(heap, bin, chunk);
                return None;
            }
        }
        found
    }

    /// Makes a free chunk one in use, and gives back what is left over.
    unsafe fn take_free<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        chunk: Chunk,
        size: usize,
        need: usize,
    ) -> Option<Taken> {
        // SAFETY: the chunk is free, and the caller holds the lock.
        unsafe {
            if !self.unlink(heap, chunk, size) {
                return None;
            }
            let size = self.cut(chunk, size, need, 0);
            Some(Taken {
                chunk,
                size,
                zeroed: false,
            })
        }
    }

    /// Marks `need` of the `size` bytes of an unlinked chunk as in use and puts the rest into a bin, if it makes a chunk;
    /// returns the size of the chunk in use. `flags` are those of the chunk's tag besides `IN_USE`.
    unsafe fn cut(&mut self, chunk: Chunk, size: usize, need: usize, flags: u64) -> usize {
        // SAFETY: all addresses are inside the chunk or at the one behind it; the caller holds the lock.
        unsafe {
            if size - need < SMALLEST {
                chunk.write_tag(size, IN_USE | flags, self.secret);
                chunk.after(size).change_flags(0, PREVIOUS_FREE);
                return size;
            }
            chunk.write_tag(need, IN_USE | flags, self.secret);
            self.insert(chunk.after(need), size - need);
            self.counters.splits.add(1);
            need
        }
    }

    /// Puts a chunk into its bin. Neither neighbour is free.
    unsafe fn insert(&mut self, chunk: Chunk, size: usize) {
        let bin = bin_of(size);
        let head = self.bins.head(bin);
        // SAFETY: the chunk is free and has at least four words; the one behind it has a tag.
        unsafe {
            chunk.write_tag(size, 0, self.secret);
            chunk.write_foot(size);
            chunk.after(size).change_flags(PREVIOUS_FREE, 0);
            chunk.set_next(head);
            chunk.set_previous(0);
            if head != 0 {
                Chunk(head).set_previous(chunk.0);
            }
        }
        self.bins.set_head(bin, chunk.0);
        self.counters.free_chunks.add(1);
        self.counters.free_chunk_bytes.add(size as u64);
    }

    /// Takes a chunk out of its bin; `false` if its links were overwritten.
    unsafe fn unlink<K: Kernel>(&mut self, heap: &Heap<K>, chunk: Chunk, size: usize) -> bool {
        let bin = bin_of(size);
        // SAFETY: links are followed only where they can be those of chunks.
        unsafe {
            let (next, previous) = chunk.links();
            let next_agrees =
                next == 0 || (self.may_be_chunk(next) && Chunk(next).links().1 == chunk.0);
            let previous_agrees = if previous == 0 {
                self.bins.head(bin) == chunk.0
            } else {
                self.may_be_chunk(previous) && Chunk(previous).links().0 == chunk.0
            };
            if !next_agrees || !previous_agrees {
                self.drop_bin(heap, bin, chunk);
                return false;
            }
            if next != 0 {
                Chunk(next).set_previous(previous);
            }
            if previous == 0 {
                self.bins.set_head(bin, next);
            } else {
                Chunk(previous).set_next(next);
            }
        }
        self.counters.free_chunks.sub(1);
        self.counters.free_chunk_bytes.sub(size as u64);
        true
    }

    /// Whether an address read from memory that the program may have overwritten can be a chunk's. Other memory may lie
    /// between segments; but what a program writes over a link hardly ever looks like an address so near.
    fn may_be_chunk(&self, address: usize) -> bool {
        address == 0
            || (address.is_multiple_of(UNIT) && (self.lowest..self.highest).contains(&address))
    }

    /// Whether an address lies in one of the segments.
    pub(crate) fn owns(&self, address: usize) -> bool {
        if (self.top..self.top_end).contains(&address) {
            return true;
        }
        let mut segment = self.counters.segments.get() as usize;
        while segment != 0 {
            // SAFETY: segments of the list are mapped, and their records are theirs.
            let record = unsafe { &*core::ptr::with_exposed_provenance::<Segment>(segment) };
            let end = self.end_of(segment, record);
            if (segment..end).contains(&address) {
                return true;
            }
            if record.check != Segment::check(segment, self.secret) {
                return false;
            }
            segment = record.next;
        }
        false
    }

    /// First byte behind the chunks of a segment.
    pub(crate) fn end_of(&self, segment: usize, record: &Segment) -> usize {
        if segment == self.counters.segments.get() as usize {
            self.top_end
        } else {
            record.end
        }
    }

    /// A free chunk was overwritten: its bin is given up, with all chunks in it.
    #[cold]
    fn drop_bin<K: Kernel>(&mut self, heap: &Heap<K>, bin: usize, chunk: Chunk) {
        self.bins.set_head(bin, 0);
        self.damaged = true;
        heap.found(
            HeapErrorKind::WriteAfterFree,
            FoundBy::Malloc,
            chunk.block(),
            None,
            chunk.0,
        );
    }

    /// Frees a chunk. What is wrong with its neighbours' tags is reported, and they are left alone.
    ///
    /// # Safety
    ///
    /// The caller holds the lock, and the chunk is one in use of this arena.
    pub(crate) unsafe fn free<K: Kernel>(&mut self, heap: &Heap<K>, chunk: Chunk) {
        // SAFETY: the caller's promises; neighbours are looked at only after their tags have been checked.
        unsafe {
            let tag = chunk.tag();
            let mut start = chunk;
            let mut size = tag.size();
            let after = chunk.after(size);
            let tag_after = if after.0 == self.top {
                tag
            } else {
                after.tag()
            };
            if after.0 != self.top && !tag_after.is_valid(after.0, self.secret) {
                heap.found(
                    HeapErrorKind::RecordsChanged,
                    FoundBy::Free,
                    chunk.block(),
                    None,
                    after.0,
                );
                heap.lose(size);
                return;
            }
            if tag.has(PREVIOUS_FREE) && !self.damaged {
                let before = chunk.size_before();
                let plausible = before >= SMALLEST
                    && before.is_multiple_of(UNIT)
                    && before as u64 <= self.counters.free_chunk_bytes.get();
                let previous = Chunk(chunk.0 - if plausible { before } else { 0 });
                let previous_tag = previous.tag();
                if plausible
                    && previous_tag.is_valid(previous.0, self.secret)
                    && previous_tag.size() == before
                    && !previous_tag.has(IN_USE)
                {
                    if self.unlink(heap, previous, before) {
                        start = previous;
                        size += before;
                        self.counters.coalesces.add(1);
                    }
                } else {
                    self.damaged = true;
                    heap.found(
                        HeapErrorKind::WriteAfterFree,
                        FoundBy::Free,
                        chunk.block(),
                        None,
                        chunk.0 - 8,
                    );
                }
            }
            if after.0 == self.top {
                self.counters.coalesces.add(1);
                self.set_top(start.0, self.top_end);
                self.trim_top(heap, Cause::Trim);
                return;
            }
            if !tag_after.has(IN_USE) && !self.damaged && self.unlink(heap, after, tag_after.size())
            {
                size += tag_after.size();
                self.counters.coalesces.add(1);
            }
            // With chunks that are no longer joined, the one before may be free still.
            let flags = tag.0 & PREVIOUS_FREE & if start == chunk { !0 } else { 0 };
            self.insert(start, size);
            start.change_flags(flags, 0);
            if heap.policy() == Policy::Eager {
                self.give_back_pages(heap, (start, size), (chunk, tag.size()), Cause::Eager);
            }
            if start.after(size).tag().has(END) {
                self.release_segment(heap, start, size);
            }
        }
    }

    /// Gives back the whole pages of a free chunk that `freed`, the newest part of it, touches.
    fn give_back_pages<K: Kernel>(
        &self,
        heap: &Heap<K>,
        (chunk, size): (Chunk, usize),
        (freed, freed_size): (Chunk, usize),
        cause: Cause,
    ) {
        let page = heap.kernel.page_size();
        let first = round_up(chunk.0 + SMALLEST, page).max(round_down(freed.0, page));
        let end = round_down(chunk.0 + size - 8, page).min(round_up(freed.0 + freed_size, page));
        if first < end {
            heap.give_back(first, end - first, cause);
        }
    }

    /// Unmaps a mapped segment that consists of one free chunk.
    unsafe fn release_segment<K: Kernel>(&mut self, heap: &Heap<K>, chunk: Chunk, size: usize) {
        if heap.policy() == Policy::Never {
            return;
        }
        let wanted = chunk.0 - SEGMENT_RECORD;
        let mut link = &self.counters.segments as *const Word as usize;
        let mut segment = self.counters.segments.get() as usize;
        while segment != 0 && segment != wanted {
            // SAFETY: segments of the list are mapped.
            let record = unsafe { &*core::ptr::with_exposed_provenance::<Segment>(segment) };
            link = &raw const record.next as usize;
            segment = record.next;
        }
        if segment == 0 {
            return;
        }
        // SAFETY: as above.
        let record = unsafe { &*core::ptr::with_exposed_provenance::<Segment>(segment) };
        let (start, end, next) = (record.start, record.end, record.next);
        let records = end - start - size;
        // SAFETY: the caller holds the lock.
        if record.at_break == 1 || !unsafe { self.unlink(heap, chunk, size) } {
            return;
        }
        // SAFETY: `link` is the word that leads to this segment.
        unsafe { core::ptr::with_exposed_provenance_mut::<usize>(link).write(next) };
        self.counters.segment_record_bytes.sub(records as u64);
        self.mapped -= end - start;
        heap.unmap(start, end - start, Cause::Trim);
    }

    /// Gives back the top, as far as the policy (or malloc_trim) wants.
    fn trim_top<K: Kernel>(&mut self, heap: &Heap<K>, cause: Cause) {
        let (keep, threshold) = match (cause, heap.policy()) {
            (Cause::MallocTrim, _) => (heap.trim_keep(), 0),
            (_, Policy::Never) => return,
            (_, Policy::Trim) => (heap.top_pad(), heap.trim_threshold()),
            (_, Policy::Eager) => (0, 0),
        };
        if self.top_size() <= threshold || self.top_size() <= keep {
            return;
        }
        self.shrink_top(heap, keep, cause);
    }

    /// Gives back what the top has beyond `keep` bytes.
    fn shrink_top<K: Kernel>(&mut self, heap: &Heap<K>, keep: usize, cause: Cause) {
        let page = heap.kernel.page_size();
        let end = round_up(self.top + UNIT + keep, page);
        if !self.top_at_break && heap.policy() == Policy::Eager {
            self.unmap_top(heap, end, cause);
            return;
        }
        if !self.top_at_break {
            let dirty_end = round_up(self.fresh, page).min(self.top_end);
            if end < dirty_end {
                heap.give_back(
                    end,
                    dirty_end - end,
                    if cause == Cause::MallocTrim {
                        cause
                    } else {
                        Cause::Trim
                    },
                );
                self.fresh = end.max(self.top + UNIT);
                self.counters.trims.add(1);
            }
            return;
        }
        if end >= self.top_end || heap.kernel.current_break() != self.break_end {
            return;
        }
        let got = heap.move_break(self.break_end, end, cause, 0);
        if got == end {
            self.break_end = end;
            self.fresh = self.fresh.min(end);
            self.counters.trims.add(1);
            self.set_top(self.top, end);
        }
    }

    /// Unmaps the pages of a mapped segment from `end` on.
    fn unmap_top<K: Kernel>(&mut self, heap: &Heap<K>, end: usize, cause: Cause) {
        let length = self.top_end.saturating_sub(end);
        if length == 0 {
            return;
        }
        let segment = self.counters.segments.get() as usize;
        // SAFETY: the newest segment is the one with the top; all of it from `end` on is free.
        unsafe { (*core::ptr::with_exposed_provenance_mut::<Segment>(segment)).end = end };
        self.mapped -= length;
        self.fresh = self.fresh.min(end);
        self.counters.trims.add(1);
        self.set_top(self.top, end);
        heap.unmap(end, length, cause);
    }

    /// malloc_trim: empty slabs go, the top down to `trim_keep`, and whole free pages of all chunks.
    ///
    /// # Safety
    ///
    /// The caller holds the lock.
    pub(crate) unsafe fn trim<K: Kernel>(&mut self, heap: &Heap<K>) {
        // SAFETY: the caller holds the lock.
        unsafe { self.release_empty_slabs(heap) };
        if self.top != 0 {
            self.trim_top(heap, Cause::MallocTrim);
        }
        let mut bin = 0;
        while let Some(filled) = self.bins.first_filled(bin) {
            let mut candidate = self.bins.head(filled);
            while candidate != 0 && self.may_be_chunk(candidate) {
                let chunk = Chunk(candidate);
                // SAFETY: chunks in bins are free.
                let (tag, (next, _)) = unsafe { (chunk.tag(), chunk.links()) };
                if !tag.is_valid(chunk.0, self.secret) {
                    break;
                }
                let whole = (chunk, tag.size());
                self.give_back_pages(heap, whole, whole, Cause::MallocTrim);
                candidate = next;
            }
            bin = filled + 1;
        }
    }

    /// Makes the top large enough for a chunk of `need` bytes.
    #[cold]
    fn extend<K: Kernel>(&mut self, heap: &Heap<K>, need: usize, request: usize) -> bool {
        (self.index == 0 && !self.break_lost && self.extend_break(heap, need, request))
            || self.extend_by_mapping(heap, need)
    }

    fn extend_break<K: Kernel>(&mut self, heap: &Heap<K>, need: usize, request: usize) -> bool {
        let page = heap.kernel.page_size();
        let now = heap.kernel.current_break();
        if self.break_end != 0 && now != self.break_end {
            heap.foreign_break_move();
            if now < self.break_end && !self.accept_lowered_break(heap, now) {
                self.break_lost = true;
                return false;
            }
        }
        let contiguous = self.top_at_break && now == self.break_end;
        let least = if contiguous {
            now + (need + UNIT).saturating_sub(self.top_size())
        } else {
            now + UNIT + SEGMENT_RECORD + need + UNIT
        };
        let mut got = 0;
        for pad in [heap.top_pad(), 0] {
            let Some(end) = least.checked_add(pad + page) else {
                continue;
            };
            let end = round_down(end - 1, page);
            got = heap.move_break(now, end, Cause::Request, request);
            if got == end {
                break;
            }
            got = 0;
        }
        if got == 0 {
            return false;
        }
        if self.break_start == 0 {
            self.break_start = now;
        }
        self.break_end = got;
        if contiguous {
            self.set_top(self.top, got);
        } else {
            self.open_segment(heap, now, got, true);
        }
        true
    }

    /// Somebody lowered the break below our end. `false` if memory in use is gone.
    fn accept_lowered_break<K: Kernel>(&mut self, heap: &Heap<K>, now: usize) -> bool {
        let end = round_down(now, UNIT);
        if !self.top_at_break || end < self.top + UNIT {
            return false;
        }
        heap.taken_away(self.break_end - now);
        self.counters.segment_record_bytes.add((now - end) as u64);
        self.break_end = now;
        self.fresh = self.fresh.min(end);
        self.set_top(self.top, end);
        // The next memory need not follow the end to the byte.
        self.top_at_break = now == end;
        true
    }

    fn extend_by_mapping<K: Kernel>(&mut self, heap: &Heap<K>, need: usize) -> bool {
        let page = heap.kernel.page_size();
        let usual = (self.mapped / 2).clamp(MAPPED_SEGMENT, LARGEST_MAPPED_SEGMENT);
        let least = need + SEGMENT_RECORD + 2 * UNIT;
        for length in [usual.max(least), least] {
            let length = round_up(length, page);
            if let Some(start) = heap.map(length) {
                self.mapped += length;
                self.open_segment(heap, start, start + length, false);
                return true;
            }
        }
        false
    }

    /// Begins a segment and makes it the one with the top; the old top becomes a free chunk.
    fn open_segment<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        start: usize,
        end: usize,
        at_break: bool,
    ) {
        if self.top != 0 {
            self.close_segment(heap);
        }
        let address = round_up(start, UNIT);
        let top = address + SEGMENT_RECORD;
        let top_end = round_down(end, UNIT);
        let record = Segment {
            check: Segment::check(address, self.secret),
            next: self.counters.segments.get() as usize,
            start,
            end: if at_break { 0 } else { end },
            at_break: usize::from(at_break),
            padding: 0,
        };
        // SAFETY: the memory is new, and long enough for its record.
        unsafe { core::ptr::with_exposed_provenance_mut::<Segment>(address).write(record) };
        self.counters.segments.set(address as u64);
        self.counters
            .segment_record_bytes
            .add((end - start - (top_end - top)) as u64);
        self.top_at_break = at_break;
        self.fresh = top;
        self.set_top(top, top_end);
    }

    fn close_segment<K: Kernel>(&mut self, heap: &Heap<K>) {
        let (top, size) = (Chunk(self.top), self.top_size());
        let segment = self.counters.segments.get() as usize;
        // SAFETY: segments of the list are mapped.
        let record = unsafe { &*core::ptr::with_exposed_provenance::<Segment>(segment) };
        let (start, segment_end, next) = (record.start, record.end, record.next);
        if record.at_break == 0
            && top.0 == segment + SEGMENT_RECORD
            && heap.policy() != Policy::Never
        {
            // Nothing of it is in use.
            let length = segment_end - start;
            self.counters.segments.set(next as u64);
            self.counters
                .segment_record_bytes
                .sub((length - size) as u64);
            self.counters.top_bytes.set(0);
            (self.top, self.top_end) = (0, 0);
            self.mapped -= length;
            heap.unmap(start, length, Cause::Trim);
            return;
        }
        let end = if size < SMALLEST + UNIT {
            top
        } else {
            Chunk(self.top_end - UNIT)
        };
        // SAFETY: the newest segment is the one with the top, all of which is free.
        unsafe {
            let record = core::ptr::with_exposed_provenance_mut::<Segment>(segment);
            if (*record).at_break == 1 {
                (*record).end = self.top_end;
            }
            end.write_tag(self.top_end - end.0, IN_USE | END, self.secret);
            if end != top {
                self.insert(top, end.0 - top.0);
            }
        }
        self.counters
            .segment_record_bytes
            .add((self.top_end - end.0) as u64);
        self.counters.top_bytes.set(0);
        (self.top, self.top_end) = (0, 0);
    }

    /// Takes an aligned block: a chunk whose block is at a multiple of `alignment`, with at least `need` bytes.
    ///
    /// # Safety
    ///
    /// As for [`Arena::take`].
    pub(crate) unsafe fn take_aligned<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        alignment: usize,
        need: usize,
        request: usize,
    ) -> Option<Taken> {
        let room = need.checked_add(alignment)?.checked_add(SMALLEST)?;
        // SAFETY: the caller's promises.
        let taken = unsafe { self.take(heap, room, request) }?;
        let mut chunk = taken.chunk;
        let mut size = taken.size;
        let mut block = round_up(chunk.block(), alignment);
        if block != chunk.block() && block - chunk.block() < SMALLEST {
            block += alignment;
        }
        let gap = block - chunk.block();
        // SAFETY: both parts lie inside the chunk just taken.
        unsafe {
            if gap > 0 {
                let front = chunk;
                chunk = Chunk(front.0 + gap);
                size -= gap;
                front.write_tag(gap, front.tag().0 & PREVIOUS_FREE | IN_USE, self.secret);
                chunk.write_tag(size, IN_USE, self.secret);
                self.counters.splits.add(1);
                self.free(heap, front);
            }
            size = self.shrink(heap, chunk, size, need);
        }
        Some(Taken {
            chunk,
            size,
            zeroed: false,
        })
    }

    /// Gives back the end of a chunk in use beyond `need` bytes, if it makes a chunk; the size that is left.
    ///
    /// # Safety
    ///
    /// The caller holds the lock, and the chunk is one in use of this arena with `size` bytes.
    pub(crate) unsafe fn shrink<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        chunk: Chunk,
        size: usize,
        need: usize,
    ) -> usize {
        if size - need < SMALLEST {
            return size;
        }
        // SAFETY: both parts lie inside the chunk.
        unsafe {
            let rest = chunk.after(need);
            chunk.write_tag(need, chunk.tag().0 & PREVIOUS_FREE | IN_USE, self.secret);
            rest.write_tag(size - need, IN_USE, self.secret);
            self.counters.splits.add(1);
            self.free(heap, rest);
        }
        need
    }

    /// Makes a chunk in use larger without moving it, if what follows is free; its new size.
    ///
    /// # Safety
    ///
    /// As for [`Arena::shrink`].
    pub(crate) unsafe fn grow<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        chunk: Chunk,
        size: usize,
        need: usize,
    ) -> Option<usize> {
        // SAFETY: the chunk behind has a tag, or is the top.
        unsafe {
            let flags = chunk.tag().0 & PREVIOUS_FREE;
            let after = chunk.after(size);
            if after.0 == self.top {
                let missing = need - size;
                if self.top_size() < missing + UNIT {
                    // A mapped segment never grows, so only the break is worth asking.
                    let may_ask = self.top_at_break && self.index == 0 && !self.break_lost;
                    if !may_ask || !self.extend_break(heap, missing, missing) {
                        return None;
                    }
                }
                if self.top != after.0 {
                    return None;
                }
                self.fresh = self.fresh.max(chunk.0 + need);
                chunk.write_tag(need, flags | IN_USE, self.secret);
                self.set_top(chunk.0 + need, self.top_end);
                return Some(need);
            }
            let tag = after.tag();
            let joined = size + tag.size();
            if !tag.is_valid(after.0, self.secret)
                || tag.has(IN_USE)
                || joined < need
                || self.damaged
            {
                return None;
            }
            if !self.unlink(heap, after, tag.size()) {
                return None;
            }
            self.counters.coalesces.add(1);
            Some(self.cut(chunk, joined, need, flags))
        }
    }
}

/// Bytes of the chunk for a medium block of `size` bytes: with its front, and a byte for the canary.
pub(crate) fn medium_chunk_bytes(size: usize) -> usize {
    round_up(size + 1 + FRONT, UNIT).max(SMALLEST)
}
