//! Stacks of related processes, of libraries whose files change under them, and of more places than are remembered.

use std::path::PathBuf;

use breaktrace::report::Report;

use crate::support::Traced;
use crate::support::compile;
use crate::support::folder;
use crate::support::skip;
use crate::support::trace;

/// The functions of the stack of each step of the break, innermost first, by address space; a frame without a name has its
/// module's.
fn paths(report: &Report) -> Vec<Vec<Vec<String>>> {
    let stacks = report.stacks.as_ref().unwrap();
    let names = |frame: u32| {
        let frame = &stacks.frames[frame as usize];
        let module = frame
            .module
            .map(|module| stacks.modules[module as usize].path.clone());
        match frame.functions.is_empty() {
            true => module.into_iter().collect(),
            false => frame
                .functions
                .iter()
                .map(|function| function.name.clone())
                .collect::<Vec<String>>(),
        }
    };
    let path = |id| {
        let stack = stacks.stacks.iter().find(|stack| Some(stack.id) == id)?;
        Some(
            stack
                .frames
                .iter()
                .flat_map(|frame| names(*frame))
                .collect(),
        )
    };
    report
        .address_spaces
        .iter()
        .map(|space| {
            let steps = &space.program_break.steps.kept;
            steps.iter().filter_map(|step| path(step.stack)).collect()
        })
        .collect()
}

#[test]
fn stacks_of_children_threads_and_new_programs_are_their_own() {
    let Some(program) = compile("relatives", &["-g", "-pthread"]) else {
        return skip("there is no C compiler");
    };
    let traced = trace(&[], [&program]);
    traced.ended.expect_code(0);
    let paths = paths(&traced.report);
    let functions = [
        "in_forked_child",
        "in_vforked_child",
        "in_thread",
        "in_parent",
        "in_new_program",
    ];
    // By address space: which of them have moved its break, in order.
    let mut found: Vec<Vec<&str>> = paths
        .iter()
        .map(|steps| {
            steps
                .iter()
                .filter_map(|path| {
                    let at = path.iter().position(|name| name == "move_break")?;
                    let caller = path.get(at + 1)?;
                    let function = functions.iter().find(|function| *function == caller)?;
                    let root = if *function == "in_thread" {
                        "thread"
                    } else {
                        "main"
                    };
                    assert!(path[at..].iter().any(|name| name == root), "{path:?}");
                    Some(*function)
                })
                .collect()
        })
        .collect();
    found.sort();
    assert_eq!(
        found,
        [
            vec!["in_forked_child"],
            vec!["in_new_program"],
            vec!["in_vforked_child", "in_thread", "in_parent"],
        ],
        "{paths:#?}"
    );
}

/// Runs the fixture that damages its library, on copies of two libraries.
fn with_damage(how: &str) -> Option<(Traced, PathBuf)> {
    let program = compile("library_damaged", &["-g", "-ldl"])?;
    let folder = folder();
    let place = |name: &str| folder.path().join(name);
    for name in ["right_name", "wrong_name"] {
        let function = format!("-DFUNCTION={name}");
        let flags = [
            "-shared",
            "-fPIC",
            "-g",
            "-O1",
            "-fomit-frame-pointer",
            &function,
        ];
        let library = compile("library_damaged", &flags)?;
        std::fs::copy(library, place(name)).unwrap();
    }
    let library = place("right_name");
    let traced = trace(
        &[],
        [
            program.as_os_str(),
            library.as_os_str(),
            how.as_ref(),
            place("wrong_name").as_os_str(),
        ],
    );
    traced.ended.expect_code(0);
    assert_eq!(traced.ended.stdout, "done\n");
    Some((traced, library))
}

/// The stack that begins in the library.
fn of_library(traced: &Traced, library: &std::path::Path) -> Vec<String> {
    let stacks = traced.report.stacks.as_ref().unwrap();
    let is_it = |frame: u32| {
        stacks.frames[frame as usize]
            .module
            .is_some_and(|module| stacks.modules[module as usize].path == library.to_string_lossy())
    };
    let index = stacks
        .stacks
        .iter()
        .find(|stack| stack.frames.first().is_some_and(|frame| is_it(*frame)))
        .map(|stack| stack.id);
    let mut all = paths(&traced.report).into_iter().flatten();
    assert!(index.is_some(), "{:#?}", all.collect::<Vec<_>>());
    let library = library.to_string_lossy();
    all.rfind(|path| {
        path.iter()
            .any(|name| *name == library || name == "right_name" || name == "wrong_name")
    })
    .unwrap()
}

#[test]
fn a_library_whose_file_is_gone_is_unwound_by_what_is_left_in_memory() {
    for how in ["sound", "deleted", "replaced"] {
        let Some((traced, library)) = with_damage(how) else {
            return skip("there is no C compiler");
        };
        let path = of_library(&traced, &library);
        let tail: Vec<&str> = path
            .iter()
            .map(String::as_str)
            .skip_while(|name| *name != "run")
            .take(2)
            .collect();
        assert_eq!(tail, ["run", "main"], "{how}: {path:?}");
        assert!(!path.iter().any(|name| name == "wrong_name"), "{path:?}");
        if how == "sound" {
            assert!(path.iter().any(|name| name == "right_name"), "{path:?}");
        }
    }
}

#[test]
fn a_library_whose_file_is_cut_or_overwritten_costs_its_frames_and_nothing_else() {
    for how in ["cut", "overwritten"] {
        let Some((traced, library)) = with_damage(how) else {
            return skip("there is no C compiler");
        };
        // Frames of other modules are as they were: loading the library needed memory.
        let paths = paths(&traced.report).concat();
        assert!(
            paths
                .iter()
                .any(|path| path.iter().any(|name| name == "main")),
            "{how}: {paths:?}"
        );
        of_library(&traced, &library);
    }
}
