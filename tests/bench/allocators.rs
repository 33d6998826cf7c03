//! What allocators cost: programs under glibc, the bundled library and others, preloaded, side by side in one run.
//!
//! ```text
//! cargo bench --bench allocators -- [--only PART,...] [--allocators NAME,...] [--rounds N] [--list] [PART...]
//! ```
//!
//! `BREAKTRACE_BENCH_LIBRARY` names another library to run as `bundled`, `BREAKTRACE_BENCH_ROUNDS` the rounds.
//!
//! Nothing is traced. Rounds are interleaved (each allocator once, then all again), so that whatever else the machine
//! does meets all of them; a figure is the median over rounds of what was measured against glibc in the same round.
//! Each program's output has to be what it is under glibc: a cell says `WRONG` otherwise, `FAILED` when the program
//! ended badly, `HUNG` when it did not end, and the bench fails.

#[allow(dead_code, reason = "the other benches use the rest")]
mod support;

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::time::Duration;
use std::time::Instant;

use support::Figure;
use support::find_program;
use support::scratch;
use support::surroundings;

/// The library of this build.
const BUNDLED: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/libbreaktrace.so"));
const ROUNDS: usize = 5;
/// Where Debian puts the libraries of others.
const LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";
/// No run takes as long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);
/// Where the sources of the workloads are.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/bench/alloc");

/// What serves a program's `malloc`.
struct Allocator {
    name: &'static str,
    /// What is preloaded; `None` for what the program brings with it.
    library: Option<PathBuf>,
}

/// How a workload is run and measured.
enum Kind {
    /// One of `fixtures/bench/alloc/*.c`: tells its own peak.
    Fixture,
    /// A program of this machine.
    Program {
        /// A variable for its environment.
        variable: Option<(&'static str, &'static str)>,
        /// A file that it writes, which counts as its output too.
        writes: Option<PathBuf>,
    },
    /// redis-server, loaded by redis-benchmark.
    Redis,
}

struct Workload {
    name: String,
    kind: Kind,
    words: Vec<OsString>,
}

/// What one run took.
struct Run {
    /// Seconds from start to end.
    wall: f64,
    /// Seconds of processor time, user and system.
    processor: f64,
    /// The most that was resident, in KiB.
    peak: f64,
    /// What was resident when the program had freed nearly everything, in KiB, where it says.
    left: Option<f64>,
    /// What has to be the same under every allocator.
    output: Vec<u8>,
}

/// Why there is no figure.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Trouble {
    Wrong,
    Failed,
    Hung,
}

impl Trouble {
    fn word(self) -> &'static str {
        match self {
            Self::Wrong => "WRONG",
            Self::Failed => "FAILED",
            Self::Hung => "HUNG",
        }
    }
}

/// What is compared.
#[derive(Clone, Copy)]
enum Quantity {
    Wall,
    Processor,
    Peak,
    Left,
}

impl Quantity {
    const ALL: [Self; 4] = [Self::Wall, Self::Processor, Self::Peak, Self::Left];

    fn title(self) -> &'static str {
        match self {
            Self::Wall => "Wall time over glibc's",
            Self::Processor => "Processor time (user and system) over glibc's",
            Self::Peak => "Peak of resident memory over glibc's",
            Self::Left => "Resident memory after nearly everything was freed, over glibc's",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Wall | Self::Processor => "s",
            Self::Peak | Self::Left => "MiB",
        }
    }

    fn of(self, run: &Run) -> Option<f64> {
        match self {
            Self::Wall => Some(run.wall),
            Self::Processor => Some(run.processor),
            Self::Peak => Some(run.peak / 1024.0),
            Self::Left => run.left.map(|left| left / 1024.0),
        }
    }
}

/// All rounds of a workload under one allocator.
#[derive(Default)]
struct Rounds {
    runs: Vec<Run>,
    trouble: Option<Trouble>,
}

/// A workload under all allocators; the first is glibc.
struct Measured {
    name: String,
    columns: Vec<Rounds>,
}

impl Measured {
    fn glibc(&self, quantity: Quantity) -> Option<f64> {
        Some(figure(&self.columns[0], quantity)?.median)
    }

    /// The median of the ratios to the glibc run of the same round; no figure where a round is missing.
    fn ratio(&self, column: usize, quantity: Quantity) -> Option<f64> {
        if self.columns[column].trouble.is_some() {
            return None;
        }
        let ratios = self.columns[column]
            .runs
            .iter()
            .zip(&self.columns[0].runs)
            .filter_map(|(run, glibc)| Some(quantity.of(run)? / quantity.of(glibc)?));
        Some(Figure::of(ratios)?.median)
    }
}

