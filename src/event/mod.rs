//! What happened to the memory of the traced processes, one fact at a time.
//!
//! Events carry nothing of how they were learnt: ptrace stops, a recorded log, or any later source give the same
//! ones. What a source could not learn is absent, never zero, and a [`EventKind::Notice`] says why.
//!
//! Flags and advice keep the numbers of Linux's generic ABI and are shown by name; names and meanings are those of
//! mmap(2), mremap(2) and madvise(2).

mod allocator;
mod heap;
mod malloc_call;
mod stack;

pub use allocator::AbsenceReason;
pub use allocator::AllocatorAbsence;
pub use allocator::AllocatorCall;
pub use allocator::AllocatorCause;
pub use allocator::AllocatorFigures;
pub use allocator::AllocatorReading;
pub use allocator::AllocatorSetup;
pub use allocator::ClassReading;
pub use allocator::FoundBy;
pub use allocator::HeapError;
pub use allocator::HeapErrorKind;
pub use allocator::HeapWalk;
pub use allocator::LeakSearch;
pub use allocator::ReadingMoment;
pub use allocator::SampledBlock;
pub use allocator::SizeCount;
pub use heap::AllocatorRole;
pub use heap::Arena;
pub use heap::ArenaFigures;
pub use heap::CheckOutcome;
pub use heap::ChunkClass;
pub use heap::ExaminationCost;
pub use heap::GlibcHeap;
pub use heap::HeapCheck;
pub use heap::HeapExamination;
pub use heap::Mallinfo;
pub use heap::MallocSettings;
pub use heap::MappedChunks;
pub use heap::Pin;
pub use heap::ProcessMemory;
pub use heap::RecognisedAllocator;
pub use heap::ThreadCaches;
pub use malloc_call::ArenaHeap;
pub use malloc_call::MallocCall;
pub use malloc_call::MallocSeen;
pub use malloc_call::SizeCandidate;
pub use stack::FileIdentity;
pub use stack::Frame;
pub use stack::FunctionId;
pub use stack::InterpretedFunction;
pub use stack::Module;
pub use stack::ModuleId;
pub use stack::ModuleKind;
pub use stack::NamedCode;
pub use stack::Stack;
pub use stack::StackId;
pub use stack::StackMode;
pub use stack::Truncation;

use std::collections::BTreeMap;
use std::fmt;

use serde::Deserialize;
use serde::Serialize;

use crate::mapping::Mapping;
use crate::units::Address;
use crate::units::Timestamp;

