//! glibc's arithmetic, applied to what was read of its malloc at each memory call (malloc/malloc.c, `sysmalloc`, `systrim`,
//! `munmap_chunk`; malloc/arena.c, `grow_heap`, `new_heap`).
//!
//! The size of a chunk is not told by the move alone, but to a page. Words on the caller's stack between those bounds narrow it
//! down: the places at which the true size stands are the same for every growth of one build of the C library, so places
//! that once held none are out. Steps are resolved when a report is made: what was learnt late helps early ones.

use crate::event::ArenaHeap;
use crate::event::MallocCall;
use crate::event::MallocSeen;
use crate::event::MallocSettings;
use crate::event::MapFlags;
use crate::event::Protection;
use crate::event::SizeCandidate;
use crate::report::Explained;
use crate::report::MallocReport;
use crate::report::SettingsChange;
use crate::report::StepExplanation;
use crate::report::StepReason;
use crate::report::StepTerm;
use crate::report::StepTermKind as Kind;
use crate::units::Address;
use crate::units::Timestamp;

/// Smallest chunk, and what always stays at the top (`MINSIZE`).
const SMALLEST: u64 = 32;
/// Bytes that a chunk in use has beyond its block (`SIZE_SZ`).
const OVERHEAD: u64 = 8;
/// Chunks are multiples of this (`MALLOC_ALIGNMENT`).
const ALIGNMENT: u64 = 16;
/// A program that calls brk, mmap or munmap by itself has so many frames in the C library at most: the system call, and
/// sbrk(3).
const OWN_DEPTH: u32 = 2;
/// Candidates that are kept with a step.
const KEPT_CANDIDATES: usize = 8;
/// Changes of settings that are kept.
const MOST_CHANGES: usize = 32;

/// What is known of a move before the places of sizes are learnt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Explanation {
    reason: StepReason,
    /// Bytes of the move, without sign.
    bytes: u64,
    shape: Shape,
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
    /// Only the reason is known.
    Plain,
}

/// A growth for a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Growth {
    pad: u64,
    left: u64,
    already_open: u64,
    /// Smallest and largest size of the chunk.
    bounds: (u64, u64),
    candidates: [Option<SizeCandidate>; KEPT_CANDIDATES],
}

/// The chunk that a request for so many bytes takes (`checked_request2size`).
fn chunk_for(request: u64) -> u64 {
    (request.saturating_add(OVERHEAD + ALIGNMENT - 1) & !(ALIGNMENT - 1)).max(SMALLEST)
}

/// Where sizes stand on the stack of a thread in `sysmalloc`: places that held a possible one at every growth so far.
#[derive(Clone, Debug, Default)]
struct Places {
    /// Those of the chunk's size; `None` before the first growth.
    chunk: Option<Vec<u16>>,
    /// How many growths these places were learnt from.
    growths: u32,
    /// Those of the number of bytes that was asked for, and how many growths bear them out.
    request: Option<(Vec<u16>, u32)>,
}

/// Keeps of `known` what a growth bears out; the growth's own places if nothing was known yet.
fn narrow(known: &mut Option<Vec<u16>>, seen: Vec<u16>) {
    let left: Vec<u16> = match known {
        None => seen,
        Some(known) => known
            .iter()
            .copied()
            .filter(|place| seen.contains(place))
            .collect(),
    };
    // Another way through the C library, with other frames: what was learnt holds for the usual one.
    if !left.is_empty() {
        *known = Some(left);
    }
}

