//! The model: events in, state out.
//!
//! A [`Recorder`] takes events in order and can sum them up at any moment. It believes nothing it has not been told,
//! and takes every event as it comes: a log may be cut, hostile, or begin in the middle. What it keeps is bounded,
//! however long a recording lasts: counters for everything, detail for the address spaces that matter most.

mod address_space;
mod calls;
mod comparison;
mod layout;
mod process;
mod program_break;
mod regions;
mod steps;
mod timeline;

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::collections::BinaryHeap;
use std::collections::HashMap;

use self::address_space::AddressSpace;
use self::address_space::Birth;
use self::calls::CallCounts;
use self::process::Process;
use crate::event::EndReason;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::Recording;
use crate::event::SpaceId;
use crate::report;
use crate::report::RecordingEnd;
use crate::report::Report;
use crate::report::Schema;
use crate::report::SpaceOrigin;
use crate::report::Tool;
use crate::report::Totals;
use crate::units::Timestamp;

/// Address spaces that keep timeline, steps and layout after their end.
const MOST_DETAILED: usize = 256;
/// Address spaces, and processes, that are kept at all after their end; the sums count all.
const MOST_KEPT: usize = 4096;
/// Notices that are kept.
const MOST_NOTICES: usize = 100;

/// Takes events and keeps their sum.
#[derive(Clone, Debug)]
pub struct Recorder {
    recording: Recording,
    page_size: u64,
    spaces: BTreeMap<SpaceId, AddressSpace>,
    /// Processes in order of appearance; a number may come back after its process has ended.
    processes: BTreeMap<u64, Process>,
    processes_seen: u64,
    /// The latest process of each number.
    by_pid: HashMap<u32, u64>,
    /// How many live processes use an address space.
    users: HashMap<SpaceId, u32>,
    first_space: Option<SpaceId>,
    /// Ended address spaces with detail, and all ended ones: the smallest on top.
    detailed: BinaryHeap<Reverse<(u64, SpaceId)>>,
    ended: BinaryHeap<Reverse<(u64, SpaceId)>>,
    ended_processes: BinaryHeap<Reverse<u64>>,
    /// Sums of what is no longer kept.
    dropped: Sums,
    threads: u64,
    notices: Vec<Notice>,
    notices_left_out: u64,
    end_reason: Option<EndReason>,
    last_time: Timestamp,
    events: u64,
}

/// What is summed up over address spaces.
#[derive(Clone, Debug, Default)]
struct Sums {
    address_spaces: u64,
    break_grown_bytes: u64,
    break_shrunk_bytes: u64,
    break_grow_calls: u64,
    break_shrink_calls: u64,
    anonymous_grown_bytes: u64,
    anonymous_shrunk_bytes: u64,
    calls: CallCounts,
}

impl Sums {
    fn add(&mut self, space: &AddressSpace) {
        let program_break = space.program_break();
        let add = |sum: &mut u64, value: u64| *sum = sum.saturating_add(value);
        add(&mut self.address_spaces, 1);
        add(&mut self.break_grown_bytes, program_break.grown_bytes());
        add(&mut self.break_shrunk_bytes, program_break.shrunk_bytes());
        add(&mut self.break_grow_calls, program_break.grow_calls());
        add(&mut self.break_shrink_calls, program_break.shrink_calls());
        add(
            &mut self.anonymous_grown_bytes,
            space.anonymous_grown_bytes(),
        );
        add(
            &mut self.anonymous_shrunk_bytes,
            space.anonymous_shrunk_bytes(),
        );
        self.calls.add(space.calls());
    }
}

impl Recorder {
    /// A recorder that has seen nothing yet.
    #[must_use]
    pub fn new(recording: Recording) -> Self {
        // A hostile log may name any page size; arithmetic needs a power of two.
        let page_size = recording.machine.page_size;
        let page_size = if page_size.is_power_of_two() {
            page_size
        } else {
            4096
        };
        Self {
            recording,
            page_size,
            spaces: BTreeMap::new(),
            processes: BTreeMap::new(),
            processes_seen: 0,
            by_pid: HashMap::new(),
            users: HashMap::new(),
            first_space: None,
            detailed: BinaryHeap::new(),
            ended: BinaryHeap::new(),
            ended_processes: BinaryHeap::new(),
            dropped: Sums::default(),
            threads: 0,
            notices: Vec::new(),
            notices_left_out: 0,
            end_reason: None,
            last_time: Timestamp(0),
            events: 0,
        }
    }

