//! What a pass, a message and a wake-up cost on this machine: `cargo bench -p reactor`.
//!
//! Plain loops and medians over rounds, one JSON line for each figure. Message and wake need two cores; on a machine
//! with one they are left out.
#![expect(clippy::print_stdout, reason = "the figures are the output")]

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use reactor::{
    Config, CoreMask, Group, Handle, Mode, Park, Poller, PollerSpec, Reactor, Reactors, Tick, Waker, Work,
    allowed_cores,
};

const ROUNDS: usize = 9;
const ROUND_TIME: Duration = Duration::from_millis(200);

/// Never finds work. It looks at a word of its own, as a queue's poller looks at its ring.
struct Idle {
    index: AtomicU64,
    seen: u64,
}

impl Poller for Idle {
    fn poll(&mut self, _now: Tick) -> Work {
        if self.index.load(Ordering::Acquire) == self.seen { Work::Idle } else { Work::Busy }
    }
}

/// Always finds work and does none.
struct Busy;

impl Poller for Busy {
    fn poll(&mut self, _now: Tick) -> Work {
        Work::Busy
    }
}

/// Parks for good.
struct Parked;

impl Poller for Parked {
    fn poll(&mut self, _now: Tick) -> Work {
        Work::Idle
    }

    fn park(&mut self, _now: Tick) -> Park {
        Park::Wait
    }
}

fn main() {
    // `cargo test --all-targets` runs this file too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let cores: Vec<u32> = allowed_cores().iter().collect();
    clock_reading();
    let last = cores[cores.len() - 1];
    pass("pass_over_64_idle_pollers_ns", last, Mode::PollOnly, |reactor, group| {
        (0..64).for_each(|_| add(reactor, group, Idle { index: AtomicU64::new(0), seen: 0 }));
    });
    pass("pass_with_1_busy_poller_ns", last, Mode::PollOnly, |reactor, group| add(reactor, group, Busy));
    pass("pass_with_1_busy_and_256_parked_pollers_ns", last, Mode::default(), |reactor, group| {
        add(reactor, group, Busy);
        (0..256).for_each(|_| add(reactor, group, Parked));
    });
    if let [here, .., there] = cores[..] {
        message_one_way(here, there);
        wake_awake_poller(there);
        wake_from_sleep(there);
    }
}

fn report(figure: &str, mut rounds: Vec<f64>) {
    rounds.sort_unstable_by(f64::total_cmp);
    let (median, least, most) = (rounds[rounds.len() / 2], rounds[0], rounds[rounds.len() - 1]);
    println!("{{\"figure\":\"{figure}\",\"median\":{median:.1},\"min\":{least:.1},\"max\":{most:.1}}}");
}

fn start(cores: CoreMask, mode: Mode) -> Reactors {
    // Another process that takes the core for a while is no stall of ours.
    let config = Config { mode, stall_limit: Duration::from_secs(10), ..Config::new(cores) };
    Reactors::start(config).expect("the cores are ours")
}

fn add(reactor: &mut Reactor, group: &Group, poller: impl Poller + 'static) {
    reactor.add(PollerSpec::new("p", group), |_| Box::new(poller));
}

fn clock_reading() {
    let clock = reactor::Clock::system();
    let rounds = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        for _ in 0..100_000 {
            std::hint::black_box(std::hint::black_box(&clock).now());
        }
        begun.elapsed().as_secs_f64() * 1e9 / 100_000.0
    });
    report("clock_reading_ns", rounds.collect());
}

/// A pinned reactor runs freely; the first poller's polls count the passes. Its time is what the kernel says that its
/// thread ran, so that other processes on the core do not count.
fn pass(figure: &str, core: u32, mode: Mode, fill: impl FnOnce(&mut Reactor, &Group) + Send + 'static) {
    let reactors = start(CoreMask::of(core), mode);
    let filled = reactors.main().call(move |reactor| fill(reactor, &Group::new("bench", CoreMask::of(core))));
    filled.expect("the reactor runs");
    let tid = reactors.main().stats().tid;
    let passes = || (run_time_ns(tid), reactors.main().pollers()[0].run_count);
    std::thread::sleep(ROUND_TIME);
    let rounds = (0..ROUNDS).map(|_| {
        let (begin, passes_begin) = passes();
        std::thread::sleep(ROUND_TIME);
        let (end, passes_end) = passes();
        (end - begin) / (passes_end - passes_begin) as f64
    });
    report(figure, rounds.collect());
}

