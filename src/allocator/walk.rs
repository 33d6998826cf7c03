//! Looks through the heap of another process, block by block.
//!
//! Everything is read by way of a [`Memory`] and nothing of it is relied on: the program may have written anything
//! anywhere. A chunk is followed only if its tag is valid and it ends inside its segment; what does not hang together
//! ends the walk of its segment, and is told. Time and memory are bounded by [`Limits`].
//!
//! The process should stand still with no thread inside the allocator. An arena whose lock is held is passed over. Of
//! threads that were stopped while they used their own cache nothing can be seen: for the few instructions between the
//! header of a block and its canary, a block may look overwritten.
//!
//! The layout of segments, arenas and slabs, of tags and headers is that of this version: a page of another
//! [`LAYOUT_VERSION`](crate::stats_page::LAYOUT_VERSION) is its reader's to refuse.

use core::mem::offset_of;
use core::mem::size_of;
use std::collections::BTreeMap;
use std::collections::BTreeSet;

use super::arena::Arena;
use super::arena::SEGMENT_RECORD;
use super::arena::Segment;
use super::chunk::Chunk;
use super::chunk::END;
use super::chunk::FRONT;
use super::chunk::IN_USE;
use super::chunk::SLAB;
use super::chunk::SMALLEST;
use super::chunk::Tag;
use super::chunk::UNIT;
use super::guard;
use super::header::CANARY;
use super::header::GUARDED;
use super::header::HEADER_BYTES;
use super::header::Header;
use super::header::MEDIUM;
use super::header::State;
use super::header::canary_byte_is_right;
use super::large;
use super::large::LargeRecord;
use super::round_down;
use super::size_class::small_bytes;
use super::slab::Slab;
use crate::stats_page::ArenaCounters;
use crate::stats_page::HeapErrorKind;
use crate::stats_page::Page;
use crate::stats_page::Plain;
use crate::stats_page::SMALL_CLASSES;

/// Memory of a process.
pub trait Memory {
    /// Copies the bytes from `address` on; `false` if not all of them could be read.
    fn read(&self, address: u64, bytes: &mut [u8]) -> bool;
}

/// How far a walk goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes read at most.
    pub bytes: u64,
    /// Errors told at most.
    pub errors: usize,
    /// Sizes told at most.
    pub sizes: usize,
    /// Live blocks told one by one at most.
    pub blocks: usize,
}

/// A live block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LiveBlock {
    /// Its address.
    pub address: u64,
    /// Bytes asked for.
    pub size: u64,
    /// Whether it is a sample.
    pub is_sample: bool,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 512 << 20,
            errors: 64,
            sizes: 16,
            blocks: 0,
        }
    }
}

/// Live blocks of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size {
    /// Bytes asked for in each.
    pub bytes: u64,
    /// How many.
    pub blocks: u64,
}

/// A block, or a record, that was overwritten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Damage {
    /// What happened.
    pub kind: HeapErrorKind,
    /// Address of the block.
    pub address: u64,
    /// Bytes that were asked for; `None` when not known.
    pub size: Option<u64>,
    /// First changed byte, as far as can be told.
    pub changed: u64,
}

/// What chunks come to, of the segments seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// Segments.
    pub segments: u64,
    /// Bytes of chunks in use: slabs, and medium blocks that are live or in caches.
    pub used_bytes: u64,
    /// Free chunks.
    pub free_chunks: u64,
    /// Their bytes.
    pub free_chunk_bytes: u64,
    /// Bytes of tops.
    pub top_bytes: u64,
    /// Bytes of free blocks in slabs.
    pub free_slab_bytes: u64,
}

impl Totals {
    fn add(&mut self, other: &Self) {
        self.segments += other.segments;
        self.used_bytes = self.used_bytes.saturating_add(other.used_bytes);
        self.free_chunks += other.free_chunks;
        self.free_chunk_bytes = self.free_chunk_bytes.saturating_add(other.free_chunk_bytes);
        self.top_bytes = self.top_bytes.saturating_add(other.top_bytes);
        self.free_slab_bytes += other.free_slab_bytes;
    }
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Walk {
    /// Why not everything was seen; `None` if it was.
    pub stopped: Option<Stop>,
    /// Live blocks that were seen.
    pub live_blocks: u64,
    /// Bytes asked for in them.
    pub live_bytes: u64,
    /// The sizes that most of these bytes have, most first.
    pub largest: Vec<Size>,
    /// Live blocks, as many as [`Limits`] allow to tell.
    pub blocks: Vec<LiveBlock>,
    /// Where the heap's blocks lie: first address, and the one behind the last, of segments and large blocks' mappings.
    pub spans: Vec<(u64, u64)>,
    /// What was overwritten, in the order of addresses within each segment.
    pub damage: Vec<Damage>,
    /// More of it was found than [`Limits`] allow to tell.
    pub more_damage: bool,
    /// Of all arenas.
    pub totals: Totals,
    /// Arenas whose chunks do not come to what their counters say, though all were seen. None in a heap that stands still
    /// and was not overwritten.
    pub arenas_that_disagree: u64,
    /// Bytes read.
    pub read_bytes: u64,
}

/// Why a walk, or that of one segment, ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// A thread was inside the allocator and held an arena's lock.
    Locked,
    /// Memory that should be the heap's cannot be read; its address.
    Unreadable(u64),
    /// A record of the heap was overwritten, and does not lead on; its address.
    Overwritten(u64),
    /// As many bytes were read as allowed.
    Limit,
    /// So many large blocks that there should be were not found.
    NotFound(u64),
}