fn figure(rounds: &Rounds, quantity: Quantity) -> Option<Figure> {
    Figure::of(rounds.runs.iter().filter_map(|run| quantity.of(run)))
}

/// What the command line asks for.
struct Wishes {
    only: Vec<String>,
    allocators: Vec<String>,
    rounds: usize,
    list: bool,
}

impl Wishes {
    fn read() -> io::Result<Self> {
        let rounds = match std::env::var("BREAKTRACE_BENCH_ROUNDS") {
            Ok(number) => count(&number)?,
            Err(_) => ROUNDS,
        };
        let mut wishes = Self {
            only: Vec::new(),
            allocators: Vec::new(),
            rounds,
            list: false,
        };
        let mut words = std::env::args().skip(1);
        while let Some(word) = words.next() {
            let mut value = || {
                words
                    .next()
                    .ok_or_else(|| io::Error::other(format!("{word} needs a value")))
            };
            match word.as_str() {
                // Cargo adds it.
                "--bench" => {}
                "--list" => wishes.list = true,
                "--only" => wishes.only.extend(parts(&value()?)),
                "--allocators" => wishes.allocators.extend(parts(&value()?)),
                "--rounds" => wishes.rounds = count(&value()?)?,
                _ if word.starts_with('-') => {
                    return Err(io::Error::other(format!("unknown option {word}")));
                }
                _ => wishes.only.extend(parts(&word)),
            }
        }
        Ok(wishes)
    }

    fn wants(&self, workload: &str) -> bool {
        self.only.is_empty()
            || self
                .only
                .iter()
                .any(|part| workload.contains(part.as_str()))
    }
}

fn parts(list: &str) -> impl Iterator<Item = String> {
    list.split(',').map(str::to_owned)
}

fn count(number: &str) -> io::Result<usize> {
    match number.parse() {
        Ok(count) if count > 0 => Ok(count),
        _ => Err(io::Error::other(format!(
            "`{number}` is no number of rounds"
        ))),
    }
}

fn main() -> ExitCode {
    match bench() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("allocators: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Says whether all programs did the same under every allocator.
fn bench() -> io::Result<bool> {
    let wishes = Wishes::read()?;
    let folder = scratch().join("allocators");
    fs::create_dir_all(&folder)?;
    let workloads: Vec<Workload> = workloads(&folder, &wishes)?;
    if wishes.list {
        for workload in &workloads {
            println!("{}", workload.name);
        }
        return Ok(true);
    }
    if workloads.is_empty() {
        return Err(io::Error::other("no workload has such a name; see --list"));
    }
    let allocators = allocators(&folder, &wishes)?;
    println!("{}; {} interleaved rounds", surroundings(), wishes.rounds);
    let mut measured = Vec::new();
    for workload in &workloads {
        eprint!("{:<16}", workload.name);
        let result = measure(workload, &allocators, wishes.rounds, &folder)?;
        eprintln!("{}", in_short(&result, &allocators));
        measured.push(result);
    }
    for quantity in Quantity::ALL {
        print_quantity(&measured, &allocators, quantity);
    }
    print_summary(&measured, &allocators);
    println!();
    println!("{}", surroundings());
    Ok(measured.iter().all(|measured| {
        measured
            .columns
            .iter()
            .all(|rounds| rounds.trouble.is_none())
    }))
}

/// The allocators that this machine has; says which it has not. glibc is always the first, as all others are compared
/// with it.
fn allocators(folder: &Path, wishes: &Wishes) -> io::Result<Vec<Allocator>> {
    let mut allocators = vec![Allocator {
        name: "glibc",
        library: None,
    }];
    let others = [
        ("bundled", bundled(folder)?),
        ("jemalloc", Path::new(LIBRARIES).join("libjemalloc.so.2")),
        ("mimalloc", Path::new(LIBRARIES).join("libmimalloc.so.2.0")),
        (
            "tcmalloc",
            Path::new(LIBRARIES).join("libtcmalloc_minimal.so.4"),
        ),
    ];
    if let Some(unknown) = wishes
        .allocators
        .iter()
        .find(|name| *name != "glibc" && others.iter().all(|(other, _)| other != name))
    {
        return Err(io::Error::other(format!("no allocator `{unknown}`")));
    }
    for (name, library) in others {
        if !wishes.allocators.is_empty() && !wishes.allocators.iter().any(|other| other == name) {
            continue;
        }
        if !library.is_file() {
            println!("{name}: left out, there is no {}", library.display());
        } else if !exports_malloc(&library)? {
            println!("{name}: left out, {} has no malloc", library.display());
        } else {
            allocators.push(Allocator {
                name,
                library: Some(library),
            });
        }
    }
    Ok(allocators)
}

/// The library of this build as a file, or the one that the environment names.
fn bundled(folder: &Path) -> io::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BREAKTRACE_BENCH_LIBRARY") {
        return std::path::absolute(path);
    }
    let path = folder.join("libbreaktrace.so");
    fs::write(&path, BUNDLED)?;
    Ok(path)
}

