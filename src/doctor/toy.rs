//! Toy children: processes that do one thing for a probe and then wait to be killed.
//!
//! A toy blocks on a pipe until it is told to go, does its task, and pauses. It never ends by itself, so its process
//! number stays its own until [`Toy`] is dropped, which kills and reaps it. No wait in here is longer than
//! [`PATIENCE`], whatever the machine does.
//!
//! breaktrace may have other threads at the moment of the fork. Between the fork and its death a toy therefore only
//! makes raw system calls: nothing that allocates, locks or panics.

use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::ptr;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;

use super::Outcome;

/// How long a probe waits for a toy. Only a machine that loses stops or answers makes it wait at all, so it is long
/// enough for any load.
const PATIENCE: Duration = Duration::from_secs(5);

/// What a toy does once told to go. Runs after a fork in a process that may have had other threads: system calls only.
pub(super) type Task = fn(&Line, i64);

/// A toy's ends of the pipes to its parent.
#[derive(Clone, Copy)]
pub(super) struct Line {
    go: RawFd,
    answers: RawFd,
}

/// News of a toy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum News {
    /// It answered this number.
    Answer(i32),
    /// It is in a ptrace stop with this signal and this `PTRACE_EVENT_*` number, 0 for none.
    Stopped {
        /// Number of the signal, with 0x80 added at system calls.
        signal: i32,
        /// Number of the ptrace event.
        event: i32,
    },
    /// It is dead.
    Ended {
        /// The signal that killed it, 0 when there was none or it is not known.
        signal: i32,
    },
    /// Nothing happened for as long as we wait.
    Silence,
}

/// A child process, killed and reaped when dropped.
pub(super) struct Toy {
    pid: libc::pid_t,
    go: OwnedFd,
    // Held open so that telling a dead toy to go fills a pipe and raises no SIGPIPE.
    _go_reader: OwnedFd,
    answers: OwnedFd,
    reaped: bool,
}

impl Line {
    /// Sends `number` to the parent. For use in a [`Task`].
    pub(super) fn answer(&self, number: i32) {
        let bytes = number.to_ne_bytes();
        // SAFETY: `bytes` is readable for its whole length, and write(2) is async-signal-safe.
        let _ = unsafe { libc::write(self.answers, bytes.as_ptr().cast(), bytes.len()) };
    }

    /// Blocks until the parent says go once more. For use in a [`Task`]; the call is read(2) on a pipe, of one byte.
    pub(super) fn wait_for_go(&self) -> bool {
        let mut byte = 0_u8;
        loop {
            // SAFETY: `byte` is writable for the one byte asked for, and read(2) is async-signal-safe.
            match unsafe { libc::read(self.go, (&raw mut byte).cast(), 1) } {
                1 => return true,
                -1 if Errno::last() == Errno::EINTR => {}
                _ => return false,
            }
        }
    }
}

impl Toy {
    /// Forks a toy that will do `task` with `argument` when told to go.
    ///
    /// # Errors
    ///
    /// No pipe or no process could be made.
    pub(super) fn start(task: Task, argument: i64) -> Result<Self, Errno> {
        let (go_reader, go) = pipe()?;
        let (answers, answer_writer) = pipe()?;
        let line = Line {
            go: go_reader.as_raw_fd(),
            answers: answer_writer.as_raw_fd(),
        };
        // SAFETY: getpid(2) has no preconditions.
        let parent = unsafe { libc::getpid() };
        // SAFETY: the child runs `live`, which makes async-signal-safe calls only and never returns, so no lock that
        // another thread held at the fork is waited for, and no destructor runs twice.
        match unsafe { libc::fork() } {
            -1 => Err(Errno::last()),
            0 => live(parent, &line, task, argument),
            pid => Ok(Self {
                pid,
                go,
                _go_reader: go_reader,
                answers,
                reaped: false,
            }),
        }
    }

