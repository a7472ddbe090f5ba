//! `limits`: what this machine can do at best, to hold the target's figures against: a ring without a device, a cache line
//! that goes to and fro, and a loop that copies.
//!
//! `scripts/bench` runs it between the measurements, on the same cores.

use std::{
    hint::black_box,
    io::Write,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::Duration,
};

use ::bdev::arena::{Memory, StaticBuffer};
use anyhow::Context;
use reactor::Clock;

use crate::{affinity, load::Latency};

/// Round trips between two readings of the clock in the rate.
const TRIPS: u32 = 1000;
const BLOCK: usize = 4096;
/// Buffers that are copied to in turn: as many as requests in flight at the depth that it is compared with.
const BUFFERS: usize = 128;

/// Measures what this machine can do at best.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Args {
    /// Core of the side that answers, and of the copies: the target's
    #[arg(long, default_value_t = 0)]
    cpu: usize,
    /// Core of the side that asks: the load generator's
    #[arg(long, default_value_t = 1)]
    peer: usize,
    /// Time of each measurement in seconds
    #[arg(long, default_value_t = 0.5)]
    seconds: f64,
    /// MiB to copy from, in random order
    #[arg(long, default_value_t = 512)]
    size_mib: usize,
}

/// A cache line that one side writes. Neighbours are fetched in pairs, so it has two to itself.
#[repr(align(128))]
#[derive(Default)]
struct Line([AtomicU64; 8]);

impl Line {
    fn get(&self, at: usize) -> u64 {
        self.0[at].load(Ordering::Relaxed)
    }

    fn set(&self, at: usize, value: u64) {
        self.0[at].store(value, Ordering::Relaxed);
    }

    /// Waits until the first word is `value`; false if it never will be.
    fn wait(&self, value: u64, is_over: &AtomicBool) -> bool {
        while self.0[0].load(Ordering::Acquire) != value {
            // No pause: a reactor makes none either, and some hypervisors take it for a wish to sleep.
            if is_over.load(Ordering::Relaxed) {
                return false;
            }
        }
        true
    }

    fn publish(&self, value: u64) {
        self.0[0].store(value, Ordering::Release);
    }
}

/// Two sides that wait for each other.
trait Game: Default + Send + Sync + 'static {
    /// Answers until it is over.
    fn answer(&self);
    /// Asks, and waits for the answer.
    fn ask(&self, turn: u64);
    fn is_over(&self) -> &AtomicBool;
}

/// The lines of a split ring with one request: three that go to the device, two that come back (virtio 1.2, 2.7).
#[derive(Default)]
struct Ring {
    /// Index, and the entry in word 1.
    available: Line,
    /// Three descriptors of two words each.
    descriptors: Line,
    header: Line,
    status: Line,
    /// Index, and the entry in word 1.
    used: Line,
    is_over: AtomicBool,
}

impl Game for Ring {
    /// What a device does at least: each line read once, in the order that one says where the next is.
    fn answer(&self) {
        for turn in 1.. {
            if !self.available.wait(turn, &self.is_over) {
                return;
            }
            let head = self.available.get(1) as usize % 2;
            let (address, data, status) =
                (self.descriptors.get(head), self.descriptors.get(2), self.descriptors.get(4));
            black_box((address, data, status, self.header.get(0), self.header.get(1)));
            self.status.set(0, 0);
            self.used.set(1, head as u64);
            self.used.publish(turn);
        }
    }

    fn ask(&self, turn: u64) {
        self.header.set(0, turn);
        self.header.set(1, turn * 8);
        for word in 0..6 {
            self.descriptors.set(word, turn);
        }
        self.status.set(0, 0xff);
        self.available.set(1, 0);
        self.available.publish(turn);
        self.used.wait(turn, &self.is_over);
        black_box((self.used.get(1), self.status.get(0)));
    }

    fn is_over(&self) -> &AtomicBool {
        &self.is_over
    }
}

/// One line there, one line back.
#[derive(Default)]
struct PingPong {
    there: Line,
    back: Line,
    is_over: AtomicBool,
}

impl Game for PingPong {
    fn answer(&self) {
        for turn in 1.. {
            if !self.there.wait(turn, &self.is_over) {
                return;
            }
            self.back.publish(turn);
        }
    }

