//! Which live blocks of a heap a program can still reach, and which are lost: nothing points to them any more.
//!
//! A block is reachable if a word that lies in a register, in memory that is no heap, or in a reachable block is an address
//! within it. Words are looked at where pointers may lie, at multiples of 8. So a block that is called lost is lost, unless
//! the program hides its pointers (compressed, encoded, in a file); one that is called reachable may be lost, since a number
//! may look like an address, and words that are no longer used may still hold one.

use crate::allocator::walk::LiveBlock;
use crate::allocator::walk::Memory;

/// Bytes read at once.
const PIECE: usize = 256 << 10;
const WORD: u64 = 8;

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Search {
    /// The lost blocks, by address.
    pub(super) lost: Vec<LiveBlock>,
    /// Why not everything was searched, and so nothing is known to be lost.
    pub(super) stopped: Option<String>,
}

/// Searches for pointers to `blocks`: from `registers` and from the memory in `roots`, pieces of address space by first
/// address and the one behind the last. Reads `most_bytes` at most.
pub(super) fn search(
    mut blocks: Vec<LiveBlock>,
    registers: &[u64],
    roots: &[(u64, u64)],
    memory: &impl Memory,
    most_bytes: u64,
) -> Search {
    blocks.sort_unstable_by_key(|block| block.address);
    let mut searcher = Searcher {
        reached: vec![false; blocks.len()],
        blocks: &blocks,
        to_look_at: Vec::new(),
        left: most_bytes,
        piece: vec![0; PIECE],
    };
    for register in registers {
        searcher.word(*register);
    }
    let finished = roots
        .iter()
        .all(|(start, end)| searcher.stretch(*start, *end, memory))
        && searcher.follow(memory);
    if !finished {
        return Search {
            lost: Vec::new(),
            stopped: Some(format!(
                "the program has more than {} MiB of memory in which pointers may be",
                most_bytes >> 20
            )),
        };
    }
    let reached = searcher.reached;
    Search {
        lost: blocks
            .into_iter()
            .zip(reached)
            .filter(|(_, reached)| !reached)
            .map(|(block, _)| block)
            .collect(),
        stopped: None,
    }
}

struct Searcher<'a> {
    /// By address.
    blocks: &'a [LiveBlock],
    reached: Vec<bool>,
    /// Reached blocks whose contents were not looked at.
    to_look_at: Vec<usize>,
    left: u64,
    piece: Vec<u8>,
}

impl Searcher<'_> {
    /// Looks at a word, which may be an address.
    fn word(&mut self, word: u64) {
        let (Some(first), Some(last)) = (self.blocks.first(), self.blocks.last()) else {
            return;
        };
        if word < first.address || word - last.address.min(word) > last.size {
            return;
        }
        let after = self.blocks.partition_point(|block| block.address <= word);
        let Some(index) = after.checked_sub(1) else {
            return;
        };
        let block = self.blocks[index];
        // A block of no bytes has an address all the same.
        if word - block.address < block.size.max(1) && !self.reached[index] {
            self.reached[index] = true;
            self.to_look_at.push(index);
        }
    }

    /// Looks at the words of a stretch of memory; what cannot be read holds no pointers. `false` when that would be too
    /// much.
    fn stretch(&mut self, start: u64, end: u64, memory: &impl Memory) -> bool {
        let mut at = start.next_multiple_of(WORD);
        while at < end {
            let length = (end - at).min(PIECE as u64);
            if length > self.left {
                return false;
            }
            self.left -= length;
            let mut piece = std::mem::take(&mut self.piece);
            let bytes = usize::try_from(length).unwrap_or(PIECE).min(PIECE);
            if memory.read(at, &mut piece[..bytes]) {
                self.words(&piece[..bytes]);
            } else {
                self.by_pages(at, &mut piece[..bytes], memory);
            }
            self.piece = piece;
            at += length;
        }
        true
    }

    /// As [`Self::stretch`], where something in it cannot be read.
    fn by_pages(&mut self, start: u64, piece: &mut [u8], memory: &impl Memory) {
        const PAGE: usize = 4096;
        let mut at = 0;
        while at < piece.len() {
            let address = start + at as u64;
            let to_page_end = PAGE - usize::try_from(address % PAGE as u64).unwrap_or(0);
            let end = (at + to_page_end).min(piece.len());
            if memory.read(address, &mut piece[at..end]) {
                let (read, from) = (end - at, at);
                let page = piece[from..from + read].to_vec();
                self.words(&page);
            }
            at = end;
        }
    }

    fn words(&mut self, bytes: &[u8]) {
        let (words, _) = bytes.as_chunks::<8>();
        for word in words {
            self.word(u64::from_le_bytes(*word));
        }
    }

    /// Looks into all blocks that were reached.
    fn follow(&mut self, memory: &impl Memory) -> bool {
        while let Some(index) = self.to_look_at.pop() {
            let block = self.blocks[index];
            let end = block.address.saturating_add(block.size);
            if !self.stretch(block.address, end - block.size % WORD, memory) {
                return false;
            }
        }
        true
    }
}

