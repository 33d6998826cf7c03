//! A page of text: lines in the order in which they are read.

use super::TextOptions;
use super::style::Line;
use super::style::Tone;
use super::words;

/// The lines so far.
pub(super) struct Page {
    pub(super) lines: Vec<Line>,
    pub(super) width: usize,
    pub(super) verbose: bool,
}

impl Page {
    /// An empty page.
    pub(super) fn new(options: TextOptions) -> Self {
        Self {
            lines: Vec::new(),
            width: options.width.max(TextOptions::NARROWEST),
            verbose: options.verbose,
        }
    }

    /// The characters for the terminal.
    pub(super) fn paint(self, color: bool) -> String {
        let width = self.width;
        self.lines
            .into_iter()
            .map(|line| line.cut(width).paint(color) + "\n")
            .collect()
    }

    /// A line as it stands.
    pub(super) fn push(&mut self, tone: Tone, text: &str) {
        self.lines.push(Line::of(tone, text));
    }

    /// Text in as many lines as it needs, the later ones indented.
    pub(super) fn paragraph(&mut self, tone: Tone, text: &str) {
        self.wrapped(tone, "", "  ", text);
    }

    /// Text after a word at the left edge, in as many lines as it needs, all of them right of that word.
    pub(super) fn entry(&mut self, tone: Tone, word: &str, text: &str) {
        self.wrapped(tone, word, &" ".repeat(words::columns(word)), text);
    }

    fn wrapped(&mut self, tone: Tone, first: &str, later: &str, text: &str) {
        let text = words::harmless(text);
        if words::columns(first) + words::columns(&text) <= self.width {
            self.push(tone, &format!("{first}{text}"));
            return;
        }
        let room = self.width - words::columns(first).max(words::columns(later));
        for (index, part) in words::wrap(&text, room).iter().enumerate() {
            let indent = if index == 0 { first } else { later };
            self.push(tone, &format!("{indent}{part}"));
        }
    }

    /// Lines set off by an empty one; nothing if there are none.
    pub(super) fn section(&mut self, lines: Vec<Line>) {
        if !lines.is_empty() {
            self.lines.push(Line::default());
            self.lines.extend(lines);
        }
    }
}
