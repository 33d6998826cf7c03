//! `heap`: one look at a running program's heap.

use super::Ending;
use super::Failure;
use super::args;
use crate::tracer;

/// `breaktrace heap`.
pub(super) fn heap(arguments: &args::Heap) -> Result<Ending, Failure> {
    let examination = tracer::examine_process(arguments.pid, arguments.exact).map_err(|error| {
        let failure = Failure::new(&error);
        match error.hint() {
            Some(hint) => failure.hint(hint),
            None => failure,
        }
    })?;
    let text = serde_json::to_string_pretty(&examination).map_err(Failure::new)?;
    anstream::println!("{text}");
    Ok(Ending::Code(0))
}