impl core::fmt::Display for Stop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match self {
            Self::Locked => f.write_str("a thread was inside the allocator"),
            Self::Unreadable(at) => write!(f, "memory at {at:#x} cannot be read"),
            Self::Overwritten(at) => write!(f, "the heap's records were overwritten at {at:#x}"),
            Self::NotFound(1) => f.write_str("a large block was not found"),
            Self::NotFound(blocks) => write!(f, "{blocks} large blocks were not found"),
            Self::Limit => f.write_str("it is too large to be looked through"),
        }
    }
}

/// Large blocks lie in mappings of their own, to which nothing leads but the program.
#[derive(Clone, Copy, Debug)]
pub struct Large<'a> {
    /// How many are live, by the counters.
    pub blocks: u64,
    /// Where anonymous memory is that can be read and written: first address, and the one behind the last.
    pub places: &'a [(u64, u64)],
}

/// Looks through the heap that `page` was read from: all arenas, then for large blocks.
#[must_use]
pub fn walk(page: &Page, memory: &impl Memory, large: Large<'_>, limits: Limits) -> Walk {
    let mut walker = Walker {
        window: Window::new(memory, limits.bytes),
        limits,
        secret: page.secret.get(),
        guard: page.settings.guard.get() != 0,
        known: known_errors(page),
        seen: BTreeSet::new(),
        spans: BTreeMap::new(),
        small_sizes: vec![0; 1024],
        other_sizes: BTreeMap::new(),
        walk: Walk::default(),
    };
    walker.arenas(page.arenas.get());
    walker.large_blocks(large);
    walker.finish()
}

/// Blocks that the program itself has reported.
fn known_errors(page: &Page) -> BTreeSet<u64> {
    page.errors
        .iter()
        .filter(|record| record.number.get() != 0)
        .map(|record| record.address.get())
        .collect()
}

/// Bytes read at once.
const WINDOW: usize = 64 << 10;
/// Memory is readable by pages.
const PAGE: u64 = 4096;
/// More arenas or segments than these, and their lists are taken for damaged.
const MOST_PARTS: usize = 1 << 16;

type Result<T> = core::result::Result<T, Stop>;

/// Copies memory piece by piece.
struct Window<'a, M> {
    memory: &'a M,
    start: u64,
    bytes: Vec<u8>,
    /// Where what is being read ends: nothing behind it need be readable.
    end: u64,
    left: u64,
    read: u64,
}

impl<'a, M: Memory> Window<'a, M> {
    fn new(memory: &'a M, limit: u64) -> Self {
        Self {
            memory,
            start: 0,
            bytes: Vec::with_capacity(WINDOW),
            end: u64::MAX,
            left: limit,
            read: 0,
        }
    }

    /// `N` bytes from memory.
    fn array<const N: usize>(&mut self, address: u64) -> Result<[u8; N]> {
        if let Some(found) = self.get(address) {
            return Ok(found);
        }
        self.load(address, N)?;
        self.get(address).ok_or(Stop::Unreadable(address))
    }

    fn get<const N: usize>(&self, address: u64) -> Option<[u8; N]> {
        let offset = usize::try_from(address.checked_sub(self.start)?).ok()?;
        let bytes = self.bytes.get(offset..)?.get(..N)?;
        bytes.try_into().ok()
    }

    fn word(&mut self, address: u64) -> Result<u64> {
        Ok(u64::from_le_bytes(self.array(address)?))
    }

    fn half(&mut self, address: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.array(address)?))
    }

    fn quarter(&mut self, address: u64) -> Result<usize> {
        Ok(usize::from(u16::from_le_bytes(self.array(address)?)))
    }

    fn byte(&mut self, address: u64) -> Result<u8> {
        Ok(self.array::<1>(address)?[0])
    }

    /// Moves the window to where it holds `length` bytes from `address` on, if they can be read.
    fn load(&mut self, address: u64, length: usize) -> Result<()> {
        let least = address
            .checked_add(length as u64)
            .ok_or(Stop::Unreadable(address))?;
        let most = address.saturating_add(WINDOW as u64).min(self.end);
        // All there is of the segment; or else to the end of the page.
        for end in [
            most,
            ((least - 1) | (PAGE - 1)).saturating_add(1).min(most),
            least,
        ] {
            if end < least {
                continue;
            }
            let size = end - address;
            if size > self.left {
                return Err(Stop::Limit);
            }
            self.start = address;
            self.bytes.resize(size as usize, 0);
            if self.memory.read(address, &mut self.bytes) {
                self.left -= size;
                self.read += size;
                return Ok(());
            }
        }
        self.bytes.clear();
        Err(Stop::Unreadable(address))
    }
}

/// Where one arena's top is.
#[derive(Clone, Copy)]
struct Top {
    start: u64,
    end: u64,
}

