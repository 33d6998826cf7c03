//! A growth for a chunk: what is known of the chunk's size, and the sum that the growth is.

use super::ALIGNMENT;
use super::OVERHEAD;
use super::SMALLEST;
use super::term;
use crate::event::SizeCandidate;
use crate::report::StepTerm;
use crate::report::StepTermKind as Kind;

/// Candidates that are kept with a step.
const KEPT_CANDIDATES: usize = 8;

/// chunk + pad + smallest − left − already open + rounding
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Growth {
    pub(super) pad: u64,
    pub(super) left: u64,
    pub(super) already_open: u64,
    /// What the growth is rounded up to.
    pub(super) rounding: Kind,
    /// Smallest and largest size of the chunk.
    bounds: (u64, u64),
    candidates: [Option<SizeCandidate>; KEPT_CANDIDATES],
}

/// The chunk that a request for so many bytes takes (`checked_request2size`).
pub(super) fn chunk_for(request: u64) -> u64 {
    (request.saturating_add(OVERHEAD + ALIGNMENT - 1) & !(ALIGNMENT - 1)).max(SMALLEST)
}

impl Growth {
    /// One that obtained what chunk, pad and smallest chunk need beyond what was left, rounded up to `unit`: `bytes` in all.
    /// `None` where that cannot be.
    pub(super) fn of(bytes: u64, unit: u64, pad: u64, left: u64) -> Option<Self> {
        let most = bytes
            .checked_add(left)?
            .checked_sub(pad.checked_add(SMALLEST)?)
            .filter(|most| *most >= SMALLEST)?;
        Some(Self {
            pad,
            left,
            already_open: 0,
            rounding: Kind::PageRounding,
            bounds: (
                most.saturating_sub(unit - 1)
                    .max(SMALLEST)
                    .next_multiple_of(ALIGNMENT),
                most & !(ALIGNMENT - 1),
            ),
            candidates: [None; KEPT_CANDIDATES],
        })
    }

    /// The same, with words of the stack that may be the size.
    pub(super) fn with(mut self, candidates: &[SizeCandidate]) -> Self {
        for (place, candidate) in self.candidates.iter_mut().zip(candidates) {
            *place = Some(*candidate);
        }
        self
    }

    /// Smallest and largest size that the chunk can have.
    pub(super) fn bounds(&self) -> (u64, u64) {
        self.bounds
    }

    /// The words that may be the chunk's size.
    pub(super) fn sizes(&self) -> impl Iterator<Item = SizeCandidate> + '_ {
        let (least, most) = self.bounds;
        self.candidates
            .iter()
            .flatten()
            .copied()
            .filter(move |candidate| {
                (least..=most).contains(&candidate.bytes)
                    && candidate.bytes.is_multiple_of(ALIGNMENT)
            })
    }

    /// The words that may be what was asked for, when this is the chunk.
    pub(super) fn requests_for(&self, chunk: u64) -> impl Iterator<Item = SizeCandidate> + '_ {
        self.candidates
            .iter()
            .flatten()
            .copied()
            .filter(move |word| word.bytes != chunk && chunk_for(word.bytes) == chunk)
    }

    /// The sum; `None` where there is none, as with numbers that no program has.
    pub(super) fn terms(&self, bytes: u64, chunk: Option<u64>) -> Option<Vec<StepTerm>> {
        // What is not chunk or rounding is known.
        let both = bytes
            .checked_add(self.left)?
            .checked_add(self.already_open)?
            .checked_sub(self.pad.checked_add(SMALLEST)?)?;
        let mut terms = match chunk {
            Some(chunk) => vec![
                term(Kind::Chunk, chunk, false)?,
                term(self.rounding, both.checked_sub(chunk)?, false)?,
            ],
            None => vec![term(Kind::ChunkAndRounding, both, false)?],
        };
        terms.extend([
            term(Kind::TopPad, self.pad, false)?,
            term(Kind::SmallestChunk, SMALLEST, false)?,
            term(Kind::LeftInTop, self.left, true)?,
            term(Kind::AlreadyOpen, self.already_open, true)?,
        ]);
        terms.retain(|term| term.bytes != 0);
        Some(terms)
    }
}
