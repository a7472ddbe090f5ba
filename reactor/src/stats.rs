//! Counters that a reactor keeps, and groups: what SPDK's clients call threads.

use std::sync::{
    Arc, Mutex, PoisonError, Weak,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use crate::{CoreMask, Mode, PollerId, Tick};

/// Where a poller is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PollerState {
    /// Polled every pass.
    Active,
    /// Asleep.
    Parked,
    /// Polled at its interval.
    Timed,
}

/// A poller's counters at one time.
#[derive(Clone, Debug)]
pub struct PollerStats {
    /// Which one.
    pub id: PollerId,
    /// Its number within its group, from 1.
    pub number: u64,
    /// Its name.
    pub name: Arc<str>,
    /// What it belongs to.
    pub group: Group,
    /// The reactor it runs on.
    pub core: u32,
    /// Where it is.
    pub state: PollerState,
    /// Its interval, if it has one.
    pub period_ticks: Option<u64>,
    /// How often it was polled.
    pub run_count: u64,
    /// How often it then did something.
    pub busy_count: u64,
    /// Time in polls that did something.
    pub busy_ticks: u64,
    /// The rest of its life.
    pub idle_ticks: u64,
}

/// A reactor's counters at one time.
#[derive(Clone, Debug)]
pub struct ReactorStats {
    /// Its core.
    pub core: u32,
    /// Its thread.
    pub tid: u32,
    /// When it polls and when it sleeps.
    pub mode: Mode,
    /// It sleeps now.
    pub asleep: bool,
    /// Time in which something was done.
    pub busy_ticks: u64,
    /// The rest.
    pub idle_ticks: u64,
    /// The part of the rest that was spent asleep.
    pub slept_ticks: u64,
    /// How often it slept.
    pub sleeps: u64,
    /// How often it was rung awake.
    pub wakeups: u64,
    /// Polls that took too long.
    pub stalls: u64,
    /// Pollers that panicked.
    pub faults: u64,
    /// Groups with a poller here, and since when.
    pub groups: Vec<(Group, Tick)>,
}

/// A group's time, over all reactors, past and present.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupStats {
    /// Time in which something was done.
    pub busy_ticks: u64,
    /// The rest.
    pub idle_ticks: u64,
}

#[derive(Debug)]
struct GroupInner {
    id: u64,
    name: String,
    cpumask: Mutex<CoreMask>,
    /// Of pollers that are gone.
    retired_ticks: AtomicU64,
    pollers: AtomicU64,
    cells: Mutex<Vec<Weak<PollerCell>>>,
    born: Tick,
}

/// What pollers belong to: SPDK's clients call it a thread.
#[derive(Clone, Debug)]
pub struct Group(Arc<GroupInner>);

static GROUPS: Mutex<Vec<Weak<GroupInner>>> = Mutex::new(Vec::new());
static NEXT_GROUP: AtomicU64 = AtomicU64::new(1);

impl Group {
    /// A new group, with the next id of the process.
    #[must_use]
    pub fn new(name: impl Into<String>, cpumask: CoreMask) -> Group {
        let inner = Arc::new(GroupInner {
            id: NEXT_GROUP.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            cpumask: Mutex::new(cpumask),
            retired_ticks: AtomicU64::new(0),
            pollers: AtomicU64::new(0),
            cells: Mutex::default(),
            born: crate::Clock::system().now(),
        });
        let mut groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(&inner));
        Group(inner)
    }

    /// Its id.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// Where its pollers may run.
    #[must_use]
    pub fn cpumask(&self) -> CoreMask {
        *self.0.cpumask.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes that; moving the pollers is the owner's business.
    pub fn set_cpumask(&self, mask: CoreMask) {
        *self.0.cpumask.lock().unwrap_or_else(PoisonError::into_inner) = mask;
    }

    /// Its time.
    #[must_use]
    pub fn stats(&self) -> GroupStats {
        let cells = self.0.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let living =
            cells.iter().filter_map(Weak::upgrade).map(|cell| cell.busy_ticks.load(Ordering::Relaxed));
        let busy_ticks = self.0.retired_ticks.load(Ordering::Relaxed) + living.sum::<u64>();
        let life = crate::Clock::system().now().since(self.0.born);
        GroupStats { busy_ticks, idle_ticks: life.saturating_sub(busy_ticks) }
    }

    /// Every living group of the process, by id.
    #[must_use]
    pub fn all() -> Vec<Group> {
        let groups = GROUPS.lock().unwrap_or_else(PoisonError::into_inner);
        groups.iter().filter_map(Weak::upgrade).map(Group).collect()
    }

    pub(crate) fn next_poller(&self) -> u64 {
        self.0.pollers.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub(crate) fn enlist(&self, cell: &Arc<PollerCell>) {
        self.0.cells.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::downgrade(cell));
    }

    pub(crate) fn retire(&self, cell: &Arc<PollerCell>) {
        let mut cells = self.0.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|other| !std::ptr::eq(other.as_ptr(), Arc::as_ptr(cell)));
        self.0.retired_ticks.fetch_add(cell.busy_ticks.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

impl PartialEq for Group {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Group {}

/// A poller's counters, written by its reactor alone.
#[derive(Debug)]
pub(crate) struct PollerCell {
    pub(crate) id: PollerId,
    pub(crate) number: u64,
    pub(crate) name: Arc<str>,
    pub(crate) group: Group,
    pub(crate) period_ticks: Option<u64>,
    pub(crate) born: Tick,
    pub(crate) state: AtomicU8,
    pub(crate) run_count: AtomicU64,
    pub(crate) busy_count: AtomicU64,
    pub(crate) busy_ticks: AtomicU64,
}

impl PollerCell {
    pub(crate) fn set_state(&self, state: PollerState) {
        self.state.store(state as u8, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, core: u32, now: Tick) -> PollerStats {
        let busy_ticks = self.busy_ticks.load(Ordering::Relaxed);
        PollerStats {
            id: self.id,
            number: self.number,
            name: Arc::clone(&self.name),
            group: self.group.clone(),
            core,
            state: match self.state.load(Ordering::Relaxed) {
                0 => PollerState::Active,
                1 => PollerState::Parked,
                _ => PollerState::Timed,
            },
            period_ticks: self.period_ticks,
            run_count: self.run_count.load(Ordering::Relaxed),
            busy_count: self.busy_count.load(Ordering::Relaxed),
            busy_ticks,
            idle_ticks: now.since(self.born).saturating_sub(busy_ticks),
        }
    }
}
