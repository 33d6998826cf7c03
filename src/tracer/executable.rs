//! Why a file could not be executed: what its first bytes say.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::path::PathBuf;

use nix::errno::Errno;

use super::launch_error::LaunchError;

/// Enough for an ELF header with its program headers, and for the first line of a script: the kernel itself looks at
/// 256 bytes (linux/binfmts.h, `BINPRM_BUF_SIZE`).
const HEAD: usize = 4096;
const LONGEST_PATH: usize = 4096;

/// Names the reason why execve(2) failed with `errno`.
pub(super) fn diagnose(path: &Path, errno: Errno) -> LaunchError {
    let path = path.to_path_buf();
    let head = read_head(&path).unwrap_or_default();
    match errno {
        Errno::ENOENT => {
            match script_interpreter(&head).or_else(|| elf_interpreter(&path, &head)) {
                Some(interpreter) => LaunchError::MissingInterpreter { path, interpreter },
                None => LaunchError::NotFound(path.into_os_string()),
            }
        }
        Errno::ENOEXEC => match elf_machine(&head) {
            Some(machine) if machine != own_machine() => LaunchError::WrongArchitecture {
                path,
                machine: machine_name(machine),
            },
            _ => LaunchError::UnknownFormat(path),
        },
        Errno::EACCES => LaunchError::NotExecutable(path),
        errno => LaunchError::Refused { path, errno },
    }
}

fn read_head(path: &PathBuf) -> Option<Vec<u8>> {
    head_of(&File::open(path).ok()?)
}

fn head_of(file: &File) -> Option<Vec<u8>> {
    let mut head = vec![0; HEAD];
    let read = file.read_at(&mut head, 0).ok()?;
    head.truncate(read);
    Some(head)
}

/// Why a file is no library that can be preloaded into programs of this machine.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotPreloadable {
    /// A folder, a device, a pipe.
    #[error("it is no file")]
    NoFile,
    /// Not in the format of programs and libraries.
    #[error("it is no ELF file")]
    NotElf,
    /// For other machines.
    #[error("it is for {0}, and this machine is {arch}", arch = std::env::consts::ARCH)]
    OtherMachine(String),
    /// Something else than a shared library.
    #[error("it is a program or an object file, and no shared library")]
    NotShared,
}

/// Finds out whether a file is a shared library for this machine.
pub(super) fn preloadable(file: &File) -> Result<(), NotPreloadable> {
    let head = head_of(file).unwrap_or_default();
    let machine = elf_machine(&head).ok_or(NotPreloadable::NotElf)?;
    if let Some(other) = other_machine(&head, machine) {
        return Err(NotPreloadable::OtherMachine(other));
    }
    let is_shared = half(&head, 16) == Some(ET_DYN);
    let flags = dynamic_entry(file, &head, DT_FLAGS_1).unwrap_or(0);
    // The dynamic linker refuses to load programs (glibc, elf/dl-load.c).
    if !is_shared || !has_segment(&head, PT_DYNAMIC) || flags & DF_1_PIE != 0 {
        return Err(NotPreloadable::NotShared);
    }
    Ok(())
}

/// What decides whether a library can be preloaded into a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Linkage {
    /// For this machine, with this dynamic linker.
    Dynamic(String),
    /// For this machine, without a dynamic linker.
    Static,
    /// For another machine, or with addresses of another width.
    OtherMachine(String),
}

/// How a program is linked; `None` if that cannot be told.
pub(super) fn linkage(path: &PathBuf) -> Option<Linkage> {
    let head = read_head(path)?;
    let machine = elf_machine(&head)?;
    if let Some(other) = other_machine(&head, machine) {
        return Some(Linkage::OtherMachine(other));
    }
    Some(if has_segment(&head, PT_INTERP) {
        Linkage::Dynamic(elf_interpreter(path, &head)?)
    } else {
        Linkage::Static
    })
}

/// The name of the machine, if programs of ours could not share libraries with it.
fn other_machine(head: &[u8], machine: u16) -> Option<String> {
    if machine != own_machine() {
        return Some(machine_name(machine));
    }
    (!is_64_bit_elf(head)).then(|| format!("{} with 32-bit addresses", machine_name(machine)))
}

/// Whether a 64-bit ELF file defines a dynamic symbol of this name, which then goes before those of all libraries.
pub(super) fn defines_symbol(path: &PathBuf, name: &str) -> bool {
    symbol_is_defined(path, name.as_bytes()).unwrap_or(false)
}