/// Without one, the program would run under glibc, and nothing would show it.
fn exports_malloc(library: &Path) -> io::Result<bool> {
    let output = Command::new("nm")
        .args(["-D", "--defined-only"])
        .arg(library)
        .output()
        .map_err(|error| io::Error::other(format!("cannot run nm: {error}")))?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().any(|line| {
        let name = line.rsplit(' ').next().unwrap_or_default();
        name.split('@').next() == Some("malloc")
    }))
}

fn measure(
    workload: &Workload,
    allocators: &[Allocator],
    rounds: usize,
    folder: &Path,
) -> io::Result<Measured> {
    // Warms the page cache, and says what the output has to be.
    let expected = match run(workload, &allocators[0], folder)? {
        Ok(run) => run.output,
        Err(trouble) => {
            return Err(io::Error::other(format!(
                "{}: {} under glibc; see {}",
                workload.name,
                trouble.word(),
                folder.display()
            )));
        }
    };
    let mut columns: Vec<Rounds> = allocators.iter().map(|_| Rounds::default()).collect();
    for _ in 0..rounds {
        for (allocator, column) in allocators.iter().zip(&mut columns) {
            if column.trouble.is_some() {
                continue;
            }
            match run(workload, allocator, folder)? {
                Ok(run) if run.output == expected => column.runs.push(run),
                Ok(run) => {
                    let kept = folder.join(format!("{}.{}", workload.name, allocator.name));
                    fs::write(kept.with_extension("wrong"), run.output)?;
                    fs::write(kept.with_extension("expected"), &expected)?;
                    column.trouble = Some(Trouble::Wrong);
                }
                Err(trouble) => column.trouble = Some(trouble),
            }
        }
    }
    Ok(Measured {
        name: workload.name.clone(),
        columns,
    })
}

fn run(
    workload: &Workload,
    allocator: &Allocator,
    folder: &Path,
) -> io::Result<Result<Run, Trouble>> {
    match &workload.kind {
        Kind::Fixture => run_program(workload, allocator, None, None, folder),
        Kind::Program { variable, writes } => {
            run_program(workload, allocator, *variable, writes.as_deref(), folder)
        }
        Kind::Redis => run_redis(allocator, folder),
    }
}

/// A command with a small environment of its own, and the allocator in it.
fn command(words: &[OsString], library: Option<&Path>, folder: &Path) -> io::Result<Command> {
    let Some((program, others)) = words.split_first() else {
        return Err(io::Error::other("a workload without words"));
    };
    let mut command = Command::new(program);
    command
        .args(others)
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("LC_ALL", "C")
        .env("HOME", folder)
        .env("PYTHONHASHSEED", "0")
        .env("PERL_HASH_SEED", "0")
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .current_dir(folder)
        .stdin(Stdio::null());
    if let Some(library) = library {
        command.env("LD_PRELOAD", library);
    }
    Ok(command)
}

