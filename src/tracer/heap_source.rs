//! The memory of a living process, for those who look through its heap.
//!
//! Nothing here stops the process. What is told is what was so when the kernel was asked.

use std::cell::Cell;
use std::cell::OnceCell;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use super::attach;
use super::attach::AttachError;
use super::modules;
use super::proc;
use super::sys;
use crate::heap_walk::Image;
use crate::heap_walk::Residency;
use crate::mapping;
use crate::mapping::Mapping;

/// Words that are asked for by one system call (UIO_MAXIOV, linux/uio.h).
const WORDS_AT_ONCE: usize = 1024;
/// So many times one call of `read_words` goes on behind a word that cannot be read.
const MOST_GAPS: u32 = 256;
/// Stretches that one PAGEMAP_SCAN returns.
const STRETCHES_AT_ONCE: usize = 512;
/// Pages whose state is read from the pagemap file at once.
const PAGES_AT_ONCE: usize = 8192;

/// The memory of a living process.
///
/// Threads come and go: when the one that is read through has ended, another of the same process takes its place. After
/// an exec the numbers stand for another memory: [`LiveImage::is_gone`] tells.
#[derive(Debug)]
pub struct LiveImage {
    /// A thread that has this memory.
    tid: Cell<u32>,
    /// Its process, where another of its threads may be asked.
    process: Option<u32>,
    mappings: Vec<Mapping>,
    page_size: u64,
    /// Belongs to the memory, not to the number: it stays with this one over an exec. `None` where we may not look.
    pagemap: Option<File>,
    /// Likewise; opened when it is needed.
    memory: OnceCell<Option<File>>,
    /// Whether the kernel knows PAGEMAP_SCAN, as far as it was asked.
    can_scan: Cell<bool>,
    read_bytes: Cell<u64>,
    /// Bytes lazily free by mapping, where there are some; read when it is needed.
    lazily_free: OnceCell<Option<Vec<LazilyFree>>>,
    /// Some of the memory is swapped out, or it is not known.
    is_swapped: bool,
}

impl LiveImage {
    /// The memory of a thread that may be read, as a tracee may.
    #[must_use]
    pub fn of_tracee(tid: u32, mappings: Vec<Mapping>) -> Self {
        Self {
            tid: Cell::new(tid),
            process: None,
            mappings,
            page_size: proc::page_size(),
            pagemap: File::open(format!("/proc/{tid}/pagemap")).ok(),
            memory: OnceCell::new(),
            can_scan: Cell::new(true),
            read_bytes: Cell::new(0),
            lazily_free: OnceCell::new(),
            is_swapped: proc::status(tid)
                .and_then(|status| status.vmswap)
                .is_none_or(|kibibytes| kibibytes > 0),
        }
    }

    /// For reads at known places only: of mappings, files and pages nothing is known. Costs nothing to make.
    pub(super) fn bare(tid: u32) -> Self {
        Self {
            tid: Cell::new(tid),
            process: None,
            mappings: Vec::new(),
            page_size: proc::page_size(),
            pagemap: None,
            memory: OnceCell::new(),
            can_scan: Cell::new(false),
            read_bytes: Cell::new(0),
            lazily_free: OnceCell::new(),
            is_swapped: true,
        }
    }

    /// Likewise, with the mappings that it has now.
    pub(super) fn open(tid: u32) -> std::io::Result<Self> {
        Ok(Self::of_tracee(tid, mapping::read(tid)?))
    }

    /// The memory of a running process; `pid` may be the number of any of its threads. Whether somebody traces it does not
    /// matter.
    ///
    /// # Errors
    ///
    /// There is no such process, it has no memory, or we may not read it.
    pub fn of_process(pid: u32) -> Result<Self, AttachError> {
        let process = attach::living_process(pid)?;
        let (tid, mappings) = readable_thread(process, pid)?;
        let image = Self {
            process: Some(process),
            ..Self::of_tracee(tid, mappings)
        };
        // The mappings may be seen by more people than the memory (ptrace(2), "Ptrace access mode checking").
        match sys::read_memory(tid, 0, &mut [0]) {
            Err(Errno::EPERM) => Err(attach::diagnose(pid, tid, Errno::EPERM)),
            _ => Ok(image),
        }
    }

