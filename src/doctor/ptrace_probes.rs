//! Probes of what ptrace and its kin allow, each done on a toy child.
//!
//! Measuring and wording are apart: [`Tracing::measure`] does the probes, the functions that return a [`Finding`]
//! only put outcomes into words.

use std::mem::offset_of;
use std::ptr;

use nix::errno::Errno;

use super::Finding;
use super::Outcome;
use super::Status;
use super::surroundings::Surroundings;
use super::toy::Line;
use super::toy::News;
use super::toy::Toy;
use super::toy::answer_of;
use super::toy::start;
use super::toy::survives;

#[cfg(target_env = "musl")]
type Request = libc::c_int;
#[cfg(not(target_env = "musl"))]
type Request = libc::c_uint;

/// linux/ptrace.h; libc has it for glibc only.
const PTRACE_GET_SYSCALL_INFO: Request = 0x420e;
/// linux/ptrace.h; libc has it for Android only.
const PTRACE_EVENT_STOP: i32 = 128;
/// Values of [`SyscallInfo::kind`], from linux/ptrace.h.
const SYSCALL_INFO_ENTRY: u8 = 1;
const SYSCALL_INFO_EXIT: u8 = 2;
const SYSCALL_INFO_SECCOMP: u8 = 3;
/// linux/kcmp.h
const KCMP_VM: libc::c_long = 1;

/// The options that breaktrace traces with.
const OPTIONS: libc::c_int = libc::PTRACE_O_TRACESYSGOOD
    | libc::PTRACE_O_TRACEEXEC
    | libc::PTRACE_O_TRACECLONE
    | libc::PTRACE_O_TRACEFORK
    | libc::PTRACE_O_TRACEVFORK
    | libc::PTRACE_O_TRACEEXIT
    | libc::PTRACE_O_TRACESECCOMP
    | libc::PTRACE_O_EXITKILL;

/// A toy makes three calls and waits; whoever needs more stops than this to see them is lost.
const MOST_STOPS: usize = 32;

/// `struct ptrace_syscall_info` of linux/ptrace.h.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct SyscallInfo {
    kind: u8,
    padding: [u8; 3],
    architecture: u32,
    instruction_pointer: u64,
    stack_pointer: u64,
    /// At entry and seccomp stops the call's number and arguments; at exit stops the result.
    data: [u64; 8],
}

const _: () = assert!(size_of::<SyscallInfo>() == 88);
const _: () = assert!(offset_of!(SyscallInfo, data) == 24);

/// What the probes measured.
pub(super) struct Tracing {
    /// Tracing an own child, up to its first stop.
    pub(super) seize: Outcome,
    /// Being told by the kernel which stop it is.
    pub(super) syscall_info: Outcome,
    /// Stopping a child at chosen calls only.
    pub(super) seccomp: Outcome,
    /// Setting such a filter while set-user-ID programs keep their meaning.
    pub(super) free_filter: Outcome,
    /// Tracing a process that is no child of the tracer.
    pub(super) attach: Outcome,
    /// Tracing a process of another user.
    pub(super) attach_others: Outcome,
    /// Reading a child's memory.
    pub(super) memory_read: Outcome,
    /// Telling whether two processes share one address space.
    pub(super) kcmp: Outcome,
}

impl Tracing {
    /// Does the probes.
    pub(super) fn measure() -> Self {
        let seize = seize();
        let possible = matches!(seize, Outcome::Works);
        let with_ptrace = |probe: fn() -> Outcome| {
            if possible {
                probe()
            } else {
                Outcome::Untried(NO_PTRACE)
            }
        };
        Self {
            syscall_info: with_ptrace(syscall_info),
            seccomp: with_ptrace(seccomp),
            free_filter: free_filter(),
            attach: with_ptrace(attach),
            attach_others: with_ptrace(attach_others),
            memory_read: memory_read(),
            kcmp: kcmp(),
            seize,
        }
    }

    /// The findings, in the order of their weight.
    pub(super) fn findings(&self, surroundings: &Surroundings) -> Vec<Finding> {
        vec![
            self.ptrace_finding(surroundings),
            self.syscall_info_finding(surroundings),
            self.seccomp_finding(surroundings),
            self.no_new_privs_finding(surroundings),
            self.attach_finding(surroundings),
            self.attach_other_users_finding(surroundings),
            self.memory_read_finding(surroundings),
            self.kcmp_finding(surroundings),
        ]
    }

