//! Growth by stack, held against an account of every page that is kept beside it.

use std::collections::BTreeMap;

use super::tests::FRESH;
use super::tests::HIGH;
use super::tests::NONE;
use super::tests::PAGE;
use super::tests::PRIVATE;
use super::tests::READ_WRITE;
use super::tests::START;
use super::tests::Story;
use super::tests::recording;
use super::*;
use crate::event::Frame;
use crate::event::ModuleId;
use crate::event::RemapFlags;
use crate::event::SnapshotReason;
use crate::event::Stack;
use crate::event::StackId;
use crate::event_log::EventLog;
use crate::report::Growth;
use crate::report::SpaceReport;
use crate::report::to_json;
use crate::units::Address;

/// Pages that the random programs map and unmap.
const PAGES: u64 = 200;
/// Smallest step of their breaks, in bytes. No multiple of a page, as breaks need not be.
const UNIT: u64 = 48;
/// Usable bytes of `FRESH`.
const FRESH_USABLE: u64 = 0x4000;

/// Numbers that are the same in each run (Marsaglia, "Xorshift RNGs").
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}

type Who = Option<StackId>;

/// A page that the program has mapped.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Page {
    usable: bool,
    owner: Who,
}

/// What calls of one stack did, and whose bytes are whose, counted in the plainest way.
#[derive(Clone, Debug, Default)]
struct Ledger {
    pages: BTreeMap<u64, Page>,
    /// The owner of each unit of the heap, from its start on.
    heap: Vec<Who>,
    /// (grown bytes, calls, returned bytes, calls) of the break, and of anonymous memory.
    calls: BTreeMap<Who, [(u64, u64, u64, u64); 2]>,
}

impl Ledger {
    fn usable(&self) -> u64 {
        self.pages.values().filter(|page| page.usable).count() as u64 * PAGE
    }

    fn owned(&self, who: Who) -> u64 {
        let is_theirs = |page: &&Page| page.usable && page.owner == who;
        self.pages.values().filter(is_theirs).count() as u64 * PAGE
    }

    /// A copy for a new process, in which nothing has an owner.
    fn forked(&self) -> Self {
        let mut copy = Self {
            pages: self.pages.clone(),
            heap: vec![None; self.heap.len()],
            calls: BTreeMap::new(),
        };
        for page in copy.pages.values_mut() {
            page.owner = None;
        }
        copy
    }

    fn move_break(&mut self, who: Who, units: usize) {
        let [of_break, _] = self.calls.entry(who).or_default();
        let before = self.heap.len();
        if units > before {
            of_break.0 += (units - before) as u64 * UNIT;
            of_break.1 += 1;
        } else if units < before {
            of_break.2 += (before - units) as u64 * UNIT;
            of_break.3 += 1;
        }
        self.heap.resize(units, who);
    }

    /// Counts what a call did to the pages: by how much it made its caller's larger, by how much all smaller.
    fn change(&mut self, who: Who, change: impl FnOnce(&mut BTreeMap<u64, Page>)) {
        let (all, own) = (self.usable(), self.owned(who));
        change(&mut self.pages);
        let more = match who {
            Some(_) => self.owned(who).saturating_sub(own),
            None => self.usable().saturating_sub(all),
        };
        let less = all.saturating_sub(self.usable());
        let [_, anonymous] = self.calls.entry(who).or_default();
        if more > 0 {
            anonymous.0 += more;
            anonymous.1 += 1;
        }
        if less > 0 {
            anonymous.2 += less;
            anonymous.3 += 1;
        }
    }

    #[track_caller]
    fn expect(&self, space: &SpaceReport) {
        let mut listed: BTreeMap<Who, (Growth, Growth)> = BTreeMap::new();
        for one in &space.growth {
            let pair = (one.program_break, one.anonymous);
            assert!(listed.insert(one.stack, pair).is_none(), "listed twice");
        }
        let has_done_something =
            |calls: &[(u64, u64, u64, u64); 2]| calls.iter().any(|calls| calls.1 + calls.3 > 0);
        for (who, calls) in &self.calls {
            let Some((told_break, told_anonymous)) = listed.remove(who) else {
                let is_said_with_stacks_only = space.growth.is_empty() && who.is_none();
                assert!(
                    is_said_with_stacks_only || !has_done_something(calls),
                    "{who:?}"
                );
                continue;
            };
            let [of_break, anonymous] = calls;
            let four = |growth: &Growth| {
                (
                    growth.grown_bytes,
                    growth.grow_calls,
                    growth.returned_bytes,
                    growth.return_calls,
                )
            };
            assert_eq!(four(&told_break), *of_break, "break, {who:?}");
            assert_eq!(four(&told_anonymous), *anonymous, "anonymous, {who:?}");
            if who.is_some() {
                let heap = self.heap.iter().filter(|owner| *owner == who).count() as u64 * UNIT;
                assert_eq!(told_break.net_bytes, heap, "{who:?}");
                assert_eq!(told_anonymous.net_bytes, self.owned(*who), "{who:?}");
                for told in [told_break, told_anonymous] {
                    assert_eq!(told.grown_bytes, told.net_bytes + told.shrunk_bytes);
                }
            }
        }
        assert!(
            listed.keys().all(Option::is_none),
            "stacks that did nothing: {listed:?}"
        );
        expect_sums(space);
        assert_eq!(
            space.program_break.end_bytes,
            Some(self.heap.len() as u64 * UNIT)
        );
        assert_eq!(space.anonymous.end_bytes, FRESH_USABLE + self.usable());
    }
}

