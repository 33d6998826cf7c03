//! The timelines as comma-separated values (RFC 4180), for spreadsheets and data frames.

use std::fmt::Write as _;

use crate::render::words;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::TimelinePoint;

/// The columns, named as in the report, each number with its unit.
const COLUMNS: [&str; 14] = [
    "time_ns",
    "pid",
    "space",
    "program",
    "break_bytes",
    "break_min_bytes",
    "break_max_bytes",
    "anonymous_bytes",
    "anonymous_min_bytes",
    "anonymous_max_bytes",
    "resident_bytes",
    "allocator_in_use_bytes",
    "allocator_in_use_max_bytes",
    "allocator_obtained_bytes",
];

/// One record for each point of each timeline: address spaces in order of appearance, their points in order of time.
/// What is not known is an empty cell.
pub(in crate::render) fn csv(report: &Report) -> Vec<u8> {
    let mut out = COLUMNS.join(",");
    out.push_str("\r\n");
    for space in &report.address_spaces {
        let program = text_cell(&space.program);
        for point in &space.timeline.points {
            push_record(&mut out, space, &program, point);
        }
    }
    out.into_bytes()
}

fn push_record(out: &mut String, space: &SpaceReport, program: &str, point: &TimelinePoint) {
    let known_break = space.program_break.end_bytes.is_some();
    let of_break = |bytes: u64| known_break.then_some(bytes);
    // A `String` takes all that is written to it.
    let _ = write!(
        out,
        "{},{},{},{program}",
        point.time_ns.0, space.pid, space.id.0
    );
    let sizes = [
        of_break(point.break_bytes),
        of_break(point.break_min_bytes),
        of_break(point.break_max_bytes),
        Some(point.anonymous_bytes),
        Some(point.anonymous_min_bytes),
        Some(point.anonymous_max_bytes),
        point.resident_bytes,
        point.allocator_in_use_bytes,
        point.allocator_in_use_max_bytes,
        point.allocator_obtained_bytes,
    ];
    for size in sizes {
        out.push(',');
        if let Some(bytes) = size {
            let _ = write!(out, "{bytes}");
        }
    }
    out.push_str("\r\n");
}

