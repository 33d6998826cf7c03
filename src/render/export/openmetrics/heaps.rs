//! What looks at heaps of glibc's malloc told, as metrics: the last look at each address space.

use super::families::Family;
use super::families::Kind;
use super::families::labels;
use super::label;
use crate::report::HeapConfidence;
use crate::report::HeapSums;
use crate::report::HeapVerdict;
use crate::report::HeapVerdictKind;
use crate::report::SpaceReport;

/// A figure of a heap, if it is known.
type Value = fn(&HeapSums) -> Option<u64>;

const FIGURES: [(&str, Value, &str); 11] = [
    (
        "malloc_obtained_bytes",
        |sums| Some(sums.obtained_bytes),
        "Bytes that glibc's malloc has from the kernel: of arenas, and of chunks that are mappings of their own.",
    ),
    (
        "malloc_in_use_bytes",
        |sums| Some(sums.in_use_bytes),
        "Bytes of chunks that the program has not freed, their headers included.",
    ),
    (
        "malloc_in_use_chunks",
        |sums| Some(sums.in_use_chunks),
        "Chunks that the program has not freed.",
    ),
    (
        "malloc_mapped_bytes",
        |sums| Some(sums.mapped_bytes),
        "Of the bytes in use: those of chunks that are mappings of their own.",
    ),
    (
        "malloc_cached_bytes",
        |sums| Some(sums.cached_bytes),
        "Bytes of freed chunks in thread caches.",
    ),
    (
        "malloc_binned_bytes",
        |sums| Some(sums.binned_bytes),
        "Bytes of free chunks in bins and fast bins.",
    ),
    (
        "malloc_top_bytes",
        |sums| Some(sums.top_bytes),
        "Bytes of the tops of arenas, from which new chunks are cut.",
    ),
    (
        "malloc_resident_bytes",
        |sums| sums.resident_bytes,
        "How much of what malloc obtained was in memory.",
    ),
    (
        "malloc_trimmable_bytes",
        |sums| sums.trimmable_bytes,
        "Bytes in memory that malloc_trim(0) would return.",
    ),
    (
        "malloc_fragmented_bytes",
        |sums| sums.fragmented_bytes,
        "Free bytes in memory in pages that also hold a chunk in use, so that nothing returns them.",
    ),
    (
        "malloc_out_of_reach_bytes",
        |sums| sums.out_of_reach_bytes,
        "Free bytes in memory that malloc_trim passes over: tops of thread arenas.",
    ),
];

/// The figures, and the verdict.
pub(super) fn families(spaces: &[&SpaceReport]) -> Vec<Family> {
    let looked: Vec<(&SpaceReport, HeapSums)> = spaces
        .iter()
        .filter_map(|space| {
            let examination = &space.heap.as_ref()?.examination;
            (!examination.heaps.is_empty()).then(|| (*space, HeapSums::of(examination)))
        })
        .collect();
    let mut families = vec![verdicts(spaces)];
    for (name, value, help) in FIGURES {
        let mut family = Family::new(name, Kind::Gauge, help);
        for (space, sums) in &looked {
            if let Some(value) = value(sums) {
                family.push(labels(space), value);
            }
        }
        families.push(family);
    }
    families
}

fn verdicts(spaces: &[&SpaceReport]) -> Family {
    let mut family = Family::new(
        "malloc",
        Kind::Info,
        "The C library of an address space whose heap was looked at, and what follows from the look.",
    );
    for space in spaces {
        let Some(heap) = &space.heap else { continue };
        let verdict = HeapVerdict::of(&heap.examination, None, None);
        let version = heap
            .examination
            .heaps
            .first()
            .and_then(|heap| heap.version.as_deref());
        let mut labels = labels(space);
        labels.extend(version.map(|version| ("version", label(version))));
        labels.push(("verdict", word(verdict.kind).to_owned()));
        labels.push(("confidence", confidence(verdict.confidence).to_owned()));
        family.push(labels, 1);
    }
    family
}

/// As JSON has it.
fn word(kind: HeapVerdictKind) -> &'static str {
    match kind {
        HeapVerdictKind::NotVisible => "not_visible",
        HeapVerdictKind::Unclear => "unclear",
        HeapVerdictKind::Elsewhere => "elsewhere",
        HeapVerdictKind::Kept => "kept",
        HeapVerdictKind::InUse => "in_use",
        HeapVerdictKind::Retained => "retained",
        HeapVerdictKind::Fragmented => "fragmented",
        HeapVerdictKind::OutOfReach => "out_of_reach",
    }
}

fn confidence(confidence: HeapConfidence) -> &'static str {
    match confidence {
        HeapConfidence::AllHold => "all_hold",
        HeapConfidence::Moving => "moving",
        HeapConfidence::Partly => "partly",
        HeapConfidence::Doubtful => "doubtful",
        HeapConfidence::Nothing => "nothing",
    }
}
