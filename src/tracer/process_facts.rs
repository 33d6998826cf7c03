//! What a process is, as `/proc` tells without stopping it.

use super::proc;
use crate::event::ProcessMemory;

/// A process: what it runs, and where it has its memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcessFacts {
    /// Its number.
    pub pid: u32,
    /// The program that it runs.
    pub program: String,
    /// That program's arguments, its name first.
    pub arguments: Vec<String>,
    /// Its threads now.
    pub threads: u64,
    /// Where its memory is; `None` if it is ending and has none.
    pub memory: Option<ProcessMemory>,
}

/// What `/proc` tells of process `pid`, or of the process with that thread; `None` if there is none.
#[must_use]
pub fn process_facts(pid: u32) -> Option<ProcessFacts> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let pid = number(&text, "Tgid:").and_then(|pid| u32::try_from(pid).ok())?;
    Some(ProcessFacts {
        pid,
        program: proc::program(pid),
        arguments: proc::arguments(pid),
        threads: number(&text, "Threads:")?,
        memory: memory(&text),
    })
}

/// Where a process, or that of a thread, has its memory now; `None` if it has none any more.
pub(super) fn process_memory(pid: u32) -> Option<ProcessMemory> {
    memory(&std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?)
}

/// The first number of a line of a status file.
fn number(status: &str, name: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

fn memory(status: &str) -> Option<ProcessMemory> {
    let bytes = |name| number(status, name)?.checked_mul(1024);
    Some(ProcessMemory {
        resident_bytes: bytes("VmRSS:")?,
        resident_anonymous_bytes: bytes("RssAnon:")?,
        resident_file_bytes: bytes("RssFile:")?,
        resident_shared_bytes: bytes("RssShmem:")?,
        swapped_bytes: bytes("VmSwap:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_process_is_what_it_is() {
        let facts = process_facts(std::process::id()).unwrap();
        assert_eq!(facts.pid, std::process::id());
        let memory = facts.memory.unwrap();
        assert_eq!(
            memory.resident_bytes,
            memory.resident_anonymous_bytes
                + memory.resident_file_bytes
                + memory.resident_shared_bytes
        );
        assert!(facts.threads >= 1 && !facts.arguments.is_empty());
    }

    #[test]
    fn a_process_without_memory_has_none_to_tell_of() {
        assert_eq!(memory("Name:\tkthreadd\nThreads:\t1\n"), None);
        assert_eq!(memory("VmRSS:\t lots kB\n"), None);
        assert_eq!(process_facts(u32::MAX), None);
    }
}
