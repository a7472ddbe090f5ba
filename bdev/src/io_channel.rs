//! The one wrapper around every channel: checks each request, counts it, and knows when the bdev is gone.
//!
//! Device models (and stacked bdev types) get an [`IoChannel`] from
//! [`Descriptor::open_channel`](crate::Descriptor::open_channel) and never see the type's own channel. All
//! services that apply to every type live behind these calls, so that a type holds nothing but its own work.
//! On the I/O path: nothing here allocates, locks, logs or reads a clock.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use crate::registry::{Gate, Open};
use crate::stats::ChannelCounters;
use crate::{BdevInfo, Channel, Completion, OpKind, Rejected, Request, Status};

/// A request in flight: when it came and what it is.
#[derive(Clone, Copy)]
struct Slot {
    submitted: u64,
    /// Length in bytes, and in the top byte 1 + kind; 0 for a free slot.
    bytes_and_kind: u64,
}

const KIND_SHIFT: u32 = 56;
const BYTES_MASK: u64 = (1 << KIND_SHIFT) - 1;

impl Slot {
    const FREE: Slot = Slot { submitted: 0, bytes_and_kind: 0 };

    #[inline]
    fn new(submitted: u64, bytes: u64, kind: OpKind) -> Slot {
        Slot { submitted, bytes_and_kind: (bytes & BYTES_MASK) | ((kind as u64 + 1) << KIND_SHIFT) }
    }

    #[inline]
    fn is_free(self) -> bool {
        self.bytes_and_kind == 0
    }
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
    now: u64,
    in_flight: u32,
    /// Bit n: the kind with discriminant n is supported, and allowed through this descriptor.
    allowed: u8,
    supported: u8,
    seen: u32,
    /// Alignment of buffers, less one.
    align_mask: usize,
    max_segments: usize,
    max_io_blocks: u64,
    block_size: u64,
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
        inner: Box<dyn Channel>,
        counters: Arc<ChannelCounters>,
    ) -> IoChannel {
        let registered = open.registered();
        let info = registered.info().clone();
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
        IoChannel {
            inner,
            slots: vec![Slot::FREE; usize::from(depth)].into_boxed_slice(),
            now: 0,
            in_flight: 0,
            allowed,
            supported,
            seen: gate.word(),
            align_mask: info.buf_align as usize - 1,
            max_segments: info.max_segments as usize,
            max_io_blocks: if info.max_io_blocks == 0 { u64::MAX } else { info.max_io_blocks.into() },
            block_size: info.block_size.into(),
            info,
            gate,
            counters,
            open,
        }
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
    }

    /// Something changed on the control path since the last pass.
    #[cold]
    fn refresh(&mut self) {
        let word = self.gate.word();
        if Gate::epoch_of(word) != Gate::epoch_of(self.seen) {
            self.counters.clear_extremes(Gate::epoch_of(word));
        }
        self.seen = word;
    }

    /// Takes one request, or says why not. See [`Channel::submit`].
    #[inline]
    pub fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let kind = req.op.kind();
        if self.in_flight as usize == self.slots.len() {
            return Err(Rejected::Full);
        }
        let bytes = match self.check(req, kind) {
            Ok(bytes) => bytes,
            Err(status) => return Err(self.refuse(status)),
        };
        match self.inner.submit(req) {
            Ok(()) => {
                // check() has looked the slot up; the bound is known here.
                if let Some(slot) = self.slots.get_mut(req.token.0 as usize) {
                    *slot = Slot::new(self.now, bytes, kind);
                }
                self.in_flight += 1;
                Ok(())
            }
            Err(Rejected::Full) => Err(Rejected::Full),
            Err(Rejected::Failed(status)) => Err(self.refuse(status)),
        }
    }

    #[cold]
    fn refuse(&mut self, status: Status) -> Rejected {
        self.counters.count_error(status);
        Rejected::Failed(status)
    }

    /// Everything that must hold before a type sees the request. Returns its length in bytes.
    #[inline]
    fn check(&self, req: &Request<'_>, kind: OpKind) -> Result<u64, Status> {
        if self.gate.removed() {
            return Err(Status::Removed);
        }
        let bit = 1u8 << kind as u8;
        if self.allowed & bit == 0 {
            return Err(if self.supported & bit == 0 { Status::Unsupported } else { Status::ReadOnly });
        }
        match self.slots.get(req.token.0 as usize) {
            Some(slot) if slot.is_free() => {}
            _ => return Err(Status::Invalid),
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
        if kind.has_data() {
            if req.iov.len() > self.max_segments || req.blocks > self.max_io_blocks {
                return Err(Status::Invalid);
            }
            let mut sum = 0u64;
            let mut unaligned = 0usize;
            for v in req.iov {
                // Vectors are at most 2^63 long and at most 2^32 of them: saturating is the only overflow
                // there is.
                sum = sum.saturating_add(v.len() as u64);
                unaligned |= v.as_ptr().addr() | v.len();
            }
            if sum != bytes || unaligned & self.align_mask != 0 {
                return Err(Status::Invalid);
            }
        } else if !req.iov.is_empty() {
            return Err(Status::Invalid);
        }
        Ok(bytes)
    }

    /// Sends on what was submitted in this pass. See [`Channel::kick`].
    #[inline]
    pub fn kick(&mut self) {
        self.inner.kick();
    }

    /// Hands out finished requests. See [`Channel::reap`].
    #[inline]
    pub fn reap(&mut self, done: &mut [Completion]) -> usize {
        if self.in_flight == 0 {
            return 0;
        }
        let n = self.inner.reap(done);
        for completion in &done[..n] {
            let Some(slot) = self.slots.get_mut(completion.token.0 as usize) else {
                debug_assert!(false, "a type handed out a token it was never given");
                continue;
            };
            debug_assert!(!slot.is_free(), "a type completed a request twice");
            let Slot { submitted, bytes_and_kind } = std::mem::replace(slot, Slot::FREE);
            if completion.status == Status::Ok {
                let kind =
                    OpKind::ALL[((bytes_and_kind >> KIND_SHIFT) as usize).saturating_sub(1) % OpKind::COUNT];
                self.counters.count(kind, bytes_and_kind & BYTES_MASK, self.now.saturating_sub(submitted));
            } else {
                self.counters.count_error(completion.status);
            }
        }
        self.in_flight -= n as u32;
        n
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
        if self.in_flight > 0 {
            let (bdev, in_flight) = (&self.info.name, self.in_flight);
            tracing::warn!(%bdev, in_flight, "channel dropped before it was drained");
        }
        self.open.registered().close_counters(&self.counters);
    }
}
