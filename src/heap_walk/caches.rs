//! Thread caches (`tcache_perthread_struct`): where each thread's is, and the chunks that wait in it.
//!
//! A thread's cache is found by its pointer in thread-local storage, below the thread pointer: at the same distance in
//! all threads of a program. The structure lies in a chunk whose size tells its layout, and is believed only if all its
//! lists are as long as it says.

use super::Image;
use super::arena::CHUNK_ALIGNMENT;
use super::arena::IS_MAPPED;
use super::arena::SIZE_FLAGS;
use super::free_lists::CachedChunk;
use super::free_lists::HEADER;
use super::free_lists::Links;
use super::free_lists::MOST_FREED;

/// How far below the thread pointer the pointer to a cache is looked for, nearest first; programs may have large thread-local
/// variables of their own.
const REACHES: [u64; 3] = [4 << 10, 64 << 10, 4 << 20];
/// Most threads that are asked.
pub(super) const MOST_THREADS: usize = 65_536;
/// Longest list that is followed where nothing says how long it is.
const LONGEST: u64 = 65_535;
/// Most candidates that are examined in one thread.
const MOST_CANDIDATES: usize = 256;
/// Bins of small sizes; all versions have these.
const SMALL_BINS: usize = 64;

/// How a cache is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Layout {
    /// 2.26 to 2.29: one byte for each count.
    Bytes,
    /// 2.30 to 2.41: two bytes.
    Words,
    /// 2.42 and later: free places instead of counts, and bins of large sizes.
    Slots,
}

impl Layout {
    /// The layout of a cache in a chunk of this size. The chunk may have up to 32 bytes more, where the rest of a free chunk
    /// was too small to be one.
    fn of_chunk(bytes: u64) -> Option<Self> {
        match bytes {
            0x250..=0x270 => Some(Self::Bytes),
            0x290..=0x2b0 => Some(Self::Words),
            0x300..=0x330 => Some(Self::Slots),
            _ => None,
        }
    }

    const fn bins(self) -> usize {
        match self {
            Self::Bytes | Self::Words => SMALL_BINS,
            Self::Slots => 76,
        }
    }

    const fn count_bytes(self) -> usize {
        match self {
            Self::Bytes => 1,
            Self::Words | Self::Slots => 2,
        }
    }

    const fn size(self) -> usize {
        self.bins() * (self.count_bytes() + 8)
    }
}

/// The caches of all threads.
#[derive(Clone, Debug, Default)]
pub(super) struct Caches {
    /// Threads that were asked.
    pub(super) threads: u64,
    /// Threads in which a cache was found.
    pub(super) found: u64,
    pub(super) chunks: Vec<CachedChunk>,
    /// How links are stored, if that was seen.
    pub(super) links: Option<Links>,
    /// What is wrong with one of them, if something is.
    pub(super) problem: Option<String>,
}

/// Where memory of chunks may be: what a pointer to a cache must lead to.
pub(super) trait MayHoldChunks {
    /// Where the memory ends in which the contents of a chunk at this address may be; `None` when none can be there.
    fn end(&self, address: u64) -> Option<u64>;

    /// Whether an address may be that of a chunk's contents.
    fn may_hold(&self, address: u64) -> bool {
        self.end(address).is_some()
    }
}

/// Finds the caches of threads with these thread pointers. `slots` is how many chunks a cache holds of one size, if known.
pub(super) fn find(
    image: &dyn Image,
    thread_pointers: &[u64],
    memory: &dyn MayHoldChunks,
    slots: Option<u64>,
) -> Caches {
    let mut caches = Caches::default();
    // Distances at which caches were found, the last one first.
    let mut distances: Vec<u64> = Vec::new();
    let mut seen = std::collections::HashSet::new();
    for pointer in thread_pointers.iter().copied().take(MOST_THREADS) {
        caches.threads += 1;
        let known = distances
            .iter()
            .find_map(|distance| cache_at(image, pointer.checked_sub(*distance)?, memory, slots));
        let found = known.or_else(|| {
            // A thread that has not allocated has none; where others were found at one distance, its word there is 0.
            let is_without = distances
                .first()
                .and_then(|distance| image.word(pointer.checked_sub(*distance)?))
                == Some(0);
            if is_without {
                return None;
            }
            let searched = search(image, pointer, memory, slots)
                // That of another thread, whose thread-local storage is near.
                .filter(|(_, cache)| !seen.contains(&cache.address));
            let Some((distance, cache)) = searched else {
                let damaged = distances.iter().find_map(|distance| {
                    damaged_at(image, pointer.checked_sub(*distance)?, memory)
                });
                if let Some(address) = damaged {
                    caches.problem.get_or_insert_with(|| damage(address));
                }
                return None;
            };
            distances.insert(0, distance);
            distances.truncate(4);
            Some(cache)
        });
        let Some(cache) = found.filter(|cache| seen.insert(cache.address)) else {
            continue;
        };
        caches.found += 1;
        if caches.chunks.len().saturating_add(cache.chunks.len()) > MOST_FREED {
            caches.problem.get_or_insert_with(|| {
                format!("they hold more than {MOST_FREED} chunks; the rest counts as in use")
            });
            break;
        }
        caches.links = caches.links.or(cache.links);
        caches.chunks.extend(cache.chunks);
    }
    caches
}

