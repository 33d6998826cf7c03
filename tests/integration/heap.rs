//! `breaktrace heap` against what a program's own C library says of its heap: every field of mallinfo2(3), and what a
//! malloc_trim(0) that follows really gives back. `fixtures/glibc_heap.c` makes up the heaps.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use breaktrace::heap_walk;
use breaktrace::heap_walk::CoreFile;
use serde_json::Value;

use crate::support::Running;
use crate::support::breaktrace;
use crate::support::compile;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::skip;
use crate::support::status;
use crate::support::threads_of;
use crate::support::wait_until;

/// The chunk of each block that the fixture leaks.
const LEAKED_CHUNK: u64 = 720;
/// How many it leaks when told.
const LEAKED_AT_ONCE: i64 = 4000;

/// The fixture, compiled once.
fn program() -> Option<&'static PathBuf> {
    static PROGRAM: OnceLock<Option<PathBuf>> = OnceLock::new();
    PROGRAM
        .get_or_init(|| compile("glibc_heap", &["-pthread"]))
        .as_ref()
}

/// Starts it; `None` (and said) without a compiler.
fn start(program: Option<&PathBuf>, arguments: &[&str], tunables: &str) -> Option<Target> {
    let Some(program) = program else {
        skip("no C compiler that makes such programs for glibc");
        return None;
    };
    let mut command = Command::new(program);
    command.args(arguments).env_remove("GLIBC_TUNABLES");
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("MALLOC_") {
            command.env_remove(name);
        }
    }
    if !tunables.is_empty() {
        command.env("GLIBC_TUNABLES", tunables);
    }
    let mut running = Running::start_obedient(&mut command);
    let told = running.line();
    Some(Target {
        truth: serde_json::from_str(&told).unwrap(),
        told,
        running,
    })
}

/// The fixture while it runs.
struct Target {
    running: Running,
    told: String,
    /// What it said of its heap.
    truth: Value,
}

impl Target {
    fn number(&self, field: &str) -> u64 {
        number(&self.truth, field)
    }

    /// What `breaktrace heap` says of it.
    #[track_caller]
    fn look(&self, options: &[&str]) -> Value {
        look(self.running.pid(), options)
    }

    /// Panics unless it is as it was.
    #[track_caller]
    fn expect_unchanged(&mut self) {
        assert_eq!(self.running.ask("info"), self.told);
    }

    /// Calls malloc_trim(0); bytes of memory that it has less after it.
    #[track_caller]
    fn trim(&mut self) -> u64 {
        let answer: Value = serde_json::from_str(&self.running.ask("trim")).unwrap();
        let (before, after) = (number(&answer, "before_kib"), number(&answer, "after_kib"));
        before.checked_sub(after).unwrap() * 1024
    }

    #[track_caller]
    fn leave(mut self) {
        assert_eq!(self.running.ask("exit"), "bye");
        self.running.finish().expect_code(0);
    }
}

#[track_caller]
fn look(pid: u32, options: &[&str]) -> Value {
    let ended = finish(
        breaktrace()
            .args(["heap", "--json"])
            .args(options)
            .arg(pid.to_string()),
    );
    ended.expect_code(0);
    serde_json::from_str(&ended.stdout).unwrap()
}

#[track_caller]
fn number(value: &Value, field: &str) -> u64 {
    value[field]
        .as_u64()
        .unwrap_or_else(|| panic!("no number `{field}` in {value:#}"))
}

/// The only heap of a document.
#[track_caller]
fn heap_of(document: &Value) -> &Value {
    let heaps = document["examination"]["heaps"].as_array().unwrap();
    assert_eq!(heaps.len(), 1, "{document:#}");
    &heaps[0]
}

fn outcomes<'a>(heap: &'a Value, outcome: &str) -> Vec<&'a Value> {
    heap["checks"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|check| check["outcome"] == outcome)
        .collect()
}

/// Panics unless bytes of an arena, or of all, add up.
#[track_caller]
fn expect_sums(figures: &Value) {
    let of = |field| number(figures, field);
    assert_eq!(of("not_found_bytes"), 0, "{figures:#}");
    assert_eq!(
        of("system_bytes"),
        of("in_use_bytes")
            + of("cached_bytes")
            + of("fast_bytes")
            + of("binned_bytes")
            + of("top_bytes")
            + of("other_bytes"),
        "{figures:#}"
    );
    assert!(
        of("trimmable_bytes") <= of("free_resident_bytes"),
        "{figures:#}"
    );
    assert!(
        of("free_resident_bytes") <= of("fast_bytes") + of("binned_bytes") + of("top_bytes") + 4096,
        "{figures:#}"
    );
}

