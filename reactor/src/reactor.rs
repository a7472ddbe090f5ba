//! One reactor: the pollers of one core and the loop that runs them.
//!
//! Made on the thread that runs it and never leaves it; other threads act on it by messages ([`crate::Handle`]), in
//! which it appears as `&mut Reactor`. Tests drive several of them on one thread with [`Reactor::poll_once`] and a fake
//! clock. This file holds what happens now and then (adding, removing, stopping); a pass is in `reactor/pass.rs`, the
//! endless loop and its sleep in `reactor/run.rs`, the stall detector in `reactor/stall.rs`.

mod pass;
mod run;
mod stall;
#[cfg(test)]
mod tests;

use std::any::Any;
use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{EventfdFlags, eventfd};

use crate::clock::{Clock, Tick};
use crate::control::{Mode, Orders};
use crate::group::Share;
use crate::handle::{Handle, MAILBOX_CAPACITY, Shared};
use crate::poller::{FaultHook, Poller, PollerCx, PollerId, PollerSpec, Spin};
use crate::stats::PollerCounters;
use crate::timers::Timers;
use crate::wake_flag::WakeFlag;
use crate::wake_set::SLOTS_MAX;
use crate::watch::{EVENTS_PER_WAIT, WatchSet};

use stall::StallWatch;

pub use pass::{PUBLISH_INTERVAL, Pass};

/// Pollers one reactor can hold. Each takes memory and most take descriptors, so a process runs out of those first.
pub const POLLERS_MAX: usize = SLOTS_MAX;

/// The stall limit where nobody sets another: no poll of ours comes near it, and a preempted thread rarely does.
pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_millis(10);

/// What a reactor is made from.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// The core it stands for. [`Reactor::new`] pins nothing; [`crate::Reactors::start`] does.
    pub core: u32,
    /// Its first mode.
    pub mode: Mode,
    /// What it reads the time from.
    pub clock: Clock,
    /// How long one poll may take before it counts as a stall.
    pub stall_limit: Duration,
}

impl ReactorConfig {
    /// Adaptive, with the default limits.
    pub fn new(core: u32, clock: Clock) -> ReactorConfig {
        ReactorConfig { core, mode: Mode::default(), clock, stall_limit: DEFAULT_STALL_LIMIT }
    }
}

/// Where a poller stands. The lists of the reactor follow it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// In `active`.
    Active,
    /// In no list, or in `deadlines` only.
    Parked,
    /// In `periods`.
    Timed { period_ticks: u64 },
}

/// A poller with what the reactor notes about it.
struct Tenant {
    poller: Box<dyn Poller>,
    /// While active: when its patience ends unless it finds work.
    park_at: Tick,
    /// Its spin under the present mode.
    spin_ticks: u64,
    /// How long it spins after work: its spin, or longer (see `Reactor::set_patience`).
    patience_ticks: u64,
    /// When it parked last after it had found work.
    parked_at: Tick,
    /// It has found no work since it was parked.
    is_back: bool,
    /// Polls not yet in `counters`.
    runs: u64,
    place: Place,
    flag: Arc<WakeFlag>,
    counters: Arc<PollerCounters>,
    share: Arc<Share>,
    /// Order of coming.
    serial: u64,
    spin: Spin,
    on_fault: Option<FaultHook>,
}

impl Tenant {
    fn publish_runs(&mut self) {
        self.counters.run_count.add(std::mem::take(&mut self.runs));
    }
}

/// A place for a poller. Slots are used again, the generation tells the uses apart.
struct Slot {
    generation: u32,
    tenant: Option<Tenant>,
}

/// The pollers of one core and their loop. Not `Send`: pollers need not be.
pub struct Reactor {
    shared: Arc<Shared>,
    clock: Clock,
    watches: Rc<WatchSet>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    next_serial: u64,

    /// Polled in every pass.
    active: Vec<u32>,
    /// The present pass's way through `active`.
    cursor: usize,
    /// A poller wants a fence before it is polled again.
    fence: Rc<Cell<bool>>,
    /// Parked pollers with a deadline.
    deadlines: Timers,
    /// Timed pollers.
    periods: Timers,

