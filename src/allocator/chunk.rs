//! Chunks: what an arena is divided into.
//!
//! A chunk begins with its *tag*: size, flags and a check. Chunks of a segment lie one behind the other, so the size
//! leads to the next one; a free chunk also has its size in its last word, where the next one finds it by the flag
//! `PREVIOUS_FREE`. Two free chunks are never neighbours, and none borders on the top.
//!
//! ```text
//!   in use:  tag │ header of the block │ block …
//!   slab:    tag │ Slab …
//!   free:    tag │ next in bin │ previous in bin │ … │ size
//!   end:     tag of size 16: behind the last chunk of a segment that grows no more
//! ```

use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Chunks begin at multiples of this, and have such sizes.
pub(crate) const UNIT: usize = 16;
/// The smallest chunk: a free one has four words.
pub(crate) const SMALLEST: usize = 32;
/// Bytes before the block in a chunk in use: tag and header.
pub(crate) const FRONT: usize = 16;

pub(crate) const IN_USE: u64 = 1;
pub(crate) const PREVIOUS_FREE: u64 = 2;
pub(crate) const SLAB: u64 = 4;
pub(crate) const END: u64 = 8;

const SIZE_BITS: u64 = (1 << 48) - 1 - 15;

/// A tag's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Tag(pub(crate) u64);

#[inline(always)]
fn check(address: usize, size: u64, secret: u64) -> u64 {
    // A multiplication spreads each bit of address and size over the upper 16.
    ((address as u64 ^ size.rotate_left(20) ^ secret).wrapping_mul(0x9e37_79b9_7f4a_7c15)) >> 48
        << 48
}

impl Tag {
    pub(crate) fn size(self) -> usize {
        (self.0 & SIZE_BITS) as usize
    }

    pub(crate) fn has(self, flag: u64) -> bool {
        self.0 & flag != 0
    }

    /// Whether it was written for this address.
    pub(crate) fn is_valid(self, address: usize, secret: u64) -> bool {
        self.0 >> 48 << 48 == check(address, self.0 & SIZE_BITS, secret) && self.size() >= UNIT
    }
}

/// Address of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Chunk(pub(crate) usize);

impl Chunk {
    /// Reads a word of the chunk.
    ///
    /// # Safety
    ///
    /// `offset` is a multiple of 8 and inside the chunk's segment.
    #[inline(always)]
    unsafe fn word<'a>(self, offset: usize) -> &'a AtomicU64 {
        // SAFETY: the caller's promise; segments are never unmapped while a chunk of theirs is known.
        unsafe { AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(self.0 + offset)) }
    }

    /// # Safety
    ///
    /// A chunk's tag was written there; it may have been overwritten since.
    #[inline(always)]
    pub(crate) unsafe fn tag(self) -> Tag {
        // SAFETY: the caller's promise.
        Tag(unsafe { self.word(0) }.load(Relaxed))
    }

    /// # Safety
    ///
    /// The first word belongs to the chunk, and the caller holds its arena's lock.
    #[inline(always)]
    pub(crate) unsafe fn write_tag(self, size: usize, flags: u64, secret: u64) {
        let tag = size as u64 | flags | check(self.0, size as u64, secret);
        // SAFETY: the caller's promise.
        unsafe { self.word(0) }.store(tag, Relaxed);
    }

    /// Sets and clears flags.
    ///
    /// # Safety
    ///
    /// The chunk has a tag, and the caller holds its arena's lock.
    #[inline(always)]
    pub(crate) unsafe fn change_flags(self, set: u64, clear: u64) {
        // SAFETY: the caller's promise.
        let word = unsafe { self.word(0) };
        word.store(word.load(Relaxed) & !clear | set, Relaxed);
    }

    /// The chunk behind this one.
    pub(crate) fn after(self, size: usize) -> Self {
        Self(self.0 + size)
    }

    /// The block in a chunk in use.
    pub(crate) fn block(self) -> usize {
        self.0 + FRONT
    }

    /// The chunk of a medium block.
    pub(crate) fn of_block(block: usize) -> Self {
        Self(block - FRONT)
    }

    /// Size of the free chunk before this one.
    ///
    /// # Safety
    ///
    /// The chunk has the flag `PREVIOUS_FREE`.
    pub(crate) unsafe fn size_before(self) -> usize {
        // SAFETY: the last word of the free chunk before holds its size.
        let size = unsafe { Self(self.0 - 8).word(0) }.load(Relaxed);
        size as usize
    }

    /// Writes the last word of a free chunk.
    ///
    /// # Safety
    ///
    /// The chunk is free and has `size` bytes.
    pub(crate) unsafe fn write_foot(self, size: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.word(size - 8) }.store(size as u64, Relaxed);
    }

    /// Next and previous chunk of a free one in its bin, 0 for none.
    ///
    /// # Safety
    ///
    /// The chunk is in a bin.
    pub(crate) unsafe fn links(self) -> (usize, usize) {
        // SAFETY: the caller's promise.
        unsafe {
            (
                self.word(8).load(Relaxed) as usize,
                self.word(16).load(Relaxed) as usize,
            )
        }
    }

    /// # Safety
    ///
    /// The chunk is free.
    pub(crate) unsafe fn set_next(self, next: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.word(8) }.store(next as u64, Relaxed);
    }

    /// # Safety
    ///
    /// The chunk is free.
    pub(crate) unsafe fn set_previous(self, previous: usize) {
        // SAFETY: the caller's promise.
        unsafe { self.word(16) }.store(previous as u64, Relaxed);
    }
}