/// A cache and its chunks.
struct Cache {
    address: u64,
    chunks: Vec<CachedChunk>,
    links: Option<Links>,
}

/// Looks for a pointer to a cache below a thread pointer, the nearest first.
fn search(
    image: &dyn Image,
    thread_pointer: u64,
    memory: &dyn MayHoldChunks,
    slots: Option<u64>,
) -> Option<(u64, Cache)> {
    let mut done = 0;
    let mut candidates = 0;
    let mut seen = std::collections::HashSet::new();
    let mapping = image.mappings().iter().find(|mapping| {
        (mapping.start.0..mapping.end.0).contains(&thread_pointer.wrapping_sub(8))
    })?;
    for reach in REACHES {
        let start = thread_pointer.saturating_sub(reach).max(mapping.start.0) & !7;
        let end = thread_pointer.saturating_sub(done) & !7;
        done = reach;
        let length = usize::try_from(end.checked_sub(start)?).ok()?;
        let mut bytes = vec![0; length];
        if length == 0 || image.read(start, &mut bytes) != length {
            continue;
        }
        let (words, _) = bytes.as_chunks::<8>();
        for (index, word) in words.iter().enumerate().rev() {
            let at = start + 8 * index as u64;
            let address = u64::from_le_bytes(*word);
            if !address.is_multiple_of(CHUNK_ALIGNMENT)
                || !memory.may_hold(address)
                || !seen.insert(address)
            {
                continue;
            }
            candidates += 1;
            if candidates > MOST_CANDIDATES {
                return None;
            }
            if let Some(cache) = cache_of(image, address, memory, slots) {
                return Some((thread_pointer - at, cache));
            }
        }
    }
    None
}

/// The cache to which the word at an address points.
fn cache_at(
    image: &dyn Image,
    place: u64,
    memory: &dyn MayHoldChunks,
    slots: Option<u64>,
) -> Option<Cache> {
    let address = image.word(place)?;
    (address.is_multiple_of(CHUNK_ALIGNMENT) && memory.may_hold(address))
        .then(|| cache_of(image, address, memory, slots))
        .flatten()
}

fn damage(address: u64) -> String {
    format!(
        "the lists of the one at {address:#x} are not what it says, unless a thread is in the midst of changing them; its chunks count as in use"
    )
}

/// The address to which the word leads that stands in the place of a pointer to a cache, if a chunk of a cache's size is there.
fn damaged_at(image: &dyn Image, place: u64, memory: &dyn MayHoldChunks) -> Option<u64> {
    let address = image.word(place)?;
    let is_likely = address.is_multiple_of(CHUNK_ALIGNMENT) && memory.may_hold(address);
    let size = image.word(address.checked_sub(8).filter(|_| is_likely)?)?;
    Layout::of_chunk(size & !SIZE_FLAGS).map(|_| address)
}

/// A list that is being followed.
#[derive(Clone)]
struct List {
    bin: usize,
    at: u64,
    /// Chunks that the cache says it has; `None` when only free places are told.
    count: Option<u64>,
    free_places: u64,
    chunks: u64,
    /// A chunk passed by, the later the longer the list: a list that leads back comes to it again.
    mark: u64,
}

