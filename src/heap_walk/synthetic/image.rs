//! Made-up heaps of a process, with what mallinfo2(3) would say of them: counted while chunks are laid, not by walking.

use std::cell::Cell;
use std::fs::File;

use super::super::Image;
use super::super::Residency;
use super::versions::Version;
use crate::event::Mallinfo;
use crate::mapping::Mapping;
use crate::units::Address;

pub(super) const PAGE: u64 = 4096;
pub(super) const HEAP: u64 = 0x5555_5560_0000;
/// The first heap of the thread's arena; the second is 64 MiB behind.
pub(super) const ARENA_HEAP: u64 = 0x7f00_0000_0000;
pub(super) const HEAP_MAX: u64 = 64 << 20;
const MAPPED: u64 = 0x7f11_0000_0000;
const SEGMENT: u64 = 0x7f12_0000_0000;
const STACK: u64 = 0x7f13_0000_0000;
const LIBC: u64 = 0x7f14_0000_0000;
pub(super) const MAIN_ARENA: u64 = LIBC + 0x5000 + 0xc80;
pub(super) const PARAMETERS: u64 = MAIN_ARENA - 0x940;
/// Thread pointers, and how far below them the pointers to caches are.
pub(super) const POINTERS: [u64; 2] = [STACK + 0x1800, STACK + 0x3800];
pub(super) const CACHE_DISTANCE: u64 = 72;

/// What happened to the main arena's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shape {
    /// One piece.
    Plain,
    /// Somebody else moved the break in between.
    Foreign,
    /// brk was refused, and the main arena went on in a mapping.
    Refused,
}

pub(super) const SHAPES: [Shape; 3] = [Shape::Plain, Shape::Foreign, Shape::Refused];

/// What a chunk is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    Live,
    /// In the unsorted bin.
    Unsorted,
    /// In the small or large bin of its size.
    Sorted,
    /// In a fast bin; in use where there are none.
    Fast,
    /// In the cache of a thread; in use where there are none.
    Cached(usize),
    /// The cache of a thread.
    Cache(usize),
}

/// What was counted of an arena.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Counted {
    pub(super) system_bytes: u64,
    pub(super) live_chunks: u64,
    pub(super) live_bytes: u64,
    pub(super) cached_chunks: u64,
    pub(super) cached_bytes: u64,
    pub(super) fast_chunks: u64,
    pub(super) fast_bytes: u64,
    pub(super) binned_chunks: u64,
    pub(super) binned_bytes: u64,
    pub(super) top_bytes: u64,
    /// Headers of heaps, ends of stretches, what others took.
    pub(super) other_bytes: u64,
}

/// A made-up process.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    pub(super) version: Version,
    mappings: Vec<Mapping>,
    pieces: Vec<(u64, Vec<u8>)>,
    /// What the reader knows of the mappings, where that is older than these.
    pub(super) known_mappings: Option<Vec<Mapping>>,
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
    /// The main arena, and a thread's.
    pub(super) counted: [Counted; 2],
    pub(super) thread_arena: u64,
    pub(super) tops: [u64; 2],
    /// All chunks with what they are, as they were laid.
    pub(super) chunks: Vec<(u64, u64, Use)>,
    /// Bytes of the one chunk that is a mapping.
    pub(super) mapped_bytes: u64,
}

impl Image for Memory {
    fn mappings(&self) -> &[Mapping] {
        self.known_mappings.as_ref().unwrap_or(&self.mappings)
    }

    fn mappings_by_now(&self) -> Option<Vec<Mapping>> {
        self.known_mappings.as_ref().map(|_| self.mappings.clone())
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let Some((piece, inside)) = self.place(address) else {
            return 0;
        };
        let piece = &self.pieces[piece].1[inside..];
        let length = piece.len().min(bytes.len());
        bytes[..length].copy_from_slice(&piece[..length]);
        self.read_bytes.set(self.read_bytes.get() + length as u64);
        length
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        self.reads.set(self.reads.get() + 1);
        let resident = self
            .pieces
            .iter()
            .map(|(from, bytes)| ((*from).max(start), (*from + bytes.len() as u64).min(end)))
            .filter(|(from, to)| from < to)
            .collect();
        Some(Residency {
            resident,
            swapped: Vec::new(),
        })
    }

    fn file(&self, _mapping: &Mapping) -> Option<File> {
        None
    }

    fn page_size(&self) -> u64 {
        PAGE
    }
}

