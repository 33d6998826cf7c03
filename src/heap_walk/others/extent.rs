//! How much memory an allocator has, where its mappings can be told from others'.

use crate::heap_walk::Image;
use crate::mapping::MappingKind;

/// Bytes that are asked about at a time.
const PIECE: u64 = 1 << 30;
/// More bytes are not asked about.
const MOST: u64 = 1 << 42;

/// Memory of an allocator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) mapped: Option<u64>,
    pub(super) resident: Option<u64>,
    pub(super) lazily_free: Option<u64>,
}

/// The memory in these ranges, which do not overlap.
pub(super) fn of_ranges(image: &dyn Image, ranges: &[(u64, u64)]) -> Extent {
    if ranges.is_empty() {
        return Extent::default();
    }
    let ranges = &joined(ranges);
    let length = |(start, end): &(u64, u64)| end.saturating_sub(*start);
    let mapped = ranges.iter().map(length).fold(0, u64::saturating_add);
    let mut resident = (mapped <= MOST).then_some(0_u64);
    let mut lazily_free = Some(0_u64);
    for (start, end) in ranges {
        let mut at = *start;
        while at < *end && resident.is_some() {
            let next = at.saturating_add(PIECE).min(*end);
            resident = resident.zip(resident_bytes(image, at, next)).map(sum);
            at = next;
        }
        lazily_free = lazily_free
            .zip(image.lazily_free_bytes(*start, *end))
            .map(sum);
    }
    Extent {
        mapped: Some(mapped),
        resident,
        lazily_free,
    }
}

/// The same ranges, those joined that touch: the kernel has one mapping for them.
fn joined(ranges: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for (start, end) in ranges {
        match joined.last_mut() {
            Some((_, last)) if last == start => *last = *end,
            _ => joined.push((*start, *end)),
        }
    }
    joined
}

fn sum((one, other): (u64, u64)) -> u64 {
    one.saturating_add(other)
}

fn resident_bytes(image: &dyn Image, start: u64, end: u64) -> Option<u64> {
    let residency = image.residency(start, end)?;
    Some(
        residency
            .resident
            .iter()
            .map(|(from, to)| to.saturating_sub(*from))
            .fold(0, u64::saturating_add),
    )
}

/// The mappings with names that begin so; see `PR_SET_VMA_ANON_NAME` in prctl(2).
pub(super) fn named(image: &dyn Image, names: &[&str]) -> Vec<(u64, u64)> {
    if names.is_empty() {
        return Vec::new();
    }
    image
        .mappings()
        .iter()
        .filter(|mapping| !mapping.permissions.is_none())
        .filter(|mapping| {
            mapping
                .name
                .as_deref()
                .is_some_and(|name| names.iter().any(|begins| name.starts_with(begins)))
        })
        .map(|mapping| (mapping.start.0, mapping.end.0))
        .collect()
}

/// Anonymous memory that may be used, without gaps but those that are reserved, from one of these addresses on.
pub(super) fn from(image: &dyn Image, places: &[u64]) -> Vec<(u64, u64)> {
    let mut ranges = Vec::new();
    let mut expected = None;
    for mapping in image.mappings() {
        let begins = places.contains(&mapping.start.0);
        let goes_on = expected == Some(mapping.start.0);
        if !(begins || goes_on) || mapping.kind() != MappingKind::Anonymous {
            expected = None;
            continue;
        }
        expected = Some(mapping.end.0);
        if !mapping.permissions.is_none() {
            ranges.push((mapping.start.0, mapping.end.0));
        }
    }
    ranges
}
