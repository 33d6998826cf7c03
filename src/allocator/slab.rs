//! Slabs: chunks divided into blocks of one size class.
//!
//! ```text
//!   tag │ record │ bits │ header │ block 0 … │ header │ block 1 … │ … │ guard
//! ```
//!
//! A bit says for each block whether it is free. Blocks are cut from the front on as they are needed, so that memory is
//! not touched before its time. The first slab of a class is small, and later ones grow, so that a program that needs
//! few blocks pays for few.
//!
//! Always: `free = blocks not cut yet + bits set`.

use core::mem::size_of;

use super::Heap;
use super::arena::Arena;
use super::chunk::Chunk;
use super::chunk::SLAB;
use super::chunk::UNIT;
use super::header::HEADER_BYTES;
use super::header::Header;
use super::header::write_canary;
use super::kernel::Kernel;
use super::round_up;
use super::size_class::small_bytes;
use crate::stats_page::Policy;
use crate::stats_page::SMALL_CLASSES;

/// Record of a slab: the first bytes of its chunk.
#[derive(Debug)]
#[repr(C)]
pub(crate) struct Slab {
    /// The chunk's.
    tag: u64,
    /// Says that it is a slab, see [`Slab::check`].
    pub(crate) check: u64,
    /// The arena it belongs to.
    pub(crate) arena: *mut Arena,
    /// Neighbours in the list of its class, of those with a free block or of empty ones (which need no `previous`); 0 for
    /// none.
    pub(super) next: usize,
    previous: usize,
    pub(crate) class: u16,
    pub(crate) capacity: u16,
    /// Blocks cut so far.
    pub(crate) cut: u16,
    /// Free blocks.
    pub(crate) free: u16,
    // Followed by one bit for each block.
}

const RECORD: usize = size_of::<Slab>();

/// Bytes of the first slab of a class, and of the largest.
const FIRST: usize = 512;
const LARGEST: usize = 16 << 10;

/// Of the slabs of a class, one in so many may wait empty; a few always may.
const EMPTY_PART: u32 = 8;
const LEAST_EMPTY: u32 = 2;

/// Bytes of the next slab of a class that has `slabs` already, and its blocks. Sizes are powers of two, so that what one
/// class gives up fits another.
fn shape(class: usize, slabs: u32) -> (usize, usize) {
    let block = small_bytes(class);
    let largest = if block > 512 { 2 * LARGEST } else { LARGEST };
    let mut bytes = (FIRST << slabs.min(16)).min(largest);
    while bytes < Slab::bytes(class, 2) {
        bytes *= 2;
    }
    // The record grows with the capacity: a bit for each block, rounded up.
    let mut capacity = (bytes - RECORD - HEADER_BYTES) / block;
    while Slab::bytes(class, capacity) > bytes {
        capacity -= 1;
    }
    (bytes, capacity)
}

/// `((bytes / 16) * RECIPROCALS[class]) >> 20` is the number of blocks in so many bytes.
static RECIPROCALS: [u32; SMALL_CLASSES] = {
    let mut reciprocals = [0; SMALL_CLASSES];
    let mut class = 0;
    while class < SMALL_CLASSES {
        reciprocals[class] = ((1 << 20) / (small_bytes(class) / UNIT) + 1) as u32;
        class += 1;
    }
    reciprocals
};

impl Slab {
    pub(crate) fn check(address: usize, secret: u64) -> u64 {
        (address as u64 ^ secret).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ 0x736c_6162
    }

    /// Bytes from the slab to its first block.
    pub(crate) fn first_block(capacity: usize) -> usize {
        round_up(RECORD + 8 * capacity.div_ceil(64) + HEADER_BYTES, UNIT)
    }

    /// Bytes of a slab's chunk.
    fn bytes(class: usize, capacity: usize) -> usize {
        // The last block ends one header before the next multiple of 16; the guard takes its place.
        Self::first_block(capacity) + capacity * small_bytes(class)
    }

    /// The slab at this address, if one is there.
    ///
    /// # Safety
    ///
    /// The address can be read, and nobody writes to the record meanwhile but under the arena's lock.
    pub(crate) unsafe fn at(address: usize, secret: u64) -> Option<*mut Self> {
        let slab = core::ptr::with_exposed_provenance_mut::<Self>(address);
        // SAFETY: the caller's promise.
        (unsafe { (*slab).check } == Self::check(address, secret)).then_some(slab)
    }

    /// Number of the block that begins `bytes` behind the first.
    #[inline(always)]
    fn index(class: usize, bytes: usize) -> usize {
        ((bytes / UNIT) * RECIPROCALS[class] as usize) >> 20
    }

    #[inline(always)]
    pub(super) unsafe fn bits(slab: *mut Self) -> *mut u64 {
        // SAFETY: the bits follow the record.
        unsafe { slab.add(1).cast() }
    }
}

