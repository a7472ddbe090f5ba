//! What a controller, its I/O queues on other reactors, and those who change the subsystem say to each other.
//!
//! All of it is flags and counters. Who changes something sets a flag and wakes the controller's home; the home tells
//! the queues by their own control blocks.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
};

use super::spec::log::ReservationNotification;
use crate::{
    device::HomeWaker,
    stages::{StageReading, StageTimes},
};

/// Something a controller is to look at.
pub mod flag {
    /// The set of namespaces, or one of them, changed.
    pub const NAMESPACES: u32 = 1;
    /// Access states or groups of namespaces changed.
    pub const ANA: u32 = 1 << 1;
    /// A reservation notification was logged.
    pub const RESERVATION: u32 = 1 << 2;
    /// The subsystem is being reset (Base, 3.7.1).
    pub const SUBSYSTEM_RESET: u32 = 1 << 3;
    /// A doorbell was set to a value outside its queue (Base, 3.1.2: Invalid Doorbell Write Value).
    pub const BAD_DOORBELL: u32 = 1 << 4;
    /// A doorbell of no queue was written (Base, 3.1.2: Write to Invalid Doorbell Register).
    pub const NO_DOORBELL: u32 = 1 << 5;
}

/// Notifications that are kept for a host that does not read them; the oldest goes first.
const MAX_NOTIFICATIONS: usize = 64;
/// Changed namespaces in the log page; more are told as "too many" (Base, 5.16.1.5).
pub const MAX_CHANGED: usize = 1024;

/// Access state of a group of namespaces through one listener (Base, 8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum AnaState {
    /// The best way to them.
    #[default]
    Optimized = 1,
    /// A way.
    NonOptimized = 2,
    /// Not reachable this way.
    Inaccessible = 3,
}

/// Access states of one listener, by group; a group that is not named is optimized.
#[derive(Debug, Default)]
pub struct AnaStates {
    states: Mutex<BTreeMap<u32, AnaState>>,
    /// Bumped by each change.
    changes: AtomicU64,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each section below leaves its data whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl AnaStates {
    /// The state of a group.
    #[must_use]
    pub fn get(&self, group: u32) -> AnaState {
        lock(&self.states).get(&group).copied().unwrap_or_default()
    }

    /// Sets the state of a group.
    pub fn set(&self, group: u32, state: AnaState) {
        lock(&self.states).insert(group, state);
        self.changes.fetch_add(1, Ordering::AcqRel);
    }

    /// How often a state changed.
    #[must_use]
    pub fn changes(&self) -> u64 {
        self.changes.load(Ordering::Acquire)
    }
}

/// What the queues of a controller have done; each queue has one of its own, so that nothing is shared on the hot path.
#[derive(Debug, Default)]
pub struct Counters {
    /// Commands completed.
    pub commands: AtomicU64,
    /// Read commands.
    pub reads: AtomicU64,
    /// Write commands.
    pub writes: AtomicU64,
    /// Blocks of 512 bytes read.
    pub sectors_read: AtomicU64,
    /// Blocks of 512 bytes written.
    pub sectors_written: AtomicU64,
    /// Commands that failed for the medium.
    pub media_errors: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
    /// Requests at bdevs now.
    pub in_flight: AtomicU64,
    /// Where the time went, of some passes.
    pub stages: StageTimes,
}

impl Counters {
    /// Adds to a counter that only this thread writes.
    #[inline]
    pub fn add(counter: &AtomicU64, n: u64) {
        counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
    }
}

/// One I/O submission queue, for those who ask over RPC.
#[derive(Clone, Debug)]
pub struct QueueInfo {
    /// Its identifier.
    pub qid: u16,
    /// The core of its reactor.
    pub core: u32,
}

/// Reservation notifications of a controller.
#[derive(Debug, Default)]
struct Notifications {
    waiting: VecDeque<ReservationNotification>,
    /// How many there were: each tells its number (Base, figure 258).
    count: u64,
    masks: BTreeMap<u32, u32>,
}

/// The ends of a controller that others hold.
#[derive(Debug)]
pub struct Link {
    /// Controller ID.
    pub cntlid: u16,
    /// Access states of the way in.
    pub ana: Arc<AnaStates>,
    flags: AtomicU32,
    home: HomeWaker,
    changed: Mutex<BTreeSet<u32>>,
    notifications: Mutex<Notifications>,
    counters: Mutex<Vec<Arc<Counters>>>,
    host_id: Mutex<[u8; 16]>,
    enabled: AtomicBool,
    write_through: AtomicBool,
    queues: Mutex<Vec<QueueInfo>>,
    /// The admin queue's counters.
    pub admin: Counters,
}

impl Link {
    /// For a controller whose home is woken by `home`.
    #[must_use]
    pub fn new(cntlid: u16, ana: Arc<AnaStates>, home: HomeWaker) -> Self {
        Self {
            cntlid,
            ana,
            flags: AtomicU32::new(0),
            home,
            changed: Mutex::default(),
            notifications: Mutex::default(),
            counters: Mutex::default(),
            host_id: Mutex::default(),
            enabled: AtomicBool::new(false),
            write_through: AtomicBool::new(false),
            queues: Mutex::default(),
            admin: Counters::default(),
        }
    }

