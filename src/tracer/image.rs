//! The unwind information of a program or library: what of its ELF file tells how to get from a frame to its caller.
//!
//! Read once into memory of ours, since a mapped file that somebody shortens would kill us. Nothing in it is believed:
//! what makes no sense costs its frames.

use std::cell::OnceCell;
use std::ops::Range;

use gimli::BaseAddresses;
use gimli::CieOrFde;
use gimli::DebugFrame;
use gimli::EhFrame;
use gimli::EhFrameHdr;
use gimli::EndianSlice;
use gimli::FrameDescriptionEntry;
use gimli::LittleEndian;
use gimli::UnwindContext;
use gimli::UnwindSection;
use object::Object;
use object::ObjectSection;
use object::ObjectSegment;
use object::ReadRef;
use object::elf;
use object::read::elf::ElfFile64;
use object::read::elf::FileHeader;
use object::read::elf::ProgramHeader;

use super::cpython;
use super::rule::Rule;
use super::rule::Section;
use crate::units::hex;

/// Largest section that is read, in bytes; the largest programs have some 40 MB of unwind information.
const LARGEST_SECTION: u64 = 128 << 20;
/// Largest section for which a table is made where it brings none, in bytes: that takes some 20 ms per MB.
const LARGEST_WITHOUT_TABLE: usize = 32 << 20;
/// Most program headers that are looked at in memory; programs have some ten.
const MOST_PROGRAM_HEADERS: u64 = 128;

/// Longest entry that is followed, in bytes: its instructions are executed at every frame. Real ones have some hundred.
const LONGEST_ENTRY: usize = 1 << 18;

/// Bytes as gimli reads them; all supported machines are little-endian.
pub(super) type Slice<'data> = EndianSlice<'data, LittleEndian>;

/// The unwind information of an ELF image.
#[derive(Debug, Default)]
pub(super) struct Image {
    pub(super) build_id: Option<String>,
    /// The segments with code.
    code: Vec<Segment>,
    text: u64,
    got: u64,
    eh_frame: Option<(u64, Vec<u8>)>,
    eh_frame_hdr: Option<(u64, Vec<u8>)>,
    debug_frame: Option<Vec<u8>>,
    /// If it is a CPython interpreter, what there is to know of it.
    pub(super) python: Option<cpython::Symbols>,
    /// First addresses and offsets of the entries in `.eh_frame`, where the file brings no such table.
    eh_frame_entries: OnceCell<Vec<(u64, usize)>>,
    /// The same for `.debug_frame`.
    debug_frame_entries: OnceCell<Vec<(u64, usize)>>,
}

/// A segment: its place in the file, and its address as linked.
#[derive(Clone, Copy, Debug)]
struct Segment {
    offset: u64,
    file_bytes: u64,
    address: u64,
}

