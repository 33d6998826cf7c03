//! Functions' names as pprof's users know them, and as pprof compares them.
//!
//! pprof takes the arguments of functions and templates out of C++ names, as they fill pages. It does so with every name
//! that equals the system's own name of the function, and so leaves of Rust's `<str>::repeat` only `::repeat`, and of
//! Python's `<module>` nothing. It also does so before it looks for the names in `drop_frames`. So names are made short
//! here, by what the languages mean, and the system's name is one that differs (internal/symbolizer/symbolizer.go).

use crate::render::export::frames::NamedFrame;

/// A function's name and the system's name for it: the whole one if the name is a shorter one, and otherwise none.
pub(super) fn of(function: &NamedFrame) -> (String, Option<String>) {
    if function.is_interpreted {
        return (function.name.clone(), None);
    }
    match short(&function.name) {
        Some(name) if name != function.name => (name, Some(function.name.clone())),
        _ => (function.name.clone(), None),
    }
}

/// A C++ or Rust name without arguments of templates and functions; `None` for what only looks like one.
///
/// A name that begins with `<` is Rust's for a function of a type or trait, which stands in there; Go and Java have
/// brackets after dots (`main.(*Table).grow`, `Table.<init>`).
fn short(name: &str) -> Option<String> {
    if name.starts_with('<') || name.contains(".(") || name.contains(".<") {
        return None;
    }
    let mut out = String::with_capacity(name.len());
    let mut rest = name;
    while let Some(character) = rest.chars().next() {
        let kept = verbatim(rest, &out);
        if kept > 0 {
            out.push_str(&rest[..kept]);
            rest = &rest[kept..];
        } else if matches!(character, '<' | '(') {
            rest = &rest[group(rest)?..];
            if character == '<' && out.ends_with("::") {
                // Rust: `collect::<Vec<u8>>`, `slice::<impl [T]>::repeat`.
                out.truncate(out.len() - 2);
            }
            if character == '(' {
                rest = rest.strip_prefix(" const").unwrap_or(rest);
            }
        } else if matches!(character, '>' | ')') {
            return None;
        } else {
            out.push(character);
            rest = &rest[character.len_utf8()..];
        }
    }
    (!out.trim().is_empty()).then_some(out)
}

/// How many bytes at the beginning are no arguments, though they have brackets: operators, closures, namespaces without
/// a name.
fn verbatim(rest: &str, before: &str) -> usize {
    if rest.starts_with("(anonymous namespace)") {
        return "(anonymous namespace)".len();
    }
    if rest.starts_with('{') {
        return closing(rest, '{', '}').unwrap_or(0);
    }
    let ends_word = !before.ends_with(|last: char| last.is_alphanumeric() || last == '_');
    let Some(operator) = rest.strip_prefix("operator").filter(|_| ends_word) else {
        return 0;
    };
    const WITH_BRACKETS: [&str; 12] = [
        "()", "->*", "->", "<=>", "<<=", ">>=", "<<", ">>", "<=", ">=", "<", ">",
    ];
    WITH_BRACKETS
        .iter()
        .find(|symbol| operator.starts_with(**symbol))
        .map_or(0, |symbol| "operator".len() + symbol.len())
}

/// The length of the brackets at the beginning with all that is in them; `None` if they do not end.
fn group(text: &str) -> Option<usize> {
    let mut open = Vec::new();
    let mut before = ' ';
    for (at, character) in text.char_indices() {
        match character {
            '<' | '(' => open.push(character),
            // An arrow is no bracket: `fn() -> u8`.
            '>' if before == '-' => {}
            '>' | ')' => {
                let opening = if character == '>' { '<' } else { '(' };
                if open.pop() != Some(opening) {
                    return None;
                }
                if open.is_empty() {
                    return Some(at + character.len_utf8());
                }
            }
            _ => {}
        }
        before = character;
    }
    None
}

/// Where brackets of one kind end.
fn closing(text: &str, opening: char, closing: char) -> Option<usize> {
    let mut depth = 0_usize;
    for (at, character) in text.char_indices() {
        if character == opening {
            depth += 1;
        } else if character == closing {
            depth = depth.checked_sub(1)?;
            if depth == 0 {
                return Some(at + character.len_utf8());
            }
        }
    }
    None
}

