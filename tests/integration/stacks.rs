//! Call stacks against gdb's, and what becomes of them when programs do odd things.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::Traced;
use crate::support::can_fix_addresses;
use crate::support::fixture;
use crate::support::folder;
use crate::support::installed;
use crate::support::not_here;
use crate::support::skip;
use crate::support::trace;

/// What makes interpreters do the same each time.
const SEEDS: [(&str, &str); 2] = [("PYTHONHASHSEED", "0"), ("PERL_HASH_SEED", "0")];

/// The stack of an event: modules by path, and places in them.
type Stack = Vec<String>;

/// The recorded stacks by number, and why they are not whole.
struct Recorded {
    stacks: HashMap<u64, (Stack, Option<String>)>,
}

impl Recorded {
    fn of(events: &[Value]) -> Self {
        let mut modules = HashMap::new();
        let mut stacks = HashMap::new();
        for event in events {
            match event["event"].as_str() {
                Some("module_seen") => {
                    modules.insert(
                        event["id"].as_u64().unwrap(),
                        event["path"].as_str().unwrap().to_owned(),
                    );
                }
                Some("stack_seen") => {
                    let frames = event["frames"].as_array().unwrap();
                    let stack = frames
                        .iter()
                        .filter(|frame| frame.is_array())
                        .map(|frame| {
                            let module = &modules[&frame[0].as_u64().unwrap()];
                            format!("{} {module}", frame[1].as_str().unwrap())
                        })
                        .collect();
                    let truncated = event["truncated"].as_str().map(str::to_owned);
                    stacks.insert(event["id"].as_u64().unwrap(), (stack, truncated));
                }
                _ => {}
            }
        }
        Self { stacks }
    }

    fn stack_of(&self, event: &Value) -> Option<&(Stack, Option<String>)> {
        self.stacks.get(&event["stack"].as_u64()?)
    }
}

/// The stacks of all moves of the break, in order.
fn recorded(traced: &Traced) -> Vec<(Stack, Option<String>)> {
    let recorded = Recorded::of(&traced.events);
    traced
        .events
        .iter()
        .filter(|event| event["event"] == "brk")
        .filter_map(|event| recorded.stack_of(event).cloned())
        .collect()
}

/// What gdb says of the same program; `None` where there is no gdb that can.
fn by_gdb(command: &[&str]) -> Option<Vec<Stack>> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/integration/stacks.gdb.py");
    let output = Command::new(installed(&["gdb"])?)
        .args(["-q", "--batch", "-nx", "-x"])
        .arg(script)
        .arg("--args")
        .args(command)
        .envs(SEEDS)
        .stdin(std::process::Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        text.lines().any(|line| line == "END"),
        "gdb failed: {text}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let mut stacks: Vec<Stack> = Vec::new();
    for line in text.lines() {
        if line == "STOP" {
            stacks.push(Stack::new());
        } else if let Some(frame) = line.strip_prefix("FRAME ") {
            stacks.last_mut().unwrap().push(frame.to_owned());
        }
    }
    Some(stacks)
}

#[track_caller]
fn expect_agreement(command: &[&str], at_least: usize) {
    if cfg!(not(target_arch = "x86_64")) {
        return not_here("the comparison with gdb knows the registers of x86-64 only");
    }
    if !can_fix_addresses() {
        return not_here("addresses cannot be fixed here");
    }
    let Some(expected) = by_gdb(command) else {
        return skip("gdb is not installed");
    };
    let seeds = SEEDS.map(|(name, value)| format!("{name}={value}"));
    let mut options = vec!["--stacks", "brk", "--stack-depth", "1000", "--no-aslr"];
    options.extend(seeds.iter().flat_map(|seed| ["--env", seed]));
    let found = recorded(&trace(&options, command));
    assert!(
        expected.len() >= at_least,
        "gdb saw {} moves only",
        expected.len()
    );
    assert_eq!(found.len(), expected.len(), "moves of the break");
    for (index, ((stack, truncated), expected)) in found.iter().zip(&expected).enumerate() {
        assert_eq!(stack, expected, "move {index} of {command:?}");
        assert_eq!(truncated, &None, "move {index} of {command:?}: {stack:#?}");
    }
}

