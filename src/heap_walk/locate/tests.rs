//! On images made here, on random ones, and on programs that run.

use std::cell::Cell;
use std::fs::File;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::os::unix::fs::FileExt;
use std::process::Command;
use std::process::Stdio;

use super::super::Residency;
use super::*;
use crate::mapping;
use crate::units::Address;

const BIAS: u64 = 0x7f12_3456_7000;
const HEAP: u64 = 0x5555_0000_0000;
const DATA: u64 = 0x4000;
const PARAMETERS: u64 = DATA + 0x400;
const ARENA: u64 = PARAMETERS + 0x940;
const BANNER: u64 = 0x2040;

/// Where glibc's members are, by version: from the debug information of the versions themselves.
#[derive(Clone, Copy)]
struct Version {
    name: &'static str,
    arena: ArenaLayout,
    parameters: ParametersLayout,
    top: u64,
    next: u64,
    arena_bytes: u64,
    mmap_max: u64,
    mapped_bytes: u64,
    break_base: u64,
    caches: Option<u64>,
}

const VERSIONS: [Version; 6] = [
    Version {
        name: "2.23",
        arena: ArenaLayout::UpTo226,
        parameters: ParametersLayout::UpTo223,
        top: 88,
        next: 2152,
        arena_bytes: 2192,
        mmap_max: 44,
        mapped_bytes: 56,
        break_base: 80,
        caches: None,
    },
    Version {
        name: "2.24",
        arena: ArenaLayout::UpTo226,
        parameters: ParametersLayout::From224,
        top: 88,
        next: 2152,
        arena_bytes: 2192,
        mmap_max: 44,
        mapped_bytes: 56,
        break_base: 72,
        caches: None,
    },
    Version {
        name: "2.26",
        arena: ArenaLayout::UpTo226,
        parameters: ParametersLayout::From226,
        top: 88,
        next: 2152,
        arena_bytes: 2192,
        mmap_max: 44,
        mapped_bytes: 56,
        break_base: 72,
        caches: Some(80),
    },
    Version {
        name: "2.27",
        arena: ArenaLayout::From227,
        parameters: ParametersLayout::From226,
        top: 96,
        next: 2160,
        arena_bytes: 2200,
        mmap_max: 44,
        mapped_bytes: 56,
        break_base: 72,
        caches: Some(80),
    },
    Version {
        name: "2.35",
        arena: ArenaLayout::From227,
        parameters: ParametersLayout::From235,
        top: 96,
        next: 2160,
        arena_bytes: 2200,
        mmap_max: 64,
        mapped_bytes: 80,
        break_base: 96,
        caches: Some(104),
    },
    Version {
        name: "2.43",
        arena: ArenaLayout::From243,
        parameters: ParametersLayout::From243,
        top: 8,
        next: 2072,
        arena_bytes: 2112,
        mmap_max: 72,
        mapped_bytes: 88,
        break_base: 104,
        caches: Some(112),
    },
];

/// Memory that was made up.
struct FakeImage {
    mappings: Vec<Mapping>,
    memory: Vec<(u64, Vec<u8>)>,
    file: Option<File>,
    reads: Cell<u64>,
    read_bytes: Cell<u64>,
}

impl Image for FakeImage {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let piece = self.memory.iter().find_map(|(start, piece)| {
            let inside = usize::try_from(address.checked_sub(*start)?).ok()?;
            piece.get(inside..).filter(|piece| !piece.is_empty())
        });
        let Some(piece) = piece else { return 0 };
        let length = piece.len().min(bytes.len());
        bytes[..length].copy_from_slice(&piece[..length]);
        self.read_bytes.set(self.read_bytes.get() + length as u64);
        length
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        Some(Residency {
            resident: vec![(start, end)],
            swapped: Vec::new(),
        })
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        let file = self.file.as_ref()?;
        (mapping.inode != 0).then(|| file.try_clone().ok())?
    }

    fn page_size(&self) -> u64 {
        4096
    }
}

