//! The stack of a stopped thread, read as far as it is needed.
//!
//! Most stacks are a few kilobytes, a few are a megabyte, and a handler's may continue on another stack: so what is read
//! grows from where the frames are.

use super::rule::Unreadable;
use super::sys;

/// What is read at first, in bytes.
const FIRST_BYTES: usize = 8 << 10;
/// Most that is read of one stack, in bytes.
const MOST_BYTES: usize = 1 << 20;
/// Most places at which a stack goes on.
const MOST_PIECES: usize = 16;

/// The memory of one thread, while it stands still.
#[derive(Debug, Default)]
pub(super) struct StackMemory {
    tid: u32,
    pieces: Vec<Piece>,
    /// Buffers of earlier pieces.
    spare: Vec<Vec<u8>>,
    bytes: usize,
}

#[derive(Debug)]
struct Piece {
    start: u64,
    bytes: Vec<u8>,
    /// There is nothing after it.
    is_whole: bool,
}

impl Piece {
    fn word(&self, address: u64) -> Option<u64> {
        let from = usize::try_from(address.checked_sub(self.start)?).ok()?;
        self.bytes
            .get(from..)?
            .first_chunk()
            .map(|word| u64::from_ne_bytes(*word))
    }

    /// Whether an address lies so little behind what is there that the space between is read as well.
    fn is_before(&self, address: u64) -> bool {
        address
            .checked_sub(self.start)
            .is_some_and(|distance| distance < (self.bytes.len() + MOST_BYTES / 4) as u64)
    }
}

impl StackMemory {
    /// Begins with another stopped thread.
    pub(super) fn begin(&mut self, tid: u32) {
        self.tid = tid;
        self.bytes = 0;
        self.spare
            .extend(self.pieces.drain(..).map(|piece| piece.bytes));
    }

    /// Reads a word.
    pub(super) fn word(&mut self, address: u64) -> Result<u64, Unreadable> {
        loop {
            if let Some(word) = self
                .pieces
                .iter()
                .rev()
                .find_map(|piece| piece.word(address))
            {
                return Ok(word);
            }
            let found = self
                .pieces
                .iter()
                .rposition(|piece| !piece.is_whole && piece.is_before(address));
            match found {
                Some(index) => self.extend(index)?,
                None => self.begin_piece(address)?,
            }
        }
    }

    /// What has been read already, if all of it has been.
    pub(super) fn known(&self, address: u64, length: usize) -> Option<&[u8]> {
        self.pieces.iter().find_map(|piece| {
            let from = usize::try_from(address.checked_sub(piece.start)?).ok()?;
            piece.bytes.get(from..from.checked_add(length)?)
        })
    }

    /// Reads instructions; returns how many bytes there are.
    pub(super) fn code(&self, address: u64, bytes: &mut [u8]) -> usize {
        sys::read_memory(self.tid, address, bytes).unwrap_or(0)
    }

    fn begin_piece(&mut self, address: u64) -> Result<(), Unreadable> {
        if self.pieces.len() >= MOST_PIECES {
            return Err(Unreadable::TooMuch);
        }
        let mut bytes = self.spare.pop().unwrap_or_default();
        bytes.clear();
        self.pieces.push(Piece {
            start: address,
            bytes,
            is_whole: false,
        });
        self.extend(self.pieces.len() - 1)?;
        match self.pieces.last() {
            Some(piece) if piece.bytes.len() >= size_of::<u64>() => Ok(()),
            _ => {
                let gone = self.pieces.pop();
                self.spare.extend(gone.map(|piece| piece.bytes));
                Err(Unreadable::Missing)
            }
        }
    }

    /// Reads as much again as there is.
    fn extend(&mut self, index: usize) -> Result<(), Unreadable> {
        let Some(piece) = self.pieces.get_mut(index) else {
            return Err(Unreadable::Missing);
        };
        let had = piece.bytes.len();
        let more = had.max(FIRST_BYTES).min(MOST_BYTES - self.bytes);
        if more == 0 {
            return Err(Unreadable::TooMuch);
        }
        piece.bytes.resize(had + more, 0);
        let from = piece.start.wrapping_add(had as u64);
        // Fewer bytes than asked for where the stack's mapping ends.
        let read = piece
            .bytes
            .get_mut(had..)
            .and_then(|room| sys::read_memory(self.tid, from, room).ok())
            .unwrap_or(0);
        piece.bytes.truncate(had + read);
        piece.is_whole = read < more;
        self.bytes += read;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory_of_ours() -> StackMemory {
        let mut memory = StackMemory::default();
        memory.begin(std::process::id());
        memory
    }

    #[test]
    fn words_far_apart_are_read_as_they_are() {
        let words: Vec<u64> = (0..100_000).collect();
        let mut memory = memory_of_ours();
        for index in [0, 7, 2_000, 90_000, 1] {
            let address = (&raw const words[index]).addr() as u64;
            assert_eq!(memory.word(address), Ok(index as u64));
        }
    }

    #[test]
    fn nothing_is_read_of_what_is_not_there() {
        assert_eq!(memory_of_ours().word(8), Err(Unreadable::Missing));
        assert_eq!(
            memory_of_ours().word(u64::MAX - 3),
            Err(Unreadable::Missing)
        );
    }

    #[test]
    fn a_huge_stack_is_read_in_part() {
        let words = vec![1_u64; MOST_BYTES / 4];
        let mut memory = memory_of_ours();
        let start = words.as_ptr().addr() as u64;
        let found = (0..words.len() as u64)
            .map(|index| memory.word(start + index * 8))
            .find(Result::is_err);
        assert_eq!(found, Some(Err(Unreadable::TooMuch)));
        assert!(memory.bytes <= MOST_BYTES);
    }
}
