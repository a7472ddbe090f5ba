//! NVMe: subsystems with namespaces over bdevs, the controllers that serve them, and how a controller looks over PCIe.
//!
//! [`controller`] and [`io`] are the core: commands in, completions out, and data reached through [`data::Data`]. They
//! know neither rings nor PCI, so that a fabrics transport can drive the same code. [`pcie`] is the model behind the
//! vfio-user front door: registers, doorbells, queues in guest memory, PRPs and SGLs. Specifications: NVM Express Base
//! 2.0c ("Base"), NVM Command Set 1.0c ("NVM"), PCIe Transport 1.0c ("PCIe").

pub mod controller;
pub mod data;
pub mod io;
mod keeper;
pub mod link;
pub mod namespace;
pub mod pcie;
pub mod reservation;
pub mod spec;
pub mod subsystem;
