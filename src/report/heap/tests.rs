//! Verdicts and comparisons of examinations made by hand.

use super::*;
use crate::event::AllocatorRole;
use crate::event::Arena;
use crate::event::ArenaFigures;
use crate::event::CheckOutcome;
use crate::event::ChunkClass;
use crate::event::ExaminationCost;
use crate::event::GlibcHeap;
use crate::event::HeapCheck;
use crate::event::Mallinfo;
use crate::event::MallocSettings;
use crate::event::MappedChunks;
use crate::event::Pin;
use crate::event::ProcessMemory;
use crate::event::ReadingMoment;
use crate::event::RecognisedAllocator;
use crate::event::ThreadCaches;
use crate::units::Address;

pub(crate) const KIB: u64 = 1 << 10;
pub(crate) const MIB: u64 = 1 << 20;

/// Figures whose parts add up: all memory is resident, and what is not trimmable or fragmented of the free memory is out
/// of reach.
pub(crate) fn figures(
    in_use: u64,
    cached: u64,
    binned: u64,
    top: u64,
    trimmable: u64,
    fragmented: u64,
) -> ArenaFigures {
    let system = in_use + cached + binned + top;
    ArenaFigures {
        system_bytes: system,
        in_use_bytes: in_use,
        in_use_chunks: in_use / 1040,
        cached_bytes: cached,
        cached_chunks: cached / 64,
        binned_bytes: binned,
        binned_chunks: binned / 4096,
        top_bytes: top,
        resident_bytes: Some(system),
        free_resident_bytes: Some(binned + top),
        trimmable_bytes: Some(trimmable),
        fragmented_bytes: Some(fragmented),
        swapped_bytes: Some(0),
        ..ArenaFigures::default()
    }
}

pub(crate) fn arena(is_main: bool, figures: ArenaFigures) -> Arena {
    Arena {
        address: Address(if is_main {
            0x7f4d_e57f_1c60
        } else {
            0x7f4d_d000_0030
        }),
        is_main,
        contiguous: true,
        threads: Some(1),
        segments: 1,
        top: Address(0x55ea_1e14_8030),
        figures,
    }
}

/// A heap of these arenas, all of whose checks hold.
pub(crate) fn heap(arenas: Vec<Arena>) -> GlibcHeap {
    let total = arenas
        .iter()
        .map(|arena| arena.figures)
        .reduce(|a, b| ArenaFigures {
            system_bytes: a.system_bytes + b.system_bytes,
            in_use_chunks: a.in_use_chunks + b.in_use_chunks,
            cached_chunks: a.cached_chunks + b.cached_chunks,
            binned_chunks: a.binned_chunks + b.binned_chunks,
            ..figures(
                a.in_use_bytes + b.in_use_bytes,
                a.cached_bytes + b.cached_bytes,
                a.binned_bytes + b.binned_bytes,
                a.top_bytes + b.top_bytes,
                a.trimmable_bytes.unwrap() + b.trimmable_bytes.unwrap(),
                a.fragmented_bytes.unwrap() + b.fragmented_bytes.unwrap(),
            )
        })
        .unwrap();
    GlibcHeap {
        file: Some("/usr/lib/x86_64-linux-gnu/libc.so.6".into()),
        version: Some("2.36".into()),
        main_arena: Address(0x7f4d_e57f_1c60),
        settings: Some(MallocSettings {
            trim_threshold_bytes: 128 * KIB,
            top_pad_bytes: 128 * KIB,
            mmap_threshold_bytes: 128 * KIB,
            mmap_threshold_is_dynamic: true,
            mmap_max: 65_536,
            arena_max: 0,
            tcache_count: Some(7),
            tcache_max_bytes: Some(1032),
            thp_page_bytes: Some(0),
            huge_page_bytes: Some(0),
        }),
        total,
        mapped: MappedChunks {
            chunks: Some(0),
            bytes: Some(0),
            resident_bytes: Some(0),
            ..MappedChunks::default()
        },
        thread_caches: ThreadCaches {
            threads: 1,
            found: 1,
            chunks: total.cached_chunks,
            bytes: total.cached_bytes,
        },
        mallinfo: Mallinfo {
            arena: total.system_bytes,
            hblks: Some(0),
            hblkhd: Some(0),
            ..Mallinfo::default()
        },
        trimmable_bytes: total.trimmable_bytes,
        classes: vec![class(1040, total.in_use_chunks)],
        pins: vec![
            Pin {
                address: Address(0x55ea_1e14_8030),
                bytes: 1040,
                cached: false,
                drop_bytes: 2 * MIB,
            },
            Pin {
                address: Address(0x55ea_1e14_2030),
                bytes: 64,
                cached: true,
                drop_bytes: 10 * MIB,
            },
        ],
        checks: vec![
            check(
                "the list of arenas leads back to its beginning",
                CheckOutcome::Holds,
            ),
            check(
                "chunks lead from one to the next, and add up to what the arenas obtained",
                CheckOutcome::Holds,
            ),
        ],
        arenas,
    }
}

