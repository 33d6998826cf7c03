//! Large blocks: each a mapping of its own.
//!
//! ```text
//!   … │ LargeRecord │ header │ block … │ canary … │   to the end of the page
//! ```

use core::mem::size_of;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

use super::Heap;
use super::header::HEADER_BYTES;
use super::header::Header;
use super::header::LARGE;
use super::header::write_canary;
use super::kernel::Kernel;
use super::round_down;
use super::round_up;
use crate::stats_page::Cause;

/// Bytes from the start of a mapping to a block without special alignment.
pub(crate) const FRONT: usize = 64;

/// Large blocks without special alignment are at this distance behind a multiple of that: they begin at pages.
pub(crate) const PLACE: usize = FRONT;
pub(crate) const PLACE_UNIT: usize = 4096;

/// The latest large blocks that were freed: their headers are gone, and freeing one again must be told from freeing what
/// never was a block.
#[derive(Debug)]
pub(crate) struct LargeFreed {
    next: AtomicUsize,
    blocks: [(AtomicUsize, AtomicUsize); 64],
}

impl LargeFreed {
    pub(crate) const fn new() -> Self {
        Self {
            next: AtomicUsize::new(0),
            blocks: [const { (AtomicUsize::new(0), AtomicUsize::new(0)) }; 64],
        }
    }

    /// Notes a block and its size.
    pub(crate) fn note(&self, block: usize, size: usize) {
        let index = self.next.fetch_add(1, Relaxed) % self.blocks.len();
        self.blocks[index].0.store(block, Relaxed);
        self.blocks[index].1.store(size, Relaxed);
    }

    /// Size of a block that was freed a while ago.
    pub(crate) fn size_of(&self, block: usize) -> Option<usize> {
        self.blocks
            .iter()
            .find(|(address, _)| address.load(Relaxed) == block)
            .map(|(_, size)| size.load(Relaxed))
    }
}

/// What is known of a large block.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct LargeRecord {
    /// Depends on all other fields and the block's address.
    check: u64,
    /// First address of the mapping.
    pub(crate) start: usize,
    /// Its length.
    pub(crate) length: usize,
    /// Bytes asked for.
    pub(crate) size: usize,
}

/// Bytes of a record.
pub(crate) const RECORD: usize = size_of::<LargeRecord>();
const _: () = assert!(RECORD + HEADER_BYTES <= FRONT);

impl LargeRecord {
    fn new(block: usize, secret: u64, start: usize, length: usize, size: usize) -> Self {
        let mut record = Self {
            check: 0,
            start,
            length,
            size,
        };
        record.check = record.checked(block, secret);
        record
    }

    fn checked(&self, block: usize, secret: u64) -> u64 {
        let mix = |sum: u64, word: usize| {
            (sum ^ word as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                .rotate_left(23)
        };
        [self.start, self.length, self.size]
            .into_iter()
            .fold(mix(secret, block), mix)
    }

    /// The record of a large block; `None` if it was overwritten.
    ///
    /// # Safety
    ///
    /// The block's header says that it is large.
    pub(crate) unsafe fn of(block: usize, secret: u64) -> Option<Self> {
        // SAFETY: the caller's promise.
        let record = unsafe {
            core::ptr::with_exposed_provenance::<Self>(block - HEADER_BYTES - RECORD)
                .read_unaligned()
        };
        (record.check == record.checked(block, secret)).then_some(record)
    }

    /// A record that was copied from before `block`, if it is one of this block.
    #[cfg(not(preload))]
    pub(crate) fn from_words(words: [u64; 4], block: usize, secret: u64) -> Option<Self> {
        let [check, start, length, size] = words;
        let record = Self {
            check,
            start: start as usize,
            length: length as usize,
            size: size as usize,
        };
        (check == record.checked(block, secret)).then_some(record)
    }

    unsafe fn write(self, block: usize, secret: u64) {
        // SAFETY: the front of the mapping holds record and header; a byte behind the block is left.
        unsafe {
            core::ptr::with_exposed_provenance_mut::<Self>(block - HEADER_BYTES - RECORD)
                .write(self);
            Header::other(block, secret, LARGE, 0).write(block);
            write_canary(block + self.size);
        }
    }
}

impl<K: Kernel> Heap<K> {
    /// Maps a block of `size` bytes; its address and the length of the mapping.
    pub(super) fn map_large(&self, size: usize, alignment: usize) -> Option<(usize, usize)> {
        let page = self.kernel.page_size();
        let front = FRONT.max(alignment);
        let least = size.checked_add(front)?.checked_add(1)?.checked_add(page)?;
        let mut length = round_down(least - 1, page);
        // Mappings begin at pages; for more, whole pages before and behind are given back.
        if alignment > page {
            length = length.checked_add(alignment)?;
        }
        let mut start = self.map(length)?;
        let block = round_up(start + FRONT, alignment.max(16));
        if alignment > page {
            let first = round_down(block - FRONT, page);
            let end = round_up(block + size + 1, page);
            if first > start {
                self.unmap(start, first - start, Cause::Request);
            }
            if end < start + length {
                self.unmap(end, start + length - end, Cause::Request);
            }
            (start, length) = (first, end - first);
        }
        // SAFETY: the mapping is ours and holds the block.
        unsafe {
            LargeRecord::new(block, self.secret(), start, length, size).write(block, self.secret());
        }
        Some((block, length))
    }

    /// Unmaps a large block.
    ///
    /// # Safety
    ///
    /// Nobody uses the block any more.
    pub(super) unsafe fn unmap_large(&self, record: LargeRecord) {
        self.unmap(record.start, record.length, Cause::Release);
    }

    /// Changes the size of a large block, moving its pages if need be; its address and the length of its mapping.
    ///
    /// # Safety
    ///
    /// The block is live and has this record.
    pub(super) unsafe fn remap_large(
        &self,
        block: usize,
        record: LargeRecord,
        size: usize,
    ) -> Option<(usize, usize)> {
        let page = self.kernel.page_size();
        let front = block - record.start;
        let length = round_down(size.checked_add(front)?.checked_add(page)?, page);
        let mut start = record.start;
        if length != record.length {
            start = self.remap(record.start, record.length, length)?;
        }
        let block = start + front;
        // SAFETY: the mapping holds the block, at the same distance from its start.
        unsafe {
            LargeRecord::new(block, self.secret(), start, length, size).write(block, self.secret());
        }
        Some((block, length))
    }
}
