//! Requests that take longer than they may: counted, and told in the log, once each.
//!
//! Nothing is done to them: their memory is the type's until they end. Part of [`IoChannel`](crate::IoChannel), which looks
//! at what it has in flight now and then, and does not let its caller sleep before it has told all of it. Reads no clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::clock;

/// Looks within the time of a timeout: how late one may be told, as a part of it.
const LOOKS: u64 = 8;

/// The timeout of a bdev, and how many requests it has hit.
#[derive(Debug, Default)]
pub(crate) struct Timeout {
    limit_us: AtomicU64,
    expired: AtomicU64,
}

/// The timeout of a bdev, as `bdev_get_bdevs` shows it where there is one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct TimeoutDescription {
    /// The time; 0 for none.
    pub timeout_us: u64,
    /// Requests that took longer since it was set.
    pub expired: u64,
}

impl Timeout {
    pub(crate) fn set(&self, limit_us: u64) {
        self.limit_us.store(limit_us, Ordering::Relaxed);
        self.expired.store(0, Ordering::Relaxed);
    }

    pub(crate) fn describe(&self) -> TimeoutDescription {
        TimeoutDescription {
            timeout_us: self.limit_us.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
        }
    }
}

/// A channel's watch over its requests.
#[derive(Debug)]
pub(crate) struct Watch {
    timeout: Arc<Timeout>,
    limit: u64,
    next_look: u64,
    /// By token: when the request came that was told of last.
    told: Box<[u64]>,
}

impl Watch {
    /// A watch over `depth` requests, if there is a timeout.
    pub(crate) fn new(timeout: &Arc<Timeout>, depth: usize) -> Option<Box<Watch>> {
        let limit_us = timeout.limit_us.load(Ordering::Relaxed);
        let limit = clock::us_to_ticks(limit_us).max(1);
        let told = vec![u64::MAX; depth].into_boxed_slice();
        (limit_us > 0).then(|| Box::new(Watch { timeout: timeout.clone(), limit, next_look: 0, told }))
    }

    /// Whether the timeout is still the one it was made for.
    pub(crate) fn is_current(&self) -> bool {
        let limit_us = self.timeout.limit_us.load(Ordering::Relaxed);
        limit_us > 0 && clock::us_to_ticks(limit_us).max(1) == self.limit
    }

    #[inline]
    pub(crate) fn is_due(&self, now: u64) -> bool {
        now >= self.next_look
    }

    /// Looks at the requests in flight, by token and when they came. How many are newly late.
    #[cold]
    pub(crate) fn look(&mut self, now: u64, in_flight: impl Iterator<Item = (usize, u64)>) -> u64 {
        self.next_look = now.saturating_add(self.limit / LOOKS);
        let mut late = 0;
        for (token, came) in in_flight {
            if now.saturating_sub(came) > self.limit
                && let Some(told) = self.told.get_mut(token)
                && std::mem::replace(told, came) != came
            {
                late += 1;
            }
        }
        self.timeout.expired.fetch_add(late, Ordering::Relaxed);
        late
    }

    /// Whether a request is in flight that may yet be late.
    pub(crate) fn expects(&self, mut in_flight: impl Iterator<Item = (usize, u64)>) -> bool {
        in_flight.any(|(token, came)| self.told.get(token).is_some_and(|told| *told != came))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn watch(limit_us: u64) -> (Arc<Timeout>, Option<Box<Watch>>) {
        let timeout = Arc::<Timeout>::default();
        timeout.set(limit_us);
        let watch = Watch::new(&timeout, 4);
        (timeout, watch)
    }

    #[test]
    fn late_requests_are_counted_once_and_again_when_their_token_is_used_again() {
        let (timeout, watch) = watch(1000);
        let mut watch = watch.unwrap();

        let found = [
            watch.look(MS, [(0, 0), (1, MS / 2)].into_iter()),
            watch.look(2 * MS, [(0, 0), (1, MS / 2)].into_iter()),
            watch.look(3 * MS, [(0, 0), (1, MS / 2)].into_iter()),
            watch.look(9 * MS, [(0, 4 * MS)].into_iter()),
        ];

        assert_eq!(found, [0, 2, 0, 1]);
        assert_eq!(timeout.describe(), TimeoutDescription { timeout_us: 1000, expired: 3 });
    }

    #[test]
    fn a_caller_may_sleep_once_all_that_is_in_flight_was_told_of() {
        let (_, watch) = watch(1000);
        let mut watch = watch.unwrap();

        let before = watch.expects([(2, 0)].into_iter());
        watch.look(5 * MS, [(2, 0)].into_iter());

        assert!(before && !watch.expects([(2, 0)].into_iter()));
        assert!(!watch.is_due(5 * MS) && watch.is_due(6 * MS));
    }

    #[test]
    fn without_a_timeout_nobody_watches() {
        let (timeout, watch) = watch(0);
        let current = self::watch(1000).1.unwrap();

        assert!(watch.is_none() && current.is_current());
        current.timeout.set(2000);
        assert!(!current.is_current());
        assert_eq!(timeout.describe(), TimeoutDescription::default());
    }
}
