//! Who moved the break: culprits, call paths by growth as a table and as a tree, whole stacks.

use std::collections::BTreeMap;

use super::style::Line;
use super::style::Tone;
use super::table::Cell;
use super::table::Column;
use super::table::Table;
use super::words;
use crate::event::ModuleKind;
use crate::event::StackId;
use crate::event::Truncation;
use crate::report::CallPath;
use crate::report::Report;
use crate::report::SpaceReport;
use crate::report::StackFrame;
use crate::report::StackModule;
use crate::report::StackReport;
use crate::report::Stacks;
use crate::symbols::Function;
use crate::units::ByteDelta;
use crate::units::ByteSize;

/// Call paths listed unless all are asked for.
const LISTED: usize = 5;
/// A branch of the tree with less than this share of the whole is not drawn.
const SMALLEST_BRANCH: f64 = 0.01;
/// Branches drawn below one function.
const MOST_BRANCHES: usize = 12;
/// Columns of a function's name in a path before its middle is left out.
const LONGEST_NAME: usize = 48;
/// Where programs and threads begin, in glibc, beside `__libc_start_…`; Rust has a function of its own around `main`.
const STARTS: [&str; 5] = ["_start", "start_thread", "clone3", "__clone3", "clone"];
/// Functions of a stack that are told in a sentence.
const CHAIN: usize = 5;
/// What stands for memory that no recorded stack made.
const NOBODY: &str = "no stack: there before, or not recorded";

/// The function to be named for a stack, with its line: `build (index.c:42)`; `None` when the stack was not recorded.
pub(super) fn culprit(report: &Report, stack: Option<StackId>) -> Option<String> {
    let stacks = report.stacks.as_ref()?;
    let stack = find(stacks, stack?)?;
    let culprit = stack.culprit?;
    let frame = frame_at(stacks, stack, culprit.depth as usize)?;
    Some(match frame.functions.get(culprit.function as usize) {
        Some(function) => name_and_line(function, module_of(stacks, frame)),
        None => unnamed(frame, module_of(stacks, frame)),
    })
}

fn find(stacks: &Stacks, id: StackId) -> Option<&StackReport> {
    // They are listed by number.
    let index = stacks
        .stacks
        .binary_search_by_key(&id, |stack| stack.id)
        .ok()?;
    stacks.stacks.get(index)
}

fn frame_at<'a>(stacks: &'a Stacks, stack: &StackReport, depth: usize) -> Option<&'a StackFrame> {
    stacks.frames.get(*stack.frames.get(depth)? as usize)
}

fn module_of<'a>(stacks: &'a Stacks, frame: &StackFrame) -> Option<&'a StackModule> {
    stacks.modules.get(frame.module? as usize)
}

