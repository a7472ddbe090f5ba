//! Every interleaving of the handshakes between a reactor and other threads, tried by loom.
//!
//! Run with `RUSTFLAGS="--cfg loom" cargo test -p reactor --test loom --release`; in an ordinary build this file is
//! empty. It compiles the crate's own source files against loom's atomics (`crate::sync` here instead of there), so
//! what is checked is what runs. A lost wake-up shows as a deadlock, which loom reports.
#![cfg(loom)]
#![expect(dead_code, reason = "the models use a part of each module")]

#[path = "../src/mailbox.rs"]
mod mailbox;
#[path = "../src/sleep.rs"]
mod sleep;
#[path = "../src/wake_flag.rs"]
mod wake_flag;
#[path = "../src/wake_set.rs"]
mod wake_set;

mod sync {
    //! What the crate takes from the standard library and crossbeam, as loom has it.

    pub(crate) use loom::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

    /// Stands for crossbeam's queue, which loom cannot see into: bounded, many producers, many consumers. As there, a
    /// consumer finds out by an acquire load whether there is something, and may find an old value: a push is certain
    /// to be seen only by those whom something else has told of it.
    pub(crate) struct ArrayQueue<T> {
        pushed: AtomicUsize,
        items: loom::sync::Mutex<Items<T>>,
        capacity: usize,
    }

    struct Items<T> {
        waiting: std::collections::VecDeque<T>,
        popped: usize,
    }

    impl<T> ArrayQueue<T> {
        pub(crate) fn new(capacity: usize) -> ArrayQueue<T> {
            let items = Items { waiting: std::collections::VecDeque::new(), popped: 0 };
            ArrayQueue { pushed: AtomicUsize::new(0), items: loom::sync::Mutex::new(items), capacity }
        }

        pub(crate) fn push(&self, item: T) -> Result<(), T> {
            let mut items = self.items.lock().expect("nobody panics");
            if items.waiting.len() == self.capacity {
                return Err(item);
            }
            items.waiting.push_back(item);
            drop(items);
            self.pushed.fetch_add(1, Ordering::Release);
            Ok(())
        }

        pub(crate) fn pop(&self) -> Option<T> {
            let pushed = self.pushed.load(Ordering::Acquire);
            let mut items = self.items.lock().expect("nobody panics");
            if items.popped == pushed {
                return None;
            }
            items.popped += 1;
            items.waiting.pop_front()
        }
    }
}

use loom::sync::atomic::{AtomicUsize, Ordering};
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;

use mailbox::Mailbox;
use sleep::SleepGate;
use wake_flag::WakeFlag;
use wake_set::WakeSet;

/// Stands for the eventfd in the epoll set: a ring is kept until a wait takes it.
struct Bell {
    rung: Mutex<bool>,
    heard: Condvar,
}

impl Bell {
    fn new() -> Bell {
        Bell { rung: Mutex::new(false), heard: Condvar::new() }
    }

    fn ring(&self) {
        *self.rung.lock().expect("nobody panics") = true;
        self.heard.notify_one();
    }

    fn wait(&self) {
        let mut rung = self.rung.lock().expect("nobody panics");
        while !*rung {
            rung = self.heard.wait(rung).expect("nobody panics");
        }
        *rung = false;
    }
}

/// The parts of a reactor that other threads touch.
struct Reactor {
    mailbox: Mailbox<usize>,
    wakes: WakeSet,
    gate: SleepGate,
    bell: Bell,
}

impl Reactor {
    fn new() -> Arc<Reactor> {
        Arc::new(Reactor {
            mailbox: Mailbox::new(4),
            wakes: WakeSet::new(64),
            gate: SleepGate::new(),
            bell: Bell::new(),
        })
    }

    fn send(&self, message: usize) {
        self.mailbox.push(message).expect("there is room for all");
        self.gate.notify(|| self.bell.ring());
    }

    fn wake(&self, slot: u32) {
        self.wakes.insert(slot);
        self.gate.notify(|| self.bell.ring());
    }

    /// One message, as a pass with a bound of one takes it; what it counts must be there.
    fn receive(&self) -> Option<usize> {
        if self.mailbox.waiting() == 0 {
            return None;
        }
        let message = self.mailbox.pop().expect("the mailbox counts what is in it");
        self.mailbox.note_taken(1);
        Some(message)
    }

    fn sleep_unless_news(&self) {
        self.gate.announce();
        if self.mailbox.waiting() == 0 && !self.wakes.has_news() {
            self.bell.wait();
        }
        self.gate.withdraw();
    }
}

/// Two senders, or two sleeps, are too much for a full search. Three preemptions are enough to break the handshake
/// where a fence or a swap of it is taken away.
fn bounded() -> loom::model::Builder {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(3);
    model
}

#[test]
fn message_is_never_slept_over() {
    loom::model(|| {
        let reactor = Reactor::new();
        let sender = Arc::clone(&reactor);
        let sender = thread::spawn(move || sender.send(7));
        let received = loop {
            if let Some(message) = reactor.receive() {
                break message;
            }
            reactor.sleep_unless_news();
        };
        assert_eq!(received, 7);
        sender.join().unwrap();
    });
}

