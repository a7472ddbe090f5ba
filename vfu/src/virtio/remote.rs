//! A queue whose ring is in memory that only messages reach: slower, and correct.
//!
//! Chain by chain, what the device reads is fetched into a bounce buffer, the handler works on that as if it were guest
//! memory, and what it wrote is sent back, before the used ring tells. One chain is under way at a time. The work is a
//! future that the queue's owner polls; it never touches the handler, but hands the owner a chain ([`RemoteQueue::offer`])
//! and waits for its end. Split rings only.

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    os::fd::OwnedFd,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use reactor::Waker;
use zerocopy::{FromBytes, IntoBytes};

use super::{
    queue::{Chain, Position, QueueConfig, RingError, Segment},
    spec::{AVAIL_NO_INTERRUPT, Desc, MAX_QUEUE_SIZE, UsedElem, desc, feature},
};
use crate::{
    device::Bus,
    dma::{Fault, Protection, View, Windows},
};

/// Bytes of one chain. Pages come to be when they are used.
pub(super) const BOUNCE_LEN: u64 = 8 << 20;
/// Where the bounce buffer is, for the handler.
const BOUNCE: u64 = 0x1000;
/// Descriptors of one indirect table, and of a chain.
const ENTRIES_MAX: usize = Chain::MAX_SEGMENTS;

const RING: u64 = 4;

/// Why a queue stops by itself.
#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(transparent)]
    Ring(#[from] RingError),
    #[error("a chain of more than {BOUNCE_LEN} bytes")]
    TooLong,
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Self::Ring(RingError::Fault(fault))
    }
}

/// What owner and future say to each other.
#[derive(Debug, Default)]
struct Desk {
    /// The owner wants the future to end after the chain under way.
    stop: bool,
    /// The driver may have made something available.
    look: bool,
    /// A chain for the handler.
    offered: Option<Chain>,
    /// How many bytes of it the handler wrote.
    finished: Option<u32>,
    /// The driver wants an interrupt.
    interrupt: bool,
    position: Position,
    requests: u64,
    /// Commands that write guest memory are under way.
    writing: bool,
}

/// How a future ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// As it was told.
    Stopped,
    /// The driver broke the ring, or the client refuses its memory.
    Broken,
}

/// A queue that works through messages.
pub(super) struct RemoteQueue {
    desk: Rc<RefCell<Desk>>,
    work: Pin<Box<dyn Future<Output = Ended>>>,
    bounce: View,
}

impl RemoteQueue {
    /// A queue that goes on from `position`. `owner` wakes its poller.
    ///
    /// # Errors
    /// No memory for the bounce buffer.
    pub(super) fn new(
        name: &str,
        bus: &Arc<Bus>,
        config: QueueConfig,
        position: Position,
        owner: Waker,
    ) -> Result<Self, rustix::io::Errno> {
        let file = bounce_file()?;
        let windows = Windows::default();
        let both = Protection { read: true, write: true };
        windows.map(BOUNCE, BOUNCE_LEN, both, Some((file, 0))).map_err(rustix::io::Errno::from)?;
        let bounce = View::new(&windows);
        let desk = Rc::new(RefCell::new(Desk { look: true, position, ..Desk::default() }));
        let ring = RemoteRing {
            bus: Arc::clone(bus),
            owner,
            config,
            next_avail: position.avail,
            next_used: position.used,
            desk: Rc::clone(&desk),
            bounce: View::new(&windows),
        };
        let name = name.to_owned();
        let work = Box::pin(async move {
            match ring.run().await {
                Ok(()) => Ended::Stopped,
                Err(error) => {
                    tracing::warn!(queue = name, %error, "a queue in memory that is not shared ends");
                    Ended::Broken
                }
            }
        });
        Ok(Self { desk, work, bounce })
    }

    /// What the handler works on.
    pub(super) fn bounce(&self) -> &View {
        &self.bounce
    }

    /// Where the ring stands.
    pub(super) fn position(&self) -> Position {
        self.desk.borrow().position
    }

    /// Tells it to end after the chain under way.
    pub(super) fn stop(&self) {
        self.desk.borrow_mut().stop = true;
    }

    /// Whether guest memory is being written: that has to be waited for.
    pub(super) fn is_writing(&self) -> bool {
        self.desk.borrow().writing
    }

    /// Tells it to look at the ring again.
    pub(super) fn look(&self) {
        self.desk.borrow_mut().look = true;
    }

    /// Goes on as far as answers are there. How it ended, once.
    pub(super) fn go_on(&mut self) -> Option<Ended> {
        match self.work.as_mut().poll(&mut Context::from_waker(std::task::Waker::noop())) {
            Poll::Ready(ended) => Some(ended),
            Poll::Pending => None,
        }
    }

