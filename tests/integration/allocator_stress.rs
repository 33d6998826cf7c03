//! The bundled malloc under load: threads, any sizes, every byte of every block checked.
//!
//! `fixtures/malloc_stress.c` does the work and says what went wrong. To run it for hours, from any seed:
//! `LD_PRELOAD=target/tmp/libbreaktrace.so target/tmp/malloc_stress SEED 3600s THREADS`.

use std::os::unix::process::ExitStatusExt;
use std::process::Command;
use std::time::SystemTime;

use crate::preloaded::SETTINGS;
use crate::preloaded::Setting;
use crate::preloaded::compiled;
use crate::preloaded::library;
use crate::preloaded::preload;
use crate::support::Ended;
use crate::support::finish;
use crate::support::installed;
use crate::support::skip;
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
    expect_all_bytes_kept(1, 120_000);
}

#[test]
fn two_threads_under_load_find_every_byte_in_place() {
    expect_all_bytes_kept(2, 60_000);
}

#[test]
fn more_threads_than_processors_under_load_find_every_byte_in_place() {
    expect_all_bytes_kept(9, 15_000);
}

/// Runs an amount of load, operations and threads, with strace in the kernel's place for one kind of call; `None`
/// without strace.
fn run_with_refusals(refusal: &str, amount: [&str; 2], setting: &Setting) -> Option<Ended> {
    let Some(strace) = installed(&["strace"]) else {
        skip("no strace");
        return None;
    };
    let program = compiled("malloc_stress.c")?;
    let call = refusal.split(':').next().unwrap();
    let mut command = Command::new(strace);
    command
        .args(["-qq", "-f", "-o", "/dev/null"])
        .args(["-e", &format!("trace={call}")])
        .args(["-e", &format!("inject={refusal}")])
        // strace itself is to have the C library's malloc.
        .args(["-E", &format!("LD_PRELOAD={}", library().display())])
        .args(
            setting
                .variables
                .iter()
                .flat_map(|(name, value)| ["-E".to_owned(), format!("{name}={value}")]),
        )
        .arg(program)
        .arg(seed(3))
        .args(amount);
    Some(finish(&mut command))
}

#[test]
fn a_kernel_that_refuses_one_kind_of_call_does_no_harm() {
    for refusal in [
        "memfd_create:error=ENOSYS",
        "ftruncate:error=EPERM",
        "brk:error=ENOMEM",
        "brk:error=ENOMEM:when=4+2",
        "madvise:error=EINVAL",
        "mremap:error=ENOMEM",
        "munmap:error=ENOMEM:when=4+",
        "munmap:error=ENOMEM:when=4+3",
    ] {
        for setting in SETTINGS {
            let Some(ended) = run_with_refusals(refusal, ["3000", "2"], setting) else {
                return;
            };
            assert!(
                ended.ending() == (Some(0), None) && ended.stdout.contains("\nok "),
                "{refusal}, {}: {ended:?}",
                setting.name
            );
        }
    }
}

#[test]
fn a_kernel_that_maps_nothing_more_is_met_without_a_crash() {
    // From any point on: while the dynamic linker loads, when the library begins, under load.
    for from in (8..32).chain([50, 80]) {
        let refusal = format!("mmap:error=ENOMEM:when={from}+");
        let Some(ended) = run_with_refusals(&refusal, ["1000", "1"], &SETTINGS[0]) else {
            return;
        };
        assert_eq!(ended.status.signal(), None, "{refusal}: {ended:?}");
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
            let figures = last.figures.all().unwrap();
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