impl Memory {
    /// Calls of the image, and bytes read.
    pub(super) fn cost(&self) -> (u64, u64) {
        (self.reads.get(), self.read_bytes.get())
    }

    pub(super) fn forget_cost(&self) {
        self.reads.set(0);
        self.read_bytes.set(0);
    }

    fn place(&self, address: u64) -> Option<(usize, usize)> {
        let piece = self
            .pieces
            .partition_point(|(start, _)| *start <= address)
            .checked_sub(1)?;
        let (start, bytes) = &self.pieces[piece];
        let inside = usize::try_from(address - start).ok()?;
        (inside < bytes.len()).then_some((piece, inside))
    }

    /// Writes a word.
    pub(super) fn put(&mut self, address: u64, value: u64) {
        self.put_bytes(address, &value.to_le_bytes());
    }

    fn put_bytes(&mut self, address: u64, value: &[u8]) {
        let (piece, inside) = self.place(address).expect("a place that there is");
        self.pieces[piece].1[inside..inside + value.len()].copy_from_slice(value);
    }

    /// All that is stored: where, and how many bytes.
    pub(super) fn stored(&self) -> Vec<(u64, u64)> {
        let pieces = self.pieces.iter();
        pieces
            .map(|(start, bytes)| (*start, bytes.len() as u64))
            .collect()
    }

    /// A mapping; `bytes` are stored, if it has any.
    pub(super) fn map(&mut self, start: u64, bytes: u64, permissions: &str, name: Option<&str>) {
        let is_stored = permissions.starts_with('r') && !permissions.contains('x');
        let is_file = name.is_some_and(|name| name.starts_with('/'));
        self.mappings.push(Mapping {
            start: Address(start),
            end: Address(start + bytes),
            permissions: permissions.parse().expect("permissions"),
            offset: if is_file { start - LIBC } else { 0 },
            inode: if is_file { 7 } else { 0 },
            name: name.map(str::to_owned),
        });
        self.mappings.sort_by_key(|mapping| mapping.start);
        if is_stored {
            let length = usize::try_from(bytes).expect("a length");
            self.pieces.push((start, vec![0; length]));
            self.pieces.sort_by_key(|(start, _)| *start);
        }
    }

    /// What mallinfo2(3) would say.
    pub(super) fn mallinfo(&self) -> Mallinfo {
        let sum = |field: fn(&Counted) -> u64| self.counted.iter().map(field).sum::<u64>();
        Mallinfo {
            arena: sum(|arena| arena.system_bytes),
            ordblks: sum(|arena| arena.binned_chunks + 1),
            smblks: sum(|arena| arena.fast_chunks),
            hblks: Some(1),
            hblkhd: Some(self.mapped_bytes),
            fsmblks: sum(|arena| arena.fast_bytes),
            uordblks: sum(|arena| arena.live_bytes + arena.cached_bytes + arena.other_bytes),
            fordblks: sum(|arena| arena.fast_bytes + arena.binned_bytes + arena.top_bytes),
            keepcost: self.counted[0].top_bytes,
        }
    }

    /// The process with a main arena of this shape, a thread's arena in two heaps, and a chunk that is a mapping.
    pub(super) fn new(version: Version, shape: Shape) -> Self {
        let mut memory = Self {
            version,
            mappings: Vec::new(),
            pieces: Vec::new(),
            known_mappings: None,
            reads: Cell::new(0),
            read_bytes: Cell::new(0),
            counted: Default::default(),
            thread_arena: ARENA_HEAP + version.heap_info,
            tops: [0; 2],
            chunks: Vec::new(),
            mapped_bytes: 0x2_5000,
        };
        memory.map(LIBC, 0x1000, "r-xp", Some("/usr/lib/libc.so.6"));
        memory.map(LIBC + 0x2000, 0x1000, "r--p", Some("/usr/lib/libc.so.6"));
        memory.map(LIBC + 0x5000, 0x2000, "rw-p", Some("/usr/lib/libc.so.6"));
        memory.map(STACK, 0x4000, "rw-p", None);
        let banner = format!(
            "GNU C Library (made up) stable release version {}.\n",
            version.name
        );
        memory.put_bytes(LIBC + 0x2040, banner.as_bytes());
        memory.empty_arena(MAIN_ARENA);
        memory.main_arena(shape);
        memory.other_arena();
        memory.fill_caches();
        memory.mapped_chunk();
        memory.parameters();
        memory.put(MAIN_ARENA + version.next, memory.thread_arena);
        memory.put(memory.thread_arena + version.next, MAIN_ARENA);
        memory
    }

