//! What both benches need: the programs to compare, fixtures built from C, and figures drawn from repeated rounds.

use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

/// The command under test, as cargo built it for this bench.
pub(crate) const BREAKTRACE: &str = env!("CARGO_BIN_EXE_breaktrace");
/// The calls that strace is asked for: those whose cost breaktrace is held against.
pub(crate) const STRACE_CALLS: &str = "trace=brk,mmap,munmap,mremap,madvise";

/// A place for compiled fixtures and scratch files; cargo keeps it below `target`.
pub(crate) fn scratch() -> &'static Path {
    Path::new(env!("CARGO_TARGET_TMPDIR"))
}

/// Finds a program as a shell would; `None` if it is not installed.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    std::env::split_paths(&std::env::var_os("PATH")?)
        .map(|folder| folder.join(name))
        .find(|path| path.is_file())
}

/// Compiles `fixtures/bench/<name>.c` and returns the program.
pub(crate) fn compile(name: &str) -> io::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/bench")
        .join(name)
        .with_extension("c");
    let program = scratch().join(name);
    let status = Command::new("cc")
        .args(["-O2", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .status()
        .map_err(|error| io::Error::other(format!("cannot run cc: {error}")))?;
    if status.success() {
        Ok(program)
    } else {
        Err(io::Error::other(format!(
            "cc failed for {}: {status}",
            source.display()
        )))
    }
}

/// One figure out of repeated rounds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Figure {
    pub(crate) lowest: f64,
    pub(crate) median: f64,
    pub(crate) highest: f64,
}

impl Figure {
    /// Sums up the values of all rounds; `None` when there are none.
    pub(crate) fn of(values: impl IntoIterator<Item = f64>) -> Option<Self> {
        let mut values: Vec<f64> = values.into_iter().collect();
        values.sort_by(f64::total_cmp);
        let (lowest, highest) = (*values.first()?, *values.last()?);
        let middle = values.len() / 2;
        let median = if values.len() % 2 == 1 {
            values[middle]
        } else {
            f64::midpoint(values[middle - 1], values[middle])
        };
        Some(Self {
            lowest,
            median,
            highest,
        })
    }
}

/// What the figures were taken on, in one line.
pub(crate) fn surroundings() -> String {
    let read = |path| std::fs::read_to_string(path).unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, usize::from);
    format!(
        "Linux {}, {processors} processors, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        read("/proc/loadavg").split(' ').next().unwrap_or("unknown")
    )
}

/// Prints rows below each other, the first column to the left, the others to the right.
pub(crate) fn print_table(rows: &[Vec<String>]) {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| Some(row.get(column)?.chars().count()))
            .max()
            .unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for row in rows {
        let cells = row
            .iter()
            .zip(&widths)
            .enumerate()
            .map(|(column, (cell, width))| {
                if column == 0 {
                    format!("{cell:<width$}")
                } else {
                    format!("{cell:>width$}")
                }
            });
        println!("{}", cells.collect::<Vec<_>>().join("  ").trim_end());
    }
}
