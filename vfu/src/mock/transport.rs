//! The registers of a virtio PCI device, from the driver's side (virtio 1.2, 4.1.4 and 3.1).
//!
//! [`super::blk`] is the caller; tests reach through it for single registers. Holds the connection; knows no device
//! type and no ring format.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use zerocopy::{FromBytes, IntoBytes};

use super::{
    client::{Client, ClientError, RegionDetail},
    pci::{PciFunction, ProbeError, Structure},
};
use crate::dma::{Protection, Span, View, Windows};

// Offsets in the common configuration (virtio 1.2, 4.1.4.3).
const DEVICE_FEATURE_SELECT: u64 = 0;
const DEVICE_FEATURE: u64 = 4;
const DRIVER_FEATURE_SELECT: u64 = 8;
const DRIVER_FEATURE: u64 = 12;
const CONFIG_VECTOR: u64 = 16;
const NUM_QUEUES: u64 = 18;
const STATUS: u64 = 20;
const CONFIG_GENERATION: u64 = 21;
const QUEUE_SELECT: u64 = 22;
const QUEUE_SIZE: u64 = 24;
const QUEUE_VECTOR: u64 = 26;
const QUEUE_ENABLE: u64 = 28;
const QUEUE_NOTIFY_OFF: u64 = 30;
const QUEUE_DESC: u64 = 32;
const QUEUE_DRIVER: u64 = 40;
const QUEUE_DEVICE: u64 = 48;
const QUEUE_RESET: u64 = 58;

/// How long the driver sleeps between two looks at a register.
const REGISTER_POLL: Duration = Duration::from_micros(200);

