//! The moves of a break, or of anonymous memory: all when few, the telling ones when many.

use std::collections::BTreeMap;
use std::collections::VecDeque;

use super::calls::Call;
use super::explain::Explanation;
use super::explain::Malloc;
use crate::event::AllocatorCall;
use crate::event::StackId;
use crate::report;
use crate::report::StepAllocator;
use crate::report::StepFigures;
use crate::units::Address;
use crate::units::Timestamp;

/// How many of the first moves are kept.
const FIRST: usize = 32;
/// How many of the last moves are kept.
const LAST: usize = 32;
/// How many of the largest moves are kept.
const LARGEST: usize = 64;

/// One move.
#[derive(Clone, Copy, Debug)]
pub(super) struct Step {
    pub(super) time: Timestamp,
    pub(super) tid: u32,
    pub(super) call: Call,
    pub(super) delta: i64,
    pub(super) after: u64,
    pub(super) from: Address,
    pub(super) to: Address,
    /// Why the bundled allocator did it, if it was its doing.
    pub(super) allocator: Option<StepAllocator>,
    pub(super) stack: Option<StackId>,
    /// Why glibc's malloc did it.
    pub(super) explanation: Option<Explanation>,
}

/// What is known of a call of the bundled allocator's before its figures are read.
pub(super) fn marked(call: AllocatorCall) -> StepAllocator {
    StepAllocator {
        cause: call.cause,
        request_bytes: call.request_bytes,
        figures: None,
    }
}

/// A move and its number, from 1.
type Numbered = (u64, Step);

/// The first moves, the last and the largest.
#[derive(Clone, Debug, Default)]
pub(super) struct StepLog {
    total: u64,
    first: Vec<Numbered>,
    /// Only what is not among the first.
    last: VecDeque<Numbered>,
    /// In no order.
    largest: Vec<Numbered>,
    /// Where the smallest of `largest` is, once that is full.
    smallest: usize,
}

impl StepLog {
    /// Adds the next move.
    pub(super) fn push(&mut self, step: Step) {
        self.total += 1;
        let numbered = (self.total, step);
        self.keep_if_large(numbered);
        if self.first.len() < FIRST {
            self.first.push(numbered);
            return;
        }
        if self.last.len() == LAST {
            self.last.pop_front();
        }
        self.last.push_back(numbered);
    }

    /// How many moves there were: the number of the last.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Adds the allocator's figures to the move with this number, where it is kept.
    pub(super) fn add_figures(&mut self, number: u64, figures: StepFigures) {
        let kept = self.first.iter_mut().chain(self.last.iter_mut());
        for (_, step) in kept
            .chain(self.largest.iter_mut())
            .filter(|(kept, _)| *kept == number)
        {
            if let Some(allocator) = &mut step.allocator {
                allocator.figures = Some(figures);
            }
        }
    }

    /// Among equals the earlier one stays: only a move larger than the smallest kept one takes its place.
    fn keep_if_large(&mut self, numbered: Numbered) {
        if self.largest.len() < LARGEST {
            self.largest.push(numbered);
        } else if magnitude(numbered) > magnitude(self.largest[self.smallest]) {
            self.largest[self.smallest] = numbered;
        } else {
            return;
        }
        if self.largest.len() == LARGEST {
            // Of equally small ones the latest goes first.
            self.smallest = (0..LARGEST)
                .min_by_key(|&index| {
                    let kept = self.largest[index];
                    (magnitude(kept), std::cmp::Reverse(kept.0))
                })
                .unwrap_or_default();
        }
    }

    /// What was kept, in order and each once, with what malloc's arithmetic explains of it.
    pub(super) fn kept(&self, malloc: Option<&Malloc>) -> Vec<report::Step> {
        let all = self.first.iter().chain(&self.last).chain(&self.largest);
        let by_number: BTreeMap<u64, Step> = all.copied().collect();
        by_number
            .into_iter()
            .map(|(number, step)| report::Step {
                number,
                time_ns: step.time,
                tid: step.tid,
                call: step.call.name().to_owned(),
                delta_bytes: step.delta,
                after_bytes: step.after,
                from: step.from,
                to: step.to,
                allocator: step.allocator,
                stack: step.stack,
                explanation: malloc
                    .zip(step.explanation.as_ref())
                    .map(|(malloc, explanation)| malloc.resolve(explanation)),
            })
            .collect()
    }

    /// Gives back spare room; called when no more moves are expected.
    pub(super) fn shrink(&mut self) {
        self.first.shrink_to_fit();
        self.last.shrink_to_fit();
        self.largest.shrink_to_fit();
    }
}

fn magnitude((_, step): Numbered) -> u64 {
    step.delta.unsigned_abs()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(deltas: impl IntoIterator<Item = i64>) -> StepLog {
        let mut log = StepLog::default();
        for delta in deltas {
            log.push(Step {
                time: Timestamp(0),
                tid: 1,
                call: Call::Brk,
                delta,
                after: 0,
                from: Address(0),
                to: Address(0),
                allocator: None,
                stack: None,
                explanation: None,
            });
        }
        log
    }

    fn numbers(log: &StepLog) -> Vec<u64> {
        log.kept(None).iter().map(|step| step.number).collect()
    }

    #[test]
    fn few_moves_are_all_kept() {
        assert_eq!(numbers(&log([1; 64])), (1..=64).collect::<Vec<_>>());
    }

    #[test]
    fn of_many_moves_the_first_the_last_and_the_largest_remain() {
        let log = log((0..10_000).map(|index| match index {
            5_000..5_064 => -1_000_000,
            _ => 4096,
        }));
        let expected: Vec<u64> = (1..=32)
            .chain(5_001..=5_064)
            .chain(9_969..=10_000)
            .collect();
        assert_eq!(numbers(&log), expected);
    }

    #[test]
    fn among_equals_the_earlier_moves_remain() {
        let expected: Vec<u64> = (1..=64).chain(969..=1_000).collect();
        assert_eq!(numbers(&log([4096; 1_000])), expected);
    }

    #[test]
    fn a_larger_move_replaces_the_latest_of_the_smallest() {
        let log = log(std::iter::repeat_n(1, 200)
            .chain([50])
            .chain(std::iter::repeat_n(1, 200)));
        let numbers = numbers(&log);
        assert!(numbers.contains(&201) && numbers.contains(&63) && !numbers.contains(&64));
    }
}
