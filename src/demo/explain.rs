//! Explains the numbers of the demonstration with glibc's own arithmetic (`malloc/malloc.c`).
//!
//! Addresses and sizes are measured; what is computed from them is said only where its result is the traced number, to
//! the byte. Another C library, or glibc with tunables, computes differently: then nothing is said.

use serde::Serialize;

use super::Action;
use super::CLibrary;
use super::Step;
use super::script::BLOCKS;
use crate::units::Address;
use crate::units::Exact;
use crate::units::page_up;

/// Bytes of a chunk's header before the block; the first half of it belongs to the chunk before while that is in use.
const HEADER: u64 = 16;
/// Bytes that a chunk in use has beyond those its owner may use (`SIZE_SZ`).
const OVERHEAD: u64 = 8;
/// Chunks are multiples of this (`MALLOC_ALIGNMENT`).
const ALIGNMENT: u64 = 16;
/// The smallest chunk, in bytes: so much of the top always stays (`MINSIZE`).
const SMALLEST: u64 = 32;
/// What is asked for ahead of need, in bytes, where it could not be read in the program (`DEFAULT_TOP_PAD`).
const TOP_PAD: u64 = 131_072;

/// Why a step moved the break, or did not.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum Reason {
    /// Nothing was done yet.
    Begins,
    /// Too little was left; the sum of this number says what was asked for.
    Grown {
        /// Number of the sum.
        sum: usize,
    },
    /// The block was cut from what was left at the heap's end: its chunk begins where another's ends.
    CutFromTop {
        /// The block before it.
        after: char,
        /// Bytes from the one's start to the other's.
        distance_bytes: u64,
    },
    /// The block lies where a free one was.
    Reused {
        /// The block that was there.
        block: char,
    },
    /// The free block stays with malloc.
    Kept,
    /// The break fell: memory went back to the kernel.
    GivenBack,
    /// The block lies outside the heap.
    OutsideHeap,
    /// malloc returned a null pointer.
    Refused,
    /// None of the rules gives the measured numbers.
    Unexplained,
}

/// A number of bytes, taken apart.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Sum {
    /// By which steps refer to it, from 1.
    pub number: usize,
    /// What is summed up.
    pub of: SumOf,
    /// The total in bytes: what the terms add up to.
    pub bytes: u64,
    /// Its parts.
    pub terms: Vec<Term>,
}

/// What a [`Sum`] is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SumOf {
    /// A growth of the break.
    Growth {
        /// The step that it happened at.
        step: usize,
    },
    /// The whole heap at the end.
    Heap,
}

/// A part of a [`Sum`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Term {
    /// Which part, for programs.
    pub kind: TermKind,
    /// Its bytes; negative for what is taken off.
    pub bytes: i64,
    /// What it is, for people.
    pub meaning: String,
}

/// Kinds of [`Term`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TermKind {
    /// malloc's own block: the thread cache.
    ThreadCache,
    /// A block that the program did not ask for, and of which only the place is known.
    Other,
    /// The chunk of the block that was asked for.
    Chunk,
    /// What is asked for ahead of need.
    TopPad,
    /// The smallest chunk, which always stays at the end.
    SmallestChunk,
    /// What was still left.
    LeftInTop,
    /// Up to whole pages.
    PageRounding,
    /// Blocks in use, as asked for.
    InUse,
    /// Headers and rounding of the blocks in use.
    Headers,
    /// Free blocks that malloc keeps.
    Free,
    /// What has not been handed out yet.
    Top,
}

impl Term {
    fn plus(kind: TermKind, bytes: u64, meaning: impl Into<String>) -> Self {
        Self {
            kind,
            bytes: bytes.try_into().unwrap_or(i64::MAX),
            meaning: meaning.into(),
        }
    }

    fn minus(kind: TermKind, bytes: u64, meaning: impl Into<String>) -> Self {
        let term = Self::plus(kind, bytes, meaning);
        Self {
            bytes: -term.bytes,
            ..term
        }
    }
}

/// The circumstances of the steps.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setting<'a> {
    /// The C library; its arithmetic is known if it is glibc.
    pub(super) c_library: &'a CLibrary,
    /// Bytes in a page.
    pub(super) page_size: u64,
    /// Where the heap begins.
    pub(super) heap_start: Address,
}

