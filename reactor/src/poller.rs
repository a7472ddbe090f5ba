//! What a reactor runs, and how it is woken.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use rustix::event::epoll::{self, EventData, EventFlags};

use crate::{Clock, Group, Handle, Tick, shared::Shared};

/// What a poll did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing was there.
    Idle,
    /// Something was done.
    Busy,
    /// The poller is finished: remove and drop it.
    Done,
}

/// What a poller says when it is asked to sleep.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Park {
    /// It cannot be woken: it is polled every pass.
    Never,
    /// It found work when it looked again: it goes on.
    Ready,
    /// It is armed: a waker or a watched descriptor brings it back.
    Wait,
    /// As [`Park::Wait`], or this time, whichever comes first.
    Until(Tick),
}

/// Something that a reactor runs, on the reactor's thread only.
pub trait Poller {
    /// Does what there is to do, within bounds. Never blocks.
    fn poll(&mut self, now: Tick) -> Work;

    /// Called when it was idle for its whole spin time: it enables its notifications, fences, and looks again.
    fn park(&mut self, now: Tick) -> Park {
        let _ = now;
        Park::Never
    }

    /// Called before the first poll after it was parked.
    fn unpark(&mut self) {}
}

/// How long a poller is polled without work before it is asked to park.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Spin {
    /// As the reactor's mode says.
    #[default]
    Default,
    /// Not at all: it has nothing to look at but what wakes it, such as a socket.
    None,
    /// So long.
    For(Duration),
}

/// Called with a panic's text when a poller was dropped for it.
pub(crate) type FaultHook = Box<dyn FnOnce(&str) + Send>;

/// How a poller is to be run.
pub struct PollerSpec {
    /// Its name, in statistics and in the log.
    pub name: String,
    /// What it belongs to.
    pub group: Group,
    /// Run it at this interval only.
    pub period: Option<Duration>,
    /// How long it is polled without work.
    pub spin: Spin,
    /// Called on the reactor with the panic's text, after the poller was dropped.
    pub on_fault: Option<FaultHook>,
}

impl PollerSpec {
    /// A poller that is run every pass.
    #[must_use]
    pub fn new(name: impl Into<String>, group: &Group) -> PollerSpec {
        PollerSpec {
            name: name.into(),
            group: group.clone(),
            period: None,
            spin: Spin::Default,
            on_fault: None,
        }
    }

    /// Run it at this interval only.
    #[must_use]
    pub fn period(mut self, period: Duration) -> PollerSpec {
        self.period = Some(period);
        self
    }

    /// Sets how long it is polled without work.
    #[must_use]
    pub fn spin(mut self, spin: Spin) -> PollerSpec {
        self.spin = spin;
        self
    }

    /// Sets what is called if it panics.
    #[must_use]
    pub fn on_fault(mut self, hook: impl FnOnce(&str) + Send + 'static) -> PollerSpec {
        self.on_fault = Some(Box::new(hook));
        self
    }
}

/// A poller of one reactor. Slots are reused; the generation tells a later tenant.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PollerId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

impl PollerId {
    pub(crate) fn to_data(self) -> EventData {
        EventData::new_u64(u64::from(self.generation) << 32 | u64::from(self.slot))
    }

    pub(crate) fn from_data(data: EventData) -> PollerId {
        let word = data.u64();
        let half = |word: u64| u32::try_from(word & u64::from(u32::MAX)).unwrap_or(0);
        PollerId { slot: half(word), generation: half(word >> 32) }
    }
}

/// A poller's flag in its reactor's wake list.
#[derive(Debug)]
pub(crate) struct WakeFlag {
    pub(crate) id: PollerId,
    /// It is in the list.
    pub(crate) listed: AtomicBool,
}

/// Brings a poller back from any thread.
#[derive(Clone, Debug)]
pub struct Waker {
    pub(crate) flag: Arc<WakeFlag>,
    pub(crate) shared: Arc<Shared>,
}

impl Waker {
    /// Has the poller polled soon. What was done before this call is seen by that poll.
    pub fn wake(&self) {
        // Listed already: the reactor will take it off the list before it polls, and so see what we did.
        if self.flag.listed.swap(true, Ordering::AcqRel) {
            return;
        }
        self.shared.list(self.flag.id);
    }
}

/// What readiness of a descriptor wakes for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Interest {
    /// None, for now.
    None,
    /// Something to read, or an end.
    Read,
    /// Room to write.
    Write,
    /// Both.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> EventFlags {
        match self {
            Interest::None => EventFlags::empty(),
            Interest::Read => EventFlags::IN | EventFlags::RDHUP,
            Interest::Write => EventFlags::OUT,
            Interest::ReadWrite => EventFlags::IN | EventFlags::RDHUP | EventFlags::OUT,
        }
    }
}

/// A watched descriptor, level-triggered; dropped, it is watched no more.
#[derive(Debug)]
pub struct Watch {
    epoll: Rc<OwnedFd>,
    fd: OwnedFd,
    id: PollerId,
}

impl Watch {
    /// Changes what it wakes for.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_interest(&self, interest: Interest) -> io::Result<()> {
        Ok(epoll::modify(&*self.epoll, &self.fd, self.id.to_data(), interest.flags())?)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Closing our own duplicate would not end the registration while others hold the file open.
        let _ = epoll::delete(&*self.epoll, &self.fd);
    }
}

/// Where a poller runs; kept by it, on its thread.
#[derive(Clone, Debug)]
pub struct PollerCx {
    pub(crate) epoll: Rc<OwnedFd>,
    pub(crate) waker: Waker,
    pub(crate) clock: Clock,
}

impl PollerCx {
    /// What brings this poller back.
    #[must_use]
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// Watches a descriptor: readiness brings this poller back. The descriptor is duplicated, so that the registration
    /// stays right whatever the caller does with its own.
    ///
    /// # Errors
    /// The kernel's: no descriptors left, or a file that cannot be polled.
    pub fn watch(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<Watch> {
        let fd = fd.try_clone_to_owned()?;
        let id = self.id();
        epoll::add(&*self.epoll, fd.as_fd(), id.to_data(), interest.flags())?;
        Ok(Watch { epoll: Rc::clone(&self.epoll), fd, id })
    }

    /// The reactor's handle.
    #[must_use]
    pub fn handle(&self) -> Handle {
        Handle::new(Arc::clone(&self.waker.shared))
    }

    /// This poller.
    #[must_use]
    pub fn id(&self) -> PollerId {
        self.waker.flag.id
    }

    /// The reactor's clock.
    #[must_use]
    pub fn clock(&self) -> &Clock {
        &self.clock
    }
}
