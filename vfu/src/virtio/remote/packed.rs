//! A packed ring that is reached by messages (virtio 1.2, 2.8).

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::{DESC_LEN, ENTRIES_MAX, Failure, Offered, Reach, Shape};
use crate::{
    dma::Ticket,
    virtio::{
        queue::{Chain, Cursor, Position, QueueConfig, RingError, Segment},
        spec::{EventSuppression, PackedDesc, desc, event_flags, feature},
    },
};

/// Offset of length and id in a descriptor; the flags follow.
const RESULT: u64 = 8;
const ID: u64 = 12;
const FLAGS: u64 = 14;

pub(super) struct Packed {
    config: QueueConfig,
    avail: Cursor,
    used: Cursor,
    /// Where the flags of the chain that was given back go, and what they are.
    mark: (u64, u16),
    /// Descriptors that were published since the driver was asked for an interrupt.
    published: u16,
}

impl Packed {
    /// # Errors
    /// A position outside of the ring: no queue of ours stands there.
    pub(super) fn new(config: QueueConfig, position: Position) -> Result<Self, Errno> {
        let cursor = |raw| Cursor::new(raw, config.size).map_err(|_outside| Errno::INVAL);
        let (avail, used) = (cursor(position.avail)?, cursor(position.used)?);
        Ok(Self { config, avail, used, mark: (0, 0), published: 0 })
    }

    fn at(&self, cursor: Cursor) -> u64 {
        self.config.desc + (usize::from(cursor.at()) * DESC_LEN) as u64
    }

    fn has(&self, bit: u64) -> bool {
        self.config.features & bit != 0
    }

    async fn descriptor(&self, reach: &Reach, cursor: Cursor) -> Result<PackedDesc, Failure> {
        let bytes: [u8; DESC_LEN] = reach.read(self.at(cursor)).await?;
        Ok(zerocopy::transmute!(bytes))
    }
}

impl Shape for Packed {
    /// One, or none. Four bytes are asked for, as by a split ring; the rest of the descriptor is asked for after that, as it
    /// is valid only once its flags are.
    async fn pending(&mut self, reach: &Reach) -> Result<u16, Failure> {
        let [_, _, low, high] = reach.read::<4>(self.at(self.avail) + ID).await?;
        Ok(u16::from(self.avail.is_available(u16::from_le_bytes([low, high]))))
    }

    async fn next(&self, reach: &Reach) -> Result<Offered, Failure> {
        let (mut segments, mut cursor) = (Vec::new(), self.avail);
        let segment = |entry: &PackedDesc| {
            (Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0)
        };
        for entries in 1..=self.config.size.min(ENTRIES_MAX as u16) {
            let entry = self.descriptor(reach, cursor).await?;
            let is_last = entry.flags & desc::NEXT == 0;
            if entry.flags & desc::INDIRECT == 0 {
                segments.push(segment(&entry));
            } else {
                let is_allowed = self.has(feature::INDIRECT_DESC) && entries == 1 && is_last;
                let table = reach.table(entry.addr, entry.len, is_allowed).await?;
                for inner in
                    table.chunks_exact(DESC_LEN).filter_map(|it| PackedDesc::read_from_bytes(it).ok())
                {
                    if inner.flags & desc::INDIRECT != 0 {
                        return Err(RingError::Indirect.into());
                    }
                    segments.push(segment(&inner));
                }
            }
            if is_last {
                // As by `PackedRing`: the last one has the id, and drivers count them from zero.
                if entry.id >= self.config.size {
                    return Err(RingError::Index(entry.id).into());
                }
                return Ok(Offered { id: entry.id, entries, segments });
            }
            cursor = cursor.after(1, self.config.size);
        }
        Err(RingError::Loop.into())
    }

    fn give_back(&mut self, reach: &Reach, chain: &Chain, written: u32, tickets: &mut Vec<Ticket>) {
        let at = self.at(self.used);
        let mut result = [0; 6];
        result[..4].copy_from_slice(&written.to_le_bytes());
        result[4..].copy_from_slice(&chain.id().to_le_bytes());
        reach.start_write(at + RESULT, &result, tickets);
        self.mark = (at + FLAGS, self.used.used_flags(written));
        self.used = self.used.after(chain.head().entries, self.config.size);
        self.avail = self.avail.after(chain.head().entries, self.config.size);
        self.published += chain.head().entries;
    }

    async fn publish(&mut self, reach: &Reach) -> Result<(), Failure> {
        let (at, flags) = self.mark;
        Ok(reach.write(at, &flags.to_le_bytes()).await?)
    }

    async fn wants_interrupt(&mut self, reach: &Reach) -> Result<bool, Failure> {
        let count = std::mem::take(&mut self.published);
        let event: EventSuppression = zerocopy::transmute!(reach.read::<4>(self.config.driver).await?);
        Ok(match event.flags & event_flags::MASK {
            event_flags::DISABLE => false,
            event_flags::DESC if self.has(feature::EVENT_IDX) => {
                self.used.has_passed(event.position, count, self.config.size)
            }
            _ => true,
        })
    }

    async fn enable_kicks(&mut self, reach: &Reach) -> Result<bool, Failure> {
        let event = if self.has(feature::EVENT_IDX) {
            EventSuppression { position: self.avail.raw(), flags: event_flags::DESC }
        } else {
            EventSuppression { position: 0, flags: event_flags::ENABLE }
        };
        reach.write(self.config.device, event.as_bytes()).await?;
        // The driver may have gone on before it could see the wish.
        Ok(self.pending(reach).await? > 0)
    }

    fn position(&self) -> Position {
        Position { avail: self.avail.raw(), used: self.used.raw() }
    }
}
