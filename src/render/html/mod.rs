//! The report as one page for a browser: it needs no network, and shows what the [`Report`] holds.
//!
//! The report's own JSON stands in the page, in a script element that is data. The page's code puts every text from it into
//! the document as text, never as markup, and a content security policy forbids everything from elsewhere.

use serde_json::json;

use super::explanation;
use super::verdict;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::gate::RecordingDiff;

const PAGE: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const CODE: &str = include_str!("page.js");

/// Writes the page.
pub(super) fn render(report: &Report) -> Vec<u8> {
    page(report, data(report))
}

/// Writes a page that shows `after` as `-o FILE.html` does, with `before` behind it and what changed above it.
#[must_use]
pub fn diff_html(diff: &RecordingDiff, before: &Report, after: &Report) -> Vec<u8> {
    let mut data = data(after);
    data["before"] = json!(before);
    data["diff"] = json!(diff);
    page(after, data)
}

fn data(report: &Report) -> serde_json::Value {
    json!({
        "report": report,
        // The longest way to say it comes first.
        "verdict": verdict::verdict(report).into_iter().next(),
        "sentences": sentences(report),
    })
}

fn page(report: &Report, data: serde_json::Value) -> Vec<u8> {
    let title = report
        .main()
        .map_or_else(|| "breaktrace".to_owned(), |space| space.program.clone());
    PAGE.replace("/*style*/", STYLE)
        .replace("/*code*/", CODE)
        .replace("<!--title-->", &markup(&super::words::program(&title)))
        // Last, as what the program chose may hold the other places' names.
        .replacen("/*data*/", &island(&data.to_string()), 1)
        .into_bytes()
}

/// Why each move of each break was as large as it was, in the words of the text: by address space and number.
fn sentences(report: &Report) -> serde_json::Value {
    let of_space = |space: &SpaceReport| {
        let steps = space.program_break.steps.kept.iter();
        let told: serde_json::Map<_, _> = steps
            .filter_map(|step| Some((step.number.to_string(), explanation::sentence(step)?.into())))
            .collect();
        (space.id.0.to_string(), told.into())
    };
    report
        .address_spaces
        .iter()
        .map(of_space)
        .collect::<serde_json::Map<_, _>>()
        .into()
}

/// JSON that may stand in a script element: nothing in it can end that, or begin a comment.
fn island(json: &str) -> String {
    json.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
        .replace('\u{2028}', "\\u2028")
        .replace('\u{2029}', "\\u2029")
}

/// Text as markup.
fn markup(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests;
