//! Chunks that are mappings of their own: found by their headers, where anonymous memory begins, or behind another of
//! them, as the kernel joins neighbours to one mapping.

use super::Image;
use super::arena::CHUNK_ALIGNMENT;
use super::arena::IS_MAPPED;
use super::arena::SIZE_FLAGS;
use super::layout::ArenaLayout;
use super::pages::Place;
use super::pages::Residence;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;

/// Pages whose beginnings are read at once.
const AT_ONCE: usize = 512;
/// In a mapping's first page a chunk may begin later, as aligned_alloc may ask for; so many places are looked at.
const PLACES_IN_PAGE: u64 = 4096 / 16;

/// What was found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct MappedFound {
    pub(super) chunks: u64,
    pub(super) bytes: u64,
    /// Bytes in memory; `None` when not known.
    pub(super) resident: Option<u64>,
    /// Bytes of all that are within one page of the beginning of their mapping, for the mallinfo fields.
    pub(super) read_bytes: u64,
}

/// How many are expected: malloc's own count, if known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Expected {
    pub(super) chunks: u64,
    pub(super) bytes: u64,
}

/// Searches private anonymous memory outside of `taken` (sorted ranges: arenas), until all that are expected are found.
pub(super) fn find(
    image: &dyn Image,
    layout: ArenaLayout,
    taken: &[(u64, u64)],
    expected: Option<Expected>,
) -> MappedFound {
    let mut search = Search {
        image,
        layout,
        page_size: image.page_size(),
        expected,
        found: MappedFound {
            resident: Some(0),
            ..MappedFound::default()
        },
    };
    if expected.is_some_and(|expected| expected.chunks == 0) {
        return search.found;
    }
    let areas: Vec<(u64, u64)> = image
        .mappings()
        .iter()
        .filter(|mapping| may_hold(mapping))
        .flat_map(|mapping| without(mapping.start.0, mapping.end.0, taken))
        .collect();
    // Those without a wish for alignment first: they are nearly all, and cheap to find.
    let mut gaps = Vec::new();
    for (start, end) in areas {
        if search.is_complete() {
            return search.found;
        }
        search.area(start, end, &mut gaps);
    }
    for (start, end) in gaps {
        if search.is_complete() {
            break;
        }
        search.aligned(start, end);
    }
    search.found
}

fn may_hold(mapping: &Mapping) -> bool {
    matches!(mapping.kind(), MappingKind::Anonymous)
        && mapping.permissions.read
        && mapping.permissions.write
}

/// The parts of a range that are in none of `taken`.
fn without(start: u64, end: u64, taken: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut parts = Vec::new();
    let mut at = start;
    for (from, to) in taken {
        if *to <= at || *from >= end {
            continue;
        }
        if *from > at {
            parts.push((at, *from));
        }
        at = at.max(*to);
    }
    if at < end {
        parts.push((at, end));
    }
    parts
}

struct Search<'a> {
    image: &'a dyn Image,
    layout: ArenaLayout,
    page_size: u64,
    expected: Option<Expected>,
    found: MappedFound,
}

