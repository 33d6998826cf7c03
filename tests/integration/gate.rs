//! Gates: baselines, limits, verdicts and differences, as CI meets them.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::breaktrace;
use crate::support::can_fix_addresses;
use crate::support::fixture;
use crate::support::installed;
use crate::support::not_here;
use crate::support::skip;

const REGRESSED: Option<i32> = Some(3);
const NO_BASELINE: Option<i32> = Some(4);

struct Folder(TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn file(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.file(name)).unwrap()
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&self.text(name)).unwrap()
    }

    /// breaktrace with these arguments, in this folder.
    fn breaktrace(&self, arguments: &[&str]) -> Output {
        breaktrace()
            .args(arguments)
            .current_dir(self.0.path())
            .output()
            .unwrap()
    }

    fn expect(&self, code: Option<i32>, arguments: &[&str]) -> String {
        let output = self.breaktrace(arguments);
        let text = format!(
            "{}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        assert_eq!(output.status.code(), code, "{arguments:?}: {text}");
        text
    }
}

/// The arguments of a run of the fixture that moves the break, then these.
fn moves<'a>(options: &[&'a str], program: &'a str, script: &[&'a str]) -> Vec<&'a str> {
    let mut words = vec!["run"];
    words.extend(options);
    words.extend(["--", program]);
    words.extend(script);
    words
}

#[test]
fn the_same_program_passes_and_one_with_an_extra_step_does_not() {
    let folder = Folder::new();
    let source = folder.file("g.c");
    // 40 blocks of 4000 bytes are one more step of 132 KiB.
    fs::write(
        &source,
        "#include <stdlib.h>\n\
         __attribute__((noinline)) void *row(void) { return malloc(4000); }\n\
         __attribute__((noinline)) void extra(void) { for (int i = 0; i < 34; i++) row(); }\n\
         int main(void) { for (int i = 0; i < 100; i++) row();\n\
         if (EXTRA) extra(); return 0; }\n",
    )
    .unwrap();
    let build = |extra: &str| {
        let built = Command::new("cc")
            .args(["-g", "-O1", &format!("-DEXTRA={extra}"), "-o"])
            .arg(folder.file("g"))
            .arg(&source)
            .status();
        built.is_ok_and(|status| status.success())
    };
    if !build("0") {
        return skip("no C compiler");
    }
    folder.expect(
        Some(0),
        &[
            "run",
            "--save-baseline",
            "b.json",
            "--runs",
            "2",
            "--",
            "./g",
        ],
    );
    for _ in 0..5 {
        folder.expect(Some(0), &["run", "--baseline", "b.json", "--", "./g"]);
    }
    assert!(build("1"));
    let text = folder.expect(
        REGRESSED,
        &[
            "run",
            "--baseline",
            "b.json",
            "-o",
            "r.json",
            "--verdict",
            "v.json",
            "--",
            "./g",
        ],
    );
    assert!(
        text.contains("row (g.c) ← extra (g.c) ← main (g.c)"),
        "{text}"
    );
    let verdict = folder.json("v.json");
    let step = verdict["metrics"]
        .as_array()
        .unwrap()
        .iter()
        .find(|metric| metric["metric"] == "break.grown")
        .unwrap();
    assert_eq!(step["delta"], 132 << 10, "{step}");
    // The report of the very run is judged in the same way.
    folder.expect(REGRESSED, &["check", "r.json", "--baseline", "b.json"]);
    let within = [
        "check",
        "r.json",
        "--baseline",
        "b.json",
        "--limit",
        "@all=+256KiB",
        "--limit",
        "@calls=+2",
    ];
    let text = folder.expect(REGRESSED, &within);
    assert!(text.contains("break.grow_calls"), "{text}");
    let wide = [
        "check",
        "r.json",
        "--baseline",
        "b.json",
        "--limit",
        "@all=+1000%",
    ];
    folder.expect(Some(0), &wide);
}

