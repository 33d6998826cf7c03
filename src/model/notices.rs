//! What the reader of a report should know, each thing once.

use crate::event::Notice;
use crate::event::NoticeCode;

/// Most notices kept.
const MOST_NOTICES: usize = 100;

/// Notices in order of appearance.
#[derive(Debug, Default)]
pub(super) struct Notices {
    kept: Vec<Notice>,
    left_out: u64,
}

impl Notices {
    pub(super) fn add(&mut self, notice: &Notice) {
        if self.kept.contains(notice) {
            return;
        }
        if self.kept.len() < MOST_NOTICES {
            self.kept.push(notice.clone());
        } else {
            self.left_out += 1;
        }
    }

    /// The notices, and one that says how many were left out, if any were.
    pub(super) fn report(&self) -> Vec<Notice> {
        let mut all = self.kept.clone();
        if self.left_out > 0 {
            all.push(Notice {
                code: NoticeCode::NoticesLeftOut,
                message: format!(
                    "{} more notices were left out; the event log holds them all",
                    self.left_out
                ),
            });
        }
        all
    }
}
