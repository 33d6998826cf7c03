//! Call stacks of tracees: copied while they stand still, unwound when they run again.
//!
//! What is copied are the registers and the stack from its pointer upwards; what is known of the program's code is brought
//! up to date before it goes on. The rest needs nothing of the program.

use std::collections::HashMap;

use framehop::CacheNative;
use framehop::MayAllocateDuringUnwind;
use framehop::Unwinder;

use super::cpython::Python;
use super::modules::Code;
use super::modules::Modules;
use super::sys;
use super::sys::StackRegisters;
use crate::event::Advice;
use crate::event::EventKind;
use crate::event::Frame;
use crate::event::Stack;
use crate::event::StackId;
use crate::event::StackMode;
use crate::event::Truncation;

/// Most bytes of a stack that are copied.
const MOST_BYTES: usize = 64 << 10;
/// Most frames of all stacks that are remembered as recorded; then they are forgotten, and recorded once more when they
/// come again.
const MOST_FRAMES_KEPT: usize = 1 << 18;
/// The unwinder tells its modules' generations apart by 16 bits: its cache must go before they come round.
const CHANGES_PER_CACHE: u64 = 1 << 15;

/// The stacks of a recording.
pub(super) struct Stacks {
    mode: StackMode,
    depth: usize,
    modules: Modules,
    python: Python,
    cache: CacheNative<MayAllocateDuringUnwind>,
    changes_at_cache: u64,
    copy: Box<[u8]>,
    known: HashMap<(Box<[Frame]>, Option<Truncation>), StackId>,
    frames_kept: usize,
    last: u32,
}

impl std::fmt::Debug for Stacks {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stacks")
            .field("mode", &self.mode)
            .field("depth", &self.depth)
            .field("last", &self.last)
            .finish_non_exhaustive()
    }
}

/// A stack that has been copied and not yet unwound.
#[derive(Clone, Copy, Debug)]
pub(super) struct Copied {
    registers: StackRegisters,
    bytes: usize,
}

impl Stacks {
    pub(super) fn new(mode: StackMode, depth: u32) -> Self {
        let bytes = match mode {
            StackMode::Off => 0,
            StackMode::Brk | StackMode::All => MOST_BYTES,
        };
        Self {
            mode,
            depth: depth as usize,
            modules: Modules::default(),
            python: Python::default(),
            cache: CacheNative::new_in(),
            changes_at_cache: 0,
            copy: vec![0; bytes].into_boxed_slice(),
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

    /// Copies the stack of a stopped thread.
    pub(super) fn copy(&mut self, tid: u32, pid: u32, code: &mut Code) -> Option<Copied> {
        let registers = sys::stack_registers(tid)?;
        code.bring_up_to_date(tid, pid, &mut self.modules);
        // Fewer bytes than asked for where the stack's mapping ends.
        let bytes = sys::read_memory(tid, registers.stack_pointer, &mut self.copy).unwrap_or(0);
        let copied = self.copy.get(..bytes).unwrap_or_default();
        self.python
            .copy(tid, &registers, copied, self.depth, &mut code.python);
        Some(Copied { registers, bytes })
    }

    /// Unwinds the stack copied last. What later events need to know of it comes first.
    pub(super) fn unwind(&mut self, copied: Copied, code: &Code) -> (StackId, Vec<EventKind>) {
        if self.modules.changes - self.changes_at_cache > CHANGES_PER_CACHE {
            self.cache = CacheNative::new_in();
            self.changes_at_cache = self.modules.changes;
        }
        let (mut frames, mut truncated) = self.frames(copied, code);
        self.python.merge(&mut frames, &mut truncated, self.depth);
        let key = (frames.into_boxed_slice(), truncated);
        if let Some(id) = self.known.get(&key) {
            return (*id, Vec::new());
        }
        self.last += 1;
        let id = StackId(self.last);
        let mut news = self.announcements(&key.0);
        news.extend(self.python.news());
        news.push(EventKind::StackSeen(Stack {
            id,
            frames: key.0.to_vec(),
            truncated,
        }));
        if self.frames_kept > MOST_FRAMES_KEPT {
            self.known.clear();
            self.frames_kept = 0;
        }
        self.frames_kept += key.0.len();
        self.known.insert(key, id);
        (id, news)
    }

    fn announcements(&mut self, frames: &[Frame]) -> Vec<EventKind> {
        frames
            .iter()
            .filter_map(|frame| match frame {
                Frame::Code(module, _) => self.modules.announce(*module).map(EventKind::ModuleSeen),
                Frame::Interpreted { .. } => None,
            })
            .collect()
    }

    fn frames(&mut self, copied: Copied, code: &Code) -> (Vec<Frame>, Option<Truncation>) {
        let Copied { registers, bytes } = copied;
        let stack = self.copy.get(..bytes).unwrap_or_default();
        let base = registers.stack_pointer;
        let mut read_word = |address: u64| {
            let from = usize::try_from(address.checked_sub(base).ok_or(())?).map_err(drop)?;
            stack
                .get(from..)
                .and_then(|rest| rest.first_chunk())
                .map(|word| u64::from_ne_bytes(*word))
                .ok_or(())
        };
        let mut frames = Vec::with_capacity(32);
        let mut found = code.unwinder.iter_frames(
            registers.instruction_pointer,
            registers.for_unwinding(code.unwinder.max_known_code_address()),
            &mut self.cache,
            &mut read_word,
        );
        let truncated = loop {
            match found.next() {
                Ok(Some(address)) => {
                    if frames.len() == self.depth {
                        break Some(Truncation::Depth);
                    }
                    let place = code.place(address.address_for_lookup(), &mut self.modules);
                    frames.push(Frame::Code(place.module, place.offset));
                }
                Ok(None) | Err(framehop::Error::ReturnAddressIsNull) => break None,
                Err(framehop::Error::CouldNotReadStack(address))
                    if bytes == MOST_BYTES && address >= base + MOST_BYTES as u64 - 7 =>
                {
                    break Some(Truncation::Bytes);
                }
                Err(_) => break Some(Truncation::Lost),
            }
        };
        (frames, truncated)
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
