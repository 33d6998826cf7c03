//! What the allocator asks of the kernel.

use crate::stats_page::Cause;

/// Source of memory, and the little else that the allocator needs from outside. The real one makes system calls; tests
/// have one that refuses.
///
/// # Safety
///
/// Memory that `map`, `remap` and `move_break` hand out is zeroed (as far as it is new), writable, and nobody else's until it is given
/// back.
pub unsafe trait Kernel {
    /// Bytes in a page, a power of two.
    fn page_size(&self) -> usize;

    /// Where the program break is. May rely on what the C library remembers of it.
    fn current_break(&self) -> usize;

    /// Asks for a new program break, and returns where it is then: elsewhere if the kernel refused. `request` is the size
    /// in bytes that the program asked for, 0 if it did not.
    fn move_break(&self, to: usize, cause: Cause, request: usize) -> usize;

    /// Maps `length` bytes, a multiple of the page size.
    fn map(&self, length: usize) -> Option<usize>;

    /// Unmaps whole pages.
    fn unmap(&self, address: usize, length: usize, cause: Cause) -> bool;

    /// Changes the length of a mapping; where it is then.
    fn remap(&self, address: usize, old: usize, new: usize, may_move: bool) -> Option<usize>;

    /// Gives the contents of whole pages back; they read as zero afterwards.
    fn give_back(&self, address: usize, length: usize, cause: Cause) -> bool;

    /// Tells whoever traces the program something that is no memory call. `detail` has at most 56 bits.
    fn announce(&self, page: usize, cause: Cause, detail: u64, value: u64);

    /// Whether the 8 bytes at an address can be read.
    fn is_readable(&self, address: usize) -> bool;

    /// The calling thread's number.
    fn thread_id(&self) -> u32;

    /// Waits while `word` is `value`.
    fn wait(&self, word: &core::sync::atomic::AtomicU32, value: u32);

    /// Wakes one that waits for `word`.
    fn wake(&self, word: &core::sync::atomic::AtomicU32);

    /// Ends the program by SIGABRT.
    fn abort(&self) -> !;
}
