//! Guest memory: the windows a client maps, and how a device reaches what is behind them.
//!
//! A client offers windows of its address space ([`Windows::map`]). Each queue works on its own snapshot of them
//! ([`View`]), taken when it starts and again when the windows change, so looking up an address takes no lock. A window
//! lives as long as any snapshot that holds it: memory a request points into cannot be unmapped under it, whatever the
//! client does. That an unmap is answered only after the requests are gone is the endpoint's business, not safety's.
//!
//! Guest memory is never a Rust reference: the guest writes it at any time. It is read once, by volatile or atomic
//! access, through [`Slice`].

mod bounce;
mod budget;
mod mapping;
mod release;
mod remote;
mod sigbus;
mod slice;
mod view;
mod windows;

pub use bounce::Bounce;
pub use mapping::{Mapping, Protection};
pub(crate) use release::start as start_releaser;
pub use remote::{Ask, Asker, Order, Remote, Ticket};
pub use slice::{Entries, Slice, Span, Table};
pub use view::{Fault, View};
pub use windows::{MapError, UnmapError, Window, Windows};