/// The cache at an address, if there is one: if all its lists are what it says.
fn cache_of(
    image: &dyn Image,
    address: u64,
    memory: &dyn MayHoldChunks,
    slots: Option<u64>,
) -> Option<Cache> {
    let size = image.word(address.checked_sub(8)?)?;
    let layout = Layout::of_chunk(size & !SIZE_FLAGS)?;
    let mut bytes = vec![0; layout.size()];
    if image.read(address, &mut bytes) != bytes.len() {
        return None;
    }
    let (counts, entries) = bytes.split_at(layout.bins() * layout.count_bytes());
    let (entries, _) = entries.as_chunks::<8>();
    let counts = counts
        .chunks_exact(layout.count_bytes())
        .map(|count| match count {
            [count] => u64::from(*count),
            [low, high] => u64::from(u16::from_le_bytes([*low, *high])),
            _ => 0,
        });
    // What free places and chunks come to: the same for every bin.
    let mut places = slots.filter(|_| layout == Layout::Slots);
    let mut lists = Vec::new();
    for (bin, (count, entry)) in counts.zip(entries).enumerate() {
        let first = u64::from_le_bytes(*entry);
        let is_counted = layout != Layout::Slots;
        if is_counted && (count == 0) != (first == 0) {
            return None;
        }
        if first == 0 {
            if !is_counted && *places.get_or_insert(count) != count {
                return None;
            }
            continue;
        }
        lists.push(List {
            bin,
            at: first,
            count: is_counted.then_some(count),
            free_places: count,
            chunks: 0,
            mark: 0,
        });
    }
    if lists.is_empty() {
        return Some(Cache {
            address,
            chunks: Vec::new(),
            links: (layout == Layout::Bytes).then_some(Links::Plain),
        });
    }
    // A single link may make sense both ways: in a heap at low addresses (programs at fixed places have such) both lead
    // close by. Followed to their ends, all lists do one way only.
    let ways: &[Links] = match layout {
        Layout::Bytes => &[Links::Plain],
        Layout::Words | Layout::Slots => &[Links::Mangled, Links::Plain],
    };
    ways.iter().find_map(|links| {
        follow(image, lists.clone(), memory, places, *links).map(|chunks| Cache {
            address,
            chunks,
            links: Some(*links),
        })
    })
}

/// The chunks of all lists, followed side by side; `None` when one of them is not what the cache says.
fn follow(
    image: &dyn Image,
    mut lists: Vec<List>,
    memory: &dyn MayHoldChunks,
    mut places: Option<u64>,
    links: Links,
) -> Option<Vec<CachedChunk>> {
    let mut chunks = Vec::new();
    let (mut addresses, mut words) = (Vec::new(), Vec::new());
    while !lists.is_empty() {
        addresses.clear();
        addresses.extend(
            lists
                .iter()
                .flat_map(|list| [list.at.wrapping_sub(8), list.at]),
        );
        image.read_words(&addresses, &mut words);
        let (pairs, _) = words.as_chunks::<2>();
        let mut going_on = Vec::with_capacity(lists.len());
        for (mut list, pair) in lists.into_iter().zip(pairs) {
            let [Some(size), Some(link)] = *pair else {
                return None;
            };
            chunks.push(cached_chunk(&list, size, memory)?);
            list.chunks += 1;
            let ends = Links::of_last(list.at, link) == Some(links);
            let is_last = match list.count {
                Some(count) => list.chunks == count,
                None => match places {
                    Some(places) => list.chunks + list.free_places == places,
                    None => ends,
                },
            };
            if list.chunks > LONGEST || (is_last && !ends) {
                return None;
            }
            if is_last {
                let all = list.chunks + list.free_places;
                if list.count.is_none() && *places.get_or_insert(all) != all {
                    return None;
                }
                continue;
            }
            if list.chunks.is_power_of_two() {
                list.mark = list.at;
            }
            list.at = next_of(&list, link, links)?;
            if list.at == list.mark || chunks.len() > MOST_FREED {
                return None;
            }
            going_on.push(list);
        }
        lists = going_on;
    }
    Some(chunks)
}

/// The chunk that a list has come to, if it belongs there.
fn cached_chunk(list: &List, size: u64, memory: &dyn MayHoldChunks) -> Option<CachedChunk> {
    let bytes = size & !SIZE_FLAGS;
    let address = list.at.checked_sub(HEADER)?;
    let room = memory.end(address)?.checked_sub(address)?;
    let is_mapped = size & IS_MAPPED != 0;
    let fits = if list.bin < SMALL_BINS {
        !is_mapped && bytes == 32 + 16 * list.bin as u64
    } else {
        bytes > 1024
    };
    (fits && bytes <= room && list.at.is_multiple_of(CHUNK_ALIGNMENT)).then_some(CachedChunk {
        address,
        bytes,
        is_mapped,
    })
}

/// Where a link leads; `None` when no chunk can be there.
fn next_of(list: &List, link: u64, links: Links) -> Option<u64> {
    let next = links.decode(list.at, link);
    (next != 0 && next.is_multiple_of(CHUNK_ALIGNMENT) && next >> 56 == 0).then_some(next)
}
