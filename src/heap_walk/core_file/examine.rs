//! The heap of a program in a core file.

use std::time::Instant;

use super::CoreFile;
use crate::event::ExaminationCost;
use crate::event::HeapExamination;
use crate::event::ReadingMoment;
use crate::heap_walk;

impl CoreFile {
    /// Looks through the heap. What of it was in memory is not known, as the file does not say; nor is what
    /// `malloc_trim` would return.
    #[must_use]
    pub fn examine(&self) -> HeapExamination {
        let began = Instant::now();
        let located = heap_walk::locate(self);
        let pointers = self.thread_pointers();
        // A file that tells of no thread's registers tells nothing of their caches.
        let pointers = (!pointers.is_empty()).then_some(pointers.as_slice());
        let heaps = located
            .iter()
            .filter_map(|located| heap_walk::stand(self, located, pointers))
            .map(|standing| heap_walk::examine(self, standing, true))
            .collect();
        HeapExamination {
            moment: match self.signal() {
                Some(_) => ReadingMoment::End,
                None => ReadingMoment::Snapshot,
            },
            still: true,
            allocators: heap_walk::recognise(self, &located),
            heaps,
            memory: None,
            cost: ExaminationCost {
                total_ns: u64::try_from(began.elapsed().as_nanos()).unwrap_or(u64::MAX),
                stopped_ns: None,
                read_bytes: self.read_bytes(),
            },
            problems: self.problems().to_vec(),
        }
    }
}
