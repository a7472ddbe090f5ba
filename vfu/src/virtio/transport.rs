//! Virtio over PCI: the register file of a modern device (virtio 1.2, 4.1).
//!
//! BAR4 holds common configuration, ISR, device configuration and notifications, one page-sized window each; BAR1 the
//! MSI-X table, BAR2 its pending bits. Registers are reached at any width and alignment: an access is a patch of the
//! bytes of [`Registers`], and each field that it touched takes effect.

mod registers;

use std::sync::Arc;

use reactor::Handle;

use registers::{COMMON_LEN, Field, Registers};

use super::{
    control::{Doorbell, DoorbellMode, QueueControl, QueueState},
    device::{DeviceEvent, VirtioDevice},
    owner,
    queue::{Format, PackedRing, Position, QueueConfig, SplitRing},
    spec::{self, cap, feature, status},
};
use crate::{
    device::{Bus, DeviceDescription, DeviceModel, Home, Mappable, Progress, QueueDescription},
    irq::NO_VECTOR,
    moderation::Moderation,
    pci::{Bar, Identity, Layout, VendorCap},
    stages::StageReading,
};

/// The BAR with all structures.
const BAR: u8 = 4;
const MSIX_TABLE_BAR: u8 = 1;
const MSIX_PBA_BAR: u8 = 2;
const BAR_LEN: u32 = 0x4000;
/// Length of each of the four windows.
const WINDOW: u64 = 0x1000;
const COMMON: u64 = 0;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
const NOTIFY: u64 = 0x3000;
/// Notifications of queue n go to NOTIFY + n * this (virtio 1.2, 4.1.4.4).
const NOTIFY_MULTIPLIER: u32 = 4;
/// The capability with which drivers without memory BARs reach them: the fifth vendor capability.
const WINDOW_CAP: usize = 4;
/// Status bit of a configuration interrupt (virtio 1.2, 4.1.4.5).
const ISR_CONFIG: u8 = 2;
/// Most queues of a device: their notifications fit into one window.
pub const MAX_QUEUES: u16 = 64;
const _: () = assert!(MAX_QUEUES as u64 * NOTIFY_MULTIPLIER as u64 <= WINDOW);

/// One queue, as the driver sets it up.
#[derive(Debug, Default)]
struct Queue {
    config: QueueConfig,
    vector: u16,
    enabled: bool,
    /// A single-queue reset is under way.
    resetting: bool,
    /// Where the ring starts, if not at its beginning.
    position: Option<Position>,
    control: Option<Arc<QueueControl>>,
    /// Where it runs, or is to run next.
    reactor: Option<Handle>,
    /// It is stopping only to start again there.
    moving: bool,
    /// Not sent to its reactor yet, because that had no room for the message.
    unsent: bool,
}

impl Queue {
    /// Tells its owner to go. One that was never sent has none, and would never say that it has gone.
    fn stop(&mut self) {
        if std::mem::take(&mut self.unsent) {
            self.control = None;
        }
        if let Some(control) = &self.control {
            control.stop();
        }
    }
}

/// What an endpoint asks of its transport, beyond what the device type says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TransportOptions {
    /// How kicks arrive.
    pub doorbell: DoorbellMode,
    /// Packed rings are offered.
    pub packed_ring: bool,
    /// Giving buffers back in order is offered. A driver that takes it waits for the slowest request of a queue.
    pub in_order: bool,
    /// How interrupts are held back, if they are.
    pub moderation: Option<Moderation>,
    /// No MSI-X capability: the pin is all there is. QEMU up to 11.1 cannot take a device apart that has one.
    pub disable_msix: bool,
}

impl TransportOptions {
    /// MSI-X vectors of a device with so many queues: one each, and one for configuration changes.
    #[must_use]
    pub fn vectors(&self, num_queues: u16) -> u16 {
        if self.disable_msix { 0 } else { num_queues + 1 }
    }
}

impl From<DoorbellMode> for TransportOptions {
    fn from(doorbell: DoorbellMode) -> Self {
        Self { doorbell, ..Self::default() }
    }
}

