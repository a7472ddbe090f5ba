//! bdev_aio: files and block devices with the interface of SPDK's bdev of that name.

use std::sync::Arc;

use ::bdev::types::aio;
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints};

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_aio_create", "bdev_aio", create)
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
            Param::optional("readonly", Kind::Bool, "false", "refuse writes").cli(Cli::Flag("-r/--readonly")),
            Param::optional("fallocate", Kind::Bool, "false", "discard and zero by fallocate")
                .cli(Cli::Flag("--fallocate")),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::optional("nowait", Kind::Bool, "false", "never block in a submission; none does here")
                .cli(Cli::Flag("--no-wait")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Add a bdev with aio backend")
        .prints(Prints::Bare),
    Method::sync("bdev_aio_rescan", "bdev_aio", rescan)
        .params(&[Param::required("name", Kind::String, "aio bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Look at the size of an aio bdev's file again")
        .prints(Prints::Bare),
    Method::later("bdev_aio_delete", "bdev_aio", delete)
        .params(&[Param::required("name", Kind::String, "aio bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete an aio disk"),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let made = aio::create(&target.registry, params.parse()?).map_err(|error| bdev::failed(&error))?;
    Ok(made.name().into())
}

fn rescan(target: &Arc<Target>, params: Params) -> Outcome {
    let bdev::Named { name } = params.parse()?;
    aio::rescan(&target.registry, &name).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_of_type(&target, "aio", params)
}
