//! Virtqueues: from what a driver wrote into registers ([`QueueConfig`]) to a ring whose addresses were checked, and
//! from there to chains of buffers.

mod chain;
mod in_order;
mod packed;
mod split;

pub use chain::{Chain, Head, Segment, Triple};
pub(super) use packed::Cursor;
pub use packed::PackedRing;
pub use split::SplitRing;

use crate::{
    dma::{Fault, View},
    virtio::spec::{MAX_QUEUE_SIZE, feature},
};

/// What a driver set up for one queue, as it wrote it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueConfig {
    /// Entries.
    pub size: u16,
    /// Guest address of the descriptor area.
    pub desc: u64,
    /// Guest address of the driver area.
    pub driver: u64,
    /// Guest address of the device area.
    pub device: u64,
    /// Agreed features.
    pub features: u64,
}

/// How a ring is laid out in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Three areas with indices (virtio 1.2, 2.7).
    Split,
    /// One ring of descriptors that both sides mark (virtio 1.2, 2.8).
    Packed,
}

/// A queue's configuration after its one check: size and alignment are as the format wants them. Only
/// [`QueueConfig::check`] makes it, and a [`Ring`] is made of nothing else.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RingLayout {
    config: QueueConfig,
    format: Format,
}

impl QueueConfig {
    /// Judges what the driver wrote. Whether the areas can be reached depends on the windows, which come and go:
    /// [`Ring::activate`] sees to that.
    ///
    /// # Errors
    /// See [`LayoutError`].
    pub fn check(self) -> Result<RingLayout, LayoutError> {
        let packed = self.features & feature::RING_PACKED != 0;
        // A packed ring may have any number of entries, a split one a power of two (virtio 1.2, 2.7 and 2.8.10).
        if !(1..=MAX_QUEUE_SIZE).contains(&self.size) || !(packed || self.size.is_power_of_two()) {
            return Err(LayoutError::Size(self.size));
        }
        let [driver_align, device_align] = if packed { [4, 4] } else { [2, 4] };
        for (addr, align) in [(self.desc, 16), (self.driver, driver_align), (self.device, device_align)] {
            if !addr.is_multiple_of(align) {
                return Err(LayoutError::Alignment(addr));
            }
        }
        Ok(RingLayout { config: self, format: if packed { Format::Packed } else { Format::Split } })
    }
}

impl RingLayout {
    /// How the ring is laid out.
    #[must_use]
    pub fn format(&self) -> Format {
        self.format
    }

    /// What the driver wrote.
    #[must_use]
    pub fn config(&self) -> QueueConfig {
        self.config
    }

    fn has(&self, bit: u64) -> bool {
        self.config.features & bit != 0
    }
}

/// What a driver set up for a queue and no ring can be: the device asks for a reset (virtio 1.2, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LayoutError {
    /// Zero, too large, or not a power of two where it must be.
    #[error("queue size {0}")]
    Size(u16),
    /// An area is not aligned (virtio 1.2, 2.7 and 2.8).
    #[error("ring area at {0:#x} is not aligned")]
    Alignment(u64),
}

/// Where a ring stands: all that has to be kept to go on with it elsewhere. A packed ring keeps its wrap counters in
/// the top bits, as vhost does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Next entry to take from the driver.
    pub avail: u16,
    /// Next entry to give back.
    pub used: u16,
}

/// Why a ring cannot start now. It may once more windows are mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivateError {
    /// An area is not in guest memory.
    #[error("ring area: {0}")]
    Fault(#[from] Fault),
    /// A position that this ring does not have.
    #[error("position {0:#x}")]
    Position(u16),
}

/// What a driver may not do to a ring. The device then stops the queue and asks for a reset.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingError {
    /// More entries available than there are.
    #[error("the available index runs ahead by {0}")]
    AvailIndex(u16),
    /// A head, or a link, outside the table.
    #[error("descriptor {0} does not exist")]
    Index(u16),
    /// A chain longer than its table: a loop.
    #[error("the descriptor chain loops")]
    Loop,
    /// A head that is in flight already.
    #[error("descriptor {0} is in flight already")]
    Reused(u16),
    /// An indirect table of a size that no table has, or inside another, or without the feature.
    #[error("bad indirect descriptor")]
    Indirect,
    /// A readable descriptor behind a writable one (virtio 1.2, 2.7.4.2).
    #[error("a readable descriptor follows a writable one")]
    Order,
    /// More than the device's queues have entries (virtio 1.2, 2.7.5.3.1).
    #[error("a descriptor chain is longer than the device's queues are")]
    TooLong,
    /// A table that cannot be read.
    #[error("descriptor table: {0}")]
    Fault(#[from] Fault),
}

/// A ring, as the device's side sees it.
///
/// Order of a pass: [`Self::pending`], for each chain [`Self::peek_triple`] or [`Self::pop`] and then [`Self::advance`] once it is accepted and
/// [`Self::has_next`], for each finished one [`Self::push_used`], and [`Self::publish`] at the end; then [`Self::wants_interrupt`], at once
/// or later. What is given back was advanced over before.
pub trait Ring: Sized {
    /// Where a new ring stands.
    const START: Position;

    /// Resolves the addresses of what was checked.
    ///
    /// # Errors
    /// See [`ActivateError`].
    fn activate(layout: &RingLayout, position: Position, view: &View) -> Result<Self, ActivateError>;

    /// Where the ring stands.
    fn position(&self) -> Position;

    /// Whether a chain waits; looks with acquire, so that everything the driver wrote before is seen.
    ///
    /// # Errors
    /// [`RingError::AvailIndex`].
    fn pending(&mut self) -> Result<bool, RingError>;

    /// Whether one more waits, asked after [`Self::advance`]: of those that [`Self::pending`] saw, and maybe newer ones.
    fn has_next(&self) -> bool;

    /// Copies the next chain's descriptors into `chain`, each read once. Does not take it off the ring.
    ///
    /// # Errors
    /// See [`RingError`].
    fn pop(&mut self, view: &View, chain: &mut Chain) -> Result<(), RingError>;

    /// The next chain if it is a [`Triple`], as [`Self::pop`] would copy it. None for any other, and for one that breaks a rule:
    /// those are for [`Self::pop`] to tell apart, which reads them anew.
    fn peek_triple(&self, view: &View) -> Option<Triple>;

    /// Takes the chain with this head, which is the next one, off the ring.
    fn advance(&mut self, head: Head);

    /// Gives a chain back, `len` bytes of it written. Not visible before [`Self::publish`].
    fn push_used(&mut self, id: u16, len: u32);

    /// Makes what was given back visible. True if there was something.
    fn publish(&mut self) -> bool;

    /// Whether the driver wants an interrupt for what was published since it was asked last, if something was; nothing is given
    /// back between the two. The caller has executed a sequentially consistent fence since: the driver writes its wish and then
    /// looks at what is published, the device does it the other way round, and without a full fence both could miss the other
    /// (virtio 1.2, 2.7.7.2, 2.7.10 and 2.8.21.3).
    fn wants_interrupt(&mut self) -> bool;

    /// Has the processor fetch what [`Self::pending`] looks at.
    fn prefetch(&self);

    /// Asks the driver to kick, and then looks again. True when something waits already.
    fn enable_kicks(&mut self) -> bool;

    /// Asks the driver not to kick: the queue is polled.
    fn disable_kicks(&mut self);
}

#[cfg(test)]
mod differential;
#[cfg(test)]
mod tests;
