//! A reactor as other threads see it: messages, mode, counters, stop.
//!
//! The RPC thread, other reactors and pollers hold [`Handle`]s; none of these calls waits for the reactor, but
//! [`Handle::call`].

use std::cell::Cell;
use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use crossbeam::utils::CachePadded;

use crate::clock::Clock;
use crate::control::{Control, Mode};
use crate::mailbox::{Mailbox, Refused};
use crate::reactor::Reactor;
use crate::sleep::SleepGate;
use crate::stats::{PollerStats, ReactorCounters, ReactorStats};
use crate::wake_set::{SLOTS_MAX, WakeSet};

/// Messages that may wait for one reactor. Far more than RPCs and queue moves produce; a sender that finds it full has
/// outrun a stuck reactor.
pub const MAILBOX_CAPACITY: usize = 4096;

/// Runs once on the reactor's thread.
pub type Message = Box<dyn FnOnce(&mut Reactor) + Send>;

/// What a reactor and its handles share.
pub(crate) struct Shared {
    core: u32,
    clock: Clock,
    pub(crate) mailbox: CachePadded<Mailbox<Message>>,
    pub(crate) gate: CachePadded<SleepGate>,
    pub(crate) wakes: WakeSet,
    pub(crate) control: CachePadded<Control>,
    pub(crate) stall_limit_ticks: AtomicU64,
    /// The eventfd that ends the reactor's sleep.
    pub(crate) bell: OwnedFd,
    pub(crate) counters: ReactorCounters,
}

impl Shared {
    pub(crate) fn new(core: u32, clock: Clock, mode: Mode, stall_limit: Duration, bell: OwnedFd) -> Shared {
        Shared {
            core,
            mailbox: CachePadded::new(Mailbox::new(MAILBOX_CAPACITY)),
            gate: CachePadded::new(SleepGate::new()),
            wakes: WakeSet::new(SLOTS_MAX),
            control: CachePadded::new(Control::new(mode)),
            stall_limit_ticks: AtomicU64::new(clock.ticks(stall_limit)),
            bell,
            counters: ReactorCounters::new(clock.now()),
            clock,
        }
    }

    pub(crate) fn core(&self) -> u32 {
        self.core
    }

    pub(crate) fn clock(&self) -> &Clock {
        &self.clock
    }

    /// A waker has claimed a parked poller.
    pub(crate) fn wake(&self, slot: u32) {
        self.wakes.insert(slot);
        self.notify();
    }

    /// News was published: see that the reactor looks.
    fn notify(&self) {
        self.gate.notify(|| {
            // It can fail only where 2^64 - 2 rings were never read; the last of those is still there to be heard.
            let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes());
        });
    }
}

thread_local! {
    static ON_REACTOR: Cell<bool> = const { Cell::new(false) };
}

/// Notes that this thread runs a reactor from here on.
pub(crate) fn mark_reactor_thread() {
    ON_REACTOR.set(true);
}

/// A message that was not accepted; it is in there.
pub enum SendError {
    /// The mailbox is full: try again later.
    Full(Message),
    /// The reactor has stopped, or is stopping.
    Stopped(Message),
}

impl SendError {
    /// The message.
    pub fn into_message(self) -> Message {
        match self {
            SendError::Full(message) | SendError::Stopped(message) => message,
        }
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

impl fmt::Debug for SendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Full(_) => "Full",
            SendError::Stopped(_) => "Stopped",
        })
    }
}

impl std::error::Error for SendError {}

/// Why [`Handle::call`] has no answer.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum CallError {
    /// The mailbox is full.
    #[error("the reactor's mailbox is full")]
    Full,
    /// The reactor has stopped.
    #[error("the reactor has stopped")]
    Stopped,
    /// The reactor stopped before it ran the function, or the function panicked.
    #[error("the reactor dropped the call")]
    Lost,
    /// A reactor thread must not wait for a reactor.
    #[error("a reactor cannot wait for a reactor")]
    OnReactor,
}

/// A reactor, from any thread.
#[derive(Clone)]
pub struct Handle(Arc<Shared>);

impl Handle {
    pub(crate) fn new(shared: &Arc<Shared>) -> Handle {
        Handle(Arc::clone(shared))
    }

    /// Puts a message into the reactor's mailbox. Messages of one sender run in order. An accepted message is run, or
    /// dropped unrun if the reactor stops first: what it carries (a reply channel) tells the two apart.
    ///
    /// # Errors
    /// A full mailbox or a stopped reactor; the message comes back.
    pub fn send(&self, message: Message) -> Result<(), SendError> {
        self.0.mailbox.push(message).map_err(|refused| match refused {
            Refused::Full(message) => SendError::Full(message),
            Refused::Closed(message) => SendError::Stopped(message),
        })?;
        self.0.notify();
        Ok(())
    }

    /// Runs `f` on the reactor and waits for its answer: for control threads and tests.
    ///
    /// # Errors
    /// See [`CallError`]; on a reactor thread it refuses, as two reactors waiting for each other would never wake up.
    pub fn call<R: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Reactor) -> R + Send + 'static,
    ) -> Result<R, CallError> {
        if ON_REACTOR.get() {
            return Err(CallError::OnReactor);
        }
        let (reply, answer) = mpsc::sync_channel(1);
        let message = Box::new(move |reactor: &mut Reactor| {
            // The caller waits below; that it has gone all the same is its own affair.
            let _ = reply.send(f(reactor));
        });
        self.send(message).map_err(|error| match error {
            SendError::Full(_) => CallError::Full,
            SendError::Stopped(_) => CallError::Stopped,
        })?;
        answer.recv().map_err(|mpsc::RecvError| CallError::Lost)
    }

    /// The reactor's core.
    pub fn core(&self) -> u32 {
        self.0.core
    }

    /// The reactor's clock.
    pub fn clock(&self) -> &Clock {
        &self.0.clock
    }

    /// Its mode.
    pub fn mode(&self) -> Mode {
        self.0.control.read().mode()
    }

    /// Changes its mode, from its next pass on.
    pub fn set_mode(&self, mode: Mode) {
        self.0.control.set_mode(mode);
        self.0.notify();
    }

    /// How long a poll may hold the core before it is counted as a stall and told in the log.
    pub fn stall_limit(&self) -> Duration {
        self.0.clock.duration(self.0.stall_limit_ticks.load(Ordering::Relaxed))
    }

    /// Changes the stall limit.
    pub fn set_stall_limit(&self, limit: Duration) {
        self.0.stall_limit_ticks.store(self.0.clock.ticks(limit), Ordering::Relaxed);
    }

    /// Its counters, at this moment.
    pub fn stats(&self) -> ReactorStats {
        let now = self.0.clock.now();
        self.0.counters.snapshot(self.0.core, now, self.mode(), self.0.gate.is_asleep())
    }

    /// Its pollers with their counters, in the order of their coming.
    pub fn pollers(&self) -> Vec<PollerStats> {
        self.0.counters.pollers(self.0.core, self.0.clock.now())
    }

    /// Tells it to stop: it runs the messages that wait, drops its pollers, last come first, and ends. Does not wait.
    pub fn stop(&self) {
        self.0.control.stop();
        self.0.notify();
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle").field("core", &self.core()).finish_non_exhaustive()
    }
}
