//! glibc's arithmetic on made-up facts.

use super::Explanation;
use super::Malloc;
use crate::event::ArenaHeap;
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

/// Growths from an empty top, each with these words on the stack; what is known of their chunks in the end.
fn chunks_of(growths: &[(u64, &[(u16, u64)])]) -> Vec<Option<u64>> {
    let mut malloc = malloc();
    let mut end = HEAP;
    let mut steps = Vec::new();
    for (chunk, words) in growths {
        let bytes = (chunk + 131_072 + 32_u64).next_multiple_of(PAGE);
        let call = call(end, 0, words);
        steps.push(malloc.break_moved(&call, Address(end), Address(end + bytes)));
        end += bytes;
    }
    steps
        .iter()
        .map(|step| malloc.resolve(step).chunk_bytes)
        .collect()
}

#[test]
fn places_that_two_growths_bear_out_are_learnt_and_help_the_first_one_too() {
    // At the first, two words may be the size; of their places, only one has a possible size at the second as well.
    let found = chunks_of(&[
        (50_000, &[(40, 50_000), (96, 49_968)]),
        (70_000, &[(40, 70_000), (96, 12)]),
        // And at the third it is chosen between two again.
        (61_008, &[(40, 61_008), (120, 60_976)]),
    ]);
    assert_eq!(found, [Some(50_000), Some(70_000), Some(61_008)]);
}

#[test]
fn a_growth_without_a_word_that_fits_bears_nothing_out() {
    let found = chunks_of(&[
        (50_000, &[(40, 50_000)]),
        (70_000, &[]),
        (61_008, &[(96, 7)]),
    ]);
    assert_eq!(found, [None, None, None]);
}

#[test]
fn places_that_disagree_leave_bounds() {
    let found = chunks_of(&[
        (50_000, &[(40, 50_000), (96, 49_968)]),
        (70_000, &[(40, 70_000), (96, 69_968)]),
    ]);
    assert_eq!(found, [None, None]);
}

#[test]
fn a_place_that_held_something_by_chance_once_does_not_hinder_the_true_one() {
    let found = chunks_of(&[
        (50_000, &[(200, 50_000)]),
        (70_000, &[(40, 70_000)]),
        (61_008, &[(40, 61_008)]),
    ]);
    assert_eq!(found, [None, Some(70_000), Some(61_008)]);
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
    let map = |malloc: &mut Malloc, bytes| {
        let call = call(HEAP, 4096, &[]);
        malloc.mapped(
            1,
            &call,
            Address(ARENA),
            bytes,
            WRITABLE,
            MapFlags::ANONYMOUS,
        )
    };
    assert!(map(&mut malloc, 64 << 10).is_none());
    let found = map(&mut malloc, 303_104).unwrap();
    assert_eq!(malloc.resolve(&found).reason, StepReason::MappedChunk);
    let raised = MallocSettings {
        mmap_threshold_bytes: 303_104,
        ..defaults()
    };
    malloc.changed(Timestamp(1), &seen(raised));
    let freed = malloc.unmapped(Address(ARENA), 303_104).unwrap();
    let freed = malloc.resolve(&freed);
    assert_eq!(freed.reason, StepReason::UnmappedChunkRaisedThreshold);
    let sum: i64 = freed.terms.iter().map(|term| term.bytes).sum();
    assert_eq!(sum, -303_104);
}

