//! `delay`: a bdev whose reads and writes complete late, by an average and, one in a hundred, by another time.
//!
//! For trying how guests and arrays behave on slow disks. Reads the clock once a reap: a delayed bdev is in no hurry.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::stack::{self, OneBase, Virtual};
use crate::{
    Bdev, BdevInfo, Channel, Completion, Error, IoChannel, OpKind, OpenError, Registered, Registry, Rejected,
    Request,
};

const NAME: &str = "delay";
const PRODUCT_NAME: &str = "delay";

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// One in so many requests takes the long delay.
const P99_PERIOD: u32 = 100;
/// Completions taken from the base at a time.
const BATCH: usize = 32;

/// The params of `bdev_delay_create`; latencies in microseconds.
#[derive(Debug, Clone, Deserialize)]
#[expect(missing_docs, reason = "the fields are the keys of the params, explained in docs/rpc.md")]
pub struct DelayParams {
    pub name: String,
    pub base_bdev_name: String,
    #[serde(default)]
    pub uuid: Option<Uuid>,
    pub avg_read_latency: u64,
    pub p99_read_latency: u64,
    pub avg_write_latency: u64,
    pub p99_write_latency: u64,
}

/// One of the four delays.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(missing_docs, reason = "the names say it")]
pub enum LatencyType {
    AvgRead,
    P99Read,
    AvgWrite,
    P99Write,
}

#[derive(Debug, Default)]
struct Latencies {
    us: [AtomicU64; 4],
}

impl Latencies {
    fn get(&self, which: usize) -> Duration {
        Duration::from_micros(self.us[which].load(Ordering::Relaxed))
    }

    fn set(&self, which: LatencyType, us: u64) {
        self.us[which as usize].store(us, Ordering::Relaxed);
    }
}

struct Delay {
    one: OneBase,
    latencies: Arc<Latencies>,
}

impl Bdev for Delay {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.one.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.one.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        let late = || Late {
            queue: vec![(None, Completion::EMPTY); usize::from(depth)].into_boxed_slice(),
            head: 0,
            len: 0,
        };
        Ok(Box::new(DelayChannel {
            base: self.one.base.open_channel(depth)?,
            latencies: self.latencies.clone(),
            late: [late(), late(), late(), late()],
            held: 0,
            kinds: vec![OpKind::Flush; usize::from(depth)].into_boxed_slice(),
            random: 0x9e37_79b9,
        }))
    }

    fn driver_specific(&self) -> Value {
        let us = |which| self.latencies.us[which as usize].load(Ordering::Relaxed);
        json!({ NAME: {
            "name": self.one.info.name,
            "base_bdev_name": self.one.base_name(),
            "avg_read_latency": us(LatencyType::AvgRead),
            "p99_read_latency": us(LatencyType::P99Read),
            "avg_write_latency": us(LatencyType::AvgWrite),
            "p99_write_latency": us(LatencyType::P99Write),
        }})
    }
}

/// Completions that wait for their time, in the order they came; `None` is a time that never comes.
struct Late {
    queue: Box<[(Option<Instant>, Completion)]>,
    head: usize,
    len: usize,
}

impl Late {
    fn push(&mut self, due: Option<Instant>, completion: Completion) {
        // No more are in flight than the channel is deep.
        let at = (self.head + self.len) % self.queue.len();
        self.queue[at] = (due, completion);
        self.len += 1;
    }

    fn pop(&mut self, now: Instant) -> Option<Completion> {
        let (due, completion) = self.queue[self.head];
        if self.len == 0 || due.is_none_or(|due| due > now) {
            return None;
        }
        self.head = (self.head + 1) % self.queue.len();
        self.len -= 1;
        Some(completion)
    }
}

struct DelayChannel {
    base: IoChannel,
    latencies: Arc<Latencies>,
    /// By latency type.
    late: [Late; 4],
    held: usize,
    /// By token.
    kinds: Box<[OpKind]>,
    random: u32,
}

impl DelayChannel {
    fn next_random(&mut self) -> u32 {
        // xorshift32, Marsaglia 2003.
        self.random ^= self.random << 13;
        self.random ^= self.random >> 17;
        self.random ^= self.random << 5;
        self.random
    }

    /// The delay of a request of this kind; none for what SPDK passes on at once.
    fn choose(&mut self, kind: OpKind) -> Option<usize> {
        let average = match kind {
            OpKind::Read => LatencyType::AvgRead,
            OpKind::Write | OpKind::WriteZeroes => LatencyType::AvgWrite,
            OpKind::Flush | OpKind::Unmap => return None,
        };
        let is_slow = self.next_random().is_multiple_of(P99_PERIOD);
        Some(average as usize + usize::from(is_slow))
    }
}

