//! bdev_split: bdevs cut into parts.

use std::sync::Arc;

use ::bdev::types::split;
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints};
use serde::Deserialize;

use super::bdev;
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_split_create", "bdev_split", create)
        .params(&[
            Param::required("base_bdev", Kind::String, "name of the bdev to cut").cli(Cli::Positional),
            Param::optional("split_size_mb", Kind::U64, "equal shares", "size of a part in MiB")
                .cli(Cli::Option("-s/--split-size-mb")),
            Param::required("split_count", Kind::U32, "number of parts").cli(Cli::Positional),
        ])
        .help("Cut a bdev into parts, now or when it appears")
        .example(r#"{"base_bdev": "Malloc1", "split_count": 2}"#)
        .prints(Prints::Words),
    Method::sync("bdev_split_delete", "bdev_split", delete)
        .params(&[
            Param::required("base_bdev", Kind::String, "name of the bdev that is cut").cli(Cli::Positional)
        ])
        .help("Delete split config with all created splits")
        .example(r#"{"base_bdev": "Malloc5"}"#),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let parts = split::create(&target.registry, params.parse()?).map_err(|error| bdev::failed(&error))?;
    Ok(parts.into())
}

fn delete(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Delete {
        base_bdev: String,
    }
    let Delete { base_bdev } = params.parse()?;
    split::delete(&target.registry, &base_bdev).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}
