//! One address space: its break, its regions, and what the calls of all its threads did to them.

use super::Standing;
use super::allocator;
use super::allocator::Allocator;
use super::allocator::HeldBytes;
use super::calls::Call;
use super::calls::CallCounts;
use super::check;
use super::check::Class;
use super::explain::Explanation;
use super::explain::Malloc;
use super::growth::GrowthLog;
use super::growth::Held;
use super::growth::Owner;
use super::heap;
use super::heap::Heap;
use super::layout;
use super::layout::Layouts;
use super::program_break::BrkCall;
use super::program_break::BrkEffect;
use super::program_break::ProgramBreak;
use super::programs::ProgramId;
use super::programs::Programs;
use super::regions::Kind;
use super::regions::Regions;
use super::regions::Remap;
use super::regions::Span;
use super::steps::Step;
use super::steps::StepLog;
use super::steps::marked;
use super::timeline::Sizes;
use super::timeline::Timeline;
use crate::event::Advice;
use crate::event::AllocatorCall;
use crate::event::AllocatorChoice;
use crate::event::AllocatorReading;
use crate::event::CallResult;
use crate::event::Event;
use crate::event::EventKind;
use crate::event::MapFlags;
use crate::event::MemoryFigures;
use crate::event::Protection;
use crate::event::ReadingMoment;
use crate::event::RemapFlags;
use crate::event::Snapshot;
use crate::event::SnapshotReason;
use crate::event::SpaceId;
use crate::report::AnonymousReport;
use crate::report::Checks;
use crate::report::Difference;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::report::StackGrowth;
use crate::report::Steps;
use crate::report::TimelineReport;
use crate::units::Address;
use crate::units::Timestamp;
use crate::units::page_up;

/// Most differences kept in words.
const MOST_DIFFERENCES: usize = 16;

/// Size of a huge page where a call does not say (x86-64, and aarch64 with 4 KiB pages).
const DEFAULT_HUGE_PAGE: u64 = 2 << 20;

/// Who called, and when.
#[derive(Clone, Copy, Debug)]
struct Moment {
    time: Timestamp,
    tid: u32,
    /// Set if the bundled allocator called.
    allocator: Option<AllocatorCall>,
    /// From where, as the recorder keeps it.
    stack: Owner,
    /// Why glibc's malloc made the call, if it is a move of anonymous memory.
    explanation: Option<Explanation>,
}

/// Counters of the anonymous memory of an address space.
#[derive(Clone, Copy, Debug, Default)]
struct Anonymous {
    start_bytes: u64,
    peak_bytes: u64,
    grow_calls: u64,
    grown_bytes: u64,
    shrink_calls: u64,
    shrunk_bytes: u64,
    dontneed_bytes: u64,
    lazily_freed_bytes: u64,
}

/// How much anonymous memory there is.
#[derive(Clone, Copy, Debug)]
struct Extent {
    usable_bytes: u64,
    reserved_bytes: u64,
    areas: u64,
}

/// What only a limited number of address spaces keep.
#[derive(Debug, Default)]
struct Detail {
    break_steps: StepLog,
    anonymous_steps: StepLog,
    timeline: Timeline,
    growth: GrowthLog,
    layouts: Layouts,
}

/// The latest call of the bundled allocator's, whose figures may follow.
#[derive(Clone, Copy, Debug)]
struct LatestCall {
    tid: u32,
    /// Numbers of the moves that it made of the break and of anonymous memory.
    break_step: Option<u64>,
    anonymous_step: Option<u64>,
}

/// Where an address space stands between its first event and its last.
#[derive(Clone, Copy, Debug)]
enum State {
    Live,
    /// Its last process has gone; the regions are forgotten, and this is what they were.
    Ended(Timestamp, Extent),
}

/// What is known of the regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Knowledge {
    /// Nothing but what calls since then told: the next snapshot tells the rest.
    CallsOnly,
    /// They are the parent's at the time of the fork, and no call was made since: a snapshot knows better.
    Copied,
    /// They are complete, and a snapshot is a check.
    Complete,
    /// A call was made that nobody understood: the next snapshot tells, and cannot be a check.
    Outdated,
}

/// One address space.
#[derive(Debug)]
pub(super) struct AddressSpace {
    pub(super) id: SpaceId,
    pub(super) origin: SpaceOrigin,
    pub(super) program: ProgramId,
    /// The process it belongs to: the first one.
    pub(super) pid: u32,
    /// Whether a process ever joined it, rather than an event merely naming it.
    pub(super) joined: bool,
    /// Processes in it now.
    pub(super) members: u32,
    pub(super) program_break: ProgramBreak,
    page_size: u64,
    started: Timestamp,
    state: State,
    knowledge: Knowledge,
    regions: Regions,
    anonymous: Anonymous,
    pub(super) calls: CallCounts,
    /// At the first snapshot and at the last.
    memory: Option<(MemoryFigures, MemoryFigures)>,
    checks: Checks,
    detail: Option<Box<Detail>>,
    /// Set once something of the bundled allocator was heard.
    allocator: Option<Box<Allocator>>,
    /// The program's own heap as last looked through from outside.
    heap: Option<Box<Heap>>,
    /// glibc's malloc, as seen at memory calls.
    malloc: Option<Box<Malloc>>,
    latest_call: Option<LatestCall>,
    /// Largest sum of heap and anonymous memory.
    sum_peak_bytes: u64,
}

