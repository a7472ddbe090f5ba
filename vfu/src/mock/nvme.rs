//! An NVMe driver over a vfio-user client: registers, the admin queue, I/O queues, one command at a time or many.
//!
//! Tests, fuzzers and the load generator are the callers. It keeps rings and doorbells as NVM Express Base 2.0c has them
//! and checks what a driver can check: phases, identifiers, submission queue heads. It recovers from nothing: what is
//! wrong is an error or, where the rules are broken, a panic.

pub mod disk;
pub mod queue;

use std::{
    path::Path,
    sync::atomic::{Ordering, fence},
    time::{Duration, Instant},
};

pub use queue::QueuePair;
use rustix::io::Errno;

use super::{
    client::{Client, ClientError},
    memory::Memory,
};
use crate::{
    dma::{Fault, Protection, Span, View, Windows},
    nvme::{
        pcie::shadow::must_ring,
        spec::{Command, Completion, Status, admin, cc, csts, identify::cns, nvm, reg},
    },
    wire::spec::region,
};

const PAGE: usize = 4096;
/// How long anything may take. Generous: a test machine may be loaded.
const PATIENCE: Duration = Duration::from_secs(30);
/// PCI command register: memory, bus master, INTx disabled.
const PCI_COMMAND: u64 = 0x04;
const PCI_ENABLE: u16 = 0x0406;
/// Flags of a queue that is created (Base, 5.5): PC, and IEN of a completion queue.
const CONTIGUOUS: u32 = 1;
const INTERRUPTS: u32 = 1 << 1;

