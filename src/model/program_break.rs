//! The story of one program break.
//!
//! Addresses are kept, sizes are worked out when they are asked for: where the heap starts may be learnt late.

use crate::event::PageFigures;
use crate::report::BreakReport;
use crate::report::Steps;
use crate::units::Address;

/// A program break: where it was and is, and which calls moved it.
#[derive(Clone, Debug, Default)]
pub(super) struct ProgramBreak {
    start: Option<Address>,
    first: Option<Address>,
    end: Option<Address>,
    highest: Option<Address>,
    exact: bool,
    /// Whether `first` is known to the byte.
    first_exact: bool,
    grow_calls: u64,
    grown_bytes: u64,
    shrink_calls: u64,
    shrunk_bytes: u64,
    query_calls: u64,
    refused_calls: u64,
    pub(super) advised_bytes: u64,
    pub(super) pages: Option<PageFigures>,
}

/// A brk(2) call.
#[derive(Clone, Copy, Debug)]
pub(super) struct BrkCall {
    pub(super) requested: Address,
    pub(super) before: Option<Address>,
    pub(super) after: Address,
}

/// What a brk(2) call did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BrkEffect {
    /// It asked where the break is.
    Query,
    /// The kernel refused it: the break is where it was (brk(2), NOTES).
    Refused,
    /// It moved the break, nobody knows how far.
    MovedFromUnknown,
    /// It moved the break from here.
    MovedFrom(Address),
}

impl ProgramBreak {
    /// Where the heap starts; `None` before anything told.
    pub(super) fn start(&self) -> Option<Address> {
        self.start
    }

    /// Where the break is; `None` before anything told.
    pub(super) fn end(&self) -> Option<Address> {
        self.end
    }

    /// Whether the break is known to the byte.
    pub(super) fn is_exact(&self) -> bool {
        self.exact
    }

    /// Bytes of the heap now; `None` while not known.
    pub(super) fn size(&self) -> Option<u64> {
        self.size_at(self.end)
    }

    /// Most bytes of the heap; `None` while not known.
    pub(super) fn peak(&self) -> Option<u64> {
        self.size_at(self.highest)
    }

    pub(super) fn grown_bytes(&self) -> u64 {
        self.grown_bytes
    }

    pub(super) fn shrunk_bytes(&self) -> u64 {
        self.shrunk_bytes
    }

    pub(super) fn grow_calls(&self) -> u64 {
        self.grow_calls
    }

    pub(super) fn shrink_calls(&self) -> u64 {
        self.shrink_calls
    }

    fn size_at(&self, address: Option<Address>) -> Option<u64> {
        Some(address?.above(self.start?))
    }

    /// The break that a forked child begins with: at the same place, with no history.
    pub(super) fn forked(&self) -> Self {
        Self {
            start: self.start,
            first: self.end,
            end: self.end,
            highest: self.end,
            exact: self.exact,
            first_exact: self.exact,
            ..Self::default()
        }
    }

    /// `/proc` tells where the heap starts.
    pub(super) fn learn_start(&mut self, start: Address) {
        self.start = Some(start);
    }

    /// The break has been here all the time since observation began.
    pub(super) fn learn_first(&mut self, address: Address, exact: bool) {
        self.start.get_or_insert(address);
        self.first = Some(address);
        self.end = Some(address);
        self.highest = Some(address);
        self.exact = exact;
        self.first_exact = exact;
    }

    /// `/proc` shows the break in this page, against what the calls told.
    pub(super) fn correct(&mut self, page_end: Address) {
        self.first.get_or_insert(page_end);
        self.place(page_end);
        self.exact = false;
    }

    /// Accounts for a call.
    pub(super) fn call(&mut self, call: BrkCall) -> BrkEffect {
        let from = call.before.or(self.end);
        if let Some(before) = call.before {
            self.observe(before);
        }
        let BrkCall {
            requested, after, ..
        } = call;
        if requested == Address(0) || (after == requested && from == Some(after)) {
            self.query_calls += 1;
            self.observe(after);
            BrkEffect::Query
        } else if after != requested {
            self.refused_calls += 1;
            self.observe(after);
            BrkEffect::Refused
        } else if let Some(from) = from {
            self.move_from(from, after);
            BrkEffect::MovedFrom(from)
        } else {
            self.observe(after);
            BrkEffect::MovedFromUnknown
        }
    }

    /// The break is exactly here, and no call under consideration has put it there.
    fn observe(&mut self, address: Address) {
        if self.first_exact || self.grow_calls + self.shrink_calls > 0 {
            self.place(address);
            self.exact = true;
        } else {
            // What was known to a page until now, or not at all, is known to the byte.
            self.learn_first(address, true);
        }
    }

