//! What an ELF image says of itself: its headers from a program's memory, its tables from memory or from its file
//! (elf(5); the System V ABI, chapters 4 and 5).

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::super::Image;

/// The headers of a linked file lie in its first page, and so does the build ID (not so where patchelf was used).
const FIRST_PAGE: usize = 4096;
/// More program headers are not read.
const MOST_HEADERS: usize = 64;
/// More of a dynamic section is not read.
const MOST_DYNAMIC: u64 = 16 << 10;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const LONGEST_NAME: usize = 128;

/// `R_X86_64_RELATIVE` and `R_AARCH64_RELATIVE` by `e_machine`.
const RELATIVE: [(u16, u32); 2] = [(62, 8), (183, 1027)];

/// What lies at the beginning of a file's first mapping.
#[derive(Debug)]
pub(super) enum Header {
    /// A 64-bit program or library.
    Elf(Elf),
    /// Another file, or one for another machine: a 32-bit program, for instance.
    Other,
    /// It cannot be read, as in a core file without it.
    Unreadable,
}

/// A piece of a file that is loaded.
#[derive(Clone, Copy, Debug)]
pub(super) struct Load {
    pub(super) address: u64,
    pub(super) offset: u64,
    pub(super) file_bytes: u64,
    pub(super) is_writable: bool,
}

/// The headers of a loaded file. Addresses are the file's own: without the `bias`.
#[derive(Debug)]
pub(super) struct Elf {
    /// What is added to the file's addresses where it is loaded.
    pub(super) bias: u64,
    pub(super) loads: Vec<Load>,
    /// Whether it asks for a dynamic linker: a program that is not static.
    pub(super) has_interpreter: bool,
    /// Empty when there is none, or not in the first page.
    pub(super) build_id: Vec<u8>,
    /// The type of relocation that adds the bias.
    pub(super) relative: u32,
    dynamic: Option<(u64, u64)>,
}

/// What a dynamic section says.
#[derive(Debug, Default)]
pub(super) struct Dynamic {
    strings: u64,
    name: Option<u64>,
    needs: Vec<u64>,
    /// The table of relocations with addends: address and bytes.
    pub(super) relocations: (u64, u64),
}

/// Little-endian number of up to eight bytes; `None` where there are not as many.
pub(super) fn number(bytes: &[u8], offset: usize, length: usize) -> Option<u64> {
    let bytes = bytes.get(offset..offset.checked_add(length)?)?;
    Some(
        bytes
            .iter()
            .rev()
            .fold(0, |number, byte| number << 8 | u64::from(*byte)),
    )
}

impl Header {
    /// Reads it; `start` is where the file's beginning is mapped.
    pub(super) fn read(image: &dyn Image, start: u64) -> Self {
        let mut page = [0; FIRST_PAGE];
        let length = image.read(start, &mut page);
        let page = &page[..length];
        if length < HEADER {
            return Self::Unreadable;
        }
        // 64-bit, little-endian, version 1.
        if !page.starts_with(b"\x7fELF\x02\x01\x01") {
            return Self::Other;
        }
        Elf::parse(image, start, page).map_or(Self::Other, Self::Elf)
    }
}

impl Elf {
    fn parse(image: &dyn Image, start: u64, page: &[u8]) -> Option<Self> {
        let machine = number(page, 18, 2)?;
        let (_, relative) = RELATIVE
            .into_iter()
            .find(|(number, _)| u64::from(*number) == machine)?;
        let many = usize::try_from(number(page, 56, 2)?).ok()?;
        if number(page, 54, 2)? != PROGRAM_HEADER as u64 || many > MOST_HEADERS {
            return None;
        }
        let place = number(page, 32, 8)?;
        let mut table = [0; MOST_HEADERS * PROGRAM_HEADER];
        let table = &mut table[..many * PROGRAM_HEADER];
        let inside = usize::try_from(place)
            .ok()
            .and_then(|place| page.get(place..place.checked_add(table.len())?));
        match inside {
            Some(inside) => table.copy_from_slice(inside),
            None if image.read(start.checked_add(place)?, table) == table.len() => {}
            None => return None,
        }
        let mut elf = Self {
            bias: 0,
            loads: Vec::new(),
            has_interpreter: false,
            build_id: Vec::new(),
            relative,
            dynamic: None,
        };
        for header in table.chunks_exact(PROGRAM_HEADER) {
            elf.add(header, page)?;
        }
        let first = elf.loads.first()?;
        let beginning = first.address.wrapping_sub(first.offset);
        elf.bias = start.wrapping_sub(beginning & !(image.page_size().max(1) - 1));
        Some(elf)
    }

