//! `aio`: a file or block device, with the interface of SPDK's bdev of that name.
//!
//! Underneath it is the same ring as `uring`: Linux AIO cannot sync without blocking, and has no buffered I/O that does
//! not block. The two were not measured against each other.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::file::{Backing, FileChannel, Options};
use crate::{Bdev, BdevInfo, Channel, Error, OpKind, OpenError, Registered, Registry};

const NAME: &str = "aio";
const PRODUCT_NAME: &str = "AIO disk";

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_aio_create`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct AioParams {
    /// Name of the new bdev.
    pub name: String,
    /// Path of the file or device.
    pub filename: String,
    /// Logical block in bytes; that of the device if 0. A file needs it.
    #[serde(default)]
    pub block_size: u32,
    /// Writes are refused.
    #[serde(default)]
    pub readonly: bool,
    /// Discards and zeroes, by fallocate.
    #[serde(default)]
    pub fallocate: bool,
    /// UUID; random if absent or nil.
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// Never block in a submission. With io_uring none does, so it is only remembered.
    #[serde(default)]
    pub nowait: bool,
}

/// A bdev on a file.
#[derive(Debug)]
pub struct Aio {
    info: Arc<BdevInfo>,
    backing: Backing,
    params: AioParams,
}

impl Aio {
    /// Opens the file; register the bdev to have it.
    pub fn new(params: AioParams) -> Result<Aio, Error> {
        let backing = Backing::open(&Options {
            filename: params.filename.clone(),
            block_size: params.block_size,
            read_only: params.readonly,
            fallocate: params.fallocate,
            ..Options::default()
        })?;
        let mut info =
            BdevInfo::new(NAME, PRODUCT_NAME, params.name.clone(), backing.block_size, backing.num_blocks);
        info.uuid = params.uuid.filter(|u| !u.is_nil()).unwrap_or(info.uuid);
        backing.describe(&mut info, params.readonly);
        Ok(Aio { info: Arc::new(info), backing, params })
    }
}

impl Bdev for Aio {
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
        json!({ "aio": {
            "filename": self.params.filename,
            "block_size_override": self.params.block_size != 0,
            "readonly": self.params.readonly,
            "fallocate": self.params.fallocate,
            "nowait": self.params.nowait,
        }})
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let mut params = json!({
            "name": self.info.name,
            "filename": self.params.filename,
            "readonly": self.params.readonly,
            "fallocate": self.params.fallocate,
            "nowait": self.params.nowait,
            "uuid": self.info.uuid,
        });
        if self.params.block_size != 0 {
            params["block_size"] = self.params.block_size.into();
        }
        Some(("bdev_aio_create", params))
    }

    fn measure(&self) -> Result<u64, Error> {
        self.backing.measure()
    }
}

/// Creates and registers an aio bdev.
pub fn create(registry: &Registry, params: AioParams) -> Result<Arc<Registered>, Error> {
    if registry.get(&params.name).is_ok() {
        return Err(Error::Exists { name: params.name });
    }
    registry.register(Arc::new(Aio::new(params)?))
}

/// Looks at the size of the file again, and tells who has the bdev open if it has changed.
pub fn rescan(registry: &Registry, name: &str) -> Result<(), Error> {
    super::rescan(registry, NAME, name)
}
