//! Both accounts made up, as malloc of several versions gave them.

use super::*;
use crate::event::SpaceId;
use crate::units::Timestamp;

const HEAP: Address = Address(0x5555_0000_0000);

/// Where malloc put things in one run of the program.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    pub(super) glibc: &'static str,
    /// Bytes before the first chunk.
    pub(super) before: u64,
    /// Bytes between the chunks of e and g.
    pub(super) between: u64,
    /// By how much the break rose at step 1 and at step 9.
    pub(super) growths: [u64; 2],
}

/// Debian 12, the machine that this was first measured on.
pub(super) const GLIBC_2_36: Layout = Layout {
    glibc: "2.36",
    before: 656,
    between: 0,
    growths: [0x21000, 0x2a000],
};

/// Both accounts of the program.
fn accounts(layout: Layout) -> (Vec<Seen>, Trace) {
    let breaks = [
        HEAP,
        HEAP + layout.growths[0],
        HEAP + layout.growths[0] + layout.growths[1],
    ];
    let chunk = |index: u64| HEAP + layout.before + index * 16_400;
    let large = chunk(5) + layout.between;
    let seen = SCRIPT
        .into_iter()
        .enumerate()
        .map(|(step, act)| {
            let (place, usable_bytes) = match act {
                Act::Begin => (None, None),
                Act::Malloc { block: 6, .. } => (Some(large), Some(92_168)),
                Act::Malloc { block: 5, .. } => (Some(chunk(1)), Some(16_392)),
                Act::Malloc { block, .. } => (Some(chunk(block as u64)), Some(16_392)),
                Act::Free { .. } => (Some(chunk(1)), None),
            };
            Seen {
                program_break: breaks[usize::from(step >= 1) + usize::from(step >= 9)],
                block: place.map(|chunk| chunk + 16),
                usable_bytes,
            }
        })
        .collect();
    let brk = |from: usize, to: usize| Call::Brk {
        requested: breaks[to],
        before: Some(breaks[from]),
        after: breaks[to],
    };
    let mut steps = vec![Vec::new(); SCRIPT.len()];
    steps[1].push(brk(0, 1));
    steps[9].push(brk(1, 2));
    let trace = Trace {
        heap_start: Some(HEAP),
        steps: steps.into_iter().map(|calls| (calls, None)).collect(),
        ..Trace::default()
    };
    (seen, trace)
}

fn beside(layout: Layout, seen: &[Seen], trace: Trace) -> Result<Demonstration, DemoError> {
    let machine = Machine {
        architecture: "x86_64".into(),
        kernel: "6.18.44".into(),
        page_size: 4096,
    };
    let c_library = CLibrary {
        name: "glibc",
        version: Some(layout.glibc.into()),
    };
    demonstrate(seen, trace, machine, c_library, Vec::new())
}

pub(super) fn demonstration(layout: Layout) -> Demonstration {
    let (seen, trace) = accounts(layout);
    beside(layout, &seen, trace).unwrap()
}

/// The call of the last step was not traced.
pub(super) fn differing_demonstration() -> Demonstration {
    let (seen, mut trace) = accounts(GLIBC_2_36);
    trace.steps[9].0.clear();
    beside(GLIBC_2_36, &seen, trace).unwrap()
}

fn bytes(sum: &Sum) -> Vec<i64> {
    sum.terms.iter().map(|term| term.bytes).collect()
}

#[test]
fn growths_of_every_glibc_since_2_23_are_explained_to_the_byte() {
    // Measured with each distribution's own libc.so.6.
    let without_cache = [16_400, 131_072, 32, 4_048];
    let cases = [
        ("2.23", 0, 0, without_cache, (-69_552, 1_920)),
        ("2.27", 592, 0, [592, 131_072, 32, 3_472], (-52_576, 1_328)),
        ("2.31", 656, 0, [656, 131_072, 32, 3_408], (-52_512, 1_264)),
        ("2.41", 656, 0, [656, 131_072, 32, 3_408], (-52_512, 1_264)),
        ("2.42", 0, 0, without_cache, (-69_552, 1_920)),
        ("2.43", 0, 784, without_cache, (-68_768, 1_136)),
    ];
    for (glibc, before, between, first, (left, rounding)) in cases {
        let growths = if before == 0 {
            [0x25000, 0x26000]
        } else {
            [0x21000, 0x2a000]
        };
        let shown = demonstration(Layout {
            glibc,
            before,
            between,
            growths,
        });
        let [one, two, heap] = shown.sums.as_slice() else {
            panic!("{glibc}: {:?}", shown.sums);
        };
        assert_eq!(bytes(one), first, "{glibc}");
        assert_eq!(bytes(two), [92_176, 131_072, 32, left, rounding], "{glibc}");
        for sum in [one, two, heap] {
            let total: i64 = bytes(sum).iter().sum();
            assert_eq!(total, sum.bytes.cast_signed(), "{glibc}");
        }
        assert_eq!(heap.bytes, growths[0] + growths[1]);
        let cache: i64 = heap
            .terms
            .iter()
            .filter(|term| term.kind == TermKind::ThreadCache)
            .map(|term| term.bytes)
            .sum();
        assert_eq!(cache.unsigned_abs(), before + between, "{glibc}");
    }
}

