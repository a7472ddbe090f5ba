//! Interrupts of one device: set up by the client on the endpoint's reactor, raised by the queues on theirs.
//!
//! An interrupt without an eventfd, masked, or raised before the driver switched interrupts on is latched and fires
//! when that changes; none is lost. A queue keeps a [`Signal`] of its own, so raising takes no lock.

use std::{
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU8, AtomicU32, Ordering, fence},
    },
};

use rustix::io::Errno;

/// One interrupt: an MSI-X vector, or the INTx pin.
#[derive(Debug, Default)]
struct Line {
    eventfd: Mutex<Option<Arc<OwnedFd>>>,
    /// Raised while it could not fire. The PBA bit of a vector.
    pending: AtomicBool,
    masked: AtomicBool,
}

impl Line {
    fn eventfd(&self) -> Option<Arc<OwnedFd>> {
        self.eventfd.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn assign(&self, eventfd: Option<OwnedFd>) {
        *self.eventfd.lock().unwrap_or_else(PoisonError::into_inner) = eventfd.map(Arc::new);
        self.fire_pending();
    }

    /// Fires what was latched, if it can fire now.
    fn fire_pending(&self) {
        if self.masked.load(Ordering::Acquire) {
            return;
        }
        if let Some(eventfd) = self.eventfd()
            && self.pending.swap(false, Ordering::AcqRel)
        {
            fire(&eventfd);
        }
    }
}

/// Adds one to an eventfd.
fn fire(eventfd: &OwnedFd) {
    // EAGAIN: the counter is at its end, so the client has an interrupt to see anyway. Other errors mean that the
    // client broke its own descriptor, and nobody but the client waits for it.
    let _ = rustix::io::write(eventfd, &1_u64.to_ne_bytes());
}

/// Why an eventfd is not taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AssignError {
    /// Not an eventfd: a write to anything else could block the reactor.
    #[error("the file descriptor is not an eventfd")]
    NotEventFd,
    /// It could not be made non-blocking.
    #[error("the eventfd cannot be made non-blocking: {0}")]
    Flags(Errno),
}

/// Checks a descriptor from a client: an eventfd, made non-blocking so that raising never blocks.
///
/// # Errors
/// See [`AssignError`].
pub fn check_eventfd(fd: OwnedFd) -> Result<OwnedFd, AssignError> {
    use std::os::fd::AsRawFd;
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    if !link.is_ok_and(|link| link.as_os_str() == "anon_inode:[eventfd]") {
        return Err(AssignError::NotEventFd);
    }
    let flags = rustix::fs::fcntl_getfl(&fd).map_err(AssignError::Flags)?;
    rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK).map_err(AssignError::Flags)?;
    Ok(fd)
}

/// Message control of the MSI-X capability (PCI Local Bus 3.0, 6.8.2.3).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MsixControl {
    /// MSI-X Enable.
    pub enabled: bool,
    /// Function Mask: every vector is masked.
    pub masked: bool,
}

/// No MSI-X vector (virtio 1.2, 4.1.4.3: VIRTIO_MSI_NO_VECTOR).
pub const NO_VECTOR: u16 = 0xffff;

/// The interrupts of one device.
#[derive(Debug)]
pub struct Irqs {
    vectors: Box<[Line]>,
    intx: Line,
    /// Error and release requests: the client may set them up; no device of ours raises them.
    err: Line,
    req: Line,
    /// The MSI-X capability is enabled: the pin is out of use (PCI Local Bus 3.0, 6.8.2.3).
    msix_enabled: AtomicBool,
    /// Its function mask is on.
    msix_masked: AtomicBool,
    /// Bus mastering, without which a device sends no message (PCI Local Bus 3.0, 6.2.2).
    bus_master: AtomicBool,
    /// The command register forbids INTx (bit 10).
    intx_disabled: AtomicBool,
    /// Interrupt status byte of a virtio device (virtio 1.2, 4.1.4.5); other devices leave it zero.
    isr: AtomicU8,
    /// Queues that hold the pin up until their driver has looked (NVMe over PCIe 1.0c, 3.5.1.1).
    levels: AtomicU32,
    /// The device's own mask of the pin (NVMe: INTMS).
    pin_masked: AtomicBool,
}

