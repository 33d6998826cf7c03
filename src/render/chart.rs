//! Sizes over time as filled steps.
//!
//! A column of the chart stands for a stretch of time and keeps the extremes of everything in it, so no peak is lost
//! however many moves there were. Where the size went up *and* down within one column, the part between the extremes
//! is shaded instead of filled.

use crate::report::InUseMeasure;
use crate::report::SpaceReport;
use crate::report::TimelinePoint;
use crate::stats_page::Counters;
use crate::units::ByteSize;
use crate::units::Timestamp;

use super::style::Line;
use super::style::Tone;
use super::words;

/// Rows of the chart, without the time axis.
const ROWS: usize = 6;
/// Rows of a wide one, which would look flat otherwise.
const WIDE_ROWS: usize = 10;
/// Columns from which on a chart is wide.
const WIDE: usize = 120;
/// Columns left of the scale: one to indent, and eight for the longest size, such as `64.7 MiB`.
const LABEL_WIDTH: usize = 9;
/// Rows of a chart whose sizes never change: there is nothing to see but the size.
const FLAT_ROWS: usize = 2;
/// Memory from mmap below this is drawn only when the break has even less.
const LITTLE: u64 = 1 << 20;
/// Steps within one character.
const EIGHTHS: usize = 8;
/// A character that is filled from its bottom to so many eighths.
const FILLED: [char; EIGHTHS + 1] = [' ', '▁', '▂', '▃', '▄', '▅', '▆', '▇', '█'];
/// Between the extremes of a column that went up and down.
const SHADED: char = '░';
/// Held, and not in use.
const HELD: char = '▒';

/// What one size did, column by column.
struct Series {
    name: &'static str,
    tone: Tone,
    peak: u64,
    /// The size at the foot of the chart: zero, unless the size stayed so near its peak that nothing could be seen.
    foot: u64,
    columns: Vec<Span>,
    /// Of that size, what the program had in use; only where the bundled allocator told.
    in_use: Option<Vec<Span>>,
}

/// What one size did during one column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Span {
    first: u64,
    last: u64,
    lowest: u64,
    highest: u64,
}

/// One point of a timeline, reduced to one of its sizes.
struct Point {
    time: Timestamp,
    value: u64,
    lowest: u64,
    highest: u64,
}

/// The time that a chart covers.
#[derive(Clone, Copy)]
struct Period {
    start: Timestamp,
    end: Timestamp,
}

/// The chart of one address space, in lines of at most `width` columns; no lines when no size was ever above zero.
///
/// Memory from mmap is drawn below the break, with a scale of its own, when it matters beside it.
pub(super) fn lines(space: &SpaceReport, recording_end: Timestamp, width: usize) -> Vec<Line> {
    let period = Period {
        start: space.started_ns,
        end: space.ended_ns.unwrap_or(recording_end),
    };
    let points = &space.timeline.points;
    if points.is_empty() {
        return Vec::new();
    }
    let drawn = drawn_peaks(space);
    if drawn.is_empty() {
        return Vec::new();
    }
    let plot_width = width.saturating_sub(LABEL_WIDTH + 2).max(1);
    let series: Vec<Series> = drawn
        .iter()
        .map(|&(name, peak)| series(name, peak, space, period, plot_width))
        .collect();
    let series = with_what_is_in_use(series, space, period, plot_width);
    let all_rows = if width < WIDE { ROWS } else { WIDE_ROWS };
    let rows = all_rows / series.len();
    let rows = if series.iter().all(Series::is_flat) {
        rows.min(FLAT_ROWS)
    } else {
        rows
    };
    let plots: Vec<Vec<String>> = series.iter().map(|series| series.plot(rows)).collect();
    let has = |character| plots.iter().flatten().any(|row| row.contains(character));
    let mut lines: Vec<Line> = series
        .iter()
        .zip(&plots)
        .flat_map(|(series, plot)| series.lines(plot))
        .collect();
    let legend: Vec<&str> = [
        (series.iter().any(|s| s.in_use.is_some()), "█ in use"),
        (has(HELD), "▒ held, not in use"),
        (has(SHADED), "░ went up and down"),
    ]
    .into_iter()
    .filter_map(|(is_shown, text)| is_shown.then_some(text))
    .collect();
    lines.push(axis(period, plot_width, &legend.join("  ")));
    lines
}

