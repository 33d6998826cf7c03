//! A part of a report: the call paths that somebody asks about, in the order that they want.

use super::CallPath;
use super::Report;
use crate::event::Notice;
use crate::event::NoticeCode;

/// Most names that are suggested in place of one that matches nothing.
const MOST_SUGGESTIONS: usize = 3;

/// By which figure call paths are ordered, the largest first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PathOrder {
    /// What they made grow and is still there.
    #[default]
    Net,
    /// What they made grow.
    Grown,
    /// What they gave back.
    Returned,
    /// Calls that made memory grow.
    Calls,
    /// What they made grow of the break and is still there.
    Break,
    /// What they made grow of anonymous memory and is still there.
    Anonymous,
}

impl PathOrder {
    fn figure(self, path: &CallPath) -> u64 {
        match self {
            Self::Net => path.growth.net_bytes,
            Self::Grown => path.growth.grown_bytes,
            Self::Returned => path.growth.returned_bytes,
            Self::Calls => path.growth.grow_calls,
            Self::Break => path.program_break.net_bytes,
            Self::Anonymous => path.anonymous.net_bytes,
        }
    }
}

/// Which call paths to keep.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PathSelection {
    /// Keep those through a function or file whose name has one of these in it; all if there are none.
    pub focus: Vec<String>,
    /// Leave out those through a function or file whose name has one of these in it.
    pub ignore: Vec<String>,
    /// Their order.
    pub order: PathOrder,
}

impl PathSelection {
    fn keeps(&self, path: &[String]) -> bool {
        let is_through = |word: &String| path.iter().any(|step| step.contains(word.as_str()));
        (self.focus.is_empty() || self.focus.iter().any(is_through))
            && !self.ignore.iter().any(is_through)
    }
}

impl Report {
    /// Keeps the selected call paths only, in their order. A name that matches nothing gets a notice.
    pub fn select_paths(&mut self, selection: &PathSelection) {
        for word in selection.focus.iter().chain(&selection.ignore) {
            if self.stacks.is_some() && !self.has_step(word) {
                let message = no_such_step(word, &self.suggestions(word));
                self.notices.push(Notice {
                    code: NoticeCode::StacksIncomplete,
                    message,
                });
            }
        }
        for space in &mut self.address_spaces {
            space.call_paths.retain(|path| selection.keeps(&path.path));
            if let Some(samples) = space
                .allocator
                .as_mut()
                .and_then(|allocator| allocator.samples.as_mut())
            {
                samples.paths.retain(|path| selection.keeps(&path.path));
            }
            // Stable: equals stay in the order of net growth. What has no path stays last.
            space.call_paths.sort_by_key(|path| {
                let figure = selection.order.figure(path);
                (path.path.is_empty(), std::cmp::Reverse(figure))
            });
        }
    }

    fn steps(&self) -> impl Iterator<Item = &String> {
        self.address_spaces
            .iter()
            .flat_map(|space| &space.call_paths)
            .flat_map(|path| &path.path)
    }

    fn has_step(&self, word: &str) -> bool {
        self.steps().any(|step| step.contains(word))
    }

    /// Names like this one.
    fn suggestions(&self, word: &str) -> Vec<String> {
        let lower = word.to_lowercase();
        let mut near: Vec<(usize, &str)> = self
            .steps()
            .map(|step| step.split(" (").next().unwrap_or(step))
            .map(|name| (distance(&lower, &name.to_lowercase()), name))
            .collect();
        near.sort_unstable();
        near.dedup();
        near.into_iter()
            .filter(|(distance, name)| *distance <= (name.len().max(word.len()) / 2).max(2))
            .take(MOST_SUGGESTIONS)
            .map(|(_, name)| name.to_owned())
            .collect()
    }
}

fn no_such_step(word: &str, suggestions: &[String]) -> String {
    let names = if suggestions.is_empty() {
        "`-v` lists all call paths".to_owned()
    } else {
        format!("nearest: {}", suggestions.join(", "))
    };
    format!("no call path leads through a function or file with `{word}` in its name; {names}")
}

/// Characters to add, take away or exchange to make one word of the other; 0 if one holds the other.
fn distance(one: &str, other: &str) -> usize {
    if other.contains(one) {
        return 0;
    }
    let other: Vec<char> = other.chars().collect();
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (index, character) in one.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = index + 1;
        for (column, opposite) in other.iter().enumerate() {
            let exchanged = diagonal + usize::from(character != *opposite);
            diagonal = row[column + 1];
            row[column + 1] = exchanged.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[other.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(steps: &[&str], net_bytes: u64) -> CallPath {
        let growth = super::super::Growth {
            net_bytes,
            grown_bytes: 1000 - net_bytes,
            ..super::super::Growth::default()
        };
        CallPath {
            culprit: None,
            path: steps.iter().map(|step| (*step).to_owned()).collect(),
            stacks: Vec::new(),
            growth,
            program_break: growth,
            anonymous: super::super::Growth::default(),
        }
    }

    #[test]
    fn focus_keeps_and_ignore_leaves_out() {
        let selection = PathSelection {
            focus: vec!["load".into(), "parse".into()],
            ignore: vec!["cache.c".into()],
            order: PathOrder::Net,
        };
        assert!(selection.keeps(&path(&["f (a.c)", "load_all (b.c)"], 1).path));
        assert!(!selection.keeps(&path(&["f (a.c)", "main (b.c)"], 1).path));
        assert!(!selection.keeps(&path(&["parse (cache.c)"], 1).path));
        assert!(
            !selection.keeps(&path(&[], 1).path),
            "what has no path is not in focus"
        );
    }

    #[test]
    fn orders_are_by_their_figure() {
        let (a, b) = (path(&["a"], 10), path(&["b"], 20));
        assert!(PathOrder::Net.figure(&b) > PathOrder::Net.figure(&a));
        assert!(PathOrder::Grown.figure(&a) > PathOrder::Grown.figure(&b));
        assert_eq!(PathOrder::Anonymous.figure(&a), 0);
    }

    #[test]
    fn words_that_are_nearly_right_are_near() {
        assert_eq!(distance("index", "build_index"), 0);
        assert_eq!(distance("biuld", "build"), 2);
        assert_eq!(distance("", "abc"), 0);
    }
}
