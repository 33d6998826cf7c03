//! How long a look at a heap of 1 GiB takes, beside reading the same memory and doing nothing with it.
//!
//! ```text
//! cargo bench --bench heap_walk -- [quick] [mib=N] [rounds=N]
//! ```
//!
//! A program fills a heap with blocks of one average size, frees one in ten, and waits. Each round reads its arenas with
//! process_vm_readv(2) alone, in pieces of 256 KiB; walks through them as `breaktrace heap` does; and lets `breaktrace
//! heap` do it as a process of its own. How long the program stands still is what breaktrace itself measures.

#[allow(dead_code, reason = "the other benches use the rest")]
mod support;

use std::io;
use std::io::BufRead;
use std::io::BufReader;
use std::io::Write;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::time::Instant;

use breaktrace::event::CheckOutcome;
use breaktrace::event::GlibcHeap;
use breaktrace::heap_walk;
use breaktrace::heap_walk::Image;
use breaktrace::mapping::MappingKind;
use breaktrace::tracer::LiveImage;
use breaktrace::tracer::ShortStop;
use support::BREAKTRACE;
use support::Figure;
use support::print_table;
use support::scratch;
use support::surroundings;

const ROUNDS: usize = 9;
const QUICK_ROUNDS: usize = 3;
const MIB: u64 = 1024;
const QUICK_MIB: u64 = 128;
/// What issue 5 asks: a walk takes at most so many times what reading alone takes.
const BAR: f64 = 1.5;
/// Bytes that are read at once.
const PIECE: usize = 256 << 10;

/// Bytes that the program asks for on average, and what its chunks then have.
const SIZES: [(&str, &str); 3] = [("47", "59 B"), ("126", "138 B"), ("1190", "1.2 KB")];

/// A running program with a large heap.
struct Target {
    process: Child,
    output: BufReader<std::process::ChildStdout>,
    told: String,
}

impl Target {
    fn start(program: &Path, mib: u64, average: &str) -> io::Result<Self> {
        let mut process = Command::new(program)
            .args(["giant", "1", &mib.to_string(), average])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let output = process
            .stdout
            .take()
            .ok_or_else(|| io::Error::other("no pipe"))?;
        let mut target = Self {
            process,
            output: BufReader::new(output),
            told: String::new(),
        };
        target.told = target.line()?;
        Ok(target)
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        if line.is_empty() {
            return Err(io::Error::other("the program ended"));
        }
        Ok(line)
    }

