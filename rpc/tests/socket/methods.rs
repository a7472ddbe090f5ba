//! The methods of the model: declarations as the target's are (params, texts and codes are SPDK's), handlers that only
//! keep names; and a few methods that exist for the tests.

use std::panic::panic_any;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, RpcError, States};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::Model;

const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
const ENODEV: i32 = 19;

const DECODE: &str = "spdk_json_decode_object failed";

const DIF_TYPES: &[i64] = &[0, 1, 2, 3];
const DIF_FORMATS: &[i64] = &[0, 1, 2];
const SIGNALS: &[&str] = &["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"];

pub(crate) static SPDK: &[Method<Model>] = &[
    Method::sync("spdk_get_version", "app_framework", get_version)
        .help("Get the version")
        .states(States::Both)
        .bad_params(-32602, "spdk_get_version method requires no parameters")
        .prints(Prints::Bare),
    Method::sync("framework_get_reactors", "app_framework", get_reactors)
        .help("List all reactors")
        .bad_params(-32602, "`framework_get_reactors` requires no arguments")
        .prints(Prints::Json),
    Method::later("framework_start_init", "app_framework", start_init)
        .help("Start the initialisation of the subsystems")
        .states(States::Startup)
        .bad_params(-32602, "framework_start_init requires no parameters"),
    Method::later("framework_wait_init", "app_framework", wait_init)
        .help("Wait until the subsystems are initialised")
        .states(States::Both)
        .ignores_params(),
    Method::sync("spdk_kill_instance", "app_framework", kill_instance)
        .help("Send a signal to the target")
        .params(&[Param::required("sig_name", Kind::Enum(SIGNALS), "signal to send").cli(Cli::Positional)]),
    Method::sync("bdev_get_bdevs", "bdev_core", get_bdevs)
        .help("List all bdevs, or one")
        .params(&[
            Param::optional("name", Kind::String, "all bdevs", "name, alias or UUID of the bdev")
                .cli(Cli::Option("-b/--name")),
            Param::optional("timeout", Kind::U64, "0", "time in ms to wait for the bdev to appear")
                .cli(Cli::Option("-t/--timeout-ms")),
        ])
        .bad_params(-32603, DECODE)
        .prints(Prints::Json),
    Method::sync("bdev_malloc_create", "bdev_malloc", create_bdev)
        .help("Create a bdev in memory")
        .params(&[
            Param::required("num_blocks", Kind::U64, "size of the bdev")
                .cli(Cli::BlocksFromMib { fractions: true }),
            Param::required("block_size", Kind::U32, "bytes of a block, a multiple of 512")
                .cli(Cli::Positional),
            Param::optional("physical_block_size", Kind::U32, "block_size", "bytes of a physical block")
                .cli(Cli::Option("-p/--physical-block-size")),
            Param::optional("name", Kind::String, "Malloc and a number", "name of the bdev")
                .cli(Cli::Option("-b/--name")),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::optional("optimal_io_boundary", Kind::U32, "0", "split I/O at this boundary, in blocks")
                .cli(Cli::Option("-o/--optimal-io-boundary")),
            Param::optional("md_size", Kind::U32, "0", "bytes of metadata a block: 0, 8, 16, 32, 64 or 128")
                .cli(Cli::Option("-m/--md-size")),
            Param::optional("md_interleave", Kind::Bool, "false", "metadata follows each block, not apart")
                .cli(Cli::Flag("-i/--md-interleave")),
            Param::optional("dif_type", Kind::I32, "0", "type of protection information; needs metadata")
                .cli(Cli::Option("-t/--dif-type"))
                .choices(DIF_TYPES),
            Param::optional("dif_is_head_of_md", Kind::Bool, "false", "it is in the first bytes of metadata")
                .cli(Cli::Flag("-d/--dif-is-head-of-md")),
            Param::optional("dif_pi_format", Kind::U32, "0", "guard of 16 (0), 32 (1) or 64 bits (2)")
                .cli(Cli::Option("-f/--dif-pi-format"))
                .choices(DIF_FORMATS),
            Param::optional("numa_id", Kind::I32, "-1", "NUMA node of the memory, -1 for any")
                .cli(Cli::Option("-n/--numa-id")),
        ])
        .bad_params(-32603, DECODE)
        .prints(Prints::Bare),
    Method::sync("bdev_malloc_delete", "bdev_malloc", delete_bdev)
        .help("Delete a malloc bdev")
        .params(&[Param::required("name", Kind::String, "name of the bdev").cli(Cli::Positional)])
        .bad_params(-32603, DECODE),
    Method::sync("bdev_null_create", "bdev_null", create_bdev)
        .help("Create a bdev that keeps nothing")
        .params(&[
            Param::required("name", Kind::String, "name of the bdev").cli(Cli::Positional),
            Param::required("num_blocks", Kind::U64, "size of the bdev")
                .cli(Cli::BlocksFromMib { fractions: false }),
            Param::required("block_size", Kind::U32, "bytes of a block").cli(Cli::Positional),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the bdev").cli(Cli::Option("-u/--uuid")),
            Param::optional("physical_block_size", Kind::U32, "block_size", "bytes of a physical block")
                .cli(Cli::Option("-p/--physical-block-size")),
            Param::optional("md_size", Kind::U32, "0", "bytes of metadata a block")
                .cli(Cli::Option("-m/--md-size")),
            Param::optional("dif_type", Kind::I32, "0", "type of protection information; needs metadata")
                .cli(Cli::Option("-t/--dif-type"))
                .choices(DIF_TYPES)
                .needs("md_size"),
            Param::optional("dif_is_head_of_md", Kind::Bool, "false", "it is in the first bytes of metadata")
                .cli(Cli::Flag("-d/--dif-is-head-of-md")),
            Param::optional("dif_pi_format", Kind::U32, "0", "guard of 16 (0), 32 (1) or 64 bits (2)")
                .cli(Cli::Option("-f/--dif-pi-format"))
                .choices(DIF_FORMATS),
            Param::optional("preferred_write_alignment", Kind::U32, "0", "in blocks")
                .cli(Cli::Option("-a/--preferred-write-alignment")),
            Param::optional("preferred_write_granularity", Kind::U32, "0", "in blocks")
                .cli(Cli::Option("-g/--preferred-write-granularity")),
            Param::optional("optimal_write_size", Kind::U32, "0", "in blocks")
                .cli(Cli::Option("-s/--optimal-write-size")),
            Param::optional("preferred_unmap_alignment", Kind::U32, "0", "in blocks")
                .cli(Cli::Option("-c/--preferred-unmap-alignment")),
            Param::optional("preferred_unmap_granularity", Kind::U32, "0", "in blocks")
                .cli(Cli::Option("-r/--preferred-unmap-granularity")),
        ])
        .bad_params(-32603, DECODE)
        .prints(Prints::Bare),
    Method::sync("bdev_null_delete", "bdev_null", delete_bdev)
        .help("Delete a null bdev")
        .params(&[Param::required("name", Kind::String, "name of the bdev").cli(Cli::Positional)])
        .bad_params(-32603, DECODE),
    Method::sync("vfu_tgt_set_base_path", "vfu", set_base_path)
        .help("Set the directory of vfio-user sockets")
        .params(&[Param::required("path", Kind::String, "directory of later endpoints").cli(Cli::Positional)])
        .bad_params(-32602, "Invalid argument"),
    Method::sync("vfu_virtio_create_blk_endpoint", "vfu", create_endpoint)
        .help("Create a virtio-blk device")
        .params(&[
            Param::required("name", Kind::String, "name of the endpoint and of its socket")
                .cli(Cli::Positional),
            Param::required("bdev_name", Kind::String, "bdev behind the device")
                .cli(Cli::Option("--bdev-name")),
            Param::optional("cpumask", Kind::String, "all cores", "cores of the queues")
                .cli(Cli::Option("--cpumask")),
            Param::optional("num_queues", Kind::U16, "64", "number of queues, 1 to 64")
                .cli(Cli::Option("--num-queues")),
            Param::optional("qsize", Kind::U16, "128", "entries of a queue, 1 to 1024")
                .cli(Cli::Option("--qsize")),
            Param::optional("packed_ring", Kind::Bool, "false", "offer packed rings")
                .cli(Cli::Flag("--packed-ring")),
        ])
        .bad_params(-32602, "Invalid argument"),
    Method::sync("vfu_virtio_delete_endpoint", "vfu", delete_endpoint)
        .help("Delete an endpoint")
        .params(&[Param::required("name", Kind::String, "name of the endpoint").cli(Cli::Positional)])
        .bad_params(-32602, "Invalid argument"),
];

