//! malloc's parameters, `mp_`: where they are, and what they say.

use std::os::unix::fs::FileExt;

use super::Image;
use super::layout::ArenaLayout;
use super::layout::Parameters;
use super::layout::ParametersLayout;
use super::locate::Stretch;
use crate::event::MallocSettings;

/// `DEFAULT_TRIM_THRESHOLD`, `DEFAULT_TOP_PAD`, `DEFAULT_MMAP_THRESHOLD`: what the file has; tunables change the process.
const DEFAULT_THRESHOLD: u64 = 128 << 10;
/// `mp_.arena_test` of 64-bit programs, likewise.
const DEFAULT_ARENA_TEST: u64 = 8;
/// `DEFAULT_MMAP_MAX`, likewise.
const DEFAULT_MMAP_MAX: u32 = 65_536;
/// `TCACHE_MAX_BINS` before 2.42, `TCACHE_SMALL_BINS` since.
const THREAD_CACHE_BINS: u64 = 64;
/// `mp_` lies so near `main_arena`.
const NEAR: u64 = 64 << 10;
/// So far before `main_arena` it was seen to lie in distributions' libraries from 2.23 to 2.43.
const DISTANCES: [u64; 4] = [0x940, 0x920, 0x900, 0x9c0];
/// Larger settings make no sense.
const MOST: u64 = 1 << 56;
/// Larger ones are addresses rather.
const MOST_LIKELY: u64 = 1 << 44;

/// What is known of a malloc whose parameters are looked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind {
    pub(super) arena: ArenaLayout,
    /// The numbers of glibc's version, if it says it.
    pub(super) version: Option<(u32, u32)>,
    /// Whether it was built with thread caches, if its version has them: `libc_malloc_debug.so` was not.
    pub(super) has_caches: bool,
}

/// What `mp_` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Counts {
    /// `n_mmaps`.
    pub(super) mapped_chunks: u64,
    /// `mmapped_mem`.
    pub(super) mapped_bytes: u64,
    /// `sbrk_base`: where the main arena begins; 0 if it never did at the break.
    pub(super) break_base: u64,
}

/// The bytes of one `mp_`.
struct Block([u8; ParametersLayout::SIZE]);

impl Block {
    fn read(image: &dyn Image, address: u64) -> Option<Self> {
        let mut bytes = [0; ParametersLayout::SIZE];
        (image.read(address, &mut bytes) == bytes.len()).then_some(Self(bytes))
    }

    fn at(bytes: &[u8]) -> Option<Self> {
        bytes
            .get(..ParametersLayout::SIZE)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Self)
    }

    fn word(&self, offset: usize) -> u64 {
        self.0
            .get(offset..offset + 8)
            .and_then(|word| word.try_into().ok())
            .map_or(0, u64::from_le_bytes)
    }

    fn half(&self, offset: usize) -> u32 {
        self.0
            .get(offset..offset + 4)
            .and_then(|half| half.try_into().ok())
            .map_or(0, u32::from_le_bytes)
    }

    /// The layout of which these are the parameters as they stand in the file.
    fn initial_layout(&self, kind: Kind) -> Option<ParametersLayout> {
        let is_initial = [0, 8, 16]
            .iter()
            .all(|offset| self.word(*offset) == DEFAULT_THRESHOLD)
            && self.word(24) == DEFAULT_ARENA_TEST;
        is_initial.then(|| self.layout(kind)).flatten()
    }

    /// The layout that the numbers which programs hardly ever change fit.
    fn layout(&self, kind: Kind) -> Option<ParametersLayout> {
        kind.layouts().find(|layout| {
            self.half(layout.mapped_count() + 4) == DEFAULT_MMAP_MAX
                && kind
                    .caches(*layout)
                    .is_none_or(|offset| self.word(offset) == THREAD_CACHE_BINS)
        })
    }

    /// Whether all that is counted twice agrees: what tells parameters from other words where a program has changed those by
    /// which they are known.
    fn agrees(&self, layout: ParametersLayout, kind: Kind) -> bool {
        let first = layout.mapped_count();
        let (many, most_ever) = (self.half(first), self.half(first + 8));
        let (bytes, most_bytes) = (
            self.word(layout.mapped_bytes()),
            self.word(layout.mapped_bytes() + 8),
        );
        // One bin for each 16 bytes from 24 on (malloc.c, `csize2tidx`).
        let caches = kind.caches(layout).is_none_or(|offset| {
            let (bins, bytes) = (self.word(offset), self.word(offset + 8));
            (1..=THREAD_CACHE_BINS).contains(&bins)
                && bytes < MOST
                && bytes.div_ceil(16) + 1 >= bins
        });
        let are_sizes = [0, 8, 16].iter().all(|offset| {
            let size = self.word(*offset);
            size < MOST_LIKELY || size == u64::MAX
        });
        self.is_plausible(layout)
            && are_sizes
            && many <= most_ever
            && bytes <= most_bytes
            && (many == 0) == (bytes == 0)
            && (most_ever == 0) == (most_bytes == 0)
            && caches
    }

    /// Whether these may be the parameters of a process.
    fn is_plausible(&self, layout: ParametersLayout) -> bool {
        let sizes = [0, 8, 16].iter().all(|offset| {
            let size = self.word(*offset);
            // `M_TRIM_THRESHOLD` of −1 means never.
            size < MOST || size == u64::MAX
        });
        sizes
            && self.word(32) < 1 << 32
            && self.half(layout.mapped_count() + 12) <= 1
            && self.word(layout.mapped_bytes()) < MOST
            && self.word(layout.break_base()) < MOST
            && self.word(24) < 1 << 32
            && self.word(24) != 0
    }
}

