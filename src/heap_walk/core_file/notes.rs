//! The notes of a core file: threads, the program's name, the files that it had mapped (fs/binfmt_elf.c).

use std::ops::Range;

use super::elf::EM_AARCH64;
use super::elf::NOTE_HEADER_BYTES;
use super::elf::NoteHead;
use super::elf::Read;
use super::elf::u16_at;
use super::elf::u32_at;
use super::elf::u64_at;

/// Types of notes (linux/elf.h).
const NT_PRSTATUS: u32 = 1;
const NT_PRPSINFO: u32 = 3;
const NT_AUXV: u32 = 6;
const NT_FILE: u32 = 0x4649_4c45;
const NT_ARM_TLS: u32 = 0x401;

/// Longest names of notes that are known here: `CORE`, `LINUX`.
const LONGEST_NAME: usize = 8;
/// Notes that are looked at; a thread has some six.
const MOST_NOTES: u32 = 1 << 20;
/// Threads that are told of.
const MOST_THREADS: usize = 1 << 16;
/// Bytes of the table of mapped files; the kernel writes 4 MiB unless told otherwise (`core_file_note_size_limit`).
const LONGEST_TABLE: usize = 8 << 20;
/// Longest name of a file.
const LONGEST_PATH: usize = 4096;
/// Problems that are told.
const MOST_PROBLEMS: usize = 8;
/// Bytes of the other notes that matter.
const LONGEST_CONTENTS: usize = 4096;

/// In `struct elf_prstatus`: the signal, the thread, the registers.
const SIGNAL: usize = 12;
const THREAD: usize = 32;
const REGISTERS: usize = 112;
/// The place of `fs_base` among x86-64's registers (`struct user_regs_struct`).
const FS_BASE: usize = 21;
/// In `struct elf_prpsinfo`: the process, its name, its arguments.
const PROCESS: usize = 24;
const NAME: Range<usize> = 40..56;
const ARGUMENTS: Range<usize> = 56..136;

/// Entries of the auxiliary vector (linux/auxvec.h): where the kernel put random bytes and the program's name (on the
/// stack), where the vdso is, how large pages are.
const AT_PAGESZ: u64 = 6;
const AT_RANDOM: u64 = 25;
const AT_EXECFN: u64 = 31;
const AT_SYSINFO_EHDR: u64 = 33;

/// A thread in a core file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CoreThread {
    /// Its number.
    pub tid: u32,
    /// Relative to what it has its own variables (`fs_base`, `tpidr_el0`); `None` when the file does not say.
    pub thread_pointer: Option<u64>,
}

/// The program of a core file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CoreProgram {
    /// Its process's number.
    pub pid: u32,
    /// Its name, of which the kernel keeps 15 bytes.
    pub name: String,
    /// Its arguments, the program's name first, with spaces between; of which the kernel keeps 79 bytes.
    pub arguments: String,
}

/// A stretch of memory that shows a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct MappedFile {
    pub(super) start: u64,
    pub(super) end: u64,
    /// Where in the file it begins, in bytes.
    pub(super) offset: u64,
    /// Where its name is in the table.
    name: Range<usize>,
}

/// What the notes tell.
#[derive(Clone, Debug, Default)]
pub(super) struct Notes {
    pub(super) threads: Vec<CoreThread>,
    pub(super) program: Option<CoreProgram>,
    /// The signal that ended the program; `None` where none did.
    pub(super) signal: Option<u16>,
    pub(super) page_size: Option<u64>,
    /// An address on the first thread's stack.
    pub(super) on_stack: Option<u64>,
    pub(super) vdso: Option<u64>,
    /// By address.
    pub(super) files: Vec<MappedFile>,
    names: Vec<u8>,
    pub(super) problems: Vec<String>,
    seen: u32,
}

