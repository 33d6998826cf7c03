//! The heap on a kernel that refuses.

use std::alloc::Layout;
use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;

use super::*;

const PAGE: usize = 4096;
/// Part of the region that the break may take.
const BREAK_PART: usize = 2;
const SECRET: u64 = 0x1234_5678_9abc_def1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PageState {
    /// Nobody's, and zero.
    New,
    Mapped,
    /// Nobody's, and full of [`POISON`].
    Used,
}

const POISON: u8 = 0xa5;

/// What the test kernel refuses.
#[derive(Clone, Copy, Debug, Default)]
struct Refusals {
    /// All calls of these kinds.
    brk: bool,
    map: bool,
    remap: bool,
    unmap: bool,
    /// The call for memory with this number, from 1.
    nth: Option<u64>,
}

/// Gives memory from one allocation: the program break rises from its start, mappings are the first fit above.
pub(super) struct TestKernel {
    region: usize,
    length: usize,
    pages: RefCell<Vec<PageState>>,
    program_break: Cell<usize>,
    refusals: Cell<Refusals>,
    /// Calls that asked for memory.
    calls: Cell<u64>,
    announced: Cell<u64>,
    /// Live samples that were told of: address and size.
    samples: RefCell<std::collections::HashMap<usize, usize>>,
    sampled: Cell<u64>,
}

impl Drop for TestKernel {
    fn drop(&mut self) {
        // SAFETY: allocated by `new` with this layout.
        unsafe {
            std::alloc::dealloc(
                ptr::with_exposed_provenance_mut(self.region),
                Self::layout(self.length),
            );
        }
    }
}

impl TestKernel {
    fn layout(length: usize) -> Layout {
        Layout::from_size_align(length, PAGE).unwrap()
    }

    pub(super) fn new(length: usize) -> Self {
        // SAFETY: the length is not 0.
        let region = unsafe { std::alloc::alloc_zeroed(Self::layout(length)) };
        assert!(!region.is_null());
        let region = region.expose_provenance();
        Self {
            region,
            length,
            pages: RefCell::new(vec![PageState::New; length / PAGE]),
            program_break: Cell::new(region),
            refusals: Cell::new(Refusals::default()),
            calls: Cell::new(0),
            announced: Cell::new(0),
            samples: RefCell::default(),
            sampled: Cell::new(0),
        }
    }

    fn refuse(&self, change: impl FnOnce(&mut Refusals)) {
        let mut refusals = self.refusals.get();
        change(&mut refusals);
        self.refusals.set(refusals);
    }

    /// Counts a call for memory; whether it is to be refused.
    fn is_refused(&self, kind: bool) -> bool {
        self.calls.set(self.calls.get() + 1);
        kind || self.refusals.get().nth == Some(self.calls.get())
    }

    fn index(&self, address: usize) -> usize {
        (address - self.region) / PAGE
    }

    fn take_pages(&self, first: usize, end: usize) {
        let mut pages = self.pages.borrow_mut();
        for index in first..end {
            assert_ne!(pages[index], PageState::Mapped, "mapped twice");
            if pages[index] == PageState::Used {
                self.fill(index, 0);
            }
            pages[index] = PageState::Mapped;
        }
    }

    fn give_pages(&self, first: usize, end: usize) {
        let mut pages = self.pages.borrow_mut();
        for index in first..end {
            assert_eq!(
                pages[index],
                PageState::Mapped,
                "page {index} unmapped that is not mapped"
            );
            self.fill(index, POISON);
            pages[index] = PageState::Used;
        }
    }

    fn fill(&self, index: usize, value: u8) {
        let page = ptr::with_exposed_provenance_mut::<u8>(self.region + index * PAGE);
        // SAFETY: the page is in the region, and no block's.
        unsafe { page.write_bytes(value, PAGE) };
    }

    /// Moves the break and the pages with it; the callers checked that it may go there.
    fn put_break(&self, to: usize) {
        let from = self.program_break.replace(to);
        let (from, to) = (
            self.index(from.next_multiple_of(PAGE)),
            self.index(to.next_multiple_of(PAGE)),
        );
        if to > from {
            self.take_pages(from, to);
        } else {
            self.give_pages(to, from);
        }
    }

    /// Somebody else calls sbrk; the old break.
    fn foreign_sbrk(&self, change: isize) -> usize {
        let old = self.program_break.get();
        self.put_break(old.checked_add_signed(change).unwrap());
        old
    }

    fn mapped_pages(&self) -> usize {
        let pages = self.pages.borrow();
        pages
            .iter()
            .filter(|state| **state == PageState::Mapped)
            .count()
    }

    /// Start and length of each run of pages that the program has.
    pub(super) fn readable(&self) -> Vec<(usize, usize)> {
        let mut runs: Vec<(usize, usize)> = Vec::new();
        for (index, state) in self.pages.borrow().iter().enumerate() {
            let start = self.region + index * PAGE;
            if *state != PageState::Mapped {
                continue;
            }
            match runs.last_mut() {
                Some((first, length)) if *first + *length == start => *length += PAGE,
                _ => runs.push((start, PAGE)),
            }
        }
        runs
    }

    fn first_fit(&self, count: usize) -> Option<usize> {
        let pages = self.pages.borrow();
        let mut free = 0;
        for index in pages.len() / BREAK_PART..pages.len() {
            free = if pages[index] == PageState::Mapped {
                0
            } else {
                free + 1
            };
            if free == count {
                return Some(index + 1 - count);
            }
        }
        None
    }
}

// SAFETY: pages are handed out zeroed and once.
unsafe impl Kernel for TestKernel {
    fn page_size(&self) -> usize {
        PAGE
    }

    fn current_break(&self) -> usize {
        self.program_break.get()
    }

    fn move_break(&self, to: usize, _: Cause, _: usize) -> usize {
        let now = self.program_break.get();
        let end = self.region + self.length / BREAK_PART;
        let is_refused = to > now && self.is_refused(self.refusals.get().brk);
        if !is_refused && (self.region..=end).contains(&to) {
            self.put_break(to);
        }
        self.program_break.get()
    }

