//! The word before each block.
//!
//! ```text
//!   63     56 55     48 47     40 39                        8 7       0
//!  ┌─────────┬─────────┬─────────┬───────────────────────────┬─────────┐
//!  │  guard  │  check  │  kind   │           data            │  guard  │
//!  └─────────┴─────────┴─────────┴───────────────────────────┴─────────┘
//! ```
//!
//! *Kind* is the size class of a small block, or one of the constants below, with a mark on live blocks that are samples.
//! *Data* of a small block: bytes asked for
//! (16 bits), distance to its slab in units of 16 bytes (16 bits); of a medium one: bytes asked for. *Check* depends
//! on the address and on a secret of the process, so that a header is right at one place only.
//!
//! The *guards* say whether the block is live or free. A run of bytes written past the end of the block before, or
//! before the start of this one, changes a guard before anything else; they are values that no text has (bytes that
//! UTF-8 never uses).
//!
//! Behind the bytes asked for comes a byte with the same value as the lower guard: a *canary* in the block's rounding,
//! or, where there is none, the next header's guard itself. So one look at the byte behind the end tells of an overflow.

use core::sync::atomic::AtomicU8;
use core::sync::atomic::AtomicU64;
use core::sync::atomic::Ordering::Relaxed;

/// Bytes of a header.
pub(crate) const HEADER_BYTES: usize = 8;

/// Kind of a block that is a chunk of an arena.
pub(crate) const MEDIUM: u8 = 0x80;
/// Kind of a block that is a mapping of its own.
pub(crate) const LARGE: u8 = 0x81;
/// Kind of a block with red zones.
pub(crate) const GUARDED: u8 = 0x82;

/// What the kind of a sample has besides. It keeps samples from all short ways: no class is that large.
const SAMPLE: u8 = 0x40;
const _: () = assert!(crate::stats_page::SMALL_CLASSES <= SAMPLE as usize);

const LOW_LIVE: u64 = 0xf9;
const HIGH_LIVE: u64 = 0xf6 << 56;
/// What differs between the guards of a live and of a free block.
const FLIP: u64 = 0x02 | 0x08 << 56;
const CHECKED: u64 = 0xff | 0xffff << 48;

/// The byte behind a block's end.
pub(crate) const CANARY: u8 = 0xf9;
/// The bit in which the lower guards of live and free blocks differ.
const CANARY_DONT_CARE: u8 = 0x02;

/// A header's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header(u64);

/// What a header says of its block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Live,
    Free,
    /// It is no header, or was one.
    Broken,
}

#[inline(always)]
fn check(address: usize, secret: u64) -> u64 {
    let address = address as u64;
    (((address >> 4) ^ (address >> 12) ^ secret) & 0xff) << 48
}

impl Header {
    /// Header of a live small block, `distance` units of 16 bytes behind its slab.
    #[inline(always)]
    pub(crate) fn small(
        block: usize,
        secret: u64,
        class: usize,
        size: usize,
        distance: usize,
    ) -> Self {
        Self::with_data(block, secret, class as u64, (size | distance << 16) as u64)
    }

    /// Header of a live medium, large or guarded block.
    #[inline(always)]
    pub(crate) fn other(block: usize, secret: u64, kind: u8, data: u32) -> Self {
        Self::with_data(block, secret, u64::from(kind), u64::from(data))
    }

    #[inline(always)]
    fn with_data(block: usize, secret: u64, kind: u64, data: u64) -> Self {
        Self(LOW_LIVE | HIGH_LIVE | check(block, secret) | kind << 40 | data << 8)
    }

    /// The same for a block that is free.
    #[inline(always)]
    pub(crate) fn freed(self) -> Self {
        Self(self.0 ^ FLIP)
    }

    /// The same free small block, handed out for `size` bytes.
    #[inline(always)]
    pub(crate) fn taken(self, size: usize) -> Self {
        Self((self.0 ^ FLIP) & !(0xffff << 8) | (size as u64) << 8)
    }

    /// The same live small block with another size.
    #[inline(always)]
    pub(crate) fn resized(self, size: usize) -> Self {
        Self(self.0 & !(0xffff << 8) | (size as u64) << 8)
    }