/// Gives every step its reason, and returns the sums that the reasons refer to; the last is that of the whole heap, if
/// it could be taken apart.
pub(super) fn explain(steps: &mut [Step], setting: Setting<'_>) -> Vec<Sum> {
    let mut sums = Vec::new();
    let mut chunks = Chunks::default();
    let mut previous = setting.heap_start;
    for step in steps.iter_mut() {
        step.reason = reason(step, previous, &chunks, setting, &mut sums);
        chunks.follow(step);
        previous = step.seen_break;
    }
    let is_explained = |step: &Step| step.reason != Reason::Unexplained && step.agrees;
    if steps.iter().all(is_explained)
        && let Some(terms) = heap(&chunks, previous, setting, &sums)
    {
        sums.push(Sum {
            number: sums.len() + 1,
            of: SumOf::Heap,
            bytes: previous.above(setting.heap_start),
            terms,
        });
    }
    sums
}

fn reason(
    step: &Step,
    previous: Address,
    chunks: &Chunks,
    setting: Setting<'_>,
    sums: &mut Vec<Sum>,
) -> Reason {
    match step.action {
        _ if !step.agrees => Reason::Unexplained,
        Action::Begin if step.seen_break == previous => Reason::Begins,
        Action::Begin => Reason::Unexplained,
        Action::Free { .. } if step.change_bytes < 0 => Reason::GivenBack,
        Action::Free { .. } if step.is_without_calls() => Reason::Kept,
        Action::Free { .. } => Reason::Unexplained,
        Action::Malloc { .. } => match Chunk::of(step) {
            None => Reason::Refused,
            Some(chunk) => reason_of_malloc(step, chunk, previous, chunks, setting, sums),
        },
    }
}

fn reason_of_malloc(
    step: &Step,
    chunk: Chunk,
    previous: Address,
    chunks: &Chunks,
    setting: Setting<'_>,
    sums: &mut Vec<Sum>,
) -> Reason {
    if chunk.start < setting.heap_start || chunk.end() > step.seen_break {
        return Reason::OutsideHeap;
    }
    if step.change_bytes > 0 {
        return match growth(step, chunk, previous, setting) {
            Some(terms) => {
                let number = sums.len() + 1;
                sums.push(Sum {
                    number,
                    of: SumOf::Growth { step: step.number },
                    bytes: step.change_bytes.unsigned_abs(),
                    terms,
                });
                Reason::Grown { sum: number }
            }
            None => Reason::Unexplained,
        };
    }
    if !step.is_without_calls() {
        return Reason::Unexplained;
    }
    match (chunks.free_at(chunk.start), chunks.highest()) {
        (Some(block), _) => Reason::Reused { block },
        (None, Some(highest)) if highest.end() == chunk.start => Reason::CutFromTop {
            after: highest.block,
            distance_bytes: chunk.start.above(highest.start),
        },
        _ => Reason::Unexplained,
    }
}

/// A chunk as glibc lays it out: the header, then the block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Chunk {
    /// The block's name.
    block: char,
    /// Bytes asked for.
    requested: u64,
    start: Address,
    bytes: u64,
    is_free: bool,
}

impl Chunk {
    /// The chunk of a block that was made; `None` when malloc made none.
    fn of(step: &Step) -> Option<Self> {
        let Action::Malloc { block, bytes } = step.action else {
            return None;
        };
        Some(Self {
            block,
            requested: bytes,
            start: step.address? - HEADER,
            bytes: step.usable_bytes?.saturating_add(OVERHEAD),
            is_free: false,
        })
    }

    fn end(self) -> Address {
        self.start + self.bytes
    }
}

/// The chunks of the program's blocks, in the order in which they were made.
#[derive(Clone, Debug, Default)]
struct Chunks(Vec<Chunk>);

impl Chunks {
    fn follow(&mut self, step: &Step) {
        match step.action {
            Action::Begin => {}
            Action::Malloc { .. } => self.0.extend(Chunk::of(step)),
            Action::Free { block } => {
                for chunk in self.0.iter_mut().filter(|chunk| chunk.block == block) {
                    chunk.is_free = true;
                }
            }
        }
    }

