//! Where CPython keeps what, version by version.
//!
//! Since 3.13 the interpreter says it itself, at the beginning of `_PyRuntime` (`_Py_DebugOffsets`,
//! Include/internal/pycore_runtime.h). For those before, the offsets are `offsetof` of that version's own headers on a
//! 64-bit machine; within a minor version they do not change.

use super::lines::LineTable;
use super::memory::Memory;

/// Where the current frame of a thread is found.
#[derive(Clone, Copy, Debug)]
pub(super) enum Current {
    /// A pointer to it in the thread state.
    Direct(u64),
    /// A pointer in the thread state to a `_PyCFrame`, in which there is a pointer to it.
    Through(u64, u64),
}

/// How a frame says which instruction it is at.
#[derive(Clone, Copy, Debug)]
pub(super) enum At {
    /// By its address.
    Pointer(usize),
    /// By its distance from the first in bytes.
    Bytes(usize),
    /// By its distance from the first in code units, of two bytes each.
    Units(usize),
}

/// Which frames share a call of the function that evaluates them.
#[derive(Clone, Copy, Debug)]
pub(super) enum Entry {
    /// None do.
    Each,
    /// Those up to one that says it is the first (`is_entry`).
    Flag(usize),
    /// Those up to a frame on the C stack that has no code of its own (`owner` is `FRAME_OWNED_BY_CSTACK`).
    Shim(usize),
}

/// `FRAME_OWNED_BY_CSTACK`, Include/internal/pycore_frame.h.
pub(super) const OWNED_BY_C_STACK: u8 = 3;

/// Offsets, in bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Layout {
    /// In `_PyRuntime`: the first interpreter.
    pub(super) interpreters: u64,
    /// In an interpreter: the next.
    pub(super) interpreter_next: u64,
    /// In an interpreter: its first thread.
    pub(super) threads: u64,
    /// In a thread state: the next, what pthread_self(3) and gettid(2) returned, the current frame.
    pub(super) thread_next: u64,
    pub(super) thread_id: u64,
    pub(super) native_thread_id: Option<u64>,
    pub(super) current: Current,
    /// In a frame: all that is read of it, the calling frame, the code object, the instruction.
    pub(super) frame_bytes: usize,
    pub(super) previous: usize,
    pub(super) code: usize,
    pub(super) at: At,
    pub(super) entry: Entry,
    /// In a code object.
    pub(super) file_name: usize,
    pub(super) name: usize,
    pub(super) first_line: usize,
    pub(super) line_table: usize,
    /// Where the instructions are, if within the object.
    pub(super) instructions: usize,
    pub(super) lines: LineTable,
    /// In any object: its type. In a type: its name.
    pub(super) object_type: usize,
    pub(super) type_name: u64,
    /// In a str: its length in characters, its state; where the characters are.
    pub(super) length: usize,
    pub(super) state: usize,
    pub(super) ascii: usize,
    pub(super) compact: usize,
    /// In a bytes.
    pub(super) bytes_length: usize,
    pub(super) bytes: usize,
}

const V3_8: Layout = Layout {
    interpreters: 32,
    interpreter_next: 0,
    threads: 8,
    thread_next: 8,
    thread_id: 176,
    native_thread_id: None,
    current: Current::Direct(24),
    frame_bytes: 108,
    previous: 24,
    code: 32,
    at: At::Bytes(104),
    entry: Entry::Each,
    file_name: 104,
    name: 112,
    first_line: 40,
    line_table: 120,
    instructions: 0,
    lines: LineTable::Lnotab,
    object_type: 8,
    type_name: 24,
    length: 16,
    state: 32,
    ascii: 48,
    compact: 72,
    bytes_length: 16,
    bytes: 32,
};

const V3_10: Layout = Layout {
    frame_bytes: 100,
    at: At::Units(96),
    lines: LineTable::Pairs,
    ..V3_8
};

const V3_11: Layout = Layout {
    interpreters: 40,
    threads: 16,
    thread_id: 152,
    native_thread_id: Some(160),
    current: Current::Through(56, 8),
    frame_bytes: 72,
    previous: 48,
    code: 32,
    at: At::Pointer(56),
    entry: Entry::Flag(68),
    file_name: 112,
    name: 128,
    first_line: 72,
    line_table: 136,
    instructions: 184,
    lines: LineTable::Locations,
    ..V3_8
};

const V3_12: Layout = Layout {
    threads: 72,
    thread_id: 136,
    native_thread_id: Some(144),
    current: Current::Through(56, 0),
    previous: 8,
    code: 0,
    entry: Entry::Shim(70),
    first_line: 68,
    instructions: 192,
    ascii: 40,
    compact: 56,
    ..V3_11
};

/// `_Py_DebugOffsets` of 3.13 as words.
const DEBUG_OFFSETS_WORDS: usize = 73;
const COOKIE: u64 = u64::from_le_bytes(*b"xdebugpy");
/// No structure of CPython is larger.
const LARGEST_OFFSET: u64 = 4 << 20;

/// Why the frames of an interpreter are not visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Problem {
    /// Nothing says which version it is.
    NoVersion,
    /// Its version is not known.
    Unknown(Version),
    /// It is an interpreter of Python, but none of those that are known.
    Other,
    /// Its file does not say where its variables and the function that evaluates frames are.
    Stripped,
    /// Some of its frames could not be read, or are not what they should be.
    Frames,
    /// Its own table of offsets makes no sense.
    Table(Version),
    /// It does not say which thread is which in a way that could be seen on this machine.
    Threads(Version),
    /// Work with its memory failed in a way that must not happen.
    Unforeseen,
}

