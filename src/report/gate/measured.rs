//! The metrics of one recording.

use std::collections::BTreeMap;

use super::metrics;
use super::metrics::Combined;
use super::metrics::METRICS;
use super::metrics::Metric;
use super::metrics::Source;
use crate::report::HeapDocument;
use crate::report::Report;
use crate::report::SpaceReport;

/// Values by the metric's name; what is not known is not there.
pub type Values = BTreeMap<&'static str, u64>;

/// The metrics of a recording, and of each program in it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Of all address spaces.
    pub whole: Values,
    /// By the program's name, the last part of its path; empty when only one ran.
    pub programs: BTreeMap<String, Values>,
}

impl Measured {
    /// Takes the metrics from a report.
    #[must_use]
    pub fn of(report: &Report) -> Self {
        let mut by_program: BTreeMap<String, Vec<&SpaceReport>> = BTreeMap::new();
        for space in &report.address_spaces {
            let name = program_name(&space.program).to_owned();
            by_program.entry(name).or_default().push(space);
        }
        let all: Vec<&SpaceReport> = report.address_spaces.iter().collect();
        let programs = if by_program.len() > 1 {
            by_program
                .into_iter()
                .map(|(name, spaces)| (name, values(&spaces, None)))
                .collect()
        } else {
            BTreeMap::new()
        };
        Self {
            whole: values(&all, Some(report)),
            programs,
        }
    }

    /// Takes them from a look through a heap: those of glibc's malloc alone.
    #[must_use]
    pub fn of_heap(document: &HeapDocument) -> Self {
        let mut whole = Values::new();
        if let Some(sums) = metrics::heap_sums(&document.examination) {
            for metric in METRICS {
                if let Source::Heap(take) | Source::Look(take) = metric.source
                    && let Some(value) = take(&sums)
                {
                    whole.insert(metric.name, value);
                }
            }
        }
        Self {
            whole,
            programs: BTreeMap::new(),
        }
    }
}

/// The last part of a program's path.
pub(super) fn program_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// The metrics of some address spaces. `report` is given when these are all there are.
fn values(spaces: &[&SpaceReport], report: Option<&Report>) -> Values {
    METRICS
        .iter()
        .filter_map(|metric| Some((metric.name, value(metric, spaces, report)?)))
        .collect()
}

fn value(metric: &Metric, spaces: &[&SpaceReport], report: Option<&Report>) -> Option<u64> {
    let of_each: Vec<u64> = match (metric.source, report) {
        (Source::Report(take), Some(report)) => return take(report),
        (Source::Report(_), None) | (Source::Look(_), _) => return None,
        (Source::SpaceOrTotals(_, take), Some(report)) => {
            return (!spaces.is_empty()).then(|| take(report));
        }
        (Source::Calls(name), Some(report)) => {
            return (!spaces.is_empty()).then(|| calls(&report.totals.calls, name));
        }
        (Source::Calls(name), None) => spaces
            .iter()
            .map(|space| calls(&space.calls, name))
            .collect(),
        (Source::Space(take) | Source::SpaceOrTotals(take, _), _) => {
            spaces.iter().filter_map(|space| take(space)).collect()
        }
        (Source::Heap(take), _) => spaces
            .iter()
            .filter_map(|space| {
                let sums = metrics::heap_sums(&space.heap.as_ref()?.examination)?;
                take(&sums)
            })
            .collect(),
    };
    // A sum over some of the address spaces would be no sum.
    if metric.combined == Combined::Sum
        && report.is_some_and(|report| (spaces.len() as u64) < report.totals.address_spaces)
    {
        return None;
    }
    match metric.combined {
        Combined::Largest => of_each.into_iter().max(),
        Combined::Sum if of_each.is_empty() => None,
        Combined::Sum => of_each.into_iter().try_fold(0_u64, u64::checked_add),
    }
}

fn calls(counts: &[crate::report::CallCount], name: &str) -> u64 {
    counts
        .iter()
        .find(|count| count.name == name)
        .map_or(0, |count| count.calls)
}

/// The middle one; of an even number, the lower of the two. A value that was measured, in any case.
#[must_use]
pub fn median(values: &[u64]) -> Option<u64> {
    let mut values = values.to_vec();
    values.sort_unstable();
    values.get(values.len().checked_sub(1)? / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_a_value_that_was_measured() {
        assert_eq!(median(&[]), None);
        assert_eq!(median(&[3]), Some(3));
        assert_eq!(median(&[9, 1]), Some(1));
        assert_eq!(median(&[9, 1, 4]), Some(4));
    }
}
