//! Spinning, parking, waking, sleeping, and the modes that decide about them.

use super::*;
use crate::poller::Spin;
use crate::stats::PollerState;
use crate::watch::Interest;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

#[test]
fn poller_parks_when_its_spin_has_passed_and_not_before() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Wait);
    hand.advance(SPIN - Duration::from_nanos(1));
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert_eq!(probe.parks.get(), 0);
    hand.advance(Duration::from_nanos(1));
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
    assert_eq!((probe.polls.get(), probe.parks.get()), (2, 1));
    assert_eq!(reactor.handle().pollers()[0].state, PollerState::Parked);
}

#[test]
fn work_starts_the_spin_anew() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Wait);
    hand.advance(SPIN - Duration::from_nanos(1));
    probe.work.set(1);
    assert_eq!(reactor.poll_once(), Pass::Busy);
    hand.advance(SPIN - Duration::from_nanos(1));
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 0);
    hand.advance(Duration::from_nanos(1));
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 1);
}

#[test]
fn poller_that_found_work_has_the_one_after_the_next_fetch_what_it_will_look_at() {
    let (mut reactor, _hand) = adaptive();
    let probes = [(); 4].map(|()| probe(&mut reactor, Park::Never));
    reactor.poll_once();
    assert_eq!(probes.each_ref().map(|probe| probe.hints.get()), [0; 4]);
    probes[1].work.set(1);
    probes[3].work.set(1);
    reactor.poll_once();
    assert_eq!(probes.each_ref().map(|probe| probe.hints.get()), [0, 0, 0, 1]);
}

#[test]
fn parked_poller_is_polled_no_more() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    let polls = probe.polls.get();
    hand.advance(Duration::from_secs(3600));
    poll(&mut reactor, 10);
    assert_eq!(probe.polls.get(), polls);
}

#[test]
fn waker_brings_a_parked_poller_back_for_a_whole_spin() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    let polls = probe.polls.get();
    probe.cx().waker().wake();
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert_eq!((probe.unparks.get(), probe.polls.get()), (1, polls + 1));
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 2);
}

#[test]
fn wake_of_an_awake_poller_changes_nothing() {
    let (mut reactor, _hand) = adaptive();
    let probe = probe(&mut reactor, Park::Wait);
    probe.cx().waker().wake();
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.polls.get()), (0, 1));
}

/// The wake comes after the poller's last look at its sources and before it is off the list.
#[test]
fn wake_during_park_brings_the_poller_back_in_the_next_pass() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Wait);
    let waker = probe.cx().waker();
    *probe.in_park.borrow_mut() = Box::new(move || waker.wake());
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!((probe.parks.get(), probe.unparks.get()), (1, 0));
    assert!(!reactor.announce_sleep(), "the wake must keep the reactor from sleeping");
    reactor.poll_once();
    assert_eq!(probe.unparks.get(), 1);
}

#[test]
fn wake_during_a_park_that_found_work_does_no_harm() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Ready);
    let waker = probe.cx().waker();
    *probe.in_park.borrow_mut() = Box::new(move || waker.wake());
    hand.advance(SPIN);
    reactor.poll_once();
    reactor.poll_once();
    assert_eq!((probe.polls.get(), probe.unparks.get()), (2, 0));
}

#[test]
fn poller_that_found_work_while_parking_spins_on() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Ready);
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert_eq!((probe.polls.get(), probe.parks.get()), (2, 1));
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 2);
}

#[test]
fn poller_that_cannot_be_woken_keeps_the_reactor_awake() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Never);
    for _ in 0..3 {
        hand.advance(Duration::from_secs(1));
        assert_eq!(reactor.poll_once(), Pass::Idle);
    }
    assert_eq!(probe.polls.get(), 3);
}

#[test]
fn message_between_announcement_and_wait_ends_the_sleep() {
    let (mut reactor, _hand) = adaptive();
    assert!(reactor.announce_sleep());
    reactor.handle().send(Box::new(|_| ())).unwrap();
    // Would wait for ever if the message had not rung.
    reactor.sleep(None);
    assert_eq!(reactor.poll_once(), Pass::Busy);
}

