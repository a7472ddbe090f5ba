//! The loop of one core.
//!
//! A pass is: messages, pollers that were woken, active pollers, timers. Pollers that have parked are in no list and
//! cost nothing. The clock is read after a poll that did something, and that reading goes on as the time of what
//! follows; a pass that did nothing reads it once.

use std::{
    any::Any,
    cmp::Reverse,
    collections::BinaryHeap,
    io,
    os::fd::OwnedFd,
    panic::{AssertUnwindSafe, catch_unwind},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    time::Duration,
};

use rustix::{
    event::{EventfdFlags, Timespec, epoll, eventfd},
    io::Errno,
};

use crate::{
    Clock, Handle, Mode, Park, Poller, PollerCx, PollerId, PollerSpec, PollerState, Spin, Tick, Waker, Work,
    poller::{FaultHook, WakeFlag},
    shared::{Message, POLL_ONLY, Shared, add},
    stats::PollerCell,
};

/// Messages taken in one pass.
const MESSAGES_PER_PASS: usize = 32;
/// Descriptors that one look at epoll brings.
const EVENTS_PER_LOOK: usize = 64;
/// How often epoll is looked at while there is work: the one system call of a reactor that polls.
const LOOK_INTERVAL_BUSY: Duration = Duration::from_micros(50);
/// The same while it spins without work.
const LOOK_INTERVAL_IDLE: Duration = Duration::from_micros(5);
/// What the bell's events carry; no poller has this generation.
const BELL: PollerId = PollerId { slot: u32::MAX, generation: u32::MAX };
/// Stalls that are logged one by one.
const LOGGED_STALLS: u64 = 16;

/// What a pass did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pass {
    /// Something was done.
    Busy,
    /// Nothing was done, and there is something to poll.
    Idle,
    /// Nothing was done and nothing is left to poll: a running reactor sleeps now, until then at the latest.
    Sleepy(Option<Tick>),
    /// It was told to stop.
    Stopped,
}

/// What a reactor is made of.
#[derive(Clone, Debug)]
pub struct ReactorConfig {
    /// Its core, a name only: pinning is done by [`crate::Reactors`].
    pub core: u32,
    /// When it polls and when it sleeps.
    pub mode: Mode,
    /// Its clock.
    pub clock: Clock,
    /// How long a poll may take before it is called a stall.
    pub stall_limit: Duration,
}

impl ReactorConfig {
    /// Adaptive, with usual times.
    #[must_use]
    pub fn new(core: u32, clock: Clock) -> ReactorConfig {
        ReactorConfig { core, mode: crate::DEFAULT_MODE, clock, stall_limit: crate::DEFAULT_STALL_LIMIT }
    }
}

struct Entry {
    poller: Box<dyn Poller>,
    cell: Arc<PollerCell>,
    flag: Arc<WakeFlag>,
    /// Spin time in ticks; none: the mode's.
    spin: Option<u64>,
    state: PollerState,
    /// Since when it has been idle.
    idle_since: Option<Tick>,
    /// It was only woken to look: it parks again at once if there is nothing.
    peeking: bool,
    /// Of its timer; an older one is void.
    timer: u64,
    on_fault: Option<FaultHook>,
}

/// What a poll came to.
enum Polled {
    Idle,
    /// It did something for so long.
    Busy(u64),
    /// It is removed, after so long.
    Gone(u64),
}

#[derive(Default)]
struct Slot {
    generation: u32,
    entry: Option<Entry>,
}

/// One core's loop. Not `Send`: reached by messages, and by tests that drive it by hand.
pub struct Reactor {
    shared: Arc<Shared>,
    epoll: Rc<OwnedFd>,
    slots: Vec<Slot>,
    free: Vec<u32>,
    active: Vec<u32>,
    /// Deadline, timer number, poller.
    timers: BinaryHeap<Reverse<(Tick, u64, u32)>>,
    next_timer: u64,
    now: Tick,
    looked_at: Tick,
    spin_ticks: u64,
    was_busy: bool,
    look_busy: u64,
    look_idle: u64,
}