    /// Bytes of its memory that were read so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    /// Reads the mappings again, as the process has run since. Returns whether they could be read.
    pub fn refresh(&mut self) -> bool {
        let Some(mappings) = self.mappings_by_now() else {
            return false;
        };
        self.mappings = mappings;
        self.lazily_free = OnceCell::new();
        true
    }

    /// Whether this memory is no more: the process has ended, or runs another program. `false` also when that cannot be
    /// told.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        // For a memory without users, nothing can be read (fs/proc/base.c, `mem_rw`).
        let Some(memory) = self.memory() else {
            return false;
        };
        self.mappings
            .iter()
            .filter(|mapping| mapping.permissions.read)
            .take(8)
            .all(|mapping| matches!(memory.read_at(&mut [0], mapping.start.0), Ok(0)))
    }

    fn memory(&self) -> Option<&File> {
        self.memory
            .get_or_init(|| File::open(format!("/proc/{}/mem", self.tid.get())).ok())
            .as_ref()
    }

    fn count(&self, bytes: usize) {
        self.read_bytes
            .set(self.read_bytes.get().saturating_add(bytes as u64));
    }

    fn other_threads(&self) -> impl Iterator<Item = u32> + use<> {
        self.process.into_iter().flat_map(threads_of)
    }

    /// Asks the kernel through a thread; when that has ended, through another one, once.
    fn ask<T>(&self, question: impl Fn(u32) -> Result<T, Errno>) -> Result<T, Errno> {
        match question(self.tid.get()) {
            Err(Errno::ESRCH) => {
                let other = self
                    .other_threads()
                    .find(|tid| *tid != self.tid.get() && !attach::is_dead(*tid))
                    .ok_or(Errno::ESRCH)?;
                self.tid.set(other);
                question(other)
            }
            answer => answer,
        }
    }

    /// Reads what the program itself may read.
    fn read_open(&self, address: u64, bytes: &mut [u8]) -> usize {
        let bytes = std::cell::RefCell::new(bytes);
        self.ask(|tid| sys::read_memory(tid, address, &mut bytes.borrow_mut()))
            .unwrap_or(0)
    }

    /// Reads what the program itself may not read, such as memory that it only executes; no further than that goes.
    fn read_closed(&self, address: u64, bytes: &mut [u8]) -> usize {
        let Some(mapping) = self.mapping_at(address) else {
            return 0;
        };
        if mapping.permissions.read {
            return 0;
        }
        let left = usize::try_from(mapping.end.0 - address).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        let Some(memory) = self.memory() else {
            return 0;
        };
        memory.read_at(&mut bytes[..wanted], address).unwrap_or(0)
    }

    fn mapping_at(&self, address: u64) -> Option<&Mapping> {
        let after = self
            .mappings
            .partition_point(|mapping| mapping.start.0 <= address);
        let mapping = self.mappings.get(after.checked_sub(1)?)?;
        (address < mapping.end.0).then_some(mapping)
    }

    /// Residency by PAGEMAP_SCAN. `Err` where the kernel does not know it, or not these pages.
    fn scan(&self, pagemap: &File, start: u64, end: u64) -> Result<Residency, Errno> {
        let mut found = Residency::default();
        let mut stretches = vec![Stretch::default(); STRETCHES_AT_ONCE];
        let mut from = start;
        while from < end {
            let (count, walked) = scan_pages(pagemap, from, end, &mut stretches)?;
            for stretch in stretches.iter().take(count) {
                let page = Page::of_scan(stretch.categories);
                note(&mut found, stretch.start, stretch.end, page);
            }
            if walked <= from {
                return Err(Errno::EINVAL);
            }
            from = walked;
        }
        Ok(found)
    }

    /// Residency by the pagemap file itself. `None` where it has nothing of these pages.
    fn read_pagemap(&self, pagemap: &File, start: u64, end: u64) -> Option<Residency> {
        let mut found = Residency::default();
        let mut buffer = vec![0; 8 * PAGES_AT_ONCE];
        let (mut page, last) = (start / self.page_size, end / self.page_size);
        while page < last {
            let wanted = usize::try_from(last - page)
                .map_or(PAGES_AT_ONCE, |pages| pages.min(PAGES_AT_ONCE));
            let read = pagemap
                .read_at(&mut buffer[..8 * wanted], page.checked_mul(8)?)
                .ok()?;
            let (entries, _) = buffer[..read].as_chunks::<8>();
            if entries.is_empty() {
                return None;
            }
            for entry in entries {
                let at = page * self.page_size;
                let state = Page::of_pagemap(u64::from_ne_bytes(*entry));
                note(&mut found, at, at + self.page_size, state);
                page += 1;
            }
        }
        Some(found)
    }
}

