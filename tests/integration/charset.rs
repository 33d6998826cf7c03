//! Which characters text is written in: by the locale, and without one by where it goes.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::process::Stdio;

use crate::progress::Terminal;
use crate::support::LOCALE;
use crate::support::breaktrace;
use crate::support::finish;
use crate::support::folder;

/// A recording of programs whose names are not ASCII.
fn recorded(folder: &Path) -> String {
    let script = folder.join("堆積.sh");
    fs::write(&script, "echo $1 >/dev/null\n").unwrap();
    let report = folder.join("r.json").to_str().unwrap().to_owned();
    let command = format!("sh '{0}' größe; sh '{0}' ordinary; :", script.display());
    finish(breaktrace().args(["run", "-q", "-o", &report, "sh", "-c", &command])).expect_code(0);
    report
}

/// breaktrace in this locale alone.
fn breaktrace_in(locale: &[(&str, &str)]) -> Command {
    let mut command = breaktrace();
    for name in LOCALE {
        command.env_remove(name);
    }
    command.envs(locale.iter().copied());
    command
}

fn to_terminal(words: &[&str], locale: &[(&str, &str)]) -> String {
    let terminal = Terminal::open();
    let mut command = breaktrace_in(locale);
    let status = command
        .args(words)
        .env("TERM", "xterm")
        .stdin(Stdio::null())
        .stdout(terminal.end())
        .stderr(terminal.end());
    let mut child = status.spawn().unwrap();
    // It holds the terminal open as well.
    drop(command);
    let shown = terminal.read();
    assert!(child.wait().unwrap().success());
    shown.whole()
}

fn to_pipe(words: &[&str], locale: &[(&str, &str)]) -> String {
    let ended = finish(breaktrace_in(locale).args(words));
    ended.expect_code(0);
    ended.stdout
}

#[test]
fn a_terminal_gets_ascii_unless_the_locale_has_utf_8() {
    let folder = folder();
    let report = recorded(folder.path());
    let words = ["report", &report];
    for locale in [&[][..], &[("LC_ALL", "C")], &[("LANG", "de_DE")]] {
        let text = to_terminal(&words, locale);
        assert!(text.is_ascii(), "{locale:?}: {text}");
        assert!(text.contains(r"gr\u{f6}\u{df}e"), "{text}");
        assert!(text.contains('#'), "{text}");
    }
    let text = to_terminal(&words, &[("LANG", "C"), ("LC_CTYPE", "C.UTF-8")]);
    assert!(text.contains("größe") && text.contains('█'), "{text}");
}

#[test]
fn pipes_and_files_get_utf_8_unless_a_locale_is_set_that_has_none() {
    let folder = folder();
    let report = recorded(folder.path());
    let file = folder.path().join("r.txt").to_str().unwrap().to_owned();
    let words = ["report", &report];
    let into_file = ["report", &report, "-o", &file];
    for locale in [&[][..], &[("LC_ALL", "C.UTF-8")]] {
        let text = to_pipe(&words, locale);
        assert!(text.contains("größe") && text.contains('█'), "{text}");
        to_pipe(&into_file, locale);
        assert_eq!(fs::read_to_string(&file).unwrap(), text);
    }
    let text = to_pipe(&words, &[("LC_ALL", "C"), ("LANG", "C.UTF-8")]);
    assert!(text.is_ascii(), "{text}");
    to_pipe(&into_file, &[("LC_ALL", "C")]);
    assert!(fs::read_to_string(&file).unwrap().is_ascii());
}

#[test]
fn what_other_programs_read_is_the_same_in_every_locale() {
    let folder = folder();
    let report = recorded(folder.path());
    for format in ["json", "csv", "folded", "svg", "html"] {
        let words = ["report", &report, "--format", format];
        let text = to_pipe(&words, &[]);
        assert!(!text.is_empty());
        assert_eq!(text, to_pipe(&words, &[("LC_ALL", "C")]), "{format}");
    }
}

#[test]
fn other_commands_and_messages_keep_to_ascii_too() {
    let folder = folder();
    let report = recorded(folder.path());
    let locale = [("LC_ALL", "C")];
    for words in [
        &["doctor"][..],
        &["demo"],
        &["metrics"],
        &["diff", &report, &report],
        &["--help"],
        &["run", "--help"],
    ] {
        let ended = finish(breaktrace_in(&locale).args(words));
        assert!(ended.stdout.is_ascii(), "{words:?}: {}", ended.stdout);
        assert!(ended.stderr.is_ascii(), "{words:?}: {}", ended.stderr);
    }
    let ended = finish(breaktrace_in(&locale).args(["report", "größe.json"]));
    assert_ne!(ended.ending().0, Some(0));
    assert!(ended.stderr.is_ascii(), "{}", ended.stderr);
    assert!(
        ended.stderr.contains(r"gr\u{f6}\u{df}e.json"),
        "{}",
        ended.stderr
    );
}

#[test]
fn wide_characters_do_not_break_columns() {
    let folder = folder();
    let report = recorded(folder.path());
    let text = finish(
        breaktrace()
            .args(["report", "-v", &report])
            .env("COLUMNS", "80"),
    )
    .stdout;
    // Python counts columns without us.
    let Some(python) = crate::support::python() else {
        return;
    };
    let count = "
import sys, unicodedata
def columns(text): return sum(2 if unicodedata.east_asian_width(c) in 'WF' else 1 for c in text)
ends = set()
for line in sys.stdin.buffer.read().decode().splitlines():
    if columns(line) > 80: print('too long:', line)
    if line.endswith('exit 0') and line.lstrip()[0].isdigit(): ends.add(columns(line))
print(len(ends))
";
    let input = folder.path().join("text");
    fs::write(&input, text).unwrap();
    let counted = finish(
        Command::new(python)
            .args(["-c", count])
            .stdin(fs::File::open(&input).unwrap()),
    );
    assert_eq!(
        counted.stdout,
        "1\n",
        "{}",
        fs::read_to_string(&input).unwrap()
    );
}
