//! Turns events into a report.
//!
//! Nothing here knows where events come from. A report can be asked for at any moment, and the same events always give
//! the same one. Memory is bounded: whatever grows with the number of events is thinned, and of very many address
//! spaces only some keep more than counters.

mod address_space;
mod allocator;
mod calls;
mod check;
mod explain;
mod growth;
mod heap;
mod layout;
mod notices;
mod process;
mod program_break;
mod programs;
mod regions;
mod samples;
mod stacks;
mod steps;
mod timeline;

#[cfg(test)]
mod allocator_tests;
#[cfg(test)]
mod growth_tests;
#[cfg(test)]
mod tests;

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::HashSet;
use std::io::BufRead;

use address_space::AddressSpace;
use address_space::Birth;
use calls::CallCounts;
use notices::Notices;
use process::Process;
use process::SpaceList;
use programs::ProgramId;
use programs::Programs;
use stacks::StackTable;

use crate::event::EndReason;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::Recording;
use crate::event::Snapshot;
use crate::event::SpaceId;
use crate::event::StackMode;
use crate::event_log::LogError;
use crate::event_log::LogReader;
use crate::report::RecordingEnd;
use crate::report::Report;
use crate::report::SCHEMA_NAME;
use crate::report::SCHEMA_VERSION;
use crate::report::Schema;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::report::Stacks;
use crate::report::Tool;
use crate::report::Totals;
use crate::units::Timestamp;

/// Most address spaces that keep steps, timeline and layout. Live ones always do.
const MOST_DETAILED: usize = 256;

/// Most ended address spaces that a report lists; the totals count all.
const MOST_LISTED: usize = 2048;

/// Takes events, one by one and in any order, and sums them up.
#[derive(Debug)]
pub struct Recorder {
    recording: Recording,
    page_size: u64,
    events: u64,
    last_time: Timestamp,
    end_reason: Option<EndReason>,
    notices: Notices,
    programs: Programs,
    processes: Vec<Process>,
    /// Index of the latest process with each number.
    process_by_pid: HashMap<u32, usize>,
    spaces: Vec<AddressSpace>,
    space_by_id: HashMap<SpaceId, usize>,
    detail: DetailKeeper,
    stacks: StackTable,
}

/// How large an address space is at some moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Standing {
    /// Bytes of the heap; `None` while not known.
    pub break_bytes: Option<u64>,
    /// Bytes of accessible anonymous memory; `None` while only some of the mappings are known.
    pub anonymous_bytes: Option<u64>,
}

/// Which address spaces keep their detail.
///
/// Not to lose it are the live ones, the first of the recording, and of the ended ones the one whose heap grew most,
/// as it may be what the report is about. Of the others those with the lowest peaks go first.
#[derive(Debug, Default)]
struct DetailKeeper {
    /// How many have detail.
    detailed: usize,
    /// Ended ones that may lose it, by peak; of equals, the latest goes first.
    candidates: BTreeSet<(u64, Reverse<usize>)>,
    /// The ended one that grew most.
    leader: Option<usize>,
}

impl Recorder {
    /// A recorder for a recording of which no event has been seen.
    #[must_use]
    pub fn new(recording: Recording) -> Self {
        let page_size = recording.machine.page_size;
        Self {
            // All arithmetic on pages needs a power of two, which a damaged log may not give.
            page_size: if page_size.is_power_of_two() {
                page_size
            } else {
                4096
            },
            recording,
            events: 0,
            last_time: Timestamp(0),
            end_reason: None,
            notices: Notices::default(),
            programs: Programs::default(),
            processes: Vec::new(),
            process_by_pid: HashMap::new(),
            spaces: Vec::new(),
            space_by_id: HashMap::new(),
            detail: DetailKeeper::default(),
            stacks: StackTable::default(),
        }
    }

