//! Samples of one address space's blocks: who asked for them, and which are not freed.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::sync::Arc;

use super::growth::Owner;
use crate::event::SampledBlock;
use crate::report::SampleSum;
use crate::report::SampledStack;
use crate::report::Samples;
use crate::units::Address;

/// Most live samples that are followed; later ones count as requested only.
const MOST_LIVE: usize = 1 << 20;
/// Most freed blocks that are remembered, for errors about them.
const MOST_FREED: usize = 1 << 16;
/// Most stacks that are told apart.
const MOST_STACKS: usize = 1 << 14;
/// Most stacks that a report lists.
const MOST_LISTED: usize = 1000;
/// Estimated blocks are counted in parts, so that their sum does not depend on its order.
const PARTS: u64 = 1024;

/// A live sample.
#[derive(Clone, Copy, Debug)]
struct Live {
    owner: Owner,
    size: u64,
}

/// Samples, and what they stand for, in whole parts.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    bytes: u64,
    block_parts: u64,
    samples: u64,
    sampled_bytes: u64,
}

impl Sum {
    fn add(&mut self, size: u64, interval: u64) {
        let (bytes, parts) = estimate(size, interval);
        self.bytes = self.bytes.saturating_add(bytes);
        self.block_parts = self.block_parts.saturating_add(parts);
        self.samples += 1;
        self.sampled_bytes = self.sampled_bytes.saturating_add(size);
    }

    fn join(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.block_parts = self.block_parts.saturating_add(other.block_parts);
        self.samples += other.samples;
        self.sampled_bytes = self.sampled_bytes.saturating_add(other.sampled_bytes);
    }

    fn report(self) -> SampleSum {
        SampleSum {
            estimated_bytes: self.bytes,
            estimated_blocks: self.block_parts.saturating_add(PARTS / 2) / PARTS,
            samples: self.samples,
            sampled_bytes: self.sampled_bytes,
        }
    }
}

/// Bytes, and parts of blocks, that a sample of `size` bytes stands for.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "estimates need few digits, and are positive; casts from floating point saturate"
)]
fn estimate(size: u64, interval: u64) -> (u64, u64) {
    if interval <= 1 {
        return (size, PARTS);
    }
    // One byte has the chance that it has; a log that is not ours may say anything.
    let chance = -f64::exp_m1(-(size.max(1) as f64) / interval as f64);
    let bytes = (size as f64 / chance).round() as u64;
    let parts = (PARTS as f64 / chance).round() as u64;
    (bytes, parts)
}

/// Where a block was allocated, and where it was freed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    pub(super) allocated: Owner,
    pub(super) freed: Owner,
}

/// See the module's description.
#[derive(Clone, Debug, Default)]
pub(super) struct SampleLog {
    interval: u64,
    requested: HashMap<Owner, Sum>,
    /// What belongs to stacks beyond those that are told apart.
    others: Sum,
    /// Shared with forked children until one of the two changes it.
    live: Arc<HashMap<u64, Live>>,
    /// What was live when the address space ended.
    settled: HashMap<Owner, Sum>,
    /// What of it was lost, if that was searched.
    lost: Option<HashMap<Owner, Sum>>,
    not_followed: u64,
    /// Freed blocks, if every block is a sample; the oldest are forgotten.
    freed: HashMap<u64, History>,
    order: VecDeque<u64>,
}

impl SampleLog {
    /// What a forked child begins with: the blocks of its parent.
    pub(super) fn forked(&self) -> Self {
        Self {
            interval: self.interval,
            live: Arc::clone(&self.live),
            freed: self.freed.clone(),
            order: self.order.clone(),
            ..Self::default()
        }
    }

    /// A block was handed out.
    pub(super) fn sampled(&mut self, block: SampledBlock, owner: Owner) {
        self.interval = block.interval_bytes;
        let size = block.size_bytes;
        let sum = if self.requested.len() < MOST_STACKS || self.requested.contains_key(&owner) {
            self.requested.entry(owner).or_default()
        } else {
            &mut self.others
        };
        sum.add(size, self.interval);
        self.freed.remove(&block.address.0);
        if self.live.len() < MOST_LIVE || self.live.contains_key(&block.address.0) {
            Arc::make_mut(&mut self.live).insert(block.address.0, Live { owner, size });
        } else {
            self.not_followed += 1;
        }
    }

