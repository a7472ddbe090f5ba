//! Groups of pollers: what SPDK's clients know as lightweight threads.
//!
//! An endpoint, or one owner of its queues, puts its pollers into one group; the RPCs list groups, count their busy and
//! idle time and move them by cpumask. A group runs nothing itself, and changing its mask moves nothing: whoever owns
//! the pollers does that.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use crate::clock::{Clock, Tick};
use crate::cpumask::CoreMask;

/// SPDK counts its threads from 1 over the process's life.
static NEXT_ID: AtomicU64 = AtomicU64::new(1);

/// Every group, also those without a poller: `thread_get_stats` lists them all.
static GROUPS: Mutex<Vec<Weak<Inner>>> = Mutex::new(Vec::new());

/// A named set of pollers; clones are the same group.
#[derive(Clone)]
pub struct Group(Arc<Inner>);

struct Inner {
    id: u64,
    name: String,
    next_poller: AtomicU64,
    cpumask: Mutex<CoreMask>,
    shares: Mutex<Shares>,
}

/// The group's time, by reactor.
#[derive(Default)]
struct Shares {
    present: Vec<Arc<Share>>,
    /// Of reactors that the group has left.
    past: GroupStats,
}

/// One reactor's part of a group's time, for as long as the group has a poller there.
#[derive(Debug)]
pub(crate) struct Share {
    pub(crate) since: Tick,
    clock: Clock,
    /// Written by the reactor only.
    busy_ticks: AtomicU64,
}

impl Share {
    /// The reactor. Plain load and store: there is no other writer.
    #[inline]
    pub(crate) fn add_busy(&self, ticks: u64) {
        self.busy_ticks.store(self.busy_ticks.load(Ordering::Relaxed) + ticks, Ordering::Relaxed);
    }

    fn stats(&self) -> GroupStats {
        let busy_ticks = self.busy_ticks.load(Ordering::Relaxed);
        GroupStats { busy_ticks, idle_ticks: self.clock.now().since(self.since).saturating_sub(busy_ticks) }
    }
}

/// How a group's time was spent on the reactors it has, or had, pollers on. A tick on two reactors counts twice, so a
/// group on two of them that works all the time is busy for two.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct GroupStats {
    /// Inside its pollers while they had work.
    pub busy_ticks: u64,
    /// The rest: polling for nothing, other groups' turns, sleep.
    pub idle_ticks: u64,
}

impl GroupStats {
    fn plus(self, other: GroupStats) -> GroupStats {
        GroupStats {
            busy_ticks: self.busy_ticks + other.busy_ticks,
            idle_ticks: self.idle_ticks + other.idle_ticks,
        }
    }
}

impl Group {
    /// A new group with the next id.
    pub fn new(name: impl Into<String>, cpumask: CoreMask) -> Group {
        let group = Group(Arc::new(Inner {
            id: NEXT_ID.fetch_add(1, Ordering::Relaxed),
            name: name.into(),
            next_poller: AtomicU64::new(1),
            cpumask: Mutex::new(cpumask),
            shares: Mutex::default(),
        }));
        let mut groups = lock(&GROUPS);
        groups.retain(|group| group.strong_count() > 0);
        groups.push(Arc::downgrade(&group.0));
        group
    }

    /// Every living group of the process, by id.
    pub fn all() -> Vec<Group> {
        let mut groups: Vec<Group> = lock(&GROUPS).iter().filter_map(Weak::upgrade).map(Group).collect();
        groups.sort_unstable_by_key(Group::id);
        groups
    }

    /// Unique in the process, from 1.
    pub fn id(&self) -> u64 {
        self.0.id
    }

    /// The name that it was made with.
    pub fn name(&self) -> &str {
        &self.0.name
    }

    /// The cores it may have pollers on.
    pub fn cpumask(&self) -> CoreMask {
        *lock(&self.0.cpumask)
    }

    /// Notes other cores; moves nothing.
    pub fn set_cpumask(&self, cpumask: CoreMask) {
        *lock(&self.0.cpumask) = cpumask;
    }

    /// Its time over all reactors, past and present.
    pub fn stats(&self) -> GroupStats {
        let shares = lock(&self.0.shares);
        shares.present.iter().fold(shares.past, |sum, share| sum.plus(share.stats()))
    }

    /// The number of the group's next poller: SPDK's poller id, from 1 within each thread.
    pub(crate) fn next_poller_number(&self) -> u64 {
        self.0.next_poller.fetch_add(1, Ordering::Relaxed)
    }

    /// The group gets its first poller on a reactor.
    pub(crate) fn enter(&self, clock: &Clock) -> Arc<Share> {
        let since = clock.now();
        let share = Arc::new(Share { since, clock: clock.clone(), busy_ticks: AtomicU64::new(0) });
        lock(&self.0.shares).present.push(Arc::clone(&share));
        share
    }

    /// The group's last poller on a reactor has gone.
    pub(crate) fn leave(&self, share: &Arc<Share>) {
        let mut shares = lock(&self.0.shares);
        shares.present.retain(|present| !Arc::ptr_eq(present, share));
        shares.past = shares.past.plus(share.stats());
    }
}

/// Nothing panics while it holds one of these locks; data that a poisoned one guards is as good as before.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl PartialEq for Group {
    fn eq(&self, other: &Group) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Group {}

impl fmt::Debug for Group {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Group").field("id", &self.id()).field("name", &self.name()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn ids_rise_and_dropped_groups_leave_the_list() {
        let first = Group::new("first", CoreMask::of(0));
        let second = Group::new("second", CoreMask::of(0));
        assert!(first.id() >= 1 && second.id() > first.id());
        let gone = first.id();
        drop(first);
        let ids: Vec<u64> = Group::all().iter().map(Group::id).collect();
        assert!(ids.contains(&second.id()) && !ids.contains(&gone));
        assert!(ids.is_sorted());
    }

    #[test]
    fn time_of_a_reactor_that_the_group_left_stays_in_the_sum() {
        let (clock, hand) = Clock::fake();
        let group = Group::new("g", CoreMask::of(0));
        let share = group.enter(&clock);
        share.add_busy(300);
        hand.advance(Duration::from_nanos(1000));
        group.leave(&share);
        hand.advance(Duration::from_nanos(5000));
        assert_eq!(group.stats(), GroupStats { busy_ticks: 300, idle_ticks: 700 });
    }

    #[test]
    fn two_reactors_at_once_count_twice() {
        let (clock, hand) = Clock::fake();
        let group = Group::new("g", CoreMask::of(0));
        let (_a, b) = (group.enter(&clock), group.enter(&clock));
        b.add_busy(10);
        hand.advance(Duration::from_nanos(100));
        assert_eq!(group.stats(), GroupStats { busy_ticks: 10, idle_ticks: 190 });
    }
}
