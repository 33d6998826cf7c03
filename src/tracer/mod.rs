//! The tracer: everything that calls ptrace. Stops go in, [`Event`]s come out.
//!
//! [`Tracer::launch`] starts a program, [`Tracer::attach`] joins running ones; then [`Tracer::next_event`] is called
//! until there are no more. One thread does it all: ptrace obeys only the thread that attached, and
//! `PTRACE_O_EXITKILL` fires when that thread ends (ptrace(2)).
//!
//! What a stop means is in `dispatch`; this file owns the loop around it, the requests from outside, and the clock.

mod abi;
mod attach;
mod bundled;
mod call;
mod cpython;
mod dispatch;
mod environment;
mod examine;
mod executable;
mod guard;
mod heap_source;
mod image;
mod latency;
mod launch;
mod launch_error;
mod leaks;
mod library;
mod malloc_state;
mod modules;
mod perf_map;
mod proc;
mod process_facts;
mod reachability;
mod requests;
mod rule;
mod seccomp;
mod short_stop;
mod stack;
mod stack_memory;
mod stats_reader;
mod stop;
mod sys;
mod tracee;
mod wait;
mod walk;

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::collections::HashSet;
use std::collections::VecDeque;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use libc::c_int;
use nix::errno::Errno;

pub use self::attach::AttachError;
pub use self::examine::examine_process;
pub use self::executable::NotPreloadable;
pub use self::heap_source::LiveImage;
pub use self::launch::Launch;
pub use self::launch_error::LaunchError;
pub use self::library::Allocator;
pub use self::library::FolderProblem;
pub use self::library::LibraryError;
pub use self::process_facts::ProcessFacts;
pub use self::process_facts::process_facts;
pub use self::short_stop::ShortStop;
pub use self::short_stop::ThreadAt;

use self::latency::LatencyHold;
use self::library::Library;
use self::requests::Handlers;
use self::requests::Requests;
use self::stack::Stacks;
use self::stop::Resume;
use self::stop::Stop;
use self::stop::Stopped;
use self::tracee::Doing;
use self::tracee::Space;
use self::tracee::Tracees;
use self::wait::Waited;
use self::wait::Waiter;
use crate::event::AllocatorChoice;
use crate::event::Capture;
use crate::event::EndReason;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::Machine;
use crate::event::Mode;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::ReadingMoment;
use crate::event::Recording;
use crate::event::SnapshotReason;
use crate::event::SpaceId;
use crate::event::StackMode;
use crate::event::Stops;
use crate::heap_walk::Locator;
use crate::heap_walk::Recogniser;
use crate::units::Timestamp;

/// A process whose parent died before it could tell us of it is taken in after so long.
const ORPHAN_PATIENCE: u64 = 200_000_000;
/// So long we wait for all threads of attached processes to stop, in nanoseconds; one that sleeps uninterruptibly
/// must not keep the others standing.
const STANDSTILL_PATIENCE: u64 = 50_000_000;
/// So long we wait for the last threads to stop before we leave without them: the kernel lets them go when we end.
const LEAVING_PATIENCE: u64 = 1_000_000_000;
/// So long after SIGTERM the program is killed, when `--duration` is over.
const TERMINATION_PATIENCE: u64 = 5_000_000_000;
/// So long after the program's end we mention the processes that it left behind.
const DAEMON_PATIENCE: u64 = 1_000_000_000;

/// How to trace.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Record children, too.
    pub follow: bool,
    /// Take a snapshot after every memory call.
    pub verify: bool,
    /// Hold the idle-wake latency of the processors down while stops come fast.
    pub latency_hold: bool,
    /// End the recording after so long: an attached process is let go, a launched one is asked to end (SIGTERM) and
    /// killed five seconds later.
    pub duration: Option<Duration>,
    /// Take snapshots this often.
    pub every: Option<Duration>,
    /// Of which calls to record the stacks.
    pub stacks: StackMode,
    /// Most frames to record of a stack.
    pub stack_depth: u32,
    /// Mean number of requested bytes between two samples of the bundled allocator's blocks; `None` for no samples.
    pub sample_interval: Option<u64>,
    /// Whether to search for lost blocks of the bundled allocator when a program ends.
    pub leaks: bool,
    /// Whether to look through the heap of a program's own malloc at snapshots and at its end.
    pub heap: bool,
}

