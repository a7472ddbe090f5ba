//! The times that requests took: gathered in ticks of the clock, told in nanoseconds.
//!
//! Requests that are found finished together often took the same time to the tick; such a run is recorded once, which
//! keeps the generator's own cost down.

use hdrhistogram::Histogram;
use serde::Serialize;

/// A longer time is recorded as this, which nobody mistakes for a good one.
const LONGEST_S: u64 = 60;
/// Decimal digits that are kept.
const DIGITS: u8 = 3;

/// Times in ticks.
#[derive(Debug)]
pub(crate) struct Latency {
    ticks: Histogram<u64>,
    longest: u64,
    run_of: u64,
    run: u64,
}

/// Times in nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub(crate) min_ns: f64,
    pub(crate) mean_ns: f64,
    pub(crate) p50_ns: f64,
    pub(crate) p90_ns: f64,
    pub(crate) p99_ns: f64,
    pub(crate) p99_9_ns: f64,
    pub(crate) p99_99_ns: f64,
    pub(crate) max_ns: f64,
}

impl Latency {
    /// Nothing recorded yet.
    pub(crate) fn new(ticks_per_second: u64) -> Self {
        let longest = ticks_per_second.saturating_mul(LONGEST_S).max(2);
        let ticks = Histogram::new_with_bounds(1, longest, DIGITS).expect("bounds are in order");
        Self { ticks, longest, run_of: 0, run: 0 }
    }

    /// One request took so many ticks.
    #[inline]
    pub(crate) fn record(&mut self, ticks: u64) {
        if ticks != self.run_of {
            self.end_run();
            self.run_of = ticks;
        }
        self.run += 1;
    }

    #[inline]
    fn end_run(&mut self) {
        if self.run > 0 {
            self.ticks.saturating_record_n(self.run_of.clamp(1, self.longest), self.run);
            self.run = 0;
        }
    }

    /// Adds what another one recorded.
    pub(crate) fn merge(&mut self, other: &mut Self) {
        self.end_run();
        other.end_run();
        // Both have the same bounds.
        let _ = self.ticks.add(&other.ticks);
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.run = 0;
        self.ticks.reset();
    }

    /// Requests recorded.
    pub(crate) fn count(&mut self) -> u64 {
        self.end_run();
        self.ticks.len()
    }

    /// What was recorded; all zero if nothing was.
    pub(crate) fn summary(&mut self, ticks_per_second: u64) -> Summary {
        self.end_run();
        if self.ticks.is_empty() {
            return Summary::default();
        }
        let ns = |ticks: f64| ticks * 1e9 / ticks_per_second as f64;
        let at = |quantile: f64| ns(self.ticks.value_at_quantile(quantile) as f64);
        Summary {
            min_ns: ns(self.ticks.min() as f64),
            mean_ns: ns(self.ticks.mean()),
            p50_ns: at(0.5),
            p90_ns: at(0.9),
            p99_ns: at(0.99),
            p99_9_ns: at(0.999),
            p99_99_ns: at(0.9999),
            max_ns: ns(self.ticks.max() as f64),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two ticks are a nanosecond.
    const RATE: u64 = 2_000_000_000;

    fn close(value: f64, expected: f64) -> bool {
        // Three digits are kept.
        (value - expected).abs() <= expected * 0.001 + 0.5
    }

    #[test]
    fn percentiles_of_a_known_sequence() {
        let mut latency = Latency::new(RATE);
        (1..=10_000).for_each(|us| latency.record(us * 2000));
        let summary = latency.summary(RATE);
        assert_eq!(latency.count(), 10_000);
        assert!(close(summary.min_ns, 1e3) && close(summary.max_ns, 1e7), "{summary:?}");
        assert!(close(summary.p50_ns, 5e6) && close(summary.p90_ns, 9e6), "{summary:?}");
        assert!(close(summary.p99_ns, 9.9e6) && close(summary.p99_9_ns, 9.99e6), "{summary:?}");
        assert!(close(summary.mean_ns, 5.0005e6), "{summary:?}");
    }

    #[test]
    fn run_of_equal_times_counts_each() {
        let mut latency = Latency::new(RATE);
        [500, 500, 500, 900, 500].iter().for_each(|&ticks| latency.record(ticks));
        assert_eq!(latency.count(), 5);
        assert!(close(latency.summary(RATE).p50_ns, 250.0));
        assert!(close(latency.summary(RATE).max_ns, 450.0));
    }

    #[test]
    fn what_was_cleared_is_forgotten_also_the_run_under_way() {
        let mut latency = Latency::new(RATE);
        latency.record(500);
        latency.clear();
        assert_eq!(latency.count(), 0);
        assert_eq!(latency.summary(RATE), Summary::default());
    }

    #[test]
    fn times_out_of_bounds_are_recorded_at_the_bound() {
        let mut latency = Latency::new(RATE);
        latency.record(0);
        latency.record(u64::MAX);
        assert_eq!(latency.count(), 2);
        assert!(close(latency.summary(RATE).max_ns, 60e9));
    }
}
