//! Counters of a bdev: one set per channel, written by the channel's thread alone and read by whoever asks.
//!
//! [`IoChannel`](crate::IoChannel) counts, `bdev_get_iostat` reads through [`Registered`](crate::Registered).
//! Reading takes no message to a reactor and resetting writes nothing the reactors write: a reset of sums is
//! a baseline that the reader subtracts, a reset of extremes is an epoch that the writer notices on its next
//! pass. Does not read a clock.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::{OpKind, Status};

/// What has been counted for one kind of operation. Latencies are in ticks of the clock that the reactors
/// pass to [`IoChannel::set_now`](crate::IoChannel::set_now).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KindStats {
    /// Requests that ended with [`Status::Ok`].
    pub ops: u64,
    /// Bytes of those.
    pub bytes: u64,
    /// Sum of their latencies.
    pub latency_ticks: u64,
    /// Longest of them; 0 where there was none.
    pub latency_ticks_max: u64,
    /// Shortest of them; `None` where there was none.
    pub latency_ticks_min: Option<u64>,
}

/// Counters of a channel or a whole bdev at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    kinds: [KindStats; OpKind::COUNT],
    errors: [u64; Status::COUNT],
}

impl IoStats {
    /// What was counted for `kind`.
    pub fn kind(&self, kind: OpKind) -> &KindStats {
        &self.kinds[kind as usize]
    }

    /// How many requests ended in, or were refused with, `status`. Successes are counted by kind, not here.
    pub fn errors(&self, status: Status) -> u64 {
        self.errors[status as usize]
    }

    fn add(&mut self, other: &IoStats) {
        for (sum, k) in self.kinds.iter_mut().zip(&other.kinds) {
            sum.ops += k.ops;
            sum.bytes += k.bytes;
            sum.latency_ticks = sum.latency_ticks.wrapping_add(k.latency_ticks);
            sum.latency_ticks_max = sum.latency_ticks_max.max(k.latency_ticks_max);
            sum.latency_ticks_min = match (sum.latency_ticks_min, k.latency_ticks_min) {
                (Some(a), Some(b)) => Some(a.min(b)),
                (a, b) => a.or(b),
            };
        }
        for (sum, e) in self.errors.iter_mut().zip(&other.errors) {
            *sum += e;
        }
    }

    /// Sums become differences to `base`; extremes stay.
    fn since(mut self, base: &IoStats) -> IoStats {
        for (now, was) in self.kinds.iter_mut().zip(&base.kinds) {
            now.ops = now.ops.wrapping_sub(was.ops);
            now.bytes = now.bytes.wrapping_sub(was.bytes);
            now.latency_ticks = now.latency_ticks.wrapping_sub(was.latency_ticks);
        }
        for (now, was) in self.errors.iter_mut().zip(&base.errors) {
            *now = now.wrapping_sub(*was);
        }
        self
    }

    fn clear(&mut self, mode: ResetMode) {
        match mode {
            ResetMode::All => *self = IoStats::default(),
            ResetMode::Maxmin => {
                for k in &mut self.kinds {
                    k.latency_ticks_max = 0;
                    k.latency_ticks_min = None;
                }
            }
            ResetMode::Error => self.errors = Default::default(),
            ResetMode::None => {}
        }
    }
}

/// What a reset clears; the `reset_mode` of `bdev_get_iostat` and the `mode` of `bdev_reset_iostat`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ResetMode {
    /// Everything.
    All,
    /// Longest and shortest latencies.
    Maxmin,
    /// Error counts.
    Error,
    /// Nothing.
    None,
}

#[derive(Debug, Default)]
struct KindCounters {
    ops: AtomicU64,
    bytes: AtomicU64,
    latency_ticks: AtomicU64,
    latency_ticks_max: AtomicU64,
    /// `u64::MAX` where there was none.
    latency_ticks_min: AtomicU64,
}

