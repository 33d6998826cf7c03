//! `breaktrace heap`: what it says of a Python whose heap is made to be in use, kept, or growing; Python allocates by malloc
//! alone here (`PYTHONMALLOC=malloc`), and calls malloc_trim(3) itself where that is the truth to compare with.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::Running;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::python;
use crate::support::skip;
use crate::support::status;

/// Does what each line of its input says, and answers with a line.
const OBEY: &str = "\
import ctypes, sys
libc = ctypes.CDLL(None)
libc.prctl(0x59616d61, ctypes.c_ulong(-1))
print('ready', flush=True)
for line in sys.stdin:
    exec(line)
    print('done', flush=True)
";

/// Chunks that `bytes(900)` takes: 33 bytes of an object's header and 8 of malloc's, rounded up to 16.
const CHUNK: u64 = 944;

fn obedient_python() -> Option<Running> {
    let python = python()?;
    let mut running = Running::start_obedient(
        Command::new(python)
            .args(["-S", "-c", OBEY])
            .env("PYTHONMALLOC", "malloc")
            .env_remove("MALLOC_ARENA_MAX"),
    );
    assert_eq!(running.line(), "ready");
    // On musl there is nothing to see, and malloc_trim is missing.
    let has_trim = running.ask("import os; libc.malloc_trim(0)");
    assert_eq!(has_trim, "done");
    Some(running)
}

/// What `breaktrace heap --json` says of a process.
#[track_caller]
fn look(pid: u32, options: &[&str]) -> Value {
    let ended = finish(
        breaktrace()
            .args(["heap", "--json"])
            .args(options)
            .arg(pid.to_string()),
    );
    ended.expect_code(0).expect_calm();
    serde_json::from_str(&ended.stdout).unwrap()
}

fn chunks_of(document: &Value, bytes: u64) -> u64 {
    document["examination"]["heaps"][0]["classes"]
        .as_array()
        .unwrap()
        .iter()
        .find(|class| class["from_bytes"] == bytes)
        .map_or(0, |class| class["chunks"].as_u64().unwrap())
}

fn anonymous(pid: u32) -> u64 {
    let text = status(pid, "RssAnon").unwrap();
    let kib: u64 = text.trim_end_matches(" kB").trim().parse().unwrap();
    kib * 1024
}

#[test]
fn blocks_that_are_held_are_in_use_and_their_size_is_counted() {
    let Some(mut python) = obedient_python() else {
        return skip("there is no python3");
    };
    let before = chunks_of(&look(python.pid(), &[]), CHUNK);
    python.ask("held = [bytes(900) for i in range(30000)]");
    let document = look(python.pid(), &[]);
    assert_eq!(document["verdict"]["kind"], "in_use", "{document:#}");
    let grown = chunks_of(&document, CHUNK) - before;
    assert!((30_000..30_100).contains(&grown), "{grown}");
    assert_eq!(document["target"]["pid"], python.pid());
    assert!(document["growth"].is_null());
}

#[test]
fn memory_that_is_kept_is_what_malloc_trim_then_returns() {
    let Some(mut python) = obedient_python() else {
        return skip("there is no python3");
    };
    // What is allocated after it keeps the top from going.
    python
        .ask("held = [bytes(900) for i in range(60000)]; last = [bytes(900) for i in range(100)]");
    python.ask("del held");
    for options in [&[][..], &["--exact"]] {
        let document = look(python.pid(), options);
        assert_eq!(document["verdict"]["kind"], "retained", "{document:#}");
    }
    let predicted = look(python.pid(), &[])["sums"]["trimmable_bytes"]
        .as_u64()
        .unwrap();
    let before = anonymous(python.pid());
    python.ask("libc.malloc_trim(0)");
    let returned = before.saturating_sub(anonymous(python.pid()));
    // Python touches a few pages while it obeys, and the kernel counts pages per processor.
    assert!(
        predicted.abs_diff(returned) <= 512 << 10,
        "predicted {predicted}, returned {returned}"
    );
    assert!(predicted > 40 << 20, "{predicted}");
}