fn file_name(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

/// `function (file:line)`, or `function (library)` without debug information.
fn name_and_line(function: &Function, module: Option<&StackModule>) -> String {
    let name = short(&function.name);
    match (&function.file, function.line) {
        (Some(file), Some(line)) => format!("{name} ({}:{line})", file_name(file)),
        (Some(file), None) => format!("{name} ({})", file_name(file)),
        (None, _) => match module.map(|module| file_name(&module.path)) {
            Some(module) if !module.is_empty() => format!("{name} ({module})"),
            _ => name,
        },
    }
}

fn unnamed(frame: &StackFrame, module: Option<&StackModule>) -> String {
    let offset = frame.offset.unwrap_or_default();
    match module {
        Some(module) if module.kind == ModuleKind::Generated => {
            format!("generated code at {offset}")
        }
        Some(module) if !module.path.is_empty() => {
            format!("{}+{offset}", file_name(&module.path))
        }
        _ => format!("unknown code at {offset}"),
    }
}

/// A function's name without the arguments of templates, and without its middle if it is still long.
fn short(name: &str) -> String {
    if words::columns(name) <= LONGEST_NAME {
        return name.to_owned();
    }
    let plain = without_arguments(name);
    let characters: Vec<char> = plain.chars().collect();
    if characters.len() <= LONGEST_NAME {
        return plain;
    }
    // The end names the function, the beginning its namespace.
    let head: String = characters[..LONGEST_NAME / 3].iter().collect();
    let tail: String = characters[characters.len() - LONGEST_NAME * 2 / 3 + 1..]
        .iter()
        .collect();
    format!("{head}…{tail}")
}

/// `a<b<c>>::d(int)` as `a<…>::d(…)`.
fn without_arguments(name: &str) -> String {
    let mut out = String::new();
    let mut depth = 0_u32;
    let mut previous = ' ';
    for character in name.chars() {
        // Neither `operator<<` nor `->` opens or closes anything.
        let is_arrow = character == '>' && previous == '-';
        let is_operator = out.ends_with("operator") || out.ends_with("operator<");
        match character {
            '<' | '(' if !is_operator => {
                if depth == 0 {
                    out.push(character);
                    out.push('…');
                }
                depth += 1;
            }
            '>' | ')' if depth > 0 && !is_arrow => {
                depth -= 1;
                if depth == 0 {
                    out.push(character);
                }
            }
            _ if depth == 0 => out.push(character),
            _ => {}
        }
        previous = character;
    }
    out
}

/// The call paths that made the memory of an address space grow, the largest first.
pub(super) fn growers(
    report: &Report,
    space: &SpaceReport,
    verbose: bool,
    width: usize,
) -> Vec<Line> {
    if report.stacks.is_none() {
        return Vec::new();
    }
    let worth_it = |path: &&CallPath| {
        let growth = &path.growth;
        verbose || growth.grown_bytes > 0 || growth.returned_bytes > 0 || growth.net_bytes > 0
    };
    let paths: Vec<&CallPath> = space.call_paths.iter().filter(worth_it).collect();
    let listed = if verbose || paths.len() <= LISTED + 1 {
        paths.len()
    } else {
        LISTED
    };
    let (shown, rest) = paths.split_at(listed);
    let mut table = Table::new(vec![
        Column::number("net").space(0),
        Column::number("grew"),
        Column::number("").space(1),
        Column::number("gave back").rank(1),
        Column::words("of").rank(2),
        Column::words("by").cuttable(),
    ]);
    for path in shown {
        table.row(grower(path));
    }
    let mut lines = if shown.is_empty() {
        Vec::new()
    } else {
        table.lines(width)
    };
    lines.extend(left_out(space, rest));
    lines
}

fn grower(path: &CallPath) -> Vec<Cell> {
    let growth = &path.growth;
    let of = match (
        path.program_break.grow_calls > 0 || path.program_break.return_calls > 0,
        path.anonymous.grow_calls > 0 || path.anonymous.return_calls > 0,
    ) {
        (true, false) => "break",
        (false, true) => "mmap",
        (true, true) => "both",
        (false, false) => "",
    };
    vec![
        Cell::of(Tone::Strong, &ByteSize(growth.net_bytes).to_string()),
        Cell::of(Tone::Growth, &bytes_more(growth.grown_bytes)),
        Cell::plain(format!("{}×", growth.grow_calls)),
        match growth.returned_bytes {
            0 => Cell::plain("–"),
            returned => Cell::of(Tone::Shrinkage, &bytes_less(returned)),
        },
        Cell::plain(of),
        Cell::plain(way(path.culprit.as_ref(), &path.path)),
    ]
}

fn bytes_more(bytes: u64) -> String {
    ByteDelta(i64::try_from(bytes).unwrap_or(i64::MAX)).to_string()
}

fn bytes_less(bytes: u64) -> String {
    ByteDelta(i64::try_from(bytes).map_or(i64::MIN, |bytes| -bytes)).to_string()
}

/// The culprit and its callers, on one line.
pub(crate) fn way(culprit: Option<&Function>, path: &[String]) -> String {
    let Some(culprit) = culprit else {
        return NOBODY.to_owned();
    };
    let first = match (&culprit.file, culprit.line) {
        (Some(_), Some(_)) => name_and_line(culprit, None),
        _ => path
            .first()
            .map_or_else(|| short(&culprit.name), |step| short_step(step)),
    };
    let names: Vec<&str> = path.iter().map(|step| name_of(step)).collect();
    let callers = names[..without_start(&names)]
        .iter()
        .skip(1)
        .copied()
        .map(short);
    std::iter::once(first)
        .chain(callers)
        .collect::<Vec<_>>()
        .join(" ← ")
}

/// The function's name in a step of a call path, `function (file)`.
fn name_of(step: &str) -> &str {
    step.rsplit_once(" (").map_or(step, |(name, _)| name)
}

/// How many functions there are without those outside of `main`, or of a thread's first function, by which every stack
/// begins; the innermost stays in any case.
fn without_start(names: &[&str]) -> usize {
    // What calls it has no name in a program stripped of its symbols.
    let end = names
        .iter()
        .position(|name| {
            name.starts_with("__libc_start_") || name.ends_with("__rust_begin_short_backtrace")
        })
        .unwrap_or(names.len());
    let is_start =
        |name: &str| STARTS.contains(&name) || name.starts_with("core::ops::function::FnOnce");
    let last = names[..end].iter().rposition(|name| !is_start(name));
    last.map_or(names.len().min(1), |index| index + 1)
}

/// A step of a call path, `function (file)`, with the function's name shortened.
fn short_step(step: &str) -> String {
    match step.rsplit_once(" (") {
        Some((name, file)) => format!("{} ({file}", short(name)),
        None => short(step),
    }
}

/// What is not shown: the smaller paths, and those that were not asked for.
fn left_out(space: &SpaceReport, rest: &[&CallPath]) -> Vec<Line> {
    let mut remarks = Vec::new();
    let net = |paths: &mut dyn Iterator<Item = &CallPath>| {
        paths.fold(0_u64, |sum, path| sum.saturating_add(path.growth.net_bytes))
    };
    if !rest.is_empty() {
        remarks.push(format!(
            "{}, {} net",
            words::count(rest.len() as u64, "more call path", "more call paths"),
            ByteSize(net(&mut rest.iter().copied()))
        ));
    }
    let whole = space.growth.iter().fold(0_u64, |sum, growth| {
        sum.saturating_add(growth.program_break.net_bytes)
            .saturating_add(growth.anonymous.net_bytes)
    });
    let elsewhere = whole.saturating_sub(net(&mut space.call_paths.iter()));
    if elsewhere > 0 {
        remarks.push(format!(
            "{} net by call paths left out by --focus or --ignore",
            ByteSize(elsewhere)
        ));
    }
    if remarks.is_empty() {
        return Vec::new();
    }
    vec![Line::of(Tone::Faint, &remarks.join("; "))]
}

/// Net growth as a tree, from the outermost functions to the culprits.
pub(super) fn tree(space: &SpaceReport, width: usize) -> Vec<Line> {
    let mut root = Branch::default();
    for path in &space.call_paths {
        let steps = path.path.iter().rev().map(String::as_str);
        root.add(steps, path.growth.net_bytes);
    }
    if root.net == 0 {
        return Vec::new();
    }
    let mut lines = vec![Line::of(
        Tone::Faint,
        "net growth from the outermost function to the culprit",
    )];
    let mut drawing = Drawing {
        whole: root.net,
        lines: &mut lines,
        width,
    };
    drawing.branches(&root, "");
    lines
}

/// A function in the tree, with all that it called.
#[derive(Debug, Default)]
struct Branch<'a> {
    net: u64,
    inner: BTreeMap<&'a str, Branch<'a>>,
}