fn run_program(
    workload: &Workload,
    allocator: &Allocator,
    variable: Option<(&str, &str)>,
    writes: Option<&Path>,
    folder: &Path,
) -> io::Result<Result<Run, Trouble>> {
    let (stdout, stderr) = (folder.join("stdout"), folder.join("stderr"));
    let mut command = command(&workload.words, allocator.library.as_deref(), folder)?;
    command
        .envs(variable)
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?);
    let start = Instant::now();
    let child = command
        .spawn()
        .map_err(|error| io::Error::other(format!("{}: {error}", workload.name)))?;
    let ended = wait(child, PATIENCE)?;
    let wall = start.elapsed().as_secs_f64();
    let said = fs::read_to_string(&stderr).unwrap_or_default();
    // What cannot be preloaded does not keep the program from running, but says nothing about the allocator.
    if said.contains("cannot be preloaded") {
        return Err(io::Error::other(said));
    }
    let usage = match ended {
        Ended::Well(usage) => usage,
        Ended::Badly(status) => {
            eprintln!(
                "\n  {} under {}: wait status {status:#x}: {}",
                workload.name,
                allocator.name,
                said.trim_end()
            );
            return Ok(Err(Trouble::Failed));
        }
        Ended::Never => return Ok(Err(Trouble::Hung)),
    };
    let mut output = fs::read(&stdout)?;
    if let Some(file) = writes {
        output.extend(fs::read(file)?);
        fs::remove_file(file)?;
    }
    let told = match workload.kind {
        Kind::Fixture => Told::take_out_of(&mut output),
        Kind::Program { .. } | Kind::Redis => Told::default(),
    };
    Ok(Ok(Run {
        wall,
        processor: usage.processor,
        // A program's account in the kernel begins with what this bench had in memory when it forked, which is more
        // than a small fixture ever has; so those look for themselves.
        peak: told.peak.unwrap_or(usage.peak),
        left: told.left,
        output,
    }))
}

/// What fixtures tell about themselves, in KiB.
#[derive(Default)]
struct Told {
    peak: Option<f64>,
    left: Option<f64>,
}

impl Told {
    /// Removes the lines with measurements. The last of those on resident memory is the one at the end.
    fn take_out_of(output: &mut Vec<u8>) -> Self {
        let mut told = Self::default();
        let mut others = String::new();
        for line in String::from_utf8_lossy(output).lines() {
            let mut words = line.split(' ');
            let (first, second) = (words.next(), words.next());
            let figure = second.and_then(|word| word.parse().ok());
            match first {
                Some("peak") => told.peak = figure,
                Some("resident") => told.left = figure,
                _ => {
                    others.push_str(line);
                    others.push('\n');
                }
            }
        }
        *output = others.into_bytes();
        told
    }
}

struct Usage {
    processor: f64,
    peak: f64,
}

enum Ended {
    /// With status 0.
    Well(Usage),
    /// With this wait status.
    Badly(i32),
    /// Not in time: it was killed.
    Never,
}

/// Waits for a child as long as `patience` allows, and takes the kernel's account of it and its children.
fn wait(child: Child, patience: Duration) -> io::Result<Ended> {
    let id = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let in_time = ends_within(id, patience)?;
    if !in_time {
        // SAFETY: kill reads nothing but its two numbers; the child has not been waited for, so the id is still its own.
        unsafe { libc::kill(id, libc::SIGKILL) };
    }
    let mut status = 0;
    // SAFETY: rusage is plain numbers, for which zeros are valid.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to local variables of the types that wait4 writes. The child is waited for only here.
    if unsafe { libc::wait4(id, &raw mut status, 0, &raw mut usage) } != id {
        return Err(io::Error::last_os_error());
    }
    if !in_time {
        return Ok(Ended::Never);
    }
    if status != 0 {
        return Ok(Ended::Badly(status));
    }
    #[expect(
        clippy::cast_precision_loss,
        reason = "seconds and KiB of a short run are far below 2^52"
    )]
    let (processor, peak) = (
        [usage.ru_utime, usage.ru_stime]
            .iter()
            .map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6)
            .sum(),
        usage.ru_maxrss as f64,
    );
    Ok(Ended::Well(Usage { processor, peak }))
}