#[test]
fn message_before_the_announcement_prevents_the_sleep() {
    let (mut reactor, _hand) = adaptive();
    reactor.handle().send(Box::new(|_| ())).unwrap();
    assert!(!reactor.announce_sleep());
    assert!(!reactor.handle().stats().asleep);
}

#[test]
fn wake_between_announcement_and_wait_ends_the_sleep() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    assert!(reactor.announce_sleep());
    assert!(reactor.handle().stats().asleep);
    probe.cx().waker().wake();
    reactor.sleep(None);
    reactor.poll_once();
    assert_eq!(probe.unparks.get(), 1);
}

#[test]
fn stop_and_change_of_mode_end_the_sleep() {
    let (mut reactor, _hand) = adaptive();
    assert!(reactor.announce_sleep());
    reactor.handle().set_mode(Mode::PollOnly);
    reactor.sleep(None);
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert!(reactor.announce_sleep());
    reactor.handle().stop();
    reactor.sleep(None);
    assert_eq!(reactor.poll_once(), Pass::Stopped);
}

/// Two sleeps, two messages: the ring of the first must not be taken for one of the second, nor the other way round.
#[test]
fn every_sleep_is_ended_by_its_own_ring() {
    let (mut reactor, _hand) = adaptive();
    for _ in 0..3 {
        assert!(reactor.announce_sleep());
        reactor.handle().send(Box::new(|_| ())).unwrap();
        reactor.handle().send(Box::new(|_| ())).unwrap();
        reactor.sleep(None);
        assert_eq!(reactor.poll_once(), Pass::Busy);
    }
    let stats = reactor.handle().stats();
    assert_eq!((stats.sleeps, stats.wakeups, stats.messages), (3, 3, 6));
}

#[test]
fn reactor_without_pollers_spins_after_a_message_before_it_sleeps() {
    let (mut reactor, hand) = adaptive();
    reactor.handle().send(Box::new(|_| ())).unwrap();
    assert_eq!(reactor.poll_once(), Pass::Busy);
    assert_eq!(reactor.poll_once(), Pass::Idle);
    hand.advance(SPIN);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
}

#[test]
fn readable_descriptor_wakes_a_parked_poller() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    let (mut near, far) = UnixStream::pair().unwrap();
    let _watch = probe.cx().watch(far.as_fd(), Interest::Read).unwrap();
    reactor.poll_once();
    assert_eq!(probe.unparks.get(), 0);
    near.write_all(b"x").unwrap();
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.polls.get()), (1, 2));
}

#[test]
fn readable_descriptor_ends_the_sleep() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    let (mut near, far) = UnixStream::pair().unwrap();
    let _watch = probe.cx().watch(far.as_fd(), Interest::Read).unwrap();
    assert!(reactor.announce_sleep());
    near.write_all(b"x").unwrap();
    reactor.sleep(None);
    reactor.poll_once();
    assert_eq!(probe.unparks.get(), 1);
}

/// A socket's poller: polled when there is something to read, parked at once when not, in every mode.
#[test]
fn poller_without_spin_is_polled_only_while_its_descriptor_is_ready() {
    for mode in [Mode::Adaptive { spin: SPIN }, Mode::PollOnly, Mode::Interrupt] {
        let (mut reactor, _hand) = reactor(mode);
        let probe = Probe::new(Park::Wait);
        probe.join(&mut reactor, PollerSpec::new("socket", &group()).spin(Spin::None));
        let (mut near, mut far) = UnixStream::pair().unwrap();
        let _watch = probe.cx().watch(far.as_fd(), Interest::Read).unwrap();
        poll(&mut reactor, 5);
        assert_eq!((probe.polls.get(), probe.parks.get()), (1, 1), "{mode:?}");
        near.write_all(b"x").unwrap();
        reactor.poll_once();
        assert_eq!((probe.polls.get(), probe.parks.get()), (2, 2), "{mode:?}");
        far.read_exact(&mut [0]).unwrap();
        poll(&mut reactor, 5);
        assert_eq!(probe.polls.get(), 2, "{mode:?}");
    }
}

