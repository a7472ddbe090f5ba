//! The handshake between a poller that parks and those who have news for it.
//!
//! The order that makes it safe: the reactor arms the flag, then lets the poller look at its sources a last time (in
//! `Poller::park`); a waker's caller publishes its news, then the waker looks at the flag. A fence on either side, as
//! in `sleep`, so at least one sees the other. All interleavings are tried by `tests/loom.rs`.

use crate::sync::{AtomicBool, Ordering, fence};

/// One poller's "I wait to be woken".
#[derive(Debug)]
pub(crate) struct WakeFlag {
    armed: AtomicBool,
}

impl WakeFlag {
    pub(crate) fn new() -> WakeFlag {
        WakeFlag { armed: AtomicBool::new(false) }
    }

    /// The reactor: from here on a wake brings the poller back.
    pub(crate) fn arm(&self) {
        // A swap, to come after the claim that ended the last park: nobody who sees this one may see that one instead.
        self.armed.swap(true, Ordering::AcqRel);
        // Pairs with the fence in `claim`: the poller's last look at its sources follows.
        fence(Ordering::SeqCst);
    }

    /// The reactor: the poller is polled anyway.
    pub(crate) fn disarm(&self) {
        self.armed.store(false, Ordering::Relaxed);
    }

    /// A waker, after it has published its news: true for the one that has to bring the poller back.
    pub(crate) fn claim(&self) -> bool {
        // Pairs with the fence in `arm`. The load keeps the line shared while the poller is awake; the swap elects one
        // of several wakers.
        fence(Ordering::SeqCst);
        self.armed.load(Ordering::Relaxed) && self.armed.swap(false, Ordering::AcqRel)
    }
}