pub(crate) fn class(bytes: u64, chunks: u64) -> ChunkClass {
    ChunkClass {
        from_bytes: bytes,
        to_bytes: bytes,
        chunks,
        bytes: bytes * chunks,
    }
}

pub(crate) fn check(what: &str, outcome: CheckOutcome) -> HeapCheck {
    HeapCheck {
        what: what.to_owned(),
        outcome,
        detail: None,
    }
}

pub(crate) fn examination(heaps: Vec<GlibcHeap>) -> HeapExamination {
    HeapExamination {
        moment: ReadingMoment::Snapshot,
        still: false,
        allocators: Vec::new(),
        heaps,
        memory: None,
        cost: ExaminationCost {
            total_ns: 47_300_000,
            stopped_ns: Some(1_100_000),
            read_bytes: 60 * MIB,
        },
        problems: Vec::new(),
    }
}

/// A process with so much in memory, of which `anonymous` bytes have no file.
pub(crate) fn memory(resident: u64, anonymous: u64) -> ProcessMemory {
    ProcessMemory {
        resident_bytes: resident,
        resident_anonymous_bytes: anonymous,
        resident_file_bytes: resident - anonymous,
        ..ProcessMemory::default()
    }
}

pub(crate) fn allocator(name: &str, role: AllocatorRole) -> RecognisedAllocator {
    RecognisedAllocator {
        name: name.to_owned(),
        version: Some("5.3.0".into()),
        file: None,
        role,
        evidence: "its version string".into(),
        mapped_bytes: None,
        resident_bytes: Some(12 * MIB),
        lazily_free_bytes: None,
        not_visible: None,
    }
}

/// One main arena with these figures.
pub(crate) fn one_arena(figures: ArenaFigures) -> HeapExamination {
    examination(vec![heap(vec![arena(true, figures)])])
}

fn kind(examination: &HeapExamination, memory: Option<ProcessMemory>) -> HeapVerdictKind {
    HeapVerdict::of(examination, memory.as_ref(), Some(4242)).kind
}

#[test]
fn little_free_memory_means_in_use() {
    let heap = one_arena(figures(76 * MIB, 0, 20 * MIB, 4 * MIB, 24 * MIB, 0));
    assert_eq!(kind(&heap, None), HeapVerdictKind::InUse);
    let heap = one_arena(figures(75 * MIB, 0, 20 * MIB, 5 * MIB, 25 * MIB, 0));
    assert_eq!(kind(&heap, None), HeapVerdictKind::Retained);
}

#[test]
fn free_memory_is_told_apart_by_what_would_become_of_most_of_it() {
    let of =
        |trimmable, fragmented| one_arena(figures(10 * MIB, 0, 30 * MIB, 0, trimmable, fragmented));
    assert_eq!(
        kind(&of(20 * MIB, 10 * MIB), None),
        HeapVerdictKind::Retained
    );
    assert_eq!(
        kind(&of(10 * MIB, 20 * MIB), None),
        HeapVerdictKind::Retained
    );
    assert_eq!(
        kind(&of(9 * MIB, 20 * MIB), None),
        HeapVerdictKind::Fragmented
    );
    assert_eq!(
        kind(&of(5 * MIB, 5 * MIB), None),
        HeapVerdictKind::OutOfReach
    );
}

#[test]
fn what_waits_in_thread_caches_is_free_and_out_of_reach() {
    let heap = one_arena(figures(10 * MIB, 30 * MIB, MIB, 0, MIB, 0));
    assert_eq!(kind(&heap, None), HeapVerdictKind::OutOfReach);
    let verdict = HeapVerdict::of(&heap, None, None);
    assert!(
        verdict
            .evidence
            .iter()
            .any(|fact| fact.starts_with("30 MiB are freed chunks in thread caches")),
        "{verdict:?}"
    );
}

