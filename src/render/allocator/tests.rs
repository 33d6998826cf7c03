//! What the report says of the bundled allocator.

use crate::event::AbsenceReason;
use crate::event::AllocatorAbsence;
use crate::event::AllocatorCause;
use crate::event::AllocatorFigures;
use crate::event::AllocatorSetup;
use crate::event::ClassReading;
use crate::event::FoundBy;
use crate::event::HeapError;
use crate::event::HeapErrorKind;
use crate::event::HeapWalk;
use crate::event::ReadingMoment;
use crate::event::SizeCount;
use crate::report::AllocatorChecks;
use crate::report::AllocatorClaims;
use crate::report::AllocatorDifference;
use crate::report::AllocatorMoment;
use crate::report::AllocatorReport;
use crate::report::FoundHeapError;
use crate::report::HeapErrorCount;
use crate::report::HeapErrors;
use crate::report::Report;
use crate::report::StepAllocator;
use crate::report::StepFigures;
use crate::stats_page::Counters;
use crate::units::Address;
use crate::units::Timestamp;

use crate::render::tests::KIB;
use crate::render::tests::MIB;
use crate::render::tests::add_process;
use crate::render::tests::main;
use crate::render::tests::ordinary;
use crate::render::tests::program;
use crate::render::tests::text;
use crate::render::tests::verbose;
use crate::render::words;

fn setup() -> AllocatorSetup {
    AllocatorSetup {
        page: Address(0x7f3a_0040_0000),
        version: "0.1.0".into(),
        policy: "trim".into(),
        guard: false,
        abort_on_heap_error: false,
        mmap_threshold_bytes: 128 * KIB,
        trim_threshold_bytes: 128 * KIB,
        top_pad_bytes: 128 * KIB,
        arena_max: 8,
        sample_interval_bytes: 0,
    }
}

/// An account that adds up, of a program that holds `obtained` bytes by brk and uses six tenths of them.
fn counters(obtained: u64, peak: u64) -> Counters {
    let in_use = obtained / 10 * 6;
    let block_overhead = obtained / 100 * 4;
    let top = 90 * KIB;
    let records = 12 * KIB;
    let cached = 40 * KIB;
    let slabs = obtained / 100 * 7;
    Counters {
        requested_bytes: in_use * 9,
        in_use_bytes: in_use,
        in_use_peak_bytes: peak / 10 * 8,
        obtained_bytes: obtained,
        obtained_peak_bytes: peak,
        overhead_bytes: block_overhead + records,
        block_overhead_bytes: block_overhead,
        record_bytes: records,
        free_bytes: obtained - in_use - block_overhead - records - top,
        free_chunk_bytes: obtained - in_use - block_overhead - records - top - cached - slabs,
        free_slab_bytes: slabs,
        cached_bytes: cached,
        top_bytes: top,
        live_blocks: 412_345,
        allocated_blocks: 9_412_345,
        freed_blocks: 9_000_000,
        malloc_calls: 9_300_000,
        calloc_calls: 12_345,
        aligned_calls: 0,
        realloc_calls: 120_000,
        realloc_in_place: 20_000,
        cache_hits: 9_200_000,
        cache_misses: 212_345,
        brk_calls: 328,
        brk_grown_bytes: obtained + 128 * KIB,
        brk_shrunk_bytes: 128 * KIB,
        arenas: 1,
        thread_caches: 1,
        ..Counters::default()
    }
}

fn claims(counters: &Counters) -> AllocatorClaims {
    let calls = counters.brk_calls + counters.mmap_calls + counters.munmap_calls;
    let requests = counters.allocated_blocks + counters.realloc_in_place;
    AllocatorClaims {
        requests,
        kernel_calls: calls,
        requests_per_kernel_call: words::share(requests, calls),
        obtained_per_in_use_at_peak: words::share(
            counters.obtained_peak_bytes,
            counters.in_use_peak_bytes,
        ),
        obtained_per_in_use: words::share(counters.obtained_bytes, counters.in_use_bytes),
        in_use_share: None,
        overhead_share: None,
        free_share: None,
        top_share: None,
        freed_bytes: counters.requested_bytes - counters.in_use_bytes,
        returned_bytes: counters.brk_shrunk_bytes + counters.unmapped_bytes,
        advised_bytes: counters.advised_bytes,
    }
}

