//! iobuf and notify: buffers of the process, and the log of what happened to bdevs.

use std::sync::Arc;

use bdev::{Notifications, iobuf};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError, States};
use serde::Deserialize;
use serde_json::json;

use super::bdev::failed;
use crate::{config::Entry, target::Target};

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("iobuf_set_options", "iobuf", set_options)
        .states(States::Startup)
        .params(&[
            Param::optional("small_pool_count", Kind::U64, "8192", "number of small buffers")
                .cli(Cli::Option("--small-pool-count")),
            Param::optional("large_pool_count", Kind::U64, "1024", "number of large buffers")
                .cli(Cli::Option("--large-pool-count")),
            Param::optional("small_bufsize", Kind::U32, "8192", "bytes of a small buffer")
                .cli(Cli::Option("--small-bufsize")),
            Param::optional("large_bufsize", Kind::U32, "135168", "bytes of a large buffer")
                .cli(Cli::Option("--large-bufsize")),
            Param::optional("enable_numa", Kind::Bool, "false", "pools per NUMA node; remembered only")
                .cli(Cli::Flag("--enable-numa")),
        ])
        .bad_params(-32602, "spdk_json_decode_object failed")
        .help("Set iobuf pool options"),
    Method::sync("iobuf_get_stats", "iobuf", get_stats)
        .ignores_params()
        .help("Display iobuf statistics")
        .prints(Prints::Json),
    Method::sync("notify_get_types", "notify", get_types)
        .bad_params(-32602, "No parameters required")
        .help("List available notifications that user can subscribe to")
        .prints(Prints::Json),
    Method::sync("notify_get_notifications", "notify", get_notifications)
        .params(&[
            Param::optional("id", Kind::U64, "0", "number of the first entry").cli(Cli::Option("-i/--id")),
            Param::optional("max", Kind::U64, "no limit", "most entries").cli(Cli::Option("-n/--max")),
        ])
        .bad_params(-32602, "Invalid argument")
        .help("Get notifications")
        .prints(Prints::Json),
];

fn set_options(_target: &Arc<Target>, params: Params) -> Outcome {
    iobuf::set_options(params.parse()?).map_err(|error| failed(&error))?;
    Ok(true.into())
}

/// The call that sets the options.
pub(super) fn config() -> Vec<Entry> {
    vec![Entry::new("iobuf_set_options", json!(iobuf::options()))]
}

fn get_stats(_target: &Arc<Target>, _params: Params) -> Outcome {
    let [small, large] = iobuf::stats();
    Ok(json!([{ "module": "bdev", "small_pool": small, "large_pool": large }]))
}

fn get_types(_target: &Arc<Target>, _params: Params) -> Outcome {
    Ok(json!(Notifications::TYPES))
}

fn get_notifications(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        id: Option<u64>,
        max: Option<u64>,
    }
    let Get { id, max } = params.parse()?;
    let entries = target.notifications.since(id.unwrap_or(0), max.unwrap_or(u64::MAX));
    serde_json::to_value(entries).map_err(|error| RpcError::internal(error.to_string()))
}
