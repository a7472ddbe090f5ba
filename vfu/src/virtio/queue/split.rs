//! The split virtqueue, device side (virtio 1.2, 2.7).

use std::sync::atomic::{Ordering, fence};

use super::{
    ActivateError, Chain, Head, Position, QueueConfig, Ring, RingError, RingLayout, Segment, Triple,
    in_order::InOrder,
};
use crate::{
    dma::{Entries, Fault, Span, Table, View},
    virtio::spec::{AVAIL_NO_INTERRUPT, Desc, MAX_QUEUE_SIZE, USED_NO_NOTIFY, UsedElem, desc, feature},
};

// Offsets in the driver area (available ring) and the device area (used ring): virtio 1.2, 2.7.6 and 2.7.8.
const FLAGS: usize = 0;
const IDX: usize = 2;
const RING: usize = 4;
const DESC_LEN: usize = size_of::<Desc>();
const USED_LEN: usize = size_of::<UsedElem>();
const ALL_FLAGS: u16 = desc::NEXT | desc::WRITE | desc::INDIRECT;

/// A split ring.
#[derive(Debug)]
pub struct SplitRing {
    desc: Entries<Desc>,
    avail: Span,
    avail_ring: Entries<u16>,
    used: Span,
    used_ring: Entries<UsedElem>,
    size: u16,
    /// Next entry to take.
    next_avail: u16,
    /// Available index as loaded last.
    seen_avail: u16,
    /// Next entry to give back; ahead of what is published.
    next_used: u16,
    published_used: u16,
    /// What was published when the driver was asked last whether it wants an interrupt.
    asked_used: u16,
    event_idx: bool,
    indirect: bool,
    /// With IN_ORDER: what was taken and is not given back.
    order: Option<Box<InOrder>>,
}

impl SplitRing {
    /// Where `used_event` is: behind the available ring.
    fn used_event_at(&self) -> usize {
        RING + 2 * usize::from(self.size)
    }

    /// Where `avail_event` is: behind the used ring.
    fn avail_event_at(&self) -> usize {
        RING + USED_LEN * usize::from(self.size)
    }

    /// Writes the next used element.
    #[inline]
    fn put(&mut self, id: u16, len: u32) {
        self.used_ring.set_round(self.next_used, UsedElem { id: u32::from(id), len });
        self.next_used = self.next_used.wrapping_add(1);
    }

    /// Writes as many used elements as the order allows.
    #[cold]
    fn put_in_order(&mut self, id: u16, len: u32) {
        let Some(mut order) = self.order.take() else { return };
        order.finish(id, len);
        while let Some((id, len)) = order.next() {
            self.put(id, len);
        }
        self.order = Some(order);
    }

    /// The head of the next chain, as the driver wrote it.
    #[inline(always)]
    fn next_head(&self) -> u16 {
        self.avail_ring.get_round(self.next_avail)
    }

    /// A chain of three buffers, by its table and a first that the device reads; and whether it writes the second. None if it is
    /// something else.
    #[inline(always)]
    fn triple(first: Desc, get: impl Fn(u16) -> Option<Desc>) -> Option<([Segment; 3], bool)> {
        let second = get(first.next)?;
        if second.flags & (desc::NEXT | desc::INDIRECT) != desc::NEXT {
            return None;
        }
        let third = get(second.next)?;
        if third.flags & ALL_FLAGS != desc::WRITE {
            return None;
        }
        let segment = |desc: Desc| Segment { addr: desc.addr, len: desc.len };
        Some(([segment(first), segment(second), segment(third)], second.flags & desc::WRITE != 0))
    }

    /// Walks a chain through a table in one piece.
    #[inline(always)]
    fn walk(table: Table<'_, Desc>, entries: u16, first: Desc, chain: &mut Chain) -> Result<(), RingError> {
        let mut filling = chain.refill(entries);
        let mut entry = first;
        loop {
            if entry.flags & desc::INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            filling.push(Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0)?;
            if entry.flags & desc::NEXT == 0 {
                filling.end();
                return Ok(());
            }
            entry = table.get(entry.next).ok_or(RingError::Index(entry.next))?;
        }
    }

    /// Walks an indirect table (virtio 1.2, 2.7.5.3).
    #[inline]
    fn walk_indirect(view: &View, head: Desc, chain: &mut Chain) -> Result<(), RingError> {
        let entries = u16::try_from(head.len as usize / DESC_LEN).unwrap_or(u16::MAX).min(MAX_QUEUE_SIZE);
        if head.flags & desc::NEXT != 0
            || entries == 0
            || usize::from(entries) * DESC_LEN != head.len as usize
        {
            return Err(RingError::Indirect);
        }
        match view.slice(head.addr, head.len as usize)? {
            Some(table) => Self::walk(table.table(), entries, table.read(0), chain),
            None => Self::walk_scattered(view, head.addr, entries, chain),
        }
    }

    /// The same for a table that spans windows, as behind a vIOMMU.
    #[cold]
    fn walk_scattered(view: &View, addr: u64, entries: u16, chain: &mut Chain) -> Result<(), RingError> {
        let mut filling = chain.refill(entries);
        let mut at = 0;
        loop {
            let mut bytes = [0; DESC_LEN];
            view.read(addr + u64::from(at) * DESC_LEN as u64, &mut bytes)?;
            let entry: Desc = zerocopy::transmute!(bytes);
            if entry.flags & desc::INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            filling.push(Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0)?;
            if entry.flags & desc::NEXT == 0 {
                filling.end();
                return Ok(());
            }
            at = entry.next;
            if at >= entries {
                return Err(RingError::Index(at));
            }
        }
    }
}

