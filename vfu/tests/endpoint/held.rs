//! A bdev that answers when it is told to, so that a test has requests in flight for as long as it wants.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use bdev::{Bdev, BdevInfo, Channel, Completion, Error, IoVec, Op, OpKind, Rejected, Request, Status};
use serde_json::Value;
use vfu::mock::server::DiskOptions;

use crate::rig::Rig;

/// What a write's memory is copied into, and a read's is filled from: as the test finds it when it looks.
const FILL: u8 = 0xa5;
const BLOCKS: u64 = 2048;

/// What the test and the channels share.
#[derive(Debug, Default)]
pub(crate) struct Hold {
    open: AtomicBool,
    held: AtomicUsize,
    /// Bytes that are not [`FILL`] in what was written; read when the request is answered, not before.
    wrong: AtomicUsize,
    channels: AtomicUsize,
}

impl Hold {
    /// Answers everything, now and from now on.
    pub(crate) fn release(&self) {
        self.open.store(true, Ordering::Release);
    }

    /// Requests that wait.
    pub(crate) fn held(&self) -> usize {
        self.held.load(Ordering::Acquire)
    }

    pub(crate) fn wrong(&self) -> usize {
        self.wrong.load(Ordering::Acquire)
    }

    /// Channels that are open: queues that have not ended.
    pub(crate) fn channels(&self) -> usize {
        self.channels.load(Ordering::Acquire)
    }
}

/// The bdev. Reads are filled with 0xa5 when they are answered.
pub(crate) struct Held {
    info: Arc<BdevInfo>,
    hold: Arc<Hold>,
}

impl Held {
    pub(crate) fn make(name: &str) -> (Arc<dyn Bdev>, Arc<Hold>) {
        let hold = Arc::new(Hold::default());
        let info = BdevInfo::new("held", "Held disk", name.to_owned(), 512, BLOCKS);
        (Arc::new(Self { info: Arc::new(info), hold: Arc::clone(&hold) }), hold)
    }
}

impl Rig {
    /// A disk named "disk" whose requests end when the test says so, served with usual queues.
    pub(crate) fn with_held() -> (Self, Arc<Hold>) {
        let mut rig = Self::new();
        let (held, hold) = Held::make("Held0");
        rig.register(held);
        rig.serve("disk", &DiskOptions::new("Held0"));
        (rig, hold)
    }
}

impl Bdev for Held {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, _kind: OpKind) -> bool {
        true
    }

    fn open_channel(&self, _depth: u16) -> Result<Box<dyn Channel>, Error> {
        self.hold.channels.fetch_add(1, Ordering::AcqRel);
        Ok(Box::new(HeldChannel { hold: Arc::clone(&self.hold), waiting: Vec::new() }))
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        None
    }
}

struct HeldChannel {
    hold: Arc<Hold>,
    waiting: Vec<(Op, Vec<IoVec>, bdev::Token)>,
}

impl Drop for HeldChannel {
    fn drop(&mut self) {
        self.hold.channels.fetch_sub(1, Ordering::AcqRel);
    }
}

impl HeldChannel {
    fn answer(&self, op: Op, iov: &[IoVec]) {
        match op {
            Op::Read => iov.iter().for_each(|piece| {
                piece.fill(0, piece.len(), FILL);
            }),
            Op::Write { .. } => {
                let mut bytes = vec![0; bdev::iov::total_len(iov).unwrap_or(0)];
                bdev::iov::gather(iov, &mut bytes);
                self.hold
                    .wrong
                    .fetch_add(bytes.iter().filter(|&&byte| byte != FILL).count(), Ordering::AcqRel);
            }
            _ => {}
        }
    }
}

impl Channel for HeldChannel {
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        self.waiting.push((req.op, req.iov.to_vec(), req.token));
        self.hold.held.fetch_add(1, Ordering::AcqRel);
        Ok(())
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        if !self.hold.open.load(Ordering::Acquire) {
            return 0;
        }
        let count = self.waiting.len().min(done.len());
        let finished: Vec<_> = self.waiting.drain(..count).collect();
        for (place, (op, iov, token)) in done.iter_mut().zip(finished) {
            self.answer(op, &iov);
            self.hold.held.fetch_sub(1, Ordering::AcqRel);
            *place = Completion { token, status: Status::Ok };
        }
        count
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}

/// Another bdev, but read-only.
pub(crate) struct ReadOnly {
    info: Arc<BdevInfo>,
    inner: Box<dyn Bdev>,
}

impl ReadOnly {
    pub(crate) fn new(inner: impl Bdev + 'static) -> Self {
        let (block_size, blocks) = (inner.info().block_size, inner.num_blocks());
        let mut info =
            BdevInfo::new("read_only", "Read-only disk", "ReadOnly0".to_owned(), block_size, blocks);
        info.read_only = true;
        Self { info: Arc::new(info), inner: Box::new(inner) }
    }
}

impl Bdev for ReadOnly {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.inner.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, Error> {
        self.inner.open_channel(depth)
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        None
    }
}
