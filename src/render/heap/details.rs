//! Arenas, sizes of chunks, what keeps the break up, and how malloc is set up.

use crate::event::Arena;
use crate::event::ArenaFigures;
use crate::event::ChunkClass;
use crate::event::GlibcHeap;
use crate::event::MallocSettings;
use crate::event::Pin;
use crate::report::chunk_sizes;
use crate::units::ByteSize;
use crate::units::Exact;

use super::super::style::Line;
use super::super::style::Tone;
use super::super::table::Cell;
use super::super::table::Column;
use super::super::table::Table;
use super::super::words;

/// Arenas that are listed unless all are asked for.
const LISTED_ARENAS: usize = 4;
/// Sizes that are listed unless all are asked for.
const LISTED_SIZES: usize = 5;
/// Longest bar beside a size, in columns.
const SIZE_BAR: usize = 24;

/// The arenas, the largest first after the main one; nothing when there is one only, unless all is asked for.
pub(super) fn arenas(heap: &GlibcHeap, verbose: bool, width: usize) -> Vec<Line> {
    let used: Vec<&Arena> = heap
        .arenas
        .iter()
        .filter(|arena| arena.figures.system_bytes > 0)
        .collect();
    if used.len() < 2 && !verbose {
        return Vec::new();
    }
    let (main, mut others): (Vec<&Arena>, Vec<&Arena>) =
        used.into_iter().partition(|arena| arena.is_main);
    others.sort_by_key(|arena| std::cmp::Reverse(arena.figures.system_bytes));
    let listed = if verbose || others.len() <= LISTED_ARENAS {
        others.len()
    } else {
        LISTED_ARENAS
    };
    let (shown, rest) = others.split_at(listed);
    let mut table = Table::new(vec![
        Column::words("arena").space(0),
        Column::number("obtained"),
        Column::number("in use"),
        Column::number("cached").rank(4),
        Column::number("free").rank(6),
        Column::number("top").rank(5),
        Column::number("in memory"),
        Column::number("trimmable"),
        Column::number("fragmented").rank(7),
        Column::number("threads").rank(3),
        Column::number("heaps").rank(2),
    ]);
    for arena in main.iter().chain(shown) {
        let name = match (arena.is_main, verbose) {
            (true, false) => "main".to_owned(),
            (false, false) => "thread".to_owned(),
            (true, true) => format!("main {}", arena.address),
            (false, true) => format!("thread {}", arena.address),
        };
        let threads = arena
            .threads
            .map_or_else(|| "–".to_owned(), |threads| threads.to_string());
        table.row(cells(
            &name,
            &arena.figures,
            &threads,
            &arena.segments.to_string(),
        ));
    }
    if !rest.is_empty() {
        let figures = rest
            .iter()
            .fold(None, |sum: Option<ArenaFigures>, arena| {
                Some(match sum {
                    Some(sum) => plus(&sum, &arena.figures),
                    None => arena.figures,
                })
            })
            .unwrap_or_default();
        table.row(cells(&format!("{} others", rest.len()), &figures, "", ""));
    }
    table.lines(width)
}

fn cells(name: &str, figures: &ArenaFigures, threads: &str, segments: &str) -> Vec<Cell> {
    let known = |bytes: Option<u64>| match bytes {
        Some(bytes) => Cell::plain(ByteSize(bytes)),
        None => Cell::of(Tone::Faint, "unknown"),
    };
    vec![
        Cell::plain(name),
        Cell::plain(ByteSize(figures.system_bytes)),
        Cell::plain(ByteSize(figures.in_use_bytes)),
        Cell::plain(ByteSize(figures.cached_bytes)),
        Cell::plain(ByteSize(
            figures.fast_bytes.saturating_add(figures.binned_bytes),
        )),
        Cell::plain(ByteSize(figures.top_bytes)),
        known(figures.resident_bytes),
        known(figures.trimmable_bytes),
        known(figures.fragmented_bytes),
        Cell::plain(threads),
        Cell::plain(segments),
    ]
}