/// Why tracing cannot go on.
#[derive(Debug, thiserror::Error)]
#[error("tracing failed: {request}: {}", errno.desc())]
pub struct TraceError {
    request: &'static str,
    errno: Errno,
}

impl TraceError {
    fn new(request: &'static str) -> impl FnOnce(Errno) -> Self {
        move |errno| Self { request, errno }
    }
}

/// What the tracer is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Processes we attach to come to a standstill.
    Joining {
        /// When that began.
        since: Timestamp,
    },
    /// The work.
    Tracing,
    /// Processes we let go come to a standstill.
    Leaving {
        /// When that began.
        since: Timestamp,
        /// Those that stood still have been let go.
        let_go: bool,
    },
    /// There is nothing more to tell.
    Over,
}

/// Traces processes and tells what happens to their memory.
#[derive(Debug)]
pub struct Tracer {
    options: Options,
    recording: Recording,
    began: Instant,
    phase: Phase,
    end_reason: EndReason,
    /// A signal to breaktrace asked for an end.
    was_asked_to_end: bool,
    tracees: Tracees,
    waiter: Waiter,
    latency: LatencyHold,
    latency_told: bool,
    stacks: Stacks,
    _handlers: Handlers,
    /// Events that are complete.
    ready: VecDeque<Event>,
    /// Per address space, events that took effect after a call that this thread has not returned from yet, and all
    /// later ones.
    delayed: HashMap<SpaceId, VecDeque<(Option<u32>, Event)>>,
    /// Threads that stopped before we heard of their birth.
    parked: HashMap<u32, (Stop, Timestamp)>,
    /// Threads that ended before we heard of their birth.
    stillborn: HashSet<u32>,
    /// Children that are not to be followed, to be let go at their first stop.
    unwanted: HashSet<u32>,
    /// ABIs whose calls could not be decoded, and that have been mentioned.
    undecoded: HashSet<String>,
    /// What is preloaded into the launched program; its file goes when we do.
    library: Option<Library>,
    /// Where programs have their malloc, by file.
    locator: Locator,
    recogniser: Recogniser,
    /// The program that was launched, and how it ended.
    launched: Option<u32>,
    launched_outcome: Option<(Outcome, Timestamp)>,
    launched_is_stopped: bool,
    daemons_told: bool,
    /// The terminal wants the job stopped; we follow when the program has.
    stop_wanted: bool,
    deadline: Option<Timestamp>,
    termination_asked: bool,
    next_snapshot: Option<Timestamp>,
    last_tick: Timestamp,
}

impl Tracer {
    /// Starts a program under trace. Nothing of it has run when this returns.
    ///
    /// # Errors
    ///
    /// The program cannot be run, or tracing is not permitted.
    pub fn launch(launch: &Launch, options: Options) -> Result<Self, LaunchError> {
        // Before there is anything to be cleaned up.
        let handlers = Handlers::install().map_err(|errno| LaunchError::Trace {
            request: "sigaction",
            errno,
        })?;
        let launched = launch::launch(launch, launch_options(launch.seccomp, options.follow))?;
        let pid = launched.stopped.tid();
        let command = std::iter::once(&launch.program)
            .chain(&launch.arguments)
            .map(|word| word.to_string_lossy().into_owned())
            .collect();
        let mut tracer = Self::new(
            Mode::Run,
            command,
            vec![pid],
            launched.stops,
            launch.no_aslr,
            options,
            handlers,
        );
        tracer.recording.allocator = AllocatorChoice::from(&launch.allocator);
        tracer.recording.environment = environment::that_matters(&launch.environment);
        tracer.library = launched.library;
        tracer.launched = Some(pid);
        tracer.admit_launched(launched.stopped, launched.notices);
        Ok(tracer)
    }

