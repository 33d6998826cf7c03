//! From chunk to chunk through one stretch of memory.
//!
//! A chunk says its size, and whether the one before it is in use; so what a chunk is, the next one tells. Chunks in
//! thread caches and fast bins look as if they were in use: those are known by their addresses.

use std::cell::Cell;

use super::Image;
use super::arena::CHUNK_ALIGNMENT;
use super::arena::IS_MAPPED;
use super::arena::NOT_MAIN;
use super::arena::PREVIOUS_IN_USE;
use super::arena::SIZE_FLAGS;
use super::arena::SMALLEST_CHUNK;
use super::classes::Classes;
use super::free_lists::FreedChunks;
use super::pages::PageSums;
use super::pages::Pages;
use super::pages::Place;

/// Bytes read at a time: what fits a processor's cache beside other things.
const BUFFER: usize = 256 << 10;
/// Bytes read after a jump: the chunks may go on with such large steps.
const FIRST_READ: usize = 4 << 10;
/// The last chunks in use are remembered; a power of two.
pub(super) const LAST_CHUNKS: usize = 16;
/// Size of the chunks that glibc puts at the end of a stretch that it cannot continue (`CHUNK_HDR_SZ`).
const FENCE: u64 = 16;
/// So many chunks in a row make sense only where there are chunks.
const CONVINCING: u32 = 4096;

/// A stretch of memory to be walked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stretch {
    /// First chunk.
    pub(super) first_chunk: u64,
    /// Behind its last byte.
    pub(super) end: u64,
    /// The arena's top, where the walk ends if it gets there.
    pub(super) top: u64,
    /// Whether chunks here belong to the main arena.
    pub(super) is_main: bool,
    /// Addresses between which the links of free chunks may lead: the arena's bins, and its memory.
    pub(super) bins: (u64, u64),
    /// See `bins`.
    pub(super) memory: (u64, u64),
}

/// How a walk through a stretch ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// At the arena's top.
    Top,
    /// At the chunks that close a stretch; behind them at this address.
    Fence(u64),
    /// In memory that is swapped out, up to this address.
    Swapped(u64),
    /// At something that is no chunk.
    Broken {
        /// Where.
        at: u64,
        /// What is wrong with it.
        why: String,
    },
}

/// What a stretch holds.
#[derive(Clone, Debug, Default)]
pub(super) struct Found {
    pub(super) classes: Classes,
    pub(super) cached_bytes: u64,
    pub(super) cached_chunks: u64,
    pub(super) fast_bytes: u64,
    pub(super) fast_chunks: u64,
    pub(super) binned_bytes: u64,
    pub(super) binned_chunks: u64,
    /// Bytes of the chunks that close the stretch.
    pub(super) fence_bytes: u64,
    /// Where the top begins with what would join it.
    pub(super) top_start: u64,
    /// Free chunks whose copy of their size, or whose links, make no sense.
    pub(super) odd_free_chunks: u64,
    pub(super) first_odd: Option<u64>,
    /// Of what is known to be freed, how much was met.
    pub(super) freed_met: u64,
    /// The last chunks in use, and how many there were.
    pub(super) last: [u64; LAST_CHUNKS],
    pub(super) live: usize,
    pub(super) pages: PageSums,
    pub(super) resident: u64,
    pub(super) swapped: u64,
    pub(super) is_residence_known: bool,
    pub(super) read_bytes: u64,
}

/// Why there is no header to be had.
enum NoHeader {
    Absent,
    Swapped(u64),
    Unreadable,
}

/// A window on the memory.
struct Window<'a> {
    image: &'a dyn Image,
    bytes: Vec<u8>,
    start: u64,
    length: usize,
    /// Bytes to read next time.
    appetite: usize,
    read_bytes: u64,
}

impl Window<'_> {
    /// Two words at `address`, which is a multiple of 16, if they are at hand.
    #[inline]
    fn at_hand(&self, address: u64) -> Option<(u64, u64)> {
        let offset = usize::try_from(address.wrapping_sub(self.start)).ok()?;
        let words = self.bytes[..self.length].get(offset..offset.wrapping_add(16))?;
        let (words, _) = words.as_chunks::<8>();
        let [first, second] = words else {
            return None;
        };
        Some((u64::from_le_bytes(*first), u64::from_le_bytes(*second)))
    }

    /// Reads on from `address`, up to `limit` at most.
    fn move_to(&mut self, address: u64, limit: u64) {
        let is_next = address.wrapping_sub(self.start) <= 2 * self.length as u64;
        self.appetite = if is_next {
            (2 * self.appetite).min(BUFFER)
        } else {
            FIRST_READ
        };
        let wanted = usize::try_from(limit.saturating_sub(address))
            .unwrap_or(BUFFER)
            .min(self.appetite)
            .min(self.bytes.len());
        self.start = address;
        self.length = self.image.read(address, &mut self.bytes[..wanted]);
        self.read_bytes += self.length as u64;
    }
}

