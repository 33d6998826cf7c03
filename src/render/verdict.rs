//! The first lines of the report: what the heap did, in one sentence, and how the program ended, in another.

use crate::event::EndReason;
use crate::event::Mode;
use crate::event::NoticeCode;
use crate::event::Origin;
use crate::event::Outcome;
use crate::report::AnonymousReport;
use crate::report::BreakReport;
use crate::report::ProcessReport;
use crate::report::Report;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::units::ByteSize;

use super::words;

/// Columns of a program's name in the verdict.
const LONGEST_NAME: usize = 24;

/// The verdict, as sentences from the most to the least detailed: the first that fits is to be shown.
pub(super) fn verdict(report: &Report) -> Vec<String> {
    let Some(space) = report.main() else {
        return vec!["nothing was seen: no program ran under observation".to_owned()];
    };
    let is_incomplete = recording_is_incomplete(report);
    let mut sentences = Vec::new();
    if report.totals.processes > 1 {
        sentences.extend(among_processes(report, space));
    } else {
        sentences.extend(of_one_process(report, space));
    }
    if is_incomplete {
        for sentence in &mut sentences {
            sentence.push_str("; the recording is incomplete");
        }
    }
    sentences
}

/// Whether mmap moved so much more than the break that the break alone would tell the wrong story.
pub(super) fn mmap_dominates(space: &SpaceReport) -> bool {
    let moved = space
        .program_break
        .grown_bytes
        .saturating_add(space.program_break.shrunk_bytes);
    let mapped = space
        .anonymous
        .grown_bytes
        .saturating_add(space.anonymous.shrunk_bytes);
    if moved == 0 {
        mapped > 0
    } else {
        mapped >= 1 << 20 && mapped / 4 >= moved
    }
}

fn recording_is_incomplete(report: &Report) -> bool {
    report.end.reason == Some(EndReason::Failed)
        || report
            .notices
            .iter()
            .any(|notice| notice.code == NoticeCode::Incomplete)
}

fn among_processes(report: &Report, space: &SpaceReport) -> Vec<String> {
    let processes = report.totals.processes;
    let program = words::cut(&words::program(&space.program), LONGEST_NAME);
    let program_break = &space.program_break;
    if report.totals.break_grow_calls == 0 {
        let mapped = mmap_clause(
            report.totals.anonymous_grown_bytes,
            words::share(
                report.totals.anonymous_shrunk_bytes,
                report.totals.anonymous_grown_bytes,
            ),
        );
        return vec![format!(
            "none of {processes} processes raised its break{mapped}"
        )];
    }
    let grown = ByteSize(program_break.grown_bytes);
    let back = back_clause(program_break);
    let left = left_clause(space);
    let end = end_of(report, space);
    if mmap_dominates(space) {
        let mapped = mmap_clause(space.anonymous.grown_bytes, space.anonymous.returned_ratio);
        return vec![
            format!("of {processes} processes {program}'s heap grew most: {grown}, {back}{mapped}"),
            format!("of {processes} processes {program}'s heap grew most, {grown}{mapped}"),
        ];
    }
    vec![
        format!(
            "of {processes} processes {program}'s heap grew most: {grown}, {back}; {left} {end}"
        ),
        format!("of {processes} processes {program} grew most: {grown}, {back}; {left}"),
        format!("of {processes} processes {program} grew most: {grown}, {back}"),
    ]
}

