//! glibc's arithmetic on made-up facts.

use super::explain::Malloc;
use crate::event::MallocCall;
use crate::event::MallocSeen;
use crate::event::MallocSettings;
use crate::event::MapFlags;
use crate::event::Protection;
use crate::event::SizeCandidate;
use crate::report::StepExplanation;
use crate::report::StepReason;
use crate::report::StepTermKind as Kind;
use crate::units::Address;
use crate::units::Timestamp;

const PAGE: u64 = 4096;
const HEAP: u64 = 0x5555_5555_9000;
/// Functions of the C library between malloc and brk.
const DEEP: Option<u32> = Some(5);

fn seen(settings: MallocSettings) -> MallocSeen {
    MallocSeen {
        file: None,
        version: Some("2.36".to_owned()),
        settings,
    }
}

fn malloc() -> Malloc {
    Malloc::new(&seen(defaults()), PAGE)
}

fn defaults() -> MallocSettings {
    MallocSettings {
        top_pad_bytes: 128 << 10,
        trim_threshold_bytes: 128 << 10,
        mmap_threshold_bytes: 128 << 10,
        mmap_threshold_is_dynamic: true,
        mmap_max: 65_536,
        arena_max: 0,
        tcache_count: Some(7),
        tcache_max_bytes: Some(1032),
        thp_page_bytes: None,
        huge_page_bytes: None,
    }
}

fn call(top: u64, top_bytes: u64, candidates: &[(u16, u64)]) -> MallocCall {
    MallocCall {
        top: Address(top),
        top_bytes,
        contiguous: true,
        heap: None,
        depth: DEEP,
        candidates: candidates
            .iter()
            .map(|&(place, bytes)| SizeCandidate { place, bytes })
            .collect(),
    }
}

fn moved(malloc: &mut Malloc, call: &MallocCall, from: u64, to: u64) -> StepExplanation {
    let explanation = malloc.break_moved(call, Address(from), Address(to));
    malloc.resolve(&explanation)
}

fn terms(explanation: &StepExplanation) -> Vec<(Kind, i64)> {
    let terms = explanation.terms.iter();
    terms.map(|term| (term.kind, term.bytes)).collect()
}

#[test]
fn a_growth_alone_gives_bounds_and_the_parts_that_are_known() {
    // The row of the founding experiment on glibc 2.23: 90 KiB asked for, 69,552 bytes left.
    let end = HEAP + 0x25000;
    let found = moved(
        &mut malloc(),
        &call(end - 69_552, 69_552, &[]),
        end,
        end + 0x26000,
    );
    assert_eq!(found.reason, StepReason::Request);
    assert_eq!(found.chunk_bytes, None);
    let (least, most) = (
        found.request_min_bytes.unwrap(),
        found.request_max_bytes.unwrap(),
    );
    assert!(
        (least..=most).contains(&92_160) && most - least < 4096 + 16,
        "{least} to {most}"
    );
    assert_eq!(
        terms(&found),
        [
            (Kind::ChunkAndRounding, 92_176 + 1_920),
            (Kind::TopPad, 131_072),
            (Kind::SmallestChunk, 32),
            (Kind::LeftInTop, -69_552),
        ]
    );
}

#[test]
fn a_size_beside_its_request_is_known_at_once_and_one_by_itself_is_not() {
    let end = HEAP + 0x25000;
    let grown = |candidates: &[(u16, u64)]| {
        let call = call(end - 69_552, 69_552, candidates);
        moved(&mut malloc(), &call, end, end + 0x26000)
    };
    let found = grown(&[(40, 92_176), (72, 92_160)]);
    assert_eq!(found.chunk_bytes, Some(92_176));
    assert_eq!(terms(&found)[0], (Kind::Chunk, 92_176));
    assert_eq!(terms(&found)[1], (Kind::PageRounding, 1_920));
    assert_eq!(grown(&[(40, 92_176)]).chunk_bytes, None);
}

#[test]
fn places_that_two_growths_bear_out_are_learnt_and_help_the_first_one_too() {
    let mut malloc = malloc();
    let mut end = HEAP;
    let mut steps = Vec::new();
    // By itself each growth has two words that may be the size; only one place has a possible size in all.
    for (chunk, stray) in [(50_000, 48_016), (70_000, 12), (61_008, 7)] {
        let bytes = (chunk + 131_072 + 32_u64).next_multiple_of(PAGE);
        let call = call(end, 0, &[(40, chunk), (96, stray)]);
        steps.push(malloc.break_moved(&call, Address(end), Address(end + bytes)));
        // Another program's break between them, so that no two tops are the same.
        end += bytes + PAGE;
    }
    let chunks: Vec<_> = steps
        .iter()
        .map(|step| malloc.resolve(step).chunk_bytes)
        .collect();
    assert_eq!(chunks, [Some(50_000), Some(70_000), Some(61_008)]);
}

