//! What is generated from the command line's definition, and the examples in its help.

use std::io::Write;
use std::process::Command;
use std::process::Stdio;

use crate::support::breaktrace;
use crate::support::installed;
use crate::support::skip;

fn printed(arguments: &[&str]) -> String {
    let output = breaktrace().args(arguments).output().unwrap();
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn bash_completes_commands_and_options() {
    if installed(&["bash"]).is_none() {
        return skip("bash is missing");
    }
    let script = printed(&["completions", "bash"]);
    let asked = "\nCOMP_WORDS=(breaktrace he); COMP_CWORD=1; _breaktrace breaktrace he breaktrace; echo ${COMPREPLY[@]}\n\
                 COMP_WORDS=(breaktrace run --no-as); COMP_CWORD=2; _breaktrace breaktrace --no-as run; echo ${COMPREPLY[@]}\n";
    let mut bash = Command::new("bash")
        .args(["--norc", "--noprofile"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = bash.stdin.take().unwrap();
    input.write_all((script + asked).as_bytes()).unwrap();
    drop(input);
    let output = bash.wait_with_output().unwrap();
    let answer = String::from_utf8_lossy(&output.stdout).into_owned();
    let mut lines = answer.lines();
    assert!(lines.next().unwrap().contains("heap"), "{answer}");
    assert!(lines.next().unwrap().contains("--no-aslr"), "{answer}");
}

#[test]
fn every_shell_gets_completions_that_name_the_commands() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = printed(&["completions", shell]);
        for command in ["run", "attach", "heap", "check", "diff"] {
            assert!(script.contains(command), "{shell}: {command}");
        }
    }
}

#[test]
fn manual_pages_are_there_for_each_command_and_are_whole() {
    let folder = tempfile::tempdir().unwrap();
    printed(&["man", "--dir", folder.path().to_str().unwrap()]);
    let pages: Vec<_> = std::fs::read_dir(folder.path())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    assert!(pages.len() > 10, "{pages:?}");
    let run = std::fs::read_to_string(folder.path().join("breaktrace-run.1")).unwrap();
    assert!(run.contains("baseline"), "{run}");
    assert_eq!(printed(&["man", "run"]), run);
    let unknown = breaktrace().args(["man", "rum"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    let Some(groff) = installed(&["groff"]) else {
        return skip("groff is missing");
    };
    for page in pages {
        let output = Command::new(&groff)
            .args(["-man", "-ww", "-z", "-Tutf8"])
            .arg(&page)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", page.display());
    }
}

/// The examples of a help text: lines that begin with `breaktrace`, without what explains them.
fn examples(help: &str) -> Vec<Vec<String>> {
    let sections = help.split("Examples:\n").skip(1);
    let lines = sections.flat_map(|section| section.lines().take_while(|line| !line.is_empty()));
    lines
        .map(str::trim)
        .filter(|line| line.starts_with("breaktrace "))
        .map(|line| {
            let command = line.split("  ").next().unwrap();
            let command = command
                .split(" | ")
                .next()
                .unwrap()
                .split(" > ")
                .next()
                .unwrap();
            let command = command.replace("$(pidof redis-server)", "4242");
            command
                .split_whitespace()
                .skip(1)
                .map(str::to_owned)
                .collect()
        })
        .collect()
}

/// A folder in which the examples find what they name.
fn workshop() -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name);
    for program in ["main", "app"] {
        std::fs::copy(installed(&["true"]).unwrap(), path(program)).unwrap();
    }
    std::fs::write(path("build.py"), "print('built')\n").unwrap();
    std::fs::write(path("Makefile"), "all:\n\t@./main\n").unwrap();
    std::fs::write(path("heap.toml"), "[limits]\n\"break.peak\" = \"+5%\"\n").unwrap();
    let prepare = |words: &[&str]| {
        let output = breaktrace()
            .args(words)
            .current_dir(&folder)
            .output()
            .unwrap();
        assert!(output.status.success(), "{words:?}: {output:?}");
    };
    prepare(&["run", "-q", "--save-baseline", "b.json", "--", "./main"]);
    let measured = ["run", "-q", "--no-aslr", "-o", "report.json"];
    prepare(&[&measured[..], &["--", "./app", "--self-test"]].concat());
    folder
}

#[test]
fn the_examples_of_the_help_do_what_they_say() {
    let overview = printed(&["--help"]);
    let commands = ["run", "check", "compare", "report", "demo"];
    let helps = commands.iter().map(|command| printed(&[command, "--help"]));
    let all: String = std::iter::once(overview).chain(helps).collect();
    let folder = workshop();
    let mut ran = 0;
    for example in examples(&all) {
        // Process 4242 is nobody, and what is installed is not ours to change.
        let is_about_others = ["attach", "heap", "man", "completions"]
            .iter()
            .any(|command| example[0] == *command);
        let program = example.iter().skip_while(|word| *word != "--").nth(1);
        let is_there = |program: &String| {
            program.starts_with("./") || installed(&[program.as_str()]).is_some()
        };
        if is_about_others || !program.is_none_or(is_there) {
            continue;
        }
        // `--save-baseline heap.json` comes before what reads it; `run -o heap.json` writes a report there.
        if example.contains(&"--save-baseline".to_owned()) {
            let _ = std::fs::remove_file(folder.path().join("heap.json"));
        }
        let output = breaktrace()
            .args(&example)
            .current_dir(&folder)
            .output()
            .unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{example:?}: {stderr}");
        ran += 1;
    }
    assert!(ran > 8, "{ran}");
}
