//! Chunks in use by size.

use crate::event::ChunkClass;

/// Up to this size each size is a class of its own.
const LARGEST_EXACT: u64 = 1024;
const EXACT: usize = (LARGEST_EXACT / 16) as usize + 1;
/// Beyond, each power of two has so many classes.
const PARTS: u64 = 4;
const CLASSES: usize = POWERS * 4;
/// Powers of two from 1024 to the largest address.
const POWERS: usize = 64 - 10;

/// A histogram of fixed size.
#[derive(Clone, Debug)]
pub(super) struct Classes {
    /// Counts by size in sixteenths.
    exact: [u64; EXACT],
    /// Counts and bytes by class.
    large: Vec<(u64, u64)>,
}

impl Default for Classes {
    fn default() -> Self {
        Self {
            exact: [0; EXACT],
            large: vec![(0, 0); CLASSES],
        }
    }
}

/// The class of a size beyond the exact ones.
fn class_of(size: u64) -> usize {
    // Sizes just above 1024 belong to the first class, 1024 itself to the exact ones.
    let power = u64::from((size - 1).ilog2());
    let part = ((size - 1) >> (power - 2)) & (PARTS - 1);
    usize::try_from((power - 10) * PARTS + part).unwrap_or(0)
}

/// The sizes that belong to a class: from, to.
fn range_of(class: usize) -> (u64, u64) {
    let class = class as u64;
    let (power, part) = (class / PARTS + 10, class % PARTS);
    let step = 1_u64 << (power - 2);
    let from = (1_u64 << power) + part * step;
    (from + 16, from.wrapping_add(step))
}

impl Classes {
    #[inline]
    pub(super) fn count(&mut self, size: u64) {
        if size <= LARGEST_EXACT {
            // In bounds, as sizes are at most 1024 here.
            if let Some(count) = self.exact.get_mut((size / 16) as usize) {
                *count += 1;
            }
        } else {
            self.count_large(size);
        }
    }

    #[cold]
    fn count_large(&mut self, size: u64) {
        if let Some((count, bytes)) = self.large.get_mut(class_of(size)) {
            *count += 1;
            *bytes = bytes.saturating_add(size);
        }
    }

    /// Adds another histogram.
    pub(super) fn add(&mut self, other: &Self) {
        for (count, more) in self.exact.iter_mut().zip(&other.exact) {
            *count = count.saturating_add(*more);
        }
        for (class, more) in self.large.iter_mut().zip(&other.large) {
            class.0 = class.0.saturating_add(more.0);
            class.1 = class.1.saturating_add(more.1);
        }
    }

    /// Chunks and bytes of all classes.
    pub(super) fn sums(&self) -> (u64, u64) {
        let exact = self
            .exact
            .iter()
            .zip(0..)
            .map(|(count, size): (&u64, u64)| (*count, count.saturating_mul(size * 16)));
        exact
            .chain(self.large.iter().copied())
            .fold((0, 0), |(chunks, bytes), (count, more)| {
                (chunks.saturating_add(count), more.saturating_add(bytes))
            })
    }

    /// The classes that have chunks, the smallest first.
    pub(super) fn list(&self) -> Vec<ChunkClass> {
        let exact = self
            .exact
            .iter()
            .zip((0..).step_by(16))
            .map(|(count, size)| ChunkClass {
                from_bytes: size,
                to_bytes: size,
                chunks: *count,
                bytes: count.saturating_mul(size),
            });
        let large = self
            .large
            .iter()
            .enumerate()
            .map(|(class, (chunks, bytes))| {
                let (from_bytes, to_bytes) = range_of(class);
                ChunkClass {
                    from_bytes,
                    to_bytes,
                    chunks: *chunks,
                    bytes: *bytes,
                }
            });
        exact
            .chain(large)
            .filter(|class| class.chunks > 0)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_size_belongs_to_the_class_that_names_it() {
        for size in (1040..70_000)
            .step_by(16)
            .chain([1 << 30, (1 << 30) + 16, 1 << 46])
        {
            let (from, to) = range_of(class_of(size));
            assert!((from..=to).contains(&size), "{size} in {from}..={to}");
        }
    }

    #[test]
    fn sums_are_those_of_the_sizes() {
        let mut classes = Classes::default();
        for size in [32, 32, 48, 1024, 1040, 4096, 100_000] {
            classes.count(size);
        }
        assert_eq!(
            classes.sums(),
            (7, 32 + 32 + 48 + 1024 + 1040 + 4096 + 100_000)
        );
        let list = classes.list();
        assert_eq!(list.iter().map(|class| class.chunks).sum::<u64>(), 7);
        assert_eq!((list[0].from_bytes, list[0].chunks), (32, 2));
        classes.add(&classes.clone());
        assert_eq!(classes.sums().0, 14);
    }
}