/// What a block behind which another comes turned out to be.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Its end is as it should be, or nothing is known of it.
    Fine,
    /// Bytes behind its end were changed, which was told: what follows was overwritten by the same write.
    Overflowed,
}

struct Walker<'a, M> {
    window: Window<'a, M>,
    limits: Limits,
    secret: u64,
    guard: bool,
    known: BTreeSet<u64>,
    /// Segments and arenas that were visited.
    seen: BTreeSet<u64>,
    /// Start and end of segments.
    spans: BTreeMap<u64, u64>,
    /// Live blocks by size, up to the first that is not small.
    small_sizes: Vec<u64>,
    other_sizes: BTreeMap<u64, u64>,
    walk: Walk,
}

impl<M: Memory> Walker<'_, M> {
    fn finish(mut self) -> Walk {
        let small = (0..).zip(&self.small_sizes);
        let mut sizes: Vec<Size> = small
            .map(|(bytes, blocks)| (bytes, *blocks))
            .chain(self.other_sizes)
            .filter(|(_, blocks)| *blocks > 0)
            .map(|(bytes, blocks)| Size { bytes, blocks })
            .collect();
        sizes.sort_by_key(|size| {
            std::cmp::Reverse((size.bytes.saturating_mul(size.blocks), size.blocks))
        });
        sizes.truncate(self.limits.sizes);
        self.walk.largest = sizes;
        self.walk.read_bytes = self.window.read;
        self.walk.spans.extend(self.spans);
        self.walk
    }

    /// Notes why something was not seen; the first reason is told.
    fn stop(&mut self, why: Stop) {
        self.walk.stopped.get_or_insert(why);
    }

    fn damaged(&mut self, kind: HeapErrorKind, address: u64, size: Option<u64>, changed: u64) {
        if self.known.contains(&address) {
            return;
        }
        if self.walk.damage.len() >= self.limits.errors {
            self.walk.more_damage = true;
            return;
        }
        self.walk.damage.push(Damage {
            kind,
            address,
            size,
            changed,
        });
    }

    fn live(&mut self, address: u64, size: u64) {
        if self.walk.blocks.len() < self.limits.blocks {
            let header = self.window.word(address - HEADER_BYTES as u64);
            self.walk.blocks.push(LiveBlock {
                address,
                size,
                is_sample: header.is_ok_and(|word| Header::from_word(word).is_sample()),
            });
        }
        self.walk.live_blocks += 1;
        self.walk.live_bytes = self.walk.live_bytes.saturating_add(size);
        match self.small_sizes.get_mut(size as usize) {
            Some(blocks) => *blocks += 1,
            None => *self.other_sizes.entry(size).or_default() += 1,
        }
    }

    fn arenas(&mut self, first: u64) {
        let mut address = first;
        while address != 0 {
            if self.seen.len() >= MOST_PARTS || !self.seen.insert(address) {
                self.stop(Stop::Overwritten(address));
                return;
            }
            match self.arena(address) {
                Ok(next) => address = next,
                Err(why) => {
                    self.stop(why);
                    return;
                }
            }
        }
    }

    /// Looks through an arena; the address of the next one.
    fn arena(&mut self, address: u64) -> Result<u64> {
        self.window.end = u64::MAX;
        let bytes = self
            .window
            .array::<{ size_of::<ArenaCounters>() }>(address)?;
        let counters = ArenaCounters::from_bytes(&bytes).ok_or(Stop::Unreadable(address))?;
        let field = |offset: usize| address.saturating_add(offset as u64);
        let lock = self.window.half(field(offset_of!(Arena, lock)))?;
        let index = self.window.half(field(offset_of!(Arena, index)))?;
        let secret = self.window.word(field(offset_of!(Arena, secret)))?;
        let top = Top {
            start: self.window.word(field(offset_of!(Arena, top)))?,
            end: self.window.word(field(offset_of!(Arena, top_end)))?,
        };
        let next = counters.next.get();
        if lock != 0 {
            self.stop(Stop::Locked);
            return Ok(next);
        }
        if secret != self.secret {
            self.stop(Stop::Overwritten(address));
            return Ok(next);
        }
        match self.segments(&counters, address, index, top) {
            Ok(totals) => {
                let agrees = totals.free_chunks == counters.free_chunks.get()
                    && totals.free_chunk_bytes == counters.free_chunk_bytes.get()
                    && totals.top_bytes == counters.top_bytes.get()
                    && totals.free_slab_bytes == free_slab_bytes(&counters);
                self.walk.arenas_that_disagree += u64::from(!agrees);
            }
            Err(why) => self.stop(why),
        }
        Ok(next)
    }

    /// Looks through an arena's segments, also those behind one that was left early.
    fn segments(
        &mut self,
        counters: &ArenaCounters,
        arena: u64,
        index: u32,
        top: Top,
    ) -> Result<Totals> {
        let mut sum = Totals::default();
        let mut result = Ok(());
        let mut segment = counters.segments.get();
        let mut is_open = true;
        while segment != 0 {
            if self.seen.len() >= MOST_PARTS
                || !self.seen.insert(segment)
                || !segment.is_multiple_of(UNIT as u64)
            {
                return Err(Stop::Overwritten(segment));
            }
            self.window.end = u64::MAX;
            let field = |offset: usize| segment.saturating_add(offset as u64);
            let check = self.window.word(field(offset_of!(Segment, check)))?;
            let next = self.window.word(field(offset_of!(Segment, next)))?;
            let end = self.window.word(field(offset_of!(Segment, end)))?;
            if check != Segment::check(segment as usize, self.secret) {
                self.damaged(HeapErrorKind::RecordsChanged, segment, None, segment);
                return Err(Stop::Overwritten(segment));
            }
            let span = Span {
                arena,
                index,
                start: segment,
                end: if is_open { top.end } else { end },
                top: is_open.then_some(top),
            };
            self.spans.insert(segment, span.end);
            let mut totals = Totals {
                segments: 1,
                ..Totals::default()
            };
            if let Err(why) = self.segment(span, &mut totals) {
                self.stop(why);
                result = Err(why);
            }
            sum.add(&totals);
            self.walk.totals.add(&totals);
            if why_ends_all(&result) {
                break;
            }
            segment = next;
            is_open = false;
        }
        result.map(|()| sum)
    }

    /// Follows the chunks of a segment.
    fn segment(&mut self, span: Span, totals: &mut Totals) -> Result<()> {
        let end = round_down(span.end as usize, UNIT) as u64;
        let first = span.start.saturating_add(SEGMENT_RECORD as u64);
        if end <= first {
            return Err(Stop::Overwritten(span.start));
        }
        self.window.end = end;
        let mut chunk = first;
        let mut before = Before::Fine;
        while chunk < end {
            let tag = Tag(self.window.word(chunk)?);
            let size = tag.size() as u64;
            if !tag.is_valid(chunk as usize, self.secret)
                || size > end - chunk
                || !size.is_multiple_of(UNIT as u64)
            {
                if before == Before::Fine {
                    self.damaged(HeapErrorKind::RecordsChanged, chunk, None, chunk);
                }
                return Err(Stop::Overwritten(chunk));
            }
            if span.top.is_some_and(|top| top.start == chunk) {
                totals.top_bytes += size;
                return if chunk + size == end {
                    Ok(())
                } else {
                    Err(Stop::Overwritten(chunk))
                };
            }
            if tag.has(END) {
                return if chunk + size == end && span.top.is_none() {
                    Ok(())
                } else {
                    Err(Stop::Overwritten(chunk))
                };
            }
            if size < SMALLEST as u64 {
                return Err(Stop::Overwritten(chunk));
            }
            before = if !tag.has(IN_USE) {
                self.free_chunk(chunk, size)?;
                totals.free_chunks += 1;
                totals.free_chunk_bytes += size;
                Before::Fine
            } else {
                totals.used_bytes += size;
                if tag.has(SLAB) {
                    totals.free_slab_bytes += self.slab(&span, chunk, size)?;
                    Before::Fine
                } else {
                    self.medium(&span, chunk, size, before)?
                }
            };
            chunk += size;
        }
        // Neither top nor end marker.
        Err(Stop::Overwritten(end))
    }

    /// A free chunk that was written to has lost its size at its end, or its links.
    fn free_chunk(&mut self, chunk: u64, size: u64) -> Result<()> {
        let block = chunk + FRONT as u64;
        for link in [chunk + 8, chunk + 16] {
            if !self.window.word(link)?.is_multiple_of(UNIT as u64) {
                self.damaged(HeapErrorKind::WriteAfterFree, block, None, link);
                return Ok(());
            }
        }
        let foot = chunk + size - 8;
        if self.window.word(foot)? != size {
            self.damaged(HeapErrorKind::WriteAfterFree, block, None, foot);
        }
        Ok(())
    }

    /// Looks at the block of a chunk in use.
    fn medium(&mut self, span: &Span, chunk: u64, size: u64, before: Before) -> Result<Before> {
        let block = Chunk(chunk as usize).block() as u64;
        let header = Header::from_word(self.window.word(block - HEADER_BYTES as u64)?);
        match header.state(block as usize, self.secret) {
            State::Live => {}
            // In a cache.
            State::Free => return Ok(Before::Fine),
            State::Broken => {
                if before == Before::Fine {
                    self.broken(block);
                }
                return Ok(before);
            }
        }
        let slack = u64::from(header.data() & 0xffff);
        let asked = (size - FRONT as u64).checked_sub(slack);
        let (Some(asked), true, true) = (
            asked,
            header.kind() == MEDIUM && slack > 0,
            header.data() >> 16 == span.index,
        ) else {
            let changed = block - HEADER_BYTES as u64;
            self.damaged(HeapErrorKind::RecordsChanged, block, None, changed);
            return Ok(Before::Fine);
        };
        self.live_block(block, asked)
    }

    /// The header of a block in use is none any more.
    fn broken(&mut self, block: u64) {
        let changed = block - HEADER_BYTES as u64;
        self.damaged(HeapErrorKind::WriteBeforeStart, block, None, changed);
    }

    /// Counts a live block, or the guarded one in it, and looks at its end.
    fn live_block(&mut self, block: u64, size: u64) -> Result<Before> {
        if self.guard
            && let Some(guarded) = self.guarded_in(block, size)?
        {
            return self.guarded(block, size, guarded);
        }
        self.live(block, size);
        if canary_byte_is_right(self.window.byte(block + size)?) {
            return Ok(Before::Fine);
        }
        let changed = block + size;
        self.damaged(HeapErrorKind::WritePastEnd, block, Some(size), changed);
        Ok(Before::Overflowed)
    }

    /// The guarded block inside a usual one, its header and its size, if there is one.
    fn guarded_in(&mut self, inner: u64, room: u64) -> Result<Option<(u64, Header, u64)>> {
        let mut offset = guard::FRONT as u64;
        while offset <= room {
            let block = inner + offset;
            let header = Header::from_word(self.window.word(block - HEADER_BYTES as u64)?);
            let size = self.window.word(block - guard::FRONT as u64 + 8)?;
            let distance = self.window.word(block - guard::FRONT as u64 + 16)?;
            let mended = header.mended();
            let is_header = header.state(block as usize, self.secret) != State::Broken
                || mended.state(block as usize, self.secret) == State::Live;
            if header.kind() == GUARDED
                && is_header
                && distance == offset
                && u64::from(header.data()) == size
                && size <= room - offset
            {
                return Ok(Some((block, header, size)));
            }
            // Before it there is nothing but its zone.
            if self.window.word(inner + offset - guard::FRONT as u64)?
                != u64::from_le_bytes([guard::ZONE; 8])
            {
                return Ok(None);
            }
            offset += UNIT as u64;
        }
        Ok(None)
    }

    /// Counts a guarded block, and looks at its zones.
    fn guarded(&mut self, inner: u64, room: u64, found: (u64, Header, u64)) -> Result<Before> {
        let (block, header, size) = found;
        match header.state(block as usize, self.secret) {
            State::Live => {}
            // In quarantine, which the program looks at itself.
            State::Free => return Ok(Before::Fine),
            // Of its header only the byte next to the block was overwritten.
            State::Broken => {
                self.damaged(
                    HeapErrorKind::WriteBeforeStart,
                    block,
                    Some(size),
                    block - 1,
                );
            }
        }
        self.live(block, size);
        if let Some(changed) = self.first_changed(inner, block - guard::FRONT as u64 + 8)? {
            self.damaged(HeapErrorKind::WriteBeforeStart, block, Some(size), changed);
        }
        let end = inner + room;
        if let Some(changed) = self.first_changed(block + size, end)? {
            self.damaged(HeapErrorKind::WritePastEnd, block, Some(size), changed);
        } else if !canary_byte_is_right(self.window.byte(end)?) {
            self.damaged(HeapErrorKind::WritePastEnd, block, Some(size), end);
            return Ok(Before::Overflowed);
        }
        Ok(Before::Fine)
    }

    /// The first byte of a zone that is not as it should be.
    fn first_changed(&mut self, start: u64, end: u64) -> Result<Option<u64>> {
        for address in start..end {
            if self.window.byte(address)? != guard::ZONE {
                return Ok(Some(address));
            }
        }
        Ok(None)
    }

    /// Looks at the blocks of a slab; bytes of free ones in it.
    fn slab(&mut self, span: &Span, chunk: u64, chunk_size: u64) -> Result<u64> {
        let field = |offset: usize| chunk + offset as u64;
        let check = self.window.word(field(offset_of!(Slab, check)))?;
        let arena = self.window.word(field(offset_of!(Slab, arena)))?;
        let class = self.window.quarter(field(offset_of!(Slab, class)))?;
        let capacity = self.window.quarter(field(offset_of!(Slab, capacity)))?;
        let cut = self.window.quarter(field(offset_of!(Slab, cut)))?;
        let free = self.window.quarter(field(offset_of!(Slab, free)))?;
        let first = Slab::first_block(capacity) as u64;
        if check != Slab::check(chunk as usize, self.secret)
            || arena != span.arena
            || class >= SMALL_CLASSES
            || cut > capacity
            || first + (capacity * small_bytes(class)) as u64 > chunk_size
        {
            let block = chunk + FRONT as u64;
            self.damaged(HeapErrorKind::RecordsChanged, block, None, chunk + 8);
            return Err(Stop::Overwritten(chunk));
        }
        let bytes = small_bytes(class) as u64;
        let mut bits = Vec::with_capacity(capacity.div_ceil(64));
        for word in 0..capacity.div_ceil(64) {
            bits.push(self.window.word(field(size_of::<Slab>() + 8 * word))?);
        }
        let set: usize = bits.iter().map(|word| word.count_ones() as usize).sum();
        if free != capacity - cut + set {
            let block = chunk + FRONT as u64;
            self.damaged(HeapErrorKind::RecordsChanged, block, None, chunk + 8);
            return Err(Stop::Overwritten(chunk));
        }
        let mut before = Before::Fine;
        for index in 0..cut {
            let small = Small {
                block: chunk + first + index as u64 * bytes,
                class,
                distance: first as usize + index * small_bytes(class),
                is_free: bits[index / 64] >> (index % 64) & 1 == 1,
            };
            let block = small.block;
            before = self.small(small, before)?;
            // What the program has reported of this block may have reached the next one.
            if self.known.contains(&block) {
                before = Before::Overflowed;
            }
        }
        Ok(free as u64 * bytes)
    }

    fn small(&mut self, small: Small, before: Before) -> Result<Before> {
        let Small { block, class, .. } = small;
        let header = Header::from_word(self.window.word(block - HEADER_BYTES as u64)?);
        let state = header.state(block as usize, self.secret);
        if state == State::Broken {
            if before == Before::Fine {
                if small.is_free {
                    let changed = block - HEADER_BYTES as u64;
                    self.damaged(HeapErrorKind::WriteAfterFree, block, None, changed);
                } else {
                    self.broken(block);
                }
            }
            return Ok(before);
        }
        let size = header.small_size();
        if usize::from(header.kind()) != class
            || header.slab_distance() != small.distance
            || size > small_bytes(class) - HEADER_BYTES
            || (state == State::Live && small.is_free)
        {
            let changed = block - HEADER_BYTES as u64;
            self.damaged(HeapErrorKind::RecordsChanged, block, None, changed);
            return Ok(Before::Fine);
        }
        if state == State::Live {
            self.live_block(block, size as u64)
        } else {
            // In its slab, or in a cache.
            Ok(Before::Fine)
        }
    }
}

