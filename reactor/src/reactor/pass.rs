//! One pass of a reactor: messages, woken pollers, active pollers, timed pollers.
//!
//! The clock is read once after each poll that found work, and at the end of a pass that found none; everything in
//! between goes by the last reading. An idle poller so costs its own poll and a comparison, and a busy one has its time
//! counted to the tick.

use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{Ordering, fence};
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::control::Mode;
use crate::handle::Message;
use crate::points::{POINTS, POLLER_PARK, POLLER_WAKE};
use crate::poller::{Park, Work};
use crate::stats::PollerState;

use super::stall::Held;
use super::{Place, Reactor, Tenant, panic_text};

/// Messages run before the pollers get their turn again.
const MESSAGES_PER_PASS: usize = 32;

/// How often a busy reactor looks at its watched descriptors: a system call that active pollers pay for.
const LOOK_INTERVAL_BUSY: Duration = Duration::from_micros(50);

/// How often one that finds no work does: nobody pays, but messages wait for as long as the call takes.
const LOOK_INTERVAL_IDLE: Duration = Duration::from_micros(5);

/// Deadlines of parked pollers are met this much early if another one is due: many fallback polls with the same period
/// then share one wake-up. (They are promised "at the latest".)
const DEADLINE_SLACK: Duration = Duration::from_micros(100);

/// A poller that cannot be woken is asked to park again after this time, or after its spin if that is longer.
const ASK_AGAIN: Duration = Duration::from_micros(50);

/// A poller of a loaded reactor that finds work so soon after it parked should not have parked.
const BACK_SOON: Duration = Duration::from_millis(1);

/// How patient pollers become that are always back soon.
const MOST_PATIENCE: Duration = Duration::from_millis(2);

/// The counts of polls without work are up to this old in the snapshots; also how long a reactor's load is measured for.
pub const PUBLISH_INTERVAL: Duration = Duration::from_millis(1);

/// The intervals in ticks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Intervals {
    look_busy: u64,
    look_idle: u64,
    slack: u64,
    ask_again: u64,
    back_soon: u64,
    most_patience: u64,
    publish: u64,
}

impl Intervals {
    pub(super) fn new(clock: &Clock) -> Intervals {
        Intervals {
            look_busy: clock.ticks(LOOK_INTERVAL_BUSY),
            look_idle: clock.ticks(LOOK_INTERVAL_IDLE),
            slack: clock.ticks(DEADLINE_SLACK),
            ask_again: clock.ticks(ASK_AGAIN),
            back_soon: clock.ticks(BACK_SOON),
            most_patience: clock.ticks(MOST_PATIENCE),
            publish: clock.ticks(PUBLISH_INTERVAL),
        }
    }
}

/// What a pass found, and what a running reactor would do next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// Work, or a message.
    Busy,
    /// No work, but pollers that want to be polled on, or a reactor that is not yet tired of it.
    Idle,
    /// Nothing left to poll: it would sleep now, until this tick at the latest.
    Sleepy(Option<Tick>),
    /// The order to stop: it holds nothing any more.
    Stopped,
}

impl Reactor {
    /// One pass, by hand. Unlike a running reactor it reads the clock first and looks at every source, so that a test
    /// sees the effect of what it did just before. From within a message it does nothing.
    pub fn poll_once(&mut self) -> Pass {
        if self.in_pass && !self.stopped {
            return Pass::Idle;
        }
        self.read_clock();
        self.look_interval = 0;
        self.next_publish = self.now;
        self.pass()
    }

    pub(super) fn pass(&mut self) -> Pass {
        if self.stopped {
            return Pass::Stopped;
        }
        self.in_pass = true;
        self.busy = false;
        let orders = self.shared.control.read();
        if orders != self.orders {
            self.orders = orders;
            if orders.stop() {
                self.shut_down();
                return Pass::Stopped;
            }
            self.take_mode();
        }
        let waiting = self.shared.mailbox.waiting();
        if waiting > 0 {
            self.run_messages(waiting.min(MESSAGES_PER_PASS));
        }
        self.gather();
        if self.fence.take() {
            fence(Ordering::SeqCst);
        }
        // One landing pad for the whole pass: a panicking poller is removed, the rest of the pass goes on behind it.
        while let Err(panic) = catch_unwind(AssertUnwindSafe(|| self.run_pollers())) {
            // The landing has lost the count.
            self.untimed_calls = u32::MAX / 2;
            self.evict_faulty(panic);
        }
        self.current = None;
        self.cursor = 0;
        self.end_pass();
        self.in_pass = false;
        self.verdict()
    }