impl Places {
    fn learn(&mut self, growth: &Growth) {
        let sizes: Vec<SizeCandidate> = growth.sizes().collect();
        // Where a size stands beside the request that it is for, the request is not the size.
        let is_request = |candidate: &SizeCandidate| {
            sizes.iter().any(|other| {
                other.bytes != candidate.bytes && other.bytes == chunk_for(candidate.bytes)
            })
        };
        let chunks = sizes.iter().filter(|candidate| !is_request(candidate));
        narrow(
            &mut self.chunk,
            chunks.map(|candidate| candidate.place).collect(),
        );
        self.growths = self.growths.saturating_add(1);
        let Some(chunk) = self.chunk_of(growth) else {
            return;
        };
        let requests: Vec<u16> = growth
            .candidates
            .iter()
            .flatten()
            .filter(|candidate| candidate.bytes != chunk && chunk_for(candidate.bytes) == chunk)
            .map(|candidate| candidate.place)
            .collect();
        if !requests.is_empty() {
            let (mut known, growths) = match self.request.take() {
                Some((places, growths)) => (Some(places), growths),
                None => (None, 0),
            };
            narrow(&mut known, requests);
            self.request = known.map(|places| (places, growths.saturating_add(1)));
        }
    }

    /// The chunk's size, if the places that are left agree about it.
    fn chunk_of(&self, growth: &Growth) -> Option<u64> {
        let known = self.chunk.as_deref()?;
        let sizes = growth
            .sizes()
            .filter(|candidate| known.contains(&candidate.place));
        let chunk = agreed(sizes.map(|candidate| candidate.bytes))?;
        // One growth alone proves no place, unless what was asked for stands beside it.
        let mut words = growth.candidates.iter().flatten();
        let is_borne_out = self.growths > 1
            || words.any(|word| word.bytes != chunk && chunk_for(word.bytes) == chunk);
        is_borne_out.then_some(chunk)
    }

    /// What was asked for, likewise; one growth alone proves no place.
    fn request_of(&self, growth: &Growth, chunk: u64) -> Option<u64> {
        let (known, growths) = self.request.as_ref()?;
        let words = growth.candidates.iter().flatten();
        let fitting = words.filter(|candidate| {
            known.contains(&candidate.place)
                && candidate.bytes != chunk
                && chunk_for(candidate.bytes) == chunk
        });
        (*growths > 1)
            .then(|| agreed(fitting.map(|candidate| candidate.bytes)))
            .flatten()
    }
}

/// The number that all are; `None` for none, or different ones.
fn agreed(mut numbers: impl Iterator<Item = u64>) -> Option<u64> {
    let first = numbers.next()?;
    numbers.all(|number| number == first).then_some(first)
}

/// A growth of the break by malloc.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LastGrowth {
    top: Address,
    top_bytes: u64,
    from: Address,
    to: Address,
}

/// glibc's malloc in one address space.
#[derive(Clone, Debug)]
pub(super) struct Malloc {
    seen: MallocSeen,
    first: MallocSettings,
    changes: Vec<SettingsChange>,
    places: Places,
    explained: Explained,
    page_size: u64,
    /// The top at the last growth of the break, and where that began.
    last_growth: Option<LastGrowth>,
    /// The mmap threshold became this, and no unmapping has explained it yet.
    raised_to: Option<u64>,
    /// A thread's call of brk was refused last: its next mapping goes on with the arena.
    refused_in: Option<u32>,
}