    /// Whether it is that of a live block at this address.
    #[inline(always)]
    pub(crate) fn is_live(self, block: usize, secret: u64) -> bool {
        // No block is at an address that is not a multiple of 16.
        ((self.0 ^ LOW_LIVE ^ HIGH_LIVE ^ check(block, secret)) & CHECKED) | (block as u64 & 15)
            == 0
    }

    /// Whether it is that of a free small block of this class at this address.
    #[inline(always)]
    pub(crate) fn is_free_small(self, block: usize, secret: u64, class: usize) -> bool {
        let expected = LOW_LIVE ^ HIGH_LIVE ^ FLIP ^ check(block, secret) ^ (class as u64) << 40;
        (self.0 ^ expected) & (CHECKED | 0xff << 40) == 0
    }

    /// What it says of the block at this address.
    pub(crate) fn state(self, block: usize, secret: u64) -> State {
        if self.is_live(block, secret) {
            State::Live
        } else if self.freed().is_live(block, secret) {
            State::Free
        } else {
            State::Broken
        }
    }

    /// The same with the upper guard as it should be: what is left of a live block's header of which the byte next to the
    /// block was overwritten.
    pub(crate) fn mended(self) -> Self {
        Self(self.0 & !(0xff << 56) | HIGH_LIVE)
    }

    /// The same with the lower guard that fits the upper one: what is left of a header of which the byte next to the block
    /// before was overwritten.
    pub(crate) fn mended_low(self) -> Self {
        let is_live = self.0 >> 56 == HIGH_LIVE >> 56;
        let low = if is_live {
            LOW_LIVE
        } else {
            LOW_LIVE ^ FLIP & 0xff
        };
        Self(self.0 & !0xff | low)
    }

    /// The class of a small block, or the kind of another.
    #[inline(always)]
    pub(crate) fn kind(self) -> u8 {
        self.marked_kind() & !SAMPLE
    }

    /// The class of a small block that is no sample; anything else is no class.
    #[inline(always)]
    pub(crate) fn marked_kind(self) -> u8 {
        (self.0 >> 40 & 0xff) as u8
    }

    /// Whether a live block is a sample.
    #[inline(always)]
    pub(crate) fn is_sample(self) -> bool {
        self.marked_kind() & SAMPLE != 0
    }

    /// The same for a block that is a sample.
    pub(crate) fn as_sample(self) -> Self {
        Self(self.0 | u64::from(SAMPLE) << 40)
    }

    /// The same for a block that is no sample.
    pub(crate) fn as_no_sample(self) -> Self {
        Self(self.0 & !(u64::from(SAMPLE) << 40))
    }

    /// Bytes asked for, of a small block.
    #[inline(always)]
    pub(crate) fn small_size(self) -> usize {
        (self.0 >> 8 & 0xffff) as usize
    }

    /// Bytes from the slab to the block, of a small block.
    #[inline(always)]
    pub(crate) fn slab_distance(self) -> usize {
        (self.0 >> 24 & 0xffff) as usize * 16
    }

    /// All 32 bits of data.
    #[inline(always)]
    pub(crate) fn data(self) -> u32 {
        (self.0 >> 8) as u32
    }

    /// Reads the header of the block at this address.
    ///
    /// # Safety
    ///
    /// The 8 bytes before `block` can be read.
    #[inline(always)]
    pub(crate) unsafe fn read(block: usize) -> Self {
        // Not atomic, as a pointer that is no block's may be at any address; x86-64 and aarch64 read aligned words
        // at once, and a torn one fails its check.
        // SAFETY: the caller's promise.
        Self(unsafe {
            core::ptr::with_exposed_provenance::<u64>(block - HEADER_BYTES).read_unaligned()
        })
    }

    /// The value of a header that was copied.
    #[cfg(not(preload))]
    pub(crate) fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// Writes the header of the block at this address.
    ///
    /// # Safety
    ///
    /// `block` is a multiple of 16, and the 8 bytes before it belong to the block.
    #[inline(always)]
    pub(crate) unsafe fn write(self, block: usize) {
        // SAFETY: the caller's promise.
        unsafe {
            AtomicU64::from_ptr(core::ptr::with_exposed_provenance_mut(block - HEADER_BYTES))
        }
        .store(self.0, Relaxed);
    }
}

