//! What a virtio device type is to the transport, and what its request handler is to a queue's owner.

use super::queue::{Chain, Head, Ring, RingError, Triple};
use crate::{
    device::HomeWaker,
    dma::View,
    stages::{Laps, Stage},
};

/// Makes a queue's handler on the reactor that will own it.
pub type MakeHandler<H> = Box<dyn FnOnce() -> Result<H, HandlerError> + Send>;

/// Why a queue cannot work, for instance because its bdev is gone.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct HandlerError(pub String);

/// A virtio device type.
pub trait VirtioDevice: Send + 'static {
    /// What handles a queue's requests.
    type Handler: Handler;

    /// Virtio device ID (virtio 1.2, 5).
    fn id(&self) -> u16;

    /// PCI class: base, sub-class, interface.
    fn class(&self) -> [u8; 3];

    /// Serial number for the PCI capability.
    fn serial(&self) -> u64;

    /// Features of the device type; the transport adds those of rings and transport.
    fn features(&self) -> u64;

    /// Queues.
    fn num_queues(&self) -> u16;

    /// Entries of a queue at most, and after reset.
    fn queue_size(&self) -> u16;

    /// Reads the device-specific configuration; what lies behind it reads as zero.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Writes the device-specific configuration. Most of it is read-only.
    fn write_config(&mut self, offset: u64, data: &[u8]);

    /// How to make the handler of a queue, under the agreed features.
    fn handler(&self, index: u16, features: u64) -> MakeHandler<Self::Handler>;

    /// The device, and with it its queues, was reset.
    fn reset(&mut self) {}

    /// Tells the device whom to wake when [`Self::take_event`] has something.
    fn attach(&mut self, home: HomeWaker);

    /// What happened behind the device since it was asked last.
    fn take_event(&mut self) -> Option<DeviceEvent>;
}

/// Something that happened behind a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeviceEvent {
    /// The configuration reads differently now; the driver is told.
    ConfigChanged,
    /// What the handlers use is going away, or something was added: each is to be told by [`Handler::refresh`].
    BackendChanged,
}

/// What a handler did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Done already; so many bytes of it were written.
    Done(u32),
    /// Accepted: [`Handler::reap`] will give it back.
    InFlight,
    /// No room now. The chain stays on the ring and is tried again.
    Full,
    /// Not even a status can be returned: the driver broke the rules (virtio 1.2, 2.7.4.2).
    Broken,
    /// A chain with its id is in flight already.
    Reused,
}

/// Hands a ring's next chain to the handler if it is a [`Triple`]: what it is to its ring, and what became of it. None for any
/// other, which is for [`offer_chain`]. It is still on the ring.
#[inline(always)]
pub fn offer_triple<R: Ring, H: Handler>(
    (ring, handler): (&mut R, &mut H),
    view: &View,
    laps: &mut impl Laps,
) -> Option<(Head, Verdict)> {
    if !H::TAKES_TRIPLES {
        return None;
    }
    let triple = ring.peek_triple(view)?;
    laps.lap(Stage::Pickup);
    let verdict = handler.submit_triple(&triple, view, laps)?;
    Some((triple.head, verdict))
}

/// Hands a ring's next chain to the handler, copied to `chain`: what became of it. It is still on the ring.
///
/// # Errors
/// See [`RingError`].
#[inline(never)]
pub fn offer_chain<R: Ring, H: Handler>(
    (ring, handler): (&mut R, &mut H),
    view: &View,
    chain: &mut Chain,
    laps: &mut impl Laps,
) -> Result<Verdict, RingError> {
    ring.pop(view, chain)?;
    laps.lap(Stage::Pickup);
    let is_reused = handler.is_in_flight(chain.id());
    Ok(if is_reused { Verdict::Reused } else { handler.submit(chain, view, laps) })
}

/// Handles the requests of one queue, on the queue's reactor. No method blocks or allocates.
pub trait Handler: 'static {
    /// Whether [`Self::submit_triple`] takes any.
    const TAKES_TRIPLES: bool = false;

    /// A pass begins: the clock, and the windows that it is made with, none of which is torn as far as is known
    /// ([`View::torn`]).
    fn begin(&mut self, now: u64, view: &View);

    /// Takes a chain. Its id is not in flight. The time until the bdev is asked is lapped as translation.
    fn submit(&mut self, chain: &Chain, view: &View, laps: &mut impl Laps) -> Verdict;

    /// Takes a chain of three buffers, if it is a request that needs no more than that, and is in order. None for any other:
    /// nothing was done with it, and [`Self::submit`] will tell what it is. Whether its id is in flight was not looked at.
    fn submit_triple(&mut self, triple: &Triple, view: &View, laps: &mut impl Laps) -> Option<Verdict> {
        let _ = (triple, view, laps);
        None
    }

    /// Has the processor fetch what the next chain may name: a guess, made while the ring is read.
    fn prefetch(&self, view: &View) {
        let _ = view;
    }

    /// Called after the last submit of a pass.
    fn kick(&mut self);

    /// Gives finished chains back: id, and bytes written. What the bdev takes for it is lapped as the backend's.
    fn reap(&mut self, view: &View, laps: &mut impl Laps, done: impl FnMut(u16, u32));

    /// Chains that were accepted and not yet given back.
    fn in_flight(&self) -> usize;

    /// Somebody waits until nothing is in flight any more: what would go on by itself for long comes to an end; where the
    /// queue itself ends (`stops`), at once. Called until [`Self::refresh`] is, or the queue is gone.
    fn drain(&mut self, stops: bool) {
        let _ = stops;
    }

    /// Called when nothing is in flight and something changed: lets go of a backend that is going away.
    fn refresh(&mut self);

    /// Whether the chain with this id was accepted and not yet given back.
    fn is_in_flight(&self, id: u16) -> bool;

    /// Whether it takes chains now. While it does not, the ring is not looked at; a change that wakes the queue
    /// ([`DeviceEvent::BackendChanged`]) makes it ask again.
    fn is_accepting(&self) -> bool {
        true
    }

    /// Asked before the queue sleeps with requests in flight: whether [`event_fd`](Self::event_fd) will tell of the
    /// next completion. A handler that does not ask its channel ([`bdev::IoChannel::arm`]) must not sleep on it.
    fn arm(&mut self) -> bool {
        false
    }

    /// A descriptor that is readable while completions wait; none if they must be polled for.
    fn event_fd(&self) -> Option<std::os::fd::BorrowedFd<'_>>;
}
