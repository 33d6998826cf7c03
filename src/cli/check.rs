//! `check`: is a recording worse than it may be?

use std::io;
use std::io::Write;
use std::path::Path;

use super::Ending;
use super::Failure;
use super::USAGE;
use super::args;
use super::gate::Gate;
use super::gate::NO_BASELINE;
use super::gate::Shown;
use super::gate::begins_with_schema;
use super::gate::read_baseline;
use super::gate::read_text;
use super::gate::save_baseline;
use super::inspect;
use super::output::excuse_closed_pipe;
use super::symbols;
use crate::event::Outcome;
use crate::event_log::FileKind;
use crate::render;
use crate::render::TextOptions;
use crate::report::HEAP_SCHEMA_NAME;
use crate::report::HeapDocument;
use crate::report::Report;
use crate::report::gate;
use crate::report::gate::Baseline;
use crate::report::gate::LARGEST_BASELINE;
use crate::report::gate::Subject;

/// `breaktrace check`.
pub(super) fn check(arguments: &args::Check) -> Result<Ending, Failure> {
    if arguments.update {
        return update(arguments);
    }
    let gate = Gate::prepare(
        &arguments.gate,
        arguments.gate.baseline.as_deref(),
        &arguments.output,
        Shown {
            to_stdout: true,
            json: arguments.json,
            verbose: arguments.verbose,
        },
    )?;
    if gate.is_empty() {
        return Err(
            Failure::new("there is neither a baseline nor a limit to hold it against")
                .hint("--baseline FILE, --limits FILE, --limit METRIC=LIMIT or --max METRIC=VALUE")
                .code(USAGE),
        );
    }
    let subject = subject(arguments)?;
    gate.judge(&subject)
}

/// Sums up the files.
fn subject(arguments: &args::Check) -> Result<Subject, Failure> {
    if let [file] = arguments.files.as_slice()
        && let Some(document) = heap_document(file)?
    {
        return Ok(Subject::of_heap(&document));
    }
    let mut reports = Vec::new();
    for file in &arguments.files {
        reports.push(read(file)?);
    }
    let names: Vec<String> = arguments
        .files
        .iter()
        .map(|file| format!("`{}`", file.display()))
        .collect();
    Subject::of(&reports)
        .map_err(|unfit| Failure::new(format!("cannot judge {}: {unfit}", names.join(", "))))
}

/// Reads a recording; call paths are named, whichever file it was.
pub(super) fn read(file: &Path) -> Result<Report, Failure> {
    let (kind, mut report) = inspect::read(file)?;
    if kind == FileKind::EventLog {
        symbols::complete(&mut report, &args::SymbolOptions::default());
    }
    Ok(report)
}

/// A look through a heap, if the file holds one.
fn heap_document(file: &Path) -> Result<Option<HeapDocument>, Failure> {
    if !begins_with_schema(file, HEAP_SCHEMA_NAME) {
        // The reader of reports knows what to say.
        return Ok(None);
    }
    let cannot = |error: &dyn std::fmt::Display| {
        Failure::new(format!("cannot judge `{}`: {error}", file.display()))
    };
    let text = read_text(file, LARGEST_BASELINE).map_err(|error| cannot(&error))?;
    let document: HeapDocument = serde_json::from_str(&text).map_err(|error| cannot(&error))?;
    if document.examination.heaps.is_empty() {
        return Err(cannot(&"no heap of glibc's malloc was found in it")
            .hint("`breaktrace heap` says which malloc serves the program"));
    }
    Ok(Some(document))
}

/// Takes the figures over into the baseline.
fn update(arguments: &args::Check) -> Result<Ending, Failure> {
    let Some(path) = arguments.gate.baseline.as_deref() else {
        return Err(Failure::new("--update needs to know which baseline")
            .hint("breaktrace check REPORT --baseline FILE --update")
            .code(USAGE));
    };
    let old = match read_baseline(path) {
        Ok(baseline) => Some(baseline),
        Err(_) if !path.exists() => None,
        Err(failure) => return Err(failure),
    };
    let subject = subject(arguments)?;
    let expected = match (arguments.gate.expect_exit, &old) {
        (Some(code), _) => Outcome::Exited(code),
        (None, Some(old)) => old.outcome,
        (None, None) => Outcome::Exited(0),
    };
    if subject.outcome != expected && subject.outcome != Outcome::Detached {
        return Err(not_saved(subject.outcome));
    }
    if let Some(old) = &old
        && old.command != subject.command
        && !arguments
            .gate
            .allow_mismatch
            .contains(&gate::MismatchKind::Command)
    {
        return Err(Failure::new(format!(
            "`{}` is the baseline of `{}`, and the recording is of `{}`",
            path.display(),
            old.command.join(" "),
            subject.command.join(" ")
        ))
        .hint("another file for another command, or --allow-mismatch command")
        .code(NO_BASELINE));
    }
    let new = Baseline::of(&subject);
    let changes = match &old {
        Some(old) => gate::update_of(old, &new),
        None => new
            .metrics
            .iter()
            .map(|(name, measurement)| (name.clone(), None, gate::median(&measurement.values())))
            .collect(),
    };
    save_baseline(path, &new)?;
    let text = render::gate::update(
        &changes,
        TextOptions::for_stream(io::stdout(), arguments.verbose),
    );
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .or_else(|error| excuse_closed_pipe("stdout", error))?;
    Ok(Ending::Code(0))
}

/// A program that failed is no measure of anything.
pub(super) fn not_saved(outcome: Outcome) -> Failure {
    let failure = Failure::new(format!(
        "no baseline is written: the program {}",
        render::gate::how_it_ended(outcome)
    ));
    match outcome {
        Outcome::Exited(code) => {
            failure.hint(format!("--expect-exit {code}, if that is as it should be"))
        }
        _ => failure,
    }
}
