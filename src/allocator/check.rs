//! Whether the heap's structures agree with each other: for debug builds and tests.

use super::Heap;
use super::MOST_ARENAS;
use super::arena::Arena;
use super::arena::SEGMENT_RECORD;
use super::arena::Segment;
use super::bins::BINS;
use super::bins::bin_of;
use super::cache::Cache;
use super::chunk::Chunk;
use super::chunk::END;
use super::chunk::IN_USE;
use super::chunk::PREVIOUS_FREE;
use super::chunk::SLAB;
use super::chunk::SMALLEST;
use super::chunk::Tag;
use super::kernel::Kernel;
use super::size_class::small_bytes;
use super::slab::Slab;
use crate::stats_page::SMALL_CLASSES;

/// What does not agree, and where: an address, or a number that is not what it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flaw {
    /// What should hold and does not.
    pub what: &'static str,
    /// Address or number that it was noticed at.
    pub at: usize,
}

/// What the chunks of an arena come to.
#[derive(Debug)]
struct Totals {
    free_chunks: u64,
    free_bytes: u64,
    medium_bytes: u64,
    slab_records: u64,
    slabs: [u32; SMALL_CLASSES],
    /// Slabs with a free block.
    usable_slabs: [u32; SMALL_CLASSES],
    /// Free blocks in slabs.
    free: [u64; SMALL_CLASSES],
    /// Blocks handed out to caches.
    taken: [u64; SMALL_CLASSES],
}

impl Totals {
    fn new() -> Self {
        Self {
            free_chunks: 0,
            free_bytes: 0,
            medium_bytes: 0,
            slab_records: 0,
            slabs: [0; SMALL_CLASSES],
            usable_slabs: [0; SMALL_CLASSES],
            free: [0; SMALL_CLASSES],
            taken: [0; SMALL_CLASSES],
        }
    }
}

fn holds(condition: bool, what: &'static str, at: usize) -> Result<(), Flaw> {
    if condition {
        Ok(())
    } else {
        Err(Flaw { what, at })
    }
}

impl<K: Kernel> Heap<K> {
    /// Looks at every structure of the heap. No other thread may be inside the allocator.
    ///
    /// # Errors
    ///
    /// The first thing that does not agree.
    pub fn check(&self) -> Result<(), Flaw> {
        if !self.has_begun() {
            return Ok(());
        }
        let mut medium = 0_u64;
        let mut taken = [0_u64; SMALL_CLASSES];
        for index in 0..MOST_ARENAS {
            let Some(arena) = self.arena(index as u32) else {
                break;
            };
            // SAFETY: arenas are never unmapped, and the lock is held.
            let totals = unsafe {
                (*arena).lock.take(&self.kernel);
                let totals = (*arena).check();
                (*arena).lock.give(&self.kernel);
                totals?
            };
            medium += totals.medium_bytes;
            for (sum, taken_here) in taken.iter_mut().zip(totals.taken) {
                *sum += taken_here;
            }
        }
        let page = self.page();
        // What was lost to errors, and what waits in quarantine, is in no cache.
        if page.error_count.get() == 0 && page.settings.guard.get() == 0 {
            self.check_caches(medium, &taken)?;
        }
        Ok(())
    }

    /// Blocks that left the arenas are live or in caches.
    fn check_caches(&self, medium: u64, taken: &[u64; SMALL_CLASSES]) -> Result<(), Flaw> {
        let mut medium_known = 0_u64;
        let mut known = [0_u64; SMALL_CLASSES];
        let mut address = self.page().caches.get() as usize;
        while address != 0 {
            // SAFETY: caches are never unmapped.
            let counters =
                unsafe { &(*core::ptr::with_exposed_provenance::<Cache>(address)).counters };
            medium_known = medium_known
                .wrapping_add(counters.medium_allocated_bytes.get())
                .wrapping_sub(counters.medium_freed_bytes.get())
                .wrapping_add(counters.medium_cached_bytes.get());
            for (class, sum) in known.iter_mut().enumerate() {
                *sum = sum
                    .wrapping_add(counters.allocated[class].get())
                    .wrapping_sub(counters.freed[class].get())
                    .wrapping_add(u64::from(counters.cached[class].get()));
            }
            address = counters.next.get() as usize;
        }
        holds(
            medium == medium_known,
            "medium chunks in use are live or cached",
            medium as usize,
        )?;
        for class in 0..SMALL_CLASSES {
            holds(
                known[class] == taken[class],
                "small blocks taken from slabs are live or cached",
                class,
            )?;
        }
        Ok(())
    }
}

