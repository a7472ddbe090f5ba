//! Rate limits of a bdev: `bdev_set_qos_limit`, across all channels and reactors.
//!
//! One bucket per limit, filled as time goes by and shared by atomics; a request that finds it empty is refused with
//! `Rejected::Full`, and its owner offers it again. While several channels ask, each takes what comes in by its share, so
//! that a fast poller does not starve the others; more only where the others leave the bucket filling. Does not read a
//! clock: channels tell the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU32, AtomicU64, Ordering};

use serde::Deserialize;

use crate::{Error, OpKind, RateLimits, clock};

/// Limits on requests are whole multiples of this (SPDK_BDEV_QOS_MIN_IOS_PER_SEC).
const MIN_IOS_PER_SEC: u64 = 1000;
const MIB: u64 = 1 << 20;
/// Fractions of a request or byte that buckets count.
const MILLI: i64 = 1000;
/// Time over which it is counted which channels ask.
const SLICE_US: u64 = 20_000;
/// A bucket that is filled by this part is one that somebody leaves to the others.
const RICH_DIVISOR: i64 = 4;
/// Buckets are not filled more often than this.
const FILL_US: u64 = 100;
/// What a bucket holds at most: what comes in this time. A burst after a pause is no longer.
const BUCKET_US: u64 = 10_000;

/// The params of `bdev_set_qos_limit` but for the name: 0 takes a limit away, absence leaves it as it is.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
#[expect(missing_docs, reason = "the fields are the keys of the params")]
pub struct QosParams {
    pub rw_ios_per_sec: Option<u64>,
    pub rw_mbytes_per_sec: Option<u64>,
    pub r_mbytes_per_sec: Option<u64>,
    pub w_mbytes_per_sec: Option<u64>,
}

/// The four limits, in the order of [`QosParams`].
const LIMITS: usize = 4;
const RW_IOS: usize = 0;
const RW_BYTES: usize = 1;
const R_BYTES: usize = 2;
const W_BYTES: usize = 3;

#[derive(Debug, Default)]
struct Bucket {
    /// Requests or bytes per second; 0 for no limit.
    per_sec: AtomicU64,
    /// In thousandths.
    left: AtomicI64,
    filled_at: AtomicU64,
}

impl Bucket {
    fn limit(&self) -> u64 {
        self.per_sec.load(Ordering::Relaxed)
    }

    /// What it holds at most.
    fn most(&self) -> i64 {
        i64::try_from(self.limit().saturating_mul(BUCKET_US) / 1000).unwrap_or(i64::MAX / 4).max(MILLI)
    }

    fn fill(&self, now: u64) {
        let filled_at = self.filled_at.load(Ordering::Relaxed);
        let elapsed_us = clock::ticks_to_us(now.saturating_sub(filled_at));
        if elapsed_us < FILL_US {
            return;
        }
        // Whole microseconds only; the rest stays for the next time.
        let upto = filled_at + clock::us_to_ticks(elapsed_us);
        if self.filled_at.compare_exchange(filled_at, upto, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let per_sec = self.limit();
        let milli = |us: u64| i64::try_from(per_sec.saturating_mul(us) / 1000).unwrap_or(i64::MAX / 4);
        let (more, most) = (milli(elapsed_us.min(BUCKET_US)), self.most());
        let before = self.left.fetch_add(more, Ordering::Relaxed);
        let excess = before.saturating_add(more) - most;
        if excess > 0 {
            self.left.fetch_sub(excess, Ordering::Relaxed);
        }
    }
}

/// The limits of one bdev.
#[derive(Debug, Default)]
pub(crate) struct Qos {
    buckets: [Bucket; LIMITS],
    /// Number of the slice that `asking` counts.
    slice: AtomicU64,
    /// Channels that asked in this slice, and in the one before.
    asking: AtomicU32,
    asked: AtomicU32,
}

impl Qos {
    pub(crate) fn is_limited(&self) -> bool {
        self.buckets.iter().any(|bucket| bucket.limit() > 0)
    }

