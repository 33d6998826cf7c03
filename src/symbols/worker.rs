//! Runs a piece of work in a process of its own, with limits.
//!
//! What the work reads is not to be trusted, and neither is its reader: whether it crashes, never ends, asks for all
//! memory, or has the file cut under its mapping (SIGBUS, mmap(2)), it costs its own answer and nothing else.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::panic::AssertUnwindSafe;
use std::time::Duration;
use std::time::Instant;

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::resource::Resource;
use nix::sys::resource::setrlimit;
use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::sys::wait::WaitStatus;
use nix::sys::wait::waitpid;
use nix::unistd::ForkResult;
use nix::unistd::Pid;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Most memory of its own that the work may have, in bytes; mapped files do not count.
const MOST_MEMORY: u64 = 4 << 30;
/// Longest answer, in bytes.
const LONGEST_ANSWER: usize = 256 << 20;
/// Exit codes of the process.
const DONE: i32 = 0;
const PANICKED: i32 = 1;

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum NoAnswer {
    #[error("no process could be started for it: {0}")]
    NotStarted(String),
    #[error("it took longer than {} s", .0.as_secs())]
    TookTooLong(Duration),
    #[error("its reader crashed ({0})")]
    Crashed(String),
}

/// Does `work` in a child process and gives its answer.
///
/// # Errors
///
/// The process could not be started, crashed, or was not done within `patience`.
pub(super) fn run<T: Serialize + DeserializeOwned>(
    patience: Duration,
    work: impl FnOnce() -> T,
) -> Result<T, NoAnswer> {
    let not_started = |error: Errno| NoAnswer::NotStarted(error.desc().to_owned());
    let (reader, writer) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(not_started)?;
    let parent = std::process::id();
    // SAFETY: the child does not return: it calls `child`, which ends in _exit(2). breaktrace has one thread; where it
    // is a library among others, the child uses nothing that another thread may have locked but malloc, which glibc
    // makes usable in forked children.
    match unsafe { nix::unistd::fork() }.map_err(not_started)? {
        ForkResult::Child => {
            drop(reader);
            child(parent, writer, work)
        }
        ForkResult::Parent { child } => {
            drop(writer);
            answer(child, &reader, patience)
        }
    }
}

/// The child's life.
fn child<T: Serialize>(parent: u32, writer: OwnedFd, work: impl FnOnce() -> T) -> ! {
    let code = match std::panic::catch_unwind(AssertUnwindSafe(|| {
        confine(parent);
        write(&writer, &work())
    })) {
        Ok(Ok(())) => DONE,
        Ok(Err(_)) | Err(_) => PANICKED,
    };
    // SAFETY: takes a number. Nothing of the parent's is flushed or undone.
    unsafe { libc::_exit(code) }
}

/// Keeps the child from outliving its parent, from filling the memory or the disk, and from talking.
fn confine(parent: u32) {
    // What cannot be limited stays as it is: the parent's patience ends everything else.
    let _ = nix::sys::prctl::set_pdeathsig(Signal::SIGKILL);
    if std::os::unix::process::parent_id() != parent {
        // SAFETY: takes a number. The parent died before it could be watched.
        unsafe { libc::_exit(PANICKED) }
    }
    let _ = setrlimit(Resource::RLIMIT_DATA, MOST_MEMORY, MOST_MEMORY);
    // One byte, not none: with a core dump handler none is taken for a file's limit and ignored (core(5)).
    let _ = setrlimit(Resource::RLIMIT_CORE, 1, 1);
    if let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null") {
        // What a crashing reader has to say is of no use to anybody.
        // SAFETY: both descriptors are numbers that are or become open ones.
        unsafe { libc::dup2(null.as_raw_fd(), libc::STDERR_FILENO) };
    }
}

