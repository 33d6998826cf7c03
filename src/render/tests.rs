//! Whole reports, made by hand: what each situation must say, and how all of it looks (`tests/expected/text`, written
//! anew with `UPDATE_EXPECTED=1`).

use std::path::Path;
use std::path::PathBuf;

use crate::event::AllocatorChoice;
use crate::event::Capture;
use crate::event::EndReason;
use crate::event::Machine;
use crate::event::MemoryFigures;
use crate::event::Mode;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Origin;
use crate::event::Outcome;
use crate::event::PageFigures;
use crate::event::Recording;
use crate::event::SpaceId;
use crate::event::StackMode;
use crate::event::Stops;
use crate::report;
use crate::report::AnonymousReport;
use crate::report::BreakReport;
use crate::report::CallCount;
use crate::report::Checks;
use crate::report::Difference;
use crate::report::LayoutSegment;
use crate::report::ProcessReport;
use crate::report::RecordingEnd;
use crate::report::Report;
use crate::report::SCHEMA_NAME;
use crate::report::SCHEMA_VERSION;
use crate::report::Schema;
use crate::report::SegmentKind;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::report::Step;
use crate::report::Steps;
use crate::report::TimelinePoint;
use crate::report::TimelineReport;
use crate::report::Tool;
use crate::report::Totals;
use crate::units::Address;
use crate::units::Timestamp;

use super::Charset;
use super::Format;
use super::Measure;
use super::TextOptions;
use super::allocator::tests as allocator_tests;
use super::export;
use super::render;
use super::words;

pub(super) const KIB: u64 = 1 << 10;
pub(super) const MIB: u64 = 1 << 20;
const MILLISECOND: u64 = 1_000_000;
const HEAP: Address = Address(0x5581_3b2a_c000);

/// A program of one process, whose break moves by the given steps at equal distances within 1.24 s.
pub(super) fn program(command: &[&str], break_moves: &[i64]) -> Report {
    let mut report = Report {
        schema: Schema {
            name: SCHEMA_NAME.into(),
            version: SCHEMA_VERSION,
        },
        tool: Tool {
            name: "breaktrace".into(),
            version: "0.1.0".into(),
        },
        recording: recording(command),
        end: RecordingEnd {
            reason: Some(EndReason::Finished),
            duration_ns: Timestamp(1_240 * MILLISECOND),
            events: 700,
        },
        totals: Totals::default(),
        main_space: Some(SpaceId(1)),
        processes: vec![process(4_711, command, SpaceId(1))],
        address_spaces: vec![space(4_711, command, SpaceId(1), break_moves)],
        stacks: None,
        notices: Vec::new(),
    };
    add_up(&mut report);
    report
}

fn recording(command: &[&str]) -> Recording {
    Recording {
        mode: Mode::Run,
        command: strings(command),
        pids: vec![4_711],
        started_at_unix: 1_790_000_000,
        machine: Machine {
            architecture: "x86_64".into(),
            kernel: "6.18.44".into(),
            page_size: 4_096,
        },
        allocator: AllocatorChoice::System,
        environment: std::collections::BTreeMap::new(),
        processors: None,
        capture: Capture {
            stops: Stops::MemoryCalls,
            follow: true,
            no_aslr: false,
            verify: false,
            stacks: StackMode::Off,
            stack_depth: 0,
            sample_interval_bytes: None,
            leaks: false,
        },
    }
}

fn process(pid: u32, command: &[&str], space: SpaceId) -> ProcessReport {
    ProcessReport {
        pid,
        parent: None,
        origin: Origin::Launched,
        started_ns: Timestamp(0),
        ended_ns: Some(Timestamp(1_240 * MILLISECOND)),
        outcome: Some(Outcome::Exited(0)),
        program: format!("/usr/bin/{}", command[0]),
        arguments: strings(command),
        address_spaces: vec![space],
        threads: 1,
    }
}

fn space(pid: u32, command: &[&str], id: SpaceId, break_moves: &[i64]) -> SpaceReport {
    let program_break = moved_break(break_moves);
    let heap = program_break.end_bytes.unwrap_or(0);
    SpaceReport {
        id,
        pid,
        program: format!("/usr/bin/{}", command[0]),
        arguments: strings(command),
        origin: SpaceOrigin::Exec,
        started_ns: Timestamp(0),
        ended_ns: Some(Timestamp(1_240 * MILLISECOND)),
        timeline: timeline(&program_break),
        anonymous: small_mappings(),
        calls: vec![
            calls("brk", break_moves.len() as u64 + 3, 0),
            calls("mmap", 22, 0),
        ],
        memory_at_start: Some(memory(1_200 * KIB, 0)),
        memory_at_end: Some(memory(5 * MIB + heap, 200 * KIB)),
        layout_ns: None,
        earlier_layouts: Vec::new(),
        layout: textbook(heap),
        checks: Checks {
            made: 2,
            ..Checks::default()
        },
        allocator: None,
        growth: Vec::new(),
        call_paths: Vec::new(),
        heap: None,
        peak_bytes: None,
        malloc: None,
        program_break,
    }
}

