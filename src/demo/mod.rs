//! The founding experiment: what a program sees of its break, beside what is traced, each number explained.
//!
//! No compiler is needed, as breaktrace plays the program itself (`player`) under its own tracer. Both accounts are
//! independent: the program asks its C library (`sbrk(0)`), the tracer reads the kernel's answers. They are joined
//! along the script, by the marks that the player leaves in the trace; no clock and no guess is involved.

mod account;
mod explain;
mod player;
mod script;
mod text;

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::io::Read;
use std::io::Seek;
use std::os::unix::ffi::OsStrExt;

use serde::Serialize;

pub use self::account::AccountError;
pub use self::explain::Reason;
pub use self::explain::Sum;
pub use self::explain::SumOf;
pub use self::explain::Term;
pub use self::explain::TermKind;

use self::account::Seen;
use self::explain::Setting;
use self::script::Act;
use self::script::SCRIPT;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::Machine;
use crate::event::Outcome;
use crate::event::StackMode;
use crate::render::TextOptions;
use crate::report::Schema;
use crate::report::Tool;
use crate::tracer::Launch;
use crate::tracer::LaunchError;
use crate::tracer::Options;
use crate::tracer::TraceError;
use crate::tracer::Tracer;
use crate::units::Address;

/// The name by which demonstrations are known.
pub const SCHEMA_NAME: &str = "breaktrace.demo";

/// The version of the demonstration's schema.
pub const SCHEMA_VERSION: u32 = 1;

/// What the program saw beside what was traced.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Demonstration {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// The machine.
    pub machine: Machine,
    /// The C library whose malloc was called.
    pub c_library: CLibrary,
    /// Variables in the environment that change which malloc is called, or what it does.
    pub influences: Vec<String>,
    /// Whether the program's account and the trace agree at every step.
    pub agrees: bool,
    /// Where the heap begins, by `/proc/<pid>/stat`; `null` when it could not be read.
    pub heap_start: Option<Address>,
    /// What the program did, in order.
    pub steps: Vec<Step>,
    /// Numbers taken apart; empty where no known rule gives them.
    pub sums: Vec<Sum>,
    /// All steps together.
    pub totals: Totals,
}

/// A step of the program, from both sides.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Step {
    /// Which one, from 0.
    pub number: usize,
    /// What the program did.
    #[serde(flatten)]
    pub action: Action,
    /// Where the block is that was made or freed; `null` at the beginning and when malloc refused.
    pub address: Option<Address>,
    /// Bytes of a block that was made which the program may use (`malloc_usable_size`); `null` otherwise.
    pub usable_bytes: Option<u64>,
    /// The break that the program saw after it: `sbrk(0)`.
    pub seen_break: Address,
    /// How far the break moved since the step before, as the program saw it, in bytes.
    pub change_bytes: i64,
    /// The break after it by the trace; `null` when no call and no snapshot told.
    pub traced_break: Option<Address>,
    /// Memory calls that were traced during it. The first step has only calls of brk: others there are the loader's.
    pub calls: Vec<Call>,
    /// Whether both sides say the same.
    pub agrees: bool,
    /// Why the break moved, or did not.
    pub reason: Reason,
    /// What was read of malloc, in the program's memory, as it was about to raise the break; `null` when it did not, or
    /// nothing could be read.
    pub malloc: Option<MallocFacts>,
}

/// What was read of malloc in the program's memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct MallocFacts {
    /// What it asks for ahead of need (`mp_.top_pad`).
    pub top_pad_bytes: u64,
    /// What was left at the heap's end (the main arena's top).
    pub top_bytes: u64,
}

/// What the program did at a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "action", rename_all = "snake_case")]
pub enum Action {
    /// It began.
    Begin,
    /// It called malloc.
    Malloc {
        /// The block's name.
        block: char,
        /// Bytes asked for.
        bytes: u64,
    },
    /// It called free.
    Free {
        /// The block's name.
        block: char,
    },
}

impl From<Act> for Action {
    fn from(act: Act) -> Self {
        match act {
            Act::Begin => Self::Begin,
            Act::Malloc { block, bytes } => Self::Malloc {
                block: script::name(block),
                bytes: bytes as u64,
            },
            Act::Free { block } => Self::Free {
                block: script::name(block),
            },
        }
    }
}