    /// An arena whose bins are empty.
    fn empty_arena(&mut self, arena: u64) {
        for bin in 1..=127 {
            let head = self.head(arena, bin);
            self.put(head + 16, head);
            self.put(head + 24, head);
        }
        self.put(arena + self.version.attached_threads, 1);
    }

    /// A bin, seen as a chunk.
    fn head(&self, arena: u64, bin: u64) -> u64 {
        arena + self.version.bins + 16 * (bin - 1) - 16
    }

    fn main_arena(&mut self, shape: Shape) {
        let mut laying = Laying::new(0, MAIN_ARENA, HEAP);
        match shape {
            Shape::Plain => self.map(HEAP, 0x2_1000, "rw-p", Some("[heap]")),
            Shape::Foreign => self.map(HEAP, 0x3_3000, "rw-p", Some("[heap]")),
            Shape::Refused => {
                self.map(HEAP, 0x2_1000, "rw-p", Some("[heap]"));
                self.map(SEGMENT, 0x10_0000, "rw-p", None);
                // `NONCONTIGUOUS_BIT`.
                self.put(MAIN_ARENA, 2 << 32);
            }
        }
        self.lay(&mut laying, Use::Cache(0), 0);
        self.usual(&mut laying, 0);
        if shape != Shape::Plain {
            // The old top becomes a free chunk, before the two that close the stretch.
            let rest = HEAP + 0x2_1000 - laying.at - 32;
            self.lay(&mut laying, Use::Sorted, rest);
            self.fence(&mut laying);
        }
        let end = match shape {
            Shape::Plain => HEAP + 0x2_1000,
            Shape::Foreign => {
                for place in (laying.at..laying.at + 0x2000).step_by(8) {
                    self.put(place, 0x6162_6364_6566_6768);
                }
                self.counted[0].other_bytes += 0x2000;
                self.counted[0].system_bytes += 0x2000;
                laying.at += 0x2000;
                HEAP + 0x3_3000
            }
            Shape::Refused => {
                laying.at = SEGMENT;
                SEGMENT + 0x10_0000
            }
        };
        if shape != Shape::Plain {
            laying.is_before_used = true;
            self.usual(&mut laying, 0);
        }
        self.top(&laying, end);
    }

    fn other_arena(&mut self) {
        let second = ARENA_HEAP + HEAP_MAX;
        let info = self.version.heap_info;
        let sizes = [0x9000, 0x1_1000];
        for (start, bytes) in [ARENA_HEAP, second].into_iter().zip(sizes) {
            self.map(start, bytes, "rw-p", None);
            self.map(start + bytes, HEAP_MAX - bytes, "---p", None);
            self.put(start, self.thread_arena);
            self.put(start + 8, if start == second { ARENA_HEAP } else { 0 });
            self.put(start + 16, bytes);
            self.put(start + 24, bytes);
        }
        let arena = self.thread_arena;
        self.empty_arena(arena);
        let first = (arena + self.version.arena_bytes).next_multiple_of(16);
        let mut laying = Laying::new(1, arena, first);
        self.other(1, first - ARENA_HEAP);
        self.lay(&mut laying, Use::Cache(1), 0);
        self.usual(&mut laying, 1);
        let rest = ARENA_HEAP + sizes[0] - laying.at - 32;
        self.lay(&mut laying, Use::Sorted, rest);
        // `sysmalloc`: the last two chunks, the very last of no bytes.
        self.put(laying.at, rest);
        self.put(laying.at + 8, 16);
        self.put(laying.at + 24, 1);
        self.other(1, 32);
        laying.at = second + info;
        laying.is_before_used = true;
        self.other(1, info);
        self.usual(&mut laying, 1);
        self.top(&laying, second + sizes[1]);
    }

