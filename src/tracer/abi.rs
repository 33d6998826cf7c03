//! Which system calls are traced, by ABI: the one place where call numbers stand.
//!
//! A process has no ABI, a call has: 64-bit code may call `int 0x80`, and a 64-bit program may exec a 32-bit one.
//! So calls are looked up by the `AUDIT_ARCH_*` that the kernel names for each (linux/audit.h).

/// A call that is traced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(
    not(target_arch = "x86_64"),
    expect(dead_code, reason = "other architectures lack the old 32-bit doors")
)]
pub(super) enum Call {
    /// brk(2).
    Brk,
    /// mmap(2) with the offset in bytes.
    Mmap,
    /// mmap2(2): the offset in units of 4096 bytes.
    MmapPages,
    /// The old 32-bit mmap, which takes a pointer to its arguments.
    MmapIndirect,
    /// munmap(2).
    Munmap,
    /// mremap(2).
    Mremap,
    /// mprotect(2), pkey_mprotect(2).
    Mprotect,
    /// madvise(2).
    Madvise,
    /// process_madvise(2).
    ProcessMadvise,
    /// shmat(2).
    Shmat,
    /// shmdt(2).
    Shmdt,
    /// ipc(2): the old 32-bit door to shmat and shmdt.
    Ipc,
    /// remap_file_pages(2).
    RemapFilePages,
    /// map_shadow_stack(2).
    MapShadowStack,
    /// clone(2): looked at only because of `CLONE_UNTRACED`.
    Clone,
    /// clone3(2): likewise.
    Clone3,
    /// execve(2), execveat(2): looked at only because the memory, with the allocator's figures, goes with it.
    Exec,
}

/// An ABI and its traced calls.
#[derive(Debug)]
pub(super) struct Abi {
    /// `AUDIT_ARCH_*`.
    pub(super) architecture: u32,
    /// For messages.
    pub(super) name: &'static str,
    /// Whether its pointers and longs have 32 bits.
    pub(super) is_32_bit: bool,
    /// Bits of a call number that select a variant of the same call.
    pub(super) variant_bits: u32,
    /// The traced calls by number.
    pub(super) calls: &'static [(u32, Call)],
}

/// x32 shares its architecture number with x86-64 and marks its call numbers (arch/x86/include/uapi/asm/unistd.h).
#[cfg(target_arch = "x86_64")]
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// ABIs that a program on this machine can use.
#[cfg(target_arch = "x86_64")]
pub(super) const ABIS: &[Abi] = &[
    Abi {
        architecture: 0xc000_003e,
        name: "x86_64",
        is_32_bit: false,
        variant_bits: X32_BIT,
        calls: &[
            (9, Call::Mmap),
            (10, Call::Mprotect),
            (11, Call::Munmap),
            (12, Call::Brk),
            (25, Call::Mremap),
            (28, Call::Madvise),
            (30, Call::Shmat),
            (56, Call::Clone),
            (59, Call::Exec),
            (67, Call::Shmdt),
            (216, Call::RemapFilePages),
            (322, Call::Exec),
            (329, Call::Mprotect),
            (435, Call::Clone3),
            (440, Call::ProcessMadvise),
            (453, Call::MapShadowStack),
        ],
    },
    Abi {
        architecture: 0x4000_0003,
        name: "i386",
        is_32_bit: true,
        variant_bits: 0,
        calls: &[
            (11, Call::Exec),
            (45, Call::Brk),
            (90, Call::MmapIndirect),
            (91, Call::Munmap),
            (117, Call::Ipc),
            (120, Call::Clone),
            (125, Call::Mprotect),
            (163, Call::Mremap),
            (192, Call::MmapPages),
            (219, Call::Madvise),
            (257, Call::RemapFilePages),
            (358, Call::Exec),
            (380, Call::Mprotect),
            (397, Call::Shmat),
            (398, Call::Shmdt),
            (435, Call::Clone3),
            (440, Call::ProcessMadvise),
        ],
    },
];

