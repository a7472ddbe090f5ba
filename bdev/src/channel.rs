//! The data-path contract between a bdev type and whoever drives it.
//!
//! Types implement [`Channel`]; the service wrapper [`IoChannel`](crate::IoChannel) is its only direct caller
//! and hands the same four calls on to device models.

use std::os::fd::BorrowedFd;

use crate::{Completion, Rejected, Request};

/// One consumer's way into a bdev.
///
/// # Contract
///
/// **Thread.** Opened, used and dropped on one thread (a reactor); not `Send`. A queue owns its channel:
/// channels of one bdev are independent, and what they share the type keeps safe by itself.
///
/// **Who checks.** The wrapper has checked before `submit`: the operation is supported, the range lies inside
/// the bdev, the vectors add up to the length and are aligned as [`BdevInfo`](crate::BdevInfo) says, a read or write is no
/// longer and crosses no boundary (what does is cut, and goes through buffers where it must), a change is allowed, the token is below the depth and not in flight, and fewer than `depth` requests
/// are in flight. A type may rely on that for correctness and not for memory safety. The range was inside the
/// bdev when checked; a shrink is refused while the bdev is open, so it still is.
///
/// **Who owns.** The slice of vectors is borrowed for the `submit` call only. The memory they name may be
/// touched from the accepting `submit` until the `reap` that hands the token back, and not a moment longer.
///
/// **What may block.** Nothing here. `submit`, `kick` and `reap` do not allocate, lock, log or wait; `submit`
/// and `reap` make no system call except where a ring offers no other way, `kick` makes at most one. A type
/// whose operation can block (opening, truncating, a fallocate the kernel runs inline) gives it to a thread
/// or to io_uring. Copying memory is no blocking.
///
/// **Exactly once.** A request that `submit` accepted comes back from `reap` exactly once, whatever happens
/// to the bdev meanwhile. A refused one never does. `submit` does not complete: even an instant result waits
/// for the next `reap`.
///
/// **Order.** None. Requests of one channel may run and complete in any order, also when they overlap; who
/// needs an order waits for the first before submitting the second. A flush covers the writes that had
/// *completed* when it was submitted, on any channel of this bdev, and none that were still in flight.
/// Overlapping writes in flight together leave each block as one of them wrote it, or a mixture where a block
/// is not written atomically.
///
/// **Removal.** From the pass on that finds the bdev removed, which [`removed`](Self::removed) is told in, the
/// wrapper submits no more. What is in flight ends as usual or with
/// [`Status::Removed`](crate::Status::Removed); it does end.
///
/// **Drop.** The caller drains first. A channel that is dropped with requests in flight all the same must
/// make sure that none of their memory is touched once `drop` returns, by waiting if it has to.
pub trait Channel {
    /// Takes one request, or says why not.
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected>;

    /// Called after the last submit of a pass, if there was one: sends on what was batched. At most one
    /// system call.
    fn kick(&mut self);

    /// Hands out finished requests, at most as many as `done` has room for. Returns how many.
    fn reap(&mut self, done: &mut [Completion]) -> usize;

    /// Asked before the caller sleeps with requests in flight: has [`event_fd`](Self::event_fd) polled readable
    /// as soon as one completes, and looks again. False: there is something to do at once, or no way to be told;
    /// the caller goes on polling. The next `reap` ends it.
    fn arm(&mut self) -> bool {
        self.event_fd().is_some()
    }

    /// The bdev is being removed: what waits for something that may never come ends now.
    fn removed(&mut self) {}

    /// Whether it wants to be told the time: types that wait do. Constant.
    fn wants_time(&self) -> bool {
        false
    }

    /// Tells the time in ticks, at the start of a pass, to types that want it.
    fn set_now(&mut self, tick: u64) {
        let _ = tick;
    }

    /// A descriptor that polls readable while completions wait, for a reactor that wants to sleep and has called
    /// [`arm`](Self::arm); level triggered, the caller never reads it. `None`: completions show by polling `reap`
    /// only, so who has requests in flight keeps polling.
    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    /// Requests accepted and not yet reaped.
    fn in_flight(&self) -> usize;
}