/// A virtio device as a PCI function's model.
pub struct VirtioPci<D: VirtioDevice> {
    device: D,
    options: TransportOptions,
    layout: Layout,
    home: Home,
    bus: Arc<Bus>,
    doorbell: Arc<Doorbell>,
    /// Behind a mapped notify page.
    notify_page: Option<std::os::fd::OwnedFd>,
    registers: Registers,
    queues: Vec<Queue>,
    status: u8,
    /// A reset waits for the queues.
    resetting: bool,
    /// A queue's owner has panicked.
    faulted: bool,
}

impl<D: VirtioDevice> Drop for VirtioPci<D> {
    fn drop(&mut self) {
        // Nothing to do after an orderly end. When the endpoint itself has panicked, its queues are told to go.
        self.queues.iter_mut().for_each(Queue::stop);
    }
}

/// A vendor capability that says where a structure is (virtio 1.2, 4.1.4).
fn structure(kind: u8, offset: u64, len: u64, more: &[u8]) -> VendorCap {
    let word = |value: u64| u32::try_from(value).expect("inside a BAR").to_le_bytes();
    let mut body = vec![kind, BAR, 0, 0, 0];
    body.extend_from_slice(&word(offset));
    body.extend_from_slice(&word(len));
    body.extend_from_slice(more);
    VendorCap { body, writable: vec![] }
}

fn layout<D: VirtioDevice>(device: &D, options: TransportOptions) -> Layout {
    let id = device.id();
    let vectors = options.vectors(device.num_queues());
    let mut bars = [None; 6];
    if vectors > 0 {
        bars[usize::from(MSIX_TABLE_BAR)] = Some(Bar { size: 0x1000, wide: false });
        bars[usize::from(MSIX_PBA_BAR)] = Some(Bar { size: 0x1000, wide: false });
    }
    bars[usize::from(BAR)] = Some(Bar { size: BAR_LEN, wide: false });
    let mut window = structure(cap::PCI_CFG, 0, 0, &[0; 4]);
    // bar, offset, length and data are the driver's to write (virtio 1.2, 4.1.4.9).
    window.writable =
        vec![0, 0xff, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff];
    Layout {
        identity: Identity {
            vendor: spec::PCI_VENDOR,
            device: spec::PCI_DEVICE_BASE + id,
            subsystem_vendor: spec::PCI_VENDOR,
            subsystem: spec::PCI_DEVICE_BASE + id,
            // Below 1 it would be a transitional device; OVMF does not list such a one here (virtio 1.2, 4.1.2.1).
            revision: 1,
            class: device.class(),
        },
        bars,
        vectors,
        msix_table_bar: MSIX_TABLE_BAR,
        msix_pba_bar: MSIX_PBA_BAR,
        vendor_caps: vec![
            structure(cap::COMMON, COMMON, WINDOW, &[]),
            structure(cap::ISR, ISR, WINDOW, &[]),
            structure(cap::DEVICE, DEVICE, WINDOW, &[]),
            structure(cap::NOTIFY, NOTIFY, WINDOW, &NOTIFY_MULTIPLIER.to_le_bytes()),
            window,
        ],
        serial: device.serial(),
    }
}

impl<D: VirtioDevice> VirtioPci<D> {
    /// A device after power-on.
    pub fn new(mut device: D, options: impl Into<TransportOptions>, home: Home, bus: Arc<Bus>) -> Self {
        let options = options.into();
        let mode = options.doorbell;
        device.attach(home.waker.clone());
        let notify_page = (mode == DoorbellMode::Mapped).then(notify_page).flatten();
        let mut new = Self {
            layout: layout(&device, options),
            queues: (0..device.num_queues()).map(|_| Queue::default()).collect(),
            registers: Registers::default(),
            device,
            options,
            home,
            bus,
            doorbell: Arc::new(Doorbell::new(mode)),
            notify_page,
            status: 0,
            resetting: false,
            faulted: false,
        };
        new.power_on();
        new
    }