impl Channel for DelayChannel {
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        self.base.submit(req)?;
        if let Some(kind) = self.kinds.get_mut(req.token.0 as usize) {
            *kind = req.op.kind();
        }
        Ok(())
    }

    fn kick(&mut self) {
        self.base.kick();
    }

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        if self.held == 0 && self.base.in_flight() == 0 {
            return 0;
        }
        let now = Instant::now();
        let mut taken = 0;
        let mut batch = [Completion::EMPTY; BATCH];
        loop {
            // What is not delayed needs room at once.
            let room = batch.len().min(done.len() - taken);
            let n = self.base.reap(&mut batch[..room]);
            for completion in &batch[..n] {
                let kind = self.kinds.get(completion.token.0 as usize).copied().unwrap_or(OpKind::Flush);
                match self.choose(kind) {
                    Some(which) => {
                        self.late[which].push(now.checked_add(self.latencies.get(which)), *completion);
                        self.held += 1;
                    }
                    None => {
                        done[taken] = *completion;
                        taken += 1;
                    }
                }
            }
            if n < BATCH {
                break;
            }
        }
        for late in &mut self.late {
            while taken < done.len()
                && let Some(completion) = late.pop(now)
            {
                done[taken] = completion;
                taken += 1;
                self.held -= 1;
            }
        }
        taken
    }

    fn wants_time(&self) -> bool {
        true
    }

    fn set_now(&mut self, tick: u64) {
        self.base.set_now(tick);
    }

    fn removed(&mut self) {
        for late in &mut self.late {
            late.queue.iter_mut().for_each(|(due, _)| *due = Some(Instant::now()));
        }
    }

    fn arm(&mut self) -> bool {
        self.held == 0 && self.base.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.base.event_fd()
    }

    fn in_flight(&self) -> usize {
        self.base.in_flight() + self.held
    }
}

struct Configured {
    params: DelayParams,
    latencies: Arc<Latencies>,
}

impl Virtual for Configured {
    fn key(&self) -> (&'static str, &str) {
        (NAME, &self.params.name)
    }

    fn examine(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<(), Error> {
        let DelayParams { name, base_bdev_name, uuid, .. } = &self.params;
        if !stack::is_called(bdev, base_bdev_name) || registry.get(name).is_ok() {
            return Ok(());
        }
        let base = stack::take_base(registry, bdev.name(), NAME, stack::follow(NAME, name.clone()))?;
        let info = Arc::new(stack::describe_like(base.info(), NAME, PRODUCT_NAME, name.clone(), *uuid));
        stack::register(registry, Delay { one: OneBase { info, base }, latencies: self.latencies.clone() })?;
        Ok(())
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let DelayParams { name, base_bdev_name, uuid, .. } = &self.params;
        let us = |which| self.latencies.us[which as usize].load(Ordering::Relaxed);
        let params = json!({
            "base_bdev_name": base_bdev_name,
            "name": name,
            "uuid": uuid,
            "avg_read_latency": us(LatencyType::AvgRead),
            "p99_read_latency": us(LatencyType::P99Read),
            "avg_write_latency": us(LatencyType::AvgWrite),
            "p99_write_latency": us(LatencyType::P99Write),
        });
        Some(("bdev_delay_create", params))
    }
}

/// Creates a delay bdev, now or as soon as its base appears.
pub fn create(registry: &Arc<Registry>, mut params: DelayParams) -> Result<(), Error> {
    if params.p99_read_latency < params.avg_read_latency
        || params.p99_write_latency < params.avg_write_latency
    {
        return Err(Error::Invalid("a delay's p99 latency must not be below its average".to_owned()));
    }
    if registry.get(&params.name).is_ok() {
        return Err(Error::Exists { name: params.name });
    }
    params.uuid = Some(params.uuid.filter(|u| !u.is_nil()).unwrap_or_else(Uuid::new_v4));
    let latencies = Arc::<Latencies>::default();
    latencies.set(LatencyType::AvgRead, params.avg_read_latency);
    latencies.set(LatencyType::P99Read, params.p99_read_latency);
    latencies.set(LatencyType::AvgWrite, params.avg_write_latency);
    latencies.set(LatencyType::P99Write, params.p99_write_latency);
    let bases = [params.base_bdev_name.clone()];
    stack::configure(registry, Arc::new(Configured { params, latencies }), &bases)
}

/// Changes one delay, for requests that complete from now on.
pub fn update(registry: &Registry, name: &str, which: LatencyType, latency_us: u64) -> Result<(), Error> {
    let missing = || Error::NoSuchDevice { name: name.to_owned() };
    let bdev = registry.get(name)?;
    let configured = registry.find_virtual(NAME, bdev.name()).ok_or_else(missing)?;
    let configured = stack::as_type::<Configured>(configured).ok_or_else(missing)?;
    configured.latencies.set(which, latency_us);
    Ok(())
}

/// Deletes a delay bdev; `on_gone` is called when it is gone.
pub fn delete(
    registry: &Arc<Registry>,
    name: &str,
    on_gone: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    stack::unconfigure(registry, NAME, name, on_gone)
}
