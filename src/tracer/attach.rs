//! Joins running processes: seizes every thread, without stopping any.

use nix::errno::Errno;

use super::Tracer;
use super::proc;
use super::sys;
use super::trace_options;
use super::tracee::Doing;
use crate::event::Origin;

/// Scans for further threads that must find none before a process counts as seized. Reading a folder of threads
/// while some end may pass over others (fs/proc/base.c, `next_tid`).
const CLEAN_SCANS: u32 = 2;

/// So often the kernel must refuse before we take no for an answer: while a thread that is not the first execs, the number
/// of the first stands for a thread that has ended, and a moment later for one that lives.
pub(super) const REFUSALS: u32 = 4;

/// Why a process cannot be traced.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AttachError {
    /// There is none of that number.
    #[error("cannot attach to {0}: there is no such process")]
    NoSuchProcess(u32),
    /// It has ended, and its parent has not taken note.
    #[error(
        "cannot attach to {0}: it is a zombie: it has ended, and waits for its parent to take note"
    )]
    Zombie(u32),
    /// It is breaktrace itself.
    #[error("cannot attach to {0}: that is breaktrace itself")]
    Ourselves(u32),
    /// It traces us: the two would wait for each other for ever.
    #[error("cannot attach to {0}: it is tracing this breaktrace")]
    OurTracer(u32),
    /// It is a part of the kernel.
    #[error("cannot attach to {0}: it is a kernel thread, and has no memory of its own")]
    KernelThread(u32),
    /// Somebody else traces it; there can be one tracer only.
    #[error("cannot attach to {pid}: it is already traced by process {tracer} ({tracer_name})")]
    AlreadyTraced {
        /// The process.
        pid: u32,
        /// Its tracer.
        tracer: u32,
        /// The tracer's name.
        tracer_name: String,
    },
    /// It belongs to another user.
    #[error("cannot attach to {pid}: it belongs to {owner}")]
    OtherUser {
        /// The process.
        pid: u32,
        /// Name or number of its user.
        owner: String,
    },
    /// The Yama security module forbids it.
    #[error("cannot attach to {pid}: kernel.yama.ptrace_scope is {scope}")]
    Yama {
        /// The process.
        pid: u32,
        /// The setting.
        scope: u8,
    },
    /// It runs with rights that we do not have, or declared itself not traceable.
    #[error(
        "cannot attach to {0}: it runs with more rights than we have (set-uid, capabilities), or hides its memory"
    )]
    Privileged(u32),
    /// The kernel refused for another reason.
    #[error("cannot attach to {pid}: {}", errno.desc())]
    Refused {
        /// The process.
        pid: u32,
        /// The kernel's reason.
        errno: Errno,
    },
    /// We could not prepare ourselves.
    #[error("cannot install signal handlers: {}", .0.desc())]
    Handlers(Errno),
}

impl AttachError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NoSuchProcess(_) => {
                "`pidof PROGRAM` or `ps` tells the numbers of running processes".into()
            }
            Self::Zombie(_) => {
                "nothing of its memory is left; trace it from its start with `breaktrace run`"
                    .into()
            }
            Self::OurTracer(_) => "end the other tracer first".into(),
            Self::KernelThread(_) => "name a program's process".into(),
            Self::AlreadyTraced { tracer, .. } => {
                format!("there can be one tracer at a time: let process {tracer} detach first")
            }
            Self::OtherUser { .. } => "attach as that user or as root: try sudo".into(),
            Self::Yama { scope: 1, .. } => {
                "start the program with `breaktrace run`, attach as root, or \
                                            `sudo sysctl kernel.yama.ptrace_scope=0`"
                    .into()
            }
            Self::Yama { scope: 2, .. } => "attach as root: try sudo".into(),
            Self::Yama { .. } => {
                "this setting forbids all attaching until the machine restarts".into()
            }
            Self::Privileged(_) => {
                "attach as root, or start it with `breaktrace run` (it then runs without its extra \
                                    rights)"
                    .into()
            }
            Self::Refused { .. } => {
                "`breaktrace doctor` says what this machine allows; containers may need \
                                     --cap-add=SYS_PTRACE"
                    .into()
            }
            Self::Ourselves(_) | Self::Handlers(_) => return None,
        })
    }
}

/// The processes (thread groups) behind these numbers, each once. A number may be that of any thread.
pub(super) fn processes(pids: &[u32]) -> Result<Vec<u32>, AttachError> {
    let mut processes = Vec::new();
    for &pid in pids {
        let process = examine(pid)?;
        if !processes.contains(&process) {
            processes.push(process);
        }
    }
    Ok(processes)
}

/// Refuses at once what can never be attached to; otherwise returns the process that `pid` is a thread of.
pub(super) fn examine(pid: u32) -> Result<u32, AttachError> {
    let status = proc::status(pid).ok_or(AttachError::NoSuchProcess(pid))?;
    if status.tgid.cast_unsigned() == std::process::id() {
        return Err(AttachError::Ourselves(pid));
    }
    let our_tracer = proc::status(std::process::id()).map(|own| own.tracerpid);
    if our_tracer == Some(status.tgid) {
        return Err(AttachError::OurTracer(pid));
    }
    let process = living_process(pid)?;
    if status.tracerpid != 0 {
        return Err(already_traced(pid, status.tracerpid.cast_unsigned()));
    }
    Ok(process)
}

