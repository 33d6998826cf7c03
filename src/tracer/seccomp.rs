//! The seccomp filter: of all system calls, only the memory calls stop.
//!
//! The program installs it on itself between fork and exec, and every descendant inherits it for good: it cannot be
//! taken off. `SECCOMP_RET_TRACE` without a tracer makes the call fail with `ENOSYS` (seccomp(2)), which is why a
//! filtered program must not outlive breaktrace, and why `attach` never uses a filter.
//!
//! Linux keeps, per filter, a bitmap of the calls that it always allows (5.11, kernel/seccomp.c
//! `seccomp_cache_check_allow`): these do not even run it.

use libc::sock_filter;
use nix::errno::Errno;

use super::abi;
use super::abi::Abi;
use super::abi::Call;

/// `offsetof(struct seccomp_data, …)`, linux/seccomp.h; arguments are little-endian here, low half first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const fn argument_low(index: u32) -> u32 {
    16 + 8 * index
}
const fn argument_high(index: u32) -> u32 {
    argument_low(index) + 4
}
const _: () = assert!(
    cfg!(target_endian = "little"),
    "argument halves are little-endian"
);

const LOAD: u16 = code(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS);
const AND: u16 = code(libc::BPF_ALU | libc::BPF_AND | libc::BPF_K);
const JUMP_IF_EQUAL: u16 = code(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K);
const JUMP_IF_ANY: u16 = code(libc::BPF_JMP | libc::BPF_JSET | libc::BPF_K);
const RETURN: u16 = code(libc::BPF_RET | libc::BPF_K);

#[expect(
    clippy::cast_possible_truncation,
    reason = "all BPF_* parts of a code lie in its low byte (linux/bpf_common.h)"
)]
const fn code(parts: u32) -> u16 {
    parts as u16
}

/// A finished filter, ready to be installed by a child that must not allocate any more.
#[derive(Debug)]
pub(super) struct Filter {
    program: Vec<sock_filter>,
}

/// How a filter came to be installed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Installed {
    /// With the rights we have.
    Plainly,
    /// Only by giving up gains of privilege (`no_new_privs`): set-uid programs run without their extra rights.
    WithNoNewPrivs,
}

impl Filter {
    /// Builds the filter for every ABI of this machine.
    pub(super) fn new() -> Self {
        let mut program = Vec::new();
        for abi in abi::ABIS {
            let section = section(abi);
            program.push(statement(LOAD, ARCHITECTURE));
            // Sections are shorter than the 255 instructions that a conditional jump can pass over; a test says so.
            let length = u8::try_from(section.len()).unwrap_or(u8::MAX);
            program.push(jump(JUMP_IF_EQUAL, abi.architecture, 0, length));
            program.extend(section);
        }
        program.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
        Self { program }
    }

    /// Installs the filter on the calling thread. Makes system calls only: safe between fork and exec.
    pub(super) fn install(&self) -> Result<Installed, Errno> {
        match self.set() {
            Ok(()) => Ok(Installed::Plainly),
            // Neither CAP_SYS_ADMIN nor no_new_privs (seccomp(2)).
            Err(Errno::EACCES) => {
                nix::sys::prctl::set_no_new_privs()?;
                self.set().map(|()| Installed::WithNoNewPrivs)
            }
            Err(error) => Err(error),
        }
    }

    fn set(&self) -> Result<(), Errno> {
        let program = libc::sock_fprog {
            len: u16::try_from(self.program.len()).map_err(|_| Errno::EINVAL)?,
            filter: self.program.as_ptr().cast_mut(),
        };
        // SAFETY: the kernel reads the instructions behind `program`, which live as long as `self`.
        let result = unsafe {
            libc::syscall(
                libc::SYS_seccomp,
                libc::SECCOMP_SET_MODE_FILTER,
                0,
                &raw const program,
            )
        };
        Errno::result(result).map(drop)
    }
}

