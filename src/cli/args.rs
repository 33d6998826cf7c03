//! What can be typed.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::Subcommand;
use clap::ValueEnum;
use clap::ValueHint;
use clap::builder::TypedValueParser;

use crate::event::StackMode;
use crate::render::Format;
use crate::render::Measure;
use crate::report::PathOrder;
use crate::report::PathSelection;
use crate::report::gate::MismatchKind;
use crate::stats_page::Policy;
use crate::tracer::Allocator;

const EXAMPLES: &str = "\
Examples:
  breaktrace run -- python3 build.py            what moved the break, on stderr
  breaktrace run -o heap.json -- make -j4       as JSON, children included
  breaktrace run --events e.jsonl -- ./main     each event, as it happens
  breaktrace run --allocator bundled -- ./main  on breaktrace's own malloc
  breaktrace compare -- ./main                  the system's malloc beside it
  breaktrace attach $(pidof redis-server)       join it; Ctrl-C lets it go
  breaktrace attach --duration 10s 4242         watch it for ten seconds
  breaktrace heap 4242                          leak, or kept by malloc?
  breaktrace report -o heap.html heap.json      a recording, for a browser
  breaktrace run --baseline b.json -- ./main    in CI: 3 when it became worse
  breaktrace demo                               what malloc makes of the break";

const RUN_HELP: &str = "\
The program owns stdin, stdout, stderr and the exit status: breaktrace ends with the program's exit code, or by the \
same signal. Its own failures exit with 125; 126 when the program cannot be executed, 127 when it is not found; 2 when \
the command line is wrong. The report goes to stderr, or where -o says.

Signals to breaktrace: SIGINT, SIGTERM, SIGHUP and SIGQUIT are passed on to the program; SIGUSR1 takes a snapshot.";

const COMPARE_HELP: &str = "\
The program's standard output is shown once it has ended for the first time; that of later runs is only compared with \
it. Standard error is shown of every run. Its standard input is the same in each run if it is a file, and empty \
otherwise. Address space randomization is left out. Ctrl-C ends the program and starts no further run.

Exit status: the program's own; 1 when output or ending differed between runs; 125 when breaktrace failed or was \
interrupted; 126, 127 and 2 as for `run`.";

const ATTACH_HELP: &str = "\
Ctrl-C (SIGINT), SIGTERM, --duration or the end of the processes ends the recording; the processes go on as they were: \
running, sleeping or stopped. Being attached to wakes a process once: epoll_wait(2) and a few other calls then return \
EINTR. Exit status 0, 1 when attaching or recording failed, 2 when the command line is wrong.

Signals to breaktrace: SIGUSR1 takes a snapshot.";

const HEAP_HELP: &str = "\
Tells of a process that uses glibc's malloc what its heap's memory is used for, and whether that is a leak: in use (the \
program has not freed it), kept by malloc (malloc_trim(0) would return it), or fragmented (free, between chunks in use).

Nothing is loaded into the process, and nothing called in it. It stands still for some milliseconds, while arenas and \
thread caches are read, and runs while the rest is; pages that it never touched, or that are swapped out, stay so.

Examples:
  breaktrace heap 4242                          one look: what to know and do
  breaktrace heap --every 10s 4242              what grows? Ctrl-C ends it
  breaktrace heap --every 1s --count 60 4242    the same for a minute
  breaktrace heap --json 4242 | jq .verdict     docs/heap-schema.md has more
  breaktrace heap --exact -v -o heap.txt 4242   all there is, to the byte
  breaktrace heap core.4242                     of a crash, or from gcore(1)

Exit status 0, 1 when the process cannot be looked at, 2 when the command line is wrong.";

const SYMBOLIZE_HELP: &str = "\
What the report knows already stays; what these files tell is added. So it may be done on the machine that has the \
debug files, and again when there are more. A file counts only if it is of the build that ran: by its build ID, or by \
size and time of change where it has none. Nothing is fetched from the network. What was found is told on stderr.

