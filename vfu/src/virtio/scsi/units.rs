//! The targets of a device, and what all its queues and the thread that adds and removes targets share.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use bdev::{Descriptor, Event};

use super::{
    reservation::{Nexus, ReservationTable},
    sense::Sense,
    spec::{MAX_TARGETS, event},
    tasks::AllTasks,
};
use crate::{device::HomeWaker, virtio::transport::MAX_QUEUES};

/// Events that wait for buffers; more are told as missed.
const MAX_EVENTS: usize = 16;

/// A logical unit: number 0 of its target.
#[derive(Debug)]
pub(super) struct Unit {
    pub(super) descriptor: Arc<Descriptor>,
    pub(super) nexus: Arc<Nexus>,
    pub(super) target: u8,
    /// Its bdev is being removed, or it was taken out.
    pub(super) gone: AtomicBool,
}

/// An event to be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Happened {
    pub(super) target: u8,
    pub(super) event: u32,
    pub(super) reason: u32,
}

#[derive(Debug, Default)]
struct Events {
    waiting: VecDeque<Happened>,
    missed: bool,
}

/// What the parts of a device share.
#[derive(Debug)]
pub(super) struct Shared {
    units: Mutex<[Option<Arc<Unit>>; MAX_TARGETS]>,
    events: Mutex<Events>,
    has_events: AtomicBool,
    /// Something for the transport to do: see [`Shared::take_changed`].
    changed: AtomicBool,
    home: OnceLock<HomeWaker>,
    /// The number of the latest drain that was asked for, and the one that each queue has been through; all ones for
    /// a queue that does not run.
    drain: AtomicU64,
    drained: [AtomicU64; MAX_QUEUES as usize],
    /// What the request queues have in flight.
    pub(super) tasks: AllTasks,
}

/// Why a target is not added or removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TargetError {
    /// There are no more than eight.
    #[error("target {0} is above 7")]
    Number(u8),
    /// There is one.
    #[error("target {0} is in use")]
    InUse(u8),
    /// There is none.
    #[error("there is no target {0}")]
    Missing(u8),
}

/// The targets of a device, for the thread that adds and removes them.
#[derive(Clone, Debug)]
pub struct Targets(pub(super) Arc<Shared>);

/// A target that is not added yet: its bdev is opened with [`Self::callback`].
#[derive(Debug)]
pub struct TargetSlot {
    shared: Arc<Shared>,
    target: u8,
    /// The unit it becomes.
    unit: Arc<OnceLock<Weak<Unit>>>,
}

impl TargetSlot {
    /// The callback for [`bdev::Registry::open`].
    pub fn callback(&self) -> impl Fn(Event) + Send + Sync + 'static {
        let (shared, unit) = (Arc::clone(&self.shared), Arc::clone(&self.unit));
        move |event| {
            // Its own, not whatever has its number: a queue that has requests in flight keeps a unit, and its bdev open, while
            // another takes its place.
            let Some(unit) = unit.get().and_then(Weak::upgrade) else { return };
            match event {
                Event::Removed => shared.take_out(&unit),
                Event::Resized { .. } if shared.has(&unit) => {
                    unit.nexus.attend(Sense::CAPACITY_CHANGED);
                    shared.happened(unit.target, event::PARAM_CHANGE, event::CAPACITY_CHANGED);
                }
                _ => {}
            }
        }
    }

    /// Adds the target.
    ///
    /// # Errors
    /// [`TargetError::InUse`].
    pub fn add(self, descriptor: Arc<Descriptor>, table: &ReservationTable) -> Result<(), TargetError> {
        let Self { shared, target, unit: own } = self;
        let nexus = Nexus::new(table.of(&descriptor.info().name));
        let gone = AtomicBool::new(false);
        let unit = Arc::new(Unit { descriptor, nexus, target, gone });
        {
            let mut units = shared.lock();
            let place = &mut units[usize::from(target)];
            if place.is_some() {
                return Err(TargetError::InUse(target));
            }
            *place = Some(Arc::clone(&unit));
        }
        // A slot becomes one unit.
        let _ = own.set(Arc::downgrade(&unit));
        shared.happened(target, event::TRANSPORT_RESET, event::RESCAN);
        // Looked at last: a bdev that is removed from here on says so to the unit.
        if unit.descriptor.registered().is_removed() {
            shared.take_out(&unit);
        }
        Ok(())
    }
}

