//! What of ELF files matters here: 64-bit, little endian headers and notes (elf(5)). Nothing in them is believed.

use crate::mapping::Permissions;

/// `e_type` of a core file.
pub(super) const ET_CORE: u16 = 4;
/// `e_machine` of x86-64.
pub(super) const EM_X86_64: u16 = 62;
/// `e_machine` of 64-bit Arm.
pub(super) const EM_AARCH64: u16 = 183;
/// A segment that is memory.
pub(super) const PT_LOAD: u32 = 1;
/// A segment of notes.
pub(super) const PT_NOTE: u32 = 4;
/// May be executed, written, read.
const PF_X: u32 = 1;
pub(super) const PF_W: u32 = 2;
const PF_R: u32 = 4;

/// Bytes of the file's header, of a program header, and of a note's.
pub(super) const HEADER_BYTES: usize = 64;
pub(super) const PROGRAM_HEADER_BYTES: usize = 56;
pub(super) const NOTE_HEADER_BYTES: usize = 12;
/// `e_phnum` when there are more than it can say; then the first section header does.
const PN_XNUM: u16 = 0xffff;
/// Where `sh_info` is in a section header.
const SH_INFO: u64 = 44;

/// Most program headers of a program or library that are looked at.
const MOST_PROGRAM_HEADERS: u64 = 128;
/// Bytes of notes of a program or library that are looked at.
const MOST_NOTES: usize = 4096;
/// Longest build ID, in bytes.
const LONGEST_BUILD_ID: usize = 64;

/// What flags of a segment allow.
pub(super) fn permissions(flags: u32) -> Permissions {
    Permissions {
        read: flags & PF_R != 0,
        write: flags & PF_W != 0,
        execute: flags & PF_X != 0,
        shared: false,
    }
}

/// Reads bytes at a place; returns how many there were, from the first on.
pub(super) type Read<'a> = &'a dyn Fn(u64, &mut [u8]) -> usize;

/// Why something is no ELF file of the sort that is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Foreign {
    NotElf,
    ThirtyTwoBit,
    BigEndian,
    /// Program headers of another size than 64-bit ELF has.
    Damaged,
}

/// The header of an ELF file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: u16,
    pub(super) machine: u16,
    pub(super) program_headers: u64,
    /// How many there are, as far as this field can say.
    few_program_headers: u16,
    section_headers: u64,
}

pub(super) fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|word| u16::from_le_bytes(*word))
}

pub(super) fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|word| u32::from_le_bytes(*word))
}

pub(super) fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    bytes
        .get(offset..)?
        .first_chunk()
        .map(|word| u64::from_le_bytes(*word))
}

impl Header {
    /// Reads the header at the beginning of a file.
    pub(super) fn read(bytes: &[u8]) -> Result<Self, Foreign> {
        if !bytes.starts_with(b"\x7fELF") {
            return Err(Foreign::NotElf);
        }
        match bytes.get(4) {
            Some(2) => {}
            Some(1) => return Err(Foreign::ThirtyTwoBit),
            _ => return Err(Foreign::NotElf),
        }
        if bytes.get(5) == Some(&2) {
            return Err(Foreign::BigEndian);
        }
        Self::fields(bytes).ok_or(Foreign::Damaged)
    }

    fn fields(bytes: &[u8]) -> Option<Self> {
        let header = Self {
            kind: u16_at(bytes, 16)?,
            machine: u16_at(bytes, 18)?,
            program_headers: u64_at(bytes, 32)?,
            section_headers: u64_at(bytes, 40)?,
            few_program_headers: u16_at(bytes, 56)?,
        };
        (usize::from(u16_at(bytes, 54)?) == PROGRAM_HEADER_BYTES).then_some(header)
    }

