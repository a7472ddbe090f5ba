//! A virtio-blk driver (virtio 1.2, 5.2): brings the device up as an operating system does, and does I/O on its queues.
//!
//! Tests call the blocking half ([`BlkDriver`]); the load generator drives [`BlkQueue`]s itself, which never block and
//! never allocate. Each queue has the memory of its requests laid out once: a header, a status byte and a data buffer
//! for each slot. Generic over the ring ([`DriverRing`]).

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use super::{
    client::{Client, ClientError},
    memory::Memory,
    ring::{Buffer, DriverRing, MAX_BUFFERS, RingFault, RingSetup},
    split::SplitDriver,
    transport::{DriverError, Kicks, QueueSetup, Transport},
};
use crate::{
    dma::Span,
    irq::{self, NO_VECTOR},
    virtio::spec::{
        blk::{self, Config, Header, ID_LEN, Range, SECTOR, kind},
        feature, status,
    },
};

/// Header and status byte have a buffer each.
const OWN_BUFFERS: usize = 2;
const HEADER_LEN: usize = size_of::<Header>();
const PAGE: usize = 4096;
/// What a status byte holds until the device writes it; no status that exists.
pub const NO_STATUS: u8 = 0xff;

/// Where the descriptors of chains are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chains {
    /// In the ring's own table.
    Direct,
    /// In tables of their own (needs INDIRECT_DESC).
    Indirect,
    /// In the ring's own table where so many requests fit into it, in tables of their own else.
    Fit(u16),
}

/// How a driver wants its device.
#[derive(Clone, Copy, Debug)]
pub struct BlkOptions {
    /// Queues to use; the device must have as many.
    pub queues: u16,
    /// Entries of each ring at most; the device may have fewer.
    pub ring_size: u16,
    /// Features beyond those of the device type to accept where offered: `spec::feature`.
    pub features: u64,
    /// Where the descriptors of chains are.
    pub chains: Chains,
    /// Interrupts by MSI-X; polled without.
    pub interrupts: bool,
    /// How kicks go.
    pub kicks: Kicks,
    /// Longest data of a request.
    pub max_io: u32,
    /// Longest buffer of a request; longer data is cut into several.
    pub max_buffer: u32,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            ring_size: 128,
            features: feature::EVENT_IDX | feature::INDIRECT_DESC,
            chains: Chains::Direct,
            interrupts: false,
            kicks: Kicks::Auto,
            max_io: 64 << 10,
            max_buffer: 64 << 10,
        }
    }
}

/// Why blocking I/O failed.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The driver's.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The device answered with this status byte.
    #[error("request status {0}")]
    Status(u8),
    /// The device did not answer.
    #[error("no completion within {0:?}")]
    Timeout(Duration),
    /// The ring is full: the caller has left requests in flight.
    #[error("the ring is full")]
    Full,
}

impl From<ClientError> for BlkError {
    fn from(error: ClientError) -> Self {
        Self::Driver(error.into())
    }
}

impl From<RingFault> for BlkError {
    fn from(error: RingFault) -> Self {
        Self::Driver(error.into())
    }
}

impl BlkError {
    /// The status byte, if that is what it is.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        if let Self::Status(status) = self { Some(*status) } else { None }
    }
}

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// What is asked: `spec::blk::kind`.
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Bytes of data, whichever way they go.
    pub len: u32,
}

impl Io {
    /// Whether the device writes the data.
    fn device_writes(&self) -> bool {
        matches!(self.kind, kind::IN | kind::GET_ID)
    }
}

/// A finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What [`BlkQueue::submit`] returned for it.
    pub slot: u16,
    /// Its status byte.
    pub status: u8,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// One queue of a disk.
#[derive(Debug)]
pub struct BlkQueue<R> {
    ring: R,
    headers: Span,
    headers_at: u64,
    statuses: Span,
    statuses_at: u64,
    data: Span,
    data_at: u64,
    max_io: u32,
    max_buffer: u32,
}