Exit status 0 also when there was nothing to find, 1 when a file cannot be read or written, 2 when the command line is \
wrong.";

const CHECK_HELP: &str = "\
With a baseline, no figure that depends on the program alone may grow. Limits change that, the last one that concerns a \
metric counts: those of the file, then those of the command line. A limit is
  <=64MiB       a cap, which needs no baseline
  +5%  +256KiB  growth over the baseline; of +5%,256KiB the larger counts
  ~5%,64KiB     change either way
  off           no limit

`breaktrace metrics` lists the metrics. Several reports are several runs of one program: medians are judged, and what \
overlaps with what is allowed is inconclusive.

Examples:
  once, and commit heap.json:
  breaktrace run --save-baseline heap.json -- ./app --self-test
  in CI, exit status 3 when it became worse:
  breaktrace run --baseline heap.json -- ./app --self-test
  the same of a recording, with limits from a file:
  breaktrace check report.json --baseline heap.json --limits heap.toml
  a cap, and a JUnit report:
  breaktrace check report.json --max heap.peak=64MiB -o verdict.xml
  take the figures over:
  breaktrace check report.json --baseline heap.json --update

Exit status 0, 3 when something is worse than it may be or the program did not end as it should, 4 when there is no \
baseline or it is one of something else, 2 when the command line or a limit is wrong, 1 for all other failures.";

const COMPLETIONS_HELP: &str = "\
Examples:
  echo 'source <(breaktrace completions bash)' >> ~/.bashrc
  breaktrace completions zsh > ~/.zfunc/_breaktrace
  breaktrace completions fish > ~/.config/fish/completions/breaktrace.fish";

const MAN_HELP: &str = "\
Examples:
  breaktrace man run | man -l -
  breaktrace man --dir ~/.local/share/man/man1";

const DEMO_HELP: &str = "\
breaktrace traces itself playing a small program: five blocks of 16 KiB from malloc, the second freed, a sixth, freed \
as well, and one of 90 KiB. What the program saw (sbrk(0)) stands beside what was traced, and each number is taken \
apart.

Exit status 0 when both sides agree, 1 when they don't or tracing failed, 2 when the command line is wrong.";

/// Shows what moved a program's break: who asked for memory, why so far, and what came back.
#[derive(Debug, Parser)]
#[command(name = "breaktrace", version, after_help = EXAMPLES, arg_required_else_help = true)]
pub(super) struct Cli {
    #[command(subcommand)]
    pub(super) command: Command,
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Launch a program and trace its memory calls
    Run(Box<Run>),
    /// Join running processes; Ctrl-C lets them go
    Attach(Attach),
    /// Run a program on several allocators and put the figures side by side
    Compare(Compare),
    /// Look at a running program's heap: leak, or kept by malloc?
    Heap(Heap),
    /// Show a recorded report or event log again
    Report(Report),
    /// Tell by the exit code whether a recording is worse than it may be
    Check(Check),
    /// Show what changed between two recordings
    Diff(Diff),
    /// List the metrics that limits and baselines know
    Metrics(Metrics),
    /// Add functions, files and lines to the call stacks of a report
    Symbolize(Symbolize),
    /// Show on breaktrace itself what malloc makes of the program break
    Demo(Demo),
    /// Find out what this machine allows, and what to do where it does not
    Doctor(Doctor),
    /// Print a shell's completions for breaktrace
    Completions(Completions),
    /// Print a manual page, or write all of them
    Man(Man),
}