impl<'a> Branch<'a> {
    fn add(&mut self, steps: impl Iterator<Item = &'a str>, net: u64) {
        self.net = self.net.saturating_add(net);
        let mut branch = self;
        let mut is_nobody = true;
        for step in steps {
            is_nobody = false;
            branch = branch.inner.entry(step).or_default();
            branch.net = branch.net.saturating_add(net);
        }
        if is_nobody {
            let nobody = branch.inner.entry(NOBODY).or_default();
            nobody.net = nobody.net.saturating_add(net);
        }
    }
}

struct Drawing<'a> {
    whole: u64,
    lines: &'a mut Vec<Line>,
    width: usize,
}

impl Drawing<'_> {
    fn branches(&mut self, outer: &Branch<'_>, indent: &str) {
        let mut inner: Vec<(&&str, &Branch<'_>)> = outer.inner.iter().collect();
        inner.sort_by_key(|(_, branch)| std::cmp::Reverse(branch.net));
        let drawn = inner
            .iter()
            .take(MOST_BRANCHES)
            .take_while(|(_, branch)| self.share(branch.net) >= SMALLEST_BRANCH)
            .count();
        let (drawn, rest) = inner.split_at(drawn);
        let rest_net: u64 = rest
            .iter()
            .fold(0, |sum, (_, branch)| sum.saturating_add(branch.net));
        for (index, (step, branch)) in drawn.iter().enumerate() {
            let is_last = index + 1 == drawn.len() && rest_net == 0;
            self.branch(step, branch, indent, is_last);
        }
        if rest_net > 0 {
            let text = format!("{indent}└ {} more", rest.len());
            self.line(rest_net, &text);
        }
    }

    fn branch(&mut self, step: &str, branch: &Branch<'_>, indent: &str, is_last: bool) {
        // Functions that merely lead to one other stand on one line with it.
        let mut names = vec![short_step(step)];
        let mut end = branch;
        while let Some((name, only)) = end
            .inner
            .iter()
            .next()
            .filter(|(_, inner)| end.inner.len() == 1 && inner.net == end.net)
        {
            names.push(short_step(name));
            end = only;
        }
        let corner = if is_last { '└' } else { '├' };
        let lead = format!("{indent}{corner} ");
        let room = self
            .width
            .saturating_sub(22 + words::columns(&lead))
            .max(20);
        let mut text = String::new();
        let mut is_first = true;
        for (index, name) in names.iter().enumerate() {
            let arrow = if index == 0 { "" } else { " → " };
            if words::columns(&text) + words::columns(arrow) + words::columns(name) > room
                && !text.is_empty()
            {
                self.part(branch.net, &lead, &text, is_first, is_last, indent);
                is_first = false;
                text = format!("→ {name}");
            } else {
                text.push_str(arrow);
                text.push_str(name);
            }
        }
        self.part(branch.net, &lead, &text, is_first, is_last, indent);
        let deeper = format!("{indent}{} ", if is_last { ' ' } else { '│' });
        self.branches(end, &deeper);
    }

    /// One line of a function and those that it merely leads to: the first has the figures.
    fn part(
        &mut self,
        net: u64,
        lead: &str,
        text: &str,
        is_first: bool,
        is_last: bool,
        indent: &str,
    ) {
        if is_first {
            self.line(net, &format!("{lead}{text}"));
        } else {
            let bar = if is_last { ' ' } else { '│' };
            self.lines.push(Line::of(
                Tone::Plain,
                &format!("{:18}{indent}{bar} {text}", ""),
            ));
        }
    }

    fn line(&mut self, net: u64, text: &str) {
        let mut line = Line::default();
        line.push(Tone::Strong, &format!("{:>10}", ByteSize(net).to_string()));
        let share = words::percent(self.share(net));
        line.push(Tone::Faint, &format!("  {share:>5} "));
        line.push(Tone::Plain, text);
        self.lines.push(line);
    }

    #[expect(clippy::cast_precision_loss, reason = "a share needs few digits")]
    fn share(&self, net: u64) -> f64 {
        net as f64 / self.whole as f64
    }
}

