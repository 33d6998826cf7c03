//! Guarded blocks: red zones on both sides, fill patterns, and a quarantine for freed ones.
//!
//! ```text
//!   inner block: │ zone … │ Front: zone, size, distance │ header │ the program's block … │ zone (32 bytes) │
//! ```
//!
//! A guarded block lies inside a usual one. Its bytes begin as [`FRESH`] and become [`FREED`] when it is freed; it
//! then waits in the quarantine, and if any of its bytes has another value when it leaves, it was written to after
//! free. All of this happens under the heap's `shared` lock.

use core::mem::size_of;
use core::ptr;

use super::Given;
use super::Heap;
use super::cache::Cache;
use super::header::GUARDED;
use super::header::HEADER_BYTES;
use super::header::Header;
use super::kernel::Kernel;
use super::round_up;
use super::size_class::small_bytes;
use crate::stats_page::FoundBy;
use crate::stats_page::HeapErrorKind;

/// Value of bytes that the program has not written yet.
const FRESH: u8 = 0xcd;
/// Value of bytes of freed blocks.
const FREED: u8 = 0xdf;
/// Value of bytes in red zones: none that text has.
pub(super) const ZONE: u8 = 0xf9;

/// Bytes of the zone behind a block.
const BEHIND: usize = 32;

/// Before a guarded block's header.
#[repr(C)]
struct Front {
    zone: [u8; 8],
    size: usize,
    /// From the inner block to this one.
    distance: usize,
}

/// Bytes from the start of a front to its block.
pub(super) const FRONT: usize = size_of::<Front>() + HEADER_BYTES;

/// Blocks in quarantine, and bytes of them.
const QUARANTINE_BLOCKS: usize = 4096;
const QUARANTINE_BYTES: usize = 16 << 20;

/// Freed blocks, oldest first.
#[derive(Debug)]
pub(super) struct Quarantine {
    first: usize,
    count: usize,
    bytes: usize,
    blocks: [usize; QUARANTINE_BLOCKS],
}

impl Quarantine {
    pub(super) const fn new() -> Self {
        Self {
            first: 0,
            count: 0,
            bytes: 0,
            blocks: [0; QUARANTINE_BLOCKS],
        }
    }

    fn push(&mut self, block: usize, size: usize) {
        self.blocks[(self.first + self.count) % QUARANTINE_BLOCKS] = block;
        self.count += 1;
        self.bytes += size;
    }

    fn is_full(&self) -> bool {
        self.count == QUARANTINE_BLOCKS || (self.bytes > QUARANTINE_BYTES && self.count > 0)
    }

    fn oldest(&self) -> usize {
        self.blocks[self.first]
    }

    fn drop_oldest(&mut self, size: usize) {
        self.first = (self.first + 1) % QUARANTINE_BLOCKS;
        self.count -= 1;
        self.bytes -= size;
    }
}

fn bytes<'a>(address: usize, length: usize) -> &'a mut [u8] {
    // SAFETY: callers name parts of a guarded block's inner block, under the lock; only the program's own part can be
    // written by others, and then it is an error that is being looked for.
    unsafe { core::slice::from_raw_parts_mut(ptr::with_exposed_provenance_mut(address), length) }
}

fn first_other(address: usize, length: usize, value: u8) -> Option<usize> {
    bytes(address, length)
        .iter()
        .position(|byte| *byte != value)
        .map(|index| address + index)
}

fn front<'a>(block: usize) -> &'a mut Front {
    // SAFETY: as for `bytes`; the front lies before the header of a guarded block.
    unsafe { &mut *ptr::with_exposed_provenance_mut(block - FRONT) }
}

impl<K: Kernel> Heap<K> {
    /// Hands out a guarded block.
    ///
    /// # Safety
    ///
    /// The shared lock is held, and `cache` is the shared cache.
    pub(super) unsafe fn request_guarded(
        &self,
        cache: &mut Cache,
        alignment: usize,
        size: usize,
        zeroed: bool,
    ) -> Option<usize> {
        let room = size.checked_add(FRONT + BEHIND + alignment)?;
        // SAFETY: the caller's promise; everything written lies in the inner block.
        unsafe {
            let mut inner = self.raw(cache, room, false);
            while inner.is_none() && self.leave_oldest(cache) {
                inner = self.raw(cache, room, false);
            }
            let inner = inner?;
            let block = round_up(inner + FRONT, alignment);
            bytes(inner, block - FRONT - inner).fill(ZONE);
            *front(block) = Front {
                zone: [ZONE; 8],
                size,
                distance: block - inner,
            };
            Header::other(block, self.secret(), GUARDED, size as u32).write(block);
            bytes(block, size).fill(if zeroed { 0 } else { FRESH });
            bytes(block + size, inner + room - block - size).fill(ZONE);
            cache.count_requested(size);
            Some(block)
        }
    }

    /// Bytes asked for, of a guarded block.
    pub(super) unsafe fn guarded_size(&self, block: usize) -> usize {
        front(block).size
    }

