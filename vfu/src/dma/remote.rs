//! Guest memory that only messages reach: windows that a client offered without a file.
//!
//! A queue asks ([`Remote::read`], [`Remote::write`]) and gets a [`Ticket`], which is done when the client has answered.
//! The endpoint's session takes the asks, turns them into DMA_READ and DMA_WRITE, and settles the tickets. Nobody here
//! blocks, and nobody asks who reaches the memory by mapping it.

use std::{
    collections::VecDeque,
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
};

use reactor::Waker;

use super::Fault;
use crate::device::HomeWaker;

/// What is asked of the client.
#[derive(Debug)]
pub enum Ask {
    /// So many bytes from this address.
    Read {
        /// Guest address.
        address: u64,
        /// Bytes.
        len: u32,
    },
    /// These bytes to this address.
    Write {
        /// Guest address.
        address: u64,
        /// The bytes.
        data: Vec<u8>,
    },
}

impl Ask {
    /// Its guest address.
    #[must_use]
    pub fn address(&self) -> u64 {
        match self {
            Self::Read { address, .. } | Self::Write { address, .. } => *address,
        }
    }
}

/// Who asks: its poller is woken when an answer is there.
#[derive(Clone, Debug)]
pub enum Asker {
    /// A queue.
    Queue(Waker),
    /// The endpoint, wherever it lives.
    Home(HomeWaker),
}

impl Asker {
    fn wake(&self) {
        match self {
            Self::Queue(waker) => waker.wake(),
            Self::Home(waker) => waker.wake(),
        }
    }
}

#[derive(Debug)]
struct Outcome {
    result: Mutex<Option<Result<Vec<u8>, Fault>>>,
    asker: Asker,
    settled: Arc<AtomicU64>,
}

/// An ask that is under way. A future: ready with what was read, or with nothing after a write.
#[derive(Debug)]
pub struct Ticket(Arc<Outcome>);

impl Ticket {
    /// The answer once it is there; it is given once.
    #[must_use]
    pub fn take(&self) -> Option<Result<Vec<u8>, Fault>> {
        self.0.result.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl Future for Ticket {
    type Output = Result<Vec<u8>, Fault>;

    /// The waker in `cx` is not used: the queue's poller polls, and is woken itself.
    fn poll(self: Pin<&mut Self>, _cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.take().map_or(Poll::Pending, Poll::Ready)
    }
}

/// The session's end of an ask. Dropped without an answer, the ask has failed.
#[derive(Debug)]
pub struct Order {
    /// What to ask.
    pub ask: Ask,
    outcome: Option<Arc<Outcome>>,
}

impl Order {
    /// Settles the ask.
    pub fn settle(mut self, result: Result<Vec<u8>, Fault>) {
        self.finish(result);
    }

    fn finish(&mut self, result: Result<Vec<u8>, Fault>) {
        if let Some(outcome) = self.outcome.take() {
            *outcome.result.lock().unwrap_or_else(PoisonError::into_inner) = Some(result);
            outcome.settled.fetch_add(1, Ordering::SeqCst);
            outcome.asker.wake();
        }
    }
}

impl Drop for Order {
    fn drop(&mut self) {
        self.finish(Err(Fault(self.ask.address())));
    }
}

#[derive(Debug, Default)]
struct Inner {
    orders: VecDeque<Order>,
    /// Who carries orders out; nobody while no client is connected.
    carrier: Option<HomeWaker>,
    transfer_max: u32,
}

/// The way to memory that only messages reach.
#[derive(Debug, Default)]
pub struct Remote {
    inner: Mutex<Inner>,
    /// Counts asks that are done, see [`Remote::settled`].
    settled: Arc<AtomicU64>,
}

impl Remote {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A client is connected that takes so many bytes in one message; `carrier` is woken when there are orders.
    pub fn open(&self, carrier: HomeWaker, transfer_max: u32) {
        self.with(|inner| {
            inner.carrier = Some(carrier);
            inner.transfer_max = transfer_max.max(1);
        });
    }

    /// The client is gone: whatever was asked, and is asked from now on, fails.
    pub fn close(&self) {
        let orders = self.with(|inner| {
            inner.carrier = None;
            std::mem::take(&mut inner.orders)
        });
        drop(orders);
    }

    /// The next order, for the session.
    #[must_use]
    pub fn next_order(&self) -> Option<Order> {
        self.with(|inner| inner.orders.pop_front())
    }

    /// Whether there are orders.
    #[must_use]
    pub fn has_orders(&self) -> bool {
        self.with(|inner| !inner.orders.is_empty())
    }

    /// Counts asks that are done, of all queues: one that is about to sleep looks whether it changed since it looked at
    /// its tickets.
    #[must_use]
    pub fn settled(&self) -> u64 {
        self.settled.load(Ordering::SeqCst)
    }

    /// Bytes that one message carries.
    #[must_use]
    pub fn transfer_max(&self) -> u32 {
        self.with(|inner| inner.transfer_max)
    }

    /// Asks. `asker` is woken when it is done.
    #[must_use]
    pub fn ask(&self, ask: Ask, asker: &Asker) -> Ticket {
        let outcome = Arc::new(Outcome {
            result: Mutex::new(None),
            asker: asker.clone(),
            settled: Arc::clone(&self.settled),
        });
        let order = Order { ask, outcome: Some(Arc::clone(&outcome)) };
        let refused = self.with(|inner| match &inner.carrier {
            Some(carrier) => {
                inner.orders.push_back(order);
                carrier.wake();
                None
            }
            None => Some(order),
        });
        drop(refused);
        Ticket(outcome)
    }

    /// Reads a range, message by message.
    ///
    /// # Errors
    /// [`Fault`] where the client refuses, or is gone.
    pub async fn read(&self, address: u64, to: &mut [u8], asker: &Asker) -> Result<(), Fault> {
        let step = self.transfer_max().max(1) as usize;
        let mut at = address;
        for part in to.chunks_mut(step) {
            let len = u32::try_from(part.len()).map_err(|_more| Fault(at))?;
            let bytes = self.ask(Ask::Read { address: at, len }, asker).await?;
            if bytes.len() != part.len() {
                return Err(Fault(at));
            }
            part.copy_from_slice(&bytes);
            at = at.wrapping_add(part.len() as u64);
        }
        Ok(())
    }

    /// Starts to write a range; one ticket for each message.
    #[must_use]
    pub fn start_write(&self, address: u64, from: &[u8], asker: &Asker) -> Vec<Ticket> {
        let step = self.transfer_max().max(1) as usize;
        let at = (address..).step_by(step);
        at.zip(from.chunks(step))
            .map(|(at, part)| self.ask(Ask::Write { address: at, data: part.to_vec() }, asker))
            .collect()
    }

    /// Writes a range, message by message.
    ///
    /// # Errors
    /// [`Fault`] where the client refuses, or is gone.
    pub async fn write(&self, address: u64, from: &[u8], asker: &Asker) -> Result<(), Fault> {
        for ticket in self.start_write(address, from, asker) {
            ticket.await?;
        }
        Ok(())
    }
}
