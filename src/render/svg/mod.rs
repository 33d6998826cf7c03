//! The timeline and the flame graph as pictures for documents: SVG without scripts, that looks right on light and dark
//! pages. The same report gives the same bytes.

mod flames;
mod timeline;

use std::fmt::Write;

use super::verdict;
use super::words;
use crate::report::Report;

const WIDTH: f64 = 960.0;
const LEFT: f64 = 78.0;
const RIGHT: f64 = 14.0;
/// Width of a character, on average.
const CHARACTER: f64 = 6.1;

const STYLE: &str = "text{font:11px system-ui,sans-serif;fill:#1c1d1f}.t{font-size:14px;font-weight:600}.f{fill:#6b6f76}\
.a{stroke:#dcdcd6}.b{stroke:#0b62c4;fill:none;stroke-width:1.8}.m{stroke:#c2570c;fill:none;stroke-width:1.8;stroke-dasharray:7 3}\
.r{stroke:#0f7a5a;fill:none;stroke-width:1.5;stroke-dasharray:2 3}.d{stroke:#0f7a5a;stroke-width:4;stroke-linecap:round}.c0{fill:#f3c178}.c1{fill:#efb092}.c2{fill:#f0d27a}.c3{fill:#e9c39b}\
.g{fill:#fbfbf9}@media(prefers-color-scheme:dark){text{fill:#e7e7e3}.f{fill:#9aa0a8}.a{stroke:#33373d}.b{stroke:#6db3ff}.m{stroke:#ff9d57}\
.r,.d{stroke:#4fd1a5}.c0{fill:#7a5410}.c1{fill:#7a3f22}.c2{fill:#6f5c14}.c3{fill:#6a4a2c}.g{fill:#15171a}}";

/// What a picture shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Parts {
    Both,
    Timeline,
    Flames,
}

/// Writes the picture.
pub(super) fn render(report: &Report, parts: Parts) -> Vec<u8> {
    let mut body = String::new();
    // Below the headings.
    let mut height = 50.0;
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
            if parts != Parts::Flames {
                timeline::draw(&mut body, report, space);
                height = timeline::END;
            }
            match &report.stacks {
                Some(stacks) if parts != Parts::Timeline => {
                    height = flames::draw(&mut body, space, stacks, height);
                }
                None if parts == Parts::Flames => {
                    let why = "no call stacks were recorded";
                    text(&mut body, 12.0, height + 14.0, "f", "start", why);
                    height += 30.0;
                }
                _ => {}
            }
        }
        None => {
            text(&mut body, 12.0, 60.0, "f", "start", "nothing ran");
            height = 72.0;
        }
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
        let picture = render(&report, Parts::Both);
        assert_eq!(picture, render(&report, Parts::Both));
        assert!(picture.len() < 20_000, "{}", picture.len());
    }

    #[test]
    fn each_part_can_be_had_alone() {
        let report = program(&["./main"], &[4096, 135_168, -4096]);
        let of = |parts| String::from_utf8(render(&report, parts)).unwrap();
        let timeline = of(Parts::Timeline);
        assert!(timeline.contains("program break") && !timeline.contains("by call path"));
        let flames = of(Parts::Flames);
        assert!(!flames.contains("program break<"), "{flames}");
        assert!(flames.len() < of(Parts::Both).len());
    }

    #[test]
    fn names_with_markup_stay_text() {
        let report = program(&["</title><script>alert(1)</script>\u{1b}[31m"], &[4096]);
        let picture = String::from_utf8(render(&report, Parts::Both)).unwrap();
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
        render(&report, Parts::Both);
        report.address_spaces[0].started_ns.0 = u64::MAX;
        render(&report, Parts::Both);
        report.end.duration_ns.0 = u64::MAX;
        report.address_spaces[0].started_ns.0 = 0;
        assert!(!render(&report, Parts::Both).is_empty());
    }

    #[test]
    fn a_program_that_asks_for_nothing_has_a_picture() {
        let picture = String::from_utf8(render(&program(&["true"], &[]), Parts::Both)).unwrap();
        assert!(picture.contains("</svg>"));
    }
}