fn put(bytes: &mut [u8], place: u64, value: u64) {
    let place = usize::try_from(place).unwrap();
    bytes[place..place + 8].copy_from_slice(&value.to_le_bytes());
}

fn put_half(bytes: &mut [u8], place: u64, value: u32) {
    let place = usize::try_from(place).unwrap();
    bytes[place..place + 4].copy_from_slice(&value.to_le_bytes());
}

fn put_bytes(bytes: &mut [u8], place: u64, value: &[u8]) {
    let place = usize::try_from(place).unwrap();
    bytes[place..place + value.len()].copy_from_slice(value);
}

/// How the made-up library is linked.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Linking {
    /// With a table of relocations and addends.
    Rela,
    /// With the addend in place.
    Relr,
    /// A static program at a fixed place.
    Fixed,
}

/// The bytes of a file with a malloc in it: headers, code, constants, and variables as they begin.
fn file_of(version: Version, linking: Linking) -> Vec<u8> {
    let mut file = vec![0; 0x6000];
    put_bytes(&mut file, 0, b"\x7fELF\x02\x01\x01");
    put_half(
        &mut file,
        16,
        62 << 16 | if linking == Linking::Fixed { 2 } else { 3 },
    );
    put(&mut file, 32, 64);
    put_half(&mut file, 52, 56 << 16 | 64);
    let base = if linking == Linking::Fixed {
        0x40_0000
    } else {
        0
    };
    // Type and flags, offset, address, bytes.
    let mut headers = vec![
        (1, 4, 0, base, 0x1000),
        (1, 5, 0x1000, base + 0x1000, 0x1000),
        (1, 4, 0x2000, base + 0x2000, 0x1000),
        (1, 6, DATA, base + DATA, 0x2000),
        (4, 4, 0x300, base + 0x300, 36),
    ];
    if linking != Linking::Fixed {
        headers.push((2, 6, DATA, DATA, 0x80));
    }
    put_half(&mut file, 56, u32::try_from(headers.len()).unwrap());
    for ((kind, flags, offset, address, bytes), place) in
        headers.into_iter().zip((64..).step_by(56))
    {
        put_half(&mut file, place, kind);
        put_half(&mut file, place + 4, flags);
        put(&mut file, place + 8, offset);
        put(&mut file, place + 16, address);
        put(&mut file, place + 32, bytes);
        put(&mut file, place + 40, bytes);
    }
    for (value, place) in [4, 20, 3].into_iter().zip([0x300, 0x304, 0x308]) {
        put_half(&mut file, place, value);
    }
    put_bytes(&mut file, 0x30c, b"GNU\0");
    put_bytes(&mut file, 0x310, version.name.as_bytes());
    put_bytes(&mut file, 0x800, b"\0libc.so.6\0");
    if linking != Linking::Fixed {
        let relocations = if linking == Linking::Rela { 0x48 } else { 0 };
        let dynamic = [(5, 0x800), (14, 1), (7, 0x900), (8, relocations), (0, 0)];
        for ((tag, value), place) in dynamic.into_iter().zip((DATA..).step_by(16)) {
            put(&mut file, place, tag);
            put(&mut file, place + 8, value);
        }
    }
    let banner = format!(
        "GNU C Library (made up) stable release version {}.\n",
        version.name
    );
    put_bytes(&mut file, BANNER, banner.as_bytes());
    if linking == Linking::Rela {
        let relocations = [
            (DATA + 0x1f00, 0x1234),
            (ARENA + version.next, ARENA),
            (DATA + 0x1f08, DATA),
        ];
        for ((place, target), entry) in relocations.into_iter().zip((0x900..).step_by(24)) {
            put(&mut file, entry, place);
            put(&mut file, entry + 8, 8);
            put(&mut file, entry + 16, target);
        }
    } else {
        put(&mut file, ARENA + version.next, base + ARENA);
    }
    put(&mut file, ARENA + version.next + 16, 1);
    for (offset, value) in [(0, 131_072), (8, 131_072), (16, 131_072), (24, 8)] {
        put(&mut file, PARAMETERS + offset, value);
    }
    put_half(&mut file, PARAMETERS + version.mmap_max, 65_536);
    if let Some(caches) = version.caches {
        put(&mut file, PARAMETERS + caches, 64);
        put(&mut file, PARAMETERS + caches + 8, 1032);
        put(&mut file, PARAMETERS + caches + 16, 7);
    }
    file
}

