//! Metrics by the rules of both formats, and against the report that they are of.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::*;
use crate::event::HeapErrorKind;
use crate::event::HeapExamination;
use crate::event::SpaceId;
use crate::render::allocator::tests::bundled;
use crate::render::export::tests::every_report;
use crate::render::export::tests::function;
use crate::render::tests::add_process;
use crate::render::tests::program;
use crate::report::CallPath;
use crate::report::Growth;
use crate::report::HeapErrorCount;
use crate::report::HeapMoment;
use crate::report::heap_tests::MIB;
use crate::report::heap_tests::figures;
use crate::report::heap_tests::one_arena;
use crate::stats_page::COUNTERS;
use crate::units::Timestamp;

type Labels = BTreeMap<String, String>;

/// What a reader makes of a text.
#[derive(Debug, Default)]
struct Read {
    types: BTreeMap<String, String>,
    units: BTreeMap<String, String>,
    samples: BTreeMap<(String, Labels), f64>,
}

impl Read {
    /// The sample of this name whose labels are these, among others.
    fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        let fits = |of: &Labels| {
            labels
                .iter()
                .all(|(name, value)| of.get(*name).is_some_and(|found| found == value))
        };
        let mut found = self
            .samples
            .iter()
            .filter(|((sample, of), _)| sample == name && fits(of))
            .map(|(_, value)| *value);
        let value = found.next();
        assert!(found.next().is_none(), "{name} {labels:?} is ambiguous");
        value
    }
}

/// Reads strictly: OpenMetrics 1.0 with `# EOF`, or the text format 0.0.4.
fn read(text: &str, dialect: Dialect) -> Read {
    let mut read = Read::default();
    let mut family: Option<String> = None;
    assert!(text.ends_with('\n') && !text.contains('\r'));
    let body = match dialect {
        Dialect::OpenMetrics => text.strip_suffix("# EOF\n").expect("ends with # EOF"),
        Dialect::Prometheus => text,
    };
    for line in body.lines() {
        if let Some(comment) = line.strip_prefix("# ") {
            let (keyword, rest) = comment.split_once(' ').unwrap();
            let (name, text) = rest.split_once(' ').unwrap();
            match keyword {
                "HELP" => {
                    assert!(!text.contains('\\') && !text.contains('"'), "{line}");
                    assert!(!read.types.contains_key(name), "{name} comes twice");
                    family = Some(name.to_owned());
                }
                "TYPE" => {
                    assert_eq!(family.as_deref(), Some(name));
                    read.types.insert(name.to_owned(), text.to_owned());
                }
                "UNIT" => {
                    assert_eq!(dialect, Dialect::OpenMetrics);
                    assert!(name.ends_with(&format!("_{text}")), "{line}");
                    read.units.insert(name.to_owned(), text.to_owned());
                }
                _ => panic!("{line}"),
            }
            continue;
        }
        let (name, labels, value) = sample(line);
        let family = family.as_deref().unwrap();
        let suffix = match (read.types[family].as_str(), dialect) {
            ("counter", Dialect::OpenMetrics) => "_total",
            ("info", Dialect::OpenMetrics) => "_info",
            _ => "",
        };
        assert_eq!(name, format!("{family}{suffix}"));
        assert!(name.starts_with("breaktrace_"));
        assert!(name.chars().all(|c| c.is_ascii_lowercase() || c == '_'));
        if dialect == Dialect::Prometheus {
            assert_eq!(read.types[family] == "counter", name.ends_with("_total"));
        }
        let again = read.samples.insert((name, labels), value);
        assert!(again.is_none(), "twice: {line}");
    }
    read
}

fn sample(line: &str) -> (String, Labels, f64) {
    let Some((name, rest)) = line.split_once('{') else {
        let (name, value) = line.split_once(' ').unwrap();
        return (name.to_owned(), Labels::new(), value.parse().unwrap());
    };
    let mut labels = Labels::new();
    let mut rest = rest;
    loop {
        let (label, after) = rest.split_once("=\"").unwrap();
        let mut value = String::new();
        let mut characters = after.char_indices();
        let end = loop {
            match characters.next().expect("the quote ends") {
                (_, '\\') => match characters.next().unwrap().1 {
                    escaped @ ('\\' | '"') => value.push(escaped),
                    other => panic!("\\{other} in {line}"),
                },
                (index, '"') => break index,
                (_, character) => value.push(character),
            }
        };
        assert!(labels.insert(label.to_owned(), value).is_none(), "{line}");
        rest = &after[end + 1..];
        match rest.strip_prefix(',') {
            Some(next) => rest = next,
            None => break,
        }
    }
    let value = rest.strip_prefix("} ").unwrap().parse().unwrap();
    (name.to_owned(), labels, value)
}

fn both(report: &Report) -> [Read; 2] {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    [
        read(&text(openmetrics(report)), Dialect::OpenMetrics),
        read(&text(prometheus(report)), Dialect::Prometheus),
    ]
}

#[expect(clippy::cast_precision_loss, reason = "small numbers")]
fn number(value: u64) -> Option<f64> {
    Some(value as f64)
}

