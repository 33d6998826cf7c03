//! What the bundled allocator of one address space told, held against the calls that were traced.

use super::growth::Owner;
use super::program_break::BrkCall;
use super::program_break::BrkEffect;
use super::samples::SampleLog;
use crate::event::AllocatorAbsence;
use crate::event::AllocatorChoice;
use crate::event::AllocatorFigures;
use crate::event::AllocatorReading;
use crate::event::AllocatorSetup;
use crate::event::ClassReading;
use crate::event::HeapError;
use crate::event::HeapErrorKind;
use crate::event::HeapWalk;
use crate::event::ReadingMoment;
use crate::report::AllocatorChecks;
use crate::report::AllocatorClaims;
use crate::report::AllocatorDifference;
use crate::report::AllocatorMoment;
use crate::report::AllocatorReport;
use crate::report::FoundHeapError;
use crate::report::HeapErrorCount;
use crate::report::HeapErrors;
use crate::report::InUseMeasure;
use crate::report::StepFigures;
use crate::stats_page::Counters;
use crate::units::Address;
use crate::units::Timestamp;

/// Most heap errors kept of one address space; all are counted.
const MOST_ERRORS: usize = 64;

/// Most differences kept.
const MOST_DIFFERENCES: usize = 16;

/// Kinds of heap errors.
const ERROR_KINDS: [HeapErrorKind; 6] = [
    HeapErrorKind::DoubleFree,
    HeapErrorKind::ForeignPointer,
    HeapErrorKind::WritePastEnd,
    HeapErrorKind::WriteBeforeStart,
    HeapErrorKind::WriteAfterFree,
    HeapErrorKind::RecordsChanged,
];

/// The counters that the kernel's side knows as well.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Tally {
    brk_calls: u64,
    brk_refused: u64,
    brk_grown_bytes: u64,
    brk_shrunk_bytes: u64,
    mmap_calls: u64,
    mapped_bytes: u64,
    munmap_calls: u64,
    unmapped_bytes: u64,
    mremap_calls: u64,
    madvise_calls: u64,
    advised_bytes: u64,
}

impl Tally {
    /// The names of the counters, in the order of [`Tally::values`].
    const NAMES: [&'static str; 11] = [
        "brk_calls",
        "brk_refused",
        "brk_grown_bytes",
        "brk_shrunk_bytes",
        "mmap_calls",
        "mapped_bytes",
        "munmap_calls",
        "unmapped_bytes",
        "mremap_calls",
        "madvise_calls",
        "advised_bytes",
    ];

    /// What the allocator itself counted.
    fn of(counters: &Counters) -> Self {
        Self {
            brk_calls: counters.brk_calls,
            brk_refused: counters.brk_refused,
            brk_grown_bytes: counters.brk_grown_bytes,
            brk_shrunk_bytes: counters.brk_shrunk_bytes,
            mmap_calls: counters.mmap_calls,
            mapped_bytes: counters.mapped_bytes,
            munmap_calls: counters.munmap_calls,
            unmapped_bytes: counters.unmapped_bytes,
            mremap_calls: counters.mremap_calls,
            madvise_calls: counters.madvise_calls,
            advised_bytes: counters.advised_bytes,
        }
    }

    fn values(&self) -> [u64; Self::NAMES.len()] {
        [
            self.brk_calls,
            self.brk_refused,
            self.brk_grown_bytes,
            self.brk_shrunk_bytes,
            self.mmap_calls,
            self.mapped_bytes,
            self.munmap_calls,
            self.unmapped_bytes,
            self.mremap_calls,
            self.madvise_calls,
            self.advised_bytes,
        ]
    }

    /// Bytes obtained less bytes given back, modulo 2⁶⁴.
    fn net(&self) -> u64 {
        self.brk_grown_bytes
            .wrapping_sub(self.brk_shrunk_bytes)
            .wrapping_add(self.mapped_bytes)
            .wrapping_sub(self.unmapped_bytes)
    }

    /// A brk call of the allocator; one for address 0 merely asks where the break is and does not count.
    pub(super) fn brk(&mut self, call: BrkCall, effect: BrkEffect) {
        if call.requested == Address(0) {
            return;
        }
        self.brk_calls += 1;
        match effect {
            BrkEffect::Refused => self.brk_refused += 1,
            BrkEffect::MovedFrom(from) => {
                let grown = call.after.above(from);
                let shrunk = from.above(call.after);
                self.brk_grown_bytes = self.brk_grown_bytes.wrapping_add(grown);
                self.brk_shrunk_bytes = self.brk_shrunk_bytes.wrapping_add(shrunk);
            }
            BrkEffect::Query | BrkEffect::MovedFromUnknown => {}
        }
    }