/// What an address space is called and where it comes from.
pub(super) struct Birth {
    pub(super) id: SpaceId,
    pub(super) origin: SpaceOrigin,
    pub(super) program: ProgramId,
    pub(super) pid: u32,
    pub(super) time: Timestamp,
    pub(super) page_size: u64,
}

impl AddressSpace {
    /// An address space of which nothing is known yet.
    pub(super) fn new(birth: Birth) -> Self {
        Self {
            id: birth.id,
            origin: birth.origin,
            program: birth.program,
            pid: birth.pid,
            joined: false,
            members: 0,
            program_break: ProgramBreak::default(),
            page_size: birth.page_size,
            started: birth.time,
            state: State::Live,
            knowledge: Knowledge::CallsOnly,
            regions: Regions::default(),
            anonymous: Anonymous::default(),
            calls: CallCounts::default(),
            memory: None,
            checks: Checks::default(),
            detail: Some(Box::default()),
            allocator: None,
            heap: None,
            malloc: None,
            latest_call: None,
            sum_peak_bytes: 0,
        }
    }

    /// The bundled allocator's account, which begins now if it has not yet.
    fn allocator(&mut self) -> &mut Allocator {
        let from_its_start = self.origin == SpaceOrigin::Exec;
        self.allocator
            .get_or_insert_with(|| Box::new(Allocator::new(from_its_start)))
    }

    /// Takes over what fork(2) copied from another address space, unless more is known already. `others_ran` says that
    /// further threads of the parent may have made calls meanwhile.
    pub(super) fn copy_from(&mut self, parent: &Self, time: Timestamp, others_ran: bool) {
        if let Some(allocator) = &parent.allocator
            && self.allocator.as_ref().is_none_or(|own| own.is_untouched())
        {
            self.allocator = Some(Box::new(allocator.forked(others_ran)));
        }
        let untouched = self.knowledge == Knowledge::CallsOnly && self.calls.report().is_empty();
        if !untouched || !parent.is_live() || parent.knowledge == Knowledge::CallsOnly {
            return;
        }
        self.regions = parent.regions.without_owners();
        self.program_break = parent.program_break.forked();
        self.malloc = parent
            .malloc
            .as_ref()
            .map(|malloc| Box::new(malloc.forked()));
        self.knowledge = match parent.knowledge {
            Knowledge::Outdated => Knowledge::Outdated,
            _ => Knowledge::Copied,
        };
        self.begin_anonymous();
        self.note(time, None);
    }

    pub(super) fn is_live(&self) -> bool {
        matches!(self.state, State::Live)
    }

    /// The last process has left. The regions go, since nothing can happen to them any more.
    pub(super) fn end(&mut self, time: Timestamp) {
        if !self.is_live() {
            return;
        }
        let held = self.held();
        if let Some(detail) = &mut self.detail {
            detail.growth.end(held);
        }
        self.state = State::Ended(time, self.extent());
        if let Some(allocator) = &mut self.allocator {
            allocator.samples.settle();
        }
        self.regions.clear();
        if let Some(detail) = &mut self.detail {
            detail.break_steps.shrink();
            detail.anonymous_steps.shrink();
            detail.timeline.shrink();
        }
    }

    /// A process has joined after all: its start was seen later than the end of the others.
    pub(super) fn revive(&mut self) {
        if !self.is_live() {
            self.state = State::Live;
            self.knowledge = Knowledge::CallsOnly;
        }
    }

    /// Keeps the counters, and of the differences the first.
    pub(super) fn drop_detail(&mut self) {
        self.detail = None;
        if let Some(allocator) = &mut self.allocator {
            allocator.drop_detail();
        }
        self.checks.differences.truncate(1);
        self.checks.differences.shrink_to_fit();
    }

    /// What each stack still has.
    fn held(&self) -> Held {
        let Some(detail) = &self.detail else {
            return Held::default();
        };
        match detail.growth.at_end() {
            Some(held) if !self.is_live() => held.clone(),
            _ => Held {
                program_break: detail.growth.held_of_break(self.program_break.end()),
                anonymous: self.regions.owned().clone(),
            },
        }
    }

    /// Growth by stack; empty without detail.
    fn growth_report(&self) -> Vec<StackGrowth> {
        let Some(detail) = &self.detail else {
            return Vec::new();
        };
        let whole = (
            self.program_break.size().unwrap_or_default(),
            self.extent_usable(),
        );
        detail.growth.report(&self.held(), whole)
    }

    pub(super) fn has_detail(&self) -> bool {
        self.detail.is_some()
    }

    /// The largest size of heap and anonymous memory, as a measure of how much it deserves detail.
    pub(super) fn peak_bytes(&self) -> u64 {
        self.program_break
            .peak()
            .unwrap_or_default()
            .saturating_add(self.anonymous.peak_bytes)
    }

    /// How large it is now; `None` once it has ended.
    pub(super) fn standing(&self) -> Option<Standing> {
        let is_complete = self.knowledge != Knowledge::CallsOnly;
        self.is_live().then(|| Standing {
            break_bytes: self.program_break.size(),
            anonymous_bytes: is_complete.then(|| self.regions.usable_bytes()),
        })
    }

    /// By how much break and anonymous memory grew.
    pub(super) fn grown_bytes(&self) -> u64 {
        self.program_break
            .grown_bytes()
            .saturating_add(self.anonymous.grown_bytes)
    }

