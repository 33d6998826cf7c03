//! What changed between two recordings.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use serde::Deserialize;
use serde::Serialize;

use super::baseline::Measurements;
use super::measured::median;
use super::metrics::Better;
use super::metrics::METRICS;
use super::metrics::Metric;
use super::metrics::MetricUnit;
use super::paths;
use super::paths::PathChange;
use super::subject;
use super::subject::Subject;
use crate::event::Outcome;
use crate::event::StackId;
use crate::report::Report;
use crate::report::Schema;
use crate::report::SpaceReport;
use crate::report::StepExplanation;
use crate::report::Tool;
use crate::report::json;

/// The name by which such documents are known.
pub const DIFF_SCHEMA_NAME: &str = "breaktrace.diff";
/// The version of their schema.
pub const DIFF_SCHEMA_VERSION: u32 = 1;

/// Steps of each recording that are aligned.
const MOST_STEPS: usize = 2000;
/// Changes of steps that are kept.
const MOST_STEP_CHANGES: usize = 100;
/// Metrics that are compared program by program.
const OF_PROGRAMS: [&str; 4] = ["heap.peak", "heap.end", "break.grown", "mapped.grown"];

/// One of the two.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Side {
    /// The file that it was read from; `null` when nobody said.
    pub file: Option<String>,
    /// The program, without its folder, and its arguments.
    pub command: Vec<String>,
    /// The malloc: `system`, `bundled`, or a library.
    pub allocator: String,
    /// How the program ended.
    pub outcome: Outcome,
    /// How often it ran.
    pub runs: u32,
    /// Processes that were seen; `null` for a baseline.
    pub processes: Option<u64>,
    /// Whether it has steps: a baseline does not.
    pub has_steps: bool,
    /// Whether it has call paths.
    pub has_paths: bool,
}

/// One metric on both sides.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MetricChange {
    /// Its name.
    pub metric: String,
    /// The program whose figure it is; `null` for the whole recording.
    pub program: Option<String>,
    /// What it counts.
    pub unit: MetricUnit,
    /// Which way is good.
    pub better: Better,
    /// Whether it depends on the program alone.
    pub repeatable: bool,
    /// Before; `null` when it was not measured.
    pub before: Option<u64>,
    /// After; `null` likewise.
    pub after: Option<u64>,
    /// By how much it is more.
    pub delta: Option<i64>,
    /// The same as a share of what was before; `null` where that is 0.
    pub change: Option<f64>,
}

/// Whether a step came or went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum StepChangeKind {
    /// It is in the second recording only.
    Came,
    /// It is in the first recording only.
    Went,
}

/// A move of the break that only one of the recordings has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StepChange {
    /// Which.
    pub kind: StepChangeKind,
    /// Its number among the moves of its recording, from 1.
    pub number: u64,
    /// By how much the break moved, in bytes.
    pub delta_bytes: i64,
    /// Size of the heap afterwards.
    pub after_bytes: u64,
    /// The call path, innermost function first; `null` when not known.
    pub path: Option<String>,
    /// Why malloc did it; `null` when not known.
    pub explanation: Option<StepExplanation>,
}

/// What changed between two recordings.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct RecordingDiff {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// The first.
    pub before: Side,
    /// The second.
    pub after: Side,
    /// In what they differ besides, in words: another allocator, another environment.
    pub differences: Vec<String>,
    /// All metrics that either has, in the order of `breaktrace metrics`; of single programs those that changed.
    pub metrics: Vec<MetricChange>,
    /// Call paths that came, grew, shrank or went, the largest change first.
    pub call_paths: Vec<PathChange>,
    /// Moves of the break that only one of them has, in order; of the address space whose heap grew most.
    pub steps: Vec<StepChange>,
    /// Steps that came or went and are not listed.
    pub steps_left_out: u64,
    /// What a reader should know besides.
    pub notes: Vec<String>,
}