/// A thread of a process whose mappings can be read, and these. The first thread's cannot when it has ended before the
/// others.
fn readable_thread(process: u32, pid: u32) -> Result<(u32, Vec<Mapping>), AttachError> {
    let mut refused = None;
    for tid in std::iter::once(process).chain(threads_of(process)) {
        match mapping::read(tid) {
            Ok(mappings) if !mappings.is_empty() => return Ok((tid, mappings)),
            Ok(_) => {}
            Err(error) => {
                refused = refused.or(error
                    .raw_os_error()
                    .map(Errno::from_raw)
                    .filter(|errno| matches!(errno, Errno::EPERM | Errno::EACCES)));
            }
        }
    }
    Err(match refused {
        Some(_) => attach::diagnose(pid, process, Errno::EPERM),
        None => AttachError::NoSuchProcess(pid),
    })
}

fn threads_of(process: u32) -> impl Iterator<Item = u32> {
    proc::threads(process).unwrap_or_default().into_iter()
}

/// A mapping of which a part was given back with `MADV_FREE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct LazilyFree {
    start: u64,
    end: u64,
    bytes: u64,
}

/// The mappings with a `LazyFree` above zero (proc(5), `/proc/pid/smaps`).
fn lazily_free(smaps: &[u8]) -> Vec<LazilyFree> {
    let mut found = Vec::new();
    let mut range = None;
    for line in smaps.split(|byte| *byte == b'\n') {
        if let Some(value) = line.strip_prefix(b"LazyFree:") {
            let kibibytes = std::str::from_utf8(value)
                .ok()
                .and_then(|value| value.trim().strip_suffix(" kB")?.parse::<u64>().ok());
            if let Some(((start, end), kibibytes)) = range.zip(kibibytes)
                && kibibytes > 0
            {
                let bytes = kibibytes.saturating_mul(1024);
                found.push(LazilyFree { start, end, bytes });
            }
        } else if line.first().is_some_and(u8::is_ascii_hexdigit)
            && let [mapping] = mapping::parse(line).as_slice()
        {
            range = Some((mapping.start.0, mapping.end.0));
        }
    }
    found
}

/// Of these, what lies from `start` to `end`; `None` when of one mapping it cannot be told which side it is on.
fn lazily_free_within(mappings: &[LazilyFree], start: u64, end: u64) -> Option<u64> {
    mappings
        .iter()
        .filter(|mapping| mapping.start < end && start < mapping.end)
        .try_fold(0_u64, |sum, mapping| {
            let is_within = start <= mapping.start && mapping.end <= end;
            is_within.then(|| sum.saturating_add(mapping.bytes))
        })
}

impl Image for LiveImage {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn mappings_by_now(&self) -> Option<Vec<Mapping>> {
        let threads = std::iter::once(self.tid.get()).chain(self.other_threads());
        for tid in threads {
            match mapping::read(tid) {
                Ok(mappings) if !mappings.is_empty() => {
                    self.tid.set(tid);
                    return Some(mappings);
                }
                _ => {}
            }
        }
        None
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        // There is nothing behind the last address.
        let most = usize::try_from(u64::MAX - address).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(most);
        let bytes = &mut bytes[..wanted];
        let mut done = 0;
        // Each round ends at the edge of a mapping that changes who may read.
        while done < wanted {
            let at = address + done as u64;
            let mut read = self.read_open(at, &mut bytes[done..]);
            if read == 0 {
                read = self.read_closed(at, &mut bytes[done..]);
            }
            if read == 0 {
                break;
            }
            done += read;
        }
        self.count(done);
        done
    }

