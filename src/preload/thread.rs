//! Which cache is the calling thread's.
//!
//! Two words of thread-local storage, in the initial-exec model: a preloaded library is loaded before the first thread
//! begins, so its storage is at a fixed distance from the thread pointer, and reaching it calls nobody
//! (Drepper, "ELF Handling For Thread-Local Storage", 4.3).

use core::ffi::c_void;
use core::sync::atomic::AtomicU32;
use core::sync::atomic::Ordering::Relaxed;

use super::libc;
use super::start;
use crate::HEAP;
use crate::allocator::Cache;

core::arch::global_asm!(
    ".section .tbss.breaktrace_cache,\"awT\",%nobits",
    ".balign 8",
    ".hidden breaktrace_cache",
    ".globl breaktrace_cache",
    ".type breaktrace_cache, %object",
    ".size breaktrace_cache, 16",
    "breaktrace_cache:",
    ".zero 16",
    ".text",
);

/// A thread's two words.
#[repr(C)]
struct Local {
    /// Its cache; null without one.
    cache: *mut Cache,
    /// One of the states below.
    state: usize,
}

/// The thread has not asked for memory yet.
const NEW: usize = 0;
/// It has a cache, or would have one if memory could be had.
const RUNNING: usize = 1;
/// Its cache went back: it ends, and whatever it still does goes to the shared cache.
const ENDED: usize = 2;

#[inline(always)]
fn local() -> *mut Local {
    let address: usize;
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the thread pointer is the first word that %fs points to (x86-64 psABI, 3.4.6).
    unsafe {
        core::arch::asm!(
            "mov {address}, qword ptr [rip + breaktrace_cache@GOTTPOFF]",
            "add {address}, qword ptr fs:[0]",
            address = out(reg) address,
            options(pure, readonly, nostack),
        );
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the thread pointer is in tpidr_el0.
    unsafe {
        core::arch::asm!(
            "mrs {address}, tpidr_el0",
            "adrp {offset}, :gottprel:breaktrace_cache",
            "ldr {offset}, [{offset}, :gottprel_lo12:breaktrace_cache]",
            "add {address}, {address}, {offset}",
            address = out(reg) address,
            offset = out(reg) _,
            options(pure, readonly, nostack),
        );
    }
    core::ptr::with_exposed_provenance_mut(address)
}

/// The calling thread's cache; null if it has none (yet).
#[inline(always)]
pub(crate) fn cache() -> *mut Cache {
    #[cfg(target_arch = "x86_64")]
    {
        let cache: usize;
        // SAFETY: the first word of `Local`.
        unsafe {
            core::arch::asm!(
                "mov {cache}, qword ptr [rip + breaktrace_cache@GOTTPOFF]",
                "mov {cache}, qword ptr fs:[{cache}]",
                cache = out(reg) cache,
                options(readonly, nostack, preserves_flags),
            );
        }
        core::ptr::with_exposed_provenance_mut(cache)
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the thread's own storage.
    unsafe {
        (*local()).cache
    }
}

/// Key whose destructor runs when a thread ends, plus 1; 0 before there is one.
static KEY: AtomicU32 = AtomicU32::new(0);

/// Makes the key. Called once, when the C library is ready.
pub(crate) fn watch_ends() {
    if let Some(key) = libc::key_create(ended) {
        KEY.store(key + 1, Relaxed);
    }
}

/// As [`cache`], and gives a new thread one. Null in a thread that ends, and with guarded blocks.
pub(crate) fn cache_or_new() -> *mut Cache {
    let local = local();
    // SAFETY: the thread's own storage.
    unsafe {
        if !(*local).cache.is_null() || (*local).state == ENDED {
            return (*local).cache;
        }
        start::begin();
        if !HEAP.has_begun() {
            // Not even the page could be had.
            return core::ptr::null_mut();
        }
        // The setting may change once: when the environment becomes known.
        if HEAP.setup().guard {
            return core::ptr::null_mut();
        }
        let is_new = (*local).state == NEW;
        // First, as what follows may ask for memory.
        (*local).state = RUNNING;
        (*local).cache = HEAP.acquire_cache();
        let key = KEY.load(Relaxed);
        if is_new && key != 0 {
            libc::set_specific(key - 1, local.cast());
        }
        (*local).cache
    }
}

/// Leaves the shared cache to a thread that has its own: guarded blocks begin.
pub(crate) fn give_up_cache() {
    let local = local();
    // SAFETY: the thread's own storage.
    unsafe {
        let cache = (*local).cache;
        (*local).cache = core::ptr::null_mut();
        (*local).state = NEW;
        if !cache.is_null() {
            HEAP.release_cache(cache);
        }
    }
}

/// Rounds of destructors that a thread's keys get (POSIX, `PTHREAD_DESTRUCTOR_ITERATIONS`).
const ROUNDS: usize = 4;

/// Destructor of the key. Other keys' destructors may free memory, so it puts itself off to the last round.
extern "C" fn ended(_: *mut c_void) {
    let local = local();
    // SAFETY: the thread's own storage.
    unsafe {
        if (*local).state < ENDED + ROUNDS {
            (*local).state = if (*local).state == RUNNING { ENDED + 2 } else { (*local).state + 1 };
        }
        if (*local).state < ENDED + ROUNDS {
            libc::set_specific(KEY.load(Relaxed) - 1, local.cast());
            return;
        }
        let cache = (*local).cache;
        (*local).cache = core::ptr::null_mut();
        (*local).state = ENDED;
        if !cache.is_null() {
            HEAP.release_cache(cache);
        }
    }
}
