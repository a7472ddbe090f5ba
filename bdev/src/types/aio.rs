//! `aio`: a file or block device, with the interface of SPDK's bdev of that name.
//!
//! Underneath it is the same ring as `uring`. Linux AIO is no faster (docs/bdev.md has the figures), cannot sync without
//! blocking, and has no buffered I/O that does not block.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use super::file_bdev::{self, FileParams};
use crate::file::Options;
use crate::{BdevInfo, Error, Registered, Registry};

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

impl FileParams for AioParams {
    const TYPE: BdevType = TYPE;

    fn name(&self) -> &str {
        &self.name
    }

    fn uuid(&self) -> Option<Uuid> {
        self.uuid
    }

    fn options(&self) -> Options {
        Options {
            filename: self.filename.clone(),
            block_size: self.block_size,
            read_only: self.readonly,
            fallocate: self.fallocate,
            ..Options::default()
        }
    }

    fn driver_specific(&self) -> Value {
        json!({ NAME: {
            "filename": self.filename,
            "block_size_override": self.block_size != 0,
            "readonly": self.readonly,
            "fallocate": self.fallocate,
            "nowait": self.nowait,
        }})
    }

    fn config(&self, info: &BdevInfo) -> (&'static str, Value) {
        let mut params = json!({
            "name": info.name,
            "filename": self.filename,
            "readonly": self.readonly,
            "fallocate": self.fallocate,
            "nowait": self.nowait,
            "uuid": info.uuid,
        });
        if self.block_size != 0 {
            params["block_size"] = self.block_size.into();
        }
        ("bdev_aio_create", params)
    }
}

/// Creates and registers an aio bdev.
pub fn create(registry: &Registry, params: AioParams) -> Result<Arc<Registered>, Error> {
    file_bdev::create(registry, params)
}

/// Looks at the size of the file again, and tells who has the bdev open if it has changed.
pub fn rescan(registry: &Registry, name: &str) -> Result<(), Error> {
    file_bdev::rescan(registry, NAME, name)
}
