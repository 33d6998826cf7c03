//! Which blocks of a program's heap something still leads to, when the program has ended and its memory is still there.
//!
//! A word leads to a block if its value is an address in it: of its start, or of its inside. Words are looked at where
//! compilers put pointers, at multiples of their size, and whatever has such a value counts, also what is no pointer. So a
//! block that is *lost* has no aligned word in all the memory that was searched which leads to it from anywhere but
//! other lost blocks; a block that is *reachable* may be so by chance. Valgrind's memcheck judges in the same way, and its
//! words are used here (its manual, "Memory leak detection").
//!
//! A pointer that is kept in another form (compressed, xored, in a file, in another process) is not seen.

use std::collections::HashMap;

use crate::allocator::walk::LiveBlock;
use crate::allocator::walk::Memory;

/// Bytes of a pointer.
const WORD: u64 = 8;
/// Bytes read at once where there are many.
const CHUNK: u64 = 256 << 10;
/// What is kept of the heap, so that small blocks that lie together are read together.
const PAGE: u64 = 4096;
const KEPT_PAGES: u64 = 16 << 10;
/// Blocks from this size on are read past the kept pages, and only where they were ever written.
const BIG: u64 = 256 << 10;
/// Blocks that are looked at together when one is searched for.
const GROUP: usize = 64;

/// What leads to a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Reach {
    /// Nothing.
    #[default]
    Lost,
    /// Only another block that is lost.
    Indirectly,
    /// A chain of pointers of which one leads to the inside of a block.
    Possibly,
    /// A chain of pointers to the starts of blocks.
    Reachable,
}

/// A program's memory.
pub(super) trait Image: Memory {
    /// The parts of a range that were ever written, or may have been; all others hold what no pointer comes from.
    fn written(&self, start: u64, end: u64) -> Vec<(u64, u64)>;
}

/// What came of a search.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Reached {
    /// For each block.
    pub(super) reach: Vec<Reach>,
    /// Bytes that were searched.
    pub(super) read_bytes: u64,
    /// Bytes that should have been, and cannot be read.
    pub(super) unread_bytes: u64,
}

/// Where a search begins.
#[derive(Debug, Default)]
pub(super) struct Roots {
    /// Memory outside of the heap.
    pub(super) memory: Vec<(u64, u64)>,
    /// What threads have in registers.
    pub(super) words: Vec<u64>,
}

/// Finds out what leads to each of `blocks`, which are sorted and do not overlap. `None` when more bytes would have to be
/// read than `most_bytes`.
pub(super) fn search(
    blocks: &[LiveBlock],
    roots: &Roots,
    image: &impl Image,
    most_bytes: u64,
) -> Option<Reached> {
    let mut search = Search {
        blocks,
        groups: blocks
            .iter()
            .step_by(GROUP)
            .map(|block| block.address)
            .collect(),
        lowest: blocks.first().map_or(u64::MAX, |block| block.address),
        behind: blocks.last().map_or(0, |block| end(*block)),
        reach: vec![Reach::Lost; blocks.len()],
        image,
        pages: HashMap::new(),
        left: most_bytes,
        read_bytes: 0,
        unread_bytes: 0,
        words: Vec::new(),
        to_scan: Vec::new(),
        possible: Vec::new(),
    };
    search.run(roots).ok()?;
    Some(Reached {
        reach: search.reach,
        read_bytes: search.read_bytes,
        unread_bytes: search.unread_bytes,
    })
}

/// A block of no bytes is where its pointer leads.
fn end(block: LiveBlock) -> u64 {
    block.address.saturating_add(block.size.max(1))
}

/// A page of the heap.
struct KeptPage {
    number: u64,
    /// `None` if it cannot be read.
    bytes: Option<Box<[u8]>>,
}

/// A length that fits a buffer.
fn length(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

/// More would have to be read than allowed.
struct TooMuch;

struct Search<'a, I> {
    blocks: &'a [LiveBlock],
    /// Where every so many blocks begin.
    groups: Vec<u64>,
    lowest: u64,
    behind: u64,
    reach: Vec<Reach>,
    image: &'a I,
    /// Latest pages of the heap, by number modulo how many are kept.
    pages: HashMap<u64, KeptPage>,
    left: u64,
    read_bytes: u64,
    unread_bytes: u64,
    /// Room for the words of a block.
    words: Vec<u64>,
    /// Blocks that were reached by what is looked at now, and whose contents were not looked at.
    to_scan: Vec<usize>,
    /// Blocks to whose inside a reachable word leads.
    possible: Vec<usize>,
}