    /// The chain that the handler is to take, once.
    pub(super) fn offer(&self) -> Option<Chain> {
        self.desk.borrow_mut().offered.take()
    }

    /// The handler has no room now: the chain is offered again.
    pub(super) fn put_back(&self, chain: Chain) {
        self.desk.borrow_mut().offered = Some(chain);
    }

    /// The handler is done with the chain, and wrote so many bytes.
    pub(super) fn finish(&self, written: u32) {
        self.desk.borrow_mut().finished = Some(written);
    }

    /// Whether an interrupt is due, once.
    pub(super) fn take_interrupt(&self) -> bool {
        std::mem::take(&mut self.desk.borrow_mut().interrupt)
    }

    /// Chains taken since it was asked last.
    pub(super) fn take_requests(&self) -> u64 {
        std::mem::take(&mut self.desk.borrow_mut().requests)
    }
}

fn bounce_file() -> Result<OwnedFd, rustix::io::Errno> {
    let file = rustix::fs::memfd_create("ringside-bounce", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, BOUNCE_LEN)?;
    Ok(file)
}

/// The future's own: the ring, by messages.
struct RemoteRing {
    bus: Arc<Bus>,
    owner: Waker,
    config: QueueConfig,
    next_avail: u16,
    next_used: u16,
    desk: Rc<RefCell<Desk>>,
    bounce: View,
}

/// A chain as it is in guest memory, beside its copy in the bounce buffer.
struct Fetched {
    head: u16,
    chain: Chain,
    /// Guest segment and where its copy is.
    writable: Vec<(Segment, u64)>,
}

