//! How long a program stands still when breaktrace joins and leaves it, beside strace.
//!
//! ```text
//! cargo bench --bench attach_stall -- [quick] [rounds=N]
//! ```
//!
//! The program looks at the clock all the time and keeps the longest gap. Each round: nobody attached for as long as
//! the others take, which is what the machine itself does to it; then `breaktrace attach --duration 200ms`; then
//! `strace -f -p` for as long. The figure is the longest gap of a round, so joining, leaving and all between count.

mod support;

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::FileExt;
use std::process::Child;
use std::process::Command;
use std::process::ExitCode;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use support::BREAKTRACE;
use support::Figure;
use support::STRACE_CALLS;
use support::compile;
use support::find_program;
use support::print_table;
use support::scratch;
use support::surroundings;

const ROUNDS: usize = 20;
const QUICK_ROUNDS: usize = 5;
/// How long each observer stays.
const STAY: Duration = Duration::from_millis(200);
/// What issue 2 asks of the median, in nanoseconds.
const BAR: f64 = 5e6;
/// So long a program may take to do what it is asked before something is wrong.
const PATIENCE: Duration = Duration::from_secs(10);

/// A program to attach to.
struct Target {
    what: &'static str,
    threads: &'static str,
    heap_mib: &'static str,
    mappings: &'static str,
}

const TARGETS: [Target; 5] = [
    Target {
        what: "1 thread",
        threads: "1",
        heap_mib: "0",
        mappings: "0",
    },
    Target {
        what: "5 threads",
        threads: "5",
        heap_mib: "0",
        mappings: "0",
    },
    Target {
        what: "40 threads",
        threads: "40",
        heap_mib: "0",
        mappings: "0",
    },
    Target {
        what: "1 thread, 1 GiB heap",
        threads: "1",
        heap_mib: "1024",
        mappings: "0",
    },
    Target {
        what: "1 thread, 5000 mappings",
        threads: "1",
        heap_mib: "0",
        mappings: "5000",
    },
];

/// A running program that keeps the longest gap.
struct Ticker {
    process: Child,
    page: File,
}

impl Ticker {
    fn start(target: &Target) -> io::Result<Self> {
        let path = scratch().join("ticker.page");
        let page = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)?;
        page.set_len(4096)?;
        let process = Command::new(compile("ticker")?)
            .arg(&path)
            .args([target.threads, target.heap_mib, target.mappings])
            .stdin(Stdio::piped())
            .spawn()?;
        let ticker = Self { process, page };
        // It heeds the first request once everything is set up.
        ticker.start_over()?;
        Ok(ticker)
    }

    fn word(&self, index: u64) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.page.read_exact_at(&mut bytes, 8 * index)?;
        Ok(u64::from_ne_bytes(bytes))
    }

    /// Forgets the longest gap.
    fn start_over(&self) -> io::Result<()> {
        self.page.write_all_at(&1_u64.to_ne_bytes(), 8)?;
        let asked = Instant::now();
        while self.word(1)? != 0 {
            if asked.elapsed() > PATIENCE {
                return Err(io::Error::other("the program no longer runs"));
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// The longest gap, in nanoseconds, while `observe` did its work.
    #[expect(clippy::cast_precision_loss, reason = "gaps are far below 2^53 ns")]
    fn longest_gap(&self, observe: impl FnOnce(&str) -> io::Result<()>) -> io::Result<f64> {
        self.start_over()?;
        observe(&self.process.id().to_string())?;
        let longest = self.word(0)?;
        // It must have survived.
        self.start_over()?;
        Ok(longest as f64)
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        // It would end with its stdin as well, but only if it still runs as it should.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn nobody(_pid: &str) -> io::Result<()> {
    thread::sleep(STAY);
    Ok(())
}

fn breaktrace(pid: &str) -> io::Result<()> {
    let stay = format!("{}ms", STAY.as_millis());
    let status = Command::new(BREAKTRACE)
        .args(["attach", "-q", "--duration", &stay, pid])
        .status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("breaktrace attach: {status}")))
    }
}

fn strace(pid: &str) -> io::Result<()> {
    let mut process = Command::new("strace")
        .args(["-q", "-f", "-e", STRACE_CALLS, "-o", "/dev/null", "-p", pid])
        .stderr(Stdio::null())
        .spawn()?;
    thread::sleep(STAY);
    let number = libc::pid_t::try_from(process.id()).map_err(io::Error::other)?;
    // SAFETY: kill(2) takes numbers; the process is our child and not yet waited for.
    if unsafe { libc::kill(number, libc::SIGINT) } != 0 {
        return Err(io::Error::last_os_error());
    }
    // It detaches, then ends by the signal.
    process.wait().map(drop)
}

fn main() -> ExitCode {
    match bench() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("attach_stall: {error}");
            ExitCode::FAILURE
        }
    }
}

fn bench() -> io::Result<()> {
    let mut rounds = ROUNDS;
    // Cargo adds `--bench`.
    for word in std::env::args()
        .skip(1)
        .filter(|word| !word.starts_with("--"))
    {
        match word.strip_prefix("rounds=") {
            Some(number) => rounds = number.parse().map_err(io::Error::other)?,
            None if word == "quick" => rounds = QUICK_ROUNDS,
            None => return Err(io::Error::other(format!("`{word}`: say quick or rounds=N"))),
        }
    }
    let with_strace = find_program("strace").is_some();
    if !with_strace {
        println!("strace is not installed: its column is left out");
    }
    println!("{}; {rounds} interleaved rounds", surroundings());
    println!("Longest gap in milliseconds: median (lowest-highest)");
    let header = [
        "target",
        "nobody attached",
        "breaktrace attach",
        "strace -f -p",
    ];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    let mut verdicts = Vec::new();
    for target in &TARGETS {
        eprintln!("{} ...", target.what);
        let [alone, ours, theirs] = measure(target, rounds, with_strace)?;
        rows.push(vec![
            target.what.to_owned(),
            milliseconds(alone),
            milliseconds(ours),
            milliseconds(theirs),
        ]);
        if let Some(ours) = ours {
            let outcome = if ours.median <= BAR {
                "met   "
            } else {
                "MISSED"
            };
            verdicts.push(format!(
                "  {outcome}  {}: stands still for {:.2} ms at the median, at most {:.0}",
                target.what,
                ours.median / 1e6,
                BAR / 1e6
            ));
        }
    }
    print_table(&rows);
    println!();
    println!("Bars of issue 2");
    for verdict in verdicts {
        println!("{verdict}");
    }
    println!("{}", surroundings());
    Ok(())
}

/// Longest gaps with nobody, breaktrace and strace attached.
fn measure(target: &Target, rounds: usize, with_strace: bool) -> io::Result<[Option<Figure>; 3]> {
    let ticker = Ticker::start(target)?;
    let [mut alone, mut ours, mut theirs] = [const { Vec::new() }; 3];
    for _ in 0..rounds {
        alone.push(ticker.longest_gap(nobody)?);
        ours.push(ticker.longest_gap(breaktrace)?);
        if with_strace {
            theirs.push(ticker.longest_gap(strace)?);
        }
    }
    Ok([alone, ours, theirs].map(Figure::of))
}

fn milliseconds(figure: Option<Figure>) -> String {
    figure.map_or_else(
        || "not run".to_owned(),
        |figure| {
            format!(
                "{:.2} ({:.2}-{:.2})",
                figure.median / 1e6,
                figure.lowest / 1e6,
                figure.highest / 1e6
            )
        },
    )
}
