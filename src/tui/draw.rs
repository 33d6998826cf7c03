//! The picture: from a report and the state of the view to cells.

use ratatui::Frame;
use ratatui::layout::Constraint;
use ratatui::layout::Layout;
use ratatui::layout::Rect;
use ratatui::style::Color;
use ratatui::style::Modifier;
use ratatui::style::Style;
use ratatui::symbols::Marker;
use ratatui::text::Line;
use ratatui::text::Span;
use ratatui::widgets::Axis;
use ratatui::widgets::Block;
use ratatui::widgets::Chart;
use ratatui::widgets::Clear;
use ratatui::widgets::Dataset;
use ratatui::widgets::GraphType;
use ratatui::widgets::Paragraph;
use ratatui::widgets::Row;
use ratatui::widgets::Table;
use ratatui::widgets::TableState;
use ratatui::widgets::Wrap;

use super::state::Over;
use super::state::State;
use crate::event::Outcome;
use crate::render::call_paths;
use crate::render::words;
use crate::report::ProcessReport;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::units::ByteSize;

/// Blue and orange are told apart by everybody; the legend names them as well.
const BREAK: Color = Color::Cyan;
const MAPPED: Color = Color::Yellow;
/// Columns of the figures beside the chart.
const FIGURES: u16 = 34;
/// Smaller terminals show a request instead of a picture.
const LEAST: (u16, u16) = (50, 14);
/// Most processes that are listed.
const MOST_PROCESSES: usize = 6;

const HELP: &[(&str, &str)] = &[
    ("↑ ↓", "choose a call path"),
    ("Enter", "its call stacks; Esc: back"),
    ("o", "order: still there, grown, gone back, calls"),
    ("Tab", "next process (one for each program that ran)"),
    ("p, space", "pause the view; the program runs on"),
    ("s", "write a snapshot: a report as JSON"),
    ("Ctrl-C", "interrupt: the program that was run gets SIGINT,"),
    ("", "an attached one is let go and runs on"),
    ("q", "quit; a program that was run: asks what becomes of it"),
];

fn faint() -> Style {
    Style::new().add_modifier(Modifier::DIM)
}

fn strong() -> Style {
    Style::new().add_modifier(Modifier::BOLD)
}

/// Draws everything.
pub(super) fn draw(frame: &mut Frame<'_>, state: &mut State) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        let text = format!(
            "The live view needs {} × {} characters. q quits.",
            LEAST.0, LEAST.1
        );
        frame.render_widget(Paragraph::new(text).wrap(Wrap { trim: true }), area);
        return;
    }
    let [title, body, footer] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(1),
    ])
    .areas(area);
    let report = state.report.clone();
    frame.render_widget(Paragraph::new(title_line(report.as_deref(), state)), title);
    frame.render_widget(Paragraph::new(footer_line(state)), footer);
    let shown = report
        .as_deref()
        .and_then(|report| Some((report, state.shown(report)?)));
    match shown {
        None => frame.render_widget(Paragraph::new("waiting for the first events …"), body),
        Some((report, space)) if state.over == Over::Stack => {
            stack(frame, body, report, space, state);
        }
        Some((report, space)) => overview(frame, body, report, space, state),
    }
    match state.over {
        Over::Help => help(frame, body),
        Over::Quit => quit(frame, body),
        Over::Nothing | Over::Stack => {}
    }
}

fn title_line(report: Option<&Report>, state: &State) -> Line<'static> {
    let mut spans = vec![Span::styled(
        " breaktrace ",
        strong().fg(Color::Black).bg(BREAK),
    )];
    if let Some((report, space)) = report.and_then(|report| Some((report, state.shown(report)?))) {
        let command = words::cut(&words::command(&space.program, &space.arguments), 40);
        spans.push(Span::styled(format!(" {command}"), strong()));
        spans.push(Span::raw(format!(
            "  pid {}  {}  {}",
            space.pid,
            words::duration(state.elapsed().max(report.end.duration_ns.0)),
            words::count(report.end.events, "event", "events"),
        )));
        let process = report
            .processes
            .iter()
            .find(|process| process.pid == space.pid);
        let ending = process.and_then(|process| process.outcome);
        if state.has_ended || ending.is_some() {
            spans.push(Span::styled(format!("  {}", how_it_is(ending)), strong()));
        }
    }
    if state.is_paused {
        spans.push(Span::styled("  VIEW PAUSED", strong().fg(MAPPED)));
    }
    Line::from(spans)
}

