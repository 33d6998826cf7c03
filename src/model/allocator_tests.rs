//! The bundled allocator's account, on events made by hand.

use super::tests::READ_WRITE;
use super::tests::START;
use super::tests::Story;
use super::*;
use crate::event::AbsenceReason;
use crate::event::Advice;
use crate::event::AllocatorAbsence;
use crate::event::AllocatorCall;
use crate::event::AllocatorCause;
use crate::event::AllocatorChoice;
use crate::event::AllocatorFigures;
use crate::event::AllocatorReading;
use crate::event::AllocatorSetup;
use crate::event::CallResult;
use crate::event::ClassReading;
use crate::event::FoundBy;
use crate::event::HeapError;
use crate::event::HeapErrorKind;
use crate::event::HeapWalk;
use crate::event::MapFlags;
use crate::event::ReadingMoment;
use crate::event::RemapFlags;
use crate::event::SizeCount;
use crate::event_log::EventLog;
use crate::report::AllocatorReport;
use crate::stats_page::Counters;
use crate::units::Address;

const KIB: u64 = 1 << 10;
const HIGH: u64 = 0x7f00_0000_0000;

impl Story {
    /// Lets the allocator make the next memory call.
    fn by_allocator(&mut self, request_bytes: u64) -> &mut Self {
        self.allocator = Some(AllocatorCall {
            cause: Some(AllocatorCause::Request),
            request_bytes: Some(request_bytes),
        });
        self
    }

    fn read(&mut self, moment: ReadingMoment, counters: Counters) {
        self.read_while(true, moment, counters);
    }

    fn read_while(&mut self, still: bool, moment: ReadingMoment, counters: Counters) {
        self.event(EventKind::AllocatorRead(Box::new(AllocatorReading {
            moment,
            still,
            counters: AllocatorFigures::complete(counters),
            classes: Vec::new(),
        })));
    }

    fn found(&mut self) {
        self.event(EventKind::AllocatorFound(AllocatorSetup {
            page: Address(HIGH),
            version: "0.1.0".into(),
            policy: "trim".into(),
            guard: false,
            abort_on_heap_error: false,
            mmap_threshold_bytes: 128 * KIB,
            trim_threshold_bytes: 128 * KIB,
            top_pad_bytes: 128 * KIB,
            arena_max: 8,
            sample_interval_bytes: 0,
        }));
    }

    fn allocator_of(&self, space: u32) -> AllocatorReport {
        self.space(space).allocator.unwrap()
    }
}

/// After one brk of 132 KiB, of which 16 KiB are in use.
fn one_call() -> Counters {
    Counters {
        requested_bytes: 16 * KIB,
        in_use_bytes: 16 * KIB,
        in_use_peak_bytes: 16 * KIB,
        obtained_bytes: 132 * KIB,
        obtained_peak_bytes: 132 * KIB,
        overhead_bytes: KIB,
        top_bytes: 115 * KIB,
        allocated_blocks: 1,
        malloc_calls: 1,
        brk_calls: 1,
        brk_grown_bytes: 132 * KIB,
        ..Counters::default()
    }
}

fn launched() -> Story {
    let mut story = Story::launched();
    story.found();
    story
}

#[test]
fn a_program_with_its_own_malloc_has_no_allocator_report() {
    assert_eq!(Story::launched().space(1).allocator, None);
}

#[test]
fn a_preloaded_library_is_named_though_it_tells_nothing() {
    let mut story = Story::blank();
    story.recorder = Recorder::new(Recording {
        allocator: AllocatorChoice::Library("/usr/lib/libjemalloc.so.2".into()),
        ..story.recorder.recording.clone()
    });
    story.start(Origin::Launched, None);
    let allocator = story.allocator_of(1);
    assert_eq!(allocator.name, "/usr/lib/libjemalloc.so.2");
    assert_eq!((allocator.last, allocator.claims), (None, None));
}

#[test]
fn absence_is_reported_with_its_reason() {
    let mut story = Story::launched();
    story.event(EventKind::AllocatorAbsent(AllocatorAbsence {
        reason: AbsenceReason::StaticProgram,
        message: "it is linked statically".into(),
    }));
    let allocator = story.allocator_of(1);
    assert_eq!(allocator.name, "bundled");
    assert_eq!(
        allocator.absence.unwrap().reason,
        AbsenceReason::StaticProgram
    );
}