    fn ptrace_finding(&self, surroundings: &Surroundings) -> Finding {
        let finding = Finding {
            name: "ptrace",
            status: Status::Good,
            found: "a child was seized and stopped".into(),
            means: "programs can be started and traced".into(),
            remedy: None,
        };
        self.seize.judge(finding, |problem| Finding {
            name: "ptrace",
            status: Status::Missing,
            found: problem.words("a child could not be traced"),
            means: "nothing can be traced: neither `run` nor `attach` works".into(),
            remedy: Some(surroundings.allow_tracing_children(problem.errno())),
        })
    }

    fn syscall_info_finding(&self, surroundings: &Surroundings) -> Finding {
        let finding = Finding {
            name: "syscall_info",
            status: Status::Good,
            found: "PTRACE_GET_SYSCALL_INFO told entry and exit of a call".into(),
            means: "calls are decoded by the ABI that the kernel names".into(),
            remedy: None,
        };
        judge_traced(&self.syscall_info, finding, |problem| Finding {
            name: "syscall_info",
            status: Status::Missing,
            found: problem.words("PTRACE_GET_SYSCALL_INFO does not work"),
            means: "system calls cannot be decoded, so nothing can be traced".into(),
            remedy: Some(surroundings.other_kernel()),
        })
    }

    fn seccomp_finding(&self, surroundings: &Surroundings) -> Finding {
        let finding = Finding {
            name: "seccomp",
            status: Status::Good,
            found: "a filter stopped a child at brk, and only there".into(),
            means: "`run` stops the program at memory calls only; all others run at full speed"
                .into(),
            remedy: None,
        };
        judge_traced(&self.seccomp, finding, |problem| Finding {
            name: "seccomp",
            status: Status::Missing,
            found: problem.words("no filter stops a child"),
            means:
                "`run` stops at every system call, as `attach` does: the same result, but slower"
                    .into(),
            remedy: Some(surroundings.allow_in_sandbox()),
        })
    }

    fn no_new_privs_finding(&self, surroundings: &Surroundings) -> Finding {
        const MEANS: &str = "set-user-ID programs (sudo, ping) run without their extra rights under `breaktrace run`";
        if surroundings.no_new_privileges {
            return Finding {
                name: "no_new_privs",
                status: Status::Limited,
                found: "set for this shell and all its children already".into(),
                means: MEANS.into(),
                remedy: Some(
                    "start breaktrace from a shell without it (in Kubernetes: allowPrivilegeEscalation: true)"
                        .into(),
                ),
            };
        }
        let finding = Finding {
            name: "no_new_privs",
            status: Status::Good,
            found: "not needed: a filter was set without it".into(),
            means: "set-user-ID programs keep their rights under `breaktrace run --user`".into(),
            remedy: None,
        };
        self.free_filter.judge(finding, |problem| Finding {
            name: "no_new_privs",
            status: Status::Limited,
            found: problem.words("filters need it"),
            means: MEANS.into(),
            remedy: Some("sudo breaktrace run --user \"$USER\" PROGRAM".into()),
        })
    }

    fn attach_finding(&self, surroundings: &Surroundings) -> Finding {
        let finding = Finding {
            name: "attach",
            status: Status::Good,
            found: "a process that is no child of the tracer was seized".into(),
            means: "running processes of this user can be attached to".into(),
            remedy: None,
        };
        judge_traced(&self.attach, finding, |problem| {
            Finding {
            name: "attach",
            status: Status::Missing,
            found: problem.words("only own children can be traced"),
            means: "`attach` works on processes that ask for it with PR_SET_PTRACER, at most; `run` is not concerned"
                .into(),
            remedy: Some(surroundings.allow_attaching()),
        }
        })
    }

    fn attach_other_users_finding(&self, surroundings: &Surroundings) -> Finding {
        let capabilities = surroundings.capabilities;
        let inside = match surroundings.inner_user_namespace {
            Some(true) => ", in a user namespace of its own",
            _ => "",
        };
        let finding = Finding {
            name: "attach_other_users",
            status: Status::Good,
            found: format!("a process of another user was seized; {capabilities}{inside}"),
            means: match surroundings.inner_user_namespace {
                Some(true) => {
                    "processes of other users in this user namespace can be attached to".into()
                }
                _ => "processes of all users can be attached to".into(),
            },
            remedy: None,
        };
        judge_traced(&self.attach_others, finding, |problem| Finding {
            name: "attach_other_users",
            status: Status::Limited,
            found: match problem {
                Outcome::Untried(_) => format!("{}; {capabilities}{inside}", problem.words("")),
                _ => problem.words(&format!("refused; {capabilities}{inside}")),
            },
            means:
                "processes of other users, and those that changed their user, cannot be attached to"
                    .into(),
            remedy: Some(surroundings.as_root("--cap-add=SYS_PTRACE")),
        })
    }

