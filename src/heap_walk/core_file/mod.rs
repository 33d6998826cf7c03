//! The memory of a program that has ended, or was copied: an ELF core file (core(5), gcore(1)).
//!
//! Nothing in the file is believed: each offset and count is checked, and it is read, not mapped, as a mapped file that
//! somebody shortens would kill us.

mod backing;
mod elf;
mod error;
mod notes;
#[cfg(test)]
mod tests;

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::rc::Rc;

pub use self::error::CoreError;
pub use self::notes::CoreProgram;
pub use self::notes::CoreThread;

use self::backing::Backing;
use self::backing::read_full;
use self::elf::Foreign;
use self::elf::HEADER_BYTES;
use self::elf::Header;
use self::elf::PROGRAM_HEADER_BYTES;
use self::elf::ProgramHeader;
use self::notes::Notes;
use super::Image;
use super::Residency;
use crate::mapping::Mapping;
use crate::mapping::Permissions;
use crate::units::Address;

/// Most program headers: a process has up to 65,530 mappings, unless `vm.max_map_count` says otherwise.
const MOST_SEGMENTS: u64 = 1 << 18;
/// Program headers that are read at once.
const SEGMENTS_AT_ONCE: usize = 1024;
/// Mappings without a program header whose permissions are found out.
const MOST_UNLISTED: usize = 4096;
/// Bytes of all names of mappings together.
const MOST_NAME_BYTES: usize = 16 << 20;
/// Files that are kept open.
const MOST_FILES: usize = 128;
/// A program's first mapping is this many before any other of its file, at most.
const FARTHEST_BASE: usize = 64;
/// How compressed files begin, and by what they were.
const COMPRESSED: [(&[u8], &str); 4] = [
    (b"\x28\xb5\x2f\xfd", "zstd"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x1f\x8b", "gzip"),
];

/// The memory of a program in a core file.
///
/// What the file leaves out is not there, and not zero: reading stops where it begins. Code and constants, which are
/// left out by default, are read from the program's files where these are the very ones.
#[derive(Debug)]
pub struct CoreFile {
    file: File,
    /// One for each mapping.
    segments: Vec<Segment>,
    mappings: Vec<Mapping>,
    notes: Notes,
    page_size: u64,
    /// By the address at which the file's beginning is mapped; `None` for what cannot be used.
    backings: RefCell<HashMap<u64, Option<Rc<Backing>>>>,
    read_bytes: Cell<u64>,
}

/// Where the contents of a mapping are in the file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Segment {
    offset: u64,
    /// How many bytes of the mapping are there, from its first on.
    stored: u64,
    /// Whether the file has a program header for it; gdb writes none for what is only in the program's files.
    is_listed: bool,
}

impl CoreFile {
    /// Opens a core file of a 64-bit program on x86-64 or Arm.
    ///
    /// # Errors
    ///
    /// It cannot be read, is something else, or its end is missing.
    pub fn open(path: &Path) -> Result<Self, CoreError> {
        let file = open_for_reading(path)?;
        let length = file.metadata().map_err(unreadable(path))?.len();
        let read = |place: u64, bytes: &mut [u8]| read_full(&file, place, bytes);
        let header = core_header(path, &read)?;
        let headers = program_headers(path, &header, length, &read)?;
        let mut notes = Notes::default();
        for header_of_notes in headers.iter().filter(|header| header.kind == elf::PT_NOTE) {
            let end = header_of_notes
                .offset
                .saturating_add(header_of_notes.file_bytes);
            notes.take(header.machine, header_of_notes.offset, end, &read);
        }
        let (segments, mappings) = memory(path, &headers, &notes)?;
        notes.forget_files();
        let mut core = Self {
            page_size: notes.page_size.unwrap_or(4096),
            file,
            segments,
            mappings,
            notes,
            backings: RefCell::default(),
            read_bytes: Cell::new(0),
        };
        core.permit();
        Ok(core)
    }

    /// Finds out what the program might do with memory that only the table of files names.
    fn permit(&mut self) {
        let unknown: Vec<usize> = self
            .segments
            .iter()
            .enumerate()
            .filter(|(_, segment)| !segment.is_listed)
            .map(|(index, _)| index)
            .take(MOST_UNLISTED)
            .collect();
        for index in unknown {
            let backing = self.backing(index);
            if let (Some(backing), Some(mapping)) = (backing, self.mappings.get_mut(index)) {
                mapping.permissions = backing.permissions(mapping.start.0);
            }
        }
    }

