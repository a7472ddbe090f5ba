//! The packed virtqueue, driver side (virtio 1.2, 2.8): one possible [`DriverRing`].
//!
//! What a correct driver never does (bad ids, loops, a ring full of chains without end) tests do by
//! [`PackedDriver::poke`].

use std::sync::atomic::{Ordering, fence};

use super::{
    memory::Memory,
    ring::{Buffer, DriverRing, RingFault, RingSetup, Used},
    transport::{Areas, DriverError},
};
use crate::{
    dma::Span,
    virtio::spec::{EventSuppression, PackedDesc, desc, event_flags, feature},
};

const DESC_LEN: usize = size_of::<PackedDesc>();
const FLAGS: usize = 14;
const PAGE: usize = 4096;
const WRAP: u16 = 1 << 15;

/// Tables of the same length, one for each id.
#[derive(Debug)]
struct Indirect {
    memory: Span,
    addr: u64,
    entries: usize,
}

/// A packed ring.
#[derive(Debug)]
pub struct PackedDriver {
    areas: Areas,
    size: u16,
    /// The same as wide as an index gets, and not with the narrow fields that are stored for every chain.
    entries: u32,
    desc: Span,
    driver: Span,
    device: Span,
    indirect: Option<Indirect>,
    /// Ids that name no chain, the next one last.
    free: Vec<u16>,
    /// Descriptors that belong to no chain.
    room: u16,
    /// Descriptors of the chain with each id; zero for none.
    lengths: Box<[u16]>,
    /// Where the next chain goes, and the counter there.
    avail: (u16, bool),
    /// The flags of the first chain that is not published: they are written last.
    first: Option<(usize, u16)>,
    unpublished: u16,
    /// Where the next chain comes back.
    used: (u16, bool),
    event_idx: bool,
}

#[inline]
fn mark(wrap: bool) -> u16 {
    if wrap { desc::AVAIL } else { desc::USED }
}

#[inline]
fn write_flag(buffer: &Buffer) -> u16 {
    if buffer.device_writes { desc::WRITE } else { 0 }
}

impl PackedDriver {
    #[inline]
    fn advance((at, wrap): (u16, bool), by: u16, entries: u32) -> (u16, bool) {
        let to = u32::from(at) + u32::from(by);
        if to >= entries { ((to - entries) as u16, !wrap) } else { (to as u16, wrap) }
    }

    /// Writes a descriptor and goes on; the flags of the first one that is not published stay behind.
    #[inline]
    fn put(&mut self, entry: PackedDesc) {
        let at = usize::from(self.avail.0) * DESC_LEN;
        let (table, flags) = (self.desc.slice(), entry.flags | mark(self.avail.1));
        if self.first.is_none() {
            table.write(at, entry.addr);
            table.write(at + 8, entry.len);
            table.write(at + 12, entry.id);
            self.first = Some((at + FLAGS, flags));
        } else {
            table.write(at, entry.addr);
            table.write(at + 8, u64::from(entry.len) | u64::from(entry.id) << 32 | u64::from(flags) << 48);
        }
        self.avail = Self::advance(self.avail, 1, self.entries);
    }

    /// Puts a chain into the id's own table. False without one that is long enough.
    fn put_indirect(&mut self, id: u16, buffers: &[Buffer]) -> bool {
        let Some(indirect) = self.indirect.as_ref().filter(|it| buffers.len() <= it.entries) else {
            return false;
        };
        let start = usize::from(id) * indirect.entries * DESC_LEN;
        for (nth, buffer) in buffers.iter().enumerate() {
            let entry = PackedDesc { addr: buffer.addr, len: buffer.len, id: 0, flags: write_flag(buffer) };
            indirect.memory.slice().write(start + nth * DESC_LEN, entry);
        }
        let (addr, len) = (indirect.addr + start as u64, (buffers.len() * DESC_LEN) as u32);
        self.put(PackedDesc { addr, len, id, flags: desc::INDIRECT });
        true
    }

    /// Writes a descriptor as it is. What was poked is not known to this ring.
    pub fn poke(&mut self, at: u16, entry: PackedDesc) {
        self.desc.slice().write(usize::from(at) * DESC_LEN, entry);
    }

    /// Where the next chain goes, and the flags that make a descriptor there available.
    #[must_use]
    pub fn next(&self) -> (u16, u16) {
        (self.avail.0, mark(self.avail.1))
    }

    #[inline]
    fn is_used(&self) -> bool {
        let flags =
            self.desc.slice().load_u16(usize::from(self.used.0) * DESC_LEN + FLAGS, Ordering::Acquire);
        (flags & desc::AVAIL != 0) == self.used.1 && (flags & desc::USED != 0) == self.used.1
    }

    fn tell(&self, event: EventSuppression) {
        let word: u32 = zerocopy::transmute!(event);
        self.driver.slice().write(0, word);
    }

    fn kick_wanted(&self, count: u16) -> bool {
        let word: u32 = self.device.slice().read(0);
        let event: EventSuppression = zerocopy::transmute!(word);
        match event.flags {
            event_flags::DISABLE => false,
            event_flags::DESC if self.event_idx => {
                let mut at = event.position & !WRAP;
                if (event.position & WRAP != 0) != self.avail.1 {
                    at = at.wrapping_sub(self.size);
                }
                self.avail.0.wrapping_sub(at).wrapping_sub(1) < count
            }
            _ => true,
        }
    }