impl Ring for SplitRing {
    const START: Position = Position { avail: 0, used: 0 };

    fn activate(layout: &RingLayout, position: Position, view: &View) -> Result<Self, ActivateError> {
        let QueueConfig { size, desc, driver, device, .. } = layout.config;
        let entries = usize::from(size);
        let avail = view.span(driver, RING + 2 * entries + 2, false)?;
        let used = view.span(device, RING + USED_LEN * entries + 2, true)?;
        Ok(Self {
            desc: view.entries(desc, size, false)?,
            avail_ring: avail.entries(RING, size).ok_or(Fault(driver))?,
            avail,
            used_ring: used.entries(RING, size).ok_or(Fault(device))?,
            used,
            size,
            next_avail: position.avail,
            seen_avail: position.avail,
            next_used: position.used,
            published_used: position.used,
            asked_used: position.used,
            event_idx: layout.has(feature::EVENT_IDX),
            indirect: layout.has(feature::INDIRECT_DESC),
            order: layout.has(feature::IN_ORDER).then(|| Box::new(InOrder::new(size))),
        })
    }

    fn position(&self) -> Position {
        Position { avail: self.next_avail, used: self.published_used }
    }

    #[inline]
    fn pending(&mut self) -> Result<bool, RingError> {
        // The driver stores this index with release, after the entries and descriptors it stands for.
        self.seen_avail = self.avail.slice().load_u16(IDX, Ordering::Acquire);
        let pending = self.seen_avail.wrapping_sub(self.next_avail);
        if pending > self.size { Err(RingError::AvailIndex(pending)) } else { Ok(pending > 0) }
    }

    #[inline]
    fn has_next(&self) -> bool {
        self.next_avail != self.seen_avail
    }

    #[inline(always)]
    fn pop(&mut self, view: &View, chain: &mut Chain) -> Result<(), RingError> {
        let head = self.next_head();
        let first = self.desc.get(head).ok_or(RingError::Index(head))?;
        if first.flags & desc::INDIRECT == 0 {
            Self::walk(self.desc.table(), self.size, first, chain)?;
        } else if self.indirect {
            Self::walk_indirect(view, first, chain)?;
        } else {
            return Err(RingError::Indirect);
        }
        if self.order.as_ref().is_some_and(|order| order.holds(head)) {
            return Err(RingError::Reused(head));
        }
        chain.name(Head { id: head, entries: 1 });
        Ok(())
    }

    #[inline(always)]
    fn peek_triple(&self, view: &View) -> Option<Triple> {
        let id = self.next_head();
        let first = self.desc.get(id)?;
        let (buffers, is_read) = match first.flags & ALL_FLAGS {
            desc::NEXT => Self::triple(first, |at| self.desc.get(at))?,
            desc::INDIRECT if self.indirect && first.len as usize == 3 * DESC_LEN => {
                let table = view.slice(first.addr, 3 * DESC_LEN).ok().flatten()?.table();
                let first: Desc = table.get(0)?;
                Self::triple(first, |at| table.get(at)).filter(|_| first.flags & ALL_FLAGS == desc::NEXT)?
            }
            _ => return None,
        };
        if self.order.as_ref().is_some_and(|order| order.holds(id)) {
            return None;
        }
        Some(Triple { head: Head { id, entries: 1 }, buffers, is_read })
    }

    #[inline]
    fn advance(&mut self, head: Head) {
        self.next_avail = self.next_avail.wrapping_add(1);
        if let Some(order) = &mut self.order {
            order.take(head.id);
        }
    }

    #[inline]
    fn push_used(&mut self, id: u16, len: u32) {
        if self.order.is_none() {
            self.put(id, len);
        } else {
            self.put_in_order(id, len);
        }
    }

    #[inline(always)]
    fn publish(&mut self) -> bool {
        let (old, new) = (self.published_used, self.next_used);
        if old == new {
            return false;
        }
        // Release: the driver loads the index and then reads the elements and the data behind them.
        self.used.slice().store_u16(IDX, new, Ordering::Release);
        self.published_used = new;
        true
    }

    #[inline(always)]
    fn wants_interrupt(&mut self) -> bool {
        debug_assert_eq!(self.published_used, self.next_used);
        let (old, new) = (self.asked_used, self.published_used);
        self.asked_used = new;
        let avail = self.avail.slice();
        if self.event_idx {
            let event = avail.load_u16(self.used_event_at(), Ordering::Relaxed);
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            avail.load_u16(FLAGS, Ordering::Relaxed) & AVAIL_NO_INTERRUPT == 0
        }
    }

    #[inline]
    fn prefetch(&self) {
        self.avail.slice().prefetch(IDX);
    }

    fn enable_kicks(&mut self) -> bool {
        let used = self.used.slice();
        if self.event_idx {
            used.store_u16(self.avail_event_at(), self.next_avail, Ordering::Relaxed);
        } else {
            used.store_u16(FLAGS, 0, Ordering::Relaxed);
        }
        // As with interrupts, the other way round: our wish first, then their index.
        fence(Ordering::SeqCst);
        self.avail.slice().load_u16(IDX, Ordering::Acquire) != self.next_avail
    }

    fn disable_kicks(&mut self) {
        // With EVENT_IDX nothing needs to be written: the event index falls behind, and the driver kicks when it
        // passes it again, once in 65,536 requests.
        if !self.event_idx {
            self.used.slice().store_u16(FLAGS, USED_NO_NOTIFY, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests;
