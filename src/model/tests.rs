//! The model as a whole, on events made by hand.

use super::*;
use crate::event::Advice;
use crate::event::AllocatorCall;
use crate::event::AllocatorChoice;
use crate::event::CallResult;
use crate::event::Capture;
use crate::event::Errno;
use crate::event::Machine;
use crate::event::MapFlags;
use crate::event::MemoryFigures;
use crate::event::Mode;
use crate::event::Protection;
use crate::event::RemapFlags;
use crate::event::SnapshotReason;
use crate::event::StackId;
use crate::event::Stops;
use crate::event_log::EventLog;
use crate::mapping;
use crate::report::AnonymousReport;
use crate::report::BreakReport;
use crate::report::Checks;
use crate::report::SegmentKind;
use crate::report::SpaceReport;
use crate::report::to_json;
use crate::units::Address;

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;
pub(super) const PAGE: u64 = 4096;
const HEAP: u64 = 0x5555_0000_0000;
pub(super) const HIGH: u64 = 0x7f00_0000_0000;

pub(super) const NONE: Protection = Protection(0);
pub(super) const READ_WRITE: Protection = Protection(3);
pub(super) const PRIVATE: MapFlags = MapFlags(0x22);

/// A program, its bss, libraries and stack, with the heap still empty. `{heap}` stands for further lines.
pub(super) const FRESH: &str = "555500000000-555500001000 r-xp 00000000 fe:01 11 /bin/program
7f8000000000-7f8000020000 r-xp 00000000 fe:01 12 /lib/libc.so.6
7f8000020000-7f8000022000 rw-p 00020000 fe:01 12 /lib/libc.so.6
7f8000022000-7f8000026000 rw-p 00000000 00:00 0
7ffffff00000-7ffffff21000 rw-p 00000000 00:00 0 [stack]
7ffffff80000-7ffffff82000 r-xp 00000000 00:00 0 [vdso]
";

/// Where the heap of `FRESH` starts.
pub(super) const START: u64 = HEAP + 0x0100_0000;

pub(super) fn recording() -> Recording {
    Recording {
        mode: Mode::Run,
        command: vec!["program".into()],
        pids: vec![10],
        started_at_unix: 1_700_000_000,
        machine: Machine {
            architecture: "x86_64".into(),
            kernel: "6.18.0".into(),
            page_size: PAGE,
        },
        allocator: AllocatorChoice::System,
        environment: std::collections::BTreeMap::new(),
        processors: None,
        capture: Capture {
            stops: Stops::MemoryCalls,
            follow: true,
            no_aslr: false,
            verify: false,
            stacks: crate::event::StackMode::Off,
            stack_depth: 0,
            sample_interval_bytes: None,
            leaks: false,
        },
    }
}

/// Events in the making: each goes to a recorder at once, and is kept.
pub(super) struct Story {
    pub(super) recorder: Recorder,
    pub(super) events: Vec<Event>,
    pid: u32,
    space: u32,
    time: u64,
    program_break: u64,
    /// The thread, if it is not the process's first.
    pub(super) tid: Option<u32>,
    /// Set if the bundled allocator makes the next call.
    pub(super) allocator: Option<AllocatorCall>,
    /// The stack of the next events.
    pub(super) stack: Option<StackId>,
}

impl Story {
    /// Nothing has happened.
    pub(super) fn blank() -> Self {
        Self {
            recorder: Recorder::new(recording()),
            events: Vec::new(),
            pid: 10,
            space: 1,
            time: 0,
            program_break: START,
            tid: None,
            allocator: None,
            stack: None,
        }
    }

    /// Process 10 was launched into space 1, and its first snapshot taken.
    pub(super) fn launched() -> Self {
        let mut story = Self::blank();
        story.start(Origin::Launched, None);
        story.snapshot(SnapshotReason::Start, FRESH);
        story
    }

    /// Process 10 was attached to, in space 1, with these mappings.
    pub(super) fn attached(maps: &str) -> Self {
        let mut story = Self::blank();
        story.start(Origin::Attached, None);
        story.snapshot(SnapshotReason::Attach, maps);
        story
    }

    pub(super) fn event(&mut self, kind: EventKind) {
        self.time += 2_000;
        let event = Event {
            malloc: None,
            time: Timestamp(self.time),
            pid: self.pid,
            tid: self.tid.unwrap_or(self.pid),
            space: SpaceId(self.space),
            allocator: self.allocator.take(),
            stack: self.stack,
            kind,
        };
        self.recorder.record(&event);
        self.events.push(event);
    }

    /// Further events come from this process in this space.
    pub(super) fn in_process(&mut self, pid: u32, space: u32) {
        self.pid = pid;
        self.space = space;
    }

    pub(super) fn start(&mut self, origin: Origin, from_space: Option<u32>) {
        self.event(EventKind::ProcessStarted {
            origin,
            parent: from_space.map(|_| 10),
            from_space: from_space.map(SpaceId),
            program: "/bin/program".into(),
            arguments: vec!["program".into(), "argument".into()],
        });
    }

    pub(super) fn exec(&mut self, pid: u32, from_space: u32, space: u32) {
        self.in_process(pid, space);
        self.event(EventKind::Exec {
            program: format!("/bin/exec-{space}"),
            arguments: vec![format!("exec-{space}")],
            from_space: SpaceId(from_space),
        });
    }

    pub(super) fn end(&mut self) {
        self.event(EventKind::ProcessEnded {
            outcome: Outcome::Exited(0),
        });
    }

    pub(super) fn snapshot(&mut self, reason: SnapshotReason, maps: &str) {
        self.snapshot_during(reason, maps, 0);
    }

    fn snapshot_during(&mut self, reason: SnapshotReason, maps: &str, calls_under_way: u32) {
        self.event(EventKind::Snapshot(Box::new(Snapshot {
            reason,
            heap_start: Some(Address(START)),
            memory: Some(MemoryFigures {
                resident_bytes: self.time,
                ..MemoryFigures::default()
            }),
            heap_pages: None,
            calls_under_way,
            mappings: mapping::parse(maps.as_bytes()),
        })));
    }

    /// Moves the break by so many bytes.
    pub(super) fn sbrk(&mut self, delta: i64) {
        let before = self.program_break;
        self.program_break = before.wrapping_add_signed(delta);
        self.brk(self.program_break, Some(before), self.program_break);
    }

