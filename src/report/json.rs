//! Reports as JSON: written with the schema's name and version, refused when they are not ours or too new.

use serde::Deserialize;
use serde::Serialize;

use super::Report;

/// The name by which reports are known.
pub const SCHEMA_NAME: &str = "breaktrace.report";

/// The version of the report's schema that this build writes, and the newest that it reads.
pub const SCHEMA_VERSION: u32 = 1;

/// Why a document is no report that can be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// It is not JSON, or breaks off.
    #[error("it is not a complete JSON document: {0}")]
    NotJson(serde_json::Error),
    /// It is JSON of some other program.
    #[error("it is JSON, but no breaktrace report: {0}")]
    Foreign(String),
    /// A newer breaktrace wrote it.
    #[error(
        "it follows version {found} of the report's schema, and this breaktrace reads up to version {SCHEMA_VERSION}"
    )]
    Newer {
        /// The document's version.
        found: u32,
    },
}

impl ReadError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotJson(_) => {
                "a recording that was cut off is best shown from its event log (--events)".into()
            }
            Self::Foreign(_) => "reports are written by `breaktrace run -o FILE.json`".into(),
            Self::Newer { .. } => {
                "read it with the breaktrace that wrote it, or a newer one".into()
            }
        })
    }
}

/// Writes a report as indented JSON with a final newline.
///
/// # Panics
///
/// Never: a report holds only strings, numbers and lists.
#[must_use]
pub fn to_json(report: &Report) -> String {
    document(report)
}

/// A document as indented JSON with a final newline.
///
/// Such text is also written to terminals. JSON itself escapes control characters only below U+0020; those that names of
/// the program may hold above it are escaped here. Whoever reads the document gets the names as they are.
///
/// # Panics
///
/// If a key is no string, which no document of ours has.
pub(super) fn document(content: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(content).expect("a document has only string keys");
    let mut out = String::with_capacity(text.len() + 1);
    // Outside of strings JSON is ASCII without them.
    for part in text.split_inclusive(is_high_control) {
        let mut characters = part.chars();
        match characters.next_back().filter(|last| is_high_control(*last)) {
            Some(last) => {
                out.push_str(characters.as_str());
                out.push_str(&format!("\\u{:04x}", u32::from(last)));
            }
            None => out.push_str(part),
        }
    }
    out.push('\n');
    out
}

/// DEL, and the second set of control characters (ISO 6429, C1).
fn is_high_control(character: char) -> bool {
    matches!(character, '\u{7f}'..='\u{9f}')
}

/// Reads a report.
///
/// # Errors
///
/// The text is no JSON, not a report, or a report of a newer version.
pub fn from_json(text: &str) -> Result<Report, ReadError> {
    #[derive(Deserialize)]
    struct Probe {
        schema: Option<serde_json::Value>,
    }
    // The version is looked at first, on its own: a newer report may not fit our structure at all.
    let probe: Probe = serde_json::from_str(text).map_err(|error| {
        if error.is_data() {
            ReadError::Foreign("the document is not an object".into())
        } else {
            ReadError::NotJson(error)
        }
    })?;
    let schema = probe.schema.unwrap_or_default();
    let name = schema.get("name").and_then(serde_json::Value::as_str);
    let version = schema.get("version").and_then(serde_json::Value::as_u64);
    match (name, version) {
        (Some(SCHEMA_NAME), Some(version)) if version <= u64::from(SCHEMA_VERSION) => {}
        (Some(SCHEMA_NAME), Some(version)) => {
            return Err(ReadError::Newer {
                found: u32::try_from(version).unwrap_or(u32::MAX),
            });
        }
        _ => {
            return Err(ReadError::Foreign(
                "`schema` does not name breaktrace.report".into(),
            ));
        }
    }
    serde_json::from_str(text).map_err(|error| ReadError::Foreign(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_characters_are_escaped_and_names_stay_what_they_are() {
        for code in (0..0x20).chain(0x7f..0xa0) {
            let control = char::from_u32(code).unwrap();
            let names = [
                format!("{control}"),
                format!("é{control}{control}]0;\u{a0}"),
            ];
            let text = document(&names);
            assert!(
                !text.contains(|character: char| character.is_control() && character != '\n'),
                "{text:?}"
            );
            let read: Vec<String> = serde_json::from_str(&text).unwrap();
            assert_eq!(read, names);
        }
    }

    #[test]
    fn a_document_without_control_characters_is_plain_json() {
        let names = ["", "malloc", "größer \u{a0}😀 \\u009b"];
        let plain = serde_json::to_string_pretty(&names).unwrap() + "\n";
        assert_eq!(document(&names), plain);
    }
}
