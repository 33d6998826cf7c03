//! What each stop means, and how the tracee goes on from it.

use std::rc::Rc;

use super::Phase;
use super::Tracer;
use super::abi;
use super::call::Finished;
use super::call::Pending;
use super::call::Range;
use super::call::Signed;
use super::malloc_state::MallocFacts;
use super::modules::Code;
use super::proc;
use super::stack::Walked;
use super::stop::Birth;
use super::stop::Change;
use super::stop::Resume;
use super::stop::Stop;
use super::stop::Stopped;
use super::sys;
use super::sys::SyscallInfo;
use super::tracee::Command;
use super::tracee::Doing;
use super::tracee::Process;
use super::tracee::Space;
use crate::event::AllocatorCall;
use crate::event::CallResult;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::MallocCall;
use crate::event::MapFlags;
use crate::event::Mode;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::Protection;
use crate::event::RemapFlags;
use crate::event::Snapshot;
use crate::event::SnapshotReason;
use crate::event::SpaceId;
use crate::event::StackId;
use crate::event::Stops;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::units::Address;

/// What a call gives to tell.
struct Told {
    finished: Finished,
    /// The bundled allocator made it.
    by_allocator: Option<AllocatorCall>,
    /// What the allocator told by it, and its figures.
    heard: Vec<EventKind>,
    /// From where it was made.
    stack: Option<StackId>,
    /// How malloc stood.
    malloc: MallocFacts,
}

/// What is told with an event besides what happened.
#[derive(Default)]
struct Circumstances {
    allocator: Option<AllocatorCall>,
    stack: Option<StackId>,
    malloc: Option<Box<MallocCall>>,
}

impl Tracer {
    /// A wait told something of a thread.
    pub(super) fn handle(&mut self, tid: u32, change: Change) {
        match change {
            Change::Ended(outcome) => self.ended(tid, outcome),
            Change::Stopped(stop) if self.tracees.threads.contains_key(&tid) => {
                self.stopped(Stopped::reported(tid), stop);
            }
            Change::Stopped(stop) => self.stranger_stopped(tid, stop),
            Change::Continued => {}
        }
    }

    /// A tracee stopped.
    pub(super) fn stopped(&mut self, stopped: Stopped, stop: Stop) {
        let tid = stopped.tid();
        if self.latency.count_stop(self.now()) && !self.latency_told {
            self.latency_told = true;
            let message = "while stops came fast, idle processors were kept awake through /dev/cpu_dma_latency; \
                           --no-latency-hold forbids it, at the price of slower stops";
            self.mention(tid, NoticeCode::LatencyHeld, message.to_owned());
        }
        if Some(tid) == self.launched {
            self.launched_is_stopped = stop == Stop::Group;
        }
        match stop {
            Stop::Seccomp => self.filtered_call(stopped),
            Stop::Syscall => self.syscall_stop(stopped),
            Stop::Child(birth) => self.child_born(stopped, birth),
            Stop::Exec => self.executed(stopped),
            Stop::Exit => self.about_to_end(stopped),
            Stop::Group => {
                self.go_on(stopped, Resume::Listen);
                self.stop_with_program();
            }
            Stop::Event => self.go_on_with(stopped, 0),
            Stop::Signal(signal) => self.go_on_with(stopped, signal),
        }
    }

    /// A thread stopped that we have not heard of.
    fn stranger_stopped(&mut self, tid: u32, stop: Stop) {
        if self.unwanted.remove(&tid) {
            Stopped::reported(tid).detach(0);
        } else if stop == Stop::Exec && self.tracees.processes.contains_key(&tid) {
            // The leader had exited before we attached; another thread execs now, and takes its number.
            self.tracees.add_thread(tid, tid, Doing::Unknown);
            self.stopped(Stopped::reported(tid), stop);
        } else {
            // A new child may stop before its parent has told of it.
            self.parked.insert(tid, (stop, self.now()));
        }
    }

