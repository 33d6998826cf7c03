//! What breaktrace writes follows the committed JSON Schema.

use std::fs;
use std::path::Path;
use std::process::Command;

use jsonschema::Validator;
use serde_json::Value;
use serde_json::json;

use crate::support::breaktrace;
use crate::support::finish;
use crate::support::fixture;
use crate::support::folder;
use crate::support::python;
use crate::support::skip;

fn schema() -> Validator {
    schema_of("report")
}

fn schema_of(document: &str) -> Validator {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/{document}.v1.schema.json"));
    let schema: Value = serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap();
    jsonschema::validator_for(&schema).unwrap()
}

fn expect_valid(validator: &Validator, document: &Value) {
    let complaints: Vec<String> = validator
        .iter_errors(document)
        .map(|error| format!("{}: {error}", error.instance_path()))
        .collect();
    assert!(complaints.is_empty(), "{}", complaints.join("\n"));
}

/// The report that `breaktrace run` writes of a program.
fn report(options: &[&str], program: &Path, arguments: &[&str]) -> Value {
    let folder = folder();
    let path = folder.path().join("report.json");
    finish(
        breaktrace()
            .args(["run", "-q", "-o"])
            .arg(&path)
            .args(options)
            .arg(program)
            .args(arguments),
    );
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

#[test]
fn reports_of_all_sorts_follow_the_committed_schema() {
    let validator = schema();
    for (options, name, arguments) in [
        (&[][..], "brk_moves", &[][..]),
        (&["--verify", "--no-aslr"], "mappings", &[]),
        (&["--no-seccomp"], "fork_tree", &[]),
        (&["--no-follow"], "fork_tree", &[]),
        (&["--every", "10ms"], "threads", &[]),
        (&[], "ends", &["kill"]),
        (&[], "exec_from_thread", &[]),
    ] {
        expect_valid(&validator, &report(options, &fixture(name), arguments));
    }
}

#[test]
fn the_report_of_python_follows_the_committed_schema() {
    let Some(python) = python() else {
        return skip("there is no python3");
    };
    expect_valid(
        &schema(),
        &report(
            &[],
            &python,
            &["-c", "x = [[i] for i in range(100000)]; del x"],
        ),
    );
}

#[test]
fn the_schema_refuses_what_is_no_report() {
    let validator = schema();
    let mut document = report(&[], &fixture("brk_moves"), &[]);
    expect_valid(&validator, &document);
    document["address_spaces"][0]["break"]["peak_bytes"] = json!("many");
    assert!(!validator.is_valid(&document));
    assert!(!validator.is_valid(&json!({})));
}

#[test]
fn what_gates_write_follows_the_committed_schemas() {
    let Some(python) = python() else {
        return skip("there is no python3");
    };
    let folder = folder();
    let file = |name: &str| folder.path().join(name);
    let read = |name: &str| -> Value {
        serde_json::from_str(&fs::read_to_string(file(name)).unwrap()).unwrap()
    };
    let program = |command: &mut Command, thousands: &str| {
        command.arg("--").arg(&python).args([
            "-c",
            "import os; x = [bytes(1000) for _ in range(1000 * int(os.environ['THOUSANDS']))]",
        ]);
        finish(command.env("THOUSANDS", thousands))
    };
    // Several runs of a program whose figures differ, and one whose do not.
    for (options, baseline) in [
        (&["--runs", "3"][..], "each.json"),
        (&["--no-aslr"], "same.json"),
    ] {
        let mut command = breaktrace();
        command
            .args(["run", "-q", "--save-baseline"])
            .arg(file(baseline));
        program(command.args(options), "1").expect_code(0);
        expect_valid(&schema_of("baseline"), &read(baseline));
        let mut command = breaktrace();
        command
            .args(["run", "-q", "--baseline"])
            .arg(file(baseline));
        command.arg("--verdict").arg(file("verdict.json"));
        program(command.args(options), "2").expect_code(3);
        let verdict = read("verdict.json");
        assert_eq!(verdict["verdict"], "failed");
        expect_valid(&schema_of("judgement"), &verdict);
    }
    for (name, thousands) in [("before.json", "1"), ("after.json", "2")] {
        let mut command = breaktrace();
        program(command.args(["run", "-q", "-o"]).arg(file(name)), thousands).expect_code(0);
    }
    let validator = schema_of("diff");
    for before in ["before.json", "same.json"] {
        let difference = finish(
            breaktrace()
                .args(["diff", "--json"])
                .arg(file(before))
                .arg(file("after.json")),
        );
        let difference: Value = serde_json::from_str(&difference.stdout).unwrap();
        assert_ne!(difference["metrics"], json!([]));
        expect_valid(&validator, &difference);
    }
    assert!(!validator.is_valid(&read("verdict.json")));
}