/// Why a device did not come up.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The client's.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// The device is no virtio device that can be driven.
    #[error(transparent)]
    Probe(#[from] ProbeError),
    /// The device is of another type.
    #[error("virtio device type {0} is not a disk")]
    Type(u16),
    /// Something did not come true in time.
    #[error("the device did not {what} within {after:?}")]
    Timeout {
        /// What was waited for.
        what: &'static str,
        /// For how long.
        after: Duration,
    },
    /// The device does not offer a feature that is needed.
    #[error("the device does not offer {0}")]
    Feature(&'static str),
    /// The device took FEATURES_OK back.
    #[error("the device does not agree to features {0:#x}")]
    Features(u64),
    /// The device did not take a vector.
    #[error("the device has no vector for {0}")]
    Vector(&'static str),
    /// There are not so many queues, or they are too short.
    #[error("{0}")]
    Queue(String),
    /// Guest memory ran out.
    #[error("guest memory: {0}")]
    Memory(rustix::io::Errno),
    /// A ring broke, by the device's doing.
    #[error(transparent)]
    Ring(#[from] super::ring::RingFault),
}

/// Guest addresses of a ring's three areas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Areas {
    /// The descriptor area.
    pub desc: u64,
    /// The driver area.
    pub driver: u64,
    /// The device area.
    pub device: u64,
}

/// How a driver sets a queue up.
#[derive(Clone, Copy, Debug)]
pub struct QueueSetup {
    /// Entries.
    pub size: u16,
    /// MSI-X vector, [`NO_VECTOR`](crate::irq::NO_VECTOR) for none.
    pub vector: u16,
    /// Where the ring is.
    pub areas: Areas,
}

/// How kicks reach the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Kicks {
    /// By the mapped notify page where there is one, by posted writes else.
    #[default]
    Auto,
    /// By posted writes, though there may be a page.
    Messages,
    /// Not at all, as SPDK's virtio initiator does.
    Never,
}

/// A virtio PCI device, driven.
#[derive(Debug)]
pub struct Transport {
    /// The connection.
    pub client: Client,
    /// Where its structures are.
    pub function: PciFunction,
    kicks: Kicks,
    /// The mapped part of the notification BAR, and where it starts in that.
    page: Option<(Span, u64)>,
    /// Offset of each queue's notification in the BAR, once it is set up.
    notify_at: Vec<u64>,
}

/// Maps the part of a region that holds the notifications, if there is one.
fn map_page(detail: &RegionDetail, notify: &Structure) -> Option<(Span, u64)> {
    let holds =
        |offset: u64, size: u64| offset <= notify.offset && notify.offset + notify.len <= offset + size;
    let area = detail.areas.iter().find(|area| holds(area.offset, area.size))?;
    let fd = detail.fd.as_ref()?.try_clone().ok()?;
    let windows = Windows::default();
    let protection = Protection { read: true, write: true };
    windows.map(0, area.size, protection, Some((fd, detail.info.offset + area.offset))).ok()?;
    let span = View::new(&windows).span(0, usize::try_from(area.size).ok()?, true).ok()?;
    Some((span, area.offset))
}

impl Transport {
    /// Finds the structures and switches the function on.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn new(mut client: Client, kicks: Kicks) -> Result<Self, DriverError> {
        let function = PciFunction::probe(&mut client)?;
        function.enable(&mut client)?;
        let page = match kicks {
            Kicks::Auto => map_page(&client.region_info(function.notify.bar)?, &function.notify),
            Kicks::Messages | Kicks::Never => None,
        };
        Ok(Self { client, function, kicks, page, notify_at: Vec::new() })
    }

    /// Whether kicks are stores to a mapped page.
    #[must_use]
    pub fn has_page(&self) -> bool {
        self.page.is_some()
    }

    fn read<T: FromBytes + IntoBytes + Default>(&mut self, at: u64) -> Result<T, ClientError> {
        let mut value = T::default();
        let common = self.function.common;
        self.client.region_read(common.bar, common.offset + at, value.as_mut_bytes())?;
        Ok(value)
    }

    fn write<T: IntoBytes + zerocopy::Immutable>(&mut self, at: u64, value: T) -> Result<(), ClientError> {
        let common = self.function.common;
        self.client.region_write(common.bar, common.offset + at, value.as_bytes())
    }

    /// Two writes of 32 bits, as drivers on all machines do (virtio 1.2, 4.1.3.1).
    fn write_u64(&mut self, at: u64, value: u64) -> Result<(), ClientError> {
        let bytes = value.to_le_bytes();
        let common = self.function.common;
        self.client.region_write(common.bar, common.offset + at, &bytes[..4])?;
        self.client.region_write(common.bar, common.offset + at + 4, &bytes[4..])
    }

    /// The device status.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&mut self) -> Result<u8, ClientError> {
        self.read(STATUS)
    }

    /// Adds bits to the device status.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn add_status(&mut self, bits: u8) -> Result<(), ClientError> {
        let status = self.status()?;
        self.write(STATUS, status | bits)
    }

    /// Writes the device status as it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_status(&mut self, status: u8) -> Result<(), ClientError> {
        self.write(STATUS, status)
    }

    /// Looks at a register until it says what is wanted.
    fn until(
        &mut self,
        what: &'static str,
        mut is_so: impl FnMut(&mut Self) -> Result<bool, ClientError>,
    ) -> Result<(), DriverError> {
        let deadline = Instant::now() + self.client.timeout();
        while !is_so(self)? {
            if Instant::now() > deadline {
                return Err(DriverError::Timeout { what, after: self.client.timeout() });
            }
            std::thread::sleep(REGISTER_POLL);
        }
        Ok(())
    }

    /// Resets the device by its status register, and waits until it is done (virtio 1.2, 4.1.4.3.2).
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn reset(&mut self) -> Result<(), DriverError> {
        self.set_status(0)?;
        self.until("finish its reset", |transport| Ok(transport.status()? == 0))
    }

    /// Waits until the device has these status bits.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn wait_status(&mut self, bits: u8, what: &'static str) -> Result<(), DriverError> {
        self.until(what, |transport| Ok(transport.status()? & bits == bits))
    }

    /// What the device offers.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn device_features(&mut self) -> Result<u64, ClientError> {
        let mut features = 0;
        for select in [0_u32, 1] {
            self.write(DEVICE_FEATURE_SELECT, select)?;
            features |= u64::from(self.read::<u32>(DEVICE_FEATURE)?) << (32 * select);
        }
        Ok(features)
    }

    /// What the driver accepts.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_driver_features(&mut self, features: u64) -> Result<(), ClientError> {
        for select in [0_u32, 1] {
            self.write(DRIVER_FEATURE_SELECT, select)?;
            self.write(DRIVER_FEATURE, u32::try_from(features >> (32 * select) & 0xffff_ffff).unwrap_or(0))?;
        }
        Ok(())
    }

    /// Number of queues.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn num_queues(&mut self) -> Result<u16, ClientError> {
        self.read(NUM_QUEUES)
    }

    /// Counts changes of the device configuration.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn config_generation(&mut self) -> Result<u8, ClientError> {
        self.read(CONFIG_GENERATION)
    }

    /// Sets the vector of configuration changes, and says whether the device took it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_config_vector(&mut self, vector: u16) -> Result<bool, ClientError> {
        self.write(CONFIG_VECTOR, vector)?;
        Ok(self.read::<u16>(CONFIG_VECTOR)? == vector)
    }

    /// Reads the interrupt status, which clears it.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn take_isr(&mut self) -> Result<u8, ClientError> {
        let (isr, mut byte) = (self.function.isr, [0]);
        self.client.region_read(isr.bar, isr.offset, &mut byte)?;
        Ok(byte[0])
    }

    /// Most entries that a queue can have; zero where there is none.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn queue_size(&mut self, queue: u16) -> Result<u16, ClientError> {
        self.write(QUEUE_SELECT, queue)?;
        self.read(QUEUE_SIZE)
    }

    /// Sets a queue up, up to enabling it.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn set_queue(&mut self, queue: u16, setup: &QueueSetup) -> Result<(), DriverError> {
        let &QueueSetup { size, vector, areas } = setup;
        self.write(QUEUE_SELECT, queue)?;
        self.write(QUEUE_SIZE, size)?;
        self.write(QUEUE_VECTOR, vector)?;
        if self.read::<u16>(QUEUE_VECTOR)? != vector {
            return Err(DriverError::Vector("a queue"));
        }
        let notify_off: u16 = self.read(QUEUE_NOTIFY_OFF)?;
        let (index, notify) = (usize::from(queue), self.function.notify);
        self.notify_at.resize(self.notify_at.len().max(index + 1), 0);
        self.notify_at[index] =
            notify.offset + u64::from(notify_off) * u64::from(self.function.notify_multiplier);
        self.write_u64(QUEUE_DESC, areas.desc)?;
        self.write_u64(QUEUE_DRIVER, areas.driver)?;
        self.write_u64(QUEUE_DEVICE, areas.device)?;
        self.write(QUEUE_ENABLE, 1_u16)?;
        Ok(())
    }

    /// Whether a queue is enabled.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn queue_enabled(&mut self, queue: u16) -> Result<bool, ClientError> {
        self.write(QUEUE_SELECT, queue)?;
        Ok(self.read::<u16>(QUEUE_ENABLE)? != 0)
    }

    /// Resets one queue, and waits until that is done (virtio 1.2, 2.6.1; needs RING_RESET).
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn reset_queue(&mut self, queue: u16) -> Result<(), DriverError> {
        self.write(QUEUE_SELECT, queue)?;
        self.write(QUEUE_RESET, 1_u16)?;
        self.until("finish the reset of a queue", |transport| Ok(transport.read::<u16>(QUEUE_RESET)? == 0))
    }

    /// Reads the device configuration.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn read_config(&mut self, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        let device = self.function.device;
        self.client.region_read(device.bar, device.offset + offset, data)
    }

    /// Kicks a queue, the way it was agreed: a store, a posted write, or nothing.
    ///
    /// # Errors
    /// See [`ClientError`].
    #[inline]
    pub fn kick(&mut self, queue: u16) -> Result<(), ClientError> {
        let Some(&at) = self.notify_at.get(usize::from(queue)) else { return Ok(()) };
        match (&self.page, self.kicks) {
            (Some((page, start)), _) => {
                // A page holds every notification of its structure, so the offset fits.
                page.slice().write(usize::try_from(at - start).unwrap_or(0), queue);
                Ok(())
            }
            (None, Kicks::Never) => Ok(()),
            (None, _) => self.client.region_post(self.function.notify.bar, at, &queue.to_le_bytes()),
        }
    }

    /// Kicks a queue with NOTIFICATION_DATA, by a message (virtio 1.2, 4.1.5.2).
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn kick_with_data(&mut self, queue: u16, position: u16) -> Result<(), ClientError> {
        let Some(&at) = self.notify_at.get(usize::from(queue)) else { return Ok(()) };
        let data = u32::from(queue) | u32::from(position) << 16;
        self.client.region_post(self.function.notify.bar, at, &data.to_le_bytes())
    }

    /// Gives MSI-X vectors their eventfds and switches MSI-X on.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn enable_msix(&mut self, eventfds: &[std::os::fd::OwnedFd]) -> Result<(), DriverError> {
        let vectors = self.function.msix.map_or(0, |msix| usize::from(msix.vectors));
        if eventfds.len() > vectors {
            return Err(DriverError::Vector("every queue"));
        }
        let borrowed: Vec<_> = eventfds.iter().map(AsFd::as_fd).collect();
        self.client.set_eventfds(crate::wire::spec::irq::MSIX, 0, &borrowed)?;
        self.function.enable_msix(&mut self.client)?;
        Ok(())
    }
}