/// Counters of one channel. One writer, so an addition is a plain load and store; any number of readers, who
/// see each counter whole but not all of one moment.
#[derive(Debug)]
#[repr(align(64))] // A line of its own: two channels on two reactors must not share one.
pub(crate) struct ChannelCounters {
    kinds: [KindCounters; OpKind::COUNT],
    errors: [AtomicU64; Status::COUNT],
    /// Epoch that the extremes belong to.
    epoch: AtomicU32,
    thread_id: AtomicU64,
    /// As of the end of the last pass; for sampling.
    in_flight: AtomicU32,
}

/// What a request is, in one word, as it is kept and compared as one: its kind, and its length in bytes. (A length of 2 EiB
/// and more, which no device model asks for, is counted short.)
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct What(u64);

impl What {
    /// No request: the bits of a kind that there is not.
    pub(crate) const NOTHING: What = What(Self::KIND);
    const KIND_BITS: u32 = 3;
    const KIND: u64 = (1 << Self::KIND_BITS) - 1;

    #[inline(always)]
    pub(crate) fn new(kind: OpKind, bytes: u64) -> What {
        What(bytes << Self::KIND_BITS | kind as u64)
    }

    fn index(self) -> usize {
        (self.0 & Self::KIND) as usize
    }

    /// Of a request.
    pub(crate) fn kind(self) -> OpKind {
        OpKind::ALL[self.index()]
    }

    pub(crate) fn bytes(self) -> u64 {
        self.0 >> Self::KIND_BITS
    }
}

const _: () =
    assert!(OpKind::COUNT < 1 << What::KIND_BITS, "a kind has room in a word, and there is one that is none");

/// Requests that ended well one after the other, and are alike: of one kind and length, and of one pass, as most of a
/// batch are. They are counted together.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Run {
    pub(crate) what: What,
    pub(crate) submitted: u64,
    pub(crate) ops: u64,
}

impl Run {
    /// None yet.
    pub(crate) const EMPTY: Run = Run { what: What::NOTHING, submitted: 0, ops: 0 };

    /// Whether such a one is like those before.
    #[inline(always)]
    pub(crate) fn is_like(self, what: What, submitted: u64) -> bool {
        self.submitted == submitted && self.what == what
    }
}

#[inline]
fn bump(counter: &AtomicU64, by: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(by), Ordering::Relaxed);
}

impl ChannelCounters {
    fn new(epoch: u32) -> ChannelCounters {
        let counters = ChannelCounters {
            kinds: Default::default(),
            errors: Default::default(),
            epoch: AtomicU32::new(epoch),
            thread_id: AtomicU64::new(0),
            in_flight: AtomicU32::new(0),
        };
        counters.clear_extremes(epoch);
        counters
    }

    /// Counts requests that ended well, after so many ticks each. Writer only.
    #[inline]
    pub(crate) fn count_run(&self, run: Run, ticks: u64) {
        let k = &self.kinds[run.what.index()];
        bump(&k.ops, run.ops);
        bump(&k.bytes, run.what.bytes().wrapping_mul(run.ops));
        bump(&k.latency_ticks, ticks.wrapping_mul(run.ops));
        if ticks > k.latency_ticks_max.load(Ordering::Relaxed) {
            k.latency_ticks_max.store(ticks, Ordering::Relaxed);
        }
        if ticks < k.latency_ticks_min.load(Ordering::Relaxed) {
            k.latency_ticks_min.store(ticks, Ordering::Relaxed);
        }
    }

    /// Counts a request that failed or was refused. Writer only.
    #[cold]
    pub(crate) fn count_error(&self, status: Status) {
        bump(&self.errors[status as usize], 1);
    }

    /// Starts a new epoch of extremes. Writer only.
    pub(crate) fn clear_extremes(&self, epoch: u32) {
        for k in &self.kinds {
            k.latency_ticks_max.store(0, Ordering::Relaxed);
            k.latency_ticks_min.store(u64::MAX, Ordering::Relaxed);
        }
        // Release: a reader that sees the epoch sees the cleared extremes too.
        self.epoch.store(epoch, Ordering::Release);
    }

