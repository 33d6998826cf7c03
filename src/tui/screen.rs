//! The terminal: taken as a whole, and given back as it was, whatever happens.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::BufWriter;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use nix::poll::PollFd;
use nix::poll::PollFlags;
use nix::poll::PollTimeout;
use nix::poll::poll;

use ratatui::Frame;
use ratatui::Terminal;
use ratatui::backend::CrosstermBackend;
use ratatui::crossterm::cursor::Show;
use ratatui::crossterm::execute;
use ratatui::crossterm::terminal::Clear;
use ratatui::crossterm::terminal::ClearType;
use ratatui::crossterm::terminal::EnterAlternateScreen;
use ratatui::crossterm::terminal::LeaveAlternateScreen;
use ratatui::crossterm::terminal::disable_raw_mode;
use ratatui::crossterm::terminal::enable_raw_mode;

type Hook = Arc<dyn Fn(&panic::PanicHookInfo<'_>) + Send + Sync>;

/// The controlling terminal, wherever stdin and stdout lead.
fn terminal() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open("/dev/tty")
}

/// Whether there is a terminal to show something on.
///
/// # Errors
///
/// There is none, it is somebody else's at the moment (a background job), or it cannot move its cursor.
pub fn check() -> Result<(), &'static str> {
    let terminal = terminal().map_err(|_| "there is no terminal")?;
    if std::env::var_os("TERM").is_none_or(|name| name.is_empty() || name == "dumb") {
        return Err("the terminal cannot move its cursor, says TERM");
    }
    // SAFETY: takes the number of an open file, and nothing.
    let (foreground, own) = unsafe { (libc::tcgetpgrp(terminal.as_raw_fd()), libc::getpgrp()) };
    if foreground == own {
        Ok(())
    } else {
        Err("the terminal belongs to another job")
    }
}

/// How long the terminal may take to be given back.
const PATIENCE: Duration = Duration::from_secs(1);

/// Writes to the terminal, and waits for one that takes nothing only as long as somebody wants the picture.
///
/// The description is our own, so that it being non-blocking is nobody else's business.
struct Patient<Wanted> {
    terminal: File,
    is_wanted: Wanted,
}

impl<Wanted: Fn() -> bool> Patient<Wanted> {
    fn open(is_wanted: Wanted) -> io::Result<Self> {
        let terminal = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open("/dev/tty")?;
        Ok(Self {
            terminal,
            is_wanted,
        })
    }
}

impl<Wanted: Fn() -> bool> Write for Patient<Wanted> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.terminal.write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                done => return done,
            }
            if !(self.is_wanted)() {
                return Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the terminal takes nothing",
                ));
            }
            let mut terminal = [PollFd::new(self.terminal.as_fd(), PollFlags::POLLOUT)];
            // Whatever comes of it, the next write tells.
            let _ = poll(&mut terminal, PollTimeout::from(100_u8));
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Gives the terminal back. Twice does no harm.
fn restore() {
    // Nothing is left to be done where the terminal is gone.
    let _ = disable_raw_mode();
    let begin = Instant::now();
    if let Ok(mut terminal) = Patient::open(|| begin.elapsed() < PATIENCE) {
        let _ = execute!(terminal, LeaveAlternateScreen, Show);
    }
}

type IsWanted<'a> = &'a (dyn Fn() -> bool + Sync);

/// The terminal while it is ours.
pub(super) struct Screen<'a> {
    /// Never dropped: at its end it would complain on stderr, and panic when that is the terminal that is gone.
    terminal: ManuallyDrop<Terminal<CrosstermBackend<BufWriter<Patient<IsWanted<'a>>>>>>,
    watched: File,
    previous_hook: Hook,
}

impl<'a> Screen<'a> {
    /// Takes the terminal. A picture that a terminal does not take is given up when it is not wanted any more.
    pub(super) fn open(is_wanted: IsWanted<'a>) -> io::Result<Self> {
        let watched = terminal()?;
        let writer = BufWriter::new(Patient::open(is_wanted)?);
        let terminal = ManuallyDrop::new(Terminal::new(CrosstermBackend::new(writer))?);
        let previous_hook: Hook = Arc::from(panic::take_hook());
        let hook = Arc::clone(&previous_hook);
        // The message of a panic would go with the alternate screen.
        panic::set_hook(Box::new(move |info| {
            restore();
            hook(info);
        }));
        // From here on its end gives everything back.
        let mut screen = Self {
            terminal,
            watched,
            previous_hook,
        };
        enable_raw_mode()?;
        // Not Terminal::clear: it asks for the cursor's place by way of stdout, which may lead elsewhere.
        execute!(
            screen.terminal.backend_mut(),
            EnterAlternateScreen,
            Clear(ClearType::All)
        )?;
        Ok(screen)
    }

    /// Draws a picture; the size is looked up each time.
    pub(super) fn draw(&mut self, picture: impl FnOnce(&mut Frame<'_>)) -> io::Result<()> {
        self.terminal.draw(picture).map(drop)
    }

    /// Whether the terminal is still there.
    ///
    /// # Errors
    ///
    /// It was closed: its window, its connection, or its multiplexer.
    pub(super) fn still_there(&self) -> io::Result<()> {
        let mut watched = [PollFd::new(self.watched.as_fd(), PollFlags::empty())];
        poll(&mut watched, PollTimeout::ZERO)?;
        let gone = PollFlags::POLLHUP | PollFlags::POLLERR | PollFlags::POLLNVAL;
        if watched[0].revents().is_some_and(|now| now.intersects(gone)) {
            return Err(io::Error::other("the terminal is gone"));
        }
        Ok(())
    }
}

impl Drop for Screen<'_> {
    fn drop(&mut self) {
        restore();
        // A thread that panics may not change what happens at panics.
        if !std::thread::panicking() {
            let hook = Arc::clone(&self.previous_hook);
            panic::set_hook(Box::new(move |info| hook(info)));
        }
    }
}
