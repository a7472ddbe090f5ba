//! A queue pair from the driver's side: rings in guest memory, identifiers, phases. Nothing here blocks, or allocates once
//! the pair is made. [`super::Nvme`] rings its doorbells.

use std::{collections::VecDeque, sync::atomic::Ordering};

use super::NvmeError;
use crate::{
    dma::Span,
    mock::memory::Memory,
    nvme::spec::{CQE_LEN, Command, Completion, PAGE, SQE_LEN},
};

/// A queue pair.
#[derive(Debug)]
pub struct QueuePair {
    /// Its identifier.
    pub qid: u16,
    pub(super) size: u16,
    sq: Span,
    cq: Span,
    /// Guest addresses of the rings.
    pub(super) addresses: (u64, u64),
    tail: u16,
    head: u16,
    phase: bool,
    /// The tail and the head that the controller was told last.
    told: (u16, u16),
    /// Which identifiers are in flight; the others are in `free`, the one that rested longest first.
    used: Box<[bool]>,
    free: VecDeque<u16>,
    /// Doorbells that were rung by a message, of those that could have been.
    pub(super) rung: u64,
}

impl QueuePair {
    pub(super) fn new(memory: &mut Memory, qid: u16, size: u16) -> Result<Self, NvmeError> {
        let (sq_len, cq_len) = (usize::from(size) * SQE_LEN, usize::from(size) * CQE_LEN);
        let page = usize::try_from(PAGE).unwrap_or(sq_len);
        let addresses = (memory.allocate(sq_len, page)?, memory.allocate(cq_len, page)?);
        let (sq, cq) = (memory.span(addresses.0, sq_len)?, memory.span(addresses.1, cq_len)?);
        Ok(Self {
            qid,
            size,
            sq,
            cq,
            addresses,
            tail: 0,
            head: 0,
            phase: true,
            told: (0, 0),
            used: vec![false; usize::from(size)].into_boxed_slice(),
            free: (0..size).collect(),
            rung: 0,
        })
    }

    /// Starts over, as after a reset: the memory is zeroed.
    pub(super) fn clear(&mut self) {
        for at in (0..usize::from(self.size) * CQE_LEN).step_by(4) {
            self.cq.slice().write(at, 0_u32);
        }
        (self.tail, self.head, self.phase, self.told) = (0, 0, true, (0, 0));
        self.used.fill(false);
        self.free.clear();
        self.free.extend(0..self.size);
    }

    /// Entries; also the bound of identifiers.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Commands in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        usize::from(self.size) - self.free.len()
    }

    /// Guest address of its completion queue.
    #[must_use]
    pub fn completion_address(&self) -> u64 {
        self.addresses.1
    }

    /// Doorbells rung by a message.
    #[must_use]
    pub fn rung(&self) -> u64 {
        self.rung
    }

    /// The identifier that [`Self::push`] will use next; none if there is no room.
    #[inline]
    #[must_use]
    pub fn next_cid(&self) -> Option<u16> {
        // One identifier stays free, as one entry does: with room for a command's identifier there is room for its entry, as
        // the controller has fetched all that it has completed.
        if self.free.len() <= 1 { None } else { self.free.front().copied() }
    }

    /// Puts a command into the queue, with an identifier of its own; none if there is no room.
    #[inline]
    pub fn push(&mut self, mut command: Command) -> Option<u16> {
        command.cid = self.next_cid()?;
        self.free.pop_front();
        self.used[usize::from(command.cid)] = true;
        self.sq.slice().write(usize::from(self.tail) * SQE_LEN, command);
        self.tail = if self.tail + 1 == self.size { 0 } else { self.tail + 1 };
        Some(command.cid)
    }

    /// Has the processor fetch what [`Self::take`] looks at.
    #[inline]
    pub fn prefetch(&self) {
        self.cq.slice().prefetch(usize::from(self.head) * CQE_LEN);
    }

    /// Takes a completion, if there is one.
    ///
    /// # Panics
    /// If it is of a command that is not in flight, or of another queue.
    #[inline]
    pub fn take(&mut self) -> Option<Completion> {
        let at = usize::from(self.head) * CQE_LEN;
        let last = self.cq.slice().load_u32(at + 12, Ordering::Acquire);
        if (last >> 16 & 1 == 1) != self.phase {
            return None;
        }
        let completion: Completion = self.cq.slice().read(at);
        let was_used = self.used.get_mut(usize::from(completion.cid)).is_some_and(std::mem::take);
        assert!(was_used, "a completion of nothing: {completion:?}");
        assert_eq!(completion.sq_id, self.qid, "{completion:?}");
        assert!(completion.sq_head < self.size, "{completion:?}");
        self.free.push_back(completion.cid);
        self.head += 1;
        if self.head == self.size {
            (self.head, self.phase) = (0, !self.phase);
        }
        Some(completion)
    }

    /// The tail as it was told last, and as it is, if it has moved; it counts as told then.
    #[inline]
    pub(super) fn moved_tail(&mut self) -> Option<(u16, u16)> {
        let old = std::mem::replace(&mut self.told.0, self.tail);
        (old != self.tail).then_some((old, self.tail))
    }

    /// The same for the head.
    #[inline]
    pub(super) fn moved_head(&mut self) -> Option<(u16, u16)> {
        let old = std::mem::replace(&mut self.told.1, self.head);
        (old != self.head).then_some((old, self.head))
    }
}