    pub(crate) fn set_thread_id(&self, id: u64) {
        self.thread_id.store(id, Ordering::Relaxed);
    }

    /// Tells how many requests are in flight. Writer only.
    #[inline]
    pub(crate) fn set_in_flight(&self, in_flight: u32) {
        self.in_flight.store(in_flight, Ordering::Relaxed);
    }

    fn read(&self, epoch: u32) -> IoStats {
        // Acquire: pairs with the release in clear_extremes.
        let extremes_count = self.epoch.load(Ordering::Acquire) == epoch;
        let mut stats = IoStats::default();
        for (k, c) in stats.kinds.iter_mut().zip(&self.kinds) {
            k.ops = c.ops.load(Ordering::Relaxed);
            k.bytes = c.bytes.load(Ordering::Relaxed);
            k.latency_ticks = c.latency_ticks.load(Ordering::Relaxed);
            if extremes_count {
                let min = c.latency_ticks_min.load(Ordering::Relaxed);
                k.latency_ticks_max = c.latency_ticks_max.load(Ordering::Relaxed);
                k.latency_ticks_min = (min != u64::MAX).then_some(min);
            }
        }
        for (e, c) in stats.errors.iter_mut().zip(&self.errors) {
            *e = c.load(Ordering::Relaxed);
        }
        stats
    }
}

#[derive(Debug)]
struct Live {
    counters: Arc<ChannelCounters>,
    baseline: IoStats,
}

/// All counters of one bdev: those of channels that are open and the sum of those that were.
#[derive(Debug, Default)]
pub(crate) struct BdevCounters {
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    live: Vec<Live>,
    closed: IoStats,
}

impl BdevCounters {
    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        // Every change under this lock is complete before anything can panic.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn open(&self, epoch: u32) -> Arc<ChannelCounters> {
        let counters = Arc::new(ChannelCounters::new(epoch));
        self.lock().live.push(Live { counters: counters.clone(), baseline: IoStats::default() });
        counters
    }

    pub(crate) fn close(&self, counters: &Arc<ChannelCounters>, epoch: u32) {
        let mut inner = self.lock();
        if let Some(at) = inner.live.iter().position(|l| Arc::ptr_eq(&l.counters, counters)) {
            let live = inner.live.swap_remove(at);
            inner.closed.add(&counters.read(epoch).since(&live.baseline));
        }
    }

    /// Requests in flight on all channels.
    pub(crate) fn in_flight(&self) -> u64 {
        self.lock().live.iter().map(|live| u64::from(live.counters.in_flight.load(Ordering::Relaxed))).sum()
    }

    pub(crate) fn total(&self, epoch: u32) -> IoStats {
        let inner = self.lock();
        let mut sum = inner.closed;
        for live in &inner.live {
            sum.add(&live.counters.read(epoch).since(&live.baseline));
        }
        sum
    }

    pub(crate) fn per_channel(&self, epoch: u32) -> Vec<(u64, IoStats)> {
        self.lock()
            .live
            .iter()
            .map(|l| {
                (l.counters.thread_id.load(Ordering::Relaxed), l.counters.read(epoch).since(&l.baseline))
            })
            .collect()
    }

    /// Clears what is summed up; the caller starts a new epoch where `mode` asks for the extremes.
    pub(crate) fn reset(&self, mode: ResetMode, epoch: u32) {
        let mut inner = self.lock();
        inner.closed.clear(mode);
        for live in &mut inner.live {
            let now = live.counters.read(epoch);
            match mode {
                ResetMode::All => live.baseline = now,
                ResetMode::Error => live.baseline.errors = now.errors,
                ResetMode::Maxmin | ResetMode::None => {}
            }
        }
    }
}
