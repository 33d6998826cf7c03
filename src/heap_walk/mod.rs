//! Heaps that others manage, looked through from outside: nothing runs in the program, and no symbols are needed.
//!
//! What is read is memory of a process or of a core file ([`Image`]); nothing in it is believed. Addresses only go
//! to the image, lists are followed to a limit and never round, sums are checked against what malloc itself counted.
//! Layouts and rules are those of glibc's malloc/malloc.c and malloc/arena.c, from 2.23 to 2.43, for 64-bit programs.

mod arena;
mod caches;
mod classes;
mod confidence;
mod core_file;
mod examine;
mod free_lists;
mod glance;
mod layout;
mod locate;
mod main_arena;
mod mapped;
mod others;
mod pages;
mod parameters;
mod renewed;
mod sums;
#[cfg(test)]
mod synthetic;
mod top;
mod walk;

pub use core_file::CoreError;
pub use core_file::CoreFile;
pub use core_file::CoreProgram;
pub use core_file::CoreThread;
pub use examine::Standing;
pub use examine::examine;
pub use examine::stand;
pub use glance::Glance;
pub use glance::HeapGlance;
pub use glance::glance;
pub use glance::glance_at_heap;
pub use layout::ArenaLayout;
pub use layout::BINS;
pub use layout::FAST_BINS;
pub use layout::Located;
pub use layout::Parameters;
pub use layout::ParametersLayout;
pub use layout::heap_max;
pub use locate::Locator;
pub use locate::locate;
pub use locate::settings;
pub use others::Depth;
pub use others::Recogniser;
pub use others::recognise;

use std::fs::File;

use crate::mapping::Mapping;

/// The memory of a program, alive or not.
pub trait Image {
    /// Its mappings, in order.
    fn mappings(&self) -> &[Mapping];

    /// Its mappings as they are by now, where a program that runs may have changed them since; `None` where it cannot have, or
    /// it cannot be told.
    fn mappings_by_now(&self) -> Option<Vec<Mapping>> {
        None
    }

    /// Reads memory at `address`; returns how many bytes could be read, from the first on.
    fn read(&self, address: u64, bytes: &mut [u8]) -> usize;

    /// Reads the 64-bit words at these addresses; `None` for those that cannot be read.
    fn read_words(&self, addresses: &[u64], words: &mut Vec<Option<u64>>) {
        words.clear();
        words.extend(addresses.iter().map(|address| self.word(*address)));
    }

    /// Reads one 64-bit word.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(address, &mut bytes) == 8).then(|| u64::from_le_bytes(bytes))
    }

    /// Which pages from `start` to `end` are in memory and which are swapped out; both are multiples of the page size.
    /// `None` when it cannot be told. To be asked before the memory is read: reading maps pages that were never touched.
    fn residency(&self, start: u64, end: u64) -> Option<Residency>;

    /// The file that a mapping shows, for reading; `None` when there is none, or it is another by now.
    fn file(&self, mapping: &Mapping) -> Option<File>;

    /// Bytes of a range that were given back with `MADV_FREE` and that the kernel has not taken yet: still resident. `None` when it
    /// cannot be told.
    fn lazily_free_bytes(&self, _start: u64, _end: u64) -> Option<u64> {
        None
    }

    /// Bytes of a page.
    fn page_size(&self) -> u64;

    /// Whether some of the memory may be swapped out.
    fn may_be_swapped(&self) -> bool {
        true
    }

    /// Whether a page that is not in memory is known to be all zeros: true of private anonymous memory of a process, false
    /// of a core file.
    fn absent_is_zero(&self) -> bool {
        true
    }
}

/// Which pages of a range are where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Stretches in memory, in order, joined where they touch.
    pub resident: Vec<(u64, u64)>,
    /// Stretches that are swapped out, likewise.
    pub swapped: Vec<(u64, u64)>,
}
