//! breaktrace: what moved the program break, and what came back.
pub mod doctor;
pub mod event;
pub mod mapping;
pub mod report;
pub mod units;
