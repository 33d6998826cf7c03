//! The main arena's top: what the break could drop by, and what keeps it from that.

use super::arena;
use super::arena::SMALLEST_CHUNK;
use super::examine::Examiner;
use super::examine::Walked;
use super::free_lists;
use super::pages::Residence;
use super::walk::LAST_CHUNKS;
use crate::event::Pin;
use crate::units::Address;

/// Pins that are listed.
const PINS: usize = 10;
/// malloc_trim keeps a smallest chunk and one byte at the top (malloc.c, `systrim`).
const KEPT_AT_TOP: u64 = SMALLEST_CHUNK + 1;

impl Examiner<'_> {
    /// What the break could drop by: now, and without the chunks below the top.
    pub(super) fn describe_top(&self, walked: &mut Walked) {
        let state = &walked.state;
        let end = state.end();
        let is_at_break = self.heap_mapping().is_some_and(|(_, heap_end)| {
            // The kernel shows the heap's mapping up to the page of the break.
            state.contiguous
                && Some(heap_end) == end.checked_next_multiple_of(self.image.page_size())
        });
        let page = self.trim_unit();
        let drop_from = |start: u64| {
            (end.saturating_sub(start))
                .checked_sub(KEPT_AT_TOP)
                .map_or(0, |area| area & !page.saturating_sub(1))
        };
        if !is_at_break || walked.found.top_start == 0 {
            walked.top_trimmable = Some(0);
            return;
        }
        let top_start = walked.found.top_start;
        let extra = drop_from(top_start);
        walked.top_trimmable = Residence::new(self.image, end.saturating_sub(extra), end)
            .finish()
            .map(|(resident, _)| resident);
        let kept = walked.found.live.min(LAST_CHUNKS);
        let last: Vec<u64> = (0..kept)
            .map(|back| walked.found.last[(walked.found.live - 1 - back) & (LAST_CHUNKS - 1)])
            .collect();
        for (index, chunk) in last.iter().enumerate().take(PINS) {
            let Some(bytes) = self
                .image
                .word(chunk.saturating_add(8))
                .map(|word| word & !arena::SIZE_FLAGS)
            else {
                break;
            };
            // Without it, all is free down to the end of the next chunk in use.
            let below = match last.get(index + 1) {
                Some(below) => {
                    let size = self
                        .image
                        .word(below.saturating_add(8))
                        .map_or(0, |word| word & !arena::SIZE_FLAGS);
                    below.saturating_add(size)
                }
                None if kept < LAST_CHUNKS => {
                    walked.ranges.first().map_or(*chunk, |(start, _)| *start)
                }
                None => break,
            };
            walked.pins.push(Pin {
                address: Address(chunk.saturating_add(free_lists::HEADER)),
                bytes,
                cached: self.freed.has_cached(*chunk),
                drop_bytes: drop_from(below.min(*chunk)),
            });
        }
    }

    /// The break is moved by multiples of this.
    fn trim_unit(&self) -> u64 {
        let huge = self
            .standing
            .settings
            .and_then(|settings| settings.thp_page_bytes)
            .filter(|bytes| bytes.is_power_of_two());
        huge.unwrap_or(0).max(self.image.page_size())
    }
}