    pub(super) fn brk(&mut self, requested: u64, before: Option<u64>, after: u64) {
        self.event(EventKind::Brk {
            requested: Address(requested),
            before: before.map(Address),
            after: Address(after),
        });
    }

    pub(super) fn mmap(
        &mut self,
        address: u64,
        length: u64,
        protection: Protection,
        flags: MapFlags,
    ) {
        self.event(EventKind::Mmap {
            hint: Address(0),
            length,
            protection,
            flags,
            fd: -1,
            offset: 0,
            result: CallResult::Done(Address(address)),
        });
    }

    pub(super) fn munmap(&mut self, address: u64, length: u64) {
        self.event(EventKind::Munmap {
            address: Address(address),
            length,
            result: CallResult::Done(()),
        });
    }

    pub(super) fn mremap(&mut self, old: (u64, u64), new: (u64, u64), flags: RemapFlags) {
        self.event(EventKind::Mremap {
            address: Address(old.0),
            old_length: old.1,
            new_length: new.1,
            flags,
            new_address: Address(0),
            result: CallResult::Done(Address(new.0)),
        });
    }

    pub(super) fn mprotect(&mut self, address: u64, length: u64, protection: Protection) {
        self.event(EventKind::Mprotect {
            address: Address(address),
            length,
            protection,
            result: CallResult::Done(()),
        });
    }

    pub(super) fn madvise(&mut self, address: u64, length: u64, advice: Advice) {
        self.event(EventKind::Madvise {
            address: Address(address),
            length,
            advice,
            result: CallResult::Done(()),
        });
    }

    pub(super) fn report(&self) -> Report {
        self.recorder.report()
    }

    pub(super) fn space(&self, id: u32) -> SpaceReport {
        self.report().space(SpaceId(id)).unwrap().clone()
    }

    pub(super) fn program_break(&self) -> BreakReport {
        self.space(1).program_break
    }

    fn anonymous(&self) -> AnonymousReport {
        self.space(1).anonymous
    }

    fn checks(&self) -> Checks {
        self.space(1).checks
    }
}

/// `FRESH` with a heap of so many bytes, and these lines.
fn maps(heap_bytes: u64, more: &str) -> String {
    let mut text = FRESH.to_owned();
    if heap_bytes > 0 {
        text += &format!(
            "{START:x}-{:x} rw-p 00000000 00:00 0 [heap]\n",
            START + heap_bytes
        );
    }
    text + more
}

fn anonymous_line(address: u64, length: u64, permissions: &str) -> String {
    format!(
        "{address:x}-{:x} {permissions} 00000000 00:00 0\n",
        address + length
    )
}

const FRESH_USABLE: u64 = 0x4000;

// The break.

#[test]
fn the_founding_experiment_is_told_move_by_move() {
    let mut story = Story::launched();
    story.brk(0, Some(START), START);
    story.sbrk(0x25000);
    story.sbrk(0x26000);
    story.snapshot(SnapshotReason::End, &maps(0x4b000, ""));
    let told = story.program_break();
    assert_eq!(told.start, Some(Address(START)));
    assert_eq!(
        (told.start_bytes, told.end_bytes, told.peak_bytes),
        (Some(0), Some(0x4b000), Some(0x4b000))
    );
    assert_eq!((told.grow_calls, told.grown_bytes), (2, 0x4b000));
    assert_eq!((told.query_calls, told.shrink_calls), (1, 0));
    assert_eq!(told.returned_ratio, Some(0.0));
    assert!(told.exact);
    let moves: Vec<(u64, i64, u64)> = told
        .steps
        .kept
        .iter()
        .map(|step| (step.number, step.delta_bytes, step.after_bytes))
        .collect();
    assert_eq!(moves, [(1, 0x25000, 0x25000), (2, 0x26000, 0x4b000)]);
    assert_eq!(told.steps.kept[1].from, Address(START + 0x25000));
    let checks = story.checks();
    assert_eq!((checks.made, checks.differing), (1, 0));
}

#[test]
fn a_new_programs_break_is_where_its_heap_starts() {
    let told = Story::launched().program_break();
    assert_eq!(told.end, Some(Address(START)));
    assert_eq!((told.end_bytes, told.exact), (Some(0), true));
}

#[test]
fn a_break_that_is_not_page_aligned_agrees_with_whole_pages() {
    let mut story = Story::launched();
    story.sbrk(0x1234);
    story.snapshot(SnapshotReason::Verify, &maps(0x2000, ""));
    story.sbrk(-0x1200);
    story.snapshot(SnapshotReason::Verify, &maps(0x1000, ""));
    story.sbrk(-0x34);
    story.snapshot(SnapshotReason::Verify, &maps(0, ""));
    assert_eq!((story.checks().made, story.checks().differing), (3, 0));
    let told = story.program_break();
    assert_eq!((told.grown_bytes, told.shrunk_bytes), (0x1234, 0x1234));
    assert_eq!(told.returned_ratio, Some(1.0));
}

#[test]
fn a_refused_brk_is_counted_as_failed_and_moves_nothing() {
    let mut story = Story::launched();
    story.sbrk(0x1000);
    story.brk(START + (1 << 50), Some(START + 0x1000), START + 0x1000);
    let told = story.program_break();
    assert_eq!((told.refused_calls, told.end_bytes), (1, Some(0x1000)));
    let calls = story.space(1).calls;
    assert_eq!(
        (calls[0].name.as_str(), calls[0].calls, calls[0].failed),
        ("brk", 2, 1)
    );
}

#[test]
fn an_attached_programs_break_is_rounded_until_a_call_tells() {
    let mut story = Story::attached(&maps(0x5000, ""));
    let told = story.program_break();
    assert_eq!((told.start_bytes, told.exact), (Some(0x5000), false));
    story.brk(0, None, START + 0x4801);
    let told = story.program_break();
    assert_eq!((told.start_bytes, told.exact), (Some(0x4801), true));
    assert_eq!((told.peak_bytes, told.grown_bytes), (Some(0x4801), 0));
}

#[test]
fn memory_that_the_kernel_merged_into_the_heap_is_told_apart_by_the_first_call() {
    let mut story = Story::attached(&maps(0x8000, ""));
    story.brk(START + 0x5000, Some(START + 0x4000), START + 0x4000);
    assert_eq!(story.program_break().end_bytes, Some(0x4000));
    let anonymous = story.anonymous();
    assert_eq!(anonymous.start_bytes, FRESH_USABLE + 0x4000);
    assert_eq!(
        (anonymous.end_bytes, anonymous.grown_bytes),
        (FRESH_USABLE + 0x4000, 0)
    );
    story.snapshot(SnapshotReason::Verify, &maps(0x8000, ""));
    assert_eq!(story.checks().differing, 0);
}