    /// Lets a tracee go on as far as its next interesting stop, with a signal delivered (0: none).
    fn go_on_with(&mut self, stopped: Stopped, signal: i32) {
        let in_memory_call = self
            .tracees
            .threads
            .get(&stopped.tid())
            .is_some_and(|tracee| matches!(tracee.doing, Doing::MemoryCall(_)));
        let every_call = self.recording.capture.stops == Stops::EveryCall;
        let how = if every_call || in_memory_call {
            Resume::ToSyscall(signal)
        } else {
            Resume::Run(signal)
        };
        self.go_on(stopped, how);
    }

    /// Lets a tracee go on, or holds it while processes are joined or left.
    fn go_on(&mut self, stopped: Stopped, how: Resume) {
        let hold = match self.phase {
            Phase::Joining { .. } => true,
            Phase::Leaving { let_go, .. } => {
                if let_go {
                    self.tracees.threads.remove(&stopped.tid());
                    super::detach(stopped, how);
                    return;
                }
                true
            }
            Phase::Tracing | Phase::Over => false,
        };
        if hold && let Some(tracee) = self.tracees.threads.get_mut(&stopped.tid()) {
            // One that is about to end must go on: others may wait for its end.
            if !tracee.ending {
                tracee.held = Some((stopped, how));
                return;
            }
        }
        stopped.resume(how);
    }

    // ---- calls ----

    /// The filter stopped a call that is about to begin.
    fn filtered_call(&mut self, stopped: Stopped) {
        let Ok(SyscallInfo::Entry {
            architecture,
            number,
            arguments,
        }) = stopped.syscall_info()
        else {
            // Killed meanwhile, as its end will tell.
            self.go_on_with(stopped, 0);
            return;
        };
        match Pending::entered(architecture, number, arguments) {
            Some(pending) if pending.is_clone() => {
                keep_child_traced(stopped.tid(), architecture, number, arguments)
            }
            Some(pending) if pending.is_exec() => self.exec_begins(stopped.tid()),
            Some(pending) => self.tracees.enter_call(stopped.tid(), pending),
            // The program has a filter of its own that asks for a tracer.
            None => {}
        }
        self.go_on_with(stopped, 0);
    }

    /// A call begins or returns; which of the two, the kernel says.
    fn syscall_stop(&mut self, stopped: Stopped) {
        let tid = stopped.tid();
        match stopped.syscall_info() {
            Ok(SyscallInfo::Entry {
                architecture,
                number,
                arguments,
            }) => {
                self.tracees.leave_call(tid, Doing::OtherCall);
                match Pending::entered(architecture, number, arguments) {
                    Some(pending) if pending.is_exec() => self.exec_begins(tid),
                    Some(pending) if pending.is_memory_call() => {
                        self.tracees.enter_call(tid, pending);
                    }
                    _ => {}
                }
                self.go_on_with(stopped, 0);
            }
            Ok(SyscallInfo::Exit {
                architecture,
                value,
                is_error,
            }) => self.call_returned(stopped, architecture, value, is_error),
            Ok(SyscallInfo::None) | Err(_) => self.go_on_with(stopped, 0),
        }
    }

    fn call_returned(&mut self, stopped: Stopped, architecture: u32, value: i64, is_error: bool) {
        let tid = stopped.tid();
        let entry_was_missed = self
            .tracees
            .threads
            .get(&tid)
            .is_some_and(|tracee| matches!(tracee.doing, Doing::Unknown));
        let pending = self.tracees.leave_call(tid, Doing::Program).or_else(|| {
            let (number, arguments) = entry_was_missed
                .then(|| sys::call_in_registers(tid))
                .flatten()?;
            Pending::entered(architecture, number, arguments).filter(Pending::is_memory_call)
        });
        let Some((pending, space)) = pending.zip(self.tracees.space_of(tid)) else {
            self.go_on_with(stopped, 0);
            return;
        };
        self.note_thread_pointer(tid);
        let before = self
            .tracees
            .spaces
            .get(&space)
            .and_then(|space| space.program_break);
        let finished = pending.finish(tid, value, is_error, before);
        let unsure = self.apply(space, &pending, &finished);
        let heard = self.heard_from_bundled(tid, space, &pending, &finished);
        let by_allocator = match pending.signed() {
            Some(Signed::Call(call)) => Some(call),
            Some(_) | None => None,
        };
        let stack = self.walk_stack(tid, space, &finished, &heard);
        let malloc = self.malloc_facts(tid, space, &finished, stack.as_ref());
        let told = |stack| Told {
            finished,
            by_allocator,
            heard,
            stack,
            malloc,
        };
        if self.options.verify || unsure {
            // The tracee stands still until the snapshot is taken.
            let stack = stack.map(|walked| self.number_stack(tid, space, walked));
            self.tell_finished(tid, space, told(stack));
            let reason = if unsure {
                SnapshotReason::Resync
            } else {
                SnapshotReason::Verify
            };
            self.snapshot_by(tid, space, reason);
            self.go_on_with(stopped, 0);
        } else {
            // The program goes on while the event is told.
            self.go_on_with(stopped, 0);
            let stack = stack.map(|walked| self.number_stack(tid, space, walked));
            self.tell_finished(tid, space, told(stack));
        }
    }

