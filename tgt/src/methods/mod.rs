//! The RPC methods: one file per group, one line per file in [`TABLES`].
//!
//! A file declares names, params and texts as SPDK's clients know them, and calls into [`crate::target`]. No method
//! does the work itself.

mod app;
mod bdev;
mod bdev_delay;
mod bdev_error;
mod bdev_file;
mod bdev_malloc;
mod bdev_null;
mod bdev_passthru;
pub(crate) mod bdev_raid;
mod bdev_services;
mod bdev_split;
mod framework;
#[cfg(test)]
mod generated;
mod iobuf;
mod log;
mod nvmf;
mod scheduler;
mod stages;
mod thread;
mod trace;
mod vfu;

use rpc::Method;
use serde_json::Value;

use crate::{config::Entry, target::Target};

/// All methods. Listed to clients in reverse.
pub(crate) const TABLES: &[&[Method<Target>]] = &[
    app::METHODS,
    framework::METHODS,
    log::METHODS,
    thread::METHODS,
    trace::METHODS,
    bdev::METHODS,
    bdev_malloc::METHODS,
    bdev_null::METHODS,
    scheduler::METHODS,
    bdev_file::METHODS,
    bdev_delay::METHODS,
    bdev_error::METHODS,
    bdev_passthru::METHODS,
    bdev_split::METHODS,
    bdev_raid::METHODS,
    bdev_services::METHODS,
    iobuf::METHODS,
    nvmf::TRANSPORT,
    nvmf::SUBSYSTEM,
    nvmf::NAMESPACE,
    nvmf::LISTENER,
    nvmf::QUERY,
    vfu::METHODS,
    stages::METHODS,
];

/// The calls that make the bdevs, their stacks and their services.
pub(crate) fn bdev_config(target: &Target) -> Vec<Entry> {
    let all = target.registry.config().into_iter().map(|(method, params)| match params {
        Value::Null => Entry { method: method.to_owned(), params: None },
        params => Entry::new(method, params),
    });
    let mut all: Vec<Entry> = all.collect();
    // Behind the options of the layer.
    all.insert(1, bdev_raid::config(target));
    all
}

/// The calls that set up the buffers.
pub(crate) fn iobuf_config(_target: &Target) -> Vec<Entry> {
    iobuf::config()
}

/// The calls that set the scheduler.
pub(crate) fn scheduler_config(target: &Target) -> Vec<Entry> {
    scheduler::config(target)
}

/// The calls that make the NVMe subsystems.
pub(crate) fn nvmf_config(target: &Target) -> Vec<Entry> {
    nvmf::config(target)
}

/// The calls that make the endpoints.
pub(crate) fn endpoint_config(target: &Target) -> Vec<Entry> {
    vfu::config(target)
}

/// What SPDK answers to bad params in most bdev methods.
const DECODE_FAILED: (i32, &str) = (-32603, "spdk_json_decode_object failed");