/// What the program had in use, drawn into the break where it fits, or else into all that its allocator held: blocks
/// mapped by themselves are not below the break.
fn with_what_is_in_use(
    mut series: Vec<Series>,
    space: &SpaceReport,
    period: Period,
    width: usize,
) -> Vec<Series> {
    let Some(in_use) = spans_in_use(space, period, width) else {
        return series;
    };
    let fits = |around: &[Span]| {
        let mut pairs = around.iter().zip(&in_use);
        pairs.all(|(around, in_use)| in_use.highest <= around.highest)
    };
    if let Some(first) = series.first_mut()
        && first.name == "break"
        && fits(&first.columns)
    {
        first.foot = 0;
        first.in_use = Some(in_use);
        return series;
    }
    let Some(columns) = spans_obtained(space, period, width) else {
        return series;
    };
    let peak = columns.iter().map(|span| span.highest).max().unwrap_or(0);
    // Where little is held beside the heap, both pictures would be the same.
    series.retain(|series| series.name == "break" && peak / 5 * 4 > series.peak);
    series.push(Series {
        name: "obtained",
        tone: Tone::Growth,
        peak,
        foot: 0,
        columns,
        in_use: Some(in_use),
    });
    series
}

/// What was in use at each reading of the allocator; `None` without readings.
fn spans_in_use(space: &SpaceReport, period: Period, width: usize) -> Option<Vec<Span>> {
    let points: Vec<Point> = space
        .timeline
        .points
        .iter()
        .filter_map(|point| {
            let value = point.allocator_in_use_bytes?;
            Some(Point {
                time: point.time_ns,
                value,
                lowest: value,
                highest: point.allocator_in_use_max_bytes.unwrap_or(value),
            })
        })
        .collect();
    let initial = |figures: &Counters| figures.in_use_bytes;
    held_spans(points, space, initial, period, width)
}

/// What was obtained, likewise.
fn spans_obtained(space: &SpaceReport, period: Period, width: usize) -> Option<Vec<Span>> {
    let points: Vec<Point> = space
        .timeline
        .points
        .iter()
        .filter_map(|point| {
            let value = point.allocator_obtained_bytes?;
            Some(Point {
                time: point.time_ns,
                value,
                lowest: value,
                highest: value,
            })
        })
        .collect();
    let initial = |figures: &Counters| figures.obtained_bytes;
    held_spans(points, space, initial, period, width)
}

fn held_spans(
    points: Vec<Point>,
    space: &SpaceReport,
    of: fn(&Counters) -> u64,
    period: Period,
    width: usize,
) -> Option<Vec<Span>> {
    if points.is_empty() {
        return None;
    }
    let at_start = space
        .allocator
        .as_ref()
        // Seen from outside a heap has few points, and none at its beginning.
        .filter(|allocator| allocator.in_use_is == InUseMeasure::Requested)?
        .at_start
        .as_ref();
    let initial = at_start.and_then(|start| start.figures.all()).map_or(0, of);
    Some(spans(points.into_iter(), initial, period, width))
}

/// Which sizes are worth drawing, with their peaks.
fn drawn_peaks(space: &SpaceReport) -> Vec<(&'static str, u64)> {
    let points = &space.timeline.points;
    let highest = |of: fn(&TimelinePoint) -> u64| points.iter().map(of).max().unwrap_or(0);
    let break_peak =
        highest(|point| point.break_max_bytes).max(space.program_break.peak_bytes.unwrap_or(0));
    let mapped_peak = highest(|point| point.anonymous_max_bytes).max(space.anonymous.peak_bytes);
    let break_moved = space.program_break.grow_calls + space.program_break.shrink_calls > 0;
    let mut drawn = Vec::new();
    if break_peak > 0 && (break_moved || break_peak > mapped_peak) {
        drawn.push(("break", break_peak));
    }
    // The dynamic linker alone maps some dozen KiB, which would be half the picture of a small program.
    let matters = mapped_peak >= break_peak / 10 && mapped_peak >= LITTLE.min(break_peak);
    if mapped_peak > 0 && (drawn.is_empty() || matters) {
        drawn.push(("mmap", mapped_peak));
    }
    drawn
}

