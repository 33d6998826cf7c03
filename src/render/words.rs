//! Quantities and names in words: counts with their nouns, shares, times, commands, signals, and how wide they are.

use unicode_width::UnicodeWidthChar;

use super::charset;
use super::charset::Charset;
use crate::units::Timestamp;

/// What is said of a number that is not known.
pub(crate) const UNKNOWN: &str = "unknown";

/// `text` with every character escaped that would not show as itself, one after the other: control characters, and
/// those without a width, among them the ones that turn the direction of writing. Escaping twice changes nothing.
/// Where text is written in ASCII, nothing else is left.
pub(crate) fn harmless(text: &str) -> String {
    let charset = Charset::current();
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        let is_separator = matches!(character, '\u{2028}' | '\u{2029}');
        if character.width().is_none_or(|columns| columns == 0) || is_separator {
            out.extend(character.escape_default());
        } else if charset == Charset::Ascii {
            charset::push_ascii(character, &mut out);
        } else {
            out.push(character);
        }
    }
    out
}

/// Columns that harmless text takes on a terminal.
pub(crate) fn columns(text: &str) -> usize {
    text.chars().filter_map(UnicodeWidthChar::width).sum()
}

/// Harmless text in at most `width` columns, with an ellipsis where it was cut.
pub(crate) fn cut(text: &str, width: usize) -> String {
    if columns(text) <= width {
        return text.to_owned();
    }
    let ellipsis = Charset::current().ellipsis();
    let room = width.saturating_sub(columns(ellipsis));
    let mut out = String::new();
    let mut taken = 0;
    for character in text.chars() {
        let next = character.width().unwrap_or(0);
        if taken + next > room {
            break;
        }
        taken += next;
        out.push(character);
    }
    out.extend(ellipsis.chars().take(width.saturating_sub(taken)));
    out
}

/// `text` in lines of at most `width` columns, broken at spaces, and inside a word only when it is longer than a line.
pub(crate) fn wrap(text: &str, width: usize) -> Vec<String> {
    let width = width.max(2);
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in text.split(' ') {
        let separator = usize::from(!line.is_empty());
        if columns(&line) + separator + columns(word) > width && !line.is_empty() {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        for character in word.chars() {
            if columns(&line) + character.width().unwrap_or(0) > width {
                lines.push(std::mem::take(&mut line));
            }
            line.push(character);
        }
    }
    lines.push(line);
    lines
}

/// `1 step`, `2 steps`.
pub(crate) fn count(number: u64, singular: &str, plural: &str) -> String {
    if number == 1 {
        format!("1 {singular}")
    } else {
        format!("{number} {plural}")
    }
}

/// A share, given from 0 to 1, with two or three digits: `0.2 %`, `56 %`. What is not all never shows as 100 %, and
/// what is not nothing never as 0 %.
pub(crate) fn percent(share: f64) -> String {
    let percent = share * 100.0;
    if percent > 0.0 && percent < 0.1 {
        "<0.1 %".to_owned()
    } else if percent > 99.9 && percent < 100.0 {
        ">99.9 %".to_owned()
    } else if percent == 0.0 || (9.95..99.5).contains(&percent) || percent >= 100.0 {
        format!("{percent:.0} %")
    } else {
        format!("{percent:.1} %")
    }
}

/// The share of `part` in `whole`; `None` of nothing.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(crate) fn share(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| part as f64 / whole as f64)
}

/// A length of time with three digits: `45 µs`, `812 ms`, `1.24 s`, `2 min 05 s`, `3 h 20 min`.
pub(crate) fn duration(nanoseconds: u64) -> String {
    let seconds = Timestamp(nanoseconds).as_secs_f64();
    let scaled = |value: f64, unit: &str| {
        let decimals = if value >= 99.95 {
            0
        } else if value >= 9.995 {
            1
        } else {
            2
        };
        format!("{value:.decimals$} {unit}")
    };
    match nanoseconds {
        0 => "0 s".to_owned(),
        1..1_000 => format!("{nanoseconds} ns"),
        1_000..999_500 => scaled(seconds * 1e6, "µs"),
        999_500..999_500_000 => scaled(seconds * 1e3, "ms"),
        999_500_000..99_950_000_000 => scaled(seconds, "s"),
        _ => long_duration(nanoseconds.div_ceil(500_000_000) / 2),
    }
}

fn long_duration(seconds: u64) -> String {
    match seconds {
        0..3_600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        3_600..172_800 => format!("{} h {:02} min", seconds / 3_600, seconds / 60 % 60),
        _ => format!("{} d {:02} h", seconds / 86_400, seconds / 3_600 % 24),
    }
}

/// The time from `start` to `end`.
pub(crate) fn between(start: Timestamp, end: Timestamp) -> String {
    duration(end.0.saturating_sub(start.0))
}

/// The last part of a program's path: `cc1`.
pub(crate) fn program(path: &str) -> String {
    let name = path.trim_end_matches('/').rsplit('/').next();
    match name {
        None | Some("") => "(unnamed)".to_owned(),
        Some(name) => harmless(name),
    }
}

