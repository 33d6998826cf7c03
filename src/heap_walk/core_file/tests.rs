use std::io::Write;

use tempfile::NamedTempFile;

use super::*;
use crate::mapping::MappingKind;

/// A core file in the making.
#[derive(Clone, Debug)]
struct Made {
    machine: u16,
    notes: Vec<u8>,
    /// Address, bytes in memory, flags, contents.
    memory: Vec<(u64, u64, u32, Vec<u8>)>,
}

fn note(name: &str, kind: u32, contents: &[u8]) -> Vec<u8> {
    let mut note = Vec::new();
    let name = [name.as_bytes(), b"\0"].concat();
    for number in [name.len(), contents.len()] {
        note.extend(u32::try_from(number).unwrap().to_le_bytes());
    }
    note.extend(kind.to_le_bytes());
    for part in [&name[..], contents] {
        note.extend(part);
        note.resize(note.len().next_multiple_of(4), 0);
    }
    note
}

fn put(bytes: &mut [u8], at: usize, value: &[u8]) {
    bytes[at..at + value.len()].copy_from_slice(value);
}

/// `struct elf_prstatus` of x86-64.
fn thread(tid: u32, signal: u16, thread_pointer: u64) -> Vec<u8> {
    let mut status = vec![0; 336];
    put(&mut status, 12, &signal.to_le_bytes());
    put(&mut status, 32, &tid.to_le_bytes());
    put(&mut status, 112 + 8 * 21, &thread_pointer.to_le_bytes());
    note("CORE", 1, &status)
}

fn program() -> Vec<u8> {
    let mut info = vec![0; 136];
    put(&mut info, 24, &4711_u32.to_le_bytes());
    put(&mut info, 40, b"server");
    put(&mut info, 56, b"./server --port 80 ");
    note("CORE", 3, &info)
}

fn files(rows: &[(u64, u64, u64, &str)]) -> Vec<u8> {
    let mut table = Vec::new();
    for number in [rows.len() as u64, 4096] {
        table.extend(number.to_le_bytes());
    }
    for (start, end, offset, _) in rows {
        for number in [start, end, offset] {
            table.extend(number.to_le_bytes());
        }
    }
    for (.., name) in rows {
        table.extend(name.as_bytes());
        table.push(0);
    }
    note("CORE", 0x4649_4c45, &table)
}

fn auxiliary(pairs: &[(u64, u64)]) -> Vec<u8> {
    let words: Vec<u8> = pairs
        .iter()
        .flat_map(|(kind, value)| [kind.to_le_bytes(), value.to_le_bytes()])
        .flatten()
        .collect();
    note("CORE", 6, &words)
}

