//! Reads the bundled allocator's figures out of a program's memory.
//!
//! Nothing of what is found there can be relied on: the program may write anything into it. So each address is only
//! ever handed to the kernel, each list is followed to a limit, and figures that do not hang together are refused.

use nix::errno::Errno;

use super::sys;
use crate::allocator::Cache;
use crate::allocator::walk;
use crate::allocator::walk::Walk;
use crate::event::AllocatorFigures;
use crate::event::AllocatorReading;
use crate::event::AllocatorSetup;
use crate::event::ClassReading;
use crate::event::HeapError;
use crate::event::ReadingMoment;
use crate::stats_page::ArenaCounters;
use crate::stats_page::CacheCounters;
use crate::stats_page::ClassFigures;
use crate::stats_page::Counters;
use crate::stats_page::ErrorRecord;
use crate::stats_page::FoundBy;
use crate::stats_page::HeapErrorKind;
use crate::stats_page::KEPT_ERRORS;
use crate::stats_page::LAYOUT_VERSION;
use crate::stats_page::MAGIC;
use crate::stats_page::Page;
use crate::stats_page::Plain;
use crate::stats_page::Policy;
use crate::stats_page::SMALL_CLASSES;
use crate::stats_page::Sum;
use crate::units::Address;

/// More thread caches and arenas than these, and the lists are taken for damaged.
const MOST_CACHES: usize = 65_536;
const MOST_ARENAS: usize = 4_096;

/// Why figures could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ReadError {
    /// The program has no memory any more, or we may not look into it.
    Gone,
    /// The page is of another version of breaktrace.
    OtherVersion {
        /// That version.
        version: String,
        /// Version of the page's layout.
        layout: u32,
    },
    /// What was found makes no sense.
    Damaged(String),
}

impl From<Errno> for ReadError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::EFAULT | Errno::EIO => Self::Damaged("its memory cannot be read".into()),
            _ => Self::Gone,
        }
    }
}

/// Where the figures of one address space are.
#[derive(Clone, Debug)]
pub(super) struct Reader {
    page: u64,
    /// Thread caches and arenas, in the order of their lists, as they were last time.
    caches: Vec<u64>,
    arenas: Vec<u64>,
    /// Heap errors up to this number have been told.
    errors_told: u64,
    /// Room for a copy of all of them.
    copy: Vec<u8>,
}

/// The figures at one moment.
#[derive(Debug)]
pub(super) struct Figures {
    page: Page,
    counters: Counters,
    classes: [ClassFigures; SMALL_CLASSES],
}

impl Figures {
    /// The figures as they are told.
    pub(super) fn reading(&self, moment: ReadingMoment, still: bool) -> AllocatorReading {
        let in_use =
            |class: &&ClassFigures| class.allocated != 0 || class.free != 0 || class.cached != 0;
        let classes = match moment {
            ReadingMoment::Call => Vec::new(),
            ReadingMoment::Snapshot | ReadingMoment::Exec | ReadingMoment::End => self
                .classes
                .iter()
                .filter(in_use)
                .map(|class| ClassReading::from(*class))
                .collect(),
        };
        AllocatorReading {
            moment,
            still,
            counters: AllocatorFigures::complete(self.counters),
            classes,
        }
    }

    /// How the allocator is set up.
    pub(super) fn setup(&self, reader: &Reader) -> AllocatorSetup {
        setup(&self.page, reader.page)
    }
}

impl Reader {
    /// For a page that is said to be at this address.
    pub(super) fn at(page: u64) -> Self {
        Self {
            page,
            caches: Vec::new(),
            arenas: Vec::new(),
            errors_told: 0,
            copy: Vec::new(),
        }
    }

    /// Where the page is.
    pub(super) fn page(&self) -> u64 {
        self.page
    }

    /// Thread caches as of the last reading.
    pub(super) fn caches(&self) -> usize {
        self.caches.len()
    }

    /// Reads all figures through thread `tid`.
    pub(super) fn read(&mut self, tid: u32) -> Result<Figures, ReadError> {
        let mut copy = std::mem::take(&mut self.copy);
        let result = self.read_into(tid, &mut copy);
        self.copy = copy;
        result
    }

