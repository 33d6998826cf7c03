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
            let command = line.split("   ").next().unwrap();
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

#[test]
fn the_examples_of_the_help_are_understood() {
    let mut tried = 0;
    let overview = printed(&["--help"]);
    let commands = [
        "run",
        "attach",
        "compare",
        "heap",
        "report",
        "check",
        "diff",
        "demo",
        "doctor",
        "completions",
        "man",
    ];
    let helps = commands.iter().map(|command| printed(&[command, "--help"]));
    let all: String = std::iter::once(overview).chain(helps).collect();
    for example in examples(&all) {
        // With --help behind the options, the command line is taken apart and nothing runs.
        let end = example
            .iter()
            .position(|word| word == "--")
            .unwrap_or(example.len());
        let mut words = example[..end].to_vec();
        words.push("--help".to_owned());
        let output = breaktrace().args(&words).output().unwrap();
        assert!(
            output.status.success(),
            "{example:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        tried += 1;
    }
    assert!(tried > 15, "{tried}");
}
