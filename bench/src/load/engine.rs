//! The loop: every finished request is counted and checked. In closed loop it is followed by the next; in open loop the
//! next ones come when their [`Pace`] says so.
//!
//! One thread drives all queues of all disks in turn. While it runs it allocates nothing, makes no system call but the
//! kicks a device asks for, and reads the clock once for all requests that it finds finished together.

use std::time::Duration;

use reactor::{Clock, Tick};
use vfu::mock::{client::ClientError, ring::RingFault};

use super::{
    drive::Drive,
    latency::Latency,
    pace::Pace,
    stamp::Mismatch,
    target::{Pick, Target},
};

/// Finished requests taken at most before what follows them is published.
const BATCH_MAX: u32 = 32;
/// Turns without anything finished between two looks at the clock.
const IDLE_TURNS: u32 = 256;
/// Of so many turns one is timed for the generator's own cost: a power of two.
const TIMED_TURNS: u32 = 64;
/// How long nothing may finish before the run is given up.
const STALL: Duration = Duration::from_secs(10);

/// Why a run ended early.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    /// The device broke a ring.
    #[error("disk {disk}, queue {queue}: {source}")]
    Ring {
        /// Which disk.
        disk: usize,
        /// Which queue.
        queue: usize,
        /// How.
        source: RingFault,
    },
    /// A kick failed: the connection is gone.
    #[error("disk {disk}: {source}")]
    Kick {
        /// Which disk.
        disk: usize,
        /// How.
        source: ClientError,
    },
    /// Nothing finishes any more.
    #[error("nothing finished for {STALL:?}, with {in_flight} requests in flight")]
    Stalled {
        /// Requests that are waited for.
        in_flight: u32,
    },
    /// Data came back wrong.
    #[error("disk {disk}: {source}")]
    Verify {
        /// Which disk.
        disk: usize,
        /// How.
        source: Mismatch,
    },
}

/// A request in flight.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    started: Tick,
    pick: Pick,
}

/// One queue.
#[derive(Debug)]
struct Lane {
    disk: usize,
    queue: usize,
    slots: Box<[Slot]>,
    in_flight: u16,
    /// In open loop.
    pace: Option<Pace>,
}

/// One disk: its driver and what is asked of it.
pub(crate) struct Disk<D> {
    pub(crate) drive: D,
    pub(crate) target: Target,
}

/// What was counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) errors: u64,
    /// Kicks that devices asked for.
    pub(crate) kicks: u64,
    /// Turns in which something was finished.
    pub(crate) turns: u64,
}

impl Counts {
    /// Requests that succeeded.
    pub(crate) fn requests(&self) -> u64 {
        self.reads + self.writes
    }
}

/// What a run comes to.
#[derive(Debug)]
pub(crate) struct Outcome {
    pub(crate) counts: Counts,
    pub(crate) latency: Latency,
    /// Ticks measured.
    pub(crate) elapsed: u64,
    /// Requests finished in each interval.
    pub(crate) samples: Vec<u64>,
    /// The generator's own ticks for each request.
    pub(crate) own_cost: f64,
}

/// How long, and in what steps, in ticks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    pub(crate) warmup: u64,
    pub(crate) measured: u64,
    pub(crate) interval: u64,
}

/// The generator.
pub(crate) struct Engine<D> {
    clock: Clock,
    pub(crate) disks: Vec<Disk<D>>,
    lanes: Vec<Lane>,
    depth: u16,
    /// Finished requests taken before what follows them is published. Half of all that are in flight at most: the device
    /// has the other half to work on meanwhile, on other queues if need be.
    batch: u32,
    block_size: u32,
    stall: u64,
    latency: Latency,
    counts: Counts,
    /// Ticks and requests of the turns that were timed.
    timed: (u64, u64),
    turns: u32,
    in_flight: u32,
    /// No further requests: what is in flight is waited for.
    draining: bool,
}

impl<D: Drive> Engine<D> {
    /// A generator for `disks`, with `depth` requests of `block_size` bytes in flight on each queue.
    pub(crate) fn new(clock: Clock, disks: Vec<Disk<D>>, depth: u16, block_size: u32) -> Self {
        let lanes = disks.iter().enumerate().flat_map(|(disk, there)| {
            (0..there.drive.queues()).map(move |queue| {
                let slots = vec![Slot::default(); usize::from(there.drive.slots(queue))];
                Lane { disk, queue, slots: slots.into_boxed_slice(), in_flight: 0, pace: None }
            })
        });
        let lanes: Vec<Lane> = lanes.collect();
        let all = u32::from(depth).saturating_mul(u32::try_from(lanes.len()).unwrap_or(u32::MAX));
        let batch = (all / 2).clamp(1, BATCH_MAX);
        let stall = clock.ticks(STALL);
        let latency = Latency::new(clock.ticks_per_second());
        Self {
            clock,
            disks,
            lanes,
            depth,
            batch,
            block_size,
            stall,
            latency,
            counts: Counts::default(),
            timed: (0, 0),
            turns: 0,
            in_flight: 0,
            draining: false,
        }
    }

