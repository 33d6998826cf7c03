//! The demonstration for people: the steps as a table, the numbers in it as sums, and what they say of malloc.

use super::Action;
use super::Call;
use super::Demonstration;
use super::Reason;
use super::Step;
use super::Sum;
use super::SumOf;
use super::TermKind;
use crate::render::TextOptions;
use crate::render::style::Line;
use crate::render::style::Tone;
use crate::render::table::Cell;
use crate::render::table::Column;
use crate::render::table::Table;
use crate::render::words;
use crate::units::Address;
use crate::units::ByteDelta;
use crate::units::ByteSize;
use crate::units::Exact;

/// Columns of the widest number in the sums.
const NUMBERS: usize = 10;

/// Writes a demonstration as text, with a final newline.
pub(super) fn render(demonstration: &Demonstration, options: TextOptions) -> String {
    let _charset = options.charset.enter();
    let width = options.width.max(TextOptions::NARROWEST);
    let mut lines = verdict(demonstration, width);
    lines.push(Line::default());
    lines.extend(steps(demonstration).lines(width));
    for sum in &demonstration.sums {
        lines.push(Line::default());
        lines.extend(sum_lines(sum, width));
    }
    lines.push(Line::default());
    for (tone, text) in conclusions(demonstration) {
        lines.extend(item(tone, &text, width));
    }
    lines
        .iter()
        .map(|line| line.clone().cut(width).paint(options.color) + "\n")
        .collect()
}

/// Text over as many lines as it takes.
fn paragraph(tone: Tone, text: &str, width: usize) -> Vec<Line> {
    words::wrap(&words::harmless(text), width)
        .iter()
        .map(|line| Line::of(tone, line))
        .collect()
}

/// A paragraph that is one of several.
fn item(tone: Tone, text: &str, width: usize) -> Vec<Line> {
    paragraph(tone, text, width.saturating_sub(2))
        .into_iter()
        .enumerate()
        .map(|(index, line)| {
            let mut item = Line::of(Tone::Faint, if index == 0 { "· " } else { "  " });
            item.append(line);
            item
        })
        .collect()
}

fn verdict(demonstration: &Demonstration, width: usize) -> Vec<Line> {
    let steps = &demonstration.steps;
    let mut lines = if demonstration.agrees {
        let text = format!(
            "The program and the trace agree at all {} steps: the break {}.",
            steps.len(),
            moved(steps.iter().filter(|step| step.change_bytes != 0).count())
        );
        paragraph(Tone::Strong, &text, width)
    } else {
        let differing: Vec<String> = steps
            .iter()
            .filter(|step| !step.agrees)
            .map(|step| step.number.to_string())
            .collect();
        let text = format!(
            "THE PROGRAM AND THE TRACE DIFFER at step {}: one of the two numbers is wrong.",
            differing.join(", ")
        );
        paragraph(Tone::Warning, &text, width)
    };
    lines.extend(paragraph(Tone::Faint, &circumstances(demonstration), width));
    lines
}

fn circumstances(demonstration: &Demonstration) -> String {
    let library = &demonstration.c_library;
    let version = library
        .version
        .as_ref()
        .map_or_else(String::new, |version| format!(" {version}"));
    let start = match demonstration.heap_start {
        Some(start) => format!("offsets count from the heap's start, {start}"),
        None => "the heap's start is unknown: offsets count from the first break".into(),
    };
    let with = match demonstration.influences.as_slice() {
        [] => String::new(),
        names => format!(" with {} set", names.join(", ")),
    };
    format!("{}{version}{with}; {start}", library.name)
}

fn moved(number: usize) -> String {
    match number {
        0 => "never moved".into(),
        1 => "moved once".into(),
        2 => "moved twice".into(),
        _ => format!("moved {number} times"),
    }
}

