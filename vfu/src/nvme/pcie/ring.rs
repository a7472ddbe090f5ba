//! Submission and completion queues in guest memory (PCIe, 3.1; Base, 3.3.1).

use super::doorbells::{Buffers, Doorbell, Doorbells, Side};
use crate::{
    dma::{Entries, View},
    nvme::{
        io::Finished,
        spec::{CQE_LEN, Command, SQE_LEN, Status, Transfer},
    },
};

/// How a queue was set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Setup {
    pub(super) qid: u16,
    pub(super) size: u16,
    pub(super) base: u64,
}

/// A submission queue.
#[derive(Debug)]
pub(super) struct Sq {
    pub(super) setup: Setup,
    pub(super) head: u16,
    /// As the doorbell said last.
    tail: u16,
    doorbell: Doorbell,
    /// [`Command`]s, in words: most commands need but some of them.
    entries: Option<Entries<[u64; SQE_LEN / 8]>>,
    /// Only messages reach its memory, see [`super::remote`]: no entries here.
    pub(super) is_remote: bool,
    /// A tail outside the queue, told once.
    bad: bool,
    /// Identifiers of commands that end when they are taken: they were aborted before.
    aborted: Vec<u16>,
}

/// A doorbell says something that is not in its queue.
#[derive(Debug)]
pub(super) struct BadDoorbell;

impl Sq {
    pub(super) fn new(setup: Setup, doorbells: &Doorbells) -> Self {
        let doorbell = Doorbell::new(doorbells, setup.qid, Side::Tail);
        Self {
            setup,
            head: 0,
            tail: 0,
            doorbell,
            entries: None,
            is_remote: false,
            bad: false,
            aborted: Vec::new(),
        }
    }

    /// Finds its memory anew; without it, it rests.
    pub(super) fn resolve(&mut self, view: Option<&View>, buffers: Option<Buffers>) -> bool {
        self.is_remote = false;
        self.doorbell.resolve(view, buffers);
        let view = view.filter(|_| !self.doorbell.is_lost);
        self.entries = view.and_then(|view| view.entries(self.setup.base, self.setup.size, false).ok());
        self.entries.is_some()
    }

    /// Has messages reach its memory, if they do.
    #[cold]
    pub(super) fn go_remote(&mut self, view: &View) -> bool {
        self.entries = None;
        let len = u64::from(self.setup.size) * SQE_LEN as u64;
        self.is_remote = !self.doorbell.is_lost && view.covers(self.setup.base, len, false);
        self.is_remote
    }

    /// Its entries cannot be had: until it finds its memory anew.
    pub(super) fn rest(&mut self) {
        self.is_remote = false;
    }

    /// Where the next entries lie that messages have to bring, at most so many, and how many they are.
    pub(super) fn next_remote(&self, most: u16) -> Option<(u64, u16)> {
        let to_end = self.setup.size - self.head;
        let n = self.behind().min(to_end).min(most);
        let at = self.setup.base + u64::from(self.head) * SQE_LEN as u64;
        (self.is_remote && n > 0).then_some((at, n))
    }

    /// Has the processor fetch what is looked at next.
    #[inline]
    pub(super) fn prefetch(&self) {
        self.doorbell.prefetch();
        if let Some(entries) = &self.entries {
            entries.prefetch(self.head, 2);
        }
    }

    /// Has the processor fetch the first entries, so many, as far as they lie in one piece.
    #[inline]
    pub(super) fn fetch_first(&self, count: u16) {
        if let Some(entries) = &self.entries {
            entries.prefetch(self.head, count.min(self.setup.size - self.head));
        }
    }

    /// Has the processor fetch the entry `ahead` of the head.
    #[inline]
    pub(super) fn fetch(&self, ahead: u16) {
        if let Some(entries) = &self.entries {
            let to_end = self.setup.size - self.head;
            entries.prefetch(if ahead < to_end { self.head + ahead } else { ahead - to_end }, 1);
        }
    }