impl<R: DriverRing> BlkQueue<R> {
    fn new(memory: &mut Memory, features: u64, size: u16, options: &BlkOptions) -> Result<Self, DriverError> {
        let &BlkOptions { max_io, max_buffer, chains, .. } = options;
        let buffers = max_io.div_ceil(max_buffer.max(1)) as usize + OWN_BUFFERS;
        assert!(buffers <= MAX_BUFFERS, "{buffers} buffers for {max_io} bytes");
        let entries = u16::try_from(buffers).expect("at most MAX_BUFFERS");
        let indirect = match chains {
            Chains::Direct => false,
            Chains::Indirect => true,
            Chains::Fit(depth) => u32::from(depth) * u32::from(entries) > u32::from(size),
        };
        if indirect && features & feature::INDIRECT_DESC == 0 {
            return Err(DriverError::Feature("INDIRECT_DESC"));
        }
        let setup = RingSetup { size, features, indirect: indirect.then_some(entries) };
        let ring = R::new(memory, &setup)?;
        let mut place = |len: usize| -> Result<(u64, Span), DriverError> {
            let addr = memory.allocate(len, PAGE).map_err(DriverError::Memory)?;
            Ok((addr, memory.span(addr, len).expect("just allocated, in one region")))
        };
        let slots = usize::from(size);
        let (headers_at, headers) = place(HEADER_LEN * slots)?;
        let (statuses_at, statuses) = place(slots)?;
        let (data_at, data) = place(max_io as usize * slots)?;
        Ok(Self { ring, headers, headers_at, statuses, statuses_at, data, data_at, max_io, max_buffer })
    }

    /// The ring.
    pub fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    /// Entries of the ring; also the bound of slots.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// The slot that [`Self::submit`] will use next: its data can be written before.
    #[inline]
    #[must_use]
    pub fn next_slot(&self) -> Option<u16> {
        self.ring.next_slot()
    }

    /// Requests submitted and not yet polled.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Guest address of a slot's data.
    #[inline]
    #[must_use]
    pub fn data_at(&self, slot: u16) -> u64 {
        self.data_at + u64::from(slot) * u64::from(self.max_io)
    }

    /// Fills a slot's data, from its start.
    #[inline]
    pub fn write_data(&self, slot: u16, from: &[u8]) {
        assert!(from.len() <= self.max_io as usize);
        self.data.slice().copy_from(usize::from(slot) * self.max_io as usize, from);
    }

    /// Copies a slot's data out, from its start.
    #[inline]
    pub fn read_data(&self, slot: u16, to: &mut [u8]) {
        assert!(to.len() <= self.max_io as usize);
        self.data.slice().copy_to(usize::from(slot) * self.max_io as usize, to);
    }

    /// Adds a request over the next slot's own memory. None when the ring is full. Not seen by the device before
    /// [`Self::publish`].
    #[inline]
    pub fn submit(&mut self, io: Io) -> Option<u16> {
        let slot = self.ring.next_slot()?;
        let at = usize::from(slot);
        self.headers.slice().write(at * HEADER_LEN, Header { kind: io.kind, reserved: 0, sector: io.sector });
        self.statuses.slice().write(at, NO_STATUS);
        let header = Buffer::readable(self.headers_at + (at * HEADER_LEN) as u64, HEADER_LEN as u32);
        let status = Buffer::writable(self.statuses_at + at as u64, 1);
        let data_at = self.data_at(slot);
        if io.len > 0 && io.len <= self.max_buffer {
            let data = Buffer { addr: data_at, len: io.len, device_writes: io.device_writes() };
            return self.ring.add(&[header, data, status]);
        }
        self.submit_cut(io, data_at, header, status)
    }

    /// The same with any number of data buffers.
    fn submit_cut(&mut self, io: Io, data_at: u64, header: Buffer, status: Buffer) -> Option<u16> {
        assert!(io.len <= self.max_io);
        let mut buffers = [header; MAX_BUFFERS];
        let mut count = 1;
        for from in (0..io.len).step_by(self.max_buffer as usize) {
            let len = self.max_buffer.min(io.len - from);
            buffers[count] =
                Buffer { addr: data_at + u64::from(from), len, device_writes: io.device_writes() };
            count += 1;
        }
        buffers[count] = status;
        self.ring.add(&buffers[..=count])
    }

    /// Makes what was submitted visible. True when the device wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// The same for a device that is never kicked.
    #[inline]
    pub fn publish_quietly(&mut self) {
        self.ring.publish_quietly();
    }

    /// A finished request, if there is one. Its data and status stay until its slot is submitted again.
    ///
    /// # Errors
    /// See [`RingFault`].
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Done>, RingFault> {
        let Some(used) = self.ring.pop()? else { return Ok(None) };
        let status = self.statuses.slice().read(usize::from(used.slot));
        Ok(Some(Done { slot: used.slot, status, len: used.len }))
    }
}

/// A disk.
#[derive(Debug)]
pub struct BlkDriver<R = SplitDriver> {
    /// Registers and connection.
    pub transport: Transport,
    /// Guest RAM.
    pub memory: Memory,
    /// The queues.
    pub queues: Vec<BlkQueue<R>>,
    /// Vector 0 is for configuration changes, n + 1 for queue n; empty without interrupts.
    eventfds: Vec<OwnedFd>,
    options: BlkOptions,
    features: u64,
    config: Config,
}