fn moved_break(moves: &[i64]) -> BreakReport {
    let mut report = BreakReport {
        start: Some(HEAP),
        start_bytes: Some(0),
        exact: true,
        query_calls: 3,
        ..BreakReport::default()
    };
    let (mut size, mut peak) = (0_u64, 0_u64);
    for (index, &delta) in moves.iter().enumerate() {
        let before = size;
        size = size.checked_add_signed(delta).unwrap();
        peak = peak.max(size);
        if delta > 0 {
            report.grow_calls += 1;
            report.grown_bytes += delta.unsigned_abs();
        } else {
            report.shrink_calls += 1;
            report.shrunk_bytes += delta.unsigned_abs();
        }
        report.steps.kept.push(Step {
            explanation: None,
            number: index as u64 + 1,
            time_ns: moment(index, moves.len()),
            tid: 4_711,
            call: "brk".into(),
            delta_bytes: delta,
            after_bytes: size,
            from: HEAP + before,
            to: HEAP + size,
            allocator: None,
            stack: None,
        });
    }
    report.steps.total = moves.len() as u64;
    report.end = Some(HEAP + size);
    report.end_bytes = Some(size);
    report.peak_bytes = Some(peak);
    report.returned_ratio = words::share(report.shrunk_bytes, report.grown_bytes);
    report.pages_at_end = Some(PageFigures {
        resident_bytes: size / 100 * 99,
        swapped_bytes: 0,
    });
    report
}

fn moment(index: usize, of: usize) -> Timestamp {
    Timestamp(800_000 + 1_200 * MILLISECOND * index as u64 / of as u64)
}

/// What the dynamic linker and a small C program leave.
fn small_mappings() -> AnonymousReport {
    AnonymousReport {
        start_bytes: 0,
        end_bytes: 60 * KIB,
        peak_bytes: 72 * KIB,
        areas: 4,
        grow_calls: 5,
        grown_bytes: 80 * KIB,
        shrink_calls: 1,
        shrunk_bytes: 20 * KIB,
        returned_ratio: Some(0.25),
        ..AnonymousReport::default()
    }
}

/// Large mappings that come and go, and their steps.
fn large_mappings(report: &mut Report, grown: u64, shrunk: u64, peak: u64) {
    let space = main(report);
    let step = |number: u64, delta_bytes: i64, call: &str, after_bytes: u64| Step {
        explanation: None,
        number,
        time_ns: Timestamp(number * 100 * MILLISECOND),
        tid: 4_711,
        call: call.into(),
        delta_bytes,
        after_bytes,
        from: Address(0x7f3a_0000_0000),
        to: Address(0x7f3a_0000_0000) + delta_bytes.unsigned_abs(),
        allocator: None,
        stack: None,
    };
    space.anonymous = AnonymousReport {
        start_bytes: 0,
        end_bytes: grown - shrunk,
        peak_bytes: peak,
        areas: 9,
        grow_calls: 186,
        grown_bytes: grown,
        shrink_calls: 183,
        shrunk_bytes: shrunk,
        returned_ratio: words::share(shrunk, grown),
        steps: Steps {
            total: 369,
            kept: vec![
                step(1, (peak / 2).cast_signed(), "mmap", peak / 2),
                step(2, (peak / 2).cast_signed(), "mremap", peak),
                step(11, -(peak / 2).cast_signed(), "munmap", peak / 2),
            ],
        },
        ..AnonymousReport::default()
    };
    for (index, point) in space.timeline.points.iter_mut().enumerate() {
        let size = peak / 4 * (index as u64 % 5);
        point.anonymous_bytes = size;
        point.anonymous_min_bytes = size;
        point.anonymous_max_bytes = size;
    }
    if space.timeline.points.is_empty() {
        space.timeline.points = (0..10)
            .map(|index: u64| TimelinePoint {
                time_ns: Timestamp(index * 120 * MILLISECOND),
                anonymous_bytes: peak / 10 * index,
                anonymous_min_bytes: peak / 10 * index,
                anonymous_max_bytes: if index == 5 { peak } else { peak / 10 * index },
                ..TimelinePoint::default()
            })
            .collect();
    }
    add_up(report);
}

