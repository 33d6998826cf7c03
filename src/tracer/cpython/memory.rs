//! The memory that an interpreter is read from.

use std::cell::Cell;
use std::cell::RefCell;

use super::super::stack_memory::StackMemory;
use super::super::sys;

/// Memory of which nothing is known but that it may be read.
pub(super) trait Memory {
    /// Reads what is there; fewer bytes than asked for where it ends.
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize;

    /// Reads pieces one after the other; fewer bytes than they have where one of them cannot be read.
    fn read_pieces(&self, pieces: &[(u64, usize)], buffer: &mut [u8]) -> usize;

    /// Reads one word.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        (self.read(address, &mut bytes) == 8).then(|| u64::from_ne_bytes(bytes))
    }

    /// Reads all of so many bytes.
    fn bytes(&self, address: u64, length: usize) -> Option<Vec<u8>> {
        let mut bytes = vec![0; length];
        (self.read(address, &mut bytes) == length).then_some(bytes)
    }
}

/// The memory of a stopped thread, of whose stack some has been read already.
pub(super) struct OfThread<'stack> {
    pub(super) tid: u32,
    pub(super) stack: &'stack StackMemory,
    window: RefCell<Window>,
    allowance: Allowance,
}

/// Most reads at one stop, and most bytes that they fetch. Some 4000 functions that were never seen before take less.
const MOST_READS: usize = 1 << 15;
const MOST_BYTES: usize = 64 << 20;

/// What may still be read at this stop, so that a program whose lists lead anywhere costs a bounded time.
#[derive(Debug)]
pub(super) struct Allowance {
    reads: Cell<usize>,
    bytes: Cell<usize>,
}

impl Default for Allowance {
    fn default() -> Self {
        Self {
            reads: Cell::new(MOST_READS),
            bytes: Cell::new(MOST_BYTES),
        }
    }
}

impl Allowance {
    /// Takes one read of so many bytes from it; `None` if that is more than is left, and then nothing more is read.
    pub(super) fn take(&self, bytes: usize) -> Option<()> {
        let reads = self.reads.get().checked_sub(1)?;
        let Some(left) = self.bytes.get().checked_sub(bytes) else {
            self.reads.set(0);
            return None;
        };
        self.reads.set(reads);
        self.bytes.set(left);
        Some(())
    }
}

/// What was read last for frames.
#[derive(Default)]
struct Window {
    start: u64,
    bytes: Vec<u8>,
}

/// Frames lie in chunks of whole pages, callers below those they call (Python/pystate.c, `push_chunk`).
const PAGE: u64 = 4096;

impl<'stack> OfThread<'stack> {
    pub(super) fn new(tid: u32, stack: &'stack StackMemory) -> Self {
        Self {
            tid,
            stack,
            window: RefCell::default(),
            allowance: Allowance::default(),
        }
    }
}

/// The part of `bytes`, which begin at `start`, that is at `address`.
fn within(bytes: &[u8], start: u64, address: u64, length: usize) -> Option<&[u8]> {
    let from = usize::try_from(address.checked_sub(start)?).ok()?;
    bytes.get(from..from.checked_add(length)?)
}

impl Memory for OfThread<'_> {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        if let Some(copied) = self.stack.known(address, buffer.len()) {
            buffer.copy_from_slice(copied);
            return copied.len();
        }
        let mut window = self.window.borrow_mut();
        if let Some(read) = within(&window.bytes, window.start, address, buffer.len()) {
            buffer.copy_from_slice(read);
            return read.len();
        }
        // What is below in the same page is there as well, and is likely to be wanted next.
        let start = address - address % PAGE;
        let below = usize::try_from(address % PAGE).unwrap_or(0);
        if self
            .allowance
            .take(below.saturating_add(buffer.len()))
            .is_none()
        {
            return 0;
        }
        window.start = start;
        window.bytes.resize(below.saturating_add(buffer.len()), 0);
        let read = sys::read_memory(self.tid, start, &mut window.bytes).unwrap_or(0);
        window.bytes.truncate(read);
        let found = window.bytes.get(below..).unwrap_or_default();
        if let Some(room) = buffer.get_mut(..found.len()) {
            room.copy_from_slice(found);
        }
        found.len()
    }

    fn read_pieces(&self, pieces: &[(u64, usize)], buffer: &mut [u8]) -> usize {
        if self.allowance.take(buffer.len()).is_none() {
            return 0;
        }
        sys::read_memory_pieces(self.tid, pieces, buffer).unwrap_or(0)
    }
}
