//! The report for people: one screen, the verdict first, then the numbers behind it, then their story over time.

use crate::event::MemoryFigures;
use crate::event::Notice;
use crate::event::NoticeCode;
use crate::event::Outcome;
use crate::event::Stops;
use crate::report::CallCount;
use crate::report::Difference;
use crate::report::ProcessReport;
use crate::report::Report;
use crate::report::SpaceOrigin;
use crate::report::SpaceReport;
use crate::report::Step;
use crate::report::Steps;
use crate::units::Address;
use crate::units::ByteDelta;
use crate::units::ByteSize;

use super::TextOptions;
use super::allocator;
use super::allocator::HeapErrorPart;
use super::allocator::Paragraph;
use super::call_paths;
use super::chart;
use super::explanation;
use super::heap;
use super::layout;
use super::page::Page;
use super::style::Line;
use super::style::Tone;
use super::table::Cell;
use super::table::Column;
use super::table::Table;
use super::verdict;
use super::words;

/// Lines of a report when nothing odd happened: what a small terminal shows at once.
const SCREEN: usize = 25;
/// Rows that the steps and the layout share.
const FEWEST_ROWS: usize = 6;
const MOST_ROWS: usize = 8;
/// Columns between things that stand side by side.
const GUTTER: usize = 3;
/// What stands above the picture of the address space.
const PICTURE_HEADING: &str = "address space, high to low, log scale";
/// Columns that the picture needs for its heading and for bars that tell sizes apart.
const NARROWEST_PICTURE: usize = PICTURE_HEADING.len();
/// Processes listed unless all are asked for.
const LISTED_PROCESSES: usize = 8;
/// Differences listed unless all are asked for.
const LISTED_DIFFERENCES: usize = 3;

/// Writes the report.
pub(super) fn render(report: &Report, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let mut page = Page::new(options);
    page.headlines(report);
    if let Some(space) = report.main() {
        page.numbers(report, space);
        page.allocator(report, space);
        page.section(chart::lines(space, report.end.duration_ns, page.width));
        page.section(call_paths::growers(report, space, page.verbose, page.width));
        page.section(allocator::samples(space, page.verbose, page.width));
        if page.verbose {
            page.section(call_paths::tree(space, page.width));
            page.section(call_paths::largest_stacks(report, space));
            page.everything(report, space);
        } else {
            page.steps_and_picture(report, space);
        }
    }
    page.processes(report);
    if page.verbose {
        page.circumstances(report);
    }
    page.absences(report);
    page.checks(report);
    page.paragraphs(allocator::checks(report, page.verbose));
    page.notices(report);
    page.paint(options.color)
}

impl Page {
    /// The verdict, what ran, and the sums when there was more than one process.
    fn headlines(&mut self, report: &Report) {
        for part in allocator::heap_errors(report, self.verbose) {
            match part {
                HeapErrorPart::Paragraph(paragraph) => self.paragraphs(vec![paragraph]),
                HeapErrorPart::Stack(lines) => self.lines.extend(lines),
            }
        }
        let sentences: Vec<String> = verdict::verdict(report)
            .iter()
            .map(|sentence| format!("breaktrace: {}", words::harmless(sentence)))
            .collect();
        let fits = sentences
            .iter()
            .find(|sentence| words::columns(sentence) <= self.width);
        if let Some(sentence) = fits.or(sentences.last()) {
            self.paragraph(Tone::Strong, sentence);
        }
        match verdict::first_process(report) {
            Some(process) => {
                let fate = verdict::fate(report, process, self.width);
                self.paragraph(Tone::Plain, &fate);
            }
            None => self.paragraph(Tone::Plain, &command_without_process(report)),
        }
        if report.totals.processes > 1 {
            self.paragraph(Tone::Plain, &totals(report));
        }
    }