    // What a pass has gathered and not yet handled; empty between passes, kept for their memory.
    woken: Vec<u32>,
    due_deadlines: Vec<(Tick, u32)>,
    due_periods: Vec<(Tick, u32)>,
    ready: Vec<PollerId>,
    /// The slot whose poller is being called, for the case that it panics; `None`: the one under the cursor.
    current: Option<u32>,

    /// The last reading of the clock.
    now: Tick,
    /// The control word as last obeyed.
    orders: Orders,
    /// How long the reactor goes without work before it sleeps.
    spin_ticks: u64,
    /// When that time is over.
    quiet_at: Tick,
    last_look: Tick,
    /// How long it looks no more after the last look at the descriptors.
    look_interval: u64,
    next_publish: Tick,
    intervals: pass::Intervals,
    stalls: StallWatch,
    /// Calls of pollers since the last reading of the clock, all of which found no work. 0: the next call's time is its
    /// own.
    untimed_calls: u32,
    /// It was busy for half of the last interval, or longer: what counts as busy time, idle polls on the way to a busy one included.
    is_loaded: bool,
    /// When the present interval began, and the busy time until then.
    load_since: (Tick, u64),
    /// Did the present pass find work?
    busy: bool,
    in_pass: bool,
    stopped: bool,
}

impl Reactor {
    /// A reactor without pollers.
    ///
    /// # Errors
    /// What making an epoll set and an eventfd reports: a lack of descriptors or memory.
    pub fn new(config: ReactorConfig) -> io::Result<Reactor> {
        let ReactorConfig { core, mode, clock, stall_limit } = config;
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let watches = Rc::new(WatchSet::new(bell.as_fd())?);
        let shared = Arc::new(Shared::new(core, clock.clone(), mode, stall_limit, bell));
        let now = clock.now();
        let mut reactor = Reactor {
            orders: shared.control.read(),
            intervals: pass::Intervals::new(&clock),
            stalls: StallWatch::new(&clock, stall_limit),
            shared,
            clock,
            watches,
            slots: Vec::new(),
            free: Vec::new(),
            next_serial: 0,
            active: Vec::new(),
            cursor: 0,
            fence: Rc::default(),
            deadlines: Timers::new(),
            periods: Timers::new(),
            woken: Vec::new(),
            due_deadlines: Vec::new(),
            due_periods: Vec::new(),
            ready: Vec::with_capacity(EVENTS_PER_WAIT),
            current: None,
            now,
            spin_ticks: 0,
            quiet_at: now,
            last_look: now,
            look_interval: 0,
            next_publish: now,
            untimed_calls: 0,
            is_loaded: false,
            load_since: (now, 0),
            busy: false,
            in_pass: false,
            stopped: false,
        };
        reactor.take_mode();
        Ok(reactor)
    }

    /// The way to it from other threads.
    pub fn handle(&self) -> Handle {
        Handle::new(&self.shared)
    }

    /// Its core.
    pub fn core(&self) -> u32 {
        self.shared.core()
    }

    /// Its clock.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Its last reading of the clock.
    pub fn now(&self) -> Tick {
        self.now
    }

    /// Takes a poller in. `build` runs at once, on this thread, with the poller's ties to the reactor. An active poller
    /// is polled from this pass on, a timed one first after its period.
    ///
    /// # Panics
    /// Where the reactor holds [`POLLERS_MAX`] pollers. A panic of `build` leaves the reactor as it was.
    pub fn add(&mut self, spec: PollerSpec, build: impl FnOnce(&PollerCx) -> Box<dyn Poller>) -> PollerId {
        let reused = self.free.last().copied();
        let slot = reused.unwrap_or(self.slots.len() as u32);
        assert!((slot as usize) < POLLERS_MAX, "reactor {} cannot hold another poller", self.core());
        let generation = reused.map_or(0, |slot| self.slots[slot as usize].generation);
        let id = PollerId { slot, generation };
        let flag = Arc::new(WakeFlag::new());
        let poller = build(&PollerCx::new(id, &self.shared, &self.watches, &flag, &self.fence));
        // Nothing was noted until here, nothing fails from here.
        if reused.is_some() {
            self.free.pop();
        } else {
            self.slots.push(Slot { generation, tenant: None });
            self.make_room();
        }
        self.settle_in(id, spec, poller, flag);
        id
    }