#[test]
fn a_heap_that_is_a_small_part_of_the_process_is_not_the_story() {
    let heap = one_arena(figures(MIB, 0, 2 * MIB, MIB, 3 * MIB, 0));
    let process = memory(100 * MIB, 80 * MIB);
    let verdict = HeapVerdict::of(&heap, Some(&process), Some(4242));
    assert_eq!(verdict.kind, HeapVerdictKind::Elsewhere);
    assert!(
        verdict.evidence[0].contains("76 MiB anonymous memory outside of it"),
        "{verdict:?}"
    );
    assert_eq!(
        kind(&heap, Some(memory(16 * MIB, 8 * MIB))),
        HeapVerdictKind::Retained
    );
}

#[test]
fn what_an_examination_says_of_the_process_counts_where_nobody_else_says_it() {
    let mut heap = one_arena(figures(MIB, 0, 2 * MIB, MIB, 3 * MIB, 0));
    heap.memory = Some(memory(100 * MIB, 80 * MIB));
    assert_eq!(kind(&heap, None), HeapVerdictKind::Elsewhere);
    assert_eq!(
        kind(&heap, Some(memory(16 * MIB, 8 * MIB))),
        HeapVerdictKind::Retained
    );
}

#[test]
fn a_check_that_fails_leaves_no_verdict() {
    let mut broken = one_arena(figures(10 * MIB, 0, 30 * MIB, 0, 30 * MIB, 0));
    broken.heaps[0].checks[1].outcome = CheckOutcome::Fails;
    broken.heaps[0].checks[1].detail = Some("512 of 1024 bytes were not found".into());
    let verdict = HeapVerdict::of(&broken, None, None);
    assert_eq!(verdict.kind, HeapVerdictKind::Unclear);
    assert_eq!(verdict.confidence, HeapConfidence::Doubtful);
    assert!(
        verdict.summary.contains("512 of 1024 bytes were not found"),
        "{verdict:?}"
    );
}

#[test]
fn what_moved_meanwhile_is_said_and_too_much_of_it_leaves_no_verdict() {
    let mut moving = one_arena(figures(10 * MIB, 0, 30 * MIB, 0, 30 * MIB, 0));
    moving.heaps[0].checks[1].outcome = CheckOutcome::Moving;
    moving.heaps[0].total.not_found_bytes = MIB / 2;
    let verdict = HeapVerdict::of(&moving, None, None);
    assert_eq!(verdict.kind, HeapVerdictKind::Retained);
    assert_eq!(verdict.confidence, HeapConfidence::Moving);
    assert_eq!(verdict.doubts.len(), 1);
    moving.heaps[0].total.not_found_bytes = MIB;
    assert_eq!(kind(&moving, None), HeapVerdictKind::Unclear);
}

#[test]
fn another_allocator_in_charge_hides_the_heap_even_if_glibcs_was_called_once() {
    let mut heap = one_arena(figures(10 * MIB, 0, 30 * MIB, 0, 30 * MIB, 0));
    heap.allocators = vec![allocator("jemalloc", AllocatorRole::InCharge)];
    let verdict = HeapVerdict::of(&heap, None, Some(4242));
    assert_eq!(verdict.kind, HeapVerdictKind::NotVisible);
    assert!(verdict.summary.contains("jemalloc 5.3.0"), "{verdict:?}");
    assert!(
        verdict.advice[0].contains("malloc_stats_print"),
        "{verdict:?}"
    );
    heap.allocators = vec![allocator("glibc malloc", AllocatorRole::InCharge)];
    assert_eq!(kind(&heap, None), HeapVerdictKind::Retained);
}

#[test]
fn a_program_that_never_called_malloc_has_no_verdict_on_its_heap() {
    let verdict = HeapVerdict::of(&examination(Vec::new()), None, None);
    assert_eq!(verdict.kind, HeapVerdictKind::NotVisible);
    assert_eq!(verdict.confidence, HeapConfidence::Nothing);
}

