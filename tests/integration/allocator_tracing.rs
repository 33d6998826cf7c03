//! The bundled allocator in a program, as the tracer sees it: placed, found, read, and gone again.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::stats_page;
use serde_json::Value;

use crate::support::Ended;
use crate::support::Files;
use crate::support::Running;
use crate::support::Traced;
use crate::support::breaktrace;
use crate::support::compile;
use crate::support::finish;
use crate::support::fixture;
use crate::support::folder;
use crate::support::is_gone;
use crate::support::send;
use crate::support::skip;
use crate::support::trace;
use crate::support::wait_until;

/// What the fixture asks for.
const BLOCKS: u64 = 1000;
const BYTES: u64 = 1_000_000;

fn allocations() -> Option<PathBuf> {
    let program = compile("allocations", &["-pthread"]);
    if program.is_none() {
        skip("cc cannot make allocations");
    }
    program
}

fn bundled(options: &[&str], program: &Path, words: &[&str]) -> Traced {
    let options: Vec<&str> = ["--allocator", "bundled"]
        .iter()
        .chain(options)
        .copied()
        .collect();
    let words = words.iter().map(OsStr::new);
    trace(&options, std::iter::once(program.as_os_str()).chain(words))
}

fn of_kind<'a>(events: &'a [Value], kind: &str) -> Vec<&'a Value> {
    events
        .iter()
        .filter(|event| event["event"] == kind)
        .collect()
}

fn readings<'a>(events: &'a [Value], moment: &str) -> Vec<&'a Value> {
    of_kind(events, "allocator_read")
        .into_iter()
        .filter(|event| event["moment"] == moment)
        .collect()
}

#[track_caller]
fn counter(reading: &Value, name: &str) -> u64 {
    reading["counters"][name]
        .as_u64()
        .unwrap_or_else(|| panic!("no {name} in {reading}"))
}

/// Fails unless the blocks of the fixture are in these figures, and these add up.
#[track_caller]
fn expect_blocks(reading: &Value) {
    assert_eq!(reading["still"], true, "{reading}");
    assert!(counter(reading, "in_use_bytes") >= BYTES, "{reading}");
    assert!(counter(reading, "malloc_calls") >= BLOCKS, "{reading}");
    let parts = ["in_use_bytes", "overhead_bytes", "free_bytes", "top_bytes"];
    assert_eq!(
        counter(reading, "obtained_bytes"),
        parts.iter().map(|part| counter(reading, part)).sum::<u64>(),
        "{reading}"
    );
    let live: u64 = reading["classes"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|class| class["live"].as_u64())
        .sum();
    assert!(live >= BLOCKS, "{reading}");
}

fn absences(traced: &Traced) -> Vec<&str> {
    of_kind(&traced.events, "allocator_absent")
        .into_iter()
        .filter_map(|event| event["reason"].as_str())
        .collect()
}

#[test]
fn figures_survive_every_kind_of_end() {
    let Some(program) = allocations() else {
        return;
    };
    for (word, ending) in [
        ("", (Some(0), None)),
        ("_exit", (Some(5), None)),
        ("abort", (None, Some(libc::SIGABRT))),
        ("segv", (None, Some(libc::SIGSEGV))),
        ("kill", (None, Some(libc::SIGKILL))),
    ] {
        for options in [&["--verify"][..], &["--no-seccomp"]] {
            let traced = bundled(options, &program, &[word]);
            assert_eq!(traced.ended.ending(), ending, "{word} {options:?}");
            assert_eq!(of_kind(&traced.events, "allocator_found").len(), 1);
            let last = readings(&traced.events, "end");
            assert_eq!(last.len(), 1, "{word} {options:?}");
            expect_blocks(last[0]);
            assert_eq!(absences(&traced), [""; 0]);
        }
    }
}