fn steps(demonstration: &Demonstration) -> Table {
    let mut table = Table::new(vec![
        Column::number("").space(0).rank(1),
        Column::words("the program").space(1),
        Column::number("saw sbrk(0)"),
        Column::number("change").rank(2),
        Column::words("traced"),
        Column::words("why").cuttable(),
    ]);
    let origin = demonstration
        .heap_start
        .or(demonstration.steps.first().map(|step| step.seen_break))
        .unwrap_or_default();
    for step in &demonstration.steps {
        table.row(vec![
            Cell::of(Tone::Faint, &step.number.to_string()),
            Cell::plain(done(step.action)),
            Cell::plain(offset(step.seen_break, origin)),
            change(step),
            traced(step, origin),
            why(step),
        ]);
    }
    table
}

fn done(action: Action) -> String {
    match action {
        Action::Begin => "begins".into(),
        Action::Malloc { block, bytes } => format!("{block} = malloc({})", ByteSize(bytes)),
        Action::Free { block } => format!("free({block})"),
    }
}

/// `+0x21000`.
fn offset(address: Address, origin: Address) -> String {
    let distance = address.offset_from(origin);
    let sign = if distance < 0 { '−' } else { '+' };
    format!("{sign}{:#x}", distance.unsigned_abs())
}

fn change(step: &Step) -> Cell {
    let tone = match step.change_bytes.signum() {
        1 => Tone::Growth,
        -1 => Tone::Shrinkage,
        _ => Tone::Faint,
    };
    match step.action {
        Action::Begin => Cell::default(),
        _ => Cell::of(tone, &ByteDelta(step.change_bytes).to_string()),
    }
}

fn traced(step: &Step, origin: Address) -> Cell {
    if !step.agrees {
        let text = step.traced_break.map_or_else(
            || words::UNKNOWN.to_owned(),
            |traced| offset(traced, origin),
        );
        return Cell::of(Tone::Warning, &text);
    }
    let calls: Vec<String> = step.calls.iter().map(call).collect();
    match calls.split_first() {
        None => Cell::of(Tone::Faint, "no call"),
        Some((first, rest)) if rest.iter().all(|call| call == first) && !rest.is_empty() => {
            Cell::plain(format!("{} {first}", calls.len()))
        }
        Some((first, [])) => Cell::plain(first),
        Some((_, _)) => Cell::plain(format!("{} calls", calls.len())),
    }
}

fn call(call: &Call) -> String {
    match *call {
        Call::Brk { .. } if call.only_asks() => "brk(0)".into(),
        Call::Brk { before: None, .. } => "brk".into(),
        Call::Brk { .. } => format!("brk {}", ByteDelta(call.moved_bytes())),
        Call::Other { name, bytes } => format!("{name} {}", ByteSize(bytes)),
    }
}

fn why(step: &Step) -> Cell {
    if !step.agrees {
        return Cell::of(Tone::Warning, "the trace differs");
    }
    let text = match step.reason {
        Reason::Begins => "the heap is empty".into(),
        Reason::Grown { sum } => format!("sum {sum}: more needed"),
        // The first tells the rule, the others the distance that it makes.
        Reason::CutFromTop { after: 'a', .. } => "cut from what is left".into(),
        Reason::CutFromTop {
            after,
            distance_bytes,
        } => format!("{} above {after}", Exact(distance_bytes)),
        Reason::Reused { block } => format!("{block}'s place again"),
        Reason::Kept => "kept for later".into(),
        Reason::GivenBack => "back to the kernel".into(),
        Reason::OutsideHeap => "outside the heap".into(),
        Reason::Refused => "malloc refused".into(),
        Reason::Unexplained => "not explained".into(),
    };
    match step.reason {
        Reason::Refused | Reason::Unexplained => Cell::of(Tone::Warning, &text),
        _ => Cell::plain(text),
    }
}

