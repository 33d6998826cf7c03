//! `compare`: the same program on several allocators.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use super::Ending;
use super::FAILED;
use super::Failure;
use super::RUN_FAILED;
use super::USAGE;
use super::args;
use super::input::Input;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::output::probe;
use super::output::write_whole;
use super::record::launch_failure;
use crate::event::Outcome;
use crate::event::StackMode;
use crate::model::Recorder;
use crate::render;
use crate::render::TextOptions;
use crate::report::Comparison;
use crate::report::Run;
use crate::stats_page::Policy;
use crate::stats_page::environment;
use crate::tracer::Allocator;
use crate::tracer::Launch;
use crate::tracer::LibraryError;
use crate::tracer::Options;
use crate::tracer::Tracer;

/// An allocator to run the program on.
struct Entry {
    name: String,
    allocator: Allocator,
    policy: Option<Policy>,
}

/// `breaktrace compare`.
pub(super) fn compare(arguments: &args::Compare) -> Result<Ending, Failure> {
    // That code says that results differ.
    run_all(arguments).map_err(|failure| match failure.code {
        FAILED => failure.code(RUN_FAILED),
        _ => failure,
    })
}

fn run_all(arguments: &args::Compare) -> Result<Ending, Failure> {
    let entries = arguments
        .allocators
        .iter()
        .map(entry)
        .collect::<Result<Vec<_>, _>>()?;
    check_output(arguments)?;
    let mut input = Input::of_standard_input();
    let mut first: Option<(File, Option<Outcome>)> = None;
    let mut results = Vec::new();
    let mut interrupted = false;
    for entry in entries {
        let mut runs = Vec::new();
        for _ in 0..arguments.runs {
            if interrupted {
                break;
            }
            input.rewind()?;
            let Recorded {
                run,
                output,
                was_asked_to_end,
            } = run_once(&entry, arguments)?;
            interrupted = was_asked_to_end;
            let (text, outcome) = match &first {
                Some(first) => first,
                None => {
                    pass_on(&output)?;
                    first.insert((output.try_clone().map_err(cannot_keep)?, run.outcome))
                }
            };
            // A run that was cut short is no measure of anything.
            if !interrupted {
                let same_result =
                    *outcome == run.outcome && same_bytes(text, &output).map_err(cannot_keep)?;
                runs.push(Run { same_result, ..run });
            }
        }
        if !runs.is_empty() {
            results.push((entry.name, runs));
        }
    }
    let command = arguments
        .command
        .iter()
        .map(|word| word.to_string_lossy().into_owned())
        .collect();
    let comparison = Comparison::of(command, &results);
    if !results.is_empty() {
        write(&comparison, arguments)?;
    }
    if interrupted {
        let message = if results.is_empty() {
            "interrupted before a run had ended"
        } else {
            "interrupted; the comparison covers the runs that had ended"
        };
        return Err(Failure::new(message).code(RUN_FAILED));
    }
    if comparison.columns.iter().any(|column| !column.same_result) {
        return Ok(Ending::Code(FAILED));
    }
    Ok(first
        .and_then(|(_, outcome)| outcome)
        .map_or(Ending::Code(RUN_FAILED), Ending::from))
}

/// `system`, `bundled`, `bundled:POLICY` or a library.
fn entry(word: &OsString) -> Result<Entry, Failure> {
    let name = word.to_string_lossy().into_owned();
    let bundled = |policy| Entry {
        name: name.clone(),
        allocator: Allocator::Bundled,
        policy,
    };
    match name.as_str() {
        "system" => Ok(Entry {
            name,
            allocator: Allocator::System,
            policy: None,
        }),
        "bundled" => Ok(bundled(None)),
        _ => match name.strip_prefix("bundled:") {
            Some(policy) => [Policy::Never, Policy::Trim, Policy::Eager]
                .into_iter()
                .find(|known| known.name() == policy)
                .map(|policy| bundled(Some(policy)))
                .ok_or_else(|| {
                    Failure::new(format!("`{policy}` is no policy of the bundled malloc"))
                        .hint("bundled:never, bundled:trim or bundled:eager")
                        .code(USAGE)
                }),
            None => library(word, name),
        },
    }
}

fn library(word: &OsString, name: String) -> Result<Entry, Failure> {
    let allocator = Allocator::Library(PathBuf::from(word));
    match allocator.check() {
        Ok(()) => Ok(Entry {
            name,
            allocator,
            policy: None,
        }),
        Err(error) => {
            let hint = match &error {
                LibraryError::Unreadable { .. } => Some(
                    "--allocators takes system, bundled, bundled:POLICY and paths of malloc libraries"
                        .to_owned(),
                ),
                _ => error.hint(),
            };
            let failure = Failure::new(&error).code(USAGE);
            Err(match hint {
                Some(hint) => failure.hint(hint),
                None => failure,
            })
        }
    }
}