    fn read_words(&self, addresses: &[u64], words: &mut Vec<Option<u64>>) {
        words.clear();
        let mut buffer = [0; 8 * WORDS_AT_ONCE];
        let mut pieces = Vec::with_capacity(addresses.len().min(WORDS_AT_ONCE));
        let mut gaps = 0;
        let mut rest = addresses;
        while !rest.is_empty() && gaps <= MOST_GAPS {
            let now = &rest[..rest.len().min(WORDS_AT_ONCE)];
            pieces.clear();
            pieces.extend(now.iter().map(|address| (*address, 8)));
            let room = std::cell::RefCell::new(&mut buffer[..8 * now.len()]);
            let read = self
                .ask(|tid| sys::read_memory_pieces(tid, &pieces, &mut room.borrow_mut()))
                .unwrap_or(0);
            let (read_words, _) = buffer[..read.min(8 * now.len())].as_chunks::<8>();
            self.count(8 * read_words.len());
            words.extend(
                read_words
                    .iter()
                    .map(|word| Some(u64::from_ne_bytes(*word))),
            );
            rest = &rest[read_words.len()..];
            if read_words.len() < now.len() {
                // The first word that could not be read; it may still be one that the program itself may not read.
                words.push(rest.first().and_then(|address| self.word(*address)));
                rest = rest.get(1..).unwrap_or_default();
                gaps += 1;
            }
        }
        words.resize(addresses.len(), None);
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        let pagemap = self.pagemap.as_ref()?;
        if self.can_scan.get() {
            match self.scan(pagemap, start, end) {
                Ok(found) => return Some(found),
                // Before Linux 6.7 the file has no ioctl.
                Err(Errno::ENOTTY) => self.can_scan.set(false),
                Err(_) => {}
            }
        }
        self.read_pagemap(pagemap, start, end)
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        if mapping.inode == 0 {
            return None;
        }
        let path = mapping.name.as_deref()?;
        modules::open_mapped(self.tid.get(), mapping, path).map(|(file, _)| file)
    }

    fn lazily_free_bytes(&self, start: u64, end: u64) -> Option<u64> {
        let mappings = self.lazily_free.get_or_init(|| {
            let text = std::fs::read(format!("/proc/{}/smaps", self.tid.get())).ok()?;
            Some(lazily_free(&text))
        });
        lazily_free_within(mappings.as_ref()?, start, end)
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn may_be_swapped(&self) -> bool {
        self.is_swapped
    }
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Resident,
    Swapped,
    /// Nowhere: never touched, or given back. The zero page that the kernel shows to those who read such a page, and marks
    /// such as guard pages, are no memory either.
    Absent,
}

/// Categories of PAGEMAP_SCAN (linux/fs.h).
const PAGE_IS_PRESENT: u64 = 1 << 3;
const PAGE_IS_SWAPPED: u64 = 1 << 4;
const PAGE_IS_PFNZERO: u64 = 1 << 5;
/// Since Linux 6.15; kernels before have no such pages in 6.7 to 6.12, and count them as swapped in 6.13 and 6.14.
const PAGE_IS_GUARD: u64 = 1 << 8;
/// Bits of an entry of `/proc/<pid>/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const ENTRY_PRESENT: u64 = 1 << 63;
const ENTRY_SWAPPED: u64 = 1 << 62;
const ENTRY_GUARD: u64 = 1 << 58;

impl Page {
    fn of_scan(categories: u64) -> Self {
        if categories & (PAGE_IS_PFNZERO | PAGE_IS_GUARD) != 0 {
            Self::Absent
        } else if categories & PAGE_IS_PRESENT != 0 {
            Self::Resident
        } else if categories & PAGE_IS_SWAPPED != 0 {
            Self::Swapped
        } else {
            Self::Absent
        }
    }