fn timeline(program_break: &BreakReport) -> TimelineReport {
    TimelineReport {
        bucket_ns: MILLISECOND,
        points: program_break
            .steps
            .kept
            .iter()
            .map(|step| {
                let before = step.from.above(HEAP);
                TimelinePoint {
                    time_ns: step.time_ns,
                    break_bytes: step.after_bytes,
                    break_min_bytes: step.after_bytes.min(before),
                    break_max_bytes: step.after_bytes.max(before),
                    anonymous_bytes: 60 * KIB,
                    anonymous_min_bytes: 60 * KIB,
                    anonymous_max_bytes: 72 * KIB,
                    ..TimelinePoint::default()
                }
            })
            .collect(),
    }
}

fn memory(resident: u64, over: u64) -> MemoryFigures {
    MemoryFigures {
        resident_bytes: resident,
        resident_peak_bytes: resident + over,
        resident_anonymous_bytes: resident / 2,
        swapped_bytes: 0,
        virtual_bytes: resident * 3,
        virtual_peak_bytes: resident * 3 + over,
    }
}

fn calls(name: &str, calls: u64, failed: u64) -> CallCount {
    CallCount {
        name: name.into(),
        calls,
        failed,
    }
}

/// The layout of a position-independent program on x86-64.
fn textbook(heap: u64) -> Vec<LayoutSegment> {
    let mut layout = Vec::new();
    let mut end = Address(0x5581_39c0_0000);
    let mut put = |kind, start: u64, bytes: u64, name: Option<&str>| {
        if start > end.0 {
            layout.push(LayoutSegment {
                kind: SegmentKind::Gap,
                start: end,
                end: Address(start),
                bytes: start - end.0,
                mappings: 0,
                name: None,
            });
        }
        end = Address(start + bytes);
        layout.push(LayoutSegment {
            kind,
            start: Address(start),
            end,
            bytes,
            mappings: 1,
            name: name.map(str::to_owned),
        });
    };
    let program = Some("/usr/bin/python3.11");
    let library = Some("/usr/lib/x86_64-linux-gnu/libc.so.6");
    put(SegmentKind::Text, 0x5581_39c0_0000, 5_800 * KIB, program);
    put(SegmentKind::Data, 0x5581_3a1a_a000, 500 * KIB, program);
    put(SegmentKind::Bss, 0x5581_3a22_7000, 280 * KIB, None);
    if heap > 0 {
        let mapped = heap.next_multiple_of(4 * KIB);
        put(SegmentKind::Heap, HEAP.0, mapped, Some("[heap]"));
    }
    put(SegmentKind::Anonymous, 0x7f3a_0000_0000, 12 * KIB, None);
    put(SegmentKind::Files, 0x7f3a_0001_0000, 1_900 * KIB, library);
    put(SegmentKind::Anonymous, 0x7f3a_0030_0000, 48 * KIB, None);
    put(
        SegmentKind::Kernel,
        0x7ffc_10a0_0000,
        24 * KIB,
        Some("[vdso]"),
    );
    put(
        SegmentKind::Stack,
        0x7ffc_10b0_0000,
        132 * KIB,
        Some("[stack]"),
    );
    put(
        SegmentKind::Kernel,
        0xffff_ffff_ff60_0000,
        4 * KIB,
        Some("[vsyscall]"),
    );
    layout
}

/// A further process, forked and exec'd by the first.
pub(super) fn add_process(report: &mut Report, pid: u32, command: &[&str], break_moves: &[i64]) {
    let id = SpaceId(u32::try_from(report.address_spaces.len()).unwrap() + 1);
    let mut process = process(pid, command, id);
    process.origin = Origin::Vforked;
    process.parent = Some(4_711);
    report.processes.push(process);
    report
        .address_spaces
        .push(space(pid, command, id, break_moves));
    report.main_space = report
        .address_spaces
        .iter()
        .rev()
        .max_by_key(|space| space.program_break.grown_bytes)
        .map(|space| space.id);
    add_up(report);
}

fn add_up(report: &mut Report) {
    let spaces = &report.address_spaces;
    let sum = |of: fn(&SpaceReport) -> u64| spaces.iter().map(of).sum::<u64>();
    report.totals = Totals {
        processes: report.processes.len() as u64,
        threads: report.processes.len() as u64,
        address_spaces: spaces.len() as u64,
        break_grown_bytes: sum(|space| space.program_break.grown_bytes),
        break_shrunk_bytes: sum(|space| space.program_break.shrunk_bytes),
        break_grow_calls: sum(|space| space.program_break.grow_calls),
        break_shrink_calls: sum(|space| space.program_break.shrink_calls),
        anonymous_grown_bytes: sum(|space| space.anonymous.grown_bytes),
        anonymous_shrunk_bytes: sum(|space| space.anonymous.shrunk_bytes),
        calls: spaces.first().map(|s| s.calls.clone()).unwrap_or_default(),
    };
}

