//! bdev_iostat, bdev_histogram, bdev_qos: what every bdev has, whatever its type.

use std::{sync::Arc, time::Duration};

use ::bdev::{HistogramSpec, IoStatDescription, QosParams, Registered, ResetMode};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{DECODE_FAILED, bdev};
use crate::target::Target;

/// Most names, and most borders, that are asked for at once, as SPDK has it.
const NAMES_MAX: usize = 1024;
const BORDERS_MAX: usize = 256;

const RESET_MODES: Kind = Kind::Enum(&["all", "maxmin", "error", "none"]);
const NAME: Param = Param::required("name", Kind::String, "bdev name").cli(Cli::Positional);

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_get_iostat", "bdev_iostat", get_iostat)
        .params(&[
            Param::optional("names", Kind::Array(&Kind::String, NAMES_MAX), "all bdevs", "which bdevs")
                .cli(Cli::List("--names")),
            Param::optional("per_channel", Kind::Bool, "false", "by channel, of one bdev")
                .cli(Cli::Flag("-c/--per-channel")),
            Param::optional("reset_mode", RESET_MODES, "none", "what to clear afterwards")
                .cli(Cli::Option("--reset-mode")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Display current I/O statistics of all the blockdevs or specified blockdev")
        .prints(Prints::Json),
    Method::sync("bdev_reset_iostat", "bdev_iostat", reset_iostat)
        .params(&[
            Param::optional("name", Kind::String, "all bdevs", "which bdev").cli(Cli::Option("-b/--name")),
            Param::optional("mode", RESET_MODES, "all", "what to clear").cli(Cli::Option("-m/--mode")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Reset I/O statistics of all the blockdevs or specified blockdev"),
    Method::sync("bdev_set_qd_sampling_period", "bdev_iostat", set_qd_sampling_period)
        .params(&[
            NAME,
            Param::required("period", Kind::U64, "in microseconds; 0 ends the sampling").cli(Cli::Positional),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Enable or disable tracking of a bdev's queue depth")
        .example(r#"{"name": "Malloc0", "period": 1000}"#),
    Method::sync("bdev_enable_histogram", "bdev_histogram", enable_histogram)
        .params(&[
            Param::required("enable", Kind::Bool, "start or stop").cli(Cli::Switch("--histogram")),
            Param::optional("opc", Kind::String, "all I/O types", "only this I/O type")
                .cli(Cli::Option("-o/--opc")),
            Param::optional("granularity", Kind::U8, "7", "parts of a power of two, as a power of two")
                .cli(Cli::Option("--granularity")),
            Param::optional("min_nsec", Kind::U64, "1000", "lowest latency").cli(Cli::Option("--min-nsec")),
            Param::optional("max_nsec", Kind::U64, "120000000000", "highest latency")
                .cli(Cli::Option("--max-nsec")),
            NAME,
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Enable or disable histogram for specified bdev")
        .example(r#"{"name": "Malloc0", "enable": true}"#),
    Method::sync("bdev_get_histogram", "bdev_histogram", get_histogram)
        .params(&[NAME])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Get histogram for specified bdev")
        .example(r#"{"name": "Malloc0"}"#)
        .prints(Prints::Json),
    Method::sync("bdev_get_histogram_borders", "bdev_histogram", get_histogram_borders)
        .params(&[
            NAME,
            Param::required(
                "borders",
                Kind::Array(&Kind::U64, BORDERS_MAX),
                "borders in microseconds, ascending",
            )
            .cli(Cli::List("--borders")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Count requests below borders")
        .example(r#"{"name": "Malloc0", "borders": [10, 100, 1000]}"#)
        .prints(Prints::Json),
    Method::sync("bdev_set_qos_limit", "bdev_qos", set_qos_limit)
        .params(&[
            NAME,
            Param::optional("rw_ios_per_sec", Kind::U64, "unchanged", "requests per second; 0 is no limit")
                .cli(Cli::Option("--rw-ios-per-sec")),
            Param::optional("rw_mbytes_per_sec", Kind::U64, "unchanged", "MiB per second; 0 is no limit")
                .cli(Cli::Option("--rw-mbytes-per-sec")),
            Param::optional("r_mbytes_per_sec", Kind::U64, "unchanged", "MiB read per second; 0 is no limit")
                .cli(Cli::Option("--r-mbytes-per-sec")),
            Param::optional(
                "w_mbytes_per_sec",
                Kind::U64,
                "unchanged",
                "MiB written per second; 0 is no limit",
            )
            .cli(Cli::Option("--w-mbytes-per-sec")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Set QoS rate limit on a blockdev")
        .example(r#"{"name": "Malloc0", "rw_ios_per_sec": 20000}"#),
    Method::sync("bdev_set_timeout", "bdev_qos", set_timeout)
        .params(&[
            NAME,
            Param::required(
                "timeout_us",
                Kind::U64,
                "time a request may take, in microseconds; 0 is any time",
            )
            .cli(Cli::Positional),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Set after what time requests that have not ended are counted and logged")
        .example(r#"{"name": "Malloc0", "timeout_us": 5000000}"#),
];

fn find(target: &Target, name: &str) -> Result<Arc<Registered>, RpcError> {
    target.registry.get(name).map_err(|error| bdev::failed(&error))
}

/// The sampling of a bdev's queue depth, where there is one.
#[derive(Serialize)]
struct Sampling {
    queue_depth_polling_period: u64,
    queue_depth: u64,
    io_time: u64,
    weighted_io_time: u64,
}

fn sampling(bdev: &Registered) -> Option<Sampling> {
    let sampled = bdev.sampling();
    let (queue_depth, io_time, weighted_io_time) = sampled.read();
    let queue_depth_polling_period = sampled.period_us();
    (queue_depth_polling_period > 0).then_some(Sampling {
        queue_depth_polling_period,
        queue_depth,
        io_time,
        weighted_io_time,
    })
}

#[derive(Serialize)]
struct OfBdev {
    name: String,
    #[serde(flatten)]
    stats: IoStatDescription,
    #[serde(flatten)]
    sampling: Option<Sampling>,
}

#[derive(Serialize)]
struct OfChannel {
    thread_id: u64,
    #[serde(flatten)]
    stats: IoStatDescription,
}

fn get_iostat(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        names: Option<Vec<String>>,
        per_channel: Option<bool>,
        reset_mode: Option<ResetMode>,
    }
    let Get { names, per_channel, reset_mode } = params.parse()?;
    let bdevs: Vec<_> = match &names {
        Some(names) => names.iter().map(|name| find(target, name)).collect::<Result<_, _>>()?,
        None => target.registry.list(),
    };
    let (tick_rate, ticks) = target.clock();
    let as_json =
        |value: Result<Value, serde_json::Error>| value.map_err(|e| RpcError::internal(e.to_string()));
    let answer = if per_channel == Some(true) {
        let [one] = bdevs.as_slice() else {
            return Err(RpcError::errno(rustix::io::Errno::INVAL.raw_os_error()));
        };
        let channels: Vec<_> = one
            .channel_stats()
            .into_iter()
            .map(|(thread_id, stats)| OfChannel { thread_id, stats: stats.describe() })
            .collect();
        let channels = as_json(serde_json::to_value(channels))?;
        json!({ "tick_rate": tick_rate, "ticks": ticks, "name": one.name(), "channels": channels })
    } else {
        let all: Vec<_> = bdevs
            .iter()
            .map(|bdev| OfBdev {
                name: bdev.name().to_owned(),
                stats: bdev.stats().describe(),
                sampling: sampling(bdev),
            })
            .collect();
        json!({ "tick_rate": tick_rate, "ticks": ticks, "bdevs": as_json(serde_json::to_value(all))? })
    };
    bdevs.iter().for_each(|bdev| bdev.reset_stats(reset_mode.unwrap_or(ResetMode::None)));
    Ok(answer)
}

fn reset_iostat(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Reset {
        name: Option<String>,
        mode: Option<ResetMode>,
    }
    let Reset { name, mode } = params.parse()?;
    let bdevs = match name {
        Some(name) => vec![find(target, &name)?],
        None => target.registry.list(),
    };
    bdevs.iter().for_each(|bdev| bdev.reset_stats(mode.unwrap_or(ResetMode::All)));
    Ok(true.into())
}

fn set_qd_sampling_period(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        name: String,
        period: u64,
    }
    let Set { name, period } = params.parse()?;
    let bdev = find(target, &name)?;
    let was_sampled = bdev.sampling().period_us() > 0;
    bdev.sampling().set_period(period);
    if period == 0 || was_sampled {
        return Ok(true.into());
    }
    let bdev = Arc::downgrade(&bdev);
    tokio::spawn(async move {
        loop {
            let Some(period) = bdev.upgrade().map(|bdev| bdev.sampling().period_us()).filter(|us| *us > 0)
            else {
                return;
            };
            tokio::time::sleep(Duration::from_micros(period)).await;
            let Some(bdev) = bdev.upgrade().filter(|bdev| !bdev.is_removed()) else { return };
            bdev.sampling().sample(bdev.in_flight());
        }
    });
    Ok(true.into())
}

fn enable_histogram(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Enable {
        name: String,
        enable: bool,
        opc: Option<String>,
        granularity: Option<u8>,
        min_nsec: Option<u64>,
        max_nsec: Option<u64>,
    }
    let Enable { name, enable, opc, granularity, min_nsec, max_nsec } = params.parse()?;
    let bdev = find(target, &name)?;
    let spec = HistogramSpec::new(opc.as_deref(), granularity, min_nsec, max_nsec);
    let spec = spec.map_err(|error| bdev::failed(&error))?;
    bdev.enable_histogram(enable.then_some(spec));
    Ok(true.into())
}

fn get_histogram(target: &Arc<Target>, params: Params) -> Outcome {
    let bdev::Named { name } = params.parse()?;
    let reading = find(target, &name)?.histogram();
    Ok(json!({
        "histogram": reading.base64(),
        "granularity": reading.granularity,
        "min_range": reading.min_range,
        "max_range": reading.max_range,
        "tsc_rate": target.clock().0,
    }))
}

fn get_histogram_borders(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        name: String,
        borders: Vec<u64>,
    }
    let Get { name, borders } = params.parse()?;
    Ok(json!({ "borders_count": find(target, &name)?.histogram().below(&borders) }))
}

fn set_timeout(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        name: String,
        timeout_us: u64,
    }
    let Set { name, timeout_us } = params.parse()?;
    find(target, &name)?.set_timeout(timeout_us);
    Ok(true.into())
}

fn set_qos_limit(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        name: String,
        #[serde(flatten)]
        limits: QosParams,
    }
    let Set { name, limits } = params.parse()?;
    find(target, &name)?.set_qos(limits).map_err(|error| bdev::failed_in_words(&error))?;
    Ok(true.into())
}
