//! What a ring does for its driver, whatever its format: chains in, kicks decided, used buffers out.
//!
//! [`super::blk`] is the caller; [`super::split`] and [`super::packed`] implement it. Nothing here allocates once a ring is made.

use super::{
    memory::Memory,
    transport::{Areas, DriverError},
};

/// Buffers of one chain at most.
pub const MAX_BUFFERS: usize = 64;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Buffer {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub device_writes: bool,
}

impl Buffer {
    /// A buffer that the device reads.
    #[must_use]
    pub fn readable(addr: u64, len: u32) -> Self {
        Self { addr, len, device_writes: false }
    }

    /// A buffer that the device writes.
    #[must_use]
    pub fn writable(addr: u64, len: u32) -> Self {
        Self { addr, len, device_writes: true }
    }
}

/// A chain that the device has given back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Used {
    /// What [`DriverRing::add`] returned for it.
    pub slot: u16,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// What a device may not do to a ring.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RingFault {
    /// It gave back what it was never given.
    #[error("the device gave back chain {0}, which it does not have")]
    NotInFlight(u32),
    /// It gave back more than it was given.
    #[error("the used index runs ahead by {0}")]
    UsedIndex(u16),
}

/// What a ring is made with.
#[derive(Clone, Copy, Debug)]
pub struct RingSetup {
    /// Entries; a power of two for a split ring.
    pub size: u16,
    /// Agreed features.
    pub features: u64,
    /// Chains of more than one buffer go into tables of their own (needs INDIRECT_DESC); so many entries each.
    pub indirect: Option<u16>,
}

/// A ring, from the driver's side.
///
/// A chain is added by [`Self::add`] and seen by the device after [`Self::publish`]; [`Self::pop`] takes it back. Slots
/// name chains in flight; they are below [`Self::size`], so they index the driver's own tables.
pub trait DriverRing: Sized {
    /// It needs RING_PACKED; else it must not be agreed.
    const PACKED: bool;

    /// Lays a ring out in guest memory.
    ///
    /// # Errors
    /// [`DriverError::Memory`].
    fn new(memory: &mut Memory, setup: &RingSetup) -> Result<Self, DriverError>;

    /// Where it is.
    fn areas(&self) -> Areas;

    /// Entries; also the bound of slots.
    fn size(&self) -> u16;

    /// The slot that [`Self::add`] will use next: buffers can be chosen by it.
    fn next_slot(&self) -> Option<u16>;

    /// Adds a chain; none when there is no room. Not seen by the device before [`Self::publish`].
    fn add(&mut self, buffers: &[Buffer]) -> Option<u16>;

    /// Makes what was added visible. True when the device wants a kick for it.
    fn publish(&mut self) -> bool;

    /// The same for a device that is never kicked, which saves the fence.
    fn publish_quietly(&mut self);

    /// Has the processor fetch what [`Self::pop`] looks at first.
    fn prefetch(&self);

    /// A chain that the device has given back, if there is one.
    ///
    /// # Errors
    /// See [`RingFault`].
    fn pop(&mut self) -> Result<Option<Used>, RingFault>;

    /// Asks for an interrupt for the next chain. True when one was given back already.
    fn enable_interrupts(&mut self) -> bool;

    /// Asks for no interrupts.
    fn disable_interrupts(&mut self);

    /// What a notification that carries data says of the ring: where the next chain goes (virtio 1.2, 2.9).
    fn position(&self) -> u16;

    /// Chains added and not yet popped.
    fn in_flight(&self) -> u16;
}