    fn move_from(&mut self, from: Address, to: Address) {
        if to > from {
            self.grow_calls += 1;
            self.grown_bytes = self.grown_bytes.saturating_add(to.above(from));
        } else {
            self.shrink_calls += 1;
            self.shrunk_bytes = self.shrunk_bytes.saturating_add(from.above(to));
        }
        self.place(to);
        self.exact = true;
    }

    fn place(&mut self, address: Address) {
        self.end = Some(address);
        self.highest = self.highest.max(self.end);
    }

    pub(super) fn report(&self, steps: Steps) -> BreakReport {
        BreakReport {
            start: self.start,
            end: self.end,
            start_bytes: self.size_at(self.first),
            end_bytes: self.size(),
            peak_bytes: self.peak(),
            exact: self.exact,
            grow_calls: self.grow_calls,
            grown_bytes: self.grown_bytes,
            shrink_calls: self.shrink_calls,
            shrunk_bytes: self.shrunk_bytes,
            query_calls: self.query_calls,
            refused_calls: self.refused_calls,
            returned_ratio: super::share(self.shrunk_bytes, self.grown_bytes),
            advised_bytes: self.advised_bytes,
            pages_at_end: self.pages,
            steps,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(
        program_break: &mut ProgramBreak,
        requested: u64,
        before: Option<u64>,
        after: u64,
    ) -> BrkEffect {
        program_break.call(BrkCall {
            requested: Address(requested),
            before: before.map(Address),
            after: Address(after),
        })
    }

    fn report(program_break: &ProgramBreak) -> BreakReport {
        program_break.report(Steps::default())
    }

    #[test]
    fn a_break_back_at_its_start_leaves_the_peak() {
        let mut program_break = ProgramBreak::default();
        program_break.learn_first(Address(0x1000), true);
        call(&mut program_break, 0x5008, Some(0x1000), 0x5008);
        call(&mut program_break, 0x1000, Some(0x5008), 0x1000);
        let report = report(&program_break);
        assert_eq!(report.peak_bytes, Some(0x4008));
        assert_eq!((report.start_bytes, report.end_bytes), (Some(0), Some(0)));
        assert_eq!((report.grown_bytes, report.shrunk_bytes), (0x4008, 0x4008));
        assert_eq!(report.returned_ratio, Some(1.0));
    }

    #[test]
    fn asking_where_the_break_is_moves_nothing() {
        let mut program_break = ProgramBreak::default();
        program_break.learn_first(Address(0x1000), true);
        assert_eq!(
            call(&mut program_break, 0, Some(0x1000), 0x1000),
            BrkEffect::Query
        );
        assert_eq!(
            call(&mut program_break, 0x1000, Some(0x1000), 0x1000),
            BrkEffect::Query
        );
        let report = report(&program_break);
        assert_eq!((report.query_calls, report.grow_calls), (2, 0));
        assert_eq!(report.returned_ratio, None);
    }

    #[test]
    fn a_refused_call_tells_where_the_break_is() {
        let mut program_break = ProgramBreak::default();
        program_break.learn_start(Address(0x1000));
        assert_eq!(
            call(&mut program_break, 0xffff_f000, None, 0x3000),
            BrkEffect::Refused
        );
        let report = report(&program_break);
        assert_eq!((report.refused_calls, report.grown_bytes), (1, 0));
        assert_eq!(report.end_bytes, Some(0x2000));
        assert!(report.exact);
    }

    #[test]
    fn a_move_from_nobody_knows_where_counts_no_growth() {
        let mut program_break = ProgramBreak::default();
        assert_eq!(
            call(&mut program_break, 0x3000, None, 0x3000),
            BrkEffect::MovedFromUnknown
        );
        let report = report(&program_break);
        assert_eq!(
            (report.start, report.end_bytes),
            (Some(Address(0x3000)), Some(0))
        );
        assert_eq!((report.grow_calls, report.grown_bytes), (0, 0));
    }

    #[test]
    fn the_first_call_makes_a_page_rounded_break_exact() {
        let mut program_break = ProgramBreak::default();
        program_break.learn_start(Address(0x1000));
        program_break.learn_first(Address(0x5000), false);
        call(&mut program_break, 0x6800, Some(0x4800), 0x6800);
        let report = report(&program_break);
        assert!(report.exact);
        assert_eq!(report.start_bytes, Some(0x3800));
        assert_eq!(
            (report.grown_bytes, report.end_bytes),
            (0x2000, Some(0x5800))
        );
    }

    #[test]
    fn the_event_is_believed_where_it_contradicts_the_model() {
        let mut program_break = ProgramBreak::default();
        program_break.learn_first(Address(0x1000), true);
        call(&mut program_break, 0x9000, Some(0x8000), 0x9000);
        let report = report(&program_break);
        assert_eq!(report.grown_bytes, 0x1000);
        assert_eq!(report.end_bytes, Some(0x8000));
    }
}
