//! Names of generated code: the file in which just-in-time compilers write down what they made, for profilers
//! (Linux, tools/perf/Documentation/jit-interface.txt). node writes it with `--perf-basic-prof`, python3 with `-X perf`.
//!
//! Anybody can leave such a file in `/tmp`, so it is read only if it belongs to the process's user or to root, and
//! whatever it says costs names at most.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::ops::Range;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::rc::Rc;

use super::proc;
use crate::event::NamedCode;
use crate::units::Address;

/// Most that is read of a file, in bytes: some three million functions.
const MOST_BYTES: u64 = 256 << 20;
/// Longest line that is read whole, in bytes.
const LONGEST_LINE: u64 = 4096;
/// Longest name, in bytes.
const LONGEST_NAME: usize = 1024;

/// Where a process writes the names: by its number in its own PID namespace.
pub(super) fn path(pid: u32) -> String {
    format!("/tmp/perf-{}.map", proc::innermost_pid(pid).unwrap_or(pid))
}

/// The pieces that some of these addresses lie in, by address; empty without a file. `tid` is a living thread
/// of the process whose code it is; `path` is as that process sees it.
pub(super) fn names(tid: u32, path: &str, addresses: &[u64]) -> Vec<NamedCode> {
    open(tid, path).map_or_else(Vec::new, |file| {
        pieces(BufReader::with_capacity(1 << 16, file), addresses)
    })
}

fn open(tid: u32, path: &str) -> Option<impl Read> {
    let path = format!("/proc/{tid}/root{path}");
    if !std::fs::symlink_metadata(&path).ok()?.is_file() {
        return None;
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&path)
        .ok()?;
    let metadata = file.metadata().ok()?;
    let owner = metadata.uid();
    let is_trusted = metadata.is_file() && (owner == 0 || Some(owner) == proc::user_of(tid));
    is_trusted.then(|| file.take(MOST_BYTES))
}

/// A line of the file.
#[derive(Clone, Debug)]
struct Piece {
    start: u64,
    bytes: u64,
    name: Rc<str>,
}

/// Reads lines until there are no more, and keeps the last one about each address.
fn pieces(mut lines: impl BufRead, addresses: &[u64]) -> Vec<NamedCode> {
    let mut sorted = addresses.to_vec();
    sorted.sort_unstable();
    sorted.dedup();
    let mut named = BTreeMap::new();
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines
            .by_ref()
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
        {
            Ok(0) | Err(_) => break,
            Ok(_) => {}
        }
        let Some((start, bytes, name)) = parse(&line) else {
            continue;
        };
        let first = sorted.partition_point(|address| *address < start);
        let after = sorted.partition_point(|address| *address < start.saturating_add(bytes));
        if first < after {
            let name = name_of(name).into();
            let piece = Piece { start, bytes, name };
            replace(&mut named, first..after, piece);
        }
    }
    disjoint(&named, &sorted)
}

/// What is known of stretches of the sorted addresses: where each ends, and the line about it, by where it begins. They do
/// not overlap.
type Named = BTreeMap<usize, (usize, Piece)>;

/// Lets a stretch have a new line. A line adds two stretches at most, and what it covers is gone: so a file takes time by
/// its length, however many addresses each line is about.
fn replace(named: &mut Named, stretch: Range<usize>, piece: Piece) {
    if let Some((first, (after, before))) = named
        .range(..stretch.start)
        .next_back()
        .map(|(first, known)| (*first, known.clone()))
        && after > stretch.start
    {
        named.insert(first, (stretch.start, before.clone()));
        named.insert(stretch.start, (after, before));
    }
    while let Some((first, (after, covered))) = named
        .range(stretch.clone())
        .next()
        .map(|(first, known)| (*first, known.clone()))
    {
        named.remove(&first);
        if after > stretch.end {
            named.insert(stretch.end, (after, covered));
        }
    }
    named.insert(stretch.start, (stretch.end, piece));
}

/// The pieces by address. Each begins behind the last address of the one before, so that the last one to begin at or before
/// an address is the one that it is in.
fn disjoint(named: &Named, sorted: &[u64]) -> Vec<NamedCode> {
    let mut lowest = 0;
    let mut found = Vec::with_capacity(named.len());
    for (after, piece) in named.values() {
        let start = piece.start.max(lowest);
        found.push(NamedCode {
            start: Address(start),
            bytes: piece.start.saturating_add(piece.bytes) - start,
            name: piece.name.to_string(),
        });
        let last = after.checked_sub(1).and_then(|last| sorted.get(last));
        lowest = last.map_or(lowest, |last| last.saturating_add(1));
    }
    found
}