    /// Joins running processes.
    ///
    /// # Errors
    ///
    /// One of them cannot be traced; none is, then.
    pub fn attach(pids: &[u32], options: Options) -> Result<Self, AttachError> {
        let pids = attach::processes(pids)?;
        let handlers = Handlers::install().map_err(AttachError::Handlers)?;
        let mut tracer = Self::new(
            Mode::Attach,
            Vec::new(),
            pids.clone(),
            Stops::EveryCall,
            false,
            options,
            handlers,
        );
        for pid in pids {
            tracer.seize_process(pid)?;
        }
        let threads: Vec<u32> = tracer.tracees.threads.keys().copied().collect();
        tracer.phase = Phase::Joining {
            since: tracer.now(),
        };
        for tid in threads {
            // A thread that has died meanwhile reports its end.
            let _ = sys::interrupt(tid);
        }
        Ok(tracer)
    }

    fn new(
        mode: Mode,
        command: Vec<String>,
        pids: Vec<u32>,
        stops: Stops,
        no_aslr: bool,
        options: Options,
        handlers: Handlers,
    ) -> Self {
        let after = |duration: Option<Duration>| {
            duration
                .map(|duration| Timestamp(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)))
        };
        Self {
            options,
            recording: Recording {
                mode,
                command,
                pids,
                started_at_unix: SystemTime::now()
                    .duration_since(UNIX_EPOCH)
                    .map_or(0, |elapsed| elapsed.as_secs()),
                machine: machine(),
                allocator: AllocatorChoice::System,
                environment: BTreeMap::new(),
                processors: std::thread::available_parallelism()
                    .ok()
                    .and_then(|number| u32::try_from(number.get()).ok()),
                capture: Capture {
                    stops,
                    follow: options.follow,
                    no_aslr,
                    verify: options.verify,
                    stacks: options.stacks,
                    stack_depth: options.stack_depth,
                    sample_interval_bytes: options.sample_interval,
                    leaks: options.leaks,
                },
            },
            began: Instant::now(),
            phase: Phase::Tracing,
            end_reason: EndReason::Finished,
            was_asked_to_end: false,
            tracees: Tracees::default(),
            waiter: Waiter::new(),
            latency: LatencyHold::new(options.latency_hold),
            latency_told: false,
            stacks: Stacks::new(options.stacks, options.stack_depth),
            _handlers: handlers,
            ready: VecDeque::new(),
            delayed: HashMap::new(),
            parked: HashMap::new(),
            stillborn: HashSet::new(),
            unwanted: HashSet::new(),
            undecoded: HashSet::new(),
            library: None,
            locator: Locator::default(),
            recogniser: Recogniser::default(),
            launched: None,
            launched_outcome: None,
            launched_is_stopped: false,
            daemons_told: false,
            stop_wanted: false,
            deadline: after(options.duration),
            termination_asked: false,
            next_snapshot: after(options.every),
            last_tick: Timestamp(0),
        }
    }

    /// What is recorded, how, and on what machine.
    #[must_use]
    pub fn recording(&self) -> &Recording {
        &self.recording
    }

    /// How the launched program ended; `None` while it runs, and for attached processes.
    #[must_use]
    pub fn launched_outcome(&self) -> Option<Outcome> {
        self.launched_outcome.map(|(outcome, _)| outcome)
    }

    /// Whether SIGINT, SIGTERM, SIGHUP or SIGQUIT came to breaktrace so far, from a terminal or a process.
    #[must_use]
    pub fn was_asked_to_end(&self) -> bool {
        // The program may have died of the same signal before it was looked at here.
        self.was_asked_to_end || Requests::is_end_pending()
    }

    /// Waits for the next event; `None` after the last one.
    ///
    /// # Errors
    ///
    /// The kernel refuses to go on, for another reason than the death of a tracee.
    pub fn next_event(&mut self) -> Result<Option<Event>, TraceError> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            if self.phase == Phase::Over {
                return Ok(None);
            }
            self.look_around();
            if self.tracees.threads.is_empty() && self.parked.is_empty() {
                self.settle()?;
                continue;
            }
            if self.ready.is_empty() {
                let waited = self
                    .waiter
                    .wait(self.tracees.threads.len(), self.latency.is_held());
                match waited.map_err(TraceError::new("waitpid"))? {
                    Waited::Status(tid, status) => self.handle(tid, stop::interpret(status)),
                    Waited::Interrupted => {}
                    // Only tracees that nobody will ever report on are left.
                    Waited::Nobody => self.finish(),
                }
            }
        }
    }

    /// No tracee is known: looks once more whether one is on its way, and otherwise ends the recording.
    fn settle(&mut self) -> Result<(), TraceError> {
        for patience in [Duration::ZERO, Duration::from_millis(20)] {
            std::thread::sleep(patience);
            match sys::wait_any(libc::WNOHANG) {
                Ok(Some((tid, status))) => {
                    self.handle(tid, stop::interpret(status));
                    return Ok(());
                }
                // Children that are none of ours: breaktrace was started by exec from a program that had some.
                Ok(None) => {}
                Err(Errno::ECHILD) => break,
                Err(errno) => return Err(TraceError::new("waitpid")(errno)),
            }
        }
        self.finish();
        Ok(())
    }

    /// Tells that the recording is complete.
    fn finish(&mut self) {
        if self.phase == Phase::Over {
            return;
        }
        for (_, event) in std::mem::take(&mut self.delayed).into_values().flatten() {
            self.ready.push_back(event);
        }
        let pid = self.recording.pids.first().copied().unwrap_or(0);
        self.leave_library_to_others(pid);
        let kind = EventKind::RecordingEnded {
            reason: self.end_reason,
        };
        self.tell(SpaceId(0), pid, pid, kind);
        self.phase = Phase::Over;
    }

    /// Children that were not followed may run on, and what they start needs the library's file: then it stays.
    fn leave_library_to_others(&mut self, pid: u32) {
        if self.options.follow || self.launched_with_filter() {
            return;
        }
        let Some(library) = &mut self.library else {
            return;
        };
        let users = proc::users_of(library.path());
        let Some(first) = users.first() else {
            return;
        };
        if let Some(folder) = library.leave() {
            let message = format!(
                "{} processes that were not followed still use the bundled malloc (such as {first}): its file stays,                  remove it when they have ended: rm -r {}",
                users.len(),
                folder.display()
            );
            self.mention(pid, NoticeCode::StillRunning, message);
        }
    }

    /// Time since the recording began.
    fn now(&self) -> Timestamp {
        Timestamp(u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }

    /// Hands out an event, whether or not its process is recorded.
    fn tell(&mut self, space: SpaceId, pid: u32, tid: u32, kind: EventKind) {
        let event = Event {
            malloc: None,
            time: self.now(),
            pid,
            tid,
            space,
            allocator: None,
            stack: None,
            kind,
        };
        self.ready.push_back(event);
    }

    /// Mentions something that the reader of the recording should know.
    fn mention(&mut self, tid: u32, code: NoticeCode, message: String) {
        let (pid, space) = match self.tracees.process_of(tid) {
            Some((pid, process)) => (pid, process.space),
            None => (tid, SpaceId(0)),
        };
        self.tell(space, pid, tid, EventKind::Notice(Notice { code, message }));
    }

    /// Looks at what was asked of us by signal, and at the clock.
    fn look_around(&mut self) {
        let requests = Requests::take();
        for (signal, by_process) in requests.endings() {
            self.asked_to_end(signal as c_int, by_process);
        }
        if requests.wants_snapshot() {
            self.snapshot_all(SnapshotReason::Request);
        }
        if requests.stopping().is_some() {
            self.stop_wanted = self.launched.is_some();
            self.stop_with_program();
        }
        let now = self.now();
        match self.phase {
            Phase::Joining { since } => self.join_when_still(now.0.saturating_sub(since.0)),
            Phase::Leaving { since, let_go } => {
                self.leave_when_still(now.0.saturating_sub(since.0), let_go)
            }
            Phase::Tracing | Phase::Over => {}
        }
        if let Some(deadline) = self.deadline
            && now >= deadline
        {
            self.time_is_over(now);
        }
        if let Some((at, every)) = self.next_snapshot.zip(self.options.every)
            && now >= at
            && self.phase == Phase::Tracing
        {
            let period = u64::try_from(every.as_nanos()).unwrap_or(u64::MAX).max(1);
            self.snapshot_all(SnapshotReason::Interval);
            let done = self.now();
            // The program has at least as much time as the snapshots, however short the interval.
            let earliest = done.0.saturating_add(done.0.saturating_sub(now.0));
            let next = (now.0 - now.0 % period).saturating_add(period);
            self.next_snapshot = Some(Timestamp(next.max(earliest)));
        }
        if now.0.saturating_sub(self.last_tick.0)
            >= u64::try_from(requests::TICK.as_nanos() / 2).unwrap_or(0)
        {
            self.last_tick = now;
            self.latency.release_if_quiet(now);
            self.take_in_orphans(now);
            self.mention_daemons(now);
        }
    }

    /// Somebody wants an end.
    fn asked_to_end(&mut self, signal: c_int, by_process: bool) {
        self.was_asked_to_end = true;
        match (self.launched, self.launched_outcome) {
            // The terminal has told the program, too.
            (Some(_), None) if !by_process => {}
            (Some(pid), None) => {
                let _ = sys::kill(pid, signal);
            }
            // What the program left behind cannot run without us.
            (Some(_), Some(_)) => {
                self.end_reason = EndReason::Interrupted;
                self.kill_all();
            }
            (None, _) => self.begin_leaving(EndReason::Interrupted),
        }
    }

    /// `--duration` is over.
    fn time_is_over(&mut self, now: Timestamp) {
        self.deadline = None;
        let Some(pid) = self.launched else {
            self.begin_leaving(EndReason::TimeLimit);
            return;
        };
        self.end_reason = EndReason::TimeLimit;
        if self.termination_asked || self.launched_outcome.is_some() {
            self.kill_all();
        } else {
            self.termination_asked = true;
            self.deadline = Some(Timestamp(now.0.saturating_add(TERMINATION_PATIENCE)));
            let _ = sys::kill(pid, libc::SIGTERM);
        }
    }

    fn kill_all(&mut self) {
        for pid in self.tracees.processes.keys() {
            let _ = sys::kill(*pid, libc::SIGKILL);
        }
    }

    /// Stops ourselves, as the terminal wants, once the program has stopped: the shell watches us, not the program.
    fn stop_with_program(&mut self) {
        if self.stop_wanted && self.launched_is_stopped {
            self.stop_wanted = false;
            let _ = sys::kill(std::process::id(), libc::SIGSTOP);
        }
    }

    /// Takes in threads that stopped and of whose birth nobody told: their parent was killed before it could.
    fn take_in_orphans(&mut self, now: Timestamp) {
        let orphans: Vec<(u32, Stop)> = self
            .parked
            .iter()
            .filter(|(_, (_, since))| now.0.saturating_sub(since.0) > ORPHAN_PATIENCE)
            .map(|(tid, (stop, _))| (*tid, *stop))
            .collect();
        for (tid, stop) in orphans {
            self.parked.remove(&tid);
            self.take_in_orphan(tid, stop);
        }
    }

    fn take_in_orphan(&mut self, tid: u32, stop: Stop) {
        let Some(pid) = proc::status(tid).map(|status| status.tgid.cast_unsigned()) else {
            // Gone: its end will be reported.
            return;
        };
        if self.tracees.processes.contains_key(&pid) {
            self.tracees.add_thread(tid, pid, Doing::Unknown);
            self.thread_started(tid, pid);
        } else {
            self.admit_orphan(tid, pid);
        }
        self.stopped(Stopped::reported(tid), stop);
    }

    /// The program has ended, and others have not: says so, as breaktrace goes on waiting.
    fn mention_daemons(&mut self, now: Timestamp) {
        let Some((_, ended)) = self.launched_outcome else {
            return;
        };
        if self.daemons_told || now.0.saturating_sub(ended.0) < DAEMON_PATIENCE {
            return;
        }
        self.daemons_told = true;
        let mut pids: Vec<u32> = self.tracees.processes.keys().copied().collect();
        pids.sort_unstable();
        let named: Vec<String> = pids.iter().take(8).map(u32::to_string).collect();
        let message = format!(
            "the program has ended, but {} of its processes still run ({}{}): breaktrace waits for them, as they cannot \
             run without it; Ctrl-C ends them",
            pids.len(),
            named.join(", "),
            if pids.len() > named.len() {
                ", …"
            } else {
                ""
            }
        );
        let pid = pids.first().copied().unwrap_or(0);
        self.mention(pid, NoticeCode::StillRunning, message);
    }

    /// Begins to let go of everything.
    fn begin_leaving(&mut self, reason: EndReason) {
        if matches!(self.phase, Phase::Leaving { .. } | Phase::Over) {
            return;
        }
        self.end_reason = reason;
        self.phase = Phase::Leaving {
            since: self.now(),
            let_go: false,
        };
        // All are interrupted before any is waited for: a vforking parent stops only after its child has gone on.
        for (tid, tracee) in &self.tracees.threads {
            if tracee.held.is_none() {
                let _ = sys::interrupt(*tid);
            }
        }
    }

    fn all_still(&self) -> bool {
        self.tracees
            .threads
            .values()
            .all(|tracee| tracee.held.is_some() || tracee.ending)
    }

    /// When all threads stand still, or have had their time: takes stock, and lets them go on under trace.
    fn join_when_still(&mut self, waited: u64) {
        if !self.all_still() && waited < STANDSTILL_PATIENCE {
            return;
        }
        self.phase = Phase::Tracing;
        let mut pids: Vec<u32> = self.tracees.processes.keys().copied().collect();
        pids.sort_unstable();
        for pid in pids {
            self.tell_joined(pid);
        }
        let mut late: Vec<u32> = Vec::new();
        for (tid, tracee) in &mut self.tracees.threads {
            match tracee.held.take() {
                Some((stopped, how)) => stopped.resume(how),
                None if !tracee.ending => late.push(*tid),
                None => {}
            }
        }
        for tid in late {
            let message = format!(
                "thread {tid} did not stop when asked (it waits in the kernel, or for a vforked child): its calls are \
                 recorded from its next stop on"
            );
            self.mention(tid, NoticeCode::ThreadNotTraced, message);
        }
    }

    /// Tells of an attached process: what it is, its threads, and its address space.
    fn tell_joined(&mut self, pid: u32) {
        let Some(space) = self
            .tracees
            .processes
            .get(&pid)
            .map(|process| process.space)
        else {
            return;
        };
        self.process_started(pid, Origin::Attached, None, None);
        let mut threads: Vec<u32> = self.tracees.threads_of(pid).collect();
        threads.sort_unstable();
        // A leader that has exited is no thread of ours, but the process has its number and its first thread.
        let first = if threads.contains(&pid) {
            pid
        } else {
            threads.first().copied().unwrap_or(pid)
        };
        for tid in threads.into_iter().filter(|tid| *tid != first) {
            self.thread_started(tid, pid);
        }
        self.snapshot(space, SnapshotReason::Attach);
    }

    /// When all threads stand still, or have had their time: takes stock, and lets them go.
    fn leave_when_still(&mut self, waited: u64, let_go: bool) {
        let still = self.all_still();
        if !let_go && (still || waited >= STANDSTILL_PATIENCE) {
            if let Phase::Leaving { let_go, .. } = &mut self.phase {
                *let_go = true;
            }
            self.let_go();
        }
        if self.tracees.threads.is_empty() || waited >= LEAVING_PATIENCE {
            self.finish();
        }
    }

    /// Takes stock and lets go of all that stand still; what can be told later is read after that.
    fn let_go(&mut self) {
        let mut processes: Vec<(u32, SpaceId)> = self
            .tracees
            .processes
            .iter()
            .map(|(pid, process)| (*pid, process.space))
            .collect();
        processes.sort_unstable();
        let mut seen = HashSet::new();
        let mut snapshots: Vec<(u32, Event)> = Vec::new();
        let mut heaps = Vec::new();
        for (_, space) in &processes {
            if seen.insert(*space) {
                let state = self.last_state(*space);
                let heap = state
                    .first()
                    .and_then(|(tid, _)| Some((*tid, self.half_examine(*tid, *space)?)));
                heaps.extend(heap.map(|(tid, half)| (tid, *space, half)));
                snapshots.extend(state);
            }
        }
        self.detach_held();
        for (tid, mut event) in snapshots {
            if let EventKind::Snapshot(snapshot) = &mut event.kind {
                // The pages of a large heap take milliseconds to count, and may as well be those of a moment later.
                snapshot.heap_pages = proc::heap_pages(tid, &snapshot.mappings);
            }
            event.time = self.now();
            let space = event.space;
            self.ready.push_back(event);
            self.name_generated_code(tid, space);
        }
        for (tid, space, half) in heaps {
            // The chunks can be read while the program runs again.
            if let Some(kind) = half.complete(ReadingMoment::End, false) {
                self.record(tid, space, kind);
            }
        }
        for (pid, _) in processes {
            self.process_ended(pid, Outcome::Detached);
        }
    }

    /// Reads the last snapshot of an address space whose threads stand still, but for the pages of its heap, and the
    /// allocator's last figures; and says through which thread.
    fn last_state(&mut self, space: SpaceId) -> Vec<(u32, Event)> {
        for tid in self.threads_in(space) {
            let Some(snapshot) = self.read_snapshot(tid, space, SnapshotReason::End) else {
                continue;
            };
            let stands = self
                .tracees
                .threads
                .get(&tid)
                .is_some_and(|tracee| tracee.held.is_some());
            let figures = self.read_bundled(tid, space, ReadingMoment::End, stands);
            return std::iter::once(snapshot)
                .chain(figures)
                .filter_map(|kind| Some((tid, self.event(tid, space, kind)?)))
                .collect();
        }
        Vec::new()
    }

    fn detach_held(&mut self) {
        let held: Vec<u32> = self
            .tracees
            .threads
            .iter()
            .filter(|(_, tracee)| tracee.held.is_some())
            .map(|(tid, _)| *tid)
            .collect();
        for tid in held {
            let tracee = self.tracees.threads.remove(&tid);
            if let Some((stopped, how)) = tracee.and_then(|tracee| tracee.held) {
                detach(stopped, how);
            }
        }
    }

    /// Takes a snapshot of every address space.
    fn snapshot_all(&mut self, reason: SnapshotReason) {
        let mut spaces: Vec<SpaceId> = self.tracees.spaces.keys().copied().collect();
        spaces.sort_unstable();
        for space in spaces {
            self.snapshot(space, reason);
        }
    }

    /// Takes a snapshot of an address space, through whichever of its threads still shows it.
    fn snapshot(&mut self, space: SpaceId, reason: SnapshotReason) {
        for tid in self.threads_in(space) {
            if self.snapshot_by(tid, space, reason) {
                return;
            }
        }
    }

    /// The threads that use an address space, in order.
    fn threads_in(&self, space: SpaceId) -> Vec<u32> {
        let processes = &self.tracees.processes;
        let uses = |pid: &u32| {
            processes
                .get(pid)
                .is_some_and(|process| process.space == space)
        };
        let mut threads: Vec<u32> = self
            .tracees
            .threads
            .iter()
            .filter(|(_, tracee)| uses(&tracee.pid))
            .map(|(tid, _)| *tid)
            .collect();
        threads.sort_unstable();
        threads
    }

    /// Takes a snapshot of an address space through one of its threads. Returns whether that could be done.
    fn snapshot_by(&mut self, tid: u32, space: SpaceId, reason: SnapshotReason) -> bool {
        let Some(mut kind) = self.read_snapshot(tid, space, reason) else {
            return false;
        };
        if let EventKind::Snapshot(snapshot) = &mut kind {
            snapshot.heap_pages = match reason {
                SnapshotReason::Request | SnapshotReason::Interval | SnapshotReason::End => {
                    proc::heap_pages(tid, &snapshot.mappings)
                }
                // There is no heap yet; or a program stands still, and nobody has asked.
                SnapshotReason::Start
                | SnapshotReason::Attach
                | SnapshotReason::Verify
                | SnapshotReason::Resync => None,
            };
        }
        let mappings = match &kind {
            EventKind::Snapshot(snapshot) if reason == SnapshotReason::Attach => {
                snapshot.mappings.clone()
            }
            _ => Vec::new(),
        };
        self.record(tid, space, kind);
        match reason {
            SnapshotReason::Attach => {
                self.look_for_page(tid, space, &mappings);
                self.tell_bundled(tid, space, ReadingMoment::Snapshot, false);
            }
            SnapshotReason::Request | SnapshotReason::Interval => {
                self.tell_bundled(tid, space, ReadingMoment::Snapshot, false);
                self.examine_heap(tid, space, ReadingMoment::Snapshot, None);
            }
            SnapshotReason::End => {
                self.tell_bundled(tid, space, ReadingMoment::End, true);
                self.walk_bundled(tid, space);
                self.examine_heap(tid, space, ReadingMoment::End, Some(tid));
            }
            SnapshotReason::Start | SnapshotReason::Verify | SnapshotReason::Resync => {}
        }
        true
    }

    /// Reads the state of an address space through one of its threads, but for the pages of its heap.
    fn read_snapshot(
        &mut self,
        tid: u32,
        space: SpaceId,
        reason: SnapshotReason,
    ) -> Option<EventKind> {
        let under_way = self.tracees.spaces.get(&space)?.under_way.len();
        let snapshot = proc::snapshot(tid, reason, u32::try_from(under_way).unwrap_or(u32::MAX))?;
        self.learn_break(space, &snapshot);
        Some(EventKind::Snapshot(Box::new(snapshot)))
    }
}

