//! From a report to characters, or to another tool's bytes.
//!
//! A renderer knows the [`Report`] and nothing of where it came from. Whatever stands in a report may have been chosen
//! by the traced program (its arguments, the names of its files), so no string reaches the output before
//! `words::harmless` has seen it; JSON has escapes of its own.

mod allocator;
pub(crate) mod call_paths;
pub(crate) mod charset;
mod chart;
mod comparison;
mod explanation;
mod export;
mod format;
pub mod gate;
mod heap;
mod html;
mod layout;
mod page;
pub(crate) mod style;
mod svg;
mod symbols;
pub(crate) mod table;
mod terminal;
mod text;
mod verdict;
pub(crate) mod words;

#[cfg(test)]
mod tests;

pub use charset::Charset;
pub use comparison::comparison;
pub use export::ExportError;
pub use export::Measure;
pub use format::Format;
pub use format::UnknownFormat;
pub use heap::heap;
pub use heap::heap_look;
pub use html::diff_html;
pub use symbols::symbols;

use crate::report;
use crate::report::Report;

/// How text is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextOptions {
    /// Columns that a line may take; taken as [`TextOptions::NARROWEST`] when less.
    pub width: usize,
    /// Whether escapes for colour may be written.
    pub color: bool,
    /// The characters that it may consist of.
    pub charset: Charset,
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
            charset: Charset::Unicode,
            verbose: false,
        }
    }
}

/// Writes `report` as `format`; text formats end with a newline. `options` concern text alone, `measure` formats that
/// have one number per call stack.
///
/// # Errors
///
/// The report lacks what the format shows.
pub fn render(
    report: &Report,
    format: Format,
    options: TextOptions,
    measure: Measure,
) -> Result<Vec<u8>, ExportError> {
    export::check(report, format)?;
    Ok(match format {
        Format::Text => text::render(report, options).into_bytes(),
        Format::Html => html::render(report),
        Format::Svg => svg::render(report, svg::Parts::Both),
        Format::SvgTimeline => svg::render(report, svg::Parts::Timeline),
        Format::SvgFlameGraph => svg::render(report, svg::Parts::Flames),
        Format::Json => report::to_json(report).into_bytes(),
        Format::Folded => export::folded(report, measure),
        Format::Pprof => export::pprof(report, measure),
        Format::Speedscope => export::speedscope(report, measure),
        Format::ChromeTrace => export::chrome_trace(report),
        Format::Csv => export::csv(report),
        Format::Prometheus => export::prometheus(report),
        Format::OpenMetrics => export::openmetrics(report),
        Format::Massif => export::massif(report),
    })
}
