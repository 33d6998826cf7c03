//! The real kernel: system calls, signed so that a tracer knows the allocator's from the program's.

use core::arch::asm;
use core::sync::atomic::AtomicU32;

use super::libc;
use crate::allocator::kernel::Kernel;
use crate::stats_page::Cause;
use crate::stats_page::DETAIL;
use crate::stats_page::SIGNATURE;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(crate) const MMAP: usize = 9;
    pub(crate) const MUNMAP: usize = 11;
    pub(crate) const BRK: usize = 12;
    pub(crate) const RT_SIGPROCMASK: usize = 14;
    pub(crate) const MREMAP: usize = 25;
    pub(crate) const MADVISE: usize = 28;
    pub(crate) const GETTID: usize = 186;
    pub(crate) const SCHED_GETAFFINITY: usize = 204;
    pub(crate) const FUTEX: usize = 202;
    pub(crate) const GETRANDOM: usize = 318;
    pub(crate) const MEMFD_CREATE: usize = 319;
    pub(crate) const FTRUNCATE: usize = 77;
    pub(crate) const CLOSE: usize = 3;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(crate) const MMAP: usize = 222;
    pub(crate) const MUNMAP: usize = 215;
    pub(crate) const BRK: usize = 214;
    pub(crate) const RT_SIGPROCMASK: usize = 135;
    pub(crate) const MREMAP: usize = 216;
    pub(crate) const MADVISE: usize = 233;
    pub(crate) const GETTID: usize = 178;
    pub(crate) const SCHED_GETAFFINITY: usize = 123;
    pub(crate) const FUTEX: usize = 98;
    pub(crate) const GETRANDOM: usize = 278;
    pub(crate) const MEMFD_CREATE: usize = 279;
    pub(crate) const FTRUNCATE: usize = 46;
    pub(crate) const CLOSE: usize = 57;
}

/// Largest error number (linux/err.h, `MAX_ERRNO`).
const MOST_ERRORS: usize = 4095;

/// Makes a system call; `None` on any error. `errno` is not touched.
fn call(number: usize, arguments: [usize; 6]) -> Option<usize> {
    let result = raw_call(number, arguments);
    (result <= usize::MAX - MOST_ERRORS).then_some(result)
}

