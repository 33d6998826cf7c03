//! Who is to be named: the first function above those that merely pass a request for memory on.
//!
//! Three rules, and tables for them that grow with the programs people trace:
//!
//! 1. [`rules::ENTRIES`] are functions by which memory is asked for: malloc, operator new, xmalloc. Whatever they call is their
//!    own affair, so that all frames inside the outermost of them are passed over.
//! 2. [`rules::PASSING`] are functions that work for their caller: `strdup`, `std::vector::push_back`. They are passed over
//!    when nothing else lies between them and the request.
//! 3. Inside an interpreter, the interpreted function is to be named, if only the interpreter and the C library lie
//!    between it and the request; another library that it called is to be named itself.
//!
//! What happens inside the C library is the work of the function that was called from outside, so that a report is the
//! same whether the C library's symbols are installed or not.
//!
//! Where that function has no known name but one that called it in the same module has, the latter is named: a program
//! stripped of its symbols still has names for what it offers to libraries.
//!
//! `docs/recipes.md` says how to add a function.

mod rules;
#[cfg(test)]
mod tests;

use rules::ALLOCATORS;
use rules::BEGINNINGS_OF_ALL;
use rules::CPYTHON;
use rules::ENTRIES;
use rules::LIBC;
use rules::LOADER;
use rules::NOT_PASSING;
use rules::PASSING;
use rules::PASSING_SOURCES;
use rules::begins;

use crate::event::ModuleKind;
use crate::symbols::Function;

/// One function of a stack, or a frame whose function is not known.
#[derive(Clone, Copy, Debug)]
pub(super) struct Entry<'a> {
    /// Position in the stack's frames.
    pub(super) depth: u32,
    /// Position in the frame's functions.
    pub(super) function: u32,
    /// The function; `None` when it is not known.
    pub(super) named: Option<&'a Function>,
    /// Name of the module's file without its folders; empty for a function of an interpreter.
    pub(super) module: &'a str,
    /// What the module is; `None` likewise.
    pub(super) kind: Option<ModuleKind>,
    /// Language of an interpreted function.
    pub(super) language: Option<&'a str>,
}

impl Entry<'_> {
    /// Whether memory is asked for by calling this function.
    fn is_entry(&self) -> bool {
        if self.language.is_some() {
            return false;
        }
        let Some(function) = self.named else {
            return begins(self.module, ALLOCATORS);
        };
        let name = plain(&function.name);
        begins(self.module, ALLOCATORS)
            || ENTRIES.iter().any(|group| group.has(name, self.module))
            || is_operator_of_class(name)
    }

    /// Whether it works for its caller.
    fn is_passing(&self) -> bool {
        if self.language.is_some() {
            return false;
        }
        let Some(function) = self.named else {
            // The C library has names for what programs call; what has none works for that.
            return begins(self.module, LIBC);
        };
        let name = plain(&function.name);
        if begins(name, NOT_PASSING) {
            return false;
        }
        PASSING.iter().any(|group| group.has(name, self.module))
            || function.file.as_deref().is_some_and(|file| {
                PASSING_SOURCES.iter().any(|folder| file.contains(folder))
                    && !file.contains("/library/std/src/rt.rs")
            })
    }

    /// Whether it belongs to the dynamic linker, whose functions have no names where its symbols are not installed.
    pub(super) fn is_dynamic_linker(&self) -> bool {
        begins(self.module, LOADER)
    }

    fn is_c_library(&self) -> bool {
        begins(self.module, LIBC) || self.is_dynamic_linker()
    }

    /// Whether it may have been called from outside of the C library.
    fn is_call_of_c_library(&self) -> bool {
        begins(self.module, LIBC)
            && self
                .named
                .is_some_and(|function| !begins(&function.name, BEGINNINGS_OF_ALL))
    }

    /// Whether it belongs to the interpreter of this language.
    fn is_interpreter(&self, language: &str) -> bool {
        let modules = match language {
            "python" => CPYTHON,
            _ => return false,
        };
        self.language.is_none() && begins(self.module, modules)
    }
}

