//! One bdev as the registry knows it: the bdev, who has it open, its counters, and whether it is going away.
//!
//! [`Registry`](crate::Registry) makes these and hands out references for looking at; who wants I/O opens a
//! [`Descriptor`](crate::Descriptor). Control path only, but for the [`Gate`] that channels read.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use super::claim::{Claims, Refused};
use super::descriptor::Open;
use super::services::QueueDepth;
use super::services::Services;
use crate::stats::{BdevCounters, ChannelCounters};
use crate::{
    Bdev, BdevInfo, ClaimKind, Error, HistogramReading, HistogramSpec, IoStats, QosParams, RateLimits,
    ResetMode, TimeoutDescription,
};

/// One word that channels look at to learn of changes on the control path: bit 0 that the bdev is removed,
/// above it the epoch of everything a channel looks up again: latency extremes, rate limits, histograms.
#[derive(Debug, Default)]
pub(crate) struct Gate(AtomicU32);

impl Gate {
    const REMOVED: u32 = 1;
    const EPOCH_ONE: u32 = 2;

    // Relaxed throughout: the word itself is the message. What else changed is read under a lock.
    #[inline]
    pub(crate) fn word(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    #[inline]
    pub(crate) fn removed(&self) -> bool {
        self.word() & Gate::REMOVED != 0
    }

    pub(crate) const fn epoch_of(word: u32) -> u32 {
        word / Gate::EPOCH_ONE
    }

    fn next_epoch(&self) {
        self.0.fetch_add(Gate::EPOCH_ONE, Ordering::Relaxed);
    }

    fn remove(&self) {
        self.0.fetch_or(Gate::REMOVED, Ordering::Relaxed);
    }
}

/// What is called once a removed bdev is closed by everyone and gone.
pub(crate) type OnGone = Box<dyn FnOnce() + Send>;

/// Where a bdev stands. Forward only.
enum State {
    Live,
    /// Deleted, but somebody still has it open; the last one to close finishes the removal.
    Removing(OnGone),
    Gone,
}

struct Control {
    state: State,
    claims: Claims,
    opens: Vec<(u64, Weak<Open>)>,
    aliases: Vec<String>,
}

/// A registered bdev.
pub struct Registered {
    bdev: Arc<dyn Bdev>,
    gate: Arc<Gate>,
    counters: BdevCounters,
    services: Services,
    control: Mutex<Control>,
    /// Place in the order of creation.
    pub(super) seq: u64,
}

impl Registered {
    pub(super) fn new(bdev: Arc<dyn Bdev>, seq: u64) -> Registered {
        let uuid_alias = bdev.info().uuid.to_string();
        Registered {
            bdev,
            gate: Arc::default(),
            counters: BdevCounters::default(),
            services: Services::default(),
            control: Mutex::new(Control {
                state: State::Live,
                claims: Claims::default(),
                opens: Vec::new(),
                aliases: vec![uuid_alias],
            }),
            seq,
        }
    }

    fn control(&self) -> MutexGuard<'_, Control> {
        // Nothing that runs under this lock can panic halfway through a change.
        self.control.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The bdev itself.
    pub fn bdev(&self) -> &Arc<dyn Bdev> {
        &self.bdev
    }

    /// Its description.
    pub fn info(&self) -> &Arc<BdevInfo> {
        self.bdev.info()
    }

    /// Its unique name.
    pub fn name(&self) -> &str {
        &self.info().name
    }

    /// Other names it can be found by, its UUID among them.
    pub fn aliases(&self) -> Vec<String> {
        self.control().aliases.clone()
    }

    /// How it is claimed, if it is.
    pub fn claim_kind(&self) -> Option<ClaimKind> {
        self.control().claims.kind()
    }

    /// Whether anybody has it open.
    pub fn is_open(&self) -> bool {
        self.control().claims.is_open()
    }

    /// Whether it is on its way out: no new opens, no new requests.
    pub fn is_removed(&self) -> bool {
        self.gate.removed()
    }

    /// Counters summed over all channels, open and closed, since creation or the last reset.
    pub fn stats(&self) -> IoStats {
        self.counters.total(self.stats_epoch())
    }

    /// Counters of each open channel, with the id of the thread that drives it.
    pub fn channel_stats(&self) -> Vec<(u64, IoStats)> {
        self.counters.per_channel(self.stats_epoch())
    }

    /// Clears counters. Channels go on counting without noticing.
    pub fn reset_stats(&self, mode: ResetMode) {
        self.counters.reset(mode, self.stats_epoch());
        if matches!(mode, ResetMode::All | ResetMode::Maxmin) {
            self.services.next_stats_epoch();
            self.gate.next_epoch();
        }
    }

    /// Sets rate limits, for all channels together.
    pub fn set_qos(&self, params: QosParams) -> Result<(), Error> {
        self.services.qos().set(params)?;
        self.gate.next_epoch();
        Ok(())
    }

    /// The rate limits.
    pub fn qos(&self) -> RateLimits {
        self.services.qos().describe()
    }

    /// Starts latency histograms anew, or stops them.
    pub fn enable_histogram(&self, spec: Option<HistogramSpec>) {
        self.services.histograms().enable(spec);
        self.gate.next_epoch();
    }

