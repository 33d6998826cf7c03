//! `breaktrace doctor`: what this machine lets breaktrace do, each finding with its remedy.
//!
//! Everything is tried out, on a child made for the purpose, rather than concluded from version numbers. Nothing
//! stays behind: children are killed and reaped before [`examine`] returns.

mod container;
mod kernel_probes;
mod ptrace_probes;
mod small_files;
mod surroundings;
mod text;
mod toy;

use nix::errno::Errno;
use serde::Serialize;

use crate::event::Machine;
use ptrace_probes::Tracing;
use surroundings::Surroundings;

pub use text::to_text;

/// The name by which diagnoses are known.
pub const SCHEMA_NAME: &str = "breaktrace.doctor";

/// Raised when a field changes its meaning or goes.
pub const SCHEMA_VERSION: u32 = 1;

/// What was found on one machine, at one moment, for one user.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Diagnosis {
    /// Which schema this document follows.
    pub schema: Schema,
    /// Which program wrote it.
    pub tool: Tool,
    /// The machine.
    pub machine: Machine,
    /// Whether programs can be started and traced.
    pub can_run: bool,
    /// Whether running processes of this user can be attached to.
    pub can_attach: bool,
    /// The findings; each name appears once.
    pub findings: Vec<Finding>,
}

/// Name and version of a schema.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Schema {
    /// Always `breaktrace.doctor`.
    pub name: &'static str,
    /// Raised when a field changes its meaning or goes.
    pub version: u32,
}

/// The program that wrote a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Tool {
    /// Its name.
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
}

/// One thing that was tried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// Stable name, for programs.
    pub name: &'static str,
    /// How well it is.
    pub status: Status,
    /// What was measured.
    pub found: String,
    /// What works, or does not, because of it.
    pub means: String,
    /// What to do about it: a command or a step; `null` when there is nothing to do.
    pub remedy: Option<String>,
}

/// How well something is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub enum Status {
    /// It works.
    Good,
    /// It works in part, or something else stands in for it.
    Limited,
    /// It does not work.
    Missing,
}

/// How a probe went.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    Works,
    /// This call failed.
    Refused(&'static str, Errno),
    /// No child could be made to try it on.
    NoChild(Errno),
    /// Calls succeeded, and something else happened than should have.
    Odd(String),
    /// It was not tried, and this is why.
    Untried(&'static str),
}

impl Outcome {
    /// `good` if the probe went well, otherwise what `bad` makes of it.
    fn judge(&self, good: Finding, bad: impl FnOnce(&Self) -> Finding) -> Finding {
        match self {
            Self::Works => good,
            problem @ Self::NoChild(_) => Finding {
                remedy: Some(
                    "make room for processes: see `ulimit -u`, and give unshare(1) the option --fork".into(),
                ),
                ..bad(problem)
            },
            problem => bad(problem),
        }
    }

    /// `fact`, and why; or why it was not tried.
    fn words(&self, fact: &str) -> String {
        match self {
            Self::Works => fact.into(),
            Self::Refused(call, errno) => format!("{fact} ({call}: {errno:?}, {})", errno.desc()),
            Self::Odd(what) => format!("{fact} ({what})"),
            Self::NoChild(errno) => format!(
                "not tried: no child could be made ({errno:?}, {})",
                errno.desc()
            ),
            Self::Untried(why) => format!("not tried: {why}"),
        }
    }

    /// The error of a call that failed; `UnknownErrno` otherwise.
    fn errno(&self) -> Errno {
        match self {
            Self::Refused(_, errno) => *errno,
            _ => Errno::UnknownErrno,
        }
    }
}

/// Examines this machine, as this user, in this place.
///
/// Makes children and lets them go before it returns. Call it from a thread that traces nothing: the children are
/// traced by it.
#[must_use]
pub fn examine() -> Diagnosis {
    let surroundings = Surroundings::here();
    let machine = kernel_probes::machine();
    let mut findings = vec![kernel_probes::kernel(&machine)];
    findings.extend(Tracing::measure().findings(&surroundings));
    findings.extend([
        kernel_probes::yama(&surroundings),
        kernel_probes::proc_mount(),
        kernel_probes::address_randomization(&surroundings),
        kernel_probes::procmap_query(&surroundings),
        kernel_probes::pagemap(&surroundings),
        kernel_probes::idle_latency(&surroundings),
        kernel_probes::perf_events(&surroundings),
    ]);
    findings.push(container::container(&surroundings.container, &findings));
    Diagnosis::new(machine, findings)
}

/// Writes a diagnosis as indented JSON with a final newline.
///
/// # Panics
///
/// Never: a diagnosis holds only strings, numbers and lists.
#[must_use]
pub fn to_json(diagnosis: &Diagnosis) -> String {
    let mut text =
        serde_json::to_string_pretty(diagnosis).expect("a diagnosis has only string keys");
    text.push('\n');
    text
}

impl Diagnosis {
    fn new(machine: Machine, findings: Vec<Finding>) -> Self {
        let works = |names: &[&str]| {
            findings
                .iter()
                .all(|finding| !names.contains(&finding.name) || finding.status != Status::Missing)
        };
        Self {
            schema: Schema {
                name: SCHEMA_NAME,
                version: SCHEMA_VERSION,
            },
            tool: Tool {
                name: env!("CARGO_PKG_NAME"),
                version: env!("CARGO_PKG_VERSION"),
            },
            machine,
            can_run: works(&["ptrace", "syscall_info"]),
            can_attach: works(&["ptrace", "syscall_info", "attach", "proc"]),
            findings,
        }
    }

    /// Whether programs can be started and traced here.
    #[must_use]
    pub fn can_run(&self) -> bool {
        self.can_run
    }

    /// Whether running processes of this user can be attached to here.
    #[must_use]
    pub fn can_attach(&self) -> bool {
        self.can_attach
    }

    /// The finding of this name.
    #[must_use]
    pub fn finding(&self, name: &str) -> Option<&Finding> {
        self.findings.iter().find(|finding| finding.name == name)
    }
}

#[cfg(test)]
mod tests;