    fn ask(&self, turn: u64) {
        self.there.publish(turn);
        self.back.wait(turn, &self.is_over);
    }

    fn is_over(&self) -> &AtomicBool {
        &self.is_over
    }
}

/// Asks for a time, each round trip timed as a driver sees it. The median in nanoseconds.
fn ask_for<G: Game>(game: &G, seconds: f64) -> f64 {
    let clock = Clock::system();
    let mut latency = Latency::new(clock.ticks_per_second());
    let mut turn = 0;
    for measured in [seconds / 4.0, seconds] {
        latency.clear();
        let mut before = clock.now();
        let end = before.after(clock.ticks(Duration::from_secs_f64(measured)));
        while before < end && !game.is_over().load(Ordering::Relaxed) {
            for _ in 0..TRIPS {
                turn += 1;
                game.ask(turn);
                let now = clock.now();
                latency.record(now.since(before));
                before = now;
            }
        }
    }
    latency.summary(clock.ticks_per_second()).p50_ns
}

/// The median round trip in nanoseconds.
fn round_trip<G: Game>(args: &Args) -> anyhow::Result<f64> {
    let game = &G::default();
    // Each side on a thread of its own, so that this one stays free to choose its core; whoever is done, or could not start,
    // says that it is over.
    thread::scope(|scope| {
        let side = |cpu: usize, play: &dyn Fn() -> f64| {
            let median = affinity::pin(cpu).map(|()| play());
            game.is_over().store(true, Ordering::Relaxed);
            median
        };
        let answers = scope.spawn(move || {
            side(args.cpu, &|| {
                game.answer();
                0.0
            })
        });
        let asks = scope.spawn(move || side(args.peer, &|| ask_for(game, args.seconds)));
        let ended = [answers.join(), asks.join()].map(|joined| joined.expect("neither side panics"));
        let [answers, asks] = ended;
        answers?;
        Ok(asks?)
    })
}

/// Copies a second of random blocks, in nanoseconds each.
fn copies(args: &Args, mut copy: impl FnMut(usize, usize)) -> f64 {
    let clock = Clock::system();
    let blocks = (args.size_mib << 20) / BLOCK;
    let mut random = 1_u64;
    let mut time = |seconds: f64| {
        let (start, mut count) = (clock.now(), 0);
        let end = start.after(clock.ticks(Duration::from_secs_f64(seconds)));
        while clock.now() < end {
            for buffer in 0..BUFFERS {
                random ^= random >> 12;
                random ^= random << 25;
                random ^= random >> 27;
                let block = (random.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % blocks;
                copy(block * BLOCK, buffer * BLOCK);
            }
            count += BUFFERS;
        }
        clock.duration(clock.now().since(start)).as_nanos() as f64 / count as f64
    };
    time(args.seconds / 4.0);
    time(args.seconds)
}

/// Runs the subcommand.
///
/// # Errors
/// What was wrong, for people.
pub(crate) fn run(args: Args) -> anyhow::Result<()> {
    let (line, ring) = (round_trip::<PingPong>(&args)?, round_trip::<Ring>(&args)?);

    affinity::pin(args.cpu)?;
    let len = args.size_mib << 20;
    let arena = Memory::zeroed(len)?;
    let target = StaticBuffer::new(BUFFERS * BLOCK)?;
    let vectors = (0..BUFFERS).map(|nth| target.iovec(nth * BLOCK, BLOCK));
    let vectors = vectors.collect::<Option<Vec<_>>>().context("inside the buffer")?;
    for block in (0..len).step_by(BLOCK) {
        // The pages are there, and not all the same one.
        black_box(arena.copy_from(block, vectors[0]));
    }
    let in_arena = copies(&args, |from, to| {
        black_box(arena.copy_to(from, vectors[to / BLOCK]));
    });
    drop(arena);
    let (from_pages, mut to_pages) = (vec![1_u8; len], vec![0_u8; BUFFERS * BLOCK]);
    let plain = copies(&args, |from, to| {
        to_pages[to..to + BLOCK].copy_from_slice(&from_pages[from..from + BLOCK]);
        black_box(&to_pages);
    });
    let figures = serde_json::json!({
        "line_ns": line,
        "ring_ns": ring,
        "copy_arena_ns": in_arena,
        "copy_plain_ns": plain,
    });
    writeln!(std::io::stdout(), "{figures}")?;
    Ok(())
}
