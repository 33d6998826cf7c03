//! The bundled allocator's own view: what it has of the kernel and where that is, what it was asked for, what went
//! wrong in the program's heap, and whether its account and the kernel's agree.

mod checks;
mod heap_errors;
mod samples;
#[cfg(test)]
pub(super) mod tests;

pub(super) use checks::checks;
pub(super) use heap_errors::HeapErrorPart;
pub(super) use heap_errors::heap_errors;
pub(super) use samples::samples;

use std::cmp::Reverse;

use crate::event::AbsenceReason;
use crate::event::AllocatorCause;
use crate::event::ClassReading;
use crate::event::HeapWalk;
use crate::event::ReadingMoment;
use crate::report::AllocatorClaims;
use crate::report::AllocatorReport;
use crate::report::InUseMeasure;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::Step;
use crate::report::StepFigures;
use crate::stats_page::Counters;
use crate::units::ByteSize;
use crate::units::Exact;

use super::style::Tone;
use super::table::Cell;
use super::table::Column;
use super::table::Table;
use super::verdict;
use super::words;

/// Sizes of blocks never freed that are listed unless all are asked for.
const LISTED_SIZES: usize = 4;
/// Bytes of a block's header, which are part of a class's size.
const HEADER_BYTES: u64 = 8;

/// A paragraph: what stands at the left edge of its first line, and its text.
pub(super) struct Paragraph {
    pub(super) tone: Tone,
    pub(super) lead: &'static str,
    pub(super) text: String,
}

impl Paragraph {
    fn of(tone: Tone, lead: &'static str, text: String) -> Self {
        Self { tone, lead, text }
    }
}

/// The figures as last read; `None` if there are none, or if nobody uses that allocator, for which a reason is known.
pub(super) fn last(space: &SpaceReport) -> Option<&Counters> {
    let allocator = space.allocator.as_ref()?;
    let counters = allocator.last.as_ref()?.figures.all()?;
    let is_unused = allocator.absence.is_some() && counters.allocated_blocks == 0;
    (!is_unused).then_some(counters)
}

/// What there is to say instead of figures, or of why they are not the whole story; `None` where there is nothing to
/// explain.
pub(super) fn instead_of_figures(space: &SpaceReport) -> Option<Paragraph> {
    let allocator = space
        .allocator
        .as_ref()
        // What was seen of the program's own malloc has a part of its own.
        .filter(|allocator| allocator.in_use_is == InUseMeasure::Requested)?;
    let has_figures = last(space).is_some();
    let text = match &allocator.absence {
        Some(absence) if has_figures => absence.message.clone(),
        Some(absence) => format!("no figures; {}", absence.message),
        None if has_figures => return None,
        None if allocator.name != "bundled" => {
            format!(
                "{}, which tells nothing of itself: this is the kernel's view",
                allocator.name
            )
        }
        None if allocator.setup.is_some() => {
            "bundled; its figures were never read, as no memory call of its own was seen".to_owned()
        }
        None => "bundled, and nothing was heard of it".to_owned(),
    };
    Some(Paragraph::of(Tone::Plain, "allocator ", text))
}

/// How many of several programs ran without the allocator, and why, besides the one that the report is about.
pub(super) fn absences(report: &Report) -> Option<String> {
    let mut reasons: Vec<(AbsenceReason, u64)> = Vec::new();
    let others = report
        .address_spaces
        .iter()
        .filter(|space| Some(space.id) != report.main_space);
    for space in others {
        let absence = space.allocator.as_ref().and_then(|a| a.absence.as_ref());
        let Some(absence) = absence else { continue };
        match reasons
            .iter_mut()
            .find(|(known, _)| *known == absence.reason)
        {
            Some((_, count)) => *count += 1,
            None => reasons.push((absence.reason, 1)),
        }
    }
    let total: u64 = reasons.iter().map(|(_, count)| count).sum();
    let words: Vec<String> = reasons
        .iter()
        .map(|&(reason, count)| format!("{count} {}", in_brief(reason)))
        .collect();
    (total > 0).then(|| {
        format!(
            "{} without the bundled allocator: {}",
            words::count(total, "program ran", "programs ran"),
            words.join(", ")
        )
    })
}