impl Arena {
    /// Takes up to `blocks.len()` free blocks of a class from slabs, making one if needed; how many. None if the kernel
    /// has no memory.
    ///
    /// # Safety
    ///
    /// The caller holds the lock.
    pub(crate) unsafe fn take_small<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        class: usize,
        request: usize,
        blocks: &mut [usize],
    ) -> usize {
        let mut taken = 0;
        while taken < blocks.len() {
            let mut address = self.partial[class];
            if address == 0 {
                // A second slab is made for the request itself only, not to fill a cache.
                if taken > 0 {
                    break;
                }
                // SAFETY: the caller holds the lock.
                match unsafe {
                    self.reuse_slab(class)
                        .or_else(|| self.make_slab(heap, class, request))
                } {
                    Some(slab) => address = slab,
                    None => break,
                }
            }
            let slab = core::ptr::with_exposed_provenance_mut::<Slab>(address);
            // SAFETY: slabs in the list are this arena's.
            let got = unsafe { self.take_from(slab, class, &mut blocks[taken..]) };
            taken += got;
            // SAFETY: as above.
            unsafe {
                (*slab).free -= got as u16;
                if (*slab).free == 0 {
                    self.unlink_slab(slab);
                }
            }
        }
        self.counters.slab_free[class].sub(taken as u64);
        taken
    }

    unsafe fn take_from(&mut self, slab: *mut Slab, class: usize, blocks: &mut [usize]) -> usize {
        let bytes = small_bytes(class);
        // SAFETY: everything stays inside the slab: indices are below its capacity.
        unsafe {
            let capacity = usize::from((*slab).capacity);
            let cut = usize::from((*slab).cut);
            let first = slab as usize + Slab::first_block(capacity);
            let bits = Slab::bits(slab);
            let mut taken = 0;
            if usize::from((*slab).free) > capacity - cut {
                'words: for word in 0..cut.div_ceil(64) {
                    let mut set = bits.add(word).read();
                    while set != 0 {
                        if taken == blocks.len() {
                            bits.add(word).write(set);
                            break 'words;
                        }
                        let index = word * 64 + set.trailing_zeros() as usize;
                        set &= set - 1;
                        blocks[taken] = first + index * bytes;
                        taken += 1;
                    }
                    bits.add(word).write(set);
                }
            }
            let new = (blocks.len() - taken).min(capacity - cut);
            if new > 0 {
                for index in cut..cut + new {
                    let block = first + index * bytes;
                    self.write_free_header(slab as usize, block, class);
                    blocks[taken] = block;
                    taken += 1;
                }
                (*slab).cut = (cut + new) as u16;
                // The guard behind the last block that can be written to: a header, or the byte at the end.
                let behind = first + (cut + new) * bytes;
                if cut + new < capacity {
                    self.write_free_header(slab as usize, behind, class);
                } else {
                    write_canary(behind - HEADER_BYTES);
                }
            }
            taken
        }
    }

    unsafe fn write_free_header(&self, slab: usize, block: usize, class: usize) {
        let header = Header::small(block, self.secret, class, 0, (block - slab) / UNIT);
        // SAFETY: the caller's block is in the slab.
        unsafe { header.freed().write(block) };
    }

    unsafe fn make_slab<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        class: usize,
        request: usize,
    ) -> Option<usize> {
        let block = small_bytes(class);
        let (need, capacity) = shape(class, self.slabs[class]);
        // SAFETY: the caller holds the lock; the chunk is ours.
        unsafe {
            let taken = self.take(heap, need, request)?;
            let address = taken.chunk.0;
            taken.chunk.change_flags(SLAB, 0);
            let slab = core::ptr::with_exposed_provenance_mut::<Slab>(address);
            (*slab).check = Slab::check(address, self.secret);
            (*slab).arena = &raw mut *self;
            (*slab).class = class as u16;
            (*slab).capacity = capacity as u16;
            (*slab).cut = 0;
            (*slab).free = capacity as u16;
            Slab::bits(slab).write_bytes(0, capacity.div_ceil(64));
            self.link_slab(slab);
            self.slabs[class] += 1;
            self.counters.slabs_made.add(1);
            self.counters.slab_free[class].add(capacity as u64);
            let records = taken.size - capacity * block;
            self.counters.slab_record_bytes.add(records as u64);
            Some(address)
        }
    }

    /// Puts a free block back into its slab; `false` if it is there already.
    ///
    /// # Safety
    ///
    /// The caller holds the lock of the slab's arena, which is this one, and the block is one of the slab's.
    pub(crate) unsafe fn give_small<K: Kernel>(
        &mut self,
        heap: &Heap<K>,
        slab: *mut Slab,
        block: usize,
    ) -> bool {
        // SAFETY: the caller's promises.
        unsafe {
            let class = usize::from((*slab).class);
            let capacity = usize::from((*slab).capacity);
            let offset = block - slab as usize - Slab::first_block(capacity);
            let index = Slab::index(class, offset);
            debug_assert!(index < usize::from((*slab).cut));
            let word = Slab::bits(slab).add(index / 64);
            let bit = 1 << (index % 64);
            if *word & bit != 0 {
                return false;
            }
            *word |= bit;
            (*slab).free += 1;
            self.counters.slab_free[class].add(1);
            if (*slab).free == 1 {
                self.link_slab(slab);
            }
            if usize::from((*slab).free) == capacity {
                self.slab_is_empty(heap, slab);
            }
            true
        }
    }

    /// An empty slab waits for the next blocks of its class, unless enough of them wait already.
    unsafe fn slab_is_empty<K: Kernel>(&mut self, heap: &Heap<K>, slab: *mut Slab) {
        // SAFETY: the slab is in its list, has no live block, and the caller holds the lock.
        unsafe {
            let class = usize::from((*slab).class);
            let keep = (self.slabs[class] / EMPTY_PART).max(LEAST_EMPTY);
            self.unlink_slab(slab);
            if self.empty_slabs[class] >= keep || heap.policy() == Policy::Eager {
                self.release_slab(heap, slab);
            } else {
                (*slab).next = self.empty[class];
                self.empty[class] = slab as usize;
                self.empty_slabs[class] += 1;
            }
        }
    }

    /// Puts an empty slab of a class back to use.
    unsafe fn reuse_slab(&mut self, class: usize) -> Option<usize> {
        let address = self.empty[class];
        if address == 0 {
            return None;
        }
        let slab = core::ptr::with_exposed_provenance_mut::<Slab>(address);
        // SAFETY: slabs in the list are this arena's.
        unsafe {
            self.empty[class] = (*slab).next;
            self.empty_slabs[class] -= 1;
            self.link_slab(slab);
        }
        Some(address)
    }

    unsafe fn release_slab<K: Kernel>(&mut self, heap: &Heap<K>, slab: *mut Slab) {
        // SAFETY: the slab has no live block, and the caller holds the lock.
        unsafe {
            let class = usize::from((*slab).class);
            let capacity = usize::from((*slab).capacity);
            let chunk = Chunk(slab as usize);
            let records = chunk.tag().size() - capacity * small_bytes(class);
            (*slab).check = 0;
            self.slabs[class] -= 1;
            self.counters.slabs_released.add(1);
            self.counters.slab_free[class].sub(capacity as u64);
            self.counters.slab_record_bytes.sub(records as u64);
            chunk.change_flags(0, SLAB);
            self.free(heap, chunk);
        }
    }

    /// Gives up all slabs without a live block; whether there were any.
    ///
    /// # Safety
    ///
    /// The caller holds the lock.
    pub(super) unsafe fn release_empty_slabs<K: Kernel>(&mut self, heap: &Heap<K>) -> bool {
        let mut any = false;
        for class in 0..SMALL_CLASSES {
            while self.empty[class] != 0 {
                let slab = core::ptr::with_exposed_provenance_mut::<Slab>(self.empty[class]);
                // SAFETY: slabs in the list are this arena's, and have no live block.
                unsafe {
                    self.empty[class] = (*slab).next;
                    self.empty_slabs[class] -= 1;
                    self.release_slab(heap, slab);
                }
                any = true;
            }
        }
        any
    }

    unsafe fn link_slab(&mut self, slab: *mut Slab) {
        // SAFETY: the slab is this arena's, and in no list.
        unsafe {
            let class = usize::from((*slab).class);
            let head = self.partial[class];
            (*slab).next = head;
            (*slab).previous = 0;
            if head != 0 {
                (*core::ptr::with_exposed_provenance_mut::<Slab>(head)).previous = slab as usize;
            }
            self.partial[class] = slab as usize;
        }
    }

    unsafe fn unlink_slab(&mut self, slab: *mut Slab) {
        // SAFETY: the slab and its neighbours are this arena's.
        unsafe {
            let (next, previous) = ((*slab).next, (*slab).previous);
            if next != 0 {
                (*core::ptr::with_exposed_provenance_mut::<Slab>(next)).previous = previous;
            }
            if previous == 0 {
                self.partial[usize::from((*slab).class)] = next;
            } else {
                (*core::ptr::with_exposed_provenance_mut::<Slab>(previous)).next = next;
            }
            (*slab).next = 0;
            (*slab).previous = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_number_of_each_block_is_found_without_division() {
        for class in 0..SMALL_CLASSES {
            let block = small_bytes(class);
            for index in 0..2 * LARGEST / block {
                assert_eq!(Slab::index(class, index * block), index);
            }
        }
    }
}
