//! The state at the end of a recording as families of metrics: names, types and units; no syntax.
//!
//! All figures are those of the report. What it does not know makes no sample. Samples bear the number of the address
//! space and the program, which stay the same from run to run; the process number, which does not, is in
//! `breaktrace_process_info` alone, so that a fleet's series do not multiply with each run.

use std::collections::BTreeMap;

use super::heaps;
use super::label;
use crate::event::AllocatorChoice;
use crate::event::EndReason;
use crate::event::HeapErrorKind;
use crate::event::MemoryFigures;
use crate::event::Mode;
use crate::report::AllocatorReport;
use crate::report::CallPath;
use crate::report::Growth;
use crate::report::Report;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::stats_page::COUNTERS;
use crate::stats_page::CounterInfo;

/// Most address spaces with samples of their own: those that grew most. A build runs thousands of programs.
const MOST_SPACES: usize = 64;

/// Most functions that are named, all address spaces together.
const MOST_FUNCTIONS: usize = 20;

/// The allocator's figures that say how it stands.
const STATES: [&str; 17] = [
    "in_use_bytes",
    "in_use_peak_bytes",
    "obtained_bytes",
    "obtained_peak_bytes",
    "overhead_bytes",
    "block_overhead_bytes",
    "record_bytes",
    "free_bytes",
    "free_chunk_bytes",
    "free_slab_bytes",
    "cached_bytes",
    "top_bytes",
    "live_blocks",
    "live_large_blocks",
    "free_chunks",
    "arenas",
    "thread_caches",
];

/// What a family's values are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// How something stands.
    Gauge,
    /// How much there was since the beginning.
    Counter,
    /// Labels alone; the value is 1.
    Info,
}

/// The unit of a family's values, with which its name ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    Bytes,
    Seconds,
}

impl Unit {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Bytes => "bytes",
            Self::Seconds => "seconds",
        }
    }

    fn of(name: &str) -> Option<Self> {
        [Self::Bytes, Self::Seconds]
            .into_iter()
            .find(|unit| name.ends_with(unit.name()))
    }
}

/// Samples of one name.
#[derive(Clone, Debug)]
pub(super) struct Family {
    /// Without the suffix of its kind.
    pub(super) name: String,
    pub(super) kind: Kind,
    pub(super) unit: Option<Unit>,
    pub(super) help: String,
    pub(super) samples: Vec<Sample>,
}

/// A value and what it belongs to.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) labels: Labels,
    pub(super) value: String,
}

