//! The same program on several allocators, side by side.
//!
//! JSON is this structure as it stands. Within a schema version, fields are only added.

use serde::Deserialize;
use serde::Serialize;

use super::InUseMeasure;
use super::Report;
use super::Schema;
use super::Tool;
use super::json;
use crate::event::Outcome;

/// The name by which comparisons are known.
pub const COMPARISON_SCHEMA_NAME: &str = "breaktrace.comparison";

/// The version of their schema.
pub const COMPARISON_SCHEMA_VERSION: u32 = 1;

/// One program on several allocators.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Comparison {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// The program and its arguments.
    pub command: Vec<String>,
    /// Runs of each.
    pub runs: u32,
    /// The allocators, in the order asked for.
    pub columns: Vec<Column>,
    /// What was measured, a value for each column.
    pub rows: Vec<Row>,
}

/// One allocator.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Column {
    /// Its name as asked for.
    pub name: String,
    /// How the program ended in its last run; `null` when that is not known.
    pub outcome: Option<Outcome>,
    /// Whether standard output and ending were the same as in the first run of the first column.
    pub same_result: bool,
    /// The program that the rows are about, of all that ran: the one whose heap grew most. `null` when it was not
    /// the same in all runs, or none was seen.
    #[serde(default)]
    pub program: Option<String>,
    /// Why that program did not use the bundled allocator, in words; `null` when it did, and for other allocators.
    #[serde(default)]
    pub absence: Option<String>,
    /// Errors in the program's use of its heap that the bundled allocator found; `null` for others.
    pub heap_errors: Option<u64>,
    /// Differences between the allocator's account, the kernel's, and `/proc`, over all runs.
    pub differences: u64,
    /// What counts as in use here; `null` where the allocator told nothing.
    #[serde(default)]
    pub in_use_is: Option<InUseMeasure>,
}

/// What a row's numbers are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RowUnit {
    /// Bytes.
    Bytes,
    /// How many.
    Count,
    /// Nanoseconds.
    Nanoseconds,
}

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What its numbers are.
    pub unit: RowUnit,
    /// Its meaning.
    pub meaning: String,
    /// Whether it depends on the machine's speed and load.
    pub advisory: bool,
    /// Medians over the runs, one for each column; `null` where it is not known.
    pub values: Vec<Option<u64>>,
}

/// How a number is taken from a report.
type Measure = fn(&Report) -> Option<u64>;

/// The rows: name, unit, whether advisory, meaning, and where the number comes from. All but the sums are about the
/// address space whose heap grew most.
const ROWS: &[(&str, RowUnit, bool, &str, Measure)] = &[
    (
        "break_peak",
        RowUnit::Bytes,
        false,
        "largest size of the heap at the program break",
        |report| report.main()?.program_break.peak_bytes,
    ),
    (
        "break_end",
        RowUnit::Bytes,
        false,
        "size of the heap at the program break at the end",
        |report| report.main()?.program_break.end_bytes,
    ),
    (
        "break_grown",
        RowUnit::Bytes,
        false,
        "bytes by which the break grew",
        |report| Some(report.main()?.program_break.grown_bytes),
    ),
    (
        "break_shrunk",
        RowUnit::Bytes,
        false,
        "bytes by which the break shrank",
        |report| Some(report.main()?.program_break.shrunk_bytes),
    ),
    (
        "mapped_peak",
        RowUnit::Bytes,
        false,
        "most anonymous memory outside the break",
        |report| Some(report.main()?.anonymous.peak_bytes),
    ),
    (
        "mapped_end",
        RowUnit::Bytes,
        false,
        "anonymous memory outside the break at the end",
        |report| Some(report.main()?.anonymous.end_bytes),
    ),
    (
        "kept_at_end",
        RowUnit::Bytes,
        false,
        "break and anonymous memory at the end",
        |report| {
            let space = report.main()?;
            space
                .program_break
                .end_bytes?
                .checked_add(space.anonymous.end_bytes)
        },
    ),
    (
        "in_use_peak",
        RowUnit::Bytes,
        false,
        "most bytes that the program had asked for and not freed",
        |report| {
            let last = report.main()?.allocator.as_ref()?.last.as_ref()?;
            last.figures.get("in_use_peak_bytes")
        },
    ),
    (
        "obtained_peak",
        RowUnit::Bytes,
        false,
        "most bytes that the bundled allocator had from the kernel",
        |report| {
            let last = report.main()?.allocator.as_ref()?.last.as_ref()?;
            last.figures.get("obtained_peak_bytes")
        },
    ),
    (
        "overhead_at_peak",
        RowUnit::Bytes,
        false,
        "of these, neither in use nor free, at the reading with the most",
        |report| {
            let allocator = report.main()?.allocator.as_ref()?;
            // Another is looked at now and then only, and perhaps not near its peak.
            let counts = allocator.in_use_is == InUseMeasure::Requested;
            let largest = allocator.largest.as_ref().filter(|_| counts)?;
            largest.figures.get("overhead_bytes")
        },
    ),
    (
        "in_use_end",
        RowUnit::Bytes,
        false,
        "not freed at the end: what was asked for on the bundled allocator, what the blocks hold on glibc's",
        |report| at_end(report, "in_use_bytes"),
    ),
    (
        "free_end",
        RowUnit::Bytes,
        false,
        "kept free by the allocator at the end",
        |report| at_end(report, "free_bytes")?.checked_add(at_end(report, "top_bytes")?),
    ),
    (
        "obtained_end",
        RowUnit::Bytes,
        false,
        "what the allocator had from the kernel at the end",
        |report| at_end(report, "obtained_bytes"),
    ),
    (
        "resident_peak",
        RowUnit::Bytes,
        true,
        "most resident memory",
        |report| Some(report.main()?.memory_at_end?.resident_peak_bytes),
    ),
    (
        "brk_calls",
        RowUnit::Count,
        false,
        "brk calls of all processes",
        |report| calls(report, &["brk"]),
    ),
    (
        "map_calls",
        RowUnit::Count,
        false,
        "mmap, munmap and mremap calls of all processes",
        |report| calls(report, &["mmap", "munmap", "mremap"]),
    ),
    (
        "madvise_calls",
        RowUnit::Count,
        false,
        "madvise calls of all processes",
        |report| calls(report, &["madvise"]),
    ),
    (
        "time",
        RowUnit::Nanoseconds,
        true,
        "time from start to end, tracing included",
        |report| Some(report.end.duration_ns.0),
    ),
];

