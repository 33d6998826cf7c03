//! One address space: its break, its mappings, and what became of them.

use super::calls::Call;
use super::calls::CallCounts;
use super::comparison;
use super::layout;
use super::program_break::BrkCall;
use super::program_break::BrkEffect;
use super::program_break::ProgramBreak;
use super::regions::Kind;
use super::regions::Regions;
use super::regions::Remap;
use super::regions::Span;
use super::steps::Step;
use super::steps::StepLog;
use super::timeline::Sizes;
use super::timeline::Timeline;
use crate::event::Advice;
use crate::event::EventKind;
use crate::event::MapFlags;
use crate::event::MemoryFigures;
use crate::event::Protection;
use crate::event::RemapFlags;
use crate::event::Snapshot;
use crate::event::SnapshotReason;
use crate::event::SpaceId;
use crate::mapping::Mapping;
use crate::mapping::MappingKind;
use crate::report::AnonymousReport;
use crate::report::Checks;
use crate::report::LayoutSegment;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::report::Steps;
use crate::report::TimelineReport;
use crate::units::Address;
use crate::units::Timestamp;
use crate::units::page_up;

/// Differences that are kept in words; further ones are only counted.
const MOST_DIFFERENCES: usize = 16;

/// Anonymous memory, as counted so far.
#[derive(Clone, Debug, Default)]
struct Anonymous {
    start_bytes: u64,
    peak_bytes: u64,
    /// Last, for address spaces whose regions are gone.
    end_bytes: u64,
    reserved_bytes: u64,
    areas: u64,
    grow_calls: u64,
    grown_bytes: u64,
    shrink_calls: u64,
    shrunk_bytes: u64,
    dontneed_bytes: u64,
    lazily_freed_bytes: u64,
}

/// What takes room and is dropped where there are too many address spaces.
#[derive(Clone, Debug, Default)]
struct Detail {
    timeline: Timeline,
    break_steps: StepLog,
    anonymous_steps: StepLog,
    layout: Vec<LayoutSegment>,
}

/// An address space and its story so far.
#[derive(Clone, Debug)]
pub(super) struct AddressSpace {
    id: SpaceId,
    pid: u32,
    program: String,
    arguments: Vec<String>,
    origin: SpaceOrigin,
    started: Timestamp,
    ended: Option<Timestamp>,
    page_size: u64,
    /// A snapshot, or the fork, has told what was there before the first call.
    has_baseline: bool,
    has_calls: bool,
    program_break: ProgramBreak,
    break_moves: u64,
    regions: Regions,
    anonymous: Anonymous,
    anonymous_moves: u64,
    calls: CallCounts,
    memory_at_start: Option<MemoryFigures>,
    memory_at_end: Option<MemoryFigures>,
    checks: Checks,
    /// Of the last snapshot that is fit to be drawn.
    mappings: Vec<Mapping>,
    detail: Option<Box<Detail>>,
}

/// Who an address space belongs to, and how it came to be.
#[derive(Debug)]
pub(super) struct Birth {
    pub(super) id: SpaceId,
    pub(super) pid: u32,
    pub(super) program: String,
    pub(super) arguments: Vec<String>,
    pub(super) origin: SpaceOrigin,
    pub(super) time: Timestamp,
    pub(super) page_size: u64,
}

impl AddressSpace {
    pub(super) fn new(birth: Birth) -> Self {
        Self {
            id: birth.id,
            pid: birth.pid,
            program: birth.program,
            arguments: birth.arguments,
            origin: birth.origin,
            started: birth.time,
            ended: None,
            page_size: birth.page_size,
            has_baseline: false,
            has_calls: false,
            program_break: ProgramBreak::default(),
            break_moves: 0,
            regions: Regions::default(),
            anonymous: Anonymous::default(),
            anonymous_moves: 0,
            calls: CallCounts::default(),
            memory_at_start: None,
            memory_at_end: None,
            checks: Checks::default(),
            mappings: Vec::new(),
            detail: Some(Box::default()),
        }
    }

    /// Takes over what fork(2) copies.
    pub(super) fn copy_from(&mut self, parent: &Self) {
        self.program_break = parent.program_break.forked();
        self.regions = parent.regions.clone();
        self.has_baseline = parent.has_baseline;
        self.anonymous.start_bytes = self.regions.usable_bytes();
        self.anonymous.peak_bytes = self.regions.usable_bytes();
        self.note_sizes(self.started, None);
    }