    fn memory_read_finding(&self, surroundings: &Surroundings) -> Finding {
        let finding = Finding {
            name: "memory_read",
            status: Status::Good,
            found: "process_vm_readv read a child's memory".into(),
            means: "arguments and stacks in the program's memory can be read".into(),
            remedy: None,
        };
        self.memory_read.judge(finding, |problem| Finding {
            name: "memory_read",
            status: Status::Missing,
            found: problem.words("process_vm_readv does not work"),
            means: "arguments that lie in the program's memory (as of 32-bit mmap), and stacks, cannot be read this \
                    way"
                .into(),
            remedy: Some(if matches!(self.seize, Outcome::Works) {
                surroundings.allow_in_sandbox()
            } else {
                SEE_PTRACE.into()
            }),
        })
    }

    fn kcmp_finding(&self, surroundings: &Surroundings) -> Finding {
        let finding = Finding {
            name: "kcmp",
            status: Status::Good,
            found: "kcmp told two address spaces apart".into(),
            means: "processes that share one address space are recognized when attached to".into(),
            remedy: None,
        };
        self.kcmp.judge(finding, |problem| Finding {
            name: "kcmp",
            status: Status::Missing,
            found: problem.words("kcmp(KCMP_VM) does not work"),
            means: "attached processes that share one address space (vfork, CLONE_VM) cannot be recognized as such"
                .into(),
            remedy: Some(match problem.errno() {
                Errno::ENOSYS => "use a kernel with CONFIG_KCMP".into(),
                _ => surroundings.allow_in_sandbox(),
            }),
        })
    }
}

const NO_PTRACE: &str = "ptrace does not work here";
const SEE_PTRACE: &str = "first make the finding `ptrace` good";

/// Judges what was tried only if ptrace works.
fn judge_traced(
    outcome: &Outcome,
    good: Finding,
    bad: impl FnOnce(&Outcome) -> Finding,
) -> Finding {
    match outcome {
        Outcome::Untried(NO_PTRACE) => Finding {
            status: Status::Missing,
            found: outcome.words(""),
            means: "without ptrace it is of no use".into(),
            remedy: Some(SEE_PTRACE.into()),
            ..good
        },
        tried => tried.judge(good, bad),
    }
}

/// Traces an own child, up to the stop asked for.
fn seize() -> Outcome {
    let attempt = || {
        survives(libc::SYS_ptrace, "ptrace")?;
        let mut toy = start(answer_once, 0)?;
        seize_and_stop(&mut toy)
    };
    attempt().err().unwrap_or(Outcome::Works)
}

/// Follows one read(2) of a child from its entry to its exit.
fn syscall_info() -> Outcome {
    let follow = || -> Result<(), Outcome> {
        let mut toy = start(answer_once, 0)?;
        seize_and_stop(&mut toy)?;
        wait_for_entry(&mut toy, libc::SYS_read)?;
        toy.go();
        next_syscall_stop(&mut toy)?;
        let exit = info(&toy)?;
        // The pipe gave the one byte that was asked for.
        if (exit.kind, exit.data[0]) == (SYSCALL_INFO_EXIT, 1) {
            Ok(())
        } else {
            Err(odd(&exit, "the exit of read"))
        }
    };
    follow().err().unwrap_or(Outcome::Works)
}

/// Lets a child set a filter on brk and follows the brk that it makes then, the way `run` traces.
fn seccomp() -> Outcome {
    let follow = || -> Result<(), Outcome> {
        let mut toy = start(filter_and_call_brk, 0)?;
        request(toy.pid(), "PTRACE_SEIZE", libc::PTRACE_SEIZE, 0, options())?;
        toy.go();
        wait_for_filter_stop(&mut toy)?;
        let stop = info(&toy)?;
        if (stop.kind, stop.data[0].cast_signed()) != (SYSCALL_INFO_SECCOMP, libc::SYS_brk) {
            return Err(odd(&stop, "the filter's stop at brk"));
        }
        next_syscall_stop(&mut toy)?;
        let exit = info(&toy)?;
        if exit.kind == SYSCALL_INFO_EXIT && exit.data[0] != 0 {
            Ok(())
        } else {
            Err(odd(&exit, "the exit of brk"))
        }
    };
    follow().err().unwrap_or(Outcome::Works)
}

