//! The system calls that tracing needs and `nix` does not offer as we need them.
//!
//! `nix` decodes signals into an enum that has no real-time signals, and loses the stop of a tracee that received
//! one (its `waitpid` fails with `EINVAL` after the status was consumed). So waiting, resuming and detaching go to
//! `libc` directly, with signals as plain numbers. Everything here returns the kernel's answer and keeps no state.

use std::ptr::null_mut;

use libc::c_int;
use libc::c_long;
use libc::c_void;
use nix::errno::Errno;

/// A wait status as waitpid(2) gives it, not yet interpreted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RawStatus(pub(super) c_int);

/// What system call stop a tracee is in, by `PTRACE_GET_SYSCALL_INFO` (ptrace(2), Linux 5.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SyscallInfo {
    /// The call is about to begin; also told at a seccomp stop.
    Entry {
        /// `AUDIT_ARCH_*`: the ABI of this very call.
        architecture: u32,
        /// Its number in that ABI.
        number: u64,
        /// Its arguments.
        arguments: [u64; 6],
    },
    /// The call has returned.
    Exit {
        /// `AUDIT_ARCH_*`: the ABI of this very call.
        architecture: u32,
        /// What it returned: the value, or the negated error number.
        value: i64,
        /// Whether `value` is an error.
        is_error: bool,
    },
    /// The tracee is in no system call stop.
    None,
}

fn signed(result: c_long) -> Result<c_long, Errno> {
    if result == -1 {
        Err(Errno::last())
    } else {
        Ok(result)
    }
}

fn tid_as_pid(tid: u32) -> libc::pid_t {
    // Thread numbers come from the kernel, whose limit is 2^22 (proc(5), pid_max).
    tid.cast_signed()
}

/// Waits for any tracee or child. `None` only with `WNOHANG`, when nothing is there.
pub(super) fn wait_any(flags: c_int) -> Result<Option<(u32, RawStatus)>, Errno> {
    wait(-1, flags)
}

/// Waits for one tracee or child. `None` only with `WNOHANG`, when nothing is there.
pub(super) fn wait_for(tid: u32, flags: c_int) -> Result<Option<(u32, RawStatus)>, Errno> {
    wait(tid_as_pid(tid), flags)
}

fn wait(which: libc::pid_t, flags: c_int) -> Result<Option<(u32, RawStatus)>, Errno> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the status.
    match unsafe { libc::waitpid(which, &raw mut status, flags | libc::__WALL) } {
        -1 => Err(Errno::last()),
        0 => Ok(None),
        tid => Ok(Some((tid.cast_unsigned(), RawStatus(status)))),
    }
}

/// Looks whether a tracee has stopped or ended, and leaves that to be told again: so that, should we die before we let go
/// of it, the kernel still knows the signal that it was to receive (kernel/exit.c, `wait_task_stopped`). `None` when it
/// has done neither.
pub(super) fn look_at(tid: u32) -> Result<Option<RawStatus>, Errno> {
    // SAFETY: all-zero bytes are a valid siginfo_t.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let flags = libc::WSTOPPED | libc::WEXITED | libc::WNOHANG | libc::WNOWAIT | libc::__WALL;
    // SAFETY: `info` is a valid place for what is told.
    let result = unsafe { libc::waitid(libc::P_PID, tid, &raw mut info, flags) };
    Errno::result(result)?;
    // SAFETY: waitid fills these fields, or leaves them zero when there is nothing to tell.
    let (who, status) = unsafe { (info.si_pid(), info.si_status()) };
    if who == 0 {
        return Ok(None);
    }
    Ok(Some(RawStatus(match info.si_code {
        libc::CLD_EXITED => (status & 0xff) << 8,
        libc::CLD_KILLED => status & 0x7f,
        libc::CLD_DUMPED => (status & 0x7f) | 0x80,
        // As waitpid lays out a stop; with a ptrace event above the signal.
        _ => (status << 8) | 0x7f,
    })))
}