/// Where a report goes, and in what form.
#[derive(Clone, Debug, Args)]
pub(super) struct OutputOptions {
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath, help = output_help())]
    pub(super) output: Vec<PathBuf>,

    #[arg(long, value_name = "FORMAT", value_parser = |name: &str| name.parse::<Format>(), help = format_help())]
    pub(super) format: Option<Format>,

    /// What folded stacks, pprof and speedscope measure call stacks by
    #[arg(long, value_name = "MEASURE", default_value = "net")]
    pub(super) value: Value,

    /// Same as --format json
    #[arg(long, conflicts_with = "format")]
    pub(super) json: bool,

    /// Order call paths in the text by this, the largest first
    #[arg(long, value_name = "FIGURE", default_value = "net")]
    pub(super) sort: Sort,

    /// Show only call paths through functions or files with NAME in their name in the text (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(super) focus: Vec<String>,

    /// Leave out call paths through functions or files with NAME in their name in the text (repeatable)
    #[arg(long, value_name = "NAME")]
    pub(super) ignore: Vec<String>,

    /// Add addresses, all processes, all steps and all calls to the text
    #[arg(short, long)]
    pub(super) verbose: bool,
}

fn output_help() -> String {
    format!(
        "Write the report to FILE (repeatable); its name says the format: {}; - is stdout",
        Format::usual_suffixes()
    )
}

fn format_help() -> String {
    format!(
        "Format of reports whose file name does not say: {}",
        Format::names()
    )
}

/// What call stacks are measured by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Value {
    /// Bytes that are still there at the end
    Net,
    /// Bytes by which memory became larger
    Grown,
    /// Bytes that it gave back to the kernel
    Returned,
    /// Calls that made memory larger or smaller
    Calls,
}

impl From<Value> for Measure {
    fn from(value: Value) -> Self {
        match value {
            Value::Net => Self::Net,
            Value::Grown => Self::Grown,
            Value::Returned => Self::Returned,
            Value::Calls => Self::Calls,
        }
    }
}

/// By what call paths are ordered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Sort {
    /// Bytes that are still there at the end
    Net,
    /// Bytes by which memory became larger
    Grown,
    /// Bytes that they gave back to the kernel
    Returned,
    /// Calls that made memory larger
    Calls,
    /// Bytes of the break that are still there
    Break,
    /// Bytes of anonymous memory that are still there
    Anonymous,
}

impl From<Sort> for PathOrder {
    fn from(sort: Sort) -> Self {
        match sort {
            Sort::Net => Self::Net,
            Sort::Grown => Self::Grown,
            Sort::Returned => Self::Returned,
            Sort::Calls => Self::Calls,
            Sort::Break => Self::Break,
            Sort::Anonymous => Self::Anonymous,
        }
    }
}

impl From<&OutputOptions> for PathSelection {
    fn from(options: &OutputOptions) -> Self {
        Self {
            focus: options.focus.clone(),
            ignore: options.ignore.clone(),
            order: options.sort.into(),
        }
    }
}

/// Where the functions of call stacks are looked up.
#[derive(Clone, Debug, Default, Args)]
pub(super) struct SymbolOptions {
    /// Don't look up functions, files and lines; `breaktrace symbolize` can do so later
    #[arg(long, conflicts_with = "debug_dir")]
    pub(super) no_symbols: bool,

    /// Look for programs, libraries and their debug files in DIR first (repeatable)
    ///
    /// By build ID (DIR/.build-id), by the path they had (DIR/usr/bin/ls), or by name. Debug information is also looked
    /// for where gdb does: in the files, beside them, and in /usr/lib/debug. Nothing is fetched from the network.
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) debug_dir: Vec<PathBuf>,
}

/// How to record; `run` and `attach` share these.
#[derive(Clone, Debug, Args)]
pub(super) struct RecordOptions {
    #[command(flatten)]
    pub(super) output: OutputOptions,

