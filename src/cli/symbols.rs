//! Functions for the call stacks of a report that is about to be shown, as far as the options allow.

use std::io;
use std::io::IsTerminal;
use std::time::Duration;
use std::time::Instant;

use super::args::SymbolOptions;
use crate::event::Module;
use crate::report;
use crate::report::Report;
use crate::symbols::FileSymbolizer;
use crate::symbols::Found;
use crate::symbols::Patience;
use crate::symbols::Symbolizer;
use crate::units::Address;

/// After this long, people are told what they wait for.
const QUIET_TIME: Duration = Duration::from_secs(2);

/// Adds what the options allow to a report that is about to be shown.
pub(super) fn complete(report: &mut Report, options: &SymbolOptions) {
    if options.no_symbols {
        report::name_culprits(report);
    } else {
        let files = FileSymbolizer::new(options.debug_dir.clone(), Patience::REPORT);
        look_up(report, files);
    }
}

/// Looks functions up, and says so where somebody waits for it.
pub(super) fn look_up(report: &mut Report, symbolizer: impl Symbolizer) {
    report::symbolize(report, &mut Told::new(symbolizer));
}

/// Tells on a terminal what is waited for, when it takes long.
struct Told<S> {
    symbolizer: S,
    begun: Instant,
    has_told: bool,
}

impl<S> Told<S> {
    fn new(symbolizer: S) -> Self {
        Self {
            symbolizer,
            begun: Instant::now(),
            has_told: false,
        }
    }
}

impl<S: Symbolizer> Symbolizer for Told<S> {
    fn look_up(&mut self, module: &Module, places: &[Address]) -> Found {
        if !self.has_told && self.begun.elapsed() > QUIET_TIME && io::stderr().is_terminal() {
            self.has_told = true;
            super::output::say("breaktrace: reading symbols; --no-symbols leaves them for later\n");
        }
        self.symbolizer.look_up(module, places)
    }
}