    /// The threads that the program had; the first is the one that a signal came to.
    #[must_use]
    pub fn threads(&self) -> &[CoreThread] {
        &self.notes.threads
    }

    /// The thread pointers of its threads, as far as they have any.
    #[must_use]
    pub fn thread_pointers(&self) -> Vec<u64> {
        self.threads()
            .iter()
            .filter_map(|thread| thread.thread_pointer)
            .filter(|pointer| *pointer != 0)
            .collect()
    }

    /// The program; `None` when the file does not say.
    #[must_use]
    pub fn program(&self) -> Option<&CoreProgram> {
        self.notes.program.as_ref()
    }

    /// The signal that ended the program; `None` when none did, as in the copy of a running program.
    #[must_use]
    pub fn signal(&self) -> Option<u16> {
        self.notes.signal
    }

    /// What of the file could not be understood, in words; empty when all could.
    #[must_use]
    pub fn problems(&self) -> &[String] {
        &self.notes.problems
    }

    /// Bytes of the program's memory that were read so far.
    #[must_use]
    pub fn read_bytes(&self) -> u64 {
        self.read_bytes.get()
    }

    /// The number of the mapping at an address.
    fn index_at(&self, address: u64) -> Option<usize> {
        let after = self
            .mappings
            .partition_point(|mapping| mapping.start.0 <= address);
        let index = after.checked_sub(1)?;
        (address < self.mappings.get(index)?.end.0).then_some(index)
    }

    /// Reads what is in the core file, up to the end of a mapping.
    fn read_stored(&self, address: u64, bytes: &mut [u8]) -> usize {
        let Some(index) = self.index_at(address) else {
            return 0;
        };
        let (Some(mapping), Some(segment)) = (self.mappings.get(index), self.segments.get(index))
        else {
            return 0;
        };
        let within = address - mapping.start.0;
        let left = usize::try_from(segment.stored.saturating_sub(within)).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        let Some(place) = segment.offset.checked_add(within) else {
            return 0;
        };
        read_full(&self.file, place, &mut bytes[..wanted])
    }

    /// Reads what the core file leaves out, up to the end of a mapping, from the file that the mapping shows.
    fn read_backed(&self, address: u64, bytes: &mut [u8]) -> usize {
        let Some(index) = self.index_at(address) else {
            return 0;
        };
        let Some(mapping) = self.mappings.get(index) else {
            return 0;
        };
        if mapping.permissions.write {
            return 0;
        }
        let Some(backing) = self.backing(index) else {
            return 0;
        };
        let left = usize::try_from(mapping.end.0 - address).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        let Some(place) = mapping.offset.checked_add(address - mapping.start.0) else {
            return 0;
        };
        backing.read(address, place, &mut bytes[..wanted])
    }

    /// The file behind a mapping, if it is here and the very one.
    fn backing(&self, index: usize) -> Option<Rc<Backing>> {
        let name = self.mappings.get(index)?.name.as_deref()?;
        // Its beginning, which has its build ID, comes first (elf(5): segments are in order of their addresses).
        let base = self
            .mappings
            .get(..=index)?
            .iter()
            .rev()
            .take(FARTHEST_BASE)
            .find(|mapping| mapping.offset == 0 && mapping.name.as_deref() == Some(name))?
            .start
            .0;
        if let Some(known) = self.backings.borrow().get(&base) {
            return known.clone();
        }
        let read = |address: u64, bytes: &mut [u8]| self.read_stored(address, bytes);
        let backing = Backing::open(name, base, self.page_size, &read).map(Rc::new);
        let mut backings = self.backings.borrow_mut();
        if backings.len() >= MOST_FILES {
            backings.clear();
        }
        backings.insert(base, backing.clone());
        backing
    }
}

impl Image for CoreFile {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        // Each round ends with a mapping, or with what is stored of it.
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(at) = address.checked_add(done as u64) else {
                break;
            };
            let mut read = self.read_stored(at, rest);
            if read == 0 {
                read = self.read_backed(at, rest);
            }
            if read == 0 {
                break;
            }
            done += read;
        }
        self.read_bytes
            .set(self.read_bytes.get().saturating_add(done as u64));
        done
    }

    /// A core file does not tell: pages that were in memory and pages that were not are written alike.
    fn residency(&self, _start: u64, _end: u64) -> Option<Residency> {
        None
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        self.backing(self.index_at(mapping.start.0)?)?.file()
    }

    fn page_size(&self) -> u64 {
        self.page_size
    }

    fn absent_is_zero(&self) -> bool {
        false
    }
}

