//! Which call paths came, grew, shrank and went.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use serde::Deserialize;
use serde::Serialize;

use super::subject::PathFigures;

/// Changes that are kept.
const MOST_CHANGES: usize = 50;

/// What became of a call path.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PathChange {
    /// Its functions, innermost first.
    pub path: String,
    /// What it did before; `null` when it is new.
    pub before: Option<PathFigures>,
    /// What it does now; `null` when it is gone.
    pub after: Option<PathFigures>,
    /// By how much more memory grew because of it.
    pub grown_delta: i64,
    /// By how much more of it is still there at the end.
    pub net_delta: i64,
    /// How many more calls made memory larger.
    pub calls_delta: i64,
}

/// The changes between two recordings, the largest first.
#[must_use]
pub(super) fn changes(
    before: &BTreeMap<String, PathFigures>,
    after: &BTreeMap<String, PathFigures>,
) -> Vec<PathChange> {
    let keys: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut changes: Vec<PathChange> = keys
        .into_iter()
        .filter(|path| before.get(*path) != after.get(*path))
        .map(|path| change(path, before.get(path), after.get(path)))
        .collect();
    // Of equals the order by name stays.
    changes.sort_by_key(|change| {
        std::cmp::Reverse((
            change.grown_delta.unsigned_abs(),
            change.calls_delta.unsigned_abs(),
        ))
    });
    changes.truncate(MOST_CHANGES);
    changes
}

/// The same, where the earlier ones are a baseline's: it keeps the largest only, so that a path which it does not have is
/// told as new only if it would have had a place among them.
pub(super) fn changes_since(
    before: &BTreeMap<String, PathFigures>,
    after: &BTreeMap<String, PathFigures>,
) -> Vec<PathChange> {
    // Without stacks on either side nothing can be said.
    if before.is_empty() || after.is_empty() {
        return Vec::new();
    }
    let smallest = before
        .values()
        .map(|figures| figures.grown_bytes)
        .min()
        .unwrap_or_default();
    let is_full = before.len() >= super::baseline::MOST_PATHS;
    let relevant: BTreeMap<String, PathFigures> = after
        .iter()
        .filter(|(path, figures)| {
            before.contains_key(*path) || !is_full || figures.grown_bytes > smallest
        })
        .map(|(path, figures)| (path.clone(), *figures))
        .collect();
    changes(before, &relevant)
}

fn change(path: &str, before: Option<&PathFigures>, after: Option<&PathFigures>) -> PathChange {
    let (old, new) = (
        before.copied().unwrap_or_default(),
        after.copied().unwrap_or_default(),
    );
    PathChange {
        path: path.to_owned(),
        before: before.copied(),
        after: after.copied(),
        grown_delta: difference(old.grown_bytes, new.grown_bytes),
        net_delta: difference(old.net_bytes, new.net_bytes),
        calls_delta: difference(old.grow_calls, new.grow_calls),
    }
}

/// `after − before`, at the ends of the range where it does not fit.
pub(super) fn difference(before: u64, after: u64) -> i64 {
    if after >= before {
        i64::try_from(after - before).unwrap_or(i64::MAX)
    } else {
        i64::try_from(before - after).map_or(i64::MIN, |bytes| -bytes)
    }
}