    /// The sizes of break, mmap and resident memory, and what else is worth a word.
    fn numbers(&mut self, report: &Report, space: &SpaceReport) {
        if report.address_spaces.len() > 1 {
            let command = words::command(&space.program, &space.arguments);
            let pid = format!(" (pid {}):", space.pid);
            let command = words::cut(&command, self.width - pid.len());
            self.section(vec![Line::of(Tone::Strong, &format!("{command}{pid}"))]);
        }
        self.lines.extend(sizes(report, space).lines(self.width));
        if let Some(text) = call_paths::main_grower(report, space) {
            self.entry(Tone::Plain, "mostly    ", &text);
        }
        let largest = space.program_break.steps.kept.iter().rev();
        if let Some(text) = largest
            .max_by_key(|step| step.delta_bytes)
            .filter(|step| step.delta_bytes > 0)
            .and_then(explanation::sentence)
        {
            self.entry(Tone::Plain, "largest   ", &text);
        }
        let also = remarks(space);
        if !also.is_empty() {
            self.entry(Tone::Plain, "also      ", &also.join("; "));
        }
        if self.verbose {
            self.entry(Tone::Plain, "heap      ", &addresses_of_break(space));
        }
    }

    fn paragraphs(&mut self, paragraphs: Vec<Paragraph>) {
        for Paragraph { tone, lead, text } in paragraphs {
            if lead.is_empty() {
                self.paragraph(tone, &text);
            } else {
                self.entry(tone, lead, &text);
            }
        }
    }

    /// The allocator's own view, where it has one, or why it has none.
    fn allocator(&mut self, report: &Report, space: &SpaceReport) {
        let instead = allocator::instead_of_figures(space);
        self.paragraphs(instead.into_iter().collect());
        if let Some(sum) = allocator::sum(report, space) {
            self.section(sum.lines(self.width));
        }
        self.heap(space);
        self.paragraphs(allocator::findings(report, space, self.verbose));
        if self.verbose {
            for table in allocator::details(space) {
                self.section(table.lines(self.width));
            }
        }
    }

    /// The heap of the program's own malloc, where it was looked through from outside.
    fn heap(&mut self, space: &SpaceReport) {
        for (index, text) in heap::section(space, self.verbose).iter().enumerate() {
            let lead = if index == 0 {
                "malloc    "
            } else {
                "          "
            };
            self.entry(Tone::Plain, lead, text);
        }
    }

    /// The telling steps beside the picture of the address space, or above it when there is no room beside.
    fn steps_and_picture(&mut self, report: &Report, space: &SpaceReport) {
        let rows = if report.processes.len() > 1 {
            MOST_ROWS
        } else {
            // Beside the rows there are an empty line, a heading and the line about checks.
            SCREEN
                .saturating_sub(self.lines.len() + 3)
                .clamp(FEWEST_ROWS, MOST_ROWS)
        };
        let (of, steps) = if verdict::mmap_dominates(space) {
            ("mmap", &space.anonymous.steps)
        } else {
            ("break", &space.program_break.steps)
        };
        let told = StepsTold {
            of,
            by_allocator: allocator::last(space).is_some(),
        };
        let beside_picture = self.width - GUTTER - NARROWEST_PICTURE;
        if told.by_allocator {
            // Why each step was made is worth the width that the picture would take.
            self.section(telling_steps(report, told, steps, rows, self.width));
            return;
        }
        let has_stacks = steps.kept.iter().any(|step| step.stack.is_some());
        // The names of culprits are not cut to make room for the picture; other columns may go.
        let room = if has_stacks {
            usize::MAX
        } else {
            beside_picture
        };
        let mut lines = telling_steps(report, told, steps, rows, room);
        let left_width = lines.iter().map(Line::width).max().unwrap_or(0);
        let is_beside = !lines.is_empty() && left_width <= beside_picture;
        if !is_beside && has_stacks {
            // So is who made it.
            self.section(telling_steps(report, told, steps, rows, self.width));
            return;
        }
        if !is_beside {
            lines = telling_steps(report, told, steps, rows, self.width);
        }
        let picture_width = if is_beside {
            self.width - left_width - GUTTER
        } else {
            self.width
        };
        let mut picture = layout::picture(space, picture_width, rows);
        if !picture.is_empty() {
            picture.insert(0, Line::of(Tone::Faint, PICTURE_HEADING));
        }
        if is_beside {
            self.section(beside(lines, picture, left_width + GUTTER));
        } else {
            self.section(lines);
            self.section(picture);
        }
    }

