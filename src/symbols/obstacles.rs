//! What keeps debug information from being read, or read in full.

use std::borrow::Cow;
use std::io::Read;

use object::CompressionFormat;
use object::Object;
use object::ObjectSection;
use object::ReadRef;

use super::names::Elf;

/// Most bytes of abbreviations that are looked at.
const MOST_ABBREVIATIONS: u64 = 64 << 20;
/// DWARF 5, 7.5.4.
const DW_AT_DWO_NAME: u64 = 0x76;
/// The same before DWARF 5 (gcc.gnu.org/wiki/DebugFission).
const DW_AT_GNU_DWO_NAME: u64 = 0x2130;
/// DWARF 5, 7.5.6: the value is in the abbreviation.
const DW_FORM_IMPLICIT_CONST: u64 = 0x21;

/// Something in the way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Obstacle {
    /// Nothing of it can be read, for this reason.
    Unreadable(String),
    /// Some of it cannot, for this reason.
    Incomplete(String),
}

/// What is in the way in this file.
pub(super) fn find<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>) -> Option<Obstacle> {
    let advice = "objcopy --decompress-debug-sections makes a file that is read, in its place or in a folder for --debug-dir";
    let has_old = elf.section_by_name(".zdebug_info").is_some();
    if has_old && elf.section_by_name(".debug_info").is_none() {
        return Some(Obstacle::Unreadable(format!(
            "it is compressed in the old way of GNU (.zdebug_info): {advice}"
        )));
    }
    let is_zstd = |name: &str| {
        elf.section_by_name(name)
            .and_then(|section| section.compressed_file_range().ok())
            .is_some_and(|range| range.format == CompressionFormat::Zstandard)
    };
    if !cfg!(feature = "symbols-zstd") && [".debug_info", ".debug_line"].into_iter().any(is_zstd) {
        return Some(Obstacle::Unreadable(format!(
            "it is compressed with zstd, which breaktrace reads only if built with the feature symbols-zstd: {advice}"
        )));
    }
    let abbreviations = contents(elf, ".debug_abbrev")?;
    is_split(&abbreviations).then(|| {
        Obstacle::Incomplete(
            "parts of its debug information are in files of their own (-gsplit-dwarf), which are not read: inlined \
             functions are missing, and lines of code that was inlined count as those of the function around it"
                .to_owned(),
        )
    })
}

/// A section as it was before it was compressed; `None` if it is not there, or not to be had.
fn contents<'data, R: ReadRef<'data>>(elf: &Elf<'data, R>, name: &str) -> Option<Cow<'data, [u8]>> {
    let data = elf.section_by_name(name)?.compressed_data().ok()?;
    match data.format {
        CompressionFormat::None => Some(Cow::Borrowed(data.data)),
        CompressionFormat::Zlib => {
            let mut bytes = Vec::new();
            flate2::read::ZlibDecoder::new(data.data)
                .take(MOST_ABBREVIATIONS)
                .read_to_end(&mut bytes)
                .ok()?;
            Some(Cow::Owned(bytes))
        }
        _ => None,
    }
}

/// Whether an abbreviation is for a unit that lies in a file of its own.
fn is_split(mut abbreviations: &[u8]) -> bool {
    while let Some(code) = number(&mut abbreviations) {
        // Zero ends the abbreviations of one unit.
        if code == 0 {
            continue;
        }
        let Some(_tag) = number(&mut abbreviations) else {
            return false;
        };
        let Some((_has_children, rest)) = abbreviations.split_first() else {
            return false;
        };
        abbreviations = rest;
        loop {
            let attribute = number(&mut abbreviations);
            let form = number(&mut abbreviations);
            match (attribute, form) {
                (Some(0), Some(0)) => break,
                (Some(DW_AT_DWO_NAME | DW_AT_GNU_DWO_NAME), Some(_)) => return true,
                // A signed number is as long as an unsigned one.
                (Some(_), Some(DW_FORM_IMPLICIT_CONST)) => {
                    if number(&mut abbreviations).is_none() {
                        return false;
                    }
                }
                (Some(_), Some(_)) => {}
                _ => return false,
            }
        }
    }
    false
}

/// The next LEB128 number; bits above the 64th are lost.
fn number(bytes: &mut &[u8]) -> Option<u64> {
    let mut value = 0_u64;
    let mut shift = 0_u32;
    loop {
        let (&byte, rest) = bytes.split_first()?;
        *bytes = rest;
        value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
        if byte & 0x80 == 0 {
            return Some(value);
        }
        shift = shift.saturating_add(7);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_any_length_are_read() {
        let mut bytes = &[0xb0, 0x42, 0x7f, 0x80][..];
        assert_eq!(number(&mut bytes), Some(DW_AT_GNU_DWO_NAME));
        assert_eq!(number(&mut bytes), Some(0x7f));
        assert_eq!(number(&mut bytes), None);
        assert_eq!(number(&mut &[0xff; 100][..]), None);
    }

    #[test]
    fn a_unit_elsewhere_is_seen_behind_others() {
        // A unit here (name, and a constant that looks like the attribute's number), and one elsewhere.
        let here = [1, 0x11, 1, 0x03, 0x08, 0x3a, 0x21, 0xf6, 0x00, 0, 0, 0];
        let elsewhere = [1, 0x4a, 0, 0x76, 0x08, 0, 0, 0];
        assert!(!is_split(&here));
        assert!(is_split(&[&here[..], &elsewhere].concat()));
        assert!(!is_split(&elsewhere[..3]));
    }
}