/// The whole stacks of the largest call paths, one for each.
pub(super) fn largest_stacks(report: &Report, space: &SpaceReport) -> Vec<Line> {
    let mut lines = Vec::new();
    let with_stacks = space
        .call_paths
        .iter()
        .filter(|path| path.culprit.is_some() && path.growth.grown_bytes > 0);
    for path in with_stacks.take(LISTED) {
        let stack = path.stacks.first().copied();
        let stack_lines = stack_lines(report, stack, "  ");
        if stack_lines.is_empty() {
            continue;
        }
        if !lines.is_empty() {
            lines.push(Line::default());
        }
        let others = match path.stacks.len().saturating_sub(1) {
            0 => String::new(),
            others => format!(
                "; {} with the same functions",
                words::count(others as u64, "more stack", "more stacks")
            ),
        };
        lines.push(Line::of(
            Tone::Faint,
            &format!(
                "stack that grew memory by {} in {}{others}",
                ByteSize(path.growth.grown_bytes),
                words::count(path.growth.grow_calls, "call", "calls"),
            ),
        ));
        lines.extend(stack_lines);
    }
    lines
}

/// The culprit of a stack and the nearest of its callers, with their lines: `free_all (a.c:12) ← main (a.c:40)`; `None`
/// when the stack was not recorded, or has nobody to name.
pub(super) fn chain(report: &Report, stack: Option<StackId>) -> Option<String> {
    let stacks = report.stacks.as_ref()?;
    let stack = find(stacks, stack?)?;
    let culprit = stack.culprit?;
    let mut names = Vec::new();
    let mut plain = Vec::new();
    for depth in culprit.depth as usize..stack.frames.len() {
        let Some(frame) = frame_at(stacks, stack, depth) else {
            continue;
        };
        let module = module_of(stacks, frame);
        if frame.functions.is_empty() {
            names.push(unnamed(frame, module));
            plain.push("");
        }
        let first = if depth == culprit.depth as usize {
            culprit.function as usize
        } else {
            0
        };
        for function in frame.functions.iter().skip(first) {
            names.push(name_and_line(function, module));
            plain.push(function.name.as_str());
        }
    }
    names.truncate(without_start(&plain));
    if names.len() > CHAIN {
        names.truncate(CHAIN - 1);
        names.push("…".to_owned());
    }
    (!names.is_empty()).then(|| names.join(" ← "))
}