    fn add(&mut self, header: &[u8], page: &[u8]) -> Option<()> {
        const LOAD: u64 = 1;
        const DYNAMIC: u64 = 2;
        const INTERPRETER: u64 = 3;
        const NOTE: u64 = 4;
        const WRITABLE: u64 = 2;
        let (offset, address) = (number(header, 8, 8)?, number(header, 16, 8)?);
        let file_bytes = number(header, 32, 8)?;
        match number(header, 0, 4)? {
            LOAD => self.loads.push(Load {
                address,
                offset,
                file_bytes,
                is_writable: number(header, 4, 4)? & WRITABLE != 0,
            }),
            DYNAMIC => self.dynamic = Some((address, file_bytes)),
            INTERPRETER => self.has_interpreter = true,
            NOTE if self.build_id.is_empty() => {
                let notes = usize::try_from(offset)
                    .ok()
                    .zip(usize::try_from(file_bytes).ok())
                    .and_then(|(offset, bytes)| page.get(offset..offset.checked_add(bytes)?));
                self.build_id = notes.and_then(build_id).unwrap_or_default();
            }
            _ => {}
        }
        Some(())
    }

    /// The dynamic section; from memory, or from the file where memory has none.
    pub(super) fn dynamic(&self, image: &dyn Image, file: Option<&File>) -> Option<Dynamic> {
        const NULL: u64 = 0;
        const NEEDED: u64 = 1;
        const STRTAB: u64 = 5;
        const RELA: u64 = 7;
        const RELASZ: u64 = 8;
        const SONAME: u64 = 14;
        let (address, bytes) = self.dynamic?;
        let mut table = vec![0; usize::try_from(bytes.min(MOST_DYNAMIC)).ok()?];
        let length = self.read(image, file, address, &mut table);
        let mut dynamic = Dynamic::default();
        for entry in table[..length].chunks_exact(16) {
            let (tag, value) = (number(entry, 0, 8)?, number(entry, 8, 8)?);
            match tag {
                NULL => break,
                NEEDED if dynamic.needs.len() < MOST_HEADERS => dynamic.needs.push(value),
                STRTAB => dynamic.strings = self.unbiased(value),
                RELA => dynamic.relocations.0 = self.unbiased(value),
                RELASZ => dynamic.relocations.1 = value,
                SONAME => dynamic.name = Some(value),
                _ => {}
            }
        }
        Some(dynamic)
    }

    /// glibc's dynamic linker adds the bias to some addresses in the section itself (elf/get-dynamic-info.h).
    fn unbiased(&self, address: u64) -> u64 {
        let end = self
            .loads
            .iter()
            .map(|load| load.address.saturating_add(load.file_bytes))
            .max()
            .unwrap_or(0);
        if address < end {
            address
        } else {
            address.wrapping_sub(self.bias)
        }
    }

    /// Reads at one of the file's addresses, from memory, or from the file where memory has none; returns how many bytes.
    pub(super) fn read(
        &self,
        image: &dyn Image,
        file: Option<&File>,
        address: u64,
        bytes: &mut [u8],
    ) -> usize {
        let length = image.read(self.bias.wrapping_add(address), bytes);
        match file {
            Some(file) if length < bytes.len() => {
                self.read_file(file, address, bytes).unwrap_or(length)
            }
            _ => length,
        }
    }

    fn read_file(&self, file: &File, address: u64, bytes: &mut [u8]) -> Option<usize> {
        let (load, inside) = self.loads.iter().find_map(|load| {
            let inside = address.checked_sub(load.address)?;
            (inside < load.file_bytes).then_some((load, inside))
        })?;
        file.read_at(bytes, load.offset.checked_add(inside)?).ok()
    }

    /// What a library calls itself: `libc.so.6`.
    pub(super) fn own_name(
        &self,
        image: &dyn Image,
        file: Option<&File>,
        dynamic: &Dynamic,
    ) -> Option<Vec<u8>> {
        self.string(image, file, dynamic.strings, dynamic.name?)
    }

    /// Whether it asks for a library whose name begins so.
    pub(super) fn needs(
        &self,
        image: &dyn Image,
        file: Option<&File>,
        dynamic: &Dynamic,
        beginning: &[u8],
    ) -> bool {
        dynamic.needs.iter().any(|place| {
            self.string(image, file, dynamic.strings, *place)
                .is_some_and(|name| name.starts_with(beginning))
        })
    }

    fn string(
        &self,
        image: &dyn Image,
        file: Option<&File>,
        strings: u64,
        place: u64,
    ) -> Option<Vec<u8>> {
        let mut bytes = [0; LONGEST_NAME];
        let length = self.read(image, file, strings.checked_add(place)?, &mut bytes);
        let name = bytes[..length].split(|byte| *byte == 0).next()?;
        Some(name.to_vec())
    }
}

/// The build ID among the notes (`NT_GNU_BUILD_ID`).
fn build_id(notes: &[u8]) -> Option<Vec<u8>> {
    const BUILD_ID: u64 = 3;
    const LONGEST: usize = 64;
    let mut rest = notes;
    loop {
        let name_bytes = usize::try_from(number(rest, 0, 4)?).ok()?;
        let bytes = usize::try_from(number(rest, 4, 4)?).ok()?;
        let name = rest.get(12..12_usize.checked_add(name_bytes)?)?;
        let start = 12 + name_bytes.next_multiple_of(4);
        let description = rest.get(start..start.checked_add(bytes)?)?;
        if number(rest, 8, 4)? == BUILD_ID && name == b"GNU\0" && bytes <= LONGEST {
            return Some(description.to_vec());
        }
        rest = rest.get(start.checked_add(bytes.next_multiple_of(4))?..)?;
    }
}