/// One walk.
struct Walk<'a> {
    window: Window<'a>,
    pages: Pages<'a>,
    stretch: Stretch,
    freed: &'a FreedChunks,
    /// Where the next chunk is that is known to be freed.
    next_freed: usize,
    found: Found,
}

/// Walks through a stretch.
pub(super) fn walk(image: &dyn Image, stretch: Stretch, freed: &FreedChunks) -> (Found, End) {
    let mut walk = Walk {
        window: Window {
            image,
            bytes: vec![0; BUFFER],
            start: 0,
            length: 0,
            appetite: FIRST_READ,
            read_bytes: 0,
        },
        pages: Pages::new(image, stretch.first_chunk, stretch.end),
        stretch,
        freed,
        next_freed: freed.first_from(stretch.first_chunk),
        found: Found::default(),
    };
    let end = walk.go();
    let mut found = walk.found;
    found.read_bytes = walk.window.read_bytes;
    if let Some((pages, resident, swapped)) = walk.pages.finish() {
        found.pages = pages;
        found.resident = resident;
        found.swapped = swapped;
        found.is_residence_known = true;
    }
    (found, end)
}

/// What may still be looked at in vain.
pub(super) struct Effort {
    left: Cell<u64>,
}

impl Effort {
    pub(super) fn new(bytes: u64) -> Self {
        Self {
            left: Cell::new(bytes),
        }
    }

    /// So many bytes led nowhere.
    pub(super) fn spend(&self, bytes: u64) {
        self.left.set(self.left.get().saturating_sub(bytes));
    }

    pub(super) fn is_spent(&self) -> bool {
        self.left.get() == 0
    }
}

/// The first place from `from` on, and below `limit`, where chunks begin that lead to the stretch's end: after memory that
/// is not malloc's. `None` also when the effort is spent.
pub(super) fn find_chunks(
    image: &dyn Image,
    from: u64,
    stretch: Stretch,
    effort: &Effort,
) -> Option<u64> {
    let nothing = FreedChunks::default();
    let mut residence = super::pages::Residence::new(image, from, stretch.end);
    let mut at = from.checked_next_multiple_of(CHUNK_ALIGNMENT)?;
    let mut window = vec![0; BUFFER];
    while at < stretch.end {
        let (place, to) = residence.place(at);
        if place != Place::Resident {
            at = to.max(at.saturating_add(CHUNK_ALIGNMENT));
            continue;
        }
        let wanted = usize::try_from(to.min(stretch.end) - at)
            .unwrap_or(BUFFER)
            .min(BUFFER);
        let length = image.read(at, &mut window[..wanted]);
        let (pairs, _) = window[..length].as_chunks::<16>();
        for (pair, address) in pairs.iter().zip((at..).step_by(16)) {
            let size = u64::from_le_bytes(pair[8..].try_into().unwrap_or_default());
            let is_first = size & SIZE_FLAGS == PREVIOUS_IN_USE | flags_of(stretch.is_main)
                && size > SMALLEST_CHUNK
                && size <= stretch.end - address;
            if address == stretch.top && size & PREVIOUS_IN_USE != 0 {
                return Some(address);
            }
            if is_first {
                let (leads_on, looked_at) = leads_on(image, address, stretch, &nothing);
                if leads_on {
                    return Some(address);
                }
                effort.spend(looked_at);
                if effort.is_spent() {
                    return None;
                }
            }
        }
        at = at.saturating_add((16 * pairs.len() as u64).max(CHUNK_ALIGNMENT));
    }
    None
}

/// Whether chunks from `address` on follow one another to an end, or for long; and the bytes that were looked at.
fn leads_on(image: &dyn Image, address: u64, stretch: Stretch, freed: &FreedChunks) -> (bool, u64) {
    let mut walk = Walk {
        window: Window {
            image,
            bytes: vec![0; FIRST_READ],
            start: 0,
            length: 0,
            appetite: FIRST_READ,
            read_bytes: 0,
        },
        pages: Pages::new(image, address, stretch.end),
        stretch: Stretch {
            first_chunk: address,
            ..stretch
        },
        freed,
        next_freed: 0,
        found: Found::default(),
    };
    let mut at = address;
    let mut leads_on = true;
    let mut headers = 0;
    while headers < CONVINCING {
        headers += 1;
        let Ok((_, word)) = walk.header(at) else {
            leads_on = false;
            break;
        };
        let size = word & !SIZE_FLAGS;
        if at == stretch.top || (size <= FENCE && at > address) {
            break;
        }
        if walk.flaw(at, word).is_some() {
            leads_on = false;
            break;
        }
        at += size;
    }
    let looked_at = walk
        .window
        .read_bytes
        .saturating_add(16 * u64::from(headers));
    (leads_on, looked_at)
}

