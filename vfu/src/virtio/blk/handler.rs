//! The requests of one virtio-blk queue: each is decoded, handed to the queue's bdev channel, and ends with a status
//! byte in guest memory.

use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use bdev::{
    BdevInfo, Completion, Descriptor, IoChannel, IoVec, MAX_SEGMENTS, Op, Rejected, Request, Status, Token,
};

use zerocopy::IntoBytes;

use super::{
    Events, REMOVED,
    request::{Ask, Bad, Data, Frame, Plain, Terms},
};
use crate::{
    dma::View,
    stages::{Laps, Stage},
    virtio::{
        device::{Handler, Verdict},
        queue::{Chain, Triple},
        spec::blk::{ID_LEN, Lifetime, feature, status},
    },
};

/// Completions taken from the channel at a time: as many as a pass takes chains.
const REAP_BATCH: usize = 256;

/// A request in flight; its index is the chain's id, and the channel's token.
#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Guest address of the status byte.
    status: u64,
    /// Bytes to report as written if it succeeds, the status among them; none for one that cannot, as memory was torn
    /// while it was in flight.
    written: u32,
}

/// A queue's way to the bdev.
pub(super) struct Backend {
    channel: IoChannel,
    descriptor: Arc<Descriptor>,
}

impl Backend {
    /// Opens a channel on the thread that will use it.
    pub(super) fn open(descriptor: Arc<Descriptor>, depth: u16) -> Result<Self, bdev::OpenError> {
        Ok(Self { channel: descriptor.open_channel(depth)?, descriptor })
    }
}

/// Handles the requests of one queue.
pub struct BlkHandler {
    /// None once the bdev is removed.
    backend: Option<Backend>,
    events: Arc<Events>,
    /// What the driver wrote to `writeback`.
    writeback: Arc<AtomicBool>,
    /// The bdev has a cache, and the driver knows it: it flushes.
    knows_cache: bool,
    has_cache: bool,
    slots: Box<[Slot]>,
    /// Torn windows when it was looked last, see [`View::torn`].
    torn: usize,
    /// Guest address of the header that was read last.
    header: u64,
    iov: Vec<IoVec>,
    ended: Box<[Completion; REAP_BATCH]>,
    id: [u8; ID_LEN],
    terms: Terms,
    read_only: bool,
}

/// The status byte for how a bdev request ended.
fn status_byte(status: Status) -> u8 {
    match status {
        Status::Ok => status::OK,
        Status::Unsupported => status::UNSUPP,
        _ => status::IOERR,
    }
}

impl BlkHandler {
    /// A handler for a queue with `depth` entries.
    pub(super) fn new(
        backend: Option<Backend>,
        events: Arc<Events>,
        writeback: Arc<AtomicBool>,
        info: &BdevInfo,
        features: u64,
        depth: u16,
    ) -> Self {
        let mut id = [0; ID_LEN];
        for (to, from) in id.iter_mut().zip(info.name.bytes()) {
            *to = from;
        }
        Self {
            backend,
            events,
            writeback,
            knows_cache: features & feature::FLUSH != 0,
            has_cache: info.write_cache,
            slots: vec![Slot::default(); usize::from(depth)].into_boxed_slice(),
            torn: 0,
            header: 0,
            iov: Vec::with_capacity(MAX_SEGMENTS as usize),
            ended: Box::new([Completion::EMPTY; REAP_BATCH]),
            id,
            terms: Terms::new(info.block_size, features & feature::SECURE_ERASE != 0),
            read_only: features & feature::RO != 0,
        }
    }

    /// The operation as the agreed cache mode wants it: a driver that does not flush, or has switched the cache off,
    /// is told of a write when it is durable (virtio 1.2, 5.2.6.2).
    #[inline]
    fn durable(&self, op: Op) -> Op {
        if !self.has_cache || (self.knows_cache && self.writeback.load(Ordering::Relaxed)) {
            return op;
        }
        match op {
            Op::Write { .. } => Op::Write { fua: true },
            Op::WriteZeroes { unmap, .. } => Op::WriteZeroes { unmap, fua: true },
            op => op,
        }
    }