    fn settle_in(&mut self, id: PollerId, spec: PollerSpec, poller: Box<dyn Poller>, flag: Arc<WakeFlag>) {
        let since = self.clock.now();
        let serial = self.next_serial;
        self.next_serial += 1;
        let period_ticks = spec.period.map(|period| self.clock.ticks(period)).filter(|ticks| *ticks > 0);
        let counters = Arc::new(PollerCounters::new(id, &spec.name, &spec.group, period_ticks, since));
        let share = self.shared.counters.enlist(serial, Arc::clone(&counters), &self.clock);
        let place = match period_ticks {
            Some(period_ticks) => {
                self.periods.set(id.slot, since.after(period_ticks));
                // A timed poller waits between its polls, so a wake always means something to it.
                flag.arm();
                Place::Timed { period_ticks }
            }
            None => {
                self.active.push(id.slot);
                Place::Active
            }
        };
        let spin_ticks = self.spin_ticks_of(spec.spin);
        let park_at = since.after(spin_ticks);
        let tenant = Tenant {
            poller,
            park_at,
            spin_ticks,
            patience_ticks: spin_ticks,
            parked_at: since,
            is_back: false,
            runs: 0,
            place,
            flag,
            counters,
            share,
            serial,
            spin: spec.spin,
            on_fault: spec.on_fault,
        };
        self.slots[id.slot as usize].tenant = Some(tenant);
    }

    /// Sees that nothing allocates later, while polling, for lack of room for one more poller.
    fn make_room(&mut self) {
        let slots = self.slots.len();
        for list in [&mut self.active, &mut self.free] {
            list.reserve(slots - list.len());
        }
        // A slot may be named by its waker and by a change of mode in one pass, besides a batch of descriptors.
        self.woken.reserve(2 * slots + EVENTS_PER_WAIT);
        self.due_deadlines.reserve(slots);
        self.due_periods.reserve(slots);
        self.deadlines.make_room(slots);
        self.periods.make_room(slots);
    }

    /// Removes and drops a poller; false if it is not there any more.
    pub fn remove(&mut self, id: PollerId) -> bool {
        if self.slots.get(id.slot as usize).is_none_or(|slot| slot.generation != id.generation) {
            return false;
        }
        let tenant = self.evict(id.slot);
        let found = tenant.is_some();
        tenant.into_iter().for_each(|tenant| self.discard(tenant));
        found
    }

    /// Takes a poller out of every list; its slot is free afterwards.
    fn evict(&mut self, slot: u32) -> Option<Tenant> {
        let place = &mut self.slots[slot as usize];
        let mut tenant = place.tenant.take()?;
        let id = PollerId { slot, generation: place.generation };
        place.generation = place.generation.wrapping_add(1);
        tenant.flag.disarm();
        match tenant.place {
            Place::Active => self.leave_active(slot),
            Place::Parked => self.deadlines.cancel(slot),
            Place::Timed { .. } => self.periods.cancel(slot),
        }
        self.watches.remove_of(id);
        tenant.publish_runs();
        self.shared.counters.strike(tenant.serial);
        self.free.push(slot);
        Some(tenant)
    }

    /// The order of `active` means nothing, so the last one takes the gap.
    fn leave_active(&mut self, slot: u32) {
        // The one that is being polled is what leaves, nearly always.
        let here = self.active.get(self.cursor) == Some(&slot);
        let position = if here { Some(self.cursor) } else { self.active.iter().position(|it| *it == slot) };
        if let Some(position) = position {
            self.active.swap_remove(position);
        }
    }

    /// Drops a poller that has been taken out.
    fn discard(&mut self, tenant: Tenant) {
        let counters = Arc::clone(&tenant.counters);
        self.let_go(&counters, |_| drop(tenant));
    }