    /// Copies what was known last time at once, and what is new piece by piece.
    fn read_into(&mut self, tid: u32, copy: &mut Vec<u8>) -> Result<Figures, ReadError> {
        let places: Vec<(u64, usize)> = std::iter::once((self.page, size_of::<Page>()))
            .chain(
                self.caches
                    .iter()
                    .map(|at| (*at, size_of::<CacheCounters>())),
            )
            .chain(
                self.arenas
                    .iter()
                    .map(|at| (*at, size_of::<ArenaCounters>())),
            )
            .collect();
        copy.resize(places.iter().map(|(_, length)| length).sum(), 0);
        let read = sys::read_memory_pieces(tid, &places, copy)?;
        let (page_bytes, rest) = copy.split_at(size_of::<Page>());
        let page = check_page(page_bytes, read)?;
        let rest = &rest[..read.saturating_sub(size_of::<Page>())];
        let (cache_bytes, arena_bytes) = rest
            .split_at_checked(self.caches.len() * size_of::<CacheCounters>())
            .unwrap_or((rest, &[]));
        let mut sum = Sum::of(&page);
        let caches = walk(
            tid,
            page.caches.get(),
            Known::new(&self.caches, cache_bytes),
            MOST_CACHES,
            |cache: &CacheCounters| {
                sum.add_cache(cache);
                cache.next.get()
            },
        )?;
        let arenas = walk(
            tid,
            page.arenas.get(),
            Known::new(&self.arenas, arena_bytes),
            MOST_ARENAS,
            |arena: &ArenaCounters| {
                sum.add_arena(arena);
                arena.next.get()
            },
        )?;
        self.caches = caches;
        self.arenas = arenas;
        let (counters, classes) = sum.finish();
        Ok(Figures {
            page,
            counters,
            classes,
        })
    }

    /// Looks through the heap, by figures that were just read through the same thread; `places` is where large blocks may
    /// be.
    pub(super) fn walk(
        tid: u32,
        figures: &Figures,
        places: &[(u64, u64)],
        limits: walk::Limits,
    ) -> Walk {
        let large = walk::Large {
            blocks: figures.counters.live_large_blocks,
            places,
        };
        walk::walk(&figures.page, &MemoryOf(tid), large, limits)
    }

    /// Where the allocator's own records lie: its page, thread caches and arenas. They hold addresses of blocks that nobody
    /// else knows of.
    pub(super) fn records(&self) -> Vec<(u64, u64)> {
        let page = size_of::<Page>() as u64;
        let caches = self
            .caches
            .iter()
            .map(|at| (*at, size_of::<Cache>() as u64));
        let arenas = self
            .arenas
            .iter()
            .map(|at| (*at, crate::allocator::ARENA_BYTES as u64));
        caches
            .chain(arenas)
            .chain([(self.page, page)])
            .map(|(start, length)| (start, start.saturating_add(length)))
            .collect()
    }

    /// The heap errors that have not been told. Of many at once, the page keeps the latest.
    pub(super) fn new_errors(&mut self, figures: &Figures) -> Vec<HeapError> {
        let count = figures.page.error_count.get();
        let kept = KEPT_ERRORS as u64;
        let first = (self.errors_told + 1).max(count.saturating_sub(kept - 1).max(1));
        let errors = (first..=count)
            .filter_map(|number| {
                let slot = usize::try_from((number - 1) % kept).unwrap_or(0);
                heap_error(&figures.page.errors[slot], number)
            })
            .collect();
        self.errors_told = self.errors_told.max(count.min(u64::MAX - 1));
        errors
    }
}

/// Memory of a thread.
pub(super) struct MemoryOf(pub(super) u32);

impl walk::Memory for MemoryOf {
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
        sys::read_memory(self.0, address, bytes) == Ok(bytes.len())
    }
}