    /// A sample was freed.
    pub(super) fn freed(&mut self, address: Address, owner: Owner) {
        if !self.live.contains_key(&address.0) {
            return;
        }
        let Some(live) = Arc::make_mut(&mut self.live).remove(&address.0) else {
            return;
        };
        if self.interval != 1 {
            // The address may be that of a block that is no sample by the time of an error.
            return;
        }
        let history = History {
            allocated: live.owner,
            freed: owner,
        };
        if self.freed.insert(address.0, history).is_none() {
            self.order.push_back(address.0);
        }
        while self.order.len() > MOST_FREED {
            if let Some(oldest) = self.order.pop_front() {
                self.freed.remove(&oldest);
            }
        }
    }

    /// What is known of the block at this address.
    pub(super) fn history(&self, address: Address) -> History {
        match self.live.get(&address.0) {
            Some(live) => History {
                allocated: live.owner,
                freed: None,
            },
            None => self.freed.get(&address.0).copied().unwrap_or_default(),
        }
    }

    /// These of the live samples are lost, and no others.
    pub(super) fn lost(&mut self, addresses: &[Address]) {
        let mut lost: HashMap<Owner, Sum> = HashMap::new();
        for address in addresses {
            if let Some(block) = self.live.get(&address.0) {
                lost.entry(block.owner)
                    .or_default()
                    .add(block.size, self.interval);
            }
        }
        self.lost = Some(lost);
    }

    /// The address space has ended: its blocks are added up, and no longer told apart.
    pub(super) fn settle(&mut self) {
        self.settled = self.live_by_owner();
        self.live = Arc::default();
        self.freed = HashMap::new();
        self.order = VecDeque::new();
    }

    /// Keeps no more than how much there was in all.
    pub(super) fn drop_detail(&mut self) {
        self.settle();
        for sum in std::mem::take(&mut self.requested).into_values() {
            self.others.join(sum);
        }
        let live = std::mem::take(&mut self.settled);
        let mut all = Sum::default();
        live.into_values().for_each(|sum| all.join(sum));
        self.settled.insert(None, all);
        if let Some(lost) = &mut self.lost {
            let mut all = Sum::default();
            lost.drain().for_each(|(_, sum)| all.join(sum));
            lost.insert(None, all);
        }
    }

    fn live_by_owner(&self) -> HashMap<Owner, Sum> {
        let mut live = self.settled.clone();
        for block in self.live.values() {
            live.entry(block.owner)
                .or_default()
                .add(block.size, self.interval);
        }
        live
    }