    /// Its process number.
    pub(super) fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Tells it to go on.
    pub(super) fn go(&self) {
        let byte = 0_u8;
        // SAFETY: `byte` is readable for the one byte written. Both ends of the pipe are open here, so there is no
        // SIGPIPE, and a few bytes never fill it.
        let _ = unsafe { libc::write(self.go.as_raw_fd(), (&raw const byte).cast(), 1) };
    }

    /// Waits for the next thing to happen to it.
    pub(super) fn next(&mut self) -> News {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(news) = self.change() {
                return news;
            }
            if let Some(number) = self.poll_answer() {
                return News::Answer(number);
            }
            if Instant::now() >= deadline {
                return News::Silence;
            }
        }
    }

    /// Its last change of state, if there was one.
    fn change(&mut self) -> Option<News> {
        if self.reaped {
            return Some(News::Ended { signal: 0 });
        }
        let mut status = 0;
        // SAFETY: `status` is writable. Raw, because the safe wrapper knows no real-time signals and no stops with
        // signal 0, and would lose either.
        match unsafe { libc::waitpid(self.pid, &raw mut status, libc::WNOHANG | libc::__WALL) } {
            0 => None,
            -1 if Errno::last() == Errno::EINTR => None,
            // ECHILD: SIGCHLD is ignored in this process, and the kernel reaped the toy.
            -1 => Some(self.ended(0)),
            _ if libc::WIFSTOPPED(status) => Some(News::Stopped {
                signal: libc::WSTOPSIG(status),
                event: status >> 16,
            }),
            _ if libc::WIFSIGNALED(status) => Some(self.ended(libc::WTERMSIG(status))),
            _ => Some(self.ended(0)),
        }
    }

    fn ended(&mut self, signal: i32) -> News {
        self.reaped = true;
        News::Ended { signal }
    }

    /// An answer that came, or comes within a millisecond.
    fn poll_answer(&self) -> Option<i32> {
        let mut waiting = libc::pollfd {
            fd: self.answers.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // SAFETY: `waiting` is one writable pollfd, as the count says.
        let ready = unsafe { libc::poll(&raw mut waiting, 1, 1) };
        if ready != 1 || waiting.revents & libc::POLLIN == 0 {
            if ready == 1 {
                // The toy died, which its next change tells; until then poll returns at once.
                std::thread::sleep(Duration::from_millis(1));
            }
            return None;
        }
        let mut bytes = [0; 4];
        // SAFETY: `bytes` is writable for its whole length. Answers are written whole (pipe(7), PIPE_BUF).
        let length = unsafe {
            libc::read(
                self.answers.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
            )
        };
        (length == 4).then(|| i32::from_ne_bytes(bytes))
    }
}

impl Drop for Toy {
    fn drop(&mut self) {
        while !self.reaped {
            // SAFETY: the toy is not reaped, so the number is still its own.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            let mut status = 0;
            // SAFETY: `status` is writable. The wait is short: a toy is never in a sleep that SIGKILL cannot end.
            match unsafe { libc::waitpid(self.pid, &raw mut status, libc::__WALL) } {
                -1 if Errno::last() == Errno::EINTR => {}
                -1 => self.reaped = true,
                _ if libc::WIFSTOPPED(status) => {
                    // A killed tracee may stop once more, at its exit (PTRACE_O_TRACEEXIT).
                    // SAFETY: the request takes no addresses, and the toy is ours and stopped.
                    unsafe {
                        libc::ptrace(
                            libc::PTRACE_CONT,
                            self.pid,
                            ptr::null_mut::<libc::c_void>(),
                            ptr::null_mut::<libc::c_void>(),
                        )
                    };
                }
                _ => self.reaped = true,
            }
        }
    }
}

/// Starts a toy, or tells as an outcome why none could be.
pub(super) fn start(task: Task, argument: i64) -> Result<Toy, Outcome> {
    Toy::start(task, argument).map_err(Outcome::NoChild)
}

