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
use super::free_lists::FastChunks;
use super::free_lists::FreedChunks;
use super::layout;
use super::layout::Located;
use super::locate;
use super::mapped;
use super::mapped::Expected;
use super::mapped::MappedFound;
use super::renewed::Renewed;
use super::sums::add;
use super::sums::arena_of;
use super::sums::bytes_of;
use super::sums::mallinfo;
use super::sums::plus;
use super::walk;
use super::walk::End;
use super::walk::Found;
use super::walk::Stretch;
use crate::event::Arena;
use crate::event::GlibcHeap;
use crate::event::MallocSettings;
use crate::event::MappedChunks;
use crate::event::Pin;
use crate::event::ThreadCaches;
use crate::units::Address;

/// So long the program may stand for its fast bins; what takes longer is read while it runs.
const STANDING_PATIENCE: Duration = Duration::from_millis(1);
/// Arenas that are listed one by one.
const LISTED_ARENAS: usize = 1024;
/// A stretch in which the program's doings got in our way is walked through so often.
const ATTEMPTS: u32 = 4;
/// Bytes that are looked at in search of where the main arena goes on, and lead nowhere: what looks like a chunk may be
/// followed for long, from each page anew. Half a second or so.
const MOST_IN_VAIN: u64 = 512 << 20;

/// What is to be read of a malloc while the program stands still.
#[derive(Debug)]
pub struct Standing {
    pub(super) located: Located,
    pub(super) settings: Option<MallocSettings>,
    /// `mp_.n_mmaps`, `mp_.mmapped_mem`.
    pub(super) mapped: Option<Expected>,
    /// `mp_.sbrk_base`.
    pub(super) break_base: Option<u64>,
    pub(super) arenas: Vec<ArenaState>,
    pub(super) arenas_problem: Option<String>,
    pub(super) caches: Caches,
    pub(super) fast: FastChunks,
    pub(super) threads_are_known: bool,
}

/// Memory of arenas and of mapped chunks.
struct HeapMemory<'a> {
    image: &'a dyn Image,
}

impl MayHoldChunks for HeapMemory<'_> {
    fn end(&self, address: u64) -> Option<u64> {
        arena::end_of_writable(self.image, address)
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
pub(super) struct Walked {
    pub(super) state: ArenaState,
    pub(super) segments: u64,
    pub(super) found: Found,
    /// Stretches of memory that are its own.
    pub(super) ranges: Vec<(u64, u64)>,
    /// Bytes of its memory that were walked through, or are known to be something else.
    pub(super) covered: u64,
    /// What got in the way.
    pub(super) problem: Option<String>,
    pub(super) top_trimmable: Option<u64>,
    pub(super) pins: Vec<Pin>,
}

impl Walked {
    /// What was found of it beyond what it obtained, if anything.
    pub(super) fn too_much(&self) -> Option<String> {
        let bytes = self.covered.checked_sub(self.state.system_bytes)?;
        (bytes != 0).then(|| {
            format!(
                "the arena at {:#x} obtained {} bytes, and {bytes} more were found",
                self.state.address, self.state.system_bytes
            )
        })
    }
}

/// Looks through the chunks. `is_still` tells whether the program stands still meanwhile.
#[must_use]
pub fn examine(image: &dyn Image, standing: Standing, is_still: bool) -> GlibcHeap {
    examine_within(image, standing, is_still, MOST_IN_VAIN)
}

/// The same, with a limit of one's own to the bytes that are looked at in vain.
pub(super) fn examine_within(
    image: &dyn Image,
    mut standing: Standing,
    is_still: bool,
    in_vain: u64,
) -> GlibcHeap {
    standing.fast.follow(image, None);
    let freed = FreedChunks::new(&standing.caches.chunks, &standing.fast.chunks);
    // They are known by their addresses now.
    standing.fast.chunks = Vec::new();
    let standing = &standing;
    let examiner = Examiner {
        image,
        standing,
        freed: &freed,
        in_vain,
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

pub(super) struct Examiner<'a> {
    pub(super) image: &'a dyn Image,
    pub(super) standing: &'a Standing,
    pub(super) freed: &'a FreedChunks,
    /// Bytes that may be looked at in vain, for each walk through an arena.
    pub(super) in_vain: u64,
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
            // It may have grown beyond the memory that we knew of.
            let renewed = Renewed::of(self.image);
            let image = renewed.as_ref().map_or(self.image, |image| image);
            let Some(state) = ArenaState::read(image, state.address, &self.standing.located) else {
                break;
            };
            walked = Examiner { image, ..*self }.arena(&state);
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
        if let Some(flaw) = state.flaw {
            // What was found on the way follows from it.
            walked.problem = Some(if state.is_main {
                format!("the main arena makes no sense: {flaw}")
            } else {
                format!("the arena at {:#x} makes no sense: {flaw}", state.address)
            });
        }
        if let Some(size) = state.odd_top_size {
            let top = state.top;
            walked.problem.get_or_insert_with(|| {
                format!("the top at {top:#x} says {size} bytes of itself, unless a thread is in the midst of cutting a chunk from it")
            });
        }
        walked
    }

    /// Nothing of it has been walked through yet.
    pub(super) fn new_walk(state: &ArenaState) -> Walked {
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

    /// Chunks of an arena from here to there.
    pub(super) fn stretch(&self, state: &ArenaState, first_chunk: u64, end: u64) -> Stretch {
        Stretch {
            first_chunk,
            end,
            top: state.top,
            is_main: state.is_main,
            bins: arena::bins_range(state.address, self.standing.located.arena),
            memory: (1 << 12, 1 << 56),
        }
    }

    /// The heaps of all arenas but the main one.
    pub(super) fn other_heaps(&self) -> Vec<(u64, u64)> {
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
            let (found, how) = walk::walk(self.image, stretch, self.freed);
            let header = heap.first_chunk.saturating_sub(heap.start);
            let bytes = bytes_of(&found, state, how == End::Top);
            match how {
                // Its heap may end behind its fence by less than a chunk.
                End::Fence(behind) if heap.end.saturating_sub(behind) >= SMALLEST_CHUNK => {
                    walked.covered = walked.covered.saturating_add(header).saturating_add(bytes);
                    walked.problem.get_or_insert_with(|| {
                        format!("the chunks end at {behind:#x}, before their heap does")
                    });
                }
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
}

/// Why memory that is swapped out was left.
pub(super) fn swapped_out(bytes: u64) -> String {
    format!("{bytes} bytes are swapped out, or lie behind such memory, and were not looked at")
}
