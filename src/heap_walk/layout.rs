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
pub const FAST_BINS: usize = 10;
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

/// What stands at the beginning of each heap of an arena that is not the main one (malloc/arena.c, `heap_info`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct HeapHeader {
    pub(super) arena: u64,
    /// The heap before it; 0 for an arena's first.
    pub(super) previous: u64,
    /// Bytes in use from its beginning on.
    pub(super) size: u64,
    /// Bytes made readable and writable.
    pub(super) opened: u64,
}

/// Bytes of a `heap_info`: before 2.35, and since, when it keeps its page size too.
pub(super) const HEAP_HEADER_BYTES: [u64; 2] = [0x20, 0x30];
/// Bytes of a heap where no huge pages are asked for: `HEAP_MAX_SIZE` of 64-bit programs.
pub(super) const HEAP_MAX: u64 = 64 << 20;

impl HeapHeader {
    /// Reads what may be one; `None` when it cannot be one.
    pub(super) fn read(image: &dyn super::Image, base: u64) -> Option<Self> {
        let mut bytes = [0; 32];
        if base == 0 || image.read(base, &mut bytes) != bytes.len() {
            return None;
        }
        let (words, _) = bytes.as_chunks::<8>();
        let [arena, previous, size, opened] = words else {
            return None;
        };
        let header = Self {
            arena: u64::from_le_bytes(*arena),
            previous: u64::from_le_bytes(*previous),
            size: u64::from_le_bytes(*size),
            opened: u64::from_le_bytes(*opened),
        };
        (header.size <= header.opened && header.arena != 0).then_some(header)
    }

    /// Bytes of the structure, told by where the arena's own structure lies behind it.
    pub(super) fn header_bytes(&self, arena: u64, heap_max: u64) -> u64 {
        let [old, new] = HEAP_HEADER_BYTES;
        if arena & (heap_max - 1) == old {
            old
        } else {
            new
        }
    }
}

/// Bytes from one heap's beginning to the next possible one: `heap_max_size()` of malloc/arena.c.
#[must_use]
pub fn heap_max(huge_page_bytes: Option<u64>) -> u64 {
    match huge_page_bytes {
        Some(bytes) if bytes.is_power_of_two() && bytes < 1 << 40 => bytes * 4,
        _ => HEAP_MAX,
    }
}

impl ParametersLayout {
    /// All layouts, the newest first.
    pub const ALL: [Self; 5] = [
        Self::From243,
        Self::From235,
        Self::From226,
        Self::From224,
        Self::UpTo223,
    ];

    /// Bytes from the beginning that matter.
    pub(super) const SIZE: usize = 144;

    /// Offset of `n_mmaps`, behind which come `n_mmaps_max`, `max_n_mmaps` and `no_dyn_threshold`, four bytes each.
    pub(super) const fn mapped_count(self) -> usize {
        match self {
            Self::UpTo223 | Self::From224 | Self::From226 => 40,
            Self::From235 => 60,
            Self::From243 => 68,
        }
    }

    /// Offset of `mmapped_mem`.
    pub(super) const fn mapped_bytes(self) -> usize {
        match self {
            Self::UpTo223 | Self::From224 | Self::From226 => 56,
            Self::From235 => 80,
            Self::From243 => 88,
        }
    }

    /// Offset of `sbrk_base`.
    pub(super) const fn break_base(self) -> usize {
        match self {
            Self::UpTo223 => 80,
            Self::From224 | Self::From226 => 72,
            Self::From235 => 96,
            Self::From243 => 104,
        }
    }

    /// Offset of `tcache_bins`, behind which come `tcache_max_bytes` and `tcache_count`.
    pub(super) const fn thread_caches(self) -> Option<usize> {
        match self {
            Self::UpTo223 | Self::From224 => None,
            Self::From226 | Self::From235 | Self::From243 => Some(self.break_base() + 8),
        }
    }

    /// Offset of `thp_pagesize`, behind which comes `hp_pagesize`.
    pub(super) const fn huge_pages(self) -> Option<usize> {
        match self {
            Self::UpTo223 | Self::From224 | Self::From226 => None,
            Self::From235 => Some(40),
            Self::From243 => Some(48),
        }
    }
}
