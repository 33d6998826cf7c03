//! Compares what events tell with what `/proc/<pid>/maps` shows.
//!
//! Pages are compared by class, never area by area, because the kernel merges and splits its areas as it likes. Left
//! out is what changes without a call: stacks, which grow when touched, and the kernel's own mappings.

use super::regions::Kind;
use super::regions::Region;
use super::regions::Regions;
use super::regions::Span;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::units::Address;

/// What a page is, as far as both sides can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    Heap,
    Usable,
    Reserved,
    Other,
}

impl Class {
    /// The class in words, also of pages that are not mapped.
    pub(super) fn describe(class: Option<Self>) -> &'static str {
        match class {
            Some(Self::Heap) => "heap",
            Some(Self::Usable) => "anonymous memory",
            Some(Self::Reserved) => "anonymous memory without access",
            Some(Self::Other) => "a file or shared memory",
            None => "nothing",
        }
    }
}

/// A stretch of memory as `/proc` shows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Found {
    pub(super) region: Region,
    /// Its pages may be read and nothing else.
    read_only: bool,
    /// The kernel names it `[heap]`.
    named_heap: bool,
}

/// Pages about which the two sides disagree.
#[derive(Clone, Copy, Debug)]
pub(super) struct Deviation {
    pub(super) span: Span,
    pub(super) expected: Option<Class>,
    pub(super) found: Option<Found>,
}

impl Deviation {
    pub(super) fn found_class(&self) -> Option<Class> {
        class(self.found?.region.kind)
    }

    /// Whether it may be the break that is elsewhere.
    pub(super) fn concerns_the_break(&self) -> bool {
        self.expected == Some(Class::Heap) || self.found.is_some_and(|found| found.named_heap)
    }
}

/// The class of a kind; `None` for what is not compared.
fn class(kind: Kind) -> Option<Class> {
    match kind {
        Kind::Heap => Some(Class::Heap),
        Kind::Anonymous { usable: true, .. } => Some(Class::Usable),
        Kind::Anonymous { usable: false, .. } => Some(Class::Reserved),
        Kind::Other | Kind::Attachment { .. } => Some(Class::Other),
        Kind::Stack | Kind::Kernel => None,
    }
}

/// The mappings as regions that do not overlap, in order.
///
/// `heap` is where the heap should be, in whole pages. `maps` prints `[heap]` for every area that overlaps it
/// (`fs/proc/task_mmu.c`), merged neighbours included, so what lies outside is plain anonymous memory. Without it
/// the kernel's name is all there is to go by.
pub(super) fn found(mappings: &[Mapping], heap: Option<Span>) -> Vec<Found> {
    let mut sorted: Vec<&Mapping> = mappings.iter().collect();
    sorted.sort_by_key(|mapping| mapping.start);
    let mut all = Vec::with_capacity(sorted.len() + 2);
    let mut below = Address(0);
    for mapping in sorted {
        let span = Span {
            start: mapping.start.max(below),
            end: mapping.end,
        };
        if span.is_empty() {
            continue;
        }
        below = span.end;
        add_found(&mut all, mapping, span, heap);
    }
    all
}

fn add_found(all: &mut Vec<Found>, mapping: &Mapping, span: Span, heap: Option<Span>) {
    let named_heap = mapping.kind() == MappingKind::Heap;
    let mut add = |span, kind| {
        all.push(Found {
            region: Region { span, kind },
            read_only: mapping.permissions.read
                && !mapping.permissions.write
                && !mapping.permissions.execute,
            named_heap,
        });
    };
    let outside = Kind::anonymous(!mapping.permissions.is_none());
    match mapping.kind() {
        MappingKind::Heap | MappingKind::Anonymous => match heap {
            Some(heap) => split_by_heap(span, heap, outside, &mut add),
            None if named_heap => add(span, Kind::Heap),
            None => add(span, outside),
        },
        MappingKind::Stack => add(span, Kind::Stack),
        MappingKind::Kernel => add(span, Kind::Kernel),
        MappingKind::File => add(span, Kind::Other),
        MappingKind::Shared => add(span, shared(mapping)),
    }
}

