//! A process stopped for a moment: all its threads stand, then go on as if nothing had been.
//!
//! A thread of ours traces them, and ends with the stop. The kernel lets go of all that a tracer still has when it ends
//! (ptrace(2), `exit_ptrace` of kernel/ptrace.c): threads that never came to stand, and leaders that ended meanwhile, for
//! which there is no request. So nothing is left, whether the stop ends as it should, by a panic, or by SIGKILL to us.
//!
//! Signals that arrive as stops are looked at and not taken (`WNOWAIT`), and delivered when the thread is let go.

use std::collections::BTreeMap;
use std::marker::PhantomData;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use libc::c_int;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signal::Signal;
use nix::sys::signal::pthread_sigmask;

use super::attach;
use super::attach::AttachError;
use super::proc;
use super::stop::Change;
use super::stop::Stop;
use super::stop::Stopped;
use super::stop::interpret;
use super::sys;

/// After so long without a further thread that stands, those that sleep uninterruptibly are given up.
const PATIENCE: Duration = Duration::from_millis(50);
/// After so long all are that do not stand: the others must not stand for ever.
const LONGEST: Duration = Duration::from_secs(1);
/// So long stops are looked for without sleep: most come at once.
const AWAKE: Duration = Duration::from_micros(30);
/// Shortest and longest sleep between two looks.
const SHORT_SLEEP: Duration = Duration::from_micros(20);
const LONG_SLEEP: Duration = Duration::from_millis(1);
/// Scans for further threads that must find none before all are known to stand. Reading a folder of threads while some
/// end may pass over others (fs/proc/base.c, `next_tid`).
const CLEAN_SCANS: u32 = 2;

/// So often ended threads are taken note of while the tracing thread is busy.
const REAP_INTERVAL: Duration = Duration::from_millis(20);

/// Signals by which a terminal stops us: the process would stand as long as we do.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

/// A thread that stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadAt {
    /// Its number.
    pub tid: u32,
    /// Relative to what it has its own variables (`fs_base`, `tpidr_el0`); `None` when it was killed as it stood.
    pub thread_pointer: Option<u64>,
}

/// A process whose threads stand, until this value is released or dropped.
#[derive(Debug)]
pub struct ShortStop {
    process: u32,
    threads: Vec<ThreadAt>,
    missed: u32,
    began: Instant,
    /// Dropping the sender tells the tracing thread to let go.
    holder: Option<(mpsc::Sender<()>, JoinHandle<()>)>,
    /// Our signals before; they belong to the thread that began.
    mask: SigSet,
    same_thread: PhantomData<*const ()>,
}

