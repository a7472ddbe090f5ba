//! A queue whose ring is in memory that only messages reach: slower, and correct.
//!
//! Chain by chain, what the device reads is fetched into a bounce buffer, the handler works on that as if it were guest
//! memory, and what it wrote is sent back, before the used ring tells. One chain is under way at a time. The work is a
//! future that the queue's owner polls; it never touches the handler, but hands the owner a chain ([`RemoteQueue::offer`])
//! and waits for its end. What is particular to split and to packed rings is in [`split`] and [`packed`].

mod packed;
mod split;

use std::{
    cell::RefCell,
    future::{Future, poll_fn},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use packed::Packed;
use reactor::Waker;
use split::Split;

use super::{
    queue::{Chain, Format, Head, Position, RingError, RingLayout, Segment},
    spec::MAX_QUEUE_SIZE,
};
use crate::{
    device::Bus,
    dma::{Asker, Bounce, Fault, Ticket, View},
};

/// Bytes of one chain. Pages come to be when they are used.
pub(super) const BOUNCE_LEN: u64 = 8 << 20;
/// Where the bounce buffer is, for the handler.
const BOUNCE: u64 = 0x1000;
/// Descriptors of one chain.
const ENTRIES_MAX: usize = Chain::MAX_SEGMENTS;
/// Bytes of a descriptor, of either kind.
const DESC_LEN: usize = 16;

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
    /// Something was given back, and the driver was not yet asked whether it wants one.
    unasked: bool,
    position: Position,
    requests: u64,
    /// Commands that write guest memory are under way.
    writing: bool,
    /// What the device writes of the chain under way.
    targets: Vec<Segment>,
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
    bounce: Bounce,
}

impl RemoteQueue {
    /// A queue that goes on from `position`. `owner` wakes its poller; chains have `room` buffers at most.
    ///
    /// # Errors
    /// No memory for the bounce buffer, or a position that the ring does not have.
    pub(super) fn new(
        name: &str,
        bus: &Arc<Bus>,
        layout: RingLayout,
        position: Position,
        owner: Waker,
        room: usize,
    ) -> Result<Self, rustix::io::Errno> {
        let bounce = Bounce::new(BOUNCE, BOUNCE_LEN)?;
        let desk = Rc::new(RefCell::new(Desk { look: true, position, ..Desk::default() }));
        let reach = Reach { bus: Arc::clone(bus), asker: Asker::Queue(owner), desk: Rc::clone(&desk) };
        let view = bounce.another_view();
        let name = name.to_owned();
        let work: Pin<Box<dyn Future<Output = Ended>>> = match layout.format() {
            Format::Split => {
                let ring =
                    RemoteRing { reach, bounce: view, room, shape: Split::new(layout.config(), position) };
                Box::pin(ring.run_to_end(name))
            }
            Format::Packed => {
                let ring =
                    RemoteRing { reach, bounce: view, room, shape: Packed::new(layout.config(), position)? };
                Box::pin(ring.run_to_end(name))
            }
        };
        Ok(Self { desk, work, bounce })
    }

    /// What the handler works on.
    pub(super) fn bounce(&self) -> &View {
        self.bounce.view()
    }

    /// Where the ring stands.
    pub(super) fn position(&self) -> Position {
        self.desk.borrow().position
    }

    /// Tells it to end after the chain under way.
    pub(super) fn stop(&self) {
        self.desk.borrow_mut().stop = true;
    }

    /// Whether a chain is done and on its way back: that has to be waited for, or it would be done again.
    pub(super) fn is_giving_back(&self) -> bool {
        let desk = self.desk.borrow();
        desk.writing || desk.finished.is_some()
    }

    /// Whether all that the chain under way writes is in this view.
    pub(super) fn writes_inside(&self, view: &View) -> bool {
        let is_there = |it: &Segment| view.covers(it.addr, u64::from(it.len), true);
        self.desk.borrow().targets.iter().all(is_there)
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

    /// Whether an interrupt is due, or may be: for one that is not polled any more.
    pub(super) fn owes_interrupt(&self) -> bool {
        let desk = self.desk.borrow();
        desk.interrupt || desk.unasked
    }

    /// Chains taken since it was asked last.
    pub(super) fn take_requests(&self) -> u64 {
        std::mem::take(&mut self.desk.borrow_mut().requests)
    }
}

/// How the future gets at guest memory.
struct Reach {
    bus: Arc<Bus>,
    asker: Asker,
    desk: Rc<RefCell<Desk>>,
}

impl Reach {
    async fn read<const N: usize>(&self, address: u64) -> Result<[u8; N], Fault> {
        let mut bytes = [0; N];
        self.read_to(address, &mut bytes).await?;
        Ok(bytes)
    }

    async fn read_to(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.bus.remote.read(address, to, &self.asker).await
    }

    async fn write(&self, address: u64, bytes: &[u8]) -> Result<(), Fault> {
        self.desk.borrow_mut().writing = true;
        let outcome = self.bus.remote.write(address, bytes, &self.asker).await;
        self.desk.borrow_mut().writing = false;
        outcome
    }

    /// Starts to write; done when all tickets are.
    fn start_write(&self, address: u64, bytes: &[u8], tickets: &mut Vec<Ticket>) {
        tickets.append(&mut self.bus.remote.start_write(address, bytes, &self.asker));
    }