    pub(crate) fn set(&self, params: QosParams) -> Result<(), Error> {
        let wanted = [
            params.rw_ios_per_sec,
            params.rw_mbytes_per_sec,
            params.r_mbytes_per_sec,
            params.w_mbytes_per_sec,
        ];
        if wanted.iter().all(Option::is_none) {
            return Err(Error::Invalid("No rate limits specified".to_owned()));
        }
        for (at, (bucket, value)) in self.buckets.iter().zip(wanted).enumerate() {
            let Some(value) = value else { continue };
            let per_sec = if at == RW_IOS {
                value.div_ceil(MIN_IOS_PER_SEC).saturating_mul(MIN_IOS_PER_SEC)
            } else {
                value.saturating_mul(MIB)
            };
            bucket.per_sec.store(per_sec, Ordering::Relaxed);
            bucket.left.store(0, Ordering::Relaxed);
        }
        Ok(())
    }

    pub(crate) fn describe(&self) -> RateLimits {
        let mib = |at: usize| self.buckets[at].limit() / MIB;
        RateLimits {
            rw_ios_per_sec: self.buckets[RW_IOS].limit(),
            rw_mbytes_per_sec: mib(RW_BYTES),
            r_mbytes_per_sec: mib(R_BYTES),
            w_mbytes_per_sec: mib(W_BYTES),
        }
    }
}

/// A channel's part of the limits.
#[derive(Debug)]
pub(crate) struct Share {
    qos: Arc<Qos>,
    now: u64,
    slice: u64,
    has_asked: bool,
    /// What it took in this slice, in thousandths.
    taken: [i64; LIMITS],
    /// What is its share of what came in since the slice began.
    quota: [i64; LIMITS],
}

impl Share {
    pub(crate) fn new(qos: Arc<Qos>, now: u64) -> Share {
        let mut share =
            Share { qos, now: 0, slice: u64::MAX, has_asked: false, taken: [0; LIMITS], quota: [0; LIMITS] };
        share.set_now(now);
        share
    }

    /// A pass begins.
    pub(crate) fn set_now(&mut self, now: u64) {
        self.now = now;
        for bucket in self.qos.buckets.iter().filter(|bucket| bucket.limit() > 0) {
            bucket.fill(now);
        }
        let us = clock::ticks_to_us(now);
        let slice = us / SLICE_US;
        if slice != self.slice {
            self.slice = slice;
            self.has_asked = false;
            self.taken = [0; LIMITS];
            let before = self.qos.slice.swap(slice, Ordering::Relaxed);
            if before != slice {
                self.qos.asked.store(self.qos.asking.swap(0, Ordering::Relaxed), Ordering::Relaxed);
            }
        }
        let channels = u64::from(self.qos.asked.load(Ordering::Relaxed).max(1));
        let elapsed_us = us % SLICE_US;
        for (quota, bucket) in self.quota.iter_mut().zip(&self.qos.buckets) {
            let came_in = bucket.limit().saturating_mul(elapsed_us) / 1000;
            *quota =
                if channels > 1 { i64::try_from(came_in / channels).unwrap_or(i64::MAX) } else { i64::MAX };
        }
    }

    /// Whether a request may pass; takes what it costs if so.
    pub(crate) fn admit(&mut self, kind: OpKind, bytes: u64) -> bool {
        if !kind.has_data() {
            return true;
        }
        if !std::mem::replace(&mut self.has_asked, true) {
            self.qos.asking.fetch_add(1, Ordering::Relaxed);
        }
        let cost = i64::try_from(bytes).unwrap_or(i64::MAX / MILLI).saturating_mul(MILLI);
        let own = if kind == OpKind::Read { R_BYTES } else { W_BYTES };
        let costs = [(RW_IOS, MILLI), (RW_BYTES, cost), (own, cost)];
        let limited = |at: usize| self.qos.buckets[at].limit() > 0;
        for (at, _) in costs.into_iter().filter(|(at, _)| limited(*at)) {
            // What is left may go below zero by one request: the next ones wait for that.
            let bucket = &self.qos.buckets[at];
            let left = bucket.left.load(Ordering::Relaxed);
            if left <= 0 || (self.taken[at] >= self.quota[at] && left < bucket.most() / RICH_DIVISOR) {
                return false;
            }
        }
        for (at, cost) in costs.into_iter().filter(|(at, _)| limited(*at)) {
            self.qos.buckets[at].left.fetch_sub(cost, Ordering::Relaxed);
            self.taken[at] = self.taken[at].saturating_add(cost);
        }
        true
    }

