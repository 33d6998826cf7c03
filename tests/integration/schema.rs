//! What breaktrace writes follows the committed JSON Schema.

use std::fs;
use std::path::Path;

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
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/report.v1.schema.json");
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
