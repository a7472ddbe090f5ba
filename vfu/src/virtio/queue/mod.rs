//! Virtqueues: from what a driver wrote into registers ([`QueueConfig`]) to a ring whose addresses were checked, and
//! from there to chains of buffers.

mod chain;
mod split;

pub use chain::{Chain, Segment};
pub use split::SplitRing;

use crate::dma::{Fault, View};

/// What a driver set up for one queue.
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

/// Where a ring stands: all that has to be kept to go on with it elsewhere.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Position {
    /// Next entry to take from the driver.
    pub avail: u16,
    /// Next entry to give back.
    pub used: u16,
}

/// Why a ring cannot start. The device then asks for a reset (virtio 1.2, 2.1.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ActivateError {
    /// Zero, too large, or not a power of two where it must be.
    #[error("queue size {0}")]
    Size(u16),
    /// An area is not aligned (virtio 1.2, 2.7).
    #[error("ring area at {0:#x} is not aligned")]
    Alignment(u64),
    /// An area is not in guest memory.
    #[error("ring area: {0}")]
    Fault(#[from] Fault),
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
    /// More than [`Chain::MAX_SEGMENTS`] in one chain.
    #[error("more than {} descriptors in a chain", Chain::MAX_SEGMENTS)]
    TooLong,
    /// A table that cannot be read.
    #[error("descriptor table: {0}")]
    Fault(#[from] Fault),
}

/// A ring, as the device's side sees it.
///
/// Order of a pass: [`Self::pending`], for each chain [`Self::pop`] and then [`Self::advance`] once it is accepted,
/// for each finished one [`Self::push_used`], and [`Self::publish`] at the end.
pub trait Ring: Sized {
    /// Checks what the driver set up and resolves its addresses.
    ///
    /// # Errors
    /// See [`ActivateError`].
    fn activate(config: &QueueConfig, position: Position, view: &View) -> Result<Self, ActivateError>;

    /// Where the ring stands.
    fn position(&self) -> Position;

    /// How many chains wait; loads the driver's index with acquire, so that everything the driver wrote before it is
    /// seen.
    ///
    /// # Errors
    /// [`RingError::AvailIndex`].
    fn pending(&mut self) -> Result<u16, RingError>;

    /// Copies the next chain's descriptors into `chain`, each read once. Does not take it off the ring.
    ///
    /// # Errors
    /// See [`RingError`].
    fn pop(&mut self, view: &View, chain: &mut Chain) -> Result<(), RingError>;

    /// Takes the chain that [`Self::pop`] copied off the ring.
    fn advance(&mut self, chain: &Chain);

    /// Gives a chain back, `len` bytes of it written. Not visible before [`Self::publish`].
    fn push_used(&mut self, id: u16, len: u32);

    /// Makes what was given back visible. True when the driver wants an interrupt for it.
    fn publish(&mut self) -> bool;

    /// Asks the driver to kick, and then looks again. True when something waits already.
    fn enable_kicks(&mut self) -> bool;

    /// Asks the driver not to kick: the queue is polled.
    fn disable_kicks(&mut self);
}
