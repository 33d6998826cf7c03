//! What each libc.so.6 says of itself: `GNU C Library (…) stable release version 2.36.` (csu/version.c).

use super::super::Image;
use crate::mapping::Mapping;

const BANNER: &[u8] = b"GNU C Library ";
const BEGINNING: &[u8; 8] = b"GNU C Li";
const RELEASE: &[u8] = b"release version ";
/// The banner's first line is shorter.
const LINE: usize = 256;
/// Bytes read at a time.
const PIECE: usize = 64 << 10;
/// More constants of a library are not searched.
const MOST_BYTES: u64 = 4 << 20;

/// The version of the library with these mappings; `None` where it does not say.
pub(super) fn read(image: &dyn Image, mappings: &[&Mapping]) -> Option<String> {
    // Constants follow the code; in older libraries they are in one piece with it.
    let (constants, others): (Vec<&Mapping>, Vec<&Mapping>) = mappings
        .iter()
        .filter(|mapping| mapping.permissions.read && !mapping.permissions.write)
        .partition(|mapping| !mapping.permissions.execute && mapping.offset != 0);
    let mut left = MOST_BYTES;
    let mut bytes = vec![0; PIECE];
    constants
        .into_iter()
        .chain(others)
        .find_map(|mapping| in_mapping(image, mapping, &mut bytes, &mut left))
}

fn in_mapping(
    image: &dyn Image,
    mapping: &Mapping,
    bytes: &mut [u8],
    left: &mut u64,
) -> Option<String> {
    let mut start = mapping.start.0;
    while start < mapping.end.0 && *left > 0 {
        let wanted = usize::try_from(mapping.end.0 - start)
            .unwrap_or(usize::MAX)
            .min(bytes.len());
        let length = image.read(start, &mut bytes[..wanted]);
        if let Some(version) = in_bytes(&bytes[..length]) {
            return Some(version);
        }
        *left = left.saturating_sub(length as u64);
        let step = length.saturating_sub(LINE) & !7;
        if step == 0 {
            break;
        }
        start = start.saturating_add(step as u64);
    }
    None
}

fn in_bytes(bytes: &[u8]) -> Option<String> {
    // Compilers align large constants, so a look at every eighth byte finds it (x86-64 psABI, 3.1.2).
    let (words, _) = bytes.as_chunks::<8>();
    words
        .iter()
        .zip((0..).step_by(8))
        .filter(|(word, _): &(_, usize)| *word == BEGINNING)
        .find_map(|(_, place)| in_line(bytes.get(place..)?))
}

fn in_line(bytes: &[u8]) -> Option<String> {
    let line = &bytes[..bytes.len().min(LINE)];
    if !line.starts_with(BANNER) {
        return None;
    }
    let release = line
        .windows(RELEASE.len())
        .position(|window| window == RELEASE)?
        + RELEASE.len();
    let version: String = line[release..]
        .iter()
        .take(16)
        .map(|byte| char::from(*byte))
        .take_while(|letter| letter.is_ascii_digit() || *letter == '.')
        .collect();
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

/// The two numbers of a version.
pub(super) fn numbers(version: &str) -> Option<(u32, u32)> {
    let (major, minor) = version.split_once('.')?;
    let minor = minor.split('.').next()?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn version(line: &str) -> Option<String> {
        in_bytes(format!("constants{line}").get(1..)?.as_bytes())
    }

    #[test]
    fn banners_of_distributions_tell_the_version() {
        let said = |line| version(line);
        assert_eq!(
            said(
                "GNU C Library (Debian GLIBC 2.36-9+deb12u14) stable release version 2.36.\nCopyright"
            ),
            Some("2.36".to_owned())
        );
        assert_eq!(
            said(
                "GNU C Library (Ubuntu GLIBC 2.23-0ubuntu11.3) stable release version 2.23, by Roland McGrath et al."
            ),
            Some("2.23".to_owned())
        );
        assert_eq!(
            said("GNU C Library (GNU libc) development release version 2.42.9000.\n"),
            Some("2.42.9000".to_owned())
        );
        assert_eq!(said("GNU C Library (odd)"), None);
        assert_eq!(said("GNU C Library release version x"), None);
        assert_eq!(numbers("2.42.9000"), Some((2, 42)));
        assert_eq!(numbers("2"), None);
    }
}
