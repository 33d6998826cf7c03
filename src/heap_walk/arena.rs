//! Arenas: what a `malloc_state` says of itself, and the memory that it has.

use super::Image;
use super::layout::ArenaLayout;
use super::layout::BINS;
use super::layout::FAST_BINS;
use super::layout::HEAP_HEADER_BYTES;
use super::layout::HeapHeader;
use super::layout::Located;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;

/// Most arenas that are followed; glibc makes eight for each processor, and two for each under `arena_test`.
pub(super) const MOST_ARENAS: usize = 16_384;
/// Most heaps of an arena that are followed.
const MOST_HEAPS: usize = 1 << 20;
/// Mappings next to each other, with other names or other protections, that are taken for one piece of memory.
const MOST_NEIGHBOURS: usize = 64;
/// `NONCONTIGUOUS_BIT` of `malloc_state.flags`.
pub(super) const NONCONTIGUOUS: u32 = 2;
/// Bytes of the flags and sizes that stand in the low bits of a chunk's size.
pub(super) const SIZE_FLAGS: u64 = 7;
/// The chunk before this one is in use.
pub(super) const PREVIOUS_IN_USE: u64 = 1;
/// The chunk is a mapping of its own.
pub(super) const IS_MAPPED: u64 = 2;
/// The chunk belongs to another arena than the main one.
pub(super) const NOT_MAIN: u64 = 4;
/// Smallest chunk.
pub(super) const SMALLEST_CHUNK: u64 = 32;
/// Chunks begin and end at multiples of this.
pub(super) const CHUNK_ALIGNMENT: u64 = 16;

/// An arena as it stood at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ArenaState {
    pub(super) address: u64,
    pub(super) is_main: bool,
    pub(super) contiguous: bool,
    /// Whether a thread holds its lock: it may stand in the middle of a change. A program with one thread takes no lock
    /// (malloc.c, `SINGLE_THREAD_P`).
    pub(super) is_locked: bool,
    /// The first chunk of each fast bin.
    pub(super) fast_bins: [u64; FAST_BINS],
    /// The top chunk, and its size word.
    pub(super) top: u64,
    pub(super) top_bytes: u64,
    /// The size that the top says of itself, where it makes no sense: a thread stands between the two writes with which a chunk
    /// is cut from it (malloc.c, `use_top`), or somebody overwrote it. Then `top_bytes` reach to the end of its memory.
    pub(super) odd_top_size: Option<u64>,
    /// What makes no sense in it: somebody overwrote it, or a thread stands in the midst of changing it. Of arenas only that
    /// are known to be some: the main one, which is where it was found, and those to which their own heap leads back.
    pub(super) flaw: Option<&'static str>,
    pub(super) next: u64,
    pub(super) attached_threads: u64,
    pub(super) system_bytes: u64,
}

