//! How versions are told: by constants that files export, by the code of a function that returns one, by texts, by paths.

use super::elf::Symbol;
use super::objects::Object;
use super::text::Wanted;
use super::text::is_digit_or_dot;
use super::text::leading;
use super::text::search_constants;
use super::text::trailing;
use crate::heap_walk::Image;

/// A file whose version is asked for.
#[derive(Clone, Copy)]
pub(super) struct Site<'a> {
    pub(super) image: &'a dyn Image,
    pub(super) object: &'a Object<'a>,
    /// Bytes of constants that may be searched.
    pub(super) limit: u64,
}

impl Site<'_> {
    pub(super) fn symbol(&self, name: &str) -> Option<Symbol> {
        self.object.symbols(self.image)?.find(self.image, name)
    }

    fn bytes<const MANY: usize>(&self, address: u64) -> Option<[u8; MANY]> {
        let mut bytes = [0; MANY];
        (self.image.read(address, &mut bytes) == MANY).then_some(bytes)
    }

    fn number(&self, name: &str) -> Option<u32> {
        Some(u32::from_le_bytes(self.bytes(self.symbol(name)?.address)?))
    }

    /// The first text for which `tell` has an answer.
    fn text<T>(&self, text: &[u8], tell: impl Fn(&[u8], &[u8]) -> Option<T>) -> Option<T> {
        let mut found = None;
        let wanted = Wanted::new([text]);
        search_constants(
            self.image,
            self.object,
            self.limit,
            &wanted,
            |_, before, rest| {
                found = tell(before, rest.get(text.len()..).unwrap_or_default());
                found.is_some()
            },
        );
        found
    }
}

