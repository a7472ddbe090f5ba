//! vfu: endpoints for virtual machines.

use std::{path::PathBuf, sync::Arc, time::Duration};

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, RpcError};
use rustix::io::Errno;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use vfu::{
    device::QueueDescription,
    moderation::Moderation,
    virtio::{control::DoorbellMode, transport::TransportOptions},
};

use crate::{
    config::Entry,
    endpoints::{BlkOptions, Description, EndpointError, ScsiOptions},
    target::Target,
};

/// What SPDK answers to bad params here.
const INVALID: (i32, &str) = (-32602, "Invalid argument");

const NAME: Param = Param::required("name", Kind::String, "name of the endpoint").cli(Cli::Positional);
const BDEV_NAME: Param =
    Param::required("bdev_name", Kind::String, "block device name").cli(Cli::Option("--bdev-name"));
const SCSI_TARGET_NUM: Param =
    Param::required("scsi_target_num", Kind::U8, "SCSI target number (between 0 and 7)")
        .cli(Cli::Option("--scsi-target-num"));
const CPUMASK: Param =
    Param::optional("cpumask", Kind::String, "all cores", "CPU masks").cli(Cli::Option("--cpumask"));
const QSIZE: Param = Param::optional("qsize", Kind::U16, "128", "number of element for each vring")
    .cli(Cli::Option("--qsize"));
const PACKED_RING: Param =
    Param::optional("packed_ring", Kind::Bool, "false", "enable packed ring").cli(Cli::Flag("--packed-ring"));
const DOORBELL: Param = Param::optional(
    "doorbell",
    Kind::Enum(&["auto", "mapped", "trapped"]),
    "auto",
    "how kicks arrive: auto, mapped or trapped",
)
.cli(Cli::Option("--doorbell"));
const IN_ORDER: Param = Param::optional(
    "in_order",
    Kind::Bool,
    "false",
    "offer to give buffers back in order (VIRTIO_F_IN_ORDER)",
)
.cli(Cli::Flag("--in-order"));
const COALESCE_COUNT: Param = Param::optional(
    "coalesce_count",
    Kind::U16,
    "off",
    "hold interrupts back until so many requests are done",
)
.cli(Cli::Option("--coalesce-count"));
const COALESCE_US: Param =
    Param::optional("coalesce_us", Kind::U32, "off", "hold interrupts back for so many microseconds at most")
        .cli(Cli::Option("--coalesce-us"));