    /// All steps, the whole layout and the calls of an address space.
    fn everything(&mut self, report: &Report, space: &SpaceReport) {
        for (of, steps) in [
            ("break", &space.program_break.steps),
            ("mmap", &space.anonymous.steps),
        ] {
            let told = StepsTold {
                of,
                by_allocator: allocator::last(space).is_some(),
            };
            self.section(all_steps(report, told, steps, self.width));
            self.reasons(steps);
        }
        if !space.layout.is_empty() {
            self.section(layout::every_segment(space, self.width));
        }
        if !report.totals.calls.is_empty() {
            self.section(calls(report, space).lines(self.width));
        }
    }

    /// What the size of each step is made of, where malloc's arithmetic tells.
    fn reasons(&mut self, steps: &Steps) {
        let mut is_first = true;
        for step in &steps.kept {
            if let Some(sentence) = explanation::sentence(step) {
                if std::mem::take(&mut is_first) {
                    self.section(vec![Line::of(
                        Tone::Strong,
                        "why so much, by glibc's own arithmetic",
                    )]);
                }
                self.entry(Tone::Plain, &format!("{:>8}  ", step.number), &sentence);
            }
        }
    }

    /// The processes by growth, when there was more than one.
    fn processes(&mut self, report: &Report) {
        let is_worth_it =
            report.processes.len() > 1 || (self.verbose && !report.processes.is_empty());
        if !is_worth_it {
            return;
        }
        let mut accounts: Vec<Account<'_>> = report
            .processes
            .iter()
            .map(|process| Account::of(report, process))
            .collect();
        // Stable: those that grew alike stay in order of appearance.
        accounts.sort_by_key(|account| std::cmp::Reverse((account.grown, account.mapped_peak)));
        let listed = if self.verbose || accounts.len() <= LISTED_PROCESSES + 1 {
            accounts.len()
        } else {
            LISTED_PROCESSES
        };
        let (shown, rest) = accounts.split_at(listed);
        let mut lines = processes_table(shown).lines(self.width);
        if !rest.is_empty() {
            let grown = rest
                .iter()
                .fold(0_u64, |sum, account| sum.saturating_add(account.grown));
            lines.push(Line::of(
                Tone::Faint,
                &format!(
                    "{} more processes, whose heaps grew {} together",
                    rest.len(),
                    ByteSize(grown)
                ),
            ));
        }
        self.section(lines);
    }

    /// Which of several programs ran without the allocator that was asked for.
    fn absences(&mut self, report: &Report) {
        if let Some(text) = allocator::absences(report) {
            self.paragraph(Tone::Plain, &text);
        }
    }

    /// How the recording was made.
    fn circumstances(&mut self, report: &Report) {
        let recording = &report.recording;
        let machine = &recording.machine;
        let stops = match recording.capture.stops {
            Stops::MemoryCalls => "memory calls stopped the program",
            Stops::EveryCall => "every system call stopped the program",
        };
        let text = format!(
            "recorded by {} {} on Linux {} ({}, pages of {}): {}, {stops}",
            report.tool.name,
            report.tool.version,
            machine.kernel,
            machine.architecture,
            ByteSize(machine.page_size),
            words::count(report.end.events, "event", "events"),
        );
        self.lines.push(Line::default());
        self.paragraph(Tone::Faint, &text);
    }

    /// How the events compare with `/proc`.
    fn checks(&mut self, report: &Report) {
        let spaces = &report.address_spaces;
        if spaces.is_empty() {
            return;
        }
        let sum = |of: fn(&SpaceReport) -> u64| spaces.iter().map(of).fold(0, u64::saturating_add);
        let made = sum(|space| space.checks.made);
        let differing = sum(|space| space.checks.differing);
        let skipped = sum(|space| space.checks.skipped);
        let skipped_text = match skipped {
            0 => String::new(),
            _ => format!(", {skipped} skipped since a call was under way"),
        };
        // Common, harmless, and explained in full on request: no line of its own.
        let held = if has_notice(report, NoticeCode::LatencyHeld) && !self.verbose {
            "; wake-up latency held down"
        } else {
            ""
        };
        let times = words::count(made, "time", "times");
        let (tone, finding) = match (made, differing) {
            (0, _) => (Tone::Plain, "not checked against /proc/PID/maps".to_owned()),
            (_, 0) => (
                Tone::Faint,
                format!("checked against /proc/PID/maps {times}: equal"),
            ),
            _ => (
                Tone::Warning,
                format!("checked against /proc/PID/maps {times}: {differing} differed"),
            ),
        };
        self.paragraph(tone, &format!("{finding}{skipped_text}{held}"));
        self.differences(spaces);
    }

