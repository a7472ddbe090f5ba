//! Bringing a parked poller back from any thread.
//!
//! Pollers get wakers from [`crate::PollerCx::waker`] and hand them to whoever has news for them: a backend's
//! completion thread, the socket that a doorbell comes in by, another reactor. Why no wake is lost is told in
//! `wake_flag` and `sleep`.

use std::fmt;
use std::sync::Arc;

use crate::handle::Shared;
use crate::wake_flag::WakeFlag;

/// Brings one poller back; any thread, any number of clones. Waking a poller that is polled anyway costs a fence and a
/// load; waking one that has gone does nothing.
#[derive(Clone)]
pub struct Waker {
    slot: u32,
    flag: Arc<WakeFlag>,
    shared: Arc<Shared>,
}

impl Waker {
    pub(crate) fn new(slot: u32, flag: &Arc<WakeFlag>, shared: &Arc<Shared>) -> Waker {
        Waker { slot, flag: Arc::clone(flag), shared: Arc::clone(shared) }
    }

    /// Call after the news is where the poller will look for it.
    pub fn wake(&self) {
        if self.flag.claim() {
            self.shared.wake(self.slot);
        }
    }
}

impl fmt::Debug for Waker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Waker").field("slot", &self.slot).finish_non_exhaustive()
    }
}
