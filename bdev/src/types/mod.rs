//! The bdev types there are: one file each, one line each in the table.
//!
//! Nothing else in the project names a type.

pub mod aio;
pub mod delay;
pub mod error;
mod file_bdev;
pub mod malloc;
pub mod null;
pub mod passthru;
pub mod raid;
pub mod split;
pub mod uring;

pub use aio::AioParams;
pub use delay::DelayParams;
pub use error::ErrorParams;
pub use malloc::{Malloc, MallocParams};
pub use null::{Null, NullParams};
pub use passthru::PassthruParams;
pub use raid::RaidParams;
pub use split::SplitParams;
pub use uring::UringParams;

/// One type of bdev.
#[derive(Debug, Clone, Copy)]
pub struct BdevType {
    /// Short name, as in the names of its methods.
    pub name: &'static str,
    /// What `bdev_get_bdevs` calls it.
    pub product_name: &'static str,
}

/// Every type, in the order in which `save_config` writes them.
pub static TYPES: &[BdevType] = &[
    malloc::TYPE,
    null::TYPE,
    uring::TYPE,
    aio::TYPE,
    delay::TYPE,
    split::TYPE,
    passthru::TYPE,
    error::TYPE,
    raid::TYPE,
];

#[cfg(test)]
mod tests;
