//! Python functions and lines in the stacks of programs that CPython runs, read from outside.
//!
//! An interpreter is known by the symbol `_PyRuntime` in a file that the program has mapped. From there on it is lists and
//! pointers in the program's memory: interpreters, threads, the frames of the stopped thread, the code objects of the
//! frames. None of it is believed: lists are followed to a limit, lengths are bounded, and what is to be a code object, a
//! name or a table must be of that type.
//!
//! A thread's frames are its own: they are right whether or not it holds the interpreter's lock.

mod functions;
mod layout;
mod lines;
mod memory;
mod merge;
mod objects;
mod symbols;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;
use std::rc::Rc;

pub(super) use self::symbols::Symbols;

use self::functions::Functions;
use self::layout::At;
use self::layout::Current;
use self::layout::Entry;
use self::layout::Layout;
use self::layout::OWNED_BY_C_STACK;
use self::layout::Problem;
use self::layout::Version;
use self::memory::Memory;
use self::memory::OfThread;
use self::objects::CodeObject;
use self::objects::CodeObjects;
use self::objects::Place;
use super::guard;
use super::stack_memory::StackMemory;
use super::sys;
use crate::event::EventKind;
use crate::event::Frame;
use crate::event::ModuleId;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Truncation;

/// Most interpreters of one program, libraries that hold one, and threads that are looked through.
const MOST_INTERPRETERS: usize = 16;
const MOST_LIBRARIES: usize = 4;
const MOST_THREADS: usize = 2048;
/// Most threads whose states are remembered; then all are forgotten.
const MOST_REMEMBERED: usize = 4096;

/// The CPython libraries of one address space.
#[derive(Debug, Default)]
pub(super) struct Space {
    libraries: Vec<Library>,
}

impl Clone for Space {
    /// For a forked child, which reads anew what its memory holds.
    fn clone(&self) -> Self {
        Self {
            libraries: self.libraries.iter().map(Library::anew).collect(),
        }
    }
}

impl Space {
    /// A module that holds an interpreter has been mapped; `bias` is what is added to the linker's addresses.
    pub(super) fn found(
        &mut self,
        module: ModuleId,
        path: &str,
        bias: u64,
        symbols: &Symbols,
        offset_in_file: impl Fn(u64) -> Option<u64>,
    ) {
        let library = Library {
            module,
            version: Version::from_file_name(path),
            version_at: symbols.version.map(|address| address.wrapping_add(bias)),
            runtime: symbols.runtime.unwrap_or_default().wrapping_add(bias),
            evaluates: symbols
                .evaluates
                .iter()
                .filter_map(|range| {
                    let start = offset_in_file(range.start)?;
                    Some(start..start.saturating_add(range.end - range.start))
                })
                .collect(),
            layout: symbols.problem().map(Err),
            threads: HashMap::new(),
            objects: CodeObjects::default(),
        };
        self.libraries.retain(|known| known.module != module);
        if self.libraries.len() < MOST_LIBRARIES {
            self.libraries.push(library);
        }
    }
}

/// One CPython library.
#[derive(Debug)]
struct Library {
    module: ModuleId,
    /// What its file's name says.
    version: Option<Version>,
    /// Where it says so itself.
    version_at: Option<u64>,
    runtime: u64,
    /// The function that evaluates frames, as places in the file.
    evaluates: Vec<Range<u64>>,
    layout: Option<Result<Layout, Problem>>,
    threads: HashMap<u32, ThreadStates>,
    objects: CodeObjects,
}

/// Where the states of a thread are, and the words by which it shows that they still are there.
#[derive(Debug, Default)]
struct ThreadStates {
    states: Vec<u64>,
    witnesses: Vec<(u64, u64)>,
}

/// Which thread is meant.
#[derive(Clone, Copy, Debug)]
struct Who {
    tid: u32,
    /// What pthread_self(3) returns in it, where that can be told.
    thread_pointer: Option<u64>,
}