    /// Chunks of all kinds.
    fn usual(&mut self, laying: &mut Laying, thread: usize) {
        let other = 1 - thread;
        let plan = [
            (Use::Live, 0x20),
            (Use::Cached(thread), 0x20),
            (Use::Cached(thread), 0x20),
            (Use::Fast, 0x20),
            (Use::Fast, 0x80),
            (Use::Live, 0x410),
            (Use::Unsorted, 0x90),
            (Use::Cached(thread), 0x410),
            (Use::Unsorted, 0x500),
            (Use::Live, 0x30),
            (Use::Sorted, 0xa0),
            (Use::Cached(other), 0x60),
            (Use::Sorted, 0xa0),
            (Use::Live, 0x90),
            (Use::Sorted, 0x470),
            (Use::Fast, 0x20),
            (Use::Sorted, 0x460),
            (Use::Live, 0x1230),
            (Use::Sorted, 0x20),
            (Use::Cached(other), 0x20),
            (Use::Live, 0x20),
        ];
        for (how, bytes) in plan {
            self.lay(laying, how, bytes);
        }
    }

    fn other(&mut self, arena: usize, bytes: u64) {
        self.counted[arena].other_bytes += bytes;
        self.counted[arena].system_bytes += bytes;
    }

    /// Lays one chunk.
    fn lay(&mut self, laying: &mut Laying, how: Use, bytes: u64) {
        let has_caches = self.version.cache.is_some();
        let (how, bytes) = match how {
            Use::Cache(_) if !has_caches => return,
            Use::Cache(_) => (how, self.version.cache.map_or(0, |cache| cache.0)),
            Use::Cached(_) if !has_caches => (Use::Live, bytes),
            Use::Fast if self.version.fast_bins.is_none() => (Use::Live, bytes),
            _ => (how, bytes),
        };
        let at = laying.at;
        let is_binned = matches!(how, Use::Unsorted | Use::Sorted);
        // `NON_MAIN_ARENA`; `_int_free_create_chunk` leaves it out.
        let arena_flag = if laying.arena == 1 && !is_binned {
            4
        } else {
            0
        };
        self.put(
            at + 8,
            bytes | arena_flag | u64::from(laying.is_before_used),
        );
        let counted = &mut self.counted[laying.arena];
        counted.system_bytes += bytes;
        let (chunks, sum) = match how {
            Use::Live | Use::Cache(_) => (&mut counted.live_chunks, &mut counted.live_bytes),
            Use::Cached(_) => (&mut counted.cached_chunks, &mut counted.cached_bytes),
            Use::Fast => (&mut counted.fast_chunks, &mut counted.fast_bytes),
            Use::Unsorted | Use::Sorted => (&mut counted.binned_chunks, &mut counted.binned_bytes),
        };
        *chunks += 1;
        *sum += bytes;
        match how {
            Use::Live | Use::Cached(_) => {}
            Use::Cache(thread) => self.put(POINTERS[thread] - CACHE_DISTANCE, at + 16),
            Use::Fast => self.fast(laying.address, at, bytes),
            Use::Unsorted => self.bin(laying.address, 1, at, bytes),
            Use::Sorted => self.bin(laying.address, bin_of(bytes), at, bytes),
        }
        self.chunks.push((at, bytes, how));
        laying.is_before_used = !is_binned;
        laying.at = at + bytes;
        if is_binned {
            self.put(laying.at, bytes);
        }
    }

    /// The two chunks that close a stretch of the main arena.
    fn fence(&mut self, laying: &mut Laying) {
        self.put(laying.at + 8, 16 | u64::from(laying.is_before_used));
        self.put(laying.at + 24, 16 | 1);
        self.other(0, 32);
        laying.at += 32;
    }

    fn top(&mut self, laying: &Laying, end: u64) {
        let bytes = end - laying.at;
        self.put(laying.at + 8, bytes | 1);
        self.put(laying.address + self.version.top, laying.at);
        self.tops[laying.arena] = laying.at;
        let counted = &mut self.counted[laying.arena];
        counted.top_bytes = bytes;
        counted.system_bytes += bytes;
        let system = counted.system_bytes;
        self.put(laying.address + self.version.system_mem, system);
        self.put(laying.address + self.version.system_mem + 8, system);
    }

    pub(super) fn word_at(&self, address: u64) -> u64 {
        self.word(address).expect("a place that there is")
    }

    /// Where the count and the first chunk of a list in a thread cache are.
    pub(super) fn cache_places(&self, thread: usize, bin: u64) -> (u64, u64) {
        let (_, count_bytes, bins) = self.version.cache.expect("caches");
        let cache = self.word_at(POINTERS[thread] - CACHE_DISTANCE);
        (
            cache + count_bytes * bin,
            cache + count_bytes * bins + 8 * bin,
        )
    }