#[test]
fn without_any_snapshot_moves_are_known_and_sizes_count_from_the_first_break() {
    let mut story = Story::blank();
    story.start(Origin::Launched, None);
    story.sbrk(0x3000);
    let told = story.program_break();
    assert_eq!(told.start, Some(Address(START)));
    assert_eq!((told.grown_bytes, told.end_bytes), (0x3000, Some(0x3000)));
    assert_eq!(story.space(1).memory_at_start, None);
}

#[test]
fn advice_within_the_heap_is_counted_with_the_break() {
    let mut story = Story::launched();
    story.sbrk(0x10000);
    story.madvise(START + 0x2000, 0x3001, Advice::DONTNEED);
    story.madvise(START + 0xf000, 0x9000, Advice::FREE);
    story.madvise(START, 0x1000, Advice(14));
    assert_eq!(story.program_break().advised_bytes, 0x4000 + 0x1000);
    let anonymous = story.anonymous();
    assert_eq!(
        (anonymous.dontneed_bytes, anonymous.lazily_freed_bytes),
        (0, 0)
    );
}

#[test]
fn a_hole_in_the_heap_moves_no_break_and_is_no_difference() {
    let mut story = Story::launched();
    story.sbrk(0x10000);
    story.munmap(START + 0x4000, 0x2000);
    assert_eq!(story.program_break().end_bytes, Some(0x10000));
    let hole = format!(
        "{FRESH}{START:x}-{:x} rw-p 0 00:00 0 [heap]\n{:x}-{:x} rw-p 0 00:00 0 [heap]\n",
        START + 0x4000,
        START + 0x6000,
        START + 0x10000
    );
    story.snapshot(SnapshotReason::Verify, &hole);
    story.mmap(START + 0x4000, 0x2000, READ_WRITE, MapFlags(0x32));
    assert_eq!(story.anonymous().grown_bytes, 0x2000);
    story.snapshot(SnapshotReason::Verify, &maps(0x10000, ""));
    assert_eq!((story.checks().made, story.checks().differing), (2, 0));
}

// Anonymous memory.

#[test]
fn a_large_block_comes_and_goes() {
    let mut story = Story::launched();
    story.mmap(HIGH, MIB + 1, READ_WRITE, PRIVATE);
    let told = story.anonymous();
    assert_eq!(told.start_bytes, FRESH_USABLE);
    assert_eq!((told.grow_calls, told.grown_bytes), (1, MIB + PAGE));
    assert_eq!((told.end_bytes, told.areas), (FRESH_USABLE + MIB + PAGE, 2));
    story.munmap(HIGH, MIB + 1);
    let told = story.anonymous();
    assert_eq!((told.shrink_calls, told.shrunk_bytes), (1, MIB + PAGE));
    assert_eq!(told.peak_bytes, FRESH_USABLE + MIB + PAGE);
    assert_eq!(told.returned_ratio, Some(1.0));
    let deltas: Vec<i64> = told.steps.kept.iter().map(|s| s.delta_bytes).collect();
    assert_eq!(deltas, [0x10_1000, -0x10_1000]);
    assert_eq!(told.steps.kept[1].call, "munmap");
}

#[test]
fn mapping_over_a_block_of_the_same_size_changes_nothing() {
    let mut story = Story::launched();
    story.mmap(HIGH, 8 * PAGE, READ_WRITE, PRIVATE);
    story.mmap(HIGH, 8 * PAGE, READ_WRITE, MapFlags(0x32));
    assert_eq!(story.anonymous().grown_bytes, 8 * PAGE);
    assert_eq!(story.anonymous().grow_calls, 1);
    // Closing half of it by mapping over it is a shrink, by mmap.
    story.mmap(HIGH, 4 * PAGE, NONE, MapFlags(0x32));
    let told = story.anonymous();
    assert_eq!(
        (told.shrunk_bytes, told.reserved_bytes),
        (4 * PAGE, 4 * PAGE)
    );
    assert_eq!(told.steps.kept[1].call, "mmap");
}

#[test]
fn files_and_shared_memory_are_not_anonymous() {
    let mut story = Story::launched();
    story.mmap(HIGH, MIB, READ_WRITE, MapFlags(0x02));
    story.mmap(HIGH + MIB, MIB, READ_WRITE, MapFlags(0x21));
    assert_eq!(story.anonymous().grown_bytes, 0);
    story.mprotect(HIGH, 2 * MIB, NONE);
    assert_eq!(story.anonymous().end_bytes, FRESH_USABLE);
}

#[test]
fn an_arena_of_glibc_counts_what_is_opened_not_what_is_reserved() {
    let mut story = Story::launched();
    let heap = 64 * MIB;
    let aligned = HIGH + 0x0400_0000;
    story.mmap(HIGH + 0x0100_0000, 2 * heap, NONE, MapFlags(0x4022));
    story.munmap(HIGH + 0x0100_0000, 0x0300_0000);
    story.munmap(aligned + heap, 0x0100_0000);
    assert_eq!(story.anonymous().reserved_bytes, heap);
    assert_eq!(story.anonymous().grown_bytes, 0);
    story.mprotect(aligned, 132 * KIB, READ_WRITE);
    story.mprotect(aligned + 132 * KIB, 64 * KIB, READ_WRITE);
    story.madvise(aligned + 132 * KIB, 64 * KIB, Advice::DONTNEED);
    let told = story.anonymous();
    assert_eq!((told.grow_calls, told.grown_bytes), (2, 196 * KIB));
    assert_eq!(told.reserved_bytes, heap - 196 * KIB);
    assert_eq!((told.dontneed_bytes, told.shrunk_bytes), (64 * KIB, 0));
    let lines = anonymous_line(aligned, 196 * KIB, "rw-p")
        + &anonymous_line(aligned + 196 * KIB, heap - 196 * KIB, "---p");
    story.snapshot(SnapshotReason::Verify, &maps(0, &lines));
    assert_eq!((story.checks().made, story.checks().differing), (1, 0));
    story.mprotect(aligned, heap, NONE);
    assert_eq!(story.anonymous().shrunk_bytes, 196 * KIB);
}