/// A Python frame as it was read.
#[derive(Debug)]
struct PythonFrame {
    code: Rc<CodeObject>,
    place: Place,
}

/// The Python frames of a thread, innermost first.
#[derive(Debug)]
struct Chain {
    module: ModuleId,
    evaluates: Vec<Range<u64>>,
    layout: Layout,
    frames: Vec<PythonFrame>,
    /// After how many frames each call of the evaluating function ends.
    ends: Vec<usize>,
    /// All frames that were asked for could be read.
    is_whole: bool,
}

/// Python in all stacks of a recording.
#[derive(Debug, Default)]
pub(super) struct Python {
    functions: Functions,
    chain: Option<Chain>,
    problems: Vec<Problem>,
}

impl Python {
    /// Reads the Python frames of a stopped thread, of whose stack some has been read.
    pub(super) fn read(&mut self, tid: u32, stack: &StackMemory, most: usize, space: &mut Space) {
        self.chain = None;
        if space.libraries.is_empty() {
            return;
        }
        let memory = OfThread::new(tid, stack);
        let who = Who {
            tid,
            thread_pointer: sys::thread_pointer(tid),
        };
        let read = guard::run(|| self.read_from(&memory, who, most, space));
        if read.is_err() {
            self.chain = None;
            space.libraries.clear();
            self.mention(Problem::Unforeseen);
        }
    }

    fn read_from(&mut self, memory: &dyn Memory, who: Who, most: usize, space: &mut Space) {
        for library in &mut space.libraries {
            match library.layout(memory) {
                Some(Ok(layout)) => {
                    self.chain = library.chain(memory, &layout, who, most);
                    if let Some(chain) = &self.chain {
                        if !chain.is_whole {
                            self.mention(Problem::Frames);
                        }
                        return;
                    }
                }
                Some(Err(problem)) => self.mention(problem),
                None => {}
            }
        }
    }

    fn mention(&mut self, problem: Problem) {
        if self.problems.contains(&problem) {
            return;
        }
        self.problems.push(problem);
        self.functions.news.push(EventKind::Notice(Notice {
            code: NoticeCode::StacksIncomplete,
            message: problem.to_string(),
        }));
    }

    /// Puts the Python frames read last among a stack's frames.
    pub(super) fn merge(
        &mut self,
        frames: &mut Vec<Frame>,
        truncated: &mut Option<Truncation>,
        most: usize,
    ) {
        let Some(chain) = self.chain.take() else {
            return;
        };
        let python: Vec<Frame> = chain
            .frames
            .iter()
            .map(|frame| Frame::Interpreted {
                function: self.functions.number(&mut frame.code.named.borrow_mut()),
                line: frame.code.line(frame.place, &chain.layout),
            })
            .collect();
        let evaluates = |frame: &Frame| match frame {
            Frame::Code(module, offset) => {
                *module == chain.module
                    && chain
                        .evaluates
                        .iter()
                        .any(|range| range.contains(&offset.0))
            }
            Frame::Interpreted { .. } => false,
        };
        *frames = merge::merged(
            frames,
            evaluates,
            &python,
            &chain.ends,
            truncated.is_none(),
            chain.is_whole,
        );
        if frames.len() > most {
            frames.truncate(most);
            *truncated = Some(Truncation::Depth);
        }
    }

    /// What has to be told before the next stack is.
    pub(super) fn news(&mut self) -> Vec<EventKind> {
        std::mem::take(&mut self.functions.news)
    }
}

impl Library {
    fn anew(&self) -> Self {
        Self {
            module: self.module,
            version: self.version,
            version_at: self.version_at,
            runtime: self.runtime,
            evaluates: self.evaluates.clone(),
            layout: self.layout,
            threads: HashMap::new(),
            objects: CodeObjects::default(),
        }
    }