/// Good to a scheduler tick.
fn run_time_ns(tid: u32) -> f64 {
    let line = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).expect("the thread runs");
    line.split_whitespace()
        .next()
        .and_then(|time| time.parse().ok())
        .expect("the first field is the run time")
}

/// Two reactors that play a message to and fro. Lent for ever, so that no count of references moves between the cores
/// with it.
struct Court {
    sides: [Handle; 2],
    done: mpsc::Sender<()>,
}

fn play(court: &'static Court, side: usize, left: u32) {
    if left == 0 {
        return court.done.send(()).expect("the bench waits");
    }
    let message = Box::new(move |_: &mut Reactor| play(court, 1 - side, left - 1));
    court.sides[1 - side].send(message).expect("one message at a time");
}

fn message_one_way(here: u32, there: u32) {
    // Short rounds, and many of them: one in which another process takes a core tells nothing.
    const MESSAGES: u32 = 2_000;
    const ROUNDS: usize = 301;
    let reactors = start(CoreMask::from_iter([here, there]), Mode::PollOnly);
    let sides = [here, there].map(|core| reactors.handle(core).expect("started").clone());
    let (done, finished) = mpsc::channel();
    let court: &'static Court = Box::leak(Box::new(Court { sides, done }));
    let rounds = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        play(court, 0, MESSAGES);
        finished.recv().expect("the last message answers");
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(MESSAGES)
    });
    report("message_one_way_awake_ns", rounds.collect());
}

fn waker_of(handle: &Handle, build: impl FnOnce() -> Box<dyn Poller> + Send + 'static) -> Waker {
    let waker = handle.call(move |reactor| {
        let mut waker = None;
        reactor.add(PollerSpec::new("p", &Group::new("bench", CoreMask::of(0))), |cx| {
            waker = Some(cx.waker());
            build()
        });
        waker
    });
    waker.expect("the reactor runs").expect("it was built")
}

fn wake_awake_poller(core: u32) {
    const WAKES: u32 = 1_000_000;
    let reactors = start(CoreMask::of(core), Mode::PollOnly);
    let waker = waker_of(reactors.main(), || Box::new(Busy));
    let rounds = (0..ROUNDS).map(|_| {
        let begun = Instant::now();
        (0..WAKES).for_each(|_| waker.wake());
        begun.elapsed().as_secs_f64() * 1e9 / f64::from(WAKES)
    });
    report("wake_of_awake_poller_ns", rounds.collect());
}

/// Notes when it is polled after a wake.
struct Answer {
    asked: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    clock: reactor::Clock,
}

impl Poller for Answer {
    fn poll(&mut self, _now: Tick) -> Work {
        if !self.asked.swap(false, Ordering::AcqRel) {
            return Work::Idle;
        }
        self.answered.store(self.clock.now().raw(), Ordering::Release);
        Work::Busy
    }

    fn park(&mut self, _now: Tick) -> Park {
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.asked.load(Ordering::Acquire) { Park::Ready } else { Park::Wait }
    }
}

/// From `wake()` on one core to the poll on another whose reactor slept for a millisecond.
fn wake_from_sleep(core: u32) {
    let reactors = start(CoreMask::of(core), Mode::default());
    let (clock, asked) = (reactors.clock().clone(), Arc::new(AtomicBool::new(false)));
    let answered = Arc::new(AtomicU64::new(0));
    let poller = (Arc::clone(&asked), Arc::clone(&answered), clock.clone());
    let waker = waker_of(reactors.main(), move || {
        let (asked, answered, clock) = poller;
        Box::new(Answer { asked, answered, clock })
    });
    let mut latencies: Vec<f64> = (0..2000)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(1));
            answered.store(0, Ordering::Release);
            let begun = clock.now();
            asked.store(true, Ordering::Release);
            waker.wake();
            while answered.load(Ordering::Acquire) == 0 {
                std::hint::spin_loop();
            }
            clock.duration(Tick::from_raw(answered.load(Ordering::Acquire)).since(begun)).as_secs_f64() * 1e6
        })
        .collect();
    latencies.sort_unstable_by(f64::total_cmp);
    let (median, p99) = (latencies[latencies.len() / 2], latencies[latencies.len() * 99 / 100]);
    println!("{{\"figure\":\"wake_from_sleep_us\",\"median\":{median:.1},\"p99\":{p99:.1}}}");
}