/// A function's name as pprof compares it: without arguments (profile/prune.go, `simplifyFunc`).
pub(super) fn compared(name: &str) -> &str {
    let name = name.strip_prefix('.').unwrap_or(name);
    let mut from = 0;
    while let Some(found) = name[from..].find('(') {
        let at = from + found;
        let reserved = ["(anonymous namespace)", "operator()"].iter().find(|word| {
            word.find('(').is_some_and(|bracket| {
                at.checked_sub(bracket)
                    .and_then(|start| name.get(start..))
                    .is_some_and(|found| found.starts_with(**word))
            })
        });
        match reserved {
            Some(word) => from = at + word.len() - word.find('(').unwrap_or(0),
            None => return &name[..at],
        }
    }
    name
}

/// A name as a regular expression of Go's that matches nothing else.
pub(super) fn escaped(name: &str) -> String {
    let mut text = String::new();
    for character in name.chars() {
        if r"\.+*?()|[]{}^$".contains(character) {
            text.push('\\');
        }
        text.push(character);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> String {
        of(&NamedFrame::placeholder(name)).0
    }

    #[test]
    fn names_lose_the_arguments_of_templates_and_functions() {
        for (name, short) in [
            ("operator new(unsigned long)", "operator new"),
            ("shop::Index<long>::add(long)", "shop::Index::add"),
            (
                "void std::vector<int, std::allocator<int> >::_M_realloc_insert<int>(int*, int&&)",
                "void std::vector::_M_realloc_insert",
            ),
            ("std::map<int, A>::size() const", "std::map::size"),
            (
                "std::function<void (int)>::operator()(int) const",
                "std::function::operator()",
            ),
            ("operator<< <char>(std::ostream&, char)", "operator<< "),
            ("A::operator->()", "A::operator->"),
            ("A<(B)1>::f()", "A::f"),
            (
                "(anonymous namespace)::load(char const*)",
                "(anonymous namespace)::load",
            ),
            (
                "main::{lambda(int)#1}::operator()(int) const",
                "main::{lambda(int)#1}::operator()",
            ),
            ("f(int) [clone .isra.0]", "f [clone .isra.0]"),
            ("alloc::vec::Vec<T,A>::push", "alloc::vec::Vec::push"),
            ("alloc::slice::<impl [T]>::repeat", "alloc::slice::repeat"),
            (
                "std::panic::catch_unwind::<&dyn Fn() -> i32, i32>",
                "std::panic::catch_unwind",
            ),
            ("app::run::{{closure}}", "app::run::{{closure}}"),
        ] {
            assert_eq!(shown(name), short);
        }
    }

    #[test]
    fn names_that_would_lose_their_meaning_stay_whole() {
        for name in [
            "malloc",
            "<str>::repeat",
            "<alloc::alloc::Global as core::alloc::Allocator>::allocate",
            "libc.so.6+0x9c1e0",
            "a<b",
            "a>b",
            "f(",
            ")",
            "(x)",
            "",
            "{",
            "operator",
            "[stack not recorded]",
            "main.(*T).f",
        ] {
            let unchanged = (name.to_owned(), None);
            assert_eq!(of(&NamedFrame::placeholder(name)), unchanged);
        }
        let python = NamedFrame {
            is_interpreted: true,
            ..NamedFrame::placeholder("<module>")
        };
        assert_eq!(of(&python), ("<module>".to_owned(), None));
    }

    #[test]
    fn names_are_compared_without_arguments() {
        for (name, short) in [
            ("f", "f"),
            (".f(int)", "f"),
            ("A::operator()(int)", "A::operator()"),
            ("(anonymous namespace)::f(int)", "(anonymous namespace)::f"),
            ("(x)", ""),
            // The eight bytes before the bracket begin inside a character.
            ("é1234567(x)", "é1234567"),
            ("f((anonymous namespace)::g)", "f"),
        ] {
            assert_eq!(compared(name), short);
        }
    }
}