    /// An mmap call; without bytes when it failed.
    pub(super) fn mmap(&mut self, mapped_bytes: Option<u64>) {
        self.mmap_calls += 1;
        self.mapped_bytes = self
            .mapped_bytes
            .wrapping_add(mapped_bytes.unwrap_or_default());
    }

    /// A munmap call; without bytes when it failed.
    pub(super) fn munmap(&mut self, unmapped_bytes: Option<u64>) {
        self.munmap_calls += 1;
        self.unmapped_bytes = self
            .unmapped_bytes
            .wrapping_add(unmapped_bytes.unwrap_or_default());
    }

    /// An mremap call; without sizes when it failed.
    pub(super) fn mremap(&mut self, old_new: Option<(u64, u64)>) {
        self.mremap_calls += 1;
        if let Some((old, new)) = old_new {
            self.mapped_bytes = self.mapped_bytes.wrapping_add(new.saturating_sub(old));
            self.unmapped_bytes = self.unmapped_bytes.wrapping_add(old.saturating_sub(new));
        }
    }

    /// A madvise call to give pages back; without bytes when it failed.
    pub(super) fn madvise(&mut self, advised_bytes: Option<u64>) {
        self.madvise_calls += 1;
        self.advised_bytes = self
            .advised_bytes
            .wrapping_add(advised_bytes.unwrap_or_default());
    }
}

/// Figures and when they were read.
#[derive(Clone, Copy, Debug)]
struct Taken {
    time: Timestamp,
    moment: ReadingMoment,
    still: bool,
    counters: Counters,
}

impl Taken {
    fn report(&self) -> AllocatorMoment {
        AllocatorMoment {
            time_ns: self.time,
            moment: self.moment,
            still: self.still,
            figures: AllocatorFigures::complete(self.counters),
        }
    }
}

/// Where comparison with the traced calls begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Baseline {
    /// Not yet: the first reading that can be compared will tell.
    Open,
    /// The allocator had counted this much when the first of the traced calls was made.
    Known(Tally),
    /// The same, copied from the parent while other threads of it ran: their calls may have been seen on the wrong side
    /// of the fork. A reading that differs is not a finding but a new beginning.
    Doubtful(Tally),
}

/// The sizes that a reading adds to the timeline.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HeldBytes {
    pub(super) in_use: u64,
    pub(super) obtained: u64,
}

/// One address space's allocator.
#[derive(Debug)]
pub(super) struct Allocator {
    setup: Option<AllocatorSetup>,
    absence: Option<AllocatorAbsence>,
    baseline: Baseline,
    /// Calls marked as the allocator's, as they were traced since the baseline.
    pub(super) traced: Tally,
    at_start: Option<Taken>,
    last: Option<Taken>,
    largest: Option<Taken>,
    classes: Vec<ClassReading>,
    error_counts: [u64; ERROR_KINDS.len()],
    errors: Vec<FoundHeapError>,
    pub(super) samples: SampleLog,
    walk: Option<HeapWalk>,
    checks: AllocatorChecks,
}

impl Allocator {
    /// Nothing is known yet. `from_its_start` means that all its calls are traced, from the program's first on.
    pub(super) fn new(from_its_start: bool) -> Self {
        Self {
            setup: None,
            absence: None,
            baseline: if from_its_start {
                Baseline::Known(Tally::default())
            } else {
                Baseline::Open
            },
            traced: Tally::default(),
            at_start: None,
            last: None,
            largest: None,
            classes: Vec::new(),
            error_counts: [0; ERROR_KINDS.len()],
            errors: Vec::new(),
            samples: SampleLog::default(),
            walk: None,
            checks: AllocatorChecks::default(),
        }
    }

    /// What a forked child has of it. Counters go on from where the parent's were.
    pub(super) fn forked(&self, others_ran: bool) -> Self {
        let baseline = match self.baseline {
            Baseline::Known(tally) if others_ran => Baseline::Doubtful(tally),
            other => other,
        };
        Self {
            setup: self.setup.clone(),
            baseline,
            traced: self.traced,
            at_start: self.last,
            samples: self.samples.forked(),
            ..Self::new(false)
        }
    }

    /// Whether nothing of its own has happened yet.
    pub(super) fn is_untouched(&self) -> bool {
        self.last.is_none() && self.traced == Tally::default()
    }

    pub(super) fn found(&mut self, setup: &AllocatorSetup) {
        self.setup = Some(setup.clone());
    }