    /// Finds the stack of a thread that stands at the end of a call, if it is wanted.
    fn walk_stack(
        &mut self,
        tid: u32,
        space: SpaceId,
        finished: &Finished,
        heard: &[EventKind],
    ) -> Option<Walked> {
        let pid = self.tracees.threads.get(&tid)?.pid;
        let is_report = self.stacks.wants_reports()
            && heard.iter().any(|kind| self.wants_stack_of(space, kind));
        let space = self
            .tracees
            .spaces
            .get_mut(&space)
            .filter(|space| space.recorded)?;
        let is_wanted = match finished {
            Finished::Event(kind) => {
                if changes_code(kind, &space.code) {
                    space.code.outdated();
                }
                self.stacks.wants(kind)
            }
            Finished::AdviceTo { .. } | Finished::Nothing => false,
        };
        (is_wanted || is_report)
            .then(|| self.stacks.walk(tid, pid, &mut space.code))
            .flatten()
    }

    /// Gives a stack its number, and hands out what is new of it.
    fn number_stack(&mut self, tid: u32, space: SpaceId, walked: Walked) -> StackId {
        let (id, news) = self.stacks.number(walked);
        for kind in news {
            self.record(tid, space, kind);
        }
        if let Some(problem) = self.stacks.take_problem() {
            self.mention(tid, NoticeCode::StacksIncomplete, problem);
        }
        id
    }

    /// Hands out the names of the code that an address space has generated, as far as stacks need them.
    pub(super) fn name_generated_code(&mut self, tid: u32, space: SpaceId) {
        let names = self
            .tracees
            .spaces
            .get(&space)
            .and_then(|state| self.stacks.names_of_generated_code(tid, &state.code));
        if let Some(kind) = names {
            self.record(tid, space, kind);
        }
    }

    /// Notes what a finished call did to the break. Returns whether the events alone no longer tell the state.
    fn apply(&mut self, space: SpaceId, pending: &Pending, finished: &Finished) -> bool {
        let Some(space) = self.tracees.spaces.get_mut(&space) else {
            return false;
        };
        match finished {
            Finished::Event(EventKind::Brk { after, .. }) => {
                let moved = space.program_break != Some(*after);
                space.program_break = Some(*after);
                let overlapped = space.under_way.iter().any(|(_, other)| other.moves_break);
                space.break_unsure |= overlapped && (moved || pending.moves_break());
            }
            Finished::Event(EventKind::NotDecoded { .. }) => space.break_unsure = true,
            Finished::Event(_) | Finished::AdviceTo { .. } | Finished::Nothing => {}
        }
        let unsure = space.break_unsure && space.under_way.is_empty();
        space.break_unsure &= !unsure;
        unsure
    }