/// The page, if it is one of ours; `read` is how many of its bytes could be read.
fn check_page(bytes: &[u8], read: usize) -> Result<Page, ReadError> {
    let page = Page::from_bytes(bytes).filter(|_| read >= bytes.len());
    let Some(page) = page else {
        return Err(ReadError::Damaged("the page cannot be read".into()));
    };
    if page.magic.get() != MAGIC {
        return Err(ReadError::Damaged("what lies there is no page".into()));
    }
    let layout = page.layout_version.get();
    if layout != LAYOUT_VERSION {
        return Err(ReadError::OtherVersion {
            version: version(&page),
            layout,
        });
    }
    if usize::try_from(page.size.get()) != Ok(size_of::<Page>()) {
        return Err(ReadError::Damaged("the page has another size".into()));
    }
    Ok(page)
}

fn version(page: &Page) -> String {
    let text = page.version.split(|&byte| byte == 0).next();
    String::from_utf8_lossy(text.unwrap_or_default()).into_owned()
}

fn setup(page: &Page, address: u64) -> AllocatorSetup {
    let settings = &page.settings;
    let policy = settings.policy.get();
    AllocatorSetup {
        page: Address(address),
        version: version(page),
        policy: Policy::from_number(policy)
            .map_or_else(|| format!("number {policy}"), |known| known.name().into()),
        guard: settings.guard.get() != 0,
        abort_on_heap_error: settings.abort_on_error.get() != 0,
        mmap_threshold_bytes: settings.mmap_threshold.get(),
        trim_threshold_bytes: settings.trim_threshold.get(),
        top_pad_bytes: settings.top_pad.get(),
        arena_max: settings.arena_max.get(),
        sample_interval_bytes: settings.sample_interval.get(),
    }
}

/// An error as recorded; `None` if the record has another number by now, or means nothing.
fn heap_error(record: &ErrorRecord, number: u64) -> Option<HeapError> {
    let changed = record.changed.get();
    let size = record.size.get();
    (record.number.get() == number).then_some(())?;
    Some(HeapError {
        number: Some(number),
        kind: HeapErrorKind::from_number(record.kind.get())?.into(),
        found_by: FoundBy::from_number(record.found_by.get())?.into(),
        address: Address(record.address.get()),
        size_bytes: (size != u64::MAX).then_some(size),
        changed: (changed != 0).then_some(Address(changed)),
        tid: u32::try_from(record.tid.get()).ok(),
    })
}

/// Members of a list, in order, of which copies have been made.
struct Known<'a> {
    places: &'a [u64],
    /// The copies, one after the other; fewer than places if one could not be read.
    copies: &'a [u8],
}

impl<'a> Known<'a> {
    fn new(places: &'a [u64], copies: &'a [u8]) -> Self {
        Self { places, copies }
    }

    /// The copy of the member at `place`, if it is next in order.
    fn take<T: Plain>(&mut self, place: u64) -> Option<T> {
        let (first, places) = self.places.split_first()?;
        let (copy, copies) = self.copies.split_at_checked(size_of::<T>())?;
        (*first == place).then_some(())?;
        (self.places, self.copies) = (places, copies);
        T::from_bytes(copy)
    }
}

/// Follows a list; `visit` is given each member, and returns the address of the next. Returns where they are.
fn walk<T: Plain>(
    tid: u32,
    first: u64,
    mut known: Known<'_>,
    most: usize,
    mut visit: impl FnMut(&T) -> u64,
) -> Result<Vec<u64>, ReadError> {
    let mut places = Vec::with_capacity(known.places.len() + 1);
    let mut place = first;
    // A list that leads back to itself comes by this member again (Brent's algorithm).
    let mut mark = 0;
    let mut steps_to_next_mark = 1;
    while place != 0 {
        if place == mark || places.len() == most {
            return Err(ReadError::Damaged(
                "one of its lists leads back to itself, or is too long".into(),
            ));
        }
        if places.len() == steps_to_next_mark {
            mark = place;
            steps_to_next_mark *= 2;
        }
        let part = match known.take(place) {
            Some(part) => part,
            None => read_part(tid, place)?,
        };
        places.push(place);
        place = visit(&part);
    }
    Ok(places)
}