#[test]
fn a_verdict_does_not_depend_on_chance() {
    if !can_fix_addresses() {
        // gcc's cc1 then uses more memory in one run than in the next.
        return not_here("address space randomization cannot be turned off here");
    }
    let folder = Folder::new();
    let mut programs: Vec<Vec<&str>> = Vec::new();
    if installed(&["python3"]).is_some() {
        programs.push(vec![
            "python3",
            "-c",
            "x = {str(i): i for i in range(5000)}",
        ]);
    }
    if installed(&["perl"]).is_some() {
        programs.push(vec!["perl", "-e", "my %h; $h{$_} = $_ x 9 for 1 .. 5000"]);
    }
    programs.push(vec!["sort", "/etc/passwd"]);
    fs::write(folder.file("h.c"), "int main(void) { return 0; }\n").unwrap();
    if installed(&["gcc"]).is_some() {
        programs.push(vec!["gcc", "-c", "h.c", "-o", "h.o"]);
    }
    if programs.len() < 4 {
        skip("python3, perl or gcc is missing");
    }
    for program in programs {
        let words = |option: &[&'static str]| -> Vec<&str> {
            [&["run"], option, &["--"], program.as_slice()].concat()
        };
        folder.expect(Some(0), &words(&["--save-baseline", "b.json"]));
        for _ in 0..4 {
            folder.expect(Some(0), &words(&["--baseline", "b.json"]));
        }
    }
}

#[test]
fn a_baseline_that_is_missing_or_of_something_else_is_no_pass() {
    let folder = Folder::new();
    let text = folder.expect(
        NO_BASELINE,
        &["run", "--baseline", "b.json", "--", "touch", "ran"],
    );
    assert!(text.contains("--save-baseline b.json"), "{text}");
    assert!(
        !folder.file("ran").exists(),
        "nothing may run without a baseline"
    );
    folder.expect(Some(0), &["run", "--save-baseline", "b.json", "--", "true"]);
    let text = folder.expect(
        NO_BASELINE,
        &["run", "--baseline", "b.json", "--", "true", "x"],
    );
    assert!(
        text.contains("the command was `true` and is `true x`"),
        "{text}"
    );
    let text = folder.expect(
        NO_BASELINE,
        &[
            "run",
            "--env",
            "MALLOC_ARENA_MAX=1",
            "--baseline",
            "b.json",
            "--",
            "true",
        ],
    );
    assert!(
        text.contains("MALLOC_ARENA_MAX was unset and is `1`"),
        "{text}"
    );
    folder.expect(
        Some(0),
        &[
            "run",
            "--env",
            "MALLOC_ARENA_MAX=1",
            "--allow-mismatch",
            "environment",
            "--baseline",
            "b.json",
            "--",
            "true",
        ],
    );
    for (name, content) in [
        ("empty.json", String::new()),
        ("cut.json", folder.text("b.json")[..200].to_owned()),
        ("foreign.json", "{\"a\": 1}".to_owned()),
        (
            "later.json",
            folder
                .text("b.json")
                .replacen("\"version\": 1", "\"version\": 2", 1),
        ),
        ("deep.json", "[".repeat(100_000)),
        ("binary.json", "\u{0}\u{1}\u{2}".to_owned()),
    ] {
        fs::write(folder.file(name), content).unwrap();
        let text = folder.expect(NO_BASELINE, &["run", "--baseline", name, "--", "true"]);
        assert!(text.contains(name), "{text}");
        assert!(text.lines().count() <= 2, "{text}");
    }
}

#[test]
fn a_program_that_fails_is_neither_saved_nor_passed() {
    let folder = Folder::new();
    folder.expect(
        Some(1),
        &["run", "--save-baseline", "b.json", "--", "false"],
    );
    assert!(!folder.file("b.json").exists());
    let saved = [
        "run",
        "--save-baseline",
        "b.json",
        "--expect-exit",
        "1",
        "--",
        "false",
    ];
    folder.expect(Some(0), &saved);
    folder.expect(Some(0), &["run", "--baseline", "b.json", "--", "false"]);
    let not_found = ["run", "--max", "heap.peak=1GiB", "--", "./not-there"];
    folder.expect(Some(127), &not_found);
    let output = folder.breaktrace(&[
        "run",
        "--max",
        "heap.peak=1GiB",
        "--",
        "sh",
        "-c",
        "kill -SEGV $$",
    ]);
    assert!(output.status.code().is_none(), "{output:?}");
    folder.expect(
        Some(5),
        &["run", "--max", "heap.peak=1GiB", "--", "sh", "-c", "exit 5"],
    );
    // The recording of it does not pass either.
    let _ = folder.breaktrace(&[
        "run",
        "-q",
        "-o",
        "r.json",
        "--",
        "sh",
        "-c",
        "kill -SEGV $$",
    ]);
    let text = folder.expect(REGRESSED, &["check", "r.json", "--max", "heap.peak=1GiB"]);
    assert!(text.contains("was killed by SIGSEGV"), "{text}");
}

