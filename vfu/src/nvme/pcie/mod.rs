//! A controller over PCIe (PCIe Transport 1.0c), as a PCI function's model: BAR0 with registers and doorbells, BAR4 the
//! MSI-X table, BAR5 its pending bits. Nothing here knows the front door's messages.

mod admin;
mod control;
mod device;
mod doorbells;
mod keep_alive;
mod memory;
mod owner;
mod prp;
mod queues;
mod registers;
mod remote;
mod ring;
mod sgl;
pub mod shadow;
mod shutdown;
#[cfg(test)]
mod tests;

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, Weak,
    atomic::{AtomicU32, Ordering},
};

use reactor::{Handle, Park, Poller, PollerSpec, Tick, Work};

use device::Device;
pub use doorbells::MAX_IO_QUEUES;
use doorbells::{BAR_LEN, Doorbells, LEN};

use super::{
    controller::{Controller, ControllerOptions},
    link::{AnaStates, Link},
    spec::reg,
    subsystem::Subsystem,
};
use crate::{
    device::{Bus, DeviceModel, Home, Mappable, Progress},
    lookout::Lookout,
    pci::{Bar, Identity, Layout},
};

const BAR: u8 = 0;
const MSIX_TABLE_BAR: u8 = 4;
const MSIX_PBA_BAR: u8 = 5;
/// The numbers by which SPDK's NVMe controllers over vfio-user are known.
const PCI_VENDOR: u16 = 0x4e58;
const PCI_DEVICE: u16 = 0x0001;
/// Mass storage, non-volatile memory, NVM Express I/O controller.
const PCI_CLASS: [u8; 3] = [0x01, 0x08, 0x02];

/// MSI-X vectors of a controller with so many I/O queue pairs: one each, and one for the admin queue.
#[must_use]
pub fn vectors(max_io_queues: u16) -> u16 {
    max_io_queues + 1
}

/// What a controller is made of.
pub struct NvmeSpec {
    /// Its subsystem.
    pub subsystem: Arc<Subsystem>,
    /// Access states of its way in.
    pub ana: Arc<AnaStates>,
    /// What its transport allows.
    pub options: ControllerOptions,
    /// The guest may map the doorbells.
    pub is_mappable: bool,
}

/// A controller as a PCI function's model.
pub struct NvmePci {
    layout: Layout,
    device: Arc<Mutex<Device>>,
    doorbells: Arc<Doorbells>,
    home: Home,
    /// The endpoint's reactor, where the admin queue is.
    reactor: Handle,
    /// Its core.
    home_core: Arc<AtomicU32>,
    /// The admin queue's poller, which a controller with mapped doorbells needs, is not on its way yet.
    is_unpolled: bool,
}

fn layout(options: &ControllerOptions, serial: &str) -> Layout {
    let vectors = vectors(options.max_io_queues);
    let table = (u32::from(vectors) * 16).next_power_of_two().max(0x1000);
    let mut bars = [None; 6];
    bars[usize::from(BAR)] = Some(Bar { size: BAR_LEN, wide: true });
    bars[usize::from(MSIX_TABLE_BAR)] = Some(Bar { size: table, wide: false });
    bars[usize::from(MSIX_PBA_BAR)] = Some(Bar { size: 0x1000, wide: false });
    let serial = serial.bytes().fold(0_u64, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte.into()));
    Layout {
        identity: Identity {
            vendor: PCI_VENDOR,
            device: PCI_DEVICE,
            subsystem_vendor: PCI_VENDOR,
            subsystem: PCI_DEVICE,
            revision: 1,
            class: PCI_CLASS,
        },
        bars,
        vectors,
        msix_table_bar: MSIX_TABLE_BAR,
        msix_pba_bar: MSIX_PBA_BAR,
        vendor_caps: Vec::new(),
        serial,
    }
}