#[test]
fn mremap_counts_the_difference_of_the_lengths() {
    let mut story = Story::launched();
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, PRIVATE);
    let grown = |story: &Story| {
        let told = story.anonymous();
        (told.grown_bytes / PAGE, told.shrunk_bytes / PAGE)
    };
    // In place, then moved.
    story.mremap((HIGH, 4 * PAGE), (HIGH, 6 * PAGE), RemapFlags(0));
    assert_eq!(grown(&story), (6, 0));
    let moved = HIGH + MIB;
    story.mremap((HIGH, 6 * PAGE), (moved, 9 * PAGE), RemapFlags(1));
    assert_eq!(grown(&story), (9, 0));
    // Shrunk in place, then moved to a smaller one over something else.
    story.mremap((moved, 9 * PAGE), (moved, 5 * PAGE), RemapFlags(1));
    assert_eq!(grown(&story), (9, 4));
    story.mremap((moved, 5 * PAGE), (HIGH, 3 * PAGE), RemapFlags(3));
    assert_eq!(grown(&story), (9, 6));
    // The old range stays.
    story.mremap((HIGH, 3 * PAGE), (moved, 3 * PAGE), RemapFlags(5));
    assert_eq!(grown(&story), (12, 6));
    let lines = anonymous_line(HIGH, 3 * PAGE, "rw-p") + &anonymous_line(moved, 3 * PAGE, "rw-p");
    story.snapshot(SnapshotReason::Verify, &maps(0, &lines));
    assert_eq!(story.checks().differing, 0);
}

#[test]
fn mremap_with_an_old_length_of_zero_maps_shared_memory_twice() {
    let mut story = Story::launched();
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, MapFlags(0x21));
    story.mremap((HIGH, 0), (HIGH + MIB, 4 * PAGE), RemapFlags(1));
    assert_eq!(story.anonymous().grown_bytes, 0);
    let line = |address: u64| {
        format!(
            "{address:x}-{:x} rw-s 00000000 00:01 77 /dev/zero (deleted)\n",
            address + 4 * PAGE
        )
    };
    story.snapshot(
        SnapshotReason::Verify,
        &maps(0, &(line(HIGH) + &line(HIGH + MIB))),
    );
    assert_eq!(story.checks().differing, 0);
}

#[test]
fn mremap_of_memory_nobody_announced_counts_only_its_growth() {
    let mut story = Story::launched();
    story.mremap((HIGH, 4 * PAGE), (HIGH, 6 * PAGE), RemapFlags(0));
    let told = story.anonymous();
    assert_eq!(told.grown_bytes, 2 * PAGE);
    assert_eq!(told.start_bytes, FRESH_USABLE + 4 * PAGE);
}

#[test]
fn huge_pages_round_lengths_to_their_size() {
    let mut story = Story::launched();
    story.mmap(HIGH, 1, READ_WRITE, MapFlags(0x4_0022));
    assert_eq!(story.anonymous().grown_bytes, 2 * MIB);
    story.mmap(HIGH << 1, 1, READ_WRITE, MapFlags(0x4_0022 | 30 << 26));
    assert_eq!(story.anonymous().grown_bytes, 2 * MIB + (1 << 30));
}

#[test]
fn advice_counts_over_private_anonymous_memory_only() {
    let mut story = Story::launched();
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, PRIVATE);
    story.mmap(HIGH + 4 * PAGE, 4 * PAGE, READ_WRITE, MapFlags(0x21));
    story.madvise(HIGH, 8 * PAGE, Advice::DONTNEED);
    story.madvise(HIGH + PAGE, PAGE, Advice::DONTNEED_LOCKED);
    story.madvise(HIGH, 8 * PAGE, Advice::FREE);
    story.madvise(HIGH, 8 * PAGE, Advice::REMOVE);
    let told = story.anonymous();
    assert_eq!(told.dontneed_bytes, 5 * PAGE);
    assert_eq!(told.lazily_freed_bytes, 4 * PAGE);
    assert_eq!(told.shrunk_bytes, 0);
}

#[test]
fn failed_calls_are_counted_and_change_nothing() {
    let mut story = Story::launched();
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, PRIVATE);
    let failed = || CallResult::Failed(Errno(12));
    story.event(EventKind::Munmap {
        address: Address(HIGH),
        length: PAGE,
        result: failed(),
    });
    story.event(EventKind::Mprotect {
        address: Address(HIGH),
        length: PAGE,
        protection: NONE,
        result: failed(),
    });
    story.event(EventKind::Mmap {
        hint: Address(HIGH),
        length: PAGE,
        protection: NONE,
        flags: MapFlags(0x32),
        fd: -1,
        offset: 0,
        result: CallResult::Failed(Errno(12)),
    });
    assert_eq!(story.anonymous().end_bytes, FRESH_USABLE + 4 * PAGE);
    let calls: Vec<(String, u64, u64)> = story
        .space(1)
        .calls
        .into_iter()
        .map(|count| (count.name, count.calls, count.failed))
        .collect();
    assert_eq!(
        calls,
        [
            ("mmap".into(), 2, 1),
            ("munmap".into(), 1, 1),
            ("mprotect".into(), 1, 1)
        ]
    );
}

#[test]
fn shared_segments_come_and_go_as_a_whole_and_shadow_stacks_are_memory() {
    let mut story = Story::launched();
    story.event(EventKind::Shmat {
        shmid: 1,
        length: Some(3 * PAGE),
        result: CallResult::Done(Address(HIGH)),
    });
    let line = format!(
        "{HIGH:x}-{:x} rw-s 00000000 00:01 5 /SYSV00000000 (deleted)\n",
        HIGH + 3 * PAGE
    );
    story.snapshot(SnapshotReason::Verify, &maps(0, &line));
    story.event(EventKind::Shmdt {
        address: Address(HIGH),
        result: CallResult::Done(()),
    });
    story.event(EventKind::RemapFilePages {
        address: Address(HIGH),
        length: PAGE,
        result: CallResult::Done(()),
    });
    story.snapshot(SnapshotReason::Verify, &maps(0, ""));
    assert_eq!((story.checks().made, story.checks().differing), (2, 0));
    story.event(EventKind::MapShadowStack {
        length: 2 * PAGE,
        result: CallResult::Done(Address(HIGH)),
    });
    assert_eq!(story.anonymous().grown_bytes, 2 * PAGE);
}

