//! Call stacks against gdb's, and what becomes of them when programs do odd things.

use std::collections::HashMap;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use crate::support::Traced;
use crate::support::can_fix_addresses;
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
