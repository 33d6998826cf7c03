//! The textbook picture of an address space: high addresses at the top, each stretch with its size.
//!
//! Real address spaces have dozens of stretches; the picture folds what belongs together until it has as many rows as
//! there is room for. The heap, the gap above it, and the stack are never folded away.

use crate::report::LayoutSegment;
use crate::report::SegmentKind;
use crate::report::SpaceReport;
use crate::units::Address;
use crate::units::ByteSize;

use super::style::Line;
use super::style::Tone;
use super::table::Cell;
use super::table::Column;
use super::table::Table;
use super::words;

/// Gaps below this come from alignment and randomization, and tell nothing about room.
const SMALL_GAP: u64 = 1 << 30;
/// Addresses from here on are the kernel's half: only `[vsyscall]` ever shows there (x86-64, `Documentation/arch/x86`).
const KERNEL_HALF: Address = Address(1 << 63);
/// Columns of the widest bar: more would not make a logarithmic scale clearer.
const WIDEST_BAR: usize = 32;

/// One row of the picture.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    kinds: Vec<SegmentKind>,
    has_libraries: bool,
    bytes: u64,
    /// Whether this is the gap that the break can grow into.
    is_room: bool,
}

/// The picture in at most `max_rows` rows of at most `width` columns, from the highest address to the lowest; empty
/// when the layout is not known.
pub(super) fn picture(space: &SpaceReport, width: usize, max_rows: usize) -> Vec<Line> {
    let mut rows = rows_of(space);
    fold(&mut rows, max_rows);
    let labels: Vec<String> = rows.iter().map(label).collect();
    let label_width = labels.iter().map(|l| words::columns(l)).max().unwrap_or(0);
    let sizes: Vec<String> = rows
        .iter()
        .map(|row| ByteSize(row.bytes).to_string())
        .collect();
    let size_width = sizes.iter().map(|s| words::columns(s)).max().unwrap_or(0);
    let bar_width = width.saturating_sub(label_width + size_width + 4);
    let largest = rows
        .iter()
        .filter(|row| !row.is_gap())
        .map(|row| row.bytes)
        .max()
        .unwrap_or(0);
    rows.iter()
        .zip(labels.iter().zip(&sizes))
        .map(|(row, (label, size))| {
            let mut line = Line::of(row.tone(), label);
            line.pad_to(label_width + 2 + size_width - words::columns(size));
            line.push(row.tone(), size);
            line.push(Tone::Plain, "  ");
            line.push(row.tone(), &row.bar(bar_width, largest));
            line
        })
        .collect()
}

/// Every stretch with its addresses, from the highest to the lowest.
pub(super) fn every_segment(space: &SpaceReport, width: usize) -> Vec<Line> {
    let mut table = Table::new(vec![
        Column::words("what").space(0),
        Column::number("size"),
        Column::number("mappings").rank(1),
        Column::number("from"),
        Column::number("to"),
        Column::words("file").cuttable(),
    ]);
    for segment in space.layout.iter().rev() {
        let is_gap = segment.kind == SegmentKind::Gap;
        let tone = if is_gap { Tone::Faint } else { Tone::Plain };
        let mappings = if is_gap {
            String::new()
        } else {
            segment.mappings.to_string()
        };
        table.row(vec![
            Cell::of(tone, name(segment.kind, is_library(segment))),
            Cell::of(tone, &ByteSize(segment.bytes).to_string()),
            Cell::of(tone, &mappings),
            Cell::of(tone, &segment.start.to_string()),
            Cell::of(tone, &segment.end.to_string()),
            Cell::of(tone, segment.name.as_deref().unwrap_or_default()),
        ]);
    }
    table.lines(width)
}

/// The rows from top to bottom, before folding: neighbours of one region are sorted by what they are.
fn rows_of(space: &SpaceReport) -> Vec<Row> {
    let room = room_above_the_break(space);
    let mut rows = Vec::new();
    let mut region: Vec<&LayoutSegment> = Vec::new();
    let segments = space
        .layout
        .iter()
        .rev()
        .filter(|segment| segment.start < KERNEL_HALF)
        .skip_while(|segment| segment.kind == SegmentKind::Gap);
    for segment in segments {
        let is_room = room.is_some_and(|(start, _)| start == segment.start);
        match segment.kind {
            SegmentKind::Gap if segment.bytes < SMALL_GAP && !is_room => {}
            SegmentKind::Files
            | SegmentKind::Anonymous
            | SegmentKind::Shared
            | SegmentKind::Kernel => region.push(segment),
            _ => {
                close_region(&mut region, &mut rows);
                let mut row = Row::of(segment);
                if let Some((_, bytes)) = room.filter(|_| is_room) {
                    row.is_room = true;
                    row.bytes = bytes;
                }
                rows.push(row);
            }
        }
    }
    close_region(&mut region, &mut rows);
    // One program's code is split over several mappings; it is still one thing.
    rows.dedup_by(|lower, upper| {
        let is_same = lower.kinds == upper.kinds && !lower.is_gap();
        if is_same {
            upper.bytes = upper.bytes.saturating_add(lower.bytes);
        }
        is_same
    });
    rows
}