fn unreadable(path: &Path) -> impl Fn(std::io::Error) -> CoreError {
    move |cause| CoreError::Unreadable {
        path: path.to_owned(),
        cause,
    }
}

fn open_for_reading(path: &Path) -> Result<File, CoreError> {
    // Looked at first: to open a device can have effects, and to open a pipe waits.
    if !std::fs::metadata(path).map_err(unreadable(path))?.is_file() {
        return Err(CoreError::NotAFile(path.to_owned()));
    }
    OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .map_err(unreadable(path))
}

/// The header of a core file of a program that is understood.
fn core_header(path: &Path, read: elf::Read<'_>) -> Result<Header, CoreError> {
    let mut bytes = [0; HEADER_BYTES];
    let length = read(0, &mut bytes);
    let bytes = &bytes[..length];
    if let Some((_, with)) = COMPRESSED
        .iter()
        .find(|(beginning, _)| bytes.starts_with(beginning))
    {
        let path = path.to_owned();
        return Err(CoreError::Compressed { path, with });
    }
    let foreign = |what: &str| CoreError::Foreign {
        path: path.to_owned(),
        what: what.into(),
    };
    let header = Header::read(bytes).map_err(|why| match why {
        Foreign::NotElf => CoreError::NotElf(path.to_owned()),
        Foreign::ThirtyTwoBit => foreign("32-bit"),
        Foreign::BigEndian => foreign("big-endian"),
        Foreign::Damaged => damaged(
            path,
            "its header ends early, or names program headers of a wrong size",
        ),
    })?;
    if header.kind != elf::ET_CORE {
        return Err(CoreError::NotCore {
            path: path.to_owned(),
            what: match header.kind {
                1 => "an object file",
                2 | 3 => "a program or a library",
                _ => "an ELF file of another type",
            },
        });
    }
    match header.machine {
        elf::EM_X86_64 | elf::EM_AARCH64 => Ok(header),
        3 => Err(foreign("32-bit x86")),
        other => Err(foreign(&format!("machine {other}"))),
    }
}

fn damaged(path: &Path, what: &'static str) -> CoreError {
    CoreError::Damaged {
        path: path.to_owned(),
        what,
    }
}

/// Its program headers: those of memory and of notes, when all that they name is in the file.
fn program_headers(
    path: &Path,
    header: &Header,
    length: u64,
    read: elf::Read<'_>,
) -> Result<Vec<ProgramHeader>, CoreError> {
    let truncated = |whole: u64| CoreError::Truncated {
        path: path.to_owned(),
        missing: whole.saturating_sub(length),
        whole,
    };
    // The one place of their number is at the end of the file.
    let count = header
        .count(read)
        .ok_or_else(|| damaged(path, "the number of its program headers is missing"))?;
    if count > MOST_SEGMENTS {
        return Err(damaged(
            path,
            "it has more program headers than any process has mappings",
        ));
    }
    let mut whole = header
        .program_headers
        .checked_add(count * PROGRAM_HEADER_BYTES as u64)
        .ok_or_else(|| damaged(path, "its program headers are beyond all files"))?;
    if whole > length {
        return Err(truncated(whole));
    }
    let mut headers = Vec::new();
    let mut bytes = vec![0; SEGMENTS_AT_ONCE * PROGRAM_HEADER_BYTES];
    let mut at = header.program_headers;
    while headers.len() as u64 != count {
        let left = usize::try_from(count - headers.len() as u64).unwrap_or(SEGMENTS_AT_ONCE);
        let wanted = left.min(SEGMENTS_AT_ONCE) * PROGRAM_HEADER_BYTES;
        if read(at, &mut bytes[..wanted]) < wanted {
            return Err(damaged(path, "its program headers cannot be read"));
        }
        at += wanted as u64;
        headers.extend(
            bytes[..wanted]
                .chunks_exact(PROGRAM_HEADER_BYTES)
                .filter_map(ProgramHeader::read),
        );
    }
    for header in &headers {
        let end = header
            .offset
            .checked_add(header.file_bytes)
            .ok_or_else(|| damaged(path, "a segment ends beyond all files"))?;
        whole = whole.max(end);
    }
    if whole > length {
        return Err(truncated(whole));
    }
    Ok(headers)
}