/// Where in their mapping large blocks may begin, alignments being powers of two.
const LARGE_FRONTS: [u64; 7] = [64, 128, 256, 512, 1024, 2048, 4096];
const _: () = assert!(LARGE_FRONTS[0] == large::FRONT as u64);

impl<M: Memory> Walker<'_, M> {
    /// Looks for large blocks at the starts of pages, until all are found.
    fn large_blocks(&mut self, large: Large<'_>) {
        let most = self.walk.live_blocks.saturating_add(large.blocks);
        for (start, end) in large.places {
            let mut address = *start;
            while address < *end && self.walk.live_blocks < most {
                if self.walk.stopped == Some(Stop::Limit) {
                    return;
                }
                self.window.end = *end;
                let next = match self.large_block(address, *end) {
                    Ok(next) => next,
                    // Not all memory can be read, and what cannot is hardly a block.
                    Err(Stop::Unreadable(_)) => None,
                    Err(why) => return self.stop(why),
                };
                address = next.unwrap_or(address.saturating_add(PAGE));
            }
        }
        if self.walk.live_blocks < most {
            self.stop(Stop::NotFound(most - self.walk.live_blocks));
        }
    }

    /// Looks at a page: where to go on, if a block or a segment begins there.
    fn large_block(&mut self, address: u64, end: u64) -> Result<Option<u64>> {
        let behind = |length: u64| address.checked_add(length).filter(|next| *next <= end);
        // The heap at the break begins anywhere; segments elsewhere at pages.
        if let Some((_, segment_end)) = self.spans.range(..=address).next_back()
            && *segment_end > address
        {
            return Ok(segment_end.checked_next_multiple_of(PAGE));
        }
        for front in LARGE_FRONTS {
            let Some(block) = behind(front) else {
                return Ok(None);
            };
            let mut words = [0; 4];
            let record = block - (HEADER_BYTES + large::RECORD) as u64;
            for (at, word) in (record..).step_by(8).zip(&mut words) {
                *word = self.window.word(at)?;
            }
            let Some(record) = LargeRecord::from_words(words, block as usize, self.secret) else {
                continue;
            };
            let (length, size) = (record.length as u64, record.size as u64);
            let fits = size.checked_add(front).is_some_and(|used| used < length);
            let Some(next) = behind(length).filter(|_| fits && record.start as u64 == address)
            else {
                continue;
            };
            let header = Header::from_word(self.window.word(block - HEADER_BYTES as u64)?);
            if header.state(block as usize, self.secret) == State::Live {
                self.live_block(block, size)?;
            } else {
                self.live(block, size);
                self.broken(block);
            }
            self.walk.spans.push((address, next));
            return Ok(Some(next));
        }
        Ok(None)
    }
}