/// Panics unless a document says of a heap what the program itself does.
#[track_caller]
fn expect_truth(document: &Value, target: &Target) {
    let heap = heap_of(document);
    assert_eq!(heap["mallinfo"], target.truth["mallinfo"], "{heap:#}");
    let problems = &document["examination"]["problems"];
    assert!(problems.is_null(), "{problems:#}");
    for check in heap["checks"].as_array().unwrap() {
        assert_eq!(check["outcome"], "holds", "{heap:#}");
    }
    assert!(!heap["checks"].as_array().unwrap().is_empty());

    let total = &heap["total"];
    expect_sums(total);
    let mut system = 0;
    for arena in heap["arenas"].as_array().unwrap() {
        expect_sums(arena);
        system += number(arena, "system_bytes");
    }
    assert_eq!(system, number(total, "system_bytes"));

    let caches = &heap["thread_caches"];
    assert_eq!(number(caches, "threads"), target.number("threads"));
    assert_eq!(number(caches, "found"), target.number("threads_with_cache"));
    assert_eq!(number(caches, "bytes"), number(total, "cached_bytes"));

    // What the program holds, and few blocks that its C library holds for it: thread caches, and tables of threads.
    let threads = target.number("threads");
    let chunks = number(total, "in_use_chunks") - target.number("live_chunks");
    let bytes = number(total, "in_use_bytes") - target.number("live_bytes");
    assert!(chunks <= 8 + 4 * threads, "{chunks} more than it holds");
    assert!(
        bytes <= 8192 + 4096 * threads,
        "{bytes} bytes more than it holds"
    );
    let mapped = &heap["mapped"];
    assert_eq!(mapped["chunks"], mapped["found_chunks"]);
    assert_eq!(mapped["bytes"], mapped["found_bytes"]);
    assert_eq!(mapped["chunks"], target.truth["mallinfo"]["hblks"]);
}

/// Looks at a heap both ways, then lets the program trim it. Returns what was seen.
#[track_caller]
fn agrees_when(program: Option<&PathBuf>, arguments: &[&str], tunables: &str) -> Option<Value> {
    let mut target = start(program, arguments, tunables)?;
    let document = target.look(&[]);
    expect_truth(&document, &target);
    let exact = target.look(&["--exact"]);
    expect_truth(&exact, &target);
    let (heap, exact) = (heap_of(&document), heap_of(&exact));
    for part in ["total", "arenas", "classes", "pins", "mapped", "settings"] {
        assert_eq!(heap[part], exact[part], "{part}, and the same with --exact");
    }
    // Neither look changed anything.
    target.expect_unchanged();
    let predicted = number(heap, "trimmable_bytes");
    assert_eq!(predicted, target.trim(), "predicted, and given back");
    // What is left is all that would not go.
    let again = target.look(&[]);
    assert_eq!(number(heap_of(&again), "trimmable_bytes"), 0);
    target.leave();
    Some(document)
}

#[track_caller]
fn agrees(arguments: &[&str]) -> Option<Value> {
    agrees_when(program(), arguments, "")
}

#[test]
fn one_thread_with_blocks_of_all_sizes() {
    for seed in ["1", "2", "3"] {
        agrees(&["plain", seed]);
    }
}

#[test]
fn threads_with_arenas_of_their_own_some_of_which_never_allocate() {
    for threads in ["1", "4", "40"] {
        let Some(document) = agrees(&["threads", "1", threads]) else {
            return;
        };
        let arenas = heap_of(&document)["arenas"].as_array().unwrap().len();
        assert!(arenas > 1, "{arenas}");
    }
}

#[test]
fn a_fragmented_heap_would_give_back_next_to_nothing() {
    let Some(document) = agrees(&["fragmented"]) else {
        return;
    };
    let total = &heap_of(&document)["total"];
    let free = number(total, "free_resident_bytes");
    assert!(number(total, "trimmable_bytes") < free / 10, "{total:#}");
    assert!(
        number(total, "fragmented_bytes") > free * 8 / 10,
        "{total:#}"
    );
    assert_eq!(document["verdict"]["kind"], "fragmented", "{document:#}");
}

