//! The memory of a process, for those who look through its heap.

use std::cell::Cell;
use std::cell::RefCell;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::MetadataExt;

use super::proc;
use super::sys;
use crate::heap_walk::Image;
use crate::heap_walk::Residency;
use crate::mapping;
use crate::mapping::Mapping;

/// Entries of `/proc/<pid>/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PRESENT: u64 = 1 << 63;
const SWAPPED: u64 = 1 << 62;

/// A process that runs, or stands still.
#[derive(Debug)]
pub(super) struct LiveImage {
    tid: u32,
    mappings: Vec<Mapping>,
    page_size: u64,
    /// `None` where it is not to be had.
    page_map: Option<File>,
    entries: RefCell<Vec<u8>>,
    read_bytes: Cell<u64>,
    /// Some of the memory is swapped out, or it is not known.
    is_swapped: bool,
}

impl LiveImage {
    /// The memory that thread `tid` sees, with these mappings.
    pub(super) fn new(tid: u32, mappings: Vec<Mapping>) -> Self {
        Self {
            tid,
            mappings,
            page_size: proc::page_size(),
            page_map: File::open(format!("/proc/{tid}/pagemap")).ok(),
            entries: RefCell::new(Vec::new()),
            read_bytes: Cell::new(0),
            is_swapped: proc::status(tid)
                .and_then(|status| status.vmswap)
                .is_none_or(|kibibytes| kibibytes > 0),
        }
    }

    /// Reads the mappings first.
    pub(super) fn open(tid: u32) -> std::io::Result<Self> {
        Ok(Self::new(tid, mapping::read(tid)?))
    }

    /// Bytes that were read so far.
    pub(super) fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    fn count(&self, bytes: usize) {
        self.read_bytes.set(self.read_bytes.get() + bytes as u64);
    }
}

/// Adds a stretch to others before it.
fn join(runs: &mut Vec<(u64, u64)>, start: u64, end: u64) {
    match runs.last_mut() {
        Some((_, last)) if *last == start => *last = end,
        _ => runs.push((start, end)),
    }
}

impl Image for LiveImage {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let length = sys::read_memory(self.tid, address, bytes).unwrap_or(0);
        self.count(length);
        length
    }

    fn read_words(&self, addresses: &[u64], words: &mut Vec<Option<u64>>) {
        words.clear();
        let mut pieces: Vec<(u64, usize)> = Vec::with_capacity(addresses.len());
        let mut bytes = vec![0; 8 * addresses.len()];
        let mut rest = addresses;
        while !rest.is_empty() {
            pieces.clear();
            pieces.extend(rest.iter().map(|address| (*address, 8)));
            let length = sys::read_memory_pieces(self.tid, &pieces, &mut bytes[..8 * rest.len()])
                .unwrap_or(0);
            self.count(length);
            let (read, _) = bytes[..length].as_chunks::<8>();
            words.extend(read.iter().map(|word| Some(u64::from_le_bytes(*word))));
            rest = &rest[read.len()..];
            if let Some((_, behind)) = rest.split_first() {
                words.push(None);
                rest = behind;
            }
        }
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        let pages = self.page_map.as_ref()?;
        let first = start / self.page_size;
        let many = end.div_ceil(self.page_size).checked_sub(first)?;
        let mut entries = self.entries.borrow_mut();
        entries.resize(usize::try_from(many.checked_mul(8)?).ok()?, 0);
        pages.read_exact_at(&mut entries, first * 8).ok()?;
        let mut residency = Residency::default();
        let (words, _) = entries.as_chunks::<8>();
        let mut from = first;
        let mut state = 0;
        let tell = |residency: &mut Residency, state: u64, from: u64, to: u64| {
            let (from, to) = (from * self.page_size, to * self.page_size);
            if state & PRESENT != 0 {
                join(&mut residency.resident, from, to);
            } else if state & SWAPPED != 0 {
                join(&mut residency.swapped, from, to);
            }
        };
        for (entry, page) in words.iter().zip(first..) {
            let entry = u64::from_ne_bytes(*entry) & (PRESENT | SWAPPED);
            if entry != state {
                tell(&mut residency, state, from, page);
                from = page;
                state = entry;
            }
        }
        tell(&mut residency, state, from, first + many);
        Some(residency)
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        let name = mapping
            .name
            .as_deref()
            .filter(|name| name.starts_with('/'))?;
        // The link that the kernel keeps to the very file; or the path, in the program's own root folder.
        let kept = format!(
            "/proc/{}/map_files/{:x}-{:x}",
            self.tid, mapping.start.0, mapping.end.0
        );
        let path = format!("/proc/{}/root{name}", self.tid);
        [kept, path]
            .into_iter()
            .filter_map(|path| File::open(path).ok())
            .find(|file| {
                file.metadata()
                    .is_ok_and(|metadata| metadata.is_file() && metadata.ino() == mapping.inode)
            })
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn may_be_swapped(&self) -> bool {
        self.is_swapped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_that_cannot_be_read_do_not_hide_the_others() {
        let image = LiveImage::open(std::process::id()).unwrap();
        let values = [11_u64, 22, 33];
        let place = values.as_ptr().expose_provenance() as u64;
        let mut words = Vec::new();
        image.read_words(&[place, 0, place + 16, 8, place + 8], &mut words);
        assert_eq!(words, [Some(11), None, Some(33), None, Some(22)]);
        assert_eq!(image.read_bytes(), 24);
    }

    #[test]
    fn pages_that_were_never_touched_are_not_resident() {
        let page = proc::page_size();
        let bytes = usize::try_from(page).unwrap();
        let mut memory = vec![0_u8; 64 * bytes];
        let first = memory.as_ptr().expose_provenance();
        let start = first.next_multiple_of(bytes);
        memory[start - first + 40 * bytes + 8] = 77;
        let start = start as u64;
        let image = LiveImage::open(std::process::id()).unwrap();
        let residency = image.residency(start, start + 48 * page).unwrap();
        let touched = start + 40 * page;
        let is_in = |address: u64| {
            residency
                .resident
                .iter()
                .any(|(from, to)| (*from..*to).contains(&address))
        };
        assert!(is_in(touched));
        assert!(
            residency
                .resident
                .iter()
                .all(|(from, to)| from < to && *to <= start + 48 * page)
        );
    }

    #[test]
    fn the_file_of_a_mapping_is_the_very_file() {
        let image = LiveImage::open(std::process::id()).unwrap();
        let of_file = image
            .mappings()
            .iter()
            .find(|mapping| mapping.inode != 0 && mapping.permissions.execute)
            .unwrap();
        let file = image.file(of_file).unwrap();
        assert_eq!(file.metadata().unwrap().ino(), of_file.inode);
        let mut other = of_file.clone();
        other.inode += 1;
        assert!(image.file(&other).is_none());
    }
}