/// Lets go of a tracee in the state in which it was held.
fn detach(stopped: Stopped, how: Resume) {
    match how {
        Resume::Run(signal) | Resume::ToSyscall(signal) => stopped.detach(signal),
        // The kernel keeps a group-stopped process stopped (kernel/ptrace.c, __ptrace_unlink).
        Resume::Listen => stopped.detach(0),
    }
}

/// What the kernel shall report of a launched program and its children. It must not outlive us, as the filter makes
/// calls fail that nobody answers for; and with the filter no child may escape.
fn launch_options(seccomp: bool, follow: bool) -> c_int {
    let filter = if seccomp {
        libc::PTRACE_O_TRACESECCOMP
    } else {
        0
    };
    trace_options(follow || seccomp) | filter | libc::PTRACE_O_EXITKILL
}

/// What the kernel shall report of tracees.
fn trace_options(follow: bool) -> c_int {
    let children = if follow {
        libc::PTRACE_O_TRACEFORK | libc::PTRACE_O_TRACEVFORK
    } else {
        0
    };
    libc::PTRACE_O_TRACESYSGOOD
        | libc::PTRACE_O_TRACEEXEC
        | libc::PTRACE_O_TRACECLONE
        | libc::PTRACE_O_TRACEEXIT
        | children
}

fn machine() -> Machine {
    Machine {
        architecture: std::env::consts::ARCH.to_owned(),
        kernel: nix::sys::utsname::uname().map_or_else(
            |_| "unknown".to_owned(),
            |name| name.release().to_string_lossy().into_owned(),
        ),
        page_size: proc::page_size(),
    }
}

impl Tracer {
    /// Makes an address space known that begins now.
    fn new_space(&mut self, owner: u32, recorded: bool) -> SpaceId {
        self.tracees.new_space(Space {
            owner,
            recorded,
            ..Space::default()
        })
    }
}
