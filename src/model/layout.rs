//! The address space as in the textbook picture: text, data, bss, heap, gap, mappings, stack.

use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::report::LayoutMoment;
use crate::report::LayoutSegment;
use crate::report::SegmentKind;
use crate::units::Address;
use crate::units::Timestamp;

/// Earlier pictures that are kept.
const MOST_EARLIER: usize = 16;

/// Most segments in a picture.
const MOST_SEGMENTS: usize = 24;

/// Smallest gap that is shown, except for the one above the heap, which always is.
const SMALLEST_GAP: u64 = 1 << 20;

/// From here on addresses are the kernel's, on every 64-bit architecture; `[vsyscall]` lies there.
const KERNEL_HALF: Address = Address(1 << 63);

/// The pictures of an address space over time: the latest, and some before it.
#[derive(Debug, Default)]
pub(super) struct Layouts {
    moments: Vec<LayoutMoment>,
    /// Pictures that came, and how often those kept were halved: of 2ⁿ that come, one stays.
    came: u64,
    halved: u32,
    /// The latest is one that stays.
    latest_stays: bool,
    /// The latest is that of the end: later snapshots do not replace it.
    is_final: bool,
}

impl Layouts {
    /// Whether one more is of interest.
    pub(super) fn wants(&self, is_end: bool) -> bool {
        is_end || !self.is_final
    }

    pub(super) fn push(&mut self, time: Timestamp, segments: Vec<LayoutSegment>, is_end: bool) {
        self.is_final = is_end;
        if let Some(latest) = self.moments.last_mut() {
            if latest.segments == segments {
                return;
            }
            // The latest gives way, unless it is one to be kept.
            if !self.latest_stays {
                self.moments.pop();
            }
        }
        self.moments.push(LayoutMoment {
            time_ns: time,
            segments,
        });
        let number = self.came;
        self.came += 1;
        if self.moments.len() > MOST_EARLIER + 1 {
            // Every second of them goes; the first and the latest stay.
            let latest = self.moments.len() - 1;
            let mut places = 0..;
            self.moments.retain(|_| {
                let place = places.next().unwrap_or(latest);
                place % 2 == 0 || place == latest
            });
            self.halved += 1;
        }
        self.latest_stays = number.trailing_zeros() >= self.halved;
    }

    /// The latest; empty when there was none.
    pub(super) fn last(&self) -> Vec<LayoutSegment> {
        self.moments
            .last()
            .map_or_else(Vec::new, |moment| moment.segments.clone())
    }

    /// When that was.
    pub(super) fn last_time(&self) -> Option<Timestamp> {
        self.moments.last().map(|moment| moment.time_ns)
    }

    /// Those before it.
    pub(super) fn earlier(&self) -> Vec<LayoutMoment> {
        let earlier = self.moments.split_last();
        earlier.map_or_else(Vec::new, |(_, earlier)| earlier.to_vec())
    }
}

/// What a picture is drawn from.
pub(super) struct Source<'a> {
    pub(super) mappings: &'a [Mapping],
    /// Path of the program, as far as known.
    pub(super) program: &'a str,
    /// Where the heap starts; `None` when not known.
    pub(super) heap_start: Option<Address>,
    /// The program break; `None` when not known.
    pub(super) heap_end: Option<Address>,
    pub(super) page_size: u64,
}

/// Draws the picture, from bottom to top.
pub(super) fn draw(source: &Source<'_>) -> Vec<LayoutSegment> {
    let mut segments = join_alike(classify(source));
    simplify(&mut segments, source.page_size);
    with_gaps(segments, source.page_size)
}

/// Where the classification has come to on its way up.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Place {
    BelowProgram,
    Program,
    AboveProgram,
}