/// Number of an address space within one recording, counted from 1 in order of appearance.
///
/// Threads share one, and so do `vfork` and `CLONE_VM` children; `fork` makes a copy with a new number, and so does
/// `exec` with a fresh one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpaceId(pub u32);

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// When it was seen.
    #[serde(rename = "t")]
    pub time: Timestamp,
    /// Process (thread group) it happened in.
    pub pid: u32,
    /// Thread it happened in.
    pub tid: u32,
    /// Address space it concerns.
    pub space: SpaceId,
    /// Present if the bundled allocator made this memory call itself, and not the program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub allocator: Option<AllocatorCall>,
    /// The call stack of the thread at that moment, if it was recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stack: Option<StackId>,
    /// How glibc's malloc stood, if it may have made this memory call.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub malloc: Option<Box<MallocCall>>,
    /// What it was.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// What happened.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// A process came under observation.
    ProcessStarted {
        /// How it came to be.
        origin: Origin,
        /// Its parent, if the parent is observed too.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        parent: Option<u32>,
        /// The address space that a forked child copied, or that a vforked or cloned one shares.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        from_space: Option<SpaceId>,
        /// The program it runs.
        program: String,
        /// Its arguments, the program's name first.
        arguments: Vec<String>,
    },
    /// A further thread came under observation.
    ThreadStarted,
    /// A thread that is not the last of its process ended.
    ThreadEnded,
    /// The process replaced its program; `space` is the new address space.
    Exec {
        /// The program it now runs.
        program: String,
        /// Its arguments, the program's name first.
        arguments: Vec<String>,
        /// The address space that it left.
        from_space: SpaceId,
    },
    /// The process is no longer observed.
    ProcessEnded {
        /// Why.
        outcome: Outcome,
    },
    /// brk(2), and so sbrk(3).
    Brk {
        /// The new program break that was asked for; 0 merely asks where it is.
        requested: Address,
        /// The break before the call; absent when it was not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        before: Option<Address>,
        /// The break after it: the raw call returns the old one when it refuses (brk(2), NOTES).
        after: Address,
    },
    /// mmap(2).
    Mmap {
        /// Where the caller would like it; 0 for anywhere.
        hint: Address,
        /// Bytes asked for; the kernel rounds up to pages.
        length: u64,
        /// What the pages may be used for.
        protection: Protection,
        /// How.
        flags: MapFlags,
        /// The file, or −1.
        fd: i32,
        /// Offset into the file, in bytes.
        offset: u64,
        /// Where it was put.
        #[serde(flatten)]
        result: CallResult<Address>,
    },
    /// munmap(2).
    Munmap {
        /// First address.
        address: Address,
        /// Bytes; the kernel rounds up to pages.
        length: u64,
        /// Whether it was done.
        #[serde(flatten)]
        result: CallResult<()>,
    },
    /// mremap(2).
    Mremap {
        /// First address of the old mapping.
        address: Address,
        /// Its length in bytes; 0 asks for a second mapping of shared memory.
        old_length: u64,
        /// The new length in bytes.
        new_length: u64,
        /// How.
        flags: RemapFlags,
        /// Where to move it with `MREMAP_FIXED`.
        new_address: Address,
        /// Where it is now.
        #[serde(flatten)]
        result: CallResult<Address>,
    },
    /// mprotect(2) and pkey_mprotect(2), except those that make pages merely readable: those never change how much
    /// memory a heap has, and the dynamic linker makes one for each library.
    Mprotect {
        /// First address.
        address: Address,
        /// Bytes; the kernel rounds up to pages.
        length: u64,
        /// What the pages may be used for from now on.
        protection: Protection,
        /// Whether it was done.
        #[serde(flatten)]
        result: CallResult<()>,
    },
    /// madvise(2), or process_madvise(2) by whichever process; `space` is the address space it was about.
    Madvise {
        /// First address.
        address: Address,
        /// Bytes; the kernel rounds up to pages.
        length: u64,
        /// What was advised.
        advice: Advice,
        /// Whether it was done; `process_madvise` may do the first part only, then `length` is that part.
        #[serde(flatten)]
        result: CallResult<()>,
    },
    /// shmat(2).
    Shmat {
        /// The segment's identifier.
        shmid: i32,
        /// Its length in bytes, read from the mappings; absent when the call failed or they could not be read.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        length: Option<u64>,
        /// Where it was attached.
        #[serde(flatten)]
        result: CallResult<Address>,
    },
    /// shmdt(2).
    Shmdt {
        /// Where the segment was attached.
        address: Address,
        /// Whether it was done.
        #[serde(flatten)]
        result: CallResult<()>,
    },
    /// remap_file_pages(2): rearranges the pages of a shared file mapping; changes neither its place nor its size.
    RemapFilePages {
        /// First address.
        address: Address,
        /// Bytes.
        length: u64,
        /// Whether it was done.
        #[serde(flatten)]
        result: CallResult<()>,
    },
    /// map_shadow_stack(2): the shadow stack of a new thread.
    MapShadowStack {
        /// Bytes.
        length: u64,
        /// Where it was put.
        #[serde(flatten)]
        result: CallResult<Address>,
    },
    /// A memory call in an ABI that breaktrace does not decode. What it did is seen at the next snapshot.
    NotDecoded {
        /// The ABI as the kernel names it (`AUDIT_ARCH_*`, linux/audit.h).
        abi: String,
        /// The call's number in that ABI.
        number: u64,
    },
    /// The state of the address space as `/proc` showed it.
    Snapshot(Box<Snapshot>),
    /// The bundled allocator has begun in this address space.
    AllocatorFound(AllocatorSetup),
    /// The bundled allocator was asked for, or a page of it was found, and there will be no figures.
    AllocatorAbsent(AllocatorAbsence),
    /// The bundled allocator's figures.
    AllocatorRead(Box<AllocatorReading>),
    /// The bundled allocator found an error in the program's use of its heap.
    HeapError(HeapError),
    /// The bundled allocator's heap was looked through from outside.
    HeapWalked(HeapWalk),
    /// glibc's malloc was found, or its settings have changed.
    MallocSeen(MallocSeen),
    /// The heap of the program's own malloc was looked through from outside.
    HeapExamined(Box<HeapExamination>),
    /// The bundled allocator handed out a block that was chosen as a sample; the event's stack tells to whom.
    BlockSampled(SampledBlock),
    /// A block that was chosen as a sample was freed, or resized; the event's stack tells by whom.
    SampleFreed {
        /// The block.
        address: Address,
    },
    /// A module that later stacks name.
    ModuleSeen(Module),
    /// A function of an interpreter that later stacks name.
    FunctionSeen(InterpretedFunction),
    /// A stack that later events name.
    StackSeen(Stack),
    /// Names of generated code that earlier stacks have frames in.
    CodeNamed {
        /// The module.
        module: ModuleId,
        /// Its pieces; where some overlap, the later ones hold.
        names: Vec<NamedCode>,
    },
    /// Something the reader of the recording should know.
    Notice(Notice),
    /// The recording is complete: written last.
    RecordingEnded {
        /// Why it ended.
        reason: EndReason,
    },
}