/// The figures of all stacks add up to those of the address space.
#[track_caller]
fn expect_sums(space: &SpaceReport) {
    if space.growth.is_empty() {
        return;
    }
    let of_break = |of: fn(&Growth) -> u64| {
        let all = space.growth.iter().map(|one| of(&one.program_break));
        all.sum::<u64>()
    };
    let anonymous = |of: fn(&Growth) -> u64| {
        let all = space.growth.iter().map(|one| of(&one.anonymous));
        all.sum::<u64>()
    };
    let heap = &space.program_break;
    assert_eq!(of_break(|growth| growth.grown_bytes), heap.grown_bytes);
    assert_eq!(of_break(|growth| growth.grow_calls), heap.grow_calls);
    assert_eq!(of_break(|growth| growth.returned_bytes), heap.shrunk_bytes);
    assert_eq!(of_break(|growth| growth.return_calls), heap.shrink_calls);
    assert_eq!(
        Some(of_break(|growth| growth.net_bytes)),
        space.program_break.end_bytes
    );
    let all = &space.anonymous;
    assert_eq!(anonymous(|growth| growth.returned_bytes), all.shrunk_bytes);
    assert_eq!(anonymous(|growth| growth.return_calls), all.shrink_calls);
    assert_eq!(anonymous(|growth| growth.net_bytes), all.end_bytes);
    // What is mapped over other stacks' memory is growth of theirs, and none of all.
    assert!(anonymous(|growth| growth.grown_bytes) >= all.grown_bytes);
}

fn place(page: u64) -> u64 {
    HIGH + page * PAGE
}

/// A process of a random program, and what is known of it beside the model.
struct Process {
    pid: u32,
    space: u32,
    ledger: Ledger,
}

/// Makes a random call of a process, in the model and in its ledger.
fn call(story: &mut Story, process: &mut Process, random: &mut Random) {
    story.in_process(process.pid, process.space);
    let who = match random.below(9) {
        0 => None,
        stack => Some(StackId(u32::try_from(stack).unwrap())),
    };
    story.stack = who;
    let ledger = &mut process.ledger;
    let first = random.below(PAGES);
    let count = 1 + random.below(20);
    let range = first..first + count;
    match random.below(10) {
        0..=2 => {
            let before = START + ledger.heap.len() as u64 * UNIT;
            let units = usize::try_from(random.below(4000)).unwrap();
            let after = START + units as u64 * UNIT;
            story.brk(after, Some(before), after);
            ledger.move_break(who, units);
        }
        // Wherever it falls: over what is there already, as with MAP_FIXED, or not.
        3 | 4 => {
            let usable = random.below(4) > 0;
            let protection = if usable { READ_WRITE } else { NONE };
            story.mmap(place(first), count * PAGE, protection, PRIVATE);
            let owner = who.filter(|_| usable);
            ledger.change(who, |pages| {
                pages.extend(range.map(|page| (page, Page { usable, owner })));
            });
        }
        5 | 6 => {
            story.munmap(place(first), count * PAGE);
            ledger.change(who, |pages| pages.retain(|page, _| !range.contains(page)));
        }
        7 => {
            let usable = random.below(2) > 0;
            story.mprotect(
                place(first),
                count * PAGE,
                if usable { READ_WRITE } else { NONE },
            );
            ledger.change(who, |pages| {
                for (_, page) in pages.range_mut(range) {
                    if page.usable != usable {
                        let owner = who.filter(|_| usable);
                        *page = Page { usable, owner };
                    }
                }
            });
        }
        _ => remap(story, ledger, random, who, first),
    }
}

/// mremap(2) of the pages of one kind that begin here, if any: smaller, larger, elsewhere.
fn remap(story: &mut Story, ledger: &mut Ledger, random: &mut Random, who: Who, first: u64) {
    let Some(kind) = ledger.pages.get(&first).map(|page| page.usable) else {
        return;
    };
    let is_alike = |page: &u64| {
        let found = ledger.pages.get(page);
        found.is_some_and(|found| found.usable == kind)
    };
    let old = (first..).take_while(is_alike).count() as u64;
    let old = 1 + random.below(old);
    let new = 1 + random.below(30);
    // Above all others, so that nothing lies in its way, or where it was.
    let moves = random.below(2) > 0 || (new > old);
    let target = if moves {
        1000 + random.below(PAGES)
    } else {
        first
    };
    story.mremap(
        (place(first), old * PAGE),
        (place(target), new * PAGE),
        RemapFlags(1),
    );
    ledger.change(who, |pages| {
        let moved: Vec<Page> = (first..first + old)
            .filter_map(|page| pages.remove(&page))
            .collect();
        for page in target..target + new {
            pages.remove(&page);
        }
        let more = Page {
            usable: kind,
            owner: who.filter(|_| kind),
        };
        let all = moved.into_iter().chain(std::iter::repeat(more));
        pages.extend((target..target + new).zip(all));
    });
}

