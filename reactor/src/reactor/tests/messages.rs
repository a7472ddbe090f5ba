//! Messages: order, bounds, stop, and reactors that talk to each other.

use super::*;
use crate::handle::{CallError, MAILBOX_CAPACITY, SendError};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

fn counter() -> (Arc<AtomicU32>, impl Fn() -> crate::Message) {
    let count = Arc::new(AtomicU32::new(0));
    let counted = Arc::clone(&count);
    let message = move || -> crate::Message {
        let count = Arc::clone(&counted);
        Box::new(move |_| {
            count.fetch_add(1, Ordering::Relaxed);
        })
    };
    (count, message)
}

#[test]
fn messages_of_one_sender_run_in_order_and_before_pollers() {
    let (mut reactor, _hand) = adaptive();
    let log = Arc::new(std::sync::Mutex::new(Vec::new()));
    let probe = probe(&mut reactor, Park::Never);
    let polled = Arc::clone(&log);
    probe.on_poll(move || polled.lock().unwrap().push("poll"));
    for name in ["first", "second"] {
        let log = Arc::clone(&log);
        reactor.handle().send(Box::new(move |_| log.lock().unwrap().push(name))).unwrap();
    }
    assert_eq!(reactor.poll_once(), Pass::Busy);
    assert_eq!(*log.lock().unwrap(), ["first", "second", "poll"]);
}

/// 32 messages a pass: one more has to wait, and is not forgotten.
#[test]
fn message_beyond_the_bound_of_a_pass_runs_in_the_next() {
    let (mut reactor, _hand) = adaptive();
    let (count, message) = counter();
    (0..33).for_each(|_| reactor.handle().send(message()).unwrap());
    reactor.poll_once();
    assert_eq!(count.load(Ordering::Relaxed), 32);
    reactor.poll_once();
    assert_eq!(count.load(Ordering::Relaxed), 33);
    assert_eq!(reactor.handle().stats().messages, 33);
}

#[test]
fn full_mailbox_hands_the_message_back_and_it_can_be_sent_later() {
    let (mut reactor, _hand) = adaptive();
    let (count, message) = counter();
    let handle = reactor.handle();
    (0..MAILBOX_CAPACITY).for_each(|_| handle.send(message()).unwrap());
    let refused = handle.send(message()).unwrap_err();
    assert!(matches!(refused, SendError::Full(_)), "{refused}");
    assert_eq!(handle.call(|_| ()), Err(CallError::Full));
    reactor.poll_once();
    handle.send(refused.into_message()).unwrap();
    poll(&mut reactor, MAILBOX_CAPACITY / 32 + 1);
    assert_eq!(count.load(Ordering::Relaxed) as usize, MAILBOX_CAPACITY + 1);
}

#[test]
fn message_sent_before_the_stop_is_run_and_one_after_it_comes_back() {
    let (mut reactor, _hand) = adaptive();
    let (count, message) = counter();
    let handle = reactor.handle();
    handle.send(message()).unwrap();
    handle.stop();
    handle.send(message()).unwrap();
    assert_eq!(reactor.poll_once(), Pass::Stopped);
    assert_eq!(count.load(Ordering::Relaxed), 2);
    assert!(matches!(handle.send(message()), Err(SendError::Stopped(_))));
    assert_eq!(reactor.poll_once(), Pass::Stopped);
}

#[test]
fn message_that_stops_the_reactor_lets_those_behind_it_run() {
    let (mut reactor, _hand) = adaptive();
    let (count, message) = counter();
    let handle = reactor.handle();
    handle.send(Box::new(|reactor| reactor.handle().stop())).unwrap();
    handle.send(message()).unwrap();
    reactor.poll_once();
    assert_eq!(reactor.poll_once(), Pass::Stopped);
    assert_eq!(count.load(Ordering::Relaxed), 1);
}

/// A message that sends itself again must not hold up the stop.
#[test]
fn message_that_breeds_does_not_keep_the_reactor_from_stopping() {
    fn breed(reactor: &mut Reactor) {
        let _ = reactor.handle().send(Box::new(breed));
    }
    let (mut reactor, _hand) = adaptive();
    reactor.handle().send(Box::new(breed)).unwrap();
    reactor.handle().stop();
    assert_eq!(reactor.poll_once(), Pass::Stopped);
}