pub(super) fn main(report: &mut Report) -> &mut SpaceReport {
    let id = report.main_space.unwrap();
    report
        .address_spaces
        .iter_mut()
        .find(|space| space.id == id)
        .unwrap()
}

fn strings(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

/// 320 steps up of 132 to 332 KiB, and 8 small ones down.
pub(super) fn ordinary() -> Report {
    let moves: Vec<i64> = (0..328_i64)
        .map(|index| match index {
            index if index % 41 == 40 => -16 * 1_024,
            index if index % 41 == 20 => 332 * 1_024,
            _ => 208 * 1_024,
        })
        .collect();
    program(&["python3", "build.py"], &moves)
}

/// The experiment with which the project began, on a current glibc.
fn founding_experiment() -> Report {
    let mut report = program(&["main"], &[0x21_000, 0x26_000]);
    main(&mut report).checks.made = 2;
    report
}

fn sawtooth() -> Report {
    let mut moves = Vec::new();
    for _ in 0..20 {
        moves.extend([16 * MIB.cast_signed(); 4]);
        moves.push(-64 * MIB.cast_signed());
    }
    program(&["churn", "--rounds", "20"], &moves)
}

fn mapped_only() -> Report {
    let mut report = program(&["sort", "--parallel=2", "big"], &[]);
    large_mappings(&mut report, 2_244 * MIB, 2_172 * MIB, 160 * MIB);
    main(&mut report).anonymous.reserved_bytes = 128 * MIB;
    report
}

/// Break and mmap both matter, and several threads moved the break.
fn with_mmap() -> Report {
    let mut report = ordinary();
    large_mappings(&mut report, 30 * MIB, 2 * MIB, 29 * MIB);
    let space = main(&mut report);
    for step in &mut space.program_break.steps.kept {
        step.tid += u32::try_from(step.number % 3).unwrap();
    }
    report.processes[0].threads = 3;
    report.notices.push(Notice {
        code: NoticeCode::LatencyHeld,
        message: "the idle-wake latency was held down".into(),
    });
    report
}

fn compiler() -> Report {
    let mut report = program(&["gcc", "-O2", "-c", "lvm.c"], &[132 * 1_024, 8 * 1_024]);
    let mut moves = vec![200 * 1_024_i64; 150];
    moves.extend(vec![-16 * 1_024 * 1_024]);
    add_process(
        &mut report,
        4_712,
        &["cc1", "-quiet", "-O2", "lvm.c", "-o", "/tmp/cc3kZ1xQ.s"],
        &moves,
    );
    add_process(&mut report, 4_713, &["as", "-o", "lvm.o"], &[1_320 * 1_024]);
    report
}

fn attached() -> Report {
    let mut report = program(
        &["redis-server", "*:6379"],
        &[MIB.cast_signed(), -(MIB.cast_signed() / 2)],
    );
    report.recording.mode = Mode::Attach;
    report.recording.command.clear();
    report.end.reason = Some(EndReason::Interrupted);
    report.processes[0].origin = Origin::Attached;
    report.processes[0].outcome = Some(Outcome::Detached);
    report.processes[0].threads = 5;
    let space = main(&mut report);
    space.origin = SpaceOrigin::Attached;
    space.program_break.start_bytes = Some(64 * MIB);
    space.program_break.peak_bytes = Some(65 * MIB);
    space.program_break.end_bytes = Some(64 * MIB + MIB / 2);
    for step in &mut space.program_break.steps.kept {
        step.after_bytes += 64 * MIB;
    }
    for point in &mut space.timeline.points {
        point.break_bytes += 64 * MIB;
        point.break_min_bytes += 64 * MIB;
        point.break_max_bytes += 64 * MIB;
    }
    report.notices.push(Notice {
        code: NoticeCode::SeccompUnavailable,
        message: "every system call stops the program, since a filter cannot be given to a process that runs already"
            .into(),
    });
    report
}

fn crashed() -> Report {
    let mut report = program(&["victim", "it's here"], &[132 * 1_024, MIB.cast_signed()]);
    report.processes[0].outcome = Some(Outcome::Killed {
        signal: 11,
        core_dumped: true,
    });
    let space = main(&mut report);
    space.memory_at_end = None;
    space.program_break.pages_at_end = None;
    space.program_break.exact = false;
    space.program_break.refused_calls = 1;
    space.layout.clear();
    space.checks = Checks {
        made: 3,
        differing: 1,
        skipped: 1,
        differences: vec![Difference {
            time_ns: Timestamp(5 * MILLISECOND),
            start: HEAP,
            end: HEAP + 0x1000,
            expected: "rw-p [heap]".into(),
            found: "nothing".into(),
        }],
    };
    report
}

fn nothing() -> Report {
    let mut report = program(&["gone"], &[]);
    report.main_space = None;
    report.processes.clear();
    report.address_spaces.clear();
    add_up(&mut report);
    report
}

/// A program that chose every string it could to take over the terminal.
fn hostile() -> Report {
    const EVIL: &str = "\x1b]0;owned\x07\x1b[2J\r\n\u{202e}\u{9b}31m\u{200d}堆";
    let mut report = program(&[EVIL, EVIL, "--\x1b[H"], &[132 * 1_024]);
    add_process(&mut report, 4_712, &[EVIL, "\n\n"], &[264 * 1_024]);
    let space = main(&mut report);
    for segment in &mut space.layout {
        segment.name = Some(EVIL.into());
    }
    for step in &mut space.program_break.steps.kept {
        step.call = EVIL.into();
    }
    space.calls[0].name = EVIL.into();
    space.checks.differing = 1;
    space.checks.differences.push(Difference {
        time_ns: Timestamp(0),
        start: Address(0),
        end: Address(4_096),
        expected: EVIL.into(),
        found: EVIL.into(),
    });
    report.notices.push(Notice {
        code: NoticeCode::ProcessNotSeen,
        message: EVIL.repeat(20),
    });
    add_up(&mut report);
    report
}

/// With culprits and call paths, as they are after the symbols were looked up.
fn named(mut report: Report) -> Report {
    report::name_culprits(&mut report);
    report
}

fn every_report() -> Vec<(&'static str, Report)> {
    vec![
        ("ordinary", ordinary()),
        ("with-mmap", with_mmap()),
        ("founding-experiment", founding_experiment()),
        ("sawtooth", sawtooth()),
        ("mmap-only", mapped_only()),
        ("compiler", compiler()),
        ("attached", attached()),
        ("crashed", crashed()),
        ("nothing", nothing()),
        ("hostile", hostile()),
        ("stacks", named(export::tests::with_stacks())),
        ("stacks-hostile", named(export::tests::hostile())),
    ]
    .into_iter()
    .chain(allocator_tests::reports())
    .collect()
}

pub(super) fn text(report: &Report, width: usize) -> String {
    let options = TextOptions {
        width,
        ..TextOptions::default()
    };
    super::text::render(report, options)
}

pub(super) fn verbose(report: &Report, width: usize) -> String {
    let options = TextOptions {
        width,
        verbose: true,
        ..TextOptions::default()
    };
    super::text::render(report, options)
}

fn verdict(report: &Report) -> String {
    text(report, 160).lines().next().unwrap().to_owned()
}

fn second_line(report: &Report) -> String {
    text(report, 160).lines().nth(1).unwrap().to_owned()
}

#[test]
fn whole_reports_look_as_expected() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/expected/text");
    for (name, report) in every_report() {
        for width in [80, 120] {
            compare(
                folder.join(format!("{name}-{width}.txt")),
                &text(&report, width),
            );
        }
    }
    for (name, report) in [
        ("ordinary", ordinary()),
        ("compiler", compiler()),
        ("bundled", allocator_tests::bundled()),
        ("stacks", named(export::tests::with_stacks())),
    ] {
        compare(
            folder.join(format!("{name}-verbose-120.txt")),
            &verbose_but_short(report),
        );
    }
}

