//! A diagnosis for people: the verdict, then one line for each finding, with the remedy where one is needed.

use anstyle::AnsiColor;
use anstyle::Style;

use super::Diagnosis;
use super::Finding;
use super::Status;

/// Columns of the longest mark, `missing`, and of the gap after it.
const MARK_COLUMNS: usize = 9;
/// Below this many columns a text column is not worth having: text goes on lines of its own.
const LEAST_TEXT_COLUMNS: usize = 32;
const NARROW_INDENT: usize = 4;

/// Lays a diagnosis out for `width` columns, with ANSI colours if `color` is set. Ends with a newline.
///
/// Lines keep within the width, unless a single word is longer.
#[must_use]
pub fn to_text(diagnosis: &Diagnosis, width: usize, color: bool) -> String {
    let longest = diagnosis
        .findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or(0);
    let mut page = Page {
        text: String::new(),
        width,
        color,
        name_columns: longest + 2,
    };
    page.verdict(diagnosis);
    page.text.push('\n');
    for finding in &diagnosis.findings {
        page.finding(finding);
    }
    page.text
}

struct Page {
    text: String,
    width: usize,
    color: bool,
    name_columns: usize,
}

impl Page {
    fn verdict(&mut self, diagnosis: &Diagnosis) {
        let (words, status) = match (diagnosis.can_run(), diagnosis.can_attach()) {
            (true, true) => ("breaktrace can run and attach here", Status::Good),
            (true, false) => (
                "breaktrace can run programs here, but not attach to running ones",
                Status::Limited,
            ),
            (false, _) => ("breaktrace cannot trace here", Status::Missing),
        };
        let style = style(status).bold();
        let counted = format!("{words}{}", count_limits(&diagnosis.findings));
        for line in wrap(&counted, self.width) {
            let line = self.painted(&line, style);
            self.text.push_str(&line);
            self.text.push('\n');
        }
    }

    fn finding(&mut self, finding: &Finding) {
        let mark = match finding.status {
            Status::Good => "ok",
            Status::Limited => "limited",
            Status::Missing => "missing",
        };
        let painted = self.painted(mark, style(finding.status));
        let padding = " ".repeat(MARK_COLUMNS.saturating_sub(mark.len()));
        self.text.push_str(&format!("{painted}{padding}"));
        let column = MARK_COLUMNS + self.name_columns;
        let indent = if self.width >= column + LEAST_TEXT_COLUMNS {
            self.text
                .push_str(&format!("{:<1$}", finding.name, self.name_columns));
            column
        } else {
            self.text.push_str(finding.name);
            self.text.push('\n');
            self.text.push_str(&" ".repeat(NARROW_INDENT));
            NARROW_INDENT
        };
        self.rest_of_line(&finding.found, indent, "");
        if finding.status == Status::Good {
            return;
        }
        self.text.push_str(&" ".repeat(indent));
        self.rest_of_line(&finding.means, indent, "");
        if let Some(remedy) = &finding.remedy {
            self.text.push_str(&" ".repeat(indent));
            self.rest_of_line(remedy, indent, "remedy: ");
        }
    }

    /// Writes from the indent, where the line already is, on further lines as needed. A label is set off from what
    /// follows by weight.
    fn rest_of_line(&mut self, words: &str, indent: usize, label: &str) {
        let columns = self.width.saturating_sub(indent).max(1);
        let lines = wrap(&format!("{label}{}", printable(words)), columns);
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                self.text.push_str(&" ".repeat(indent));
            }
            match line.strip_prefix(label.trim_end()) {
                Some(rest) if number == 0 && !label.is_empty() => {
                    let label = self.painted(label.trim_end(), Style::new().bold());
                    self.text.push_str(&label);
                    self.text.push_str(rest);
                }
                _ => self.text.push_str(line),
            }
            self.text.push('\n');
        }
    }

    fn painted(&self, words: &str, style: Style) -> String {
        if self.color {
            format!("{style}{words}{style:#}")
        } else {
            words.into()
        }
    }
}

fn style(status: Status) -> Style {
    let color = match status {
        Status::Good => AnsiColor::Green,
        Status::Limited => AnsiColor::Yellow,
        Status::Missing => AnsiColor::Red,
    };
    Style::new().fg_color(Some(color.into()))
}

