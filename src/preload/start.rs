//! The heap's beginning, and what the environment says of it.

use core::ffi::CStr;
use core::ffi::c_char;
use core::sync::atomic::AtomicBool;
use core::sync::atomic::Ordering::Relaxed;

use super::fork;
use super::libc;
use super::thread;
use crate::HEAP;
use crate::allocator::Setup;
use crate::allocator::kernel::Kernel;
use crate::stats_page::Cause;
use crate::stats_page::NAME;
use crate::stats_page::Page;
use crate::stats_page::Policy;
use crate::stats_page::environment;

/// The environment has been read.
static SET_UP: AtomicBool = AtomicBool::new(false);

/// Begins the heap, unless it has begun.
pub(crate) fn begin() {
    if !HEAP.has_begun() {
        begin_now();
    }
}

#[cold]
fn begin_now() {
    let length = libc::page_size().max(size_of::<Page>());
    let Some(at) = HEAP.kernel.named_page(NAME, length) else {
        return;
    };
    let page = core::ptr::with_exposed_provenance_mut::<Page>(at);
    let mut setup = defaults();
    let known = libc::environment();
    if !known.is_null() {
        // SAFETY: environ(7).
        setup = unsafe { read_environment(known) };
    }
    let version = env!("BREAKTRACE_VERSION").as_bytes();
    // SAFETY: the page is new, and nobody else's before the heap has it.
    unsafe {
        for (byte, letter) in (*page).version.iter_mut().zip(version.iter().take(23)) {
            *byte = *letter;
        }
        if HEAP.begin(page, HEAP.kernel.secret(), &setup) {
            SET_UP.store(!known.is_null(), Relaxed);
            HEAP.kernel.announce(at, Cause::Announce, 0, at as u64);
        }
    }
}

/// More arenas than twice the processors would cost memory and save no waiting.
fn defaults() -> Setup {
    Setup {
        arena_max: 2 * HEAP.kernel.processors(),
        ..Setup::default()
    }
}

/// Runs before the program's own constructors, as a rule.
extern "C" fn constructor(_: i32, _: *const *const c_char, environment: *const *const c_char) {
    begin();
    if !HEAP.has_begun() {
        return;
    }
    thread::watch_ends();
    fork::register();
    if !SET_UP.load(Relaxed) && !environment.is_null() {
        // SAFETY: the dynamic linker passes the environment on (glibc, elf/dl-init.c).
        let setup = unsafe { read_environment(environment) };
        HEAP.set_up(&setup);
        if setup.guard {
            thread::give_up_cache();
        }
        SET_UP.store(true, Relaxed);
        // Whoever traces the program knows the set-up from before.
        let page = core::ptr::from_ref(HEAP.page()).addr();
        HEAP.kernel.announce(page, Cause::Announce, 0, page as u64);
    }
}

/// Runs at exit: what waits in quarantine is looked at. Programs that end otherwise miss only this.
extern "C" fn destructor() {
    HEAP.check_quarantine();
}

#[used]
// SAFETY: `.init_array` holds pointers to functions of this type (System V ABI; glibc passes the arguments of main).
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn(i32, *const *const c_char, *const *const c_char) = constructor;

#[used]
// SAFETY: `.fini_array` holds pointers to functions of this type (System V ABI).
#[unsafe(link_section = ".fini_array")]
static DESTRUCTOR: extern "C" fn() = destructor;

/// The set-up that the environment asks for. What makes no sense is passed over: breaktrace has checked its options.
unsafe fn read_environment(mut variables: *const *const c_char) -> Setup {
    let mut setup = defaults();
    // SAFETY: environ(7): pointers to strings, ended by null.
    unsafe {
        while !(*variables).is_null() {
            apply(&mut setup, CStr::from_ptr(*variables).to_bytes());
            variables = variables.add(1);
        }
    }
    setup
}

fn apply(setup: &mut Setup, variable: &[u8]) {
    // Most variables are not ours.
    if !variable.starts_with(b"BREAKTRACE_") {
        return;
    }
    let Some(at) = variable.iter().position(|byte| *byte == b'=') else {
        return;
    };
    let (name, value) = (&variable[..at], &variable[at + 1..]);
    let is = |wanted: &str| name == wanted.as_bytes();
    if is(environment::POLICY) {
        for policy in [Policy::Never, Policy::Trim, Policy::Eager] {
            if value == policy.name().as_bytes() {
                setup.policy = policy;
            }
        }
    } else if is(environment::GUARD) {
        setup.guard = value == b"1";
    } else if is(environment::ON_HEAP_ERROR) {
        setup.abort_on_error = value == b"abort";
    } else if let Some(number) = parse(value) {
        if is(environment::MMAP_THRESHOLD) {
            setup.mmap_threshold = Some(number.max(4096));
        } else if is(environment::TRIM_THRESHOLD) {
            setup.trim_threshold = Some(number);
        } else if is(environment::TOP_PAD) {
            setup.top_pad = number.min(1 << 30);
        } else if is(environment::ARENA_MAX) {
            setup.arena_max = number;
        } else if is(environment::SAMPLE_INTERVAL) {
            setup.sample_interval = number;
        }
    }
}

fn parse(digits: &[u8]) -> Option<usize> {
    let mut number = 0_usize;
    for digit in digits {
        let value = digit.checked_sub(b'0').filter(|value| *value < 10)?;
        number = number.checked_mul(10)?.checked_add(usize::from(value))?;
    }
    (!digits.is_empty()).then_some(number)
}