#[test]
fn each_call_of_the_allocator_has_its_cause_and_the_figures_after_it() {
    let Some(program) = allocations() else {
        return;
    };
    let traced = bundled(&[], &program, &[]);
    let mut grown = 0;
    let mut calls = 0;
    for pair in traced.events.windows(2) {
        let [call, reading] = pair else { continue };
        if call["event"] != "brk" || call["allocator"].is_null() {
            continue;
        }
        assert_eq!(call["allocator"]["cause"], "request", "{call}");
        assert_eq!(reading["event"], "allocator_read", "{call} {reading}");
        assert_eq!(reading["moment"], "call");
        assert!(reading["classes"].is_null(), "{reading}");
        let now = counter(reading, "brk_grown_bytes");
        assert!(now >= grown, "{reading}");
        grown = now;
        calls += 1;
    }
    assert!(calls > 0);
    let last = readings(&traced.events, "end")[0];
    assert!(
        counter(last, "brk_grown_bytes") > grown,
        "the last call is counted after it"
    );
    let heap = &traced.report.address_spaces[0].program_break;
    assert_eq!(heap.grown_bytes, counter(last, "brk_grown_bytes"));
    let mmaps = of_kind(&traced.events, "mmap");
    let own = mmaps.iter().filter(|event| !event["allocator"].is_null());
    for event in own {
        assert_eq!(event["offset"], 0, "the signature is not shown: {event}");
    }
}

#[test]
fn exec_is_told_the_figures_of_the_program_that_it_replaces() {
    let Some(program) = allocations() else {
        return;
    };
    for options in [&[][..], &["--no-seccomp"]] {
        let traced = bundled(options, &program, &["exec-in-vain", "exec"]);
        traced.ended.expect_code(0);
        let replaced = readings(&traced.events, "exec");
        assert_eq!(replaced.len(), 1, "the one in vain is none");
        expect_blocks(replaced[0]);
        assert_eq!(replaced[0]["space"], 1);
        let found = of_kind(&traced.events, "allocator_found");
        assert_eq!(found.len(), 2);
        assert_eq!(found[1]["space"], 2);
        let last = readings(&traced.events, "end");
        assert!(counter(last[0], "in_use_bytes") < BYTES);
    }
}

#[test]
fn a_forked_child_has_figures_of_its_own() {
    let Some(program) = allocations() else {
        return;
    };
    let traced = bundled(&[], &program, &["fork"]);
    traced.ended.expect_code(0);
    assert_eq!(of_kind(&traced.events, "allocator_found").len(), 2);
    let last = readings(&traced.events, "end");
    let [child, parent] = last[..] else {
        panic!("{last:?}");
    };
    expect_blocks(parent);
    assert!(counter(child, "in_use_bytes") <= counter(parent, "in_use_bytes") - BYTES / 2);
}

#[test]
fn a_spawned_child_leaves_the_figures_of_its_parent_alone() {
    let Some(program) = allocations() else {
        return;
    };
    let traced = bundled(&[], &program, &["spawn"]);
    traced.ended.expect_code(0);
    assert_eq!(of_kind(&traced.events, "allocator_found").len(), 2);
    assert_eq!(readings(&traced.events, "exec"), [&Value::Null; 0]);
    let last = readings(&traced.events, "end");
    let [child, parent] = last[..] else {
        panic!("{last:?}");
    };
    assert_ne!(child["space"], parent["space"]);
    expect_blocks(parent);
    assert_eq!(absences(&traced), [""; 0]);
}

#[test]
fn many_threads_have_their_figures_added_up() {
    let Some(program) = allocations() else {
        return;
    };
    let traced = bundled(&[], &program, &["threads"]);
    traced.ended.expect_code(0);
    let last = readings(&traced.events, "end");
    expect_blocks(last[0]);
    assert!(counter(last[0], "in_use_bytes") >= BYTES + 164 * 1000);
}

#[test]
fn snapshots_come_with_figures() {
    let mut command = breaktrace();
    let folder = folder();
    let files = Files::within(folder.path());
    command
        .arg("run")
        .args(files.options())
        .args(["--allocator", "bundled", "--"])
        .arg(fixture("puppet"));
    let mut puppet = Running::start_obedient(&mut command);
    assert_eq!(puppet.line(), "ready");
    puppet.send(libc::SIGUSR1);
    wait_until("the figures of a snapshot are told", || {
        !readings(&files.events(), "snapshot").is_empty()
    });
    puppet.finish().expect_calm();
}