/// How a process came under observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Origin {
    /// breaktrace started it.
    Launched,
    /// It was running already.
    Attached,
    /// fork(2): it has a copy of its parent's address space.
    Forked,
    /// vfork(2), posix_spawn(3): it borrows its parent's address space until it execs or exits.
    Vforked,
    /// clone(2) with `CLONE_VM` but not as a thread: it shares its parent's address space.
    Cloned,
}

/// How the observation of a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Outcome {
    /// It exited with this code.
    Exited(u8),
    /// It was killed by a signal.
    Killed {
        /// The signal's number.
        signal: i32,
        /// Whether it left a core dump.
        core_dumped: bool,
    },
    /// breaktrace let go of it; it runs on.
    Detached,
    /// It ended, but not under our eyes.
    Vanished,
}

/// Why a recording ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum EndReason {
    /// The last process ended.
    Finished,
    /// A signal asked breaktrace to stop.
    Interrupted,
    /// `--duration` was over.
    TimeLimit,
    /// breaktrace could not go on; a notice says why.
    Failed,
}

/// What a call returned.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CallResult<T> {
    /// Its value.
    #[serde(rename = "result")]
    Done(T),
    /// The error.
    #[serde(rename = "error")]
    Failed(Errno),
}

impl<T> CallResult<T> {
    /// The value, if the call succeeded.
    pub fn done(self) -> Option<T> {
        match self {
            Self::Done(value) => Some(value),
            Self::Failed(_) => None,
        }
    }

    /// Whether the call succeeded.
    pub fn is_done(&self) -> bool {
        matches!(self, Self::Done(_))
    }
}

/// An error number, shown by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Errno(pub i32);

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match nix::errno::Errno::from_raw(self.0) {
            nix::errno::Errno::UnknownErrno => write!(f, "errno {}", self.0),
            name => write!(f, "{name:?}"),
        }
    }
}

impl Serialize for Errno {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Errno {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        if let Some(number) = name.strip_prefix("errno ").and_then(|n| n.parse().ok()) {
            return Ok(Self(number));
        }
        (1..4096)
            .map(Self)
            .find(|errno| errno.to_string() == name)
            .ok_or_else(|| serde::de::Error::custom(format!("`{name}` is not an error's name")))
    }
}

