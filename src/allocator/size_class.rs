//! Size ↔ class of small blocks.
//!
//! A block of `n` bytes holds requests of up to `n − 8`, as its header takes 8. Steps of 16 up to 512 waste no more than
//! alignment does; steps of 32 up to 1024 waste at most one part in 16.

use crate::stats_page::SMALL_CLASSES;
use crate::stats_page::small_block_bytes;

use super::header::HEADER_BYTES;

/// Largest request that is served from a slab, in bytes.
pub(crate) const LARGEST_SMALL: usize = small_bytes(SMALL_CLASSES - 1) - HEADER_BYTES;

/// Bytes of a block of `class`, header included.
#[expect(
    clippy::cast_possible_truncation,
    reason = "blocks have at most 1024 bytes"
)]
pub(crate) const fn small_bytes(class: usize) -> usize {
    small_block_bytes(class) as usize
}

/// `BLOCK_BYTES[class]`, for a load instead of arithmetic.
pub(crate) static BLOCK_BYTES: [u16; SMALL_CLASSES] = {
    let mut bytes = [0; SMALL_CLASSES];
    let mut class = 0;
    while class < SMALL_CLASSES {
        bytes[class] = small_bytes(class) as u16;
        class += 1;
    }
    bytes
};

/// Class by blocks of 16 bytes that request and header take together.
static CLASS_OF: [u8; LARGEST_SMALL.div_ceil(16) + 1] = {
    let mut classes = [0; LARGEST_SMALL.div_ceil(16) + 1];
    let mut units = 0;
    while units < classes.len() {
        let mut class = 0;
        while small_bytes(class) < 16 * units {
            class += 1;
        }
        classes[units] = class as u8;
        units += 1;
    }
    classes
};

/// Class of the smallest block that holds `size` bytes. `size` is at most [`LARGEST_SMALL`].
#[inline(always)]
pub(crate) fn class_of(size: usize) -> usize {
    debug_assert!(size <= LARGEST_SMALL);
    usize::from(CLASS_OF[(size + HEADER_BYTES).div_ceil(16)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_gets_the_smallest_block_that_holds_it() {
        for size in 0..=LARGEST_SMALL {
            let class = class_of(size);
            assert!(small_bytes(class) >= size + HEADER_BYTES, "{size}");
            assert!(
                class == 0 || small_bytes(class - 1) < size + HEADER_BYTES,
                "{size}"
            );
        }
    }
}