/// Compiles a fixture; `None` where there is no such compiler.
fn built(compiler: &str, source: &str, flags: &[&str]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(source);
    let name = format!(
        "{}{}",
        source.file_name()?.to_string_lossy(),
        flags.concat().replace('/', "_")
    );
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let compiled = folder.path().join(&name);
    let output = Command::new(installed(&[compiler])?)
        .args(flags)
        .arg("-o")
        .arg(&compiled)
        .arg(&source)
        .output()
        .ok()?;
    if !output.status.success() {
        let _ = std::io::Write::write_all(&mut std::io::stderr(), &output.stderr);
        return None;
    }
    let place = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::rename(&compiled, &place).unwrap();
    Some(place)
}

const OPTIMIZED: [&str; 3] = ["-O2", "-fomit-frame-pointer", "-pthread"];

#[test]
fn stacks_of_a_c_program_are_those_that_gdb_sees() {
    let Some(program) = built("cc", "stacks.c", &OPTIMIZED) else {
        return skip("no C compiler");
    };
    expect_agreement(&[program.to_str().unwrap()], 14);
}

#[test]
fn stacks_of_a_cpp_program_are_those_that_gdb_sees() {
    let Some(program) = built("c++", "stacks.cpp", &OPTIMIZED) else {
        return skip("no C++ compiler");
    };
    expect_agreement(&[program.to_str().unwrap()], 5);
}

#[test]
fn stacks_of_a_rust_program_are_those_that_gdb_sees() {
    let Some(program) = built("rustc", "stacks_of_rust.rs", &["-O", "--edition=2024"]) else {
        return skip("no Rust compiler");
    };
    expect_agreement(&[program.to_str().unwrap()], 5);
}

#[test]
fn stacks_of_a_static_program_are_those_that_gdb_sees() {
    let flags = ["-O2", "-fomit-frame-pointer", "-pthread", "-static"];
    let Some(program) = built("cc", "stacks.c", &flags) else {
        return skip("cc cannot link statically");
    };
    expect_agreement(&[program.to_str().unwrap()], 14);
}

#[test]
fn stacks_of_python_are_those_that_gdb_sees() {
    let Some(python) = crate::support::python() else {
        return skip("python3 is not installed");
    };
    let script = "import json, re; x = [json.dumps({str(i): [i] * 9}) for i in range(9000)]; re.compile('(a|b)*' * 40)";
    let folder = folder();
    let file = folder.path().join("script.py");
    std::fs::write(&file, script).unwrap();
    expect_agreement(
        &[python.to_str().unwrap(), "-I", file.to_str().unwrap()],
        10,
    );
}

#[test]
fn stacks_of_perl_are_those_that_gdb_sees() {
    let Some(perl) = installed(&["perl"]) else {
        return skip("perl is not installed");
    };
    let script = "my %h; $h{$_} = [1 .. 9] for 1 .. 4000; my @s = sort { $h{$a}[0] <=> $h{$b}[0] } keys %h; eval 'sub f { 1 }' x 200";
    let folder = folder();
    let file = folder.path().join("script.pl");
    std::fs::write(&file, script).unwrap();
    expect_agreement(&[perl.to_str().unwrap(), file.to_str().unwrap()], 5);
}

/// The function that is named for each step of the break, in order.
fn culprits(traced: &Traced) -> Vec<String> {
    let stacks = traced.report.stacks.as_ref().unwrap();
    let space = traced.report.main().unwrap();
    space
        .program_break
        .steps
        .kept
        .iter()
        .filter_map(|step| {
            let stack = stacks
                .stacks
                .iter()
                .find(|stack| Some(stack.id) == step.stack)?;
            let culprit = stack.culprit?;
            let frame = &stacks.frames[stack.frames[culprit.depth as usize] as usize];
            Some(frame.functions.get(culprit.function as usize)?.name.clone())
        })
        .collect()
}

