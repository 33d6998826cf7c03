//! What is judged: one or several recordings of the same program, summed up.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;
use thiserror::Error;

use super::baseline::Baseline;
use super::baseline::Measurement;
use super::baseline::Measurements;
use super::baseline::RecordedOn;
use super::measured;
use super::measured::Measured;
use super::measured::Values;
use crate::event::AllocatorChoice;
use crate::event::EndReason;
use crate::event::Mode;
use crate::event::NoticeCode;
use crate::event::Outcome;
use crate::report::HeapDocument;
use crate::report::Report;

/// Functions of a call path that tell it from others; of deeper ones the outer functions are left out.
const PATH_DEPTH: usize = 12;

/// What must be the same for figures to be comparable.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Fingerprint {
    /// Architecture, such as `x86_64`.
    pub architecture: String,
    /// Bytes in a page.
    pub page_size: u64,
    /// The C library with its version, as seen in the program; `null` when it was not seen.
    pub libc: Option<String>,
    /// The malloc: `system`, `bundled`, or the file name of a library.
    pub allocator: String,
    /// Whether addresses were randomized.
    pub randomized: bool,
    /// Variables of the environment that change how memory is used.
    pub environment: BTreeMap<String, String>,
}

/// How much memory a call path asked for, over all address spaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct PathFigures {
    /// Bytes by which break and anonymous memory grew.
    pub grown_bytes: u64,
    /// Of these, bytes still there at the end.
    pub net_bytes: u64,
    /// Calls that made memory larger.
    pub grow_calls: u64,
}

/// What is judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subject {
    /// The program, without its folder, and its arguments.
    pub command: Vec<String>,
    /// What must be the same.
    pub fingerprint: Fingerprint,
    /// What may differ.
    pub recorded_on: RecordedOn,
    /// How the program ended, in every run.
    pub outcome: Outcome,
    /// How often it ran.
    pub runs: u32,
    /// Figures of the whole recording.
    pub metrics: Measurements,
    /// Figures by program.
    pub programs: BTreeMap<String, Measurements>,
    /// Growth by call path in the first run; empty when no stacks were recorded.
    pub paths: BTreeMap<String, PathFigures>,
    /// Whether more than one thread ran in a program at a time: then even repeatable figures may vary.
    pub has_threads: bool,
}

/// Why recordings cannot be judged.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum Unfit {
    /// There is none.
    #[error("there is no recording")]
    None,
    /// Nothing ran in it.
    #[error("nothing ran in it: there is nothing to judge")]
    Empty,
    /// It breaks off.
    #[error("the recording breaks off before the program's end: {0}")]
    Incomplete(String),
    /// The runs are of different programs, or were made in different ways.
    #[error("the runs are not of one kind: {0}")]
    Mixed(String),
    /// The runs ended in different ways.
    #[error("the runs ended in different ways: {0}")]
    Endings(String),
}

impl Subject {
    /// Sums up recordings of one program.
    ///
    /// # Errors
    ///
    /// They are not whole, or not of the same kind.
    pub fn of(reports: &[Report]) -> Result<Self, Unfit> {
        let first = reports.first().ok_or(Unfit::None)?;
        for report in reports {
            fit(report)?;
        }
        let fingerprint = fingerprint(first);
        let command = command(first);
        let outcome = outcome(first).unwrap_or(Outcome::Vanished);
        for (number, report) in (1..).zip(reports) {
            let difference = fingerprint.differences(&self::fingerprint(report));
            if let Some(difference) = difference.into_iter().next() {
                return Err(Unfit::Mixed(format!("run {number} differs: {difference}")));
            }
            if self::command(report) != command {
                return Err(Unfit::Mixed(format!("run {number} is of another command")));
            }
            let ended = self::outcome(report).unwrap_or(Outcome::Vanished);
            if ended != outcome {
                let words = format!(
                    "the first {}, run {number} {}",
                    ending(outcome),
                    ending(ended)
                );
                return Err(Unfit::Endings(words));
            }
        }
        Ok(Self::sum(reports, first))
    }