/// Makes a ptrace request whose address and data are plain numbers.
fn request(request: libc::c_uint, tid: u32, data: usize) -> Result<(), Errno> {
    // SAFETY: the requests made through this function take numbers, not pointers to our memory.
    let result = unsafe {
        libc::ptrace(
            request,
            tid_as_pid(tid),
            null_mut::<c_void>(),
            std::ptr::without_provenance_mut::<c_void>(data),
        )
    };
    signed(result).map(drop)
}

fn signal_number(signal: c_int) -> usize {
    usize::try_from(signal).unwrap_or(0)
}

/// Begins to trace a thread without stopping it.
pub(super) fn seize(tid: u32, options: c_int) -> Result<(), Errno> {
    request(
        libc::PTRACE_SEIZE,
        tid,
        usize::try_from(options).unwrap_or(0),
    )
}

/// Asks a seized tracee to stop; it reports `PTRACE_EVENT_STOP`, or whatever stops it first.
pub(super) fn interrupt(tid: u32) -> Result<(), Errno> {
    request(libc::PTRACE_INTERRUPT, tid, 0)
}

/// Leaves a tracee in group-stop as it is, and waits for what ends it.
pub(super) fn listen(tid: u32) -> Result<(), Errno> {
    request(libc::PTRACE_LISTEN, tid, 0)
}

/// Resumes until the next signal or event, with `signal` delivered (0 for none).
pub(super) fn resume(tid: u32, signal: c_int) -> Result<(), Errno> {
    request(libc::PTRACE_CONT, tid, signal_number(signal))
}

/// Resumes until the next entry to or exit from a system call, with `signal` delivered (0 for none).
pub(super) fn resume_to_syscall(tid: u32, signal: c_int) -> Result<(), Errno> {
    request(libc::PTRACE_SYSCALL, tid, signal_number(signal))
}

/// Lets go of a stopped tracee, with `signal` delivered (0 for none).
pub(super) fn detach(tid: u32, signal: c_int) -> Result<(), Errno> {
    request(libc::PTRACE_DETACH, tid, signal_number(signal))
}

/// The number that goes with a ptrace event: the new thread, the former thread, the exit status.
pub(super) fn event_message(tid: u32) -> Result<u64, Errno> {
    let mut message: libc::c_ulong = 0;
    // SAFETY: the request stores one unsigned long at its data pointer.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETEVENTMSG,
            tid_as_pid(tid),
            null_mut::<c_void>(),
            &raw mut message,
        )
    };
    signed(result).map(|_| message)
}

/// `struct ptrace_syscall_info` of linux/ptrace.h as words: its union needs no C union then, as every member of it
/// begins at word 3 and is made of 64-bit words.
const SYSCALL_INFO_WORDS: usize = 11;
const PTRACE_GET_SYSCALL_INFO: libc::c_uint = 0x420e;
const OP_ENTRY: u8 = 1;
const OP_EXIT: u8 = 2;
const OP_SECCOMP: u8 = 3;

/// Which system call stop this is, by the kernel's own word.
pub(super) fn syscall_info(tid: u32) -> Result<SyscallInfo, Errno> {
    let mut words = [0_u64; SYSCALL_INFO_WORDS];
    // SAFETY: the kernel writes at most the number of bytes given as the address argument.
    let result = unsafe {
        libc::ptrace(
            PTRACE_GET_SYSCALL_INFO,
            tid_as_pid(tid),
            std::ptr::without_provenance_mut::<c_void>(size_of_val(&words)),
            words.as_mut_ptr(),
        )
    };
    signed(result)?;
    Ok(parse_syscall_info(&words))
}

fn parse_syscall_info(words: &[u64; SYSCALL_INFO_WORDS]) -> SyscallInfo {
    let [head, _instruction_pointer, _stack_pointer, first, rest @ ..] = words;
    // u8 op, 3 bytes of padding, u32 arch.
    let head = head.to_ne_bytes();
    let architecture = u32::from_ne_bytes([head[4], head[5], head[6], head[7]]);
    match head[0] {
        OP_ENTRY | OP_SECCOMP => SyscallInfo::Entry {
            architecture,
            number: *first,
            arguments: [rest[0], rest[1], rest[2], rest[3], rest[4], rest[5]],
        },
        OP_EXIT => SyscallInfo::Exit {
            architecture,
            value: first.cast_signed(),
            is_error: rest[0].to_ne_bytes()[0] != 0,
        },
        _ => SyscallInfo::None,
    }
}

