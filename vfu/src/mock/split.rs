//! The split virtqueue, driver side (virtio 1.2, 2.7): one possible [`DriverRing`].
//!
//! Descriptors that did not change are not written again: their cache lines stay shared with the device's core. Free
//! descriptors are a stack on which a chain goes back as it was, so a chain of the same shape finds its links in place.
//!
//! What a correct driver never does (bad heads, loops, an index that runs ahead) tests do by [`SplitDriver::poke`].

use std::sync::atomic::{Ordering, fence};

use super::{
    memory::Memory,
    ring::{Buffer, DriverRing, RingFault, RingSetup, Used},
    transport::{Areas, DriverError},
};
use crate::{
    dma::Span,
    virtio::spec::{AVAIL_NO_INTERRUPT, Desc, USED_NO_NOTIFY, UsedElem, desc, feature},
};

const FLAGS: usize = 0;
const IDX: usize = 2;
const RING: usize = 4;
const DESC_LEN: usize = size_of::<Desc>();
const USED_LEN: usize = size_of::<UsedElem>();
const PAGE: usize = 4096;

/// Descriptors in guest memory, and what was written there last.
#[derive(Debug)]
struct Table {
    memory: Span,
    shadow: Box<[Desc]>,
}

impl Table {
    #[inline]
    fn set(&mut self, at: usize, entry: Desc) {
        if self.shadow[at] != entry {
            self.shadow[at] = entry;
            self.memory.slice().write(at * DESC_LEN, entry);
        }
    }
}

/// Tables of the same length, one for each slot.
#[derive(Debug)]
struct Indirect {
    table: Table,
    addr: u64,
    entries: usize,
}

/// A split ring.
#[derive(Debug)]
pub struct SplitDriver {
    areas: Areas,
    size: u16,
    /// Its entries less one, as wide as a register: a narrow field may be loaded in one with a neighbour that was just stored,
    /// and then has to wait until all stores are done.
    mask: usize,
    desc: Table,
    avail: Span,
    used: Span,
    indirect: Option<Indirect>,
    /// Free descriptors, the next one last.
    free: Vec<u16>,
    /// Ring descriptors of the chain in each slot; zero for none.
    lengths: Box<[u16]>,
    /// Where the next chain goes.
    next_avail: u16,
    published: u16,
    /// The next chain to come back.
    next_used: u16,
    /// The used index as loaded last.
    seen_used: u16,
    in_flight: u16,
    event_idx: bool,
}

/// Something a correct driver never does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Poke {
    /// Writes a descriptor of the ring's own table.
    Descriptor(u16, Desc),
    /// Writes a head into the next entry of the available ring.
    Head(u16),
    /// Adds to the available index, as if so many heads had been written.
    Advance(u16),
}

#[inline]
fn flags_of(buffer: &Buffer, is_last: bool) -> u16 {
    let write = if buffer.device_writes { desc::WRITE } else { 0 };
    write | if is_last { 0 } else { desc::NEXT }
}

impl SplitDriver {
    #[inline]
    fn slot(&self, index: u16) -> usize {
        usize::from(index) & self.mask
    }

    fn used_event_at(&self) -> usize {
        RING + 2 * usize::from(self.size)
    }

    fn avail_event_at(&self) -> usize {
        RING + USED_LEN * usize::from(self.size)
    }

    /// Puts a chain into the ring's own table. How many descriptors it takes.
    #[inline]
    fn add_direct(&mut self, head: u16, buffers: &[Buffer]) -> Option<u16> {
        let rest = self.free.len().checked_sub(buffers.len())?;
        for (nth, buffer) in buffers.iter().enumerate() {
            let at = self.free[self.free.len() - 1 - nth];
            let is_last = nth + 1 == buffers.len();
            let next = if is_last {
                self.desc.shadow[usize::from(at)].next
            } else {
                self.free[self.free.len() - 2 - nth]
            };
            let entry = Desc { addr: buffer.addr, len: buffer.len, flags: flags_of(buffer, is_last), next };
            self.desc.set(usize::from(at), entry);
        }
        debug_assert_eq!(self.free.last(), Some(&head));
        self.free.truncate(rest);
        u16::try_from(buffers.len()).ok()
    }

