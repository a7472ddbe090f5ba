//! Timed pollers and the deadlines of parked ones.

use super::*;

const MS: Duration = Duration::from_millis(1);

fn in_future(reactor: &Reactor, after: Duration) -> Park {
    Park::Until(reactor.clock().now().after(reactor.clock().ticks(after)))
}

/// A poller with a period of 1 ms.
fn timed(reactor: &mut Reactor) -> (Rc<Probe>, PollerId) {
    let probe = Probe::new(Park::Wait);
    let id = probe.join(reactor, PollerSpec::new("timed", &group()).period(MS));
    (probe, id)
}

#[test]
fn timed_poller_runs_once_a_period() {
    let (mut reactor, hand) = adaptive();
    let (probe, _) = timed(&mut reactor);
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 0);
    for turns in 1..4 {
        hand.advance(MS);
        poll(&mut reactor, 3);
        assert_eq!(probe.polls.get(), turns);
    }
}

#[test]
fn timed_poller_keeps_its_beat_when_it_is_called_late() {
    let (mut reactor, hand) = adaptive();
    let (probe, _) = timed(&mut reactor);
    hand.advance(MS + MS / 4);
    reactor.poll_once();
    hand.advance(MS - MS / 4);
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 2);
}

#[test]
fn timed_poller_does_not_make_up_for_missed_turns() {
    let (mut reactor, hand) = adaptive();
    let (probe, _) = timed(&mut reactor);
    hand.advance(10 * MS);
    poll(&mut reactor, 3);
    assert_eq!(probe.polls.get(), 1);
}

/// Its poll takes twice its period: it is due again as soon as it returns, and others must get their turn.
#[test]
fn timed_poller_that_takes_longer_than_its_period_runs_once_a_pass() {
    let (mut reactor, hand) = adaptive();
    let (probe, _) = timed(&mut reactor);
    probe.work.set(u32::MAX);
    probe.on_poll({
        let hand = hand.clone();
        move || hand.advance(2 * MS)
    });
    hand.advance(MS);
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 1);
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 2);
}

#[test]
fn timed_poller_lets_the_reactor_sleep_until_its_turn() {
    let (mut reactor, hand) = adaptive();
    let due = reactor.clock().now().after(reactor.clock().ticks(MS));
    let _timed = timed(&mut reactor);
    hand.advance(SPIN);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(Some(due)));
}

#[test]
fn active_pollers_come_before_timed_ones() {
    let (mut reactor, hand) = adaptive();
    let log = Rc::new(RefCell::new(Vec::new()));
    let (timed, _) = timed(&mut reactor);
    let active = probe(&mut reactor, Park::Never);
    for (probe, name) in [(&timed, "timed"), (&active, "active")] {
        let log = Rc::clone(&log);
        probe.on_poll(move || log.borrow_mut().push(name));
    }
    hand.advance(MS);
    reactor.poll_once();
    assert_eq!(*log.borrow(), ["active", "timed"]);
}

#[test]
fn woken_timed_poller_is_polled_at_once_and_keeps_its_beat() {
    let (mut reactor, hand) = adaptive();
    let (probe, _) = timed(&mut reactor);
    hand.advance(MS / 2);
    probe.cx().waker().wake();
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 1);
    hand.advance(MS / 2);
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 2);
}

#[test]
fn removed_timed_poller_is_not_called_and_leaves_no_timer_to_its_heir() {
    let (mut reactor, hand) = adaptive();
    let (probe, id) = timed(&mut reactor);
    hand.advance(MS);
    reactor.handle().send(Box::new(move |reactor| assert!(reactor.remove(id)))).unwrap();
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 0);
    let heir = parked_probe(&mut reactor, &hand, Park::Wait);
    assert_eq!(heir.cx().id().slot, id.slot);
    hand.advance(10 * MS);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
    assert_eq!(heir.polls.get(), 1);
}

#[test]
fn timed_poller_that_is_done_goes_with_its_timer() {
    let (mut reactor, hand) = adaptive();
    let (probe, id) = timed(&mut reactor);
    probe.done.set(true);
    hand.advance(MS);
    reactor.poll_once();
    assert!(probe.dropped.get());
    assert!(!reactor.remove(id));
    hand.advance(MS);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
}

#[test]
fn deadline_brings_a_parked_poller_back_at_its_tick_and_not_before() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Wait);
    hand.advance(SPIN);
    probe.park.set(in_future(&reactor, MS));
    let Park::Until(deadline) = probe.park.get() else { unreachable!("set a line ago") };
    assert_eq!(reactor.poll_once(), Pass::Sleepy(Some(deadline)));
    hand.advance(MS - Duration::from_nanos(1));
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.polls.get()), (0, 1));
    hand.advance(Duration::from_nanos(1));
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.polls.get()), (1, 2));
}

