//! `compare`: the same program on several allocators.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

use super::Ending;
use super::FAILED;
use super::Failure;
use super::RUN_FAILED;
use super::USAGE;
use super::args;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::output::write_whole;
use super::record::launch_failure;
use crate::event::EndReason;
use crate::event::Outcome;
use crate::model::Recorder;
use crate::render;
use crate::render::TextOptions;
use crate::report::Comparison;
use crate::report::Run;
use crate::stats_page::Policy;
use crate::stats_page::environment;
use crate::tracer::Allocator;
use crate::tracer::Launch;
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
    let entries = arguments
        .allocators
        .iter()
        .map(entry)
        .collect::<Result<Vec<_>, _>>()?;
    let mut input = Input::of_standard_input();
    let mut first: Option<(Vec<u8>, Option<Outcome>)> = None;
    let mut results = Vec::new();
    let mut interrupted = false;
    for entry in entries {
        let mut runs = Vec::new();
        for _ in 0..arguments.runs {
            if interrupted {
                break;
            }
            input.rewind()?;
            let (run, output) = run_once(&entry, arguments)?;
            interrupted = run.report.end.reason == Some(EndReason::Interrupted);
            runs.push(match &first {
                Some((text, outcome)) => Run {
                    same_result: *text == output && *outcome == run.outcome,
                    ..run
                },
                None => {
                    pass_on(&output)?;
                    first = Some((output, run.outcome));
                    run
                }
            });
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
    write(&comparison, arguments)?;
    if interrupted {
        return Err(
            Failure::new("interrupted; the comparison covers the runs so far").code(RUN_FAILED),
        );
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
    let path = PathBuf::from(word);
    if let Err(error) = File::open(&path) {
        return Err(Failure::new(format!("cannot preload `{name}`: {error}"))
            .hint("system, bundled, bundled:POLICY, or the path of a malloc library")
            .code(USAGE));
    }
    Ok(Entry {
        name,
        allocator: Allocator::Library(path),
        policy: None,
    })
}

/// Runs the program and records it; what it wrote to standard output.
fn run_once(entry: &Entry, arguments: &args::Compare) -> Result<(Run, Vec<u8>), Failure> {
    let cannot_keep = |error: io::Error| {
        Failure::new(format!("cannot keep the program's output: {error}"))
            .hint("name a folder with room in TMPDIR")
            .code(RUN_FAILED)
    };
    let mut output = tempfile::tempfile().map_err(cannot_keep)?;
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
    let mut text = Vec::new();
    output
        .seek(SeekFrom::Start(0))
        .and_then(|_| output.read_to_end(&mut text))
        .map_err(cannot_keep)?;
    let run = Run {
        report: recorder.report(),
        outcome: tracer.launched_outcome(),
        same_result: true,
    };
    Ok((run, text))
}

/// Shows what the program wrote.
fn pass_on(output: &[u8]) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(output)
        .and_then(|()| stdout.flush())
        .or_else(|error| excuse_closed_pipe("stdout", error))
}

fn write(comparison: &Comparison, arguments: &args::Compare) -> Result<(), Failure> {
    match &arguments.output {
        Some(path) => {
            let is_json = arguments.json || path.extension().is_some_and(|name| name == "json");
            let text = if is_json {
                comparison.to_json()
            } else {
                let options = TextOptions {
                    width: TextOptions::WITHOUT_TERMINAL,
                    color: false,
                    verbose: false,
                };
                render::comparison(comparison, options)
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

/// What each run reads.
enum Input {
    /// A file, from where it stood.
    File { file: File, from: u64 },
    /// Nothing: what is not a file can be read once only.
    Nothing,
}

impl Input {
    /// Standard input, if every run can be given the same of it; otherwise it becomes empty.
    fn of_standard_input() -> Self {
        let file = io::stdin()
            .as_fd()
            .try_clone_to_owned()
            .ok()
            .map(File::from)
            .filter(|file| file.metadata().is_ok_and(|metadata| metadata.is_file()));
        if let Some(mut file) = file
            && let Ok(from) = file.stream_position()
        {
            return Self::File { file, from };
        }
        if let Ok(null) = File::open("/dev/null") {
            // SAFETY: both descriptors are open; nothing of ours reads standard input.
            unsafe { libc::dup2(null.as_raw_fd(), libc::STDIN_FILENO) };
        }
        Self::Nothing
    }

    fn rewind(&mut self) -> Result<(), Failure> {
        match self {
            Self::Nothing => Ok(()),
            // The descriptor that programs inherit shares its position with this one.
            Self::File { file, from } => file
                .seek(SeekFrom::Start(*from))
                .map(drop)
                .map_err(|error| Failure::new(format!("cannot rewind standard input: {error}"))),
        }
    }
}
