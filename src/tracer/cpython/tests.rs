//! Interpreters made of bytes: sound ones, and such as are meant to lead astray.

use std::collections::BTreeMap;

use super::functions::Functions;
use super::layout::Problem;
use super::lines::LineTable;
use super::memory::Allowance;
use super::memory::Memory;
use super::merge::merged;
use super::*;
use crate::event::FunctionId;
use crate::units::Address;

/// Memory in pieces.
#[derive(Clone, Default)]
struct Pieces {
    by_address: BTreeMap<u64, Vec<u8>>,
    reads: std::cell::Cell<usize>,
}

impl Pieces {
    fn put(&mut self, address: u64, words: &[(usize, u64)], bytes: usize) {
        let mut piece = vec![0; bytes];
        for (offset, word) in words {
            piece[*offset..offset + 8].copy_from_slice(&word.to_ne_bytes());
        }
        self.by_address.insert(address, piece);
    }

    fn set(&mut self, address: u64, word: u64) {
        let (start, piece) = self.by_address.range_mut(..=address).next_back().unwrap();
        let at = usize::try_from(address - start).unwrap();
        piece[at..at + 8].copy_from_slice(&word.to_ne_bytes());
    }
}

impl Memory for Pieces {
    fn read(&self, address: u64, buffer: &mut [u8]) -> usize {
        self.reads.set(self.reads.get() + 1);
        let Some((start, piece)) = self.by_address.range(..=address).next_back() else {
            return 0;
        };
        let from = usize::try_from(address - start).unwrap();
        let there = piece.get(from..).unwrap_or_default();
        let length = there.len().min(buffer.len());
        buffer[..length].copy_from_slice(&there[..length]);
        length
    }

    fn read_pieces(&self, pieces: &[(u64, usize)], buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for (address, length) in pieces {
            let read = self.read(*address, &mut buffer[done..done + length]);
            done += read;
            if read < *length {
                break;
            }
        }
        done
    }
}

const RUNTIME: u64 = 0x1000;
const INTERPRETER: u64 = 0x2000;
const THREAD: u64 = 0x3000;
const C_FRAME: u64 = 0x4000;
const INNER: u64 = 0x5000;
const OUTER: u64 = 0x5100;
const CODE: u64 = 0x6000;
const NAME: u64 = 0x7000;
const FILE_NAME: u64 = 0x8000;
const TABLE: u64 = 0x9000;
const TYPE_CODE: u64 = 0xa000;
const TYPE_STR: u64 = 0xb000;
const TYPE_BYTES: u64 = 0xc000;
const TYPE_NAMES: u64 = 0xd000;

const ME: Who = Who {
    tid: 77,
    thread_pointer: Some(0x7777),
};

/// State of a str: compact, ASCII, a byte for a character.
const ASCII: u64 = 1 << 6 | 1 << 5 | 1 << 2;

/// A thread of CPython 3.11 that runs `grow`, called by `grow`, at the third line of it.
fn interpreter() -> Pieces {
    let mut memory = Pieces::default();
    memory.put(RUNTIME, &[(40, INTERPRETER)], 64);
    memory.put(INTERPRETER, &[(0, 0), (16, THREAD)], 64);
    memory.put(THREAD, &[(8, 0), (56, C_FRAME), (152, 0x7777)], 256);
    memory.put(C_FRAME, &[(8, INNER)], 16);
    memory.put(INNER, &[(32, CODE), (48, OUTER), (56, CODE + 184)], 80);
    // The flag of an entry, at 68.
    memory.put(OUTER, &[(32, CODE), (48, 0), (56, CODE + 184), (68, 1)], 80);
    memory.put(
        CODE,
        &[
            (8, TYPE_CODE),
            (72, 10),
            (112, FILE_NAME),
            (128, NAME),
            (136, TABLE),
        ],
        256,
    );
    text(&mut memory, NAME, "grow");
    text(&mut memory, FILE_NAME, "a.py");
    memory.put(TABLE, &[(8, TYPE_BYTES), (16, 2), (32, 0x04e8)], 40);
    memory.put(TYPE_CODE, &[(24, TYPE_NAMES)], 32);
    memory.put(TYPE_STR, &[(24, TYPE_NAMES + 8)], 32);
    memory.put(TYPE_BYTES, &[(24, TYPE_NAMES + 16)], 32);
    memory
        .by_address
        .insert(TYPE_NAMES, b"code\0...str\0....bytes\0..".to_vec());
    memory
}

