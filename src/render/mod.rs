//! From a report to characters.
//!
//! A renderer knows the [`Report`] and nothing of where it came from. Whatever stands in a report may have been chosen
//! by the traced program (its arguments, the names of its files), so no string reaches the output before
//! `words::harmless` has seen it; JSON has escapes of its own.

mod allocator;
mod call_paths;
mod chart;
mod comparison;
mod layout;
pub(crate) mod style;
mod symbols;
pub(crate) mod table;
mod terminal;
mod text;
mod verdict;
pub(crate) mod words;

#[cfg(test)]
mod tests;

pub use comparison::comparison;
pub use symbols::symbols;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::report;
use crate::report::Report;

/// What a report can be written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// For people: one screen of text.
    Text,
    /// For programs: `docs/report-schema.md`.
    Json,
}

impl Format {
    /// Every format, in the order in which help texts list them.
    pub const ALL: [Self; 2] = [Self::Text, Self::Json];

    /// The name by which [`FromStr`] knows it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }

    /// The format that a file's extension asks for; `None` when it has none, or an unknown one.
    #[must_use]
    pub fn of_path(path: &Path) -> Option<Self> {
        let extension = path.extension()?.to_str()?.to_ascii_lowercase();
        match extension.as_str() {
            "txt" | "text" => Some(Self::Text),
            "json" => Some(Self::Json),
            _ => None,
        }
    }
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|format| format.name().eq_ignore_ascii_case(name))
            .ok_or_else(|| UnknownFormat(name.to_owned()))
    }
}

/// A name that is no format's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a format; there are text and json")]
pub struct UnknownFormat(pub String);

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// Columns that a line may take; taken as [`TextOptions::NARROWEST`] when less.
    pub width: usize,
    /// Whether escapes for colour may be written.
    pub color: bool,
    /// Whether to add addresses, all processes, all steps that were kept, and all calls.
    pub verbose: bool,
}

impl TextOptions {
    /// The narrowest layout there is, in columns.
    pub const NARROWEST: usize = 60;
    /// The widest layout that is chosen for a terminal, in columns: longer lines are hard to follow.
    pub const WIDEST: usize = 160;
    /// The width where nothing tells one, in columns.
    pub const WITHOUT_TERMINAL: usize = 100;
}

impl Default for TextOptions {
    /// For a file: no colour.
    fn default() -> Self {
        Self {
            width: Self::WITHOUT_TERMINAL,
            color: false,
            verbose: false,
        }
    }
}

/// Writes `report` as `format`, with a final newline. `options` concern text alone.
#[must_use]
pub fn render(report: &Report, format: Format, options: TextOptions) -> String {
    match format {
        Format::Text => text::render(report, options),
        Format::Json => report::to_json(report),
    }
}