#[test]
fn a_heap_of_freed_blocks_below_a_pin_would_give_nearly_all_back() {
    let Some(document) = agrees(&["retained"]) else {
        return;
    };
    assert_eq!(document["verdict"]["kind"], "retained", "{document:#}");
    let heap = heap_of(&document);
    assert!(number(heap, "trimmable_bytes") > 90 << 20);
    // The last of the blocks: of the 1000 bytes that the fixture asks for, a chunk of 1008.
    assert_eq!(heap["pins"][0]["bytes"], 1008, "{:#}", heap["pins"]);
    assert_eq!(heap["pins"][0]["cached"], false);
}

#[test]
fn a_heap_after_malloc_trim() {
    agrees(&["after_trim"]);
}

#[test]
fn aligned_blocks() {
    agrees(&["memalign"]);
}

#[test]
fn a_program_that_moves_the_break_itself() {
    let Some(document) = agrees(&["foreign_sbrk"]) else {
        return;
    };
    assert!(number(&heap_of(&document)["total"], "other_bytes") > 1000);
}

#[test]
fn a_main_arena_whose_break_met_a_wall() {
    let Some(document) = agrees(&["brk_refused"]) else {
        return;
    };
    let main = &heap_of(&document)["arenas"][0];
    assert_eq!(main["contiguous"], false);
    assert!(number(main, "segments") > 1);
}

#[test]
fn chunks_in_fast_bins() {
    let Some(document) = agrees(&["fastbins"]) else {
        return;
    };
    assert!(number(&heap_of(&document)["total"], "fast_chunks") > 15_000);
}

#[test]
fn chunks_in_thread_caches_are_counted_one_by_one() {
    let Some(mut target) = start(program(), &["tcache"], "") else {
        return;
    };
    let document = target.look(&[]);
    expect_truth(&document, &target);
    let caches = &heap_of(&document)["thread_caches"];
    assert_eq!(number(caches, "chunks"), target.number("cached_chunks"));
    // Seven of each size from 32 to 1040.
    assert_eq!(
        number(caches, "bytes"),
        7 * (32..=1040).step_by(16).sum::<u64>()
    );
    target.expect_unchanged();
    target.leave();
}

#[test]
fn large_blocks_that_are_mappings_of_their_own() {
    let Some(document) = agrees(&["mapped"]) else {
        return;
    };
    let heap = heap_of(&document);
    assert!(number(&heap["mapped"], "found_chunks") > 20);
    let settings = &heap["settings"];
    assert_eq!(settings["mmap_threshold_is_dynamic"], true);
    assert!(
        number(settings, "mmap_threshold_bytes") > 1 << 20,
        "it has grown"
    );
}

#[test]
fn blocks_that_were_resized() {
    agrees(&["realloc"]);
}

#[test]
fn settings_by_mallopt_are_read_from_the_process() {
    let Some(document) = agrees(&["mallopt"]) else {
        return;
    };
    let settings = &heap_of(&document)["settings"];
    assert_eq!(number(settings, "top_pad_bytes"), 1 << 20);
    assert_eq!(number(settings, "mmap_threshold_bytes"), 64 << 10);
    assert_eq!(number(settings, "trim_threshold_bytes"), 3 << 20);
    assert_eq!(number(settings, "mmap_max"), 77);
    assert_eq!(number(settings, "arena_max"), 2);
    assert_eq!(settings["mmap_threshold_is_dynamic"], false);
    assert_eq!(heap_of(&document)["arenas"].as_array().unwrap().len(), 2);
}

#[test]
fn settings_by_tunables_are_read_from_the_process() {
    for (tunables, field, value) in [
        ("glibc.malloc.tcache_count=0", "tcache_count", 0),
        ("glibc.malloc.tcache_count=100", "tcache_count", 100),
        ("glibc.malloc.tcache_max=200", "tcache_max_bytes", 200),
        ("glibc.malloc.perturb=85", "tcache_count", 7),
        ("glibc.malloc.mxfast=0", "tcache_count", 7),
        ("glibc.malloc.arena_max=1", "arena_max", 1),
        ("glibc.malloc.top_pad=0", "top_pad_bytes", 0),
    ] {
        let Some(document) = agrees_when(program(), &["threads", "1", "3"], tunables) else {
            return;
        };
        let settings = &heap_of(&document)["settings"];
        let read = number(settings, field);
        assert!(
            // It is rounded to a chunk's size, less its header.
            read == value || field == "tcache_max_bytes" && read.abs_diff(value) < 16,
            "{tunables}: {settings:#}"
        );
    }
}

#[test]
fn a_heap_that_asks_for_transparent_huge_pages() {
    agrees_when(program(), &["plain"], "glibc.malloc.hugetlb=1");
    agrees_when(program(), &["threads", "1", "3"], "glibc.malloc.hugetlb=1");
}

