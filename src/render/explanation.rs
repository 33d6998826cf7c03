//! Why a step was as large as it was, as a sum that can be checked.

use crate::report::Step;
use crate::report::StepExplanation;
use crate::report::StepReason;
use crate::report::StepTermKind;
use crate::units::ByteDelta;
use crate::units::ByteSize;
use crate::units::Exact;

/// One line for a step; `None` where nothing explains it.
pub(super) fn sentence(step: &Step) -> Option<String> {
    let explanation = step.explanation.as_ref()?;
    Some(sum(step.delta_bytes, explanation))
}

/// The same, of a move by `delta_bytes`.
pub(super) fn sum(delta_bytes: i64, explanation: &StepExplanation) -> String {
    let sum: Vec<String> = explanation
        .terms
        .iter()
        .filter(|term| term.kind != StepTermKind::Top)
        .enumerate()
        .map(|(index, term)| {
            let sign = match (term.bytes < 0, index) {
                (true, _) => "− ",
                (false, 0) => "",
                (false, _) => "+ ",
            };
            let bytes = Exact(term.bytes.unsigned_abs());
            format!("{sign}{bytes} {}", name(term.kind))
        })
        .collect();
    let is_growth = delta_bytes > 0;
    let what = match explanation
        .terms
        .iter()
        .find(|term| term.kind == StepTermKind::Top)
    {
        Some(top) => format!(
            "{} = − {} top{}",
            ByteDelta(delta_bytes),
            Exact(top.bytes.unsigned_abs()),
            if sum.is_empty() {
                String::new()
            } else {
                format!(" + {}", sum.join(" "))
            }
        ),
        None if sum.is_empty() || !is_growth => ByteDelta(delta_bytes).to_string(),
        None => format!("{} = {}", ByteDelta(delta_bytes), sum.join(" ")),
    };
    format!("{what}: {}", reason(explanation))
}

fn name(kind: StepTermKind) -> &'static str {
    match kind {
        StepTermKind::Chunk => "chunk",
        StepTermKind::ChunkAndRounding => "chunk and page rounding",
        StepTermKind::TopPad => "top pad",
        StepTermKind::SmallestChunk => "smallest chunk",
        StepTermKind::LeftInTop => "left in top",
        StepTermKind::PageRounding => "page rounding",
        StepTermKind::Top => "top",
        StepTermKind::Kept => "kept",
        StepTermKind::Header => "header",
        StepTermKind::AlreadyOpen => "open already",
        StepTermKind::Alignment => "alignment",
        StepTermKind::LostTop => "old top, out of reach",
        StepTermKind::MappingRounding => "up to whole pages, or the least that malloc maps",
    }
}

fn reason(explanation: &StepExplanation) -> String {
    let request = match (explanation.request_min_bytes, explanation.request_max_bytes) {
        (Some(least), Some(most)) if least == most => format!("a request of {}", ByteSize(most)),
        (Some(least), Some(most)) => {
            format!("a request of {} to {} bytes", Exact(least), Exact(most))
        }
        _ => "a request".to_owned(),
    };
    match explanation.reason {
        StepReason::Request => request,
        StepReason::TrimByFree => "malloc gave back what was free at the top".to_owned(),
        StepReason::MallocTrim => "malloc_trim".to_owned(),
        StepReason::MappedChunk => format!("{request}, mapped alone"),
        StepReason::UnmappedChunk => "a block mapped alone was freed".to_owned(),
        StepReason::UnmappedChunkRaisedThreshold => {
            "a block mapped alone was freed, and the mmap threshold is its size now".to_owned()
        }
        StepReason::ResizedChunk => format!("a block mapped alone was reallocated: {request}"),
        StepReason::BreakRefused => match explanation.terms.is_empty() {
            true => "brk was refused: malloc goes on in a mapping".to_owned(),
            false => format!("{request}; brk was refused, so malloc goes on in a mapping"),
        },
        StepReason::ArenaReserved => "address space for an arena".to_owned(),
        StepReason::ArenaOpened => "a new arena, or a further heap of one".to_owned(),
        StepReason::ArenaGrew => format!("a thread's arena grew for {request}"),
        StepReason::AfterForeignMove => {
            "malloc makes up for a move of the break that was not its own".to_owned()
        }
        StepReason::NotMalloc => "not malloc's doing: the program moved the break".to_owned(),
        StepReason::Unexplained => "malloc's arithmetic does not explain it".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::StepTerm;
    use crate::units::Address;
    use crate::units::Timestamp;

    fn step(delta_bytes: i64, reason: StepReason, terms: &[(StepTermKind, i64)]) -> Step {
        Step {
            number: 1,
            time_ns: Timestamp(0),
            tid: 1,
            call: "brk".into(),
            delta_bytes,
            after_bytes: 0,
            from: Address(0),
            to: Address(0),
            allocator: None,
            stack: None,
            explanation: Some(StepExplanation {
                reason,
                chunk_bytes: None,
                request_min_bytes: Some(92_160),
                request_max_bytes: Some(92_160),
                terms: terms
                    .iter()
                    .map(|(kind, bytes)| StepTerm {
                        kind: *kind,
                        bytes: *bytes,
                    })
                    .collect(),
            }),
        }
    }

    #[test]
    fn a_growth_is_a_sum_and_what_it_was_for() {
        let terms = [
            (StepTermKind::Chunk, 92_176),
            (StepTermKind::PageRounding, 1_264),
            (StepTermKind::TopPad, 131_072),
            (StepTermKind::SmallestChunk, 32),
            (StepTermKind::LeftInTop, -52_512),
        ];
        assert_eq!(
            sentence(&step(172_032, StepReason::Request, &terms)).unwrap(),
            "+168 KiB = 92,176 chunk + 1,264 page rounding + 131,072 top pad + 32 smallest chunk − 52,512 left in top: \
             a request of 90 KiB"
        );
    }

    #[test]
    fn what_is_given_back_is_the_top_without_what_is_kept() {
        let terms = [
            (StepTermKind::Top, -199_184),
            (StepTermKind::Kept, 131_105),
            (StepTermKind::PageRounding, 2_543),
        ];
        assert_eq!(
            sentence(&step(-65_536, StepReason::TrimByFree, &terms)).unwrap(),
            "−64 KiB = − 199,184 top + 131,105 kept + 2,543 page rounding: malloc gave back what was free at the top"
        );
    }

    #[test]
    fn what_malloc_did_not_do_is_not_made_to_fit() {
        assert_eq!(
            sentence(&step(4096, StepReason::NotMalloc, &[])).unwrap(),
            "+4 KiB: not malloc's doing: the program moved the break"
        );
    }
}