/// Finds out whether the comparison can be written, before anything runs.
fn check_output(arguments: &args::Compare) -> Result<(), Failure> {
    match &arguments.output {
        Some(path) if path.as_os_str() != "-" => {
            probe(path).map_err(|error| cannot_write(path, &error))
        }
        _ => Ok(()),
    }
}

/// One run as it was recorded.
struct Recorded {
    run: Run,
    /// What the program wrote to standard output.
    output: File,
    /// A signal to breaktrace asked for an end meanwhile.
    was_asked_to_end: bool,
}

fn cannot_keep(error: io::Error) -> Failure {
    Failure::new(format!("cannot keep the program's output: {error}"))
        .hint("name a folder with room in TMPDIR")
}

/// Runs the program and records it.
fn run_once(entry: &Entry, arguments: &args::Compare) -> Result<Recorded, Failure> {
    let output = tempfile::tempfile().map_err(cannot_keep)?;
    let mut command = arguments.command.iter().cloned();
    let launch = Launch {
        program: command.next().unwrap_or_default(),
        arguments: command.collect(),
        environment: entry
            .policy
            .map(|policy| (environment::POLICY.into(), policy.name().into()))
            .into_iter()
            .collect(),
        no_aslr: true,
        seccomp: true,
        allocator: entry.allocator.clone(),
        stdout: Some(output.try_clone().map_err(cannot_keep)?),
        user: None,
    };
    let options = Options {
        stacks: StackMode::Off,
        stack_depth: 0,
        sample_interval: None,
        leaks: false,
        heap: true,
        follow: true,
        verify: false,
        latency_hold: true,
        duration: None,
        every: None,
    };
    let mut tracer = Tracer::launch(&launch, options).map_err(|error| launch_failure(&error))?;
    drop(launch);
    let mut recorder = Recorder::new(tracer.recording().clone());
    while let Some(event) = tracer
        .next_event()
        .map_err(|error| Failure::new(error).code(RUN_FAILED))?
    {
        recorder.record(&event);
    }
    let run = Run {
        report: recorder.report(),
        outcome: tracer.launched_outcome(),
        same_result: true,
    };
    Ok(Recorded {
        run,
        output,
        was_asked_to_end: tracer.was_asked_to_end(),
    })
}

/// Shows what the program wrote.
fn pass_on(mut output: &File) -> Result<(), Failure> {
    output.seek(SeekFrom::Start(0)).map_err(cannot_keep)?;
    let mut stdout = io::stdout().lock();
    io::copy(&mut output, &mut stdout)
        .and_then(|_| stdout.flush())
        .or_else(|error| excuse_closed_pipe("stdout", error))
}

/// Whether two files hold the same; neither has to fit into memory.
fn same_bytes(one: &File, other: &File) -> io::Result<bool> {
    let length = one.metadata()?.len();
    if length != other.metadata()?.len() {
        return Ok(false);
    }
    let mut pieces = [vec![0; 1 << 16], vec![0; 1 << 16]];
    let mut at = 0;
    while at < length {
        let wanted = usize::try_from(length - at).map_or(1 << 16, |left| left.min(1 << 16));
        let [ours, theirs] = &mut pieces;
        one.read_exact_at(&mut ours[..wanted], at)?;
        other.read_exact_at(&mut theirs[..wanted], at)?;
        if ours[..wanted] != theirs[..wanted] {
            return Ok(false);
        }
        at += wanted as u64;
    }
    Ok(true)
}

fn write(comparison: &Comparison, arguments: &args::Compare) -> Result<(), Failure> {
    match &arguments.output {
        Some(path) if path.as_os_str() == "-" => {
            let text = if arguments.json {
                comparison.to_json()
            } else {
                render::comparison(comparison, TextOptions::for_stream(io::stdout(), false))
            };
            io::stdout()
                .lock()
                .write_all(text.as_bytes())
                .or_else(|error| excuse_closed_pipe("stdout", error))
        }
        Some(path) => {
            let is_json = arguments.json || path.extension().is_some_and(|name| name == "json");
            let text = if is_json {
                comparison.to_json()
            } else {
                render::comparison(comparison, TextOptions::for_file(false))
            };
            write_whole(path, text.as_bytes()).map_err(|error| cannot_write(path, &error))
        }
        None => {
            let text = if arguments.json {
                comparison.to_json()
            } else {
                render::comparison(comparison, TextOptions::for_stream(io::stderr(), false))
            };
            io::stderr()
                .lock()
                .write_all(text.as_bytes())
                .or_else(|error| excuse_closed_pipe("stderr", error))
        }
    }
}