/// ABIs that a program on this machine can use.
#[cfg(target_arch = "aarch64")]
pub(super) const ABIS: &[Abi] = &[
    Abi {
        architecture: 0xc000_00b7,
        name: "aarch64",
        is_32_bit: false,
        variant_bits: 0,
        calls: &[
            (196, Call::Shmat),
            (197, Call::Shmdt),
            (214, Call::Brk),
            (215, Call::Munmap),
            (216, Call::Mremap),
            (220, Call::Clone),
            (221, Call::Exec),
            (222, Call::Mmap),
            (226, Call::Mprotect),
            (233, Call::Madvise),
            (234, Call::RemapFilePages),
            (281, Call::Exec),
            (288, Call::Mprotect),
            (435, Call::Clone3),
            (440, Call::ProcessMadvise),
            (453, Call::MapShadowStack),
        ],
    },
    Abi {
        architecture: 0x4000_0028,
        name: "arm",
        is_32_bit: true,
        variant_bits: 0,
        calls: &[
            (11, Call::Exec),
            (45, Call::Brk),
            (91, Call::Munmap),
            (120, Call::Clone),
            (125, Call::Mprotect),
            (163, Call::Mremap),
            (192, Call::MmapPages),
            (220, Call::Madvise),
            (253, Call::RemapFilePages),
            (305, Call::Shmat),
            (306, Call::Shmdt),
            (387, Call::Exec),
            (394, Call::Mprotect),
            (435, Call::Clone3),
            (440, Call::ProcessMadvise),
        ],
    },
];

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!(
    "breaktrace knows the system calls of x86-64 and aarch64; add those of this architecture to ABIS"
);

/// Looks a call up; `None` if it is not traced.
pub(super) fn find(architecture: u32, number: u64) -> Option<(&'static Abi, Call)> {
    let abi = ABIS.iter().find(|abi| abi.architecture == architecture)?;
    let number = u32::try_from(number).ok()? & !abi.variant_bits;
    let (_, call) = abi
        .calls
        .iter()
        .find(|(candidate, _)| *candidate == number)?;
    Some((abi, *call))
}

/// Whether an `mprotect` to this protection is traced: not when pages merely become readable (see
/// [`crate::event::EventKind::Mprotect`]).
pub(super) fn is_traced_protection(protection: u64) -> bool {
    protection != u64::from(libc::PROT_READ.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn a_call_is_looked_up_in_the_abi_that_made_it() {
        assert_eq!(find(0xc000_003e, 12).map(|found| found.1), Some(Call::Brk));
        assert_eq!(find(0x4000_0003, 45).map(|found| found.1), Some(Call::Brk));
        assert!(find(0xc000_003e, 45).is_none());
        assert!(find(0xdead_beef, 12).is_none());
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn x32_calls_are_the_same_calls_but_minus_one_is_none() {
        let x32 = u64::from(X32_BIT);
        assert_eq!(
            find(0xc000_003e, x32 | 9).map(|found| found.1),
            Some(Call::Mmap)
        );
        assert!(find(0xc000_003e, u64::from(u32::MAX)).is_none());
        assert!(find(0xc000_003e, u64::MAX).is_none());
    }

    #[test]
    fn numbers_are_those_of_the_c_library() {
        let native = &ABIS[0];
        for (number, call) in [
            (libc::SYS_brk, Call::Brk),
            (libc::SYS_mmap, Call::Mmap),
            (libc::SYS_munmap, Call::Munmap),
            (libc::SYS_mremap, Call::Mremap),
            (libc::SYS_mprotect, Call::Mprotect),
            (libc::SYS_pkey_mprotect, Call::Mprotect),
            (libc::SYS_madvise, Call::Madvise),
            (libc::SYS_process_madvise, Call::ProcessMadvise),
            (libc::SYS_shmat, Call::Shmat),
            (libc::SYS_shmdt, Call::Shmdt),
            (libc::SYS_remap_file_pages, Call::RemapFilePages),
            (libc::SYS_clone, Call::Clone),
            (libc::SYS_clone3, Call::Clone3),
            (libc::SYS_execve, Call::Exec),
            (libc::SYS_execveat, Call::Exec),
        ] {
            let number = u64::try_from(number).unwrap();
            assert_eq!(
                find(native.architecture, number).map(|found| found.1),
                Some(call)
            );
        }
    }
}