impl Malloc {
    pub(super) fn new(seen: &MallocSeen, page_size: u64) -> Self {
        Self {
            seen: seen.clone(),
            first: seen.settings,
            changes: Vec::new(),
            places: Places::default(),
            explained: Explained::default(),
            page_size,
            last_growth: None,
            raised_to: None,
            refused_in: None,
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
            refused_in: None,
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

    /// The brk call of this thread was refused.
    pub(super) fn break_refused(&mut self, tid: u32) {
        self.refused_in = Some(tid);
    }

    /// The move of the break from one address to another.
    pub(super) fn break_moved(
        &mut self,
        call: &MallocCall,
        from: Address,
        to: Address,
    ) -> Explanation {
        self.refused_in = None;
        let explanation = if to > from {
            self.break_grew(call, from, to.above(from))
        } else {
            self.break_shrank(call, from, from.above(to))
        };
        let counter = match explanation.reason {
            StepReason::Request => &mut self.explained.break_requests,
            StepReason::TrimByFree => &mut self.explained.trims_by_free,
            StepReason::MallocTrim => &mut self.explained.trims_by_malloc_trim,
            StepReason::NotMalloc => &mut self.explained.not_malloc,
            StepReason::AfterForeignMove => &mut self.explained.after_foreign_moves,
            _ => &mut self.explained.unexplained,
        };
        *counter += 1;
        self.explained.break_requests_exact += u64::from(self.is_exact(&explanation));
        explanation
    }

    fn unit(&self) -> u64 {
        let huge = self
            .seen
            .settings
            .thp_page_bytes
            .filter(|bytes| bytes.is_power_of_two());
        huge.unwrap_or(0).max(self.page_size)
    }

    fn break_grew(&mut self, call: &MallocCall, from: Address, bytes: u64) -> Explanation {
        let settings = self.seen.settings;
        let left = if call.contiguous { call.top_bytes } else { 0 };
        let plain = |reason| Explanation {
            reason,
            bytes,
            shape: Shape::Plain,
        };
        if call.depth.is_some_and(|depth| depth <= OWN_DEPTH) {
            return plain(StepReason::NotMalloc);
        }
        // The same top as at the last growth: malloc has not taken note of that yet, and this one only evens it out
        // (`correction`), after somebody else moved the break.
        let this = LastGrowth {
            top: call.top,
            top_bytes: call.top_bytes,
            from,
            to: from + bytes,
        };
        let last = self
            .last_growth
            .replace(this)
            .filter(|last| (last.top, last.top_bytes) == (call.top, call.top_bytes));
        if let Some(shape) = last.and_then(|last| self.correction(last, from, bytes)) {
            return Explanation {
                reason: StepReason::AfterForeignMove,
                bytes,
                shape,
            };
        }
        // ALIGN_UP (nb + top_pad + MINSIZE - old_size, pagesize), or where huge pages are wanted the break itself.
        let unit = self.unit();
        let most = bytes
            .checked_add(left)
            .and_then(|sum| sum.checked_sub(settings.top_pad_bytes.checked_add(SMALLEST)?))
            .filter(|most| *most >= SMALLEST);
        let Some(most) = most else {
            return plain(StepReason::Unexplained);
        };
        // What is no multiple of pages evens out what somebody else did to the break.
        let is_whole = bytes.is_multiple_of(self.page_size)
            || unit > self.page_size && from.0.wrapping_add(bytes).is_multiple_of(unit);
        if !is_whole || last.is_some() && call.top.0 != 0 {
            return plain(StepReason::Unexplained);
        }
        let least = most
            .saturating_sub(unit - 1)
            .max(SMALLEST)
            .next_multiple_of(ALIGNMENT);
        let largest = most & !(ALIGNMENT - 1);
        let growth = Growth {
            pad: settings.top_pad_bytes,
            left,
            already_open: 0,
            bounds: (least, largest),
            candidates: keep(&call.candidates),
        };
        self.places.learn(&growth);
        Explanation {
            reason: StepReason::Request,
            bytes,
            shape: Shape::Growth(growth),
        }
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
                return Explanation {
                    reason,
                    bytes,
                    shape: Shape::Plain,
                };
            }
        };
        Explanation {
            reason,
            bytes,
            shape: Shape::Trim {
                top: call.top_bytes,
                kept,
            },
        }
    }