/// The figures that are shown, added.
fn plus(a: &ArenaFigures, b: &ArenaFigures) -> ArenaFigures {
    let both = |a: Option<u64>, b: Option<u64>| a.zip(b).map(|(a, b)| a.saturating_add(b));
    ArenaFigures {
        system_bytes: a.system_bytes.saturating_add(b.system_bytes),
        in_use_bytes: a.in_use_bytes.saturating_add(b.in_use_bytes),
        cached_bytes: a.cached_bytes.saturating_add(b.cached_bytes),
        fast_bytes: a.fast_bytes.saturating_add(b.fast_bytes),
        binned_bytes: a.binned_bytes.saturating_add(b.binned_bytes),
        top_bytes: a.top_bytes.saturating_add(b.top_bytes),
        resident_bytes: both(a.resident_bytes, b.resident_bytes),
        trimmable_bytes: both(a.trimmable_bytes, b.trimmable_bytes),
        fragmented_bytes: both(a.fragmented_bytes, b.fragmented_bytes),
        ..ArenaFigures::default()
    }
}

/// Sizes of chunks in use, those with most bytes first; all of them by size when that is asked for.
pub(super) fn sizes(heap: &GlibcHeap, verbose: bool, width: usize) -> Vec<Line> {
    let mut classes: Vec<&ChunkClass> = heap.classes.iter().collect();
    if classes.is_empty() {
        return Vec::new();
    }
    let most = classes.iter().map(|class| class.bytes).max().unwrap_or(0);
    let left_out = if verbose {
        0
    } else {
        classes.sort_by_key(|class| std::cmp::Reverse(class.bytes));
        let left_out = classes.len().saturating_sub(LISTED_SIZES);
        classes.truncate(LISTED_SIZES);
        left_out
    };
    let mut table = Table::new(vec![
        Column::number("chunks in use of").space(0),
        Column::number("chunks"),
        Column::number("bytes"),
        Column::number(""),
        Column::words("").rank(1),
    ]);
    for class in classes {
        let share = words::share(class.bytes, heap.total.in_use_bytes);
        table.row(vec![
            Cell::plain(chunk_sizes(class.from_bytes, class.to_bytes)),
            Cell::plain(Exact(class.chunks)),
            Cell::plain(ByteSize(class.bytes)),
            Cell::plain(share.map_or_else(|| "–".to_owned(), words::percent)),
            Cell::of(Tone::Growth, &bar(class.bytes, most)),
        ]);
    }
    let mut lines = table.lines(width);
    if left_out > 0 {
        lines.push(Line::of(
            Tone::Faint,
            &format!("  {left_out} more sizes, with fewer bytes each"),
        ));
    }
    lines
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a share of some columns"
)]
fn bar(bytes: u64, most: u64) -> String {
    const EIGHTHS: [char; 8] = ['▏', '▏', '▎', '▍', '▌', '▋', '▊', '▉'];
    let share = words::share(bytes, most).unwrap_or(0.0).min(1.0);
    let eighths = (share * (SIZE_BAR * 8) as f64).round() as usize;
    let mut text = "█".repeat(eighths / 8);
    if !eighths.is_multiple_of(8) || eighths == 0 {
        text.push(EIGHTHS[eighths % 8]);
    }
    text
}

/// Further facts, each with the word that stands before it.
pub(super) fn entries(heap: &GlibcHeap, verbose: bool) -> Vec<(&'static str, String)> {
    let mut entries = Vec::new();
    entries.extend(pins(&heap.pins).map(|text| ("pinned", text)));
    if verbose {
        entries.extend(heap.pins.iter().map(|pin| ("pinned", each_pin(pin))));
    }
    let caches = &heap.thread_caches;
    if verbose {
        entries.push((
            "caches",
            format!(
                "{} found in {}, with {} of {}",
                words::count(caches.found, "thread cache", "thread caches"),
                words::count(caches.threads, "thread", "threads"),
                words::count(caches.chunks, "chunk", "chunks"),
                ByteSize(caches.bytes)
            ),
        ));
    }
    let settings = match &heap.settings {
        Some(settings) => self::settings(settings, verbose),
        None => Some("not found: thresholds are not known".to_owned()),
    };
    entries.extend(settings.map(|text| ("settings", text)));
    if verbose {
        let file = heap.file.as_deref().unwrap_or("an unknown file");
        entries.push((
            "malloc",
            format!("{file}, main_arena at {}", heap.main_arena),
        ));
        entries.push(("mallinfo2", mallinfo(heap)));
    }
    entries
}

