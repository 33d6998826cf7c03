//! Where Python functions stand among native frames.

use crate::event::Frame;

/// The frames of both kinds in one order, innermost first.
///
/// A Python function stands right after the frame of the native function that evaluates it, as if it had called that.
/// `ends` says after how many Python frames each call of the evaluating function ends, innermost first; those behind the
/// last end belong to a call of which the outer part was not read.
///
/// Either stack may lack its outer frames; both are then told from the innermost on. If a whole native stack has fewer such
/// calls than Python has, or both are whole and differ in their number, it cannot be told what belongs where. Then all
/// Python functions stand after the outermost call: their own order is right, and so is that of the native frames.
pub(super) fn merged(
    native: &[Frame],
    evaluates: impl Fn(&Frame) -> bool,
    python: &[Frame],
    ends: &[usize],
    is_native_whole: bool,
    is_python_whole: bool,
) -> Vec<Frame> {
    let calls = native.iter().filter(|frame| evaluates(frame)).count();
    let mut merged = Vec::with_capacity(native.len() + python.len());
    let ends_last = ends.last().copied().unwrap_or(0);
    let groups = ends.len() + usize::from(ends_last < python.len());
    let is_told = calls == groups || !is_native_whole || (!is_python_whole && groups < calls);
    if is_told {
        let mut told = 0;
        let mut ends = ends.iter().copied().chain([python.len()]);
        for frame in native {
            merged.push(*frame);
            if evaluates(frame)
                && let Some(end) = ends.next()
            {
                merged.extend(python.get(told..end).unwrap_or_default());
                told = told.max(end);
            }
        }
        // The calls that evaluate these are among the missing frames.
        merged.extend(python.get(told..).unwrap_or_default());
        return merged;
    }
    // Without any call the functions have no place.
    let outermost = native
        .iter()
        .rposition(evaluates)
        .map_or(native.len(), |at| at + 1);
    let (inner, outer) = native.split_at(outermost);
    merged.extend(inner);
    if calls > 0 {
        merged.extend(python);
    }
    merged.extend(outer);
    merged
}
