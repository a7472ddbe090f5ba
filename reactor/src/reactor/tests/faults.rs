//! Pollers that end, panic, or hold the core.

use super::*;
use crate::watch::Interest;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// Collects the log of what runs inside `with_log`.
#[derive(Clone, Default)]
struct Log(Arc<Mutex<Vec<u8>>>);

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl MakeWriter<'_> for Log {
    type Writer = Log;

    fn make_writer(&self) -> Log {
        self.clone()
    }
}

fn with_log(body: impl FnOnce()) -> Vec<String> {
    let log = Log::default();
    let subscriber = tracing_subscriber::fmt().with_writer(log.clone()).with_ansi(false).finish();
    tracing::subscriber::with_default(subscriber, body);
    let text = log.0.lock().unwrap().clone();
    String::from_utf8(text).unwrap().lines().map(str::to_owned).collect()
}

/// Adds a probe whose name is told in faults and stalls.
fn named(reactor: &mut Reactor, name: &str) -> Rc<Probe> {
    let probe = Probe::new(Park::Never);
    probe.join(reactor, PollerSpec::new(name, &group()));
    probe
}

#[test]
fn poller_that_is_done_is_dropped_and_all_others_have_their_turn() {
    let (mut reactor, _hand) = adaptive();
    let probes = [(); 4].map(|()| probe(&mut reactor, Park::Never));
    probes[1].done.set(true);
    assert_eq!(reactor.poll_once(), Pass::Busy);
    assert_eq!(probes.each_ref().map(|probe| probe.polls.get()), [1; 4]);
    assert_eq!(probes.each_ref().map(|probe| probe.dropped.get()), [false, true, false, false]);
    reactor.poll_once();
    assert_eq!(probes.each_ref().map(|probe| probe.polls.get()), [2, 1, 2, 2]);
    assert_eq!(reactor.handle().pollers().len(), 3);
}

#[test]
fn all_pollers_done_in_one_pass_leave_an_empty_reactor() {
    let (mut reactor, hand) = adaptive();
    let probes = [(); 3].map(|()| probe(&mut reactor, Park::Never));
    probes.iter().for_each(|probe| probe.done.set(true));
    reactor.poll_once();
    assert!(probes.iter().all(|probe| probe.dropped.get() && probe.polls.get() == 1));
    hand.advance(SPIN);
    assert_eq!(reactor.poll_once(), Pass::Sleepy(None));
}

#[test]
fn panicking_poller_is_removed_and_all_others_have_their_turn() {
    let (mut reactor, _hand) = adaptive();
    let probes = [(); 4].map(|()| probe(&mut reactor, Park::Never));
    probes[1].on_poll(|| panic!("told to"));
    reactor.poll_once();
    assert_eq!(probes.each_ref().map(|probe| probe.polls.get()), [1; 4]);
    assert!(probes[1].dropped.get());
    reactor.poll_once();
    assert_eq!(probes.each_ref().map(|probe| probe.polls.get()), [2, 1, 2, 2]);
    assert_eq!(reactor.handle().stats().faults, 1);
}

#[test]
fn fault_is_logged_by_name_and_the_hook_told_after_the_drop() {
    let (mut reactor, _hand) = adaptive();
    let probe = Probe::new(Park::Never);
    let told = Arc::new(Mutex::new(None));
    let hook = {
        let told = Arc::clone(&told);
        move |text: &str| *told.lock().unwrap() = Some(text.to_owned())
    };
    probe.join(&mut reactor, PollerSpec::new("nvme0.q3", &group()).on_fault(hook));
    probe.on_poll(|| panic!("index {} out of range", 7));
    let log = with_log(|| poll(&mut reactor, 1));
    assert!(probe.dropped.get());
    assert_eq!(told.lock().unwrap().as_deref(), Some("index 7 out of range"));
    assert!(log[0].contains("ERROR") && log[0].contains("nvme0.q3") && log[0].contains("index 7"), "{log:?}");
}