#[test]
fn a_mapping_after_a_refused_brk_goes_on_with_the_arena() {
    let mut malloc = malloc();
    // 200,000 bytes asked for, and 10,000 left in the top: sysmalloc wants 323,584 more.
    let (chunk, left) = (200_016_u64, 10_000);
    let wanted = (chunk + 131_072 + 32 - left).next_multiple_of(PAGE);
    let at_brk = call(HEAP, left, &[(40, chunk), (72, 200_000)]);
    malloc.break_refused(7, &at_brk, wanted);
    let of = |malloc: &mut Malloc, tid| {
        let call = call(HEAP, left, &[]);
        let found = malloc.mapped(
            tid,
            &call,
            Address(ARENA),
            1 << 20,
            WRITABLE,
            MapFlags::ANONYMOUS,
        );
        found.map(|found| malloc.resolve(&found))
    };
    assert_eq!(of(&mut malloc, 8).unwrap().reason, StepReason::MappedChunk);
    let fallback = of(&mut malloc, 7).unwrap();
    assert_eq!(fallback.reason, StepReason::BreakRefused);
    assert_eq!(fallback.chunk_bytes, Some(chunk));
    assert_eq!(
        terms(&fallback),
        [
            (Kind::Chunk, 200_016),
            (Kind::MappingRounding, (1 << 20) - 200_016 - 131_072 - 32),
            (Kind::TopPad, 131_072),
            (Kind::SmallestChunk, 32),
        ]
    );
    assert_eq!(of(&mut malloc, 7).unwrap().reason, StepReason::MappedChunk);
}

#[test]
fn a_growth_that_leaves_the_top_as_it_was_is_told_to_be_somebody_elses_after_all() {
    let mut malloc = malloc();
    let without_stack = |top_bytes| MallocCall {
        depth: None,
        ..call(HEAP, top_bytes, &[])
    };
    let at = HEAP + 8192;
    // The program's own sbrk, of whole pages: without a stack it looks like malloc's.
    let own = malloc.break_moved(&without_stack(8192), Address(at), Address(at + 0x40_000));
    assert_eq!(malloc.resolve(&own).reason, StepReason::Request);
    // But the top is the same at malloc's next one.
    let at = at + 0x40_000;
    let asked = malloc.break_moved(&without_stack(8192), Address(at), Address(at + 0x30_000));
    assert_eq!(malloc.resolve(&own).reason, StepReason::NotMalloc);
    assert_eq!(malloc.resolve(&own).terms, []);
    assert_eq!(malloc.resolve(&asked).reason, StepReason::Request);
    let explained = malloc.report().explained;
    assert_eq!((explained.break_requests, explained.not_malloc), (1, 1));
}

#[test]
fn a_chunk_that_was_mapped_alone_is_told_when_it_is_reallocated_and_when_it_goes() {
    let mut malloc = malloc();
    // A thread's stack, or whatever it was.
    assert!(malloc.unmapped(Address(ARENA), 303_104).is_none());
    let call = call(HEAP, 4096, &[]);
    let flags = MapFlags::ANONYMOUS;
    let mapped = malloc.mapped(1, &call, Address(ARENA), 303_104, WRITABLE, flags);
    assert!(mapped.is_some());
    let moved = Address(2 * ARENA);
    let resized = malloc.remapped(Address(ARENA), moved, 303_104, 704_512);
    let resized = malloc.resolve(&resized.unwrap());
    assert_eq!(resized.reason, StepReason::ResizedChunk);
    let asked = (resized.request_min_bytes, resized.request_max_bytes);
    assert!((asked.0..=asked.1).contains(&Some(704_000)), "{asked:?}");
    assert!(malloc.unmapped(Address(ARENA), 303_104).is_none());
    let freed = malloc.unmapped(moved, 704_512).unwrap();
    let freed = malloc.resolve(&freed);
    assert_eq!(freed.reason, StepReason::UnmappedChunk);
    assert_eq!(
        terms(&freed),
        [(Kind::ChunkAndRounding, -704_504), (Kind::Header, -8)]
    );
    assert!(malloc.unmapped(moved, 704_512).is_none());
}

/// Where a thread's arena may lie.
const ARENA: u64 = 0x7f00_0000_0000;

fn in_arena(bytes: u64, opened_bytes: u64, left: u64, words: &[(u16, u64)]) -> MallocCall {
    MallocCall {
        heap: Some(ArenaHeap {
            arena: Some(Address(ARENA + 0x30)),
            start: Address(ARENA),
            bytes,
            opened_bytes,
        }),
        ..call(ARENA + bytes - left, left, words)
    }
}

