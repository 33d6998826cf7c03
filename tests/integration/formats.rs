//! Reports as other tools' formats, read by these tools or their own parsers, and held against the report.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use breaktrace::report::Report;
use breaktrace::report::SpaceReport;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::python;
use crate::support::skip;

/// How files of all formats end.
const ENDINGS: [&str; 10] = [
    "txt",
    "json",
    "folded",
    "pb.gz",
    "speedscope.json",
    "trace.json",
    "csv",
    "prom",
    "openmetrics",
    "massif",
];

/// A recording of a shell that runs a Python program, in all formats.
struct Recording {
    folder: TempDir,
    report: Report,
}

impl Recording {
    fn file(&self, ending: &str) -> PathBuf {
        self.folder.path().join(format!("run.{ending}"))
    }

    fn text(&self, ending: &str) -> String {
        std::fs::read_to_string(self.file(ending)).unwrap()
    }

    fn json(&self, ending: &str) -> Value {
        serde_json::from_str(&self.text(ending)).unwrap()
    }

    fn main(&self) -> &SpaceReport {
        self.report.main().unwrap()
    }

    /// What a figure comes to over all stacks of all address spaces.
    fn sum(&self, figure: impl Fn(&breaktrace::report::Growth) -> u64) -> u64 {
        self.report
            .address_spaces
            .iter()
            .flat_map(|space| &space.growth)
            .map(|growth| figure(&growth.program_break) + figure(&growth.anonymous))
            .sum()
    }
}

/// Records a program of two processes; `None` without Python.
fn record() -> Option<Recording> {
    let Some(python) = python() else {
        skip("python3 is not installed");
        return None;
    };
    let folder = folder();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/culprits/table.py");
    let mut command = breaktrace();
    command.args(["run", "-q"]);
    for ending in ENDINGS {
        command
            .arg("-o")
            .arg(folder.path().join(format!("run.{ending}")));
    }
    command
        .args(["--", "sh", "-c", "\"$0\" \"$1\"; true"])
        .arg(python)
        .arg(script);
    finish(&mut command).expect_code(0);
    let text = std::fs::read_to_string(folder.path().join("run.json")).unwrap();
    Some(Recording {
        report: breaktrace::report::from_json(&text).unwrap(),
        folder,
    })
}

/// Runs a tool, which must be content.
#[track_caller]
fn run(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {error}");
    String::from_utf8(output.stdout).unwrap()
}

/// Runs a piece of Python with a file as its argument; its output is JSON.
#[track_caller]
fn by_python(program: &str, file: &Path) -> Value {
    let output = run(Command::new(python().unwrap())
        .args(["-c", program])
        .arg(file));
    serde_json::from_str(&output).unwrap()
}

#[test]
fn a_recorded_report_becomes_the_same_files_as_the_run_itself() {
    let Some(recording) = record() else { return };
    for ending in ENDINGS {
        let again = recording.folder.path().join(format!("again.{ending}"));
        let mut command = breaktrace();
        command
            .arg("report")
            .arg(recording.file("json"))
            .arg("-o")
            .arg(&again);
        finish(&mut command).expect_code(0);
        assert!(
            std::fs::read(&again).unwrap() == std::fs::read(recording.file(ending)).unwrap(),
            "{ending}"
        );
    }
}

#[test]
fn flame_graphs_are_drawn_from_folded_stacks() {
    let Some(recording) = record() else { return };
    let folded = recording.text("folded");
    let mut sum = 0;
    for line in folded.lines() {
        let (stack, value) = line.rsplit_once(' ').unwrap();
        assert!(stack.split(';').all(|frame| !frame.is_empty()), "{line}");
        sum += value.parse::<u64>().unwrap();
    }
    assert_eq!(sum, recording.sum(|growth| growth.net_bytes));
    let mut drawn = Vec::new();
    let mut options = inferno::flamegraph::Options::default();
    inferno::flamegraph::from_lines(&mut options, folded.lines(), &mut drawn).unwrap();
    let drawn = String::from_utf8(drawn).unwrap();
    assert!(drawn.contains("make_buffer") || drawn.contains("Index.add"));
}

