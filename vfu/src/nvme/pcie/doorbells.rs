//! The doorbells of one controller: two pages of a file that a guest may map, and where else a doorbell may be.

use std::{
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::atomic::{AtomicU32, Ordering, fence},
};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::Errno,
};

use super::shadow::{self, Word};
use crate::{
    dma::{Protection, Span, View, Windows},
    nvme::spec::reg,
};

/// Bytes of BAR0: a page of registers, two of doorbells, one that is empty.
pub(super) const BAR_LEN: u32 = 0x4000;
/// Bytes of doorbells.
pub(super) const LEN: u64 = 0x2000;
/// Most I/O queue pairs: with the admin queue's, their doorbells fit.
pub const MAX_IO_QUEUES: u16 = 512;
const _: () = assert!((MAX_IO_QUEUES as u64 + 1) * 8 <= LEN);

/// Which doorbell of a queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Side {
    Tail,
    Head,
}

/// Where the doorbell of a queue lies, from the first one on (CAP.DSTRD is zero).
fn offset(qid: u16, side: Side) -> usize {
    usize::from(qid) * 8 + if side == Side::Head { 4 } else { 0 }
}

/// Guest addresses of the shadow doorbells and of their event indexes, one page each (Base, 5.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Buffers {
    pub(super) shadow: u64,
    pub(super) event: u64,
}

impl Buffers {
    const LEN: usize = 4096;

    /// Both pages, if the device reaches them.
    pub(super) fn spans(self, view: &View) -> Option<(Span, Span)> {
        let page = |address| view.span(address, Self::LEN, true).ok();
        Some((page(self.shadow)?, page(self.event)?))
    }

    /// Where a doorbell starts that the driver has not rung here yet, before it may: what another life of the queue left in the
    /// page would have old commands executed again. False if the page cannot be reached.
    pub(super) fn start(self, view: &View, (qid, side): (u16, Side), value: u32) -> bool {
        if offset(qid, side) >= Self::LEN {
            return true;
        }
        let Some((shadow, _)) = self.spans(view) else { return false };
        shadow.slice().store_u32(offset(qid, side), value, Ordering::Release);
        true
    }

    /// Where a doorbell stands; none if it cannot be reached, or has no place here.
    pub(super) fn load(self, view: &View, (qid, side): (u16, Side)) -> Option<u32> {
        let (shadow, _) = self.spans(view).filter(|_| offset(qid, side) < Self::LEN)?;
        Some(shadow.slice().load_u32(offset(qid, side), Ordering::Acquire))
    }
}

/// The doorbells of a controller.
#[derive(Debug)]
pub(super) struct Doorbells {
    file: OwnedFd,
    span: Span,
    /// How often they were cleared.
    lives: AtomicU32,
    /// The guest may map them: a ring is a store that only polling sees.
    pub(super) is_mapped: bool,
}

impl Doorbells {
    pub(super) fn new(is_mapped: bool) -> Result<Self, Errno> {
        let file = memfd_create("ringside-doorbells", MemfdFlags::CLOEXEC)?;
        ftruncate(&file, u64::from(BAR_LEN))?;
        let windows = Windows::default();
        let ours = file.try_clone().map_err(|_limit| Errno::MFILE)?;
        windows.map(0, LEN, Protection { read: true, write: true }, Some((ours, reg::DOORBELLS)))?;
        let span = View::new(&windows).span(0, LEN as usize, true).map_err(|_none| Errno::INVAL)?;
        Ok(Self { file, span, lives: AtomicU32::new(0), is_mapped })
    }

    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    pub(super) fn store(&self, qid: u16, side: Side, value: u32) {
        self.span.slice().store_u32(offset(qid, side), value, Ordering::Release);
    }

    #[inline]
    pub(super) fn load(&self, qid: u16, side: Side) -> u32 {
        self.span.slice().load_u32(offset(qid, side), Ordering::Acquire)
    }

    /// Both doorbells of a queue pair as they stand in the page, and how often the page was cleared.
    #[inline]
    pub(super) fn both(&self, qid: u16) -> [u32; 3] {
        [self.lives.load(Ordering::Acquire), self.load(qid, Side::Tail), self.load(qid, Side::Head)]
    }

    pub(super) fn clear(&self) {
        for at in (0..LEN as usize).step_by(4) {
            self.span.slice().store_u32(at, 0, Ordering::Relaxed);
        }
        self.lives.fetch_add(1, Ordering::Release);
    }
}

/// One doorbell as its queue reads it: the page's, or a shadow in guest memory with its event index.
#[derive(Debug)]
pub(super) struct Doorbell {
    page: Span,
    at: usize,
    shadow: Option<(Span, Span)>,
    /// It has a shadow that cannot be reached now: what the page says is old.
    pub(super) is_lost: bool,
}

/// A word of a span.
struct At<'a>(&'a Span, usize);

impl Word for At<'_> {
    fn load(&self, order: Ordering) -> u32 {
        self.0.slice().load_u32(self.1, order)
    }
    fn store(&self, value: u32, order: Ordering) {
        self.0.slice().store_u32(self.1, value, order);
    }
    fn fence() {
        fence(Ordering::SeqCst);
    }
}

impl Doorbell {
    pub(super) fn new(doorbells: &Doorbells, qid: u16, side: Side) -> Self {
        Self { page: doorbells.span.clone(), at: offset(qid, side), shadow: None, is_lost: false }
    }

    /// Finds its shadow anew, if it has one. What stands there is the driver's, and the home's where a queue starts
    /// ([`Buffers::start`]): a queue never writes to it.
    pub(super) fn resolve(&mut self, view: Option<&View>, buffers: Option<Buffers>) {
        // The buffers are one page long: later queues have no shadow.
        let buffers = buffers.filter(|_| self.at < Buffers::LEN);
        self.shadow = view.zip(buffers).and_then(|(view, buffers)| buffers.spans(view));
        self.is_lost = buffers.is_some() && self.shadow.is_none();
    }

    #[inline]
    pub(super) fn prefetch(&self) {
        let span = self.shadow.as_ref().map_or(&self.page, |(shadow, _)| shadow);
        span.slice().prefetch(self.at);
    }

    #[inline]
    pub(super) fn load(&self) -> u32 {
        match &self.shadow {
            None => self.page.slice().load_u32(self.at, Ordering::Acquire),
            Some((shadow, _)) => shadow.slice().load_u32(self.at, Ordering::Acquire),
        }
    }

    /// Asks to be rung at the next change; true if there was one.
    pub(super) fn arm(&self, seen: u32) -> bool {
        match &self.shadow {
            None => {
                fence(Ordering::SeqCst);
                self.load() != seen
            }
            Some((shadow, event)) => shadow::arm(&At(shadow, self.at), &At(event, self.at), seen),
        }
    }

    /// Asks not to be rung while it is polled.
    #[inline]
    pub(super) fn disarm(&self, seen: u32) {
        if let Some((_, event)) = &self.shadow {
            shadow::disarm(&At(event, self.at), seen);
        }
    }
}
