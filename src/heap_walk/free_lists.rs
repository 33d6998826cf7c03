//! Chunks that are freed and look as if they were in use: those in thread caches and in fast bins, by following their
//! lists. Since 2.32 the links are mangled with the address where they stand (malloc.c, `PROTECT_PTR`).

use std::time::Instant;

use super::Image;
use super::arena::ArenaState;
use super::arena::CHUNK_ALIGNMENT;
use super::arena::SIZE_FLAGS;
use super::arena::SMALLEST_CHUNK;

/// Most chunks that are followed.
pub(super) const MOST_FREED: usize = 2_000_000;
/// From a chunk to what malloc returned of it.
pub(super) const HEADER: u64 = 16;
/// Marks a chunk of a thread cache; addresses of chunks are multiples of 16.
const CACHED: u64 = 1;

/// Addresses of chunks that are freed and do not look so.
#[derive(Clone, Debug, Default)]
pub(super) struct FreedChunks {
    /// Sorted; with [`CACHED`] for those in thread caches.
    chunks: Vec<u64>,
}

impl FreedChunks {
    pub(super) fn new(cached: &[CachedChunk], fast: &[u64]) -> Self {
        let mut chunks: Vec<u64> = cached
            .iter()
            .filter(|chunk| !chunk.is_mapped)
            .map(|chunk| chunk.address | CACHED)
            .chain(fast.iter().copied())
            .collect();
        chunks.sort_unstable();
        Self { chunks }
    }

    pub(super) fn len(&self) -> usize {
        self.chunks.len()
    }

    /// The index of the first at or behind an address.
    pub(super) fn first_from(&self, address: u64) -> usize {
        self.chunks.partition_point(|chunk| *chunk < address)
    }

    /// The address of the chunk with this index; beyond the last, one behind all.
    #[inline]
    pub(super) fn at(&self, index: usize) -> u64 {
        match self.chunks.get(index) {
            Some(chunk) => chunk & !CACHED,
            None => u64::MAX,
        }
    }

    pub(super) fn is_cached(&self, index: usize) -> bool {
        self.chunks
            .get(index)
            .is_some_and(|chunk| chunk & CACHED != 0)
    }

    /// Whether this chunk waits in a thread cache.
    pub(super) fn has_cached(&self, address: u64) -> bool {
        self.chunks.binary_search(&(address | CACHED)).is_ok()
    }

    /// Whether some chunk is in two lists, or twice in one.
    pub(super) fn has_doubles(&self) -> bool {
        self.chunks
            .windows(2)
            .any(|pair| pair[0] & !CACHED == pair[1] & !CACHED)
    }
}

/// A chunk that waits in a thread cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CachedChunk {
    pub(super) address: u64,
    pub(super) bytes: u64,
    /// It is a mapping of its own (2.42 and later).
    pub(super) is_mapped: bool,
}

/// How links are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Links {
    /// As they are: up to 2.31.
    Plain,
    /// Mangled: from 2.32 on.
    Mangled,
}

impl Links {
    /// The link that is stored as `word` at `address`.
    pub(super) fn decode(self, address: u64, word: u64) -> u64 {
        match self {
            Self::Plain => word,
            Self::Mangled => word ^ (address >> 12),
        }
    }

    /// What a list's last link tells: a plain one is 0, a mangled one never is.
    pub(super) fn of_last(address: u64, word: u64) -> Option<Self> {
        if word == 0 {
            Some(Self::Plain)
        } else if word == address >> 12 {
            Some(Self::Mangled)
        } else {
            None
        }
    }
}

/// What the fast bins of all arenas hold, as far as they have been followed.
#[derive(Debug, Default)]
pub(super) struct FastChunks {
    /// Addresses of the chunks.
    pub(super) chunks: Vec<u64>,
    /// Why that is not all, if it is not.
    pub(super) problem: Option<String>,
    /// Lists that have not been followed to their ends.
    lists: Vec<FastList>,
}

/// A fast bin that is being followed.
#[derive(Debug)]
struct FastList {
    size: u64,
    at: u64,
    /// An arena has room for no more.
    left: u64,
    links: Option<Links>,
}

impl FastChunks {
    /// Nothing has been followed yet. `links` is how links are stored, if that is known.
    pub(super) fn new(arenas: &[ArenaState], links: Option<Links>) -> Self {
        let lists = arenas.iter().flat_map(|arena| {
            let sizes = (SMALLEST_CHUNK..).step_by(16);
            arena
                .fast_bins
                .iter()
                .zip(sizes)
                .map(move |(first, size)| FastList {
                    size,
                    at: *first,
                    left: arena.system_bytes / size + 1,
                    links,
                })
        });
        Self {
            lists: lists.filter(|list| list.at != 0).collect(),
            ..Self::default()
        }
    }

