//! PCI as a guest sees it: configuration space with write masks, capabilities, the MSI-X table.
//!
//! Specifications: PCI Local Bus 3.0 (type 0 header), PCI Express Base 3.0 (capability, extended space).

mod builder;
mod config;
pub mod regs;

pub use builder::{Bar, Identity, Layout, VendorCap};
pub use config::{ConfigSpace, Effects};
