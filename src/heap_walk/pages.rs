//! Page by page: how much of a heap's free memory is in memory, what `malloc_trim` could give back of it, and what lies in
//! pages that also hold something in use.

use super::Image;
use super::Residency;

/// So much address space is asked about at a time.
const WINDOW: u64 = 32 << 20;
/// malloc_trim leaves a free chunk's header and links alone: `sizeof (struct malloc_chunk)`.
const CHUNK_STRUCTURE: u64 = 48;

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    Resident,
    Swapped,
    Absent,
}

/// Which pages of a stretch are in memory, asked window by window, and before the memory itself is read.
pub(super) struct Residence<'a> {
    image: &'a dyn Image,
    /// First address that has not been asked about.
    asked_to: u64,
    end: u64,
    page_size: u64,
    /// The windows that are remembered: the last and the one before.
    windows: [(u64, u64, Residency); 2],
    is_known: bool,
    resident: u64,
    swapped: u64,
}

impl<'a> Residence<'a> {
    /// Begins at `start`; both ends are taken out to whole pages.
    pub(super) fn new(image: &'a dyn Image, start: u64, end: u64) -> Self {
        let page_size = image.page_size();
        Self {
            image,
            asked_to: start & !(page_size - 1),
            end: end.saturating_add(page_size - 1) & !(page_size - 1),
            page_size,
            windows: Default::default(),
            is_known: true,
            resident: 0,
            swapped: 0,
        }
    }

    fn ask_to(&mut self, address: u64) {
        while self.is_known && self.asked_to < address.min(self.end) {
            let start = self.asked_to;
            let end = start.saturating_add(WINDOW).min(self.end);
            self.asked_to = end;
            let Some(residency) = self.image.residency(start, end) else {
                self.is_known = false;
                return;
            };
            let bytes = |runs: &[(u64, u64)]| -> u64 {
                runs.iter().map(|(from, to)| to.saturating_sub(*from)).sum()
            };
            self.resident += bytes(&residency.resident);
            self.swapped += bytes(&residency.swapped);
            self.windows.swap(0, 1);
            self.windows[1] = (start, end, residency);
        }
    }

    /// Asks about a page again, as the program may have touched it since.
    pub(super) fn ask_again(&mut self, address: u64) -> Place {
        let page = address & !(self.page_size - 1);
        let Some(residency) = self
            .image
            .residency(page, page.saturating_add(self.page_size))
        else {
            return Place::Resident;
        };
        if !residency.resident.is_empty() {
            return Place::Resident;
        }
        if residency.swapped.is_empty() {
            Place::Absent
        } else {
            Place::Swapped
        }
    }

    /// Where the page with this address is, and up to where its neighbours above are in the same place.
    pub(super) fn place(&mut self, address: u64) -> (Place, u64) {
        self.ask_to(address.saturating_add(1));
        if !self.is_known {
            return (Place::Resident, self.end);
        }
        for (start, end, residency) in &self.windows {
            if !(*start..*end).contains(&address) {
                continue;
            }
            let mut next = *end;
            for (place, runs) in [
                (Place::Resident, &residency.resident),
                (Place::Swapped, &residency.swapped),
            ] {
                let index = runs.partition_point(|(_, to)| *to <= address);
                if let Some((from, to)) = runs.get(index) {
                    if *from <= address {
                        return (place, *to);
                    }
                    next = next.min(*from);
                }
            }
            return (Place::Absent, next);
        }
        // Behind the stretch, or in a window that is forgotten.
        (Place::Resident, address.saturating_add(self.page_size))
    }

    /// Bytes in memory between two page boundaries.
    fn resident_between(&mut self, start: u64, end: u64) -> u64 {
        let mut at = start;
        let mut bytes = 0;
        while at < end {
            let (place, to) = self.place(at);
            let to = to.min(end).max(at.saturating_add(1));
            if place == Place::Resident {
                bytes += to - at;
            }
            at = to;
        }
        bytes
    }

    /// Bytes in memory and swapped out of the whole stretch; `None` when not known.
    pub(super) fn finish(mut self) -> Option<(u64, u64)> {
        self.ask_to(self.end);
        self.is_known.then_some((self.resident, self.swapped))
    }
}