#[test]
fn dropped_reactor_drops_the_messages_that_wait() {
    let (reactor, _hand) = adaptive();
    let handle = reactor.handle();
    let carried = Arc::new(());
    let message = Arc::clone(&carried);
    handle.send(Box::new(move |_| drop(message))).unwrap();
    drop(reactor);
    assert_eq!(Arc::strong_count(&carried), 1);
    assert!(matches!(handle.send(Box::new(|_| ())), Err(SendError::Stopped(_))));
}

#[test]
fn stop_drops_pollers_in_reverse_order_of_their_coming() {
    struct Noted(&'static str, Rc<RefCell<Vec<&'static str>>>);
    impl Poller for Noted {
        fn poll(&mut self, _now: Tick) -> Work {
            Work::Idle
        }
    }
    impl Drop for Noted {
        fn drop(&mut self) {
            self.1.borrow_mut().push(self.0);
        }
    }
    let (mut reactor, _hand) = adaptive();
    let log = Rc::new(RefCell::new(Vec::new()));
    let add = |reactor: &mut Reactor, name| {
        reactor.add(PollerSpec::new(name, &group()), |_| Box::new(Noted(name, Rc::clone(&log))))
    };
    let first = add(&mut reactor, "first");
    add(&mut reactor, "second");
    reactor.remove(first);
    // It takes the slot of the first, and is younger than the second all the same.
    add(&mut reactor, "third");
    reactor.handle().stop();
    reactor.poll_once();
    assert_eq!(*log.borrow(), ["first", "third", "second"]);
}

#[test]
fn message_adds_a_poller_that_is_polled_in_the_same_pass() {
    let (mut reactor, _hand) = adaptive();
    let polls = Arc::new(AtomicU32::new(0));
    struct Count(Arc<AtomicU32>);
    impl Poller for Count {
        fn poll(&mut self, _now: Tick) -> Work {
            self.0.fetch_add(1, Ordering::Relaxed);
            Work::Idle
        }
    }
    let counted = Arc::clone(&polls);
    let add = move |reactor: &mut Reactor| {
        reactor.add(PollerSpec::new("added", &group()), |_| Box::new(Count(counted)));
    };
    reactor.handle().send(Box::new(add)).unwrap();
    reactor.poll_once();
    assert_eq!(polls.load(Ordering::Relaxed), 1);
}

#[test]
fn message_removes_a_poller_before_it_is_polled() {
    let (mut reactor, _hand) = adaptive();
    let probe = Probe::new(Park::Never);
    let id = probe.join(&mut reactor, PollerSpec::new("p", &group()));
    let other = super::probe(&mut reactor, Park::Never);
    reactor.handle().send(Box::new(move |reactor| assert!(reactor.remove(id)))).unwrap();
    reactor.poll_once();
    assert!(probe.dropped.get());
    assert_eq!((probe.polls.get(), other.polls.get()), (0, 1));
    assert_eq!(reactor.handle().stats().faults, 0);
    assert!(!reactor.remove(id));
}

#[test]
fn pass_within_a_pass_does_nothing() {
    let (mut reactor, _hand) = adaptive();
    let probe = probe(&mut reactor, Park::Never);
    reactor.handle().send(Box::new(|reactor| assert_eq!(reactor.poll_once(), Pass::Idle))).unwrap();
    reactor.poll_once();
    assert_eq!(probe.polls.get(), 1);
    assert_eq!(reactor.handle().stats().faults, 0);
}

#[test]
fn two_reactors_on_one_thread_answer_each_other() {
    let (mut here, _hand) = adaptive();
    let (mut there, _other_hand) = adaptive();
    let (count, message) = counter();
    let back = here.handle();
    let answer = message();
    there.handle().send(Box::new(move |_| back.send(answer).unwrap())).unwrap();
    here.poll_once();
    assert_eq!(count.load(Ordering::Relaxed), 0);
    there.poll_once();
    here.poll_once();
    assert_eq!(count.load(Ordering::Relaxed), 1);
}
