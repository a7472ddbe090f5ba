//! Virtual PCI disks for virtual machines: a vfio-user server and the devices behind it.
//!
//! [`endpoint`] is the front door: one socket, one client, messages in and out. Behind it a [`function`] puts PCI
//! configuration ([`pci`]) and a [`device`] model together. A model ([`virtio`]) reaches guest memory ([`dma`]) and
//! raises interrupts ([`irq`]) without knowing a message. [`wire`] is the protocol as bytes.

pub mod device;
pub mod dma;
pub mod endpoint;
pub mod function;
pub mod irq;
mod last_words;
mod lookout;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod moderation;
pub mod nvme;
pub mod pci;
pub mod points;
pub mod stages;
pub mod virtio;
pub mod wire;