/// System V segments are known by their name; the offset tells where a part's attachment begins (`shm_mmap` in
/// `ipc/shm.c`, and the search of shmdt(2) there).
fn shared(mapping: &Mapping) -> Kind {
    match &mapping.name {
        Some(name) if name.starts_with("/SYSV") => Kind::Attachment {
            base: mapping.start - mapping.offset,
        },
        _ => Kind::Other,
    }
}

/// Cuts a stretch of private anonymous memory into what lies within the heap and what lies around it.
fn split_by_heap(span: Span, heap: Span, outside: Kind, add: &mut impl FnMut(Span, Kind)) {
    let inside = span.within(heap);
    if inside.is_empty() {
        add(span, outside);
        return;
    }
    let parts = [
        (span.start, inside.start, outside),
        (inside.start, inside.end, Kind::Heap),
        (inside.end, span.end, outside),
    ];
    for (start, end, kind) in parts {
        if start < end {
            add(Span { start, end }, kind);
        }
    }
}

/// Where the two sides disagree, in order.
pub(super) fn compare(regions: &Regions, found: &[Found], heap: Option<Span>) -> Vec<Deviation> {
    let expected = expected(regions, heap);
    let exempt = exempt(regions, found);
    let mut edges: Vec<Address> = expected
        .iter()
        .map(|(span, _)| *span)
        .chain(found.iter().map(|found| found.region.span))
        .chain(exempt.iter().copied())
        .flat_map(|span| [span.start, span.end])
        .collect();
    edges.sort_unstable();
    edges.dedup();

    let mut expected = expected.into_iter().peekable();
    let mut all_found = found.iter().copied().peekable();
    let mut exempt = exempt.into_iter().peekable();
    let mut deviations: Vec<Deviation> = Vec::new();
    for edge in edges.windows(2) {
        let &[start, end] = edge else { continue };
        // All three lists are in order and free of overlaps, and no item has an edge between these two.
        while expected.next_if(|(span, _)| span.end <= start).is_some() {}
        while all_found
            .next_if(|found| found.region.span.end <= start)
            .is_some()
        {}
        while exempt.next_if(|span| span.end <= start).is_some() {}
        if exempt.peek().is_some_and(|span| span.start <= start) {
            continue;
        }
        let deviation = Deviation {
            span: Span { start, end },
            expected: expected
                .peek()
                .filter(|(span, _)| span.start <= start)
                .map(|(_, class)| *class),
            found: all_found
                .peek()
                .filter(|found| found.region.span.start <= start)
                .copied(),
        };
        if !agrees(&deviation) {
            push_merged(&mut deviations, deviation);
        }
    }
    deviations
}

fn agrees(deviation: &Deviation) -> bool {
    let found_class = deviation.found_class();
    deviation.expected == found_class
        // An mprotect(2) that makes pages merely readable is no event, so it may have opened what was closed.
        || (deviation.expected == Some(Class::Reserved)
            && found_class == Some(Class::Usable)
            && deviation.found.is_some_and(|found| found.read_only))
}

fn push_merged(deviations: &mut Vec<Deviation>, next: Deviation) {
    if let Some(last) = deviations.last_mut()
        && last.span.end == next.span.start
        && last.expected == next.expected
        && last
            .found
            .map(|found| (found.region.kind, found.named_heap))
            == next
                .found
                .map(|found| (found.region.kind, found.named_heap))
    {
        last.span.end = next.span.end;
    } else {
        deviations.push(next);
    }
}

/// The classes that events tell of, by place like those that are found: what was mapped over a part of the heap looks
/// like heap in `maps`.
fn expected(regions: &Regions, heap: Option<Span>) -> Vec<(Span, Class)> {
    let mut all = Vec::new();
    for region in regions.iter().filter(|region| !is_exempt(region.kind)) {
        match (region.kind, heap) {
            (Kind::Heap | Kind::Anonymous { .. }, Some(heap)) => {
                let outside = match region.kind {
                    Kind::Heap => Kind::USABLE,
                    kind => kind,
                };
                split_by_heap(region.span, heap, outside, &mut |span, kind| {
                    all.extend(class(kind).map(|class| (span, class)));
                });
            }
            (kind, _) => all.extend(class(kind).map(|class| (region.span, class))),
        }
    }
    all
}

