//! The whole walk on made-up heaps: of all layouts, sound, damaged in one place, and damaged anywhere.

mod fuzz;
mod image;
mod versions;

use self::image::ARENA_HEAP;
use self::image::CACHE_DISTANCE;
use self::image::Counted;
use self::image::HEAP;
use self::image::HEAP_MAX;
use self::image::MAIN_ARENA;
use self::image::Memory;
use self::image::PAGE;
use self::image::PARAMETERS;
use self::image::POINTERS;
use self::image::SHAPES;
use self::image::Shape;
use self::image::Use;
use self::versions::VERSIONS;
use super::Image;
use super::Located;
use super::examine::examine_within;
use super::examine::stand;
use super::locate;
use crate::event::CheckOutcome;
use crate::event::GlibcHeap;
use crate::event::HeapCheck;

/// Bytes that may be looked at in vain; little, as the heaps are small.
const IN_VAIN: u64 = 1 << 20;
/// Where the other mappings of tests are.
const ELSEWHERE: u64 = 0x7e00_0000_0000;
/// The checks, by their order.
const RING: usize = 0;
const SUMS: usize = 1;
const LISTS: usize = 2;
const LINKS: usize = 3;
const MAPPED: usize = 4;
const CACHES: usize = 5;

/// The malloc, as it is found in the sound image.
fn located(memory: &Memory) -> Located {
    let mut located = locate(memory);
    assert_eq!(located.len(), 1, "{}", memory.version.name);
    located.remove(0)
}

fn walk(memory: &Memory, located: &Located, is_still: bool) -> Option<GlibcHeap> {
    let standing = stand(memory, located, Some(&POINTERS))?;
    Some(examine_within(memory, standing, is_still, IN_VAIN))
}

/// The heap after damage, in all versions; with the memory.
fn damaged(shape: Shape, damage: impl Fn(&mut Memory)) -> Vec<(Memory, GlibcHeap)> {
    VERSIONS
        .into_iter()
        .map(|version| {
            let mut memory = Memory::new(version, shape);
            let located = located(&memory);
            damage(&mut memory);
            let heap = walk(&memory, &located, true).expect("a heap");
            (memory, heap)
        })
        .collect()
}

fn odd(heap: &GlibcHeap) -> Vec<usize> {
    let checks = heap.checks.iter().enumerate();
    checks
        .filter(|(_, check)| check.outcome != CheckOutcome::Holds)
        .map(|(index, _)| index)
        .collect()
}

/// That a check fails, and says why.
fn assert_fails(memory: &Memory, heap: &GlibcHeap, check: usize, why: &str) {
    let HeapCheck {
        outcome, detail, ..
    } = &heap.checks[check];
    assert_eq!(*outcome, CheckOutcome::Fails, "{}", memory.version.name);
    let detail = detail.as_deref().unwrap_or_default();
    assert!(detail.contains(why), "{}: {detail}", memory.version.name);
}

fn counted(arena: &crate::event::Arena) -> Counted {
    let figures = arena.figures;
    Counted {
        system_bytes: figures.system_bytes,
        live_chunks: figures.in_use_chunks,
        live_bytes: figures.in_use_bytes,
        cached_chunks: figures.cached_chunks,
        cached_bytes: figures.cached_bytes,
        fast_chunks: figures.fast_chunks,
        fast_bytes: figures.fast_bytes,
        binned_chunks: figures.binned_chunks,
        binned_bytes: figures.binned_bytes,
        top_bytes: figures.top_bytes,
        other_bytes: figures.other_bytes,
    }
}

/// The first chunk of the main arena, or of the thread's, that is used like this.
fn chunk(memory: &Memory, how: Use, arena: usize) -> (u64, u64) {
    let chunks = memory.chunks.iter();
    chunks
        .filter(|(at, ..)| (*at >= ARENA_HEAP) == (arena == 1))
        .find(|(.., use_)| *use_ == how)
        .map(|(at, bytes, _)| (*at, *bytes))
        .expect("such a chunk")
}