/// What pages hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct PageSums {
    /// Free bytes in memory, tops included.
    pub(super) free_resident: u64,
    /// Of these, in whole pages that `malloc_trim` gives back by madvise.
    pub(super) trimmable: u64,
    /// Of these, in pages that hold something in use as well.
    pub(super) fragmented: u64,
}

/// Adds up pages, told of their contents in the order of addresses.
pub(super) struct Pages<'a> {
    pub(super) residence: Residence<'a>,
    page_size: u64,
    sums: PageSums,
    /// The page that is not complete yet.
    page: u64,
    free: u64,
    is_live: bool,
    /// The stretch of free chunks that is not complete yet: its beginning, and what can be given back of it so far.
    run: Option<(u64, u64)>,
}

impl<'a> Pages<'a> {
    pub(super) fn new(image: &'a dyn Image, start: u64, end: u64) -> Self {
        Self {
            residence: Residence::new(image, start, end),
            page_size: image.page_size(),
            sums: PageSums::default(),
            page: u64::MAX,
            free: 0,
            is_live: false,
            run: None,
        }
    }

    /// From `start` to `end` something is in use.
    pub(super) fn live(&mut self, start: u64, end: u64) {
        if end <= start {
            return;
        }
        self.end_run(false);
        let mask = !(self.page_size - 1);
        let (first, last) = (start & mask, (end - 1) & mask);
        self.turn_to(first);
        self.is_live = true;
        if last != first {
            self.turn_to(last);
            self.is_live = true;
        }
    }

    /// From `start` to `end` is a free chunk.
    pub(super) fn free(&mut self, start: u64, end: u64) {
        if end <= start {
            return;
        }
        let (begin, mut given_back) = self.run.take().unwrap_or((start, 0));
        let size = self.page_size;
        let mask = !(size - 1);
        let first_whole = begin.saturating_add(CHUNK_STRUCTURE + size - 1) & mask;
        let (first, last) = (start & mask, (end - 1) & mask);
        self.turn_to(first);
        if last == first {
            self.free += end - start;
        } else {
            self.free += first + size - start;
            // Whole pages; the last one may be continued.
            let (from, to) = (first + size, last);
            let beyond = first_whole.clamp(from, to);
            let kept = self.residence.resident_between(from, beyond);
            let resident = self.residence.resident_between(beyond, to);
            self.sums.free_resident += kept + resident;
            given_back += resident;
            let completed = self.complete();
            given_back += if first >= first_whole { completed } else { 0 };
            self.page = last;
            self.free = end - last;
        }
        if end.is_multiple_of(size) {
            let completed = self.complete();
            given_back += if last >= first_whole { completed } else { 0 };
            self.page = u64::MAX;
        }
        self.run = Some((begin, given_back));
    }

    /// The top, or what joins it: free, and given back from its end on if at all.
    pub(super) fn top(&mut self, start: u64, end: u64) {
        self.free(start, end);
        self.end_run(true);
    }

    /// Where the stretch of free chunks before this began, if there is one.
    pub(super) fn run_start(&self) -> Option<u64> {
        self.run.map(|(start, _)| start)
    }

    fn end_run(&mut self, joins_top: bool) {
        if let Some((_, given_back)) = self.run.take()
            && !joins_top
        {
            self.sums.trimmable += given_back;
        }
    }

    /// Goes on to another page.
    fn turn_to(&mut self, page: u64) {
        if self.page != page {
            self.complete();
            self.page = page;
        }
    }

    /// Adds up the page; returns its bytes if all of it is free and in memory.
    fn complete(&mut self) -> u64 {
        let (free, is_live) = (self.free, self.is_live);
        self.free = 0;
        self.is_live = false;
        if free == 0
            || self.page == u64::MAX
            || self.residence.place(self.page).0 != Place::Resident
        {
            return 0;
        }
        self.sums.free_resident += free;
        if is_live {
            self.sums.fragmented += free;
        }
        if free == self.page_size { free } else { 0 }
    }

    /// The sums; `None` when it is not known what is in memory. With them, bytes in memory and swapped out.
    pub(super) fn finish(mut self) -> Option<(PageSums, u64, u64)> {
        self.end_run(false);
        self.complete();
        let sums = self.sums;
        let (resident, swapped) = self.residence.finish()?;
        Some((sums, resident, swapped))
    }
}