#[test]
fn recordings_that_are_not_whole_cannot_be_judged() {
    let folder = Folder::new();
    folder.expect(
        Some(0),
        &[
            "run", "-q", "-o", "r.json", "--events", "e.jsonl", "--", "true",
        ],
    );
    let cap = ["--max", "heap.peak=1GiB"];
    let check = |file: &str| [&["check", file], cap.as_slice()].concat().join(" ");
    let run = |code, file: &str| {
        let words = check(file);
        let words: Vec<&str> = words.split(' ').collect();
        folder.expect(code, &words)
    };
    run(Some(0), "r.json");
    run(Some(0), "e.jsonl");
    let log = folder.text("e.jsonl");
    let lines: Vec<&str> = log.lines().collect();
    fs::write(
        folder.file("cut.jsonl"),
        lines[..lines.len() / 2].join("\n"),
    )
    .unwrap();
    run(Some(1), "cut.jsonl");
    fs::write(folder.file("cut.json"), &folder.text("r.json")[..500]).unwrap();
    run(Some(1), "cut.json");
    let mut empty = folder.json("r.json");
    empty["address_spaces"] = serde_json::json!([]);
    empty["processes"] = serde_json::json!([]);
    fs::write(folder.file("empty.json"), empty.to_string()).unwrap();
    let text = run(Some(1), "empty.json");
    assert!(text.contains("nothing ran in it"), "{text}");
    run(Some(1), "missing.json");
}

#[test]
fn limits_come_from_a_file_and_the_command_line_and_mistakes_are_told() {
    let folder = Folder::new();
    folder.expect(Some(0), &["run", "-q", "-o", "r.json", "--", "true"]);
    fs::write(folder.file("l.toml"), "[limits]\nheap.peak = \"<=1KiB\"\n").unwrap();
    folder.expect(REGRESSED, &["check", "r.json", "--limits", "l.toml"]);
    // What is typed counts more.
    let both = [
        "check",
        "r.json",
        "--limits",
        "l.toml",
        "--max",
        "heap.peak=1GiB",
    ];
    folder.expect(Some(0), &both);
    for (words, told) in [
        (&["--max", "heap.peek=1GiB"][..], "`heap.peak`"),
        (&["--max", "heap.peak"][..], "--max METRIC=64MiB"),
        (&["--limit", "heap.peak=5"][..], "`5` is no limit"),
        (&["--limits", "none.toml"][..], "none.toml"),
        (&[][..], "--baseline FILE"),
    ] {
        let text = folder.expect(Some(2), &[&["check", "r.json"], words].concat());
        assert!(text.contains(told), "{words:?}: {text}");
    }
    let text = folder.expect(Some(2), &["run", "--runs", "3", "--", "true"]);
    assert!(text.contains("--save-baseline"), "{text}");
}

#[test]
fn programs_have_limits_of_their_own() {
    if installed(&["gcc"]).is_none() {
        return skip("gcc is missing");
    }
    let folder = Folder::new();
    fs::write(folder.file("h.c"), "int main(void) { return 0; }\n").unwrap();
    let run = |limit: &str, code| {
        let words = ["run", "--max", limit, "--", "gcc", "-c", "h.c", "-o", "h.o"];
        folder.expect(code, &words)
    };
    run("cc1:heap.peak=1GiB", Some(0));
    let text = run("cc1:heap.peak=64KiB", REGRESSED);
    assert!(text.contains("cc1:heap.peak"), "{text}");
    let text = run("cc2:heap.peak=1GiB", REGRESSED);
    assert!(text.contains("NOT MEASURED"), "{text}");
}

