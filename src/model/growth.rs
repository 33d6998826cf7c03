//! Who made memory grow, how much of it is left, and who gave memory back.

use std::collections::BTreeMap;
use std::collections::HashMap;

use crate::event::StackId;
use crate::report::Growth;
use crate::report::StackGrowth;
use crate::units::Address;

/// To whom memory belongs: the stack that made it; `None` for what has no recorded stack, and for what was there before.
pub(super) type Owner = Option<StackId>;

/// Most stacks of one address space that are told apart; the growth of others counts as that of no stack.
const MOST_OWNERS: usize = 4096;
/// Most stretches of the heap that are told apart by owner.
const MOST_STRETCHES: usize = 1 << 16;
/// Most stacks that a report lists for one address space; the rest counts as that of no stack.
const MOST_LISTED: usize = 1000;

/// What the calls of one owner did.
#[derive(Clone, Copy, Debug, Default)]
struct Calls {
    grown_bytes: u64,
    grow_calls: u64,
    returned_bytes: u64,
    return_calls: u64,
}

impl Calls {
    fn grew(&mut self, bytes: u64) {
        self.grown_bytes = self.grown_bytes.saturating_add(bytes);
        self.grow_calls += 1;
    }

    fn returned(&mut self, bytes: u64) {
        self.returned_bytes = self.returned_bytes.saturating_add(bytes);
        self.return_calls += 1;
    }

    fn add(&mut self, other: Self) {
        self.grown_bytes = self.grown_bytes.saturating_add(other.grown_bytes);
        self.grow_calls += other.grow_calls;
        self.returned_bytes = self.returned_bytes.saturating_add(other.returned_bytes);
        self.return_calls += other.return_calls;
    }