impl Search<'_> {
    fn is_complete(&self) -> bool {
        self.expected.is_some_and(|expected| {
            self.found.chunks >= expected.chunks && self.found.bytes >= expected.bytes
        })
    }

    /// The length of the mapping that a header stands for, if it is one: `before` bytes from its beginning, `size` in the
    /// chunk.
    fn length(&self, before: u64, size: u64, room: u64) -> Option<u64> {
        if size & SIZE_FLAGS != IS_MAPPED {
            return None;
        }
        // Since 2.43 the chunk's size leaves the header's 16 bytes out.
        let header = match self.layout {
            ArenaLayout::From243 => 16,
            ArenaLayout::UpTo226 | ArenaLayout::From227 => 0,
        };
        let length = (size & !SIZE_FLAGS)
            .checked_add(before)?
            .checked_add(header)?;
        (length != 0 && length.is_multiple_of(self.page_size) && length <= room).then_some(length)
    }

    fn take(&mut self, start: u64, length: u64) {
        self.found.chunks += 1;
        self.found.bytes = self.found.bytes.saturating_add(length);
        // Only the page of the header has been read, and that was in memory.
        let residence = Residence::new(self.image, start, start.saturating_add(length)).finish();
        self.found.resident = self
            .found
            .resident
            .zip(residence)
            .map(|(sum, (resident, _))| sum.saturating_add(resident));
    }

    /// Looks at the beginning of each page; what no chunk begins with goes to `gaps`.
    fn area(&mut self, start: u64, end: u64, gaps: &mut Vec<(u64, u64)>) {
        let mut residence = Residence::new(self.image, start, end);
        let (mut addresses, mut words) = (Vec::new(), Vec::new());
        let mut at = start;
        let mut gap_from = start;
        while at < end && !self.is_complete() {
            let (place, to) = residence.place(at);
            if place != Place::Resident {
                at = to.max(at.saturating_add(self.page_size));
                continue;
            }
            let to = to.min(end);
            addresses.clear();
            // Pages at the beginning of an area are the likeliest; then as many as there are.
            let many = if at == start { 1 } else { AT_ONCE };
            let step = usize::try_from(self.page_size).unwrap_or(4096);
            addresses.extend(
                (at..to)
                    .step_by(step)
                    .take(many)
                    .flat_map(|page| [page, page + 8]),
            );
            self.image.read_words(&addresses, &mut words);
            self.found.read_bytes += 16 * many as u64;
            let (pairs, _) = words.as_chunks::<2>();
            let mut next = at.saturating_add(self.page_size * pairs.len() as u64);
            for (pair, page) in pairs.iter().zip((at..).step_by(step)) {
                let [Some(before), Some(size)] = *pair else {
                    continue;
                };
                let length = (before == 0)
                    .then(|| self.length(0, size, end - page))
                    .flatten();
                if let Some(length) = length {
                    if gap_from < page {
                        gaps.push((gap_from, page));
                    }
                    self.take(page, length);
                    next = page + length;
                    gap_from = next;
                    break;
                }
            }
            at = next;
        }
        if gap_from < end {
            gaps.push((gap_from, end));
        }
    }

    /// Looks for a chunk that begins later than its mapping, as an alignment was asked for: the first word of its header says
    /// by how much.
    fn aligned(&mut self, start: u64, end: u64) {
        let mut at = start;
        let mut residence = Residence::new(self.image, start, end);
        while at < end && !self.is_complete() {
            match self.aligned_at(at, end, &mut residence) {
                Some(length) => {
                    self.take(at, length);
                    at = at.saturating_add(length);
                }
                None => {
                    let (place, to) = residence.place(at);
                    at = if place == Place::Resident {
                        at.saturating_add(self.page_size)
                    } else {
                        to.max(at.saturating_add(self.page_size))
                    };
                }
            }
        }
    }

    /// The length of a mapping that begins here and whose chunk begins later.
    fn aligned_at(&self, base: u64, end: u64, residence: &mut Residence<'_>) -> Option<u64> {
        let fits = |place: u64| -> Option<u64> {
            let before = self.image.word(place)?;
            let size = self.image.word(place.checked_add(8)?)?;
            (before == place - base)
                .then(|| self.length(before, size, end - base))
                .flatten()
        };
        // Small alignments: the header is in the first page.
        if residence.place(base).0 == Place::Resident {
            let mut page = vec![0; usize::try_from(self.page_size).ok()?];
            let length = self.image.read(base, &mut page);
            let (pairs, _) = page[..length].as_chunks::<16>();
            let near = pairs
                .iter()
                .zip((base..).step_by(16))
                .take(usize::try_from(PLACES_IN_PAGE).ok()?)
                .skip(1)
                .find_map(|(pair, place)| {
                    let before = u64::from_le_bytes(pair[..8].try_into().ok()?);
                    let size = u64::from_le_bytes(pair[8..].try_into().ok()?);
                    (before == place - base)
                        .then(|| self.length(before, size, end - base))
                        .flatten()
                });
            if near.is_some() {
                return near;
            }
        }
        // Those of pages and more: the block begins at a multiple, and the header stands right before.
        let mut alignment = self.page_size;
        while alignment <= (end - base).min(1 << 30) {
            let block = base
                .checked_add(CHUNK_ALIGNMENT)?
                .checked_next_multiple_of(alignment)?;
            let place = block - CHUNK_ALIGNMENT;
            if place > base
                && block < end
                && residence.place(place).0 == Place::Resident
                && let Some(length) = fits(place)
            {
                return Some(length);
            }
            alignment *= 2;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_is_left_out() {
        assert_eq!(without(10, 50, &[]), [(10, 50)]);
        assert_eq!(without(10, 50, &[(0, 20), (30, 40)]), [(20, 30), (40, 50)]);
        assert_eq!(without(10, 50, &[(10, 50)]), []);
        assert_eq!(without(10, 50, &[(45, 60), (60, 70)]), [(10, 45)]);
    }
}