fn symbol_is_defined(path: &PathBuf, name: &[u8]) -> Option<bool> {
    let file = File::open(path).ok()?;
    let head = head_of(&file)?;
    is_64_bit_elf(&head).then_some(())?;
    // Elf64_Ehdr and Elf64_Shdr of elf(5).
    let (table, size, count) = (long(&head, 40)?, half(&head, 58)?, half(&head, 60)?);
    let size = usize::from(size);
    let sections = read_range(&file, table, size * usize::from(count))?;
    let section = |index: usize| sections.get(index.checked_mul(size)?..);
    let contents = |header: &[u8]| {
        let length = usize::try_from(long(header, 32)?).ok()?;
        read_range(&file, long(header, 24)?, length)
    };
    for index in 0..usize::from(count) {
        let header = section(index)?;
        if word(header, 4)? != SHT_DYNSYM {
            continue;
        }
        let symbols = contents(header)?;
        let names = contents(section(usize::try_from(word(header, 40)?).ok()?)?)?;
        return Some(symbols.chunks_exact(SYMBOL_BYTES).any(|symbol| {
            let is_defined = half(symbol, 6).is_some_and(|section| section != 0);
            let at = word(symbol, 0).and_then(|at| usize::try_from(at).ok());
            is_defined
                && at
                    .and_then(|at| names.get(at..)?.strip_prefix(name))
                    .is_some_and(|rest| rest.first() == Some(&0))
        }));
    }
    Some(false)
}

/// Part of a file; `None` if it is not all there, or larger than any symbol table.
fn read_range(file: &File, at: u64, length: usize) -> Option<Vec<u8>> {
    (length <= LARGEST_TABLE).then_some(())?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, at).ok()?;
    Some(bytes)
}

/// The program headers of a 64-bit ELF file, as far as they lie within its head.
fn segments(head: &[u8]) -> impl Iterator<Item = &[u8]> {
    let place = |head| {
        let start = usize::try_from(long(head, 32)?).ok()?;
        Some((
            start,
            usize::from(half(head, 54)?),
            usize::from(half(head, 56)?),
        ))
    };
    let (start, size, count) = place(head).unwrap_or((0, 0, 0));
    (0..count).map_while(move |index| {
        let at = start.checked_add(index.checked_mul(size)?)?;
        head.get(at..at.checked_add(56)?)
    })
}

fn has_segment(head: &[u8], kind: u32) -> bool {
    segments(head).any(|segment| word(segment, 0) == Some(kind))
}

/// The value of an entry of the dynamic section of a 64-bit ELF file.
fn dynamic_entry(file: &File, head: &[u8], tag: u64) -> Option<u64> {
    let segment = segments(head).find(|segment| word(segment, 0) == Some(PT_DYNAMIC))?;
    let length = usize::try_from(long(segment, 32)?).ok()?;
    let entries = read_range(file, long(segment, 8)?, length)?;
    entries
        .chunks_exact(16)
        .find(|entry| long(entry, 0) == Some(tag))
        .and_then(|entry| long(entry, 8))
}

/// elf(5), linux/elf.h; `DF_1_PIE` is of the linkers.
const ET_DYN: u16 = 3;
const PT_DYNAMIC: u32 = 2;
const PT_INTERP: u32 = 3;
const SHT_DYNSYM: u32 = 11;
const SYMBOL_BYTES: usize = 24;
const DT_FLAGS_1: u64 = 0x6fff_fffb;
const DF_1_PIE: u64 = 0x0800_0000;
/// Far more than the largest known programs have.
const LARGEST_TABLE: usize = 256 << 20;

fn script_interpreter(head: &[u8]) -> Option<String> {
    let line = head
        .strip_prefix(b"#!")?
        .split(|&byte| byte == b'\n')
        .next()?;
    let word = line
        .split(|byte| matches!(byte, b' ' | b'\t' | b'\r'))
        .find(|word| !word.is_empty())?;
    // A carriage return is part of the name for the kernel: the usual reason for "not found" on files from Windows.
    let name = String::from_utf8_lossy(word).into_owned();
    Some(if line.ends_with(b"\r") {
        format!("{name}\\r")
    } else {
        name
    })
}

fn is_64_bit_elf(head: &[u8]) -> bool {
    head.starts_with(b"\x7fELF") && head.get(4) == Some(&2)
}

fn half(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

fn long(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(bytes.get(at..at + 8)?.try_into().ok()?))
}

/// `e_machine` of elf(5).
fn elf_machine(head: &[u8]) -> Option<u16> {
    let big_endian = head.get(5) == Some(&2);
    head.starts_with(b"\x7fELF").then_some(())?;
    half(head, 18).map(|machine| {
        if big_endian {
            machine.swap_bytes()
        } else {
            machine
        }
    })
}