/// All that is asked for with `--verbose`, of a report with few steps.
fn verbose_but_short(mut report: Report) -> String {
    let steps = &mut main(&mut report).program_break.steps;
    steps.kept.truncate(5);
    verbose(&report, 120)
}

pub(super) fn compare(path: PathBuf, found: &str) {
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, found).unwrap();
        return;
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == expected,
        "{} differs; UPDATE_EXPECTED=1 rewrites it. Found:\n{found}",
        path.display()
    );
}

#[test]
fn no_line_is_wider_than_asked() {
    for (name, report) in every_report() {
        for width in [60, 61, 72, 80, 81, 99, 100, 120, 160] {
            for text in [text(&report, width), verbose(&report, width)] {
                for line in text.lines() {
                    let columns = words::columns(line);
                    assert!(columns <= width, "{name} at {width}: {columns} in {line}");
                }
            }
        }
    }
}

#[test]
fn widths_that_are_too_narrow_are_taken_as_the_narrowest() {
    assert_eq!(text(&ordinary(), 0), text(&ordinary(), 60));
}

#[test]
fn without_colour_nothing_but_printable_characters_and_newlines_is_written() {
    for (name, report) in every_report() {
        for text in [text(&report, 80), verbose(&report, 120)] {
            let odd = text
                .chars()
                .find(|&c| c != '\n' && words::columns(&c.to_string()) == 0);
            assert_eq!(odd, None, "{name}");
        }
    }
}

