//! What the events add up to, compared with what `/proc/<pid>/maps` shows.
//!
//! Compared is what each page is, not how the kernel divides it into areas, which it merges and splits as it likes.

use super::regions::Kind;
use super::regions::Regions;
use super::regions::Span;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::report::Difference;
use crate::units::Address;
use crate::units::Timestamp;

/// What a page is, as far as a comparison goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Nothing,
    Heap,
    Usable,
    Reserved,
    File,
    /// Grows by itself, or is the kernel's own: no event tells of it.
    Exempt,
}

impl Class {
    fn of(kind: Kind) -> Self {
        if kind.grows_by_itself() {
            return Self::Exempt;
        }
        match kind {
            Kind::Heap => Self::Heap,
            Kind::Anonymous { usable: true, .. } => Self::Usable,
            Kind::Anonymous { usable: false, .. } => Self::Reserved,
            Kind::Other | Kind::Attachment { .. } => Self::File,
            Kind::Stack | Kind::Kernel => Self::Exempt,
        }
    }

    fn agrees_with(self, other: Self) -> bool {
        self == other || self == Self::Exempt || other == Self::Exempt
    }

    fn words(self) -> &'static str {
        match self {
            Self::Nothing => "nothing",
            Self::Heap => "heap",
            Self::Usable => "anonymous memory",
            Self::Reserved => "reserved address space",
            Self::File => "a file or shared memory",
            Self::Exempt => "the kernel's own",
        }
    }
}

/// A stretch that `/proc` shows otherwise than the events tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Differing {
    span: Span,
    expected: Class,
    found: Class,
}

impl Differing {
    /// In words.
    pub(super) fn tell(self, time: Timestamp) -> Difference {
        Difference {
            time_ns: time,
            start: self.span.start,
            end: self.span.end,
            expected: self.expected.words().to_owned(),
            found: self.found.words().to_owned(),
        }
    }
}

/// What the parts of a mapping are. `[heap]` in the maps names any area that touches the heap, also where it reaches
/// beyond because the kernel merged it with a neighbour (fs/proc/task_mmu.c): that part is anonymous memory.
pub(super) fn pieces(mapping: &Mapping, heap: Option<Span>) -> Vec<(Span, Kind)> {
    let span = Span {
        start: mapping.start,
        end: mapping.end,
    };
    let anonymous = Kind::anonymous(!mapping.permissions.is_none());
    let kind = match mapping.kind() {
        MappingKind::Heap => Kind::Heap,
        MappingKind::Anonymous => anonymous,
        MappingKind::Stack => Kind::Stack,
        MappingKind::File | MappingKind::Shared => Kind::Other,
        MappingKind::Kernel => Kind::Kernel,
    };
    let Some(heap) = heap.filter(|_| kind == Kind::Heap) else {
        return vec![(span, kind)];
    };
    let below = Span {
        start: span.start,
        end: span.end.min(heap.start),
    };
    let above = Span {
        start: span.start.max(heap.end),
        end: span.end,
    };
    [
        (below, anonymous),
        (span.within(heap), Kind::Heap),
        (above, anonymous),
    ]
    .into_iter()
    .filter(|(span, _)| !span.is_empty())
    .collect()
}

/// Where the two differ, from bottom to top.
pub(super) fn differences(
    regions: &Regions,
    mappings: &[Mapping],
    heap: Option<Span>,
) -> Vec<Differing> {
    let expected: Vec<(Span, Class)> = regions
        .iter()
        .map(|region| (region.span, Class::of(region.kind)))
        .collect();
    let growing: Vec<Span> = regions
        .iter()
        .filter(|region| region.kind.grows_by_itself())
        .map(|region| region.span)
        .collect();
    let found: Vec<(Span, Class)> = mappings
        .iter()
        .flat_map(|mapping| pieces(mapping, heap))
        .map(|(span, kind)| {
            let grew = growing.iter().any(|region| !region.within(span).is_empty());
            (span, if grew { Class::Exempt } else { Class::of(kind) })
        })
        .collect();
    sweep(&expected, &found)
}