impl Image {
    /// Reads an ELF image; one that is damaged has what could be read.
    pub(super) fn parse<'data>(data: impl ReadRef<'data>) -> Option<Self> {
        let elf = ElfFile64::<object::Endianness, _>::parse(data).ok()?;
        let start = |name: &str| {
            elf.section_by_name(name)
                .map_or(0, |section| section.address())
        };
        let contents = |name: &str| {
            let section = elf.section_by_name(name)?;
            let bytes = small_enough(section.size()).then(|| section.data().ok())??;
            (!bytes.is_empty()).then(|| (section.address(), bytes.to_vec()))
        };
        let (eh_frame_hdr, eh_frame) = match contents(".eh_frame") {
            Some(eh_frame) => (contents(".eh_frame_hdr"), Some(eh_frame)),
            None => by_program_header(&elf, data).unzip(),
        };
        Some(Self {
            build_id: elf.build_id().ok().flatten().map(hex),
            code: elf
                .segments()
                .filter(|segment| {
                    matches!(segment.flags(), object::SegmentFlags::Elf { p_flags, .. } if p_flags.0 & elf::PF_X.0 != 0)
                })
                .map(|segment| {
                    let (offset, file_bytes) = segment.file_range();
                    Segment {
                        offset,
                        file_bytes,
                        address: segment.address(),
                    }
                })
                .collect(),
            text: start(".text"),
            got: start(".got"),
            eh_frame,
            eh_frame_hdr,
            debug_frame: debug_frame(&elf),
            python: cpython::Symbols::find(&elf),
            ..Self::default()
        })
    }

    /// Reads what a program has of an image in its memory, at `start`, where its first page lies; `mapped` tells where the
    /// mapping ends that an address is in.
    pub(super) fn in_memory(
        start: u64,
        read: impl Fn(u64, usize) -> Option<Vec<u8>>,
        mapped: impl Fn(u64) -> Option<u64>,
    ) -> Option<Self> {
        let endian = object::Endianness::default();
        let header = read(start, size_of::<elf::FileHeader64<object::Endianness>>())?;
        let header = elf::FileHeader64::<object::Endianness>::parse(header.as_slice())
            .ok()
            .copied()?;
        let each = size_of::<elf::ProgramHeader64<object::Endianness>>();
        let count = u64::from(header.e_phnum(endian)).min(MOST_PROGRAM_HEADERS);
        let bytes = read(
            start.checked_add(header.e_phoff(endian))?,
            each * usize::try_from(count).ok()?,
        )?;
        let (headers, _) =
            object::pod::slice_from_bytes::<elf::ProgramHeader64<object::Endianness>>(
                &bytes,
                usize::try_from(count).ok()?,
            )
            .ok()?;
        let mut image = Self::default();
        let first = headers
            .iter()
            .find(|header| header.p_type(endian) == elf::PT_LOAD && header.p_offset(endian) == 0)?;
        let bias = start.wrapping_sub(first.p_vaddr(endian));
        for header in headers {
            match header.p_type(endian) {
                elf::PT_LOAD if header.p_flags(endian).0 & elf::PF_X.0 != 0 => {
                    image.code.push(Segment {
                        offset: header.p_offset(endian),
                        file_bytes: header.p_filesz(endian),
                        address: header.p_vaddr(endian),
                    });
                }
                elf::PT_NOTE if image.build_id.is_none() => {
                    image.build_id = usize::try_from(header.p_memsz(endian).min(4096))
                        .ok()
                        .and_then(|length| read(bias.wrapping_add(header.p_vaddr(endian)), length))
                        .and_then(|notes| build_id_note(&notes));
                }
                elf::PT_GNU_EH_FRAME if small_enough(header.p_memsz(endian)) => {
                    let address = header.p_vaddr(endian);
                    let table = usize::try_from(header.p_memsz(endian))
                        .ok()
                        .and_then(|length| read(bias.wrapping_add(address), length));
                    image.eh_frame = table
                        .as_deref()
                        .and_then(|table| eh_frame_address(address, table))
                        .and_then(|frames| {
                            let at = bias.wrapping_add(frames);
                            let length = mapped(at)?.checked_sub(at)?.min(LARGEST_SECTION);
                            Some((frames, read(at, usize::try_from(length).ok()?)?))
                        });
                    image.eh_frame_hdr = table.map(|table| (address, table));
                }
                _ => {}
            }
        }
        Some(image)
    }

    /// Bytes of memory that it takes.
    pub(super) fn bytes(&self) -> usize {
        let length =
            |section: &Option<(u64, Vec<u8>)>| section.as_ref().map_or(0, |(_, bytes)| bytes.len());
        length(&self.eh_frame)
            + length(&self.eh_frame_hdr)
            + self.debug_frame.as_ref().map_or(0, Vec::len)
    }

    /// Whether it has no unwind information at all.
    pub(super) fn is_bare(&self) -> bool {
        self.eh_frame.is_none() && self.debug_frame.is_none()
    }

    /// By how much addresses differ from those that were linked, when the mapping at `start` begins at `offset`.
    pub(super) fn bias(&self, start: u64, offset: u64, page_size: u64) -> Option<u64> {
        // A mapping begins with the page in which its segment begins.
        let segment = self.code.iter().find(|segment| {
            offset < segment.offset.saturating_add(segment.file_bytes)
                && segment.offset - segment.offset % page_size <= offset
        })?;
        Some(
            start
                .wrapping_sub(offset)
                .wrapping_add(segment.offset)
                .wrapping_sub(segment.address),
        )
    }

    /// How to get from a frame at `address`, as linked, to its caller; `None` where nothing tells.
    pub(super) fn rule(&self, address: u64, context: &mut UnwindContext<usize>) -> Option<Rule> {
        self.eh_frame_rule(address, context)
            .or_else(|| self.debug_frame_rule(address, context))
    }

    /// The place in the file of a linked address in code.
    pub(super) fn offset_in_file(&self, address: u64) -> Option<u64> {
        self.code.iter().find_map(|segment| {
            let from_start = address.checked_sub(segment.address)?;
            (from_start < segment.file_bytes).then(|| segment.offset.saturating_add(from_start))
        })
    }

    fn bases(&self) -> BaseAddresses {
        let start =
            |section: &Option<(u64, Vec<u8>)>| section.as_ref().map_or(0, |(start, _)| *start);
        BaseAddresses::default()
            .set_eh_frame(start(&self.eh_frame))
            .set_eh_frame_hdr(start(&self.eh_frame_hdr))
            .set_text(self.text)
            .set_got(self.got)
    }

    fn eh_frame_rule(&self, address: u64, context: &mut UnwindContext<usize>) -> Option<Rule> {
        let frames = eh_frame(&self.eh_frame.as_ref()?.1);
        let bases = self.bases();
        let entry = match &self.eh_frame_hdr {
            Some((_, table)) => entry_by_table(table, &frames, &bases, address)?,
            None => entry_by(self.eh_frame_entries(), &frames, &bases, address)?,
        };
        rule_in(&entry, &frames, &bases, address, Section::EhFrame, context)
    }

    fn debug_frame_rule(&self, address: u64, context: &mut UnwindContext<usize>) -> Option<Rule> {
        let frames = debug_frame_of(self.debug_frame.as_ref()?);
        let bases = self.bases();
        let entry = entry_by(self.debug_frame_entries(), &frames, &bases, address)?;
        rule_in(
            &entry,
            &frames,
            &bases,
            address,
            Section::DebugFrame,
            context,
        )
    }

    fn eh_frame_entries(&self) -> &[(u64, usize)] {
        self.eh_frame_entries.get_or_init(|| {
            self.eh_frame
                .as_ref()
                .filter(|(_, bytes)| bytes.len() <= LARGEST_WITHOUT_TABLE)
                .map_or_else(Vec::new, |(_, bytes)| {
                    table_of(&eh_frame(bytes), &self.bases())
                })
        })
    }

    fn debug_frame_entries(&self) -> &[(u64, usize)] {
        self.debug_frame_entries.get_or_init(|| {
            self.debug_frame
                .as_ref()
                .filter(|bytes| bytes.len() <= LARGEST_WITHOUT_TABLE)
                .map_or_else(Vec::new, |bytes| {
                    table_of(&debug_frame_of(bytes), &self.bases())
                })
        })
    }

    /// The bytes of a piece of a section, for expressions.
    pub(super) fn piece(&self, section: Section, piece: Range<usize>) -> Option<Slice<'_>> {
        let bytes = match section {
            Section::EhFrame => &self.eh_frame.as_ref()?.1,
            Section::DebugFrame => self.debug_frame.as_ref()?,
        };
        Some(EndianSlice::new(bytes.get(piece)?, LittleEndian))
    }
}

