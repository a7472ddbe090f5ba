//! A split ring that is reached by messages (virtio 1.2, 2.7).

use zerocopy::{FromBytes, IntoBytes};

use super::{ENTRIES_MAX, Failure, Offered, Reach, Shape};
use crate::{
    dma::{Fault, Ticket},
    virtio::{
        queue::{Chain, Position, QueueConfig, RingError, Segment},
        spec::{AVAIL_NO_INTERRUPT, Desc, UsedElem, desc, feature},
    },
};

const RING: u64 = 4;

pub(super) struct Split {
    config: QueueConfig,
    next_avail: u16,
    next_used: u16,
    /// The used index when the driver was asked for an interrupt last.
    told: u16,
}

impl Split {
    pub(super) fn new(config: QueueConfig, position: Position) -> Self {
        Self { config, next_avail: position.avail, next_used: position.used, told: position.used }
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.config.size - 1))
    }

    fn has(&self, bit: u64) -> bool {
        self.config.features & bit != 0
    }

    /// Flags and index of the available ring. Four bytes, so that the first answer tells how the client lays out its
    /// messages before anything longer is asked.
    async fn available(&self, reach: &Reach) -> Result<(u16, u16), Fault> {
        let [a, b, c, d] = reach.read::<4>(self.config.driver).await?;
        Ok((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }

    async fn descriptor(&self, reach: &Reach, index: u16) -> Result<Desc, Failure> {
        let at = self.config.desc + u64::from(index) * size_of::<Desc>() as u64;
        let bytes: [u8; size_of::<Desc>()] = reach.read(at).await?;
        Ok(zerocopy::transmute!(bytes))
    }
}

impl Shape for Split {
    async fn pending(&mut self, reach: &Reach) -> Result<u16, Failure> {
        let (_, index) = self.available(reach).await?;
        let pending = index.wrapping_sub(self.next_avail);
        if pending > self.config.size { Err(RingError::AvailIndex(pending).into()) } else { Ok(pending) }
    }

    async fn next(&self, reach: &Reach) -> Result<Offered, Failure> {
        let at = self.config.driver + RING + 2 * self.slot(self.next_avail);
        let head = u16::from_le_bytes(reach.read(at).await?);
        if head >= self.config.size {
            return Err(RingError::Index(head).into());
        }
        let first = self.descriptor(reach, head).await?;
        let mut table = None;
        if first.flags & desc::INDIRECT != 0 {
            let is_allowed = self.has(feature::INDIRECT_DESC) && first.flags & desc::NEXT == 0;
            let bytes = reach.table(first.addr, first.len, is_allowed).await?;
            let entries =
                bytes.chunks_exact(size_of::<Desc>()).filter_map(|it| Desc::read_from_bytes(it).ok());
            table = Some(entries.collect::<Vec<_>>());
        }
        let mut entry = table.as_ref().map_or(first, |table| table[0]);
        let entries =
            table.as_ref().map_or(self.config.size, |table| u16::try_from(table.len()).unwrap_or(u16::MAX));
        let mut segments = Vec::new();
        for _ in 0..usize::from(entries).min(ENTRIES_MAX) {
            if entry.flags & desc::INDIRECT != 0 {
                return Err(RingError::Indirect.into());
            }
            segments.push((Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0));
            if entry.flags & desc::NEXT == 0 {
                return Ok(Offered { id: head, entries: 1, segments });
            }
            if entry.next >= entries {
                return Err(RingError::Index(entry.next).into());
            }
            entry = match &table {
                Some(table) => table[usize::from(entry.next)],
                None => self.descriptor(reach, entry.next).await?,
            };
        }
        Err(RingError::Loop.into())
    }

    fn give_back(&mut self, reach: &Reach, chain: &Chain, written: u32, tickets: &mut Vec<Ticket>) {
        let at = self.config.device + RING + 8 * self.slot(self.next_used);
        let element = UsedElem { id: u32::from(chain.id()), len: written };
        reach.start_write(at, element.as_bytes(), tickets);
        self.next_used = self.next_used.wrapping_add(1);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    async fn publish(&mut self, reach: &Reach) -> Result<(), Failure> {
        Ok(reach.write(self.config.device + 2, &self.next_used.to_le_bytes()).await?)
    }

    async fn wants_interrupt(&mut self, reach: &Reach) -> Result<bool, Failure> {
        let old = std::mem::replace(&mut self.told, self.next_used);
        if !self.has(feature::EVENT_IDX) {
            return Ok(self.available(reach).await?.0 & AVAIL_NO_INTERRUPT == 0);
        }
        let at = self.config.driver + RING + 2 * u64::from(self.config.size);
        let event = u16::from_le_bytes(reach.read(at).await?);
        Ok(self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old))
    }

    async fn enable_kicks(&mut self, reach: &Reach) -> Result<bool, Failure> {
        if !self.has(feature::EVENT_IDX) {
            return Ok(false);
        }
        let at = self.config.device + RING + 8 * u64::from(self.config.size);
        reach.write(at, &self.next_avail.to_le_bytes()).await?;
        // The driver may have gone on before it could see the wish.
        Ok(self.available(reach).await?.1 != self.next_avail)
    }

    fn position(&self) -> Position {
        Position { avail: self.next_avail, used: self.next_used }
    }
}
