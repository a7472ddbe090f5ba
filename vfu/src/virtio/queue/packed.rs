//! The packed virtqueue, device side (virtio 1.2, 2.8).
//!
//! One ring of descriptors. Each side goes round with a counter that flips at the end; a descriptor is available when
//! its AVAIL bit is the counter and its USED bit is not, and used when both are.

use std::sync::atomic::{Ordering, fence};

use super::{
    ActivateError, Chain, Head, Position, QueueConfig, Ring, RingError, RingLayout, Segment, Triple,
    in_order::InOrder,
};
use crate::{
    dma::{Entries, Fault, Slice, Span, View},
    virtio::spec::{EventSuppression, MAX_QUEUE_SIZE, PackedDesc, desc, event_flags, feature},
};

const DESC_LEN: usize = size_of::<PackedDesc>();
/// Offset of the flags in a descriptor.
const FLAGS: usize = 14;
/// Offset of length, id and flags together.
const RESULT: usize = 8;
const EVENT_LEN: usize = size_of::<EventSuppression>();
/// The wrap counter in a position and in an event offset (virtio 1.2, 2.8.14).
const WRAP: u16 = 1 << 15;

/// A place on the ring, and the wrap counter there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::virtio) struct Cursor {
    at: u16,
    wrap: bool,
}

impl Cursor {
    pub(in crate::virtio) fn new(position: u16, size: u16) -> Result<Self, ActivateError> {
        let at = position & !WRAP;
        if at < size {
            Ok(Self { at, wrap: position & WRAP != 0 })
        } else {
            Err(ActivateError::Position(position))
        }
    }

    /// The entry.
    pub(in crate::virtio) fn at(self) -> u16 {
        self.at
    }

    /// Whether a descriptor with these flags is available here.
    #[inline]
    pub(in crate::virtio) fn is_available(self, flags: u16) -> bool {
        (flags & desc::AVAIL != 0) == self.wrap && (flags & desc::USED != 0) != self.wrap
    }

    /// The flags that mark a chain as used here. The length counts only together with WRITE (virtio 1.2, 2.8.6).
    #[inline]
    pub(in crate::virtio) fn used_flags(self, written: u32) -> u16 {
        let write = if written > 0 { desc::WRITE } else { 0 };
        write | if self.wrap { desc::AVAIL | desc::USED } else { 0 }
    }

    /// Whether one of the `count` descriptors before this one is that of an event offset.
    #[inline]
    pub(in crate::virtio) fn has_passed(self, event: u16, count: u16, size: u16) -> bool {
        let mut at = event & !WRAP;
        if (event & WRAP != 0) != self.wrap {
            at = at.wrapping_sub(size);
        }
        self.at.wrapping_sub(at).wrapping_sub(1) < count
    }

    /// As in a position.
    pub(in crate::virtio) fn raw(self) -> u16 {
        self.at | if self.wrap { WRAP } else { 0 }
    }

    /// So many entries on, at most a whole round.
    #[inline]
    pub(in crate::virtio) fn after(self, entries: u16, size: u16) -> Self {
        // Both are at most 32,768, so the sum may need a bit more.
        let to = u32::from(self.at) + u32::from(entries);
        match u16::try_from(to.wrapping_sub(u32::from(size))) {
            Ok(at) => Self { at, wrap: !self.wrap },
            Err(_) => Self { at: self.at + entries, wrap: self.wrap },
        }
    }
}

/// A packed ring.
#[derive(Debug)]
pub struct PackedRing {
    desc: Span,
    table: Entries<PackedDesc>,
    driver: Span,
    device: Span,
    size: u16,
    /// The next descriptor to take.
    avail: Cursor,
    /// The next descriptor to give back; ahead of what is published.
    used: Cursor,
    /// The first that is not published: the driver looks at no other before this one is marked.
    first: Option<(usize, u16)>,
    /// Descriptors given back since the driver was asked last whether it wants an interrupt.
    unasked: u16,
    /// Descriptors of the chain with this id.
    entries: Box<[u16]>,
    event_idx: bool,
    indirect: bool,
    order: Option<Box<InOrder>>,
}

impl PackedRing {
    #[inline]
    fn is_available(&self, cursor: Cursor) -> bool {
        // The driver stores these with release, after the rest of the descriptor; those of a chain's head come last.
        let flags = self.desc.slice().load_u16(usize::from(cursor.at) * DESC_LEN + FLAGS, Ordering::Acquire);
        cursor.is_available(flags)
    }

    /// The entry behind one.
    #[inline(always)]
    fn after(&self, at: u16) -> u16 {
        if at + 1 == self.size { 0 } else { at + 1 }
    }

    /// Whether no chain of this name, which is below the size, is in flight.
    #[inline(always)]
    fn is_free(&self, id: u16) -> bool {
        self.entries[usize::from(id)] == 0 && !self.order.as_ref().is_some_and(|order| order.holds(id))
    }

