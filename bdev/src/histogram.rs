//! Latency histograms: a bucket per power of two, each cut into `1 << granularity` parts, as SPDK's tools decode them.
//!
//! One per channel, written by its thread alone; `bdev_get_histogram` adds them up.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::{Error, OpKind, clock};

/// SPDK's defaults for `bdev_enable_histogram`.
const GRANULARITY: u8 = 7;
const MIN_NSEC: u64 = 1000;
const MAX_NSEC: u64 = 120_000_000_000;
/// More parts of a power of two would take megabytes a channel.
const GRANULARITY_MAX: u8 = 12;

/// What is measured, and how finely.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HistogramSpec {
    granularity: u8,
    min_range: u32,
    max_range: u32,
    /// One kind only, if there is one.
    kind: Option<OpKind>,
}

/// What `bdev_get_histogram` answers.
#[derive(Debug, Clone)]
pub struct HistogramReading {
    /// Requests by bucket.
    pub buckets: Vec<u64>,
    /// Parts of a power of two, as a power of two.
    pub granularity: u8,
    /// The lowest and the highest range there is.
    pub min_range: u32,
    /// See `min_range`.
    pub max_range: u32,
}

fn range_of(granularity: u8, ticks: u64) -> u32 {
    let bits = u64::BITS - ticks.leading_zeros();
    bits.saturating_sub(u32::from(granularity))
}

impl HistogramSpec {
    /// A specification; `None` for SPDK's defaults.
    pub fn new(
        opc: Option<&str>,
        granularity: Option<u8>,
        min_nsec: Option<u64>,
        max_nsec: Option<u64>,
    ) -> Result<HistogramSpec, Error> {
        let granularity = granularity.unwrap_or(GRANULARITY);
        let (min, max) = (min_nsec.unwrap_or(MIN_NSEC), max_nsec.unwrap_or(MAX_NSEC));
        if granularity > GRANULARITY_MAX || min >= max {
            return Err(Error::Invalid(format!(
                "no histogram of granularity {granularity} from {min} to {max} ns"
            )));
        }
        let kind = match opc {
            None => None,
            Some(name) => {
                Some(kind_called(name).ok_or_else(|| Error::Invalid(format!("no I/O type \"{name}\"")))?)
            }
        };
        Ok(HistogramSpec {
            granularity,
            min_range: range_of(granularity, clock::ns_to_ticks(min)),
            max_range: range_of(granularity, clock::ns_to_ticks(max)),
            kind,
        })
    }

    fn len(&self) -> usize {
        ((self.max_range - self.min_range + 1) as usize) << self.granularity
    }

    #[inline]
    fn index(&self, ticks: u64) -> usize {
        let range = range_of(self.granularity, ticks);
        let mask = (1u64 << self.granularity) - 1;
        if range < self.min_range {
            return 0;
        }
        if range > self.max_range {
            return self.len() - 1;
        }
        // The bits behind the highest one; in range 0 all of them.
        let part = (ticks >> range.saturating_sub(1)) & mask;
        ((range - self.min_range) as usize) << self.granularity | part as usize
    }
}

fn kind_called(name: &str) -> Option<OpKind> {
    Some(match name {
        "read" => OpKind::Read,
        "write" => OpKind::Write,
        "flush" => OpKind::Flush,
        "unmap" => OpKind::Unmap,
        "write_zeroes" => OpKind::WriteZeroes,
        _ => return None,
    })
}

/// The histogram of one channel.
#[derive(Debug)]
pub(crate) struct ChannelHistogram {
    pub(crate) spec: HistogramSpec,
    buckets: Box<[AtomicU64]>,
}

impl ChannelHistogram {
    pub(crate) fn new(spec: HistogramSpec) -> Arc<ChannelHistogram> {
        Arc::new(ChannelHistogram { spec, buckets: (0..spec.len()).map(|_| AtomicU64::new(0)).collect() })
    }

    /// Counts requests that took so long each. Writer only.
    #[inline]
    pub(crate) fn tally(&self, kind: OpKind, ticks: u64, ops: u64) {
        if self.spec.kind.is_some_and(|only| only != kind) {
            return;
        }
        if let Some(bucket) = self.buckets.get(self.spec.index(ticks)) {
            bucket.store(bucket.load(Ordering::Relaxed) + ops, Ordering::Relaxed);
        }
    }
}

/// The histograms of a bdev.
#[derive(Debug, Default)]
pub(crate) struct Histograms {
    pub(crate) spec: Option<HistogramSpec>,
    /// Of channels that are open and of those that were, since it was enabled.
    channels: Vec<Arc<ChannelHistogram>>,
}

impl Histograms {
    /// Starts anew, or stops.
    pub(crate) fn enable(&mut self, spec: Option<HistogramSpec>) {
        self.spec = spec;
        self.channels.clear();
    }

    /// A channel's histogram: the one it has, unless histograms were started anew or stopped.
    pub(crate) fn renew(&mut self, had: Option<Arc<ChannelHistogram>>) -> Option<Arc<ChannelHistogram>> {
        let is_current = |had: &Arc<ChannelHistogram>| self.channels.iter().any(|h| Arc::ptr_eq(h, had));
        match had.filter(is_current) {
            Some(current) => Some(current),
            None => self.open(),
        }
    }

