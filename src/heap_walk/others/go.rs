//! Programs of Go: known by the note that carries their build number, or by what tells how they were built
//! (cmd/link; debug/buildinfo/buildinfo.go).

use super::objects::Object;
use super::text::is_digit_or_dot;
use super::text::leading;
use crate::heap_walk::Image;

/// What stands before the build information, which begins at a multiple of 16.
const MAGIC: &[u8] = b"\xff Go buildinf:";
const ALIGNMENT: usize = 16;
/// Type and name of the note.
const NOTE: &[u8] = b"\x04\0\0\0Go\0\0";
/// Bytes of each stretch of data that are searched for it, as Go's own tools do: it stands first in the data.
const BEGINNING: usize = 64 << 10;
/// Bytes of one version.
const MOST_VERSION: usize = 64;

/// A runtime of Go in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Built {
    /// `1.19.8`; `None` when it could not be read.
    pub(super) version: Option<String>,
    pub(super) evidence: &'static str,
}

/// Whether a file has Go's runtime.
pub(super) fn built(image: &dyn Image, object: &Object<'_>, thorough: bool) -> Option<Built> {
    let noted = has_note(image, object);
    if !noted && !thorough {
        return None;
    }
    match (build_information(image, object), noted) {
        (Some(version), _) => Some(Built {
            version,
            evidence: "has Go's build information",
        }),
        (None, true) => Some(Built {
            version: None,
            evidence: "has the note of Go's linker",
        }),
        (None, false) => None,
    }
}

/// A note of type 4 by the name of `Go`.
fn has_note(image: &dyn Image, object: &Object<'_>) -> bool {
    let Some(headers) = object.headers(image) else {
        return false;
    };
    headers.notes.iter().flatten().any(|(address, length)| {
        let mut bytes = vec![0; (*length).min(1024)];
        let length = image.read(*address, &mut bytes);
        // Type and name: the description follows.
        bytes
            .get(..length)
            .unwrap_or_default()
            .windows(NOTE.len())
            .any(|window| window == NOTE)
    })
}

/// The version that the build information tells, if there is such; `None` inside when it cannot be read.
fn build_information(image: &dyn Image, object: &Object<'_>) -> Option<Option<String>> {
    let mut bytes = vec![0; BEGINNING];
    // The data comes behind constants and code; part of it may have been made read-only after relocation.
    let data = object
        .mappings
        .iter()
        .filter(|mapping| mapping.permissions.read && !mapping.permissions.execute)
        .filter(|mapping| mapping.permissions.write || mapping.bytes() <= BEGINNING as u64);
    for mapping in data {
        let wanted = usize::try_from(mapping.bytes())
            .unwrap_or(BEGINNING)
            .min(BEGINNING);
        let length = image.read(mapping.start.0, bytes.get_mut(..wanted)?);
        let found = bytes
            .get(..length)?
            .chunks(ALIGNMENT)
            .position(|chunk| chunk.starts_with(MAGIC));
        if let Some(at) = found {
            let within = (at * ALIGNMENT) as u64;
            return Some(version_at(image, mapping.start.0.wrapping_add(within)));
        }
    }
    None
}

fn version_at(image: &dyn Image, place: u64) -> Option<String> {
    let mut header = [0; 32 + MOST_VERSION];
    let length = image.read(place, &mut header);
    let header = header.get(..length)?;
    let text = if header.get(15)? & 2 != 0 {
        // Since 1.18: a length of one byte (longer ones are no versions), then the version.
        let many = usize::from(*header.get(32)?);
        header.get(33..)?.get(..many)?.to_vec()
    } else {
        // Before: the address of a string, which is an address and a length.
        let string = header.get(16..24)?.try_into().ok()?;
        let string = u64::from_le_bytes(string);
        let many = image.word(string.wrapping_add(8))?;
        let mut text = vec![0; usize::try_from(many).ok()?.min(MOST_VERSION)];
        let length = image.read(image.word(string)?, &mut text);
        text.truncate(length);
        text
    };
    let number = text.strip_prefix(b"go")?;
    leading(number, |byte| {
        is_digit_or_dot(byte) || byte.is_ascii_alphanumeric() || byte == b'-'
    })
}

/// Where the runtime puts its heap if it can (runtime/malloc.go, `mallocinit`).
pub(super) const ARENAS: &[u64] = if cfg!(target_arch = "aarch64") {
    &[0x40_0000_0000]
} else {
    &[0xc0_0000_0000]
};