fn account(counters: Counters) -> AllocatorReport {
    let moment = AllocatorMoment {
        time_ns: Timestamp(1_239_000_000),
        moment: ReadingMoment::End,
        still: true,
        figures: AllocatorFigures::complete(counters),
    };
    AllocatorReport {
        samples: None,
        setup: Some(setup()),
        last: Some(moment.clone()),
        largest: Some(moment),
        classes: vec![
            ClassReading {
                block_bytes: 32,
                allocated: 4_000_000,
                live: 300_000,
                cached: 12,
                free: 40_000,
            },
            ClassReading {
                block_bytes: 544,
                allocated: 1_000,
                live: 0,
                cached: 0,
                free: 29,
            },
        ],
        walk: Some(HeapWalk {
            leaks: None,
            complete: true,
            stopped: None,
            live_blocks: counters.live_blocks,
            live_bytes: counters.in_use_bytes,
            largest: [(65_536, 120), (512, 30_000), (56, 12_345), (24, 90), (9, 1)]
                .into_iter()
                .map(|(size_bytes, blocks)| SizeCount { size_bytes, blocks })
                .collect(),
        }),
        checks: AllocatorChecks {
            made: 1,
            sums_made: 1,
            ..AllocatorChecks::default()
        },
        claims: Some(claims(&counters)),
        ..unheard("bundled")
    }
}

fn unheard(name: &str) -> AllocatorReport {
    AllocatorReport {
        in_use_is: crate::report::InUseMeasure::Requested,
        samples: None,
        name: name.into(),
        setup: None,
        absence: None,
        last: None,
        largest: None,
        at_start: None,
        classes: Vec::new(),
        heap_errors: HeapErrors::default(),
        walk: None,
        checks: AllocatorChecks::default(),
        claims: None,
    }
}

/// The ordinary program, on our allocator.
pub(in crate::render) fn bundled() -> Report {
    let mut report = ordinary();
    let space = main(&mut report);
    let obtained = space.program_break.end_bytes.unwrap();
    let peak = space.program_break.peak_bytes.unwrap();
    space.allocator = Some(account(counters(obtained, peak)));
    for step in &mut space.program_break.steps.kept {
        let before = step.after_bytes.saturating_add_signed(-step.delta_bytes);
        let is_trim = step.delta_bytes < 0;
        step.allocator = Some(StepAllocator {
            cause: Some(if is_trim {
                AllocatorCause::Trim
            } else {
                AllocatorCause::Request
            }),
            request_bytes: (!is_trim).then_some(80 * KIB + step.number),
            figures: Some(StepFigures {
                requested_bytes: before * 3,
                in_use_bytes: before / 10 * 7,
                overhead_bytes: before / 100,
                free_bytes: before / 10 * 2,
                top_bytes: before - before / 100 - before / 10 * 9,
                obtained_bytes: before,
            }),
        });
    }
    for point in &mut space.timeline.points {
        let in_use = point.break_bytes / 10 * 6;
        point.allocator_in_use_bytes = Some(in_use);
        point.allocator_in_use_max_bytes = Some(in_use);
        point.allocator_obtained_bytes = Some(point.break_bytes);
    }
    report
}

/// Most is in blocks that are mapped by themselves.
fn bundled_large_blocks() -> Report {
    let mut report = bundled();
    let space = main(&mut report);
    for point in &mut space.timeline.points {
        point.anonymous_bytes += 80 * MIB;
        point.anonymous_max_bytes += 80 * MIB;
        let held = point.break_bytes + 80 * MIB;
        point.allocator_obtained_bytes = Some(held);
        point.allocator_in_use_bytes = Some(held - point.break_bytes / 2);
        point.allocator_in_use_max_bytes = point.allocator_in_use_bytes;
    }
    report
}

fn heap_error(kind: HeapErrorKind, changed: Option<u64>) -> FoundHeapError {
    const BLOCK: u64 = 0x5581_3b2a_c2a0;
    FoundHeapError {
        allocated_stack: None,
        freed_stack: None,
        time_ns: Timestamp(12_000_000),
        pid: 4_711,
        stack: None,
        error: HeapError {
            number: Some(1),
            kind,
            found_by: FoundBy::Free,
            address: Address(BLOCK),
            size_bytes: Some(24),
            changed: changed.map(|offset| Address(BLOCK.wrapping_add(offset))),
            tid: Some(4_711),
        },
    }
}

/// A program that misuses its heap in every way.
fn heap_errors() -> Report {
    let mut report = bundled();
    let kept = vec![
        heap_error(HeapErrorKind::WritePastEnd, Some(26)),
        heap_error(HeapErrorKind::DoubleFree, None),
        heap_error(HeapErrorKind::WriteAfterFree, Some(8)),
        heap_error(HeapErrorKind::WriteBeforeStart, Some(0_u64.wrapping_sub(8))),
        heap_error(HeapErrorKind::ForeignPointer, None),
        heap_error(HeapErrorKind::RecordsChanged, None),
    ];
    let by_kind = kept
        .iter()
        .map(|found| HeapErrorCount {
            kind: found.error.kind,
            errors: 1,
        })
        .collect();
    main(&mut report).allocator.as_mut().unwrap().heap_errors = HeapErrors {
        total: 6,
        by_kind,
        kept,
    };
    report
}