#[test]
fn every_report_keeps_the_rules_of_both_formats() {
    for (name, report) in every_report() {
        let [new, old] = both(&report);
        assert_eq!(new.samples, old.samples, "{name}");
        assert_eq!(new.types.len(), old.types.len(), "{name}");
        assert!(
            new.types
                .values()
                .all(|kind| ["gauge", "counter", "info"].contains(&kind.as_str()))
        );
        assert!(
            old.types
                .values()
                .all(|kind| ["gauge", "counter"].contains(&kind.as_str()))
        );
        for family in new.types.keys() {
            for unit in ["bytes", "seconds"] {
                assert_eq!(
                    family.ends_with(unit),
                    new.units.get(family).is_some_and(|of| of == unit)
                );
            }
        }
    }
}

#[test]
fn sizes_and_calls_are_those_of_the_report() {
    let report = program(&["sort"], &[132 << 10, 4096, -8192]);
    let space = &report.address_spaces[0];
    let of = [("space", "1"), ("program", "/usr/bin/sort")];
    for read in both(&report) {
        let value = |name| read.value(name, &of);
        assert_eq!(
            value("breaktrace_break_bytes"),
            number(space.program_break.end_bytes.unwrap())
        );
        assert_eq!(value("breaktrace_break_peak_bytes"), number(136 << 10));
        assert_eq!(
            value("breaktrace_break_grown_bytes_total"),
            number(136 << 10)
        );
        assert_eq!(value("breaktrace_break_shrunk_bytes_total"), number(8192));
        assert_eq!(value("breaktrace_anonymous_bytes"), number(60 << 10));
        let memory = space.memory_at_end.unwrap();
        assert_eq!(
            value("breaktrace_resident_bytes"),
            number(memory.resident_bytes)
        );
        let with = |label, text| [of[0], of[1], (label, text)];
        assert_eq!(
            read.value("breaktrace_calls_total", &with("call", "brk")),
            number(6)
        );
        assert_eq!(
            read.value("breaktrace_break_calls_total", &with("result", "shrank")),
            number(1)
        );
        assert_eq!(
            read.value("breaktrace_process_info", &with("pid", "4711")),
            number(1)
        );
        assert_eq!(
            read.value("breaktrace_recording_duration_seconds", &[]),
            Some(1.24)
        );
        assert_eq!(
            read.value(
                "breaktrace_recording_info",
                &[("end", "finished"), ("allocator", "system")]
            ),
            number(1)
        );
    }
}

#[test]
fn what_is_not_known_has_no_sample() {
    let mut report = program(&["sort"], &[4096]);
    let space = &mut report.address_spaces[0];
    space.program_break.end_bytes = None;
    space.program_break.pages_at_end = None;
    space.memory_at_end = None;
    for read in both(&report) {
        for name in [
            "break_bytes",
            "break_resident_bytes",
            "resident_bytes",
            "virtual_bytes",
            "allocator_in_use_bytes",
        ] {
            let name = format!("breaktrace_{name}");
            assert_eq!(read.value(&name, &[]), None, "{name}");
            assert!(!read.types.contains_key(&name), "{name} without samples");
        }
        assert_eq!(read.value("breaktrace_heap_errors_total", &[]), None);
        assert_eq!(read.value("breaktrace_break_peak_bytes", &[]), number(4096));
    }
}

#[test]
fn the_allocator_s_figures_bear_their_names() {
    let mut report = bundled();
    let allocator = report.address_spaces[0].allocator.as_mut().unwrap();
    allocator.heap_errors.by_kind = vec![HeapErrorCount {
        kind: HeapErrorKind::DoubleFree,
        errors: 3,
    }];
    let figures = *allocator.last.clone().unwrap().figures.all().unwrap();
    for read in both(&report) {
        for (info, value) in COUNTERS.iter().zip(figures.values()) {
            let name = format!("breaktrace_allocator_{}", info.name);
            let found = read
                .value(&name, &[("space", "1")])
                .or_else(|| read.value(&format!("{name}_total"), &[("space", "1")]));
            assert_eq!(found, number(value), "{name}");
        }
        let errors = |kind| read.value("breaktrace_heap_errors_total", &[("kind", kind)]);
        assert_eq!(errors("double_free"), number(3));
        assert_eq!(
            errors("write_after_free"),
            number(0),
            "looked for, and not found"
        );
        assert_eq!(
            read.value("breaktrace_allocator_info", &[("policy", "trim")]),
            number(1)
        );
    }
}