/// Each mapping as one segment, or as several where the heap's ends cut it.
fn classify(source: &Source<'_>) -> Vec<LayoutSegment> {
    let mut sorted: Vec<&Mapping> = source.mappings.iter().collect();
    sorted.sort_by_key(|mapping| mapping.start);
    let program = program_file(&sorted, source.program);
    let mut segments = Vec::with_capacity(sorted.len() + 2);
    let mut below = Address(0);
    let mut place = Place::BelowProgram;
    for mapping in sorted {
        let (start, end) = (mapping.start.max(below), mapping.end);
        if start >= end {
            continue;
        }
        below = end;
        for (kind, start, end) in parts(source, mapping, start, end) {
            let kind = match kind {
                SegmentKind::Files if place != Place::AboveProgram && is_file(mapping, program) => {
                    program_part(mapping)
                }
                SegmentKind::Anonymous if place == Place::Program => {
                    beside_program(&segments, start, mapping)
                }
                other => other,
            };
            place = match place {
                _ if is_program(kind) => Place::Program,
                Place::BelowProgram => Place::BelowProgram,
                // Its file may be mapped again as data further up.
                Place::Program | Place::AboveProgram => Place::AboveProgram,
            };
            segments.push(LayoutSegment {
                kind,
                start,
                end,
                bytes: end.above(start),
                mappings: 1,
                name: matches!(mapping.kind(), MappingKind::File | MappingKind::Shared)
                    .then(|| mapping.name.clone())
                    .flatten(),
            });
        }
    }
    segments
}

/// The name of the program's file among the mappings: the path it was executed by, or else the lowest file.
fn program_file<'a>(mappings: &[&'a Mapping], program: &str) -> Option<&'a str> {
    let mut files = mappings
        .iter()
        .filter(|mapping| mapping.kind() == MappingKind::File)
        .filter_map(|mapping| mapping.name.as_deref());
    let lowest = files.clone().next();
    files
        .find(|name| name.strip_suffix(" (deleted)").unwrap_or(name) == program)
        .or(lowest)
}

/// The kind of a mapping by itself, cut where the heap begins and ends.
fn parts(
    source: &Source<'_>,
    mapping: &Mapping,
    start: Address,
    end: Address,
) -> Vec<(SegmentKind, Address, Address)> {
    let plain = match mapping.kind() {
        MappingKind::Heap | MappingKind::Anonymous => SegmentKind::Anonymous,
        MappingKind::Stack => SegmentKind::Stack,
        MappingKind::File => SegmentKind::Files,
        MappingKind::Shared => SegmentKind::Shared,
        MappingKind::Kernel => SegmentKind::Kernel,
    };
    if plain != SegmentKind::Anonymous {
        return vec![(plain, start, end)];
    }
    let (Some(heap_start), Some(heap_end)) = (source.heap_start, source.heap_end) else {
        let by_name = match mapping.kind() {
            MappingKind::Heap => SegmentKind::Heap,
            _ => plain,
        };
        return vec![(by_name, start, end)];
    };
    let inner_start = start.max(heap_start);
    // The rest of the page that holds the break is nobody's: the heap ends at the break itself.
    let inner_end = end.min(heap_end);
    let above = heap_end.page_up(source.page_size).max(start);
    if inner_start >= inner_end {
        return vec![(plain, start, end)];
    }
    [
        (plain, start, inner_start),
        (SegmentKind::Heap, inner_start, inner_end),
        (plain, above, end),
    ]
    .into_iter()
    .filter(|(_, start, end)| start < end)
    .collect()
}

fn is_file(mapping: &Mapping, file: Option<&str>) -> bool {
    file.is_some() && mapping.name.as_deref() == file
}

fn program_part(mapping: &Mapping) -> SegmentKind {
    if mapping.permissions.write {
        SegmentKind::Data
    } else {
        SegmentKind::Text
    }
}

/// Anonymous memory directly above the program's data holds what is zero at first: the part of bss that does not fit
/// into the data's last page. Above its text it is either that, too, or padding without access.
fn beside_program(segments: &[LayoutSegment], start: Address, mapping: &Mapping) -> SegmentKind {
    match segments.last() {
        Some(below) if below.end == start && is_program(below.kind) => {
            if below.kind == SegmentKind::Text && mapping.permissions.is_none() {
                SegmentKind::Text
            } else {
                SegmentKind::Bss
            }
        }
        _ => SegmentKind::Anonymous,
    }
}