/// What tells the version of a file.
pub(super) type Rule = fn(&Site<'_>) -> Option<String>;

pub(super) fn none(_: &Site<'_>) -> Option<String> {
    None
}

/// jemalloc's `JEMALLOC_VERSION`: `5.3.0-0-g` and 40 hexadecimal digits.
pub(super) fn jemalloc(site: &Site<'_>) -> Option<String> {
    site.text(b"-g", |before, rest| {
        let commit = leading(rest, |byte| byte.is_ascii_hexdigit())?;
        let count = trailing(before, |byte| byte.is_ascii_digit())?;
        let before = before.get(..before.len().checked_sub(count.len())?)?;
        let version = trailing(before.strip_suffix(b"-")?, is_digit_or_dot)?;
        (commit.len() == 40 && version.split('.').count() == 3).then_some(version)
    })
}

/// `mi_version()` returns `MI_MALLOC_VERSION`: 209 for 2.0.9, 20206 for 2.2.6.
pub(super) fn mimalloc(site: &Site<'_>) -> Option<String> {
    let code: [u8; 16] = site.bytes(site.symbol("mi_version")?.address)?;
    let number = returned(&code)?;
    match number {
        100..1000 => Some(format!(
            "{}.{}.{}",
            number / 100,
            number / 10 % 10,
            number % 10
        )),
        10_000..1_000_000 => Some(format!(
            "{}.{}.{}",
            number / 10_000,
            number / 100 % 100,
            number % 100
        )),
        _ => None,
    }
}

/// The constant that a function returns, if it does nothing else.
fn returned(code: &[u8; 16]) -> Option<u32> {
    // x86-64: perhaps endbr64, then mov eax, constant.
    let x86 = code.strip_prefix(&[0xf3, 0x0f, 0x1e, 0xfa]).unwrap_or(code);
    if let [0xb8, a, b, c, d, 0xc3, ..] = *x86 {
        return Some(u32::from_le_bytes([a, b, c, d]));
    }
    // aarch64: perhaps bti c, then movz w0, constant; ret.
    let (words, _) = code.as_chunks::<4>();
    let mut words = words.iter().map(|word| u32::from_le_bytes(*word));
    let first = words.next()?;
    let first = if first == 0xd503_245f {
        words.next()?
    } else {
        first
    };
    (first & 0xffe0_001f == 0x5280_0000 && words.next()? == 0xd65f_03c0)
        .then_some(first >> 5 & 0xffff)
}

/// `gperftools 2.10`.
pub(super) fn gperftools(site: &Site<'_>) -> Option<String> {
    site.text(b"gperftools ", |_, rest| leading(rest, is_digit_or_dot))
}

/// musl's own number stands alone: `1.2.3`.
pub(super) fn musl(site: &Site<'_>) -> Option<String> {
    site.text(b"\x001.", |_, rest| {
        let tail = leading(rest, is_digit_or_dot)?;
        let (minor, patch) = tail.split_once('.')?;
        let is_version = !minor.is_empty()
            && !patch.is_empty()
            && !patch.contains('.')
            && matches!(rest.get(tail.len()), Some(0 | b'-'));
        is_version.then(|| format!("1.{tail}"))
    })
}

/// `Py_Version` (since 3.11), laid out as `PY_VERSION_HEX`; before that the file's name.
pub(super) fn python(site: &Site<'_>) -> Option<String> {
    match site.number("Py_Version") {
        Some(number) => {
            let (major, minor, micro) = (number >> 24, number >> 16 & 0xff, number >> 8 & 0xff);
            Some(format!("{major}.{minor}.{micro}"))
        }
        None => behind(site.object.file_name(), "python"),
    }
}

/// The numbers behind a word in a file's name.
fn behind(name: &str, word: &str) -> Option<String> {
    let (_, rest) = name.split_once(word)?;
    let version = leading(rest.as_bytes(), is_digit_or_dot)?;
    let version = version.trim_end_matches('.');
    (!version.is_empty()).then(|| version.to_owned())
}

/// `pypy3.9`, `libpypy3.9-c.so`: the version of the language.
pub(super) fn pypy(site: &Site<'_>) -> Option<String> {
    behind(site.object.file_name(), "pypy").map(|version| format!("for Python {version}"))
}

/// `ruby_version` is a text.
pub(super) fn ruby(site: &Site<'_>) -> Option<String> {
    let text: [u8; 16] = site.bytes(site.symbol("ruby_version")?.address)?;
    leading(&text, is_digit_or_dot)
}

/// `X-Powered-By: PHP/8.2.7`.
pub(super) fn php(site: &Site<'_>) -> Option<String> {
    site.text(b"X-Powered-By: PHP/", |_, rest| {
        leading(rest, is_digit_or_dot)
    })
    .or_else(|| behind(site.object.file_name(), "php"))
}

/// `OpenJDK 64-Bit Server VM (17.0.15+6-Debian-1deb12u1) for linux-amd64`; or the path.
pub(super) fn hotspot(site: &Site<'_>) -> Option<String> {
    site.text(b" VM (", |_, rest| {
        let version = leading(rest, |byte| {
            byte.is_ascii_alphanumeric() || b".+-_~".contains(&byte)
        })?;
        version
            .starts_with(|letter: char| letter.is_ascii_digit())
            .then_some(version)
    })
    .or_else(|| {
        // /usr/lib/jvm/java-17-openjdk-amd64/lib/server/libjvm.so
        let (_, rest) = site.object.name.split_once("/jvm/")?;
        let numbers = rest.trim_start_matches(|letter: char| !letter.is_ascii_digit());
        leading(numbers.as_bytes(), is_digit_or_dot)
    })
}

/// V8's as Node.js has it: `11.3.244.8-node.38`.
pub(super) fn node(site: &Site<'_>) -> Option<String> {
    site.text(b"-node.", |before, rest| {
        let version = trailing(before, is_digit_or_dot)?;
        let patch = leading(rest, |byte| byte.is_ascii_digit())?;
        (version.split('.').count() == 4).then(|| format!("{version}-node.{patch}"))
    })
}

/// `…/Microsoft.NETCore.App/8.0.1/libcoreclr.so`.
pub(super) fn folder(site: &Site<'_>) -> Option<String> {
    let folder = site.object.name.rsplit('/').nth(1)?;
    let version = leading(folder.as_bytes(), is_digit_or_dot)?;
    (version.len() == folder.len()).then_some(version)
}

/// `…/erts-13.1.5/bin/beam.smp`.
pub(super) fn erlang(site: &Site<'_>) -> Option<String> {
    let (_, rest) = site.object.name.split_once("/erts-")?;
    leading(rest.as_bytes(), is_digit_or_dot)
}

/// `glib_major_version` and its like are numbers.
pub(super) fn glib(site: &Site<'_>) -> Option<String> {
    let [major, minor, micro] = [
        site.number("glib_major_version")?,
        site.number("glib_minor_version")?,
        site.number("glib_micro_version")?,
    ];
    Some(format!("{major}.{minor}.{micro}"))
}

/// `libtcl8.6.so`.
pub(super) fn tcl(site: &Site<'_>) -> Option<String> {
    behind(site.object.file_name(), "tcl")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn constants_that_functions_return_are_read_from_their_code() {
        let code = |bytes: &[u8]| {
            let mut code = [0xcc; 16];
            code[..bytes.len()].copy_from_slice(bytes);
            returned(&code)
        };
        assert_eq!(code(&[0xb8, 0xd1, 0, 0, 0, 0xc3]), Some(209));
        assert_eq!(
            code(&[0xf3, 0x0f, 0x1e, 0xfa, 0xb8, 0xd4, 0, 0, 0, 0xc3]),
            Some(212)
        );
        // movz w0, #209; ret
        assert_eq!(
            code(&[0x20, 0x1a, 0x80, 0x52, 0xc0, 0x03, 0x5f, 0xd6]),
            Some(209)
        );
        // A call first.
        assert_eq!(code(&[0xe8, 1, 2, 3, 4, 0xb8, 1, 0, 0, 0, 0xc3]), None);
    }

    #[test]
    fn numbers_behind_a_word_end_where_they_do() {
        let told = |name: &str, word: &str| behind(name, word);
        assert_eq!(told("libpython3.11.so.1.0", "python"), Some("3.11".into()));
        assert_eq!(told("python3.9", "python"), Some("3.9".into()));
        assert_eq!(told("python", "python"), None);
        assert_eq!(told("libtcl8.6.so", "tcl"), Some("8.6".into()));
    }
}