#[test]
fn without_residence_nothing_is_said_of_trimming() {
    let mut figures = figures(10 * MIB, 0, 30 * MIB, 0, 0, 0);
    figures.resident_bytes = None;
    figures.free_resident_bytes = None;
    figures.trimmable_bytes = None;
    figures.fragmented_bytes = None;
    let mut core = examination(vec![heap(vec![arena(
        true,
        self::figures(MIB, 0, 0, 0, 0, 0),
    )])]);
    core.heaps[0].total = figures;
    let verdict = HeapVerdict::of(&core, None, None);
    assert_eq!(verdict.kind, HeapVerdictKind::Kept);
    assert!(
        verdict.summary.contains("30 MiB of 40 MiB are free"),
        "{verdict:?}"
    );
    let sums = HeapSums::of(&core);
    assert_eq!((sums.trimmable_bytes, sums.resident_bytes), (None, None));
}

#[test]
fn the_resident_heap_is_the_sum_of_what_is_told_of_it() {
    let main = figures(10 * MIB, MIB, 30 * MIB, MIB, 20 * MIB, 6 * MIB);
    let thread = figures(2 * MIB, 0, MIB, 3 * MIB, 0, MIB);
    let examination = examination(vec![heap(vec![arena(true, main), arena(false, thread)])]);
    let sums = HeapSums::of(&examination);
    let parts = [
        sums.resident_in_use_bytes,
        sums.trimmable_bytes,
        sums.fragmented_bytes,
        sums.out_of_reach_bytes,
    ];
    assert_eq!(sums.resident_bytes, parts.into_iter().sum());
    assert_eq!(sums.out_of_reach_bytes, Some(8 * MIB));
    assert_eq!(sums.arenas, 2);
    let verdict = HeapVerdict::of(&examination, None, None);
    assert!(
        verdict.evidence[0].contains("3 MiB are free at the top of a thread arena"),
        "{verdict:?}"
    );
}

#[test]
fn advice_names_the_process_so_that_it_can_be_typed() {
    let heap = one_arena(figures(10 * MIB, 0, 30 * MIB, 0, 30 * MIB, 0));
    let verdict = HeapVerdict::of(&heap, None, Some(4242));
    assert!(verdict.advice[0].contains("gdb -p 4242"), "{verdict:?}");
}

/// Looks a second apart, at a heap of which only chunks in use are known: so many of each size.
fn looks(series: &[&[(u64, u64)]]) -> HeapLooks {
    let mut looks = HeapLooks::default();
    for (second, sizes) in series.iter().enumerate() {
        let in_use = sizes.iter().map(|(bytes, chunks)| bytes * chunks).sum();
        let mut heap = heap(vec![arena(true, figures(in_use, 0, 0, MIB, 0, 0))]);
        heap.classes = sizes
            .iter()
            .map(|&(bytes, chunks)| class(bytes, chunks))
            .collect();
        let time = Timestamp(second as u64 * 1_000_000_000);
        looks.add(time, None, &examination(vec![heap]));
    }
    looks
}

#[test]
fn one_look_compares_with_nothing() {
    assert_eq!(HeapLooks::default().growth(), None);
    assert_eq!(looks(&[&[(64, 5)]]).growth(), None);
}

#[test]
fn the_size_that_grows_each_time_is_named_before_larger_ones_that_do_not() {
    let growth = looks(&[
        &[(64, 5), (1040, 1_000)],
        &[(64, 5), (1040, 5_000), (4096, 9_000)],
        &[(64, 5), (1040, 9_000), (4096, 7_000)],
        &[(64, 4), (1040, 13_000), (4096, 7_500)],
    ])
    .growth()
    .unwrap();
    assert_eq!(growth.trend, GrowthTrend::Uneven);
    let named: Vec<_> = growth
        .classes
        .iter()
        .map(|class| {
            (
                class.from_bytes,
                class.delta_chunks,
                class.grew_times,
                class.each_time,
            )
        })
        .collect();
    assert_eq!(named, [(1040, 12_000, 3, true), (4096, 7_500, 2, false)]);
    assert_eq!(growth.classes[0].bytes_per_second, Some(4_160_000.0));
}

#[test]
fn steady_growth_is_said_with_its_size_class() {
    let growth = looks(&[&[(1040, 1_000)], &[(1040, 7_000)], &[(1040, 13_000)]])
        .growth()
        .unwrap();
    assert_eq!(growth.trend, GrowthTrend::Growing);
    assert_eq!(
        growth.summary,
        "what is in use grows steadily, +11.9 MiB in 2.0 s: 1,040 B +12,000 chunks (+11.9 MiB)"
    );
    assert_eq!(growth.in_use_delta_bytes, 12_480_000);
}

