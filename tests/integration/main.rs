//! Runs the finished `breaktrace` on programs and compares what it says with truths that are not its own: what the
//! programs themselves print, `/proc`, and strace's account.
#![allow(
    clippy::unwrap_used,
    reason = "all of this is tests, and a panic is how they fail"
)]

mod against_strace;
mod allocator_conformance;
mod allocator_errors;
mod allocator_programs;
mod allocator_stress;
mod allocator_tracing;
mod attach;
mod browser;
mod charset;
mod compare;
mod core_files;
mod culprits;
mod demo;
mod errors;
mod explained;
mod foreign_abi;
mod formats;
mod gate;
mod generated_code;
mod heap;
mod heap_command;
mod heap_damage;
mod heap_programs;
mod hostile_files;
mod html_report;
mod kernel_view;
mod layers;
mod leaks;
mod lifecycle;
mod live_view;
mod manual;
mod odd_stacks;
mod other_allocators;
mod preloaded;
mod processes;
mod progress;
mod python_stacks;
mod recording;
mod samples;
mod schema;
mod short_stop;
mod stacks;
mod support;
mod symbol_files;
mod transparency;
