//! Lines of styled text: every character of the text report passes through a [`Line`].
//!
//! Growth is blue and shrinking orange, which the common kinds of colour blindness keep apart; signs say the same
//! without any colour.

use anstyle::Ansi256Color;
use anstyle::Style;

use super::words;

/// What a piece of text is, and so how it looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// Ordinary text.
    #[default]
    Plain,
    /// What is to be read first.
    Strong,
    /// Headings and scales.
    Faint,
    /// Memory taken from the kernel.
    Growth,
    /// Memory given back.
    Shrinkage,
    /// Something odd.
    Warning,
}

impl Tone {
    fn style(self) -> Style {
        let blue = Some(Ansi256Color(33).into());
        let orange = Some(Ansi256Color(208).into());
        match self {
            Self::Plain => Style::new(),
            Self::Strong => Style::new().bold(),
            Self::Faint => Style::new().dimmed(),
            Self::Growth => Style::new().fg_color(blue),
            Self::Shrinkage => Style::new().fg_color(orange),
            Self::Warning => Style::new().fg_color(orange).bold(),
        }
    }
}

/// A line of text in pieces, none of which can hold a control character.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Line {
    pieces: Vec<(Tone, String)>,
}

impl Line {
    /// A line of one piece.
    pub(crate) fn of(tone: Tone, text: &str) -> Self {
        let mut line = Self::default();
        line.push(tone, text);
        line
    }

    /// Adds a piece at the end.
    pub(crate) fn push(&mut self, tone: Tone, text: &str) {
        if !text.is_empty() {
            self.pieces.push((tone, words::harmless(text)));
        }
    }

    /// Adds another line at the end.
    pub(crate) fn append(&mut self, other: Self) {
        self.pieces.extend(other.pieces);
    }

    /// Columns that it takes.
    pub(crate) fn width(&self) -> usize {
        self.pieces
            .iter()
            .map(|(_, text)| words::columns(text))
            .sum()
    }

    /// Adds spaces until it takes `width` columns.
    pub(crate) fn pad_to(&mut self, width: usize) {
        let missing = width.saturating_sub(self.width());
        self.push(Tone::Plain, &" ".repeat(missing));
    }

    /// This line in at most `width` columns, with an ellipsis where it was cut.
    pub(crate) fn cut(self, width: usize) -> Self {
        if self.width() <= width {
            return self;
        }
        let mut rest = width;
        let mut line = Self::default();
        for (tone, text) in self.pieces {
            let columns = words::columns(&text);
            // A piece that ends at the edge is cut too, since more follows: the ellipsis needs a place.
            if columns < rest {
                rest -= columns;
                line.pieces.push((tone, text));
            } else {
                let text = words::cut(&format!("{text}…"), rest);
                line.pieces.push((tone, text));
                break;
            }
        }
        line
    }

    /// The characters for the terminal, without trailing spaces.
    pub(crate) fn paint(&self, color: bool) -> String {
        let text_end = self
            .pieces
            .iter()
            .rposition(|(_, text)| !text.trim_end().is_empty())
            .map_or(0, |index| index + 1);
        let mut out = String::new();
        for (index, (tone, text)) in self.pieces[..text_end].iter().enumerate() {
            let text = if index + 1 == text_end {
                text.trim_end()
            } else {
                text
            };
            let style = tone.style();
            if color && style != Style::new() {
                out.push_str(&format!("{style}{text}{style:#}"));
            } else {
                out.push_str(text);
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_colour_only_the_text_is_left() {
        let mut line = Line::of(Tone::Growth, "+4 KiB");
        line.push(Tone::Plain, " up");
        line.pad_to(20);
        assert_eq!(line.paint(false), "+4 KiB up");
        assert!(line.paint(true).starts_with("\x1b[38;5;33m+4 KiB\x1b[0m"));
    }

    #[test]
    fn pieces_cannot_smuggle_escapes() {
        let line = Line::of(Tone::Plain, "a\x1b[31mb\nc");
        assert_eq!(line.paint(false), r"a\u{1b}[31mb\nc");
    }

    #[test]
    fn cutting_leaves_an_ellipsis_within_the_width() {
        let mut line = Line::of(Tone::Plain, "abcdef");
        line.push(Tone::Faint, "ghij");
        assert_eq!(line.clone().cut(10).paint(false), "abcdefghij");
        assert_eq!(line.clone().cut(8).paint(false), "abcdefg…");
        assert_eq!(line.clone().cut(7).paint(false), "abcdef…");
        assert_eq!(line.clone().cut(6).paint(false), "abcde…");
        assert_eq!(line.cut(0).paint(false), "");
    }
}
