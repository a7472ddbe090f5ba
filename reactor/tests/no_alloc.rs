//! Polling, parking and waking allocate nothing.
//!
//! Counted is what the test's own thread allocates: the test harness has threads of its own.
#![expect(unsafe_code, reason = "a global allocator is an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::os::fd::AsFd;
use std::time::Duration;

use reactor::{
    Clock, CoreMask, Group, Interest, Mode, Park, Pass, Poller, PollerSpec, Reactor, ReactorConfig, Spin,
    Tick, Waker, Watch, Work,
};

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: every call goes to the system's allocator unchanged; the count is a plain cell that needs neither memory nor
// a destructor.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller's promise is the one that the system's allocator asks for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: as above; `block` came from `System`.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Finds work every other time.
struct Worker(bool);

impl Poller for Worker {
    fn poll(&mut self, _now: Tick) -> Work {
        self.0 = !self.0;
        if self.0 { Work::Busy } else { Work::Idle }
    }
}

/// Parks whenever it may, with a deadline.
struct Sleeper {
    fallback_ticks: u64,
    _watch: Option<Watch>,
}

impl Poller for Sleeper {
    fn poll(&mut self, _now: Tick) -> Work {
        Work::Idle
    }

    fn park(&mut self, now: Tick) -> Park {
        Park::Until(now.after(self.fallback_ticks))
    }
}

fn add_sleeper(reactor: &mut Reactor, spec: PollerSpec, fd: Option<&std::io::PipeReader>) -> Waker {
    let mut waker = None;
    reactor.add(spec, |cx| {
        waker = Some(cx.waker());
        let watch = fd.map(|fd| cx.watch(fd.as_fd(), Interest::Read).expect("a pipe can be watched"));
        Box::new(Sleeper { fallback_ticks: 200_000, _watch: watch })
    });
    waker.expect("built at once")
}

#[test]
fn a_hundred_thousand_passes_allocate_nothing() {
    let (clock, hand) = Clock::fake();
    let mode = Mode::Adaptive { spin: Duration::from_micros(5) };
    let mut reactor = Reactor::new(ReactorConfig { mode, ..ReactorConfig::new(0, clock) }).unwrap();
    let group = Group::new("g", CoreMask::of(0));
    // Always readable: the descriptor wakes its poller at each look.
    let (readable, mut writer) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut writer, b"x").unwrap();
    reactor.add(PollerSpec::new("worker", &group), |_| Box::new(Worker(false)));
    reactor
        .add(PollerSpec::new("timed", &group).period(Duration::from_micros(30)), |_| Box::new(Worker(false)));
    let socket = PollerSpec::new("socket", &group).spin(Spin::None);
    add_sleeper(&mut reactor, socket, Some(&readable));
    let wakers: Vec<Waker> =
        (0..100).map(|_| add_sleeper(&mut reactor, PollerSpec::new("sleeper", &group), None)).collect();
    reactor.poll_once();
    let before = ALLOCATIONS.get();
    for turn in 0..100_000 {
        hand.advance(Duration::from_micros(1));
        wakers[turn % wakers.len()].wake();
        assert_ne!(reactor.poll_once(), Pass::Stopped);
    }
    assert_eq!(ALLOCATIONS.get(), before);
    let pollers = reactor.handle().pollers();
    // It was not a hundred thousand times nothing.
    assert!(pollers.iter().all(|poller| poller.run_count > 100), "{pollers:?}");
}
