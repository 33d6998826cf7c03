//! What the bundled allocator tells of itself, as events.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

use crate::stats_page;
use crate::stats_page::COUNTERS;
use crate::stats_page::Counters;
use crate::units::Address;

/// A memory call made by the bundled allocator itself, and why it made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorCall {
    /// Why; `null` for mmap, whose arguments leave no room to say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cause: Option<AllocatorCause>,
    /// Bytes of the request that caused it, if one did and it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_bytes: Option<u64>,
}

/// Why the bundled allocator made a memory call.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AllocatorCause {
    /// The program asked for a block that no free memory could hold.
    Request,
    /// A block was freed, and the policy did not want to keep so much at the top.
    Trim,
    /// malloc_trim(3).
    MallocTrim,
    /// The policy `eager` gave back whole free pages.
    Eager,
    /// The allocator's own records: thread caches, arenas.
    Records,
    /// A large block was freed or resized.
    Release,
}

impl AllocatorCause {
    /// From the number in a call's argument; `None` for what is no memory call.
    #[must_use]
    pub fn from_argument(number: u64) -> Option<Self> {
        use stats_page::Cause;
        Some(match Cause::from_number(number)? {
            Cause::Request => Self::Request,
            Cause::Trim => Self::Trim,
            Cause::MallocTrim => Self::MallocTrim,
            Cause::Eager => Self::Eager,
            Cause::Records => Self::Records,
            Cause::Release => Self::Release,
            Cause::Announce | Cause::HeapError | Cause::Sampled | Cause::SampleFreed => {
                return None;
            }
        })
    }
}

/// The bundled allocator as found in a program, and how it is set up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorSetup {
    /// Where its statistics page is.
    pub page: Address,
    /// Version of breaktrace that the library belongs to.
    pub version: String,
    /// What it does with memory that is no longer needed: `never`, `trim`, `eager`.
    pub policy: String,
    /// Whether blocks have red zones, fill patterns and a quarantine.
    pub guard: bool,
    /// Whether a heap error ends the program.
    pub abort_on_heap_error: bool,
    /// From which size in bytes on a block is mapped by itself; grows as in glibc unless it was set.
    pub mmap_threshold_bytes: u64,
    /// How many bytes the top may hold before the policy `trim` gives back.
    pub trim_threshold_bytes: u64,
    /// How many bytes more than needed are obtained at a time.
    pub top_pad_bytes: u64,
    /// Most arenas.
    pub arena_max: u32,
    /// Mean number of requested bytes between two blocks that are samples; 1 when every block is one, 0 for none.
    #[serde(default)]
    pub sample_interval_bytes: u64,
}

/// Why a program has not the allocator that was asked for, or why its figures cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorAbsence {
    /// Stable name of the reason, for programs.
    pub reason: AbsenceReason,
    /// The reason for people: what, why, and what can be done.
    pub message: String,
}

/// Reasons of an [`AllocatorAbsence`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum AbsenceReason {
    /// The program is linked statically: no library can be preloaded.
    StaticProgram,
    /// It uses another C library than glibc.
    OtherLibc,
    /// It is for another architecture.
    OtherArchitecture,
    /// It is set-user-ID or has capabilities: the dynamic linker ignores `LD_PRELOAD`.
    SecureExecution,
    /// Its environment had no `LD_PRELOAD` with the library.
    EnvironmentCleared,
    /// It was loaded, but the program's own malloc comes first.
    OwnAllocator,
    /// The program ended, or was let go, before the allocator began.
    NotBegun,
    /// The page is of another version of breaktrace.
    OtherVersion,
    /// The page could not be read, or is damaged.
    Unreadable,
    /// It is not known why.
    Unknown,
}

/// The allocator's figures at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct AllocatorReading {
    /// When in the program's life they were read.
    pub moment: ReadingMoment,
    /// Whether no thread of the program was running meanwhile, other than one stopped in a call of the allocator's.
    /// Otherwise the figures belong to slightly different moments.
    pub still: bool,
    /// The figures.
    pub counters: AllocatorFigures,
    /// Size classes of small blocks in use so far; left out at calls.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<ClassReading>,
}

/// When figures were read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum ReadingMoment {
    /// After a memory call of the allocator's: the event before this one of the same thread. The request that
    /// caused it is not counted yet.
    Call,
    /// When a snapshot was taken.
    Snapshot,
    /// Before the program was replaced by exec.
    Exec,
    /// When the process was about to end, or to be let go.
    End,
}

