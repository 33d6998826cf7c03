//! Who is traced: threads, the processes they belong to, and the address spaces that these use.

use std::collections::HashMap;
use std::rc::Rc;

use super::bundled::Bundled;
use super::call::Pending;
use super::call::Range;
use super::malloc_state::MallocState;
use super::modules::Code;
use super::proc;
use super::stop::Resume;
use super::stop::Stopped;
use super::sys::StackRegisters;
use crate::event::EventKind;
use crate::event::Outcome;
use crate::event::SpaceId;
use crate::units::Address;

/// What a thread is doing, as far as its stops have told.
#[derive(Clone, Copy, Debug)]
pub(super) enum Doing {
    /// Not known, as breaktrace joined it at an unknown point.
    Unknown,
    /// It runs its program.
    Program,
    /// It is inside a call that is not traced.
    OtherCall,
    /// It is inside a traced call.
    MemoryCall(Pending),
}

/// A thread under trace.
#[derive(Debug)]
pub(super) struct Tracee {
    /// Its process (thread group).
    pub(super) pid: u32,
    /// What it is doing.
    pub(super) doing: Doing,
    /// It has passed its exit event, or ended: it uses its address space no more.
    pub(super) ending: bool,
    /// It is held stopped, and goes on in this way later.
    pub(super) held: Option<(Stopped, Resume)>,
    /// What is to be told of its program when the exec that it has begun replaces it.
    pub(super) before_exec: Vec<EventKind>,
    /// Its thread pointer, once known.
    pub(super) thread_pointer: Option<u64>,
}

/// What a process runs; shared by its forked children until they exec.
#[derive(Debug)]
pub(super) struct Command {
    /// The program's file.
    pub(super) program: String,
    /// Its arguments, its name first.
    pub(super) arguments: Vec<String>,
}

impl Command {
    /// What thread `tid` runs now.
    pub(super) fn of(tid: u32) -> Self {
        Self {
            program: proc::program(tid),
            arguments: proc::arguments(tid),
        }
    }
}

/// A process (thread group) under trace.
#[derive(Debug)]
pub(super) struct Process {
    /// Its address space.
    pub(super) space: SpaceId,
    /// Whether events of it are wanted (`--no-follow`).
    pub(super) recorded: bool,
    /// What it runs.
    pub(super) command: Rc<Command>,
    /// How it ended, once that was told.
    pub(super) last_outcome: Option<Outcome>,
}

/// An address space under trace.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// The process that events are ascribed to when their own is not recorded.
    pub(super) owner: u32,
    /// Whether events of it are wanted.
    pub(super) recorded: bool,
    /// The program break, once known.
    pub(super) program_break: Option<Address>,
    /// Traced calls under way: by which thread, and what each may free before it returns.
    pub(super) under_way: Vec<(u32, UnderWay)>,
    /// Two moves of the break overlapped: only the kernel knows where it is.
    pub(super) break_unsure: bool,
    /// The bundled allocator in it.
    pub(super) bundled: Bundled,
    /// glibc's malloc in it.
    pub(super) malloc: MallocState,
    /// Its code, as far as stacks needed it.
    pub(super) code: Code,
    /// Of threads that ended with their process, if leaks are to be looked for.
    pub(super) last_registers: Vec<StackRegisters>,
    /// Thread pointers of threads that ended with their process.
    pub(super) last_thread_pointers: Vec<u64>,
}

/// A call under way, as far as others need to know.
#[derive(Clone, Copy, Debug)]
pub(super) struct UnderWay {
    pub(super) frees: Option<Range>,
    pub(super) moves_break: bool,
}

/// All that is traced.
#[derive(Debug, Default)]
pub(super) struct Tracees {
    pub(super) threads: HashMap<u32, Tracee>,
    pub(super) processes: HashMap<u32, Process>,
    pub(super) spaces: HashMap<SpaceId, Space>,
    last_space: u32,
}

impl Tracees {
    /// A number for a new address space.
    pub(super) fn new_space(&mut self, space: Space) -> SpaceId {
        self.last_space += 1;
        let id = SpaceId(self.last_space);
        self.spaces.insert(id, space);
        id
    }

    /// Adds a thread to a process.
    pub(super) fn add_thread(&mut self, tid: u32, pid: u32, doing: Doing) {
        let tracee = Tracee {
            pid,
            doing,
            ending: false,
            held: None,
            before_exec: Vec::new(),
            thread_pointer: None,
        };
        self.threads.insert(tid, tracee);
    }

    /// The process of a thread.
    pub(super) fn process_of(&self, tid: u32) -> Option<(u32, &Process)> {
        let pid = self.threads.get(&tid)?.pid;
        Some((pid, self.processes.get(&pid)?))
    }

    /// The address space of a thread.
    pub(super) fn space_of(&self, tid: u32) -> Option<SpaceId> {
        self.process_of(tid).map(|(_, process)| process.space)
    }

    /// The threads of a process that are under trace.
    pub(super) fn threads_of(&self, pid: u32) -> impl Iterator<Item = u32> + '_ {
        self.threads
            .iter()
            .filter(move |(_, tracee)| tracee.pid == pid)
            .map(|(tid, _)| *tid)
    }

    /// Whether some thread still uses this address space.
    pub(super) fn is_in_use(&self, space: SpaceId) -> bool {
        self.threads.values().any(|tracee| {
            !tracee.ending
                && self
                    .processes
                    .get(&tracee.pid)
                    .is_some_and(|process| process.space == space)
        })
    }

    /// Whether a process other than `pid` uses this address space, too.
    pub(super) fn is_shared(&self, space: SpaceId, pid: u32) -> bool {
        self.processes
            .iter()
            .any(|(other, process)| *other != pid && process.space == space)
    }

    /// Drops an address space that no process uses any more.
    pub(super) fn drop_space_if_unused(&mut self, space: SpaceId) {
        if !self
            .processes
            .values()
            .any(|process| process.space == space)
        {
            self.spaces.remove(&space);
        }
    }

    /// A thread enters a traced call.
    pub(super) fn enter_call(&mut self, tid: u32, pending: Pending) {
        let space = self.space_of(tid);
        if let Some(tracee) = self.threads.get_mut(&tid) {
            tracee.doing = Doing::MemoryCall(pending);
        }
        let under_way = UnderWay {
            frees: pending.frees(),
            moves_break: pending.moves_break(),
        };
        if let Some(space) = space.and_then(|space| self.spaces.get_mut(&space)) {
            space.under_way.push((tid, under_way));
        }
    }

    /// A thread is no longer inside the call it was in, whatever became of it; returns a traced one.
    pub(super) fn leave_call(&mut self, tid: u32, doing: Doing) -> Option<Pending> {
        let space = self.space_of(tid);
        let tracee = self.threads.get_mut(&tid)?;
        let was = std::mem::replace(&mut tracee.doing, doing);
        let Doing::MemoryCall(pending) = was else {
            return None;
        };
        if let Some(space) = space.and_then(|space| self.spaces.get_mut(&space)) {
            space.under_way.retain(|(caller, _)| *caller != tid);
        }
        Some(pending)
    }
}