    /// The zero page cannot be told here: its number is for the privileged only.
    fn of_pagemap(entry: u64) -> Self {
        if entry & ENTRY_PRESENT != 0 {
            Self::Resident
        } else if entry & ENTRY_SWAPPED != 0 && entry & ENTRY_GUARD == 0 {
            Self::Swapped
        } else {
            Self::Absent
        }
    }
}

/// Adds a stretch behind those that were found.
fn note(found: &mut Residency, start: u64, end: u64, page: Page) {
    let stretches = match page {
        Page::Resident => &mut found.resident,
        Page::Swapped => &mut found.swapped,
        Page::Absent => return,
    };
    match stretches.last_mut() {
        Some(last) if last.1 == start => last.1 = end,
        _ => stretches.push((start, end)),
    }
}

/// `struct page_region` of linux/fs.h.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
struct Stretch {
    start: u64,
    end: u64,
    categories: u64,
}

/// `struct pm_scan_arg` of linux/fs.h.
#[derive(Debug, Default)]
#[repr(C)]
struct ScanArguments {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    /// Written by the kernel: how far it came.
    walk_end: u64,
    stretches: u64,
    stretches_length: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// Finds out about pages, as many stretches as there is room for; returns how many, and how far it came.
fn scan_pages(
    pagemap: &File,
    start: u64,
    end: u64,
    stretches: &mut [Stretch],
) -> Result<(usize, u64), Errno> {
    let wanted = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_PFNZERO;
    match scan_for(pagemap, start, end, stretches, wanted | PAGE_IS_GUARD) {
        // A category that this kernel does not know.
        Err(Errno::EINVAL) => scan_for(pagemap, start, end, stretches, wanted),
        other => other,
    }
}

fn scan_for(
    pagemap: &File,
    start: u64,
    end: u64,
    stretches: &mut [Stretch],
    categories: u64,
) -> Result<(usize, u64), Errno> {
    // _IOWR('f', 16, struct pm_scan_arg), linux/fs.h.
    const PAGEMAP_SCAN: libc::Ioctl = 0xc060_6610_u32 as libc::Ioctl;
    let mut arguments = ScanArguments {
        size: size_of::<ScanArguments>() as u64,
        start,
        end,
        stretches: stretches.as_mut_ptr().expose_provenance() as u64,
        stretches_length: stretches.len() as u64,
        category_anyof_mask: PAGE_IS_PRESENT | PAGE_IS_SWAPPED,
        return_mask: categories,
        ..ScanArguments::default()
    };
    // SAFETY: the kernel reads and writes `arguments`, and writes at most `stretches_length` stretches to `stretches`,
    // which we hold alone; any bytes are valid stretches.
    let count = unsafe { libc::ioctl(pagemap.as_raw_fd(), PAGEMAP_SCAN, &raw mut arguments) };
    let count = Errno::result(count)?;
    Ok((usize::try_from(count).unwrap_or(0), arguments.walk_end))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Anonymous memory of ours, unmapped in the end.
    struct Pages {
        start: u64,
        bytes: usize,
    }

    impl Pages {
        fn new(pages: usize) -> Self {
            let bytes = pages * 4096;
            // SAFETY: a new private mapping, which nothing else uses.
            let start = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    bytes,
                    libc::PROT_READ | libc::PROT_WRITE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
                    -1,
                    0,
                )
            };
            assert_ne!(start, libc::MAP_FAILED);
            // SAFETY: as above. Huge pages would make neighbours resident.
            unsafe { libc::madvise(start, bytes, libc::MADV_NOHUGEPAGE) };
            Self {
                start: start.expose_provenance() as u64,
                bytes,
            }
        }

        fn page(&self, page: u64) -> u64 {
            self.start + 4096 * page
        }

        fn write(&self, page: u64, word: u64) {
            let place = std::ptr::with_exposed_provenance_mut::<u64>(
                usize::try_from(self.page(page)).unwrap(),
            );
            // SAFETY: within the mapping, aligned.
            unsafe { place.write_volatile(word) };
        }

        fn protect(&self, page: u64, protection: i32) {
            let place =
                std::ptr::with_exposed_provenance_mut(usize::try_from(self.page(page)).unwrap());
            // SAFETY: within the mapping, which nothing else uses.
            assert_eq!(unsafe { libc::mprotect(place, 4096, protection) }, 0);
        }
    }