    /// Frees a guarded block: checks its zones and puts it into the quarantine.
    ///
    /// # Safety
    ///
    /// As for [`Heap::request_guarded`]; the block's header says that it is live and guarded.
    pub(super) unsafe fn free_guarded(&self, cache: &mut Cache, block: usize, by: FoundBy) {
        // SAFETY: the caller's promise; the front is believed only if it agrees with the header and the inner block.
        unsafe {
            let Some((inner, given, size)) = self.inner_of(block) else {
                self.found(
                    HeapErrorKind::WriteBeforeStart,
                    by,
                    block,
                    None,
                    block - FRONT,
                );
                return;
            };
            let end = inner + given.size();
            if let Some(changed) = first_other(inner, block - FRONT + 8 - inner, ZONE) {
                self.found(
                    HeapErrorKind::WriteBeforeStart,
                    by,
                    block,
                    Some(size),
                    changed,
                );
            }
            if let Some(changed) = first_other(block + size, end - block - size, ZONE) {
                self.found(HeapErrorKind::WritePastEnd, by, block, Some(size), changed);
            }
            self.end_sample(block);
            Header::other(block, self.secret(), GUARDED, size as u32)
                .freed()
                .write(block);
            bytes(block, size).fill(FREED);
            cache.count_released(size);
            self.count_freed(cache, &given);
            cache.counters.medium_cached_bytes.add(given.taken_bytes());
            let quarantine = &mut *self.quarantine.get();
            quarantine.push(block, size);
            while (*self.quarantine.get()).is_full() {
                self.leave_oldest(cache);
            }
        }
    }

    /// Frees the oldest block in quarantine for good; `false` if there is none.
    unsafe fn leave_oldest(&self, cache: &mut Cache) -> bool {
        // SAFETY: the caller holds the shared lock.
        unsafe {
            let quarantine = &mut *self.quarantine.get();
            if quarantine.count == 0 {
                return false;
            }
            let oldest = quarantine.oldest();
            quarantine.drop_oldest(front(oldest).size.min(quarantine.bytes));
            self.leave_quarantine(cache, oldest);
            true
        }
    }

    /// The inner block, what it is, and the size of the guarded one.
    unsafe fn inner_of(&self, block: usize) -> Option<(usize, Given, usize)> {
        let Front { size, distance, .. } = *front(block);
        // SAFETY: the word before the guarded block is its header.
        let header = unsafe { Header::read(block) };
        let inner = block.checked_sub(distance)?;
        if distance < FRONT || header.data() != size as u32 || !self.is_live_block(inner) {
            return None;
        }
        // SAFETY: there is a live block.
        let given = unsafe { self.look_at(inner, None) };
        let fits = inner
            .checked_add(given.size())
            .zip(block.checked_add(size))
            .is_some_and(|(end, own)| own <= end);
        fits.then_some((inner, given, size))
    }

    /// Frees the oldest block for good.
    unsafe fn leave_quarantine(&self, cache: &mut Cache, block: usize) {
        // SAFETY: blocks in quarantine are the heap's.
        unsafe {
            let Some((inner, given, size)) = self.inner_of(block) else {
                self.found(
                    HeapErrorKind::WriteAfterFree,
                    FoundBy::Quarantine,
                    block,
                    None,
                    block - FRONT,
                );
                return;
            };
            if let Some(changed) = first_other(block, size, FREED) {
                self.found(
                    HeapErrorKind::WriteAfterFree,
                    FoundBy::Quarantine,
                    block,
                    Some(size),
                    changed,
                );
            }
            cache.counters.medium_cached_bytes.sub(given.taken_bytes());
            self.raw_free(cache, inner, &given);
        }
    }

    /// Looks at all blocks in quarantine: at the end of the program.
    pub fn check_quarantine(&self) {
        if !self.has_begun() || self.page().settings.guard.get() == 0 {
            return;
        }
        self.shared_lock.take(&self.kernel);
        // SAFETY: the lock is held.
        unsafe {
            let quarantine = &*self.quarantine.get();
            for index in 0..quarantine.count {
                let block = quarantine.blocks[(quarantine.first + index) % QUARANTINE_BLOCKS];
                let size = front(block).size;
                if self.inner_of(block).is_some()
                    && let Some(changed) = first_other(block, size, FREED)
                {
                    self.found(
                        HeapErrorKind::WriteAfterFree,
                        FoundBy::Exit,
                        block,
                        Some(size),
                        changed,
                    );
                }
            }
        }
        self.shared_lock.give(&self.kernel);
        self.settle();
    }
}

impl Given {
    /// Bytes that the block takes, its header and rounding included.
    fn taken_bytes(&self) -> u64 {
        match *self {
            Self::Small { class, .. } => small_bytes(class) as u64,
            Self::Medium { chunk_size, .. } => chunk_size as u64,
            Self::Large(record) => record.length as u64,
            Self::Guarded | Self::Nothing => 0,
        }
    }
}
