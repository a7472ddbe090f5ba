//! What a block device is: its description and the trait that every type implements.
//!
//! Types implement [`Bdev`]; the registry holds them; device models ask [`BdevInfo`] for the geometry they
//! show to the guest. Nothing here is on the I/O path but the block count.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;
use uuid::Uuid;

use crate::{Channel, Error, OpKind, OpenError};

/// A block device.
///
/// Shared between threads; everything that one consumer needs for itself is in the [`Channel`] it opens.
/// Dropping the last reference releases the backend; the registry sees to it that this happens on no reactor.
pub trait Bdev: Send + Sync {
    /// The description. Always the same one: the wrapper keeps a reference of its own.
    fn info(&self) -> &Arc<BdevInfo>;

    /// Current size in blocks.
    fn num_blocks(&self) -> u64 {
        self.info().num_blocks()
    }

    /// Whether requests of this kind are accepted. Constant for the life of the bdev.
    fn supports(&self, kind: OpKind) -> bool;

    /// A channel for up to `depth` requests in flight, `depth` being at least 1.
    ///
    /// Called on the thread that will use the channel, which may be a reactor: may allocate and make system
    /// calls, must not wait for anything.
    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError>;

    /// The `driver_specific` object of `bdev_get_bdevs`.
    fn driver_specific(&self) -> Value {
        Value::Object(serde_json::Map::new())
    }

    /// The entry that recreates this bdev, for `save_config`: method name and params.
    /// `None` for what is recreated by other means: parts of a stack, by its [`Virtual`](crate::stack::Virtual).
    fn config(&self) -> Option<(&'static str, Value)> {
        None
    }

    /// The size that the backend has now, in blocks, which may be another than the one published.
    fn measure(&self) -> Result<u64, Error> {
        Ok(self.num_blocks())
    }

    /// How worn the medium is. May be asked on a reactor: must not wait.
    fn lifetime(&self) -> Lifetime {
        Lifetime::default()
    }

    /// Prepares the backend for a new size. The registry has checked that nobody loses blocks in use,
    /// publishes the new count and tells who has the bdev open once this returns. Called with the bdev's
    /// control lock held: must not call the registry.
    fn resize(&self, num_blocks: u64) -> Result<(), Error> {
        let _ = num_blocks;
        Err(Error::Unsupported(format!("{} bdevs cannot be resized", self.info().type_name)))
    }
}

/// How worn a medium is, in the steps of JEDEC eMMC 5.0 that virtio-blk takes over (virtio 1.2, 5.2.6); zero where it is
/// not known, or cannot wear.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lifetime {
    /// Reserved blocks used: 1 normal, 2 eighty per cent, 3 ninety per cent.
    pub pre_eol: u16,
    /// Wear of blocks of type A, in tenths: 1 is up to ten per cent, 11 is beyond all.
    pub type_a: u16,
    /// The same of type B.
    pub type_b: u16,
}

/// The description of a bdev. Constant but for the number of blocks.
///
/// Fields and units are those of `bdev_get_bdevs`: sizes called `_size` are in bytes, hints are in blocks,
/// and a hint of 0 means none.
#[derive(Debug)]
pub struct BdevInfo {
    /// Unique name.
    pub name: String,
    /// Also an alias of the bdev, in lower case with hyphens.
    pub uuid: Uuid,
    /// Which entry of [`TYPES`](crate::TYPES) it is: "malloc".
    pub type_name: &'static str,
    /// What it is, for people: "Malloc disk".
    pub product_name: &'static str,
    /// Logical block in bytes; a multiple of 512.
    pub block_size: u32,
    /// Physical block in bytes, as advertised; at least `block_size`.
    pub physical_block_size: u32,
    /// Writes may rest in a volatile cache until a flush.
    pub write_cache: bool,
    /// Writes are refused.
    pub read_only: bool,
    /// Unmapped blocks read as zeroes (device models tell the guest, NVMe DLFEAT, SCSI LBPRZ).
    pub unmap_reads_zero: bool,
    /// Write-zeroes without unmap overwrites the medium in place, so that nothing can give the old content back (device
    /// models offer secure erase).
    pub zeroes_overwrite: bool,
    /// What the base of every vector must be a multiple of, in bytes; a power of two, 1 for none. Requests with other
    /// memory go through buffers.
    pub buf_align: u32,
    /// What the length of every vector must be a multiple of; a power of two, 0 for the same as `buf_align`. O_DIRECT
    /// asks for whole blocks of the device, of bases that lie anywhere (statx(2), stx_dio_offset_align).
    pub len_align: u32,
    /// Most vectors of one request.
    pub max_segments: u32,
    /// Most blocks of one read or write that the type takes; 0 for no limit. Longer ones are cut.
    pub max_io_blocks: u32,
    /// What reads and writes are cut at before the type sees them.
    pub boundary: Boundary,
    /// Requests should not cross a multiple of this; 0 for none. A hint: see `boundary` for what is kept to.
    pub optimal_io_boundary: u32,
    /// Start writes at a multiple of this.
    pub preferred_write_alignment: u32,
    /// Write multiples of this.
    pub preferred_write_granularity: u32,
    /// Best length of a write.
    pub optimal_write_size: u32,
    /// Start unmaps at a multiple of this.
    pub preferred_unmap_alignment: u32,
    /// Unmap multiples of this.
    pub preferred_unmap_granularity: u32,
    /// NUMA node of the memory, where known.
    pub numa_id: Option<i32>,
    pub(crate) num_blocks: AtomicU64,
}

/// What a read or write of a bdev never crosses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Boundary {
    /// Nothing.
    None,
    /// Multiples of `1 << shift` blocks.
    Every {
        /// As a power of two.
        shift: u32,
    },
    /// These blocks, ascending.
    At(Box<[u64]>),
}

/// Vectors of one request that every type can take; also the kernel's limit for readv and io_uring (IOV_MAX).
pub const MAX_SEGMENTS: u32 = 1024;

impl BdevInfo {
    /// A description with no hints, no limits and a random UUID, for types to fill in.
    pub fn new(
        type_name: &'static str,
        product_name: &'static str,
        name: String,
        block_size: u32,
        num_blocks: u64,
    ) -> BdevInfo {
        BdevInfo {
            name,
            uuid: Uuid::new_v4(),
            type_name,
            product_name,
            block_size,
            physical_block_size: block_size,
            write_cache: false,
            read_only: false,
            unmap_reads_zero: false,
            zeroes_overwrite: false,
            buf_align: 1,
            len_align: 0,
            max_segments: MAX_SEGMENTS,
            max_io_blocks: 0,
            boundary: Boundary::None,
            optimal_io_boundary: 0,
            preferred_write_alignment: 0,
            preferred_write_granularity: 0,
            optimal_write_size: 0,
            preferred_unmap_alignment: 0,
            preferred_unmap_granularity: 0,
            numa_id: None,
            num_blocks: AtomicU64::new(num_blocks),
        }
    }

    /// `len_align` as it counts.
    pub(crate) fn len_align(&self) -> u32 {
        if self.len_align == 0 { self.buf_align } else { self.len_align }
    }

    /// Current size in blocks.
    #[inline]
    pub fn num_blocks(&self) -> u64 {
        // Relaxed: a count on its own. A resize event tells when it has changed.
        self.num_blocks.load(Ordering::Relaxed)
    }

    /// Current size in bytes.
    pub fn size_bytes(&self) -> u64 {
        self.num_blocks().saturating_mul(u64::from(self.block_size))
    }
}