fn text(memory: &mut Pieces, address: u64, text: &str) {
    let words = [(8, TYPE_STR), (16, text.len() as u64), (32, ASCII)];
    // As long as the head of a str that is not ASCII, which is read of any.
    memory.put(address, &words, 128);
    memory.by_address.get_mut(&address).unwrap()[48..48 + text.len()]
        .copy_from_slice(text.as_bytes());
}

fn symbols() -> Symbols {
    Symbols {
        runtime: Some(RUNTIME),
        version: None,
        evaluates: std::iter::once(0x100..0x200).collect(),
        has_section: false,
    }
}

fn space(symbols: &Symbols, path: &str) -> Space {
    let mut space = Space::default();
    space.found(ModuleId(1), path, 0, symbols, Some);
    space
}

const EVALUATES: Frame = Frame::Code(ModuleId(1), Address(0x110));
const OTHER: Frame = Frame::Code(ModuleId(1), Address(0x300));

/// What a stack of `OTHER`, one call of the evaluating function and `OTHER` becomes: `name:line` of Python's functions.
fn read_as(memory: &Pieces, space: &mut Space, python: &mut Python) -> Vec<String> {
    python.chain = None;
    python.read_from(memory, ME, 128, space);
    let mut frames = vec![OTHER, EVALUATES, OTHER];
    python.merge(&mut frames, &mut None, 128);
    assert_eq!(frames.first(), Some(&OTHER));
    assert_eq!(frames.last(), Some(&OTHER));
    frames
        .iter()
        .filter_map(|frame| match frame {
            Frame::Interpreted { line, .. } => Some(format!("{line:?}")),
            Frame::Code(..) => None,
        })
        .collect()
}

fn read(memory: &Pieces) -> (Vec<String>, Vec<Problem>) {
    let mut python = Python::default();
    let frames = read_as(
        memory,
        &mut space(&symbols(), "/bin/python3.11"),
        &mut python,
    );
    (frames, python.problems)
}

const BOTH: [&str; 2] = ["Some(12)", "Some(12)"];

#[test]
fn functions_of_a_sound_interpreter_are_read_with_their_lines() {
    let memory = interpreter();
    let mut python = Python::default();
    let mut space = space(&symbols(), "/bin/python3.11");
    assert_eq!(read_as(&memory, &mut space, &mut python), BOTH);
    let news = python.news();
    assert!(
        matches!(&news[..], [EventKind::FunctionSeen(function)] if function.name == "grow"
            && function.source == "a.py"
            && function.first_line == Some(10)),
        "{news:?}"
    );
    // Nothing is new to tell the second time.
    assert_eq!(read_as(&memory, &mut space, &mut python), BOTH);
    assert!(python.news().is_empty());
}

#[test]
fn frames_that_go_round_cost_pythons_functions_only_and_that_is_told() {
    let mut memory = interpreter();
    memory.set(OUTER + 48, INNER);
    assert_eq!(read(&memory), (vec![], vec![Problem::Frames]));
    memory.set(INNER + 48, INNER);
    assert_eq!(read(&memory), (vec![], vec![Problem::Frames]));
}

#[test]
fn frames_up_to_one_that_cannot_be_read_are_told_and_keep_their_places() {
    let mut memory = interpreter();
    memory.set(INNER + 48, 0xdead_0000_0000);
    assert_eq!(read(&memory), (vec![BOTH[0].into()], vec![Problem::Frames]));
    memory.set(C_FRAME + 8, u64::MAX - 3);
    assert_eq!(read(&memory), (vec![], vec![Problem::Frames]));
}

#[test]
fn what_is_no_code_object_or_no_name_is_no_function() {
    for (at, word) in [
        (CODE + 8, TYPE_STR),
        (CODE + 128, TABLE),
        (CODE + 112, 1),
        (CODE + 136, NAME),
        (NAME + 32, u64::MAX),
        (TYPE_CODE + 24, 0),
    ] {
        let mut memory = interpreter();
        memory.set(at, word);
        assert_eq!(read(&memory), (vec![], vec![Problem::Frames]), "{at:#x}");
    }
}

#[test]
fn lengths_beyond_what_is_there_are_no_function_and_reserve_no_memory() {
    for length in [1 << 20 | 1, 1 << 40, u64::MAX, u64::MAX / 2] {
        for at in [NAME + 16, FILE_NAME + 16, TABLE + 16] {
            let mut memory = interpreter();
            memory.set(at, length);
            assert_eq!(read(&memory).0, Vec::<String>::new(), "{at:#x} {length:#x}");
        }
    }
}