    fn sum(reports: &[Report], first: &Report) -> Self {
        let measured: Vec<Measured> = reports.iter().map(Measured::of).collect();
        let names = measured.iter().flat_map(|run| run.programs.keys());
        let programs = names
            .map(|name| {
                let none = Values::new();
                let runs = measured
                    .iter()
                    .map(|run| run.programs.get(name).unwrap_or(&none));
                (name.clone(), measurements(runs))
            })
            .collect();
        Self {
            command: command(first),
            fingerprint: fingerprint(first),
            recorded_on: RecordedOn {
                kernel: first.recording.machine.kernel.clone(),
                processors: first.recording.processors,
            },
            outcome: outcome(first).unwrap_or(Outcome::Vanished),
            runs: u32::try_from(reports.len()).unwrap_or(u32::MAX),
            metrics: measurements(measured.iter().map(|run| &run.whole)),
            programs,
            paths: paths(first),
            has_threads: first.processes.iter().any(|process| process.threads > 1),
        }
    }

    /// The figures of one recording, also of one that is not whole: for what only shows them.
    #[must_use]
    pub fn of_any(report: &Report) -> Self {
        Self::sum(std::slice::from_ref(report), report)
    }

    /// The figures of a look through a heap.
    #[must_use]
    pub fn of_heap(document: &HeapDocument) -> Self {
        let heap = document.examination.heaps.first();
        let program = document.target.program.as_deref().unwrap_or_default();
        Self {
            command: vec![measured::program_name(program).to_owned()],
            fingerprint: Fingerprint {
                architecture: String::new(),
                page_size: 0,
                libc: heap.and_then(|heap| libc(heap.version.as_deref())),
                allocator: "system".to_owned(),
                randomized: true,
                environment: BTreeMap::new(),
            },
            recorded_on: RecordedOn {
                kernel: String::new(),
                processors: None,
            },
            outcome: Outcome::Detached,
            runs: 1,
            metrics: measurements([&Measured::of_heap(document).whole].into_iter()),
            programs: BTreeMap::new(),
            paths: BTreeMap::new(),
            // A look is no run that could be repeated.
            has_threads: false,
        }
    }
}

/// Why a recording is not whole; `None` when it is.
pub(super) fn what_is_missing(report: &Report) -> Option<String> {
    fit(report).err().map(|unfit| unfit.to_string())
}

/// Whether a recording is whole.
fn fit(report: &Report) -> Result<(), Unfit> {
    let breaks_off = report
        .notices
        .iter()
        .find(|notice| notice.code == NoticeCode::Incomplete);
    if let Some(notice) = breaks_off {
        return Err(Unfit::Incomplete(notice.message.clone()));
    }
    let is_attached = report.recording.mode == Mode::Attach;
    match report.end.reason {
        None => return Err(Unfit::Incomplete("its end is missing".to_owned())),
        Some(EndReason::Failed) => return Err(Unfit::Incomplete("tracing failed".to_owned())),
        Some(EndReason::Interrupted) if !is_attached => {
            return Err(Unfit::Incomplete("it was interrupted".to_owned()));
        }
        Some(_) => {}
    }
    if report.address_spaces.is_empty() {
        return Err(Unfit::Empty);
    }
    Ok(())
}

fn fingerprint(report: &Report) -> Fingerprint {
    let machine = &report.recording.machine;
    let was_refused = report
        .notices
        .iter()
        .any(|notice| notice.code == NoticeCode::AslrStillOn);
    let version = report.main().and_then(|space| {
        let of_calls = space
            .malloc
            .as_ref()
            .and_then(|malloc| malloc.version.as_deref());
        let of_heap = || {
            space
                .heap
                .as_ref()?
                .examination
                .heaps
                .first()?
                .version
                .as_deref()
        };
        of_calls.or_else(of_heap)
    });
    Fingerprint {
        architecture: machine.architecture.clone(),
        page_size: machine.page_size,
        libc: libc(version),
        allocator: match &report.recording.allocator {
            AllocatorChoice::System => "system".to_owned(),
            AllocatorChoice::Bundled => "bundled".to_owned(),
            AllocatorChoice::Library(path) => measured::program_name(path).to_owned(),
        },
        randomized: !report.recording.capture.no_aslr || was_refused,
        environment: environment(report),
    }
}

