//! `malloc`: a disk in memory. Its contents end with it.
//!
//! Reads and writes are copies. Those of one vector wait for the kick and are then made one after the other, each
//! while the processor fetches what the next one needs: a random block is never in its cache, and waiting for the
//! memory is most of the work. What would hold the reactor for long (a guest may ask for gigabytes in one request) is
//! done in steps, one per reap. Completions wait in a ring for the next reap.

use std::path::Path;
use std::sync::{Arc, LazyLock};

use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use super::BdevType;
use crate::arena::Memory;
use crate::ready::ReadyQueue;
use crate::{
    Bdev, BdevInfo, Channel, Completion, Error, IoVec, MAX_SEGMENTS, OpKind, OpenError, Registered, Registry,
    Rejected, Request, Status, Token,
};

const NAME: &str = "malloc";
const PRODUCT_NAME: &str = "Malloc disk";

/// Longest request that is done within submit.
const INLINE_BYTES: usize = 256 << 10;
/// Longest step of a longer one, and what all the others of a pass may be together, give or take the last: about 0.1 ms.
const STEP_BYTES: usize = 1 << 20;
const _: () = assert!(INLINE_BYTES <= STEP_BYTES);
/// How copies that wait are fetched, so that their memory comes while others are made.
#[derive(Debug, Clone, Copy)]
struct Fetch {
    /// How much of each.
    bytes: usize,
    /// How many copies before its own turn.
    ahead: usize,
}

impl Fetch {
    /// All of a block; AMD's processors keep enough lines on their way for it.
    const WHOLE: Fetch = Fetch { bytes: 4096, ahead: 2 };
    /// Its first lines. Intel's processors foresee the rest by themselves, and copies wait behind a fetch of all of it (measured:
    /// docs/performance.md).
    const FIRST_LINES: Fetch = Fetch { bytes: 512, ahead: 4 };

    /// What this machine's processor does best with.
    fn here() -> Fetch {
        static HERE: LazyLock<Fetch> = LazyLock::new(|| {
            let is_intel =
                std::fs::read_to_string("/proc/cpuinfo").is_ok_and(|it| it.contains("GenuineIntel"));
            if is_intel { Fetch::FIRST_LINES } else { Fetch::WHOLE }
        });
        *HERE
    }
}

pub(super) const TYPE: BdevType = BdevType { name: NAME, product_name: PRODUCT_NAME };

/// The params of `bdev_malloc_create`.
#[derive(Debug, Clone, Deserialize)]
pub struct MallocParams {
    /// Name of the new bdev; `Malloc<N>` if absent.
    #[serde(default)]
    pub name: Option<String>,
    /// Logical block in bytes.
    pub block_size: u32,
    /// Size in blocks.
    pub num_blocks: u64,
    /// UUID; random if absent or nil.
    #[serde(default)]
    pub uuid: Option<Uuid>,
    /// Blocks that requests should not cross a multiple of; memory has no boundary, so it is only reported.
    #[serde(default)]
    pub optimal_io_boundary: u32,
    /// Metadata per block; only 0 is supported.
    #[serde(default)]
    pub md_size: u32,
    /// Only looked at with metadata.
    #[serde(default)]
    pub md_interleave: bool,
    /// Protection information; only 0 is supported.
    #[serde(default)]
    pub dif_type: i32,
    /// Only looked at with protection information.
    #[serde(default)]
    pub dif_is_head_of_md: bool,
    /// Physical block in bytes; the logical one if 0.
    #[serde(default)]
    pub physical_block_size: u32,
    /// Only looked at with protection information.
    #[serde(default)]
    pub dif_pi_format: u32,
    /// NUMA node of the memory; -1 for any.
    #[serde(default = "any_node")]
    pub numa_id: i32,
}

/// SPDK_ENV_NUMA_ID_ANY.
const fn any_node() -> i32 {
    -1
}