impl Irqs {
    /// `vectors` MSI-X vectors and INTx.
    #[must_use]
    pub fn new(vectors: u16) -> Self {
        Self {
            vectors: (0..vectors).map(|_| Line::default()).collect(),
            intx: Line::default(),
            err: Line::default(),
            req: Line::default(),
            msix_enabled: AtomicBool::new(false),
            msix_masked: AtomicBool::new(false),
            bus_master: AtomicBool::new(false),
            intx_disabled: AtomicBool::new(false),
            isr: AtomicU8::new(0),
            levels: AtomicU32::new(0),
            pin_masked: AtomicBool::new(false),
        }
    }

    /// Interrupts of a type (`wire::spec::irq`).
    #[must_use]
    pub fn count(&self, index: u32) -> u32 {
        use crate::wire::spec::irq;
        match index {
            irq::MSIX => u32::try_from(self.vectors.len()).unwrap_or(u32::MAX),
            irq::INTX | irq::ERR | irq::REQ => 1,
            _ => 0,
        }
    }

    fn line(&self, index: u32, number: u32) -> Option<&Line> {
        use crate::wire::spec::irq;
        match index {
            irq::MSIX => self.vectors.get(number as usize),
            irq::INTX => Some(&self.intx),
            irq::ERR => Some(&self.err),
            irq::REQ => Some(&self.req),
            _ => None,
        }
    }

    /// Sets or takes away the eventfd of an interrupt; what was latched fires.
    pub fn assign(&self, index: u32, number: u32, eventfd: Option<OwnedFd>) {
        let Some(line) = self.line(index, number) else { return };
        if index == crate::wire::spec::irq::INTX {
            // A pin is handed over unmasked, as by the kernel's vfio.
            line.masked.store(false, Ordering::Release);
            line.assign(eventfd);
            self.raise_pin_if_up();
            return;
        }
        line.assign(eventfd);
    }

    /// Whether the pin is up: a cause is there that nobody has taken, and MSI-X does not stand in for it.
    #[must_use]
    pub fn pin_is_up(&self) -> bool {
        let up = self.isr.load(Ordering::Acquire) != 0 || self.levels.load(Ordering::Acquire) != 0;
        up && !self.msix_enabled.load(Ordering::Acquire)
    }

    /// The pin is level-triggered: what was raised while nobody could be told is told now. Call after the store that lets
    /// it be told.
    fn raise_pin_if_up(&self) {
        // Pairs with those of `raise_isr` and `assert_level`: we store that the pin can fire and look whether it is up, they
        // store that it is up and look whether it can fire. Without a full fence on both sides both could miss.
        fence(Ordering::SeqCst);
        if self.pin_is_up() {
            self.raise_intx();
        }
    }

    /// Masks an interrupt.
    pub fn mask(&self, index: u32, number: u32) {
        if let Some(line) = self.line(index, number) {
            line.masked.store(true, Ordering::Release);
        }
    }

    /// Unmasks an interrupt. The pin fires again while the status byte is not read: it is level-triggered.
    pub fn unmask(&self, index: u32, number: u32) {
        let Some(line) = self.line(index, number) else { return };
        line.masked.store(false, Ordering::Release);
        if index == crate::wire::spec::irq::INTX {
            line.pending.store(false, Ordering::Release);
            self.raise_pin_if_up();
        } else {
            line.fire_pending();
        }
    }

    /// Fires an interrupt at the client's wish (SET_IRQS with ACTION_TRIGGER and no eventfd).
    pub fn trigger(&self, index: u32, number: u32) {
        if let Some(line) = self.line(index, number) {
            line.pending.store(true, Ordering::Release);
            line.fire_pending();
        }
    }

    /// Follows the command register and the MSI-X capability. Latched vectors fire when they can.
    pub fn configure(&self, bus_master: bool, msix: MsixControl, intx_disabled: bool) {
        self.bus_master.store(bus_master, Ordering::Release);
        self.intx_disabled.store(intx_disabled, Ordering::Release);
        self.msix_enabled.store(msix.enabled, Ordering::Release);
        self.msix_masked.store(msix.masked, Ordering::Release);
        // As in `raise_vector`, the other way round: our word first, then theirs.
        fence(Ordering::SeqCst);
        if self.vectors_can_fire() {
            self.vectors.iter().for_each(Line::fire_pending);
        }
        self.raise_pin_if_up();
    }

