//! A heap of glibc's, looked through: arenas, caches and lists while the program stands still, then its chunks, which it
//! need not stand still for.

use std::time::Duration;
use std::time::Instant;

use super::Image;
use super::arena;
use super::arena::ArenaState;
use super::arena::Heap;
use super::arena::SMALLEST_CHUNK;
use super::caches;
use super::caches::Caches;
use super::caches::MayHoldChunks;
use super::classes::Classes;
use super::free_lists;
use super::free_lists::FastChunks;
use super::free_lists::FreedChunks;
use super::layout;
use super::layout::Located;
use super::locate;
use super::mapped;
use super::mapped::Expected;
use super::mapped::MappedFound;
use super::pages::PageSums;
use super::pages::Residence;
use super::walk;
use super::walk::End;
use super::walk::Found;
use super::walk::LAST_CHUNKS;
use super::walk::Stretch;
use crate::event::Arena;
use crate::event::ArenaFigures;
use crate::event::CheckOutcome;
use crate::event::GlibcHeap;
use crate::event::HeapCheck;
use crate::event::Mallinfo;
use crate::event::MallocSettings;
use crate::event::MappedChunks;
use crate::event::Pin;
use crate::event::ThreadCaches;
use crate::mapping::MappingKind;
use crate::units::Address;

/// So long the program may stand for its fast bins; what takes longer is read while it runs.
const STANDING_PATIENCE: Duration = Duration::from_millis(1);
/// Arenas that are listed one by one.
const LISTED_ARENAS: usize = 1024;
/// A stretch in which the program's doings got in our way is walked through so often.
const ATTEMPTS: u32 = 4;
/// Most stretches of the main arena.
const MOST_STRETCHES: usize = 65_536;
/// Pins that are listed.
const PINS: usize = 10;
/// malloc_trim keeps a smallest chunk and one byte at the top (malloc.c, `systrim`).
const KEPT_AT_TOP: u64 = SMALLEST_CHUNK + 1;

/// What is to be read of a malloc while the program stands still.
#[derive(Debug)]
pub struct Standing {
    located: Located,
    settings: Option<MallocSettings>,
    /// `mp_.n_mmaps`, `mp_.mmapped_mem`.
    mapped: Option<Expected>,
    /// `mp_.sbrk_base`.
    break_base: Option<u64>,
    arenas: Vec<ArenaState>,
    arenas_problem: Option<String>,
    caches: Caches,
    fast: FastChunks,
    threads_are_known: bool,
}

/// Memory of arenas and of mapped chunks.
struct HeapMemory<'a> {
    image: &'a dyn Image,
}

impl MayHoldChunks for HeapMemory<'_> {
    fn may_hold(&self, address: u64) -> bool {
        let mappings = self.image.mappings();
        let index = mappings.partition_point(|mapping| mapping.end.0 <= address);
        mappings.get(index).is_some_and(|mapping| {
            mapping.start.0 <= address
                && mapping.permissions.write
                && matches!(mapping.kind(), MappingKind::Heap | MappingKind::Anonymous)
        })
    }
}

/// Reads what changes at any moment: arenas, thread caches, fast bins. `None` when nobody has called this malloc.
/// `thread_pointers` are those of all threads; `None` when they are not known.
#[must_use]
pub fn stand(
    image: &dyn Image,
    located: &Located,
    thread_pointers: Option<&[u64]>,
) -> Option<Standing> {
    let (arenas, arenas_problem) = arena::read_arenas(image, located);
    let main = arenas.first()?;
    if main.top == 0 && arenas.len() == 1 {
        return None;
    }
    let settings = locate::settings(image, located);
    let counts = located
        .parameters
        .and_then(|parameters| locate::counts(image, parameters));
    let slots = settings.and_then(|settings| settings.tcache_count);
    let caches = caches::find(
        image,
        thread_pointers.unwrap_or_default(),
        &HeapMemory { image },
        slots,
    );
    let mut fast = FastChunks::new(&arenas, caches.links);
    // Millions of chunks are left for when the program may run.
    fast.follow(image, Some(Instant::now() + STANDING_PATIENCE));
    Some(Standing {
        located: located.clone(),
        settings,
        mapped: counts.map(|counts| Expected {
            chunks: counts.mapped_chunks,
            bytes: counts.mapped_bytes,
        }),
        break_base: counts.map(|counts| counts.break_base),
        arenas,
        arenas_problem,
        caches,
        fast,
        threads_are_known: thread_pointers.is_some(),
    })
}

