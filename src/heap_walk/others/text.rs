//! What files say of themselves in their constants: versions, and texts that only one allocator has.

use std::fs::File;
use std::os::unix::fs::FileExt;

use super::objects::Object;
use crate::heap_walk::Image;
use crate::mapping::Mapping;

/// Bytes read at a time.
const PIECE: usize = 256 << 10;
/// By so much pieces overlap: more than any text that is looked for.
const OVERLAP: usize = 512;

/// What is told of a text that was found: its number, what stands before it, what begins with it. Returns whether that was
/// enough.
type See<'a> = dyn FnMut(usize, &[u8], &[u8]) -> bool + 'a;

/// Texts that are looked for all at once.
pub(super) struct Wanted<'a> {
    texts: Vec<&'a [u8]>,
    /// Whether one of them begins with this byte.
    begins: [bool; 256],
}

impl<'a> Wanted<'a> {
    pub(super) fn new(texts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let texts: Vec<&[u8]> = texts.into_iter().filter(|text| !text.is_empty()).collect();
        let mut begins = [false; 256];
        for text in &texts {
            if let Some(begins) = text
                .first()
                .and_then(|byte| begins.get_mut(usize::from(*byte)))
            {
                *begins = true;
            }
        }
        Self { texts, begins }
    }

    /// Calls `see` with the number of each text that is found, what stands before it and what begins with it; stops when that
    /// says so.
    fn search(&self, bytes: &[u8], see: &mut See<'_>) -> bool {
        for (place, byte) in bytes.iter().enumerate() {
            if !self.begins.get(usize::from(*byte)).is_some_and(|is| *is) {
                continue;
            }
            let Some((before, rest)) = bytes.split_at_checked(place) else {
                break;
            };
            for (index, text) in self.texts.iter().enumerate() {
                if rest.starts_with(text) && see(index, before, rest) {
                    return true;
                }
            }
        }
        false
    }
}

/// Searches the constants of a file for texts, at most `limit` bytes of them. `see` is called as by [`Wanted::search`], for
/// some places twice, and ends the search by returning `true`.
pub(super) fn search_constants(
    image: &dyn Image,
    object: &Object<'_>,
    limit: u64,
    wanted: &Wanted<'_>,
    mut see: impl FnMut(usize, &[u8], &[u8]) -> bool,
) {
    // Constants mostly have a mapping of their own behind the code; in older files and in programs of Go they do not.
    let (constants, others): (Vec<&Mapping>, Vec<&Mapping>) = object
        .mappings
        .iter()
        .filter(|mapping| mapping.permissions.read && !mapping.permissions.write)
        .partition(|mapping| !mapping.permissions.execute && mapping.offset != 0);
    let mut left = limit;
    let mut bytes = vec![0; PIECE];
    for mapping in constants.into_iter().chain(others) {
        let mut start = mapping.start.0;
        let file = image.file(mapping);
        while start < mapping.end.0 && left > 0 {
            let length = usize::try_from((mapping.end.0 - start).min(left))
                .unwrap_or(PIECE)
                .min(PIECE);
            let Some(piece) = bytes.get_mut(..length) else {
                return;
            };
            let length = read(image, file.as_ref(), mapping, start, piece);
            if wanted.search(piece.get(..length).unwrap_or_default(), &mut see) {
                return;
            }
            left = left.saturating_sub(length as u64);
            let is_last = start.saturating_add(length as u64) >= mapping.end.0;
            let step = length.saturating_sub(OVERLAP) as u64;
            if is_last || step == 0 {
                break;
            }
            start = start.saturating_add(step);
        }
    }
}

/// Reads constants: of the file rather than of the program's memory, where reading would bring pages in that the program
/// has never touched.
fn read(
    image: &dyn Image,
    file: Option<&File>,
    mapping: &Mapping,
    start: u64,
    bytes: &mut [u8],
) -> usize {
    let within = start.wrapping_sub(mapping.start.0);
    match file.zip(mapping.offset.checked_add(within)) {
        Some((file, offset)) => file.read_at(bytes, offset).unwrap_or(0),
        None => image.read(start, bytes),
    }
}

/// The printable text at the beginning of these bytes whose letters are all `allowed`, of at most 64 letters; `None` when there
/// is none.
pub(super) fn leading(bytes: &[u8], allowed: impl Fn(u8) -> bool) -> Option<String> {
    let text: String = bytes
        .iter()
        .take(64)
        .take_while(|byte| allowed(**byte))
        .map(|byte| char::from(*byte))
        .collect();
    (!text.is_empty()).then_some(text)
}

/// The same, before the end of these bytes.
pub(super) fn trailing(bytes: &[u8], allowed: impl Fn(u8) -> bool) -> Option<String> {
    let many = bytes
        .iter()
        .rev()
        .take(64)
        .take_while(|byte| allowed(**byte))
        .count();
    leading(bytes.get(bytes.len().checked_sub(many)?..)?, allowed)
}

/// Whether a version number may have this letter.
pub(super) fn is_digit_or_dot(byte: u8) -> bool {
    byte.is_ascii_digit() || byte == b'.'
}
