//! How glibc's malloc stands when it makes a memory call, read while the caller stands at the call's end: malloc takes note of
//! what the call did only after it.

use std::rc::Rc;

use super::Tracer;
use super::call::Finished;
use super::heap_source::LiveImage;
use super::stack::Walked;
use super::sys;
use crate::event::Advice;
use crate::event::ArenaHeap;
use crate::event::EventKind;
use crate::event::MallocCall;
use crate::event::MallocSeen;
use crate::event::MallocSettings;
use crate::event::MapFlags;
use crate::event::Mode;
use crate::event::Protection;
use crate::event::SizeCandidate;
use crate::event::SpaceId;
use crate::heap_walk;
use crate::heap_walk::Located;
use crate::units::Address;

/// So often a malloc is looked for in an address space in which none is found: the first call may come before the C library
/// is loaded.
const MOST_TRIES: u32 = 4;
/// Bytes of the stack in which the size of a chunk is looked for: the frames from brk(2) to `sysmalloc`.
const STACK_BYTES: usize = 256;
/// Most words that are kept.
const MOST_CANDIDATES: usize = 12;
/// Smallest chunk (`MINSIZE`); the top always keeps as much.
const SMALLEST_CHUNK: u64 = 32;
/// A chunk is larger than its block by so much at most, but for the smallest ones.
const LARGEST_PADDING: u64 = 23;
/// `MAP_STACK` (mmap(2)): no memory of malloc's.
const STACK_FLAG: MapFlags = MapFlags(0x2_0000);

/// glibc's malloc in one address space, as far as it is known. A forked child begins with a copy.
#[derive(Clone, Debug, Default)]
pub(super) struct MallocState {
    located: Option<Rc<Located>>,
    tries: u32,
    settings: Option<MallocSettings>,
}

/// What a call gives to tell of malloc.
#[derive(Debug, Default)]
pub(super) struct MallocFacts {
    pub(super) call: Option<Box<MallocCall>>,
    /// Settings that are new.
    pub(super) seen: Option<MallocSeen>,
}

/// A call that may be malloc's.
#[derive(Clone, Copy, Debug)]
enum Concerned {
    /// The break was to move from here to there.
    Break { before: u64, wanted: u64 },
    /// So much was opened at this address.
    Opened { address: u64, bytes: u64 },
    /// Something else happened at this address.
    Memory { address: u64 },
}

impl Concerned {
    fn of(kind: &EventKind) -> Option<Self> {
        match kind {
            EventKind::Brk {
                requested,
                before,
                after,
            } => {
                let before = before.unwrap_or(*after);
                let is_refused = requested.0 != 0 && requested != after;
                let wanted = if is_refused { requested } else { after };
                (before != *after || is_refused).then_some(Self::Break {
                    before: before.0,
                    wanted: wanted.0,
                })
            }
            EventKind::Mmap { flags, result, .. } => {
                let may_be = flags.is_private_anonymous() && !flags.contains(STACK_FLAG);
                let address = result.done().filter(|_| may_be)?;
                Some(Self::Memory { address: address.0 })
            }
            EventKind::Munmap {
                address, result, ..
            } => result
                .is_done()
                .then_some(Self::Memory { address: address.0 }),
            EventKind::Mprotect {
                address,
                length,
                protection,
                result,
            } => {
                let opens =
                    protection.contains(Protection::READ) && protection.contains(Protection::WRITE);
                (opens && result.is_done()).then_some(Self::Opened {
                    address: address.0,
                    bytes: *length,
                })
            }
            EventKind::Madvise {
                address,
                advice: Advice::DONTNEED,
                result,
                ..
            } => result
                .is_done()
                .then_some(Self::Memory { address: address.0 }),
            EventKind::Mremap { result, .. } => result
                .done()
                .map(|address| Self::Memory { address: address.0 }),
            _ => None,
        }
    }
}

impl Tracer {
    /// What is to be told of malloc with a call that has returned in thread `tid`, which stands.
    pub(super) fn malloc_facts(
        &mut self,
        tid: u32,
        space: SpaceId,
        finished: &Finished,
        walked: Option<&Walked>,
    ) -> MallocFacts {
        let Finished::Event(kind) = finished else {
            return MallocFacts::default();
        };
        let Some(concerned) = Concerned::of(kind).filter(|_| self.options.heap) else {
            return MallocFacts::default();
        };
        self.read_malloc(tid, space, concerned, walked)
            .unwrap_or_default()
    }

    fn read_malloc(
        &mut self,
        tid: u32,
        space: SpaceId,
        concerned: Concerned,
        walked: Option<&Walked>,
    ) -> Option<MallocFacts> {
        let located = self.malloc_of(tid, space, concerned)?;
        // Nothing but memory is asked of it.
        let image = LiveImage::bare(tid);
        let settings = heap_walk::settings(&image, &located);
        let state = &mut self.tracees.spaces.get_mut(&space)?.malloc;
        let is_new = settings.is_some() && state.settings != settings;
        state.settings = settings.or(state.settings);
        let seen = settings.filter(|_| is_new).map(|settings| MallocSeen {
            file: located.file.clone(),
            version: located.version.clone(),
            settings,
        });
        let call = match concerned {
            Concerned::Break { before, wanted } => {
                main_arena(tid, &image, &located, settings, before, wanted)
            }
            Concerned::Opened { address, bytes } => {
                let call = other_memory(&image, &located, settings, address)?;
                let candidates = sizes_in_arena(tid, &image, &call, bytes);
                Some(MallocCall { candidates, ..call })
            }
            Concerned::Memory { address } => {
                Some(other_memory(&image, &located, settings, address)?)
            }
        };
        let depth = walked.and_then(Walked::depth_in_first_module);
        Some(MallocFacts {
            call: call.map(|call| Box::new(MallocCall { depth, ..call })),
            seen,
        })
    }

