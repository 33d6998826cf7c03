//! `run` and `attach`: record, then report.

use std::ffi::OsString;
use std::fs::OpenOptions;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::path::PathBuf;

use super::Ending;
use super::Failure;
use super::RUN_FAILED;
use super::args;
use super::args::AllocatorOptions;
use super::args::RecordOptions;
use super::args::SymbolOptions;
use super::live::Aside;
use super::live::Live;
use super::measure;
use super::output;
use super::output::Outputs;
use super::output::cannot_write;
use super::progress::Progress;
use super::symbols;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::SpaceId;
use crate::event_log::EventLog;
use crate::model::Recorder;
use crate::report::Report;
use crate::stats_page;
use crate::stats_page::Policy;
use crate::tracer::Allocator;
use crate::tracer::AttachError;
use crate::tracer::Launch;
use crate::tracer::LaunchError;
use crate::tracer::Options;
use crate::tracer::Tracer;
use crate::units::Timestamp;

/// `breaktrace run`.
pub(super) fn run(arguments: &args::Run) -> Result<Ending, Failure> {
    let mut environment = arguments
        .env
        .iter()
        .map(split_variable)
        .collect::<Result<Vec<_>, _>>()?;
    environment.extend(allocator_settings(&arguments.allocator)?);
    let mut command = arguments.command.iter().cloned();
    let launch = Launch {
        program: command.next().unwrap_or_default(),
        arguments: command.collect(),
        environment,
        no_aslr: arguments.no_aslr,
        user: arguments.user.clone(),
        seccomp: !arguments.no_seccomp,
        allocator: arguments.allocator.allocator.clone(),
        stdout: None,
    };
    let mut options = arguments.record.clone();
    if arguments.allocator.sample_allocations.is_some() && options.stacks == args::Stacks::Off {
        return Err(Failure::new(
            "samples of allocations are told apart by their call stacks, and --stacks off records none",
        )
        .hint("leave --stacks away, or --sample-allocations")
        .code(super::USAGE));
    }
    if options.live && measure::is_wanted(arguments) {
        return Err(Failure::new(
            "--live shows one run, and gates measure without anybody looking",
        )
        .hint("leave --live away")
        .code(super::USAGE));
    }
    let live = Live::prepare(&mut options)?;
    let mut tracing = tracer_options(&options);
    tracing.sample_interval = arguments.allocator.sample_allocations;
    tracing.leaks = arguments.allocator.leaks;
    if measure::is_wanted(arguments) {
        return measure::measure(arguments, launch, tracing);
    }
    measure::refuse_leftovers(arguments)?;
    let session = Session::prepare(&options).map_err(own_failure)?;
    let mut aside = match &live {
        Some(_) => match Aside::begin() {
            Ok(aside) => Some(aside),
            Err(error) => {
                let failure = Failure::new(format!("the program's output cannot be kept: {error}"));
                return Err(session.abandon(own_failure(failure)));
            }
        },
        None => None,
    };
    let launched = Tracer::launch(&launch, tracing);
    if let Some(aside) = &mut aside {
        aside.give_back();
    }
    let mut tracer = match launched {
        Ok(tracer) => tracer,
        Err(error) => return Err(session.abandon(launch_failure(&error))),
    };
    let result = match live {
        Some(live) => live.record(session, &mut tracer, true),
        None => session.record(&mut tracer),
    };
    if let Some(aside) = aside {
        // Whoever closed the pipe does not want it.
        let _ = aside.print();
    }
    let ending = tracer
        .launched_outcome()
        .map_or(Ending::Code(RUN_FAILED), Ending::from);
    drop(tracer);
    result?.finish().map_err(own_failure)?;
    Ok(ending)
}

/// `breaktrace attach`.
pub(super) fn attach(arguments: args::Attach) -> Result<Ending, Failure> {
    let mut options = arguments.record;
    let live = Live::prepare(&mut options)?;
    let session = Session::prepare(&options)?;
    let mut tracer = match Tracer::attach(&arguments.pids, tracer_options(&options)) {
        Ok(tracer) => tracer,
        Err(error) => return Err(session.abandon(attach_failure(&error))),
    };
    let result = match live {
        Some(live) => live.record(session, &mut tracer, false),
        None => session.record(&mut tracer),
    };
    drop(tracer);
    result?.finish()?;
    Ok(Ending::Code(0))
}

pub(super) fn own_failure(failure: Failure) -> Failure {
    if failure.code == super::USAGE {
        failure
    } else {
        failure.code(RUN_FAILED)
    }
}