/// A program as one would type it: the name it was called by, without the folder, then its arguments, quoted where a
/// shell needs it. `sh` stays `sh` and `redis-server` stays `redis-server`, whatever file they are links to.
pub(crate) fn command(path: &str, arguments: &[String]) -> String {
    let called = arguments
        .first()
        .map(String::as_str)
        .filter(|name| !name.is_empty());
    let mut out = match called {
        // A title that a program has given itself, such as `redis-server *:6379`, is a line and not a name.
        Some(title) if title.contains(' ') => harmless(title),
        Some(name) => program(name),
        None => program(path),
    };
    for argument in arguments.iter().skip(1) {
        out.push(' ');
        out.push_str(&quoted(&harmless(argument)));
    }
    out
}

fn quoted(argument: &str) -> String {
    let is_plain = |c: char| !c.is_whitespace() && !"'\"`$&|;<>()\\*?#".contains(c);
    if !argument.is_empty() && argument.chars().all(is_plain) {
        argument.to_owned()
    } else {
        format!("'{}'", argument.replace('\'', r"'\''"))
    }
}

/// A signal's name: `SIGSEGV`, `SIGRTMIN+3`.
pub(crate) fn signal(number: i32) -> String {
    if let Ok(signal) = nix::sys::signal::Signal::try_from(number) {
        return signal.as_str().to_owned();
    }
    let first = libc::SIGRTMIN();
    if number == first {
        "SIGRTMIN".to_owned()
    } else if (first..=libc::SIGRTMAX()).contains(&number) {
        format!("SIGRTMIN+{}", number - first)
    } else {
        format!("signal {number}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_would_not_show_as_itself_is_escaped_once() {
        let hostile = "a\x1b]0;x\x07\r\n\t\u{202e}gpj\u{200b}\u{7f}\u{9b}\u{2028}";
        let text = harmless(hostile);
        assert_eq!(
            text,
            r"a\u{1b}]0;x\u{7}\r\n\t\u{202e}gpj\u{200b}\u{7f}\u{9b}\u{2028}"
        );
        assert_eq!(harmless(&text), text);
        assert_eq!(harmless("héap 堆 \u{fffd}"), "héap 堆 \u{fffd}");
    }

    #[test]
    fn wide_characters_take_two_columns() {
        assert_eq!(columns("堆積"), 4);
        assert_eq!(cut("堆積堆積", 5), "堆積…");
        assert_eq!(cut("堆積堆積", 4), "堆…");
        assert_eq!(cut("abc", 3), "abc");
        assert_eq!(cut("abcd", 1), "…");
        assert_eq!(cut("abcd", 0), "");
    }

    #[test]
    fn in_ascii_nothing_else_is_left_and_widths_are_those_of_what_is_seen() {
        let _ascii = Charset::Ascii.enter();
        assert_eq!(harmless("−1 KiB héap\u{202e}"), r"-1 KiB h\u{e9}ap\u{202e}");
        assert_eq!(harmless(&harmless("堆")), r"\u{5806}");
        assert_eq!(cut("abcdefgh", 6), "abc...");
        assert_eq!(cut("abcdefgh", 2), "..");
        assert_eq!(cut("abc", 3), "abc");
    }

    #[test]
    fn lines_break_at_spaces_and_long_words_inside() {
        assert_eq!(wrap("the heap grew", 8), ["the heap", "grew"]);
        assert_eq!(wrap("abcdefghij k", 4), ["abcd", "efgh", "ij k"]);
        assert_eq!(wrap("", 4), [""]);
    }

    #[test]
    fn shares_never_round_to_all_or_nothing() {
        let shown: Vec<String> = [0.0, 0.0001, 0.002, 0.0994, 0.5, 0.9951, 0.9999, 1.0, 2.5]
            .map(percent)
            .into();
        assert_eq!(
            shown,
            [
                "0 %", "<0.1 %", "0.2 %", "9.9 %", "50 %", "99.5 %", ">99.9 %", "100 %", "250 %"
            ]
        );
    }

    #[test]
    fn times_keep_three_digits() {
        let shown: Vec<String> = [
            0,
            12,
            45_600,
            812_300_000,
            999_600_000,
            1_240_000_000,
            99_960_000_000,
            125_000_000_000,
            12_000_000_000_000,
            200_000_000_000_000,
        ]
        .map(duration)
        .into();
        assert_eq!(
            shown,
            [
                "0 s",
                "12 ns",
                "45.6 µs",
                "812 ms",
                "1.00 s",
                "1.24 s",
                "1 min 40 s",
                "2 min 05 s",
                "3 h 20 min",
                "2 d 07 h"
            ]
        );
    }

    #[test]
    fn commands_read_as_one_would_type_them() {
        let arguments = |words: &[&str]| words.iter().map(|w| (*w).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            command(
                "/usr/bin/python3.11",
                &arguments(&["/usr/bin/python3", "build.py"])
            ),
            "python3 build.py"
        );
        assert_eq!(
            command("/bin/sh", &arguments(&["sh", "-c", "echo it's; ls", ""])),
            r"sh -c 'echo it'\''s; ls' ''"
        );
        assert_eq!(command("", &arguments(&["./a", "b"])), "a b");
        assert_eq!(command("", &[]), "(unnamed)");
        assert_eq!(command("/bin/x", &arguments(&["x", "a\nb"])), r"x 'a\nb'");
    }

    #[test]
    fn signals_have_names_and_real_time_ones_count_from_the_first() {
        assert_eq!(signal(11), "SIGSEGV");
        assert_eq!(signal(libc::SIGRTMIN()), "SIGRTMIN");
        assert_eq!(signal(libc::SIGRTMIN() + 3), "SIGRTMIN+3");
        assert_eq!(signal(200), "signal 200");
    }
}