    /// Write every event to FILE as it happens, one JSON object per line
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) events: Option<PathBuf>,

    /// Record for this long, such as 500ms, 10s or 1m30s
    ///
    /// Then an attached process is let go; a launched program is asked to end with SIGTERM, and killed five seconds
    /// later if it has not.
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(super) duration: Option<Duration>,

    /// Watch it on the whole terminal while it is recorded (`?` shows the keys)
    ///
    /// The program then reads nothing from the terminal, and what it writes to it is printed when the view has closed.
    /// Snapshots are taken every second unless --every says otherwise.
    #[arg(long)]
    pub(super) live: bool,

    /// Take a snapshot of mappings and resident memory this often
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(super) every: Option<Duration>,

    /// Record the call stacks of no calls, of moves of the break, or of all that change the program's memory
    #[arg(long, value_name = "WHICH", default_value = "all")]
    pub(super) stacks: Stacks,

    /// Record at most so many frames of a stack
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub(super) stack_depth: u32,

    #[command(flatten)]
    pub(super) symbols: SymbolOptions,

    /// Don't look through the heap of the program's own malloc at snapshots and at its end
    #[arg(long)]
    pub(super) no_heap: bool,

    /// Record only the first process, not its children
    #[arg(long)]
    pub(super) no_follow: bool,

    /// Don't keep idle processors awake while stops come fast
    ///
    /// breaktrace holds /dev/cpu_dma_latency at zero then, if it may: stops cost a quarter.
    #[arg(long)]
    pub(super) no_latency_hold: bool,

    /// Compare the model with /proc/PID/maps after every call (slow)
    #[arg(long)]
    pub(super) verify: bool,

    /// Print no report on stderr
    #[arg(short, long)]
    pub(super) quiet: bool,
}

/// Of which calls the stacks are recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Stacks {
    /// Of none
    Off,
    /// Of moves of the program break
    Brk,
    /// Of all calls that change how much memory the program has
    All,
}

impl From<Stacks> for StackMode {
    fn from(stacks: Stacks) -> Self {
        match stacks {
            Stacks::Off => Self::Off,
            Stacks::Brk => Self::Brk,
            Stacks::All => Self::All,
        }
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = RUN_HELP)]
pub(super) struct Run {
    #[command(flatten)]
    pub(super) record: RecordOptions,

    /// Set a variable in the program's environment (repeatable)
    #[arg(long, value_name = "NAME=VALUE", value_parser = clap::value_parser!(OsString))]
    pub(super) env: Vec<OsString>,

    /// Leave out address space randomization, so that runs are alike
    #[arg(long)]
    pub(super) no_aslr: bool,

    /// Run the program as this user (needs root)
    #[arg(long, value_name = "NAME")]
    pub(super) user: Option<String>,

    /// Stop the program at every system call instead of at memory calls only
    ///
    /// The seccomp filter that makes the difference can be seen by the program, and keeps set-uid programs from their
    /// extra rights unless breaktrace runs as root.
    #[arg(long)]
    pub(super) no_seccomp: bool,

    /// Save what was measured to FILE, to be committed and held against later runs
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath, help_heading = GATE, conflicts_with_all = ["baseline", "limits", "limit", "max"])]
    pub(super) save_baseline: Option<PathBuf>,

    /// Run the program so often; figures that differ are judged by their medians
    #[arg(long, value_name = "N", help_heading = GATE, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) runs: Option<u32>,

    /// Write the verdict to FILE (repeatable): .txt, .json, .md, .xml (JUnit) or .om (OpenMetrics, for GitLab)
    #[arg(long, value_name = "FILE", help_heading = GATE, value_hint = ValueHint::FilePath)]
    pub(super) verdict: Vec<PathBuf>,

    #[command(flatten)]
    pub(super) gate: GateOptions,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM", value_hint = ValueHint::CommandWithArguments)]
    pub(super) command: Vec<OsString>,

    // Last, as its heading holds for what comes after it.
    #[command(flatten)]
    pub(super) allocator: AllocatorOptions,
}

/// The heading of the options that judge.
const GATE: &str = "Gate";