fn absent() -> Report {
    let mut report = program(&["static-one"], &[132 * 1_024]);
    main(&mut report).allocator = Some(AllocatorReport {
        samples: None,
        absence: Some(absence()),
        ..unheard("bundled")
    });
    report
}

fn absence() -> AllocatorAbsence {
    AllocatorAbsence {
        reason: AbsenceReason::StaticProgram,
        message: "the program is linked statically, so no library can be preloaded".into(),
    }
}

pub(in crate::render) fn reports() -> Vec<(&'static str, Report)> {
    vec![
        ("bundled", bundled()),
        ("bundled-large-blocks", bundled_large_blocks()),
        ("heap-errors", heap_errors()),
        ("allocator-absent", absent()),
    ]
}

fn change(report: &mut Report, change: impl FnOnce(&mut AllocatorReport)) {
    change(main(report).allocator.as_mut().unwrap());
}

/// The page as one line, so that a sentence is found wherever it is wrapped.
fn flat(report: &Report) -> String {
    text(report, 100)
        .split_whitespace()
        .collect::<Vec<_>>()
        .join(" ")
}

#[track_caller]
fn assert_says(report: &Report, sentence: &str) {
    let page = flat(report);
    assert!(page.contains(sentence), "{sentence:?} is not in\n{page}");
}

#[test]
fn the_founding_claims_are_answered_in_numbers() {
    let report = bundled();
    assert_says(
        &report,
        "malloc is no system call: 9,432,345 requests, 328 kernel calls (1 in 28,757)",
    );
    assert_says(
        &report,
        "It holds more than you ask: 65.8 MiB for 39.5 MiB in use, 1.67 times as much",
    );
    assert_says(
        &report,
        "free is not giving back: 316 MiB freed, 128 KiB returned, 23.6 MiB kept",
    );
}

#[test]
fn free_that_returned_nothing_is_said_to_have() {
    let mut report = bundled();
    change(&mut report, |allocator| {
        allocator.claims.as_mut().unwrap().returned_bytes = 0;
    });
    assert_says(
        &report,
        "free gave nothing back: 316 MiB freed, none of it returned, 23.6 MiB kept",
    );
}

#[test]
fn the_sum_stands_with_shares_and_its_split() {
    let page = text(&bundled(), 80);
    for line in [
        "obtained    65.8 MiB   100 %  65.8 MiB by brk; peak 65.9 MiB",
        "= in use    39.5 MiB    60 %  412,345 blocks; peak 52.7 MiB",
        "+ overhead  2.65 MiB   4.0 %  2.63 MiB headers, rounding, 12 KiB records",
    ] {
        let columns = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        let found = page.lines().any(|shown| columns(shown) == columns(line));
        assert!(found, "{line} is not in\n{page}");
    }
}

#[test]
fn each_step_tells_what_it_was_for() {
    let page = text(&bundled(), 80);
    let last = page
        .lines()
        .find(|line| line.trim_start().starts_with("328 "))
        .unwrap();
    assert!(last.contains("trim"), "{last}");
    assert!(page.contains("for 80.0 KiB"), "{page}");
}

#[test]
fn a_break_moved_by_the_program_itself_is_told_from_mallocs() {
    let mut report = bundled();
    let steps = &mut main(&mut report).program_break.steps.kept;
    steps.last_mut().unwrap().allocator = None;
    assert_says(&report, "not malloc");
}

#[test]
fn heap_errors_come_first_and_in_plain_words() {
    let report = heap_errors();
    let page = text(&report, 120);
    assert!(
        page.starts_with("breaktrace: heap errors: 1 write past a block's end, 1 double free"),
        "{page}"
    );
    let all = verbose(&report, 160);
    for sentence in [
        "the block of 24 B at 0x55813b2ac2a0 was written 2 B past its end; noticed in free, at 12.0 ms",
        "the block of 24 B at 0x55813b2ac2a0 was freed a second time, at 12.0 ms",
        "was written at byte 8 after it was freed; noticed in free",
        "was written 8 B before its start; noticed in free",
        "0x55813b2ac2a0 was freed, and malloc never gave it, at 12.0 ms",
        "malloc's own records at 0x55813b2ac2a0 were written over",
    ] {
        assert!(all.contains(sentence), "{sentence:?} is not in\n{all}");
    }
    assert!(page.contains("3 more errors"), "{page}");
    assert!(page.contains("--guard finds more"), "{page}");
}

