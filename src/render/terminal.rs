//! How wide and how colourful text may be on a given stream.
//!
//! The environment has the last word, by the conventions of no-color.org and bixense.com/clicolors, which anstream and
//! so clap's own output follow as well.

use std::ffi::OsString;
use std::io::IsTerminal;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::fd::BorrowedFd;

use super::Charset;
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
            charset: charset(is_terminal, variable),
            verbose,
        }
    }

    /// Columns that the terminal at `stream` has now, however narrow; `None` when it is none or does not know.
    #[must_use]
    pub fn columns_of(stream: impl AsFd) -> Option<usize> {
        columns(stream.as_fd())
    }

    /// How text goes to a file.
    #[must_use]
    pub fn for_file(verbose: bool) -> Self {
        Self {
            charset: charset(false, |name| std::env::var_os(name)),
            verbose,
            ..Self::default()
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

/// A locale that was chosen has its say wherever the text goes, as with gcc, tree or systemctl. Where none was chosen,
/// a terminal gets ASCII, since that is what the C library assumes, and files get what every editor shows.
fn charset(is_terminal: bool, variable: impl Fn(&str) -> Option<OsString>) -> Charset {
    // The order is that of setlocale(3).
    let locale = ["LC_ALL", "LC_CTYPE", "LANG"]
        .into_iter()
        .filter_map(variable)
        .find(|locale| !locale.is_empty());
    match locale {
        Some(locale) if is_utf8(&locale.to_string_lossy()) => Charset::Unicode,
        None if !is_terminal => Charset::Unicode,
        _ => Charset::Ascii,
    }
}

/// Whether a locale such as `de_DE.UTF-8@euro` has this codeset; ssh hands on a bare `UTF-8` from macOS.
fn is_utf8(locale: &str) -> bool {
    let codeset = locale
        .split_once('.')
        .map_or(locale, |(_, codeset)| codeset);
    let codeset = codeset.split('@').next().unwrap_or_default();
    codeset.eq_ignore_ascii_case("utf-8") || codeset.eq_ignore_ascii_case("utf8")
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
    fn the_locale_decides_and_without_one_the_destination() {
        fn chosen(is_terminal: bool, pairs: &[(&str, &str)]) -> Charset {
            charset(is_terminal, environment(pairs))
        }
        for is_terminal in [true, false] {
            for utf8 in ["C.UTF-8", "de_DE.utf8", "en_US.UTF-8@x", "UTF-8"] {
                assert_eq!(chosen(is_terminal, &[("LANG", utf8)]), Charset::Unicode);
            }
            for other in ["C", "POSIX", "de_DE", "de_DE@euro", "ja_JP.eucJP"] {
                assert_eq!(chosen(is_terminal, &[("LANG", other)]), Charset::Ascii);
            }
        }
        assert_eq!(chosen(true, &[]), Charset::Ascii);
        assert_eq!(chosen(false, &[]), Charset::Unicode);
        assert_eq!(chosen(false, &[("LC_ALL", "")]), Charset::Unicode);
    }

    #[test]
    fn lc_all_comes_before_lc_ctype_and_that_before_lang() {
        fn chosen(pairs: &[(&str, &str)]) -> Charset {
            charset(true, environment(pairs))
        }
        let all = [
            ("LC_ALL", "C"),
            ("LC_CTYPE", "C.UTF-8"),
            ("LANG", "C.UTF-8"),
        ];
        assert_eq!(chosen(&all), Charset::Ascii);
        assert_eq!(chosen(&all[1..]), Charset::Unicode);
        assert_eq!(
            chosen(&[("LC_CTYPE", "C"), ("LANG", "C.UTF-8")]),
            Charset::Ascii
        );
        assert_eq!(
            chosen(&[("LC_ALL", ""), ("LANG", "C.UTF-8")]),
            Charset::Unicode
        );
    }

    #[test]
    fn a_file_gets_neither_colour_nor_a_terminals_width() {
        let file = tempfile::tempfile().unwrap();
        assert_eq!(columns(file.as_fd()), None);
        assert!(!file.is_terminal());
    }
}
