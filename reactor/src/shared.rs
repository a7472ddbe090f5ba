//! The part of a reactor that other threads see: mailbox, wake list, mode, counters.

use std::{
    fmt,
    os::fd::OwnedFd,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    Clock, Group, PollerId, Reactor, Tick,
    mailbox::Mailbox,
    sleep::SleepGate,
    stats::{PollerCell, PollerStats, ReactorStats},
};

/// Messages that can wait for a reactor.
pub const MAILBOX_CAPACITY: usize = 1024;
/// Woken pollers that are listed one by one; more, and the reactor looks at all of them.
const WAKE_LIST_CAPACITY: usize = 4096;

/// When a reactor polls, and when it sleeps.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// Polls while there is work and for `spin` after, then sleeps.
    Adaptive {
        /// How long it polls without work.
        spin: Duration,
    },
    /// Never sleeps.
    PollOnly,
    /// Sleeps as soon as there is nothing to do.
    Interrupt,
}

/// Something to be done on a reactor.
pub type Message = Box<dyn FnOnce(&mut Reactor) + Send>;

/// A message that was not taken; it comes back.
pub enum SendError {
    /// [`MAILBOX_CAPACITY`] messages wait already.
    Full(Message),
    /// The reactor has stopped.
    Stopped(Message),
}

impl SendError {
    /// The message.
    #[must_use]
    pub fn into_message(self) -> Message {
        match self {
            SendError::Full(message) | SendError::Stopped(message) => message,
        }
    }
}

impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "Full",
            SendError::Stopped(_) => "Stopped",
        })
    }
}

impl fmt::Display for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "the reactor's mailbox is full",
            SendError::Stopped(_) => "the reactor has stopped",
        })
    }
}

impl std::error::Error for SendError {}

/// Why a call gave nothing.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// The mailbox is full.
    #[error("the reactor's mailbox is full")]
    Full,
    /// The reactor has stopped.
    #[error("the reactor has stopped")]
    Stopped,
    /// What was called panicked, or the reactor stopped first.
    #[error("the reactor did not finish the call")]
    Lost,
}

/// Counters of a reactor, written by it alone.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) tid: AtomicU32,
    pub(crate) busy_ticks: AtomicU64,
    pub(crate) idle_ticks: AtomicU64,
    pub(crate) slept_ticks: AtomicU64,
    pub(crate) sleeps: AtomicU64,
    pub(crate) wakeups: AtomicU64,
    pub(crate) stalls: AtomicU64,
    pub(crate) faults: AtomicU64,
}

/// Adds to a counter that only the caller writes.
pub(crate) fn add(counter: &AtomicU64, more: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(more), Ordering::Relaxed);
}

/// What lives where: for those who ask.
#[derive(Debug, Default)]
pub(crate) struct Residents {
    pub(crate) groups: Vec<(Group, Tick, usize)>,
    pub(crate) pollers: Vec<Arc<PollerCell>>,
}

pub(crate) struct Shared {
    pub(crate) core: u32,
    pub(crate) clock: Clock,
    pub(crate) messages: Mailbox<Message>,
    pub(crate) woken: Mailbox<PollerId>,
    /// The wake list was full: all flags are to be looked at.
    pub(crate) overflow: AtomicBool,
    pub(crate) gate: SleepGate,
    pub(crate) bell: OwnedFd,
    pub(crate) stop: AtomicBool,
    pub(crate) stopped: AtomicBool,
    /// Spin time in ticks; 0 is Interrupt, MAX is PollOnly.
    pub(crate) spin_ticks: AtomicU64,
    pub(crate) stall_ticks: AtomicU64,
    pub(crate) counters: Counters,
    residents: Mutex<Residents>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("core", &self.core).finish_non_exhaustive()
    }
}

/// [`Shared::spin_ticks`] of a reactor that never sleeps.
pub(crate) const POLL_ONLY: u64 = u64::MAX;

impl Shared {
    pub(crate) fn new(core: u32, clock: Clock, bell: OwnedFd) -> Self {
        Self {
            core,
            clock,
            messages: Mailbox::new(MAILBOX_CAPACITY),
            woken: Mailbox::new(WAKE_LIST_CAPACITY),
            overflow: AtomicBool::new(false),
            gate: SleepGate::default(),
            bell,
            stop: AtomicBool::new(false),
            stopped: AtomicBool::new(false),
            spin_ticks: AtomicU64::new(0),
            stall_ticks: AtomicU64::new(u64::MAX),
            counters: Counters::default(),
            residents: Mutex::default(),
        }
    }

