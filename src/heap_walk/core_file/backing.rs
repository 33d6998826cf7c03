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
use crate::mapping::Permissions;

/// A program or library, where it was mapped.
#[derive(Debug)]
pub(super) struct Backing {
    loads: Vec<Load>,
    /// `None` when it is not here, or another.
    file: Option<File>,
}

/// A part of it that was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Load {
    start: u64,
    end: u64,
    /// What an address has more than the place in the file.
    above: u64,
    /// `PF_R` and so on.
    flags: u32,
}

impl Backing {
    /// What the core file shows from address `base` on, and the file of that name; `read` reads what is in the core file,
    /// by address. `None` when that is no program or library.
    pub(super) fn open(name: &str, base: u64, page_size: u64, read: Read<'_>) -> Option<Self> {
        let in_core = |place: u64, bytes: &mut [u8]| match base.checked_add(place) {
            Some(address) => read(address, bytes),
            None => 0,
        };
        let headers = elf::program_headers(&in_core)?;
        let page = |address: u64| address & !(page_size - 1);
        let loads = || headers.iter().filter(|header| header.kind == PT_LOAD);
        let first = loads().next()?;
        let bias = base.wrapping_sub(page(first.address).wrapping_sub(page(first.offset)));
        let loads = loads()
            .filter_map(|header| {
                let address = bias.wrapping_add(header.address);
                let end = address.checked_add(header.file_bytes)?;
                Some(Load {
                    start: page(address),
                    end: page(end.checked_add(page_size - 1)?),
                    above: address.wrapping_sub(header.offset),
                    flags: header.flags,
                })
            })
            .collect();
        let file = elf::build_id(&headers, &in_core).and_then(|id| the_very_file(name, &id));
        Some(Self { loads, file })
    }

    fn load_at(&self, address: u64) -> Option<&Load> {
        self.loads
            .iter()
            .find(|load| (load.start..load.end).contains(&address))
    }

    /// Reads what the program had at an address that is known to show this place of the file, and that it could not
    /// write. (Memory that becomes read-only when the dynamic linker has done its work is of a part that it could.)
    pub(super) fn read(&self, address: u64, place: u64, bytes: &mut [u8]) -> usize {
        let (Some(file), Some(load)) = (&self.file, self.load_at(address)) else {
            return 0;
        };
        if load.flags & PF_W != 0 || address.wrapping_sub(load.above) != place {
            return 0;
        }
        let left = usize::try_from(load.end - address).unwrap_or(usize::MAX);
        let wanted = bytes.len().min(left);
        read_full(file, place, &mut bytes[..wanted])
    }

    /// What the program might do with its memory at an address, by the program headers.
    pub(super) fn permissions(&self, address: u64) -> Permissions {
        elf::permissions(self.load_at(address).map_or(0, |load| load.flags))
    }

    /// The file, for reading.
    pub(super) fn file(&self) -> Option<File> {
        self.file.as_ref()?.try_clone().ok()
    }
}

/// Opens the file of this name, if it has this build ID.
fn the_very_file(name: &str, expected: &[u8]) -> Option<File> {
    let file = open_regular(Path::new(name))?;
    let in_file = |place: u64, bytes: &mut [u8]| read_full(&file, place, bytes);
    let found = elf::build_id(&elf::program_headers(&in_file)?, &in_file)?;
    (found == expected).then_some(file)
}

/// Opens a file that is neither a device nor a pipe, whose opening could have effects or never end.
fn open_regular(path: &Path) -> Option<File> {
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