impl<R: DriverRing> BlkDriver<R> {
    /// Maps `memory` and brings the device up.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn new(mut client: Client, memory: Memory, options: BlkOptions) -> Result<Self, DriverError> {
        client.map_memory(&memory)?;
        let transport = Transport::new(client, options.kicks)?;
        if transport.function.device_id != blk::DEVICE_ID {
            return Err(DriverError::Type(transport.function.device_id));
        }
        let (queues, eventfds) = (Vec::new(), Vec::new());
        let mut driver =
            Self { transport, memory, queues, eventfds, options, features: 0, config: Config::default() };
        driver.start()?;
        Ok(driver)
    }

    /// Resets the device and brings it up with new rings (virtio 1.2, 3.1.1). What was in flight is forgotten.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn start(&mut self) -> Result<(), DriverError> {
        let transport = &mut self.transport;
        transport.reset()?;
        transport.function.enable(&mut transport.client)?;
        transport.add_status(status::ACKNOWLEDGE)?;
        transport.add_status(status::DRIVER)?;
        let offered = transport.device_features()?;
        if offered & feature::VERSION_1 == 0 {
            return Err(DriverError::Feature("VERSION_1"));
        }
        self.features = offered & (self.options.features | DEVICE_FEATURES) | feature::VERSION_1;
        transport.set_driver_features(self.features)?;
        transport.add_status(status::FEATURES_OK)?;
        if transport.status()? & status::FEATURES_OK == 0 {
            return Err(DriverError::Features(self.features));
        }
        self.config = read_config(transport)?;
        self.start_interrupts()?;
        self.start_queues()?;
        self.transport.add_status(status::DRIVER_OK)?;
        Ok(())
    }

    fn start_interrupts(&mut self) -> Result<(), DriverError> {
        if !self.options.interrupts {
            return Ok(());
        }
        if self.eventfds.is_empty() {
            let fds: Result<_, _> = (0..=self.options.queues).map(|_| irq::eventfd()).collect();
            self.eventfds = fds.map_err(ClientError::Socket)?;
        }
        self.transport.enable_msix(&self.eventfds)?;
        if !self.transport.set_config_vector(0)? {
            return Err(DriverError::Vector("configuration changes"));
        }
        Ok(())
    }

    fn start_queues(&mut self) -> Result<(), DriverError> {
        let wanted = self.options.queues;
        // Without MQ there is one (virtio 1.2, 5.2.5).
        let there = if self.features & blk::feature::MQ == 0 { 1 } else { self.config.num_queues };
        if wanted > there {
            return Err(DriverError::Queue(format!("{wanted} queues are wanted and the device has {there}")));
        }
        self.queues.clear();
        for index in 0..wanted {
            let largest = self.transport.queue_size(index)?;
            let size = largest.min(self.options.ring_size);
            if size < 2 {
                return Err(DriverError::Queue(format!("queue {index} has room for {size} entries")));
            }
            // A device may offer a size that is no power of two; a split ring has to have one (virtio 1.2, 2.7).
            let size = 1 << size.ilog2();
            let mut queue: BlkQueue<R> = BlkQueue::new(&mut self.memory, self.features, size, &self.options)?;
            if !self.options.interrupts {
                queue.ring.disable_interrupts();
            }
            let vector = if self.options.interrupts { index + 1 } else { NO_VECTOR };
            let setup = QueueSetup { size, vector, areas: queue.ring.areas() };
            self.transport.set_queue(index, &setup)?;
            self.queues.push(queue);
        }
        Ok(())
    }

    /// Agreed features.
    #[must_use]
    pub fn features(&self) -> u64 {
        self.features
    }

    /// The device configuration as it was when the device came up.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// Bytes of the disk.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.config.capacity.saturating_mul(SECTOR)
    }

    /// The device configuration as it is now.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn read_config(&mut self) -> Result<Config, DriverError> {
        read_config(&mut self.transport)
    }

    /// Takes the interrupts of a vector that were raised since it was asked last.
    #[must_use]
    pub fn take_interrupts(&self, vector: usize) -> u64 {
        self.eventfds.get(vector).map_or(0, irq::take_eventfd)
    }

    /// Waits for an interrupt of a vector. False when none comes.
    #[must_use]
    pub fn wait_interrupt(&self, vector: usize, timeout: Duration) -> bool {
        let Some(eventfd) = self.eventfds.get(vector) else { return false };
        let timeout = Timespec::try_from(timeout).ok();
        let _ = poll(&mut [PollFd::new(&eventfd.as_fd(), PollFlags::IN)], timeout.as_ref());
        irq::take_eventfd(eventfd) > 0
    }

    /// Publishes what a queue was given, and kicks if the device wants that.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn publish(&mut self, queue: usize) -> Result<(), ClientError> {
        if self.queues[queue].publish() {
            self.transport.kick(u16::try_from(queue).expect("a queue's number"))?;
        }
        Ok(())
    }

    /// Waits for the next finished request of a queue.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn wait(&mut self, queue: usize) -> Result<Done, BlkError> {
        let timeout = self.transport.client.timeout();
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.queues[queue].poll()? {
                return Ok(done);
            }
            if Instant::now() > deadline {
                return Err(BlkError::Timeout(timeout));
            }
            if self.options.interrupts {
                if !self.queues[queue].ring.enable_interrupts() {
                    let _ = self.wait_interrupt(queue + 1, timeout);
                }
                self.queues[queue].ring.disable_interrupts();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Does one request on a queue with nothing else in flight, `out` being what the device is given.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn run(&mut self, queue: usize, io: Io, out: &[u8]) -> Result<Done, BlkError> {
        let slot = self.queues[queue].next_slot().ok_or(BlkError::Full)?;
        self.queues[queue].write_data(slot, out);
        self.queues[queue].submit(io).ok_or(BlkError::Full)?;
        self.publish(queue)?;
        let done = self.wait(queue)?;
        if done.status == blk::status::OK { Ok(done) } else { Err(BlkError::Status(done.status)) }
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn read(&mut self, queue: usize, sector: u64, len: u32) -> Result<Vec<u8>, BlkError> {
        let done = self.run(queue, Io { kind: kind::IN, sector, len }, &[])?;
        let mut data = vec![0; len as usize];
        self.queues[queue].read_data(done.slot, &mut data);
        Ok(data)
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) -> Result<(), BlkError> {
        let len = u32::try_from(data.len()).expect("at most max_io");
        self.run(queue, Io { kind: kind::OUT, sector, len }, data).map(drop)
    }

    /// Flushes the device's cache.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn flush(&mut self, queue: usize) -> Result<(), BlkError> {
        self.run(queue, Io { kind: kind::FLUSH, sector: 0, len: 0 }, &[]).map(drop)
    }

    /// The ID string, without the zeroes behind it.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn get_id(&mut self, queue: usize) -> Result<Vec<u8>, BlkError> {
        let done = self.run(queue, Io { kind: kind::GET_ID, sector: 0, len: ID_LEN as u32 }, &[])?;
        let mut id = vec![0; ID_LEN];
        self.queues[queue].read_data(done.slot, &mut id);
        id.truncate(id.iter().position(|&byte| byte == 0).unwrap_or(ID_LEN));
        Ok(id)
    }

    /// Says that sectors are not needed any more.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn discard(&mut self, queue: usize, range: Range) -> Result<(), BlkError> {
        self.ranges(queue, kind::DISCARD, &[range])
    }

    /// Makes sectors read as zero.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn write_zeroes(&mut self, queue: usize, range: Range) -> Result<(), BlkError> {
        self.ranges(queue, kind::WRITE_ZEROES, &[range])
    }

    /// DISCARD or WRITE_ZEROES with any number of ranges.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn ranges(&mut self, queue: usize, kind: u32, ranges: &[Range]) -> Result<(), BlkError> {
        let bytes = ranges.as_bytes();
        let len = u32::try_from(bytes.len()).expect("at most max_io");
        self.run(queue, Io { kind, sector: 0, len }, bytes).map(drop)
    }
}

/// Features of the device type that this driver can live with.
const DEVICE_FEATURES: u64 = {
    use blk::feature::{BLK_SIZE, DISCARD, FLUSH, MQ, RO, SEG_MAX, SIZE_MAX, TOPOLOGY, WRITE_ZEROES};
    SIZE_MAX | SEG_MAX | RO | BLK_SIZE | FLUSH | TOPOLOGY | MQ | DISCARD | WRITE_ZEROES
};

/// Reads the configuration until it did not change meanwhile (virtio 1.2, 2.5.1).
fn read_config(transport: &mut Transport) -> Result<Config, DriverError> {
    loop {
        let before = transport.config_generation()?;
        let mut config = Config::default();
        let len =
            usize::try_from(transport.function.device.len).unwrap_or(usize::MAX).min(size_of::<Config>());
        transport.read_config(0, &mut config.as_mut_bytes()[..len])?;
        if transport.config_generation()? == before {
            return Ok(config);
        }
    }
}
