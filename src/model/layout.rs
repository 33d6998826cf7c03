//! The address space as in the textbook picture, from the mappings of a snapshot.

use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::report::LayoutSegment;
use crate::report::SegmentKind;
use crate::units::Address;

/// Most segments of a picture.
const MOST_SEGMENTS: usize = 24;
/// Smaller holes are not drawn, in bytes.
const SMALLEST_GAP: u64 = 1 << 20;

/// Segments from bottom to top. `heap` is where it starts and where the break is.
pub(super) fn segments(
    mappings: &[Mapping],
    program: &str,
    heap: Option<(Address, Address)>,
) -> Vec<LayoutSegment> {
    let mut segments = Vec::new();
    let mut before: Option<&LayoutSegment> = None;
    let file = program_file(mappings, program);
    let mut named = Vec::new();
    for mapping in mappings {
        let segment = segment(mapping, file, before);
        named.push(segment);
        before = named.last();
    }
    if let Some((start, end)) = heap {
        place_heap(&mut named, start, end);
    }
    for segment in named {
        if let Some(gap) = segments
            .last()
            .and_then(|below: &LayoutSegment| gap(below, &segment))
        {
            segments.push(gap);
        }
        match segments.last_mut() {
            Some(last) if belongs_to(last, &segment) => absorb(last, &segment),
            _ => segments.push(segment),
        }
    }
    let in_the_middle = |segment: &LayoutSegment| {
        matches!(
            segment.kind,
            SegmentKind::Files | SegmentKind::Anonymous | SegmentKind::Shared
        )
    };
    // The ends of the picture are what people look for; they are merged only if nothing else helps.
    let segments = merge_nearest(segments, in_the_middle);
    merge_nearest(segments, |_| true)
}

/// The file that the program is in; the lowest one if it cannot be told, as after an upgrade.
fn program_file<'a>(mappings: &'a [Mapping], program: &'a str) -> Option<&'a str> {
    let mut files = mappings
        .iter()
        .filter(|mapping| mapping.kind() == MappingKind::File)
        .filter_map(|mapping| mapping.name.as_deref());
    if files.clone().any(|name| name == program) {
        Some(program)
    } else {
        files.next()
    }
}

fn segment(
    mapping: &Mapping,
    program: Option<&str>,
    before: Option<&LayoutSegment>,
) -> LayoutSegment {
    let is_program = mapping.name.is_some() && mapping.name.as_deref() == program;
    let follows_data = before.is_some_and(|before| {
        before.end == mapping.start && matches!(before.kind, SegmentKind::Data | SegmentKind::Bss)
    });
    let kind = match mapping.kind() {
        MappingKind::File if is_program && mapping.permissions.write => SegmentKind::Data,
        MappingKind::File if is_program => SegmentKind::Text,
        MappingKind::File => SegmentKind::Files,
        MappingKind::Anonymous if follows_data => SegmentKind::Bss,
        MappingKind::Anonymous => SegmentKind::Anonymous,
        MappingKind::Heap => SegmentKind::Heap,
        MappingKind::Stack => SegmentKind::Stack,
        MappingKind::Shared => SegmentKind::Shared,
        MappingKind::Kernel => SegmentKind::Kernel,
    };
    LayoutSegment {
        kind,
        start: mapping.start,
        end: mapping.end,
        bytes: mapping.bytes(),
        mappings: 1,
        name: mapping.name.clone().filter(|name| name.starts_with('/')),
    }
}

/// The heap reaches to the break, also where the kernel's area is rounded up to pages or merged with a neighbour.
fn place_heap(segments: &mut [LayoutSegment], start: Address, end: Address) {
    for segment in segments {
        if segment.kind == SegmentKind::Heap
            && segment.start <= end
            && end < segment.end
            && start <= segment.start
        {
            segment.end = end;
            segment.bytes = end.above(segment.start);
        }
    }
}

fn gap(below: &LayoutSegment, above: &LayoutSegment) -> Option<LayoutSegment> {
    let bytes = above.start.above(below.end);
    (bytes >= SMALLEST_GAP).then_some(LayoutSegment {
        kind: SegmentKind::Gap,
        start: below.end,
        end: above.start,
        bytes,
        mappings: 0,
        name: None,
    })
}

fn belongs_to(last: &LayoutSegment, next: &LayoutSegment) -> bool {
    last.kind == next.kind
}

fn absorb(last: &mut LayoutSegment, next: &LayoutSegment) {
    last.end = last.end.max(next.end);
    last.bytes = last.bytes.saturating_add(next.bytes);
    last.mappings += next.mappings;
    if last.name != next.name {
        last.name = None;
    }
}

