//! The RPC methods: one file per group, one line per file in [`TABLES`].
//!
//! A file declares names, params and texts as SPDK's clients know them, and calls into [`crate::target`]. No method
//! does the work itself.

mod app;
mod bdev;
mod bdev_malloc;
mod bdev_null;
mod framework;
#[cfg(test)]
mod generated;
mod log;
mod scheduler;
mod thread;
mod vfu;

use rpc::Method;

use crate::{config::Entry, target::Target};

/// All methods. Listed to clients in reverse.
pub(crate) const TABLES: &[&[Method<Target>]] = &[
    app::METHODS,
    framework::METHODS,
    log::METHODS,
    thread::METHODS,
    bdev::METHODS,
    bdev_malloc::METHODS,
    bdev_null::METHODS,
    scheduler::METHODS,
    vfu::METHODS,
];

/// The calls that make the bdevs, in the order in which they were made.
pub(crate) fn bdev_config(target: &Target) -> Vec<Entry> {
    let bdevs = target.registry.list();
    let configs = bdevs.iter().filter(|bdev| !bdev.is_removed()).filter_map(|bdev| bdev.bdev().config());
    configs.map(|(method, params)| Entry::new(method, params)).collect()
}

/// The calls that set the scheduler.
pub(crate) fn scheduler_config(target: &Target) -> Vec<Entry> {
    scheduler::config(target)
}

/// The calls that make the endpoints.
pub(crate) fn endpoint_config(target: &Target) -> Vec<Entry> {
    vfu::config(target)
}

/// What SPDK answers to bad params in most bdev methods.
const DECODE_FAILED: (i32, &str) = (-32603, "spdk_json_decode_object failed");