/// A traced call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "call", rename_all = "snake_case")]
pub enum Call {
    /// brk(2).
    Brk {
        /// The break that was asked for; 0 asks where it is.
        requested: Address,
        /// The break before; `null` when it was not known.
        before: Option<Address>,
        /// The break after.
        after: Address,
    },
    /// Another call.
    Other {
        /// Its name.
        name: &'static str,
        /// Bytes that it was about.
        bytes: u64,
    },
}

impl Call {
    /// How far the call moved the break, in bytes.
    #[must_use]
    pub fn moved_bytes(&self) -> i64 {
        match *self {
            Self::Brk { before, after, .. } => before.map_or(0, |before| after.offset_from(before)),
            Self::Other { .. } => 0,
        }
    }

    /// Whether the call changes nothing.
    #[must_use]
    pub fn only_asks(&self) -> bool {
        matches!(
            self,
            Self::Brk {
                requested: Address(0),
                ..
            }
        )
    }
}

impl Step {
    /// Whether malloc or free did without the kernel.
    #[must_use]
    pub fn is_without_calls(&self) -> bool {
        self.calls.iter().all(Call::only_asks)
    }

    /// Calls that moved the break.
    fn moves(&self) -> usize {
        self.calls
            .iter()
            .filter(|call| call.moved_bytes() != 0)
            .count()
    }
}

/// All steps together.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// Calls of malloc.
    pub mallocs: u64,
    /// Calls of free.
    pub frees: u64,
    /// System calls for memory that these made; those that only ask are not counted.
    pub system_calls: u64,
    /// Bytes asked for, all blocks together.
    pub requested_bytes: u64,
    /// Of these: bytes of the blocks that were freed.
    pub freed_bytes: u64,
    /// Bytes by which the break rose.
    pub obtained_bytes: u64,
    /// Bytes by which it fell.
    pub returned_bytes: u64,
}

/// The C library.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CLibrary {
    /// Its name: `glibc`, or what Rust calls the one that breaktrace was built for.
    pub name: &'static str,
    /// Its version as it says itself, such as `2.36`; `null` when it says none.
    pub version: Option<String>,
}

impl CLibrary {
    /// The one that breaktrace, and so the player, runs with.
    fn of_this_process() -> Self {
        #[cfg(target_env = "gnu")]
        {
            // SAFETY: the function returns a string that lives as long as the library.
            let version = unsafe { std::ffi::CStr::from_ptr(libc::gnu_get_libc_version()) };
            Self {
                name: "glibc",
                version: version.to_str().ok().map(str::to_owned),
            }
        }
        #[cfg(not(target_env = "gnu"))]
        Self {
            name: if cfg!(target_env = "musl") {
                "musl"
            } else {
                "the C library"
            },
            version: None,
        }
    }

    /// Major and minor version of glibc; `None` for others.
    fn version(&self) -> Option<(u32, u32)> {
        let (major, rest) = self.version.as_deref()?.split_once('.')?;
        let minor = rest.split(|c: char| !c.is_ascii_digit()).next()?;
        (self.name == "glibc")
            .then(|| Some((major.parse().ok()?, minor.parse().ok()?)))
            .flatten()
    }
}

/// Why there is nothing to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DemoError {
    /// breaktrace could not be started under its own trace.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// The trace broke off.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// What the program printed could not be kept or read.
    #[error("cannot keep what the program prints: {0}")]
    Output(#[from] io::Error),
    /// The program did not come to its end.
    #[error("the program that breaktrace plays did not come to its end: {}", how(.0))]
    Ended(Option<Outcome>),
    /// The program's account cannot be read.
    #[error(transparent)]
    Account(#[from] AccountError),
    /// A step's end is not in the trace.
    #[error("the trace does not show where step {0} ends")]
    NoMark(usize),
}

impl DemoError {
    /// What to do next.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Launch(error) => error.hint(),
            Self::Trace(_) | Self::NoMark(_) => {
                Some("`breaktrace doctor` says what this machine allows".into())
            }
            Self::Output(_) | Self::Ended(_) | Self::Account(_) => None,
        }
    }
}

fn how(outcome: &Option<Outcome>) -> String {
    match outcome {
        Some(Outcome::Exited(code)) => format!("it exited with code {code}"),
        Some(Outcome::Killed { signal, .. }) => format!("signal {signal} killed it"),
        Some(Outcome::Detached | Outcome::Vanished) | None => "nobody saw how it ended".into(),
    }
}