fn small_enough(bytes: u64) -> bool {
    bytes <= LARGEST_SECTION
}

fn eh_frame(bytes: &[u8]) -> EhFrame<Slice<'_>> {
    let mut frames = EhFrame::new(bytes, LittleEndian);
    frames.set_address_size(8);
    frames.set_vendor(VENDOR);
    frames
}

fn debug_frame_of(bytes: &[u8]) -> DebugFrame<Slice<'_>> {
    let mut frames = DebugFrame::new(bytes, LittleEndian);
    frames.set_address_size(8);
    frames.set_vendor(VENDOR);
    frames
}

/// Whose extensions unwind information may use.
#[cfg(target_arch = "aarch64")]
const VENDOR: gimli::Vendor = gimli::Vendor::AArch64;
#[cfg(not(target_arch = "aarch64"))]
const VENDOR: gimli::Vendor = gimli::Vendor::Default;

/// `.debug_frame`, also where it is compressed, as Go's linker does.
fn debug_frame<'data>(
    elf: &ElfFile64<'data, object::Endianness, impl ReadRef<'data>>,
) -> Option<Vec<u8>> {
    use std::io::Read;
    let section = elf.section_by_name(".debug_frame")?;
    let range = section.compressed_file_range().ok()?;
    let is_packed = range.format == object::CompressionFormat::Zlib;
    if !small_enough(range.uncompressed_size) || !small_enough(range.compressed_size) {
        return None;
    }
    let data = section.compressed_data().ok()?.data;
    let bytes = if is_packed {
        let mut bytes = Vec::new();
        flate2::read::ZlibDecoder::new(data)
            .take(LARGEST_SECTION)
            .read_to_end(&mut bytes)
            .ok()?;
        bytes
    } else if range.format == object::CompressionFormat::None {
        data.to_vec()
    } else {
        return None;
    };
    (!bytes.is_empty()).then_some(bytes)
}