    /// A new mapping of private anonymous memory.
    pub(super) fn mapped(
        &mut self,
        tid: u32,
        call: &MallocCall,
        bytes: u64,
        protection: Protection,
        flags: MapFlags,
    ) -> Option<Explanation> {
        let was_refused = self.refused_in.take_if(|refused| *refused == tid).is_some();
        if call.depth.is_none_or(|depth| depth <= OWN_DEPTH) || flags.contains(MapFlags::FIXED) {
            return None;
        }
        let plain = |reason| {
            Some(Explanation {
                reason,
                bytes,
                shape: Shape::Plain,
            })
        };
        if !protection.contains(Protection::WRITE) {
            return flags
                .contains(MapFlags::NORESERVE)
                .then(|| plain(StepReason::ArenaReserved))
                .flatten();
        }
        if was_refused {
            self.explained.break_refusals += 1;
            return plain(StepReason::BreakRefused);
        }
        if bytes < self.seen.settings.mmap_threshold_bytes {
            return None;
        }
        self.explained.mapped_chunks += 1;
        Some(Explanation {
            reason: StepReason::MappedChunk,
            bytes,
            shape: self.mapping(),
        })
    }

    fn mapping(&self) -> Shape {
        // ALIGN_UP (nb + SIZE_SZ, pagesize); since 2.43 with the whole header.
        let is_new = self.seen.version.as_deref().is_some_and(|version| {
            version
                .split_once('.')
                .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
                .is_some_and(|version: (u32, u32)| version >= (2, 43))
        });
        Shape::Mapping {
            header: if is_new { 2 * OVERHEAD } else { OVERHEAD },
            page: self.page_size,
        }
    }

    /// A mapping is gone.
    pub(super) fn unmapped(&mut self, call: &MallocCall, bytes: u64) -> Option<Explanation> {
        let settings = &self.seen.settings;
        let is_own = call.depth.is_none_or(|depth| depth <= OWN_DEPTH);
        if is_own || call.heap.is_some() || !bytes.is_multiple_of(self.page_size) {
            return None;
        }
        // free sets the threshold right before it unmaps.
        let is_news = self
            .raised_to
            .take()
            .is_some_and(|raised| raised == bytes || raised + 2 * OVERHEAD == bytes);
        if !is_news
            && bytes
                < self
                    .first
                    .mmap_threshold_bytes
                    .min(settings.mmap_threshold_bytes)
        {
            return None;
        }
        self.explained.unmapped_chunks += 1;
        Some(Explanation {
            reason: if is_news {
                StepReason::UnmappedChunkRaisedThreshold
            } else {
                StepReason::UnmappedChunk
            },
            bytes,
            shape: self.mapping(),
        })
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
            return Some(Explanation {
                reason: StepReason::ArenaOpened,
                bytes,
                shape: Shape::Plain,
            });
        }
        let growth = self.arena_growth(call, heap, address, bytes)?;
        self.explained.arena_growths += 1;
        Some(Explanation {
            reason: StepReason::ArenaGrew,
            bytes,
            shape: Shape::Growth(growth),
        })
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
        let most = needed
            .checked_add(call.top_bytes)?
            .checked_sub(SMALLEST)
            .filter(|most| *most >= SMALLEST)?;
        Some(Growth {
            pad: 0,
            left: call.top_bytes,
            already_open,
            bounds: (
                most.saturating_sub(self.page_size - 1)
                    .max(SMALLEST)
                    .next_multiple_of(ALIGNMENT),
                most & !(ALIGNMENT - 1),
            ),
            candidates: [None; KEPT_CANDIDATES],
        })
    }

    /// What is known of a move by now.
    pub(super) fn resolve(&self, explanation: &Explanation) -> StepExplanation {
        let mut request = None;
        let (chunk, bounds, terms) = match explanation.shape {
            Shape::Growth(growth) => {
                let chunk = self.places.chunk_of(&growth);
                request = chunk.and_then(|chunk| self.places.request_of(&growth, chunk));
                let terms = growth.terms(explanation.bytes, chunk);
                (chunk, Some(growth.bounds), terms)
            }
            Shape::Correction {
                alignment,
                lost_top,
                rounding,
            } => {
                let mut terms = vec![
                    term(Kind::LostTop, lost_top, false),
                    term(Kind::Alignment, alignment, false),
                    term(Kind::PageRounding, rounding, false),
                ];
                terms.retain(|term| term.bytes != 0);
                (None, None, terms)
            }
            Shape::Trim { top, kept } => (None, None, trim_terms(explanation.bytes, top, kept)),
            Shape::Mapping { header, page } => {
                let most = explanation.bytes.saturating_sub(header);
                let least = most.saturating_sub(page - 1).next_multiple_of(ALIGNMENT);
                let terms = vec![
                    term(Kind::ChunkAndRounding, most, false),
                    term(Kind::Header, header, false),
                ];
                (
                    None,
                    Some((least, most & !(ALIGNMENT - 1))),
                    signed(terms, explanation.reason),
                )
            }
            Shape::Plain => (None, None, Vec::new()),
        };
        let (least, most) = match (chunk, bounds) {
            (Some(chunk), _) => (Some(chunk), Some(chunk)),
            (None, Some((least, most))) => (Some(least), Some(most)),
            (None, None) => (None, None),
        };
        StepExplanation {
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
        }
    }

    /// Whether the chunk of a move is known exactly by now.
    fn is_exact(&self, explanation: &Explanation) -> bool {
        matches!(&explanation.shape, Shape::Growth(growth) if self.places.chunk_of(growth).is_some())
    }
}