fn in_brief(reason: AbsenceReason) -> &'static str {
    match reason {
        AbsenceReason::StaticProgram => "linked statically",
        AbsenceReason::OtherLibc => "on another C library",
        AbsenceReason::OtherArchitecture => "for another architecture",
        AbsenceReason::SecureExecution => "with rights of its own",
        AbsenceReason::EnvironmentCleared => "started without LD_PRELOAD",
        AbsenceReason::OwnAllocator => "with its own malloc",
        AbsenceReason::NotBegun => "ended before it began",
        AbsenceReason::OtherVersion => "with that of another version",
        AbsenceReason::Unreadable => "with figures that cannot be read",
        AbsenceReason::Unknown => "for unknown reasons",
    }
}

/// What is obtained and where it is, as a sum.
pub(super) fn sum(report: &Report, space: &SpaceReport) -> Option<Table> {
    let counters = last(space)?;
    let end = match verdict::end_of(report, space).as_str() {
        "at exit" => "at exit",
        "at detach" => "at detach",
        "so far" => "now",
        _ => "end",
    };
    let mut table = Table::new(vec![
        Column::words("allocator").space(0),
        Column::number(end),
        Column::number(""),
        Column::words("").rank(2),
    ]);
    let mut row = |tone, name: &str, bytes: u64, note: String| {
        let share = words::share(bytes, counters.obtained_bytes);
        table.row(vec![
            Cell::of(tone, name),
            Cell::plain(ByteSize(bytes)),
            Cell::plain(share.map_or_else(|| "–".to_owned(), words::percent)),
            Cell::of(Tone::Faint, &note),
        ]);
    };
    let by_brk = counters
        .brk_grown_bytes
        .saturating_sub(counters.brk_shrunk_bytes);
    let by_mmap = counters
        .mapped_bytes
        .saturating_sub(counters.unmapped_bytes);
    row(
        Tone::Strong,
        "obtained",
        counters.obtained_bytes,
        with_peak(
            parts(&[(by_brk, "by brk"), (by_mmap, "by mmap")]),
            counters.obtained_peak_bytes,
        ),
    );
    row(
        Tone::Plain,
        "= in use",
        counters.in_use_bytes,
        with_peak(blocks(counters), counters.in_use_peak_bytes),
    );
    row(
        Tone::Plain,
        "+ overhead",
        counters.overhead_bytes,
        parts(&[
            (counters.block_overhead_bytes, "headers, rounding"),
            (counters.record_bytes, "records"),
        ]),
    );
    row(
        Tone::Plain,
        "+ free",
        counters.free_bytes,
        parts(&[
            (counters.free_chunk_bytes, "bins"),
            (counters.free_slab_bytes, "slabs"),
            (counters.cached_bytes, "caches"),
        ]),
    );
    let arenas = if counters.arenas > 1 {
        format!("of {} arenas", counters.arenas)
    } else {
        String::new()
    };
    row(Tone::Plain, "+ top", counters.top_bytes, arenas);
    Some(table)
}

/// `50.1 MiB bins, 12 KiB caches`, without what is nothing.
fn parts(parts: &[(u64, &str)]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, name)| format!("{} {name}", ByteSize(*bytes)))
        .collect();
    parts.join(", ")
}

fn with_peak(mut note: String, peak: u64) -> String {
    if !note.is_empty() {
        note.push_str("; ");
    }
    format!("{note}peak {}", ByteSize(peak))
}