    /// Puts chunks in the lists of thread caches, which lie in either arena.
    fn fill_caches(&mut self) {
        let Some((_, width, bins)) = self.version.cache else {
            return;
        };
        if self.version.counts_down {
            for (thread, bin) in (0..2).flat_map(|thread| (0..bins).map(move |bin| (thread, bin))) {
                let (count, _) = self.cache_places(thread, bin);
                self.put_small(count, width, self.version.slots);
            }
        }
        for (at, bytes, how) in self.chunks.clone() {
            let Use::Cached(thread) = how else {
                continue;
            };
            let (count, entry) = self.cache_places(thread, (bytes - 32) / 16);
            let now = self.small(count, width);
            let now = if self.version.counts_down {
                now - 1
            } else {
                now + 1
            };
            self.put_small(count, width, now);
            let link = self.mangled(at + 16, self.word_at(entry));
            self.put(at + 16, link);
            self.put(entry, at + 16);
        }
    }

    pub(super) fn put_small(&mut self, address: u64, width: u64, value: u64) {
        let width = usize::try_from(width).expect("a width");
        self.put_bytes(address, &value.to_le_bytes()[..width]);
    }

    /// A small number of this many bytes.
    fn small(&self, address: u64, width: u64) -> u64 {
        let mut bytes = [0; 8];
        let width = usize::try_from(width).expect("a width");
        assert_eq!(self.read(address, &mut bytes[..width]), width);
        u64::from_le_bytes(bytes)
    }

    fn mangled(&self, place: u64, next: u64) -> u64 {
        if self.version.mangles {
            next ^ (place >> 12)
        } else {
            next
        }
    }

    fn fast(&mut self, arena: u64, at: u64, bytes: u64) {
        let bin = arena + self.version.fast_bins.expect("fast bins") + 8 * (bytes / 16 - 2);
        let next = self.word_at(bin);
        let link = self.mangled(at + 16, next);
        self.put(at + 16, link);
        self.put(bin, at);
    }

    /// Puts a chunk at the front of a bin.
    fn bin(&mut self, arena: u64, bin: u64, at: u64, bytes: u64) {
        let head = self.head(arena, bin);
        let first = self.word_at(head + 16);
        self.put(at + 16, first);
        self.put(at + 24, head);
        self.put(head + 16, at);
        self.put(first + 24, at);
        if bytes >= 1024 && bin > 1 {
            self.put(at + 32, at);
            self.put(at + 40, at);
        }
    }

    fn mapped_chunk(&mut self) {
        self.map(MAPPED, self.mapped_bytes, "rw-p", None);
        let size = self.mapped_bytes - self.version.mapped_header;
        self.put(MAPPED + 8, size | 2);
    }

    fn parameters(&mut self) {
        let version = self.version;
        for (place, value) in [
            (0, 128 << 10),
            (8, 128 << 10),
            (16, 128 << 10),
            (24, 8),
            (version.mapped_bytes, self.mapped_bytes),
            (version.mapped_bytes + 8, self.mapped_bytes),
            (version.break_base, HEAP),
        ] {
            self.put(PARAMETERS + place, value);
        }
        for (place, value) in [(0, 1_u32), (4, 65_536), (8, 1)] {
            let place = PARAMETERS + version.mapped_count + place;
            self.put_bytes(place, &value.to_le_bytes());
        }
        if let Some(place) = version.cache_settings {
            self.put(PARAMETERS + place, 64);
            self.put(PARAMETERS + place + 8, 1032);
            self.put(PARAMETERS + place + 16, version.slots);
        }
    }
}

/// Where chunks are being laid.
struct Laying {
    /// The number of the arena, and its address.
    arena: usize,
    address: u64,
    at: u64,
    is_before_used: bool,
}

impl Laying {
    fn new(arena: usize, address: u64, at: u64) -> Self {
        Self {
            arena,
            address,
            at,
            is_before_used: true,
        }
    }
}

/// The bin of a size (malloc.c, `bin_index`).
fn bin_of(bytes: u64) -> u64 {
    match bytes {
        0..1024 => bytes / 16,
        _ if bytes >> 6 <= 48 => 48 + (bytes >> 6),
        _ if bytes >> 9 <= 20 => 91 + (bytes >> 9),
        _ if bytes >> 12 <= 10 => 110 + (bytes >> 12),
        _ if bytes >> 15 <= 4 => 119 + (bytes >> 15),
        _ if bytes >> 18 <= 2 => 124 + (bytes >> 18),
        _ => 126,
    }
}
