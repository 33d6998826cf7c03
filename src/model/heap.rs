//! The heap of a program's own malloc as examinations told of it, in the terms in which the bundled allocator counts.

use super::allocator::HeldBytes;
use crate::event::AllocatorFigures;
use crate::event::GlibcHeap;
use crate::event::HeapExamination;
use crate::report::AllocatorChecks;
use crate::report::AllocatorMoment;
use crate::report::AllocatorReport;
use crate::report::HeapErrors;
use crate::report::HeapMoment;
use crate::report::InUseMeasure;
use crate::units::Timestamp;

/// glibc's header of a chunk in use; the rest of the chunk is the program's (malloc.c, `CHUNK_HDR_SZ` less what it shares
/// with the chunk behind).
const CHUNK_HEADER: u64 = 8;
/// The same of a chunk that is a mapping of its own.
const MAPPED_HEADER: u64 = 16;

/// What examinations of one address space told.
#[derive(Clone, Debug)]
pub(super) struct Heap {
    last: HeapMoment,
    /// The one with the most memory.
    largest: HeapMoment,
}

impl Heap {
    pub(super) fn new(time: Timestamp, examination: &HeapExamination) -> Self {
        let moment = HeapMoment {
            time_ns: time,
            examination: examination.clone(),
        };
        Self {
            last: moment.clone(),
            largest: moment,
        }
    }

    /// Adds a later examination.
    pub(super) fn examined(&mut self, time: Timestamp, examination: &HeapExamination) {
        self.last = HeapMoment {
            time_ns: time,
            examination: examination.clone(),
        };
        if obtained(examination) > obtained(&self.largest.examination) {
            self.largest = self.last.clone();
        }
    }

    /// The last one.
    pub(super) fn last(&self) -> &HeapMoment {
        &self.last
    }

    /// The same in the fields that the bundled allocator fills; `None` when the program has no heap of glibc's.
    pub(super) fn allocator(&self) -> Option<AllocatorReport> {
        let last = self.last.examination.heaps.first()?;
        let name = match &last.version {
            Some(version) => format!("glibc {version}"),
            None => "glibc".to_owned(),
        };
        Some(AllocatorReport {
            name,
            in_use_is: InUseMeasure::Usable,
            setup: None,
            absence: None,
            last: moment(&self.last),
            largest: moment(&self.largest),
            at_start: None,
            classes: Vec::new(),
            heap_errors: HeapErrors::default(),
            samples: None,
            walk: None,
            checks: AllocatorChecks::default(),
            claims: None,
        })
    }
}

/// Bytes from the kernel.
fn obtained(examination: &HeapExamination) -> u64 {
    examination
        .heaps
        .iter()
        .map(|heap| {
            heap.total
                .system_bytes
                .saturating_add(heap.mapped.found_bytes)
        })
        .fold(0, u64::saturating_add)
}

/// The sizes that an examination adds to the timeline; `None` when nothing of a heap could be seen.
pub(super) fn held(examination: &HeapExamination) -> Option<HeldBytes> {
    let figures = figures(examination.heaps.first()?);
    Some(HeldBytes {
        in_use: figures.get("in_use_bytes")?,
        obtained: figures.get("obtained_bytes")?,
    })
}

fn moment(moment: &HeapMoment) -> Option<AllocatorMoment> {
    Some(AllocatorMoment {
        time_ns: moment.time_ns,
        moment: moment.examination.moment,
        still: moment.examination.still,
        figures: figures(moment.examination.heaps.first()?),
    })
}

