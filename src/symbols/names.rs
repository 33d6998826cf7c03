//! Names out of an ELF symbol table, and demangled.
//!
//! The plain way: for images in memory, and for files in which nothing else can be read.

use object::Object;
use object::ObjectSegment;
use object::ObjectSymbol;
use object::ReadRef;
use object::SymbolKind;
use object::read::elf::ElfFile64;

use super::Function;

/// Longest name that is kept, in characters; names of C++ templates may have any length.
const LONGEST_NAME: usize = 4096;
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
    // The dynamic symbols are also among the others, where those were not stripped.
    let mut symbols: Vec<(u64, u64, &[u8])> = elf
        .symbols()
        .chain(elf.dynamic_symbols())
        .take(MOST_SYMBOLS)
        .filter(|symbol| symbol.is_definition() && symbol.kind() == SymbolKind::Text)
        .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name_bytes().ok()?)))
        .filter(|(_, bytes, name)| *bytes > 0 && !name.is_empty())
        .collect();
    // Of several names for one function the shortest: `malloc` rather than `__libc_malloc`.
    symbols.sort_unstable_by_key(|(address, bytes, name)| {
        (
            *address,
            *bytes,
            std::cmp::Reverse(name.len()),
            std::cmp::Reverse(*name),
        )
    });
    addresses
        .iter()
        .map(|address| {
            let address = (*address)?;
            let after = symbols.partition_point(|(start, _, _)| *start <= address);
            let (start, bytes, name) = symbols.get(after.checked_sub(1)?)?;
            (address - start < *bytes).then(|| demangled(&String::from_utf8_lossy(name)))
        })
        .collect()
}

/// A name as its programmer wrote it, for C++ and Rust; without the hash that Rust appends.
pub(super) fn demangled(name: &str) -> String {
    // Versions belong to the link, not to the name: `malloc@@GLIBC_2.2.5`.
    let name = name.split_once('@').map_or(name, |(before, _)| before);
    let text = if let Ok(rust) = rustc_demangle::try_demangle(name) {
        format!("{rust:#}")
    } else {
        cpp_demangle::Symbol::new(name)
            .ok()
            .and_then(|symbol| symbol.demangle().ok())
            .unwrap_or_else(|| name.to_owned())
    };
    shortened(&text)
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
    fn endless_names_are_cut() {
        assert_eq!(shortened(&"é".repeat(5000)).chars().count(), 4097);
    }
}