impl Made {
    /// Two threads, a library of which one page is there, a stretch of memory, and a stack.
    fn usual() -> Self {
        let notes = [
            thread(4711, 11, 0x7000_0040),
            program(),
            auxiliary(&[(6, 4096), (25, 0x9000_0010), (0, 0)]),
            files(&[
                (0x5000_0000, 0x5000_2000, 0, "/nowhere/lib.so"),
                (0x5000_2000, 0x5000_3000, 2, "/nowhere/lib.so"),
            ]),
            thread(4712, 0, 0x7000_0840),
        ]
        .concat();
        Self {
            machine: elf::EM_X86_64,
            notes,
            memory: vec![
                (0x5000_0000, 0x2000, 5, vec![0x7f; 0x1000]),
                (0x5000_2000, 0x1000, 6, vec![2; 0x1000]),
                (0x7000_0000, 0x3000, 6, vec![7; 0x2000]),
                (0x9000_0000, 0x1000, 6, vec![9; 0x1000]),
            ],
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let count = self.memory.len() + 1;
        let mut file = vec![0; 64 + 56 * count];
        put(&mut file, 0, b"\x7fELF\x02\x01\x01");
        put(&mut file, 16, &elf::ET_CORE.to_le_bytes());
        put(&mut file, 18, &self.machine.to_le_bytes());
        put(&mut file, 32, &64_u64.to_le_bytes());
        put(&mut file, 54, &56_u16.to_le_bytes());
        put(&mut file, 56, &u16::try_from(count).unwrap().to_le_bytes());
        let notes = (0, 0, 0, self.notes.clone());
        for (number, (address, length, flags, contents)) in
            std::iter::once(&notes).chain(&self.memory).enumerate()
        {
            let at = 64 + 56 * number;
            let kind = if number == 0 {
                elf::PT_NOTE
            } else {
                elf::PT_LOAD
            };
            let offset = file.len() as u64;
            put(&mut file, at, &kind.to_le_bytes());
            put(&mut file, at + 4, &flags.to_le_bytes());
            put(&mut file, at + 8, &offset.to_le_bytes());
            put(&mut file, at + 16, &address.to_le_bytes());
            put(&mut file, at + 32, &(contents.len() as u64).to_le_bytes());
            put(&mut file, at + 40, &length.to_le_bytes());
            file.extend(contents);
        }
        file
    }
}

fn file_of(bytes: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(bytes).unwrap();
    file
}

fn open(bytes: &[u8]) -> Result<CoreFile, CoreError> {
    CoreFile::open(file_of(bytes).path())
}

/// What `open` says of something, in one line with its hint.
#[track_caller]
fn complaint(bytes: &[u8]) -> String {
    let error = open(bytes).unwrap_err();
    let text = error.to_string();
    let (_, what) = text.split_once("/tmp").unwrap_or(("", &text));
    let what = what.split_once(' ').map_or(what, |(_, what)| what);
    format!("{what}; {}", error.hint().unwrap())
}

#[test]
fn threads_program_signal_and_mappings_are_told() {
    let core = open(&Made::usual().bytes()).unwrap();
    let threads: Vec<_> = core
        .threads()
        .iter()
        .map(|thread| (thread.tid, thread.thread_pointer))
        .collect();
    assert_eq!(
        threads,
        [(4711, Some(0x7000_0040)), (4712, Some(0x7000_0840))]
    );
    assert_eq!(core.thread_pointers(), [0x7000_0040, 0x7000_0840]);
    assert_eq!(core.signal(), Some(11));
    let program = core.program().unwrap();
    assert_eq!((program.pid, program.name.as_str()), (4711, "server"));
    assert_eq!(program.arguments, "./server --port 80");
    assert_eq!(core.problems(), [""; 0]);
    let mappings: Vec<_> = core
        .mappings()
        .iter()
        .map(|mapping| {
            let name = mapping.name.as_deref();
            (
                mapping.start.0,
                mapping.permissions.to_string(),
                mapping.offset,
                name,
                mapping.kind(),
            )
        })
        .collect();
    let library = Some("/nowhere/lib.so");
    assert_eq!(
        mappings,
        [
            (0x5000_0000, "r-xp".into(), 0, library, MappingKind::File),
            (
                0x5000_2000,
                "rw-p".into(),
                0x2000,
                library,
                MappingKind::File
            ),
            (0x7000_0000, "rw-p".into(), 0, None, MappingKind::Anonymous),
            (
                0x9000_0000,
                "rw-p".into(),
                0,
                Some("[stack]"),
                MappingKind::Stack
            ),
        ]
    );
}

#[test]
fn arm_has_its_thread_pointers_in_notes_of_their_own() {
    let status = |tid: u32| {
        let mut status = vec![0; 392];
        put(&mut status, 32, &tid.to_le_bytes());
        note("CORE", 1, &status)
    };
    let mut made = Made::usual();
    made.machine = elf::EM_AARCH64;
    made.notes = [
        status(5),
        note("LINUX", 0x401, &0x7000_0100_u64.to_le_bytes()),
        status(6),
        status(7),
        // Two words where there is SME.
        note("LINUX", 0x401, &[0x77; 16]),
    ]
    .concat();
    let core = open(&made.bytes()).unwrap();
    let threads: Vec<_> = core
        .threads()
        .iter()
        .map(|thread| (thread.tid, thread.thread_pointer))
        .collect();
    assert_eq!(
        threads,
        [
            (5, Some(0x7000_0100)),
            (6, None),
            (7, Some(0x7777_7777_7777_7777))
        ]
    );
    assert_eq!(core.signal(), None);
}

#[test]
fn what_is_left_out_is_not_there() {
    let core = open(&Made::usual().bytes()).unwrap();
    let mut bytes = vec![1; 0x4000];
    assert_eq!(core.read(0x7000_0000, &mut bytes), 0x2000);
    assert!(bytes[..0x2000].iter().all(|&byte| byte == 7));
    assert_eq!(core.read(0x7000_2000, &mut bytes), 0);
    assert_eq!(core.read(0x6fff_ffff, &mut bytes), 0);
    assert_eq!(core.read(u64::MAX, &mut bytes), 0);
    assert_eq!(core.word(0x7000_1ff8), Some(0x0707_0707_0707_0707));
    assert_eq!(core.word(0x7000_1ffc), None);
    // Nor is there a file of that name, nor the contents of one that the program may have changed.
    assert_eq!(core.read(0x5000_1000, &mut bytes), 0);
    assert!(core.file(&core.mappings()[0]).is_none());
    // Neighbours are read in one go.
    let mut made = Made::usual();
    made.memory[0].3.resize(0x2000, 0x7f);
    let core = open(&made.bytes()).unwrap();
    assert_eq!(core.read(0x5000_1f00, &mut bytes), 0x1100);
    assert_eq!((bytes[0xff], bytes[0x100]), (0x7f, 2));
    assert_eq!(core.read_bytes(), 0x1100);
    assert_eq!(core.residency(0x5000_0000, 0x5000_1000), None);
    assert!(!core.absent_is_zero());
}

#[test]
fn what_is_no_core_file_is_named_with_a_way_out() {
    let whole = Made::usual().bytes();
    let changed = |at: usize, byte: u8| {
        let mut bytes = whole.clone();
        bytes[at] = byte;
        bytes
    };
    for (bytes, expected) in [
        (b"".to_vec(), "not an ELF file; `gcore PID`"),
        (b"#!/bin/sh\n".to_vec(), "not an ELF file; `gcore PID`"),
        (
            b"\x28\xb5\x2f\xfd1234".to_vec(),
            "compressed (zstd); `coredumpctl dump PID",
        ),
        (b"\x1f\x8b12345678".to_vec(), "otherwise `gzip -d`"),
        (changed(4, 1), "a 32-bit program"),
        (changed(5, 2), "a big-endian program"),
        (changed(16, 3), "it is a program or a library; "),
        (changed(16, 1), "it is an object file; "),
        (changed(18, 8), "a machine 8 program"),
        (changed(54, 55), "damaged: its header"),
        (whole[..50].to_vec(), "damaged: its header"),
        (
            whole[..100].to_vec(),
            "344 bytes are missing; `ulimit -c unlimited`",
        ),
        (whole[..whole.len() - 5].to_vec(), "incomplete: 5 of "),
    ] {
        let complaint = complaint(&bytes);
        assert!(complaint.contains(expected), "{expected}: {complaint}");
    }
    let folder = CoreError::NotAFile("/".into());
    assert_eq!(
        CoreFile::open(Path::new("/")).unwrap_err().to_string(),
        folder.to_string()
    );
    assert!(matches!(
        CoreFile::open(Path::new("/nowhere/core")),
        Err(CoreError::Unreadable { .. })
    ));
    assert!(matches!(
        CoreFile::open(Path::new("/dev/zero")),
        Err(CoreError::NotAFile(_))
    ));
}

#[test]
fn segments_that_cannot_be_are_damage() {
    let mut overlapping = Made::usual();
    overlapping.memory[1].0 = 0x5000_1000;
    let mut endless = Made::usual();
    endless.memory[3].1 = u64::MAX;
    let mut empty = Made::usual();
    empty.memory.clear();
    for made in [overlapping, endless, empty] {
        assert!(matches!(
            open(&made.bytes()),
            Err(CoreError::Damaged { .. })
        ));
    }
}

#[test]
fn what_of_the_notes_makes_no_sense_is_said() {
    let mut made = Made::usual();
    let whole = made.notes.len();
    made.notes.truncate(whole - 20);
    let core = open(&made.bytes()).unwrap();
    assert_eq!(core.threads().len(), 1);
    assert_eq!(core.problems().len(), 1);
    // A table that promises more than it has.
    made.notes = files(&[(0x5000_0000, 0x5000_2000, 0, "/nowhere/lib.so")]);
    made.notes[20] = 200;
    let core = open(&made.bytes()).unwrap();
    assert_eq!(core.problems().len(), 1);
    assert_eq!(core.mappings()[0].name, None);
    // A thousand threads without registers are one problem or eight.
    made.notes = note("CORE", 1, &[0; 8]).repeat(1000);
    assert!(open(&made.bytes()).unwrap().problems().len() <= 8);
}

#[test]
fn names_as_long_as_a_table_are_not_multiplied() {
    let mut made = Made::usual();
    let name = "x".repeat(5000);
    made.notes = files(&[(0, u64::MAX, 0, &name)]);
    let core = open(&made.bytes()).unwrap();
    assert!(core.mappings()[0].name.is_none());
}

#[test]
fn files_that_somebody_prepared_are_refused_or_read_within_bounds() {
    let whole = Made::usual().bytes();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("core");
    let mut opened = 0;
    for _ in 0..4000 {
        let mut bytes = whole.clone();
        for _ in 0..1 + random() % 8 {
            // Headers and notes matter most.
            let at = usize::try_from(random() % 2600).unwrap();
            bytes[at] = match random() % 4 {
                0 => 0xff,
                1 => 0,
                2 => 0x80,
                _ => random().to_le_bytes()[0],
            };
        }
        if random() % 8 == 0 {
            bytes.truncate(usize::try_from(random()).unwrap() % whole.len());
        }
        std::fs::write(&path, &bytes).unwrap();
        let Ok(core) = CoreFile::open(&path) else {
            continue;
        };
        opened += 1;
        let mut buffer = vec![0; 0x3000];
        for mapping in core.mappings() {
            for address in [
                mapping.start.0,
                mapping.end.0.wrapping_sub(8),
                mapping.end.0,
                random(),
            ] {
                assert!(core.read(address, &mut buffer) <= buffer.len());
                core.word(address);
            }
            core.file(mapping);
        }
        assert!(core.thread_pointers().len() <= 2);
    }
    assert!(opened > 500, "{opened}");
}

#[test]
fn mappings_that_only_the_table_of_files_names_are_there_without_contents() {
    let mut made = Made::usual();
    // As gdb writes it: of the library's first mapping only the first page.
    made.memory[0].1 = 0x1000;
    made.notes = files(&[
        (0x4fff_0000, 0x4fff_2000, 3, "/nowhere/data"),
        (0x5000_0000, 0x5000_2000, 0, "/nowhere/lib.so"),
        (0x5000_2000, 0x5000_3000, 2, "/nowhere/lib.so"),
        // Overlaps with others, and reaches around memory.
        (0x5000_2800, 0x7000_1000, 9, "/nowhere/odd"),
    ]);
    let core = open(&made.bytes()).unwrap();
    let mappings: Vec<_> = core
        .mappings()
        .iter()
        .map(|mapping| {
            (
                mapping.start.0,
                mapping.end.0,
                mapping.permissions.to_string(),
                mapping.offset,
            )
        })
        .collect();
    assert_eq!(
        mappings[..4],
        [
            (0x4fff_0000, 0x4fff_2000, "---p".into(), 0x3000),
            (0x5000_0000, 0x5000_2000, "r-xp".into(), 0),
            (0x5000_2000, 0x5000_3000, "rw-p".into(), 0x2000),
            (0x5000_3000, 0x7000_0000, "---p".into(), 0x9800),
        ]
    );
    assert!(
        core.mappings()
            .windows(2)
            .all(|pair| pair[0].end <= pair[1].start)
    );
    let mut bytes = [0; 16];
    assert_eq!(core.read(0x5000_0ff8, &mut bytes), 8);
    assert_eq!(core.read(0x4fff_0000, &mut bytes), 0);
}
