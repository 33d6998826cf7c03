//! The trace event format of Chrome and Perfetto, as a JSON object ("Trace Event Format",
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>): what memory was over time, and
//! what moved it.
//!
//! Times are microseconds with fractions, from the start of the recording.

use serde_json::Value;
use serde_json::json;

use super::frames::NamedFrame;
use super::frames::StackTable;
use super::frames::file_name;
use crate::event::Outcome;
use crate::render::words::harmless;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::Step;
use crate::report::TimelinePoint;
use crate::units::ByteDelta;
use crate::units::Timestamp;

/// One event per line.
pub(crate) fn chrome_trace(report: &Report) -> Vec<u8> {
    let table = StackTable::of(report);
    let mut events = names(report);
    for space in &report.address_spaces {
        counters(report, space, &mut events);
        for (kind, steps) in [
            ("break", &space.program_break.steps),
            ("anonymous", &space.anonymous.steps),
        ] {
            let instants = steps
                .kept
                .iter()
                .map(|step| instant(space, kind, step, &table));
            events.extend(instants);
        }
    }
    let other = json!({
        "exporter": format!("{} {}", report.tool.name, report.tool.version),
        "command": harmless(&report.recording.command.join(" ")),
        "started_at_unix": report.recording.started_at_unix,
    });
    let events: Vec<String> = events.iter().map(Value::to_string).collect();
    format!(
        "{{\"displayTimeUnit\":\"ns\",\"otherData\":{other},\"traceEvents\":[\n{}\n]}}\n",
        events.join(",\n")
    )
    .into_bytes()
}

/// The processes' names, in order of appearance.
fn names(report: &Report) -> Vec<Value> {
    let metadata = |name: &str, pid: u32, argument: Value| json!({"ph": "M", "name": name, "pid": pid, "tid": pid, "args": argument});
    let mut events = Vec::new();
    for (index, process) in report.processes.iter().enumerate() {
        let name = file_name(&process.program);
        events.push(metadata("process_name", process.pid, json!({"name": name})));
        events.push(metadata(
            "process_sort_index",
            process.pid,
            json!({"sort_index": index}),
        ));
    }
    events
}

/// A value over time.
struct Counter {
    name: &'static str,
    value: fn(&TimelinePoint) -> Option<u64>,
}

/// What is counted, in the order in which it is written.
const COUNTERS: [Counter; 5] = [
    Counter {
        name: "break",
        value: |point| Some(point.break_bytes),
    },
    Counter {
        name: "anonymous",
        value: |point| Some(point.anonymous_bytes),
    },
    Counter {
        name: "resident",
        value: |point| point.resident_bytes,
    },
    Counter {
        name: "allocator in use",
        value: |point| point.allocator_in_use_bytes,
    },
    Counter {
        name: "allocator obtained",
        value: |point| point.allocator_obtained_bytes,
    },
];

/// The largest values between two points, as far as they are not the values at the points.
const PEAKS: [Counter; 2] = [
    Counter {
        name: "break, largest since the point before",
        value: |point| Some(point.break_max_bytes),
    },
    Counter {
        name: "anonymous, largest since the point before",
        value: |point| Some(point.anonymous_max_bytes),
    },
];

fn counters(report: &Report, space: &SpaceReport, events: &mut Vec<Value>) {
    let points = &space.timeline.points;
    let is_break = |counter: &Counter| counter.name.starts_with("break");
    let differs = |peak: &&Counter, plain: &Counter| {
        points
            .iter()
            .any(|point| (peak.value)(point) != (plain.value)(point))
    };
    let peaks = PEAKS
        .iter()
        .zip(&COUNTERS)
        .filter(|(peak, plain)| differs(peak, plain));
    let shown = COUNTERS
        .iter()
        .chain(peaks.map(|(peak, _)| peak))
        // Without its start nothing is known of the heap's size.
        .filter(|counter| space.program_break.start.is_some() || !is_break(counter));
    for counter in shown {
        let mut is_known = false;
        for point in points {
            if let Some(bytes) = (counter.value)(point) {
                is_known = true;
                events.push(count(space.pid, counter.name, point.time_ns, bytes));
            }
        }
        if let Some(ended) = space
            .ended_ns
            .filter(|_| is_known && has_ended(report, space))
        {
            events.push(count(space.pid, counter.name, ended, 0));
        }
    }
}

/// Whether the process is known to have ended, and its memory with it: then all counts are zero.
fn has_ended(report: &Report, space: &SpaceReport) -> bool {
    report
        .processes
        .iter()
        .find(|process| process.pid == space.pid)
        .is_some_and(|process| {
            matches!(
                process.outcome,
                Some(Outcome::Exited(_) | Outcome::Killed { .. })
            )
        })
}

fn count(pid: u32, name: &str, time: Timestamp, bytes: u64) -> Value {
    json!({"ph": "C", "name": name, "pid": pid, "ts": microseconds(time), "args": {"bytes": bytes}})
}

/// A move, at its thread.
fn instant(space: &SpaceReport, kind: &str, step: &Step, table: &StackTable<'_>) -> Value {
    let stack = table.stack(step.stack);
    let culprit = stack.and_then(|stack| table.culprit(stack));
    let delta = ByteDelta(step.delta_bytes);
    let mut arguments = json!({
        "call": harmless(&step.call),
        "delta_bytes": step.delta_bytes,
        "after_bytes": step.after_bytes,
        "number": step.number,
    });
    if let Some(culprit) = &culprit {
        arguments["culprit"] = shown(culprit).into();
    }
    if let Some(stack) = stack {
        let innermost_first = table.outermost_first(Some(stack)).into_iter().rev();
        arguments["stack"] = innermost_first.map(|frame| shown(&frame)).collect();
    }
    json!({
        "ph": "i",
        "s": "t",
        "cat": kind,
        "name": match culprit {
            Some(culprit) => format!("{kind} {delta}: {}", culprit.name),
            None => format!("{kind} {delta}"),
        },
        "pid": space.pid,
        "tid": step.tid,
        "ts": microseconds(step.time_ns),
        "args": arguments,
    })
}

