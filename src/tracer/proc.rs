//! What `/proc` tells of a tracee, as far as tracing needs it.
//!
//! Everything here may fail at any moment, as the process may die; absent is then the answer.

use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::Path;

use procfs::FromRead;
use procfs::process::Stat;
use procfs::process::Status;

use crate::event::MemoryFigures;
use crate::event::PageFigures;
use crate::event::Snapshot;
use crate::event::SnapshotReason;
use crate::mapping;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::units::Address;

/// Longest command line that is recorded, in bytes; the rest is left out.
const LONGEST_COMMAND: u64 = 4096;
/// Pages whose state is asked for at once.
const PAGES_AT_ONCE: usize = 8192;

/// The threads of a process that exist now, zombies included.
pub(super) fn threads(pid: u32) -> std::io::Result<Vec<u32>> {
    let names = std::fs::read_dir(format!("/proc/{pid}/task"))?;
    Ok(names
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect())
}

/// Whether `tid` is a thread of process `pid`.
pub(super) fn is_thread_of(tid: u32, pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}/task/{tid}")).exists()
}

/// State, parent and more of a thread.
pub(super) fn stat(tid: u32) -> Option<Stat> {
    Stat::from_file(format!("/proc/{tid}/stat")).ok()
}

/// Identity, memory and more of a thread.
pub(super) fn status(tid: u32) -> Option<Status> {
    Status::from_file(format!("/proc/{tid}/status")).ok()
}

/// Whether every thread of a process sleeps, interruptibly.
pub(super) fn all_sleep(pid: u32) -> bool {
    let threads = threads(pid).unwrap_or_default();
    let sleeps = |tid: &u32| stat(*tid).is_some_and(|stat| stat.state == 'S');
    !threads.is_empty() && threads.iter().all(sleeps)
}

/// The number of a process in the PID namespace that it lives in itself.
pub(super) fn innermost_pid(pid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("NSpid:"))?;
    line.split_ascii_whitespace().next_back()?.parse().ok()
}

/// The user in whose name a thread acts (its file system user ID, credentials(7)).
pub(super) fn user_of(tid: u32) -> Option<u32> {
    let text = std::fs::read_to_string(format!("/proc/{tid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Uid:"))?;
    line.split_ascii_whitespace().nth(3)?.parse().ok()
}

/// The program that a thread runs.
pub(super) fn program(tid: u32) -> String {
    match std::fs::read_link(format!("/proc/{tid}/exe")) {
        Ok(path) => path.to_string_lossy().into_owned(),
        // A kernel thread, or one that is ending: its name at least.
        Err(_) => stat(tid).map_or_else(|| "unknown".into(), |stat| format!("[{}]", stat.comm)),
    }
}

/// The arguments of the program that a thread runs, the program's name first.
pub(super) fn arguments(tid: u32) -> Vec<String> {
    let mut bytes = Vec::new();
    let read = std::fs::File::open(format!("/proc/{tid}/cmdline"))
        .and_then(|file| file.take(LONGEST_COMMAND + 1).read_to_end(&mut bytes));
    if read.is_err() || bytes.is_empty() {
        return Vec::new();
    }
    let cut = bytes.len() as u64 > LONGEST_COMMAND;
    let mut text = bytes.strip_suffix(&[0]).unwrap_or(&bytes);
    // A program that has written its title over its arguments leaves a tail of zeros.
    if text.ends_with(&[0, 0]) {
        let end = text
            .iter()
            .rposition(|&byte| byte != 0)
            .map_or(0, |last| last + 1);
        text = &text[..end];
    }
    let mut arguments: Vec<String> = text
        .split(|&byte| byte == 0)
        .map(|argument| String::from_utf8_lossy(argument).into_owned())
        .collect();
    if cut {
        arguments.push("…".into());
    }
    arguments
}

/// The environment with which the program of thread `tid` was started: entries that end with a zero byte.
pub(super) fn environment(tid: u32) -> Option<Vec<u8>> {
    std::fs::read(format!("/proc/{tid}/environ")).ok()
}

/// Whether the program of thread `tid` has more rights than whoever started it, so that the dynamic linker takes no
/// orders from the environment (getauxval(3), `AT_SECURE`).
pub(super) fn is_secure(tid: u32) -> Option<bool> {
    secure_entry(&std::fs::read(format!("/proc/{tid}/auxv")).ok()?)
}

fn secure_entry(auxiliary: &[u8]) -> Option<bool> {
    let (words, _) = auxiliary.as_chunks::<8>();
    let (pairs, _) = words.as_chunks::<2>();
    pairs
        .iter()
        .map(|pair| pair.map(u64::from_ne_bytes))
        .find(|[kind, _]| *kind == libc::AT_SECURE)
        .map(|[_, value]| value != 0)
}

/// The processes, as far as we may look into them, that have this file in memory.
pub(super) fn users_of(file: &Path) -> Vec<u32> {
    let name = file.to_string_lossy();
    std::fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            mapping::read(*pid).is_ok_and(|mappings| {
                mappings
                    .iter()
                    .any(|mapping| mapping.name.as_deref() == Some(name.as_ref()))
            })
        })
        .collect()
}

/// The process behind a descriptor from pidfd_open(2) that thread `tid` holds.
pub(super) fn process_of_pidfd(tid: u32, pidfd: i32) -> Option<u32> {
    std::fs::read_to_string(format!("/proc/{tid}/fdinfo/{pidfd}"))
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix("Pid:")?.trim().parse().ok())
}

