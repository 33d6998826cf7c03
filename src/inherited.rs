//! What breaktrace was given by whoever started it, before Rust's runtime changed it.
//!
//! The runtime ignores SIGPIPE and opens `/dev/null` where standard descriptors are closed, both before `main`. A
//! program under trace must be given what it would have been given without us, so a constructor, which the dynamic
//! linker runs before the runtime, takes note.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU8;
use std::sync::atomic::Ordering;

static SIGPIPE_IGNORED: AtomicBool = AtomicBool::new(false);
/// Bit n: descriptor n was closed.
static CLOSED: AtomicU8 = AtomicU8::new(0);

#[used]
// SAFETY: `.init_array` holds pointers to functions of this type (System V ABI).
#[unsafe(link_section = ".init_array")]
static TAKE_NOTE: extern "C" fn() = {
    extern "C" fn take_note() {
        // SAFETY: all-zero bytes are a valid sigaction, and the call only fills it.
        let ignored = unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            libc::sigaction(libc::SIGPIPE, std::ptr::null(), &raw mut action) == 0
                && action.sa_sigaction == libc::SIG_IGN
        };
        SIGPIPE_IGNORED.store(ignored, Ordering::Relaxed);
        let mut closed = 0;
        for descriptor in 0..3 {
            // SAFETY: asking for the flags of a descriptor changes nothing.
            if unsafe { libc::fcntl(descriptor, libc::F_GETFD) } == -1 {
                closed |= 1 << descriptor;
            }
        }
        CLOSED.store(closed, Ordering::Relaxed);
    }
    take_note
};

/// Whether SIGPIPE was ignored when breaktrace was started.
#[must_use]
pub fn sigpipe_ignored() -> bool {
    SIGPIPE_IGNORED.load(Ordering::Relaxed)
}

/// The standard descriptors that were closed when breaktrace was started.
pub fn closed_descriptors() -> impl Iterator<Item = i32> {
    let closed = CLOSED.load(Ordering::Relaxed);
    (0..3).filter(move |descriptor| closed & (1 << descriptor) != 0)
}