/// `START SIZE name`, the numbers in hexadecimal digits, with or without `0x`.
fn parse(line: &[u8]) -> Option<(u64, u64, &[u8])> {
    let line = line.strip_suffix(b"\n").unwrap_or(line);
    let mut parts = line.splitn(3, |byte| *byte == b' ');
    let mut number = || {
        let digits = std::str::from_utf8(parts.next()?).ok()?;
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        u64::from_str_radix(digits, 16).ok()
    };
    let (start, bytes) = (number()?, number()?);
    let name = parts.next()?.trim_ascii();
    (!name.is_empty() && bytes > 0).then_some((start, bytes, name))
}

fn name_of(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.get(..LONGEST_NAME).unwrap_or(bytes)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(map: &str, addresses: &[u64]) -> Vec<(u64, String)> {
        pieces(map.as_bytes(), addresses)
            .into_iter()
            .map(|piece| (piece.start.0, piece.name))
            .collect()
    }

    #[test]
    fn only_what_has_frames_is_named() {
        let map = "1000 100 first\n0x1100 0x80 LazyCompile:~ second /a b.js:1:2\n2000 10 third\n";
        assert_eq!(
            named(map, &[0x1180, 0x1100, 0x117f, 0x2010]),
            [(0x1100, "LazyCompile:~ second /a b.js:1:2".to_owned())]
        );
    }

    #[test]
    fn code_that_was_replaced_has_its_last_name() {
        let map = "1000 100 old\n1000 40 new\n";
        assert_eq!(
            named(map, &[0x1010, 0x1050]),
            [(0x1000, "new".to_owned()), (0x1011, "old".to_owned())]
        );
        assert_eq!(named(map, &[0x1010]), [(0x1000, "new".to_owned())]);
        assert_eq!(named(map, &[0x1050]), [(0x1000, "old".to_owned())]);
    }

    #[test]
    fn each_address_has_the_last_line_about_it() {
        // Numbers that are the same in each run (Marsaglia, "Xorshift RNGs").
        let mut state = 0x2545_f491_4f6c_dd1d_u64;
        let mut below = |end: u64| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state % end
        };
        for _ in 0..300 {
            let lines: Vec<(u64, u64)> = (0..below(40))
                .map(|_| {
                    let longest = 1 << below(8);
                    (below(200), 1 + below(longest))
                })
                .collect();
            let map: String = lines
                .iter()
                .enumerate()
                .map(|(index, (start, bytes))| format!("{start:x} {bytes:x} {index}\n"))
                .collect();
            let addresses: Vec<u64> = (0..below(60)).map(|_| below(240)).collect();
            let found = pieces(map.as_bytes(), &addresses);
            for address in addresses {
                let expected = lines
                    .iter()
                    .rposition(|(start, bytes)| (*start..start + bytes).contains(&address));
                // As the model looks it up.
                let piece = found
                    .iter()
                    .rfind(|piece| piece.start.0 <= address)
                    .filter(|piece| address - piece.start.0 < piece.bytes);
                assert_eq!(
                    piece.map(|piece| piece.name.clone()),
                    expected.map(|index| index.to_string()),
                    "{address:#x} in {map}"
                );
            }
        }
    }

    #[test]
    fn a_file_whose_lines_are_about_everything_takes_time_by_its_length() {
        // Each line for each address would be twenty billion steps.
        let map = "0 ffffffffffffffff x\n".repeat(300_000);
        let addresses: Vec<u64> = (0..60_000).map(|number| number * 16).collect();
        let found = pieces(map.as_bytes(), &addresses);
        assert_eq!(found.len(), 1);
    }

    #[test]
    fn lines_that_make_no_sense_are_passed_over() {
        let long = "x".repeat(10_000);
        let map = format!(
            "\n \nzz 10 a\n10\n10 10\n10 10 \n10 0 nothing\nffffffffffffffff ffffffffffffffff end\n1000 10 {long}\n1000 8 \u{fffd}\n2000 8 last"
        );
        let names = named(&map, &[0x1000, 0x1008, 0x2000]);
        assert_eq!(names.len(), 3);
        assert_eq!(names[1].1.len(), LONGEST_NAME);
        assert_eq!(names[2], (0x2000, "last".to_owned()));
    }
}
