//! The main arena: at the break, over what others took from it, and where brk was refused in mappings.

use super::arena;
use super::arena::ArenaState;
use super::arena::SMALLEST_CHUNK;
use super::examine::Examiner;
use super::examine::Walked;
use super::examine::swapped_out;
use super::pages::Residence;
use super::sums::add;
use super::sums::bytes_of;
use super::walk;
use super::walk::Effort;
use super::walk::End;
use crate::mapping::MappingKind;

/// Most stretches of the main arena.
const MOST_STRETCHES: usize = 65_536;

impl Examiner<'_> {
    /// The main arena: from the start of the heap to its top, over what others took from the break; and what it mapped where
    /// the break could not go on.
    pub(super) fn main_arena(&self, state: &ArenaState) -> Walked {
        let mut walked = Self::new_walk(state);
        if state.top == 0 {
            return walked;
        }
        let effort = Effort::new(self.in_vain);
        let heap = self.heap_mapping();
        let base = self
            .standing
            .break_base
            .filter(|base| self.may_begin_at(*base, heap, state))
            .or(heap.map(|(start, _)| start));
        let mut reached_top = false;
        if let Some(base) = base {
            let top_is_in_heap = (base..=heap.map_or(u64::MAX, |(_, end)| end))
                .contains(&state.top)
                && heap.is_none_or(|(_, end)| state.top < end);
            let end = if top_is_in_heap {
                state.end()
            } else {
                heap.map_or(base, |(_, end)| end)
            };
            if base < end {
                reached_top = self.pieces(&mut walked, base, end, &effort);
                walked.ranges.push((base, end));
            }
        }
        if !reached_top || walked.covered < state.system_bytes {
            self.mapped_segments(&mut walked, reached_top, &effort);
        }
        if effort.is_spent() {
            walked.problem.get_or_insert_with(|| self.given_up());
        }
        self.describe_top(&mut walked);
        walked
    }

    /// Whether the heap may begin where malloc's parameters say: in the mapping below the break, or, if that is not known by its
    /// name, in the same memory as the top.
    fn may_begin_at(&self, base: u64, heap: Option<(u64, u64)>, state: &ArenaState) -> bool {
        let is_in_heap = heap.is_some_and(|(start, end)| (start..=end).contains(&base));
        let leads_to_top = || {
            base <= state.top
                && arena::end_of_writable(self.image, base).is_some_and(|end| state.end() <= end)
        };
        is_in_heap || leads_to_top()
    }

    /// The mapping below the program break.
    pub(super) fn heap_mapping(&self) -> Option<(u64, u64)> {
        let mappings = self.image.mappings();
        let mut heap = mappings
            .iter()
            .filter(|mapping| mapping.kind() == MappingKind::Heap);
        let first = heap.next()?;
        // Pages with other protections divide it.
        let last = heap.next_back().unwrap_or(first);
        Some((first.start.0, last.end.0))
    }

    /// Walks from chunk to chunk from `base` on, over what is not malloc's; returns whether the top was reached.
    fn pieces(&self, walked: &mut Walked, base: u64, end: u64, effort: &Effort) -> bool {
        let Some(mut at) = base.checked_next_multiple_of(arena::CHUNK_ALIGNMENT) else {
            return false;
        };
        walked.covered = walked.covered.saturating_add(at - base);
        for _ in 0..MOST_STRETCHES {
            let stretch = self.stretch(&walked.state, at, end);
            let (found, how) = walk::walk(self.image, stretch, self.freed);
            walked.segments += 1;
            let walked_bytes = bytes_of(&found, &walked.state, how == End::Top);
            walked.covered = walked.covered.saturating_add(walked_bytes);
            add(&mut walked.found, &found);
            let resume = match how {
                End::Top => return true,
                End::Fence(behind) if behind >= end => return false,
                End::Fence(behind) => {
                    walk::find_chunks(self.image, behind, stretch, effort).inspect(|next| {
                        // What somebody else took counts as the arena's own.
                        walked.covered = walked.covered.saturating_add(next.saturating_sub(behind));
                    })
                }
                End::Swapped(to) => {
                    let next = walk::find_chunks(self.image, to, stretch, effort);
                    let lost_from = at.saturating_add(walked_bytes);
                    if let Some(next) = next {
                        walked
                            .problem
                            .get_or_insert_with(|| swapped_out(next.saturating_sub(lost_from)));
                    }
                    next
                }
                End::Broken { at, why } => {
                    walked
                        .problem
                        .get_or_insert_with(|| format!("the chunk at {at:#x} is none: {why}"));
                    return false;
                }
            };
            match resume {
                Some(next) => at = next,
                None => return false,
            }
        }
        walked.problem = Some(format!("it has more than {MOST_STRETCHES} pieces"));
        false
    }

    /// Looks for what the main arena mapped, as brk was refused: page by page, for chunks that lead to an end.
    fn mapped_segments(&self, walked: &mut Walked, has_top: bool, effort: &Effort) {
        let mut has_top = has_top;
        let heaps_of_others = self.other_heaps();
        let mut known = walked.ranges.clone();
        known.extend(heaps_of_others);
        let known = joined(known);
        for mapping in self.image.mappings() {
            if has_top && walked.covered >= walked.state.system_bytes {
                return;
            }
            let is_candidate = matches!(mapping.kind(), MappingKind::Anonymous | MappingKind::Heap)
                && mapping.permissions.read
                && mapping.permissions.write;
            if !is_candidate {
                continue;
            }
            let mut at = mapping.start.0;
            let end = mapping.end.0;
            let mut residence = Residence::new(self.image, at, end);
            while at < end {
                let index = known.partition_point(|(_, to)| *to <= at);
                if let Some((_, to)) = known.get(index).filter(|(from, _)| *from <= at) {
                    at = *to;
                    continue;
                }
                if effort.is_spent() {
                    return;
                }
                at = self.mapped_segment(walked, &mut residence, (at, end), &mut has_top, effort);
            }
        }
    }

    /// A stretch of the main arena that begins at this page, if one does; returns where to look next.
    fn mapped_segment(
        &self,
        walked: &mut Walked,
        residence: &mut Residence<'_>,
        (at, end): (u64, u64),
        has_top: &mut bool,
        effort: &Effort,
    ) -> u64 {
        let next_page = at.saturating_add(self.image.page_size());
        let (place, to) = residence.place(at);
        if place != super::pages::Place::Resident {
            return to.max(next_page);
        }
        let Some(size) = self.image.word(at.saturating_add(8)) else {
            return next_page;
        };
        let bytes = size & !arena::SIZE_FLAGS;
        if size & arena::SIZE_FLAGS != arena::PREVIOUS_IN_USE
            || bytes < SMALLEST_CHUNK
            || bytes > end - at
        {
            return next_page;
        }
        let holds_top = (at..end).contains(&walked.state.top);
        let stretch_end = if holds_top {
            walked.state.end().min(end)
        } else {
            end
        };
        let stretch = self.stretch(&walked.state, at, stretch_end);
        let (found, how) = walk::walk(self.image, stretch, self.freed);
        let behind = match how {
            End::Top => walked.state.end(),
            End::Fence(behind) => behind,
            End::Swapped(_) | End::Broken { .. } => {
                effort.spend(found.read_bytes);
                return next_page;
            }
        };
        let is_top = how == End::Top;
        *has_top |= is_top;
        walked.segments += 1;
        // A mapping is whole pages; what the fence leaves of the last one is its own as well.
        let whole = behind
            .checked_next_multiple_of(self.image.page_size())
            .unwrap_or(end);
        walked.covered = walked
            .covered
            .saturating_add(whole.min(end).saturating_sub(at));
        walked.ranges.push((at, whole.min(end)));
        add(&mut walked.found, &found);
        whole.max(next_page)
    }

    fn given_up(&self) -> String {
        format!(
            "the search for where the main arena goes on was given up after {} bytes that led nowhere",
            self.in_vain
        )
    }
}

/// Ranges in order, joined where they overlap.
fn joined(mut ranges: Vec<(u64, u64)>) -> Vec<(u64, u64)> {
    ranges.sort_unstable();
    let mut joined: Vec<(u64, u64)> = Vec::with_capacity(ranges.len());
    for (from, to) in ranges {
        match joined.last_mut() {
            Some((_, end)) if *end >= from => *end = to.max(*end),
            _ => joined.push((from, to)),
        }
    }
    joined
}
