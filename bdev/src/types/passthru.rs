//! `passthru`: another name for a bdev. For trying stacks, and for measuring what a layer costs.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::stack::{self, OneBase, Virtual};
use crate::{
    Bdev, BdevInfo, Channel, Completion, Error, IoChannel, OpKind, OpenError, Registered, Registry, Rejected,
    Request,
};

const NAME: &str = "passthru";
const PRODUCT_NAME: &str = "passthru";

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_passthru_create`.
#[derive(Debug, Clone, Deserialize)]
pub struct PassthruParams {
    /// Name of the new bdev.
    pub name: String,
    /// The bdev below.
    pub base_bdev_name: String,
    /// UUID; random if absent or nil.
    #[serde(default)]
    pub uuid: Option<Uuid>,
}

struct Passthru(OneBase);

impl Bdev for Passthru {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.0.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.0.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(ShiftedChannel::new(self.0.base.open_channel(depth)?, 0)))
    }

    fn driver_specific(&self) -> Value {
        json!({ NAME: { "name": self.0.info.name, "base_bdev_name": self.0.base_name() } })
    }
}

/// A channel to a base, `first` blocks further on. Also what `split` is made of.
pub(super) struct ShiftedChannel {
    base: IoChannel,
    first: u64,
}

impl ShiftedChannel {
    pub(super) fn new(base: IoChannel, first: u64) -> ShiftedChannel {
        ShiftedChannel { base, first }
    }
}

impl Channel for ShiftedChannel {
    #[inline]
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        // In range here, so in range there; no overflow. (A flush has no range.)
        self.base.submit(&Request { lba: req.lba.wrapping_add(self.first), ..*req })
    }

    #[inline]
    fn kick(&mut self) {
        self.base.kick();
    }

    #[inline]
    fn reap(&mut self, done: &mut [Completion]) -> usize {
        self.base.reap(done)
    }

    fn wants_time(&self) -> bool {
        true
    }

    fn set_now(&mut self, tick: u64) {
        self.base.set_now(tick);
    }

    fn arm(&mut self) -> bool {
        self.base.arm()
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        self.base.event_fd()
    }

    fn in_flight(&self) -> usize {
        self.base.in_flight()
    }
}

struct Configured(PassthruParams);

impl Virtual for Configured {
    fn key(&self) -> (&'static str, &str) {
        (NAME, &self.0.name)
    }

    fn examine(&self, registry: &Arc<Registry>, bdev: &Arc<Registered>) -> Result<(), Error> {
        let PassthruParams { name, base_bdev_name, uuid } = &self.0;
        if !stack::is_called(bdev, base_bdev_name) || registry.get(name).is_ok() {
            return Ok(());
        }
        let base = stack::take_base(registry, bdev.name(), NAME, stack::follow(NAME, name.clone()))?;
        let info = stack::describe_like(base.info(), NAME, PRODUCT_NAME, name.clone(), *uuid);
        stack::register(registry, Passthru(OneBase { info: Arc::new(info), base }))?;
        Ok(())
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let PassthruParams { name, base_bdev_name, uuid } = &self.0;
        let mut params = json!({ "base_bdev_name": base_bdev_name, "name": name });
        if let Some(uuid) = uuid {
            params["uuid"] = uuid.to_string().into();
        }
        Some(("bdev_passthru_create", params))
    }
}

/// Creates a passthru bdev, now or as soon as its base appears.
pub fn create(registry: &Arc<Registry>, mut params: PassthruParams) -> Result<(), Error> {
    if registry.get(&params.name).is_ok() {
        return Err(Error::Exists { name: params.name });
    }
    // Chosen once, so that it is the same whenever the base comes.
    params.uuid = Some(params.uuid.filter(|u| !u.is_nil()).unwrap_or_else(Uuid::new_v4));
    let bases = [params.base_bdev_name.clone()];
    stack::configure(registry, Arc::new(Configured(params)), &bases)
}

/// Deletes a passthru bdev; `on_gone` is called when it is gone.
pub fn delete(
    registry: &Arc<Registry>,
    name: &str,
    on_gone: impl FnOnce() + Send + 'static,
) -> Result<(), Error> {
    stack::unconfigure(registry, NAME, name, on_gone)
}
