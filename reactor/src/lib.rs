//! The pinned loop: one thread per core runs pollers while there is work and sleeps when there is none.
//!
//! A [`Poller`] belongs to one [`Reactor`] and is touched by its thread only. Other threads send messages
//! ([`Handle::send`]) or wake a poller ([`Waker`]). A poller that is idle parks and costs nothing until a waker, a watched
//! descriptor ([`PollerCx::watch`]) or its deadline brings it back; a reactor whose pollers have all parked sleeps.
//!
//! This crate knows nothing of what pollers do.

mod clock;
mod cpumask;
mod locks;
mod mailbox;
mod poller;
mod reactor;
mod runtime;
mod shared;
pub mod sleep;
mod stats;

use std::time::Duration;

pub use clock::{Clock, FakeClock, Tick};
pub use cpumask::{CoreMask, CoreMaskError, MAX_CORES};
pub use locks::{CORE_LOCK_DIR, CoreLockError, CoreLocks};
pub use poller::{Interest, Park, Poller, PollerCx, PollerId, PollerSpec, Spin, Waker, Watch, Work};
pub use reactor::{Pass, Reactor, ReactorConfig};
pub use runtime::{Config, Reactors, StartError};
pub use shared::{CallError, Handle, MAILBOX_CAPACITY, Message, Mode, SendError};
pub use stats::{Group, GroupStats, PollerState, PollerStats, ReactorStats};

/// How reactors run when nothing else is said: 50 us is about what sleeping and waking cost together.
pub const DEFAULT_MODE: Mode = Mode::Adaptive { spin: Duration::from_micros(50) };
/// Longest poll that is not called a stall.
pub const DEFAULT_STALL_LIMIT: Duration = Duration::from_millis(10);