/// Writes a demonstration for people, with a final newline.
#[must_use]
pub fn to_text(demonstration: &Demonstration, options: TextOptions) -> String {
    text::render(demonstration, options)
}

/// Writes a demonstration as indented JSON with a final newline.
///
/// # Panics
///
/// Never: a demonstration holds only strings, numbers and lists.
#[must_use]
pub fn to_json(demonstration: &Demonstration) -> String {
    let mut text =
        serde_json::to_string_pretty(demonstration).expect("a demonstration has only string keys");
    text.push('\n');
    text
}

/// Plays the program under trace, and puts both accounts beside each other.
///
/// # Errors
///
/// Tracing is not permitted, or one of the two accounts is not whole. That they differ is no error: see
/// [`Demonstration::agrees`].
pub fn run() -> Result<Demonstration, DemoError> {
    let mut output = File::from(
        nix::sys::memfd::memfd_create(c"breaktrace demo", nix::sys::memfd::MFdFlags::MFD_CLOEXEC)
            .map_err(io::Error::from)?,
    );
    let mut tracer = Tracer::launch(&launch(output.try_clone()?), OPTIONS)?;
    let machine = tracer.recording().machine.clone();
    let mut trace = Trace::default();
    while let Some(event) = tracer.next_event()? {
        trace.take(&event);
    }
    match tracer.launched_outcome() {
        Some(Outcome::Exited(0)) => {}
        outcome => return Err(DemoError::Ended(outcome)),
    }
    let mut text = Vec::new();
    output.rewind()?;
    output.read_to_end(&mut text)?;
    let seen = account::read(&String::from_utf8_lossy(&text))?;
    demonstrate(
        &seen,
        trace,
        machine,
        CLibrary::of_this_process(),
        influences(),
    )
}

const OPTIONS: Options = Options {
    stacks: StackMode::Off,
    stack_depth: 0,
    sample_interval: None,
    leaks: false,
    heap: true,
    follow: false,
    verify: false,
    latency_hold: false,
    duration: None,
    every: None,
};

fn launch(output: File) -> Launch {
    let words = |text: &std::ffi::CStr| OsStr::from_bytes(text.to_bytes()).to_owned();
    Launch {
        program: "/proc/self/exe".into(),
        environment: vec![(words(player::PART_VARIABLE), words(player::PLAYER))],
        seccomp: true,
        stdout: Some(output),
        ..Launch::default()
    }
}

/// The names of variables that change which malloc is called, or what it does (mallopt(3), ld.so(8)).
fn influences() -> Vec<String> {
    let mut names: Vec<String> = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| {
            matches!(name.as_str(), "GLIBC_TUNABLES" | "LD_PRELOAD") || name.starts_with("MALLOC_")
        })
        .collect();
    names.sort();
    names
}

/// The tracer's account: the calls of each step, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Trace {
    heap_start: Option<Address>,
    /// Calls of the steps whose end was seen, and what was read of malloc at the last one that raised the break.
    steps: Vec<(Vec<Call>, Option<MallocFacts>)>,
    /// Calls since then.
    open: Vec<Call>,
    /// What was read at them.
    facts: Option<MallocFacts>,
    top_pad_bytes: Option<u64>,
}

impl Trace {
    fn take(&mut self, event: &Event) {
        match event.kind {
            EventKind::Snapshot(ref snapshot) => {
                self.heap_start = self.heap_start.or(snapshot.heap_start);
            }
            EventKind::Madvise {
                address, length: 0, ..
            } if script::marked_step(address.0) == Some(self.steps.len()) => {
                self.steps
                    .push((std::mem::take(&mut self.open), self.facts.take()));
            }
            EventKind::MallocSeen(ref seen) => {
                self.top_pad_bytes = Some(seen.settings.top_pad_bytes);
            }
            ref kind => {
                let call = call(kind).filter(|call| self.is_told(call));
                if call.is_some_and(|call| call.moved_bytes() > 0) {
                    self.facts = event.malloc.as_ref().and_then(|malloc| {
                        Some(MallocFacts {
                            top_pad_bytes: self.top_pad_bytes?,
                            top_bytes: malloc.top_bytes,
                        })
                    });
                }
                self.open.extend(call);
            }
        }
    }

