//! The line that says how a long recording goes: on stderr, only on a terminal, and gone before anything else is said.
//!
//! It must not get into what the program writes. So it is shown only while no recorded process has this terminal as its
//! stdout or stderr, which is looked up anew for each picture, and only while we are in the terminal's foreground.
//! A thread of its own draws it from figures that the recording loop leaves, over a description of its own that never
//! waits: a terminal that takes nothing holds up nobody.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::VecDeque;
use std::fs;
use std::fs::File;
use std::fs::Metadata;
use std::fs::OpenOptions;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use nix::sys::signal::SigSet;
use nix::sys::signal::SigmaskHow;

use crate::event::Event;
use crate::event::EventKind;
use crate::event::SpaceId;
use crate::model::Recorder;
use crate::model::Standing;
use crate::render::TextOptions;
use crate::render::words;
use crate::units::ByteSize;
use crate::units::Exact;

/// Recordings that are over by then show nothing.
const PATIENCE: Duration = Duration::from_secs(2);
/// From one picture to the next.
const INTERVAL: Duration = Duration::from_millis(500);
/// The rate is that of so many pictures.
const RATE_PICTURES: usize = 4;
/// With more processes than this, looking at the files of all of them would cost too much: nothing is shown.
const MOST_PROCESSES: usize = 256;
/// Of a terminal that does not know its width.
const USUAL_COLUMNS: usize = 80;
/// Carriage return, and the rest of the line erased (ECMA-48, EL).
const CLEAR: &str = "\r\x1b[K";
/// The device number of /dev/tty, which is whatever terminal its user has (Documentation/admin-guide/devices.txt).
const DEV_TTY: (u32, u32) = (5, 0);

/// What there is to show.
#[derive(Debug, Default)]
struct Figures {
    events: u64,
    /// Of all address spaces in use.
    sizes: HashMap<SpaceId, Standing>,
    break_bytes: u64,
    break_peak_bytes: u64,
    anonymous_bytes: u64,
    /// Address spaces whose break or mappings are not known.
    unknown: usize,
    processes: BTreeSet<u32>,
}

impl Figures {
    /// Takes in what an event has changed.
    fn note(&mut self, event: &Event, recorder: &Recorder) {
        self.events = self.events.saturating_add(1);
        match &event.kind {
            EventKind::ProcessStarted { .. } => {
                self.processes.insert(event.pid);
            }
            EventKind::ProcessEnded { .. } => {
                self.processes.remove(&event.pid);
            }
            EventKind::Exec { from_space, .. } => {
                self.resize(*from_space, recorder.standing(*from_space));
            }
            _ => {}
        }
        self.resize(event.space, recorder.standing(event.space));
        self.break_peak_bytes = self.break_peak_bytes.max(self.break_bytes);
    }

    /// An address space now has these sizes; `None` once nobody is in it.
    fn resize(&mut self, space: SpaceId, sizes: Option<Standing>) {
        let before = match sizes {
            Some(sizes) => self.sizes.insert(space, sizes),
            None => self.sizes.remove(&space),
        };
        if let Some(before) = before {
            let (break_bytes, anonymous_bytes) = parts(before);
            self.break_bytes = self.break_bytes.wrapping_sub(break_bytes);
            self.anonymous_bytes = self.anonymous_bytes.wrapping_sub(anonymous_bytes);
            self.unknown = self.unknown.saturating_sub(usize::from(is_unknown(before)));
        }
        if let Some(now) = sizes {
            let (break_bytes, anonymous_bytes) = parts(now);
            self.break_bytes = self.break_bytes.wrapping_add(break_bytes);
            self.anonymous_bytes = self.anonymous_bytes.wrapping_add(anonymous_bytes);
            self.unknown += usize::from(is_unknown(now));
        }
    }

    fn text(&self, elapsed: Duration, rate: Option<u64>) -> String {
        let elapsed = u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX);
        // Tenths that change with every picture tell nobody anything.
        let seconds = elapsed / 1_000_000_000;
        let time = match seconds {
            0..100 => format!("{seconds} s"),
            _ => words::duration(seconds * 1_000_000_000),
        };
        let mut text = format!("breaktrace: {time}  {} events", Exact(self.events));
        if let Some(rate) = rate {
            text.push_str(&format!(", {}/s", Exact(rate)));
        }
        let processes = self.processes.len();
        if processes > 1 {
            text.push_str(&format!("  {processes} processes"));
        }
        if self.unknown == 0 && !self.sizes.is_empty() {
            text.push_str(&format!(
                "  break {}, peak {}  mmap {}",
                ByteSize(self.break_bytes),
                ByteSize(self.break_peak_bytes),
                ByteSize(self.anonymous_bytes)
            ));
        }
        text
    }
}

fn parts(sizes: Standing) -> (u64, u64) {
    (
        sizes.break_bytes.unwrap_or(0),
        sizes.anonymous_bytes.unwrap_or(0),
    )
}

fn is_unknown(sizes: Standing) -> bool {
    sizes.break_bytes.is_none() || sizes.anonymous_bytes.is_none()
}