    fn growth(self, net_bytes: u64) -> Growth {
        Growth {
            grown_bytes: self.grown_bytes,
            grow_calls: self.grow_calls,
            shrunk_bytes: self.grown_bytes.saturating_sub(net_bytes),
            net_bytes,
            returned_bytes: self.returned_bytes,
            return_calls: self.return_calls,
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Account {
    program_break: Calls,
    anonymous: Calls,
}

/// A stretch of the heap.
#[derive(Clone, Copy, Debug)]
struct Stretch {
    start: Address,
    end: Address,
    owner: StackId,
}

/// How much of its memory each owner still has; what is missing to the whole has none.
#[derive(Clone, Debug, Default)]
pub(super) struct Held {
    pub(super) program_break: BTreeMap<StackId, u64>,
    pub(super) anonymous: BTreeMap<StackId, u64>,
}

/// Growth by stack of one address space.
#[derive(Clone, Debug, Default)]
pub(super) struct GrowthLog {
    accounts: HashMap<Owner, Account>,
    /// The heap's stretches with an owner, from bottom to top.
    stretches: Vec<Stretch>,
    /// What owners had when the address space ended.
    last: Option<Held>,
}

impl GrowthLog {
    /// The owner as it is told apart: of very many, the later ones are not.
    pub(super) fn admit(&self, owner: Owner) -> Owner {
        let is_known = self.accounts.contains_key(&owner);
        owner.filter(|_| is_known || self.accounts.len() < MOST_OWNERS)
    }

    fn account(&mut self, owner: Owner) -> &mut Account {
        self.accounts.entry(owner).or_default()
    }

    /// A call moved the break.
    pub(super) fn break_moved(&mut self, owner: Owner, from: Address, to: Address) {
        self.cut(from.min(to));
        if to < from {
            self.account(owner).program_break.returned(from.above(to));
            return;
        }
        let owner = owner.filter(|_| self.stretches.len() < MOST_STRETCHES);
        self.account(owner).program_break.grew(to.above(from));
        let Some(owner) = owner else { return };
        match self.stretches.last_mut() {
            Some(last) if last.owner == owner && last.end == from => last.end = to,
            _ => self.stretches.push(Stretch {
                start: from,
                end: to,
                owner,
            }),
        }
    }

    /// The heap ends here at the most.
    fn cut(&mut self, end: Address) {
        while let Some(last) = self.stretches.last_mut() {
            if last.end <= end {
                return;
            }
            if last.start < end {
                last.end = end;
                return;
            }
            self.stretches.pop();
        }
    }

    /// A call made usable anonymous memory larger.
    pub(super) fn anonymous_grew(&mut self, owner: Owner, bytes: u64) {
        self.account(owner).anonymous.grew(bytes);
    }

    /// A call made usable anonymous memory smaller.
    pub(super) fn anonymous_returned(&mut self, owner: Owner, bytes: u64) {
        self.account(owner).anonymous.returned(bytes);
    }

    /// What the heap's owners have, when it ends at `end`.
    pub(super) fn held_of_break(&self, end: Option<Address>) -> BTreeMap<StackId, u64> {
        let end = end.unwrap_or(Address(0));
        let mut held = BTreeMap::new();
        for stretch in &self.stretches {
            let bytes = stretch.end.min(end).above(stretch.start);
            *held.entry(stretch.owner).or_default() += bytes;
        }
        held
    }

    /// The address space has ended, with this in it.
    pub(super) fn end(&mut self, held: Held) {
        self.last = Some(held);
        self.stretches = Vec::new();
    }

    /// What owners had when the address space ended; `None` while it lives.
    pub(super) fn at_end(&self) -> Option<&Held> {
        self.last.as_ref()
    }

    /// Growth by stack, the largest net growth first, what has no stack last. `whole` is the size of break and anonymous
    /// memory; empty if no call has a stack.
    pub(super) fn report(&self, held: &Held, whole: (u64, u64)) -> Vec<StackGrowth> {
        if self.accounts.keys().all(Option::is_none) {
            return Vec::new();
        }
        let mut rest = self.accounts.get(&None).copied().unwrap_or_default();
        let mut listed: Vec<(StackId, Account, u64, u64)> = self
            .accounts
            .iter()
            .filter_map(|(owner, account)| {
                let stack = (*owner)?;
                let of = |held: &BTreeMap<StackId, u64>| held.get(&stack).copied().unwrap_or(0);
                Some((
                    stack,
                    *account,
                    of(&held.program_break),
                    of(&held.anonymous),
                ))
            })
            .collect();
        listed.sort_by_key(|(stack, account, of_break, of_anonymous)| {
            let net = of_break.saturating_add(*of_anonymous);
            let grown = account
                .program_break
                .grown_bytes
                .saturating_add(account.anonymous.grown_bytes);
            let returned = account
                .program_break
                .returned_bytes
                .saturating_add(account.anonymous.returned_bytes);
            (
                std::cmp::Reverse(net),
                std::cmp::Reverse(grown),
                std::cmp::Reverse(returned),
                *stack,
            )
        });
        for (_, account, ..) in listed.drain(listed.len().min(MOST_LISTED)..) {
            rest.program_break.add(account.program_break);
            rest.anonymous.add(account.anonymous);
        }
        let sum =
            |held: fn(&(StackId, Account, u64, u64)) -> u64| listed.iter().map(held).sum::<u64>();
        let unowned = StackGrowth {
            stack: None,
            program_break: rest
                .program_break
                .growth(whole.0.saturating_sub(sum(|entry| entry.2))),
            anonymous: rest
                .anonymous
                .growth(whole.1.saturating_sub(sum(|entry| entry.3))),
        };
        listed
            .iter()
            .map(|(stack, account, of_break, of_anonymous)| StackGrowth {
                stack: Some(*stack),
                program_break: account.program_break.growth(*of_break),
                anonymous: account.anonymous.growth(*of_anonymous),
            })
            .chain([unowned])
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Owner = Some(StackId(1));
    const B: Owner = Some(StackId(2));

    fn net_of_break(log: &GrowthLog, end: u64) -> Vec<(Owner, u64, u64)> {
        let held = Held {
            program_break: log.held_of_break(Some(Address(end))),
            anonymous: BTreeMap::new(),
        };
        let mut found: Vec<_> = log
            .report(&held, (end - 100, 0))
            .iter()
            .map(|growth| {
                (
                    growth.stack,
                    growth.program_break.net_bytes,
                    growth.program_break.shrunk_bytes,
                )
            })
            .collect();
        found.sort();
        found
    }

    #[test]
    fn a_fall_of_the_break_takes_from_whom_it_belongs_to() {
        let mut log = GrowthLog::default();
        log.break_moved(A, Address(100), Address(200));
        log.break_moved(B, Address(200), Address(300));
        log.break_moved(A, Address(300), Address(150));
        assert_eq!(
            net_of_break(&log, 150),
            [(None, 0, 0), (A, 50, 50), (B, 0, 100)]
        );
        let report = log.report(&Held::default(), (0, 0));
        let of_a = report.iter().find(|growth| growth.stack == A).unwrap();
        assert_eq!(
            (
                of_a.program_break.returned_bytes,
                of_a.program_break.return_calls
            ),
            (150, 1)
        );
    }

    #[test]
    fn what_was_there_before_belongs_to_nobody() {
        let mut log = GrowthLog::default();
        log.break_moved(A, Address(500), Address(600));
        assert_eq!(net_of_break(&log, 600), [(None, 400, 0), (A, 100, 0)]);
        log.break_moved(B, Address(600), Address(300));
        assert_eq!(
            net_of_break(&log, 300),
            [(None, 200, 0), (A, 0, 100), (B, 0, 0)]
        );
    }

    #[test]
    fn without_any_stack_there_is_no_growth_by_stack() {
        let mut log = GrowthLog::default();
        log.break_moved(None, Address(500), Address(600));
        assert!(log.report(&Held::default(), (100, 0)).is_empty());
    }
}