/// Declares a set of flags that is shown, written and read by the flags' names.
macro_rules! named_flags {
    ($(#[$doc:meta])* $type:ident { $($(#[$flag_doc:meta])* $name:ident = $bits:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
        pub struct $type(pub u32);

        impl $type {
            $($(#[$flag_doc])* pub const $name: Self = Self($bits);)*
            const NAMES: &'static [(&'static str, u32)] = &[$((stringify!($name), $bits)),*];

            /// Whether all bits of `flags` are set.
            #[must_use]
            pub fn contains(self, flags: Self) -> bool {
                self.0 & flags.0 == flags.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write_flags(f, self.0, Self::NAMES)
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
                read_flags(&text, Self::NAMES).map(Self).map_err(serde::de::Error::custom)
            }
        }
    };
}

fn write_flags(f: &mut fmt::Formatter<'_>, bits: u32, names: &[(&str, u32)]) -> fmt::Result {
    let mut rest = bits;
    let mut separator = "";
    for (name, flag) in names {
        if rest & flag == *flag {
            write!(f, "{separator}{name}")?;
            rest &= !flag;
            separator = "|";
        }
    }
    if rest != 0 || separator.is_empty() {
        write!(f, "{separator}{rest:#x}")?;
    }
    Ok(())
}

fn read_flags(text: &str, names: &[(&str, u32)]) -> Result<u32, String> {
    let mut bits = 0;
    for word in text.split('|') {
        bits |= match (
            names.iter().find(|(name, _)| *name == word),
            word.strip_prefix("0x"),
        ) {
            (Some((_, flag)), _) => *flag,
            (None, Some(digits)) => {
                u32::from_str_radix(digits, 16).map_err(|_| format!("`{word}` is not a number"))?
            }
            (None, None) => return Err(format!("`{word}` is not a known flag")),
        };
    }
    Ok(bits)
}

named_flags! {
    /// `PROT_*` of mmap(2) and mprotect(2); `0x0` is `PROT_NONE`.
    Protection {
        /// Pages may be read.
        READ = 1;
        /// Pages may be written.
        WRITE = 2;
        /// Pages may be executed.
        EXEC = 4;
        /// Apply down to the start of a stack-like mapping.
        GROWSDOWN = 0x0100_0000;
        /// Apply up to the end of a stack-like mapping.
        GROWSUP = 0x0200_0000;
    }
}

named_flags! {
    /// `MAP_*` of mmap(2), as on x86-64 and aarch64.
    MapFlags {
        /// Shared, and unknown flags are refused. Two bits: before `SHARED` and `PRIVATE` in this list.
        SHARED_VALIDATE = 3;
        /// Writes are seen by others.
        SHARED = 1;
        /// Writes stay with this process.
        PRIVATE = 2;
        /// Exactly at the address, replacing what is there.
        FIXED = 0x10;
        /// No file behind it.
        ANONYMOUS = 0x20;
        /// Below 2 GiB (x86-64 only).
        MAP_32BIT = 0x40;
        /// Grows down like a stack.
        GROWSDOWN = 0x100;
        /// Historic.
        DENYWRITE = 0x800;
        /// Historic.
        EXECUTABLE = 0x1000;
        /// Kept in memory.
        LOCKED = 0x2000;
        /// No swap space is set aside.
        NORESERVE = 0x4000;
        /// Filled at once.
        POPULATE = 0x8000;
        /// Without waiting for the file.
        NONBLOCK = 0x10000;
        /// To be used as a stack.
        STACK = 0x20000;
        /// In huge pages.
        HUGETLB = 0x40000;
        /// Writes reach the file at once.
        SYNC = 0x80000;
        /// Exactly at the address, or not at all.
        FIXED_NOREPLACE = 0x0010_0000;
    }
}

impl MapFlags {
    /// Private memory without a file: what heaps are made of.
    #[must_use]
    pub fn is_private_anonymous(self) -> bool {
        self.contains(Self::ANONYMOUS) && !self.contains(Self::SHARED)
    }
}

named_flags! {
    /// `MREMAP_*` of mremap(2).
    RemapFlags {
        /// The mapping may move.
        MAYMOVE = 1;
        /// It moves exactly to the new address.
        FIXED = 2;
        /// The old range stays mapped, empty.
        DONTUNMAP = 4;
    }
}

/// The advice of madvise(2), shown by name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Advice(pub i32);

impl Advice {
    /// The contents may go at once: pages are given back to the kernel.
    pub const DONTNEED: Self = Self(4);
    /// The contents may go when memory is short: pages stay resident until then.
    pub const FREE: Self = Self(8);
    /// As `DONTNEED`, also for locked pages (Linux 5.18).
    pub const DONTNEED_LOCKED: Self = Self(24);
    /// Pages and their backing store may go.
    pub const REMOVE: Self = Self(9);

    const NAMES: &'static [(i32, &'static str)] = &[
        (0, "NORMAL"),
        (1, "RANDOM"),
        (2, "SEQUENTIAL"),
        (3, "WILLNEED"),
        (4, "DONTNEED"),
        (8, "FREE"),
        (9, "REMOVE"),
        (10, "DONTFORK"),
        (11, "DOFORK"),
        (12, "MERGEABLE"),
        (13, "UNMERGEABLE"),
        (14, "HUGEPAGE"),
        (15, "NOHUGEPAGE"),
        (16, "DONTDUMP"),
        (17, "DODUMP"),
        (18, "WIPEONFORK"),
        (19, "KEEPONFORK"),
        (20, "COLD"),
        (21, "PAGEOUT"),
        (22, "POPULATE_READ"),
        (23, "POPULATE_WRITE"),
        (24, "DONTNEED_LOCKED"),
        (25, "COLLAPSE"),
        (100, "HWPOISON"),
        (101, "SOFT_OFFLINE"),
        (102, "GUARD_INSTALL"),
        (103, "GUARD_REMOVE"),
    ];
}