#[test]
fn every_version_gives_the_figures_that_were_laid() {
    for version in VERSIONS {
        for shape in SHAPES {
            let name = format!("{} {shape:?}", version.name);
            let memory = Memory::new(version, shape);
            let located = located(&memory);
            assert_eq!(located.main_arena, MAIN_ARENA, "{name}");
            assert_eq!(located.version.as_deref(), Some(version.name));
            let parameters = located.parameters.map(|found| found.address);
            assert_eq!(parameters, Some(PARAMETERS), "{name}");
            for is_still in [true, false] {
                let heap = walk(&memory, &located, is_still).expect("a heap");
                assert_eq!(odd(&heap), [0; 0], "{name}: {:#?}", heap.checks);
                assert_eq!(heap.mallinfo, memory.mallinfo(), "{name}");
                let addresses: Vec<u64> = heap.arenas.iter().map(|arena| arena.address.0).collect();
                assert_eq!(addresses, [MAIN_ARENA, memory.thread_arena], "{name}");
                let found: Vec<Counted> = heap.arenas.iter().map(counted).collect();
                assert_eq!(found, memory.counted, "{name}");
                assert_eq!(heap.arenas[0].contiguous, shape != Shape::Refused);
                assert_eq!(heap.mapped.found_chunks, 1);
                assert_eq!(heap.mapped.found_bytes, memory.mapped_bytes);
                let caches = if version.cache.is_some() { 2 } else { 0 };
                assert_eq!(heap.thread_caches.found, caches, "{name}");
            }
        }
    }
}

#[test]
fn a_chunk_of_a_wrong_size_is_named() {
    for arena in [0, 1] {
        for (bytes, why) in [
            (0, "smaller than any chunk"),
            (0x38, "no multiple of 16"),
            (0x20 | 2, "flags are those of another arena"),
            (1 << 40, "reaches beyond its arena"),
            (!0xf, "reaches beyond its arena"),
        ] {
            for (memory, heap) in damaged(Shape::Plain, |memory| {
                let (at, _) = chunk(memory, Use::Live, arena);
                memory.put(at + 8, bytes | 1);
            }) {
                let (at, _) = chunk(&memory, Use::Live, arena);
                assert_fails(&memory, &heap, SUMS, &format!("{at:#x} is none"));
                assert_fails(&memory, &heap, SUMS, why);
                assert!(heap.total.not_found_bytes > 0);
            }
        }
    }
}

#[test]
fn fast_bins_in_a_circle_are_left() {
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        if memory.version.fast_bins.is_some() {
            let (at, _) = chunk(memory, Use::Fast, 0);
            let key = if memory.version.mangles {
                (at + 16) >> 12
            } else {
                0
            };
            memory.put(at + 16, at ^ key);
        }
    }) {
        if memory.version.fast_bins.is_some() {
            assert_fails(&memory, &heap, LISTS, "");
        }
    }
}

#[test]
fn links_that_are_not_aligned_are_told() {
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        let (at, _) = chunk(memory, Use::Sorted, 0);
        let link = memory.word_at(at + 16);
        memory.put(at + 16, link + 8);
        if memory.version.fast_bins.is_some() {
            let (at, _) = chunk(memory, Use::Fast, 1);
            let link = memory.word_at(at + 16);
            memory.put(at + 16, link ^ 8);
        }
    }) {
        let (at, _) = chunk(&memory, Use::Sorted, 0);
        assert_fails(&memory, &heap, LINKS, &format!("the first at {at:#x}"));
        if memory.version.fast_bins.is_some() {
            assert_fails(&memory, &heap, LISTS, "a fast bin leads to");
        }
    }
}