    /// Ends a request that never reached the bdev.
    fn end(view: &View, status_at: u64, status: u8, written: u32) -> Verdict {
        // A status that cannot be written is the driver's own loss; the chain goes back all the same.
        match view.put(status_at, status) {
            Ok(()) => Verdict::Done(written + 1),
            Err(_) => Verdict::Done(0),
        }
    }

    /// Answers with bytes of our own. How many of them there was room for.
    fn give(bytes: &[u8], into: Data<'_>, view: &View) -> Result<u32, Bad> {
        let mut at = 0;
        for piece in into.pieces() {
            let n = (piece.len as usize).min(bytes.len() - at);
            view.write(piece.addr, &bytes[at..at + n])?;
            at += n;
        }
        Ok(u32::try_from(at).unwrap_or(0))
    }

    fn get_lifetime(&self, into: Data<'_>, view: &View) -> Result<u32, Bad> {
        let lifetime = self.backend.as_ref().ok_or(Bad::Malformed)?.descriptor.bdev().lifetime();
        let answer = Lifetime {
            pre_eol_info: lifetime.pre_eol,
            device_lifetime_est_typ_a: lifetime.type_a,
            device_lifetime_est_typ_b: lifetime.type_b,
        };
        Self::give(answer.as_bytes(), into, view)
    }

    fn translate(&mut self, op: Op, frame: &Frame<'_>, view: &View) -> Result<(), Bad> {
        self.iov.clear();
        let (data, device_writes) = match op {
            Op::Read => (frame.into, true),
            Op::Write { .. } => (frame.out, false),
            _ => return Ok(()),
        };
        for piece in data.pieces() {
            view.translate(piece.addr, piece.len, device_writes, &mut self.iov)?;
        }
        Ok(())
    }

    /// Any request, [`Plain`] ones too where they come as no triple, or out of another window than the last one.
    #[inline(never)]
    fn submit_any(&mut self, chain: &Chain, view: &View, laps: &mut impl Laps) -> Verdict {
        self.header = chain.readable().first().map_or(0, |first| first.addr);
        let Some(frame) = Frame::of(chain, view) else { return Verdict::Broken };
        let bad = |bad| {
            Self::end(
                view,
                frame.status,
                if bad == Bad::Malformed { status::IOERR } else { status::UNSUPP },
                0,
            )
        };
        let (op, lba, blocks) = match frame.decode(view, self.terms) {
            Ok(Ask::Io { op, lba, blocks }) => (op, lba, blocks),
            Ok(own @ (Ask::GetId | Ask::GetLifetime)) => {
                let given = match own {
                    Ask::GetLifetime => self.get_lifetime(frame.into, view),
                    _ => Self::give(&self.id, frame.into, view),
                };
                return match given {
                    Ok(written) => Self::end(view, frame.status, status::OK, written),
                    Err(error) => bad(error),
                };
            }
            Err(error) => return bad(error),
        };
        if let Err(error) = self.translate(op, &frame, view) {
            return bad(error);
        }
        if self.read_only && op.kind().modifies() {
            return self.refused(view, frame.status, Rejected::Failed(Status::ReadOnly));
        }
        // What a read fills is as long as what it asks for.
        let filled = if op == Op::Read { self.terms.bytes(blocks) } else { 0 };
        let filled = u32::try_from(filled).unwrap_or(u32::MAX - 1);
        let op = self.durable(op);
        let iov = std::mem::take(&mut self.iov);
        let token = Token(u32::from(chain.id()));
        let request = Request { op, lba, blocks, iov: &iov, token };
        let verdict = self.hand_on(request, frame.status, filled, view, laps);
        self.iov = iov;
        verdict
    }

    /// To the bdev, with what has to be known when it is done.
    #[inline(always)]
    fn hand_on(
        &mut self,
        request: Request<'_>,
        status_at: u64,
        filled: u32,
        view: &View,
        laps: &mut impl Laps,
    ) -> Verdict {
        let Some(Backend { channel, .. }) = &mut self.backend else {
            return self.refused(view, status_at, Rejected::Failed(Status::Removed));
        };
        laps.lap(Stage::Translate);
        let id = request.token.0 as usize;
        match channel.submit(&request) {
            Ok(()) => {
                self.slots[id] = Slot { status: status_at, written: filled + 1 };
                Verdict::InFlight
            }
            Err(_) if self.is_in_flight(id as u16) => Verdict::Reused,
            Err(rejected) => self.refused(view, status_at, rejected),
        }
    }

