//! Sizes over time, in a bounded number of points.

use super::allocator::HeldBytes;
use crate::report::TimelinePoint;
use crate::report::TimelineReport;
use crate::units::Timestamp;

/// Most points kept.
pub(super) const MOST_POINTS: usize = 1024;

/// Length of a bucket at first: a microsecond.
const FIRST_BUCKET_NS: u64 = 1_000;

/// The sizes at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sizes {
    pub(super) break_bytes: u64,
    pub(super) anonymous_bytes: u64,
    /// Absent when not measured at that moment.
    pub(super) resident_bytes: Option<u64>,
    /// Of the bundled allocator; absent likewise.
    pub(super) held: Option<HeldBytes>,
}

/// Points in buckets of equal length, which doubles whenever there are too many.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    bucket_ns: u64,
    points: Vec<TimelinePoint>,
}

impl Default for Timeline {
    fn default() -> Self {
        Self {
            bucket_ns: FIRST_BUCKET_NS,
            points: Vec::new(),
        }
    }
}

impl Timeline {
    /// Notes the sizes at a moment, unless they are those of the moment before. Time that runs backwards stands
    /// still instead.
    pub(super) fn note(&mut self, time: Timestamp, sizes: Sizes) {
        let Some(last) = self.points.last_mut() else {
            self.points.push(point(time, sizes));
            return;
        };
        let adds_nothing = sizes.held.is_none_or(|held| {
            last.allocator_in_use_bytes == Some(held.in_use)
                && last.allocator_obtained_bytes == Some(held.obtained)
        });
        if sizes.resident_bytes.is_none()
            && adds_nothing
            && last.break_bytes == sizes.break_bytes
            && last.anonymous_bytes == sizes.anonymous_bytes
        {
            return;
        }
        let next = point(time.max(last.time_ns), sizes);
        if bucket(last, self.bucket_ns) == bucket(&next, self.bucket_ns) {
            absorb(last, &next);
            return;
        }
        self.points.push(next);
        self.thin();
    }

    /// Merges buckets until there are few enough; the width only ever grows, so this happens 64 times at most.
    fn thin(&mut self) {
        while self.points.len() > MOST_POINTS {
            self.bucket_ns = self.bucket_ns.saturating_mul(2);
            let bucket_ns = self.bucket_ns;
            self.points.dedup_by(|next, kept| {
                let same = bucket(next, bucket_ns) == bucket(kept, bucket_ns);
                if same {
                    absorb(kept, next);
                }
                same
            });
        }
    }

    pub(super) fn report(&self) -> TimelineReport {
        TimelineReport {
            bucket_ns: if self.points.is_empty() {
                0
            } else {
                self.bucket_ns
            },
            points: self.points.clone(),
        }
    }

    /// Gives back spare room; called when no more points are expected.
    pub(super) fn shrink(&mut self) {
        self.points.shrink_to_fit();
    }
}

fn point(time: Timestamp, sizes: Sizes) -> TimelinePoint {
    TimelinePoint {
        time_ns: time,
        break_bytes: sizes.break_bytes,
        break_min_bytes: sizes.break_bytes,
        break_max_bytes: sizes.break_bytes,
        anonymous_bytes: sizes.anonymous_bytes,
        anonymous_min_bytes: sizes.anonymous_bytes,
        anonymous_max_bytes: sizes.anonymous_bytes,
        resident_bytes: sizes.resident_bytes,
        allocator_in_use_bytes: sizes.held.map(|held| held.in_use),
        allocator_in_use_max_bytes: sizes.held.map(|held| held.in_use),
        allocator_obtained_bytes: sizes.held.map(|held| held.obtained),
    }
}

fn bucket(point: &TimelinePoint, bucket_ns: u64) -> u64 {
    point.time_ns.0 / bucket_ns
}

fn absorb(kept: &mut TimelinePoint, next: &TimelinePoint) {
    *kept = TimelinePoint {
        break_min_bytes: kept.break_min_bytes.min(next.break_min_bytes),
        break_max_bytes: kept.break_max_bytes.max(next.break_max_bytes),
        anonymous_min_bytes: kept.anonymous_min_bytes.min(next.anonymous_min_bytes),
        anonymous_max_bytes: kept.anonymous_max_bytes.max(next.anonymous_max_bytes),
        resident_bytes: next.resident_bytes.or(kept.resident_bytes),
        allocator_in_use_bytes: next.allocator_in_use_bytes.or(kept.allocator_in_use_bytes),
        // `None` is less than any number.
        allocator_in_use_max_bytes: kept
            .allocator_in_use_max_bytes
            .max(next.allocator_in_use_max_bytes),
        allocator_obtained_bytes: next
            .allocator_obtained_bytes
            .or(kept.allocator_obtained_bytes),
        ..*next
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(break_bytes: u64) -> Sizes {
        Sizes {
            break_bytes,
            anonymous_bytes: 0,
            resident_bytes: None,
            held: None,
        }
    }

    #[test]
    fn changes_within_a_microsecond_share_a_point_that_keeps_the_extremes() {
        let mut timeline = Timeline::default();
        for (time, size) in [(1_000, 5), (1_400, 90), (1_999, 20), (2_000, 30)] {
            timeline.note(Timestamp(time), sizes(size));
        }
        let report = timeline.report();
        assert_eq!(report.bucket_ns, 1_000);
        assert_eq!(report.points.len(), 2);
        let first = report.points[0];
        assert_eq!((first.time_ns, first.break_bytes), (Timestamp(1_999), 20));
        assert_eq!((first.break_min_bytes, first.break_max_bytes), (5, 90));
    }

    #[test]
    fn sizes_that_stay_make_no_point() {
        let mut timeline = Timeline::default();
        timeline.note(Timestamp(0), sizes(5));
        timeline.note(Timestamp(1_000_000), sizes(5));
        assert_eq!(timeline.report().points.len(), 1);
    }

    #[test]
    fn a_million_changes_keep_their_extremes_and_their_last_value() {
        let mut timeline = Timeline::default();
        for index in 0..1_000_000 {
            let size = if index == 777_777 {
                1 << 40
            } else {
                1 + index % 2
            };
            timeline.note(Timestamp(index * 1_700), sizes(size));
        }
        timeline.note(Timestamp(u64::MAX), sizes(7));
        let report = timeline.report();
        assert!(report.points.len() <= MOST_POINTS);
        assert!(report.points.len() > MOST_POINTS / 4);
        let highest = report.points.iter().map(|p| p.break_max_bytes).max();
        assert_eq!(highest, Some(1 << 40));
        assert_eq!(report.points.last().unwrap().break_bytes, 7);
        assert!(report.points.is_sorted_by_key(|p| p.time_ns));
    }

    #[test]
    fn time_that_runs_backwards_stands_still() {
        let mut timeline = Timeline::default();
        timeline.note(Timestamp(9_000), sizes(1));
        timeline.note(Timestamp(3), sizes(2));
        let report = timeline.report();
        assert_eq!(report.points.len(), 1);
        assert_eq!(report.points[0].time_ns, Timestamp(9_000));
    }

    #[test]
    fn resident_memory_is_noted_even_when_nothing_moved() {
        let mut timeline = Timeline::default();
        timeline.note(Timestamp(0), sizes(1));
        let measured = Sizes {
            resident_bytes: Some(77),
            ..sizes(1)
        };
        timeline.note(Timestamp(5_000), measured);
        assert_eq!(timeline.report().points[1].resident_bytes, Some(77));
    }
}