fn line(start: u64, bytes: u64, permissions: &str, offset: u64, inode: u64, name: &str) -> Mapping {
    Mapping {
        start: Address(start),
        end: Address(start + bytes),
        permissions: permissions.parse().unwrap(),
        offset,
        inode,
        name: (!name.is_empty()).then(|| name.to_owned()),
    }
}

fn mappings_of(base: u64, name: &str) -> Vec<Mapping> {
    vec![
        line(base, 0x1000, "r--p", 0, 77, name),
        line(base + 0x1000, 0x1000, "r-xp", 0x1000, 77, name),
        line(base + 0x2000, 0x1000, "r--p", 0x2000, 77, name),
        line(base + DATA, 0x2000, "rw-p", DATA, 77, name),
    ]
}

fn temporary_file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A program with that library, which nobody has called yet.
fn unused(version: Version, linking: Linking, name: &str) -> FakeImage {
    let file = file_of(version, linking);
    let base = if linking == Linking::Fixed {
        0x40_0000
    } else {
        BIAS
    };
    let mut memory = file.clone();
    put(&mut memory, ARENA + version.next, base + ARENA);
    FakeImage {
        mappings: mappings_of(base, name),
        memory: vec![(base, memory)],
        file: Some(temporary_file(&file)),
        reads: Cell::new(0),
        read_bytes: Cell::new(0),
    }
}

/// The same after some calls: one chunk waits in a bin, the others are empty.
fn used(version: Version, linking: Linking, name: &str) -> FakeImage {
    let mut image = unused(version, linking, name);
    let (base, memory) = &mut image.memory[0];
    let arena = *base + ARENA;
    for bin in 0..127 {
        let pair = version.top + 16 + 16 * bin;
        put(memory, ARENA + pair, arena + pair - 16);
        put(memory, ARENA + pair + 8, arena + pair - 16);
    }
    let pair = version.top + 16 + 16 * 70;
    put(memory, ARENA + pair, HEAP + 0x1000);
    put(memory, ARENA + pair + 8, HEAP + 0x1000);
    put(memory, ARENA + version.top, HEAP + 0x2000);
    for bytes in [version.next + 24, version.next + 32] {
        put(memory, ARENA + bytes, 0x21000);
    }
    put(memory, PARAMETERS + version.break_base, HEAP);
    let mut heap = vec![0; 0x21000];
    put(&mut heap, 0x1010, arena + pair - 16);
    put(&mut heap, 0x1018, arena + pair - 16);
    put(&mut heap, 0x2008, 0x1f001);
    image.memory.push((HEAP, heap));
    image
        .mappings
        .push(line(HEAP, 0x21000, "rw-p", 0, 0, "[heap]"));
    image
}

const LIBC: &str = "/usr/lib/x86_64-linux-gnu/libc.so.6";

fn one(image: &FakeImage) -> Located {
    let mut located = locate(image);
    assert_eq!(located.len(), 1, "{located:?}");
    located.remove(0)
}

#[test]
fn every_layout_is_found_before_and_after_the_first_call() {
    for version in VERSIONS {
        for linking in [Linking::Rela, Linking::Relr] {
            for (image, is_used) in [
                (unused(version, linking, LIBC), false),
                (used(version, linking, LIBC), true),
            ] {
                let expected = Located {
                    file: Some(LIBC.to_owned()),
                    version: Some(version.name.to_owned()),
                    main_arena: BIAS + ARENA,
                    arena: version.arena,
                    parameters: Some(Parameters {
                        address: BIAS + PARAMETERS,
                        layout: version.parameters,
                    }),
                    is_used,
                };
                assert_eq!(one(&image), expected, "{}", version.name);
            }
        }
    }
}