    /// The malloc of an address space; looked for when the break moves, as malloc moves it first of all.
    fn malloc_of(&mut self, tid: u32, space: SpaceId, concerned: Concerned) -> Option<Rc<Located>> {
        let attached = self.recording.mode == Mode::Attach;
        let state = self
            .tracees
            .spaces
            .get_mut(&space)
            .filter(|space| space.recorded)?;
        if state.bundled.is_read() {
            return None;
        }
        let malloc = &mut state.malloc;
        let is_occasion = attached || matches!(concerned, Concerned::Break { .. });
        if malloc.located.is_none() && is_occasion && malloc.tries < MOST_TRIES {
            malloc.tries += 1;
            let image = LiveImage::open(tid).ok()?;
            let located = self.locator.locate(&image).into_iter().next();
            malloc.located = located.map(Rc::new);
        }
        malloc.located.clone()
    }
}

/// The main arena at a move of the break.
fn main_arena(
    tid: u32,
    image: &LiveImage,
    located: &Located,
    settings: Option<MallocSettings>,
    before: u64,
    wanted: u64,
) -> Option<MallocCall> {
    let glance = heap_walk::glance(image, located, located.main_arena)?;
    let mut call = MallocCall {
        top: Address(glance.top),
        top_bytes: glance.top_bytes,
        contiguous: glance.contiguous,
        heap: None,
        depth: None,
        candidates: Vec::new(),
    };
    if wanted > before {
        let old_top = if glance.contiguous {
            glance.top_bytes
        } else {
            0
        };
        let most = settings.and_then(|settings| {
            (wanted - before)
                .checked_add(old_top)?
                .checked_sub(settings.top_pad_bytes.checked_add(SMALLEST_CHUNK)?)
        });
        if let (Some(most), Some(settings)) = (most, settings) {
            let unit = settings
                .thp_page_bytes
                .unwrap_or(0)
                .max(heap_walk::Image::page_size(image));
            call.candidates = candidates(tid, most.saturating_sub(unit - 1), most);
        }
    }
    Some(call)
}

/// Sizes of chunks between two bounds among the words at the end of a thread's stack.
fn candidates(tid: u32, from: u64, to: u64) -> Vec<SizeCandidate> {
    let Some(registers) = sys::stack_registers(tid) else {
        return Vec::new();
    };
    let mut bytes = [0; STACK_BYTES];
    let length = sys::read_memory(tid, registers.stack_pointer(), &mut bytes).unwrap_or(0);
    let (words, _) = bytes[..length].as_chunks::<8>();
    words
        .iter()
        .zip((0_u16..).step_by(8))
        .map(|(word, place)| SizeCandidate {
            place,
            bytes: u64::from_le_bytes(*word),
        })
        .filter(|candidate| {
            // What was asked for may stand there as well: a few bytes less.
            (from.max(SMALLEST_CHUNK).saturating_sub(LARGEST_PADDING)..=to)
                .contains(&candidate.bytes)
                && candidate.bytes != 0
        })
        .take(MOST_CANDIDATES)
        .collect()
}

/// Sizes of the chunk for which a thread's arena may have grown by so many bytes.
fn sizes_in_arena(
    tid: u32,
    image: &LiveImage,
    call: &MallocCall,
    bytes: u64,
) -> Vec<SizeCandidate> {
    let most = call.heap.and_then(|heap| {
        heap.arena?;
        heap.opened_bytes
            .checked_sub(heap.bytes)?
            .checked_add(bytes)?
            .checked_add(call.top_bytes)?
            .checked_sub(SMALLEST_CHUNK)
    });
    most.map_or_else(Vec::new, |most| {
        let page = heap_walk::Image::page_size(image);
        candidates(tid, most.saturating_sub(page - 1), most)
    })
}

/// The heap of another arena in which an address lies, or, where it lies in none, the main arena.
fn other_memory(
    image: &LiveImage,
    located: &Located,
    settings: Option<MallocSettings>,
    address: u64,
) -> Option<MallocCall> {
    let heap_max = heap_walk::heap_max(settings.and_then(|settings| settings.huge_page_bytes));
    let start = address & !(heap_max - 1);
    let heap = heap_walk::glance_at_heap(image, start).filter(|heap| {
        heap.opened_bytes <= heap_max && heap.arena.wrapping_sub(start) < heap_max
            || heap.arena & (heap_max - 1) <= 0x30
    });
    let (arena, heap) = match heap {
        Some(heap) => (
            heap.arena,
            Some(ArenaHeap {
                arena: Some(Address(heap.arena)),
                start: Address(start),
                bytes: heap.bytes,
                opened_bytes: heap.opened_bytes,
            }),
        ),
        None if start == address => (
            located.main_arena,
            Some(ArenaHeap {
                arena: None,
                start: Address(start),
                bytes: 0,
                opened_bytes: 0,
            }),
        ),
        None => (located.main_arena, None),
    };
    let glance = heap_walk::glance(image, located, arena)?;
    Some(MallocCall {
        top: Address(glance.top),
        top_bytes: glance.top_bytes,
        contiguous: heap.is_some() || glance.contiguous,
        heap,
        depth: None,
        candidates: Vec::new(),
    })
}
