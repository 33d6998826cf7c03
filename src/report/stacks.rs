//! Call stacks, and growth by call path.

use serde::Deserialize;
use serde::Serialize;

use crate::event::FileIdentity;
use crate::event::ModuleKind;
use crate::event::StackId;
use crate::event::Truncation;
use crate::symbols::Function;
use crate::symbols::SymbolState;
use crate::units::Address;

/// The stacks that the report names, and what is known of their frames.
///
/// Tables that name each other: stacks name frames, frames name modules, both by their position from 0.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Stacks {
    /// Events recorded with their stack.
    pub recorded: u64,
    /// Of these, with a stack that breaks off before its outermost frame.
    pub truncated: u64,
    /// Distinct stacks seen.
    pub distinct: u64,
    /// Stacks seen for which there was no room; what they did counts as that of no stack.
    #[serde(default)]
    pub left_out: u64,
    /// What code lies in.
    pub modules: Vec<StackModule>,
    /// Places in code.
    pub frames: Vec<StackFrame>,
    /// The stacks, by number.
    pub stacks: Vec<StackReport>,
}

/// Something that code lies in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StackModule {
    /// What it is.
    pub kind: ModuleKind,
    /// The file as the program saw it; `[vdso]`; for generated code the file that may name its functions.
    pub path: String,
    /// The GNU build ID as hexadecimal digits; `null` when there is none.
    pub build_id: Option<String>,
    /// Whether a file of this path is still the same one; `null` for what is no file.
    pub file: Option<FileIdentity>,
    /// What is known of its symbols.
    pub symbols: SymbolState,
}

/// A place in code.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StackFrame {
    /// The module's position in `modules`; `null` for a function of an interpreter.
    pub module: Option<u32>,
    /// Where in the module: an offset in its file, or an address in generated code; `null` likewise.
    pub offset: Option<Address>,
    /// The functions there: the innermost inlined one first, the one that has the machine code last; empty when not
    /// known.
    pub functions: Vec<Function>,
    /// The interpreter's language; `null` for machine code.
    pub language: Option<String>,
}

/// A call stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StackReport {
    /// Its number, by which steps and growth name it.
    pub id: StackId,
    /// Positions in `frames`, innermost first.
    pub frames: Vec<u32>,
    /// Why it ends before the outermost frame; `null` when it is whole.
    pub truncated: Option<Truncation>,
    /// The first function above those that merely pass the request on (malloc, operator new, sbrk); `null` when the
    /// stack has none.
    pub culprit: Option<Culprit>,
}

/// A function within a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Culprit {
    /// Position in the stack's `frames`.
    pub depth: u32,
    /// Position in the frame's `functions`; 0 for a frame without.
    pub function: u32,
}

/// What one stack did to the memory of an address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StackGrowth {
    /// The stack; `null` for all that has none: it was not recorded, or is none of those that are listed. Its net figures
    /// also hold the memory that was there before the recording.
    pub stack: Option<StackId>,
    /// To the break.
    #[serde(rename = "break")]
    pub program_break: Growth,
    /// To anonymous memory.
    pub anonymous: Growth,
}

/// Growth with one cause.
///
/// `grown − shrunk = net` for each stack, and the net figures of all, the entry without a stack included, add up to the size
/// at the end.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Growth {
    /// Bytes by which its calls made memory larger.
    pub grown_bytes: u64,
    /// Calls that did.
    pub grow_calls: u64,
    /// Of `grown_bytes`: those that went back to the kernel later, by whichever call.
    pub shrunk_bytes: u64,
    /// Of `grown_bytes`: those that are still there.
    pub net_bytes: u64,
    /// Bytes that its own calls gave back, by whichever call they came.
    pub returned_bytes: u64,
    /// Calls that did.
    pub return_calls: u64,
}

/// Growth by call path: all stacks whose functions are the same, whatever the addresses.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CallPath {
    /// The function that is to be named: see `culprit` of stacks. Its line is `null` where the stacks differ in it; of a
    /// function without a known name the name is as in `path`. `null` in the last entry, which sums up what has no stack
    /// and, of more than 200 call paths, those with the least net growth.
    pub culprit: Option<Function>,
    /// The functions from the culprit outwards, without lines and addresses: the same in the next build. Each is
    /// `function (file)`, with the last part of the source file's path, or of the module's where the source is not
    /// known. Functions without a known name are `module+0xoffset`, `dynamic linker (module)`, `(generated code)` or
    /// `(unknown)`. Empty where `culprit` is `null`.
    pub path: Vec<String>,
    /// The stacks.
    pub stacks: Vec<StackId>,
    /// Break and anonymous memory together.
    pub growth: Growth,
    /// The break alone.
    #[serde(rename = "break")]
    pub program_break: Growth,
    /// Anonymous memory alone.
    pub anonymous: Growth,
}
