//! What the transport, on the endpoint's reactor, and a queue's owner, on another, say to each other.
//!
//! All of it is a few atomics and no message: the transport changes what it wants and bumps the epoch; the owner sees
//! the new epoch at the start of its next pass, follows, and acknowledges. An owner that sleeps is woken.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, AtomicU8, AtomicU16, AtomicU64, Ordering},
};

use reactor::Waker;

use super::queue::Position;
use crate::{
    device::{HomeWaker, QueueDescription},
    irq::NO_VECTOR,
    stages::StageTimes,
};

/// How the guest's kicks reach the queues of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DoorbellMode {
    /// Each kick is a message on the socket. Until the first, the queue is also looked at every
    /// millisecond, and oftener at first: some drivers never kick (SPDK's initiator).
    #[default]
    Auto,
    /// The notify page is mapped: a kick is a store that nobody sees. The queue is always looked at.
    Mapped,
    /// Each kick is a message on the socket; the driver is trusted to send them.
    Trapped,
}

impl DoorbellMode {
    /// Its name over RPC.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            DoorbellMode::Auto => "auto",
            DoorbellMode::Mapped => "mapped",
            DoorbellMode::Trapped => "trapped",
        }
    }
}

/// The doorbell of a device: its mode, and whether its driver has been heard.
#[derive(Debug)]
pub struct Doorbell {
    mode: DoorbellMode,
    heard: AtomicBool,
}

impl Doorbell {
    /// A doorbell that was never rung.
    #[must_use]
    pub fn new(mode: DoorbellMode) -> Self {
        Self { mode, heard: AtomicBool::new(false) }
    }

    /// Its mode.
    #[must_use]
    pub fn mode(&self) -> DoorbellMode {
        self.mode
    }

    /// A driver kicked: it is one that does.
    pub fn ring(&self) {
        self.heard.store(true, Ordering::Release);
    }

    /// The device was reset: the next driver may be another one.
    pub fn reset(&self) {
        self.heard.store(false, Ordering::Release);
    }

    /// Whether a kick may fail to be seen, so that rings must be looked at while asleep.
    fn needs_fallback(&self) -> bool {
        match self.mode {
            DoorbellMode::Mapped => true,
            DoorbellMode::Trapped => false,
            DoorbellMode::Auto => !self.heard.load(Ordering::Acquire),
        }
    }
}

/// Where a queue is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum QueueState {
    /// On its way to its reactor.
    Starting,
    /// Works.
    Running,
    /// Has stopped as it was told; holds nothing.
    Stopped,
    /// Has stopped by itself: the ring is broken or its bdev is gone. The device needs a reset.
    Failed,
    /// Its owner panicked: a bug of ours. The endpoint is closed.
    Faulted,
}

/// The two-way control block of one queue.
#[derive(Debug)]
pub struct QueueControl {
    /// Bumped by the transport after each change.
    epoch: AtomicU64,
    /// The last epoch the owner has followed, with nothing in flight from before an unmap.
    acked: AtomicU64,
    /// The last epoch before which everything in flight must have finished.
    drain: AtomicU64,
    stop: AtomicBool,
    state: AtomicU8,
    vector: AtomicU16,
    doorbell: Arc<Doorbell>,
    owner: Mutex<Option<Waker>>,
    home: HomeWaker,
    position: Mutex<Position>,
    counters: Counters,
}

/// What a queue has done, for those who ask over RPC.
#[derive(Debug, Default)]
pub struct Counters {
    /// Chains taken.
    pub requests: AtomicU64,
    /// Interrupts raised.
    pub interrupts: AtomicU64,
    /// Kicks that arrived.
    pub kicks: AtomicU64,
    /// Where the time went, of some passes.
    pub stages: StageTimes,
}

impl QueueControl {
    /// For a queue that is to be started with this MSI-X vector.
    #[must_use]
    pub fn new(vector: u16, doorbell: Arc<Doorbell>, home: HomeWaker) -> Self {
        Self {
            epoch: AtomicU64::new(1),
            acked: AtomicU64::new(0),
            drain: AtomicU64::new(1),
            stop: AtomicBool::new(false),
            state: AtomicU8::new(QueueState::Starting as u8),
            vector: vector.into(),
            doorbell,
            owner: Mutex::new(None),
            home,
            position: Mutex::new(Position::default()),
            counters: Counters::default(),
        }
    }