#[test]
fn a_top_outside_of_the_heap_is_told() {
    for top in [8, ELSEWHERE, MAIN_ARENA, !0xf] {
        for version in VERSIONS {
            let mut memory = Memory::new(version, Shape::Plain);
            let located = located(&memory);
            memory.put(MAIN_ARENA + version.top, top);
            let heap = walk(&memory, &located, true).expect("a heap");
            assert_fails(&memory, &heap, SUMS, "its top lies in no memory");
            assert_eq!(heap.arenas[0].figures.top_bytes, 0);
            let mut memory = Memory::new(version, Shape::Plain);
            memory.put(memory.thread_arena + version.top, top);
            let heap = walk(&memory, &located, true).expect("a heap");
            assert_fails(&memory, &heap, SUMS, "its top lies in no memory");
        }
    }
}

#[test]
fn a_heap_that_has_grown_since_its_mappings_were_read_is_walked_through_whole() {
    for version in VERSIONS {
        let mut memory = Memory::new(version, Shape::Plain);
        let located = located(&memory);
        let standing = stand(&memory, &located, Some(&POINTERS)).expect("a heap");
        let mut known = memory.mappings().to_vec();
        for mapping in &mut known {
            for top in memory.tops {
                if (mapping.start.0..mapping.end.0).contains(&top) {
                    mapping.end.0 = mapping.start.0 + PAGE;
                }
            }
        }
        memory.known_mappings = Some(known);
        let heap = examine_within(&memory, standing, false, IN_VAIN);
        assert_eq!(odd(&heap), [0; 0], "{}: {:#?}", version.name, heap.checks);
        let found: Vec<Counted> = heap.arenas.iter().map(counted).collect();
        assert_eq!(found, memory.counted);
    }
}

#[test]
fn an_arena_that_makes_no_sense_while_its_lock_is_held_may_be_in_the_midst_of_a_change() {
    for version in VERSIONS {
        let mut memory = Memory::new(version, Shape::Plain);
        let located = located(&memory);
        // As glibc leaves it while it gives a heap back: the top lies in the heap that has gone.
        memory.put(memory.thread_arena + version.top, ELSEWHERE);
        memory.put_small(memory.thread_arena, 4, 1);
        let heap = walk(&memory, &located, true).expect("a heap");
        assert_eq!(heap.checks[RING].outcome, CheckOutcome::Holds);
        assert_eq!(heap.checks[SUMS].outcome, CheckOutcome::Moving);
        // More than it ever had, for a moment: `system_mem` is raised before `max_system_mem`.
        let mut memory = Memory::new(version, Shape::Plain);
        let most = memory.thread_arena + version.system_mem + 8;
        memory.put(most, memory.word_at(most) - PAGE);
        memory.put_small(memory.thread_arena, 4, 1);
        let heap = walk(&memory, &located, true).expect("a heap");
        assert_eq!(heap.checks[SUMS].outcome, CheckOutcome::Moving);
        assert_eq!(heap.total.not_found_bytes, 0);
    }
}

#[test]
fn a_top_in_a_free_chunk_or_beyond_its_memory_does_not_add_up() {
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        let top = memory.tops[0];
        memory.put(top + 8, 1 << 45 | 1);
        let system = MAIN_ARENA + memory.version.system_mem;
        memory.put(system, 1 << 45);
        memory.put(system + 8, 1 << 45);
    }) {
        assert_fails(&memory, &heap, SUMS, "");
        assert_eq!(
            heap.total.top_bytes,
            memory.counted[0].top_bytes + memory.counted[1].top_bytes
        );
    }
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        let (at, _) = chunk(memory, Use::Live, 0);
        memory.put(MAIN_ARENA + memory.version.top, at);
    }) {
        assert_fails(&memory, &heap, SUMS, "were not found");
    }
}

