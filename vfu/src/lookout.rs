//! When a sleeping queue is looked at that nobody may wake, as its doorbells are stores: soon after it had something to do,
//! and later the longer nothing came. So what comes after a short silence waits no longer than that lasted, and an idle
//! queue costs a few looks a second. The queue's owner is the caller, when it parks.

use std::time::Duration;

use reactor::Clock;

/// How long the longest of the first silences is, which double from a thirty-second part of it on.
pub(crate) const PERIOD: Duration = Duration::from_millis(1);
const FIRST_LOOKS: u32 = 5;
/// Looks in vain after which the silences double further.
const LOOKS_PER_STEP: u32 = 64;

/// The lookout of one queue.
#[derive(Debug)]
pub(crate) struct Lookout {
    period_ticks: u64,
    doublings: u32,
    /// Looks in vain.
    looks: u32,
}

impl Lookout {
    /// A lookout whose silences grow to [`PERIOD`], and then double so often.
    pub(crate) fn new(clock: &Clock, doublings: u32) -> Self {
        Self { period_ticks: clock.ticks(PERIOD), doublings, looks: 0 }
    }

    /// There was something to do.
    #[inline]
    pub(crate) fn found(&mut self) {
        self.looks = 0;
    }

    /// There will be nothing to do for long.
    pub(crate) fn expect_nothing(&mut self) {
        self.looks = u32::MAX;
    }

    /// Ticks until the next look, after one in vain.
    pub(crate) fn next(&mut self) -> u64 {
        let looks = self.looks;
        self.looks = looks.saturating_add(1);
        match FIRST_LOOKS.checked_sub(looks) {
            Some(halvings) => self.period_ticks >> halvings,
            None => self.period_ticks << (looks / LOOKS_PER_STEP).min(self.doublings),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_double_up_to_the_last_and_begin_anew_behind_work() {
        let mut lookout = Lookout { period_ticks: 3200, doublings: 2, looks: 0 };
        let silences: Vec<u64> = (0..7).map(|_| lookout.next()).collect();
        assert_eq!(silences, [100, 200, 400, 800, 1600, 3200, 3200]);
        let later: Vec<u64> = (0..1000).map(|_| lookout.next()).collect();
        assert!(later.is_sorted() && later.contains(&6400));
        assert_eq!(later.last(), Some(&12800));
        lookout.found();
        assert_eq!(lookout.next(), 100);
        lookout.expect_nothing();
        assert_eq!(lookout.next(), 12800);
    }
}
