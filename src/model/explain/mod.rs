//! glibc's arithmetic, applied to what was read of its malloc at each memory call (malloc/malloc.c, `sysmalloc`, `systrim`,
//! `munmap_chunk`; malloc/arena.c, `grow_heap`, `new_heap`, `heap_trim`).
//!
//! Steps are resolved when a report is made: what was learnt late helps early ones.

mod growth;
mod places;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use crate::event::ArenaHeap;
use crate::event::MallocCall;
use crate::event::MallocSeen;
use crate::event::MallocSettings;
use crate::event::MapFlags;
use crate::event::Protection;
use crate::report::Explained;
use crate::report::MallocReport;
use crate::report::SettingsChange;
use crate::report::StepExplanation;
use crate::report::StepReason;
use crate::report::StepTerm;
use crate::report::StepTermKind as Kind;
use crate::units::Address;
use crate::units::Timestamp;
use growth::Growth;
use places::Places;

/// Smallest chunk, and what always stays at the top (`MINSIZE`).
const SMALLEST: u64 = 32;
/// Bytes that a chunk in use has beyond its block (`SIZE_SZ`).
const OVERHEAD: u64 = 8;
/// Chunks are multiples of this (`MALLOC_ALIGNMENT`).
const ALIGNMENT: u64 = 16;
/// A program that calls brk or mmap by itself has so many frames in the C library at most: the system call, and sbrk(3).
const OWN_DEPTH: u32 = 2;
/// Changes of settings that are kept.
const MOST_CHANGES: usize = 32;
/// Chunks with mappings of their own that are remembered (malloc itself has no more than `M_MMAP_MAX`, 65,536 by default).
const MOST_MAPPED: usize = 1 << 17;
/// Moves that are remembered as not malloc's although they looked like it.
const MOST_REFUTED: usize = 4096;

/// What is known of a move before the places of sizes are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Explanation {
    reason: StepReason,
    /// Bytes of the move, without sign.
    bytes: u64,
    shape: Shape,
    /// Which move of the break it is; 0 for other calls.
    number: u64,
}

impl Explanation {
    fn of(reason: StepReason, bytes: u64, shape: Shape) -> Self {
        Self {
            reason,
            bytes,
            shape,
            number: 0,
        }
    }

    /// Of which only the reason is known.
    fn plain(reason: StepReason, bytes: u64) -> Self {
        Self::of(reason, bytes, Shape::Plain)
    }
}

/// What a move is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(
    clippy::large_enum_variant,
    reason = "few steps are kept, and most are growths"
)]
enum Shape {
    /// chunk + pad + smallest − left + rounding
    Growth(Growth),
    /// top − kept, down to pages.
    Trim { top: u64, kept: u64 },
    /// alignment + what the old top had + rounding.
    Correction {
        alignment: u64,
        lost_top: u64,
        rounding: u64,
    },
    /// chunk + header, up to pages.
    Mapping { header: u64, page: u64 },
    /// The same, of what a mapping has become.
    Resized { header: u64, page: u64, to: u64 },
    /// Only the reason is known.
    Plain,
}

/// A growth of the break by malloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LastGrowth {
    top: Address,
    top_bytes: u64,
    from: Address,
    to: Address,
    number: u64,
    reason: StepReason,
}

/// A call of brk that was refused.
#[derive(Clone, Copy, Debug)]
struct Refused {
    tid: u32,
    /// What was wanted, where that can be told.
    wanted: Option<Growth>,
}

