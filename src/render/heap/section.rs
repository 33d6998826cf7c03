//! The heap of the program's own malloc in the report of a recording: a few lines.

use crate::report::HeapConfidence;
use crate::report::HeapMoment;
use crate::report::HeapSums;
use crate::report::HeapVerdict;
use crate::report::SpaceReport;
use crate::units::ByteSize;

use super::super::words;
use super::details;

/// What the last look at the heap of an address space told, as lines after one word at the left edge; nothing if there
/// was none.
pub(in crate::render) fn section(space: &SpaceReport, verbose: bool) -> Vec<String> {
    let Some(HeapMoment { examination, .. }) = &space.heap else {
        return Vec::new();
    };
    let verdict = HeapVerdict::of(examination, None, Some(space.pid));
    let sums = HeapSums::of(examination);
    let mut lines = vec![verdict.summary];
    lines.extend(obtained(&sums));
    lines.extend(in_memory(&sums));
    lines.extend(
        verdict
            .evidence
            .into_iter()
            .take(if verbose { usize::MAX } else { 1 }),
    );
    let is_doubtful = matches!(
        verdict.confidence,
        HeapConfidence::Doubtful | HeapConfidence::Moving
    );
    if !verdict.doubts.is_empty() && (is_doubtful || verbose) {
        lines.push(verdict.doubts.join("; "));
    }
    if verbose {
        for heap in &examination.heaps {
            let entries = details::entries(heap, true);
            lines.extend(
                entries
                    .into_iter()
                    .map(|(lead, text)| format!("{lead}: {text}")),
            );
        }
        lines.extend(
            verdict
                .advice
                .into_iter()
                .map(|advice| format!("try: {advice}")),
        );
    }
    lines
}

/// What malloc has, and what its chunks make of it.
fn obtained(sums: &HeapSums) -> Option<String> {
    (sums.obtained_bytes > 0).then(|| {
        let parts = sizes(&[
            (sums.in_use_bytes, "in use"),
            (sums.cached_bytes, "in thread caches"),
            (sums.binned_bytes, "in bins"),
            (sums.top_bytes, "top"),
        ]);
        let arenas = match sums.arenas {
            0 | 1 => String::new(),
            arenas => format!(" in {}", words::count(arenas, "arena", "arenas")),
        };
        format!(
            "obtained {}{arenas}: {parts}",
            ByteSize(sums.obtained_bytes)
        )
    })
}

/// What is in memory, and what of that could go.
fn in_memory(sums: &HeapSums) -> Option<String> {
    let resident = sums.resident_bytes.filter(|bytes| *bytes > 0)?;
    let parts = sizes(&[
        (sums.trimmable_bytes?, "trimmable"),
        (sums.fragmented_bytes?, "fragmented"),
        (sums.out_of_reach_bytes?, "free out of malloc_trim's reach"),
    ]);
    let parts = if parts.is_empty() {
        "nothing free".to_owned()
    } else {
        parts
    };
    Some(format!("in memory {}: {parts}", ByteSize(resident)))
}

fn sizes(parts: &[(u64, &str)]) -> String {
    let parts: Vec<String> = parts
        .iter()
        .filter(|(bytes, _)| *bytes > 0)
        .map(|(bytes, name)| format!("{} {name}", ByteSize(*bytes)))
        .collect();
    parts.join(", ")
}
