//! Calls by another ABI than the machine's own: decoded rightly, or said not to be decoded; never wrong.
#![cfg(target_arch = "x86_64")]

use std::path::PathBuf;

use serde_json::Value;

use crate::support::Traced;
use crate::support::compile;
use crate::support::number;
use crate::support::skip;
use crate::support::trace;

fn program(name: &str, flags: &[&str]) -> Option<PathBuf> {
    let program = compile(name, flags);
    if program.is_none() {
        skip(&format!(
            "cc cannot make {name} with {flags:?} (gcc-multilib, libc6-dev-i386)"
        ));
    }
    program
}

/// Events of this kind, or of the kind that says that they could not be decoded.
fn decoded<'a>(traced: &'a Traced, kind: &str) -> impl Iterator<Item = &'a Value> {
    assert!(
        traced
            .events
            .iter()
            .all(|event| event["event"] != "not_decoded"),
        "i386 calls are decoded"
    );
    traced
        .events
        .iter()
        .filter(move |event| event["event"] == kind)
}

fn address(event: &Value, field: &str) -> u64 {
    number(event[field].as_str().unwrap())
}

#[test]
fn calls_by_int_80_from_64_bit_code_are_what_they_are_there() {
    let Some(program) = program("int80", &["-no-pie"]) else {
        return;
    };
    for options in [&["--verify"][..], &["--verify", "--no-seccomp"]] {
        let traced = trace(options, [&program]);
        traced.ended.expect_code(0);
        let (before, after) = (traced.ended.number("before"), traced.ended.number("int80"));
        assert_eq!(after, before + 0x9000, "the kernel did what was asked");
        assert!(decoded(&traced, "brk").any(|event| {
            address(event, "before") == before
                && address(event, "requested") == after
                && address(event, "after") == after
        }));
        assert!(
            decoded(&traced, "munmap")
                .any(|event| event["length"] == 77 && event["error"] == "EINVAL"),
            "{:#?}",
            decoded(&traced, "munmap").collect::<Vec<_>>()
        );
        let heap = &traced.report.address_spaces[0].program_break;
        assert_eq!(
            heap.end.map(|end| end.0),
            Some(traced.ended.number("after"))
        );
    }
}

#[test]
fn a_32_bit_program_is_recorded_like_any_other() {
    let Some(program) = program("i386_calls", &["-m32", "-static"]) else {
        return;
    };
    for options in [&["--verify"][..], &["--verify", "--no-seccomp"]] {
        let traced = trace(options, [&program]);
        traced.ended.expect_code(0);
        let (before, after) = (traced.ended.number("before"), traced.ended.number("after"));
        assert!(decoded(&traced, "brk").any(|event| {
            address(event, "before") == before
                && address(event, "requested") == after
                && address(event, "after") == after
        }));
        for (length, fact) in [(12288, "mmap2"), (20480, "mmap")] {
            let place = traced.ended.number(fact);
            assert!(
                decoded(&traced, "mmap").any(|event| {
                    event["length"] == length
                        && event["flags"] == "PRIVATE|ANONYMOUS"
                        && event["fd"] == -1
                        && address(event, "result") == place
                }),
                "{fact}: {:#?}",
                decoded(&traced, "mmap").collect::<Vec<_>>()
            );
        }
        assert!(
            decoded(&traced, "munmap")
                .any(|event| event["length"] == 20480 && event["result"].is_null())
        );
        assert!(
            decoded(&traced, "munmap")
                .any(|event| event["length"] == 77 && event["error"] == "EINVAL")
        );
        let heap = &traced.report.address_spaces[0].program_break;
        assert!(heap.end.is_some_and(|end| end.0 >= after));
    }
}