    fn run_messages(&mut self, messages: usize) {
        for _ in 0..messages {
            let message = self.shared.mailbox.pop().expect("the mailbox counts what is in it");
            self.run_message(message);
        }
        self.shared.mailbox.note_taken(messages);
    }

    pub(super) fn run_message(&mut self, message: Message) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| message(self))) {
            self.shared.counters.faults.add(1);
            tracing::error!(reactor = self.core(), panic = panic_text(&*panic), "message panicked");
        }
        self.busy = true;
        self.shared.counters.messages.add(1);
        let held = if self.untimed_calls == 0 { Held::Message } else { Held::SomePoller };
        let ticks = self.read_clock();
        self.shared.counters.busy_ticks.add(ticks);
        self.check_stall(ticks, held);
    }

    /// Notes who is to be polled besides the active ones.
    fn gather(&mut self) {
        if self.shared.wakes.has_news() {
            self.shared.wakes.take_all(&mut self.woken);
        }
        if self.now.since(self.last_look) >= self.look_interval {
            self.look(Some(Duration::ZERO));
        }
        if self.now >= self.deadlines.next() {
            self.deadlines.take_due(self.now.after(self.intervals.slack), &mut self.due_deadlines);
            // They are popped from the end: the earliest first.
            self.due_deadlines.reverse();
        }
    }

    /// Asks epoll, waiting up to `timeout`; the pollers of ready descriptors count as woken.
    pub(super) fn look(&mut self, timeout: Option<Duration>) {
        if timeout != Some(Duration::ZERO) || !self.watches.is_empty() {
            self.watches.wait(timeout, &mut self.ready);
        }
        for id in self.ready.drain(..) {
            let slot = self.slots.get(id.slot as usize);
            if slot.is_some_and(|slot| slot.generation == id.generation && slot.tenant.is_some()) {
                self.woken.push(id.slot);
            } else {
                // A watch kept by somebody whose poller was never built: it would end every sleep for nobody.
                self.watches.remove_of(id);
            }
        }
        self.last_look = self.now;
    }

    /// Takes each poller off its list before it calls it, so that it can go on after a panic.
    fn run_pollers(&mut self) {
        while let Some(slot) = self.woken.pop() {
            self.answer_wake(slot);
        }
        while let Some((_, slot)) = self.due_deadlines.pop() {
            // Only its turn: if it finds nothing, it parks again at once. Nothing for one that a wake has brought back.
            self.unpark(slot, 0);
        }
        if self.stalls.is_tracing(self.now) {
            self.poll_active::<true>();
        } else {
            self.poll_active::<false>();
        }
        if self.now >= self.periods.next() {
            self.periods.take_due(self.now, &mut self.due_periods);
            self.due_periods.reverse();
        }
        while let Some((due, slot)) = self.due_periods.pop() {
            self.poll_timed(slot, Some(due));
        }
    }

    /// A waker, a descriptor or a change of mode has named the slot; its poller may have gone or be awake already.
    fn answer_wake(&mut self, slot: u32) {
        let Some(tenant) = self.slots.get(slot as usize).and_then(|slot| slot.tenant.as_ref()) else {
            return;
        };
        match tenant.place {
            Place::Active => {}
            Place::Parked => {
                let spin_ticks = tenant.spin_ticks;
                self.unpark(slot, spin_ticks);
            }
            Place::Timed { .. } => self.poll_timed(slot, None),
        }
    }

    fn unpark(&mut self, slot: u32, patience_ticks: u64) {
        let Some(tenant) = self.slots[slot as usize].tenant.as_mut() else { return };
        if tenant.place != Place::Parked {
            return;
        }
        self.current = Some(slot);
        self.untimed_calls += 1;
        self.deadlines.cancel(slot);
        tenant.flag.disarm();
        tenant.place = Place::Active;
        tenant.is_back = true;
        tenant.counters.set_state(PollerState::Active);
        tenant.park_at = self.now.after(patience_ticks);
        self.active.push(slot);
        POINTS.record_text(POLLER_WAKE, slot.into(), &tenant.counters.name);
        tenant.poller.unpark();
    }

    /// The hot loop. `EXACT`: read the clock after each poll, to find out who stalls.
    fn poll_active<const EXACT: bool>(&mut self) {
        // Who is being called is told by the cursor; a store each, and nothing waits for it.
        self.current = None;
        let mut cursor = self.cursor;
        let mut untimed_calls = self.untimed_calls;
        while let Some(&slot) = self.active.get(cursor) {
            self.cursor = cursor;
            let tenant = self.slots[slot as usize].tenant.as_mut().expect("active slots have a poller");
            tenant.runs += 1;
            let stays = match tenant.poller.poll(self.now) {
                Work::Idle => {
                    let stays = self.now < tenant.park_at || self.try_park(slot);
                    if EXACT {
                        self.untimed_calls = mem::take(&mut untimed_calls);
                        self.time_idle_poll(slot);
                    } else {
                        untimed_calls += 1;
                    }
                    stays
                }
                Work::Busy => {
                    self.untimed_calls = mem::take(&mut untimed_calls);
                    self.count_busy(slot);
                    self.prefetch(cursor + 2);
                    true
                }
                Work::Done => {
                    untimed_calls = 0;
                    self.finish(slot);
                    false
                }
            };
            // One that has gone has left its place to another.
            cursor += usize::from(stays);
        }
        self.cursor = cursor;
        self.untimed_calls = untimed_calls;
    }

    /// Tells an active poller that its turn comes after the next one's: a poll is about as long as a cache line takes to
    /// come over from the other processor. Only after busy polls, since a pass that finds nothing has nothing to hide
    /// the fetching behind.
    #[inline]
    fn prefetch(&self, place: usize) {
        let slot = self.active.get(place).and_then(|&slot| self.slots.get(slot as usize));
        if let Some(tenant) = slot.and_then(|slot| slot.tenant.as_ref()) {
            tenant.poller.prefetch();
        }
    }

    /// The poller has run out of patience: parks it, or answers true if it stays.
    #[cold]
    fn try_park(&mut self, slot: u32) -> bool {
        let now = self.now;
        let tenant = self.slots[slot as usize].tenant.as_mut().expect("it was polled just now");
        // Armed before it looks at its sources for the last time: a wake from here on is kept for the next pass, even
        // where the poller decides to stay.
        tenant.flag.arm();
        let stay_ticks = match tenant.poller.park(now) {
            Park::Wait => None,
            Park::Until(deadline) if deadline > now => {
                self.deadlines.set(slot, deadline);
                None
            }
            Park::Until(_) | Park::Ready => Some(tenant.spin_ticks),
            Park::Never => Some(tenant.spin_ticks.max(self.intervals.ask_again)),
        };
        match stay_ticks {
            Some(ticks) => {
                tenant.flag.disarm();
                tenant.park_at = now.after(ticks);
                true
            }
            None => {
                tenant.place = Place::Parked;
                // Looks in vain are a part of the silence.
                if !tenant.is_back {
                    tenant.parked_at = now;
                }
                tenant.counters.set_state(PollerState::Parked);
                POINTS.record_text(POLLER_PARK, slot.into(), &tenant.counters.name);
                tenant.publish_runs();
                self.active.swap_remove(self.cursor);
                false
            }
        }
    }

    /// `due`: the tick that its period ended at, or `None` if it was woken.
    fn poll_timed(&mut self, slot: u32, due: Option<Tick>) {
        self.current = Some(slot);
        let Some(tenant) = self.slots[slot as usize].tenant.as_mut() else { return };
        let Place::Timed { period_ticks } = tenant.place else { return };
        if let Some(due) = due {
            // Late by less than a period: keep the beat. Later: do not make up for the turns that were missed.
            let next = due.after(period_ticks);
            let next = if next > self.now { next } else { self.now.after(period_ticks) };
            self.periods.set(slot, next);
        }
        tenant.flag.arm();
        tenant.runs += 1;
        match tenant.poller.poll(self.now) {
            Work::Idle => {
                tenant.publish_runs();
                self.time_idle_poll(slot);
            }
            Work::Busy => self.count_busy(slot),
            Work::Done => self.finish(slot),
        }
    }

    /// The poll that ended just now found work.
    #[inline(always)]
    fn count_busy(&mut self, slot: u32) {
        let held = if self.untimed_calls == 0 { Held::Poller(slot) } else { Held::SomePoller };
        let ticks = self.read_clock();
        self.busy = true;
        let tenant = self.slots[slot as usize].tenant.as_mut().expect("it was polled just now");
        if tenant.is_back {
            Self::set_patience(tenant, self.now, self.is_loaded, &self.intervals);
        }
        tenant.park_at = self.now.after(tenant.patience_ticks);
        tenant.publish_runs();
        tenant.counters.busy_count.add(1);
        tenant.counters.busy_ticks.add(ticks);
        tenant.share.add_busy(ticks);
        self.shared.counters.busy_ticks.add(ticks);
        self.check_stall(ticks, held);
    }

    /// A poller has found the first work since it parked. Among many busy ones a queue's turn with its driver may come later
    /// than its spin lasts: it would park and be woken in every round, which costs its driver a notification and us more than
    /// polling it on. So its patience doubles while that is so. Where the reactor has time to rest, parking saves power, and
    /// the spin is as it was asked for (`end_interval`).
    #[cold]
    fn set_patience(tenant: &mut Tenant, now: Tick, is_loaded: bool, intervals: &Intervals) {
        let longer = tenant.patience_ticks.saturating_mul(2).min(intervals.most_patience);
        let is_early = is_loaded && now.since(tenant.parked_at) < intervals.back_soon;
        tenant.patience_ticks = if is_early { longer.max(tenant.spin_ticks) } else { tenant.spin_ticks };
        tenant.is_back = false;
    }

    /// The poll that ended just now found none, and its time is of interest all the same.
    fn time_idle_poll(&mut self, slot: u32) {
        let held = if self.untimed_calls == 0 { Held::Poller(slot) } else { Held::SomePoller };
        let ticks = self.read_clock();
        self.check_stall(ticks, held);
    }

    fn finish(&mut self, slot: u32) {
        let ticks = self.read_clock();
        self.shared.counters.busy_ticks.add(ticks);
        self.busy = true;
        if let Some(tenant) = self.evict(slot) {
            self.let_go(&tenant.counters, |reactor| tenant.poller.leave(reactor));
        }
    }

    /// Reads the clock; the ticks since the last reading.
    pub(super) fn read_clock(&mut self) -> u64 {
        let now = self.clock.now();
        let ticks = now.since(self.now);
        // Never backwards, whatever the counter does when the thread moves to another core.
        self.now = self.now.max(now);
        self.untimed_calls = 0;
        ticks
    }

    fn end_pass(&mut self) {
        if self.busy {
            self.quiet_at = self.now.after(self.spin_ticks);
            self.look_interval = self.intervals.look_busy;
        } else {
            // Every active poller was polled since the last reading: one call can only be the one poller's.
            let held = match (self.untimed_calls, &self.active[..]) {
                (1, [slot]) => Held::Poller(*slot),
                _ => Held::SomePoller,
            };
            let ticks = self.read_clock();
            self.check_stall(ticks, held);
            self.look_interval = self.intervals.look_idle;
        }
        if self.now >= self.next_publish {
            self.next_publish = self.now.after(self.intervals.publish);
            self.end_interval();
        }
    }

    /// What the snapshots do not need sooner, and the load of the interval.
    #[cold]
    fn end_interval(&mut self) {
        self.stalls.limit_ticks = self.shared.stall_limit_ticks.load(Ordering::Relaxed);
        let (since, busy_before) = self.load_since;
        let elapsed = self.now.since(since);
        if elapsed >= self.intervals.publish {
            let busy = self.shared.counters.busy_ticks.get();
            self.is_loaded = 2 * (busy - busy_before) >= elapsed;
            self.load_since = (self.now, busy);
        }
        for slot in &self.active {
            let Some(tenant) = self.slots[*slot as usize].tenant.as_mut() else { continue };
            tenant.publish_runs();
            if !self.is_loaded && tenant.patience_ticks > tenant.spin_ticks {
                tenant.patience_ticks = tenant.spin_ticks;
                tenant.park_at = tenant.park_at.min(self.now.after(tenant.spin_ticks));
            }
        }
    }

    fn verdict(&self) -> Pass {
        if self.busy {
            Pass::Busy
        } else if self.active.is_empty() && self.now >= self.quiet_at && self.orders.mode() != Mode::PollOnly
        {
            let next = self.deadlines.next().min(self.periods.next());
            Pass::Sleepy((next != Tick::MAX).then_some(next))
        } else {
            Pass::Idle
        }
    }
}