    impl Drop for Pages {
        fn drop(&mut self) {
            let place = std::ptr::with_exposed_provenance_mut(usize::try_from(self.start).unwrap());
            // SAFETY: nothing refers to it any more.
            unsafe { libc::munmap(place, self.bytes) };
        }
    }

    fn ourselves() -> LiveImage {
        LiveImage::of_process(std::process::id()).unwrap()
    }

    #[test]
    fn memory_that_is_lazily_free_is_told_by_mapping() {
        let smaps = b"7f0000000000-7f0000100000 rw-p 00000000 00:00 0 \n\
            Size:               1024 kB\n\
            LazyFree:             64 kB\n\
            VmFlags: rd wr \n\
            7f0000200000-7f0000300000 rw-p 00000000 00:00 0 \n\
            LazyFree:              0 kB\n";
        let found = lazily_free(smaps);
        let (start, end) = (0x7f00_0000_0000, 0x7f00_0010_0000);
        let bytes = 64 << 10;
        assert_eq!(found, [LazilyFree { start, end, bytes }]);
        assert_eq!(lazily_free_within(&found, start, end), Some(bytes));
        assert_eq!(lazily_free_within(&found, start, u64::MAX), Some(bytes));
        assert_eq!(lazily_free_within(&found, end, u64::MAX), Some(0));
        // It may lie in the other half.
        assert_eq!(lazily_free_within(&found, start, end - 4096), None);
    }

    #[test]
    fn words_are_read_around_those_that_cannot_be() {
        let pages = Pages::new(4);
        pages.write(0, 11);
        pages.write(3, 44);
        let image = ourselves();
        let mut words = vec![Some(1)];
        image.read_words(
            &[
                pages.page(0),
                0,
                u64::MAX,
                pages.page(3),
                u64::MAX - 7,
                pages.page(1),
            ],
            &mut words,
        );
        assert_eq!(words, [Some(11), None, None, Some(44), None, Some(0)]);
        assert_eq!(image.read_bytes(), 24);
        image.read_words(&[], &mut words);
        assert!(words.is_empty());
    }

    #[test]
    fn more_words_than_fit_into_one_call_are_read_in_order() {
        let pages = Pages::new(3000);
        let addresses: Vec<u64> = (0..3000).map(|page| pages.page(page)).collect();
        for page in 0..3000 {
            pages.write(page, page + 1);
        }
        let mut words = Vec::new();
        ourselves().read_words(&addresses, &mut words);
        assert_eq!(words.len(), 3000);
        assert!(
            words
                .iter()
                .zip(1..)
                .all(|(word, page)| *word == Some(page))
        );
        // Whoever asks for nothing but wrong addresses does not keep us busy.
        let wrong = vec![16; 100_000];
        ourselves().read_words(&wrong, &mut words);
        assert_eq!(words.len(), 100_000);
        assert!(words.iter().all(Option::is_none));
    }

    #[test]
    fn memory_that_the_program_may_not_read_is_read() {
        let pages = Pages::new(3);
        for page in 0..3 {
            pages.write(page, 7);
        }
        pages.protect(1, libc::PROT_NONE);
        let image = ourselves();
        let mut bytes = vec![0xff; 3 * 4096];
        let read = image.read(pages.start, &mut bytes);
        // Kernels can be told to refuse this (proc_mem.force_override, Linux 6.12).
        assert!(read == 3 * 4096 || read == 4096, "{read}");
        if read > 4096 {
            assert_eq!(bytes[4096], 7);
            assert_eq!(image.word(pages.page(1)), Some(7));
        }
        assert_eq!(image.read(u64::MAX - 3, &mut bytes), 0);
        assert_eq!(image.read(0, &mut bytes), 0);
        assert_eq!(image.read(pages.start, &mut []), 0);
    }

    #[test]
    fn reading_ends_where_memory_does() {
        let pages = Pages::new(2);
        pages.write(0, 3);
        let image = ourselves();
        // SAFETY: the second page, which nothing uses.
        unsafe {
            libc::munmap(
                std::ptr::with_exposed_provenance_mut(usize::try_from(pages.page(1)).unwrap()),
                4096,
            )
        };
        let mut bytes = vec![0; 8192];
        assert_eq!(image.read(pages.page(0), &mut bytes), 4096);
        assert_eq!(bytes[0], 3);
    }

