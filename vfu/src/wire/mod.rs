//! The vfio-user protocol as bytes: message layouts, framing with file descriptors, and the VERSION handshake.
//!
//! Used by the server ([`crate::endpoint`]) and by the guest's side ([`crate::mock`]). Nothing here knows a device, a
//! reactor or guest memory, and nothing here trusts a length it did not check.
//!
//! Specification: QEMU `docs/interop/vfio-user.rst`, protocol version 0.1.

pub mod frame;
pub mod socket;
pub mod spec;
pub mod version;