    fn tell_finished(&mut self, tid: u32, space: SpaceId, told: Told) {
        match told.finished {
            Finished::Event(kind) => {
                if let EventKind::NotDecoded { abi, .. } = &kind {
                    self.mention_undecoded(tid, &abi.clone());
                }
                if let Some(seen) = told.malloc.seen {
                    self.record(tid, space, EventKind::MallocSeen(seen));
                }
                let circumstances = Circumstances {
                    allocator: told.by_allocator,
                    stack: told.stack,
                    malloc: told.malloc.call,
                };
                self.record_in_order(tid, space, kind, circumstances);
            }
            Finished::AdviceTo { pidfd, events } => {
                let target = proc::process_of_pidfd(tid, pidfd)
                    .and_then(|pid| self.tracees.processes.get(&pid));
                // Advice to a process that is not under trace concerns none that is.
                if let Some(space) = target.map(|process| process.space) {
                    for kind in events {
                        self.record(tid, space, kind);
                    }
                }
            }
            Finished::Nothing => {}
        }
        for kind in told.heard {
            let stack = told.stack.filter(|_| self.wants_stack_of(space, &kind));
            let circumstances = Circumstances {
                stack,
                ..Circumstances::default()
            };
            self.record_in_order(tid, space, kind, circumstances);
        }
        self.release_delayed(tid);
    }

    /// A thread asks for another program: what goes with the old one is read now, and told if that succeeds.
    fn exec_begins(&mut self, tid: u32) {
        let read = self.read_bundled_before_exec(tid);
        if let Some(tracee) = self.tracees.threads.get_mut(&tid) {
            tracee.before_exec = read;
        }
    }

    /// The thread whose call, still under way, must have freed the addresses that this one was given: its return is
    /// seen later, but it took effect earlier.
    fn took_effect_after(&self, tid: u32, space: SpaceId, kind: &EventKind) -> Option<u32> {
        let given = given_by_kernel(kind)?;
        self.tracees
            .spaces
            .get(&space)?
            .under_way
            .iter()
            .find(|(other, call)| {
                *other != tid && call.frees.is_some_and(|range| range.overlaps(given))
            })
            .map(|(other, _)| *other)
    }

    /// Hands out what a call did, after that on which it depends.
    fn record_in_order(
        &mut self,
        tid: u32,
        space: SpaceId,
        kind: EventKind,
        circumstances: Circumstances,
    ) {
        let awaited = self.took_effect_after(tid, space, &kind);
        let queue = self.delayed.get(&space);
        let is_awaited =
            queue.is_some_and(|queue| queue.iter().any(|(awaited, _)| *awaited == Some(tid)));
        let is_due = awaited.is_none() && (queue.is_none() || is_awaited);
        let Some(event) = self.event(tid, space, kind) else {
            return;
        };
        let event = Event {
            allocator: circumstances.allocator,
            stack: circumstances.stack,
            malloc: circumstances.malloc,
            ..event
        };
        if is_due {
            self.ready.push_back(event);
        } else {
            self.delayed
                .entry(space)
                .or_default()
                .push_back((awaited, event));
        }
    }

    /// Hands out what waited for a call of this thread.
    fn release_delayed(&mut self, tid: u32) {
        if self.delayed.is_empty() {
            return;
        }
        let now = self.now();
        for queue in self.delayed.values_mut() {
            for (awaited, _) in queue
                .iter_mut()
                .filter(|(awaited, _)| *awaited == Some(tid))
            {
                *awaited = None;
            }
            while let Some((None, _)) = queue.front() {
                let released = queue.pop_front();
                self.ready
                    .extend(released.map(|(_, event)| Event { time: now, ..event }));
            }
        }
        self.delayed.retain(|_, queue| !queue.is_empty());
    }

    fn mention_undecoded(&mut self, tid: u32, abi: &str) {
        if self.undecoded.insert(abi.to_owned()) {
            let message = format!(
                "some memory calls of the {abi} ABI are not decoded; what they did is taken from /proc/PID/maps"
            );
            self.mention(tid, NoticeCode::NotDecoded, message);
        }
    }

    // ---- processes and threads ----