/// The fallback poll of a driver that never kicks must not cost a whole spin every millisecond.
#[test]
fn poller_back_at_its_deadline_parks_again_at_once_if_it_finds_nothing() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Wait);
    probe.cx().waker().wake();
    hand.advance(SPIN);
    probe.park.set(in_future(&reactor, MS));
    reactor.poll_once();
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!(probe.parks.get(), 2);
    hand.advance(MS);
    probe.park.set(in_future(&reactor, MS));
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.parks.get()), (2, 3));
}

#[test]
fn poller_that_finds_work_at_its_deadline_spins_again() {
    let (mut reactor, hand) = adaptive();
    let deadline = in_future(&reactor, MS);
    let probe = parked_probe(&mut reactor, &hand, deadline);
    hand.advance(MS);
    probe.work.set(1);
    assert_eq!(reactor.poll_once(), Pass::Busy);
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert_eq!(probe.parks.get(), 1);
}

#[test]
fn deadline_that_has_passed_is_no_park() {
    let (mut reactor, hand) = adaptive();
    let probe = parked_probe(&mut reactor, &hand, Park::Until(Tick::ZERO));
    assert_eq!(reactor.poll_once(), Pass::Idle);
    assert_eq!((probe.polls.get(), probe.unparks.get()), (2, 0));
}

#[test]
fn wake_before_the_deadline_cancels_it() {
    let (mut reactor, hand) = adaptive();
    let deadline = in_future(&reactor, MS);
    let probe = parked_probe(&mut reactor, &hand, deadline);
    probe.park.set(Park::Wait);
    probe.cx().waker().wake();
    reactor.poll_once();
    hand.advance(SPIN);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
    hand.advance(MS);
    reactor.poll_once();
    assert_eq!(probe.unparks.get(), 1);
}

#[test]
fn wake_and_deadline_in_one_pass_bring_the_poller_back_once_and_for_a_whole_spin() {
    let (mut reactor, hand) = adaptive();
    let deadline = in_future(&reactor, MS);
    let probe = parked_probe(&mut reactor, &hand, deadline);
    probe.park.set(Park::Wait);
    hand.advance(MS);
    probe.cx().waker().wake();
    reactor.poll_once();
    assert_eq!((probe.unparks.get(), probe.polls.get(), probe.parks.get()), (1, 2, 1));
    hand.advance(SPIN);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
}

/// Within 100 us of each other: one wake-up serves both. The one that is not near stays parked.
#[test]
fn deadlines_close_to_a_due_one_are_met_with_it() {
    let (mut reactor, hand) = adaptive();
    let near = Duration::from_micros(100);
    let parks = [MS, MS + near, MS + 2 * near].map(|after| in_future(&reactor, after));
    let [due, close, far] = parks.map(|park| probe(&mut reactor, park));
    hand.advance(SPIN);
    reactor.poll_once();
    hand.advance(MS - SPIN);
    reactor.poll_once();
    assert_eq!([due.unparks.get(), close.unparks.get(), far.unparks.get()], [1, 1, 0]);
}

#[test]
fn removed_parked_poller_leaves_no_deadline() {
    let (mut reactor, hand) = adaptive();
    let deadline = in_future(&reactor, MS);
    let probe = Probe::new(deadline);
    let id = probe.join(&mut reactor, PollerSpec::new("p", &group()));
    hand.advance(SPIN);
    reactor.poll_once();
    assert!(reactor.remove(id));
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
}

/// On the real clock: nothing but the deadline ends this sleep.
#[test]
fn sleep_ends_at_the_deadline() {
    let clock = Clock::system();
    let config = ReactorConfig { mode: Mode::Interrupt, ..ReactorConfig::new(0, clock.clone()) };
    let mut reactor = Reactor::new(config).unwrap();
    let deadline = clock.now().after(clock.ticks(5 * MS));
    let probe = probe(&mut reactor, Park::Until(deadline));
    assert_eq!(reactor.poll_once(), Pass::Sleepy(Some(deadline)));
    assert!(reactor.announce_sleep());
    reactor.sleep(Some(deadline));
    assert!(clock.now() >= deadline);
    reactor.poll_once();
    assert_eq!(probe.unparks.get(), 1);
    assert_eq!(reactor.handle().stats().wakeups, 0);
}
