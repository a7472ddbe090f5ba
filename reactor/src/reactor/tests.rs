//! Reactors driven by hand on one thread, with a fake clock: every ordering that matters.

mod counting;
mod faults;
mod messages;
mod parking;
mod timing;

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::Duration;

use super::{Pass, Reactor, ReactorConfig};
use crate::clock::{Clock, FakeClock, Tick};
use crate::control::Mode;
use crate::cpumask::CoreMask;
use crate::group::Group;
use crate::poller::{Park, Poller, PollerCx, PollerId, PollerSpec, Work};

const SPIN: Duration = Duration::from_micros(20);

fn reactor(mode: Mode) -> (Reactor, FakeClock) {
    let (clock, hand) = Clock::fake();
    let config = ReactorConfig { mode, ..ReactorConfig::new(0, clock) };
    (Reactor::new(config).unwrap(), hand)
}

fn adaptive() -> (Reactor, FakeClock) {
    reactor(Mode::Adaptive { spin: SPIN })
}

fn group() -> Group {
    Group::new("test", CoreMask::of(0))
}

/// A poller that a test holds by the other end: it does as it is told and notes what happens to it.
struct Probe {
    polls: Cell<u32>,
    hints: Cell<u32>,
    parks: Cell<u32>,
    unparks: Cell<u32>,
    /// Polls that will still find work.
    work: Cell<u32>,
    park: Cell<Park>,
    done: Cell<bool>,
    dropped: Cell<bool>,
    /// Runs inside each poll.
    in_poll: RefCell<Box<dyn FnMut()>>,
    /// Runs inside each park.
    in_park: RefCell<Box<dyn FnMut()>>,
    /// Runs inside each unpark.
    in_unpark: RefCell<Box<dyn FnMut()>>,
    cx: RefCell<Option<PollerCx>>,
}

impl Probe {
    fn new(park: Park) -> Rc<Probe> {
        Rc::new(Probe {
            polls: Cell::new(0),
            hints: Cell::new(0),
            parks: Cell::new(0),
            unparks: Cell::new(0),
            work: Cell::new(0),
            park: Cell::new(park),
            done: Cell::new(false),
            dropped: Cell::new(false),
            in_poll: RefCell::new(Box::new(|| ())),
            in_park: RefCell::new(Box::new(|| ())),
            in_unpark: RefCell::new(Box::new(|| ())),
            cx: RefCell::new(None),
        })
    }

    fn join(self: &Rc<Self>, reactor: &mut Reactor, spec: PollerSpec) -> PollerId {
        reactor.add(spec, |cx| {
            *self.cx.borrow_mut() = Some(cx.clone());
            Box::new(ProbePoller(Rc::clone(self)))
        })
    }

    fn cx(&self) -> PollerCx {
        self.cx.borrow().clone().unwrap()
    }

    fn on_poll(&self, action: impl FnMut() + 'static) {
        *self.in_poll.borrow_mut() = Box::new(action);
    }
}

struct ProbePoller(Rc<Probe>);

impl Poller for ProbePoller {
    fn poll(&mut self, _now: Tick) -> Work {
        let probe = &self.0;
        probe.polls.set(probe.polls.get() + 1);
        (probe.in_poll.borrow_mut())();
        let work = probe.work.get();
        probe.work.set(work.saturating_sub(1));
        match (probe.done.get(), work) {
            (true, _) => Work::Done,
            (false, 0) => Work::Idle,
            (false, _) => Work::Busy,
        }
    }

    fn prefetch(&self) {
        self.0.hints.set(self.0.hints.get() + 1);
    }

    fn park(&mut self, _now: Tick) -> Park {
        self.0.parks.set(self.0.parks.get() + 1);
        (self.0.in_park.borrow_mut())();
        self.0.park.get()
    }

    fn unpark(&mut self) {
        self.0.unparks.set(self.0.unparks.get() + 1);
        (self.0.in_unpark.borrow_mut())();
    }
}

impl Drop for ProbePoller {
    fn drop(&mut self) {
        self.0.dropped.set(true);
    }
}

/// Adds a probe that spins as the reactor does.
fn probe(reactor: &mut Reactor, park: Park) -> Rc<Probe> {
    let probe = Probe::new(park);
    probe.join(reactor, PollerSpec::new("probe", &group()));
    probe
}

/// Adds a probe and lets it run out of patience.
fn parked_probe(reactor: &mut Reactor, hand: &FakeClock, park: Park) -> Rc<Probe> {
    let probe = probe(reactor, park);
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 1);
    probe
}

/// That many passes by hand.
fn poll(reactor: &mut Reactor, passes: usize) {
    for _ in 0..passes {
        reactor.poll_once();
    }
}

/// That many passes as a running reactor makes them.
fn pass_often(reactor: &mut Reactor, passes: usize) {
    for _ in 0..passes {
        reactor.pass();
    }
}