    /// Puts a chain into the slot's own table.
    #[inline]
    fn add_indirect(&mut self, head: u16, buffers: &[Buffer]) -> Option<u16> {
        let indirect = self.indirect.as_mut().filter(|indirect| buffers.len() <= indirect.entries)?;
        let start = usize::from(head) * indirect.entries;
        for (nth, (buffer, next)) in buffers.iter().zip(1..).enumerate() {
            let flags = flags_of(buffer, nth + 1 == buffers.len());
            indirect.table.set(start + nth, Desc { addr: buffer.addr, len: buffer.len, flags, next });
        }
        let addr = indirect.addr + (start * DESC_LEN) as u64;
        let len = u32::try_from(buffers.len() * DESC_LEN).ok()?;
        self.desc.set(usize::from(head), Desc { addr, len, flags: desc::INDIRECT, next: 0 });
        self.free.pop();
        Some(1)
    }

    /// Gives the descriptors of a chain back, in such order that they are taken again in the same.
    #[inline]
    fn release(&mut self, head: u16, count: u16) {
        let from = self.free.len();
        let to = from + usize::from(count);
        // Never beyond the capacity: there are `size` descriptors.
        self.free.resize(to, 0);
        let mut at = head;
        for place in (from..to).rev() {
            self.free[place] = at;
            at = self.desc.shadow[usize::from(at)].next;
        }
    }

    /// Does what a correct driver never does. What was poked is not known to this ring: it will not come back by
    /// [`DriverRing::pop`].
    pub fn poke(&mut self, poke: Poke) {
        match poke {
            Poke::Descriptor(at, entry) => self.desc.memory.slice().write(usize::from(at) * DESC_LEN, entry),
            Poke::Head(head) => {
                let at = RING + 2 * self.slot(self.next_avail);
                self.avail.slice().write(at, head);
            }
            Poke::Advance(by) => {
                self.next_avail = self.next_avail.wrapping_add(by);
                self.published = self.next_avail;
                self.avail.slice().store_u16(IDX, self.next_avail, Ordering::Release);
            }
        }
    }

    /// The used index as it is in memory.
    #[must_use]
    pub fn used_index(&self) -> u16 {
        self.used.slice().load_u16(IDX, Ordering::Acquire)
    }

    /// The available index as the device sees it.
    #[must_use]
    pub fn avail_index(&self) -> u16 {
        self.published
    }

    /// Whether the device asks not to be kicked for the next chain.
    #[must_use]
    pub fn kicks_suppressed(&self) -> bool {
        !self.kick_wanted(self.published, self.published.wrapping_add(1))
    }

    #[inline]
    fn kick_wanted(&self, old: u16, new: u16) -> bool {
        let used = self.used.slice();
        if self.event_idx {
            let event = used.load_u16(self.avail_event_at(), Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            used.load_u16(FLAGS, Ordering::Relaxed) & USED_NO_NOTIFY == 0
        }
    }
}

impl DriverRing for SplitDriver {
    const PACKED: bool = false;

    fn new(memory: &mut Memory, setup: &RingSetup) -> Result<Self, DriverError> {
        let &RingSetup { size, features, indirect } = setup;
        assert!(size.is_power_of_two());
        let entries = usize::from(size);
        let mut place = |len: usize| -> Result<(u64, Span), DriverError> {
            let addr = memory.allocate(len, PAGE).map_err(DriverError::Memory)?;
            let span = memory.span(addr, len).expect("just allocated, in one region");
            // The memory may have been another ring's.
            span.slice().copy_from(0, &vec![0; len]);
            Ok((addr, span))
        };
        let (desc, desc_span) = place(DESC_LEN * entries)?;
        let (driver, avail) = place(RING + 2 * entries + 2)?;
        let (device, used) = place(RING + USED_LEN * entries + 2)?;
        let table =
            |memory, entries| Table { memory, shadow: vec![Desc::default(); entries].into_boxed_slice() };
        let indirect = match indirect.filter(|_| features & feature::INDIRECT_DESC != 0) {
            Some(each) => {
                let each = usize::from(each);
                let (addr, span) = place(DESC_LEN * entries * each)?;
                Some(Indirect { table: table(span, entries * each), addr, entries: each })
            }
            None => None,
        };
        Ok(Self {
            areas: Areas { desc, driver, device },
            size,
            mask: entries - 1,
            desc: table(desc_span, entries),
            avail,
            used,
            indirect,
            free: (0..size).rev().collect(),
            lengths: vec![0; entries].into_boxed_slice(),
            next_avail: 0,
            published: 0,
            next_used: 0,
            seen_used: 0,
            in_flight: 0,
            event_idx: features & feature::EVENT_IDX != 0,
        })
    }