    /// A chain of three buffers, and whether the device writes the second. None if it is something else.
    #[inline(always)]
    fn triple(first: PackedDesc, second: PackedDesc, third: PackedDesc) -> Option<([Segment; 3], bool)> {
        let writes = |entry: PackedDesc| entry.flags & desc::WRITE != 0;
        if (first.flags | second.flags | third.flags) & desc::INDIRECT != 0 || writes(first) || !writes(third)
        {
            return None;
        }
        let segment = |entry: PackedDesc| Segment { addr: entry.addr, len: entry.len };
        Some(([segment(first), segment(second), segment(third)], writes(second)))
    }

    /// Walks an indirect table: all of it, one after the other (virtio 1.2, 2.8.7).
    #[inline]
    fn walk_indirect(view: &View, head: PackedDesc, chain: &mut Chain) -> Result<(), RingError> {
        let entries = head.len as usize / DESC_LEN;
        if head.flags & desc::NEXT != 0
            || !(1..=usize::from(MAX_QUEUE_SIZE)).contains(&entries)
            || entries * DESC_LEN != head.len as usize
        {
            return Err(RingError::Indirect);
        }
        let table = view.slice(head.addr, head.len as usize)?;
        let mut filling = chain.refill(u16::try_from(entries).unwrap_or(u16::MAX));
        for at in 0..entries {
            let entry: PackedDesc = match table {
                Some(table) => table.read(at * DESC_LEN),
                None => Self::read_scattered(view, head.addr + (at * DESC_LEN) as u64)?,
            };
            if entry.flags & desc::INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            filling.push(Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0)?;
        }
        filling.end();
        Ok(())
    }

    /// Walks the next chain; its id, and the entries it takes.
    #[inline(always)]
    fn walk(&self, view: &View, chain: &mut Chain) -> Result<Head, RingError> {
        let mut at = self.avail.at;
        // Never outside: a cursor is below the size.
        let mut entry = self.table.get(at).ok_or(RingError::Index(at))?;
        if entry.flags & desc::INDIRECT != 0 {
            if !self.indirect {
                return Err(RingError::Indirect);
            }
            Self::walk_indirect(view, entry, chain)?;
            return Ok(Head { id: entry.id, entries: 1 });
        }
        let (mut filling, mut entries) = (chain.refill(self.size), 1);
        loop {
            filling.push(Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0)?;
            if entry.flags & desc::NEXT == 0 {
                filling.end();
                // The last one has the id (virtio 1.2, 2.8.6).
                return Ok(Head { id: entry.id, entries });
            }
            at = self.after(at);
            entry = self.table.get(at).ok_or(RingError::Index(at))?;
            if entry.flags & desc::INDIRECT != 0 {
                return Err(RingError::Indirect);
            }
            entries += 1;
        }
    }

    /// Reads an entry of a table that spans windows.
    #[cold]
    fn read_scattered(view: &View, addr: u64) -> Result<PackedDesc, RingError> {
        let mut bytes = [0; DESC_LEN];
        view.read(addr, &mut bytes)?;
        Ok(zerocopy::transmute!(bytes))
    }

    #[inline]
    fn put(&mut self, id: u16, len: u32) {
        let at = usize::from(self.used.at) * DESC_LEN;
        let flags = self.used.used_flags(len);
        let table = self.desc.slice();
        if self.first.is_none() {
            table.write(at + RESULT, len);
            table.write(at + RESULT + 4, id);
            self.first = Some((at + FLAGS, flags));
        } else {
            let result = u64::from(len) | u64::from(id) << 32 | u64::from(flags) << 48;
            table.write(at + RESULT, result);
        }
        let entries = std::mem::take(&mut self.entries[usize::from(id)]);
        self.used = self.used.after(entries, self.size);
        self.unasked += entries;
    }

    #[cold]
    fn put_in_order(&mut self, id: u16, len: u32) {
        let Some(mut order) = self.order.take() else { return };
        order.finish(id, len);
        while let Some((id, len)) = order.next() {
            self.put(id, len);
        }
        self.order = Some(order);
    }

    /// One store: the driver never sees a part of it.
    fn tell(slice: Slice<'_>, event: EventSuppression) {
        let word: u32 = zerocopy::transmute!(event);
        slice.store_u32(0, word, Ordering::Relaxed);
    }
}

impl Ring for PackedRing {
    const START: Position = Position { avail: WRAP, used: WRAP };

    fn activate(layout: &RingLayout, position: Position, view: &View) -> Result<Self, ActivateError> {
        let QueueConfig { size, desc, driver, device, .. } = layout.config;
        let table = view.span(desc, DESC_LEN * usize::from(size), true)?;
        Ok(Self {
            table: table.entries(0, size).ok_or(Fault(desc))?,
            desc: table,
            driver: view.span(driver, EVENT_LEN, false)?,
            device: view.span(device, EVENT_LEN, true)?,
            size,
            avail: Cursor::new(position.avail, size)?,
            used: Cursor::new(position.used, size)?,
            first: None,
            unasked: 0,
            entries: vec![0; usize::from(size)].into_boxed_slice(),
            event_idx: layout.has(feature::EVENT_IDX),
            indirect: layout.has(feature::INDIRECT_DESC),
            order: layout.has(feature::IN_ORDER).then(|| Box::new(InOrder::new(size))),
        })
    }