type Placed = (u64, Vec<u8>);

/// The unwind information of a file without sections: the table by its program header, and what it leads to.
fn by_program_header<'data>(
    elf: &ElfFile64<'data, object::Endianness, impl ReadRef<'data>>,
    data: impl ReadRef<'data>,
) -> Option<(Placed, Placed)> {
    let endian = elf.endian();
    let headers = elf.elf_program_headers();
    let table = headers
        .iter()
        .find(|header| header.p_type(endian) == elf::PT_GNU_EH_FRAME)?;
    let address = table.p_vaddr(endian);
    let length = table.p_filesz(endian);
    let bytes = small_enough(length)
        .then(|| data.read_bytes_at(table.p_offset(endian), length).ok())??
        .to_vec();
    let frames = eh_frame_address(address, &bytes)?;
    let (offset, length) = headers
        .iter()
        .filter(|header| header.p_type(endian) == elf::PT_LOAD)
        .find_map(|header| {
            let within = frames.checked_sub(header.p_vaddr(endian))?;
            let length = header.p_filesz(endian).checked_sub(within)?;
            Some((header.p_offset(endian).checked_add(within)?, length))
        })?;
    let frame_bytes = data
        .read_bytes_at(offset, length.min(LARGEST_SECTION))
        .ok()?;
    Some(((address, bytes), (frames, frame_bytes.to_vec())))
}

/// Where a table at `address` says that `.eh_frame` begins.
fn eh_frame_address(address: u64, table: &[u8]) -> Option<u64> {
    let bases = BaseAddresses::default().set_eh_frame_hdr(address);
    EhFrameHdr::new(table, LittleEndian)
        .parse(&bases, 8)
        .ok()?
        .eh_frame_ptr()
        .direct()
        .ok()
}

/// The build ID among notes (elf(5), "Notes").
fn build_id_note(notes: &[u8]) -> Option<String> {
    let mut rest = notes;
    loop {
        let (header, after) = rest.split_first_chunk::<12>()?;
        let (words, _) = header.as_chunks::<4>();
        let [name, description, kind] = [words[0], words[1], words[2]].map(u32::from_le_bytes);
        let padded = |length: u32| usize::try_from(length).map(|bytes| bytes.next_multiple_of(4));
        let (name, after) = after.split_at_checked(padded(name).ok()?)?;
        let length = usize::try_from(description).ok()?;
        if kind == elf::NT_GNU_BUILD_ID.0 && name == b"GNU\0" {
            return after.get(..length).map(hex);
        }
        rest = after.get(padded(description).ok()?..)?;
    }
}

/// First address and offset of each entry of a section, by address; what can be read up to the first one that makes no
/// sense.
fn table_of<'data, S>(frames: &S, bases: &BaseAddresses) -> Vec<(u64, usize)>
where
    S: UnwindSection<Slice<'data>>,
{
    let mut table = Vec::new();
    let mut entries = frames.entries(bases);
    while let Ok(Some(entry)) = entries.next() {
        if let CieOrFde::Fde(partial) = entry
            && let Ok(entry) = partial.parse(S::cie_from_offset)
        {
            table.push((entry.initial_address(), entry.offset()));
        }
    }
    table.sort_unstable();
    table
}

