//! `metrics`: which there are.

use std::io;
use std::io::Write;

use super::Ending;
use super::Failure;
use super::args;
use super::output::excuse_closed_pipe;
use crate::render;
use crate::render::TextOptions;

/// `breaktrace metrics`.
pub(super) fn metrics(arguments: &args::Metrics) -> Result<Ending, Failure> {
    let text = if arguments.json {
        render::gate::metrics_json()
    } else {
        render::gate::metrics(TextOptions::for_stream(io::stdout(), false))
    };
    io::stdout()
        .lock()
        .write_all(text.as_bytes())
        .or_else(|error| excuse_closed_pipe("stdout", error))?;
    Ok(Ending::Code(0))
}
