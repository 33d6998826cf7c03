//! Arenas recognised in memory by what always holds of them.
//!
//! `main_arena.next` is set from the beginning, to the arena itself, and arenas form a ring. So a word that leads back to
//! its own structure, with bins around it that lead to themselves or to chunks that lead back, tells where one is.

use super::super::Image;
use super::super::arena::CHUNK_ALIGNMENT;
use super::super::layout::ArenaLayout;
use super::super::layout::BINS;
use super::Found;
use super::Stretch;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// Of the bins so many must make sense; a few may be in the midst of a change.
const SOUND_BINS: usize = 119;
/// More arenas than this in a ring are followed when the heap is walked through, not before.
const RING: usize = 64;
/// Programs' addresses end below.
const ADDRESSES: u64 = 1 << 56;
/// Other arenas lie behind a `heap_info` at the beginning of a heap, which is a multiple of 64 MiB, or of four huge pages.
const HEAP_ALIGNMENT: u64 = 1 << 20;

pub(super) fn word(bytes: &[u8], offset: u64) -> u64 {
    usize::try_from(offset)
        .ok()
        .and_then(|offset| bytes.get(offset..offset.checked_add(8)?))
        .and_then(|word| word.try_into().ok())
        .map_or(0, u64::from_le_bytes)
}

/// The bytes of the arena at `address`.
pub(super) fn arena_bytes(image: &dyn Image, address: u64, layout: ArenaLayout) -> Option<Vec<u8>> {
    let mut bytes = vec![0; usize::try_from(layout.size()).ok()?];
    (image.read(address, &mut bytes) == bytes.len()).then_some(bytes)
}

/// Whether anybody has called this malloc.
pub(super) fn is_used(address: u64, layout: ArenaLayout, arena: &[u8]) -> bool {
    let top = word(arena, layout.top());
    // At first the top stands for the unsorted bin (malloc.c, `initial_top`).
    top != 0 && top != address.wrapping_add(layout.top()) || word(arena, layout.next()) != address
}

/// Looks for a main arena in writable memory. `left` is how many bytes may still be read: the last ones, as the C library is
/// linked last.
pub(super) fn search(image: &dyn Image, stretch: &Stretch<'_>, left: &mut u64) -> Option<Found> {
    let overlap = ArenaLayout::From227.size();
    let length = usize::try_from(stretch.end.checked_sub(stretch.start)?).unwrap_or(PIECE);
    let mut bytes = vec![0; length.min(PIECE)];
    let mut start = stretch
        .start
        .max(stretch.end.saturating_sub(*left))
        .checked_next_multiple_of(8)?;
    while start < stretch.end && *left > 0 {
        let wanted = usize::try_from(stretch.end - start)
            .unwrap_or(PIECE)
            .min(bytes.len());
        let length = image.read(start, &mut bytes[..wanted]);
        *left = left.saturating_sub(length as u64);
        if let Some(found) = search_piece(image, start, &bytes[..length]) {
            return Some(found);
        }
        let step = (length as u64).saturating_sub(overlap) & !7;
        if step == 0 {
            break;
        }
        start = start.saturating_add(step);
    }
    None
}

fn search_piece(image: &dyn Image, start: u64, piece: &[u8]) -> Option<Found> {
    let (words, _) = piece.as_chunks::<8>();
    words
        .iter()
        .enumerate()
        .flat_map(|(index, value)| {
            let place = start.wrapping_add(8 * index as u64);
            candidates(u64::from_le_bytes(*value), place, start)
        })
        .find(|found| {
            usize::try_from(found.address - start)
                .ok()
                .zip(usize::try_from(found.layout.size()).ok())
                .and_then(|(offset, size)| piece.get(offset..offset.checked_add(size)?))
                .is_some_and(|arena| is_arena(image, *found, arena))
        })
}