/// The process that `pid` is a thread of, which has memory to look at.
pub(super) fn living_process(pid: u32) -> Result<u32, AttachError> {
    let status = proc::status(pid).ok_or(AttachError::NoSuchProcess(pid))?;
    let process = status.tgid.cast_unsigned();
    // PF_KTHREAD, include/linux/sched.h.
    if proc::stat(process).is_some_and(|stat| stat.flags & 0x0020_0000 != 0) {
        return Err(AttachError::KernelThread(pid));
    }
    let has_ended = || {
        let threads = proc::threads(process).unwrap_or_default();
        threads.iter().all(|tid| is_dead(*tid))
    };
    // While a thread that is not the first execs, it can be passed over once.
    if (0..CLEAN_SCANS).all(|_| has_ended()) {
        return Err(AttachError::Zombie(pid));
    }
    Ok(process)
}

/// Whether a thread has ended, or is gone altogether.
pub(super) fn is_dead(tid: u32) -> bool {
    proc::stat(tid).is_none_or(|stat| matches!(stat.state, 'Z' | 'X' | 'x'))
}

fn already_traced(pid: u32, tracer: u32) -> AttachError {
    AttachError::AlreadyTraced {
        pid,
        tracer,
        tracer_name: proc::stat(tracer).map_or_else(|| "unknown".into(), |stat| stat.comm),
    }
}

/// Finds out why the kernel refused.
pub(super) fn diagnose(pid: u32, tid: u32, errno: Errno) -> AttachError {
    if errno != Errno::EPERM {
        return AttachError::Refused { pid, errno };
    }
    let status = proc::status(tid);
    let tracer = status.as_ref().map_or(0, |status| status.tracerpid);
    if tracer != 0 {
        return already_traced(pid, tracer.cast_unsigned());
    }
    let own_uid = nix::unistd::geteuid().as_raw();
    if let Some(status) = status
        && own_uid != 0
        && [status.ruid, status.euid, status.suid]
            .iter()
            .any(|uid| *uid != own_uid)
    {
        // Real user ours, effective one not: it is a set-uid program of ours.
        if status.ruid == own_uid {
            return AttachError::Privileged(pid);
        }
        let owner = nix::unistd::User::from_uid(status.ruid.into())
            .ok()
            .flatten();
        return AttachError::OtherUser {
            pid,
            owner: owner.map_or_else(|| format!("user {}", status.ruid), |user| user.name),
        };
    }
    match yama_scope() {
        Some(scope) if scope > 0 && (own_uid != 0 || scope == 3) => {
            AttachError::Yama { pid, scope }
        }
        _ if own_uid != 0 => AttachError::Privileged(pid),
        _ => AttachError::Refused { pid, errno },
    }
}

fn yama_scope() -> Option<u8> {
    std::fs::read_to_string("/proc/sys/kernel/yama/ptrace_scope")
        .ok()?
        .trim()
        .parse()
        .ok()
}

impl Tracer {
    /// Seizes all threads of a process, until scans find no further one.
    pub(super) fn seize_process(&mut self, pid: u32) -> Result<(), AttachError> {
        let mut clean_scans = 0;
        let mut refused = None;
        let mut refusals = 0;
        while clean_scans < CLEAN_SCANS {
            let threads = proc::threads(pid).map_err(|_| AttachError::NoSuchProcess(pid))?;
            let mut found = false;
            for tid in threads {
                if self.tracees.threads.contains_key(&tid) {
                    continue;
                }
                match sys::seize(tid, trace_options(self.options.follow)) {
                    Ok(()) => {
                        found = true;
                        self.seized(tid, pid);
                    }
                    Err(errno) => {
                        if !self.is_explained(tid) {
                            refused = Some(diagnose(pid, tid, errno));
                        }
                    }
                }
            }
            if let Some(error) = refused.take() {
                refusals += 1;
                if refusals >= REFUSALS {
                    return Err(error);
                }
                found = true;
            }
            clean_scans = if found { 0 } else { clean_scans + 1 };
        }
        if self.tracees.threads_of(pid).next().is_none() {
            return Err(AttachError::NoSuchProcess(pid));
        }
        Ok(())
    }

    /// Whether it is no failure that a thread could not be seized: it has ended, or a seized one has just made it
    /// and the kernel has put it under our trace itself.
    fn is_explained(&self, tid: u32) -> bool {
        is_dead(tid)
            || proc::status(tid)
                .is_none_or(|status| status.tracerpid.cast_unsigned() == std::process::id())
    }

    fn seized(&mut self, tid: u32, pid: u32) {
        if self.tracees.processes.contains_key(&pid) {
            self.tracees.add_thread(tid, pid, Doing::Unknown);
        } else {
            self.admit_process_quietly(pid, Origin::Attached);
            self.tracees.add_thread(tid, pid, Doing::Unknown);
        }
    }
}