    fn map(&self, length: usize) -> Option<usize> {
        assert!(length > 0 && length.is_multiple_of(PAGE));
        if self.is_refused(self.refusals.get().map) {
            return None;
        }
        let first = self.first_fit(length / PAGE)?;
        self.take_pages(first, first + length / PAGE);
        Some(self.region + first * PAGE)
    }

    fn unmap(&self, address: usize, length: usize, _: Cause) -> bool {
        assert!(length > 0 && length.is_multiple_of(PAGE) && address.is_multiple_of(PAGE));
        if self.refusals.get().unmap {
            return false;
        }
        let first = self.index(address);
        self.give_pages(first, first + length / PAGE);
        true
    }

    fn remap(&self, address: usize, old: usize, new: usize, may_move: bool) -> Option<usize> {
        assert!(address.is_multiple_of(PAGE) && old.is_multiple_of(PAGE));
        assert!(new > 0 && new.is_multiple_of(PAGE) && old != new);
        if self.is_refused(self.refusals.get().remap) {
            return None;
        }
        let first = self.index(address);
        if new < old {
            self.give_pages(first + new / PAGE, first + old / PAGE);
            return Some(address);
        }
        assert!(may_move);
        // Always moves: whoever relies on the old address is found out.
        let there = self.first_fit(new / PAGE)?;
        self.take_pages(there, there + new / PAGE);
        let to = self.region + there * PAGE;
        // SAFETY: both are mapped, and do not overlap.
        unsafe {
            ptr::copy_nonoverlapping(
                ptr::with_exposed_provenance::<u8>(address),
                ptr::with_exposed_provenance_mut::<u8>(to),
                old,
            );
        }
        self.give_pages(first, first + old / PAGE);
        Some(to)
    }

    fn give_back(&self, address: usize, length: usize, _: Cause) -> bool {
        assert!(length > 0 && length.is_multiple_of(PAGE) && address.is_multiple_of(PAGE));
        let first = self.index(address);
        for index in first..first + length / PAGE {
            assert_eq!(self.pages.borrow()[index], PageState::Mapped);
            self.fill(index, 0);
        }
        true
    }

    fn announce(&self, _: usize, cause: Cause, detail: u64, value: u64) {
        let block = value as usize;
        match cause {
            Cause::HeapError => self.announced.set(self.announced.get() + 1),
            Cause::Sampled => {
                let before = self.samples.borrow_mut().insert(block, detail as usize);
                assert_eq!(before, None, "a live sample is told of once");
                self.sampled.set(self.sampled.get() + 1);
            }
            Cause::SampleFreed => {
                let before = self.samples.borrow_mut().remove(&block);
                assert!(
                    before.is_some(),
                    "only samples are told of when they are freed"
                );
            }
            other => panic!("{other:?} is no announcement of a heap"),
        }
    }

    fn is_readable(&self, address: usize) -> bool {
        (self.region..self.region + self.length).contains(&address)
            && self.pages.borrow()[self.index(address)] == PageState::Mapped
    }

    fn thread_id(&self) -> u32 {
        77
    }

    fn wait(&self, _: &core::sync::atomic::AtomicU32, _: u32) {
        panic!("the only thread waits for a lock");
    }

    fn wake(&self, _: &core::sync::atomic::AtomicU32) {}

    fn abort(&self) -> ! {
        panic!("abort");
    }
}

/// Numbers that are the same in each run (Steele et al., "splitmix64").
pub(super) struct Random(pub(super) u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut value = self.0;
        value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        value ^ value >> 31
    }

    pub(super) fn below(&mut self, end: usize) -> usize {
        (self.next() % end as u64) as usize
    }

    /// Sizes as programs ask for: mostly small.
    fn size(&mut self) -> usize {
        match self.below(100) {
            0..=2 => 0,
            3..=69 => self.below(1100),
            70..=93 => 1000 + self.below(30_000),
            94..=97 => self.below(200_000),
            _ => self.below(500_000),
        }
    }
}

/// A block that the program holds.
#[derive(Clone, Copy, Debug)]
struct Block {
    address: usize,
    size: usize,
    pattern: u8,
}

impl Block {
    fn pointer(self) -> *mut u8 {
        ptr::with_exposed_provenance_mut(self.address)
    }

    /// What its first `length` bytes should be. An interpreter takes too long to compute each.
    fn expected(self, length: usize) -> Vec<u8> {
        if cfg!(miri) {
            return vec![self.pattern; length];
        }
        (0..length)
            .map(|index| self.pattern.wrapping_add((index as u8).wrapping_mul(7)))
            .collect()
    }

    fn fill(self) {
        let bytes = self.expected(self.size);
        // SAFETY: the block has so many bytes.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.pointer(), self.size) };
    }

    fn check(self, length: usize) {
        // SAFETY: as above.
        let bytes = unsafe { core::slice::from_raw_parts(self.pointer(), length) };
        let expected = self.expected(length);
        let changed = || bytes.iter().zip(&expected).position(|(is, was)| is != was);
        assert!(bytes == expected, "{self:x?} from byte {:?}", changed());
    }
}

/// A program with a heap.
pub(super) struct Program {
    pub(super) heap: &'static Heap<TestKernel>,
    /// The same, as allocated: arenas and caches point into it, so it must not be a box that moves.
    owned: *mut Heap<TestKernel>,
    /// One for each pretended thread.
    caches: Vec<*mut Cache>,
    blocks: Vec<Block>,
    /// End of each block, by address.
    ends: BTreeMap<usize, usize>,
    patterns: u8,
    pub(super) page: *mut Page,
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: allocated by `with_kernel`; nobody uses the heap any more.
        unsafe {
            drop(Box::from_raw(self.owned));
            std::alloc::dealloc(self.page.cast(), Layout::new::<Page>());
        }
    }
}

impl Program {
    pub(super) fn new(setup: &Setup) -> Self {
        Self::with_region(setup, REGION)
    }

