//! The stall detector: finds the poll that held the core too long, and names it in the log.
//!
//! Polls without work are not timed one by one. Where several of them lie between the two readings that show a stall,
//! nobody can tell which one it was: the stall is counted without a name, and for a while the reactor reads the clock
//! after each poll, so that the next one is named.

use std::time::Duration;

use crate::clock::{Clock, Tick};

use super::Reactor;

/// How long each poll is timed after a stall that could not be named.
const TRACE_TIME: Duration = Duration::from_secs(1);

/// Stalls come in bursts (a slow device, a preempted thread): of each kind one line per this time goes to the log.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Who may have held the core.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Held {
    /// This slot's poller, and nobody else.
    Poller(u32),
    /// One of several.
    SomePoller,
    Message,
}

/// The detector's memory.
#[derive(Debug)]
pub(super) struct StallWatch {
    pub(super) limit_ticks: u64,
    trace_ticks: u64,
    trace_until: Tick,
    report_ticks: u64,
    next_named_report: Tick,
    next_unnamed_report: Tick,
}

impl StallWatch {
    pub(super) fn new(clock: &Clock, limit: Duration) -> StallWatch {
        StallWatch {
            limit_ticks: clock.ticks(limit),
            trace_ticks: clock.ticks(TRACE_TIME),
            trace_until: Tick::ZERO,
            report_ticks: clock.ticks(REPORT_INTERVAL),
            next_named_report: Tick::ZERO,
            next_unnamed_report: Tick::ZERO,
        }
    }

    /// Is each poll to be timed?
    #[inline]
    pub(super) fn is_tracing(&self, now: Tick) -> bool {
        now < self.trace_until
    }
}

impl Reactor {
    /// `ticks`: the time between the last two readings of the clock.
    #[inline]
    pub(super) fn check_stall(&mut self, ticks: u64, held: Held) {
        if ticks > self.stalls.limit_ticks {
            self.report_stall(ticks, held);
        }
    }

    #[cold]
    fn report_stall(&mut self, ticks: u64, held: Held) {
        self.shared.counters.stalls.add(1);
        let (now, reactor, held_for) = (self.now, self.core(), self.clock.duration(ticks));
        let next_report = match held {
            Held::SomePoller => &mut self.stalls.next_unnamed_report,
            _ => &mut self.stalls.next_named_report,
        };
        let report = now >= *next_report;
        if report {
            *next_report = now.after(self.stalls.report_ticks);
        }
        match held {
            Held::Poller(slot) => {
                let Some(tenant) = self.slots[slot as usize].tenant.as_ref() else { return };
                tenant.counters.stall_count.add(1);
                if report {
                    let (poller, group) = (&*tenant.counters.name, tenant.counters.group.name());
                    tracing::warn!(reactor, poller, group, ?held_for, "poller held the core too long");
                }
            }
            Held::SomePoller => {
                self.stalls.trace_until = now.after(self.stalls.trace_ticks);
                if report {
                    let pollers = self.active.len();
                    tracing::warn!(reactor, pollers, ?held_for, "one of the pollers held the core too long");
                }
            }
            Held::Message => {
                if report {
                    tracing::warn!(reactor, ?held_for, "message held the core too long");
                }
            }
        }
    }
}