    /// Gives back what a request that was refused further down had taken.
    pub(crate) fn refund(&mut self, kind: OpKind, bytes: u64) {
        if !kind.has_data() {
            return;
        }
        let cost = i64::try_from(bytes).unwrap_or(i64::MAX / MILLI).saturating_mul(MILLI);
        let own = if kind == OpKind::Read { R_BYTES } else { W_BYTES };
        for (at, cost) in [(RW_IOS, MILLI), (RW_BYTES, cost), (own, cost)] {
            if self.qos.buckets[at].limit() > 0 {
                self.qos.buckets[at].left.fetch_add(cost, Ordering::Relaxed);
                self.taken[at] = self.taken[at].saturating_sub(cost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND_US: u64 = 1_000_000;

    /// Requests of `len` bytes that two channels get through in a second, the first polling `eager` times as often.
    fn second_of(params: QosParams, len: u64, eager: u32) -> (u64, u64) {
        let qos = Arc::<Qos>::default();
        qos.set(params).unwrap();
        let start = clock::us_to_ticks(SECOND_US);
        let (mut a, mut b) = (Share::new(qos.clone(), start), Share::new(qos, start));
        let (mut through_a, mut through_b) = (0, 0);
        for us in (0..SECOND_US).step_by(20) {
            let now = start + clock::us_to_ticks(us);
            a.set_now(now);
            for _ in 0..eager {
                through_a += u64::from(a.admit(OpKind::Read, len));
            }
            b.set_now(now);
            through_b += u64::from(b.admit(OpKind::Write, len));
        }
        (through_a, through_b)
    }

    #[test]
    fn a_second_lets_through_what_the_limit_says_and_shares_it() {
        for limit in [1000, 10_000, 40_000] {
            let params = QosParams { rw_ios_per_sec: Some(limit), ..QosParams::default() };

            let (a, b) = second_of(params, 4096, 50);

            let total = a + b;
            assert!(total * 100 >= limit * 95 && total * 100 <= limit * 105, "{a}+{b} of {limit}");
            assert!(b * 100 >= limit * 40, "{a}+{b} of {limit}: the slower one gets its share");
        }
    }

    #[test]
    fn bytes_are_limited_by_direction() {
        let params = QosParams { w_mbytes_per_sec: Some(10), ..QosParams::default() };

        let (reads, writes) = second_of(params, 64 << 10, 1);

        assert_eq!(reads, SECOND_US / 20, "reads have no limit");
        assert!((152..=168).contains(&writes), "{writes} writes of 64 KiB are 10 MiB");
    }

    #[test]
    fn limits_round_up_stay_and_go() {
        let qos = Qos::default();
        assert!(matches!(qos.set(QosParams::default()), Err(Error::Invalid(_))));
        qos.set(QosParams { rw_ios_per_sec: Some(1500), r_mbytes_per_sec: Some(3), ..QosParams::default() })
            .unwrap();
        qos.set(QosParams { r_mbytes_per_sec: Some(0), ..QosParams::default() }).unwrap();

        assert!(qos.is_limited());
        let RateLimits { rw_ios_per_sec, r_mbytes_per_sec, .. } = qos.describe();
        assert_eq!((rw_ios_per_sec, r_mbytes_per_sec), (2000, 0));
    }
}
