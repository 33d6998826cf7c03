//! Call stacks, as events.
//!
//! A stack is recorded once, before the first event that names it, and so is each module and each function that its
//! frames name. Frames of machine code are places in files, not addresses: they stay right when libraries come and go,
//! and can be given names later and elsewhere.

use serde::Deserialize;
use serde::Serialize;

use crate::units::Address;

/// Number of a module within one recording, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModuleId(pub u32);

/// Number of a function of an interpreter within one recording, from 1.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FunctionId(pub u32);

/// Number of a stack within one recording, from 1. The same stack may be recorded under several.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct StackId(pub u32);

/// Of which calls the stacks are recorded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum StackMode {
    /// Of none.
    #[default]
    Off,
    /// Of moves of the program break, and of heap errors.
    Brk,
    /// Of all calls that may change how much memory the program has.
    All,
}

/// Something that code lies in.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// Its number.
    pub id: ModuleId,
    /// What it is.
    pub kind: ModuleKind,
    /// The file as the program saw it, without the kernel's ` (deleted)`; `[vdso]`; for generated code the file that may
    /// name its functions, such as `/tmp/perf-42.map`.
    pub path: String,
    /// The GNU build ID as hexadecimal digits (ld(1), `--build-id`); absent when there is none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub build_id: Option<String>,
    /// The file's device, inode and time of change: whether a file of this path is still the same one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<FileIdentity>,
}

/// What a [`Module`] is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ModuleKind {
    /// A program or library. Frames are offsets in the file.
    File,
    /// The kernel's vDSO (vdso(7)). Frames are offsets in its ELF image.
    Vdso,
    /// Code in anonymous memory of one address space, such as a just-in-time compiler's. Frames are addresses.
    Generated,
    /// No code is known there. Frames are addresses.
    Unknown,
}

/// Tells a file from its successors of the same name (stat(2)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FileIdentity {
    /// `st_dev`.
    pub device: u64,
    /// `st_ino`.
    pub inode: u64,
    /// `st_mtime`, in nanoseconds since 1970.
    pub modified_ns: i64,
    /// `st_size`, in bytes.
    pub bytes: u64,
}

/// A function of an interpreted language.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InterpretedFunction {
    /// Its number.
    pub id: FunctionId,
    /// The language: `python`.
    pub language: String,
    /// Its name, qualified where the language does so.
    pub name: String,
    /// The source file, as the interpreter has it.
    pub source: String,
    /// The line at which it begins; absent when not known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub first_line: Option<u32>,
}

/// One frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Frame {
    /// Machine code: the module, and where in it. Of a frame that has called another it is the last byte of the call, not
    /// the return address, so that it lies within the calling function and line.
    Code(ModuleId, Address),
    /// A function of an interpreter.
    Interpreted {
        /// Which.
        function: FunctionId,
        /// The line it is at; absent when not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        line: Option<u32>,
    },
}

/// A call stack.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stack {
    /// Its number.
    pub id: StackId,
    /// Its frames, innermost first.
    pub frames: Vec<Frame>,
    /// Why it ends before the outermost frame; absent when it is whole.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub truncated: Option<Truncation>,
}

/// Why the outer frames of a stack are missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Truncation {
    /// It has more frames than `--stack-depth` allows.
    Depth,
    /// It is larger than what is copied of it.
    Bytes,
    /// Nothing tells how to go on from its last frame: no unwind information, and no frame pointer.
    Lost,
}

/// A piece of generated code that its maker has named (`/tmp/perf-PID.map`; Linux, tools/perf/Documentation/jit-interface.txt).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedCode {
    /// First address.
    pub start: Address,
    /// Length in bytes.
    pub bytes: u64,
    /// Its name.
    pub name: String,
}