/// Lets a child set a filter without no_new_privs.
fn free_filter() -> Outcome {
    answer_of(filter_freely, 0, "seccomp")
}

/// Lets one child trace another, which is no child of its own.
fn attach() -> Outcome {
    attach_to(UNCHANGED_USER)
}

/// Lets one child trace another that became another user.
fn attach_others() -> Outcome {
    // SAFETY: geteuid(2) has no preconditions.
    let own = unsafe { libc::geteuid() };
    // The user `nobody`, by custom, or a neighbour.
    attach_to(if own == 65_534 { 65_533 } else { 65_534 })
}

const UNCHANGED_USER: i64 = -1;

fn attach_to(user: i64) -> Outcome {
    let attempt = || -> Result<Outcome, Outcome> {
        // Dropped in reverse order: the tracer dies first, which sets the other free.
        let mut target = start(become_user, user)?;
        target.go();
        match target.next() {
            News::Answer(0) => {}
            News::Answer(_) => return Ok(Outcome::Untried("no child can become another user")),
            other => {
                return Err(Outcome::Odd(format!(
                    "a child was to change its user: {other:?}"
                )));
            }
        }
        Ok(answer_of(
            seize_other,
            i64::from(target.pid()),
            "PTRACE_SEIZE",
        ))
    };
    attempt().unwrap_or_else(|problem| problem)
}

/// Reads a number out of a child.
fn memory_read() -> Outcome {
    // On the heap of both after the fork, at the same address.
    let marker = Box::new(0x6272_6561_6b74_7263_u64);
    let attempt = || -> Result<(), Outcome> {
        survives(libc::SYS_process_vm_readv, "process_vm_readv")?;
        let toy = start(answer_once, 0)?;
        let mut copy = 0_u64;
        let local = libc::iovec {
            iov_base: (&raw mut copy).cast(),
            iov_len: size_of::<u64>(),
        };
        let remote = libc::iovec {
            iov_base: ptr::from_ref(&*marker).cast_mut().cast(),
            iov_len: size_of::<u64>(),
        };
        // SAFETY: `local` describes `copy`; the address in `remote` is used by the kernel in the child only.
        let length = unsafe {
            libc::process_vm_readv(toy.pid(), &raw const local, 1, &raw const remote, 1, 0)
        };
        if length < 0 {
            return Err(Outcome::Refused("process_vm_readv", Errno::last()));
        }
        if copy == *marker {
            Ok(())
        } else {
            Err(Outcome::Odd("process_vm_readv read something else".into()))
        }
    };
    attempt().err().unwrap_or(Outcome::Works)
}

/// Compares a child's address space with its own, and our own with itself.
fn kcmp() -> Outcome {
    let attempt = || -> Result<(), Outcome> {
        survives(libc::SYS_kcmp, "kcmp")?;
        let toy = start(answer_once, 0)?;
        // SAFETY: getpid(2) has no preconditions.
        let own = unsafe { libc::getpid() };
        let compare = |other: libc::pid_t| {
            // SAFETY: the call takes numbers only.
            let order = unsafe { libc::syscall(libc::SYS_kcmp, own, other, KCMP_VM, 0, 0) };
            Errno::result(order).map_err(|errno| Outcome::Refused("kcmp", errno))
        };
        // 0 is equal; 1, 2 and 3 are ways to differ (kcmp(2)).
        match (compare(own)?, compare(toy.pid())?) {
            (0, 1..) => Ok(()),
            (same, other) => Err(Outcome::Odd(format!(
                "kcmp returned {same} for one address space and {other} for two"
            ))),
        }
    };
    attempt().err().unwrap_or(Outcome::Works)
}

// Tasks: what toys do. System calls only; see the module `toy`.

fn answer_once(line: &Line, _: i64) {
    line.answer(0);
}

fn filter_and_call_brk(line: &Line, _: i64) {
    // SAFETY: the request takes numbers only.
    unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) };
    let result = set_filter(libc::SECCOMP_RET_TRACE);
    if result == 0 {
        // SAFETY: asks for the program break without moving it.
        unsafe { libc::syscall(libc::SYS_brk, 0) };
    }
    line.answer(result);
}