    fn differences(&mut self, spaces: &[SpaceReport]) {
        let differences: Vec<&Difference> = spaces
            .iter()
            .flat_map(|space| &space.checks.differences)
            .collect();
        let listed = if self.verbose {
            differences.len()
        } else {
            LISTED_DIFFERENCES
        };
        for difference in differences.iter().take(listed) {
            let text = self.difference(difference);
            self.entry(Tone::Plain, "  ", &text);
        }
        let rest = differences.len().saturating_sub(listed);
        if rest > 0 {
            self.push(
                Tone::Faint,
                &format!(
                    "  {}",
                    words::count(rest as u64, "more difference", "more differences")
                ),
            );
        }
    }

    fn difference(&self, difference: &Difference) -> String {
        let Difference {
            time_ns,
            start,
            end,
            expected,
            found,
        } = difference;
        let place = if self.verbose {
            format!(" from {start} to {end}")
        } else {
            String::new()
        };
        format!(
            "at {}, {}{place}: expected {expected}, found {found}",
            words::duration(time_ns.0),
            ByteSize(end.above(*start))
        )
    }

    fn notices(&mut self, report: &Report) {
        let is_said_already =
            |notice: &&Notice| notice.code == NoticeCode::LatencyHeld && !self.verbose;
        let notices: Vec<&Notice> = report
            .notices
            .iter()
            .filter(|notice| !is_said_already(notice))
            .collect();
        for notice in notices {
            let (tone, word) = match notice.code {
                NoticeCode::Incomplete
                | NoticeCode::ProcessNotSeen
                | NoticeCode::ThreadNotTraced
                | NoticeCode::NotDecoded
                | NoticeCode::StacksIncomplete => (Tone::Warning, "warning"),
                NoticeCode::SeccompUnavailable
                | NoticeCode::NoNewPrivs
                | NoticeCode::AslrStillOn
                | NoticeCode::LatencyHeld
                | NoticeCode::BreakRounded
                | NoticeCode::StillRunning
                | NoticeCode::NoticesLeftOut => (Tone::Plain, "note"),
            };
            self.paragraph(tone, &format!("{word}: {}", notice.message));
        }
    }
}

fn has_notice(report: &Report, code: NoticeCode) -> bool {
    report.notices.iter().any(|notice| notice.code == code)
}

fn command_without_process(report: &Report) -> String {
    let arguments = &report.recording.command;
    match arguments.first() {
        Some(program) => words::command(program, arguments),
        None => {
            let pids: Vec<String> = report.recording.pids.iter().map(u32::to_string).collect();
            format!("asked for: pid {}", pids.join(", "))
        }
    }
}

fn totals(report: &Report) -> String {
    let totals = &report.totals;
    let back = match words::share(totals.break_shrunk_bytes, totals.break_grown_bytes) {
        Some(share) => format!(", {} went back", words::percent(share)),
        None => String::new(),
    };
    format!(
        "{}: heaps grew {} in all{back}; mmap gave {}",
        words::count(totals.processes, "process", "processes"),
        ByteSize(totals.break_grown_bytes),
        ByteSize(totals.anonymous_grown_bytes),
    )
}

fn size_or_unknown(bytes: Option<u64>) -> String {
    bytes.map_or_else(|| words::UNKNOWN.to_owned(), |b| ByteSize(b).to_string())
}