/// The terminal, and whether our line stands on it.
#[derive(Debug)]
struct Screen {
    /// Its description is ours alone, so that it being non-blocking is nobody else's business.
    terminal: File,
    is_painted: bool,
}

impl Screen {
    /// The terminal that is our stderr; `None` where there is none, or it does not understand how lines are erased.
    fn open() -> Option<Self> {
        let understands = std::env::var_os("TERM")
            .is_some_and(|terminal| !terminal.is_empty() && terminal != "dumb");
        if !understands || !io::stderr().is_terminal() {
            return None;
        }
        let terminal = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            // Whoever became another user may not open it; they do without.
            .open("/proc/self/fd/2")
            .ok()?;
        terminal.is_terminal().then_some(Self {
            terminal,
            is_painted: false,
        })
    }

    /// Shows a line of ASCII, as much of it as fits.
    fn paint(&mut self, text: &str) {
        let columns = TextOptions::columns_of(&self.terminal).unwrap_or(USUAL_COLUMNS);
        // In the last column some terminals go to the next line.
        let text = cut(text, columns.saturating_sub(1));
        self.is_painted = true;
        self.write(&format!("\r{text}\x1b[K"));
    }

    /// Takes our line away. Not from the background: the terminal is somebody else's then.
    fn clear(&mut self) {
        if std::mem::take(&mut self.is_painted) && self.is_ours() {
            self.write(CLEAR);
        }
    }

    /// What the terminal does not take at once is lost: the next picture begins at the line's start.
    fn write(&mut self, text: &str) {
        let _ = self.terminal.write(text.as_bytes());
    }

    /// Whether we are in the foreground. A terminal that is not our session's knows no foreground of ours.
    fn is_ours(&self) -> bool {
        // SAFETY: both take numbers, and the descriptor is open.
        let (foreground, own) =
            unsafe { (libc::tcgetpgrp(self.terminal.as_raw_fd()), libc::getpgrp()) };
        foreground == own || foreground < 0
    }

    /// Whether one of these processes writes to this terminal, as far as can be told.
    fn is_shared_with(&self, processes: &BTreeSet<u32>) -> bool {
        let Ok(terminal) = self.terminal.metadata() else {
            return true;
        };
        processes.iter().any(|pid| {
            [1, 2].iter().any(|number| {
                let path = format!("/proc/{pid}/fd/{number}");
                leads_to(Path::new(&path), &terminal)
            })
        })
    }
}

/// What fits into `columns` of a line of which each part is set off by two spaces: whole parts, or nothing.
fn cut(text: &str, columns: usize) -> &str {
    let mut text = text;
    while text.len() > columns {
        text = text.rfind("  ").map_or("", |end| &text[..end]);
    }
    text
}

/// Whether an open file is this terminal. What may not be looked at may be.
fn leads_to(open_file: &Path, terminal: &Metadata) -> bool {
    let target = match fs::read_link(open_file) {
        Ok(target) => target,
        // It is closed, or the process has ended.
        Err(error) => return error.kind() != io::ErrorKind::NotFound,
    };
    // Other files may lie where looking at them takes for ever.
    if !target.starts_with("/dev") && !target.to_string_lossy().contains("/pts/") {
        return false;
    }
    match fs::metadata(open_file) {
        Ok(file) if !file.file_type().is_char_device() => false,
        Ok(file) => {
            let device = file.rdev();
            device == terminal.rdev() || (libc::major(device), libc::minor(device)) == DEV_TTY
        }
        Err(error) => error.kind() != io::ErrorKind::NotFound,
    }
}

/// Between the recording loop and the thread that draws.
#[derive(Debug)]
struct Shared {
    figures: Mutex<Figures>,
    screen: Mutex<Screen>,
    is_over: Mutex<bool>,
    over: Condvar,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The line, from the beginning of a recording until this is dropped.
#[derive(Debug)]
pub(super) struct Progress {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

impl Progress {
    /// Begins to wait for a recording to become long; `None` where there is no terminal to tell it on.
    pub(super) fn begin() -> Option<Self> {
        let shared = Arc::new(Shared {
            figures: Mutex::default(),
            screen: Mutex::new(Screen::open()?),
            is_over: Mutex::new(false),
            over: Condvar::new(),
        });
        // Signals are for the thread that traces: its wait is what they interrupt.
        let previous = SigSet::all().thread_swap_mask(SigmaskHow::SIG_BLOCK).ok()?;
        let drawing = Arc::clone(&shared);
        let thread = thread::Builder::new()
            .name("progress".to_owned())
            .spawn(move || drawing.draw());
        // It was in force before.
        let _ = previous.thread_set_mask();
        Some(Self {
            shared,
            thread: Some(thread.ok()?),
        })
    }

    /// Takes in an event that `recorder` has recorded.
    pub(super) fn note(&self, event: &Event, recorder: &Recorder) {
        lock(&self.shared.figures).note(event, recorder);
    }