fn ends_within(id: libc::pid_t, patience: Duration) -> io::Result<bool> {
    // SAFETY: pidfd_open reads nothing but its two numbers.
    let opened = unsafe { libc::syscall(libc::SYS_pidfd_open, id, 0) };
    let descriptor = libc::c_int::try_from(opened).map_err(io::Error::other)?;
    if descriptor < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    let descriptor = unsafe { OwnedFd::from_raw_fd(descriptor) };
    let mut polled = libc::pollfd {
        fd: descriptor.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let milliseconds = libc::c_int::try_from(patience.as_millis()).map_err(io::Error::other)?;
    // SAFETY: one pollfd, which lives in this function.
    match unsafe { libc::poll(&raw mut polled, 1, milliseconds) } {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(io::Error::last_os_error()),
    }
}

/// redis-server under the allocator, redis-benchmark without: wall time is that of the benchmark, the rest is the
/// server's.
fn run_redis(allocator: &Allocator, folder: &Path) -> io::Result<Result<Run, Trouble>> {
    // Debian's server brings jemalloc with it. The C library, preloaded, comes before that.
    let glibc = Path::new(LIBRARIES).join("libc.so.6");
    let library = allocator.library.as_deref().unwrap_or(&glibc);
    let socket = folder.join("redis.socket");
    let _ = fs::remove_file(&socket);
    let words = |words: &[&str]| -> Vec<OsString> { words.iter().map(OsString::from).collect() };
    let mut server = words(&[
        "redis-server",
        "--port",
        "0",
        "--save",
        "",
        "--appendonly",
        "no",
    ]);
    server.extend(words(&["--unixsocket"]));
    server.push(socket.clone().into());
    let (stdout, stderr) = (folder.join("redis.stdout"), folder.join("stderr"));
    let child = command(&server, Some(library), folder)?
        .stdout(File::create(&stdout)?)
        .stderr(File::create(&stderr)?)
        .spawn()?;
    let id = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let loaded = wait_until_it_listens(id, &socket)
        .and_then(|()| load(&socket, folder))
        .and_then(|wall| Ok((wall, contents(&socket, folder)?)));
    // A server that did not answer is not to stay.
    let asked = if loaded.is_ok() {
        libc::SIGTERM
    } else {
        libc::SIGKILL
    };
    // SAFETY: kill reads nothing but its two numbers; the child has not been waited for, so the id is still its own.
    unsafe { libc::kill(id, asked) };
    let ended = wait(child, PATIENCE)?;
    let (wall, output) = match loaded {
        Ok(loaded) => loaded,
        Err(error) => {
            eprintln!("\n  redis under {}: {error}", allocator.name);
            return Ok(Err(Trouble::Failed));
        }
    };
    Ok(match ended {
        Ended::Well(usage) => Ok(Run {
            wall,
            processor: usage.processor,
            peak: usage.peak,
            left: None,
            output,
        }),
        Ended::Badly(status) => {
            eprintln!(
                "\n  redis under {}: wait status {status:#x}",
                allocator.name
            );
            Err(Trouble::Failed)
        }
        Ended::Never => Err(Trouble::Hung),
    })
}

fn wait_until_it_listens(id: libc::pid_t, socket: &Path) -> io::Result<()> {
    let start = Instant::now();
    loop {
        match UnixStream::connect(socket) {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() > PATIENCE => return Err(error),
            Err(_) if ends_within(id, Duration::from_millis(2))? => {
                return Err(io::Error::other("the server ended at once"));
            }
            Err(_) => {}
        }
    }
}

/// Returns the seconds that the benchmark took.
fn load(socket: &Path, folder: &Path) -> io::Result<f64> {
    let mut words: Vec<OsString> = vec!["redis-benchmark".into(), "-s".into(), socket.into()];
    let options =
        "-q -n 40000 -r 30000 -d 300 -P 8 -c 20 -t set,get,lpush,rpush,lpop,sadd,hset,zadd";
    words.extend(options.split(' ').map(OsString::from));
    let start = Instant::now();
    let child = command(&words, None, folder)?
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()?;
    match wait(child, PATIENCE)? {
        Ended::Well(_) => Ok(start.elapsed().as_secs_f64()),
        Ended::Badly(status) => Err(io::Error::other(format!(
            "redis-benchmark ended with wait status {status:#x}"
        ))),
        Ended::Never => Err(io::Error::other("redis-benchmark did not end")),
    }
}

/// What must be in the server whatever random keys the benchmark took.
fn contents(socket: &Path, folder: &Path) -> io::Result<Vec<u8>> {
    let mut output = Vec::new();
    for question in [
        "LLEN mylist",
        "LRANGE mylist 39990 -1",
        "EVAL for\u{a0}i=1,5000\u{a0}do\u{a0}redis.call('set','k'..i,string.rep('v'..i,i%90))\u{a0}end\u{a0}local\u{a0}s=''\u{a0}for\u{a0}i=1,5000,7\u{a0}do\u{a0}s=s..redis.call('get','k'..i)\u{a0}end\u{a0}return\u{a0}redis.sha1hex(s) 0",
    ] {
        let mut words: Vec<OsString> = vec!["redis-cli".into(), "-s".into(), socket.into()];
        words.extend(
            question
                .split(' ')
                .map(|word| word.replace('\u{a0}', " ").into()),
        );
        let answer = command(&words, None, folder)?.output()?;
        output.extend(answer.stdout);
    }
    Ok(output)
}

/// The workloads that are wished for and can be run here; says which cannot.
fn workloads(folder: &Path, wishes: &Wishes) -> io::Result<Vec<Workload>> {
    let mut workloads = Vec::new();
    for words in [
        "small-1 1",
        "small-2 2",
        "mix-1 1",
        "mix-2 2",
        "larson-2 2",
        "xmalloc-2 2",
        "mstress-2 2",
        "churn",
        "bignum",
        "lists",
        "tree",
        "realloc",
        "large",
        "strings",
        "phases",
    ] {
        let (name, arguments) = words.split_once(' ').unwrap_or((words, ""));
        if !wishes.wants(name) {
            continue;
        }
        let source = name.trim_end_matches(|end: char| end == '-' || end.is_ascii_digit());
        let program = if wishes.list {
            PathBuf::new()
        } else {
            compile(source)?
        };
        workloads.push(Workload {
            name: name.to_owned(),
            kind: Kind::Fixture,
            words: [program.into()]
                .into_iter()
                .chain(arguments.split_whitespace().map(OsString::from))
                .collect(),
        });
    }
    for (name, program, prepare) in PROGRAMS {
        if !wishes.wants(name) {
            continue;
        }
        if !Path::new(program).is_file() && find_program(program).is_none() {
            println!("{name}: left out, {program} is not installed");
            continue;
        }
        let (kind, words) = prepare(folder)?;
        workloads.push(Workload {
            name: (*name).to_owned(),
            kind,
            words,
        });
    }
    Ok(workloads)
}

/// Writes what a program needs, and says how to run it.
type Prepare = fn(&Path) -> io::Result<(Kind, Vec<OsString>)>;

/// Programs of this machine: the workload, what must be installed, and how to prepare it.
const PROGRAMS: &[(&str, &str, Prepare)] = &[
    ("python3", "/usr/bin/python3", python),
    ("python3-malloc", "/usr/bin/python3", python_malloc),
    ("perl", "/usr/bin/perl", perl),
    ("cc1", "gcc", cc1),
    ("sqlite3", "sqlite3", sqlite),
    ("redis", "redis-benchmark", redis),
    ("git-log", "git", git_log),
    ("git-fsck", "git", git_fsck),
    ("node", "node", node),
];

const PLAIN: Kind = Kind::Program {
    variable: None,
    writes: None,
};

fn words(words: &[&str]) -> Vec<OsString> {
    words.iter().map(OsString::from).collect()
}

fn fixture(name: &str) -> String {
    format!("{SOURCES}/{name}")
}

fn python(_: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    Ok((
        PLAIN,
        words(&["/usr/bin/python3", "-I", &fixture("objects.py")]),
    ))
}

fn python_malloc(_: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    let kind = Kind::Program {
        variable: Some(("PYTHONMALLOC", "malloc")),
        writes: None,
    };
    // Not -I: it would overlook the variable.
    Ok((
        kind,
        words(&["/usr/bin/python3", "-s", &fixture("objects.py")]),
    ))
}

fn perl(_: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    Ok((PLAIN, words(&["/usr/bin/perl", &fixture("hashes.pl")])))
}

fn node(_: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    Ok((PLAIN, words(&["node", &fixture("objects.js")])))
}

fn sqlite(_: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    let read = format!(".read {}", fixture("tables.sql"));
    Ok((PLAIN, words(&["sqlite3", ":memory:", &read])))
}

fn redis(_: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    Ok((Kind::Redis, Vec::new()))
}

/// The compiler proper: the driver in front of it hardly allocates.
fn cc1(folder: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    let (source, assembly) = (folder.join("generated.c"), folder.join("generated.s"));
    let mut text = String::from("struct item { struct item *next; int key, values[8]; };\n");
    for n in 0..120 {
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "int work{n}(struct item *items, int count) {{\n  int sum = {n};\n  \
             for (struct item *item = items; item; item = item->next)\n    \
             switch (item->key % {}) {{\n    case 0: sum += item->values[{}] * count; break;\n    \
             case 1: for (int i = 0; i < 8; i++) sum ^= item->values[i] << (i + {}); break;\n    \
             case 2: sum = sum > count ? sum - item->key : sum + {n}; break;\n    \
             default: item->values[{}] = sum; }}\n  return sum + {};\n}}",
            3 + n % 5,
            n % 8,
            n % 7,
            (n + 3) % 8,
            if n > 0 {
                format!("work{}(items, count - 1)", n - 1)
            } else {
                "0".to_owned()
            }
        );
    }
    fs::write(&source, text)?;
    let path = Command::new("gcc").arg("-print-prog-name=cc1").output()?;
    let path = String::from_utf8_lossy(&path.stdout).trim().to_owned();
    let mut words = words(&[&path, "-quiet", "-O2"]);
    words.extend([source.into(), "-o".into(), assembly.clone().into()]);
    let kind = Kind::Program {
        variable: None,
        writes: Some(assembly),
    };
    Ok((kind, words))
}

