//! A normal shutdown: what is in the bdevs' caches is flushed before the host is told that it is over (Base, 3.6.1).
//!
//! The device is the caller. The flush is a poller beside the endpoint, with channels of its own: the host's queues may be
//! gone by then, and a bdev that hangs holds up nobody but the host that waits for it.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use reactor::{Poller, PollerSpec, Tick, Work};

use super::memory::GuestData;
use crate::{
    device::{Bus, Home, HomeWaker},
    dma::View,
    nvme::{
        controller::Controller,
        io::{Executor, Finished, Verdict},
        spec::{Command, NSID_ALL, Status, nvm},
    },
    stages::Untimed,
};

/// Between two looks at the flush: a host waits for seconds, and a bdev that hangs is to burn no core.
const PERIOD: Duration = Duration::from_millis(1);

/// A shutdown that the host has asked for.
#[derive(Default)]
pub(super) struct Shutdown {
    /// Set when the flush has ended; none until the reactor has taken it.
    is_flushed: Option<Arc<AtomicBool>>,
}

impl Shutdown {
    /// Whether nothing of it is under way.
    pub(super) fn is_over(&self) -> bool {
        self.is_flushed.as_ref().is_none_or(|is_flushed| is_flushed.load(Ordering::Acquire))
    }

    /// Whether it is over. Starts the flush first; the home is woken when that has ended, or is to be started again.
    pub(super) fn progress(&mut self, controller: &Controller, home: &Home, bus: &Bus) -> bool {
        if let Some(is_flushed) = &self.is_flushed {
            return is_flushed.load(Ordering::Acquire);
        }
        let is_flushed = Arc::<AtomicBool>::default();
        let (theirs, waker, view) = (Arc::clone(&is_flushed), home.waker.clone(), View::new(&bus.windows));
        let (subsystem, link) = (Arc::clone(controller.subsystem()), Arc::clone(controller.link()));
        let options = *controller.options();
        let (name, group) = (format!("{}_shutdown", home.group.name()), home.group.clone());
        let sent = home.reactors[0].send(Box::new(move |reactor| {
            reactor.add(PollerSpec::new(name, &group).period(PERIOD), |_cx| {
                let io = Executor::new(subsystem, link, options, 1);
                Box::new(Flush { io, view, waker, is_flushed: theirs, is_taken: false })
            });
        }));
        match sent {
            Ok(()) => self.is_flushed = Some(is_flushed),
            Err(_) => home.waker.wake(),
        }
        false
    }
}

/// The flush of every namespace.
struct Flush {
    io: Executor,
    /// No data come from it, but an executor asks for one.
    view: View,
    waker: HomeWaker,
    is_flushed: Arc<AtomicBool>,
    is_taken: bool,
}

impl Poller for Flush {
    fn poll(&mut self, now: Tick) -> Work {
        let Self { io, view, is_taken, .. } = self;
        let data = GuestData { view, admin: true };
        let mut ended = None;
        io.begin(now.raw(), &data);
        if !*is_taken {
            let flush = Command { opcode: nvm::FLUSH, nsid: NSID_ALL, ..Command::default() };
            match io.submit(0, &flush, &data, &mut Untimed) {
                Verdict::Done(status) => ended = Some(status),
                Verdict::InFlight => *is_taken = true,
                Verdict::Full => {}
            }
        }
        io.reap(&data, &mut Untimed, &mut |finished: Finished| ended = Some(finished.status));
        io.kick();
        let Some(status) = ended else { return Work::Idle };
        if status != Status::SUCCESS {
            tracing::warn!(?status, "a host shuts down, and its disks could not be flushed");
        }
        self.is_flushed.store(true, Ordering::Release);
        self.waker.wake();
        Work::Done
    }
}
