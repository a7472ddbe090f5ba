//! The bdev types there are: one file each, one line each in the table.
//!
//! Nothing else in the project names a type.

pub mod malloc;
pub mod null;

pub use malloc::{Malloc, MallocParams};
pub use null::{Null, NullParams};

/// One type of bdev.
#[derive(Debug, Clone, Copy)]
pub struct BdevType {
    /// Short name, as in the names of its methods.
    pub name: &'static str,
    /// What `bdev_get_bdevs` calls it.
    pub product_name: &'static str,
}

/// Every type, in the order in which `save_config` writes them.
pub static TYPES: &[BdevType] = &[malloc::TYPE, null::TYPE];

#[cfg(test)]
mod tests;