    /// A launched program is about to begin.
    pub(super) fn admit_launched(&mut self, stopped: Stopped, notices: Vec<Notice>) {
        let pid = stopped.tid();
        let every_call = self.recording.capture.stops == Stops::EveryCall;
        // The exec itself has still to return, where returns are seen.
        let doing = if every_call {
            Doing::OtherCall
        } else {
            Doing::Program
        };
        let prospect = self.bundled_prospect(pid);
        self.admit_process_quietly(pid, Origin::Launched);
        self.tracees.add_thread(pid, pid, doing);
        self.process_started(pid, Origin::Launched, None, None);
        for notice in notices {
            self.mention(pid, notice.code, notice.message);
        }
        if let Some(space) = self.tracees.space_of(pid) {
            self.snapshot_by(pid, space, SnapshotReason::Start);
            self.expect_bundled(pid, space, prospect);
        }
        self.go_on_with(stopped, 0);
    }

    /// Makes a process known that has an address space of its own, without telling of it.
    pub(super) fn admit_process_quietly(&mut self, pid: u32, origin: Origin) {
        let recorded = match origin {
            Origin::Launched => true,
            Origin::Attached => self.options.follow || self.recording.mode == Mode::Attach,
            Origin::Forked | Origin::Vforked | Origin::Cloned => self.options.follow,
        };
        let space = self.new_space(pid, recorded);
        let process = Process {
            space,
            recorded,
            command: Rc::new(Command::of(pid)),
            last_outcome: None,
        };
        self.tracees.processes.insert(pid, process);
    }

    /// Makes a process known by one of its threads, of whose birth nobody told.
    pub(super) fn admit_orphan(&mut self, tid: u32, pid: u32) {
        self.admit_process_quietly(pid, Origin::Attached);
        self.tracees.add_thread(tid, pid, Doing::Unknown);
        self.process_started(pid, Origin::Attached, None, None);
        if let Some(space) = self.tracees.space_of(tid) {
            self.snapshot_by(tid, space, SnapshotReason::Attach);
        }
    }

    /// A tracee has a child.
    fn child_born(&mut self, stopped: Stopped, birth: Birth) {
        let parent = stopped.tid();
        let child = stopped
            .event_message()
            .ok()
            .and_then(|message| u32::try_from(message).ok());
        let family = self
            .tracees
            .process_of(parent)
            .map(|(pid, process)| (pid, process.space));
        if let Some((child, (pid, space))) = child.zip(family) {
            let shares = sys::same_address_space(parent, child).unwrap_or(birth != Birth::Fork);
            if shares && proc::is_thread_of(child, pid) {
                self.tracees.add_thread(child, pid, self.newborn());
                if !self.is_joining() {
                    self.thread_started(child, pid);
                }
            } else if self.options.follow || self.launched_with_filter() {
                self.process_born(child, pid, space, birth, shares);
            } else {
                self.unwanted.insert(child);
            }
            if let Some((stop, _)) = self.parked.remove(&child) {
                self.handle(child, Change::Stopped(stop));
            }
        }
        self.go_on_with(stopped, 0);
    }

    /// What a new thread is about to do: return from the call that made it, where returns are seen.
    fn newborn(&self) -> Doing {
        match self.recording.capture.stops {
            Stops::EveryCall => Doing::OtherCall,
            Stops::MemoryCalls => Doing::Program,
        }
    }

    /// Whether all descendants have the filter, and so need a tracer.
    pub(super) fn launched_with_filter(&self) -> bool {
        self.recording.capture.stops == Stops::MemoryCalls
    }