#[test]
fn each_step_tells_why_it_was_made_and_how_the_allocator_stood() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Call, Counters::default());
    story.by_allocator(96 * KIB).sbrk(128 * 1024);
    story.read(ReadingMoment::Call, one_call());
    story.sbrk(4096);
    let steps = story.program_break().steps.kept;
    let second = steps[1].allocator.unwrap();
    assert_eq!(second.cause, Some(AllocatorCause::Request));
    assert_eq!(second.request_bytes, Some(96 * KIB));
    let figures = second.figures.unwrap();
    assert_eq!(
        (
            figures.in_use_bytes,
            figures.top_bytes,
            figures.obtained_bytes
        ),
        (16 * KIB, 115 * KIB, 132 * KIB)
    );
    assert_eq!(
        steps[0].allocator.unwrap().figures.unwrap().obtained_bytes,
        0
    );
    assert_eq!(steps[2].allocator, None, "the program's own sbrk");
}

#[test]
fn figures_of_another_thread_are_not_given_to_a_step() {
    let mut story = launched();
    story.by_allocator(1).sbrk(4096);
    story.tid = Some(11);
    story.read(ReadingMoment::Call, one_call());
    assert_eq!(
        story.program_break().steps.kept[0]
            .allocator
            .unwrap()
            .figures,
        None
    );
}

#[test]
fn figures_reach_a_step_wherever_it_is_kept() {
    let mut story = launched();
    for index in 0..200_u64 {
        story.by_allocator(index).sbrk(4096);
        let counters = Counters {
            requested_bytes: index,
            ..Counters::default()
        };
        story.read(ReadingMoment::Call, counters);
    }
    for step in story.program_break().steps.kept {
        let figures = step.allocator.unwrap().figures.unwrap();
        assert_eq!(figures.requested_bytes, step.number - 1);
    }
}

#[test]
fn an_account_equal_to_the_traced_calls_is_a_check_that_held() {
    let mut story = launched();
    story.brk(0, Some(START), START);
    story.by_allocator(1).brk(0, Some(START), START);
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.by_allocator(KIB).sbrk(-4096);
    let refused = START + 128 * KIB;
    story
        .by_allocator(1 << 40)
        .brk(START + (1 << 40), Some(refused), refused);
    story.sbrk(8192);
    story
        .by_allocator(1 << 20)
        .mmap(HIGH, 1_000_000, READ_WRITE, MapFlags(0x22));
    let mapped = 1_003_520;
    story
        .by_allocator(2 << 20)
        .mremap((HIGH, mapped), (HIGH, 2 * mapped), RemapFlags(0));
    story
        .by_allocator(0)
        .mremap((HIGH, 2 * mapped), (HIGH, mapped), RemapFlags(0));
    story.by_allocator(0).madvise(HIGH, 8192, Advice::DONTNEED);
    story.by_allocator(0).madvise(HIGH, 0, Advice::DONTNEED);
    story.by_allocator(0).munmap(HIGH, mapped);
    story.read(
        ReadingMoment::End,
        Counters {
            brk_calls: 3,
            brk_refused: 1,
            brk_grown_bytes: 132 * KIB,
            brk_shrunk_bytes: 4096,
            mmap_calls: 1,
            mapped_bytes: 2 * mapped,
            munmap_calls: 1,
            unmapped_bytes: 2 * mapped,
            mremap_calls: 2,
            madvise_calls: 1,
            advised_bytes: 8192,
            ..Counters::default()
        },
    );
    let checks = story.allocator_of(1).checks;
    assert_eq!((checks.made, checks.differing), (1, 0), "{checks:?}");
    assert_eq!(checks.differences, []);
}

#[test]
fn a_call_that_the_allocator_did_not_count_is_a_finding() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.by_allocator(16 * KIB).sbrk(4096);
    story.read(ReadingMoment::End, one_call());
    let checks = story.allocator_of(1).checks;
    assert_eq!((checks.made, checks.differing), (1, 1));
    let first = &checks.differences[0];
    assert_eq!(
        (first.counter.as_str(), first.counted, first.traced),
        ("brk_calls", 1, 2)
    );
    assert_eq!(checks.differences[1].counter, "brk_grown_bytes");
}