fn is_program(kind: SegmentKind) -> bool {
    matches!(
        kind,
        SegmentKind::Text | SegmentKind::Data | SegmentKind::Bss
    )
}

/// Makes one segment of neighbours of the same kind that no gap worth showing parts.
fn join_alike(segments: Vec<LayoutSegment>) -> Vec<LayoutSegment> {
    let mut joined: Vec<LayoutSegment> = Vec::with_capacity(segments.len());
    for segment in segments {
        match joined.last_mut() {
            Some(last) if last.kind == segment.kind && distance(last, &segment) < SMALLEST_GAP => {
                absorb(last, segment);
            }
            _ => joined.push(segment),
        }
    }
    joined
}

fn distance(below: &LayoutSegment, above: &LayoutSegment) -> u64 {
    above.start.above(below.end)
}

/// Extends a segment over its upper neighbour. The larger one decides what the whole is.
fn absorb(lower: &mut LayoutSegment, upper: LayoutSegment) {
    if lower.kind == upper.kind {
        if lower.name != upper.name {
            lower.name = None;
        }
    } else if upper.bytes > lower.bytes {
        lower.kind = upper.kind;
        lower.name = upper.name;
    }
    lower.end = upper.end;
    lower.bytes += upper.bytes;
    lower.mappings += upper.mappings;
}

/// The segment above which the textbook's gap opens: the heap, or the program's last part where there is no heap.
fn index_below_gap(segments: &[LayoutSegment]) -> Option<usize> {
    segments
        .iter()
        .rposition(|segment| segment.kind == SegmentKind::Heap)
        .or_else(|| {
            segments
                .iter()
                .rposition(|segment| is_program(segment.kind))
        })
}

/// Merges neighbours, those closest to each other first, until the picture with its gaps is small enough. At first
/// only what lies in the mapping area; a hostile picture may need more.
fn simplify(segments: &mut Vec<LayoutSegment>, page_size: u64) {
    for mergeable in [is_mapping_area, any_kind] {
        thin_out(segments, mergeable);
        while segments.len() + gaps(segments, page_size).count() > MOST_SEGMENTS {
            let Some(index) = closest_pair(segments, mergeable) else {
                break;
            };
            let upper = segments.remove(index + 1);
            absorb(&mut segments[index], upper);
            join_around(segments, index);
        }
    }
}

fn is_mapping_area(kind: SegmentKind) -> bool {
    matches!(
        kind,
        SegmentKind::Files | SegmentKind::Anonymous | SegmentKind::Shared
    )
}

fn any_kind(_: SegmentKind) -> bool {
    true
}

/// Brings a very long list down to a length that can be searched again and again, merging within ever larger
/// distances.
fn thin_out(segments: &mut Vec<LayoutSegment>, mergeable: fn(SegmentKind) -> bool) {
    const SEARCHABLE: usize = 512;
    let mut reach = 0_u64;
    while segments.len() > SEARCHABLE {
        segments.dedup_by(|upper, lower| {
            let merge =
                mergeable(lower.kind) && mergeable(upper.kind) && distance(lower, upper) <= reach;
            if merge {
                absorb(lower, upper.clone());
            }
            merge
        });
        if reach == u64::MAX {
            return;
        }
        reach = reach.saturating_mul(2).max(4096);
    }
}

fn closest_pair(segments: &[LayoutSegment], mergeable: fn(SegmentKind) -> bool) -> Option<usize> {
    (0..segments.len().saturating_sub(1))
        .filter(|&index| mergeable(segments[index].kind) && mergeable(segments[index + 1].kind))
        .min_by_key(|&index| {
            let (lower, upper) = (&segments[index], &segments[index + 1]);
            (
                distance(lower, upper),
                lower.bytes.saturating_add(upper.bytes),
            )
        })
}

