//! One process and what became of it.

use crate::event::Origin;
use crate::event::Outcome;
use crate::event::SpaceId;
use crate::report::ProcessReport;
use crate::units::Timestamp;

/// Longest command line that is kept, in bytes.
const LONGEST_COMMAND: usize = 4096;

/// A process (thread group).
#[derive(Clone, Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: Option<u32>,
    pub(super) origin: Origin,
    pub(super) started: Timestamp,
    pub(super) ended: Option<Timestamp>,
    pub(super) outcome: Option<Outcome>,
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
    /// In order; it uses the last one.
    pub(super) spaces: Vec<SpaceId>,
    pub(super) threads: u64,
}

impl Process {
    pub(super) fn report(&self) -> ProcessReport {
        ProcessReport {
            pid: self.pid,
            parent: self.parent,
            origin: self.origin,
            started_ns: self.started,
            ended_ns: self.ended,
            outcome: self.outcome,
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            address_spaces: self.spaces.clone(),
            threads: self.threads,
        }
    }
}

/// Arguments as they are kept: cut where they are very long.
pub(super) fn cut(arguments: &[String]) -> Vec<String> {
    let mut room = LONGEST_COMMAND;
    let mut kept = Vec::new();
    for argument in arguments {
        if argument.len() > room {
            kept.push("…".to_owned());
            break;
        }
        room -= argument.len();
        kept.push(argument.clone());
    }
    kept
}