impl<I: Image> Search<'_, I> {
    fn run(&mut self, roots: &Roots) -> Result<(), TooMuch> {
        for word in &roots.words {
            self.reached(*word);
        }
        for (start, end) in &roots.memory {
            self.read_written(*start, *end, Self::reached)?;
        }
        while let Some(index) = self.to_scan.pop() {
            self.contents(index, Self::reached)?;
        }
        self.follow_possible()?;
        self.tell_lost_apart()
    }

    /// The block that a word leads to, and whether to its start.
    fn find(&self, word: u64) -> Option<(usize, bool)> {
        if word < self.lowest || word >= self.behind {
            return None;
        }
        // Most of what a search through all blocks would look at is in no processor's cache.
        let group = self.groups.partition_point(|start| *start <= word);
        let first = group.checked_sub(1)? * GROUP;
        let behind = (first + GROUP).min(self.blocks.len());
        let index = first
            + self.blocks[first..behind]
                .partition_point(|block| block.address <= word)
                .checked_sub(1)?;
        let block = self.blocks[index];
        (word < end(block)).then_some((index, word == block.address))
    }

    /// A word in a root, or in a reachable block.
    fn reached(&mut self, word: u64) {
        let Some((index, is_start)) = self.find(word) else {
            return;
        };
        if self.reach[index] == Reach::Reachable {
            return;
        }
        if is_start {
            self.reach[index] = Reach::Reachable;
            self.to_scan.push(index);
        } else if self.reach[index] == Reach::Lost {
            self.reach[index] = Reach::Possibly;
            self.possible.push(index);
        }
    }

    /// What may be reachable leads to more that may be.
    fn follow_possible(&mut self) -> Result<(), TooMuch> {
        self.to_scan = std::mem::take(&mut self.possible);
        // Some were reached by their starts after all.
        let reach = &self.reach;
        self.to_scan
            .retain(|index| reach[*index] == Reach::Possibly);
        while let Some(index) = self.to_scan.pop() {
            self.contents(index, |search, word| {
                if let Some((index, _)) = search.find(word)
                    && search.reach[index] == Reach::Lost
                {
                    search.reach[index] = Reach::Possibly;
                    search.to_scan.push(index);
                }
            })?;
        }
        Ok(())
    }

    /// Of the lost blocks, those to which another one leads go with it. Of blocks in a ring one is taken for the first.
    fn tell_lost_apart(&mut self) -> Result<(), TooMuch> {
        for first in 0..self.blocks.len() {
            if self.reach[first] != Reach::Lost {
                continue;
            }
            self.to_scan.push(first);
            while let Some(index) = self.to_scan.pop() {
                self.contents(index, |search, word| {
                    if let Some((index, _)) = search.find(word)
                        && index != first
                        && search.reach[index] == Reach::Lost
                    {
                        search.reach[index] = Reach::Indirectly;
                        // One before this was followed when its turn came.
                        if index > first {
                            search.to_scan.push(index);
                        }
                    }
                })?;
            }
        }
        Ok(())
    }

    /// Looks at the words in a block.
    fn contents(&mut self, index: usize, seen: impl Fn(&mut Self, u64)) -> Result<(), TooMuch> {
        let block = self.blocks[index];
        let end = block.address.saturating_add(block.size);
        if block.size >= BIG {
            return self.read_written(block.address, end, seen);
        }
        let mut at = block.address.next_multiple_of(WORD);
        while end.saturating_sub(at) >= WORD {
            let stop = ((at | (PAGE - 1)) + 1).min(end);
            let from = length(at % PAGE);
            let behind = from + length(stop - at);
            let mut words = std::mem::take(&mut self.words);
            words.clear();
            match self.page(at / PAGE)? {
                Some(bytes) => {
                    let (chunks, _) = bytes[from..behind].as_chunks::<8>();
                    words.extend(chunks.iter().map(|word| u64::from_ne_bytes(*word)));
                }
                None => self.unread_bytes += stop - at,
            }
            self.read_bytes += 8 * words.len() as u64;
            for word in &words {
                seen(self, *word);
            }
            self.words = words;
            at = stop.next_multiple_of(WORD);
        }
        Ok(())
    }

    /// A page of the heap; `None` if it cannot be read.
    fn page(&mut self, number: u64) -> Result<Option<&[u8]>, TooMuch> {
        let slot = number % KEPT_PAGES;
        if self
            .pages
            .get(&slot)
            .is_none_or(|kept| kept.number != number)
        {
            self.spend(PAGE)?;
            let old = self.pages.remove(&slot).and_then(|kept| kept.bytes);
            let mut bytes = old.unwrap_or_else(|| vec![0; length(PAGE)].into_boxed_slice());
            let is_read = self.image.read(number * PAGE, &mut bytes);
            let bytes = is_read.then_some(bytes);
            self.pages.insert(slot, KeptPage { number, bytes });
        }
        Ok(self.pages.get(&slot).and_then(|kept| kept.bytes.as_deref()))
    }

    /// Looks at the words in a range, where it was ever written.
    fn read_written(
        &mut self,
        start: u64,
        end: u64,
        seen: impl Fn(&mut Self, u64),
    ) -> Result<(), TooMuch> {
        let mut buffer = Vec::new();
        for (start, end) in self.image.written(start, end) {
            let mut at = start.next_multiple_of(WORD);
            while end.saturating_sub(at) >= WORD {
                let bytes = (end - at).min(CHUNK) & !(WORD - 1);
                self.spend(bytes)?;
                self.chunk(at, bytes, &mut buffer, &seen);
                at += bytes;
            }
        }
        Ok(())
    }

    /// Looks at the words in a range that is not too long, by pages where it cannot be read as a whole.
    fn chunk(
        &mut self,
        start: u64,
        bytes: u64,
        buffer: &mut Vec<u8>,
        seen: &impl Fn(&mut Self, u64),
    ) {
        buffer.resize(length(bytes), 0);
        if self.image.read(start, buffer) {
            self.read_bytes += bytes;
            self.words(buffer, seen);
            return;
        }
        let end = start + bytes;
        let mut at = start;
        while at < end {
            let stop = ((at | (PAGE - 1)) + 1).min(end);
            let part = &mut buffer[..length(stop - at)];
            if self.image.read(at, part) {
                self.read_bytes += stop - at;
                self.words(part, seen);
            } else {
                self.unread_bytes += stop - at;
            }
            at = stop;
        }
    }

    fn words(&mut self, bytes: &[u8], seen: &impl Fn(&mut Self, u64)) {
        let (words, _) = bytes.as_chunks::<8>();
        for word in words {
            let word = u64::from_ne_bytes(*word);
            // Most lead nowhere.
            if (self.lowest..self.behind).contains(&word) {
                seen(self, word);
            }
        }
    }

    fn spend(&mut self, bytes: u64) -> Result<(), TooMuch> {
        self.left = self.left.checked_sub(bytes).ok_or(TooMuch)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAP: u64 = 0x10_0000;
    const DATA: u64 = 0x1000;

    /// A heap and data before it.
    struct Fake {
        data: Vec<u8>,
        heap: Vec<u8>,
        blocks: Vec<LiveBlock>,
        unreadable: Option<u64>,
    }

    impl Memory for Fake {
        fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
            let range = address..address + bytes.len() as u64;
            if self.unreadable.is_some_and(|page| range.contains(&page)) {
                return false;
            }
            let (part, start) = match address {
                HEAP.. => (&self.heap, HEAP),
                _ => (&self.data, DATA),
            };
            let Some(offset) = address.checked_sub(start) else {
                return false;
            };
            let found = part.get(length(offset)..length(offset) + bytes.len());
            found.map(|found| bytes.copy_from_slice(found)).is_some()
        }
    }

    fn live_block(address: u64, size: u64, is_sample: bool) -> LiveBlock {
        LiveBlock {
            address,
            size,
            is_sample,
        }
    }

    impl Image for Fake {
        fn written(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
            vec![(start, end)]
        }
    }

    impl Fake {
        /// With blocks of these sizes, 16 bytes apart.
        fn with(sizes: &[u64]) -> Self {
            let mut at = HEAP + 16;
            let mut blocks = Vec::new();
            for size in sizes {
                blocks.push(live_block(at, *size, false));
                at = (at + size + 16).next_multiple_of(16);
            }
            Self {
                data: vec![0; 3 * length(PAGE)],
                heap: vec![0; length((at - HEAP).next_multiple_of(PAGE))],
                blocks,
                unreadable: None,
            }
        }

        fn write(&mut self, address: u64, word: u64) {
            let (part, start) = match address {
                HEAP.. => (&mut self.heap, HEAP),
                _ => (&mut self.data, DATA),
            };
            let at = length(address - start);
            part[at..at + 8].copy_from_slice(&word.to_ne_bytes());
        }

        /// Writes a pointer to `offset` in a block into another one.
        fn link(&mut self, from: usize, to: usize, offset: u64) {
            let (from, to) = (self.blocks[from].address, self.blocks[to].address);
            self.write(from + 8, to + offset);
        }

        fn root(&mut self, place: u64, to: usize, offset: u64) {
            let to = self.blocks[to].address + offset;
            self.write(DATA + place, to);
        }

        fn search(&self) -> Reached {
            let roots = Roots {
                memory: vec![(DATA, DATA + self.data.len() as u64)],
                words: Vec::new(),
            };
            search(&self.blocks, &roots, self, u64::MAX).unwrap()
        }
    }

    use Reach::Indirectly;
    use Reach::Lost;
    use Reach::Possibly;
    use Reach::Reachable;

    #[test]
    fn chains_from_data_are_reachable_and_what_nothing_leads_to_is_lost() {
        let mut fake = Fake::with(&[100, 100, 100, 0, 100, 7]);
        fake.root(64, 0, 0);
        fake.link(0, 1, 0);
        fake.root(PAGE, 3, 0);
        let reach = fake.search().reach;
        assert_eq!(reach, [Reachable, Reachable, Lost, Reachable, Lost, Lost]);
    }

    #[test]
    fn a_pointer_to_the_inside_makes_a_chain_doubtful_and_one_behind_the_end_counts_for_nothing() {
        let mut fake = Fake::with(&[100, 100, 96, 100]);
        fake.root(0, 0, 99);
        fake.link(0, 1, 0);
        fake.root(8, 2, 96);
        fake.root(16, 3, 50);
        fake.root(24, 3, 0);
        let reach = fake.search().reach;
        assert_eq!(reach, [Possibly, Possibly, Lost, Reachable]);
    }

    #[test]
    fn what_doubtful_blocks_lead_to_may_be_reachable_by_another_way() {
        let mut fake = Fake::with(&[100, 100, 100]);
        fake.root(0, 0, 8);
        fake.link(0, 1, 0);
        fake.root(8, 2, 0);
        fake.link(2, 1, 0);
        assert_eq!(fake.search().reach, [Possibly, Reachable, Reachable]);
        // The same with the doubtful word first.
        fake.link(2, 0, 0);
        assert_eq!(fake.search().reach, [Reachable, Reachable, Reachable]);
    }

    #[test]
    fn lost_blocks_take_with_them_what_only_they_lead_to() {
        let mut fake = Fake::with(&[100; 6]);
        // A list whose first member comes last, and a ring.
        fake.link(2, 1, 0);
        fake.link(1, 0, 0);
        fake.link(3, 4, 0);
        fake.link(4, 5, 8);
        fake.link(5, 3, 0);
        let reach = fake.search().reach;
        assert_eq!(reach[2], Lost);
        assert_eq!(reach[..2], [Indirectly; 2]);
        assert_eq!(reach[3..], [Lost, Indirectly, Indirectly]);
    }

    #[test]
    fn registers_and_big_blocks_lead_on() {
        let mut fake = Fake::with(&[100, 2 * BIG, 100]);
        fake.write(fake.blocks[1].address + BIG + 808, fake.blocks[2].address);
        let roots = Roots {
            memory: Vec::new(),
            words: vec![fake.blocks[1].address],
        };
        let reached = search(&fake.blocks, &roots, &fake, u64::MAX).unwrap();
        assert_eq!(reached.reach, [Lost, Reachable, Reachable]);
        assert_eq!(search(&fake.blocks, &roots, &fake, BIG), None);
    }

    #[test]
    fn unaligned_words_are_no_pointers_and_pages_that_cannot_be_read_are_counted() {
        let mut fake = Fake::with(&[100, 100]);
        fake.root(3, 0, 0);
        fake.root(2 * PAGE + 8, 1, 0);
        fake.unreadable = Some(DATA + PAGE);
        let reached = fake.search();
        assert_eq!(reached.reach, [Lost, Reachable]);
        assert_eq!(reached.unread_bytes, PAGE);
        assert!(reached.read_bytes >= 2 * PAGE);
    }

    #[test]
    fn blocks_across_pages_are_looked_at_whole() {
        let mut fake = Fake::with(&[3000, 3000, 9000, 64]);
        fake.root(0, 2, 0);
        let last = fake.blocks[2].address + 9000 - 8;
        fake.write(last, fake.blocks[3].address);
        let first = fake.blocks[2].address;
        fake.write(first, fake.blocks[1].address);
        let over = fake.blocks[1].address.next_multiple_of(PAGE) - 8;
        fake.write(over, fake.blocks[0].address);
        assert_eq!(fake.search().reach, [Reachable; 4]);
    }

    #[test]
    fn random_graphs_are_judged_as_by_their_definition() {
        let mut state = 12_345_u64;
        let mut random = |below: u64| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) % below
        };
        for _ in 0..300 {
            let count = 2 + length(random(30));
            let mut fake = Fake::with(&vec![64; count]);
            let mut edges = Vec::new();
            for place in 0..random(count as u64) {
                let from = (random(4) != 0).then(|| length(random(count as u64)));
                let (to, inside) = (length(random(count as u64)), 8 * random(2));
                let target = fake.blocks[to].address + inside;
                match from {
                    Some(from) => {
                        let at = fake.blocks[from].address + 8 * random(8);
                        fake.write(at, target);
                    }
                    None => fake.write(DATA + 8 * place, target),
                }
            }
            // What is in memory now, as overwritten words are no edges.
            for (from, block) in fake.blocks.iter().enumerate() {
                for at in 0..8 {
                    let mut bytes = [0; 8];
                    assert!(fake.read(block.address + 8 * at, &mut bytes));
                    let word = u64::from_ne_bytes(bytes);
                    edges.extend(lead(&fake, word).map(|(to, start)| (Some(from), to, start)));
                }
            }
            for place in 0..count as u64 {
                let mut bytes = [0; 8];
                assert!(fake.read(DATA + 8 * place, &mut bytes));
                let word = u64::from_ne_bytes(bytes);
                edges.extend(lead(&fake, word).map(|(to, start)| (None, to, start)));
            }
            let by_start = closure(count, &edges, true);
            let by_any = closure(count, &edges, false);
            for (index, reach) in fake.search().reach.into_iter().enumerate() {
                match reach {
                    Reachable => assert!(by_start[index]),
                    Possibly => assert!(by_any[index] && !by_start[index]),
                    Lost => assert!(!by_any[index]),
                    Indirectly => {
                        assert!(!by_any[index]);
                        let is_led_to = |(from, to, _): &(Option<usize>, usize, bool)| {
                            *to == index && from.is_some_and(|from| from != index)
                        };
                        assert!(edges.iter().any(is_led_to));
                    }
                }
            }
        }
    }

    fn lead(fake: &Fake, word: u64) -> Option<(usize, bool)> {
        let found = |block: &LiveBlock| (block.address..block.address + block.size).contains(&word);
        let index = fake.blocks.iter().position(found)?;
        Some((index, fake.blocks[index].address == word))
    }

    fn closure(count: usize, edges: &[(Option<usize>, usize, bool)], starts: bool) -> Vec<bool> {
        let mut reached = vec![false; count];
        for _ in 0..=count {
            for (from, to, is_start) in edges {
                if from.is_none_or(|from| reached[from]) && (*is_start || !starts) {
                    reached[*to] = true;
                }
            }
        }
        reached
    }
}
