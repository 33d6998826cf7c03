//! Files of which a core file shows memory without having it: code and constants, which the kernel leaves out
//! (core(5), `coredump_filter`).
//!
//! A file is used only if it is the very one: if its build ID is what the core file has in memory.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::unix::fs::FileExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use super::elf;
use super::elf::PF_W;
use super::elf::PT_LOAD;
use super::elf::Read;

/// A program or library, where it was mapped.
#[derive(Debug)]
pub(super) struct Backing {
    file: File,
    /// Addresses that the program could not write, and where in the file their contents are.
    unchanged: Vec<Stretch>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stretch {
    start: u64,
    end: u64,
    /// What an address has more than the place in the file.
    above: u64,
}

impl Backing {
    /// Opens the file of this name, which the core file shows from address `base` on; `read` reads what is in the core
    /// file, by address.
    pub(super) fn open(name: &str, base: u64, page_size: u64, read: Read<'_>) -> Option<Self> {
        let in_core = |place: u64, bytes: &mut [u8]| match base.checked_add(place) {
            Some(address) => read(address, bytes),
            None => 0,
        };
        let expected = elf::build_id(&elf::program_headers(&in_core)?, &in_core)?;
        let file = open_regular(Path::new(name))?;
        let in_file = |place: u64, bytes: &mut [u8]| read_full(&file, place, bytes);
        let headers = elf::program_headers(&in_file)?;
        if elf::build_id(&headers, &in_file)? != expected {
            return None;
        }
        let page = |address: u64| address & !(page_size - 1);
        let loads = || headers.iter().filter(|header| header.kind == PT_LOAD);
        let first = loads().next()?;
        let bias = base.wrapping_sub(page(first.address).wrapping_sub(page(first.offset)));
        // Memory that only becomes read-only when the dynamic linker has done its work is of a writable segment.
        let unchanged = loads()
            .filter(|header| header.flags & PF_W == 0)
            .filter_map(|header| {
                let address = bias.wrapping_add(header.address);
                Some(Stretch {
                    start: page(address),
                    end: page(
                        address
                            .checked_add(header.file_bytes)?
                            .checked_add(page_size - 1)?,
                    ),
                    above: address.wrapping_sub(header.offset),
                })
            })
            .collect();
        Some(Self { file, unchanged })
    }

    /// Reads what the program had at an address that is known to show this place of the file.
    pub(super) fn read(&self, address: u64, place: u64, bytes: &mut [u8]) -> usize {
        let Some(stretch) = self
            .unchanged
            .iter()
            .find(|stretch| (stretch.start..stretch.end).contains(&address))
        else {
            return 0;
        };
        if address.wrapping_sub(stretch.above) != place {
            return 0;
        }
        let left = usize::try_from(stretch.end - address).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        read_full(&self.file, place, &mut bytes[..wanted])
    }

    /// The file, for reading.
    pub(super) fn file(&self) -> Option<File> {
        self.file.try_clone().ok()
    }
}

/// Opens a file that is neither a device nor a pipe, whose opening could have effects or never end.
pub(super) fn open_regular(path: &Path) -> Option<File> {
    if !path.is_absolute() || !std::fs::metadata(path).ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(path)
        .ok()?;
    file.metadata().ok()?.is_file().then_some(file)
}

/// Reads as much as there is; returns how many bytes that were.
pub(super) fn read_full(file: &File, place: u64, bytes: &mut [u8]) -> usize {
    let mut done = 0;
    while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
        let Some(at) = place.checked_add(done as u64) else {
            break;
        };
        match file.read_at(rest, at) {
            Ok(0) => break,
            Ok(read) => done += read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => break,
        }
    }
    done
}
