//! An NVMe controller behind the front door, driven by the mock's NVMe driver: a server with reactors of its own in this
//! process, malloc bdevs, one subsystem.
#![expect(clippy::unwrap_used, reason = "in a test, and in what it stands on, an error is a failure")]

mod abort;
mod admin;
mod admin_queue;
mod coalescing;
mod durable;
mod elsewhere;
mod features;
mod io;
mod life;
mod model;
mod orphans;
mod private;
mod random;
mod resting;
mod rig;
mod shadow;
mod sleep;
