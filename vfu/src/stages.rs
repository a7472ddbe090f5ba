//! Where a queue's time goes, by stage: a stopwatch that runs in one of [`EVERY`] passes of a queue's owner.
//!
//! Owners of both device models call [`Laps::lap`] after each stage. In a pass that is not timed it is [`Untimed`], which
//! is no code at all; a timed pass is compiled of its own. What was timed is added to the queue's [`StageTimes`], which
//! those who ask over RPC read. It counts the reactor's time, not how long a device below takes: that is in the bdev's
//! statistics.

use std::sync::atomic::{AtomicU64, Ordering};

use reactor::{Clock, Tick};

/// One of so many passes is timed. Timing a pass costs it a reading of the clock for each stage of each request, about as
/// much again as the requests of a null bdev take: one in 128 stays below one percent.
pub const EVERY: u32 = 128;
/// Readings of which the fastest says what a reading costs.
const CALIBRATION: usize = 16;

/// What a queue's owner does for a request, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Looks at the ring, and takes a chain or a command off it.
    Pickup,
    /// Decodes the request, and turns guest addresses into ours.
    Translate,
    /// Hands it to the bdev's channel, which checks it.
    Submit,
    /// The bdev's own: sending on what was submitted, and looking what has finished.
    Backend,
    /// Status and completion entry, and their publication.
    Complete,
    /// Raises the interrupt.
    Interrupt,
}

impl Stage {
    /// All of them, in order.
    pub const ALL: [Stage; 6] =
        [Stage::Pickup, Stage::Translate, Stage::Submit, Stage::Backend, Stage::Complete, Stage::Interrupt];

    /// Its name over RPC.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Stage::Pickup => "pickup",
            Stage::Translate => "translate",
            Stage::Submit => "submit",
            Stage::Backend => "backend",
            Stage::Complete => "complete",
            Stage::Interrupt => "interrupt",
        }
    }
}

/// What a pass reports its stages to.
pub trait Laps {
    /// A stage has ended; the next one begins.
    fn lap(&mut self, stage: Stage);

    /// So many requests were taken, and so many given back.
    fn count(&mut self, taken: u32, done: u32);
}

/// A pass that is not timed.
#[derive(Clone, Copy, Debug, Default)]
pub struct Untimed;

impl Laps for Untimed {
    #[inline(always)]
    fn lap(&mut self, _stage: Stage) {}

    #[inline(always)]
    fn count(&mut self, _taken: u32, _done: u32) {}
}

/// Times one pass.
#[derive(Debug)]
pub struct Stopwatch {
    clock: Clock,
    /// Ticks that a reading of the clock takes.
    cost: u64,
    last: Tick,
    so_far: StageReading,
}

impl Laps for Stopwatch {
    #[inline]
    fn lap(&mut self, stage: Stage) {
        let now = self.clock.now();
        self.so_far.ticks[stage as usize] += now.since(self.last).saturating_sub(self.cost);
        self.last = now;
    }

    #[inline]
    fn count(&mut self, taken: u32, done: u32) {
        self.so_far.taken += u64::from(taken);
        self.so_far.done += u64::from(done);
    }
}

/// Says which passes are timed; the owner's.
#[derive(Debug)]
pub struct Sampler {
    clock: Clock,
    cost: u64,
    left: u32,
}

impl Sampler {
    /// Of a queue on a reactor with this clock.
    #[must_use]
    pub fn new(clock: &Clock) -> Self {
        let reading = |_| {
            let before = clock.now();
            clock.now().since(before)
        };
        let cost = (0..CALIBRATION).map(reading).min().unwrap_or(0);
        Self { clock: clock.clone(), cost, left: EVERY }
    }

    /// Asked once a pass: whether this one is timed.
    #[inline]
    pub fn is_due(&mut self) -> bool {
        self.left -= 1;
        if self.left == 0 {
            self.left = EVERY;
            return true;
        }
        false
    }

    /// Starts timing.
    #[must_use]
    pub fn start(&self) -> Stopwatch {
        let so_far = StageReading { passes: 1, ..StageReading::default() };
        Stopwatch { clock: self.clock.clone(), cost: self.cost, last: self.clock.now(), so_far }
    }
}