impl Reactor {
    /// A reactor without pollers, driven by its maker.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn new(config: ReactorConfig) -> io::Result<Reactor> {
        let bell = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        // Edge-triggered: its count is never read, only its rising matters.
        epoll::add(&epoll, &bell, BELL.to_data(), epoll::EventFlags::IN | epoll::EventFlags::ET)?;
        let ReactorConfig { core, mode, clock, stall_limit } = config;
        let (look_busy, look_idle) = (clock.ticks(LOOK_INTERVAL_BUSY), clock.ticks(LOOK_INTERVAL_IDLE));
        let now = clock.now();
        let shared = Arc::new(Shared::new(core, clock, bell));
        let reactor = Reactor {
            shared,
            epoll: Rc::new(epoll),
            slots: Vec::new(),
            free: Vec::new(),
            active: Vec::new(),
            timers: BinaryHeap::new(),
            next_timer: 0,
            now,
            looked_at: now,
            spin_ticks: 0,
            was_busy: false,
            look_busy,
            look_idle,
        };
        let handle = reactor.handle();
        handle.set_mode(mode);
        handle.set_stall_limit(stall_limit);
        Ok(reactor)
    }

    /// For other threads.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.shared))
    }

    /// Its core.
    #[must_use]
    pub fn core(&self) -> u32 {
        self.shared.core
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.shared.clock
    }

    /// The time of this pass.
    #[must_use]
    pub fn now(&self) -> Tick {
        self.now
    }

    /// Adds a poller, made by `build`, which learns where it will run.
    pub fn add(&mut self, spec: PollerSpec, build: impl FnOnce(&PollerCx) -> Box<dyn Poller>) -> PollerId {
        let PollerSpec { name, group, period, spin, on_fault } = spec;
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(Slot::default());
            u32::try_from(self.slots.len() - 1).expect("fewer pollers than 2^32")
        });
        let id = PollerId { slot: index, generation: self.slots[index as usize].generation };
        let flag = Arc::new(WakeFlag { id, listed: AtomicBool::new(false) });
        let waker = Waker { flag: Arc::clone(&flag), shared: Arc::clone(&self.shared) };
        let cx = PollerCx { epoll: Rc::clone(&self.epoll), waker, clock: self.clock().clone() };
        let poller = build(&cx);
        let clock = self.clock();
        let period_ticks = period.map(|period| clock.ticks(period).max(1));
        let spin = match spin {
            Spin::Default => None,
            Spin::None => Some(0),
            Spin::For(time) => Some(clock.ticks(time)),
        };
        let state = if period.is_some() { PollerState::Timed } else { PollerState::Active };
        let cell = Arc::new(PollerCell {
            id,
            number: group.next_poller(),
            name: name.into(),
            group: group.clone(),
            period_ticks,
            born: self.now,
            state: AtomicU8::new(state as u8),
            run_count: AtomicU64::new(0),
            busy_count: AtomicU64::new(0),
            busy_ticks: AtomicU64::new(0),
        });
        self.enlist(&cell);
        let entry =
            Entry { poller, cell, flag, spin, state, idle_since: None, peeking: false, timer: 0, on_fault };
        self.slots[index as usize].entry = Some(entry);
        match period_ticks {
            Some(period) => self.set_timer(index, self.now.after(period)),
            None => self.active.push(index),
        }
        id
    }

    fn enlist(&self, cell: &Arc<PollerCell>) {
        cell.group.enlist(cell);
        let mut residents = self.shared.residents();
        match residents.groups.iter_mut().find(|(group, _, _)| *group == cell.group) {
            Some((_, _, count)) => *count += 1,
            None => residents.groups.push((cell.group.clone(), self.now, 1)),
        }
        residents.pollers.push(Arc::clone(cell));
    }

    fn delist(&self, cell: &Arc<PollerCell>) {
        cell.group.retire(cell);
        let mut residents = self.shared.residents();
        residents.pollers.retain(|other| !Arc::ptr_eq(other, cell));
        if let Some((_, _, count)) = residents.groups.iter_mut().find(|(group, _, _)| *group == cell.group) {
            *count -= 1;
        }
        residents.groups.retain(|(_, _, count)| *count > 0);
    }

    /// Removes and drops a poller. False if it is not there any more.
    pub fn remove(&mut self, id: PollerId) -> bool {
        let there = self.entry(id).is_some();
        if there {
            self.active.retain(|&index| index != id.slot);
            self.evict(id.slot);
        }
        there
    }

    fn entry(&mut self, id: PollerId) -> Option<&mut Entry> {
        let slot = self.slots.get_mut(id.slot as usize)?;
        if slot.generation == id.generation { slot.entry.as_mut() } else { None }
    }

    /// Empties a slot that is in no list. What the poller's own drop does wrong is contained.
    fn evict(&mut self, index: u32) -> Option<FaultHook> {
        let slot = &mut self.slots[index as usize];
        let mut entry = slot.entry.take()?;
        slot.generation = slot.generation.wrapping_add(1);
        self.free.push(index);
        self.delist(&entry.cell);
        let hook = entry.on_fault.take();
        if catch_unwind(AssertUnwindSafe(|| drop(entry))).is_err() {
            tracing::error!("a poller panicked while it was dropped");
        }
        hook
    }

    fn set_timer(&mut self, index: u32, at: Tick) {
        self.next_timer += 1;
        if let Some(entry) = &mut self.slots[index as usize].entry {
            entry.timer = self.next_timer;
            self.timers.push(Reverse((at, self.next_timer, index)));
        }
    }

    /// One pass. For tests, and for [`Self::run`].
    pub fn poll_once(&mut self) -> Pass {
        if self.shared.stop.load(Ordering::Acquire) {
            return Pass::Stopped;
        }
        let started = self.now;
        let mut busy = 0;
        if self.shared.messages.is_filled() {
            busy += self.take_messages();
        }
        if self.shared.woken.is_filled() || self.shared.overflow.load(Ordering::Acquire) {
            self.take_woken();
        }
        self.look_if_due();
        busy += self.poll_active();
        busy += self.fire_timers();
        if busy == 0 {
            self.now = self.shared.clock.now();
        }
        self.was_busy = busy > 0;
        let counters = &self.shared.counters;
        add(&counters.busy_ticks, busy);
        add(&counters.idle_ticks, self.now.since(started).saturating_sub(busy));
        if busy > 0 {
            Pass::Busy
        } else if self.active.is_empty() && self.spin_ticks != POLL_ONLY {
            Pass::Sleepy(self.timers.peek().map(|Reverse((at, _, _))| *at))
        } else {
            Pass::Idle
        }
    }

    /// Reads the clock after something was done: how long it took.
    fn clock_in(&mut self) -> u64 {
        let before = std::mem::replace(&mut self.now, self.shared.clock.now());
        // Something was done, if in less than a tick.
        self.now.since(before).max(1)
    }

    fn take_messages(&mut self) -> u64 {
        for _ in 0..MESSAGES_PER_PASS {
            let Some(message) = self.shared.messages.pop() else { break };
            self.run_message(message);
        }
        self.clock_in()
    }

    fn run_message(&mut self, message: Message) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| message(self))) {
            add(&self.shared.counters.faults, 1);
            tracing::error!(core = self.core(), panic = panic_text(&*panic), "a message panicked");
        }
    }

    fn take_woken(&mut self) {
        if self.shared.overflow.swap(false, Ordering::AcqRel) {
            let spin = self.shared.spin_ticks.load(Ordering::Relaxed);
            let all = std::mem::replace(&mut self.spin_ticks, spin) != spin && spin == POLL_ONLY;
            for index in 0..self.slots.len() {
                let Some(entry) = &self.slots[index].entry else { continue };
                if all || entry.flag.listed.load(Ordering::Acquire) {
                    self.wake(entry.flag.id, false);
                }
            }
        }
        // Those that are woken from here on are for the next pass.
        for _ in 0..self.slots.len() + 1 {
            let Some(id) = self.shared.woken.pop() else { break };
            self.wake(id, false);
        }
    }

    /// Brings a poller back into the active list, if it is parked.
    fn wake(&mut self, id: PollerId, peeking: bool) {
        let Some(entry) = self.entry(id) else { return };
        // Before the poll that this leads to: who wakes from now on is listed anew.
        entry.flag.listed.store(false, Ordering::SeqCst);
        if entry.state != PollerState::Parked {
            entry.idle_since = None;
            return;
        }
        entry.state = PollerState::Active;
        entry.cell.set_state(PollerState::Active);
        entry.idle_since = None;
        entry.peeking = peeking;
        entry.timer = 0;
        entry.poller.unpark();
        self.active.push(id.slot);
    }

    /// Looks at the descriptors, when it is time to.
    fn look_if_due(&mut self) {
        let interval = if self.was_busy { self.look_busy } else { self.look_idle };
        if self.now.since(self.looked_at) >= interval {
            self.look(Some(&Timespec { tv_sec: 0, tv_nsec: 0 }));
            self.looked_at = self.now;
        }
    }

    /// Waits for descriptors, and wakes the pollers that watch them.
    fn look(&mut self, timeout: Option<&Timespec>) {
        let mut events =
            [epoll::Event { flags: epoll::EventFlags::empty(), data: BELL.to_data() }; EVENTS_PER_LOOK];
        let n = match epoll::wait(&*self.epoll, &mut events, timeout) {
            Ok(n) => n,
            Err(Errno::INTR) => 0,
            Err(errno) => {
                tracing::error!(core = self.core(), %errno, "waiting for descriptors failed");
                0
            }
        };
        for event in &events[..n] {
            let id = PollerId::from_data(event.data);
            if id == BELL {
                add(&self.shared.counters.wakeups, 1);
            } else {
                self.wake(id, false);
            }
        }
    }

    fn poll_active(&mut self) -> u64 {
        let mut busy = 0;
        let mut at = 0;
        while at < self.active.len() {
            let index = self.active[at];
            let (ticks, stays) = self.poll_one(index);
            busy += ticks;
            if stays {
                at += 1;
            } else {
                // Whoever comes into its place has not been polled in this pass.
                self.active.swap_remove(at);
            }
        }
        busy
    }

    /// Polls one: the time it did something, and whether it stays in the active list.
    fn poll_one(&mut self, index: u32) -> (u64, bool) {
        match self.run_poller(index) {
            Polled::Idle => (0, self.keep_idle(index)),
            Polled::Busy(ticks) => (ticks, true),
            Polled::Gone(ticks) => (ticks, false),
        }
    }

    fn run_poller(&mut self, index: u32) -> Polled {
        let now = self.now;
        let Some(entry) = &mut self.slots[index as usize].entry else { return Polled::Gone(0) };
        let polled = catch_unwind(AssertUnwindSafe(|| entry.poller.poll(now)));
        add(&entry.cell.run_count, 1);
        match polled {
            Ok(Work::Idle) => Polled::Idle,
            Ok(Work::Busy) => {
                entry.idle_since = None;
                entry.peeking = false;
                add(&entry.cell.busy_count, 1);
                Polled::Busy(self.charge(index))
            }
            Ok(Work::Done) => {
                self.evict(index);
                Polled::Gone(self.clock_in())
            }
            Err(panic) => {
                self.fault(index, &*panic);
                Polled::Gone(self.clock_in())
            }
        }
    }

    /// Books the time of a poll that did something.
    fn charge(&mut self, index: u32) -> u64 {
        let ticks = self.clock_in();
        if let Some(entry) = &self.slots[index as usize].entry {
            add(&entry.cell.busy_ticks, ticks);
            if ticks > self.shared.stall_ticks.load(Ordering::Relaxed) {
                self.stalled(index, ticks);
            }
        }
        ticks
    }

    #[cold]
    fn stalled(&self, index: u32, ticks: u64) {
        let counters = &self.shared.counters;
        add(&counters.stalls, 1);
        if let Some(entry) = &self.slots[index as usize].entry
            && counters.stalls.load(Ordering::Relaxed) <= LOGGED_STALLS
        {
            let held = self.clock().duration(ticks);
            tracing::warn!(
                core = self.core(),
                poller = &*entry.cell.name,
                ?held,
                "a poller held its core for long"
            );
        }
    }

    #[cold]
    fn fault(&mut self, index: u32, panic: &(dyn Any + Send)) {
        let text = panic_text(panic);
        let name = self.slots[index as usize].entry.as_ref().map(|entry| Arc::clone(&entry.cell.name));
        add(&self.shared.counters.faults, 1);
        tracing::error!(
            core = self.core(),
            poller = name.as_deref(),
            panic = text,
            "a poller panicked; it is removed"
        );
        if let Some(hook) = self.evict(index)
            && catch_unwind(AssertUnwindSafe(|| hook(text))).is_err()
        {
            tracing::error!("the fault hook of a poller panicked");
        }
    }

    /// Whether an idle poller stays in the active list; otherwise it has parked.
    fn keep_idle(&mut self, index: u32) -> bool {
        let (now, mode_spin) = (self.now, self.spin_ticks);
        let Some(entry) = &mut self.slots[index as usize].entry else { return false };
        if mode_spin == POLL_ONLY && entry.spin != Some(0) {
            return true;
        }
        let spin = entry.spin.unwrap_or(mode_spin);
        let since = *entry.idle_since.get_or_insert(now);
        if spin > 0 && !entry.peeking && now.since(since) < spin {
            return true;
        }
        let deadline = match entry.poller.park(now) {
            Park::Never | Park::Ready => {
                // Asked again after another spin time.
                entry.idle_since = None;
                entry.peeking = false;
                return true;
            }
            Park::Wait => None,
            Park::Until(at) => Some(at),
        };
        entry.state = PollerState::Parked;
        entry.cell.set_state(PollerState::Parked);
        if let Some(at) = deadline {
            self.set_timer(index, at);
        }
        false
    }

    fn fire_timers(&mut self) -> u64 {
        let mut busy = 0;
        let due = self.now;
        while let Some(&Reverse((at, number, index))) = self.timers.peek() {
            if at > due {
                break;
            }
            self.timers.pop();
            let Some(entry) = &self.slots[index as usize].entry else { continue };
            if entry.timer != number {
                continue;
            }
            if entry.state == PollerState::Parked {
                self.wake(entry.flag.id, true);
                continue;
            }
            let period = entry.cell.period_ticks.unwrap_or(1);
            match self.run_poller(index) {
                Polled::Idle => {}
                Polled::Busy(ticks) => busy += ticks,
                Polled::Gone(ticks) => {
                    busy += ticks;
                    continue;
                }
            }
            // From now on, not from when it was due: a reactor that was late does not run after the clock.
            self.set_timer(index, self.now.after(period));
        }
        busy
    }

    /// Runs until it is told to stop, sleeping when there is nothing to do. Its pollers are dropped at the end, on
    /// this thread.
    pub fn run(&mut self) {
        let tid = rustix::thread::gettid().as_raw_nonzero().get();
        self.shared.counters.tid.store(tid.unsigned_abs(), Ordering::Relaxed);
        loop {
            match self.poll_once() {
                Pass::Busy => {}
                Pass::Idle => std::hint::spin_loop(),
                Pass::Sleepy(until) => self.sleep(until),
                Pass::Stopped => break,
            }
        }
        self.shared.stopped.store(true, Ordering::Release);
        for index in 0..self.slots.len() {
            self.evict(u32::try_from(index).expect("a slot's index"));
        }
        self.active.clear();
        // Who waits for an answer to these learns that there is none.
        while self.shared.messages.pop().is_some() {}
    }

    fn sleep(&mut self, until: Option<Tick>) {
        self.shared.gate.announce();
        if self.shared.has_something() {
            self.shared.gate.awake();
            return;
        }
        let before = self.now;
        let timeout = until.map(|at| {
            // Rounded up: waking early would spin until it is time.
            let left = self.clock().duration(at.since(before)) + Duration::from_micros(1);
            Timespec {
                tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: i64::from(left.subsec_nanos()),
            }
        });
        self.look(timeout.as_ref());
        self.shared.gate.awake();
        self.now = self.shared.clock.now();
        self.looked_at = self.now;
        let counters = &self.shared.counters;
        add(&counters.sleeps, 1);
        add(&counters.slept_ticks, self.now.since(before));
        add(&counters.idle_ticks, self.now.since(before));
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no text")
}