    fn power_on(&mut self) {
        // Queues forget where they ran, too: they are dealt anew.
        self.status = 0;
        self.registers = Registers::default();
        let size = self.device.queue_size();
        for queue in &mut self.queues {
            // None runs by now. One that did would be told by nobody else, and hold its bdev for ever.
            queue.stop();
            *queue = Queue::default();
            queue.config.size = size;
            queue.vector = NO_VECTOR;
        }
        self.doorbell.reset();
        self.device.reset();
    }

    fn offered(&self) -> u64 {
        use feature::{
            ACCESS_PLATFORM, EVENT_IDX, IN_ORDER, INDIRECT_DESC, NOTIFICATION_DATA, RING_PACKED, RING_RESET,
            VERSION_1,
        };
        let on = |when: bool, bit: u64| if when { bit } else { 0 };
        let rings = on(self.options.packed_ring, RING_PACKED) | on(self.options.in_order, IN_ORDER);
        let transport = VERSION_1 | ACCESS_PLATFORM | NOTIFICATION_DATA | RING_RESET;
        self.device.features() | transport | INDIRECT_DESC | EVENT_IDX | rings
    }

    fn selected(&mut self) -> Option<&mut Queue> {
        self.queues.get_mut(usize::from(self.registers.queue_select))
    }

    /// The bytes of the common configuration as they read now.
    fn common(&mut self) -> [u8; COMMON_LEN] {
        let offered = self.offered();
        let Registers { device_feature_select, driver_feature_select, driver_feature, .. } = self.registers;
        // Two words of features exist; others read as zero.
        let word = |bits: u64, select: u32| if select < 2 { bits >> (32 * select) & 0xffff_ffff } else { 0 };
        let mut fields = vec![
            (Field::DeviceFeatureSelect, u64::from(device_feature_select)),
            (Field::DeviceFeature, word(offered, device_feature_select)),
            (Field::DriverFeatureSelect, u64::from(driver_feature_select)),
            (Field::DriverFeature, word(driver_feature, driver_feature_select)),
            (Field::ConfigVector, u64::from(self.registers.config_vector)),
            (Field::NumQueues, u64::from(self.device.num_queues())),
            (Field::Status, u64::from(self.status)),
            (Field::ConfigGeneration, u64::from(self.registers.config_generation)),
            (Field::QueueSelect, u64::from(self.registers.queue_select)),
        ];
        let index = self.registers.queue_select;
        if let Some(queue) = self.selected() {
            // A queue that does not exist reads as size zero (virtio 1.2, 4.1.5.1.3).
            fields.extend([
                (Field::QueueSize, u64::from(queue.config.size)),
                (Field::QueueVector, u64::from(queue.vector)),
                (Field::QueueEnable, u64::from(queue.enabled)),
                (Field::QueueNotifyOff, u64::from(index)),
                (Field::QueueDesc, queue.config.desc),
                (Field::QueueDriver, queue.config.driver),
                (Field::QueueDevice, queue.config.device),
                (Field::QueueNotifyData, u64::from(index)),
                (Field::QueueReset, u64::from(queue.resetting)),
            ]);
        }
        registers::image(&fields)
    }

