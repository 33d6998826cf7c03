//! Stacks as exports show them: frames with names, inlined functions as frames of their own.
//!
//! Names come from the traced program and end up on terminals, so each is made harmless here.

use std::collections::HashMap;

use crate::event::StackId;
use crate::render::words::harmless;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::StackFrame;
use crate::report::StackGrowth;
use crate::report::StackReport;
use crate::report::Stacks;
use crate::symbols::Function;

/// Stands for the outer frames that a stack lacks.
pub(super) const TRUNCATED: &str = "[truncated]";

/// Stands for the stack of what has none.
pub(super) const NOT_RECORDED: &str = "[stack not recorded]";

/// A function in a stack.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct NamedFrame {
    /// Its name, or `module+0xoffset`.
    pub(super) name: String,
    /// Its source file, if known.
    pub(super) file: Option<String>,
    /// The line it is at, if known.
    pub(super) line: Option<u32>,
    /// Whether an interpreter runs it.
    pub(super) is_interpreted: bool,
}

impl NamedFrame {
    /// A frame that stands for something that is no function.
    pub(super) fn placeholder(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            file: None,
            line: None,
            is_interpreted: false,
        }
    }
}

/// The stacks of a report, found by their numbers.
pub(super) struct StackTable<'a> {
    stacks: Option<&'a Stacks>,
    by_id: HashMap<StackId, &'a StackReport>,
}

impl<'a> StackTable<'a> {
    pub(super) fn of(report: &'a Report) -> Self {
        let stacks = report.stacks.as_ref();
        Self {
            stacks,
            by_id: stacks
                .into_iter()
                .flat_map(|stacks| &stacks.stacks)
                .map(|stack| (stack.id, stack))
                .collect(),
        }
    }

    /// The stack of this number; `None` when the report does not have it.
    pub(super) fn stack(&self, id: Option<StackId>) -> Option<&'a StackReport> {
        self.by_id.get(&id?).copied()
    }

    /// The frame at this position of `frames`; `None` when there is none.
    pub(super) fn frame(&self, position: u32) -> Option<&'a StackFrame> {
        self.stacks?.frames.get(usize::try_from(position).ok()?)
    }

    /// How many modules there are.
    pub(super) fn modules(&self) -> usize {
        self.stacks.map_or(0, |stacks| stacks.modules.len())
    }

    /// The functions of a frame: the innermost inlined one first, one of the place's own name when none is known.
    pub(super) fn functions(&self, frame: &StackFrame) -> Vec<NamedFrame> {
        if frame.functions.is_empty() {
            return vec![NamedFrame::placeholder(&self.place(frame))];
        }
        let is_interpreted = frame.language.is_some();
        frame
            .functions
            .iter()
            .map(|function| named(function, is_interpreted))
            .collect()
    }

    /// All functions of a stack, the outermost first; a placeholder where it breaks off, or is not known.
    pub(super) fn outermost_first(&self, stack: Option<&StackReport>) -> Vec<NamedFrame> {
        let Some(stack) = stack else {
            return vec![NamedFrame::placeholder(NOT_RECORDED)];
        };
        let mut frames = Vec::new();
        if stack.truncated.is_some() {
            frames.push(NamedFrame::placeholder(TRUNCATED));
        }
        for &position in stack.frames.iter().rev() {
            if let Some(frame) = self.frame(position) {
                frames.extend(self.functions(frame).into_iter().rev());
            }
        }
        frames
    }

    /// The function that is to be named for what a stack did; `None` when it has none.
    pub(super) fn culprit(&self, stack: &StackReport) -> Option<NamedFrame> {
        let culprit = stack.culprit?;
        let depth = usize::try_from(culprit.depth).ok()?;
        let frame = self.frame(*stack.frames.get(depth)?)?;
        let functions = self.functions(frame);
        functions
            .into_iter()
            .nth(usize::try_from(culprit.function).ok()?)
    }

    /// Where a frame is, for want of a function: `libc.so.6+0x9c1e0`.
    fn place(&self, frame: &StackFrame) -> String {
        let module = frame
            .module
            .and_then(|position| self.stacks?.modules.get(usize::try_from(position).ok()?))
            .map(|module| file_name(&module.path));
        match (module, frame.offset) {
            (Some(module), Some(offset)) if !module.is_empty() => format!("{module}+{offset}"),
            (_, Some(offset)) => offset.to_string(),
            (Some(module), None) if !module.is_empty() => module,
            _ => "[unknown]".to_owned(),
        }
    }
}

fn named(function: &Function, is_interpreted: bool) -> NamedFrame {
    NamedFrame {
        name: if function.name.is_empty() {
            "[unnamed]".to_owned()
        } else {
            harmless(&function.name)
        },
        file: function.file.as_deref().map(harmless),
        line: function.line,
        is_interpreted,
    }
}

/// What follows the last slash, harmless.
pub(super) fn file_name(path: &str) -> String {
    harmless(path.rsplit('/').next().unwrap_or(path))
}

/// An address space's program, and its process where there are several.
pub(super) fn program_name(report: &Report, space: &SpaceReport) -> String {
    let name = match file_name(&space.program) {
        name if name.is_empty() => "[unknown program]".to_owned(),
        name => name,
    };
    if report.address_spaces.len() > 1 {
        format!("{name} ({})", space.pid)
    } else {
        name
    }
}

/// What each stack did, with the address space in which it did.
pub(super) fn growths(report: &Report) -> impl Iterator<Item = (&SpaceReport, &StackGrowth)> {
    report
        .address_spaces
        .iter()
        .flat_map(|space| space.growth.iter().map(move |growth| (space, growth)))
}
