//! The pinned loop: reactors, pollers, timers, mailboxes, sleep and wake, busy and idle time.
//!
//! The program starts one [`Reactor`] per core ([`Reactors::start`]) and reaches them by [`Handle`]s. Everything that
//! does I/O is a [`Poller`] on one of them: polled while it finds work, parked when it has found none for a while, and
//! brought back by its [`Waker`], a watched descriptor ([`PollerCx::watch`]) or a deadline. A reactor with nothing left
//! to poll sleeps until one of these, or a message, comes. Nothing here knows about devices or disks.
//!
//! - `clock`, `cpumask`, `affinity`, `core_locks`: time and cores
//! - `poller`, `group`, `stats`: what runs, for whom, and what it cost
//! - `mailbox`, `waker`, `wake_flag`, `wake_set`, `sleep`, `control`: how other threads reach a reactor, and that
//!   nothing gets lost on the way
//! - `timers`, `watch`: deadlines and descriptors
//! - `reactor` (`pass`, `run`, `stall`), `handle`, `runtime`: the loop, its face to other threads, all loops together

mod affinity;
mod clock;
mod control;
mod core_locks;
mod cpumask;
mod group;
mod handle;
mod mailbox;
mod points;
mod poller;
mod reactor;
mod runtime;
mod sleep;
mod stats;
mod sync;
mod timers;
mod wake_flag;
mod wake_set;
mod waker;
mod watch;

pub use affinity::allowed_cores;
pub use clock::{Clock, FakeClock, Tick};
pub use control::{DEFAULT_SPIN, Mode};
pub use core_locks::{CORE_LOCK_DIR, CoreLockError, CoreLocks};
pub use cpumask::{CORES_MAX, CoreMask, CoreMaskError};
pub use group::{Group, GroupStats};
pub use handle::{CallError, Handle, MAILBOX_CAPACITY, Message, SendError};
pub use points::POINTS as TRACE;
pub use poller::{FaultHook, Park, Poller, PollerCx, PollerId, PollerSpec, Spin, Work};
pub use reactor::{DEFAULT_STALL_LIMIT, POLLERS_MAX, PUBLISH_INTERVAL, Pass, Reactor, ReactorConfig};
pub use runtime::{Config, Reactors, StartError};
pub use stats::{PollerState, PollerStats, ReactorStats};
pub use waker::Waker;
pub use watch::{Interest, Watch};
