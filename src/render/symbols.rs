//! What is known of the modules that call stacks name.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::words;
use crate::event::ModuleKind;
use crate::report::Report;
use crate::report::StackModule;
use crate::report::Stacks;
use crate::symbols::SymbolSource;

/// A line for each module, and below them why there is no more and what can be done.
#[must_use]
pub fn symbols(report: &Report) -> String {
    let Some(stacks) = report
        .stacks
        .as_ref()
        .filter(|stacks| !stacks.modules.is_empty())
    else {
        return "no call stacks were recorded\n".to_owned();
    };
    let lines: Vec<[String; 3]> = stacks
        .modules
        .iter()
        .enumerate()
        .map(|(index, module)| {
            [
                name(module),
                source(module.symbols.source).to_owned(),
                named(stacks, index),
            ]
        })
        .collect();
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| words::columns(&line[column]))
            .max()
            .unwrap_or(0)
    };
    let (first, second) = (width(0), width(1));
    let mut text = String::new();
    for [module, source, named] in &lines {
        let gap = " ".repeat(first - words::columns(module));
        // Writing to a String does not fail.
        let _ = writeln!(text, "  {module}{gap}  {source:second$}  {named}");
    }
    for (reason, modules) in reasons(stacks) {
        let sentence = format!("{}: {}", modules.join(", "), words::harmless(reason));
        for line in words::wrap(&sentence, 96) {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

fn name(module: &StackModule) -> String {
    match module.kind {
        ModuleKind::Unknown => "(unknown)".to_owned(),
        ModuleKind::Generated => format!("generated code ({})", words::program(&module.path)),
        ModuleKind::File | ModuleKind::Vdso => words::program(&module.path),
    }
}

fn source(source: SymbolSource) -> &'static str {
    match source {
        SymbolSource::NotLooked => "not looked up",
        SymbolSource::None => "none",
        SymbolSource::Names => "names",
        SymbolSource::DebugInfo => "names and lines",
    }
}

fn named(stacks: &Stacks, index: usize) -> String {
    let frames = || {
        stacks.frames.iter().filter(|frame| {
            frame
                .module
                .is_some_and(|module| usize::try_from(module) == Ok(index))
        })
    };
    let named = frames().filter(|frame| !frame.functions.is_empty()).count();
    format!("{named} of {} places", frames().count())
}

/// Each reason with the modules that it is true of.
fn reasons(stacks: &Stacks) -> BTreeMap<&str, Vec<String>> {
    let mut reasons: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for module in &stacks.modules {
        if let Some(reason) = &module.symbols.reason {
            reasons.entry(reason).or_default().push(name(module));
        }
    }
    reasons
}
