//! Call stacks of tracees: found while they stand still, handed out when they run again.
//!
//! What a stack needs of the program is read at the stop: its registers, its stack as far as the frames reach, and what has
//! changed of its code. Nothing of it is believed, and no damage in it ends the recording.

use std::collections::HashMap;

use super::cpython::Python;
use super::guard;
use super::modules::Code;
use super::modules::Modules;
use super::perf_map;
use super::stack_memory::StackMemory;
use super::sys;
use super::walk::Walker;
use crate::event::Advice;
use crate::event::EventKind;
use crate::event::Frame;
use crate::event::Stack;
use crate::event::StackId;
use crate::event::StackMode;
use crate::event::Truncation;

/// Most frames of all stacks that are remembered as recorded, some 16 bytes each; then they are forgotten, and recorded
/// once more when they come again.
const MOST_FRAMES_KEPT: usize = 1 << 19;

/// The stacks of a recording.
#[derive(Debug)]
pub(super) struct Stacks {
    mode: StackMode,
    depth: usize,
    modules: Modules,
    python: Python,
    walker: Walker,
    memory: StackMemory,
    known: HashMap<Walked, StackId>,
    frames_kept: usize,
    last: u32,
}

/// A stack that has been found, and not yet been given a number.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Walked {
    frames: Box<[Frame]>,
    truncated: Option<Truncation>,
}

impl Walked {
    /// How many frames from the innermost on lie in the same file as that one; `None` when there are none.
    pub(super) fn depth_in_first_module(&self) -> Option<u32> {
        let Frame::Code(module, _) = self.frames.first()? else {
            return None;
        };
        let inside = self
            .frames
            .iter()
            .take_while(|frame| matches!(frame, Frame::Code(other, _) if other == module))
            .count();
        u32::try_from(inside).ok()
    }
}

impl Stacks {
    pub(super) fn new(mode: StackMode, depth: u32) -> Self {
        Self {
            mode,
            depth: depth as usize,
            modules: Modules::default(),
            python: Python::default(),
            walker: Walker::default(),
            memory: StackMemory::default(),
            known: HashMap::new(),
            frames_kept: 0,
            last: 0,
        }
    }

    /// Whether the stack of what a call did is wanted.
    pub(super) fn wants(&self, kind: &EventKind) -> bool {
        match self.mode {
            StackMode::Off => false,
            StackMode::Brk => moves_break(kind),
            StackMode::All => moves_break(kind) || may_change_mappings(kind),
        }
    }

    /// Whether the stacks of heap errors and samples are wanted.
    pub(super) fn wants_reports(&self) -> bool {
        self.mode != StackMode::Off
    }

    /// Finds the stack of a stopped thread; `None` for a 32-bit one, and for one that was killed.
    pub(super) fn walk(&mut self, tid: u32, pid: u32, code: &mut Code) -> Option<Walked> {
        let registers = sys::stack_registers(tid)?;
        code.bring_up_to_date(tid, pid, &mut self.modules);
        self.memory.begin(tid);
        let walker = &mut self.walker;
        let (memory, modules, depth) = (&mut self.memory, &mut self.modules, self.depth);
        let walked = guard::run(|| walker.walk(registers, depth, memory, code, modules));
        let (mut frames, mut truncated) = walked.unwrap_or_else(|_| {
            let place = self.walker.last_place();
            self.walker.begin_anew();
            self.modules.give_up(place);
            (Vec::new(), Some(Truncation::Lost))
        });
        self.python.read(tid, &self.memory, depth, &mut code.python);
        self.python.merge(&mut frames, &mut truncated, depth);
        Some(Walked {
            frames: frames.into_boxed_slice(),
            truncated,
        })
    }

    /// Gives a stack its number. What later events need to know of it comes first.
    pub(super) fn number(&mut self, walked: Walked) -> (StackId, Vec<EventKind>) {
        if let Some(id) = self.known.get(&walked) {
            return (*id, Vec::new());
        }
        self.last += 1;
        let id = StackId(self.last);
        let mut news = self.announcements(&walked.frames);
        news.extend(self.python.news());
        news.push(EventKind::StackSeen(Stack {
            id,
            frames: walked.frames.to_vec(),
            truncated: walked.truncated,
        }));
        if self.frames_kept > MOST_FRAMES_KEPT {
            self.known = HashMap::new();
            self.frames_kept = 0;
        }
        // The entry itself takes about as much as eight frames.
        self.frames_kept += walked.frames.len() + 8;
        self.known.insert(walked, id);
        (id, news)
    }

    /// The names of the code that an address space has generated, as far as its stacks have frames there; `None` where
    /// there are none.
    pub(super) fn names_of_generated_code(&self, tid: u32, code: &Code) -> Option<EventKind> {
        let module = code.generated()?;
        let (path, inherited, addresses) = self.modules.in_generated_code(module)?;
        let mut names = perf_map::names(tid, path, addresses);
        if names.is_empty()
            && let Some(inherited) = inherited
        {
            names = perf_map::names(tid, inherited, addresses);
        }
        (!names.is_empty()).then_some(EventKind::CodeNamed { module, names })
    }

    /// What is to be said of stacks that cannot be complete; once.
    pub(super) fn take_problem(&mut self) -> Option<String> {
        self.modules.take_problem()
    }

    fn announcements(&mut self, frames: &[Frame]) -> Vec<EventKind> {
        frames
            .iter()
            .filter_map(|frame| match frame {
                Frame::Code(module, place) => {
                    self.modules.note_place(*module, *place);
                    self.modules.announce(*module).map(EventKind::ModuleSeen)
                }
                Frame::Interpreted { .. } => None,
            })
            .collect()
    }
}

fn moves_break(kind: &EventKind) -> bool {
    matches!(
        kind,
        EventKind::Brk { requested, before, after }
            if before.map_or(requested.0 != 0, |before| before != *after)
    )
}

/// Whether a call may have changed how much memory the program has other than in files.
fn may_change_mappings(kind: &EventKind) -> bool {
    match kind {
        EventKind::Mmap { flags, result, .. } => flags.is_private_anonymous() && result.is_done(),
        EventKind::Munmap { result, .. } | EventKind::Mprotect { result, .. } => result.is_done(),
        EventKind::Mremap { result, .. } => result.is_done(),
        EventKind::Madvise { advice, result, .. } => {
            result.is_done()
                && matches!(
                    *advice,
                    Advice::DONTNEED | Advice::FREE | Advice::DONTNEED_LOCKED | Advice::REMOVE
                )
        }
        _ => false,
    }
}