#[test]
fn libraries_that_come_and_go_at_one_address_keep_their_own_names() {
    let Some(program) = crate::support::compile("reload", &["-ldl"]) else {
        return skip("there is no C compiler");
    };
    let libraries = ["first_of_two", "other_of_two"].map(|name| {
        let function = format!("-DFUNCTION={name}");
        crate::support::compile("reload", &["-shared", "-fPIC", "-g", &function]).unwrap()
    });
    let traced = trace(&["--no-aslr"], [&program, &libraries[0], &libraries[1]]);
    traced.ended.expect_code(0);
    assert_eq!(
        traced.ended.fact("same_place"),
        "1",
        "the point of this test"
    );
    let culprits = culprits(&traced);
    let of_libraries: Vec<&String> = culprits
        .iter()
        .filter(|name| name.ends_with("_of_two"))
        .collect();
    assert_eq!(
        of_libraries,
        ["first_of_two", "other_of_two"],
        "{culprits:?}"
    );
}

#[test]
fn no_more_frames_are_recorded_than_asked_for_and_what_is_missing_is_said() {
    let traced = trace(&["--stack-depth", "3"], [fixture("brk_moves")]);
    let stacks = traced.report.stacks.as_ref().unwrap();
    assert!(stacks.truncated > 0);
    for stack in &stacks.stacks {
        assert!(stack.frames.len() <= 3);
        let is_cut = stack.truncated == Some(breaktrace::event::Truncation::Depth);
        assert!(is_cut || stack.frames.len() < 3, "{stack:?}");
    }
}

#[test]
fn stacks_are_recorded_of_what_was_asked_for() {
    for (mode, of_break, of_mmap) in [
        ("off", false, false),
        ("brk", true, false),
        ("all", true, true),
    ] {
        let traced = trace(&["--stacks", mode], [fixture("brk_moves")]);
        let has = |call: &str| {
            let mut calls = traced.events.iter().filter(|event| event["event"] == call);
            calls.any(|event| event["stack"].is_number())
        };
        assert_eq!((has("brk"), has("mmap")), (of_break, of_mmap), "{mode}");
        assert_eq!(traced.report.stacks.is_some(), mode != "off");
    }
}

/// Functions of generated code in any stack.
fn generated(traced: &Traced) -> Vec<String> {
    let stacks = traced.report.stacks.as_ref().unwrap();
    let is_generated = |frame: &&breaktrace::report::StackFrame| {
        frame
            .module
            .and_then(|module| stacks.modules.get(module as usize))
            .is_some_and(|module| module.kind == breaktrace::event::ModuleKind::Generated)
    };
    stacks
        .frames
        .iter()
        .filter(is_generated)
        .flat_map(|frame| &frame.functions)
        .map(|function| function.name.clone())
        .collect()
}

#[test]
fn functions_that_node_compiled_are_named() {
    let Some(node) = installed(&["node"]) else {
        return skip("node is not installed");
    };
    let folder = folder();
    let script = folder.path().join("grow.js");
    let log = format!("--logfile={}", folder.path().join("v8.log").display());
    std::fs::write(
        &script,
        "function growTable(n) { const all = []; for (let i = 0; i < n; i++) all.push(Buffer.alloc(200000)); \
         return all; }\nlet kept; for (let i = 0; i < 600; i++) kept = growTable(20);\nconsole.log(kept.length);\n",
    )
    .unwrap();
    let traced = crate::support::trace_unchecked(
        &[],
        [
            node.as_os_str(),
            "--perf-basic-prof".as_ref(),
            // Functions that are not compiled yet have code of their own as well.
            "--interpreted-frames-native-stack".as_ref(),
            // Otherwise one is left where the tests run.
            "--no-logfile-per-isolate".as_ref(),
            log.as_ref(),
            script.as_os_str(),
        ],
    );
    traced.ended.expect_code(0);
    let names = generated(&traced);
    assert!(
        names.iter().any(|name| name.contains("growTable")),
        "{names:?}"
    );
}
