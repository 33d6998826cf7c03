//! `symbolize`: adds functions, files and lines to the call stacks of a report; and the same for reports just made.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use super::Ending;
use super::Failure;
use super::args;
use super::args::SymbolOptions;
use super::inspect;
use super::output;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use crate::event::Module;
use crate::event_log::FileKind;
use crate::render;
use crate::report;
use crate::report::Report;
use crate::symbols::FileSymbolizer;
use crate::symbols::Found;
use crate::symbols::Patience;
use crate::symbols::Symbolizer;
use crate::units::Address;

/// After this long, people are told what they wait for.
const QUIET_TIME: Duration = Duration::from_secs(2);

/// Adds what the options allow to a report that is about to be shown.
pub(super) fn complete(report: &mut Report, options: &SymbolOptions) {
    if options.no_symbols {
        report::name_culprits(report);
    } else {
        let files = FileSymbolizer::new(options.debug_dir.clone(), Patience::REPORT);
        report::symbolize(report, &mut Told::new(files));
    }
}

/// `breaktrace symbolize`.
pub(super) fn symbolize(arguments: &args::Symbolize) -> Result<Ending, Failure> {
    let to_stdout = arguments
        .output
        .as_deref()
        .is_some_and(|path| path.as_os_str() == "-");
    let place = arguments.output.as_deref().unwrap_or(&arguments.file);
    if !to_stdout {
        output::probe(place).map_err(|error| cannot_write(place, &error))?;
    }
    let (kind, mut report) = inspect::read(&arguments.file)?;
    if kind == FileKind::EventLog {
        return Err(Failure::new(format!(
            "`{}` is an event log, which holds what was recorded and nothing else",
            arguments.file.display()
        ))
        .hint(format!(
            "breaktrace report {} -o report.json",
            arguments.file.display()
        )));
    }
    let files = FileSymbolizer::new(arguments.debug_dir.clone(), Patience::SYMBOLS);
    report::symbolize(&mut report, &mut Told::new(files));
    write(&report, place, to_stdout)?;
    anstream::eprint!("{}", render::symbols(&report));
    Ok(Ending::Code(0))
}

fn write(report: &Report, place: &Path, to_stdout: bool) -> Result<(), Failure> {
    let text = report::to_json(report);
    if to_stdout {
        return io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .or_else(|error| excuse_closed_pipe("stdout", error));
    }
    output::write_whole(place, text.as_bytes()).map_err(|error| cannot_write(place, &error))
}

/// Tells on a terminal what is waited for, when it takes long.
struct Told<S> {
    symbolizer: S,
    begun: Instant,
    has_told: bool,
}

impl<S> Told<S> {
    fn new(symbolizer: S) -> Self {
        Self {
            symbolizer,
            begun: Instant::now(),
            has_told: false,
        }
    }
}

impl<S: Symbolizer> Symbolizer for Told<S> {
    fn look_up(&mut self, module: &Module, places: &[Address]) -> Found {
        if !self.has_told && self.begun.elapsed() > QUIET_TIME && io::stderr().is_terminal() {
            self.has_told = true;
            anstream::eprintln!("breaktrace: reading symbols; --no-symbols leaves them for later");
        }
        self.symbolizer.look_up(module, places)
    }
}