fn blocks(counters: &Counters) -> String {
    let noun = if counters.live_blocks == 1 {
        "block"
    } else {
        "blocks"
    };
    let large = match counters.live_large_blocks {
        0 => String::new(),
        large => format!(", {} mapped alone", Exact(large)),
    };
    format!("{} {noun}{large}", Exact(counters.live_blocks))
}

/// What the numbers say of malloc: the claims with which the project began, and further facts on lines of their own.
pub(super) fn findings(report: &Report, space: &SpaceReport, verbose: bool) -> Vec<Paragraph> {
    let (Some(allocator), Some(counters)) = (&space.allocator, last(space)) else {
        return Vec::new();
    };
    let mut texts: Vec<(&'static str, String)> = Vec::new();
    if let Some(claims) = &allocator.claims {
        texts.extend(claim_texts(counters, claims).map(|text| ("· ", text)));
    }
    texts.push(("requests  ", requests(counters)));
    let not_freed = allocator
        .walk
        .as_ref()
        .map(|walk| not_freed(report, space, walk, verbose))
        .or_else(|| not_freed_by_classes(report, space, allocator, verbose));
    texts.extend(not_freed.map(|text| ("not freed ", text)));
    if report.recording.capture.leaks {
        texts.push(("lost      ", lost(allocator.walk.as_ref())));
    }
    if let Some(text) = settings(allocator, verbose) {
        texts.push(("policy    ", text));
    }
    let odd = odd_events(counters);
    if !odd.is_empty() {
        texts.push(("oddities  ", odd.join("; ")));
    }
    if verbose {
        texts.push(("inside    ", inside(counters)));
    }
    texts
        .into_iter()
        .map(|(lead, text)| Paragraph::of(Tone::Plain, lead, text))
        .collect()
}

fn claim_texts(counters: &Counters, claims: &AllocatorClaims) -> impl Iterator<Item = String> {
    let calls = match claims.requests_per_kernel_call {
        Some(ratio) if ratio >= 9.95 => format!(" (1 in {})", Exact(rounded(ratio))),
        Some(ratio) if ratio >= 1.05 => format!(" (1 in {ratio:.1})"),
        _ => String::new(),
    };
    let requests = format!(
        "malloc is no system call: {}, {}{calls}",
        exact_count(claims.requests, "request", "requests"),
        exact_count(claims.kernel_calls, "kernel call", "kernel calls"),
    );
    let more = claims.obtained_per_in_use.map(|ratio| {
        format!(
            "It holds more than you ask: {} for {} in use, {} as much",
            ByteSize(counters.obtained_bytes),
            ByteSize(counters.in_use_bytes),
            times(ratio),
        )
    });
    let back = (claims.freed_bytes > 0).then(|| {
        let advised = match claims.advised_bytes {
            0 => String::new(),
            bytes => format!(", pages of {} advised away", ByteSize(bytes)),
        };
        let kept = match counters.free_bytes {
            0 => String::new(),
            bytes => format!(", {} kept", ByteSize(bytes)),
        };
        let freed = ByteSize(claims.freed_bytes);
        if claims.returned_bytes == 0 && claims.advised_bytes == 0 {
            format!("free gave nothing back: {freed} freed, none of it returned{kept}")
        } else {
            format!(
                "free is not giving back: {freed} freed, {} returned{advised}{kept}",
                ByteSize(claims.returned_bytes),
            )
        }
    });
    [Some(requests), more, back].into_iter().flatten()
}

fn exact_count(number: u64, singular: &str, plural: &str) -> String {
    let noun = if number == 1 { singular } else { plural };
    format!("{} {noun}", Exact(number))
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a ratio of counts, shown to the unit"
)]
fn rounded(ratio: f64) -> u64 {
    ratio.round() as u64
}

/// `1.06 times`, `2.6 times`, `12 times`.
fn times(ratio: f64) -> String {
    if ratio < 1.995 {
        format!("{ratio:.2} times")
    } else if ratio < 9.95 {
        format!("{ratio:.1} times")
    } else {
        format!("{} times", Exact(rounded(ratio)))
    }
}