impl fmt::Display for Advice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match Self::NAMES.iter().find(|(number, _)| *number == self.0) {
            Some((_, name)) => f.write_str(name),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Advice {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Advice {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::NAMES
            .iter()
            .find(|(_, name)| *name == text)
            .map(|(number, _)| *number)
            .or_else(|| text.parse().ok())
            .map(Self)
            .ok_or_else(|| {
                serde::de::Error::custom(format!("`{text}` is not an advice of madvise(2)"))
            })
    }
}

/// The state of an address space as `/proc` showed it at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Why it was taken.
    pub reason: SnapshotReason,
    /// Where the heap begins (`start_brk` of `/proc/<pid>/stat`). It never moves, so it is read with the first snapshot
    /// of an address space only; also absent when it could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heap_start: Option<Address>,
    /// How much is in memory; absent when it could not be read, and before the program has begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryFigures>,
    /// How much of the heap is in memory; absent when it could not be read, when there is no heap, and where counting
    /// would keep the program waiting.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heap_pages: Option<PageFigures>,
    /// Threads of this address space that were inside a memory call meanwhile: with any, the mappings may be ahead
    /// of the events, and the snapshot cannot serve as a check.
    pub calls_under_way: u32,
    /// All mappings, in order.
    pub mappings: Vec<Mapping>,
}

/// Why a snapshot was taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum SnapshotReason {
    /// The program was about to begin.
    Start,
    /// breaktrace joined a running process.
    Attach,
    /// It was asked for.
    Request,
    /// `--every` was over once more.
    Interval,
    /// `--verify`: after a call.
    Verify,
    /// The events alone no longer tell the state: two threads moved the break at once, so that only the kernel knows
    /// in which order, or a call could not be decoded.
    Resync,
    /// The process was about to end or to be let go.
    End,
}