/// Merges those neighbours, of the segments that `may_merge`, which are closest to each other, until there are few
/// enough; gaps between them go.
fn merge_nearest(
    segments: Vec<LayoutSegment>,
    may_merge: impl Fn(&LayoutSegment) -> bool,
) -> Vec<LayoutSegment> {
    let excess = segments.len().saturating_sub(MOST_SEGMENTS);
    if excess == 0 {
        return segments;
    }
    let is_part = |segment: &LayoutSegment| segment.kind != SegmentKind::Gap && may_merge(segment);
    let mut pairs: Vec<(u64, usize)> = (0..segments.len())
        .filter(|&index| is_part(&segments[index]))
        .filter_map(|index| {
            let above = neighbour_above(&segments, index).filter(|above| is_part(above))?;
            Some((above.start.above(segments[index].end), index))
        })
        .collect();
    pairs.sort_unstable();
    // Each merge takes away one segment at least, and most of them a gap as well.
    let mut joins_next = vec![false; segments.len()];
    let mut left = excess;
    for (_, index) in pairs {
        if left == 0 {
            break;
        }
        let with_gap = segments
            .get(index + 1)
            .is_some_and(|next| next.kind == SegmentKind::Gap);
        left = left.saturating_sub(if with_gap { 2 } else { 1 });
        joins_next[index] = true;
    }
    let mut merged: Vec<LayoutSegment> = Vec::with_capacity(MOST_SEGMENTS);
    let mut joins = false;
    for (segment, joins_its_next) in segments.into_iter().zip(joins_next) {
        if joins && segment.kind == SegmentKind::Gap {
            continue;
        }
        match merged.last_mut() {
            Some(last) if joins => {
                if segment.bytes > last.bytes {
                    last.kind = segment.kind;
                }
                absorb(last, &segment);
            }
            _ => merged.push(segment),
        }
        joins = joins_its_next;
    }
    merged
}

/// The next segment that is no gap, if there is at most one gap in between.
fn neighbour_above(segments: &[LayoutSegment], index: usize) -> Option<&LayoutSegment> {
    let next = segments.get(index + 1)?;
    if next.kind == SegmentKind::Gap {
        segments.get(index + 2)
    } else {
        Some(next)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping;

    #[test]
    fn the_textbook_picture_comes_from_the_maps() {
        let maps = mapping::parse(
            b"400000-401000 r--p 00000000 fe:01 5 /bin/main\n\
              401000-402000 r-xp 00001000 fe:01 5 /bin/main\n\
              403000-404000 rw-p 00002000 fe:01 5 /bin/main\n\
              404000-406000 rw-p 00000000 00:00 0 \n\
              1a00000-1a21000 rw-p 00000000 00:00 0 [heap]\n\
              7f0000000000-7f0000100000 r-xp 00000000 fe:01 6 /lib/libc.so\n\
              7f0000100000-7f0000104000 rw-p 00000000 00:00 0 \n\
              7ffd00000000-7ffd00021000 rw-p 00000000 00:00 0 [stack]\n\
              7ffd00100000-7ffd00102000 r-xp 00000000 00:00 0 [vdso]\n",
        );
        let heap = Some((Address(0x1a0_0000), Address(0x1a2_0800)));
        let kinds: Vec<_> = segments(&maps, "/bin/main", heap)
            .iter()
            .map(|s| (s.kind, s.bytes))
            .collect();
        use SegmentKind::{Anonymous, Bss, Data, Files, Gap, Heap, Kernel, Stack, Text};
        assert_eq!(
            kinds.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            [
                Text, Data, Bss, Gap, Heap, Gap, Files, Anonymous, Gap, Stack, Kernel
            ]
        );
        assert_eq!(kinds[4], (Heap, 0x20800));
        assert_eq!(kinds[5].1, 0x7f00_0000_0000 - 0x1a2_0800);
    }

    #[test]
    fn a_thousand_mappings_make_a_small_picture() {
        let mut text = String::new();
        for index in 0..1000_u64 {
            let start = 0x7f00_0000_0000 + index * 0x40_0000;
            let tail = if index % 2 == 0 { "0 " } else { "7 /lib/x.so" };
            text.push_str(&format!(
                "{start:x}-{:x} rw-p 00000000 00:00 {tail}\n",
                start + 0x1000
            ));
        }
        let picture = segments(&mapping::parse(text.as_bytes()), "/bin/main", None);
        assert!(picture.len() <= MOST_SEGMENTS, "{}", picture.len());
        assert_eq!(
            picture.iter().map(|segment| segment.mappings).sum::<u64>(),
            1000
        );
    }

    #[test]
    fn nothing_mapped_is_an_empty_picture() {
        assert_eq!(segments(&[], "/bin/main", None), []);
    }
}