/// The registers from which a stack is unwound, by their numbers in unwind information.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct StackRegisters {
    /// Where the thread is.
    pub(super) instruction_pointer: u64,
    /// All general registers; where a number is the return address's alone, that is zero.
    pub(super) by_number: [u64; StackRegisters::COUNT],
}

/// System V ABI, AMD64 supplement, figure 3.36.
#[cfg(target_arch = "x86_64")]
impl StackRegisters {
    /// How many there are; the last number is the return address's.
    pub(super) const COUNT: usize = 17;
    /// `rsp`.
    pub(super) const STACK_POINTER: usize = 7;
    /// `rbp`.
    pub(super) const FRAME_POINTER: usize = 6;
}

/// DWARF for the Arm 64-bit architecture (AADWARF64), section 4.1.
#[cfg(target_arch = "aarch64")]
impl StackRegisters {
    /// How many there are.
    pub(super) const COUNT: usize = 32;
    /// `sp`.
    pub(super) const STACK_POINTER: usize = 31;
    /// `x29`.
    pub(super) const FRAME_POINTER: usize = 29;
}

impl StackRegisters {
    /// The top of the stack.
    pub(super) fn stack_pointer(&self) -> u64 {
        self.by_number[Self::STACK_POINTER]
    }

    /// The frame pointer, where the code uses one.
    pub(super) fn frame_pointer(&self) -> u64 {
        self.by_number[Self::FRAME_POINTER]
    }
}

/// The registers of a stopped tracee; `None` for a 32-bit one, and for one that was killed.
#[cfg(target_arch = "x86_64")]
pub(super) fn stack_registers(tid: u32) -> Option<StackRegisters> {
    // The segment of 64-bit code (__USER_CS, arch/x86/include/asm/segment.h).
    const USER_CS: u64 = 0x33;
    let registers = nix::sys::ptrace::getregs(nix::unistd::Pid::from_raw(tid_as_pid(tid))).ok()?;
    (registers.cs == USER_CS).then_some(StackRegisters {
        instruction_pointer: registers.rip,
        by_number: [
            registers.rax,
            registers.rdx,
            registers.rcx,
            registers.rbx,
            registers.rsi,
            registers.rdi,
            registers.rbp,
            registers.rsp,
            registers.r8,
            registers.r9,
            registers.r10,
            registers.r11,
            registers.r12,
            registers.r13,
            registers.r14,
            registers.r15,
            0,
        ],
    })
}

/// The registers of a stopped tracee; `None` for a 32-bit one, and for one that was killed.
#[cfg(target_arch = "aarch64")]
pub(super) fn stack_registers(tid: u32) -> Option<StackRegisters> {
    // PSR_MODE32_BIT, arch/arm64/include/uapi/asm/ptrace.h.
    const MODE_32_BIT: u64 = 0x10;
    let registers = nix::sys::ptrace::getregs(nix::unistd::Pid::from_raw(tid_as_pid(tid))).ok()?;
    let mut by_number = [0; StackRegisters::COUNT];
    by_number[..31].copy_from_slice(&registers.regs);
    by_number[StackRegisters::STACK_POINTER] = registers.sp;
    (registers.pstate & MODE_32_BIT == 0).then_some(StackRegisters {
        instruction_pointer: registers.pc,
        by_number,
    })
}

/// What pthread_self(3) returns in a stopped tracee, with any C library of Linux: where the thread's own variables are
/// (arch_prctl(2), `ARCH_GET_FS`).
#[cfg(target_arch = "x86_64")]
pub(super) fn thread_pointer(tid: u32) -> Option<u64> {
    let pid = nix::unistd::Pid::from_raw(tid_as_pid(tid));
    nix::sys::ptrace::getregs(pid)
        .ok()
        .map(|registers| registers.fs_base)
}

