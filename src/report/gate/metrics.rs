//! The metrics: each with one name, which JSON, limits, baselines, differences, documents and text share.

use serde::Deserialize;
use serde::Serialize;

use crate::event::HeapExamination;
use crate::report::HeapSums;
use crate::report::InUseMeasure;
use crate::report::Report;
use crate::report::SpaceReport;

/// What a metric counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum MetricUnit {
    /// Bytes.
    Bytes,
    /// How many, or how often.
    Count,
    /// Nanoseconds.
    Nanoseconds,
    /// Hundredths of a percent.
    BasisPoints,
}

/// Which way is good.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Better {
    /// Less is better.
    Lower,
    /// Neither is: it only tells that something is different.
    Neither,
}

/// How a metric of a recording follows from its address spaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Combined {
    /// The largest of all: sizes.
    Largest,
    /// The sum over all: what flowed, and calls.
    Sum,
}

/// Where a metric's number comes from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Source {
    /// Each address space.
    Space(fn(&SpaceReport) -> Option<u64>),
    /// Each address space, or the recording's totals, which also hold address spaces that are not listed.
    SpaceOrTotals(fn(&SpaceReport) -> Option<u64>, fn(&Report) -> u64),
    /// Calls by name.
    Calls(&'static str),
    /// A heap of glibc's as last looked through from outside, during a recording or by `breaktrace heap`.
    Heap(fn(&HeapSums) -> Option<u64>),
    /// The same, by `breaktrace heap` only: recordings have the like of it as figures of the allocator.
    Look(fn(&HeapSums) -> Option<u64>),
    /// The recording alone.
    Report(fn(&Report) -> Option<u64>),
}

/// A metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// Its name: `group.what`.
    pub name: &'static str,
    /// What it counts.
    pub unit: MetricUnit,
    /// Which way is good.
    pub better: Better,
    /// Whether it depends on the program alone: the same program on the same input has the same value, as long as its threads
    /// do not compete. What is not repeatable depends on the machine's speed and load as well, and never gates unless a limit
    /// names it.
    pub repeatable: bool,
    /// How it follows from several address spaces.
    pub combined: Combined,
    /// Its meaning.
    pub meaning: &'static str,
    pub(super) source: Source,
}

impl Metric {
    /// The part of the name before the dot.
    #[must_use]
    pub fn group(&self) -> &'static str {
        self.name.split('.').next().unwrap_or_default()
    }

    /// The metric with this name.
    #[must_use]
    pub fn named(name: &str) -> Option<&'static Self> {
        METRICS.iter().find(|metric| metric.name == name)
    }
}

const fn metric(
    name: &'static str,
    unit: MetricUnit,
    combined: Combined,
    meaning: &'static str,
    source: Source,
) -> Metric {
    Metric {
        name,
        unit,
        better: Better::Lower,
        repeatable: true,
        combined,
        meaning,
        source,
    }
}

impl Metric {
    const fn neutral(mut self) -> Self {
        self.better = Better::Neither;
        self
    }

    const fn advisory(mut self) -> Self {
        self.repeatable = false;
        self
    }
}

use Combined::Largest;
use Combined::Sum;
use MetricUnit::BasisPoints;
use MetricUnit::Bytes;
use MetricUnit::Count;
use MetricUnit::Nanoseconds;

