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
    let mut head = vec![0; HEAD];
    let read = File::open(path).ok()?.read_at(&mut head, 0).ok()?;
    head.truncate(read);
    Some(head)
}

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
    const PT_INTERP: u32 = 3;
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