    pub(super) fn absent(&mut self, absence: &AllocatorAbsence) {
        self.absence = Some(absence.clone());
    }

    pub(super) fn heap_error(&mut self, time: Timestamp, pid: u32, error: HeapError, stack: Owner) {
        for (kind, count) in ERROR_KINDS.iter().zip(&mut self.error_counts) {
            *count += u64::from(*kind == error.kind);
        }
        if self.errors.len() < MOST_ERRORS {
            let history = self.samples.history(error.address);
            self.errors.push(FoundHeapError {
                time_ns: time,
                pid,
                error,
                stack,
                allocated_stack: history.allocated,
                freed_stack: history.freed,
            });
        }
    }

    pub(super) fn walked(&mut self, walk: &HeapWalk) {
        let mut walk = walk.clone();
        if let Some(leaks) = &mut walk.leaks {
            let lost = std::mem::take(&mut leaks.lost_samples);
            if leaks.complete {
                self.samples.lost(&lost);
            }
        }
        self.walk = Some(walk);
    }

    /// Takes a reading, checks it where that is possible, and returns the sizes for the timeline.
    pub(super) fn read(&mut self, time: Timestamp, reading: &AllocatorReading) -> HeldBytes {
        let Some(counters) = reading.counters.all().copied() else {
            // Only the bundled allocator is read in this way, and it knows all.
            return HeldBytes::default();
        };
        let taken = Taken {
            time,
            moment: reading.moment,
            still: reading.still,
            counters,
        };
        if self.baseline == Baseline::Open && self.at_start.is_none() {
            self.at_start = Some(taken);
        }
        self.last = Some(taken);
        let most = self
            .largest
            .map_or(0, |largest| largest.counters.obtained_bytes);
        if self.largest.is_none() || counters.obtained_bytes > most {
            self.largest = Some(taken);
        }
        if !reading.classes.is_empty() {
            self.classes.clone_from(&reading.classes);
        }
        if reading.moment != ReadingMoment::Call {
            self.check(&taken);
        }
        HeldBytes {
            in_use: counters.in_use_bytes,
            obtained: self.obtained_with_this_call(&taken),
        }
    }

    /// At a call the allocator has not counted it yet, but the kernel has done it.
    fn obtained_with_this_call(&self, taken: &Taken) -> u64 {
        let counted = Tally::of(&taken.counters).net();
        match self.baseline {
            Baseline::Known(baseline) if taken.moment == ReadingMoment::Call => {
                let traced = baseline.net().wrapping_add(self.traced.net());
                taken
                    .counters
                    .obtained_bytes
                    .wrapping_add(traced.wrapping_sub(counted))
            }
            _ => taken.counters.obtained_bytes,
        }
    }

    /// Compares with the traced calls, and looks whether the figures add up.
    fn check(&mut self, taken: &Taken) {
        if !taken.still {
            self.checks.skipped += 1;
            return;
        }
        self.check_sum(&taken.counters);
        let counted = Tally::of(&taken.counters);
        let baseline = match self.baseline {
            Baseline::Known(baseline) => baseline,
            Baseline::Doubtful(baseline) if self.differing(baseline, counted).is_none() => {
                self.baseline = Baseline::Known(baseline);
                baseline
            }
            Baseline::Open | Baseline::Doubtful(_) => {
                self.baseline = Baseline::Known(counted);
                self.traced = Tally::default();
                self.checks.skipped += 1;
                return;
            }
        };
        self.checks.made += 1;
        if self.differing(baseline, counted).is_some() {
            self.checks.differing += 1;
            self.keep_differences(taken.time, baseline, counted);
        }
    }

    fn check_sum(&mut self, counters: &Counters) {
        self.checks.sums_made += 1;
        if counters.adds_up() {
            return;
        }
        self.checks.sums_differing += 1;
        let sum = counters
            .in_use_bytes
            .wrapping_add(counters.overhead_bytes)
            .wrapping_add(counters.free_bytes)
            .wrapping_add(counters.top_bytes);
        let difference = sum.wrapping_sub(counters.obtained_bytes).cast_signed();
        self.checks
            .first_sum_difference_bytes
            .get_or_insert(difference);
    }

    /// The first counter that differs.
    fn differing(&self, baseline: Tally, counted: Tally) -> Option<usize> {
        (0..Tally::NAMES.len()).find(|&index| self.pair(index, baseline, counted).is_some())
    }

    /// What was counted and what was traced of one counter, if the two differ.
    fn pair(&self, index: usize, baseline: Tally, counted: Tally) -> Option<(u64, u64)> {
        let counted = counted.values()[index].wrapping_sub(baseline.values()[index]);
        let traced = self.traced.values()[index];
        (counted != traced).then_some((counted, traced))
    }

