//! One job: a thread that keeps a channel full for a while and counts.

use std::{sync::Arc, thread, time::Duration};

use ::bdev::{
    Completion, Descriptor, IoChannel, IoVec, Op, Rejected, Request, Status, Token, arena::StaticBuffer,
};
use anyhow::{Context, bail};
use reactor::Clock;

use super::Workload;
use crate::{affinity, load::Latency};

/// Completions taken at a time.
const BATCH: usize = 128;
/// Bytes of a request that fills.
const FILL_BYTES: usize = 1 << 20;

/// What a job needs.
pub(super) struct Job {
    pub(super) descriptor: Arc<Descriptor>,
    pub(super) clock: Clock,
    pub(super) workload: Workload,
    pub(super) depth: u16,
    /// Blocks of a request.
    pub(super) per_request: u64,
    /// Requests that the bdev holds.
    pub(super) units: u64,
    pub(super) read_percent: u8,
    pub(super) nth: u16,
    pub(super) jobs: u16,
    pub(super) core: Option<usize>,
    pub(super) warmup: Duration,
    pub(super) measured: Duration,
}

/// What came of it.
pub(super) struct Outcome {
    pub(super) requests: u64,
    pub(super) errors: u64,
    pub(super) compared: u64,
    pub(super) seconds: f64,
    pub(super) latency: Latency,
}

impl Outcome {
    pub(super) fn new(ticks_per_second: u64) -> Self {
        Self { requests: 0, errors: 0, compared: 0, seconds: 0.0, latency: Latency::new(ticks_per_second) }
    }

    pub(super) fn add(&mut self, mut other: Self) {
        self.requests += other.requests;
        self.errors += other.errors;
        self.compared += other.compared;
        self.seconds = self.seconds.max(other.seconds);
        self.latency.merge(&mut other.latency);
    }
}

/// One request's place.
struct Slot {
    iov: [IoVec; 1],
    unit: u64,
    /// What was written there, while it is read back.
    expected: Option<u64>,
    submitted: u64,
    is_write: bool,
}

struct Runner {
    job: Job,
    channel: IoChannel,
    slots: Vec<Slot>,
    /// Tokens to be submitted.
    idle: Vec<u32>,
    random: u64,
    next: u64,
    outcome: Outcome,
    scratch: Vec<u8>,
}

impl Job {
    /// Runs it.
    ///
    /// # Errors
    /// The channel, memory or core cannot be had; or what was read back is not what was written.
    pub(super) fn run(self) -> anyhow::Result<Outcome> {
        if let Some(core) = self.core {
            affinity::pin(core)?;
        }
        let channel = self.descriptor.open_channel(self.depth)?;
        let len = self.per_request as usize * channel.info().block_size as usize;
        let memory = StaticBuffer::new(len * usize::from(self.depth)).context("memory for the requests")?;
        let slot = |at: u16| {
            let iov = [memory.iovec(usize::from(at) * len, len).context("inside the memory")?];
            Ok::<_, anyhow::Error>(Slot { iov, unit: 0, expected: None, submitted: 0, is_write: false })
        };
        let slots = (0..self.depth).map(slot).collect::<Result<Vec<_>, _>>()?;
        let outcome = Outcome::new(self.clock.ticks_per_second());
        let mut runner = Runner {
            channel,
            slots,
            idle: (0..u32::from(self.depth)).rev().collect(),
            random: 0x9e37_79b9_7f4a_7c15 ^ (u64::from(self.nth) << 32),
            next: self.units / u64::from(self.jobs) * u64::from(self.nth),
            outcome,
            scratch: vec![0; len],
            job: self,
        };
        runner.run()?;
        Ok(runner.outcome)
    }
}

impl Runner {
    fn next_random(&mut self) -> u64 {
        // xorshift64, Marsaglia 2003.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random
    }

    fn run(&mut self) -> anyhow::Result<()> {
        let start = self.job.clock.now();
        let begin = start.after(self.job.clock.ticks(self.job.warmup));
        let end = begin.after(self.job.clock.ticks(self.job.measured));
        let mut measuring_since = None;
        loop {
            let now = self.job.clock.now();
            if now >= end {
                break;
            }
            if measuring_since.is_none() && now >= begin {
                measuring_since = Some(now);
                self.outcome.requests = 0;
                self.outcome.latency.clear();
            }
            self.pass(now.raw())?;
        }
        let stopped = self.job.clock.now();
        let since = measuring_since.unwrap_or(start);
        self.outcome.seconds = self.job.clock.duration(stopped.since(since)).as_secs_f64();
        let (requests, mut done) = (self.outcome.requests, [Completion::EMPTY; BATCH]);
        while self.channel.in_flight() > 0 {
            let n = self.channel.reap(&mut done);
            for completion in &done[..n] {
                self.end(*completion, stopped.raw())?;
            }
            thread::yield_now();
        }
        self.outcome.requests = requests;
        Ok(())
    }

    /// Submits what is idle, and takes what is done.
    fn pass(&mut self, now: u64) -> anyhow::Result<()> {
        self.channel.set_now(now);
        let mut submitted = false;
        while let Some(token) = self.idle.pop() {
            match self.submit(token, now) {
                Ok(()) => submitted = true,
                Err(Rejected::Full) => {
                    self.idle.push(token);
                    break;
                }
                Err(Rejected::Failed(status)) => bail!("the bdev refuses a request: {status:?}"),
            }
        }
        if submitted {
            self.channel.kick();
        }
        let mut done = [Completion::EMPTY; BATCH];
        let n = self.channel.reap(&mut done);
        for completion in &done[..n] {
            self.end(*completion, now)?;
        }
        Ok(())
    }

