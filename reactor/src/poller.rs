//! What runs on a reactor: the [`Poller`] contract, and what a poller is made with and from.
//!
//! Every queue, socket and backend of the target is a poller. A poller lives and dies on one thread; what it keeps from
//! its [`PollerCx`] is its only way to be found by others.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crate::clock::{Clock, Tick};
use crate::group::Group;
use crate::handle::{Handle, Shared};
use crate::reactor::Reactor;
use crate::wake_flag::WakeFlag;
use crate::waker::Waker;
use crate::watch::{Interest, Watch, WatchSet};

/// What a poll found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Work {
    /// Nothing to do.
    Idle,
    /// Something was done; its time counts as busy.
    Busy,
    /// Remove me, and let me leave ([`Poller::leave`]): drop me, as a rule.
    Done,
}

/// A poller's answer to "may I stop polling you?".
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Park {
    /// Nothing would wake me: poll me in every pass. The reactor never sleeps beside such a poller, and asks again
    /// after another spin.
    Never,
    /// The second look found work: go on polling.
    Ready,
    /// Armed: only my waker or a watched descriptor brings me back.
    Wait,
    /// As `Wait`, but poll me at this tick at the latest: the fallback for a peer that may not notify.
    Until(Tick),
}

/// A piece of work that is asked again and again whether it has something to do.
///
/// Called on the reactor's thread only, never re-entered. Each call is bounded (it stops at a work limit of its own),
/// never blocks, and on the I/O path neither allocates nor locks nor logs. A poller that panics is dropped and its
/// fault hook called; the reactor goes on with the others.
pub trait Poller {
    /// Does what there is to do, up to the poller's limit. `now` is the reactor's last reading of the clock: good to
    /// within the polls since.
    fn poll(&mut self, now: Tick) -> Work;

    /// Its poll comes soon, and another poller is at work: has the processor fetch the lines it will look at first. A
    /// hint, given only where pollers find work; nothing is touched.
    fn prefetch(&self) {}

    /// The poller has been idle for its spin time (and in interrupt mode or without spin: for one poll). Before it
    /// answers `Wait` or `Until`, it must turn its notifications on, issue a sequentially consistent fence, and look at
    /// every source once more; its own waker works from before this call. A wake that comes during the call brings it
    /// back.
    fn park(&mut self, now: Tick) -> Park {
        let _ = now;
        Park::Never
    }

    /// Called before the first poll after a park that was accepted: turn notifications off again.
    fn unpark(&mut self) {}

    /// Called instead of a drop on a poller that is [`Work::Done`] and has been taken out of `reactor`: the place to go on
    /// elsewhere, with what is not tied to this reactor.
    fn leave(self: Box<Self>, reactor: &mut Reactor) {
        let _ = reactor;
    }
}

/// How long a poller is polled without finding work before it is asked to park. Means nothing for timed pollers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Spin {
    /// As the reactor's mode says.
    #[default]
    Default,
    /// Not at all: for pollers whose poll is a system call on watched descriptors. In every mode, poll-only included.
    None,
    /// This long in adaptive mode; in the other modes as `Default`.
    For(Duration),
}

/// Called with the text of a poller's panic.
pub type FaultHook = Box<dyn FnOnce(&str) + Send>;

/// What a reactor must know to take a poller.
pub struct PollerSpec {
    /// Shown by the RPCs and in the log.
    pub name: String,
    /// The group it counts for.
    pub group: Group,
    /// A timed poller: polled once a period, from one period after it was added. Zero is as good as `None`.
    pub period: Option<Duration>,
    /// How patient it is polled.
    pub spin: Spin,
    /// Called on the reactor if the poller panics, after it has been dropped.
    pub on_fault: Option<FaultHook>,
}

impl PollerSpec {
    /// An active poller with the reactor's spin.
    pub fn new(name: impl Into<String>, group: &Group) -> PollerSpec {
        PollerSpec {
            name: name.into(),
            group: group.clone(),
            period: None,
            spin: Spin::Default,
            on_fault: None,
        }
    }

    /// Makes it a timed poller.
    #[must_use]
    pub fn period(self, period: Duration) -> PollerSpec {
        PollerSpec { period: Some(period), ..self }
    }

    /// Sets how long it spins.
    #[must_use]
    pub fn spin(self, spin: Spin) -> PollerSpec {
        PollerSpec { spin, ..self }
    }

    /// Sets what is called if it panics.
    #[must_use]
    pub fn on_fault(self, hook: impl FnOnce(&str) + Send + 'static) -> PollerSpec {
        PollerSpec { on_fault: Some(Box::new(hook)), ..self }
    }
}

impl fmt::Debug for PollerSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerSpec")
            .field("name", &self.name)
            .field("group", &self.group)
            .field("period", &self.period)
            .field("spin", &self.spin)
            .finish_non_exhaustive()
    }
}

/// Names a poller on its reactor; never used again after the poller has gone.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct PollerId {
    pub(crate) slot: u32,
    pub(crate) generation: u32,
}

/// A poller's ties to its reactor: given to the function that builds it, kept for as long as it likes.
#[derive(Clone)]
pub struct PollerCx(Rc<Ties>);

struct Ties {
    id: PollerId,
    shared: Arc<Shared>,
    watches: Rc<WatchSet>,
    flag: Arc<WakeFlag>,
    fence: Rc<Cell<bool>>,
}

impl PollerCx {
    pub(crate) fn new(
        id: PollerId,
        shared: &Arc<Shared>,
        watches: &Rc<WatchSet>,
        flag: &Arc<WakeFlag>,
        fence: &Rc<Cell<bool>>,
    ) -> PollerCx {
        PollerCx(Rc::new(Ties {
            id,
            shared: Arc::clone(shared),
            watches: Rc::clone(watches),
            flag: Arc::clone(flag),
            fence: Rc::clone(fence),
        }))
    }

    /// Has the reactor execute a sequentially consistent fence between this poll and the next: one for all pollers that have
    /// asked for it, where each of them would wait until its own stores are done. Not for timed pollers, which a wake may have
    /// polled twice in a pass.
    #[inline]
    pub fn fence_before_next_poll(&self) {
        self.0.fence.set(true);
    }

    /// What brings this poller back from any thread.
    pub fn waker(&self) -> Waker {
        Waker::new(self.0.id.slot, &self.0.flag, &self.0.shared)
    }

    /// Lets readiness of `fd` bring this poller back, until the [`Watch`] is dropped or the poller is removed.
    ///
    /// # Errors
    /// `EMFILE` where the process has no descriptor left for the duplicate, `EPERM` for a descriptor that epoll cannot
    /// watch (a plain file), and what else `epoll_ctl` reports.
    pub fn watch(&self, fd: BorrowedFd<'_>, interest: Interest) -> io::Result<Watch> {
        self.0.watches.watch(self.0.id, fd, interest)
    }

    /// The reactor's handle.
    pub fn handle(&self) -> Handle {
        Handle::new(&self.0.shared)
    }

    /// The poller's id.
    pub fn id(&self) -> PollerId {
        self.0.id
    }

    /// The reactor's clock.
    pub fn clock(&self) -> &Clock {
        self.0.shared.clock()
    }
}

impl fmt::Debug for PollerCx {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PollerCx").field("id", &self.0.id).finish_non_exhaustive()
    }
}