/// A small block's place.
#[derive(Clone, Copy)]
struct Small {
    block: u64,
    class: usize,
    /// From the slab.
    distance: usize,
    /// Whether its slab has it as a free one.
    is_free: bool,
}

/// A segment and what it belongs to.
#[derive(Clone, Copy)]
struct Span {
    arena: u64,
    index: u32,
    start: u64,
    end: u64,
    /// Of the newest segment.
    top: Option<Top>,
}

/// Whether nothing more can be read after this.
fn why_ends_all(result: &Result<()>) -> bool {
    matches!(result, Err(Stop::Limit))
}

fn free_slab_bytes(counters: &ArenaCounters) -> u64 {
    (0..SMALL_CLASSES).fold(0_u64, |sum, class| {
        let bytes = small_bytes(class) as u64;
        sum.wrapping_add(bytes.wrapping_mul(counters.slab_free[class].get()))
    })
}

const _: () = assert!(CANARY == guard::ZONE);

#[cfg(test)]
mod tests {
    use super::super::Setup;
    use super::super::tests::Program;
    use super::super::tests::Random;
    use super::*;
    use crate::stats_page::Policy;

    /// A copy of a program's memory.
    struct Image {
        parts: Vec<(u64, Vec<u8>)>,
        page: Page,
        large_blocks: u64,
    }