    /// Where it keeps what; `None` as long as nothing of it runs.
    fn layout(&mut self, memory: &dyn Memory) -> Option<Result<Layout, Problem>> {
        if self.layout.is_none() {
            self.layout = Some(self.find_layout(memory)?);
        }
        self.layout
    }

    fn find_layout(&self, memory: &dyn Memory) -> Option<Result<Layout, Problem>> {
        let version = match self.version_at {
            // Not relocated yet, or not mapped: there is no interpreter.
            Some(address) => Version::from_hex(memory.word(address)?),
            None => self.version,
        };
        let Some(version) = version else {
            return Some(Err(Problem::NoVersion));
        };
        Some(version.layout(memory, self.runtime))
    }

    fn chain(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        who: Who,
        most: usize,
    ) -> Option<Chain> {
        let currents = self.current_frames(memory, layout, who)?;
        let mut raw = Vec::new();
        let mut ends = Vec::new();
        let mut is_whole = true;
        for current in currents {
            if walk(memory, layout, current, most, &mut raw, &mut ends).is_none() {
                is_whole = false;
                break;
            }
        }
        let objects = self
            .objects
            .get(memory, layout, raw.iter().map(|(code, _)| *code));
        ends.retain(|end| *end <= objects.len());
        is_whole &= objects.len() == raw.len();
        let frames: Vec<PythonFrame> = objects
            .into_iter()
            .zip(&raw)
            .map(|(code, (_, place))| PythonFrame {
                code,
                place: *place,
            })
            .collect();
        (!frames.is_empty() || !is_whole).then(|| Chain {
            module: self.module,
            evaluates: self.evaluates.clone(),
            layout: *layout,
            frames,
            ends,
            is_whole,
        })
    }

    /// The innermost frames of a thread, one for each interpreter it runs, the newest first.
    fn current_frames(
        &mut self,
        memory: &dyn Memory,
        layout: &Layout,
        who: Who,
    ) -> Option<Vec<u64>> {
        if let Some(states) = self.threads.get(&who.tid)
            && let Some(currents) = states.currents(memory, layout)
        {
            return Some(currents);
        }
        self.threads.remove(&who.tid);
        let states = ThreadStates::find(memory, layout, self.runtime, who)?;
        if states.states.is_empty() {
            // A new thread takes over a state that is in the list already, without a change that could be seen.
            return None;
        }
        let currents = states.currents(memory, layout);
        if self.threads.len() >= MOST_REMEMBERED {
            self.threads.clear();
        }
        self.threads.insert(who.tid, states);
        currents
    }
}

impl ThreadStates {
    /// Goes through all interpreters and their threads.
    fn find(memory: &dyn Memory, layout: &Layout, runtime: u64, who: Who) -> Option<Self> {
        let mut found = Self::default();
        let mut next_at = runtime.wrapping_add(layout.interpreters);
        for _ in 0..MOST_INTERPRETERS {
            let interpreter = memory.word(next_at)?;
            found.witnesses.push((next_at, interpreter));
            if interpreter == 0 {
                break;
            }
            let threads_at = interpreter.wrapping_add(layout.threads);
            let first = memory.word(threads_at)?;
            found.witnesses.push((threads_at, first));
            found.add_state(memory, layout, first, who);
            next_at = interpreter.wrapping_add(layout.interpreter_next);
        }
        Some(found)
    }

    /// Looks for the state of a thread in a list.
    fn add_state(&mut self, memory: &dyn Memory, layout: &Layout, first: u64, who: Who) {
        let (offset, wanted) = match (who.thread_pointer, layout.native_thread_id) {
            (Some(pointer), _) => (layout.thread_id, pointer),
            (None, Some(offset)) => (offset, u64::from(who.tid)),
            (None, None) => return,
        };
        let mut state = first;
        for _ in 0..MOST_THREADS {
            if state == 0 {
                return;
            }
            let at = state.wrapping_add(offset);
            // The words of one state are read together, as they share a page as a rule; the later one goes first.
            let Some(id) = memory.word(at) else {
                return;
            };
            if id == wanted {
                self.witnesses.push((at, wanted));
                self.states.push(state);
                return;
            }
            let Some(next) = memory.word(state.wrapping_add(layout.thread_next)) else {
                return;
            };
            state = next;
        }
    }