/// The variables that matter to the programs that ran: those of a runtime only where it ran.
fn environment(report: &Report) -> BTreeMap<String, String> {
    let runs = |runtime: &str| {
        let mut spaces = report.address_spaces.iter();
        spaces.any(|space| measured::program_name(&space.program).starts_with(runtime))
    };
    let runtimes = [
        ("PYTHON", "python"),
        ("NODE_", "node"),
        ("UV_", "node"),
        ("JAVA", "java"),
        ("JDK_", "java"),
        ("RUBY", "ruby"),
        ("PERL", "perl"),
    ];
    let matters = |name: &String| {
        let mut of_runtimes = runtimes
            .iter()
            .filter(|(prefix, _)| name.starts_with(prefix));
        of_runtimes.next().is_none_or(|(_, runtime)| runs(runtime))
    };
    let variables = report.recording.environment.iter();
    variables
        .filter(|(name, _)| matters(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}

fn libc(version: Option<&str>) -> Option<String> {
    version.map(|version| format!("glibc {version}"))
}

/// The program without its folder, and its arguments: a checkout may lie anywhere.
fn command(report: &Report) -> Vec<String> {
    let mut command = match report.recording.command.is_empty() {
        false => report.recording.command.clone(),
        true => report
            .main()
            .map(|space| vec![space.program.clone()])
            .unwrap_or_default(),
    };
    if let Some(program) = command.first_mut() {
        *program = measured::program_name(program).to_owned();
    }
    command
}

/// How the launched process ended, or the first one that was attached to.
fn outcome(report: &Report) -> Option<Outcome> {
    let pid = report.recording.pids.first()?;
    let mut own = report
        .processes
        .iter()
        .filter(|process| process.pid == *pid);
    own.next()?.outcome
}

/// `exited with 1`.
pub(super) fn ending(outcome: Outcome) -> String {
    match outcome {
        Outcome::Exited(code) => format!("exited with {code}"),
        Outcome::Killed { signal, .. } => format!("was killed by signal {signal}"),
        Outcome::Detached => "was let go".to_owned(),
        Outcome::Vanished => "ended unseen".to_owned(),
    }
}

/// The values of all runs by metric. What a run lacks, none has.
fn measurements<'a>(runs: impl Iterator<Item = &'a Values>) -> Measurements {
    let mut by_name: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    let mut number = 0;
    for run in runs {
        number += 1;
        for (name, value) in run {
            by_name.entry(name).or_default().push(*value);
        }
    }
    by_name
        .into_iter()
        .filter(|(_, values)| values.len() == number)
        .filter_map(|(name, values)| Some((name.to_owned(), Measurement::of(&values)?)))
        .collect()
}

/// Growth by call path, over all address spaces.
pub(super) fn paths(report: &Report) -> BTreeMap<String, PathFigures> {
    let mut paths: BTreeMap<String, PathFigures> = BTreeMap::new();
    for path in report
        .address_spaces
        .iter()
        .flat_map(|space| &space.call_paths)
    {
        if path.path.is_empty() {
            continue;
        }
        let figures = paths.entry(path_name(&path.path)).or_default();
        figures.grown_bytes = figures.grown_bytes.saturating_add(path.growth.grown_bytes);
        figures.net_bytes = figures.net_bytes.saturating_add(path.growth.net_bytes);
        figures.grow_calls = figures.grow_calls.saturating_add(path.growth.grow_calls);
    }
    paths.retain(|_, figures| *figures != PathFigures::default());
    paths
}

/// `parse_row (csv.c) ← load (csv.c) ← main (main.c)`.
pub(super) fn path_name(path: &[String]) -> String {
    // What the C library does before main is the same for all, and differs between its builds.
    let main = path
        .iter()
        .position(|function| function.starts_with("main ("));
    let path = &path[..main.map_or(path.len(), |main| main + 1)];
    let mut name = path
        .iter()
        .take(PATH_DEPTH)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(" ← ");
    if path.len() > PATH_DEPTH {
        name.push_str(" ← …");
    }
    name
}

impl Fingerprint {
    /// What differs, in words: each says what was and what is.
    #[must_use]
    pub fn differences(&self, other: &Self) -> Vec<String> {
        self.mismatches(other)
            .into_iter()
            .map(|mismatch| mismatch.words)
            .collect()
    }

    /// What differs.
    #[must_use]
    pub fn mismatches(&self, now: &Self) -> Vec<Mismatch> {
        let mut mismatches = Vec::new();
        let mut compare = |kind, name: &str, before: String, after: String| {
            if before != after {
                mismatches.push(Mismatch {
                    kind,
                    words: format!("{name} was {before} and is {after}"),
                });
            }
        };
        compare(
            MismatchKind::Architecture,
            "the architecture",
            self.architecture.clone(),
            now.architecture.clone(),
        );
        compare(
            MismatchKind::PageSize,
            "the page size",
            self.page_size.to_string(),
            now.page_size.to_string(),
        );
        // What was not seen is not known to differ.
        if let (Some(before), Some(after)) = (&self.libc, &now.libc) {
            compare(
                MismatchKind::Libc,
                "the C library",
                before.clone(),
                after.clone(),
            );
        }
        compare(
            MismatchKind::Allocator,
            "the malloc",
            self.allocator.clone(),
            now.allocator.clone(),
        );
        let randomized = |on: bool| if on { "on" } else { "off" }.to_owned();
        compare(
            MismatchKind::Aslr,
            "address space randomization",
            randomized(self.randomized),
            randomized(now.randomized),
        );
        let names: std::collections::BTreeSet<&String> = self
            .environment
            .keys()
            .chain(now.environment.keys())
            .collect();
        for name in names {
            let value = |environment: &BTreeMap<String, String>| match environment.get(name) {
                Some(value) => format!("`{value}`"),
                None => "unset".to_owned(),
            };
            compare(
                MismatchKind::Environment,
                name,
                value(&self.environment),
                value(&now.environment),
            );
        }
        mismatches
    }
}

/// A difference that makes figures incomparable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mismatch {
    /// In what.
    pub kind: MismatchKind,
    /// What was, and what is.
    pub words: String,
}