/// What a recording is held against.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = GATE)]
pub(super) struct GateOptions {
    /// Hold it against the baseline in FILE: what is repeatable may not grow, unless a limit says otherwise
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) baseline: Option<PathBuf>,

    /// Read limits from FILE (TOML): [limits] with lines such as "break.peak" = "+5%,256KiB"
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) limits: Option<PathBuf>,

    /// Limit a metric or a group (repeatable): heap.peak=+5%,256KiB  @all=+1%  cc1:break.peak=<=80MiB  mapped.end=~0  @calls=off
    #[arg(long, value_name = "METRIC=LIMIT")]
    pub(super) limit: Vec<String>,

    /// The most that a metric may be (repeatable): heap.peak=64MiB
    #[arg(long, value_name = "METRIC=VALUE")]
    pub(super) max: Vec<String>,

    /// Compare in spite of differences in these (comma-separated)
    #[arg(long, value_name = "WHAT", value_delimiter = ',', value_parser = mismatch)]
    pub(super) allow_mismatch: Vec<MismatchKind>,

    /// The program should exit with CODE, instead of as in the baseline, or with 0
    #[arg(long, value_name = "CODE")]
    pub(super) expect_exit: Option<u8>,

    /// Exit with 3 also when medians are beyond their limits and the runs overlap
    #[arg(long)]
    pub(super) fail_on_inconclusive: bool,

    /// Print annotations for GitHub Actions, and add to the step's summary
    #[arg(long)]
    pub(super) github: bool,
}

fn mismatch(word: &str) -> Result<MismatchKind, String> {
    MismatchKind::ALL
        .into_iter()
        .find(|kind| kind.name() == word)
        .ok_or_else(|| {
            let names: Vec<&str> = MismatchKind::ALL.iter().map(|kind| kind.name()).collect();
            format!("one of {}", names.join(", "))
        })
}

#[derive(Debug, Args)]
#[command(after_long_help = CHECK_HELP)]
pub(super) struct Check {
    #[command(flatten)]
    pub(super) gate: GateOptions,

    /// Take the figures over into the baseline, and show old and new
    #[arg(long, requires = "baseline", conflicts_with_all = ["limits", "limit", "max", "output", "github"])]
    pub(super) update: bool,

    /// Write the verdict to FILE (repeatable): .txt, .json, .md, .xml (JUnit) or .om (OpenMetrics, for GitLab)
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) output: Vec<PathBuf>,

    /// Print the verdict as JSON
    #[arg(long)]
    pub(super) json: bool,

    /// Show all metrics and all call paths
    #[arg(short, long)]
    pub(super) verbose: bool,

    /// Reports (-o FILE.json) or event logs of one program: several are several runs. Or a look through a heap (breaktrace
    /// heap --json)
    #[arg(required = true, value_name = "REPORT", value_hint = ValueHint::FilePath)]
    pub(super) files: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Diff {
    /// Print it as JSON
    #[arg(long)]
    pub(super) json: bool,

    /// Write it to FILE as well (repeatable): .html (a page for a browser), .txt, .json or .md
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) output: Vec<PathBuf>,

    /// Exit with 3 when a figure that depends on the program alone became worse
    #[arg(long)]
    pub(super) fail_on_regression: bool,

    /// Show what did not change as well, and all call paths and steps
    #[arg(short, long)]
    pub(super) verbose: bool,

    /// A report, an event log or a baseline
    #[arg(value_name = "BEFORE", value_hint = ValueHint::FilePath)]
    pub(super) before: PathBuf,

    /// Another
    #[arg(value_name = "AFTER", value_hint = ValueHint::FilePath)]
    pub(super) after: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Metrics {
    /// Print them as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A look at a heap, or several.
#[derive(Debug, Args)]
#[command(after_long_help = HEAP_HELP)]
pub(super) struct Heap {
    /// Look again and again, this far apart (500ms, 10s, 1m30s), and name the sizes that grow; Ctrl-C ends it
    #[arg(long, value_name = "TIME", value_parser = positive_duration)]
    pub(super) every: Option<Duration>,

    /// With --every: look so often
    #[arg(long, value_name = "N", requires = "every", value_parser = clap::value_parser!(u64).range(2..))]
    pub(super) count: Option<u64>,

    /// Let the program stand still for the whole look, not only while arenas and thread caches are read
    ///
    /// Figures are then exact to the byte. A heap of 1 GiB takes about half a second.
    #[arg(long)]
    pub(super) exact: bool,

    /// Write what was found to FILE (repeatable): .json or .txt says the format; - is stdout
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) output: Vec<PathBuf>,

    /// Write it as JSON
    #[arg(long)]
    pub(super) json: bool,

    /// Add addresses, all arenas, all sizes, all settings and all checks to the text
    #[arg(short, long)]
    pub(super) verbose: bool,

    /// Number of the process, or a core file; what consists of digits is a number, and ./4242 a file
    #[arg(value_name = "PID|CORE", value_hint = ValueHint::FilePath, value_parser = clap::builder::OsStringValueParser::new().try_map(heap_subject))]
    pub(super) subject: HeapSubject,
}