impl RemoteRing {
    async fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.bus.remote.read(address, &mut bytes, &self.owner).await?;
        Ok(bytes)
    }

    async fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.desk.borrow_mut().writing = true;
        let outcome = self.bus.remote.write(address, bytes, &self.owner).await;
        self.desk.borrow_mut().writing = false;
        outcome
    }

    fn slot(&self, index: u16) -> u64 {
        u64::from(index & (self.config.size - 1))
    }

    fn has_event_idx(&self) -> bool {
        self.config.features & feature::EVENT_IDX != 0
    }

    /// Flags and index of the available ring. Four bytes, so that the first answer tells how the client lays out its
    /// messages before anything longer is asked.
    async fn available(&self) -> Result<(u16, u16), Fault> {
        let [a, b, c, d] = self.read::<4>(self.config.driver).await?;
        Ok((u16::from_le_bytes([a, b]), u16::from_le_bytes([c, d])))
    }

    async fn run(mut self) -> Result<(), Failure> {
        loop {
            let (_, index) = self.available().await?;
            let pending = index.wrapping_sub(self.next_avail);
            if pending > self.config.size {
                return Err(RingError::AvailIndex(pending).into());
            }
            let old_used = self.next_used;
            for _ in 0..pending {
                if self.desk.borrow().stop {
                    return Ok(());
                }
                self.serve_one().await?;
            }
            if self.next_used != old_used && self.wants_interrupt(old_used).await? {
                self.desk.borrow_mut().interrupt = true;
            }
            if pending > 0 {
                continue;
            }
            if self.has_event_idx() {
                let at = self.config.device + RING + 8 * u64::from(self.config.size);
                self.write(at, &self.next_avail.to_le_bytes()).await?;
                // The driver may have gone on before it could see the wish.
                if self.available().await?.1 != self.next_avail {
                    continue;
                }
            }
            if self.rest().await {
                return Ok(());
            }
        }
    }

    /// Waits for a kick; true when it is to end.
    async fn rest(&self) -> bool {
        poll_fn(|_| {
            let mut desk = self.desk.borrow_mut();
            let (stop, look) = (desk.stop, std::mem::take(&mut desk.look));
            if stop || look { Poll::Ready(stop) } else { Poll::Pending }
        })
        .await
    }

    async fn wants_interrupt(&self, old: u16) -> Result<bool, Failure> {
        if self.has_event_idx() {
            let at = self.config.driver + RING + 2 * u64::from(self.config.size);
            let event = u16::from_le_bytes(self.read(at).await?);
            return Ok(self.next_used.wrapping_sub(event).wrapping_sub(1) < self.next_used.wrapping_sub(old));
        }
        Ok(self.available().await?.0 & AVAIL_NO_INTERRUPT == 0)
    }

    async fn serve_one(&mut self) -> Result<(), Failure> {
        let at = self.config.driver + RING + 2 * self.slot(self.next_avail);
        let head = u16::from_le_bytes(self.read(at).await?);
        let Fetched { head, chain, writable } = self.fetch(head).await?;
        self.desk.borrow_mut().offered = Some(chain);
        let written = poll_fn(|_| match self.desk.borrow_mut().finished.take() {
            Some(written) => Poll::Ready(written),
            None => Poll::Pending,
        })
        .await;
        // From here to the index the chain is given back whole, or not at all.
        self.desk.borrow_mut().writing = true;
        // All of it, not only what is reported as written: a failed read reports nothing but has a status byte.
        let mut tickets = Vec::new();
        for (segment, copy) in writable {
            let mut bytes = vec![0; segment.len as usize];
            self.bounce.read(copy, &mut bytes)?;
            tickets.append(&mut self.bus.remote.start_write(segment.addr, &bytes, &self.owner));
        }
        let at = self.config.device + RING + 8 * self.slot(self.next_used);
        let element = UsedElem { id: u32::from(head), len: written };
        tickets.append(&mut self.bus.remote.start_write(at, element.as_bytes(), &self.owner));
        // All of it is there before the index says so.
        for ticket in tickets {
            ticket.await?;
        }
        self.next_used = self.next_used.wrapping_add(1);
        self.next_avail = self.next_avail.wrapping_add(1);
        self.write(self.config.device + 2, &self.next_used.to_le_bytes()).await?;
        let mut desk = self.desk.borrow_mut();
        desk.position = Position { avail: self.next_avail, used: self.next_used };
        desk.requests += 1;
        Ok(())
    }

    /// Fetches a chain, and what the device reads of it.
    async fn fetch(&self, head: u16) -> Result<Fetched, Failure> {
        let guest = self.walk(head).await?;
        let mut chain = Chain::new();
        let mut writable = Vec::new();
        let mut at = BOUNCE;
        for (segment, device_writes) in guest {
            if at + u64::from(segment.len) > BOUNCE + BOUNCE_LEN {
                return Err(Failure::TooLong);
            }
            chain.push(Segment { addr: at, len: segment.len }, device_writes)?;
            let mut bytes = vec![0; segment.len as usize];
            if device_writes {
                writable.push((segment, at));
            } else {
                self.bus.remote.read(segment.addr, &mut bytes, &self.owner).await?;
            }
            // Zeroes where the device writes: nothing of an earlier request may get through.
            self.bounce.write(at, &bytes)?;
            at += u64::from(segment.len);
        }
        chain.finish(head, 1);
        Ok(Fetched { head, chain, writable })
    }

    /// The segments of a chain, as the guest says them.
    async fn walk(&self, head: u16) -> Result<Vec<(Segment, bool)>, Failure> {
        if head >= self.config.size {
            return Err(RingError::Index(head).into());
        }
        let first = self.descriptor(self.config.desc, head).await?;
        let (table, mut entry) = if first.flags & desc::INDIRECT != 0 {
            let entries = u16::try_from(first.len as usize / size_of::<Desc>()).unwrap_or(u16::MAX);
            let whole = usize::from(entries) * size_of::<Desc>() == first.len as usize;
            let allowed = self.config.features & feature::INDIRECT_DESC != 0 && first.flags & desc::NEXT == 0;
            if !allowed || !whole || entries == 0 || entries > MAX_QUEUE_SIZE {
                return Err(RingError::Indirect.into());
            }
            let mut bytes = vec![0; first.len as usize];
            self.bus.remote.read(first.addr, &mut bytes, &self.owner).await?;
            let table: Vec<Desc> = bytes
                .chunks_exact(size_of::<Desc>())
                .filter_map(|entry| Desc::read_from_bytes(entry).ok())
                .collect();
            let entry = table[0];
            (Some(table), entry)
        } else {
            (None, first)
        };
        let entries =
            table.as_ref().map_or(self.config.size, |table| u16::try_from(table.len()).unwrap_or(u16::MAX));
        let mut segments = Vec::new();
        for _ in 0..usize::from(entries).min(ENTRIES_MAX) {
            if entry.flags & desc::INDIRECT != 0 {
                return Err(RingError::Indirect.into());
            }
            segments.push((Segment { addr: entry.addr, len: entry.len }, entry.flags & desc::WRITE != 0));
            if entry.flags & desc::NEXT == 0 {
                return Ok(segments);
            }
            if entry.next >= entries {
                return Err(RingError::Index(entry.next).into());
            }
            entry = match &table {
                Some(table) => table[usize::from(entry.next)],
                None => self.descriptor(self.config.desc, entry.next).await?,
            };
        }
        Err(RingError::Loop.into())
    }

    async fn descriptor(&self, table: u64, index: u16) -> Result<Desc, Failure> {
        let at = table.checked_add(u64::from(index) * size_of::<Desc>() as u64).ok_or(Fault(table))?;
        let bytes: [u8; size_of::<Desc>()] = self.read(at).await?;
        Desc::read_from_bytes(&bytes).map_err(|_length| Fault(at).into())
    }
}
