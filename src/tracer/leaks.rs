//! Looks for leaks when a program has ended and its memory is still there: where pointers may be, and what leads to the
//! blocks of the bundled allocator that were not freed.

use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::Tracer;
use super::proc;
use super::reachability;
use super::reachability::Image;
use super::reachability::Reach;
use super::reachability::Roots;
use super::sys;
use super::sys::StackRegisters;
use crate::allocator::walk::Limits;
use crate::allocator::walk::LiveBlock;
use crate::allocator::walk::Memory;
use crate::allocator::walk::Walk;
use crate::event::LeakSearch;
use crate::event::SizeCount;
use crate::event::SpaceId;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::units::Address;

/// Most live blocks among which lost ones are searched: some 25 bytes of ours for each, and as much for a copy.
const MOST_BLOCKS: usize = 1 << 24;
/// Most bytes that one reads, and as many for the walk before it.
const MOST_BYTES: u64 = 16 << 30;
/// Most pages of which it asks whether they were written.
const MOST_PAGES: u64 = 1 << 26;
/// Sizes that are told.
const MOST_SIZES: usize = 16;
/// What a function without calls may use below the stack pointer (System V ABI, AMD64 supplement, 3.2.2); other
/// architectures have less.
const RED_ZONE: u64 = 128;

/// How far the walk through the heap goes before the search.
pub(super) fn limits() -> Limits {
    Limits {
        bytes: MOST_BYTES,
        blocks: MOST_BLOCKS,
        ..Limits::default()
    }
}

impl Tracer {
    /// Keeps the registers of a thread that is about to end, if it ends because its process does: what it works with is
    /// not given up, then.
    pub(super) fn keep_last_registers(&mut self, tid: u32) {
        if !self.options.leaks {
            return;
        }
        let call = sys::call_in_registers(tid).map(|(number, _)| number);
        if call == u64::try_from(nix::libc::SYS_exit).ok() {
            return;
        }
        let space = self.tracees.space_of(tid);
        if let Some(space) = space.and_then(|space| self.tracees.spaces.get_mut(&space)) {
            space.last_registers.extend(sys::stack_registers(tid));
        }
    }

    /// Looks for what leads to the blocks of a heap that was looked through; `records` is where the allocator keeps what it
    /// knows. The address space stands still.
    pub(super) fn seek_leaks(
        &self,
        tid: u32,
        space: SpaceId,
        mappings: &[Mapping],
        walk: &Walk,
        records: Vec<(u64, u64)>,
    ) -> LeakSearch {
        let stopped = |why: String| LeakSearch {
            stopped: Some(why),
            ..LeakSearch::default()
        };
        if let Some(why) = walk.stopped {
            return stopped(format!("not all blocks are known: {why}"));
        }
        if walk.blocks.len() as u64 != walk.live_blocks {
            return stopped(format!(
                "there are {} live blocks, and more than {MOST_BLOCKS} are not searched",
                walk.live_blocks
            ));
        }
        let library = self
            .library
            .as_ref()
            .and_then(|library| library_memory(mappings, library.path(), library.memory_bytes()));
        let mut own = records;
        own.extend(walk.spans.iter().copied().chain(library));
        own.sort_unstable();
        let mut blocks = walk.blocks.clone();
        blocks.sort_unstable_by_key(|block| block.address);
        let image = ProcessImage::open(tid, mappings);
        let registers = self
            .tracees
            .spaces
            .get(&space)
            .map_or(&[][..], |space| &space.last_registers);
        let roots = Roots {
            memory: root_memory(mappings, &own, registers, image.pages.is_some()),
            words: registers
                .iter()
                .flat_map(|registers| registers.by_number)
                .collect(),
        };
        let Some(mut reached) = reachability::search(&blocks, &roots, &image, MOST_BYTES) else {
            return stopped(format!(
                "the program has more than {} GiB of memory in which pointers may be",
                MOST_BYTES >> 30
            ));
        };
        reached.unread_bytes = reached.unread_bytes.saturating_add(image.passed_over.get());
        found(&blocks, &reached)
    }
}