#[test]
fn readings_at_calls_or_while_threads_run_are_no_checks() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Call, Counters::default());
    story.read_while(false, ReadingMoment::Snapshot, Counters::default());
    let checks = story.allocator_of(1).checks;
    assert_eq!((checks.made, checks.skipped, checks.sums_made), (0, 1, 0));
}

#[test]
fn after_an_attach_comparison_begins_with_the_first_reading() {
    let mut story = Story::attached("");
    story.found();
    story.by_allocator(1).sbrk(4096);
    story.read(ReadingMoment::Snapshot, one_call());
    story.by_allocator(1).sbrk(8192);
    story.read(
        ReadingMoment::End,
        Counters {
            brk_calls: 2,
            brk_grown_bytes: 140 * KIB,
            ..Counters::default()
        },
    );
    let allocator = story.allocator_of(1);
    assert_eq!(
        (allocator.checks.made, allocator.checks.differing),
        (1, 0),
        "{allocator:?}"
    );
    assert_eq!(
        allocator.at_start.unwrap().figures.all().copied().unwrap(),
        one_call()
    );
}

#[test]
fn a_forked_child_goes_on_from_its_parents_counters() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Snapshot, one_call());
    story.in_process(11, 2);
    story.start(Origin::Forked, Some(1));
    story.by_allocator(16 * KIB).sbrk(4096);
    let counters = Counters {
        brk_calls: 2,
        brk_grown_bytes: 136 * KIB,
        obtained_bytes: 136 * KIB,
        ..one_call()
    };
    story.read(ReadingMoment::End, counters);
    let child = story.allocator_of(2);
    assert_eq!((child.checks.made, child.checks.differing), (1, 0));
    assert_eq!(
        child.at_start.unwrap().figures.all().copied().unwrap(),
        one_call()
    );
    assert_eq!(child.setup.unwrap().policy, "trim");
    assert_eq!(
        child.last.unwrap().figures.all().copied().unwrap(),
        counters
    );
}

#[test]
fn a_call_of_another_thread_around_a_fork_is_no_finding() {
    let mut story = launched();
    story.tid = Some(12);
    story.event(EventKind::ThreadStarted);
    story.tid = None;
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.in_process(11, 2);
    story.start(Origin::Forked, Some(1));
    // The child was copied before that call.
    story.read(ReadingMoment::Snapshot, Counters::default());
    story.read(ReadingMoment::End, Counters::default());
    let checks = story.allocator_of(2).checks;
    assert_eq!((checks.made, checks.skipped, checks.differing), (1, 1, 0));
}

#[test]
fn exec_begins_anew() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Exec, one_call());
    story.exec(10, 1, 2);
    story.found();
    story.read(ReadingMoment::End, Counters::default());
    let allocator = story.allocator_of(2);
    assert_eq!((allocator.checks.made, allocator.checks.differing), (1, 0));
    assert_eq!(
        story
            .allocator_of(1)
            .last
            .unwrap()
            .figures
            .all()
            .copied()
            .unwrap(),
        one_call()
    );
    assert_eq!(allocator.at_start, None);
}

#[test]
fn figures_that_do_not_add_up_are_counted_with_their_difference() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Snapshot, one_call());
    story.read(
        ReadingMoment::End,
        Counters {
            top_bytes: 115 * KIB - 8,
            ..one_call()
        },
    );
    let checks = story.allocator_of(1).checks;
    assert_eq!((checks.sums_made, checks.sums_differing), (2, 1));
    assert_eq!(checks.first_sum_difference_bytes, Some(-8));
}

#[test]
fn every_heap_error_counts_and_the_first_are_kept() {
    let mut story = launched();
    for number in 1..=100 {
        story.event(EventKind::HeapError(HeapError {
            number: Some(number),
            kind: if number == 1 {
                HeapErrorKind::WritePastEnd
            } else {
                HeapErrorKind::DoubleFree
            },
            found_by: FoundBy::Free,
            address: Address(START + number),
            size_bytes: Some(24),
            changed: None,
            tid: Some(10),
        }));
    }
    let errors = story.allocator_of(1).heap_errors;
    assert_eq!((errors.total, errors.kept.len()), (100, 64));
    let counts: Vec<_> = errors
        .by_kind
        .iter()
        .map(|count| (count.kind, count.errors))
        .collect();
    assert_eq!(
        counts,
        [
            (HeapErrorKind::DoubleFree, 99),
            (HeapErrorKind::WritePastEnd, 1)
        ]
    );
    assert_eq!(errors.kept[0].error.number, Some(1));
}

