//! Leak, or kept by malloc? What the figures of a heap say, by rules that are few and in order.

use serde::Deserialize;
use serde::Serialize;

use super::sums::HeapSums;
use crate::event::AllocatorRole;
use crate::event::CheckOutcome;
use crate::event::HeapCheck;
use crate::event::HeapExamination;
use crate::event::MallocSettings;
use crate::event::ProcessMemory;
use crate::event::RecognisedAllocator;
use crate::units::ByteSize;
use crate::units::Exact;

/// A heap of less than this part of the process's memory is not where the memory is.
const ELSEWHERE: u64 = 4;
/// Free memory of less than this part of the heap is not the story.
const WORTH_A_WORD: u64 = 4;
/// To trim is worth it from this part of the free memory on.
const WORTH_A_TRIM: u64 = 3;
/// What was not found is overlooked up to this part of what arenas obtained: a program that runs moves that much.
const OVERLOOKED: u64 = 50;
/// glibc's trim threshold before it has learnt (malloc.c, `DEFAULT_TRIM_THRESHOLD`).
const DEFAULT_TRIM_THRESHOLD: u64 = 128 << 10;

/// What follows from a look at a heap.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapVerdict {
    /// In a word.
    pub kind: HeapVerdictKind,
    /// In a sentence.
    pub summary: String,
    /// What else speaks for it, or has to be known beside it.
    pub evidence: Vec<String>,
    /// What to try, the most promising first.
    pub advice: Vec<String>,
    /// How far the figures can be relied on.
    pub confidence: HeapConfidence,
    /// The checks that do not plainly hold, each with its figures; empty when all do.
    pub doubts: Vec<String>,
}

/// Where the memory of a heap is. The first that holds, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum HeapVerdictKind {
    /// Another allocator is in charge, or nobody has called malloc: what an allocator keeps cannot be told from outside.
    NotVisible,
    /// A check fails, or more than a fiftieth of what the arenas obtained was not found: figures may be wrong, so nothing
    /// is concluded from them.
    Unclear,
    /// Less than a quarter of what the process has in memory is heap.
    Elsewhere,
    /// What is in memory is not known, and at least a quarter of what malloc obtained is free.
    Kept,
    /// Less than a quarter of the heap's memory is free: the program has not freed it. If that grows it may be a leak.
    InUse,
    /// At least a quarter is free, and at least a third of that `malloc_trim(0)` would return.
    Retained,
    /// At least a quarter is free, and more of that lies in pages that also hold a chunk in use, so that nothing returns it,
    /// than elsewhere.
    Fragmented,
    /// At least a quarter is free, mostly in whole pages that `malloc_trim` does not reach: tops of thread arenas, thread
    /// caches.
    OutOfReach,
}

/// How far figures can be relied on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum HeapConfidence {
    /// All that was checked holds.
    AllHold,
    /// What does not hold exactly moved while it was looked at, as the program ran.
    Moving,
    /// Something could not be checked; the rest holds.
    Partly,
    /// A check fails that nothing explains.
    Doubtful,
    /// There was nothing to check.
    Nothing,
}

/// What a verdict is made from.
struct Case<'a> {
    examination: &'a HeapExamination,
    memory: Option<&'a ProcessMemory>,
    sums: HeapSums,
    /// As a command line has it.
    pid: String,
    /// Whether looks were compared already.
    is_compared: bool,
}

impl HeapVerdict {
    /// Judges an examination. `memory` says where the process has its memory, if that is known and the examination does not
    /// say it itself; `pid` makes advice ready to be typed.
    #[must_use]
    pub fn of(
        examination: &HeapExamination,
        memory: Option<&ProcessMemory>,
        pid: Option<u32>,
    ) -> Self {
        Self::judge(examination, memory, pid, false)
    }