#[test]
fn pprof_reads_the_profile_and_shows_culprits() {
    let Some(recording) = record() else { return };
    let Some(go) = installed(&["go"]) else {
        return skip("go is not installed");
    };
    let pprof = |arguments: &[&str]| {
        let mut command = Command::new(&go);
        command
            .args(["tool", "pprof"])
            .args(arguments)
            .arg(recording.file("pb.gz"));
        // It keeps what it fetches and draws there.
        command.env("PPROF_TMPDIR", recording.folder.path());
        run(&mut command)
    };
    let raw = pprof(&["-raw"]);
    let (_, samples) = raw.split_once("Samples:").unwrap();
    let (samples, _) = samples.split_once("Locations").unwrap();
    let mut lines = samples.lines().filter(|line| !line.trim().is_empty());
    let types: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(
        &types[..4],
        [
            "net/bytes[dflt]",
            "grown/bytes",
            "returned/bytes",
            "calls/count"
        ]
    );
    let mut sums = [0_u64; 4];
    for line in lines {
        let Some((values, _)) = line.split_once(": ") else {
            continue;
        };
        let values: Vec<u64> = values
            .split_whitespace()
            .map_while(|value| value.parse().ok())
            .collect();
        if values.len() == types.len() {
            for (sum, value) in sums.iter_mut().zip(values) {
                *sum += value;
            }
        }
    }
    let figures: [fn(&breaktrace::report::Growth) -> u64; 4] = [
        |growth| growth.net_bytes,
        |growth| growth.grown_bytes,
        |growth| growth.returned_bytes,
        |growth| growth.grow_calls + growth.return_calls,
    ];
    assert_eq!(sums, figures.map(|figure| recording.sum(figure)));
    let top = pprof(&["-top", "-sample_index=grown"]);
    assert!(
        !top.contains("sysmalloc") && !top.contains("__libc_malloc"),
        "{top}"
    );
    let peek = pprof(&["-peek=make_buffer", "-sample_index=grown"]);
    assert!(peek.contains("make_buffer"), "{peek}");
}

#[test]
fn speedscope_has_one_profile_for_each_figure() {
    let Some(recording) = record() else { return };
    let file = recording.json("speedscope.json");
    // That it follows speedscope's schema is tested where it is written.
    let profiles = file["profiles"].as_array().unwrap();
    for (name, expected) in [
        ("net", recording.sum(|growth| growth.net_bytes)),
        ("grown", recording.sum(|growth| growth.grown_bytes)),
        ("returned", recording.sum(|growth| growth.returned_bytes)),
    ] {
        let profile = profiles
            .iter()
            .find(|profile| profile["name"] == name)
            .unwrap();
        let weights = profile["weights"].as_array().unwrap();
        let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
        assert_eq!(sum, expected, "{name}");
        assert_eq!(weights.len(), profile["samples"].as_array().unwrap().len());
    }
}

#[test]
fn traces_count_the_break_up_to_its_end() {
    let Some(recording) = record() else { return };
    let file = recording.json("trace.json");
    let events = file["traceEvents"].as_array().unwrap();
    let pid = u64::from(recording.main().pid);
    for (name, expected) in [
        ("break", recording.main().program_break.end_bytes.unwrap()),
        ("anonymous", recording.main().anonymous.end_bytes),
    ] {
        let counts: Vec<&Value> = events
            .iter()
            .filter(|event| event["ph"] == "C" && event["name"] == name && event["pid"] == pid)
            .collect();
        assert!(counts.len() > 10, "{name}");
        let times: Vec<f64> = counts
            .iter()
            .map(|count| count["ts"].as_f64().unwrap())
            .collect();
        assert!(times.is_sorted(), "{name}");
        let bytes = |count: &Value| count["args"]["bytes"].as_u64().unwrap();
        let [.., last, end] = &counts[..] else {
            panic!("two counts");
        };
        assert_eq!(bytes(last), expected, "{name}");
        assert_eq!(bytes(end), 0, "the memory of a process ends with it");
    }
    let moves = events
        .iter()
        .filter(|event| event["cat"] == "break" && event["pid"] == pid);
    assert_eq!(
        moves.count(),
        recording.main().program_break.steps.kept.len()
    );
}

#[test]
fn the_timeline_is_a_table_that_pythons_csv_module_reads() {
    let Some(recording) = record() else { return };
    let program = "import csv, json, sys\n\
        rows = list(csv.DictReader(open(sys.argv[1], newline=''), strict=True))\n\
        print(json.dumps(rows))";
    let rows = by_python(program, &recording.file("csv"));
    let pid = recording.main().pid.to_string();
    let rows: Vec<&Value> = rows
        .as_array()
        .unwrap()
        .iter()
        .filter(|row| row["pid"] == pid.as_str())
        .collect();
    assert_eq!(rows.len(), recording.main().timeline.points.len());
    let last = rows.last().unwrap();
    let number = |column: &str| last[column].as_str().unwrap().parse::<u64>().unwrap();
    assert_eq!(
        number("break_bytes"),
        recording.main().program_break.end_bytes.unwrap()
    );
    assert_eq!(
        number("anonymous_bytes"),
        recording.main().anonymous.end_bytes
    );
    let points = &recording.main().timeline.points;
    for (row, point) in rows.iter().zip(points) {
        let known = point.allocator_in_use_bytes;
        let expected = known.map_or_else(String::new, |bytes| bytes.to_string());
        assert_eq!(
            row["allocator_in_use_bytes"],
            expected.as_str(),
            "unknown is no zero"
        );
    }
    assert!(
        points
            .iter()
            .any(|point| point.allocator_in_use_bytes.is_none())
    );
}