pub(super) type Labels = Vec<(&'static str, String)>;

impl Family {
    pub(super) fn new(name: &str, kind: Kind, help: &str) -> Self {
        Self {
            name: format!("breaktrace_{name}"),
            kind,
            unit: Unit::of(name),
            help: help.to_owned(),
            samples: Vec::new(),
        }
    }

    fn with(mut self, labels: Labels, value: impl ToString) -> Self {
        self.push(labels, value);
        self
    }

    pub(super) fn push(&mut self, labels: Labels, value: impl ToString) {
        self.samples.push(Sample {
            labels,
            value: value.to_string(),
        });
    }
}

/// All families of a report; some may have no samples.
pub(super) fn of(report: &Report) -> Vec<Family> {
    let spaces = largest_spaces(report);
    let mut families = of_recording(report);
    families.extend(of_totals(report));
    families.push(processes(&spaces));
    families.extend(SPACE_FIGURES.iter().map(|figure| figure.family(&spaces)));
    families.push(break_calls(&spaces));
    families.push(anonymous_calls(&spaces));
    families.extend(calls(&spaces));
    families.push(allocators(&spaces));
    families.extend(
        COUNTERS
            .iter()
            .enumerate()
            .map(|(index, info)| allocator_figure(&spaces, index, info)),
    );
    families.extend(heaps::families(&spaces));
    families.push(heap_errors(&spaces));
    families.extend(functions(&spaces));
    families
}

/// The address spaces that have samples of their own, in order of appearance.
fn largest_spaces(report: &Report) -> Vec<&SpaceReport> {
    let mut spaces: Vec<&SpaceReport> = report.address_spaces.iter().collect();
    spaces.sort_by_key(|space| {
        let grown = space
            .program_break
            .grown_bytes
            .saturating_add(space.anonymous.grown_bytes);
        (
            report.main_space != Some(space.id),
            std::cmp::Reverse(grown),
        )
    });
    spaces.truncate(MOST_SPACES);
    spaces.sort_by_key(|space| space.id);
    spaces
}

fn of_recording(report: &Report) -> Vec<Family> {
    let recording = &report.recording;
    let allocator = match &recording.allocator {
        AllocatorChoice::System => "system".to_owned(),
        AllocatorChoice::Bundled => "bundled".to_owned(),
        AllocatorChoice::Library(path) => label(path),
    };
    let mode = match recording.mode {
        Mode::Run => "run",
        Mode::Attach => "attach",
    };
    let end = match report.end.reason {
        Some(EndReason::Finished) => "finished",
        Some(EndReason::Interrupted) => "interrupted",
        Some(EndReason::TimeLimit) => "time_limit",
        Some(EndReason::Failed) => "failed",
        None => "none",
    };
    let about = vec![
        ("version", label(&report.tool.version)),
        (
            "program",
            report
                .main()
                .map(|space| label(&space.program))
                .unwrap_or_default(),
        ),
        ("allocator", allocator),
        ("mode", mode.to_owned()),
        ("end", end.to_owned()),
        ("architecture", label(&recording.machine.architecture)),
        ("kernel", label(&recording.machine.kernel)),
    ];
    let duration = report.end.duration_ns.0;
    let seconds = format!(
        "{}.{:09}",
        duration / 1_000_000_000,
        duration % 1_000_000_000
    );
    vec![
        Family::new("recording", Kind::Info, "The recording: versions, how it was made and how it ended, and the program whose heap grew most.")
            .with(about, 1),
        Family::new("recording_start_time_seconds", Kind::Gauge, "When the recording began, since 1970-01-01 UTC.")
            .with(Labels::new(), recording.started_at_unix),
        Family::new("recording_duration_seconds", Kind::Gauge, "Time from the beginning of the recording to its last event.")
            .with(Labels::new(), seconds),
        Family::new("recording_events", Kind::Counter, "Events recorded.")
            .with(Labels::new(), report.end.events),
        Family::new("recording_notices", Kind::Gauge, "Kinds of things that could not be seen or done.")
            .with(Labels::new(), report.notices.len()),
    ]
}

fn of_totals(report: &Report) -> Vec<Family> {
    let totals = &report.totals;
    [
        ("all_processes", totals.processes, "Processes seen."),
        ("all_threads", totals.threads, "Threads seen."),
        ("all_address_spaces", totals.address_spaces, "Address spaces seen: one for each program that ran, and for each fork. At most 64, those that grew most, have samples of their own."),
        ("all_break_grown_bytes", totals.break_grown_bytes, "Bytes by which all program breaks grew."),
        ("all_break_shrunk_bytes", totals.break_shrunk_bytes, "Bytes by which all program breaks shrank."),
        ("all_anonymous_grown_bytes", totals.anonymous_grown_bytes, "Bytes of anonymous memory that became usable, in all address spaces."),
        ("all_anonymous_shrunk_bytes", totals.anonymous_shrunk_bytes, "Bytes of anonymous memory that were unmapped or made unusable, in all address spaces."),
    ]
    .into_iter()
    .map(|(name, value, help)| Family::new(name, Kind::Counter, help).with(Labels::new(), value))
    .collect()
}

/// The labels of every sample of an address space.
pub(super) fn labels(space: &SpaceReport) -> Labels {
    vec![
        ("space", space.id.0.to_string()),
        ("program", label(&space.program)),
    ]
}

fn labels_and(space: &SpaceReport, name: &'static str, value: &str) -> Labels {
    let mut labels = labels(space);
    labels.push((name, value.to_owned()));
    labels
}

fn processes(spaces: &[&SpaceReport]) -> Family {
    let mut family = Family::new(
        "process",
        Kind::Info,
        "The process of an address space, and how that came to be.",
    );
    for space in spaces {
        let origin = match space.origin {
            SpaceOrigin::Exec => "exec",
            SpaceOrigin::Attached => "attached",
            SpaceOrigin::Forked(_) => "forked",
        };
        let mut labels = labels_and(space, "pid", &space.pid.to_string());
        labels.push(("origin", origin.to_owned()));
        family.push(labels, 1);
    }
    family
}

/// A figure that an address space has one of, if it is known.
struct SpaceFigure {
    name: &'static str,
    kind: Kind,
    help: &'static str,
    value: fn(&SpaceReport) -> Option<u64>,
}

impl SpaceFigure {
    fn family(&self, spaces: &[&SpaceReport]) -> Family {
        let mut family = Family::new(self.name, self.kind, self.help);
        for space in spaces {
            if let Some(value) = (self.value)(space) {
                family.push(labels(space), value);
            }
        }
        family
    }
}

const fn gauge(
    name: &'static str,
    value: fn(&SpaceReport) -> Option<u64>,
    help: &'static str,
) -> SpaceFigure {
    SpaceFigure {
        name,
        kind: Kind::Gauge,
        help,
        value,
    }
}

const fn counter(
    name: &'static str,
    value: fn(&SpaceReport) -> Option<u64>,
    help: &'static str,
) -> SpaceFigure {
    SpaceFigure {
        name,
        kind: Kind::Counter,
        help,
        value,
    }
}

fn at_end(space: &SpaceReport, field: fn(&MemoryFigures) -> u64) -> Option<u64> {
    space.memory_at_end.as_ref().map(field)
}

const SPACE_FIGURES: &[SpaceFigure] = &[
    gauge(
        "break_bytes",
        |space| space.program_break.end_bytes,
        "Size of the heap below the program break, as last seen.",
    ),
    gauge(
        "break_peak_bytes",
        |space| space.program_break.peak_bytes,
        "Largest size of the heap below the program break.",
    ),
    counter(
        "break_grown_bytes",
        |space| Some(space.program_break.grown_bytes),
        "Bytes by which the program break was raised.",
    ),
    counter(
        "break_shrunk_bytes",
        |space| Some(space.program_break.shrunk_bytes),
        "Bytes by which the program break was lowered: memory that went back to the kernel.",
    ),
    counter(
        "break_advised_bytes",
        |space| Some(space.program_break.advised_bytes),
        "Bytes below the break that madvise gave back while the break stayed.",
    ),
    gauge(
        "break_resident_bytes",
        |space| {
            space
                .program_break
                .pages_at_end
                .map(|pages| pages.resident_bytes)
        },
        "How much of the heap below the break was in memory at the last snapshot.",
    ),
    gauge(
        "break_swapped_bytes",
        |space| {
            space
                .program_break
                .pages_at_end
                .map(|pages| pages.swapped_bytes)
        },
        "How much of the heap below the break was swapped out at the last snapshot.",
    ),
    gauge(
        "anonymous_bytes",
        |space| Some(space.anonymous.end_bytes),
        "Usable private memory without a file, outside the break's heap, as last seen.",
    ),
    gauge(
        "anonymous_peak_bytes",
        |space| Some(space.anonymous.peak_bytes),
        "Largest number of usable bytes of anonymous memory.",
    ),
    gauge(
        "anonymous_reserved_bytes",
        |space| Some(space.anonymous.reserved_bytes),
        "Anonymous address space last held in reserve without access.",
    ),
    gauge(
        "anonymous_areas",
        |space| Some(space.anonymous.areas),
        "Distinct stretches of usable anonymous memory, as last seen.",
    ),
    counter(
        "anonymous_grown_bytes",
        |space| Some(space.anonymous.grown_bytes),
        "Bytes of anonymous memory that became usable.",
    ),
    counter(
        "anonymous_shrunk_bytes",
        |space| Some(space.anonymous.shrunk_bytes),
        "Bytes of anonymous memory that were unmapped or made unusable.",
    ),
    counter(
        "anonymous_dontneed_bytes",
        |space| Some(space.anonymous.dontneed_bytes),
        "Bytes given back with MADV_DONTNEED while they stayed mapped; the same page counts each time.",
    ),
    counter(
        "anonymous_lazily_freed_bytes",
        |space| Some(space.anonymous.lazily_freed_bytes),
        "Bytes advised with MADV_FREE, which the kernel takes when memory is short.",
    ),
    gauge(
        "resident_bytes",
        |space| at_end(space, |memory| memory.resident_bytes),
        "Resident memory at the last snapshot (VmRSS).",
    ),
    gauge(
        "resident_peak_bytes",
        |space| at_end(space, |memory| memory.resident_peak_bytes),
        "Highest resident memory since the program began (VmHWM).",
    ),
    gauge(
        "resident_anonymous_bytes",
        |space| at_end(space, |memory| memory.resident_anonymous_bytes),
        "Of the resident memory: private memory without a file (RssAnon).",
    ),
    gauge(
        "swapped_bytes",
        |space| at_end(space, |memory| memory.swapped_bytes),
        "Memory swapped out at the last snapshot (VmSwap).",
    ),
    gauge(
        "virtual_bytes",
        |space| at_end(space, |memory| memory.virtual_bytes),
        "Address space in use at the last snapshot (VmSize).",
    ),
    gauge(
        "virtual_peak_bytes",
        |space| at_end(space, |memory| memory.virtual_peak_bytes),
        "Largest address space in use since the program began (VmPeak).",
    ),
    counter(
        "checks",
        |space| Some(space.checks.made),
        "Comparisons of the account with /proc.",
    ),
    counter(
        "checks_differing",
        |space| Some(space.checks.differing),
        "Comparisons of the account with /proc in which something differed.",
    ),
];

fn break_calls(spaces: &[&SpaceReport]) -> Family {
    let mut family = Family::new(
        "break_calls",
        Kind::Counter,
        "brk calls by what came of them.",
    );
    for space in spaces {
        let moves = &space.program_break;
        for (result, calls) in [
            ("grew", moves.grow_calls),
            ("shrank", moves.shrink_calls),
            ("asked", moves.query_calls),
            ("refused", moves.refused_calls),
        ] {
            family.push(labels_and(space, "result", result), calls);
        }
    }
    family
}

fn anonymous_calls(spaces: &[&SpaceReport]) -> Family {
    let mut family = Family::new(
        "anonymous_calls",
        Kind::Counter,
        "Calls that changed how much anonymous memory is usable.",
    );
    for space in spaces {
        for (result, calls) in [
            ("grew", space.anonymous.grow_calls),
            ("shrank", space.anonymous.shrink_calls),
        ] {
            family.push(labels_and(space, "result", result), calls);
        }
    }
    family
}

fn calls(spaces: &[&SpaceReport]) -> [Family; 2] {
    let mut made = Family::new(
        "calls",
        Kind::Counter,
        "Memory calls by name, failed ones included.",
    );
    let mut failed = Family::new(
        "failed_calls",
        Kind::Counter,
        "Memory calls that failed, by name; for brk, those that were refused.",
    );
    for space in spaces {
        for call in &space.calls {
            let name = label(&call.name);
            made.push(labels_and(space, "call", &name), call.calls);
            failed.push(labels_and(space, "call", &name), call.failed);
        }
    }
    [made, failed]
}

fn allocators(spaces: &[&SpaceReport]) -> Family {
    let mut family = Family::new(
        "allocator",
        Kind::Info,
        "The malloc library of an address space, where it is known.",
    );
    for space in spaces {
        let Some(allocator) = &space.allocator else {
            continue;
        };
        let mut labels = labels_and(space, "allocator", &label(&allocator.name));
        if let Some(setup) = &allocator.setup {
            labels.push(("version", label(&setup.version)));
            labels.push(("policy", label(&setup.policy)));
            labels.push(("guard", setup.guard.to_string()));
        }
        family.push(labels, 1);
    }
    family
}

fn allocator_figure(spaces: &[&SpaceReport], index: usize, info: &CounterInfo) -> Family {
    let name = format!("allocator_{}", info.name);
    let mut family = Family::new(&name, kind_of(info), info.meaning.trim());
    for space in spaces {
        let last = space
            .allocator
            .as_ref()
            .and_then(|allocator| allocator.last.as_ref());
        let value = last.and_then(|moment| moment.figures.values().nth(index)?);
        if let Some(value) = value {
            family.push(labels(space), value);
        }
    }
    family
}

/// Whether a figure of the allocator's says how it stands, or adds up.
pub(super) fn kind_of(info: &CounterInfo) -> Kind {
    if STATES.contains(&info.name) {
        Kind::Gauge
    } else {
        Kind::Counter
    }
}

const HEAP_ERRORS: [(HeapErrorKind, &str); 6] = [
    (HeapErrorKind::DoubleFree, "double_free"),
    (HeapErrorKind::ForeignPointer, "foreign_pointer"),
    (HeapErrorKind::WritePastEnd, "write_past_end"),
    (HeapErrorKind::WriteBeforeStart, "write_before_start"),
    (HeapErrorKind::WriteAfterFree, "write_after_free"),
    (HeapErrorKind::RecordsChanged, "records_changed"),
];

/// Where the bundled allocator looked for errors, none is a measured zero.
fn heap_errors(spaces: &[&SpaceReport]) -> Family {
    let mut family = Family::new(
        "heap_errors",
        Kind::Counter,
        "Errors in the program's use of its heap, by kind.",
    );
    for space in spaces {
        let watched = |allocator: &&AllocatorReport| allocator.setup.is_some();
        let Some(allocator) = space.allocator.as_ref().filter(watched) else {
            continue;
        };
        for (kind, name) in HEAP_ERRORS {
            let of_kind = allocator
                .heap_errors
                .by_kind
                .iter()
                .filter(|count| count.kind == kind);
            let errors: u64 = of_kind.map(|count| count.errors).sum();
            family.push(labels_and(space, "kind", name), errors);
        }
    }
    family
}

/// Growth by the function that is to be named, break and anonymous memory together. A bounded number of functions; what
/// the others did is added up, so that each address space's sum is whole.
fn functions(spaces: &[&SpaceReport]) -> [Family; 4] {
    let mut families = [
        Family::new(
            "call_path_net_bytes",
            Kind::Gauge,
            "Bytes of break and anonymous memory that calls below a function obtained and that are still there.",
        ),
        Family::new(
            "call_path_grown_bytes",
            Kind::Counter,
            "Bytes of break and anonymous memory that calls below a function obtained.",
        ),
        Family::new(
            "call_path_shrunk_bytes",
            Kind::Counter,
            "Of the bytes that calls below a function obtained: those that went back to the kernel.",
        ),
        Family::new(
            "call_path_grow_calls",
            Kind::Counter,
            "Memory calls below a function that obtained memory.",
        ),
    ];
    for (at, growth) in named_growth(spaces) {
        let mut labels = labels(spaces[at.space]);
        labels.push(("function", at.function));
        labels.push(("file", at.file));
        let values = [
            growth.net_bytes,
            growth.grown_bytes,
            growth.shrunk_bytes,
            growth.grow_calls,
        ];
        for (family, value) in families.iter_mut().zip(values) {
            family.push(labels.clone(), value);
        }
    }
    families
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    /// Position among the address spaces.
    space: usize,
    function: String,
    file: String,
}

fn named_growth(spaces: &[&SpaceReport]) -> Vec<(Place, Growth)> {
    // By what the labels will say: two names that were cut to the same must not become two samples.
    let mut by_place = BTreeMap::<Place, Growth>::new();
    for (index, space) in spaces.iter().enumerate() {
        for path in &space.call_paths {
            add(
                by_place.entry(place(index, path)).or_default(),
                &path.growth,
            );
        }
    }
    let mut named: Vec<(Place, Growth)> = by_place.into_iter().collect();
    named.sort_by_key(|(_, growth)| std::cmp::Reverse((growth.net_bytes, growth.grown_bytes)));
    let others = named.split_off(named.len().min(MOST_FUNCTIONS));
    let mut by_space = BTreeMap::<usize, Growth>::new();
    for (place, growth) in others {
        add(by_space.entry(place.space).or_default(), &growth);
    }
    named.extend(by_space.into_iter().map(|(space, growth)| {
        let others = Place {
            space,
            function: "(others)".to_owned(),
            file: String::new(),
        };
        (others, growth)
    }));
    named
}

fn place(space: usize, path: &CallPath) -> Place {
    let (function, file) = match &path.culprit {
        Some(function) => (label(&function.name), function.file.as_deref().map(label)),
        None => ("(no stack)".to_owned(), None),
    };
    Place {
        space,
        function,
        file: file.unwrap_or_default(),
    }
}

fn add(sum: &mut Growth, growth: &Growth) {
    let mut add = |field: fn(&mut Growth) -> &mut u64| {
        let value = *field(&mut { *growth });
        let total = field(sum);
        *total = total.saturating_add(value);
    };
    add(|growth| &mut growth.grown_bytes);
    add(|growth| &mut growth.grow_calls);
    add(|growth| &mut growth.shrunk_bytes);
    add(|growth| &mut growth.net_bytes);
}