    fn write_common(&mut self, offset: u64, data: &[u8]) {
        let image = self.common();
        for (field, value) in registers::patch(image, offset, data) {
            self.set(field, value);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "`patch` gives each field a value of its own width")]
    fn set(&mut self, field: Field, value: u64) {
        let starts = matches!(field, Field::Status | Field::QueueEnable | Field::QueueReset) && value != 0;
        if starts && self.resetting {
            // The driver has to wait until the status reads zero (virtio 1.2, 4.1.4.3.2). The reset knows of the queues that
            // there were when it began: one that starts now would run on behind it.
            return;
        }
        let running = self.status & status::DRIVER_OK != 0;
        let vectors = self.layout.vectors;
        // A vector that does not exist reads back as none (virtio 1.2, 4.1.5.1.2.1).
        let vector = if value < u64::from(vectors) { value as u16 } else { NO_VECTOR };
        match field {
            Field::DeviceFeatureSelect => self.registers.device_feature_select = value as u32,
            Field::DriverFeatureSelect => self.registers.driver_feature_select = value as u32,
            Field::DriverFeature => {
                let select = self.registers.driver_feature_select;
                if select < 2 && self.status & status::FEATURES_OK == 0 {
                    let bits = &mut self.registers.driver_feature;
                    *bits = *bits & !(0xffff_ffff << (32 * select)) | value << (32 * select);
                }
            }
            Field::ConfigVector => self.registers.config_vector = vector,
            Field::Status => self.set_status(value as u8),
            Field::QueueSelect => self.registers.queue_select = value as u16,
            Field::QueueVector => {
                if let Some(queue) = self.selected() {
                    queue.vector = vector;
                    if let Some(control) = &queue.control {
                        control.set_vector(vector);
                    }
                }
            }
            Field::QueueEnable => self.enable_selected(value == 1, running),
            Field::QueueReset if value == 1 => self.reset_selected(),
            _ => self.set_ring(field, value),
        }
    }

    /// Size and addresses: fixed while the queue is enabled.
    #[expect(clippy::cast_possible_truncation, reason = "`patch` gives each field a value of its own width")]
    fn set_ring(&mut self, field: Field, value: u64) {
        let largest = self.device.queue_size();
        let Some(queue) = self.selected().filter(|queue| !queue.enabled) else { return };
        match field {
            Field::QueueSize if (1..=u64::from(largest)).contains(&value) => queue.config.size = value as u16,
            Field::QueueDesc => queue.config.desc = value,
            Field::QueueDriver => queue.config.driver = value,
            Field::QueueDevice => queue.config.device = value,
            _ => {}
        }
    }

    fn enable_selected(&mut self, on: bool, running: bool) {
        let index = self.registers.queue_select;
        // Only a reset takes the bit away again (virtio 1.2, 4.1.4.3.2).
        let Some(queue) = self.selected().filter(|queue| on && !queue.enabled) else { return };
        queue.enabled = true;
        if running {
            self.start_queue(usize::from(index));
        }
    }

    /// Resets one queue (virtio 1.2, 2.6.1).
    fn reset_selected(&mut self) {
        if self.registers.driver_feature & feature::RING_RESET == 0 {
            return;
        }
        if let Some(queue) = self.selected() {
            queue.resetting = true;
            queue.stop();
        }
    }

    fn set_status(&mut self, value: u8) {
        if value == 0 {
            self.reset();
            return;
        }
        let added = value & !self.status;
        // Bits are only added, and NEEDS_RESET is ours (virtio 1.2, 2.1.1).
        self.status |= added & !status::NEEDS_RESET;
        if added & status::FEATURES_OK != 0 {
            let accepted = self.registers.driver_feature;
            if accepted & !self.offered() != 0 || accepted & feature::VERSION_1 == 0 {
                tracing::warn!(
                    features = format!("{accepted:#x}"),
                    "the driver's features cannot be agreed to"
                );
                self.status &= !status::FEATURES_OK;
            }
        }
        if added & status::DRIVER_OK != 0 {
            if self.status & status::FEATURES_OK == 0 {
                self.status &= !status::DRIVER_OK;
                return;
            }
            for index in 0..self.queues.len() {
                if self.queues[index].enabled {
                    self.start_queue(index);
                }
            }
        }
    }