#[test]
fn messages_of_two_senders_are_never_slept_over() {
    bounded().check(|| {
        let reactor = Reactor::new();
        let senders: Vec<_> = [1, 2]
            .into_iter()
            .map(|message| {
                let reactor = Arc::clone(&reactor);
                thread::spawn(move || reactor.send(message))
            })
            .collect();
        let mut sum = 0;
        while sum < 3 {
            match reactor.receive() {
                Some(message) => sum += message,
                None => reactor.sleep_unless_news(),
            }
        }
        senders.into_iter().for_each(|sender| sender.join().unwrap());
    });
}

#[test]
fn second_message_of_a_sender_is_never_slept_over() {
    bounded().check(|| {
        let reactor = Reactor::new();
        let sender = Arc::clone(&reactor);
        let sender = thread::spawn(move || {
            sender.send(1);
            sender.send(2);
        });
        let mut sum = 0;
        while sum < 3 {
            match reactor.receive() {
                Some(message) => sum += message,
                None => reactor.sleep_unless_news(),
            }
        }
        sender.join().unwrap();
    });
}

/// A ring, the driver that fills it and kicks, and the poller that takes what is in it and parks.
struct Ring {
    reactor: Arc<Reactor>,
    flag: WakeFlag,
    posted: AtomicUsize,
}

impl Ring {
    fn new() -> Arc<Ring> {
        Arc::new(Ring { reactor: Reactor::new(), flag: WakeFlag::new(), posted: AtomicUsize::new(0) })
    }

    /// The driver: publish, then `Waker::wake`.
    fn post(&self) {
        self.posted.fetch_add(1, Ordering::Release);
        if self.flag.claim() {
            self.reactor.wake(5);
        }
    }

    /// The poller, until it has seen `all`: it parks whenever its last look finds nothing new, and then nothing but a
    /// wake brings it back.
    fn take(&self, all: usize) {
        let mut seen = 0;
        let mut woken = Vec::new();
        while seen < all {
            self.flag.arm();
            let posted = self.posted.load(Ordering::Acquire);
            if posted == seen {
                woken.clear();
                while woken.is_empty() {
                    self.reactor.sleep_unless_news();
                    self.reactor.wakes.take_all(&mut woken);
                }
                assert_eq!(woken, [5]);
            }
            self.flag.disarm();
            seen = self.posted.load(Ordering::Acquire);
        }
    }
}

#[test]
fn poller_that_parks_never_misses_its_wake() {
    loom::model(|| {
        let ring = Ring::new();
        let driver = Arc::clone(&ring);
        let driver = thread::spawn(move || driver.post());
        ring.take(1);
        driver.join().unwrap();
    });
}

/// The second post meets the poller before, in, and after its second park; a wake of the first may come late.
#[test]
fn poller_that_parks_again_never_misses_its_second_wake() {
    bounded().check(|| {
        let ring = Ring::new();
        let driver = Arc::clone(&ring);
        let driver = thread::spawn(move || {
            driver.post();
            driver.post();
        });
        ring.take(2);
        driver.join().unwrap();
    });
}

#[test]
fn poller_with_two_wakers_misses_neither() {
    bounded().check(|| {
        let ring = Ring::new();
        let drivers: Vec<_> = (0..2)
            .map(|_| {
                let ring = Arc::clone(&ring);
                thread::spawn(move || ring.post())
            })
            .collect();
        ring.take(2);
        drivers.into_iter().for_each(|driver| driver.join().unwrap());
    });
}

#[test]
fn wakes_of_two_pollers_both_arrive() {
    bounded().check(|| {
        let reactor = Reactor::new();
        let wakers: Vec<_> = [3, 4]
            .into_iter()
            .map(|slot| {
                let reactor = Arc::clone(&reactor);
                thread::spawn(move || reactor.wake(slot))
            })
            .collect();
        let mut woken = Vec::new();
        while woken.len() < 2 {
            reactor.sleep_unless_news();
            reactor.wakes.take_all(&mut woken);
        }
        woken.sort_unstable();
        assert_eq!(woken, [3, 4]);
        wakers.into_iter().for_each(|waker| waker.join().unwrap());
    });
}

/// What a waker wrote before the wake is seen by the poller that it wakes.
#[test]
fn wake_publishes_what_came_before_it() {
    loom::model(|| {
        let reactor = Reactor::new();
        let written = Arc::new(AtomicUsize::new(0));
        let waker = {
            let (reactor, written) = (Arc::clone(&reactor), Arc::clone(&written));
            thread::spawn(move || {
                written.store(42, Ordering::Relaxed);
                reactor.wake(1);
            })
        };
        let mut woken = Vec::new();
        while woken.is_empty() {
            // A reactor that is awake takes them without the fences of the way to sleep.
            if !reactor.wakes.has_news() {
                reactor.sleep_unless_news();
            }
            reactor.wakes.take_all(&mut woken);
        }
        assert_eq!(written.load(Ordering::Relaxed), 42);
        waker.join().unwrap();
    });
}

/// A message that goes in while the reactor goes away is taken out again by one of the two.
#[test]
fn closed_mailbox_keeps_no_message() {
    loom::model(|| {
        let mailbox = Arc::new(Mailbox::new(4));
        let message = Arc::new(());
        let sender = {
            let (mailbox, message) = (Arc::clone(&mailbox), Arc::clone(&message));
            thread::spawn(move || drop(mailbox.push(message)))
        };
        mailbox.close();
        sender.join().unwrap();
        assert_eq!(Arc::strong_count(&message), 1);
    });
}