    fn vectors_can_fire(&self) -> bool {
        self.bus_master.load(Ordering::Acquire)
            && self.msix_enabled.load(Ordering::Acquire)
            && !self.msix_masked.load(Ordering::Acquire)
    }

    /// Forgets everything latched: the device was reset. The eventfds stay; they belong to the client.
    pub fn reset(&self) {
        self.isr.store(0, Ordering::Release);
        for line in self.vectors.iter().chain([&self.intx]) {
            line.pending.store(false, Ordering::Release);
        }
        self.intx.masked.store(false, Ordering::Release);
        self.configure(false, MsixControl::default(), false);
    }

    /// Closes every eventfd: the client is gone.
    pub fn release(&self) {
        self.reset();
        for line in self.vectors.iter().chain([&self.intx, &self.err, &self.req]) {
            line.masked.store(false, Ordering::Release);
            line.assign(None);
        }
    }

    /// Sets bits of the status byte and, without MSI-X, raises the pin.
    pub fn raise_isr(&self, bits: u8) {
        self.isr.fetch_or(bits, Ordering::AcqRel);
        // Pairs with that of `raise_pin_if_up`.
        fence(Ordering::SeqCst);
        if !self.msix_enabled.load(Ordering::Acquire) {
            self.raise_intx();
        }
    }

    /// Reads the status byte, which clears it and so takes the pin down (virtio 1.2, 4.1.4.5).
    pub fn take_isr(&self) -> u8 {
        self.isr.swap(0, Ordering::AcqRel)
    }

    /// A queue holds the pin up from now on, and raises it next.
    pub fn assert_level(&self) {
        self.levels.fetch_add(1, Ordering::AcqRel);
        // Pairs with that of `raise_pin_if_up`.
        fence(Ordering::SeqCst);
    }

    /// A queue lets go of the pin.
    pub fn deassert_level(&self) {
        self.levels.fetch_sub(1, Ordering::AcqRel);
    }

    /// Masks the pin in the device, or takes the mask away; what is up then fires.
    pub fn mask_pin(&self, on: bool) {
        self.pin_masked.store(on, Ordering::Release);
        if !on {
            self.raise_pin_if_up();
        }
    }

    fn raise_intx(&self) {
        if self.pin_masked.load(Ordering::Acquire) {
            return;
        }
        while !self.intx_disabled.load(Ordering::Acquire) && !self.intx.masked.swap(true, Ordering::AcqRel) {
            // Automasked: the client unmasks it when its guest has looked.
            if let Some(eventfd) = self.intx.eventfd() {
                fire(&eventfd);
                return;
            }
            self.intx.masked.store(false, Ordering::Release);
            // One that was assigned meanwhile found the pin masked, by us, and was not told.
            if self.intx.eventfd().is_none() {
                return;
            }
        }
    }

    /// Raises a vector from the endpoint's reactor.
    pub fn raise_vector(&self, vector: u16) {
        if let Some(line) = self.vectors.get(usize::from(vector)) {
            line.pending.store(true, Ordering::Release);
            // Without a full fence we could miss that it was just enabled, and `configure` that it is pending.
            fence(Ordering::SeqCst);
            if self.vectors_can_fire() {
                line.fire_pending();
            }
        }
    }

    /// The pending bit of a vector, for the PBA.
    #[must_use]
    pub fn is_pending(&self, vector: usize) -> bool {
        self.vectors.get(vector).is_some_and(|line| line.pending.load(Ordering::Acquire))
    }

    /// What a queue with this vector raises, as things are now. The queue takes a new one when they change.
    #[must_use]
    pub fn signal(self: &Arc<Self>, vector: u16) -> Signal {
        let can_fire = self.vectors_can_fire();
        let target = if !self.msix_enabled.load(Ordering::Acquire) {
            Target::Pin
        } else {
            match self.vectors.get(usize::from(vector)) {
                None => Target::Nowhere,
                Some(line) => {
                    match line.eventfd().filter(|_| can_fire && !line.masked.load(Ordering::Acquire)) {
                        Some(eventfd) => {
                            line.fire_pending();
                            Target::EventFd(eventfd)
                        }
                        None => Target::Latch(vector),
                    }
                }
            }
        };
        Signal { irqs: Arc::clone(self), target }
    }
}

