//! bdev_passthru: another name for a bdev.

use std::sync::Arc;

use ::bdev::types::{PassthruParams, passthru};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints};

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_passthru_create", "bdev_passthru", create)
        .params(&[
            Param::required("base_bdev_name", Kind::String, "name of the bdev below")
                .cli(Cli::Option("-b/--base-bdev-name")),
            Param::required("name", Kind::String, "name of the pass through bdev")
                .cli(Cli::Option("-p/--name")),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Add a pass through bdev on existing bdev")
        .example(r#"{"base_bdev_name": "Malloc1", "name": "Pass0"}"#)
        .prints(Prints::Bare),
    Method::later("bdev_passthru_delete", "bdev_passthru", delete)
        .params(&[Param::required("name", Kind::String, "pass through bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete a pass through bdev")
        .example(r#"{"name": "Pass1"}"#),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let params: PassthruParams = params.parse()?;
    let name = params.name.clone();
    passthru::create(&target.registry, params).map_err(|error| bdev::failed(&error))?;
    Ok(name.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_when_gone(params, move |name, on_gone| passthru::delete(&target.registry, name, on_gone))
}