#[test]
fn a_segment_attached_before_observation_is_detached_as_one() {
    let line = format!(
        "{HIGH:x}-{0:x} r--s 00000000 00:01 5 /SYSV00000000 (deleted)\n{0:x}-{1:x} rw-s 00001000 00:01 5 /SYSV00000000 (deleted)\n",
        HIGH + PAGE,
        HIGH + 3 * PAGE
    );
    let mut story = Story::attached(&maps(0, &line));
    story.event(EventKind::Shmdt {
        address: Address(HIGH),
        result: CallResult::Done(()),
    });
    story.snapshot(SnapshotReason::Verify, &maps(0, ""));
    assert_eq!(story.checks().differing, 0);
}

// Checks.

#[test]
fn what_proc_shows_otherwise_is_reported_and_then_taken_over() {
    let mut story = Story::launched();
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, PRIVATE);
    story.snapshot(
        SnapshotReason::Verify,
        &maps(0, &anonymous_line(HIGH + PAGE, 5 * PAGE, "rw-p")),
    );
    let checks = story.checks();
    assert_eq!((checks.made, checks.differing), (1, 1));
    let words: Vec<(u64, &str, &str)> = checks
        .differences
        .iter()
        .map(|d| (d.start.0, d.expected.as_str(), d.found.as_str()))
        .collect();
    assert_eq!(
        words,
        [
            (HIGH, "anonymous memory", "nothing"),
            (HIGH + 4 * PAGE, "nothing", "anonymous memory")
        ]
    );
    let told = story.anonymous();
    assert_eq!(told.end_bytes, FRESH_USABLE + 5 * PAGE);
    assert_eq!((told.grown_bytes, told.shrunk_bytes), (4 * PAGE, 0));
    story.snapshot(
        SnapshotReason::Verify,
        &maps(0, &anonymous_line(HIGH + PAGE, 5 * PAGE, "rw-p")),
    );
    assert_eq!((story.checks().made, story.checks().differing), (2, 1));
}

#[test]
fn a_break_found_elsewhere_is_taken_over_in_either_direction() {
    let mut story = Story::launched();
    story.sbrk(0x4000);
    story.snapshot(SnapshotReason::Verify, &maps(0x9000, ""));
    let told = story.program_break();
    assert_eq!((told.end_bytes, told.exact), (Some(0x9000), false));
    assert_eq!(told.grown_bytes, 0x4000);
    story.snapshot(SnapshotReason::Verify, &maps(0x2000, ""));
    assert_eq!(story.program_break().end_bytes, Some(0x2000));
    story.snapshot(SnapshotReason::Verify, &maps(0, ""));
    assert_eq!(story.program_break().end_bytes, Some(0));
    assert_eq!((story.checks().made, story.checks().differing), (3, 3));
    assert_eq!(story.anonymous().end_bytes, FRESH_USABLE);
    assert_eq!(story.program_break().start_bytes, Some(0));
}

#[test]
fn a_snapshot_during_a_call_is_no_check() {
    let mut story = Story::launched();
    let ahead = maps(0, &anonymous_line(HIGH, PAGE, "rw-p"));
    story.snapshot_during(SnapshotReason::Interval, &ahead, 1);
    assert_eq!((story.checks().made, story.checks().skipped), (0, 1));
    assert_eq!(story.anonymous().end_bytes, FRESH_USABLE);
    story.snapshot_during(SnapshotReason::Resync, &ahead, 1);
    assert_eq!(story.anonymous().end_bytes, FRESH_USABLE + PAGE);
    assert_eq!(story.checks().differing, 0);
}

#[test]
fn what_an_undecoded_call_did_is_learnt_and_not_called_a_difference() {
    let mut story = Story::launched();
    story.event(EventKind::NotDecoded {
        abi: "AUDIT_ARCH_I386".into(),
        number: 192,
    });
    let after = maps(0, &anonymous_line(HIGH, PAGE, "rw-p"));
    story.snapshot(SnapshotReason::Interval, &after);
    story.snapshot(SnapshotReason::Interval, &after);
    let checks = story.checks();
    assert_eq!((checks.made, checks.differing, checks.skipped), (1, 0, 1));
    assert_eq!(story.anonymous().end_bytes, FRESH_USABLE + PAGE);
}

#[test]
fn only_the_first_differences_are_put_into_words() {
    let mut story = Story::launched();
    let lines: String = (0..40)
        .map(|index| anonymous_line(HIGH + index * 16 * PAGE, PAGE, "rw-p"))
        .collect();
    story.snapshot(SnapshotReason::Verify, &maps(0, &lines));
    assert_eq!(story.checks().differences.len(), 16);
}

#[test]
fn a_snapshot_without_mappings_teaches_nothing() {
    let mut story = Story::launched();
    story.sbrk(0x4000);
    story.snapshot(SnapshotReason::End, "");
    assert_eq!(story.checks().made, 0);
    assert_eq!(story.program_break().end_bytes, Some(0x4000));
}

// Processes and address spaces.

#[test]
fn a_forked_child_copies_and_counts_from_zero() {
    let mut story = Story::launched();
    story.sbrk(0x4000);
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, PRIVATE);
    story.in_process(11, 2);
    story.start(Origin::Forked, Some(1));
    story.sbrk(0x1000);
    story.munmap(HIGH, PAGE);
    let child = story.space(2);
    assert_eq!(child.origin, SpaceOrigin::Forked(SpaceId(1)));
    assert_eq!(child.program_break.start_bytes, Some(0x4000));
    assert_eq!(child.program_break.grown_bytes, 0x1000);
    assert_eq!(child.anonymous.start_bytes, FRESH_USABLE + 4 * PAGE);
    assert_eq!(child.anonymous.shrunk_bytes, PAGE);
    let parent = story.space(1);
    assert_eq!(parent.program_break.end_bytes, Some(0x4000));
    assert_eq!(parent.anonymous.end_bytes, FRESH_USABLE + 4 * PAGE);
    assert_eq!(story.report().processes[1].parent, Some(10));
}

