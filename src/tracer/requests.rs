//! What the people around breaktrace ask of it by signal, and the clock that wakes it.
//!
//! Handlers only set bits; the tracing loop looks at them after every wait. A signal that comes between the look and
//! the next wait would be slept over, so a timer interrupts the wait ten times a second: no request is lost, none
//! waits longer than that.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use libc::c_int;
use nix::errno::Errno;
use nix::sys::signal::SaFlags;
use nix::sys::signal::SigAction;
use nix::sys::signal::SigHandler;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;

/// Longest time between two looks at the clock and at requests.
pub(super) const TICK: Duration = Duration::from_millis(100);

/// Signals that came: bit n for signal n.
static PENDING: AtomicU64 = AtomicU64::new(0);
/// Of those, the ones that a process sent, and not the terminal.
static SENT_BY_PROCESS: AtomicU64 = AtomicU64::new(0);

/// Signals that end a recording, or are passed on to the program.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];
/// Signals by which terminals stop background jobs and Ctrl-Z stops a foreground one.
const STOPPING: [Signal; 3] = [Signal::SIGTSTP, Signal::SIGTTIN, Signal::SIGTTOU];

extern "C" fn note(signal: c_int, info: *mut libc::siginfo_t, _context: *mut libc::c_void) {
    let Some(bit) = u32::try_from(signal)
        .ok()
        .and_then(|shift| 1_u64.checked_shl(shift))
    else {
        return;
    };
    // The terminal signals the whole foreground group as the kernel (SI_KERNEL); the program has its own copy then.
    // SAFETY: the kernel passes a valid siginfo_t to SA_SIGINFO handlers.
    let code = unsafe { (*info).si_code };
    if code <= 0 {
        SENT_BY_PROCESS.fetch_or(bit, Ordering::Relaxed);
    }
    PENDING.fetch_or(bit, Ordering::Release);
}

/// Signals that came since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Requests {
    pending: u64,
    sent_by_process: u64,
}

impl Requests {
    /// Takes what has come since the last time.
    pub(super) fn take() -> Self {
        if PENDING.load(Ordering::Acquire) == 0 {
            return Self::default();
        }
        Self {
            pending: PENDING.swap(0, Ordering::AcqRel),
            sent_by_process: SENT_BY_PROCESS.swap(0, Ordering::AcqRel),
        }
    }

    fn has(self, signal: Signal) -> bool {
        self.pending & (1 << signal as u32) != 0
    }

    /// Whether an end was asked for since the last look; takes nothing.
    pub(super) fn is_end_pending() -> bool {
        let requests = Self {
            pending: PENDING.load(Ordering::Acquire),
            sent_by_process: 0,
        };
        requests.endings().next().is_some()
    }

    /// Signals that ask for an end, each with whether a process sent it (and not the terminal).
    pub(super) fn endings(self) -> impl Iterator<Item = (Signal, bool)> {
        ENDING
            .into_iter()
            .filter(move |signal| self.has(*signal))
            .map(move |signal| (signal, self.sent_by_process & (1 << signal as u32) != 0))
    }

    /// Whether a snapshot is wanted (SIGUSR1).
    pub(super) fn wants_snapshot(self) -> bool {
        self.has(Signal::SIGUSR1)
    }

    /// The signal by which the terminal wants this job stopped.
    pub(super) fn stopping(self) -> Option<Signal> {
        STOPPING.into_iter().find(|signal| self.has(*signal))
    }
}

/// While it lives, signals to breaktrace are noted instead of ending it, and the wait is interrupted every [`TICK`].
#[derive(Debug)]
pub(super) struct Handlers {
    previous: Vec<(Signal, SigAction)>,
}

impl Handlers {
    /// Installs the handlers and starts the clock. What was ignored stays ignored (nohup, background jobs).
    pub(super) fn install() -> Result<Self, Errno> {
        PENDING.store(0, Ordering::Release);
        SENT_BY_PROCESS.store(0, Ordering::Release);
        // No SA_RESTART: a signal must interrupt the wait.
        let noted = SigAction::new(
            SigHandler::SigAction(note),
            SaFlags::SA_SIGINFO,
            SigSet::empty(),
        );
        let mut handlers = Self {
            previous: Vec::new(),
        };
        for signal in ENDING
            .into_iter()
            .chain(STOPPING)
            .chain([Signal::SIGUSR1, Signal::SIGALRM])
        {
            // SAFETY: the handler touches atomics only.
            let previous = unsafe { nix::sys::signal::sigaction(signal, &noted)? };
            let keep_ignoring =
                signal != Signal::SIGALRM && matches!(previous.handler(), SigHandler::SigIgn);
            if keep_ignoring {
                // SAFETY: puts back what was there.
                unsafe { nix::sys::signal::sigaction(signal, &previous)? };
            } else {
                handlers.previous.push((signal, previous));
            }
        }
        set_clock(TICK);
        Ok(handlers)
    }
}

impl Drop for Handlers {
    fn drop(&mut self) {
        set_clock(Duration::ZERO);
        for (signal, action) in self.previous.drain(..) {
            // SAFETY: puts back what was there. It can fail for no signal that could be set before.
            let _ = unsafe { nix::sys::signal::sigaction(signal, &action) };
        }
    }
}

/// Sends SIGALRM every `period`, or never again if that is zero.
fn set_clock(period: Duration) {
    let period = libc::timeval {
        tv_sec: 0,
        tv_usec: i64::from(period.subsec_micros()),
    };
    let timer = libc::itimerval {
        it_interval: period,
        it_value: period,
    };
    // SAFETY: `timer` is valid, and the old value is not wanted. Fails only for times out of range.
    unsafe { libc::setitimer(libc::ITIMER_REAL, &raw const timer, std::ptr::null_mut()) };
}