/// One size class of small blocks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ClassReading {
    /// Bytes of a block of this class, its header of 8 bytes included.
    pub block_bytes: u64,
    /// Blocks handed out since the program began.
    pub allocated: u64,
    /// Blocks not freed.
    pub live: u64,
    /// Free blocks in thread caches.
    pub cached: u64,
    /// Free blocks in slabs.
    pub free: u64,
}

impl From<stats_page::ClassFigures> for ClassReading {
    fn from(figures: stats_page::ClassFigures) -> Self {
        Self {
            block_bytes: figures.block_bytes,
            allocated: figures.allocated,
            live: figures.live,
            cached: figures.cached,
            free: figures.free,
        }
    }
}

/// An error in the program's use of its heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapError {
    /// Its number in the process, from 1; `null` when found by looking through the heap from outside.
    pub number: Option<u64>,
    /// What happened.
    pub kind: HeapErrorKind,
    /// Where it was noticed.
    pub found_by: FoundBy,
    /// Address of the block, or the pointer that was given.
    pub address: Address,
    /// Bytes that were asked for when the block was handed out; `null` when not known.
    pub size_bytes: Option<u64>,
    /// First changed byte; `null` when not known, or where nothing was changed.
    pub changed: Option<Address>,
    /// Thread that noticed; `null` when found from outside. Events write it beside a `tid` of their own.
    #[serde(rename = "thread")]
    pub tid: Option<u32>,
}

/// A block that was chosen as a sample.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SampledBlock {
    /// The block.
    pub address: Address,
    /// Bytes asked for.
    pub size_bytes: u64,
    /// Mean number of requested bytes from one sample to the next: a block of `size` bytes is chosen with the probability
    /// `1 − exp(−size / interval)`. 1 when every block is chosen.
    pub interval_bytes: u64,
}

/// Kinds of [`HeapError`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum HeapErrorKind {
    /// A block was freed that is free already.
    DoubleFree,
    /// free or realloc was given what malloc never gave.
    ForeignPointer,
    /// Bytes behind the end of the block were changed.
    WritePastEnd,
    /// Bytes before the start of the block were changed.
    WriteBeforeStart,
    /// A block was changed after it was freed.
    WriteAfterFree,
    /// The allocator's own records were changed, and it cannot be told from which block.
    RecordsChanged,
}

impl From<stats_page::HeapErrorKind> for HeapErrorKind {
    fn from(kind: stats_page::HeapErrorKind) -> Self {
        use stats_page::HeapErrorKind as Kind;
        match kind {
            Kind::DoubleFree => Self::DoubleFree,
            Kind::ForeignPointer => Self::ForeignPointer,
            Kind::WritePastEnd => Self::WritePastEnd,
            Kind::WriteBeforeStart => Self::WriteBeforeStart,
            Kind::WriteAfterFree => Self::WriteAfterFree,
            Kind::RecordsChanged => Self::RecordsChanged,
        }
    }
}

/// Where a heap error was noticed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum FoundBy {
    /// In free, or operator delete.
    Free,
    /// In realloc.
    Realloc,
    /// In malloc or another request for memory.
    Malloc,
    /// When a block left the quarantine.
    Quarantine,
    /// In malloc_usable_size.
    UsableSize,
    /// When the heap was looked through at the end of the program.
    Exit,
}

impl From<stats_page::FoundBy> for FoundBy {
    fn from(place: stats_page::FoundBy) -> Self {
        use stats_page::FoundBy as Place;
        match place {
            Place::Free => Self::Free,
            Place::Realloc => Self::Realloc,
            Place::Malloc => Self::Malloc,
            Place::Quarantine => Self::Quarantine,
            Place::UsableSize => Self::UsableSize,
            Place::Exit => Self::Exit,
        }
    }
}

/// The program's heap as looked through from outside, block by block.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapWalk {
    /// Whether every block was seen; otherwise `stopped` says why not.
    pub complete: bool,
    /// Why the walk ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Blocks not freed.
    pub live_blocks: u64,
    /// Bytes asked for in them.
    pub live_bytes: u64,
    /// The sizes of which most bytes were not freed, most first.
    pub largest: Vec<SizeCount>,
    /// Which of them nothing points to any more; absent unless that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub leaks: Option<Box<LeakSearch>>,
}

