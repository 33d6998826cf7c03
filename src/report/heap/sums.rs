//! A heap in a few figures: what all arenas of all C libraries hold, and their mapped chunks.

use serde::Deserialize;
use serde::Serialize;

use crate::event::HeapExamination;

/// Sums over all heaps of glibc's in a program: mostly one.
///
/// `resident = in use in memory + trimmable + fragmented + out of reach`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapSums {
    /// Bytes that malloc has from the kernel: of arenas, and in chunks that are mappings of their own.
    pub obtained_bytes: u64,
    /// Bytes of chunks that the program has and has not freed, those that are mappings of their own included.
    pub in_use_bytes: u64,
    /// How many.
    pub in_use_chunks: u64,
    /// Of these, bytes in mappings of their own.
    pub mapped_bytes: u64,
    /// How many.
    pub mapped_chunks: u64,
    /// Bytes of freed chunks that wait in thread caches.
    pub cached_bytes: u64,
    /// How many.
    pub cached_chunks: u64,
    /// Bytes of free chunks in bins and fast bins.
    pub binned_bytes: u64,
    /// How many.
    pub binned_chunks: u64,
    /// Bytes of the tops.
    pub top_bytes: u64,
    /// Bytes that arenas obtained and that were not found; 0 when the sum holds.
    pub not_found_bytes: u64,
    /// Arenas that have memory.
    pub arenas: u64,
    /// Bytes of all that in memory; `null` when not known, as all that follow.
    pub resident_bytes: Option<u64>,
    /// Of these, bytes that are not free: chunks in use, thread caches, and what malloc needs itself.
    pub resident_in_use_bytes: Option<u64>,
    /// Of the resident bytes, those that `malloc_trim(0)` would give back.
    pub trimmable_bytes: Option<u64>,
    /// Of the resident bytes, free ones in pages that also hold a chunk in use or in a thread cache.
    pub fragmented_bytes: Option<u64>,
    /// Of the resident bytes, free ones that neither holds for: tops of thread arenas, which `malloc_trim` passes over,
    /// and the odd page at the edge of a free chunk.
    pub out_of_reach_bytes: Option<u64>,
    /// Bytes that are swapped out.
    pub swapped_bytes: Option<u64>,
}

impl HeapSums {
    /// Adds up.
    #[must_use]
    pub fn of(examination: &HeapExamination) -> Self {
        let mut sums = Self {
            resident_bytes: Some(0),
            resident_in_use_bytes: Some(0),
            trimmable_bytes: Some(0),
            fragmented_bytes: Some(0),
            out_of_reach_bytes: Some(0),
            swapped_bytes: Some(0),
            ..Self::default()
        };
        for heap in &examination.heaps {
            let total = &heap.total;
            let mapped = &heap.mapped;
            let mapped_bytes = mapped.bytes.unwrap_or(mapped.found_bytes);
            let mapped_chunks = mapped.chunks.unwrap_or(mapped.found_chunks);
            add(&mut sums.obtained_bytes, total.system_bytes);
            add(&mut sums.obtained_bytes, mapped_bytes);
            add(&mut sums.in_use_bytes, total.in_use_bytes);
            add(&mut sums.in_use_bytes, mapped_bytes);
            add(&mut sums.in_use_chunks, total.in_use_chunks);
            add(&mut sums.in_use_chunks, mapped_chunks);
            add(&mut sums.mapped_bytes, mapped_bytes);
            add(&mut sums.mapped_chunks, mapped_chunks);
            add(&mut sums.cached_bytes, total.cached_bytes);
            add(&mut sums.cached_chunks, total.cached_chunks);
            add(&mut sums.binned_bytes, total.binned_bytes);
            add(&mut sums.binned_bytes, total.fast_bytes);
            add(&mut sums.binned_chunks, total.binned_chunks);
            add(&mut sums.binned_chunks, total.fast_chunks);
            add(&mut sums.top_bytes, total.top_bytes);
            add(&mut sums.not_found_bytes, total.not_found_bytes);
            let used = heap
                .arenas
                .iter()
                .filter(|arena| arena.figures.system_bytes > 0);
            add(&mut sums.arenas, used.count() as u64);
            // Where there are no mapped chunks, none of them are in memory.
            let mapped_resident = mapped
                .resident_bytes
                .or((mapped.found_chunks == 0).then_some(0));
            let resident = both(total.resident_bytes, mapped_resident);
            add_known(&mut sums.resident_bytes, resident);
            let in_use = resident
                .zip(total.free_resident_bytes)
                .map(|(resident, free)| resident.saturating_sub(free));
            add_known(&mut sums.resident_in_use_bytes, in_use);
            add_known(&mut sums.trimmable_bytes, total.trimmable_bytes);
            add_known(&mut sums.fragmented_bytes, total.fragmented_bytes);
            let given = both(total.trimmable_bytes, total.fragmented_bytes);
            let rest = total
                .free_resident_bytes
                .zip(given)
                .map(|(free, given)| free.saturating_sub(given));
            add_known(&mut sums.out_of_reach_bytes, rest);
            add_known(&mut sums.swapped_bytes, total.swapped_bytes);
        }
        sums
    }

    /// Bytes that are free, wherever: in thread caches, bins and tops.
    #[must_use]
    pub fn free_bytes(&self) -> u64 {
        self.cached_bytes
            .saturating_add(self.binned_bytes)
            .saturating_add(self.top_bytes)
    }
}

fn add(sum: &mut u64, more: u64) {
    *sum = sum.saturating_add(more);
}

fn both(a: Option<u64>, b: Option<u64>) -> Option<u64> {
    a.zip(b).map(|(a, b)| a.saturating_add(b))
}

fn add_known(sum: &mut Option<u64>, more: Option<u64>) {
    *sum = both(*sum, more);
}