#[derive(Debug)]
enum Target {
    /// MSI-X is on, and the queue has no vector: the driver polls.
    Nowhere,
    /// MSI-X is off.
    Pin,
    /// The vector cannot fire now.
    Latch(u16),
    /// The vector's eventfd.
    EventFd(Arc<OwnedFd>),
}

/// A queue's own copy of where its interrupt goes.
#[derive(Debug)]
pub struct Signal {
    irqs: Arc<Irqs>,
    target: Target,
}

/// Status bit of a queue interrupt (virtio 1.2, 4.1.4.5).
const ISR_QUEUE: u8 = 1;

impl Signal {
    /// Raises the interrupt: at most one system call, no lock but on the INTx path.
    pub fn raise(&self) {
        match &self.target {
            Target::Nowhere => {}
            Target::EventFd(eventfd) => fire(eventfd),
            Target::Latch(vector) => self.irqs.raise_vector(*vector),
            Target::Pin => self.irqs.raise_isr(ISR_QUEUE),
        }
    }

    /// Raises the interrupt of a device whose pin is a level without a status byte: the caller has asserted it.
    pub fn raise_level(&self) {
        match &self.target {
            Target::Pin => self.irqs.raise_intx(),
            _ => self.raise(),
        }
    }

    /// Whether it goes to the pin.
    #[must_use]
    pub fn is_pin(&self) -> bool {
        matches!(self.target, Target::Pin)
    }
}

/// Makes an eventfd for tests and for the guest's side.
///
/// # Errors
/// The kernel's.
pub fn eventfd() -> Result<OwnedFd, Errno> {
    rustix::event::eventfd(0, rustix::event::EventfdFlags::NONBLOCK | rustix::event::EventfdFlags::CLOEXEC)
}