/// On this architecture that differs between C libraries.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn thread_pointer(_tid: u32) -> Option<u64> {
    None
}

/// Relative to what a stopped tracee has its thread's own variables (`__thread`, TLS): `fs_base`. `None` for one that was
/// killed.
#[cfg(target_arch = "x86_64")]
pub(super) fn thread_register(tid: u32) -> Option<u64> {
    thread_pointer(tid)
}

/// Relative to what a stopped tracee has its thread's own variables (`__thread`, TLS): `tpidr_el0`. `None` for one that
/// was killed.
#[cfg(target_arch = "aarch64")]
pub(super) fn thread_register(tid: u32) -> Option<u64> {
    // linux/elf.h: a set of one word, two where there is SME.
    const NT_ARM_TLS: usize = 0x401;
    let mut word = 0_u64;
    let mut place = libc::iovec {
        iov_base: (&raw mut word).cast(),
        iov_len: size_of::<u64>(),
    };
    // SAFETY: the kernel writes at most `iov_len` bytes to `iov_base`, and how many these were into `place`.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_GETREGSET,
            tid_as_pid(tid),
            std::ptr::without_provenance_mut::<c_void>(NT_ARM_TLS),
            &raw mut place,
        )
    };
    (signed(result).is_ok() && place.iov_len == size_of::<u64>()).then_some(word)
}

/// Number and arguments of the call that a tracee at its exit stop has made, where the registers still hold them.
///
/// Needed only when breaktrace attached in the middle of a call and so missed its entry.
#[cfg(target_arch = "x86_64")]
pub(super) fn call_in_registers(tid: u32) -> Option<(u64, [u64; 6])> {
    // The kernel preserves all argument registers over a call, and keeps the number in orig_rax
    // (arch/x86/entry/entry_64.S).
    let registers = nix::sys::ptrace::getregs(nix::unistd::Pid::from_raw(tid_as_pid(tid))).ok()?;
    Some((
        registers.orig_rax,
        [
            registers.rdi,
            registers.rsi,
            registers.rdx,
            registers.r10,
            registers.r8,
            registers.r9,
        ],
    ))
}

/// On this architecture the result overwrites the first argument: a call whose entry was missed stays unknown.
#[cfg(not(target_arch = "x86_64"))]
pub(super) fn call_in_registers(_tid: u32) -> Option<(u64, [u64; 6])> {
    None
}

/// Changes the first argument of the call that a tracee is about to begin.
#[cfg(target_arch = "x86_64")]
pub(super) fn set_first_argument(tid: u32, is_32_bit: bool, value: u64) -> Result<(), Errno> {
    let pid = nix::unistd::Pid::from_raw(tid_as_pid(tid));
    let mut registers = nix::sys::ptrace::getregs(pid)?;
    if is_32_bit {
        registers.rbx = value;
    } else {
        registers.rdi = value;
    }
    nix::sys::ptrace::setregs(pid, registers)
}

/// Changes the first argument of the call that a tracee is about to begin.
#[cfg(target_arch = "aarch64")]
pub(super) fn set_first_argument(tid: u32, _is_32_bit: bool, value: u64) -> Result<(), Errno> {
    let pid = nix::unistd::Pid::from_raw(tid_as_pid(tid));
    let mut registers = nix::sys::ptrace::getregs(pid)?;
    registers.regs[0] = value;
    nix::sys::ptrace::setregs(pid, registers)
}

/// Whether two threads share their address space (kcmp(2), `KCMP_VM`); `None` where the kernel cannot tell.
pub(super) fn same_address_space(a: u32, b: u32) -> Option<bool> {
    const KCMP_VM: c_int = 1;
    // SAFETY: kcmp takes numbers only.
    match unsafe { libc::syscall(libc::SYS_kcmp, tid_as_pid(a), tid_as_pid(b), KCMP_VM, 0, 0) } {
        0 => Some(true),
        -1 => None,
        _ => Some(false),
    }
}