/// Whose heap is looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum HeapSubject {
    /// A process.
    Process(u32),
    /// A program in a core file.
    Core(PathBuf),
}

fn heap_subject(word: OsString) -> Result<HeapSubject, String> {
    let is_number = |text: &&str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    match word.to_str().filter(is_number) {
        Some(number) => match number.parse() {
            Ok(pid @ 1..) => Ok(HeapSubject::Process(pid)),
            _ => Err("no process has that number; of a core file write ./NAME".to_owned()),
        },
        None => Ok(HeapSubject::Core(word.into())),
    }
}

/// The same program on several allocators.
#[derive(Debug, Args)]
#[command(after_long_help = COMPARE_HELP)]
pub(super) struct Compare {
    /// The allocators: system, bundled, bundled:POLICY, or paths of malloc libraries; the first is the measure
    #[arg(long, value_name = "LIST", value_delimiter = ',', default_value = "system,bundled", value_parser = clap::value_parser!(OsString))]
    pub(super) allocators: Vec<OsString>,

    /// Run the program so often on each, and show medians
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub(super) runs: u32,

    /// Write the comparison to FILE instead of stderr; .json says the format; - is stdout
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) output: Option<PathBuf>,

    /// Write it as JSON
    #[arg(long)]
    pub(super) json: bool,

    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM", value_hint = ValueHint::CommandWithArguments)]
    pub(super) command: Vec<OsString>,
}

/// Which malloc the program uses, and how it is set up.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Allocator")]
pub(super) struct AllocatorOptions {
    /// Run the program on this malloc: system, bundled, or a library of this PATH
    ///
    /// `system` leaves the program as it is. `bundled` preloads breaktrace's own malloc, whose figures stand in the
    /// report beside the kernel's. Any other is preloaded in the same way: jemalloc, mimalloc, tcmalloc.
    #[arg(long, value_name = "WHICH", default_value = "system", hide_default_value = true, value_parser = clap::builder::OsStringValueParser::new().map(allocator))]
    pub(super) allocator: Allocator,

    /// What the bundled malloc does with memory that is no longer needed
    #[arg(long, value_name = "POLICY")]
    pub(super) heap_policy: Option<HeapPolicy>,

    /// Surround blocks with red zones, fill them with patterns, and keep freed ones aside, to find heap errors
    #[arg(long)]
    pub(super) guard: bool,

    /// Record the call stacks of blocks, one for every so many bytes requested; 1 records every block
    ///
    /// The report then tells by call path what was requested and what was never freed, and for heap errors where the
    /// block was allocated (with 1 also where it was freed). Units are B, KiB, MiB, GiB. Needs --allocator bundled.
    #[arg(long, value_name = "BYTES", value_parser = interval)]
    pub(super) sample_allocations: Option<u64>,

    /// Tell apart, of the blocks never freed, those that nothing points to any more
    ///
    /// Searches all memory of a program when it ends. With --sample-allocations the report tells who asked for them.
    #[arg(long)]
    pub(super) leaks: bool,

