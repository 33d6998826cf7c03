//! Samples: blocks of which the tracer is told when they are handed out and when they are freed.
//!
//! Every requested byte has the same chance to be chosen, and a block is a sample if one of its bytes is: one of `size`
//! bytes with the probability `1 − exp(−size / interval)`. So what samples stand for can be estimated without bias, however
//! sizes are distributed. Resizing a block counts as freeing it and asking for another.
//!
//! A mark in the header of a sample keeps it from the short way through free; blocks without it pay nothing there. A request
//! pays one comparison, which is never true while no samples are taken.

use super::Cache;
use super::Heap;
use super::header::Header;
use super::kernel::Kernel;
use crate::stats_page::Cause;

/// The interval with which every block is a sample, those of no bytes included.
pub(crate) const EVERY_BLOCK: u64 = 1;

impl Cache {
    /// Whether the block that was counted as requested last is a sample.
    #[inline(always)]
    pub(crate) fn is_sample_due(&self) -> bool {
        self.counters.requested_bytes.get() >= self.sample_at.get()
    }

    /// Bytes of a resized block that were counted as requested before, and are drawn for again.
    pub(super) fn draw_again_for(&self, bytes: usize) {
        let at = self.sample_at.get();
        if at != u64::MAX {
            self.sample_at.set(at.saturating_sub(bytes as u64));
        }
    }

    /// Draws the distance to the next sample.
    pub(super) fn draw(&self, interval: u64) {
        self.sample_at.set(match interval {
            0 => u64::MAX,
            EVERY_BLOCK => 0,
            interval => {
                let distance = exponential(self.next_random(), interval);
                self.counters.requested_bytes.get().saturating_add(distance)
            }
        });
    }
}

impl Cache {
    fn next_random(&self) -> u64 {
        let mut state = self.random.get();
        let number = random(&mut state);
        self.random.set(state);
        number
    }
}

impl<K: Kernel> Heap<K> {
    fn sample_interval(&self) -> u64 {
        self.page().settings.sample_interval.get()
    }

    /// Makes a cache take samples, or none, as it is set up.
    pub(super) fn begin_sampling(&self, cache: &Cache, number: u64) {
        // Other numbers for each cache; the same in each run of the same program.
        let seed = (number + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        cache.random.set(seed.max(1));
        cache.draw(self.sample_interval());
    }

    /// Makes all caches do so. There may be one already when the environment is read.
    pub(super) fn begin_sampling_everywhere(&self) {
        let mut address = self.page().caches.get() as usize;
        let mut number = 0;
        while address != 0 {
            // SAFETY: caches are never unmapped; what is changed of them here is atomic.
            let cache = unsafe { &*core::ptr::with_exposed_provenance::<Cache>(address) };
            self.begin_sampling(cache, number);
            number += 1;
            address = cache.counters.next.get() as usize;
        }
    }

    /// Marks a block as a sample and tells the tracer.
    ///
    /// # Safety
    ///
    /// The block is live and the caller's, as is the cache.
    #[cold]
    #[inline(never)]
    pub(super) unsafe fn sample(&self, cache: &Cache, block: usize, size: usize) {
        cache.draw(self.sample_interval());
        // SAFETY: the caller's promise.
        unsafe { Header::read(block).as_sample().write(block) };
        self.tell(Cause::Sampled, size as u64, block);
    }

    /// Takes the mark from a sample that is about to be freed or resized, and tells the tracer; whether it was one. It comes
    /// before the memory can be anybody else's.
    ///
    /// # Safety
    ///
    /// The block is live and the caller's.
    pub(super) unsafe fn end_sample(&self, block: usize) -> bool {
        // SAFETY: the caller's promise.
        let header = unsafe { Header::read(block) };
        if !header.is_sample() {
            return false;
        }
        // SAFETY: the caller's promise.
        unsafe { header.as_no_sample().write(block) };
        self.tell(Cause::SampleFreed, 0, block);
        true
    }

    fn tell(&self, cause: Cause, detail: u64, block: usize) {
        let page = core::ptr::from_ref(self.page()).addr();
        self.kernel.announce(page, cause, detail, block as u64);
    }
}

/// The next number of a generator (Vigna, "xorshift64*", 2016), whose state is not 0.
fn random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d)
}

/// A distance between two bytes that are chosen independently, one in `interval` on the average; 1 at least.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "a random number needs few digits; the logarithm is of one below 1"
)]
fn exponential(random: u64, interval: u64) -> u64 {
    // Above 0, up to 1.
    let part = ((random >> 11) + 1) as f64 / (1_u64 << 53) as f64;
    ((-logarithm(part) * interval as f64) as u64).saturating_add(1)
}

/// The natural logarithm of a positive, normal number; `core` has none.
#[expect(clippy::cast_precision_loss, reason = "exponents are small")]
fn logarithm(number: f64) -> f64 {
    let bits = number.to_bits();
    let exponent = (bits >> 52 & 0x7ff).cast_signed() - 1023;
    let mantissa = f64::from_bits(bits & ((1 << 52) - 1) | 1023 << 52);
    // ln m = 2 artanh((m − 1) / (m + 1)), whose terms shrink by a factor of 9 at least.
    let ratio = (mantissa - 1.0) / (mantissa + 1.0);
    let square = ratio * ratio;
    let mut term = ratio;
    let mut sum = 0.0;
    let mut divisor = 1.0;
    while divisor < 24.0 {
        sum += term / divisor;
        term *= square;
        divisor += 2.0;
    }
    2.0 * sum + exponent as f64 * core::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_logarithm_is_that_of_the_standard_library() {
        for number in [1e-16, 0.001, 0.3, 0.5, 0.707, 0.999, 1.0, 2.0, 17.5] {
            let difference = logarithm(number) - f64::ln(number);
            assert!(difference.abs() < 1e-9, "{number}: {difference}");
        }
    }

    #[test]
    #[expect(clippy::cast_precision_loss, reason = "sums of test values")]
    fn distances_have_the_mean_and_the_spread_that_they_should() {
        let (interval, draws) = (4096, 200_000);
        let mut state = 0x9e37_79b9_7f4a_7c15;
        let mut sum = 0.0;
        let mut beyond = 0;
        for _ in 0..draws {
            let distance = exponential(random(&mut state), interval);
            sum += distance as f64;
            beyond += u32::from(distance > 3 * interval);
        }
        // Ten times the standard error of the mean; always the same numbers.
        let mean = sum / f64::from(draws);
        assert!(
            (mean / 4096.0 - 1.0).abs() < 10.0 / f64::from(draws).sqrt(),
            "{mean}"
        );
        let share = f64::from(beyond) / f64::from(draws);
        assert!((share - f64::exp(-3.0)).abs() < 0.005, "{share}");
    }

    #[test]
    fn extreme_numbers_give_distances() {
        assert!(exponential(u64::MAX, u64::MAX) >= 1);
        assert!(exponential(0, 512 << 10) > 512 << 10);
        assert!(exponential(0, u64::MAX) > 0);
    }
}