#[test]
fn layouts_are_those_of_the_table() {
    for version in VERSIONS {
        assert_eq!(version.arena.top(), version.top);
        assert_eq!(version.arena.next(), version.next);
        assert_eq!(version.arena.size(), version.arena_bytes);
        let layout = version.parameters;
        let at = |offset: usize| offset as u64;
        assert_eq!(at(layout.mapped_count()) + 4, version.mmap_max);
        assert_eq!(at(layout.mapped_bytes()), version.mapped_bytes);
        assert_eq!(at(layout.break_base()), version.break_base);
        assert_eq!(layout.thread_caches().map(at), version.caches);
    }
}

#[test]
fn a_top_that_stands_for_the_first_bin_is_no_use() {
    for version in VERSIONS {
        let mut image = used(version, Linking::Rela, LIBC);
        put(
            &mut image.memory[0].1,
            ARENA + version.top,
            BIAS + ARENA + version.top,
        );
        assert!(!one(&image).is_used);
    }
}

#[test]
fn settings_are_those_of_the_process_and_not_of_the_file() {
    for version in VERSIONS {
        let mut image = used(version, Linking::Relr, LIBC);
        let memory = &mut image.memory[0].1;
        put(memory, PARAMETERS, u64::MAX);
        put(memory, PARAMETERS + 8, 1 << 20);
        put(memory, PARAMETERS + 16, 32 << 20);
        put(memory, PARAMETERS + 32, 3);
        put_half(memory, PARAMETERS + version.mmap_max, 100);
        put_half(memory, PARAMETERS + version.mmap_max + 8, 1);
        if let Some(caches) = version.caches {
            put(memory, PARAMETERS + caches, 5);
            // Since 2.42 it is the chunk's size, and one more.
            let most = if version.name == "2.43" { 97 } else { 88 };
            put(memory, PARAMETERS + caches + 8, most);
            put(memory, PARAMETERS + caches + 16, 100);
        }
        let located = one(&image);
        let huge = version.caches.filter(|_| version.break_base > 90);
        let expected = MallocSettings {
            trim_threshold_bytes: u64::MAX,
            top_pad_bytes: 1 << 20,
            mmap_threshold_bytes: 32 << 20,
            mmap_threshold_is_dynamic: false,
            mmap_max: 100,
            arena_max: 3,
            tcache_count: version.caches.map(|_| 100),
            tcache_max_bytes: version.caches.map(|_| 88),
            thp_page_bytes: huge.map(|_| 0),
            huge_page_bytes: huge.map(|_| 0),
        };
        assert_eq!(
            settings(&image, &located),
            Some(expected),
            "{}",
            version.name
        );
    }
}

#[test]
fn a_library_that_was_replaced_on_disk_is_found_all_the_same() {
    for version in VERSIONS {
        for linking in [Linking::Rela, Linking::Relr] {
            let mut image = used(version, linking, &format!("{LIBC} (deleted)"));
            image.file = None;
            let located = one(&image);
            assert_eq!(located.main_arena, BIAS + ARENA);
            let parameters = located.parameters.unwrap();
            assert_eq!(parameters.address, BIAS + PARAMETERS);
            assert_eq!(parameters.layout, version.parameters, "{}", version.name);
        }
    }
}

#[test]
fn parameters_that_tunables_changed_are_found_without_the_file() {
    for version in VERSIONS {
        let mut image = used(version, Linking::Rela, LIBC);
        image.file = None;
        let memory = &mut image.memory[0].1;
        put(memory, PARAMETERS + 24, 2);
        put_half(memory, PARAMETERS + version.mmap_max, 10);
        if let Some(caches) = version.caches {
            put(memory, PARAMETERS + caches, 5);
            put(memory, PARAMETERS + caches + 8, 80);
        }
        let expected = Some(Parameters {
            address: BIAS + PARAMETERS,
            layout: version.parameters,
        });
        assert_eq!(one(&image).parameters, expected, "{}", version.name);
    }
}

