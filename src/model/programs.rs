//! The programs that ran, and their arguments.
//!
//! A build runs tens of thousands, so what is kept of each lies side by side in a few large blocks instead of in many
//! small ones between which memory would be wasted.

use std::collections::HashMap;

/// Most bytes kept of a program's arguments.
const MOST_ARGUMENT_BYTES: usize = 4 << 10;

/// Most bytes kept of the arguments of a program that is beyond the detailed ones.
pub(super) const FEW_ARGUMENT_BYTES: usize = 256;

/// Most bytes kept of a program's path: no longer one can be executed (`PATH_MAX`, linux/limits.h).
const MOST_PATH_BYTES: usize = 4 << 10;

/// Stands for what was left out.
const ELLIPSIS: &str = "…";

/// Number of a program with its arguments in [`Programs`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProgramId(usize);

/// One program with its arguments.
#[derive(Debug)]
struct Program {
    /// Index into the paths.
    path: usize,
    /// Where its few arguments lie in the shared text.
    few_start: usize,
    few_end: usize,
    /// More of its arguments, where there are more; goes when only few are to be kept.
    more: Option<Box<str>>,
}

/// All programs that ran.
#[derive(Debug, Default)]
pub(super) struct Programs {
    paths: Vec<Box<str>>,
    path_index: HashMap<Box<str>, usize>,
    /// Arguments, each followed by a NUL, as in `/proc/<pid>/cmdline`.
    text: String,
    programs: Vec<Program>,
}

impl Programs {
    /// Keeps a program. `like` is one that it may equal, as a forked child's equals its parent's.
    pub(super) fn add(
        &mut self,
        path: &str,
        arguments: &[String],
        like: Option<ProgramId>,
    ) -> ProgramId {
        let path = self.intern(path);
        let few = joined(arguments, FEW_ARGUMENT_BYTES);
        let more = joined(arguments, MOST_ARGUMENT_BYTES);
        let more = (more != few).then(|| more.into_boxed_str());
        if let Some(like) = like
            && let Some(other) = self.programs.get(like.0)
            && other.path == path
            && self.few(other) == few
            && (other.more == more || other.more.is_none())
        {
            return like;
        }
        let few_start = self.text.len();
        self.text.push_str(&few);
        self.programs.push(Program {
            path,
            few_start,
            few_end: self.text.len(),
            more,
        });
        ProgramId(self.programs.len() - 1)
    }

    pub(super) fn path(&self, id: ProgramId) -> &str {
        &self.paths[self.programs[id.0].path]
    }

    /// The arguments as far as they are kept; `…` follows where something was cut off.
    pub(super) fn arguments(&self, id: ProgramId) -> Vec<String> {
        let program = &self.programs[id.0];
        program
            .more
            .as_deref()
            .unwrap_or_else(|| self.few(program))
            .split_terminator('\0')
            .map(str::to_owned)
            .collect()
    }

    /// Keeps few arguments of this program from now on.
    pub(super) fn shorten(&mut self, id: ProgramId) {
        self.programs[id.0].more = None;
    }

    fn few(&self, program: &Program) -> &str {
        &self.text[program.few_start..program.few_end]
    }

    fn intern(&mut self, path: &str) -> usize {
        if let Some(&index) = self.path_index.get(path) {
            return index;
        }
        let short = prefix(path, MOST_PATH_BYTES);
        let kept: Box<str> = if short.len() < path.len() {
            format!("{short}{ELLIPSIS}").into()
        } else {
            path.into()
        };
        let next = self.paths.len();
        let index = *self.path_index.entry(kept.clone()).or_insert(next);
        if index == next {
            self.paths.push(kept);
        }
        index
    }
}

/// As many arguments as fit into `limit` bytes, each followed by a NUL.
fn joined(arguments: &[String], limit: usize) -> String {
    let mut text = String::new();
    for argument in arguments {
        let part = prefix(argument, limit.saturating_sub(text.len()));
        // An argument cannot hold a NUL; one in a log that nobody's kernel wrote must not make two of it.
        text.extend(
            part.chars()
                .map(|letter| if letter == '\0' { ' ' } else { letter }),
        );
        text.push('\0');
        if part.len() < argument.len() || text.len() > limit {
            text.push_str(ELLIPSIS);
            text.push('\0');
            break;
        }
    }
    text
}

/// As much of a text as fits into `room` bytes.
fn prefix(text: &str, room: usize) -> &str {
    let mut end = text.len().min(room);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn add(programs: &mut Programs, path: &str, arguments: &[&str]) -> ProgramId {
        let arguments: Vec<String> = arguments.iter().map(|&text| text.to_owned()).collect();
        programs.add(path, &arguments, None)
    }

    fn kept(arguments: &[&str]) -> Vec<String> {
        let mut programs = Programs::default();
        let id = add(&mut programs, "/bin/x", arguments);
        programs.arguments(id)
    }

    #[test]
    fn arguments_within_the_limit_are_kept_as_they_are() {
        assert_eq!(kept(&["x", "", "äb"]), ["x", "", "äb"]);
        assert_eq!(kept(&[]), Vec::<String>::new());
        assert_eq!(kept(&[""]), [""]);
    }

    #[test]
    fn what_is_beyond_the_limit_is_an_ellipsis() {
        let script = "ö".repeat(1 << 20);
        let kept = kept(&["sh", "-c", &script, "last"]);
        assert_eq!(kept.len(), 4);
        assert_eq!(kept[3], "…");
        assert!(script.starts_with(&kept[2]) && kept[2].len() > 4000);
        assert!(kept[2].len() < MOST_ARGUMENT_BYTES);
    }

    #[test]
    fn very_many_empty_arguments_are_limited_too() {
        assert!(kept(&[""; 10_000]).len() <= MOST_ARGUMENT_BYTES + 2);
    }

    #[test]
    fn a_shortened_program_keeps_its_path_and_first_arguments() {
        let mut programs = Programs::default();
        let id = add(&mut programs, "/bin/x", &["word"; 1000]);
        assert!(programs.arguments(id).len() > 800);
        programs.shorten(id);
        assert_eq!(programs.path(id), "/bin/x");
        let few = programs.arguments(id);
        assert!(few.len() > 50 && few.len() < 55, "{}", few.len());
        assert_eq!(few.last().unwrap(), "…");
    }

    #[test]
    fn a_child_that_runs_the_same_shares_it() {
        let mut programs = Programs::default();
        let arguments = vec!["make".to_owned()];
        let parent = programs.add("/bin/make", &arguments, None);
        assert_eq!(programs.add("/bin/make", &arguments, Some(parent)), parent);
        assert_ne!(programs.add("/bin/sh", &arguments, Some(parent)), parent);
    }

    #[test]
    fn a_path_too_long_to_be_one_is_cut() {
        let mut programs = Programs::default();
        let long = "p".repeat(10_000);
        let id = add(&mut programs, &long, &[]);
        assert_eq!(programs.path(id).len(), MOST_PATH_BYTES + ELLIPSIS.len());
        add(&mut programs, &long, &[]);
        assert_eq!(programs.paths.len(), 1);
    }
}
