//! The committed JSON Schema and the field-by-field documentation follow from the types: these tests keep them
//! together, and rewrite both with `UPDATE_EXPECTED=1`.

use std::fmt::Write;

use serde_json::Value;

use super::Report;

const SCHEMA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report.v1.schema.json");
const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/report-schema.md");

const INTRODUCTION: &str = "\
# The report as JSON

`breaktrace run -o report.json`, `breaktrace attach -o report.json` and `breaktrace report FILE --json` write one JSON
document. [`report.v1.schema.json`](report.v1.schema.json) is its JSON Schema; this page says the same in words. Both
are generated from the types in `src/report/mod.rs`, and a test fails when they are not up to date.

- `schema` names and numbers the format. Within a version, fields are only added: readers should pass over what they
  do not know. breaktrace reads every version up to its own and refuses newer ones by name.
- Sizes are bytes, as integers. Times are nanoseconds since the recording began, as integers. Addresses are hexadecimal
  strings, since 64-bit numbers do not survive every JSON reader. Ratios are plain numbers from 0 to 1.
- What is not known is `null`; the field's description, or a notice in `notices`, says why. Nothing unknown is ever 0.
- Counts and sizes of a single-threaded program are the same from run to run with `--no-aslr`; times, process numbers
  and resident memory are not.
";

fn generated_schema() -> Value {
    let mut schema = schemars::schema_for!(Report);
    schema.insert("title".into(), "breaktrace report, version 1".into());
    schema.to_value()
}

fn is_up_to_date(path: &str, expected: &str) -> bool {
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(path, expected).unwrap();
    }
    std::fs::read_to_string(path).unwrap_or_default() == expected
}

#[test]
fn the_committed_schema_is_that_of_the_types() {
    let expected = serde_json::to_string_pretty(&generated_schema()).unwrap() + "\n";
    assert!(
        is_up_to_date(SCHEMA, &expected),
        "{SCHEMA} is out of date; rewrite it with UPDATE_EXPECTED=1 cargo test --lib schema"
    );
}

#[test]
fn every_field_is_documented() {
    let schema = generated_schema();
    let mut page = INTRODUCTION.to_owned();
    section(&mut page, "Report", &schema);
    for (name, definition) in schema["$defs"].as_object().unwrap() {
        section(&mut page, name, definition);
    }
    assert!(
        is_up_to_date(DOCUMENT, &page),
        "{DOCUMENT} is out of date; rewrite it with UPDATE_EXPECTED=1 cargo test --lib schema"
    );
}

fn section(page: &mut String, name: &str, definition: &Value) {
    let Some(properties) = definition["properties"].as_object() else {
        values(page, name, definition);
        return;
    };
    write!(page, "\n## {name}\n\n{}\n\n", description(name, definition)).unwrap();
    page.push_str("| field | type | meaning |\n| --- | --- | --- |\n");
    for (field, schema) in properties {
        let meaning = description(&format!("{name}.{field}"), schema);
        writeln!(page, "| `{field}` | {} | {meaning} |", kind(schema)).unwrap();
    }
}

/// A type that is one of several words, or a plain value.
fn values(page: &mut String, name: &str, definition: &Value) {
    write!(page, "\n## {name}\n\n{}\n", description(name, definition)).unwrap();
    let Some(variants) = definition["oneOf"].as_array() else {
        return;
    };
    page.push_str("\n| value | meaning |\n| --- | --- |\n");
    for variant in variants {
        let value = match variant["properties"]
            .as_object()
            .and_then(|object| object.keys().next())
        {
            Some(key) => format!("{{\"{key}\": …}}"),
            None => variant["const"].to_string(),
        };
        writeln!(page, "| `{value}` | {} |", description(name, variant)).unwrap();
    }
}

fn description(what: &str, schema: &Value) -> String {
    let text = schema["description"]
        .as_str()
        .unwrap_or_else(|| panic!("{what} has no documentation"));
    text.replace('\n', " ").replace('|', "\\|")
}

fn kind(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(alternatives) = schema["anyOf"].as_array() {
        return alternatives
            .iter()
            .map(kind)
            .collect::<Vec<_>>()
            .join(" or ");
    }
    match &schema["type"] {
        Value::String(name) if name == "array" => format!("list of {}", kind(&schema["items"])),
        Value::String(name) => name.clone(),
        Value::Array(names) => names
            .iter()
            .map(|name| name.as_str().unwrap())
            .collect::<Vec<_>>()
            .join(" or "),
        _ => "value".to_owned(),
    }
}