/// Text as a cell: always within quotes, on one line, and never a formula.
///
/// A program chooses its own name, and spreadsheets compute cells that begin with `=`, `+`, `-` or `@`, in some
/// languages also those with the wide forms. Some split at `;` or tabs, and then take quotes in the midst of a record
/// for ordinary characters, so what would begin a formula counts after those as well. An apostrophe before it makes it
/// text (OWASP, CSV Injection).
fn text_cell(text: &str) -> String {
    let mut out = String::from("\"");
    let mut begins = true;
    for character in words::harmless(text).chars() {
        let computes = matches!(character, '=' | '+' | '-' | '@' | '＝' | '＋' | '－' | '＠');
        if begins && computes {
            out.push('\'');
        }
        if character == '"' {
            out.push('"');
        }
        out.push(character);
        let separates = matches!(character, ',' | ';' | '|' | '"');
        begins = separates || (begins && character.is_whitespace());
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::KIB;
    use crate::render::tests::program;
    use crate::report::SpaceReport;
    use crate::units::Timestamp;

    fn render(report: &Report) -> String {
        String::from_utf8(csv(report)).unwrap()
    }

    /// The records of an RFC 4180 text; panics where it is none.
    fn records(text: &str) -> Vec<Vec<String>> {
        let mut records = Vec::new();
        let mut rest = text;
        while !rest.is_empty() {
            let mut record = Vec::new();
            loop {
                let (cell, after) = cell(rest);
                record.push(cell);
                if let Some(next) = after.strip_prefix(',') {
                    rest = next;
                } else {
                    rest = after.strip_prefix("\r\n").expect("records end with CRLF");
                    break;
                }
            }
            records.push(record);
        }
        records
    }

    fn cell(text: &str) -> (String, &str) {
        let Some(mut rest) = text.strip_prefix('"') else {
            let end = text.find([',', '\r', '\n', '"']).unwrap_or(text.len());
            return (text[..end].to_owned(), &text[end..]);
        };
        let mut out = String::new();
        loop {
            let (before, after) = rest.split_once('"').expect("a quoted cell ends");
            out.push_str(before);
            match after.strip_prefix('"') {
                Some(next) => {
                    out.push('"');
                    rest = next;
                }
                None => return (out, after),
            }
        }
    }

    fn number(record: &[String], column: &str) -> Option<u64> {
        let index = COLUMNS.iter().position(|name| *name == column).unwrap();
        let text = &record[index];
        (!text.is_empty()).then(|| text.parse().unwrap())
    }

    fn main(report: &mut Report) -> &mut SpaceReport {
        &mut report.address_spaces[0]
    }

    #[test]
    fn each_point_is_a_record_and_the_numbers_are_the_report_s() {
        let mut report = program(&["sort"], &[132 * 1024, 4096, -4096, 8192]);
        main(&mut report).timeline.points[2].resident_bytes = Some(77);
        let records = records(&render(&report));
        assert_eq!(records[0], COLUMNS);
        let points = &report.address_spaces[0].timeline.points;
        assert_eq!(records.len(), 1 + points.len());
        for (record, point) in records[1..].iter().zip(points) {
            assert_eq!(record.len(), COLUMNS.len());
            assert_eq!(number(record, "time_ns"), Some(point.time_ns.0));
            assert_eq!(number(record, "pid"), Some(4_711));
            assert_eq!(number(record, "space"), Some(1));
            assert_eq!(record[3], "/usr/bin/sort");
            assert_eq!(number(record, "break_bytes"), Some(point.break_bytes));
            assert_eq!(
                number(record, "break_min_bytes"),
                Some(point.break_min_bytes)
            );
            assert_eq!(
                number(record, "break_max_bytes"),
                Some(point.break_max_bytes)
            );
            assert_eq!(number(record, "anonymous_bytes"), Some(60 * KIB));
            assert_eq!(number(record, "anonymous_min_bytes"), Some(60 * KIB));
            assert_eq!(number(record, "anonymous_max_bytes"), Some(72 * KIB));
            assert_eq!(number(record, "resident_bytes"), point.resident_bytes);
        }
        let last = &records[records.len() - 1];
        assert_eq!(
            number(last, "break_bytes"),
            report.address_spaces[0].program_break.end_bytes
        );
        let most = records[1..]
            .iter()
            .map(|record| number(record, "break_max_bytes"))
            .max();
        assert_eq!(
            most.flatten(),
            report.address_spaces[0].program_break.peak_bytes
        );
    }

    #[test]
    fn what_is_not_known_is_an_empty_cell_and_no_zero() {
        let mut report = program(&["sort"], &[4096]);
        let point = &mut main(&mut report).timeline.points[0];
        point.allocator_in_use_bytes = Some(0);
        let record = &records(&render(&report))[1];
        assert_eq!(number(record, "allocator_in_use_bytes"), Some(0));
        assert_eq!(number(record, "allocator_in_use_max_bytes"), None);
        assert_eq!(number(record, "allocator_obtained_bytes"), None);
        assert_eq!(number(record, "resident_bytes"), None);
        main(&mut report).program_break.end_bytes = None;
        let record = &records(&render(&report))[1];
        assert_eq!(number(record, "break_bytes"), None);
        assert_eq!(number(record, "break_min_bytes"), None);
        assert_eq!(number(record, "break_max_bytes"), None);
    }

    #[test]
    fn without_a_timeline_there_is_the_header_alone() {
        let mut report = program(&["true"], &[]);
        main(&mut report).timeline.points.clear();
        assert_eq!(render(&report), COLUMNS.join(",") + "\r\n");
        report.address_spaces.clear();
        assert_eq!(records(&render(&report)).len(), 1);
    }

    #[test]
    fn names_with_separators_quotes_and_line_ends_stay_one_cell() {
        let mut report = program(&["sort"], &[4096]);
        main(&mut report).program = "/tmp/a,b\"c\r\nd\te\u{202e}".into();
        let records = records(&render(&report));
        assert_eq!(records.len(), 2);
        assert_eq!(records[1][3], r#"/tmp/a,b"c\r\nd\te\u{202e}"#);
    }

    #[test]
    fn no_name_becomes_a_formula() {
        for (name, cell) in [
            ("=1+1", "'=1+1"),
            ("+1", "'+1"),
            ("-1", "'-1"),
            ("@SUM(A1)", "'@SUM(A1)"),
            ("  =1", "  '=1"),
            ("＝1", "'＝1"),
            ("\t=1", r"\t=1"),
            ("/tmp/x;=1", "/tmp/x;'=1"),
            ("/tmp/x,\"@a", "/tmp/x,\"\"'@a"),
            ("/opt/g++-12/a=b@c", "/opt/g++-12/a=b@c"),
        ] {
            assert_eq!(text_cell(name), format!("\"{cell}\""), "{name}");
        }
    }

    #[test]
    fn times_are_whole_nanoseconds() {
        let mut report = program(&["sort"], &[4096]);
        main(&mut report).timeline.points[0].time_ns = Timestamp(u64::MAX);
        let record = &records(&render(&report))[1];
        assert_eq!(record[0], "18446744073709551615");
    }
}
