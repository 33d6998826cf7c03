//! The timeline and the flame graph as one picture for documents: SVG without scripts, that looks right on light and dark
//! pages. The same report gives the same bytes.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::verdict;
use super::words;
use crate::event::StackId;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::Stacks;
use crate::report::TimelinePoint;
use crate::units::ByteSize;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 14.0;
/// The timeline's top and bottom.
const TOP: f64 = 64.0;
const BOTTOM: f64 = 264.0;
/// Height of a row of the flame graph.
const ROW: f64 = 18.0;
/// Rows of the flame graph at most.
const MOST_ROWS: usize = 40;
/// Boxes narrower than this are left out.
const NARROWEST: f64 = 1.5;
/// Width of a character, on average.
const CHARACTER: f64 = 6.1;

const STYLE: &str = "text{font:11px system-ui,sans-serif;fill:#1c1d1f}.t{font-size:14px;font-weight:600}.f{fill:#6b6f76}\
.a{stroke:#dcdcd6}.b{stroke:#0b62c4;fill:none;stroke-width:1.8}.m{stroke:#c2570c;fill:none;stroke-width:1.8;stroke-dasharray:7 3}\
.r{stroke:#0f7a5a;fill:none;stroke-width:1.5;stroke-dasharray:2 3}.c0{fill:#f3c178}.c1{fill:#efb092}.c2{fill:#f0d27a}.c3{fill:#e9c39b}\
.g{fill:#fbfbf9}@media(prefers-color-scheme:dark){text{fill:#e7e7e3}.f{fill:#9aa0a8}.a{stroke:#33373d}.b{stroke:#6db3ff}.m{stroke:#ff9d57}\
.r{stroke:#4fd1a5}.c0{fill:#7a5410}.c1{fill:#7a3f22}.c2{fill:#6f5c14}.c3{fill:#6a4a2c}.g{fill:#15171a}}";

/// Writes the picture.
pub(super) fn render(report: &Report) -> Vec<u8> {
    let mut body = String::new();
    let mut height = BOTTOM + 30.0;
    let title = verdict::verdict(report)
        .into_iter()
        .next()
        .unwrap_or_default();
    text(
        &mut body,
        12.0,
        24.0,
        "t",
        "start",
        &fit(&title, WIDTH - 24.0, 8.0),
    );
    match report.main() {
        Some(space) => {
            let command = words::command(&space.program, &space.arguments);
            text(
                &mut body,
                12.0,
                42.0,
                "f",
                "start",
                &fit(&command, WIDTH - 24.0, CHARACTER),
            );
            timeline(&mut body, report, space);
            if let Some(stacks) = &report.stacks {
                height = flames(&mut body, space, stacks, height);
            }
        }
        None => text(&mut body, 12.0, 60.0, "f", "start", "nothing ran"),
    }
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" height=\"{height}\" role=\"img\">\n\
         <title>{}</title>\n<style>{STYLE}</style>\n<rect class=\"g\" width=\"100%\" height=\"100%\"/>\n{body}</svg>\n",
        escaped(&title)
    )
    .into_bytes()
}

fn text(out: &mut String, x: f64, y: f64, class: &str, anchor: &str, words: &str) {
    let _ = writeln!(
        out,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>",
        escaped(words)
    );
}

/// As much of a text as fits.
fn fit(text: &str, width: f64, character: f64) -> String {
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a width of some hundred points"
    )]
    let room = (width / character).max(0.0) as usize;
    words::cut(&words::harmless(text), room)
}