fn requests(counters: &Counters) -> String {
    let mut kinds = vec![format!("{} malloc", Exact(counters.malloc_calls))];
    let mut add = |number: u64, what: &str| {
        if number > 0 {
            kinds.push(format!("{} {what}", Exact(number)));
        }
    };
    add(counters.calloc_calls, "calloc");
    add(counters.aligned_calls, "aligned");
    let in_place = format!("realloc ({} in place)", Exact(counters.realloc_in_place));
    add(counters.realloc_calls, &in_place);
    let hits = counters.cache_hits.saturating_add(counters.cache_misses);
    let cache = words::share(counters.cache_hits, hits).map_or_else(String::new, |share| {
        format!("; {} from caches", words::percent(share))
    });
    format!(
        "{}; {} freed{cache}",
        kinds.join(", "),
        Exact(counters.freed_blocks),
    )
}

fn not_freed(report: &Report, space: &SpaceReport, walk: &HeapWalk, verbose: bool) -> String {
    if walk.live_blocks == 0 && walk.complete {
        return "nothing: every block was freed".to_owned();
    }
    let incomplete = match (&walk.stopped, walk.complete) {
        (Some(reason), false) => format!("; the heap was not looked through whole: {reason}"),
        (None, false) => "; the heap was not looked through whole".to_owned(),
        (_, true) => String::new(),
    };
    let listed = if verbose {
        walk.largest.len()
    } else {
        LISTED_SIZES
    };
    let mut sizes: Vec<String> = walk
        .largest
        .iter()
        .take(listed)
        .map(|size| format!("{} of {}", Exact(size.blocks), ByteSize(size.size_bytes)))
        .collect();
    if walk.largest.len() > listed {
        sizes.push("…".to_owned());
    }
    let sizes = if sizes.is_empty() {
        String::new()
    } else {
        format!(": {}", sizes.join(", "))
    };
    format!(
        "{} with {} {}{sizes}{incomplete}",
        exact_count(walk.live_blocks, "block", "blocks"),
        ByteSize(walk.live_bytes),
        verdict::end_of(report, space),
    )
}

/// The same by the counters alone, which know the sizes of small blocks by class; `None` when they were read in the midst
/// of things.
/// What of the blocks never freed nothing points to any more.
fn lost(walk: Option<&HeapWalk>) -> String {
    let Some(leaks) = walk.and_then(|walk| walk.leaks.as_ref()) else {
        return "not searched: the program did not stand still at its end, or goes on".to_owned();
    };
    if let Some(why) = &leaks.stopped {
        return format!("not known: {why}");
    }
    let mut doubts = String::new();
    if let (Some(blocks @ 1..), Some(bytes)) =
        (leaks.possibly_lost_blocks, leaks.possibly_lost_bytes)
    {
        doubts.push_str(&format!(
            "; to {} with {} only pointers to their inside lead",
            exact_count(blocks, "block", "blocks"),
            ByteSize(bytes)
        ));
    }
    if let Some(bytes @ 1..) = leaks.unreadable_bytes {
        doubts.push_str(&format!(
            "; {} of memory could not be read, and pointers in it are not known",
            ByteSize(bytes)
        ));
    }
    if leaks.lost_blocks == 0 {
        return format!("nothing: a pointer leads to each block that was not freed{doubts}");
    }
    let sizes: Vec<String> = leaks
        .largest
        .iter()
        .take(LISTED_SIZES)
        .map(|size| format!("{} of {}", Exact(size.blocks), ByteSize(size.size_bytes)))
        .collect();
    format!(
        "{} with {}, to which no pointer leads: {}{}{doubts}",
        exact_count(leaks.lost_blocks, "block", "blocks"),
        ByteSize(leaks.lost_bytes),
        sizes.join(", "),
        if leaks.largest.len() > LISTED_SIZES {
            ", …"
        } else {
            ""
        }
    )
}

