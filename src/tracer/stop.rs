//! Why a tracee stopped, and the right to resume it.
//!
//! A status from waitpid(2) becomes a [`Change`] by one total function: whatever number the kernel gives, there is
//! a meaning, as later kernels may add events. A stopped tracee is a [`Stopped`] value; resuming consumes it, so
//! nothing is resumed twice, and nothing that runs is asked about its registers.

use libc::c_int;
use nix::errno::Errno;

use super::sys;
use super::sys::RawStatus;
use super::sys::SyscallInfo;
use crate::event::Outcome;

/// What a wait told of a tracee.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It has ended.
    Ended(Outcome),
    /// It has stopped.
    Stopped(Stop),
    /// It continues after a stop that did not concern us.
    Continued,
}

/// Why a tracee stopped (ptrace(2), "Stopped states").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Entry to or exit from a system call.
    Syscall,
    /// The seccomp filter asks for a look at a call that is about to begin.
    Seccomp,
    /// It has a child: fork, vfork or clone.
    Child(Birth),
    /// It runs a new program.
    Exec,
    /// It is about to end; its memory is still there.
    Exit,
    /// Group-stop by a stopping signal: it shall stay stopped until SIGCONT.
    Group,
    /// `PTRACE_INTERRUPT`, the first stop of a new tracee, or the end of a group-stop.
    Event,
    /// A signal is about to be delivered.
    Signal(c_int),
}

/// Which call made a child, as the kernel names it; not whether the child shares memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Birth {
    /// The child's end is signalled by SIGCHLD.
    Fork,
    /// The parent waits until the child execs or ends.
    Vfork,
    /// Neither: usually a thread.
    Clone,
}

/// Reads a wait status.
pub(super) fn interpret(RawStatus(status): RawStatus) -> Change {
    if libc::WIFEXITED(status) {
        // WEXITSTATUS is eight bits wide.
        let code = libc::WEXITSTATUS(status).to_le_bytes()[0];
        return Change::Ended(Outcome::Exited(code));
    }
    if libc::WIFSIGNALED(status) {
        return Change::Ended(Outcome::Killed {
            signal: libc::WTERMSIG(status),
            core_dumped: libc::WCOREDUMP(status),
        });
    }
    if !libc::WIFSTOPPED(status) {
        return Change::Continued;
    }
    let signal = libc::WSTOPSIG(status);
    Change::Stopped(match (status >> 16) & 0xff {
        0 if signal == libc::SIGTRAP | 0x80 => Stop::Syscall,
        0 => Stop::Signal(signal),
        libc::PTRACE_EVENT_SECCOMP => Stop::Seccomp,
        libc::PTRACE_EVENT_FORK => Stop::Child(Birth::Fork),
        libc::PTRACE_EVENT_VFORK => Stop::Child(Birth::Vfork),
        libc::PTRACE_EVENT_CLONE => Stop::Child(Birth::Clone),
        libc::PTRACE_EVENT_EXEC => Stop::Exec,
        libc::PTRACE_EVENT_EXIT => Stop::Exit,
        // With another signal, or none, it is a stop that wants to be resumed (kernel/signal.c, do_jobctl_trap).
        libc::PTRACE_EVENT_STOP
            if matches!(
                signal,
                libc::SIGSTOP | libc::SIGTSTP | libc::SIGTTIN | libc::SIGTTOU
            ) =>
        {
            Stop::Group
        }
        // PTRACE_EVENT_STOP otherwise, PTRACE_EVENT_VFORK_DONE, and what a later kernel may add.
        _ => Stop::Event,
    })
}

/// A tracee that is stopped. Dropping it leaves the tracee stopped.
#[derive(Debug)]
#[must_use = "a stopped tracee stays stopped until it is resumed"]
pub(super) struct Stopped {
    tid: u32,
}

/// How a stopped tracee is to go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Resume {
    /// Until the next event or signal, with this signal delivered (0: none).
    Run(c_int),
    /// Until the next system call stop as well, with this signal delivered (0: none).
    ToSyscall(c_int),
    /// It stays in group-stop, and reports its end.
    Listen,
}

