//! log: levels, flags and timestamps.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError, States};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::DECODE_FAILED;
use crate::{log, target::Target};

const LEVEL: &[Param] =
    &[Param::required("level", Kind::Enum(log::LEVELS), "log level").cli(Cli::Positional)];
const FLAG: &[Param] =
    &[Param::required("flag", Kind::String, "log flag (wildcards), or all").cli(Cli::Positional)];

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("log_set_print_level", "log", set_print_level)
        .states(States::Both)
        .params(LEVEL)
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Set what is printed to standard error")
        .example(r#"{"level": "NOTICE"}"#),
    Method::sync("log_get_print_level", "log", |_, _| Ok(log::print_level().into()))
        .states(States::Both)
        .bad_params(-32602, "log_get_print_level requires no parameters")
        .help("Get what is printed to standard error")
        .prints(Prints::Json),
    Method::sync("log_set_level", "log", set_level)
        .states(States::Both)
        .params(LEVEL)
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Set what is sent to syslog")
        .example(r#"{"level": "WARNING"}"#),
    Method::sync("log_get_level", "log", |_, _| Ok(log::syslog_level().into()))
        .states(States::Both)
        .bad_params(-32602, "log_get_level requires no parameters")
        .help("Get what is sent to syslog")
        .prints(Prints::Json),
    Method::sync("log_set_flag", "log", |_, params| switch_flag(params, true))
        .states(States::Both)
        .params(FLAG)
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Let a part of the target log INFO and DEBUG")
        .example(r#"{"flag": "bdev"}"#),
    Method::sync("log_clear_flag", "log", |_, params| switch_flag(params, false))
        .states(States::Both)
        .params(FLAG)
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Stop a part of the target from logging INFO and DEBUG")
        .example(r#"{"flag": "all"}"#),
    Method::sync("log_get_flags", "log", get_flags)
        .states(States::Both)
        .bad_params(-32602, "log_get_flags requires no parameters")
        .help("Get all log flags")
        .prints(Prints::Json),
    Method::sync("log_enable_timestamps", "log", enable_timestamps)
        .params(&[Param::required("enabled", Kind::Bool, "whether lines start with the time")
            .cli(Cli::Switch("--timestamps"))])
        .bad_params(-32602, DECODE_FAILED.1)
        .help("Start lines with the time, or not")
        .example(r#"{"enabled": true}"#),
];

fn level(params: Params) -> Result<u8, RpcError> {
    #[derive(Deserialize)]
    struct Set {
        level: String,
    }
    let bad = params.bad_params();
    let Set { level } = params.parse()?;
    log::level(&level).ok_or(bad)
}

fn set_print_level(_: &Arc<Target>, params: Params) -> Outcome {
    log::set_print_level(level(params)?);
    Ok(true.into())
}

fn set_level(_: &Arc<Target>, params: Params) -> Outcome {
    log::set_syslog_level(level(params)?);
    Ok(true.into())
}

fn switch_flag(params: Params, on: bool) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        flag: String,
    }
    let Set { flag } = params.parse()?;
    if !log::set_flag(&flag, on) {
        return Err(RpcError::invalid_params("Invalid parameters"));
    }
    Ok(true.into())
}

fn get_flags(_: &Arc<Target>, _: Params) -> Outcome {
    let flags: Map<String, Value> =
        log::flags().into_iter().map(|(name, on)| (name.to_owned(), on.into())).collect();
    Ok(flags.into())
}

fn enable_timestamps(_: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Enable {
        enabled: bool,
    }
    let Enable { enabled } = params.parse()?;
    log::set_timestamps(enabled);
    Ok(true.into())
}
