//! Errors in a program's use of its heap are found and told, and harm neither the program's run nor breaktrace.
//!
//! `fixtures/heap_errors.c` makes one error at a time, and prints where.

use std::path::PathBuf;

use breaktrace::event::FoundBy;
use breaktrace::event::HeapError;
use breaktrace::event::HeapErrorKind;
use breaktrace::report::HeapErrors;

use crate::support::Ended;
use crate::support::Traced;
use crate::support::compile;
use crate::support::skip;
use crate::support::trace;

const PLAIN: &[&str] = &["--allocator", "bundled", "--on-heap-error", "report"];
const GUARDED: &[&str] = &[
    "--allocator",
    "bundled",
    "--on-heap-error",
    "report",
    "--guard",
];
const ABORTING: &[&str] = &["--allocator", "bundled", "--on-heap-error", "abort"];

fn program() -> Option<PathBuf> {
    // Not among the optimized fixtures: the compiler sees through errors.
    let program = compile("heap_errors", &["-fno-builtin", "-w"]);
    if program.is_none() {
        skip("no C compiler");
    }
    program
}

/// Runs the fixture with one error; `None` without a compiler.
#[track_caller]
fn run(options: &[&str], error: &str) -> Option<Traced> {
    let program = program()?;
    Some(trace(options, [program.to_str().unwrap(), error]))
}

#[track_caller]
fn errors(traced: &Traced) -> &HeapErrors {
    let allocator = traced.report.address_spaces[0].allocator.as_ref();
    &allocator.expect("an allocator's account").heap_errors
}

/// What the report has to say of an error.
struct Expected {
    kind: HeapErrorKind,
    found_by: &'static [FoundBy],
    /// The fixture's word for the address: `block`, or `pointer`.
    address: &'static str,
    size_known: bool,
    changed_known: bool,
}

#[track_caller]
fn expect_first(ended: &Ended, found: &HeapErrors, expected: &Expected, context: &str) {
    let first: &HeapError = match found.kept.first() {
        Some(found) => &found.error,
        None => panic!("{context}: nothing was found\n{}", ended.stdout),
    };
    let shown = format!("{context}: {first:?}\n{}{}", ended.stdout, ended.stderr);
    assert_eq!(first.kind, expected.kind, "{shown}");
    assert!(expected.found_by.contains(&first.found_by), "{shown}");
    assert_eq!(first.address.0, ended.number(expected.address), "{shown}");
    let size = expected.size_known.then(|| ended.number("size"));
    assert_eq!(first.size_bytes, size, "{shown}");
    if expected.changed_known {
        let changed = first.changed.map(|address| address.0);
        assert_eq!(changed, Some(ended.number("changed")), "{shown}");
    }
    if first.found_by != FoundBy::Exit {
        assert!(first.number == Some(1) && first.tid.is_some(), "{shown}");
    }
}

/// The error is found with and without guard, and the program goes on to its end.
#[track_caller]
fn expect_found(names: &[&str], guards: &[&[&str]], expected: &Expected) {
    for name in names {
        for options in guards {
            let Some(traced) = run(options, name) else {
                return;
            };
            let context = format!("{name} {options:?}");
            assert_eq!(
                traced.ended.ending(),
                (Some(0), None),
                "{context}: {:?}",
                traced.ended
            );
            assert!(
                traced.ended.stdout.ends_with("done\n"),
                "{context}: {:?}",
                traced.ended
            );
            let found = errors(&traced);
            expect_first(&traced.ended, found, expected, &context);
            assert_eq!(found.total, 1, "{context}: one error was made: {found:#?}");
        }
    }
}

#[test]
fn a_block_freed_twice_is_named() {
    expect_found(
        &[
            "double_free_small",
            "double_free_small_later",
            "double_free_medium",
            "double_free_medium_later",
            "double_free_large",
            "double_free_large_later",
        ],
        &[PLAIN, GUARDED],
        &Expected {
            kind: HeapErrorKind::DoubleFree,
            found_by: &[FoundBy::Free],
            address: "block",
            size_known: true,
            changed_known: false,
        },
    );
}

#[test]
fn realloc_of_a_freed_block_is_a_second_free() {
    expect_found(
        &["double_free_by_realloc"],
        &[PLAIN, GUARDED],
        &Expected {
            kind: HeapErrorKind::DoubleFree,
            found_by: &[FoundBy::Realloc],
            address: "block",
            size_known: true,
            changed_known: false,
        },
    );
}