    /// The loader maps libraries before the program begins.
    fn is_told(&self, call: &Call) -> bool {
        !self.steps.is_empty() || matches!(call, Call::Brk { .. })
    }
}

/// The memory call that an event is about.
fn call(kind: &EventKind) -> Option<Call> {
    let other = |name, bytes| Some(Call::Other { name, bytes });
    match *kind {
        EventKind::Brk {
            requested,
            before,
            after,
        } => Some(Call::Brk {
            requested,
            before,
            after,
        }),
        EventKind::Mmap { length, .. } => other("mmap", length),
        EventKind::Munmap { length, .. } => other("munmap", length),
        EventKind::Mremap { new_length, .. } => other("mremap", new_length),
        EventKind::Mprotect { length, .. } => other("mprotect", length),
        EventKind::Madvise { length, .. } => other("madvise", length),
        _ => None,
    }
}

/// Puts both accounts beside each other.
fn demonstrate(
    seen: &[Seen],
    trace: Trace,
    machine: Machine,
    c_library: CLibrary,
    influences: Vec<String>,
) -> Result<Demonstration, DemoError> {
    let heap_start = trace.heap_start;
    let mut steps = beside_each_other(seen, trace)?;
    let sums = match heap_start {
        Some(heap_start) => explain::explain(
            &mut steps,
            Setting {
                c_library: &c_library,
                page_size: machine.page_size,
                heap_start,
            },
        ),
        None => Vec::new(),
    };
    Ok(Demonstration {
        schema: Schema {
            name: SCHEMA_NAME.into(),
            version: SCHEMA_VERSION,
        },
        tool: Tool {
            name: env!("CARGO_PKG_NAME").into(),
            version: env!("CARGO_PKG_VERSION").into(),
        },
        machine,
        c_library,
        influences,
        agrees: steps.iter().all(|step| step.agrees),
        heap_start,
        totals: totals(&steps),
        steps,
        sums,
    })
}

fn beside_each_other(seen: &[Seen], trace: Trace) -> Result<Vec<Step>, DemoError> {
    let mut traced_break = trace.heap_start;
    let mut calls_of_steps = trace.steps.into_iter();
    let mut previous = None;
    let mut steps = Vec::with_capacity(SCRIPT.len());
    for ((number, act), seen) in SCRIPT.into_iter().enumerate().zip(seen) {
        let (calls, malloc) = calls_of_steps.next().ok_or(DemoError::NoMark(number))?;
        let last = calls.iter().rev().find_map(|call| match *call {
            Call::Brk { after, .. } => Some(after),
            Call::Other { .. } => None,
        });
        traced_break = last.or(traced_break);
        let before = previous.replace(seen.program_break);
        steps.push(Step {
            number,
            action: act.into(),
            address: seen.block,
            usable_bytes: seen.usable_bytes.filter(|_| seen.block.is_some()),
            seen_break: seen.program_break,
            change_bytes: seen
                .program_break
                .offset_from(before.unwrap_or(seen.program_break)),
            traced_break,
            agrees: traced_break == Some(seen.program_break),
            calls,
            reason: Reason::Unexplained,
            malloc,
        });
    }
    Ok(steps)
}

fn totals(steps: &[Step]) -> Totals {
    let mut totals = Totals::default();
    // What the loader did before the first step is not malloc's.
    for step in steps.iter().filter(|step| step.action != Action::Begin) {
        match step.action {
            Action::Begin => {}
            Action::Malloc { bytes, .. } => {
                totals.mallocs += 1;
                totals.requested_bytes += bytes;
            }
            Action::Free { block: freed } => {
                totals.frees += 1;
                totals.freed_bytes += steps
                    .iter()
                    .find_map(|step| match step.action {
                        Action::Malloc { block, bytes } if block == freed => Some(bytes),
                        _ => None,
                    })
                    .unwrap_or(0);
            }
        }
        for call in step.calls.iter().filter(|call| !call.only_asks()) {
            totals.system_calls += 1;
            let bytes = call.moved_bytes();
            if bytes > 0 {
                totals.obtained_bytes += bytes.unsigned_abs();
            } else {
                totals.returned_bytes += bytes.unsigned_abs();
            }
        }
    }
    totals
}

#[cfg(test)]
mod tests;