/// glibc's malloc in one address space.
#[derive(Clone, Debug)]
pub(super) struct Malloc {
    seen: MallocSeen,
    first: MallocSettings,
    changes: Vec<SettingsChange>,
    /// Of what leads to brk, and of what leads to mprotect.
    places: Places,
    places_of_arenas: Places,
    explained: Explained,
    page_size: u64,
    /// The top at the last growth of the break, and where that began.
    last_growth: Option<LastGrowth>,
    /// Where chunks are that have mappings of their own.
    mapped: BTreeSet<Address>,
    /// The mmap threshold became this, and no unmapping has explained it yet.
    raised_to: Option<u64>,
    /// This call of brk was refused last: its thread's next mapping goes on with the arena.
    refused: Option<Refused>,
    /// Moves of the break so far.
    moves: u64,
    /// Those that left the top as it was, as the next one showed: malloc did not make them.
    refuted: BTreeSet<u64>,
}

impl Malloc {
    pub(super) fn new(seen: &MallocSeen, page_size: u64) -> Self {
        Self {
            seen: seen.clone(),
            first: seen.settings,
            changes: Vec::new(),
            places: Places::default(),
            places_of_arenas: Places::default(),
            explained: Explained::default(),
            page_size,
            last_growth: None,
            mapped: BTreeSet::new(),
            raised_to: None,
            refused: None,
            moves: 0,
            refuted: BTreeSet::new(),
        }
    }

    /// Its settings are others now.
    pub(super) fn changed(&mut self, time: Timestamp, seen: &MallocSeen) {
        if self.changes.len() < MOST_CHANGES {
            self.changes.push(SettingsChange {
                time_ns: time,
                settings: seen.settings,
            });
        }
        let (before, after) = (
            self.seen.settings.mmap_threshold_bytes,
            seen.settings.mmap_threshold_bytes,
        );
        self.raised_to = (after > before).then_some(after);
        self.seen = seen.clone();
    }

    pub(super) fn forked(&self) -> Self {
        Self {
            first: self.seen.settings,
            changes: Vec::new(),
            explained: Explained::default(),
            refused: None,
            ..self.clone()
        }
    }

    pub(super) fn report(&self) -> MallocReport {
        MallocReport {
            file: self.seen.file.clone(),
            version: self.seen.version.clone(),
            first_settings: self.first,
            last_settings: self.seen.settings,
            changes: self.changes.clone(),
            explained: self.explained,
        }
    }

    /// The brk call of this thread, for so many bytes more, was refused.
    pub(super) fn break_refused(&mut self, tid: u32, call: &MallocCall, bytes: u64) {
        let wanted = self.growth(call, bytes);
        if let Some(wanted) = &wanted {
            self.places.learn(wanted);
        }
        self.refused = Some(Refused { tid, wanted });
    }

    /// The move of the break from one address to another.
    pub(super) fn break_moved(
        &mut self,
        call: &MallocCall,
        from: Address,
        to: Address,
    ) -> Explanation {
        self.refused = None;
        self.moves += 1;
        let explanation = if to > from {
            self.break_grew(call, from, to.above(from))
        } else {
            self.break_shrank(call, from, from.above(to))
        };
        *self.counter(explanation.reason) += 1;
        self.explained.break_requests_exact += u64::from(self.is_exact(&explanation));
        Explanation {
            number: self.moves,
            ..explanation
        }
    }

    /// Where moves of the break for this reason are counted.
    fn counter(&mut self, reason: StepReason) -> &mut u64 {
        let explained = &mut self.explained;
        match reason {
            StepReason::Request => &mut explained.break_requests,
            StepReason::TrimByFree => &mut explained.trims_by_free,
            StepReason::MallocTrim => &mut explained.trims_by_malloc_trim,
            StepReason::NotMalloc => &mut explained.not_malloc,
            StepReason::AfterForeignMove => &mut explained.after_foreign_moves,
            _ => &mut explained.unexplained,
        }
    }

    fn unit(&self) -> u64 {
        let huge = self
            .seen
            .settings
            .thp_page_bytes
            .filter(|bytes| bytes.is_power_of_two());
        huge.unwrap_or(0).max(self.page_size)
    }