    pub(super) fn with_region(setup: &Setup, length: usize) -> Self {
        Self::with_kernel(setup, TestKernel::new(length), 1)
    }

    pub(super) fn with_threads(setup: &Setup, threads: usize) -> Self {
        Self::with_kernel(setup, TestKernel::new(REGION), threads)
    }

    /// Address and size of each block that the program holds.
    pub(super) fn held(&self) -> impl Iterator<Item = (usize, usize)> {
        self.blocks.iter().map(|block| (block.address, block.size))
    }

    fn with_kernel(setup: &Setup, kernel: TestKernel, threads: usize) -> Self {
        let owned = Box::into_raw(Box::new(Heap::new(kernel)));
        // SAFETY: lives until the program is dropped.
        let heap: &'static Heap<TestKernel> = unsafe { &*owned };
        // SAFETY: a page is not empty; zero bytes are a value of it.
        let page = unsafe { std::alloc::alloc_zeroed(Layout::new::<Page>()) }.cast::<Page>();
        page.expose_provenance();
        // SAFETY: the page is ours, and freed after the heap was used last.
        assert!(unsafe { heap.begin(page, SECRET, setup) });
        let caches = (0..threads)
            .map(|_| {
                if setup.guard {
                    ptr::null_mut()
                } else {
                    heap.acquire_cache()
                }
            })
            .collect();
        Self {
            heap,
            owned,
            caches,
            blocks: Vec::new(),
            ends: BTreeMap::new(),
            patterns: 0,
            page,
        }
    }

    fn kernel(&self) -> &TestKernel {
        &self.heap.kernel
    }

    fn cache(&self, thread: usize) -> *mut Cache {
        self.caches[thread % self.caches.len()]
    }

    /// Notes a block that was handed out, and fills it; `None` if there was none.
    fn keep(&mut self, pointer: *mut u8, size: usize) -> Option<Block> {
        if pointer.is_null() {
            return None;
        }
        self.patterns = self.patterns.wrapping_add(13);
        let block = Block {
            address: pointer.expose_provenance(),
            size,
            pattern: self.patterns,
        };
        assert!(block.address.is_multiple_of(ALIGNMENT));
        let before = self.ends.range(..=block.address).next_back();
        assert!(
            before.is_none_or(|(_, end)| *end <= block.address),
            "{block:x?}"
        );
        let after = self.ends.range(block.address..).next();
        assert!(
            after.is_none_or(|(start, _)| *start >= block.address + size.max(1)),
            "{block:x?}"
        );
        self.ends.insert(block.address, block.address + size.max(1));
        block.fill();
        self.blocks.push(block);
        Some(block)
    }

    fn forget(&mut self, index: usize) -> Block {
        let block = self.blocks.swap_remove(index);
        self.ends.remove(&block.address);
        block.check(block.size);
        block
    }

    fn malloc_by(&mut self, thread: usize, size: usize) -> Option<Block> {
        // SAFETY: all threads are this one.
        let pointer = unsafe { self.heap.allocate(self.cache(thread), size) };
        self.keep(pointer, size)
    }

    pub(super) fn malloc(&mut self, size: usize) -> usize {
        self.malloc_by(0, size).unwrap().address
    }

    fn calloc_by(&mut self, thread: usize, size: usize) -> Option<Block> {
        // SAFETY: as above; the block has so many bytes.
        unsafe {
            let pointer = self.heap.allocate_zeroed(self.cache(thread), size);
            if !pointer.is_null() {
                let bytes = core::slice::from_raw_parts(pointer, size);
                assert!(bytes == vec![0; size], "{size} bytes");
            }
            self.keep(pointer, size)
        }
    }

    fn aligned_by(&mut self, thread: usize, alignment: usize, size: usize) -> Option<Block> {
        // SAFETY: as above.
        let pointer = unsafe {
            self.heap
                .allocate_aligned(self.cache(thread), alignment, size)
        };
        assert!(pointer.addr().is_multiple_of(alignment));
        self.keep(pointer, size)
    }

    fn free_by(&mut self, thread: usize, index: usize) {
        let block = self.forget(index);
        // SAFETY: as above; the block was forgotten.
        unsafe { self.heap.free(self.cache(thread), block.pointer()) };
    }

    pub(super) fn free(&mut self, address: usize) {
        let index = self.index_of(address);
        self.free_by(0, index);
    }

    /// Frees what the program need not hold.
    fn free_wrongly(&self, address: usize) {
        // SAFETY: the 8 bytes before the address can be read, or are asked about.
        unsafe {
            self.heap
                .free(self.cache(0), ptr::with_exposed_provenance_mut(address));
        }
    }

    fn index_of(&self, address: usize) -> usize {
        self.blocks
            .iter()
            .position(|block| block.address == address)
            .unwrap()
    }

    /// Whether there was memory.
    fn realloc_by(&mut self, thread: usize, index: usize, size: usize) -> bool {
        let old = self.forget(index);
        // SAFETY: as for free.
        let pointer = unsafe { self.heap.resize(self.cache(thread), old.pointer(), size) };
        let kept = old.size.min(size);
        if pointer.is_null() {
            old.check(old.size);
            self.keep(old.pointer(), old.size);
            return false;
        }
        Block {
            address: pointer.expose_provenance(),
            ..old
        }
        .check(kept);
        self.keep(pointer, size);
        true
    }

    fn realloc(&mut self, address: usize, size: usize) -> usize {
        let index = self.index_of(address);
        assert!(self.realloc_by(0, index, size));
        self.blocks[self.blocks.len() - 1].address
    }

    fn trim(&self) -> bool {
        // SAFETY: as above.
        unsafe { self.heap.trim(self.cache(0), 0) }
    }

    fn free_all(&mut self) {
        let mut thread = 0;
        while !self.blocks.is_empty() {
            thread += 1;
            self.free_by(thread, self.blocks.len() / 2);
        }
    }