#[expect(clippy::cast_precision_loss, reason = "drawn to a tenth of a point")]
fn timeline(out: &mut String, report: &Report, space: &SpaceReport) {
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

/// A function in the flame graph, with those that it called.
#[derive(Default)]
struct Node {
    bytes: u64,
    children: BTreeMap<String, Node>,
}

/// Draws what grew by call path, outermost functions on top; returns the picture's height.
fn flames(out: &mut String, space: &SpaceReport, stacks: &Stacks, top: f64) -> f64 {
    let mut root = Node::default();
    for growth in &space.growth {
        let bytes = growth
            .program_break
            .grown_bytes
            .saturating_add(growth.anonymous.grown_bytes);
        let Some(names) = growth.stack.and_then(|stack| names(stacks, stack)) else {
            continue;
        };
        root.bytes = root.bytes.saturating_add(bytes);
        let mut node = &mut root;
        for name in names.into_iter().rev().take(MOST_ROWS) {
            node = node.children.entry(name).or_default();
            node.bytes = node.bytes.saturating_add(bytes);
        }
    }
    if root.bytes == 0 {
        return top;
    }
    let heading = format!(
        "who asked for it: {} grown, by call path",
        ByteSize(root.bytes)
    );
    text(out, 12.0, top + 14.0, "f", "start", &heading);
    let mut rows = 0;
    let place = Place {
        x: 12.0,
        width: WIDTH - 24.0,
        row: 0,
    };
    draw(out, &root, place, top + 24.0, root.bytes, &mut rows);
    #[expect(clippy::cast_precision_loss, reason = "some dozens")]
    let rows = rows as f64;
    top + 24.0 + rows * ROW + 12.0
}

#[derive(Clone, Copy)]
struct Place {
    x: f64,
    width: f64,
    row: usize,
}

#[expect(clippy::cast_precision_loss, reason = "drawn to a tenth of a point")]
fn draw(out: &mut String, node: &Node, place: Place, top: f64, all: u64, rows: &mut usize) {
    let mut children: Vec<_> = node.children.iter().collect();
    children.sort_by(|a, b| (b.1.bytes, a.0).cmp(&(a.1.bytes, b.0)));
    let mut x = place.x;
    for (name, child) in children {
        let width = place.width * child.bytes as f64 / node.bytes.max(1) as f64;
        let here = Place {
            x,
            width,
            row: place.row,
        };
        x += width;
        if width < NARROWEST {
            continue;
        }
        *rows = (*rows).max(place.row + 1);
        let y = top + place.row as f64 * ROW;
        let class = name.bytes().fold(0_u32, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(byte.into())
        }) % 4;
        let share = words::percent(child.bytes as f64 / all as f64);
        let _ = writeln!(
            out,
            "<rect class=\"c{class}\" x=\"{:.1}\" y=\"{y:.1}\" width=\"{:.1}\" height=\"{:.1}\"><title>{}: {}, {share}</title></rect>",
            here.x,
            (width - 0.6).max(0.4),
            ROW - 1.0,
            escaped(name),
            ByteSize(child.bytes)
        );
        if width > 30.0 {
            text(
                out,
                here.x + 4.0,
                y + 12.5,
                "",
                "start",
                &fit(name, width - 8.0, CHARACTER),
            );
        }
        let below = Place {
            row: place.row + 1,
            ..here
        };
        draw(out, child, below, top, all, rows);
    }
}

/// The functions of a stack, innermost first.
fn names(stacks: &Stacks, id: StackId) -> Option<Vec<String>> {
    let index = stacks
        .stacks
        .binary_search_by_key(&id, |stack| stack.id)
        .ok()?;
    let mut names = Vec::new();
    for frame in &stacks.stacks[index].frames {
        let frame = stacks.frames.get(usize::try_from(*frame).ok()?)?;
        let module = frame
            .module
            .and_then(|module| stacks.modules.get(usize::try_from(module).ok()?))
            .map_or("?", |module| module.path.as_str());
        if frame.functions.is_empty() {
            let offset = frame.offset.unwrap_or_default();
            names.push(format!("{}+{offset}", words::program(module)));
        }
        names.extend(frame.functions.iter().map(|function| function.name.clone()));
    }
    Some(names)
}

/// Text that XML 1.0 takes.
fn escaped(text: &str) -> String {
    words::harmless(text)
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
        .replace(['\u{fffe}', '\u{ffff}'], "\u{fffd}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::tests::program;

    #[test]
    fn the_same_report_gives_the_same_bytes_and_few_of_them() {
        let report = program(&["./main"], &[4096, 135_168, -4096]);
        let picture = render(&report);
        assert_eq!(picture, render(&report));
        assert!(picture.len() < 20_000, "{}", picture.len());
    }

    #[test]
    fn names_with_markup_stay_text() {
        let report = program(&["</title><script>alert(1)</script>\u{1b}[31m"], &[4096]);
        let picture = String::from_utf8(render(&report)).unwrap();
        assert!(!picture.contains("<script"), "{picture}");
        assert!(!picture.contains('\u{1b}'));
        // Each element that was opened is closed.
        for name in ["text", "title", "style", "svg"] {
            let opened = picture.matches(&format!("<{name}")).count();
            assert_eq!(
                opened,
                picture.matches(&format!("</{name}>")).count(),
                "{name}"
            );
        }
    }

    #[test]
    fn sizes_and_times_that_cannot_be_are_drawn_without_harm() {
        let mut report = program(&["./main"], &[4096]);
        let space = &mut report.address_spaces[0];
        space.timeline.points[0].anonymous_max_bytes = u64::MAX;
        render(&report);
        report.address_spaces[0].started_ns.0 = u64::MAX;
        render(&report);
        report.end.duration_ns.0 = u64::MAX;
        report.address_spaces[0].started_ns.0 = 0;
        assert!(!render(&report).is_empty());
    }

    #[test]
    fn a_program_that_asks_for_nothing_has_a_picture() {
        let picture = String::from_utf8(render(&program(&["true"], &[]))).unwrap();
        assert!(picture.contains("</svg>"));
    }
}