    /// The same; `is_compared` says whether this look was compared with earlier ones already.
    pub(super) fn judge(
        examination: &HeapExamination,
        memory: Option<&ProcessMemory>,
        pid: Option<u32>,
        is_compared: bool,
    ) -> Self {
        let case = Case {
            examination,
            memory: memory.or(examination.memory.as_ref()),
            sums: HeapSums::of(examination),
            pid: pid.map_or_else(|| "PID".to_owned(), |pid| pid.to_string()),
            is_compared,
        };
        let kind = case.kind();
        Self {
            kind,
            summary: case.summary(kind),
            evidence: case.evidence(kind),
            advice: case.advice(kind),
            confidence: confidence(examination),
            doubts: checks(examination)
                .filter(|check| check.outcome != CheckOutcome::Holds)
                .map(doubt)
                .chain(examination.problems.iter().cloned())
                .collect(),
        }
    }
}

fn checks(examination: &HeapExamination) -> impl Iterator<Item = &HeapCheck> {
    examination.heaps.iter().flat_map(|heap| &heap.checks)
}

fn confidence(examination: &HeapExamination) -> HeapConfidence {
    let has = |outcome| checks(examination).any(|check| check.outcome == outcome);
    if has(CheckOutcome::Fails) {
        HeapConfidence::Doubtful
    } else if has(CheckOutcome::Moving) {
        HeapConfidence::Moving
    } else if has(CheckOutcome::Unknown) || !examination.problems.is_empty() {
        HeapConfidence::Partly
    } else if has(CheckOutcome::Holds) {
        HeapConfidence::AllHold
    } else {
        HeapConfidence::Nothing
    }
}

fn doubt(check: &HeapCheck) -> String {
    let how = match check.outcome {
        CheckOutcome::Holds => "holds",
        CheckOutcome::Fails => "fails",
        CheckOutcome::Moving => "moved meanwhile",
        CheckOutcome::Unknown => "could not be checked",
    };
    match &check.detail {
        Some(detail) => format!("{how}: {} ({detail})", check.what),
        None => format!("{how}: {}", check.what),
    }
}

/// Whether `part` is less than the `divisor`th part of `whole`.
fn is_less(part: u64, divisor: u64, whole: u64) -> bool {
    part < whole / divisor
}

