//! Damage anywhere: random words in random places, from a seed.

use super::super::locate;
use super::*;
use crate::mapping::Mapping;

const ROUNDS: usize = 4000;
/// Bytes of a round's reads: the image is at most 1.6 MiB, and so much may be looked at in vain in each of four attempts.
const MOST_BYTES: u64 = 4 * (1600 << 10) + 4 * IN_VAIN;
/// Calls of the image in a round; half a million rounds took 6100 at most.
const MOST_READS: u64 = 20_000;

/// Numbers that look random (xorshift64*).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }

    fn index(&mut self, length: usize) -> usize {
        usize::try_from(self.below(length as u64)).expect("an index")
    }
}

/// A place where a word may be damaged: mostly one that the walk looks at.
fn place(memory: &Memory, random: &mut Random) -> u64 {
    let version = memory.version;
    let arena = [MAIN_ARENA, memory.thread_arena][random.index(2)];
    match random.below(8) {
        0 => arena + 8 * random.below(version.arena_bytes / 8),
        1 => {
            let fields = [version.top, version.next, version.system_mem];
            arena + fields[random.index(3)] + 8 * random.below(2)
        }
        2 => PARAMETERS + 8 * random.below(18),
        3 => ARENA_HEAP + HEAP_MAX * random.below(2) + 8 * random.below(6),
        4 if version.cache.is_some() => {
            let (count, entry) = memory.cache_places(random.index(2), random.below(64));
            [count & !7, entry][random.index(2)]
        }
        5 => memory.tops[random.index(2)] + 8 * random.below(2),
        6 => {
            let stored = memory.stored();
            let (start, bytes) = stored[random.index(stored.len())];
            start + 8 * random.below(bytes / 8)
        }
        _ => {
            let (at, ..) = memory.chunks[random.index(memory.chunks.len())];
            at + 8 * random.below(4)
        }
    }
}

fn value(memory: &Memory, old: u64, random: &mut Random) -> u64 {
    let chunk = memory.chunks[random.index(memory.chunks.len())];
    match random.below(12) {
        0 => random.next(),
        1 => u64::MAX,
        2 => 0,
        3 => chunk.0,
        4 => chunk.0 + 16,
        5 => old.wrapping_add(16),
        6 => old.wrapping_sub(16),
        7 => old.wrapping_add(8),
        8 => 1 << random.below(64),
        9 => chunk.1 | 1,
        10 => old ^ random.below(8),
        _ => old ^ 1 << random.below(64),
    }
}

/// Bytes of memory that chunks may be in.
fn room(memory: &Memory) -> u64 {
    let mappings = super::super::Image::mappings(memory).iter();
    mappings
        .filter(|mapping| mapping.permissions.write)
        .map(Mapping::bytes)
        .sum()
}

#[test]
fn random_damage_never_panics_costs_little_and_is_never_believed_beyond_the_memory() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut images: Vec<(Memory, Located)> = VERSIONS
        .into_iter()
        .flat_map(|version| SHAPES.map(|shape| Memory::new(version, shape)))
        .map(|memory| {
            let located = super::located(&memory);
            (memory, located)
        })
        .collect();
    let (mut believed, mut doubted) = (0, 0);
    for round in 0..ROUNDS {
        let index = random.index(images.len());
        let (memory, located) = &mut images[index];
        let mut old = Vec::new();
        for _ in 0..1 + random.below(3) {
            let place = place(memory, &mut random);
            let word = memory.word_at(place);
            old.push((place, word));
            memory.put(place, value(memory, word, &mut random));
        }
        memory.forget_cost();
        let heap = walk(memory, located, round % 4 != 0);
        let (reads, bytes) = memory.cost();
        let what = format!("round {round}, {}, {old:x?}", memory.version.name);
        assert!(bytes <= MOST_BYTES, "{what}: {bytes} bytes");
        assert!(reads <= MOST_READS, "{what}: {reads} reads");
        match heap {
            Some(heap) if odd(&heap).is_empty() => {
                believed += 1;
                let total = heap.total;
                let parts = [
                    total.in_use_bytes,
                    total.cached_bytes,
                    total.fast_bytes,
                    total.binned_bytes,
                    total.top_bytes,
                    total.other_bytes,
                ];
                let sum = parts
                    .into_iter()
                    .try_fold(0_u64, u64::checked_add)
                    .expect(&what);
                assert_eq!(sum, total.system_bytes, "{what}");
                let all = sum.checked_add(heap.mapped.found_bytes).expect(&what);
                assert!(all <= room(memory), "{what}: {all}");
            }
            _ => doubted += 1,
        }
        // Found or not: looking must end.
        if round % 16 == 0 {
            let _ = locate(memory);
        }
        for (place, word) in old.into_iter().rev() {
            memory.put(place, word);
        }
    }
    // Damage in memory of the program's own is none of malloc's; the rest is mostly seen.
    assert!(doubted > ROUNDS / 3 && believed > ROUNDS / 10);
}