impl Targets {
    /// A place for a new target.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn slot(&self, target: u8) -> Result<TargetSlot, TargetError> {
        if usize::from(target) >= MAX_TARGETS {
            return Err(TargetError::Number(target));
        }
        if self.0.unit(target).is_some() {
            return Err(TargetError::InUse(target));
        }
        Ok(TargetSlot { shared: Arc::clone(&self.0), target, unit: Arc::default() })
    }

    /// Takes a target out: what it has in flight is finished, what comes later finds no target.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub fn remove(&self, target: u8) -> Result<(), TargetError> {
        if usize::from(target) >= MAX_TARGETS {
            return Err(TargetError::Number(target));
        }
        let unit = self.0.unit(target).ok_or(TargetError::Missing(target))?;
        self.0.take_out(&unit);
        Ok(())
    }

    /// The targets there are, with their bdevs.
    #[must_use]
    pub fn list(&self) -> Vec<(u8, String)> {
        let units = self.0.lock();
        units.iter().flatten().map(|unit| (unit.target, unit.descriptor.info().name.clone())).collect()
    }
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            units: Mutex::default(),
            events: Mutex::default(),
            has_events: AtomicBool::new(false),
            changed: AtomicBool::new(false),
            home: OnceLock::new(),
            drain: AtomicU64::new(0),
            drained: [const { AtomicU64::new(u64::MAX) }; MAX_QUEUES as usize],
            tasks: AllTasks::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, [Option<Arc<Unit>>; MAX_TARGETS]> {
        self.units.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The unit of a target.
    pub(super) fn unit(&self, target: u8) -> Option<Arc<Unit>> {
        self.lock().get(usize::from(target))?.clone()
    }

    /// All units.
    pub(super) fn units(&self) -> [Option<Arc<Unit>>; MAX_TARGETS] {
        self.lock().clone()
    }

    /// Whether a unit is in its place.
    fn has(&self, unit: &Arc<Unit>) -> bool {
        self.unit(unit.target).is_some_and(|there| Arc::ptr_eq(&there, unit))
    }

    fn take_out(&self, unit: &Arc<Unit>) {
        unit.gone.store(true, Ordering::Release);
        let mut units = self.lock();
        let place = &mut units[usize::from(unit.target)];
        // Another may have its number by now, and stays.
        if place.take_if(|there| Arc::ptr_eq(there, unit)).is_none() {
            return;
        }
        drop(units);
        self.happened(unit.target, event::TRANSPORT_RESET, event::REMOVED);
    }

    /// Notes an event, and has every queue look at the units anew.
    fn happened(&self, target: u8, event: u32, reason: u32) {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        if events.waiting.len() == MAX_EVENTS {
            events.missed = true;
        } else {
            events.waiting.push_back(Happened { target, event, reason });
        }
        self.has_events.store(true, Ordering::Release);
        drop(events);
        self.change();
    }

    /// Wakes the transport, which has every queue finish what it has and refresh.
    pub(super) fn change(&self) {
        self.changed.store(true, Ordering::Release);
        if let Some(home) = self.home.get() {
            home.wake();
        }
    }

    pub(super) fn attach(&self, home: HomeWaker) {
        // A device is attached once.
        let _ = self.home.set(home);
    }

    pub(super) fn take_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// Whether an event waits for a buffer.
    #[inline]
    pub(super) fn has_events(&self) -> bool {
        self.has_events.load(Ordering::Acquire)
    }

    /// The next event, and whether some were missed before it.
    pub(super) fn take_event(&self) -> Option<(Option<Happened>, bool)> {
        let mut events = self.events.lock().unwrap_or_else(PoisonError::into_inner);
        let next = events.waiting.pop_front();
        let missed = std::mem::take(&mut events.missed);
        self.has_events.store(!events.waiting.is_empty(), Ordering::Release);
        (next.is_some() || missed).then_some((next, missed))
    }

    /// A new driver knows nothing of what came before it.
    pub(super) fn forget_events(&self) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Events::default();
        self.has_events.store(false, Ordering::Release);
    }

    /// Asks every queue to finish what it has; the number to wait for.
    pub(super) fn start_drain(&self) -> u64 {
        let number = self.drain.fetch_add(1, Ordering::AcqRel) + 1;
        self.change();
        number
    }

    /// A queue has nothing in flight; or, with nothing to tell, does not run any more.
    pub(super) fn has_drained(&self, queue: u16, running: bool) {
        let number = if running { self.drain.load(Ordering::Acquire) } else { u64::MAX };
        self.drained[usize::from(queue)].store(number, Ordering::Release);
    }

    /// Whether every queue has been through this drain.
    pub(super) fn is_drained(&self, number: u64) -> bool {
        self.drained.iter().all(|queue| queue.load(Ordering::Acquire) >= number)
    }
}
