//! A comparison as a table: allocators side by side, the first as the measure.

use super::TextOptions;
use super::style::Line;
use super::style::Tone;
use super::table::Cell;
use super::table::Column;
use super::table::Table;
use super::words;
use crate::event::Outcome;
use crate::report::Comparison;
use crate::report::InUseMeasure;
use crate::report::Row;

/// Shows a comparison, a table of several if the line is too short for all allocators.
#[must_use]
pub fn comparison(comparison: &Comparison, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut lines = vec![heading(comparison, options.width)];
    lines.push(Line::default());
    for group in groups(comparison, options.width) {
        // The columns' names are a row, as no two tables have the same.
        lines.extend(
            table(comparison, &group)
                .lines(options.width)
                .into_iter()
                .skip(1),
        );
        lines.push(Line::default());
    }
    lines.extend(remarks(comparison).iter().flat_map(|remark| {
        words::wrap(remark, options.width)
            .into_iter()
            .map(|line| Line::of(Tone::Plain, &line))
    }));
    let mut text = String::new();
    for line in lines {
        text.push_str(line.paint(options.color).trim_end());
        text.push('\n');
    }
    text
}

fn heading(comparison: &Comparison, width: usize) -> Line {
    let program = comparison.command.first().map_or("", String::as_str);
    let runs = if comparison.runs > 1 {
        format!("  medians of {} runs each", comparison.runs)
    } else {
        String::new()
    };
    let command = words::command(program, &comparison.command);
    let room = width.saturating_sub(words::columns(&runs));
    let mut line = Line::of(Tone::Strong, &words::cut(&command, room));
    line.push(Tone::Faint, &runs);
    line
}

/// Columns that fit beside each other; the first is in each group, as all are measured by it.
fn groups(comparison: &Comparison, width: usize) -> Vec<Vec<usize>> {
    const VALUE: usize = 20;
    let names = comparison
        .rows
        .iter()
        .map(|row| row.name.len() + 1)
        .max()
        .unwrap_or_default();
    let fitting = (width.saturating_sub(names) / VALUE).max(2);
    let others: Vec<usize> = (1..comparison.columns.len()).collect();
    if others.is_empty() {
        return vec![vec![0]];
    }
    others
        .chunks(fitting - 1)
        .map(|chunk| [&[0], chunk].concat())
        .collect()
}

fn table(comparison: &Comparison, group: &[usize]) -> Table {
    let mut columns = vec![Column::words("").space(0)];
    columns.extend(group.iter().map(|_| Column::number("").space(3)));
    let mut table = Table::new(columns);
    let names = group
        .iter()
        .map(|&index| Cell::of(Tone::Strong, &short_name(&comparison.columns[index].name)));
    table.row([Cell::plain("")].into_iter().chain(names).collect());
    let is_known = |row: &&Row| {
        group
            .iter()
            .any(|&index| row.values.get(index).is_some_and(Option::is_some))
    };
    for row in comparison.rows.iter().filter(is_known) {
        let mut cells = vec![Cell::plain(&row.name)];
        cells.extend(group.iter().map(|&index| cell(row, index)));
        table.row(cells);
    }
    table
}

fn short_name(name: &str) -> String {
    words::cut(words::program(name).trim_end_matches(".so"), 18)
}

fn cell(row: &Row, index: usize) -> Cell {
    let Some(value) = row.values.get(index).copied().flatten() else {
        return Cell::of(Tone::Faint, "–");
    };
    let text = super::gate::value(row.unit, value);
    let first = row.values.first().copied().flatten();
    match first.filter(|&first| index > 0 && first > 0) {
        #[expect(
            clippy::cast_precision_loss,
            reason = "shown with two digits behind the point"
        )]
        Some(first) => Cell::plain(format!("{text}  {:.2}×", value as f64 / first as f64)),
        None if index > 0 => Cell::plain(format!("{text}       ")),
        None => Cell::plain(text),
    }
}

/// What a reader must know before believing the numbers.
fn remarks(comparison: &Comparison) -> Vec<String> {
    let mut remarks = Vec::new();
    let measured = comparison.columns.first();
    for column in &comparison.columns {
        if let Some(absence) = &column.absence {
            remarks.push(format!(
                "{}: not used by the program: {absence}",
                column.name
            ));
        }
        if measured.is_some_and(|first| first.program != column.program) {
            remarks.push(format!(
                "{}: the program whose heap grew most is {}, in the first column {}",
                column.name,
                program(column.program.as_ref()),
                program(measured.and_then(|first| first.program.as_ref()))
            ));
        }
        if !column.same_result {
            remarks.push(format!(
                "{}: output or ending differ from the first run's; it ended {}",
                column.name,
                ending(column.outcome)
            ));
        }
        match column.heap_errors {
            Some(errors) if errors > 0 => remarks.push(format!(
                "{}: {} found; `breaktrace run --allocator bundled` tells which",
                column.name,
                words::count(errors, "heap error", "heap errors")
            )),
            _ => {}
        }
        if column.differences > 0 {
            remarks.push(format!(
                "{}: {} between what was traced and what /proc or the allocator says",
                column.name,
                words::count(column.differences, "difference", "differences")
            ));
        }
    }
    let measures = |measure| {
        let mut columns = comparison.columns.iter();
        columns.any(|column| column.in_use_is == Some(measure))
    };
    if measures(InUseMeasure::Requested) && measures(InUseMeasure::Usable) {
        remarks.push(
            "in use is what was asked for on the bundled malloc, and what the blocks hold, rounded up, on glibc's"
                .to_owned(),
        );
    }
    let several = comparison.columns.len() > 1 || comparison.runs > 1;
    if several && comparison.columns.iter().all(|column| column.same_result) {
        remarks.push("output and ending were the same in all runs".to_owned());
    }
    remarks.push(
        "time includes tracing and depends, like resident memory, on the machine's load".to_owned(),
    );
    remarks
}

