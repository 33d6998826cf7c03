//! Heaps with random words overwritten: whatever a look at one says, it ends, and claims no sums that do not hold.

use std::fs::File;
use std::process::Command;
use std::time::Duration;
use std::time::Instant;

use breaktrace::event::CheckOutcome;
use breaktrace::event::GlibcHeap;
use breaktrace::heap_walk;
use breaktrace::heap_walk::Image;
use breaktrace::heap_walk::Residency;
use breaktrace::mapping::Mapping;
use breaktrace::mapping::MappingKind;
use breaktrace::tracer::LiveImage;
use breaktrace::tracer::ShortStop;

use crate::support::Running;
use crate::support::compile;
use crate::support::skip;

/// A look at such a heap takes some milliseconds; one that follows what is damaged without a bound never ends.
const PATIENCE: Duration = Duration::from_secs(20);

/// The writable memory of a program, copied.
struct Copied {
    mappings: Vec<Mapping>,
    /// Starts and contents, in order.
    parts: Vec<(u64, Vec<u8>)>,
}

impl Copied {
    fn of(image: &LiveImage) -> Self {
        let parts = image
            .mappings()
            .iter()
            .filter(|mapping| mapping.permissions.write && !mapping.permissions.shared)
            .filter(|mapping| mapping.kind() != MappingKind::Stack)
            .map(|mapping| {
                let mut bytes = vec![0; usize::try_from(mapping.bytes()).unwrap()];
                let read = image.read(mapping.start.0, &mut bytes);
                bytes.truncate(read);
                (mapping.start.0, bytes)
            })
            .collect();
        Self {
            mappings: image.mappings().to_vec(),
            parts,
        }
    }

    /// The part that holds an address, and where in it that is.
    fn place(&self, address: u64) -> Option<(usize, usize)> {
        let index = self
            .parts
            .partition_point(|(start, _)| *start <= address)
            .checked_sub(1)?;
        let offset = usize::try_from(address - self.parts[index].0).ok()?;
        (offset < self.parts[index].1.len()).then_some((index, offset))
    }
}

impl Image for Copied {
    fn mappings(&self) -> &[Mapping] {
        &self.mappings
    }

    fn read(&self, address: u64, bytes: &mut [u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let Some((index, offset)) = address
                .checked_add(done as u64)
                .and_then(|at| self.place(at))
            else {
                break;
            };
            let from = &self.parts[index].1[offset..];
            let length = from.len().min(bytes.len() - done);
            bytes[done..done + length].copy_from_slice(&from[..length]);
            done += length;
        }
        done
    }

    fn residency(&self, start: u64, end: u64) -> Option<Residency> {
        Some(Residency {
            resident: vec![(start, end)],
            swapped: Vec::new(),
        })
    }

    fn file(&self, _mapping: &Mapping) -> Option<File> {
        None
    }

    fn page_size(&self) -> u64 {
        4096
    }
}

/// xorshift64*.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() % limit as u64).unwrap()
    }

    /// What may be written where it does not belong.
    fn word(&mut self, image: &Copied, was: u64) -> u64 {
        match self.below(8) {
            0 => self.next(),
            1 => 0,
            2 => u64::MAX,
            3 => was ^ 1 << self.below(64),
            4 => was.wrapping_add(16),
            5 => was.wrapping_sub(16),
            6 => self.next() & 0xffff,
            _ => {
                let (start, bytes) = &image.parts[self.below(image.parts.len())];
                start + (self.below(bytes.len().max(16)) & !15) as u64
            }
        }
    }
}