    /// Takes the next event.
    pub fn record(&mut self, event: &Event) {
        self.events += 1;
        self.last_time = self.last_time.max(event.time);
        match &event.kind {
            EventKind::ProcessStarted { .. } => self.process_started(event),
            EventKind::ThreadStarted => self.thread_started(event),
            EventKind::ThreadEnded | EventKind::NotDecoded { .. } => {}
            EventKind::Exec { .. } => self.exec(event),
            EventKind::ProcessEnded { outcome } => self.process_ended(event, *outcome),
            EventKind::Notice(notice) => self.notice(notice),
            EventKind::RecordingEnded { reason } => self.end_reason = Some(*reason),
            _ => self.memory(event),
        }
    }

    fn process_started(&mut self, event: &Event) {
        let EventKind::ProcessStarted {
            origin,
            parent,
            from_space,
            program,
            arguments,
        } = &event.kind
        else {
            return;
        };
        let arguments = process::cut(arguments);
        if !self.spaces.contains_key(&event.space) {
            let origin = match (origin, from_space) {
                (Origin::Launched, _) => SpaceOrigin::Exec,
                (Origin::Forked, Some(from)) => SpaceOrigin::Forked(*from),
                _ => SpaceOrigin::Attached,
            };
            self.new_space(event, program.clone(), arguments.clone(), origin);
        }
        if *origin == Origin::Forked
            && let Some(from) = from_space.filter(|from| *from != event.space)
            && let Some(parent) = self.spaces.get(&from).cloned()
            && let Some(space) = self.spaces.get_mut(&event.space)
        {
            space.copy_from(&parent);
        }
        self.new_process(event, *origin, *parent, program.clone(), arguments);
    }

    fn new_process(
        &mut self,
        event: &Event,
        origin: Origin,
        parent: Option<u32>,
        program: String,
        arguments: Vec<String>,
    ) {
        // A number that comes back without an end: the end was not seen.
        self.end_process(event.pid, event.time, Outcome::Vanished);
        let index = self.processes_seen;
        self.processes_seen += 1;
        self.threads += 1;
        self.by_pid.insert(event.pid, index);
        *self.users.entry(event.space).or_default() += 1;
        let process = Process {
            pid: event.pid,
            parent,
            origin,
            started: event.time,
            ended: None,
            outcome: None,
            program,
            arguments,
            spaces: vec![event.space],
            threads: 1,
        };
        self.processes.insert(index, process);
    }

    fn new_space(
        &mut self,
        event: &Event,
        program: String,
        arguments: Vec<String>,
        origin: SpaceOrigin,
    ) {
        self.first_space.get_or_insert(event.space);
        let birth = Birth {
            id: event.space,
            pid: event.pid,
            program,
            arguments,
            origin,
            time: event.time,
            page_size: self.page_size,
        };
        self.spaces.insert(event.space, AddressSpace::new(birth));
    }

    fn live_process(&mut self, pid: u32) -> Option<&mut Process> {
        let index = self.by_pid.get(&pid)?;
        self.processes
            .get_mut(index)
            .filter(|process| process.ended.is_none())
    }

    fn thread_started(&mut self, event: &Event) {
        self.make_known(event);
        self.threads += 1;
        if let Some(process) = self.live_process(event.pid) {
            process.threads += 1;
        }
    }

    /// Makes process and address space of an event known of whose beginning nobody told.
    fn make_known(&mut self, event: &Event) {
        if !self.spaces.contains_key(&event.space) {
            self.new_space(
                event,
                "unknown".to_owned(),
                Vec::new(),
                SpaceOrigin::Attached,
            );
        }
        if self.live_process(event.pid).is_none() {
            self.new_process(
                event,
                Origin::Attached,
                None,
                "unknown".to_owned(),
                Vec::new(),
            );
        }
    }

    fn exec(&mut self, event: &Event) {
        let EventKind::Exec {
            program, arguments, ..
        } = &event.kind
        else {
            return;
        };
        let arguments = process::cut(arguments);
        if !self.spaces.contains_key(&event.space) {
            self.new_space(event, program.clone(), arguments.clone(), SpaceOrigin::Exec);
        }
        self.make_known(event);
        let Some(process) = self.live_process(event.pid) else {
            return;
        };
        process.program.clone_from(program);
        process.arguments = arguments;
        let left = process
            .spaces
            .last()
            .copied()
            .filter(|left| *left != event.space);
        if let Some(left) = left {
            process.spaces.push(event.space);
            *self.users.entry(event.space).or_default() += 1;
            self.leave_space(left, event.time);
        }
    }

    fn process_ended(&mut self, event: &Event, outcome: Outcome) {
        self.make_known(event);
        self.end_process(event.pid, event.time, outcome);
    }