/// A heap in the bundled allocator's terms. What only an allocator that counts could tell is not known: how much was ever
/// asked for, how often, and the peaks.
fn figures(heap: &GlibcHeap) -> AllocatorFigures {
    let total = &heap.total;
    let mapped_chunks = heap.mapped.found_chunks;
    let headers = CHUNK_HEADER * total.in_use_chunks + MAPPED_HEADER * mapped_chunks;
    let in_use = (total.in_use_bytes + heap.mapped.found_bytes).saturating_sub(headers);
    let obtained = total.system_bytes.saturating_add(heap.mapped.found_bytes);
    let mut known = vec![
        ("obtained_bytes", obtained),
        ("top_bytes", total.top_bytes),
        ("live_large_blocks", mapped_chunks),
        (
            "arenas",
            heap.mallinfo.ordblks.saturating_sub(total.binned_chunks),
        ),
        ("thread_caches", heap.thread_caches.found),
    ];
    if total.not_found_bytes == 0 {
        known.extend([
            ("in_use_bytes", in_use),
            ("overhead_bytes", headers + total.other_bytes),
            ("block_overhead_bytes", headers),
            ("record_bytes", total.other_bytes),
            (
                "free_bytes",
                total.cached_bytes + total.fast_bytes + total.binned_bytes,
            ),
            ("free_chunk_bytes", total.fast_bytes + total.binned_bytes),
            ("cached_bytes", total.cached_bytes),
            ("live_blocks", total.in_use_chunks + mapped_chunks),
            ("free_chunks", total.fast_chunks + total.binned_chunks),
        ]);
    }
    AllocatorFigures::of(&known)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::ArenaFigures;
    use crate::event::Mallinfo;
    use crate::event::MappedChunks;
    use crate::event::ReadingMoment;
    use crate::event::ThreadCaches;
    use crate::units::Address;

    fn examination(in_use: u64) -> HeapExamination {
        let total = ArenaFigures {
            system_bytes: in_use + 500,
            in_use_bytes: in_use,
            in_use_chunks: 4,
            cached_bytes: 100,
            cached_chunks: 2,
            fast_bytes: 64,
            fast_chunks: 2,
            binned_bytes: 136,
            binned_chunks: 1,
            top_bytes: 168,
            other_bytes: 32,
            ..ArenaFigures::default()
        };
        HeapExamination {
            moment: ReadingMoment::End,
            still: true,
            allocators: Vec::new(),
            heaps: vec![GlibcHeap {
                file: None,
                version: Some("2.36".to_owned()),
                main_arena: Address(0x1000),
                settings: None,
                total,
                arenas: Vec::new(),
                mapped: MappedChunks {
                    chunks: Some(1),
                    bytes: Some(4096),
                    found_chunks: 1,
                    found_bytes: 4096,
                    resident_bytes: None,
                },
                thread_caches: ThreadCaches::default(),
                mallinfo: Mallinfo {
                    ordblks: 2,
                    ..Mallinfo::default()
                },
                trimmable_bytes: None,
                classes: Vec::new(),
                pins: Vec::new(),
                checks: Vec::new(),
            }],
            memory: None,
            cost: Default::default(),
            problems: Vec::new(),
        }
    }

    #[test]
    fn the_terms_add_up_as_the_bundled_allocators_do() {
        let report = Heap::new(Timestamp(5), &examination(1000))
            .allocator()
            .unwrap();
        assert_eq!(report.name, "glibc 2.36");
        let figures = report.last.unwrap().figures;
        let figure = |name| figures.get(name).unwrap();
        assert_eq!(figure("in_use_bytes"), 1000 - 4 * 8 + 4096 - 16);
        assert_eq!(
            figure("obtained_bytes"),
            figure("in_use_bytes")
                + figure("overhead_bytes")
                + figure("free_bytes")
                + figure("top_bytes")
        );
        assert_eq!(figure("arenas"), 1);
        // Nobody counted these.
        for name in [
            "requested_bytes",
            "in_use_peak_bytes",
            "malloc_calls",
            "brk_calls",
        ] {
            assert_eq!(figures.get(name), None, "{name}");
        }
        assert!(figures.all().is_none());
    }

    #[test]
    fn of_a_heap_that_was_not_found_whole_only_the_sums_of_malloc_are_told() {
        let mut examination = examination(1000);
        examination.heaps[0].total.not_found_bytes = 16;
        let report = Heap::new(Timestamp(5), &examination).allocator().unwrap();
        let figures = report.last.unwrap().figures;
        assert_eq!(figures.get("in_use_bytes"), None);
        assert_eq!(figures.get("obtained_bytes"), Some(1500 + 4096));
        assert_eq!(held(&examination), None);
    }

    #[test]
    fn the_largest_heap_is_kept_beside_the_last() {
        let mut heap = Heap::new(Timestamp(1), &examination(1000));
        heap.examined(Timestamp(2), &examination(9000));
        heap.examined(Timestamp(3), &examination(2000));
        let report = heap.allocator().unwrap();
        assert_eq!(report.largest.unwrap().time_ns, Timestamp(2));
        assert_eq!(report.last.unwrap().time_ns, Timestamp(3));
        assert_eq!(heap.last().time_ns, Timestamp(3));
    }

    #[test]
    fn a_program_without_a_heap_of_glibcs_has_no_figures() {
        let mut examination = examination(1);
        examination.heaps.clear();
        assert!(Heap::new(Timestamp(1), &examination).allocator().is_none());
    }
}