fn not_freed_by_classes(
    report: &Report,
    space: &SpaceReport,
    allocator: &AllocatorReport,
    verbose: bool,
) -> Option<String> {
    let last = allocator.last.as_ref()?;
    if last.moment == ReadingMoment::Call {
        return None;
    }
    let counters = last.figures.all()?;
    if counters.live_blocks == 0 {
        return Some("nothing: every block was freed".to_owned());
    }
    let mut classes: Vec<&ClassReading> = allocator
        .classes
        .iter()
        .filter(|class| class.live > 0)
        .collect();
    classes.sort_by_key(|class| Reverse(class.live.saturating_mul(class.block_bytes)));
    let listed = if verbose { classes.len() } else { LISTED_SIZES };
    let mut sizes: Vec<String> = classes
        .iter()
        .take(listed)
        .map(|class| {
            let most = class.block_bytes.saturating_sub(HEADER_BYTES);
            format!("{} up to {}", Exact(class.live), ByteSize(most))
        })
        .collect();
    if classes.len() > listed {
        sizes.push("…".to_owned());
    }
    let sizes = if sizes.is_empty() {
        String::new()
    } else {
        format!("; of the small ones {}", sizes.join(", "))
    };
    Some(format!(
        "{} with {} {}{sizes}",
        exact_count(counters.live_blocks, "block", "blocks"),
        ByteSize(counters.in_use_bytes),
        verdict::end_of(report, space),
    ))
}

/// The policy in words; all settings if they are asked for.
fn settings(allocator: &AllocatorReport, verbose: bool) -> Option<String> {
    let setup = allocator.setup.as_ref()?;
    let meaning = match setup.policy.as_str() {
        "never" => ": the break never goes back".to_owned(),
        "trim" => format!(
            ": what lies at the top goes back beyond {}",
            ByteSize(setup.trim_threshold_bytes)
        ),
        "eager" => ": the top goes back at once, free pages below by madvise".to_owned(),
        _ => String::new(),
    };
    let guard = if setup.guard {
        "; guard on: red zones and a quarantine add to the overhead"
    } else {
        ""
    };
    let all = if verbose {
        format!(
            "; blocks from {} on are mapped, {} are obtained ahead, {} at most; version {}, page at {}{}",
            ByteSize(setup.mmap_threshold_bytes),
            ByteSize(setup.top_pad_bytes),
            words::count(u64::from(setup.arena_max), "arena", "arenas"),
            setup.version,
            setup.page,
            if setup.abort_on_heap_error {
                "; a heap error aborts the program"
            } else {
                ""
            },
        )
    } else {
        String::new()
    };
    Some(format!("{}{meaning}{guard}{all}", setup.policy))
}

/// What does not happen in every program, and is said only when it did.
fn odd_events(counters: &Counters) -> Vec<String> {
    let mut odd = Vec::new();
    let mut add = |number: u64, singular: &str, plural: &str| {
        if number > 0 {
            odd.push(exact_count(number, singular, plural));
        }
    };
    add(
        counters.failed_requests,
        "request failed",
        "requests failed",
    );
    add(counters.brk_refused, "brk was refused", "brks were refused");
    add(
        counters.foreign_break_moves,
        "time somebody else had moved the break",
        "times somebody else had moved the break",
    );
    add(
        counters.lock_waits,
        "wait for another thread's lock",
        "waits for another thread's lock",
    );
    odd
}

fn inside(counters: &Counters) -> String {
    let number = |number: u64, singular: &str, plural: &str| exact_count(number, singular, plural);
    [
        number(counters.splits, "split", "splits"),
        number(counters.coalesces, "join", "joins"),
        number(counters.slabs_made, "slab made", "slabs made"),
        format!("{} given up", Exact(counters.slabs_released)),
        number(
            counters.free_chunks,
            "free chunk in bins",
            "free chunks in bins",
        ),
        number(counters.trims, "trim", "trims"),
        number(counters.arenas, "arena", "arenas"),
        number(counters.thread_caches, "thread cache", "thread caches"),
    ]
    .join(", ")
}

