//! virtio-scsi (virtio 1.2, 5.6): up to eight targets, each with one unit whose blocks are a bdev's.
//!
//! Queue 0 is for task management ([`control`]), queue 1 for events, the others for commands ([`request`]). Targets come
//! and go while the driver works ([`Targets`]); every queue follows by the same drain as any other change.

mod cdb;
mod compare;
mod control;
mod opcodes;
mod pages;
mod request;
mod reservation;
mod sense;
pub mod spec;
mod steps;
mod tasks;
mod units;

use std::sync::Arc;

pub use control::ScsiHandler;
pub use reservation::ReservationTable;
use units::Shared;
pub use units::{TargetError, TargetSlot, Targets};
use zerocopy::IntoBytes;

use super::device::{DeviceEvent, MakeHandler, VirtioDevice};
use crate::device::HomeWaker;
use spec::{CDB_LEN, Config, DEVICE_ID, MAX_TARGETS, OWN_QUEUES, SENSE_LEN, feature};

/// A virtio-scsi device.
pub struct Scsi {
    shared: Arc<Shared>,
    num_io_queues: u16,
    queue_size: u16,
    serial: u64,
}

impl Scsi {
    /// A device without targets.
    #[must_use]
    pub fn new(targets: &Targets, num_io_queues: u16, queue_size: u16, serial: u64) -> Self {
        Self { shared: Arc::clone(&targets.0), num_io_queues, queue_size, serial }
    }
}

impl Default for Targets {
    fn default() -> Self {
        Self(Arc::new(Shared::new()))
    }
}

impl VirtioDevice for Scsi {
    type Handler = ScsiHandler;

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    fn class(&self) -> [u8; 3] {
        // Mass storage, SCSI.
        [0x01, 0x00, 0x00]
    }

    fn serial(&self) -> u64 {
        self.serial
    }

    fn features(&self) -> u64 {
        feature::HOTPLUG | feature::CHANGE
    }

    fn num_queues(&self) -> u16 {
        self.num_io_queues + OWN_QUEUES
    }

    fn queue_size(&self) -> u16 {
        self.queue_size
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = Config {
            num_queues: self.num_io_queues.into(),
            // Header and response take a descriptor each.
            seg_max: u32::from(self.queue_size.saturating_sub(2).clamp(1, 254)),
            max_sectors: 65535,
            cmd_per_lun: self.queue_size.into(),
            event_info_size: size_of::<spec::Event>() as u32,
            sense_size: SENSE_LEN as u32,
            cdb_size: CDB_LEN as u32,
            max_channel: 0,
            max_target: MAX_TARGETS as u16 - 1,
            max_lun: 0,
        };
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.as_bytes().get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {
        // The driver may ask for other sizes of sense data and command blocks, and reads back that it did not get them.
    }

    fn handler(&self, index: u16, _features: u64) -> MakeHandler<ScsiHandler> {
        let (shared, depth) = (Arc::clone(&self.shared), self.queue_size);
        Box::new(move || Ok(ScsiHandler::new(index, shared, depth)))
    }

    fn reset(&mut self) {
        self.shared.forget_events();
        for unit in self.shared.units().iter().flatten() {
            unit.nexus.attend(sense::Sense::RESET);
        }
    }

    fn attach(&mut self, home: HomeWaker) {
        self.shared.attach(home);
    }

    fn take_event(&mut self) -> Option<DeviceEvent> {
        self.shared.take_changed().then_some(DeviceEvent::BackendChanged)
    }
}
