//! `diff`: what changed between two recordings.

use std::io;
use std::io::Write;
use std::path::Path;

use super::Ending;
use super::FAILED;
use super::Failure;
use super::USAGE;
use super::args;
use super::check;
use super::gate::REGRESSED;
use super::output::cannot_write;
use super::output::excuse_closed_pipe;
use super::output::probe;
use super::output::write_whole;
use crate::render;
use crate::render::TextOptions;
use crate::report::Report;
use crate::report::gate::BASELINE_SCHEMA_NAME;
use crate::report::gate::Baseline;
use crate::report::gate::LARGEST_BASELINE;
use crate::report::gate::RecordingDiff;
use crate::report::gate::Subject;

/// `breaktrace diff`.
pub(super) fn diff(arguments: &args::Diff) -> Result<Ending, Failure> {
    let mut places = Vec::new();
    for path in &arguments.output {
        let form = form(path).ok_or_else(|| {
            Failure::new(format!(
                "cannot tell the form of `{}` from its name",
                path.display()
            ))
            .hint("end its name in .html, .txt, .json or .md")
            .code(USAGE)
        })?;
        probe(path).map_err(|error| cannot_write(path, &error))?;
        places.push((path, form));
    }
    let (before, after) = (read(&arguments.before)?, read(&arguments.after)?);
    let mut diff = RecordingDiff::of((&before.0, before.1.as_ref()), (&after.0, after.1.as_ref()));
    diff.before.file = Some(arguments.before.to_string_lossy().into_owned());
    diff.after.file = Some(arguments.after.to_string_lossy().into_owned());
    for (path, form) in places {
        if form == Form::Html {
            let page = html(&diff, before.1.as_ref(), after.1.as_ref())?;
            write_whole(path, &page).map_err(|error| cannot_write(path, &error))?;
            continue;
        }
        let options = TextOptions::for_file(arguments.verbose);
        let text = form.write(&diff, options);
        write_whole(path, text.as_bytes()).map_err(|error| cannot_write(path, &error))?;
    }
    let form = if arguments.json {
        Form::Json
    } else {
        Form::Text
    };
    let text = form.write(
        &diff,
        TextOptions::for_stream(io::stdout(), arguments.verbose),
    );
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .or_else(|error| excuse_closed_pipe("stdout", error))?;
    Ok(Ending::Code(
        if arguments.fail_on_regression && diff.is_worse() {
            REGRESSED
        } else {
            0
        },
    ))
}

/// Forms of a difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Text,
    Json,
    Markdown,
    /// A page for a browser.
    Html,
}

fn form(path: &Path) -> Option<Form> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "txt" | "text" => Some(Form::Text),
        "json" => Some(Form::Json),
        "md" | "markdown" => Some(Form::Markdown),
        "html" | "htm" => Some(Form::Html),
        _ => None,
    }
}

impl Form {
    fn write(self, diff: &RecordingDiff, options: TextOptions) -> String {
        match self {
            // Pages are written to files alone, with both reports in them.
            Self::Text | Self::Html => render::gate::diff(diff, options),
            Self::Json => diff.to_json(),
            Self::Markdown => render::gate::diff_markdown(diff),
        }
    }
}

/// Both recordings on one page.
fn html(
    diff: &RecordingDiff,
    before: Option<&Report>,
    after: Option<&Report>,
) -> Result<Vec<u8>, Failure> {
    match (before, after) {
        (Some(before), Some(after)) => Ok(render::diff_html(diff, before, after)),
        _ => Err(
            Failure::new("a baseline has no timeline: there is nothing to draw")
                .hint("compare two reports, or write .md, .txt or .json")
                .code(USAGE),
        ),
    }
}

/// A report, an event log, or a baseline.
fn read(path: &Path) -> Result<(Subject, Option<Report>), Failure> {
    if super::gate::begins_with_schema(path, BASELINE_SCHEMA_NAME) {
        let text = super::gate::read_text(path, LARGEST_BASELINE).map_err(|error| {
            Failure::new(format!("cannot read `{}`: {error}", path.display())).code(FAILED)
        })?;
        let baseline = Baseline::from_json(&text).map_err(|error| {
            Failure::new(format!("cannot use `{}`: {error}", path.display())).hint(error.hint())
        })?;
        return Ok((Subject::from(&baseline), None));
    }
    let report = check::read(path)?;
    Ok((Subject::of_any(&report), Some(report)))
}