    /// ALIGN_UP (nb + top_pad + MINSIZE - old_size, pagesize), or where huge pages are wanted the break itself is aligned.
    fn growth(&self, call: &MallocCall, bytes: u64) -> Option<Growth> {
        let left = if call.contiguous { call.top_bytes } else { 0 };
        let growth = Growth::of(bytes, self.unit(), self.seen.settings.top_pad_bytes, left)?;
        Some(growth.with(&call.candidates))
    }

    fn break_grew(&mut self, call: &MallocCall, from: Address, bytes: u64) -> Explanation {
        if call.depth.is_some_and(|depth| depth <= OWN_DEPTH) {
            return Explanation::plain(StepReason::NotMalloc, bytes);
        }
        // The same top as at the last growth: either malloc has not taken note of that yet, and this one only evens it out
        // (`correction`), after somebody else moved the break; or it was not malloc's.
        let last = self
            .last_growth
            .filter(|last| (last.top, last.top_bytes) == (call.top, call.top_bytes));
        let correction = last.and_then(|last| self.correction(last, from, bytes));
        let explanation = match (correction, last) {
            (Some(shape), _) => Explanation::of(StepReason::AfterForeignMove, bytes, shape),
            (None, last) => {
                if let Some(last) = last {
                    self.refute(last);
                }
                self.requested(call, from, bytes)
            }
        };
        self.last_growth = Some(LastGrowth {
            top: call.top,
            top_bytes: call.top_bytes,
            from,
            to: from + bytes,
            number: self.moves,
            reason: explanation.reason,
        });
        explanation
    }

    fn requested(&mut self, call: &MallocCall, from: Address, bytes: u64) -> Explanation {
        let unit = self.unit();
        // What is no multiple of pages evens out what somebody else did to the break.
        let is_whole = bytes.is_multiple_of(self.page_size)
            || unit > self.page_size && from.0.wrapping_add(bytes).is_multiple_of(unit);
        match self.growth(call, bytes).filter(|_| is_whole) {
            Some(growth) => {
                self.places.learn(&growth);
                Explanation::of(StepReason::Request, bytes, Shape::Growth(growth))
            }
            None => Explanation::plain(StepReason::Unexplained, bytes),
        }
    }

    /// A growth that left the top as it was: malloc did not make it.
    fn refute(&mut self, last: LastGrowth) {
        let is_told_so = !matches!(last.reason, StepReason::Request | StepReason::Unexplained);
        if is_told_so || self.refuted.len() >= MOST_REFUTED || !self.refuted.insert(last.number) {
            return;
        }
        let told = self.counter(last.reason);
        *told = told.saturating_sub(1);
        self.explained.not_malloc += 1;
    }

    /// `sysmalloc`, where brk is not where the old top ends: the new piece is aligned, as much is obtained again as the old top
    /// had, and the end of it all is rounded up to pages. `None` where that is not the move.
    fn correction(&self, last: LastGrowth, from: Address, bytes: u64) -> Option<Shape> {
        if last.to != from {
            return None;
        }
        let alignment = last.from.0.wrapping_neg() & (ALIGNMENT - 1);
        let end = from.0.checked_add(alignment)?.checked_add(last.top_bytes)?;
        let rounding = end.checked_next_multiple_of(self.unit())? - end;
        let sum = alignment
            .checked_add(last.top_bytes)?
            .checked_add(rounding)?;
        (sum == bytes).then_some(Shape::Correction {
            alignment,
            lost_top: last.top_bytes,
            rounding,
        })
    }