/// The program's mappings, in order, and where their contents are.
fn memory(
    path: &Path,
    headers: &[ProgramHeader],
    notes: &Notes,
) -> Result<(Vec<Segment>, Vec<Mapping>), CoreError> {
    let mut loads: Vec<&ProgramHeader> = headers
        .iter()
        .filter(|header| header.kind == elf::PT_LOAD && header.memory_bytes > 0)
        .collect();
    if loads.is_empty() {
        return Err(damaged(path, "it holds no memory"));
    }
    loads.sort_by_key(|header| header.address);
    let mut found: Vec<(Mapping, Segment)> = Vec::with_capacity(loads.len());
    for header in loads {
        let end = header
            .address
            .checked_add(header.memory_bytes)
            .ok_or_else(|| damaged(path, "a segment ends beyond all memory"))?;
        if found
            .last()
            .is_some_and(|(last, _)| header.address < last.end.0)
        {
            return Err(damaged(path, "two segments claim the same memory"));
        }
        let permissions = elf::permissions(header.flags);
        let segment = Segment {
            offset: header.offset,
            stored: header.file_bytes.min(header.memory_bytes),
            is_listed: true,
        };
        found.push((mapping(header.address, end, permissions, notes), segment));
    }
    add_unlisted(&mut found, notes);
    let mut name_bytes = 0_usize;
    let (mut mappings, mut segments) = (Vec::new(), Vec::new());
    for (mut mapping, segment) in found {
        mapping.name = name(&mapping, notes)
            .filter(|name| name_bytes.saturating_add(name.len()) <= MOST_NAME_BYTES);
        name_bytes = name_bytes.saturating_add(mapping.name.as_ref().map_or(0, String::len));
        mappings.push(mapping);
        segments.push(segment);
    }
    Ok((segments, mappings))
}

/// Adds what the table of files names and no program header does. It continues the mapping before it where that is of the
/// same row: of a program's first mapping, gdb writes the first page alone.
fn add_unlisted(found: &mut Vec<(Mapping, Segment)>, notes: &Notes) {
    let listed = found.len();
    let mut last_end = 0;
    for file in &notes.files {
        let mut at = file.start.max(last_end);
        while at < file.end {
            let next = found[..listed].partition_point(|(mapping, _)| mapping.end.0 <= at);
            let next_start = found[..listed]
                .get(next)
                .map_or(u64::MAX, |(mapping, _)| mapping.start.0);
            if next_start <= at {
                at = found[next].0.end.0;
                continue;
            }
            let end = file.end.min(next_start);
            let before = next
                .checked_sub(1)
                .and_then(|before| found.get_mut(before))
                .filter(|(before, _)| before.end.0 == at && before.start.0 >= file.start);
            if let Some((before, _)) = before {
                before.end = Address(end);
            } else {
                let unknown = Permissions::default();
                let segment = Segment {
                    offset: 0,
                    stored: 0,
                    is_listed: false,
                };
                found.push((mapping(at, end, unknown, notes), segment));
            }
            at = end;
        }
        last_end = last_end.max(file.end);
    }
    found.sort_by_key(|(mapping, _)| mapping.start);
}

/// A mapping, without its name. Whether it was shared, and the file's inode, a core file does not tell.
fn mapping(start: u64, end: u64, permissions: Permissions, notes: &Notes) -> Mapping {
    Mapping {
        start: Address(start),
        end: Address(end),
        permissions,
        offset: notes.file_at(start).map_or(0, |file| {
            file.offset.saturating_add(start.saturating_sub(file.start))
        }),
        inode: 0,
        name: None,
    }
}

/// What the kernel would call a mapping, as far as that can be known.
fn name(mapping: &Mapping, notes: &Notes) -> Option<String> {
    let holds = |address: Option<u64>| {
        address.is_some_and(|address| (mapping.start.0..mapping.end.0).contains(&address))
    };
    match notes.file_at(mapping.start.0) {
        Some(file) => notes.name_of(file),
        None if holds(notes.on_stack) => Some("[stack]".into()),
        None if holds(notes.vdso) => Some("[vdso]".into()),
        None => None,
    }
}