    /// How many program headers there are; `None` where the file ends before it says so.
    pub(super) fn count(&self, read: Read<'_>) -> Option<u64> {
        if self.few_program_headers != PN_XNUM {
            return Some(self.few_program_headers.into());
        }
        let mut bytes = [0; 4];
        let place = self.section_headers.checked_add(SH_INFO)?;
        (read(place, &mut bytes) == 4).then(|| u32::from_le_bytes(bytes).into())
    }
}

/// A program header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProgramHeader {
    pub(super) kind: u32,
    pub(super) flags: u32,
    pub(super) offset: u64,
    pub(super) address: u64,
    pub(super) file_bytes: u64,
    pub(super) memory_bytes: u64,
}

impl ProgramHeader {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            kind: u32_at(bytes, 0)?,
            flags: u32_at(bytes, 4)?,
            offset: u64_at(bytes, 8)?,
            address: u64_at(bytes, 16)?,
            file_bytes: u64_at(bytes, 32)?,
            memory_bytes: u64_at(bytes, 40)?,
        })
    }
}

/// The program headers of a program or library, as far as they are few enough.
pub(super) fn program_headers(read: Read<'_>) -> Option<Vec<ProgramHeader>> {
    let mut first = [0; HEADER_BYTES];
    if read(0, &mut first) < HEADER_BYTES {
        return None;
    }
    let header = Header::read(&first).ok()?;
    let count = header
        .count(read)
        .filter(|count| *count <= MOST_PROGRAM_HEADERS)?;
    let mut bytes = vec![0; usize::try_from(count).ok()? * PROGRAM_HEADER_BYTES];
    if read(header.program_headers, &mut bytes) < bytes.len() {
        return None;
    }
    bytes
        .chunks_exact(PROGRAM_HEADER_BYTES)
        .map(ProgramHeader::read)
        .collect()
}

/// The build ID of a program or library (ld(1), `--build-id`).
pub(super) fn build_id(headers: &[ProgramHeader], read: Read<'_>) -> Option<Vec<u8>> {
    headers
        .iter()
        .filter(|header| header.kind == PT_NOTE)
        .find_map(|header| {
            let wanted = usize::try_from(header.file_bytes)
                .unwrap_or(MOST_NOTES)
                .min(MOST_NOTES);
            let mut bytes = vec![0; wanted];
            let length = read(header.offset, &mut bytes);
            build_id_note(&bytes[..length.min(wanted)])
        })
}

fn build_id_note(mut notes: &[u8]) -> Option<Vec<u8>> {
    const NT_GNU_BUILD_ID: u32 = 3;
    loop {
        let head = NoteHead::read(notes)?;
        let (name, contents, next) = head.places()?;
        if head.kind == NT_GNU_BUILD_ID && notes.get(name..name + head.name)? == b"GNU\0" {
            let id = notes.get(contents..contents.checked_add(head.contents)?)?;
            return (1..=LONGEST_BUILD_ID)
                .contains(&id.len())
                .then(|| id.to_vec());
        }
        notes = notes.get(next..)?;
    }
}

/// The first words of a note.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NoteHead {
    /// Bytes of the name, its zero included.
    pub(super) name: usize,
    /// Bytes of the contents.
    pub(super) contents: usize,
    pub(super) kind: u32,
}

impl NoteHead {
    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self {
            name: usize::try_from(u32_at(bytes, 0)?).ok()?,
            contents: usize::try_from(u32_at(bytes, 4)?).ok()?,
            kind: u32_at(bytes, 8)?,
        })
    }

    /// Where name and contents begin, and where the next note does, relative to this one. All are multiples of four
    /// (binfmt_elf.c, `writenote`).
    pub(super) fn places(self) -> Option<(usize, usize, usize)> {
        let contents = NOTE_HEADER_BYTES.checked_add(self.name.checked_next_multiple_of(4)?)?;
        let next = contents.checked_add(self.contents.checked_next_multiple_of(4)?)?;
        Some((NOTE_HEADER_BYTES, contents, next))
    }
}
