//! Reports with call stacks, made by hand, for the tests of all exports; and what holds for all of them.

use super::ExportError;
use super::Measure;
use super::check;
use super::frames::growths;
use crate::event::ModuleKind;
use crate::event::SpaceId;
use crate::event::StackId;
use crate::event::StackMode;
use crate::event::Truncation;
use crate::render::Format;
use crate::render::TextOptions;
use crate::render::render;
use crate::render::tests::program;
use crate::report::Culprit;
use crate::report::Growth;
use crate::report::Report;
use crate::report::StackFrame;
use crate::report::StackGrowth;
use crate::report::StackModule;
use crate::report::StackReport;
use crate::report::Stacks;
use crate::symbols::Function;
use crate::symbols::SymbolState;
use crate::units::Address;

pub(super) fn module(path: &str, build_id: Option<&str>) -> StackModule {
    StackModule {
        kind: ModuleKind::File,
        path: path.into(),
        build_id: build_id.map(Into::into),
        file: None,
        symbols: SymbolState::default(),
    }
}

pub(super) fn function(name: &str, file: Option<&str>, line: Option<u32>) -> Function {
    Function {
        name: name.into(),
        file: file.map(Into::into),
        line,
    }
}

pub(super) fn code(module: u32, offset: u64, functions: &[Function]) -> StackFrame {
    StackFrame {
        module: Some(module),
        offset: Some(Address(offset)),
        functions: functions.to_vec(),
        language: None,
    }
}

pub(super) fn python(name: &str, file: &str, line: u32) -> StackFrame {
    StackFrame {
        module: None,
        offset: None,
        functions: vec![function(name, Some(file), Some(line))],
        language: Some("python".into()),
    }
}

pub(super) fn stack(id: u32, frames: &[u32]) -> StackReport {
    StackReport {
        id: StackId(id),
        frames: frames.to_vec(),
        truncated: None,
        culprit: None,
    }
}

/// The stack grew the break by `net + back` bytes, of which `back` are gone, and anonymous memory by 4096.
pub(super) fn growth(stack: Option<u32>, net: u64, back: u64) -> StackGrowth {
    StackGrowth {
        stack: stack.map(StackId),
        program_break: Growth {
            grown_bytes: net + back,
            grow_calls: 3,
            shrunk_bytes: back,
            net_bytes: net,
            returned_bytes: back,
            return_calls: 1,
        },
        anonymous: Growth {
            grown_bytes: 4096,
            grow_calls: 1,
            shrunk_bytes: 0,
            net_bytes: 4096,
            returned_bytes: 0,
            return_calls: 0,
        },
    }
}

/// A Python program with a symbolized C library, an inlined function, a module without symbols, a stack that breaks
/// off, and growth without a stack.
pub(in crate::render) fn with_stacks() -> Report {
    let mut report = program(
        &["python3", "build.py"],
        &[132 << 10, 64 << 10, -(32 << 10)],
    );
    report.recording.capture.stacks = StackMode::All;
    report.recording.capture.stack_depth = 128;
    let frames = vec![
        code(0, 0x11_4b0, &[function("brk", None, None)]),
        code(
            0,
            0x9_c1e0,
            &[
                function("sysmalloc", Some("malloc/malloc.c"), Some(2_560)),
                function("malloc", Some("malloc/malloc.c"), Some(3_336)),
            ],
        ),
        code(1, 0x1234, &[]),
        python("load", "/srv/app/build.py", 12),
        python("<module>", "/srv/app/build.py", 40),
        code(2, 0x7f00_0000_1000, &[]),
    ];
    let mut cut = stack(3, &[0, 1, 5]);
    cut.truncated = Some(Truncation::Depth);
    let mut whole = stack(1, &[0, 1, 2, 3, 4]);
    whole.culprit = Some(Culprit {
        depth: 3,
        function: 0,
    });
    report.stacks = Some(Stacks {
        recorded: 9,
        truncated: 1,
        distinct: 3,
        left_out: 0,
        modules: vec![
            module(
                "/usr/lib/libc.so.6",
                Some("6196744a316dbd57c0fc8968df1680aac482cef4"),
            ),
            module("/srv/app/fast.so", None),
            StackModule {
                kind: ModuleKind::Generated,
                ..module("/tmp/perf-4711.map", None)
            },
        ],
        frames,
        stacks: vec![whole, stack(2, &[0, 2, 4]), cut],
    });
    let space = &mut report.address_spaces[0];
    space.growth = vec![
        growth(Some(1), 100_000, 32_768),
        growth(Some(2), 65_536, 0),
        growth(Some(3), 0, 0),
        growth(None, 2_048, 0),
    ];
    space.program_break.steps.kept[0].stack = Some(StackId(1));
    report
}