/// A figure of the allocator's as last read.
fn at_end(report: &Report, name: &str) -> Option<u64> {
    let last = report.main()?.allocator.as_ref()?.last.as_ref()?;
    last.figures.get(name)
}

#[expect(clippy::unnecessary_wraps, reason = "one of the measures")]
fn calls(report: &Report, names: &[&str]) -> Option<u64> {
    let counts = report.totals.calls.iter();
    Some(
        counts
            .filter(|count| names.contains(&count.name.as_str()))
            .map(|count| count.calls)
            .sum(),
    )
}

/// One run of the program.
#[derive(Clone, Debug)]
pub struct Run {
    /// What was recorded.
    pub report: Report,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Whether output and ending were those of the first run of all.
    pub same_result: bool,
}

impl Comparison {
    /// Sums up the runs of each allocator; every list holds at least one run.
    #[must_use]
    pub fn of(command: Vec<String>, allocators: &[(String, Vec<Run>)]) -> Self {
        Self {
            schema: Schema {
                name: COMPARISON_SCHEMA_NAME.to_owned(),
                version: COMPARISON_SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            command,
            runs: allocators
                .first()
                .map_or(0, |(_, runs)| u32::try_from(runs.len()).unwrap_or(u32::MAX)),
            columns: allocators
                .iter()
                .map(|(name, runs)| column(name, runs))
                .collect(),
            rows: ROWS
                .iter()
                .map(|&(name, unit, advisory, meaning, measure)| Row {
                    name: name.to_owned(),
                    unit,
                    meaning: meaning.to_owned(),
                    advisory,
                    values: allocators
                        .iter()
                        .map(|(_, runs)| median(runs.iter().filter_map(|run| measure(&run.report))))
                        .collect(),
                })
                .filter(|row| row.values.iter().any(Option::is_some))
                .collect(),
        }
    }

    /// Writes it as indented JSON with a final newline.
    ///
    /// # Panics
    ///
    /// Never: it holds only strings, numbers and lists.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::document(self)
    }
}

fn column(name: &str, runs: &[Run]) -> Column {
    let heap_errors: Vec<u64> = runs
        .iter()
        .flat_map(|run| &run.report.address_spaces)
        .filter_map(|space| space.allocator.as_ref())
        .filter(|allocator| allocator.last.is_some())
        .map(|allocator| allocator.heap_errors.total)
        .collect();
    Column {
        name: name.to_owned(),
        outcome: runs.last().and_then(|run| run.outcome),
        same_result: runs.iter().all(|run| run.same_result),
        program: program(runs),
        absence: runs.iter().find_map(absence),
        heap_errors: (!heap_errors.is_empty()).then(|| heap_errors.iter().sum()),
        differences: runs
            .iter()
            .flat_map(|run| &run.report.address_spaces)
            .map(|space| {
                let own = space.allocator.as_ref();
                space.checks.differing
                    + own.map_or(0, |own| own.checks.differing + own.checks.sums_differing)
            })
            .sum(),
        in_use_is: runs.iter().find_map(|run| {
            let allocator = run.report.main()?.allocator.as_ref()?;
            allocator.last.as_ref().map(|_| allocator.in_use_is)
        }),
    }
}

/// What the rows are about, if that is the same in all runs.
fn program(runs: &[Run]) -> Option<String> {
    let mut names = runs
        .iter()
        .map(|run| run.report.main().map(|space| space.program.as_str()));
    let first = names.next()??;
    names
        .all(|name| name == Some(first))
        .then(|| first.to_owned())
}

fn absence(run: &Run) -> Option<String> {
    let allocator = run.report.main()?.allocator.as_ref()?;
    Some(allocator.absence.as_ref()?.message.clone())
}

/// The middle value; of an even number, the lower of the two.
fn median(values: impl Iterator<Item = u64>) -> Option<u64> {
    let mut values: Vec<u64> = values.collect();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(median([].into_iter()), None);
        assert_eq!(median([3].into_iter()), Some(3));
        assert_eq!(median([9, 1].into_iter()), Some(1));
        assert_eq!(median([9, 1, 4].into_iter()), Some(4));
    }
}
