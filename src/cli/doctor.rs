//! `doctor`: what this machine allows.

use std::io;
use std::io::Write;

use super::Ending;
use super::FAILED;
use super::Failure;
use super::args;
use super::output::excuse_closed_pipe;
use crate::doctor;
use crate::render::TextOptions;

/// `breaktrace doctor`; a machine that allows neither `run` nor `attach` is a failure.
pub(super) fn doctor(arguments: &args::Doctor) -> Result<Ending, Failure> {
    let diagnosis = doctor::examine();
    let text = if arguments.json {
        doctor::to_json(&diagnosis)
    } else {
        let options = TextOptions::for_stream(io::stdout(), false);
        let text = doctor::to_text(&diagnosis, options.width, options.color);
        options.charset.spell(&text)
    };
    let mut stdout = io::stdout().lock();
    stdout
        .write_all(text.as_bytes())
        .and_then(|()| stdout.flush())
        .or_else(|error| excuse_closed_pipe("stdout", error))?;
    let works = diagnosis.can_run || diagnosis.can_attach;
    Ok(Ending::Code(if works { 0 } else { FAILED }))
}