impl Case<'_> {
    fn kind(&self) -> HeapVerdictKind {
        let sums = &self.sums;
        if self.other_in_charge().is_some() || sums.obtained_bytes == 0 {
            return HeapVerdictKind::NotVisible;
        }
        let arenas = sums.obtained_bytes.saturating_sub(sums.mapped_bytes);
        let fails = checks(self.examination).any(|check| check.outcome == CheckOutcome::Fails);
        if fails || sums.not_found_bytes > arenas / OVERLOOKED {
            return HeapVerdictKind::Unclear;
        }
        let (Some(resident), Some(trimmable), Some(fragmented), Some(out_of_reach)) = (
            sums.resident_bytes,
            sums.trimmable_bytes,
            sums.fragmented_bytes,
            sums.out_of_reach_bytes,
        ) else {
            return if is_less(sums.free_bytes(), WORTH_A_WORD, sums.obtained_bytes) {
                HeapVerdictKind::InUse
            } else {
                HeapVerdictKind::Kept
            };
        };
        let is_elsewhere =
            |memory: &ProcessMemory| is_less(resident, ELSEWHERE, memory.resident_bytes);
        if self.memory.is_some_and(is_elsewhere) {
            return HeapVerdictKind::Elsewhere;
        }
        // Nothing tells what of a cached chunk is in memory; it was in use once, so mostly all of it.
        let beyond = out_of_reach.saturating_add(sums.cached_bytes);
        let free = trimmable.saturating_add(fragmented).saturating_add(beyond);
        if is_less(free, WORTH_A_WORD, resident) {
            HeapVerdictKind::InUse
        } else if !is_less(trimmable, WORTH_A_TRIM, free) {
            HeapVerdictKind::Retained
        } else if fragmented >= beyond {
            HeapVerdictKind::Fragmented
        } else {
            HeapVerdictKind::OutOfReach
        }
    }

    /// The allocator that `malloc` belongs to, if it is not glibc's.
    fn other_in_charge(&self) -> Option<&RecognisedAllocator> {
        self.examination.allocators.iter().find(|allocator| {
            allocator.role == AllocatorRole::InCharge && !allocator.name.starts_with("glibc")
        })
    }

    fn summary(&self, kind: HeapVerdictKind) -> String {
        let sums = &self.sums;
        let size = |bytes: Option<u64>| {
            bytes.map_or_else(|| "unknown".to_owned(), |bytes| ByteSize(bytes).to_string())
        };
        let resident = size(sums.resident_bytes);
        let trimmable = size(sums.trimmable_bytes);
        match kind {
            HeapVerdictKind::NotVisible => match self.other_in_charge() {
                Some(other) => format!(
                    "not glibc's heap: {} is in charge, and what it keeps is not visible from outside",
                    name(other)
                ),
                None => "nobody has called glibc's malloc here: the memory is not its".to_owned(),
            },
            HeapVerdictKind::Unclear => format!(
                "no verdict, as the heap does not add up: {}",
                self.what_is_wrong()
            ),
            HeapVerdictKind::Elsewhere => format!(
                "not the heap: {resident} of the process's {} in memory are malloc's",
                size(self.memory.map(|memory| memory.resident_bytes))
            ),
            HeapVerdictKind::Kept => format!(
                "kept by malloc: {} of {} are free; what of that is in memory is not known",
                ByteSize(sums.free_bytes()),
                ByteSize(sums.obtained_bytes)
            ),
            HeapVerdictKind::InUse => match sums.resident_in_use_bytes {
                Some(in_use) => format!(
                    "in use: {} of the heap's {resident} in memory have not been freed",
                    // Cached chunks are in memory and not in use.
                    ByteSize(in_use.saturating_sub(sums.cached_bytes))
                ),
                None => format!(
                    "in use: {} of {} have not been freed",
                    ByteSize(sums.in_use_bytes),
                    ByteSize(sums.obtained_bytes)
                ),
            },
            HeapVerdictKind::Retained => {
                let fragmented = sums.fragmented_bytes.unwrap_or(0);
                let rest = if fragmented > sums.trimmable_bytes.unwrap_or(0) {
                    format!("; {} more are fragmented", ByteSize(fragmented))
                } else {
                    String::new()
                };
                format!(
                    "kept by malloc: malloc_trim(0) would return {trimmable} of the heap's {resident} in memory{rest}"
                )
            }
            HeapVerdictKind::Fragmented => format!(
                "fragmented: {} of the heap's {resident} in memory are free between chunks in use; malloc_trim(0) would \
                 return {trimmable}",
                size(sums.fragmented_bytes)
            ),
            HeapVerdictKind::OutOfReach => format!(
                "kept by malloc: {} of the heap's {resident} in memory are free where malloc_trim(0) does not reach; it would \
                 return {trimmable}",
                size(
                    sums.out_of_reach_bytes
                        .map(|bytes| bytes.saturating_add(sums.cached_bytes))
                )
            ),
        }
    }

    fn what_is_wrong(&self) -> String {
        let failing = checks(self.examination).find(|check| check.outcome == CheckOutcome::Fails);
        match failing {
            Some(check) => match &check.detail {
                Some(detail) => detail.clone(),
                None => format!("this does not hold: {}", check.what),
            },
            None => format!(
                "{} of {} that the arenas obtained were not found",
                ByteSize(self.sums.not_found_bytes),
                ByteSize(
                    self.sums
                        .obtained_bytes
                        .saturating_sub(self.sums.mapped_bytes)
                )
            ),
        }
    }

    fn evidence(&self, kind: HeapVerdictKind) -> Vec<String> {
        let mut evidence = Vec::new();
        if !matches!(
            kind,
            HeapVerdictKind::NotVisible | HeapVerdictKind::Elsewhere
        ) {
            evidence.extend(self.thread_tops());
        }
        evidence.extend(self.place_in_process(kind));
        evidence.extend(self.cached());
        evidence.extend(self.mapped());
        evidence.extend(self.swapped());
        evidence.extend(self.others());
        evidence
    }

    /// Free memory at the tops of thread arenas, which `malloc_trim` passes over.
    fn thread_tops(&self) -> Option<String> {
        let arenas = self.examination.heaps.iter().flat_map(|heap| &heap.arenas);
        let mut count = 0_u64;
        let mut bytes = 0_u64;
        for arena in arenas.filter(|arena| !arena.is_main) {
            let figures = &arena.figures;
            let beyond = figures
                .free_resident_bytes?
                .saturating_sub(figures.trimmable_bytes?)
                .saturating_sub(figures.fragmented_bytes?);
            count += u64::from(beyond > 0);
            bytes = bytes.saturating_add(beyond);
        }
        let arenas = match count {
            0 => return None,
            1 => "a thread arena".to_owned(),
            _ => format!("{count} thread arenas"),
        };
        Some(format!(
            "{} are free at the top of {arenas}, or join it as soon as malloc tidies up: malloc_trim gives back no \
             such tops",
            ByteSize(bytes)
        ))
    }

    /// What part of the process's memory the heap is, and where the rest is.
    fn place_in_process(&self, kind: HeapVerdictKind) -> Option<String> {
        let memory = self.memory?;
        let heap = self.sums.resident_bytes.unwrap_or(0);
        let other = memory.resident_anonymous_bytes.saturating_sub(heap);
        let rest: Vec<String> = [
            (
                other,
                "anonymous memory outside of it (stacks, other allocators, mmap)",
            ),
            (memory.resident_file_bytes, "pages of files"),
            (memory.resident_shared_bytes, "shared memory"),
        ]
        .into_iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, what)| format!("{} {what}", ByteSize(bytes)))
        .collect();
        let is_most = heap > memory.resident_bytes / 2;
        let resident = ByteSize(memory.resident_bytes);
        match kind {
            HeapVerdictKind::NotVisible => Some(format!(
                "the process has {resident} in memory, of which {} are anonymous",
                ByteSize(memory.resident_anonymous_bytes)
            )),
            HeapVerdictKind::Elsewhere => Some(format!("the rest is {}", rest.join(", "))),
            _ if is_most || rest.is_empty() => None,
            _ => Some(format!(
                "the heap is {} of {resident} that the process has in memory; the rest is {}",
                ByteSize(heap),
                rest.join(", ")
            )),
        }
    }

    fn cached(&self) -> Option<String> {
        let sums = &self.sums;
        let is_much = !is_less(sums.cached_bytes, 20, sums.resident_bytes?);
        (is_much && sums.cached_bytes > 0).then(|| {
            format!(
                "{} are freed chunks in thread caches, which malloc_trim leaves alone",
                ByteSize(sums.cached_bytes)
            )
        })
    }

    fn mapped(&self) -> Option<String> {
        let sums = &self.sums;
        (sums.mapped_bytes > 0 && !is_less(sums.mapped_bytes, 4, sums.in_use_bytes)).then(|| {
            format!(
                "of what is in use, {} are {} mapped alone: free returns {} at once",
                ByteSize(sums.mapped_bytes),
                counted(sums.mapped_chunks, "chunk", "chunks"),
                if sums.mapped_chunks == 1 {
                    "it"
                } else {
                    "those"
                },
            )
        })
    }

    fn swapped(&self) -> Option<String> {
        let bytes = self.sums.swapped_bytes.filter(|bytes| *bytes > 0)?;
        Some(format!(
            "{} of the heap are swapped out; chunks there were not looked at",
            ByteSize(bytes)
        ))
    }

    /// What other allocators there are.
    fn others(&self) -> Vec<String> {
        self.examination
            .allocators
            .iter()
            .filter(|allocator| !allocator.name.starts_with("glibc"))
            .filter_map(|allocator| {
                let name = name(allocator);
                let resident = allocator
                    .resident_bytes
                    .map(|bytes| format!(" ({} in memory)", ByteSize(bytes)))
                    .unwrap_or_default();
                let lazily = match allocator.lazily_free_bytes {
                    Some(bytes @ 1..) => format!(
                        "; {} of its memory are given back already, and go when the kernel needs them",
                        ByteSize(bytes)
                    ),
                    _ => String::new(),
                };
                let told = match allocator.role {
                    AllocatorRole::InCharge => format!("{name} serves the program's blocks{resident}"),
                    AllocatorRole::Beside => {
                        format!("{name} serves part of the program beside malloc{resident}")
                    }
                    AllocatorRole::Above => format!(
                        "{name} takes large pieces from malloc or mmap, and deals them out itself{resident}"
                    ),
                    AllocatorRole::Unused => return None,
                    AllocatorRole::Unknown => {
                        format!("{name} is there; whether it is used cannot be told")
                    }
                };
                let hidden = allocator
                    .not_visible
                    .as_ref()
                    .map(|what| format!("; not visible: {what}"))
                    .unwrap_or_default();
                Some(format!("{told}{lazily}{hidden}"))
            })
            .collect()
    }

    fn advice(&self, kind: HeapVerdictKind) -> Vec<String> {
        let pid = &self.pid;
        let mut advice = Vec::new();
        match kind {
            HeapVerdictKind::NotVisible => {
                if let Some(own) = self.other_in_charge().and_then(own_tool) {
                    advice.push(own.replace("PID", pid));
                }
                advice.push(follow(pid));
            }
            HeapVerdictKind::Elsewhere => advice.push(follow(pid)),
            HeapVerdictKind::Unclear => advice.push(format!(
                "`breaktrace heap --exact {pid}` looks while the program stands still; if it fails again, the heap is \
                 damaged, or of a malloc that breaktrace does not know"
            )),
            HeapVerdictKind::InUse => {
                if !self.is_compared {
                    advice.push(format!(
                        "`breaktrace heap --every 10s {pid}` compares looks, and names the sizes that grow"
                    ));
                }
                advice.push(format!(
                    "`breaktrace attach --every 10s {pid}` tells which functions make it grow"
                ));
            }
            HeapVerdictKind::Kept => advice.push(
                "look at the running process, where what is in memory can be told".to_owned(),
            ),
            HeapVerdictKind::Retained => {
                advice.push(format!(
                    "malloc_trim(0) in the program when it has freed much; once by hand: \
                     gdb -p {pid} -batch -ex 'call (int)malloc_trim(0)'"
                ));
                advice.extend(self.trim_threshold());
            }
            HeapVerdictKind::Fragmented => {
                if self.sums.arenas > 1 {
                    advice.push(fewer_arenas());
                }
                advice.push(
                    "an allocator that keeps blocks of one size together, jemalloc or mimalloc by LD_PRELOAD; \
                     `breaktrace compare` puts them side by side"
                        .to_owned(),
                );
                advice.push(
                    "blocks that live long: allocate them together, not among short-lived ones".to_owned(),
                );
            }
            HeapVerdictKind::OutOfReach => {
                if self.sums.arenas > 1 {
                    advice.push(fewer_arenas());
                }
                let grown = |settings: &MallocSettings| {
                    settings.trim_threshold_bytes > DEFAULT_TRIM_THRESHOLD
                };
                let heaps = &self.examination.heaps;
                if heaps.iter().any(|heap| heap.settings.as_ref().is_some_and(grown)) {
                    advice.push(
                        "MALLOC_TRIM_THRESHOLD_=131072 in its environment: free then gives back larger tops, those \
                         of thread arenas too"
                            .to_owned(),
                    );
                } else {
                    advice.push(
                        "nothing, while threads go on: free gives back the top of an arena when a freed chunk and its free \
                         neighbours make 64 KiB"
                            .to_owned(),
                    );
                }
            }
        }
        if kind == HeapVerdictKind::InUse {
            advice.extend(self.runtime_tools());
        }
        advice
    }

    /// What to do where the threshold has grown, so that free does not give back the top.
    fn trim_threshold(&self) -> Option<String> {
        let grown = |settings: &MallocSettings| {
            settings.mmap_threshold_is_dynamic
                && settings.trim_threshold_bytes > DEFAULT_TRIM_THRESHOLD
        };
        let heap = self.examination.heaps.first()?;
        let settings = heap.settings.filter(grown)?;
        let top = heap.arenas.first()?.figures.top_bytes;
        (!is_less(top, 2, heap.trimmable_bytes?)).then(|| {
            format!(
                "MALLOC_TRIM_THRESHOLD_=131072 in its environment: free then gives back the top by itself; the \
                 threshold has grown to {}",
                ByteSize(settings.trim_threshold_bytes)
            )
        })
    }

    fn runtime_tools(&self) -> Vec<String> {
        self.examination
            .allocators
            .iter()
            .filter(|allocator| {
                matches!(allocator.role, AllocatorRole::Above | AllocatorRole::Beside)
            })
            .filter_map(own_tool)
            .map(|tool| tool.replace("PID", &self.pid))
            .collect()
    }
}

