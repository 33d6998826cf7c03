//! fork in a program with threads: the child's copy of the heap must be whole.

use super::libc;
use crate::HEAP;

/// Registers the handlers. Early, so that ours are the last before the fork and the first behind it: other handlers may
/// ask for memory.
pub(crate) fn register() {
    libc::at_fork(before, in_parent, in_child);
}

extern "C" fn before() {
    HEAP.before_fork();
}

extern "C" fn in_parent() {
    // SAFETY: the thread that called `before`.
    unsafe { HEAP.after_fork() };
}

extern "C" fn in_child() {
    // SAFETY: the copy of the thread that called `before`.
    unsafe { HEAP.after_fork() };
}
