//! The live view: a report that is still growing, on a whole terminal.
//!
//! It knows reports and keys, and nothing of how either come about. Reports are left in a [`Feed`] by whoever makes
//! them; the view takes the latest, at its own pace, so that nobody ever waits for the terminal.

mod draw;
mod screen;
mod state;

use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ratatui::crossterm::event;

pub use screen::check;

use crate::report::Report;
use screen::Screen;
use state::State;

/// The view draws no more often than this, keys apart.
const FRAME: Duration = Duration::from_millis(200);

/// What the view asks of those who record.
pub trait Host: Sync {
    /// The program should end, or be let go of when breaktrace attached to it.
    fn end(&self);
    /// Ctrl-C was pressed.
    fn interrupt(&self);
    /// Writes the report to a file, and returns its name.
    ///
    /// # Errors
    ///
    /// Why it could not be written, in words.
    fn snapshot(&self, report: &Report) -> Result<String, String>;
}

/// Between those who make reports and the view.
#[derive(Debug, Default)]
pub struct Feed {
    latest: Mutex<Option<Arc<Report>>>,
    is_closed: AtomicBool,
    has_ended: AtomicBool,
}

impl Feed {
    /// Shows this report from now on.
    pub fn publish(&self, report: Report) {
        *self.lock() = Some(Arc::new(report));
    }

    /// Nothing more is recorded.
    pub fn end(&self) {
        self.has_ended.store(true, Ordering::Release);
    }

    /// The view goes, or is to go.
    pub fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }

    /// Whether nobody looks any more.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Acquire)
    }

    fn latest(&self) -> Option<Arc<Report>> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<Report>>> {
        // A report is replaced as a whole, so there is never half of one.
        self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Closes the feed when its thread leaves, in whichever way.
struct Closing<'a>(&'a Feed);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// Shows what the feed brings until somebody quits or closes it. `launched` says that breaktrace started the program.
///
/// # Errors
///
/// The terminal cannot be used, or is gone.
pub fn show(feed: &Feed, host: &dyn Host, launched: bool) -> io::Result<()> {
    let _closing = Closing(feed);
    let is_wanted = || !feed.is_closed();
    let mut screen = Screen::open(&is_wanted)?;
    let mut state = State::new(launched);
    while !feed.is_closed() && !state.is_over() {
        state.look(feed.latest(), feed.has_ended());
        screen.still_there()?;
        screen.draw(|frame| draw::draw(frame, &mut state))?;
        if event::poll(FRAME)? {
            // Whatever else is waiting is taken before the next picture.
            for _ in 0..64 {
                state.event(&event::read()?, host);
                if !event::poll(Duration::ZERO)? {
                    break;
                }
            }
        }
    }
    Ok(())
}
