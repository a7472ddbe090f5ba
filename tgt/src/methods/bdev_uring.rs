//! bdev_uring: files and block devices by io_uring.

use std::sync::Arc;

use ::bdev::types::uring;
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, RpcError};

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_uring_create", "bdev_uring", create)
        .params(&[
            Param::required("filename", Kind::String, "path to the device or file").cli(Cli::Positional),
            Param::required("name", Kind::String, "name of the bdev").cli(Cli::Positional),
            Param::optional(
                "block_size",
                Kind::U32,
                "that of the device",
                "bytes of a block; a file needs it",
            )
            .cli(Cli::Positional),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::optional("iopoll", Kind::Bool, "false", "have the kernel poll the device, where it can"),
            Param::optional("sqpoll", Kind::Bool, "false", "have a kernel thread submit, where it can"),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Create a bdev with io_uring backend")
        .prints(Prints::Bare),
    Method::sync("bdev_uring_rescan", "bdev_uring", rescan)
        .params(&[Param::required("name", Kind::String, "uring bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Look at the size of a uring bdev's file again")
        .prints(Prints::Bare),
    Method::later("bdev_uring_delete", "bdev_uring", delete)
        .params(&[Param::required("name", Kind::String, "uring bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete a uring bdev"),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let made = uring::create(&target.registry, params.parse()?).map_err(|error| {
        tracing::warn!(%error, "a uring bdev cannot be created");
        // One answer for all causes, as SPDK gives it.
        RpcError::internal("Unable to create URING bdev.")
    })?;
    Ok(made.name().into())
}

fn rescan(target: &Arc<Target>, params: Params) -> Outcome {
    let bdev::Named { name } = params.parse()?;
    uring::rescan(&target.registry, &name).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_of_type(&target, "uring", params)
}