/// What a search comes to.
fn found(blocks: &[LiveBlock], reached: &reachability::Reached) -> LeakSearch {
    let [mut lost, mut indirectly, mut possibly] = [(0, 0_u64); 3];
    let mut lost_samples = Vec::new();
    let mut sizes: BTreeMap<u64, u64> = BTreeMap::new();
    for (block, reach) in blocks.iter().zip(&reached.reach) {
        let count = |(blocks, bytes): &mut (u64, u64)| {
            *blocks += 1;
            *bytes = bytes.saturating_add(block.size);
        };
        match reach {
            Reach::Reachable => continue,
            Reach::Possibly => {
                count(&mut possibly);
                continue;
            }
            Reach::Indirectly => count(&mut indirectly),
            Reach::Lost => {}
        }
        count(&mut lost);
        *sizes.entry(block.size).or_default() += 1;
        if block.is_sample {
            lost_samples.push(Address(block.address));
        }
    }
    let mut largest: Vec<SizeCount> = sizes
        .into_iter()
        .map(|(size_bytes, blocks)| SizeCount { size_bytes, blocks })
        .collect();
    largest.sort_by_key(|size| Reverse(size.size_bytes.saturating_mul(size.blocks)));
    largest.truncate(MOST_SIZES);
    LeakSearch {
        complete: true,
        stopped: None,
        lost_blocks: lost.0,
        lost_bytes: lost.1,
        indirectly_lost_blocks: Some(indirectly.0),
        indirectly_lost_bytes: Some(indirectly.1),
        possibly_lost_blocks: Some(possibly.0),
        possibly_lost_bytes: Some(possibly.1),
        searched_bytes: Some(reached.read_bytes),
        unreadable_bytes: Some(reached.unread_bytes),
        largest,
        lost_samples,
    }
}

/// Where the allocator's library lies: it remembers blocks, and that is no use of them. Its zeroed data is mapped behind its
/// file, without a name.
fn library_memory(mappings: &[Mapping], path: &Path, bytes: u64) -> Option<(u64, u64)> {
    let first = mappings
        .iter()
        .find(|mapping| mapping.name.as_deref().map(Path::new) == Some(path))?;
    Some((first.start.0, first.start.0.saturating_add(bytes)))
}

/// The memory outside of the heap in which pointers may be: all that can be read but what is shared and read only, without
/// what belongs to the heap, and without the part of the stack that is no longer in use.
fn root_memory(
    mappings: &[Mapping],
    own: &[(u64, u64)],
    registers: &[StackRegisters],
    knows_pages: bool,
) -> Vec<(u64, u64)> {
    let mut roots = Vec::new();
    for mapping in mappings {
        let may_hold_pointers = match mapping.kind() {
            MappingKind::Kernel => false,
            MappingKind::Heap | MappingKind::Stack | MappingKind::Anonymous => true,
            // What was written before it was made read only, if it is known which pages were.
            MappingKind::File => mapping.permissions.write || knows_pages,
            MappingKind::Shared => mapping.permissions.write,
        };
        if !may_hold_pointers || !mapping.permissions.read {
            continue;
        }
        let (mut start, end) = (mapping.start.0, mapping.end.0);
        if mapping.kind() == MappingKind::Stack {
            let lowest = registers
                .iter()
                .map(StackRegisters::stack_pointer)
                .filter(|pointer| (start..end).contains(pointer))
                .min();
            start = lowest.map_or(start, |pointer| pointer.saturating_sub(RED_ZONE).max(start));
        }
        outside((start, end), own, &mut roots);
    }
    roots
}

/// The parts of a range that are in none of `own`, which are sorted.
fn outside((start, end): (u64, u64), own: &[(u64, u64)], parts: &mut Vec<(u64, u64)>) {
    let mut at = start;
    for (own_start, own_end) in own {
        if *own_start >= end {
            break;
        }
        if *own_start > at {
            parts.push((at, *own_start));
        }
        at = at.max(*own_end);
    }
    if at < end {
        parts.push((at, end));
    }
}