    /// Open loop from now on: `rate` requests a second over all queues, with at most the depth in flight on each.
    pub(crate) fn pace(&mut self, rate: u64) {
        let queues = self.lanes.len();
        for (nth, lane) in self.lanes.iter_mut().enumerate() {
            lane.pace = Some(Pace::new(&self.clock, rate, queues, nth));
        }
    }

    /// Puts the next request on a queue, one that started at `now`. False when there is none.
    #[inline]
    fn submit(&mut self, lane: usize, now: Tick) -> bool {
        let Lane { disk, queue, slots, in_flight, .. } = &mut self.lanes[lane];
        let Disk { drive, target } = &mut self.disks[*disk];
        // The depth fits into the ring, so there is a slot.
        let Some(slot) = drive.next_slot(*queue) else { return false };
        let Some(pick) = target.next() else { return false };
        let data = if pick.write { target.stamp(&pick) } else { target.blank() };
        if let Some(data) = data {
            drive.write_data(*queue, slot, data);
        }
        slots[usize::from(slot)] = Slot { started: now, pick };
        let submitted = drive.submit(*queue, pick.write, pick.sector, self.block_size);
        self.in_flight += u32::from(submitted);
        *in_flight += u16::from(submitted);
        submitted
    }

    #[inline]
    fn finish(&mut self, lane: usize, (slot, ok): (u16, bool), now: Tick) -> Result<(), RunError> {
        let Lane { disk, queue, slots, in_flight, .. } = &mut self.lanes[lane];
        *in_flight -= 1;
        let Slot { started, pick } = slots[usize::from(slot)];
        let Disk { drive, target } = &mut self.disks[*disk];
        self.latency.record(now.since(started));
        self.counts.reads += u64::from(ok && !pick.write);
        self.counts.writes += u64::from(ok && pick.write);
        self.counts.errors += u64::from(!ok);
        self.in_flight -= 1;
        let (disk, queue) = (*disk, *queue);
        let checked = target.done(&pick, ok, |data| drive.read_data(queue, slot, data));
        checked.map_err(|source| RunError::Verify { disk, source })
    }

    /// Makes the requests that are due on a queue and have room: how many. Each counts from when it was due.
    #[inline]
    fn make_due(&mut self, lane: usize, now: Tick) -> u32 {
        let mut made = 0;
        while made < BATCH_MAX && !self.draining && self.lanes[lane].in_flight < self.depth {
            let due = self.lanes[lane].pace.as_ref().and_then(|pace| pace.due(now));
            if !due.is_some_and(|due| self.submit(lane, due)) {
                break;
            }
            if let Some(pace) = &mut self.lanes[lane].pace {
                pace.advance();
            }
            made += 1;
        }
        made
    }

    /// Takes what has finished on a queue and lets as much follow, or what is due. When, if there was anything.
    #[inline]
    fn turn(&mut self, lane: usize) -> Result<Option<Tick>, RunError> {
        let (disk, queue) = (self.lanes[lane].disk, self.lanes[lane].queue);
        let poll = |engine: &mut Self| {
            let polled = engine.disks[disk].drive.poll(queue);
            polled.map_err(|source| RunError::Ring { disk, queue, source })
        };
        let is_paced = self.lanes[lane].pace.is_some();
        let mut next = poll(self)?;
        if next.is_none() && !is_paced {
            return Ok(None);
        }
        let now = self.clock.now();
        let mut count = 0;
        while let Some(done) = next {
            self.finish(lane, done, now)?;
            if !self.draining && !is_paced {
                self.submit(lane, now);
            }
            count += 1;
            next = if count < self.batch { poll(self)? } else { None };
        }
        if is_paced && self.make_due(lane, now) == 0 && count == 0 {
            return Ok(None);
        }
        self.publish(disk, queue)?;
        self.turns = self.turns.wrapping_add(1);
        self.counts.turns += 1;
        if self.turns.is_multiple_of(TIMED_TURNS) {
            self.timed.0 += self.clock.now().since(now);
            self.timed.1 += u64::from(count);
        }
        Ok(Some(now))
    }

    /// The turn of a queue comes after the next one's, which is about as long as a cache line takes to come over.
    #[inline]
    fn prefetch(&self, lane: usize) {
        if let Some(lane) = self.lanes.get(lane) {
            self.disks[lane.disk].drive.prefetch(lane.queue);
        }
    }