#[test]
fn a_damaged_heap_does_not_hide_what_the_file_declares() {
    for version in VERSIONS {
        for linking in [Linking::Rela, Linking::Relr, Linking::Fixed] {
            let name = if linking == Linking::Fixed {
                "/srv/program"
            } else {
                LIBC
            };
            let mut image = used(version, linking, name);
            for bin in 0..40 {
                let pair = version.top + 16 + 16 * bin;
                put(&mut image.memory[0].1, ARENA + pair, 0x4141_4141_4141_4141);
            }
            let located = one(&image);
            assert!(located.is_used);
            assert_eq!(located.arena, version.arena);
        }
    }
}

#[test]
fn rings_of_arenas_are_followed_with_large_and_small_heaps() {
    for version in VERSIONS {
        for heap in [0x7f00_0c00_0000_u64, 0x7f00_0080_0000] {
            let mut image = used(version, Linking::Relr, LIBC);
            image.file = None;
            let other = heap + 0x30;
            put(&mut image.memory[0].1, ARENA + version.next, other);
            let mut bytes = vec![0; 0x1000];
            put(&mut bytes, 0x30 + version.next, BIAS + ARENA);
            image.memory.push((heap, bytes));
            assert_eq!(one(&image).main_arena, BIAS + ARENA);
            // One that leads elsewhere is none.
            put(&mut image.memory[2].1, 0x30 + version.next, other);
            assert_eq!(locate(&image), []);
        }
    }
}

#[test]
fn static_programs_have_theirs() {
    for version in VERSIONS {
        for (image, is_used) in [
            (unused(version, Linking::Fixed, "/srv/program"), false),
            (used(version, Linking::Fixed, "/srv/program"), true),
        ] {
            let located = one(&image);
            assert_eq!(located.main_arena, 0x40_0000 + ARENA);
            assert_eq!(located.version, None);
            assert_eq!(located.is_used, is_used);
            let layout = located.parameters.unwrap().layout;
            // Before the first call these two look alike.
            if is_used || version.name != "2.23" {
                assert_eq!(layout, version.parameters);
            }
        }
    }
}

#[test]
fn a_library_loaded_twice_has_two() {
    let version = VERSIONS[4];
    let mut image = used(version, Linking::Rela, LIBC);
    let second = BIAS + 0x10_0000;
    let mut memory = file_of(version, Linking::Rela);
    put(&mut memory, ARENA + version.next, second + ARENA);
    image.memory.push((second, memory));
    image.mappings.extend(mappings_of(second, LIBC));
    let located = locate(&image);
    let places: Vec<(u64, bool)> = located
        .iter()
        .map(|located| (located.main_arena, located.is_used))
        .collect();
    assert_eq!(places, [(BIAS + ARENA, true), (second + ARENA, false)]);
}

#[test]
fn a_library_by_another_name_is_known_by_its_own() {
    let image = used(VERSIONS[3], Linking::Rela, "/opt/private/c-library.so");
    assert_eq!(one(&image).version.as_deref(), Some("2.27"));
    let mut image = used(VERSIONS[3], Linking::Rela, "/opt/private/other.so");
    put_bytes(&mut image.memory[0].1, 0x800, b"\0other.so\0");
    assert_eq!(locate(&image), []);
}

#[test]
fn programs_of_32_bits_and_other_machines_have_none() {
    for (place, byte) in [(4, 1_u8), (5, 2), (18, 3), (0, 0)] {
        let mut image = used(VERSIONS[4], Linking::Rela, LIBC);
        image.memory[0].1[place] = byte;
        assert_eq!(locate(&image), [], "byte {place}");
    }
}

#[test]
fn a_program_that_has_not_been_linked_yet_has_none() {
    for version in VERSIONS {
        for linking in [Linking::Rela, Linking::Relr] {
            let mut image = unused(version, linking, LIBC);
            image.memory[0].1 = file_of(version, linking);
            assert_eq!(locate(&image), []);
        }
    }
}

