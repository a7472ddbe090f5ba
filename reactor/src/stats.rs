//! Counters of reactors and pollers, and the snapshots that the control threads take of them.
//!
//! Each counter has one writer, its reactor, and is read by anyone at any time without disturbing it. Only busy time is
//! counted; idle time is what is left of the time since the counting began, so a poller that has nothing to do costs no
//! clock reading. The counts of polls without work reach the snapshots within [`crate::PUBLISH_INTERVAL`].

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::clock::{Clock, Tick};
use crate::control::Mode;
use crate::group::{Group, Share, lock};
use crate::poller::PollerId;

/// A count with one writer.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    /// The owning reactor. Load and store, not an atomic addition: it has no rival.
    #[inline]
    pub(crate) fn add(&self, more: u64) {
        self.0.store(self.0.load(Ordering::Relaxed) + more, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where a poller stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum PollerState {
    /// Polled in every pass.
    Active,
    /// Waiting for its waker, a descriptor or a deadline.
    Parked,
    /// Polled once a period.
    Timed,
}

/// What a reactor counts about one poller, with what names it.
#[derive(Debug)]
pub(crate) struct PollerCounters {
    pub(crate) id: PollerId,
    pub(crate) number: u64,
    pub(crate) name: Arc<str>,
    pub(crate) group: Group,
    pub(crate) period_ticks: Option<u64>,
    pub(crate) since: Tick,
    state: AtomicU8,
    pub(crate) run_count: Counter,
    pub(crate) busy_count: Counter,
    pub(crate) busy_ticks: Counter,
    pub(crate) stall_count: Counter,
}

impl PollerCounters {
    pub(crate) fn new(
        id: PollerId,
        name: &str,
        group: &Group,
        period_ticks: Option<u64>,
        since: Tick,
    ) -> Self {
        let state = if period_ticks.is_some() { PollerState::Timed } else { PollerState::Active };
        PollerCounters {
            id,
            number: group.next_poller_number(),
            name: name.into(),
            group: group.clone(),
            period_ticks,
            since,
            state: AtomicU8::new(state as u8),
            run_count: Counter::default(),
            busy_count: Counter::default(),
            busy_ticks: Counter::default(),
            stall_count: Counter::default(),
        }
    }

    pub(crate) fn set_state(&self, state: PollerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    fn state(&self) -> PollerState {
        const ACTIVE: u8 = PollerState::Active as u8;
        const PARKED: u8 = PollerState::Parked as u8;
        match self.state.load(Ordering::Relaxed) {
            ACTIVE => PollerState::Active,
            PARKED => PollerState::Parked,
            _ => PollerState::Timed,
        }
    }

    fn snapshot(&self, core: u32, now: Tick) -> PollerStats {
        let busy_ticks = self.busy_ticks.get();
        PollerStats {
            id: self.id,
            number: self.number,
            name: Arc::clone(&self.name),
            group: self.group.clone(),
            core,
            state: self.state(),
            period_ticks: self.period_ticks,
            run_count: self.run_count.get(),
            busy_count: self.busy_count.get(),
            busy_ticks,
            idle_ticks: now.since(self.since).saturating_sub(busy_ticks),
            stall_count: self.stall_count.get(),
        }
    }
}

/// A poller as the RPCs show it.
#[derive(Clone, Debug)]
pub struct PollerStats {
    /// Its id on its reactor.
    pub id: PollerId,
    /// Its number within its group, from 1: SPDK's poller id.
    pub number: u64,
    /// Its name.
    pub name: Arc<str>,
    /// The group it belongs to.
    pub group: Group,
    /// The reactor it runs on.
    pub core: u32,
    /// Polled in each pass, parked, or timed.
    pub state: PollerState,
    /// The period of a timed poller.
    pub period_ticks: Option<u64>,
    /// Polls.
    pub run_count: u64,
    /// Polls that found work.
    pub busy_count: u64,
    /// Time of the polls that found work.
    pub busy_ticks: u64,
    /// The rest of its life.
    pub idle_ticks: u64,
    /// Polls that held the core longer than the stall limit.
    pub stall_count: u64,
}

/// What a reactor counts about itself.
#[derive(Debug)]
pub(crate) struct ReactorCounters {
    pub(crate) since: Tick,
    /// 0 until a thread runs the reactor.
    pub(crate) tid: AtomicU32,
    pub(crate) busy_ticks: Counter,
    pub(crate) slept_ticks: Counter,
    pub(crate) sleeps: Counter,
    pub(crate) wakeups: Counter,
    pub(crate) messages: Counter,
    pub(crate) stalls: Counter,
    pub(crate) faults: Counter,
    directory: Mutex<Directory>,
}

/// Who is on the reactor. Locked to add and remove and to take a snapshot, never to poll.
#[derive(Debug, Default)]
struct Directory {
    /// By the order of their coming.
    pollers: BTreeMap<u64, Arc<PollerCounters>>,
    groups: BTreeMap<u64, Member>,
}

#[derive(Debug)]
struct Member {
    group: Group,
    share: Arc<Share>,
    pollers: usize,
}

impl ReactorCounters {
    pub(crate) fn new(since: Tick) -> ReactorCounters {
        ReactorCounters {
            since,
            tid: AtomicU32::new(0),
            busy_ticks: Counter::default(),
            slept_ticks: Counter::default(),
            sleeps: Counter::default(),
            wakeups: Counter::default(),
            messages: Counter::default(),
            stalls: Counter::default(),
            faults: Counter::default(),
            directory: Mutex::default(),
        }
    }

    /// A poller has come; answers with its group's share of this reactor.
    pub(crate) fn enlist(&self, serial: u64, poller: Arc<PollerCounters>, clock: &Clock) -> Arc<Share> {
        let mut directory = lock(&self.directory);
        let group = poller.group.clone();
        directory.pollers.insert(serial, poller);
        let member = directory.groups.entry(group.id()).or_insert_with(|| Member {
            share: group.enter(clock),
            group,
            pollers: 0,
        });
        member.pollers += 1;
        Arc::clone(&member.share)
    }

    /// A poller has gone.
    pub(crate) fn strike(&self, serial: u64) {
        let mut directory = lock(&self.directory);
        let Some(poller) = directory.pollers.remove(&serial) else { return };
        let Some(member) = directory.groups.get_mut(&poller.group.id()) else { return };
        member.pollers -= 1;
        if member.pollers == 0 {
            member.group.leave(&member.share);
            directory.groups.remove(&poller.group.id());
        }
    }

    pub(crate) fn pollers(&self, core: u32, now: Tick) -> Vec<PollerStats> {
        lock(&self.directory).pollers.values().map(|poller| poller.snapshot(core, now)).collect()
    }

    pub(crate) fn snapshot(&self, core: u32, now: Tick, mode: Mode, asleep: bool) -> ReactorStats {
        let busy_ticks = self.busy_ticks.get();
        ReactorStats {
            core,
            tid: self.tid.load(Ordering::Relaxed),
            mode,
            asleep,
            busy_ticks,
            idle_ticks: now.since(self.since).saturating_sub(busy_ticks),
            slept_ticks: self.slept_ticks.get(),
            sleeps: self.sleeps.get(),
            wakeups: self.wakeups.get(),
            messages: self.messages.get(),
            stalls: self.stalls.get(),
            faults: self.faults.get(),
            groups: lock(&self.directory)
                .groups
                .values()
                .map(|member| (member.group.clone(), member.share.since))
                .collect(),
        }
    }
}

/// A reactor as the RPCs show it.
#[derive(Clone, Debug)]
pub struct ReactorStats {
    /// Its core.
    pub core: u32,
    /// Its thread, 0 if no thread runs it.
    pub tid: u32,
    /// Its mode.
    pub mode: Mode,
    /// Asleep at this moment?
    pub asleep: bool,
    /// Time in messages and in polls that found work.
    pub busy_ticks: u64,
    /// The rest, sleep included.
    pub idle_ticks: u64,
    /// The part of the idle time that it slept.
    pub slept_ticks: u64,
    /// Times it announced sleep and found nothing left to do.
    pub sleeps: u64,
    /// Times it was woken, by anything but a deadline.
    pub wakeups: u64,
    /// Messages run.
    pub messages: u64,
    /// Polls and messages that held the core longer than the stall limit.
    pub stalls: u64,
    /// Pollers and messages that panicked.
    pub faults: u64,
    /// The groups with a poller here, by id, and since when.
    pub groups: Vec<(Group, Tick)>,
}