    fn submit(&mut self, token: u32, now: u64) -> Result<(), Rejected> {
        let op = if self.slots[token as usize].expected.is_some() { Op::Read } else { self.choose(token) };
        let slot = &mut self.slots[token as usize];
        slot.submitted = now;
        slot.is_write = op == Op::WRITE;
        let request = match op {
            Op::Flush => Request { op, lba: 0, blocks: 0, iov: &[], token: Token(token) },
            _ => Request {
                op,
                lba: slot.unit * self.job.per_request,
                blocks: self.job.per_request,
                iov: if op.kind().has_data() { &slot.iov } else { &[] },
                token: Token(token),
            },
        };
        self.channel.submit(&request)
    }

    /// The next request of a slot, and where it goes.
    fn choose(&mut self, token: u32) -> Op {
        use Workload::{Flush, Randread, Randrw, Randwrite, Read, Rw, Unmap, Verify, Write, WriteZeroes};
        let workload = self.job.workload;
        let random = self.next_random();
        let unit = match workload {
            Read | Write | Rw => {
                self.next = if self.next + 1 >= self.job.units { 0 } else { self.next + 1 };
                self.next
            }
            Verify => {
                // Every slot of every job has units of its own.
                let slots = u64::from(self.job.jobs) * u64::from(self.job.depth);
                let own = u64::from(self.job.nth) * u64::from(self.job.depth) + u64::from(token);
                random % (self.job.units / slots) * slots + own
            }
            _ => random % self.job.units,
        };
        self.slots[token as usize].unit = unit;
        let reads = (random >> 40) % 100 < u64::from(self.job.read_percent);
        match workload {
            Read | Randread => Op::Read,
            Write | Randwrite => Op::WRITE,
            Rw | Randrw => {
                if reads {
                    Op::Read
                } else {
                    Op::WRITE
                }
            }
            Verify => {
                stamp(&mut self.scratch, random);
                self.slots[token as usize].iov[0].copy_from(0, &self.scratch);
                Op::WRITE
            }
            Flush => {
                if self.slots[token as usize].is_write {
                    Op::Flush
                } else {
                    Op::WRITE
                }
            }
            Unmap => Op::Unmap,
            WriteZeroes => Op::WRITE_ZEROES,
        }
    }

    fn end(&mut self, completion: Completion, now: u64) -> anyhow::Result<()> {
        let token = completion.token.0;
        let slot = &mut self.slots[token as usize];
        self.outcome.latency.record(now.saturating_sub(slot.submitted));
        self.outcome.requests += 1;
        self.outcome.errors += u64::from(completion.status != Status::Ok);
        if self.job.workload == Workload::Verify {
            match slot.expected.take() {
                None => {
                    // The seed is the first word of what was written.
                    let mut word = [0; 8];
                    slot.iov[0].copy_to(0, &mut word);
                    slot.expected = Some(u64::from_le_bytes(word));
                    slot.iov[0].fill(0, slot.iov[0].len(), 0);
                }
                Some(seed) => {
                    let mut seen = vec![0; self.scratch.len()];
                    slot.iov[0].copy_to(0, &mut seen);
                    stamp(&mut self.scratch, seed);
                    if seen != self.scratch {
                        bail!("request {} reads back as something else than was written", slot.unit);
                    }
                    self.outcome.compared += 1;
                }
            }
        }
        self.idle.push(token);
        Ok(())
    }
}

/// Fills bytes from a seed, which comes first.
fn stamp(bytes: &mut [u8], seed: u64) {
    let mut state = seed;
    for word in bytes.chunks_mut(8) {
        word.copy_from_slice(&state.to_le_bytes()[..word.len()]);
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    }
}

/// Writes the whole bdev.
///
/// # Errors
/// A write failed.
pub(super) fn fill(descriptor: &Arc<Descriptor>) -> anyhow::Result<()> {
    let mut channel = descriptor.open_channel(1)?;
    let info = channel.info().clone();
    let block = info.block_size as usize;
    let memory = StaticBuffer::new(FILL_BYTES)?;
    memory.iovec(0, FILL_BYTES).context("the whole")?.fill(0, FILL_BYTES, 0x5a);
    let step = (FILL_BYTES / block) as u64;
    let mut done = [Completion::EMPTY; 1];
    for lba in (0..info.num_blocks()).step_by(step as usize) {
        let blocks = step.min(info.num_blocks() - lba);
        let iov = [memory.iovec(0, blocks as usize * block).context("a part")?];
        let request = Request { op: Op::WRITE, lba, blocks, iov: &iov, token: Token(0) };
        if let Err(rejected) = channel.submit(&request) {
            bail!("the bdev cannot be filled: {rejected:?}");
        }
        channel.kick();
        while channel.reap(&mut done) == 0 {
            thread::yield_now();
        }
        anyhow::ensure!(done[0].status == Status::Ok, "the bdev cannot be filled: {:?}", done[0].status);
    }
    Ok(())
}