/// What recordings may differ in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum MismatchKind {
    /// Architecture.
    Architecture,
    /// Page size.
    PageSize,
    /// C library.
    Libc,
    /// The malloc.
    Allocator,
    /// Address space randomization.
    Aslr,
    /// A variable of the environment.
    Environment,
    /// Program or arguments.
    Command,
}

impl MismatchKind {
    /// All kinds.
    pub const ALL: [Self; 7] = [
        Self::Architecture,
        Self::PageSize,
        Self::Libc,
        Self::Allocator,
        Self::Aslr,
        Self::Environment,
        Self::Command,
    ];

    /// As `--allow-mismatch` takes it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Architecture => "architecture",
            Self::PageSize => "page-size",
            Self::Libc => "libc",
            Self::Allocator => "allocator",
            Self::Aslr => "aslr",
            Self::Environment => "environment",
            Self::Command => "command",
        }
    }
}

impl From<&Baseline> for Subject {
    /// What a baseline remembers.
    fn from(baseline: &Baseline) -> Self {
        Self {
            command: baseline.command.clone(),
            fingerprint: baseline.fingerprint.clone(),
            recorded_on: baseline.recorded_on.clone(),
            outcome: baseline.outcome,
            runs: baseline.runs,
            metrics: baseline.metrics.clone(),
            programs: baseline.programs.clone(),
            paths: baseline.call_paths.clone(),
            has_threads: false,
        }
    }
}