/// Panics unless what is said holds together, where it is said to.
#[track_caller]
fn expect_no_false_claims(heap: &GlibcHeap, seed: u64) {
    let holds = |what: &str| {
        heap.checks
            .iter()
            .any(|check| check.what.contains(what) && check.outcome == CheckOutcome::Holds)
    };
    for figures in heap
        .arenas
        .iter()
        .map(|arena| &arena.figures)
        .chain([&heap.total])
    {
        let found = [
            figures.in_use_bytes,
            figures.cached_bytes,
            figures.fast_bytes,
            figures.binned_bytes,
            figures.top_bytes,
            figures.other_bytes,
            figures.not_found_bytes,
        ];
        let sum: u128 = found.iter().map(|bytes| u128::from(*bytes)).sum();
        if holds("add up") {
            assert_eq!(figures.not_found_bytes, 0, "seed {seed}: {heap:#?}");
            assert_eq!(
                sum,
                u128::from(figures.system_bytes),
                "seed {seed}: {heap:#?}"
            );
        }
    }
    if holds("mappings") {
        assert_eq!(heap.mapped.chunks, Some(heap.mapped.found_chunks));
        assert_eq!(heap.mapped.bytes, Some(heap.mapped.found_bytes));
    }
}

/// More rounds with BREAKTRACE_SOAK=1.
#[test]
fn looks_at_damaged_heaps_end_and_claim_nothing_false() {
    let Some(program) = compile("glibc_heap", &["-pthread"]) else {
        return skip("no C compiler that makes such programs for glibc");
    };
    let rounds = if std::env::var_os("BREAKTRACE_SOAK").is_some() {
        5_000
    } else {
        400
    };
    let mut target = Running::start_obedient(Command::new(program).args(["small", "1", "2"]));
    target.line();
    let pid = target.pid();
    let live = LiveImage::of_process(pid).unwrap();
    let located = heap_walk::locate(&live);
    let located = &located[0];
    let stop = ShortStop::begin(pid).unwrap();
    let pointers = stop.thread_pointers();
    let mut image = Copied::of(&live);
    stop.release();
    assert_eq!(target.ask("exit"), "bye");
    target.finish().expect_code(0);

    let look = |image: &Copied| {
        let standing = heap_walk::stand(image, located, Some(&pointers))?;
        Some(heap_walk::examine(image, standing, true))
    };
    let sound = look(&image).unwrap();
    assert!(
        sound
            .checks
            .iter()
            .all(|check| check.outcome == CheckOutcome::Holds),
        "{sound:#?}"
    );

    // What matters most: the arenas, `mp_`, the first chunks, and what is at the ends.
    let main = located.main_arena;
    let mut noticed = 0;
    for seed in 1..=rounds {
        let mut random = Random(seed);
        let mut undo = Vec::new();
        for _ in 0..1 + random.below(3) {
            let address = match random.below(3) {
                0 => main + 8 * random.below(275) as u64,
                1 => {
                    let arena = &sound.arenas[random.below(sound.arenas.len())];
                    arena.address.0 + 8 * random.below(275) as u64
                }
                _ => {
                    let (start, bytes) = &image.parts[random.below(image.parts.len())];
                    start + 8 * random.below((bytes.len() / 8).max(1)) as u64
                }
            };
            let Some((part, offset)) = image.place(address) else {
                continue;
            };
            let Some(was) = image.word(address) else {
                continue;
            };
            let word = random.word(&image, was);
            image.parts[part].1[offset..offset + 8].copy_from_slice(&word.to_le_bytes());
            undo.push((part, offset, was));
        }
        let began = Instant::now();
        let heap = look(&image);
        assert!(began.elapsed() < PATIENCE, "seed {seed}");
        match heap {
            Some(heap) => {
                expect_no_false_claims(&heap, seed);
                noticed += u32::from(
                    heap.checks
                        .iter()
                        .any(|check| check.outcome == CheckOutcome::Fails),
                );
            }
            None => noticed += 1,
        }
        for (part, offset, was) in undo.into_iter().rev() {
            image.parts[part].1[offset..offset + 8].copy_from_slice(&was.to_le_bytes());
        }
    }
    // Many words matter to nobody; not all of them do not.
    assert!(noticed > 0);
    assert_eq!(look(&image), Some(sound), "everything is as it was");
}
