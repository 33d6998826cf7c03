//! Layouts, written out once more from the structures of the versions' malloc.c, so that a mistake in the walk's own table is
//! seen.

/// Where a version keeps what.
#[derive(Clone, Copy, Debug)]
pub(super) struct Version {
    pub(super) name: &'static str,
    /// In `malloc_state`.
    pub(super) fast_bins: Option<u64>,
    pub(super) top: u64,
    pub(super) bins: u64,
    pub(super) next: u64,
    pub(super) attached_threads: u64,
    pub(super) system_mem: u64,
    pub(super) arena_bytes: u64,
    /// In `malloc_par`.
    pub(super) mapped_count: u64,
    pub(super) mapped_bytes: u64,
    pub(super) break_base: u64,
    pub(super) cache_settings: Option<u64>,
    /// `sizeof (heap_info)`.
    pub(super) heap_info: u64,
    /// Bytes of the chunk of a thread cache, of each count in it, and bins.
    pub(super) cache: Option<(u64, u64, u64)>,
    pub(super) mangles: bool,
    /// Chunks of one size in a thread cache; counted down from there since 2.42.
    pub(super) slots: u64,
    pub(super) counts_down: bool,
    /// What a mapped chunk's size leaves out of its mapping.
    pub(super) mapped_header: u64,
}

const V227: Version = Version {
    name: "2.27",
    fast_bins: Some(16),
    top: 96,
    bins: 112,
    next: 2160,
    attached_threads: 2176,
    system_mem: 2184,
    arena_bytes: 2200,
    mapped_count: 40,
    mapped_bytes: 56,
    break_base: 72,
    cache_settings: Some(80),
    heap_info: 32,
    cache: Some((0x250, 1, 64)),
    mangles: false,
    slots: 7,
    counts_down: false,
    mapped_header: 0,
};
const V223: Version = Version {
    name: "2.23",
    fast_bins: Some(8),
    top: 88,
    bins: 104,
    next: 2152,
    attached_threads: 2168,
    system_mem: 2176,
    arena_bytes: 2192,
    break_base: 80,
    cache_settings: None,
    cache: None,
    ..V227
};
const V226: Version = Version {
    name: "2.26",
    break_base: 72,
    cache_settings: Some(80),
    cache: V227.cache,
    ..V223
};
const V231: Version = Version {
    name: "2.31",
    cache: Some((0x290, 2, 64)),
    ..V227
};
const V232: Version = Version {
    name: "2.32",
    mangles: true,
    ..V231
};
const V235: Version = Version {
    name: "2.35",
    mapped_count: 60,
    mapped_bytes: 80,
    break_base: 96,
    cache_settings: Some(104),
    heap_info: 48,
    ..V232
};
const V239: Version = Version {
    name: "2.39",
    ..V235
};
const V242: Version = Version {
    name: "2.42",
    cache: Some((0x300, 2, 76)),
    counts_down: true,
    ..V235
};
const V243: Version = Version {
    name: "2.43",
    fast_bins: None,
    top: 8,
    bins: 24,
    next: 2072,
    attached_threads: 2088,
    system_mem: 2096,
    arena_bytes: 2112,
    mapped_count: 68,
    mapped_bytes: 88,
    break_base: 104,
    cache_settings: Some(112),
    cache: Some((0x310, 2, 76)),
    slots: 16,
    mapped_header: 16,
    ..V242
};

pub(super) const VERSIONS: [Version; 9] = [V223, V226, V227, V231, V232, V235, V239, V242, V243];