#[test]
fn looks_at_a_heap_are_samples_and_what_they_do_not_know_is_none() {
    let mut report = program(&["x"], &[4096]);
    let mut examination = one_arena(figures(10 * MIB, MIB, 30 * MIB, 0, 20 * MIB, 8 * MIB));
    for read in both(&report) {
        assert_eq!(read.value("breaktrace_malloc_in_use_bytes", &[]), None);
        assert_eq!(read.value("breaktrace_malloc_info", &[]), None);
    }
    let moment = |examination: &HeapExamination| {
        Some(HeapMoment {
            time_ns: Timestamp(1),
            examination: examination.clone(),
        })
    };
    report.address_spaces[0].heap = moment(&examination);
    for read in both(&report) {
        #[expect(clippy::cast_precision_loss, reason = "small numbers")]
        let bytes = |bytes: u64| Some(bytes as f64);
        let value = |name| read.value(name, &[("space", "1")]);
        assert_eq!(value("breaktrace_malloc_in_use_bytes"), bytes(10 * MIB));
        assert_eq!(value("breaktrace_malloc_trimmable_bytes"), bytes(20 * MIB));
        assert_eq!(
            value("breaktrace_malloc_out_of_reach_bytes"),
            bytes(2 * MIB)
        );
        let verdict = [("verdict", "retained"), ("confidence", "all_hold")];
        assert_eq!(read.value("breaktrace_malloc_info", &verdict), Some(1.0));
    }
    examination.heaps[0].total.trimmable_bytes = None;
    report.address_spaces[0].heap = moment(&examination);
    for read in both(&report) {
        assert_eq!(read.value("breaktrace_malloc_trimmable_bytes", &[]), None);
    }
}

#[test]
fn what_can_fall_again_is_no_counter() {
    for info in COUNTERS {
        let family = families::kind_of(info);
        let stands = [
            "in_use", "obtained", "overhead", "top_", "cached", "arenas", "record_",
        ]
        .iter()
        .any(|part| info.name.contains(part))
            || info.name.starts_with("live_")
            || info.name.starts_with("free_")
            || info.name == "thread_caches";
        assert_eq!(family == Kind::Gauge, stands, "{}", info.name);
    }
}

fn path(name: &str, file: Option<&str>, net_bytes: u64) -> CallPath {
    let growth = Growth {
        grown_bytes: net_bytes + 10,
        grow_calls: 1,
        shrunk_bytes: 10,
        net_bytes,
        ..Growth::default()
    };
    CallPath {
        culprit: Some(function(name, file, Some(4))),
        path: vec![name.into()],
        stacks: Vec::new(),
        growth,
        program_break: growth,
        anonymous: Growth::default(),
    }
}

#[test]
fn the_largest_functions_are_named_and_the_others_added_up() {
    let mut report = program(&["app"], &[4096]);
    let paths = &mut report.address_spaces[0].call_paths;
    *paths = (0..5_000)
        .map(|n| path(&format!("f{n}"), None, n))
        .collect();
    paths.push(path("load", Some("a.c"), 100_000));
    paths.push(path("load", Some("a.c"), 1));
    paths.push(CallPath {
        culprit: None,
        ..path("", None, 70_000)
    });
    for read in both(&report) {
        let net =
            |function| read.value("breaktrace_call_path_net_bytes", &[("function", function)]);
        assert_eq!(net("load"), number(100_001), "by whichever path");
        assert_eq!(net("(no stack)"), number(70_000));
        assert_eq!(net("f4999"), number(4_999));
        assert_eq!(net("f1"), None);
        let samples = read
            .samples
            .keys()
            .filter(|(name, _)| name == "breaktrace_call_path_net_bytes");
        assert_eq!(samples.count(), 21);
        let others = (0..5_000 - 18).sum::<u64>();
        assert_eq!(net("(others)"), number(others));
        assert_eq!(
            read.value("breaktrace_call_path_grown_bytes_total", &[("file", "a.c")]),
            number(100_021)
        );
    }
}

#[test]
fn long_names_are_cut_and_those_that_become_the_same_are_added_up() {
    let mut report = program(&["app"], &[4096]);
    let long = "x".repeat(5_000);
    report.address_spaces[0].call_paths = vec![
        path(&format!("{long}1"), None, 5),
        path(&format!("{long}2"), None, 6),
    ];
    for read in both(&report) {
        let cut = "x".repeat(255) + "…";
        assert_eq!(
            read.value("breaktrace_call_path_net_bytes", &[("function", &cut)]),
            number(11)
        );
    }
}

#[test]
fn hostile_names_stay_within_their_labels() {
    let mut report = program(&["app"], &[4096]);
    report.address_spaces[0].program = "/tmp/\"} 7\nbreaktrace_x 1\\".into();
    for read in both(&report) {
        let program = r#"/tmp/"} 7\nbreaktrace_x 1\"#;
        assert_eq!(
            read.value("breaktrace_break_bytes", &[("program", program)]),
            number(4096)
        );
    }
}

#[test]
fn of_thousands_of_programs_those_that_grew_most_have_samples() {
    let mut report = program(&["make"], &[4096]);
    for pid in 0..500 {
        add_process(
            &mut report,
            5_000 + pid,
            &["cc1"],
            &[i64::from(pid) * 4096 + 8192],
        );
    }
    report.main_space = Some(SpaceId(1));
    for read in both(&report) {
        let spaces: BTreeSet<_> = read
            .samples
            .keys()
            .filter(|(name, _)| name == "breaktrace_break_bytes")
            .map(|(_, labels)| labels["space"].clone())
            .collect();
        assert_eq!(spaces.len(), 64);
        assert!(spaces.contains("1"), "the main one");
        assert!(spaces.contains("501"), "the largest");
        assert!(!spaces.contains("2"), "the smallest");
    }
}