fn read_part<T: Plain>(tid: u32, place: u64) -> Result<T, ReadError> {
    let mut bytes = vec![0; size_of::<T>()];
    let read = sys::read_memory(tid, place, &mut bytes)?;
    T::from_bytes(&bytes[..read])
        .ok_or_else(|| ReadError::Damaged("one of its lists leads out of memory".into()))
}

#[cfg(test)]
mod tests {
    use std::mem::MaybeUninit;

    use super::*;

    /// All counters zero.
    fn zeroed<T: Plain>() -> Box<T> {
        // SAFETY: plain types consist of integers, for which zero bytes are a value.
        Box::new(unsafe { MaybeUninit::zeroed().assume_init() })
    }

    fn place<T>(part: &T) -> u64 {
        std::ptr::from_ref(part).expose_provenance() as u64
    }

    /// A page in our own memory.
    fn page() -> Box<Page> {
        let page: Box<Page> = zeroed();
        page.layout_version.set(LAYOUT_VERSION);
        page.size.set(u32::try_from(size_of::<Page>()).unwrap());
        page.settings.policy.set(Policy::Eager as u32);
        page.magic.set(MAGIC);
        page
    }

    fn own() -> u32 {
        std::process::id()
    }

    fn damage(reader: &mut Reader) -> String {
        match reader.read(own()) {
            Err(ReadError::Damaged(why)) => why,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn caches_and_arenas_are_added_up_also_new_ones_at_either_end() {
        let page = page();
        let mut reader = Reader::at(place(&*page));
        let caches: Vec<Box<CacheCounters>> = (0..4).map(|_| zeroed()).collect();
        let arenas: Vec<Box<ArenaCounters>> = (0..3).map(|_| zeroed()).collect();
        for (index, cache) in caches.iter().enumerate() {
            cache
                .requested_bytes
                .set(10_u64.pow(u32::try_from(index).unwrap()));
        }
        for (index, arena) in arenas.iter().enumerate() {
            arena
                .top_bytes
                .set(10_u64.pow(u32::try_from(index).unwrap()));
        }
        let mut expect = |requested, top| {
            for _ in 0..2 {
                let figures = reader.read(own()).unwrap();
                assert_eq!(figures.counters.requested_bytes, requested);
                assert_eq!(figures.counters.top_bytes, top);
            }
        };
        expect(0, 0);
        page.caches.set(place(&*caches[0]));
        page.arenas.set(place(&*arenas[0]));
        expect(1, 1);
        caches[1].next.set(place(&*caches[0]));
        page.caches.set(place(&*caches[1]));
        arenas[0].next.set(place(&*arenas[1]));
        expect(11, 11);
        caches[0].next.set(place(&*caches[2]));
        arenas[2].next.set(place(&*arenas[1]));
        arenas[0].next.set(place(&*arenas[2]));
        expect(111, 111);
        page.caches.set(place(&*caches[2]));
        page.arenas.set(0);
        expect(100, 0);
    }

    #[test]
    fn a_page_tells_how_the_allocator_is_set_up() {
        let page = page();
        page.settings.arena_max.set(7);
        let mut reader = Reader::at(place(&*page));
        let figures = reader.read(own()).unwrap();
        let setup = figures.setup(&reader);
        assert_eq!((setup.policy.as_str(), setup.arena_max), ("eager", 7));
        assert_eq!(setup.page, Address(place(&*page)));
        page.settings.policy.set(9);
        let figures = reader.read(own()).unwrap();
        assert_eq!(figures.setup(&reader).policy, "number 9");
    }

    #[test]
    fn pages_of_other_versions_and_other_things_are_refused() {
        let page = page();
        let mut reader = Reader::at(place(&*page));
        page.layout_version.set(LAYOUT_VERSION + 1);
        assert_eq!(
            reader.read(own()).unwrap_err(),
            ReadError::OtherVersion {
                version: String::new(),
                layout: LAYOUT_VERSION + 1,
            }
        );
        page.magic.set(1);
        assert!(damage(&mut reader).contains("no page"));
        for address in [1, 4096, u64::MAX, u64::MAX - 100, 1 << 63] {
            assert!(!damage(&mut Reader::at(address)).is_empty());
        }
    }

    #[test]
    fn lists_that_lead_astray_are_refused() {
        let page = page();
        let mut reader = Reader::at(place(&*page));
        let caches: Vec<Box<CacheCounters>> = (0..5).map(|_| zeroed()).collect();
        page.caches.set(place(&*caches[0]));
        for pair in caches.windows(2) {
            pair[0].next.set(place(&*pair[1]));
        }
        assert!(reader.read(own()).is_ok());
        for back_to in &caches {
            caches[4].next.set(place(&**back_to));
            assert!(damage(&mut reader).contains("back to itself"));
            assert!(damage(&mut Reader::at(place(&*page))).contains("back to itself"));
        }
        for wild in [1, 4096, u64::MAX, u64::MAX - 7] {
            caches[4].next.set(wild);
            assert!(!damage(&mut reader).is_empty());
            page.arenas.set(wild);
            assert!(!damage(&mut reader).is_empty());
            page.arenas.set(0);
        }
        caches[4].next.set(0);
        assert!(reader.read(own()).is_ok());
    }

    #[test]
    fn counters_of_any_value_add_up_without_a_panic() {
        let page = page();
        let cache: Box<CacheCounters> = zeroed();
        let arena: Box<ArenaCounters> = zeroed();
        page.caches.set(place(&*cache));
        page.arenas.set(place(&*arena));
        let fill = |start: u64, length: usize| {
            // SAFETY: integers of a box of ours; 0xff bytes are values of them.
            unsafe {
                std::ptr::with_exposed_provenance_mut::<u8>(usize::try_from(start).unwrap())
                    .write_bytes(0xff, length);
            }
        };
        fill(place(&*cache), size_of::<CacheCounters>());
        fill(place(&*arena), size_of::<ArenaCounters>());
        fill(place(&page.kernel), size_of_val(&page.kernel));
        cache.next.set(0);
        arena.next.set(0);
        let mut reader = Reader::at(place(&*page));
        for count in [1, 15, 16, 17, u64::MAX - 1, u64::MAX] {
            page.error_count.set(count);
            let figures = reader.read(own()).unwrap();
            assert!(reader.new_errors(&figures).is_empty());
        }
    }

    #[test]
    fn each_heap_error_is_told_once_and_lost_ones_are_passed_over() {
        let page = page();
        let mut reader = Reader::at(place(&*page));
        let record = |number: u64| {
            let slot = &page.errors[usize::try_from((number - 1) % 16).unwrap()];
            slot.kind.set(HeapErrorKind::DoubleFree as u32);
            slot.found_by.set(FoundBy::Free as u32);
            slot.address.set(number * 16);
            slot.size.set(u64::MAX);
            slot.number.set(number);
            page.error_count.set(number);
        };
        let mut told = || -> Vec<Option<u64>> {
            let figures = reader.read(own()).unwrap();
            let errors = reader.new_errors(&figures);
            assert!(errors.iter().all(|error| error.size_bytes.is_none()));
            errors.into_iter().map(|error| error.number).collect()
        };
        assert_eq!(told(), []);
        record(1);
        record(2);
        assert_eq!(told(), [Some(1), Some(2)]);
        assert_eq!(told(), []);
        (3..=20).for_each(record);
        assert_eq!(told(), (5..=20).map(Some).collect::<Vec<_>>());
        // The next one is being written over the oldest.
        page.errors[4].number.set(0);
        assert_eq!(told(), []);
        record(21);
        assert_eq!(told(), [Some(21)]);
    }

    #[test]
    fn a_process_that_is_gone_is_no_damage() {
        let mut child = std::process::Command::new("true").spawn().unwrap();
        child.wait().unwrap();
        assert_eq!(
            Reader::at(0x1000).read(child.id()).unwrap_err(),
            ReadError::Gone
        );
    }
}