#[test]
fn the_timeline_holds_in_use_and_obtained_with_the_call_just_made() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Call, Counters::default());
    story.by_allocator(96 * KIB).sbrk(4096);
    story.read(ReadingMoment::Call, one_call());
    let points = story.space(1).timeline.points;
    let told: Vec<_> = points
        .iter()
        .filter_map(|point| {
            Some((
                point.allocator_in_use_bytes?,
                point.allocator_obtained_bytes?,
            ))
        })
        .collect();
    assert_eq!(told, [(0, 132 * KIB), (16 * KIB, 136 * KIB)]);
}

#[test]
fn claims_are_numbers_and_never_divide_by_zero() {
    let mut story = launched();
    story.read(
        ReadingMoment::End,
        Counters {
            requested_bytes: 20 * KIB,
            allocated_blocks: 20,
            realloc_in_place: 10,
            brk_shrunk_bytes: 4096,
            unmapped_bytes: 8192,
            ..one_call()
        },
    );
    let claims = story.allocator_of(1).claims.unwrap();
    assert_eq!((claims.requests, claims.kernel_calls), (30, 1));
    assert_eq!(claims.requests_per_kernel_call, Some(30.0));
    assert_eq!(claims.obtained_per_in_use, Some(132.0 / 16.0));
    assert_eq!(
        (claims.freed_bytes, claims.returned_bytes),
        (4 * KIB, 12 * KIB)
    );
    story.read(ReadingMoment::End, Counters::default());
    let claims = story.allocator_of(1).claims.unwrap();
    assert_eq!(
        (claims.requests_per_kernel_call, claims.in_use_share),
        (None, None)
    );
}

#[test]
fn classes_and_walk_are_those_told_last() {
    let mut story = launched();
    let class = ClassReading {
        block_bytes: 32,
        live: 5,
        ..ClassReading::default()
    };
    story.event(EventKind::AllocatorRead(Box::new(AllocatorReading {
        moment: ReadingMoment::End,
        still: true,
        counters: AllocatorFigures::complete(one_call()),
        classes: vec![class],
    })));
    let walk = HeapWalk {
        leaks: None,
        complete: true,
        stopped: None,
        live_blocks: 1,
        live_bytes: 16 * KIB,
        largest: vec![SizeCount {
            size_bytes: 16 * KIB,
            blocks: 1,
        }],
    };
    story.event(EventKind::HeapWalked(walk.clone()));
    let allocator = story.allocator_of(1);
    assert_eq!(
        (allocator.classes, allocator.walk),
        (vec![class], Some(walk))
    );
}

#[test]
fn a_failed_call_moves_no_bytes_but_counts() {
    let mut story = launched();
    story.by_allocator(1).event(EventKind::Munmap {
        address: Address(HIGH),
        length: 4096,
        result: CallResult::Failed(crate::event::Errno(22)),
    });
    story.read(
        ReadingMoment::End,
        Counters {
            munmap_calls: 1,
            ..Counters::default()
        },
    );
    assert_eq!(story.allocator_of(1).checks.differing, 0);
}

#[test]
fn the_log_of_an_allocator_replayed_gives_the_same_report() {
    let mut story = launched();
    story.by_allocator(16 * KIB).sbrk(132 * 1024);
    story.read(ReadingMoment::Call, Counters::default());
    story.event(EventKind::HeapError(HeapError {
        number: None,
        kind: HeapErrorKind::RecordsChanged,
        found_by: FoundBy::Exit,
        address: Address(START),
        size_bytes: None,
        changed: None,
        tid: None,
    }));
    story.read(ReadingMoment::End, one_call());
    story.event(EventKind::RecordingEnded {
        reason: EndReason::Finished,
    });
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let mut log = EventLog::create(&path, &story.recorder.recording).unwrap();
    for event in &story.events {
        log.write(event).unwrap();
    }
    let text = std::fs::read(&path).unwrap();
    let replayed = replay(text.as_slice()).unwrap().report();
    assert_eq!(replayed, story.report());
}