    fn position(&self) -> Position {
        Position { avail: self.avail.raw(), used: self.used.raw() }
    }

    #[inline]
    fn pending(&mut self) -> Result<bool, RingError> {
        Ok(self.is_available(self.avail))
    }

    #[inline]
    fn has_next(&self) -> bool {
        self.is_available(self.avail)
    }

    #[inline(always)]
    fn pop(&mut self, view: &View, chain: &mut Chain) -> Result<(), RingError> {
        let head = self.walk(view, chain)?;
        // Any id would do by the specification, but every driver counts them from zero, and tables are made for that.
        if head.id >= self.size {
            return Err(RingError::Index(head.id));
        }
        if !self.is_free(head.id) {
            return Err(RingError::Reused(head.id));
        }
        chain.name(head);
        Ok(())
    }

    #[inline(always)]
    fn peek_triple(&self, view: &View) -> Option<Triple> {
        let first = self.table.get(self.avail.at)?;
        let (buffers, is_read, head) = if first.flags & desc::INDIRECT == 0 {
            // What a guest changes meanwhile must not make it longer than its ring.
            let second_at = (self.size >= 3).then(|| self.after(self.avail.at))?;
            let (second, third) = (self.table.get(second_at)?, self.table.get(self.after(second_at))?);
            if first.flags & second.flags & desc::NEXT == 0 || third.flags & desc::NEXT != 0 {
                return None;
            }
            // The last one has the id (virtio 1.2, 2.8.6).
            let (buffers, is_read) = Self::triple(first, second, third)?;
            (buffers, is_read, Head { id: third.id, entries: 3 })
        } else {
            if !self.indirect || first.flags & desc::NEXT != 0 || first.len as usize != 3 * DESC_LEN {
                return None;
            }
            let table = view.slice(first.addr, 3 * DESC_LEN).ok().flatten()?.table();
            let (buffers, is_read) = Self::triple(table.get(0)?, table.get(1)?, table.get(2)?)?;
            (buffers, is_read, Head { id: first.id, entries: 1 })
        };
        (head.id < self.size && self.is_free(head.id)).then_some(Triple { head, buffers, is_read })
    }

    #[inline]
    fn advance(&mut self, Head { id, entries }: Head) {
        self.avail = self.avail.after(entries, self.size);
        self.entries[usize::from(id)] = entries;
        if let Some(order) = &mut self.order {
            order.take(id);
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
        let Some((at, flags)) = self.first.take() else { return false };
        // Release: the driver loads these flags and then reads the rest, and the data behind it.
        self.desc.slice().store_u16(at, flags, Ordering::Release);
        true
    }

    #[inline(always)]
    fn wants_interrupt(&mut self) -> bool {
        debug_assert!(self.first.is_none());
        let count = std::mem::take(&mut self.unasked);
        let word = self.driver.slice().load_u32(0, Ordering::Relaxed);
        let event: EventSuppression = zerocopy::transmute!(word);
        match event.flags & event_flags::MASK {
            event_flags::DISABLE => false,
            event_flags::DESC if self.event_idx => self.used.has_passed(event.position, count, self.size),
            _ => true,
        }
    }

    #[inline]
    fn prefetch(&self) {
        self.desc.slice().prefetch(usize::from(self.avail.at) * DESC_LEN);
    }

    fn enable_kicks(&mut self) -> bool {
        let event = if self.event_idx {
            EventSuppression { position: self.avail.raw(), flags: event_flags::DESC }
        } else {
            EventSuppression { position: 0, flags: event_flags::ENABLE }
        };
        Self::tell(self.device.slice(), event);
        // As with interrupts, the other way round: our wish first, then their flags.
        fence(Ordering::SeqCst);
        self.is_available(self.avail)
    }

    fn disable_kicks(&mut self) {
        Self::tell(self.device.slice(), EventSuppression { position: 0, flags: event_flags::DISABLE });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_flips_at_the_end_of_the_ring() {
        let start = Cursor { at: 5, wrap: true };
        assert_eq!(start.after(2, 8), Cursor { at: 7, wrap: true });
        assert_eq!(start.after(3, 8), Cursor { at: 0, wrap: false });
        assert_eq!(start.after(8, 8), Cursor { at: 5, wrap: false });
        let last = Cursor { at: 32767, wrap: false };
        assert_eq!(last.after(32768, 32768), Cursor { at: 32767, wrap: true });
    }

    #[test]
    fn position_outside_the_ring_is_refused() {
        assert_eq!(Cursor::new(WRAP | 8, 8), Err(ActivateError::Position(WRAP | 8)));
        assert_eq!(Cursor::new(WRAP | 7, 8).map(Cursor::raw), Ok(WRAP | 7));
    }
}
