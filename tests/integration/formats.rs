//! Reports as other tools' formats, read by these tools or their own parsers, and held against the report.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use breaktrace::event::StackId;
use breaktrace::report::Growth;
use breaktrace::report::Report;
use breaktrace::report::SpaceReport;
use breaktrace::report::StackGrowth;
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
    fn sum(&self, figure: impl Fn(&Growth) -> u64) -> u64 {
        self.report
            .address_spaces
            .iter()
            .map(|space| sum_of(space, &figure))
            .sum()
    }

    /// The same over the stacks of the main address space.
    fn sum_of_main(&self, figure: impl Fn(&Growth) -> u64) -> u64 {
        sum_of(self.main(), figure)
    }
}

fn sum_of(space: &SpaceReport, figure: impl Fn(&Growth) -> u64) -> u64 {
    space
        .growth
        .iter()
        .map(|growth| figure(&growth.program_break) + figure(&growth.anonymous))
        .sum()
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

/// What each sample of a profile has: its values, and its labels as `-raw` prints them.
fn samples(raw: &str) -> (Vec<String>, Vec<(Vec<u64>, String)>) {
    let (_, samples) = raw.split_once("Samples:").unwrap();
    let (samples, _) = samples.split_once("Locations").unwrap();
    let mut lines = samples.lines().filter(|line| !line.trim().is_empty());
    let types: Vec<String> = lines
        .next()
        .unwrap()
        .split_whitespace()
        .map(Into::into)
        .collect();
    let mut samples: Vec<(Vec<u64>, String)> = Vec::new();
    for line in lines {
        let values: Option<Vec<u64>> = line.split_once(": ").and_then(|(values, _)| {
            values
                .split_whitespace()
                .map(|value| value.parse().ok())
                .collect()
        });
        match values {
            Some(values) if values.len() == types.len() => samples.push((values, String::new())),
            _ => samples.last_mut().unwrap().1.push_str(line),
        }
    }
    (types, samples)
}

/// What `go tool pprof` makes of a profile; `None` without Go.
fn pprof(file: &Path, arguments: &[&str]) -> Option<String> {
    let mut command = Command::new(installed(&["go"])?);
    command.args(["tool", "pprof"]).args(arguments).arg(file);
    // It keeps what it fetches and draws there.
    command.env("PPROF_TMPDIR", file.parent().unwrap());
    Some(run(&mut command))
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
    let main = recording.main();
    let root = format!(
        "{} ({});",
        main.program.rsplit('/').next().unwrap(),
        main.pid
    );
    let lines = folded.lines().filter(|line| line.starts_with(&root));
    let of_main: u64 = lines
        .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap())
        .sum();
    assert_eq!(of_main, recording.sum_of_main(|growth| growth.net_bytes));
    let mut drawn = Vec::new();
    let mut options = inferno::flamegraph::Options::default();
    inferno::flamegraph::from_lines(&mut options, folded.lines(), &mut drawn).unwrap();
    let drawn = String::from_utf8(drawn).unwrap();
    assert!(drawn.contains("make_buffer") || drawn.contains("Index.add"));
}

#[test]
fn pprof_reads_the_profile_and_shows_culprits() {
    let Some(recording) = record() else { return };
    let file = recording.file("pb.gz");
    let Some(raw) = pprof(&file, &["-raw"]) else {
        return skip("go is not installed");
    };
    let (types, samples) = samples(&raw);
    assert_eq!(
        &types[..4],
        [
            "net/bytes[dflt]",
            "grown/bytes",
            "returned/bytes",
            "calls/count"
        ]
    );
    let figures: [fn(&Growth) -> u64; 4] = [
        |growth| growth.net_bytes,
        |growth| growth.grown_bytes,
        |growth| growth.returned_bytes,
        |growth| growth.grow_calls + growth.return_calls,
    ];
    let main = format!("space:[{}]", recording.main().id.0);
    for (index, figure) in figures.into_iter().enumerate() {
        let sum = |of: &str| {
            let samples = samples.iter().filter(|(_, labels)| labels.contains(of));
            samples.map(|(values, _)| values[index]).sum::<u64>()
        };
        assert_eq!(sum(""), recording.sum(figure), "{}", types[index]);
        assert_eq!(
            sum(&main),
            recording.sum_of_main(figure),
            "{}",
            types[index]
        );
    }
    let top = pprof(&file, &["-top", "-sample_index=grown"]).unwrap();
    assert!(
        !top.contains("sysmalloc") && !top.contains("__libc_malloc"),
        "{top}"
    );
    // pprof takes angle brackets for arguments of templates, unless it is told that they are none.
    assert!(top.contains("<module>"), "{top}");
    let peek = pprof(&file, &["-peek=make_buffer", "-sample_index=grown"]).unwrap();
    assert!(peek.contains("make_buffer"), "{peek}");
}