    #[test]
    fn both_ways_to_learn_of_residency_agree() {
        let pages = Pages::new(64);
        for page in [0, 1, 2, 7, 63] {
            pages.write(page, 1);
        }
        let expected: Vec<(u64, u64)> = [(0, 3), (7, 8), (63, 64)]
            .map(|(from, to)| (pages.page(from), pages.page(to)))
            .into();
        let image = ourselves();
        let found = image.residency(pages.page(0), pages.page(64)).unwrap();
        assert_eq!(found.resident, expected);
        assert_eq!(found.swapped, []);
        let by_file = image
            .read_pagemap(
                image.pagemap.as_ref().unwrap(),
                pages.page(0),
                pages.page(64),
            )
            .unwrap();
        assert_eq!(by_file, found);
    }

    #[test]
    fn residency_of_more_stretches_than_fit_into_one_call_is_complete() {
        let pages = Pages::new(4096);
        for page in (0..4096).step_by(2) {
            pages.write(page, 1);
        }
        let found = ourselves()
            .residency(pages.page(0), pages.page(4096))
            .unwrap();
        assert_eq!(found.resident.len(), 2048);
        assert_eq!(found.resident[2047], (pages.page(4094), pages.page(4095)));
    }

    #[test]
    fn reading_does_not_make_pages_resident() {
        let pages = Pages::new(64);
        pages.write(5, 1);
        let image = ourselves();
        assert_eq!(image.read(pages.start, &mut vec![0; 64 * 4096]), 64 * 4096);
        let found = image.residency(pages.page(0), pages.page(64)).unwrap();
        if image.can_scan.get() {
            assert_eq!(found.resident, [(pages.page(5), pages.page(6))]);
        }
    }

    #[test]
    fn guard_pages_and_the_zero_page_are_no_memory() {
        assert_eq!(Page::of_scan(PAGE_IS_PRESENT), Page::Resident);
        assert_eq!(
            Page::of_scan(PAGE_IS_PRESENT | PAGE_IS_PFNZERO),
            Page::Absent
        );
        assert_eq!(Page::of_scan(PAGE_IS_SWAPPED | PAGE_IS_GUARD), Page::Absent);
        assert_eq!(Page::of_scan(PAGE_IS_SWAPPED), Page::Swapped);
        assert_eq!(Page::of_pagemap(ENTRY_SWAPPED), Page::Swapped);
        assert_eq!(Page::of_pagemap(ENTRY_SWAPPED | ENTRY_GUARD), Page::Absent);
        assert_eq!(Page::of_pagemap(0), Page::Absent);
    }

    #[test]
    fn what_has_no_pages_has_no_residency() {
        let image = ourselves();
        assert_eq!(image.residency(u64::MAX - 8191, u64::MAX - 4095), None);
    }

    #[test]
    fn the_file_of_a_mapping_is_the_very_one() {
        let image = ourselves();
        let own = std::fs::read_link("/proc/self/exe").unwrap();
        let mapping = image
            .mappings()
            .iter()
            .find(|mapping| mapping.name.as_deref() == own.to_str())
            .unwrap();
        assert!(image.file(mapping).is_some());
        let other = Mapping {
            inode: mapping.inode + 1,
            start: crate::units::Address(mapping.start.0 + 4096),
            ..mapping.clone()
        };
        assert!(image.file(&other).is_none());
    }

    #[test]
    fn a_process_that_has_gone_is_known_to_be() {
        let mut child = std::process::Command::new("sleep")
            .arg("1000")
            .spawn()
            .unwrap();
        let mut image = LiveImage::of_process(child.id()).unwrap();
        assert!(!image.is_gone());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(image.is_gone());
        assert!(!image.refresh());
        let start = image.mappings()[0].start.0;
        assert_eq!(image.read(start, &mut [0; 8]), 0);
        assert_eq!(image.residency(start, start + 4096), None);
        assert!(matches!(
            LiveImage::of_process(child.id()),
            Err(AttachError::NoSuchProcess(_))
        ));
    }
}