fn how_it_is(outcome: Option<Outcome>) -> String {
    match outcome {
        None => "running".to_owned(),
        Some(Outcome::Exited(status)) => format!("exited with {status}"),
        Some(Outcome::Killed { signal, .. }) => format!("killed by {}", words::signal(signal)),
        Some(Outcome::Detached) => "let go, runs on".to_owned(),
        Some(Outcome::Vanished) => "ended unseen".to_owned(),
    }
}

fn footer_line(state: &State) -> Line<'static> {
    if let Some(told) = &state.told {
        return Line::from(Span::styled(
            format!(" {}", words::harmless(told)),
            strong(),
        ));
    }
    let quit = match (state.has_ended, state.launched) {
        (true, _) => "quit and print the report",
        (false, true) => "quit …",
        (false, false) => "quit and detach",
    };
    let keys = [
        ("↑↓ Enter", "stack"),
        ("o", "order"),
        ("Tab", "process"),
        ("p", "pause"),
        ("s", "snapshot"),
        ("?", "help"),
        ("q", quit),
    ];
    let mut spans = vec![Span::raw(" ")];
    for (key, what) in keys {
        spans.push(Span::styled(key, strong()));
        spans.push(Span::styled(format!(" {what}  "), faint()));
    }
    Line::from(spans)
}

fn overview(
    frame: &mut Frame<'_>,
    area: Rect,
    report: &Report,
    space: &SpaceReport,
    state: &mut State,
) {
    let listed = report.processes.len().min(MOST_PROCESSES);
    let processes = if area.height >= 24 || listed > 1 {
        u16::try_from(listed + 2).unwrap_or(8).min(area.height / 4)
    } else {
        0
    };
    let [top, paths, list] = Layout::vertical([
        Constraint::Length((area.height / 2).clamp(11, 24)),
        Constraint::Fill(1),
        Constraint::Length(processes),
    ])
    .areas(area);
    let [left, right] =
        Layout::horizontal([Constraint::Fill(1), Constraint::Length(FIGURES)]).areas(top);
    chart(frame, left, report, space, state);
    figures(frame, right, space, state);
    growers(frame, paths, space, state);
    if processes > 0 {
        process_list(frame, list, report, space);
    }
}

/// Break and mappings as steps: a value holds until the next.
#[expect(clippy::cast_precision_loss, reason = "a picture has few hundred dots")]
fn steps(space: &SpaceReport, now: u64, value: impl Fn(usize) -> u64) -> Vec<(f64, f64)> {
    let mut points = Vec::new();
    let mut last = None;
    for (index, point) in space.timeline.points.iter().enumerate() {
        let time = point.time_ns.0 as f64;
        if let Some(last) = last {
            points.push((time, last));
        }
        let value = value(index) as f64;
        points.push((time, value));
        last = Some(value);
    }
    // An ended program has no memory any more; its last size is not carried on.
    if let Some(last) = last.filter(|_| space.ended_ns.is_none()) {
        points.push((now as f64, last));
    }
    points
}

#[expect(clippy::cast_precision_loss, reason = "a picture has few hundred dots")]
fn chart(frame: &mut Frame<'_>, area: Rect, report: &Report, space: &SpaceReport, state: &State) {
    let now = state.elapsed().max(report.end.duration_ns.0).max(1);
    let points = &space.timeline.points;
    let of_break = steps(space, now, |index| points[index].break_bytes);
    let mapped = steps(space, now, |index| points[index].anonymous_bytes);
    let top = points
        .iter()
        .map(|point| point.break_bytes.max(point.anonymous_bytes))
        .max()
        .unwrap_or(0)
        .max(4096);
    let begin = space.started_ns.0;
    let block = Block::bordered()
        .border_style(faint())
        .title(Line::from(vec![
            Span::styled(" heap below the break ", strong().fg(BREAK)),
            Span::styled(" mapped memory ", strong().fg(MAPPED)),
        ]));
    let dataset = |data, color| {
        Dataset::default()
            .marker(Marker::Braille)
            .graph_type(GraphType::Line)
            .style(Style::new().fg(color))
            .data(data)
    };
    let half = begin.midpoint(now);
    let chart = Chart::new(vec![dataset(&mapped, MAPPED), dataset(&of_break, BREAK)])
        .block(block)
        .x_axis(
            Axis::default()
                .style(faint())
                .bounds([begin as f64, now.max(begin + 1) as f64])
                .labels([begin, half, now].map(words::duration)),
        )
        .y_axis(
            Axis::default()
                .style(faint())
                .bounds([0.0, top as f64 * 1.05])
                .labels([
                    "0 B".to_owned(),
                    ByteSize(top / 2).to_string(),
                    ByteSize(top).to_string(),
                ]),
        );
    frame.render_widget(chart, area);
}