#[test]
fn own_spin_of_a_poller_goes_before_the_reactors() {
    let (mut reactor, hand) = adaptive();
    let probe = Probe::new(Park::Wait);
    probe.join(&mut reactor, PollerSpec::new("patient", &group()).spin(Spin::For(SPIN * 3)));
    hand.advance(SPIN * 2);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 0);
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 1);
}

#[test]
fn interrupt_mode_parks_at_the_first_idle_poll() {
    let (mut reactor, _hand) = reactor(Mode::Interrupt);
    let probe = probe(&mut reactor, Park::Wait);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
    assert_eq!((probe.polls.get(), probe.parks.get()), (1, 1));
}

#[test]
fn poll_only_never_parks_and_is_never_sleepy() {
    let (mut reactor, hand) = reactor(Mode::PollOnly);
    let probe = probe(&mut reactor, Park::Wait);
    hand.advance(Duration::from_secs(3600));
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert_eq!(probe.parks.get(), 0);
}

#[test]
fn switch_to_poll_only_brings_parked_pollers_back_for_good() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    reactor.handle().set_mode(Mode::PollOnly);
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.polls.get()), (1, 2));
    hand.advance(Duration::from_secs(1));
    reactor.poll_once();
    assert_eq!((probe.parks.get(), probe.polls.get()), (1, 3));
    assert_eq!(reactor.handle().mode(), Mode::PollOnly);
}

#[test]
fn switch_back_to_adaptive_lets_pollers_park_again() {
    let (mut reactor, hand) = reactor(Mode::PollOnly);
    let probe = probe(&mut reactor, Park::Wait);
    reactor.poll_once();
    reactor.handle().set_mode(Mode::Adaptive { spin: SPIN });
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 0);
    hand.advance(SPIN);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
    assert_eq!(probe.parks.get(), 1);
}

#[test]
fn waker_of_a_removed_poller_wakes_nobody_else() {
    let (mut reactor, hand) = adaptive();
    let gone = Probe::new(Park::Wait);
    let id = gone.join(&mut reactor, PollerSpec::new("gone", &group()));
    let waker = gone.cx().waker();
    hand.advance(SPIN);
    reactor.poll_once();
    assert!(reactor.remove(id));
    let heir = parked_probe(&mut reactor, &hand, Park::Wait);
    assert_eq!(heir.cx().id().slot, id.slot);
    waker.wake();
    reactor.poll_once();
    assert_eq!(heir.unparks.get(), 0);
}

#[test]
fn watch_that_outlives_its_poller_wakes_nobody_else() {
    let (mut reactor, hand) = adaptive();
    let gone = Probe::new(Park::Wait);
    let id = gone.join(&mut reactor, PollerSpec::new("gone", &group()));
    let (mut near, far) = UnixStream::pair().unwrap();
    let _leaked = gone.cx().watch(far.as_fd(), Interest::Read).unwrap();
    reactor.remove(id);
    let heir = parked_probe(&mut reactor, &hand, Park::Wait);
    near.write_all(b"x").unwrap();
    reactor.poll_once();
    assert_eq!(heir.unparks.get(), 0);
}

/// A running reactor with work looks at descriptors every 50 us and not in each pass.
#[test]
fn busy_reactor_looks_at_descriptors_now_and_then() {
    let (mut reactor, hand) = adaptive();
    let socket = Probe::new(Park::Wait);
    socket.join(&mut reactor, PollerSpec::new("socket", &group()).spin(Spin::None));
    let (mut near, far) = UnixStream::pair().unwrap();
    let _watch = socket.cx().watch(far.as_fd(), Interest::Read).unwrap();
    let worker = probe(&mut reactor, Park::Never);
    worker.work.set(u32::MAX);
    worker.on_poll({
        let hand = hand.clone();
        move || hand.advance(Duration::from_micros(10))
    });
    reactor.poll_once();
    near.write_all(b"x").unwrap();
    pass_often(&mut reactor, 4);
    assert_eq!(socket.unparks.get(), 0);
    reactor.pass();
    assert_eq!(socket.unparks.get(), 1);
}