    /// What happens to the program when it misuses its heap
    #[arg(long, value_name = "ACTION")]
    pub(super) on_heap_error: Option<OnHeapError>,
}

/// An interval in bytes: `512KiB`, `1`.
fn interval(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|letter: char| !letter.is_ascii_digit());
    let unit: u64 = match text[digits.len()..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        _ => {
            return Err(
                "write bytes as a whole number, if need be with KiB, MiB or GiB".to_owned(),
            );
        }
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "write bytes as a whole number, if need be with KiB, MiB or GiB".to_owned())?;
    number
        .checked_mul(unit)
        .filter(|interval| (1..=MOST_INTERVAL).contains(interval))
        .ok_or_else(|| "from 1 byte (every block) to 1 TiB".to_owned())
}

/// The largest interval between samples, in bytes.
const MOST_INTERVAL: u64 = 1 << 40;

fn allocator(word: OsString) -> Allocator {
    match word.to_str() {
        Some("system") => Allocator::System,
        Some("bundled") => Allocator::Bundled,
        _ => Allocator::Library(word.into()),
    }
}

/// What to do with memory that is no longer needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum HeapPolicy {
    /// Keep all of it
    Never,
    /// Give back what lies at the top beyond a threshold, as glibc does
    Trim,
    /// Give back the top at once, and whole free pages below it
    Eager,
}

impl From<HeapPolicy> for Policy {
    fn from(policy: HeapPolicy) -> Self {
        match policy {
            HeapPolicy::Never => Self::Never,
            HeapPolicy::Trim => Self::Trim,
            HeapPolicy::Eager => Self::Eager,
        }
    }
}

/// What happens to the program when it misuses its heap.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum OnHeapError {
    /// It is aborted, as by glibc
    Abort,
    /// It goes on; the report tells
    Report,
}

impl OnHeapError {
    /// As the environment has it.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Abort => "abort",
            Self::Report => "report",
        }
    }
}

#[derive(Debug, Args)]
#[command(after_long_help = ATTACH_HELP)]
pub(super) struct Attach {
    #[command(flatten)]
    pub(super) record: RecordOptions,

    /// Numbers of the processes
    #[arg(required = true, value_name = "PID", value_parser = clap::value_parser!(u32).range(1..))]
    pub(super) pids: Vec<u32>,
}

#[derive(Debug, Args)]
pub(super) struct Report {
    #[command(flatten)]
    pub(super) output: OutputOptions,

    #[command(flatten)]
    pub(super) symbols: SymbolOptions,

    /// A report written by -o FILE.json, or an event log written by --events
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_long_help = SYMBOLIZE_HELP)]
pub(super) struct Symbolize {
    /// Write the result to FILE instead of back to the report's file; - is stdout
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) output: Option<PathBuf>,

    /// Look for programs, libraries and their debug files in DIR first (repeatable)
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) debug_dir: Vec<PathBuf>,

    /// A report written by -o FILE.json
    #[arg(value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) file: PathBuf,
}

#[derive(Debug, Args)]
#[command(after_long_help = COMPLETIONS_HELP)]
pub(super) struct Completions {
    /// The shell
    pub(super) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
#[command(after_long_help = MAN_HELP)]
pub(super) struct Man {
    /// Write a page for each command into DIR
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath, conflicts_with = "of")]
    pub(super) dir: Option<PathBuf>,

    /// The command that the page is about, instead of breaktrace as a whole
    #[arg(value_name = "COMMAND")]
    pub(super) of: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Doctor {
    /// Print the findings as JSON
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Debug, Args)]
#[command(after_long_help = DEMO_HELP)]
pub(super) struct Demo {
    /// Print the demonstration as JSON
    #[arg(long)]
    pub(super) json: bool,
}