    pub(crate) fn residents(&self) -> MutexGuard<'_, Residents> {
        self.residents.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts a poller on the wake list.
    pub(crate) fn list(&self, id: PollerId) {
        if self.woken.push(id).is_err() {
            self.overflow.store(true, Ordering::Release);
        }
        self.ring();
    }

    /// Wakes the reactor if it sleeps.
    pub(crate) fn ring(&self) {
        if self.gate.must_ring() {
            // Cannot fail but for a counter at its end, and then the bell rings already.
            let _ = rustix::io::write(&self.bell, &1_u64.to_ne_bytes());
        }
    }

    /// Whether a sleeping reactor would miss something.
    pub(crate) fn has_something(&self) -> bool {
        self.messages.is_filled()
            || self.woken.is_filled()
            || self.overflow.load(Ordering::Acquire)
            || self.stop.load(Ordering::Acquire)
    }
}

/// A reactor, for other threads.
#[derive(Clone, Debug)]
pub struct Handle(Arc<Shared>);

impl Handle {
    pub(crate) fn new(shared: Arc<Shared>) -> Handle {
        Handle(shared)
    }

    /// Has something done on the reactor, after everything that was sent before by this thread.
    ///
    /// # Errors
    /// See [`SendError`].
    pub fn send(&self, message: Message) -> Result<(), SendError> {
        if self.0.stopped.load(Ordering::Acquire) {
            return Err(SendError::Stopped(message));
        }
        self.0.messages.push(message).map_err(SendError::Full)?;
        self.0.ring();
        Ok(())
    }

    /// Has something done on the reactor and waits for its answer. Never from a reactor.
    ///
    /// # Errors
    /// See [`CallError`].
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Reactor) -> R + Send + 'static,
    ) -> Result<R, CallError> {
        let (answer, wait) = std::sync::mpsc::sync_channel(1);
        let message: Message = Box::new(move |reactor| {
            // Fails only if the caller has died meanwhile.
            let _ = answer.send(f(reactor));
        });
        self.send(message).map_err(|error| match error {
            SendError::Full(_) => CallError::Full,
            SendError::Stopped(_) => CallError::Stopped,
        })?;
        wait.recv().map_err(|_dropped| CallError::Lost)
    }

    /// The core it runs on.
    #[must_use]
    pub fn core(&self) -> u32 {
        self.0.core
    }

    /// When it polls and when it sleeps.
    #[must_use]
    pub fn mode(&self) -> Mode {
        match self.0.spin_ticks.load(Ordering::Relaxed) {
            0 => Mode::Interrupt,
            POLL_ONLY => Mode::PollOnly,
            ticks => Mode::Adaptive { spin: self.0.clock.duration(ticks) },
        }
    }

    /// Changes that; takes effect within a pass.
    pub fn set_mode(&self, mode: Mode) {
        let ticks = match mode {
            Mode::Interrupt => 0,
            Mode::PollOnly => POLL_ONLY,
            Mode::Adaptive { spin } => self.0.clock.ticks(spin).clamp(1, POLL_ONLY - 1),
        };
        self.0.spin_ticks.store(ticks, Ordering::Relaxed);
        // A sleeping reactor comes up to see it.
        self.0.overflow.store(true, Ordering::Release);
        self.0.ring();
    }

    /// Sets how long a poll may take before it is called a stall.
    pub fn set_stall_limit(&self, limit: Duration) {
        self.0.stall_ticks.store(self.0.clock.ticks(limit).max(1), Ordering::Relaxed);
    }

    /// Its clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Its counters as they are now; no message is sent.
    #[must_use]
    pub fn stats(&self) -> ReactorStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let counters = &self.0.counters;
        ReactorStats {
            core: self.0.core,
            tid: counters.tid.load(Ordering::Relaxed),
            mode: self.mode(),
            asleep: self.0.gate.is_asleep(),
            busy_ticks: read(&counters.busy_ticks),
            idle_ticks: read(&counters.idle_ticks),
            slept_ticks: read(&counters.slept_ticks),
            sleeps: read(&counters.sleeps),
            wakeups: read(&counters.wakeups),
            stalls: read(&counters.stalls),
            faults: read(&counters.faults),
            groups: self
                .0
                .residents()
                .groups
                .iter()
                .map(|(group, since, _)| (group.clone(), *since))
                .collect(),
        }
    }

    /// Its pollers as they are now; no message is sent.
    #[must_use]
    pub fn pollers(&self) -> Vec<PollerStats> {
        let now = self.0.clock.now();
        self.0.residents().pollers.iter().map(|cell| cell.read(self.0.core, now)).collect()
    }

    /// Tells it to stop.
    pub fn stop(&self) {
        self.0.stop.store(true, Ordering::Release);
        self.0.ring();
    }
}