/// How many findings are not good, as the end of a sentence.
fn count_limits(findings: &[Finding]) -> String {
    let limits = findings
        .iter()
        .filter(|finding| finding.status != Status::Good)
        .count();
    match limits {
        0 => ", without limits".into(),
        1 => "; 1 limit, with its remedy below".into(),
        more => format!("; {more} limits, with their remedies below"),
    }
}

/// `words` on lines of at most `columns` characters; a longer word has a line of its own.
fn wrap(words: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words.split_whitespace() {
        let length = line.chars().count();
        if length > 0 && length + 1 + word.chars().count() > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    lines.push(line);
    lines
}

/// `words` with everything escaped that a terminal might obey rather than show.
fn printable(words: &str) -> String {
    let mut shown = String::with_capacity(words.len());
    for character in words.chars() {
        // Marks that change the direction or join what is apart, and breaks that terminals may or may not make.
        let obeyed = matches!(
            character,
            '\u{ad}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        );
        if obeyed || character.is_control() {
            shown.extend(character.escape_unicode());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Machine;

    fn finding(name: &'static str, status: Status) -> Finding {
        Finding {
            name,
            status,
            found: format!("what was found of {name}"),
            means: "what it means for whoever wants to trace programs on this machine".into(),
            remedy: (status != Status::Good)
                .then(|| "sudo sysctl kernel.yama.ptrace_scope=0".into()),
        }
    }

    fn diagnosis(findings: Vec<Finding>) -> Diagnosis {
        let machine = Machine {
            architecture: "x86_64".into(),
            kernel: "6.18.44".into(),
            page_size: 4096,
        };
        Diagnosis::new(machine, findings)
    }

    #[test]
    fn the_first_line_is_the_verdict() {
        let first = |findings| {
            let text = to_text(&diagnosis(findings), 100, false);
            text.lines().next().map(str::to_owned).unwrap()
        };
        assert_eq!(
            first(vec![finding("ptrace", Status::Good)]),
            "breaktrace can run and attach here, without limits"
        );
        assert_eq!(
            first(vec![finding("attach", Status::Missing)]),
            "breaktrace can run programs here, but not attach to running ones; 1 limit, with its remedy below"
        );
        assert_eq!(
            first(vec![
                finding("ptrace", Status::Missing),
                finding("yama", Status::Limited)
            ]),
            "breaktrace cannot trace here; 2 limits, with their remedies below"
        );
    }

    #[test]
    fn good_findings_take_one_line_and_others_tell_what_to_do() {
        let text = to_text(
            &diagnosis(vec![
                finding("ptrace", Status::Good),
                finding("yama", Status::Limited),
            ]),
            100,
            false,
        );
        let expected = "\
breaktrace can run and attach here; 1 limit, with its remedy below

ok       ptrace  what was found of ptrace
limited  yama    what was found of yama
                 what it means for whoever wants to trace programs on this machine
                 remedy: sudo sysctl kernel.yama.ptrace_scope=0
";
        assert_eq!(text, expected);
    }

    #[test]
    fn lines_keep_within_any_sensible_width() {
        let diagnosis = diagnosis(vec![
            finding("attach_other_users", Status::Limited),
            finding("ptrace", Status::Missing),
        ]);
        for width in [36, 50, 61, 80, 120] {
            for line in to_text(&diagnosis, width, false).lines() {
                assert!(line.chars().count() <= width, "{width}: {line}");
                assert_eq!(line.trim_end(), line);
            }
        }
        // Too narrow for its words, and still no panic and nothing lost.
        let text = to_text(&diagnosis, 0, false);
        assert!(text.contains("kernel.yama.ptrace_scope=0"));
    }

    #[test]
    fn colours_add_nothing_but_colours() {
        let diagnosis = diagnosis(vec![
            finding("ptrace", Status::Good),
            finding("yama", Status::Missing),
        ]);
        let coloured = to_text(&diagnosis, 80, true);
        assert!(coloured.contains('\u{1b}'));
        let plain = anstream::adapter::strip_str(&coloured).to_string();
        assert_eq!(plain, to_text(&diagnosis, 80, false));
    }

    #[test]
    fn what_a_terminal_would_obey_is_escaped() {
        let mut one = finding("kernel", Status::Limited);
        one.found = "Linux \u{1b}[2J\u{202e}6.1".into();
        let text = to_text(&diagnosis(vec![one]), 100, false);
        assert!(text.contains("Linux \\u{1b}[2J\\u{202e}6.1"), "{text}");
    }
}
