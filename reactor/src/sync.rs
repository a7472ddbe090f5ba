//! The atomics and the queue that the cross-thread modules (`mailbox`, `sleep`, `wake_flag`,
//! `wake_set`) are built on.
//!
//! Those modules name them through here only, so that `tests/loom.rs` can compile the same source files against loom's
//! instrumented ones and try every interleaving.

pub(crate) use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering, fence};

pub(crate) use crossbeam::queue::ArrayQueue;