    /// What the samples tell; `None` if there were none.
    pub(super) fn report(&self) -> Option<Samples> {
        let live = self.live_by_owner();
        if self.requested.is_empty() && self.others.samples == 0 && live.is_empty() {
            return None;
        }
        let mut owners: Vec<Owner> = self.requested.keys().chain(live.keys()).copied().collect();
        owners.sort_unstable();
        owners.dedup();
        let of = |sums: &HashMap<Owner, Sum>, owner| sums.get(&owner).copied().unwrap_or_default();
        let mut by_stack: Vec<(Owner, Sum, Sum)> = owners
            .into_iter()
            .map(|owner| (owner, of(&self.requested, owner), of(&live, owner)))
            .collect();
        // Stable: equals stay in order of their numbers.
        by_stack.sort_by_key(|(_, requested, live)| Reverse((live.bytes, requested.bytes)));
        let rest = by_stack.split_off(MOST_LISTED.min(by_stack.len()));
        let total = |sums: &[(Owner, Sum, Sum)]| {
            let (mut requested, mut live) = (Sum::default(), Sum::default());
            for (_, one, other) in sums {
                requested.join(*one);
                live.join(*other);
            }
            (requested, live)
        };
        let (mut requested, mut all_live) = total(&by_stack);
        let (mut rest_requested, rest_live) = total(&rest);
        rest_requested.join(self.others);
        requested.join(rest_requested);
        all_live.join(rest_live);
        Some(Samples {
            interval_bytes: self.interval,
            requested: requested.report(),
            live: all_live.report(),
            lost: self.lost.as_ref().map(|lost| {
                let mut all = Sum::default();
                lost.values().for_each(|sum| all.join(*sum));
                all.report()
            }),
            not_followed: self.not_followed,
            by_stack: by_stack
                .into_iter()
                .map(|(stack, requested, live)| SampledStack {
                    stack,
                    requested: requested.report(),
                    live: live.report(),
                    lost: self.lost.as_ref().map(|lost| of(lost, stack).report()),
                })
                .collect(),
            left_out_requested: rest_requested.report(),
            left_out_live: rest_live.report(),
            paths: Vec::new(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::StackId;

    fn block(address: u64, size: u64, interval: u64) -> SampledBlock {
        SampledBlock {
            address: Address(address),
            size_bytes: size,
            interval_bytes: interval,
        }
    }

    const ONE: Owner = Some(StackId(1));
    const TWO: Owner = Some(StackId(2));

    #[test]
    fn with_every_block_a_sample_all_is_exact() {
        let mut log = SampleLog::default();
        log.sampled(block(16, 100, 1), ONE);
        log.sampled(block(32, 0, 1), TWO);
        log.sampled(block(64, 7, 1), TWO);
        log.freed(Address(64), ONE);
        log.freed(Address(80), ONE);
        let report = log.report().unwrap();
        assert_eq!(report.requested.estimated_bytes, 107);
        assert_eq!(report.requested.estimated_blocks, 3);
        assert_eq!(report.live.estimated_blocks, 2);
        assert_eq!(report.by_stack[0].stack, ONE);
        assert_eq!(report.by_stack[1].live.samples, 1);
        let history = |address| log.history(Address(address));
        assert_eq!(
            history(16),
            History {
                allocated: ONE,
                freed: None
            }
        );
        assert_eq!(
            history(64),
            History {
                allocated: TWO,
                freed: ONE
            }
        );
        assert_eq!(history(80), History::default());
    }

    #[test]
    fn a_rare_sample_stands_for_many_blocks() {
        let mut log = SampleLog::default();
        log.sampled(block(16, 10, 1000), ONE);
        let live = log.report().unwrap().live;
        // 10 / (1 − exp(−0.01)) = 1005.0
        assert_eq!((live.estimated_bytes, live.estimated_blocks), (1005, 101));
        log.freed(Address(16), ONE);
        assert_eq!(log.report().unwrap().live, SampleSum::default());
        assert_eq!(log.history(Address(16)), History::default());
    }

    #[test]
    fn a_forked_child_has_the_blocks_of_its_parent_and_frees_its_own_copies() {
        let mut parent = SampleLog::default();
        parent.sampled(block(16, 100, 1), ONE);
        let mut child = parent.forked();
        child.freed(Address(16), TWO);
        child.sampled(block(32, 5, 1), TWO);
        assert_eq!(parent.report().unwrap().live.sampled_bytes, 100);
        let report = child.report().unwrap();
        assert_eq!(report.live.sampled_bytes, 5);
        assert_eq!(report.requested.sampled_bytes, 5);
    }

    #[test]
    fn what_is_kept_is_bounded_and_what_is_left_out_is_counted() {
        let mut log = SampleLog::default();
        for number in 0..u32::try_from(MOST_STACKS).unwrap() + 10 {
            let owner = Some(StackId(number));
            log.sampled(block(u64::from(number) * 16, 1, 1), owner);
            log.freed(Address(u64::from(number) * 16), owner);
        }
        assert_eq!(log.requested.len(), MOST_STACKS);
        assert!(log.freed.len() <= MOST_FREED && log.order.len() <= MOST_FREED);
        let report = log.report().unwrap();
        assert_eq!(report.by_stack.len(), MOST_LISTED);
        assert_eq!(report.requested.samples, MOST_STACKS as u64 + 10);
        let listed: u64 = report
            .by_stack
            .iter()
            .map(|one| one.requested.samples)
            .sum();
        assert_eq!(
            listed + report.left_out_requested.samples,
            report.requested.samples
        );
    }

    #[test]
    fn lost_blocks_are_a_part_of_the_live_ones() {
        let mut log = SampleLog::default();
        log.sampled(block(16, 100, 1), ONE);
        log.sampled(block(32, 7, 1), ONE);
        assert_eq!(log.report().unwrap().lost, None);
        log.lost(&[Address(32), Address(48)]);
        log.settle();
        let report = log.report().unwrap();
        assert_eq!(report.lost.unwrap().sampled_bytes, 7);
        assert_eq!(report.by_stack[0].lost.unwrap().samples, 1);
        log.drop_detail();
        assert_eq!(log.report().unwrap().lost.unwrap().sampled_bytes, 7);
    }

    #[test]
    fn an_ended_address_space_keeps_its_sums() {
        let mut log = SampleLog::default();
        log.sampled(block(16, 100, 1), ONE);
        log.sampled(block(32, 7, 1), TWO);
        let before = log.report();
        log.settle();
        assert_eq!(log.report(), before);
        log.drop_detail();
        let after = log.report().unwrap();
        let before = before.unwrap();
        assert_eq!(
            (after.requested, after.live),
            (before.requested, before.live)
        );
    }

    #[test]
    fn nonsense_of_a_damaged_log_does_no_harm() {
        let mut log = SampleLog::default();
        log.sampled(block(u64::MAX, u64::MAX, u64::MAX), None);
        log.sampled(block(0, 0, u64::MAX), None);
        log.sampled(block(0, u64::MAX, 0), None);
        assert!(log.report().is_some());
    }
}
