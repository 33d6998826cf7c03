//! Whole pages, of heaps made by hand: what each must say, and how all of it looks (`tests/expected/text`, written anew
//! with `UPDATE_EXPECTED=1`).

use std::path::Path;

use super::*;
use crate::event::AllocatorRole;
use crate::event::MappedChunks;
use crate::event::ProcessMemory;
use crate::render::Charset;
use crate::render::tests::compare;
use crate::report::HeapLooks;
use crate::report::HeapMoment;
use crate::report::HeapTarget;
use crate::report::heap_tests::KIB;
use crate::report::heap_tests::MIB;
use crate::report::heap_tests::allocator;
use crate::report::heap_tests::arena;
use crate::report::heap_tests::class;
use crate::report::heap_tests::examination;
use crate::report::heap_tests::figures;
use crate::report::heap_tests::heap as heap_of;
use crate::report::heap_tests::memory;
use crate::report::heap_tests::one_arena;
use crate::units::Timestamp;

fn target() -> HeapTarget {
    HeapTarget {
        pid: Some(4242),
        core: None,
        program: Some("/usr/bin/python3.11".into()),
        arguments: vec!["python3".into(), "app.py".into()],
        threads: Some(3),
    }
}

fn document(examination: HeapExamination, memory: Option<ProcessMemory>) -> HeapDocument {
    HeapDocument::of(target(), 1_790_000_000, memory, examination, None)
}

fn retained() -> HeapDocument {
    let mut examination = one_arena(figures(
        2 * MIB,
        53 * KIB,
        90 * MIB,
        8 * MIB,
        96 * MIB,
        1_200 * KIB,
    ));
    let heap = &mut examination.heaps[0];
    heap.classes = vec![
        class(32, 40),
        class(64, 312),
        class(576, 1_024),
        class(1_040, 900),
        class(4_112, 100),
        class(16_400, 2),
        class(32_784, 1),
    ];
    heap.mapped = MappedChunks {
        chunks: Some(3),
        bytes: Some(596 * KIB),
        found_chunks: 3,
        found_bytes: 596 * KIB,
        resident_bytes: Some(228 * KIB),
    };
    if let Some(settings) = &mut heap.settings {
        settings.trim_threshold_bytes = 1_605_632;
        settings.mmap_threshold_bytes = 802_816;
    }
    examination.allocators = vec![allocator("CPython", AllocatorRole::Above)];
    document(examination, Some(memory(107 * MIB, 102 * MIB)))
}

fn fragmented_in_arenas() -> HeapDocument {
    let thread = |part: u64| {
        arena(
            false,
            figures(
                20 * MIB / part,
                40 * KIB,
                18 * MIB / part,
                2 * MIB / part,
                0,
                14 * MIB / part,
            ),
        )
    };
    let main = arena(
        true,
        figures(10 * MIB, 0, 2 * MIB, 132 * KIB, 100 * KIB, MIB),
    );
    let arenas = [vec![main], (1..8).map(thread).collect()].concat();
    let examination = examination(vec![heap_of(arenas)]);
    document(examination, Some(memory(140 * MIB, 130 * MIB)))
}

fn jemalloc() -> HeapDocument {
    let mut examination = examination(Vec::new());
    let mut allocator = allocator("jemalloc", AllocatorRole::InCharge);
    allocator.lazily_free_bytes = Some(3 * MIB);
    allocator.not_visible = Some("what of it is in use".into());
    examination.allocators = vec![allocator];
    document(examination, Some(memory(20 * MIB, 13 * MIB)))
}

fn doubtful() -> HeapDocument {
    let mut examination = one_arena(figures(2 * MIB, 0, 90 * MIB, 8 * MIB, 96 * MIB, MIB));
    let check = &mut examination.heaps[0].checks[1];
    check.outcome = CheckOutcome::Fails;
    check.detail = Some("the chunk at 0x55ea1e148030 is none: its size is 7".into());
    document(examination, None)
}

fn growing() -> HeapDocument {
    let mut looks = HeapLooks::default();
    let mut last = None;
    for second in 0..4_u64 {
        let chunks = 10_000 + 4_000 * second;
        let in_use = chunks * 1_040 + 3_000 * 64;
        let mut examination = one_arena(figures(
            in_use,
            40 * KIB,
            2 * MIB,
            132 * KIB,
            100 * KIB,
            MIB,
        ));
        examination.heaps[0].classes = vec![class(64, 3_000), class(1_040, chunks)];
        let memory = memory(20 * MIB + in_use, 16 * MIB + in_use);
        looks.add(
            Timestamp(second * 10_000_000_000),
            Some(memory),
            &examination,
        );
        last = Some((examination, memory));
    }
    let (examination, memory) = last.unwrap();
    HeapDocument::of(
        target(),
        1_790_000_000,
        Some(memory),
        examination,
        looks.growth(),
    )
}

fn core_file() -> HeapDocument {
    let mut examination = one_arena(figures(10 * MIB, 0, 30 * MIB, 0, 0, 0));
    let figures = &mut examination.heaps[0].total;
    figures.resident_bytes = None;
    figures.free_resident_bytes = None;
    figures.trimmable_bytes = None;
    figures.fragmented_bytes = None;
    examination.cost.stopped_ns = None;
    let target = HeapTarget {
        core: Some("core.4242".into()),
        program: None,
        pid: None,
        ..target()
    };
    HeapDocument::of(target, 1_790_000_000, None, examination, None)
}