#[test]
fn a_heap_that_asks_for_huge_pages_of_which_there_are_none() {
    agrees_when(program(), &["threads", "1", "3"], "glibc.malloc.hugetlb=2");
}

#[test]
fn static_programs_without_symbols() {
    for flags in [
        &["-pthread", "-static", "-s"][..],
        &["-pthread", "-static-pie", "-s"],
    ] {
        let program = compile("glibc_heap", flags);
        agrees_when(program.as_ref(), &["plain"], "");
        agrees_when(program.as_ref(), &["threads", "1", "4"], "");
        agrees_when(program.as_ref(), &["foreign_sbrk"], "");
    }
}

#[test]
fn a_core_file_tells_the_same_as_the_process() {
    let Some(gcore) = installed(&["gcore"]) else {
        return skip("no gcore (Debian package gdb)");
    };
    for arguments in [&["threads", "1", "4"][..], &["foreign_sbrk"], &["mapped"]] {
        let Some(mut target) = start(program(), arguments, "") else {
            return;
        };
        let folder = folder();
        let pid = target.running.pid();
        let output = Command::new(&gcore)
            .arg("-o")
            .arg(folder.path().join("core"))
            .arg(pid.to_string())
            .output()
            .unwrap();
        let file = folder.path().join(format!("core.{pid}"));
        assert!(file.exists(), "{output:?}");
        let core = CoreFile::open(&file).unwrap();
        let pointers: Vec<u64> = core
            .threads()
            .iter()
            .filter_map(|thread| thread.thread_pointer)
            .collect();
        let located = heap_walk::locate(&core);
        let heaps: Vec<_> = located
            .iter()
            .filter_map(|located| heap_walk::stand(&core, located, Some(&pointers)))
            .map(|standing| heap_walk::examine(&core, standing, true))
            .collect();
        assert_eq!(heaps.len(), 1, "{located:?}");
        let heap = serde_json::to_value(&heaps[0]).unwrap();
        assert_eq!(heap["mallinfo"], target.truth["mallinfo"], "{heap:#}");
        assert!(outcomes(&heap, "fails").is_empty(), "{heap:#}");
        assert_eq!(
            number(&heap["thread_caches"], "found"),
            target.number("threads_with_cache")
        );
        let live = target.look(&[]);
        let live = heap_of(&live);
        assert_eq!(heap["classes"], live["classes"]);
        target.expect_unchanged();
        target.leave();
    }
}

#[test]
fn corrupted_heaps_are_told_as_such() {
    for how in [
        "size",
        "small_size",
        "fd",
        "fast",
        "circular",
        "top",
        "top_size",
    ] {
        for seed in ["1", "2"] {
            let mode = format!("corrupt_{how}");
            let Some(mut target) = start(program(), &[&mode, seed], "") else {
                return;
            };
            // While it runs, a chain that breaks may be its doing; not while it sleeps, and the next looks find the same.
            let document = target.look(&[]);
            let heap = heap_of(&document);
            assert!(!outcomes(heap, "fails").is_empty(), "{how}: {heap:#}");
            let document = target.look(&["--exact"]);
            let heap = heap_of(&document);
            assert!(!outcomes(heap, "fails").is_empty(), "{how}: {heap:#}");
            assert!(outcomes(heap, "moving").is_empty(), "{how}: {heap:#}");
            // What was not walked through is not counted as anything else.
            let total = &heap["total"];
            let of = |field| number(total, field);
            assert!(
                of("in_use_bytes") + of("binned_bytes") + of("not_found_bytes")
                    <= of("system_bytes"),
                "{how}: {heap:#}"
            );
            // In words too.
            let ended =
                finish(breaktrace().args(["heap", "-v", &target.running.pid().to_string()]));
            ended.expect_code(0);
            assert_eq!(target.running.ask("ping"), "pong");
            target.leave();
        }
    }
}

#[test]
fn looks_at_a_heap_that_changes_all_the_time_never_fail() {
    let Some(mut target) = start(program(), &["churn", "1", "3"], "") else {
        return;
    };
    for round in 0..20 {
        let options = if round % 4 == 3 {
            &["--exact"][..]
        } else {
            &[]
        };
        let document = target.look(options);
        let heap = heap_of(&document);
        assert!(outcomes(heap, "fails").is_empty(), "{heap:#}");
        let total = &heap["total"];
        // Three threads hold 4000 blocks each all the time, but for those that they are about to exchange.
        let chunks = number(total, "in_use_chunks");
        if options.is_empty() {
            // Where a chain broke, the rest of an arena was not found, and is told as such. Of less than half of the memory
            // nothing follows for the number of chunks.
            let system = number(total, "system_bytes");
            let missing = number(total, "not_found_bytes");
            let share = 12_000 * (system - missing) / system;
            let least = if share < 6_000 { 0 } else { share / 2 };
            assert!(
                (least..14_000).contains(&chunks),
                "{missing} of {system} missing: {total:#}"
            );
        } else {
            // It stood still.
            expect_sums(total);
            assert!(outcomes(heap, "moving").is_empty(), "{heap:#}");
            assert!((11_990..12_060).contains(&chunks), "{total:#}");
        }
    }
    assert_eq!(target.running.ask("ping"), "pong");
    target.leave();
}