#[test]
fn a_heap_error_is_told_once_and_the_program_goes_on_if_it_may() {
    let Some(program) = allocations() else {
        return;
    };
    let traced = bundled(
        &["--on-heap-error", "report"],
        &program,
        &["double-free", "and on\n"],
    );
    traced.ended.expect_code(0);
    assert_eq!(traced.ended.stdout, "and on\n");
    let errors = of_kind(&traced.events, "heap_error");
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(errors[0]["kind"], "double_free");
    assert_eq!(errors[0]["number"], 1);
    assert_eq!(errors[0]["error"], Value::Null);
    let traced = bundled(
        &["--on-heap-error", "abort"],
        &program,
        &["double-free", "and on\n"],
    );
    assert_eq!(traced.ended.ending(), (None, Some(libc::SIGABRT)));
    assert_eq!(of_kind(&traced.events, "heap_error").len(), 1);
}

#[test]
fn options_set_the_allocator_up() {
    let traced = trace(
        &[
            "--allocator",
            "bundled",
            "--heap-policy",
            "eager",
            "--guard",
            "--env",
            "BREAKTRACE_MMAP_THRESHOLD=65536",
        ],
        ["true"],
    );
    let found = of_kind(&traced.events, "allocator_found");
    assert_eq!(found[0]["policy"], "eager");
    assert_eq!(found[0]["guard"], true);
    assert_eq!(found[0]["mmap_threshold_bytes"], 65536);
    assert_eq!(found[0]["version"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn a_program_without_the_environment_is_reported() {
    let Some(program) = allocations() else {
        return;
    };
    let traced = bundled(&[], &program, &["exec-bare"]);
    traced.ended.expect_code(0);
    assert_eq!(absences(&traced), ["environment_cleared"]);
    assert_eq!(
        of_kind(&traced.events, "allocator_absent")[0]["space"],
        2,
        "the second program"
    );
    expect_blocks(readings(&traced.events, "exec")[0]);
}

#[test]
fn a_static_program_is_reported_and_so_is_its_child() {
    let Some(program) = compile("allocations", &["-pthread", "-static"]) else {
        skip("cc cannot link statically");
        return;
    };
    let traced = bundled(&[], &program, &["fork"]);
    traced.ended.expect_code(0);
    assert_eq!(absences(&traced), ["static_program", "static_program"]);
    assert!(of_kind(&traced.events, "allocator_read").is_empty());
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_32_bit_program_is_reported() {
    let Some(program) = compile("i386_calls", &["-m32", "-static"]) else {
        skip("cc cannot make i386_calls (gcc-multilib, libc6-dev-i386)");
        return;
    };
    let traced = bundled(&[], &program, &[]);
    traced.ended.expect_code(0);
    assert_eq!(absences(&traced), ["other_architecture"]);
}

#[test]
fn a_program_with_a_malloc_of_its_own_is_reported_as_well_as_what_is_counted() {
    let folder = folder();
    let (source, program) = (folder.path().join("own.c"), folder.path().join("own"));
    fs::write(
        &source,
        "#include <stddef.h>\nstatic char pool[4096];\n\
         void *malloc(size_t n) { (void)n; return pool; }\nvoid free(void *p) { (void)p; }\n\
         int main(void) { char *volatile p = malloc(7); return p == NULL; }",
    )
    .unwrap();
    let compiled = Command::new("cc")
        .args(["-rdynamic", "-fno-builtin", "-o"])
        .args([&program, &source])
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        skip("cc cannot make a program");
        return;
    }
    let traced = bundled(&[], &program, &[]);
    traced.ended.expect_code(0);
    assert_eq!(absences(&traced), ["own_allocator"]);
    assert_eq!(of_kind(&traced.events, "allocator_found").len(), 1);
    let last = readings(&traced.events, "end");
    assert_eq!(counter(last[0], "malloc_calls"), 0);
}

#[test]
fn a_program_that_does_not_get_as_far_as_its_allocator_is_reported() {
    let folder = folder();
    let at = |name: &str| folder.path().join(name);
    fs::write(at("empty.c"), "int main(void) { return 0; }").unwrap();
    let cc = |arguments: &[&str]| {
        Command::new("cc")
            .current_dir(folder.path())
            .args(arguments)
            .output()
            .is_ok_and(|output| output.status.success())
    };
    let linked = [
        "-Wl,--no-as-needed",
        "empty.c",
        "-o",
        "needs",
        "-L.",
        "-lgone",
    ];
    if !cc(&["-shared", "-fPIC", "empty.c", "-o", "libgone.so"]) || !cc(&linked) {
        skip("cc cannot make a library");
        return;
    }
    fs::remove_file(at("libgone.so")).unwrap();
    let traced = bundled(&[], &at("needs"), &[]);
    traced.ended.expect_code(127);
    assert_eq!(absences(&traced), ["not_begun"]);
}

#[test]
fn nothing_is_absent_that_was_not_asked_for() {
    let traced = trace(&[], ["true"]);
    assert_eq!(absences(&traced), [""; 0]);
}

/// A folder in which the library may be placed also for programs of other users.
fn open_folder() -> tempfile::TempDir {
    let folder = tempfile::Builder::new()
        .permissions(fs::Permissions::from_mode(0o711))
        .tempdir()
        .unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o711)).unwrap();
    folder
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

#[test]
fn the_library_is_there_while_the_program_runs_and_gone_afterwards() {
    for signal in [None, Some(libc::SIGTERM), Some(libc::SIGINT)] {
        let place = open_folder();
        let mut command = breaktrace();
        command
            .args(["run", "-q", "--allocator", "bundled", "--"])
            .arg(fixture("puppet"))
            .env("TMPDIR", place.path())
            .env_remove("XDG_RUNTIME_DIR");
        let mut puppet = Running::start_obedient(&mut command);
        assert_eq!(puppet.line(), "ready");
        let [folder] = &entries(place.path())[..] else {
            panic!("one folder: {:?}", entries(place.path()));
        };
        let mode = folder.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o066, 0, "{mode:o}");
        let [library] = &entries(folder)[..] else {
            panic!("one file: {:?}", entries(folder));
        };
        let mode = library.metadata().unwrap().permissions().mode() & 0o777;
        assert_eq!(mode & 0o222, 0, "{mode:o}");
        if let Some(signal) = signal {
            puppet.send(signal);
        }
        puppet.finish().expect_calm();
        assert!(entries(place.path()).is_empty(), "{signal:?}");
    }
}

#[test]
fn a_program_that_cannot_be_run_leaves_nothing_behind() {
    let place = open_folder();
    let ended = finish(
        breaktrace()
            .args(["run", "-q", "--allocator", "bundled", "--", "/etc/passwd"])
            .env("TMPDIR", place.path())
            .env_remove("XDG_RUNTIME_DIR"),
    );
    ended.expect_code(126);
    assert!(entries(place.path()).is_empty());
}

#[test]
fn the_program_writes_and_ends_as_without_it() {
    let script = "echo out; echo err >&2; ls -d /; (exit 3)";
    let run = |options: &[&str]| -> Ended {
        finish(
            breaktrace()
                .args(["run", "-q"])
                .args(options)
                .args(["--", "sh", "-c", script]),
        )
    };
    let (plain, bundled) = (run(&[]), run(&["--allocator", "bundled"]));
    plain.expect_code(3);
    assert_eq!(bundled.ending(), plain.ending());
    assert_eq!(bundled.stdout, plain.stdout);
    assert_eq!(bundled.stderr, plain.stderr);
}

#[test]
fn what_was_to_be_preloaded_still_is_and_comes_second() {
    let folder = folder();
    let other = folder.path().join("other.so");
    let source = folder.path().join("other.c");
    fs::write(&source, "int other_library = 1;").unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&other, &source])
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        skip("cc cannot make a library");
        return;
    }
    let mut command = breaktrace();
    command
        .args(["run", "-q", "--allocator", "bundled", "--", "sh", "-c"])
        .arg("echo $LD_PRELOAD; grep -c -e other.so -e libbreaktrace.so /proc/$$/maps")
        .env("LD_PRELOAD", &other);
    let ended = finish(&mut command);
    ended.expect_code(0);
    let mut lines = ended.stdout.lines();
    let (first, second) = lines.next().unwrap().split_once(':').unwrap();
    assert!(first.ends_with("/libbreaktrace.so"), "{first}");
    assert_eq!(Path::new(second), other);
    assert!(lines.next().unwrap().parse::<u32>().unwrap() >= 2);
    assert_eq!(ended.stderr, "");
}

