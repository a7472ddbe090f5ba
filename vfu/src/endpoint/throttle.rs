//! How much one endpoint may log: what a client can repeat at will must not fill the disk.
//!
//! The endpoint and its session are the callers, never the I/O path.

use std::time::{Duration, Instant};

/// Lines that one endpoint logs in a second about what its clients do; the rest are counted.
pub const LOG_LINES_PER_SECOND: u32 = 10;

/// Counts lines, second by second.
#[derive(Debug)]
pub(super) struct Throttle {
    since: Instant,
    lines: u32,
    suppressed: u64,
}

impl Throttle {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), lines: 0, suppressed: 0 }
    }

    /// Whether one more line may be written at `now`; and how many were held back in the seconds before, which is to
    /// be said first.
    pub(super) fn admit(&mut self, now: Instant) -> Option<u64> {
        let mut held_back = 0;
        if now.saturating_duration_since(self.since) >= Duration::from_secs(1) {
            self.since = now;
            self.lines = 0;
            held_back = std::mem::take(&mut self.suppressed);
        }
        if self.lines == LOG_LINES_PER_SECOND {
            self.suppressed += 1;
            return None;
        }
        self.lines += 1;
        Some(held_back)
    }

    /// Runs `line` if it may be written now.
    pub(super) fn log(&mut self, endpoint: &str, line: impl FnOnce()) {
        let Some(held_back) = self.admit(Instant::now()) else { return };
        if held_back > 0 {
            tracing::warn!(
                endpoint,
                lines = held_back,
                "log lines about this endpoint's client were held back"
            );
        }
        line();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limit_of_lines_passes_in_a_second_and_the_next_one_does_not() {
        let mut throttle = Throttle::new();
        let start = throttle.since;
        let admitted = (0..=LOG_LINES_PER_SECOND).filter(|_| throttle.admit(start).is_some()).count();
        assert_eq!(admitted, LOG_LINES_PER_SECOND as usize);
        assert_eq!(
            throttle.admit(start + Duration::from_secs(1)),
            Some(1),
            "and it is told how many were held back"
        );
    }
}