    fn areas(&self) -> Areas {
        self.areas
    }

    fn size(&self) -> u16 {
        self.size
    }

    #[inline]
    fn next_slot(&self) -> Option<u16> {
        self.free.last().copied()
    }

    #[inline]
    fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let head = self.next_slot()?;
        let count = if self.indirect.is_some() && buffers.len() > 1 {
            self.add_indirect(head, buffers)?
        } else {
            self.add_direct(head, buffers)?
        };
        self.lengths[usize::from(head)] = count;
        let at = RING + 2 * self.slot(self.next_avail);
        self.avail.slice().write(at, head);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.in_flight += 1;
        Some(head)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published, self.next_avail);
        if old == new {
            return false;
        }
        self.publish_quietly();
        // The device writes its wish and then looks at our index; we write the index and then look at its wish.
        fence(Ordering::SeqCst);
        self.kick_wanted(old, new)
    }

    #[inline]
    fn publish_quietly(&mut self) {
        // Release: the device loads the index and then reads the heads and descriptors behind it.
        self.avail.slice().store_u16(IDX, self.next_avail, Ordering::Release);
        self.published = self.next_avail;
    }

    #[inline]
    fn prefetch(&self) {
        self.used.slice().prefetch(IDX);
        self.used.slice().prefetch(RING + USED_LEN * self.slot(self.next_used));
    }

    #[inline]
    fn pop(&mut self) -> Result<Option<Used>, RingFault> {
        if self.seen_used == self.next_used {
            // The device stores this index with release, after the elements and the data it stands for.
            self.seen_used = self.used.slice().load_u16(IDX, Ordering::Acquire);
            let ahead = self.seen_used.wrapping_sub(self.next_used);
            if ahead == 0 {
                return Ok(None);
            }
            if ahead > self.in_flight {
                return Err(RingFault::UsedIndex(ahead));
            }
        }
        let at = RING + USED_LEN * self.slot(self.next_used);
        let UsedElem { id, len } = self.used.slice().read(at);
        let slot = u16::try_from(id)
            .ok()
            .filter(|&slot| usize::from(slot) <= self.mask)
            .ok_or(RingFault::NotInFlight(id))?;
        let count = std::mem::take(&mut self.lengths[usize::from(slot)]);
        if count == 0 {
            return Err(RingFault::NotInFlight(id));
        }
        self.release(slot, count);
        self.next_used = self.next_used.wrapping_add(1);
        self.in_flight -= 1;
        Ok(Some(Used { slot, len }))
    }

    fn enable_interrupts(&mut self) -> bool {
        let avail = self.avail.slice();
        if self.event_idx {
            avail.store_u16(self.used_event_at(), self.next_used, Ordering::Relaxed);
        } else {
            avail.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // Our wish first, then its index; the device does it the other way round.
        fence(Ordering::SeqCst);
        self.used.slice().load_u16(IDX, Ordering::Acquire) != self.next_used
    }

    fn disable_interrupts(&mut self) {
        let avail = self.avail.slice();
        if self.event_idx {
            // Half the index space behind: passed again only after 32,768 chains, and an interrupt too many is legal.
            let far = self.next_used.wrapping_sub(0x8000);
            avail.store_u16(self.used_event_at(), far, Ordering::Relaxed);
        } else {
            avail.store_u16(FLAGS, AVAIL_NO_INTERRUPT, Ordering::Relaxed);
        }
    }

    fn position(&self) -> u16 {
        self.published
    }

    fn in_flight(&self) -> u16 {
        self.in_flight
    }
}

#[cfg(test)]
mod tests;
