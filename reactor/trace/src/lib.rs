//! Trace points: events of the I/O path and around it, kept in shared memory, a ring for each reactor.
//!
//! A crate declares its points as one static [`Group`] and calls [`Group::record`] where they happen: a load and a
//! branch while the point is off. While it is on, the event goes into the ring of the calling thread, if it has one
//! ([`Buffer::attach`]); the oldest is overwritten. The program makes the [`Buffer`] and turns points on and off; whoever
//! may open the file reads it ([`Snapshot`]), also after the program has died. Nothing here knows what the events mean.

mod buffer;
mod group;
mod layout;
mod snapshot;
mod words;

pub use buffer::{Buffer, BufferError, Ticks};
pub use group::{ARGS, Group, Point, SelectError, select, text};
pub use snapshot::{Description, Event, Snapshot, SnapshotError};