#[test]
fn memory_without_files_is_searched_where_code_is_in_it() {
    let mut image = used(VERSIONS[4], Linking::Rela, LIBC);
    image.file = None;
    for mapping in &mut image.mappings {
        mapping.inode = 0;
        mapping.offset = 0;
        mapping.name = None;
    }
    let located = one(&image);
    assert_eq!(located.main_arena, BIAS + ARENA);
    assert_eq!((located.file, located.version), (None, None));
    image.mappings[1].permissions.execute = false;
    assert_eq!(locate(&image), []);
}

#[test]
fn a_file_that_is_known_is_found_again_with_few_reads() {
    let version = VERSIONS[4];
    let mut locator = Locator::new();
    let first = used(version, Linking::Rela, LIBC);
    let located = locator.locate(&first);
    let mut again = used(version, Linking::Rela, LIBC);
    again.file = None;
    assert_eq!(locator.locate(&again), located);
    assert_eq!(again.reads.get(), 2);
    assert!(again.read_bytes.get() < 8192);
    // Another build at the same place is looked at anew.
    let other = used(VERSIONS[5], Linking::Rela, LIBC);
    let located = locator.locate(&other);
    assert_eq!(located[0].arena, ArenaLayout::From243);
    // And memory that does not bear it out is not believed.
    let mut gone = used(version, Linking::Rela, LIBC);
    gone.memory[0].1[0x4000..].fill(0);
    assert_eq!(locator.locate(&gone), []);
}

/// Numbers that look random, from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }
}

#[test]
fn random_memory_has_none() {
    let mut random = Random(0x00b7_ea57_12ac_e001);
    for name in [LIBC, "/srv/program", ""] {
        let mut image = used(VERSIONS[4], Linking::Rela, name);
        for (_, memory) in &mut image.memory {
            memory.fill_with(|| random.next().to_le_bytes()[0]);
        }
        assert_eq!(locate(&image), []);
    }
}

#[test]
fn damaged_images_never_cost_more_than_their_bounds() {
    let mut random = Random(0x00b7_ea57_12ac_e002);
    let extremes = [
        0,
        1,
        8,
        u64::MAX,
        u64::MAX - 7,
        1 << 63,
        1 << 47,
        BIAS,
        BIAS + ARENA,
    ];
    for round in 0..4000 {
        let version = VERSIONS[random.below(VERSIONS.len())];
        let (linking, name) = [
            (Linking::Rela, LIBC),
            (Linking::Relr, LIBC),
            (Linking::Rela, "/opt/other.so"),
            (Linking::Fixed, "/srv/program"),
        ][random.below(4)];
        let mut image = if round % 2 == 0 {
            used(version, linking, name)
        } else {
            unused(version, linking, name)
        };
        // Mostly where decisions are made: headers, the dynamic section, the arena, the parameters.
        for _ in 0..1 + random.below(6) {
            let (start, bytes) = [
                (0, 0x400),
                (0x800, 0x200),
                (0x4000, 0x80),
                (usize::try_from(PARAMETERS).unwrap(), 0x90),
                (usize::try_from(ARENA).unwrap(), 0x8a0),
            ][random.below(5)];
            let place = (start + random.below(bytes)) & !7;
            let value = match random.below(3) {
                0 => random.next(),
                1 => extremes[random.below(extremes.len())],
                _ => random.next() & 0xffff,
            };
            put(&mut image.memory[0].1, place as u64, value);
            if random.below(3) == 0 {
                let file = image.file.as_ref().unwrap();
                file.write_at(&value.to_le_bytes(), place as u64).unwrap();
            }
        }
        if random.below(8) == 0 {
            let length = random.below(0x6000);
            image.memory[0].1.truncate(length);
        }
        if random.below(8) == 0 {
            let mapping = random.below(image.mappings.len());
            let mapping = &mut image.mappings[mapping];
            mapping.start = Address(extremes[random.below(extremes.len())]);
            mapping.end = Address(random.next());
            mapping.offset = random.next();
        }
        for located in locate(&image) {
            // Whatever it is, it is read within the same bounds.
            let _ = settings(&image, &located);
        }
        assert!(image.reads.get() < 2000, "{} reads", image.reads.get());
        assert!(image.read_bytes.get() < 16 << 20);
    }
}