/// What `/proc/<pid>/status` says of memory, in bytes (proc(5)). Linux before 6.16 adds these up with an error of some
/// pages per processor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct MemoryFigures {
    /// In memory now (`VmRSS`).
    pub resident_bytes: u64,
    /// Highest `resident_bytes` since the program began (`VmHWM`).
    pub resident_peak_bytes: u64,
    /// Of `resident_bytes`: private memory without a file (`RssAnon`).
    pub resident_anonymous_bytes: u64,
    /// Swapped out (`VmSwap`).
    pub swapped_bytes: u64,
    /// Address space in use (`VmSize`).
    pub virtual_bytes: u64,
    /// Highest `virtual_bytes` since the program began (`VmPeak`).
    pub virtual_peak_bytes: u64,
}

/// Pages of a range, as `/proc/<pid>/pagemap` counts them, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PageFigures {
    /// In memory.
    pub resident_bytes: u64,
    /// Swapped out.
    pub swapped_bytes: u64,
}

/// Something the reader of a recording should know: a limit of what could be seen, or how it was seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Notice {
    /// Stable name of this kind of notice, for programs.
    pub code: NoticeCode,
    /// What there is to know, for people: what, why, and what can be done.
    pub message: String,
}

/// Kinds of [`Notice`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum NoticeCode {
    /// No seccomp filter could be set: every system call stops.
    SeccompUnavailable,
    /// The filter needed `no_new_privs`: set-uid programs run without their extra rights.
    NoNewPrivs,
    /// Address space randomization could not be turned off.
    AslrStillOn,
    /// The idle-wake latency was held down while stops came fast.
    LatencyHeld,
    /// A thread could not be attached to.
    ThreadNotTraced,
    /// Memory calls were made in an ABI that is not decoded.
    NotDecoded,
    /// A process could not be read or followed.
    ProcessNotSeen,
    /// The program break at attach is known to a page only.
    BreakRounded,
    /// The program has ended, and processes that it left behind still run.
    StillRunning,
    /// The recording itself is incomplete.
    Incomplete,
    /// Call stacks, or names in them, are missing or incomplete.
    StacksIncomplete,
    /// There were more notices than are kept.
    NoticesLeftOut,
}

/// What was recorded, how, and on what machine: the first line of an event log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Recording {
    /// How the processes came under observation.
    pub mode: Mode,
    /// The program and its arguments (`run`), empty otherwise.
    pub command: Vec<String>,
    /// The processes asked for (`attach`), or the one launched.
    pub pids: Vec<u32>,
    /// When it began: seconds since 1970-01-01 UTC, with the clock of this machine.
    pub started_at_unix: u64,
    /// The machine.
    pub machine: Machine,
    /// How events were obtained.
    pub capture: Capture,
    /// Which malloc library was preloaded into the program.
    #[serde(default)]
    pub allocator: AllocatorChoice,
    /// Variables of the launched program's environment that change how it uses memory: those of mallocs and of runtimes, and
    /// the locale. Empty for processes that were attached to.
    #[serde(default)]
    pub environment: BTreeMap<String, String>,
    /// Processors that the program might run on.
    #[serde(default)]
    pub processors: Option<u32>,
}

/// Which malloc library was preloaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AllocatorChoice {
    /// None: the program uses its own, as a rule the C library's.
    #[default]
    System,
    /// The one that comes with breaktrace.
    Bundled,
    /// The library in this file.
    Library(String),
}

/// How processes came under observation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Mode {
    /// `breaktrace run`.
    Run,
    /// `breaktrace attach`.
    Attach,
}

/// The machine of a recording.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Machine {
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// Kernel release, such as `6.18.44`.
    pub kernel: String,
    /// Bytes in a page.
    pub page_size: u64,
}

