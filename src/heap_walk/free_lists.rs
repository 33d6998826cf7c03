//! Chunks that are freed and look as if they were in use: those in thread caches and in fast bins, by following their
//! lists. Since 2.32 the links are mangled with the address where they stand (malloc.c, `PROTECT_PTR`).

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

/// What the fast bins of all arenas hold.
#[derive(Clone, Debug, Default)]
pub(super) struct FastChunks {
    /// Addresses of the chunks.
    pub(super) chunks: Vec<u64>,
    /// Per arena, in their order: chunks and bytes.
    pub(super) by_arena: Vec<(u64, u64)>,
    /// Why that is not all, if it is not.
    pub(super) problem: Option<String>,
}

/// A fast bin that is being followed.
struct Follower {
    arena: usize,
    size: u64,
    at: u64,
    left: u64,
    links: Option<Links>,
}

/// Follows the fast bins of all arenas side by side: each round reads the next chunk of every list at once.
pub(super) fn fast_chunks(
    image: &dyn Image,
    arenas: &[ArenaState],
    links: Option<Links>,
) -> FastChunks {
    let mut found = FastChunks {
        by_arena: vec![(0, 0); arenas.len()],
        ..FastChunks::default()
    };
    let mut followers: Vec<Follower> = arenas
        .iter()
        .enumerate()
        .flat_map(|(arena, state)| {
            let sizes = (SMALLEST_CHUNK..).step_by(16);
            state
                .fast_bins
                .iter()
                .zip(sizes)
                .map(move |(first, size)| Follower {
                    arena,
                    size,
                    at: *first,
                    left: state.system_bytes / size + 1,
                    links,
                })
        })
        .filter(|follower| follower.at != 0)
        .collect();
    let (mut addresses, mut words) = (Vec::new(), Vec::new());
    while !followers.is_empty() {
        if found.chunks.len() + followers.len() > MOST_FREED {
            found.problem = Some(format!(
                "the fast bins hold more than {MOST_FREED} chunks; the rest counts as in use"
            ));
            break;
        }
        addresses.clear();
        addresses.extend(
            followers
                .iter()
                .flat_map(|list| [list.at.wrapping_add(8), list.at.wrapping_add(HEADER)]),
        );
        image.read_words(&addresses, &mut words);
        let (pairs, _) = words.as_chunks::<2>();
        let mut pairs = pairs.iter();
        followers.retain_mut(|list| {
            let (Some(size), Some(link)) = (match pairs.next() {
                Some([size, link]) => (*size, *link),
                None => (None, None),
            }) else {
                found
                    .problem
                    .get_or_insert_with(|| broken(list.at, "cannot be read"));
                return false;
            };
            step(list, size, link, &mut found)
        });
    }
    found
}

fn broken(at: u64, why: &str) -> String {
    format!("a fast bin leads to {at:#x}, which {why}; the rest of its list counts as in use")
}

/// Takes one chunk of a list; returns whether there are more.
fn step(list: &mut Follower, size: u64, link: u64, found: &mut FastChunks) -> bool {
    let at = list.at;
    if !at.is_multiple_of(CHUNK_ALIGNMENT) || size & !SIZE_FLAGS != list.size {
        let why = broken(at, "is no chunk of its size");
        found.problem.get_or_insert(why);
        return false;
    }
    if list.left == 0 {
        found
            .problem
            .get_or_insert_with(|| broken(at, "makes it longer than its arena"));
        return false;
    }
    list.left -= 1;
    found.chunks.push(at);
    if let Some((chunks, bytes)) = found.by_arena.get_mut(list.arena) {
        *chunks += 1;
        *bytes += list.size;
    }
    let place = at + HEADER;
    let links = list
        .links
        .or_else(|| Links::of_last(place, link))
        .unwrap_or_else(|| {
            // Of the two readings, the plain one is a multiple of 16 only by chance: addresses above the page are random.
            let plain_fits = link.is_multiple_of(CHUNK_ALIGNMENT) && link >> 47 == 0;
            let mangled = Links::Mangled.decode(place, link);
            let mangled_fits = mangled.is_multiple_of(CHUNK_ALIGNMENT) && mangled >> 47 == 0;
            let is_nearer = mangled.abs_diff(at) < link.abs_diff(at);
            if mangled_fits && (!plain_fits || is_nearer) {
                Links::Mangled
            } else {
                Links::Plain
            }
        });
    list.links = Some(links);
    list.at = links.decode(place, link);
    list.at != 0
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
        assert_eq!(freed.at(freed.first_from(0x21)), 0x30);
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