/// Pages in `/proc/<pid>/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;
/// The page is that of a file, or shared.
const OF_FILE: u64 = 1 << 61;
/// Entries read at once.
const ENTRIES: usize = 8192;

/// The memory of a process that stands still.
struct ProcessImage {
    tid: u32,
    memory: Option<File>,
    /// `pagemap`; `None` where it is not to be had.
    pages: Option<File>,
    page_size: u64,
    /// Mappings that others may write to.
    shared: Vec<(u64, u64)>,
    pages_left: Cell<u64>,
    /// Bytes of which nobody was asked whether they were written, as there is too much of them.
    passed_over: Cell<u64>,
}

impl ProcessImage {
    fn open(tid: u32, mappings: &[Mapping]) -> Self {
        Self {
            tid,
            memory: File::open(format!("/proc/{tid}/mem")).ok(),
            pages: File::open(format!("/proc/{tid}/pagemap")).ok(),
            page_size: proc::page_size(),
            shared: mappings
                .iter()
                .filter(|mapping| mapping.permissions.shared)
                .map(|mapping| (mapping.start.0, mapping.end.0))
                .collect(),
            pages_left: Cell::new(MOST_PAGES),
            passed_over: Cell::new(0),
        }
    }

    fn is_shared(&self, address: u64) -> bool {
        let index = self.shared.partition_point(|(start, _)| *start <= address);
        index > 0 && address < self.shared[index - 1].1
    }

    /// Adds the parts of a range in whose pages something was written; `None` if they cannot be told.
    fn add_written(&self, start: u64, end: u64, parts: &mut Vec<(u64, u64)>) -> Option<()> {
        let pages = self.pages.as_ref()?;
        let passed_over = if self.is_shared(start) { 0 } else { OF_FILE };
        let mut buffer = vec![0; 8 * ENTRIES];
        let mut page = start / self.page_size;
        let behind = end.div_ceil(self.page_size);
        while page < behind {
            let wanted = usize::try_from(behind - page).map_or(ENTRIES, |left| left.min(ENTRIES));
            let bytes = &mut buffer[..8 * wanted];
            pages.read_exact_at(bytes, page * 8).ok()?;
            let (entries, _) = bytes.as_chunks::<8>();
            for (entry, page) in entries.iter().zip(page..) {
                let entry = u64::from_ne_bytes(*entry);
                if entry & (PRESENT | SWAPPED) == 0 || entry & passed_over != 0 {
                    continue;
                }
                let from = (page * self.page_size).max(start);
                let to = ((page + 1) * self.page_size).min(end);
                match parts.last_mut() {
                    Some((_, last)) if *last == from => *last = to,
                    _ => parts.push((from, to)),
                }
            }
            page += entries.len() as u64;
        }
        Some(())
    }
}

impl Memory for ProcessImage {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        // The file also has what the program itself may not read; the call is faster.
        sys::read_memory(self.tid, address, bytes) == Ok(bytes.len())
            || self
                .memory
                .as_ref()
                .is_some_and(|memory| memory.read_exact_at(bytes, address).is_ok())
    }
}

