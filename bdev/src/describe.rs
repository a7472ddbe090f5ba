//! What `bdev_get_bdevs` and `bdev_get_iostat` say of a bdev, field for field and in SPDK's order.
//!
//! The RPC glue serialises these straight to text, so that the order of keys survives. Reads only.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use crate::{Bdev, IoStats, OpKind, Registered, Status, TimeoutDescription};

/// One element of the result of `bdev_get_bdevs`.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the fields are the keys of the reply; BdevInfo explains them")]
pub struct Description {
    pub name: String,
    pub aliases: Vec<String>,
    pub product_name: &'static str,
    pub block_size: u32,
    pub num_blocks: u64,
    pub preferred_write_alignment: u32,
    pub preferred_write_granularity: u32,
    pub optimal_write_size: u32,
    pub preferred_unmap_alignment: u32,
    pub preferred_unmap_granularity: u32,
    pub uuid: Uuid,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub numa_id: Option<i32>,
    pub assigned_rate_limits: RateLimits,
    pub claimed: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub claim_type: Option<&'static str>,
    pub zoned: bool,
    pub supported_io_types: IoTypes,
    pub driver_specific: Value,
    /// Ours: there only where it was set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<TimeoutDescription>,
}

/// Limits of `bdev_set_qos_limit`; 0 is none.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[expect(missing_docs, reason = "the fields are the keys of the reply")]
pub struct RateLimits {
    pub rw_ios_per_sec: u64,
    pub rw_mbytes_per_sec: u64,
    pub r_mbytes_per_sec: u64,
    pub w_mbytes_per_sec: u64,
}

impl RateLimits {
    /// Whether there is one.
    pub fn any(&self) -> bool {
        self.rw_ios_per_sec | self.rw_mbytes_per_sec | self.r_mbytes_per_sec | self.w_mbytes_per_sec != 0
    }
}

/// The operations SPDK's clients ask about; those this crate has no word for are not supported by any type.
#[derive(Debug, Clone, Copy, Default, Serialize)]
#[expect(missing_docs, reason = "the fields are the keys of the reply")]
pub struct IoTypes {
    pub read: bool,
    pub write: bool,
    pub unmap: bool,
    pub flush: bool,
    pub reset: bool,
    pub nvme_admin: bool,
    pub nvme_io: bool,
    pub nvme_io_md: bool,
    pub write_zeroes: bool,
    pub zcopy: bool,
    pub get_zone_info: bool,
    pub zone_management: bool,
    pub zone_append: bool,
    pub compare: bool,
    pub compare_and_write: bool,
    pub abort: bool,
    pub seek_hole: bool,
    pub seek_data: bool,
    pub copy: bool,
    pub nvme_iov_md: bool,
    pub nvme_nssr: bool,
    pub write_uncorrectable: bool,
}

impl IoTypes {
    fn of(bdev: &dyn Bdev) -> IoTypes {
        IoTypes {
            read: bdev.supports(OpKind::Read),
            write: bdev.supports(OpKind::Write),
            unmap: bdev.supports(OpKind::Unmap),
            flush: bdev.supports(OpKind::Flush),
            write_zeroes: bdev.supports(OpKind::WriteZeroes),
            ..IoTypes::default()
        }
    }
}

/// The counters of a bdev or channel in the words of `bdev_get_iostat`; the caller puts the name or thread id
/// before them.
///
/// What SPDK does not count (flushes, write zeroes) has no key. Latencies are in ticks.
#[derive(Debug, Clone, Serialize)]
#[expect(missing_docs, reason = "the fields are the keys of the reply; KindStats explains them")]
pub struct IoStatDescription {
    pub bytes_read: u64,
    pub num_read_ops: u64,
    pub bytes_written: u64,
    pub num_write_ops: u64,
    pub bytes_unmapped: u64,
    pub num_unmap_ops: u64,
    pub bytes_copied: u64,
    pub num_copy_ops: u64,
    pub read_latency_ticks: u64,
    pub max_read_latency_ticks: u64,
    pub min_read_latency_ticks: u64,
    pub write_latency_ticks: u64,
    pub max_write_latency_ticks: u64,
    pub min_write_latency_ticks: u64,
    pub unmap_latency_ticks: u64,
    pub max_unmap_latency_ticks: u64,
    pub min_unmap_latency_ticks: u64,
    pub copy_latency_ticks: u64,
    pub max_copy_latency_ticks: u64,
    pub min_copy_latency_ticks: u64,
    pub io_error: BTreeMap<&'static str, u64>,
}

impl IoStats {
    /// These counters in the words of `bdev_get_iostat`. Copies are not counted, because no type does them.
    pub fn describe(&self) -> IoStatDescription {
        let (read, write, unmap) =
            (self.kind(OpKind::Read), self.kind(OpKind::Write), self.kind(OpKind::Unmap));
        let failed = Status::ALL.into_iter().filter(|s| *s != Status::Ok);
        IoStatDescription {
            bytes_read: read.bytes,
            num_read_ops: read.ops,
            bytes_written: write.bytes,
            num_write_ops: write.ops,
            bytes_unmapped: unmap.bytes,
            num_unmap_ops: unmap.ops,
            bytes_copied: 0,
            num_copy_ops: 0,
            read_latency_ticks: read.latency_ticks,
            max_read_latency_ticks: read.latency_ticks_max,
            min_read_latency_ticks: read.latency_ticks_min.unwrap_or(0),
            write_latency_ticks: write.latency_ticks,
            max_write_latency_ticks: write.latency_ticks_max,
            min_write_latency_ticks: write.latency_ticks_min.unwrap_or(0),
            unmap_latency_ticks: unmap.latency_ticks,
            max_unmap_latency_ticks: unmap.latency_ticks_max,
            min_unmap_latency_ticks: unmap.latency_ticks_min.unwrap_or(0),
            copy_latency_ticks: 0,
            max_copy_latency_ticks: 0,
            min_copy_latency_ticks: 0,
            io_error: failed.map(|s| (s.name(), self.errors(s))).filter(|(_, count)| *count > 0).collect(),
        }
    }
}

impl Registered {
    /// What `bdev_get_bdevs` says of this bdev.
    pub fn describe(&self) -> Description {
        let info = self.info();
        let claim = self.claim_kind();
        Description {
            name: info.name.clone(),
            aliases: self.aliases(),
            product_name: info.product_name,
            block_size: info.block_size,
            num_blocks: info.num_blocks(),
            preferred_write_alignment: info.preferred_write_alignment,
            preferred_write_granularity: info.preferred_write_granularity,
            optimal_write_size: info.optimal_write_size,
            preferred_unmap_alignment: info.preferred_unmap_alignment,
            preferred_unmap_granularity: info.preferred_unmap_granularity,
            uuid: info.uuid,
            numa_id: info.numa_id,
            assigned_rate_limits: self.qos(),
            claimed: claim.is_some(),
            claim_type: claim.map(|kind| kind.name()),
            zoned: false,
            supported_io_types: IoTypes::of(self.bdev().as_ref()),
            driver_specific: self.bdev().driver_specific(),
            timeout: Some(self.timeout()).filter(|timeout| timeout.timeout_us > 0),
        }
    }
}