fn git_log(folder: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    let repository = repository(folder)?;
    let mut words = words(&["git", "--no-pager", "-C"]);
    words.push(repository.into());
    words.extend(["log", "-p", "--numstat", "-M", "--all"].map(OsString::from));
    Ok((PLAIN, words))
}

fn git_fsck(folder: &Path) -> io::Result<(Kind, Vec<OsString>)> {
    let repository = repository(folder)?;
    let mut words = words(&["git", "-C"]);
    words.push(repository.into());
    words.extend(["fsck", "--full", "--no-progress"].map(OsString::from));
    Ok((PLAIN, words))
}

/// Commits that each change some of many files; always the same.
fn repository(folder: &Path) -> io::Result<PathBuf> {
    const COMMITS: usize = 1200;
    let repository = folder.join("repository.git");
    if repository.is_dir() {
        return Ok(repository);
    }
    let unfinished = folder.join("unfinished.git");
    if unfinished.is_dir() {
        fs::remove_dir_all(&unfinished)?;
    }
    let mut stream = String::new();
    for commit in 0..COMMITS {
        let message = format!("Change {commit}\n");
        let _ = write!(
            stream,
            "commit refs/heads/main\ncommitter A <a@example.org> {} +0000\ndata {}\n{message}",
            1_700_000_000 + commit,
            message.len()
        );
        for file in 0..4 {
            let which = (commit * 7 + file * 13) % 120;
            let mut text = String::new();
            for line in 0..150 {
                let changed = if line % 31 == commit % 31 { commit } else { 0 };
                let _ = writeln!(text, "line {line} of file {which}, as of {changed}");
            }
            let _ = write!(
                stream,
                "M 644 inline folder{}/file{which}\ndata {}\n{text}\n",
                which % 9,
                text.len()
            );
        }
        stream.push('\n');
    }
    let input = folder.join("repository.stream");
    fs::write(&input, stream)?;
    let git = |options: &[&str], stdin: Stdio| -> io::Result<()> {
        let mut words = words(&["git", "-C"]);
        words.push(folder.into());
        words.extend(options.iter().map(OsString::from));
        let output = command(&words, None, folder)?.stdin(stdin).output()?;
        if output.status.success() {
            Ok(())
        } else {
            Err(io::Error::other(
                String::from_utf8_lossy(&output.stderr).into_owned(),
            ))
        }
    };
    git(&["init", "-q", "--bare", "unfinished.git"], Stdio::null())?;
    git(
        &["--git-dir=unfinished.git", "fast-import", "--quiet"],
        File::open(&input)?.into(),
    )?;
    fs::rename(&unfinished, &repository)?;
    fs::remove_file(&input)?;
    Ok(repository)
}