/// What the break could drop by if the last chunks in use were gone.
fn pins(pins: &[Pin]) -> Option<String> {
    let first = pins.first()?;
    let last = pins.last()?;
    let chunk = if first.cached {
        "a freed chunk that waits in a thread cache"
    } else {
        "a chunk in use"
    };
    let alone = format!(
        "the top ends above {chunk}, of {}; without it the break could drop by {}",
        chunk_sizes(first.bytes, first.bytes),
        ByteSize(first.drop_bytes)
    );
    if pins.len() < 2 || last.drop_bytes == first.drop_bytes {
        return Some(alone);
    }
    Some(format!(
        "{alone}, without the last {} by {}",
        pins.len(),
        ByteSize(last.drop_bytes)
    ))
}

fn each_pin(pin: &Pin) -> String {
    format!(
        "{}, {}{}: {}",
        pin.address,
        chunk_sizes(pin.bytes, pin.bytes),
        if pin.cached { ", cached" } else { "" },
        ByteSize(pin.drop_bytes)
    )
}

/// Settings that are not as glibc has them by default; all of them when that is asked for.
fn settings(settings: &MallocSettings, verbose: bool) -> Option<String> {
    const DEFAULT_THRESHOLD: u64 = 128 << 10;
    let mut parts = Vec::new();
    let threshold_is_usual = settings.mmap_threshold_bytes == DEFAULT_THRESHOLD
        && settings.trim_threshold_bytes == DEFAULT_THRESHOLD;
    if verbose || !threshold_is_usual || !settings.mmap_threshold_is_dynamic {
        let how = if !settings.mmap_threshold_is_dynamic {
            ", fixed"
        } else if threshold_is_usual {
            ""
        } else {
            ", grown since the start"
        };
        parts.push(format!(
            "mmap threshold {} and trim threshold {}{how}",
            ByteSize(settings.mmap_threshold_bytes),
            ByteSize(settings.trim_threshold_bytes)
        ));
    }
    let mut unless = |is_usual: bool, text: String| {
        if verbose || !is_usual {
            parts.push(text);
        }
    };
    unless(
        settings.top_pad_bytes == DEFAULT_THRESHOLD,
        format!("top pad {}", ByteSize(settings.top_pad_bytes)),
    );
    unless(
        settings.mmap_max == 65_536,
        format!("at most {} chunks mapped alone", Exact(settings.mmap_max)),
    );
    let arenas = match settings.arena_max {
        0 => "arenas as processors need them".to_owned(),
        most => format!("at most {most} arenas"),
    };
    unless(settings.arena_max == 0, arenas);
    if let (Some(count), Some(bytes)) = (settings.tcache_count, settings.tcache_max_bytes) {
        // 7 of each size, since 2.43 16; blocks of up to 1032 bytes.
        unless(
            matches!(count, 7 | 16) && bytes == 1032,
            format!(
                "thread caches of {} of each size up to {}",
                words::count(count, "chunk", "chunks"),
                ByteSize(bytes)
            ),
        );
    }
    if let Some(bytes @ 1..) = settings.thp_page_bytes {
        parts.push(format!("break moved by huge pages of {}", ByteSize(bytes)));
    }
    if let Some(bytes @ 1..) = settings.huge_page_bytes {
        parts.push(format!("huge pages of {}", ByteSize(bytes)));
    }
    (!parts.is_empty()).then(|| parts.join("; "))
}

fn mallinfo(heap: &GlibcHeap) -> String {
    let info = &heap.mallinfo;
    let known = |value: Option<u64>| {
        value.map_or_else(|| "unknown".to_owned(), |value| Exact(value).to_string())
    };
    format!(
        "arena {}, ordblks {}, smblks {}, hblks {}, hblkhd {}, fsmblks {}, uordblks {}, fordblks {}, keepcost {}",
        Exact(info.arena),
        Exact(info.ordblks),
        Exact(info.smblks),
        known(info.hblks),
        known(info.hblkhd),
        Exact(info.fsmblks),
        Exact(info.uordblks),
        Exact(info.fordblks),
        Exact(info.keepcost)
    )
}
