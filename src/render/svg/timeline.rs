//! Break, mapped and resident memory over time.

use std::fmt::Write;

use super::LEFT;
use super::RIGHT;
use super::WIDTH;
use super::text;
use crate::render::words;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::TimelinePoint;
use crate::units::ByteSize;

/// The timeline's top and bottom.
const TOP: f64 = 64.0;
const BOTTOM: f64 = 264.0;
/// Where the next part of a picture may begin.
pub(super) const END: f64 = BOTTOM + 30.0;
/// More snapshots than this are a line without dots.
const MOST_DOTS: usize = 120;

/// Draws it below the headings.
#[expect(clippy::cast_precision_loss, reason = "drawn to a tenth of a point")]
pub(super) fn draw(out: &mut String, report: &Report, space: &SpaceReport) {
    let points = &space.timeline.points;
    let begin = space.started_ns.0;
    let end = space
        .ended_ns
        .unwrap_or(report.end.duration_ns)
        .0
        .max(begin.saturating_add(1));
    let has_resident = points
        .iter()
        .filter(|point| point.resident_bytes.is_some())
        .count()
        > 1;
    let most = points
        .iter()
        .flat_map(|point| {
            let sizes = [point.break_max_bytes, point.anonymous_max_bytes];
            // What is not drawn does not stretch the axis.
            let resident = point.resident_bytes.filter(|_| has_resident);
            sizes.into_iter().chain(resident)
        })
        .max()
        .unwrap_or(0)
        .max(1);
    let y = |bytes: u64| BOTTOM - (bytes as f64 / most as f64) * (BOTTOM - TOP);
    let x = |time: u64| {
        let share = time.saturating_sub(begin) as f64 / (end - begin).max(1) as f64;
        LEFT + share.clamp(0.0, 1.0) * (WIDTH - LEFT - RIGHT)
    };
    let mut step = 1_u64;
    while most / step > 5 {
        step = step.saturating_mul(2);
    }
    for bytes in (0..=5)
        .map_while(|n: u64| n.checked_mul(step))
        .take_while(|bytes| *bytes <= most)
    {
        let _ = writeln!(
            out,
            "<path class=\"a\" d=\"M{LEFT} {0:.1}H{1}\"/>",
            y(bytes),
            WIDTH - RIGHT
        );
        text(
            out,
            LEFT - 8.0,
            y(bytes) + 4.0,
            "f",
            "end",
            &ByteSize(bytes).to_string(),
        );
    }
    for n in 0..=4_u64 {
        let time = begin.saturating_add((end - begin) / 4 * n);
        let anchor = match n {
            0 => "start",
            4 => "end",
            _ => "middle",
        };
        text(
            out,
            x(time),
            BOTTOM + 18.0,
            "f",
            anchor,
            &words::duration(time),
        );
    }
    stepped(out, "b", points, &x, &y, end, |point| {
        (
            point.break_bytes,
            point.break_min_bytes,
            point.break_max_bytes,
        )
    });
    stepped(out, "m", points, &x, &y, end, |point| {
        (
            point.anonymous_bytes,
            point.anonymous_min_bytes,
            point.anonymous_max_bytes,
        )
    });
    // Known at snapshots only: a line between them.
    let known: Vec<(f64, f64)> = points
        .iter()
        .filter_map(|point| Some((x(point.time_ns.0), y(point.resident_bytes?))))
        .collect();
    if known.len() > 1 {
        let path: Vec<String> = known
            .iter()
            .map(|(x, y)| format!("{x:.1} {y:.1}"))
            .collect();
        let _ = writeln!(out, "<path class=\"r\" d=\"M{}\"/>", path.join("L"));
        // What was measured, beside the line that only leads from one to the next.
        if known.len() <= MOST_DOTS {
            let dots: Vec<String> = path.iter().map(|place| format!("M{place}h0")).collect();
            let _ = writeln!(out, "<path class=\"d\" d=\"{}\"/>", dots.concat());
        }
    }
    let mut at = LEFT;
    for (class, name) in [
        ("b", "program break"),
        ("m", "mapped"),
        ("r", "resident, at snapshots"),
    ] {
        if class == "r" && known.len() < 2 {
            continue;
        }
        let _ = writeln!(out, "<path class=\"{class}\" d=\"M{at} 55h22\"/>");
        text(out, at + 27.0, 59.0, "", "start", name);
        at += 150.0;
    }
}

/// A line that holds its value until the next point; one stroke for each tenth of a point of width.
fn stepped(
    out: &mut String,
    class: &str,
    points: &[TimelinePoint],
    x: &dyn Fn(u64) -> f64,
    y: &dyn Fn(u64) -> f64,
    end: u64,
    sizes: fn(&TimelinePoint) -> (u64, u64, u64),
) {
    let Some(first) = points.first() else {
        return;
    };
    let mut path = format!("M{:.1} {:.1}", x(first.time_ns.0), y(sizes(first).0));
    for point in points {
        let (last, least, most) = sizes(point);
        let _ = write!(path, "H{:.1}", x(point.time_ns.0));
        if least != last || most != last {
            let _ = write!(path, "V{:.1}V{:.1}", y(most), y(least));
        }
        let _ = write!(path, "V{:.1}", y(last));
    }
    let _ = writeln!(out, "<path class=\"{class}\" d=\"{path}H{:.1}\"/>", x(end));
}