/// Two processes that ran the same program, with the same stacks.
pub(super) fn of_two_processes() -> Report {
    let mut report = with_stacks();
    let mut second = report.address_spaces[0].clone();
    second.id = SpaceId(2);
    second.pid = 4_712;
    report.address_spaces.push(second);
    let mut process = report.processes[0].clone();
    process.pid = 4_712;
    process.address_spaces = vec![SpaceId(2)];
    report.processes.push(process);
    report
}

/// Names that are meant to break formats and terminals.
pub(in crate::render) fn hostile() -> Report {
    let mut report = with_stacks();
    let stacks = report.stacks.as_mut().unwrap();
    for name in [
        "a;b",
        "line\nbreak 7",
        "esc\x1b[31m",
        "operator new 12",
        "",
        "<&\">",
        "\u{202e}txt",
    ] {
        let position = u32::try_from(stacks.frames.len()).unwrap();
        stacks
            .frames
            .push(code(0, 1, &[function(name, Some("a\nb;c"), Some(0))]));
        stacks.stacks[0].frames.push(position);
    }
    // Positions beyond the tables, as a report from elsewhere may have them.
    stacks.stacks[1].frames = vec![u32::MAX, 0];
    stacks.stacks[1].culprit = Some(Culprit {
        depth: u32::MAX,
        function: u32::MAX,
    });
    stacks.frames[2].module = Some(99);
    stacks.modules[0].build_id = Some("not hexadecimal".into());
    stacks.modules[0].path = "/lib/\x1b[2J;\n.so".into();
    report.address_spaces[0].program = "/bin/evil;name 3\n".into();
    report.address_spaces[0]
        .growth
        .push(growth(Some(77), u64::MAX - 4096, 0));
    report.address_spaces[0].timeline.points[0].break_bytes = u64::MAX;
    report
}

/// Thousands of stacks.
pub(super) fn of_many_stacks() -> Report {
    let mut report = with_stacks();
    let stacks = report.stacks.as_mut().unwrap();
    stacks.frames = (0..5_000)
        .map(|n| {
            code(
                n % 3,
                u64::from(n) * 16,
                &[function(&format!("f{n}"), None, None)],
            )
        })
        .collect();
    stacks.stacks = (0..5_000).map(|n| stack(n + 1, &[n, n / 2, 0])).collect();
    report.address_spaces[0].growth = (1..=5_000)
        .map(|n| growth(Some(n), u64::from(n), 0))
        .collect();
    report
}

/// Stacks were recorded, and nothing grew.
pub(super) fn without_growth() -> Report {
    let mut report = with_stacks();
    report.address_spaces[0].growth.clear();
    report.stacks = None;
    report
}

pub(super) fn every_report() -> Vec<(&'static str, Report)> {
    vec![
        ("with stacks", with_stacks()),
        ("two processes", of_two_processes()),
        ("hostile", hostile()),
        ("many stacks", of_many_stacks()),
        ("no growth", without_growth()),
    ]
}

/// What all stacks of a report measure together.
pub(super) fn total(report: &Report, measure: Measure) -> u64 {
    growths(report).fold(0, |sum: u64, (_, growth)| {
        sum.saturating_add(measure.of_both(growth))
    })
}

pub(super) fn export(report: &Report, format: Format, measure: Measure) -> Vec<u8> {
    render(report, format, TextOptions::default(), measure).unwrap()
}

#[test]
fn the_same_report_gives_the_same_bytes_in_every_format() {
    for (name, report) in every_report() {
        for format in Format::ALL {
            for measure in Measure::ALL {
                let bytes = export(&report, format, measure);
                assert!(
                    bytes == export(&report.clone(), format, measure),
                    "{name} as {format}"
                );
            }
        }
    }
}

#[test]
fn a_recording_without_stacks_cannot_be_written_as_stacks() {
    let report = program(&["true"], &[4096]);
    assert_eq!(report.recording.capture.stacks, StackMode::Off);
    for format in Format::ALL {
        let expected = if format.is_of_stacks() {
            Err(ExportError::NoStacks { format })
        } else {
            Ok(())
        };
        assert_eq!(check(&report, format), expected);
        assert_eq!(
            render(&report, format, TextOptions::default(), Measure::Net).is_ok(),
            expected.is_ok()
        );
    }
    let error = ExportError::NoStacks {
        format: Format::Folded,
    };
    assert!(error.hint().unwrap().contains("--stacks"));
}