    /// Records the next event. Events that contradict others, or name what nobody announced, are taken as they come.
    pub fn record(&mut self, event: &Event) {
        self.events += 1;
        self.last_time = self.last_time.max(event.time);
        match &event.kind {
            EventKind::ProcessStarted {
                origin,
                parent,
                from_space,
                program,
                arguments,
            } => {
                let program = self.program(*from_space, program, arguments);
                self.process_started(event, *origin, *parent, *from_space, program);
            }
            EventKind::ThreadStarted => self.thread_started(event),
            EventKind::ThreadEnded => {
                self.process(event);
            }
            EventKind::Exec {
                program, arguments, ..
            } => {
                let program = self.programs.add(program, arguments, None);
                self.exec(event, program);
            }
            EventKind::ProcessEnded { outcome } => self.process_ended(event, *outcome),
            EventKind::Snapshot(snapshot) => self.snapshot(event, snapshot),
            EventKind::ModuleSeen(module) => self.stacks.module(module),
            EventKind::FunctionSeen(function) => self.stacks.function(function),
            EventKind::StackSeen(stack) => self.stacks.stack(stack),
            EventKind::CodeNamed { module, names } => self.stacks.named(*module, names),
            EventKind::Notice(notice) => self.note(notice),
            EventKind::RecordingEnded { reason } => self.end_reason = Some(*reason),
            EventKind::Brk { .. }
            | EventKind::Mmap { .. }
            | EventKind::Munmap { .. }
            | EventKind::Mremap { .. }
            | EventKind::Mprotect { .. }
            | EventKind::Madvise { .. }
            | EventKind::Shmat { .. }
            | EventKind::Shmdt { .. }
            | EventKind::RemapFilePages { .. }
            | EventKind::MapShadowStack { .. }
            | EventKind::NotDecoded { .. } => self.memory_call(event),
            EventKind::AllocatorFound(_)
            | EventKind::AllocatorAbsent(_)
            | EventKind::AllocatorRead(_)
            | EventKind::HeapError(_)
            | EventKind::BlockSampled(_)
            | EventKind::SampleFreed { .. }
            | EventKind::HeapWalked(_)
            | EventKind::HeapExamined(_)
            | EventKind::MallocSeen(_) => self.allocator_event(event),
        }
    }

    /// Adds something that the reader of the report should know and that is no event of the recording.
    pub fn note(&mut self, notice: &Notice) {
        self.notices.add(notice);
    }

    /// How large an address space is now; `None` when it is not known or nobody is in it.
    #[must_use]
    pub fn standing(&self, space: SpaceId) -> Option<Standing> {
        let &index = self.space_by_id.get(&space)?;
        self.spaces.get(index)?.standing()
    }