/// Looks an entry up in the table that a file brings.
fn entry_by_table<'data>(
    table: &'data [u8],
    frames: &EhFrame<Slice<'data>>,
    bases: &BaseAddresses,
    address: u64,
) -> Option<FrameDescriptionEntry<Slice<'data>>> {
    let header = EhFrameHdr::new(table, LittleEndian).parse(bases, 8).ok()?;
    let pointer = header.table()?.lookup(address, bases).ok()?.direct().ok()?;
    let start = header.eh_frame_ptr().direct().ok()?;
    let offset = usize::try_from(pointer.checked_sub(start)?).ok()?;
    frames
        .fde_from_offset(bases, offset.into(), EhFrame::cie_from_offset)
        .ok()
        .filter(|entry| entry.contains(address))
}

/// Looks an entry up in a table of [`table_of`].
fn entry_by<'data, S>(
    table: &[(u64, usize)],
    frames: &S,
    bases: &BaseAddresses,
    address: u64,
) -> Option<FrameDescriptionEntry<Slice<'data>>>
where
    S: UnwindSection<Slice<'data>>,
{
    let after = table.partition_point(|(start, _)| *start <= address);
    let (_, offset) = table.get(after.checked_sub(1)?)?;
    frames
        .fde_from_offset(bases, S::Offset::from(*offset), S::cie_from_offset)
        .ok()
        .filter(|entry| entry.contains(address))
}

/// The rule of an entry for an address.
fn rule_in<'data, S>(
    entry: &FrameDescriptionEntry<Slice<'data>>,
    frames: &S,
    bases: &BaseAddresses,
    address: u64,
    section: Section,
    context: &mut UnwindContext<usize>,
) -> Option<Rule>
where
    S: UnwindSection<Slice<'data>>,
{
    let is_sane = entry.entry_len() <= LONGEST_ENTRY && entry.cie().entry_len() <= LONGEST_ENTRY;
    let row = is_sane
        .then_some(entry)?
        .unwind_info_for_address(frames, bases, context, address)
        .ok()?;
    Some(Rule::new(row, entry.cie(), section))
}

#[cfg(test)]
mod tests {
    use super::super::guard;
    use super::*;

    /// A library that every test runs with, and which has unwind information for what it does.
    fn library() -> Vec<u8> {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let path = ["libgcc_s", "libm.so", "libc.so"]
            .iter()
            .find_map(|name| {
                let line = maps.lines().find(|line| line.contains(name))?;
                line.split_whitespace().last()
            })
            .unwrap();
        std::fs::read(path).unwrap()
    }

    /// How many addresses of an image have a rule.
    fn rules(image: &Image) -> usize {
        let mut context = UnwindContext::new();
        let code: Vec<(u64, u64)> = image
            .code
            .iter()
            .map(|segment| (segment.address, segment.file_bytes))
            .collect();
        code.into_iter()
            .flat_map(|(start, length)| {
                (0..200).map(move |step| start.wrapping_add((length / 200).wrapping_mul(step)))
            })
            .filter(|address| image.rule(*address, &mut context).is_some())
            .count()
    }

    struct Random(u64);

    impl Random {
        fn below(&mut self, end: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            usize::try_from(self.0 % end as u64).unwrap()
        }
    }

    /// Stretches of a file that reading begins with, or that are executed.
    fn interesting(library: &[u8]) -> Vec<Range<usize>> {
        let elf = ElfFile64::<object::Endianness, _>::parse(library).unwrap();
        let mut stretches = vec![
            0..64,
            64..64 + 56 * 12,
            library.len() - 64 * 30..library.len(),
        ];
        for name in [".eh_frame", ".eh_frame_hdr", ".note.gnu.build-id"] {
            let (start, length) = elf.section_by_name(name).unwrap().file_range().unwrap();
            let start = usize::try_from(start).unwrap();
            stretches.push(start..start + usize::try_from(length).unwrap());
        }
        stretches
    }