    #[cold]
    fn refused(&self, view: &View, status_at: u64, rejected: Rejected) -> Verdict {
        match rejected {
            Rejected::Full => Verdict::Full,
            Rejected::Failed(status) => Self::end(view, status_at, status_byte(status), 0),
        }
    }

    /// What was in flight while memory was torn has failed, whatever its channel says. All of it: which of them touched
    /// that memory is not known.
    #[inline(always)]
    fn look_for_torn(&mut self, view: &View) {
        let torn = view.torn();
        if torn != self.torn {
            self.torn = torn;
            self.fail_all();
        }
    }

    #[cold]
    fn fail_all(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.written = 0);
    }
}

impl Handler for BlkHandler {
    const TAKES_TRIPLES: bool = true;

    #[inline]
    fn begin(&mut self, now: u64, view: &View) {
        self.look_for_torn(view);
        if let Some(Backend { channel, .. }) = &mut self.backend {
            channel.set_now(now);
        }
    }

    fn submit(&mut self, chain: &Chain, view: &View, laps: &mut impl Laps) -> Verdict {
        self.submit_any(chain, view, laps)
    }

    #[inline(always)]
    fn submit_triple(&mut self, triple: &Triple, view: &View, laps: &mut impl Laps) -> Option<Verdict> {
        self.header = triple.buffers[0].addr;
        let token = Token(u32::from(triple.head.id));
        // Each with code of its own, most of whose questions are answered by which it is.
        if triple.is_read {
            let Plain { lba, blocks, data, status } = Plain::of(triple, true, view, self.terms)?;
            let request = Request { op: Op::Read, lba, blocks, iov: &[data], token };
            return Some(self.hand_on(request, status, triple.buffers[1].len, view, laps));
        }
        if self.read_only {
            return None;
        }
        let Plain { lba, blocks, data, status } = Plain::of(triple, false, view, self.terms)?;
        let request = Request { op: self.durable(Op::WRITE), lba, blocks, iov: &[data], token };
        Some(self.hand_on(request, status, 0, view, laps))
    }

    #[inline]
    fn prefetch(&self, view: &View) {
        // Alone in flight, a request's header is where the last one's was, as drivers reuse what was freed last. It comes over
        // from the driver's core while the descriptors do, which say where it is.
        view.prefetch(self.header);
    }

    fn kick(&mut self) {
        if let Some(Backend { channel, .. }) = &mut self.backend {
            channel.kick();
        }
    }

    #[inline]
    fn reap(&mut self, view: &View, laps: &mut impl Laps, mut done: impl FnMut(u16, u32)) {
        loop {
            let Some(Backend { channel, .. }) = &mut self.backend else { return };
            let n = channel.reap(&mut *self.ended);
            laps.lap(Stage::Backend);
            // After the channel has touched the memory of all of them.
            self.look_for_torn(view);
            for completion in &self.ended[..n] {
                let id = completion.token.0 as usize;
                let slot = self.slots[id];
                // The queue keeps its view while requests are in flight, so the status address still stands.
                if completion.status == Status::Ok && slot.written > 0 {
                    let _ = view.put(slot.status, status::OK);
                    done(id as u16, slot.written);
                } else {
                    let is_torn = slot.written == 0;
                    let status = if is_torn { Status::IoError } else { completion.status };
                    let _ = view.put(slot.status, status_byte(status));
                    done(id as u16, 0);
                }
            }
            laps.lap(Stage::Complete);
            if n < REAP_BATCH {
                return;
            }
        }
    }

    fn in_flight(&self) -> usize {
        self.backend.as_ref().map_or(0, |backend| backend.channel.in_flight())
    }

    fn refresh(&mut self) {
        if self.events.flags.load(Ordering::Acquire) & REMOVED != 0 {
            self.backend = None;
        }
    }

    #[cold]
    fn is_in_flight(&self, id: u16) -> bool {
        self.backend.as_ref().is_some_and(|backend| backend.channel.is_in_flight(Token(id.into())))
    }

    fn arm(&mut self) -> bool {
        self.backend.as_mut().is_none_or(|backend| backend.channel.arm())
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.backend.as_ref().and_then(|backend| backend.channel.event_fd())
    }
}