fn keep(candidates: &[SizeCandidate]) -> [Option<SizeCandidate>; KEPT_CANDIDATES] {
    let mut kept = [None; KEPT_CANDIDATES];
    for (place, candidate) in kept.iter_mut().zip(candidates) {
        *place = Some(*candidate);
    }
    kept
}

fn term(kind: Kind, bytes: u64, is_taken_off: bool) -> StepTerm {
    let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
    StepTerm {
        kind,
        bytes: if is_taken_off { -bytes } else { bytes },
    }
}

/// What was given back counts against the program's memory.
fn signed(mut terms: Vec<StepTerm>, reason: StepReason) -> Vec<StepTerm> {
    if matches!(
        reason,
        StepReason::UnmappedChunk | StepReason::UnmappedChunkRaisedThreshold
    ) {
        for term in &mut terms {
            term.bytes = -term.bytes;
        }
    }
    terms
}

impl Growth {
    /// The words that may be the chunk's size.
    fn sizes(&self) -> impl Iterator<Item = SizeCandidate> + '_ {
        let (least, most) = self.bounds;
        self.candidates
            .iter()
            .flatten()
            .copied()
            .filter(move |candidate| {
                (least..=most).contains(&candidate.bytes)
                    && candidate.bytes.is_multiple_of(ALIGNMENT)
            })
    }

    fn terms(&self, bytes: u64, chunk: Option<u64>) -> Vec<StepTerm> {
        // What is not chunk or rounding is known.
        let others = self.pad + SMALLEST;
        let both = (bytes + self.left + self.already_open).saturating_sub(others);
        let mut terms = match chunk {
            Some(chunk) => vec![
                term(Kind::Chunk, chunk, false),
                term(Kind::PageRounding, both.saturating_sub(chunk), false),
            ],
            None => vec![term(Kind::ChunkAndRounding, both, false)],
        };
        terms.extend([
            term(Kind::TopPad, self.pad, false),
            term(Kind::SmallestChunk, SMALLEST, false),
            term(Kind::LeftInTop, self.left, true),
            term(Kind::AlreadyOpen, self.already_open, true),
        ]);
        terms.retain(|term| term.bytes != 0);
        terms
    }
}

fn trim_terms(bytes: u64, top: u64, kept: u64) -> Vec<StepTerm> {
    let rounding = top.saturating_sub(kept).saturating_sub(bytes);
    let mut terms = vec![
        term(Kind::Top, top, true),
        term(Kind::Kept, kept, false),
        term(Kind::PageRounding, rounding, false),
    ];
    terms.retain(|term| term.bytes != 0);
    terms
}