#[test]
fn pprof_shows_culprits_in_the_place_of_the_templates_that_they_use() {
    if installed(&["go"]).is_none() {
        return skip("go is not installed");
    }
    let folder = folder();
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/culprits/table.cpp");
    let program = folder.path().join("table");
    let Ok(compiled) = Command::new("g++")
        .args(["-O2", "-g", "-o"])
        .arg(&program)
        .arg(source)
        .status()
    else {
        return skip("g++ is not installed");
    };
    assert!(compiled.success());
    let file = folder.path().join("r.pb.gz");
    finish(
        breaktrace()
            .args(["run", "-q", "-o"])
            .arg(&file)
            .arg("--")
            .arg(&program),
    )
    .expect_code(0);
    let top = pprof(&file, &["-top", "-sample_index=grown"]).unwrap();
    let own = |function: &str| {
        top.lines()
            .filter(|line| !line.trim_start().starts_with("0 "))
            .any(|line| line.split_whitespace().nth(5) == Some(function))
    };
    for culprit in [
        "grow_table",
        "make_text",
        "inlined_buffer",
        "shop::Index::add",
    ] {
        assert!(own(culprit), "{culprit} in {top}");
    }
    assert!(!top.contains("allocator"), "{top}");
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
        (
            "calls",
            recording.sum(|growth| growth.grow_calls + growth.return_calls),
        ),
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
        #[expect(
            clippy::cast_precision_loss,
            reason = "the parser reads floating point"
        )]
        for (name, expected) in [
            (
                "breaktrace_call_path_net_bytes",
                recording.sum(|growth| growth.net_bytes) as f64,
            ),
            (
                "breaktrace_call_path_grown_bytes_total",
                recording.sum(|growth| growth.grown_bytes) as f64,
            ),
        ] {
            let of_name = samples.iter().filter(|sample| sample[0] == name);
            let sum: f64 = of_name.map(|sample| sample[2].as_f64().unwrap()).sum();
            assert!((sum - expected).abs() < 1.0, "{name}: {sum} {expected}");
        }
    }
    match installed(&["promtool"]) {
        Some(promtool) => check_metrics(&promtool, &recording.file("prom")),
        None => skip("promtool (prometheus) is not installed"),
    }
}

/// Prometheus' own checker.
#[track_caller]
fn check_metrics(promtool: &Path, file: &Path) {
    let output = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(std::fs::File::open(file).unwrap())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    // 3 is advice on names (cmd/promtool/main.go, `lintErrExitCode`), of which there is none.
    assert_eq!(output.status.code(), Some(0), "{error}");
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

#[test]
fn an_event_log_becomes_the_same_files_as_the_run_itself() {
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    let mut command = breaktrace();
    command
        .args(["run", "-q", "--events"])
        .arg(place("e.jsonl"));
    for ending in ENDINGS {
        command.arg("-o").arg(place(&format!("run.{ending}")));
    }
    finish(command.args(["--", "sh", "-c", "ls / > /dev/null; true"])).expect_code(0);
    let mut command = breaktrace();
    command.arg("report").arg(place("e.jsonl"));
    for ending in ENDINGS {
        command.arg("-o").arg(place(&format!("log.{ending}")));
    }
    finish(&mut command).expect_code(0);
    for ending in ENDINGS {
        let [run, log] =
            ["run", "log"].map(|name| std::fs::read(place(&format!("{name}.{ending}"))).unwrap());
        assert!(run == log, "{ending}");
        assert!(!run.is_empty(), "{ending}");
    }
}

#[test]
fn every_format_has_a_name_and_goes_to_stdout() {
    let Some(recording) = record() else { return };
    for (format, ending) in [
        ("text", "txt"),
        ("json", "json"),
        ("folded", "folded"),
        ("pprof", "pb.gz"),
        ("speedscope", "speedscope.json"),
        ("chrome-trace", "trace.json"),
        ("csv", "csv"),
        ("prometheus", "prom"),
        ("openmetrics", "openmetrics"),
        ("massif", "massif"),
    ] {
        let output = breaktrace()
            .args(["report", "--format", format, "-o", "-"])
            .arg(recording.file("json"))
            .output()
            .unwrap();
        assert!(output.status.success(), "{format}");
        let expected = std::fs::read(recording.file(ending)).unwrap();
        assert!(output.stdout == expected, "{format}");
    }
}

#[test]
fn a_binary_format_is_kept_from_a_terminal() {
    let Some(python) = python() else {
        return skip("python3 is not installed");
    };
    let on_a_terminal = |arguments: &[&str]| {
        let program =
            "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))";
        Command::new(&python)
            .args(["-c", program, env!("CARGO_BIN_EXE_breaktrace")])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    };
    for arguments in [
        &["run", "--format", "pprof", "-o", "-", "--", "echo", "ran"][..],
        &["run", "--format", "pprof", "--", "echo", "ran"],
        &["report", "--format", "pprof", "-o", "-", "/dev/null"],
    ] {
        let output = on_a_terminal(arguments);
        let text = String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains("is a terminal"), "{text}");
        assert!(text.contains("-o FILE.pb.gz"), "{text}");
        assert!(!text.contains("ran\r"), "nothing ran: {text}");
    }
}

