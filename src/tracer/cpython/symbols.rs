//! What the file of a CPython interpreter tells of it.

use std::ops::Range;

use object::Object;
use object::ObjectSection;
use object::ReadRef;
use object::read::elf::ElfFile64;
use object::read::elf::FileHeader;
use object::read::elf::Sym;

/// The function that evaluates frames. The compiler may have cut parts off it, which bear its name and an ending.
const EVALUATES: &[u8] = b"_PyEval_EvalFrameDefault";
const RUNTIME: &[u8] = b"_PyRuntime";
const VERSION: &[u8] = b"Py_Version";
/// Most parts that the function is in.
const MOST_PARTS: usize = 16;

/// Places in the file of an interpreter, as addresses of the linker.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(in super::super) struct Symbols {
    pub(super) runtime: u64,
    pub(super) version: Option<u64>,
    pub(super) evaluates: Vec<Range<u64>>,
}

impl Symbols {
    /// Finds them; `None` if the file defines no interpreter.
    pub(in super::super) fn find<'data, R: ReadRef<'data>>(
        elf: &ElfFile64<'data, object::Endianness, R>,
    ) -> Option<Self> {
        let names = section(elf, ".dynstr")?;
        // Every library comes by here: only the few that have the name are looked at any further.
        let has_name = contains(names, b"\0_PyRuntime\0");
        let has_section = elf.section_by_name(".PyRuntime").is_some();
        if !has_name && !has_section {
            return None;
        }
        let mut found = Found::default();
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
            }
        }
    }

    fn symbols(self) -> Option<Symbols> {
        Some(Symbols {
            runtime: self.runtime?,
            version: self.version,
            evaluates: self.evaluates,
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

fn contains(bytes: &[u8], wanted: &[u8]) -> bool {
    // Names begin after the zero of the one before.
    let mut rest = bytes;
    while let Some(at) = rest
        .windows(2)
        .position(|pair| Some(pair) == wanted.get(..2))
    {
        if rest.get(at..).is_some_and(|rest| rest.starts_with(wanted)) {
            return true;
        }
        rest = rest.get(at + 1..).unwrap_or_default();
    }
    false
}
