//! What a bdev's channels look up again when its gate's epoch changes: rate limits, histograms, resets; and the sampling
//! of its queue depth.
//!
//! Kept by [`Registered`](crate::Registered); asked by channels when they open and when something changed, never per
//! request.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use crate::histogram::{ChannelHistogram, Histograms};
use crate::qos::{Qos, Share};
use crate::timeout::{Timeout, TimeoutDescription, Watch};

/// Samples of the queue depth (`bdev_set_qd_sampling_period`).
#[derive(Debug, Default)]
pub struct QueueDepth {
    period_us: AtomicU64,
    depth: AtomicU64,
    io_time_us: AtomicU64,
    weighted_io_time_us: AtomicU64,
}

impl QueueDepth {
    /// Sets the period; 0 ends it.
    pub fn set_period(&self, period_us: u64) {
        self.period_us.store(period_us, Ordering::Relaxed);
    }

    /// The period; 0 if there is no sampling.
    pub fn period_us(&self) -> u64 {
        self.period_us.load(Ordering::Relaxed)
    }

    /// Takes a sample: `in_flight` requests, for a whole period.
    pub fn sample(&self, in_flight: u64) {
        let period = self.period_us();
        self.depth.store(in_flight, Ordering::Relaxed);
        if in_flight > 0 {
            self.io_time_us.fetch_add(period, Ordering::Relaxed);
            self.weighted_io_time_us.fetch_add(period.saturating_mul(in_flight), Ordering::Relaxed);
        }
    }

    /// Depth, time with requests in flight, and that weighted by how many; times in microseconds.
    pub fn read(&self) -> (u64, u64, u64) {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        (get(&self.depth), get(&self.io_time_us), get(&self.weighted_io_time_us))
    }
}

/// The rare ones are made when they are first asked for: most bdevs never are.
#[derive(Debug, Default)]
pub(crate) struct Services {
    qos: OnceLock<Arc<Qos>>,
    histograms: Mutex<Histograms>,
    sampling: QueueDepth,
    timeout: OnceLock<Arc<Timeout>>,
    stats_epoch: AtomicU32,
}

impl Services {
    pub(super) fn qos(&self) -> &Arc<Qos> {
        self.qos.get_or_init(Arc::default)
    }

    pub(super) fn histograms(&self) -> MutexGuard<'_, Histograms> {
        // Nothing that runs under this lock can panic halfway through a change.
        self.histograms.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn sampling(&self) -> &QueueDepth {
        &self.sampling
    }

    pub(super) fn stats_epoch(&self) -> u32 {
        self.stats_epoch.load(Ordering::Relaxed)
    }

    pub(super) fn next_stats_epoch(&self) {
        self.stats_epoch.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn set_timeout(&self, limit_us: u64) {
        self.timeout.get_or_init(Arc::default).set(limit_us);
    }

    pub(super) fn describe_timeout(&self) -> TimeoutDescription {
        self.timeout.get().map_or_else(TimeoutDescription::default, |timeout| timeout.describe())
    }

    /// A channel's watch over its requests, if there is a timeout: the one it has, unless that has changed.
    pub(crate) fn watch(&self, had: Option<Box<Watch>>, depth: usize) -> Option<Box<Watch>> {
        let timeout = self.timeout.get()?;
        had.filter(|had| had.is_current()).or_else(|| Watch::new(timeout, depth))
    }

    /// A channel's share of the rate limits, if there are any: the one it has, or a new one.
    pub(crate) fn share(&self, had: Option<Box<Share>>, now: u64) -> Option<Box<Share>> {
        let qos = self.qos.get().filter(|qos| qos.is_limited())?;
        Some(had.unwrap_or_else(|| Box::new(Share::new(qos.clone(), now))))
    }

    /// A channel's histogram, if there are any: the one it has, unless they were started anew.
    pub(crate) fn histogram(&self, had: Option<Arc<ChannelHistogram>>) -> Option<Arc<ChannelHistogram>> {
        self.histograms().renew(had)
    }
}