    pub(super) fn anonymous_grown_bytes(&self) -> u64 {
        self.anonymous.grown_bytes
    }

    pub(super) fn anonymous_shrunk_bytes(&self) -> u64 {
        self.anonymous.shrunk_bytes
    }

    #[cfg(test)]
    pub(super) fn region_count(&self) -> usize {
        self.regions.iter().count()
    }

    fn extent(&self) -> Extent {
        match self.state {
            State::Live => Extent {
                usable_bytes: self.regions.usable_bytes(),
                reserved_bytes: self.regions.reserved_bytes(),
                areas: self.regions.usable_areas(),
            },
            State::Ended(_, extent) => extent,
        }
    }

    /// Why glibc's malloc made a call, if it did and that can be told.
    fn explain(&mut self, event: &Event) -> Option<Explanation> {
        let malloc = self.malloc.as_deref_mut()?;
        let call = event.malloc.as_deref()?;
        let page_size = self.page_size;
        match &event.kind {
            EventKind::Brk {
                requested,
                before,
                after,
            } => {
                let before = (*before).or(self.program_break.end())?;
                if before == *after {
                    let wanted = requested.0.checked_sub(before.0)?;
                    malloc.break_refused(event.tid, call, wanted);
                    return None;
                }
                Some(malloc.break_moved(call, before, *after))
            }
            EventKind::Mmap {
                length,
                protection,
                flags,
                result,
                ..
            } => {
                let address = result.done()?;
                let bytes = mapped_length(*length, *flags, page_size);
                malloc.mapped(event.tid, call, address, bytes, *protection, *flags)
            }
            EventKind::Munmap {
                address,
                length,
                result,
            } => {
                result.done()?;
                malloc.unmapped(*address, page_up(*length, page_size))
            }
            EventKind::Mremap {
                address,
                old_length,
                new_length,
                result,
                ..
            } => {
                let to = result.done()?;
                let [old, new] = [*old_length, *new_length].map(|bytes| page_up(bytes, page_size));
                malloc.remapped(*address, to, old, new)
            }
            EventKind::Madvise {
                address,
                length,
                advice,
                result,
            } => {
                result.done()?;
                if matches!(*advice, Advice::DONTNEED) {
                    let region = self.regions.at(*address);
                    let in_heap = region.is_some_and(|region| region.kind == Kind::Heap);
                    malloc.advised(call, *address, page_up(*length, page_size), in_heap);
                }
                None
            }
            EventKind::Mprotect {
                address,
                length,
                result,
                ..
            } => {
                result.done()?;
                malloc.opened(call, *address, page_up(*length, page_size))
            }
            _ => None,
        }
    }

    /// Accounts for a memory call; other events are none of its business.
    pub(super) fn record_call(&mut self, event: &Event, stack: Owner) {
        let stack = self
            .detail
            .as_ref()
            .and_then(|detail| detail.growth.admit(stack));
        self.regions.set_owner(stack);
        let moment = Moment {
            time: event.time,
            tid: event.tid,
            allocator: event.allocator,
            stack,
            explanation: self.explain(event),
        };
        if moment.allocator.is_some() {
            self.latest_call = Some(LatestCall {
                tid: event.tid,
                break_step: None,
                anonymous_step: None,
            });
        }
        match &event.kind {
            EventKind::Brk {
                requested,
                before,
                after,
            } => self.brk(
                moment,
                BrkCall {
                    requested: *requested,
                    before: *before,
                    after: *after,
                },
            ),
            EventKind::Mmap {
                length,
                protection,
                flags,
                result,
                ..
            } => self.mmap(moment, *length, *protection, *flags, *result),
            EventKind::Munmap {
                address,
                length,
                result,
            } => self.munmap(moment, self.pages(*address, *length), *result),
            EventKind::Mremap {
                address,
                old_length,
                new_length,
                flags,
                result,
                ..
            } => {
                let old = self.pages(*address, *old_length);
                self.mremap(moment, old, *new_length, *flags, *result);
            }
            EventKind::Mprotect {
                address,
                length,
                protection,
                result,
            } => {
                let span = self.pages(*address, *length);
                self.mprotect(moment, span, *protection, *result);
            }
            EventKind::Madvise {
                address,
                length,
                advice,
                result,
            } => {
                let span = self.pages(*address, *length);
                self.madvise(moment, span, *advice, *result);
            }
            EventKind::Shmat { length, result, .. } => self.shmat(moment, *length, *result),
            EventKind::Shmdt { address, result } => self.shmdt(moment, *address, *result),
            EventKind::RemapFilePages { result, .. } => {
                self.begin_call(Call::RemapFilePages, result.is_done());
            }
            EventKind::MapShadowStack { length, result } => {
                self.map_shadow_stack(moment, *length, *result);
            }
            EventKind::NotDecoded { .. } => self.not_decoded(),
            _ => {}
        }
        // What snapshots tell later has no owner.
        self.regions.set_owner(None);
    }

    /// Counts a call. Whether it may have an effect: not when it failed, and not after the end, when the regions are
    /// gone.
    fn begin_call(&mut self, call: Call, succeeded: bool) -> bool {
        self.calls.count(call, succeeded);
        if self.knowledge == Knowledge::Copied {
            self.knowledge = Knowledge::Complete;
        }
        succeeded && self.is_live()
    }