#[test]
fn panic_in_park_unpark_and_timed_poll_is_contained() {
    let (mut reactor, hand) = adaptive();
    let bystander = probe(&mut reactor, Park::Never);
    let in_park = probe(&mut reactor, Park::Wait);
    *in_park.in_park.borrow_mut() = Box::new(|| panic!("in park"));
    let in_unpark = probe(&mut reactor, Park::Wait);
    *in_unpark.in_unpark.borrow_mut() = Box::new(|| panic!("in unpark"));
    let in_timed = Probe::new(Park::Wait);
    in_timed.join(&mut reactor, PollerSpec::new("timed", &group()).period(SPIN));
    in_timed.on_poll(|| panic!("in a timed poll"));
    hand.advance(SPIN);
    reactor.poll_once();
    assert_eq!((in_park.dropped.get(), in_unpark.dropped.get(), in_timed.dropped.get()), (true, false, true));
    in_unpark.cx().waker().wake();
    reactor.poll_once();
    assert!(in_unpark.dropped.get());
    assert_eq!(bystander.polls.get(), 2);
    let stats = reactor.handle().stats();
    assert_eq!((stats.faults, reactor.handle().pollers().len()), (3, 1));
}

#[test]
fn panic_in_drop_and_in_the_fault_hook_is_contained() {
    struct BadDrop;
    impl Poller for BadDrop {
        fn poll(&mut self, _now: Tick) -> Work {
            panic!("in poll")
        }
    }
    impl Drop for BadDrop {
        fn drop(&mut self) {
            panic!("in drop")
        }
    }
    let (mut reactor, _hand) = adaptive();
    let spec = PollerSpec::new("bad", &group()).on_fault(|_| panic!("in the hook"));
    reactor.add(spec, |_| Box::new(BadDrop));
    let bystander = probe(&mut reactor, Park::Never);
    reactor.poll_once();
    assert_eq!(bystander.polls.get(), 1);
    assert_eq!(reactor.handle().pollers().len(), 1);
}

#[test]
fn panic_in_a_message_is_contained() {
    let (mut reactor, _hand) = adaptive();
    let probe = probe(&mut reactor, Park::Never);
    reactor.handle().send(Box::new(|_| panic!("in a message"))).unwrap();
    reactor.poll_once();
    assert_eq!((probe.polls.get(), reactor.handle().stats().faults), (1, 1));
}

#[test]
fn panic_while_building_leaves_the_reactor_as_it_was() {
    let (mut reactor, _hand) = adaptive();
    let build = |reactor: &mut Reactor| {
        reactor.add(PollerSpec::new("stillborn", &group()), |_| panic!("in build"));
    };
    reactor.handle().send(Box::new(build)).unwrap();
    reactor.poll_once();
    assert!(reactor.handle().pollers().is_empty());
    let probe = probe(&mut reactor, Park::Never);
    reactor.poll_once();
    assert_eq!((probe.polls.get(), probe.cx().id().slot), (1, 0));
}

/// Somebody else keeps a watch of the poller that was never built; its slot does not exist.
#[test]
fn watch_of_a_poller_that_was_not_built_wakes_nobody_and_is_taken_back() {
    let (mut reactor, _hand) = adaptive();
    let (readable, mut writer) = io::pipe().unwrap();
    writer.write_all(b"x").unwrap();
    let kept = Rc::new(RefCell::new(None));
    let build = catch_unwind(AssertUnwindSafe(|| {
        reactor.add(PollerSpec::new("stillborn", &group()), |cx| {
            *kept.borrow_mut() = Some(cx.watch(readable.as_fd(), Interest::Read).unwrap());
            panic!("in build")
        })
    }));
    assert!(build.is_err() && kept.borrow().is_some());
    reactor.poll_once();
    assert!(reactor.watches.is_empty());
    assert_eq!(reactor.handle().stats().faults, 0);
}

fn slow_poll(probe: &Probe, hand: &FakeClock, by: Duration) {
    let hand = hand.clone();
    probe.on_poll(move || hand.advance(by));
}

const LIMIT: Duration = super::super::DEFAULT_STALL_LIMIT;
const OVER_LIMIT: Duration = Duration::from_millis(11);

#[test]
fn working_poller_that_holds_the_core_is_counted_and_named() {
    let (mut reactor, hand) = adaptive();
    let [_first, slow] = ["first", "slow"].map(|name| {
        let probe = named(&mut reactor, name);
        probe.work.set(1);
        probe
    });
    slow_poll(&slow, &hand, OVER_LIMIT);
    let log = with_log(|| poll(&mut reactor, 1));
    let stalls: Vec<u64> = reactor.handle().pollers().iter().map(|poller| poller.stall_count).collect();
    assert_eq!(stalls, [0, 1]);
    assert_eq!(reactor.handle().stats().stalls, 1);
    assert!(log[0].contains("WARN") && log[0].contains("\"slow\"") && log[0].contains("11ms"), "{log:?}");
}