    /// What the histograms hold, summed over all channels.
    pub fn histogram(&self) -> HistogramReading {
        self.services.histograms().read()
    }

    /// Whether histograms are kept.
    pub fn has_histogram(&self) -> bool {
        self.services.histograms().spec.is_some()
    }

    /// Sets how long a request may take before it is counted and told as late; 0 for any time.
    pub fn set_timeout(&self, timeout_us: u64) {
        self.services.set_timeout(timeout_us);
        self.gate.next_epoch();
    }

    /// The timeout and how many requests it has hit.
    pub fn timeout(&self) -> TimeoutDescription {
        self.services.describe_timeout()
    }

    /// Requests in flight on all channels, as of their last pass.
    pub fn in_flight(&self) -> u64 {
        self.counters.in_flight()
    }

    /// The sampling of the queue depth.
    pub fn sampling(&self) -> &QueueDepth {
        self.services.sampling()
    }

    pub(crate) fn services(&self) -> &Services {
        &self.services
    }

    pub(crate) fn stats_epoch(&self) -> u32 {
        self.services.stats_epoch()
    }

    pub(crate) fn gate(&self) -> &Arc<Gate> {
        &self.gate
    }

    pub(crate) fn open_counters(&self) -> Arc<ChannelCounters> {
        self.counters.open(self.stats_epoch())
    }

    pub(crate) fn close_counters(&self, counters: &Arc<ChannelCounters>) {
        self.counters.close(counters, self.stats_epoch());
    }

    pub(super) fn push_alias(&self, alias: &str) {
        self.control().aliases.push(alias.to_owned());
    }

    pub(super) fn drop_alias(&self, alias: &str) {
        self.control().aliases.retain(|a| a != alias);
    }

    /// Admits an open: `make` builds it from its id.
    pub(super) fn admit(&self, write: bool, make: impl FnOnce(u64) -> Arc<Open>) -> Result<Arc<Open>, Error> {
        let mut control = self.control();
        if !matches!(control.state, State::Live) {
            return Err(Error::NoSuchDevice { name: self.name().to_owned() });
        }
        let id = control.claims.open(write).map_err(|refused| self.explain(refused))?;
        let open = make(id);
        control.opens.push((id, Arc::downgrade(&open)));
        Ok(open)
    }

    /// Ends open `id`. Returns what to call if that finished a removal.
    pub(super) fn dismiss(&self, id: u64) -> Option<OnGone> {
        let mut control = self.control();
        control.claims.close(id);
        control.opens.retain(|(o, _)| *o != id);
        control.finish_if_closed()
    }

    /// Starts the removal. Returns who has the bdev open, to be told, and what to call if nobody has.
    pub(super) fn remove(&self, on_gone: OnGone) -> Result<(Vec<Arc<Open>>, Option<OnGone>), Error> {
        let mut control = self.control();
        if !matches!(control.state, State::Live) {
            return Err(Error::NoSuchDevice { name: self.name().to_owned() });
        }
        self.gate.remove();
        control.state = State::Removing(on_gone);
        Ok((control.listeners(), control.finish_if_closed()))
    }

    /// Publishes a new size, once `prepare` has made the backend ready for it. A shrink is refused while
    /// anybody has the bdev open (requests in flight were checked against the old size), so nobody may open
    /// it in between.
    pub(super) fn set_num_blocks(
        &self,
        num_blocks: u64,
        prepare: impl FnOnce() -> Result<(), Error>,
    ) -> Result<Vec<Arc<Open>>, Error> {
        let info = self.info();
        if num_blocks == 0 || num_blocks.checked_mul(u64::from(info.block_size)).is_none() {
            return Err(Error::Invalid(format!("{num_blocks} blocks is no size for a bdev")));
        }
        let control = self.control();
        if num_blocks < info.num_blocks() && control.claims.is_open() {
            return Err(Error::Busy { name: self.name().to_owned() });
        }
        prepare()?;
        info.num_blocks.store(num_blocks, Ordering::Relaxed);
        Ok(control.listeners())
    }

    pub(super) fn claim(&self, id: u64, kind: ClaimKind, holder: &str) -> Result<bool, Error> {
        let claimed = self.control().claims.claim(id, kind, holder);
        claimed.map_err(|refused| self.explain(refused))
    }

    pub(super) fn release(&self, id: u64) {
        self.control().claims.release(id);
    }

    fn explain(&self, refused: Refused) -> Error {
        let name = self.name().to_owned();
        match refused {
            Refused::Claimed { holder, kind } => Error::Claimed { name, holder, kind },
            Refused::OtherWriter => Error::OpenForWriting { name },
            Refused::Invalid(why) => Error::Invalid(why.to_owned()),
        }
    }
}

impl Control {
    fn listeners(&self) -> Vec<Arc<Open>> {
        self.opens.iter().filter_map(|(_, open)| open.upgrade()).collect()
    }

    /// The one transition to Gone: whoever holds the lock when the last open is closed makes it.
    fn finish_if_closed(&mut self) -> Option<OnGone> {
        if !self.opens.is_empty() {
            return None;
        }
        match std::mem::replace(&mut self.state, State::Gone) {
            State::Removing(on_gone) => Some(on_gone),
            other => {
                self.state = other;
                None
            }
        }
    }
}
