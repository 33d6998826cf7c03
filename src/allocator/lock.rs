//! A lock of one word, as in Drepper's "Futexes Are Tricky", mutex 2.

use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Acquire;
use core::sync::atomic::Ordering::Relaxed;
use core::sync::atomic::Ordering::Release;

use super::kernel::Kernel;

const FREE: u32 = 0;
const HELD: u32 = 1;
const AWAITED: u32 = 2;

/// Turns before a thread goes to sleep: a holder needs some hundred nanoseconds as a rule.
const SPINS: u32 = 100;

/// Free when all bytes are zero.
#[derive(Debug)]
pub(crate) struct Lock(AtomicU32);

impl Lock {
    pub(crate) const fn new() -> Self {
        Self(AtomicU32::new(FREE))
    }

    /// Takes the lock if it is free.
    #[inline(always)]
    pub(crate) fn try_take(&self) -> bool {
        self.0
            .compare_exchange(FREE, HELD, Acquire, Relaxed)
            .is_ok()
    }

    /// Takes the lock; whether it had to be waited for.
    #[inline(always)]
    pub(crate) fn take(&self, kernel: &impl Kernel) -> bool {
        if self.try_take() {
            return false;
        }
        self.wait(kernel);
        true
    }

    #[cold]
    fn wait(&self, kernel: &impl Kernel) {
        for _ in 0..SPINS {
            if self.0.load(Relaxed) == FREE && self.try_take() {
                return;
            }
            core::hint::spin_loop();
        }
        while self.0.swap(AWAITED, Acquire) != FREE {
            kernel.wait(&self.0, AWAITED);
        }
    }

    /// Gives the lock back. Whoever calls holds it.
    #[inline(always)]
    pub(crate) fn give(&self, kernel: &impl Kernel) {
        if self.0.swap(FREE, Release) == AWAITED {
            kernel.wake(&self.0);
        }
    }
}
