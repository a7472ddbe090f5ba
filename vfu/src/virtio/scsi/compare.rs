//! VERIFY with data of the driver's (BYTCHK): no bdev compares, so the blocks are read into memory of our own and looked
//! at here. [`super::request`] drives it, step by step; one such command of a queue at a time, others wait.

use bdev::{IoVec, Op};

use super::steps::Range;
use crate::{
    dma::{Bounce, Fault, View},
    virtio::{blk::request::Data, queue::Segment},
};

/// Bytes that are compared at a time, unless one block has more.
const STEP_LEN: usize = 64 << 10;

/// What is left of a comparison.
#[derive(Clone, Copy, Debug)]
pub(super) struct Compare {
    lba: u64,
    left: u64,
    block_size: u64,
    /// Blocks that the read under way is of, and where their data begins among the driver's.
    step: u64,
    at: u64,
    /// One block of data stands for all.
    is_one: bool,
}

impl Compare {
    pub(super) fn new((lba, blocks): Range, block_size: u64, is_one: bool) -> Self {
        Self { lba, left: blocks, block_size, step: 0, at: 0, is_one }
    }

    /// Bytes that the driver has to bring.
    pub(super) fn len(self) -> u64 {
        if self.is_one { self.block_size } else { self.left.saturating_mul(self.block_size) }
    }

    pub(super) fn has_more(self) -> bool {
        self.left > 0
    }

    pub(super) fn steps_left(self) -> u64 {
        self.left.div_ceil(self.step_blocks())
    }

    fn step_blocks(self) -> u64 {
        (STEP_LEN as u64 / self.block_size).max(1)
    }

    /// The next read, and what is left once it is accepted. Its vector is left in `iov`.
    pub(super) fn next(self, desk: &Desk, iov: &mut Vec<IoVec>) -> (Op, Range, Self) {
        let blocks = self.left.min(self.step_blocks());
        if let Some(memory) = &desk.memory {
            memory.vector((blocks * self.block_size) as usize, iov);
        }
        let at = if self.is_one { 0 } else { self.at + self.step * self.block_size };
        let rest = Self { lba: self.lba + blocks, left: self.left - blocks, step: blocks, at, ..self };
        (Op::Read, (self.lba, blocks), rest)
    }
}

/// Memory for blocks from the medium, and copies of both sides to compare.
struct Memory {
    bounce: Bounce,
    read: Vec<u8>,
    given: Vec<u8>,
}

impl Memory {
    /// A vector over the first bytes of what is read.
    fn vector(&self, len: usize, iov: &mut Vec<IoVec>) {
        iov.clear();
        let found = self.bounce.view().translate(0, len as u32, true, iov);
        found.expect("inside its one window, and there is room for a vector");
    }
}

/// Where a queue compares.
pub(super) struct Desk {
    /// Made by the first command that needs it: hardly any driver sends one.
    memory: Option<Memory>,
    /// The driver's data.
    pieces: Vec<Segment>,
    is_used: bool,
}

impl Desk {
    pub(super) fn new() -> Self {
        Self { memory: None, pieces: Vec::new(), is_used: false }
    }

    /// Takes the desk for a command with these data. False while another has it; an error without memory.
    pub(super) fn take(&mut self, data: Data<'_>, block_size: u64) -> Result<bool, rustix::io::Errno> {
        if self.is_used {
            return Ok(false);
        }
        let len = STEP_LEN.max(block_size as usize);
        if self.memory.as_ref().is_none_or(|memory| memory.read.len() < len) {
            let (read, given) = (vec![0; len], vec![0; len]);
            self.memory = Some(Memory { bounce: Bounce::new(0, len as u64)?, read, given });
        }
        self.pieces.clear();
        self.pieces.extend(data.pieces());
        self.is_used = true;
        Ok(true)
    }

    /// The command has ended.
    pub(super) fn give_back(&mut self) {
        self.is_used = false;
    }

    /// Whether the blocks that were read are the driver's. `iov` is overwritten.
    pub(super) fn is_equal(
        &mut self,
        compare: Compare,
        view: &View,
        iov: &mut Vec<IoVec>,
    ) -> Result<bool, Fault> {
        let Some(memory) = &mut self.memory else { return Ok(false) };
        let len = (compare.step * compare.block_size) as usize;
        memory.vector(len, iov);
        let (read, given) = (&mut memory.read[..len], &mut memory.given[..len]);
        bdev::iov::gather(iov, read);
        let unit = if compare.is_one { compare.block_size as usize } else { len };
        read_at(&self.pieces, compare.at, &mut given[..unit], view)?;
        Ok(read.chunks_exact(unit).all(|blocks| *blocks == given[..unit]))
    }
}

/// Reads from the driver's data, from a byte of them on.
fn read_at(pieces: &[Segment], at: u64, to: &mut [u8], view: &View) -> Result<(), Fault> {
    let (mut skip, mut done) = (at, 0);
    for piece in pieces {
        let len = u64::from(piece.len);
        if skip >= len {
            skip -= len;
            continue;
        }
        let n = ((len - skip) as usize).min(to.len() - done);
        view.read(piece.addr + skip, &mut to[done..done + n])?;
        (skip, done) = (0, done + n);
        if done == to.len() {
            break;
        }
    }
    Ok(())
}