    /// `systrim`: ALIGN_DOWN (top_size - MINSIZE - 1 - pad, pagesize), with the pad of free or the argument of malloc_trim.
    fn break_shrank(&self, call: &MallocCall, from: Address, bytes: u64) -> Explanation {
        let unit = self.unit();
        let trimmed = |pad: u64| {
            call.top_bytes
                .checked_sub(SMALLEST + 1)
                .and_then(|area| area.checked_sub(pad))
                .map(|extra| extra & !(unit - 1))
        };
        let settings = &self.seen.settings;
        let is_own = call.depth.is_some_and(|depth| depth <= OWN_DEPTH);
        let ends_at_break = call.top.0.checked_add(call.top_bytes) == Some(from.0);
        let reason = if is_own || !ends_at_break {
            StepReason::NotMalloc
        } else if trimmed(settings.top_pad_bytes) == Some(bytes)
            && call.top_bytes >= settings.trim_threshold_bytes
        {
            StepReason::TrimByFree
        } else if trimmed(0).is_some_and(|most| bytes <= most)
            && bytes.is_multiple_of(self.page_size)
        {
            StepReason::MallocTrim
        } else {
            StepReason::Unexplained
        };
        let kept = match reason {
            StepReason::TrimByFree => settings.top_pad_bytes + SMALLEST + 1,
            StepReason::MallocTrim if trimmed(0) == Some(bytes) => SMALLEST + 1,
            // malloc_trim's argument is known to a page only.
            StepReason::MallocTrim => call.top_bytes - bytes,
            _ => {
                return Explanation::plain(reason, bytes);
            }
        };
        let shape = Shape::Trim {
            top: call.top_bytes,
            kept,
        };
        Explanation::of(reason, bytes, shape)
    }

    /// A new mapping of private anonymous memory.
    pub(super) fn mapped(
        &mut self,
        tid: u32,
        call: &MallocCall,
        address: Address,
        bytes: u64,
        protection: Protection,
        flags: MapFlags,
    ) -> Option<Explanation> {
        let refused = self.refused.take_if(|refused| refused.tid == tid);
        if call.depth.is_none_or(|depth| depth <= OWN_DEPTH) || flags.contains(MapFlags::FIXED) {
            return None;
        }
        if !protection.contains(Protection::WRITE) {
            let is_arena = flags.contains(MapFlags::NORESERVE);
            return is_arena.then(|| Explanation::plain(StepReason::ArenaReserved, bytes));
        }
        if let Some(refused) = refused {
            self.explained.break_refusals += 1;
            // `sysmalloc_mmap_fallback`: as much as brk was to bring, and what the top still has once more, as that cannot be
            // joined; and never less than a mapping is to have.
            let shape = refused.wanted.map_or(Shape::Plain, |mut wanted| {
                wanted.left = 0;
                wanted.rounding = Kind::MappingRounding;
                Shape::Growth(wanted)
            });
            return Some(Explanation::of(StepReason::BreakRefused, bytes, shape));
        }
        if bytes < self.seen.settings.mmap_threshold_bytes {
            return None;
        }
        self.explained.mapped_chunks += 1;
        if self.mapped.len() < MOST_MAPPED {
            self.mapped.insert(address);
        }
        Some(Explanation::of(
            StepReason::MappedChunk,
            bytes,
            self.mapping(),
        ))
    }

    /// ALIGN_UP (nb + SIZE_SZ, pagesize); since 2.43 with the whole header.
    fn header(&self) -> u64 {
        let is_new = self.seen.version.as_deref().is_some_and(|version| {
            version
                .split_once('.')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
                .is_some_and(|version: (u32, u32)| version >= (2, 43))
        });
        if is_new { 2 * OVERHEAD } else { OVERHEAD }
    }

    fn mapping(&self) -> Shape {
        Shape::Mapping {
            header: self.header(),
            page: self.page_size,
        }
    }

    /// A mapping is gone. Only one that was seen to become a chunk, or that raised the threshold, is known to have been one:
    /// threads' stacks, and much else, go the same way.
    pub(super) fn unmapped(&mut self, address: Address, bytes: u64) -> Option<Explanation> {
        let was_chunk = self.mapped.remove(&address);
        // free sets the threshold right before it unmaps.
        let is_news = self.raised_to.take().is_some_and(|raised| {
            raised == bytes || raised.checked_add(2 * OVERHEAD) == Some(bytes)
        });
        let reason = match (is_news, was_chunk) {
            (true, _) => StepReason::UnmappedChunkRaisedThreshold,
            (false, true) => StepReason::UnmappedChunk,
            (false, false) => return None,
        };
        self.explained.unmapped_chunks += 1;
        Some(Explanation::of(reason, bytes, self.mapping()))
    }

