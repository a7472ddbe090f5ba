//! bdev_malloc: disks in memory.

use std::sync::Arc;

use ::bdev::types::malloc;
use rpc::{Cli, Kind, Method, Param, Params, Pending, Prints, RpcError};

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::later("bdev_malloc_create", "bdev_malloc", create)
        .params(&[
            Param::optional("name", Kind::String, "Malloc<N>", "name of the bdev")
                .cli(Cli::Option("-b/--name")),
            Param::required("num_blocks", Kind::U64, "size of malloc bdev in MB (int > 0)")
                .cli(Cli::BlocksFromMib { fractions: true }),
            Param::required("block_size", Kind::U32, "data block size for this bdev").cli(Cli::Positional),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::optional("optimal_io_boundary", Kind::U32, "0", "split on this boundary, in blocks")
                .cli(Cli::Option("-o/--optimal-io-boundary")),
            Param::optional("md_size", Kind::U32, "0", "metadata size for this bdev (0, 8, 16, 32, 64, 128)")
                .cli(Cli::Option("-m/--md-size")),
            Param::optional("md_interleave", Kind::Bool, "false", "metadata inline with data")
                .cli(Cli::Flag("-i/--md-interleave")),
            Param::optional("dif_type", Kind::I32, "0", "protection information type")
                .cli(Cli::Option("-t/--dif-type"))
                .choices(&[0, 1, 2, 3]),
            Param::optional(
                "dif_is_head_of_md",
                Kind::Bool,
                "false",
                "protection information at the head of metadata",
            )
            .cli(Cli::Flag("-d/--dif-is-head-of-md")),
            Param::optional(
                "physical_block_size",
                Kind::U32,
                "block_size",
                "physical block size of the device",
            )
            .cli(Cli::Option("-p/--physical-block-size")),
            Param::optional("dif_pi_format", Kind::U32, "0", "protection information format")
                .cli(Cli::Option("-f/--dif-pi-format"))
                .choices(&[0, 1, 2]),
            Param::optional("numa_id", Kind::I32, "-1", "NUMA node of the memory")
                .cli(Cli::Option("-n/--numa-id")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Create a bdev with malloc backend")
        .example(r#"{"name": "Malloc8", "num_blocks": 32768, "block_size": 512}"#)
        .prints(Prints::Bare),
    Method::later("bdev_malloc_delete", "bdev_malloc", delete)
        .params(&[Param::required("name", Kind::String, "malloc bdev name").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete a malloc disk")
        .example(r#"{"name": "Malloc0"}"#),
];

/// On a thread of its own: backing gigabytes with memory takes seconds, and others are answered meanwhile.
fn create(target: Arc<Target>, params: Params) -> Pending {
    Box::pin(async move {
        let params = params.parse()?;
        let making = tokio::task::spawn_blocking(move || malloc::create(&target.registry, params));
        let made = making.await.map_err(|error| RpcError::internal(error.to_string()))?;
        Ok(made.map_err(|error| bdev::failed(&error))?.name().into())
    })
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_of_type(&target, "malloc", params)
}
