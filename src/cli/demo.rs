//! `demo`: the founding experiment, from both sides.

use std::io;
use std::io::Write;

use super::Ending;
use super::FAILED;
use super::Failure;
use super::args;
use super::output::excuse_closed_pipe;
use crate::demo;
use crate::demo::DemoError;
use crate::render::TextOptions;

/// `breaktrace demo`.
pub(super) fn demo(arguments: &args::Demo) -> Result<Ending, Failure> {
    let demonstration = demo::run().map_err(|error| demo_failure(&error))?;
    let text = if arguments.json {
        demo::to_json(&demonstration)
    } else {
        demo::to_text(&demonstration, TextOptions::for_stream(io::stdout(), false))
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .or_else(|error| excuse_closed_pipe("stdout", error))?;
    Ok(Ending::Code(if demonstration.agrees { 0 } else { FAILED }))
}

fn demo_failure(error: &DemoError) -> Failure {
    let failure = Failure::new(error);
    match error.hint() {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}