impl Arena {
    /// Follows all chunks, bins and lists of slabs. The caller holds the lock.
    unsafe fn check(&self) -> Result<Totals, Flaw> {
        let mut totals = Totals::new();
        let mut segment = self.counters.segments.get() as usize;
        let mut is_open = true;
        // SAFETY: segments of the list are mapped.
        unsafe {
            while segment != 0 {
                let record = &*core::ptr::with_exposed_provenance::<Segment>(segment);
                holds(
                    record.check == Segment::check(segment, self.secret),
                    "a segment's record has its check",
                    segment,
                )?;
                self.check_segment(segment, record, is_open, &mut totals)?;
                segment = record.next;
                is_open = false;
            }
        }
        let counters = &self.counters;
        holds(
            totals.free_chunks == counters.free_chunks.get(),
            "free chunks are counted",
            totals.free_chunks as usize,
        )?;
        holds(
            totals.free_bytes == counters.free_chunk_bytes.get(),
            "bytes of free chunks are counted",
            totals.free_bytes as usize,
        )?;
        holds(
            totals.slab_records == counters.slab_record_bytes.get(),
            "records of slabs are counted",
            totals.slab_records as usize,
        )?;
        holds(
            (self.top_end - self.top) as u64 == counters.top_bytes.get(),
            "bytes of the top are counted",
            self.top,
        )?;
        // SAFETY: the caller's promise.
        unsafe {
            if !self.damaged {
                self.check_bins(&totals)?;
            }
            self.check_slab_lists(&totals)?;
        }
        Ok(totals)
    }

    /// Chunks tile a segment.
    unsafe fn check_segment(
        &self,
        segment: usize,
        record: &Segment,
        is_open: bool,
        totals: &mut Totals,
    ) -> Result<(), Flaw> {
        let end = self.end_of(segment, record) / super::chunk::UNIT * super::chunk::UNIT;
        let mut chunk = Chunk(segment + SEGMENT_RECORD);
        let mut was_free = false;
        loop {
            holds(chunk.0 < end, "chunks tile a segment", chunk.0)?;
            // SAFETY: the last chunk was valid, and this one is inside the segment.
            let tag = unsafe { chunk.tag() };
            holds(
                tag.is_valid(chunk.0, self.secret),
                "a tag has its check",
                chunk.0,
            )?;
            holds(
                tag.size() <= end - chunk.0,
                "a chunk ends inside its segment",
                chunk.0,
            )?;
            holds(
                tag.has(PREVIOUS_FREE) == was_free,
                "a tag says whether the chunk before is free",
                chunk.0,
            )?;
            if is_open && chunk.0 == self.top {
                holds(!was_free, "no free chunk borders on the top", chunk.0)?;
                return holds(
                    chunk.0 + tag.size() == self.top_end,
                    "the top's tag has its size",
                    chunk.0,
                );
            }
            if tag.has(END) {
                return holds(
                    !is_open && chunk.0 + tag.size() == end,
                    "the end of a segment is where it should be",
                    chunk.0,
                );
            }
            if tag.has(IN_USE) {
                // SAFETY: the chunk is valid.
                unsafe { self.check_used(chunk, tag, totals)? };
            } else {
                // SAFETY: as above.
                unsafe { self.check_free(chunk, tag, was_free)? };
                totals.free_chunks += 1;
                totals.free_bytes += tag.size() as u64;
            }
            was_free = !tag.has(IN_USE);
            chunk = chunk.after(tag.size());
        }
    }

    unsafe fn check_free(&self, chunk: Chunk, tag: Tag, was_free: bool) -> Result<(), Flaw> {
        holds(
            tag.size() >= SMALLEST,
            "a free chunk holds its links",
            chunk.0,
        )?;
        holds(
            !was_free || self.damaged,
            "no two free chunks are neighbours",
            chunk.0,
        )?;
        // SAFETY: the caller's promise: a valid free chunk.
        let foot = unsafe { chunk.after(tag.size()).size_before() };
        holds(
            foot == tag.size(),
            "a free chunk has its size at its end",
            chunk.0,
        )
    }