#[test]
fn bytes_that_no_kernel_gave_do_not_add_up() {
    for bytes in [1 << 62, !0xfff, u64::MAX] {
        for arena in [0, 1] {
            for (memory, heap) in damaged(Shape::Refused, |memory| {
                let address = [MAIN_ARENA, memory.thread_arena][arena];
                memory.put(address + memory.version.system_mem, bytes);
                memory.put(address + memory.version.system_mem + 8, u64::MAX);
            }) {
                assert!(!odd(&heap).is_empty(), "{}", memory.version.name);
                assert_eq!(heap.checks[SUMS].outcome, CheckOutcome::Fails);
            }
        }
    }
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        memory.put(MAIN_ARENA + memory.version.system_mem, 0);
    }) {
        assert_fails(&memory, &heap, SUMS, "its top holds more than it obtained");
    }
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        memory.put(memory.thread_arena + memory.version.system_mem, 0);
    }) {
        assert_fails(&memory, &heap, SUMS, "its top holds more than it obtained");
    }
    // An arena to which its heap does not lead back is none.
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        memory.put(memory.thread_arena + memory.version.system_mem, 0);
        let header = memory.thread_arena - memory.version.heap_info;
        memory.put(header, ELSEWHERE);
    }) {
        assert_fails(&memory, &heap, RING, "cannot be read, or makes no sense");
    }
    // In both arenas, the sum is more than can be.
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        for address in [MAIN_ARENA, memory.thread_arena] {
            memory.put(address + memory.version.system_mem, 1 << 63);
            memory.put(address + memory.version.system_mem + 8, 1 << 63);
        }
    }) {
        assert_eq!(heap.total.system_bytes, u64::MAX);
        assert_fails(&memory, &heap, SUMS, "a sum is more than can be");
    }
}

#[test]
fn more_than_an_arena_obtained_does_not_add_up_either() {
    for (memory, heap) in damaged(Shape::Foreign, |memory| {
        let bytes = memory.counted[0].system_bytes - PAGE;
        memory.put(MAIN_ARENA + memory.version.system_mem, bytes);
    }) {
        assert_fails(&memory, &heap, SUMS, "4096 more were found");
    }
}

#[test]
fn rings_of_arenas_that_do_not_lead_back_are_told() {
    for (next, why) in [
        (None, "leads back to"),
        (Some(ELSEWHERE), "cannot be read, or makes no sense"),
        (Some(0), "cannot be read, or makes no sense"),
        (Some(u64::MAX - 8), "cannot be read, or makes no sense"),
    ] {
        for (memory, heap) in damaged(Shape::Plain, |memory| {
            let place = memory.thread_arena + memory.version.next;
            memory.put(place, next.unwrap_or(memory.thread_arena));
        }) {
            assert_fails(&memory, &heap, RING, why);
            assert_eq!(heap.arenas.len(), 2);
        }
    }
    // A main arena that leads to itself is one without others, and what the others have is not looked at.
    for (_, heap) in damaged(Shape::Plain, |memory| {
        memory.put(MAIN_ARENA + memory.version.next, MAIN_ARENA);
    }) {
        assert_eq!(heap.arenas.len(), 1);
    }
}

#[test]
fn heaps_that_lead_back_or_reach_too_far_are_told() {
    let second = ARENA_HEAP + HEAP_MAX;
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        memory.put(second + 8, second);
        let system = memory.thread_arena + memory.version.system_mem;
        memory.put(system, u64::MAX - 7);
        memory.put(system + 8, u64::MAX - 7);
    }) {
        assert_fails(&memory, &heap, SUMS, "lead back to");
    }
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        memory.put(ARENA_HEAP + 16, HEAP_MAX);
        memory.put(ARENA_HEAP + 24, HEAP_MAX);
    }) {
        assert_fails(&memory, &heap, SUMS, "reaches beyond its memory");
    }
}

#[test]
fn caches_whose_counts_are_wrong_are_told() {
    for count in [0, 3, 255, 65_535] {
        for (memory, heap) in damaged(Shape::Plain, |memory| {
            if let Some((_, width, _)) = memory.version.cache {
                let (place, _) = memory.cache_places(1, 0);
                memory.put_small(place, width, count);
            }
        }) {
            if memory.version.cache.is_none() {
                assert_eq!(odd(&heap), [0; 0]);
                continue;
            }
            assert_fails(&memory, &heap, CACHES, "in 1 of 2 threads");
            // mallinfo takes what waits in caches for used.
            assert_eq!(heap.mallinfo, memory.mallinfo());
        }
    }
}

