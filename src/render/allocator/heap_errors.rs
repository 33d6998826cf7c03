//! Errors in the program's use of its heap, in plain words.

use crate::event::FoundBy;
use crate::event::HeapErrorKind;
use crate::report::FoundHeapError;
use crate::report::HeapErrorCount;
use crate::report::Report;
use crate::units::ByteSize;

use super::Paragraph;
use crate::render::style::Tone;
use crate::render::words;

/// Heap errors listed unless all are asked for.
const LISTED_ERRORS: usize = 3;

/// What went wrong in the heaps of all processes: how much, then each, then what to do.
pub(in crate::render) fn heap_errors(report: &Report, verbose: bool) -> Vec<Paragraph> {
    let allocators = || {
        let spaces = report.address_spaces.iter();
        spaces.filter_map(|space| space.allocator.as_ref())
    };
    let total = allocators().fold(0_u64, |sum, allocator| {
        sum.saturating_add(allocator.heap_errors.total)
    });
    if total == 0 {
        return Vec::new();
    }
    let mut counts: Vec<HeapErrorCount> = Vec::new();
    for count in allocators().flat_map(|allocator| &allocator.heap_errors.by_kind) {
        match counts.iter_mut().find(|known| known.kind == count.kind) {
            Some(known) => known.errors = known.errors.saturating_add(count.errors),
            None => counts.push(*count),
        }
    }
    let kinds: Vec<String> = counts.iter().map(count_of_kind).collect();
    let mut paragraphs = vec![Paragraph::of(
        Tone::Warning,
        "",
        format!(
            "breaktrace: {} in the program's heap: {}",
            words::count(total, "error", "errors"),
            kinds.join(", ")
        ),
    )];
    let kept: Vec<&FoundHeapError> = allocators()
        .flat_map(|allocator| &allocator.heap_errors.kept)
        .collect();
    let listed = if verbose { kept.len() } else { LISTED_ERRORS };
    let several = report.processes.len() > 1;
    for found in kept.iter().take(listed) {
        let text = heap_error(found, several);
        paragraphs.push(Paragraph::of(Tone::Plain, "  ", text));
    }
    let rest = total.saturating_sub(kept.len().min(listed) as u64);
    if rest > 0 {
        let text = words::count(rest, "more error", "more errors");
        paragraphs.push(Paragraph::of(Tone::Faint, "  ", text));
    }
    let is_guarded = allocators().any(|a| a.setup.as_ref().is_some_and(|setup| setup.guard));
    if !is_guarded {
        let text = "--guard finds more, and sooner: it puts red zones around blocks and keeps freed ones aside";
        paragraphs.push(Paragraph::of(Tone::Plain, "  ", text.to_owned()));
    }
    paragraphs
}

fn count_of_kind(count: &HeapErrorCount) -> String {
    let (singular, plural) = match count.kind {
        HeapErrorKind::DoubleFree => ("double free", "double frees"),
        HeapErrorKind::ForeignPointer => ("free of a foreign pointer", "frees of foreign pointers"),
        HeapErrorKind::WritePastEnd => ("write past a block's end", "writes past a block's end"),
        HeapErrorKind::WriteBeforeStart => (
            "write before a block's start",
            "writes before a block's start",
        ),
        HeapErrorKind::WriteAfterFree => ("write after free", "writes after free"),
        HeapErrorKind::RecordsChanged => (
            "write over malloc's own records",
            "writes over malloc's own records",
        ),
    };
    words::count(count.errors, singular, plural)
}

/// One error in words: which block, what happened to it, where that was noticed.
fn heap_error(found: &FoundHeapError, several_processes: bool) -> String {
    let error = &found.error;
    let address = error.address;
    let block = match error.size_bytes {
        Some(bytes) => format!("the block of {} at {address}", ByteSize(bytes)),
        None => format!("the block at {address}"),
    };
    let offset = error.changed.map(|changed| changed.offset_from(address));
    let what = match error.kind {
        HeapErrorKind::DoubleFree => format!("{block} was freed a second time"),
        HeapErrorKind::ForeignPointer => format!("{address} was freed, and malloc never gave it"),
        HeapErrorKind::WritePastEnd => {
            let past = offset
                .zip(error.size_bytes)
                .and_then(|(offset, size)| u64::try_from(offset).ok()?.checked_sub(size));
            match past {
                Some(0) => format!("{block} was written past its end, from the first byte on"),
                Some(past) => format!("{block} was written past its end, {} on", ByteSize(past)),
                None => format!("{block} was written past its end"),
            }
        }
        HeapErrorKind::WriteBeforeStart => match offset {
            Some(offset @ i64::MIN..0) => format!(
                "{block} was written before its start, {} below it",
                ByteSize(offset.unsigned_abs())
            ),
            _ => format!("{block} was written before its start"),
        },
        HeapErrorKind::WriteAfterFree => match offset {
            Some(offset @ 0..) => {
                format!("{block} was written to after it was freed, at byte {offset}")
            }
            _ => format!("{block} was written to after it was freed"),
        },
        HeapErrorKind::RecordsChanged => {
            format!("malloc's own records at {address} were written over")
        }
    };
    let place = match error.found_by {
        FoundBy::Free => "noticed in free",
        FoundBy::Realloc => "noticed in realloc",
        FoundBy::Malloc => "noticed in malloc",
        FoundBy::Quarantine => "noticed when it left the quarantine",
        FoundBy::UsableSize => "noticed in malloc_usable_size",
        FoundBy::Exit => "noticed when the heap was looked through at the end",
    };
    let who = match (error.tid, several_processes) {
        (Some(tid), _) if tid != found.pid => format!(" by thread {tid}"),
        (_, true) => format!(" by pid {}", found.pid),
        _ => String::new(),
    };
    format!("{what}; {place}{who}, {}", words::duration(found.time_ns.0))
}