    /// A mapping became larger or smaller, or moved (`mremap_chunk`).
    pub(super) fn remapped(
        &mut self,
        from: Address,
        to: Address,
        old_bytes: u64,
        new_bytes: u64,
    ) -> Option<Explanation> {
        if !self.mapped.remove(&from) {
            return None;
        }
        self.mapped.insert(to);
        let shape = Shape::Resized {
            header: self.header(),
            page: self.page_size,
            to: new_bytes,
        };
        let bytes = old_bytes.abs_diff(new_bytes);
        Some(Explanation::of(StepReason::ResizedChunk, bytes, shape))
    }

    /// Memory of a thread's arena was opened by mprotect.
    pub(super) fn opened(
        &mut self,
        call: &MallocCall,
        address: Address,
        bytes: u64,
    ) -> Option<Explanation> {
        let heap = call.heap?;
        if call.depth.is_some_and(|depth| depth < OWN_DEPTH) {
            return None;
        }
        if address == heap.start && heap.arena.is_none() {
            self.explained.arena_growths += 1;
            return Some(Explanation::plain(StepReason::ArenaOpened, bytes));
        }
        let growth = self.arena_growth(call, heap, address, bytes)?;
        self.places_of_arenas.learn(&growth);
        self.explained.arena_growths += 1;
        Some(Explanation::of(
            StepReason::ArenaGrew,
            bytes,
            Shape::Growth(growth),
        ))
    }

    /// `grow_heap`: the heap needs ALIGN_UP (MINSIZE + nb - old_size, pagesize) more, and opens what is not open yet.
    fn arena_growth(
        &self,
        call: &MallocCall,
        heap: ArenaHeap,
        address: Address,
        bytes: u64,
    ) -> Option<Growth> {
        if heap.start.0.checked_add(heap.opened_bytes)? != address.0 {
            return None;
        }
        let already_open = heap.opened_bytes.checked_sub(heap.bytes)?;
        let needed = bytes.checked_add(already_open)?;
        let mut growth = Growth::of(needed, self.page_size, 0, call.top_bytes)?;
        growth.already_open = already_open;
        Some(growth.with(&call.candidates))
    }

    /// Pages were given back by madvise while the memory stayed. `in_heap` says that they lie below the break.
    pub(super) fn advised(
        &mut self,
        call: &MallocCall,
        address: Address,
        bytes: u64,
        in_heap: bool,
    ) {
        let end = address.0.checked_add(bytes);
        let is_end_of_heap = call
            .heap
            .is_some_and(|heap| end.is_some() && heap.start.0.checked_add(heap.bytes) == end);
        let explained = &mut self.explained;
        let (calls, sum) = if is_end_of_heap {
            // `heap_trim`, `shrink_heap`: right before the heap becomes so much smaller.
            (
                &mut explained.arena_shrinks,
                &mut explained.arena_shrunk_bytes,
            )
        } else if (call.heap.is_some() || in_heap) && call.depth.is_some_and(|depth| depth >= 2) {
            // `mtrim`: whole pages inside of chunks that are free.
            (
                &mut explained.malloc_trim_advices,
                &mut explained.malloc_trim_advised_bytes,
            )
        } else {
            return;
        };
        *calls += 1;
        *sum = sum.saturating_add(bytes);
    }

    /// What is known of a move by now. Where parts are named, they add up to it.
    pub(super) fn resolve(&self, explanation: &Explanation) -> StepExplanation {
        if self.refuted.contains(&explanation.number) {
            return StepExplanation::plain(StepReason::NotMalloc);
        }
        self.sum_of(explanation)
            .unwrap_or_else(|| StepExplanation::plain(StepReason::Unexplained))
    }

