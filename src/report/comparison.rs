//! The same program on several allocators, side by side.
//!
//! JSON is this structure as it stands. Within a schema version, fields are only added.

use serde::Deserialize;
use serde::Serialize;

use super::InUseMeasure;
use super::Report;
use super::Schema;
use super::Tool;
use super::gate;
use super::gate::Measured;
use super::gate::Metric;
use super::gate::MetricUnit;
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

/// One thing that was measured.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// What its numbers are.
    pub unit: MetricUnit,
    /// Its meaning.
    pub meaning: String,
    /// Whether it depends on the machine's speed and load.
    pub advisory: bool,
    /// Medians over the runs, one for each column; `null` where it is not known.
    pub values: Vec<Option<u64>>,
}

/// The metrics that are compared, in this order.
const COMPARED: [&str; 18] = [
    "heap.peak",
    "heap.end",
    "break.peak",
    "break.end",
    "break.grown",
    "break.shrunk",
    "mapped.peak",
    "mapped.end",
    "allocator.in_use_peak",
    "allocator.obtained_peak",
    "allocator.overhead",
    "allocator.never_freed",
    "allocator.free_end",
    "allocator.obtained_end",
    "resident.peak",
    "calls.brk",
    "calls.madvise",
    "time",
];

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
            rows: rows(allocators),
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

fn rows(allocators: &[(String, Vec<Run>)]) -> Vec<Row> {
    let measured: Vec<Vec<Measured>> = allocators
        .iter()
        .map(|(_, runs)| runs.iter().map(|run| Measured::of(&run.report)).collect())
        .collect();
    let metrics = COMPARED.iter().filter_map(|name| Metric::named(name));
    metrics
        .map(|metric| Row {
            name: metric.name.to_owned(),
            unit: metric.unit,
            meaning: metric.meaning.to_owned(),
            advisory: !metric.repeatable,
            values: measured
                .iter()
                .map(|runs| {
                    let values: Vec<u64> = runs
                        .iter()
                        .filter_map(|run| run.whole.get(metric.name).copied())
                        .collect();
                    gate::median(&values)
                })
                .collect(),
        })
        .filter(|row| row.values.iter().any(Option::is_some))
        .collect()
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