impl RecordingDiff {
    /// Compares two; reports give what baselines do not have.
    #[must_use]
    pub fn of(before: (&Subject, Option<&Report>), after: (&Subject, Option<&Report>)) -> Self {
        let mut metrics = changes(None, &before.0.metrics, &after.0.metrics);
        let none = Measurements::new();
        let programs: BTreeSet<&String> = before
            .0
            .programs
            .keys()
            .chain(after.0.programs.keys())
            .collect();
        for program in programs {
            let of = |subject: &Subject| subject.programs.get(program).unwrap_or(&none).clone();
            let changes = changes(Some(program), &of(before.0), &of(after.0));
            metrics.extend(changes.into_iter().filter(|change| {
                OF_PROGRAMS.contains(&change.metric.as_str()) && change.before != change.after
            }));
        }
        let mut notes = Vec::new();
        for (name, (_, report)) in [("first", before), ("second", after)] {
            let missing = report.and_then(subject::what_is_missing);
            notes.extend(missing.map(|missing| format!("the {name} is not whole: {missing}")));
        }
        let (steps, left_out) = match (before.1, after.1) {
            (Some(before), Some(after)) => step_changes(before, after, &mut notes),
            _ => (Vec::new(), 0),
        };
        let sides = (side(before), side(after));
        let has_paths = sides.0.has_paths && sides.1.has_paths;
        Self {
            schema: Schema {
                name: DIFF_SCHEMA_NAME.to_owned(),
                version: DIFF_SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            before: sides.0,
            after: sides.1,
            differences: before.0.fingerprint.differences(&after.0.fingerprint),
            metrics,
            call_paths: match (before.1, after.1) {
                _ if !has_paths => Vec::new(),
                (None, _) => paths::changes_since(&before.0.paths, &after.0.paths),
                _ => paths::changes(&before.0.paths, &after.0.paths),
            },
            steps,
            steps_left_out: left_out,
            notes,
        }
    }

    /// Whether anything repeatable is worse.
    #[must_use]
    pub fn is_worse(&self) -> bool {
        let mut metrics = self.metrics.iter();
        metrics.any(|change| {
            change.repeatable
                && change.better == Better::Lower
                && change.delta.is_some_and(|delta| delta > 0)
        })
    }

    /// Writes it as indented JSON with a final newline.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::document(self)
    }
}

fn side((subject, report): (&Subject, Option<&Report>)) -> Side {
    Side {
        file: None,
        command: subject.command.clone(),
        allocator: subject.fingerprint.allocator.clone(),
        outcome: subject.outcome,
        runs: subject.runs,
        processes: report.map(|report| report.totals.processes),
        has_steps: report.is_some(),
        has_paths: !subject.paths.is_empty(),
    }
}

fn changes(
    program: Option<&str>,
    before: &Measurements,
    after: &Measurements,
) -> Vec<MetricChange> {
    METRICS
        .iter()
        .filter_map(|metric| change(metric, program, before, after))
        .collect()
}

fn change(
    metric: &Metric,
    program: Option<&str>,
    before: &Measurements,
    after: &Measurements,
) -> Option<MetricChange> {
    let value = |side: &Measurements| median(&side.get(metric.name)?.values());
    let (before, after) = (value(before), value(after));
    if before.is_none() && after.is_none() {
        return None;
    }
    let delta = before
        .zip(after)
        .map(|(before, after)| paths::difference(before, after));
    Some(MetricChange {
        metric: metric.name.to_owned(),
        program: program.map(str::to_owned),
        unit: metric.unit,
        better: metric.better,
        repeatable: metric.repeatable,
        before,
        after,
        delta,
        #[expect(
            clippy::cast_precision_loss,
            reason = "a share, shown with a few digits"
        )]
        change: delta
            .zip(before.filter(|before| *before != 0))
            .map(|(delta, before)| delta as f64 / before as f64),
    })
}

/// A move of the break, as far as it can be found again in another recording: addresses, times and numbers differ.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Move<'a> {
    number: u64,
    delta_bytes: i64,
    after_bytes: u64,
    path: Option<&'a str>,
    explanation: Option<StepExplanation>,
}

impl Move<'_> {
    fn is_like(&self, other: &Move<'_>) -> bool {
        self.delta_bytes == other.delta_bytes && self.path == other.path
    }

    fn change(&self, kind: StepChangeKind) -> StepChange {
        StepChange {
            kind,
            number: self.number,
            delta_bytes: self.delta_bytes,
            after_bytes: self.after_bytes,
            path: self.path.map(str::to_owned),
            explanation: self.explanation.clone(),
        }
    }
}

/// The names of the call paths of an address space, by stack.
fn names(space: &SpaceReport) -> HashMap<StackId, String> {
    let mut names = HashMap::new();
    for path in space.call_paths.iter().filter(|path| !path.path.is_empty()) {
        let name = subject::path_name(&path.path);
        names.extend(path.stacks.iter().map(|stack| (*stack, name.clone())));
    }
    names
}

fn moves<'a>(space: &SpaceReport, names: &'a HashMap<StackId, String>) -> Vec<Move<'a>> {
    let steps = space.program_break.steps.kept.iter().take(MOST_STEPS);
    steps
        .map(|step| Move {
            number: step.number,
            delta_bytes: step.delta_bytes,
            after_bytes: step.after_bytes,
            path: step
                .stack
                .and_then(|stack| names.get(&stack))
                .map(String::as_str),
            explanation: step.explanation.clone(),
        })
        .collect()
}

