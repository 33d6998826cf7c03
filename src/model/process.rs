//! Processes, and the address spaces they pass through.

use super::programs::ProgramId;
use super::programs::Programs;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::SpaceId;
use crate::report::ProcessReport;
use crate::units::Timestamp;

/// The address spaces of a process, in order. Most have one or two, and those need no memory of their own: there may
/// be tens of thousands of processes.
#[derive(Debug, Default)]
pub(super) struct SpaceList {
    first: [Option<SpaceId>; 2],
    more: Vec<SpaceId>,
}

impl SpaceList {
    /// Adds an address space, unless it is there already.
    pub(super) fn add(&mut self, id: SpaceId) {
        if self.first.contains(&Some(id)) || self.more.contains(&id) {
            return;
        }
        match self.first.iter_mut().find(|slot| slot.is_none()) {
            Some(slot) => *slot = Some(id),
            None => self.more.push(id),
        }
    }

    fn report(&self) -> Vec<SpaceId> {
        let first = self.first.iter().copied().flatten();
        first.chain(self.more.iter().copied()).collect()
    }
}

/// One process (thread group).
#[derive(Debug)]
pub(super) struct Process {
    pub(super) pid: u32,
    pub(super) parent: Option<u32>,
    pub(super) origin: Origin,
    pub(super) started: Timestamp,
    pub(super) ended: Option<(Timestamp, Outcome)>,
    pub(super) program: ProgramId,
    /// Address spaces it used, in order.
    pub(super) spaces: SpaceList,
    /// Where it is now: an index into the recorder's list.
    pub(super) space: Option<usize>,
    pub(super) threads: u64,
    /// No event told of its start: it was met in the middle of things.
    pub(super) implied: bool,
}

impl Process {
    pub(super) fn report(&self, programs: &Programs) -> ProcessReport {
        ProcessReport {
            pid: self.pid,
            parent: self.parent,
            origin: self.origin,
            started_ns: self.started,
            ended_ns: self.ended.map(|(time, _)| time),
            outcome: self.ended.map(|(_, outcome)| outcome),
            program: programs.path(self.program).to_owned(),
            arguments: programs.arguments(self.program),
            address_spaces: self.spaces.report(),
            threads: self.threads,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_spaces_stay_in_order_and_appear_once() {
        let mut list = SpaceList::default();
        for number in [3, 1, 3, 7, 2, 7] {
            list.add(SpaceId(number));
        }
        assert_eq!(list.report(), [3, 1, 7, 2].map(SpaceId));
    }
}