#[cfg(target_arch = "x86_64")]
fn raw_call(number: usize, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    let result;
    // SAFETY: the calls made here change no memory but what they are asked to, which belongs to the allocator.
    unsafe {
        asm!(
            "syscall",
            // The signature must not stay behind: the program's next call may have fewer arguments.
            "xor r9d, r9d",
            inlateout("rax") number => result,
            in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d, in("r8") e, inlateout("r9") f => _,
            lateout("rcx") _, lateout("r11") _,
            options(nostack),
        );
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn raw_call(number: usize, [a, b, c, d, e, f]: [usize; 6]) -> usize {
    let result;
    // SAFETY: the calls made here change no memory but what they are asked to, which belongs to the allocator.
    unsafe {
        asm!(
            "svc 0",
            // As above.
            "mov x5, xzr",
            inlateout("x0") a => result,
            in("x1") b, in("x2") c, in("x3") d, in("x4") e, inlateout("x5") f => _, in("x8") number,
            options(nostack),
        );
    }
    result
}

const READ_WRITE: usize = 3;
const PRIVATE: usize = 2;
const ANONYMOUS: usize = 0x20;
const NO_FILE: usize = usize::MAX;
const MAY_MOVE: usize = 1;
const DONTNEED: usize = 4;
const FUTEX_WAIT_PRIVATE: usize = 128;
const FUTEX_WAKE_PRIVATE: usize = 129;
const CLOSE_ON_EXEC: usize = 1;
const DONT_BLOCK: usize = 1;

const SIGN: usize = SIGNATURE as usize;

/// System calls.
pub(crate) struct Linux;

impl Linux {
    /// A page of zeroes, backed by a memfd with this name where the kernel allows it.
    pub(crate) fn named_page(&self, name: &core::ffi::CStr, length: usize) -> Option<usize> {
        let file = call(
            number::MEMFD_CREATE,
            [name.as_ptr().addr(), CLOSE_ON_EXEC, 0, 0, 0, 0],
        );
        let page = file.and_then(|file| {
            call(number::FTRUNCATE, [file, length, 0, 0, 0, 0])?;
            // Private, so that a forked child continues on its own copy, like the rest of its heap.
            call(number::MMAP, [0, length, READ_WRITE, PRIVATE, file, 0])
        });
        if let Some(file) = file {
            call(number::CLOSE, [file, 0, 0, 0, 0, 0]);
        }
        page.or_else(|| {
            call(number::MMAP, [0, length, READ_WRITE, PRIVATE | ANONYMOUS, NO_FILE, 0])
        })
    }

    /// How many processors the program may run on, at least 1 and at most 1024.
    pub(crate) fn processors(&self) -> usize {
        let mut mask = [0_u64; 16];
        let at = mask.as_mut_ptr().expose_provenance();
        call(
            number::SCHED_GETAFFINITY,
            [0, size_of_val(&mask), at, 0, 0, 0],
        );
        let count: u32 = mask.iter().map(|word| word.count_ones()).sum();
        count.max(1) as usize
    }

    /// An unpredictable number; the address of a variable where the kernel has none yet.
    pub(crate) fn secret(&self) -> u64 {
        let mut secret = 0_u64;
        let at = (&raw mut secret).expose_provenance();
        match call(number::GETRANDOM, [at, 8, DONT_BLOCK, 0, 0, 0]) {
            Some(8) => secret,
            _ => (at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15),
        }
    }
}

// SAFETY: the kernel keeps what the trait promises.
unsafe impl Kernel for Linux {
    fn page_size(&self) -> usize {
        libc::page_size()
    }

    fn current_break(&self) -> usize {
        // What the C library remembers saves a call; a program that makes raw brk calls past it is beyond help.
        match libc::remembered_break() {
            0 => raw_call(number::BRK, [0, 0, 0, 0, 0, SIGN]),
            known => known,
        }
    }

    fn move_break(&self, to: usize, cause: Cause, request: usize) -> usize {
        let got = raw_call(number::BRK, [to, 0, 0, cause as usize, request, SIGN]);
        libc::remember_break(got);
        got
    }

    fn map(&self, length: usize) -> Option<usize> {
        call(
            number::MMAP,
            [0, length, READ_WRITE, PRIVATE | ANONYMOUS, NO_FILE, SIGN],
        )
    }

    fn unmap(&self, address: usize, length: usize, cause: Cause) -> bool {
        call(number::MUNMAP, [address, length, 0, cause as usize, 0, SIGN]).is_some()
    }

    fn remap(&self, address: usize, old: usize, new: usize, may_move: bool) -> Option<usize> {
        let flags = if may_move { MAY_MOVE } else { 0 };
        call(number::MREMAP, [address, old, new, flags, 0, SIGN])
    }

    fn give_back(&self, address: usize, length: usize, cause: Cause) -> bool {
        call(
            number::MADVISE,
            [address, length, DONTNEED, cause as usize, 0, SIGN],
        )
        .is_some()
    }

    fn announce(&self, page: usize, cause: Cause, detail: u64, value: u64) {
        let cause = cause as u64 | detail << DETAIL;
        call(
            number::MADVISE,
            [page, 0, DONTNEED, cause as usize, value as usize, SIGN],
        );
    }

    fn is_readable(&self, address: usize) -> bool {
        // A call that every sandbox allows: it reads a signal set, and then refuses an action that does not exist
        // (kernel/signal.c: EFAULT comes before EINVAL).
        const NO_ACTION: usize = 0x7fff_ffff;
        const BAD_ADDRESS: usize = 14_usize.wrapping_neg();
        raw_call(number::RT_SIGPROCMASK, [NO_ACTION, address, 0, 8, 0, 0]) != BAD_ADDRESS
    }

    fn thread_id(&self) -> u32 {
        raw_call(number::GETTID, [0; 6]) as u32
    }

    fn wait(&self, word: &AtomicU32, value: u32) {
        let at = core::ptr::from_ref(word).addr();
        call(number::FUTEX, [at, FUTEX_WAIT_PRIVATE, value as usize, 0, 0, 0]);
    }

    fn wake(&self, word: &AtomicU32) {
        let at = core::ptr::from_ref(word).addr();
        call(number::FUTEX, [at, FUTEX_WAKE_PRIVATE, 1, 0, 0, 0]);
    }

    fn abort(&self) -> ! {
        libc::abort()
    }
}
