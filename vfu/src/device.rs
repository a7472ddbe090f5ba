//! What a device model is to the rest of this crate, and what it is given to work with.
//!
//! A model (virtio, NVMe) sees guest memory, interrupts and bdev channels; never a message of a front door. A front
//! door ([`crate::endpoint`]) sees a [`Function`](crate::function::Function); never a queue.

use std::{
    os::fd::BorrowedFd,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use reactor::{Group, Handle, Waker};

use crate::{
    dma::{Remote, Windows},
    irq::Irqs,
    pci::Layout,
    stages::StageReading,
};

/// The wires between a device and its guest: shared by the endpoint and by every queue of the device.
#[derive(Debug)]
pub struct Bus {
    /// Guest memory.
    pub windows: Windows,
    /// The way to windows that only messages reach.
    pub remote: Remote,
    /// Interrupts.
    pub irqs: Arc<Irqs>,
    bus_master: AtomicBool,
}

impl Bus {
    /// A bus for a device with so many MSI-X vectors, without memory, mastering off.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        Self {
            windows: Windows::default(),
            remote: Remote::default(),
            irqs: Arc::new(Irqs::new(vectors)),
            bus_master: AtomicBool::new(false),
        }
    }

    /// Whether the device may reach guest memory (PCI Local Bus 3.0, 6.2.2: Bus Master).
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
    }

    pub(crate) fn set_bus_master(&self, on: bool) {
        self.bus_master.store(on, Ordering::Release);
    }
}

/// Whether something a model was told to do has been done by all of its queues.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Done.
    Done,
    /// Queues are still at it; the model's [`Home::waker`] is woken when that changes.
    Pending,
}

/// Wakes the endpoint's poller, on whichever reactor it lives. For what happens now and then: it takes a lock.
#[derive(Clone, Debug)]
pub struct HomeWaker(Arc<Mutex<Waker>>);

impl HomeWaker {
    /// Wakes the poller that `waker` belongs to.
    #[must_use]
    pub fn new(waker: Waker) -> Self {
        Self(Arc::new(Mutex::new(waker)))
    }

    /// Call after the news is where the poller will look for it.
    pub fn wake(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).wake();
    }

    /// The poller has moved. It must look at everything once more: what was told meanwhile woke nobody.
    pub(crate) fn moved(&self, waker: Waker) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = waker;
    }
}

/// Where a device model lives, and where its queues may go.
#[derive(Clone, Debug)]
pub struct Home {
    /// Wakes the endpoint's poller, which then asks [`DeviceModel::progress`].
    pub waker: HomeWaker,
    /// The reactors of the endpoint's cpumask; queue n goes to reactor n modulo their number, until [`DeviceModel::place`]
    /// says otherwise.
    pub reactors: Vec<Handle>,
    /// The endpoint, as SPDK's clients see a thread.
    pub group: Group,
}

/// A part of a BAR that the guest may map.
#[derive(Debug)]
pub struct Mappable<'a> {
    /// The file behind it.
    pub fd: BorrowedFd<'a>,
    /// Where the BAR starts in the file.
    pub fd_offset: u64,
    /// Where the part starts in the BAR; a multiple of the page size.
    pub offset: u64,
    /// Bytes; a multiple of the page size.
    pub size: u64,
}

/// What a device is and does, for those who ask over RPC.
#[derive(Clone, Debug, Default)]
pub struct DeviceDescription {
    /// What it is: `virtio_blk`.
    pub kind: &'static str,
    /// How the driver's kicks arrive; empty where that is no question.
    pub doorbell: &'static str,
    /// The driver has set it up.
    pub is_running: bool,
    /// Its queues.
    pub queues: Vec<QueueDescription>,
}

/// One queue of a device.
#[derive(Clone, Copy, Debug)]
pub struct QueueDescription {
    /// Its number.
    pub index: u16,
    /// Entries.
    pub size: u16,
    /// Where it is in its life: `disabled`, `starting`, `running`, `stopped`, `failed`.
    pub state: &'static str,
    /// MSI-X vector; none if it interrupts nobody.
    pub vector: Option<u16>,
    /// Requests taken since it was started.
    pub requests: u64,
    /// Interrupts raised since.
    pub interrupts: u64,
    /// Kicks that arrived since.
    pub kicks: u64,
    /// Where its time went, of the passes that were timed.
    pub stages: StageReading,
}

/// A device behind a PCI function.
///
/// Every method runs on the endpoint's reactor, and none of them blocks: what has to wait for queues on other reactors
/// is started, and [`Self::progress`] tells when it is done. The caller starts nothing new before that, but it may ring a
/// doorbell at any time.
pub trait DeviceModel: Send {
    /// What the device is, as PCI. Never changes.
    fn layout(&self) -> &Layout;

    /// The guest reads a BAR. The range was checked against the BAR's size.
    fn read(&mut self, bar: u8, offset: u64, data: &mut [u8]);

    /// The guest writes a BAR. The range was checked against the BAR's size.
    fn write(&mut self, bar: u8, offset: u64, data: &[u8]);

    /// The part of a BAR that can be mapped; at most one per BAR, as QEMU takes one descriptor per region.
    fn mappable(&self, bar: u8) -> Option<Mappable<'_>>;

    /// Which vendor capability, counted from zero, is a window into the BARs (virtio 1.2, 4.1.4.9).
    fn window_cap(&self) -> Option<usize> {
        None
    }

    /// Deals the queues to these reactors, at least one. Live queues move: each finishes what it has in flight, and goes on
    /// where its ring stood.
    fn place(&mut self, reactors: &[Handle]);

    /// The endpoint itself moves to another reactor: what of the model runs beside it follows.
    fn follow_home(&mut self, reactor: &Handle) {
        let _ = reactor;
    }

    /// Moves one live queue, by its number as the device's kind counts them. False if there is no such queue.
    fn move_queue(&mut self, queue: u16, to: &Handle) -> bool;

    /// Memory, interrupts or bus mastering changed: every queue takes them anew.
    fn sync(&mut self);

    /// Memory was added, or eventfds changed: every queue takes them, and what is in flight need not finish first.
    fn adopt(&mut self) {
        self.sync();
    }

    /// Offsets and lengths in a BAR whose writes mean the same whatever is written: an eventfd can stand for each.
    fn doorbells(&self, bar: u8) -> Vec<(u64, usize)> {
        let _ = bar;
        Vec::new()
    }

    /// Whether a write that begins there only tells a queue to look: it starts nothing that [`Self::progress`] would tell of.
    fn is_doorbell(&self, bar: u8, offset: u64) -> bool {
        let _ = (bar, offset);
        false
    }

    /// Starts a reset to power-on state.
    fn reset(&mut self);

    /// Moves what was started on as far as it goes now.
    fn progress(&mut self) -> Progress;

    /// What it is and does.
    fn describe(&self) -> DeviceDescription {
        DeviceDescription::default()
    }

    /// Whether a part of it has panicked: it can no longer be trusted, and its endpoint is closed.
    fn is_faulted(&self) -> bool;
}
