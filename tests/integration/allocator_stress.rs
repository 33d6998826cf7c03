//! The bundled malloc under load: threads, any sizes, every byte of every block checked.
//!
//! `fixtures/malloc_stress.c` does the work and says what went wrong. To run it for hours, from any seed:
//! `LD_PRELOAD=target/tmp/libbreaktrace.so target/tmp/malloc_stress SEED 3600s THREADS`.

use std::process::Command;
use std::time::SystemTime;

use crate::preloaded::SETTINGS;
use crate::preloaded::Setting;
use crate::preloaded::compiled;
use crate::preloaded::preload;
use crate::support::finish;
use crate::support::trace;

/// With BREAKTRACE_SOAK=1: longer, and from a seed that was never used before.
fn is_soak() -> bool {
    std::env::var_os("BREAKTRACE_SOAK").is_some()
}

fn seed(number: u64) -> String {
    let base = if is_soak() {
        SystemTime::now()
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap()
            .as_secs()
    } else {
        0
    };
    format!("{:#x}", base.wrapping_mul(0x1_0000) + number)
}

#[track_caller]
fn expect_all_bytes_kept(threads: u32, operations: u64) {
    let Some(program) = compiled("malloc_stress.c") else {
        return;
    };
    for (number, setting) in (1..).zip(SETTINGS) {
        let amount = if is_soak() {
            "20s".to_owned()
        } else {
            operations.to_string()
        };
        let mut command = Command::new(&program);
        command.args([seed(number), amount, threads.to_string()]);
        expect_ok(preload(&mut command, setting), setting);
    }
}

#[track_caller]
fn expect_ok(command: &mut Command, setting: &Setting) {
    let ended = finish(command);
    assert!(
        ended.ending() == (Some(0), None) && ended.stdout.contains("\nok "),
        "{}: {command:?} ended with {}\n{}{}",
        setting.name,
        ended.status,
        ended.stdout,
        ended.stderr
    );
}

#[test]
fn one_thread_under_load_finds_every_byte_in_place() {
    expect_all_bytes_kept(1, 200_000);
}

#[test]
fn two_threads_under_load_find_every_byte_in_place() {
    expect_all_bytes_kept(2, 100_000);
}

#[test]
fn more_threads_than_processors_under_load_find_every_byte_in_place() {
    expect_all_bytes_kept(9, 25_000);
}

#[test]
fn a_heap_error_ends_no_correct_program() {
    let Some(program) = compiled("malloc_stress.c") else {
        return;
    };
    for guard in ["0", "1"] {
        let mut command = Command::new(&program);
        command
            .args([seed(77).as_str(), "50000", "3"])
            .env("BREAKTRACE_GUARD", guard)
            .env("BREAKTRACE_ON_HEAP_ERROR", "abort");
        expect_ok(preload(&mut command, &SETTINGS[0]), &SETTINGS[0]);
    }
}

#[test]
fn after_load_the_figures_add_up_to_the_byte() {
    let Some(program) = compiled("malloc_stress.c") else {
        return;
    };
    let program = program.to_str().unwrap();
    for options in [
        &["--allocator", "bundled"][..],
        &["--allocator", "bundled", "--heap-policy", "never"],
        &["--allocator", "bundled", "--heap-policy", "eager"],
        &["--allocator", "bundled", "--guard"],
    ] {
        for threads in ["1", "4"] {
            let traced = trace(options, [program, seed(5).as_str(), "20000", threads]);
            traced.ended.expect_code(0);
            let report = &traced.report.address_spaces[0];
            let allocator = report.allocator.as_ref().expect("an allocator's account");
            let last = allocator.last.as_ref().expect("figures");
            let figures = &last.figures.0;
            assert!(last.still, "read while the program ran: {last:?}");
            assert!(figures.adds_up(), "{options:?} {threads}: {figures:?}");
            assert_eq!(allocator.checks.sums_differing, 0, "{:?}", allocator.checks);
            assert!(allocator.checks.sums_made > 0, "{:?}", allocator.checks);
            assert_eq!(allocator.checks.differing, 0, "{:?}", allocator.checks);
            assert!(allocator.checks.made > 0, "{:?}", allocator.checks);
            assert_eq!(
                allocator.heap_errors.total, 0,
                "{:?}",
                allocator.heap_errors
            );
            expect_what_is_left(&traced.ended.stdout, figures);
        }
    }
}

/// What the program left, as it tells itself, is in use; the C library has a few blocks of its own beside it.
#[track_caller]
fn expect_what_is_left(stdout: &str, figures: &breaktrace::stats_page::Counters) {
    let line = crate::support::fact(stdout, "live");
    let (blocks, bytes) = line.split_once(" bytes ").unwrap();
    let blocks: u64 = blocks.parse().unwrap();
    let bytes: u64 = bytes.parse().unwrap();
    assert!(
        (blocks..blocks + 100).contains(&figures.live_blocks),
        "{blocks} blocks are left, {} live",
        figures.live_blocks
    );
    assert!(
        (bytes..bytes + 100_000).contains(&figures.in_use_bytes),
        "{bytes} bytes are left, {} in use",
        figures.in_use_bytes
    );
    assert_eq!(
        figures.allocated_blocks - figures.freed_blocks,
        figures.live_blocks
    );
}