fn filter_freely(line: &Line, _: i64) {
    line.answer(set_filter(libc::SECCOMP_RET_ALLOW));
}

/// Sets a filter that answers brk with `action`; returns 0 or an error's number.
fn set_filter(action: u32) -> i32 {
    #[expect(
        clippy::cast_possible_truncation,
        reason = "numbers of system calls are small and positive"
    )]
    const BRK: u32 = libc::SYS_brk as u32;
    const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
    const JUMP_IF_EQUAL: u16 = 0x15; // BPF_JMP | BPF_JEQ | BPF_K
    const RETURN: u16 = 0x06; // BPF_RET | BPF_K
    let instruction = |code, jt, jf, k| libc::sock_filter { code, jt, jf, k };
    // The architecture need not be looked at: only this child, which makes native calls, lives under the filter.
    let mut program = [
        instruction(LOAD, 0, 0, 0), // `nr`, first in struct seccomp_data
        instruction(JUMP_IF_EQUAL, 0, 1, BRK),
        instruction(RETURN, 0, 0, action),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW),
    ];
    let filter = libc::sock_fprog {
        len: 4,
        filter: program.as_mut_ptr(),
    };
    // SAFETY: `filter` describes `program`, which the kernel copies.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            0,
            &raw const filter,
        )
    };
    if result == 0 { 0 } else { Errno::last_raw() }
}

fn become_user(line: &Line, user: i64) {
    if user != UNCHANGED_USER {
        // The raw call changes this thread alone; the library's would look for others.
        // SAFETY: the call takes numbers only.
        if unsafe { libc::syscall(libc::SYS_setresuid, user, user, user) } != 0 {
            line.answer(Errno::last_raw());
            return;
        }
    }
    line.answer(0);
}

fn seize_other(line: &Line, pid: i64) {
    let pid = libc::pid_t::try_from(pid).unwrap_or(0);
    // SAFETY: the request takes no addresses.
    let result = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0_usize, 0_usize) };
    line.answer(if result == 0 { 0 } else { Errno::last_raw() });
}

// Steps of a traced toy.

fn options() -> usize {
    OPTIONS.cast_unsigned() as usize
}

fn seize_and_stop(toy: &mut Toy) -> Result<(), Outcome> {
    request(toy.pid(), "PTRACE_SEIZE", libc::PTRACE_SEIZE, 0, options())?;
    request(toy.pid(), "PTRACE_INTERRUPT", libc::PTRACE_INTERRUPT, 0, 0)?;
    match toy.next() {
        News::Stopped {
            event: PTRACE_EVENT_STOP,
            ..
        } => Ok(()),
        other => Err(Outcome::Odd(format!("expected a stop, got {other:?}"))),
    }
}

/// From any stop to the next entry of the call with this number.
fn wait_for_entry(toy: &mut Toy, number: libc::c_long) -> Result<(), Outcome> {
    for _ in 0..MOST_STOPS {
        next_syscall_stop(toy)?;
        let stop = info(toy)?;
        if (stop.kind, stop.data[0].cast_signed()) == (SYSCALL_INFO_ENTRY, number) {
            return Ok(());
        }
    }
    Err(Outcome::Odd("a child's read was never seen".into()))
}

/// From any stop to the next entry or exit of a call.
fn next_syscall_stop(toy: &mut Toy) -> Result<(), Outcome> {
    let mut signal = 0;
    for _ in 0..MOST_STOPS {
        resume(toy, "PTRACE_SYSCALL", libc::PTRACE_SYSCALL, signal)?;
        match toy.next() {
            News::Stopped { signal, event: 0 } if signal == libc::SIGTRAP | 0x80 => return Ok(()),
            News::Stopped {
                signal: other,
                event,
            } => signal = deliverable(other, event),
            other => return Err(Outcome::Odd(format!("expected a call, got {other:?}"))),
        }
    }
    Err(Outcome::Odd("a child stopped again and again".into()))
}

/// From the order to go to the stop that the filter makes.
fn wait_for_filter_stop(toy: &mut Toy) -> Result<(), Outcome> {
    for _ in 0..MOST_STOPS {
        match toy.next() {
            News::Stopped {
                event: libc::PTRACE_EVENT_SECCOMP,
                ..
            } => return Ok(()),
            News::Stopped { signal, event } => {
                resume(
                    toy,
                    "PTRACE_CONT",
                    libc::PTRACE_CONT,
                    deliverable(signal, event),
                )?;
            }
            News::Answer(0) => {
                return Err(Outcome::Odd("a filter was set, but stopped nothing".into()));
            }
            News::Answer(errno) => {
                return Err(Outcome::Refused("seccomp", Errno::from_raw(errno)));
            }
            other @ (News::Ended { .. } | News::Silence) => {
                return Err(Outcome::Odd(format!(
                    "expected the filter's stop, got {other:?}"
                )));
            }
        }
    }
    Err(Outcome::Odd("a child stopped again and again".into()))
}