/// A report that a test has changed, as every format.
struct Changed {
    folder: TempDir,
}

impl Changed {
    fn new(report: &[u8]) -> Self {
        let folder = folder();
        let file = folder.path().join("changed");
        std::fs::write(&file, report).unwrap();
        let mut command = breaktrace();
        command.arg("report").arg(&file);
        for ending in ENDINGS {
            command
                .arg("-o")
                .arg(folder.path().join(format!("run.{ending}")));
        }
        finish(&mut command).expect_code(0);
        Self { folder }
    }

    fn file(&self, ending: &str) -> PathBuf {
        self.folder.path().join(format!("run.{ending}"))
    }

    fn text(&self, ending: &str) -> String {
        std::fs::read_to_string(self.file(ending)).unwrap()
    }

    /// Has every format read by its tool, and compares what adds up. Tools that are missing are told of by the tests of
    /// the single formats.
    fn check(&self, net: u64, points: usize) {
        let folded = self.text("folded");
        let values = folded
            .lines()
            .map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap());
        assert_eq!(values.sum::<u64>(), net, "folded");
        if net > 0 {
            let mut options = inferno::flamegraph::Options::default();
            let drawn =
                inferno::flamegraph::from_lines(&mut options, folded.lines(), std::io::sink());
            drawn.unwrap();
        }
        if let Some(raw) = pprof(&self.file("pb.gz"), &["-raw"]).filter(|_| net > 0) {
            let (_, samples) = samples(&raw);
            let values = samples.iter().map(|(values, _)| values[0]);
            assert_eq!(values.sum::<u64>(), net, "pprof");
            pprof(&self.file("pb.gz"), &["-top", "-lines"]).unwrap();
        }
        let speedscope: Value = serde_json::from_str(&self.text("speedscope.json")).unwrap();
        let weights = speedscope["profiles"][0]["weights"].as_array().unwrap();
        let sum: u64 = weights.iter().map(|weight| weight.as_u64().unwrap()).sum();
        assert_eq!(sum, net, "speedscope");
        let trace: Value = serde_json::from_str(&self.text("trace.json")).unwrap();
        assert!(trace["traceEvents"].is_array());
        self.check_with_python(points);
        if let Some(promtool) = installed(&["promtool"]) {
            check_metrics(&promtool, &self.file("prom"));
        }
        if let Some(ms_print) = installed(&["ms_print"]).filter(|_| points > 0) {
            run(Command::new(ms_print).arg(self.file("massif")));
        }
    }

    fn check_with_python(&self, points: usize) {
        if python().is_none() {
            return;
        }
        let program = "import csv, json, sys\n\
            print(len(list(csv.DictReader(open(sys.argv[1], newline=''), strict=True))))";
        assert_eq!(by_python(program, &self.file("csv")), points, "csv");
        for (ending, module) in [
            ("prom", "prometheus_client.parser"),
            ("openmetrics", "prometheus_client.openmetrics.parser"),
        ] {
            let program = format!(
                "import sys\n\
                 try: from {module} import text_string_to_metric_families as read\n\
                 except ImportError: print('null'); sys.exit()\n\
                 print(len(list(read(open(sys.argv[1], newline='').read()))))"
            );
            let families = by_python(&program, &self.file(ending));
            assert!(
                families.is_null() || families.as_u64() > Some(3),
                "{ending}"
            );
        }
    }
}

/// Adds something to every name that the traced program chose.
fn spoil(value: &mut Value, addition: &str) {
    match value {
        Value::Array(values) => values.iter_mut().for_each(|value| spoil(value, addition)),
        Value::Object(fields) => {
            for (key, value) in fields {
                match value {
                    Value::String(text)
                        if ["name", "file", "path", "program", "build_id"]
                            .contains(&key.as_str()) =>
                    {
                        text.push_str(addition);
                    }
                    Value::Array(texts)
                        if ["arguments", "command", "path"].contains(&key.as_str()) =>
                    {
                        texts.push(addition.into());
                    }
                    _ => spoil(value, addition),
                }
            }
        }
        _ => {}
    }
}

