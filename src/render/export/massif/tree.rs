//! Who holds what is left: growth by stack as massif's tree, callers below what they called.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fmt::Write as _;

use super::line;
use crate::event::StackId;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::StackFrame;
use crate::report::StackReport;
use crate::report::Stacks;
use crate::symbols::Function;

/// Most levels below the root; massif's own limit is 30. From 100 on, Perl warns of ms_print's recursion.
const MOST_LEVELS: usize = 60;

/// Nodes of less than a hundredth of the snapshot are added up, as massif does.
const THRESHOLD: u64 = 100;

/// Massif's own words, and the functions that are meant here.
const ROOT: &str = "(heap allocation functions) brk, mmap, mremap, mprotect";

/// A function in a frame, by their positions.
type Place = (u32, u32);

/// Growth that is still there, by call path.
#[derive(Debug)]
pub(super) struct Tree<'a> {
    stacks: &'a Stacks,
    total: u64,
    /// Of the total: what has no call stack.
    without_stack: u64,
    roots: BTreeMap<Place, Node>,
}

#[derive(Debug, Default)]
struct Node {
    bytes: u64,
    callers: BTreeMap<Place, Node>,
}

impl<'a> Tree<'a> {
    /// The tree of an address space's last snapshot; `None` where no stacks were recorded, or where the growth by stack
    /// exceeds that snapshot and so belongs to another moment.
    pub(super) fn of(report: &'a Report, space: &SpaceReport, total: u64) -> Option<Self> {
        let stacks = report.stacks.as_ref()?;
        let by_id: HashMap<StackId, &StackReport> = stacks
            .stacks
            .iter()
            .map(|stack| (stack.id, stack))
            .collect();
        let mut roots = BTreeMap::new();
        let mut with_stack = 0_u64;
        for growth in &space.growth {
            let net = growth
                .program_break
                .net_bytes
                .saturating_add(growth.anonymous.net_bytes);
            let stack = growth.stack.and_then(|id| by_id.get(&id));
            let path = stack.map(|stack| path(stacks, stack)).unwrap_or_default();
            if net == 0 || path.is_empty() {
                continue;
            }
            with_stack = with_stack.saturating_add(net);
            add(&mut roots, &path, net);
        }
        Some(Self {
            stacks,
            total,
            without_stack: total.checked_sub(with_stack)?,
            roots,
        })
    }

    pub(super) fn write(&self, out: &mut String) {
        let mut children = self.significant(&self.roots);
        if self.without_stack > 0 {
            children.push(Child {
                bytes: self.without_stack,
                label: "(no call stack: from before the recording, or not recorded)".to_owned(),
                callers: None,
            });
        }
        children.sort_by_key(|child| std::cmp::Reverse(child.bytes));
        push_node(out, 0, children.len(), self.total, ROOT);
        self.write_children(out, 1, children);
    }

    fn write_children(&self, out: &mut String, level: usize, children: Vec<Child<'_>>) {
        for child in children {
            let callers = match child.callers {
                Some(callers) if level < MOST_LEVELS => self.significant(callers),
                _ => Vec::new(),
            };
            push_node(out, level, callers.len(), child.bytes, &child.label);
            self.write_children(out, level + 1, callers);
        }
    }

    /// The largest first, and those below the threshold as one, named as massif does.
    fn significant<'b>(&self, nodes: &'b BTreeMap<Place, Node>) -> Vec<Child<'b>> {
        let mut children = Vec::new();
        let (mut places, mut bytes) = (0_u64, 0_u64);
        for (place, node) in nodes {
            if node.bytes.saturating_mul(THRESHOLD) >= self.total {
                children.push(Child {
                    bytes: node.bytes,
                    label: self.label(*place),
                    callers: Some(&node.callers),
                });
            } else {
                places += 1;
                bytes = bytes.saturating_add(node.bytes);
            }
        }
        if places > 0 {
            children.push(Child {
                bytes,
                label: below_threshold(places),
                callers: None,
            });
        }
        children.sort_by_key(|child| std::cmp::Reverse(child.bytes));
        children
    }

    /// `0x1234: function (file:line)`, as massif writes it; what is not known is `???`, and a function of an interpreter
    /// has no address.
    fn label(&self, (frame, function): Place) -> String {
        let Some(frame) = self.stacks.frames.get(frame as usize) else {
            return "???".to_owned();
        };
        let address = frame.offset.map(|offset| format!("0x{:X}: ", offset.0));
        let function = frame.functions.get(function as usize);
        let name = function.map_or("???", |function| function.name.as_str());
        let mut label = address.unwrap_or_default() + &line(name);
        if let Some(place) = function.and_then(source).or_else(|| self.module(frame)) {
            let _ = write!(label, " ({})", line(&place));
        }
        label
    }

    fn module(&self, frame: &StackFrame) -> Option<String> {
        let module = self.stacks.modules.get(frame.module? as usize)?;
        Some(format!("in {}", module.path))
    }
}

fn source(function: &Function) -> Option<String> {
    let file = function.file.as_ref()?;
    Some(match function.line {
        Some(line) => format!("{file}:{line}"),
        None => file.clone(),
    })
}

/// A node to be written.
struct Child<'b> {
    bytes: u64,
    label: String,
    callers: Option<&'b BTreeMap<Place, Node>>,
}

fn below_threshold(places: u64) -> String {
    match places {
        1 => "in 1 place, below massif's threshold (1.00%)".to_owned(),
        _ => format!("in {places} places, all below massif's threshold (1.00%)"),
    }
}

fn push_node(out: &mut String, level: usize, children: usize, bytes: u64, label: &str) {
    // A `String` takes all that is written to it.
    let _ = writeln!(out, "{:level$}n{children}: {bytes} {label}", "");
}

/// The functions of a stack from the culprit outwards; from the innermost on where none is named.
fn path(stacks: &Stacks, stack: &StackReport) -> Vec<Place> {
    let (depth, first) = match stack.culprit {
        Some(culprit) => (culprit.depth, culprit.function),
        None => (0, 0),
    };
    let mut path = Vec::new();
    for (index, &frame) in stack.frames.iter().enumerate().skip(depth as usize) {
        let functions = stacks
            .frames
            .get(frame as usize)
            .map_or(0, |frame| frame.functions.len());
        let functions = u32::try_from(functions).unwrap_or(u32::MAX).max(1);
        let first = if index == depth as usize { first } else { 0 };
        path.extend((first..functions).map(|function| (frame, function)));
    }
    path.truncate(MOST_LEVELS);
    path
}

fn add(nodes: &mut BTreeMap<Place, Node>, path: &[Place], bytes: u64) {
    let mut nodes = nodes;
    for place in path {
        let node = nodes.entry(*place).or_default();
        node.bytes = node.bytes.saturating_add(bytes);
        nodes = &mut node.callers;
    }
}