    pub(super) fn id(&self) -> SpaceId {
        self.id
    }

    pub(super) fn origin(&self) -> SpaceOrigin {
        self.origin
    }

    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn calls(&self) -> &CallCounts {
        &self.calls
    }

    pub(super) fn program_break(&self) -> &ProgramBreak {
        &self.program_break
    }

    pub(super) fn anonymous_grown_bytes(&self) -> u64 {
        self.anonymous.grown_bytes
    }

    pub(super) fn anonymous_shrunk_bytes(&self) -> u64 {
        self.anonymous.shrunk_bytes
    }

    /// Bytes by which break and anonymous memory grew.
    pub(super) fn grown_bytes(&self) -> u64 {
        self.program_break
            .grown_bytes()
            .saturating_add(self.anonymous.grown_bytes)
    }

    /// Largest sizes of break and anonymous memory, added up.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.program_break
            .peak()
            .unwrap_or(0)
            .saturating_add(self.anonymous.peak_bytes)
    }

    /// Nobody uses it any more.
    pub(super) fn end(&mut self, time: Timestamp) {
        self.ended = Some(time);
        self.anonymous.end_bytes = self.regions.usable_bytes();
        self.anonymous.reserved_bytes = self.regions.reserved_bytes();
        self.anonymous.areas = self.regions.usable_areas();
        let layout = self.layout();
        self.regions.clear();
        self.mappings = Vec::new();
        if let Some(detail) = &mut self.detail {
            detail.layout = layout;
            detail.timeline.shrink();
            detail.break_steps.shrink();
            detail.anonymous_steps.shrink();
        }
    }

    /// Keeps the counters only.
    pub(super) fn drop_detail(&mut self) {
        self.detail = None;
    }

    /// Applies an event that concerns this address space.
    pub(super) fn apply(&mut self, time: Timestamp, tid: u32, kind: &EventKind) {
        match kind {
            EventKind::Brk { .. } => self.brk(time, tid, kind),
            EventKind::Mmap { .. } => self.mmap(time, tid, kind),
            EventKind::Munmap {
                address,
                length,
                result,
            } => {
                let span = self.span(*address, *length);
                self.change(time, tid, Call::Munmap, result.is_done(), span, |regions| {
                    regions.unmap(span)
                });
            }
            EventKind::Mremap { .. } => self.mremap(time, tid, kind),
            EventKind::Mprotect {
                address,
                length,
                protection,
                result,
            } => {
                let span = self.span(*address, *length);
                let usable = is_usable(*protection);
                self.change(
                    time,
                    tid,
                    Call::Mprotect,
                    result.is_done(),
                    span,
                    |regions| {
                        regions.protect(span, usable);
                    },
                );
            }
            EventKind::Madvise {
                address,
                length,
                advice,
                result,
            } => self.madvise(*address, *length, *advice, result.is_done()),
            EventKind::Shmat { length, result, .. } => {
                let base = result.done();
                let span = base
                    .zip(*length)
                    .map(|(base, length)| self.span(base, length));
                let span = span.unwrap_or(Span::of(Address(0), 0));
                self.change(time, tid, Call::Shmat, result.is_done(), span, |regions| {
                    regions.map(span, Kind::Attachment { base: span.start });
                });
            }
            EventKind::Shmdt { address, result } => {
                let base = *address;
                self.change(
                    time,
                    tid,
                    Call::Shmdt,
                    result.is_done(),
                    Span::of(base, 0),
                    |regions| {
                        regions.detach(base);
                    },
                );
            }
            EventKind::RemapFilePages { result, .. } => {
                self.calls.count(Call::RemapFilePages, result.is_done())
            }
            EventKind::MapShadowStack { length, result } => {
                let span = self.span(result.done().unwrap_or_default(), *length);
                self.change(
                    time,
                    tid,
                    Call::MapShadowStack,
                    result.is_done(),
                    span,
                    |regions| {
                        regions.map(span, Kind::USABLE);
                    },
                );
            }
            EventKind::Snapshot(snapshot) => self.snapshot(time, snapshot),
            EventKind::ProcessStarted { .. }
            | EventKind::ThreadStarted
            | EventKind::ThreadEnded
            | EventKind::Exec { .. }
            | EventKind::ProcessEnded { .. }
            | EventKind::NotDecoded { .. }
            | EventKind::Notice(_)
            | EventKind::RecordingEnded { .. } => {}
        }
    }

    fn span(&self, start: Address, length: u64) -> Span {
        Span::of(start, page_up(length, self.page_size))
    }

    fn brk(&mut self, time: Timestamp, tid: u32, kind: &EventKind) {
        let EventKind::Brk {
            requested,
            before,
            after,
        } = *kind
        else {
            return;
        };
        self.has_calls = true;
        let effect = self.program_break.call(BrkCall {
            requested,
            before,
            after,
        });
        self.calls.count(Call::Brk, effect != BrkEffect::Refused);
        let BrkEffect::MovedFrom(from) = effect else {
            return;
        };
        let (low, high) = (from.min(after), from.max(after));
        let moved = Span {
            start: low.page_up(self.page_size),
            end: high.page_up(self.page_size),
        };
        if after > from {
            self.regions.map(moved, Kind::Heap);
        } else {
            self.regions.unmap(moved);
        }
        self.break_moves += 1;
        let step = Step {
            time,
            tid,
            call: Call::Brk,
            delta: after.offset_from(from),
            after: self.program_break.size().unwrap_or(0),
            from,
            to: after,
        };
        if let Some(detail) = &mut self.detail {
            detail.break_steps.push(step);
        }
        self.note_sizes(time, None);
    }

    fn mmap(&mut self, time: Timestamp, tid: u32, kind: &EventKind) {
        let EventKind::Mmap {
            length,
            protection,
            flags,
            result,
            ..
        } = kind
        else {
            return;
        };
        let length = page_up(*length, self.page_size.max(huge_page_size(*flags)));
        let span = Span::of(result.done().unwrap_or_default(), length);
        let kind = if flags.is_private_anonymous() {
            Kind::Anonymous {
                usable: is_usable(*protection),
                grows_down: flags.contains(MapFlags::GROWSDOWN),
            }
        } else {
            Kind::Other
        };
        self.change(time, tid, Call::Mmap, result.is_done(), span, |regions| {
            regions.map(span, kind)
        });
    }

    fn mremap(&mut self, time: Timestamp, tid: u32, kind: &EventKind) {
        let EventKind::Mremap {
            address,
            old_length,
            new_length,
            flags,
            result,
            ..
        } = kind
        else {
            return;
        };
        let old = self.span(*address, *old_length);
        let new = self.span(result.done().unwrap_or_default(), *new_length);
        let keep_old = flags.contains(RemapFlags::DONTUNMAP);
        let duplicate = *old_length == 0;
        let at_source = self.regions.at(*address).map(|region| region.kind);
        self.change(time, tid, Call::Mremap, result.is_done(), new, |regions| {
            if duplicate {
                // A second view of shared memory (mremap(2)).
                regions.map(new, at_source.unwrap_or(Kind::Other));
            } else {
                regions.remap(Remap { old, new, keep_old });
            }
        });
    }

    fn madvise(&mut self, address: Address, length: u64, advice: Advice, succeeded: bool) {
        self.has_calls = true;
        self.calls.count(Call::Madvise, succeeded);
        let lazily = advice == Advice::FREE;
        let at_once = matches!(
            advice,
            Advice::DONTNEED | Advice::DONTNEED_LOCKED | Advice::REMOVE
        );
        if !succeeded || !(lazily || at_once) {
            return;
        }
        for piece in self.regions.pieces(self.span(address, length)) {
            let bytes = piece.span.bytes();
            match piece.kind {
                Kind::Heap => add(&mut self.program_break.advised_bytes, bytes),
                Kind::Anonymous { .. } if lazily => {
                    add(&mut self.anonymous.lazily_freed_bytes, bytes)
                }
                Kind::Anonymous { .. } => add(&mut self.anonymous.dontneed_bytes, bytes),
                _ => {}
            }
        }
    }

    /// Counts a call and, if it succeeded, applies what it did to the regions.
    fn change(
        &mut self,
        time: Timestamp,
        tid: u32,
        call: Call,
        succeeded: bool,
        span: Span,
        apply: impl FnOnce(&mut Regions),
    ) {
        self.has_calls = true;
        self.calls.count(call, succeeded);
        if !succeeded {
            return;
        }
        let before = self.regions.usable_bytes();
        apply(&mut self.regions);
        let after = self.regions.usable_bytes();
        if after == before {
            return;
        }
        if after > before {
            self.anonymous.grow_calls += 1;
            add(&mut self.anonymous.grown_bytes, after - before);
        } else {
            self.anonymous.shrink_calls += 1;
            add(&mut self.anonymous.shrunk_bytes, before - after);
        }
        self.anonymous.peak_bytes = self.anonymous.peak_bytes.max(after);
        self.anonymous_moves += 1;
        let step = Step {
            time,
            tid,
            call,
            delta: after.wrapping_sub(before).cast_signed(),
            after,
            from: span.start,
            to: span.end,
        };
        if let Some(detail) = &mut self.detail {
            detail.anonymous_steps.push(step);
        }
        self.note_sizes(time, None);
    }

    fn note_sizes(&mut self, time: Timestamp, resident_bytes: Option<u64>) {
        let sizes = Sizes {
            break_bytes: self.program_break.size().unwrap_or(0),
            anonymous_bytes: self.regions.usable_bytes(),
            resident_bytes,
        };
        if let Some(detail) = &mut self.detail {
            detail.timeline.note(time, sizes);
        }
    }

    fn snapshot(&mut self, time: Timestamp, snapshot: &Snapshot) {
        if let Some(start) = snapshot.heap_start {
            self.program_break.learn_start(start);
        }
        if let Some(memory) = snapshot.memory {
            self.memory_at_start.get_or_insert(memory);
            self.memory_at_end = Some(memory);
        }
        if snapshot.heap_pages.is_some() {
            self.program_break.pages = snapshot.heap_pages;
        }
        let replaces_copy = snapshot.reason == SnapshotReason::Start && !self.has_calls;
        if !self.has_baseline || replaces_copy {
            self.take_as_baseline(snapshot);
        } else if snapshot.calls_under_way == 0 {
            self.check(time, &snapshot.mappings);
            self.adopt(&snapshot.mappings);
        } else if snapshot.reason == SnapshotReason::Resync {
            self.checks.skipped += 1;
            self.adopt(&snapshot.mappings);
        } else {
            self.checks.skipped += 1;
        }
        if snapshot.reason != SnapshotReason::Verify {
            self.mappings.clone_from(&snapshot.mappings);
        }
        self.note_sizes(time, snapshot.memory.map(|memory| memory.resident_bytes));
    }

    fn take_as_baseline(&mut self, snapshot: &Snapshot) {
        self.has_baseline = true;
        let heap_end = heap_end(&snapshot.mappings);
        if self.program_break.end().is_none() {
            match (snapshot.reason, snapshot.heap_start) {
                // A program begins with its break at the start of its heap (fs/binfmt_elf.c).
                (SnapshotReason::Start, Some(start)) if heap_end.is_none() => {
                    self.program_break.learn_first(start, true);
                }
                (_, start) => {
                    if let Some(end) = heap_end.or(start) {
                        self.program_break.learn_first(end, false);
                    }
                }
            }
        }
        self.adopt(&snapshot.mappings);
        self.anonymous.start_bytes = self.regions.usable_bytes();
        self.anonymous.peak_bytes = self.anonymous.peak_bytes.max(self.regions.usable_bytes());
    }

    /// Compares what the events add up to with what `/proc` shows.
    fn check(&mut self, time: Timestamp, mappings: &[Mapping]) {
        self.checks.made += 1;
        let differences = comparison::differences(&self.regions, mappings, self.heap());
        if differences.is_empty() {
            return;
        }
        self.checks.differing += 1;
        let room = MOST_DIFFERENCES.saturating_sub(self.checks.differences.len());
        let told = differences
            .into_iter()
            .take(room)
            .map(|difference| difference.tell(time));
        self.checks.differences.extend(told);
    }

    /// Takes the state of the mappings from `/proc`.
    fn adopt(&mut self, mappings: &[Mapping]) {
        let heap = self.heap();
        let found = heap_end(mappings);
        if let Some(end) = found
            && heap.is_none_or(|heap| {
                end < heap.end || (end > heap.end && self.regions.at(heap.end).is_none())
            })
        {
            self.program_break.correct(end);
        }
        let heap = self.heap();
        let growing: Vec<Span> = self
            .regions
            .iter()
            .filter(|region| region.kind.grows_by_itself() && region.kind != Kind::Stack)
            .map(|region| region.span)
            .collect();
        self.regions.clear();
        for mapping in mappings {
            for (span, kind) in comparison::pieces(mapping, heap) {
                self.regions.map(span, kind);
            }
        }
        for span in growing {
            self.regions.change(span, |kind| match kind {
                Kind::Anonymous { usable, .. } => Kind::Anonymous {
                    usable,
                    grows_down: true,
                },
                other => other,
            });
        }
        self.anonymous.peak_bytes = self.anonymous.peak_bytes.max(self.regions.usable_bytes());
    }

    /// The pages of the heap, where both its ends are known.
    fn heap(&self) -> Option<Span> {
        Some(Span {
            start: self.program_break.start()?.page_up(self.page_size),
            end: self.program_break.end()?.page_up(self.page_size),
        })
    }

    fn layout(&self) -> Vec<LayoutSegment> {
        let heap = self.program_break.start().zip(self.program_break.end());
        layout::segments(&self.mappings, &self.program, heap)
    }

    pub(super) fn report(&self) -> SpaceReport {
        let detail = self.detail.as_deref();
        let steps = |total, log: Option<&StepLog>| Steps {
            total,
            kept: log.map(StepLog::kept).unwrap_or_default(),
        };
        SpaceReport {
            id: self.id,
            pid: self.pid,
            program: self.program.clone(),
            arguments: self.arguments.clone(),
            origin: self.origin,
            started_ns: self.started,
            ended_ns: self.ended,
            program_break: self.program_break.report(steps(
                self.break_moves,
                detail.map(|detail| &detail.break_steps),
            )),
            anonymous: self.anonymous_report(steps(
                self.anonymous_moves,
                detail.map(|detail| &detail.anonymous_steps),
            )),
            calls: self.calls.report(),
            memory_at_start: self.memory_at_start,
            memory_at_end: self.memory_at_end,
            timeline: detail
                .map_or_else(TimelineReport::default, |detail| detail.timeline.report()),
            layout: match detail {
                Some(detail) if self.has_ended() => detail.layout.clone(),
                Some(_) => self.layout(),
                None => Vec::new(),
            },
            checks: self.checks.clone(),
        }
    }

    fn anonymous_report(&self, steps: Steps) -> AnonymousReport {
        let (end_bytes, reserved_bytes, areas) = if self.has_ended() {
            (
                self.anonymous.end_bytes,
                self.anonymous.reserved_bytes,
                self.anonymous.areas,
            )
        } else {
            (
                self.regions.usable_bytes(),
                self.regions.reserved_bytes(),
                self.regions.usable_areas(),
            )
        };
        AnonymousReport {
            start_bytes: self.anonymous.start_bytes,
            end_bytes,
            peak_bytes: self.anonymous.peak_bytes,
            reserved_bytes,
            areas,
            grow_calls: self.anonymous.grow_calls,
            grown_bytes: self.anonymous.grown_bytes,
            shrink_calls: self.anonymous.shrink_calls,
            shrunk_bytes: self.anonymous.shrunk_bytes,
            returned_ratio: super::share(self.anonymous.shrunk_bytes, self.anonymous.grown_bytes),
            dontneed_bytes: self.anonymous.dontneed_bytes,
            lazily_freed_bytes: self.anonymous.lazily_freed_bytes,
            steps,
        }
    }
}

fn add(sum: &mut u64, bytes: u64) {
    *sum = sum.saturating_add(bytes);
}

fn is_usable(protection: Protection) -> bool {
    protection.0 & (Protection::READ.0 | Protection::WRITE.0 | Protection::EXEC.0) != 0
}

/// End of the heap by the kernel's name for it.
fn heap_end(mappings: &[Mapping]) -> Option<Address> {
    mappings
        .iter()
        .filter(|mapping| mapping.kind() == MappingKind::Heap)
        .map(|mapping| mapping.end)
        .max()
}

/// Bytes to which the kernel rounds the length of a mapping in huge pages; 1 for ordinary ones. The size is in six bits
/// of the flags as a power of two, or the machine's default, which is 2 MiB on x86-64 and on aarch64 with 4 KiB pages
/// (mmap(2), `MAP_HUGE_SHIFT`).
fn huge_page_size(flags: MapFlags) -> u64 {
    if !flags.contains(MapFlags::HUGETLB) {
        return 1;
    }
    match flags.0 >> 26 & 0x3f {
        0 => 2 << 20,
        power => 1 << power,
    }
}