#[test]
fn caches_with_links_to_anywhere_are_told() {
    for link in [8, 0x18, ELSEWHERE, u64::MAX] {
        for (memory, heap) in damaged(Shape::Plain, |memory| {
            if memory.version.cache.is_some() {
                let (_, entry) = memory.cache_places(1, 0);
                let first = memory.word_at(entry);
                memory.put(first, link);
            }
        }) {
            if memory.version.cache.is_some() {
                assert_fails(&memory, &heap, CACHES, "are not what it says");
            }
        }
    }
}

#[test]
fn a_cached_chunk_that_its_mapping_has_no_room_for_is_damage() {
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        if memory.version.counts_down {
            // A list of large chunks, since 2.42.
            let (at, _) = chunk(memory, Use::Live, 1);
            let (count, entry) = memory.cache_places(1, 70);
            memory.put_small(count, 2, memory.version.slots - 1);
            memory.put(entry, at + 16);
            memory.put(at + 16, (at + 16) >> 12);
            memory.put(at + 8, 1 << 30 | 5);
        }
    }) {
        if memory.version.counts_down {
            assert_fails(&memory, &heap, CACHES, "are not what it says");
            assert!(heap.total.cached_bytes < 1 << 20);
            assert!(heap.thread_caches.bytes < 1 << 20);
        }
    }
}

#[test]
fn a_cache_that_only_one_thread_lost_is_no_damage() {
    for (_, heap) in damaged(Shape::Plain, |memory| {
        memory.put(POINTERS[1] - CACHE_DISTANCE, 0);
    }) {
        assert_eq!(odd(&heap), [0; 0]);
    }
}

#[test]
fn mapped_chunks_that_are_not_there_are_missed() {
    for (memory, heap) in damaged(Shape::Plain, |memory| {
        let place = PARAMETERS + memory.version.mapped_bytes;
        memory.put(place, 0x4_5000);
        memory.put_small(PARAMETERS + memory.version.mapped_count, 4, 3);
    }) {
        assert_fails(&memory, &heap, MAPPED, "1 of 3");
        assert_eq!(heap.mapped.found_bytes, memory.mapped_bytes);
    }
}

#[test]
fn memory_that_only_looks_like_chunks_is_not_followed_without_end() {
    for (memory, heap) in damaged(Shape::Refused, |memory| {
        // Each page looks like a chunk that leads to the next; the last one leads nowhere.
        let bytes = 4 << 20;
        memory.map(ELSEWHERE, bytes, "rw-p", None);
        for page in (ELSEWHERE..ELSEWHERE + bytes).step_by(4096) {
            memory.put(page + 8, PAGE | 1);
        }
        let system = MAIN_ARENA + memory.version.system_mem;
        memory.put(system, 1 << 30);
        memory.put(system + 8, 1 << 30);
        memory.forget_cost();
    }) {
        assert_fails(&memory, &heap, SUMS, "was given up after 1048576 bytes");
        let (_, bytes) = memory.cost();
        assert!(bytes < 32 << 20, "{bytes}");
    }
}

#[test]
fn foreign_memory_full_of_likely_sizes_is_not_searched_without_end() {
    for (memory, heap) in damaged(Shape::Foreign, |memory| {
        let foreign = HEAP + 0x2_1000;
        for place in (foreign..foreign + 0x2000).step_by(16) {
            memory.put(place + 8, 0x31);
        }
        // And nothing behind it that leads on.
        for place in (foreign + 0x2000..HEAP + 0x3_3000).step_by(16) {
            memory.put(place + 8, 0x31);
        }
        memory.forget_cost();
    }) {
        assert_eq!(heap.checks[SUMS].outcome, CheckOutcome::Fails);
        let (_, bytes) = memory.cost();
        assert!(bytes < 32 << 20, "{bytes}");
    }
}
