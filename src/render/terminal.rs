//! How wide and how colourful text may be on a given stream.
//!
//! The environment has the last word, by the conventions of no-color.org and bixense.com/clicolors, which anstream and
//! so clap's own output follow as well.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use super::TextOptions;

impl TextOptions {
    /// Width and colour for text that goes to `stream`.
    #[must_use]
    pub fn for_stream(stream: impl AsFd, verbose: bool) -> Self {
        let stream = stream.as_fd();
        let is_terminal = stream.is_terminal();
        let columns = is_terminal.then(|| columns(stream)).flatten();
        let variable = |name: &str| std::env::var_os(name);
        Self {
            width: width(columns, variable),
            color: color(is_terminal, variable),
            verbose,
        }
    }
}

/// The terminal's width; `None` when it does not know it either, as serial lines and new pseudo-terminals don't.
fn columns(terminal: BorrowedFd<'_>) -> Option<usize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the descriptor is open while borrowed, and TIOCGWINSZ writes one `winsize`, to which the pointer leads.
    let status = unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) };
    (status == 0 && size.ws_col > 0).then(|| usize::from(size.ws_col))
}

fn width(terminal: Option<usize>, variable: impl Fn(&str) -> Option<OsString>) -> usize {
    // Set by hand it is a wish, which also tests and pipes may have.
    variable("COLUMNS")
        .and_then(|columns| columns.to_str()?.trim().parse().ok())
        .filter(|&columns: &usize| columns > 0)
        .or(terminal)
        .unwrap_or(TextOptions::WITHOUT_TERMINAL)
        .clamp(TextOptions::NARROWEST, TextOptions::WIDEST)
}

fn color(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let is_set = |name: &str| variable(name).is_some_and(|value| !value.is_empty());
    let says_zero = |name: &str| variable(name).is_some_and(|value| value == "0");
    if is_set("NO_COLOR") {
        return false;
    }
    if is_set("CLICOLOR_FORCE") && !says_zero("CLICOLOR_FORCE") {
        return true;
    }
    // Without TERM nobody claims that the other side understands escapes.
    let understands = variable("TERM").is_some_and(|term| !term.is_empty() && term != "dumb");
    is_terminal && understands && !says_zero("CLICOLOR")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> impl Fn(&str) -> Option<OsString> {
        let pairs: Vec<(String, OsString)> = pairs
            .iter()
            .map(|(name, value)| ((*name).to_owned(), OsString::from(value)))
            .collect();
        move |wanted| {
            pairs
                .iter()
                .find(|(name, _)| name == wanted)
                .map(|(_, value)| value.clone())
        }
    }

    #[test]
    fn width_is_the_wish_then_the_terminal_then_a_hundred() {
        assert_eq!(width(Some(90), environment(&[("COLUMNS", "120")])), 120);
        assert_eq!(width(Some(90), environment(&[])), 90);
        assert_eq!(width(None, environment(&[])), 100);
        assert_eq!(width(None, environment(&[("COLUMNS", "80")])), 80);
        for nonsense in ["", "0", "-3", "wide"] {
            assert_eq!(width(Some(90), environment(&[("COLUMNS", nonsense)])), 90);
        }
    }

    #[test]
    fn width_stays_readable() {
        assert_eq!(width(Some(20), environment(&[])), 60);
        assert_eq!(width(Some(400), environment(&[])), 160);
    }

    #[test]
    fn colour_needs_a_terminal_that_understands_it() {
        let xterm = [("TERM", "xterm")];
        assert!(color(true, environment(&xterm)));
        assert!(!color(false, environment(&xterm)));
        assert!(!color(true, environment(&[("TERM", "dumb")])));
        assert!(!color(true, environment(&[])));
        assert!(!color(
            true,
            environment(&[("TERM", "xterm"), ("CLICOLOR", "0")])
        ));
    }

    #[test]
    fn wishes_about_colour_are_followed_and_no_wins() {
        assert!(color(false, environment(&[("CLICOLOR_FORCE", "1")])));
        assert!(!color(false, environment(&[("CLICOLOR_FORCE", "0")])));
        assert!(!color(
            true,
            environment(&[("TERM", "xterm"), ("NO_COLOR", "1")])
        ));
        assert!(!color(
            true,
            environment(&[("CLICOLOR_FORCE", "1"), ("NO_COLOR", "yes")])
        ));
        assert!(color(
            true,
            environment(&[("TERM", "xterm"), ("NO_COLOR", "")])
        ));
    }

    #[test]
    fn a_file_gets_neither_colour_nor_a_terminals_width() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(columns(file.as_fd()), None);
        assert!(!file.is_terminal());
    }
}