fn series(
    name: &'static str,
    peak: u64,
    space: &SpaceReport,
    period: Period,
    width: usize,
) -> Series {
    let points = space.timeline.points.iter();
    let (tone, columns) = if name == "break" {
        let points = points.map(|point| Point {
            time: point.time_ns,
            value: point.break_bytes,
            lowest: point.break_min_bytes,
            highest: point.break_max_bytes,
        });
        // Where the heap's size was not known at first, nothing is drawn until it is.
        let initial = space.program_break.start_bytes.unwrap_or(0);
        (Tone::Growth, spans(points, initial, period, width))
    } else {
        let points = points.map(|point| Point {
            time: point.time_ns,
            value: point.anonymous_bytes,
            lowest: point.anonymous_min_bytes,
            highest: point.anonymous_max_bytes,
        });
        let initial = space.anonymous.start_bytes;
        (Tone::Plain, spans(points, initial, period, width))
    };
    Series {
        name,
        tone,
        peak,
        foot: foot(&columns, peak),
        columns,
        in_use: None,
    }
}

/// Zero, or for a size that never fell below three quarters of its peak, something below the lowest.
fn foot(columns: &[Span], peak: u64) -> u64 {
    let lowest = columns.iter().map(|span| span.lowest).min().unwrap_or(0);
    let range = peak.saturating_sub(lowest);
    if range == 0 || range > peak / 4 {
        0
    } else {
        lowest.saturating_sub(range / 2)
    }
}

/// Sorts points into `width` columns; a value holds until the next point.
fn spans(
    points: impl Iterator<Item = Point>,
    initial: u64,
    period: Period,
    width: usize,
) -> Vec<Span> {
    let mut points = points.peekable();
    let mut value = initial;
    (0..width)
        .map(|column| {
            let mut span = Span {
                first: value,
                last: value,
                lowest: value,
                highest: value,
            };
            while let Some(point) = points.next_if(|p| column_of(p.time, period, width) <= column) {
                value = point.value;
                span.last = value;
                span.lowest = span.lowest.min(point.lowest).min(value);
                span.highest = span.highest.max(point.highest).max(value);
            }
            span
        })
        .collect()
}

fn column_of(time: Timestamp, period: Period, width: usize) -> usize {
    let length = u128::from(period.end.0.saturating_sub(period.start.0)).max(1);
    let passed = u128::from(time.0.saturating_sub(period.start.0));
    let column = passed * width as u128 / length;
    usize::try_from(column).map_or(width - 1, |column| column.min(width - 1))
}

impl Span {
    /// Whether the size only grew or only shrank.
    fn is_one_way(self) -> bool {
        self.lowest == self.first.min(self.last) && self.highest == self.first.max(self.last)
    }

    /// The character of this column in the row that begins `base` eighths above zero.
    fn character(self, base: usize, level: impl Fn(u64) -> usize) -> char {
        let top = level(self.highest);
        let solid = if self.is_one_way() {
            top
        } else {
            level(self.lowest)
        };
        if solid >= base + EIGHTHS {
            FILLED[EIGHTHS]
        } else if solid > base {
            // The peak within the same character counts, lest it be lost.
            FILLED[top.min(base + EIGHTHS) - base]
        } else if top > base {
            SHADED
        } else {
            FILLED[0]
        }
    }
}

impl Series {
    fn is_flat(&self) -> bool {
        self.columns
            .iter()
            .chain(self.in_use.iter().flatten())
            .all(|span| span.highest == self.peak && span.is_one_way())
    }

    /// The picture itself, from its top row to its foot.
    fn plot(&self, rows: usize) -> Vec<String> {
        let level = |value| self.level(value, rows * EIGHTHS);
        (0..rows)
            .map(|row| {
                let base = (rows - 1 - row) * EIGHTHS;
                (0..self.columns.len())
                    .map(|column| self.character(column, base, level))
                    .collect()
            })
            .collect()
    }