fn flags_of(is_main: bool) -> u64 {
    if is_main { 0 } else { NOT_MAIN }
}

impl Walk<'_> {
    /// Both words of a chunk's header: the size of the one before if that is free, and its own with flags.
    #[inline]
    fn header(&mut self, address: u64) -> Result<(u64, u64), NoHeader> {
        match self.window.at_hand(address) {
            Some(header) => Ok(header),
            None => self.header_afar(address),
        }
    }

    #[cold]
    fn header_afar(&mut self, address: u64) -> Result<(u64, u64), NoHeader> {
        let (mut place, mut to) = self.pages.residence.place(address);
        if place == Place::Absent && self.window.image.absent_is_zero() {
            place = self.pages.residence.ask_again(address);
            to = address.saturating_add(FENCE);
        }
        match place {
            Place::Absent if self.window.image.absent_is_zero() => Err(NoHeader::Absent),
            Place::Swapped => Err(NoHeader::Swapped(to)),
            Place::Resident | Place::Absent => {
                // The end of the stretch is a page's end mostly, and headers may be read beyond the top.
                self.window.move_to(address, to);
                self.window.at_hand(address).ok_or(NoHeader::Unreadable)
            }
        }
    }

    /// What is wrong with a header, if something is.
    #[inline]
    fn flaw(&self, address: u64, word: u64) -> Option<&'static str> {
        let size = word & !SIZE_FLAGS;
        if size < SMALLEST_CHUNK {
            return Some("it is smaller than any chunk");
        }
        if size & (CHUNK_ALIGNMENT - 1) != 0 {
            return Some("its size is no multiple of 16");
        }
        if size > self.stretch.end.saturating_sub(address) {
            return Some("it reaches beyond its arena");
        }
        // Free chunks of other arenas have lost their flag (`set_head` in _int_free_create_chunk).
        if word & IS_MAPPED != 0 || self.stretch.is_main && word & NOT_MAIN != 0 {
            return Some("its flags are those of another arena");
        }
        None
    }

    fn go(&mut self) -> End {
        let mut at = self.stretch.first_chunk;
        if at == self.stretch.top {
            self.reach_top(at);
            return End::Top;
        }
        let mut word = match self.header(at) {
            Ok((_, word)) => word,
            Err(missing) => return self.missing(at, &missing),
        };
        // Where the stretch of chunks in use began that is not told to the pages yet.
        let mut live_from = None;
        loop {
            let is_fence = word & !SIZE_FLAGS <= FENCE;
            if is_fence || self.flaw(at, word).is_some() {
                if let Some(from) = live_from {
                    self.pages.live(from, at);
                }
                return self.close(at, word);
            }
            let size = word & !SIZE_FLAGS;
            let next = at + size;
            let next_word = match self.header(next) {
                Ok((before, next_word)) => {
                    if next_word & PREVIOUS_IN_USE == 0 {
                        self.look_at_free(at, size, before);
                    }
                    next_word
                }
                Err(missing) => {
                    if let Some(from) = live_from {
                        self.pages.live(from, at);
                    }
                    return self.missing(next, &missing);
                }
            };
            let is_known_freed = self.freed.at(self.next_freed) <= at;
            if next_word & PREVIOUS_IN_USE != 0 && !is_known_freed {
                self.found.classes.count(size);
                self.found.last[self.found.live & (LAST_CHUNKS - 1)] = at;
                self.found.live += 1;
                live_from.get_or_insert(at);
            } else {
                let is_free = next_word & PREVIOUS_IN_USE == 0;
                let stays = !is_free && self.is_cached(at, size);
                if stays {
                    live_from.get_or_insert(at);
                } else {
                    if let Some(from) = live_from.take() {
                        self.pages.live(from, at);
                    }
                    self.pages.free(at, next);
                }
                if is_free {
                    self.found.binned_bytes += size;
                    self.found.binned_chunks += 1;
                }
            }
            at = next;
            word = next_word;
            if at == self.stretch.top {
                if let Some(from) = live_from {
                    self.pages.live(from, at);
                }
                self.reach_top(at);
                return End::Top;
            }
        }
    }

    /// A chunk that looks as if in use, at or behind the next of those that are known to be freed: counts it. Returns whether
    /// it keeps its page: what waits in a thread cache does; of fast bins `malloc_trim` makes free chunks first.
    fn is_cached(&mut self, at: u64, size: u64) -> bool {
        while self.freed.at(self.next_freed) < at {
            self.next_freed += 1;
        }
        if self.freed.at(self.next_freed) != at {
            self.found.classes.count(size);
            self.found.last[self.found.live & (LAST_CHUNKS - 1)] = at;
            self.found.live += 1;
            return true;
        }
        let is_cached = self.freed.is_cached(self.next_freed);
        self.next_freed += 1;
        self.found.freed_met += 1;
        if is_cached {
            self.found.cached_bytes += size;
            self.found.cached_chunks += 1;
            self.found.last[self.found.live & (LAST_CHUNKS - 1)] = at;
            self.found.live += 1;
        } else {
            self.found.fast_bytes += size;
            self.found.fast_chunks += 1;
        }
        is_cached
    }

    /// A free chunk repeats its size at its end, and has links to its neighbours in a bin.
    fn look_at_free(&mut self, at: u64, size: u64, repeated: u64) {
        let is_near = |link: u64| {
            let (first_bin, end_of_bins) = self.stretch.bins;
            if (first_bin..end_of_bins).contains(&link) {
                // Bins are as far apart as chunks are aligned, and need not be aligned themselves.
                return (link - first_bin).is_multiple_of(CHUNK_ALIGNMENT);
            }
            // A list leads through its bin, so a chunk alone in it is never its own neighbour.
            link.is_multiple_of(CHUNK_ALIGNMENT)
                && link != at
                && (self.stretch.memory.0..self.stretch.memory.1).contains(&link)
        };
        let links = self.window.at_hand(at + 16);
        let odd = repeated != size
            || links.is_some_and(|(next, previous)| !(is_near(next) && is_near(previous)));
        if odd {
            self.found.odd_free_chunks += 1;
            self.found.first_odd.get_or_insert(at);
        }
    }

    fn reach_top(&mut self, top: u64) {
        self.found.top_start = self.pages.run_start().unwrap_or(top);
        self.pages.top(top, self.stretch.end);
    }

    /// At something smaller than a chunk, or flawed: the end of the stretch, or of what makes sense.
    fn close(&mut self, at: u64, word: u64) -> End {
        if word & !SIZE_FLAGS > FENCE {
            let why = self
                .flaw(at, word)
                .unwrap_or("it makes no sense")
                .to_owned();
            // An arena's heap that had little room left ends with its top as it was (sysmalloc, `old_size < MINSIZE`).
            let ends_heap = !self.stretch.is_main
                && word & (SIZE_FLAGS & !PREVIOUS_IN_USE) == 0
                && at.saturating_add(word & !SIZE_FLAGS).saturating_add(FENCE) == self.stretch.end;
            if ends_heap {
                self.found.fence_bytes += self.stretch.end - at;
                self.pages.live(at, self.stretch.end);
                return End::Fence(self.stretch.end);
            }
            return End::Broken { at, why };
        }
        // Two or three chunks of 16 bytes; in heaps of arenas the last one of none.
        let mut behind = at;
        let mut fences = 0;
        let mut size = word & !SIZE_FLAGS;
        while fences < 3 && size == FENCE && behind < self.stretch.end {
            fences += 1;
            behind += FENCE;
            size = match self.header(behind) {
                Ok((_, word)) if behind < self.stretch.end => word & !SIZE_FLAGS,
                _ => 0,
            };
        }
        if !self.stretch.is_main && size == 0 && behind.saturating_add(FENCE) == self.stretch.end {
            behind = self.stretch.end;
            fences += 1;
        }
        // One alone is a damaged size rather (sysmalloc always writes two).
        if fences < 2 {
            return End::Broken {
                at,
                why: "it is smaller than any chunk".to_owned(),
            };
        }
        self.pages.live(at, behind);
        self.found.fence_bytes += behind - at;
        End::Fence(behind)
    }

    fn missing(&mut self, at: u64, missing: &NoHeader) -> End {
        match missing {
            NoHeader::Swapped(to) => End::Swapped(*to),
            NoHeader::Absent => End::Broken {
                at,
                why: "it would lie in a page that nobody has written to".to_owned(),
            },
            NoHeader::Unreadable => End::Broken {
                at,
                why: "its memory cannot be read".to_owned(),
            },
        }
    }
}
