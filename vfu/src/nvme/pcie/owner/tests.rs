//! An owner beside its control block, on a reactor driven by hand.

use std::sync::{Arc, OnceLock};

use reactor::{
    Clock, CoreMask, Group, Mode, Park, Pass, Poller, PollerSpec, Reactor, ReactorConfig, Tick, Work,
};

use super::{Owner, Start};
use crate::{
    device::{Bus, HomeWaker},
    nvme::{
        controller::ControllerOptions,
        link::{AnaStates, Link},
        pcie::{
            control::{Abort, Control, State, Wanted},
            doorbells::Doorbells,
            ring::Setup,
        },
        subsystem::{Subsystem, SubsystemOptions},
    },
};

/// An owner that is told of a change between its last poll and its sleep.
struct Disturbed {
    owner: Owner,
    control: Arc<Control>,
    is_told: bool,
}

impl Poller for Disturbed {
    fn poll(&mut self, now: Tick) -> Work {
        self.owner.poll(now)
    }

    fn park(&mut self, now: Tick) -> Park {
        if !std::mem::replace(&mut self.is_told, true) {
            self.control.sync();
        }
        self.owner.park(now)
    }

    fn unpark(&mut self) {
        self.owner.unpark();
    }
}

struct Home;

impl Poller for Home {
    fn poll(&mut self, _now: Tick) -> Work {
        Work::Idle
    }

    fn park(&mut self, _now: Tick) -> Park {
        Park::Wait
    }
}

/// Passes until there is nothing left to poll.
fn until_asleep(reactor: &mut Reactor) {
    let asleep = (0..100).any(|_| matches!(reactor.poll_once(), Pass::Sleepy(_)));
    assert!(asleep, "it never sleeps");
}

/// A queue whose memory is nowhere, on `reactor`; its control block.
fn start(reactor: &mut Reactor) -> Arc<Control> {
    start_from(reactor, None)
}

/// The same for one that comes from elsewhere.
fn start_from(reactor: &mut Reactor, from: Option<Arc<Control>>) -> Arc<Control> {
    let group = Group::new("test", CoreMask::of(0));
    let waker = OnceLock::new();
    reactor.add(PollerSpec::new("home", &group), |cx| {
        waker.set(cx.waker()).unwrap();
        Box::new(Home)
    });
    let home = HomeWaker::new(waker.into_inner().unwrap());
    let control = Control::new(home.clone(), Wanted::default());
    let start = Start {
        name: "queue".to_owned(),
        group: group.clone(),
        bus: Arc::new(Bus::new(1)),
        doorbells: Arc::new(Doorbells::new(false).unwrap()),
        control: Arc::clone(&control),
        subsystem: Subsystem::new(SubsystemOptions::new("nqn.2026-11.test:owner")),
        link: Arc::new(Link::new(1, Arc::new(AnaStates::default()), home)),
        options: ControllerOptions::default(),
        setup: Setup { qid: 1, size: 4, base: 0 },
        vector: None,
        from,
    };
    let theirs = Arc::clone(&control);
    reactor.add(PollerSpec::new("queue", &group), move |cx| {
        theirs.started(cx.waker());
        Box::new(Disturbed { owner: Owner::new(start, cx), control: theirs, is_told: false })
    });
    control
}

fn reactor() -> Reactor {
    let (clock, _hand) = Clock::fake();
    Reactor::new(ReactorConfig { mode: Mode::Interrupt, ..ReactorConfig::new(0, clock) }).unwrap()
}

#[test]
fn change_between_the_last_poll_and_the_sleep_is_followed() {
    let mut reactor = reactor();
    let control = start(&mut reactor);
    until_asleep(&mut reactor);
    assert!(control.is_settled());
}

#[test]
fn queue_that_is_stopped_in_its_sleep_goes() {
    let mut reactor = reactor();
    let control = start(&mut reactor);
    until_asleep(&mut reactor);
    control.stop();
    until_asleep(&mut reactor);
    assert_eq!(control.state(), State::Stopped);
}

#[test]
fn queue_that_moves_takes_along_what_was_to_be_aborted() {
    let mut reactor = reactor();
    let old = start(&mut reactor);
    until_asleep(&mut reactor);
    // One that it has answered, and one that came too late.
    old.abort(Abort { by: 1, sqid: 1, cid: 7 });
    until_asleep(&mut reactor);
    old.stop();
    old.abort(Abort { by: 2, sqid: 1, cid: 8 });
    until_asleep(&mut reactor);
    assert_eq!(old.state(), State::Stopped);
    let new = start_from(&mut reactor, Some(Arc::clone(&old)));
    until_asleep(&mut reactor);
    assert_eq!([new.take_aborted(1), new.take_aborted(2)], [Some(false); 2]);
    assert_eq!([old.take_aborted(1), old.take_aborted(2)], [None; 2], "told once");
}