/// A sum as one would write it down: the total, then its parts.
fn sum_lines(sum: &Sum, width: usize) -> Vec<Line> {
    let bytes = Exact(sum.bytes);
    let size = ByteSize(sum.bytes);
    let heading = match sum.of {
        SumOf::Growth { step } => {
            format!(
                "Sum {}: the break rose by {bytes} bytes ({size}) at step {step}",
                sum.number
            )
        }
        SumOf::Heap => format!(
            "Sum {}: at the end the heap has {bytes} bytes ({size})",
            sum.number
        ),
    };
    let heading = Line::of(Tone::Strong, &heading);
    let mut lines = vec![heading];
    for (index, term) in sum.terms.iter().enumerate() {
        let sign = match (term.bytes < 0, index) {
            (true, _) => '−',
            (false, 0) => '=',
            (false, _) => '+',
        };
        let number = Exact(term.bytes.unsigned_abs());
        let tone = match term.kind {
            TermKind::Other => Tone::Warning,
            _ => Tone::Plain,
        };
        let left = format!("{sign}{number:>NUMBERS$}  ");
        let room = width.saturating_sub(words::columns(&left));
        for (index, text) in words::wrap(&words::harmless(&term.meaning), room)
            .iter()
            .enumerate()
        {
            let mut line = Line::default();
            if index == 0 {
                line.push(Tone::Plain, &left);
            }
            line.pad_to(words::columns(&left));
            line.push(tone, text);
            lines.push(line);
        }
    }
    lines
}

/// What the numbers say, a sentence each.
fn conclusions(demonstration: &Demonstration) -> Vec<(Tone, String)> {
    if !demonstration.agrees {
        let text = "`breaktrace demo --json` holds both accounts, which show where they part.";
        return vec![(Tone::Plain, text.into())];
    }
    let mut sentences: Vec<(Tone, String)> = unexplained(demonstration)
        .map(|text| (Tone::Warning, text))
        .into_iter()
        .collect();
    let claims = [
        read_in_malloc(demonstration),
        Some(calls(demonstration)),
        obtained(demonstration),
        Some(given_back(demonstration)),
    ];
    sentences.extend(claims.into_iter().flatten().map(|text| (Tone::Plain, text)));
    sentences
}

fn unexplained(demonstration: &Demonstration) -> Option<String> {
    let is_open = |step: &Step| {
        step.agrees && matches!(step.reason, Reason::Unexplained | Reason::OutsideHeap)
    };
    if !demonstration.steps.iter().any(is_open) {
        return None;
    }
    let cause = match demonstration.influences.as_slice() {
        [] => String::new(),
        names => format!(" ({} may be the cause)", names.join(", ")),
    };
    Some(format!(
        "This malloc computes otherwise than glibc's usual arithmetic{cause}: the numbers are measured, and only what \
         could be checked is explained."
    ))
}

/// Where the terms of the growths come from.
fn read_in_malloc(demonstration: &Demonstration) -> Option<String> {
    let mut growths = demonstration
        .steps
        .iter()
        .filter(|step| matches!(step.reason, Reason::Grown { .. }))
        .peekable();
    growths.peek()?;
    growths.all(|step| step.malloc.is_some()).then(|| {
        "top_pad and top were read in malloc itself, in the program's memory, at each call that raised the break; top is \
         also where the program's blocks end, and both agree."
            .to_owned()
    })
}

fn calls(demonstration: &Demonstration) -> String {
    let totals = &demonstration.totals;
    let mallocs = words::count(totals.mallocs, "malloc", "mallocs");
    let frees = words::count(totals.frees, "free", "frees");
    let calls = words::count(totals.system_calls, "system call", "system calls");
    if totals.system_calls < totals.mallocs + totals.frees {
        format!("malloc is no system call: {mallocs} and {frees} needed {calls}.")
    } else {
        format!("{mallocs} and {frees} needed {calls}.")
    }
}

fn obtained(demonstration: &Demonstration) -> Option<String> {
    let totals = &demonstration.totals;
    let in_use = totals.requested_bytes.saturating_sub(totals.freed_bytes);
    let kept = totals.obtained_bytes.checked_sub(totals.returned_bytes)?;
    let is_outside = |step: &Step| step.reason == Reason::OutsideHeap;
    if demonstration.steps.iter().any(is_outside) {
        // The break says nothing of mappings.
        return None;
    }
    let more = kept.checked_sub(in_use).filter(|&more| more > 0)?;
    let place = demonstration
        .sums
        .iter()
        .find(|sum| sum.of == SumOf::Heap)
        .map_or_else(String::new, |sum| {
            format!(" (sum {} says where they are)", sum.number)
        });
    Some(format!(
        "It asks for more than you ask: the program holds {} bytes, and malloc {} from the kernel, {} more{place}.",
        Exact(in_use),
        Exact(kept),
        Exact(more)
    ))
}

