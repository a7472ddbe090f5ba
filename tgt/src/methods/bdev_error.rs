//! bdev_error: bdevs that fail on demand.

use std::sync::Arc;

use ::bdev::types::error;
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints};

use super::bdev;
use crate::target::Target;

/// What SPDK answers to bad params in these methods.
const DECODE_FAILED: (i32, &str) = (-32602, "spdk_json_decode_object failed");

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_error_create", "bdev_error", create)
        .params(&[
            Param::required("base_name", Kind::String, "name of the bdev below").cli(Cli::Positional),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("--uuid")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Add bdev with error injection backend")
        .example(r#"{"base_name": "Malloc1"}"#)
        .prints(Prints::Bare),
    Method::later("bdev_error_delete", "bdev_error", delete)
        .params(&[Param::required("name", Kind::String, "error bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete an error bdev")
        .example(r#"{"name": "EE_Malloc3"}"#),
    Method::sync("bdev_error_inject_error", "bdev_error", inject)
        .params(&[
            Param::required("name", Kind::String, "name of the error bdev").cli(Cli::Positional),
            Param::required(
                "io_type",
                Kind::Enum(&["clear", "read", "write", "unmap", "flush", "all"]),
                "which requests",
            )
            .cli(Cli::Positional),
            Param::required(
                "error_type",
                Kind::Enum(&["failure", "nvme_failure", "pending", "corrupt_data", "nomem"]),
                "what happens to them",
            )
            .cli(Cli::Positional),
            Param::optional("nvme_sct", Kind::U32, "0", "status code type of nvme_failure")
                .cli(Cli::Option("--nvme-sct")),
            Param::optional("nvme_sc", Kind::U32, "0", "status code of nvme_failure")
                .cli(Cli::Option("--nvme-sc")),
            Param::optional("num", Kind::U32, "1", "how many requests").cli(Cli::Option("-n/--num")),
            Param::optional("queue_depth", Kind::U64, "0", "only while so many are in flight")
                .cli(Cli::Option("-q/--queue-depth")),
            Param::optional("corrupt_offset", Kind::U64, "0", "byte of the request to change")
                .cli(Cli::Option("-o/--corrupt-offset")),
            Param::optional("corrupt_value", Kind::U8, "0", "what it is XORed with, 1 to 255")
                .cli(Cli::Option("-v/--corrupt-value")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Inject an error")
        .example(r#"{"name": "EE_Malloc3", "io_type": "read", "error_type": "failure", "num": 1}"#),
    Method::sync("bdev_error_resume_pending", "bdev_error", resume)
        .params(&[Param::required("name", Kind::String, "name of the error bdev").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Resume pending requests")
        .example(r#"{"name": "EE_Malloc3"}"#),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    error::create(&target.registry, params.parse()?).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn inject(target: &Arc<Target>, params: Params) -> Outcome {
    error::inject(&target.registry, &params.parse()?).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn resume(target: &Arc<Target>, params: Params) -> Outcome {
    let bdev::Named { name } = params.parse()?;
    error::resume_pending(&target.registry, &name).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_when_gone(params, move |name, on_gone| error::delete(&target.registry, name, on_gone))
}