    fn start_queue(&mut self, index: usize) {
        let features = self.registers.driver_feature;
        let queue = &mut self.queues[index];
        queue.config.features = features;
        let doorbell = Arc::clone(&self.doorbell);
        let control = Arc::new(QueueControl::new(queue.vector, doorbell, self.home.waker.clone()));
        queue.control = Some(Arc::clone(&control));
        let layout = match queue.config.check() {
            Ok(layout) => layout,
            Err(error) => {
                tracing::warn!(queue = index, %error, "the driver's queue cannot be; the device needs a reset");
                control.ended(QueueState::Failed, Position::default());
                return;
            }
        };
        let number = u16::try_from(index).expect("at most MAX_QUEUES");
        let start = owner::Start {
            name: format!("{}_q{index}", self.home.group.name()),
            group: self.home.group.clone(),
            bus: Arc::clone(&self.bus),
            control,
            layout,
            position: queue.position,
            moderation: self.options.moderation,
            queue_size: self.device.queue_size(),
            handler: self.device.handler(number, features),
        };
        let reactor =
            queue.reactor.get_or_insert_with(|| self.home.reactors[index % self.home.reactors.len()].clone());
        // Without room for the message the queue stays unsent; `progress` tries again.
        let sent = match layout.format() {
            Format::Split => owner::start::<SplitRing, _>(reactor, start),
            Format::Packed => owner::start::<PackedRing, _>(reactor, start),
        };
        queue.unsent = sent.is_err();
    }

    /// Resends what found no room, ends resets of single queues, notices queues that failed.
    fn tend_queues(&mut self) -> bool {
        let mut settled = true;
        let mut failed = false;
        for index in 0..self.queues.len() {
            if self.queues[index].unsent {
                self.start_queue(index);
            }
            let queue = &mut self.queues[index];
            let Some(control) = &queue.control else {
                if std::mem::take(&mut queue.resetting) {
                    queue.enabled = false;
                }
                continue;
            };
            settled &= control.is_settled();
            match control.state() {
                QueueState::Failed if !queue.resetting => failed = true,
                QueueState::Faulted => self.faulted = true,
                QueueState::Failed | QueueState::Stopped => {
                    queue.position = Some(control.position());
                    queue.control = None;
                    if std::mem::take(&mut queue.resetting) {
                        queue.enabled = false;
                        queue.position = None;
                    }
                    if std::mem::take(&mut queue.moving) && queue.enabled && !self.resetting {
                        self.start_queue(index);
                        settled = false;
                    }
                }
                QueueState::Starting | QueueState::Running => {}
            }
        }
        if failed && !self.resetting && self.status & status::NEEDS_RESET == 0 {
            self.status |= status::NEEDS_RESET;
            if self.status & status::DRIVER_OK != 0 {
                self.notify_config();
            }
        }
        settled
    }

    /// Tells the driver to look at status and configuration (virtio 1.2, 4.1.5.3).
    fn notify_config(&mut self) {
        self.bus.irqs.raise_vector(self.registers.config_vector);
        self.bus.irqs.raise_isr(ISR_CONFIG);
    }

    /// The device-specific configuration changed: a new generation, and an interrupt.
    fn config_changed(&mut self) {
        self.registers.config_generation = self.registers.config_generation.wrapping_add(1);
        if self.status & status::DRIVER_OK != 0 {
            self.notify_config();
        }
    }

    fn kick(&mut self, offset: u64) {
        let index = usize::try_from(offset / u64::from(NOTIFY_MULTIPLIER)).unwrap_or(usize::MAX);
        if let Some(control) = self.queues.get(index).and_then(|queue| queue.control.as_ref()) {
            control.kick();
        }
    }
}

/// A page that a guest maps and nobody reads: kicks to it are seen by polling the rings.
fn notify_page() -> Option<std::os::fd::OwnedFd> {
    let flags = rustix::fs::MemfdFlags::CLOEXEC;
    let made = rustix::fs::memfd_create("ringside-notify", flags).and_then(|fd| {
        rustix::fs::ftruncate(&fd, u64::from(BAR_LEN))?;
        Ok(fd)
    });
    made.inspect_err(|error| tracing::error!(%error, "no page to map for doorbells; they are trapped")).ok()
}

