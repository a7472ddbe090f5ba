//! Commands that are several requests of their bdev, one after the other: WRITE SAME with a block that is not all
//! zeroes, UNMAP with more than one descriptor, and VERIFY with data. [`super::request`] drives them; what is left to do of one is in its
//! slot, and the ranges of an UNMAP, read once, in a list of the queue's.

use bdev::{IoVec, Op, Status};

use super::{
    compare::{Compare, Desk},
    request::gather,
    sense::Sense,
};
use crate::{
    dma::View,
    virtio::{blk::request::Data, queue::Segment},
};

/// Descriptors of an UNMAP, as the block limits page says.
pub(super) const MAX_UNMAPS: u32 = 256;
/// UNMAPs of more than one descriptor at a time; more of them have to wait.
const LISTS: usize = 4;
/// A command with more requests to go than this is long. No UNMAP is.
const LONG: u64 = MAX_UNMAPS as u64;
/// Blocks of a WRITE SAME that one request of the bdev writes.
const SAME_BLOCKS: u64 = 256;
/// The header of an UNMAP's data, and a descriptor (SBC-3, 5.28).
const HEADER_LEN: usize = 8;
const DESCRIPTOR_LEN: usize = 16;

/// What is left to do.
#[derive(Clone, Copy, Debug)]
pub(super) enum Steps {
    /// Writes this block so many times.
    Same { block: Segment, lba: u64, left: u64 },
    /// Unmaps the ranges of a list, from one of them on.
    Unmap { list: usize, at: usize },
    /// Reads, and compares.
    Compare(Compare),
}

/// A range of blocks.
pub(super) type Range = (u64, u64);

/// The ranges of UNMAPs that are under way.
pub(super) struct Lists([(Vec<Range>, bool); LISTS]);

/// What commands of several requests need beside their slot.
pub(super) struct Tools {
    pub(super) lists: Lists,
    pub(super) desk: Desk,
}

impl Tools {
    pub(super) fn new() -> Self {
        Self { lists: Lists::new(), desk: Desk::new() }
    }
}

impl Lists {
    fn new() -> Self {
        Self(std::array::from_fn(|_| (Vec::with_capacity(MAX_UNMAPS as usize), false)))
    }

    /// A list that nobody uses.
    pub(super) fn free(&self) -> Option<usize> {
        self.0.iter().position(|(_, is_used)| !is_used)
    }

    /// Reads the descriptors of an UNMAP into a list, each once. Those of no blocks are left out.
    pub(super) fn read(
        &mut self,
        list: usize,
        length: u32,
        out: Data<'_>,
        view: &View,
    ) -> Result<&[Range], Sense> {
        let (ranges, _) = &mut self.0[list];
        ranges.clear();
        if length == 0 {
            return Ok(ranges);
        }
        let mut header = [0; HEADER_LEN];
        if (length as usize) < HEADER_LEN || gather(view, out, &mut header).is_none() {
            return Err(Sense::PARAMETER_LENGTH);
        }
        let there = usize::from(u16::from_be_bytes([header[2], header[3]])).min(length as usize - HEADER_LEN);
        let count = there / DESCRIPTOR_LEN;
        if count > MAX_UNMAPS as usize {
            return Err(Sense::BAD_PARAMETER);
        }
        let mut bytes = [0; HEADER_LEN + MAX_UNMAPS as usize * DESCRIPTOR_LEN];
        let bytes = &mut bytes[..HEADER_LEN + count * DESCRIPTOR_LEN];
        if gather(view, out, bytes).is_none() {
            return Err(Sense::PARAMETER_LENGTH);
        }
        let descriptors = bytes[HEADER_LEN..].chunks_exact(DESCRIPTOR_LEN).map(|descriptor| {
            let number = |bytes: &[u8]| bytes.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte));
            (number(&descriptor[..8]), number(&descriptor[8..12]))
        });
        // No more than there is room for: `count` was checked.
        ranges.extend(descriptors.filter(|(_, blocks)| *blocks > 0));
        Ok(ranges)
    }

    /// Keeps a list for a command that goes on.
    pub(super) fn keep(&mut self, list: usize) {
        self.0[list].1 = true;
    }
}

impl Steps {
    /// Whether there is more to do.
    pub(super) fn has_more(self, tools: &Tools) -> bool {
        match self {
            Self::Same { left, .. } => left > 0,
            Self::Unmap { list, at } => at < tools.lists.0[list].0.len(),
            Self::Compare(compare) => compare.has_more(),
        }
    }

    /// Whether there is so much to do that nobody should wait for it.
    pub(super) fn is_long(self) -> bool {
        match self {
            Self::Same { left, .. } => left.div_ceil(SAME_BLOCKS) > LONG,
            Self::Unmap { .. } => false,
            Self::Compare(compare) => compare.steps_left() > LONG,
        }
    }

    /// The next request, and what is left once it is accepted. Its vectors are left in `iov`.
    pub(super) fn next(
        self,
        tools: &Tools,
        view: &View,
        iov: &mut Vec<IoVec>,
    ) -> Result<(Op, Range, Self), Status> {
        iov.clear();
        match self {
            Self::Same { block, lba, left } => {
                let blocks = left.min(SAME_BLOCKS);
                for _ in 0..blocks {
                    let reached = view.translate(block.addr, block.len, false, iov);
                    reached.map_err(|_fault| Status::IoError)?;
                }
                let rest = Self::Same { block, lba: lba + blocks, left: left - blocks };
                Ok((Op::WRITE, (lba, blocks), rest))
            }
            Self::Unmap { list, at } => {
                Ok((Op::Unmap, tools.lists.0[list].0[at], Self::Unmap { list, at: at + 1 }))
            }
            Self::Compare(compare) => {
                let (op, range, rest) = compare.next(&tools.desk, iov);
                Ok((op, range, Self::Compare(rest)))
            }
        }
    }

    /// The command has ended.
    pub(super) fn end(self, tools: &mut Tools) {
        match self {
            Self::Unmap { list, .. } => tools.lists.0[list].1 = false,
            Self::Compare(_) => tools.desk.give_back(),
            Self::Same { .. } => {}
        }
    }
}