    impl Memory for Image {
        fn read(&self, address: u64, bytes: &mut [u8]) -> bool {
            self.parts.iter().any(|(start, part)| {
                let Some(offset) = address.checked_sub(*start) else {
                    return false;
                };
                let found = usize::try_from(offset)
                    .ok()
                    .and_then(|offset| part.get(offset..)?.get(..bytes.len()));
                found.map(|found| bytes.copy_from_slice(found)).is_some()
            })
        }
    }

    impl Image {
        fn of(program: &Program) -> Self {
            let copy = |start: usize, length: usize| {
                let pointer = core::ptr::with_exposed_provenance::<u8>(start);
                // SAFETY: ranges of memory that the program holds, which stands still.
                let bytes = unsafe { core::slice::from_raw_parts(pointer, length) };
                (start as u64, bytes.to_vec())
            };
            let arena = program.heap.main.get().expose_provenance();
            let mut parts = vec![copy(arena, size_of::<Arena>())];
            for (start, length) in program.heap.kernel.readable() {
                parts.push(copy(start, length));
            }
            let page = copy(program.page.expose_provenance(), size_of::<Page>());
            Self {
                parts,
                page: Page::from_bytes(&page.1).unwrap(),
                large_blocks: program.heap.counters().live_large_blocks,
            }
        }

