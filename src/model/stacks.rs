//! The stacks of a recording, each kept once, and as the report lists them.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;

use crate::event::Frame;
use crate::event::FunctionId;
use crate::event::InterpretedFunction;
use crate::event::Module;
use crate::event::ModuleId;
use crate::event::ModuleKind;
use crate::event::NamedCode;
use crate::event::Stack;
use crate::event::StackId;
use crate::event::Truncation;
use crate::report;
use crate::report::StackFrame;
use crate::report::StackModule;
use crate::report::StackReport;
use crate::symbols::Function;
use crate::symbols::SymbolSource;
use crate::symbols::SymbolState;
use crate::units::Address;

/// Most places in stacks that are kept. Stacks that begin alike, at their outermost frames, share them.
const MOST_NODES: usize = 1 << 18;
/// Most stacks that are kept, under whatever numbers.
const MOST_STACKS: usize = 1 << 18;
/// Most modules, and most functions of interpreters, that are kept.
const MOST_NAMED: usize = 1 << 16;
/// Most pieces of generated code whose names are kept.
const MOST_PIECES: usize = 1 << 18;

/// A place in the tree of stacks; the root is outside of all.
type NodeId = u32;
const ROOT: NodeId = 0;

#[derive(Clone, Copy, Debug)]
struct Node {
    outer: NodeId,
    frame: Frame,
}

/// A kept stack.
#[derive(Clone, Copy, Debug)]
struct Kept {
    innermost: NodeId,
    truncated: Option<Truncation>,
}

/// All stacks of a recording.
#[derive(Debug, Default)]
pub(super) struct StackTable {
    modules: BTreeMap<ModuleId, Module>,
    functions: HashMap<FunctionId, InterpretedFunction>,
    /// By module and start.
    names: BTreeMap<(ModuleId, Address), (u64, String)>,
    /// Node `n` is at `n − 1`.
    nodes: Vec<Node>,
    inner: HashMap<(NodeId, Frame), NodeId>,
    /// The first number of each stack, by its content.
    first: HashMap<(NodeId, Option<Truncation>), StackId>,
    kept: HashMap<StackId, Kept>,
    /// Later numbers of stacks that have one already.
    again: HashMap<StackId, StackId>,
    /// Stacks for which there was no room.
    left_out: u64,
    /// Events that named a stack.
    recorded: u64,
    /// Of these, with a truncated one.
    truncated: u64,
}

impl StackTable {
    pub(super) fn module(&mut self, module: &Module) {
        if self.modules.len() < MOST_NAMED {
            self.modules.insert(module.id, module.clone());
        }
    }

    pub(super) fn function(&mut self, function: &InterpretedFunction) {
        if self.functions.len() < MOST_NAMED {
            self.functions.insert(function.id, function.clone());
        }
    }

    pub(super) fn named(&mut self, module: ModuleId, names: &[NamedCode]) {
        for piece in names {
            if self.names.len() < MOST_PIECES {
                self.names
                    .insert((module, piece.start), (piece.bytes, piece.name.clone()));
            }
        }
    }

    /// Keeps a stack.
    pub(super) fn stack(&mut self, stack: &Stack) {
        if self.kept.len() + self.again.len() >= MOST_STACKS {
            self.left_out += 1;
            return;
        }
        let mut node = ROOT;
        for frame in stack.frames.iter().rev() {
            match self.inner_node(node, *frame) {
                Some(inner) => node = inner,
                None => {
                    self.left_out += 1;
                    return;
                }
            }
        }
        let first = *self
            .first
            .entry((node, stack.truncated))
            .or_insert(stack.id);
        if first == stack.id {
            let kept = Kept {
                innermost: node,
                truncated: stack.truncated,
            };
            self.again.remove(&stack.id);
            self.kept.insert(stack.id, kept);
        } else {
            self.again.insert(stack.id, first);
        }
    }