#[test]
fn in_ascii_nothing_else_is_written_and_lines_keep_within_the_width() {
    for (name, report) in every_report() {
        for width in [80, 120] {
            let options = TextOptions {
                width,
                charset: Charset::Ascii,
                ..TextOptions::default()
            };
            let ascii = super::text::render(&report, options);
            assert!(ascii.is_ascii(), "{name}: {ascii}");
            let longest = ascii.lines().map(str::len).max();
            assert!(longest <= Some(width), "{name}: {ascii}");
            // Names may have other characters; breaktrace's own have stand-ins.
            if !name.contains("hostile") {
                assert!(!ascii.contains("\\u{"), "{name}: {ascii}");
            }
            // Nothing of it outlasts the report.
            assert_eq!(Charset::current(), Charset::Unicode);
        }
    }
}

#[test]
fn with_colour_every_escape_is_our_own() {
    for (name, report) in every_report() {
        let options = TextOptions {
            width: 100,
            color: true,
            charset: Charset::Unicode,
            verbose: true,
        };
        let colored = super::text::render(&report, options);
        let plain = verbose(&report, 100);
        assert!(colored.contains('\x1b'), "{name}");
        assert_eq!(without_styles(&colored), plain, "{name}");
    }
}

/// Takes out what sets colours, and nothing else.
fn without_styles(text: &str) -> String {
    let mut parts = text.split("\x1b[");
    let mut out = parts.next().unwrap().to_owned();
    for part in parts {
        let (codes, rest) = part.split_once('m').unwrap();
        assert!(
            codes.chars().all(|c| c.is_ascii_digit() || c == ';'),
            "{codes}"
        );
        out.push_str(rest);
    }
    out
}

#[test]
fn an_ordinary_program_fits_one_screen() {
    for report in [
        ordinary(),
        with_mmap(),
        founding_experiment(),
        sawtooth(),
        mapped_only(),
    ] {
        let text = text(&report, 80);
        assert!(text.lines().count() <= 25, "{text}");
    }
}

#[test]
fn the_verdict_says_how_much_grew_and_which_share_came_back() {
    assert_eq!(
        verdict(&ordinary()),
        "breaktrace: heap grew 66.0 MiB in 320 steps; 128 KiB (0.2 %) went back, 65.8 MiB left at exit"
    );
    let narrow = text(&ordinary(), 80);
    assert_eq!(
        narrow.lines().next().unwrap(),
        "breaktrace: heap grew 66.0 MiB, 0.2 % of it went back; 65.8 MiB left at exit"
    );
}

#[test]
fn one_step_is_singular() {
    assert_eq!(
        verdict(&program(&["x"], &[4_096])),
        "breaktrace: heap grew 4 KiB in 1 step, none of it went back; 4 KiB left at exit"
    );
}

#[test]
fn a_heap_given_back_whole_is_said_to_be() {
    assert_eq!(
        verdict(&program(&["x"], &[4_096, 4_096, -8_192])),
        "breaktrace: heap grew 8 KiB in 2 steps and gave all of it back; 0 B left at exit"
    );
}

#[test]
fn no_growth_at_all_is_said_plainly() {
    let mut report = program(&["true"], &[]);
    main(&mut report).anonymous = AnonymousReport::default();
    assert_eq!(
        verdict(&report),
        "breaktrace: no growth: neither the break nor mmap'd memory moved"
    );
}

#[test]
fn memory_from_mmap_alone_is_the_verdict_when_the_break_is_idle() {
    assert_eq!(
        verdict(&mapped_only()),
        "breaktrace: the break never moved; mmap gave 2.19 GiB, 97 % of it went back"
    );
    let mut report = program(&["sort"], &[132 * 1_024]);
    large_mappings(&mut report, 2_244 * MIB, 2_172 * MIB, 160 * MIB);
    assert_eq!(
        verdict(&report),
        "breaktrace: heap grew 132 KiB, none went back; mmap gave 2.19 GiB, 97 % of it went back"
    );
}

