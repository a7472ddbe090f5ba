//! `uring`: a file or block device, by io_uring.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use super::file_bdev::{self, FileParams};
use crate::file::Options;
use crate::{BdevInfo, Error, Registered, Registry};

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

impl FileParams for UringParams {
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
            read_only: false,
            fallocate: true,
            iopoll: self.iopoll,
            sqpoll: self.sqpoll,
        }
    }

    fn driver_specific(&self) -> Value {
        json!({ NAME: { "filename": self.filename } })
    }

    fn config(&self, info: &BdevInfo) -> (&'static str, Value) {
        let mut params = json!({
            "name": info.name,
            "filename": self.filename,
            "block_size": info.block_size,
            "uuid": info.uuid,
        });
        for (key, is_set) in [("iopoll", self.iopoll), ("sqpoll", self.sqpoll)] {
            if is_set {
                params[key] = true.into();
            }
        }
        ("bdev_uring_create", params)
    }
}

/// Creates and registers a uring bdev.
pub fn create(registry: &Registry, params: UringParams) -> Result<Arc<Registered>, Error> {
    file_bdev::create(registry, params)
}

/// Looks at the size of the file again, and tells who has the bdev open if it has changed.
pub fn rescan(registry: &Registry, name: &str) -> Result<(), Error> {
    file_bdev::rescan(registry, NAME, name)
}