#[test]
fn the_childs_own_first_snapshot_is_its_baseline() {
    let mut story = Story::launched();
    story.mmap(HIGH, 4 * PAGE, READ_WRITE, PRIVATE);
    story.in_process(11, 2);
    story.start(Origin::Forked, Some(1));
    // The parent had advised MADV_DONTFORK.
    story.snapshot(SnapshotReason::Start, FRESH);
    let child = story.space(2);
    assert_eq!(child.anonymous.start_bytes, FRESH_USABLE);
    assert_eq!(child.checks, Checks::default());
    story.snapshot(SnapshotReason::End, FRESH);
    assert_eq!(story.space(2).checks.made, 1);
}

#[test]
fn a_vforked_child_works_in_its_parents_memory_until_it_execs() {
    let mut story = Story::launched();
    story.in_process(11, 1);
    story.start(Origin::Vforked, Some(1));
    story.mmap(HIGH, PAGE, READ_WRITE, PRIVATE);
    assert_eq!(story.report().address_spaces.len(), 1);
    assert_eq!(story.anonymous().grown_bytes, PAGE);
    story.exec(11, 1, 2);
    let report = story.report();
    assert_eq!(report.address_spaces.len(), 2);
    assert_eq!(report.processes[1].address_spaces, [SpaceId(1), SpaceId(2)]);
    assert_eq!(report.processes[1].program, "/bin/exec-2");
    assert_eq!(report.address_spaces[0].ended_ns, None);
    assert_eq!(report.address_spaces[0].program, "/bin/program");
    story.in_process(10, 1);
    story.end();
    let report = story.report();
    assert_eq!(
        report.address_spaces[0].ended_ns,
        Some(Timestamp(story.time))
    );
    assert_eq!(report.address_spaces[1].ended_ns, None);
}

#[test]
fn exec_ends_the_address_space_and_keeps_its_figures() {
    let mut story = Story::launched();
    story.sbrk(0x4000);
    story.mmap(HIGH, 4 * PAGE, NONE, PRIVATE);
    story.exec(10, 1, 2);
    story.snapshot(SnapshotReason::Start, FRESH);
    let old = story.space(1);
    assert!(old.ended_ns.is_some());
    assert_eq!(old.program_break.end_bytes, Some(0x4000));
    assert_eq!(old.anonymous.reserved_bytes, 4 * PAGE);
    assert_eq!(old.anonymous.areas, 1);
    let new = story.space(2);
    assert_eq!(new.origin, SpaceOrigin::Exec);
    assert_eq!(new.program_break.start_bytes, Some(0));
    assert_eq!(story.recorder.spaces[0].region_count(), 0);
}

#[test]
fn threads_are_counted_with_the_first() {
    let mut story = Story::launched();
    story.event(EventKind::ThreadStarted);
    story.time += 1;
    let event = Event {
        malloc: None,
        time: Timestamp(story.time),
        pid: 10,
        tid: 12,
        space: SpaceId(1),
        allocator: None,
        stack: None,
        kind: EventKind::ThreadStarted,
    };
    story.recorder.record(&event);
    assert_eq!(story.report().processes[0].threads, 2);
    assert_eq!(story.report().totals.threads, 2);
}

#[test]
fn a_number_in_use_again_means_that_its_process_has_vanished() {
    let mut story = Story::launched();
    story.in_process(10, 2);
    story.start(Origin::Launched, None);
    let report = story.report();
    assert_eq!(report.processes[0].outcome, Some(Outcome::Vanished));
    assert_eq!(report.processes[1].outcome, None);
    assert!(report.address_spaces[0].ended_ns.is_some());
}

#[test]
fn calls_of_a_process_nobody_announced_are_counted() {
    let mut story = Story::blank();
    story.in_process(77, 9);
    story.sbrk(0x1000);
    let report = story.report();
    assert_eq!(report.processes[0].origin, Origin::Attached);
    assert_eq!(
        report.space(SpaceId(9)).unwrap().origin,
        SpaceOrigin::Attached
    );
    assert_eq!(report.totals.break_grown_bytes, 0x1000);
}

#[test]
fn an_announcement_that_comes_late_completes_the_process() {
    let mut story = Story::blank();
    story.in_process(77, 9);
    story.sbrk(0x1000);
    story.start(Origin::Launched, None);
    let report = story.report();
    assert_eq!(report.processes.len(), 1);
    assert_eq!(report.processes[0].program, "/bin/program");
    assert_eq!(report.processes[0].started_ns, Timestamp(2_000));
    assert_eq!(report.address_spaces[0].origin, SpaceOrigin::Exec);
}

#[test]
fn a_vforked_child_seen_after_its_parents_end_finds_its_memory_again() {
    let mut story = Story::launched();
    story.end();
    story.in_process(11, 1);
    story.start(Origin::Vforked, Some(1));
    story.snapshot(SnapshotReason::Request, FRESH);
    story.mmap(HIGH, PAGE, READ_WRITE, PRIVATE);
    let space = story.space(1);
    assert_eq!(space.ended_ns, None);
    assert_eq!(space.anonymous.grown_bytes, PAGE);
    assert_eq!(space.checks.differing, 0);
}

#[test]
fn the_report_is_about_the_program_whose_heap_grew_most() {
    let mut story = Story::launched();
    assert_eq!(story.report().main_space, Some(SpaceId(1)));
    story.in_process(11, 2);
    story.start(Origin::Forked, Some(1));
    story.mmap(HIGH, MIB, READ_WRITE, PRIVATE);
    assert_eq!(story.report().main_space, Some(SpaceId(1)));
    story.exec(11, 2, 3);
    story.snapshot(SnapshotReason::Start, FRESH);
    story.sbrk(0x1000);
    assert_eq!(story.report().main_space, Some(SpaceId(3)));
    assert_eq!(Recorder::new(recording()).report().main_space, None);
}

#[test]
fn totals_add_up_all_address_spaces() {
    let mut story = Story::launched();
    story.sbrk(0x3000);
    story.sbrk(-0x1000);
    story.exec(10, 1, 2);
    story.snapshot(SnapshotReason::Start, FRESH);
    story.program_break = START;
    story.sbrk(0x5000);
    story.mmap(HIGH, PAGE, READ_WRITE, PRIVATE);
    let totals = story.report().totals;
    assert_eq!(
        (totals.break_grown_bytes, totals.break_shrunk_bytes),
        (0x8000, 0x1000)
    );
    assert_eq!((totals.break_grow_calls, totals.break_shrink_calls), (2, 1));
    assert_eq!(totals.anonymous_grown_bytes, PAGE);
    assert_eq!((totals.processes, totals.address_spaces), (1, 2));
    assert_eq!(totals.calls[0].calls, 3);
}