/// Writes the canary of a block that has at least one byte left behind its `size`.
///
/// # Safety
///
/// `address` belongs to the block.
#[inline(always)]
pub(crate) unsafe fn write_canary(address: usize) {
    // SAFETY: the caller's promise.
    unsafe { core::ptr::with_exposed_provenance_mut::<u8>(address).write(CANARY) };
}

/// Writes the lower guard of the header before `block`, and nothing else of it.
///
/// # Safety
///
/// `block` is a multiple of 16, and the 8 bytes before it belong to a slab.
pub(crate) unsafe fn write_low_guard(block: usize, header: Header) {
    let address = core::ptr::with_exposed_provenance_mut(block - HEADER_BYTES);
    // SAFETY: the caller's promise.
    unsafe { AtomicU8::from_ptr(address) }.store(header.0 as u8, Relaxed);
}

/// Whether the byte behind a block's end is what it should be.
///
/// # Safety
///
/// `address` is behind a block, and so inside a slab or a chunk.
#[inline(always)]
pub(crate) unsafe fn canary_is_right(address: usize) -> bool {
    // SAFETY: the caller's promise; where it is the next header's guard, another thread may write it meanwhile.
    let byte = unsafe { AtomicU8::from_ptr(core::ptr::with_exposed_provenance_mut(address)) }
        .load(Relaxed);
    canary_byte_is_right(byte)
}

/// Whether this is the value of the byte behind a block's end.
#[inline(always)]
pub(crate) fn canary_byte_is_right(byte: u8) -> bool {
    byte | CANARY_DONT_CARE == CANARY | CANARY_DONT_CARE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_right_at_its_address_only() {
        let header = Header::small(0x5000, 77, 3, 60, 4);
        assert_eq!(header.state(0x5000, 77), State::Live);
        assert_eq!(header.freed().state(0x5000, 77), State::Free);
        assert_eq!(header.state(0x5010, 77), State::Broken);
        assert_eq!(header.state(0x5000, 78), State::Broken);
        assert!(!header.is_live(0x5001, 77));
        assert!(header.freed().is_free_small(0x5000, 77, 3));
        assert!(!header.freed().is_free_small(0x5000, 77, 4));
        assert_eq!((header.small_size(), header.slab_distance()), (60, 64));
        let again = header.freed().taken(33);
        assert_eq!((again.small_size(), again.slab_distance()), (33, 64));
        assert_eq!(again.state(0x5000, 77), State::Live);
    }

    #[test]
    fn a_sample_is_a_live_block_like_any_other_but_for_the_short_ways() {
        for header in [
            Header::small(0x5000, 77, 47, 60, 4),
            Header::other(0x5000, 77, MEDIUM, 5),
            Header::other(0x5000, 77, LARGE, 0),
            Header::other(0x5000, 77, GUARDED, 9),
        ] {
            let sample = header.as_sample();
            assert!(sample.is_sample() && !header.is_sample());
            assert_eq!(sample.state(0x5000, 77), State::Live);
            assert_eq!(
                (sample.kind(), sample.data()),
                (header.kind(), header.data())
            );
            assert!(usize::from(sample.marked_kind()) >= crate::stats_page::SMALL_CLASSES);
            assert_eq!(sample.as_no_sample(), header);
        }
    }

    #[test]
    fn any_changed_end_of_a_header_is_noticed() {
        let header = Header::small(0x5000, 77, 3, 60, 4);
        for value in (0..=255).filter(|value| *value != 0xf9 && *value != 0xfb) {
            let low = Header(header.0 & !0xff | value);
            assert_eq!(low.state(0x5000, 77), State::Broken);
        }
        for value in (0..=255).filter(|value| *value != 0xf6 && *value != 0xfe) {
            let high = Header(header.0 & !(0xff << 56) | value << 56);
            assert_eq!(high.state(0x5000, 77), State::Broken);
        }
        // Half of a guard's change is not a change of state.
        assert_eq!(Header(header.0 ^ 2).state(0x5000, 77), State::Broken);
    }
}
