//! Virtio 1.2 devices: the PCI transport, virtqueues, and the device types.
//!
//! A device type ([`device::VirtioDevice`]) says what it is and makes a [`device::Handler`] for each queue; the
//! transport ([`transport::VirtioPci`]) is the register file; the queues run on their owners ([`owner`]), each with its
//! ring, its handler and its interrupt.
//!
//! Specification: Virtual I/O Device (VIRTIO) Version 1.2, cited by section.

pub mod blk;
pub mod control;
pub mod device;
mod owner;
pub mod queue;
mod remote;
pub mod scsi;
pub mod spec;
pub mod transport;