// Notices, timeline, bounds.

#[test]
fn a_notice_is_given_once_and_a_flood_is_cut() {
    let mut story = Story::launched();
    let notice = |number: u32| {
        EventKind::Notice(Notice {
            code: NoticeCode::ThreadNotTraced,
            message: format!("thread {number}"),
        })
    };
    for number in 0..150 {
        story.event(notice(number));
        story.event(notice(0));
    }
    let notices = story.report().notices;
    assert_eq!(notices.len(), 101);
    assert_eq!(notices[100].code, NoticeCode::NoticesLeftOut);
    assert!(notices[100].message.starts_with("50 more"));
}

#[test]
fn the_timeline_follows_break_anonymous_and_resident_memory() {
    let mut story = Story::launched();
    story.sbrk(0x1000);
    story.mmap(HIGH, PAGE, READ_WRITE, PRIVATE);
    story.brk(0, Some(story.program_break), story.program_break);
    story.snapshot(
        SnapshotReason::Request,
        &maps(0x1000, &anonymous_line(HIGH, PAGE, "rw-p")),
    );
    let points = story.space(1).timeline.points;
    let sizes: Vec<(u64, u64, bool)> = points
        .iter()
        .map(|p| (p.break_bytes, p.anonymous_bytes, p.resident_bytes.is_some()))
        .collect();
    assert_eq!(
        sizes,
        [
            (0, FRESH_USABLE, true),
            (0x1000, FRESH_USABLE, false),
            (0x1000, FRESH_USABLE + PAGE, false),
            (0x1000, FRESH_USABLE + PAGE, true),
        ]
    );
    let space = story.space(1);
    assert!(
        space.memory_at_start.unwrap().resident_bytes < space.memory_at_end.unwrap().resident_bytes
    );
}

#[test]
fn a_million_events_are_counted_exactly_and_kept_in_part() {
    let mut recorder = Story::launched().recorder;
    let mut event = Event {
        malloc: None,
        time: Timestamp(0),
        pid: 10,
        tid: 10,
        space: SpaceId(1),
        allocator: None,
        stack: None,
        kind: EventKind::ThreadEnded,
    };
    for round in 0..500_000_u64 {
        for (before, after) in [(START, START + 0x1000), (START + 0x1000, START)] {
            event.time = Timestamp(event.time.0 + 10_000 + round % 7);
            event.kind = EventKind::Brk {
                requested: Address(after),
                before: Some(Address(before)),
                after: Address(after),
            };
            recorder.record(&event);
        }
    }
    let report = recorder.report();
    let told = &report.address_spaces[0].program_break;
    assert_eq!((told.grow_calls, told.shrink_calls), (500_000, 500_000));
    assert_eq!(told.steps.total, 1_000_000);
    assert!(told.steps.kept.len() <= 128);
    assert!(report.address_spaces[0].timeline.points.len() <= timeline::MOST_POINTS);
}

#[test]
fn of_very_many_programs_some_keep_detail_and_all_keep_counters() {
    let mut story = Story::launched();
    story.sbrk(0x1000);
    let programs = 2_000_u32;
    let largest = 700;
    for number in 0..programs {
        let (pid, space) = (100 + number, 2 + number);
        story.in_process(pid, 1);
        story.start(Origin::Vforked, Some(1));
        story.in_process(pid, space);
        story.event(EventKind::Exec {
            program: "/usr/bin/cc".into(),
            arguments: vec!["-Ddefinition".into(); 300],
            from_space: SpaceId(1),
        });
        story.snapshot(SnapshotReason::Start, FRESH);
        story.program_break = START;
        story.sbrk(0x1000 * i64::from(1 + number % 50));
        if number == largest {
            // Moves a lot without ever being large.
            for _ in 0..200 {
                story.sbrk(0x1000);
                story.sbrk(-0x1000);
            }
        }
        story.snapshot(SnapshotReason::End, FRESH);
        story.end();
        story.events.clear();
    }
    let report = story.report();
    let detailed = report
        .address_spaces
        .iter()
        .filter(|space| !space.timeline.points.is_empty())
        .count();
    assert_eq!(detailed, MOST_DETAILED);
    assert!(!report.address_spaces[0].layout.is_empty());
    let main = report.main().unwrap();
    assert_eq!(main.id, SpaceId(2 + largest));
    assert!(!main.program_break.steps.kept.is_empty());
    for space in &report.address_spaces[1..] {
        assert!(space.program_break.grown_bytes > 0);
        assert_eq!(
            space.program_break.steps.total > 0,
            space.program_break.grow_calls > 0
        );
    }
    // Those that were kept are the larger ones.
    let kept_small = report.address_spaces[2..]
        .iter()
        .filter(|space| !space.layout.is_empty() && space.id != main.id)
        .filter(|space| space.program_break.peak_bytes < Some(0x1000 * 43))
        .count();
    assert_eq!(kept_small, 0);
    let regions: usize = story
        .recorder
        .spaces
        .iter()
        .map(AddressSpace::region_count)
        .sum();
    assert!(regions < 20, "only the live space keeps regions");
    let argument_bytes = |index: usize| -> usize {
        report.processes[index]
            .arguments
            .iter()
            .map(String::len)
            .sum()
    };
    assert!((1..500).all(|index| argument_bytes(index) < 4200));
    let long = (1..report.processes.len())
        .filter(|&index| argument_bytes(index) > 300)
        .count();
    assert!(long <= MOST_DETAILED, "{long} keep all their arguments");
}

#[test]
fn what_a_space_without_detail_costs_stays_small() {
    // 30,000 processes that fork and exec leave room for the detailed ones within 64 MiB, and own nothing elsewhere.
    let process = 2 * size_of::<AddressSpace>() + size_of::<Process>();
    assert!(30_000 * process <= 48 << 20, "{process}");
}

// Layout, replay, hostility.

#[test]
fn the_picture_is_the_last_snapshots_with_the_heap_up_to_the_break() {
    let mut story = Story::launched();
    story.sbrk(0x1234);
    story.snapshot(SnapshotReason::End, &maps(0x2000, ""));
    story.snapshot(SnapshotReason::Request, FRESH);
    let layout = story.space(1).layout;
    let heap = layout
        .iter()
        .find(|segment| segment.kind == SegmentKind::Heap)
        .unwrap();
    assert_eq!((heap.start.0, heap.end.0), (START, START + 0x1234));
}

