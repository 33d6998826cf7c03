//! What is measured of a call stack.

use crate::report::Growth;
use crate::report::StackGrowth;

/// What a stack is measured by, in formats that have one number per stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Measure {
    /// Bytes by which it made memory larger and that are still there.
    #[default]
    Net,
    /// Bytes by which it made memory larger.
    Grown,
    /// Bytes that it gave back, whoever had them from the kernel.
    Returned,
    /// Calls that made memory larger, and calls that gave some back; one that did both counts as two.
    Calls,
}

impl Measure {
    /// Every measure, in order.
    pub const ALL: [Self; 4] = [Self::Net, Self::Grown, Self::Returned, Self::Calls];

    /// Its name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Net => "net",
            Self::Grown => "grown",
            Self::Returned => "returned",
            Self::Calls => "calls",
        }
    }

    /// Whether it counts bytes.
    pub(super) fn is_bytes(self) -> bool {
        self != Self::Calls
    }

    /// Of one kind of memory.
    pub(super) fn of(self, growth: &Growth) -> u64 {
        match self {
            Self::Net => growth.net_bytes,
            Self::Grown => growth.grown_bytes,
            Self::Returned => growth.returned_bytes,
            Self::Calls => growth.grow_calls.saturating_add(growth.return_calls),
        }
    }

    /// Of break and anonymous memory together.
    pub(super) fn of_both(self, growth: &StackGrowth) -> u64 {
        self.of(&growth.program_break)
            .saturating_add(self.of(&growth.anonymous))
    }
}