/// All metrics, in the order in which they are shown.
pub const METRICS: &[Metric] = &[
    metric(
        "heap.peak",
        Bytes,
        Largest,
        "most memory below the break and in anonymous mappings together",
        Source::Space(|space| space.peak_bytes),
    ),
    metric(
        "heap.end",
        Bytes,
        Largest,
        "break and anonymous mappings at the end: what was not given back to the kernel",
        Source::Space(|space| {
            let below_break = space.program_break.end_bytes?;
            below_break.checked_add(space.anonymous.end_bytes)
        }),
    ),
    metric(
        "heap.grown",
        Bytes,
        Sum,
        "bytes by which break and anonymous mappings grew",
        Source::SpaceOrTotals(
            |space| {
                let below_break = space.program_break.grown_bytes;
                below_break.checked_add(space.anonymous.grown_bytes)
            },
            |report| {
                let below_break = report.totals.break_grown_bytes;
                below_break.saturating_add(report.totals.anonymous_grown_bytes)
            },
        ),
    ),
    metric(
        "break.peak",
        Bytes,
        Largest,
        "largest size of the heap at the program break",
        Source::Space(|space| space.program_break.peak_bytes),
    ),
    metric(
        "break.end",
        Bytes,
        Largest,
        "size of the heap at the program break at the end",
        Source::Space(|space| space.program_break.end_bytes),
    ),
    metric(
        "break.grown",
        Bytes,
        Sum,
        "bytes by which the break grew",
        Source::SpaceOrTotals(
            |space| Some(space.program_break.grown_bytes),
            |report| report.totals.break_grown_bytes,
        ),
    ),
    metric(
        "break.shrunk",
        Bytes,
        Sum,
        "bytes by which the break shrank",
        Source::SpaceOrTotals(
            |space| Some(space.program_break.shrunk_bytes),
            |report| report.totals.break_shrunk_bytes,
        ),
    )
    .neutral(),
    metric(
        "break.grow_calls",
        Count,
        Sum,
        "calls that raised the break",
        Source::SpaceOrTotals(
            |space| Some(space.program_break.grow_calls),
            |report| report.totals.break_grow_calls,
        ),
    ),
    metric(
        "break.shrink_calls",
        Count,
        Sum,
        "calls that lowered the break",
        Source::SpaceOrTotals(
            |space| Some(space.program_break.shrink_calls),
            |report| report.totals.break_shrink_calls,
        ),
    )
    .neutral(),
    metric(
        "mapped.peak",
        Bytes,
        Largest,
        "most anonymous memory outside the break",
        Source::Space(|space| Some(space.anonymous.peak_bytes)),
    ),
    metric(
        "mapped.end",
        Bytes,
        Largest,
        "anonymous memory outside the break at the end",
        Source::Space(|space| Some(space.anonymous.end_bytes)),
    ),
    metric(
        "mapped.grown",
        Bytes,
        Sum,
        "bytes of anonymous memory that became usable",
        Source::SpaceOrTotals(
            |space| Some(space.anonymous.grown_bytes),
            |report| report.totals.anonymous_grown_bytes,
        ),
    ),
    metric(
        "mapped.shrunk",
        Bytes,
        Sum,
        "bytes of anonymous memory that were given back",
        Source::SpaceOrTotals(
            |space| Some(space.anonymous.shrunk_bytes),
            |report| report.totals.anonymous_shrunk_bytes,
        ),
    )
    .neutral(),
    metric(
        "mapped.grow_calls",
        Count,
        Sum,
        "calls that made anonymous memory usable",
        Source::Space(|space| Some(space.anonymous.grow_calls)),
    ),
    metric("calls.brk", Count, Sum, "brk calls", Source::Calls("brk")),
    metric(
        "calls.mmap",
        Count,
        Sum,
        "mmap calls",
        Source::Calls("mmap"),
    ),
    metric(
        "calls.munmap",
        Count,
        Sum,
        "munmap calls",
        Source::Calls("munmap"),
    ),
    metric(
        "calls.mremap",
        Count,
        Sum,
        "mremap calls",
        Source::Calls("mremap"),
    ),
    metric(
        "calls.madvise",
        Count,
        Sum,
        "madvise calls",
        Source::Calls("madvise"),
    ),
    metric(
        "allocator.in_use_peak",
        Bytes,
        Largest,
        "most bytes asked for and not freed (bundled allocator)",
        Source::Space(|space| at_end(space, "in_use_peak_bytes")),
    ),
    metric(
        "allocator.obtained_peak",
        Bytes,
        Largest,
        "most bytes that the allocator had from the kernel (bundled allocator)",
        Source::Space(|space| at_end(space, "obtained_peak_bytes")),
    ),
    metric(
        "allocator.requested",
        Bytes,
        Sum,
        "bytes asked for in all (bundled allocator)",
        Source::Space(|space| at_end(space, "requested_bytes")),
    ),
    metric(
        "allocator.allocations",
        Count,
        Sum,
        "blocks handed out (bundled allocator)",
        Source::Space(|space| at_end(space, "allocated_blocks")),
    ),
    metric(
        "allocator.never_freed",
        Bytes,
        Largest,
        "bytes in blocks not freed at the end: as asked for on the bundled allocator, as they hold on glibc's",
        Source::Space(|space| at_end(space, "in_use_bytes")),
    ),
    metric(
        "allocator.never_freed_blocks",
        Count,
        Largest,
        "blocks not freed at the end",
        Source::Space(|space| at_end(space, "live_blocks")),
    ),
    metric(
        "allocator.obtained_end",
        Bytes,
        Largest,
        "what the allocator had from the kernel at the end",
        Source::Space(|space| at_end(space, "obtained_bytes")),
    ),
    metric(
        "allocator.free_end",
        Bytes,
        Largest,
        "kept free by the allocator at the end, its top included",
        Source::Space(|space| {
            at_end(space, "free_bytes")?.checked_add(at_end(space, "top_bytes")?)
        }),
    )
    // Who uses less of what was obtained leaves more free.
    .neutral(),
    metric(
        "allocator.overhead",
        Bytes,
        Largest,
        "obtained and neither in use nor free, at the reading with the most obtained (bundled allocator)",
        Source::Space(|space| {
            let allocator = space.allocator.as_ref()?;
            // Another is looked at now and then only, and perhaps not near its peak.
            let is_counted = allocator.in_use_is == InUseMeasure::Requested;
            let largest = allocator.largest.as_ref().filter(|_| is_counted)?;
            largest.figures.get("overhead_bytes")
        }),
    ),
    metric(
        "allocator.fragmentation",
        BasisPoints,
        Largest,
        "share of the obtained peak beyond the in-use peak (bundled allocator)",
        Source::Space(|space| {
            let in_use = at_end(space, "in_use_peak_bytes")?;
            let obtained = at_end(space, "obtained_peak_bytes")?;
            let beyond = u128::from(obtained.saturating_sub(in_use)) * 10_000;
            u64::try_from(beyond.checked_div(u128::from(obtained))?).ok()
        }),
    ),
    metric(
        "allocator.heap_errors",
        Count,
        Sum,
        "errors in the use of the heap: double frees, writes past blocks, … (bundled allocator)",
        Source::Space(|space| {
            let allocator = space.allocator.as_ref()?;
            let is_counted =
                allocator.in_use_is == InUseMeasure::Requested && allocator.last.is_some();
            is_counted.then_some(allocator.heap_errors.total)
        }),
    ),
    metric(
        "malloc.in_use",
        Bytes,
        Largest,
        "chunks of glibc's malloc in use, headers included (breaktrace heap)",
        Source::Look(|sums| Some(sums.in_use_bytes)),
    ),
    metric(
        "malloc.in_use_chunks",
        Count,
        Largest,
        "chunks of glibc's malloc in use (breaktrace heap)",
        Source::Look(|sums| Some(sums.in_use_chunks)),
    ),
    metric(
        "malloc.obtained",
        Bytes,
        Largest,
        "what glibc's malloc has from the kernel (breaktrace heap)",
        Source::Look(|sums| Some(sums.obtained_bytes)),
    ),
    metric(
        "malloc.trimmable",
        Bytes,
        Largest,
        "resident memory that malloc_trim(0) would give back, at the last look at glibc's heap",
        Source::Heap(|sums| sums.trimmable_bytes),
    )
    .advisory(),
    metric(
        "malloc.fragmented",
        Bytes,
        Largest,
        "free resident memory in pages that also hold a chunk in use, at the last look",
        Source::Heap(|sums| sums.fragmented_bytes),
    )
    .advisory(),
    metric(
        "resident.peak",
        Bytes,
        Largest,
        "most resident memory",
        Source::Space(|space| Some(space.memory_at_end?.resident_peak_bytes)),
    )
    .advisory(),
    metric(
        "time",
        Nanoseconds,
        Sum,
        "time from start to end, tracing included",
        Source::Report(|report| Some(report.end.duration_ns.0)),
    )
    .advisory(),
];

/// A figure of the allocator's as last read.
fn at_end(space: &SpaceReport, name: &str) -> Option<u64> {
    let last = space.allocator.as_ref()?.last.as_ref()?;
    last.figures.get(name)
}

/// The sums of a look through glibc's heap; `None` where there was none.
pub(super) fn heap_sums(examination: &HeapExamination) -> Option<HeapSums> {
    (!examination.heaps.is_empty()).then(|| HeapSums::of(examination))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn each_name_is_there_once() {
        let names: HashSet<_> = METRICS.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), METRICS.len());
    }

    #[test]
    fn names_can_be_written_in_limits_without_quotes() {
        for metric in METRICS {
            let is_plain = |c: char| c.is_ascii_lowercase() || c == '_' || c == '.';
            assert!(metric.name.chars().all(is_plain), "{}", metric.name);
        }
    }
}