fn tell_of_stacks(story: &mut Story) {
    for id in 1..=8 {
        let stack = Stack {
            id: StackId(id),
            frames: vec![Frame::Code(ModuleId(1), Address(u64::from(id)))],
            truncated: None,
        };
        story.event(EventKind::StackSeen(stack));
    }
}

/// A new process, a copy of another.
fn fork(story: &mut Story, parent: &Process, number: u32) -> Process {
    story.stack = None;
    story.in_process(number, number);
    story.start(Origin::Forked, Some(parent.space));
    Process {
        pid: number,
        space: number,
        ledger: parent.ledger.forked(),
    }
}

/// A new program in a process; what the old one had is what its report must go on to say.
fn exec(story: &mut Story, process: &mut Process, number: u32) -> (u32, Ledger) {
    story.stack = None;
    let from = process.space;
    story.exec(process.pid, from, number);
    story.snapshot(SnapshotReason::Start, FRESH);
    process.space = number;
    (from, std::mem::take(&mut process.ledger))
}

#[test]
fn growth_by_stack_is_what_an_account_of_every_page_says() {
    let rounds = if std::env::var_os("BREAKTRACE_SOAK").is_some() {
        2000
    } else {
        30
    };
    for round in 1..=rounds {
        let mut random = Random(0x9e37_79b9_7f4a_7c15 ^ (round << 20));
        let mut story = Story::launched();
        tell_of_stacks(&mut story);
        let mut processes = vec![Process {
            pid: 10,
            space: 1,
            ledger: Ledger::default(),
        }];
        let mut ended: Vec<(u32, Ledger)> = Vec::new();
        let mut number = 100;
        for _ in 0..150 {
            let which = usize::try_from(random.below(processes.len() as u64)).unwrap();
            number += 1;
            match random.below(60) {
                0 => {
                    let child = fork(&mut story, &processes[which], number);
                    processes.push(child);
                }
                1 => ended.push(exec(&mut story, &mut processes[which], number)),
                2 if processes.len() > 1 => {
                    let process = processes.swap_remove(which);
                    story.stack = None;
                    story.in_process(process.pid, process.space);
                    story.end();
                    ended.push((process.space, process.ledger));
                }
                _ => call(&mut story, &mut processes[which], &mut random),
            }
        }
        let report = story.report();
        let living = processes
            .iter()
            .map(|process| (process.space, &process.ledger));
        let dead = ended.iter().map(|(space, ledger)| (*space, ledger));
        for (space, ledger) in living.chain(dead) {
            ledger.expect(report.space(SpaceId(space)).unwrap());
        }
        expect_same_replayed(&story, &report);
    }
}

#[track_caller]
fn expect_same_replayed(story: &Story, report: &Report) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("events.jsonl");
    let mut log = EventLog::create(&path, &recording()).unwrap();
    for event in &story.events {
        log.write(event).unwrap();
    }
    drop(log);
    let text = std::fs::read(&path).unwrap();
    let mut replayed = replay(text.as_slice()).unwrap().report();
    // The recording has no end, and the log's reader says so.
    replayed.notices.clone_from(&report.notices);
    assert_eq!(to_json(&replayed), to_json(report));
}

#[test]
fn of_very_many_stacks_the_later_and_the_smaller_ones_are_one_and_nothing_is_lost() {
    let mut story = Story::launched();
    let many = 6000_u64;
    for number in 0..many {
        story.stack = None;
        let id = StackId(u32::try_from(number + 1).unwrap());
        story.event(EventKind::StackSeen(Stack {
            id,
            frames: vec![Frame::Code(ModuleId(1), Address(number))],
            truncated: None,
        }));
        story.stack = Some(id);
        story.mmap(place(2 * number), PAGE, READ_WRITE, PRIVATE);
        let end = START + number * 64;
        story.brk(end + 64, Some(end), end + 64);
    }
    let space = story.space(1);
    expect_sums(&space);
    let rest = space.growth.last().unwrap();
    assert_eq!(rest.stack, None);
    assert_eq!(space.growth.len(), 1001);
    assert_eq!(rest.program_break.net_bytes, (many - 1000) * 64);
    assert_eq!(
        rest.anonymous.net_bytes,
        FRESH_USABLE + (many - 1000) * PAGE
    );
}