    /// `None` where the parts are no sum, as with numbers that no program has.
    fn sum_of(&self, explanation: &Explanation) -> Option<StepExplanation> {
        let bytes = explanation.bytes;
        let mut request = None;
        let mut bounds = None;
        let mut chunk = None;
        let terms = match &explanation.shape {
            Shape::Growth(growth) => {
                let places = self.places_for(explanation.reason);
                chunk = places.chunk_of(growth);
                request = chunk.and_then(|chunk| places.request_of(growth, chunk));
                bounds = Some(growth.bounds());
                growth.terms(bytes, chunk)?
            }
            Shape::Correction {
                alignment,
                lost_top,
                rounding,
            } => parts([
                term(Kind::LostTop, *lost_top, false)?,
                term(Kind::Alignment, *alignment, false)?,
                term(Kind::PageRounding, *rounding, false)?,
            ]),
            Shape::Trim { top, kept } => {
                let rounding = top.checked_sub(*kept)?.checked_sub(bytes)?;
                parts([
                    term(Kind::Top, *top, true)?,
                    term(Kind::Kept, *kept, false)?,
                    term(Kind::PageRounding, rounding, false)?,
                ])
            }
            Shape::Resized { header, page, to } => {
                bounds = Some(chunk_in_mapping(to.checked_sub(*header)?, *page));
                Vec::new()
            }
            Shape::Mapping { header, page } => {
                let most = bytes.checked_sub(*header)?;
                bounds = Some(chunk_in_mapping(most, *page));
                // What was given back counts against the program's memory.
                let is_gone = explanation.reason != StepReason::MappedChunk;
                parts([
                    term(Kind::ChunkAndRounding, most, is_gone)?,
                    term(Kind::Header, *header, is_gone)?,
                ])
            }
            Shape::Plain => Vec::new(),
        };
        let (least, most) = match (chunk, bounds) {
            (Some(chunk), _) => (Some(chunk), Some(chunk)),
            (None, Some((least, most))) => (Some(least), Some(most)),
            (None, None) => (None, None),
        };
        Some(StepExplanation {
            reason: explanation.reason,
            chunk_bytes: chunk,
            // nb = (n + 8 + 15) & ~15, 32 at least.
            request_min_bytes: request.or(least.map(|least| {
                if least <= SMALLEST {
                    0
                } else {
                    least - OVERHEAD - (ALIGNMENT - 1)
                }
            })),
            request_max_bytes: request.or(most.map(|most| most.saturating_sub(OVERHEAD))),
            terms,
        })
    }

    fn places_for(&self, reason: StepReason) -> &Places {
        match reason {
            StepReason::ArenaGrew => &self.places_of_arenas,
            _ => &self.places,
        }
    }

    /// Whether the chunk of a move is known exactly by now.
    fn is_exact(&self, explanation: &Explanation) -> bool {
        let places = self.places_for(explanation.reason);
        matches!(&explanation.shape, Shape::Growth(growth) if places.chunk_of(growth).is_some())
    }
}

/// Smallest and largest chunk for which a mapping has room for so much.
fn chunk_in_mapping(most: u64, page: u64) -> (u64, u64) {
    let least = most.saturating_sub(page - 1).next_multiple_of(ALIGNMENT);
    (least, most & !(ALIGNMENT - 1))
}

/// A part of a sum; `None` for more bytes than any program has.
fn term(kind: Kind, bytes: u64, is_taken_off: bool) -> Option<StepTerm> {
    let bytes = i64::try_from(bytes).ok()?;
    Some(StepTerm {
        kind,
        bytes: if is_taken_off { -bytes } else { bytes },
    })
}

/// Without those that are nothing.
fn parts<const NUMBER: usize>(terms: [StepTerm; NUMBER]) -> Vec<StepTerm> {
    terms.into_iter().filter(|term| term.bytes != 0).collect()
}