/// A whole stack, innermost first; empty when it was not recorded.
pub(crate) fn stack_lines(report: &Report, stack: Option<StackId>, indent: &str) -> Vec<Line> {
    let Some((stacks, stack)) = report
        .stacks
        .as_ref()
        .zip(stack)
        .and_then(|(stacks, id)| Some((stacks, find(stacks, id)?)))
    else {
        return Vec::new();
    };
    let mut lines = Vec::new();
    for (depth, index) in stack.frames.iter().enumerate() {
        if let Some(frame) = stacks.frames.get(*index as usize) {
            frame_lines(stacks, stack, depth, frame, indent, &mut lines);
        }
    }
    if let Some(truncated) = stack.truncated {
        let why = match truncated {
            Truncation::Depth => "more frames; --stack-depth records more",
            Truncation::Bytes => "more frames; the stack is larger than what is read of it",
            Truncation::Lost => "nothing tells what is outside of this",
        };
        lines.push(Line::of(Tone::Faint, &format!("{indent}… {why}")));
    }
    lines
}

fn frame_lines(
    stacks: &Stacks,
    stack: &StackReport,
    depth: usize,
    frame: &StackFrame,
    indent: &str,
    lines: &mut Vec<Line>,
) {
    let module = module_of(stacks, frame);
    let is_culprit = |function: usize| {
        stack.culprit.is_some_and(|culprit| {
            culprit.depth as usize == depth && culprit.function as usize == function
        })
    };
    let mut push = |text: String, is_culprit: bool| {
        let (mark, tone) = if is_culprit {
            ('>', Tone::Strong)
        } else {
            (' ', Tone::Plain)
        };
        lines.push(Line::of(tone, &format!("{indent}{mark} {text}")));
    };
    if frame.functions.is_empty() {
        // Once for each module.
        let is_told = stack.frames[..depth].iter().any(|index| {
            let before = stacks.frames.get(*index as usize);
            before
                .is_some_and(|before| before.functions.is_empty() && before.module == frame.module)
        });
        let build_id = module
            .and_then(|module| module.build_id.as_deref())
            .filter(|_| !is_told)
            .map(|id| format!(" (build ID {id})"))
            .unwrap_or_default();
        push(
            format!("{}{build_id}", unnamed(frame, module)),
            is_culprit(0),
        );
    }
    let last = frame.functions.len().saturating_sub(1);
    for (number, function) in frame.functions.iter().enumerate() {
        let note = if number < last {
            ", inlined".to_owned()
        } else {
            match &frame.language {
                Some(language) => format!(", {language}"),
                None => String::new(),
            }
        };
        push(
            format!("{}{note}", name_and_line(function, module)),
            is_culprit(number),
        );
    }
}

