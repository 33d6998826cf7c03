//! What is asked of the C library: by weak names, as the library must load into any program, and may be called before
//! the C library is ready.

use core::ffi::c_char;
use core::ffi::c_int;
use core::ffi::c_void;
use core::sync::atomic::AtomicUsize;
use core::sync::atomic::Ordering::Relaxed;

/// Address of a weak symbol, 0 where nobody defines it.
macro_rules! weak {
    ($name:literal) => {{
        let address: usize;
        #[cfg(target_arch = "x86_64")]
        // SAFETY: reads the address that the dynamic linker put into the global offset table.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", $name),
                concat!("mov {address}, qword ptr [rip + ", $name, "@GOTPCREL]"),
                address = out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        #[cfg(target_arch = "aarch64")]
        // SAFETY: as above.
        unsafe {
            core::arch::asm!(
                concat!(".weak ", $name),
                concat!("adrp {address}, :got:", $name),
                concat!("ldr {address}, [{address}, :got_lo12:", $name, "]"),
                address = out(reg) address,
                options(pure, readonly, nostack, preserves_flags),
            );
        }
        address
    }};
}

/// A weak function as an option of its type.
macro_rules! weak_function {
    ($name:literal, $type:ty) => {{
        let address = weak!($name);
        // SAFETY: the C library's functions have the types that their manual pages give.
        (address != 0).then(|| unsafe { core::mem::transmute::<usize, $type>(address) })
    }};
}

pub(crate) const ENOMEM: c_int = 12;
pub(crate) const EINVAL: c_int = 22;

/// Sets `errno`.
#[cold]
pub(crate) fn set_errno(value: c_int) {
    if let Some(location) = weak_function!("__errno_location", extern "C" fn() -> *mut c_int) {
        // SAFETY: errno_location(3): it is the calling thread's.
        unsafe { *location() = value };
    }
}

static PAGE_SIZE: AtomicUsize = AtomicUsize::new(0);

/// Bytes in a page.
pub(crate) fn page_size() -> usize {
    match PAGE_SIZE.load(Relaxed) {
        0 => {
            let asked = weak_function!("getpagesize", extern "C" fn() -> c_int).map_or(4096, |f| f() as usize);
            let size = if asked.is_power_of_two() { asked } else { 4096 };
            PAGE_SIZE.store(size, Relaxed);
            size
        }
        size => size,
    }
}

/// Where the C library thinks that the break is (`__curbrk`, sbrk.c); 0 if it has no opinion.
pub(crate) fn remembered_break() -> usize {
    match weak!("__curbrk") {
        0 => 0,
        // SAFETY: a variable of the C library's.
        address => unsafe { core::ptr::with_exposed_provenance::<usize>(address).read_volatile() },
    }
}

/// Tells the C library where the break is, so that the program's own sbrk goes on from there.
pub(crate) fn remember_break(at: usize) {
    match weak!("__curbrk") {
        0 => {}
        // SAFETY: as above.
        address => unsafe {
            core::ptr::with_exposed_provenance_mut::<usize>(address).write_volatile(at);
        },
    }
}

/// The environment, once the C library has it.
pub(crate) fn environment() -> *const *const c_char {
    match weak!("__environ") {
        0 => core::ptr::null(),
        // SAFETY: environ(7): a variable of the C library's.
        address => unsafe {
            core::ptr::with_exposed_provenance::<*const *const c_char>(address).read_volatile()
        },
    }
}

/// Ends the program by SIGABRT.
pub(crate) fn abort() -> ! {
    if let Some(abort) = weak_function!("abort", extern "C" fn() -> !) {
        abort();
    }
    #[cfg(target_arch = "x86_64")]
    // SAFETY: an instruction that raises SIGILL.
    unsafe {
        core::arch::asm!("ud2", options(noreturn))
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: as above.
    unsafe {
        core::arch::asm!("udf #0", options(noreturn))
    }
}

/// Makes a key whose destructor runs at the end of each thread that has set a value.
pub(crate) fn key_create(destructor: extern "C" fn(*mut c_void)) -> Option<u32> {
    type Create = extern "C" fn(*mut u32, extern "C" fn(*mut c_void)) -> c_int;
    let create = weak_function!("pthread_key_create", Create)?;
    let mut key = 0;
    (create(&raw mut key, destructor) == 0).then_some(key)
}

/// Sets the calling thread's value of a key.
pub(crate) fn set_specific(key: u32, value: *const c_void) {
    type Set = extern "C" fn(u32, *const c_void) -> c_int;
    if let Some(set) = weak_function!("pthread_setspecific", Set) {
        set(key, value);
    }
}

/// pthread_atfork(3), which glibc offers to shared libraries under this name only.
pub(crate) fn at_fork(prepare: extern "C" fn(), parent: extern "C" fn(), child: extern "C" fn()) {
    type Register =
        extern "C" fn(extern "C" fn(), extern "C" fn(), extern "C" fn(), *const c_void) -> c_int;
    if let Some(register) = weak_function!("__register_atfork", Register) {
        register(prepare, parent, child, core::ptr::null());
    }
}

/// Writes to one of the C library's streams.
pub(crate) fn write_to(stream: *mut c_void, text: &[u8]) {
    type Write = extern "C" fn(*const c_void, usize, usize, *mut c_void) -> usize;
    if let Some(write) = weak_function!("fwrite", Write) {
        write(text.as_ptr().cast(), 1, text.len(), stream);
    }
}

/// The standard error stream.
pub(crate) fn standard_error() -> *mut c_void {
    match weak!("stderr") {
        0 => core::ptr::null_mut(),
        // SAFETY: stdio(3): a variable of the C library's.
        address => unsafe {
            core::ptr::with_exposed_provenance::<*mut c_void>(address).read_volatile()
        },
    }
}