    /// The current frames, as far as there are any; `None` if the states are no longer where they were.
    fn currents(&self, memory: &dyn Memory, layout: &Layout) -> Option<Vec<u64>> {
        let in_state = match layout.current {
            Current::Direct(offset) | Current::Through(offset, _) => offset,
        };
        let pieces: Vec<(u64, usize)> = self
            .witnesses
            .iter()
            .map(|(address, _)| (*address, 8))
            .chain(
                self.states
                    .iter()
                    .map(|state| (state.wrapping_add(in_state), 8)),
            )
            .collect();
        let mut bytes = vec![0; pieces.len() * 8];
        if memory.read_pieces(&pieces, &mut bytes) < bytes.len() {
            return None;
        }
        let mut words = bytes
            .as_chunks::<8>()
            .0
            .iter()
            .map(|word| u64::from_ne_bytes(*word));
        for (_, expected) in &self.witnesses {
            if words.next() != Some(*expected) {
                return None;
            }
        }
        let currents = words.filter_map(|word| match layout.current {
            Current::Direct(_) => Some(word),
            Current::Through(_, offset) if word != 0 => memory.word(word.wrapping_add(offset)),
            Current::Through(..) => None,
        });
        Some(currents.filter(|frame| *frame != 0).collect())
    }
}

/// Follows frames outwards: their code and place, and where calls of the evaluating function end. `None` if they could not
/// be followed to their end; those that go round are none at all.
fn walk(
    memory: &dyn Memory,
    layout: &Layout,
    innermost: u64,
    most: usize,
    frames: &mut Vec<(u64, Place)>,
    ends: &mut Vec<usize>,
) -> Option<()> {
    let mut bytes = vec![0; layout.frame_bytes];
    let mut seen = std::collections::HashSet::new();
    let mut at = innermost;
    let (frames_before, ends_before) = (frames.len(), ends.len());
    while at != 0 && frames.len() < most {
        if !seen.insert(at) {
            frames.truncate(frames_before);
            ends.truncate(ends_before);
            return None;
        }
        // Frames that stand for calls of the evaluating function are no more than the others, and are not counted there.
        if seen.len() > most.saturating_mul(4) || memory.read(at, &mut bytes) < bytes.len() {
            return None;
        }
        let word = |offset: usize| Some(u64::from_ne_bytes(*bytes.get(offset..)?.first_chunk()?));
        let byte = |offset: usize| bytes.get(offset).copied();
        at = word(layout.previous)?;
        if let Entry::Shim(owner) = layout.entry
            && byte(owner)? == OWNED_BY_C_STACK
        {
            ends.push(frames.len());
            continue;
        }
        frames.push((word(layout.code)?, place(layout, &bytes)?));
        match layout.entry {
            Entry::Each => ends.push(frames.len()),
            Entry::Flag(offset) if byte(offset)? != 0 => ends.push(frames.len()),
            Entry::Flag(_) | Entry::Shim(_) => {}
        }
    }
    Some(())
}

fn place(layout: &Layout, frame: &[u8]) -> Option<Place> {
    let index = |offset: usize| {
        frame
            .get(offset..)?
            .first_chunk()
            .map(|bytes| i64::from(i32::from_ne_bytes(*bytes)))
    };
    Some(match layout.at {
        At::Pointer(offset) => {
            Place::Address(u64::from_ne_bytes(*frame.get(offset..)?.first_chunk()?))
        }
        At::Bytes(offset) => Place::Offset(index(offset)?),
        At::Units(offset) => Place::Offset(index(offset)? * 2),
    })
}
