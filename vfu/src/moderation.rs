//! Interrupt moderation: a queue's interrupt is held back until enough has finished, or for a time. Off unless an
//! endpoint, or an NVMe host, asks for it; the queue's owner is the caller.

use std::time::Duration;

use reactor::Tick;

/// How a queue's interrupts are held back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moderation {
    /// So many completions raise one at once.
    pub completions: u32,
    /// None is held back for longer than this.
    pub time: Duration,
}

/// The moderation of one queue.
#[derive(Debug)]
pub(crate) struct Moderator {
    limit: u32,
    ticks: u64,
    /// Completions that were not told, and until when they may stay so. None: nothing is held.
    held: Option<(u32, Tick)>,
}

impl Moderator {
    /// `ticks` is [`Moderation::time`] by the reactor's clock.
    pub(crate) fn new(moderation: Moderation, ticks: u64) -> Self {
        Self { limit: moderation.completions.max(1), ticks, held: None }
    }

    /// So many completions were published; `wanted` is what the driver said about an interrupt. True: raise it.
    ///
    /// Once one is held, the driver's later wishes do not count: with EVENT_IDX it asks once and then waits.
    pub(crate) fn published(&mut self, completions: u32, wanted: bool, now: Tick) -> bool {
        let (held, until) = match self.held {
            Some((held, until)) => (held.saturating_add(completions), until),
            None if wanted => (completions, now.after(self.ticks)),
            None => return false,
        };
        let raise = held >= self.limit || now >= until;
        self.held = (!raise).then_some((held, until));
        raise
    }

    /// Whether what is held was held long enough. True: raise it.
    #[inline]
    pub(crate) fn is_due(&mut self, now: Tick) -> bool {
        let due = self.held.is_some_and(|(_, until)| now >= until);
        if due {
            self.held = None;
        }
        due
    }

    /// Lets go of what is held. True: raise it.
    pub(crate) fn flush(&mut self) -> bool {
        self.held.take().is_some()
    }

    /// When [`Self::is_due`] will say so.
    pub(crate) fn deadline(&self) -> Option<Tick> {
        self.held.map(|(_, until)| until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn moderator() -> (Moderator, Tick) {
        let moderation = Moderation { completions: 4, time: Duration::from_micros(1) };
        (Moderator::new(moderation, 100), reactor::Clock::system().now())
    }

    #[test]
    fn interrupt_is_raised_once_enough_has_finished() {
        let (mut moderator, now) = moderator();
        assert!(!moderator.published(2, true, now));
        assert!(!moderator.published(1, false, now));
        assert!(moderator.published(1, false, now));
        assert_eq!(moderator.deadline(), None);
    }

    #[test]
    fn interrupt_is_raised_when_its_time_is_over() {
        let (mut moderator, now) = moderator();
        assert!(!moderator.published(1, true, now));
        assert!(!moderator.is_due(now.after(99)));
        assert!(moderator.is_due(now.after(100)));
        assert!(!moderator.is_due(now.after(200)), "only once");
    }

    #[test]
    fn nothing_is_raised_that_nobody_wants() {
        let (mut moderator, now) = moderator();
        assert!(!moderator.published(100, false, now));
        assert!(!moderator.flush());
    }
}