impl Notes {
    fn complain(&mut self, problem: String) {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(problem);
        }
    }

    /// Takes in the notes from `start` to `end` of the file.
    pub(super) fn take(&mut self, machine: u16, start: u64, end: u64, read: Read<'_>) {
        let mut at = start;
        while at < end {
            self.seen += 1;
            if self.seen > MOST_NOTES {
                self.complain(format!(
                    "of its notes only the first {MOST_NOTES} were read"
                ));
                return;
            }
            let Some(next) = self.take_one(machine, at, end, read) else {
                self.complain(
                    "its notes end in the middle: threads or names may be missing".into(),
                );
                return;
            };
            at = next;
        }
    }

    /// Takes in a note, and returns where the next one is. `None` where the notes end in the middle of this one.
    fn take_one(&mut self, machine: u16, at: u64, end: u64, read: Read<'_>) -> Option<u64> {
        let mut bytes = [0; NOTE_HEADER_BYTES + LONGEST_NAME];
        let length = read(at, &mut bytes);
        let head = NoteHead::read(&bytes[..length])?;
        let (name, contents, next) = head.places()?;
        let next = at.checked_add(next as u64)?;
        let contents = at.checked_add(contents as u64)?;
        // The last note's padding may be left out.
        if contents.checked_add(head.contents as u64)? > end {
            return None;
        }
        let name = bytes
            .get(name..name.checked_add(head.name)?)
            .unwrap_or_default();
        let limit = match (name, head.kind) {
            // One for all threads.
            (b"CORE\0", NT_FILE) if self.names.is_empty() => LONGEST_TABLE,
            (b"CORE\0", NT_PRSTATUS | NT_PRPSINFO | NT_AUXV) | (b"LINUX\0", NT_ARM_TLS) => {
                LONGEST_CONTENTS
            }
            _ => return Some(next),
        };
        if head.contents > limit {
            self.complain(format!("a note of {} bytes was passed over", head.contents));
            return Some(next);
        }
        let mut bytes = vec![0; head.contents];
        if read(contents, &mut bytes) < bytes.len() {
            return None;
        }
        self.understand(machine, head.kind, bytes);
        Some(next)
    }

    fn understand(&mut self, machine: u16, kind: u32, bytes: Vec<u8>) {
        let understood = match kind {
            NT_PRSTATUS => self.thread(machine, &bytes),
            NT_ARM_TLS => self.thread_pointer(machine, &bytes),
            NT_PRPSINFO => self.program(&bytes),
            NT_AUXV => self.auxiliary(&bytes),
            _ => self.table(bytes),
        };
        if understood.is_none() {
            self.complain(format!("a note of type {kind:#x} makes no sense"));
        }
    }

    fn thread(&mut self, machine: u16, bytes: &[u8]) -> Option<()> {
        let thread = CoreThread {
            tid: u32_at(bytes, THREAD)?,
            thread_pointer: if machine == EM_AARCH64 {
                // In a note of its own, which follows.
                None
            } else {
                Some(u64_at(bytes, REGISTERS + 8 * FS_BASE)?)
            },
        };
        if self.threads.is_empty() {
            // The first is the one that the signal came to.
            self.signal = u16_at(bytes, SIGNAL).filter(|signal| *signal != 0);
        }
        if self.threads.len() < MOST_THREADS {
            self.threads.push(thread);
        }
        Some(())
    }

    fn thread_pointer(&mut self, machine: u16, bytes: &[u8]) -> Option<()> {
        if machine == EM_AARCH64
            && let Some(thread) = self.threads.last_mut()
        {
            thread.thread_pointer = Some(u64_at(bytes, 0)?);
        }
        Some(())
    }

    fn program(&mut self, bytes: &[u8]) -> Option<()> {
        let text = |range: Range<usize>| {
            let bytes = bytes.get(range)?;
            let end = bytes
                .iter()
                .position(|&byte| byte == 0)
                .unwrap_or(bytes.len());
            Some(String::from_utf8_lossy(&bytes[..end]).trim_end().to_owned())
        };
        self.program = Some(CoreProgram {
            pid: u32_at(bytes, PROCESS)?,
            name: text(NAME)?,
            arguments: text(ARGUMENTS)?,
        });
        Some(())
    }

    fn auxiliary(&mut self, bytes: &[u8]) -> Option<()> {
        let (words, _) = bytes.as_chunks::<8>();
        let (pairs, _) = words.as_chunks::<2>();
        for [kind, value] in pairs {
            let value = u64::from_le_bytes(*value);
            match u64::from_le_bytes(*kind) {
                AT_PAGESZ => {
                    self.page_size = Some(value)
                        .filter(|size| size.is_power_of_two() && (4096..=65536).contains(size));
                }
                AT_RANDOM | AT_EXECFN => self.on_stack = Some(value),
                AT_SYSINFO_EHDR => self.vdso = Some(value),
                _ => {}
            }
        }
        Some(())
    }

    /// The table of mapped files: a count, the unit of offsets, start, end and offset of each, then their names.
    fn table(&mut self, bytes: Vec<u8>) -> Option<()> {
        let count = usize::try_from(u64_at(&bytes, 0)?).ok()?;
        let unit = u64_at(&bytes, 8)?;
        let rows = bytes.get(16..)?.get(..count.checked_mul(24)?)?;
        let mut name = 16 + rows.len();
        let mut files = Vec::with_capacity(count);
        for row in rows.chunks_exact(24) {
            let length = bytes.get(name..)?.iter().position(|&byte| byte == 0)?;
            files.push(MappedFile {
                start: u64_at(row, 0)?,
                end: u64_at(row, 8)?,
                offset: u64_at(row, 16)?.checked_mul(unit)?,
                name: name..name + length,
            });
            name += length + 1;
        }
        files.sort_by_key(|file| file.start);
        self.files = files;
        self.names = bytes;
        Some(())
    }

    /// The file that is shown at an address.
    pub(super) fn file_at(&self, address: u64) -> Option<&MappedFile> {
        let after = self.files.partition_point(|file| file.start <= address);
        self.files
            .get(after.checked_sub(1)?)
            .filter(|file| address < file.end)
    }

    /// Its name; `None` for one that is too long for any file.
    pub(super) fn name_of(&self, file: &MappedFile) -> Option<String> {
        let name = self
            .names
            .get(file.name.clone())
            .filter(|name| name.len() <= LONGEST_PATH)?;
        Some(String::from_utf8_lossy(name).into_owned())
    }

    /// Forgets the table of mapped files.
    pub(super) fn forget_files(&mut self) {
        self.files = Vec::new();
        self.names = Vec::new();
    }
}