/// How events were obtained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Capture {
    /// Which calls stop the program.
    pub stops: Stops,
    /// Whether children are recorded too.
    pub follow: bool,
    /// Whether the kernel was asked to leave out address space randomization.
    pub no_aslr: bool,
    /// Whether the model was checked against `/proc` after every event.
    pub verify: bool,
    /// Of which calls the stacks are recorded.
    #[serde(default)]
    pub stacks: StackMode,
    /// Most frames recorded of a stack.
    #[serde(default)]
    pub stack_depth: u32,
    /// Mean number of requested bytes between two samples of allocations; `null` when none are taken.
    #[serde(default)]
    pub sample_interval_bytes: Option<u64>,
    /// Whether the bundled allocator's blocks were to be searched for lost ones at the end.
    #[serde(default)]
    pub leaks: bool,
}

/// Which calls stop a traced program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Stops {
    /// Only the memory calls: a seccomp filter lets all others pass.
    MemoryCalls,
    /// Every system call.
    EveryCall,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn round_trip(kind: EventKind) -> String {
        let event = Event {
            malloc: None,
            time: Timestamp(1_500),
            pid: 40,
            tid: 41,
            space: SpaceId(1),
            allocator: None,
            stack: None,
            kind,
        };
        let line = serde_json::to_string(&event).unwrap();
        assert_eq!(
            serde_json::from_str::<Event>(&line).unwrap(),
            event,
            "{line}"
        );
        line
    }

    #[test]
    fn a_brk_event_reads_as_one_flat_object() {
        let line = round_trip(EventKind::Brk {
            requested: Address(0x21000),
            before: Some(Address(0x1000)),
            after: Address(0x21000),
        });
        assert_eq!(
            line,
            r#"{"t":1500,"pid":40,"tid":41,"space":1,"event":"brk","requested":"0x21000","before":"0x1000","after":"0x21000"}"#
        );
    }

    #[test]
    fn results_and_errors_stand_beside_the_arguments() {
        let mmap = |result| EventKind::Mmap {
            hint: Address(0),
            length: 100,
            protection: Protection(3),
            flags: MapFlags(0x22),
            fd: -1,
            offset: 0,
            result,
        };
        let line = round_trip(mmap(CallResult::Done(Address(0x7f00_0000_0000))));
        assert!(
            line.contains(r#""protection":"READ|WRITE","flags":"PRIVATE|ANONYMOUS""#),
            "{line}"
        );
        assert!(line.ends_with(r#""result":"0x7f0000000000"}"#), "{line}");
        let line = round_trip(mmap(CallResult::Failed(Errno(12))));
        assert!(line.ends_with(r#""error":"ENOMEM"}"#), "{line}");
        round_trip(EventKind::Munmap {
            address: Address(1),
            length: 2,
            result: CallResult::Done(()),
        });
    }

    #[test]
    fn unknown_flags_errors_and_advice_survive() {
        assert_eq!(
            MapFlags(0x8000_0022).to_string(),
            "PRIVATE|ANONYMOUS|0x80000000"
        );
        assert_eq!(Protection(0).to_string(), "0x0");
        assert_eq!(Errno(4000).to_string(), "errno 4000");
        round_trip(EventKind::Madvise {
            address: Address(0),
            length: 0,
            advice: Advice(77),
            result: CallResult::Failed(Errno(4000)),
        });
    }

    #[test]
    fn the_other_kinds_survive_a_round_trip() {
        round_trip(EventKind::ThreadStarted);
        round_trip(EventKind::ProcessEnded {
            outcome: Outcome::Killed {
                signal: 64,
                core_dumped: true,
            },
        });
        round_trip(EventKind::ProcessEnded {
            outcome: Outcome::Exited(3),
        });
        round_trip(EventKind::Notice(Notice {
            code: NoticeCode::SeccompUnavailable,
            message: "every call stops".into(),
        }));
        round_trip(EventKind::Snapshot(Box::new(Snapshot {
            reason: SnapshotReason::End,
            heap_start: Some(Address(0x1000)),
            memory: None,
            heap_pages: None,
            calls_under_way: 0,
            mappings: crate::mapping::parse(b"1000-2000 rw-p 00000000 00:00 0 [heap]"),
        })));
    }
}