fn given_back(demonstration: &Demonstration) -> String {
    let totals = &demonstration.totals;
    let freed = Exact(totals.freed_bytes);
    let returned = totals.returned_bytes;
    if returned > 0 {
        return format!(
            "{freed} bytes were freed, and {} went back to the kernel.",
            Exact(returned)
        );
    }
    let steps = &demonstration.steps;
    let is_kept =
        |step: &Step| !matches!(step.action, Action::Free { .. }) || step.reason == Reason::Kept;
    if !steps.iter().all(is_kept) {
        return format!("{freed} bytes were freed; the break never fell.");
    }
    let again = steps
        .iter()
        .find_map(|step| match (step.action, step.reason) {
            (Action::Malloc { block, .. }, Reason::Reused { block: earlier }) => {
                Some(format!("; malloc put {block} where {earlier} was"))
            }
            _ => None,
        })
        .unwrap_or_default();
    format!(
        "free gives nothing back to the kernel: {freed} bytes were freed, and the break never fell{again}."
    )
}

#[cfg(test)]
mod tests {
    use super::super::tests::GLIBC_2_36;
    use super::super::tests::Layout;
    use super::super::tests::demonstration;
    use super::super::tests::differing_demonstration;
    use super::*;
    use crate::render::Charset;

    fn text(demonstration: &Demonstration, width: usize) -> String {
        let options = TextOptions {
            width,
            color: false,
            charset: Charset::Unicode,
            verbose: false,
        };
        render(demonstration, options)
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        let odd = demonstration(Layout {
            growths: [0x100_0000, 0x1000],
            ..GLIBC_2_36
        });
        for demonstration in [&demonstration(GLIBC_2_36), &odd] {
            for width in 60..=160 {
                for line in text(demonstration, width).lines() {
                    assert!(words::columns(line) <= width, "{width}: {line}");
                }
            }
        }
    }

    #[test]
    fn eighty_columns_take_forty_lines_and_nothing_is_cut() {
        let text = text(&demonstration(GLIBC_2_36), 80);
        assert!(text.lines().count() <= 40, "{text}");
        assert!(!text.contains('…'), "{text}");
    }

    #[test]
    fn escapes_come_with_colour_alone() {
        let demonstration = demonstration(GLIBC_2_36);
        assert!(!text(&demonstration, 80).contains('\x1b'));
        let coloured = render(
            &demonstration,
            TextOptions {
                color: true,
                ..TextOptions::default()
            },
        );
        assert!(coloured.contains('\x1b'));
    }

    #[test]
    fn the_claims_are_told_in_numbers() {
        let text = text(&demonstration(GLIBC_2_36), 160);
        for claim in [
            "agree at all 10 steps: the break moved twice",
            "7 mallocs and 2 frees needed 2 system calls",
            "the program holds 157,696 bytes, and malloc 307,200 from the kernel, 149,504 more (sum 3",
            "32,768 bytes were freed, and the break never fell; malloc put f where b was",
            "−    52,512  was still left",
        ] {
            assert!(text.contains(claim), "{claim}\n{text}");
        }
    }

    #[test]
    fn numbers_of_another_malloc_are_shown_and_not_explained() {
        let text = text(
            &demonstration(Layout {
                growths: [0x22000, 0x2a000],
                ..GLIBC_2_36
            }),
            160,
        );
        assert!(text.contains("not explained"), "{text}");
        assert!(text.contains("computes otherwise than glibc's usual arithmetic"));
        assert!(!text.contains("Sum 3"));
    }

    #[test]
    fn a_difference_is_the_first_thing_told_and_nothing_is_concluded() {
        let text = text(&differing_demonstration(), 80);
        assert!(
            text.starts_with("THE PROGRAM AND THE TRACE DIFFER at step 9"),
            "{text}"
        );
        assert!(text.contains("the trace differs"));
        assert!(!text.contains("malloc is no system call"));
    }
}
