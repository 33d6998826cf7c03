//! Symbols from files: programs, libraries, and files with their debug information.

use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

use super::Found;
use super::Symbolizer;
use super::elf;
use super::elf::Depth;
use super::vdso;
use super::worker;
use crate::event::Module;
use crate::event::ModuleKind;
use crate::units::Address;

/// How long reading may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Patience {
    /// For one module.
    pub module: Duration,
    /// For all together.
    pub total: Duration,
}

impl Patience {
    /// Of those who wait for a report.
    pub const REPORT: Self = Self {
        module: Duration::from_secs(20),
        total: Duration::from_secs(60),
    };
    /// Of those who asked for symbols, and for nothing else.
    pub const SYMBOLS: Self = Self {
        module: Duration::from_secs(600),
        total: Duration::from_secs(3600),
    };
}

/// Looks into files.
///
/// Each module is read by a process of its own, which ends with the answer: whatever a file holds, it costs its own
/// symbols and nothing else.
#[derive(Debug)]
pub struct FileSymbolizer {
    debug_folders: Vec<PathBuf>,
    patience: Patience,
    /// When all patience ends; begins with the first module.
    end: Option<Instant>,
}

impl FileSymbolizer {
    /// Looks for debug files in these folders first, then where the system keeps them.
    #[must_use]
    pub fn new(debug_folders: Vec<PathBuf>, patience: Patience) -> Self {
        Self {
            debug_folders,
            patience,
            end: None,
        }
    }

    fn file(&mut self, module: &Module, places: &[Address]) -> Found {
        let now = Instant::now();
        let end = *self.end.get_or_insert(now + self.patience.total);
        let left = self.patience.module.min(end.saturating_duration_since(now));
        if left.is_zero() {
            return Found::nothing(
                places.len(),
                "the time for symbols was over: `breaktrace symbolize REPORT` takes longer",
            );
        }
        let read = |depth, patience| {
            worker::run(patience, || {
                elf::look_up(module, places, &self.debug_folders, depth)
            })
        };
        let error = match read(Depth::DebugInfo, left) {
            Ok(found) if found.functions.len() == places.len() => return found,
            Ok(_) => "it answers another question".to_owned(),
            Err(error) => error.to_string(),
        };
        // Its symbol tables may be sound although its debug information is not.
        let reason = format!("its debug information cannot be read: {error}");
        match read(Depth::Names, self.patience.module) {
            Ok(mut found) if found.functions.len() == places.len() => {
                found.state.reason = Some(reason);
                found
            }
            _ => Found::nothing(places.len(), reason),
        }
    }
}

impl Symbolizer for FileSymbolizer {
    fn look_up(&mut self, module: &Module, places: &[Address]) -> Found {
        match module.kind {
            ModuleKind::File => self.file(module, places),
            ModuleKind::Vdso => vdso::look_up(module, places),
            ModuleKind::Generated => Found::nothing(
                places.len(),
                format!(
                    "there was no {}: run node with --perf-basic-prof, python3.12 or newer with -X perf",
                    module.path
                ),
            ),
            ModuleKind::Unknown => Found::nothing(places.len(), "no code is known there"),
        }
    }
}
