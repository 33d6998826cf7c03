//! Root of the library that is preloaded into programs: the names of the C library, and nothing else.
//!
//! The library needs no other: what it wants of the C library it asks for by weak names. Exported are C names only; a
//! test lists them.
#![no_std]
#![deny(unsafe_op_in_unsafe_fn)]

// Compiled into breaktrace as well, which uses the rest of it.
#[allow(dead_code)]
mod allocator;
#[allow(dead_code)]
mod stats_page;

mod preload {
    //! What stands between the C names and the allocator.
    pub(crate) mod fork;
    pub(crate) mod info;
    pub(crate) mod libc;
    pub(crate) mod linux;
    pub(crate) mod malloc;
    pub(crate) mod start;
    pub(crate) mod thread;
}

use allocator::Heap;
use preload::linux::Linux;

// What rustc calls for copies and comparisons (rust-lang.org, `core`: "How to use the core library"): from the C library,
// weakly as all else, so that no library needs to be named.
core::arch::global_asm!(
    ".weak memcpy",
    ".weak memmove",
    ".weak memset",
    ".weak memcmp",
    ".weak bcmp",
    ".weak strlen",
);

/// The heap of this process.
static HEAP: Heap<Linux> = Heap::new(Linux);

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    preload::libc::abort()
}
