//! What the program of the founding experiment does, step by step.
//!
//! The player acts on it and the demonstration reads both accounts along it, so that neither can drift.

/// One step of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Act {
    /// Nothing yet: where the break is before the first call.
    Begin,
    /// Asks malloc(3) for a block.
    Malloc {
        /// Which one, counted from 0.
        block: usize,
        /// Bytes asked for.
        bytes: usize,
    },
    /// Gives a block back with free(3).
    Free {
        /// Which one, counted from 0.
        block: usize,
    },
}

/// Bytes of all blocks but the last.
const SMALL: usize = 16 << 10;
/// Bytes of the last block: more than is left, yet too little for a mapping of its own.
const LARGE: usize = 90 << 10;

/// Blocks in [`SCRIPT`].
pub(super) const BLOCKS: usize = 7;

/// The program.
pub(super) const SCRIPT: [Act; 10] = [
    Act::Begin,
    malloc(0, SMALL),
    malloc(1, SMALL),
    malloc(2, SMALL),
    malloc(3, SMALL),
    malloc(4, SMALL),
    Act::Free { block: 1 },
    malloc(5, SMALL),
    Act::Free { block: 5 },
    malloc(6, LARGE),
];

const fn malloc(block: usize, bytes: usize) -> Act {
    Act::Malloc { block, bytes }
}

/// The name of a block: `a` for the first.
pub(super) fn name(block: usize) -> char {
    u8::try_from(block).map_or('?', |number| char::from(b'a'.saturating_add(number)))
}

/// The address that marks the end of a step in the trace.
///
/// The program ends each step with madvise(2) on no bytes there, which does nothing and returns at once
/// (`mm/madvise.c`), but stands in the trace between the calls of this step and those of the next. Clocks could not
/// tell as surely which call belongs to which step.
pub(super) const fn mark(step: usize) -> usize {
    (step + 1) * MARK_STRIDE
}

/// The step whose end this address marks.
pub(super) fn marked_step(address: u64) -> Option<usize> {
    let number = usize::try_from(address).ok()?;
    (number % MARK_STRIDE == 0 && (1..=SCRIPT.len()).contains(&(number / MARK_STRIDE)))
        .then(|| number / MARK_STRIDE - 1)
}

/// madvise(2) wants whole pages; no page of Linux is larger.
const MARK_STRIDE: usize = 64 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_freed_once_and_after_they_were_made() {
        let mut made = [false; BLOCKS];
        for action in SCRIPT {
            match action {
                Act::Begin => {}
                Act::Malloc { block, .. } => assert!(!std::mem::replace(&mut made[block], true)),
                Act::Free { block } => assert!(std::mem::replace(&mut made[block], false)),
            }
        }
        assert_eq!(made.iter().filter(|made| **made).count(), 5);
    }

    #[test]
    fn every_mark_is_known_again_and_nothing_else_is() {
        for step in 0..SCRIPT.len() {
            assert_eq!(marked_step(mark(step) as u64), Some(step));
        }
        for foreign in [0, 1, 4096, 65_537, mark(SCRIPT.len()) as u64, u64::MAX] {
            assert_eq!(marked_step(foreign), None);
        }
    }
}