/// A merged segment may now be of the same kind as its neighbours.
fn join_around(segments: &mut Vec<LayoutSegment>, index: usize) {
    for lower in [index, index.wrapping_sub(1)] {
        if let Some(pair) = segments.get(lower..lower.saturating_add(2))
            && pair[0].kind == pair[1].kind
            && distance(&pair[0], &pair[1]) < SMALLEST_GAP
        {
            let upper = segments.remove(lower + 1);
            absorb(&mut segments[lower], upper);
        }
    }
}

/// The gaps that are shown, each with the index of the segment above it.
fn gaps(
    segments: &[LayoutSegment],
    page_size: u64,
) -> impl Iterator<Item = (usize, LayoutSegment)> {
    let below_gap = index_below_gap(segments);
    segments
        .windows(2)
        .enumerate()
        .filter_map(move |(index, pair)| {
            let (start, end) = (pair[0].end, pair[1].start);
            let bytes = end.above(start);
            let shown = bytes >= SMALLEST_GAP || (bytes >= page_size && below_gap == Some(index));
            (shown && end < KERNEL_HALF).then_some((
                index + 1,
                LayoutSegment {
                    kind: SegmentKind::Gap,
                    start,
                    end,
                    bytes,
                    mappings: 0,
                    name: None,
                },
            ))
        })
}