/// Reads memory of a tracee; fewer bytes than asked for where it ends.
pub(super) fn read_memory(tid: u32, address: u64, buffer: &mut [u8]) -> Result<usize, Errno> {
    let remote = nix::sys::uio::RemoteIoVec {
        base: usize::try_from(address).map_err(|_| Errno::EFAULT)?,
        len: buffer.len(),
    };
    nix::sys::uio::process_vm_readv(
        nix::unistd::Pid::from_raw(tid_as_pid(tid)),
        &mut [std::io::IoSliceMut::new(buffer)],
        &[remote],
    )
}

/// Reads several pieces of memory of a tracee, one after the other, into `buffer`; fewer bytes than they have where one
/// of them cannot be read.
pub(super) fn read_memory_pieces(
    tid: u32,
    pieces: &[(u64, usize)],
    buffer: &mut [u8],
) -> Result<usize, Errno> {
    // UIO_MAXIOV, linux/uio.h.
    const AT_ONCE: usize = 1024;
    let pid = nix::unistd::Pid::from_raw(tid_as_pid(tid));
    let mut done = 0;
    for pieces in pieces.chunks(AT_ONCE) {
        let remote = pieces
            .iter()
            .map(|(address, len)| {
                let base = usize::try_from(*address).map_err(|_| Errno::EFAULT)?;
                Ok(nix::sys::uio::RemoteIoVec { base, len: *len })
            })
            .collect::<Result<Vec<_>, Errno>>()?;
        let wanted: usize = pieces.iter().map(|(_, length)| length).sum();
        let Some(room) = buffer.get_mut(done..done + wanted) else {
            return Err(Errno::EINVAL);
        };
        let mut local = [std::io::IoSliceMut::new(room)];
        let read = match nix::sys::uio::process_vm_readv(pid, &mut local, &remote) {
            // The first of these pieces; others have been read.
            Err(Errno::EFAULT) if done > 0 => 0,
            other => other?,
        };
        done += read;
        if read < wanted {
            break;
        }
    }
    Ok(done)
}

/// Reads one 64-bit word of a tracee.
pub(super) fn read_word(tid: u32, address: u64) -> Option<u64> {
    let mut bytes = [0; 8];
    (read_memory(tid, address, &mut bytes) == Ok(8)).then(|| u64::from_ne_bytes(bytes))
}

/// Writes one 64-bit word of a tracee, also where it may only read.
pub(super) fn write_word(tid: u32, address: u64, word: u64) -> Result<(), Errno> {
    let address = usize::try_from(address).map_err(|_| Errno::EFAULT)?;
    let data = usize::try_from(word).map_err(|_| Errno::EFAULT)?;
    // SAFETY: the request takes an address of the tracee and a plain number.
    let result = unsafe {
        libc::ptrace(
            libc::PTRACE_POKEDATA,
            tid_as_pid(tid),
            std::ptr::without_provenance_mut::<c_void>(address),
            std::ptr::without_provenance_mut::<c_void>(data),
        )
    };
    signed(result).map(drop)
}

/// Sends a signal to a process.
pub(super) fn kill(pid: u32, signal: c_int) -> Result<(), Errno> {
    // SAFETY: kill takes numbers only.
    Errno::result(unsafe { libc::kill(tid_as_pid(pid), signal) }).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn syscall_info_is_read_as_the_kernel_lays_it_out() {
        let mut words = [0; SYSCALL_INFO_WORDS];
        words[0] = u64::from(OP_SECCOMP) | (0xc000_003e_u64 << 32);
        words[3] = 12;
        words[4] = 0x5000;
        assert_eq!(
            parse_syscall_info(&words),
            SyscallInfo::Entry {
                architecture: 0xc000_003e,
                number: 12,
                arguments: [0x5000, 0, 0, 0, 0, 0],
            }
        );
        words[0] = u64::from(OP_EXIT) | (0x4000_0003_u64 << 32);
        words[3] = (-12_i64).cast_unsigned();
        words[4] = 1;
        assert_eq!(
            parse_syscall_info(&words),
            SyscallInfo::Exit {
                architecture: 0x4000_0003,
                value: -12,
                is_error: true,
            }
        );
        words[0] = 0;
        assert_eq!(parse_syscall_info(&words), SyscallInfo::None);
    }
}