        fn walk(&self) -> Walk {
            let places: Vec<(u64, u64)> = self
                .parts
                .iter()
                .map(|(start, part)| (*start, start + part.len() as u64))
                .collect();
            let large = Large {
                blocks: self.large_blocks,
                places: &places,
            };
            walk(&self.page, self, large, Limits::default())
        }

        fn write(&mut self, address: usize, bytes: &[u8]) {
            let address = address as u64;
            let (start, part) = self
                .parts
                .iter_mut()
                .find(|(start, part)| (*start..*start + part.len() as u64).contains(&address))
                .unwrap();
            let offset = (address - *start) as usize;
            part[offset..offset + bytes.len()].copy_from_slice(bytes);
        }
    }

    fn program(setup: &Setup) -> Program {
        Program::with_region(setup, 16 << 20)
    }

    fn setups() -> Vec<Setup> {
        let mut setups: Vec<Setup> = [Policy::Never, Policy::Trim, Policy::Eager]
            .into_iter()
            .map(|policy| Setup {
                policy,
                ..Setup::default()
            })
            .collect();
        setups.push(Setup {
            guard: true,
            ..Setup::default()
        });
        setups
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn a_walk_sees_the_blocks_that_the_program_holds() {
        for (seed, setup) in (1..).zip(setups()) {
            let mut program = Program::with_threads(&setup, 4);
            for round in 0..5 {
                program.run(100 * seed + round, 200);
                let walk = Image::of(&program).walk();
                assert_eq!(walk.stopped, None);
                assert_eq!(walk.damage, []);
                assert_eq!(walk.arenas_that_disagree, 0);
                let seen: Vec<usize> = program.held().map(|(_, size)| size).collect();
                assert_eq!(walk.live_blocks, seen.len() as u64);
                assert_eq!(walk.live_bytes, seen.iter().sum::<usize>() as u64);
                let most = walk.largest[0];
                let same = seen.iter().filter(|size| **size as u64 == most.bytes);
                assert_eq!(same.count() as u64, most.blocks);
                let sums = walk.largest.iter().map(|size| size.bytes * size.blocks);
                assert!(sums.is_sorted_by(|a, b| a >= b));
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn guarded_blocks_are_seen_with_their_own_size_and_not_in_quarantine() {
        let mut program = program(&Setup {
            guard: true,
            ..Setup::default()
        });
        for size in [0, 10, 10, 500, 2000] {
            program.malloc(size);
        }
        let freed = program.malloc(77);
        program.free(freed);
        let walk = Image::of(&program).walk();
        assert_eq!((walk.live_blocks, walk.live_bytes), (5, 2520));
        assert_eq!(walk.damage, []);
    }

    /// The only damage seen after these bytes were changed.
    #[track_caller]
    fn only_damage(program: &Program, changes: &[(usize, &[u8])]) -> (Damage, Option<Stop>) {
        let mut image = Image::of(program);
        for (address, bytes) in changes {
            image.write(*address, bytes);
        }
        let walk = image.walk();
        assert_eq!(walk.damage.len(), 1, "{walk:x?}");
        (walk.damage[0], walk.stopped)
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn bytes_written_past_the_end_are_told_with_the_block() {
        for guard in [false, true] {
            let mut program = program(&Setup {
                guard,
                ..Setup::default()
            });
            for size in [1, 8, 56, 60, 1000, 1016, 3000, 20_000, 300_000] {
                program.malloc(size);
                let block = program.malloc(size);
                program.malloc(size);
                let (damage, stopped) = only_damage(&program, &[(block + size, b"x")]);
                assert_eq!(damage.kind, HeapErrorKind::WritePastEnd);
                assert_eq!(damage.address, block as u64);
                assert_eq!(damage.size, Some(size as u64));
                assert_eq!(damage.changed, (block + size) as u64);
                assert_eq!(stopped, None);
            }
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn bytes_written_before_the_start_are_told_with_the_block() {
        let mut program = program(&Setup::default());
        for size in [60, 3000, 300_000] {
            program.malloc(size);
            let block = program.malloc(size);
            let (damage, stopped) = only_damage(&program, &[(block - 1, b"x")]);
            assert_eq!(damage.kind, HeapErrorKind::WriteBeforeStart);
            assert_eq!(damage.address, block as u64);
            assert_eq!(stopped, None);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn a_long_write_past_the_end_is_told_once_and_where_the_walk_stopped() {
        let mut program = program(&Setup::default());
        let block = program.malloc(3000);
        program.malloc(3000);
        let (damage, stopped) = only_damage(&program, &[(block + 3000, &[b'A'; 200])]);
        assert_eq!(damage.kind, HeapErrorKind::WritePastEnd);
        assert_eq!(damage.address, block as u64);
        assert!(matches!(stopped, Some(Stop::Overwritten(_))));
        let small = program.malloc(40);
        program.malloc(40);
        let (damage, stopped) = only_damage(&program, &[(small + 40, &[b'A'; 100])]);
        assert_eq!((damage.address, damage.size), (small as u64, Some(40)));
        assert_eq!(stopped, None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn writes_to_free_memory_are_told_where_they_hit_records() {
        let mut program = program(&Setup::default());
        let block = program.malloc(100_000);
        program.malloc(2000);
        program.free(block);
        let (damage, stopped) = only_damage(&program, &[(block, b"x")]);
        assert_eq!(damage.kind, HeapErrorKind::WriteAfterFree);
        assert_eq!(damage.address, block as u64);
        assert_eq!(stopped, None);
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn what_the_program_has_reported_is_not_told_again() {
        let mut program = program(&Setup::default());
        let block = program.malloc(60);
        let image = Image::of(&program);
        image.page.errors[0].number.set(1);
        image.page.errors[0].address.set(block as u64);
        let mut image = image;
        image.write(block + 60, b"x");
        assert_eq!(image.walk().damage, []);
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn an_arena_in_use_and_memory_that_is_gone_are_told() {
        let mut program = program(&Setup::default());
        program.malloc(60);
        let mut image = Image::of(&program);
        let lock = image.parts[0].0 as usize + offset_of!(Arena, lock);
        image.write(lock, &[1]);
        assert_eq!(image.walk().stopped, Some(Stop::Locked));
        image.write(lock, &[0]);
        image.parts.truncate(1);
        assert!(matches!(image.walk().stopped, Some(Stop::Unreadable(_))));
        image.parts.clear();
        assert!(matches!(image.walk().stopped, Some(Stop::Unreadable(_))));
        let large = program.malloc(300_000);
        let mut image = Image::of(&program);
        image.write(large - 40, b"x");
        assert_eq!(image.walk().stopped, Some(Stop::NotFound(1)));
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn a_walk_reads_no_more_than_it_may() {
        let mut program = program(&Setup::default());
        for _ in 0..1000 {
            program.malloc(1000);
        }
        let image = Image::of(&program);
        for bytes in [0, 100, 70_000, 200_000] {
            let limits = Limits {
                bytes,
                ..Limits::default()
            };
            let large = Large {
                blocks: 0,
                places: &[],
            };
            let walk = walk(&image.page, &image, large, limits);
            assert_eq!(walk.stopped, Some(Stop::Limit));
            assert!(walk.read_bytes <= bytes);
        }
    }

    #[test]
    #[cfg_attr(miri, ignore = "copies padding")]
    fn whatever_was_overwritten_the_walk_ends_and_tells_no_more_than_there_is() {
        for guard in [false, true] {
            let setup = Setup {
                guard,
                ..Setup::default()
            };
            let mut program = program(&setup);
            program.run(9, 300);
            let mut image = Image::of(&program);
            let whole = image.walk();
            let most_bytes: u64 = image.parts.iter().map(|(_, part)| part.len() as u64).sum();
            let mut random = Random(77);
            for round in 0..1500 {
                let saved: Vec<_> = (0..1 + random.below(8))
                    .map(|_| {
                        let index = random.below(image.parts.len());
                        let part = &mut image.parts[index].1;
                        let offset = random.below(part.len());
                        // Records are more likely at the start.
                        let offset = if index == 0 { offset % 700 } else { offset };
                        let length = (1 + random.below(64)).min(part.len() - offset);
                        let old = part[offset..offset + length].to_vec();
                        let style = random.below(4);
                        for byte in &mut part[offset..offset + length] {
                            *byte = match style {
                                0 => 0,
                                1 => 0xff,
                                2 => *byte ^ (1 << random.below(8)),
                                _ => random.below(256) as u8,
                            };
                        }
                        (index, offset, old)
                    })
                    .collect();
                let walk = image.walk();
                assert!(walk.damage.len() <= Limits::default().errors);
                assert!(walk.live_bytes <= most_bytes, "{round}: {walk:?}");
                assert!(walk.live_blocks <= whole.live_blocks + 16, "{round}");
                assert!(
                    walk.read_bytes <= 8 * most_bytes + (1 << 20),
                    "{round}: {walk:?}"
                );
                for (index, offset, old) in saved.into_iter().rev() {
                    image.parts[index].1[offset..offset + old.len()].copy_from_slice(&old);
                }
            }
            assert_eq!(image.walk(), whole);
        }
    }
}