    fn process_born(
        &mut self,
        child: u32,
        parent: u32,
        parents_space: SpaceId,
        birth: Birth,
        shares: bool,
    ) {
        let origin = match (shares, birth) {
            (false, _) => Origin::Forked,
            (true, Birth::Vfork) => Origin::Vforked,
            (true, _) => Origin::Cloned,
        };
        let Some(command) = self
            .tracees
            .processes
            .get(&parent)
            .map(|process| Rc::clone(&process.command))
        else {
            return;
        };
        let recorded = self.options.follow;
        let mut copy_is_unsure = false;
        let space = if shares {
            parents_space
        } else {
            let original = self.tracees.spaces.get(&parents_space);
            copy_is_unsure = original.is_some_and(|space| !space.under_way.is_empty());
            let program_break = original.and_then(|space| space.program_break);
            let bundled = original.map(|space| space.bundled.clone());
            let code = original.map(|space| space.code.forked());
            let malloc = original.map(|space| space.malloc.clone());
            self.tracees.new_space(Space {
                owner: child,
                recorded,
                program_break,
                bundled: bundled.unwrap_or_default(),
                code: code.unwrap_or_default(),
                malloc: malloc.unwrap_or_default(),
                ..Space::default()
            })
        };
        let process = Process {
            space,
            recorded,
            command,
            last_outcome: None,
        };
        self.tracees.processes.insert(child, process);
        self.tracees.add_thread(child, child, self.newborn());
        if self.is_joining() {
            return;
        }
        self.process_started(child, origin, Some(parent), Some(parents_space));
        if !shares {
            self.tell_inherited_bundled(child, space);
        }
        if copy_is_unsure {
            // Whether the calls under way came before the copy, only the copy itself tells.
            self.snapshot_by(child, space, SnapshotReason::Start);
        }
    }

    /// A process runs a new program.
    fn executed(&mut self, stopped: Stopped) {
        // The thread that called exec has become the leader; all others are gone without a word (ptrace(2), "execve(2)
        // under ptrace").
        let pid = stopped.tid();
        let caller = stopped
            .event_message()
            .ok()
            .and_then(|message| u32::try_from(message).ok())
            .unwrap_or(pid);
        let before_exec = self
            .tracees
            .threads
            .get_mut(&caller)
            .map(|tracee| std::mem::take(&mut tracee.before_exec))
            .unwrap_or_default();
        let others: Vec<u32> = self
            .tracees
            .threads_of(pid)
            .filter(|tid| *tid != pid)
            .collect();
        for tid in others {
            self.forget_thread(tid);
            self.thread_ended(tid, pid);
        }
        self.tracees.leave_call(pid, self.newborn());
        let Some(process) = self.tracees.processes.get(&pid) else {
            self.go_on_with(stopped, 0);
            return;
        };
        let (from_space, recorded) = (process.space, process.recorded);
        if !self.tracees.is_shared(from_space, pid) {
            for kind in before_exec {
                self.record(pid, from_space, kind);
            }
            self.tell_if_bundled_was_missing(pid, from_space);
            self.name_generated_code(pid, from_space);
        }
        let prospect = self.bundled_prospect(pid);
        let space = self.new_space(pid, recorded);
        if let Some(process) = self.tracees.processes.get_mut(&pid) {
            process.space = space;
        }
        self.tracees.drop_space_if_unused(from_space);
        let snapshot = self.read_snapshot(pid, space, SnapshotReason::Start);
        self.go_on_with(stopped, 0);
        // The rest can be read while the program runs: it cannot end before we have seen it do so.
        let command = Rc::new(Command::of(pid));
        let kind = EventKind::Exec {
            program: command.program.clone(),
            arguments: command.arguments.clone(),
            from_space,
        };
        if let Some(process) = self.tracees.processes.get_mut(&pid) {
            process.command = command;
        }
        self.record_process(pid, pid, kind);
        if let Some(snapshot) = snapshot {
            self.record(pid, space, snapshot);
        }
        self.expect_bundled(pid, space, prospect);
    }

    /// A thread is about to end; its memory is still there.
    fn about_to_end(&mut self, stopped: Stopped) {
        let tid = stopped.tid();
        self.tracees.leave_call(tid, Doing::Program);
        self.release_delayed(tid);
        if let Some(tracee) = self.tracees.threads.get_mut(&tid) {
            tracee.ending = true;
        }
        self.keep_last_registers(tid);
        self.keep_last_thread_pointer(tid);
        if let Some(space) = self.tracees.space_of(tid)
            && self
                .tracees
                .spaces
                .get(&space)
                .is_some_and(|space| space.recorded)
            && !self.tracees.is_in_use(space)
        {
            self.snapshot_by(tid, space, SnapshotReason::End);
            self.name_generated_code(tid, space);
            self.tell_if_bundled_is_missing(tid, space);
        }
        self.go_on_with(stopped, 0);
    }