/// In a sentence: whose growth it mostly was; `None` when no one call path stands out.
pub(super) fn main_grower(report: &Report, space: &SpaceReport) -> Option<String> {
    report.stacks.as_ref()?;
    let mut by_culprit: BTreeMap<&str, (u64, &CallPath)> = BTreeMap::new();
    let mut whole = 0_u64;
    for path in &space.call_paths {
        let grown = path.growth.grown_bytes;
        whole = whole.saturating_add(grown);
        if let Some(culprit) = &path.culprit {
            let entry = by_culprit.entry(&culprit.name).or_insert((0, path));
            entry.0 = entry.0.saturating_add(grown);
        }
    }
    let (_, (grown, path)) = by_culprit
        .into_iter()
        .max_by_key(|(_, (grown, _))| *grown)?;
    let share = words::share(grown, whole).filter(|share| *share >= 0.5)?;
    let name = match (&path.culprit, path.path.first()) {
        (Some(culprit), _) if culprit.line.is_some() => name_and_line(culprit, None),
        (_, Some(step)) => short_step(step),
        _ => return None,
    };
    Some(format!(
        "{} of the growth ({}) was asked for by {name}",
        words::percent(share),
        ByteSize(grown)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_end_at_main_and_at_a_threads_function() {
        assert_eq!(
            without_start(&["grow", "main", "__libc_start_call_main", "_start"]),
            2
        );
        assert_eq!(
            without_start(&["sqlite3+0x911d", "__libc_start_main", "sqlite3+0x9a0e"]),
            1
        );
        assert_eq!(without_start(&["work", "start_thread", "clone3"]), 1);
        let rust = [
            "table::grow",
            "table::main",
            "core::ops::function::FnOnce::call_once",
            "std::sys::backtrace::__rust_begin_short_backtrace",
            "std::rt::lang_start::{{closure}}",
        ];
        assert_eq!(without_start(&rust), 2);
        assert_eq!(without_start(&["_start"]), 1);
        assert_eq!(without_start(&["grow", "main"]), 2);
        assert_eq!(without_start(&[]), 0);
    }

    #[test]
    fn long_names_keep_their_ends() {
        assert_eq!(short("build_index"), "build_index");
        assert_eq!(
            short(
                "std::vector<std::pair<int, std::string>, std::allocator<std::pair<int, std::string>>>::push_back(int)"
            ),
            "std::vector<…>::push_back(…)"
        );
        assert!(words::columns(&short(&"x".repeat(500))) <= LONGEST_NAME);
        assert_eq!(
            without_arguments("ns::operator<<(std::ostream&, int)"),
            "ns::operator<<(…)"
        );
    }
}