impl MallocParams {
    /// A disk of `num_blocks` blocks of `block_size` bytes, everything else as by default.
    pub const fn new(block_size: u32, num_blocks: u64) -> MallocParams {
        MallocParams {
            name: None,
            block_size,
            num_blocks,
            uuid: None,
            optimal_io_boundary: 0,
            md_size: 0,
            md_interleave: false,
            dif_type: 0,
            dif_is_head_of_md: false,
            physical_block_size: 0,
            dif_pi_format: 0,
            numa_id: any_node(),
        }
    }

    /// The checks SPDK makes, in its order; it tells all of them as EINVAL and the reason in the log.
    fn check(&self) -> Result<usize, Error> {
        let invalid = |text: String| Err(Error::Invalid(text));
        if self.num_blocks == 0 {
            return invalid("Disk num_blocks must be greater than 0".to_owned());
        }
        if self.block_size == 0 || !self.block_size.is_multiple_of(512) {
            return invalid(format!("Data block size {} must be 512 bytes aligned", self.block_size));
        }
        let physical = self.physical_block_size;
        if !physical.is_multiple_of(512) || !(physical == 0 || physical.is_power_of_two()) {
            return invalid(format!("Physical block size {physical} must be 512 bytes aligned"));
        }
        if self.numa_id != any_node() && !node_exists(self.numa_id) {
            return invalid(format!("NUMA node ID {} not present on the system", self.numa_id));
        }
        if !matches!(self.md_size, 0 | 8 | 16 | 32 | 64 | 128) {
            return invalid(format!("metadata size {} is not supported", self.md_size));
        }
        if !(0..=3).contains(&self.dif_type) {
            return invalid(format!("DIF type {} is invalid", self.dif_type));
        }
        if self.dif_type != 0 && self.md_size == 0 {
            return invalid("Metadata size should not be zero if DIF is enabled".to_owned());
        }
        if self.md_size != 0 {
            return Err(Error::Unsupported("metadata is not supported".to_owned()));
        }
        if self.numa_id != any_node() && node_exists(1) {
            return Err(Error::Unsupported("memory of a chosen NUMA node is not supported".to_owned()));
        }
        let len_bytes = self.num_blocks.saturating_mul(u64::from(self.block_size));
        usize::try_from(len_bytes).map_err(|_too_long| Error::NoMemory { len_bytes })
    }
}

/// Whether the machine has this NUMA node. One without NUMA has node 0, as DPDK sees it.
fn node_exists(id: i32) -> bool {
    id == 0 || (id > 0 && Path::new(&format!("/sys/devices/system/node/node{id}")).exists())
}

/// A bdev in memory.
#[derive(Debug)]
pub struct Malloc {
    info: Arc<BdevInfo>,
    memory: Arc<Memory>,
    fetch: Fetch,
}

impl Malloc {
    /// Builds one under this name and backs all of it with memory, which may take a while; register it to
    /// have it.
    pub fn new(name: String, params: &MallocParams) -> Result<Malloc, Error> {
        let memory = Memory::zeroed(params.check()?)?;
        let (len_bytes, backing) = (memory.len_bytes(), memory.backing());
        tracing::info!(bdev = %name, len_bytes, %backing, "malloc memory");
        let mut info = BdevInfo::new(NAME, PRODUCT_NAME, name, params.block_size, params.num_blocks);
        info.uuid = params.uuid.filter(|u| !u.is_nil()).unwrap_or(info.uuid);
        if params.physical_block_size != 0 {
            info.physical_block_size = params.physical_block_size;
        }
        info.optimal_io_boundary = params.optimal_io_boundary;
        info.numa_id = (params.numa_id != any_node()).then_some(params.numa_id);
        info.write_cache = true;
        info.unmap_reads_zero = true;
        info.zeroes_overwrite = true;
        Ok(Malloc { info: Arc::new(info), memory: Arc::new(memory), fetch: Fetch::here() })
    }
}

