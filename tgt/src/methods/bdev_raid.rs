//! bdev_raid: arrays of bdevs.

use std::sync::{Arc, PoisonError};

use ::bdev::types::raid;
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, States};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::bdev;
use crate::{config::Entry, target::Target};

/// What SPDK answers to bad params in most of these methods.
const DECODE_FAILED: (i32, &str) = (-32700, "spdk_json_decode_object failed");

/// The options of background work; there is none yet, so they are remembered only.
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
pub(crate) struct RaidOptions {
    process_window_size_kb: u32,
    process_max_bandwidth_mb_sec: u32,
}

impl Default for RaidOptions {
    fn default() -> Self {
        Self { process_window_size_kb: 1024, process_max_bandwidth_mb_sec: 0 }
    }
}

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_raid_set_options", "bdev_raid", set_options)
        .states(States::Both)
        .params(&[
            Param::optional("process_window_size_kb", Kind::U32, "1024", "window of background work in KiB")
                .cli(Cli::Option("-w/--process-window-size-kb")),
            Param::optional(
                "process_max_bandwidth_mb_sec",
                Kind::U32,
                "0",
                "bandwidth of background work in MiB/s",
            )
            .cli(Cli::Option("-b/--process-max-bandwidth-mb-sec")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Set options for bdev raid"),
    Method::sync("bdev_raid_get_bdevs", "bdev_raid", get)
        .params(&[Param::required(
            "category",
            Kind::Enum(&["all", "online", "configuring", "offline"]),
            "which arrays",
        )
        .cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("List arrays")
        .example(r#"{"category": "all"}"#)
        .prints(Prints::Json),
    Method::sync("bdev_raid_create", "bdev_raid", create)
        .params(&[
            Param::required("name", Kind::String, "raid bdev name").cli(Cli::Option("-n/--name")),
            Param::optional("strip_size_kb", Kind::U32, "0", "strip size in KiB; a power of two")
                .cli(Cli::Option("-z/--strip-size-kb")),
            Param::required(
                "raid_level",
                Kind::Enum(&["raid0", "0", "raid1", "1", "raid5f", "5f", "concat"]),
                "layout; raid0 and concat are there",
            )
            .cli(Cli::Option("-r/--raid-level")),
            Param::required("base_bdevs", Kind::Array(&Kind::String, 255), "names of the bases")
                .cli(Cli::Words("-b/--base-bdevs")),
            Param::optional("uuid", Kind::Uuid, "random", "UUID of the array").cli(Cli::Option("--uuid")),
            Param::optional(
                "superblock",
                Kind::Bool,
                "false",
                "keep the configuration on the bases; not there yet",
            )
            .cli(Cli::Flag("-s/--superblock")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Create new raid bdev")
        .example(r#"{"name": "Raid0", "strip_size_kb": 64, "raid_level": "raid0", "base_bdevs": ["Malloc1", "Null2"]}"#),
    Method::later("bdev_raid_delete", "bdev_raid", delete)
        .params(&[
            Param::required("name", Kind::String, "raid bdev name").cli(Cli::Positional),
            Param::optional("clear_sb", Kind::Bool, "false", "clear superblocks; there are none")
                .cli(Cli::Flag("-c/--clear-sb")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Delete existing raid bdev")
        .example(r#"{"name": "Raid1"}"#),
    Method::sync("bdev_raid_add_base_bdev", "bdev_raid", add_base)
        .params(&[
            Param::required("raid_bdev", Kind::String, "raid bdev name").cli(Cli::Positional),
            Param::required("base_bdev", Kind::String, "name of the new base").cli(Cli::Positional),
        ])
        .bad_params(super::DECODE_FAILED.0, super::DECODE_FAILED.1)
        .help("Add base bdev to existing raid bdev")
        .example(r#"{"raid_bdev": "Raid3", "base_bdev": "Malloc7"}"#),
    Method::sync("bdev_raid_remove_base_bdev", "bdev_raid", remove_base)
        .params(&[Param::required("name", Kind::String, "name of the base").cli(Cli::Positional)])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Remove base bdev from existing raid bdev")
        .example(r#"{"name": "Malloc6"}"#),
];

fn set_options(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        process_window_size_kb: Option<u32>,
        process_max_bandwidth_mb_sec: Option<u32>,
    }
    let new: Set = params.parse()?;
    let mut options = target.raid_options.lock().unwrap_or_else(PoisonError::into_inner);
    options.process_window_size_kb = new.process_window_size_kb.unwrap_or(options.process_window_size_kb);
    options.process_max_bandwidth_mb_sec =
        new.process_max_bandwidth_mb_sec.unwrap_or(options.process_max_bandwidth_mb_sec);
    Ok(true.into())
}

/// The call that sets the options.
pub(super) fn config(target: &Target) -> Entry {
    let options = *target.raid_options.lock().unwrap_or_else(PoisonError::into_inner);
    Entry::new("bdev_raid_set_options", json!(options))
}

fn get(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        category: String,
    }
    let Get { category } = params.parse()?;
    let named = |(name, described): (String, Value)| {
        let mut all = json!({ "name": name });
        if let (Some(to), Value::Object(from)) = (all.as_object_mut(), described) {
            to.extend(from);
        }
        all
    };
    Ok(raid::list(&target.registry, &category).into_iter().map(named).collect())
}

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    raid::create(&target.registry, params.parse()?).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    bdev::delete_when_gone(params, move |name, on_gone| raid::delete(&target.registry, name, on_gone))
}

fn add_base(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Add {
        raid_bdev: String,
        base_bdev: String,
    }
    let Add { raid_bdev, base_bdev } = params.parse()?;
    raid::add_base(&target.registry, &raid_bdev, &base_bdev).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}

fn remove_base(target: &Arc<Target>, params: Params) -> Outcome {
    let bdev::Named { name } = params.parse()?;
    raid::remove_base(&target.registry, &name).map_err(|error| bdev::failed(&error))?;
    Ok(true.into())
}
