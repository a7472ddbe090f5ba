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
use crate::stats::{ChannelCounters, Run, What};
use crate::timeout::Watch;
use crate::{
    BdevInfo, Channel, Completion, MAX_SEGMENTS, OpKind, OpenError, Rejected, Request, Status, Token,
};
use cutter::Cutter;
use request_limits::Limits;

/// A request in flight: when it came and what it is.
#[derive(Clone, Copy)]
struct Slot {
    submitted: u64,
    what: What,
}

impl Slot {
    const FREE: Slot = Slot { submitted: 0, what: What::NOTHING };

    fn is_free(self) -> bool {
        self.what == What::NOTHING
    }
}

/// Tokens in flight, and when their requests came.
fn in_flight(slots: &[Slot]) -> impl Iterator<Item = (usize, u64)> {
    slots.iter().enumerate().filter(|(_, slot)| !slot.is_free()).map(|(token, slot)| (token, slot.submitted))
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
    /// Neither a share nor a cutter stands between the caller and the type.
    is_plain: bool,
    seen: u32,
    limits: Limits,
    max_segments: usize,
    block_size: u64,
    /// For requests the type cannot take as they are; after `inner`, whose children use its buffers.
    cutter: Option<Box<Cutter>>,
    share: Option<Box<Share>>,
    histogram: Option<Arc<ChannelHistogram>>,
    watch: Option<Box<Watch>>,
    /// The type wants to know the time, or there is a share or a watch, which do.
    is_timed: bool,
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
            is_plain: false,
            seen: gate.word(),
            limits,
            max_segments: info.max_segments.min(MAX_SEGMENTS) as usize,
            block_size: info.block_size.into(),
            cutter,
            share: None,
            histogram: None,
            watch: None,
            is_timed: false,
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
        if self.is_timed {
            self.tell_time(tick);
        }
    }

    /// Few bdevs have anything that goes by the clock: a channel without it looks at one flag a pass.
    #[inline(never)]
    fn tell_time(&mut self, tick: u64) {
        self.inner.set_now(tick);
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
        self.is_timed = self.share.is_some() || self.watch.is_some() || self.inner.wants_time();
        self.is_plain = self.share.is_none() && self.cutter.is_none();
        if self.gate.removed() {
            self.allowed = 0;
            self.inner.removed();
        }
    }

    /// Takes one request, or says why not. See [`Channel::submit`].
    #[inline(always)]
    pub fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let kind = req.op.kind();
        let bytes = match self.check(req, kind) {
            Ok(bytes) => bytes,
            Err(status) => return Err(self.refused(status)),
        };
        let token = req.token.0 as usize;
        let Some(slot) = self.slots.get_mut(token).filter(|slot| slot.is_free()) else {
            return Err(self.no_slot(token));
        };
        let submitted = if self.is_plain {
            self.inner.submit(req)
        } else {
            let Self { inner, share, cutter, limits, info, .. } = self;
            let cutter = cutter.as_deref_mut().map(|cutter| (cutter, &*limits, &**info));
            submit_to_services(inner.as_mut(), share.as_deref_mut(), cutter, req, (kind, bytes))
        };
        match submitted {
            Ok(()) => {
                *slot = Slot { submitted: self.now, what: What::new(kind, bytes) };
                self.in_flight += 1;
                let io = self.trace_id | u64::from(req.token.0);
                POINTS.record(IO_START, io, [kind as u64, req.lba, req.blocks, 0]);
                Ok(())
            }
            Err(rejected) => Err(self.rejected(rejected)),
        }
    }

    #[cold]
    fn rejected(&mut self, rejected: Rejected) -> Rejected {
        match rejected {
            Rejected::Full => Rejected::Full,
            Rejected::Failed(status) => self.refuse(status),
        }
    }

    /// A token that is in flight is the caller's mistake, and no error of the bdev.
    #[cold]
    fn no_slot(&mut self, token: usize) -> Rejected {
        let is_full = self.in_flight as usize == self.slots.len();
        match self.slots.get(token) {
            Some(_) if !is_full => Rejected::Failed(Status::Invalid),
            _ => self.refused(Status::Invalid),
        }
    }

    /// While nothing is free, no token can be right.
    #[cold]
    fn refused(&mut self, status: Status) -> Rejected {
        if self.in_flight as usize == self.slots.len() { Rejected::Full } else { self.refuse(status) }
    }

    #[cold]
    fn refuse(&mut self, status: Status) -> Rejected {
        self.counters.count_error(status);
        Rejected::Failed(status)
    }

    /// Everything that must hold before a type sees the request, but that its token is free. Returns its length in bytes.
    #[inline(always)]
    fn check(&self, req: &Request<'_>, kind: OpKind) -> Result<u64, Status> {
        if self.allowed & (1u8 << kind as u8) == 0 {
            return Err(self.why_not(kind));
        }
        if kind == OpKind::Flush {
            return if req.iov.is_empty() { Ok(0) } else { Err(Status::Invalid) };
        }
        let num_blocks = self.info.num_blocks();
        if req.blocks > num_blocks || req.lba > num_blocks - req.blocks {
            return Err(Status::OutOfRange);
        }
        // No overflow: the whole bdev's length fits 64 bits, or it could not have been registered.
        let bytes = req.blocks * self.block_size;
        let covered = match req.iov {
            // Nearly always; every type takes one.
            [only] => only.len() as u64,
            many if many.len() > self.max_segments => return Err(Status::Invalid),
            // Vectors are at most 2^63 long and at most 2^32 of them: saturating is the only overflow there is.
            many => many.iter().fold(0, |sum: u64, v| sum.saturating_add(v.len() as u64)),
        };
        let fits = if kind.has_data() { covered == bytes } else { req.iov.is_empty() };
        if fits { Ok(bytes) } else { Err(Status::Invalid) }
    }

    #[cold]
    fn why_not(&self, kind: OpKind) -> Status {
        match self.supported & (1u8 << kind as u8) {
            _ if self.gate.removed() => Status::Removed,
            0 => Status::Unsupported,
            _ => Status::ReadOnly,
        }
    }

    /// Sends on what was submitted in this pass. See [`Channel::kick`].
    #[inline]
    pub fn kick(&mut self) {
        self.inner.kick();
        self.counters.set_in_flight(self.in_flight);
    }

    /// Hands out finished requests. See [`Channel::reap`]. Never in line: in the loops of its callers there are not enough
    /// registers for both (docs/performance.md).
    #[inline(never)]
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
        let done = &done[..n];
        if POINTS.is_on(IO_DONE) {
            self.trace_done(done);
        }
        let mut run = Run::EMPTY;
        for completion in done {
            let Some(slot) = self.slots.get_mut(completion.token.0 as usize) else {
                debug_assert!(false, "a type handed out a token it was never given");
                continue;
            };
            debug_assert!(!slot.is_free(), "a type completed a request twice");
            let Slot { submitted, what } = *slot;
            slot.what = What::NOTHING;
            if completion.status != Status::Ok {
                self.counters.count_error(completion.status);
                continue;
            }
            if !run.is_like(what, submitted) {
                self.count(run);
                run = Run { what, submitted, ops: 0 };
            }
            run.ops += 1;
        }
        if n > 0 {
            self.count(run);
            self.in_flight -= n as u32;
            self.counters.set_in_flight(self.in_flight);
        }
        n
    }

    /// Counts what has ended well.
    #[inline]
    fn count(&self, run: Run) {
        // Of nothing are those, too, that a type completed twice.
        if run.what == What::NOTHING {
            return;
        }
        let ticks = self.now.saturating_sub(run.submitted);
        self.counters.count_run(run, ticks);
        if let Some(histogram) = &self.histogram {
            histogram.tally(run.what.kind(), ticks, run.ops);
        }
    }

    #[cold]
    fn trace_done(&self, done: &[Completion]) {
        for completion in done {
            let io = self.trace_id | u64::from(completion.token.0);
            POINTS.record(IO_DONE, io, [completion.status as u64, 0, 0, 0]);
        }
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

    /// Whether the request with this token was accepted and not yet reaped.
    pub fn is_in_flight(&self, token: Token) -> bool {
        self.slots.get(token.0 as usize).is_some_and(|slot| !slot.is_free())
    }

    /// Requests accepted and not yet reaped.
    #[inline]
    pub fn in_flight(&self) -> usize {
        self.in_flight as usize
    }
}

/// Past the limit of the bdev, and in pieces where it is more than the type takes at once. Never in line: callers have the way of
/// a channel without either there, which asks for none of this.
#[inline(never)]
fn submit_to_services(
    inner: &mut dyn Channel,
    mut share: Option<&mut Share>,
    cutter: Option<(&mut Cutter, &Limits, &BdevInfo)>,
    req: &Request<'_>,
    (kind, bytes): (OpKind, u64),
) -> Result<(), Rejected> {
    if share.as_mut().is_some_and(|share| !share.admit(kind, bytes)) {
        return Err(Rejected::Full);
    }
    let submitted = match cutter {
        Some((cutter, limits, info)) if kind.has_data() && limits.exceeds(info, req) => {
            cutter.submit(inner, req)
        }
        _ => inner.submit(req),
    };
    if let (Err(_), Some(share)) = (submitted, share) {
        share.refund(kind, bytes);
    }
    submitted
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
