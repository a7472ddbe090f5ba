//! The endless loop of a reactor thread, and its sleep.
//!
//! Sleep is one wait for everything: the bell that senders ring, watched descriptors, and the earliest deadline as its
//! timeout. See `sleep` for why no news is missed on the way into it.

use std::num::NonZeroU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use trace::ARGS;

use crate::clock::Tick;
use crate::handle::mark_reactor_thread;
use crate::points::{POINTS, REACTOR_SLEEP, REACTOR_WAKE};

use super::{Pass, Reactor};

/// By how much the kernel may be late with a deadline, to wake for several at once.
const TIMER_SLACK_NANOS: Option<NonZeroU64> = NonZeroU64::new(1_000);

impl Reactor {
    /// Runs until a handle says stop. The calling thread is a reactor thread from then on.
    pub fn run(&mut self) {
        mark_reactor_thread();
        // Deadlines are of microseconds; the kernel lets them slip by 50 otherwise. Where it cannot be had, they slip.
        let _ = rustix::thread::set_current_timer_slack(TIMER_SLACK_NANOS);
        let tid = rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs();
        self.shared.counters.tid.store(tid, Ordering::Relaxed);
        loop {
            match self.pass() {
                Pass::Busy | Pass::Idle => {}
                Pass::Sleepy(until) => {
                    if self.announce_sleep() {
                        self.sleep(until);
                    }
                }
                Pass::Stopped => break,
            }
        }
    }

    /// Says that we sleep and looks at every source once more; false if there is news after all.
    pub(super) fn announce_sleep(&mut self) -> bool {
        self.shared.gate.announce();
        let news = self.shared.mailbox.waiting() > 0
            || self.shared.wakes.has_news()
            || self.shared.control.read() != self.orders;
        if news {
            self.shared.gate.withdraw();
        }
        !news
    }

    /// Waits for the bell, a watched descriptor, or the tick `until`.
    pub(super) fn sleep(&mut self, until: Option<Tick>) {
        self.shared.counters.sleeps.add(1);
        let core = u64::from(self.core());
        POINTS.record(REACTOR_SLEEP, core, [0; ARGS]);
        let timeout = until.map(|until| {
            // Rounded up, or the last nanosecond would be waited for in many short waits.
            self.clock.duration(until.since(self.clock.now())) + Duration::from_nanos(1)
        });
        self.look(timeout);
        self.shared.gate.withdraw();
        let slept_ticks = self.read_clock();
        self.last_look = self.now;
        self.shared.counters.slept_ticks.add(slept_ticks);
        POINTS.record(REACTOR_WAKE, core, [slept_ticks, 0, 0, 0]);
        if until.is_none_or(|until| self.now < until) {
            self.shared.counters.wakeups.add(1);
        }
    }
}