impl Stopped {
    /// Takes note that waitpid reported `tid` as stopped.
    pub(super) fn reported(tid: u32) -> Self {
        Self { tid }
    }

    /// The thread.
    pub(super) fn tid(&self) -> u32 {
        self.tid
    }

    /// Which system call stop this is.
    pub(super) fn syscall_info(&self) -> Result<SyscallInfo, Errno> {
        sys::syscall_info(self.tid)
    }

    /// The number that goes with the event.
    pub(super) fn event_message(&self) -> Result<u64, Errno> {
        sys::event_message(self.tid)
    }

    /// Lets it go on. A tracee that was killed meanwhile cannot; its end is reported by the next wait.
    pub(super) fn resume(self, how: Resume) {
        let result = match how {
            Resume::Run(signal) => sys::resume(self.tid, signal),
            Resume::ToSyscall(signal) => sys::resume_to_syscall(self.tid, signal),
            Resume::Listen => sys::listen(self.tid),
        };
        // ESRCH: killed in its stop (ptrace(2), "Death under ptrace"). EIO: LISTEN came too late, the group-stop is
        // over already and another stop follows.
        debug_assert!(
            matches!(result, Ok(()) | Err(Errno::ESRCH | Errno::EIO)),
            "resume {}: {result:?}",
            self.tid
        );
    }

    /// Lets go of it for good, with a signal to deliver (0: none).
    pub(super) fn detach(self, signal: c_int) {
        let result = sys::detach(self.tid, signal);
        debug_assert!(
            matches!(result, Ok(()) | Err(Errno::ESRCH)),
            "detach {}: {result:?}",
            self.tid
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stopped(signal: c_int, event: c_int) -> Change {
        interpret(RawStatus((event << 16) | (signal << 8) | 0x7f))
    }

    #[test]
    fn every_status_has_a_meaning() {
        for status in (0..=0xff_ffff_i32).step_by(7) {
            interpret(RawStatus(status));
        }
        interpret(RawStatus(-1));
        interpret(RawStatus(i32::MIN));
    }

    #[test]
    fn exits_and_deaths_keep_code_signal_and_core_flag() {
        assert_eq!(
            interpret(RawStatus(42 << 8)),
            Change::Ended(Outcome::Exited(42))
        );
        assert_eq!(
            interpret(RawStatus(11 | 0x80)),
            Change::Ended(Outcome::Killed {
                signal: 11,
                core_dumped: true
            })
        );
        assert_eq!(interpret(RawStatus(0xffff)), Change::Continued);
    }

    #[test]
    fn real_time_signals_are_signals_like_any_other() {
        assert_eq!(stopped(64, 0), Change::Stopped(Stop::Signal(64)));
        assert_eq!(stopped(33, 0), Change::Stopped(Stop::Signal(33)));
    }

    #[test]
    fn group_stops_are_told_from_interrupts_by_their_signal() {
        assert_eq!(
            stopped(libc::SIGTSTP, libc::PTRACE_EVENT_STOP),
            Change::Stopped(Stop::Group)
        );
        assert_eq!(
            stopped(libc::SIGTRAP, libc::PTRACE_EVENT_STOP),
            Change::Stopped(Stop::Event)
        );
        assert_eq!(
            stopped(0, libc::PTRACE_EVENT_STOP),
            Change::Stopped(Stop::Event)
        );
        assert_eq!(
            stopped(libc::SIGSTOP, 0),
            Change::Stopped(Stop::Signal(libc::SIGSTOP))
        );
    }

    #[test]
    fn a_system_call_stop_is_not_a_trap_signal() {
        assert_eq!(
            stopped(libc::SIGTRAP | 0x80, 0),
            Change::Stopped(Stop::Syscall)
        );
        assert_eq!(
            stopped(libc::SIGTRAP, 0),
            Change::Stopped(Stop::Signal(libc::SIGTRAP))
        );
    }
}
