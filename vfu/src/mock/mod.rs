//! The guest's side: memory, a vfio-user client, a PCI and virtio driver, rings, a disk driver.
//!
//! Tests, the load generator and fuzzers are the callers; the target itself never is (feature `mock`). It stands where
//! a VMM and its guest's kernel stand, and speaks to any virtio-blk vfio-user server, not only to ours. Register
//! offsets are written down here a second time, from the specification, so that an error in the device's is seen.
//!
//! From the bottom up: [`memory`] is RAM, [`client`] the VMM's messages, [`pci`] finds the structures, [`transport`]
//! drives the registers, [`ring`] says what a ring does for a driver, [`split`] and [`packed`] are two, [`blk`] is a disk on top.
//! [`server`] is the other side, in this process.

pub mod blk;
pub mod client;
pub mod memory;
pub mod nvme;
pub mod packed;
pub mod pci;
mod private;
pub mod ring;
pub mod scsi;
pub mod server;
pub mod split;
pub mod transport;