    /// The pages that a range touches. The kernel wants most addresses aligned and rounds lengths up.
    fn pages(&self, address: Address, length: u64) -> Span {
        Span::of(
            address.page_down(self.page_size),
            page_up(length, self.page_size),
        )
    }

    /// Where the heap is, in whole pages; `None` while not known.
    fn heap(&self) -> Option<Span> {
        Some(Span {
            start: self.program_break.start()?.page_up(self.page_size),
            end: self.program_break.end()?.page_up(self.page_size),
        })
    }

    fn brk(&mut self, moment: Moment, call: BrkCall) {
        let refused = call.requested != Address(0) && call.after != call.requested;
        self.begin_call(Call::Brk, !refused);
        if !self.is_live() {
            return;
        }
        let told = self.tell_heap_from_neighbours(call);
        let usable_before = self.regions.usable_bytes();
        let page_end_before = told
            .or(self.program_break.end())
            .or(call.before)
            .or(self.program_break.start())
            .unwrap_or(call.after)
            .page_up(self.page_size);
        let effect = self.program_break.call(call);
        if moment.allocator.is_some() {
            self.allocator().traced.brk(call, effect);
        }
        let page_end_after = call.after.page_up(self.page_size);
        let risen = Span {
            start: page_end_before,
            end: page_end_after,
        };
        let fallen = Span {
            start: page_end_after,
            end: page_end_before,
        };
        self.regions.map(risen, Kind::Heap);
        self.regions.unmap(fallen);
        if let BrkEffect::MovedFrom(from) = effect {
            self.add_break_step(moment, from, call.after);
        }
        let moved = if risen.is_empty() { fallen } else { risen };
        self.settle(moment, Call::Brk, moved, usable_before);
    }

    /// A break known to the page only, from the end of `[heap]`, may have been too high: the kernel merges anonymous
    /// memory that lies above it. The call tells where it really was; what lies above is such memory. Returns where
    /// that is; `None` when the break was known well enough.
    fn tell_heap_from_neighbours(&mut self, call: BrkCall) -> Option<Address> {
        let told = match call.before {
            Some(before) => before,
            None if call.after != call.requested => call.after,
            None => return None,
        };
        let assumed = self.program_break.end()?;
        if self.program_break.is_exact() || told >= assumed {
            return None;
        }
        let above = Span {
            start: told.page_up(self.page_size),
            end: assumed.page_up(self.page_size),
        };
        let usable_before = self.regions.usable_bytes();
        self.regions.change(above, heap_to_anonymous);
        self.adjust_start(usable_before);
        Some(told)
    }

    fn add_break_step(&mut self, moment: Moment, from: Address, to: Address) {
        let after = self.program_break.size().unwrap_or_default();
        if let Some(detail) = &mut self.detail {
            detail.growth.break_moved(moment.stack, from, to);
            detail.break_steps.push(Step {
                time: moment.time,
                tid: moment.tid,
                call: Call::Brk,
                delta: to.offset_from(from),
                after,
                from,
                to,
                allocator: moment.allocator.map(marked),
                stack: moment.stack,
                explanation: moment.explanation,
            });
            if let (Some(_), Some(latest)) = (moment.allocator, &mut self.latest_call) {
                latest.break_step = Some(detail.break_steps.total());
            }
        }
    }

    fn mmap(
        &mut self,
        moment: Moment,
        length: u64,
        protection: Protection,
        flags: MapFlags,
        result: CallResult<Address>,
    ) {
        let effective = self.begin_call(Call::Mmap, result.is_done());
        if moment.allocator.is_some() {
            let bytes = mapped_length(length, flags, self.page_size);
            let mapped = result.is_done().then_some(bytes);
            self.allocator().traced.mmap(mapped);
        }
        let Some(address) = result.done().filter(|_| effective) else {
            return;
        };
        let kind = if flags.is_private_anonymous() {
            Kind::Anonymous {
                usable: allows_access(protection),
                grows_down: flags.contains(MapFlags::GROWSDOWN),
            }
        } else {
            Kind::Other
        };
        let span = Span::of(address, mapped_length(length, flags, self.page_size));
        self.apply(moment, Call::Mmap, span, |regions| regions.map(span, kind));
    }

    fn munmap(&mut self, moment: Moment, span: Span, result: CallResult<()>) {
        if moment.allocator.is_some() {
            let unmapped = result.is_done().then_some(span.bytes());
            self.allocator().traced.munmap(unmapped);
        }
        if self.begin_call(Call::Munmap, result.is_done()) {
            self.apply(moment, Call::Munmap, span, |regions| regions.unmap(span));
        }
    }

    fn mremap(
        &mut self,
        moment: Moment,
        old: Span,
        new_length: u64,
        flags: RemapFlags,
        result: CallResult<Address>,
    ) {
        let effective = self.begin_call(Call::Mremap, result.is_done());
        if moment.allocator.is_some() {
            let new = page_up(new_length, self.page_size);
            let sizes = result.is_done().then_some((old.bytes(), new));
            self.allocator().traced.mremap(sizes);
        }
        let Some(address) = result.done().filter(|_| effective) else {
            return;
        };
        let new = self.pages(address, new_length);
        if old.is_empty() {
            self.duplicate(moment, old.start, new);
            return;
        }
        if self.regions.pieces(old).is_empty() {
            // The call succeeded, so something was mapped there that no event told of; it is not growth.
            let usable_before = self.regions.usable_bytes();
            self.regions.map(old, Kind::USABLE);
            self.adjust_start(usable_before);
        }
        let remap = Remap {
            old,
            new,
            keep_old: flags.contains(RemapFlags::DONTUNMAP),
        };
        self.apply(moment, Call::Mremap, new, |regions| regions.remap(remap));
    }