fn is_exempt(kind: Kind) -> bool {
    kind.grows_by_itself() || kind == Kind::Kernel
}

/// What is not compared, merged and in order.
fn exempt(regions: &Regions, found: &[Found]) -> Vec<Span> {
    let mut spans: Vec<Span> = Vec::new();
    for region in regions.iter().filter(|region| is_exempt(region.kind)) {
        spans.push(region.span);
        if region.kind.grows_by_itself() {
            spans.extend(growth_below(regions, found, region.span));
        }
    }
    spans.extend(
        found
            .iter()
            .filter(|found| matches!(found.region.kind, Kind::Stack | Kind::Kernel))
            .map(|found| found.region.span),
    );
    spans.sort_by_key(|span| span.start);
    spans.dedup_by(|next, kept| {
        let touches = next.start <= kept.end;
        if touches {
            kept.end = kept.end.max(next.end);
        }
        touches
    });
    spans
}

/// What is found mapped directly below a stack, where events tell of nothing: the stack has grown.
fn growth_below(regions: &Regions, found: &[Found], stack: Span) -> Option<Span> {
    let index = found.partition_point(|found| found.region.span.end < stack.start);
    let below = found.get(index)?.region;
    let grown = Span {
        start: below.span.start.max(regions.end_below(stack.start)),
        end: stack.start,
    };
    (!grown.is_empty() && matches!(below.kind, Kind::Anonymous { .. } | Kind::Stack))
        .then_some(grown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping;

    const HEAP: Span = Span {
        start: Address(0x10000),
        end: Address(0x20000),
    };

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

    fn deviations(parts: &[(u64, u64, Kind)], maps: &str) -> Vec<(u64, u64, String)> {
        let found = found(&mapping::parse(maps.as_bytes()), Some(HEAP));
        compare(&regions(parts), &found, Some(HEAP))
            .iter()
            .map(|deviation| {
                (
                    deviation.span.start.0,
                    deviation.span.end.0,
                    format!(
                        "{}, not {}",
                        Class::describe(deviation.found_class()),
                        Class::describe(deviation.expected)
                    ),
                )
            })
            .collect()
    }

    fn agree(parts: &[(u64, u64, Kind)], maps: &str) {
        assert_eq!(deviations(parts, maps), []);
    }

    const GROWS_DOWN: Kind = Kind::Anonymous {
        usable: true,
        grows_down: true,
    };

    #[test]
    fn areas_may_be_split_and_merged_at_will() {
        agree(
            &[(0x40000, 0x50000, Kind::USABLE)],
            "40000-44000 rw-p 0 00:00 0\n44000-45000 r--p 0 00:00 0\n45000-50000 rw-p 0 00:00 0 [anon:x]",
        );
    }

    #[test]
    fn anonymous_memory_beside_the_heap_may_bear_its_name() {
        let parts = [
            (0x0e000, 0x10000, Kind::USABLE),
            (0x10000, 0x20000, Kind::Heap),
            (0x20000, 0x24000, Kind::USABLE),
        ];
        agree(&parts, "e000-24000 rw-p 0 00:00 0 [heap]");
    }

    #[test]
    fn memory_without_access_inside_the_heap_is_heap() {
        agree(
            &[(0x10000, 0x20000, Kind::Heap)],
            "10000-12000 rw-p 0 00:00 0 [heap]\n12000-13000 ---p 0 00:00 0 [heap]\n13000-20000 rw-p 0 00:00 0 [heap]",
        );
    }

    #[test]
    fn what_was_mapped_over_the_heap_looks_like_heap() {
        agree(
            &[
                (0x10000, 0x12000, Kind::Heap),
                (0x12000, 0x14000, Kind::USABLE),
                (0x14000, 0x20000, Kind::Heap),
            ],
            "10000-20000 rw-p 0 00:00 0 [heap]",
        );
    }

    #[test]
    fn stacks_may_grow_and_the_kernel_keeps_its_own() {
        agree(
            &[
                (0x60000, 0x64000, GROWS_DOWN),
                (0x7000_0000, 0x7002_0000, Kind::Stack),
            ],
            "5e000-64000 rw-p 0 00:00 0\n6fff0000-70020000 rw-p 0 00:00 0 [stack]\n\
             70100000-70104000 r--p 0 00:00 0 [vvar]\n70104000-70105000 r-xp 0 00:00 0 [vdso]",
        );
    }

    #[test]
    fn a_stack_cut_in_two_grows_at_its_lower_part() {
        agree(
            &[(0x7000_0000, 0x7002_0000, Kind::Stack)],
            "6fff0000-70001000 rw-p 0 00:00 0\n70001000-70002000 ---p 0 00:00 0\n70002000-70020000 rw-p 0 00:00 0 [stack]",
        );
    }

    #[test]
    fn memory_below_a_stack_is_no_excuse_for_a_lost_mapping() {
        assert_eq!(
            deviations(
                &[
                    (0x60000, 0x64000, GROWS_DOWN),
                    (0x5e000, 0x60000, Kind::USABLE)
                ],
                "60000-64000 rw-p 0 00:00 0",
            ),
            [(0x5e000, 0x60000, "nothing, not anonymous memory".into())]
        );
    }

    #[test]
    fn closed_memory_may_have_become_merely_readable_without_an_event() {
        let parts = [(0x40000, 0x42000, Kind::anonymous(false))];
        agree(&parts, "40000-42000 r--p 0 00:00 0");
        assert_eq!(
            deviations(&parts, "40000-42000 rw-p 0 00:00 0"),
            [(
                0x40000,
                0x42000,
                "anonymous memory, not anonymous memory without access".into()
            )]
        );
    }

    #[test]
    fn usable_memory_does_not_close_without_an_event() {
        assert_eq!(
            deviations(
                &[(0x40000, 0x42000, Kind::USABLE)],
                "40000-41000 rw-p 0 00:00 0\n41000-42000 ---p 0 00:00 0",
            )
            .len(),
            1
        );
    }

    #[test]
    fn a_written_private_file_stays_a_file() {
        agree(
            &[(0x40000, 0x42000, Kind::Other)],
            "40000-42000 rw-p 0 fe:01 17 /lib/x.so",
        );
    }

    #[test]
    fn each_sort_of_difference_is_found_where_it_is() {
        assert_eq!(
            deviations(
                &[
                    (0x10000, 0x20000, Kind::Heap),
                    (0x40000, 0x50000, Kind::USABLE),
                    (0x60000, 0x61000, Kind::Other),
                ],
                "10000-18000 rw-p 0 00:00 0 [heap]\n44000-50000 rw-p 0 00:00 0\n60000-62000 rw-p 0 00:00 0\n\
                 80000-81000 rw-s 0 00:01 5 /dev/shm/x",
            ),
            [
                (0x18000, 0x20000, "nothing, not heap".into()),
                (0x40000, 0x44000, "nothing, not anonymous memory".into()),
                (
                    0x60000,
                    0x61000,
                    "anonymous memory, not a file or shared memory".into()
                ),
                (0x61000, 0x62000, "anonymous memory, not nothing".into()),
                (
                    0x80000,
                    0x81000,
                    "a file or shared memory, not nothing".into()
                ),
            ]
        );
    }

    #[test]
    fn our_own_maps_agree_with_regions_made_of_them() {
        let mappings = mapping::read(std::process::id()).unwrap();
        let all = found(&mappings, None);
        let mut regions = Regions::default();
        for found in &all {
            regions.map(found.region.span, found.region.kind);
        }
        assert!(compare(&regions, &all, None).is_empty());
        assert!(regions.usable_bytes() > 0);
    }

    #[test]
    fn overlapping_and_inverted_lines_do_no_harm() {
        let maps = b"5000-9000 rw-p 0 00:00 0\n4000-6000 rw-p 0 00:00 0\n9000-8000 rw-p 0 00:00 0";
        let all = found(&mapping::parse(maps), Some(HEAP));
        assert_eq!(all.len(), 2);
        compare(&Regions::default(), &all, Some(HEAP));
    }
}