/// Compiles `fixtures/bench/alloc/<name>.c`, unless that has been done since it changed.
fn compile(name: &str) -> io::Result<PathBuf> {
    let folder = scratch().join("bench-alloc");
    fs::create_dir_all(&folder)?;
    let program = folder.join(name);
    let source = Path::new(SOURCES).join(name).with_extension("c");
    let header = Path::new(SOURCES).join("common.h");
    let changed = |path: &Path| fs::metadata(path).and_then(|data| data.modified());
    let newest = changed(&source)?.max(changed(&header)?);
    if changed(&program).is_ok_and(|built| built > newest) {
        return Ok(program);
    }
    let status = Command::new("gcc")
        .args(["-O2", "-pthread"])
        // gcc would leave out pairs of calls whose block is hardly used.
        .args(["malloc", "free", "calloc", "realloc"].map(|call| format!("-fno-builtin-{call}")))
        .arg("-o")
        .arg(&program)
        .arg(&source)
        .status()
        .map_err(|error| io::Error::other(format!("cannot run gcc: {error}")))?;
    if status.success() {
        Ok(program)
    } else {
        Err(io::Error::other(format!(
            "gcc failed for {}: {status}",
            source.display()
        )))
    }
}

/// One workload while the bench goes on: wall time and peak.
fn in_short(measured: &Measured, allocators: &[Allocator]) -> String {
    let glibc = [Quantity::Wall, Quantity::Peak].map(|quantity| measured.glibc(quantity));
    let mut line = format!("glibc {}", glibc.map(plain).join(" s "));
    line.push_str(" MiB");
    for (column, allocator) in allocators.iter().enumerate().skip(1) {
        let _ = match measured.columns[column].trouble {
            Some(trouble) => write!(line, "  {} {}", allocator.name, trouble.word()),
            None => write!(
                line,
                "  {} {}/{}",
                allocator.name,
                plain(measured.ratio(column, Quantity::Wall)),
                plain(measured.ratio(column, Quantity::Peak))
            ),
        };
    }
    line
}