/// Starts a toy whose task answers 0 or an error's number of `call`.
pub(super) fn answer_of(task: Task, argument: i64, call: &'static str) -> Outcome {
    let mut toy = match start(task, argument) {
        Ok(toy) => toy,
        Err(problem) => return problem,
    };
    toy.go();
    match toy.next() {
        News::Answer(0) => Outcome::Works,
        News::Answer(errno) => Outcome::Refused(call, Errno::from_raw(errno)),
        News::Ended { signal } if signal != 0 => Outcome::Odd(format!(
            "a child that called {call} was killed by signal {signal}"
        )),
        other => Outcome::Odd(format!("a child was to answer about {call}: {other:?}")),
    }
}

/// Whether a system call may be made at all: some sandboxes kill whoever tries, so a toy tries first.
///
/// # Errors
///
/// The toy died of it. An error that the call returns is none: its arguments are bad.
pub(super) fn survives(number: libc::c_long, call: &'static str) -> Result<(), Outcome> {
    match answer_of(call_badly, number, call) {
        Outcome::Works | Outcome::Refused(..) => Ok(()),
        problem => Err(problem),
    }
}

fn call_badly(line: &Line, number: i64) {
    // SAFETY: used for calls to which -1 is no process, no address and no set of flags, so that they fail.
    let result = unsafe { libc::syscall(number, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64, -1_i64) };
    line.answer(if result < 0 { Errno::last_raw() } else { 0 });
}

/// The whole life of a toy.
fn live(parent: libc::pid_t, line: &Line, task: Task, argument: i64) -> ! {
    // SAFETY: prctl(2) and getppid(2) take numbers only, and are mere system calls.
    let orphaned = unsafe {
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
        // The parent may have died before it was watched. It shows as 0 to a child in another PID namespace.
        let seen = libc::getppid();
        seen != parent && seen != 0
    };
    if !orphaned && line.wait_for_go() {
        task(line, argument);
        loop {
            // SAFETY: pause(2) has no preconditions.
            unsafe { libc::pause() };
        }
    }
    // SAFETY: ends the process without running anything of the parent's.
    unsafe { libc::_exit(0) }
}

/// Both ends of a new pipe, closed on exec: for reading, for writing.
fn pipe() -> Result<(OwnedFd, OwnedFd), Errno> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    Errno::result(unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) })?;
    // SAFETY: both descriptors were just opened, and nobody else owns them.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer_argument(line: &Line, argument: i64) {
        line.answer(i32::try_from(argument).unwrap_or(-1));
    }

    fn die(_: &Line, _: i64) {
        // SAFETY: ends the process.
        unsafe { libc::_exit(3) }
    }

    #[test]
    fn a_toy_answers_when_told_to_go() {
        let mut toy = Toy::start(answer_argument, 42).unwrap();
        toy.go();
        assert_eq!(toy.next(), News::Answer(42));
    }

    #[test]
    fn a_toy_that_dies_is_news_and_its_drop_harmless() {
        let mut toy = Toy::start(die, 0).unwrap();
        toy.go();
        assert_eq!(toy.next(), News::Ended { signal: 0 });
        assert_eq!(toy.next(), News::Ended { signal: 0 });
        toy.go();
    }

    fn kill_oneself(_: &Line, _: i64) {
        // SAFETY: concerns this process alone.
        unsafe { libc::kill(libc::getpid(), libc::SIGSYS) };
    }

    #[test]
    fn a_call_that_kills_is_told_from_one_that_fails() {
        let outcome = answer_of(kill_oneself, 0, "kcmp");
        let Outcome::Odd(words) = outcome else {
            panic!("{outcome:?}")
        };
        assert!(words.ends_with(&format!("signal {}", libc::SIGSYS)));
        assert_eq!(survives(libc::SYS_close, "close"), Ok(()));
    }

    #[test]
    fn a_dropped_toy_is_no_process_any_more() {
        let toy = Toy::start(answer_argument, 0).unwrap();
        let pid = toy.pid();
        drop(toy);
        // SAFETY: asks about a process of our own without touching it.
        let gone = unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG | libc::__WALL) };
        assert_eq!((gone, Errno::last()), (-1, Errno::ECHILD));
    }
}