/// `load (build.py:12)`.
fn shown(frame: &NamedFrame) -> String {
    match (&frame.file, frame.line) {
        (Some(file), Some(line)) => format!("{} ({}:{line})", frame.name, file_name(file)),
        (Some(file), None) => format!("{} ({})", frame.name, file_name(file)),
        _ => frame.name.clone(),
    }
}

/// The format's unit. Exact for recordings of up to a hundred days.
#[expect(clippy::cast_precision_loss, reason = "a double has 53 bits")]
fn microseconds(time: Timestamp) -> f64 {
    time.0 as f64 / 1e3
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::super::tests;
    use super::*;

    fn events(report: &Report) -> Vec<Value> {
        let trace: Value = serde_json::from_slice(&chrome_trace(report)).unwrap();
        trace["traceEvents"].as_array().unwrap().clone()
    }

    fn of_phase<'a>(events: &'a [Value], phase: &str) -> Vec<&'a Value> {
        events.iter().filter(|event| event["ph"] == phase).collect()
    }

    #[test]
    fn every_event_has_what_the_format_asks_of_its_phase() {
        for (name, report) in tests::every_report() {
            let events = events(&report);
            assert!(!events.is_empty());
            for event in &events {
                assert!(
                    event["name"].is_string() && event["pid"].is_u64(),
                    "{name}: {event}"
                );
                assert!(event["args"].is_object(), "{name}: {event}");
                match event["ph"].as_str().unwrap() {
                    "M" => assert!(event["tid"].is_u64()),
                    "C" => {
                        assert!(event["ts"].is_f64());
                        let values = event["args"].as_object().unwrap();
                        assert!(values.values().all(Value::is_u64), "{event}");
                    }
                    "i" => {
                        assert!(event["ts"].is_f64() && event["tid"].is_u64(), "{event}");
                        assert_eq!(event["s"], "t");
                    }
                    other => panic!("{name}: {other}"),
                }
            }
        }
    }

    #[test]
    fn times_of_a_counter_never_run_backwards() {
        let report = tests::of_two_processes();
        let mut last: HashMap<(String, String), f64> = HashMap::new();
        for event in of_phase(&events(&report), "C") {
            let track = (event["pid"].to_string(), event["name"].to_string());
            let time = event["ts"].as_f64().unwrap();
            assert!(last.insert(track, time).is_none_or(|before| before <= time));
        }
        // Break and anonymous memory of both.
        assert!(last.len() >= 4, "{last:?}");
    }

    #[test]
    fn the_break_is_counted_as_the_timeline_has_it_and_is_gone_with_the_process() {
        let report = tests::with_stacks();
        let events = events(&report);
        let counted: Vec<(f64, u64)> = of_phase(&events, "C")
            .into_iter()
            .filter(|event| event["name"] == "break")
            .map(|event| {
                let bytes = event["args"]["bytes"].as_u64().unwrap();
                (event["ts"].as_f64().unwrap(), bytes)
            })
            .collect();
        let points = &report.address_spaces[0].timeline.points;
        assert_eq!(counted.len(), points.len() + 1);
        for (point, (time, bytes)) in points.iter().zip(&counted) {
            assert_eq!(point.break_bytes, *bytes);
            let nanoseconds = point.time_ns.0;
            let decimal = format!("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
            assert_eq!(decimal.parse(), Ok(*time));
        }
        assert_eq!(counted.last(), Some(&(1_240_000.0, 0)));
    }

    #[test]
    fn what_was_not_measured_has_no_track() {
        let mut report = tests::with_stacks();
        let space = &mut report.address_spaces[0];
        space.program_break.start = None;
        for point in &mut space.timeline.points {
            point.resident_bytes = None;
            point.allocator_in_use_bytes = None;
            point.allocator_obtained_bytes = None;
        }
        for event in of_phase(&events(&report), "C") {
            assert!(
                event["name"].as_str().unwrap().starts_with("anonymous"),
                "{event}"
            );
        }
    }

    #[test]
    fn a_peak_between_two_points_has_a_track() {
        let mut report = tests::with_stacks();
        let of_peaks = |report: &Report| {
            let events = events(report);
            let counters = of_phase(&events, "C");
            let is_peak = |event: &&&Value| event["name"].as_str().unwrap().contains("largest");
            counters.iter().filter(is_peak).count()
        };
        for point in &mut report.address_spaces[0].timeline.points {
            point.break_max_bytes = point.break_bytes;
            point.anonymous_max_bytes = point.anonymous_bytes;
        }
        assert_eq!(of_peaks(&report), 0);
        report.address_spaces[0].timeline.points[0].break_max_bytes += 4096;
        assert!(of_peaks(&report) > 0);
    }

    #[test]
    fn a_step_names_its_culprit_and_its_stack() {
        let events = events(&tests::with_stacks());
        let steps = of_phase(&events, "i");
        let step = steps.iter().find(|step| step["cat"] == "break").unwrap();
        assert_eq!(step["name"], "break +132 KiB: load");
        assert_eq!(step["args"]["delta_bytes"], 132 << 10);
        assert_eq!(step["args"]["culprit"], "load (build.py:12)");
        assert_eq!(step["args"]["stack"][0], "brk");
        assert_eq!(step["args"]["stack"][1], "sysmalloc (malloc.c:2560)");
    }
}
