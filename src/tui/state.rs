//! What is looked at: which process, in what order, how deep, and what the keys do about it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use std::time::Instant;

use ratatui::crossterm::event::Event;
use ratatui::crossterm::event::KeyCode;
use ratatui::crossterm::event::KeyEventKind;
use ratatui::crossterm::event::KeyModifiers;

use super::Host;
use crate::report::CallPath;
use crate::report::Report;
use crate::report::SpaceReport;

/// Rates are those of the last so many seconds.
const RATE_WINDOW: Duration = Duration::from_secs(3);

/// By what call paths are sorted, largest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Net,
    Grown,
    Returned,
    Calls,
}

impl Order {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Net => "still there",
            Self::Grown => "grown",
            Self::Returned => "gone back",
            Self::Calls => "calls",
        }
    }

    fn next(self) -> Self {
        match self {
            Self::Net => Self::Grown,
            Self::Grown => Self::Returned,
            Self::Returned => Self::Calls,
            Self::Calls => Self::Net,
        }
    }

    fn of(self, path: &CallPath) -> u64 {
        match self {
            Self::Net => path.growth.net_bytes,
            Self::Grown => path.growth.grown_bytes,
            Self::Returned => path.growth.shrunk_bytes,
            Self::Calls => path.growth.grow_calls,
        }
    }
}

/// What covers the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Over {
    Nothing,
    Help,
    /// The stacks of the selected call path.
    Stack,
    /// What quitting means for a program that we started.
    Quit,
}

/// How fast memory grew lately.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(test, derive(PartialEq))]
pub(super) struct Rates {
    pub(super) calls_per_second: f64,
    pub(super) bytes_per_second: f64,
}

/// The state of the view.
pub(super) struct State {
    pub(super) launched: bool,
    began: Instant,
    /// When the recording ended, or the view was paused.
    still_since: Option<Duration>,
    pub(super) report: Option<Arc<Report>>,
    pub(super) has_ended: bool,
    pub(super) is_paused: bool,
    pub(super) order: Order,
    pub(super) over: Over,
    pub(super) selected: usize,
    pub(super) scroll: usize,
    /// The address space that was chosen; otherwise the main one.
    space: Option<u64>,
    pub(super) told: Option<String>,
    samples: VecDeque<(Instant, u64, u64)>,
    is_over: bool,
}

impl State {
    pub(super) fn new(launched: bool) -> Self {
        Self {
            launched,
            began: Instant::now(),
            still_since: None,
            report: None,
            has_ended: false,
            is_paused: false,
            order: Order::Net,
            over: Over::Nothing,
            selected: 0,
            scroll: 0,
            space: None,
            told: None,
            samples: VecDeque::new(),
            is_over: false,
        }
    }

    /// Whether the view is to close.
    pub(super) fn is_over(&self) -> bool {
        self.is_over
    }

    /// Nanoseconds since the view began, or until it stood still.
    pub(super) fn elapsed(&self) -> u64 {
        let elapsed = self.still_since.unwrap_or_else(|| self.began.elapsed());
        u64::try_from(elapsed.as_nanos()).unwrap_or(u64::MAX)
    }

    /// Takes the latest report.
    pub(super) fn look(&mut self, latest: Option<Arc<Report>>, has_ended: bool) {
        self.has_ended = has_ended;
        let is_still = has_ended || self.is_paused;
        if is_still {
            let began = self.began;
            self.still_since.get_or_insert_with(|| began.elapsed());
        } else {
            self.still_since = None;
        }
        if self.is_paused {
            return;
        }
        if let Some(report) = latest {
            let (calls, bytes) = self.space_of(&report).map_or((0, 0), |space| {
                let (heap, mapped) = (&space.program_break, &space.anonymous);
                (
                    heap.grow_calls.saturating_add(mapped.grow_calls),
                    heap.grown_bytes.saturating_add(mapped.grown_bytes),
                )
            });
            self.sample(Instant::now(), calls, bytes);
            self.keep_selection(&report);
            self.report = Some(report);
        }
    }

    /// The selected call path stays selected when others overtake it.
    fn keep_selection(&mut self, next: &Report) {
        let Some(report) = self.report.clone() else {
            return;
        };
        let (Some(space), Some(later)) = (self.space_of(&report), self.space_of(next)) else {
            return;
        };
        // At the top it is the largest that is looked at, until one of them is opened.
        if self.selected == 0 && self.over != Over::Stack {
            return;
        }
        if let Some(chosen) = self.paths(space).get(self.selected)
            && let Some(place) = self
                .paths(later)
                .iter()
                .position(|path| path.path == chosen.path)
        {
            self.selected = place;
        }
    }

