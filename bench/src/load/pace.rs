//! Open loop: when requests are due, whatever became of those before.
//!
//! The engine asks once a turn. A request that is late, because the device or the generator could not take it in time, is
//! timed from when it was due: what a stall delays is part of the latency (Tene's "coordinated omission").

use reactor::{Clock, Tick};

/// Binary digits of a tick's fraction.
const FRACTION: u32 = 32;

/// The schedule of one queue.
#[derive(Debug)]
pub(crate) struct Pace {
    /// Ticks between two requests, and the fraction of one.
    interval: (u64, u64),
    /// Where this queue's first request is within the interval, so that queues do not all start at once.
    offset: u64,
    /// When the next request is due, and the fraction of a tick that it is due later.
    next: (Tick, u64),
}

impl Pace {
    /// Requests at `rate` a second over `queues` queues; this is the schedule of the one numbered `queue`.
    pub(crate) fn new(clock: &Clock, rate: u64, queues: usize, queue: usize) -> Self {
        let (rate, queues) = (u128::from(rate.max(1)), queues.max(1) as u128);
        let interval = ((u128::from(clock.ticks_per_second()) * queues) << FRACTION) / rate;
        let whole = |ticks: u128| u64::try_from(ticks >> FRACTION).unwrap_or(u64::MAX);
        let offset = whole(interval * queue as u128 / queues);
        let fraction = u64::try_from(interval & ((1 << FRACTION) - 1)).unwrap_or(0);
        Self { interval: (whole(interval), fraction), offset, next: (Tick::MAX, 0) }
    }

    /// Starts, now.
    pub(crate) fn start(&mut self, now: Tick) {
        self.next = (now.after(self.offset), 0);
    }

    /// When the next request is due, if that is now or was before.
    #[inline]
    pub(crate) fn due(&self, now: Tick) -> Option<Tick> {
        let due = self.next.0;
        (due <= now).then_some(due)
    }

    /// That one was made: the next one is due an interval after it.
    #[inline]
    pub(crate) fn advance(&mut self) {
        let (due, fraction) = self.next;
        let fraction = fraction + self.interval.1;
        self.next = (due.after(self.interval.0 + (fraction >> FRACTION)), fraction & ((1 << FRACTION) - 1));
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Takes all that is due; when each was, after the clock's start.
    fn take(pace: &mut Pace, clock: &Clock) -> Vec<u64> {
        let (fresh, _hand) = Clock::fake();
        std::iter::from_fn(|| {
            let due = pace.due(clock.now())?;
            pace.advance();
            Some(due.since(fresh.now()))
        })
        .collect()
    }

    #[test]
    fn requests_are_due_at_their_rate() {
        let (clock, hand) = Clock::fake();
        let mut pace = Pace::new(&clock, 3, 1, 0);
        pace.start(clock.now());
        hand.advance(Duration::from_millis(1900));
        let third = 1_000_000_000 / 3;
        assert_eq!(take(&mut pace, &clock), [0, third, 2 * third, 3 * third, 4 * third + 1, 5 * third + 1]);
    }

    #[test]
    fn late_requests_keep_the_time_they_were_due() {
        let (clock, hand) = Clock::fake();
        let mut pace = Pace::new(&clock, 1_000_000, 1, 0);
        pace.start(clock.now());
        assert_eq!(take(&mut pace, &clock), [0]);
        hand.advance(Duration::from_nanos(3500));
        assert_eq!(take(&mut pace, &clock), [1000, 2000, 3000]);
        assert!(take(&mut pace, &clock).is_empty());
    }

    #[test]
    fn queues_share_the_rate_and_take_turns() {
        let (clock, hand) = Clock::fake();
        let mut paces: Vec<Pace> = (0..4).map(|queue| Pace::new(&clock, 4_000_000, 4, queue)).collect();
        paces.iter_mut().for_each(|pace| pace.start(clock.now()));
        hand.advance(Duration::from_nanos(1999));
        let due: Vec<Vec<u64>> = paces.iter_mut().map(|pace| take(pace, &clock)).collect();
        assert_eq!(due, [vec![0, 1000], vec![250, 1250], vec![500, 1500], vec![750, 1750]]);
    }

    #[test]
    fn no_error_adds_up_over_a_day() {
        let (clock, hand) = Clock::fake();
        let mut pace = Pace::new(&clock, 7, 1, 0);
        let start = clock.now();
        pace.start(start);
        (0..7 * 86_400).for_each(|_| pace.advance());
        hand.advance(Duration::from_secs(86_400));
        assert!(pace.due(clock.now()).is_some_and(|due| due.since(start) >= 86_399_999_999_900));
    }
}