    /// Follows the lists, until a moment if one is given; what is left then can be followed later.
    pub(super) fn follow(&mut self, image: &dyn Image, until: Option<Instant>) {
        let mut near = NearMemory::new(image);
        while let Some(mut list) = self.lists.pop() {
            loop {
                if self.chunks.len() == MOST_FREED {
                    let why = format!(
                        "the fast bins hold more than {MOST_FREED} chunks; the rest counts as in use"
                    );
                    self.problem.get_or_insert(why);
                    self.lists.clear();
                    return;
                }
                if !self.step(&mut list, &mut near) {
                    break;
                }
                let is_time = self.chunks.len().is_multiple_of(64);
                if is_time && until.is_some_and(|until| Instant::now() >= until) {
                    self.lists.push(list);
                    return;
                }
            }
        }
    }

    /// Takes one chunk of a list; returns whether there are more.
    fn step(&mut self, list: &mut FastList, near: &mut NearMemory<'_>) -> bool {
        let at = list.at;
        let place = at.wrapping_add(HEADER);
        let words = near.word(at.wrapping_add(8)).zip(near.word(place));
        let why = match words {
            None => "cannot be read",
            Some((size, _))
                if !at.is_multiple_of(CHUNK_ALIGNMENT) || size & !SIZE_FLAGS != list.size =>
            {
                "is no chunk of its size"
            }
            Some(_) if list.left == 0 => "makes it longer than its arena",
            Some((_, link)) => {
                list.left -= 1;
                self.chunks.push(at);
                let links = list.links.unwrap_or_else(|| likely_links(at, place, link));
                list.links = Some(links);
                list.at = links.decode(place, link);
                return list.at != 0;
            }
        };
        self.problem.get_or_insert_with(|| {
            format!(
                "a fast bin leads to {at:#x}, which {why}; the rest of its list counts as in use"
            )
        });
        false
    }
}

/// How a link at `place`, in the chunk `at`, is stored, if nothing else tells.
fn likely_links(at: u64, place: u64, link: u64) -> Links {
    if let Some(links) = Links::of_last(place, link) {
        return links;
    }
    // Of the two readings, one is an address; should both be, chunks of a list lie near each other.
    let fits = |address: u64| address.is_multiple_of(CHUNK_ALIGNMENT) && address >> 47 == 0;
    let mangled = Links::Mangled.decode(place, link);
    if fits(mangled) && (!fits(link) || mangled.abs_diff(at) < link.abs_diff(at)) {
        Links::Mangled
    } else {
        Links::Plain
    }
}

/// Words of memory, read page by page: chunks of a list are often neighbours, and a page costs little more than a word.
struct NearMemory<'a> {
    image: &'a dyn Image,
    /// The pages that are at hand, by their number modulo [`NEAR_PAGES`].
    pages: Vec<Option<(u64, Box<[u8]>)>>,
    page_size: u64,
}

/// Pages kept at hand.
const NEAR_PAGES: usize = 2048;

impl<'a> NearMemory<'a> {
    fn new(image: &'a dyn Image) -> Self {
        Self {
            image,
            pages: vec![None; NEAR_PAGES],
            page_size: image.page_size(),
        }
    }

    fn word(&mut self, address: u64) -> Option<u64> {
        let start = address & !(self.page_size - 1);
        let slot = usize::try_from(address / self.page_size).ok()? % NEAR_PAGES;
        let offset = usize::try_from(address - start).ok()?;
        let page = self.pages.get_mut(slot)?;
        let is_at_hand = page.as_ref().is_some_and(|(at, _)| *at == start);
        if !is_at_hand {
            // Memory that is swapped out stays there.
            if self.image.may_be_swapped()
                && self
                    .image
                    .residency(start, start.checked_add(self.page_size)?)
                    .is_some_and(|residency| !residency.swapped.is_empty())
            {
                return None;
            }
            let mut bytes = match page.take() {
                Some((_, bytes)) => bytes,
                None => vec![0; usize::try_from(self.page_size).ok()?].into(),
            };
            if self.image.read(start, &mut bytes) != bytes.len() {
                return None;
            }
            *page = Some((start, bytes));
        }
        let (_, bytes) = page.as_ref()?;
        let word = bytes.get(offset..offset.checked_add(8)?)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn freed_chunks_are_found_by_address() {
        let cached = [0x40, 0x20].map(|address| CachedChunk {
            address,
            bytes: 32,
            is_mapped: false,
        });
        let freed = FreedChunks::new(&cached, &[0x30, 0x80]);
        assert_eq!(freed.len(), 4);
        assert_eq!(freed.at(freed.first_from(0x30)), 0x30);
        assert!(freed.is_cached(0) && !freed.is_cached(1));
        assert!(freed.has_cached(0x40) && !freed.has_cached(0x30));
        assert_eq!(freed.at(4), u64::MAX);
        assert!(!freed.has_doubles());
        assert!(FreedChunks::new(&cached, &[0x20]).has_doubles());
    }

    #[test]
    fn the_last_link_tells_how_links_are_stored() {
        assert_eq!(Links::of_last(0x5000_0010, 0), Some(Links::Plain));
        assert_eq!(Links::of_last(0x5000_0010, 0x50000), Some(Links::Mangled));
        assert_eq!(Links::of_last(0x5000_0010, 0x5000_0040), None);
        assert_eq!(Links::Mangled.decode(0x5000_0010, 0x5005_0040), 0x5000_0040);
    }
}