#[test]
fn every_step_has_its_reason() {
    let reasons: Vec<Reason> = demonstration(GLIBC_2_36)
        .steps
        .iter()
        .map(|step| step.reason)
        .collect();
    let cut = |after| Reason::CutFromTop {
        after,
        distance_bytes: 16_400,
    };
    assert_eq!(
        reasons,
        [
            Reason::Begins,
            Reason::Grown { sum: 1 },
            cut('a'),
            cut('b'),
            cut('c'),
            cut('d'),
            Reason::Kept,
            Reason::Reused { block: 'b' },
            Reason::Kept,
            Reason::Grown { sum: 2 },
        ]
    );
}

#[test]
fn a_growth_that_is_not_glibcs_arithmetic_stays_unexplained() {
    for growths in [[0x22000, 0x2a000], [0x21000, 0x2b000], [0x100_0000, 0x1000]] {
        let shown = demonstration(Layout {
            growths,
            ..GLIBC_2_36
        });
        assert!(shown.agrees);
        assert!(
            shown
                .steps
                .iter()
                .any(|step| step.reason == Reason::Unexplained)
        );
        assert!(!shown.sums.iter().any(|sum| sum.of == SumOf::Heap));
    }
}

#[test]
fn a_block_before_the_first_is_the_thread_cache_only_where_it_has_its_size() {
    let shown = demonstration(Layout {
        before: 592,
        ..GLIBC_2_36
    });
    assert_eq!(shown.sums[0].terms[0].kind, TermKind::Other);
}

#[test]
fn another_library_is_not_explained_by_glibcs_arithmetic() {
    let (seen, trace) = accounts(GLIBC_2_36);
    let mut steps = beside_each_other(&seen, trace).unwrap();
    let musl = CLibrary {
        name: "musl",
        version: None,
    };
    let setting = Setting {
        c_library: &musl,
        page_size: 4096,
        heap_start: HEAP,
    };
    assert_eq!(explain::explain(&mut steps, setting), []);
    assert_eq!(steps[1].reason, Reason::Unexplained);
}

#[test]
fn totals_tell_what_was_asked_for_and_what_it_took() {
    assert_eq!(
        demonstration(GLIBC_2_36).totals,
        Totals {
            mallocs: 7,
            frees: 2,
            system_calls: 2,
            requested_bytes: 190_464,
            freed_bytes: 32_768,
            obtained_bytes: 307_200,
            returned_bytes: 0,
        }
    );
}

#[test]
fn a_break_that_the_program_saw_and_the_trace_did_not_is_a_difference() {
    let (mut seen, trace) = accounts(GLIBC_2_36);
    seen[4].program_break = seen[4].program_break + 4096;
    let shown = beside(GLIBC_2_36, &seen, trace).unwrap();
    assert!(!shown.agrees);
    let differing: Vec<usize> = shown
        .steps
        .iter()
        .filter(|step| !step.agrees)
        .map(|step| step.number)
        .collect();
    assert_eq!(differing, [4]);
    assert_eq!(shown.steps[4].reason, Reason::Unexplained);
}

#[test]
fn a_call_that_was_not_traced_is_a_difference_from_there_on() {
    let (seen, mut trace) = accounts(GLIBC_2_36);
    trace.steps[1].0.clear();
    let shown = beside(GLIBC_2_36, &seen, trace).unwrap();
    let differing: Vec<usize> = (0..SCRIPT.len())
        .filter(|&n| !shown.steps[n].agrees)
        .collect();
    // The next call tells where the break is.
    assert_eq!(differing, [1, 2, 3, 4, 5, 6, 7, 8]);
}