    /// Entries that wait. The tail is loaded with acquire.
    #[inline(always)]
    pub(super) fn look(&mut self) -> Result<u16, BadDoorbell> {
        let tail = self.doorbell.load();
        if tail >= u32::from(self.setup.size) {
            if std::mem::replace(&mut self.bad, true) {
                return Ok(0);
            }
            return Err(BadDoorbell);
        }
        #[expect(clippy::cast_possible_truncation, reason = "below the size")]
        let tail = tail as u16;
        if tail != self.tail {
            self.tail = tail;
            self.doorbell.disarm(tail.into());
        }
        Ok(self.waiting())
    }

    #[inline]
    pub(super) fn waiting(&self) -> u16 {
        if self.entries.is_none() { 0 } else { self.behind() }
    }

    /// The same, wherever they are.
    #[inline]
    pub(super) fn behind(&self) -> u16 {
        if self.tail >= self.head { self.tail - self.head } else { self.setup.size - self.head + self.tail }
    }

    /// The entry `ahead` of the head; each is read once.
    #[inline]
    pub(super) fn peek(&self, ahead: u16) -> Option<Command> {
        let to_end = self.setup.size - self.head;
        let at = if ahead < to_end { self.head + ahead } else { ahead - to_end };
        let words = self.entries.as_ref()?.get(at)?;
        Some(zerocopy::transmute!(words))
    }

    /// The next entry if it is a [`Transfer`]. None for any other, and while something is to be aborted: [`Self::peek`] reads it
    /// anew.
    #[inline(always)]
    pub(super) fn peek_transfer(&self) -> Option<Transfer> {
        let entries = self.entries.as_ref().filter(|_| self.aborted.is_empty())?;
        Transfer::of(entries.words(self.head, Transfer::WORDS)?)
    }

    /// Aborts a command that waits. False if none has this identifier.
    #[cold]
    pub(super) fn abort(&mut self, cid: u16) -> bool {
        let waits = (0..self.waiting()).any(|ahead| {
            // One of two fused is not aborted alone.
            let command = self.peek(ahead);
            command.is_some_and(|command| command.cid == cid && command.fuse() == Command::FUSE_NONE)
        });
        if waits && !self.aborted.contains(&cid) {
            self.aborted.push(cid);
        }
        waits
    }

    /// Whether the command with this identifier, which is being taken, was aborted.
    #[inline]
    pub(super) fn is_aborted(&mut self, cid: u16) -> bool {
        !self.aborted.is_empty() && self.forget_aborted(cid)
    }

    #[cold]
    fn forget_aborted(&mut self, cid: u16) -> bool {
        let at = self.aborted.iter().position(|&one| one == cid);
        at.map(|at| self.aborted.swap_remove(at)).is_some()
    }

    /// Takes `n` entries off.
    #[inline]
    pub(super) fn advance(&mut self, n: u16) {
        let to_end = self.setup.size - self.head;
        self.head = if n < to_end { self.head + n } else { n - to_end };
    }

    /// Asks for a doorbell; true if there is something already.
    pub(super) fn arm(&self) -> bool {
        let rests = self.entries.is_none() && !self.is_remote;
        // Nonsense that was told is not looked at again; what the driver rings behind it is.
        let is_news = || !self.bad || self.doorbell.load() < u32::from(self.setup.size);
        !rests && self.doorbell.arm(self.tail.into()) && is_news()
    }

    pub(super) fn disarm(&self) {
        self.doorbell.disarm(self.tail.into());
    }
}

/// The second half of a completion queue entry.
#[inline]
pub(super) fn last_half(sq_head: u16, sq_id: u16, cid: u16, status: Status, phase: bool) -> u64 {
    u64::from(status.word(phase)) << 48 | u64::from(cid) << 32 | u64::from(sq_id) << 16 | u64::from(sq_head)
}

/// A completion queue.
#[derive(Debug)]
pub(super) struct Cq {
    setup: Setup,
    tail: u16,
    /// As the doorbell said last.
    head: u16,
    phase: bool,
    doorbell: Doorbell,
    entries: Option<Entries<[u64; CQE_LEN / 8]>>,
    /// Only messages reach its memory, see [`super::remote`].
    pub(super) is_remote: bool,
}

