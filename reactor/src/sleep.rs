//! The handshake between a reactor that goes to sleep and the threads that bring it news.
//!
//! A message, a wake or a change of mode is published first and [`SleepGate::notify`] called second; the reactor calls
//! [`SleepGate::announce`] first and looks at every source second. Each side has a sequentially consistent fence in
//! between, so of the two at least one sees the other: the reactor finds the news, or the sender finds the sleeper and
//! rings. That is the whole of it; how the bell sounds (an eventfd) and what news is belong to the caller. All
//! interleavings are tried by `tests/loom.rs`.

use crate::sync::{AtomicBool, Ordering, fence};

/// Where a reactor says that it sleeps.
#[derive(Debug)]
pub(crate) struct SleepGate {
    asleep: AtomicBool,
}

impl SleepGate {
    pub(crate) fn new() -> SleepGate {
        SleepGate { asleep: AtomicBool::new(false) }
    }

    /// The reactor: "I am about to sleep". It must look at every source of news after this, and sleep only if there is
    /// none.
    pub(crate) fn announce(&self) {
        // A swap, to come after the claim of whoever rang for the last sleep: nobody who sees this one may see that one
        // instead and keep still.
        self.asleep.swap(true, Ordering::AcqRel);
        // Pairs with the fence in `notify`: what a sender published before its fence and did not ring for is seen by
        // the loads that follow here.
        fence(Ordering::SeqCst);
    }

    /// The reactor: "I am awake", after the wait or instead of it.
    pub(crate) fn withdraw(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// A sender, after it has published its news: rings if the reactor sleeps and nobody has rung for this sleep yet.
    pub(crate) fn notify(&self, ring: impl FnOnce()) {
        // Pairs with the fence in `announce`.
        fence(Ordering::SeqCst);
        // The load keeps an awake reactor's line shared; the swap elects one ringer among several senders.
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            ring();
        }
    }

    /// Has the reactor announced sleep? For statistics: stale as soon as it is read.
    pub(crate) fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
}
