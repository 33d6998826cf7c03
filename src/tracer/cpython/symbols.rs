//! What the file of a CPython interpreter tells of it.

use std::ops::Range;

use object::Object;
use object::ObjectSection;
use object::ReadRef;
use object::read::elf::ElfFile64;
use object::read::elf::FileHeader;
use object::read::elf::Sym;

use super::layout::Problem;

/// The function that evaluates frames. The compiler may have cut parts off it, which bear its name and an ending.
const EVALUATES: &[u8] = b"_PyEval_EvalFrameDefault";
const RUNTIME: &[u8] = b"_PyRuntime";
const VERSION: &[u8] = b"Py_Version";
/// What interpreters define that have no `_PyRuntime`: CPython before 3.7, and PyPy.
const OTHERS: [&[u8]; 2] = [b"PyEval_EvalFrameEx", b"pypy_main_startup"];
/// Most parts that the function is in.
const MOST_PARTS: usize = 16;

/// Places in the file of an interpreter, as addresses of the linker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Symbols {
    pub(super) runtime: Option<u64>,
    pub(super) version: Option<u64>,
    /// The parts of the function that evaluates frames.
    pub(super) evaluates: Vec<Range<u64>>,
    /// It has the section in which `_PyRuntime` is, though perhaps no symbol that says so.
    pub(super) has_section: bool,
}

impl Symbols {
    /// Why nothing can be read with these.
    pub(super) fn problem(&self) -> Option<Problem> {
        match self.runtime {
            None if self.has_section => Some(Problem::Stripped),
            None => Some(Problem::Other),
            // Without this function nobody knows where Python's frames belong.
            Some(_) if self.evaluates.is_empty() => Some(Problem::Stripped),
            Some(_) => None,
        }
    }

    /// Finds them; `None` if the file defines no interpreter.
    pub(in super::super) fn find<'data, R: ReadRef<'data>>(
        elf: &ElfFile64<'data, object::Endianness, R>,
    ) -> Option<Self> {
        let names = section(elf, ".dynstr")?;
        // Every library comes by here: only the few that have the name are looked at any further.
        let has_section = elf.section_by_name(".PyRuntime").is_some();
        if !has_section && !has_name(names) {
            return None;
        }
        let mut found = Found {
            has_section,
            ..Found::default()
        };
        found.read(elf, elf.elf_dynamic_symbol_table().symbols(), names);
        if let Some(names) = section(elf, ".strtab") {
            found.read(elf, elf.elf_symbol_table().symbols(), names);
        }
        found.symbols()
    }
}

#[derive(Default)]
struct Found {
    runtime: Option<u64>,
    version: Option<u64>,
    evaluates: Vec<Range<u64>>,
    has_section: bool,
    is_other: bool,
}

impl Found {
    fn read<'data, R: ReadRef<'data>>(
        &mut self,
        elf: &ElfFile64<'data, object::Endianness, R>,
        symbols: &[<object::elf::FileHeader64<object::Endianness> as FileHeader>::Sym],
        names: &[u8],
    ) {
        let endian = elf.endian();
        for symbol in symbols.iter().filter(|symbol| !symbol.is_undefined(endian)) {
            let Some(rest) = names.get(symbol.st_name(endian) as usize..) else {
                continue;
            };
            let start = symbol.st_value(endian);
            if rest.starts_with(EVALUATES) {
                let range = start..start.saturating_add(symbol.st_size(endian));
                let is_part = matches!(rest.get(EVALUATES.len()), Some(0 | b'.'));
                if is_part && self.evaluates.len() < MOST_PARTS && !self.evaluates.contains(&range)
                {
                    self.evaluates.push(range);
                }
            } else if is_name(rest, RUNTIME) {
                self.runtime = Some(start);
            } else if is_name(rest, VERSION) {
                self.version = Some(start);
            } else if OTHERS.iter().any(|other| is_name(rest, other)) {
                self.is_other = true;
            }
        }
    }

    fn symbols(self) -> Option<Symbols> {
        // Extension modules name `_PyRuntime` as well, but define none of these.
        (self.runtime.is_some() || self.has_section || self.is_other).then_some(Symbols {
            runtime: self.runtime,
            version: self.version,
            evaluates: self.evaluates,
            has_section: self.has_section,
        })
    }
}

fn is_name(bytes: &[u8], name: &[u8]) -> bool {
    bytes
        .strip_prefix(name)
        .is_some_and(|rest| rest.first() == Some(&0))
}

fn section<'data, R: ReadRef<'data>>(
    elf: &ElfFile64<'data, object::Endianness, R>,
    name: &str,
) -> Option<&'data [u8]> {
    const LARGEST: u64 = 64 << 20;
    let section = elf.section_by_name(name)?;
    (section.size() <= LARGEST)
        .then(|| section.data().ok())
        .flatten()
}

/// Whether any of the names by which an interpreter is known is among these.
fn has_name(names: &[u8]) -> bool {
    names
        .split(|byte| *byte == 0)
        .any(|name| matches!(name.first(), Some(b'_' | b'P' | b'p')) && is_known(name))
}

fn is_known(name: &[u8]) -> bool {
    name == RUNTIME || OTHERS.contains(&name)
}