impl Kind {
    /// The layouts that its parameters may have, the newest first.
    fn layouts(self) -> impl Iterator<Item = ParametersLayout> {
        // A version before a release calls itself by the one before: 2.34.9000.
        let is_of = move |first: u32, last: u32| {
            self.version.is_none_or(|(major, minor)| {
                major == 2 && (first.saturating_sub(1)..=last).contains(&minor)
            })
        };
        ParametersLayout::ALL
            .into_iter()
            .filter(move |layout| match layout {
                ParametersLayout::From243 => self.arena == ArenaLayout::From243,
                ParametersLayout::From235 => {
                    self.arena == ArenaLayout::From227 && is_of(35, u32::MAX)
                }
                ParametersLayout::From226 => self.arena != ArenaLayout::From243 && is_of(26, 34),
                ParametersLayout::From224 => self.arena == ArenaLayout::UpTo226 && is_of(25, 25),
                ParametersLayout::UpTo223 => self.arena == ArenaLayout::UpTo226 && is_of(0, 23),
            })
    }

    /// Bytes of the largest block that goes to a thread cache. Since 2.42 `tcache_max_bytes` is the chunk's size, and one more
    /// (malloc.c, `do_set_tcache_max`).
    fn largest_cached(self, max_bytes: u64) -> u64 {
        let is_of_chunk = self.arena == ArenaLayout::From243
            || self.version.is_some_and(|version| version >= (2, 42));
        if is_of_chunk {
            max_bytes.saturating_sub(1 + 8)
        } else {
            max_bytes
        }
    }

    /// Offset of `tcache_bins`, if there are thread caches.
    fn caches(self, layout: ParametersLayout) -> Option<usize> {
        layout.thread_caches().filter(|_| self.has_caches)
    }
}

/// Finds `mp_`: by its first values in the file of the memory where `main_arena` is, or beside it in memory.
pub(super) fn find(
    image: &dyn Image,
    stretch: &Stretch<'_>,
    main_arena: u64,
    kind: Kind,
) -> Option<Parameters> {
    let is_plausible = |parameters: &Parameters| {
        Block::read(image, parameters.address)
            .is_some_and(|block| block.is_plausible(parameters.layout))
    };
    let mut found = in_file(image, stretch, main_arena, kind)
        .filter(is_plausible)
        .or_else(|| in_memory(image, stretch, main_arena, kind))
        .or_else(|| at_known_distance(image, main_arena, kind))?;
    // Both begin alike. `max_total_mem`, where the newer one has `sbrk_base`, was never counted.
    if found.layout == ParametersLayout::From224 && kind.version.is_none() {
        let block = Block::read(image, found.address)?;
        let (newer, older) = (
            block.word(ParametersLayout::From224.break_base()),
            block.word(ParametersLayout::UpTo223.break_base()),
        );
        if newer == 0 && older != 0 {
            found.layout = ParametersLayout::UpTo223;
        }
    }
    Some(found)
}