#[test]
fn two_looks_show_growth_but_no_trend() {
    let growth = looks(&[&[(1040, 1_000)], &[(1040, 7_000)]])
        .growth()
        .unwrap();
    assert_eq!(growth.trend, GrowthTrend::Grew);
}

#[test]
fn a_little_up_and_down_is_level_and_a_little_each_time_is_growth() {
    let level = looks(&[&[(1040, 100_000)], &[(1040, 99_000)], &[(1040, 100_100)]]);
    assert_eq!(level.growth().unwrap().trend, GrowthTrend::Level);
    let growing = looks(&[&[(1040, 100_000)], &[(1040, 100_050)], &[(1040, 100_100)]]);
    assert_eq!(growing.growth().unwrap().trend, GrowthTrend::Growing);
    let shrinking = looks(&[&[(1040, 100_000)], &[(1040, 50_000)], &[(1040, 10)]]);
    assert_eq!(shrinking.growth().unwrap().trend, GrowthTrend::Shrank);
}

#[test]
fn a_size_that_vanishes_and_comes_back_is_followed() {
    let growth = looks(&[&[(64, 10)], &[], &[(64, 30)]]).growth().unwrap();
    assert_eq!(growth.classes[0].delta_chunks, 20);
    assert_eq!(
        (growth.classes[0].grew_times, growth.classes[0].each_time),
        (1, false)
    );
}

#[test]
fn of_very_many_looks_the_first_and_the_last_are_kept_and_memory_stays_bounded() {
    let mut looks = HeapLooks::default();
    for second in 0..5_000_u64 {
        let heap = heap(vec![arena(true, figures(second * KIB, 0, 0, MIB, 0, 0))]);
        looks.add(
            Timestamp(second * 1_000_000_000),
            None,
            &examination(vec![heap]),
        );
    }
    let growth = looks.growth().unwrap();
    assert_eq!(growth.total_looks, 5_000);
    assert!(growth.looks.len() <= 513, "{}", growth.looks.len());
    assert_eq!(growth.looks[0].time_ns, Timestamp(0));
    assert_eq!(
        growth.looks.last().unwrap().time_ns,
        Timestamp(4_999_000_000_000)
    );
    assert_eq!(growth.duration_ns, 4_999_000_000_000);
}

#[test]
fn extreme_figures_do_not_overflow() {
    let mut extreme = one_arena(figures(MIB, 0, 0, 0, 0, 0));
    let max = ArenaFigures {
        system_bytes: u64::MAX,
        in_use_bytes: u64::MAX,
        cached_bytes: u64::MAX,
        binned_bytes: u64::MAX,
        fast_bytes: u64::MAX,
        top_bytes: u64::MAX,
        resident_bytes: Some(u64::MAX),
        free_resident_bytes: Some(u64::MAX),
        trimmable_bytes: Some(u64::MAX),
        fragmented_bytes: Some(u64::MAX),
        ..figures(0, 0, 0, 0, 0, 0)
    };
    extreme.heaps[0].total = max;
    extreme.heaps[0].arenas[0].figures = max;
    extreme.heaps.push(extreme.heaps[0].clone());
    extreme.heaps[0].classes[0].bytes = u64::MAX;
    extreme.heaps[0].mapped.bytes = Some(u64::MAX);
    let verdict = HeapVerdict::of(&extreme, Some(&memory(u64::MAX, 0)), Some(u32::MAX));
    assert!(!verdict.summary.is_empty());
    let mut looks = HeapLooks::default();
    looks.add(Timestamp(u64::MAX), None, &examination(Vec::new()));
    looks.add(Timestamp(0), None, &extreme);
    assert_eq!(looks.growth().unwrap().in_use_delta_bytes, i64::MAX);
}

#[test]
fn a_document_reads_back_as_it_was_written() {
    let mut all = looks(&[&[(64, 10)], &[(64, 30)]]);
    let last = one_arena(figures(10 * MIB, MIB, 30 * MIB, 0, 30 * MIB, 0));
    all.add(
        Timestamp(2_000_000_000),
        Some(memory(50 * MIB, 45 * MIB)),
        &last,
    );
    let target = HeapTarget {
        pid: Some(4242),
        program: Some("/usr/bin/x".into()),
        ..HeapTarget::default()
    };
    let document = HeapDocument::of(target, 1_790_000_000, None, last, all.growth());
    let read: HeapDocument = serde_json::from_str(&document.to_json()).unwrap();
    assert_eq!(read, document);
}