fn size(bytes: Option<u64>) -> String {
    bytes.map_or_else(
        || words::UNKNOWN.to_owned(),
        |bytes| ByteSize(bytes).to_string(),
    )
}

fn figure(name: &str, value: &str, color: Option<Color>) -> Line<'static> {
    let style = color.map_or_else(strong, |color| strong().fg(color));
    Line::from(vec![
        Span::styled(format!(" {name:<16}"), faint()),
        Span::styled(format!("{value:>13}"), style),
    ])
}

fn figures(frame: &mut Frame<'_>, area: Rect, space: &SpaceReport, state: &State) {
    let (heap, mapped) = (&space.program_break, &space.anonymous);
    let back = |ratio: Option<f64>| ratio.map_or_else(|| "nothing grew".into(), words::percent);
    // On a small terminal, the allocator's account goes before what the report tells at the end.
    let is_roomy = area.height >= 15;
    let mut lines = vec![figure("break", &size(heap.end_bytes), Some(BREAK))];
    if is_roomy {
        lines.push(figure("  peak", &size(heap.peak_bytes), None));
        lines.push(figure("  gone back", &back(heap.returned_ratio), None));
    }
    let mapped_size = figure("mapped", &size(Some(mapped.end_bytes)), Some(MAPPED));
    lines.push(mapped_size);
    if is_roomy {
        lines.push(figure("  peak", &size(Some(mapped.peak_bytes)), None));
        lines.push(figure("  gone back", &back(mapped.returned_ratio), None));
    }
    lines.extend(rate_lines(state));
    let resident = space
        .timeline
        .points
        .iter()
        .rev()
        .find_map(|point| point.resident_bytes);
    lines.push(figure("resident", &size(resident), None));
    lines.extend(allocator_lines(space));
    let block = Block::bordered().border_style(faint()).title(" now ");
    frame.render_widget(Paragraph::new(lines).block(block), area);
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "not negative; casts of floats saturate"
)]
fn rate_lines(state: &State) -> [Line<'static>; 2] {
    let rates = state.rates();
    let calls = rates.map_or_else(
        || words::UNKNOWN.to_owned(),
        |rates| format!("{:.1}/s", rates.calls_per_second),
    );
    let bytes = rates.map_or_else(
        || words::UNKNOWN.to_owned(),
        |rates| format!("{}/s", ByteSize(rates.bytes_per_second as u64)),
    );
    [
        figure("growths", &calls, None),
        figure("growth", &bytes, None),
    ]
}

fn allocator_lines(space: &SpaceReport) -> Vec<Line<'static>> {
    let Some(allocator) = &space.allocator else {
        return vec![figure("malloc in use", words::UNKNOWN, None)];
    };
    let get = |name| {
        let last = allocator.last.as_ref()?;
        last.figures.get(name)
    };
    let name = words::cut(&words::harmless(&allocator.name), 13);
    vec![
        figure("malloc", &name, None),
        figure("  in use", &size(get("in_use_bytes")), None),
        figure("  obtained", &size(get("obtained_bytes")), None),
        figure("  free", &size(get("free_bytes")), None),
    ]
}

fn growers(frame: &mut Frame<'_>, area: Rect, space: &SpaceReport, state: &mut State) {
    let paths = state.paths(space);
    let last = paths.len().saturating_sub(1);
    let selected = state.selected.min(last);
    let room = usize::from(area.width).saturating_sub(45);
    let rows = paths.iter().map(|path| {
        let growth = &path.growth;
        let way = call_paths::way(path.culprit.as_ref(), &path.path);
        Row::new([
            format!("{:>11}", ByteSize(growth.net_bytes).to_string()),
            format!("{:>10}", ByteSize(growth.grown_bytes).to_string()),
            format!("{:>10}", ByteSize(growth.shrunk_bytes).to_string()),
            format!("{:>7}", growth.grow_calls),
            words::cut(&words::harmless(&way), room),
        ])
    });
    let title = format!(" what made memory grow, by {} ", state.order.name());
    let widths = [11, 10, 10, 7].map(Constraint::Length);
    let table = Table::new(rows, widths.into_iter().chain([Constraint::Fill(1)]))
        .header(
            Row::new([
                "still there",
                "     grown",
                " gone back",
                "  calls",
                "function ← its callers",
            ])
            .style(faint()),
        )
        .row_highlight_style(Style::new().add_modifier(Modifier::REVERSED))
        .block(Block::bordered().border_style(faint()).title(title));
    let mut place = TableState::default().with_selected((!paths.is_empty()).then_some(selected));
    let is_empty = paths.is_empty();
    frame.render_stateful_widget(table, area, &mut place);
    if is_empty && area.height > 3 {
        let inside = Rect {
            x: area.x + 2,
            y: area.y + 2,
            width: area.width - 4,
            height: 1,
        };
        frame.render_widget(
            Paragraph::new("nothing has grown with a recorded stack").style(faint()),
            inside,
        );
    }
    state.selected = selected;
}