    /// Takes the line away, so that something else can be said; it comes back with the next picture.
    pub(super) fn make_way(&self) {
        lock(&self.shared.screen).clear();
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        *lock(&self.shared.is_over) = true;
        self.shared.over.notify_one();
        if let Some(thread) = self.thread.take() {
            // It clears the line before it ends, and if it panicked there is nobody to tell.
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn draw(&self) {
        let begun = Instant::now();
        let mut counts: VecDeque<(Instant, u64)> = VecDeque::new();
        let mut wait = PATIENCE;
        while !self.is_over_after(wait) {
            wait = INTERVAL;
            self.picture(begun, &mut counts);
        }
        lock(&self.screen).clear();
    }

    fn is_over_after(&self, wait: Duration) -> bool {
        let is_over = lock(&self.is_over);
        let (is_over, _) = self
            .over
            .wait_timeout_while(is_over, wait, |is_over| !*is_over)
            .unwrap_or_else(PoisonError::into_inner);
        *is_over
    }

    fn picture(&self, begun: Instant, counts: &mut VecDeque<(Instant, u64)>) {
        let now = Instant::now();
        let (text, processes) = {
            let figures = lock(&self.figures);
            let rate = counts
                .front()
                .map(|&(then, count)| rate(figures.events.saturating_sub(count), now - then));
            counts.push_back((now, figures.events));
            if counts.len() > RATE_PICTURES {
                counts.pop_front();
            }
            let few = figures.processes.len() <= MOST_PROCESSES;
            let processes = few.then(|| figures.processes.clone());
            (figures.text(now - begun, rate), processes)
        };
        let mut screen = lock(&self.screen);
        let is_free = processes.is_some_and(|processes| !screen.is_shared_with(&processes));
        if is_free && screen.is_ours() {
            screen.paint(&text);
        } else {
            screen.clear();
        }
    }
}

/// Events in a second.
fn rate(events: u64, time: Duration) -> u64 {
    let per_second = u128::from(events) * 1_000 / time.as_millis().max(1);
    u64::try_from(per_second).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(break_bytes: u64, anonymous_bytes: u64) -> Option<Standing> {
        Some(Standing {
            break_bytes: Some(break_bytes),
            anonymous_bytes: Some(anonymous_bytes),
        })
    }

    #[test]
    fn sizes_are_those_of_all_address_spaces_in_use() {
        let mut figures = Figures::default();
        figures.resize(SpaceId(1), sizes(4096, 8192));
        figures.resize(SpaceId(2), sizes(1 << 20, 0));
        figures.resize(SpaceId(1), sizes(8192, 0));
        assert_eq!(
            (figures.break_bytes, figures.anonymous_bytes),
            ((1 << 20) + 8192, 0)
        );
        figures.resize(SpaceId(2), None);
        assert_eq!(figures.break_bytes, 8192);
        figures.resize(SpaceId(2), None);
        assert_eq!(figures.break_bytes, 8192);
    }

    #[test]
    fn sizes_that_are_not_known_are_not_shown() {
        let mut figures = Figures {
            events: 1234,
            ..Figures::default()
        };
        figures.resize(SpaceId(1), sizes(4096, 8192));
        figures.break_peak_bytes = 8192;
        assert_eq!(
            figures.text(Duration::from_millis(125_900), Some(98)),
            "breaktrace: 2 min 05 s  1,234 events, 98/s  break 4 KiB, peak 8 KiB  mmap 8 KiB"
        );
        let unknown = Standing {
            break_bytes: None,
            anonymous_bytes: Some(0),
        };
        figures.resize(SpaceId(2), Some(unknown));
        figures.processes.extend([7, 8]);
        assert_eq!(
            figures.text(Duration::from_millis(2_900), None),
            "breaktrace: 2 s  1,234 events  2 processes"
        );
        figures.resize(SpaceId(2), sizes(0, 0));
        assert!(figures.text(Duration::ZERO, None).contains("break 4 KiB"));
    }

    #[test]
    fn a_narrow_terminal_gets_fewer_figures_and_no_halves() {
        let text = "breaktrace: 2 s  12 events, 3/s  break 4 KiB, peak 8 KiB  mmap 8 KiB";
        assert_eq!(cut(text, 80), text);
        assert_eq!(
            cut(text, 60),
            "breaktrace: 2 s  12 events, 3/s  break 4 KiB, peak 8 KiB"
        );
        assert_eq!(cut(text, 20), "breaktrace: 2 s");
        assert_eq!(cut(text, 5), "");
    }

    #[test]
    fn a_pipe_and_a_file_are_no_terminal_and_what_cannot_be_read_may_be_one() {
        let null = fs::metadata("/dev/null").unwrap();
        let file = tempfile::tempfile().unwrap();
        let path = |number| format!("/proc/self/fd/{number}");
        assert!(!leads_to(Path::new(&path(file.as_raw_fd())), &null));
        let own = File::open("/dev/null").unwrap();
        assert!(leads_to(Path::new(&path(own.as_raw_fd())), &null));
        assert!(!leads_to(Path::new("/proc/self/fd/1000000"), &null));
        assert!(leads_to(Path::new("/proc/self/status"), &null));
    }
}