    /// The indirect table that a descriptor points to.
    async fn table(&self, address: u64, len: u32, is_allowed: bool) -> Result<Vec<u8>, Failure> {
        let entries = len as usize / DESC_LEN;
        let fits = (1..=usize::from(MAX_QUEUE_SIZE)).contains(&entries) && entries * DESC_LEN == len as usize;
        if !is_allowed || !fits {
            return Err(RingError::Indirect.into());
        }
        let mut bytes = vec![0; len as usize];
        self.read_to(address, &mut bytes).await?;
        Ok(bytes)
    }
}

/// A chain as the guest says it.
struct Offered {
    id: u16,
    entries: u16,
    /// Each with whether the device writes it.
    segments: Vec<(Segment, bool)>,
}

/// What is particular to a kind of ring. One chain is under way at a time.
trait Shape: 'static {
    /// How many chains wait, or at least that one does.
    async fn pending(&mut self, reach: &Reach) -> Result<u16, Failure>;

    /// The next chain; one waits.
    async fn next(&self, reach: &Reach) -> Result<Offered, Failure>;

    /// Starts to give a chain back. Nothing of it is valid before [`Self::publish`].
    fn give_back(&mut self, reach: &Reach, chain: &Chain, written: u32, tickets: &mut Vec<Ticket>);

    /// Makes the chain valid that was given back last.
    async fn publish(&mut self, reach: &Reach) -> Result<(), Failure>;

    /// Whether the driver wants an interrupt for what was published since it was asked last.
    async fn wants_interrupt(&mut self, reach: &Reach) -> Result<bool, Failure>;

    /// Asks the driver to kick, and looks again: whether something waits already.
    async fn enable_kicks(&mut self, reach: &Reach) -> Result<bool, Failure>;

    /// Where the ring stands.
    fn position(&self) -> Position;
}

/// The future's own: the ring, by messages.
struct RemoteRing<S> {
    reach: Reach,
    bounce: View,
    /// Buffers that a chain may have.
    room: usize,
    shape: S,
}

impl<S: Shape> RemoteRing<S> {
    async fn run_to_end(self, name: String) -> Ended {
        match self.run().await {
            Ok(()) => Ended::Stopped,
            Err(error) => {
                tracing::warn!(queue = name, %error, "a queue in memory that is not shared ends");
                Ended::Broken
            }
        }
    }

    async fn run(mut self) -> Result<(), Failure> {
        loop {
            let pending = self.shape.pending(&self.reach).await?;
            for _ in 0..pending {
                if self.reach.desk.borrow().stop {
                    return Ok(());
                }
                self.serve_one().await?;
            }
            if pending > 0 {
                let wanted = self.shape.wants_interrupt(&self.reach).await?;
                let mut desk = self.reach.desk.borrow_mut();
                desk.interrupt |= wanted;
                desk.unasked = false;
                continue;
            }
            if !self.shape.enable_kicks(&self.reach).await? && self.rest().await {
                return Ok(());
            }
        }
    }

    /// Waits for a kick; true when it is to end.
    async fn rest(&self) -> bool {
        poll_fn(|_| {
            let mut desk = self.reach.desk.borrow_mut();
            let (stop, look) = (desk.stop, std::mem::take(&mut desk.look));
            if stop || look { Poll::Ready(stop) } else { Poll::Pending }
        })
        .await
    }

    async fn serve_one(&mut self) -> Result<(), Failure> {
        let offered = self.shape.next(&self.reach).await?;
        let (chain, writable) = self.fetch(&offered).await?;
        let mut given = Chain::with_room(0);
        given.name(chain.head());
        {
            let mut desk = self.reach.desk.borrow_mut();
            desk.targets.clear();
            desk.targets.extend(writable.iter().map(|&(segment, _)| segment));
            desk.offered = Some(chain);
        }
        let written = poll_fn(|_| match self.reach.desk.borrow_mut().finished.take() {
            Some(written) => Poll::Ready(written),
            None => Poll::Pending,
        })
        .await;
        // From here to the end the chain is given back whole, or not at all.
        self.reach.desk.borrow_mut().writing = true;
        // All of it, not only what is reported as written: a failed read reports nothing but has a status byte.
        let mut tickets = Vec::new();
        for (segment, copy) in writable {
            let mut bytes = vec![0; segment.len as usize];
            self.bounce.read(copy, &mut bytes)?;
            self.reach.start_write(segment.addr, &bytes, &mut tickets);
        }
        self.shape.give_back(&self.reach, &given, written, &mut tickets);
        // All of it is there before the ring says so.
        for ticket in tickets {
            ticket.await?;
        }
        self.shape.publish(&self.reach).await?;
        let mut desk = self.reach.desk.borrow_mut();
        desk.position = self.shape.position();
        desk.requests += 1;
        desk.unasked = true;
        desk.targets.clear();
        Ok(())
    }

    /// Fetches what the device reads of a chain. Beside the copy: what it writes, and where that is in the bounce buffer.
    async fn fetch(&self, offered: &Offered) -> Result<(Chain, Vec<(Segment, u64)>), Failure> {
        let mut chain = Chain::with_room(self.room);
        let mut filling = chain.refill(u16::MAX);
        let mut writable = Vec::new();
        let mut at = BOUNCE;
        for &(segment, device_writes) in &offered.segments {
            if at + u64::from(segment.len) > BOUNCE + BOUNCE_LEN {
                return Err(Failure::TooLong);
            }
            filling.push(Segment { addr: at, len: segment.len }, device_writes)?;
            let mut bytes = vec![0; segment.len as usize];
            if device_writes {
                writable.push((segment, at));
            } else {
                self.reach.read_to(segment.addr, &mut bytes).await?;
            }
            // Zeroes where the device writes: nothing of an earlier request may get through.
            self.bounce.write(at, &bytes)?;
            at += u64::from(segment.len);
        }
        filling.end();
        chain.name(Head { id: offered.id, entries: offered.entries });
        Ok((chain, writable))
    }
}
