//! A bdev that stores nothing and writes down what it was asked for.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use bdev::{
    Bdev, BdevInfo, Channel, Completion, Error, Lifetime, Op, OpKind, Rejected, Request, Status, Token,
};
use serde_json::Value;

/// A request: what, first block, blocks.
pub(crate) type Seen = (Op, u64, u64);

/// Keeps what a recorder was asked for until it is let go.
#[derive(Debug)]
pub(crate) struct Hold {
    held: AtomicBool,
    /// How often channels were asked what has finished.
    reaps: AtomicUsize,
    /// Readable once there is something.
    ready: OwnedFd,
}

impl Hold {
    pub(crate) fn reaps(&self) -> usize {
        self.reaps.load(Ordering::Acquire)
    }

    pub(crate) fn let_go(&self) {
        self.held.store(false, Ordering::Release);
        rustix::io::write(&self.ready, &1_u64.to_ne_bytes()).unwrap();
    }
}

/// The bdev.
pub(crate) struct Recorder {
    info: Arc<BdevInfo>,
    seen: Arc<Mutex<Vec<Seen>>>,
    hold: Option<Arc<Hold>>,
    pub(crate) lifetime: Lifetime,
}

impl Recorder {
    /// 1 MiB of blocks of 512 bytes, described further by `describe`.
    pub(crate) fn new(describe: impl FnOnce(&mut BdevInfo)) -> Self {
        let mut info = BdevInfo::new("recorder", "Recorder", "Recorder0".to_owned(), 512, 2048);
        describe(&mut info);
        Self { info: Arc::new(info), seen: Arc::default(), hold: None, lifetime: Lifetime::default() }
    }

    /// Has it keep everything, and tell by a descriptor when it does no more.
    pub(crate) fn hold(&mut self) -> Arc<Hold> {
        let hold = Hold {
            held: AtomicBool::new(true),
            reaps: AtomicUsize::new(0),
            ready: vfu::irq::eventfd().unwrap(),
        };
        Arc::clone(self.hold.insert(Arc::new(hold)))
    }

    /// What it is asked for, filled as time goes on.
    pub(crate) fn seen(&self) -> Arc<Mutex<Vec<Seen>>> {
        Arc::clone(&self.seen)
    }
}

impl Bdev for Recorder {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, _kind: OpKind) -> bool {
        true
    }

    fn open_channel(&self, _depth: u16) -> Result<Box<dyn Channel>, Error> {
        Ok(Box::new(RecorderChannel {
            seen: Arc::clone(&self.seen),
            hold: self.hold.clone(),
            waiting: Vec::new(),
        }))
    }

    fn lifetime(&self) -> Lifetime {
        self.lifetime
    }

    fn resize(&self, _num_blocks: u64) -> Result<(), Error> {
        Ok(())
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        None
    }
}

struct RecorderChannel {
    seen: Arc<Mutex<Vec<Seen>>>,
    hold: Option<Arc<Hold>>,
    waiting: Vec<Token>,
}

impl Channel for RecorderChannel {
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        self.seen.lock().unwrap().push((req.op, req.lba, req.blocks));
        self.waiting.push(req.token);
        Ok(())
    }

    fn kick(&mut self) {}

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        if let Some(hold) = &self.hold {
            hold.reaps.fetch_add(1, Ordering::AcqRel);
            if hold.held.load(Ordering::Acquire) {
                return 0;
            }
        }
        let n = self.waiting.len().min(done.len());
        for (to, token) in done.iter_mut().zip(self.waiting.drain(..n)) {
            *to = Completion { token, status: Status::Ok };
        }
        n
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.hold.as_ref().map(|hold| hold.ready.as_fd())
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
