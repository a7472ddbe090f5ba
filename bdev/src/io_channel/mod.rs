//! The one wrapper around every channel: checks each request, counts it, and knows when the bdev is gone.
//!
//! Device models (and stacked bdev types) get an [`IoChannel`] from
//! [`Descriptor::open_channel`](crate::Descriptor::open_channel) and never see the type's own channel. All
//! services that apply to every type live behind these calls, so that a type holds nothing but its own work.
//! On the I/O path: nothing here allocates, locks, logs or reads a clock.

mod cutter;
mod request_limits;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::histogram::ChannelHistogram;
use crate::points::{CHANNEL_CREATE, CHANNEL_DESTROY, IO_DONE, IO_START, POINTS};
use crate::qos::Share;
use crate::registry::{Gate, Open};
use crate::stats::{ChannelCounters, Run};
use crate::timeout::Watch;
use crate::{BdevInfo, Channel, Completion, MAX_SEGMENTS, OpKind, OpenError, Rejected, Request, Status};
use cutter::Cutter;
use request_limits::Limits;

/// A request in flight: when it came and what it is.
#[derive(Clone, Copy)]
struct Slot {
    submitted: u64,
    /// Length in bytes.
    bytes: u64,
    /// None for a free slot.
    kind: Option<OpKind>,
}

impl Slot {
    const FREE: Slot = Slot { submitted: 0, bytes: 0, kind: None };
}

/// Tokens in flight, and when their requests came.
fn in_flight(slots: &[Slot]) -> impl Iterator<Item = (usize, u64)> {
    slots
        .iter()
        .enumerate()
        .filter(|(_, slot)| slot.kind.is_some())
        .map(|(token, slot)| (token, slot.submitted))
}

/// A consumer's channel to a bdev.
///
/// The same contract as [`Channel`], with one addition: what a request must satisfy is checked here, so
/// a caller may pass what the guest asked for as it is. A request that fails the check is answered with
/// [`Rejected::Failed`] and has touched nothing.
///
/// Call order of a pass: [`set_now`](Self::set_now), submits, [`kick`](Self::kick) if any was accepted,
/// [`reap`](Self::reap).
///
/// Dropping it with requests in flight waits for them where the type has to; drain first.
pub struct IoChannel {
    // Dropped before `open`: the bdev may go only after its channels.
    inner: Box<dyn Channel>,
    slots: Box<[Slot]>,
    /// Its number among all channels, shifted: with a token, the object of trace events.
    trace_id: u64,
    now: u64,
    in_flight: u32,
    /// Bit n: the kind with discriminant n is supported, and allowed through this descriptor.
    allowed: u8,
    supported: u8,
    /// Completions may come from elsewhere than the type.
    cuts: bool,
    seen: u32,
    limits: Limits,
    max_segments: usize,
    block_size: u64,
    /// For requests the type cannot take as they are; after `inner`, whose children use its buffers.
    cutter: Option<Box<Cutter>>,
    share: Option<Box<Share>>,
    histogram: Option<Arc<ChannelHistogram>>,
    watch: Option<Box<Watch>>,
    /// There is a share or a watch, which want to know the time.
    has_clocked: bool,
    info: Arc<BdevInfo>,
    gate: Arc<Gate>,
    counters: Arc<ChannelCounters>,
    open: Arc<Open>,
}

const _: () = assert!(OpKind::COUNT <= u8::BITS as usize, "kinds fit the masks");

impl IoChannel {
    pub(crate) fn new(
        open: Arc<Open>,
        depth: u16,
        counters: Arc<ChannelCounters>,
    ) -> Result<IoChannel, OpenError> {
        let registered = open.registered();
        let info = registered.info().clone();
        let limits = Limits::of(&info);
        let below = if limits.any() { Cutter::depth_below(depth) } else { depth };
        let inner = registered.bdev().open_channel(below)?;
        let cutter = limits.any().then(|| Box::new(Cutter::new(info.clone(), limits, depth)));
        let mut supported = 0;
        let mut allowed = 0;
        for kind in OpKind::ALL {
            let bit = u8::from(registered.bdev().supports(kind)) << kind as u8;
            supported |= bit;
            if !kind.modifies() || (open.writable() && !info.read_only) {
                allowed |= bit;
            }
        }
        let gate = registered.gate().clone();
        static CHANNELS: AtomicU64 = AtomicU64::new(1);
        let trace_id = CHANNELS.fetch_add(1, Ordering::Relaxed) << 16;
        POINTS.record_text(CHANNEL_CREATE, trace_id >> 16, &info.name);
        let mut channel = IoChannel {
            inner,
            trace_id,
            slots: vec![Slot::FREE; usize::from(depth)].into_boxed_slice(),
            now: 0,
            in_flight: 0,
            allowed,
            supported,
            cuts: cutter.is_some(),
            seen: gate.word(),
            limits,
            max_segments: info.max_segments.min(MAX_SEGMENTS) as usize,
            block_size: info.block_size.into(),
            cutter,
            share: None,
            histogram: None,
            watch: None,
            has_clocked: false,
            info,
            gate,
            counters,
            open,
        };
        channel.refresh();
        Ok(channel)
    }