/// A search for live blocks to which no pointer leads: from registers, stacks and all memory that was written and is no heap,
/// through blocks that are reached. A block that is called lost is lost, unless the program hides its pointers; one that
/// is called reachable may be lost, where a number looks like its address.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LeakSearch {
    /// Whether all of it was searched; otherwise `stopped` says why not, and nothing is known to be lost.
    pub complete: bool,
    /// Why the search ended early.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stopped: Option<String>,
    /// Lost blocks.
    pub lost_blocks: u64,
    /// Bytes asked for in them.
    pub lost_bytes: u64,
    /// Of the lost blocks, those to which another lost block leads; `null` when not told apart.
    #[serde(default)]
    pub indirectly_lost_blocks: Option<u64>,
    /// Bytes asked for in them; `null` when not told apart.
    #[serde(default)]
    pub indirectly_lost_bytes: Option<u64>,
    /// Blocks that are not called lost, though only chains of pointers lead to them of which one leads to the inside of a
    /// block; `null` when not told apart.
    #[serde(default)]
    pub possibly_lost_blocks: Option<u64>,
    /// Bytes asked for in them; `null` when not told apart.
    #[serde(default)]
    pub possibly_lost_bytes: Option<u64>,
    /// Bytes of memory that were searched for pointers; `null` when not known.
    #[serde(default)]
    pub searched_bytes: Option<u64>,
    /// Bytes that could not be read: a block to which only they lead is called lost; `null` when not known.
    #[serde(default)]
    pub unreadable_bytes: Option<u64>,
    /// The sizes of which most bytes are lost, most first.
    pub largest: Vec<SizeCount>,
    /// Those of the lost blocks that are samples; in event logs only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_samples: Vec<Address>,
}

/// Blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SizeCount {
    /// Bytes asked for in each.
    pub size_bytes: u64,
    /// How many.
    pub blocks: u64,
}

/// [`Counters`], written as an object with the counters' names. The bundled allocator knows all of them; of other
/// allocators some are not known, and `null`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AllocatorFigures {
    counters: Counters,
    /// A bit for each counter that is not known, in the order of [`COUNTERS`].
    unknown: u64,
}

const _: () = assert!(COUNTERS.len() <= 64, "a bit for each");

impl AllocatorFigures {
    /// All of them.
    #[must_use]
    pub fn complete(counters: Counters) -> Self {
        Self {
            counters,
            unknown: 0,
        }
    }

    /// Those that are named; the others are not known. Names that are no counter's are passed over.
    #[must_use]
    pub fn of(known: &[(&str, u64)]) -> Self {
        let mut values = [0; COUNTERS.len()];
        let mut unknown = 0;
        for (index, (value, info)) in values.iter_mut().zip(COUNTERS).enumerate() {
            match known.iter().find(|(name, _)| *name == info.name) {
                Some((_, figure)) => *value = *figure,
                None => unknown |= 1 << index,
            }
        }
        Self {
            counters: Counters::from_values(values),
            unknown,
        }
    }

    /// All counters, if all are known.
    #[must_use]
    pub fn all(&self) -> Option<&Counters> {
        (self.unknown == 0).then_some(&self.counters)
    }

    /// The counters, in the order of [`COUNTERS`]; `None` for those not known.
    pub fn values(&self) -> impl Iterator<Item = Option<u64>> {
        let unknown = self.unknown;
        let known = move |index: usize| unknown >> index & 1 == 0;
        (0..)
            .zip(self.counters.values())
            .map(move |(index, value)| known(index).then_some(value))
    }

    /// The counter with this name; `None` when it is not known, or there is none of that name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.values()
            .zip(COUNTERS)
            .find(|(_, info)| info.name == name)
            .and_then(|(value, _)| value)
    }
}

impl Serialize for AllocatorFigures {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(COUNTERS.iter().map(|info| info.name).zip(self.values()))
    }
}

impl<'de> Deserialize<'de> for AllocatorFigures {
    /// Names that this version does not know are passed over; one that is missing is an error, as 0 would be a lie.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let given = BTreeMap::<Cow<'de, str>, Option<u64>>::deserialize(deserializer)?;
        let mut known = Vec::with_capacity(COUNTERS.len());
        for info in COUNTERS {
            let value = given
                .get(info.name)
                .ok_or_else(|| serde::de::Error::missing_field(info.name))?;
            known.extend(value.map(|value| (info.name, value)));
        }
        Ok(Self::of(&known))
    }
}

#[cfg(test)]
impl schemars::JsonSchema for AllocatorFigures {
    fn schema_name() -> Cow<'static, str> {
        "AllocatorFigures".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let properties: serde_json::Map<_, _> = COUNTERS
            .iter()
            .map(|info| {
                let schema = serde_json::json!({
                    "type": ["integer", "null"],
                    "format": "uint64",
                    "minimum": 0,
                    "description": info.meaning.trim(),
                });
                (info.name.to_owned(), schema)
            })
            .collect();
        let required: Vec<_> = COUNTERS.iter().map(|info| info.name).collect();
        schemars::json_schema!({
            "type": "object",
            "description": "The allocator's figures at one moment, added up over its thread caches and arenas.",
            "properties": properties,
            "required": required,
        })
    }
}
