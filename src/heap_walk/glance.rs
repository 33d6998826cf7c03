//! A glance at an arena, in few reads: for each memory call of a traced program.

use super::Image;
use super::arena::CHUNK_ALIGNMENT;
use super::arena::NONCONTIGUOUS;
use super::arena::SIZE_FLAGS;
use super::layout::HeapHeader;
use super::layout::Located;

/// An arena's top at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Glance {
    /// Where the top chunk begins; 0 while there is none.
    pub top: u64,
    /// Its bytes; 0 likewise.
    pub top_bytes: u64,
    /// Whether the arena is one piece, as far as it knows.
    pub contiguous: bool,
}

/// A heap of an arena that is not the main one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeapGlance {
    /// Its arena.
    pub arena: u64,
    /// Bytes in use from the heap's beginning on.
    pub bytes: u64,
    /// Bytes that may be read and written.
    pub opened_bytes: u64,
}

/// How the arena at `address` stands; `None` when it cannot be read, or makes no sense.
#[must_use]
pub fn glance(image: &dyn Image, located: &Located, address: u64) -> Option<Glance> {
    let layout = located.arena;
    let mut words = Vec::with_capacity(2);
    image.read_words(&[address, address.checked_add(layout.top())?], &mut words);
    let [Some(flags), Some(top)] = words[..] else {
        return None;
    };
    let contiguous = (flags >> 32) & u64::from(NONCONTIGUOUS) == 0;
    // Until the first request the top stands for the unsorted bin (malloc.c, `initial_top`).
    if top == 0 || top == address.wrapping_add(layout.top()) {
        return Some(Glance {
            top: 0,
            top_bytes: 0,
            contiguous,
        });
    }
    let top_bytes = image.word(top.checked_add(8)?)? & !SIZE_FLAGS;
    (top.is_multiple_of(CHUNK_ALIGNMENT) && top_bytes.is_multiple_of(CHUNK_ALIGNMENT)).then_some(
        Glance {
            top,
            top_bytes,
            contiguous,
        },
    )
}

/// The heap that begins at `start`; `None` when none does.
#[must_use]
pub fn glance_at_heap(image: &dyn Image, start: u64) -> Option<HeapGlance> {
    let header = HeapHeader::read(image, start)?;
    Some(HeapGlance {
        arena: header.arena,
        bytes: header.size,
        opened_bytes: header.opened,
    })
}