    /// The last that is called of a poller that has been taken out: foreign code too.
    fn let_go(&mut self, counters: &PollerCounters, last: impl FnOnce(&mut Reactor)) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| last(self))) {
            self.shared.counters.faults.add(1);
            let (reactor, poller) = (self.core(), &*counters.name);
            tracing::error!(reactor, poller, panic = panic_text(&*panic), "poller panicked while it left");
        }
    }

    /// The poller that was being called has panicked: it goes, the others stay.
    fn evict_faulty(&mut self, panic: Box<dyn Any + Send>) {
        let called = self.current.take().or_else(|| self.active.get(self.cursor).copied());
        let Some(mut tenant) = called.and_then(|slot| self.evict(slot)) else {
            // Not a poller's panic but our own: there is no telling what state we are in.
            std::panic::resume_unwind(panic);
        };
        self.shared.counters.faults.add(1);
        let text = panic_text(&*panic);
        let counters = Arc::clone(&tenant.counters);
        let (reactor, poller, group) = (self.core(), &*counters.name, counters.group.name());
        tracing::error!(reactor, poller, group, panic = text, "poller panicked and was removed");
        let hook = tenant.on_fault.take();
        self.discard(tenant);
        let Some(hook) = hook else { return };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| hook(text))) {
            tracing::error!(reactor, poller, panic = panic_text(&*panic), "fault hook panicked");
        }
    }

    /// Makes the mode of the control word ours.
    fn take_mode(&mut self) {
        let mode = self.orders.mode();
        self.spin_ticks = match mode {
            Mode::Adaptive { spin } => self.clock.ticks(spin),
            Mode::PollOnly => u64::MAX,
            Mode::Interrupt => 0,
        };
        for slot in 0..self.slots.len() {
            let Some(tenant) = self.slots[slot].tenant.as_ref() else { continue };
            let spin_ticks = self.spin_ticks_of(tenant.spin);
            let tenant = self.slots[slot].tenant.as_mut().expect("it was there a line ago");
            tenant.spin_ticks = spin_ticks;
            tenant.patience_ticks = spin_ticks;
            tenant.park_at = self.now.after(spin_ticks);
            if mode == Mode::PollOnly && tenant.place == Place::Parked && tenant.spin != Spin::None {
                self.woken.push(slot as u32);
            }
        }
        self.quiet_at = self.now.after(self.spin_ticks);
    }

    fn spin_ticks_of(&self, spin: Spin) -> u64 {
        match (self.orders.mode(), spin) {
            (_, Spin::None) => 0,
            (Mode::Adaptive { .. }, Spin::For(span)) => self.clock.ticks(span),
            _ => self.spin_ticks,
        }
    }

    /// Runs the messages that wait, then drops everything; messages sent from now on are refused.
    fn shut_down(&mut self) {
        // Bounded: messages may send messages.
        for _ in 0..MAILBOX_CAPACITY {
            let Some(message) = self.shared.mailbox.pop() else { break };
            self.run_message(message);
        }
        self.drop_all();
    }

    /// Last come, first gone: later pollers were built on earlier ones.
    fn drop_all(&mut self) {
        self.stopped = true;
        self.shared.mailbox.close();
        let mut slots: Vec<(u64, u32)> = (0u32..)
            .zip(&self.slots)
            .filter_map(|(slot, place)| place.tenant.as_ref().map(|tenant| (tenant.serial, slot)))
            .collect();
        slots.sort_unstable();
        for (_, slot) in slots.into_iter().rev() {
            let tenant = self.evict(slot);
            tenant.into_iter().for_each(|tenant| self.discard(tenant));
        }
    }
}

impl Drop for Reactor {
    /// A reactor that was not stopped runs no more messages, but nobody shall wait for their answers.
    fn drop(&mut self) {
        self.drop_all();
    }
}

impl fmt::Debug for Reactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor").field("core", &self.core()).field("now", &self.now).finish_non_exhaustive()
    }
}

/// What `panic!` was given, where it was text.
fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str)).unwrap_or("(no text)")
}
