//! Sums over stretches and arenas. What a damaged heap says of itself may come to more than there is: all sums stay at the
//! largest number then, and [`is_saturated`] tells.

use super::arena::ArenaState;
use super::examine::Walked;
use super::mapped::Expected;
use super::pages::PageSums;
use super::walk::Found;
use crate::event::Arena;
use crate::event::ArenaFigures;
use crate::event::Mallinfo;
use crate::units::Address;

/// Bytes that a walk accounts for.
pub(super) fn bytes_of(found: &Found, state: &ArenaState, is_top: bool) -> u64 {
    let (_, in_use) = found.classes.sums();
    let top = if is_top { state.top_bytes } else { 0 };
    total([
        in_use,
        found.cached_bytes,
        found.fast_bytes,
        found.binned_bytes,
        found.fence_bytes,
        top,
    ])
}

/// The sum; what a damaged heap says of itself may be more than there is.
fn total(parts: [u64; 6]) -> u64 {
    parts.into_iter().fold(0, u64::saturating_add)
}

/// Adds what one stretch holds.
pub(super) fn add(sum: &mut Found, more: &Found) {
    let is_first = sum.read_bytes == 0 && sum.live == 0 && sum.binned_chunks == 0;
    sum.classes.add(&more.classes);
    for (sum, more) in [
        (&mut sum.cached_bytes, more.cached_bytes),
        (&mut sum.cached_chunks, more.cached_chunks),
        (&mut sum.fast_bytes, more.fast_bytes),
        (&mut sum.fast_chunks, more.fast_chunks),
        (&mut sum.binned_bytes, more.binned_bytes),
        (&mut sum.binned_chunks, more.binned_chunks),
        (&mut sum.fence_bytes, more.fence_bytes),
        (&mut sum.odd_free_chunks, more.odd_free_chunks),
        (&mut sum.freed_met, more.freed_met),
        (&mut sum.resident, more.resident),
        (&mut sum.swapped, more.swapped),
        (&mut sum.read_bytes, more.read_bytes),
    ] {
        *sum = sum.saturating_add(more);
    }
    sum.first_odd = sum.first_odd.or(more.first_odd);
    sum.is_residence_known = more.is_residence_known && (is_first || sum.is_residence_known);
    sum.pages = PageSums {
        free_resident: sum
            .pages
            .free_resident
            .saturating_add(more.pages.free_resident),
        trimmable: sum.pages.trimmable.saturating_add(more.pages.trimmable),
        fragmented: sum.pages.fragmented.saturating_add(more.pages.fragmented),
    };
    if more.top_start != 0 {
        // Pins are what lies below the top, in the same stretch.
        sum.top_start = more.top_start;
        sum.last = more.last;
        sum.live = more.live;
    }
}

/// What is told of an arena.
pub(super) fn arena_of(walked: &Walked) -> Arena {
    let found = &walked.found;
    let state = &walked.state;
    let (in_use_chunks, in_use_bytes) = found.classes.sums();
    let known = |value: u64| found.is_residence_known.then_some(value);
    let has_top = if found.top_start == 0 {
        0
    } else {
        state.top_bytes
    };
    let accounted = total([
        in_use_bytes,
        found.cached_bytes,
        found.fast_bytes,
        found.binned_bytes,
        has_top,
        0,
    ]);
    let not_found_bytes = state.system_bytes.saturating_sub(walked.covered);
    Arena {
        address: Address(state.address),
        is_main: state.is_main,
        contiguous: state.contiguous,
        threads: Some(state.attached_threads),
        segments: walked.segments,
        top: Address(state.top),
        figures: ArenaFigures {
            system_bytes: state.system_bytes,
            in_use_bytes,
            in_use_chunks,
            cached_bytes: found.cached_bytes,
            cached_chunks: found.cached_chunks,
            fast_bytes: found.fast_bytes,
            fast_chunks: found.fast_chunks,
            binned_bytes: found.binned_bytes,
            binned_chunks: found.binned_chunks,
            top_bytes: state.top_bytes,
            other_bytes: state
                .system_bytes
                .saturating_sub(not_found_bytes)
                .saturating_sub(accounted),
            resident_bytes: known(found.resident),
            free_resident_bytes: known(found.pages.free_resident),
            trimmable_bytes: known(found.pages.trimmable)
                .zip(walked.top_trimmable.or((!state.is_main).then_some(0)))
                .map(|(inside, top)| inside.saturating_add(top)),
            fragmented_bytes: known(found.pages.fragmented),
            swapped_bytes: known(found.swapped),
            not_found_bytes,
        },
    }
}

/// The sum of two arenas' figures.
pub(super) fn plus(a: &ArenaFigures, b: &ArenaFigures) -> ArenaFigures {
    let sum = u64::saturating_add;
    let both = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| sum(a, b));
    ArenaFigures {
        system_bytes: sum(a.system_bytes, b.system_bytes),
        in_use_bytes: sum(a.in_use_bytes, b.in_use_bytes),
        in_use_chunks: sum(a.in_use_chunks, b.in_use_chunks),
        cached_bytes: sum(a.cached_bytes, b.cached_bytes),
        cached_chunks: sum(a.cached_chunks, b.cached_chunks),
        fast_bytes: sum(a.fast_bytes, b.fast_bytes),
        fast_chunks: sum(a.fast_chunks, b.fast_chunks),
        binned_bytes: sum(a.binned_bytes, b.binned_bytes),
        binned_chunks: sum(a.binned_chunks, b.binned_chunks),
        top_bytes: sum(a.top_bytes, b.top_bytes),
        other_bytes: sum(a.other_bytes, b.other_bytes),
        resident_bytes: both(a.resident_bytes, b.resident_bytes),
        free_resident_bytes: both(a.free_resident_bytes, b.free_resident_bytes),
        trimmable_bytes: both(a.trimmable_bytes, b.trimmable_bytes),
        fragmented_bytes: both(a.fragmented_bytes, b.fragmented_bytes),
        swapped_bytes: both(a.swapped_bytes, b.swapped_bytes),
        not_found_bytes: sum(a.not_found_bytes, b.not_found_bytes),
    }
}

/// Whether a sum came to more than can be: the largest number is no multiple of a chunk's alignment.
pub(super) fn is_saturated(figures: &ArenaFigures) -> bool {
    [
        figures.system_bytes,
        figures.in_use_bytes,
        figures.in_use_chunks,
        figures.cached_bytes,
        figures.cached_chunks,
        figures.fast_bytes,
        figures.fast_chunks,
        figures.binned_bytes,
        figures.binned_chunks,
        figures.top_bytes,
        figures.other_bytes,
        figures.not_found_bytes,
    ]
    .contains(&u64::MAX)
}

/// What `__libc_mallinfo2` adds up (malloc.c, `int_mallinfo`).
pub(super) fn mallinfo(
    walked: &[Walked],
    total: &ArenaFigures,
    mapped: Option<Expected>,
) -> Mallinfo {
    let free = total
        .fast_bytes
        .saturating_add(total.binned_bytes)
        .saturating_add(total.top_bytes);
    Mallinfo {
        arena: total.system_bytes,
        ordblks: total.binned_chunks.saturating_add(walked.len() as u64),
        smblks: total.fast_chunks,
        hblks: mapped.map(|mapped| mapped.chunks),
        hblkhd: mapped.map(|mapped| mapped.bytes),
        fsmblks: total.fast_bytes,
        uordblks: total.system_bytes.saturating_sub(free),
        fordblks: free,
        keepcost: walked.first().map_or(0, |main| main.state.top_bytes),
    }
}
