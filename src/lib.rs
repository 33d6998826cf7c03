//! breaktrace: what moved the program break, and what came back.
pub mod demo;
pub mod event;
pub mod event_log;
pub mod inherited;
pub mod mapping;
pub mod render;
pub mod report;
pub mod tracer;
pub mod units;
