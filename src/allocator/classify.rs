//! What a pointer is that is not a live block: looked for in the heap, once something is wrong.

use super::Heap;
use super::MOST_ARENAS;
use super::arena::Arena;
use super::arena::SEGMENT_RECORD;
use super::arena::Segment;
use super::chunk::Chunk;
use super::chunk::END;
use super::chunk::FRONT;
use super::chunk::IN_USE;
use super::chunk::SLAB;
use super::chunk::Tag;
use super::header::GUARDED;
use super::header::HEADER_BYTES;
use super::header::Header;
use super::header::LARGE;
use super::header::MEDIUM;
use super::header::State;
use super::header::canary_is_right;
use super::kernel::Kernel;
use super::large::LargeRecord;
use super::size_class::small_bytes;
use super::slab::Slab;
use crate::stats_page::FoundBy;
use crate::stats_page::HeapErrorKind;
use crate::stats_page::SMALL_CLASSES;

/// Where an address lies.
enum Place {
    /// In no segment.
    Outside,
    /// In a segment, but where no block begins.
    Inside,
    /// Where a small block begins.
    Small { class: usize },
    /// Where a medium block begins; `before` is the block of the chunk before it, if that is one.
    Medium { before: Option<usize> },
    /// In a chunk that is free: a block may have begun there.
    Freed,
}

impl<K: Kernel> Heap<K> {
    /// Reports a pointer given to free or realloc whose header is not that of a live block.
    #[cold]
    pub(super) unsafe fn report_bad_pointer(&self, block: usize, header: Header, by: FoundBy) {
        let secret = self.secret();
        if header.state(block, secret) == State::Free {
            // SAFETY: there was a block.
            let size = unsafe { self.size_of_freed(block, header) };
            self.found(HeapErrorKind::DoubleFree, by, block, size, 0);
            return;
        }
        if let Some(size) = self.large_freed.size_of(block) {
            self.found(HeapErrorKind::DoubleFree, by, block, Some(size), 0);
            return;
        }
        // SAFETY: the header's words are those of a block but for one byte.
        if let Some(size) = unsafe { self.size_of_mended(block, header) } {
            self.found(
                HeapErrorKind::WriteBeforeStart,
                by,
                block,
                Some(size),
                block - 1,
            );
            return;
        }
        if !block.is_multiple_of(16) {
            self.found(HeapErrorKind::ForeignPointer, by, block, None, 0);
            return;
        }
        match self.place_of(block) {
            Place::Outside | Place::Inside => {
                self.found(HeapErrorKind::ForeignPointer, by, block, None, 0);
            }
            Place::Freed => self.found(HeapErrorKind::DoubleFree, by, block, None, 0),
            Place::Small { class } => {
                // SAFETY: the block lies in a slab.
                match unsafe { self.overflowing_neighbour(block, class) } {
                    Some((neighbour, size)) => {
                        let changed = neighbour + size;
                        self.found(
                            HeapErrorKind::WritePastEnd,
                            by,
                            neighbour,
                            Some(size),
                            changed,
                        );
                    }
                    None => {
                        self.found(
                            HeapErrorKind::WriteBeforeStart,
                            by,
                            block,
                            None,
                            block - HEADER_BYTES,
                        );
                    }
                }
            }
            Place::Medium { before } => {
                // SAFETY: the chunk before lies in the same segment.
                let overflow = before.and_then(|before| unsafe { self.overflowing_medium(before) });
                match overflow {
                    Some((neighbour, size)) => {
                        let changed = neighbour + size;
                        self.found(
                            HeapErrorKind::WritePastEnd,
                            by,
                            neighbour,
                            Some(size),
                            changed,
                        );
                    }
                    None => {
                        self.found(
                            HeapErrorKind::WriteBeforeStart,
                            by,
                            block,
                            None,
                            block - HEADER_BYTES,
                        );
                    }
                }
            }
        }
    }

    /// Reports a pointer given to free or realloc before which nothing can be read.
    #[cold]
    pub(super) fn report_unreadable(&self, block: usize, by: FoundBy) {
        match self.large_freed.size_of(block) {
            Some(size) => self.found(HeapErrorKind::DoubleFree, by, block, Some(size), 0),
            None => self.found(HeapErrorKind::ForeignPointer, by, block, None, 0),
        }
    }

    /// Bytes that were asked for in a block that is free, if that can still be told.
    unsafe fn size_of_freed(&self, block: usize, header: Header) -> Option<usize> {
        match header.kind() {
            kind if usize::from(kind) < SMALL_CLASSES => Some(header.small_size()),
            GUARDED => Some(header.data() as usize),
            MEDIUM => {
                let chunk = Chunk::of_block(block);
                // SAFETY: the word before the header of a medium block was its tag.
                let tag = unsafe { chunk.tag() };
                // Once it is joined with others, its size is gone.
                (tag.is_valid(chunk.0, self.secret()) && tag.has(IN_USE))
                    .then(|| {
                        tag.size()
                            .checked_sub(FRONT + (header.data() as usize & 0xffff))
                    })
                    .flatten()
            }
            _ => None,
        }
    }