fn positive_duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("it must be longer than nothing".into()),
        Ok(duration) => Ok(duration),
        Err(error) => Err(format!("{error}; write 500ms, 10s or 1m30s")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn what_is_set_in_columns_in_a_help_text_fits_a_narrow_terminal() {
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands().chain([&command]) {
            let help = sub.get_after_long_help().or(sub.get_after_help());
            let text = help.map(ToString::to_string).unwrap_or_default();
            let mut previous = "";
            for line in text.lines() {
                let is_set = line.starts_with("  ");
                assert!(!is_set || line.len() <= 80, "{line}");
                // Lines of a paragraph are broken where the terminal ends, and nowhere else.
                let goes_on = !line.is_empty() && !is_set && !previous.is_empty();
                assert!(!goes_on || previous.starts_with("  "), "{previous}\n{line}");
                previous = line;
            }
        }
    }

    #[test]
    fn every_example_in_a_help_text_is_a_whole_command_line() {
        let mut command = Cli::command();
        command.build();
        let mut helps = vec![command.render_long_help().to_string()];
        for sub in command.get_subcommands_mut() {
            helps.push(sub.render_long_help().to_string());
        }
        let mut tried = 0;
        for line in helps.iter().flat_map(|help| help.lines()) {
            let Some(example) = line.strip_prefix("  breaktrace ") else {
                continue;
            };
            // What explains it stands apart; what follows a pipe or a redirection is the shell's.
            let ends = ["  ", " | ", " > "].map(|end| example.find(end));
            let end = ends.into_iter().flatten().min().unwrap_or(example.len());
            let words: Vec<String> = example[..end]
                .replace("$(pidof redis-server)", "4242")
                .split_whitespace()
                .map(str::to_owned)
                .collect();
            let words = std::iter::once("breaktrace".to_owned()).chain(words);
            if let Err(error) = Cli::try_parse_from(words) {
                panic!("{line}: {error}");
            }
            tried += 1;
        }
        assert!(tried > 20, "{tried}");
    }

    fn run(words: &[&str]) -> Result<Run, clap::Error> {
        let words = ["breaktrace", "run"].iter().chain(words);
        match Cli::try_parse_from(words)?.command {
            Command::Run(run) => Ok(*run),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_after_the_program_are_the_programs() {
        let parsed = run(&["--verify", "ls", "-la", "--help", "--json"]).unwrap();
        assert_eq!(parsed.command, ["ls", "-la", "--help", "--json"]);
        assert!(parsed.record.verify && !parsed.record.output.json);
    }

    #[test]
    fn a_mistyped_option_is_no_program() {
        let error = run(&["--jsn", "x", "ls"]).unwrap_err();
        assert!(error.to_string().contains("--json"), "{error}");
    }

    #[test]
    fn the_allocator_is_one_of_two_names_or_a_path() {
        let allocator = |words: &[&str]| run(words).unwrap().allocator.allocator;
        assert_eq!(allocator(&["ls"]), Allocator::System);
        assert_eq!(
            allocator(&["--allocator", "bundled", "ls"]),
            Allocator::Bundled
        );
        assert_eq!(
            allocator(&["--allocator", "./x.so", "ls"]),
            Allocator::Library("./x.so".into())
        );
        assert!(run(&["--heap-policy", "sometimes", "ls"]).is_err());
    }

    #[test]
    fn digits_are_a_process_and_everything_else_is_a_core_file() {
        let subject = |word: &str| heap_subject(word.into());
        assert_eq!(subject("4242"), Ok(HeapSubject::Process(4242)));
        for file in ["./4242", "core.4242", "+4242", "-", ""] {
            assert_eq!(subject(file), Ok(HeapSubject::Core(file.into())));
        }
        assert!(subject("0").is_err());
        assert!(subject("99999999999").is_err());
    }

    #[test]
    fn times_need_a_unit() {
        assert!(run(&["--duration", "10", "ls"]).is_err());
        assert!(run(&["--duration", "0s", "ls"]).is_err());
        let parsed = run(&["--duration", "1m30s", "ls"]).unwrap();
        assert_eq!(parsed.record.duration, Some(Duration::from_secs(90)));
    }
}