    fn inner_node(&mut self, outer: NodeId, frame: Frame) -> Option<NodeId> {
        if let Some(known) = self.inner.get(&(outer, frame)) {
            return Some(*known);
        }
        if self.nodes.len() >= MOST_NODES {
            return None;
        }
        self.nodes.push(Node { outer, frame });
        let node = NodeId::try_from(self.nodes.len()).ok()?;
        self.inner.insert((outer, frame), node);
        Some(node)
    }

    /// The first number of an event's stack; `None` for one that was not recorded, or not kept.
    pub(super) fn of_event(&mut self, stack: Option<StackId>) -> Option<StackId> {
        let id = stack?;
        self.recorded += 1;
        let known = self.resolve(id)?;
        let is_cut = self
            .kept
            .get(&known)
            .is_some_and(|kept| kept.truncated.is_some());
        self.truncated += u64::from(is_cut);
        Some(known)
    }

    /// The number under which a stack is kept.
    pub(super) fn resolve(&self, id: StackId) -> Option<StackId> {
        if self.kept.contains_key(&id) {
            return Some(id);
        }
        self.again.get(&id).copied()
    }

    /// The frames of a stack, innermost first.
    fn frames(&self, kept: Kept) -> impl Iterator<Item = Frame> + '_ {
        let mut node = kept.innermost;
        std::iter::from_fn(move || {
            let found = self.nodes.get((node as usize).checked_sub(1)?)?;
            node = found.outer;
            Some(found.frame)
        })
    }

    /// The tables that the report lists: these stacks, with all that they name.
    pub(super) fn report(&self, wanted: &BTreeSet<StackId>) -> report::Stacks {
        let mut tables = Tables::default();
        for id in wanted {
            if let Some(kept) = self.kept.get(id) {
                let frames = self
                    .frames(*kept)
                    .map(|frame| tables.frame(frame, self))
                    .collect();
                tables.stacks.push(StackReport {
                    id: *id,
                    frames,
                    truncated: kept.truncated,
                    culprit: None,
                });
            }
        }
        report::Stacks {
            recorded: self.recorded,
            truncated: self.truncated,
            distinct: self.kept.len() as u64,
            left_out: self.left_out,
            modules: tables.modules,
            frames: tables.frames,
            stacks: tables.stacks,
        }
    }

    /// The name of generated code at an address.
    fn name(&self, module: ModuleId, address: Address) -> Option<&str> {
        let ((found, start), (bytes, name)) = self.names.range(..=(module, address)).next_back()?;
        (*found == module && address.above(*start) < *bytes).then_some(name)
    }
}

/// The report's tables in the making.
#[derive(Default)]
struct Tables {
    modules: Vec<StackModule>,
    module_positions: HashMap<ModuleId, u32>,
    frames: Vec<StackFrame>,
    frame_positions: HashMap<Frame, u32>,
    stacks: Vec<StackReport>,
}

impl Tables {
    fn frame(&mut self, frame: Frame, table: &StackTable) -> u32 {
        if let Some(position) = self.frame_positions.get(&frame) {
            return *position;
        }
        let listed = match frame {
            Frame::Code(module, offset) => self.code(module, offset, table),
            Frame::Interpreted { function, line } => interpreted(function, line, table),
        };
        let position = position_of_next(&self.frames);
        self.frames.push(listed);
        self.frame_positions.insert(frame, position);
        position
    }

    fn code(&mut self, id: ModuleId, offset: Address, table: &StackTable) -> StackFrame {
        let position = self.module(id, table);
        let name = table.name(id, offset);
        if name.is_some()
            && let Some(module) = self.modules.get_mut(position as usize)
        {
            module.symbols.source = SymbolSource::Names;
        }
        StackFrame {
            module: Some(position),
            offset: Some(offset),
            functions: name
                .map(|name| Function {
                    name: name.to_owned(),
                    file: None,
                    line: None,
                })
                .into_iter()
                .collect(),
            language: None,
        }
    }

