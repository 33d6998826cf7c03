//! From places in modules to functions, files and lines.
//!
//! Nothing here looks at a running program: what is asked for are places in files, as recorded, so that it can be done
//! after the fact, and elsewhere.

mod elf;
mod file;
mod names;
mod obstacles;
mod vdso;
mod worker;

pub use file::FileSymbolizer;
pub use file::Patience;

use serde::Deserialize;
use serde::Serialize;

use crate::event::Module;
use crate::units::Address;

/// A function that a frame lies in, and where in it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Function {
    /// Its name, demangled.
    pub name: String,
    /// Source file; `null` without debug information.
    pub file: Option<String>,
    /// Line in it, from 1; `null` likewise.
    pub line: Option<u32>,
}

/// What is known of a module's symbols.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SymbolState {
    /// What there is.
    pub source: SymbolSource,
    /// Why there is no more, and what can be done; `null` when there is nothing to say.
    pub reason: Option<String>,
}

/// What a module's symbols are from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum SymbolSource {
    /// Nobody has looked.
    #[default]
    NotLooked,
    /// There are none.
    None,
    /// Names only: `.symtab`, `.dynsym`, or a map of generated code.
    Names,
    /// Debug information: lines and inlined functions as well.
    DebugInfo,
}

/// What a look into a module found.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// For each place asked for: the functions there, the innermost inlined one first and the one that has the machine
    /// code last; none where nothing is known.
    pub functions: Vec<Vec<Function>>,
    /// Of what kind the symbols are.
    pub state: SymbolState,
}

/// Finds functions.
pub trait Symbolizer {
    /// The functions at these places of a module: offsets in its file, or addresses in generated code.
    fn look_up(&mut self, module: &Module, places: &[Address]) -> Found;
}

impl Found {
    /// Nothing, of so many places, and why.
    fn nothing(places: usize, reason: impl Into<String>) -> Self {
        Self {
            functions: vec![Vec::new(); places],
            state: SymbolState {
                source: SymbolSource::None,
                reason: Some(reason.into()),
            },
        }
    }
}
