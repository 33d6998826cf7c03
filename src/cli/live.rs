//! `--live`: who records, who makes reports, who names functions and who draws, each in a thread of its own.
//!
//! The thread that traces hands its events on and waits for nobody's terminal.

use std::fs::File;
use std::io;
use std::io::IsTerminal;
use std::io::Seek;
use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc;
use std::sync::mpsc::RecvTimeoutError;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::SigSet;

use super::Failure;
use super::args::RecordOptions;
use super::live_symbols::RemoteSymbolizer;
use super::output;
use super::record::Recorded;
use super::record::Session;
use crate::event::Event;
use crate::model::Recorder;
use crate::report;
use crate::report::Report;
use crate::tracer::Tracer;
use crate::tui;
use crate::tui::Feed;

/// Reports are made no more often than this.
const SHORTEST_INTERVAL: Duration = Duration::from_millis(250);
/// And take at most one part in so many of a thread's time.
const SHARE: u32 = 5;
/// Events that may wait for the model.
const MOST_WAITING: usize = 16_384;
/// Memory is looked at this often where `--every` does not say.
const EVERY: Duration = Duration::from_secs(1);

/// What the live view needs before anything runs.
pub(super) struct Live {
    symbols: Option<RemoteSymbolizer>,
}

impl Live {
    /// Finds out whether there is a terminal, and starts what must be started first. `None` when no view is wanted.
    pub(super) fn prepare(options: &mut RecordOptions) -> Result<Option<Self>, Failure> {
        if !options.live {
            return Ok(None);
        }
        tui::check().map_err(|why| {
            Failure::new(format!("--live has nowhere to show: {why}"))
                .hint("run it in the foreground of a terminal; or leave --live away, and a report comes at the end")
                .code(super::USAGE)
        })?;
        if options.every.is_none() {
            options.every = Some(EVERY);
        }
        let symbols = if options.symbols.no_symbols {
            None
        } else {
            // Without it, functions go unnamed until the report at the end.
            RemoteSymbolizer::start(options.symbols.debug_dir.clone()).ok()
        };
        Ok(Some(Self { symbols }))
    }

    /// Records while the view shows what there is; returns when both have ended.
    pub(super) fn record(
        self,
        session: Session,
        tracer: &mut Tracer,
        launched: bool,
    ) -> Result<Recorded, Failure> {
        let feed = Feed::default();
        let raw = RawReport::default();
        let recorder = Recorder::new(tracer.recording().clone());
        let (sender, events) = mpsc::sync_channel(MOST_WAITING);
        let mut symbols = self.symbols;
        let (recorder, failure) = thread::scope(|scope| {
            // Closed in any case, or a panic here would wait for the view for ever.
            let _closing = Closing(&feed);
            // Signals are for the thread that traces: its wait is what they interrupt.
            let previous = SigSet::all().thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK);
            let (feed, raw) = (&feed, &raw);
            let model = scope.spawn(move || sum_up(recorder, &events, feed, raw));
            scope.spawn(|| name_functions(&mut symbols, feed, raw));
            let view = scope.spawn(|| tui::show(feed, &Person, launched));
            if let Ok(previous) = previous {
                // It was in force before.
                let _ = previous.thread_set_mask();
            }
            let failure = session.events(tracer, false, &mut |event| {
                // It fails only if the model has panicked, which is told below.
                let _ = sender.send(event);
            });
            drop(sender);
            let recorder = model
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            while !view.is_finished() {
                if tracer.was_asked_to_end() {
                    feed.close();
                }
                thread::sleep(Duration::from_millis(20));
            }
            let shown = view
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            let failure = failure.or(shown
                .err()
                .map(|error| Failure::new(format!("the live view broke off: {error}"))));
            (recorder, failure)
        });
        Ok(session.recorded(recorder, failure))
    }
}

struct Closing<'a>(&'a Feed);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A report without names of functions, for whoever adds them.
#[derive(Default)]
struct RawReport {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

#[derive(Default)]
struct Waiting {
    report: Option<Report>,
    is_last: bool,
}

impl RawReport {
    fn is_wanted(&self) -> bool {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.report.is_none()
    }

    fn put(&self, report: Report, is_last: bool) {
        let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        waiting.report = Some(report);
        waiting.is_last = is_last;
        self.changed.notify_one();
    }

    /// The next report, with whether it is the last; `None` when a while has passed without one.
    fn take(&self) -> Option<(Report, bool)> {
        let waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut waiting, _) = self
            .changed
            .wait_timeout_while(waiting, Duration::from_millis(100), |waiting| {
                waiting.report.is_none()
            })
            .unwrap_or_else(PoisonError::into_inner);
        let is_last = waiting.is_last;
        waiting.report.take().map(|report| (report, is_last))
    }
}

