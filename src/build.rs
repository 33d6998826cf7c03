//! Builds the library that is preloaded into programs, so that the one binary can carry it.
//!
//! One call of rustc makes `libbreaktrace.so` from `preload.rs`. `tracer/library.rs` embeds the file.

use std::env;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;

/// What the library is made of.
const SOURCES: &[&str] = &[
    "src/preload.rs",
    "src/preload",
    "src/stats_page.rs",
    "src/allocator",
];

fn main() -> ExitCode {
    println!("cargo::rerun-if-changed=src/build.rs");
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error=the preloaded library could not be built: {why}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let library = PathBuf::from(variable("OUT_DIR")?).join("libbreaktrace.so");
    let mut command = compiler()?;
    command
        .args([
            "--edition=2024",
            "--crate-name=breaktrace_preload",
            "--crate-type=cdylib",
        ])
        .args([
            "--cfg=preload",
            "--check-cfg=cfg(preload)",
            "--check-cfg=cfg(test)",
        ])
        // Always optimized, also in debug builds of breaktrace: it runs in programs that are measured.
        .args([
            "-Copt-level=3",
            "-Clto=fat",
            "-Ccodegen-units=1",
            "-Cpanic=abort",
            "-Cstrip=symbols",
        ])
        // `core` names a personality routine for unwinding, which panic=abort never calls. A value of its own keeps the
        // library from asking the program for one; an exported one could replace the real routine of a Rust program.
        .arg("-Clink-arg=-Wl,-z,defs,--defsym=rust_eh_personality=0,-z,now,-z,nodelete,-z,relro")
        .arg("-Clink-arg=-nostartfiles")
        .args(["--target", &variable("TARGET")?])
        .arg("-o")
        .arg(&library)
        .arg("src/preload.rs");
    if variable("CARGO_CFG_TARGET_ARCH")? == "aarch64" {
        // Otherwise atomic operations are functions that ask the C library which processor this is.
        command.arg("-Ctarget-feature=-outline-atomics");
    }
    if let Ok(version) = env::var("CARGO_PKG_VERSION") {
        command.env("BREAKTRACE_VERSION", version);
    }
    if let Ok(linker) = env::var("RUSTC_LINKER") {
        command.arg(format!("-Clinker={linker}"));
    }
    if let Ok(flags) = env::var("CARGO_ENCODED_RUSTFLAGS") {
        command.args(flags.split('\u{1f}').filter(|flag| !flag.is_empty()));
    }
    let status = command
        .status()
        .map_err(|error| format!("{}: {error}", command.get_program().to_string_lossy()))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("rustc ended with {status}; its messages are above"))
    }
}

/// rustc, by way of clippy where cargo uses it, so that it sees the library's root too.
fn compiler() -> Result<Command, String> {
    let rustc = variable("RUSTC")?;
    Ok(match env::var("RUSTC_WORKSPACE_WRAPPER") {
        Ok(wrapper) if !wrapper.is_empty() => {
            let mut command = Command::new(wrapper);
            command.arg(rustc);
            command
        }
        _ => Command::new(rustc),
    })
}

fn variable(name: &str) -> Result<String, String> {
    env::var(name).map_err(|error| format!("cargo sets {name}: {error}"))
}
