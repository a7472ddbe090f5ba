//! `error`: a bdev that fails on demand: requests that end with an error, hang, are refused for a while, or come back
//! with a wrong byte.
//!
//! For tests of what is above it. Allocates when a request is held back; passes everything else on.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::ready::ReadyQueue;
use crate::stack::{self, OneBase, Virtual};
use crate::{
    Bdev, BdevInfo, Channel, Completion, Error, IoChannel, IoVec, Op, OpKind, OpenError, Registered,
    Registry, Rejected, Request, Status, Token,
};

const NAME: &str = "error";
const PRODUCT_NAME: &str = "Error Injection Disk";
const PREFIX: &str = "EE_";

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_error_create`.
#[derive(Debug, Clone, Deserialize)]
pub struct ErrorParams {
    /// The bdev below; the new one is called `EE_<base>`.
    pub base_name: String,
    /// UUID; random if absent or nil.
    #[serde(default)]
    pub uuid: Option<Uuid>,
}

/// Which requests an injection concerns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "the names say it")]
pub enum IoType {
    /// None: takes all injections back.
    Clear,
    Read,
    Write,
    Unmap,
    Flush,
    All,
}

/// What happens to them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorType {
    /// They fail.
    Failure,
    /// They wait until resumed.
    Pending,
    /// One byte is changed.
    CorruptData,
    /// There is no room for them, and their owner tries again.
    Nomem,
    /// They fail; the NVMe status is remembered and has no other effect here.
    NvmeFailure,
}

/// The params of `bdev_error_inject_error`.
#[derive(Debug, Clone, Deserialize)]
pub struct InjectParams {
    /// The error bdev.
    pub name: String,
    /// Which requests.
    pub io_type: IoType,
    /// What happens to them.
    pub error_type: ErrorType,
    /// Status code type of `nvme_failure`.
    #[serde(default)]
    pub nvme_sct: u32,
    /// Status code of `nvme_failure`.
    #[serde(default)]
    pub nvme_sc: u32,
    /// How many requests.
    #[serde(default = "one")]
    pub num: u32,
    /// Only while at least so many are in flight on the channel.
    #[serde(default)]
    pub queue_depth: u64,
    /// Byte of the request to change.
    #[serde(default)]
    pub corrupt_offset: u64,
    /// What it is XORed with; not 0.
    #[serde(default)]
    pub corrupt_value: u8,
}

const fn one() -> u32 {
    1
}

#[derive(Debug, Clone, Copy)]
struct Injection {
    error: ErrorType,
    left: u32,
    queue_depth: u64,
    corrupt_offset: u64,
    corrupt_value: u8,
}

/// What is injected, by kind of operation.
#[derive(Debug, Default)]
struct Faults {
    by_kind: Mutex<[Option<Injection>; OpKind::COUNT]>,
    /// Counts injections that are set; zero spares the lock.
    armed: AtomicU64,
    /// Counts resumptions.
    resumed: AtomicU64,
}

impl Faults {
    fn lock(&self) -> MutexGuard<'_, [Option<Injection>; OpKind::COUNT]> {
        self.by_kind.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set(&self, kinds: &[OpKind], injection: Option<Injection>) {
        let mut by_kind = self.lock();
        kinds.iter().for_each(|kind| by_kind[*kind as usize] = injection);
        self.armed.store(by_kind.iter().flatten().count() as u64, Ordering::Release);
    }

    /// The injection that hits a request of this kind, counted down.
    fn hit(&self, kind: OpKind, in_flight: usize) -> Option<Injection> {
        if self.armed.load(Ordering::Acquire) == 0 {
            return None;
        }
        let mut by_kind = self.lock();
        let injection =
            by_kind[kind as usize].as_mut().filter(|i| i.left > 0 && in_flight as u64 >= i.queue_depth)?;
        injection.left -= 1;
        Some(*injection)
    }
}

struct Faulty {
    one: OneBase,
    faults: Arc<Faults>,
}

impl Bdev for Faulty {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.one.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.one.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(FaultyChannel {
            base: self.one.base.open_channel(depth)?,
            resumed: self.faults.resumed.load(Ordering::Acquire),
            faults: self.faults.clone(),
            ready: ReadyQueue::new(depth),
            held: Vec::new(),
            corrupt: vec![None; usize::from(depth)].into_boxed_slice(),
        }))
    }

    fn driver_specific(&self) -> Value {
        json!({ "error_disk": self.one.base_name() })
    }
}

/// A request that hangs.
struct Held {
    op: Op,
    lba: u64,
    blocks: u64,
    iov: Vec<IoVec>,
    token: Token,
}

struct FaultyChannel {
    base: IoChannel,
    faults: Arc<Faults>,
    resumed: u64,
    ready: ReadyQueue,
    held: Vec<Held>,
    /// By token: the byte to change when a read comes back, and how.
    corrupt: Box<[Option<(IoVec, u8)>]>,
}

/// The byte at `offset` of the vectors.
fn byte_at(iov: &[IoVec], offset: u64) -> Option<IoVec> {
    let mut left = usize::try_from(offset).ok()?;
    for vector in iov {
        if left < vector.len() {
            return vector.slice(left, 1);
        }
        left -= vector.len();
    }
    None
}

fn flip(byte: IoVec, value: u8) {
    let mut seen = [0];
    byte.copy_to(0, &mut seen);
    byte.copy_from(0, &[seen[0] ^ value]);
}

impl FaultyChannel {
    fn pass_on(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        if let Some(place) = self.corrupt.get_mut(req.token.0 as usize) {
            *place = None;
        }
        self.base.submit(req)
    }

    /// Sends what was held once it is resumed.
    fn resume(&mut self) {
        let resumed = self.faults.resumed.load(Ordering::Acquire);
        if resumed == self.resumed || self.held.is_empty() {
            self.resumed = resumed;
            return;
        }
        while let Some(Held { op, lba, blocks, iov, token }) = self.held.pop() {
            match self.pass_on(&Request { op, lba, blocks, iov: &iov, token }) {
                Ok(()) => {}
                Err(Rejected::Full) => {
                    self.held.push(Held { op, lba, blocks, iov, token });
                    break;
                }
                // There is a place for every token.
                Err(Rejected::Failed(status)) => drop(self.ready.push(Completion { token, status })),
            }
        }
        if self.held.is_empty() {
            self.resumed = resumed;
        }
        self.base.kick();
    }
}

impl Channel for FaultyChannel {
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let Some(injection) = self.faults.hit(req.op.kind(), self.in_flight()) else {
            return self.pass_on(req);
        };
        match injection.error {
            ErrorType::Failure | ErrorType::NvmeFailure => {
                self.ready.push(Completion { token: req.token, status: Status::IoError })
            }
            ErrorType::Nomem => Err(Rejected::Full),
            ErrorType::Pending => {
                let Request { op, lba, blocks, iov, token } = *req;
                self.held.push(Held { op, lba, blocks, iov: iov.to_vec(), token });
                Ok(())
            }
            ErrorType::CorruptData => {
                let byte = byte_at(req.iov, injection.corrupt_offset);
                if let (Some(byte), OpKind::Write) = (byte, req.op.kind()) {
                    flip(byte, injection.corrupt_value);
                }
                self.pass_on(req)?;
                if let (Some(byte), OpKind::Read, Some(place)) =
                    (byte, req.op.kind(), self.corrupt.get_mut(req.token.0 as usize))
                {
                    *place = Some((byte, injection.corrupt_value));
                }
                Ok(())
            }
        }
    }

    fn kick(&mut self) {
        self.base.kick();
    }

    fn reap(&mut self, done: &mut [Completion]) -> usize {
        self.resume();
        let ready = self.ready.pop_into(done);
        let n = self.base.reap(&mut done[ready..]);
        for completion in &done[ready..ready + n] {
            if let Some(Some((byte, value))) =
                self.corrupt.get_mut(completion.token.0 as usize).map(Option::take)
            {
                flip(byte, value);
            }
        }
        ready + n
    }

    fn wants_time(&self) -> bool {
        true
    }

    fn set_now(&mut self, tick: u64) {
        self.base.set_now(tick);
    }

    fn removed(&mut self) {
        for held in self.held.drain(..) {
            // There is a place for every token.
            let _ = self.ready.push(Completion { token: held.token, status: Status::Removed });
        }
    }

    fn arm(&mut self) -> bool {
        self.ready.len() == 0 && self.held.is_empty() && self.base.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.base.event_fd()
    }

    fn in_flight(&self) -> usize {
        self.base.in_flight() + self.ready.len() + self.held.len()
    }
}

struct Configured {
    name: String,
    params: ErrorParams,
    faults: Arc<Faults>,
}

impl Virtual for Configured {
    fn key(&self) -> (&'static str, &str) {
        (NAME, &self.name)
    }

    fn examine(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<(), Error> {
        if !stack::is_called(bdev, &self.params.base_name) || registry.get(&self.name).is_ok() {
            return Ok(());
        }
        let base = stack::take_base(registry, bdev.name(), NAME, stack::follow(NAME, self.name.clone()))?;
        let info = stack::describe_like(base.info(), NAME, PRODUCT_NAME, self.name.clone(), self.params.uuid);
        stack::register(
            registry,
            Faulty { one: OneBase { info: Arc::new(info), base }, faults: self.faults.clone() },
        )?;
        Ok(())
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let params = json!({ "base_name": self.params.base_name, "uuid": self.params.uuid });
        Some(("bdev_error_create", params))
    }
}

/// Creates an error bdev, now or as soon as its base appears.
pub fn create(registry: &Arc<Registry>, mut params: ErrorParams) -> Result<(), Error> {
    let name = format!("{PREFIX}{}", params.base_name);
    if registry.get(&name).is_ok() {
        return Err(Error::Exists { name });
    }
    params.uuid = Some(params.uuid.filter(|u| !u.is_nil()).unwrap_or_else(Uuid::new_v4));
    let bases = [params.base_name.clone()];
    stack::configure(registry, Arc::new(Configured { name, params, faults: Arc::default() }), &bases)
}

fn configured(registry: &Registry, name: &str) -> Result<Arc<Configured>, Error> {
    let missing = || Error::NoSuchDevice { name: name.to_owned() };
    let bdev = registry.get(name)?;
    registry.find_virtual(NAME, bdev.name()).and_then(stack::as_type::<Configured>).ok_or_else(missing)
}

/// Sets, or takes back, what is to go wrong.
pub fn inject(registry: &Registry, params: &InjectParams) -> Result<(), Error> {
    let configured = configured(registry, &params.name)?;
    let kinds: &[OpKind] = match params.io_type {
        IoType::Clear => {
            configured.faults.set(&OpKind::ALL, None);
            return Ok(());
        }
        IoType::Read => &[OpKind::Read],
        IoType::Write => &[OpKind::Write],
        IoType::Unmap => &[OpKind::Unmap],
        IoType::Flush => &[OpKind::Flush],
        IoType::All => &OpKind::ALL,
    };
    if params.error_type == ErrorType::CorruptData && params.corrupt_value == 0 {
        return Err(Error::Invalid("corrupt_value should be non-zero".to_owned()));
    }
    let injection = Injection {
        error: params.error_type,
        left: params.num,
        queue_depth: params.queue_depth,
        corrupt_offset: params.corrupt_offset,
        corrupt_value: params.corrupt_value,
    };
    configured.faults.set(kinds, Some(injection));
    Ok(())
}

/// Sends on what hangs.
pub fn resume_pending(registry: &Registry, name: &str) -> Result<(), Error> {
    configured(registry, name)?.faults.resumed.fetch_add(1, Ordering::AcqRel);
    Ok(())
}

/// Deletes an error bdev; `on_gone` is called when it is gone.
pub fn delete(
    registry: &Arc<Registry>,
    name: &str,
    on_gone: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    stack::unconfigure(registry, NAME, name, on_gone)
}