pub(crate) static TEST: &[Method<Model>] =
    &[
        Method::sync("test_echo", "test", |_, params| Ok(json!(params.members())))
            .help("Answer the params")
            .params(&[Param::optional("value", Kind::Any, "", "anything")]),
        Method::sync("test_relaxed", "test", |_, params| Ok(json!(params.members())))
            .help("Answer the known params")
            .relaxed_params(&[Param::optional("value", Kind::Any, "", "anything")]),
        Method::sync("test_large", "test", large).help("Answer that many bytes").params(&[Param::required(
            "bytes",
            Kind::U32,
            "how many",
        )]),
        Method::later("test_hold", "test", hold)
            .help("Answer when the test says so")
            .params(&[Param::required("name", Kind::String, "what to wait for")]),
        Method::sync("test_fail", "test", |_, _| Err(RpcError::errno(ENODEV))).help("Fail"),
        Method::sync("test_panic", "test", |_, _| panic_any("a handler's fault")).help("Panic"),
        Method::later("test_panic_later", "test", |_, _| {
            Box::pin(async {
                tokio::task::yield_now().await;
                panic_any("a handler's fault")
            })
        })
        .help("Panic after a wait"),
    ];

fn get_version(_: &Arc<Model>, _: Params) -> Outcome {
    Ok(json!({"version": "model", "fields": {"major": 26, "minor": 9, "patch": 0, "suffix": ""}}))
}