/// The memory of a process.
struct ProcessImage {
    mappings: Vec<Mapping>,
    memory: File,
    pid: u32,
}

impl ProcessImage {
    fn open(pid: u32) -> Self {
        Self {
            mappings: mapping::read(pid).unwrap(),
            memory: File::open(format!("/proc/{pid}/mem")).unwrap(),
            pid,
        }
    }
}

impl Image for ProcessImage {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        self.memory.read_at(bytes, address).unwrap_or(0)
    }

    fn residency(&self, _start: u64, _end: u64) -> Option<Residency> {
        None
    }

    fn file(&self, mapping: &Mapping) -> Option<File> {
        let name = mapping.name.as_deref()?;
        File::open(format!("/proc/{}/root{name}", self.pid)).ok()
    }

    fn page_size(&self) -> u64 {
        4096
    }
}

/// What a program says of itself, and what is found in it meanwhile.
fn held_against(flags: &[&str], environment: &[(&str, &str)]) {
    let folder = tempfile::tempdir().unwrap();
    let source = folder.path().join("program.c");
    let program = folder.path().join("program");
    std::fs::write(
        &source,
        r#"
#include <malloc.h>
#include <stdio.h>
#include <stdlib.h>
#ifdef LARGE
char large[12 << 20] = {1};
#endif
static void *kept[1000];
int main(void) {
    for (int i = 0; i < 1000; i++) kept[i] = malloc(100 + 37 * (i % 90));
    for (int i = 0; i < 1000; i += 2) free(kept[i]);
    mallopt(M_TOP_PAD, 300000);
    mallopt(M_MMAP_THRESHOLD, 4 << 20);
    mallopt(M_TRIM_THRESHOLD, -1);
    mallopt(M_ARENA_MAX, 5);
    mallopt(M_MMAP_MAX, 1234);
    setvbuf(stdout, NULL, _IONBF, 0);
    printf("%lu\n", (unsigned long) mallinfo().arena);
    return getchar() == 0;
}
"#,
    )
    .unwrap();
    let compiled = Command::new("cc")
        .args(["-w", "-O1", "-s", "-o"])
        .args([&program, &source])
        .args(flags)
        .output();
    match compiled {
        Ok(compiled) if compiled.status.success() => {}
        _ => {
            let _ = writeln!(std::io::stderr(), "skipped: no C compiler for {flags:?}");
            return;
        }
    }
    let mut child = Command::new(&program)
        .envs(environment.iter().copied())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut said)
        .unwrap();
    let image = ProcessImage::open(child.id());
    let is_there = |file: &str| {
        let mut names = image.mappings.iter().filter_map(|map| map.name.as_deref());
        names.any(|name| name.contains(file))
    };
    let (is_checked, is_wanted) = (
        is_there("libc_malloc_debug"),
        environment.iter().any(|(name, _)| *name == "LD_PRELOAD"),
    );
    let mut located = locate(&image);
    let all = located.len();
    located.retain(|located| located.is_used);
    let system = located
        .first()
        .and_then(|located| image.word(located.main_arena + located.arena.system_mem()));
    let found = located
        .first()
        .and_then(|located| settings(&image, located));
    child.kill().unwrap();
    child.wait().unwrap();
    if is_wanted && !is_checked {
        let _ = writeln!(std::io::stderr(), "skipped: no libc_malloc_debug.so");
        return;
    }
    assert_eq!(
        all,
        if is_checked { 2 } else { 1 },
        "{flags:?}: {located:?}"
    );
    assert_eq!(located.len(), 1, "{flags:?}: {located:?}");
    assert_eq!(system, Some(said.trim().parse().unwrap()), "{flags:?}");
    let found = found.unwrap();
    assert_eq!(found.top_pad_bytes, 300_000);
    assert_eq!(found.mmap_threshold_bytes, 4 << 20);
    assert_eq!(found.trim_threshold_bytes, u64::MAX);
    assert_eq!(found.arena_max, 5);
    assert_eq!(found.mmap_max, 1234);
    assert!(!found.mmap_threshold_is_dynamic);
    let caches = (found.tcache_count, found.tcache_max_bytes);
    if is_checked {
        assert_eq!(caches, (None, None));
    } else if environment.contains(&TUNABLES) {
        assert_eq!(caches, (Some(3), Some(200)));
    } else {
        // The count became 16 with 2.43.
        assert!(matches!(caches, (Some(7 | 16), Some(1032))), "{caches:?}");
    }
}