#[test]
fn lists_of_interpreters_and_threads_that_go_round_end() {
    let mut memory = interpreter();
    memory.set(THREAD + 152, 1);
    memory.set(THREAD + 8, THREAD);
    memory.set(INTERPRETER, INTERPRETER);
    assert_eq!(read(&memory), (vec![], vec![]));
    let most = MOST_INTERPRETERS * (2 * MOST_THREADS + 4);
    assert!(memory.reads.get() <= most, "{}", memory.reads.get());
}

#[test]
fn a_code_object_that_became_another_is_read_again() {
    let mut memory = interpreter();
    let mut python = Python::default();
    let mut space = space(&symbols(), "/bin/python3.11");
    assert_eq!(read_as(&memory, &mut space, &mut python), BOTH);
    python.news();
    text(&mut memory, NAME, "gone");
    memory.set(CODE + 72, 20);
    assert_eq!(
        read_as(&memory, &mut space, &mut python),
        ["Some(22)", "Some(22)"]
    );
    let news = python.news();
    assert!(
        matches!(&news[..], [EventKind::FunctionSeen(function)] if function.name == "gone"),
        "{news:?}"
    );
}

/// xorshift64.
fn random(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

#[test]
fn damaged_interpreters_cost_bounded_reads_and_nothing_panics() {
    let sound = interpreter();
    let places: Vec<u64> = sound
        .by_address
        .iter()
        .flat_map(|(start, piece)| {
            (*start..)
                .step_by(4)
                .take(piece.len().saturating_sub(4) / 4)
        })
        .collect();
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    let mut damaged = 0;
    let mut python = Python::default();
    let versions = [
        "python3.8",
        "python3.10",
        "python3.11",
        "python3.12",
        "python3.13",
    ];
    for round in 0..20_000 {
        let mut memory = sound.clone();
        for _ in 0..=random(&mut seed) % 4 {
            let place = |seed: &mut u64| {
                let at = random(seed) % places.len() as u64;
                places[usize::try_from(at).unwrap()]
            };
            let at = place(&mut seed);
            let word = match random(&mut seed) % 4 {
                0 => place(&mut seed),
                1 => random(&mut seed),
                2 => u64::MAX - random(&mut seed) % 256,
                _ => random(&mut seed) % 4096,
            };
            memory.set(at, word);
        }
        // As the words are those of 3.11, most rounds are its.
        let version = if round % 3 == 0 {
            versions[round / 3 % versions.len()]
        } else {
            "python3.11"
        };
        let mut space = space(&symbols(), version);
        let first = read_as(&memory, &mut space, &mut python);
        damaged += usize::from(first != BOTH);
        // With what is remembered of the first time.
        memory.set(place_of_code(&mut seed), random(&mut seed));
        read_as(&memory, &mut space, &mut python);
        python.news();
        let most = 2 * MOST_INTERPRETERS * (2 * MOST_THREADS + 4);
        assert!(memory.reads.get() <= most, "{}", memory.reads.get());
    }
    assert!(damaged > 5_000, "{damaged}");
}

fn place_of_code(seed: &mut u64) -> u64 {
    CODE + random(seed) % 31 * 8
}

#[test]
fn a_table_of_offsets_that_makes_no_sense_is_told() {
    let mut memory = interpreter();
    memory.put(RUNTIME, &[(0, u64::MAX)], 73 * 8);
    let mut python = Python::default();
    let mut space = space(&symbols(), "libpython3.13.so.1.0");
    assert!(read_as(&memory, &mut space, &mut python).is_empty());
    let version = Version {
        major: 3,
        minor: 13,
    };
    assert_eq!(python.problems, [Problem::Table(version)]);
}

#[test]
fn interpreters_that_cannot_be_read_are_told_once() {
    let nothing = Symbols::default();
    let section = Symbols {
        has_section: true,
        ..Symbols::default()
    };
    let version = |minor| Problem::Unknown(Version { major: 3, minor });
    for (symbols, path, problem) in [
        (nothing, "libpython2.7.so.1.0", Problem::Other),
        (section, "python3.13", Problem::Stripped),
        (
            Symbols {
                evaluates: Vec::new(),
                ..symbols()
            },
            "python3.11",
            Problem::Stripped,
        ),
        (symbols(), "python3.7", version(7)),
        (symbols(), "python3.14", version(14)),
        (symbols(), "program", Problem::NoVersion),
    ] {
        let mut python = Python::default();
        let mut space = space(&symbols, path);
        for _ in 0..2 {
            assert!(read_as(&interpreter(), &mut space, &mut python).is_empty());
        }
        assert_eq!(python.problems, [problem]);
        assert_eq!(python.news().len(), 1);
    }
}

#[test]
fn nothing_is_read_beyond_the_allowance() {
    let allowance = Allowance::default();
    assert!(allowance.take(4096).is_some());
    assert!(allowance.take(usize::MAX).is_none());
    assert!(allowance.take(0).is_none());
    let allowance = Allowance::default();
    let reads = (0..).take_while(|_| allowance.take(1).is_some()).count();
    assert_eq!(reads, 1 << 15);
}

#[test]
fn a_table_of_lines_says_nothing_beyond_its_end_but_in_the_oldest_form() {
    assert_eq!(LineTable::Lnotab.line(&[], 7, 0), Some(7));
    assert_eq!(LineTable::Pairs.line(&[], 7, 0), None);
    assert_eq!(LineTable::Locations.line(&[], 7, 0), None);
    // Two bytes at line 8, four at none, two at line 6.
    let pairs = [2, 1, 4, 0x80, 2, 0xfe];
    let lines = [0, 2, 6].map(|at| LineTable::Pairs.line(&pairs, 7, at));
    assert_eq!(lines, [Some(8), None, Some(6)]);
}

#[test]
fn any_bytes_may_be_a_table_of_lines() {
    let mut seed = 0x2545_f491_4f6c_dd1d;
    for _ in 0..20_000 {
        let length = random(&mut seed) % 64;
        let table: Vec<u8> = (0..length)
            .map(|_| random(&mut seed).to_le_bytes()[0])
            .collect();
        let first = random(&mut seed).cast_signed() >> 32;
        for kind in [LineTable::Lnotab, LineTable::Pairs, LineTable::Locations] {
            for at in [0, random(&mut seed) % 256, u64::MAX] {
                let line = kind.line(&table, first, at);
                assert!(kind == LineTable::Lnotab || at < u64::MAX || line.is_none());
            }
        }
    }
}

fn function(number: u32) -> Frame {
    Frame::Interpreted {
        function: FunctionId(number),
        line: None,
    }
}

fn evaluates(frame: &Frame) -> bool {
    *frame == EVALUATES
}

#[test]
fn functions_stand_behind_the_call_that_evaluates_them() {
    let native = [OTHER, EVALUATES, OTHER, EVALUATES, OTHER];
    let python = [1, 2, 3].map(function);
    let whole = merged(&native, evaluates, &python, &[1, 3], true, true);
    let [one, two, three] = python;
    let expected = [OTHER, EVALUATES, one, OTHER, EVALUATES, two, three, OTHER];
    assert_eq!(whole, expected);
}

#[test]
fn functions_whose_call_cannot_be_told_stand_behind_the_outermost() {
    let native = [OTHER, EVALUATES, OTHER, EVALUATES, OTHER];
    let python = [1, 2].map(function);
    let merged = merged(&native, evaluates, &python, &[2], true, true);
    let [one, two] = python;
    let expected = [OTHER, EVALUATES, OTHER, EVALUATES, one, two, OTHER];
    assert_eq!(merged, expected);
}

#[test]
fn stacks_that_lack_outer_frames_are_merged_from_the_innermost() {
    let native = [OTHER, EVALUATES, OTHER, EVALUATES];
    let [one, two, three] = [1, 2, 3].map(function);
    for (is_native_whole, is_python_whole) in [(false, true), (true, false)] {
        let few = merged(
            &native,
            evaluates,
            &[one],
            &[1],
            is_native_whole,
            is_python_whole,
        );
        assert_eq!(few, [OTHER, EVALUATES, one, OTHER, EVALUATES]);
    }
    let many = merged(
        &native[..2],
        evaluates,
        &[one, two, three],
        &[1, 3],
        false,
        true,
    );
    assert_eq!(many, [OTHER, EVALUATES, one, two, three]);
}

#[test]
fn a_whole_native_stack_keeps_its_outermost_frames_outermost() {
    let native = [OTHER, EVALUATES, OTHER];
    let python = [1, 2, 3].map(function);
    let merged = merged(&native, evaluates, &python, &[1, 2, 3], true, false);
    let [one, two, three] = python;
    assert_eq!(merged, [OTHER, EVALUATES, one, two, three, OTHER]);
}

#[test]
fn functions_have_no_place_where_nothing_evaluates_them() {
    let merged = merged(&[OTHER], evaluates, &[function(1)], &[1], true, true);
    assert_eq!(merged, [OTHER]);
}

#[test]
fn a_function_has_one_number() {
    let mut functions = Functions::default();
    let mut named = |name: &str| {
        let mut named = functions::Named::new(name.to_owned(), String::new(), None);
        functions.number(&mut named)
    };
    assert_eq!(named("a"), named("a"));
    assert_ne!(named("a"), named("b"));
}