/// Walks two sorted lists of stretches and collects where their classes disagree.
fn sweep(expected: &[(Span, Class)], found: &[(Span, Class)]) -> Vec<Differing> {
    let mut differences: Vec<Differing> = Vec::new();
    let (mut expected, mut found) = (Cursor::new(expected), Cursor::new(found));
    let mut at = Address(0);
    while let Some(next) = expected
        .next_edge(at)
        .into_iter()
        .chain(found.next_edge(at))
        .min()
    {
        let (should_be, is) = (expected.class(at), found.class(at));
        if !should_be.agrees_with(is) {
            match differences.last_mut() {
                Some(last)
                    if last.span.end == at && last.expected == should_be && last.found == is =>
                {
                    last.span.end = next;
                }
                _ => differences.push(Differing {
                    span: Span {
                        start: at,
                        end: next,
                    },
                    expected: should_be,
                    found: is,
                }),
            }
        }
        at = next;
    }
    differences
}

/// A place in a sorted list of stretches, which only moves up.
struct Cursor<'a> {
    rest: &'a [(Span, Class)],
}

impl<'a> Cursor<'a> {
    fn new(rest: &'a [(Span, Class)]) -> Self {
        Self { rest }
    }

    /// The first address above `at` where something begins or ends.
    fn next_edge(&mut self, at: Address) -> Option<Address> {
        while let [(span, _), rest @ ..] = self.rest
            && span.end <= at
        {
            self.rest = rest;
        }
        let (span, _) = self.rest.first()?;
        Some(if span.start > at {
            span.start
        } else {
            span.end
        })
    }

    fn class(&self, at: Address) -> Class {
        match self.rest.first() {
            Some((span, class)) if span.start <= at && at < span.end => *class,
            _ => Class::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping;

    fn span(start: u64, end: u64) -> Span {
        Span {
            start: Address(start),
            end: Address(end),
        }
    }

    fn regions(parts: &[(u64, u64, Kind)]) -> Regions {
        let mut regions = Regions::default();
        for &(start, end, kind) in parts {
            regions.map(span(start, end), kind);
        }
        regions
    }

    #[test]
    fn the_kernels_merging_and_splitting_is_no_difference() {
        let model = regions(&[
            (0x1000, 0x5000, Kind::USABLE),
            (0x8000, 0x9000, Kind::Other),
        ]);
        let maps = b"1000-2000 rw-p 00000000 00:00 0\n2000-5000 r--p 00000000 00:00 0\n8000-9000 r-xp 00000000 fe:01 9 /bin/x\n";
        assert_eq!(differences(&model, &mapping::parse(maps), None), []);
    }

    #[test]
    fn what_is_missing_and_what_is_unexpected_are_told_apart() {
        let model = regions(&[(0x1000, 0x3000, Kind::USABLE)]);
        let maps = b"2000-3000 rw-p 00000000 00:00 0\n7000-8000 ---p 00000000 00:00 0\n";
        let found = differences(&model, &mapping::parse(maps), None);
        assert_eq!(
            found,
            [
                Differing {
                    span: span(0x1000, 0x2000),
                    expected: Class::Usable,
                    found: Class::Nothing,
                },
                Differing {
                    span: span(0x7000, 0x8000),
                    expected: Class::Nothing,
                    found: Class::Reserved,
                },
            ]
        );
    }

    #[test]
    fn a_stack_that_grew_and_the_kernels_own_are_exempt() {
        let model = regions(&[(0x7000, 0x8000, Kind::Stack)]);
        let maps =
            b"5000-8000 rw-p 00000000 00:00 0 [stack]\n9000-a000 r-xp 00000000 00:00 0 [vdso]\n";
        assert_eq!(differences(&model, &mapping::parse(maps), None), []);
    }

    #[test]
    fn a_heap_merged_with_its_neighbour_is_two_things() {
        let model = regions(&[(0x1000, 0x3000, Kind::Heap), (0x3000, 0x4000, Kind::USABLE)]);
        let maps = mapping::parse(b"1000-4000 rw-p 00000000 00:00 0 [heap]\n");
        assert_eq!(differences(&model, &maps, Some(span(0x1000, 0x3000))), []);
    }
}