/// A reactor with a poller that is busy for as long as its count of work lasts, so that the reactor counts as loaded.
fn loaded() -> (Reactor, FakeClock, Rc<Probe>) {
    let (mut reactor, hand) = adaptive();
    let busy = probe(&mut reactor, Park::Never);
    busy.work.set(u32::MAX);
    let theirs = hand.clone();
    busy.on_poll(move || theirs.advance(SPIN));
    poll(&mut reactor, 60);
    (reactor, hand, busy)
}

/// Wakes a parked probe after so many passes with something to do; how many passes it is patient for after that.
fn patience_when_back(reactor: &mut Reactor, probe: &Probe, after: usize) -> u32 {
    poll(reactor, after);
    probe.work.set(1);
    probe.cx().waker().wake();
    reactor.poll_once();
    let (parks, mut passes) = (probe.parks.get(), 0);
    while probe.parks.get() == parks {
        reactor.poll_once();
        passes += 1;
    }
    passes
}

#[test]
fn poller_that_is_always_back_soon_on_a_loaded_reactor_becomes_patient() {
    let (mut reactor, hand, busy) = loaded();
    let probe = probe(&mut reactor, Park::Wait);
    poll(&mut reactor, 3);
    assert_eq!(probe.parks.get(), 1);
    let patience = [(); 8].map(|()| patience_when_back(&mut reactor, &probe, 1));
    assert_eq!(patience, [2, 4, 8, 16, 32, 64, 100, 100], "up to two milliseconds, and a pass takes a spin");
    assert_eq!(patience_when_back(&mut reactor, &probe, 50), 1, "not so soon");
    assert_eq!(patience_when_back(&mut reactor, &probe, 1), 2);

    let patience = [(); 3].map(|()| patience_when_back(&mut reactor, &probe, 1));
    assert_eq!(patience, [4, 8, 16]);
    probe.work.set(1);
    probe.cx().waker().wake();
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 14, "patient");
    busy.on_poll(|| ());
    busy.work.set(0);
    let parks = probe.parks.get();
    hand.advance(Duration::from_millis(3));
    poll(&mut reactor, 1);
    hand.advance(SPIN);
    poll(&mut reactor, 1);
    assert_eq!(probe.parks.get(), parks + 1, "the load is gone");
    probe.work.set(1);
    probe.cx().waker().wake();
    reactor.poll_once();
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), parks + 2, "and the spin as it was");
}

#[test]
fn poller_without_spin_stays_without() {
    let (mut reactor, _hand, _busy) = loaded();
    let probe = Probe::new(Park::Wait);
    probe.join(&mut reactor, PollerSpec::new("impatient", &group()).spin(Spin::None));
    poll(&mut reactor, 2);
    for _ in 0..3 {
        assert_eq!(patience_when_back(&mut reactor, &probe, 1), 1);
    }
}

#[test]
fn looks_in_vain_do_not_make_a_silence_short() {
    let (mut reactor, _hand, _busy) = loaded();
    let probe = probe(&mut reactor, Park::Wait);
    let (theirs, clock) = (Rc::clone(&probe), reactor.clock().clone());
    *probe.in_park.borrow_mut() = Box::new(move || {
        theirs.park.set(Park::Until(clock.now().after(clock.ticks(Duration::from_micros(500)))));
    });
    poll(&mut reactor, 80);
    assert!(probe.parks.get() >= 3, "the first, and looks");
    assert_eq!(patience_when_back(&mut reactor, &probe, 1), 1);
}