    /// Sets flags and wakes the home.
    pub fn notify(&self, flags: u32) {
        if self.flags.fetch_or(flags, Ordering::AcqRel) & flags != flags {
            self.home.wake();
        }
    }

    /// Whether a flag is set, cheaply.
    #[must_use]
    pub fn is_notified(&self) -> bool {
        self.flags.load(Ordering::Relaxed) != 0
    }

    /// Takes all flags.
    pub fn take_flags(&self) -> u32 {
        self.flags.swap(0, Ordering::AcqRel)
    }

    /// A namespace came, went or changed.
    pub fn namespace_changed(&self, nsid: u32) {
        lock(&self.changed).insert(nsid);
        self.notify(flag::NAMESPACES);
    }

    /// Takes the changed namespaces.
    pub fn take_changed(&self) -> Vec<u32> {
        std::mem::take(&mut *lock(&self.changed)).into_iter().collect()
    }

    /// The changed namespaces; they stay.
    #[must_use]
    pub fn changed(&self) -> Vec<u32> {
        lock(&self.changed).iter().copied().collect()
    }

    /// Logs a reservation notification, unless the host does not want to know.
    pub fn log_reservation(&self, kind: u8, nsid: u32) {
        {
            let mut log = lock(&self.notifications);
            if log.masks.get(&nsid).is_some_and(|mask| mask & 1 << kind != 0) {
                return;
            }
            if log.waiting.len() == MAX_NOTIFICATIONS {
                log.waiting.pop_front();
            }
            log.count += 1;
            let count = log.count;
            log.waiting.push_back(ReservationNotification {
                count,
                kind,
                nsid,
                ..ReservationNotification::default()
            });
        }
        self.notify(flag::RESERVATION);
    }

    /// Takes the oldest notification, and how many are left.
    pub fn take_notification(&self) -> Option<(ReservationNotification, usize)> {
        let mut log = lock(&self.notifications);
        let first = log.waiting.pop_front()?;
        Some((first, log.waiting.len()))
    }

    /// Says which kinds of notification the host does not want, by namespace: a bit each (Base, feature 82h).
    pub fn mask_notifications(&self, masks: BTreeMap<u32, u32>) {
        lock(&self.notifications).masks = masks;
    }

    /// Counters for a queue to come.
    pub fn open_counters(&self) -> Arc<Counters> {
        self.fold_counters();
        let counters = Arc::<Counters>::default();
        lock(&self.counters).push(Arc::clone(&counters));
        counters
    }

    /// Sums one counter over all queues there were.
    #[must_use]
    pub fn sum(&self, of: impl Fn(&Counters) -> &AtomicU64) -> u64 {
        lock(&self.counters).iter().map(|counters| of(counters).load(Ordering::Relaxed)).sum()
    }

    /// Where the time of all queues went that there were.
    #[must_use]
    pub fn stages(&self) -> StageReading {
        let sum = StageTimes::default();
        lock(&self.counters).iter().for_each(|counters| sum.merge(&counters.stages.read()));
        sum.read()
    }

    /// Folds the counters of queues that are gone into one, so that the list does not grow with the queues there were.
    fn fold_counters(&self) {
        let mut all = lock(&self.counters);
        let (live, gone): (Vec<_>, Vec<_>) =
            all.drain(..).partition(|counters| Arc::strong_count(counters) > 1);
        let sum = Counters::default();
        let fields: [fn(&Counters) -> &AtomicU64; 7] = [
            |c| &c.commands,
            |c| &c.reads,
            |c| &c.writes,
            |c| &c.sectors_read,
            |c| &c.sectors_written,
            |c| &c.media_errors,
            |c| &c.interrupts,
        ];
        for field in fields {
            let total = gone.iter().map(|counters| field(counters).load(Ordering::Relaxed)).sum();
            field(&sum).store(total, Ordering::Relaxed);
        }
        gone.iter().for_each(|counters| sum.stages.merge(&counters.stages.read()));
        *all = live;
        all.push(Arc::new(sum));
    }

    /// The host's identifier; zero while it has not told one.
    #[must_use]
    pub fn host_id(&self) -> [u8; 16] {
        *lock(&self.host_id)
    }

    /// Sets the host's identifier.
    pub fn set_host_id(&self, id: [u8; 16]) {
        *lock(&self.host_id) = id;
    }

    /// Whether a host has enabled the controller.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.enabled.load(Ordering::Acquire)
    }

    /// Says whether a host has enabled the controller.
    pub fn set_enabled(&self, on: bool) {
        self.enabled.store(on, Ordering::Release);
    }

    /// Whether the host has switched the volatile write cache off.
    #[inline]
    #[must_use]
    pub fn is_write_through(&self) -> bool {
        self.write_through.load(Ordering::Relaxed)
    }

    /// Says whether the host has switched the volatile write cache off.
    pub fn set_write_through(&self, on: bool) {
        self.write_through.store(on, Ordering::Release);
    }

    /// The I/O submission queues.
    #[must_use]
    pub fn queues(&self) -> Vec<QueueInfo> {
        lock(&self.queues).clone()
    }

    /// Says which I/O submission queues there are.
    pub fn set_queues(&self, queues: Vec<QueueInfo>) {
        *lock(&self.queues) = queues;
    }
}