    /// mremap(2) with an old length of zero: a second mapping of the same shared memory.
    fn duplicate(&mut self, moment: Moment, original: Address, new: Span) {
        let kind = match self.regions.at(original).map(|region| region.kind) {
            Some(Kind::Attachment { .. }) => Kind::Attachment { base: new.start },
            _ => Kind::Other,
        };
        self.apply(moment, Call::Mremap, new, |regions| regions.map(new, kind));
    }

    fn mprotect(
        &mut self,
        moment: Moment,
        span: Span,
        protection: Protection,
        result: CallResult<()>,
    ) {
        if !self.begin_call(Call::Mprotect, result.is_done()) {
            return;
        }
        let span = match self.regions.at(span.start) {
            // Applies down to the start of a mapping that grows down (mprotect(2)).
            Some(region)
                if protection.contains(Protection::GROWSDOWN) && region.kind.grows_by_itself() =>
            {
                Span {
                    start: region.span.start,
                    end: span.end,
                }
            }
            _ => span,
        };
        self.apply(moment, Call::Mprotect, span, |regions| {
            regions.protect(span, allows_access(protection));
        });
    }

    fn madvise(&mut self, moment: Moment, span: Span, advice: Advice, result: CallResult<()>) {
        let gives_back = matches!(
            advice,
            Advice::DONTNEED | Advice::DONTNEED_LOCKED | Advice::FREE | Advice::REMOVE
        );
        let effective = self.begin_call(Call::Madvise, result.is_done());
        // One of no bytes is the allocator's way to speak to a tracer.
        if moment.allocator.is_some() && gives_back && !span.is_empty() {
            let advised = result.is_done().then_some(span.bytes());
            self.allocator().traced.madvise(advised);
        }
        if !effective || !gives_back {
            return;
        }
        for piece in self.regions.pieces(span) {
            let bytes = piece.span.bytes();
            let counter = match (piece.kind, advice) {
                (Kind::Heap, _) => &mut self.program_break.advised_bytes,
                (Kind::Anonymous { .. }, Advice::FREE) => &mut self.anonymous.lazily_freed_bytes,
                (Kind::Anonymous { .. }, Advice::DONTNEED | Advice::DONTNEED_LOCKED) => {
                    &mut self.anonymous.dontneed_bytes
                }
                _ => continue,
            };
            *counter = counter.saturating_add(bytes);
        }
    }

    fn shmat(&mut self, moment: Moment, length: Option<u64>, result: CallResult<Address>) {
        let effective = self.begin_call(Call::Shmat, result.is_done());
        if let (true, Some(base), Some(length)) = (effective, result.done(), length) {
            let span = self.pages(base, length);
            self.apply(moment, Call::Shmat, span, |regions| {
                regions.map(span, Kind::Attachment { base });
            });
        }
    }

    fn shmdt(&mut self, moment: Moment, address: Address, result: CallResult<()>) {
        if self.begin_call(Call::Shmdt, result.is_done()) {
            let span = Span::of(address, 0);
            self.apply(moment, Call::Shmdt, span, |regions| regions.detach(address));
        }
    }

    fn map_shadow_stack(&mut self, moment: Moment, length: u64, result: CallResult<Address>) {
        let effective = self.begin_call(Call::MapShadowStack, result.is_done());
        if let (true, Some(address)) = (effective, result.done()) {
            let span = self.pages(address, length);
            self.apply(moment, Call::MapShadowStack, span, |regions| {
                regions.map(span, Kind::USABLE);
            });
        }
    }

    fn not_decoded(&mut self) {
        if self.knowledge != Knowledge::CallsOnly {
            self.knowledge = Knowledge::Outdated;
        }
    }

    /// Lets a call change the regions and accounts for what that did to usable memory.
    fn apply(&mut self, moment: Moment, call: Call, span: Span, change: impl FnOnce(&mut Regions)) {
        let usable_before = self.regions.usable_bytes();
        let owned_before = self.regions.owned_bytes(moment.stack);
        change(&mut self.regions);
        let usable = self.regions.usable_bytes();
        // Without an owner, what became larger on the whole.
        let (own, own_before) = match moment.stack {
            Some(_) => (self.regions.owned_bytes(moment.stack), owned_before),
            None => (usable, usable_before),
        };
        if let Some(detail) = &mut self.detail {
            if own > own_before {
                detail.growth.anonymous_grew(moment.stack, own - own_before);
            }
            if usable < usable_before {
                let returned = usable_before - usable;
                detail.growth.anonymous_returned(moment.stack, returned);
            }
        }
        self.settle(moment, call, span, usable_before);
    }