#[test]
fn who_has_guards_on_is_not_told_to_turn_them_on() {
    let mut report = heap_errors();
    change(&mut report, |allocator| {
        allocator.setup.as_mut().unwrap().guard = true;
    });
    assert!(!flat(&report).contains("--guard"));
    assert_says(&report, "guard on");
}

#[test]
fn an_error_without_size_or_place_claims_neither() {
    let mut report = heap_errors();
    change(&mut report, |allocator| {
        for found in &mut allocator.heap_errors.kept {
            found.error.size_bytes = None;
            found.error.changed = None;
            found.error.tid = None;
            found.error.found_by = FoundBy::Exit;
        }
    });
    assert_says(
        &report,
        "the block at 0x55813b2ac2a0 was written past its end; noticed when the heap was looked through",
    );
}

#[test]
fn a_thread_other_than_the_first_is_named() {
    let mut report = heap_errors();
    change(&mut report, |allocator| {
        allocator.heap_errors.kept[0].error.tid = Some(4_715);
    });
    assert_says(&report, "noticed in free by thread 4715");
}

#[test]
fn absence_says_why_and_shows_no_figures() {
    let report = absent();
    assert_says(
        &report,
        "allocator no figures; the program is linked statically, so no library can be preloaded",
    );
    assert!(!flat(&report).contains("obtained"));
    assert!(!flat(&report).contains("malloc's own count"));
}

#[test]
fn programs_that_ran_without_it_are_counted_with_the_reason() {
    let mut report = bundled();
    for pid in [4_712, 4_713] {
        add_process(&mut report, pid, &["busybox"], &[4_096]);
        let space = report.address_spaces.last_mut().unwrap();
        space.allocator = Some(AllocatorReport {
            samples: None,
            absence: Some(absence()),
            ..unheard("bundled")
        });
    }
    assert_says(
        &report,
        "2 programs ran without the bundled allocator: 2 linked statically",
    );
}

#[test]
fn another_library_is_named() {
    let mut report = program(&["x"], &[4_096]);
    main(&mut report).allocator = Some(unheard("/usr/lib/libjemalloc.so.2"));
    assert_says(
        &report,
        "allocator /usr/lib/libjemalloc.so.2, which tells nothing of itself",
    );
}

#[test]
fn both_sides_agreeing_is_one_quiet_line() {
    assert_says(
        &bundled(),
        "checked against malloc's own count 1 time: equal; its sum held",
    );
}

#[test]
fn a_difference_between_the_sides_is_a_finding() {
    let mut report = bundled();
    change(&mut report, |allocator| {
        allocator.checks = AllocatorChecks {
            made: 2,
            differing: 1,
            differences: vec![AllocatorDifference {
                time_ns: Timestamp(7_000_000),
                counter: "brk_grown_bytes".into(),
                counted: 135_168,
                traced: 139_264,
            }],
            sums_made: 2,
            sums_differing: 1,
            first_sum_difference_bytes: Some(-8),
            ..AllocatorChecks::default()
        };
    });
    assert_says(
        &report,
        "checked against malloc's own count 2 times: 1 differed",
    );
    assert_says(
        &report,
        "at 7.00 ms, brk_grown_bytes: malloc counted 135,168, traced 139,264",
    );
    assert_says(&report, "malloc's sum did not hold 1 of 2 times, by 8 B");
    report.processes[0].threads = 2;
    assert_says(
        &report,
        "malloc's sum was open 1 of 2 times, by 8 B: a thread may have been stopped inside malloc",
    );
}

#[test]
fn an_allocator_that_is_loaded_and_not_used_shows_why_and_no_figures() {
    let mut report = bundled();
    change(&mut report, |allocator| {
        allocator.absence = Some(AllocatorAbsence {
            reason: AbsenceReason::OwnAllocator,
            message: "the program brings its own malloc".into(),
        });
    });
    assert_says(&report, "allocator the program brings its own malloc");
    assert_says(&report, "obtained 65.8 MiB");
    change(&mut report, |allocator| {
        let last = allocator.last.as_mut().unwrap();
        let mut counters = *last.figures.all().unwrap();
        counters.allocated_blocks = 0;
        last.figures = AllocatorFigures::complete(counters);
    });
    assert_says(
        &report,
        "allocator no figures; the program brings its own malloc",
    );
    assert!(!flat(&report).contains("obtained"));
}