#[test]
fn arenas_of_threads_are_reserved_opened_and_grow() {
    let mut malloc = malloc();
    let flags = MapFlags(MapFlags::ANONYMOUS.0 | MapFlags::NORESERVE.0);
    let reserved = malloc.mapped(
        7,
        &call(HEAP, 4096, &[]),
        Address(ARENA),
        128 << 20,
        Protection(0),
        flags,
    );
    let reason = |malloc: &Malloc, found: &Explanation| malloc.resolve(found).reason;
    assert_eq!(
        reason(&malloc, &reserved.unwrap()),
        StepReason::ArenaReserved
    );
    let new = MallocCall {
        heap: Some(ArenaHeap {
            arena: None,
            start: Address(ARENA),
            bytes: 0,
            opened_bytes: 0,
        }),
        ..call(HEAP, 4096, &[])
    };
    let opened = malloc.opened(&new, Address(ARENA), 135_168).unwrap();
    assert_eq!(reason(&malloc, &opened), StepReason::ArenaOpened);
    // 90,000 bytes asked for, 1,008 left: 90,016 + 32 - 1,008, up to pages, of which two are open from an earlier time.
    let mut grown = Vec::new();
    for (chunk, request, opened) in [(90_016, 90_000, 8192), (70_016, 70_008, 0)] {
        let needed = (chunk + 32_u64 - 1_008).next_multiple_of(PAGE);
        let words = [(40, chunk), (56, request)];
        let call = in_arena(135_168, 135_168 + opened, 1_008, &words);
        let at = Address(ARENA + 135_168 + opened);
        grown.push(malloc.opened(&call, at, needed - opened).unwrap());
    }
    let found = malloc.resolve(&grown[0]);
    assert_eq!(found.reason, StepReason::ArenaGrew);
    assert_eq!(found.request_max_bytes, Some(90_000));
    assert_eq!(
        terms(&found),
        [
            (Kind::Chunk, 90_016),
            (Kind::PageRounding, 1_072),
            (Kind::SmallestChunk, 32),
            (Kind::LeftInTop, -1_008),
            (Kind::AlreadyOpen, -8_192),
        ]
    );
    assert_eq!(malloc.report().explained.arena_growths, 3);
    // Somewhere else in the heap nothing grows.
    let inside = in_arena(135_168, 135_168, 1_008, &[]);
    assert!(
        malloc
            .opened(&inside, Address(ARENA + 4096), 4096)
            .is_none()
    );
}

#[test]
fn pages_given_back_are_told_apart_by_where_they_lie() {
    let mut malloc = malloc();
    let arena = in_arena(0x10_0000, 0x10_0000, 0x4_0000, &[]);
    // The end of an arena, free pages inside of it, free pages of the heap, and a thread's stack.
    malloc.advised(&arena, Address(ARENA + 0xe_0000), 0x2_0000, false);
    malloc.advised(&arena, Address(ARENA + 0x2_0000), 0x3000, false);
    malloc.advised(&call(HEAP, 4096, &[]), Address(HEAP - 0x8000), 0x1000, true);
    malloc.advised(&call(HEAP, 4096, &[]), Address(ARENA), 0x7f_0000, false);
    let explained = malloc.report().explained;
    assert_eq!(
        (explained.arena_shrinks, explained.arena_shrunk_bytes),
        (1, 0x2_0000)
    );
    assert_eq!(
        (
            explained.malloc_trim_advices,
            explained.malloc_trim_advised_bytes
        ),
        (2, 0x4000)
    );
}

const WRITABLE: Protection = Protection(Protection::READ.0 | Protection::WRITE.0);

/// Small numbers, multiples of pages, and now and then any number at all.
struct Random(u64);

impl Random {
    fn any(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.any() % limit
    }

    fn size(&mut self) -> u64 {
        match self.below(40) {
            0 => self.any(),
            1 => u64::MAX - self.below(4096),
            2..20 => self.below(512) * PAGE,
            _ => self.below(1 << 20),
        }
    }
}