#[test]
fn a_replayed_log_gives_the_same_report_byte_for_byte() {
    let mut story = Story::launched();
    story.sbrk(0x21000);
    story.mmap(HIGH, MIB, NONE, PRIVATE);
    story.mprotect(HIGH, 64 * KIB, READ_WRITE);
    story.in_process(11, 2);
    story.start(Origin::Forked, Some(1));
    story.exec(11, 2, 3);
    story.snapshot(SnapshotReason::Start, FRESH);
    story.end();
    story.in_process(10, 1);
    story.snapshot(SnapshotReason::End, &maps(0x21000, ""));
    story.event(EventKind::Notice(Notice {
        code: NoticeCode::LatencyHeld,
        message: "held".into(),
    }));
    story.end();
    story.event(EventKind::RecordingEnded {
        reason: EndReason::Finished,
    });

    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("events.jsonl");
    let mut log = EventLog::create(&path, &recording()).unwrap();
    for event in &story.events {
        log.write(event).unwrap();
    }
    let text = std::fs::read(&path).unwrap();
    let replayed = replay(text.as_slice()).unwrap().report();
    assert_eq!(to_json(&replayed), to_json(&story.report()));
    assert_eq!(replayed.end.reason, Some(EndReason::Finished));

    // Cut anywhere, it still gives a report, which says so.
    let header = text.iter().position(|&byte| byte == b'\n').unwrap();
    for length in header + 1..text.len() - 1 {
        let cut = replay(&text[..length]).unwrap().report();
        // The last line may lack no more than its newline.
        let whole = cut.end.reason.is_some();
        assert_eq!(
            cut.notices.last().map(|notice| notice.code) == Some(NoticeCode::Incomplete),
            !whole,
            "cut at {length}"
        );
    }
}

#[test]
fn no_order_and_no_content_of_events_does_harm() {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        state >> 16
    };
    let numbers = [
        0,
        1,
        PAGE,
        START,
        START + 0x5000,
        HIGH,
        u64::MAX,
        u64::MAX - 1,
        1 << 63,
        !0xfff,
    ];
    for page_size in [0, 1, 3, PAGE, 1 << 63] {
        let mut recording = recording();
        recording.machine.page_size = page_size;
        let mut recorder = Recorder::new(recording);
        for _ in 0..20_000 {
            let mut number = || numbers[usize::try_from(random() % 10).unwrap()];
            let (a, b, c, d) = (number(), number(), number(), number());
            let bits = u32::try_from(random() & 0xffff_ffff).unwrap();
            let result = match random() % 5 {
                0 => CallResult::Failed(Errno(12)),
                _ => CallResult::Done(()),
            };
            let place = match result {
                CallResult::Done(()) => CallResult::Done(Address(d)),
                CallResult::Failed(error) => CallResult::Failed(error),
            };
            let small = u32::try_from(random() % 6).unwrap();
            let (address, length) = (Address(a), b);
            let kind = match random() % 17 {
                0 => EventKind::ProcessStarted {
                    origin: [
                        Origin::Launched,
                        Origin::Attached,
                        Origin::Forked,
                        Origin::Vforked,
                        Origin::Cloned,
                    ][usize::try_from(random() % 5).unwrap()],
                    parent: Some(small),
                    from_space: (bits & 1 == 0).then_some(SpaceId(small)),
                    program: String::new(),
                    arguments: vec!["\0a\0".into()],
                },
                1 => EventKind::ThreadStarted,
                2 => EventKind::ThreadEnded,
                3 => EventKind::Exec {
                    program: String::new(),
                    arguments: Vec::new(),
                    from_space: SpaceId(small),
                },
                4 => EventKind::ProcessEnded {
                    outcome: Outcome::Vanished,
                },
                5 | 6 => EventKind::Brk {
                    requested: Address(a),
                    before: (bits & 1 == 0).then_some(Address(b)),
                    after: Address(c),
                },
                7 => EventKind::Mmap {
                    hint: address,
                    length,
                    protection: Protection(bits & 7),
                    flags: MapFlags(bits),
                    fd: -1,
                    offset: c,
                    result: place,
                },
                8 => EventKind::Munmap {
                    address,
                    length,
                    result,
                },
                9 => EventKind::Mremap {
                    address,
                    old_length: b,
                    new_length: c,
                    flags: RemapFlags(bits & 7),
                    new_address: address,
                    result: place,
                },
                10 => EventKind::Mprotect {
                    address,
                    length,
                    protection: Protection(bits),
                    result,
                },
                11 => EventKind::Madvise {
                    address,
                    length,
                    advice: Advice(4 + i32::try_from(small).unwrap()),
                    result,
                },
                12 => EventKind::Shmat {
                    shmid: 0,
                    length: Some(length),
                    result: place,
                },
                13 => EventKind::Shmdt { address, result },
                14 => EventKind::MapShadowStack {
                    length,
                    result: place,
                },
                15 => EventKind::NotDecoded {
                    abi: String::new(),
                    number: a,
                },
                _ => EventKind::Snapshot(Box::new(Snapshot {
                    reason: [
                        SnapshotReason::Start,
                        SnapshotReason::Attach,
                        SnapshotReason::Resync,
                        SnapshotReason::Verify,
                        SnapshotReason::End,
                    ][usize::try_from(random() % 5).unwrap()],
                    heap_start: (bits & 1 == 0).then_some(Address(a)),
                    memory: None,
                    heap_pages: None,
                    calls_under_way: small / 5,
                    mappings: mapping::parse(
                        format!(
                            "{a:x}-{b:x} rw-p 0 00:00 0 [heap]\n{c:x}-{d:x} ---p 0 00:00 0\n\
                             {b:x}-{c:x} rw-p {a:x} 00:00 0 /SYSV\n{a:x}-{d:x} rw-p 0 00:00 0 [stack]"
                        )
                        .as_bytes(),
                    ),
                })),
            };
            recorder.record(&Event {
                malloc: None,
                time: Timestamp(a ^ b),
                pid: small,
                tid: bits,
                space: SpaceId(u32::try_from(random() % 6).unwrap()),
                allocator: None,
                stack: None,
                kind,
            });
        }
        assert!(to_json(&recorder.report()).contains(SCHEMA_NAME));
    }
}
