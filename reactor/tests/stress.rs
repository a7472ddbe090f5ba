//! Real threads against the sleep of a reactor: a lost wake-up would stop these tests, and their time limit would tell.
//!
//! The reactors run unpinned, so that the tests work on any number of cores, and without spin, so that they go to sleep
//! between any two messages.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use reactor::{
    Clock, CoreMask, Group, Handle, Mode, Park, Poller, PollerSpec, Reactor, ReactorConfig, Tick, Waker, Work,
};

/// Far more than these tests take on the slowest machine; it is reached only if something was lost.
const PATIENCE: Duration = Duration::from_secs(120);

/// A reactor on a thread of its own.
struct Running {
    handle: Handle,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    fn start(core: u32, mode: Mode) -> Running {
        let (report, started) = mpsc::channel();
        let thread = thread::spawn(move || {
            let config = ReactorConfig { mode, ..ReactorConfig::new(core, Clock::system()) };
            let mut reactor = Reactor::new(config).expect("descriptors are to be had");
            report.send(reactor.handle()).expect("the starter waits");
            reactor.run();
        });
        Running { handle: started.recv().expect("it reports first"), thread: Some(thread) }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.handle.stop();
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the reactor ends in order");
        }
    }
}

fn ping(here: Handle, there: Handle, left: u32, done: mpsc::Sender<()>) {
    let there_again = there.clone();
    let message = Box::new(move |_: &mut Reactor| match left {
        0 => done.send(()).expect("the test waits"),
        _ => ping(there_again, here, left - 1, done),
    });
    there.send(message).expect("one message at a time");
}

#[test]
fn messages_between_two_sleepy_reactors_never_get_lost() {
    let (here, there) = (Running::start(0, Mode::Interrupt), Running::start(1, Mode::Interrupt));
    let (done, finished) = mpsc::channel();
    ping(here.handle.clone(), there.handle.clone(), 50_000, done);
    finished.recv_timeout(PATIENCE).expect("a message was slept over");
}

#[test]
fn messages_of_four_senders_all_run() {
    const EACH: u64 = 20_000;
    let running = Running::start(0, Mode::Interrupt);
    let ran = Arc::new(AtomicU64::new(0));
    let senders: Vec<_> = (0..4)
        .map(|_| {
            let (handle, ran) = (running.handle.clone(), Arc::clone(&ran));
            thread::spawn(move || (0..EACH).for_each(|_| send_patiently(&handle, &ran)))
        })
        .collect();
    senders.into_iter().for_each(|sender| sender.join().unwrap());
    // Behind all the others.
    let (done, finished) = mpsc::channel();
    let mut message: reactor::Message = Box::new(move |_| done.send(()).unwrap());
    while let Err(refused) = running.handle.send(message) {
        message = refused.into_message();
        thread::yield_now();
    }
    finished.recv_timeout(PATIENCE).expect("the reactor slept over a message");
    assert_eq!(ran.load(Ordering::Relaxed), 4 * EACH);
}

fn send_patiently(handle: &Handle, ran: &Arc<AtomicU64>) {
    let ran = Arc::clone(ran);
    let mut message: reactor::Message = Box::new(move |_| {
        ran.fetch_add(1, Ordering::Relaxed);
    });
    while let Err(refused) = handle.send(message) {
        message = refused.into_message();
        thread::yield_now();
    }
}

/// Takes what is in the box, and parks when it is empty.
struct Inbox {
    posted: Arc<AtomicU64>,
    taken: Arc<AtomicU64>,
}

impl Poller for Inbox {
    fn poll(&mut self, _now: Tick) -> Work {
        let posted = self.posted.load(Ordering::Acquire);
        if posted == self.taken.load(Ordering::Relaxed) {
            return Work::Idle;
        }
        self.taken.store(posted, Ordering::Release);
        Work::Busy
    }

    fn park(&mut self, _now: Tick) -> Park {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.posted.load(Ordering::Acquire) == self.taken.load(Ordering::Relaxed) {
            Park::Wait
        } else {
            Park::Ready
        }
    }
}

/// A guest and its doorbell: post, wake, wait for the answer; each turn meets the poller at another point of its way
/// into the park.
#[test]
fn pollers_that_park_after_each_item_never_miss_a_wake() {
    const TURNS: u64 = 30_000;
    for mode in [Mode::Interrupt, Mode::Adaptive { spin: Duration::from_micros(2) }] {
        let running = Running::start(0, mode);
        let drivers: Vec<_> = (0..2)
            .map(|_| {
                let (posted, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
                let waker = add_inbox(&running.handle, &posted, &taken);
                thread::spawn(move || (1..=TURNS).all(|turn| post(&waker, &posted, &taken, turn)))
            })
            .collect();
        let arrived: Vec<bool> = drivers.into_iter().map(|driver| driver.join().unwrap()).collect();
        assert_eq!(arrived, [true, true], "{mode:?}: a wake was missed");
    }
}

fn add_inbox(handle: &Handle, posted: &Arc<AtomicU64>, taken: &Arc<AtomicU64>) -> Waker {
    let (posted, taken) = (Arc::clone(posted), Arc::clone(taken));
    handle
        .call(move |reactor| {
            let group = Group::new("box", CoreMask::of(0));
            let mut waker = None;
            reactor.add(PollerSpec::new("box", &group), |cx| {
                waker = Some(cx.waker());
                Box::new(Inbox { posted, taken })
            });
            waker
        })
        .expect("the reactor runs")
        .expect("built at once")
}

/// False if the answer did not come.
fn post(waker: &Waker, posted: &AtomicU64, taken: &AtomicU64, turn: u64) -> bool {
    posted.store(turn, Ordering::Release);
    waker.wake();
    let begun = std::time::Instant::now();
    while taken.load(Ordering::Acquire) != turn {
        if begun.elapsed() > PATIENCE {
            return false;
        }
        thread::yield_now();
    }
    true
}

#[test]
fn mode_changes_under_load_lose_nothing() {
    let running = Running::start(0, Mode::Interrupt);
    let (posted, taken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
    let waker = add_inbox(&running.handle, &posted, &taken);
    let modes = [Mode::PollOnly, Mode::Interrupt, Mode::Adaptive { spin: Duration::from_micros(1) }];
    for turn in 1..=3_000u64 {
        running.handle.set_mode(modes[turn as usize % modes.len()]);
        assert!(post(&waker, &posted, &taken, turn), "turn {turn}: a wake was missed");
    }
}

#[test]
fn stop_while_senders_send_ends_the_reactor_and_every_call() {
    for _ in 0..50 {
        let mut running = Running::start(0, Mode::Interrupt);
        let handle = running.handle.clone();
        // Each call is answered, refused or dropped; none may wait for ever.
        let caller = thread::spawn(move || while handle.call(|_| ()).is_ok() {});
        running.handle.stop();
        caller.join().unwrap();
        running.thread.take().unwrap().join().unwrap();
    }
}