impl Image for ProcessImage {
    fn written(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let pages = end.saturating_sub(start).div_ceil(self.page_size) + 1;
        let Some(left) = self.pages_left.get().checked_sub(pages) else {
            let passed_over = self.passed_over.get();
            self.passed_over
                .set(passed_over.saturating_add(end.saturating_sub(start)));
            return Vec::new();
        };
        self.pages_left.set(left);
        let mut parts = Vec::new();
        match self.add_written(start, end, &mut parts) {
            Some(()) => parts,
            None => vec![(start, end)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping;

    fn registers(stack_pointer: u64) -> StackRegisters {
        let mut registers = StackRegisters {
            instruction_pointer: 0,
            by_number: [0; StackRegisters::COUNT],
        };
        registers.by_number[StackRegisters::STACK_POINTER] = stack_pointer;
        registers
    }

    const MAPS: &[u8] = b"1000-2000 r--p 00000000 08:02 9 /bin/x\n\
        2000-3000 rw-p 00001000 08:02 9 /bin/x\n\
        5000-9000 rw-p 00000000 00:00 0 [heap]\n\
        a000-b000 ---p 00000000 00:00 0 \n\
        b000-c000 rw-s 00000000 08:02 7 /x\n\
        c000-d000 r--s 00000000 08:02 8 /y\n\
        f0000-ff000 rw-p 00000000 00:00 0 [stack]\n\
        fff000-1000000 r-xp 00000000 00:00 0 [vdso]\n";

    #[test]
    fn roots_are_what_may_hold_pointers_and_is_not_the_heaps() {
        let mappings = mapping::parse(MAPS);
        let own = [(0x4000, 0x5100), (0x5100, 0x5800), (0x6000, 0x7000)];
        let stacks = [registers(0xf_8100), registers(0xf_8080), registers(0x5000)];
        let roots = root_memory(&mappings, &own, &stacks, true);
        assert_eq!(
            roots,
            [
                (0x1000, 0x2000),
                (0x2000, 0x3000),
                (0x5800, 0x6000),
                (0x7000, 0x9000),
                (0xb000, 0xc000),
                (0xf_8000, 0xf_f000),
            ]
        );
        let roots = root_memory(&mappings, &[(0, u64::MAX)], &[], false);
        assert_eq!(roots, []);
        // Without registers, all of the stack; without knowledge of pages, no file that is only read.
        let roots = root_memory(&mappings, &[], &[], false);
        assert_eq!(roots[0], (0x2000, 0x3000));
        assert_eq!(roots.last(), Some(&(0xf_0000, 0xf_f000)));
    }

    #[test]
    fn written_pages_of_our_own_are_found_and_read() {
        let page = proc::page_size();
        let bytes = usize::try_from(page).unwrap();
        let mut memory = vec![0_u8; 64 * bytes];
        let first = memory.as_ptr().expose_provenance();
        let start = first.next_multiple_of(bytes);
        memory[start - first + 40 * bytes + 8] = 77;
        let start = start as u64;
        let image = ProcessImage::open(std::process::id(), &[]);
        assert!(image.pages.is_some());
        let parts = image.written(start, start + 48 * page);
        let written = start + 40 * page;
        assert!(
            parts
                .iter()
                .any(|(from, to)| (*from..*to).contains(&written))
        );
        assert!(parts.iter().all(|(from, to)| start <= *from && from < to));
        let mut byte = [0];
        assert!(image.read(written + 8, &mut byte));
        assert_eq!(byte, [77]);
        assert!(!image.read(0, &mut byte));
        // The library of functions is mapped privately, and not written to.
        let code = written_pages_of_our_own_are_found_and_read as *const ();
        let code = (code.expose_provenance() as u64) & !(page - 1);
        assert_eq!(image.written(code, code + page), []);
    }

    #[test]
    fn what_is_too_much_to_ask_about_is_counted() {
        let image = ProcessImage::open(std::process::id(), &[]);
        let bytes = MOST_PAGES * image.page_size;
        assert_eq!(image.written(0, bytes), []);
        assert_eq!(image.passed_over.get(), bytes);
    }

    #[test]
    fn lost_blocks_are_counted_with_those_that_only_they_lead_to() {
        let blocks: Vec<LiveBlock> = (1..9)
            .map(|index| LiveBlock {
                address: index * 64,
                size: index,
                is_sample: index % 2 == 0,
            })
            .collect();
        let reached = reachability::Reached {
            reach: [
                Reach::Lost,
                Reach::Indirectly,
                Reach::Possibly,
                Reach::Reachable,
            ]
            .repeat(2),
            read_bytes: 5,
            unread_bytes: 6,
        };
        let search = found(&blocks, &reached);
        assert_eq!((search.lost_blocks, search.lost_bytes), (4, 1 + 2 + 5 + 6));
        assert_eq!(search.indirectly_lost_bytes, Some(2 + 6));
        assert_eq!(search.possibly_lost_bytes, Some(3 + 7));
        assert_eq!(search.largest[0].size_bytes, 6);
        assert_eq!(search.lost_samples, [Address(128), Address(384)]);
        assert_eq!(search.unreadable_bytes, Some(6));
    }
}
