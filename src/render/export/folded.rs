//! Folded stacks: `outermost;…;innermost 4096`, one line per stack, as flamegraph.pl reads them.

use std::collections::BTreeMap;

use super::Measure;
use super::frames::NamedFrame;
use super::frames::StackTable;
use super::frames::file_name;
use super::frames::growths;
use super::frames::program_name;
use crate::report::Report;

/// One line per distinct call path with a value; none for what measures zero.
pub(crate) fn folded(report: &Report, measure: Measure) -> Vec<u8> {
    let table = StackTable::of(report);
    let mut values: BTreeMap<String, u64> = BTreeMap::new();
    for (space, growth) in growths(report) {
        let value = measure.of_both(growth);
        if value == 0 {
            continue;
        }
        let mut line = safe(&program_name(report, space));
        for frame in table.outermost_first(table.stack(growth.stack)) {
            line.push(';');
            line.push_str(&safe(&shown(&frame)));
        }
        let sum = values.entry(line).or_default();
        *sum = sum.saturating_add(value);
    }
    values
        .into_iter()
        .map(|(line, value)| format!("{line} {value}\n"))
        .collect::<String>()
        .into_bytes()
}

/// Functions of an interpreter with their files: every module's outermost one has the same name.
fn shown(frame: &NamedFrame) -> String {
    match &frame.file {
        Some(file) if frame.is_interpreted => format!("{} ({})", frame.name, file_name(file)),
        _ => frame.name.clone(),
    }
}

/// A name that cannot be taken for two frames, or for a frame and a number: flamegraph.pl takes a number before the
/// last one for a second column, that of a difference. Line breaks are gone already.
fn safe(name: &str) -> String {
    let name = name.replace(';', ":");
    let is_number = |word: &str| {
        word.starts_with(|first: char| first.is_ascii_digit())
            && word.chars().all(|c| c.is_ascii_digit() || c == '.')
    };
    match name.rsplit_once(char::is_whitespace) {
        Some((before, last)) if is_number(last) => format!("{before}_{last}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::export::tests;

    fn text(report: &Report, measure: Measure) -> String {
        String::from_utf8(folded(report, measure)).unwrap()
    }

    /// As flamegraph.pl reads a line: frames, and the number after the last space.
    fn parsed(text: &str) -> Vec<(Vec<&str>, u64)> {
        text.lines()
            .map(|line| {
                let (frames, value) = line.rsplit_once(' ').unwrap();
                (frames.split(';').collect(), value.parse().unwrap())
            })
            .collect()
    }

    #[test]
    fn frames_stand_outermost_first_and_inlined_ones_on_their_own() {
        assert_eq!(
            text(&tests::with_stacks(), Measure::Net),
            "python3;<module> (build.py);fast.so+0x1234;brk 69632\n\
             python3;<module> (build.py);load (build.py);fast.so+0x1234;malloc;sysmalloc;brk 104096\n\
             python3;[stack not recorded] 6144\n\
             python3;[truncated];perf-4711.map+0x7f0000001000;malloc;sysmalloc;brk 4096\n"
        );
    }

    #[test]
    fn several_processes_are_told_apart_by_their_numbers() {
        let report = tests::of_two_processes();
        let text = text(&report, Measure::Net);
        for root in ["python3 (4711);", "python3 (4712);"] {
            assert_eq!(
                text.lines().filter(|line| line.starts_with(root)).count(),
                4
            );
        }
    }

    #[test]
    fn the_lines_add_up_whatever_the_measure_and_the_names() {
        for (name, report) in tests::every_report() {
            for measure in Measure::ALL {
                let text = text(&report, measure);
                let sum = parsed(&text)
                    .iter()
                    .fold(0, |sum: u64, (_, value)| sum.saturating_add(*value));
                assert_eq!(sum, tests::total(&report, measure), "{name}: {measure:?}");
            }
        }
    }

    #[test]
    fn what_measures_zero_has_no_line() {
        let text = text(&tests::with_stacks(), Measure::Returned);
        assert_eq!(text.lines().count(), 1, "{text}");
        assert!(text.ends_with(" 32768\n"));
    }

    #[test]
    fn a_name_breaks_neither_lines_nor_frames_nor_numbers() {
        let text = text(&tests::hostile(), Measure::Net);
        let whole = text.lines().find(|line| line.contains("a:b")).unwrap();
        let (frames, _) = &parsed(whole)[0];
        assert_eq!(frames.len(), 14, "{frames:?}");
        for (name, shown) in [
            ("a;b", "a:b"),
            ("line\nbreak 7", "line\\nbreak_7"),
            ("operator new 12", "operator new_12"),
        ] {
            assert!(frames.contains(&shown), "{name}: {frames:?}");
        }
        assert!(!text.contains('\x1b') && !text.contains('\u{202e}'));
    }
}
