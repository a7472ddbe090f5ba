//! What a controller, on its home reactor, and the owner of a completion queue, on another, say to each other.
//!
//! As in virtio: the home changes what it wants, bumps the epoch and wakes the owner; the owner sees the epoch at the
//! start of a pass, finishes what is in flight, follows, and acknowledges.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
};

use reactor::Waker;

use super::{
    doorbells::Buffers,
    remote::Errands,
    ring::{Cq, Setup, Sq},
};
use crate::{device::HomeWaker, moderation::Moderation};

/// Where a completion queue is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum State {
    /// On its way to its reactor.
    Starting,
    /// Works.
    Running,
    /// Has stopped as it was told; holds nothing.
    Stopped,
    /// Its owner panicked.
    Failed,
}

/// What the home wants of an owner.
#[derive(Clone, Debug, Default)]
pub(super) struct Wanted {
    /// The submission queues.
    pub(super) sqs: Vec<Setup>,
    /// Shadow doorbells.
    pub(super) buffers: Option<Buffers>,
    /// How its interrupts are held back.
    pub(super) moderation: Option<Moderation>,
}

/// A completion queue with its submission queues, as an owner leaves them to another.
pub(super) struct Rings {
    pub(super) cq: Cq,
    pub(super) sqs: Vec<Sq>,
    /// Completions that could not be written.
    pub(super) remote: Option<Box<Errands>>,
}

impl fmt::Debug for Rings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Rings").field("cq", &self.cq).field("sqs", &self.sqs).finish_non_exhaustive()
    }
}

/// A command to be aborted.
#[derive(Clone, Copy, Debug)]
pub(super) struct Abort {
    /// The Abort command's identifier.
    pub(super) by: u16,
    /// Submission queue and identifier of the command.
    pub(super) sqid: u16,
    pub(super) cid: u16,
}

/// The two-way control block of one completion queue.
#[derive(Debug)]
pub(super) struct Control {
    epoch: AtomicU64,
    acked: AtomicU64,
    /// The change for which only answers of the client are awaited.
    awaited: AtomicU64,
    stop: AtomicBool,
    /// Nobody waits for what is left of its commands: the controller is reset.
    discard: AtomicBool,
    state: AtomicU8,
    owner: Mutex<Option<Waker>>,
    home: HomeWaker,
    wanted: Mutex<Wanted>,
    /// Commands that the host wants aborted, and whether there are any.
    aborts: Mutex<Vec<Abort>>,
    has_aborts: AtomicBool,
    /// What became of those: the identifier of each Abort, and whether it aborted.
    aborted: Mutex<Vec<(u16, bool)>>,
    /// What the owner left when it stopped.
    rings: Mutex<Option<Rings>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Control {
    pub(super) fn new(home: HomeWaker, wanted: Wanted) -> Arc<Self> {
        Arc::new(Self {
            epoch: AtomicU64::new(1),
            acked: AtomicU64::new(0),
            awaited: AtomicU64::new(0),
            stop: AtomicBool::new(false),
            discard: AtomicBool::new(false),
            state: AtomicU8::new(State::Starting as u8),
            owner: Mutex::new(None),
            home,
            wanted: Mutex::new(wanted),
            aborts: Mutex::default(),
            has_aborts: AtomicBool::new(false),
            aborted: Mutex::default(),
            rings: Mutex::new(None),
        })
    }

    // The home's side.

    /// Changes what is wanted; the owner will follow.
    pub(super) fn want(&self, change: impl FnOnce(&mut Wanted)) {
        change(&mut lock(&self.wanted));
        self.sync();
    }

    /// Something changed outside: windows, interrupts, namespaces.
    pub(super) fn sync(&self) {
        self.epoch.fetch_add(1, Ordering::AcqRel);
        self.wake();
    }

    pub(super) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.sync();
    }

    /// The same, and nobody waits for what is left of its commands.
    pub(super) fn discard(&self) {
        self.discard.store(true, Ordering::Release);
        self.stop();
    }

    /// A doorbell was rung by a message.
    pub(super) fn wake(&self) {
        if let Some(owner) = &*lock(&self.owner) {
            owner.wake();
        }
    }