impl ShortStop {
    /// Stops all threads of a process, and returns when they stand. `pid` may be the number of any of them.
    ///
    /// Threads that sleep uninterruptibly (a disk that does not answer, a parent that waits for its vforked child) are
    /// waited for 50 ms, and then gone on without: [`ShortStop::missed`].
    ///
    /// # Errors
    ///
    /// There is no such process, somebody else traces it, or we may not. Then nothing of it stands.
    pub fn begin(pid: u32) -> Result<Self, AttachError> {
        let process = attach::examine(pid)?;
        let refused = |errno| AttachError::Refused { pid, errno };
        let mask = SigSet::thread_get_mask().map_err(AttachError::Handlers)?;
        // The tracing thread inherits this: all signals go to the thread that they would go to without it.
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None)
            .map_err(AttachError::Handlers)?;
        let began = Instant::now();
        let (stands, standing) = mpsc::channel();
        let (sender, released) = mpsc::channel::<()>();
        let spawned = std::thread::Builder::new()
            .name("short stop".into())
            .stack_size(256 << 10)
            .spawn(move || {
                let mut standstill = Standstill::default();
                let outcome = standstill.bring_about(pid, process);
                let failed = outcome.is_err();
                let told = outcome.map(|()| (standstill.threads(), standstill.missed(process)));
                // Nobody listens when the thread that began has panicked.
                if stands.send(told).is_ok() && !failed {
                    // An error means that the sender is gone: that is the sign.
                    let _ = released.recv();
                }
                standstill.let_go();
            });
        let mut meanwhile = mask;
        for signal in STOPPING {
            meanwhile.add(signal);
        }
        set_mask(if spawned.is_ok() { &meanwhile } else { &mask });
        let holder =
            spawned.map_err(|error| refused(Errno::from_raw(error.raw_os_error().unwrap_or(0))))?;
        let mut stop = Self {
            process,
            threads: Vec::new(),
            missed: 0,
            began,
            holder: Some((sender, holder)),
            mask,
            same_thread: PhantomData,
        };
        // From here on dropping `stop` undoes everything.
        (stop.threads, stop.missed) = loop {
            match standing.recv_timeout(REAP_INTERVAL) {
                Ok(told) => break told?,
                Err(RecvTimeoutError::Timeout) => reap_ended(process),
                Err(RecvTimeoutError::Disconnected) => return Err(refused(Errno::ECHILD)),
            }
        };
        Ok(stop)
    }

    /// The process.
    #[must_use]
    pub fn process(&self) -> u32 {
        self.process
    }

    /// The threads that stand, by number.
    #[must_use]
    pub fn threads(&self) -> &[ThreadAt] {
        &self.threads
    }

    /// How many threads were gone on without, as they did not come to stand in time.
    #[must_use]
    pub fn missed(&self) -> u32 {
        self.missed
    }

    /// The thread pointers of the threads that stand, as far as they have any.
    #[must_use]
    pub fn thread_pointers(&self) -> Vec<u64> {
        self.threads
            .iter()
            .filter_map(|thread| thread.thread_pointer)
            .filter(|pointer| *pointer != 0)
            .collect()
    }

    /// Lets all threads go on, and tells for how long they have been stopped. Those that stood go on before this returns.
    pub fn release(mut self) -> Duration {
        self.let_go();
        self.began.elapsed()
    }

    fn let_go(&mut self) {
        let Some((sender, holder)) = self.holder.take() else {
            return;
        };
        drop(sender);
        // It ends also when it panicked.
        let _ = holder.join();
        set_mask(&self.mask);
    }
}

impl Drop for ShortStop {
    fn drop(&mut self) {
        self.let_go();
    }
}

/// Sets which signals this thread takes. It fails for wrong arguments only.
fn set_mask(mask: &SigSet) {
    let result = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(mask), None);
    debug_assert!(result.is_ok(), "{result:?}");
}

/// Takes note of threads that have ended, but for the first, whose parent does that.
///
/// A thread that execs waits until all others are gone, those that we trace until we have taken note. It holds a lock
/// that to seize it needs (kernel/ptrace.c, `ptrace_attach`; fs/exec.c, `de_thread`), so when the tracing thread waits for
/// that lock, only another thread of ours can help.
fn reap_ended(process: u32) {
    for tid in proc::threads(process).unwrap_or_default() {
        // What has ended cannot stop any more: no stop is taken from the tracing thread here.
        if tid != process && attach::is_dead(tid) {
            let _ = sys::wait_for(tid, libc::WNOHANG);
        }
    }
}

/// What a seized thread does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It was asked to stop.
    Asked,
    /// It stands, and is to get this signal when it goes on (0: none).
    Stands(c_int),
    /// It has ended.
    Ended,
}

/// The threads of a process on their way to a stop. Lives on the tracing thread.
#[derive(Debug, Default)]
struct Standstill {
    states: BTreeMap<u32, State>,
}

impl Standstill {
    /// Stops all threads of a process, those that appear meanwhile as well.
    fn bring_about(&mut self, pid: u32, process: u32) -> Result<(), AttachError> {
        let deadline = Instant::now() + LONGEST;
        let mut clean_scans = 0;
        while clean_scans < CLEAN_SCANS && Instant::now() < deadline {
            self.forget_replaced();
            let found = self.seize_new(pid, process)?;
            clean_scans = if found { 0 } else { clean_scans + 1 };
            self.wait_until_still(process, deadline);
        }
        // The process ended before it stood.
        if self.threads().is_empty() && self.missed(process) == 0 {
            return Err(AttachError::NoSuchProcess(pid));
        }
        Ok(())
    }