/// The table of sizes: where each began, how far it went, where it ended, and what came and went in between.
fn sizes(report: &Report, space: &SpaceReport) -> Table {
    let start = match space.origin {
        SpaceOrigin::Attached => "at attach",
        SpaceOrigin::Exec => "start",
        SpaceOrigin::Forked(_) => "at fork",
    };
    let end = match verdict::end_of(report, space).as_str() {
        "at exit" => "at exit",
        "at detach" => "at detach",
        "so far" => "now",
        _ => "end",
    };
    let mut table = Table::new(vec![
        Column::words("").space(0),
        Column::number(start),
        Column::number("peak"),
        Column::number(end),
        Column::number("").rank(2),
        Column::number("grew").space(1),
        Column::number("").rank(2),
        Column::number("shrank").space(1),
        Column::number("back").rank(1),
    ]);
    let program_break = &space.program_break;
    table.row(vec![
        Cell::of(Tone::Strong, "break"),
        Cell::plain(size_or_unknown(program_break.start_bytes)),
        Cell::plain(size_or_unknown(program_break.peak_bytes)),
        Cell::plain(size_or_unknown(program_break.end_bytes)),
        Cell::plain(format!("{}×", program_break.grow_calls)),
        growth(program_break.grown_bytes),
        Cell::plain(format!("{}×", program_break.shrink_calls)),
        shrinkage(program_break.shrunk_bytes),
        back(program_break.returned_ratio),
    ]);
    let anonymous = &space.anonymous;
    table.row(vec![
        Cell::of(Tone::Strong, "mmap"),
        Cell::plain(ByteSize(anonymous.start_bytes)),
        Cell::plain(ByteSize(anonymous.peak_bytes)),
        Cell::plain(ByteSize(anonymous.end_bytes)),
        Cell::plain(format!("{}×", anonymous.grow_calls)),
        growth(anonymous.grown_bytes),
        Cell::plain(format!("{}×", anonymous.shrink_calls)),
        shrinkage(anonymous.shrunk_bytes),
        back(anonymous.returned_ratio),
    ]);
    let of = |memory: Option<MemoryFigures>, figure: fn(MemoryFigures) -> u64| {
        Cell::plain(size_or_unknown(memory.map(figure)))
    };
    table.row(vec![
        Cell::of(Tone::Strong, "resident"),
        of(space.memory_at_start, |memory| memory.resident_bytes),
        of(space.memory_at_end, |memory| memory.resident_peak_bytes),
        of(space.memory_at_end, |memory| memory.resident_bytes),
        Cell::running_on(&residence(space)),
    ]);
    table
}

fn growth(bytes: u64) -> Cell {
    Cell::of(
        Tone::Growth,
        &ByteDelta(i64::try_from(bytes).unwrap_or(i64::MAX)).to_string(),
    )
}

fn shrinkage(bytes: u64) -> Cell {
    Cell::of(
        Tone::Shrinkage,
        &ByteDelta(i64::try_from(bytes).map_or(i64::MIN, |bytes| -bytes)).to_string(),
    )
}

fn back(ratio: Option<f64>) -> Cell {
    // Without growth there is nothing of which a share could have gone back.
    Cell::plain(ratio.map_or_else(|| "–".to_owned(), words::percent))
}

/// How much of the heap is in memory, and what is swapped out.
fn residence(space: &SpaceReport) -> String {
    let heap = space.program_break.end_bytes;
    let of_heap = match (space.program_break.pages_at_end, heap) {
        (Some(pages), Some(bytes)) => words::share(pages.resident_bytes.min(bytes), bytes)
            .map(|share| format!("{} of the heap", words::percent(share))),
        _ => None,
    };
    let swapped = space
        .memory_at_end
        .map(|memory| format!("{} swapped", ByteSize(memory.swapped_bytes)));
    let parts: Vec<String> = of_heap.into_iter().chain(swapped).collect();
    parts.join(", ")
}