impl Bdev for Malloc {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        match kind {
            OpKind::Read | OpKind::Write | OpKind::Flush | OpKind::Unmap | OpKind::WriteZeroes => true,
        }
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        Ok(Box::new(MallocChannel {
            fetch: self.fetch,
            memory: self.memory.clone(),
            block_size: self.info.block_size as usize,
            ready: ReadyQueue::new(depth),
            waiting: Vec::with_capacity(usize::from(depth)),
            taken_bytes: 0,
            long: None,
            long_iov: Vec::with_capacity(MAX_SEGMENTS as usize),
        }))
    }

    fn config(&self) -> Option<(&'static str, Value)> {
        let i = &self.info;
        let mut params = json!({
            "name": i.name,
            "num_blocks": i.num_blocks(),
            "block_size": i.block_size,
            "physical_block_size": i.physical_block_size,
            "uuid": i.uuid,
            "optimal_io_boundary": i.optimal_io_boundary,
        });
        if let Some(node) = i.numa_id {
            params["numa_id"] = node.into();
        }
        Some(("bdev_malloc_create", params))
    }
}

#[derive(Debug, Clone, Copy)]
enum Direction {
    Read,
    Write,
    Zero,
}

/// How far one request has got.
#[derive(Debug)]
struct Transfer {
    token: Token,
    direction: Direction,
    /// Next byte of the disk.
    offset: usize,
    left: usize,
    /// Next vector, and next byte in it.
    segment: usize,
    segment_offset: usize,
}

impl Transfer {
    /// Moves up to `budget` bytes. The status once all are moved.
    #[inline]
    fn step(&mut self, memory: &Memory, iov: &[IoVec], mut budget: usize) -> Option<Status> {
        while self.left > 0 && budget > 0 {
            let wanted = self.left.min(budget);
            let moved = match self.direction {
                Direction::Zero => memory.zero(self.offset, wanted).then_some(wanted),
                Direction::Read => self
                    .next_piece(iov, wanted)
                    .and_then(|piece| memory.copy_to(self.offset, piece).then_some(piece.len())),
                Direction::Write => self
                    .next_piece(iov, wanted)
                    .and_then(|piece| memory.copy_from(self.offset, piece).then_some(piece.len())),
            };
            // None would be a request that the wrapper should not have let through.
            let Some(moved) = moved else { return Some(Status::IoError) };
            self.offset += moved;
            self.left -= moved;
            budget -= moved;
        }
        (self.left == 0).then_some(Status::Ok)
    }

    /// The next stretch of the vectors that lies in one vector and is no longer than `wanted`.
    #[inline]
    fn next_piece(&mut self, iov: &[IoVec], wanted: usize) -> Option<IoVec> {
        loop {
            let vector = iov.get(self.segment)?;
            let rest = vector.len() - self.segment_offset;
            if rest > wanted {
                let piece = vector.slice(self.segment_offset, wanted);
                self.segment_offset += wanted;
                return piece;
            }
            let piece = vector.slice(self.segment_offset, rest);
            self.segment += 1;
            self.segment_offset = 0;
            if rest > 0 {
                return piece;
            }
        }
    }
}

/// A copy of one vector that is made at the next kick.
struct Waiting {
    token: Token,
    is_read: bool,
    offset: usize,
    vector: IoVec,
}

impl Waiting {
    #[inline]
    fn prefetch(&self, memory: &Memory, bytes: usize) {
        if self.is_read {
            memory.prefetch(self.offset, self.vector.len().min(bytes));
        } else {
            self.vector.prefetch(bytes);
        }
    }

    #[inline]
    fn copy(&self, memory: &Memory) -> Completion {
        let copied = if self.is_read {
            memory.copy_to(self.offset, self.vector)
        } else {
            memory.copy_from(self.offset, self.vector)
        };
        // False would be a request that the wrapper should not have let through.
        Completion { token: self.token, status: if copied { Status::Ok } else { Status::IoError } }
    }
}

struct MallocChannel {
    memory: Arc<Memory>,
    fetch: Fetch,
    block_size: usize,
    ready: ReadyQueue,
    /// Copies to be made; together with those that are ready never more than the depth.
    waiting: Vec<Waiting>,
    /// Bytes of what was taken since the last reap.
    taken_bytes: usize,
    /// The one request that is done in steps; a second one has to wait.
    long: Option<Transfer>,
    /// Its vectors; never more than it has room for.
    long_iov: Vec<IoVec>,
}

