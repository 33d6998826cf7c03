//! Whom a report names: functions, files and lines, held against the source.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use breaktrace::report::CallPath;
use breaktrace::report::Report;
use breaktrace::symbols::SymbolSource;

use crate::support::Files;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;
use crate::support::installed;
use crate::support::python;
use crate::support::skip;
use crate::support::trace;

pub(crate) fn source(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/culprits")
        .join(name)
}

/// Function and line of each mark in a source file: `culprit: NAME`.
pub(crate) fn marks(source: &Path, word: &str) -> Vec<(String, u32)> {
    let text = std::fs::read_to_string(source).unwrap();
    text.lines()
        .zip(1..)
        .filter_map(|(line, number)| {
            let (_, name) = line.split_once(word)?;
            let name = name.trim().trim_end_matches("*/").trim();
            Some((name.to_owned(), number))
        })
        .collect()
}

pub(crate) fn paths(report: &Report) -> impl Iterator<Item = &CallPath> {
    report
        .address_spaces
        .iter()
        .flat_map(|space| &space.call_paths)
}

/// Builds a program, without frame pointers, so that only unwind information tells its stacks.
pub(crate) fn build(source: &Path, into: &Path) -> Option<PathBuf> {
    let extension = source.extension()?.to_str()?;
    let program = into.join(format!("table_of_{extension}"));
    let mut command = match extension {
        "c" => Command::new(installed(&["cc"])?),
        "cpp" => Command::new(installed(&["c++", "g++"])?),
        _ => Command::new(installed(&["rustc"])?),
    };
    if extension == "rs" {
        command.args(["-O", "-g", "--edition", "2021"]);
    } else {
        command.args(["-O2", "-g", "-fomit-frame-pointer"]);
    }
    let output = command
        .arg("-o")
        .arg(&program)
        .arg(source)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(program)
}

/// Each marked line made memory grow and is named, and the report has no other functions of that file at other lines.
#[track_caller]
pub(crate) fn expect_marks(report: &Report, source: &Path) {
    let marks = marks(source, "culprit: ");
    assert!(marks.len() >= 3, "{marks:?}");
    for (name, line) in &marks {
        let is_named = paths(report).any(|path| {
            path.culprit.as_ref().is_some_and(|culprit| {
                culprit.name.contains(name.as_str())
                    && culprit.line == Some(*line)
                    && culprit
                        .file
                        .as_deref()
                        .is_some_and(|file| Path::new(file).file_name() == source.file_name())
            }) && path.growth.grown_bytes >= 100 << 10
        });
        assert!(
            is_named,
            "nobody names {name} at line {line}: {:#?}",
            paths(report)
                .map(|path| (&path.culprit, &path.path, path.growth.grown_bytes))
                .collect::<Vec<_>>()
        );
    }
}

#[track_caller]
fn expect_marks_of(name: &str) {
    let folder = folder();
    let source = source(name);
    let Some(program) = build(&source, folder.path()) else {
        return skip("there is no compiler for it");
    };
    let traced = trace(&[], [&program]);
    traced.ended.expect_code(0);
    expect_marks(&traced.report, &source);
}

#[test]
fn a_c_program_is_named_where_it_asks_through_helpers() {
    expect_marks_of("table.c");
}

#[test]
fn a_cpp_program_is_named_where_it_uses_containers_and_inlined_functions() {
    expect_marks_of("table.cpp");
}

#[test]
fn a_rust_program_is_named_where_it_uses_containers_and_inlined_functions() {
    expect_marks_of("table.rs");
}

#[test]
fn a_python_program_is_named_by_its_functions_and_lines() {
    let Some(python) = python() else {
        return skip("python3 is not installed");
    };
    let source = source("table.py");
    let traced = trace(&[], [python.as_os_str(), source.as_os_str()]);
    traced.ended.expect_code(0);
    expect_marks(&traced.report, &source);
}

