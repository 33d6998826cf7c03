//! What tracing costs: programs untraced, under breaktrace and under strace, side by side in one run.
//!
//! ```text
//! cargo bench --bench overhead -- [quick] [stacks] [rounds=N] [WORKLOAD...]
//! ```
//!
//! Rounds are interleaved (each variant once, then all again), so that whatever else the machine does meets all of
//! them; a figure is the median over rounds of what was measured against the untraced run of the same round. Ratios
//! are to be read, times depend on the machine.
//!
//! With `stacks`, what call stacks cost: whole programs only, with and without them, and strace's (`strace -k`).
//!
//! Storms do nothing but traced calls and time themselves: their figure is the time that tracing adds to one call.

mod support;

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::time::Instant;

use support::BREAKTRACE;
use support::Figure;
use support::STRACE_CALLS;
use support::compile;
use support::find_program;
use support::print_table;
use support::scratch;
use support::surroundings;

/// Rounds unless asked otherwise.
const ROUNDS: usize = 7;
const QUICK_ROUNDS: usize = 3;
/// Pairs of calls that make a million events.
const MILLION_EVENTS_PAIRS: &str = "500000";
/// Of stacks: 2¹⁸ of them, with four events each.
const MANY_STACKS_DEPTH: &str = "18";
/// What breaktrace may need for them, in bytes.
const MEMORY_BAR: u64 = 64 << 20;

/// Whole programs for which issue 4 says what stacks may cost: time over untraced, and microseconds for an event.
const WITH_STACKS: [&str; 4] = ["python3", "perl", "gcc", "sqlite3"];
const MOST_WITH_STACKS: f64 = 1.2;
const MOST_FOR_A_STACK: f64 = 150.0;

/// How a workload is run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Variant {
    Untraced,
    /// breaktrace as it is.
    Breaktrace,
    /// breaktrace without call stacks.
    WithoutStacks,
    /// The same without holding the idle-wake latency down.
    WithoutHold,
    /// strace as users meet it.
    Strace,
    /// The same strace, while this bench holds the idle-wake latency down.
    StraceHeld,
    /// strace with call stacks.
    StraceStacks,
}

impl Variant {
    /// What tracing costs.
    const ALL: [Self; 6] = [
        Self::Untraced,
        Self::Breaktrace,
        Self::WithoutStacks,
        Self::WithoutHold,
        Self::Strace,
        Self::StraceHeld,
    ];

    /// What call stacks cost.
    const STACKS: [Self; 5] = [
        Self::Untraced,
        Self::Breaktrace,
        Self::WithoutStacks,
        Self::Strace,
        Self::StraceStacks,
    ];

    fn title(self) -> &'static str {
        match self {
            Self::Untraced => "untraced",
            Self::Breaktrace => "breaktrace",
            Self::WithoutStacks => "--stacks off",
            Self::WithoutHold => "--no-latency-hold",
            Self::Strace => "strace",
            Self::StraceHeld => "strace, held",
            Self::StraceStacks => "strace -k",
        }
    }

    /// The words in front of the workload's own.
    fn prefix(self) -> Vec<&'static str> {
        match self {
            Self::Untraced => vec![],
            Self::Breaktrace => vec![BREAKTRACE, "run", "-q", "--"],
            Self::WithoutStacks => vec![BREAKTRACE, "run", "-q", "--stacks", "off", "--"],
            Self::WithoutHold => vec![
                BREAKTRACE,
                "run",
                "-q",
                "--stacks",
                "off",
                "--no-latency-hold",
                "--",
            ],
            Self::StraceStacks => vec![
                "strace",
                "-f",
                "-k",
                "--seccomp-bpf",
                "-e",
                STRACE_CALLS,
                "-o",
                "/dev/null",
            ],
            Self::Strace | Self::StraceHeld => {
                vec![
                    "strace",
                    "-f",
                    "--seccomp-bpf",
                    "-e",
                    STRACE_CALLS,
                    "-o",
                    "/dev/null",
                ]
            }
        }
    }
}

/// What is measured of a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    /// Wall time of the whole program, from its start to its end.
    WholeProgram,
    /// Time per call, as the program itself took it.
    PerCall,
}

