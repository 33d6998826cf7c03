//! Waiting between looks, until the time has come or somebody wants an end.

use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;
use nix::sys::signal::Signal;

/// While it lives, signals that ask for an end wait until somebody waits for them: what is under way is done whole.
#[derive(Debug)]
pub(super) struct Interval {
    ending: SigSet,
    previous: SigSet,
}

impl Interval {
    /// Holds back SIGINT, SIGTERM, SIGHUP and SIGQUIT; what is ignored stays ignored.
    pub(super) fn begin() -> Result<Self, Errno> {
        let mut ending = SigSet::empty();
        for signal in [
            Signal::SIGINT,
            Signal::SIGTERM,
            Signal::SIGHUP,
            Signal::SIGQUIT,
        ] {
            ending.add(signal);
        }
        let previous = ending.thread_swap_mask(SigmaskHow::SIG_BLOCK)?;
        Ok(Self { ending, previous })
    }

    /// Waits until `time`; returns whether an end was asked for before.
    pub(super) fn wait_until(&self, time: Instant) -> bool {
        loop {
            let left = time.saturating_duration_since(Instant::now());
            match self.signal_within(left) {
                Ok(()) => return true,
                // Time is up, or so it seems to a clock that is finer than ours.
                Err(Errno::EAGAIN) if Instant::now() >= time => return false,
                // A job that was stopped and goes on.
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(_) => return true,
            }
        }
    }

    fn signal_within(&self, time: Duration) -> Result<(), Errno> {
        let timeout = libc::timespec {
            tv_sec: libc::time_t::try_from(time.as_secs()).unwrap_or(libc::time_t::MAX),
            tv_nsec: i64::from(time.subsec_nanos()),
        };
        // SAFETY: both pointers are valid, and a null one says that the details are not wanted.
        let signal = unsafe {
            libc::sigtimedwait(
                self.ending.as_ref(),
                std::ptr::null_mut(),
                &raw const timeout,
            )
        };
        if signal < 0 {
            Err(Errno::last())
        } else {
            Ok(())
        }
    }
}

impl Drop for Interval {
    fn drop(&mut self) {
        // It can fail for no set that was in force before.
        let _ = self.previous.thread_set_mask();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_ends_when_its_time_has_come_or_a_signal_asks() {
        let interval = Interval::begin().unwrap();
        let time = Instant::now() + Duration::from_millis(5);
        assert!(!interval.wait_until(time));
        assert!(Instant::now() >= time);
        // To this thread alone: others of the test program would be ended by it.
        // SAFETY: the thread is this one, and has the signal blocked.
        unsafe { libc::pthread_kill(libc::pthread_self(), libc::SIGTERM) };
        assert!(interval.wait_until(Instant::now() + Duration::from_secs(3600)));
        assert!(!interval.wait_until(Instant::now()));
    }
}
