//! `null`: takes every write and gives nothing back. For measuring everything but the medium.
//!
//! A read leaves the buffer as it is, as SPDK's null bdev does. No flush and no unmap either: there is
//! nothing to flush and nothing to give back.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::ready::ReadyQueue;
use crate::{
    Bdev, BdevInfo, Channel, Completion, Error, OpKind, OpenError, Registered, Registry, Rejected, Request,
    Status,
};

const NAME: &str = "null";
const PRODUCT_NAME: &str = "Null disk";
const MIB: u64 = 1 << 20;

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_null_create`.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct NullParams {
    /// Name of the new bdev.
    pub name: String,
    /// Logical block in bytes.
    pub block_size: u32,
    /// Size in blocks.
    pub num_blocks: u64,
    /// UUID; random if absent, refused here if it is none.
    #[serde(default)]
    pub uuid: Option<String>,
    /// Physical block in bytes; the logical one if absent.
    #[serde(default)]
    pub physical_block_size: Option<u32>,
    /// Metadata per block; only 0 is supported.
    #[serde(default)]
    pub md_size: u32,
    /// Protection information; only 0 is supported.
    #[serde(default)]
    pub dif_type: i32,
    /// Only looked at with protection information.
    #[serde(default)]
    pub dif_pi_format: u32,
    /// Only looked at with protection information.
    #[serde(default)]
    pub dif_is_head_of_md: bool,
    /// Hint, in blocks.
    #[serde(default)]
    pub preferred_write_granularity: u32,
    /// Hint, in blocks.
    #[serde(default)]
    pub preferred_write_alignment: u32,
    /// Hint, in blocks.
    #[serde(default)]
    pub optimal_write_size: u32,
    /// Hint, in blocks.
    #[serde(default)]
    pub preferred_unmap_granularity: u32,
    /// Hint, in blocks.
    #[serde(default)]
    pub preferred_unmap_alignment: u32,
}

impl NullParams {
    /// The checks SPDK makes, in its order and with its texts.
    fn check(&self) -> Result<Option<Uuid>, Error> {
        let invalid = Error::Invalid;
        if !matches!(self.md_size, 0 | 8 | 16 | 32 | 64 | 128) {
            return Err(invalid(format!("metadata size {} is not supported", self.md_size)));
        }
        if self.block_size == 0 || !self.block_size.is_multiple_of(512) {
            return Err(invalid(format!("Data block size {} is not a multiple of 512", self.block_size)));
        }
        let physical = self.physical_block_size.unwrap_or(self.block_size);
        if !physical.is_multiple_of(512) || !(physical == 0 || physical.is_power_of_two()) {
            return Err(invalid(format!("Physical block size {physical} is not a multiple of 512")));
        }
        if self.num_blocks == 0 {
            return Err(invalid("Disk num_blocks must be greater than 0".to_owned()));
        }
        let uuid = match self.uuid.as_deref().map(Uuid::try_parse) {
            None => None,
            Some(Ok(uuid)) => Some(uuid).filter(|u| !u.is_nil()),
            Some(Err(_)) => return Err(invalid("Failed to parse bdev UUID".to_owned())),
        };
        if !(0..=3).contains(&self.dif_type) {
            return Err(invalid("Invalid protection information type".to_owned()));
        }
        if self.dif_type != 0 && self.md_size == 0 {
            return Err(invalid("Interleaved metadata size should be set for DIF".to_owned()));
        }
        if self.md_size != 0 {
            return Err(Error::Unsupported("Metadata is not supported".to_owned()));
        }
        Ok(uuid)
    }
}

/// A null bdev.
#[derive(Debug)]
pub struct Null {
    info: Arc<BdevInfo>,
}

impl Null {
    /// Builds one; register it to have it.
    pub fn new(params: NullParams) -> Result<Null, Error> {
        let uuid = params.check()?;
        let mut info = BdevInfo::new(NAME, PRODUCT_NAME, params.name, params.block_size, params.num_blocks);
        info.uuid = uuid.unwrap_or(info.uuid);
        info.physical_block_size =
            params.physical_block_size.filter(|&b| b != 0).unwrap_or(params.block_size);
        info.preferred_write_alignment = params.preferred_write_alignment;
        info.preferred_write_granularity = params.preferred_write_granularity;
        info.optimal_write_size = params.optimal_write_size;
        info.preferred_unmap_alignment = params.preferred_unmap_alignment;
        info.preferred_unmap_granularity = params.preferred_unmap_granularity;
        Ok(Null { info: Arc::new(info) })
    }
}

impl Bdev for Null {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        matches!(kind, OpKind::Read | OpKind::Write | OpKind::WriteZeroes)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(NullChannel { ready: ReadyQueue::new(depth) }))
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let i = &self.info;
        let params = json!({
            "name": i.name,
            "num_blocks": i.num_blocks(),
            "block_size": i.block_size,
            "physical_block_size": i.physical_block_size,
            "uuid": i.uuid,
            "preferred_write_granularity": i.preferred_write_granularity,
            "preferred_write_alignment": i.preferred_write_alignment,
            "optimal_write_size": i.optimal_write_size,
            "preferred_unmap_granularity": i.preferred_unmap_granularity,
            "preferred_unmap_alignment": i.preferred_unmap_alignment,
        });
        Some(("bdev_null_create", params))
    }

    fn resize(&self, num_blocks: u64) -> Result<(), Error> {
        // Nothing to prepare. SPDK lets a null bdev grow only.
        if num_blocks < self.info.num_blocks() {
            return Err(Error::Invalid("a null bdev can only grow".to_owned()));
        }
        Ok(())
    }
}

struct NullChannel {
    ready: ReadyQueue,
}

impl Channel for NullChannel {
    #[inline]
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        self.ready.push(Completion { token: req.token, status: Status::Ok })
    }

    fn kick(&mut self) {}

    #[inline]
    fn reap(&mut self, done: &mut [Completion]) -> usize {
        self.ready.pop_into(done)
    }

    fn in_flight(&self) -> usize {
        self.ready.len()
    }
}

/// Creates and registers a null bdev.
pub fn create(registry: &Registry, params: NullParams) -> Result<Arc<Registered>, Error> {
    registry.register(Arc::new(Null::new(params)?))
}

/// Grows a null bdev to `new_size_mib` MiB.
pub fn resize(registry: &Registry, name: &str, new_size_mib: u64) -> Result<(), Error> {
    let bdev = registry.get(name)?;
    let info = bdev.info();
    // Compared in whole MiB, as SPDK does: a bdev of 1.5 MiB may be "resized" to 1.
    let is_shrink = new_size_mib < info.size_bytes() / MIB;
    let bytes = new_size_mib.checked_mul(MIB).filter(|_| info.type_name == NAME && !is_shrink);
    let bytes = bytes.ok_or_else(|| Error::Invalid(format!("{new_size_mib} MiB is no new size")))?;
    registry.resize(name, bytes / u64::from(info.block_size))
}