/// Moves of the break that only one has, and how many more there are.
fn step_changes(
    before: &Report,
    after: &Report,
    notes: &mut Vec<String>,
) -> (Vec<StepChange>, u64) {
    let (Some(old), Some(new)) = (before.main(), after.main()) else {
        return (Vec::new(), 0);
    };
    let (old_names, new_names) = (names(old), names(new));
    let mut old_moves = moves(old, &old_names);
    let mut new_moves = moves(new, &new_names);
    // Stacks on one side only would make all steps differ.
    if old_names.is_empty() || new_names.is_empty() {
        for step in old_moves.iter_mut().chain(&mut new_moves) {
            step.path = None;
        }
    }
    for (name, space, moves) in [("first", old, &old_moves), ("second", new, &new_moves)] {
        let total = space.program_break.steps.total;
        if total > moves.len() as u64 {
            notes.push(format!(
                "of the {total} moves of the break in the {name}, {} were kept and are compared",
                moves.len()
            ));
        }
    }
    let mut changes = aligned(&old_moves, &new_moves);
    let left_out = changes.len().saturating_sub(MOST_STEP_CHANGES);
    changes.truncate(MOST_STEP_CHANGES);
    (changes, left_out as u64)
}

/// What is left when the longest common subsequence is taken away.
fn aligned(old: &[Move<'_>], new: &[Move<'_>]) -> Vec<StepChange> {
    let start = old
        .iter()
        .zip(new)
        .take_while(|(old, new)| old.is_like(new))
        .count();
    let (old, new) = (&old[start..], &new[start..]);
    let end = old
        .iter()
        .rev()
        .zip(new.iter().rev())
        .take_while(|(old, new)| old.is_like(new))
        .count();
    let (old, new) = (&old[..old.len() - end], &new[..new.len() - end]);
    // lengths[i][j]: of the longest common subsequence of what follows.
    let width = new.len() + 1;
    let mut lengths = vec![0_u16; (old.len() + 1) * width];
    for i in (0..old.len()).rev() {
        for j in (0..new.len()).rev() {
            lengths[i * width + j] = if old[i].is_like(&new[j]) {
                lengths[(i + 1) * width + j + 1] + 1
            } else {
                lengths[(i + 1) * width + j].max(lengths[i * width + j + 1])
            };
        }
    }
    let (mut i, mut j) = (0, 0);
    let mut changes = Vec::new();
    while i < old.len() || j < new.len() {
        if i < old.len() && j < new.len() && old[i].is_like(&new[j]) {
            (i, j) = (i + 1, j + 1);
        } else if j == new.len()
            || (i < old.len() && lengths[(i + 1) * width + j] >= lengths[i * width + j + 1])
        {
            changes.push(old[i].change(StepChangeKind::Went));
            i += 1;
        } else {
            changes.push(new[j].change(StepChangeKind::Came));
            j += 1;
        }
    }
    changes
}

/// Sums by path, for what shows them: how many came, grew, shrank and went.
#[must_use]
pub fn count_paths(changes: &[PathChange]) -> BTreeMap<&'static str, usize> {
    let mut counts = BTreeMap::new();
    for change in changes {
        let what = match (&change.before, &change.after) {
            (None, _) => "came",
            (_, None) => "went",
            _ if change.grown_delta > 0 => "grew",
            _ => "shrank",
        };
        *counts.entry(what).or_insert(0) += 1;
    }
    counts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moves_of(deltas: &[i64]) -> Vec<Move<'static>> {
        (1..)
            .zip(deltas)
            .map(|(number, delta)| Move {
                number,
                delta_bytes: *delta,
                after_bytes: 0,
                path: None,
                explanation: None,
            })
            .collect()
    }

    fn changed(old: &[i64], new: &[i64]) -> Vec<(StepChangeKind, u64)> {
        aligned(&moves_of(old), &moves_of(new))
            .iter()
            .map(|change| (change.kind, change.number))
            .collect()
    }

    #[test]
    fn an_extra_step_is_found_wherever_it_is() {
        use StepChangeKind::Came;
        assert_eq!(changed(&[1, 2, 3], &[1, 2, 3]), []);
        assert_eq!(changed(&[1, 2, 3], &[9, 1, 2, 3]), [(Came, 1)]);
        assert_eq!(changed(&[1, 2, 3], &[1, 2, 9, 3]), [(Came, 3)]);
        assert_eq!(changed(&[1, 2, 3], &[1, 2, 3, 9]), [(Came, 4)]);
        assert_eq!(changed(&[], &[9]), [(Came, 1)]);
    }

    #[test]
    fn a_step_of_another_size_went_and_came() {
        use StepChangeKind::{Came, Went};
        assert_eq!(changed(&[1, 2, 3], &[1, 8, 3]), [(Went, 2), (Came, 2)]);
        assert_eq!(changed(&[1, 2, 3], &[]), [(Went, 1), (Went, 2), (Went, 3)]);
    }
}
