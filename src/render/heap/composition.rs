//! What the heap's memory is used for: a bar and a table, whose rows say what the bar's pieces are.

use crate::report::HeapSums;
use crate::units::ByteSize;
use crate::units::Exact;

use super::super::style::Line;
use super::super::style::Tone;
use super::super::table::Cell;
use super::super::table::Column;
use super::super::table::Table;
use super::super::words;

/// Widest bar, in columns.
const WIDEST_BAR: usize = 100;

/// A part of the heap: its character in the bar, its name, bytes, and what there is to say of it.
struct Part {
    mark: char,
    tone: Tone,
    name: &'static str,
    bytes: u64,
    note: String,
}

/// The bar and the table; nothing for an empty heap.
pub(super) fn lines(sums: &HeapSums, width: usize) -> Vec<Line> {
    if sums.obtained_bytes == 0 {
        return Vec::new();
    }
    let (parts, whole, heading) = match parts_in_memory(sums) {
        Some((parts, whole)) => (parts, whole, "in memory"),
        None => (parts_obtained(sums), sums.obtained_bytes, "obtained"),
    };
    let mut lines = vec![bar(&parts, whole, width.min(WIDEST_BAR))];
    lines.extend(table(&parts, whole, heading).lines(width));
    lines
}

/// What of the heap is in memory, by what would become of it; `None` when that is not known.
fn parts_in_memory(sums: &HeapSums) -> Option<(Vec<Part>, u64)> {
    let whole = sums.resident_bytes?;
    let in_use = sums.resident_in_use_bytes?;
    // What of cached chunks is in memory is not known; all of it was in use once.
    let cached = sums.cached_bytes.min(in_use);
    let parts = vec![
        Part {
            mark: '█',
            tone: Tone::Growth,
            name: "in use",
            bytes: in_use - cached,
            note: in_use_note(sums),
        },
        Part {
            mark: '▓',
            tone: Tone::Plain,
            name: "thread caches",
            bytes: cached,
            note: chunks(sums.cached_chunks),
        },
        Part {
            mark: '▒',
            tone: Tone::Warning,
            name: "fragmented",
            bytes: sums.fragmented_bytes?,
            note: "free, in pages that also hold chunks in use".to_owned(),
        },
        Part {
            mark: '·',
            tone: Tone::Plain,
            name: "out of reach",
            bytes: sums.out_of_reach_bytes?,
            note: "free, but malloc_trim passes over it".to_owned(),
        },
        Part {
            mark: '░',
            tone: Tone::Shrinkage,
            name: "trimmable",
            bytes: sums.trimmable_bytes?,
            note: "malloc_trim(0) would return it now".to_owned(),
        },
    ];
    Some((parts, whole))
}

/// What of it the chunks make up, in memory or not.
fn parts_obtained(sums: &HeapSums) -> Vec<Part> {
    vec![
        Part {
            mark: '█',
            tone: Tone::Growth,
            name: "in use",
            bytes: sums.in_use_bytes,
            note: in_use_note(sums),
        },
        Part {
            mark: '▓',
            tone: Tone::Plain,
            name: "in thread caches",
            bytes: sums.cached_bytes,
            note: chunks(sums.cached_chunks),
        },
        Part {
            mark: '▒',
            tone: Tone::Warning,
            name: "in bins",
            bytes: sums.binned_bytes,
            note: chunks(sums.binned_chunks),
        },
        Part {
            mark: '░',
            tone: Tone::Shrinkage,
            name: "top",
            bytes: sums.top_bytes,
            note: String::new(),
        },
    ]
}

fn chunks(number: u64) -> String {
    let noun = if number == 1 { "chunk" } else { "chunks" };
    format!("{} {noun}", Exact(number))
}

fn in_use_note(sums: &HeapSums) -> String {
    let alone = match sums.mapped_chunks {
        0 => String::new(),
        number => format!(
            ", {} mapped alone ({})",
            Exact(number),
            ByteSize(sums.mapped_bytes)
        ),
    };
    format!("{}{alone}", chunks(sums.in_use_chunks))
}

/// One line in which each part has the width that is its share; what is there has a column at least.
fn bar(parts: &[Part], whole: u64, width: usize) -> Line {
    let mut line = Line::default();
    let mut left = width;
    let mut rest: Vec<&Part> = parts.iter().filter(|part| part.bytes > 0).collect();
    // The smallest first, as each gets a column however small: what is left is for the others.
    let mut columns = Vec::new();
    rest.sort_by_key(|part| part.bytes);
    let mut bytes_left = whole.max(
        rest.iter()
            .fold(0_u64, |sum, part| sum.saturating_add(part.bytes)),
    );
    for part in rest {
        let share = words::share(part.bytes, bytes_left).unwrap_or(0.0);
        let taken = columns_of(share, left).clamp(1, left.max(1));
        columns.push((part.mark, taken));
        left = left.saturating_sub(taken);
        bytes_left = bytes_left.saturating_sub(part.bytes);
    }
    for part in parts {
        if let Some((_, taken)) = columns.iter().find(|(mark, _)| *mark == part.mark) {
            line.push(part.tone, &part.mark.to_string().repeat(*taken));
        }
    }
    line
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of some hundred columns"
)]
fn columns_of(share: f64, width: usize) -> usize {
    (share * width as f64).round() as usize
}

fn table(parts: &[Part], whole: u64, heading: &'static str) -> Table {
    let mut table = Table::new(vec![
        Column::words("").space(0),
        Column::words("heap").space(1),
        Column::number(heading),
        Column::number(""),
        Column::words("").rank(1),
    ]);
    table.row(vec![
        Cell::plain(""),
        Cell::of(Tone::Strong, "all"),
        Cell::plain(ByteSize(whole)),
    ]);
    for part in parts.iter().filter(|part| part.bytes > 0) {
        let share = words::share(part.bytes, whole);
        table.row(vec![
            Cell::of(part.tone, &part.mark.to_string()),
            Cell::plain(part.name),
            Cell::plain(ByteSize(part.bytes)),
            Cell::plain(share.map_or_else(|| "–".to_owned(), words::percent)),
            Cell::of(Tone::Faint, &part.note),
        ]);
    }
    table
}

/// What malloc has of the kernel, in memory or not, and what its chunks make of it; `None` where the table says so.
pub(super) fn obtained(sums: &HeapSums) -> Option<String> {
    if sums.obtained_bytes == 0 || parts_in_memory(sums).is_none() {
        return None;
    }
    Some(format!(
        "{}: {}",
        ByteSize(sums.obtained_bytes),
        in_words(&parts_obtained(sums))
    ))
}

/// `2.58 MiB in use, 53 KiB in thread caches`, without what is nothing.
fn in_words(parts: &[Part]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .filter(|part| part.bytes > 0)
        .map(|part| format!("{} {}", ByteSize(part.bytes), part.name))
        .collect();
    parts.join(", ")
}