/// How the memory was shared out when most was obtained, and the size classes in use: for those who ask for all.
pub(super) fn details(space: &SpaceReport) -> Vec<Table> {
    let Some(allocator) = &space.allocator else {
        return Vec::new();
    };
    let mut tables = Vec::new();
    if let Some(largest) = &allocator.largest
        && let Some(counters) = largest.figures.all()
    {
        let mut table = Table::new(vec![
            Column::words("most seen").space(0),
            Column::number("at"),
            Column::number("obtained"),
            Column::number("= in use"),
            Column::number("+ overhead"),
            Column::number("+ free"),
            Column::number("+ top"),
        ]);
        table.row(vec![
            Cell::plain(""),
            Cell::plain(words::duration(largest.time_ns.0)),
            Cell::plain(ByteSize(counters.obtained_bytes)),
            Cell::plain(ByteSize(counters.in_use_bytes)),
            Cell::plain(ByteSize(counters.overhead_bytes)),
            Cell::plain(ByteSize(counters.free_bytes)),
            Cell::plain(ByteSize(counters.top_bytes)),
        ]);
        tables.push(table);
    }
    if !allocator.classes.is_empty() {
        let mut table = Table::new(vec![
            Column::number("small blocks").space(0),
            Column::number("handed out"),
            Column::number("not freed"),
            Column::number("in caches"),
            Column::number("in slabs"),
        ]);
        for class in &allocator.classes {
            table.row(vec![
                Cell::plain(ByteSize(class.block_bytes)),
                Cell::plain(Exact(class.allocated)),
                Cell::plain(Exact(class.live)),
                Cell::plain(Exact(class.cached)),
                Cell::plain(Exact(class.free)),
            ]);
        }
        tables.push(table);
    }
    tables
}

/// Columns that tell why steps were made and how the allocator stood before.
pub(super) fn step_columns() -> Vec<Column> {
    vec![
        Column::words("why"),
        Column::number("in use").rank(4),
        Column::number("free").rank(2),
        Column::number("top").rank(3),
    ]
}

/// The cells of [`step_columns`].
pub(super) fn step_cells(step: &Step) -> Vec<Cell> {
    let figures = step.allocator.and_then(|call| call.figures);
    let size = |of: fn(&StepFigures) -> u64| {
        // Where somebody else moved the break, there is nothing to say.
        Cell::plain(figures.map_or_else(|| "–".to_owned(), |f| ByteSize(of(&f)).to_string()))
    };
    vec![
        Cell::plain(why(step)),
        size(|figures| figures.in_use_bytes),
        size(|figures| figures.free_bytes),
        size(|figures| figures.top_bytes),
    ]
}

/// What stands below the steps, so that nobody takes the figures for those after the step.
pub(super) const STEP_FIGURES_ARE: &str = "in use, free, top: just before the step";

/// Why a step was made, in a few letters: `for 16 KiB`.
fn why(step: &Step) -> String {
    let Some(call) = &step.allocator else {
        return "not malloc".to_owned();
    };
    match (call.cause, call.request_bytes) {
        (Some(AllocatorCause::Request), Some(bytes)) => format!("for {}", ByteSize(bytes)),
        (Some(AllocatorCause::Request), None) => "a request".to_owned(),
        (Some(AllocatorCause::Trim), _) => "trim".to_owned(),
        (Some(AllocatorCause::MallocTrim), _) => "malloc_trim".to_owned(),
        (Some(AllocatorCause::Eager), _) => "eager".to_owned(),
        (Some(AllocatorCause::Records), _) => "its records".to_owned(),
        (Some(AllocatorCause::Release), _) => "large block".to_owned(),
        (None, _) => "malloc".to_owned(),
    }
}
