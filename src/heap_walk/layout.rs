//! Where glibc's malloc keeps what, by version (malloc/malloc.c, `struct malloc_state`, `struct malloc_par`,
//! `tcache_perthread_struct`; malloc/arena.c, `heap_info`).

/// How a `malloc_state` is laid out. Relative to its bins all versions since 2.23 are the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ArenaLayout {
    /// Up to 2.26.
    UpTo226,
    /// 2.27 to 2.42: with `have_fastchunks`.
    From227,
    /// 2.43: without fast bins.
    From243,
}

impl ArenaLayout {
    /// All layouts.
    pub const ALL: [Self; 3] = [Self::UpTo226, Self::From227, Self::From243];

    /// Offset of the bins.
    #[must_use]
    pub const fn bins(self) -> u64 {
        match self {
            Self::UpTo226 => 104,
            Self::From227 => 112,
            Self::From243 => 24,
        }
    }

    /// Offset of the fast bins; `None` where there are none.
    #[must_use]
    pub const fn fast_bins(self) -> Option<u64> {
        match self {
            Self::UpTo226 => Some(8),
            Self::From227 => Some(16),
            Self::From243 => None,
        }
    }

    /// Offset of the pointer to the top chunk.
    #[must_use]
    pub const fn top(self) -> u64 {
        self.bins() - 16
    }

    /// Offset of the pointer to the next arena.
    #[must_use]
    pub const fn next(self) -> u64 {
        self.bins() + 2048
    }

    /// Offset of the number of threads that use the arena.
    #[must_use]
    pub const fn attached_threads(self) -> u64 {
        self.bins() + 2064
    }

    /// Offset of the bytes obtained from the kernel.
    #[must_use]
    pub const fn system_mem(self) -> u64 {
        self.bins() + 2072
    }

    /// Offset of the most bytes that were.
    #[must_use]
    pub const fn max_system_mem(self) -> u64 {
        self.bins() + 2080
    }

    /// Bytes of the structure.
    #[must_use]
    pub const fn size(self) -> u64 {
        self.bins() + 2088
    }
}

/// Fast bins of an arena.
pub const FAST_BINS: u64 = 10;
/// Bins of an arena, the unsorted one included: pairs of pointers.
pub const BINS: u64 = 127;

/// A malloc that was found in a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Located {
    /// The file that brings it, as the mappings name it; `None` when not known.
    pub file: Option<String>,
    /// Version of glibc, `2.36`; `None` when its file does not say.
    pub version: Option<String>,
    /// Where `main_arena` is.
    pub main_arena: u64,
    /// How arenas are laid out.
    pub arena: ArenaLayout,
    /// Where `mp_` is, and how it is laid out; `None` when it was not found.
    pub parameters: Option<Parameters>,
    /// Whether anybody has called this malloc: whether the main arena has a top.
    pub is_used: bool,
}

/// Where `mp_` is, and how it is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    /// Its address.
    pub address: u64,
    /// Its layout.
    pub layout: ParametersLayout,
}

/// How `mp_` is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ParametersLayout {
    /// Up to 2.23.
    UpTo223,
    /// 2.24 and 2.25: without `max_total_mem`.
    From224,
    /// 2.26 to 2.34: with thread caches.
    From226,
    /// 2.35 to 2.42: with huge pages.
    From235,
    /// 2.43: with `thp_mode`.
    From243,
}