/// One arena as it was walked through.
struct Walked {
    state: ArenaState,
    segments: u64,
    found: Found,
    /// Stretches of memory that are its own.
    ranges: Vec<(u64, u64)>,
    /// Bytes of its memory that were walked through, or are known to be something else.
    covered: u64,
    /// What got in the way.
    problem: Option<String>,
    top_trimmable: Option<u64>,
    pins: Vec<Pin>,
}

/// Looks through the chunks. `is_still` tells whether the program stands still meanwhile.
#[must_use]
pub fn examine(image: &dyn Image, mut standing: Standing, is_still: bool) -> GlibcHeap {
    standing.fast.follow(image, None);
    let freed = FreedChunks::new(&standing.caches.chunks, &standing.fast.chunks);
    // They are known by their addresses now.
    standing.fast.chunks = Vec::new();
    let standing = &standing;
    let examiner = Examiner {
        image,
        standing,
        freed,
    };
    let walked: Vec<Walked> = standing
        .arenas
        .iter()
        .map(|state| examiner.patiently(state, is_still))
        .collect();
    let mut taken: Vec<(u64, u64)> = walked
        .iter()
        .flat_map(|arena| arena.ranges.clone())
        .collect();
    taken.sort_unstable();
    let mapped = mapped::find(image, standing.located.arena, &taken, standing.mapped);
    examiner.sum_up(&walked, &mapped, is_still)
}

struct Examiner<'a> {
    image: &'a dyn Image,
    standing: &'a Standing,
    freed: FreedChunks,
}