/// The signal to hand on: that of a signal's delivery, none for other stops.
fn deliverable(signal: i32, event: i32) -> i32 {
    if event == 0 && signal & 0x80 == 0 {
        signal
    } else {
        0
    }
}

fn resume(toy: &Toy, name: &'static str, how: Request, signal: i32) -> Result<(), Outcome> {
    request(toy.pid(), name, how, 0, signal.cast_unsigned() as usize)
}

/// A ptrace request without addresses of ours.
fn request(
    pid: libc::pid_t,
    name: &'static str,
    request: Request,
    address: usize,
    data: usize,
) -> Result<(), Outcome> {
    // SAFETY: none of the requests used here (SEIZE, INTERRUPT, CONT, SYSCALL) reads or writes our memory.
    match unsafe { libc::ptrace(request, pid, address, data) } {
        0 => Ok(()),
        _ => Err(Outcome::Refused(name, Errno::last())),
    }
}

fn info(toy: &Toy) -> Result<SyscallInfo, Outcome> {
    let mut info = SyscallInfo::default();
    // SAFETY: the kernel writes at most the given size to `info`, in which every pattern of bits is valid.
    let length = unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_INFO,
            toy.pid(),
            size_of::<SyscallInfo>(),
            &raw mut info,
        )
    };
    if length < 0 {
        Err(Outcome::Refused("PTRACE_GET_SYSCALL_INFO", Errno::last()))
    } else {
        Ok(info)
    }
}

fn odd(stop: &SyscallInfo, expected: &str) -> Outcome {
    Outcome::Odd(format!(
        "expected {expected}, and the kernel told of a stop of kind {} with {:#x}",
        stop.kind, stop.data[0]
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denied() -> Tracing {
        let untried = || Outcome::Untried(NO_PTRACE);
        Tracing {
            seize: Outcome::Refused("PTRACE_SEIZE", Errno::EPERM),
            syscall_info: untried(),
            seccomp: untried(),
            free_filter: Outcome::Refused("seccomp", Errno::EACCES),
            attach: untried(),
            attach_others: untried(),
            memory_read: Outcome::Refused("process_vm_readv", Errno::EPERM),
            kcmp: Outcome::Refused("kcmp", Errno::EPERM),
        }
    }

    #[test]
    fn what_needs_ptrace_says_so_when_ptrace_is_refused() {
        let findings = denied().findings(&Surroundings::default());
        for name in ["syscall_info", "seccomp", "attach"] {
            let finding = findings.iter().find(|one| one.name == name).unwrap();
            assert_eq!(finding.status, Status::Missing);
            assert!(finding.found.contains(NO_PTRACE), "{finding:?}");
            assert_eq!(finding.remedy.as_deref(), Some(SEE_PTRACE));
        }
    }

    #[test]
    fn whatever_is_not_good_has_a_remedy_and_names_its_error() {
        for finding in denied().findings(&Surroundings::default()) {
            assert_ne!(finding.status, Status::Good);
            assert!(finding.remedy.is_some(), "{finding:?}");
        }
        let findings = denied().findings(&Surroundings::default());
        assert!(findings[0].found.contains("EPERM"), "{:?}", findings[0]);
    }

    #[test]
    fn a_filter_that_sets_no_new_privs_is_a_limit_and_no_failure() {
        let findings = denied().findings(&Surroundings::default());
        let finding = findings
            .iter()
            .find(|one| one.name == "no_new_privs")
            .unwrap();
        assert_eq!(finding.status, Status::Limited);
        assert!(finding.remedy.as_ref().unwrap().contains("sudo"));
    }

    #[test]
    fn signals_are_handed_on_and_other_stops_are_not() {
        assert_eq!(deliverable(libc::SIGCHLD, 0), libc::SIGCHLD);
        assert_eq!(deliverable(libc::SIGTRAP | 0x80, 0), 0);
        assert_eq!(deliverable(libc::SIGTRAP, PTRACE_EVENT_STOP), 0);
    }
}