impl Cq {
    pub(super) fn new(setup: Setup, doorbells: &Doorbells) -> Self {
        let doorbell = Doorbell::new(doorbells, setup.qid, Side::Head);
        Self { setup, tail: 0, head: 0, phase: true, doorbell, entries: None, is_remote: false }
    }

    /// Finds its memory anew; without it, it rests.
    pub(super) fn resolve(&mut self, view: Option<&View>, buffers: Option<Buffers>) -> bool {
        self.is_remote = false;
        self.doorbell.resolve(view, buffers);
        let view = view.filter(|_| !self.doorbell.is_lost);
        self.entries = view.and_then(|view| view.entries(self.setup.base, self.setup.size, true).ok());
        self.entries.is_some()
    }

    /// Has messages reach its memory, if they do.
    #[cold]
    pub(super) fn go_remote(&mut self, view: &View) -> bool {
        self.entries = None;
        let len = u64::from(self.setup.size) * CQE_LEN as u64;
        self.is_remote = !self.doorbell.is_lost && view.covers(self.setup.base, len, true);
        self.is_remote
    }

    pub(super) fn is_resolved(&self) -> bool {
        self.entries.is_some() || self.is_remote
    }

    fn used(&self) -> u16 {
        if self.tail >= self.head { self.tail - self.head } else { self.setup.size - self.head + self.tail }
    }

    /// Entries that can be posted, if `want` of them suffice as the head was seen last; else as it is now.
    #[inline]
    pub(super) fn room(&mut self, want: u16) -> u16 {
        if self.entries.is_none() && !self.is_remote {
            return 0;
        }
        let room = self.setup.size - 1 - self.used();
        if room >= want { room } else { self.room_now() }
    }

    fn room_now(&mut self) -> u16 {
        self.look();
        self.setup.size - 1 - self.used()
    }

    /// Loads the head; one outside the queue is not believed.
    fn look(&mut self) {
        let head = self.doorbell.load();
        if head < u32::from(self.setup.size) {
            #[expect(clippy::cast_possible_truncation, reason = "below the size")]
            {
                self.head = head as u16;
            }
        }
    }

    /// Whether the driver has seen everything, as far as can be told.
    pub(super) fn is_consumed(&mut self) -> bool {
        if !self.doorbell.is_lost {
            self.look();
        }
        self.head == self.tail
    }

    /// Posts a completion; there is room. False if its memory is not mapped.
    #[inline]
    pub(super) fn post(&mut self, sq_head: u16, sq_id: u16, finished: Finished) -> bool {
        let Finished { cid, status, dw0, .. } = finished;
        self.post_raw(sq_head, sq_id, cid, status, dw0)
    }

    #[inline]
    pub(super) fn post_raw(&mut self, sq_head: u16, sq_id: u16, cid: u16, status: Status, dw0: u32) -> bool {
        let Some(entries) = &self.entries else { return false };
        // The half with the phase comes last.
        entries.publish(self.tail, [dw0.into(), last_half(sq_head, sq_id, cid, status, self.phase)]);
        self.advance();
        true
    }

    #[inline]
    fn advance(&mut self) {
        self.tail += 1;
        if self.tail == self.setup.size {
            (self.tail, self.phase) = (0, !self.phase);
        }
    }

    /// Entries that were taken since the tail was `tail`; and where it is now.
    pub(super) fn since(&self, tail: u16) -> (u16, u16) {
        let n = if self.tail >= tail { self.tail - tail } else { self.setup.size - tail + self.tail };
        (n, self.tail)
    }

    /// Takes an entry, for which there is room, to be written by messages: its guest address, and its phase.
    pub(super) fn claim(&mut self) -> (u64, bool) {
        let claimed = (self.setup.base + u64::from(self.tail) * CQE_LEN as u64, self.phase);
        self.advance();
        claimed
    }

    /// Asks for a doorbell at the next change of the head; true if there was one.
    pub(super) fn arm(&self) -> bool {
        self.doorbell.arm(self.head.into())
    }

    pub(super) fn disarm(&self) {
        self.doorbell.disarm(self.head.into());
    }
}

#[cfg(test)]
mod tests;