    /// What the events so far add up to.
    #[must_use]
    pub fn report(&self) -> Report {
        let spaces = self.listed_spaces();
        let processes = self.listed_processes(&spaces);
        let main_space = main_space(&spaces);
        let mut address_spaces: Vec<SpaceReport> = spaces
            .into_iter()
            .map(|space| space.report(&self.programs, &self.recording.allocator))
            .collect();
        let stacks = self.report_stacks(&mut address_spaces);
        Report {
            schema: Schema {
                name: SCHEMA_NAME.to_owned(),
                version: SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            recording: self.recording.clone(),
            end: RecordingEnd {
                reason: self.end_reason,
                duration_ns: self.last_time,
                events: self.events,
            },
            totals: self.totals(),
            main_space,
            processes: processes
                .into_iter()
                .map(|process| process.report(&self.programs))
                .collect(),
            address_spaces,
            stacks,
            notices: self.notices.report(),
        }
    }

    /// The stacks that these address spaces name; `None` when none were to be recorded.
    fn report_stacks(&self, spaces: &mut [SpaceReport]) -> Option<Stacks> {
        if self.recording.capture.stacks == StackMode::Off {
            return None;
        }
        let mut named = BTreeSet::new();
        for space in spaces {
            let steps = space
                .program_break
                .steps
                .kept
                .iter()
                .chain(&space.anonymous.steps.kept);
            named.extend(steps.filter_map(|step| step.stack));
            named.extend(space.growth.iter().filter_map(|growth| growth.stack));
            for found in space
                .allocator
                .iter_mut()
                .flat_map(|allocator| &mut allocator.heap_errors.kept)
            {
                named.extend(found.stack);
                named.extend(found.allocated_stack);
                named.extend(found.freed_stack);
            }
            let samples = space
                .allocator
                .iter()
                .flat_map(|allocator| &allocator.samples);
            named.extend(
                samples
                    .flat_map(|samples| &samples.by_stack)
                    .filter_map(|one| one.stack),
            );
        }
        Some(self.stacks.report(&named))
    }

    /// The address spaces that a report lists, by number: all of them, or of very many those that grew most.
    fn listed_spaces(&self) -> Vec<&AddressSpace> {
        let mut spaces: Vec<&AddressSpace> = self.spaces.iter().collect();
        if spaces.len() > MOST_LISTED {
            // What is live, and what the recording began with, is listed in any case.
            let first = spaces[0].id;
            spaces.sort_by_key(|space| {
                let must = space.is_live() || space.id == first;
                Reverse((must, space.grown_bytes(), Reverse(space.id)))
            });
            let live = spaces.iter().filter(|space| space.is_live()).count();
            spaces.truncate(MOST_LISTED.max(live + 1));
        }
        // Reports are searched by number; numbers ascend in order of appearance, unless the log is not ours.
        spaces.sort_by_key(|space| space.id);
        spaces
    }

    /// The processes that a report lists: all of them, or of very many the first and those of listed address spaces.
    fn listed_processes(&self, spaces: &[&AddressSpace]) -> Vec<&Process> {
        if self.processes.len() <= MOST_LISTED {
            return self.processes.iter().collect();
        }
        let pids: HashSet<u32> = spaces.iter().map(|space| space.pid).collect();
        self.processes
            .iter()
            .enumerate()
            .filter(|(index, process)| {
                *index == 0 || process.ended.is_none() || pids.contains(&process.pid)
            })
            .map(|(_, process)| process)
            .collect()
    }

    fn totals(&self) -> Totals {
        let mut totals = Totals {
            processes: self.processes.len() as u64,
            threads: self.processes.iter().map(|process| process.threads).sum(),
            address_spaces: self.spaces.len() as u64,
            ..Totals::default()
        };
        let mut calls = CallCounts::default();
        let add = |sum: &mut u64, value: u64| *sum = sum.saturating_add(value);
        for space in &self.spaces {
            let program_break = &space.program_break;
            add(&mut totals.break_grown_bytes, program_break.grown_bytes());
            add(&mut totals.break_shrunk_bytes, program_break.shrunk_bytes());
            add(&mut totals.break_grow_calls, program_break.grow_calls());
            add(&mut totals.break_shrink_calls, program_break.shrink_calls());
            add(
                &mut totals.anonymous_grown_bytes,
                space.anonymous_grown_bytes(),
            );
            add(
                &mut totals.anonymous_shrunk_bytes,
                space.anonymous_shrunk_bytes(),
            );
            calls.add(&space.calls);
        }
        totals.calls = calls.report();
        totals
    }

    /// Keeps the program of a new process, which is mostly that of the address space it came from.
    fn program(
        &mut self,
        from_space: Option<SpaceId>,
        path: &str,
        arguments: &[String],
    ) -> ProgramId {
        let like = from_space
            .and_then(|id| self.space_by_id.get(&id))
            .map(|&index| self.spaces[index].program);
        self.programs.add(path, arguments, like)
    }

    fn process_started(
        &mut self,
        event: &Event,
        origin: Origin,
        parent: Option<u32>,
        from_space: Option<SpaceId>,
        program: ProgramId,
    ) {
        let space_origin = match (origin, from_space) {
            (Origin::Launched, _) => SpaceOrigin::Exec,
            (Origin::Forked, Some(parent_space)) => SpaceOrigin::Forked(parent_space),
            _ => SpaceOrigin::Attached,
        };
        let process = match self.process_by_pid.get(&event.pid).copied() {
            // Events of a process may come before the one that announces it.
            Some(index) if self.processes[index].implied => {
                let process = &mut self.processes[index];
                process.implied = false;
                process.origin = origin;
                process.parent = parent;
                process.program = program;
                if let Some(space) = process.space {
                    let space = &mut self.spaces[space];
                    if space.pid == event.pid && space.id == event.space {
                        space.origin = space_origin;
                        space.program = program;
                    }
                }
                index
            }
            known => {
                if let Some(index) = known {
                    // Its number is in use again, so it ended, though nobody saw it.
                    self.end_process(index, event.time, Outcome::Vanished);
                }
                self.add_process(event, origin, parent, program)
            }
        };
        let space = self.space(event, space_origin, program);
        self.join(process, space, event.time);
        // Of a parent that ever had several threads, others may have run on while one forked.
        let others_ran = parent
            .and_then(|pid| self.process_by_pid.get(&pid))
            .is_none_or(|&index| self.processes[index].threads > 1);
        if let SpaceOrigin::Forked(parent_space) = self.spaces[space].origin
            && let Some(&parent_index) = self.space_by_id.get(&parent_space)
            && let Ok([child, parent]) = self.spaces.get_disjoint_mut([space, parent_index])
        {
            child.copy_from(parent, event.time, others_ran);
        }
    }

    fn thread_started(&mut self, event: &Event) {
        let index = self.process(event);
        if event.tid != event.pid {
            self.processes[index].threads += 1;
        }
    }

    fn exec(&mut self, event: &Event, program: ProgramId) {
        let process = self.process_or_implied(event, |recorder| {
            recorder.add_process(event, Origin::Attached, None, program)
        });
        self.processes[process].program = program;
        let space = self.space(event, SpaceOrigin::Exec, program);
        self.join(process, space, event.time);
    }

    fn process_ended(&mut self, event: &Event, outcome: Outcome) {
        let process = self.process(event);
        self.end_process(process, event.time, outcome);
    }

    fn snapshot(&mut self, event: &Event, snapshot: &Snapshot) {
        let space = self.space_of(event);
        self.spaces[space].record_snapshot(event.time, snapshot, &self.programs);
    }

    fn memory_call(&mut self, event: &Event) {
        let space = self.space_of(event);
        let stack = self.stacks.of_event(event.stack);
        self.spaces[space].record_call(event, stack);
    }

    fn allocator_event(&mut self, event: &Event) {
        let space = self.space_of(event);
        let stack = self.stacks.of_event(event.stack);
        self.spaces[space].record_allocator(event, stack);
    }

    /// Index of the address space that an event concerns. One that nobody announced belongs to the process of the
    /// event, if that is not known to be elsewhere.
    fn space_of(&mut self, event: &Event) -> usize {
        if let Some(&index) = self.space_by_id.get(&event.space) {
            return index;
        }
        let process = self.process(event);
        let program = self.processes[process].program;
        let space = self.space(event, SpaceOrigin::Attached, program);
        if self.processes[process].space.is_none() && self.processes[process].ended.is_none() {
            self.join(process, space, event.time);
        }
        space
    }

    /// Index of the event's process. One that nobody announced is one that was there when observation began.
    fn process(&mut self, event: &Event) -> usize {
        self.process_or_implied(event, |recorder| {
            let unknown = recorder.programs.add("", &[], None);
            let index = recorder.add_process(event, Origin::Attached, None, unknown);
            let space = recorder.space(event, SpaceOrigin::Attached, unknown);
            recorder.join(index, space, event.time);
            index
        })
    }

    fn process_or_implied(&mut self, event: &Event, add: impl FnOnce(&mut Self) -> usize) -> usize {
        if let Some(&index) = self.process_by_pid.get(&event.pid) {
            return index;
        }
        let index = add(self);
        self.processes[index].implied = true;
        index
    }

    fn add_process(
        &mut self,
        event: &Event,
        origin: Origin,
        parent: Option<u32>,
        program: ProgramId,
    ) -> usize {
        let index = self.processes.len();
        self.processes.push(Process {
            pid: event.pid,
            parent,
            origin,
            started: event.time,
            ended: None,
            program,
            spaces: SpaceList::default(),
            space: None,
            threads: 1,
            implied: false,
        });
        self.process_by_pid.insert(event.pid, index);
        index
    }

    /// Index of the event's address space, which begins now if it is new.
    fn space(&mut self, event: &Event, origin: SpaceOrigin, program: ProgramId) -> usize {
        if let Some(&index) = self.space_by_id.get(&event.space) {
            return index;
        }
        let index = self.spaces.len();
        self.spaces.push(AddressSpace::new(Birth {
            id: event.space,
            origin,
            program,
            pid: event.pid,
            time: event.time,
            page_size: self.page_size,
        }));
        self.space_by_id.insert(event.space, index);
        self.detail.detailed += 1;
        self.limit_detail();
        index
    }

    /// Lets a process leave the address space it is in, if it is another one, and join this one.
    fn join(&mut self, process: usize, space: usize, time: Timestamp) {
        if self.processes[process].space == Some(space) {
            return;
        }
        self.leave(process, time);
        let joined = &mut self.spaces[space];
        if !joined.joined {
            joined.joined = true;
            joined.pid = self.processes[process].pid;
        }
        joined.members += 1;
        let id = joined.id;
        if !joined.is_live() {
            self.revive(space);
        }
        let process = &mut self.processes[process];
        process.space = Some(space);
        process.spaces.add(id);
    }

    fn leave(&mut self, process: usize, time: Timestamp) {
        let Some(index) = self.processes[process].space.take() else {
            return;
        };
        let space = &mut self.spaces[index];
        space.members = space.members.saturating_sub(1);
        if space.members == 0 {
            space.end(time);
            self.offer(index);
        }
    }

    fn end_process(&mut self, index: usize, time: Timestamp, outcome: Outcome) {
        if self.processes[index].ended.is_some() {
            return;
        }
        self.processes[index].ended = Some((time, outcome));
        self.processes[index].implied = false;
        self.leave(index, time);
    }

    /// An address space has ended: it, or the former leader, may lose its detail when there are too many.
    fn offer(&mut self, index: usize) {
        let leads = |recorder: &Self, leader: usize| {
            let rank = |index: usize| {
                let space = &recorder.spaces[index];
                (
                    !matches!(space.origin, SpaceOrigin::Forked(_)),
                    space.grown_bytes(),
                    Reverse(space.id),
                )
            };
            rank(index) > rank(leader)
        };
        let outranked = match self.detail.leader {
            Some(leader) if !leads(self, leader) => Some(index),
            former => {
                self.detail.leader = Some(index);
                former
            }
        };
        // The first of the recording is what was asked for.
        if let Some(outranked) = outranked.filter(|&index| index != 0) {
            let space = &self.spaces[outranked];
            if space.has_detail() {
                self.detail
                    .candidates
                    .insert((space.peak_bytes(), Reverse(outranked)));
            }
        }
        self.limit_detail();
    }

    fn revive(&mut self, index: usize) {
        let space = &mut self.spaces[index];
        self.detail
            .candidates
            .remove(&(space.peak_bytes(), Reverse(index)));
        if self.detail.leader == Some(index) {
            self.detail.leader = None;
        }
        space.revive();
    }

    fn limit_detail(&mut self) {
        while self.detail.detailed > MOST_DETAILED
            && let Some((_, Reverse(index))) = self.detail.candidates.pop_first()
        {
            self.detail.detailed -= 1;
            self.drop_detail(index);
        }
    }

    fn drop_detail(&mut self, index: usize) {
        let space = &mut self.spaces[index];
        space.drop_detail();
        // A forked child runs its parent's program, which may still be among the detailed ones.
        if !matches!(space.origin, SpaceOrigin::Forked(_)) {
            self.programs.shorten(space.program);
        }
    }
}

/// The address space that the verdict is about: of the programs that ran, the one that grew most; a mere fork only if
/// there is nothing else.
fn main_space(spaces: &[&AddressSpace]) -> Option<SpaceId> {
    spaces
        .iter()
        .max_by_key(|space| {
            (
                !matches!(space.origin, SpaceOrigin::Forked(_)),
                space.grown_bytes(),
                Reverse(space.id),
            )
        })
        .map(|space| space.id)
}

/// Which share of growth went back, at most 1; `None` without growth.
#[expect(clippy::cast_precision_loss, reason = "a ratio, shown with few digits")]
fn share(shrunk_bytes: u64, grown_bytes: u64) -> Option<f64> {
    (grown_bytes > 0).then(|| (shrunk_bytes as f64 / grown_bytes as f64).min(1.0))
}

/// Records all events of a log. Where it breaks off, a notice says so.
///
/// # Errors
///
/// The log cannot be read, is no log, is a newer one, or is damaged before its end.
pub fn replay(log: impl BufRead) -> Result<Recorder, LogError> {
    let mut reader = LogReader::open(log)?;
    let mut recorder = Recorder::new(reader.recording().clone());
    while let Some(event) = reader.next_event()? {
        recorder.record(&event);
    }
    let info = reader.info();
    if !info.complete {
        let how = match info.cut_line {
            Some(line) => format!("breaks off within line {line}"),
            None => "ends without saying why the recording ended".to_owned(),
        };
        recorder.note(&Notice {
            code: NoticeCode::Incomplete,
            message: format!(
                "the event log {how}: breaktrace was killed, or could not write on; all figures hold up to there"
            ),
        });
    }
    Ok(recorder)
}
