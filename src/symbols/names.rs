//! Names out of an ELF symbol table, and demangled.
//!
//! The plain way: for images in memory, and for files in which nothing else can be read.

use std::fmt::Write;

use object::Object;
use object::ObjectSection;
use object::ObjectSegment;
use object::ObjectSymbol;
use object::ReadRef;
use object::SymbolKind;
use object::read::elf::ElfFile64;
use object::read::elf::Sym;

use super::Function;

/// Longest name that is kept, in characters; names of C++ templates may have any length.
const LONGEST_NAME: usize = 4096;
/// Most names of one function among which the shortest is chosen.
const MOST_NAMES: usize = 100;
/// Longest mangled name that is demangled, in bytes.
const LONGEST_MANGLED: usize = 1 << 16;
/// Largest symbol table that is read, in symbols; the largest libraries have some millions.
const MOST_SYMBOLS: usize = 16 << 20;

/// An ELF file of 64 bits.
pub(super) type Elf<'data, R> = ElfFile64<'data, object::Endianness, R>;

/// The address as linked of a place in the file.
pub(super) fn address_of<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    offset: u64,
) -> Option<u64> {
    elf.segments().find_map(|segment| {
        let (start, length) = segment.file_range();
        let inside = offset
            .checked_sub(start)
            .filter(|inside| *inside < length)?;
        segment.address().checked_add(inside)
    })
}

/// The names of the functions at these addresses as linked.
pub(super) fn names<'data, R: ReadRef<'data>>(
    elf: &Elf<'data, R>,
    addresses: &[Option<u64>],
) -> Vec<Option<String>> {
    let texts = [elf.elf_symbol_table(), elf.elf_dynamic_symbol_table()].map(|table| {
        // Read as a whole: the names of large programs are too many to be read one by one.
        let section = elf.section_by_index(table.string_section()).ok()?;
        section.data().ok()
    });
    let endian = elf.endian();
    // The dynamic symbols are also among the others, where those were not stripped.
    let mut symbols: Vec<Symbol<'data>> = elf
        .symbols()
        .map(|symbol| (symbol, texts[0]))
        .chain(elf.dynamic_symbols().map(|symbol| (symbol, texts[1])))
        .take(MOST_SYMBOLS)
        .filter(|(symbol, _)| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
        .filter_map(|(symbol, text)| {
            let at = usize::try_from(symbol.elf_symbol().st_name(endian)).ok()?;
            Some(Symbol {
                start: symbol.address(),
                bytes: symbol.size(),
                name: text?.get(at..)?,
            })
        })
        .filter(|symbol| symbol.bytes > 0 && symbol.name.first().is_some_and(|byte| *byte != 0))
        .collect();
    symbols.sort_unstable_by_key(|symbol| (symbol.start, symbol.bytes));
    addresses
        .iter()
        .map(|address| name_at(&symbols, (*address)?))
        .collect()
}

/// A function in a symbol table.
struct Symbol<'data> {
    start: u64,
    bytes: u64,
    /// The name up to a zero, and whatever follows it in the table.
    name: &'data [u8],
}

impl<'data> Symbol<'data> {
    fn name(&self) -> &'data [u8] {
        // A little longer than any that is demangled: of what is longer only the beginning is shown.
        let name = self.name.get(..=LONGEST_MANGLED).unwrap_or(self.name);
        name.split(|byte| *byte == 0).next().unwrap_or_default()
    }
}