fn lock(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    // Only the home reactor's thread takes it, or two while the endpoint moves; a panic there ends the endpoint.
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl NvmePci {
    /// A controller after power-on.
    ///
    /// # Panics
    /// If the process has no descriptors left for its doorbells, or its subsystem no controller IDs: the maker checks.
    #[must_use]
    pub fn new(spec: NvmeSpec, home: Home, bus: Arc<Bus>) -> Self {
        let NvmeSpec { subsystem, ana, mut options, is_mappable } = spec;
        options.pci_vendor = PCI_VENDOR;
        // Where doorbells are mapped they cost nothing, and shadows would only be a second place to look at.
        options.shadow_doorbells &= !is_mappable;
        let layout = layout(&options, &subsystem.options().nqn);
        let waker = home.waker.clone();
        let link = subsystem.attach(|cntlid| Arc::new(Link::new(cntlid, ana, waker)));
        let link = link.expect("the maker has seen a free controller ID");
        let controller = Controller::new(subsystem, link, options);
        let doorbells = Doorbells::new(is_mappable).expect("descriptors for the doorbells");
        let device = Device::new(controller, home.clone(), bus, doorbells);
        let doorbells = Arc::clone(&device.doorbells);
        let reactor = home.reactors[0].clone();
        let mut new = Self {
            home_core: Arc::new(AtomicU32::new(reactor.core())),
            reactor,
            layout,
            device: Arc::new(Mutex::new(device)),
            doorbells,
            home,
            is_unpolled: is_mappable,
        };
        new.start_poller();
        new
    }

    fn start_poller(&mut self) {
        if !self.is_unpolled {
            return;
        }
        let (device, doorbells) = (Arc::downgrade(&self.device), Arc::clone(&self.doorbells));
        let (home, core) = (Arc::clone(&self.home_core), self.reactor.core());
        let (name, group) = (format!("{}_admin", self.home.group.name()), self.home.group.clone());
        let sent = self.reactor.send(Box::new(move |reactor| {
            reactor.add(PollerSpec::new(name, &group), |cx| {
                let lookout = Lookout::new(cx.clock(), owner::ADMIN_DOUBLINGS);
                Box::new(AdminPoller { device, doorbells, home, core, seen: None, lookout })
            });
        }));
        self.is_unpolled = sent.is_err();
    }
}

/// Looks at the admin queue's doorbell where no message tells.
struct AdminPoller {
    device: Weak<Mutex<Device>>,
    doorbells: Arc<Doorbells>,
    /// The core of the home reactor.
    home: Arc<AtomicU32>,
    /// Where this one is; after a move of the endpoint another one has taken over.
    core: u32,
    /// The doorbells when there was nothing to do: while they stand so, there is nothing.
    seen: Option<[u32; 3]>,
    lookout: Lookout,
}

impl Poller for AdminPoller {
    fn poll(&mut self, _now: Tick) -> Work {
        if self.home.load(Ordering::Relaxed) != self.core {
            return Work::Done;
        }
        let now = self.doorbells.both(0);
        if self.seen == Some(now) && self.device.strong_count() > 0 {
            return Work::Idle;
        }
        let Some(device) = self.device.upgrade() else { return Work::Done };
        if lock(&device).poll_admin() {
            self.lookout.found();
            self.seen = None;
            Work::Busy
        } else {
            self.seen = Some(now);
            Work::Idle
        }
    }

    fn park(&mut self, now: Tick) -> Park {
        let Some(device) = self.device.upgrade() else { return Park::Ready };
        let device = lock(&device);
        if device.arm_admin() {
            return Park::Ready;
        }
        // A controller that is not enabled is looked at rarely: its first admin command follows a register write.
        if !device.is_enabled() {
            self.lookout.expect_nothing();
        }
        Park::Until(now.after(self.lookout.next()))
    }
}

impl DeviceModel for NvmePci {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        // Doorbells read as zero (Base, 3.1.3: write-only; reads are vendor specific).
        if bar == BAR && offset < reg::DOORBELLS {
            lock(&self.device).registers.read(offset, data);
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar == BAR {
            lock(&self.device).write(offset, data);
        }
    }

    fn mappable(&self, bar: u8) -> Option<Mappable<'_>> {
        (bar == BAR && self.doorbells.is_mapped).then(|| Mappable {
            fd: self.doorbells.file(),
            fd_offset: 0,
            offset: reg::DOORBELLS,
            size: LEN,
        })
    }

    fn is_doorbell(&self, bar: u8, offset: u64) -> bool {
        bar == BAR && offset >= reg::DOORBELLS
    }

    fn place(&mut self, reactors: &[Handle]) {
        self.home.reactors = reactors.to_vec();
        let mut device = lock(&self.device);
        device.home.reactors = reactors.to_vec();
        for cqid in 1..=MAX_IO_QUEUES {
            device.move_group(cqid, &reactors[usize::from(cqid - 1) % reactors.len()]);
        }
    }

    fn follow_home(&mut self, reactor: &Handle) {
        self.home_core.store(reactor.core(), Ordering::Relaxed);
        self.reactor = reactor.clone();
        self.is_unpolled = self.doorbells.is_mapped;
        self.start_poller();
    }

    fn move_queue(&mut self, queue: u16, to: &Handle) -> bool {
        lock(&self.device).move_group(queue, to)
    }

    fn sync(&mut self) {
        lock(&self.device).sync();
    }

    fn reset(&mut self) {
        lock(&self.device).power_on();
    }

    fn is_faulted(&self) -> bool {
        lock(&self.device).is_faulted
    }

    fn progress(&mut self) -> Progress {
        self.start_poller();
        lock(&self.device).progress()
    }
}
