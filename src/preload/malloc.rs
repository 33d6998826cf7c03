//! malloc(3) and its relatives, by their names.
//!
//! Rules of the manual pages and of glibc that are not the allocator's business are kept here: `errno`, null, zero,
//! overflow, alignments.

use core::ffi::c_int;
use core::ffi::c_void;

use super::libc;
use super::libc::EINVAL;
use super::libc::ENOMEM;
use super::thread;
use crate::HEAP;

fn or_out_of_memory(block: *mut u8) -> *mut c_void {
    if block.is_null() {
        libc::set_errno(ENOMEM);
    }
    block.cast()
}

#[cold]
#[inline(never)]
fn malloc_slowly(size: usize) -> *mut c_void {
    // SAFETY: the cache is the calling thread's.
    or_out_of_memory(unsafe { HEAP.allocate_slowly(thread::cache_or_new(), size) })
}

/// malloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn malloc(size: usize) -> *mut c_void {
    let cache = thread::cache();
    if cache.is_null() {
        return malloc_slowly(size);
    }
    // SAFETY: the cache is the calling thread's.
    let block = unsafe { HEAP.allocate(cache, size) };
    if block.is_null() {
        return or_out_of_memory(block);
    }
    block.cast()
}

/// free(3). Keeps `errno`.
///
/// # Safety
///
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free(block: *mut c_void) {
    let cache = thread::cache();
    if cache.is_null() {
        // SAFETY: the caller's promise.
        return unsafe { free_without_cache(block) };
    }
    // SAFETY: the cache is the calling thread's; the rest is the caller's promise.
    unsafe { HEAP.free(cache, block.cast()) };
}

#[cold]
#[inline(never)]
unsafe fn free_without_cache(block: *mut c_void) {
    if !block.is_null() {
        // SAFETY: the caller's promise.
        unsafe { HEAP.free(thread::cache_or_new(), block.cast()) };
    }
}

/// calloc(3).
#[unsafe(no_mangle)]
pub extern "C" fn calloc(count: usize, size: usize) -> *mut c_void {
    // What overflows is more than there can be.
    let bytes = count.saturating_mul(size);
    // SAFETY: the cache is the calling thread's.
    or_out_of_memory(unsafe { HEAP.allocate_zeroed(thread::cache_or_new(), bytes) })
}

/// realloc(3), as glibc's: size 0 frees the block and returns null.
///
/// # Safety
///
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn realloc(block: *mut c_void, size: usize) -> *mut c_void {
    if size == 0 && !block.is_null() {
        // SAFETY: the caller's promise.
        unsafe { free(block) };
        return core::ptr::null_mut();
    }
    // SAFETY: the caller's promise.
    or_out_of_memory(unsafe { HEAP.resize(thread::cache_or_new(), block.cast(), size) })
}

/// reallocarray(3).
///
/// # Safety
///
/// As the manual page says.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn reallocarray(block: *mut c_void, count: usize, size: usize) -> *mut c_void {
    match count.checked_mul(size) {
        // SAFETY: the caller's promise.
        Some(bytes) => unsafe { realloc(block, bytes) },
        None => or_out_of_memory(core::ptr::null_mut()),
    }
}

fn aligned(alignment: usize, size: usize) -> *mut c_void {
    // SAFETY: the cache is the calling thread's.
    or_out_of_memory(unsafe { HEAP.allocate_aligned(thread::cache_or_new(), alignment, size) })
}

/// posix_memalign(3): returns the error, and leaves `errno` and, on failure, `*place` as they are.
///
/// # Safety
///
/// `place` can be written to.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn posix_memalign(place: *mut *mut c_void, alignment: usize, size: usize) -> c_int {
    if !alignment.is_power_of_two() || !alignment.is_multiple_of(size_of::<usize>()) {
        return EINVAL;
    }
    // SAFETY: the cache is the calling thread's.
    let block = unsafe { HEAP.allocate_aligned(thread::cache_or_new(), alignment, size) };
    if block.is_null() {
        return ENOMEM;
    }
    // SAFETY: the caller's promise.
    unsafe { *place = block.cast() };
    0
}