#[test]
fn figures_that_were_never_compared_are_not_called_equal() {
    let mut report = bundled();
    change(&mut report, |allocator| {
        allocator.checks = AllocatorChecks {
            skipped: 3,
            ..AllocatorChecks::default()
        };
    });
    assert_says(&report, "not checked against malloc's own count");
}

#[test]
fn blocks_never_freed_are_counted_by_the_sizes_that_weigh_most() {
    assert_says(
        &bundled(),
        "412,345 blocks with 39.5 MiB at exit: 120 of 64 KiB, 30,000 of 512 B, 12,345 of 56 B, 90 of 24 B, …",
    );
    let mut report = bundled();
    change(&mut report, |allocator| {
        allocator.walk = Some(HeapWalk {
            leaks: None,
            complete: false,
            stopped: Some("a chunk's size was overwritten".into()),
            live_blocks: 3,
            live_bytes: 72,
            largest: Vec::new(),
        });
    });
    assert_says(
        &report,
        "3 blocks with 72 B at exit; the heap was not looked through whole: a chunk's size was overwritten",
    );
    change(&mut report, |allocator| {
        allocator.walk = Some(HeapWalk {
            leaks: None,
            complete: true,
            stopped: None,
            live_blocks: 0,
            live_bytes: 0,
            largest: Vec::new(),
        });
    });
    assert_says(&report, "not freed nothing: every block was freed");
}

#[test]
fn without_a_walk_the_classes_tell_what_was_not_freed() {
    let mut report = bundled();
    change(&mut report, |allocator| allocator.walk = None);
    assert_says(
        &report,
        "not freed 412,345 blocks with 39.5 MiB at exit; of the small ones 300,000 up to 24 B",
    );
    change(&mut report, |allocator| {
        allocator.last.as_mut().unwrap().moment = ReadingMoment::Call;
    });
    assert!(!flat(&report).contains("not freed"));
}

#[test]
fn what_is_in_use_is_drawn_into_the_break() {
    let page = text(&bundled(), 80);
    assert!(page.contains('▒'), "{page}");
    assert!(page.contains("█ in use  ▒ held, not in use"), "{page}");
}

#[test]
fn with_large_blocks_all_that_is_held_is_drawn_beside_the_break() {
    let page = text(&bundled_large_blocks(), 80);
    assert!(page.contains(" obtained │"), "{page}");
    assert!(page.contains("    break │"), "{page}");
}

#[test]
fn where_little_is_held_beside_the_heap_one_picture_is_enough() {
    let mut report = bundled();
    for point in &mut main(&mut report).timeline.points {
        point.allocator_in_use_bytes = Some(point.break_bytes + 64 * KIB);
        point.allocator_in_use_max_bytes = point.allocator_in_use_bytes;
        point.allocator_obtained_bytes = Some(point.break_bytes + MIB);
    }
    let page = text(&report, 80);
    assert!(page.contains(" obtained │"), "{page}");
    assert!(!page.contains("    break │"), "{page}");
}

#[test]
fn oddities_are_named_only_when_they_happened() {
    assert!(!flat(&bundled()).contains("oddities"));
    let mut report = bundled();
    change(&mut report, |allocator| {
        let last = allocator.last.as_mut().unwrap();
        let mut counters = *last.figures.all().unwrap();
        counters.foreign_break_moves = 2;
        counters.failed_requests = 1;
        last.figures = AllocatorFigures::complete(counters);
    });
    assert_says(
        &report,
        "oddities 1 request failed; 2 times somebody else had moved the break",
    );
}

#[test]
fn all_of_it_shows_when_asked_for() {
    let page = verbose(&bundled(), 120);
    for word in [
        "small blocks",
        "handed out",
        "thread cache",
        "version 0.1.0",
    ] {
        assert!(page.contains(word), "{word} is not in\n{page}");
    }
}

#[test]
fn zeros_and_largest_numbers_do_not_panic() {
    for value in [0, u64::MAX] {
        let mut report = heap_errors();
        change(&mut report, |allocator| {
            let all = Counters::from_values(Counters::default().values().map(|_| value));
            allocator.last.as_mut().unwrap().figures = AllocatorFigures::complete(all);
            allocator.heap_errors.total = value;
            for found in &mut allocator.heap_errors.kept {
                found.error.size_bytes = Some(value);
                found.error.changed = Some(Address(value));
                found.error.address = Address(value / 2);
            }
        });
        for width in [60, 80, 160] {
            text(&report, width);
            verbose(&report, width);
        }
    }
}
