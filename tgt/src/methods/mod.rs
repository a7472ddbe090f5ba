//! The RPC methods: one file per group, one line per file in [`TABLES`].
//!
//! A file declares names, params and texts as SPDK's clients know them, and calls into [`crate::target`]. No method
//! does the work itself.

mod app;
mod bdev;
mod bdev_malloc;
mod bdev_null;
#[cfg(test)]
mod generated;
mod scheduler;
mod vfu;

use rpc::Method;

use crate::target::Target;

/// All methods. Listed to clients in reverse.
pub(crate) const TABLES: &[&[Method<Target>]] = &[
    app::METHODS,
    bdev::METHODS,
    bdev_malloc::METHODS,
    bdev_null::METHODS,
    scheduler::METHODS,
    vfu::METHODS,
];

/// What SPDK answers to bad params in most bdev methods.
const DECODE_FAILED: (i32, &str) = (-32603, "spdk_json_decode_object failed");