/// Takes events, and makes a report now and then while somebody looks.
fn sum_up(
    mut recorder: Recorder,
    events: &mpsc::Receiver<Event>,
    feed: &Feed,
    raw: &RawReport,
) -> Recorder {
    let mut next = Instant::now();
    let mut has_news = false;
    loop {
        match events.recv_timeout(Duration::from_millis(50)) {
            Ok(event) => {
                recorder.record(&event);
                has_news = true;
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        let now = Instant::now();
        if has_news && now >= next && !feed.is_closed() && raw.is_wanted() {
            raw.put(recorder.report(), false);
            has_news = false;
            let took = now.elapsed();
            next = now + SHORTEST_INTERVAL.max(took.saturating_mul(SHARE));
        }
    }
    if !feed.is_closed() {
        raw.put(recorder.report(), true);
    }
    recorder
}

/// Names the functions of reports, and shows them.
fn name_functions(symbols: &mut Option<RemoteSymbolizer>, feed: &Feed, raw: &RawReport) {
    let mut is_first = true;
    while !feed.is_closed() {
        let Some((mut report, is_last)) = raw.take() else {
            continue;
        };
        if is_last {
            feed.end();
        }
        match symbols {
            Some(symbols) => {
                if is_first || is_last {
                    // Names may take their time the first time.
                    let mut unnamed = report.clone();
                    report::name_culprits(&mut unnamed);
                    feed.publish(unnamed);
                    is_first = false;
                }
                report::symbolize(&mut report, symbols);
            }
            None => report::name_culprits(&mut report),
        }
        feed.publish(report);
        if is_last {
            break;
        }
    }
}

/// What the person at the keys wants is asked for as by kill(1).
struct Person;

fn tell_ourselves(signal: libc::c_int) {
    // SAFETY: takes numbers; the tracer has handlers for these signals.
    unsafe { libc::kill(libc::getpid(), signal) };
}

impl tui::Host for Person {
    fn end(&self) {
        tell_ourselves(libc::SIGTERM);
    }

    fn interrupt(&self) {
        tell_ourselves(libc::SIGINT);
    }

    fn snapshot(&self, report: &Report) -> Result<String, String> {
        let pid = report.processes.first().map_or(0, |process| process.pid);
        let text = report::to_json(report);
        for number in 1..=9999 {
            let path = PathBuf::from(format!("breaktrace-{pid}-{number}.json"));
            if path.exists() {
                continue;
            }
            return match output::write_whole(&path, text.as_bytes()) {
                Ok(()) => Ok(path.display().to_string()),
                Err(error) => Err(output::cannot_write(&path, &error).message),
            };
        }
        Err("there are 9999 already".to_owned())
    }
}

/// Keeps a program that is about to start off the terminal: it reads nothing, and what it writes waits in a file.
pub(super) struct Aside {
    /// Our own stdin, stdout and stderr, where they were terminals.
    own: Vec<(libc::c_int, OwnedFd)>,
    output: File,
}

impl Aside {
    /// Puts the stand-ins in place of what is a terminal.
    pub(super) fn begin() -> io::Result<Self> {
        let output = tempfile::tempfile()?;
        let nothing = File::open("/dev/null")?;
        let mut aside = Self {
            own: Vec::new(),
            output,
        };
        aside.replace(&io::stdin(), nothing.as_raw_fd())?;
        aside.replace(&io::stdout(), aside.output.as_raw_fd())?;
        aside.replace(&io::stderr(), aside.output.as_raw_fd())?;
        Ok(aside)
    }

    fn replace(
        &mut self,
        stream: &(impl IsTerminal + std::os::fd::AsFd),
        by: libc::c_int,
    ) -> io::Result<()> {
        if stream.is_terminal() {
            let own = stream.as_fd().try_clone_to_owned()?;
            let number = stream.as_fd().as_raw_fd();
            self.own.push((number, own));
            // SAFETY: both are open files.
            if unsafe { libc::dup2(by, number) } < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        Ok(())
    }

    /// The program has them: ours come back.
    pub(super) fn give_back(&mut self) {
        for (number, own) in self.own.drain(..) {
            // SAFETY: both are open files.
            unsafe { libc::dup2(own.as_raw_fd(), number) };
        }
    }

    /// Prints what the program wrote.
    pub(super) fn print(mut self) -> io::Result<()> {
        self.give_back();
        self.output.rewind()?;
        io::copy(&mut self.output, &mut io::stdout().lock()).map(drop)
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        self.give_back();
    }
}