    /// The picture with its scale.
    fn lines(&self, plot: &[String]) -> Vec<Line> {
        // A dashed side warns that the scale does not begin at zero.
        let side = if self.foot == 0 { '│' } else { '┊' };
        let rows = plot.len();
        plot.iter()
            .enumerate()
            .map(|(row, plot)| {
                let (text, edge) = match row {
                    0 => (label(self.peak), '┤'),
                    _ if row + 1 == rows => (label(self.foot), '┤'),
                    1 => (self.name.to_owned(), side),
                    _ => (String::new(), side),
                };
                let mut line = label_cell(&text);
                line.push(Tone::Faint, &format!(" {edge}"));
                self.push_plot(plot, (rows - 1 - row) * EIGHTHS, rows, &mut line);
                line
            })
            .collect()
    }

    /// Adds the row that begins `base` eighths above the foot. What is held without being in use stands back, and what
    /// was given back within a column is told from what was there after it.
    fn push_plot(&self, plot: &str, base: usize, rows: usize, line: &mut Line) {
        let mut piece = String::new();
        let mut piece_tone = self.tone;
        for (column, character) in plot.chars().enumerate() {
            let tone = match character {
                ' ' => piece_tone,
                HELD => Tone::Faint,
                _ if self.is_given_back(column, base, rows) => Tone::Shrinkage,
                _ => self.tone,
            };
            if tone != piece_tone {
                line.push(piece_tone, &piece);
                piece.clear();
                piece_tone = tone;
            }
            piece.push(character);
        }
        line.push(piece_tone, &piece);
    }

    /// Whether all of a cell lies above what was left at the end of its column, and below what was there at its start.
    fn is_given_back(&self, column: usize, base: usize, rows: usize) -> bool {
        self.columns.get(column).is_some_and(|span| {
            let level = |value| self.level(value, rows * EIGHTHS);
            level(span.last) <= base && level(span.first) > base
        })
    }

    /// The character of a column in the row that begins `base` eighths above zero.
    fn character(&self, column: usize, base: usize, level: impl Fn(u64) -> usize) -> char {
        let around = self.columns[column];
        let Some(in_use) = self.in_use.as_ref().and_then(|spans| spans.get(column)) else {
            return around.character(base, level);
        };
        let top_in_use = level(in_use.highest);
        if top_in_use > base {
            return FILLED[(top_in_use - base).min(EIGHTHS)];
        }
        match around.character(base, level) {
            SHADED => SHADED,
            // There is no half of this character: whatever fills half a row is shown, and the lowest row in any case.
            outer if base == 0 && outer != FILLED[0] => HELD,
            outer if FILLED[EIGHTHS / 2..].contains(&outer) => HELD,
            _ => FILLED[0],
        }
    }

    /// How many of `levels` eighths a value fills; whatever is above the foot can be seen.
    fn level(&self, value: u64, levels: usize) -> usize {
        let height = u128::from(value.saturating_sub(self.foot));
        if height == 0 {
            return 0;
        }
        let whole = u128::from(self.peak.saturating_sub(self.foot)).max(1);
        let scaled = (height * levels as u128 + whole / 2) / whole;
        usize::try_from(scaled).map_or(levels, |level| level.clamp(1, levels))
    }
}

fn label(bytes: u64) -> String {
    ByteSize(bytes).to_string()
}

fn label_cell(text: &str) -> Line {
    let mut line = Line::of(
        Tone::Plain,
        &" ".repeat(LABEL_WIDTH.saturating_sub(words::columns(text))),
    );
    line.push(Tone::Faint, text);
    line
}

