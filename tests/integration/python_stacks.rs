//! Python functions and lines in stacks, compared with what the program itself says at that very moment.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::Files;
use crate::support::Running;
use crate::support::breaktrace;
use crate::support::compile;
use crate::support::folder;
use crate::support::is_snapshot;
use crate::support::not_here;
use crate::support::python;
use crate::support::skip;
use crate::support::trace;
use crate::support::wait_until;

/// Enough for the deepest stack of the script.
const DEPTH: [&str; 4] = ["--stacks", "brk", "--stack-depth", "512"];

fn script() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/python_stacks.py")
}

/// The machine's own Python, and all that pyenv has built.
fn pythons() -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> = python().into_iter().collect();
    let home = std::env::var_os("HOME").unwrap_or_default();
    let versions = std::env::var_os("PYENV_ROOT")
        .map_or_else(|| Path::new(&home).join(".pyenv"), PathBuf::from)
        .join("versions");
    found.extend(
        std::fs::read_dir(versions)
            .into_iter()
            .flatten()
            .flatten()
            .map(|version| version.path().join("bin/python3"))
            .filter(|python| minor_version(python).is_some_and(|minor| (8..=13).contains(&minor))),
    );
    found
}

/// 11 of 3.11.
fn minor_version(python: &Path) -> Option<u32> {
    let output = Command::new(python)
        .args(["-c", "import sys; print(sys.version_info[1])"])
        .output()
        .ok()?;
    String::from_utf8(output.stdout).ok()?.trim().parse().ok()
}

/// What the script printed: one move of the break.
#[derive(Debug)]
struct Told {
    case: String,
    before: u64,
    bytes: u64,
    stack: Vec<PythonFrame>,
}

/// Name, file, first line, line.
type PythonFrame = (String, String, u64, u64);