/// The calls of one ABI; ends with a return.
fn section(abi: &Abi) -> Vec<sock_filter> {
    const CLONE_UNTRACED: u32 = libc::CLONE_UNTRACED.cast_unsigned();
    let mut code = vec![statement(LOAD, NUMBER)];
    if abi.variant_bits != 0 {
        code.push(statement(AND, !abi.variant_bits));
    }
    for &(number, call) in abi.calls {
        match call {
            // A child that asks not to be traced would be left alone with the filter, and each of its memory calls
            // would fail.
            Call::Clone => code.extend([
                jump(JUMP_IF_EQUAL, number, 0, 4),
                statement(LOAD, argument_low(0)),
                jump(JUMP_IF_ANY, CLONE_UNTRACED, 0, 1),
                statement(RETURN, libc::SECCOMP_RET_TRACE),
                statement(RETURN, libc::SECCOMP_RET_ALLOW),
            ]),
            Call::Mprotect => code.extend([
                jump(JUMP_IF_EQUAL, number, 0, 6),
                statement(LOAD, argument_high(2)),
                jump(JUMP_IF_EQUAL, 0, 0, 2),
                statement(LOAD, argument_low(2)),
                jump(JUMP_IF_EQUAL, libc::PROT_READ.cast_unsigned(), 1, 0),
                statement(RETURN, libc::SECCOMP_RET_TRACE),
                statement(RETURN, libc::SECCOMP_RET_ALLOW),
            ]),
            _ => code.extend([
                jump(JUMP_IF_EQUAL, number, 0, 1),
                statement(RETURN, libc::SECCOMP_RET_TRACE),
            ]),
        }
    }
    code.push(statement(RETURN, libc::SECCOMP_RET_ALLOW));
    code
}

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

fn jump(code: u16, k: u32, if_true: u8, if_false: u8) -> sock_filter {
    sock_filter {
        code,
        jt: if_true,
        jf: if_false,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel would.
    fn verdict(architecture: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let filter = Filter::new();
        let mut data = [0_u8; 64];
        data[0..4].copy_from_slice(&number.to_le_bytes());
        data[4..8].copy_from_slice(&architecture.to_le_bytes());
        for (index, argument) in arguments.iter().enumerate() {
            data[16 + 8 * index..24 + 8 * index].copy_from_slice(&argument.to_le_bytes());
        }
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let instruction = filter.program[at];
            at += 1;
            let branch = |taken| {
                usize::from(if taken {
                    instruction.jt
                } else {
                    instruction.jf
                })
            };
            match instruction.code {
                LOAD => {
                    let offset = usize::try_from(instruction.k).unwrap();
                    accumulator = u32::from_le_bytes(data[offset..offset + 4].try_into().unwrap());
                }
                AND => accumulator &= instruction.k,
                JUMP_IF_EQUAL => at += branch(accumulator == instruction.k),
                JUMP_IF_ANY => at += branch(accumulator & instruction.k != 0),
                RETURN => return instruction.k,
                code => panic!("unknown instruction {code:#x}"),
            }
        }
    }

    #[test]
    fn each_traced_call_of_each_abi_stops_and_nothing_else() {
        for abi in abi::ABIS {
            for number in 0..600 {
                let call = abi
                    .calls
                    .iter()
                    .find(|(n, _)| *n == number)
                    .map(|(_, call)| *call);
                let expected = match call {
                    None | Some(Call::Clone) => libc::SECCOMP_RET_ALLOW,
                    Some(_) => libc::SECCOMP_RET_TRACE,
                };
                assert_eq!(
                    verdict(abi.architecture, number, [0; 6]),
                    expected,
                    "{} {number}",
                    abi.name
                );
            }
            assert_eq!(
                verdict(abi.architecture, u32::MAX, [0; 6]),
                libc::SECCOMP_RET_ALLOW
            );
        }
        assert_eq!(verdict(0x1234, 12, [0; 6]), libc::SECCOMP_RET_ALLOW);
    }

    #[test]
    fn mprotect_to_read_only_passes_and_every_other_stops() {
        let architecture = abi::ABIS[0].architecture;
        let number = u32::try_from(libc::SYS_mprotect).unwrap();
        let protect = |protection| verdict(architecture, number, [0, 0, protection, 0, 0, 0]);
        assert_eq!(protect(1), libc::SECCOMP_RET_ALLOW);
        for protection in [0, 2, 3, 5, 7, 1 | 1 << 32, u64::MAX] {
            assert_eq!(
                protect(protection),
                libc::SECCOMP_RET_TRACE,
                "{protection:#x}"
            );
            assert!(abi::is_traced_protection(protection));
        }
    }

    #[test]
    fn clone_stops_only_when_it_asks_to_be_untraced() {
        let architecture = abi::ABIS[0].architecture;
        let number = u32::try_from(libc::SYS_clone).unwrap();
        assert_eq!(
            verdict(architecture, number, [0x0080_0000 | 17, 0, 0, 0, 0, 0]),
            libc::SECCOMP_RET_TRACE
        );
        assert_eq!(
            verdict(architecture, number, [0x003d_0f00, 0, 0, 0, 0, 0]),
            libc::SECCOMP_RET_ALLOW
        );
    }

    #[test]
    fn sections_fit_a_jump() {
        for abi in abi::ABIS {
            assert!(section(abi).len() <= usize::from(u8::MAX), "{}", abi.name);
        }
    }
}
