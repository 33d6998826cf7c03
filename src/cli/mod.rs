//! The command line: what was typed becomes one call into the layers below, and its outcome an exit status.

mod args;
mod check;
mod compare;
mod demo;
mod diff;
mod doctor;
mod gate;
mod heap;
mod input;
mod inspect;
mod interval;
mod live;
mod live_symbols;
mod manual;
mod measure;
mod metrics;
mod output;
mod progress;
mod record;
mod symbolize;
mod symbols;

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use anstyle::AnsiColor;
use anstyle::Style;
use clap::Parser;
use clap::error::ErrorKind;

use self::args::Cli;
use self::args::Command;
use crate::event::Outcome;

/// Our own failures in `run`, as env(1), timeout(1) and docker-run(1) have it.
const RUN_FAILED: u8 = 125;
/// Our own failures elsewhere.
const FAILED: u8 = 1;
/// The command line could not be understood.
const USAGE: u8 = 2;

/// Why a command could not do its work: what went wrong, what to do next, and the exit code that says so.
#[derive(Debug)]
struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

impl Failure {
    fn new(message: impl fmt::Display) -> Self {
        Self {
            message: message.to_string(),
            hint: None,
            code: FAILED,
        }
    }

    fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    fn code(mut self, code: u8) -> Self {
        self.code = code;
        self
    }

    /// Tells the person in front of the terminal.
    fn tell(&self) {
        let red = Style::new().bold().fg_color(Some(AnsiColor::Red.into()));
        output::say(format_args!("{red}breaktrace:{red:#} {}\n", self.message));
        if let Some(hint) = &self.hint {
            output::say(format_args!("  try: {hint}\n"));
        }
    }
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ending {
    /// With this exit code.
    Code(u8),
    /// As the program that it ran: by this signal.
    Signal(i32),
}

impl From<Outcome> for Ending {
    fn from(outcome: Outcome) -> Self {
        match outcome {
            Outcome::Exited(code) => Self::Code(code),
            Outcome::Killed { signal, .. } => Self::Signal(signal),
            Outcome::Detached | Outcome::Vanished => Self::Code(0),
        }
    }
}

/// Runs the command that `arguments` ask for; the first of them is our own name.
#[must_use]
pub fn main(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match Cli::try_parse_from(arguments) {
        Ok(cli) => cli,
        Err(error) => return complain(&error),
    };
    let result = match cli.command {
        Command::Run(run) => record::run(&run),
        Command::Attach(attach) => record::attach(attach),
        Command::Compare(arguments) => compare::compare(&arguments),
        Command::Heap(arguments) => heap::heap(&arguments),
        Command::Report(report) => inspect::report(report),
        Command::Check(arguments) => check::check(&arguments),
        Command::Diff(arguments) => diff::diff(&arguments),
        Command::Metrics(arguments) => metrics::metrics(&arguments),
        Command::Symbolize(arguments) => symbolize::symbolize(&arguments),
        Command::Demo(arguments) => demo::demo(&arguments),
        Command::Completions(arguments) => manual::completions(&arguments),
        Command::Man(arguments) => manual::man(&arguments),
        Command::Doctor(arguments) => doctor::doctor(&arguments),
    };
    match result {
        Ok(Ending::Code(code)) => ExitCode::from(code),
        Ok(Ending::Signal(signal)) => die_by(signal),
        Err(failure) => {
            failure.tell();
            ExitCode::from(failure.code)
        }
    }
}

/// Prints help, or what was wrong with the command line.
fn complain(error: &clap::Error) -> ExitCode {
    // Where nobody reads, nobody is told.
    let _ = error.print();
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => ExitCode::SUCCESS,
        _ => ExitCode::from(USAGE),
    }
}

/// Ends breaktrace as its program ended: killed by `signal`, without a core dump of ours.
fn die_by(signal: i32) -> ExitCode {
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: the calls take numbers and valid pointers. The signal is meant to end us: it gets its default action
    // back and is let through.
    unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &raw const no_core);
        libc::signal(signal, libc::SIG_DFL);
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        libc::sigprocmask(libc::SIG_UNBLOCK, &raw const set, std::ptr::null_mut());
        libc::raise(signal);
    }
    // Its default action is not to kill: a shell would report it thus.
    ExitCode::from(u8::try_from(signal).map_or(RUN_FAILED, |number| number.saturating_add(128)))
}