    /// The bdev's description.
    pub fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    /// Most requests in flight; also the bound of tokens.
    pub fn depth(&self) -> u16 {
        self.slots.len() as u16
    }

    /// Names the thread that drives this channel, for the per-channel part of `bdev_get_iostat`.
    pub fn set_thread_id(&mut self, id: u64) {
        self.counters.set_thread_id(id);
    }

    /// Tells the time, in ticks of the reactor's clock, once at the start of a pass. Latencies are
    /// differences of these, so nothing is measured within a pass and no request reads a clock.
    #[inline]
    pub fn set_now(&mut self, tick: u64) {
        self.now = tick;
        if self.gate.word() != self.seen {
            self.refresh();
        }
        if self.has_clocked {
            self.set_now_of_services(tick);
        }
        self.inner.set_now(tick);
    }

    /// Of those that few bdevs have: a channel without them looks at one flag a pass.
    #[cold]
    fn set_now_of_services(&mut self, tick: u64) {
        if let Some(share) = &mut self.share {
            share.set_now(tick);
        }
        let Some(watch) = self.watch.as_mut().filter(|watch| watch.is_due(tick)) else { return };
        let late = watch.look(tick, in_flight(&self.slots));
        if late > 0 {
            tracing::warn!(bdev = self.info.name, late, "requests take longer than the timeout of the bdev");
        }
    }

    /// Something changed on the control path since the last pass.
    #[cold]
    fn refresh(&mut self) {
        let word = self.gate.word();
        if Gate::epoch_of(word) != Gate::epoch_of(self.seen) {
            self.counters.clear_extremes(self.open.registered().stats_epoch());
        }
        self.seen = word;
        let services = self.open.registered().services();
        self.share = services.share(self.share.take(), self.now);
        self.histogram = services.histogram(self.histogram.take());
        self.watch = services.watch(self.watch.take(), self.slots.len());
        self.has_clocked = self.share.is_some() || self.watch.is_some();
        if self.gate.removed() {
            self.inner.removed();
        }
    }