    /// The equation, and what the program knows itself.
    #[track_caller]
    fn check_counters(&self) {
        let counters = self.heap.counters();
        assert!(counters.adds_up(), "{counters:#?}");
        if counters.heap_errors == 0 {
            let in_use: usize = self.blocks.iter().map(|block| block.size).sum();
            assert_eq!(counters.in_use_bytes, in_use as u64);
            assert_eq!(counters.live_blocks, self.blocks.len() as u64);
        }
        self.check_samples();
        assert!(counters.in_use_peak_bytes >= counters.in_use_bytes);
        assert!(counters.obtained_peak_bytes >= counters.obtained_bytes);
        assert_eq!(
            counters.block_overhead_bytes + counters.record_bytes,
            counters.overhead_bytes
        );
    }

    /// What was told of samples is what the program holds.
    #[track_caller]
    fn check_samples(&self) {
        let samples = self.kernel().samples.borrow();
        match self.heap.setup().sample_interval {
            0 => assert!(samples.is_empty()),
            1 => assert_eq!(*samples, self.held().collect()),
            _ => {
                for (block, size) in samples.iter() {
                    let end = self.ends.get(block).copied();
                    assert_eq!(end, Some(block + (*size).max(1)), "{block:#x}");
                }
            }
        }
    }

    #[track_caller]
    fn check(&self) {
        self.check_counters();
        assert_eq!(self.heap.check(), Ok(()));
    }

    /// What the kernel gave is what the heap says that it obtained.
    #[track_caller]
    fn check_obtained(&self) {
        let pages = self.kernel().mapped_pages() * PAGE;
        assert_eq!(self.heap.counters().obtained_bytes, pages as u64);
    }

    /// One of the things that programs do.
    fn step(&mut self, random: &mut Random) {
        let thread = random.below(self.caches.len());
        let crowded = self.blocks.len() > 300;
        match random.below(100) {
            0..=34 if !crowded => {
                self.malloc_by(thread, random.size());
            }
            35..=42 if !crowded => {
                self.calloc_by(thread, random.size());
            }
            43..=49 if !crowded => {
                let alignment = 1 << random.below(14);
                self.aligned_by(thread, alignment, random.size());
            }
            50..=63 if !self.blocks.is_empty() => {
                let index = random.below(self.blocks.len());
                let size = if random.below(2) == 0 {
                    random.size()
                } else {
                    // A little more or less.
                    self.blocks[index].size * (8 + random.below(16)) / 16 + random.below(20)
                };
                self.realloc_by(thread, index, size);
            }
            64 => {
                self.trim();
            }
            65 => {
                // A thread ends, another begins.
                let cache = self.cache(thread);
                if !cache.is_null() {
                    // SAFETY: the cache is replaced at once.
                    unsafe { self.heap.release_cache(cache) };
                    self.caches[thread] = self.heap.acquire_cache();
                }
            }
            66 => {
                // Many at once.
                for _ in 0..self.blocks.len() / 2 {
                    let index = random.below(self.blocks.len());
                    self.free_by(thread, index);
                }
            }
            _ if !self.blocks.is_empty() => {
                let index = random.below(self.blocks.len());
                self.free_by(thread, index);
            }
            _ => {}
        }
    }

    pub(super) fn run(&mut self, seed: u64, steps: usize) {
        let mut random = Random(seed);
        for step in 0..steps {
            self.step(&mut random);
            self.check_counters();
            // All of it takes longer the more there is.
            if step < steps / 8 || step % 16 == 0 {
                self.check();
            }
        }
        self.check();
    }
}

/// Bytes changed by a faulty program.
fn write(address: usize, value: u8) {
    // SAFETY: tests write into memory of their heap.
    unsafe { ptr::with_exposed_provenance_mut::<u8>(address).write(value) };
}

fn read(address: usize) -> u8 {
    // SAFETY: as for `write`.
    unsafe { ptr::with_exposed_provenance::<u8>(address).read() }
}

/// Bytes that a kernel has. An interpreter takes its time to look through its pages.
const REGION: usize = if cfg!(miri) { 8 << 20 } else { 64 << 20 };

/// Steps of a random run.
const STEPS: usize = if cfg!(miri) { 24 } else { 2500 };

fn policy(policy: Policy) -> Setup {
    Setup {
        policy,
        ..Setup::default()
    }
}

const POLICIES: [Policy; 3] = [Policy::Never, Policy::Trim, Policy::Eager];

#[test]
fn random_requests_of_many_threads_keep_everything_in_order() {
    for (seed, with) in (1..).zip(POLICIES) {
        let mut program = Program::with_kernel(&policy(with), TestKernel::new(REGION), 5);
        program.run(seed, STEPS);
        program.free_all();
        program.check();
        program.check_obtained();
    }
}

#[test]
fn random_requests_with_fixed_thresholds_and_no_pad_keep_everything_in_order() {
    let setup = Setup {
        mmap_threshold: Some(40_000),
        trim_threshold: Some(0),
        top_pad: 0,
        ..Setup::default()
    };
    let mut program = Program::with_kernel(&setup, TestKernel::new(REGION), 2);
    program.run(11, STEPS);
    program.free_all();
    program.check();
    program.check_obtained();
}

#[test]
fn random_requests_with_guard_keep_everything_in_order() {
    let setup = Setup {
        guard: true,
        ..Setup::default()
    };
    let mut program = Program::new(&setup);
    program.run(21, STEPS / 2);
    program.free_all();
    program.check();
}