#[test]
fn of_several_processes_the_one_that_grew_most_is_named() {
    assert_eq!(
        verdict(&compiler()),
        "breaktrace: of 3 processes cc1's heap grew most: 29.3 MiB, 55 % went back; 13.3 MiB left at exit"
    );
    assert_eq!(
        second_line(&compiler()),
        "gcc -O2 -c lvm.c exited 0 after 1.24 s"
    );
    let mut idle = program(&["sh"], &[]);
    add_process(&mut idle, 4_712, &["true"], &[]);
    assert!(
        verdict(&idle).starts_with("breaktrace: none of 2 processes raised its break; mmap gave")
    );
}

#[test]
fn signals_that_killed_are_named() {
    let mut report = crashed();
    assert_eq!(
        verdict(&report),
        "breaktrace: heap grew 1.13 MiB in 2 steps, none of it went back; about 1.13 MiB left at SIGSEGV"
    );
    assert_eq!(
        text(&report, 160)
            .matches("the break is known to the page")
            .count(),
        1
    );
    assert_eq!(
        second_line(&report),
        r"victim 'it'\''s here' was killed by SIGSEGV after 1.24 s (core dumped)"
    );
    report.processes[0].outcome = Some(Outcome::Killed {
        signal: libc::SIGRTMIN() + 2,
        core_dumped: false,
    });
    assert!(second_line(&report).ends_with("was killed by SIGRTMIN+2 after 1.24 s"));
}

#[test]
fn attached_programs_are_said_to_be_watched_and_to_run_on() {
    let mut report = attached();
    assert_eq!(
        verdict(&report),
        "breaktrace: heap grew 1 MiB in 1 step while watched; 512 KiB (50 %) went back, 64.5 MiB left at detach"
    );
    assert_eq!(
        second_line(&report),
        "redis-server '*:6379' (pid 4711) was watched for 1.24 s and runs on; 5 threads"
    );
    report.processes[0].outcome = Some(Outcome::Killed {
        signal: 15,
        core_dumped: false,
    });
    assert!(second_line(&report).contains("was watched for 1.24 s until SIGTERM killed it"));
    report.processes[0].outcome = Some(Outcome::Exited(1));
    assert!(second_line(&report).contains("until it exited 1"));
    report.processes[0].outcome = None;
    assert!(second_line(&report).contains("was watched for 1.24 s so far"));
}

#[test]
fn a_heap_that_only_shrank_while_watched_is_said_to() {
    let mut report = attached();
    let program_break = &mut main(&mut report).program_break;
    program_break.grown_bytes = 0;
    program_break.grow_calls = 0;
    program_break.returned_ratio = None;
    assert_eq!(
        verdict(&report),
        "breaktrace: heap shrank by 512 KiB while watched; 64.5 MiB left at detach"
    );
}

#[test]
fn programs_that_were_let_go_or_still_run_are_said_to() {
    let mut report = ordinary();
    report.end.reason = Some(EndReason::TimeLimit);
    report.processes[0].outcome = Some(Outcome::Detached);
    assert_eq!(
        second_line(&report),
        "python3 build.py was let go after 1.24 s and runs on: the time was over"
    );
    report.end.reason = None;
    report.processes[0].outcome = None;
    report.processes[0].ended_ns = None;
    main(&mut report).ended_ns = None;
    assert!(verdict(&report).ends_with("65.8 MiB left so far"));
    assert_eq!(
        second_line(&report),
        "python3 build.py was still running after 1.24 s"
    );
}

#[test]
fn incomplete_recordings_are_said_to_be_and_why() {
    let mut report = ordinary();
    report.notices.push(Notice {
        code: NoticeCode::Incomplete,
        message: "the log breaks off in line 812".into(),
    });
    assert!(verdict(&report).ends_with("; the recording is incomplete"));
    assert!(text(&report, 80).ends_with("warning: the log breaks off in line 812\n"));
}

#[test]
fn when_nothing_was_seen_no_numbers_are_shown() {
    let text = text(&nothing(), 80);
    assert_eq!(
        text,
        "breaktrace: nothing was seen: no program ran under observation\ngone\n"
    );
}

#[test]
fn what_is_unknown_is_never_shown_as_zero() {
    let mut report = program(&["x"], &[]);
    let space = main(&mut report);
    space.program_break = BreakReport::default();
    space.memory_at_start = None;
    space.memory_at_end = None;
    let text = text(&report, 100);
    let row = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name)).unwrap();
        line.matches("unknown").count()
    };
    assert_eq!((row("break "), row("resident")), (3, 3), "{text}");
}