/// The time axis, with its start and its end.
fn axis(period: Period, plot_width: usize, legend: &str) -> Line {
    let start = words::duration(period.start.0);
    let end = words::duration(period.end.0);
    let legend = if legend.is_empty() {
        String::new()
    } else {
        format!(" {legend} ")
    };
    let between = plot_width.saturating_sub(words::columns(&start) + words::columns(&end) + 2);
    let legend = if words::columns(&legend) <= between {
        legend
    } else {
        String::new()
    };
    let rest = between - words::columns(&legend);
    let mut line = label_cell("");
    line.push(
        Tone::Faint,
        &format!(
            "  {start} {}{legend}{} {end}",
            "─".repeat(rest / 2),
            "─".repeat(rest - rest / 2)
        ),
    );
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::render::Charset;

    const SECOND: Period = Period {
        start: Timestamp(0),
        end: Timestamp(1_000),
    };

    fn point(time: u64, value: u64, lowest: u64, highest: u64) -> Point {
        Point {
            time: Timestamp(time),
            value,
            lowest,
            highest,
        }
    }

    fn drawn(points: Vec<Point>, peak: u64, rows: usize, width: usize) -> Vec<String> {
        let series = Series {
            name: "break",
            tone: Tone::Plain,
            peak,
            foot: 0,
            columns: spans(points.into_iter(), 0, SECOND, width),
            in_use: None,
        };
        series
            .lines(&series.plot(rows))
            .iter()
            .map(|line| line.paint(false).chars().skip(LABEL_WIDTH + 2).collect())
            .collect()
    }

    #[test]
    fn a_value_holds_until_the_next_point() {
        let points = vec![point(250, 8, 0, 8), point(750, 16, 8, 16)];
        assert_eq!(drawn(points, 16, 2, 8), ["      ██", "  ██████"]);
    }

    #[test]
    fn a_spike_within_one_column_shows_its_full_height() {
        let points = vec![point(0, 8, 8, 8), point(500, 8, 8, 32)];
        assert_eq!(drawn(points, 32, 4, 4), ["  ░", "  ░", "  ░", "████"]);
    }

    #[test]
    fn a_dip_within_one_column_shows_its_depth() {
        let points = vec![point(0, 32, 0, 32), point(500, 32, 8, 32)];
        assert_eq!(drawn(points, 32, 4, 4), ["██░█", "██░█", "██░█", "████"]);
    }

    #[test]
    fn the_smallest_size_above_zero_can_be_seen() {
        let points = vec![point(0, 1, 0, 1), point(999, 1_000_000, 1, 1_000_000)];
        assert_eq!(drawn(points, 1_000_000, 2, 4), ["   █", "▁▁▁█"]);
    }

    #[test]
    fn a_size_near_its_peak_all_the_time_is_drawn_from_a_foot_above_zero() {
        let span = |size| Span {
            first: size,
            last: size,
            lowest: size,
            highest: size,
        };
        assert_eq!(foot(&[span(96), span(100)], 100), 94);
        assert_eq!(foot(&[span(50), span(100)], 100), 0);
        assert_eq!(foot(&[span(100), span(100)], 100), 0);
        assert_eq!(foot(&[], 0), 0);
    }

    #[test]
    fn points_outside_the_period_stay_at_its_edges() {
        let points = vec![point(5_000, 8, 8, 8)];
        assert_eq!(drawn(points, 8, 1, 3), ["  █"]);
        let nothing = Period {
            start: Timestamp(7),
            end: Timestamp(7),
        };
        let columns = spans([point(7, 8, 8, 8)].into_iter(), 0, nothing, 3);
        assert_eq!(columns[0].last, 8);
    }

    #[test]
    fn what_was_given_back_within_a_column_has_a_colour_of_its_own() {
        let points = vec![point(0, 32, 0, 32), point(500, 8, 8, 32)];
        let series = Series {
            name: "break",
            tone: Tone::Growth,
            peak: 32,
            foot: 0,
            columns: spans(points.into_iter(), 32, SECOND, 4),
            in_use: None,
        };
        let lines = series.lines(&series.plot(4));
        let orange = "\x1b[38;5;208m█\x1b[0m";
        let has: Vec<bool> = lines
            .iter()
            .map(|l| l.paint(true).contains(orange))
            .collect();
        assert_eq!(has, [true, true, true, false]);
    }

    #[test]
    fn in_ascii_levels_are_told_apart() {
        let _ascii = Charset::Ascii.enter();
        let points = vec![point(0, 1, 0, 1), point(250, 4, 1, 4), point(500, 8, 4, 8)];
        assert_eq!(drawn(points, 8, 1, 4), ["_=##"]);
        let points = vec![point(0, 8, 8, 8), point(500, 8, 8, 32)];
        assert_eq!(drawn(points, 32, 4, 4), ["  :", "  :", "  :", "####"]);
    }

    #[test]
    fn the_largest_values_do_not_overflow() {
        let points = vec![point(0, u64::MAX, 0, u64::MAX)];
        assert_eq!(drawn(points, u64::MAX, 1, 2), ["██"]);
    }
}