    fn module(&mut self, id: ModuleId, table: &StackTable) -> u32 {
        if let Some(position) = self.module_positions.get(&id) {
            return *position;
        }
        let listed = match table.modules.get(&id) {
            Some(module) => StackModule {
                kind: module.kind,
                path: module.path.clone(),
                build_id: module.build_id.clone(),
                file: module.file,
                symbols: SymbolState::default(),
            },
            // A log that names a module without having told of it.
            None => StackModule {
                kind: ModuleKind::Unknown,
                path: String::new(),
                build_id: None,
                file: None,
                symbols: SymbolState::default(),
            },
        };
        let position = position_of_next(&self.modules);
        self.modules.push(listed);
        self.module_positions.insert(id, position);
        position
    }
}

fn interpreted(id: FunctionId, line: Option<u32>, table: &StackTable) -> StackFrame {
    let function = table.functions.get(&id);
    StackFrame {
        module: None,
        offset: None,
        functions: function
            .map(|function| Function {
                name: function.name.clone(),
                file: Some(function.source.clone()),
                line,
            })
            .into_iter()
            .collect(),
        language: function.map(|function| function.language.clone()),
    }
}

fn position_of_next<T>(list: &[T]) -> u32 {
    // Fewer than `MOST_NODES` frames, and as few modules.
    u32::try_from(list.len()).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(id: u32, offsets: &[u64]) -> Stack {
        Stack {
            id: StackId(id),
            frames: offsets
                .iter()
                .map(|offset| Frame::Code(ModuleId(1), Address(*offset)))
                .collect(),
            truncated: None,
        }
    }

    #[test]
    fn the_same_stack_under_two_numbers_is_one() {
        let mut table = StackTable::default();
        table.stack(&stack(1, &[1, 2, 3]));
        table.stack(&stack(2, &[9, 2, 3]));
        table.stack(&stack(7, &[1, 2, 3]));
        assert_eq!(table.of_event(Some(StackId(7))), Some(StackId(1)));
        assert_eq!(table.nodes.len(), 4, "outer frames are shared");
        let report = table.report(&BTreeSet::from([StackId(1), StackId(2)]));
        assert_eq!((report.distinct, report.recorded), (2, 1));
        assert_eq!(report.frames.len(), 4);
        let offsets: Vec<u64> = report.stacks[1]
            .frames
            .iter()
            .map(|frame| report.frames[*frame as usize].offset.unwrap().0)
            .collect();
        assert_eq!(offsets, [9, 2, 3]);
    }

    #[test]
    fn what_nobody_told_of_is_unknown() {
        let mut table = StackTable::default();
        assert_eq!(table.of_event(Some(StackId(5))), None);
        table.stack(&Stack {
            id: StackId(6),
            frames: vec![Frame::Interpreted {
                function: FunctionId(9),
                line: Some(1),
            }],
            truncated: Some(Truncation::Lost),
        });
        assert_eq!(table.of_event(Some(StackId(6))), Some(StackId(6)));
        let report = table.report(&BTreeSet::from([StackId(6)]));
        assert_eq!(report.frames[0], StackFrame::default());
        assert_eq!((report.recorded, report.truncated), (2, 1));
    }

    #[test]
    fn generated_code_has_the_name_of_its_piece() {
        let mut table = StackTable::default();
        table.named(
            ModuleId(1),
            &[NamedCode {
                start: Address(0x100),
                bytes: 0x10,
                name: "py::f".to_owned(),
            }],
        );
        table.stack(&stack(1, &[0x10f, 0x110]));
        let report = table.report(&BTreeSet::from([StackId(1)]));
        assert_eq!(report.frames[0].functions[0].name, "py::f");
        assert!(report.frames[1].functions.is_empty());
    }

    #[test]
    fn a_million_stacks_take_no_more_room_than_allowed() {
        let mut table = StackTable::default();
        for id in 1..=1_000_000 {
            table.stack(&stack(id, &[u64::from(id), u64::from(id % 1000)]));
        }
        assert!(table.nodes.len() <= MOST_NODES && table.kept.len() <= MOST_STACKS);
        assert_eq!(table.left_out + table.kept.len() as u64, 1_000_000);
    }
}