    /// Takes one request, or says why not. See [`Channel::submit`].
    #[inline]
    pub fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let kind = req.op.kind();
        if self.in_flight as usize == self.slots.len() {
            return Err(Rejected::Full);
        }
        let (bytes, exceeds) = match self.check(req, kind) {
            Ok(checked) => checked,
            Err(status) => return Err(self.refuse(status)),
        };
        if let Some(share) = &mut self.share
            && !share.admit(kind, bytes)
        {
            return Err(Rejected::Full);
        }
        let submitted = match &mut self.cutter {
            Some(cutter) if exceeds => cutter.submit(self.inner.as_mut(), req),
            _ => self.inner.submit(req),
        };
        match submitted {
            Ok(()) => {
                // check() has looked the slot up; the bound is known here.
                if let Some(slot) = self.slots.get_mut(req.token.0 as usize) {
                    *slot = Slot { submitted: self.now, bytes, kind: Some(kind) };
                }
                self.in_flight += 1;
                let io = self.trace_id | u64::from(req.token.0);
                POINTS.record(IO_START, io, [kind as u64, req.lba, req.blocks, 0]);
                Ok(())
            }
            Err(rejected) => Err(self.rejected(rejected, kind, bytes)),
        }
    }

    #[cold]
    fn rejected(&mut self, rejected: Rejected, kind: OpKind, bytes: u64) -> Rejected {
        if let Some(share) = &mut self.share {
            share.refund(kind, bytes);
        }
        match rejected {
            Rejected::Full => Rejected::Full,
            Rejected::Failed(status) => self.refuse(status),
        }
    }

    #[cold]
    fn refuse(&mut self, status: Status) -> Rejected {
        self.counters.count_error(status);
        Rejected::Failed(status)
    }

    /// Everything that must hold before a type sees the request. Returns its length in bytes, and whether it is more
    /// than the type takes at once.
    #[inline]
    fn check(&self, req: &Request<'_>, kind: OpKind) -> Result<(u64, bool), Status> {
        if self.gate.removed() {
            return Err(Status::Removed);
        }
        let bit = 1u8 << kind as u8;
        if self.allowed & bit == 0 {
            return Err(if self.supported & bit == 0 { Status::Unsupported } else { Status::ReadOnly });
        }
        match self.slots.get(req.token.0 as usize) {
            Some(slot) if slot.kind.is_none() => {}
            _ => return Err(Status::Invalid),
        }
        if kind == OpKind::Flush {
            return if req.iov.is_empty() { Ok((0, false)) } else { Err(Status::Invalid) };
        }
        let num_blocks = self.info.num_blocks();
        if req.blocks > num_blocks || req.lba > num_blocks - req.blocks {
            return Err(Status::OutOfRange);
        }
        // No overflow: the whole bdev's length fits 64 bits, or it could not have been registered.
        let bytes = req.blocks * self.block_size;
        if kind.has_data() {
            if req.iov.len() > self.max_segments {
                return Err(Status::Invalid);
            }
            let mut sum = 0u64;
            let mut address_bits = 0usize;
            for v in req.iov {
                // Vectors are at most 2^63 long and at most 2^32 of them: saturating is the only overflow
                // there is.
                sum = sum.saturating_add(v.len() as u64);
                address_bits |= v.as_ptr().addr() | v.len();
            }
            if sum != bytes {
                return Err(Status::Invalid);
            }
            // Of the types in memory none has limits: they skip this.
            let exceeds = self.cuts && self.limits.exceeds(&self.info, req.lba, req.blocks, address_bits);
            return Ok((bytes, exceeds));
        }
        if !req.iov.is_empty() {
            return Err(Status::Invalid);
        }
        Ok((bytes, false))
    }

    /// Sends on what was submitted in this pass. See [`Channel::kick`].
    #[inline]
    pub fn kick(&mut self) {
        self.inner.kick();
        self.counters.set_in_flight(self.in_flight);
    }

    /// Hands out finished requests. See [`Channel::reap`].
    #[inline]
    pub fn reap(&mut self, done: &mut [Completion]) -> usize {
        if self.in_flight == 0 {
            return 0;
        }
        if self.gate.word() != self.seen {
            self.refresh();
        }
        let mut n = self.inner.reap(done);
        if let Some(cutter) = &mut self.cutter
            && (n > 0 || cutter.is_active())
        {
            n = cutter.sort_out(self.inner.as_mut(), done, n);
        }
        let mut run = Run::default();
        for completion in &done[..n] {
            let Some(slot) = self.slots.get_mut(completion.token.0 as usize) else {
                debug_assert!(false, "a type handed out a token it was never given");
                continue;
            };
            debug_assert!(slot.kind.is_some(), "a type completed a request twice");
            let Slot { submitted, bytes, kind: Some(kind) } = *slot else { continue };
            slot.kind = None;
            let io = self.trace_id | u64::from(completion.token.0);
            POINTS.record(IO_DONE, io, [completion.status as u64, 0, 0, 0]);
            if completion.status == Status::Ok {
                let ticks = self.now.saturating_sub(submitted);
                if !run.add(kind, bytes, ticks) {
                    self.counters.count_run(&std::mem::replace(&mut run, Run::of(kind, bytes, ticks)));
                }
                if let Some(histogram) = &self.histogram {
                    histogram.tally(kind, ticks);
                }
            } else {
                self.counters.count_error(completion.status);
            }
        }
        self.in_flight -= n as u32;
        if n > 0 {
            self.counters.count_run(&run);
            self.counters.set_in_flight(self.in_flight);
        }
        n
    }

    /// Asked before the caller sleeps. See [`Channel::arm`].
    pub fn arm(&mut self) -> bool {
        let waits = self.cutter.as_ref().is_some_and(|cutter| cutter.is_waiting())
            || self.watch.as_ref().is_some_and(|watch| watch.expects(in_flight(&self.slots)));
        self.in_flight == 0 || (!waits && self.inner.arm())
    }

    /// Polls readable while completions wait. See [`Channel::event_fd`].
    pub fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.inner.event_fd()
    }

    /// Requests accepted and not yet reaped.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight as usize
    }
}

impl Drop for IoChannel {
    fn drop(&mut self) {
        POINTS.record_text(CHANNEL_DESTROY, self.trace_id >> 16, &self.info.name);
        if self.in_flight > 0 {
            let (bdev, in_flight) = (&self.info.name, self.in_flight);
            tracing::warn!(%bdev, in_flight, "channel dropped before it was drained");
        }
        self.open.registered().close_counters(&self.counters);
    }
}