    /// Forgets threads that stand no more: a thread that execs takes the first one's place, and its number.
    fn forget_replaced(&mut self) {
        self.states.retain(|tid, state| {
            !matches!(state, State::Stands(_))
                || matches!(
                    sys::look_at(*tid).map(|status| status.map(interpret)),
                    Ok(Some(Change::Stopped(_)))
                )
        });
    }

    /// Seizes the threads that are not yet seized, and asks them to stop; returns whether there were any.
    fn seize_new(&mut self, pid: u32, process: u32) -> Result<bool, AttachError> {
        let threads = proc::threads(process).map_err(|_| AttachError::NoSuchProcess(pid))?;
        let own_tid = nix::unistd::gettid().as_raw();
        let mut found = false;
        for tid in threads {
            if matches!(self.states.get(&tid), Some(State::Asked | State::Stands(_))) {
                continue;
            }
            // No options: its children are not ours, and it is told nothing by an exec.
            if let Err(errno) = sys::seize(tid, 0) {
                if attach::is_dead(tid) {
                    continue;
                }
                // Ours is one that was seized by another number, and has that of the first thread since an exec.
                let tracer = proc::status(tid).map(|status| status.tracerpid);
                if tracer.is_some_and(|tracer| tracer != own_tid) {
                    return Err(attach::diagnose(pid, tid, errno));
                }
            }
            found = true;
            // ESRCH: it has ended, or has another number since an exec.
            if sys::interrupt(tid).is_ok() {
                self.states.insert(tid, State::Asked);
            }
        }
        Ok(found)
    }

    /// Waits until each thread stands or has ended, or there is no sense in waiting.
    fn wait_until_still(&mut self, process: u32, deadline: Instant) {
        let began = Instant::now();
        let mut last_progress = began;
        let mut sleep = SHORT_SLEEP;
        while self.asked().next().is_some() {
            if self.look_round(process) {
                last_progress = Instant::now();
                sleep = SHORT_SLEEP;
                continue;
            }
            let now = Instant::now();
            let without_progress = now - last_progress;
            if now >= deadline || (without_progress >= PATIENCE && self.others_cannot_stop()) {
                return;
            }
            if without_progress < AWAKE {
                std::thread::yield_now();
            } else {
                std::thread::sleep(sleep);
                sleep = (2 * sleep).min(LONG_SLEEP);
                if sleep == LONG_SLEEP {
                    self.ask_leader_again(process);
                }
            }
        }
    }

    /// Looks at each thread that is to stop; returns whether one has, or has ended.
    fn look_round(&mut self, process: u32) -> bool {
        let mut progress = false;
        for (tid, state) in &mut self.states {
            if *state != State::Asked {
                continue;
            }
            let change = match sys::look_at(*tid) {
                Ok(None) | Err(Errno::EINTR) => continue,
                Ok(Some(status)) => interpret(status),
                // ECHILD: an exec by another thread has taken it away.
                Err(_) => {
                    *state = State::Ended;
                    progress = true;
                    continue;
                }
            };
            *state = match change {
                Change::Stopped(Stop::Signal(signal)) => State::Stands(signal),
                Change::Stopped(_) => State::Stands(0),
                Change::Continued => continue,
                Change::Ended(_) => {
                    // Whoever waits for the threads' end, as an exec does, waits for us. The process itself is its
                    // parent's to take note of.
                    if *tid != process {
                        let _ = sys::wait_for(*tid, libc::WNOHANG);
                    }
                    State::Ended
                }
            };
            progress = true;
        }
        progress
    }

    /// Whether all that do not stand sleep uninterruptibly.
    fn others_cannot_stop(&self) -> bool {
        self.asked().all(|tid| {
            proc::stat(tid).is_none_or(|stat| !matches!(stat.state, 'R' | 'S' | 'T' | 't'))
        })
    }

