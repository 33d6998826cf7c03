//! Names of generated code, out of the files that just-in-time compilers write; and what else may lie in their place.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::event::ModuleKind;

use crate::support::Traced;
use crate::support::compile;
use crate::support::folder;
use crate::support::installed;
use crate::support::skip;
use crate::support::trace;
use crate::support::trace_unchecked;

/// Removes the files that the programs of a recording may have left in `/tmp`.
struct Tidy(Vec<PathBuf>);

impl Tidy {
    fn after(traced: &Traced) -> Self {
        let pids = traced
            .events
            .iter()
            .filter_map(|event| event["pid"].as_u64());
        let mut files: Vec<PathBuf> = pids
            .flat_map(|pid| ["", ".elsewhere"].map(|end| format!("/tmp/perf-{pid}.map{end}")))
            .map(PathBuf::from)
            .collect();
        files.dedup();
        Self(files)
    }
}

impl Drop for Tidy {
    fn drop(&mut self) {
        for file in &self.0 {
            let _ = std::fs::remove_file(file).or_else(|_| std::fs::remove_dir(file));
        }
    }
}

/// Names of generated code in all stacks, and how many places in it have none.
fn generated(traced: &Traced) -> (Vec<String>, usize) {
    let stacks = traced.report.stacks.as_ref().unwrap();
    let frames: Vec<_> = stacks
        .frames
        .iter()
        .filter(|frame| {
            frame
                .module
                .and_then(|module| stacks.modules.get(module as usize))
                .is_some_and(|module| module.kind == ModuleKind::Generated)
        })
        .collect();
    let names = frames
        .iter()
        .flat_map(|frame| &frame.functions)
        .map(|function| function.name.clone())
        .collect();
    let nameless = frames
        .iter()
        .filter(|frame| frame.functions.is_empty())
        .count();
    (names, nameless)
}

/// Whether a stack leads through generated code, named or not, to `main`.
fn leads_to_main(traced: &Traced) -> bool {
    let stacks = traced.report.stacks.as_ref().unwrap();
    stacks.stacks.iter().any(|stack| {
        let frames: Vec<_> = stack
            .frames
            .iter()
            .map(|frame| &stacks.frames[*frame as usize])
            .collect();
        let is_generated = |index: Option<u32>| {
            index.is_some_and(|index| stacks.modules[index as usize].kind == ModuleKind::Generated)
        };
        let inner = frames.iter().position(|frame| is_generated(frame.module));
        inner.is_some_and(|inner| {
            frames[inner..]
                .iter()
                .flat_map(|frame| &frame.functions)
                .any(|function| function.name == "main")
        })
    })
}

/// Runs the fixture that generates code.
fn with_map(how: &str) -> Option<Traced> {
    let program = compile("generated_code", &["-g"])?;
    let traced = trace(&[], [program.as_os_str(), how.as_ref()]);
    drop(Tidy::after(&traced));
    Some(traced)
}

#[track_caller]
fn expect_named(how: &str) {
    let Some(traced) = with_map(how) else {
        return skip("there is no C compiler");
    };
    traced.ended.expect_code(0);
    let found = generated(&traced);
    assert_eq!(found, (vec!["generated_function".to_owned()], 0), "{how}");
    assert!(leads_to_main(&traced), "{how}");
}

#[track_caller]
fn expect_nameless(how: &str) {
    let Some(traced) = with_map(how) else {
        return skip("there is no C compiler");
    };
    if how == "strangers" && traced.ended.ending() == (Some(4), None) {
        return crate::support::not_here("only root can give files away");
    }
    traced.ended.expect_code(0);
    let (names, nameless) = generated(&traced);
    assert!(names.is_empty(), "{how}: {names:?}");
    assert_eq!(nameless, 1, "{how}");
    assert!(leads_to_main(&traced), "{how}");
}

#[test]
fn generated_code_has_the_name_that_its_program_wrote_down() {
    expect_named("named");
}

#[test]
fn a_forked_child_has_the_names_of_the_code_that_it_inherited() {
    expect_named("forked");
}

#[test]
fn names_are_read_before_exec_throws_the_code_away() {
    expect_named("executed");
}

#[test]
fn lines_that_make_no_sense_cost_nothing_but_themselves() {
    expect_named("garbage");
}

#[test]
fn of_lines_that_overlap_the_last_one_holds() {
    expect_named("overlapping");
}

#[test]
fn names_that_are_no_text_are_shown_as_far_as_they_are() {
    let Some(traced) = with_map("binary") else {
        return skip("there is no C compiler");
    };
    let (names, _) = generated(&traced);
    assert_eq!(
        names,
        ["generated\u{fffd}\u{fffd}\u{1b}[31m\u{fffd}_function"]
    );
}

#[test]
fn without_a_usable_file_the_code_has_no_name_and_its_stacks_are_whole() {
    for how in [
        "none",
        "gone",
        "sparse",
        "fifo",
        "folder",
        "link",
        "strangers",
    ] {
        expect_nameless(how);
    }
}

/// The Pythons that can write down where their functions lie: from 3.12 on.
fn pythons_with_perf() -> Vec<PathBuf> {
    let home = std::env::var_os("HOME").unwrap_or_default();
    let versions = std::env::var_os("PYENV_ROOT")
        .map_or_else(|| Path::new(&home).join(".pyenv"), PathBuf::from)
        .join("versions");
    let built = std::fs::read_dir(versions)
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin/python3"));
    let usual = ["python3.12", "python3.13", "python3"];
    built
        .chain(usual.iter().filter_map(|name| installed(&[name])))
        .filter(|python| {
            Command::new(python)
                .args([
                    "-X",
                    "perf",
                    "-c",
                    "import sys; assert sys.version_info >= (3, 12)",
                ])
                .output()
                .is_ok_and(|output| output.status.success())
        })
        .collect()
}

#[test]
fn functions_of_python_are_named_by_its_own_map_as_well() {
    let pythons = pythons_with_perf();
    if pythons.is_empty() {
        return crate::support::not_here("no Python is new enough for -X perf");
    }
    let folder = folder();
    let script = folder.path().join("grow.py");
    std::fs::write(
        &script,
        "def grow_table(n):\n    return [bytearray(300000 + i) for i in range(n)]\n\nkept = grow_table(64)\nprint(len(kept))\n",
    )
    .unwrap();
    for python in pythons {
        let traced = trace_unchecked(
            &[],
            [
                python.as_os_str(),
                "-X".as_ref(),
                "perf".as_ref(),
                script.as_os_str(),
            ],
        );
        traced.ended.expect_code(0);
        drop(Tidy::after(&traced));
        let (names, _) = generated(&traced);
        let wanted = format!("py::grow_table:{}", script.display());
        assert!(names.contains(&wanted), "{}: {names:?}", python.display());
    }
}
