//! What `breaktrace heap` tells: one look at a heap, or several compared, and what follows from them.
//!
//! JSON is this structure as it stands; `docs/heap-schema.md` describes it. Within a schema version, fields are only added.

use serde::Deserialize;
use serde::Serialize;

use super::growth::HeapGrowth;
use super::sums::HeapSums;
use super::verdict::HeapVerdict;
use crate::event::HeapExamination;
use crate::event::ProcessMemory;
use crate::report::Schema;
use crate::report::Tool;
use crate::report::json;

/// The name by which these documents are known.
pub const HEAP_SCHEMA_NAME: &str = "breaktrace.heap";

/// The version of their schema.
pub const HEAP_SCHEMA_VERSION: u32 = 1;

/// A program's heap, looked at from outside.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapDocument {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// What was looked at.
    pub target: HeapTarget,
    /// When: seconds since 1970-01-01 UTC; of a core file, when it was read.
    pub taken_at_unix: u64,
    /// Where the process has its memory; `null` for core files, and when the process is gone.
    pub memory: Option<ProcessMemory>,
    /// What follows from the last look.
    pub verdict: HeapVerdict,
    /// The heap in a few figures, at the last look.
    pub sums: HeapSums,
    /// What several looks tell together; `null` for one look.
    pub growth: Option<HeapGrowth>,
    /// The last look.
    pub examination: HeapExamination,
}

/// What was looked at.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct HeapTarget {
    /// The process; `null` for core files that do not say.
    pub pid: Option<u32>,
    /// The core file; `null` for processes.
    pub core: Option<String>,
    /// The program; `null` when not known.
    pub program: Option<String>,
    /// Its arguments, its name first; empty when not known. In a core file they are cut, and divided at spaces.
    pub arguments: Vec<String>,
    /// Its threads; `null` when not known.
    pub threads: Option<u64>,
}

impl HeapDocument {
    /// Says what follows from a look.
    #[must_use]
    pub fn of(
        target: HeapTarget,
        taken_at_unix: u64,
        memory: Option<ProcessMemory>,
        examination: HeapExamination,
        growth: Option<HeapGrowth>,
    ) -> Self {
        let verdict =
            HeapVerdict::judge(&examination, memory.as_ref(), target.pid, growth.is_some());
        Self {
            schema: Schema {
                name: HEAP_SCHEMA_NAME.to_owned(),
                version: HEAP_SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
            },
            target,
            taken_at_unix,
            verdict,
            sums: HeapSums::of(&examination),
            memory,
            growth,
            examination,
        }
    }

    /// Writes it as indented JSON with a final newline.
    ///
    /// # Panics
    ///
    /// Never: it holds only strings, numbers and lists.
    #[must_use]
    pub fn to_json(&self) -> String {
        json::document(self)
    }
}