    fn end_process(&mut self, pid: u32, time: Timestamp, outcome: Outcome) {
        let Some(process) = self.live_process(pid) else {
            return;
        };
        process.ended = Some(time);
        process.outcome = Some(outcome);
        let left = process.spaces.last().copied();
        let index = self.by_pid.remove(&pid).unwrap_or_default();
        // The first one is what the recording is about, and stays.
        if index > 0 {
            self.ended_processes.push(Reverse(index));
        }
        if self.ended_processes.len() > MOST_KEPT
            && let Some(Reverse(oldest)) = self.ended_processes.pop()
        {
            self.processes.remove(&oldest);
        }
        if let Some(space) = left {
            self.leave_space(space, time);
        }
    }

    /// A process no longer uses an address space; with the last one it ends.
    fn leave_space(&mut self, id: SpaceId, time: Timestamp) {
        if let Some(users) = self.users.get_mut(&id) {
            *users = users.saturating_sub(1);
            if *users > 0 {
                return;
            }
        }
        self.users.remove(&id);
        let Some(space) = self.spaces.get_mut(&id).filter(|space| !space.has_ended()) else {
            return;
        };
        space.end(time);
        let peak = space.peak_bytes();
        if Some(id) == self.first_space {
            return;
        }
        self.detailed.push(Reverse((peak, id)));
        self.ended.push(Reverse((peak, id)));
        if self.detailed.len() > MOST_DETAILED
            && let Some(Reverse((_, smallest))) = self.detailed.pop()
            && let Some(space) = self.spaces.get_mut(&smallest)
        {
            space.drop_detail();
        }
        if self.ended.len() > MOST_KEPT
            && let Some(Reverse((_, smallest))) = self.ended.pop()
            && let Some(space) = self.spaces.remove(&smallest)
        {
            self.dropped.add(&space);
        }
    }

    /// A call, or a snapshot.
    fn memory(&mut self, event: &Event) {
        self.make_known(event);
        if let Some(space) = self.spaces.get_mut(&event.space) {
            space.apply(event.time, event.tid, &event.kind);
        }
    }

    fn notice(&mut self, notice: &Notice) {
        if self.notices.contains(notice) {
            return;
        }
        if self.notices.len() < MOST_NOTICES {
            self.notices.push(notice.clone());
        } else {
            self.notices_left_out += 1;
        }
    }

    /// Sums up what has been recorded so far.
    #[must_use]
    pub fn report(&self) -> Report {
        Report {
            schema: Schema {
                name: report::SCHEMA_NAME.to_owned(),
                version: report::SCHEMA_VERSION,
            },
            tool: Tool {
                name: "breaktrace".to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            recording: self.recording.clone(),
            end: RecordingEnd {
                reason: self.end_reason,
                duration_ns: self.last_time,
                events: self.events,
            },
            totals: self.totals(),
            main_space: self.main_space(),
            processes: self.processes.values().map(Process::report).collect(),
            address_spaces: self.spaces.values().map(AddressSpace::report).collect(),
            notices: self.all_notices(),
        }
    }

    fn totals(&self) -> Totals {
        let mut sums = self.dropped.clone();
        for space in self.spaces.values() {
            sums.add(space);
        }
        Totals {
            processes: self.processes_seen,
            threads: self.threads,
            address_spaces: sums.address_spaces,
            break_grown_bytes: sums.break_grown_bytes,
            break_shrunk_bytes: sums.break_shrunk_bytes,
            break_grow_calls: sums.break_grow_calls,
            break_shrink_calls: sums.break_shrink_calls,
            anonymous_grown_bytes: sums.anonymous_grown_bytes,
            anonymous_shrunk_bytes: sums.anonymous_shrunk_bytes,
            calls: sums.calls.report(),
        }
    }

    /// The address space whose memory grew most; forked copies only if there is nothing else.
    fn main_space(&self) -> Option<SpaceId> {
        let rank = |space: &&AddressSpace| {
            let is_program = !matches!(space.origin(), SpaceOrigin::Forked(_));
            // Of equals, the earliest.
            (is_program, space.grown_bytes(), Reverse(space.id()))
        };
        self.spaces.values().max_by_key(rank).map(AddressSpace::id)
    }

    fn all_notices(&self) -> Vec<Notice> {
        let mut notices = self.notices.clone();
        if self.notices_left_out > 0 {
            notices.push(Notice {
                code: NoticeCode::Incomplete,
                message: format!("{} further notices are left out", self.notices_left_out),
            });
        }
        notices
    }
}

/// What part of `whole` this is; `None` of nothing.
#[expect(clippy::cast_precision_loss, reason = "a ratio, shown with two digits")]
fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