    /// The block that was free at this place, the latest one.
    fn free_at(&self, start: Address) -> Option<char> {
        let there = self.0.iter().rfind(|chunk| chunk.start == start)?;
        there.is_free.then_some(there.block)
    }

    fn highest(&self) -> Option<Chunk> {
        self.0.iter().copied().max_by_key(|chunk| chunk.end())
    }

    /// One chunk for each place, the latest there, from low to high; `None` when they overlap.
    fn by_place(&self) -> Option<Vec<Chunk>> {
        let mut places: Vec<Chunk> = Vec::with_capacity(BLOCKS);
        for chunk in &self.0 {
            match places.iter_mut().find(|place| place.start == chunk.start) {
                Some(place) => *place = *chunk,
                None => places.push(*chunk),
            }
        }
        places.sort_by_key(|chunk| chunk.start);
        places
            .windows(2)
            .all(|pair| pair[0].end() <= pair[1].start)
            .then_some(places)
    }
}

/// The bytes of a chunk for a block (`request2size`).
fn chunk_bytes(requested: u64) -> u64 {
    let with_overhead = requested.saturating_add(OVERHEAD);
    with_overhead
        .checked_next_multiple_of(ALIGNMENT)
        .unwrap_or(with_overhead)
        .max(SMALLEST)
}

/// Bytes that the break moves up for a chunk when so much is left (`sysmalloc`), and how many of them are rounding.
fn growth_bytes(chunk: u64, top_pad: u64, left: u64, page_size: u64) -> (u64, u64) {
    let needed = chunk
        .saturating_add(top_pad)
        .saturating_add(SMALLEST)
        .saturating_sub(left);
    let rounded = page_up(needed, page_size);
    (rounded, rounded - needed)
}

/// The terms of the growth that a malloc made; `None` when they don't add up to it.
fn growth(step: &Step, chunk: Chunk, previous: Address, setting: Setting<'_>) -> Option<Vec<Term>> {
    setting.c_library.version()?;
    // What was left was where the new block is now, unless nothing was there.
    let is_first = previous == setting.heap_start;
    let (before, left) = if is_first {
        (chunk.start.above(setting.heap_start), 0)
    } else {
        (chunk.start <= previous).then(|| (0, previous.above(chunk.start)))?
    };
    let first_term = if before > 0 {
        let (kind, what) = unasked(before, setting.c_library);
        let meaning = format!("{what}, made before {}", chunk.block);
        Term::plus(kind, before, meaning)
    } else {
        Term::plus(TermKind::Chunk, chunk.bytes, chunk_meaning(chunk))
    };
    let cause = first_term.bytes.unsigned_abs();
    let top_pad = step.malloc.map_or(TOP_PAD, |malloc| malloc.top_pad_bytes);
    // Two ways to the same number: the blocks' addresses, which the program told, and malloc's own record.
    if step.malloc.is_some_and(|malloc| malloc.top_bytes != left) {
        return None;
    }
    let (bytes, rounding) = growth_bytes(cause, top_pad, left, setting.page_size);
    if chunk.bytes != chunk_bytes(chunk.requested)
        || i64::try_from(bytes) != Ok(step.change_bytes)
        || step.moves() != 1
    {
        return None;
    }
    let mut terms = vec![
        first_term,
        Term::plus(
            TermKind::TopPad,
            top_pad,
            "asked for ahead of need (top_pad)",
        ),
        Term::plus(
            TermKind::SmallestChunk,
            SMALLEST,
            "always left at the end: the smallest chunk (MINSIZE)",
        ),
    ];
    if left > 0 {
        terms.push(Term::minus(
            TermKind::LeftInTop,
            left,
            "was still left at the heap's end (top)",
        ));
    }
    if rounding > 0 {
        terms.push(Term::plus(
            TermKind::PageRounding,
            rounding,
            format!("up to whole pages of {}", Exact(setting.page_size)),
        ));
    }
    Some(terms)
}