/// Takes the count of an eventfd; zero when nothing was raised.
pub fn take_eventfd(eventfd: impl AsFd) -> u64 {
    let mut count = [0; 8];
    rustix::io::read(eventfd, &mut count).map_or(0, |_| u64::from_ne_bytes(count))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::spec::irq;

    const ON: MsixControl = MsixControl { enabled: true, masked: false };

    fn enabled() -> (Arc<Irqs>, OwnedFd) {
        let irqs = Arc::new(Irqs::new(2));
        irqs.configure(true, ON, false);
        let fd = eventfd().unwrap();
        irqs.assign(irq::MSIX, 1, Some(fd.try_clone().unwrap()));
        (irqs, fd)
    }

    #[test]
    fn vector_fires_its_eventfd() {
        let (irqs, fd) = enabled();
        irqs.signal(1).raise();
        assert_eq!(take_eventfd(&fd), 1);
    }

    #[test]
    fn vector_raised_before_assignment_fires_on_assignment() {
        let (irqs, _) = enabled();
        irqs.signal(0).raise();
        assert!(irqs.is_pending(0));
        let late = eventfd().unwrap();
        irqs.assign(irq::MSIX, 0, Some(late.try_clone().unwrap()));
        assert_eq!(take_eventfd(&late), 1);
        assert!(!irqs.is_pending(0));
    }

    #[test]
    fn masked_vector_is_latched_and_fires_once_on_unmask() {
        let (irqs, fd) = enabled();
        irqs.mask(irq::MSIX, 1);
        let signal = irqs.signal(1);
        signal.raise();
        signal.raise();
        assert_eq!(take_eventfd(&fd), 0);
        irqs.unmask(irq::MSIX, 1);
        assert_eq!(take_eventfd(&fd), 1);
    }

    #[test]
    fn function_mask_latches_and_does_not_bring_the_pin_back() {
        let (irqs, fd) = enabled();
        let pin = eventfd().unwrap();
        irqs.assign(irq::INTX, 0, Some(pin.try_clone().unwrap()));
        irqs.configure(true, MsixControl { enabled: true, masked: true }, false);
        irqs.signal(1).raise();
        assert_eq!((take_eventfd(&fd), take_eventfd(&pin)), (0, 0));
        assert!(irqs.is_pending(1));
        irqs.configure(true, ON, false);
        assert_eq!(take_eventfd(&fd), 1);
    }

    #[test]
    fn bus_master_off_latches_until_it_is_on() {
        let (irqs, fd) = enabled();
        irqs.configure(false, ON, false);
        irqs.signal(1).raise();
        assert_eq!(take_eventfd(&fd), 0);
        irqs.configure(true, ON, false);
        assert_eq!(take_eventfd(&fd), 1);
    }

    #[test]
    fn pin_fires_once_until_unmasked_and_again_while_the_status_is_unread() {
        let irqs = Arc::new(Irqs::new(1));
        irqs.configure(true, MsixControl::default(), false);
        let fd = eventfd().unwrap();
        irqs.assign(irq::INTX, 0, Some(fd.try_clone().unwrap()));
        let signal = irqs.signal(0);
        signal.raise();
        signal.raise();
        assert_eq!(take_eventfd(&fd), 1);
        irqs.unmask(irq::INTX, 0);
        assert_eq!(take_eventfd(&fd), 1, "the status byte was not read");
        assert_eq!(irqs.take_isr(), 1);
        irqs.unmask(irq::INTX, 0);
        assert_eq!(take_eventfd(&fd), 0);
    }

    /// Each side stores its own word and looks at the other's: both could miss, a few hundred times here.
    #[test]
    fn pin_raised_while_it_is_unmasked_fires() {
        const ROUNDS: u32 = 200_000;
        // A loaded machine has fewer rounds, rather than a test that takes minutes.
        const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);
        let irqs = Arc::new(Irqs::new(1));
        irqs.configure(true, MsixControl::default(), false);
        let fd = eventfd().unwrap();
        irqs.assign(irq::INTX, 0, Some(fd.try_clone().unwrap()));
        let (arrived, is_over) = (Arc::new(AtomicU32::new(0)), Arc::new(AtomicBool::new(false)));
        let meet = |arrived: &AtomicU32| {
            let all = arrived.fetch_add(1, Ordering::AcqRel) / 2 * 2 + 2;
            let mut looks = 0;
            while arrived.load(Ordering::Acquire) < all {
                looks += 1;
                if looks < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
            }
        };
        let signal = irqs.signal(0);
        let theirs = (Arc::clone(&arrived), Arc::clone(&is_over));
        let queue = std::thread::spawn(move || {
            loop {
                meet(&theirs.0);
                if theirs.1.load(Ordering::Acquire) {
                    return;
                }
                signal.raise();
                meet(&theirs.0);
            }
        });
        let (start, mut lost) = (std::time::Instant::now(), 0);
        for _ in (0..ROUNDS).take_while(|_| start.elapsed() < PATIENCE) {
            irqs.mask(irq::INTX, 0);
            meet(&arrived);
            irqs.unmask(irq::INTX, 0);
            meet(&arrived);
            lost += u32::from(take_eventfd(&fd) == 0);
            irqs.take_isr();
        }
        is_over.store(true, Ordering::Release);
        meet(&arrived);
        queue.join().unwrap();
        assert_eq!(lost, 0);
    }

    #[test]
    fn pin_raised_before_it_had_an_eventfd_or_while_it_was_disabled_fires_when_it_can() {
        let irqs = Arc::new(Irqs::new(1));
        irqs.configure(true, MsixControl::default(), true);
        irqs.signal(0).raise();
        let fd = eventfd().unwrap();
        irqs.assign(irq::INTX, 0, Some(fd.try_clone().unwrap()));
        assert_eq!(take_eventfd(&fd), 0, "the command register forbids it");
        irqs.configure(true, MsixControl::default(), false);
        assert_eq!(take_eventfd(&fd), 1);
        irqs.assign(irq::INTX, 0, None);
        assert!(irqs.pin_is_up());
        irqs.take_isr();
        assert!(!irqs.pin_is_up());
    }

    #[test]
    fn file_that_is_no_eventfd_is_refused() {
        let (reader, _writer) = std::io::pipe().unwrap();
        assert_eq!(check_eventfd(reader.into()).unwrap_err(), AssignError::NotEventFd);
        assert!(check_eventfd(eventfd().unwrap()).is_ok());
    }
}