    /// Whether the device asks not to be kicked for the next descriptor.
    #[must_use]
    pub fn kicks_suppressed(&self) -> bool {
        let word: u32 = self.device.slice().read(0);
        let event: EventSuppression = zerocopy::transmute!(word);
        event.flags == event_flags::DISABLE
    }
}

impl DriverRing for PackedDriver {
    const PACKED: bool = true;

    fn new(memory: &mut Memory, setup: &RingSetup) -> Result<Self, DriverError> {
        let &RingSetup { size, features, indirect } = setup;
        let entries = usize::from(size);
        let mut place = |len: usize, align: usize| -> Result<(u64, Span), DriverError> {
            let addr = memory.allocate(len, align).map_err(DriverError::Memory)?;
            let span = memory.span(addr, len).expect("just allocated");
            // The memory may have been another ring's.
            span.slice().copy_from(0, &vec![0; len]);
            Ok((addr, span))
        };
        let (desc, desc_span) = place(DESC_LEN * entries, PAGE)?;
        let (driver, driver_span) = place(4, 64)?;
        let (device, device_span) = place(4, 64)?;
        let indirect = match indirect.filter(|_| features & feature::INDIRECT_DESC != 0) {
            Some(each) => {
                let each = usize::from(each);
                let (addr, memory) = place(DESC_LEN * entries * each, PAGE)?;
                Some(Indirect { memory, addr, entries: each })
            }
            None => None,
        };
        Ok(Self {
            areas: Areas { desc, driver, device },
            size,
            entries: size.into(),
            desc: desc_span,
            driver: driver_span,
            device: device_span,
            indirect,
            free: (0..size).rev().collect(),
            room: size,
            lengths: vec![0; entries].into_boxed_slice(),
            avail: (0, true),
            first: None,
            unpublished: 0,
            used: (0, true),
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
        self.free.last().copied().filter(|_| self.room > 0)
    }

    #[inline]
    fn add(&mut self, buffers: &[Buffer]) -> Option<u16> {
        let id = self.next_slot()?;
        let count = if buffers.len() > 1 && self.indirect.is_some() {
            if !self.put_indirect(id, buffers) {
                return None;
            }
            1
        } else {
            let count = u16::try_from(buffers.len()).ok().filter(|&count| count <= self.room)?;
            for (nth, buffer) in buffers.iter().enumerate() {
                let next = if nth + 1 == buffers.len() { 0 } else { desc::NEXT };
                let flags = write_flag(buffer) | next;
                self.put(PackedDesc { addr: buffer.addr, len: buffer.len, id, flags });
            }
            count
        };
        self.free.pop();
        self.room -= count;
        self.lengths[usize::from(id)] = count;
        self.unpublished += count;
        Some(id)
    }

    #[inline]
    fn publish(&mut self) -> bool {
        let count = self.unpublished;
        self.publish_quietly();
        // Our flags, then its wish; the device does it the other way round.
        fence(Ordering::SeqCst);
        count > 0 && self.kick_wanted(count)
    }

    #[inline]
    fn publish_quietly(&mut self) {
        self.unpublished = 0;
        if let Some((at, flags)) = self.first.take() {
            // Release: the device loads these flags and then reads all that is behind them.
            self.desc.slice().store_u16(at, flags, Ordering::Release);
        }
    }

    #[inline]
    fn prefetch(&self) {
        self.desc.slice().prefetch(usize::from(self.used.0) * DESC_LEN);
    }

    #[inline]
    fn pop(&mut self) -> Result<Option<Used>, RingFault> {
        if !self.is_used() {
            return Ok(None);
        }
        let entry: PackedDesc = self.desc.slice().read(usize::from(self.used.0) * DESC_LEN);
        let id = usize::from(entry.id);
        let count = self.lengths.get_mut(id).map_or(0, std::mem::take);
        if count == 0 {
            return Err(RingFault::NotInFlight(u32::from(entry.id)));
        }
        self.used = Self::advance(self.used, count, self.entries);
        self.room += count;
        self.free.push(entry.id);
        let len = if entry.flags & desc::WRITE != 0 { entry.len } else { 0 };
        Ok(Some(Used { slot: entry.id, len }))
    }

    fn enable_interrupts(&mut self) -> bool {
        let (at, wrap) = self.used;
        self.tell(if self.event_idx {
            EventSuppression { position: at | if wrap { WRAP } else { 0 }, flags: event_flags::DESC }
        } else {
            EventSuppression { position: 0, flags: event_flags::ENABLE }
        });
        // Our wish first, then its flags; the device does it the other way round.
        fence(Ordering::SeqCst);
        self.is_used()
    }

    fn disable_interrupts(&mut self) {
        self.tell(EventSuppression { position: 0, flags: event_flags::DISABLE });
    }

    fn position(&self) -> u16 {
        self.avail.0 | if self.avail.1 { WRAP } else { 0 }
    }

    fn in_flight(&self) -> u16 {
        self.size - u16::try_from(self.free.len()).unwrap_or(0)
    }
}
