//! Which characters text is written in: all of Unicode, or ASCII alone.
//!
//! Every piece of text passes through `words::harmless`, and that is where this is obeyed: what stands in a cell or a
//! line is already spelt as it will be seen, so that widths are right. The choice holds for one thread, from
//! [`Charset::enter`] until its guard is dropped, as a hundred functions below a renderer would pass it on otherwise.

use std::cell::Cell;

/// The characters that text may consist of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Charset {
    /// All of them: charts have eighths of a character, names show as they are.
    #[default]
    Unicode,
    /// ASCII alone: charts are drawn with `#`, `=`, `_`, and names of the program have other characters escaped.
    Ascii,
}

thread_local! {
    static CURRENT: Cell<Charset> = const { Cell::new(Charset::Unicode) };
}

/// While it lives, this thread's text is written in one charset; afterwards in the one before.
#[derive(Debug)]
#[must_use]
pub(crate) struct Entered {
    previous: Charset,
}

impl Drop for Entered {
    fn drop(&mut self) {
        CURRENT.set(self.previous);
    }
}

impl Charset {
    /// Writes this thread's text in it until the guard is dropped.
    pub(crate) fn enter(self) -> Entered {
        Entered {
            previous: CURRENT.replace(self),
        }
    }

    /// The one in which this thread's text is written.
    pub(crate) fn current() -> Self {
        CURRENT.get()
    }

    /// `text`, finished and perhaps with escapes for colour in it, with nothing left that is not of this charset.
    #[must_use]
    pub fn spell(self, text: &str) -> String {
        match self {
            Self::Unicode => text.to_owned(),
            Self::Ascii => {
                let mut out = String::with_capacity(text.len());
                for character in text.chars() {
                    push_ascii(character, &mut out);
                }
                out
            }
        }
    }

    /// What stands where text was cut.
    pub(crate) fn ellipsis(self) -> &'static str {
        match self {
            Self::Unicode => "…",
            Self::Ascii => "...",
        }
    }
}

/// Adds a character; one that is not ASCII as what looks most like it, or else escaped.
pub(crate) fn push_ascii(character: char, out: &mut String) {
    if character.is_ascii() {
        out.push(character);
    } else if let Some(stand_in) = stand_in(character) {
        out.push_str(stand_in);
    } else {
        out.extend(character.escape_default());
    }
}

/// What stands for a character that breaktrace itself writes. Glyphs of which charts and bars consist take one column
/// each, and those that occur in one picture differ.
fn stand_in(character: char) -> Option<&'static str> {
    Some(match character {
        // Filled from below: a little, half, all.
        '▁' | '▂' | '▃' => "_",
        '▄' | '▅' | '▆' => "=",
        '▇' | '█' => "#",
        // Filled from the left.
        '▏' | '▎' | '▍' => "-",
        '▌' | '▋' | '▊' | '▉' => "=",
        '░' => ":",
        '▒' => "-",
        '▓' => "%",
        '·' => "*",
        '│' => "|",
        '┊' => "!",
        '┤' | '├' => "+",
        '└' => "`",
        '─' | '−' | '–' | '—' => "-",
        '→' => "->",
        '←' => "<-",
        '×' => "x",
        '…' => "...",
        'µ' => "u",
        '‘' | '’' => "'",
        '“' | '”' => "\"",
        '\u{a0}' => " ",
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_breaktrace_writes_has_stand_ins_and_names_are_escaped() {
        let ascii = |text| Charset::Ascii.spell(text);
        assert_eq!(
            ascii("−4 KiB → 8 KiB, 3× in 5 µs…"),
            "-4 KiB -> 8 KiB, 3x in 5 us..."
        );
        assert_eq!(ascii("/tmp/größe 堆"), r"/tmp/gr\u{f6}\u{df}e \u{5806}");
        assert_eq!(ascii("\x1b[1mplain\x1b[0m\n"), "\x1b[1mplain\x1b[0m\n");
        assert_eq!(Charset::Unicode.spell("−4 堆"), "−4 堆");
    }

    #[test]
    fn a_charset_holds_until_its_guard_is_dropped() {
        assert_eq!(Charset::current(), Charset::Unicode);
        {
            let _ascii = Charset::Ascii.enter();
            assert_eq!(Charset::current(), Charset::Ascii);
            {
                let _unicode = Charset::Unicode.enter();
                assert_eq!(Charset::current(), Charset::Unicode);
            }
            assert_eq!(Charset::current(), Charset::Ascii);
            let elsewhere = std::thread::spawn(Charset::current);
            assert_eq!(elsewhere.join().unwrap(), Charset::Unicode);
        }
        assert_eq!(Charset::current(), Charset::Unicode);
    }
}
