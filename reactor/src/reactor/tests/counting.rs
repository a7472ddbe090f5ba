//! Busy and idle time, and what the snapshots say.

use super::*;
use crate::group::GroupStats;
use crate::stats::PollerState;

const US: Duration = Duration::from_micros(1);

/// Makes each poll of the probe take that long.
fn takes(probe: &Probe, hand: &FakeClock, time: Duration) {
    let hand = hand.clone();
    probe.on_poll(move || hand.advance(time));
}

#[test]
fn busy_time_is_that_of_the_polls_that_found_work_to_the_tick() {
    let (mut reactor, hand) = adaptive();
    let [first, second] = [(); 2].map(|()| probe(&mut reactor, Park::Never));
    takes(&first, &hand, 3 * US);
    takes(&second, &hand, 5 * US);
    first.work.set(2);
    second.work.set(1);
    reactor.poll_once();
    reactor.poll_once();
    let pollers = reactor.handle().pollers();
    assert_eq!([pollers[0].busy_ticks, pollers[1].busy_ticks], [6_000, 5_000]);
    assert_eq!([pollers[0].busy_count, pollers[1].busy_count], [2, 1]);
    assert_eq!([pollers[0].run_count, pollers[1].run_count], [2, 2]);
    let stats = reactor.handle().stats();
    assert_eq!((stats.busy_ticks, stats.idle_ticks), (11_000, 5_000));
}

#[test]
fn idle_time_is_the_rest_of_the_time() {
    let (mut reactor, hand) = adaptive();
    let probe = probe(&mut reactor, Park::Never);
    hand.advance(10 * US);
    takes(&probe, &hand, US);
    probe.work.set(1);
    reactor.poll_once();
    hand.advance(4 * US);
    let poller = reactor.handle().pollers().remove(0);
    assert_eq!((poller.busy_ticks, poller.idle_ticks), (1_000, 14_000));
}

#[test]
fn time_of_messages_is_busy_time_of_the_reactor() {
    let (mut reactor, hand) = adaptive();
    reactor.handle().send(Box::new(move |_| hand.advance(7 * US))).unwrap();
    reactor.poll_once();
    assert_eq!(reactor.handle().stats().busy_ticks, 7_000);
}

#[test]
fn group_sums_its_pollers_and_keeps_the_sum_when_they_go() {
    let (mut reactor, hand) = adaptive();
    let group = group();
    let join = |reactor: &mut Reactor| {
        let probe = Probe::new(Park::Never);
        let id = probe.join(reactor, PollerSpec::new("p", &group));
        takes(&probe, &hand, 2 * US);
        probe.work.set(1);
        (probe, id)
    };
    let members = [join(&mut reactor), join(&mut reactor)];
    reactor.poll_once();
    hand.advance(6 * US);
    assert_eq!(group.stats(), GroupStats { busy_ticks: 4_000, idle_ticks: 6_000 });
    assert_eq!(reactor.handle().stats().groups[0].0, group);
    members.iter().for_each(|(_, id)| assert!(reactor.remove(*id)));
    hand.advance(100 * US);
    assert_eq!(group.stats(), GroupStats { busy_ticks: 4_000, idle_ticks: 6_000 });
    assert!(reactor.handle().stats().groups.is_empty());
}

#[test]
fn pollers_are_numbered_from_one_within_their_group() {
    let (mut reactor, _hand) = adaptive();
    let group = group();
    for name in ["a", "b"] {
        Probe::new(Park::Never).join(&mut reactor, PollerSpec::new(name, &group));
    }
    probe(&mut reactor, Park::Never);
    let listed: Vec<(String, u64)> =
        reactor.handle().pollers().iter().map(|poller| (poller.name.to_string(), poller.number)).collect();
    assert_eq!(listed, [("a".to_owned(), 1), ("b".to_owned(), 2), ("probe".to_owned(), 1)]);
}

#[test]
fn snapshot_tells_active_parked_and_timed_pollers_apart() {
    let (mut reactor, hand) = adaptive();
    probe(&mut reactor, Park::Never);
    probe(&mut reactor, Park::Wait);
    Probe::new(Park::Wait)
        .join(&mut reactor, PollerSpec::new("t", &group()).period(Duration::from_millis(1)));
    hand.advance(SPIN);
    reactor.poll_once();
    let pollers = reactor.handle().pollers();
    let states: Vec<PollerState> = pollers.iter().map(|poller| poller.state).collect();
    assert_eq!(states, [PollerState::Active, PollerState::Parked, PollerState::Timed]);
    assert_eq!(pollers[2].period_ticks, Some(1_000_000));
}

#[test]
fn period_of_zero_makes_an_active_poller() {
    let (mut reactor, _hand) = adaptive();
    let probe = Probe::new(Park::Never);
    probe.join(&mut reactor, PollerSpec::new("p", &group()).period(Duration::ZERO));
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 1);
    assert_eq!(reactor.handle().pollers()[0].period_ticks, None);
}

/// Polls without work are handed out once in a while, not one by one.
#[test]
fn counts_of_idle_polls_reach_the_snapshot_within_the_interval() {
    let (mut reactor, hand) = adaptive();
    probe(&mut reactor, Park::Never);
    reactor.poll_once();
    pass_often(&mut reactor, 9);
    assert_eq!(reactor.handle().pollers()[0].run_count, 1);
    hand.advance(super::super::PUBLISH_INTERVAL);
    reactor.pass();
    assert_eq!(reactor.handle().pollers()[0].run_count, 11);
}

#[test]
fn sleep_counts_as_idle_time() {
    let (mut reactor, hand) = adaptive();
    assert!(reactor.announce_sleep());
    reactor.handle().send(Box::new(|_| ())).unwrap();
    hand.advance(50 * US);
    reactor.sleep(None);
    let stats = reactor.handle().stats();
    assert_eq!((stats.slept_ticks, stats.idle_ticks, stats.busy_ticks), (50_000, 50_000, 0));
}