    /// Has the owner abort a command; [`Self::take_aborted`] says what became of it.
    pub(super) fn abort(&self, abort: Abort) {
        lock(&self.aborts).push(abort);
        self.has_aborts.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether an Abort did, once that is known.
    pub(super) fn take_aborted(&self, by: u16) -> Option<bool> {
        let mut aborted = lock(&self.aborted);
        let at = aborted.iter().position(|&(one, _)| one == by)?;
        Some(aborted.swap_remove(at).1)
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            0 => State::Starting,
            1 => State::Running,
            2 => State::Stopped,
            _ => State::Failed,
        }
    }

    /// Whether the owner has followed everything, or is gone.
    pub(super) fn is_settled(&self) -> bool {
        match self.state() {
            State::Stopped | State::Failed => true,
            State::Starting => false,
            State::Running => {
                !self.stop.load(Ordering::Acquire)
                    && self.acked.load(Ordering::Acquire) == self.epoch.load(Ordering::Acquire)
            }
        }
    }

    /// Whether the owner follows as soon as the client has answered its messages. A client may do so only when it is
    /// answered itself: QEMU's processor waits with the lock that its DMA needs.
    pub(super) fn awaits_client(&self) -> bool {
        self.state() == State::Running
            && self.awaited.load(Ordering::Acquire) == self.epoch.load(Ordering::Acquire)
    }

    // The owner's side.

    /// Takes over what an owner left which has stopped to start again here: its rings, and what was asked of it.
    pub(super) fn succeed(&self, old: &Self) -> Option<Rings> {
        lock(&self.aborted).append(&mut lock(&old.aborted));
        let aborts = std::mem::take(&mut *lock(&old.aborts));
        self.has_aborts.fetch_or(!aborts.is_empty(), Ordering::AcqRel);
        lock(&self.aborts).extend(aborts);
        lock(&old.rings).take()
    }

    pub(super) fn leave(&self, rings: Rings) {
        *lock(&self.rings) = Some(rings);
    }

    pub(super) fn started(&self, owner: Waker) {
        *lock(&self.owner) = Some(owner);
        self.state.store(State::Running as u8, Ordering::Release);
        self.home.wake();
    }

    pub(super) fn ended(&self, state: State) {
        *lock(&self.owner) = None;
        self.state.store(state as u8, Ordering::Release);
        self.home.wake();
    }

    #[inline]
    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Ordering::Acquire)
    }

    pub(super) fn acknowledge(&self, epoch: u64) {
        self.awaited.store(0, Ordering::Release);
        self.acked.store(epoch, Ordering::Release);
        self.home.wake();
    }

    /// Says that only the client's answers are missing to follow.
    pub(super) fn await_client(&self, epoch: u64) {
        if self.awaited.swap(epoch, Ordering::AcqRel) != epoch {
            self.home.wake();
        }
    }

    /// Whether that was said of the change that is wanted now.
    pub(super) fn is_awaiting(&self) -> bool {
        self.awaited.load(Ordering::Acquire) == self.epoch()
    }

    #[inline]
    pub(super) fn has_aborts(&self) -> bool {
        self.has_aborts.load(Ordering::Acquire)
    }

    /// Takes the commands to be aborted, and says whether each was; those of which nothing can be said yet stay.
    pub(super) fn settle_aborts(&self, mut each: impl FnMut(Abort) -> Option<bool>) {
        self.has_aborts.store(false, Ordering::Release);
        let aborts = std::mem::take(&mut *lock(&self.aborts));
        for abort in aborts {
            match each(abort) {
                Some(outcome) => lock(&self.aborted).push((abort.by, outcome)),
                None => {
                    lock(&self.aborts).push(abort);
                    self.has_aborts.store(true, Ordering::Release);
                }
            }
        }
        self.home.wake();
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    pub(super) fn is_discarding(&self) -> bool {
        self.discard.load(Ordering::Acquire)
    }

    pub(super) fn wanted(&self) -> Wanted {
        lock(&self.wanted).clone()
    }
}