/// What was timed of one queue. Only its owner adds to it.
#[derive(Debug, Default)]
pub struct StageTimes {
    passes: AtomicU64,
    taken: AtomicU64,
    done: AtomicU64,
    ticks: [AtomicU64; Stage::ALL.len()],
}

/// A reading of [`StageTimes`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StageReading {
    /// Passes that were timed and had something to do.
    pub passes: u64,
    /// Requests taken in them.
    pub taken: u64,
    /// Requests given back in them.
    pub done: u64,
    /// Ticks of each stage, as [`Stage::ALL`] has them.
    pub ticks: [u64; Stage::ALL.len()],
}

impl StageTimes {
    /// Adds a timed pass; one that neither took nor gave back a request does not count.
    pub fn add(&self, watch: &Stopwatch) {
        if watch.so_far.taken + watch.so_far.done > 0 {
            self.merge(&watch.so_far);
        }
    }

    /// Adds what was read elsewhere.
    pub fn merge(&self, more: &StageReading) {
        let add = |counter: &AtomicU64, n: u64| {
            counter.store(counter.load(Ordering::Relaxed) + n, Ordering::Relaxed);
        };
        add(&self.passes, more.passes);
        add(&self.taken, more.taken);
        add(&self.done, more.done);
        self.ticks.iter().zip(more.ticks).for_each(|(counter, n)| add(counter, n));
    }

    /// What was timed so far.
    #[must_use]
    pub fn read(&self) -> StageReading {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        StageReading {
            passes: read(&self.passes),
            taken: read(&self.taken),
            done: read(&self.done),
            ticks: std::array::from_fn(|at| read(&self.ticks[at])),
        }
    }
}

impl StageReading {
    /// Ticks of a stage for each request that went through it: the first three are gone through by those taken, the
    /// others by those given back.
    #[must_use]
    pub fn per_request(&self, stage: Stage) -> f64 {
        let requests = match stage {
            Stage::Pickup | Stage::Translate | Stage::Submit => self.taken,
            Stage::Backend | Stage::Complete | Stage::Interrupt => self.done,
        };
        self.ticks[stage as usize] as f64 / requests.max(1) as f64
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn one_pass_of_every_so_many_is_timed() {
        let (clock, _hand) = Clock::fake();
        let mut sampler = Sampler::new(&clock);
        let timed = (0..10 * EVERY).filter(|_| sampler.is_due()).count();
        assert_eq!(timed, 10);
    }

    #[test]
    fn time_goes_to_the_stage_that_has_ended() {
        let (clock, hand) = Clock::fake();
        let sampler = Sampler::new(&clock);
        let times = StageTimes::default();
        let mut watch = sampler.start();
        for (nanos, stage) in
            [(30, Stage::Pickup), (7, Stage::Submit), (30, Stage::Pickup), (8, Stage::Complete)]
        {
            hand.advance(Duration::from_nanos(nanos));
            watch.lap(stage);
        }
        watch.count(2, 1);
        times.add(&watch);

        let read = times.read();
        assert_eq!((read.passes, read.taken, read.done), (1, 2, 1));
        let each = Stage::ALL.map(|stage| read.per_request(stage));
        assert_eq!(each, [30.0, 0.0, 3.5, 0.0, 8.0, 0.0]);
    }

    #[test]
    fn pass_that_did_nothing_does_not_count() {
        let (clock, hand) = Clock::fake();
        let (sampler, times) = (Sampler::new(&clock), StageTimes::default());
        let mut watch = sampler.start();
        hand.advance(Duration::from_nanos(100));
        watch.lap(Stage::Pickup);
        times.add(&watch);
        assert_eq!(times.read(), StageReading::default());
        assert_eq!(times.read().per_request(Stage::Pickup), 0.0);
    }

    #[test]
    fn readings_add_up() {
        let times = StageTimes::default();
        let one = StageReading { passes: 1, taken: 2, done: 3, ticks: [1, 2, 3, 4, 5, 6] };
        times.merge(&one);
        times.merge(&one);
        let sum = StageReading { passes: 2, taken: 4, done: 6, ticks: [2, 4, 6, 8, 10, 12] };
        assert_eq!(times.read(), sum);
    }
}
