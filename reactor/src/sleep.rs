//! The handshake between a reactor that goes to sleep and threads that have something for it.
//!
//! The reactor announces, fences, and looks again at everything; only then it waits. A waker puts its thing down,
//! fences, and looks for the announcement. With a full fence on both sides at least one sees the other: either the
//! reactor finds the thing, or the waker finds it asleep and rings. Checked by loom (`tests/loom.rs`).

#[cfg(loom)]
use loom::sync::atomic::{AtomicBool, Ordering, fence};
#[cfg(not(loom))]
use std::sync::atomic::{AtomicBool, Ordering, fence};

/// Whether a reactor sleeps, as both sides see it.
#[derive(Debug)]
pub struct SleepGate {
    asleep: AtomicBool,
}

impl Default for SleepGate {
    fn default() -> Self {
        Self { asleep: AtomicBool::new(false) }
    }
}

impl SleepGate {
    /// The reactor: announces that it is going to sleep. It must look at every source once more after this.
    pub fn announce(&self) {
        self.asleep.store(true, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// The reactor: is up again.
    pub fn awake(&self) {
        self.asleep.store(false, Ordering::Relaxed);
    }

    /// A waker, after it has put its thing down: true if it must ring. Only one of several wakers is told so.
    #[must_use]
    pub fn must_ring(&self) -> bool {
        fence(Ordering::SeqCst);
        self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel)
    }

    /// Whether the reactor sleeps now, for statistics.
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.asleep.load(Ordering::Relaxed)
    }
}