#[test]
fn an_update_shows_what_it_changes_and_makes_the_recording_pass() {
    let folder = Folder::new();
    let moves_fixture = fixture("brk_moves");
    let program = moves_fixture.to_str().unwrap();
    folder.expect(
        Some(0),
        &moves(&["--save-baseline", "b.json"], program, &[]),
    );
    let mut baseline = folder.json("b.json");
    baseline["metrics"]["break.grown"] = serde_json::json!(1);
    fs::write(folder.file("b.json"), baseline.to_string()).unwrap();
    folder.expect(
        REGRESSED,
        &moves(&["--baseline", "b.json", "-o", "r.json"], program, &[]),
    );
    let text = folder.expect(
        Some(0),
        &["check", "r.json", "--baseline", "b.json", "--update"],
    );
    assert!(
        text.contains("break.grown") && text.contains("1 B →"),
        "{text}"
    );
    folder.expect(Some(0), &moves(&["--baseline", "b.json"], program, &[]));
}

#[test]
fn each_form_of_the_verdict_is_what_its_reader_expects() {
    let folder = Folder::new();
    folder.expect(Some(0), &["run", "-q", "-o", "r.json", "--", "true"]);
    let output = breaktrace()
        .args([
            "check",
            "r.json",
            "--max",
            "heap.peak=1KiB",
            "--max",
            "break.peak=1GiB",
            "--github",
        ])
        .args([
            "-o", "v.xml", "-o", "v.md", "-o", "v.om", "-o", "v.txt", "-o", "v.json",
        ])
        .current_dir(folder.0.path())
        .env("GITHUB_STEP_SUMMARY", folder.file("summary.md"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), REGRESSED);
    let stdout = String::from_utf8(output.stdout).unwrap();
    assert!(
        stdout
            .lines()
            .any(|line| line.starts_with("::error title=heap%3A heap.peak::")),
        "{stdout}"
    );
    assert!(folder.text("summary.md").contains("| `heap.peak` |"));
    assert_eq!(folder.json("v.json")["verdict"], "failed");
    let Some(python) = installed(&["python3"]) else {
        return skip("python3 is missing");
    };
    let script = "\
import sys, xml.etree.ElementTree as tree
suites = tree.parse(sys.argv[1]).getroot()
cases = suites.findall('testsuite/testcase')
failed = [case.get('name') for case in cases if case.find('failure') is not None]
assert int(suites.get('tests')) == len(cases), suites.attrib
assert int(suites.get('failures')) == len(failed) == 1, failed
assert failed == ['heap.peak'], failed
metrics = open(sys.argv[2]).read()
assert metrics.endswith('# EOF\\n')
assert 'breaktrace_heap_peak_bytes ' in metrics
";
    let checked = Command::new(python)
        .args(["-c", script])
        .arg(folder.file("v.xml"))
        .arg(folder.file("v.om"))
        .output()
        .unwrap();
    assert!(
        checked.status.success(),
        "{}",
        String::from_utf8_lossy(&checked.stderr)
    );
}

