//! `compare`: the same program on several allocators.

use std::fs::File;
use std::process::Output;
use std::process::Stdio;

use crate::support::breaktrace;

fn compare(arguments: &[&str], input: Stdio) -> Output {
    breaktrace()
        .arg("compare")
        .args(arguments)
        .stdin(input)
        .output()
        .unwrap()
}

fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stderr)
        .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)))
}

#[test]
fn the_program_runs_on_each_allocator_and_is_seen_once() {
    let output = compare(
        &[
            "--json",
            "--allocators",
            "system,bundled,bundled:never",
            "--",
            "sh",
            "-c",
            "echo once; exit 3",
        ],
        Stdio::null(),
    );
    assert_eq!(output.status.code(), Some(3));
    assert_eq!(output.stdout, b"once\n");
    let comparison = json(&output);
    let columns = comparison["columns"].as_array().unwrap();
    let names: Vec<_> = columns
        .iter()
        .map(|column| column["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["system", "bundled", "bundled:never"]);
    for column in columns {
        assert_eq!(column["same_result"], true, "{column}");
        assert_eq!(column["differences"], 0, "{column}");
        assert_eq!(column["outcome"]["exited"], 3, "{column}");
    }
    let in_use = comparison["rows"]
        .as_array()
        .unwrap()
        .iter()
        .find(|row| row["name"] == "allocator.in_use_peak")
        .unwrap();
    assert!(in_use["values"][0].is_null(), "the C library tells nothing");
    assert!(in_use["values"][1].as_u64().unwrap() > 0);
}

#[test]
fn each_run_reads_the_same_file() {
    let file = File::open("Cargo.toml").unwrap();
    let output = compare(&["--json", "--runs", "2", "--", "cat"], file.into());
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(output.stdout, std::fs::read("Cargo.toml").unwrap());
    assert_eq!(json(&output)["runs"], 2);
}

#[test]
fn output_that_differs_is_said_and_fails() {
    let output = compare(&["--", "sh", "-c", "echo $$"], Stdio::null());
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(text.contains("bundled: output or ending differ"), "{text}");
}

#[test]
fn an_allocator_that_is_not_there_is_named_before_anything_runs() {
    for (list, wanted) in [
        (
            "system,/nowhere/libx.so",
            "cannot preload `/nowhere/libx.so`",
        ),
        ("bundled:sometimes", "`sometimes` is no policy"),
    ] {
        let output = compare(&["--allocators", list, "--", "echo", "ran"], Stdio::null());
        assert_eq!(output.status.code(), Some(2));
        assert!(output.stdout.is_empty());
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains(wanted), "{text}");
    }
}

#[test]
fn a_file_that_is_no_library_is_refused_before_anything_runs() {
    let output = compare(
        &["--allocators", "system,Cargo.toml", "--", "echo", "ran"],
        Stdio::null(),
    );
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_place_that_cannot_be_written_is_refused_before_anything_runs() {
    let output = compare(
        &["-o", "/nowhere/c.json", "--", "echo", "ran"],
        Stdio::null(),
    );
    assert_eq!(output.status.code(), Some(125));
    assert!(output.stdout.is_empty());
}

#[test]
fn a_dash_writes_the_comparison_to_stdout_behind_the_programs_output() {
    let output = compare(&["--json", "-o", "-", "--", "echo", "ran"], Stdio::null());
    let text = String::from_utf8(output.stdout).unwrap();
    let json: serde_json::Value =
        serde_json::from_str(text.strip_prefix("ran\n").unwrap()).unwrap();
    assert_eq!(json["schema"]["name"], "breaktrace.comparison");
    assert!(output.stderr.is_empty());
}

#[test]
fn an_interrupt_starts_no_further_run_even_if_the_program_survives_it() {
    let script = "trap 'echo caught; exit 0' INT; kill -INT $PPID; while :; do :; done";
    let output = compare(&["--", "sh", "-c", script], Stdio::null());
    assert_eq!(output.status.code(), Some(125));
    assert_eq!(output.stdout, b"caught\n");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("interrupted before a run had ended"),
        "{text}"
    );
}