    /// A thread has ended.
    fn ended(&mut self, tid: u32, outcome: Outcome) {
        self.parked.remove(&tid);
        let was_unwanted = self.unwanted.remove(&tid);
        let Some(pid) = self.tracees.threads.get(&tid).map(|tracee| tracee.pid) else {
            // Killed before its parent could tell of it; or, rarely, a child that breaktrace had before it was executed.
            if !was_unwanted {
                self.stillborn.insert(tid);
            }
            return;
        };
        self.forget_thread(tid);
        if self.tracees.threads_of(pid).next().is_some() {
            self.thread_ended(tid, pid);
        } else {
            if self.is_joining() {
                // It ended before it could be told of.
                self.process_started(pid, Origin::Attached, None, None);
            }
            // With the leader gone, all threads of a process end alike.
            self.process_ended(pid, outcome);
            if let Some(process) = self.tracees.processes.remove(&pid) {
                self.tracees.drop_space_if_unused(process.space);
            }
            if Some(pid) == self.launched && self.launched_outcome.is_none() {
                self.launched_outcome = Some((outcome, self.now()));
            }
        }
    }

    fn forget_thread(&mut self, tid: u32) {
        self.tracees.leave_call(tid, Doing::Program);
        self.release_delayed(tid);
        self.tracees.threads.remove(&tid);
    }

    // ---- telling ----

    /// Tells of a new process.
    pub(super) fn process_started(
        &mut self,
        pid: u32,
        origin: Origin,
        parent: Option<u32>,
        from_space: Option<SpaceId>,
    ) {
        let Some(process) = self.tracees.processes.get(&pid) else {
            return;
        };
        let command = Rc::clone(&process.command);
        let kind = EventKind::ProcessStarted {
            origin,
            parent,
            from_space,
            program: command.program.clone(),
            arguments: command.arguments.clone(),
        };
        self.record_process(pid, pid, kind);
    }

    /// Tells of a new thread.
    pub(super) fn thread_started(&mut self, tid: u32, pid: u32) {
        self.record_process(pid, tid, EventKind::ThreadStarted);
    }

    /// Tells of the end of a thread that was not the last of its process.
    fn thread_ended(&mut self, tid: u32, pid: u32) {
        if !self.is_joining() {
            self.record_process(pid, tid, EventKind::ThreadEnded);
        }
    }

    /// Whether processes are still being joined: what exists is told when they stand still, and not before.
    fn is_joining(&self) -> bool {
        matches!(self.phase, Phase::Joining { .. })
    }

    /// Tells of the end of a process, once.
    pub(super) fn process_ended(&mut self, pid: u32, outcome: Outcome) {
        if let Some(process) = self.tracees.processes.get_mut(&pid)
            && process.last_outcome.replace(outcome).is_none()
        {
            self.record_process(pid, pid, EventKind::ProcessEnded { outcome });
        }
    }

    /// Hands out an event of a process, if it is recorded.
    fn record_process(&mut self, pid: u32, tid: u32, kind: EventKind) {
        let Some(process) = self.tracees.processes.get(&pid) else {
            return;
        };
        if process.recorded {
            self.tell(process.space, pid, tid, kind);
        }
    }

    /// Hands out an event of an address space, if that is recorded.
    pub(super) fn record(&mut self, tid: u32, space: SpaceId, kind: EventKind) {
        if let Some(event) = self.event(tid, space, kind) {
            self.ready.push_back(event);
        }
    }

    /// An event of an address space, if that is recorded.
    pub(super) fn event(&self, tid: u32, space: SpaceId, kind: EventKind) -> Option<Event> {
        let state = self
            .tracees
            .spaces
            .get(&space)
            .filter(|space| space.recorded)?;
        let caller = self
            .tracees
            .process_of(tid)
            .filter(|(_, process)| process.recorded);
        // An unrecorded child that shares the memory of a recorded process acts on its behalf.
        let pid = caller.map_or(state.owner, |(pid, _)| pid);
        Some(Event {
            malloc: None,
            time: self.now(),
            pid,
            tid,
            space,
            allocator: None,
            stack: None,
            kind,
        })
    }