impl Examiner<'_> {
    /// Walks through an arena; again, where the program changed it under our hands.
    fn patiently(&self, state: &ArenaState, is_still: bool) -> Walked {
        let mut walked = self.arena(state);
        let mut attempts = 1;
        while !is_still
            && attempts < ATTEMPTS
            && (walked.problem.is_some() || walked.covered != walked.state.system_bytes)
        {
            attempts += 1;
            let Some(state) = ArenaState::read(self.image, state.address, &self.standing.located)
            else {
                break;
            };
            walked = self.arena(&state);
        }
        walked
    }

    fn arena(&self, state: &ArenaState) -> Walked {
        let mut walked = if state.is_main {
            self.main_arena(state)
        } else {
            self.other_arena(state)
        };
        walked.ranges.sort_unstable();
        if let Some(size) = state.odd_top_size {
            let top = state.top;
            walked.problem.get_or_insert_with(|| {
                format!("the top at {top:#x} says {size} bytes of itself, unless a thread is in the midst of cutting a chunk from it")
            });
        }
        walked
    }

    fn new_walk(state: &ArenaState) -> Walked {
        Walked {
            state: state.clone(),
            segments: 0,
            found: Found::default(),
            ranges: Vec::new(),
            covered: 0,
            problem: None,
            top_trimmable: None,
            pins: Vec::new(),
        }
    }

    /// The main arena: from the start of the heap to its top, over what others took from the break; and what it mapped where
    /// the break could not go on.
    fn main_arena(&self, state: &ArenaState) -> Walked {
        let mut walked = Self::new_walk(state);
        if state.top == 0 {
            return walked;
        }
        let heap = self.heap_mapping();
        let base = self
            .standing
            .break_base
            .filter(|base| *base != 0)
            .or(heap.map(|(start, _)| start));
        let mut reached_top = false;
        if let Some(base) = base {
            let top_is_in_heap = (base..=heap.map_or(u64::MAX, |(_, end)| end))
                .contains(&state.top)
                && heap.is_none_or(|(_, end)| state.top < end);
            let end = if top_is_in_heap {
                state.end()
            } else {
                heap.map_or(base, |(_, end)| end)
            };
            if base < end {
                reached_top = self.pieces(&mut walked, base, end);
                walked.ranges.push((base, end));
            }
        }
        if !reached_top || walked.covered < state.system_bytes {
            self.mapped_segments(&mut walked, reached_top);
        }
        self.describe_top(&mut walked);
        walked
    }

    /// The mapping below the program break.
    fn heap_mapping(&self) -> Option<(u64, u64)> {
        let mappings = self.image.mappings();
        let mut heap = mappings
            .iter()
            .filter(|mapping| mapping.kind() == MappingKind::Heap);
        let first = heap.next()?;
        // Pages with other protections divide it.
        let last = heap.next_back().unwrap_or(first);
        Some((first.start.0, last.end.0))
    }

    /// Walks from chunk to chunk from `base` on, over what is not malloc's; returns whether the top was reached.
    fn pieces(&self, walked: &mut Walked, base: u64, end: u64) -> bool {
        let Some(mut at) = base.checked_next_multiple_of(arena::CHUNK_ALIGNMENT) else {
            return false;
        };
        walked.covered = walked.covered.saturating_add(at - base);
        for _ in 0..MOST_STRETCHES {
            let stretch = self.stretch(&walked.state, at, end);
            let (found, how) = walk::walk(self.image, stretch, &self.freed);
            walked.segments += 1;
            let walked_bytes = bytes_of(&found, &walked.state, how == End::Top);
            walked.covered = walked.covered.saturating_add(walked_bytes);
            add(&mut walked.found, &found);
            let resume = match how {
                End::Top => return true,
                End::Fence(behind) if behind >= end => return false,
                End::Fence(behind) => {
                    walk::find_chunks(self.image, behind, stretch).inspect(|next| {
                        // What somebody else took counts as the arena's own.
                        walked.covered = walked.covered.saturating_add(next.saturating_sub(behind));
                    })
                }
                End::Swapped(to) => {
                    let next = walk::find_chunks(self.image, to, stretch);
                    let lost_from = at.saturating_add(walked_bytes);
                    if let Some(next) = next {
                        walked
                            .problem
                            .get_or_insert_with(|| swapped_out(next.saturating_sub(lost_from)));
                    }
                    next
                }
                End::Broken { at, why } => {
                    walked
                        .problem
                        .get_or_insert_with(|| format!("the chunk at {at:#x} is none: {why}"));
                    return false;
                }
            };
            match resume {
                Some(next) => at = next,
                None => return false,
            }
        }
        walked.problem = Some(format!("it has more than {MOST_STRETCHES} pieces"));
        false
    }

    fn stretch(&self, state: &ArenaState, first_chunk: u64, end: u64) -> Stretch {
        Stretch {
            first_chunk,
            end,
            top: state.top,
            is_main: state.is_main,
            bins: arena::bins_range(state.address, self.standing.located.arena),
            memory: (1 << 12, 1 << 56),
        }
    }

    /// Looks for what the main arena mapped, as brk was refused: page by page, for chunks that lead to an end.
    fn mapped_segments(&self, walked: &mut Walked, has_top: bool) {
        let mut has_top = has_top;
        let heaps_of_others = self.other_heaps();
        let mut known = walked.ranges.clone();
        known.extend(heaps_of_others);
        known.sort_unstable();
        for mapping in self.image.mappings() {
            if has_top && walked.covered >= walked.state.system_bytes {
                return;
            }
            let is_candidate = matches!(mapping.kind(), MappingKind::Anonymous | MappingKind::Heap)
                && mapping.permissions.read
                && mapping.permissions.write;
            if !is_candidate {
                continue;
            }
            let mut at = mapping.start.0;
            let end = mapping.end.0;
            let mut residence = Residence::new(self.image, at, end);
            while at < end {
                if let Some((_, to)) = known.iter().find(|(from, to)| (*from..*to).contains(&at)) {
                    at = *to;
                    continue;
                }
                at = self.mapped_segment(walked, &mut residence, at, end, &mut has_top);
            }
        }
    }

    /// A stretch of the main arena that begins at this page, if one does; returns where to look next.
    fn mapped_segment(
        &self,
        walked: &mut Walked,
        residence: &mut Residence<'_>,
        at: u64,
        end: u64,
        has_top: &mut bool,
    ) -> u64 {
        let next_page = at.saturating_add(self.image.page_size());
        let (place, to) = residence.place(at);
        if place != super::pages::Place::Resident {
            return to.max(next_page);
        }
        let Some(size) = self.image.word(at.saturating_add(8)) else {
            return next_page;
        };
        let bytes = size & !arena::SIZE_FLAGS;
        if size & arena::SIZE_FLAGS != arena::PREVIOUS_IN_USE
            || bytes < SMALLEST_CHUNK
            || bytes > end - at
        {
            return next_page;
        }
        let holds_top = (at..end).contains(&walked.state.top);
        let stretch_end = if holds_top {
            walked.state.end().min(end)
        } else {
            end
        };
        let stretch = self.stretch(&walked.state, at, stretch_end);
        let (found, how) = walk::walk(self.image, stretch, &self.freed);
        let behind = match how {
            End::Top => walked.state.end(),
            End::Fence(behind) => behind,
            End::Swapped(_) | End::Broken { .. } => return next_page,
        };
        let is_top = how == End::Top;
        *has_top |= is_top;
        walked.segments += 1;
        // A mapping is whole pages; what the fence leaves of the last one is its own as well.
        let whole = behind
            .checked_next_multiple_of(self.image.page_size())
            .unwrap_or(end);
        walked.covered = walked
            .covered
            .saturating_add(whole.min(end).saturating_sub(at));
        walked.ranges.push((at, whole.min(end)));
        add(&mut walked.found, &found);
        whole.max(next_page)
    }

    /// The heaps of all arenas but the main one.
    fn other_heaps(&self) -> Vec<(u64, u64)> {
        self.standing
            .arenas
            .iter()
            .filter(|arena| !arena.is_main && arena.top != 0)
            .flat_map(|arena| self.heaps(arena).0)
            .map(|heap| (heap.start, heap.end))
            .collect()
    }

    fn heaps(&self, state: &ArenaState) -> (Vec<Heap>, Option<String>) {
        let huge = self
            .standing
            .settings
            .and_then(|settings| settings.huge_page_bytes);
        arena::heaps_of(
            self.image,
            state,
            self.standing.located.arena,
            layout::heap_max(huge),
        )
    }

    /// An arena that is not the main one: its heaps.
    fn other_arena(&self, state: &ArenaState) -> Walked {
        let mut walked = Self::new_walk(state);
        if state.top == 0 {
            return walked;
        }
        let (heaps, problem) = self.heaps(state);
        walked.problem = problem;
        for heap in heaps {
            walked.segments += 1;
            walked.ranges.push((heap.start, heap.end));
            let stretch = self.stretch(state, heap.first_chunk, heap.end);
            let (found, how) = walk::walk(self.image, stretch, &self.freed);
            let header = heap.first_chunk.saturating_sub(heap.start);
            let bytes = bytes_of(&found, state, how == End::Top);
            match how {
                // Its heap may end behind its fence by less than a chunk.
                End::Top | End::Fence(_) => {
                    let bytes = heap.end.saturating_sub(heap.start);
                    walked.covered = walked.covered.saturating_add(bytes);
                }
                End::Swapped(to) => {
                    walked.covered = walked.covered.saturating_add(header).saturating_add(bytes);
                    walked.problem.get_or_insert_with(|| {
                        swapped_out(to.saturating_sub(heap.first_chunk).saturating_sub(bytes))
                    });
                }
                End::Broken { at, why } => {
                    walked.covered = walked.covered.saturating_add(header).saturating_add(bytes);
                    walked
                        .problem
                        .get_or_insert_with(|| format!("the chunk at {at:#x} is none: {why}"));
                }
            }
            add(&mut walked.found, &found);
        }
        walked
    }

    /// What the break could drop by: now, and without the chunks below the top.
    fn describe_top(&self, walked: &mut Walked) {
        let state = &walked.state;
        let end = state.end();
        let is_at_break = self.heap_mapping().is_some_and(|(_, heap_end)| {
            // The kernel shows the heap's mapping up to the page of the break.
            state.contiguous
                && Some(heap_end) == end.checked_next_multiple_of(self.image.page_size())
        });
        let page = self.trim_unit();
        let drop_from = |start: u64| {
            (end.saturating_sub(start))
                .checked_sub(KEPT_AT_TOP)
                .map_or(0, |area| area & !page.saturating_sub(1))
        };
        if !is_at_break || walked.found.top_start == 0 {
            walked.top_trimmable = Some(0);
            return;
        }
        let top_start = walked.found.top_start;
        let extra = drop_from(top_start);
        walked.top_trimmable = Residence::new(self.image, end.saturating_sub(extra), end)
            .finish()
            .map(|(resident, _)| resident);
        let kept = walked.found.live.min(LAST_CHUNKS);
        let last: Vec<u64> = (0..kept)
            .map(|back| walked.found.last[(walked.found.live - 1 - back) & (LAST_CHUNKS - 1)])
            .collect();
        for (index, chunk) in last.iter().enumerate().take(PINS) {
            let Some(bytes) = self
                .image
                .word(chunk.saturating_add(8))
                .map(|word| word & !arena::SIZE_FLAGS)
            else {
                break;
            };
            // Without it, all is free down to the end of the next chunk in use.
            let below = match last.get(index + 1) {
                Some(below) => {
                    let size = self
                        .image
                        .word(below.saturating_add(8))
                        .map_or(0, |word| word & !arena::SIZE_FLAGS);
                    below.saturating_add(size)
                }
                None if kept < LAST_CHUNKS => {
                    walked.ranges.first().map_or(*chunk, |(start, _)| *start)
                }
                None => break,
            };
            walked.pins.push(Pin {
                address: Address(chunk.saturating_add(free_lists::HEADER)),
                bytes,
                cached: self.freed.has_cached(*chunk),
                drop_bytes: drop_from(below.min(*chunk)),
            });
        }
    }

    /// The break is moved by multiples of this.
    fn trim_unit(&self) -> u64 {
        let huge = self
            .standing
            .settings
            .and_then(|settings| settings.thp_page_bytes)
            .filter(|bytes| bytes.is_power_of_two());
        huge.unwrap_or(0).max(self.image.page_size())
    }

    fn sum_up(&self, walked: &[Walked], mapped: &MappedFound, is_still: bool) -> GlibcHeap {
        let standing = self.standing;
        let arenas: Vec<Arena> = walked.iter().map(arena_of).collect();
        let total = arenas
            .iter()
            .map(|arena| arena.figures)
            .reduce(|sum, figures| plus(&sum, &figures))
            .unwrap_or_default();
        let mut classes = Classes::default();
        for arena in walked {
            classes.add(&arena.found.classes);
        }
        let heap = GlibcHeap {
            file: standing.located.file.clone(),
            version: standing.located.version.clone(),
            main_arena: Address(standing.located.main_arena),
            settings: standing.settings,
            total,
            mapped: MappedChunks {
                chunks: standing.mapped.map(|expected| expected.chunks),
                bytes: standing.mapped.map(|expected| expected.bytes),
                found_chunks: mapped.chunks,
                found_bytes: mapped.bytes,
                resident_bytes: mapped.resident,
            },
            thread_caches: ThreadCaches {
                threads: standing.caches.threads,
                found: standing.caches.found,
                chunks: standing.caches.chunks.len() as u64,
                bytes: standing
                    .caches
                    .chunks
                    .iter()
                    .fold(0, |sum, chunk| sum.saturating_add(chunk.bytes)),
            },
            mallinfo: mallinfo(walked, &total, standing.mapped),
            trimmable_bytes: total.trimmable_bytes,
            classes: classes.list(),
            pins: walked
                .first()
                .map(|main| main.pins.clone())
                .unwrap_or_default(),
            checks: self.checks(walked, mapped, &total, is_still),
            arenas: Vec::new(),
        };
        GlibcHeap {
            arenas: arenas.into_iter().take(LISTED_ARENAS).collect(),
            ..heap
        }
    }

    fn checks(
        &self,
        walked: &[Walked],
        mapped: &MappedFound,
        total: &ArenaFigures,
        is_still: bool,
    ) -> Vec<HeapCheck> {
        let standing = self.standing;
        let in_the_middle = walked.iter().any(|arena| arena.state.is_locked);
        let judge = |holds: bool| match (holds, is_still && !in_the_middle) {
            (true, _) => CheckOutcome::Holds,
            (false, true) => CheckOutcome::Fails,
            (false, false) => CheckOutcome::Moving,
        };
        let check = |what: &str, outcome, detail| HeapCheck {
            what: what.to_owned(),
            outcome,
            detail,
        };
        let mut checks = vec![check(
            "the list of arenas leads back to its beginning",
            // Read while the program stood still.
            if standing.arenas_problem.is_none() {
                CheckOutcome::Holds
            } else {
                CheckOutcome::Fails
            },
            standing
                .arenas_problem
                .clone()
                .or_else(|| Some(format!("{} arenas", walked.len()))),
        )];
        let broken = walked.iter().find_map(|arena| arena.problem.clone());
        let adds_up = total.not_found_bytes == 0 && broken.is_none();
        let missing = || {
            let bytes = total.not_found_bytes;
            format!("{bytes} of {} bytes were not found", total.system_bytes)
        };
        checks.push(check(
            "chunks lead from one to the next, and add up to what the arenas obtained",
            judge(adds_up),
            match (broken, adds_up) {
                (Some(why), _) => Some(format!("{why}; {}", missing())),
                (None, true) => Some(format!("{} bytes", total.system_bytes)),
                (None, false) => Some(missing()),
            },
        ));
        let met: u64 = walked.iter().map(|arena| arena.found.freed_met).sum();
        let freed = self.freed.len() as u64;
        let lists_hold =
            met == freed && standing.fast.problem.is_none() && !self.freed.has_doubles();
        checks.push(check(
            "every chunk in thread caches and fast bins was met once",
            judge(lists_hold),
            Some(match &standing.fast.problem {
                Some(problem) => problem.clone(),
                None if self.freed.has_doubles() => "a chunk is in two lists".to_owned(),
                None => format!("{met} of {freed}"),
            }),
        ));
        let odd: u64 = walked.iter().map(|arena| arena.found.odd_free_chunks).sum();
        let first_odd = walked.iter().find_map(|arena| arena.found.first_odd);
        checks.push(check(
            "free chunks repeat their size at their end, and have links",
            judge(odd == 0),
            first_odd.map(|at| format!("{odd} do not, the first at {at:#x}")),
        ));
        checks.push(match standing.mapped {
            Some(expected) => check(
                "chunks that are mappings were found, as many as malloc counts",
                judge(mapped.chunks == expected.chunks && mapped.bytes == expected.bytes),
                Some(format!(
                    "{} of {}, {} of {} bytes",
                    mapped.chunks, expected.chunks, mapped.bytes, expected.bytes
                )),
            ),
            None => check(
                "chunks that are mappings were found, as many as malloc counts",
                CheckOutcome::Unknown,
                Some("malloc's parameters were not found".to_owned()),
            ),
        });
        if standing
            .settings
            .is_none_or(|settings| settings.tcache_count != Some(0))
        {
            let caches = &standing.caches;
            let is_known = standing.threads_are_known && caches.found > 0;
            checks.push(check(
                "thread caches were found",
                if is_known {
                    CheckOutcome::Holds
                } else {
                    CheckOutcome::Unknown
                },
                Some(if standing.threads_are_known {
                    format!(
                        "in {} of {} threads; the others have none, or it hides",
                        caches.found, caches.threads
                    )
                } else {
                    "threads could not be asked; cached chunks count as in use".to_owned()
                }),
            ));
        }
        checks
    }
}

