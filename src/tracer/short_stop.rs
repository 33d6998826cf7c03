//! Stops a process for some milliseconds: to read what changes at any moment, and let it go on as it was.

use std::collections::HashSet;
use std::time::Duration;
use std::time::Instant;

use libc::c_int;

use super::attach;
use super::attach::AttachError;
use super::proc;
use super::stop;
use super::stop::Change;
use super::stop::Stop;
use super::stop::Stopped;
use super::sys;

/// A thread in an uninterruptible call must not keep the others standing.
const PATIENCE: Duration = Duration::from_millis(50);
/// So long we wait for such a thread in the end, to let it go while we live on. When we end, the kernel does.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// Between two looks at threads that have not stopped.
const PAUSE: Duration = Duration::from_micros(50);
/// Scans for further threads that must find none.
const CLEAN_SCANS: u32 = 2;

/// A process that stands still. Dropping it lets the process go on.
#[derive(Debug)]
pub(super) struct ShortStop {
    began: Instant,
    /// Those that stand, and the signal that each is about to get (0: none).
    standing: Vec<(u32, c_int)>,
    /// Those that have not stopped.
    awaited: HashSet<u32>,
}

impl ShortStop {
    /// Stops every thread of a process.
    pub(super) fn begin(pid: u32) -> Result<Self, AttachError> {
        let mut stop = Self {
            began: Instant::now(),
            standing: Vec::new(),
            awaited: HashSet::new(),
        };
        stop.seize_all(pid)?;
        Ok(stop)
    }

    /// Seizes thread after thread until none is left that could make others.
    fn seize_all(&mut self, pid: u32) -> Result<(), AttachError> {
        let mut seen = HashSet::new();
        let mut clean_scans = 0;
        while clean_scans < CLEAN_SCANS {
            let mut found = false;
            for tid in proc::threads(pid).map_err(|_| AttachError::NoSuchProcess(pid))? {
                if seen.contains(&tid) {
                    continue;
                }
                match sys::seize(tid, 0) {
                    Ok(()) => {
                        found = true;
                        seen.insert(tid);
                        // One that has died meanwhile reports its end.
                        let _ = sys::interrupt(tid);
                        self.awaited.insert(tid);
                    }
                    Err(_) if attach::is_dead(tid) => {
                        seen.insert(tid);
                    }
                    Err(errno) => return Err(attach::diagnose(pid, tid, errno)),
                }
            }
            clean_scans = if found { 0 } else { clean_scans + 1 };
            self.wait(PATIENCE);
        }
        if self.standing.is_empty() && self.awaited.is_empty() {
            return Err(AttachError::NoSuchProcess(pid));
        }
        Ok(())
    }

    /// Waits until all threads that were seized stand, or for as long as `patience` reaches.
    fn wait(&mut self, patience: Duration) {
        let since = Instant::now();
        loop {
            let standing = &mut self.standing;
            self.awaited
                .retain(|tid| match sys::wait_for(*tid, libc::WNOHANG) {
                    Ok(Some((_, status))) => match stop::interpret(status) {
                        Change::Stopped(Stop::Signal(signal)) => {
                            standing.push((*tid, signal));
                            false
                        }
                        Change::Stopped(_) => {
                            standing.push((*tid, 0));
                            false
                        }
                        Change::Ended(_) => false,
                        Change::Continued => true,
                    },
                    Ok(None) => true,
                    // It is gone, and somebody else took note.
                    Err(_) => false,
                });
            if self.awaited.is_empty() || since.elapsed() >= patience {
                return;
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// The thread pointers of the threads that stand.
    pub(super) fn thread_pointers(&self) -> Vec<u64> {
        self.standing
            .iter()
            .filter_map(|(tid, _)| sys::thread_pointer(*tid))
            .collect()
    }

    /// Threads that did not stop: they sleep in the kernel, uninterruptibly.
    pub(super) fn missed(&self) -> usize {
        self.awaited.len()
    }

    /// Lets the process go on, and tells how long it stood.
    pub(super) fn release(mut self) -> Duration {
        self.let_go();
        self.began.elapsed()
    }

    fn let_go(&mut self) {
        for (tid, signal) in self.standing.drain(..) {
            // A group-stopped process stays stopped (kernel/ptrace.c, __ptrace_unlink).
            Stopped::reported(tid).detach(signal);
        }
    }
}

impl Drop for ShortStop {
    fn drop(&mut self) {
        self.let_go();
        if !self.awaited.is_empty() {
            self.wait(LAST_PATIENCE);
            self.let_go();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::process::Child;
    use std::process::Command;
    use std::process::Stdio;

    use super::*;

    fn sleeper() -> Child {
        Command::new("sleep")
            .arg("60")
            .stdout(Stdio::null())
            .spawn()
            .unwrap()
    }

    fn state_of(pid: u32) -> char {
        proc::stat(pid).unwrap().state
    }

    #[test]
    fn a_process_goes_on_as_it_was() {
        let mut child = sleeper();
        for _ in 0..20 {
            let stop = ShortStop::begin(child.id()).unwrap();
            assert_eq!(stop.missed(), 0);
            assert_eq!(stop.thread_pointers().len(), 1);
            assert_eq!(state_of(child.id()), 't');
            assert!(stop.release() > Duration::ZERO);
            assert_eq!(proc::status(child.id()).unwrap().tracerpid, 0);
        }
        assert!(child.try_wait().unwrap().is_none());
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn a_stopped_process_stays_stopped() {
        let mut child = sleeper();
        sys::kill(child.id(), libc::SIGSTOP).unwrap();
        while state_of(child.id()) != 'T' {
            std::thread::yield_now();
        }
        for _ in 0..5 {
            drop(ShortStop::begin(child.id()).unwrap());
            assert!(matches!(state_of(child.id()), 'T' | 't'));
        }
        while state_of(child.id()) != 'T' {
            std::thread::yield_now();
        }
        sys::kill(child.id(), libc::SIGCONT).unwrap();
        while state_of(child.id()) == 'T' {
            std::thread::yield_now();
        }
        sys::kill(child.id(), libc::SIGTERM).unwrap();
        assert!(!child.wait().unwrap().success());
    }

    #[test]
    fn what_cannot_be_stopped_is_refused() {
        assert!(matches!(
            attach::processes(&[std::process::id()]),
            Err(AttachError::Ourselves(_))
        ));
        let mut child = sleeper();
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(
            ShortStop::begin(child.id()),
            Err(AttachError::NoSuchProcess(_))
        ));
    }
}
