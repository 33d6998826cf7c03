//! The `breaktrace` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    breaktrace::cli::main(std::env::args_os())
}