/// What is left of `stretches` without `holes`.
pub(super) fn without(stretches: &[(u64, u64)], holes: &[(u64, u64)]) -> Vec<(u64, u64)> {
    let mut holes: Vec<(u64, u64)> = holes
        .iter()
        .copied()
        .filter(|(start, end)| start < end)
        .collect();
    holes.sort_unstable();
    let mut left = Vec::new();
    for (start, end) in stretches {
        let mut at = *start;
        for (hole, hole_end) in &holes {
            if *hole_end <= at {
                continue;
            }
            if *hole >= *end {
                break;
            }
            if *hole > at {
                left.push((at, *hole));
            }
            at = at.max(*hole_end);
        }
        if at < *end {
            left.push((at, *end));
        }
    }
    left
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from an address on; a page of it cannot be read.
    struct Words(u64, Vec<u64>, Option<u64>);

    impl Memory for Words {
        fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
            let end = address + bytes.len() as u64;
            if let Some(bad) = self.2
                && address < bad + 4096
                && end > bad
            {
                return false;
            }
            let all: Vec<u8> = self.1.iter().flat_map(|word| word.to_le_bytes()).collect();
            let Some(from) = address
                .checked_sub(self.0)
                .map(|from| usize::try_from(from).unwrap())
            else {
                return false;
            };
            match all.get(from..from + bytes.len()) {
                Some(found) => {
                    bytes.copy_from_slice(found);
                    true
                }
                None => false,
            }
        }
    }

    fn block(address: u64, size: u64) -> LiveBlock {
        LiveBlock {
            address,
            size,
            is_sample: false,
        }
    }

    fn lost(search: &Search) -> Vec<u64> {
        assert_eq!(search.stopped, None);
        search.lost.iter().map(|block| block.address).collect()
    }

    #[test]
    fn blocks_are_reached_through_others_and_rings_without_a_way_in_are_lost() {
        // A root points into the first block, which points to the second; the third and fourth point to each other.
        let mut words = vec![0; 100];
        words[0] = 0x1000 + 8 * 20 + 3;
        words[21] = 0x1000 + 8 * 30;
        words[40] = 0x1000 + 8 * 50;
        words[50] = 0x1000 + 8 * 40;
        let memory = Words(0x1000, words, None);
        let at = |index: u64| 0x1000 + 8 * index;
        let blocks = vec![
            block(at(30), 0),
            block(at(20), 16),
            block(at(40), 8),
            block(at(50), 8),
            block(at(60), 24),
        ];
        let roots = [(0x1000, at(10))];
        let found = search(blocks.clone(), &[], &roots, &memory, 1 << 20);
        assert_eq!(lost(&found), [at(40), at(50), at(60)]);
        let found = search(
            blocks.clone(),
            &[at(50), at(60) + 23],
            &roots,
            &memory,
            1 << 20,
        );
        assert!(lost(&found).is_empty());
        // Behind its end is another one's, or nobody's.
        let found = search(blocks, &[at(60) + 24], &roots, &memory, 1 << 20);
        assert_eq!(lost(&found), [at(40), at(50), at(60)]);
    }

    #[test]
    fn what_cannot_be_read_holds_no_pointers_and_what_is_too_much_is_said() {
        let mut words = vec![0; 2048];
        words[0] = 0x9_0000;
        words[600] = 0x9_1000;
        words[1100] = 0x9_2000;
        let memory = Words(0x1_0000, words, Some(0x1_1000));
        let blocks = vec![block(0x9_0000, 8), block(0x9_1000, 8), block(0x9_2000, 8)];
        let roots = [(0x1_0000, 0x1_4000)];
        let found = search(blocks.clone(), &[], &roots, &memory, 1 << 20);
        assert_eq!(lost(&found), [0x9_1000]);
        let found = search(blocks, &[], &roots, &memory, 1 << 10);
        assert!(found.lost.is_empty() && found.stopped.is_some());
    }

    #[test]
    fn holes_are_left_out() {
        let stretches = [(0, 10), (20, 30)];
        assert_eq!(without(&stretches, &[]), stretches);
        assert_eq!(
            without(&stretches, &[(25, 26), (5, 22), (30, 40), (7, 7)]),
            [(0, 5), (22, 25), (26, 30)]
        );
        assert_eq!(without(&stretches, &[(0, 100)]), []);
    }
}
