//! A virtio-blk driver (virtio 1.2, 5.2): brings the device up as an operating system does.
//!
//! Tests do blocking I/O on it ([`blocking`]); the load generator drives its queues ([`queue`]) itself. Generic over
//! the ring ([`DriverRing`]).

pub mod blocking;
pub mod queue;

use std::os::fd::OwnedFd;

pub use blocking::BlkError;
pub use queue::{BlkQueue, Done, Io, NO_STATUS};
use zerocopy::IntoBytes;

use super::{
    client::{Client, ClientError},
    memory::Memory,
    ring::DriverRing,
    split::SplitDriver,
    transport::{DriverError, Kicks, QueueSetup, Transport},
};
use crate::{
    irq::{self, NO_VECTOR},
    virtio::spec::{
        blk::{self, Config, SECTOR},
        feature, status,
    },
};

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
    /// Features not to accept, of the device type or not.
    pub without: u64,
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
    /// Bytes by which data lie behind the start of a page.
    pub misalign: u32,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self {
            queues: 1,
            ring_size: 128,
            features: feature::EVENT_IDX | feature::INDIRECT_DESC,
            without: 0,
            chains: Chains::Direct,
            interrupts: false,
            kicks: Kicks::Auto,
            max_io: 64 << 10,
            max_buffer: 64 << 10,
            misalign: 0,
        }
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
        let format = if R::PACKED { feature::RING_PACKED } else { 0 };
        let wanted = self.options.features & !feature::RING_PACKED | DEVICE_FEATURES | format;
        if offered & format != format {
            return Err(DriverError::Feature("RING_PACKED"));
        }
        self.features = offered & wanted & !self.options.without | feature::VERSION_1;
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
                queue.ring().disable_interrupts();
            }
            let vector = if self.options.interrupts { index + 1 } else { NO_VECTOR };
            let setup = QueueSetup { size, vector, areas: queue.ring().areas() };
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

    /// Publishes what a queue was given, and kicks if the device wants that.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn publish(&mut self, queue: usize) -> Result<(), ClientError> {
        if !self.queues[queue].publish() {
            return Ok(());
        }
        let number = u16::try_from(queue).expect("a queue's number");
        if self.features & feature::NOTIFICATION_DATA != 0 {
            self.transport.kick_with_data(number, self.queues[queue].ring().position())
        } else {
            self.transport.kick(number)
        }
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
