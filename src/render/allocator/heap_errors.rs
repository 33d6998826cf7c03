//! Errors in the program's use of its heap, in plain words.

use crate::event::FoundBy;
use crate::event::HeapError;
use crate::event::HeapErrorKind;
use crate::report::FoundHeapError;
use crate::report::HeapErrorCount;
use crate::report::Report;
use crate::units::ByteSize;

use super::Paragraph;
use crate::render::call_paths;
use crate::render::style::Line;
use crate::render::style::Tone;
use crate::render::words;

/// Heap errors listed unless all are asked for.
const LISTED_ERRORS: usize = 3;

/// A part of what is said of heap errors.
pub(in crate::render) enum HeapErrorPart {
    /// Text that is wrapped.
    Paragraph(Paragraph),
    /// Lines as they are.
    Stack(Vec<Line>),
}

impl HeapErrorPart {
    fn of(tone: Tone, lead: &'static str, text: String) -> Self {
        Self::Paragraph(Paragraph::of(tone, lead, text))
    }
}

/// What went wrong in the heaps of all processes: how much, then each with its stacks, then what to do.
pub(in crate::render) fn heap_errors(report: &Report, verbose: bool) -> Vec<HeapErrorPart> {
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
    let mut paragraphs = vec![HeapErrorPart::of(
        Tone::Warning,
        "",
        format!(
            "breaktrace: heap {}: {}",
            if total == 1 { "error" } else { "errors" },
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
        paragraphs.push(HeapErrorPart::of(Tone::Plain, "  ", text));
        paragraphs.extend(stacks_of(report, found, verbose));
    }
    let rest = total.saturating_sub(kept.len().min(listed) as u64);
    if rest > 0 {
        let text = words::count(rest, "more error", "more errors");
        paragraphs.push(HeapErrorPart::of(Tone::Faint, "  ", text));
    }
    let is_guarded = allocators().any(|a| a.setup.as_ref().is_some_and(|setup| setup.guard));
    if !is_guarded {
        let text =
            "--guard finds more: it puts red zones around blocks, and keeps freed ones aside";
        paragraphs.push(HeapErrorPart::of(Tone::Plain, "  ", text.to_owned()));
    }
    let takes_samples = allocators().any(|allocator| {
        let setup = allocator.setup.as_ref();
        setup.is_some_and(|setup| setup.sample_interval_bytes == 1)
    });
    if !takes_samples && report.stacks.is_some() {
        let text = "--sample-allocations 1 tells where the blocks were allocated and freed";
        paragraphs.push(HeapErrorPart::of(Tone::Plain, "  ", text.to_owned()));
    }
    paragraphs
}

/// Where the error was found, and where its block comes from, as far as stacks were recorded.
fn stacks_of(report: &Report, found: &FoundHeapError, verbose: bool) -> Vec<HeapErrorPart> {
    let mut parts = Vec::new();
    for (lead, what, stack) in [
        ("    found by      ", "    found by", found.stack),
        ("    freed by      ", "    freed by", found.freed_stack),
        (
            "    allocated by  ",
            "    allocated by",
            found.allocated_stack,
        ),
    ] {
        if verbose {
            let lines = call_paths::stack_lines(report, stack, "      ");
            if !lines.is_empty() {
                parts.push(HeapErrorPart::Stack(vec![Line::of(Tone::Faint, what)]));
                parts.push(HeapErrorPart::Stack(lines));
            }
        } else if let Some(chain) = call_paths::chain(report, stack) {
            parts.push(HeapErrorPart::of(Tone::Plain, lead, chain));
        }
    }
    parts
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

/// One error in words: which block, what happened to it, where that was noticed, when.
fn heap_error(found: &FoundHeapError, several_processes: bool) -> String {
    let error = &found.error;
    let what = match error.kind {
        HeapErrorKind::DoubleFree => {
            let what = given_again(error.found_by);
            format!("{} was {what}", block(error))
        }
        HeapErrorKind::ForeignPointer => {
            let what = given(error.found_by);
            format!("{} was {what}, and malloc never gave it", error.address)
        }
        HeapErrorKind::WritePastEnd => {
            let past = written_at(error)
                .zip(error.size_bytes)
                .and_then(|(offset, size)| u64::try_from(offset).ok()?.checked_sub(size))
                .filter(|&past| past > 0);
            let how_far = past.map_or_else(String::new, |past| format!("{} ", ByteSize(past)));
            format!("{} was written {how_far}past its end", block(error))
        }
        HeapErrorKind::WriteBeforeStart => {
            let how_far = match written_at(error) {
                Some(offset @ i64::MIN..0) => format!("{} ", ByteSize(offset.unsigned_abs())),
                _ => String::new(),
            };
            format!("{} was written {how_far}before its start", block(error))
        }
        HeapErrorKind::WriteAfterFree => {
            let place = match written_at(error) {
                Some(offset @ 0..) => format!(" at byte {offset}"),
                _ => String::new(),
            };
            format!("{} was written{place} after it was freed", block(error))
        }
        HeapErrorKind::RecordsChanged => {
            format!(
                "malloc's own records at {} were written over",
                error.address
            )
        }
    };
    let is_said_already = matches!(
        error.kind,
        HeapErrorKind::DoubleFree | HeapErrorKind::ForeignPointer
    );
    let place = if is_said_already {
        ""
    } else {
        noticed(error.found_by)
    };
    let who = match (error.tid, several_processes) {
        (Some(tid), _) if tid != found.pid => format!(" by thread {tid}"),
        (_, true) => format!(" by pid {}", found.pid),
        _ => String::new(),
    };
    format!(
        "{what}{place}{who}, at {}",
        words::duration(found.time_ns.0)
    )
}

fn block(error: &HeapError) -> String {
    match error.size_bytes {
        Some(bytes) => format!("the block of {} at {}", ByteSize(bytes), error.address),
        None => format!("the block at {}", error.address),
    }
}

/// How far from the block's start the first changed byte is.
fn written_at(error: &HeapError) -> Option<i64> {
    error
        .changed
        .map(|changed| changed.offset_from(error.address))
}

fn given(to: FoundBy) -> &'static str {
    match to {
        FoundBy::Realloc => "given to realloc",
        FoundBy::UsableSize => "given to malloc_usable_size",
        FoundBy::Free | FoundBy::Malloc | FoundBy::Quarantine | FoundBy::Exit => "freed",
    }
}

fn given_again(to: FoundBy) -> &'static str {
    match to {
        FoundBy::Realloc => "given to realloc after it was freed",
        FoundBy::UsableSize => "given to malloc_usable_size after it was freed",
        FoundBy::Free | FoundBy::Malloc | FoundBy::Quarantine | FoundBy::Exit => {
            "freed a second time"
        }
    }
}

fn noticed(place: FoundBy) -> &'static str {
    match place {
        FoundBy::Free => "; noticed in free",
        FoundBy::Realloc => "; noticed in realloc",
        FoundBy::Malloc => "; noticed in malloc",
        FoundBy::Quarantine => "; noticed when it left the quarantine",
        FoundBy::UsableSize => "; noticed in malloc_usable_size",
        FoundBy::Exit => "; noticed when the heap was looked through",
    }
}
