//! The bdev types there are: one file each, one line each in the table.
//!
//! Nothing else in the project names a type.

mod malloc;
mod null;

pub use malloc::{Malloc, MallocParams};
pub use null::{Null, NullParams};

use crate::method::Method;

/// One type of bdev.
#[derive(Debug, Clone, Copy)]
pub struct BdevType {
    /// Short name, as in the names of its methods.
    pub name: &'static str,
    /// What `bdev_get_bdevs` calls it.
    pub product_name: &'static str,
    /// The RPC methods that make, change and delete bdevs of this type.
    pub methods: &'static [Method],
}

/// Every type, in the order in which `save_config` writes them.
pub static TYPES: &[BdevType] = &[malloc::TYPE, null::TYPE];

#[cfg(test)]
mod tests;