    fn keep_differences(&mut self, time: Timestamp, baseline: Tally, counted: Tally) {
        for (index, name) in Tally::NAMES.iter().enumerate() {
            let Some((counted, traced)) = self.pair(index, baseline, counted) else {
                continue;
            };
            if self.checks.differences.len() < MOST_DIFFERENCES {
                self.checks.differences.push(AllocatorDifference {
                    time_ns: time,
                    counter: (*name).to_owned(),
                    counted,
                    traced,
                });
            }
        }
    }

    /// Keeps the counters, and of lists the first entry.
    pub(super) fn drop_detail(&mut self) {
        self.largest = None;
        self.at_start = None;
        self.classes = Vec::new();
        self.errors.truncate(1);
        self.errors.shrink_to_fit();
        self.samples.drop_detail();
        self.checks.differences.truncate(1);
        self.checks.differences.shrink_to_fit();
        if let Some(walk) = &mut self.walk {
            walk.largest = Vec::new();
        }
    }

    pub(super) fn report(&self, choice: &AllocatorChoice) -> AllocatorReport {
        AllocatorReport {
            samples: self.samples.report(),
            in_use_is: InUseMeasure::Requested,
            name: match (choice, &self.setup) {
                (AllocatorChoice::Library(path), None) => path.clone(),
                _ => BUNDLED.to_owned(),
            },
            setup: self.setup.clone(),
            absence: self.absence.clone(),
            last: self.last.as_ref().map(Taken::report),
            largest: self.largest.as_ref().map(Taken::report),
            at_start: self.at_start.as_ref().map(Taken::report),
            classes: self.classes.clone(),
            heap_errors: self.heap_errors(),
            walk: self.walk.clone(),
            checks: self.checks.clone(),
            claims: self.last.map(|last| claims(&last.counters)),
        }
    }

    fn heap_errors(&self) -> HeapErrors {
        HeapErrors {
            total: self.error_counts.iter().sum(),
            by_kind: ERROR_KINDS
                .into_iter()
                .zip(self.error_counts)
                .filter(|&(_, errors)| errors > 0)
                .map(|(kind, errors)| HeapErrorCount { kind, errors })
                .collect(),
            kept: self.errors.clone(),
        }
    }
}

/// Name of the allocator that comes with breaktrace.
const BUNDLED: &str = "bundled";

/// The allocator of an address space that nothing was heard of; `None` where the program uses its own.
pub(super) fn unheard(choice: &AllocatorChoice) -> Option<AllocatorReport> {
    match choice {
        AllocatorChoice::System => None,
        AllocatorChoice::Bundled | AllocatorChoice::Library(_) => {
            Some(Allocator::new(false).report(choice))
        }
    }
}

/// The figures that stand beside a step.
pub(super) fn step_figures(counters: &Counters) -> StepFigures {
    StepFigures {
        requested_bytes: counters.requested_bytes,
        in_use_bytes: counters.in_use_bytes,
        overhead_bytes: counters.overhead_bytes,
        free_bytes: counters.free_bytes,
        top_bytes: counters.top_bytes,
        obtained_bytes: counters.obtained_bytes,
    }
}

fn claims(counters: &Counters) -> AllocatorClaims {
    let requests = counters
        .allocated_blocks
        .saturating_add(counters.realloc_in_place);
    let kernel_calls = [
        counters.brk_calls,
        counters.mmap_calls,
        counters.munmap_calls,
        counters.mremap_calls,
        counters.madvise_calls,
    ]
    .into_iter()
    .fold(0, u64::saturating_add);
    let share = |bytes| ratio(bytes, counters.obtained_bytes);
    AllocatorClaims {
        requests,
        kernel_calls,
        requests_per_kernel_call: ratio(requests, kernel_calls),
        obtained_per_in_use_at_peak: ratio(
            counters.obtained_peak_bytes,
            counters.in_use_peak_bytes,
        ),
        obtained_per_in_use: ratio(counters.obtained_bytes, counters.in_use_bytes),
        in_use_share: share(counters.in_use_bytes),
        overhead_share: share(counters.overhead_bytes),
        free_share: share(counters.free_bytes),
        top_share: share(counters.top_bytes),
        freed_bytes: counters
            .requested_bytes
            .saturating_sub(counters.in_use_bytes),
        returned_bytes: counters
            .brk_shrunk_bytes
            .saturating_add(counters.unmapped_bytes),
        advised_bytes: counters.advised_bytes,
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio, shown with few digits")]
fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}