/// What issue 2 asks of a workload.
#[derive(Clone, Copy, Debug)]
enum Bar {
    /// Wall time over untraced.
    AtMost(f64),
    /// What breaktrace adds over what strace adds: as users meet it, and with the same hold.
    AgainstStrace { as_met: f64, held: f64 },
}

/// A program to measure.
struct Workload {
    name: &'static str,
    /// What must be installed for it.
    program: &'static str,
    words: Vec<String>,
    measure: Measure,
    bar: Option<Bar>,
}

impl Workload {
    /// One run: seconds, in all or per call.
    fn run(&self, variant: Variant) -> io::Result<f64> {
        let _hold = match variant {
            Variant::StraceHeld => Some(LatencyHold::take()?),
            _ => None,
        };
        let prefix = variant.prefix();
        let mut words = prefix
            .into_iter()
            .chain(self.words.iter().map(String::as_str));
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .env("LC_ALL", "C")
            .env("PYTHONHASHSEED", "0")
            .env("PERL_HASH_SEED", "0")
            .stdin(Stdio::null())
            .stdout(match self.measure {
                Measure::WholeProgram => Stdio::null(),
                Measure::PerCall => Stdio::piped(),
            });
        let start = Instant::now();
        let output = command.spawn()?.wait_with_output()?;
        let took = start.elapsed().as_secs_f64();
        if !output.status.success() {
            return Err(io::Error::other(format!(
                "{} {}: {}",
                self.name,
                variant.title(),
                output.status
            )));
        }
        match self.measure {
            Measure::WholeProgram => Ok(took),
            Measure::PerCall => per_call(&output.stdout)
                .ok_or_else(|| io::Error::other(format!("{}: unexpected output", self.name))),
        }
    }

    /// Events that breaktrace records of it, from a run of its own.
    fn events(&self) -> io::Result<u64> {
        let report = scratch().join("events.json");
        let status = Command::new(BREAKTRACE)
            .args(["run", "-q", "-o"])
            .arg(&report)
            .arg("--")
            .args(&self.words)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()?;
        let value: serde_json::Value = serde_json::from_reader(File::open(&report)?)?;
        value["end"]["events"]
            .as_u64()
            .filter(|_| status.success())
            .ok_or_else(|| io::Error::other(format!("{}: no report", self.name)))
    }
}

/// Seconds per call out of `calls N nanoseconds T`.
fn per_call(output: &[u8]) -> Option<f64> {
    let text = std::str::from_utf8(output).ok()?;
    let mut words = text.split_whitespace();
    let calls: f64 = words.nth(1)?.parse().ok()?;
    let nanoseconds: f64 = words.nth(1)?.parse().ok()?;
    Some(nanoseconds / calls / 1e9)
}

/// Holds the idle-wake latency of the processors at zero while it lives, as breaktrace does by itself.
struct LatencyHold {
    _device: File,
}

impl LatencyHold {
    fn take() -> io::Result<Self> {
        let mut device = OpenOptions::new()
            .write(true)
            .open("/dev/cpu_dma_latency")?;
        device.write_all(&0_i32.to_ne_bytes())?;
        Ok(Self { _device: device })
    }
}

/// All rounds of a workload.
struct Measured<'a> {
    workload: &'a Workload,
    events: u64,
    /// Seconds by variant and round; empty for a variant that cannot be run here.
    seconds: Vec<(Variant, Vec<f64>)>,
}