    /// Whether its heap is as it was.
    fn is_unharmed(&mut self) -> io::Result<bool> {
        let stdin = self
            .process
            .stdin
            .as_mut()
            .ok_or_else(|| io::Error::other("no pipe"))?;
        writeln!(stdin, "info")?;
        Ok(self.line()? == self.told)
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Compiles the program.
fn compile() -> io::Result<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/glibc_heap.c");
    let program = scratch().join("glibc_heap_of_bench");
    let status = Command::new("cc")
        .args(["-O1", "-pthread", "-o"])
        .arg(&program)
        .arg(&source)
        .status()?;
    if status.success() {
        Ok(program)
    } else {
        Err(io::Error::other(format!("cc: {status}")))
    }
}

/// Reads the heap and does nothing with it; returns seconds and bytes.
fn read_alone(pid: u32) -> io::Result<(f64, u64)> {
    let image = LiveImage::of_process(pid).map_err(io::Error::other)?;
    let process = libc::pid_t::try_from(pid).map_err(io::Error::other)?;
    let mut piece = vec![0_u8; PIECE];
    let began = Instant::now();
    let mut bytes = 0;
    for mapping in image.mappings() {
        if mapping.kind() != MappingKind::Heap {
            continue;
        }
        let mut address = mapping.start.0;
        while address < mapping.end.0 {
            let wanted =
                usize::try_from(mapping.end.0 - address).map_or(PIECE, |left| left.min(PIECE));
            let here = libc::iovec {
                iov_base: piece.as_mut_ptr().cast(),
                iov_len: wanted,
            };
            let there = libc::iovec {
                iov_base: std::ptr::without_provenance_mut(
                    usize::try_from(address).map_err(io::Error::other)?,
                ),
                iov_len: wanted,
            };
            // SAFETY: one buffer of `wanted` bytes at most, which nobody else uses; the other process's memory is only read.
            let read = unsafe {
                libc::process_vm_readv(process, &raw const here, 1, &raw const there, 1, 0)
            };
            let read = u64::try_from(read).map_err(|_| io::Error::last_os_error())?;
            if read == 0 {
                break;
            }
            bytes += read;
            address += read;
        }
    }
    Ok((began.elapsed().as_secs_f64(), bytes))
}

/// One walk: seconds of the walk alone, nanoseconds that the program stood still, and what was found.
fn walk(pid: u32) -> io::Result<(f64, f64, GlibcHeap)> {
    let image = LiveImage::of_process(pid).map_err(io::Error::other)?;
    let located = heap_walk::locate(&image);
    let [located] = located.as_slice() else {
        return Err(io::Error::other(format!(
            "{} mallocs instead of one",
            located.len()
        )));
    };
    let stop = ShortStop::begin(pid).map_err(io::Error::other)?;
    let pointers = stop.thread_pointers();
    let standing = heap_walk::stand(&image, located, Some(&pointers));
    let stopped = stop.release();
    let standing = standing.ok_or_else(|| io::Error::other("malloc was never called"))?;
    let began = Instant::now();
    let heap = heap_walk::examine(&image, standing, false);
    Ok((began.elapsed().as_secs_f64(), stopped.as_secs_f64(), heap))
}

/// `breaktrace heap` from its start to its end, in seconds.
fn whole(pid: u32) -> io::Result<f64> {
    let began = Instant::now();
    let status = Command::new(BREAKTRACE)
        .args(["heap", &pid.to_string()])
        .stdout(Stdio::null())
        .status()?;
    if status.success() {
        Ok(began.elapsed().as_secs_f64())
    } else {
        Err(io::Error::other(format!("breaktrace heap: {status}")))
    }
}

/// What was measured at one size of blocks.
struct Measured {
    chunks: u64,
    bytes: u64,
    alone: Figure,
    walks: Figure,
    ratios: Figure,
    stops: Figure,
    wholes: Figure,
}

fn measure(program: &Path, mib: u64, average: &str, rounds: usize) -> io::Result<Measured> {
    let mut target = Target::start(program, mib, average)?;
    let pid = target.process.id();
    let [mut alone, mut walks, mut ratios, mut stops, mut wholes] = [const { Vec::new() }; 5];
    let (mut chunks, mut bytes) = (0, 0);
    for _ in 0..rounds {
        let (reading, read) = read_alone(pid)?;
        let (walking, stopped, heap) = walk(pid)?;
        if let Some(check) = heap
            .checks
            .iter()
            .find(|check| check.outcome != CheckOutcome::Holds)
        {
            return Err(io::Error::other(format!("{check:?}")));
        }
        let total = &heap.total;
        chunks =
            total.in_use_chunks + total.cached_chunks + total.fast_chunks + total.binned_chunks;
        bytes = read;
        alone.push(reading);
        walks.push(walking);
        ratios.push(walking / reading);
        stops.push(stopped);
        wholes.push(whole(pid)?);
    }
    if !target.is_unharmed()? {
        return Err(io::Error::other("the program's heap has changed"));
    }
    let figure = |values| Figure::of(values).ok_or_else(|| io::Error::other("no rounds"));
    Ok(Measured {
        chunks,
        bytes,
        alone: figure(alone)?,
        walks: figure(walks)?,
        ratios: figure(ratios)?,
        stops: figure(stops)?,
        wholes: figure(wholes)?,
    })
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("heap_walk: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> io::Result<()> {
    let (mut mib, mut rounds) = (MIB, ROUNDS);
    // Cargo adds `--bench`.
    for word in std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
    {
        match word.split_once('=') {
            None if word == "quick" => (mib, rounds) = (QUICK_MIB, QUICK_ROUNDS),
            Some(("mib", number)) => mib = number.parse().map_err(io::Error::other)?,
            Some(("rounds", number)) => rounds = number.parse().map_err(io::Error::other)?,
            _ => {
                let complaint = format!("`{word}`: say quick, mib=N or rounds=N");
                return Err(io::Error::other(complaint));
            }
        }
    }
    let program = compile()?;
    println!("{}; {rounds} rounds", surroundings());
    println!("Heaps of {mib} MiB. Milliseconds: median (lowest-highest)");
    let header = [
        "chunks of",
        "chunks",
        "read alone",
        "walk",
        "ratio",
        "stands still",
        "breaktrace heap",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut verdicts = Vec::new();
    for (average, what) in SIZES {
        eprintln!("{what} ...");
        let measured = measure(&program, mib, average, rounds)?;
        rows.push(vec![
            what.to_owned(),
            format!("{} in {} MiB", measured.chunks, measured.bytes >> 20),
            scaled(measured.alone, 1e3),
            scaled(measured.walks, 1e3),
            scaled(measured.ratios, 1.0),
            scaled(measured.stops, 1e3),
            scaled(measured.wholes, 1e3),
        ]);
        let outcome = if measured.ratios.median <= BAR {
            "met   "
        } else {
            "MISSED"
        };
        verdicts.push(format!(
            "  {outcome}  chunks of {what}: a walk takes {:.2} times what reading takes, at most {BAR}",
            measured.ratios.median
        ));
    }
    print_table(&rows);
    println!();
    println!("Bars of issue 5");
    for verdict in verdicts {
        println!("{verdict}");
    }
    println!("Each program's heap was the same afterwards, by its own mallinfo2");
    println!("{}", surroundings());
    Ok(())
}

fn scaled(figure: Figure, factor: f64) -> String {
    format!(
        "{:.2} ({:.2}-{:.2})",
        figure.median * factor,
        figure.lowest * factor,
        figure.highest * factor
    )
}