/// The start of the gap that the break can grow into, and the bytes from the break to its end.
fn room_above_the_break(space: &SpaceReport) -> Option<(Address, u64)> {
    let program_break = space.program_break.end?;
    space
        .layout
        .iter()
        .find(|segment| {
            // The last page of the heap is mapped whole, so the gap may begin a little above the break.
            let begins_below = segment.start.above(program_break) < (64 << 10);
            segment.kind == SegmentKind::Gap && begins_below && program_break < segment.end
        })
        .map(|gap| (gap.start, gap.end.above(program_break.max(gap.start))))
}

/// Turns a region of files and anonymous memory into one row for each kind that matters in it.
fn close_region(region: &mut Vec<&LayoutSegment>, rows: &mut Vec<Row>) {
    let total = region
        .iter()
        .fold(0, |sum: u64, segment| sum.saturating_add(segment.bytes));
    let kinds = [
        SegmentKind::Shared,
        SegmentKind::Anonymous,
        SegmentKind::Files,
        SegmentKind::Kernel,
    ];
    let mut of_kinds: Vec<Row> = kinds
        .into_iter()
        .filter_map(|kind| {
            region
                .iter()
                .filter(|segment| segment.kind == kind)
                .map(|segment| Row::of(segment))
                .reduce(Row::joined)
        })
        .collect();
    // What is little beside the rest of its region joins the largest.
    while let Some(index) = of_kinds
        .iter()
        .position(|row| row.bytes.saturating_mul(16) < total)
    {
        let little = of_kinds.remove(index);
        match of_kinds.iter_mut().max_by_key(|row| row.bytes) {
            Some(largest) => *largest = largest.clone().joined(little),
            None => break,
        }
    }
    rows.append(&mut of_kinds);
    region.clear();
}

/// Joins rows until there are at most `max_rows`, those first that tell least apart.
fn fold(rows: &mut Vec<Row>, max_rows: usize) {
    // The kernel's few pages are never worth a row of their own beside others.
    let is_kernel = |row: &Row| row.kinds == [SegmentKind::Kernel];
    join_where(rows, usize::MAX, |upper, lower| {
        is_kernel(upper) || is_kernel(lower)
    });
    let is_data = |row: &Row| {
        row.kinds
            .iter()
            .all(|kind| matches!(kind, SegmentKind::Data | SegmentKind::Bss))
    };
    let excess = |rows: &Vec<Row>| rows.len().saturating_sub(max_rows);
    join_where(rows, excess(rows), |upper, lower| {
        is_data(upper) && is_data(lower)
    });
    while excess(rows) > 0 {
        let smallest_pair = rows
            .windows(2)
            .enumerate()
            .filter(|(_, pair)| pair.iter().all(Row::may_be_folded))
            .min_by_key(|(_, pair)| pair[0].bytes.min(pair[1].bytes))
            .map(|(index, _)| index);
        let smallest_gap = rows
            .iter()
            .enumerate()
            .filter(|(_, row)| row.is_gap() && !row.is_room)
            .min_by_key(|(_, row)| row.bytes)
            .map(|(index, _)| index);
        match (smallest_pair, smallest_gap) {
            (Some(index), _) => join(rows, index),
            (None, Some(index)) => {
                rows.remove(index);
            }
            (None, None) => break,
        }
    }
}

/// Joins neighbouring rows without a gap between them where `is_wanted` holds, at most `times` times.
fn join_where(rows: &mut Vec<Row>, times: usize, is_wanted: impl Fn(&Row, &Row) -> bool) {
    for _ in 0..times {
        let pair = rows.windows(2).position(|pair| {
            !pair[0].is_gap() && !pair[1].is_gap() && is_wanted(&pair[0], &pair[1])
        });
        match pair {
            Some(index) => join(rows, index),
            None => break,
        }
    }
}

fn join(rows: &mut Vec<Row>, index: usize) {
    let lower = rows.remove(index + 1);
    rows[index] = rows[index].clone().joined(lower);
}

impl Row {
    fn of(segment: &LayoutSegment) -> Self {
        Self {
            kinds: vec![segment.kind],
            has_libraries: is_library(segment),
            bytes: segment.bytes,
            is_room: false,
        }
    }

    /// Both in one; the larger part names it first.
    fn joined(self, other: Self) -> Self {
        let (mut larger, smaller) = if self.bytes >= other.bytes {
            (self, other)
        } else {
            (other, self)
        };
        for kind in smaller.kinds {
            if !larger.kinds.contains(&kind) {
                larger.kinds.push(kind);
            }
        }
        larger.bytes = larger.bytes.saturating_add(smaller.bytes);
        larger.has_libraries |= smaller.has_libraries;
        larger
    }

    fn is_gap(&self) -> bool {
        self.kinds == [SegmentKind::Gap]
    }

    fn may_be_folded(&self) -> bool {
        !self.kinds.iter().any(|kind| {
            matches!(
                kind,
                SegmentKind::Gap | SegmentKind::Heap | SegmentKind::Stack
            )
        })
    }