impl Measured<'_> {
    fn of(&self, variant: Variant) -> &[f64] {
        self.seconds
            .iter()
            .find(|(other, _)| *other == variant)
            .map_or(&[], |(_, seconds)| seconds)
    }

    /// A variant compared with the untraced run of the same round.
    fn compared(&self, variant: Variant, compare: impl Fn(f64, f64) -> f64) -> Option<Figure> {
        Figure::of(
            self.of(variant)
                .iter()
                .zip(self.of(Variant::Untraced))
                .map(|(traced, untraced)| compare(*traced, *untraced)),
        )
    }

    fn ratio(&self, variant: Variant) -> Option<Figure> {
        self.compared(variant, |traced, untraced| traced / untraced)
    }

    /// Seconds that tracing adds.
    fn added(&self, variant: Variant) -> Option<Figure> {
        self.compared(variant, |traced, untraced| traced - untraced)
    }

    /// Microseconds that stacks add to an event.
    #[expect(clippy::cast_precision_loss, reason = "printed with one digit")]
    fn added_by_stacks(&self) -> Option<Figure> {
        Figure::of(
            self.of(Variant::Breaktrace)
                .iter()
                .zip(self.of(Variant::WithoutStacks))
                .map(|(with, without)| (with - without) * 1e6 / self.events as f64),
        )
    }

    /// What breaktrace adds without stacks, as strace records none, over what `other` adds.
    fn added_over(&self, other: Variant) -> Option<f64> {
        Some(self.added(Variant::WithoutStacks)?.median / self.added(other)?.median)
    }
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("overhead: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> io::Result<()> {
    // Cargo adds `--bench`.
    let words: Vec<String> = std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
        .collect();
    let mut rounds = ROUNDS;
    let mut stacks = false;
    let mut chosen = Vec::new();
    for word in &words {
        match word.strip_prefix("rounds=") {
            Some(number) => rounds = number.parse().map_err(io::Error::other)?,
            None if word == "quick" => rounds = QUICK_ROUNDS,
            None if word == "stacks" => stacks = true,
            None => chosen.push(word.as_str()),
        }
    }
    let workloads = workloads()?;
    if let Some(unknown) = chosen.iter().find(|name| {
        **name != "memory" && !workloads.iter().any(|workload| workload.name == **name)
    }) {
        let names: Vec<&str> = workloads.iter().map(|workload| workload.name).collect();
        return Err(io::Error::other(format!(
            "no workload `{unknown}`; there are {}, memory",
            names.join(", ")
        )));
    }
    let wanted = |name: &str| {
        let by_default = !stacks || WITH_STACKS.contains(&name);
        (chosen.is_empty() && by_default) || chosen.contains(&name)
    };
    let variants = variants(if stacks {
        &Variant::STACKS
    } else {
        &Variant::ALL
    });
    println!("{}; {rounds} interleaved rounds", surroundings());
    let mut measured = Vec::new();
    for workload in workloads.iter().filter(|workload| wanted(workload.name)) {
        if find_program(workload.program).is_none() {
            println!(
                "{}: left out, {} is not installed",
                workload.name, workload.program
            );
            continue;
        }
        eprintln!("{} ...", workload.name);
        measured.push(measure(workload, &variants, rounds)?);
    }
    print_results(&measured, &variants);
    println!();
    if stacks {
        print_stacks(&measured);
        println!("{}", surroundings());
        return Ok(());
    }
    println!("Bars of issue 2");
    for measured in &measured {
        judge(measured);
    }
    if wanted("memory") {
        judge_memory()?;
    }
    println!("{}", surroundings());
    Ok(())
}

/// The variants that this machine allows; says which it does not.
fn variants(wanted: &[Variant]) -> Vec<Variant> {
    let strace = find_program("strace").is_some();
    if !strace {
        println!("strace is not installed: its columns are left out");
    }
    let hold = LatencyHold::take();
    if let Err(error) = &hold {
        println!("/dev/cpu_dma_latency: {error}: nobody holds the latency here");
    }
    wanted
        .iter()
        .copied()
        .filter(|variant| match variant {
            Variant::Strace | Variant::StraceStacks => strace,
            Variant::StraceHeld => strace && hold.is_ok(),
            _ => true,
        })
        .collect()
}

fn measure<'a>(
    workload: &'a Workload,
    variants: &[Variant],
    rounds: usize,
) -> io::Result<Measured<'a>> {
    // Also warms the page cache.
    let events = workload.events()?;
    let mut seconds: Vec<(Variant, Vec<f64>)> = variants
        .iter()
        .map(|variant| (*variant, Vec::new()))
        .collect();
    for _ in 0..rounds {
        for (variant, seconds) in &mut seconds {
            seconds.push(workload.run(*variant)?);
        }
    }
    Ok(Measured {
        workload,
        events,
        seconds,
    })
}

