//! Holds down the idle-wake latency of the processors while stops come fast.
//!
//! Each stop wakes breaktrace, and each resume wakes the program, mostly on another processor, which is idle and has
//! gone to sleep: waking it costs more than everything else together. While `/dev/cpu_dma_latency` is open with a
//! zero written to it, idle processors poll instead (Documentation/power/pm_qos_interface.rst). That burns power,
//! so it is held only while it helps. Nothing about the program changes.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Write;

use crate::units::Timestamp;

/// Stops within one window from which on the latency is held: a thousand a second.
const BUSY: u32 = 10;
/// Length of the window in nanoseconds.
const WINDOW: u64 = 10_000_000;
/// Without [`BUSY`] stops in a window for so many nanoseconds, the latency is released.
const QUIET: u64 = 100_000_000;

/// Decides when to hold the latency down, and does.
#[derive(Debug)]
pub(super) struct LatencyHold {
    allowed: bool,
    held: Option<File>,
    window_start: Timestamp,
    stops: u32,
    last_busy: Timestamp,
}

impl LatencyHold {
    /// Holds nothing yet; never will unless `allowed`.
    pub(super) fn new(allowed: bool) -> Self {
        Self {
            allowed,
            held: None,
            window_start: Timestamp(0),
            stops: 0,
            last_busy: Timestamp(0),
        }
    }

    /// Counts a stop. Returns whether the latency is held from now on, and was not before.
    pub(super) fn count_stop(&mut self, now: Timestamp) -> bool {
        if !self.allowed {
            return false;
        }
        if now.0.saturating_sub(self.window_start.0) > WINDOW {
            self.window_start = now;
            self.stops = 0;
        }
        self.stops += 1;
        if self.stops < BUSY {
            return false;
        }
        self.last_busy = now;
        self.held.is_none() && self.hold()
    }

    /// Whether idle processors are kept awake now.
    pub(super) fn is_held(&self) -> bool {
        self.held.is_some()
    }

    /// Releases the latency when stops have become rare.
    pub(super) fn release_if_quiet(&mut self, now: Timestamp) {
        if self.held.is_some() && now.0.saturating_sub(self.last_busy.0) > QUIET {
            self.held = None;
        }
    }

    fn hold(&mut self) -> bool {
        let request = |mut file: File| file.write_all(&0_i32.to_ne_bytes()).map(|()| file);
        // The kernel drops the request when the descriptor is closed, so also when we die.
        match OpenOptions::new()
            .write(true)
            .open("/dev/cpu_dma_latency")
            .and_then(request)
        {
            Ok(file) => {
                self.held = Some(file);
                true
            }
            // Not permitted, or no such device: stops cost what they cost.
            Err(_) => {
                self.allowed = false;
                false
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rare_stops_hold_nothing() {
        let mut latency = LatencyHold::new(true);
        for stop in 0..100 {
            assert!(!latency.count_stop(Timestamp(stop * 5_000_000)));
        }
        assert!(latency.held.is_none());
    }

    #[test]
    fn fast_stops_hold_the_latency_until_they_cease() {
        let mut latency = LatencyHold::new(true);
        let began = (0..100)
            .filter(|stop| latency.count_stop(Timestamp(stop * 20_000)))
            .count();
        // Where the device is missing or forbidden, nothing is held and nothing fails.
        assert!(began <= 1);
        assert_eq!(latency.held.is_some(), began == 1);
        latency.release_if_quiet(Timestamp(50_000_000));
        assert_eq!(latency.held.is_some(), began == 1);
        latency.release_if_quiet(Timestamp(500_000_000));
        assert!(latency.held.is_none());
    }

    #[test]
    fn forbidden_means_never() {
        let mut latency = LatencyHold::new(false);
        assert!((0..1000).all(|stop| !latency.count_stop(Timestamp(stop))));
    }
}
