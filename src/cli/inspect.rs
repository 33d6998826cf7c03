//! `report`: shows a recording again.

use std::fs::File;
use std::io::BufReader;
use std::io::Read;
use std::io::Seek;
use std::path::Path;

use super::Ending;
use super::Failure;
use super::args;
use super::output;
use super::output::Outputs;
use crate::event_log;
use crate::event_log::Kind;
use crate::event_log::Reader;
use crate::model::Recorder;
use crate::report;
use crate::report::Report;

/// `breaktrace report`.
pub(super) fn report(arguments: args::Report) -> Result<Ending, Failure> {
    let outputs = Outputs::new(&arguments.output, output::Default::Stdout)?;
    outputs.check()?;
    outputs.write(&read(&arguments.file)?)?;
    Ok(Ending::Code(0))
}

/// Reads a report, or replays an event log into one.
fn read(path: &Path) -> Result<Report, Failure> {
    let cannot_read = |error: std::io::Error| {
        let failure = Failure::new(format!("cannot read `{}`: {error}", path.display()));
        match error.kind() {
            std::io::ErrorKind::NotFound => {
                failure.hint("recordings are written by `breaktrace run -o FILE.json`")
            }
            std::io::ErrorKind::IsADirectory => failure.hint("name a file inside it"),
            _ => failure,
        }
    };
    let mut file = File::open(path).map_err(cannot_read)?;
    let mut head = Vec::new();
    (&mut file)
        .take(4096)
        .read_to_end(&mut head)
        .map_err(cannot_read)?;
    match event_log::sniff(&head) {
        Kind::EventLog => {
            file.rewind().map_err(cannot_read)?;
            replay(path, BufReader::with_capacity(1 << 20, file))
        }
        Kind::Report | Kind::Unknown => {
            let mut bytes = head;
            file.read_to_end(&mut bytes).map_err(cannot_read)?;
            let text = String::from_utf8_lossy(&bytes);
            report::from_json(&text).map_err(|error| unreadable(path, &error, error.hint()))
        }
    }
}

fn replay(path: &Path, log: impl std::io::BufRead) -> Result<Report, Failure> {
    let refused = |error: event_log::ReadError| unreadable(path, &error, error.hint());
    let mut reader = Reader::new(log).map_err(refused)?;
    let mut recorder = Recorder::new(reader.recording().clone());
    while let Some(event) = reader.next_event().map_err(refused)? {
        recorder.record(&event);
    }
    Ok(recorder.report())
}

fn unreadable(path: &Path, error: &dyn std::error::Error, hint: Option<String>) -> Failure {
    let failure = Failure::new(format!("cannot show `{}`: {error}", path.display()));
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