/// The position of the entry to be named; `None` of a stack without any.
///
/// Where all pass on, because the stack breaks off or there is no more, it is the outermost.
pub(super) fn find(entries: &[Entry<'_>]) -> Option<usize> {
    let inner = entries
        .iter()
        .rposition(Entry::is_entry)
        .map_or(0, |entry| entry + 1);
    let is_passing = |at: usize| is_passing(entries, at);
    let Some(first) = (inner..entries.len()).find(|at| !is_passing(*at)) else {
        return entries.len().checked_sub(1);
    };
    if let Some(called) = called_of_c_library(entries, first) {
        return Some(called);
    }
    if entries[first].named.is_some() || entries[first].is_dynamic_linker() {
        return Some(first);
    }
    let module = entries[first].module;
    let named = (first..entries.len())
        .take_while(|at| entries[*at].module == module)
        .find(|at| entries[*at].named.is_some() && !is_passing(*at));
    Some(named.unwrap_or(first))
}

/// Whether an entry of a stack works for what called it.
fn is_passing(entries: &[Entry<'_>], at: usize) -> bool {
    let called = called_of_c_library(entries, at).unwrap_or(at);
    if entries[called].is_passing() {
        return true;
    }
    let Some(language) = entries[at..].iter().find_map(|outer| outer.language) else {
        return false;
    };
    let caller = entries[called..].iter().find(|outer| !outer.is_c_library());
    caller.is_some_and(|caller| caller.is_interpreter(language))
}

/// Of an entry that belongs to the C library: the function that was called from outside of it.
fn called_of_c_library(entries: &[Entry<'_>], at: usize) -> Option<usize> {
    (at..entries.len())
        .take_while(|outer| entries[*outer].is_c_library())
        .filter(|outer| entries[*outer].is_call_of_c_library())
        .last()
}

/// Whether this is `operator new` or `operator delete` of a class.
fn is_operator_of_class(name: &str) -> bool {
    name.rsplit_once("::operator ").is_some_and(|(_, which)| {
        let end = which.find(['(', '[', ' ']).unwrap_or(which.len());
        matches!(&which[..end], "new" | "delete")
    })
}

/// A function's name as the tables have it: without return type, parameters and the compiler's additions
/// (`sysmalloc.part.0`); for a method of a Rust trait the type it belongs to, from there on.
pub(super) fn plain(name: &str) -> &str {
    const UNNAMED: &str = "(anonymous namespace)";
    if let Some(inner) = name.strip_prefix('<') {
        return rust_owner(inner);
    }
    let mut depth = 0_u32;
    let mut start = 0;
    let mut at = 0;
    while let Some(character) = name[at..].chars().next() {
        let rest = &name[at..];
        if depth == 0 && is_operator(name, at) {
            // The name is made of the very signs that end others.
            return &name[start..];
        }
        if rest.starts_with(UNNAMED) {
            at += UNNAMED.len();
            continue;
        }
        match character {
            '<' | '{' | '[' => depth += 1,
            '>' | '}' | ']' => depth = depth.saturating_sub(1),
            '(' if depth == 0 => return without_addition(&name[start..at]),
            // What came before was the return type.
            ' ' if depth == 0 => start = at + 1,
            _ => {}
        }
        at += character.len_utf8();
    }
    without_addition(&name[start..])
}

/// Whether the word `operator` begins here.
fn is_operator(name: &str, at: usize) -> bool {
    let is_part_of_word = |character: char| character.is_alphanumeric() || character == '_';
    name[at..]
        .strip_prefix("operator")
        .is_some_and(|rest| !rest.starts_with(is_part_of_word))
        && !name[..at].ends_with(is_part_of_word)
}

/// Names in C have no full stops: what follows one is the compiler's.
fn without_addition(name: &str) -> &str {
    match name.find('.') {
        Some(at) if at > 0 && !name.contains(':') => &name[..at],
        _ => name,
    }
}

/// `alloc::vec::Vec<T> as core::…>::extend` belongs to `alloc::vec::Vec`; `T as alloc::…>::f` to what comes after `as`.
fn rust_owner(inner: &str) -> &str {
    let inner = inner.trim_start_matches(['&', '*', '[', '(']);
    let inner = inner.strip_prefix("mut ").unwrap_or(inner);
    let is_parameter = inner
        .split([' ', '>', '<'])
        .next()
        .is_some_and(|owner| !owner.contains("::"));
    match inner.split_once(" as ") {
        Some((_, of_trait)) if is_parameter => of_trait,
        _ => inner.strip_prefix('<').map_or(inner, rust_owner),
    }
}
