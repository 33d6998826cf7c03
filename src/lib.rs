//! breaktrace: what moved the program break, and what came back.
//!
//! The modules are layers; `docs/architecture.md` is their map. Data takes one way:
//!
//! ```text
//! kernel stop → tracer → event → model → report → render
//! ```

pub mod allocator;
pub mod cli;
pub mod demo;
pub mod doctor;
pub mod event;
pub mod event_log;
pub mod heap_walk;
pub mod inherited;
pub mod mapping;
pub mod model;
pub mod render;
pub mod report;
pub mod stats_page;
pub mod symbols;
pub mod tracer;
pub mod tui;
pub mod units;