    /// The end of a first thread is told only when the others have ended, too (kernel/exit.c, `delay_group_leader`); and a
    /// thread that took its place by an exec may not have been asked.
    fn ask_leader_again(&mut self, process: u32) {
        if self.states.get(&process) != Some(&State::Asked) {
            return;
        }
        if attach::is_dead(process) {
            self.states.insert(process, State::Ended);
        } else {
            // ESRCH: it ends just now, as the next look will tell.
            let _ = sys::interrupt(process);
        }
    }

    fn asked(&self) -> impl Iterator<Item = u32> {
        self.states
            .iter()
            .filter(|(_, state)| **state == State::Asked)
            .map(|(tid, _)| *tid)
    }

    /// How many threads there are that do not stand.
    fn missed(&self, process: u32) -> u32 {
        let running = proc::threads(process)
            .unwrap_or_default()
            .into_iter()
            .filter(|tid| {
                !matches!(self.states.get(tid), Some(State::Stands(_))) && !attach::is_dead(*tid)
            });
        u32::try_from(running.count()).unwrap_or(u32::MAX)
    }

    /// The threads that stand.
    fn threads(&self) -> Vec<ThreadAt> {
        self.states
            .iter()
            .filter(|(_, state)| matches!(state, State::Stands(_)))
            .map(|(tid, _)| ThreadAt {
                tid: *tid,
                thread_pointer: sys::thread_register(*tid),
            })
            .collect()
    }

    /// Lets go of all that stand, each with the signal that it was about to receive. The end of the tracing thread does
    /// the rest.
    fn let_go(&mut self) {
        for (tid, state) in std::mem::take(&mut self.states) {
            if let State::Stands(signal) = state {
                Stopped::reported(tid).detach(signal);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Child;
    use std::process::Command;

    use super::*;

    /// A child that ends with the test.
    struct Sleeper(Child);

    impl Sleeper {
        fn new() -> Self {
            Self(Command::new("sleep").arg("1000").spawn().unwrap())
        }

        fn tracer(&self) -> i32 {
            proc::status(self.0.id()).unwrap().tracerpid
        }
    }

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn a_process_stands_until_it_is_released() {
        let sleeper = Sleeper::new();
        let pid = sleeper.0.id();
        let stop = ShortStop::begin(pid).unwrap();
        assert_eq!(proc::stat(pid).unwrap().state, 't');
        assert_ne!(sleeper.tracer(), 0);
        assert_eq!((stop.threads().len(), stop.missed()), (1, 0));
        assert_eq!(stop.threads()[0].tid, pid);
        assert_ne!(stop.release(), Duration::ZERO);
        assert_ne!(proc::stat(pid).unwrap().state, 't');
        assert_eq!(sleeper.tracer(), 0);
    }

    #[test]
    fn dropping_releases() {
        let sleeper = Sleeper::new();
        drop(ShortStop::begin(sleeper.0.id()).unwrap());
        assert_eq!(sleeper.tracer(), 0);
    }

    #[test]
    fn signals_that_would_stop_us_wait_until_the_release() {
        let sleeper = Sleeper::new();
        let before = SigSet::thread_get_mask().unwrap();
        let stop = ShortStop::begin(sleeper.0.id()).unwrap();
        let meanwhile = SigSet::thread_get_mask().unwrap();
        assert!(STOPPING.iter().all(|signal| meanwhile.contains(*signal)));
        assert!(!meanwhile.contains(Signal::SIGINT));
        drop(stop);
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn what_cannot_be_stopped_is_an_error_and_changes_nothing() {
        let before = SigSet::thread_get_mask().unwrap();
        assert!(matches!(
            ShortStop::begin(std::process::id()),
            Err(AttachError::Ourselves(_))
        ));
        assert!(matches!(
            ShortStop::begin(0x7fff_ffff),
            Err(AttachError::NoSuchProcess(_))
        ));
        let sleeper = Sleeper::new();
        let first = ShortStop::begin(sleeper.0.id()).unwrap();
        assert!(matches!(
            ShortStop::begin(sleeper.0.id()),
            Err(AttachError::AlreadyTraced { .. })
        ));
        assert_eq!(proc::stat(sleeper.0.id()).unwrap().state, 't');
        drop(first);
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }
}
