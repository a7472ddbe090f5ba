//! Block devices: what one is, how it is driven, who has it, and the types there are.
//!
//! Device models (crate `vfu`), the RPC glue (crate `tgt`) and the load generator use this crate; it knows
//! none of them. A front end opens a [`Descriptor`] from the [`Registry`], opens an [`IoChannel`] per queue,
//! and drives it with [`Request`]s and tokens. A new bdev type is one file in `types/` and one line in
//! [`TYPES`]; services that apply to all types live in [`IoChannel`], once.

pub mod arena;
mod bdev;
mod channel;
mod clock;
#[cfg(feature = "conformance")]
pub mod conformance;
mod describe;
mod error;
mod file;
mod histogram;
mod io_channel;
pub mod iobuf;
pub mod iov;
mod notify;
mod points;
mod qos;
mod ready;
pub mod registry;
mod request;
mod ring;
pub mod stack;
mod stats;
mod timeout;
pub mod types;

pub use bdev::{Bdev, BdevInfo, Boundary, Lifetime, MAX_SEGMENTS};
pub use channel::Channel;
pub use clock::{set_ticks_per_second, ticks_per_second};
pub use describe::{Description, IoStatDescription, IoTypes, RateLimits};
pub use error::{Error, OpenError, strerror};
pub use histogram::{HistogramReading, HistogramSpec};
pub use io_channel::IoChannel;
pub use iov::IoVec;
pub use notify::{Notification, Notifications};
pub use points::POINTS as TRACE;
pub use qos::QosParams;
pub use registry::{
    Access, BdevOptions, Change, ClaimKind, Descriptor, Event, QueueDepth, Registered, Registry,
};
pub use request::{Completion, Op, OpKind, Rejected, Request, Status, Token};
pub use stats::{IoStats, KindStats, ResetMode};
pub use timeout::TimeoutDescription;
pub use types::{BdevType, TYPES};