#[test]
fn a_size_that_leaks_is_named() {
    let Some(mut target) = start(program(), &["leak"], "") else {
        return;
    };
    let folder = folder();
    let json = folder.path().join("heap.json");
    let mut watching = Running::start(
        breaktrace()
            .args(["heap", "--every", "100ms", "-o", "-", "-o"])
            .arg(&json)
            .arg(target.running.pid().to_string()),
    );
    // A heading, then a line for each look.
    watching.line();
    watching.line();
    for _ in 0..4 {
        target.running.ask("leak");
        watching.line();
        watching.line();
    }
    watching.send(libc::SIGINT);
    watching.finish().expect_code(0);
    let document: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let classes = document["growth"]["classes"].as_array().unwrap();
    let leaked = classes
        .iter()
        .find(|class| class["from_bytes"] == LEAKED_CHUNK)
        .unwrap_or_else(|| panic!("{document:#}"));
    let delta = leaked["delta_chunks"].as_i64().unwrap();
    // The first look may have come after the first leak.
    assert!(
        (3 * LEAKED_AT_ONCE..=4 * LEAKED_AT_ONCE).contains(&delta),
        "{document:#}"
    );
    for other in classes {
        assert!(other["delta_bytes"].as_i64() <= leaked["delta_bytes"].as_i64());
    }
    target.leave();
}

/// A figure of `/proc/PID/smaps_rollup`, counted page by page, in KiB.
fn rollup(pid: u32, field: &str) -> u64 {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

#[test]
fn pages_that_were_never_touched_stay_so() {
    for mode in ["untouched", "untouched_mapped"] {
        let Some(mut target) = start(program(), &[mode], "") else {
            return;
        };
        let pid = target.running.pid();
        // Reading what a library declares may map pages of its file, which are in memory anyway.
        let seen = || (status(pid, "VmPTE").unwrap(), rollup(pid, "Anonymous"));
        let files = rollup(pid, "Rss");
        let before = seen();
        for options in [&[][..], &["--exact"]] {
            let document = target.look(options);
            expect_truth(&document, &target);
            assert_eq!(seen(), before, "{mode} {options:?}");
            assert!(rollup(pid, "Rss") <= files + 256, "{mode} {options:?}");
        }
        target.expect_unchanged();
        target.leave();
    }
}

/// With BREAKTRACE_SOAK=1 a heap of 1 GiB, as issue 5 says.
#[test]
fn a_look_takes_little_memory_however_large_the_heap() {
    let is_soak = std::env::var_os("BREAKTRACE_SOAK").is_some();
    let mib = if is_soak { "1024" } else { "192" };
    for average in ["48", "1200"] {
        let Some(target) = start(program(), &["giant", "1", mib, average], "") else {
            return;
        };
        let pid = target.running.pid().to_string();
        let mut watching = Running::start(breaktrace().args(["heap", "--every", "50ms", &pid]));
        for _ in 0..4 {
            watching.line();
        }
        let most = status(watching.pid(), "VmHWM").unwrap();
        let most: u64 = most.trim_end_matches(" kB").trim().parse().unwrap();
        watching.send(libc::SIGINT);
        watching.finish().expect_code(0);
        assert!(most < 64 << 10, "{most} KiB for blocks of {average} bytes");
        target.leave();
    }
}

#[test]
fn a_stopped_process_is_looked_at_and_stays_stopped() {
    let Some(mut target) = start(program(), &["threads", "1", "4"], "") else {
        return;
    };
    let pid = target.running.pid();
    crate::support::stop(pid);
    let document = target.look(&[]);
    expect_truth(&document, &target);
    wait_until("it has stopped again", || {
        threads_of(pid)
            .into_iter()
            .all(|tid| crate::support::state(tid) == 'T')
    });
    target.running.send(libc::SIGCONT);
    target.expect_unchanged();
    target.leave();
}