pub(super) fn launch_failure(error: &LaunchError) -> Failure {
    let failure = Failure::new(error).code(error.exit_code());
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

pub(super) fn attach_failure(error: &AttachError) -> Failure {
    let failure = Failure::new(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn split_variable(variable: &OsString) -> Result<(OsString, OsString), Failure> {
    let bytes = variable.as_bytes();
    match bytes.iter().position(|&byte| byte == b'=') {
        Some(at) if at > 0 => Ok((
            std::ffi::OsStr::from_bytes(&bytes[..at]).to_owned(),
            std::ffi::OsStr::from_bytes(&bytes[at + 1..]).to_owned(),
        )),
        _ => Err(
            Failure::new(format!("`--env {}` sets no variable", variable.display()))
                .hint("write --env NAME=VALUE")
                .code(super::USAGE),
        ),
    }
}

/// The variables that set up the bundled allocator, as asked for.
fn allocator_settings(options: &AllocatorOptions) -> Result<Vec<(OsString, OsString)>, Failure> {
    let policy = options
        .heap_policy
        .map(|policy| (stats_page::environment::POLICY, Policy::from(policy).name()));
    let guard = options
        .guard
        .then_some((stats_page::environment::GUARD, "1"));
    let on_error = options
        .on_heap_error
        .map(|action| (stats_page::environment::ON_HEAP_ERROR, action.name()));
    let interval = options.sample_allocations.map(|interval| {
        let name = stats_page::environment::SAMPLE_INTERVAL;
        (name, interval.to_string())
    });
    for (option, is_given) in [
        ("--sample-allocations", interval.is_some()),
        ("--leaks", options.leaks),
        ("--heap-policy", policy.is_some()),
        ("--guard", guard.is_some()),
        ("--on-heap-error", on_error.is_some()),
    ] {
        if is_given && options.allocator != Allocator::Bundled {
            return Err(
                Failure::new(format!("`{option}` is for breaktrace's own malloc only"))
                    .hint(format!("breaktrace run --allocator bundled {option} …"))
                    .code(super::USAGE),
            );
        }
    }
    Ok([policy, guard, on_error]
        .into_iter()
        .flatten()
        .map(|(name, value)| (name.into(), value.into()))
        .chain(interval.map(|(name, value)| (name.into(), value.into())))
        .collect())
}

fn tracer_options(options: &RecordOptions) -> Options {
    Options {
        follow: !options.no_follow,
        verify: options.verify,
        latency_hold: !options.no_latency_hold,
        duration: options.duration,
        every: options.every,
        stacks: options.stacks.into(),
        stack_depth: options.stack_depth,
        sample_interval: None,
        leaks: false,
        heap: !options.no_heap,
    }
}

/// A recording in the making: where its events and its report go.
pub(super) struct Session {
    outputs: Outputs,
    symbols: SymbolOptions,
    events: Option<PathBuf>,
    /// The event log did not exist before.
    events_file_is_new: bool,
    /// Whether the person in front of the terminal may be told how it goes.
    tells_progress: bool,
}

/// A recording that has ended.
pub(super) struct Recorded {
    outputs: Outputs,
    symbols: SymbolOptions,
    recorder: Recorder,
    failure: Option<Failure>,
}

impl Session {
    /// Finds out whether everything can be written, before anything runs.
    pub(super) fn prepare(options: &RecordOptions) -> Result<Self, Failure> {
        let default = if options.quiet {
            output::Default::Nowhere
        } else {
            output::Default::Stderr
        };
        let outputs = Outputs::new(&options.output, default)?;
        outputs.check()?;
        if let Some(format) = outputs.of_stacks()
            && options.stacks == args::Stacks::Off
        {
            return Err(Failure::new(format!(
                "{format} shows call stacks, and --stacks off records none"
            ))
            .hint("--stacks all, the default")
            .code(super::USAGE));
        }
        let events = options.events.clone();
        let events_file_is_new = match &events {
            Some(path) => {
                let is_new = !path.exists();
                // What is there stays until the program really starts.
                OpenOptions::new()
                    .append(true)
                    .create(true)
                    .open(path)
                    .map_err(|error| cannot_write(path, &error))?;
                is_new
            }
            None => false,
        };
        Ok(Self {
            outputs,
            symbols: options.symbols.clone(),
            events,
            events_file_is_new,
            tells_progress: !options.quiet && !options.live,
        })
    }

    /// Nothing was recorded: leaves no trace.
    pub(super) fn abandon(self, failure: Failure) -> Failure {
        if let Some(path) = self.events.filter(|_| self.events_file_is_new) {
            // If it cannot be removed, an empty file stays, which is no log and says so when read.
            let _ = std::fs::remove_file(path);
        }
        failure
    }

    /// Records until there is nothing more to record.
    pub(super) fn record(self, tracer: &mut Tracer) -> Result<Recorded, Failure> {
        let mut recorder = Recorder::new(tracer.recording().clone());
        let progress = if self.tells_progress {
            Progress::begin()
        } else {
            None
        };
        let failure = self.events_beside(progress.as_ref(), tracer, true, &mut |event| {
            recorder.record(&event);
            if let Some(progress) = &progress {
                progress.note(&event, &recorder);
            }
        });
        // Its line goes before anything else comes.
        drop(progress);
        Ok(self.recorded(recorder, failure))
    }

    /// The recording that these events made.
    pub(super) fn recorded(self, recorder: Recorder, failure: Option<Failure>) -> Recorded {
        Recorded {
            outputs: self.outputs,
            symbols: self.symbols,
            recorder,
            failure,
        }
    }

    /// Hands on every event, and logs those that are to be logged; returns the first failure. `tells` says that what
    /// cannot wait for the report may be written to stderr.
    pub(super) fn events(
        &self,
        tracer: &mut Tracer,
        tells: bool,
        take: &mut dyn FnMut(Event),
    ) -> Option<Failure> {
        self.events_beside(None, tracer, tells, take)
    }

    fn events_beside(
        &self,
        progress: Option<&Progress>,
        tracer: &mut Tracer,
        tells: bool,
        take: &mut dyn FnMut(Event),
    ) -> Option<Failure> {
        let mut failure = None;
        let mut log = match &self.events {
            None => None,
            Some(path) => match EventLog::create(path, tracer.recording()) {
                Ok(log) => Some((log, path.as_path())),
                Err(error) => {
                    failure = Some(cannot_write(path, &error));
                    None
                }
            },
        };
        let mut last = Timestamp(0);
        loop {
            let event = match tracer.next_event() {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(error) => {
                    let failed = Failure::new(error)
                        .hint("`breaktrace doctor` says what this machine allows");
                    take(broken_off(last, &failed.message));
                    failure = failure.or(Some(failed));
                    break;
                }
            };
            last = event.time;
            if tells {
                tell_at_once(&event, progress);
            }
            if let Some((events, path)) = &mut log
                && let Err(error) = events.write(&event)
            {
                // The program goes on, and so does the report.
                let failed = log_failure(path, &error);
                if tells {
                    make_way(progress);
                    failed.tell();
                }
                failure = failure.or(Some(failed));
                log = None;
            }
            take(event);
        }
        failure
    }
}

impl Recorded {
    /// Writes the report where it is wanted, and returns it with its call paths named.
    pub(super) fn complete(self) -> Result<Report, Failure> {
        let mut report = self.recorder.report();
        symbols::complete(&mut report, &self.symbols);
        let written = self.outputs.write(&report);
        match self.failure {
            Some(failure) => Err(failure),
            None => written.map(|()| report),
        }
    }

    /// Writes the report.
    fn finish(self) -> Result<(), Failure> {
        let mut report = self.recorder.report();
        if !self.outputs.is_empty() {
            symbols::complete(&mut report, &self.symbols);
        }
        let written = self.outputs.write(&report);
        match self.failure {
            Some(failure) => Err(failure),
            None => written,
        }
    }
}

fn log_failure(path: &Path, error: &std::io::Error) -> Failure {
    let mut failure = cannot_write(path, error);
    failure
        .message
        .push_str("; the events so far are kept, those to come are not written");
    failure
}

fn broken_off(time: Timestamp, why: &str) -> Event {
    Event {
        malloc: None,
        time,
        pid: 0,
        tid: 0,
        space: SpaceId(0),
        allocator: None,
        stack: None,
        kind: EventKind::Notice(Notice {
            code: NoticeCode::Incomplete,
            message: format!("the recording breaks off: {why}; the figures hold up to there"),
        }),
    }
}

/// What cannot wait for the report: why breaktrace does not end although the program has.
fn tell_at_once(event: &Event, progress: Option<&Progress>) {
    if let EventKind::Notice(Notice {
        code: NoticeCode::StillRunning,
        message,
    }) = &event.kind
    {
        make_way(progress);
        output::say(format_args!("breaktrace: {message}\n"));
    }
}

fn make_way(progress: Option<&Progress>) {
    if let Some(progress) = progress {
        progress.make_way();
    }
}