    fn sample(&mut self, now: Instant, calls: u64, bytes: u64) {
        self.samples.push_back((now, calls, bytes));
        while self
            .samples
            .get(1)
            .is_some_and(|(time, ..)| now.duration_since(*time) > RATE_WINDOW)
        {
            self.samples.pop_front();
        }
    }

    /// How fast memory grew lately; `None` until that can be told.
    #[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
    pub(super) fn rates(&self) -> Option<Rates> {
        let (first, last) = (self.samples.front()?, self.samples.back()?);
        let seconds = last.0.duration_since(first.0).as_secs_f64();
        (seconds >= 0.5).then(|| Rates {
            calls_per_second: last.1.saturating_sub(first.1) as f64 / seconds,
            bytes_per_second: last.2.saturating_sub(first.2) as f64 / seconds,
        })
    }

    fn space_of<'a>(&self, report: &'a Report) -> Option<&'a SpaceReport> {
        let chosen = self.space.and_then(|id| {
            report
                .address_spaces
                .iter()
                .find(|space| u64::from(space.id.0) == id)
        });
        let main = || {
            let id = report.main_space?;
            report.address_spaces.iter().find(|space| space.id == id)
        };
        chosen
            .or_else(main)
            .or_else(|| report.address_spaces.first())
    }

    /// The address space that is shown.
    pub(super) fn shown<'a>(&self, report: &'a Report) -> Option<&'a SpaceReport> {
        self.space_of(report)
    }

    /// The call paths of an address space, in the order that is wanted.
    pub(super) fn paths<'a>(&self, space: &'a SpaceReport) -> Vec<&'a CallPath> {
        let mut paths: Vec<&CallPath> = space.call_paths.iter().collect();
        // A stable sort: what is equal stays where it was.
        paths.sort_by_key(|path| std::cmp::Reverse(self.order.of(path)));
        paths
    }

    /// Takes a key; all else that terminals tell is of no interest, as the size is looked up for each picture.
    pub(super) fn event(&mut self, event: &Event, host: &dyn Host) {
        let Event::Key(key) = event else { return };
        if key.kind == KeyEventKind::Release {
            return;
        }
        self.told = None;
        if key.modifiers.contains(KeyModifiers::CONTROL) {
            if key.code == KeyCode::Char('c') {
                self.interrupt(host);
            }
            return;
        }
        if self.over == Over::Quit {
            self.answer(key.code, host);
            return;
        }
        match key.code {
            KeyCode::Char('q') => self.quit(host),
            KeyCode::Char('?' | 'h') | KeyCode::F(1) => {
                self.over = if self.over == Over::Help {
                    Over::Nothing
                } else {
                    Over::Help
                };
            }
            KeyCode::Esc | KeyCode::Backspace | KeyCode::Left => self.over = Over::Nothing,
            KeyCode::Char('p' | ' ') => self.is_paused = !self.is_paused,
            KeyCode::Char('s') => self.snapshot(host),
            KeyCode::Char('o') => {
                self.order = self.order.next();
                self.selected = 0;
            }
            KeyCode::Enter | KeyCode::Right if self.over == Over::Nothing => {
                self.over = Over::Stack;
                self.scroll = 0;
            }
            KeyCode::Tab => self.other_space(1),
            KeyCode::BackTab => self.other_space(-1),
            KeyCode::Up | KeyCode::Char('k') => self.move_by(-1),
            KeyCode::Down | KeyCode::Char('j') => self.move_by(1),
            KeyCode::PageUp => self.move_by(-10),
            KeyCode::PageDown => self.move_by(10),
            KeyCode::Home => self.move_by(isize::MIN),
            KeyCode::End => self.move_by(isize::MAX),
            _ => {}
        }
    }

    fn interrupt(&mut self, host: &dyn Host) {
        host.interrupt();
        if self.has_ended || !self.launched {
            self.is_over = true;
        }
    }

    fn quit(&mut self, host: &dyn Host) {
        if self.has_ended {
            self.is_over = true;
        } else if self.launched {
            self.over = Over::Quit;
        } else {
            host.end();
            self.is_over = true;
        }
    }

    fn answer(&mut self, key: KeyCode, host: &dyn Host) {
        match key {
            KeyCode::Char('e') => {
                host.end();
                self.told = Some("the program was asked to end (SIGTERM)".to_owned());
            }
            KeyCode::Char('c') => self.is_over = true,
            KeyCode::Esc | KeyCode::Char('n' | 'q') => {}
            _ => return,
        }
        self.over = Over::Nothing;
    }

    fn snapshot(&mut self, host: &dyn Host) {
        self.told = Some(match &self.report {
            None => "there is nothing to write yet".to_owned(),
            Some(report) => match host.snapshot(report) {
                Ok(name) => format!("snapshot written: {name}"),
                Err(why) => format!("no snapshot: {why}"),
            },
        });
    }

    /// The next or previous process. Rates begin anew.
    fn other_space(&mut self, by: isize) {
        let Some(report) = self.report.clone() else {
            return;
        };
        let spaces = &report.address_spaces;
        let current = self
            .space_of(&report)
            .and_then(|shown| spaces.iter().position(|space| space.id == shown.id))
            .unwrap_or(0);
        let Some(last) = spaces.len().checked_sub(1) else {
            return;
        };
        let next = match current.checked_add_signed(by) {
            Some(next) if next <= last => next,
            Some(_) => 0,
            None => last,
        };
        self.space = spaces.get(next).map(|space| u64::from(space.id.0));
        self.selected = 0;
        self.scroll = 0;
        self.samples.clear();
    }

    /// Moves the selection, or what is seen of a stack. The picture says where the end is.
    fn move_by(&mut self, by: isize) {
        let place = if self.over == Over::Stack {
            &mut self.scroll
        } else {
            &mut self.selected
        };
        *place = place.saturating_add_signed(by);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU32;
    use std::sync::atomic::Ordering;

    use super::*;
    use ratatui::crossterm::event::KeyEvent;

    #[derive(Default)]
    struct Asked {
        ends: AtomicU32,
        interrupts: AtomicU32,
    }

    impl Host for Asked {
        fn end(&self) {
            self.ends.fetch_add(1, Ordering::Relaxed);
        }
        fn interrupt(&self) {
            self.interrupts.fetch_add(1, Ordering::Relaxed);
        }
        fn snapshot(&self, _: &Report) -> Result<String, String> {
            Ok("x.json".to_owned())
        }
    }

    fn press(state: &mut State, key: KeyCode, host: &Asked) {
        state.event(&Event::Key(KeyEvent::new(key, KeyModifiers::NONE)), host);
    }

    #[test]
    fn quitting_an_attached_program_lets_it_go_at_once() {
        let (mut state, host) = (State::new(false), Asked::default());
        press(&mut state, KeyCode::Char('q'), &host);
        assert!(state.is_over());
        assert_eq!(host.ends.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn quitting_a_program_that_was_run_asks_first() {
        let (mut state, host) = (State::new(true), Asked::default());
        press(&mut state, KeyCode::Char('q'), &host);
        assert!(!state.is_over());
        press(&mut state, KeyCode::Esc, &host);
        assert_eq!((state.over, state.is_over()), (Over::Nothing, false));
        assert_eq!(host.ends.load(Ordering::Relaxed), 0);
        press(&mut state, KeyCode::Char('q'), &host);
        press(&mut state, KeyCode::Char('e'), &host);
        assert_eq!(host.ends.load(Ordering::Relaxed), 1);
        // Its end is waited for.
        assert!(!state.is_over());
    }

    #[test]
    fn rates_are_unknown_until_there_is_time_to_tell_them() {
        let mut state = State::new(false);
        let begin = Instant::now();
        state.sample(begin, 10, 1000);
        assert_eq!(state.rates(), None);
        state.sample(begin + Duration::from_secs(2), 14, 5000);
        let expected = Rates {
            calls_per_second: 2.0,
            bytes_per_second: 2000.0,
        };
        assert_eq!(state.rates(), Some(expected));
    }

    #[test]
    fn after_the_end_a_quit_asks_nothing() {
        let (mut state, host) = (State::new(true), Asked::default());
        state.look(None, true);
        press(&mut state, KeyCode::Char('q'), &host);
        assert!(state.is_over());
        assert_eq!(host.ends.load(Ordering::Relaxed), 0);
    }
}