#[test]
fn every_sample_is_told_of_when_it_is_handed_out_and_when_it_is_freed() {
    for (seed, interval) in [(31, 1), (32, 300), (33, 100_000)] {
        for guard in [false, true] {
            let setup = Setup {
                sample_interval: interval,
                guard,
                ..Setup::default()
            };
            let threads = if guard { 1 } else { 3 };
            let mut program = Program::with_threads(&setup, threads);
            program.run(seed, STEPS / 4);
            assert!(interval > 1 || program.kernel().sampled.get() > 0);
            program.free_all();
            program.check();
            assert_eq!(*program.kernel().samples.borrow(), [].into());
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "takes an interpreter too long")]
#[expect(clippy::cast_precision_loss, reason = "sums of test values")]
fn samples_stand_for_what_was_requested_whatever_the_sizes() {
    let interval = 20_000;
    let setup = Setup {
        sample_interval: interval,
        ..Setup::default()
    };
    let mut program = Program::new(&setup);
    let mut estimates = [0.0; 3];
    let sizes = [24, 3_000, 150_000];
    let counts = [100_000, 4_000, 400];
    for ((estimate, size), count) in estimates.iter_mut().zip(sizes).zip(counts) {
        for _ in 0..count {
            let before = program.kernel().sampled.get();
            program.malloc(size);
            if program.kernel().sampled.get() > before {
                let chance = 1.0 - f64::exp(-(size as f64) / interval as f64);
                *estimate += size as f64 / chance;
            }
            program.free_by(0, 0);
        }
    }
    for ((estimate, size), count) in estimates.iter().zip(sizes).zip(counts) {
        let truth = (size * count) as f64;
        // Some hundred samples each: five standard errors are a quarter at most. The numbers are the same in each run.
        assert!(
            (estimate / truth - 1.0).abs() < 0.25,
            "{size}: {}",
            estimate / truth
        );
    }
}

#[test]
fn a_sample_that_cannot_be_resized_stays_one() {
    let setup = Setup {
        sample_interval: 1,
        ..Setup::default()
    };
    let mut program = Program::new(&setup);
    let block = program.malloc(100);
    // SAFETY: the block is live; it is used on, as nothing is handed out.
    let resized = unsafe {
        let block = ptr::with_exposed_provenance_mut(block);
        program
            .heap
            .resize(program.cache(0), block, LARGEST_REQUEST - 1)
    };
    assert!(resized.is_null());
    program.check();
}

#[test]
fn any_refusal_leaves_the_heap_in_order_and_later_requests_work() {
    let calls = {
        let mut program = small_program(None);
        small_run(&mut program);
        program.kernel().calls.get()
    };
    assert!(calls > 20, "{calls}");
    for nth in 1..=calls {
        let mut program = small_program(Some(nth));
        small_run(&mut program);
        if let Some(null) = program.caches.iter_mut().find(|cache| cache.is_null()) {
            *null = program.heap.acquire_cache();
        }
        let block = program.malloc_by(0, 10);
        assert!(block.is_some());
        program.free_all();
        program.check();
        program.check_obtained();
    }
}

fn small_program(refused: Option<u64>) -> Program {
    let kernel = TestKernel::new(8 << 20);
    kernel.refuse(|refusals| refusals.nth = refused);
    let setup = Setup {
        mmap_threshold: Some(40_000),
        trim_threshold: Some(0),
        top_pad: 0,
        ..Setup::default()
    };
    Program::with_kernel(&setup, kernel, 2)
}

fn small_run(program: &mut Program) {
    let mut random = Random(5);
    for _ in 0..if cfg!(miri) { 30 } else { 200 } {
        program.step(&mut random);
        program.check();
    }
}

#[test]
fn without_any_memory_requests_fail_and_work_once_there_is_some() {
    let kernel = TestKernel::new(8 << 20);
    kernel.refuse(|refusals| (refusals.brk, refusals.map) = (true, true));
    let mut program = Program::with_kernel(&Setup::default(), kernel, 1);
    assert!(program.cache(0).is_null());
    for size in [0, 1, 100, 5000, 1 << 20] {
        assert!(program.malloc_by(0, size).is_none());
        assert!(program.calloc_by(0, size).is_none());
        assert!(program.aligned_by(0, 64, size).is_none());
    }
    program.check();
    program.kernel().refuse(|refusals| refusals.brk = false);
    program.kernel().refuse(|refusals| refusals.map = false);
    program.caches[0] = program.heap.acquire_cache();
    for size in [0, 1, 100, 5000, 1 << 20] {
        program.malloc(size);
        program.check();
    }
}

#[test]
fn a_break_that_never_moves_leaves_mapped_segments() {
    let kernel = TestKernel::new(REGION);
    kernel.refuse(|refusals| refusals.brk = true);
    let mut program = Program::with_kernel(&Setup::default(), kernel, 3);
    program.run(31, STEPS);
    assert_eq!(program.heap.counters().brk_grown_bytes, 0);
    assert!(program.heap.counters().brk_refused > 0);
    program.free_all();
    program.check();
    program.check_obtained();
}

#[test]
fn where_mappings_are_refused_large_blocks_come_from_the_heap() {
    let mut program = Program::new(&Setup::default());
    program.kernel().refuse(|refusals| refusals.map = true);
    program.malloc(1 << 20);
    program.check();
    assert_eq!(program.heap.counters().live_large_blocks, 0);
    program.free_all();
    program.check();
}

#[test]
fn where_mremap_is_refused_large_blocks_are_copied() {
    let mut program = Program::new(&Setup::default());
    let block = program.malloc(1 << 20);
    program.kernel().refuse(|refusals| refusals.remap = true);
    let block = program.realloc(block, 2 << 20);
    program.realloc(block, 3 << 20);
    program.check();
    assert_eq!(program.heap.counters().realloc_in_place, 0);
    assert_eq!(program.heap.counters().mremap_calls, 2);
    program.free_all();
    program.check();
    program.check_obtained();
}

#[test]
fn where_munmap_is_refused_the_bytes_stay_obtained() {
    let mut program = Program::new(&Setup::default());
    let block = program.malloc(1 << 20);
    let before = program.heap.counters().obtained_bytes;
    program.kernel().refuse(|refusals| refusals.unmap = true);
    program.free(block);
    program.check();
    assert_eq!(program.heap.counters().obtained_bytes, before);
    program.check_obtained();
}

#[test]
fn others_may_raise_the_break_between_requests() {
    for with in POLICIES {
        let mut program = Program::with_kernel(&policy(with), TestKernel::new(REGION), 1);
        let mut random = Random(41);
        for round in 0_u8..if cfg!(miri) { 2 } else { 12 } {
            for _ in 0..if cfg!(miri) { 20 } else { 100 } {
                program.step(&mut random);
                program.check();
            }
            // Not at any boundary.
            let length = 1000 + usize::from(round);
            let theirs = program.kernel().foreign_sbrk(length.cast_signed());
            for index in 0..length {
                write(theirs + index, round);
            }
            for _ in 0..50 {
                program.malloc_by(0, 30_000);
                program.check();
            }
            program.free_all();
            program.trim();
            program.check();
            for index in 0..length {
                assert_eq!(read(theirs + index), round, "{with:?}");
            }
        }
        assert!(program.heap.counters().foreign_break_moves > 0);
    }
}

#[test]
fn others_may_lower_the_break_as_far_as_nothing_is_in_use() {
    let mut program = Program::new(&policy(Policy::Never));
    let kept = program.malloc(10_000);
    let gone = program.malloc(90_000);
    program.free(gone);
    program.trim();
    let top = program.malloc(60_000);
    program.free(top);
    program.kernel().foreign_sbrk(-5000);
    program.malloc(300_000);
    for _ in 0..20 {
        program.malloc(100_000);
        program.check();
    }
    assert_eq!(program.heap.counters().foreign_break_moves, 1);
    program.free(kept);
    program.free_all();
    program.check();
}

#[test]
fn a_break_lowered_into_blocks_is_left_alone_from_then_on() {
    let mut program = Program::new(&Setup::default());
    let mut blocks = Vec::new();
    for _ in 0..30 {
        blocks.push(program.malloc(20_000));
    }
    // The last ones go.
    let now = program.kernel().current_break();
    let length = now - blocks[20];
    program.kernel().foreign_sbrk(-length.cast_signed());
    program
        .blocks
        .retain(|block| block.address + block.size <= now - length);
    let remaining: BTreeMap<_, _> = program
        .blocks
        .iter()
        .map(|block| (block.address, block.address + block.size))
        .collect();
    program.ends = remaining;
    for _ in 0..30 {
        program.malloc(20_000);
    }
    let counters = program.heap.counters();
    assert_eq!(counters.foreign_break_moves, 1);
    assert_eq!(program.kernel().current_break(), now - length);
    for block in &program.blocks {
        block.check(block.size);
    }
}

#[test]
fn realloc_leaves_blocks_where_they_are_if_it_can() {
    let mut program = Program::new(&Setup::default());
    let small = program.malloc(100);
    assert_eq!(program.realloc(small, 104), small);
    assert_eq!(program.realloc(small, 60), small);
    let medium = program.malloc(5000);
    // At the top it grows into it.
    for size in [6000, 50_000, 40_000, 120_000, 3000] {
        assert_eq!(program.realloc(medium, size), medium);
        program.check();
    }
    let counters = program.heap.counters();
    assert_eq!(counters.realloc_calls, 7);
    assert_eq!(counters.realloc_in_place, 7);
    // Another block in the way.
    program.malloc(2000);
    assert_ne!(program.realloc(medium, 60_000), medium);
    program.check();
    assert_eq!(program.heap.counters().realloc_in_place, 7);
}

#[test]
fn calloc_zeroes_memory_that_was_used_before() {
    let mut program = Program::new(&Setup::default());
    for size in [1, 24, 1016, 1017, 5000, 64 << 10, 100_000, 200_000] {
        for _ in 0..3 {
            let block = program.malloc(size);
            program.free(block);
            let block = program.calloc_by(0, size).unwrap();
            program.free(block.address);
        }
    }
    program.check();
}

#[test]
fn sizes_that_no_object_can_have_are_refused() {
    let mut program = Program::new(&Setup::default());
    let block = program.malloc(10);
    for size in [
        LARGEST_REQUEST,
        LARGEST_REQUEST + 1,
        usize::MAX - 8,
        usize::MAX,
    ] {
        assert!(program.malloc_by(0, size).is_none());
        assert!(program.calloc_by(0, size).is_none());
        assert!(program.aligned_by(0, 1 << 20, size).is_none());
        let index = program.index_of(block);
        assert!(!program.realloc_by(0, index, size));
    }
    assert!(program.aligned_by(0, 1 << 62, 1).is_none());
    program.check();
    assert_eq!(program.heap.counters().failed_requests, 17);
}

#[test]
fn caches_of_ended_threads_are_taken_over_by_new_ones() {
    let mut program = Program::with_kernel(&Setup::default(), TestKernel::new(REGION), 6);
    for thread in 0..6 {
        for size in 0..60 {
            program.malloc_by(thread, size * 40);
        }
    }
    // Freed by others than those who asked.
    program.free_all();
    for cache in std::mem::take(&mut program.caches) {
        // SAFETY: the cache is used no more.
        unsafe { program.heap.release_cache(cache) };
        assert_eq!(program.heap.check(), Ok(()));
    }
    for _ in 0..6 {
        program.caches.push(program.heap.acquire_cache());
    }
    assert_eq!(program.heap.counters().thread_caches, 6);
    program.run(51, STEPS / 8);
}

#[test]
fn parent_and_child_go_on_after_fork() {
    for is_child in [false, true] {
        let mut program = Program::with_kernel(&Setup::default(), TestKernel::new(REGION), 4);
        program.run(61, STEPS / 8);
        let own = program.caches[2];
        program.heap.before_fork();
        // SAFETY: the one thread called before_fork.
        unsafe { program.heap.after_fork() };
        if is_child {
            program.caches = vec![own];
        }
        program.check();
        program.run(62, STEPS / 8);
        while program.caches.len() < 4 {
            program.caches.push(program.heap.acquire_cache());
        }
        program.run(63, STEPS / 8);
        // The child has left its three lost threads' caches alone.
        let caches = if is_child { 7 } else { 4 };
        assert_eq!(program.heap.counters().thread_caches, caches);
    }
}

#[test]
fn the_eager_policy_returns_all_memory_in_the_end() {
    // In further arenas the last segment stays, though its pages go back.
    let setup = Setup {
        arena_max: 1,
        ..policy(Policy::Eager)
    };
    let mut program = Program::with_kernel(&setup, TestKernel::new(REGION), 3);
    program.run(71, STEPS / 2);
    program.free_all();
    for cache in std::mem::take(&mut program.caches) {
        // SAFETY: the cache is used no more.
        unsafe { program.heap.release_cache(cache) };
    }
    program.caches.push(ptr::null_mut());
    program.trim();
    program.check();
    let counters = program.heap.counters();
    assert_eq!(counters.free_bytes, 0, "{counters:#?}");
    assert!(
        counters.top_bytes <= counters.arenas * PAGE as u64,
        "{counters:#?}"
    );
    let caches = size_of::<Cache>().next_multiple_of(PAGE) * 4;
    assert!(
        counters.obtained_bytes <= (caches + 10 * PAGE) as u64,
        "{counters:#?}"
    );
}

#[test]
fn only_the_policy_never_keeps_a_large_top() {
    for with in POLICIES {
        let mut program = Program::new(&policy(with));
        for _ in 0..60 {
            program.malloc(100_000);
        }
        let most = program.heap.counters().obtained_bytes;
        program.free_all();
        program.check();
        let counters = program.heap.counters();
        match with {
            Policy::Never => assert_eq!(counters.obtained_bytes, most),
            Policy::Trim => assert!(counters.top_bytes < 400_000, "{counters:#?}"),
            Policy::Eager => assert!(counters.top_bytes <= PAGE as u64, "{counters:#?}"),
        }
        assert_eq!(counters.trims > 0, with != Policy::Never);
    }
}

// ---- faulty programs -----------------------------------------------------------------------------------------------

/// The latest error: kind, who found it, address, size.
type Found = (HeapErrorKind, FoundBy, usize, Option<usize>);

impl Program {
    fn latest_error(&self) -> Found {
        let page = self.heap.page();
        let number = page.error_count.get();
        let record = &page.errors[(number as usize - 1) % KEPT_ERRORS];
        assert_eq!(record.number.get(), number);
        assert_eq!(record.tid.get(), 77);
        (
            HeapErrorKind::from_number(record.kind.get()).unwrap(),
            FoundBy::from_number(record.found_by.get()).unwrap(),
            record.address.get() as usize,
            (record.size.get() != u64::MAX).then_some(record.size.get() as usize),
        )
    }

    fn changed(&self) -> usize {
        let page = self.heap.page();
        let number = page.error_count.get() as usize;
        page.errors[(number - 1) % KEPT_ERRORS].changed.get() as usize
    }

    /// `action` is reported once, as `expected`; afterwards requests still work.
    #[track_caller]
    fn expect(&mut self, expected: Found, action: impl FnOnce(&mut Self)) {
        let before = self.heap.page().error_count.get();
        let announced = self.kernel().announced.get();
        action(self);
        assert_eq!(self.heap.page().error_count.get(), before + 1);
        assert_eq!(self.kernel().announced.get(), announced + 1);
        assert_eq!(self.latest_error(), expected);
        self.check_counters();
        let mut blocks = Vec::new();
        for size in [1, 24, 60, 1000, 3000, 20_000, 300_000] {
            blocks.push(self.malloc(size));
        }
        for block in blocks {
            self.free(block);
        }
        assert_eq!(self.heap.page().error_count.get(), before + 1);
        self.check_counters();
    }
}

/// A small, a medium and a large one.
const EACH_KIND: [usize; 3] = [60, 3000, 300_000];

#[test]
fn freeing_a_block_twice_is_reported_with_its_size() {
    for size in EACH_KIND {
        let mut program = Program::new(&Setup::default());
        program.malloc(size);
        let block = program.malloc(size);
        program.malloc(size);
        program.free(block);
        let found = (HeapErrorKind::DoubleFree, FoundBy::Free, block, Some(size));
        program.expect(found, |program| program.free_wrongly(block));
    }
}

#[test]
fn reallocating_a_freed_block_is_reported_and_fails() {
    for size in EACH_KIND {
        let mut program = Program::new(&Setup::default());
        let block = program.malloc(size);
        program.malloc(size);
        program.free(block);
        let found = (
            HeapErrorKind::DoubleFree,
            FoundBy::Realloc,
            block,
            Some(size),
        );
        program.expect(found, |program| {
            // SAFETY: the memory before the block can be read, or is asked about.
            let new = unsafe {
                program.heap.resize(
                    program.cache(0),
                    ptr::with_exposed_provenance_mut(block),
                    99,
                )
            };
            assert!(new.is_null());
        });
    }
}

#[test]
fn freeing_what_malloc_never_gave_is_reported() {
    let mut program = Program::new(&Setup::default());
    program.malloc(100);
    let local = [0_u64; 64];
    let start = local.as_ptr().expose_provenance();
    for address in [start + 8, (start + 64).next_multiple_of(16), start + 65] {
        let found = (HeapErrorKind::ForeignPointer, FoundBy::Free, address, None);
        program.expect(found, |program| program.free_wrongly(address));
    }
    // What looks like a large block, where there is no memory.
    let address = program.kernel().region + program.kernel().length - PAGE + large::PLACE;
    let found = (HeapErrorKind::ForeignPointer, FoundBy::Free, address, None);
    program.expect(found, |program| program.free_wrongly(address));
}

#[test]
fn freeing_the_middle_of_a_block_is_reported() {
    for size in [200, 3000, 300_000] {
        let mut program = Program::new(&Setup::default());
        let block = program.malloc(size);
        for offset in [1, 8, 16, 40, 64] {
            let found = (
                HeapErrorKind::ForeignPointer,
                FoundBy::Free,
                block + offset,
                None,
            );
            program.expect(found, |program| program.free_wrongly(block + offset));
        }
    }
}

#[test]
fn a_byte_written_behind_any_block_is_reported_when_it_is_freed() {
    for size in [
        0, 1, 7, 8, 9, 24, 60, 1000, 1016, 1017, 3000, 20_000, 300_000,
    ] {
        let mut program = Program::new(&Setup::default());
        program.malloc(size);
        let block = program.malloc(size);
        write(block + size, b'x');
        let found = (
            HeapErrorKind::WritePastEnd,
            FoundBy::Free,
            block,
            Some(size),
        );
        program.expect(found, |program| program.free(block));
        assert_eq!(program.changed(), block + size);
    }
}

#[test]
fn text_written_past_the_end_into_the_next_block_is_reported_once() {
    for size in [56, 1000] {
        let mut program = Program::new(&Setup::default());
        let first = program.malloc(size);
        let second = program.malloc(size);
        assert!(second > first);
        for index in 0..second - first - size {
            write(first + size + index, b'A');
        }
        let found = (
            HeapErrorKind::WritePastEnd,
            FoundBy::Free,
            first,
            Some(size),
        );
        program.expect(found, |program| {
            program.forget(program.index_of(second));
            program.free_wrongly(second);
        });
    }
}

#[test]
fn a_byte_written_before_any_block_is_reported_when_it_is_freed() {
    for size in EACH_KIND {
        let mut program = Program::new(&Setup::default());
        program.malloc(size);
        let block = program.malloc(size);
        write(block - 1, b'x');
        let size = (size > 100_000).then_some(size);
        let found = (HeapErrorKind::WriteBeforeStart, FoundBy::Free, block, size);
        program.expect(found, |program| program.free(block));
    }
}

#[test]
fn a_write_to_the_header_of_a_free_small_block_is_reported_when_it_is_due() {
    let mut program = Program::new(&Setup::default());
    let before = program.malloc(56);
    let block = program.malloc(56);
    program.free(block);
    write(block - 8, 0);
    let again = program.malloc(56);
    assert_ne!(again, block);
    // It cannot be told from a write past the end of the block before, which lives.
    assert_eq!(
        program.latest_error(),
        (
            HeapErrorKind::WritePastEnd,
            FoundBy::Malloc,
            before,
            Some(56)
        )
    );
    program.check_counters();
}

#[test]
fn links_of_a_free_chunk_that_were_overwritten_are_reported_and_not_followed() {
    let mut program = Program::new(&Setup::default());
    let block = program.malloc(90_000);
    program.malloc(2000);
    program.free(block);
    for offset in 0..64 {
        write(block + offset, b'x');
    }
    let errors = |program: &Program| program.heap.page().error_count.get();
    for size in [90_000, 50_000, 2000, 30_000] {
        program.malloc(size);
    }
    assert_eq!(errors(&program), 1);
    let (kind, by, address, _) = program.latest_error();
    assert_eq!((kind, by), (HeapErrorKind::WriteAfterFree, FoundBy::Malloc));
    assert_eq!(address, block);
    program.free_all();
    program.check_counters();
}

#[test]
fn usable_size_is_what_was_asked_for() {
    let mut program = Program::new(&Setup::default());
    for size in [0, 1, 60, 1016, 1017, 5000, 300_000] {
        let block = program.malloc(size);
        // SAFETY: a live block.
        let usable = unsafe {
            program
                .heap
                .usable_size(ptr::with_exposed_provenance_mut(block))
        };
        assert_eq!(usable, size);
    }
}

#[test]
#[should_panic(expected = "abort")]
fn an_error_ends_the_program_if_it_should() {
    let setup = Setup {
        abort_on_error: true,
        ..Setup::default()
    };
    let mut program = Program::new(&setup);
    let block = program.malloc(60);
    program.free(block);
    program.free_wrongly(block);
}

// ---- guard ---------------------------------------------------------------------------------------------------------

fn guarded() -> Program {
    Program::new(&Setup {
        guard: true,
        ..Setup::default()
    })
}

#[test]
fn with_guard_each_byte_behind_and_before_a_block_is_watched() {
    for size in [1, 60, 3000, 300_000] {
        for offset in [0, 1, 15, 31] {
            let mut program = guarded();
            let block = program.malloc(size);
            write(block + size + offset, 1);
            let found = (
                HeapErrorKind::WritePastEnd,
                FoundBy::Free,
                block,
                Some(size),
            );
            program.expect(found, |program| program.free(block));
            assert_eq!(program.changed(), block + size + offset);
        }
        let mut program = guarded();
        let block = program.malloc(size);
        write(block - 30, 1);
        let found = (
            HeapErrorKind::WriteBeforeStart,
            FoundBy::Free,
            block,
            Some(size),
        );
        program.expect(found, |program| program.free(block));
    }
}

#[test]
fn with_guard_freed_blocks_wait_and_writes_to_them_are_found() {
    for size in [60, 3000, 300_000] {
        let mut program = guarded();
        let block = program.malloc(size);
        program.free(block);
        let again = program.malloc(size);
        assert_ne!(again, block);
        write(block + size / 2, 1);
        let found = (
            HeapErrorKind::WriteAfterFree,
            FoundBy::Exit,
            block,
            Some(size),
        );
        program.expect(found, |program| program.heap.check_quarantine());
        let mut found = None;
        for _ in 0..6000 {
            let block = program.malloc(10);
            program.free(block);
            let errors = program.heap.page().error_count.get();
            found = found.or((errors == 2).then(|| program.latest_error()));
        }
        assert_eq!(
            found,
            Some((
                HeapErrorKind::WriteAfterFree,
                FoundBy::Quarantine,
                block,
                Some(size)
            ))
        );
    }
}

#[test]
fn with_guard_freeing_twice_is_reported_with_the_size() {
    for size in EACH_KIND {
        let mut program = guarded();
        let block = program.malloc(size);
        program.free(block);
        let found = (HeapErrorKind::DoubleFree, FoundBy::Free, block, Some(size));
        program.expect(found, |program| program.free_wrongly(block));
    }
}

#[test]
fn with_guard_the_quarantine_gives_way_where_memory_is_short() {
    let setup = Setup {
        guard: true,
        ..Setup::default()
    };
    let mut program = Program::with_region(&setup, 8 << 20);
    for _ in 0..100 {
        let block = program.malloc(500_000);
        program.free(block);
    }
    program.check();
    assert_eq!(program.heap.counters().failed_requests, 0);
}