#[test]
fn without_a_known_start_a_silent_trace_confirms_nothing() {
    let (seen, mut trace) = accounts(GLIBC_2_36);
    trace.heap_start = None;
    let shown = beside(GLIBC_2_36, &seen, trace).unwrap();
    assert_eq!(shown.steps[0].traced_break, None);
    assert!(!shown.agrees && shown.sums.is_empty());
}

#[test]
fn a_trace_that_breaks_off_names_the_step() {
    let (seen, mut trace) = accounts(GLIBC_2_36);
    trace.steps.truncate(7);
    let error = beside(GLIBC_2_36, &seen, trace).unwrap_err();
    assert!(matches!(error, DemoError::NoMark(7)), "{error}");
}

#[test]
fn calls_belong_to_the_step_whose_mark_follows() {
    let mut trace = Trace::default();
    let mut take = |kind| {
        trace.take(&Event {
            malloc: None,
            time: Timestamp(1),
            pid: 1,
            tid: 1,
            space: SpaceId(1),
            allocator: None,
            stack: None,
            kind,
        });
    };
    let munmap = || EventKind::Munmap {
        address: Address(4096),
        length: 4096,
        result: crate::event::CallResult::Done(()),
    };
    let advise = |address, length| EventKind::Madvise {
        address: Address(address),
        length,
        advice: crate::event::Advice(0),
        result: crate::event::CallResult::Done(()),
    };
    take(munmap());
    take(advise(script::mark(0) as u64, 0));
    take(munmap());
    take(advise(script::mark(1) as u64, 4096));
    // A mark out of turn is no mark.
    take(advise(script::mark(3) as u64, 0));
    take(advise(script::mark(1) as u64, 0));
    let names = |calls: &[Call]| -> Vec<&'static str> {
        calls
            .iter()
            .map(|call| match call {
                Call::Brk { .. } => "brk",
                Call::Other { name, .. } => name,
            })
            .collect()
    };
    let steps: Vec<_> = trace.steps.iter().map(|(calls, _)| names(calls)).collect();
    assert_eq!(steps, [vec![], vec!["munmap", "madvise", "madvise"]]);
}

#[test]
fn versions_are_read_from_what_glibc_says() {
    let version = |text: &str| {
        CLibrary {
            name: "glibc",
            version: Some(text.into()),
        }
        .version()
    };
    assert_eq!(version("2.36"), Some((2, 36)));
    assert_eq!(version("2.39.9000"), Some((2, 39)));
    assert_eq!(version("2.9-x"), Some((2, 9)));
    assert_eq!(
        (version("2"), version(""), version("2.x")),
        (None, None, None)
    );
}

#[test]
fn json_names_its_schema_and_keeps_every_step() {
    let text = to_json(&demonstration(GLIBC_2_36));
    let value: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(value["schema"]["name"], "breaktrace.demo");
    assert_eq!(value["schema"]["version"], 1);
    assert_eq!(value["steps"].as_array().unwrap().len(), SCRIPT.len());
    assert_eq!(value["steps"][1]["reason"]["kind"], "grown");
    assert_eq!(value["steps"][1]["seen_break"], "0x555500021000");
}

#[test]
fn what_malloc_itself_says_must_agree_with_where_the_blocks_lie() {
    let with_top = |top_bytes| {
        let (seen, mut trace) = accounts(GLIBC_2_36);
        trace.steps[9].1 = Some(MallocFacts {
            top_pad_bytes: 131_072,
            top_bytes,
        });
        beside(GLIBC_2_36, &seen, trace).unwrap().steps[9].reason
    };
    assert_eq!(with_top(52_512), Reason::Grown { sum: 2 });
    assert_eq!(with_top(52_496), Reason::Unexplained);
}

#[test]
fn a_pad_that_was_set_is_read_rather_than_assumed() {
    let (seen, mut trace) = accounts(GLIBC_2_36);
    trace.steps[9].1 = Some(MallocFacts {
        top_pad_bytes: 0,
        top_bytes: 52_512,
    });
    // The break rose by more than such a malloc asks for.
    let shown = beside(GLIBC_2_36, &seen, trace).unwrap();
    assert_eq!(shown.steps[9].reason, Reason::Unexplained);
}