fn with_gaps(segments: Vec<LayoutSegment>, page_size: u64) -> Vec<LayoutSegment> {
    let mut gaps = gaps(&segments, page_size)
        .collect::<Vec<_>>()
        .into_iter()
        .peekable();
    let mut picture = Vec::with_capacity(MOST_SEGMENTS);
    for (index, segment) in segments.into_iter().enumerate() {
        picture.extend(
            gaps.next_if(|(above, _)| *above == index)
                .map(|(_, gap)| gap),
        );
        picture.push(segment);
    }
    picture
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mapping;

    #[test]
    fn of_many_pictures_some_stay_spread_over_time_and_the_latest_always() {
        let mut layouts = Layouts::default();
        let picture = |bytes: u64| {
            vec![LayoutSegment {
                kind: SegmentKind::Heap,
                start: Address(0),
                end: Address(bytes),
                bytes,
                mappings: 1,
                name: None,
            }]
        };
        for number in 0..1000_u64 {
            layouts.push(Timestamp(number), picture(number), false);
            assert_eq!(layouts.last(), picture(number));
            let earlier = layouts.earlier();
            assert!(earlier.len() <= MOST_EARLIER, "{}", earlier.len());
            assert!(number == 0 || earlier[0].time_ns == Timestamp(0));
        }
        let times: Vec<u64> = layouts.earlier().iter().map(|m| m.time_ns.0).collect();
        assert!(times.len() >= MOST_EARLIER / 2, "{times:?}");
        let steps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert!(steps.iter().all(|step| *step == steps[0]), "{times:?}");
        // What has not changed is no news, and what comes after the end is none.
        layouts.push(Timestamp(2000), picture(999), true);
        assert_eq!(layouts.last_time(), Some(Timestamp(999)));
        assert!(!layouts.wants(false) && layouts.wants(true));
    }

    const PIE: &str = "555555554000-555555556000 r--p 00000000 fe:01 11 /usr/bin/program
555555556000-55555555a000 r-xp 00002000 fe:01 11 /usr/bin/program
55555555a000-55555555b000 r--p 00006000 fe:01 11 /usr/bin/program
55555555b000-55555555c000 rw-p 00007000 fe:01 11 /usr/bin/program
55555555c000-555555560000 rw-p 00000000 00:00 0
555555a00000-555555a21000 rw-p 00000000 00:00 0 [heap]
7ffff7c00000-7ffff7c28000 r--p 00000000 fe:01 12 /lib/libc.so.6
7ffff7c28000-7ffff7e00000 r-xp 00028000 fe:01 12 /lib/libc.so.6
7ffff7e00000-7ffff7e0d000 rw-p 00000000 00:00 0
7ffff7fc0000-7ffff7fc4000 r--p 00000000 00:00 0 [vvar]
7ffff7fc4000-7ffff7fc6000 r-xp 00000000 00:00 0 [vdso]
7ffff7fc6000-7ffff7fff000 r--p 00000000 fe:01 13 /lib/ld.so
7ffffffde000-7ffffffff000 rw-p 00000000 00:00 0 [stack]
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0 [vsyscall]
";

    fn picture(maps: &str, program: &str, heap: Option<(u64, u64)>) -> Vec<LayoutSegment> {
        let picture = draw(&Source {
            mappings: &mapping::parse(maps.as_bytes()),
            program,
            heap_start: heap.map(|(start, _)| Address(start)),
            heap_end: heap.map(|(_, end)| Address(end)),
            page_size: 4096,
        });
        assert!(picture.len() <= MOST_SEGMENTS, "{}", picture.len());
        for pair in picture.windows(2) {
            assert!(pair[0].end <= pair[1].start, "{pair:?} overlap");
        }
        picture
    }

    fn kinds(picture: &[LayoutSegment]) -> Vec<SegmentKind> {
        picture.iter().map(|segment| segment.kind).collect()
    }

    #[test]
    fn a_program_is_drawn_as_in_the_textbook() {
        let picture = picture(
            PIE,
            "/usr/bin/program",
            Some((0x5555_55a0_0000, 0x5555_55a2_0123)),
        );
        use SegmentKind as Kind;
        assert_eq!(
            kinds(&picture),
            [
                Kind::Text,
                Kind::Data,
                Kind::Bss,
                Kind::Gap,
                Kind::Heap,
                Kind::Gap,
                Kind::Files,
                Kind::Anonymous,
                Kind::Gap,
                Kind::Kernel,
                Kind::Files,
                Kind::Gap,
                Kind::Stack,
                Kind::Kernel,
            ]
        );
        assert_eq!(picture[0].name.as_deref(), Some("/usr/bin/program"));
        assert_eq!((picture[0].bytes, picture[0].mappings), (0x7000, 3));
        assert_eq!((picture[2].bytes, picture[2].mappings), (0x4000, 1));
        let heap = &picture[4];
        assert_eq!((heap.bytes, heap.end), (0x20123, Address(0x5555_55a2_0123)));
        let gap = &picture[5];
        assert_eq!((gap.start, gap.end), (heap.end, Address(0x7fff_f7c0_0000)));
        assert_eq!((gap.bytes, gap.mappings), (gap.end.above(gap.start), 0));
        assert_eq!(picture[6].name.as_deref(), Some("/lib/libc.so.6"));
    }

    #[test]
    fn the_lowest_file_stands_in_for_a_program_that_is_not_mapped_by_its_name() {
        for program in ["", "./program", "/elsewhere/program"] {
            let picture = picture(PIE, program, None);
            assert_eq!(picture[0].kind, SegmentKind::Text);
            assert_eq!(picture[1].kind, SegmentKind::Data);
        }
        let replaced = PIE.replace("/usr/bin/program", "/usr/bin/program (deleted)");
        assert_eq!(
            picture(&replaced, "/usr/bin/program", None)[0].kind,
            SegmentKind::Text
        );
    }

    #[test]
    fn the_gap_above_the_heap_is_shown_however_small() {
        let maps = "1000-2000 rw-p 0 00:00 0 [heap]\n4000-5000 rw-p 0 00:00 0\n7000-8000 rw-s 0 00:01 3 /x\n";
        let picture = picture(maps, "", Some((0x1000, 0x2000)));
        assert_eq!(
            kinds(&picture),
            [
                SegmentKind::Heap,
                SegmentKind::Gap,
                SegmentKind::Anonymous,
                SegmentKind::Shared
            ]
        );
    }

    #[test]
    fn memory_that_bears_the_heaps_name_but_lies_beside_it_is_not_heap() {
        let maps = "1000-9000 rw-p 0 00:00 0 [heap]\n";
        let picture = picture(maps, "", Some((0x3000, 0x5800)));
        let shape: Vec<(SegmentKind, u64, u64)> = picture
            .iter()
            .map(|segment| (segment.kind, segment.start.0, segment.end.0))
            .collect();
        assert_eq!(
            shape,
            [
                (SegmentKind::Anonymous, 0x1000, 0x3000),
                (SegmentKind::Heap, 0x3000, 0x5800),
                (SegmentKind::Anonymous, 0x6000, 0x9000),
            ]
        );
    }

    #[test]
    fn many_libraries_are_merged_and_none_of_their_bytes_lost() {
        let mut maps = PIE.to_owned();
        let mut library_bytes = 0;
        for index in 0..200_u64 {
            let start = 0x7fff_f000_0000 + index * 0x9_0000;
            maps += &format!(
                "{:x}-{:x} r-xp 0 fe:01 {} /lib/{index}.so\n{:x}-{:x} rw-p 0 00:00 0\n",
                start,
                start + 0x3_0000,
                index + 100,
                start + 0x3_0000,
                start + 0x4_0000
            );
            library_bytes += 0x4_0000;
        }
        let whole = picture(
            &maps,
            "/usr/bin/program",
            Some((0x5555_55a0_0000, 0x5555_55a2_1000)),
        );
        let mapped: u64 = mapping::parse(maps.as_bytes())
            .iter()
            .map(Mapping::bytes)
            .sum();
        let shown: u64 = whole
            .iter()
            .filter(|segment| segment.kind != SegmentKind::Gap)
            .map(|segment| segment.bytes)
            .sum();
        assert_eq!(shown, mapped);
        let files: u64 = whole
            .iter()
            .filter(|segment| segment.kind == SegmentKind::Files)
            .map(|segment| segment.bytes)
            .sum();
        assert!(files >= library_bytes);
        for kind in [SegmentKind::Text, SegmentKind::Heap, SegmentKind::Stack] {
            assert!(kinds(&whole).contains(&kind), "{kind:?}");
        }
    }

    #[test]
    fn very_many_scattered_mappings_still_make_a_small_picture() {
        let mut maps = PIE.to_owned();
        for index in 0..20_000_u64 {
            let start = 0x6000_0000_0000 + index * 0x40_0000;
            let kind = ["rw-p 0 00:00 0", "rw-s 0 00:01 7 /x"][usize::from(index % 2 == 0)];
            maps += &format!("{start:x}-{:x} {kind}\n", start + 0x1000);
        }
        let whole = picture(&maps, "/usr/bin/program", None);
        assert!(kinds(&whole).contains(&SegmentKind::Stack));
        let odd: String = (0..3_000_u64)
            .map(|index| {
                let start = 0x1000_0000 + index * 0x40_0000;
                let flags = ["rw-p", "r--p"][usize::from(index % 2 == 0)];
                format!(
                    "{start:x}-{:x} {flags} 0 fe:01 7 /program\n",
                    start + 0x1000
                )
            })
            .collect();
        picture(&odd, "/program", None);
    }

    #[test]
    fn an_empty_address_space_makes_an_empty_picture() {
        assert_eq!(picture("", "/x", Some((1, 2))), []);
    }

    #[test]
    fn our_own_picture_has_text_and_stack() {
        let picture = draw(&Source {
            mappings: &mapping::read(std::process::id()).unwrap(),
            program: std::env::current_exe().unwrap().to_str().unwrap(),
            heap_start: None,
            heap_end: None,
            page_size: 4096,
        });
        assert!(kinds(&picture).contains(&SegmentKind::Text));
        assert!(kinds(&picture).contains(&SegmentKind::Stack));
        assert!(kinds(&picture).contains(&SegmentKind::Gap));
    }
}