fn swapped_out(bytes: u64) -> String {
    format!("{bytes} bytes are swapped out, or lie behind such memory, and were not looked at")
}

/// Bytes that a walk accounts for.
fn bytes_of(found: &Found, state: &ArenaState, is_top: bool) -> u64 {
    let (_, in_use) = found.classes.sums();
    let top = if is_top { state.top_bytes } else { 0 };
    total([
        in_use,
        found.cached_bytes,
        found.fast_bytes,
        found.binned_bytes,
        found.fence_bytes,
        top,
    ])
}

/// The sum; what a damaged heap says of itself may be more than there is.
fn total(parts: [u64; 6]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Adds what one stretch holds.
fn add(sum: &mut Found, more: &Found) {
    let is_first = sum.read_bytes == 0 && sum.live == 0 && sum.binned_chunks == 0;
    sum.classes.add(&more.classes);
    sum.cached_bytes += more.cached_bytes;
    sum.cached_chunks += more.cached_chunks;
    sum.fast_bytes += more.fast_bytes;
    sum.fast_chunks += more.fast_chunks;
    sum.binned_bytes += more.binned_bytes;
    sum.binned_chunks += more.binned_chunks;
    sum.fence_bytes += more.fence_bytes;
    sum.odd_free_chunks += more.odd_free_chunks;
    sum.first_odd = sum.first_odd.or(more.first_odd);
    sum.freed_met += more.freed_met;
    sum.resident += more.resident;
    sum.swapped += more.swapped;
    sum.read_bytes += more.read_bytes;
    sum.is_residence_known = more.is_residence_known && (is_first || sum.is_residence_known);
    sum.pages = PageSums {
        free_resident: sum.pages.free_resident + more.pages.free_resident,
        trimmable: sum.pages.trimmable + more.pages.trimmable,
        fragmented: sum.pages.fragmented + more.pages.fragmented,
    };
    if more.top_start != 0 {
        // Pins are what lies below the top, in the same stretch.
        sum.top_start = more.top_start;
        sum.last = more.last;
        sum.live = more.live;
    }
}

fn arena_of(walked: &Walked) -> Arena {
    let found = &walked.found;
    let state = &walked.state;
    let (in_use_chunks, in_use_bytes) = found.classes.sums();
    let known = |value: u64| found.is_residence_known.then_some(value);
    let has_top = if found.top_start == 0 {
        0
    } else {
        state.top_bytes
    };
    let accounted = total([
        in_use_bytes,
        found.cached_bytes,
        found.fast_bytes,
        found.binned_bytes,
        has_top,
        0,
    ]);
    let not_found_bytes = state.system_bytes.saturating_sub(walked.covered);
    Arena {
        address: Address(state.address),
        is_main: state.is_main,
        contiguous: state.contiguous,
        threads: Some(state.attached_threads),
        segments: walked.segments,
        top: Address(state.top),
        figures: ArenaFigures {
            system_bytes: state.system_bytes,
            in_use_bytes,
            in_use_chunks,
            cached_bytes: found.cached_bytes,
            cached_chunks: found.cached_chunks,
            fast_bytes: found.fast_bytes,
            fast_chunks: found.fast_chunks,
            binned_bytes: found.binned_bytes,
            binned_chunks: found.binned_chunks,
            top_bytes: state.top_bytes,
            other_bytes: state
                .system_bytes
                .saturating_sub(not_found_bytes)
                .saturating_sub(accounted),
            resident_bytes: known(found.resident),
            free_resident_bytes: known(found.pages.free_resident),
            trimmable_bytes: known(found.pages.trimmable)
                .zip(walked.top_trimmable.or((!state.is_main).then_some(0)))
                .map(|(inside, top)| inside.saturating_add(top)),
            fragmented_bytes: known(found.pages.fragmented),
            swapped_bytes: known(found.swapped),
            not_found_bytes,
        },
    }
}

fn plus(a: &ArenaFigures, b: &ArenaFigures) -> ArenaFigures {
    let both = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.saturating_add(b));
    ArenaFigures {
        system_bytes: a.system_bytes.saturating_add(b.system_bytes),
        in_use_bytes: a.in_use_bytes + b.in_use_bytes,
        in_use_chunks: a.in_use_chunks + b.in_use_chunks,
        cached_bytes: a.cached_bytes + b.cached_bytes,
        cached_chunks: a.cached_chunks + b.cached_chunks,
        fast_bytes: a.fast_bytes + b.fast_bytes,
        fast_chunks: a.fast_chunks + b.fast_chunks,
        binned_bytes: a.binned_bytes + b.binned_bytes,
        binned_chunks: a.binned_chunks + b.binned_chunks,
        top_bytes: a.top_bytes.saturating_add(b.top_bytes),
        other_bytes: a.other_bytes.saturating_add(b.other_bytes),
        resident_bytes: both(a.resident_bytes, b.resident_bytes),
        free_resident_bytes: both(a.free_resident_bytes, b.free_resident_bytes),
        trimmable_bytes: both(a.trimmable_bytes, b.trimmable_bytes),
        fragmented_bytes: both(a.fragmented_bytes, b.fragmented_bytes),
        swapped_bytes: both(a.swapped_bytes, b.swapped_bytes),
        not_found_bytes: a.not_found_bytes.saturating_add(b.not_found_bytes),
    }
}

/// What `__libc_mallinfo2` adds up (malloc.c, `int_mallinfo`).
fn mallinfo(walked: &[Walked], total: &ArenaFigures, mapped: Option<Expected>) -> Mallinfo {
    let free = total
        .fast_bytes
        .saturating_add(total.binned_bytes)
        .saturating_add(total.top_bytes);
    Mallinfo {
        arena: total.system_bytes,
        ordblks: total.binned_chunks + walked.len() as u64,
        smblks: total.fast_chunks,
        hblks: mapped.map(|mapped| mapped.chunks),
        hblkhd: mapped.map(|mapped| mapped.bytes),
        fsmblks: total.fast_bytes,
        uordblks: total.system_bytes.saturating_sub(free),
        fordblks: free,
        keepcost: walked.first().map_or(0, |main| main.state.top_bytes),
    }
}