const TUNABLES: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.tcache_count=3:glibc.malloc.tcache_max=200",
);

#[test]
fn a_stripped_program_and_its_settings_are_seen_from_outside() {
    held_against(&[], &[]);
    held_against(&["-no-pie"], &[TUNABLES]);
}

#[test]
fn a_malloc_with_checks_is_found_beside_the_one_that_it_replaces() {
    let checks = ("GLIBC_TUNABLES", "glibc.malloc.check=1");
    held_against(&[], &[("LD_PRELOAD", "libc_malloc_debug.so.0"), checks]);
}

#[test]
fn a_static_stripped_program_and_its_settings_are_seen_from_outside() {
    held_against(&["-static"], &[]);
    held_against(&["-static-pie"], &[TUNABLES]);
    held_against(&["-static", "-DLARGE"], &[]);
    held_against(&["-static-pie", "-DLARGE"], &[]);
}

#[test]
fn the_tests_themselves_run_on_a_malloc_that_is_found() {
    let image = ProcessImage::open(std::process::id());
    let located = locate(&image);
    assert_eq!(located.len(), 1, "{located:?}");
    let located = &located[0];
    assert!(located.is_used);
    // Other threads may grow it meanwhile; then it is asked again.
    let is_equal = (0..1000).any(|_| {
        // SAFETY: the function takes and changes nothing but its own result.
        let before = unsafe { libc::mallinfo2() }.arena as u64;
        let arenas = sum_of_arenas(&image, located);
        // SAFETY: as above.
        let after = unsafe { libc::mallinfo2() }.arena as u64;
        before == after && arenas == Some(before)
    });
    assert!(is_equal);
    // SAFETY: the string is a constant of the C library's.
    let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
    assert_eq!(located.version.as_deref(), version.to_str().ok());
    assert!(settings(&image, located).is_some());
}

fn sum_of_arenas(image: &dyn Image, located: &Located) -> Option<u64> {
    let mut sum = 0;
    let mut at = located.main_arena;
    for _ in 0..10_000 {
        sum += image.word(at + located.arena.system_mem())?;
        at = image.word(at + located.arena.next())?;
        if at == located.main_arena {
            return Some(sum);
        }
    }
    None
}

#[test]
#[ignore = "measures; for a release build"]
fn time_taken() {
    for pid in std::env::var("PIDS").unwrap().split_whitespace() {
        let image = ProcessImage::open(pid.parse().unwrap());
        let mut locator = Locator::new();
        for located in locate(&image) {
            eprintln!(
                "{pid} arena {:?} {:?} {:?}",
                sum_of_arenas(&image, &located),
                settings(&image, &located),
                located.parameters.and_then(|p| counts(&image, p))
            );
        }
        for round in 0..4 {
            let began = std::time::Instant::now();
            let located = locator.locate(&image);
            let elapsed = began.elapsed();
            eprintln!(
                "{pid} {round} {elapsed:?} {} {:?}",
                image.mappings.len(),
                located
            );
            if round == 1 {
                locator = Locator::new();
            }
        }
    }
}