    fn tone(&self) -> Tone {
        match self.kinds[..] {
            [SegmentKind::Heap] => Tone::Growth,
            [SegmentKind::Gap] if !self.is_room => Tone::Faint,
            _ => Tone::Plain,
        }
    }

    /// A bar to a logarithmic scale; for gaps, what they mean.
    fn bar(&self, width: usize, largest: u64) -> String {
        let meanings: &[&str] = match (self.is_gap(), self.is_room) {
            (true, true) => &[
                "room for the break to grow until the next mapping",
                "room for the break to grow",
                "room for the break",
                "room to grow",
                "room",
            ],
            (true, false) => &["nothing mapped", "unmapped"],
            (false, _) => return bar(self.bytes, largest, width.min(WIDEST_BAR)),
        };
        meanings
            .iter()
            .find(|meaning| meaning.len() <= width)
            .map_or_else(String::new, |meaning| (*meaning).to_owned())
    }
}

fn label(row: &Row) -> String {
    row.kinds
        .iter()
        .map(|&kind| name(kind, row.has_libraries))
        .collect::<Vec<_>>()
        .join(", ")
}

fn name(kind: SegmentKind, has_libraries: bool) -> &'static str {
    match kind {
        SegmentKind::Text => "text",
        SegmentKind::Data => "data",
        SegmentKind::Bss => "bss",
        SegmentKind::Heap => "heap",
        SegmentKind::Gap => "gap",
        SegmentKind::Files if has_libraries => "libraries",
        SegmentKind::Files => "files",
        SegmentKind::Anonymous => "mmap",
        SegmentKind::Shared => "shared",
        SegmentKind::Stack => "stack",
        SegmentKind::Kernel => "vdso",
    }
}

fn is_library(segment: &LayoutSegment) -> bool {
    segment.kind == SegmentKind::Files
        && segment
            .name
            .as_deref()
            .is_some_and(|name| name.ends_with(".so") || name.contains(".so."))
}

/// A bar whose length follows the logarithm of `bytes`: one page is its shortest, `largest` its longest.
fn bar(bytes: u64, largest: u64, width: usize) -> String {
    const PARTS: [char; 8] = ['▏', '▎', '▍', '▌', '▋', '▊', '▉', '█'];
    let full = logarithm(largest);
    let eighths = (logarithm(bytes) * width as u64 * 8)
        .checked_div(full)
        .unwrap_or(0)
        .max(1);
    let eighths = usize::try_from(eighths).unwrap_or(0).min(width * 8);
    let mut bar = "█".repeat(eighths / 8);
    if eighths % 8 > 0 {
        bar.push(PARTS[eighths % 8 - 1]);
    }
    bar
}

/// The logarithm to base 2 of a number of pages, in 64ths, taken as straight between powers of two.
fn logarithm(bytes: u64) -> u64 {
    let pages = bytes / 4096 + 1;
    let whole = pages.ilog2();
    let fraction = (u128::from(pages - (1 << whole)) * 64) >> whole;
    u64::from(whole) * 64 + u64::try_from(fraction).unwrap_or(63)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(kinds: &[SegmentKind], bytes: u64) -> Row {
        Row {
            kinds: kinds.to_vec(),
            has_libraries: true,
            bytes,
            is_room: false,
        }
    }

    #[test]
    fn bars_grow_with_the_logarithm() {
        assert_eq!(bar(1 << 30, 1 << 30, 10), "█".repeat(10));
        assert_eq!(bar(0, 1 << 30, 10), "▏");
        let cells = |bytes| bar(bytes, 1 << 30, 20).chars().count();
        assert!(cells(1 << 20) < cells(1 << 25));
        assert!(cells(u64::MAX) <= 20);
        assert_eq!(bar(4096, 0, 0), "");
    }

    #[test]
    fn folding_keeps_the_heap_its_room_and_the_stack() {
        use SegmentKind::{Anonymous, Bss, Data, Files, Gap, Heap, Kernel, Stack, Text};
        let mut room = row(&[Gap], 1 << 46);
        room.is_room = true;
        let mut rows = vec![
            row(&[Kernel], 4096),
            row(&[Stack], 132 << 10),
            row(&[Gap], 1 << 33),
            row(&[Anonymous], 1 << 24),
            row(&[Files], 1 << 22),
            room,
            row(&[Heap], 1 << 20),
            row(&[Bss], 4096),
            row(&[Data], 8192),
            row(&[Text], 1 << 20),
        ];
        let shown = |rows: &[Row]| rows.iter().map(label).collect::<Vec<_>>();
        fold(&mut rows, 8);
        assert_eq!(
            shown(&rows),
            [
                "stack, vdso",
                "gap",
                "mmap",
                "libraries",
                "gap",
                "heap",
                "data, bss",
                "text"
            ]
        );
        fold(&mut rows, 1);
        assert_eq!(
            shown(&rows),
            [
                "stack, vdso",
                "mmap, libraries",
                "gap",
                "heap",
                "text, data, bss"
            ]
        );
        assert!(rows[2].is_room);
    }
}