fn chunk_meaning(chunk: Chunk) -> String {
    format!(
        "for {}: {} + {OVERHEAD} header, up to a multiple of {ALIGNMENT}",
        chunk.block,
        Exact(chunk.requested)
    )
}

/// What a block is that lies between the program's own.
fn unasked(bytes: u64, c_library: &CLibrary) -> (TermKind, &'static str) {
    if c_library
        .version()
        .is_some_and(|version| thread_cache_bytes(version).contains(&bytes))
    {
        (TermKind::ThreadCache, "malloc's own thread cache")
    } else {
        (TermKind::Other, "a block that the program did not ask for")
    }
}

/// Bytes that the chunk of `tcache_perthread_struct` may have in a version of glibc.
fn thread_cache_bytes(version: (u32, u32)) -> &'static [u64] {
    match version {
        (2, 26..=29) => &[592],
        (2, 30..=41) => &[656],
        // The second when it is made inside `_int_malloc`, which rounds once more.
        (2, 42..) => &[768, 784],
        _ => &[],
    }
}

/// The whole heap, taken apart; `None` when what lies at its end is not what the last growth left there.
fn heap(
    chunks: &Chunks,
    program_break: Address,
    setting: Setting<'_>,
    sums: &[Sum],
) -> Option<Vec<Term>> {
    let places = chunks.by_place()?;
    let top = program_break.above(places.last()?.end());
    let left_by_growth: i64 = sums
        .last()?
        .terms
        .iter()
        .filter(|term| {
            matches!(
                term.kind,
                TermKind::TopPad | TermKind::SmallestChunk | TermKind::PageRounding
            )
        })
        .map(|term| term.bytes)
        .sum();
    if i64::try_from(top) != Ok(left_by_growth) {
        return None;
    }
    let mut terms = terms_in_use(&places);
    terms.extend(term_free(&places, chunks));
    let mut end = setting.heap_start;
    for chunk in &places {
        let gap = chunk.start.above(end);
        if gap > 0 {
            let (kind, what) = unasked(gap, setting.c_library);
            terms.push(Term::plus(kind, gap, what));
        }
        end = chunk.end();
    }
    terms.push(Term::plus(
        TermKind::Top,
        top,
        "not handed out yet, at the heap's end (top)",
    ));
    let sum: i64 = terms.iter().map(|term| term.bytes).sum();
    (i64::try_from(program_break.above(setting.heap_start)) == Ok(sum)).then_some(terms)
}

fn terms_in_use(places: &[Chunk]) -> Vec<Term> {
    let in_use: Vec<&Chunk> = places.iter().filter(|chunk| !chunk.is_free).collect();
    let requested: u64 = in_use.iter().map(|chunk| chunk.requested).sum();
    let names = listed(in_use.iter().map(|chunk| chunk.block));
    let headers: Vec<u64> = in_use
        .iter()
        .map(|chunk| chunk.bytes.saturating_sub(chunk.requested))
        .collect();
    let each = match headers.first() {
        Some(first) if headers.iter().all(|bytes| bytes == first) => format!(", {first} each"),
        _ => String::new(),
    };
    vec![
        Term::plus(
            TermKind::InUse,
            requested,
            format!("in use, as asked for: {names}"),
        ),
        Term::plus(
            TermKind::Headers,
            headers.iter().sum(),
            format!("headers and rounding of these blocks{each}"),
        ),
    ]
}

fn term_free(places: &[Chunk], chunks: &Chunks) -> Option<Term> {
    let free: Vec<&Chunk> = places.iter().filter(|chunk| chunk.is_free).collect();
    let bytes: u64 = free.iter().map(|chunk| chunk.bytes).sum();
    let was_there = chunks
        .0
        .iter()
        .filter(|chunk| free.iter().any(|place| place.start == chunk.start));
    let names = listed(was_there.map(|chunk| chunk.block));
    let meaning = format!("free, kept for later mallocs: was {names}");
    (bytes > 0).then(|| Term::plus(TermKind::Free, bytes, meaning))
}

/// `a, c, d`.
fn listed(names: impl Iterator<Item = char>) -> String {
    names.map(String::from).collect::<Vec<_>>().join(", ")
}
