//! mallinfo(3), mallopt(3), malloc_stats(3), malloc_info(3): what programs ask of glibc's malloc, answered by ours.

use core::ffi::c_int;
use core::ffi::c_void;
use core::fmt;
use core::fmt::Write;

use super::libc;
use super::libc::EINVAL;
use super::thread;
use crate::HEAP;
use crate::allocator::Setup;
use crate::stats_page::COUNTERS;

/// `struct mallinfo2` of malloc.h.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Mallinfo2 {
    arena: usize,
    ordblks: usize,
    smblks: usize,
    hblks: usize,
    hblkhd: usize,
    usmblks: usize,
    fsmblks: usize,
    uordblks: usize,
    fordblks: usize,
    keepcost: usize,
}

/// `struct mallinfo`: the same in `int`, which wraps above 2 GiB.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub struct Mallinfo {
    fields: [c_int; 10],
}

/// mallinfo2(3). *fordblks* holds what is free in chunks, slabs and at the top; *fsmblks* what thread caches hold.
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo2() -> Mallinfo2 {
    let figures = HEAP.counters();
    let free = figures.free_chunk_bytes + figures.free_slab_bytes + figures.top_bytes;
    let large = figures.mapped_bytes.saturating_sub(figures.unmapped_bytes);
    let arena = figures.obtained_bytes;
    Mallinfo2 {
        arena: arena as usize,
        ordblks: figures.free_chunks as usize + 1,
        smblks: 0,
        hblks: figures.live_large_blocks as usize,
        hblkhd: if figures.live_large_blocks > 0 { large as usize } else { 0 },
        usmblks: 0,
        fsmblks: figures.cached_bytes as usize,
        // As in glibc, all that is not free is in use, records and cached blocks included.
        uordblks: arena.saturating_sub(free) as usize,
        fordblks: free as usize,
        keepcost: figures.top_bytes as usize,
    }
}

/// mallinfo(3).
#[unsafe(no_mangle)]
pub extern "C" fn mallinfo() -> Mallinfo {
    let info = mallinfo2();
    let fields = [
        info.arena,
        info.ordblks,
        info.smblks,
        info.hblks,
        info.hblkhd,
        info.usmblks,
        info.fsmblks,
        info.uordblks,
        info.fordblks,
        info.keepcost,
    ];
    Mallinfo {
        fields: fields.map(|field| field as c_int),
    }
}

const M_TRIM_THRESHOLD: c_int = -1;
const M_TOP_PAD: c_int = -2;
const M_MMAP_THRESHOLD: c_int = -3;
const M_ARENA_MAX: c_int = -8;

/// mallopt(3): 1 for what was accepted. Parameters without a meaning here are accepted and have no effect.
#[unsafe(no_mangle)]
pub extern "C" fn mallopt(parameter: c_int, value: c_int) -> c_int {
    thread::cache_or_new();
    if !HEAP.has_begun() {
        return 0;
    }
    // A negative threshold is how programs ask never to trim.
    let size = usize::try_from(value).unwrap_or(usize::MAX / 2);
    let setup = HEAP.setup();
    let setup = match parameter {
        M_TRIM_THRESHOLD => Setup {
            trim_threshold: Some(size),
            mmap_threshold: Some(HEAP.page().settings.mmap_threshold.get() as usize),
            ..setup
        },
        M_TOP_PAD if value >= 0 => Setup {
            top_pad: size,
            ..setup
        },
        // glibc refuses more than half of what a thread's heap can be (HEAP_MAX_SIZE / 2).
        M_MMAP_THRESHOLD if value >= 0 && size <= 32 << 20 => Setup {
            mmap_threshold: Some(size),
            trim_threshold: Some(HEAP.page().settings.trim_threshold.get() as usize),
            ..setup
        },
        M_ARENA_MAX if value > 0 => Setup {
            arena_max: size,
            ..setup
        },
        M_TOP_PAD | M_MMAP_THRESHOLD => return 0,
        _ => setup,
    };
    HEAP.set_up(&setup);
    1
}

/// Text on its way to a stream of the C library's.
struct Stream(*mut c_void);

impl Write for Stream {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        if !self.0.is_null() {
            libc::write_to(self.0, text.as_bytes());
        }
        Ok(())
    }
}

/// malloc_stats(3): to standard error.
#[unsafe(no_mangle)]
pub extern "C" fn malloc_stats() {
    let figures = HEAP.counters();
    let mut stream = Stream(libc::standard_error());
    for (info, value) in COUNTERS.iter().zip(figures.values()) {
        // Writing to `Stream` does not fail.
        let _ = writeln!(stream, "{:<24} = {value:>14}", info.name);
    }
}

/// malloc_info(3): the figures as XML, with the names of the documentation.
///
/// # Safety
///
/// `stream` is one of the C library's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn malloc_info(options: c_int, stream: *mut c_void) -> c_int {
    if options != 0 {
        // malloc_info(3): it returns −1 and sets `errno`.
        libc::set_errno(EINVAL);
        return -1;
    }
    let figures = HEAP.counters();
    let mut stream = Stream(stream);
    let _ = writeln!(stream, "<malloc version=\"breaktrace-1\">");
    for (info, value) in COUNTERS.iter().zip(figures.values()) {
        let _ = writeln!(stream, "<counter name=\"{}\" value=\"{value}\"/>", info.name);
    }
    let _ = writeln!(stream, "</malloc>");
    0
}
