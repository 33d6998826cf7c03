//! `symbolize`: adds functions, files and lines to the call stacks of a report.

use std::io;
use std::io::Write;
use std::path::Path;

use super::Ending;
use super::Failure;
use super::args;
use super::inspect;
use super::output;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::symbols;
use crate::event_log::FileKind;
use crate::render;
use crate::report::Report;
use crate::symbols::FileSymbolizer;
use crate::symbols::Patience;

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
    symbols::look_up(&mut report, files);
    write(&report, place, to_stdout)?;
    super::output::say(render::symbols(&report));
    Ok(Ending::Code(0))
}

fn write(report: &Report, place: &Path, to_stdout: bool) -> Result<(), Failure> {
    let text = crate::report::to_json(report);
    if to_stdout {
        return io::stdout()
            .lock()
            .write_all(text.as_bytes())
            .or_else(|error| excuse_closed_pipe("stdout", error));
    }
    output::write_whole(place, text.as_bytes()).map_err(|error| cannot_write(place, &error))
}
