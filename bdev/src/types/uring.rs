//! `uring`: a file or block device, by io_uring.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::file::{Backing, FileChannel, Options};
use crate::{Bdev, BdevInfo, Channel, Error, OpKind, OpenError, Registered, Registry};

const NAME: &str = "uring";
const PRODUCT_NAME: &str = "URING bdev";

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_uring_create`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct UringParams {
    /// Name of the new bdev.
    pub name: String,
    /// Path of the file or device.
    pub filename: String,
    /// Logical block in bytes; that of the device if 0. A file needs it.
    #[serde(default)]
    pub block_size: u32,
    /// UUID; random if absent or nil.
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// Have the kernel poll the device for completions, where it can.
    #[serde(default)]
    pub iopoll: bool,
    /// Have a thread of the kernel take submissions, where it can.
    #[serde(default)]
    pub sqpoll: bool,
}

/// A bdev on a file.
#[derive(Debug)]
pub struct Uring {
    info: Arc<BdevInfo>,
    backing: Backing,
    params: UringParams,
}

impl Uring {
    /// Opens the file; register the bdev to have it.
    pub fn new(params: UringParams) -> Result<Uring, Error> {
        let backing = Backing::open(&Options {
            filename: params.filename.clone(),
            block_size: params.block_size,
            read_only: false,
            fallocate: true,
            iopoll: params.iopoll,
            sqpoll: params.sqpoll,
        })?;
        let mut info =
            BdevInfo::new(NAME, PRODUCT_NAME, params.name.clone(), backing.block_size, backing.num_blocks);
        info.uuid = params.uuid.filter(|u| !u.is_nil()).unwrap_or(info.uuid);
        backing.describe(&mut info, false);
        Ok(Uring { info: Arc::new(info), backing, params })
    }
}

impl Bdev for Uring {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        match kind {
            OpKind::Read | OpKind::Write | OpKind::Flush => true,
            OpKind::Unmap => self.backing.punches,
            OpKind::WriteZeroes => self.backing.punches && self.backing.zero_mode.is_some(),
        }
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(FileChannel::open(&self.backing, depth)?))
    }

    fn driver_specific(&self) -> Value {
        json!({ "uring": { "filename": self.params.filename } })
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let mut params = json!({
            "name": self.info.name,
            "filename": self.params.filename,
            "block_size": self.info.block_size,
            "uuid": self.info.uuid,
        });
        for (key, is_set) in [("iopoll", self.params.iopoll), ("sqpoll", self.params.sqpoll)] {
            if is_set {
                params[key] = true.into();
            }
        }
        Some(("bdev_uring_create", params))
    }

    fn measure(&self) -> Result<u64, Error> {
        self.backing.measure()
    }
}

/// Creates and registers a uring bdev.
pub fn create(registry: &Registry, params: UringParams) -> Result<Arc<Registered>, Error> {
    if registry.get(&params.name).is_ok() {
        return Err(Error::Exists { name: params.name });
    }
    registry.register(Arc::new(Uring::new(params)?))
}

/// Looks at the size of the file again, and tells who has the bdev open if it has changed.
pub fn rescan(registry: &Registry, name: &str) -> Result<(), Error> {
    super::rescan(registry, NAME, name)
}