    /// Bytes asked for in a large or guarded block of whose header only the last byte was overwritten.
    unsafe fn size_of_mended(&self, block: usize, header: Header) -> Option<usize> {
        let mended = header.mended();
        if !mended.is_live(block, self.secret()) {
            return None;
        }
        match mended.kind() {
            // SAFETY: the record lies before the header, in the same page.
            LARGE => unsafe { LargeRecord::of(block, self.secret()) }.map(|record| record.size),
            GUARDED => Some(mended.data() as usize),
            _ => None,
        }
    }

    /// The small block before this one and its size, if bytes behind its end were changed.
    ///
    /// # Safety
    ///
    /// `block` is a small block of this class.
    pub(super) unsafe fn overflowing_neighbour(
        &self,
        block: usize,
        class: usize,
    ) -> Option<(usize, usize)> {
        let neighbour = block - small_bytes(class);
        // SAFETY: before the first block of a slab comes its record, which is at least as long as a header; the memory
        // before a slab is its segment's.
        unsafe {
            let header = Header::read(neighbour);
            let is_live = header.state(neighbour, self.secret()) == State::Live
                && usize::from(header.kind()) == class;
            let size = header.small_size();
            (is_live && !canary_is_right(neighbour + size)).then_some((neighbour, size))
        }
    }

    unsafe fn overflowing_medium(&self, block: usize) -> Option<(usize, usize)> {
        let chunk = Chunk::of_block(block);
        // SAFETY: the caller's promise: a chunk in use.
        unsafe {
            let header = Header::read(block);
            let tag = chunk.tag();
            let is_live =
                header.state(block, self.secret()) == State::Live && header.kind() == MEDIUM;
            let size = tag
                .size()
                .checked_sub(FRONT + (header.data() as usize & 0xffff))?;
            (is_live && !canary_is_right(block + size)).then_some((block, size))
        }
    }

    /// Whether a live block begins here, without reading memory that is not the heap's.
    pub(super) fn is_live_block(&self, block: usize) -> bool {
        if !block.is_multiple_of(16) {
            return false;
        }
        // Large blocks are in no segment: the quarantine's caller has read the word behind already.
        // SAFETY: guarded blocks lie inside the block looked for, at most an alignment away from its header.
        unsafe { Header::read(block) }.state(block, self.secret()) == State::Live
    }

    fn place_of(&self, block: usize) -> Place {
        for index in 0..MOST_ARENAS {
            let Some(arena) = self.arena(index as u32) else {
                break;
            };
            // SAFETY: arenas are never unmapped; the lock is held while its segments are looked at.
            let place = unsafe {
                (*arena).lock.take(&self.kernel);
                let place = (*arena).place_of(block);
                (*arena).lock.give(&self.kernel);
                place
            };
            if !matches!(place, Place::Outside) {
                return place;
            }
        }
        Place::Outside
    }
}

impl Arena {
    unsafe fn place_of(&self, block: usize) -> Place {
        if !self.owns(block) {
            return Place::Outside;
        }
        let mut segment = self.counters.segments.get() as usize;
        while segment != 0 {
            // SAFETY: segments of the list are mapped.
            let record = unsafe { &*core::ptr::with_exposed_provenance::<Segment>(segment) };
            let end = self.end_of(segment, record);
            if (segment..end).contains(&block) {
                // SAFETY: the segment is this arena's, and the lock is held.
                return unsafe { self.place_in(segment + SEGMENT_RECORD, end, block) };
            }
            segment = record.next;
        }
        Place::Outside
    }

    /// Follows the chunks of a segment up to the one that holds the block.
    unsafe fn place_in(&self, first: usize, end: usize, block: usize) -> Place {
        let mut chunk = Chunk(first);
        let mut before = None;
        while chunk.0 < end && chunk.0 < block {
            // SAFETY: chunks of a segment follow each other; a tag is followed only if it is valid.
            let tag: Tag = unsafe { chunk.tag() };
            if !tag.is_valid(chunk.0, self.secret) || tag.has(END) {
                return Place::Inside;
            }
            if block < chunk.0 + tag.size() {
                if chunk.0 == self.top || !tag.has(IN_USE) {
                    return Place::Freed;
                }
                if tag.has(SLAB) {
                    // SAFETY: the chunk is a slab.
                    return unsafe { self.place_in_slab(chunk, block) };
                }
                return if block == chunk.block() {
                    Place::Medium { before }
                } else {
                    Place::Inside
                };
            }
            before = (tag.has(IN_USE) && !tag.has(SLAB)).then(|| chunk.block());
            chunk = chunk.after(tag.size());
        }
        Place::Inside
    }

    unsafe fn place_in_slab(&self, chunk: Chunk, block: usize) -> Place {
        // SAFETY: the caller's promise.
        unsafe {
            let Some(slab) = Slab::at(chunk.0, self.secret) else {
                return Place::Inside;
            };
            let class = usize::from((*slab).class);
            let first = chunk.0 + Slab::first_block(usize::from((*slab).capacity));
            let offset = block.wrapping_sub(first);
            let cut = usize::from((*slab).cut) * small_bytes(class);
            if block >= first && offset < cut && offset.is_multiple_of(small_bytes(class)) {
                Place::Small { class }
            } else {
                Place::Inside
            }
        }
    }
}