    /// A histogram for a channel, if there are any.
    fn open(&mut self) -> Option<Arc<ChannelHistogram>> {
        let histogram = ChannelHistogram::new(self.spec?);
        // Closed channels' are added up in one, so that the list does not grow for ever.
        let (open, closed): (Vec<_>, Vec<_>) =
            self.channels.drain(..).partition(|h| Arc::strong_count(h) > 1);
        self.channels = open;
        if let Some((sum, rest)) = closed.split_first() {
            for (to, from) in rest.iter().flat_map(|h| sum.buckets.iter().zip(&h.buckets)) {
                to.fetch_add(from.load(Ordering::Relaxed), Ordering::Relaxed);
            }
            self.channels.push(sum.clone());
        }
        self.channels.push(histogram.clone());
        Some(histogram)
    }

    pub(crate) fn read(&self) -> HistogramReading {
        let default = HistogramSpec { granularity: GRANULARITY, min_range: 0, max_range: 0, kind: None };
        let spec = self.spec.or_else(|| HistogramSpec::new(None, None, None, None).ok()).unwrap_or(default);
        let mut buckets = vec![0; spec.len()];
        for (to, from) in self.channels.iter().flat_map(|h| h.buckets.iter().enumerate()) {
            buckets[to] += from.load(Ordering::Relaxed);
        }
        let HistogramSpec { granularity, min_range, max_range, .. } = spec;
        HistogramReading { buckets, granularity, min_range, max_range }
    }
}

impl HistogramReading {
    /// The first value in ticks that is not in bucket `index` any more.
    fn end(&self, index: usize) -> u64 {
        let range = (index >> self.granularity) as u32 + self.min_range;
        let part = (index & ((1 << self.granularity) - 1)) as u64 + 1;
        match range {
            0 => part,
            _ => (1u64 << (u32::from(self.granularity) + range - 1)).saturating_add(part << (range - 1)),
        }
    }

    /// Requests below each of these borders in microseconds, and behind the last of them all there are.
    pub fn below(&self, borders_us: &[u64]) -> Vec<u64> {
        let count = |ticks: u64| -> u64 {
            self.buckets.iter().enumerate().filter(|(at, _)| self.end(*at) <= ticks).map(|(_, n)| n).sum()
        };
        let mut counts: Vec<u64> = borders_us.iter().map(|us| count(clock::us_to_ticks(*us))).collect();
        counts.push(self.buckets.iter().sum());
        counts
    }

    /// The buckets as little-endian words in base64 (RFC 4648, 4).
    pub fn base64(&self) -> String {
        const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
        let bytes: Vec<u8> = self.buckets.iter().flat_map(|n| n.to_le_bytes()).collect();
        let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
        for three in bytes.chunks(3) {
            let word = three
                .iter()
                .enumerate()
                .fold(0u32, |word, (at, byte)| word | u32::from(*byte) << (16 - 8 * at));
            for digit in 0..4 {
                let value = (word >> (18 - 6 * digit)) & 0x3f;
                text.push(if digit <= three.len() { DIGITS[value as usize] as char } else { '=' });
            }
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_the_bucket_that_ends_behind_it() {
        let spec = HistogramSpec { granularity: 3, min_range: 0, max_range: 20, kind: None };
        let reading =
            HistogramReading { buckets: vec![0; spec.len()], granularity: 3, min_range: 0, max_range: 20 };

        for ticks in (0..5000).chain([1 << 20, (1 << 20) + 12345]) {
            let at = spec.index(ticks);
            let start = at.checked_sub(1).map_or(0, |before| reading.end(before));
            assert!(
                start <= ticks && ticks < reading.end(at),
                "{ticks}: bucket {at}, {start}..{}",
                reading.end(at)
            );
        }
        assert_eq!(spec.index(u64::MAX), spec.len() - 1);
    }

    #[test]
    fn requests_are_counted_by_kind_and_added_up_over_channels() {
        let mut all = Histograms::default();
        assert_eq!(all.read().buckets.iter().sum::<u64>(), 0);
        all.enable(Some(HistogramSpec::new(Some("read"), None, None, None).unwrap()));
        let (one, two) = (all.open().unwrap(), all.open().unwrap());

        one.tally(OpKind::Read, clock::us_to_ticks(20), 1);
        two.tally(OpKind::Read, clock::us_to_ticks(200), 1);
        two.tally(OpKind::Write, clock::us_to_ticks(200), 1);
        drop((one, two));
        let _later = all.open();

        assert_eq!(all.read().below(&[10, 100, 1000]), [0, 1, 2, 2]);
    }

    #[test]
    fn base64_is_padded() {
        let reading =
            HistogramReading { buckets: vec![0x4142_4344], granularity: 0, min_range: 0, max_range: 0 };

        assert_eq!(reading.base64(), "RENCQQAAAAA=");
    }
}