const DISABLE_MSIX: Param = Param::optional(
    "disable_msix",
    Kind::Bool,
    "false",
    "interrupts by the pin alone; QEMU up to 11.1 can then unplug the device",
)
.cli(Cli::Flag("--disable-msix"));

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("vfu_tgt_set_base_path", "vfu", set_base_path)
        .params(&[Param::required("path", Kind::String, "socket base path").cli(Cli::Positional)])
        .bad_params(INVALID.0, INVALID.1)
        .help("Set socket base path")
        .example(r#"{"path": "/var/run"}"#),
    Method::later("vfu_virtio_create_blk_endpoint", "vfu", create_blk)
        .params(&[
            NAME,
            BDEV_NAME,
            CPUMASK,
            Param::optional("num_queues", Kind::U16, "64", "number of vrings")
                .cli(Cli::Option("--num-queues")),
            QSIZE,
            PACKED_RING,
            DOORBELL,
            IN_ORDER,
            COALESCE_COUNT,
            COALESCE_US,
            DISABLE_MSIX,
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Create virtio-blk endpoint")
        .example(r#"{"name": "vfu.1", "bdev_name": "Malloc0", "num_queues": 2, "qsize": 256}"#),
    Method::later("vfu_virtio_create_scsi_endpoint", "vfu", create_scsi)
        .params(&[
            NAME,
            CPUMASK,
            Param::optional("num_io_queues", Kind::U16, "62", "number of IO vrings")
                .cli(Cli::Option("--num-io-queues")),
            QSIZE,
            PACKED_RING,
            DOORBELL,
            IN_ORDER,
            COALESCE_COUNT,
            COALESCE_US,
            DISABLE_MSIX,
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Create virtio-scsi endpoint")
        .example(r#"{"name": "vfu.1", "num_io_queues": 2, "qsize": 256}"#),
    Method::sync("vfu_virtio_scsi_add_target", "vfu", add_target)
        .params(&[NAME, SCSI_TARGET_NUM, BDEV_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Attach a block device to the specified SCSI target")
        .example(r#"{"name": "scsi.0", "scsi_target_num": 1, "bdev_name": "Malloc0"}"#),
    Method::sync("vfu_virtio_scsi_remove_target", "vfu", remove_target)
        .params(&[NAME, SCSI_TARGET_NUM])
        .bad_params(INVALID.0, INVALID.1)
        .help("Remove the specified SCSI target")
        .example(r#"{"name": "scsi.0", "scsi_target_num": 0}"#),
    Method::later("vfu_virtio_delete_endpoint", "vfu", delete)
        .params(&[NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Delete the endpoint")
        .example(r#"{"name": "vfu.0"}"#),
    Method::later("vfu_get_endpoints", "vfu", get_endpoints)
        .params(&[Param::optional("name", Kind::String, "all endpoints", "name of an endpoint")
            .cli(Cli::Option("-n/--name"))])
        .bad_params(INVALID.0, INVALID.1)
        .help("List endpoints with their state, client, queues, doorbell mode and counters")
        .example(r#"{"name": "vfu.0"}"#)
        .prints(Prints::Json),
];

/// The calls that make the endpoints.
pub(super) fn config(target: &Target) -> Vec<Entry> {
    target.endpoints.config(&target.registry)
}

fn failed(error: &EndpointError) -> RpcError {
    tracing::warn!(%error, "endpoint method failed");
    RpcError::params_errno(error.errno())
}

fn set_base_path(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Base {
        path: PathBuf,
    }
    let Base { path } = params.parse()?;
    if path.as_os_str().is_empty() {
        // As SPDK does: nothing changes.
        return Ok(true.into());
    }
    target.endpoints.set_base(path);
    Ok(true.into())
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Doorbell {
    #[default]
    Auto,
    Mapped,
    Trapped,
}

/// The params that endpoints of all types take.
#[derive(Deserialize)]
struct Common {
    name: String,
    cpumask: Option<String>,
    qsize: Option<u16>,
    packed_ring: Option<bool>,
    #[serde(default)]
    doorbell: Doorbell,
    in_order: Option<bool>,
    coalesce_count: Option<u16>,
    coalesce_us: Option<u32>,
    disable_msix: Option<bool>,
}

/// How long an interrupt is held back when only a count is given.
const COALESCE_US_DEFAULT: u32 = 100;
/// A guest's drivers give a request up after seconds; nothing sensible is near that.
const COALESCE_MAX: Duration = Duration::from_millis(10);

/// How interrupts are held back, if either limit is given.
fn moderation(count: Option<u16>, us: Option<u32>) -> Option<Moderation> {
    let (count, us) = (count.filter(|&count| count > 1), us.filter(|&us| us > 0));
    (count.is_some() || us.is_some()).then(|| Moderation {
        completions: count.map_or(u32::MAX, u32::from),
        time: Duration::from_micros(us.map_or(u64::from(COALESCE_US_DEFAULT), u64::from)).min(COALESCE_MAX),
    })
}

impl Common {
    fn transport(&self) -> TransportOptions {
        TransportOptions {
            doorbell: match self.doorbell {
                Doorbell::Auto => DoorbellMode::Auto,
                Doorbell::Mapped => DoorbellMode::Mapped,
                Doorbell::Trapped => DoorbellMode::Trapped,
            },
            packed_ring: self.packed_ring.unwrap_or(false),
            in_order: self.in_order.unwrap_or(false),
            moderation: moderation(self.coalesce_count, self.coalesce_us),
            disable_msix: self.disable_msix.unwrap_or(false),
        }
    }
}

/// Makes an endpoint of a type whose own params are a `T`; answers when its reactor has it.
fn create<T: DeserializeOwned>(
    params: Params,
    start: impl FnOnce(Common, T, Entry) -> Result<oneshot::Receiver<()>, EndpointError>,
) -> Pending {
    #[derive(Deserialize)]
    struct Create<T> {
        #[serde(flatten)]
        common: Common,
        #[serde(flatten)]
        own: T,
    }
    let call = Entry::new(params.method(), params.members().clone().into());
    let started = params
        .parse()
        .and_then(|Create { common, own }| start(common, own, call).map_err(|error| failed(&error)));
    Box::pin(async move {
        // An error is a reactor that stops, and the target with it.
        let _ = started?.await;
        Ok(true.into())
    })
}

fn create_blk(target: Arc<Target>, params: Params) -> Pending {
    #[derive(Deserialize)]
    struct Blk {
        bdev_name: String,
        num_queues: Option<u16>,
    }
    create(params, |common, Blk { bdev_name, num_queues }, call| {
        let transport = common.transport();
        let Common { name, cpumask, qsize, .. } = common;
        let options = BlkOptions { name, bdev_name, cpumask, num_queues, qsize, transport };
        target.endpoints.create_blk(&target.registry, options, call)
    })
}

fn create_scsi(target: Arc<Target>, params: Params) -> Pending {
    #[derive(Deserialize)]
    struct OfScsi {
        num_io_queues: Option<u16>,
    }
    create(params, |common, OfScsi { num_io_queues }, call| {
        let transport = common.transport();
        let Common { name, cpumask, qsize, .. } = common;
        let options = ScsiOptions { name, cpumask, num_io_queues, qsize, transport };
        target.endpoints.create_scsi(options, call)
    })
}

fn add_target(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Add {
        name: String,
        scsi_target_num: u8,
        bdev_name: String,
    }
    let call = Entry::new(params.method(), params.members().clone().into());
    let Add { name, scsi_target_num, bdev_name } = params.parse()?;
    let added = target.endpoints.add_target(&target.registry, &name, scsi_target_num, &bdev_name, call);
    added.map_err(|error| failed(&error))?;
    Ok(true.into())
}

fn remove_target(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Remove {
        name: String,
        scsi_target_num: u8,
    }
    let Remove { name, scsi_target_num } = params.parse()?;
    target.endpoints.remove_target(&name, scsi_target_num).map_err(|error| failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    #[derive(Deserialize)]
    struct Delete {
        name: String,
    }
    Box::pin(async move {
        let Delete { name } = params.parse()?;
        let gone = target.endpoints.delete(&name).map_err(|error| failed(&error))?;
        gone.await.map_err(|_dropped| RpcError::params_errno(Errno::IO.raw_os_error()))?;
        Ok(true.into())
    })
}

fn get_endpoints(target: Arc<Target>, params: Params) -> Pending {
    #[derive(Deserialize)]
    struct Get {
        name: Option<String>,
    }
    Box::pin(async move {
        let Get { name } = params.parse()?;
        let endpoints = target.endpoints.describe(name.as_deref()).await;
        if name.is_some() && endpoints.is_empty() {
            return Err(RpcError::params_errno(Errno::NOENT.raw_os_error()));
        }
        Ok(endpoints.iter().map(describe).collect())
    })
}

fn describe(endpoint: &Description) -> Value {
    let mut described = json!({
        "name": endpoint.name,
        "bdev_name": endpoint.bdev_name,
        "socket": endpoint.socket,
        "cpumask": endpoint.cpumask.to_string(),
    });
    let Some(state) = &endpoint.state else {
        described["state"] = "gone".into();
        return described;
    };
    let queue = |queue: &QueueDescription| {
        json!({
            "index": queue.index,
            "size": queue.size,
            "state": queue.state,
            "vector": queue.vector,
            "requests": queue.requests,
            "interrupts": queue.interrupts,
            "kicks": queue.kicks,
        })
    };
    let connected = state.state == ::vfu::endpoint::State::Connected;
    described["state"] = if connected { "connected" } else { "listening" }.into();
    described["client_pid"] = state.client_pid.into();
    described["device"] = state.device.kind.into();
    described["doorbell"] = state.device.doorbell.into();
    described["running"] = state.device.is_running.into();
    described["num_queues"] = state.device.queues.len().into();
    // Those the driver never set up say nothing.
    let used = state.device.queues.iter().filter(|queue| queue.state != "disabled");
    described["queues"] = used.map(queue).collect();
    described
}