    #[inline]
    fn publish(&mut self, disk: usize, queue: usize) -> Result<(), RunError> {
        let kicks = self.disks[disk].drive.publish(queue);
        self.counts.kicks += kicks.map_err(|source| RunError::Kick { disk, source })?;
        Ok(())
    }

    /// Fills every queue up to its depth; in open loop it starts the schedules.
    fn fill(&mut self) -> Result<(), RunError> {
        self.draining = false;
        for lane in 0..self.lanes.len() {
            let now = self.clock.now();
            if let Some(pace) = &mut self.lanes[lane].pace {
                pace.start(now);
                continue;
            }
            let mut filled = 0;
            while filled < self.depth && self.submit(lane, now) {
                filled += 1;
            }
            self.publish(self.lanes[lane].disk, self.lanes[lane].queue)?;
        }
        Ok(())
    }

    /// Turns until `is_over` says so at a time it is told.
    fn until(&mut self, mut is_over: impl FnMut(&mut Self, Tick) -> bool) -> Result<(), RunError> {
        let (mut idle, mut last) = (0_u32, self.clock.now());
        loop {
            for lane in 0..self.lanes.len() {
                if let Some(now) = self.turn(lane)? {
                    (idle, last) = (0, now);
                    self.prefetch(lane + 2);
                    if is_over(self, now) {
                        return Ok(());
                    }
                } else {
                    idle += 1;
                }
            }
            if idle >= IDLE_TURNS {
                idle = 0;
                let now = self.clock.now();
                if now.since(last) > self.stall && self.in_flight > 0 {
                    return Err(RunError::Stalled { in_flight: self.in_flight });
                }
                if is_over(self, now) {
                    return Ok(());
                }
            }
        }
    }

    /// Waits for what is in flight.
    fn drain(&mut self) -> Result<(), RunError> {
        self.draining = true;
        if self.in_flight == 0 {
            return Ok(());
        }
        self.until(|engine, _| engine.in_flight == 0)
    }

    /// Runs for a time, and takes back what was in flight.
    ///
    /// # Errors
    /// See [`RunError`].
    pub(crate) fn run(&mut self, schedule: &Schedule) -> Result<Outcome, RunError> {
        let clock_cost = clock_cost(&self.clock);
        self.fill()?;
        let warm = self.clock.now().after(schedule.warmup);
        self.until(|_, now| now >= warm)?;
        self.latency.clear();
        self.counts = Counts::default();
        self.timed = (0, 0);
        let start = self.clock.now();
        let end = start.after(schedule.measured);
        let mut samples = Vec::with_capacity(
            usize::try_from(schedule.measured / schedule.interval.max(1)).unwrap_or(0) + 1,
        );
        let (mut next_sample, mut sampled) = (start.after(schedule.interval), 0);
        let mut over = start;
        self.until(|engine, now| {
            while now >= next_sample && samples.len() < samples.capacity() {
                let requests = engine.counts.requests();
                samples.push(requests - sampled);
                sampled = requests;
                next_sample = next_sample.after(schedule.interval);
            }
            over = now;
            now >= end
        })?;
        let (counts, timed) = (self.counts, self.timed);
        let fresh = Latency::new(self.clock.ticks_per_second());
        let latency = std::mem::replace(&mut self.latency, fresh);
        self.drain()?;
        let own_cost = if timed.1 == 0 {
            0.0
        } else {
            let turns = timed.0 as f64 - clock_cost * (counts.turns / u64::from(TIMED_TURNS)) as f64;
            turns.max(0.0) / timed.1 as f64
        };
        Ok(Outcome { counts, latency, elapsed: over.since(start), samples, own_cost })
    }

    /// Reads everything that was written and checks it. Requests that failed.
    ///
    /// # Errors
    /// See [`RunError`].
    pub(crate) fn read_back(&mut self) -> Result<u64, RunError> {
        self.disks.iter_mut().for_each(|disk| disk.target.read_back());
        self.lanes.iter_mut().for_each(|lane| lane.pace = None);
        self.counts = Counts::default();
        self.fill()?;
        if self.in_flight > 0 {
            self.until(|engine, _| engine.in_flight == 0)?;
        }
        Ok(self.counts.errors)
    }
}

/// Ticks that reading the clock takes: they are in every timed turn.
fn clock_cost(clock: &Clock) -> f64 {
    const ROUNDS: u32 = 1000;
    let start = clock.now();
    for _ in 0..ROUNDS {
        std::hint::black_box(clock.now());
    }
    clock.now().since(start) as f64 / f64::from(ROUNDS)
}