#[test]
fn a_difference_names_the_steps_and_the_call_paths_that_are_new() {
    let folder = Folder::new();
    for (name, extra) in [("old", "0"), ("new", "1")] {
        let source = folder.file("d.c");
        fs::write(
            &source,
            "#include <stdlib.h>\nvoid *volatile kept;\n\
             __attribute__((noinline)) void usual(void) { kept = malloc(100000); }\n\
             __attribute__((noinline)) void added(void) { kept = malloc(120000); }\n\
             int main(void) { usual(); usual(); if (EXTRA) { added(); added(); } return 0; }\n",
        )
        .unwrap();
        let built = Command::new("cc")
            .args(["-g", "-O0", &format!("-DEXTRA={extra}"), "-o"])
            .arg(folder.file("d"))
            .arg(&source)
            .status();
        if !built.is_ok_and(|status| status.success()) {
            return skip("no C compiler");
        }
        let report = format!("{name}.json");
        folder.expect(
            Some(0),
            &["run", "-q", "--no-aslr", "-o", &report, "--", "./d"],
        );
    }
    let text = folder.expect(
        Some(0),
        &["diff", "old.json", "new.json", "-o", "d.md", "-o", "d.json"],
    );
    assert!(text.contains("added (d.c) ← main (d.c)"), "{text}");
    let diff = folder.json("d.json");
    let steps = diff["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 1, "{steps:#?}");
    assert_eq!(steps[0]["kind"], "came");
    let paths = diff["call_paths"].as_array().unwrap();
    assert_eq!(paths.len(), 1, "{paths:#?}");
    assert!(paths[0]["before"].is_null(), "{paths:#?}");
    assert!(folder.text("d.md").contains("| `break.grown` |"));
    let worse = ["diff", "old.json", "new.json", "--fail-on-regression"];
    folder.expect(REGRESSED, &worse);
    let better = ["diff", "new.json", "old.json", "--fail-on-regression"];
    folder.expect(Some(0), &better);
    let text = folder.expect(Some(0), &["diff", "old.json", "old.json"]);
    assert!(text.contains("no figure changed"), "{text}");
}

#[test]
fn a_look_through_a_heap_has_caps() {
    let folder = Folder::new();
    let Some(python) = installed(&["python3"]) else {
        return skip("python3 is missing");
    };
    let mut target = Command::new(python)
        .args([
            "-c",
            "import sys\nprint('ready', flush=True)\nsys.stdin.read()",
        ])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 6];
    std::io::Read::read_exact(target.stdout.as_mut().unwrap(), &mut line).unwrap();
    let pid = target.id().to_string();
    folder.expect(Some(0), &["heap", "-o", "h.json", &pid]);
    folder.expect(Some(0), &["check", "h.json", "--max", "malloc.in_use=1GiB"]);
    folder.expect(
        REGRESSED,
        &["check", "h.json", "--max", "malloc.in_use=1KiB"],
    );
    drop(target.stdin.take());
    target.wait().unwrap();
}

#[test]
fn the_example_project_catches_the_regression_planted_in_it() {
    if installed(&["make"]).is_none() || installed(&["cc"]).is_none() {
        return skip("make or cc is missing");
    }
    let folder = Folder::new();
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/ci_example");
    for name in ["Makefile", "heap.toml", "records.c"] {
        fs::copy(example.join(name), folder.file(name)).unwrap();
    }
    let make = |words: &[&str]| {
        let output = Command::new("make")
            .args(words)
            .env("BREAKTRACE", env!("CARGO_BIN_EXE_breaktrace"))
            .current_dir(folder.0.path())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), text)
    };
    let (made, text) = make(&["heap-baseline"]);
    assert!(made, "{text}");
    let (passed, text) = make(&["heap-check"]);
    assert!(passed, "{text}");
    assert!(make(&["clean"]).0);
    let (passed, text) = make(&["heap-check", "CFLAGS=-g -O1 -DPLANTED_REGRESSION"]);
    assert!(!passed, "{text}");
    assert!(text.contains("parse_record (records.c)"), "{text}");
}

#[test]
fn every_metric_that_is_listed_can_be_limited() {
    let folder = Folder::new();
    let output = folder.breaktrace(&["metrics", "--json"]);
    let list: Value = serde_json::from_slice(&output.stdout).unwrap();
    let text = folder.expect(Some(0), &["metrics"]);
    folder.expect(Some(0), &["run", "-q", "-o", "r.json", "--", "true"]);
    for metric in list["metrics"].as_array().unwrap() {
        let name = metric["name"].as_str().unwrap();
        assert!(text.contains(name), "{name}");
        let value = match metric["unit"].as_str().unwrap() {
            "nanoseconds" => "10h",
            "basis_points" => "100%",
            _ => "1000000000",
        };
        let output = folder.breaktrace(&["check", "r.json", "--max", &format!("{name}={value}")]);
        // What the C library's malloc does not tell is not measured, and so does not pass.
        assert!(
            matches!(output.status.code(), Some(0 | 3)),
            "{name}: {output:?}"
        );
    }
}
