//! A bdev that stores nothing and writes down what it was asked for.

use std::sync::{Arc, Mutex};

use bdev::{
    Bdev, BdevInfo, Channel, Completion, Error, Lifetime, Op, OpKind, Rejected, Request, Status, Token,
};
use serde_json::Value;

/// A request: what, first block, blocks.
pub(crate) type Seen = (Op, u64, u64);

/// The bdev.
pub(crate) struct Recorder {
    info: Arc<BdevInfo>,
    seen: Arc<Mutex<Vec<Seen>>>,
    pub(crate) lifetime: Lifetime,
}

impl Recorder {
    /// 1 MiB of blocks of 512 bytes, described further by `describe`.
    pub(crate) fn new(describe: impl FnOnce(&mut BdevInfo)) -> Self {
        let mut info = BdevInfo::new("recorder", "Recorder", "Recorder0".to_owned(), 512, 2048);
        describe(&mut info);
        Self { info: Arc::new(info), seen: Arc::default(), lifetime: Lifetime::default() }
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
        Ok(Box::new(RecorderChannel { seen: Arc::clone(&self.seen), waiting: Vec::new() }))
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
        let n = self.waiting.len().min(done.len());
        for (to, token) in done.iter_mut().zip(self.waiting.drain(..n)) {
            *to = Completion { token, status: Status::Ok };
        }
        n
    }

    fn in_flight(&self) -> usize {
        self.waiting.len()
    }
}