#[test]
fn what_goes_back_is_told_apart_by_how_much_is_kept() {
    let (top, end) = (HEAP + 0x1000, HEAP + 0x10_1000);
    let size = end - top;
    let by_free = (size - 33 - 131_072) & !(PAGE - 1);
    let found = moved(&mut malloc(), &call(top, size, &[]), end, end - by_free);
    assert_eq!(found.reason, StepReason::TrimByFree);
    let all = (size - 33) & !(PAGE - 1);
    let found = moved(&mut malloc(), &call(top, size, &[]), end, end - all);
    assert_eq!(found.reason, StepReason::MallocTrim);
    let odd = moved(&mut malloc(), &call(top, size, &[]), end, end - 100);
    assert_eq!(odd.reason, StepReason::Unexplained);
    // The top does not end at the break: whoever moved it was not malloc.
    let foreign = moved(&mut malloc(), &call(top, size - 64, &[]), end, end - PAGE);
    assert_eq!(foreign.reason, StepReason::NotMalloc);
}

#[test]
fn who_calls_sbrk_alone_is_not_malloc() {
    let mut own = call(HEAP, 4096, &[]);
    own.depth = Some(2);
    let found = moved(&mut malloc(), &own, HEAP + 4096, HEAP + 4096 + 0x21000);
    assert_eq!(found.reason, StepReason::NotMalloc);
    assert_eq!(found.terms, []);
}

#[test]
fn malloc_makes_up_for_a_move_that_was_not_its_own() {
    // Measured: the old top has 22,848 bytes, and the break is at an odd address by somebody's sbrk.
    let (from, to) = (0x5650_3a18_5d9d_u64, 0x5650_3a1a_6d9d_u64);
    let mut malloc = malloc();
    let at_both = call(from - 30_000, 22_848, &[]);
    moved(&mut malloc, &at_both, from, to);
    let bytes = {
        let end = to + 3 + 22_848;
        end.next_multiple_of(PAGE) - to
    };
    let found = moved(&mut malloc, &at_both, to, to + bytes);
    assert_eq!(found.reason, StepReason::AfterForeignMove);
    let sum: i64 = found.terms.iter().map(|term| term.bytes).sum();
    assert_eq!(sum, i64::try_from(bytes).unwrap());
    assert_eq!(terms(&found)[0], (Kind::LostTop, 22_848));
}

#[test]
fn mappings_are_chunks_from_the_threshold_on_and_raise_it_when_freed() {
    let mut malloc = malloc();
    let writable = Protection(Protection::READ.0 | Protection::WRITE.0);
    let map = |malloc: &mut Malloc, bytes| {
        let call = call(HEAP, 4096, &[]);
        malloc.mapped(1, &call, bytes, writable, MapFlags::ANONYMOUS)
    };
    assert!(map(&mut malloc, 64 << 10).is_none());
    let found = map(&mut malloc, 303_104).unwrap();
    assert_eq!(malloc.resolve(&found).reason, StepReason::MappedChunk);
    let raised = MallocSettings {
        mmap_threshold_bytes: 303_104,
        ..defaults()
    };
    malloc.changed(Timestamp(1), &seen(raised));
    let freed = malloc.unmapped(&call(HEAP, 4096, &[]), 303_104).unwrap();
    let freed = malloc.resolve(&freed);
    assert_eq!(freed.reason, StepReason::UnmappedChunkRaisedThreshold);
    let sum: i64 = freed.terms.iter().map(|term| term.bytes).sum();
    assert_eq!(sum, -303_104);
}

#[test]
fn a_mapping_after_a_refused_brk_goes_on_with_the_arena() {
    let mut malloc = malloc();
    let writable = Protection(Protection::READ.0 | Protection::WRITE.0);
    malloc.break_refused(7);
    let of = |malloc: &mut Malloc, tid| {
        let found = malloc.mapped(
            tid,
            &call(HEAP, 4096, &[]),
            1 << 20,
            writable,
            MapFlags::ANONYMOUS,
        );
        found.map(|found| malloc.resolve(&found).reason)
    };
    assert_eq!(of(&mut malloc, 8), Some(StepReason::MappedChunk));
    assert_eq!(of(&mut malloc, 7), Some(StepReason::BreakRefused));
    assert_eq!(of(&mut malloc, 7), Some(StepReason::MappedChunk));
}

#[test]
fn the_parts_add_up_to_the_move_whatever_malloc_says_of_itself() {
    let mut state = 0x1234_5678_9abc_def0_u64;
    let mut random = |below: u64| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 20) % below
    };
    for round in 0..20_000 {
        let settings = MallocSettings {
            top_pad_bytes: random(1 << 18),
            trim_threshold_bytes: random(1 << 18),
            ..defaults()
        };
        let mut malloc = Malloc::new(&seen(settings), PAGE);
        let mut at = HEAP + random(64) * PAGE;
        for _ in 0..6 {
            let bytes = match random(3) {
                0 => random(1 << 20),
                _ => random(256) * PAGE,
            };
            let to = if random(4) == 0 {
                at.saturating_sub(bytes).max(HEAP)
            } else {
                at + bytes
            };
            let top_bytes = random(1 << 19) & !15;
            let size = random(1 << 20) & !15;
            let call = call(
                at.saturating_sub(top_bytes),
                top_bytes,
                &[(8, size), (16, size.saturating_sub(9))],
            );
            if to == at {
                continue;
            }
            let explanation = malloc.break_moved(&call, Address(at), Address(to));
            let found = malloc.resolve(&explanation);
            let delta = to.cast_signed() - at.cast_signed();
            let sum: i64 = found.terms.iter().map(|term| term.bytes).sum();
            assert!(
                found.terms.is_empty() || sum == delta,
                "round {round}: {found:#?} is to be {delta}"
            );
            at = to;
        }
    }
}
