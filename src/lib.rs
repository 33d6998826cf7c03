//! breaktrace: what moved the program break, and what came back.
pub mod event;
pub mod mapping;
pub mod render;
pub mod report;
pub mod units;