#[test]
fn poll_of_exactly_the_limit_is_no_stall() {
    let (mut reactor, hand) = adaptive();
    let probe = named(&mut reactor, "p");
    probe.work.set(1);
    slow_poll(&probe, &hand, LIMIT);
    reactor.poll_once();
    assert_eq!(reactor.handle().stats().stalls, 0);
}

/// Idle polls are not timed one by one: the first stall has no name, and sets off the search for it.
#[test]
fn idle_poller_among_others_is_named_at_its_second_stall() {
    let (mut reactor, hand) = adaptive();
    let [_first, slow, _last] = ["first", "slow", "last"].map(|name| named(&mut reactor, name));
    slow_poll(&slow, &hand, OVER_LIMIT);
    let log = with_log(|| poll(&mut reactor, 2));
    let stalls: Vec<u64> = reactor.handle().pollers().iter().map(|poller| poller.stall_count).collect();
    assert_eq!(stalls, [0, 1, 0]);
    assert_eq!(reactor.handle().stats().stalls, 2);
    assert!(!log[0].contains("slow") && log[1].contains("\"slow\""), "{log:?}");
}

/// What it leaves behind when it parks: the one that stays must not be blamed for it.
#[test]
fn poller_that_stays_is_not_blamed_for_one_that_parked() {
    let (mut reactor, hand) = adaptive();
    let _stays = named(&mut reactor, "stays");
    let slow = probe(&mut reactor, Park::Wait);
    slow_poll(&slow, &hand, OVER_LIMIT);
    hand.advance(SPIN);
    reactor.poll_once();
    let stalls: Vec<u64> = reactor.handle().pollers().iter().map(|poller| poller.stall_count).collect();
    assert_eq!((slow.parks.get(), stalls), (1, vec![0, 0]));
    assert_eq!(reactor.handle().stats().stalls, 1);
}

#[test]
fn working_poller_is_not_blamed_for_an_idle_one_before_it() {
    let (mut reactor, hand) = adaptive();
    let [slow, worker] = ["slow", "worker"].map(|name| named(&mut reactor, name));
    slow_poll(&slow, &hand, OVER_LIMIT);
    worker.work.set(1);
    reactor.poll_once();
    let stalls: Vec<u64> = reactor.handle().pollers().iter().map(|poller| poller.stall_count).collect();
    assert_eq!(stalls, [0, 0]);
    assert_eq!(reactor.handle().stats().stalls, 1);
}

#[test]
fn stalls_are_all_counted_and_logged_once_a_second() {
    let (mut reactor, hand) = adaptive();
    let probe = named(&mut reactor, "slow");
    slow_poll(&probe, &hand, OVER_LIMIT);
    // 91 polls of 11 ms are a second and a little.
    let log = with_log(|| poll(&mut reactor, 92));
    assert_eq!(reactor.handle().stats().stalls, 92);
    assert_eq!(log.len(), 2, "{log:?}");
}

#[test]
fn message_that_holds_the_core_is_a_stall_of_no_poller() {
    let (mut reactor, hand) = adaptive();
    let probe = named(&mut reactor, "p");
    reactor.handle().send(Box::new(move |_| hand.advance(OVER_LIMIT))).unwrap();
    let log = with_log(|| poll(&mut reactor, 1));
    assert_eq!(reactor.handle().stats().stalls, 1);
    assert_eq!((probe.polls.get(), reactor.handle().pollers()[0].stall_count), (1, 0));
    assert!(log[0].contains("message held the core"), "{log:?}");
}

#[test]
fn stall_limit_changes_while_the_reactor_runs() {
    let (mut reactor, hand) = adaptive();
    let probe = named(&mut reactor, "p");
    slow_poll(&probe, &hand, OVER_LIMIT);
    reactor.handle().set_stall_limit(OVER_LIMIT);
    assert_eq!(reactor.handle().stall_limit(), OVER_LIMIT);
    reactor.poll_once();
    reactor.poll_once();
    // The first pass still went by the old one: the limit is taken over as statistics are handed out.
    assert_eq!(reactor.handle().stats().stalls, 1);
}