impl<D: VirtioDevice> DeviceModel for VirtioPci<D> {
    fn layout(&self) -> &Layout {
        &self.layout
    }

    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        data.fill(0);
        if bar != BAR {
            return;
        }
        let (window, at) = (offset & !(WINDOW - 1), offset & (WINDOW - 1));
        match window {
            COMMON => registers::copy(&self.common(), at, data),
            ISR if at == 0 => {
                if let Some(first) = data.first_mut() {
                    *first = self.bus.irqs.take_isr();
                }
            }
            DEVICE => self.device.read_config(at, data),
            _ => {}
        }
    }

    fn write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if bar != BAR {
            return;
        }
        let (window, at) = (offset & !(WINDOW - 1), offset & (WINDOW - 1));
        match window {
            COMMON => self.write_common(at, data),
            DEVICE => self.device.write_config(at, data),
            NOTIFY => self.kick(at),
            _ => {}
        }
    }

    fn mappable(&self, bar: u8) -> Option<Mappable<'_>> {
        use std::os::fd::AsFd;
        let fd = self.notify_page.as_ref().filter(|_| bar == BAR)?.as_fd();
        Some(Mappable { fd, fd_offset: 0, offset: NOTIFY, size: WINDOW })
    }

    fn window_cap(&self) -> Option<usize> {
        Some(WINDOW_CAP)
    }

    fn is_faulted(&self) -> bool {
        self.faulted
    }

    fn place(&mut self, reactors: &[Handle]) {
        self.home.reactors = reactors.to_vec();
        for index in 0..self.queues.len() {
            let number = u16::try_from(index).expect("at most MAX_QUEUES");
            self.move_queue(number, &reactors[index % reactors.len()]);
        }
    }

    fn move_queue(&mut self, queue: u16, to: &Handle) -> bool {
        let Some(queue) = self.queues.get_mut(usize::from(queue)) else { return false };
        let stays = queue.reactor.as_ref().is_some_and(|reactor| reactor.core() == to.core());
        queue.reactor = Some(to.clone());
        // One that is not sent yet will be sent there.
        if let Some(control) = queue.control.as_ref().filter(|_| !stays && !queue.unsent) {
            queue.moving = true;
            control.stop();
        }
        true
    }

    fn sync(&mut self) {
        for control in self.queues.iter().filter_map(|queue| queue.control.as_ref()) {
            control.sync();
        }
    }

    fn adopt(&mut self) {
        for control in self.queues.iter().filter_map(|queue| queue.control.as_ref()) {
            control.adopt();
        }
    }

    fn doorbells(&self, bar: u8) -> Vec<(u64, usize)> {
        // Drivers kick with 16 bits (virtio 1.2, 4.1.5.2).
        let at = |queue: u16| NOTIFY + u64::from(queue) * u64::from(NOTIFY_MULTIPLIER);
        if bar == BAR {
            (0..self.device.num_queues()).map(|queue| (at(queue), 2)).collect()
        } else {
            Vec::new()
        }
    }

    fn is_doorbell(&self, bar: u8, offset: u64) -> bool {
        bar == BAR && offset >= NOTIFY
    }

    fn reset(&mut self) {
        self.resetting = true;
        self.queues.iter_mut().for_each(Queue::stop);
    }

    fn describe(&self) -> DeviceDescription {
        let queues = (0..).zip(&self.queues).map(|(index, queue)| match &queue.control {
            Some(control) => control.describe(index, queue.config.size),
            None => QueueDescription {
                index,
                size: queue.config.size,
                state: "disabled",
                vector: None,
                requests: 0,
                interrupts: 0,
                kicks: 0,
                stages: StageReading::default(),
            },
        });
        DeviceDescription {
            kind: spec::device_name(self.device.id()),
            doorbell: self.doorbell.mode().name(),
            is_running: self.status & status::DRIVER_OK != 0,
            queues: queues.collect(),
        }
    }

    fn progress(&mut self) -> Progress {
        match self.device.take_event() {
            Some(DeviceEvent::ConfigChanged) => self.config_changed(),
            Some(DeviceEvent::BackendChanged) => self.sync(),
            None => {}
        }
        let settled = self.tend_queues();
        if !settled {
            return Progress::Pending;
        }
        if std::mem::take(&mut self.resetting) {
            self.power_on();
            self.bus.irqs.take_isr();
        }
        Progress::Done
    }
}