fn follow(pid: &str) -> String {
    format!("`breaktrace attach --every 10s {pid}` tells what maps memory, and who asks for it")
}

fn fewer_arenas() -> String {
    "MALLOC_ARENA_MAX=2 in its environment: threads share arenas, and what one frees another can use".to_owned()
}

fn name(allocator: &RecognisedAllocator) -> String {
    match &allocator.version {
        Some(version) => format!("{} {version}", allocator.name),
        None => allocator.name.clone(),
    }
}

fn counted(number: u64, singular: &str, plural: &str) -> String {
    let noun = if number == 1 { singular } else { plural };
    format!("{} {noun}", Exact(number))
}

/// What an allocator or a runtime tells of itself, where that is not said already.
fn own_tool(allocator: &RecognisedAllocator) -> Option<&'static str> {
    const TOOLS: [(&str, &str); 10] = [
        (
            "jemalloc",
            "jemalloc's own account: malloc_stats_print(), or MALLOC_CONF=stats_print:true for one at exit",
        ),
        (
            "mimalloc",
            "mimalloc's own account: mi_stats_print(), or MIMALLOC_SHOW_STATS=1 for one at exit",
        ),
        (
            "tcmalloc",
            "tcmalloc's own account: MallocExtension::GetStats(); ReleaseFreeMemory() gives back what it keeps",
        ),
        (
            "Go",
            "Go's own account: runtime.ReadMemStats, GODEBUG=gctrace=1; debug.FreeOSMemory() gives back what it keeps",
        ),
        (
            "CPython",
            "Python's own account: tracemalloc tells which lines allocate; gc.collect() frees cycles",
        ),
        (
            "V8",
            "V8's own account: process.memoryUsage(), node --inspect and a heap snapshot",
        ),
        (
            "JVM",
            "Java's own account: jcmd PID VM.native_memory, jcmd PID GC.heap_info",
        ),
        (
            "HotSpot",
            "Java's own account: jcmd PID VM.native_memory, jcmd PID GC.heap_info",
        ),
        (
            "Ruby",
            "Ruby's own account: GC.stat, ObjectSpace.memsize_of_all",
        ),
        (
            "PHP",
            "PHP's own account: memory_get_usage(), gc_mem_caches()",
        ),
    ];
    TOOLS
        .iter()
        .find(|(known, _)| allocator.name.starts_with(known) && allocator.not_visible.is_none())
        .map(|(_, tool)| *tool)
}
