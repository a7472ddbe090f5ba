//! A queue's owner on a reactor that is driven by hand: what happens between its last poll and its sleep.

use std::{
    cell::Cell,
    os::fd::BorrowedFd,
    rc::Rc,
    sync::atomic::{AtomicBool, AtomicUsize},
};

use reactor::{Clock, CoreMask, Group, Mode, Pass, Reactor, ReactorConfig};

use super::*;
use crate::{
    device::HomeWaker,
    dma::Protection,
    mock::{
        memory::Memory,
        ring::{Buffer, DriverRing, RingSetup},
        split::SplitDriver,
        transport::Areas,
    },
    virtio::{
        control::{Doorbell, DoorbellMode},
        device::HandlerError,
        queue::SplitRing,
    },
};

/// A handler that is done with every chain at once.
struct Prompt<F> {
    refreshed: Arc<AtomicUsize>,
    /// Called where the owner asks what is in flight: in its poll, after it has compared epochs. Told how often the handler was
    /// refreshed.
    asked: F,
}

impl<F: Fn(usize) + 'static> Handler for Prompt<F> {
    fn begin(&mut self, _now: u64, _view: &View) {}

    fn submit(&mut self, _chain: &Chain, _view: &View, _laps: &mut impl Laps) -> Verdict {
        Verdict::Done(0)
    }

    fn kick(&mut self) {}

    fn reap(&mut self, _view: &View, _laps: &mut impl Laps, _done: impl FnMut(u16, u32)) {}

    fn in_flight(&self) -> usize {
        (self.asked)(self.refreshed.load(Ordering::Relaxed));
        0
    }

    fn refresh(&mut self) {
        self.refreshed.fetch_add(1, Ordering::Relaxed);
    }

    fn is_in_flight(&self, _id: u16) -> bool {
        false
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// One that nobody disturbs.
fn prompt() -> Prompt<fn(usize)> {
    Prompt { refreshed: Arc::default(), asked: |_| {} }
}

fn reactor() -> Reactor {
    let (clock, _hand) = Clock::fake();
    Reactor::new(ReactorConfig { mode: Mode::Interrupt, ..ReactorConfig::new(0, clock) }).unwrap()
}

/// Passes until there is nothing left to poll.
fn until_asleep(reactor: &mut Reactor) {
    let asleep = (0..100).any(|_| matches!(reactor.poll_once(), Pass::Sleepy(_)));
    assert!(asleep, "it never sleeps");
}

/// What a queue is started with.
fn start_with<H: Handler>(
    reactor: &Reactor,
    control: &Arc<QueueControl>,
    handler: impl FnOnce() -> Result<H, HandlerError> + Send + 'static,
) {
    let config = QueueConfig { size: 2, ..QueueConfig::default() };
    start_on(reactor, control, (Bus::new(1), config), handler);
}

/// The same with a ring.
fn start_on<H: Handler>(
    reactor: &Reactor,
    control: &Arc<QueueControl>,
    (bus, config): (Bus, QueueConfig),
    handler: impl FnOnce() -> Result<H, HandlerError> + Send + 'static,
) {
    let start = Start {
        name: "queue".to_owned(),
        group: Group::new("test", CoreMask::of(0)),
        bus: Arc::new(bus),
        control: Arc::clone(control),
        layout: config.check().unwrap(),
        position: None,
        moderation: None,
        queue_size: 2,
        handler: Box::new(handler),
    };
    super::start::<SplitRing, H>(&reactor.handle(), start).unwrap();
}

/// A control block whose home is a poller that does nothing.
fn control(reactor: &mut Reactor) -> Arc<QueueControl> {
    struct Home;
    impl Poller for Home {
        fn poll(&mut self, _now: Tick) -> Work {
            Work::Idle
        }

        fn park(&mut self, _now: Tick) -> Park {
            Park::Wait
        }
    }
    let waker = Rc::new(Cell::new(None));
    let place = Rc::clone(&waker);
    let group = Group::new("home", CoreMask::of(0));
    reactor.add(PollerSpec::new("home", &group), move |cx| {
        place.set(Some(cx.waker()));
        Box::new(Home)
    });
    let doorbell = Arc::new(Doorbell::new(DoorbellMode::Trapped));
    Arc::new(QueueControl::new(crate::irq::NO_VECTOR, doorbell, HomeWaker::new(waker.take().unwrap())))
}

#[test]
fn change_between_the_last_poll_and_the_sleep_is_followed() {
    let mut reactor = reactor();
    let control = control(&mut reactor);
    let refreshed = Arc::new(AtomicUsize::new(0));
    let (theirs, count) = (Arc::clone(&control), Arc::clone(&refreshed));
    let is_told = Cell::new(false);
    // At the last question before the sleep, once the owner has followed the first change.
    let tell = move |refreshed| {
        if refreshed == 1 && !is_told.replace(true) {
            theirs.sync();
        }
    };
    start_with(&reactor, &control, move || Ok(Prompt { refreshed: count, asked: tell }));

    until_asleep(&mut reactor);

    assert_eq!(refreshed.load(Ordering::Relaxed), 2);
    assert!(control.is_settled());
}

#[test]
fn queue_that_is_stopped_in_its_sleep_goes() {
    let mut reactor = reactor();
    let control = control(&mut reactor);
    start_with(&reactor, &control, || Ok(prompt()));
    until_asleep(&mut reactor);
    assert_eq!(control.state(), QueueState::Running);

    control.stop();
    assert!(!control.is_settled());
    until_asleep(&mut reactor);

    assert_eq!(control.state(), QueueState::Stopped);
}

#[test]
fn queue_whose_handler_cannot_be_made_has_failed() {
    let mut reactor = reactor();
    let control = control(&mut reactor);
    let tried = Arc::new(AtomicBool::new(false));
    let theirs = Arc::clone(&tried);
    start_with::<Prompt<fn(usize)>>(&reactor, &control, move || {
        theirs.store(true, Ordering::Relaxed);
        Err(HandlerError("its bdev is gone".to_owned()))
    });
    until_asleep(&mut reactor);
    assert!(tried.load(Ordering::Relaxed));
    assert_eq!(control.state(), QueueState::Failed);
    assert!(control.is_settled());
}

#[test]
fn driver_that_wanted_no_interrupt_is_asked_again_a_pass_later_and_else_at_once() {
    let mut reactor = reactor();
    let control = control(&mut reactor);
    let mut memory = Memory::new(1 << 20).unwrap();
    let setup = RingSetup { size: 4, features: 0, indirect: None };
    let mut driver = SplitDriver::new(&mut memory, &setup).unwrap();
    let bus = Bus::new(1);
    let [region] = memory.regions() else { panic!("one region") };
    let file = memory.file().try_clone_to_owned().unwrap();
    let protection = Protection { read: true, write: true };
    bus.windows.map(region.address, region.len, protection, Some((file, region.offset))).unwrap();
    bus.set_bus_master(true);
    let Areas { desc, driver: avail, device } = driver.areas();
    let config = QueueConfig { size: 4, desc, driver: avail, device, features: 0 };
    start_on(&reactor, &control, (bus, config), || Ok(prompt()));
    until_asleep(&mut reactor);
    let interrupts = || control.counters().interrupts.load(Ordering::Relaxed);
    let data = memory.allocate(4096, 4096).unwrap();
    let request = |driver: &mut SplitDriver, reactor: &mut Reactor| {
        driver.add(&[Buffer::readable(data, 512)]).unwrap();
        driver.publish();
        control.kick();
        assert_eq!(reactor.poll_once(), Pass::Busy);
        assert!(driver.pop().unwrap().is_some());
    };

    driver.disable_interrupts();
    request(&mut driver, &mut reactor);
    until_asleep(&mut reactor);
    assert_eq!(interrupts(), 0);

    assert!(!driver.enable_interrupts());
    request(&mut driver, &mut reactor);
    assert_eq!(interrupts(), 0, "asked with the others, in the next pass");
    until_asleep(&mut reactor);
    assert_eq!(interrupts(), 1);

    request(&mut driver, &mut reactor);
    assert_eq!(interrupts(), 2, "at once");

    driver.disable_interrupts();
    request(&mut driver, &mut reactor);
    until_asleep(&mut reactor);
    assert_eq!(interrupts(), 2);
}
