//! musl's malloc, found without symbols: `__malloc_context` begins with a secret that stands in each of its pages of
//! records as well (src/malloc/mallocng/meta.h of musl 1.2.1 and later).

use super::objects::Object;
use crate::heap_walk::Image;

/// Bytes read at a time; of these the last so many again.
const PIECE: usize = 256 << 10;
const OVERLAP: u64 = 128;
/// Pages of records that are followed, and groups that are noted.
const MOST_AREAS: usize = 1 << 16;
const MOST_GROUPS: usize = 1 << 20;
/// `struct meta_area`: check, next, number of slots; then `struct meta` for each.
const AREA: usize = 4096;
const AREA_HEADER: usize = 24;
const META: usize = 40;

/// What was found of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Context {
    secret: u64,
    /// The first page of records.
    areas: u64,
}

/// Looks for it in the writable memory of a file, at most `limit` bytes.
pub(super) fn context(image: &dyn Image, object: &Object<'_>, limit: u64) -> Option<Context> {
    let mut left = limit;
    let mut bytes = vec![0; PIECE];
    let writable = object
        .mappings
        .iter()
        .filter(|mapping| mapping.permissions.read && mapping.permissions.write);
    for mapping in writable {
        // What was never touched is all zeros, and is not to be touched now.
        let (start, end) = (mapping.start.0, mapping.end.0);
        let end = end.min(start.saturating_add(limit));
        let touched = match image.residency(start, end) {
            Some(residency) => residency.resident,
            None => vec![(start, end)],
        };
        for (mut start, end) in touched {
            while start < end && left > 0 {
                let wanted = usize::try_from((end - start).min(left))
                    .unwrap_or(PIECE)
                    .min(PIECE);
                let length = image.read(start, bytes.get_mut(..wanted)?);
                if let Some(context) = context_among(image, bytes.get(..length)?) {
                    return Some(context);
                }
                left = left.saturating_sub(length as u64);
                let step = (length as u64).saturating_sub(OVERLAP);
                if start.saturating_add(length as u64) >= end || step == 0 {
                    break;
                }
                start = start.saturating_add(step);
            }
        }
    }
    None
}

fn context_among(image: &dyn Image, bytes: &[u8]) -> Option<Context> {
    let (words, _) = bytes.as_chunks::<8>();
    let words: Vec<u64> = words.iter().map(|word| u64::from_le_bytes(*word)).collect();
    words.windows(10).find_map(|words| context_at(image, words))
}

/// Whether these words are the beginning of `struct malloc_context`: secret, page size where that is no constant,
/// `init_done`, …, first and last page of records.
fn context_at(image: &dyn Image, words: &[u64]) -> Option<Context> {
    let secret = *words.first()?;
    let by_page_size = usize::from(words.get(1) == Some(&image.page_size()));
    let is_begun = words.get(1 + by_page_size)? & 0xffff_ffff == 1;
    let areas = *words.get(7 + by_page_size)?;
    let last = *words.get(8 + by_page_size)?;
    let is_page = |address: u64| address != 0 && address.is_multiple_of(AREA as u64);
    let may_be = secret != 0 && is_begun && is_page(areas) && is_page(last);
    (may_be && image.word(areas) == Some(secret) && image.word(last) == Some(secret))
        .then_some(Context { secret, areas })
}

impl Context {
    /// The mappings that its groups of slots have to themselves, by address; `None` when there are too many.
    pub(super) fn groups(self, image: &dyn Image) -> Option<Vec<(u64, u64)>> {
        let mut groups = Vec::new();
        let mut at = self.areas;
        let mut page = vec![0; AREA];
        for _ in 0..MOST_AREAS {
            if at == 0 {
                groups.sort_unstable();
                groups.dedup();
                // What overlaps cannot be: the records changed meanwhile, or are not what they seem.
                let is_sound =
                    groups.is_sorted_by(|(_, end): &(u64, u64), (start, _)| end <= start);
                return is_sound.then_some(groups);
            }
            if image.read(at, &mut page) != page.len() {
                return None;
            }
            let (words, _) = page.as_chunks::<8>();
            let word = |index: usize| words.get(index).copied().map(u64::from_le_bytes);
            if word(0) != Some(self.secret) {
                return None;
            }
            at = word(1)?;
            let many = usize::try_from(word(2)? & 0xffff_ffff).ok()?;
            let metas = page.get(AREA_HEADER..)?.chunks_exact(META).take(many);
            groups.extend(metas.filter_map(mapped_group));
            if groups.len() > MOST_GROUPS {
                return None;
            }
        }
        None
    }
}

/// `struct meta`: prev, next, mem, two masks, and bits of which the upper ones are the pages mapped for it alone.
fn mapped_group(meta: &[u8]) -> Option<(u64, u64)> {
    let (words, _) = meta.as_chunks::<8>();
    let [_, _, memory, _, bits] = words else {
        return None;
    };
    let memory = u64::from_le_bytes(*memory);
    let bytes = (u64::from_le_bytes(*bits) >> 12).checked_mul(4096)?;
    let end = memory.checked_add(bytes)?;
    (memory != 0 && bytes != 0).then_some((memory, end))
}
