//! The `breaktrace` command.
fn main() {}