/// The name of the function at an address, in symbols sorted by start and length.
fn name_at(symbols: &[Symbol<'_>], address: u64) -> Option<String> {
    let after = symbols.partition_point(|symbol| symbol.start <= address);
    let last = symbols.get(after.checked_sub(1)?)?;
    if address - last.start >= last.bytes {
        return None;
    }
    // Of several names for one function the shortest: `malloc` rather than `__libc_malloc`.
    let name = symbols[..after]
        .iter()
        .rev()
        .take_while(|symbol| (symbol.start, symbol.bytes) == (last.start, last.bytes))
        .take(MOST_NAMES)
        .map(Symbol::name)
        .min_by_key(|name| (name.len(), *name))?;
    Some(demangled(&String::from_utf8_lossy(name)))
}

/// A name as its programmer wrote it, for C++ and Rust; without the hash that Rust appends.
pub(super) fn demangled(name: &str) -> String {
    // Versions belong to the link, not to the name: `malloc@@GLIBC_2.2.5`.
    let name = name.split_once('@').map_or(name, |(before, _)| before);
    if name.len() > LONGEST_MANGLED {
        return shortened(name);
    }
    let mut text = Bounded::default();
    // What does not end within the bounds is cut there.
    let is_done = if let Ok(rust) = rustc_demangle::try_demangle(name) {
        write!(text, "{rust:#}").is_ok()
    } else if let Ok(symbol) = cpp_demangle::Symbol::new(name) {
        let options = cpp_demangle::DemangleOptions::default();
        symbol.structured_demangle(&mut text, &options).is_ok()
    } else {
        return shortened(name);
    };
    match text.0 {
        text if is_done || text.len() > LONGEST_NAME => shortened(&text),
        _ => shortened(name),
    }
}

/// Text that takes no more than is shown of it: a name of some hundred bytes can stand for one of 2⁶⁰, as parts of it name
/// other parts.
#[derive(Default)]
struct Bounded(String);

impl std::fmt::Write for Bounded {
    fn write_str(&mut self, more: &str) -> std::fmt::Result {
        self.0.push_str(more);
        // More than is shown, so that it is marked as cut.
        if self.0.len() > 4 * LONGEST_NAME + 4 {
            return Err(std::fmt::Error);
        }
        Ok(())
    }
}

/// At most [`LONGEST_NAME`] characters of a name.
pub(super) fn shortened(name: &str) -> String {
    match name.char_indices().nth(LONGEST_NAME) {
        None => name.to_owned(),
        Some((end, _)) => format!("{}…", &name[..end]),
    }
}

/// A function of which nothing but the name is known.
pub(super) fn only_a_name(name: String) -> Function {
    Function {
        name,
        file: None,
        line: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_as_the_programmer_wrote_them() {
        for (mangled, expected) in [
            ("malloc@@GLIBC_2.2.5", "malloc"),
            ("_Znwm", "operator new(unsigned long)"),
            (
                "_ZN4core9panicking9panic_fmt17h5f1a6fd39197ad62E",
                "core::panicking::panic_fmt",
            ),
            ("main", "main"),
        ] {
            assert_eq!(demangled(mangled), expected);
        }
    }

    #[test]
    fn names_that_grow_without_end_are_cut() {
        // A<A<A<…>, …>, …>: each level names the one before twice.
        let mut levels = "1AI1BS0_E".to_owned();
        for level in 1..60 {
            let before = base_36(level);
            levels += &format!("S_IS{before}_S{before}_E");
        }
        let name = demangled(&format!("_Z1f{levels}"));
        assert!(name.starts_with("f(A<B, B>, A<A<B, B>, A<B, B>"), "{name}");
        assert_eq!(name.chars().count(), LONGEST_NAME + 1);
        // The same for Rust: tuples of the tuple before.
        let mut inner = "T".to_owned();
        for _ in 0..200 {
            inner += "Tuuuuuuuuu";
        }
        let rust = demangled(&format!("_RINvC1a1f{}E", &inner[1..]));
        assert!(rust.chars().count() <= LONGEST_NAME + 1);
        // Depth rather than length.
        for deep in ["P", "N", "I", "F", "J", "Dp", "cv"] {
            let name = demangled(&format!("_Z1f{}i", deep.repeat(20_000)));
            assert!(name.chars().count() <= LONGEST_NAME + 1);
        }
        let long = demangled(&format!("_Z1000000{}", "a".repeat(1_000_000)));
        assert_eq!(long.chars().count(), LONGEST_NAME + 1);
    }

    /// A sequence number in a mangled name: `S_` is the first, `S0_` the second.
    fn base_36(number: u32) -> String {
        let mut rest = number;
        let mut digits = String::new();
        loop {
            digits.insert(
                0,
                char::from_digit(rest % 36, 36)
                    .unwrap()
                    .to_ascii_uppercase(),
            );
            rest /= 36;
            if rest == 0 {
                return digits;
            }
        }
    }

    #[test]
    fn endless_names_are_cut() {
        assert_eq!(shortened(&"é".repeat(5000)).chars().count(), 4097);
    }
}