/// memalign(3): glibc rounds the alignment up to a power of two, and has `EINVAL` where that is impossible.
#[unsafe(no_mangle)]
pub extern "C" fn memalign(alignment: usize, size: usize) -> *mut c_void {
    match alignment.max(1).checked_next_power_of_two() {
        Some(alignment) => aligned(alignment, size),
        None => {
            libc::set_errno(EINVAL);
            core::ptr::null_mut()
        }
    }
}

/// aligned_alloc(3): memalign, as in glibc before 2.38; later ones refuse alignments that are no power of two.
#[unsafe(no_mangle)]
pub extern "C" fn aligned_alloc(alignment: usize, size: usize) -> *mut c_void {
    memalign(alignment, size)
}

/// valloc(3): at a page.
#[unsafe(no_mangle)]
pub extern "C" fn valloc(size: usize) -> *mut c_void {
    aligned(libc::page_size(), size)
}

/// pvalloc(3): whole pages.
#[unsafe(no_mangle)]
pub extern "C" fn pvalloc(size: usize) -> *mut c_void {
    let page = libc::page_size();
    match size.checked_next_multiple_of(page) {
        Some(bytes) => aligned(page, bytes),
        None => or_out_of_memory(core::ptr::null_mut()),
    }
}

/// malloc_usable_size(3): exactly what was asked for, so that a write behind it is found.
///
/// # Safety
///
/// `block` is null or a live block.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_usable_size(block: *mut c_void) -> usize {
    // SAFETY: the caller's promise.
    unsafe { HEAP.usable_size(block.cast()) }
}

/// malloc_trim(3).
#[unsafe(no_mangle)]
pub extern "C" fn malloc_trim(keep: usize) -> c_int {
    // SAFETY: the cache is the calling thread's.
    let cache = thread::cache_or_new();
    // SAFETY: as above.
    c_int::from(HEAP.has_begun() && unsafe { HEAP.trim(cache, keep) })
}

/// Old name of free(3).
///
/// # Safety
///
/// As for free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn cfree(block: *mut c_void) {
    // SAFETY: the caller's promise.
    unsafe { free(block) };
}

/// C23, 7.24.3.4.
///
/// # Safety
///
/// As for free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_sized(block: *mut c_void, _: usize) {
    // SAFETY: the caller's promise.
    unsafe { free(block) };
}

/// C23, 7.24.3.5.
///
/// # Safety
///
/// As for free.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn free_aligned_sized(block: *mut c_void, _: usize, _: usize) {
    // SAFETY: the caller's promise.
    unsafe { free(block) };
}

/// glibc's other names of the same functions: a program that uses them must not get blocks of two heaps.
macro_rules! also_named {
    ($($other:ident = $name:ident($($argument:ident: $type:ty),*) $(-> $result:ty)?;)*) => {
        $(
            #[doc = concat!("As `", stringify!($name), "`.")]
            ///
            /// # Safety
            ///
            /// As there.
            #[unsafe(no_mangle)]
            #[allow(unused_unsafe)]
            pub unsafe extern "C" fn $other($($argument: $type),*) $(-> $result)? {
                // SAFETY: the caller's promise.
                unsafe { $name($($argument),*) }
            }
        )*
    };
}

also_named! {
    __libc_malloc = malloc(size: usize) -> *mut c_void;
    __libc_free = free(block: *mut c_void);
    __libc_calloc = calloc(count: usize, size: usize) -> *mut c_void;
    __libc_realloc = realloc(block: *mut c_void, size: usize) -> *mut c_void;
    __libc_memalign = memalign(alignment: usize, size: usize) -> *mut c_void;
    __libc_valloc = valloc(size: usize) -> *mut c_void;
    __libc_pvalloc = pvalloc(size: usize) -> *mut c_void;
}
