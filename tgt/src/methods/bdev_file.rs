//! bdev_uring and bdev_aio: files and block devices, with the interface of either of SPDK's bdevs.

use std::sync::Arc;

use ::bdev::types::{aio, uring};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, RpcError};

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

const FILENAME: Param =
    Param::required("filename", Kind::String, "path to the device or file").cli(Cli::Positional);
const NEW_NAME: Param = Param::required("name", Kind::String, "name of the bdev").cli(Cli::Positional);
const BLOCK_SIZE: Param =
    Param::optional("block_size", Kind::U32, "that of the device", "bytes of a block; a file needs it")
        .cli(Cli::Positional);
const UUID: Param =
    Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid"));

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_uring_create", "bdev_uring", create_uring)
        .params(&[
            FILENAME,
            NEW_NAME,
            BLOCK_SIZE,
            UUID,
            Param::optional("iopoll", Kind::Bool, "false", "have the kernel poll the device, where it can"),
            Param::optional("sqpoll", Kind::Bool, "false", "have a kernel thread submit, where it can"),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Create a bdev with io_uring backend")
        .example(r#"{"filename": "/path/to/disk.img", "name": "Uring0", "block_size": 512}"#)
        .prints(Prints::Bare),
    Method::sync("bdev_uring_rescan", "bdev_uring", rescan_uring)
        .params(&[Param::required("name", Kind::String, "uring bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Look at the size of a uring bdev's file again")
        .example(r#"{"name": "Uring1"}"#)
        .prints(Prints::Bare),
    Method::later("bdev_uring_delete", "bdev_uring", |target, params| delete(&target, "uring", params))
        .params(&[Param::required("name", Kind::String, "uring bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete a uring bdev")
        .example(r#"{"name": "Uring1"}"#),
    Method::sync("bdev_aio_create", "bdev_aio", create_aio)
        .params(&[
            FILENAME,
            NEW_NAME,
            BLOCK_SIZE,
            Param::optional("readonly", Kind::Bool, "false", "refuse writes").cli(Cli::Flag("-r/--readonly")),
            Param::optional("fallocate", Kind::Bool, "false", "discard and zero by fallocate")
                .cli(Cli::Flag("--fallocate")),
            UUID,
            Param::optional("nowait", Kind::Bool, "false", "never block in a submission; none does here")
                .cli(Cli::Flag("--no-wait")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Add a bdev with aio backend")
        .example(r#"{"filename": "/path/to/disk.img", "name": "Aio0", "block_size": 512}"#)
        .prints(Prints::Bare),
    Method::sync("bdev_aio_rescan", "bdev_aio", rescan_aio)
        .params(&[Param::required("name", Kind::String, "aio bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Look at the size of an aio bdev's file again")
        .example(r#"{"name": "Aio1"}"#)
        .prints(Prints::Bare),
    Method::later("bdev_aio_delete", "bdev_aio", |target, params| delete(&target, "aio", params))
        .params(&[Param::required("name", Kind::String, "aio bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete an aio disk")
        .example(r#"{"name": "Aio1"}"#),
];

fn create_uring(target: &Arc<Target>, params: Params) -> Outcome {
    let made = uring::create(&target.registry, params.parse()?).map_err(|error| {
        tracing::warn!(%error, "a uring bdev cannot be created");
        // One answer for all causes, as SPDK gives it.
        RpcError::internal("Unable to create URING bdev.")
    })?;
    Ok(made.name().into())
}

fn create_aio(target: &Arc<Target>, params: Params) -> Outcome {
    let made = aio::create(&target.registry, params.parse()?).map_err(|error| bdev::failed(&error))?;
    Ok(made.name().into())
}

fn rescan_uring(target: &Arc<Target>, params: Params) -> Outcome {
    rescan(params, |name| uring::rescan(&target.registry, name))
}

fn rescan_aio(target: &Arc<Target>, params: Params) -> Outcome {
    rescan(params, |name| aio::rescan(&target.registry, name))
}

fn rescan(params: Params, look: impl FnOnce(&str) -> Result<(), ::bdev::Error>) -> Outcome {
    let bdev::Named { name } = params.parse()?;
    look(&name).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: &Arc<Target>, type_name: &'static str, params: Params) -> Pending {
    bdev::delete_of_type(target, type_name, params)
}
