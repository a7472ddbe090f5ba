//! An NVMe namespace as a disk: queue pairs with a data buffer for each command, laid out once. For the load generator;
//! nothing here allocates once the disk is made.

use super::{Nvme, NvmeError, QueuePair};
use crate::{
    dma::Span,
    mock::client::ClientError,
    nvme::spec::{Command, PAGE, Status, nvm},
};

/// Entries of a PRP list that is one page long.
const LIST_LEN: u64 = PAGE / 8;

/// How the doorbells of a disk are rung.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rings {
    /// By stores where the server maps its doorbells, by shadows where it offers those, by messages else.
    Auto,
    /// By messages.
    Messages,
}

/// How a disk is wanted.
#[derive(Clone, Copy, Debug)]
pub struct NvmeOptions {
    /// I/O queue pairs.
    pub queues: u16,
    /// Entries of each queue.
    pub queue_size: u16,
    /// Its doorbells.
    pub rings: Rings,
    /// Longest data of a command.
    pub max_io: u32,
}

/// Data of one queue's commands.
#[derive(Debug)]
struct Buffers {
    data: Span,
    /// For each identifier: the PRP entries of a command of full length.
    prps: Box<[[u64; 2]]>,
    stride: usize,
}

/// The first namespace of a controller.
pub struct NvmeDisk {
    /// The controller.
    pub nvme: Nvme,
    buffers: Vec<Buffers>,
    blocks: u64,
    /// Sectors of 512 bytes of a block, as a power of two.
    sector_shift: u32,
}

const NSID: u32 = 1;

impl NvmeDisk {
    /// Brings a controller up that was just connected to.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn new(mut nvme: Nvme, options: NvmeOptions) -> Result<Self, NvmeError> {
        let is_mapped = options.rings == Rings::Auto && nvme.map_doorbells().is_ok();
        nvme.enable()?;
        let (blocks, block_size) = nvme.namespace_size(NSID)?;
        nvme.create_polled_queues(options.queues, options.queue_size)?;
        if options.rings == Rings::Auto && !is_mapped {
            match nvme.use_shadow_doorbells() {
                Ok(()) | Err(NvmeError::Failed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        let buffers =
            (0..options.queues).map(|_| Buffers::new(&mut nvme, &options)).collect::<Result<_, _>>()?;
        Ok(Self { nvme, buffers, blocks, sector_shift: block_size.ilog2().saturating_sub(9) })
    }

    /// A queue pair.
    #[must_use]
    pub fn queue(&self, queue: usize) -> &QueuePair {
        &self.nvme.io[queue]
    }

    /// Bytes of the disk, and of a block.
    #[must_use]
    pub fn size_bytes(&self) -> (u64, u32) {
        (self.blocks << (9 + self.sector_shift), 512 << self.sector_shift)
    }

    /// Fills a command's data, from its start.
    #[inline]
    pub fn write_data(&self, queue: usize, cid: u16, from: &[u8]) {
        let Buffers { data, stride, .. } = &self.buffers[queue];
        data.slice().copy_from(usize::from(cid) * stride, from);
    }

    /// Copies a command's data out, from its start.
    #[inline]
    pub fn read_data(&self, queue: usize, cid: u16, to: &mut [u8]) {
        let Buffers { data, stride, .. } = &self.buffers[queue];
        data.slice().copy_to(usize::from(cid) * stride, to);
    }

    /// Adds a read or a write over the next identifier's own memory. Not seen by the controller before [`Self::publish`].
    #[inline]
    pub fn submit(&mut self, queue: usize, write: bool, sector: u64, len: u32) -> Option<u16> {
        let pair = &mut self.nvme.io[queue];
        let cid = pair.next_cid()?;
        let lba = sector >> self.sector_shift;
        #[expect(clippy::cast_possible_truncation, reason = "the halves of an LBA")]
        let (cdw10, cdw11) = (lba as u32, (lba >> 32) as u32);
        pair.push(Command {
            opcode: if write { nvm::WRITE } else { nvm::READ },
            nsid: NSID,
            dptr: self.buffers[queue].prps[usize::from(cid)],
            cdw10,
            cdw11,
            cdw12: (len >> (9 + self.sector_shift)).saturating_sub(1),
            ..Command::default()
        })
    }

    /// Has the processor fetch what [`Self::poll`] looks at first.
    #[inline]
    pub fn prefetch(&self, queue: usize) {
        self.nvme.io[queue].prefetch();
    }

    /// Takes a completion: its identifier, and whether the command succeeded.
    #[inline]
    pub fn poll(&mut self, queue: usize) -> Option<(u16, bool)> {
        let done = self.nvme.io[queue].take()?;
        Some((done.cid, super::status_of(&done) == Status::SUCCESS))
    }

    /// Tells the controller what was submitted and polled. How many messages that took.
    ///
    /// # Errors
    /// See [`ClientError`].
    #[inline]
    pub fn publish(&mut self, queue: usize) -> Result<u64, ClientError> {
        let head = self.nvme.ring_head(queue)?;
        Ok(u64::from(self.nvme.ring_tail(queue)?) + u64::from(head))
    }
}

impl Buffers {
    fn new(nvme: &mut Nvme, options: &NvmeOptions) -> Result<Self, NvmeError> {
        let (page, slots) = (usize::try_from(PAGE).unwrap_or(1), usize::from(options.queue_size));
        let stride = (options.max_io as usize).next_multiple_of(page);
        let at = nvme.memory.allocate(stride * slots, page)?;
        let data = nvme.memory.span(at, stride * slots)?;
        let pages = stride as u64 / PAGE;
        let lists = if pages > 2 { nvme.memory.allocate(page * slots, page)? } else { 0 };
        let mut prps = Vec::with_capacity(slots);
        for slot in 0..slots as u64 {
            let first = at + slot * stride as u64;
            let list = lists + slot * PAGE;
            if pages > 2 {
                for nth in 1..pages.min(LIST_LEN + 1) {
                    let entry = (first + nth * PAGE).to_le_bytes();
                    nvme.memory.write(list + (nth - 1) * 8, &entry)?;
                }
            }
            prps.push([first, if pages > 2 { list } else { first + PAGE * (pages - 1) }]);
        }
        Ok(Self { data, prps: prps.into_boxed_slice(), stride })
    }
}