/// The path in the `PT_INTERP` header of elf(5).
fn elf_interpreter(path: &PathBuf, head: &[u8]) -> Option<String> {
    if !head.starts_with(b"\x7fELF") {
        return None;
    }
    let wide = is_64_bit_elf(head);
    let (table, size, count) = if wide {
        (long(head, 32)?, half(head, 54)?, half(head, 56)?)
    } else {
        (u64::from(word(head, 28)?), half(head, 42)?, half(head, 44)?)
    };
    let table = usize::try_from(table).ok()?;
    for index in 0..usize::from(count) {
        let entry = table.checked_add(index.checked_mul(usize::from(size))?)?;
        let header = head.get(entry..entry.checked_add(56)?)?;
        if word(header, 0)? != PT_INTERP {
            continue;
        }
        let (offset, length) = if wide {
            (long(header, 8)?, long(header, 32)?)
        } else {
            (u64::from(word(header, 4)?), u64::from(word(header, 16)?))
        };
        let mut name = vec![0; usize::try_from(length).ok()?.min(LONGEST_PATH)];
        let read = File::open(path).ok()?.read_at(&mut name, offset).ok()?;
        let name = name[..read].split(|&byte| byte == 0).next()?;
        return Some(String::from_utf8_lossy(name).into_owned());
    }
    None
}

/// `EM_*` of linux/elf-em.h.
const MACHINES: [(u16, &str); 10] = [
    (3, "i386"),
    (8, "mips"),
    (20, "powerpc"),
    (21, "powerpc64"),
    (22, "s390"),
    (40, "arm"),
    (62, "x86_64"),
    (183, "aarch64"),
    (243, "riscv"),
    (258, "loongarch"),
];

fn own_machine() -> u16 {
    MACHINES
        .iter()
        .find(|(_, name)| *name == std::env::consts::ARCH)
        .map_or(0, |(number, _)| *number)
}

fn machine_name(machine: u16) -> String {
    MACHINES
        .iter()
        .find(|(number, _)| *number == machine)
        .map_or_else(
            || format!("ELF machine {machine}"),
            |(_, name)| (*name).to_owned(),
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_program_is_linked_as_it_is() {
        let own = std::env::current_exe().unwrap();
        let is_dynamic = matches!(linkage(&own), Some(Linkage::Dynamic(_)));
        let head = read_head(&own).unwrap();
        assert_eq!(is_dynamic, elf_interpreter(&own, &head).is_some());
        assert_eq!(linkage(&"/etc/passwd".into()), None);
        assert!(!defines_symbol(&own, "malloc"));
        assert!(!defines_symbol(&"/etc/passwd".into(), "malloc"));
    }

    #[test]
    fn a_cut_or_invented_elf_file_has_no_linkage_and_no_symbols() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("cut");
        let whole = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for length in [5, 20, 40, 63, 64, 100, 400, 4096] {
            std::fs::write(&path, &whole[..length]).unwrap();
            linkage(&path);
            assert!(!defines_symbol(&path, "malloc"));
        }
        let mut invented = whole[..4096].to_vec();
        invented[24..64].fill(0xff);
        std::fs::write(&path, &invented).unwrap();
        linkage(&path);
        assert!(!defines_symbol(&path, "malloc"));
        assert!(preloadable(&File::open(&path).unwrap()).is_err());
    }

    #[test]
    fn the_interpreter_of_a_script_is_the_first_word_after_the_mark() {
        assert_eq!(
            script_interpreter(b"#! /bin/nope -x\nrest").unwrap(),
            "/bin/nope"
        );
        assert_eq!(script_interpreter(b"#!/bin/sh\r\n").unwrap(), "/bin/sh\\r");
        assert_eq!(script_interpreter(b"echo"), None);
        assert_eq!(script_interpreter(b"#!\n"), None);
    }

    #[test]
    fn this_test_names_its_own_dynamic_linker_and_machine() {
        let path = std::env::current_exe().unwrap();
        let head = read_head(&path).unwrap();
        assert_eq!(elf_machine(&head), Some(own_machine()));
        assert!(elf_interpreter(&path, &head).unwrap().contains("ld-linux"));
    }

    #[test]
    fn truncated_headers_have_no_interpreter() {
        let path = std::env::current_exe().unwrap();
        let head = read_head(&path).unwrap();
        for length in 0..200 {
            let _ = elf_interpreter(&path, &head[..length]);
            let _ = elf_machine(&head[..length]);
        }
    }
}
