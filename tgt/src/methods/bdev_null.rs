//! bdev_null: disks that answer at once and keep nothing.

use std::sync::Arc;

use ::bdev::types::null;
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints};
use serde::Deserialize;

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_null_create", "bdev_null", create)
        .params(&[
            Param::required("name", Kind::String, "block device name").cli(Cli::Positional),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::required("num_blocks", Kind::U64, "size of null bdev in MB (int > 0)")
                .cli(Cli::BlocksFromMib { fractions: false }),
            Param::required("block_size", Kind::U32, "data block size for this bdev").cli(Cli::Positional),
            Param::optional(
                "physical_block_size",
                Kind::U32,
                "block_size",
                "physical block size of the device",
            )
            .cli(Cli::Option("-p/--physical-block-size")),
            Param::optional("md_size", Kind::U32, "0", "metadata size for this bdev")
                .cli(Cli::Option("-m/--md-size")),
            Param::optional("dif_type", Kind::I32, "0", "protection information type")
                .cli(Cli::Option("-t/--dif-type"))
                .choices(&[0, 1, 2, 3])
                .needs("md_size"),
            Param::optional("dif_pi_format", Kind::U32, "0", "protection information format")
                .cli(Cli::Option("-f/--dif-pi-format"))
                .choices(&[0, 1, 2]),
            Param::optional(
                "dif_is_head_of_md",
                Kind::Bool,
                "false",
                "protection information at the head of metadata",
            )
            .cli(Cli::Flag("-d/--dif-is-head-of-md")),
            Param::optional("preferred_write_granularity", Kind::U32, "0", "hint in blocks")
                .cli(Cli::Option("-g/--preferred-write-granularity")),
            Param::optional("preferred_write_alignment", Kind::U32, "0", "hint in blocks")
                .cli(Cli::Option("-a/--preferred-write-alignment")),
            Param::optional("optimal_write_size", Kind::U32, "0", "hint in blocks")
                .cli(Cli::Option("-s/--optimal-write-size")),
            Param::optional("preferred_unmap_granularity", Kind::U32, "0", "hint in blocks")
                .cli(Cli::Option("-r/--preferred-unmap-granularity")),
            Param::optional("preferred_unmap_alignment", Kind::U32, "0", "hint in blocks")
                .cli(Cli::Option("-c/--preferred-unmap-alignment")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Add a bdev with null backend")
        .example(r#"{"name": "Null1", "num_blocks": 32768, "block_size": 4096}"#)
        .prints(Prints::Bare),
    Method::later("bdev_null_delete", "bdev_null", delete)
        .params(&[Param::required("name", Kind::String, "null bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete a null bdev")
        .example(r#"{"name": "Null0"}"#),
    Method::sync("bdev_null_resize", "bdev_null", resize)
        .params(&[
            Param::required("name", Kind::String, "null bdev name").cli(Cli::Positional),
            Param::required("new_size", Kind::U64, "new size of bdev for resize operation. The unit is MiB")
                .cli(Cli::Positional),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Resize a null bdev")
        .example(r#"{"name": "Null1", "new_size": 128}"#)
        .prints(Prints::Bare),
];

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let made =
        null::create(&target.registry, params.parse()?).map_err(|error| bdev::failed_in_words(&error))?;
    Ok(made.name().into())
}

fn resize(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Resize {
        name: String,
        new_size: u64,
    }
    let Resize { name, new_size } = params.parse()?;
    null::resize(&target.registry, &name, new_size).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_of_type(&target, "null", params)
}
