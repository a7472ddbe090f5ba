//! virtio-blk (virtio 1.2, 5.2): a disk whose blocks are a bdev's.

mod config;
mod handler;
pub(super) mod request;

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, AtomicU8, Ordering},
};

use bdev::{Descriptor, Event};
use handler::Backend;
pub use handler::BlkHandler;
use zerocopy::IntoBytes;

use super::{
    device::{DeviceEvent, HandlerError, MakeHandler, VirtioDevice},
    spec::blk::{DEVICE_ID, WRITEBACK_AT, feature},
};
use crate::device::HomeWaker;

/// What happens to the bdev behind a disk, from the thread that does it to the endpoint's.
#[derive(Debug, Default)]
pub struct Events {
    flags: AtomicU8,
    home: OnceLock<HomeWaker>,
}

const RESIZED: u8 = 1;
const REMOVED: u8 = 2;

impl Events {
    /// The callback for [`bdev::Registry::open`].
    pub fn callback(self: &Arc<Self>) -> impl Fn(Event) + Send + Sync + 'static {
        let events = Arc::clone(self);
        move |event| {
            let flag = match event {
                Event::Resized { .. } => RESIZED,
                Event::Removed => REMOVED,
                _ => return,
            };
            events.flags.fetch_or(flag, Ordering::AcqRel);
            if let Some(home) = events.home.get() {
                home.wake();
            }
        }
    }

    fn take(&self, flag: u8) -> bool {
        self.flags.fetch_and(!flag, Ordering::AcqRel) & flag != 0
    }
}

/// What a disk is made of.
pub struct BlkSpec {
    /// The bdev, opened with [`Events::callback`].
    pub descriptor: Arc<Descriptor>,
    /// Its events.
    pub events: Arc<Events>,
    /// Queues, 1 to [`super::transport::MAX_QUEUES`].
    pub num_queues: u16,
    /// Entries of a queue; a power of two.
    pub queue_size: u16,
}

/// A virtio-blk device.
pub struct Blk {
    /// None once the bdev is removed.
    descriptor: Option<Arc<Descriptor>>,
    info: Arc<bdev::BdevInfo>,
    features: u64,
    events: Arc<Events>,
    /// The driver lets writes rest in the bdev's cache (CONFIG_WCE); read by the queues.
    writeback: Arc<AtomicBool>,
    num_queues: u16,
    queue_size: u16,
}

impl Blk {
    /// A disk over the bdev.
    #[must_use]
    pub fn new(spec: BlkSpec) -> Self {
        let BlkSpec { descriptor, events, num_queues, queue_size } = spec;
        Self {
            info: Arc::clone(descriptor.info()),
            features: config::features(&descriptor),
            writeback: Arc::new(AtomicBool::new(true)),
            descriptor: Some(descriptor),
            events,
            num_queues,
            queue_size,
        }
    }
}

impl VirtioDevice for Blk {
    type Handler = BlkHandler;

    fn id(&self) -> u16 {
        DEVICE_ID
    }

    fn class(&self) -> [u8; 3] {
        // Mass storage, other.
        [0x01, 0x80, 0x00]
    }

    fn serial(&self) -> u64 {
        self.info.uuid.as_u64_pair().0
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn num_queues(&self) -> u16 {
        self.num_queues
    }

    fn queue_size(&self) -> u16 {
        self.queue_size
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let writeback = self.info.write_cache && self.writeback.load(Ordering::Relaxed);
        let config = config::config(&self.info, self.num_queues, self.queue_size, writeback);
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.as_bytes().get(at)).copied().unwrap_or(0);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let at = WRITEBACK_AT.checked_sub(offset).and_then(|at| usize::try_from(at).ok());
        if let Some(&value) = at.and_then(|at| data.get(at))
            && self.features & feature::CONFIG_WCE != 0
        {
            // Writes that are submitted from now on: the driver waits for the others before it changes this.
            self.writeback.store(value != 0, Ordering::Release);
        }
    }

    fn handler(&self, index: u16, features: u64) -> MakeHandler<BlkHandler> {
        let (descriptor, info, depth) = (self.descriptor.clone(), Arc::clone(&self.info), self.queue_size);
        let (events, writeback) = (Arc::clone(&self.events), Arc::clone(&self.writeback));
        Box::new(move || {
            let backend = descriptor.map(|descriptor| Backend::open(descriptor, depth)).transpose();
            let backend = backend.map_err(|error| {
                HandlerError(format!("no channel to bdev {} for queue {index}: {error}", info.name))
            })?;
            Ok(BlkHandler::new(backend, events, writeback, &info, features, depth))
        })
    }

    fn reset(&mut self) {
        self.writeback.store(true, Ordering::Release);
    }

    fn attach(&mut self, home: HomeWaker) {
        // A device is attached once.
        let _ = self.events.home.set(home);
    }

    fn take_event(&mut self) -> Option<DeviceEvent> {
        if self.descriptor.is_some() && self.events.flags.load(Ordering::Acquire) & REMOVED != 0 {
            tracing::warn!(bdev = self.info.name, "the bdev of a disk is removed; its I/O fails from now on");
            self.descriptor = None;
            return Some(DeviceEvent::BackendChanged);
        }
        self.events.take(RESIZED).then_some(DeviceEvent::ConfigChanged)
    }
}