fn program(name: Option<&String>) -> String {
    name.map_or_else(
        || "several programs".to_owned(),
        |name| words::program(name).to_owned(),
    )
}

fn ending(outcome: Option<Outcome>) -> String {
    match outcome {
        Some(Outcome::Exited(code)) => format!("with status {code}"),
        Some(Outcome::Killed { signal, .. }) => format!("by {}", words::signal(signal)),
        Some(Outcome::Detached | Outcome::Vanished) | None => "unseen".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::MIB;
    use super::super::tests::program;
    use super::*;
    use crate::render::Charset;
    use crate::report::Run;

    const NARROW: TextOptions = TextOptions {
        width: 80,
        color: false,
        charset: Charset::Unicode,
        verbose: false,
    };

    fn run(moves: &[i64], same_result: bool) -> Run {
        Run {
            report: program(&["./main"], moves),
            outcome: Some(Outcome::Exited(0)),
            same_result,
        }
    }

    fn moved(bytes: u64) -> i64 {
        i64::try_from(bytes).unwrap()
    }

    fn of(columns: &[(&str, Run)]) -> Comparison {
        let columns: Vec<_> = columns
            .iter()
            .map(|(name, run)| ((*name).to_owned(), vec![run.clone()]))
            .collect();
        Comparison::of(vec!["./main".to_owned()], &columns)
    }

    #[test]
    fn values_stand_beside_the_first_with_their_ratio_to_it() {
        let text = comparison(
            &of(&[
                ("system", run(&[moved(MIB)], true)),
                ("bundled", run(&[moved(2 * MIB)], true)),
            ]),
            NARROW,
        );
        let row = text
            .lines()
            .find(|line| line.starts_with("break.peak"))
            .unwrap();
        let words: Vec<_> = row.split_whitespace().collect();
        assert_eq!(
            words,
            ["break.peak", "1", "MiB", "2", "MiB", "2.00×"],
            "{text}"
        );
    }

    #[test]
    fn more_allocators_than_fit_go_into_further_tables_beside_the_first() {
        let names = ["system", "bundled", "/lib/libjemalloc.so.2", "c", "d", "e"];
        let columns: Vec<_> = names
            .iter()
            .map(|name| (*name, run(&[moved(MIB)], true)))
            .collect();
        let text = comparison(&of(&columns), NARROW);
        let longest = text.lines().map(|line| line.chars().count()).max();
        assert!(longest <= Some(80), "{text}");
        let headings = text.lines().filter(|line| line.contains("system")).count();
        assert_eq!(headings, 3, "{text}");
        assert!(text.contains("libjemalloc"), "{text}");
    }

    #[test]
    fn a_long_command_is_cut_to_the_line() {
        let mut wide = of(&[("system", run(&[moved(MIB)], true))]);
        wide.command.push("x".repeat(200));
        wide.runs = 3;
        let text = comparison(&wide, NARROW);
        let heading = text.lines().next().unwrap();
        assert!(words::columns(heading) <= 80, "{text}");
        assert!(heading.ends_with("medians of 3 runs each"), "{text}");
    }

    #[test]
    fn a_run_that_differs_is_named_and_nothing_is_called_the_same() {
        let text = comparison(
            &of(&[
                ("system", run(&[moved(MIB)], true)),
                ("bundled", run(&[moved(MIB)], false)),
            ]),
            NARROW,
        );
        assert!(text.contains("bundled: output or ending differ"), "{text}");
        assert!(!text.contains("were the same"), "{text}");
    }

    #[test]
    fn columns_about_different_programs_say_so() {
        let other = Run {
            report: program(&["/bin/helper"], &[moved(MIB)]),
            ..run(&[], true)
        };
        let text = comparison(
            &of(&[("system", run(&[moved(MIB)], true)), ("bundled", other)]),
            NARROW,
        );
        assert!(
            text.contains("bundled: the program whose heap grew most is helper"),
            "{text}"
        );
    }
}