fn process_list(frame: &mut Frame<'_>, area: Rect, report: &Report, shown: &SpaceReport) {
    let room = usize::from(area.height.saturating_sub(2)).min(MOST_PROCESSES);
    let at = report
        .processes
        .iter()
        .position(|process| process.pid == shown.pid)
        .unwrap_or(0);
    // What is shown stays in sight.
    let first = at.saturating_sub(room.saturating_sub(1));
    let rows = report
        .processes
        .iter()
        .skip(first)
        .take(room)
        .map(|process| {
            let mark = if process.pid == shown.pid { "▶" } else { " " };
            let row = Row::new([
                format!("{mark} {}", process.pid),
                size(heap_of(report, process)),
                how_it_is(process.outcome),
                words::command(&process.program, &process.arguments),
            ]);
            if process.outcome.is_some() {
                row.style(faint())
            } else {
                row
            }
        });
    let title = format!(
        " {} ",
        words::count(report.totals.processes, "process", "processes")
    );
    let table = Table::new(
        rows,
        [
            Constraint::Length(11),
            Constraint::Length(10),
            Constraint::Length(20),
            Constraint::Fill(1),
        ],
    )
    .block(Block::bordered().border_style(faint()).title(title));
    frame.render_widget(table, area);
}

/// The heap of the program that a process ran last.
fn heap_of(report: &Report, process: &ProcessReport) -> Option<u64> {
    let id = process.address_spaces.last()?;
    let space = report.address_spaces.iter().find(|space| space.id == *id)?;
    space.program_break.end_bytes
}

fn stack(
    frame: &mut Frame<'_>,
    area: Rect,
    report: &Report,
    space: &SpaceReport,
    state: &mut State,
) {
    let paths = state.paths(space);
    let mut lines = Vec::new();
    match paths.get(state.selected) {
        None => lines.push(Line::raw("no call path is selected")),
        Some(path) => {
            let growth = &path.growth;
            lines.push(Line::styled(
                format!(
                    "{} still there, of {} grown in {}",
                    ByteSize(growth.net_bytes),
                    ByteSize(growth.grown_bytes),
                    words::count(growth.grow_calls, "call", "calls"),
                ),
                strong(),
            ));
            for stack in &path.stacks {
                lines.push(Line::raw(""));
                let frames = call_paths::stack_lines(report, Some(*stack), "");
                lines.extend(
                    frames
                        .iter()
                        .map(|line| Line::raw(words::harmless(&line.paint(false)))),
                );
            }
        }
    }
    let room = usize::from(area.height.saturating_sub(2));
    state.scroll = state.scroll.min(lines.len().saturating_sub(room));
    let seen: Vec<Line<'_>> = lines.into_iter().skip(state.scroll).take(room).collect();
    let block = Block::bordered()
        .border_style(faint())
        .title(" call stacks, innermost function first (Esc: back) ");
    frame.render_widget(Paragraph::new(seen).block(block), area);
}

fn middle(area: Rect, width: u16, height: u16) -> Rect {
    let (width, height) = (width.min(area.width), height.min(area.height));
    Rect {
        x: area.x + (area.width - width) / 2,
        y: area.y + (area.height - height) / 2,
        width,
        height,
    }
}

fn boxed(frame: &mut Frame<'_>, area: Rect, title: &str, lines: Vec<Line<'_>>) {
    let height = u16::try_from(lines.len() + 2).unwrap_or(u16::MAX);
    let area = middle(area, 70, height);
    frame.render_widget(Clear, area);
    frame.render_widget(
        Paragraph::new(lines).block(Block::bordered().title(title)),
        area,
    );
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines = HELP.iter().map(|(key, what)| {
        Line::from(vec![
            Span::styled(format!(" {key:<10}"), strong()),
            Span::raw(*what),
        ])
    });
    boxed(frame, area, " keys ", lines.collect());
}

fn quit(frame: &mut Frame<'_>, area: Rect) {
    let lines = [
        ("e", "end the program (SIGTERM), then print the report"),
        ("c", "close the view; the program runs on and is recorded"),
        ("Esc", "stay"),
    ];
    let lines = lines.map(|(key, what)| {
        Line::from(vec![
            Span::styled(format!(" {key:<5}"), strong()),
            Span::raw(what),
        ])
    });
    boxed(
        frame,
        area,
        " The program is still running ",
        lines.to_vec(),
    );
}