    fn settle(&mut self, moment: Moment, call: Call, span: Span, usable_before: u64) {
        let after = self.regions.usable_bytes();
        let anonymous = &mut self.anonymous;
        if after > usable_before {
            anonymous.grow_calls += 1;
            anonymous.grown_bytes = anonymous.grown_bytes.saturating_add(after - usable_before);
            anonymous.peak_bytes = anonymous.peak_bytes.max(after);
        } else if after < usable_before {
            anonymous.shrink_calls += 1;
            anonymous.shrunk_bytes = anonymous.shrunk_bytes.saturating_add(usable_before - after);
        }
        if let Some(detail) = &mut self.detail
            && after != usable_before
        {
            detail.anonymous_steps.push(Step {
                time: moment.time,
                tid: moment.tid,
                call,
                delta: Address(after).offset_from(Address(usable_before)),
                after,
                from: span.start,
                to: span.end,
                allocator: moment.allocator.map(marked),
                stack: moment.stack,
                explanation: moment.explanation,
            });
            if let (Some(_), Some(latest)) = (moment.allocator, &mut self.latest_call) {
                latest.anonymous_step = Some(detail.anonymous_steps.total());
            }
        }
        self.note(moment.time, None);
    }

    /// Usable memory turned out to have been more, or less, than was known, without any call: it was so at the start.
    fn adjust_start(&mut self, usable_before: u64) {
        let after = self.regions.usable_bytes();
        let start_bytes = &mut self.anonymous.start_bytes;
        *start_bytes = start_bytes
            .saturating_add(after.saturating_sub(usable_before))
            .saturating_sub(usable_before.saturating_sub(after));
        self.anonymous.peak_bytes = self.anonymous.peak_bytes.max(after);
    }

    /// The regions are complete now: what there is, less what calls added, was there at the start.
    fn begin_anonymous(&mut self) {
        let usable = self.regions.usable_bytes();
        let anonymous = &mut self.anonymous;
        anonymous.start_bytes = usable
            .saturating_add(anonymous.shrunk_bytes)
            .saturating_sub(anonymous.grown_bytes);
        anonymous.peak_bytes = anonymous.peak_bytes.max(usable);
    }

    fn note(&mut self, time: Timestamp, resident_bytes: Option<u64>) {
        self.note_all(time, resident_bytes, None);
    }

    fn note_all(&mut self, time: Timestamp, resident_bytes: Option<u64>, held: Option<HeldBytes>) {
        let sizes = Sizes {
            break_bytes: self.program_break.size().unwrap_or_default(),
            anonymous_bytes: self.extent_usable(),
            resident_bytes,
            held,
        };
        let sum = sizes.break_bytes.saturating_add(sizes.anonymous_bytes);
        self.sum_peak_bytes = self.sum_peak_bytes.max(sum);
        if let Some(detail) = &mut self.detail {
            detail.timeline.note(time, sizes);
        }
    }

    fn extent_usable(&self) -> u64 {
        match self.state {
            State::Live => self.regions.usable_bytes(),
            State::Ended(_, extent) => extent.usable_bytes,
        }
    }

    /// Accounts for what the bundled allocator told; other events are none of its business.
    pub(super) fn record_allocator(&mut self, event: &Event, stack: Owner) {
        match &event.kind {
            EventKind::AllocatorFound(setup) => self.allocator().found(setup),
            EventKind::AllocatorAbsent(absence) => self.allocator().absent(absence),
            EventKind::AllocatorRead(reading) => self.allocator_read(event, reading),
            EventKind::HeapError(error) => {
                self.allocator()
                    .heap_error(event.time, event.pid, *error, stack);
            }
            EventKind::HeapWalked(walk) => self.allocator().walked(walk),
            EventKind::MallocSeen(seen) => match &mut self.malloc {
                Some(malloc) => malloc.changed(event.time, seen),
                None => self.malloc = Some(Box::new(Malloc::new(seen, self.page_size))),
            },
            EventKind::HeapExamined(examination) => {
                match &mut self.heap {
                    Some(heap) => heap.examined(event.time, examination),
                    None => self.heap = Some(Box::new(Heap::new(event.time, examination))),
                }
                self.note_all(event.time, None, heap::held(examination));
            }
            EventKind::BlockSampled(block) => self.allocator().samples.sampled(*block, stack),
            EventKind::SampleFreed { address } => self.allocator().samples.freed(*address, stack),
            _ => {}
        }
    }

    fn allocator_read(&mut self, event: &Event, reading: &AllocatorReading) {
        let held = self.allocator().read(event.time, reading);
        if reading.moment == ReadingMoment::Call {
            self.add_figures_to_steps(event.tid, reading);
        }
        self.note_all(event.time, None, Some(held));
    }

    /// Figures read at a call stand beside the moves that it made. They come right after it; should calls of two threads
    /// come between each other all the same, the first one's figures are left out rather than given to the second.
    fn add_figures_to_steps(&mut self, tid: u32, reading: &AllocatorReading) {
        let Some(latest) = self.latest_call.take_if(|latest| latest.tid == tid) else {
            return;
        };
        let Some(counters) = reading.counters.all() else {
            return;
        };
        let figures = allocator::step_figures(counters);
        if let Some(detail) = &mut self.detail {
            if let Some(number) = latest.break_step {
                detail.break_steps.add_figures(number, figures);
            }
            if let Some(number) = latest.anonymous_step {
                detail.anonymous_steps.add_figures(number, figures);
            }
        }
    }