/// What does not happen in every program, and is said only when it did.
fn remarks(space: &SpaceReport) -> Vec<String> {
    let program_break = &space.program_break;
    let anonymous = &space.anonymous;
    let mut remarks = Vec::new();
    if !program_break.exact && program_break.end_bytes.is_some() {
        remarks.push("the break is known to the page".to_owned());
    }
    if space.origin == SpaceOrigin::Attached && space.memory_at_end.is_some() {
        remarks.push("the resident peak is since the program began".to_owned());
    }
    if program_break.refused_calls > 0 {
        let calls = words::count(program_break.refused_calls, "brk", "brks");
        remarks.push(format!("{calls} refused by the kernel"));
    }
    for call in space.calls.iter().filter(|call| call.name != "brk") {
        if call.failed > 0 {
            remarks.push(format!("{} {} failed", call.failed, call.name));
        }
    }
    let mut sizes = |bytes: u64, what: &str| {
        if bytes > 0 {
            remarks.push(format!("{} {what}", ByteSize(bytes)));
        }
    };
    sizes(anonymous.reserved_bytes, "reserved without access");
    sizes(
        program_break.advised_bytes,
        "of the heap given back by madvise",
    );
    sizes(
        anonymous.dontneed_bytes,
        "of mmap given back by MADV_DONTNEED",
    );
    sizes(anonymous.lazily_freed_bytes, "of mmap offered by MADV_FREE");
    if let Some(malloc) = &space.malloc {
        let explained = &malloc.explained;
        sizes(
            explained.arena_shrunk_bytes,
            "of that as malloc made arenas of threads smaller",
        );
        sizes(
            explained.malloc_trim_advised_bytes,
            "given back by malloc_trim inside free chunks",
        );
    }
    remarks
}

fn addresses_of_break(space: &SpaceReport) -> String {
    let program_break = &space.program_break;
    let address = |address: Option<Address>| {
        address.map_or_else(|| words::UNKNOWN.to_owned(), |a| a.to_string())
    };
    format!(
        "from {} to {}; {} where it ends; {} of mmap; {}",
        address(program_break.start),
        address(program_break.end),
        words::count(program_break.query_calls, "call asked", "calls asked"),
        words::count(space.anonymous.areas, "area", "areas"),
        virtual_size(space.memory_at_end),
    )
}

fn virtual_size(memory: Option<MemoryFigures>) -> String {
    match memory {
        Some(memory) => format!(
            "address space {} (peak {})",
            ByteSize(memory.virtual_bytes),
            ByteSize(memory.virtual_peak_bytes)
        ),
        None => format!("size of the address space {}", words::UNKNOWN),
    }
}

/// Which steps are told, and how much of them.
#[derive(Clone, Copy)]
struct StepsTold {
    /// `break` or `mmap`.
    of: &'static str,
    /// Whether the bundled allocator tells why they were made.
    by_allocator: bool,
}

/// At most `rows` lines under a heading: all steps when they are few, else the first, the last and the largest.
fn telling_steps(
    report: &Report,
    told: StepsTold,
    steps: &Steps,
    rows: usize,
    width: usize,
) -> Vec<Line> {
    if steps.kept.is_empty() {
        return Vec::new();
    }
    let is_all = steps.total == steps.kept.len() as u64 && steps.kept.len() <= rows;
    let shown = if is_all {
        steps.kept.iter().collect()
    } else {
        most_telling(&steps.kept, rows.saturating_sub(1))
    };
    let mut columns = step_columns(told.of);
    if told.by_allocator {
        columns.extend(allocator::step_columns());
    }
    // Who did it is worth a column only when there is a choice.
    let has_threads = steps.kept.iter().any(|step| step.tid != steps.kept[0].tid);
    if has_threads {
        columns.push(Column::number("thread").rank(1));
    }
    let has_stacks = shown.iter().any(|step| step.stack.is_some());
    if has_stacks {
        columns.push(Column::words("by").cuttable());
    }
    let mut table = Table::new(columns);
    for step in &shown {
        let mut cells = step_cells(told.of, step);
        if told.by_allocator {
            cells.extend(allocator::step_cells(step));
        }
        if has_threads {
            cells.push(Cell::plain(step.tid));
        }
        if has_stacks {
            cells.push(culprit_cell(report, step));
        }
        table.row(cells);
    }
    let mut lines = table.lines(width);
    let left_out = steps.total.saturating_sub(shown.len() as u64);
    let mut remarks = Vec::new();
    if left_out > 0 {
        let steps = words::count(left_out, "step", "steps");
        remarks.push(format!("{steps} left out"));
    }
    if told.by_allocator {
        remarks.push(allocator::STEP_FIGURES_ARE.to_owned());
    }
    if !remarks.is_empty() {
        lines.push(Line::of(Tone::Faint, &remarks.join("; ")));
    }
    lines
}