#[test]
fn looks_in_a_row_name_the_size_that_grows_and_ctrl_c_ends_them_with_a_summary() {
    let Some(mut python) = obedient_python() else {
        return skip("there is no python3");
    };
    let folder = folder();
    let json = folder.path().join("heap.json");
    let mut watching = Running::start(
        breaktrace()
            .args(["heap", "--every", "200ms", "-o", "-", "-o"])
            .arg(&json)
            .arg(python.pid().to_string()),
    );
    assert!(watching.line().contains("in use"), "a heading first");
    python.ask("held = []");
    for _ in 0..3 {
        watching.line();
        python.ask("held += [bytes(900) for i in range(5000)]");
    }
    watching.line();
    watching.line();
    watching.send(libc::SIGINT);
    let ended = watching.finish();
    ended.expect_code(0).expect_calm();
    assert!(ended.stdout.contains("\nbreaktrace: "), "{}", ended.stdout);
    let document: Value = serde_json::from_str(&fs::read_to_string(json).unwrap()).unwrap();
    let growth = &document["growth"];
    assert!(growth["total_looks"].as_u64() >= Some(5), "{growth:#}");
    let classes = growth["classes"].as_array().unwrap();
    let grown = classes
        .iter()
        .find(|class| class["from_bytes"] == CHUNK)
        .unwrap();
    let delta = grown["delta_chunks"].as_i64().unwrap();
    assert!((10_000..15_200).contains(&delta), "{growth:#}");
    let most = classes
        .iter()
        .map(|class| class["delta_bytes"].as_i64())
        .max();
    assert_eq!(most, Some(grown["delta_bytes"].as_i64()), "{growth:#}");
}

#[test]
fn a_process_that_ends_while_it_is_watched_leaves_what_was_seen() {
    let Some(python) = obedient_python() else {
        return skip("there is no python3");
    };
    let mut watching =
        Running::start(breaktrace().args(["heap", "--every", "50ms", &python.pid().to_string()]));
    watching.line();
    watching.line();
    watching.line();
    python.finish().expect_code(0);
    let ended = watching.finish();
    ended.expect_code(0).expect_calm();
    assert!(
        ended.stdout.contains("the looks end here"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("looks in"), "{}", ended.stdout);
}

#[test]
fn so_many_looks_are_taken_as_are_asked_for() {
    let Some(python) = obedient_python() else {
        return skip("there is no python3");
    };
    let document = look(python.pid(), &["--every", "10ms", "--count", "4"]);
    assert_eq!(document["growth"]["total_looks"], 4);
    assert_eq!(document["growth"]["trend"], "level", "{document:#}");
}

#[test]
fn what_is_written_follows_the_committed_schema() {
    let Some(python) = obedient_python() else {
        return skip("there is no python3");
    };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/heap.v1.schema.json");
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    let validator = jsonschema::validator_for(&schema).unwrap();
    for options in [&[][..], &["--exact"], &["--every", "10ms", "--count", "2"]] {
        let document = look(python.pid(), options);
        let complaints: Vec<String> = validator
            .iter_errors(&document)
            .map(|error| format!("{}: {error}", error.instance_path()))
            .collect();
        assert!(complaints.is_empty(), "{}", complaints.join("\n"));
    }
}

#[test]
fn what_cannot_be_looked_at_is_an_error_with_advice() {
    let nobody = finish(breaktrace().args(["heap", "4194305"]));
    nobody.expect_code(1);
    assert!(
        nobody.stderr.contains("there is no such process"),
        "{}",
        nobody.stderr
    );
    let ours = std::process::id().to_string();
    for (options, advice) in [
        (&["--count", "3", &ours][..], "--every"),
        (&["--every", "10", &ours], "500ms"),
        (&["-o", "heap.csv", &ours], ".json"),
        (&["0"], "PID"),
        (&["--every", "1s", "--count", "1", &ours], "--count"),
    ] {
        let wrong = finish(breaktrace().arg("heap").args(options));
        wrong.expect_code(2);
        assert!(
            wrong.stderr.contains(advice),
            "{options:?}: {}",
            wrong.stderr
        );
    }
}