#[test]
fn differences_with_proc_are_counted_and_the_first_are_shown() {
    let mut report = crashed();
    let first = main(&mut report).checks.differences[0].clone();
    main(&mut report).checks.differences = vec![first; 5];
    let text = text(&report, 100);
    assert!(text.contains(
        "checked against /proc/PID/maps 3 times: 1 differed, 1 skipped since a call was under way"
    ));
    assert_eq!(
        text.matches("  at 5.00 ms, 4 KiB: expected rw-p [heap], found nothing")
            .count(),
        3
    );
    assert!(text.contains("2 more differences"));
}

#[test]
fn steps_are_all_shown_when_few_and_counted_when_left_out() {
    assert!(!text(&founding_experiment(), 80).contains("left out"));
    let ordinary = text(&ordinary(), 80);
    let left_out = ordinary
        .lines()
        .find(|line| line.contains("left out"))
        .unwrap();
    assert!(left_out.starts_with("321 steps left out"), "{left_out}");
}

#[test]
fn the_gap_above_the_heap_is_named_with_its_size() {
    let text = text(&founding_experiment(), 120);
    let gap = text
        .lines()
        .find(|line| line.contains("room for the break"))
        .unwrap();
    assert!(
        gap.contains("41.7 TiB  room for the break to grow until the next mapping"),
        "{gap}"
    );
}

#[test]
fn a_timeline_of_no_or_one_point_is_no_obstacle() {
    let mut report = program(&["x"], &[4_096]);
    assert_eq!(text(&report, 80).matches('┤').count(), 4);
    main(&mut report).timeline.points.clear();
    assert_eq!(text(&report, 80).matches('┤').count(), 0);
}

#[test]
fn many_processes_are_listed_by_growth_and_the_rest_counted() {
    let mut report = program(&["make"], &[4_096]);
    for index in 0..20 {
        add_process(
            &mut report,
            5_000 + index,
            &["cc1"],
            &[i64::from(index + 1) * 8_192],
        );
    }
    let text = text(&report, 100);
    let first = text
        .lines()
        .position(|line| line.trim_start().starts_with("pid"))
        .unwrap()
        + 1;
    assert!(text.lines().nth(first).unwrap().contains("5019"), "{text}");
    assert!(
        text.contains("13 more processes, whose heaps grew 628 KiB together"),
        "{text}"
    );
    assert_eq!(verbose(&report, 100).matches("cc1  ").count(), 20);
}

#[test]
fn addresses_show_only_when_asked_for() {
    for (name, report) in every_report() {
        // Which block was misused is said by its address: there is no other name for it.
        if name == "heap-errors" {
            continue;
        }
        // Places in files stay the same from run to run; functions without a name have no other.
        let text = text(&report, 120).replace("fast.so+0x1234", "");
        assert!(!text.contains("0x"), "{name}");
    }
    assert!(verbose(&ordinary(), 120).contains(&HEAP.to_string()));
}

#[test]
fn extreme_numbers_do_not_panic() {
    let mut report = ordinary();
    let space = main(&mut report);
    space.program_break.grown_bytes = u64::MAX;
    space.program_break.peak_bytes = Some(u64::MAX);
    space.program_break.end = Some(Address(u64::MAX));
    space.anonymous.grown_bytes = u64::MAX;
    space.anonymous.peak_bytes = u64::MAX;
    space.ended_ns = Some(Timestamp(0));
    space.started_ns = Timestamp(u64::MAX);
    for segment in &mut space.layout {
        if segment.kind != SegmentKind::Gap {
            segment.bytes = u64::MAX;
        }
    }
    let text_again = space.layout[0].clone();
    space.layout.insert(0, text_again);
    for point in &mut space.timeline.points {
        point.time_ns = Timestamp(u64::MAX);
        point.break_max_bytes = u64::MAX;
    }
    report.address_spaces[0].checks.made = u64::MAX;
    for width in [60, 160] {
        assert!(!text(&report, width).is_empty());
        assert!(!verbose(&report, width).is_empty());
    }
}

#[test]
fn json_is_the_report_itself() {
    let options = TextOptions::default();
    let json = render(&ordinary(), Format::Json, options, Measure::Net).unwrap();
    let json = String::from_utf8(json).unwrap();
    assert_eq!(crate::report::from_json(&json).unwrap(), ordinary());
}

#[test]
fn formats_are_known_by_name_and_by_extension() {
    assert_eq!("json".parse(), Ok(Format::Json));
    assert_eq!("TEXT".parse(), Ok(Format::Text));
    assert!("yaml".parse::<Format>().is_err());
    assert_eq!(
        Format::of_path(Path::new("a/report.JSON")),
        Some(Format::Json)
    );
    assert_eq!(Format::of_path(Path::new("report.txt")), Some(Format::Text));
    assert_eq!(Format::of_path(Path::new("report.docx")), None);
    assert_eq!(Format::of_path(Path::new("json")), None);
}