fn step_columns(of: &str) -> Vec<Column> {
    let is_break = of == "break";
    let mut columns = vec![
        Column::number("step").space(0),
        Column::number("at"),
        Column::number(if is_break { "break" } else { "mmap" }),
        Column::number("then"),
    ];
    if !is_break {
        columns.push(Column::words("call"));
    }
    columns
}

/// Whom to name for a step.
fn culprit_cell(report: &Report, step: &Step) -> Cell {
    match call_paths::culprit(report, step.stack) {
        Some(culprit) => Cell::plain(culprit),
        None => Cell::plain("–"),
    }
}

fn step_cells(of: &str, step: &Step) -> Vec<Cell> {
    let tone = if step.delta_bytes < 0 {
        Tone::Shrinkage
    } else {
        Tone::Growth
    };
    let mut cells = vec![
        Cell::plain(step.number),
        Cell::plain(words::duration(step.time_ns.0)),
        Cell::of(tone, &ByteDelta(step.delta_bytes).to_string()),
        Cell::plain(ByteSize(step.after_bytes)),
    ];
    // Nothing but brk moves the break.
    if of != "break" {
        cells.push(Cell::plain(&step.call));
    }
    cells
}

/// The first and the last step, the largest each way, the one that reached the peak, and then the largest of the
/// rest; in order.
fn most_telling(kept: &[Step], rows: usize) -> Vec<&Step> {
    let mut candidates: Vec<&Step> = Vec::new();
    candidates.extend(kept.first());
    candidates.extend(kept.last());
    // Of equal ones the earliest: `max_by_key` takes the last, `min_by_key` the first.
    let from_the_end = || kept.iter().rev();
    candidates.extend(from_the_end().max_by_key(|step| step.delta_bytes));
    candidates.extend(kept.iter().min_by_key(|step| step.delta_bytes));
    candidates.extend(from_the_end().max_by_key(|step| step.after_bytes));
    let mut chosen: Vec<&Step> = Vec::new();
    for step in candidates.into_iter().take(rows) {
        if !chosen.contains(&step) {
            chosen.push(step);
        }
    }
    let rest: Vec<&Step> = kept.iter().filter(|step| !chosen.contains(step)).collect();
    chosen.extend(largest(rest, rows - chosen.len()));
    chosen.sort_by_key(|step| step.number);
    chosen
}

/// The `wanted` largest steps; of those that are alike, some from everywhere.
fn largest(mut steps: Vec<&Step>, wanted: usize) -> Vec<&Step> {
    let size = |step: &Step| step.delta_bytes.unsigned_abs();
    steps.sort_by_key(|step| std::cmp::Reverse(size(step)));
    let Some(smallest) = wanted.checked_sub(1).and_then(|last| steps.get(last)) else {
        steps.truncate(wanted);
        return steps;
    };
    let smallest = size(smallest);
    let (mut chosen, others): (Vec<&Step>, Vec<&Step>) =
        steps.into_iter().partition(|step| size(step) > smallest);
    let alike: Vec<&Step> = others
        .into_iter()
        .filter(|step| size(step) == smallest)
        .collect();
    let missing = wanted - chosen.len();
    chosen.extend((0..missing).map(|index| alike[(2 * index + 1) * alike.len() / (2 * missing)]));
    chosen
}

/// Every step that was kept, with its addresses.
fn all_steps(report: &Report, told: StepsTold, steps: &Steps, width: usize) -> Vec<Line> {
    if steps.kept.is_empty() {
        return Vec::new();
    }
    let mut columns = step_columns("mmap");
    columns[2].title = told.of;
    if told.by_allocator {
        columns.extend(allocator::step_columns());
    }
    columns.extend([
        Column::number("thread").rank(1),
        Column::number("from"),
        Column::number("to"),
    ]);
    let has_stacks = steps.kept.iter().any(|step| step.stack.is_some());
    if has_stacks {
        columns.push(Column::words("by").cuttable());
    }
    let mut table = Table::new(columns);
    for step in &steps.kept {
        let mut cells = step_cells("mmap", step);
        if told.by_allocator {
            cells.extend(allocator::step_cells(step));
        }
        cells.extend([
            Cell::plain(step.tid),
            Cell::plain(step.from),
            Cell::plain(step.to),
        ]);
        if has_stacks {
            cells.push(culprit_cell(report, step));
        }
        table.row(cells);
    }
    let mut lines = table.lines(width);
    let left_out = steps.total.saturating_sub(steps.kept.len() as u64);
    if left_out > 0 {
        let text = format!(
            "{} not kept",
            words::count(left_out, "step was", "steps were")
        );
        lines.push(Line::of(Tone::Faint, &text));
    }
    lines
}