/// A call of malloc's as a hostile program may have prepared it.
fn hostile_call(random: &mut Random) -> MallocCall {
    let size = random.size();
    let mut call = call(
        random.size(),
        random.size(),
        &[(8, size), (16, size.wrapping_sub(9))],
    );
    call.contiguous = random.below(4) != 0;
    call.depth = [None, Some(1), Some(2), DEEP][usize::try_from(random.below(4)).unwrap()];
    if random.below(2) == 0 {
        call.heap = Some(ArenaHeap {
            arena: (random.below(3) != 0).then_some(Address(ARENA)),
            start: Address(ARENA),
            bytes: random.size(),
            opened_bytes: random.size(),
        });
    }
    call
}

#[test]
fn the_parts_add_up_to_the_move_whatever_malloc_says_of_itself() {
    let mut random = Random(0x1234_5678_9abc_def0);
    let mut with_terms = std::collections::BTreeMap::new();
    for round in 0..20_000 {
        let settings = MallocSettings {
            top_pad_bytes: random.size(),
            trim_threshold_bytes: random.size(),
            thp_page_bytes: (random.below(8) == 0).then(|| random.size()),
            ..defaults()
        };
        let mut malloc = Malloc::new(&seen(settings), PAGE);
        let mut at = HEAP + (1 << 30) + random.below(64) * PAGE;
        let mut found = Vec::new();
        for _ in 0..8 {
            let mut call = hostile_call(&mut random);
            let bytes = random.size().min(1 << 46);
            let number = bytes.cast_signed();
            match random.below(8) {
                0 => {
                    if random.below(2) == 0 {
                        malloc.break_refused(1, &call, random.size());
                    }
                    let mapped = malloc.mapped(
                        1,
                        &call,
                        Address(ARENA),
                        bytes,
                        WRITABLE,
                        MapFlags::ANONYMOUS,
                    );
                    found.extend(mapped.map(|mapped| (mapped, number)));
                }
                1 => {
                    let gone = malloc.unmapped(Address(ARENA), bytes);
                    found.extend(gone.map(|gone| (gone, -number)));
                }
                2 => {
                    // Half of them where the heap ends.
                    let opened = call.heap.map_or(0, |heap| heap.opened_bytes);
                    let at = Address(ARENA.wrapping_add(opened & !random.below(2)));
                    let opened = malloc.opened(&call, at, bytes);
                    found.extend(opened.map(|opened| (opened, number)));
                }
                3 => malloc.advised(&call, Address(ARENA + bytes), random.size(), true),
                kind => {
                    if random.below(2) == 0 {
                        // As it should be: the top ends at the break.
                        call.top_bytes = random.below(1 << 19) & !15;
                        call.top = Address(at.saturating_sub(call.top_bytes));
                    }
                    // Half of the trims as free makes them.
                    let kept = settings.top_pad_bytes.saturating_add(33);
                    let trimmed = match call.top_bytes.checked_sub(kept) {
                        Some(trimmed) if random.below(2) == 0 => trimmed & !(PAGE - 1),
                        _ => bytes,
                    };
                    let to = match kind {
                        4 => at.saturating_sub(trimmed).max(HEAP),
                        _ => at.saturating_add(bytes).min(1 << 47),
                    };
                    if to != at {
                        let moved = malloc.break_moved(&call, Address(at), Address(to));
                        found.push((moved, to.cast_signed() - at.cast_signed()));
                    }
                    at = to;
                }
            }
        }
        for (explanation, delta) in found {
            let resolved = malloc.resolve(&explanation);
            if resolved.terms.is_empty() {
                continue;
            }
            *with_terms
                .entry(format!("{:?}", resolved.reason))
                .or_insert(0) += 1;
            let sum: i128 = resolved
                .terms
                .iter()
                .map(|term| i128::from(term.bytes))
                .sum();
            assert_eq!(sum, i128::from(delta), "round {round}: {resolved:#?}");
        }
    }
    // A loop in which nothing is explained would prove nothing.
    for reason in [
        "Request",
        "TrimByFree",
        "MallocTrim",
        "MappedChunk",
        "UnmappedChunk",
        "BreakRefused",
        "ArenaGrew",
    ] {
        let number = with_terms.get(reason).copied().unwrap_or(0);
        assert!(number > 20, "{reason}: {with_terms:?}");
    }
}
