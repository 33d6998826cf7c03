//! Bins: free chunks by size.
//!
//! Chunks below 512 bytes have a bin for each size; above, each doubling has 32 bins. A bit for each bin says whether
//! it holds any, so that the smallest bin that fits is found without a search (two-level segregated fit, Masmano et
//! al., 2004).

use super::chunk::UNIT;

const LINEAR: usize = 32;
const STEP_BITS: u32 = 5;
/// Chunks from 2^40 bytes on share the last bins.
const DOUBLINGS: usize = 31;
/// How many bins there are.
pub(crate) const BINS: usize = LINEAR + DOUBLINGS * (1 << STEP_BITS);
const WORDS: usize = BINS.div_ceil(64);

/// The bin for chunks of `size` bytes.
#[inline(always)]
pub(crate) fn bin_of(size: usize) -> usize {
    let units = size / UNIT;
    if units < LINEAR {
        return units;
    }
    let doubling = units.ilog2();
    let step = (units >> (doubling - STEP_BITS)) & ((1 << STEP_BITS) - 1);
    (LINEAR + (((doubling - STEP_BITS) as usize) << STEP_BITS) + step).min(BINS - 1)
}

/// First chunk of each bin, 0 for none. Empty when all bytes are zero.
#[derive(Debug)]
pub(crate) struct Bins {
    filled: [u64; WORDS],
    heads: [usize; BINS],
}

impl Bins {
    pub(crate) const fn new() -> Self {
        Self {
            filled: [0; WORDS],
            heads: [0; BINS],
        }
    }

    #[inline(always)]
    pub(crate) fn head(&self, bin: usize) -> usize {
        self.heads[bin]
    }

    #[inline(always)]
    pub(crate) fn set_head(&mut self, bin: usize, chunk: usize) {
        self.heads[bin] = chunk;
        let bit = 1 << (bin % 64);
        if chunk == 0 {
            self.filled[bin / 64] &= !bit;
        } else {
            self.filled[bin / 64] |= bit;
        }
    }

    /// The first bin from `bin` on that holds a chunk.
    #[inline(always)]
    pub(crate) fn first_filled(&self, bin: usize) -> Option<usize> {
        let mut word = bin / 64;
        let mut bits = *self.filled.get(word)? & (!0 << (bin % 64));
        while bits == 0 {
            word += 1;
            bits = *self.filled.get(word)?;
        }
        Some(word * 64 + bits.trailing_zeros() as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bins_ascend_with_size() {
        let mut last = 0;
        for size in (UNIT..1 << 20).step_by(UNIT) {
            let bin = bin_of(size);
            assert!(bin == last || bin == last + 1, "{size}");
            last = bin;
        }
        assert_eq!(bin_of(usize::MAX), BINS - 1);
    }

    #[test]
    fn the_first_filled_bin_is_found() {
        let mut bins = Bins::new();
        assert_eq!(bins.first_filled(0), None);
        for bin in [3, 64, 200, BINS - 1] {
            bins.set_head(bin, 16);
        }
        assert_eq!(bins.first_filled(0), Some(3));
        assert_eq!(bins.first_filled(4), Some(64));
        assert_eq!(bins.first_filled(65), Some(200));
        assert_eq!(bins.first_filled(201), Some(BINS - 1));
        assert_eq!(bins.first_filled(BINS), None);
        bins.set_head(64, 0);
        assert_eq!(bins.first_filled(4), Some(200));
    }
}