    // The transport's side.

    /// Something changed: windows, interrupts, bus mastering. The owner will follow.
    pub fn sync(&self) {
        // Only the transport's thread changes either. Drain first: who sees the new epoch must see that it drains.
        self.drain.store(self.epoch.load(Ordering::Acquire) + 1, Ordering::Release);
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.wake_owner();
    }

    /// Windows were added, or an eventfd changed: the owner follows, and what is in flight need not finish first.
    pub fn adopt(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.wake_owner();
    }

    /// Tells the owner to finish what is in flight and go.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.sync();
    }

    /// Changes the MSI-X vector.
    pub fn set_vector(&self, vector: u16) {
        self.vector.store(vector, Ordering::Release);
        self.sync();
    }

    /// The driver kicked.
    pub fn kick(&self) {
        self.counters.kicks.fetch_add(1, Ordering::Relaxed);
        self.doorbell.ring();
        self.wake_owner();
    }

    /// Whether the owner has followed everything, or is gone.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        match self.state() {
            QueueState::Stopped | QueueState::Failed | QueueState::Faulted => true,
            QueueState::Starting => false,
            QueueState::Running => {
                !self.stop.load(Ordering::Acquire)
                    && self.acked.load(Ordering::Acquire) == self.epoch.load(Ordering::Acquire)
            }
        }
    }

    /// Where the queue is in its life.
    #[must_use]
    pub fn state(&self) -> QueueState {
        match self.state.load(Ordering::Acquire) {
            0 => QueueState::Starting,
            1 => QueueState::Running,
            2 => QueueState::Stopped,
            3 => QueueState::Failed,
            _ => QueueState::Faulted,
        }
    }

    /// The queue, for those who ask over RPC.
    #[must_use]
    pub fn describe(&self, index: u16, size: u16) -> QueueDescription {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = match self.state() {
            QueueState::Starting => "starting",
            QueueState::Running => "running",
            QueueState::Stopped => "stopped",
            QueueState::Failed => "failed",
            QueueState::Faulted => "faulted",
        };
        let vector = Some(self.vector()).filter(|vector| *vector != NO_VECTOR);
        let Counters { requests, interrupts, kicks, stages } = &self.counters;
        let (requests, interrupts, kicks) = (read(requests), read(interrupts), read(kicks));
        let stages = stages.read();
        QueueDescription { index, size, state, vector, requests, interrupts, kicks, stages }
    }

    /// Where the ring stood when the queue stopped.
    #[must_use]
    pub fn position(&self) -> Position {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the queue has done.
    #[must_use]
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn wake_owner(&self) {
        if let Some(owner) = &*self.owner.lock().unwrap_or_else(PoisonError::into_inner) {
            owner.wake();
        }
    }

    // The owner's side.

    /// The owner runs, and is woken by this.
    pub(super) fn started(&self, owner: Waker) {
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = Some(owner);
        self.state.store(QueueState::Running as u8, Ordering::Release);
        self.home.wake();
    }

    /// The owner is gone, and holds nothing any more.
    pub(super) fn ended(&self, state: QueueState, position: Position) {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner) = position;
        *self.owner.lock().unwrap_or_else(PoisonError::into_inner) = None;
        self.state.store(state as u8, Ordering::Release);
        self.home.wake();
    }

    /// The epoch to compare with, once a pass, after the ring was looked at: what the driver made available after an
    /// answer to a change is then seen together with the change.
    #[inline]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    /// Whether everything in flight must have finished before an owner that has followed `followed` goes on.
    pub(super) fn must_drain(&self, followed: u64) -> bool {
        self.drain.load(Ordering::Acquire) > followed
    }

    pub(super) fn acknowledge(&self, epoch: u64) {
        self.acked.store(epoch, Ordering::Release);
        self.home.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn vector(&self) -> u16 {
        self.vector.load(Ordering::Acquire)
    }

    /// Whether a kick may fail to be seen, so that the ring must be looked at while asleep.
    pub(super) fn needs_fallback(&self) -> bool {
        self.doorbell.needs_fallback()
    }
}