    #[test]
    fn a_damaged_library_costs_its_rules_and_nothing_else() {
        let whole = library();
        let sound = rules(&Image::parse(whole.as_slice()).unwrap());
        assert!(sound > 100, "{sound}");
        let stretches = interesting(&whole);
        let mut random = Random(0x1234_5678_9abc_def1);
        let (mut unreadable, mut different) = (0, 0);
        for round in 0..600 {
            let mut damaged = whole.clone();
            let stretch = &stretches[round % stretches.len()];
            for _ in 0..=random.below(24) {
                let at = stretch.start + random.below(stretch.len());
                damaged[at] = match random.below(4) {
                    0 => 0,
                    1 => 0xff,
                    _ => u8::try_from(random.below(256)).unwrap(),
                };
            }
            if round % 10 == 0 {
                damaged.truncate(random.below(whole.len()));
            }
            // A panic is what the guard is for; what must not happen is an end of this process, or none of this loop.
            let found = guard::run(|| Image::parse(damaged.as_slice()).map(|image| rules(&image)));
            match found {
                Ok(Some(rules)) => different += usize::from(rules != sound),
                Ok(None) | Err(_) => unreadable += 1,
            }
        }
        // The damage was felt.
        assert!(
            unreadable > 20 && different > 50,
            "{unreadable} {different}"
        );
    }

    #[test]
    fn a_damaged_library_in_memory_costs_its_rules_and_nothing_else() {
        let whole = library();
        let elf = ElfFile64::<object::Endianness, _>::parse(whole.as_slice()).unwrap();
        let mut memory = Vec::new();
        for segment in elf.segments() {
            let start = usize::try_from(segment.address()).unwrap();
            let bytes = segment.data().unwrap();
            memory.resize(memory.len().max(start + bytes.len()), 0);
            memory[start..start + bytes.len()].copy_from_slice(bytes);
        }
        let parse = |memory: &[u8]| {
            let read = |address: u64, length: usize| {
                let start = usize::try_from(address).ok()?.min(memory.len());
                let end = start.saturating_add(length).min(memory.len());
                Some(memory[start..end].to_vec())
            };
            Image::in_memory(0, read, |_| Some(memory.len() as u64))
        };
        let sound = rules(&parse(&memory).unwrap());
        assert!(sound > 100, "{sound}");
        let mut random = Random(0x0fed_cba9_8765_4321);
        let mut different = 0;
        for _ in 0..300 {
            let mut damaged = memory.clone();
            for _ in 0..=random.below(8) {
                let at = random.below(64 + 56 * 12);
                damaged[at] = u8::try_from(random.below(256)).unwrap();
            }
            let found = guard::run(|| parse(&damaged).map(|image| rules(&image)));
            different += usize::from(found != Ok(Some(sound)));
        }
        assert!(different > 50, "{different}");
    }

    #[test]
    fn an_entry_of_endless_instructions_is_not_followed() {
        // One entry for all addresses, whose instructions are a megabyte of nothing.
        let nothing = vec![0_u8; 1 << 20];
        let cie: &[u8] = &[
            20, 0, 0, 0, 0, 0, 0, 0, 1, b'z', b'R', 0, 1, 0x78, 16, 1, 0x1b, 0x0c, 7, 8, 0x90, 1,
            0, 0,
        ];
        let mut bytes = cie.to_vec();
        let length = u32::try_from(4 + 4 + 4 + 1 + nothing.len()).unwrap();
        bytes.extend(length.to_le_bytes());
        bytes.extend(28_u32.to_le_bytes());
        // From here on, relative to this very place.
        bytes.extend((-32_i32).to_le_bytes());
        bytes.extend(0x7fff_0000_u32.to_le_bytes());
        bytes.push(0);
        bytes.extend(&nothing);
        bytes.extend([0; 4]);
        let image = |bytes: &[u8]| Image {
            eh_frame: Some((0, bytes.to_vec())),
            ..Image::default()
        };
        let mut context = UnwindContext::new();
        assert_eq!(image(&bytes).eh_frame_entries().len(), 1);
        assert!(image(&bytes).rule(0x1000, &mut context).is_none());
        // The same entry with fewer instructions is.
        let short = u32::try_from(4 + 4 + 4 + 1 + 3).unwrap();
        bytes.truncate(24 + 4 + 4 + 4 + 4 + 1 + 3);
        bytes[24..28].copy_from_slice(&short.to_le_bytes());
        bytes.extend([0; 4]);
        assert!(image(&bytes).rule(0x1000, &mut context).is_some());
    }
}
