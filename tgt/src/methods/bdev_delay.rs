//! bdev_delay: bdevs that complete late.

use std::sync::Arc;

use ::bdev::types::{DelayParams, delay};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints};
use serde::Deserialize;

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_delay_create", "bdev_delay", create)
        .params(&[
            Param::required("base_bdev_name", Kind::String, "name of the bdev below")
                .cli(Cli::Option("-b/--base-bdev-name")),
            Param::required("name", Kind::String, "name of the delay bdev").cli(Cli::Option("-d/--name")),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::required("avg_read_latency", Kind::U64, "delay of reads, in microseconds")
                .cli(Cli::Option("-r/--avg-read-latency")),
            Param::required("p99_read_latency", Kind::U64, "delay of 1 in 100 reads, in microseconds")
                .cli(Cli::Option("-t/--nine-nine-read-latency")),
            Param::required("avg_write_latency", Kind::U64, "delay of writes, in microseconds")
                .cli(Cli::Option("-w/--avg-write-latency")),
            Param::required("p99_write_latency", Kind::U64, "delay of 1 in 100 writes, in microseconds")
                .cli(Cli::Option("-n/--nine-nine-write-latency")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Add a delay bdev on existing bdev")
        .example(r#"{"base_bdev_name": "Malloc1", "name": "Delay0", "avg_read_latency": 100, "p99_read_latency": 500, "avg_write_latency": 100, "p99_write_latency": 500}"#)
        .prints(Prints::Bare),
    Method::later("bdev_delay_delete", "bdev_delay", delete)
        .params(&[Param::required("name", Kind::String, "delay bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete a delay bdev")
        .example(r#"{"name": "Delay1"}"#),
    Method::sync("bdev_delay_update_latency", "bdev_delay", update)
        .params(&[
            Param::required("delay_bdev_name", Kind::String, "name of the delay bdev").cli(Cli::Positional),
            Param::required(
                "latency_type",
                Kind::Enum(&["avg_read", "avg_write", "p99_read", "p99_write"]),
                "which delay to change",
            )
            .cli(Cli::Positional),
            Param::required("latency_us", Kind::U64, "new delay in microseconds").cli(Cli::Positional),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Update one of the latency values for a given delay bdev")
        .example(r#"{"delay_bdev_name": "Delay1", "latency_type": "avg_read", "latency_us": 500}"#)
        .prints(Prints::Bare),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let params: DelayParams = params.parse()?;
    let name = params.name.clone();
    delay::create(&target.registry, params).map_err(|error| bdev::failed(&error))?;
    Ok(name.into())
}

fn update(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Update {
        delay_bdev_name: String,
        latency_type: delay::LatencyType,
        latency_us: u64,
    }
    let Update { delay_bdev_name, latency_type, latency_us } = params.parse()?;
    delay::update(&target.registry, &delay_bdev_name, latency_type, latency_us)
        .map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_when_gone(params, move |name, on_gone| delay::delete(&target.registry, name, on_gone))
}
