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
use super::symbols;
use crate::event_log;
use crate::event_log::FileKind;
use crate::model;
use crate::report;
use crate::report::Report;

/// Larger files are no reports, and would only fill the memory (`breaktrace report /dev/zero`).
const LARGEST_REPORT: u64 = 256 << 20;

/// `breaktrace report`.
pub(super) fn report(arguments: args::Report) -> Result<Ending, Failure> {
    let outputs = Outputs::new(&arguments.output, output::Default::Stdout)?;
    outputs.check()?;
    let (_, mut report) = read(&arguments.file)?;
    symbols::complete(&mut report, &arguments.symbols);
    outputs.write(&report)?;
    Ok(Ending::Code(0))
}

/// Reads a report, or replays an event log into one; tells which it was.
pub(super) fn read(path: &Path) -> Result<(FileKind, Report), Failure> {
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
    let kind = event_log::sniff(&head);
    let report = match kind {
        FileKind::EventLog => {
            file.rewind().map_err(cannot_read)?;
            let recorder = model::replay(BufReader::with_capacity(1 << 20, file))
                .map_err(|error| unreadable(path, &error, error.hint()))?;
            recorder.report()
        }
        FileKind::Report | FileKind::Unknown => {
            let mut bytes = head;
            file.take(LARGEST_REPORT)
                .read_to_end(&mut bytes)
                .map_err(cannot_read)?;
            if bytes.len() as u64 >= LARGEST_REPORT {
                return Err(Failure::new(format!(
                    "cannot show `{}`: it is larger than any report",
                    path.display()
                ))
                .hint(
                    "event logs may be as large as they like; they begin with their schema's name",
                ));
            }
            let text = String::from_utf8_lossy(&bytes);
            report::from_json(&text).map_err(|error| unreadable(path, &error, error.hint()))?
        }
    };
    Ok((kind, report))
}

fn unreadable(path: &Path, error: &dyn std::error::Error, hint: Option<String>) -> Failure {
    let failure = Failure::new(format!("cannot show `{}`: {error}", path.display()));
    match hint {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