impl MallocChannel {
    /// Makes the copies that wait.
    #[inline]
    fn copy_all(&mut self) {
        let (memory, waiting) = (&*self.memory, &self.waiting);
        let Fetch { bytes, ahead } = self.fetch;
        waiting.iter().take(ahead).for_each(|copy| copy.prefetch(memory, bytes));
        for (nth, copy) in waiting.iter().enumerate() {
            if let Some(later) = waiting.get(nth + ahead) {
                later.prefetch(memory, bytes);
            }
            let pushed = self.ready.push(copy.copy(memory));
            debug_assert!(pushed.is_ok(), "submit has left room");
        }
        self.waiting.clear();
    }

    #[cold]
    fn start_long(&mut self, transfer: Transfer, iov: &[IoVec]) -> Result<(), Rejected> {
        if self.long.is_some() {
            return Err(Rejected::Full);
        }
        if iov.len() > self.long_iov.capacity() {
            return Err(Rejected::Failed(Status::Invalid));
        }
        self.long_iov.clear();
        self.long_iov.extend_from_slice(iov);
        self.long = Some(transfer);
        Ok(())
    }
}

impl Channel for MallocChannel {
    #[inline]
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let is_full = self.ready.len() + self.waiting.len() >= self.waiting.capacity();
        if is_full || self.taken_bytes >= STEP_BYTES {
            return Err(Rejected::Full);
        }
        let direction = match req.op.kind() {
            OpKind::Flush => return self.ready.push(Completion { token: req.token, status: Status::Ok }),
            OpKind::Read => Direction::Read,
            OpKind::Write => Direction::Write,
            OpKind::Unmap | OpKind::WriteZeroes => Direction::Zero,
        };
        if let &[vector] = req.iov
            && vector.len() <= INLINE_BYTES
        {
            let (token, is_read) = (req.token, matches!(direction, Direction::Read));
            self.taken_bytes += vector.len();
            self.waiting.push(Waiting { token, is_read, offset: req.lba as usize * self.block_size, vector });
            return Ok(());
        }
        // In range, so no overflow: the whole disk is mapped.
        let mut transfer = Transfer {
            token: req.token,
            direction,
            offset: req.lba as usize * self.block_size,
            left: req.blocks as usize * self.block_size,
            segment: 0,
            segment_offset: 0,
        };
        if transfer.left > INLINE_BYTES {
            return self.start_long(transfer, req.iov);
        }
        self.taken_bytes += transfer.left;
        // INLINE_BYTES are one step, so there is a status.
        let status = transfer.step(&self.memory, req.iov, INLINE_BYTES).unwrap_or(Status::IoError);
        self.ready.push(Completion { token: req.token, status })
    }

    #[inline]
    fn kick(&mut self) {
        self.copy_all();
    }

    #[inline]
    fn reap(&mut self, done: &mut [Completion]) -> usize {
        self.taken_bytes = 0;
        if !self.waiting.is_empty() {
            self.copy_all();
        }
        if let Some(long) = &mut self.long
            && !self.ready.is_full()
            && let Some(status) = long.step(&self.memory, &self.long_iov, STEP_BYTES)
            && self.ready.push(Completion { token: long.token, status }).is_ok()
        {
            self.long = None;
        }
        self.ready.pop_into(done)
    }

    fn in_flight(&self) -> usize {
        self.ready.len() + self.waiting.len() + usize::from(self.long.is_some())
    }
}

/// Creates and registers a malloc bdev. Backs all of it with memory, so it may take a while.
pub fn create(registry: &Registry, mut params: MallocParams) -> Result<Arc<Registered>, Error> {
    // Checked before a number is taken and memory is touched for a name that cannot be had.
    params.check()?;
    let name = params.name.take().unwrap_or_else(|| registry.auto_name("Malloc"));
    if registry.get(&name).is_ok() {
        return Err(Error::Exists { name });
    }
    registry.register(Arc::new(Malloc::new(name, &params)?))
}