fn print_results(measured: &[Measured<'_>], variants: &[Variant]) {
    let traced = &variants[1..];
    let header = |first: &str, second: &str| -> Vec<String> {
        [first, "events", second]
            .into_iter()
            .chain(traced.iter().map(|variant| variant.title()))
            .map(str::to_owned)
            .collect()
    };
    let mut programs = vec![header("program", "untraced, s")];
    let mut storms = vec![header("storm", "untraced, µs")];
    for measured in measured {
        let untraced = Figure::of(measured.of(Variant::Untraced).iter().copied());
        let (rows, scale) = match measured.workload.measure {
            Measure::WholeProgram => (&mut programs, 1.0),
            Measure::PerCall => (&mut storms, 1e6),
        };
        let mut row = vec![
            measured.workload.name.to_owned(),
            measured.events.to_string(),
            untraced.map_or_else(String::new, |figure| {
                format!("{:.3}", figure.median * scale)
            }),
        ];
        row.extend(
            traced
                .iter()
                .map(|variant| match measured.workload.measure {
                    Measure::WholeProgram => spread(measured.ratio(*variant), 1.0, 2),
                    Measure::PerCall => spread(measured.added(*variant), 1e6, 1),
                }),
        );
        rows.push(row);
    }
    println!();
    println!("Whole programs: time over untraced; in brackets the lowest and highest round");
    print_table(&programs);
    println!();
    println!(
        "Storms: microseconds that tracing adds to a call; in brackets the lowest and highest round"
    );
    print_table(&storms);
}

fn spread(figure: Option<Figure>, scale: f64, digits: usize) -> String {
    figure.map_or_else(
        || "not run".to_owned(),
        |figure| {
            format!(
                "{:.digits$} ({:.digits$}-{:.digits$})",
                figure.median * scale,
                figure.lowest * scale,
                figure.highest * scale
            )
        },
    )
}

/// Prints how a workload stands against what is asked of it.
fn judge(measured: &Measured<'_>) {
    let name = measured.workload.name;
    match measured.workload.bar {
        None => {}
        Some(Bar::AtMost(most)) => verdict(
            measured
                .ratio(Variant::WithoutStacks)
                .map(|figure| figure.median),
            most,
            &format!("{name}: time over untraced"),
        ),
        Some(Bar::AgainstStrace { as_met, held }) => {
            verdict(
                measured.added_over(Variant::Strace),
                as_met,
                &format!("{name}: time added, over strace's as users meet it"),
            );
            verdict(
                measured.added_over(Variant::StraceHeld),
                held,
                &format!("{name}: time added, over strace's with the same latency hold"),
            );
        }
    }
}

/// Prints what stacks cost, and how that stands against what is asked.
fn print_stacks(measured: &[Measured<'_>]) {
    let mut rows = vec![vec![
        "program".to_owned(),
        "µs added by stacks to an event".to_owned(),
    ]];
    for measured in measured {
        let added = spread(measured.added_by_stacks(), 1.0, 1);
        rows.push(vec![measured.workload.name.to_owned(), added]);
    }
    print_table(&rows);
    println!();
    println!("Bars of issue 4");
    for measured in measured {
        let name = measured.workload.name;
        let ratio = measured.ratio(Variant::Breaktrace);
        let added = measured.added_by_stacks();
        verdict(
            ratio.map(|figure| figure.median),
            MOST_WITH_STACKS,
            &format!("{name}: time with stacks over untraced"),
        );
        verdict(
            added.map(|figure| figure.median),
            MOST_FOR_A_STACK,
            &format!("{name}: microseconds for a stack"),
        );
    }
}

fn verdict(found: Option<f64>, most: f64, what: &str) {
    match found {
        Some(found) if found <= most => {
            println!("  met         {what}: {found:.2}, at most {most:.2}")
        }
        Some(found) => println!("  MISSED      {what}: {found:.2}, at most {most:.2}"),
        None => println!("  not judged  {what}: strace or the hold is not to be had here"),
    }
}

/// Lets breaktrace record a million events, without and with an event log, and looks at its memory.
fn judge_memory() -> io::Result<()> {
    let storm = compile("break_storm")?;
    let log = scratch().join("million.jsonl");
    let report = scratch().join("million.json");
    let many_stacks = compile("many_stacks")?;
    for (what, program, size, with_log) in [
        ("a million events", &storm, MILLION_EVENTS_PAIRS, false),
        (
            "a million events with a log",
            &storm,
            MILLION_EVENTS_PAIRS,
            true,
        ),
        (
            "a million events from 262,144 stacks",
            &many_stacks,
            MANY_STACKS_DEPTH,
            true,
        ),
    ] {
        let mut command = Command::new(BREAKTRACE);
        command.args(["run", "-q"]);
        if with_log {
            command.arg("--events").arg(&log).arg("-o").arg(&report);
        }
        command
            .arg("--")
            .arg(program)
            .arg(size)
            .stdout(Stdio::null());
        let peak = peak_memory(&mut command)?;
        let outcome = if peak < MEMORY_BAR {
            "met   "
        } else {
            "MISSED"
        };
        println!(
            "  {outcome}      {what}: at most {:.1} MiB of breaktrace in memory, below {} MiB",
            mebibytes(peak),
            MEMORY_BAR >> 20
        );
    }
    // It is large, and says nothing after its size has been bounded.
    let _ = std::fs::remove_file(&log);
    Ok(())
}

#[expect(clippy::cast_precision_loss, reason = "printed with one digit")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}

/// Runs a command and returns the most memory, in bytes, that it or a child of it had resident: an upper bound for
/// the command itself, as the kernel does not tell them apart (getrusage(2)).
fn peak_memory(command: &mut Command) -> io::Result<u64> {
    let child = command.spawn()?;
    let pid = libc::pid_t::try_from(child.id()).map_err(io::Error::other)?;
    let mut status = 0;
    // SAFETY: all-zero bytes are a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are valid, and the child is ours and not yet waited for: `child` is not used again.
    let waited = unsafe { libc::wait4(pid, &raw mut status, 0, &raw mut usage) };
    if waited != pid {
        return Err(io::Error::last_os_error());
    }
    let status = std::process::ExitStatus::from_raw(status);
    if !status.success() {
        return Err(io::Error::other(format!("breaktrace on a storm: {status}")));
    }
    u64::try_from(usage.ru_maxrss)
        .map(|kib| kib * 1024)
        .map_err(io::Error::other)
}

fn workloads() -> io::Result<Vec<Workload>> {
    let whole = |name, program, words: &[&str], most: Option<f64>| Workload {
        name,
        program,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        measure: Measure::WholeProgram,
        bar: most.map(Bar::AtMost),
    };
    let against_strace = Some(Bar::AgainstStrace {
        as_met: 0.5,
        held: 1.0,
    });
    let storm = |name, words: &[&str]| Workload {
        name,
        program: "cc",
        words: words.iter().map(|word| (*word).to_owned()).collect(),
        measure: Measure::PerCall,
        bar: against_strace,
    };
    let break_storm = compile("break_storm")?;
    let mapping_storm = compile("mapping_storm")?;
    let sawtooth = compile("sawtooth")?;
    let source = write_source(&scratch().join("large.c"), 120)?;
    let lines = write_lines(&scratch().join("lines.txt"), 2_000_000)?;
    let small = write_small_sources(&scratch().join("small"), 24)?;
    let python = real_python();
    let text = |path: &Path| path.to_string_lossy().into_owned();
    Ok(vec![
        whole("python3", "python3", &[&python, "-c", PYTHON], Some(1.05)),
        whole("perl", "perl", &["perl", "-e", PERL], Some(1.05)),
        whole(
            "gcc",
            "gcc",
            &["gcc", "-O2", "-c", &text(&source), "-o", "/dev/null"],
            Some(1.05),
        ),
        whole(
            "sqlite3",
            "sqlite3",
            &["sqlite3", ":memory:", SQL],
            Some(1.05),
        ),
        whole(
            "sort",
            "sort",
            &[
                "sort",
                "--parallel=2",
                "-S",
                "256M",
                "-o",
                "/dev/null",
                &text(&lines),
            ],
            Some(1.10),
        ),
        whole(
            "sawtooth-kept",
            "cc",
            &[&text(&sawtooth), "100", "kept"],
            None,
        ),
        whole(
            "sawtooth-trimmed",
            "cc",
            &[&text(&sawtooth), "20", "trimmed"],
            None,
        ),
        whole("forks", "sh", &["sh", "-c", FORKS], Some(1.6)),
        Workload {
            bar: against_strace,
            ..whole(
                "make",
                "make",
                &["make", "-s", "-B", "-j2", "-C", &text(&small)],
                None,
            )
        },
        storm("break-storm", &[&text(&break_storm), "20000"]),
        storm("four-threads", &[&text(&mapping_storm), "4", "5000"]),
    ])
}

/// 400 000 lists in a dict and as many tuples, freed, and the dict once more.
const PYTHON: &str = "
def build(): return {i: [i, i + 1] for i in range(400000)}
lists = build(); tuples = [(i, str(i)) for i in range(400000)]
del lists, tuples
lists = build(); print(sum(map(len, lists.values())))
";

/// A hash of 400 000 arrays, half of them deleted.
const PERL: &str = "
my %h; $h{$_} = [$_, $_ + 1, $_ + 2] for 1 .. 400000;
delete $h{$_ * 2} for 1 .. 200000; print scalar(keys %h), qq(\\n);
";

/// 400 000 rows with two indexes, dropped.
const SQL: &str = "
create table t(a integer primary key, b integer, c text);
with recursive n(i) as (select 1 union all select i + 1 from n where i < 400000)
insert into t select i, (i * 7919) % 1000003, 'row number ' || i from n;
create index tb on t(b); create index tc on t(c);
select count(*), sum(b) from t; drop table t; select count(*) from sqlite_master;
";

const FORKS: &str = "i=0; while [ $i -lt 300 ]; do /bin/true; i=$((i+1)); done";

/// The interpreter itself: `python3` may be a shell script that looks for it, and would be measured instead.
fn real_python() -> String {
    Command::new("python3")
        .args(["-c", "import sys; print(sys.executable)"])
        .output()
        .ok()
        .and_then(|output| String::from_utf8(output.stdout).ok())
        .map(|path| path.trim().to_owned())
        .filter(|path| !path.is_empty())
        .unwrap_or_else(|| "python3".to_owned())
}

/// A C file of many functions that give the optimizer something to do.
fn write_source(path: &Path, functions: usize) -> io::Result<PathBuf> {
    let mut file = io::BufWriter::new(File::create(path)?);
    writeln!(file, "struct point {{ long x, y; struct point *next; }};")?;
    for number in 0..functions {
        writeln!(
            file,
            "long f{number}(struct point *p, long n) {{
    long a[16] = {{{number}}}, sum = n;
    for (long i = 0; i < n; i++) {{
        a[i % 16] += p->x * (i + {number}) - p->y;
        switch ((a[i % 16] + {number}) % 7) {{
        case 0: p = p->next; break;
        case 1: sum += a[(i + 3) % 16]; break;
        case 2: sum ^= p->next->y << 3; break;
        case 3: p->y = sum / (p->x | 1); break;
        case 4: a[(i * 5) % 16] = sum; break;
        default: sum -= i;
        }}
    }}
    return sum{};
}}",
            if number > 0 {
                format!(" + f{}(p, n / 2)", number - 1)
            } else {
                String::new()
            }
        )?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(path.to_path_buf())
}

/// Lines in no order, the same each time.
fn write_lines(path: &Path, lines: usize) -> io::Result<PathBuf> {
    let mut file = io::BufWriter::new(File::create(path)?);
    // Knuth's linear congruential generator (MMIX).
    let mut state: u64 = 1;
    for _ in 0..lines {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        writeln!(file, "{:016x}", state)?;
    }
    file.into_inner().map_err(io::IntoInnerError::into_error)?;
    Ok(path.to_path_buf())
}

/// A folder with a Makefile and small C files: make, a driver, a compiler and an assembler for each.
fn write_small_sources(folder: &Path, files: usize) -> io::Result<PathBuf> {
    std::fs::create_dir_all(folder)?;
    for number in 0..files {
        write_source(&folder.join(format!("file{number}.c")), 2)?;
    }
    std::fs::write(
        folder.join("Makefile"),
        "OBJECTS := $(patsubst %.c,%.o,$(wildcard *.c))\nall: $(OBJECTS)\n%.o: %.c\n\t$(CC) -O1 -c $< -o $@\n",
    )?;
    Ok(folder.to_path_buf())
}