fn told(stdout: &str) -> Vec<Told> {
    stdout
        .lines()
        .filter(|line| line.starts_with('{'))
        .map(|line| {
            let value: Value = serde_json::from_str(line).unwrap();
            Told {
                case: value["case"].as_str().unwrap().to_owned(),
                before: value["before"].as_u64().unwrap(),
                bytes: value["bytes"].as_u64().unwrap(),
                stack: value["stack"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .map(|frame| {
                        (
                            frame[0].as_str().unwrap().to_owned(),
                            frame[1].as_str().unwrap().to_owned(),
                            frame[2].as_u64().unwrap(),
                            frame[3].as_u64().unwrap(),
                        )
                    })
                    .collect(),
            }
        })
        .collect()
}

/// The stacks of a recording.
struct Recorded {
    functions: BTreeMap<u64, Value>,
    stacks: BTreeMap<u64, Value>,
    moves: Vec<(u64, u64, u64)>,
}

impl Recorded {
    /// Reads events; each stack and function must come before what names it.
    fn new(events: &[Value]) -> Self {
        let mut recorded = Self {
            functions: BTreeMap::new(),
            stacks: BTreeMap::new(),
            moves: Vec::new(),
        };
        for event in events {
            match event["event"].as_str().unwrap() {
                "function_seen" => {
                    let id = event["id"].as_u64().unwrap();
                    assert!(recorded.functions.insert(id, event.clone()).is_none());
                }
                "stack_seen" => {
                    for frame in event["frames"].as_array().unwrap() {
                        if let Some(function) = frame["function"].as_u64() {
                            assert!(recorded.functions.contains_key(&function), "{event}");
                        }
                    }
                    recorded
                        .stacks
                        .insert(event["id"].as_u64().unwrap(), event.clone());
                }
                "brk" => {
                    let (Some(before), Some(stack)) =
                        (event["before"].as_str(), event["stack"].as_u64())
                    else {
                        continue;
                    };
                    let after = event["after"].as_str().unwrap();
                    recorded.moves.push((
                        crate::support::number(before),
                        crate::support::number(after),
                        stack,
                    ));
                }
                _ => {}
            }
        }
        recorded
    }

    /// The stacks with which the break was moved so.
    fn stacks_of<'a>(&'a self, told: &'a Told) -> impl Iterator<Item = &'a Value> {
        self.moves
            .iter()
            .filter(|(before, after, _)| {
                *before == told.before && *after == told.before + told.bytes
            })
            .map(|(.., stack)| &self.stacks[stack])
    }

    /// The Python frames of a stack.
    fn python(&self, stack: &Value) -> Vec<PythonFrame> {
        stack["frames"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|frame| {
                let function = &self.functions[&frame["function"].as_u64()?];
                assert_eq!(function["language"], "python");
                Some((
                    function["name"].as_str().unwrap().to_owned(),
                    function["source"].as_str().unwrap().to_owned(),
                    function["first_line"].as_u64().unwrap(),
                    frame["line"].as_u64().unwrap(),
                ))
            })
            .collect()
    }
}

/// Panics unless the recording has each stack that was told.
#[track_caller]
fn expect_stacks(what: &Path, told: &[Told], events: &[Value]) {
    let recorded = Recorded::new(events);
    let cases: BTreeSet<&str> = told.iter().map(|told| told.case.as_str()).collect();
    assert!(cases.len() > 25, "{what:?} told of {cases:?} only");
    for told in told {
        let stacks: Vec<&Value> = recorded.stacks_of(told).collect();
        let found = stacks
            .iter()
            // A forked child may move its break as its parent has done.
            .any(|stack| recorded.python(stack) == told.stack);
        assert!(
            found,
            "{what:?}, case `{}`\ntold: {:#?}\nrecorded: {:#?}",
            told.case,
            told.stack,
            stacks
                .iter()
                .map(|stack| recorded.python(stack))
                .collect::<Vec<_>>()
        );
        for stack in stacks {
            expect_order(stack);
        }
    }
}

/// Native frames are at both ends of a whole stack.
#[track_caller]
fn expect_order(stack: &Value) {
    assert!(stack.get("truncated").is_none(), "{stack}");
    let frames = stack["frames"].as_array().unwrap();
    assert!(frames.first().unwrap().is_array(), "{stack}");
    assert!(frames.last().unwrap().is_array(), "{stack}");
}

#[test]
fn python_functions_and_lines_are_what_python_says_at_that_moment() {
    let pythons = pythons();
    if pythons.is_empty() {
        skip("no python3");
    }
    for python in pythons {
        let traced = trace(&DEPTH, [python.as_os_str(), script().as_os_str()]);
        traced.ended.expect_code(0);
        expect_stacks(&python, &told(&traced.ended.stdout), &traced.events);
    }
}

#[test]
fn functions_that_c_calls_stand_between_the_native_frames_that_call_them_and_that_they_call() {
    let by_c = [
        "lambda",
        "reduce",
        "comparison",
        "finaliser",
        "signal",
        "list",
        "eval",
        "called from C",
    ];
    for python in pythons() {
        let traced = trace(&DEPTH, [python.as_os_str(), script().as_os_str()]);
        let recorded = Recorded::new(&traced.events);
        for told in told(&traced.ended.stdout)
            .iter()
            .filter(|told| by_c.contains(&told.case.as_str()))
        {
            let stack = recorded.stacks_of(told).next().unwrap();
            let names: Vec<&str> = stack["frames"]
                .as_array()
                .unwrap()
                .iter()
                .map(|frame| {
                    frame["function"].as_u64().map_or("C", |function| {
                        recorded.functions[&function]["name"].as_str().unwrap()
                    })
                })
                .collect();
            let at = |name: &str| names.iter().position(|found| *found == name).unwrap();
            // What C called is whatever called `grow`, itself or by another function; what called C is `all_cases`.
            let called = at("grow") + 1;
            let caller = at("all_cases");
            let between = &names[called..caller];
            let what = format!("{python:?}, {}: {names:?}", told.case);
            assert!(between.contains(&"C"), "{what}");
            if told.case == "lambda" {
                // list.sort and what leads to the evaluation of the key function.
                let outwards = between.iter().rev().take_while(|name| **name == "C");
                assert!(outwards.count() >= 3, "{what}");
            }
        }
    }
}

#[test]
fn python_is_recognised_when_breaktrace_attaches() {
    for python in pythons() {
        let folder = folder();
        let files = Files::within(folder.path());
        let mut program = Running::start_obedient(Command::new(&python).arg(script()).arg("wait"));
        assert_eq!(program.line(), "ready");
        let mut command = breaktrace();
        command
            .arg("attach")
            .args(files.options())
            .args(DEPTH)
            .arg(program.pid().to_string());
        let mut attached = Running::start(&mut command);
        wait_until("breaktrace has attached", || {
            attached.has_ended() || files.count(|event| is_snapshot(event, "attach")) > 0
        });
        program.tell("go");
        let mut stdout = String::new();
        loop {
            let line = program.line();
            if line == "done" {
                break;
            }
            stdout += &line;
            stdout.push('\n');
        }
        attached.send(libc::SIGINT);
        attached.finish().expect_code(0);
        program.finish().expect_code(0);
        expect_stacks(&python, &told(&stdout), &files.events());
    }
}

#[test]
fn an_embedded_python_is_recognised() {
    let Some(program) = compile("embeds_python", &["-O2", "-ldl"]) else {
        return skip("no C compiler");
    };
    let mut found = false;
    for python in pythons() {
        let script = "import sysconfig as s; print(s.get_config_var('LIBDIR') + '/' + (s.get_config_var('INSTSONAME') or ''))";
        let output = Command::new(&python).args(["-c", script]).output().unwrap();
        let library = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim());
        if library.extension().is_none_or(|extension| extension == "a") || !library.is_file() {
            continue;
        }
        found = true;
        let mut home = OsString::from("PYTHONHOME=");
        home.push(library.ancestors().nth(2).unwrap());
        let mut command: Vec<OsString> = vec!["env".into()];
        // Of pyenv's the library does not find its modules by itself.
        if !library.starts_with("/usr") {
            command.push(home);
        }
        command.extend([
            program.clone().into(),
            library.clone().into(),
            self::script().into(),
        ]);
        let traced = trace(&DEPTH, command);
        traced.ended.expect_code(0);
        expect_stacks(&library, &told(&traced.ended.stdout), &traced.events);
    }
    if !found {
        not_here("no Python is a library of its own");
    }
}

#[test]
fn without_stacks_there_are_no_functions() {
    let Some(python) = python() else {
        return skip("no python3");
    };
    let traced = trace(
        &["--stacks", "off"],
        [python.as_os_str(), script().as_os_str()],
    );
    assert!(
        traced
            .events
            .iter()
            .all(|event| event["event"] != "function_seen" && event["event"] != "stack_seen")
    );
}