/// A minor version of CPython.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Version {
    pub(super) major: u8,
    pub(super) minor: u8,
}

impl std::fmt::Display for Version {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}", self.major, self.minor)
    }
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NoVersion => write!(
                f,
                "Python functions are not visible: nothing says which version of CPython this is"
            ),
            Self::Unknown(version) => write!(
                f,
                "Python functions are not visible: this is CPython {version}, known are 3.8 to 3.13"
            ),
            Self::Other => write!(
                f,
                "Python functions are not visible: this interpreter is none of CPython 3.8 to 3.13"
            ),
            Self::Stripped => write!(
                f,
                "Python functions are not visible: the interpreter's file is stripped of its symbols"
            ),
            Self::Frames => write!(
                f,
                "some Python functions are not visible: the interpreter's frames could not be followed to their end"
            ),
            Self::Table(version) => write!(
                f,
                "Python functions are not visible: CPython {version} has a table of offsets that makes no sense"
            ),
            Self::Threads(version) => write!(
                f,
                "Python functions are not visible: CPython {version} does not number its threads as the kernel does"
            ),
            Self::Unforeseen => write!(
                f,
                "Python functions are not visible: reading the interpreter's memory failed"
            ),
        }
    }
}

impl Version {
    /// From `Py_Version` (Include/patchlevel.h, `PY_VERSION_HEX`).
    pub(super) fn from_hex(hex: u64) -> Option<Self> {
        let [.., minor, major] = u32::try_from(hex).ok()?.to_le_bytes();
        (major != 0).then_some(Self { major, minor })
    }

    /// From the name of a program or library, such as `python3.9` or `libpython3.8.so.1.0`.
    pub(super) fn from_file_name(path: &str) -> Option<Self> {
        let name = path.rsplit('/').next()?;
        let (_, rest) = name.split_once("python3.")?;
        let digits = rest.bytes().take_while(u8::is_ascii_digit).count();
        Some(Self {
            major: 3,
            minor: rest.get(..digits)?.parse().ok()?,
        })
    }

    /// Where this version keeps what; `runtime` is the address of `_PyRuntime`.
    pub(super) fn layout(self, memory: &dyn Memory, runtime: u64) -> Result<Layout, Problem> {
        let layout = match (self.major, self.minor) {
            (3, 8 | 9) => V3_8,
            (3, 10) => V3_10,
            (3, 11) => V3_11,
            (3, 12) => V3_12,
            (3, 13) => self.own_offsets(memory, runtime)?,
            _ => return Err(Problem::Unknown(self)),
        };
        if cfg!(not(target_arch = "x86_64")) && layout.native_thread_id.is_none() {
            return Err(Problem::Threads(self));
        }
        Ok(layout)
    }

    /// What `_Py_DebugOffsets` says.
    fn own_offsets(self, memory: &dyn Memory, runtime: u64) -> Result<Layout, Problem> {
        let mut bytes = [0; DEBUG_OFFSETS_WORDS * 8];
        if memory.read(runtime, &mut bytes) < bytes.len() {
            return Err(Problem::Table(self));
        }
        let mut words = [0_u64; DEBUG_OFFSETS_WORDS];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = bytes.try_into().map_or(0, u64::from_le_bytes);
        }
        from_debug_offsets(self, &words).ok_or(Problem::Table(self))
    }
}

fn from_debug_offsets(version: Version, words: &[u64; DEBUG_OFFSETS_WORDS]) -> Option<Layout> {
    let [cookie, hex, _free_threaded, rest @ ..] = words;
    if *cookie != COOKIE
        || Version::from_hex(*hex) != Some(version)
        || rest.iter().any(|offset| *offset > LARGEST_OFFSET)
    {
        return None;
    }
    let at = |word: usize| words.get(word).copied();
    let near = |word: usize| {
        at(word)
            .filter(|offset| *offset < 4096)
            .and_then(|offset| usize::try_from(offset).ok())
    };
    // Words in the order of the structure: runtime_state from 3, interpreter_state from 6, thread_state from 19,
    // interpreter_frame from 28, code_object from 34, pyobject from 44, type_object from 46, tuple, list, dict, float and
    // long from 50, bytes_object from 64, unicode_object from 67.
    let owner = near(33)?;
    let ascii = near(70)?;
    Some(Layout {
        interpreters: at(5)?,
        interpreter_next: at(8)?,
        threads: at(9)?,
        thread_next: at(21)?,
        thread_id: at(24)?,
        native_thread_id: Some(at(25)?),
        current: Current::Direct(at(23)?),
        frame_bytes: [near(29)?, near(30)?, near(31)?, owner].into_iter().max()? + 8,
        previous: near(29)?,
        code: near(30)?,
        at: At::Pointer(near(31)?),
        entry: Entry::Shim(owner),
        file_name: near(35)?,
        name: near(37)?,
        first_line: near(39)?,
        line_table: near(38)?,
        instructions: near(43)?,
        lines: LineTable::Locations,
        object_type: near(45)?,
        type_name: at(47)?,
        length: near(69)?,
        state: near(68)?,
        ascii,
        // PyCompactUnicodeObject: a length and a pointer more.
        compact: ascii + 16,
        bytes_length: near(65)?,
        bytes: near(66)?,
    })
}
