//! The committed JSON Schema and the field-by-field documentation follow from the types: these tests keep them
//! together, and rewrite both with `UPDATE_EXPECTED=1`.

use std::fmt::Write;

use serde_json::Value;

use super::HeapDocument;
use super::Report;
use super::gate::Baseline;
use super::gate::Judgement;
use super::gate::RecordingDiff;

/// A kind of document, and where its schema and its documentation are.
struct Published {
    /// The type.
    name: &'static str,
    title: &'static str,
    /// File names in `docs`.
    schema: &'static str,
    page: &'static str,
    introduction: &'static str,
    generate: fn() -> schemars::Schema,
}

const PUBLISHED: [Published; 5] = [
    Published {
        name: "Report",
        title: "breaktrace report, version 1",
        schema: "report.v1.schema.json",
        page: "report-schema.md",
        introduction: INTRODUCTION,
        generate: || schemars::schema_for!(Report),
    },
    Published {
        name: "HeapDocument",
        title: "breaktrace heap, version 1",
        schema: "heap.v1.schema.json",
        page: "heap-schema.md",
        introduction: HEAP_INTRODUCTION,
        generate: || schemars::schema_for!(HeapDocument),
    },
    Published {
        name: "Baseline",
        title: "breaktrace baseline, version 1",
        schema: "baseline.v1.schema.json",
        page: "baseline-schema.md",
        introduction: BASELINE_INTRODUCTION,
        generate: || schemars::schema_for!(Baseline),
    },
    Published {
        name: "Judgement",
        title: "breaktrace judgement, version 1",
        schema: "judgement.v1.schema.json",
        page: "judgement-schema.md",
        introduction: JUDGEMENT_INTRODUCTION,
        generate: || schemars::schema_for!(Judgement),
    },
    Published {
        name: "RecordingDiff",
        title: "breaktrace diff, version 1",
        schema: "diff.v1.schema.json",
        page: "diff-schema.md",
        introduction: DIFF_INTRODUCTION,
        generate: || schemars::schema_for!(RecordingDiff),
    },
];

const BASELINE_INTRODUCTION: &str = "\
# A baseline as JSON

`breaktrace run --save-baseline FILE` writes one JSON document, to be committed with the program; `breaktrace check --update`
rewrites it. [`baseline.v1.schema.json`](baseline.v1.schema.json) is its JSON Schema; this page says the same in words.
Both are generated from the types in `src/report/gate`, and a test fails when they are not up to date.

- `schema` names and numbers the format. Within a version, fields are only added: readers should pass over what they
  do not know.
- Metrics are named and explained by `breaktrace metrics`. A metric that was not measured is left out. Of several runs that
  differ, all values are kept, in order of size.
- Keys are sorted, and there are no times, process numbers or addresses: a change of the file is a change of the program.
";

const JUDGEMENT_INTRODUCTION: &str = "\
# A judgement as JSON

`breaktrace check --json` and `breaktrace check -o FILE.json` write one JSON document, and so does `breaktrace run` with
`--verdict FILE.json`. [`judgement.v1.schema.json`](judgement.v1.schema.json) is its JSON Schema; this page says the same in words. Both
are generated from the types in `src/report/gate`, and a test fails when they are not up to date.

- `schema` names and numbers the format. Within a version, fields are only added: readers should pass over what they
  do not know.
- `verdict` and the exit code say the same: see [In CI](ci.md). `breaktrace metrics` explains each metric.
- What was not measured is `null`, and never 0.
- Sentences (`notes`) are for people and change from version to version.
";

const DIFF_INTRODUCTION: &str = "\
# A difference as JSON

`breaktrace diff BEFORE AFTER --json` and `-o FILE.json` write one JSON document.
[`diff.v1.schema.json`](diff.v1.schema.json) is its JSON Schema; this page says the same in words. Both are generated from the
types in `src/report/gate`, and a test fails when they are not up to date.

- `schema` names and numbers the format. Within a version, fields are only added: readers should pass over what they
  do not know.
- Sizes are bytes, as integers; a `delta` is what is more afterwards, so less is negative. `breaktrace metrics` explains each
  metric.
- What one side does not have is `null`, and never 0.
- Sentences (`differences`, `notes`) are for people and change from version to version.
";

const HEAP_INTRODUCTION: &str = "\
# A look at a heap as JSON

`breaktrace heap --json` and `breaktrace heap -o heap.json` write one JSON document.
[`heap.v1.schema.json`](heap.v1.schema.json) is its JSON Schema; this page says the same in words. Both are generated from
the types in `src/report/heap` and `src/event/heap.rs`, and a test fails when they are not up to date.

- `schema` names and numbers the format. Within a version, fields are only added: readers should pass over what they
  do not know.
- Sizes are bytes, as integers; sizes of chunks count their headers. Times are nanoseconds, as integers. Addresses are
  hexadecimal strings, since 64-bit numbers do not survive every JSON reader.
- What is not known is `null`; the field's description says why. Nothing unknown is ever 0.
- Sentences (`summary`, `evidence`, `advice`, `doubts`) are for people and change from version to version; programs read
  `verdict.kind`, `verdict.confidence`, `sums` and `growth`. For a check in a script:
  `breaktrace heap --json PID | jq -e '.verdict.kind != \"fragmented\" and .sums.trimmable_bytes < 1e8'`.
";

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

fn generated_schema(published: &Published) -> Value {
    let mut schema = (published.generate)();
    schema.insert("title".into(), published.title.into());
    schema.to_value()
}

fn expect_up_to_date(name: &str, expected: &str) {
    let path = format!("{}/docs/{name}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, expected).unwrap();
    }
    let is_up_to_date = std::fs::read_to_string(&path).unwrap_or_default() == expected;
    assert!(
        is_up_to_date,
        "{path} is out of date; rewrite it with UPDATE_EXPECTED=1 cargo test --lib schema"
    );
}

#[test]
fn the_committed_schemas_are_those_of_the_types() {
    for published in PUBLISHED {
        let schema = generated_schema(&published);
        let expected = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        expect_up_to_date(published.schema, &expected);
    }
}

#[test]
fn every_field_is_documented() {
    for published in PUBLISHED {
        let mut page = published.introduction.to_owned();
        let schema = generated_schema(&published);
        section(&mut page, published.name, &schema);
        for (name, definition) in schema["$defs"].as_object().unwrap() {
            section(&mut page, name, definition);
        }
        expect_up_to_date(published.page, &page);
    }
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