fn of_one_process(report: &Report, space: &SpaceReport) -> Vec<String> {
    let program_break = &space.program_break;
    let watched = watched(space);
    let left = left_clause(space);
    let end = end_of(report, space);
    let grown = ByteSize(program_break.grown_bytes);
    let shrunk = ByteSize(program_break.shrunk_bytes);
    let steps = words::count(program_break.grow_calls, "step", "steps");
    match (program_break.grown_bytes, program_break.shrunk_bytes) {
        (0, 0) => vec![idle(space, &format!("{left} {end}"))],
        (0, _) => vec![format!("heap shrank by {shrunk}{watched}; {left} {end}")],
        (grew, shrank) if grew == shrank => vec![
            format!("heap grew {grown} in {steps}{watched} and gave all of it back; {left} {end}"),
            format!("heap grew {grown}{watched} and gave all of it back; {left} {end}"),
            format!("heap grew {grown}{watched} and gave all of it back"),
        ],
        (grew, shrank) if shrank > grew => vec![
            format!("heap grew {grown}{watched} and gave back more: {shrunk}; {left} {end}"),
            format!("heap grew {grown}{watched} and gave back more: {shrunk}; {left}"),
        ],
        _ if mmap_dominates(space) => beside_mmap(&space.anonymous, program_break, watched),
        (_, 0) => vec![
            format!("heap grew {grown} in {steps}{watched}, none of it went back; {left} {end}"),
            format!("heap grew {grown}{watched}, none of it went back; {left} {end}"),
            format!("heap grew {grown}{watched}, none went back; {left} {end}"),
            format!("heap grew {grown}{watched}, none went back; {left}"),
        ],
        _ => {
            let share = share(program_break.returned_ratio);
            vec![
                format!(
                    "heap grew {grown} in {steps}{watched}; {shrunk} ({share}) went back, {left} {end}"
                ),
                format!("heap grew {grown}{watched}, {share} of it went back; {left} {end}"),
                format!("heap grew {grown}{watched}, {share} went back; {left} {end}"),
                format!("heap grew {grown}{watched}, {share} went back; {left}"),
            ]
        }
    }
}

/// The break never moved.
fn idle(space: &SpaceReport, left: &str) -> String {
    let mapped = mmap_clause(space.anonymous.grown_bytes, space.anonymous.returned_ratio);
    let watched = watched(space);
    let stays = match space.program_break.end_bytes {
        Some(0) | None => String::new(),
        Some(_) => format!("; {left}"),
    };
    if mapped.is_empty() && space.anonymous.shrunk_bytes > 0 {
        let unmapped = ByteSize(space.anonymous.shrunk_bytes);
        return format!(
            "the break never moved{watched}; mmap'd memory shrank by {unmapped}{stays}"
        );
    }
    if mapped.is_empty() {
        return format!("no growth{watched}: neither the break nor mmap'd memory moved{stays}");
    }
    format!("the break never moved{watched}{mapped}{stays}")
}

/// The break moved a little, and mmap did the rest.
fn beside_mmap(
    anonymous: &AnonymousReport,
    program_break: &BreakReport,
    watched: &str,
) -> Vec<String> {
    let grown = ByteSize(program_break.grown_bytes);
    let back = back_clause(program_break);
    let mapped = mmap_clause(anonymous.grown_bytes, anonymous.returned_ratio);
    vec![
        format!("heap grew {grown}{watched}, {back}{mapped}"),
        format!("heap grew {grown}{watched}{mapped}"),
    ]
}

fn mmap_clause(grown_bytes: u64, ratio: Option<f64>) -> String {
    if grown_bytes == 0 {
        return String::new();
    }
    let back = match ratio {
        Some(0.0) => "none of it went back".to_owned(),
        ratio => format!("{} of it went back", share(ratio)),
    };
    format!("; mmap gave {}, {back}", ByteSize(grown_bytes))
}

fn back_clause(program_break: &BreakReport) -> String {
    if program_break.shrunk_bytes == 0 {
        "none went back".to_owned()
    } else {
        format!("{} went back", share(program_break.returned_ratio))
    }
}

fn share(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| format!("{} share", words::UNKNOWN), words::percent)
}

fn watched(space: &SpaceReport) -> &'static str {
    if space.origin == SpaceOrigin::Attached {
        " while watched"
    } else {
        ""
    }
}

/// `64.5 MiB left`.
fn left_clause(space: &SpaceReport) -> String {
    match space.program_break.end_bytes {
        Some(bytes) if space.program_break.exact => format!("{} left", ByteSize(bytes)),
        Some(bytes) => format!("about {} left", ByteSize(bytes)),
        None => format!("what is left is {}", words::UNKNOWN),
    }
}