#[test]
fn prometheus_own_parsers_read_the_metrics() {
    let Some(recording) = record() else { return };
    for (ending, module) in [
        ("prom", "prometheus_client.parser"),
        ("openmetrics", "prometheus_client.openmetrics.parser"),
    ] {
        let program = format!(
            "import json, sys\n\
             try: from {module} import text_string_to_metric_families as read\n\
             except ImportError: print('null'); sys.exit()\n\
             text = open(sys.argv[1]).read()\n\
             print(json.dumps([[s.name, s.labels, s.value] for f in read(text) for s in f.samples]))"
        );
        let samples = by_python(&program, &recording.file(ending));
        let Some(samples) = samples.as_array() else {
            return skip("python3-prometheus-client is not installed");
        };
        let space = recording.main().id.0.to_string();
        for (name, expected) in [
            (
                "breaktrace_break_bytes",
                recording.main().program_break.end_bytes.unwrap(),
            ),
            (
                "breaktrace_break_peak_bytes",
                recording.main().program_break.peak_bytes.unwrap(),
            ),
            (
                "breaktrace_break_grown_bytes_total",
                recording.main().program_break.grown_bytes,
            ),
        ] {
            let sample = samples
                .iter()
                .find(|sample| sample[0] == name && sample[1]["space"] == space.as_str())
                .unwrap_or_else(|| panic!("{ending} has no {name}"));
            #[expect(
                clippy::cast_precision_loss,
                reason = "the parser reads floating point"
            )]
            let expected = expected as f64;
            assert_eq!(sample[2].as_f64(), Some(expected), "{name}");
        }
    }
    // Prometheus' own checker, where somebody has it.
    if let Some(promtool) = installed(&["promtool"]) {
        let text = std::fs::File::open(recording.file("prom")).unwrap();
        let output = Command::new(promtool)
            .args(["check", "metrics"])
            .stdin(text)
            .output()
            .unwrap();
        // 3 is advice on names (cmd/promtool/main.go, `lintErrExitCode`).
        assert!(
            matches!(output.status.code(), Some(0 | 3)),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
}

#[test]
fn ms_print_draws_the_heap_up_to_its_peak() {
    let Some(recording) = record() else { return };
    let Some(ms_print) = installed(&["ms_print"]) else {
        return skip("valgrind (ms_print) is not installed");
    };
    let drawn = run(Command::new(ms_print).arg(recording.file("massif")));
    assert!(drawn.contains("Detailed snapshots: ["), "{drawn}");
    assert!(drawn.contains("(peak)"), "{drawn}");
    let peak = recording
        .text("massif")
        .lines()
        .filter_map(|line| line.strip_prefix("mem_heap_B="))
        .map(|bytes| bytes.parse::<u64>().unwrap())
        .max()
        .unwrap();
    let seen = recording
        .main()
        .timeline
        .points
        .iter()
        .map(|point| point.break_bytes + point.anonymous_bytes)
        .max()
        .unwrap();
    assert!(peak >= seen, "{peak} {seen}");
    assert!(
        drawn.contains("Index.add (") && drawn.contains("table.py:11)"),
        "{drawn}"
    );
}

#[test]
fn formats_of_stacks_need_stacks() {
    let folder = folder();
    let report = folder.path().join("r.json");
    finish(
        breaktrace()
            .args(["run", "-q", "--stacks", "off", "-o"])
            .arg(&report)
            .args(["--", "true"]),
    )
    .expect_code(0);
    for format in ["folded", "pprof", "speedscope"] {
        let place = folder.path().join("out");
        let ended = finish(
            breaktrace()
                .arg("report")
                .arg(&report)
                .args(["--format", format, "-o"])
                .arg(&place),
        );
        assert_ne!(ended.ending().0, Some(0));
        assert!(ended.stderr.contains("stacks"), "{}", ended.stderr);
        assert!(!place.exists(), "nothing half-written stays");
        let ended =
            finish(breaktrace().args(["run", "--stacks", "off", "--format", format, "--", "true"]));
        assert_ne!(ended.ending().0, Some(0));
        assert!(ended.stderr.contains("--stacks off"), "{}", ended.stderr);
    }
}