#[test]
fn free_of_what_malloc_never_gave_is_named() {
    expect_found(
        &[
            "free_of_stack",
            "free_of_data",
            "free_of_code",
            "free_of_unmapped",
            "free_of_noncanonical",
            "free_of_mapping",
            "free_of_sbrk",
            "free_inside_1",
            "free_inside_8",
            "free_inside_16",
            "free_inside_small",
            "free_inside_large",
        ],
        &[PLAIN, GUARDED],
        &Expected {
            kind: HeapErrorKind::ForeignPointer,
            found_by: &[FoundBy::Free],
            address: "pointer",
            size_known: false,
            changed_known: false,
        },
    );
}

#[test]
fn realloc_of_what_malloc_never_gave_is_named() {
    expect_found(
        &["realloc_inside"],
        &[PLAIN, GUARDED],
        &Expected {
            kind: HeapErrorKind::ForeignPointer,
            found_by: &[FoundBy::Realloc],
            address: "pointer",
            size_known: false,
            changed_known: false,
        },
    );
}

/// A write of one byte past the end is found where it is looked for, and where rounding leaves room.
const PAST_END: Expected = Expected {
    kind: HeapErrorKind::WritePastEnd,
    found_by: &[FoundBy::Free],
    address: "block",
    size_known: true,
    changed_known: true,
};

#[test]
fn a_byte_written_past_the_end_is_found_at_free() {
    expect_found(
        &[
            "past_end_23",
            "past_end_24",
            "past_end_1000",
            "past_end_5000",
            "past_end_200000",
        ],
        &[PLAIN, GUARDED],
        &PAST_END,
    );
}

#[test]
fn many_bytes_written_past_the_end_are_found_at_free() {
    // They reach into the next block, which may be told of as well.
    for name in [
        "past_end_by_100",
        "past_end_by_100_medium",
        "past_end_with_zero",
    ] {
        for options in [PLAIN, GUARDED] {
            let Some(traced) = run(options, name) else {
                return;
            };
            traced.ended.expect_calm();
            expect_first(&traced.ended, errors(&traced), &PAST_END, name);
        }
    }
}

#[test]
fn a_byte_written_past_the_end_is_found_at_realloc() {
    expect_found(
        &["past_end_at_realloc"],
        &[PLAIN, GUARDED],
        &Expected {
            found_by: &[FoundBy::Realloc],
            ..PAST_END
        },
    );
}

#[test]
fn a_byte_written_past_the_end_of_a_block_never_freed_is_found_at_exit() {
    expect_found(
        &[
            "past_end_at_exit",
            "past_end_medium_at_exit",
            "past_end_large_at_exit",
        ],
        &[PLAIN, GUARDED],
        &Expected {
            found_by: &[FoundBy::Exit],
            ..PAST_END
        },
    );
}

/// The header before a block is checked as a whole: which of its bytes changed cannot be told.
const BEFORE_START: Expected = Expected {
    kind: HeapErrorKind::WriteBeforeStart,
    found_by: &[FoundBy::Free, FoundBy::Realloc, FoundBy::Exit],
    address: "block",
    size_known: false,
    changed_known: false,
};

#[test]
fn a_byte_written_before_the_start_is_found() {
    let names = [
        "before_start_small",
        "before_start_medium",
        "before_start_large",
        "before_start_at_realloc",
        "before_start_at_exit",
    ];
    for name in names {
        for options in [PLAIN, GUARDED] {
            // The walk at exit knows red zones behind blocks only.
            if name == "before_start_at_exit" && options == GUARDED {
                continue;
            }
            let Some(traced) = run(options, name) else {
                return;
            };
            let context = format!("{name} {options:?}");
            assert_eq!(
                traced.ended.ending(),
                (Some(0), None),
                "{context}: {:?}",
                traced.ended
            );
            let found = errors(&traced);
            let first = found.kept.first();
            let first = &first
                .unwrap_or_else(|| panic!("{context}: nothing was found"))
                .error;
            let size = first.size_bytes;
            // A damaged header may have lost the size; what is said of it must be true.
            assert!(
                size.is_none() || size == Some(traced.ended.number("size")),
                "{context}: {first:?}"
            );
            let expected = Expected {
                size_known: size.is_some(),
                ..BEFORE_START
            };
            expect_first(&traced.ended, found, &expected, &context);
            assert_eq!(found.total, 1, "{context}: {found:#?}");
        }
    }
}