/// When an address space was seen last: `at exit`.
pub(super) fn end_of(report: &Report, space: &SpaceReport) -> String {
    let process = process_of(report, space);
    let is_last = process.is_none_or(|process| process.address_spaces.last() == Some(&space.id));
    if space.ended_ns.is_some() && !is_last {
        return "at its exec".to_owned();
    }
    match process.and_then(|process| process.outcome) {
        Some(Outcome::Exited(_)) => "at exit".to_owned(),
        Some(Outcome::Killed { signal, .. }) => format!("at {}", words::signal(signal)),
        Some(Outcome::Detached) => "at detach".to_owned(),
        Some(Outcome::Vanished) => "when last seen".to_owned(),
        None => "so far".to_owned(),
    }
}

/// The process to which an address space belongs.
pub(super) fn process_of<'a>(report: &'a Report, space: &SpaceReport) -> Option<&'a ProcessReport> {
    report
        .processes
        .iter()
        .find(|process| process.pid == space.pid && process.address_spaces.contains(&space.id))
        .or_else(|| {
            report
                .processes
                .iter()
                .find(|process| process.pid == space.pid)
        })
}

/// The process that was launched, or the one that the verdict is about when several were attached to.
pub(super) fn first_process(report: &Report) -> Option<&ProcessReport> {
    let main = || process_of(report, report.main()?);
    match report.recording.mode {
        Mode::Run => report
            .processes
            .iter()
            .find(|process| process.origin == Origin::Launched)
            .or_else(main),
        Mode::Attach => main().or(report.processes.first()),
    }
}

/// What ran and how that ended, in at most `width` columns: `python3 build.py exited 0 after 1.24 s`.
pub(super) fn fate(report: &Report, process: &ProcessReport, width: usize) -> String {
    let ended = process.ended_ns.unwrap_or(report.end.duration_ns);
    let time = words::between(process.started_ns, ended);
    let verb = if process.origin == Origin::Attached {
        fate_of_attached(process, &time)
    } else {
        fate_of_started(report, process, &time)
    };
    let threads = match process.threads {
        0 | 1 => String::new(),
        threads => format!("; {threads} threads"),
    };
    let rest = format!(" {verb}{threads}");
    let command = words::command(&process.program, &process.arguments);
    // However long the rest is, a little of the command must show.
    let room = width.saturating_sub(words::columns(&rest)).max(12);
    format!("{}{rest}", words::cut(&command, room))
}

fn fate_of_attached(process: &ProcessReport, time: &str) -> String {
    let pid = process.pid;
    let until = match process.outcome {
        Some(Outcome::Detached) => " and runs on".to_owned(),
        Some(Outcome::Exited(code)) => format!(" until it exited {code}"),
        Some(Outcome::Killed {
            signal,
            core_dumped,
        }) => format!(
            " until {} killed it{}",
            words::signal(signal),
            core(core_dumped)
        ),
        Some(Outcome::Vanished) => " until it ended unseen".to_owned(),
        None => " so far".to_owned(),
    };
    format!("(pid {pid}) was watched for {time}{until}")
}

fn fate_of_started(report: &Report, process: &ProcessReport, time: &str) -> String {
    match process.outcome {
        Some(Outcome::Exited(code)) => format!("exited {code} after {time}"),
        Some(Outcome::Killed {
            signal,
            core_dumped,
        }) => format!(
            "was killed by {} after {time}{}",
            words::signal(signal),
            core(core_dumped)
        ),
        Some(Outcome::Detached) => {
            let why = match report.end.reason {
                Some(EndReason::TimeLimit) => ": the time was over",
                Some(EndReason::Interrupted) => ": breaktrace was interrupted",
                Some(EndReason::Failed) => ": breaktrace could not go on",
                Some(EndReason::Finished) | None => "",
            };
            format!("was let go after {time} and runs on{why}")
        }
        Some(Outcome::Vanished) => format!("ended unseen after {time}"),
        None if report.end.reason.is_none() => format!("was still running after {time}"),
        None => format!("was still running when the recording ended after {time}"),
    }
}

fn core(dumped: bool) -> &'static str {
    if dumped { " (core dumped)" } else { "" }
}