impl ArenaState {
    /// Reads it; `None` where there is none, or it makes no sense.
    pub(super) fn read(image: &dyn Image, address: u64, located: &Located) -> Option<Self> {
        let layout = located.arena;
        let mut bytes = vec![0; usize::try_from(layout.size()).ok()?];
        if image.read(address, &mut bytes) != bytes.len() {
            return None;
        }
        let word = |offset: u64| -> u64 {
            let offset = usize::try_from(offset).unwrap_or(usize::MAX);
            bytes
                .get(offset..offset.saturating_add(8))
                .and_then(|word| word.try_into().ok())
                .map_or(0, u64::from_le_bytes)
        };
        let flags = u32::try_from(word(0) >> 32).unwrap_or_default();
        let mut fast_bins = [0; FAST_BINS];
        if let Some(offset) = layout.fast_bins() {
            for (bin, index) in fast_bins.iter_mut().zip(0..) {
                *bin = word(offset + 8 * index);
            }
        }
        let top = word(layout.top());
        // Until the first request the top stands for the unsorted bin (malloc.c, `initial_top`).
        let is_initial = top == 0 || top == address.wrapping_add(layout.top());
        let is_main = address == located.main_arena;
        let system_bytes = word(layout.system_mem());
        let max_system_bytes = word(layout.max_system_mem());
        // Where the top's memory ends, and its size word. Where there is no top, its 0 bytes end nowhere.
        let said = if is_initial {
            Some((top, 0))
        } else {
            end_of_writable(image, top)
                .filter(|_| top.is_multiple_of(CHUNK_ALIGNMENT))
                .zip(image.word(top.wrapping_add(8)))
        };
        let memory_end = said.map(|(end, _)| end);
        let top_bytes = said.map_or(0, |(_, size)| size & !SIZE_FLAGS);
        let makes_sense = |bytes: u64| {
            bytes.is_multiple_of(CHUNK_ALIGNMENT)
                && bytes <= system_bytes
                && top
                    .checked_add(bytes)
                    .is_some_and(|end| memory_end.is_none_or(|to| end <= to))
        };
        let (top_bytes, odd_top_size) = if makes_sense(top_bytes) {
            (top_bytes, None)
        } else {
            let end = end_of_memory(image, top, is_main);
            let bytes = end.and_then(|end| end.checked_sub(top));
            (bytes.unwrap_or(top_bytes), Some(top_bytes))
        };
        let flaw = if memory_end.is_none() {
            Some("its top lies in no memory that chunks may be in")
        } else if !makes_sense(top_bytes) {
            Some("its top holds more than it obtained")
        } else if system_bytes > max_system_bytes {
            Some("it holds more than it ever did")
        } else {
            None
        };
        let state = Self {
            address,
            is_main,
            contiguous: flags & NONCONTIGUOUS == 0,
            // `mutex` comes first in all versions.
            is_locked: word(0) & 0xffff_ffff != 0,
            fast_bins,
            top: if is_initial { 0 } else { top },
            top_bytes,
            odd_top_size,
            flaw,
            next: word(layout.next()),
            attached_threads: word(layout.attached_threads()),
            system_bytes,
        };
        // The main arena is where it was found; others are where a word leads, which may be anywhere.
        let is_one = is_main || flaw.is_none() || lies_in_own_heap(image, address);
        (is_one && word(layout.bins()) != 0).then_some(state)
    }

    /// The address behind the top.
    pub(super) fn end(&self) -> u64 {
        self.top.wrapping_add(self.top_bytes)
    }
}

/// Whether an arena that is not the main one lies at the beginning of a heap that is its own.
fn lies_in_own_heap(image: &dyn Image, address: u64) -> bool {
    HEAP_HEADER_BYTES.iter().any(|bytes| {
        address
            .checked_sub(*bytes)
            .and_then(|base| HeapHeader::read(image, base))
            .is_some_and(|header| header.arena == address && header.previous == 0)
    })
}

/// Where the memory ends that a top lies in: the heap below the break, or the heap of a thread's arena.
fn end_of_memory(image: &dyn Image, top: u64, is_main: bool) -> Option<u64> {
    let memory_end = end_of_writable(image, top)?;
    if is_main {
        return Some(memory_end);
    }
    let base = top & !(super::layout::heap_max(None) - 1);
    let header = HeapHeader::read(image, base)?;
    base.checked_add(header.size)
        .filter(|end| *end <= memory_end)
}

/// Where the writable memory ends that an address lies in and that chunks may be in, over neighbouring mappings; `None` when
/// it lies in none.
pub(super) fn end_of_writable(image: &dyn Image, address: u64) -> Option<u64> {
    let mappings = image.mappings();
    let index = mappings.partition_point(|mapping| mapping.end.0 <= address);
    let may_hold = |mapping: &&Mapping| {
        mapping.permissions.write
            && matches!(mapping.kind(), MappingKind::Heap | MappingKind::Anonymous)
    };
    let first = mappings
        .get(index)
        .filter(|mapping| mapping.start.0 <= address)
        .filter(may_hold)?;
    let neighbours = mappings.get(index + 1..).unwrap_or_default();
    let mut end = first.end.0;
    for neighbour in neighbours.iter().take(MOST_NEIGHBOURS) {
        if neighbour.start.0 != end || !may_hold(&neighbour) {
            break;
        }
        end = neighbour.end.0;
    }
    Some(end)
}