    /// Learns from, or checks against, the state that `/proc` showed.
    pub(super) fn record_snapshot(
        &mut self,
        time: Timestamp,
        snapshot: &Snapshot,
        programs: &Programs,
    ) {
        self.remember_figures(snapshot);
        // A process on its way out shows no mappings at all: nothing can be learnt from that.
        if self.is_live() && !snapshot.mappings.is_empty() {
            self.use_mappings(time, snapshot);
            self.draw_layout(time, snapshot, programs.path(self.program));
        }
        let resident = snapshot.memory.map(|memory| memory.resident_bytes);
        self.note(time, resident);
    }

    fn remember_figures(&mut self, snapshot: &Snapshot) {
        if let Some(memory) = snapshot.memory {
            self.memory.get_or_insert((memory, memory)).1 = memory;
        }
        if snapshot.heap_pages.is_some() || snapshot.reason == SnapshotReason::End {
            self.program_break.pages = snapshot.heap_pages;
        }
        if let Some(start) = snapshot.heap_start
            && self.is_live()
        {
            self.program_break.learn_start(start);
        }
    }

    fn use_mappings(&mut self, time: Timestamp, snapshot: &Snapshot) {
        let quiet = snapshot.calls_under_way == 0;
        match self.knowledge {
            Knowledge::CallsOnly => self.take_baseline(snapshot),
            Knowledge::Copied if snapshot.reason == SnapshotReason::Start => {
                self.take_baseline(snapshot);
            }
            // Both orders of the calls that overlapped explain what is found, so it is no check.
            _ if snapshot.reason == SnapshotReason::Resync => self.resynchronize(snapshot),
            Knowledge::Outdated if quiet => self.resynchronize(snapshot),
            Knowledge::Copied | Knowledge::Complete if quiet => self.check(time, snapshot),
            _ => self.checks.skipped += 1,
        }
    }

    fn draw_layout(&mut self, time: Timestamp, snapshot: &Snapshot, program: &str) {
        let is_end = snapshot.reason == SnapshotReason::End;
        if let Some(detail) = &mut self.detail
            && detail.layouts.wants(is_end)
        {
            let segments = layout::draw(&layout::Source {
                mappings: &snapshot.mappings,
                program,
                heap_start: self.program_break.start(),
                heap_end: self.program_break.end(),
                page_size: self.page_size,
            });
            detail.layouts.push(time, segments, is_end);
        }
    }

    /// The first snapshot tells what was there before any call.
    fn take_baseline(&mut self, snapshot: &Snapshot) {
        self.learn_break(snapshot);
        self.regions.clear();
        for found in check::found(&snapshot.mappings, self.heap()) {
            self.regions.map(found.region.span, found.region.kind);
        }
        self.begin_anonymous();
        self.knowledge = Knowledge::Complete;
    }

    fn learn_break(&mut self, snapshot: &Snapshot) {
        let shown = end_of_heap(snapshot);
        match (self.program_break.end(), self.program_break.start()) {
            (None, Some(start)) => {
                // A new program's break is where its heap starts (load_elf_binary in fs/binfmt_elf.c).
                let begins =
                    snapshot.reason == SnapshotReason::Start && self.origin == SpaceOrigin::Exec;
                let end = shown.map_or(start, |(_, end)| end.max(start));
                let first = if begins { start } else { end };
                self.program_break.learn_first(first, begins);
            }
            (None, None) => {
                if let Some((start, end)) = shown {
                    self.program_break.learn_start(start);
                    self.program_break.learn_first(end, false);
                }
            }
            (Some(end), _) if self.knowledge == Knowledge::Copied => {
                // Another thread of the parent may have moved the break between the fork and its event.
                if let Some((_, shown)) = shown
                    && shown < end.page_up(self.page_size)
                {
                    self.program_break.learn_first(shown, false);
                }
            }
            (Some(_), Some(start)) if snapshot.heap_start.is_none() => {
                // The first call told where the break was, not where the heap starts.
                if let Some((shown, _)) = shown {
                    self.program_break.learn_start(shown.min(start));
                }
            }
            (Some(_), _) => {}
        }
    }

    fn check(&mut self, time: Timestamp, snapshot: &Snapshot) {
        let heap = self.heap();
        let found = check::found(&snapshot.mappings, heap);
        let deviations = check::compare(&self.regions, &found, heap);
        self.knowledge = Knowledge::Complete;
        self.checks.made += 1;
        if deviations.is_empty() {
            return;
        }
        self.checks.differing += 1;
        let room = MOST_DIFFERENCES.saturating_sub(self.checks.differences.len());
        self.checks
            .differences
            .extend(deviations.iter().take(room).map(|deviation| Difference {
                time_ns: time,
                start: deviation.span.start,
                end: deviation.span.end,
                expected: Class::describe(deviation.expected).to_owned(),
                found: Class::describe(deviation.found_class()).to_owned(),
            }));
        self.adopt(snapshot, &deviations);
    }

    /// Takes over what `/proc` shows without calling it a check.
    fn resynchronize(&mut self, snapshot: &Snapshot) {
        let heap = self.heap();
        let found = check::found(&snapshot.mappings, heap);
        let deviations = check::compare(&self.regions, &found, heap);
        self.checks.skipped += 1;
        self.knowledge = Knowledge::Complete;
        self.adopt(snapshot, &deviations);
    }