fn write(writer: &OwnedFd, answer: &impl Serialize) -> io::Result<()> {
    let text = serde_json::to_vec(answer)?;
    let mut rest = text.as_slice();
    while !rest.is_empty() {
        match nix::unistd::write(writer, rest) {
            Ok(written) => rest = &rest[written..],
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Waits for the answer, and for the end of the child.
fn answer<T: DeserializeOwned>(
    child: Pid,
    reader: &OwnedFd,
    patience: Duration,
) -> Result<T, NoAnswer> {
    let read = read(reader, patience);
    if read.is_err() {
        // It is our child and has not been waited for, so the number is still its own.
        let _ = kill(child, Signal::SIGKILL);
    }
    let status = loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            status => break status,
        }
    };
    let text = read?;
    match status {
        // Where SIGCHLD is ignored, nobody learns how children end (wait(2)); the answer has to speak for itself.
        Ok(WaitStatus::Exited(_, DONE)) | Err(Errno::ECHILD) => serde_json::from_slice(&text)
            .map_err(|_| NoAnswer::Crashed("its answer breaks off".to_owned())),
        Ok(WaitStatus::Signaled(_, signal, _)) => Err(NoAnswer::Crashed(signal.to_string())),
        _ => Err(NoAnswer::Crashed("it panicked".to_owned())),
    }
}

fn read(reader: &OwnedFd, patience: Duration) -> Result<Vec<u8>, NoAnswer> {
    let failed = |error: Errno| NoAnswer::Crashed(error.desc().to_owned());
    let end = Instant::now() + patience;
    let mut text = Vec::new();
    let mut piece = vec![0; 1 << 16];
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let mut poll = libc::pollfd {
            fd: reader.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        // Rounded up, so that the last millisecond is not waited for in a busy loop.
        let milliseconds = i32::try_from(left.as_millis() + 1).unwrap_or(i32::MAX);
        // SAFETY: one valid structure, and its number.
        match unsafe { libc::poll(&raw mut poll, 1, milliseconds) } {
            0 => return Err(NoAnswer::TookTooLong(patience)),
            -1 if Errno::last() != Errno::EINTR => return Err(failed(Errno::last())),
            -1 => continue,
            _ => {}
        }
        match nix::unistd::read(reader, &mut piece) {
            Ok(0) => return Ok(text),
            Ok(length) => text.extend_from_slice(&piece[..length]),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(failed(error)),
        }
        if text.len() > LONGEST_ANSWER {
            return Err(NoAnswer::Crashed("its answer has no end".to_owned()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATIENCE: Duration = Duration::from_secs(60);

    #[test]
    fn an_answer_comes_back() {
        let answer = run(PATIENCE, || vec!["x".repeat(1 << 20); 3]);
        assert_eq!(answer.unwrap().len(), 3);
    }

    #[test]
    fn work_that_never_ends_is_ended() {
        let patience = Duration::from_millis(20);
        let answer = run(patience, || {
            loop {
                std::thread::park();
            }
            #[allow(unreachable_code)]
            0
        });
        assert_eq!(answer, Err(NoAnswer::TookTooLong(patience)));
    }

    #[test]
    fn a_crash_costs_the_answer_and_nothing_else() {
        // A file that became shorter than its mapping, which is how a reader meets this signal.
        let bus_error = run(PATIENCE, || {
            let file = tempfile::tempfile().unwrap();
            file.set_len(1).unwrap();
            // SAFETY: nobody else has the file; what reading it does here is what the test is about.
            let map = unsafe { memmap2::Mmap::map(&file) }.unwrap();
            file.set_len(0).unwrap();
            map[0]
        });
        assert_eq!(bus_error, Err(NoAnswer::Crashed("SIGBUS".into())));
        assert!(matches!(
            run::<u8>(PATIENCE, || panic!("as expected")),
            Err(NoAnswer::Crashed(_))
        ));
        let too_much: Result<usize, _> = run(PATIENCE, || {
            let capacity = usize::try_from(MOST_MEMORY * 2).unwrap();
            Vec::<u8>::with_capacity(capacity).capacity()
        });
        assert!(
            matches!(too_much, Err(NoAnswer::Crashed(_))),
            "{too_much:?}"
        );
    }
}