    unsafe fn check_used(&self, chunk: Chunk, tag: Tag, totals: &mut Totals) -> Result<(), Flaw> {
        if !tag.has(SLAB) {
            totals.medium_bytes += tag.size() as u64;
            return Ok(());
        }
        // SAFETY: the chunk is in use, and says that it is a slab.
        unsafe {
            let slab = Slab::at(chunk.0, self.secret).ok_or(Flaw {
                what: "a slab's record has its check",
                at: chunk.0,
            })?;
            let (class, capacity) = (usize::from((*slab).class), usize::from((*slab).capacity));
            let (cut, free) = (usize::from((*slab).cut), usize::from((*slab).free));
            holds(class < SMALL_CLASSES, "a slab has a class", chunk.0)?;
            holds(
                core::ptr::eq((*slab).arena, self),
                "a slab knows its arena",
                chunk.0,
            )?;
            holds(
                cut <= capacity
                    && Slab::first_block(capacity) + capacity * small_bytes(class) <= tag.size(),
                "a slab's blocks fit into its chunk",
                chunk.0,
            )?;
            let bits = Slab::bits(slab);
            let mut set = 0;
            for index in 0..capacity {
                let is_set = bits.add(index / 64).read() >> (index % 64) & 1 == 1;
                holds(
                    !is_set || index < cut,
                    "only blocks that were cut come back",
                    chunk.0,
                )?;
                set += usize::from(is_set);
            }
            holds(
                free == capacity - cut + set,
                "a slab's free blocks are counted",
                chunk.0,
            )?;
            totals.slabs[class] += 1;
            totals.usable_slabs[class] += u32::from(free > 0);
            totals.free[class] += free as u64;
            totals.taken[class] += (cut - set) as u64;
            totals.slab_records += (tag.size() - capacity * small_bytes(class)) as u64;
        }
        Ok(())
    }

    /// The bins hold all free chunks, each in its own.
    unsafe fn check_bins(&self, totals: &Totals) -> Result<(), Flaw> {
        let mut chunks = 0;
        let mut bytes = 0;
        for bin in 0..BINS {
            let mut address = self.bins.head(bin);
            let mut previous = 0;
            while address != 0 {
                let chunk = Chunk(address);
                // SAFETY: the caller's promise: chunks in bins are free chunks.
                let (tag, links) = unsafe { (chunk.tag(), chunk.links()) };
                holds(
                    tag.is_valid(address, self.secret) && !tag.has(IN_USE),
                    "chunks in bins are free",
                    address,
                )?;
                holds(
                    bin_of(tag.size()) == bin,
                    "a chunk is in the bin of its size",
                    address,
                )?;
                holds(links.1 == previous, "links of bins lead both ways", address)?;
                chunks += 1;
                bytes += tag.size() as u64;
                holds(chunks <= totals.free_chunks, "bins lead to an end", address)?;
                previous = address;
                address = links.0;
            }
        }
        holds(
            bytes == totals.free_bytes,
            "bins hold all free chunks",
            bytes as usize,
        )
    }

    /// Each slab with a free block is in one list.
    unsafe fn check_slab_lists(&self, totals: &Totals) -> Result<(), Flaw> {
        for class in 0..SMALL_CLASSES {
            holds(
                totals.slabs[class] == self.slabs[class],
                "slabs are counted",
                class,
            )?;
            holds(
                totals.free[class] == self.counters.slab_free[class].get(),
                "free blocks in slabs are counted",
                class,
            )?;
            let mut listed = 0;
            for (head, is_empty) in [(self.partial[class], false), (self.empty[class], true)] {
                let mut address = head;
                let before = listed;
                while address != 0 {
                    // SAFETY: slabs in lists are this arena's.
                    unsafe {
                        let slab = Slab::at(address, self.secret).ok_or(Flaw {
                            what: "lists of slabs hold slabs",
                            at: address,
                        })?;
                        let (free, capacity) = ((*slab).free, (*slab).capacity);
                        holds(
                            usize::from((*slab).class) == class
                                && free > 0
                                && (!is_empty || free == capacity),
                            "a slab is in the list that it belongs to",
                            address,
                        )?;
                        listed += 1;
                        holds(
                            listed <= totals.usable_slabs[class],
                            "lists of slabs lead to an end",
                            address,
                        )?;
                        address = (*slab).next;
                    }
                }
                holds(
                    !is_empty || listed - before == self.empty_slabs[class],
                    "empty slabs are counted",
                    class,
                )?;
            }
            holds(
                listed == totals.usable_slabs[class],
                "each slab with a free block is in a list",
                class,
            )?;
        }
        Ok(())
    }
}