/// Reads the state of the address space of thread `tid`, but for the pages of its heap; `None` if it is gone.
pub(super) fn snapshot(tid: u32, reason: SnapshotReason, calls_under_way: u32) -> Option<Snapshot> {
    let mappings = mapping::read(tid).ok()?;
    // The address space of a thread that has ended is empty.
    if mappings.is_empty() {
        return None;
    }
    // Only what is new is read: programs stand still meanwhile, and short ones would pay for it most.
    let (heap_start, memory) = match reason {
        // Nothing of the program has run: almost nothing of it is in memory.
        SnapshotReason::Start => (heap_start(tid), None),
        SnapshotReason::Attach => (heap_start(tid), memory(tid)),
        // A check needs the mappings alone.
        SnapshotReason::Verify | SnapshotReason::Resync => (None, None),
        SnapshotReason::Request | SnapshotReason::Interval | SnapshotReason::End => {
            (None, memory(tid))
        }
    };
    Some(Snapshot {
        reason,
        heap_start,
        memory,
        heap_pages: None,
        calls_under_way,
        mappings,
    })
}

/// Where the heap of thread `tid` starts.
pub(super) fn heap_start(tid: u32) -> Option<Address> {
    // Zero for kernel threads, and where the kernel hides it.
    stat(tid)?
        .start_brk
        .filter(|start| *start != 0)
        .map(Address)
}

/// Reads six lines of some sixty, for each process that ends: so not through [`Status`], which parses them all.
fn memory(tid: u32) -> Option<MemoryFigures> {
    let text = std::fs::read(format!("/proc/{tid}/status")).ok()?;
    memory_lines(&text)
}

fn memory_lines(status: &[u8]) -> Option<MemoryFigures> {
    // All are absent for a thread that has no memory any more.
    let bytes = |name: &[u8]| {
        let line = status
            .split(|&byte| byte == b'\n')
            .find_map(|line| line.strip_prefix(name))?;
        let kib: u64 = std::str::from_utf8(line)
            .ok()?
            .trim()
            .strip_suffix(" kB")?
            .parse()
            .ok()?;
        kib.checked_mul(1024)
    };
    Some(MemoryFigures {
        resident_bytes: bytes(b"VmRSS:")?,
        resident_peak_bytes: bytes(b"VmHWM:")?,
        resident_anonymous_bytes: bytes(b"RssAnon:")?,
        swapped_bytes: bytes(b"VmSwap:")?,
        virtual_bytes: bytes(b"VmSize:")?,
        virtual_peak_bytes: bytes(b"VmPeak:")?,
    })
}

/// Bits of an entry of `/proc/<pid>/pagemap` (Documentation/admin-guide/mm/pagemap.rst).
const PAGE_PRESENT: u64 = 1 << 63;
const PAGE_SWAPPED: u64 = 1 << 62;

/// Counts the pages of the heap; a gigabyte takes some fifteen milliseconds. `None` without a heap.
pub(super) fn heap_pages(tid: u32, mappings: &[Mapping]) -> Option<PageFigures> {
    let mut heaps = mappings
        .iter()
        .filter(|mapping| mapping.kind() == MappingKind::Heap)
        .peekable();
    heaps.peek()?;
    let page_size = page_size();
    let pagemap = std::fs::File::open(format!("/proc/{tid}/pagemap")).ok()?;
    let mut figures = PageFigures::default();
    let mut buffer = vec![0; 8 * PAGES_AT_ONCE];
    for heap in heaps {
        let mut page = heap.start.0 / page_size;
        let end = heap.end.0 / page_size;
        while page < end {
            let wanted =
                usize::try_from(end - page).map_or(PAGES_AT_ONCE, |pages| pages.min(PAGES_AT_ONCE));
            let read = pagemap.read_at(&mut buffer[..8 * wanted], page * 8).ok()?;
            let (entries, _) = buffer[..read].as_chunks::<8>();
            if entries.is_empty() {
                return None;
            }
            for entry in entries.iter().map(|entry| u64::from_ne_bytes(*entry)) {
                figures.resident_bytes += if entry & PAGE_PRESENT != 0 {
                    page_size
                } else {
                    0
                };
                figures.swapped_bytes += if entry & PAGE_SWAPPED != 0 {
                    page_size
                } else {
                    0
                };
            }
            page += entries.len() as u64;
        }
    }
    Some(figures)
}

/// Bytes in a page of this machine.
pub(super) fn page_size() -> u64 {
    procfs::page_size()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_figures_are_those_of_the_status_file() {
        let figures = memory(std::process::id()).unwrap();
        let status = status(std::process::id()).unwrap();
        assert_eq!(Some(figures.virtual_peak_bytes / 1024), status.vmpeak);
        assert!(
            figures.resident_bytes > 0
                && figures.resident_peak_bytes >= figures.resident_anonymous_bytes
        );
    }

    #[test]
    fn a_status_without_memory_has_no_figures() {
        assert_eq!(
            memory_lines(b"Name:\tkthreadd\nState:\tS (sleeping)\n"),
            None
        );
        assert_eq!(memory_lines(b"VmRSS:\t lots kB\n"), None);
    }

    #[test]
    fn this_program_gained_no_rights() {
        assert_eq!(is_secure(std::process::id()), Some(false));
        assert_eq!(secure_entry(&[]), None);
        let secure: Vec<u8> = [6_u64, 4096, libc::AT_SECURE, 1]
            .into_iter()
            .flat_map(u64::to_ne_bytes)
            .collect();
        assert_eq!(secure_entry(&secure), Some(true));
    }

    #[test]
    fn our_own_heap_has_pages_in_memory() {
        let pid = std::process::id();
        let mappings = mapping::read(pid).unwrap();
        if let Some(pages) = heap_pages(pid, &mappings) {
            assert!(pages.resident_bytes > 0 && pages.resident_bytes.is_multiple_of(page_size()));
        }
    }
}