fn hostile() -> HeapDocument {
    let mut document = retained();
    document.target.program = Some("/tmp/\u{1b}]0;x\u{7}evil".into());
    document.target.arguments = vec!["\u{1b}[31mred\n".into(), "\u{202e}".repeat(200)];
    document.examination.heaps[0].file = Some("/tmp/\u{1b}[2J".into());
    document.examination.heaps[0].version = Some("\u{1b}[2J".into());
    document
}

fn every_document() -> Vec<(&'static str, HeapDocument)> {
    vec![
        ("heap-retained", retained()),
        ("heap-fragmented", fragmented_in_arenas()),
        ("heap-jemalloc", jemalloc()),
        ("heap-doubtful", doubtful()),
        ("heap-growing", growing()),
        ("heap-core", core_file()),
        ("heap-hostile", hostile()),
    ]
}

fn text(document: &HeapDocument, width: usize, verbose: bool) -> String {
    let options = TextOptions {
        width,
        color: false,
        charset: Charset::Unicode,
        verbose,
    };
    super::heap(document, options)
}

#[test]
fn pages_look_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected/text");
    for (name, document) in every_document() {
        compare(
            folder.join(format!("{name}-80.txt")),
            &text(&document, 80, false),
        );
    }
    compare(
        folder.join("heap-fragmented-verbose-120.txt"),
        &text(&fragmented_in_arenas(), 120, true),
    );
}

#[test]
fn no_line_is_wider_than_asked_and_nothing_but_text_is_written() {
    for (name, document) in every_document() {
        for width in [60, 61, 80, 100, 160] {
            for verbose in [false, true] {
                for line in text(&document, width, verbose).lines() {
                    let columns = words::columns(line);
                    assert!(columns <= width, "{name} at {width}: {columns} in {line}");
                    assert!(!line.chars().any(char::is_control), "{name}: {line:?}");
                }
            }
        }
    }
}

#[test]
fn the_bar_is_as_wide_as_the_page_and_shows_everything_that_is_there() {
    let text = text(&retained(), 80, false);
    let bar = text.lines().find(|line| line.starts_with('█')).unwrap();
    assert_eq!(words::columns(bar), 80, "{text}");
    for mark in ['█', '▓', '▒', '·', '░'] {
        assert!(bar.contains(mark), "{mark} in {bar}");
    }
}

#[test]
fn colour_changes_nothing_but_colour() {
    let options = TextOptions {
        width: 80,
        color: true,
        charset: Charset::Unicode,
        verbose: false,
    };
    let colored = super::heap(&retained(), options);
    let mut plain = String::new();
    let mut rest = colored.as_str();
    while let Some((before, after)) = rest.split_once('\u{1b}') {
        plain.push_str(before);
        rest = after.split_once('m').unwrap().1;
    }
    plain.push_str(rest);
    let trimmed = |text: &str| {
        text.lines()
            .map(|line| line.trim_end().to_owned())
            .collect::<Vec<_>>()
    };
    assert_eq!(trimmed(&plain), trimmed(&text(&retained(), 80, false)));
}

#[test]
fn a_look_is_one_line_with_what_changed() {
    let document = growing();
    let looks = document.growth.unwrap().looks;
    let options = TextOptions {
        width: 80,
        ..TextOptions::default()
    };
    assert_eq!(
        heap_look(&looks[0], None, options),
        "      time  in use              free                in memory\n\
         \x20      0 s  10.1 MiB            2.17 MiB            12.3 MiB\n"
    );
    assert_eq!(
        heap_look(&looks[1], Some(&looks[0]), options),
        "    10.0 s  14.1 MiB +3.97 MiB  2.17 MiB         =  16.2 MiB +3.97 MiB\n"
    );
}

#[test]
fn what_is_not_known_is_not_shown_as_zero() {
    let text = text(&core_file(), 160, false);
    assert!(!text.contains(" 0 B"), "{text}");
    assert!(
        text.contains("what of that is in memory is not known"),
        "{text}"
    );
}

#[test]
fn a_report_has_the_look_in_a_few_lines() {
    let mut report = crate::render::tests::program(&["server"], &[1 << 20]);
    report.address_spaces[0].heap = Some(HeapMoment {
        time_ns: Timestamp(1),
        examination: fragmented_in_arenas().examination,
    });
    let lines = section(&report.address_spaces[0], false);
    assert!(lines.len() <= 6, "{lines:#?}");
    assert!(
        lines[0].starts_with("at the last snapshot, fragmented: "),
        "{lines:#?}"
    );
    assert!(
        lines[1].starts_with("obtained 116 MiB in 8 arenas: "),
        "{lines:#?}"
    );
    let text = crate::render::render(
        &report,
        crate::render::Format::Text,
        TextOptions::default(),
        crate::render::Measure::Net,
    );
    let text = String::from_utf8(text.unwrap()).unwrap();
    assert!(
        text.contains("malloc    at the last snapshot, fragmented: 37.3 MiB of the heap's"),
        "{text}"
    );
}