#[test]
fn any_other_library_is_preloaded_as_it_is() {
    let Some(program) = allocations() else {
        return;
    };
    let folder = folder();
    let library = folder.path().join("malloc.so");
    let source = folder.path().join("malloc.c");
    fs::write(
        &source,
        "#include <stddef.h>\nstatic char pool[8 << 20]; static size_t used;\n\
         void *malloc(size_t n) { void *p = pool + used; used += (n + 15) & ~15ul; return p; }\n\
         void free(void *p) { (void)p; }",
    )
    .unwrap();
    let compiled = Command::new("cc")
        .args(["-shared", "-fPIC", "-o"])
        .args([&library, &source])
        .output();
    if !compiled.is_ok_and(|output| output.status.success()) {
        skip("cc cannot make a library");
        return;
    }
    let traced = trace(&["--allocator", library.to_str().unwrap()], [&program]);
    traced.ended.expect_code(0);
    assert_eq!(traced.report.address_spaces[0].program_break.grown_bytes, 0);
    assert_eq!(absences(&traced), [""; 0]);
}

#[test]
fn libraries_that_cannot_be_preloaded_are_refused_before_anything_runs() {
    let place = folder();
    let text = place.path().join("text.so");
    fs::write(&text, "text").unwrap();
    let own = fixture("puppet");
    for (library, word) in [
        (Path::new("/no/such.so"), "No such file"),
        (&text, "no ELF file"),
        (&own, "no shared library"),
        (place.path(), "no file"),
    ] {
        let ended = finish(
            breaktrace()
                .args(["run", "--allocator"])
                .arg(library)
                .args(["--", "echo", "it ran"]),
        );
        ended.expect_code(125);
        assert!(ended.stderr.contains(word), "{}", ended.stderr);
        assert!(ended.stderr.contains("try:"), "{}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
}

#[test]
fn settings_of_the_bundled_allocator_need_it() {
    for option in [
        &["--heap-policy", "trim"][..],
        &["--guard"],
        &["--on-heap-error", "abort"],
        &["--allocator", "system", "--guard"],
    ] {
        let ended = finish(breaktrace().arg("run").args(option).args(["--", "true"]));
        ended.expect_code(2);
        assert!(
            ended.stderr.contains("--allocator bundled"),
            "{}",
            ended.stderr
        );
    }
}

/// Kills a process at the end of a test, whatever its outcome.
struct Killed(u32);

impl Drop for Killed {
    fn drop(&mut self) {
        send(self.0, libc::SIGKILL);
    }
}

#[test]
fn attaching_finds_what_another_breaktrace_preloaded() {
    let place = open_folder();
    let fifo = place.path().join("orders");
    let made = Command::new("mkfifo").arg(&fifo).status();
    assert!(made.is_ok_and(|status| status.success()));
    // Opened for both, so that it never ends.
    let script = format!(
        "{} <>{} >/dev/null 2>&1 & \
         until [ \"$(cat /proc/$!/comm)\" = puppet ] && grep -q libbreaktrace /proc/$!/maps; do :; done; echo $!",
        fixture("puppet").display(),
        fifo.display()
    );
    let ended = finish(
        breaktrace()
            .args(["run", "-q", "--allocator", "bundled"])
            .args(["--no-follow", "--no-seccomp", "--", "sh", "-c", &script])
            .env("TMPDIR", place.path())
            .env_remove("XDG_RUNTIME_DIR"),
    );
    let pid: u32 = ended.stdout.trim().parse().unwrap();
    let puppet = Killed(pid);
    ended.expect_code(0);
    assert!(!is_gone(pid));
    assert!(
        ended.stderr.contains(place.path().to_str().unwrap()),
        "where the library stays is said: {}",
        ended.stderr
    );
    wait_until("the puppet has begun", || {
        fs::read_to_string(format!("/proc/{pid}/maps"))
            .is_ok_and(|maps| maps.contains("/memfd:breaktrace-stats"))
    });
    let folder = folder();
    let files = Files::within(folder.path());
    let attached = finish(breaktrace().arg("attach").args(files.options()).args([
        "--duration",
        "50ms",
        &pid.to_string(),
    ]));
    attached.expect_code(0);
    let events = files.events();
    assert_eq!(of_kind(&events, "allocator_found").len(), 1);
    assert_eq!(readings(&events, "snapshot").len(), 1);
    let last = readings(&events, "end");
    assert_eq!(last.len(), 1);
    assert_eq!(last[0]["still"], true);
    drop(puppet);
}

/// Runs the fixture that plays the allocator itself.
fn played(layout: u32, flaw: &str) -> Option<Traced> {
    let Some(program) = compile("signed_calls", &[]) else {
        skip("cc cannot make signed_calls");
        return None;
    };
    let size = size_of::<stats_page::Page>().to_string();
    let layout = layout.to_string();
    let words = [
        program.as_os_str(),
        size.as_ref(),
        layout.as_ref(),
        flaw.as_ref(),
    ];
    let traced = trace(&["--verify"], words);
    traced.ended.expect_code(0);
    Some(traced)
}

#[test]
fn signed_calls_are_the_allocators_and_others_are_not() {
    let Some(traced) = played(stats_page::LAYOUT_VERSION, "") else {
        return;
    };
    let signed: Vec<&Value> = traced
        .events
        .iter()
        .filter(|event| !event["allocator"].is_null())
        .collect();
    let kinds: Vec<_> = signed.iter().map(|event| &event["event"]).collect();
    assert_eq!(kinds, ["brk", "mmap", "munmap"]);
    assert_eq!(signed[0]["allocator"]["request_bytes"], 777);
    assert_eq!(signed[0]["after"], traced.ended.fact("after"));
    assert_eq!(signed[1]["result"], traced.ended.fact("block"));
    assert_eq!(signed[1]["offset"], 0);
    assert_eq!(signed[2]["allocator"]["cause"], "request");
    let found = of_kind(&traced.events, "allocator_found");
    assert_eq!(found[0]["version"], "9.9.9");
    assert_eq!(readings(&traced.events, "call").len(), 3);
    assert!(of_kind(&traced.events, "madvise").is_empty());
}

#[test]
fn a_page_of_another_version_is_refused_with_both_named() {
    let other = stats_page::LAYOUT_VERSION + 6;
    let Some(traced) = played(other, "") else {
        return;
    };
    assert_eq!(absences(&traced), ["other_version"]);
    let absent = of_kind(&traced.events, "allocator_absent")[0];
    let message = absent["message"].as_str().unwrap();
    for word in ["9.9.9", env!("CARGO_PKG_VERSION"), &other.to_string()] {
        assert!(message.contains(word), "{message}");
    }
    assert!(of_kind(&traced.events, "allocator_read").is_empty());
}

#[test]
fn pages_that_lie_cost_the_figures_and_nothing_else() {
    for flaw in ["circle", "nowhere", "magic", "unmapped"] {
        let Some(traced) = played(stats_page::LAYOUT_VERSION, flaw) else {
            return;
        };
        assert_eq!(absences(&traced), ["unreadable"], "{flaw}");
        assert!(
            of_kind(&traced.events, "allocator_read").is_empty(),
            "{flaw}"
        );
        assert_eq!(
            traced
                .events
                .iter()
                .filter(|event| !event["allocator"].is_null())
                .count(),
            3,
            "{flaw}"
        );
    }
}
