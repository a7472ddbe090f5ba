//! A disk as the loop drives it, whatever its kind: virtio-blk or NVMe, each by its mock driver.

use anyhow::{Context as _, bail, ensure};
use vfu::{
    mock::{
        blk::{BlkDriver, Io},
        client::ClientError,
        nvme::disk::NvmeDisk,
        ring::{DriverRing, RingFault},
        transport::Kicks,
    },
    virtio::spec::blk::{feature, kind, status},
};

use super::args::Plan;

/// A disk with its queues. A slot names a request in flight, and its data.
pub(crate) trait Drive {
    /// Queues.
    fn queues(&self) -> usize;
    /// The bound of a queue's slots.
    fn slots(&self, queue: usize) -> u16;
    /// The slot that the next request takes; none if there is no room.
    fn next_slot(&self, queue: usize) -> Option<u16>;
    /// Fills a slot's data.
    fn write_data(&self, queue: usize, slot: u16, from: &[u8]);
    /// Copies a slot's data out.
    fn read_data(&self, queue: usize, slot: u16, to: &mut [u8]);
    /// Adds a request, which the device does not see yet. False if there is no room.
    fn submit(&mut self, queue: usize, write: bool, sector: u64, len: u32) -> bool;
    /// Has the processor fetch what [`Self::poll`] looks at first.
    fn prefetch(&self, queue: usize);
    /// A finished request: its slot, and whether it succeeded.
    fn poll(&mut self, queue: usize) -> Result<Option<(u16, bool)>, RingFault>;
    /// Shows the device what was added. How many messages that took.
    fn publish(&mut self, queue: usize) -> Result<u64, ClientError>;
    /// Bytes of the disk, and of its blocks. What the plan asks of it is checked.
    fn check(&self, plan: &Plan) -> anyhow::Result<(u64, u64)>;
}

/// A virtio-blk disk.
pub(crate) struct Virtio<R> {
    pub(crate) driver: BlkDriver<R>,
    kicks: Kicks,
}

impl<R: DriverRing> Virtio<R> {
    pub(crate) fn new(driver: BlkDriver<R>, kicks: Kicks) -> Self {
        Self { driver, kicks }
    }
}

impl<R: DriverRing> Drive for Virtio<R> {
    fn queues(&self) -> usize {
        self.driver.queues.len()
    }

    fn slots(&self, queue: usize) -> u16 {
        self.driver.queues[queue].size()
    }

    #[inline]
    fn next_slot(&self, queue: usize) -> Option<u16> {
        self.driver.queues[queue].next_slot()
    }

    #[inline]
    fn write_data(&self, queue: usize, slot: u16, from: &[u8]) {
        self.driver.queues[queue].write_data(slot, from);
    }

    #[inline]
    fn read_data(&self, queue: usize, slot: u16, to: &mut [u8]) {
        self.driver.queues[queue].read_data(slot, to);
    }

    #[inline]
    fn submit(&mut self, queue: usize, write: bool, sector: u64, len: u32) -> bool {
        let kind = if write { kind::OUT } else { kind::IN };
        self.driver.queues[queue].submit(Io { kind, sector, len }).is_some()
    }

    #[inline]
    fn prefetch(&self, queue: usize) {
        self.driver.queues[queue].prefetch();
    }

    #[inline]
    fn poll(&mut self, queue: usize) -> Result<Option<(u16, bool)>, RingFault> {
        let done = self.driver.queues[queue].poll()?;
        Ok(done.map(|done| (done.slot, done.status == status::OK)))
    }

    #[inline]
    fn publish(&mut self, queue: usize) -> Result<u64, ClientError> {
        let driver = &mut self.driver;
        if self.kicks == Kicks::Never {
            driver.queues[queue].publish_quietly();
            return Ok(0);
        }
        if !driver.queues[queue].publish() {
            return Ok(0);
        }
        driver.transport.kick(u16::try_from(queue).unwrap_or(0))?;
        Ok(1)
    }

    fn check(&self, plan: &Plan) -> anyhow::Result<(u64, u64)> {
        for queue in &self.driver.queues {
            let (size, capacity) = (queue.size(), queue.capacity());
            ensure!(
                plan.depth <= capacity,
                "--depth: the disk's rings of {size} entries have room for {capacity} requests"
            );
        }
        let features = self.driver.features();
        if features & feature::RO != 0 && plan.read_percent < 100 {
            bail!("the disk is read-only");
        }
        self.driver.memory.populate().context("guest memory")?;
        let has_size = features & feature::BLK_SIZE != 0;
        let unit = if has_size { self.driver.config().blk_size.max(1) } else { 1 };
        Ok((self.driver.size_bytes(), unit.into()))
    }
}

/// An NVMe disk.
impl Drive for NvmeDisk {
    fn queues(&self) -> usize {
        self.nvme.io.len()
    }

    fn slots(&self, queue: usize) -> u16 {
        self.queue(queue).size()
    }

    #[inline]
    fn next_slot(&self, queue: usize) -> Option<u16> {
        self.queue(queue).next_cid()
    }

    #[inline]
    fn write_data(&self, queue: usize, slot: u16, from: &[u8]) {
        NvmeDisk::write_data(self, queue, slot, from);
    }

    #[inline]
    fn read_data(&self, queue: usize, slot: u16, to: &mut [u8]) {
        NvmeDisk::read_data(self, queue, slot, to);
    }

    #[inline]
    fn submit(&mut self, queue: usize, write: bool, sector: u64, len: u32) -> bool {
        NvmeDisk::submit(self, queue, write, sector, len).is_some()
    }

    #[inline]
    fn prefetch(&self, queue: usize) {
        NvmeDisk::prefetch(self, queue);
    }

    #[inline]
    fn poll(&mut self, queue: usize) -> Result<Option<(u16, bool)>, RingFault> {
        Ok(NvmeDisk::poll(self, queue))
    }

    #[inline]
    fn publish(&mut self, queue: usize) -> Result<u64, ClientError> {
        NvmeDisk::publish(self, queue)
    }

    fn check(&self, _plan: &Plan) -> anyhow::Result<(u64, u64)> {
        self.nvme.memory.populate().context("guest memory")?;
        let (size, block) = self.size_bytes();
        Ok((size, block.into()))
    }
}
