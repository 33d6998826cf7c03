//! Root of the library that is preloaded into programs: the names of the C library, and nothing else.
#![no_std]

#[allow(dead_code)]
mod stats_page;

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