fn near(stretch: &Stretch<'_>, main_arena: u64) -> (u64, u64) {
    let start = main_arena.saturating_sub(NEAR).max(stretch.start);
    let end = main_arena.saturating_add(NEAR).min(stretch.end);
    (start.checked_next_multiple_of(8).unwrap_or(end), end)
}

fn in_file(
    image: &dyn Image,
    stretch: &Stretch<'_>,
    main_arena: u64,
    kind: Kind,
) -> Option<Parameters> {
    let file = image.file(stretch.mapping)?;
    let (start, end) = near(stretch, main_arena);
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    let offset = stretch
        .mapping
        .offset
        .checked_add(start.checked_sub(stretch.start)?)?;
    let length = file.read_at(&mut bytes, offset).ok()?;
    blocks(&bytes[..length], start).find_map(|(address, block)| {
        let layout = block.initial_layout(kind)?;
        Some(Parameters { address, layout })
    })
}

fn in_memory(
    image: &dyn Image,
    stretch: &Stretch<'_>,
    main_arena: u64,
    kind: Kind,
) -> Option<Parameters> {
    let (start, end) = near(stretch, main_arena);
    let mut bytes = vec![0; usize::try_from(end.checked_sub(start)?).ok()?];
    let length = image.read(start, &mut bytes);
    let mut found = blocks(&bytes[..length], start).filter_map(|(address, block)| {
        let layout = block.layout(kind)?;
        let fits = block.is_plausible(layout) && block.word(24) == DEFAULT_ARENA_TEST;
        fits.then_some(Parameters { address, layout })
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

fn at_known_distance(image: &dyn Image, main_arena: u64, kind: Kind) -> Option<Parameters> {
    let mut found = DISTANCES.into_iter().filter_map(|distance| {
        let address = main_arena.checked_sub(distance)?;
        let block = Block::read(image, address)?;
        let layout = kind.layouts().find(|layout| block.agrees(*layout, kind))?;
        Some(Parameters { address, layout })
    });
    let first = found.next()?;
    found.next().is_none().then_some(first)
}

/// All places at which parameters may begin.
fn blocks(bytes: &[u8], start: u64) -> impl Iterator<Item = (u64, Block)> {
    (0..bytes.len())
        .step_by(8)
        .filter_map(move |offset| Some((start + offset as u64, Block::at(&bytes[offset..])?)))
}

/// How a malloc is set up now; `None` when its parameters cannot be read.
pub(super) fn settings(
    image: &dyn Image,
    parameters: Parameters,
    kind: Kind,
) -> Option<MallocSettings> {
    let block = Block::read(image, parameters.address)?;
    let layout = parameters.layout;
    if !block.is_plausible(layout) {
        return None;
    }
    let caches = kind.caches(layout);
    let huge = layout.huge_pages();
    Some(MallocSettings {
        trim_threshold_bytes: block.word(0),
        top_pad_bytes: block.word(8),
        mmap_threshold_bytes: block.word(16),
        mmap_threshold_is_dynamic: block.half(layout.mapped_count() + 12) == 0,
        mmap_max: u64::from(block.half(layout.mapped_count() + 4)),
        arena_max: block.word(32),
        tcache_count: caches.map(|offset| block.word(offset + 16)),
        tcache_max_bytes: caches.map(|offset| kind.largest_cached(block.word(offset + 8))),
        thp_page_bytes: huge.map(|offset| block.word(offset)),
        huge_page_bytes: huge.map(|offset| block.word(offset + 8)),
    })
}

/// What a malloc counts besides its arenas.
pub(super) fn counts(image: &dyn Image, parameters: Parameters) -> Option<Counts> {
    let block = Block::read(image, parameters.address)?;
    let layout = parameters.layout;
    block.is_plausible(layout).then(|| Counts {
        mapped_chunks: u64::from(block.half(layout.mapped_count())),
        mapped_bytes: block.word(layout.mapped_bytes()),
        break_base: block.word(layout.break_base()),
    })
}