#[test]
fn hostile_names_break_no_format() {
    let Some(recording) = record() else { return };
    let net = recording.sum(|growth| growth.net_bytes);
    let points = recording.report.address_spaces.iter();
    let points = points.map(|space| space.timeline.points.len()).sum();
    for addition in [
        "\n# EOF\n",
        ";\r\n7",
        "; {}=\",# 7",
        "\u{0}\u{1b}[2J\u{7f}\u{9b}\u{202e}\u{2028}\u{feff}",
        "$(x)|[^*+?.\\",
        "<b>&amp;</b>\"'`",
        "<(not-UTF-8",
    ] {
        let mut report = recording.json("json");
        for part in ["stacks", "address_spaces", "processes", "recording"] {
            spoil(&mut report[part], addition);
        }
        let mut bytes = serde_json::to_vec(&report).unwrap();
        if addition.ends_with("not-UTF-8") {
            while let Some(at) = bytes.windows(9).position(|bytes| bytes == b"not-UTF-8") {
                bytes[at..at + 9].fill(0xff);
            }
        }
        let changed = Changed::new(&bytes);
        changed.check(net, points);
        // JSON has escapes of its own.
        let texts = |ending: &&str| !["pb.gz", "json"].contains(ending);
        for ending in ENDINGS.into_iter().filter(texts) {
            let text = changed.text(ending);
            let harmless = |character: char| !character.is_control() || "\r\n".contains(character);
            assert!(text.chars().all(harmless), "{addition:?} in {ending}");
            if ["folded", "prom", "openmetrics", "massif"].contains(&ending) {
                assert!(!text.contains('\r'), "{addition:?} in {ending}");
            }
        }
        let eof = changed.text("openmetrics");
        assert_eq!(
            eof.lines().filter(|line| line.starts_with("# EOF")).count(),
            1
        );
    }
}

#[test]
fn ten_thousand_stacks_are_read_by_every_tool() {
    let Some(recording) = record() else { return };
    let mut report = recording.report.clone();
    let stacks = report.stacks.as_mut().unwrap();
    let functions = u32::try_from(stacks.frames.len()).unwrap();
    let numbers = 1_000_000..1_010_000_u32;
    let first = stacks.stacks[0].clone();
    stacks.stacks.extend(numbers.clone().map(|number| {
        let mut stack = first.clone();
        stack.id = StackId(number);
        // As the digits of a number, so that no two are the same.
        stack.frames = (0..40)
            .map(|level| (number >> (level % 20)) % functions)
            .collect();
        stack.culprit = None;
        stack
    }));
    let main = report.main_space.unwrap();
    let space = report.address_spaces.iter_mut();
    let space = space.into_iter().find(|space| space.id == main).unwrap();
    space.growth.extend(numbers.map(|number| StackGrowth {
        stack: Some(StackId(number)),
        program_break: Growth::default(),
        anonymous: Growth {
            grown_bytes: 4096,
            grow_calls: 1,
            net_bytes: 4096,
            ..Growth::default()
        },
    }));
    let net = report.address_spaces.iter();
    let net = net
        .map(|space| sum_of(space, |growth| growth.net_bytes))
        .sum();
    let points = report.address_spaces.iter();
    let points = points.map(|space| space.timeline.points.len()).sum();
    Changed::new(breaktrace::report::to_json(&report).as_bytes()).check(net, points);
}

#[test]
fn a_program_that_never_asks_for_memory_gives_whole_files() {
    let folder = folder();
    let source = folder.path().join("quiet.c");
    // exit_group(0), by x86-64's numbers or by aarch64's.
    std::fs::write(
        &source,
        "void _start(void) {\n\
         #ifdef __x86_64__\n\
         __asm__ volatile(\"syscall\" :: \"a\"(231), \"D\"(0));\n\
         #else\n\
         __asm__ volatile(\"mov x8, 94\\n mov x0, 0\\n svc 0\");\n\
         #endif\n\
         }\n",
    )
    .unwrap();
    let program = folder.path().join("quiet");
    let Ok(compiled) = Command::new("cc")
        .args(["-nostdlib", "-static", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
    else {
        return skip("cc is not installed");
    };
    assert!(compiled.success());
    let file = folder.path().join("r.json");
    finish(
        breaktrace()
            .args(["run", "-q", "-o"])
            .arg(&file)
            .arg("--")
            .arg(&program),
    )
    .expect_code(0);
    let text = std::fs::read_to_string(&file).unwrap();
    let report = breaktrace::report::from_json(&text).unwrap();
    let points = report.address_spaces.iter();
    let points = points.map(|space| space.timeline.points.len()).sum();
    Changed::new(text.as_bytes()).check(0, points);
}