    /// Takes the program break from a snapshot, where it is not known better.
    pub(super) fn learn_break(&mut self, space: SpaceId, snapshot: &Snapshot) {
        let Some(space) = self.tracees.spaces.get_mut(&space) else {
            return;
        };
        let heap_end = snapshot
            .mappings
            .iter()
            .filter(|mapping| mapping.kind() == MappingKind::Heap)
            .map(|mapping: &Mapping| mapping.end)
            .max();
        match snapshot.reason {
            // The break begins where the heap does, before the first call (fs/binfmt_elf.c).
            SnapshotReason::Start if space.program_break.is_none() => {
                space.program_break = snapshot.heap_start
            }
            SnapshotReason::Attach => space.program_break = heap_end.or(snapshot.heap_start),
            SnapshotReason::Resync => space.program_break = heap_end.or(space.program_break),
            _ => {}
        }
    }
}

/// Whether a call changed what code lies where.
fn changes_code(kind: &EventKind, code: &Code) -> bool {
    match kind {
        EventKind::Mmap {
            protection,
            length,
            result: CallResult::Done(start),
            ..
        } => {
            protection.contains(Protection::EXEC)
                || code.has_any_in(start.0, start.0.saturating_add(*length))
        }
        EventKind::Munmap {
            address,
            length,
            result: CallResult::Done(()),
        } => code.has_any_in(address.0, address.0.saturating_add(*length)),
        EventKind::Mprotect {
            address,
            length,
            protection,
            result: CallResult::Done(()),
        } => {
            // What is code already stays it when it is opened for writing and closed again.
            protection.contains(Protection::EXEC)
                && !code.has_any_in(address.0, address.0.saturating_add(*length))
        }
        EventKind::Mremap {
            address,
            old_length,
            result: CallResult::Done(_),
            ..
        } => code.has_any_in(address.0, address.0.saturating_add(*old_length)),
        _ => false,
    }
}

/// The addresses that the kernel chose for a call, as they were free.
fn given_by_kernel(kind: &EventKind) -> Option<Range> {
    match kind {
        EventKind::Mmap {
            length,
            flags,
            result: CallResult::Done(address),
            ..
        } if !flags.contains(MapFlags::FIXED) => Some(range(*address, *length)),
        EventKind::Mremap {
            new_length,
            flags,
            address: old,
            result: CallResult::Done(address),
            ..
        } if address != old && !flags.contains(RemapFlags::FIXED) => {
            Some(range(*address, *new_length))
        }
        EventKind::Shmat {
            length: Some(length),
            result: CallResult::Done(address),
            ..
        }
        | EventKind::MapShadowStack {
            length,
            result: CallResult::Done(address),
        } => Some(range(*address, *length)),
        _ => None,
    }
}

fn range(start: Address, length: u64) -> Range {
    Range {
        start: start.0,
        end: (start + length).0,
    }
}

/// Takes `CLONE_UNTRACED` off a clone that is about to begin: without a tracer, the filter would make each memory
/// call of the child fail.
fn keep_child_traced(tid: u32, architecture: u32, number: u64, arguments: [u64; 6]) {
    const CLONE_UNTRACED: u64 = libc::CLONE_UNTRACED.cast_unsigned() as u64;
    let Some((found, call)) = abi::find(architecture, number) else {
        return;
    };
    let _ = match call {
        abi::Call::Clone if arguments[0] & CLONE_UNTRACED != 0 => {
            sys::set_first_argument(tid, found.is_32_bit, arguments[0] & !CLONE_UNTRACED)
        }
        // The flags are the first member of struct clone_args (clone(2)).
        abi::Call::Clone3 => match sys::read_word(tid, arguments[0]) {
            Some(flags) if flags & CLONE_UNTRACED != 0 => {
                sys::write_word(tid, arguments[0], flags & !CLONE_UNTRACED)
            }
            _ => Ok(()),
        },
        _ => Ok(()),
    };
}