/// The arenas to which a word at `place` may belong as its `next`.
fn candidates(value: u64, place: u64, start: u64) -> impl Iterator<Item = Found> {
    let is_of_heap = matches!(value & (HEAP_ALIGNMENT - 1), 0x20 | 0x30)
        && (HEAP_ALIGNMENT..ADDRESSES).contains(&value);
    let is_near = place.wrapping_sub(value) <= ArenaLayout::From227.next();
    (is_of_heap || is_near)
        .then_some(ArenaLayout::ALL)
        .into_iter()
        .flatten()
        .filter_map(move |layout| {
            let address = place.checked_sub(layout.next())?;
            let is_possible = address >= start && (is_of_heap || value == address);
            is_possible.then_some(Found { address, layout })
        })
}

/// Whether an arena lies here: its ring leads back, and its bins are lists.
pub(super) fn is_arena(image: &dyn Image, found: Found, arena: &[u8]) -> bool {
    let next = word(arena, found.layout.next());
    if next == found.address && word(arena, found.layout.top()) == 0 {
        return is_untouched(found.layout, arena);
    }
    leads_back(image, found, next) && has_bins(image, found, arena)
}

/// Whether what lies where the file itself has its main arena may be one: the bins need not be sound, as a damaged heap is
/// one, too.
pub(super) fn may_be_arena(image: &dyn Image, found: Found, arena: &[u8]) -> bool {
    let layout = found.layout;
    let next = word(arena, layout.next());
    let top = word(arena, layout.top());
    if top == 0 {
        return next == found.address && is_untouched(layout, arena);
    }
    let (lock, flags) = (word(arena, 0) & u64::from(u32::MAX), word(arena, 0) >> 32);
    lock <= 2
        && flags <= 7
        && top < ADDRESSES
        && top.is_multiple_of(8)
        && word(arena, layout.bins()) != 0
        && word(arena, layout.system_mem()) <= word(arena, layout.max_system_mem())
        && leads_back(image, found, next)
}

/// Whether nothing but what the file has is set: `next` and `attached_threads`.
pub(super) fn is_untouched(layout: ArenaLayout, arena: &[u8]) -> bool {
    let (words, _) = arena.as_chunks::<8>();
    words
        .iter()
        .zip((0..).step_by(8))
        .all(|(value, offset): (_, u64)| {
            let value = u64::from_le_bytes(*value);
            if offset == layout.next() {
                true
            } else if offset == layout.attached_threads() {
                value == 1
            } else {
                value == 0
            }
        })
}

/// Whether the ring of arenas that begins here comes back, or goes on for long.
fn leads_back(image: &dyn Image, found: Found, next: u64) -> bool {
    let mut at = next;
    for _ in 0..RING {
        if at == found.address {
            return true;
        }
        let next = at
            .checked_add(found.layout.next())
            .filter(|_| at.is_multiple_of(8))
            .and_then(|place| image.word(place));
        match next {
            // A ring that comes back elsewhere is none of this arena's.
            Some(next) if next != at => at = next,
            _ => return false,
        }
    }
    true
}

/// Whether the bins are empty lists, or lead to chunks that lead back.
fn has_bins(image: &dyn Image, found: Found, arena: &[u8]) -> bool {
    let mut sound = 0;
    let mut asked = Vec::new();
    let mut expected = Vec::new();
    for bin in 0..BINS {
        let place = found.layout.bins() + 16 * bin;
        // Bins are dealt with as if they were chunks, of which only the links are there.
        let own = found.address.wrapping_add(place).wrapping_sub(16);
        let (forward, back) = (word(arena, place), word(arena, place + 8));
        if forward == own && back == own {
            sound += 1;
        } else if forward != 0
            && forward.is_multiple_of(CHUNK_ALIGNMENT)
            && back.is_multiple_of(CHUNK_ALIGNMENT)
        {
            asked.extend([forward.wrapping_add(24), back.wrapping_add(16)]);
            expected.push(own);
        }
    }
    // Nothing is asked where it cannot help.
    if sound + expected.len() < SOUND_BINS {
        return false;
    }
    let mut words = Vec::new();
    if !asked.is_empty() {
        image.read_words(&asked, &mut words);
    }
    let (pairs, _) = words.as_chunks::<2>();
    sound += pairs
        .iter()
        .zip(&expected)
        .filter(|(pair, own)| **pair == [Some(**own); 2])
        .count();
    sound >= SOUND_BINS
}
