//! Waiting for the next stop of any tracee.
//!
//! `waitpid(-1)` walks all tracees, before it sleeps and again when it is woken: some 80 µs per thousand threads. With
//! many, the number of the stopped thread is taken from SIGCHLD instead, which costs a signal but is independent of
//! their number. SIGCHLDs coalesce, so a walk now and then finds what they did not name.

use std::time::Duration;
use std::time::Instant;

use libc::c_int;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

use super::sys;
use super::sys::RawStatus;

/// From so many tracees on, walking them all costs more than a signal.
const CROWD: usize = 400;
/// After so many signals the tracees are walked, whether or not there is quiet.
const SIGNALS_PER_WALK: u32 = 64;
/// After so long without a signal they are walked.
const QUIET: Duration = Duration::from_micros(200);

/// A stop that is due at once is looked for this long before we sleep.
const AWAKE: Duration = Duration::from_micros(20);
/// After n misses in a row, the next 2^n waits sleep at once; n grows no further than this.
const MOST_MISSES: u32 = 10;

/// What waiting brought.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Waited {
    /// This thread changed its state.
    Status(u32, RawStatus),
    /// One of our own signals came.
    Interrupted,
    /// There is nobody to wait for.
    Nobody,
}

/// Waits for tracees, in the way that suits their number.
#[derive(Debug)]
pub(super) struct Waiter {
    /// SIGCHLD is blocked, and says which thread stopped.
    by_signal: bool,
    /// The tracees are being walked, as signals may have been lost.
    walking: bool,
    signals_since_walk: u32,
    /// With fewer tracees than this, a processor is likely to be free for staying awake on.
    few: usize,
    /// Stops that were due at once and did not come, one after the other.
    misses: u32,
    /// So many times more we sleep at once.
    rest: u32,
}

impl Waiter {
    /// Knows of no tracee yet.
    pub(super) fn new() -> Self {
        Self {
            by_signal: false,
            walking: false,
            signals_since_walk: 0,
            few: 2 * std::thread::available_parallelism()
                .map_or(0, |processors| processors.get() - 1),
            misses: 0,
            rest: 0,
        }
    }

    /// Waits until a tracee changes its state, or one of our signals comes. `tracees` is how many there are; `soon`
    /// says that stops come fast, and that idle processors are kept awake anyway.
    pub(super) fn wait(&mut self, tracees: usize, soon: bool) -> Result<Waited, Errno> {
        if !self.by_signal && tracees >= CROWD {
            child_signal().thread_block()?;
            self.by_signal = true;
            // Stops from before the signal was blocked have left none.
            self.walking = true;
        }
        if self.by_signal {
            self.wait_by_signal()
        } else if soon && tracees < self.few {
            self.wait_awake()
        } else {
            waited(sys::wait_any(0))
        }
    }

    /// Looks again and again for a stop that is due at once, for as long as it takes to be put to sleep and woken.
    fn wait_awake(&mut self) -> Result<Waited, Errno> {
        if self.rest > 0 {
            self.rest -= 1;
            return waited(sys::wait_any(0));
        }
        let began = Instant::now();
        while began.elapsed() < AWAKE {
            match sys::wait_any(libc::WNOHANG) {
                Ok(None) => {}
                other => {
                    self.misses = 0;
                    return waited(other);
                }
            }
        }
        self.misses = (self.misses + 1).min(MOST_MISSES);
        self.rest = 1 << self.misses;
        waited(sys::wait_any(0))
    }

    fn wait_by_signal(&mut self) -> Result<Waited, Errno> {
        loop {
            if self.walking || self.signals_since_walk >= SIGNALS_PER_WALK {
                self.walking = true;
                match sys::wait_any(libc::WNOHANG) {
                    Ok(None) => {
                        // Whatever stops from here on has its signal still to come.
                        self.walking = false;
                        self.signals_since_walk = 0;
                    }
                    other => return waited(other),
                }
            }
            // Nothing can be lost as long as no signal was taken since the last walk: sleep soundly then.
            let timeout = (self.signals_since_walk > 0).then_some(QUIET);
            match next_child_signal(timeout) {
                Ok(Some(tid)) => {
                    self.signals_since_walk += 1;
                    if let Ok(Some((tid, status))) = sys::wait_for(tid, libc::WNOHANG) {
                        return Ok(Waited::Status(tid, status));
                    }
                }
                Ok(None) => self.walking = true,
                Err(Errno::EINTR) => return Ok(Waited::Interrupted),
                Err(error) => return Err(error),
            }
        }
    }
}

fn waited(result: Result<Option<(u32, RawStatus)>, Errno>) -> Result<Waited, Errno> {
    match result {
        Ok(Some((tid, status))) => Ok(Waited::Status(tid, status)),
        Ok(None) | Err(Errno::EINTR) => Ok(Waited::Interrupted),
        Err(Errno::ECHILD) => Ok(Waited::Nobody),
        Err(error) => Err(error),
    }
}

fn child_signal() -> SigSet {
    let mut set = SigSet::empty();
    set.add(Signal::SIGCHLD);
    set
}

/// Takes the next SIGCHLD and returns the thread it names; `None` after `timeout`.
fn next_child_signal(timeout: Option<Duration>) -> Result<Option<u32>, Errno> {
    let set = child_signal();
    let timeout = timeout.map(|timeout| libc::timespec {
        tv_sec: 0,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    });
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    // SAFETY: the three pointers are valid, or null where null means "no limit".
    let signal: c_int = unsafe {
        libc::sigtimedwait(
            set.as_ref(),
            &raw mut info,
            timeout
                .as_ref()
                .map_or(std::ptr::null(), std::ptr::from_ref),
        )
    };
    match signal {
        -1 if Errno::last() == Errno::EAGAIN => Ok(None),
        -1 => Err(Errno::last()),
        // SAFETY: a SIGCHLD carries a pid: for a ptrace stop, the number of the stopped thread.
        _ => Ok(Some(unsafe { info.si_pid() }.cast_unsigned())),
    }
}
