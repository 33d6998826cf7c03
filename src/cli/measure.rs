//! Measured runs: `run` with a baseline or limits.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::Path;

use super::Ending;
use super::Failure;
use super::RUN_FAILED;
use super::USAGE;
use super::args;
use super::check;
use super::gate;
use super::gate::Gate;
use super::gate::Shown;
use super::input::Input;
use super::output::cannot_write;
use super::output::probe;
use super::record;
use super::record::Session;
use crate::event::Outcome;
use crate::report::Report;
use crate::report::gate::Baseline;
use crate::report::gate::Subject;
use crate::tracer::Launch;
use crate::tracer::Options;
use crate::tracer::Tracer;

/// What is done with what was measured.
enum Purpose<'a> {
    Judge(Box<Gate>),
    Save(&'a Path),
}

/// Whether `run` is to measure rather than to tell a story.
pub(super) fn is_wanted(arguments: &args::Run) -> bool {
    let gate = &arguments.gate;
    let has_gate = gate.baseline.is_some()
        || gate.limits.is_some()
        || !gate.limit.is_empty()
        || !gate.max.is_empty();
    has_gate || arguments.save_baseline.is_some()
}

/// What only measured runs know.
pub(super) fn refuse_leftovers(arguments: &args::Run) -> Result<(), Failure> {
    for (option, is_given) in [
        ("--runs", arguments.runs.is_some()),
        ("--verdict", !arguments.verdict.is_empty()),
        ("--github", arguments.gate.github),
        ("--expect-exit", arguments.gate.expect_exit.is_some()),
        (
            "--fail-on-inconclusive",
            arguments.gate.fail_on_inconclusive,
        ),
        (
            "--allow-mismatch",
            !arguments.gate.allow_mismatch.is_empty(),
        ),
    ] {
        if is_given {
            return Err(Failure::new(format!(
                "`{option}` needs something to hold the run against"
            ))
            .hint("--save-baseline FILE, --baseline FILE, --limits FILE, --limit METRIC=LIMIT or --max METRIC=VALUE")
            .code(USAGE));
        }
    }
    Ok(())
}

/// Runs the program as often as wanted, and judges it or saves what it measured.
pub(super) fn measure(
    arguments: &args::Run,
    mut launch: Launch,
    tracing: Options,
) -> Result<Ending, Failure> {
    // What is wrong with a baseline is told by its own code.
    let purpose = purpose(arguments)?;
    // Figures are to depend on the program alone.
    launch.no_aslr = true;
    seed_hashes(&mut launch.environment);
    let runs = arguments.runs.unwrap_or(1);
    let mut input = (runs > 1).then(Input::of_standard_input);
    let mut reports = Vec::new();
    let mut outcome = None;
    for run in 0..runs {
        if let Some(input) = &mut input {
            input.rewind()?;
        }
        let mut options = arguments.record.clone();
        // The text is the verdict; the report goes where it was asked to.
        options.quiet = true;
        if run > 0 {
            options.output.output.clear();
            options.events = None;
            launch.stdout = Some(File::create("/dev/null").map_err(cannot_discard)?);
        }
        let session = Session::prepare(&options).map_err(record::own_failure)?;
        let mut tracer = match Tracer::launch(&launch, tracing) {
            Ok(tracer) => tracer,
            Err(error) => return Err(session.abandon(record::launch_failure(&error))),
        };
        let result = session.record(&mut tracer);
        outcome = tracer.launched_outcome();
        let was_interrupted = tracer.was_asked_to_end();
        drop(tracer);
        let report = result?.complete().map_err(record::own_failure)?;
        reports.push(report);
        if was_interrupted {
            return Err(Failure::new("interrupted: nothing is judged").code(RUN_FAILED));
        }
        // One failure is enough.
        if outcome != expected(arguments, &purpose) {
            break;
        }
    }
    conclude(arguments, &purpose, &reports, outcome)
}

/// Interpreters that order their hashes by chance use more memory in one run than in the next. What the user sets counts.
fn seed_hashes(environment: &mut Vec<(OsString, OsString)>) {
    for (name, value) in [
        ("PYTHONHASHSEED", "0"),
        ("PERL_HASH_SEED", "0"),
        ("PERL_PERTURB_KEYS", "0"),
    ] {
        let is_given = environment.iter().any(|(given, _)| given == name);
        if !is_given && std::env::var_os(name).is_none() {
            environment.push((name.into(), value.into()));
        }
    }
}

fn cannot_discard(error: io::Error) -> Failure {
    Failure::new(format!("cannot open /dev/null: {error}")).code(RUN_FAILED)
}

fn purpose(arguments: &args::Run) -> Result<Purpose<'_>, Failure> {
    if let Some(path) = &arguments.save_baseline {
        probe(path).map_err(|error| cannot_write(path, &error).code(RUN_FAILED))?;
        return Ok(Purpose::Save(path));
    }
    let gate = Gate::prepare(
        &arguments.gate,
        arguments.gate.baseline.as_deref(),
        &arguments.verdict,
        Shown {
            to_stdout: false,
            json: false,
            verbose: arguments.record.output.verbose,
        },
    )?;
    Ok(Purpose::Judge(Box::new(gate)))
}

/// How the program should end.
fn expected(arguments: &args::Run, purpose: &Purpose<'_>) -> Option<Outcome> {
    let of_baseline = match purpose {
        Purpose::Judge(gate) => gate.baseline().map(|baseline| baseline.outcome),
        Purpose::Save(_) => None,
    };
    Some(match (arguments.gate.expect_exit, of_baseline) {
        (Some(code), _) => Outcome::Exited(code),
        (None, Some(outcome)) => outcome,
        (None, None) => Outcome::Exited(0),
    })
}

fn conclude(
    arguments: &args::Run,
    purpose: &Purpose<'_>,
    reports: &[Report],
    outcome: Option<Outcome>,
) -> Result<Ending, Failure> {
    let subject = Subject::of(reports).map_err(|unfit| {
        Failure::new(format!("cannot judge the program: {unfit}")).code(RUN_FAILED)
    })?;
    let has_failed = outcome != expected(arguments, purpose);
    // A program that failed keeps its own status, unless that would look like success.
    let own = outcome
        .map(Ending::from)
        .filter(|own| *own != Ending::Code(0));
    match purpose {
        Purpose::Save(path) => {
            if has_failed {
                check::not_saved(subject.outcome).tell();
                return Ok(own.unwrap_or(Ending::Code(RUN_FAILED)));
            }
            gate::save_baseline(path, &Baseline::of(&subject))
                .map_err(|failure| failure.code(RUN_FAILED))?;
            Ok(Ending::Code(0))
        }
        Purpose::Judge(gate) => {
            let verdict = gate.judge(&subject)?;
            match own {
                Some(own) if has_failed => Ok(own),
                _ => Ok(verdict),
            }
        }
    }
}