/// Why a controller cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum NvmeError {
    /// The client's.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// No memory, or none to map.
    #[error("memory: {0}")]
    Memory(#[from] Errno),
    /// An address of ours is wrong.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// The controller does not get ready, or a command does not end.
    #[error("{0} takes too long")]
    Timeout(&'static str),
    /// A command failed that must not.
    #[error("command {opcode:#x} failed: {status:?}")]
    Failed {
        /// Its opcode.
        opcode: u8,
        /// Its status.
        status: Status,
    },
}

/// Where doorbells are.
#[derive(Debug, Default)]
struct Doorbells {
    /// Mapped: a store.
    page: Option<Span>,
    /// Shadows, and their event indexes.
    shadow: Option<(Span, Span)>,
}

/// A controller and its queues.
pub struct Nvme {
    /// The connection.
    pub client: Client,
    /// Guest memory.
    pub memory: Memory,
    admin: QueuePair,
    /// I/O queues, by identifier less one.
    pub io: Vec<QueuePair>,
    doorbells: Doorbells,
    /// A page for the data of admin commands.
    page: u64,
}

/// The status of a completion.
#[must_use]
pub fn status_of(completion: &Completion) -> Status {
    Status(completion.status >> 1)
}

impl Nvme {
    /// Connects, maps `memory_len` bytes of RAM, and lets the device reach them. Nothing is enabled yet.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn connect(path: &Path, memory_len: u64) -> Result<Self, NvmeError> {
        let mut client = Client::connect(path)?;
        let memory = Memory::new(memory_len)?;
        client.map_memory(&memory)?;
        Self::over(client, memory)
    }

    /// The same for a client that has its windows mapped already, shared or not.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn over(client: Client, memory: Memory) -> Result<Self, NvmeError> {
        Self::commanding(client, memory, PCI_ENABLE)
    }

    /// The same with another value for the PCI command register.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn commanding(mut client: Client, mut memory: Memory, command: u16) -> Result<Self, NvmeError> {
        client.region_write(region::CONFIG, PCI_COMMAND, &command.to_le_bytes())?;
        let admin = QueuePair::new(&mut memory, 0, 32)?;
        let page = memory.allocate(PAGE, PAGE)?;
        Ok(Self { client, memory, admin, io: Vec::new(), doorbells: Doorbells::default(), page })
    }

    /// The client, for messages of one's own.
    pub fn client(&mut self) -> &mut Client {
        &mut self.client
    }

    /// Rings doorbells by stores from now on, as a guest does that has them mapped.
    ///
    /// # Errors
    /// See [`NvmeError`]; `ENXIO` where the server maps none.
    pub fn map_doorbells(&mut self) -> Result<(), NvmeError> {
        self.doorbells.page = Some(self.doorbell_page()?);
        Ok(())
    }

    /// The page of doorbells, for stores of one's own.
    ///
    /// # Errors
    /// As of [`Self::map_doorbells`].
    pub fn doorbell_page(&mut self) -> Result<Span, NvmeError> {
        let detail = self.client.region_info(0)?;
        let (Some(fd), Some(area)) = (detail.fd, detail.areas.first()) else {
            return Err(Errno::NXIO.into());
        };
        let windows = Windows::default();
        let protection = Protection { read: true, write: true };
        windows
            .map(0, area.size, protection, Some((fd, detail.info.offset + area.offset)))
            .map_err(Errno::from)?;
        let len = usize::try_from(area.size).unwrap_or(0);
        Ok(View::new(&windows).span(0, len, true)?)
    }

    /// Reads a register of four bytes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn read32(&mut self, at: usize) -> Result<u32, ClientError> {
        let mut bytes = [0; 4];
        self.client.region_read(0, at as u64, &mut bytes)?;
        Ok(u32::from_le_bytes(bytes))
    }

    /// Writes a register of four bytes.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn write32(&mut self, at: usize, value: u32) -> Result<(), ClientError> {
        self.client.region_write(0, at as u64, &value.to_le_bytes())
    }

    /// Waits until CSTS has these bits under a mask.
    fn wait_status(&mut self, mask: u32, bits: u32) -> Result<(), NvmeError> {
        let deadline = Instant::now() + PATIENCE;
        while self.read32(reg::CSTS)? & mask != bits {
            if Instant::now() > deadline {
                return Err(NvmeError::Timeout("the controller's status"));
            }
        }
        Ok(())
    }

    /// Enables the controller with its admin queue.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn enable(&mut self) -> Result<(), NvmeError> {
        self.admin.clear();
        let last = u32::from(self.admin.size - 1);
        self.write32(reg::AQA, last << 16 | last)?;
        let (sq, cq) = self.admin.addresses;
        self.client.region_write(0, reg::ASQ as u64, &sq.to_le_bytes())?;
        self.client.region_write(0, reg::ACQ as u64, &cq.to_le_bytes())?;
        // Entries of 64 and 16 bytes.
        self.write32(reg::CC, 4 << 20 | 6 << 16 | cc::EN)?;
        self.wait_status(csts::RDY | csts::CFS, csts::RDY)
    }

    /// Disables the controller: every queue is gone.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn disable(&mut self) -> Result<(), NvmeError> {
        self.write32(reg::CC, 4 << 20 | 6 << 16)?;
        self.wait_status(csts::RDY, 0)?;
        self.io.clear();
        self.doorbells.shadow = None;
        Ok(())
    }

    /// Creates I/O queue pairs, each with a completion queue of its own that interrupts.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn create_queues(&mut self, count: u16, size: u16) -> Result<(), NvmeError> {
        self.create_pairs(count, size, CONTIGUOUS | INTERRUPTS)
    }

    /// The same without interrupts, for a driver that looks by itself.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn create_polled_queues(&mut self, count: u16, size: u16) -> Result<(), NvmeError> {
        self.create_pairs(count, size, CONTIGUOUS)
    }

    fn create_pairs(&mut self, count: u16, size: u16, cq_flags: u32) -> Result<(), NvmeError> {
        for _ in 0..count {
            let qid = u16::try_from(self.io.len() + 1).unwrap_or(u16::MAX);
            let pair = QueuePair::new(&mut self.memory, qid, size)?;
            let cdw10 = u32::from(size - 1) << 16 | u32::from(qid);
            let (sq, cq) = pair.addresses;
            let create = Command {
                opcode: admin::CREATE_CQ,
                dptr: [cq, 0],
                cdw10,
                cdw11: u32::from(qid) << 16 | cq_flags,
                ..Command::default()
            };
            self.admin_ok(create)?;
            let create = Command {
                opcode: admin::CREATE_SQ,
                dptr: [sq, 0],
                cdw10,
                cdw11: u32::from(qid) << 16 | CONTIGUOUS,
                ..Command::default()
            };
            self.admin_ok(create)?;
            self.io.push(pair);
        }
        Ok(())
    }

    /// Sets shadow doorbells up.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn use_shadow_doorbells(&mut self) -> Result<(), NvmeError> {
        let pages = [self.memory.allocate(PAGE, PAGE)?, self.memory.allocate(PAGE, PAGE)?];
        self.use_shadow_doorbells_at(pages)
    }

    /// The same with pages of one's own, whatever they hold: shadows, and their event indexes.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn use_shadow_doorbells_at(&mut self, [shadow, event]: [u64; 2]) -> Result<(), NvmeError> {
        let config = Command { opcode: admin::DOORBELL_BUFFER, dptr: [shadow, event], ..Command::default() };
        self.admin_ok(config)?;
        self.doorbells.shadow = Some((self.memory.span(shadow, PAGE)?, self.memory.span(event, PAGE)?));
        Ok(())
    }

    /// Stores a doorbell: in the shadow, in the page, or by a message. True if it was a message.
    #[inline]
    fn store_doorbell(&mut self, at: usize, old: u16, new: u16, admin: bool) -> Result<bool, ClientError> {
        if let Some((shadow, event)) = self.doorbells.shadow.as_ref().filter(|_| !admin) {
            shadow.slice().store_u32(at, new.into(), Ordering::Release);
            fence(Ordering::SeqCst);
            #[expect(clippy::cast_possible_truncation, reason = "indexes have 16 bits")]
            let event = event.slice().load_u32(at, Ordering::Acquire) as u16;
            if !must_ring(event, new, old) {
                return Ok(false);
            }
        }
        if let Some(page) = &self.doorbells.page {
            page.slice().store_u32(at, new.into(), Ordering::Release);
            return Ok(false);
        }
        self.client.region_post(0, reg::DOORBELLS + at as u64, &u32::from(new).to_le_bytes())?;
        Ok(true)
    }

    /// Rings an I/O queue's tail, if commands were pushed since the last time. True if that took a message.
    ///
    /// # Errors
    /// See [`ClientError`].
    #[inline]
    pub fn ring_tail(&mut self, queue: usize) -> Result<bool, ClientError> {
        let pair = &mut self.io[queue];
        let Some((old, new)) = pair.moved_tail() else { return Ok(false) };
        let at = usize::from(pair.qid) * 8;
        let message = self.store_doorbell(at, old, new, false)?;
        self.io[queue].rung += u64::from(message);
        Ok(message)
    }

    /// Tells an I/O queue's head, if completions were taken since the last time. True if that took a message.
    ///
    /// # Errors
    /// See [`ClientError`].
    #[inline]
    pub fn ring_head(&mut self, queue: usize) -> Result<bool, ClientError> {
        let pair = &mut self.io[queue];
        let Some((old, new)) = pair.moved_head() else { return Ok(false) };
        let at = usize::from(pair.qid) * 8 + 4;
        self.store_doorbell(at, old, new, false)
    }

    /// Pushes commands to an I/O queue and rings once; how many found room.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn submit(&mut self, queue: usize, commands: &[Command]) -> Result<Vec<u16>, NvmeError> {
        let pair = &mut self.io[queue];
        let cids: Vec<u16> = commands.iter().map_while(|&command| pair.push(command)).collect();
        self.ring_tail(queue)?;
        Ok(cids)
    }

    /// Takes what is complete in an I/O queue, and tells the controller.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn reap(&mut self, queue: usize) -> Result<Vec<Completion>, NvmeError> {
        let pair = &mut self.io[queue];
        let done: Vec<Completion> = std::iter::from_fn(|| pair.take()).collect();
        self.ring_head(queue)?;
        Ok(done)
    }

    /// Waits until an I/O queue has nothing in flight; what completed.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn drain(&mut self, queue: usize) -> Result<Vec<Completion>, NvmeError> {
        let deadline = Instant::now() + PATIENCE;
        let mut done = Vec::new();
        while self.io[queue].in_flight() > 0 {
            let more = self.reap(queue)?;
            if more.is_empty() {
                if Instant::now() > deadline {
                    return Err(NvmeError::Timeout("an I/O command"));
                }
                std::thread::yield_now();
            }
            done.extend(more);
        }
        Ok(done)
    }

    /// One I/O command on an otherwise empty queue, to its end.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn io(&mut self, queue: usize, command: Command) -> Result<Completion, NvmeError> {
        self.submit(queue, &[command])?;
        self.drain(queue)?.pop().ok_or(NvmeError::Timeout("an I/O command"))
    }

    /// Pushes an admin command; [`Self::reap_admin`] gives its end.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn submit_admin(&mut self, command: Command) -> Result<u16, NvmeError> {
        let cid = self.admin.push(command).ok_or(NvmeError::Timeout("room in the admin queue"))?;
        if let Some((old, tail)) = self.admin.moved_tail() {
            self.store_doorbell(0, old, tail, true)?;
        }
        Ok(cid)
    }

    /// Takes what is complete in the admin queue.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn reap_admin(&mut self) -> Result<Vec<Completion>, NvmeError> {
        let done: Vec<Completion> = std::iter::from_fn(|| self.admin.take()).collect();
        if let Some((old, head)) = self.admin.moved_head() {
            self.store_doorbell(4, old, head, true)?;
        }
        Ok(done)
    }

    /// Waits for the end of an admin command; others that end meanwhile are dropped.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn wait_admin(&mut self, cid: u16) -> Result<Completion, NvmeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(found) = self.reap_admin()?.into_iter().find(|done| done.cid == cid) {
                return Ok(found);
            }
            if Instant::now() > deadline {
                return Err(NvmeError::Timeout("an admin command"));
            }
            std::thread::yield_now();
        }
    }

    /// One admin command to its end.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn admin(&mut self, command: Command) -> Result<Completion, NvmeError> {
        let cid = self.submit_admin(command)?;
        self.wait_admin(cid)
    }

    /// One admin command that must succeed; dword 0.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn admin_ok(&mut self, command: Command) -> Result<u32, NvmeError> {
        let done = self.admin(command)?;
        match status_of(&done) {
            Status::SUCCESS => Ok(done.dw0),
            status => Err(NvmeError::Failed { opcode: command.opcode, status }),
        }
    }

    /// An admin command that brings up to a page of data.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn admin_read(&mut self, mut command: Command, len: usize) -> Result<Vec<u8>, NvmeError> {
        command.dptr = [self.page, 0];
        self.memory.write(self.page, &[0xee; PAGE])?;
        self.admin_ok(command)?;
        let mut bytes = vec![0; len];
        self.memory.read(self.page, &mut bytes)?;
        Ok(bytes)
    }

    /// Identify.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn identify(&mut self, cns: u8, nsid: u32) -> Result<Vec<u8>, NvmeError> {
        let command = Command { opcode: admin::IDENTIFY, nsid, cdw10: cns.into(), ..Command::default() };
        self.admin_read(command, PAGE)
    }

    /// Blocks of a namespace, and their size.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn namespace_size(&mut self, nsid: u32) -> Result<(u64, u32), NvmeError> {
        let id = self.identify(cns::NAMESPACE, nsid)?;
        let blocks = u64::from_le_bytes(id[0..8].try_into().unwrap_or_default());
        Ok((blocks, 1 << id[130]))
    }

    /// Get Log Page, from its start.
    ///
    /// # Errors
    /// See [`NvmeError`].
    pub fn log_page(&mut self, page: u8, len: usize) -> Result<Vec<u8>, NvmeError> {
        let dwords = u32::try_from(len / 4 - 1).unwrap_or(0);
        let command = Command {
            opcode: admin::GET_LOG_PAGE,
            nsid: 0xffff_ffff,
            cdw10: dwords << 16 | u32::from(page),
            ..Command::default()
        };
        self.admin_read(command, len)
    }
}

/// A command with a range of blocks, and data at `address` that is contiguous and at most two pages long, or page-aligned
/// with a list at `list`.
#[must_use]
pub fn blocks_command(opcode: u8, nsid: u32, lba: u64, blocks: u32, dptr: [u64; 2]) -> Command {
    #[expect(clippy::cast_possible_truncation, reason = "the halves of an LBA")]
    let (cdw10, cdw11) = (lba as u32, (lba >> 32) as u32);
    Command { opcode, nsid, dptr, cdw10, cdw11, cdw12: blocks - 1, ..Command::default() }
}

/// A read of up to two pages.
#[must_use]
pub fn read_command(nsid: u32, lba: u64, blocks: u32, dptr: [u64; 2]) -> Command {
    blocks_command(nvm::READ, nsid, lba, blocks, dptr)
}

/// A write of up to two pages.
#[must_use]
pub fn write_command(nsid: u32, lba: u64, blocks: u32, dptr: [u64; 2]) -> Command {
    blocks_command(nvm::WRITE, nsid, lba, blocks, dptr)
}