/// Two blocks of lines next to each other.
fn beside(left: Vec<Line>, right: Vec<Line>, column: usize) -> Vec<Line> {
    let height = left.len().max(right.len());
    let mut left = left.into_iter();
    let mut right = right.into_iter();
    (0..height)
        .map(|_| {
            let mut line = left.next().unwrap_or_default();
            line.pad_to(column);
            line.append(right.next().unwrap_or_default());
            line
        })
        .collect()
}

/// Calls by name: those of the address space, and of all when there are several.
fn calls(report: &Report, space: &SpaceReport) -> Table {
    let has_several = report.address_spaces.len() > 1;
    let mut columns = vec![
        Column::words("call").space(0),
        Column::number("calls"),
        Column::number("failed"),
    ];
    if has_several {
        columns.extend([Column::number("all calls"), Column::number("all failed")]);
    }
    let mut table = Table::new(columns);
    for total in &report.totals.calls {
        let own = space.calls.iter().find(|call| call.name == total.name);
        let number = |of: fn(&CallCount) -> u64| Cell::plain(own.map_or(0, of));
        let mut cells = vec![
            Cell::plain(&total.name),
            number(|call| call.calls),
            number(|call| call.failed),
        ];
        if has_several {
            cells.extend([Cell::plain(total.calls), Cell::plain(total.failed)]);
        }
        table.row(cells);
    }
    table
}

/// What the address spaces of one process did.
struct Account<'a> {
    process: &'a ProcessReport,
    grown: u64,
    shrunk: u64,
    peak: Option<u64>,
    mapped_peak: u64,
}

impl<'a> Account<'a> {
    fn of(report: &Report, process: &'a ProcessReport) -> Self {
        let mut account = Self {
            process,
            grown: 0,
            shrunk: 0,
            peak: None,
            mapped_peak: 0,
        };
        // An address space that it merely borrows (vfork) is its owner's.
        let own = process
            .address_spaces
            .iter()
            .filter_map(|&id| report.space(id))
            .filter(|space| space.pid == process.pid);
        for space in own {
            account.grown = account
                .grown
                .saturating_add(space.program_break.grown_bytes);
            account.shrunk = account
                .shrunk
                .saturating_add(space.program_break.shrunk_bytes);
            account.peak = account.peak.max(space.program_break.peak_bytes);
            account.mapped_peak = account.mapped_peak.max(space.anonymous.peak_bytes);
        }
        account
    }
}

fn processes_table(accounts: &[Account<'_>]) -> Table {
    let mut table = Table::new(vec![
        Column::number("pid").space(0),
        Column::words("program").cuttable(),
        Column::number("heap grew"),
        Column::number("back").rank(3),
        Column::number("peak").rank(2),
        Column::number("mmap peak").rank(1),
        Column::words("end"),
    ]);
    for account in accounts {
        let process = account.process;
        table.row(vec![
            Cell::plain(process.pid),
            Cell::plain(words::command(&process.program, &process.arguments)),
            growth(account.grown),
            back(words::share(account.shrunk, account.grown)),
            Cell::plain(size_or_unknown(account.peak)),
            Cell::plain(ByteSize(account.mapped_peak)),
            Cell::plain(end_of_process(process.outcome)),
        ]);
    }
    table
}

fn end_of_process(outcome: Option<Outcome>) -> String {
    match outcome {
        Some(Outcome::Exited(code)) => format!("exit {code}"),
        Some(Outcome::Killed { signal, .. }) => words::signal(signal),
        Some(Outcome::Detached) => "runs on".to_owned(),
        Some(Outcome::Vanished) => "unseen".to_owned(),
        None => "running".to_owned(),
    }
}