    /// Makes the model what `/proc` shows, where they differ. No call is known to have done it, so it counts neither as
    /// growth nor as shrinking.
    fn adopt(&mut self, snapshot: &Snapshot, deviations: &[check::Deviation]) {
        if deviations.iter().any(check::Deviation::concerns_the_break) {
            self.correct_break(snapshot);
        }
        let heap = self.heap();
        let found = check::found(&snapshot.mappings, heap);
        for deviation in check::compare(&self.regions, &found, heap) {
            match deviation.found {
                Some(found) => self.regions.map(deviation.span, found.region.kind),
                None => self.regions.unmap(deviation.span),
            }
        }
        self.anonymous.peak_bytes = self.anonymous.peak_bytes.max(self.regions.usable_bytes());
    }

    fn correct_break(&mut self, snapshot: &Snapshot) {
        let Some(old) = self.heap() else { return };
        let shown = end_of_heap(snapshot).map_or(old.start, |(_, end)| end.max(old.start));
        if shown == old.end {
            return;
        }
        self.program_break.correct(shown);
        let no_longer_heap = Span {
            start: shown,
            end: old.end,
        };
        self.regions.change(no_longer_heap, heap_to_anonymous);
    }

    pub(super) fn report(&self, programs: &Programs, choice: &AllocatorChoice) -> SpaceReport {
        let detail = self.detail.as_deref();
        let break_steps = Steps {
            total: self.program_break.grow_calls() + self.program_break.shrink_calls(),
            kept: detail.map_or_else(Vec::new, |detail| {
                detail.break_steps.kept(self.malloc.as_deref())
            }),
        };
        let layouts = detail.map(|detail| &detail.layouts);
        SpaceReport {
            id: self.id,
            pid: self.pid,
            program: programs.path(self.program).to_owned(),
            arguments: programs.arguments(self.program),
            origin: self.origin,
            started_ns: self.started,
            ended_ns: match self.state {
                State::Live => None,
                State::Ended(time, _) => Some(time),
            },
            program_break: self.program_break.report(break_steps),
            anonymous: self.anonymous_report(),
            calls: self.calls.report(),
            memory_at_start: self.memory.map(|(first, _)| first),
            memory_at_end: self.memory.map(|(_, last)| last),
            timeline: detail
                .map_or_else(TimelineReport::default, |detail| detail.timeline.report()),
            layout: layouts.map_or_else(Vec::new, Layouts::last),
            layout_ns: layouts.and_then(Layouts::last_time),
            earlier_layouts: layouts.map_or_else(Vec::new, Layouts::earlier),
            checks: self.checks.clone(),
            allocator: match &self.allocator {
                Some(allocator) => Some(allocator.report(choice)),
                None => allocator::unheard(choice)
                    .or_else(|| self.heap.as_ref().and_then(|heap| heap.allocator())),
            },
            growth: self.growth_report(),
            call_paths: Vec::new(),
            malloc: self.malloc.as_ref().map(|malloc| malloc.report()),
            heap: self.heap.as_ref().map(|heap| heap.last().clone()),
            peak_bytes: self
                .program_break
                .size()
                .is_some()
                .then_some(self.sum_peak_bytes),
        }
    }

    fn anonymous_report(&self) -> AnonymousReport {
        let counted = self.anonymous;
        let extent = self.extent();
        AnonymousReport {
            start_bytes: counted.start_bytes,
            end_bytes: extent.usable_bytes,
            peak_bytes: counted.peak_bytes,
            reserved_bytes: extent.reserved_bytes,
            areas: extent.areas,
            grow_calls: counted.grow_calls,
            grown_bytes: counted.grown_bytes,
            shrink_calls: counted.shrink_calls,
            shrunk_bytes: counted.shrunk_bytes,
            returned_ratio: super::share(counted.shrunk_bytes, counted.grown_bytes),
            dontneed_bytes: counted.dontneed_bytes,
            lazily_freed_bytes: counted.lazily_freed_bytes,
            steps: Steps {
                total: counted.grow_calls + counted.shrink_calls,
                kept: self.detail.as_deref().map_or_else(Vec::new, |detail| {
                    detail.anonymous_steps.kept(self.malloc.as_deref())
                }),
            },
        }
    }
}

fn heap_to_anonymous(kind: Kind) -> Kind {
    match kind {
        Kind::Heap => Kind::USABLE,
        other => other,
    }
}

fn allows_access(protection: Protection) -> bool {
    let any = Protection::READ.0 | Protection::WRITE.0 | Protection::EXEC.0;
    protection.0 & any != 0
}

/// Bytes that mmap(2) maps for this length: whole pages, or whole huge pages, whose size the topmost six bits of the
/// flags give as a power of two.
fn mapped_length(length: u64, flags: MapFlags, page_size: u64) -> u64 {
    if !flags.contains(MapFlags::HUGETLB) || !flags.contains(MapFlags::ANONYMOUS) {
        return page_up(length, page_size);
    }
    match flags.0 >> 26 {
        0 => page_up(length, DEFAULT_HUGE_PAGE),
        power => page_up(length, 1 << power),
    }
}

/// Start and end of what the kernel names `[heap]`.
fn end_of_heap(snapshot: &Snapshot) -> Option<(Address, Address)> {
    let mut heap = snapshot
        .mappings
        .iter()
        .filter(|mapping| mapping.name.as_deref() == Some("[heap]"));
    let first = heap.next()?;
    let end = heap
        .map(|mapping| mapping.end)
        .fold(first.end, Address::max);
    Some((first.start, end))
}