fn get_reactors(_: &Arc<Model>, _: Params) -> Outcome {
    Ok(json!({"tick_rate": 1, "pid": std::process::id(), "reactors": []}))
}

/// Initialises in two steps, during which the servers are paused, when the test releases `init`.
fn start_init(model: Arc<Model>, _: Params) -> Pending {
    let mine = model.stage.pause();
    Box::pin(async move {
        assert!(mine, "the table lets nobody in while another initialises");
        released(&model, "init").await;
        model.stage.enter_runtime();
        model.stage.resume();
        Ok(true.into())
    })
}

fn wait_init(model: Arc<Model>, _: Params) -> Pending {
    Box::pin(async move {
        model.stage.runtime().await;
        Ok(true.into())
    })
}

fn kill_instance(_: &Arc<Model>, _: Params) -> Outcome {
    Ok(true.into())
}

fn get_bdevs(model: &Arc<Model>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        name: Option<String>,
    }
    let Get { name } = params.parse()?;
    let bdevs = model.bdevs.lock().unwrap();
    let found: Vec<Value> = bdevs
        .iter()
        .filter(|(bdev, _)| name.as_ref().is_none_or(|name| name == *bdev))
        .map(|(bdev, created)| json!({"name": bdev, "created_with": created}))
        .collect();
    if name.is_some() && found.is_empty() {
        return Err(RpcError::errno(ENODEV));
    }
    Ok(found.into())
}

/// Serves two methods: the one that was called says of which type the bdev is.
fn create_bdev(model: &Arc<Model>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Create {
        name: Option<String>,
        block_size: u32,
        num_blocks: u64,
    }
    let members = params.members().clone();
    let method = params.method();
    let Create { name, block_size, num_blocks } = params.parse()?;
    let mut bdevs = model.bdevs.lock().unwrap();
    let name = name.unwrap_or_else(|| format!("Malloc{}", bdevs.len()));
    if bdevs.contains_key(&name) {
        return Err(RpcError::errno(EEXIST));
    }
    assert!(method.ends_with("_create") && u64::from(block_size) * num_blocks > 0);
    bdevs.insert(name.clone(), members);
    Ok(name.into())
}

fn delete_bdev(model: &Arc<Model>, params: Params) -> Outcome {
    let name = named(params)?;
    model.bdevs.lock().unwrap().remove(&name).map(|_| true.into()).ok_or_else(|| RpcError::errno(ENODEV))
}

fn set_base_path(_: &Arc<Model>, _: Params) -> Outcome {
    Ok(true.into())
}

fn create_endpoint(model: &Arc<Model>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Create {
        name: String,
        bdev_name: String,
    }
    let members = params.members().clone();
    let Create { name, bdev_name } = params.parse()?;
    if !model.bdevs.lock().unwrap().contains_key(&bdev_name) {
        return Err(RpcError::params_errno(ENODEV));
    }
    match model.endpoints.lock().unwrap().insert(name, members) {
        None => Ok(true.into()),
        Some(_) => Err(RpcError::params_errno(EEXIST)),
    }
}

fn delete_endpoint(model: &Arc<Model>, params: Params) -> Outcome {
    let name = named(params)?;
    let removed = model.endpoints.lock().unwrap().remove(&name);
    removed.map(|_| true.into()).ok_or_else(|| RpcError::params_errno(ENOENT))
}

fn large(_: &Arc<Model>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Large {
        bytes: usize,
    }
    let Large { bytes } = params.parse()?;
    Ok("x".repeat(bytes).into())
}

fn hold(model: Arc<Model>, params: Params) -> Pending {
    Box::pin(async move {
        let name = named(params)?;
        model.begun.fetch_add(1, Ordering::SeqCst);
        released(&model, &name).await;
        model.held.fetch_add(1, Ordering::SeqCst);
        Ok(name.into())
    })
}

async fn released(model: &Model, name: &str) {
    let mut released = model.released.subscribe();
    let mut is_released = |released: &Vec<String>| released.iter().any(|other| other == name);
    released.wait_for(&mut is_released).await.unwrap();
}

fn named(params: Params) -> Result<String, RpcError> {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    params.parse().map(|Named { name }| name)
}