/// The arenas of a malloc, the main one first, and why the list is not whole, if it is not.
pub(super) fn read_arenas(
    image: &dyn Image,
    located: &Located,
) -> (Vec<ArenaState>, Option<String>) {
    let mut arenas: Vec<ArenaState> = Vec::new();
    let mut address = located.main_arena;
    // A ring that does not lead back would be followed to the limit: arenas are few, so looking them up is cheap.
    let mut seen = std::collections::HashSet::new();
    loop {
        if !seen.insert(address) {
            let why =
                format!("the list of arenas leads back to {address:#x} instead of its beginning");
            return (arenas, Some(why));
        }
        let Some(arena) = ArenaState::read(image, address, located) else {
            let why = if arenas.is_empty() {
                format!("the main arena at {address:#x} makes no sense")
            } else {
                format!("the arena at {address:#x} cannot be read, or makes no sense")
            };
            return (arenas, Some(why));
        };
        let next = arena.next;
        arenas.push(arena);
        if next == located.main_arena {
            return (arenas, None);
        }
        if arenas.len() == MOST_ARENAS {
            let why = format!("there are more than {MOST_ARENAS} arenas");
            return (arenas, Some(why));
        }
        address = next;
    }
}

/// One heap of an arena that is not the main one: its `heap_info`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Heap {
    /// First chunk.
    pub(super) first_chunk: u64,
    /// Where it begins, `heap_info` included.
    pub(super) start: u64,
    /// First address behind it.
    pub(super) end: u64,
}

/// The heaps of an arena that is not the main one, the newest first, and why the list is not whole, if it is not.
pub(super) fn heaps_of(
    image: &dyn Image,
    arena: &ArenaState,
    layout: ArenaLayout,
    heap_max: u64,
) -> (Vec<Heap>, Option<String>) {
    let mut heaps = Vec::new();
    let mut base = arena.top & !(heap_max - 1);
    let mut bytes_left = arena.system_bytes;
    let mut seen = std::collections::HashSet::new();
    loop {
        if !seen.insert(base) {
            let why = format!(
                "the heaps of the arena {:#x} lead back to {base:#x}",
                arena.address
            );
            return (heaps, Some(why));
        }
        let header = HeapHeader::read(image, base)
            .filter(|header| header.arena == arena.address && header.size <= heap_max);
        let Some(header) = header else {
            let why = format!(
                "the heap at {base:#x} does not belong to the arena {:#x}",
                arena.address
            );
            return (heaps, Some(why));
        };
        let has_memory = end_of_writable(image, base)
            .is_some_and(|end| base.checked_add(header.size).is_some_and(|to| to <= end));
        if !has_memory {
            let why = format!("the heap at {base:#x} reaches beyond its memory");
            return (heaps, Some(why));
        }
        // The arena's own structure lies in its first heap.
        let is_first = arena.address & !(heap_max - 1) == base;
        let offset = if is_first {
            arena
                .address
                .wrapping_sub(base)
                .saturating_add(layout.size())
        } else {
            header.header_bytes(arena.address, heap_max)
        };
        let Some(left) = bytes_left
            .checked_sub(header.size)
            .filter(|_| header.size > 0)
        else {
            let why = format!(
                "the heaps of the arena {:#x} hold more than it obtained",
                arena.address
            );
            return (heaps, Some(why));
        };
        bytes_left = left;
        heaps.push(Heap {
            first_chunk: base.wrapping_add(offset.next_multiple_of(CHUNK_ALIGNMENT)),
            start: base,
            end: base.wrapping_add(header.size),
        });
        if header.previous == 0 {
            return (heaps, None);
        }
        if heaps.len() == MOST_HEAPS {
            return (heaps, Some(format!("more than {MOST_HEAPS} heaps")));
        }
        base = header.previous;
    }
}

/// Bytes of all bins, for the address ranges that lists may lead to.
pub(super) fn bins_range(address: u64, layout: ArenaLayout) -> (u64, u64) {
    let first = address.wrapping_add(layout.bins()).wrapping_sub(16);
    (first, first.wrapping_add(16 * BINS))
}