/// With as many digits as say something.
fn plain(figure: Option<f64>) -> String {
    match figure {
        None => "–".to_owned(),
        Some(figure) if figure >= 9.995 => format!("{figure:.1}"),
        Some(figure) => format!("{figure:.2}"),
    }
}

/// A Markdown table: a row per workload, a column per allocator.
fn print_quantity(measured: &[Measured], allocators: &[Allocator], quantity: Quantity) {
    let rows: Vec<&Measured> = measured
        .iter()
        .filter(|measured| measured.glibc(quantity).is_some())
        .collect();
    if rows.is_empty() {
        return;
    }
    println!();
    println!("{}", quantity.title());
    println!();
    let mut header = vec!["workload".to_owned(), format!("glibc, {}", quantity.unit())];
    header.extend(names(allocators));
    print_row(&header);
    print_rule(header.len());
    for measured in &rows {
        let mut row = vec![measured.name.clone(), plain(measured.glibc(quantity))];
        row.extend(
            (1..allocators.len()).map(|column| match measured.columns[column].trouble {
                Some(trouble) => trouble.word().to_owned(),
                None => plain(measured.ratio(column, quantity)),
            }),
        );
        print_row(&row);
    }
}

/// Geometric means over all workloads, and the worst of them.
fn print_summary(measured: &[Measured], allocators: &[Allocator]) {
    if allocators.len() < 2 {
        return;
    }
    println!();
    println!("All {} workloads together, over glibc's", measured.len());
    println!();
    let mut header = vec![String::new()];
    header.extend(names(allocators));
    print_row(&header);
    print_rule(header.len());
    let quantities = [
        ("wall time", Quantity::Wall),
        ("processor time", Quantity::Processor),
        ("peak memory", Quantity::Peak),
        ("memory left", Quantity::Left),
    ];
    let mut counted = vec!["workloads that ran well".to_owned()];
    counted.extend((1..allocators.len()).map(|column| {
        let well = |measured: &&Measured| measured.columns[column].trouble.is_none();
        measured.iter().filter(well).count().to_string()
    }));
    print_row(&counted);
    for (name, quantity) in quantities {
        let mut means = vec![format!("{name}, geometric mean")];
        let mut worst = vec![format!("{name}, worst")];
        for column in 1..allocators.len() {
            let ratios: Vec<(f64, &str)> = measured
                .iter()
                .filter_map(|measured| {
                    Some((measured.ratio(column, quantity)?, measured.name.as_str()))
                })
                .collect();
            means.push(plain(geometric_mean(&ratios)));
            worst.push(
                ratios
                    .iter()
                    .max_by(|one, other| one.0.total_cmp(&other.0))
                    .map_or_else(
                        || plain(None),
                        |(ratio, name)| format!("{} {name}", plain(Some(*ratio))),
                    ),
            );
        }
        print_row(&means);
        print_row(&worst);
    }
}

fn geometric_mean(ratios: &[(f64, &str)]) -> Option<f64> {
    let count = u32::try_from(ratios.len())
        .ok()
        .filter(|count| *count > 0)?;
    let sum: f64 = ratios.iter().map(|(ratio, _)| ratio.ln()).sum();
    Some((sum / f64::from(count)).exp())
}

fn names(allocators: &[Allocator]) -> impl Iterator<Item = String> {
    allocators[1..]
        .iter()
        .map(|allocator| allocator.name.to_owned())
}

fn print_row(cells: &[String]) {
    println!("| {} |", cells.join(" | "));
}

fn print_rule(columns: usize) {
    println!("| --- |{}", " ---: |".repeat(columns - 1));
}