#[test]
fn guard_finds_writes_after_free() {
    expect_found(
        &[
            "after_free_small",
            "after_free_medium",
            "after_free_at_exit",
            "after_realloc",
        ],
        &[GUARDED],
        &Expected {
            kind: HeapErrorKind::WriteAfterFree,
            found_by: &[FoundBy::Quarantine, FoundBy::Malloc, FoundBy::Exit],
            address: "block",
            size_known: true,
            changed_known: true,
        },
    );
}

#[test]
fn a_correct_program_has_no_heap_errors() {
    for options in [PLAIN, GUARDED, ABORTING] {
        let Some(traced) = run(options, "none") else {
            return;
        };
        traced.ended.expect_code(0);
        assert_eq!(errors(&traced), &HeapErrors::default());
    }
}

#[test]
fn more_errors_than_are_kept_are_all_counted() {
    for options in [PLAIN, GUARDED] {
        let Some(traced) = run(options, "many") else {
            return;
        };
        traced.ended.expect_code(0);
        let found = errors(&traced);
        assert_eq!(found.total, 100, "{found:#?}");
        assert_eq!(found.by_kind.len(), 1, "{found:#?}");
        assert_eq!(found.by_kind[0].kind, HeapErrorKind::DoubleFree);
        assert_eq!(found.by_kind[0].errors, 100);
    }
}

#[test]
fn the_program_dies_of_its_error_if_that_is_wanted() {
    for name in [
        "double_free_small",
        "double_free_large",
        "free_of_stack",
        "free_inside_16",
        "past_end_24",
        "past_end_at_realloc",
        "before_start_medium",
    ] {
        let Some(traced) = run(ABORTING, name) else {
            return;
        };
        traced.ended.expect_signal(libc::SIGABRT);
        assert!(
            !traced.ended.stdout.contains("done"),
            "{name}: {:?}",
            traced.ended
        );
        let found = errors(&traced);
        assert_eq!(found.total, 1, "{name}: {found:#?}");
    }
}

#[test]
fn an_error_of_a_forked_child_is_told_of_the_child() {
    let Some(program) = program() else {
        return;
    };
    let script = format!("{0} double_free_medium; {0} none", program.display());
    let traced = trace(PLAIN, ["sh", "-c", &script]);
    traced.ended.expect_code(0);
    let totals: Vec<u64> = traced
        .report
        .address_spaces
        .iter()
        .filter(|space| space.program.contains("heap_errors"))
        .map(|space| {
            space
                .allocator
                .as_ref()
                .expect("an account")
                .heap_errors
                .total
        })
        .collect();
    assert_eq!(totals, [1, 0]);
}

#[test]
fn a_heap_overwritten_with_letters_leaves_breaktrace_unharmed() {
    for options in [PLAIN, GUARDED, ABORTING] {
        let Some(program) = program() else {
            return;
        };
        // The program may well die of it; breaktrace tells what there is to tell.
        let traced = trace(options, [program.to_str().unwrap(), "heap_overwritten"]);
        traced.ended.expect_calm();
        let found = errors(&traced);
        assert!(found.total > 0, "{options:?}: {found:#?}");
        let first = &found.kept[0].error;
        assert!(
            first.address.0 != 0x4141_4141_4141_4141
                && first.size_bytes != Some(0x4141_4141_4141_4141),
            "{options:?}: {first:?} is read out of overwritten memory"
        );
    }
}

#[test]
fn the_text_names_kind_and_address() {
    let Some(program) = program() else {
        return;
    };
    let mut command = crate::support::breaktrace();
    command
        .args(["run", "--format", "text"])
        .args(PLAIN)
        .arg("--")
        .arg(program)
        .arg("double_free_medium");
    let ended = crate::support::finish(&mut command);
    ended.expect_code(0);
    let address = ended.fact("block");
    assert!(
        ended.stderr.contains(address),
        "{address} is not in:\n{}",
        ended.stderr
    );
    let text = ended.stderr.to_lowercase();
    assert!(
        ["double free", "freed twice", "freed again"]
            .iter()
            .any(|words| text.contains(words)),
        "{}",
        ended.stderr
    );
}