#[test]
fn who_gives_memory_back_is_named_as_well() {
    let folder = folder();
    let source = source("table.c");
    let Some(program) = build(&source, folder.path()) else {
        return skip("there is no C compiler");
    };
    let traced = trace(&[], [&program]);
    let [(name, line)] = &marks(&source, "gives back: ")[..] else {
        panic!("one mark");
    };
    let by = paths(&traced.report)
        .filter(|path| path.growth.returned_bytes >= 3 << 20)
        .filter_map(|path| path.culprit.as_ref())
        .map(|by| (&by.name, by.line))
        .collect::<Vec<_>>();
    assert!(by.contains(&(name, Some(*line))), "{by:?}");
}

/// The compiler has no debug information; its names are in its dynamic symbol table.
#[test]
fn what_is_named_of_gcc_is_a_function_of_gcc_and_none_of_its_allocators() {
    let (Some(gcc), Some(nm)) = (installed(&["gcc"]), installed(&["nm"])) else {
        return skip("gcc or nm is not installed");
    };
    let folder = folder();
    let object = folder.path().join("table.o");
    let traced = trace(
        &[],
        [
            gcc.as_os_str(),
            "-O2".as_ref(),
            "-c".as_ref(),
            source("table.c").as_os_str(),
            "-o".as_ref(),
            object.as_os_str(),
        ],
    );
    traced.ended.expect_code(0);
    let stacks = traced.report.stacks.as_ref().unwrap();
    let Some(module) = stacks
        .modules
        .iter()
        .find(|module| module.path.ends_with("/cc1"))
    else {
        panic!("no stack leads through cc1");
    };
    if module.symbols.source != SymbolSource::Names {
        return skip("this gcc has debug information, or nothing at all");
    }
    let names = Command::new(nm)
        .args(["-D", "-C"])
        .arg(&module.path)
        .output()
        .unwrap();
    let names = String::from_utf8_lossy(&names.stdout);
    let of_gcc: Vec<&CallPath> = paths(&traced.report)
        .filter(|path| {
            path.path
                .first()
                .is_some_and(|step| step.ends_with(" (cc1)"))
        })
        .collect();
    assert!(of_gcc.len() > 5, "{of_gcc:#?}");
    for path in of_gcc {
        let name = &path.culprit.as_ref().unwrap().name;
        assert!(
            names.lines().any(|line| line.ends_with(name.as_str())),
            "{name} is no function of cc1"
        );
        let helpers = [
            "xmalloc",
            "xrealloc",
            "xcalloc",
            "malloc",
            "operator new",
            "ggc_internal",
        ];
        assert!(
            !helpers.iter().any(|helper| name.starts_with(helper)),
            "{name}"
        );
    }
}

#[test]
fn a_replayed_log_gives_the_very_same_report() {
    let folder = folder();
    let source = |name| source(name).into_os_string();
    let commands = [
        python().map(|python| vec![python.into_os_string(), source("table.py")]),
        installed(&["gcc"]).map(|gcc| {
            let object = folder.path().join("table.o").into_os_string();
            let arguments = ["-O2".into(), "-c".into(), source("table.c"), "-o".into()];
            [gcc.into_os_string()]
                .into_iter()
                .chain(arguments)
                .chain([object])
                .collect()
        }),
    ];
    for command in commands.into_iter().flatten() {
        let files = Files::within(folder.path());
        finish(
            breaktrace()
                .arg("run")
                .args(files.options())
                .arg("--")
                .args(&command),
        )
        .expect_code(0);
        let live = std::fs::read_to_string(&files.report).unwrap();
        finish(
            breaktrace()
                .arg("report")
                .arg(&files.events)
                .arg("-o")
                .arg(&files.report),
        )
        .expect_code(0);
        let replayed = std::fs::read_to_string(&files.report).unwrap();
        assert!(live == replayed, "{command:?}");
        let report = files.report();
        let growth: u64 = paths(&report).map(|path| path.growth.grown_bytes).sum();
        let totals = &report.totals;
        assert!(growth >= totals.break_grown_bytes + totals.anonymous_grown_bytes);
        let returned: u64 = paths(&report).map(|path| path.growth.returned_bytes).sum();
        assert_eq!(
            returned,
            totals.break_shrunk_bytes + totals.anonymous_shrunk_bytes
        );
    }
}
