//! bdev: the methods that concern every type.

use std::{sync::Arc, time::Duration};

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, RpcError, States};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::Value;
use tokio::time::{Instant, timeout_at};

use super::DECODE_FAILED;
use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("bdev_set_options", "bdev_core", set_options)
        .states(States::Startup)
        .params(&[
            Param::optional(
                "bdev_io_pool_size",
                Kind::U32,
                "65535",
                "requests of the pool; there is none here",
            )
            .cli(Cli::Option("-p/--bdev-io-pool-size")),
            Param::optional(
                "bdev_io_cache_size",
                Kind::U32,
                "256",
                "requests cached per thread; none are here",
            )
            .cli(Cli::Option("-c/--bdev-io-cache-size")),
            Param::optional(
                "bdev_auto_examine",
                Kind::Bool,
                "true",
                "make stacked bdevs as their bases appear",
            )
            .cli(Cli::Switch("--auto-examine")),
            Param::optional("iobuf_small_cache_size", Kind::U32, "128", "small buffers cached per thread")
                .cli(Cli::Option("--iobuf-small-cache-size")),
            Param::optional("iobuf_large_cache_size", Kind::U32, "16", "large buffers cached per thread")
                .cli(Cli::Option("--iobuf-large-cache-size")),
        ])
        .help("Set options of bdev subsystem"),
    Method::sync("bdev_examine", "bdev_core", examine)
        .params(&[
            Param::required("name", Kind::String, "name or alias of the bdev").cli(Cli::Option("-b/--name"))
        ])
        .bad_params(-32602, "spdk_json_decode_object failed")
        .help("Examine a bdev if it exists, or when it is created")
        .example(r#"{"name": "Malloc0"}"#),
    Method::sync("bdev_wait_for_examine", "bdev_core", wait_for_examine)
        .bad_params(-32602, "bdev_wait_for_examine requires no parameters")
        .help("Report when all bdevs have been examined"),
    Method::later("bdev_get_bdevs", "bdev_core", get_bdevs)
        .params(&[
            Param::optional("name", Kind::String, "all bdevs", "Name, alias or UUID of the bdev")
                .cli(Cli::Option("-b/--name")),
            Param::optional(
                "timeout",
                Kind::U64,
                "0",
                "Time in ms to wait for the bdev with this name to appear",
            )
            .cli(Cli::Option("-t/--timeout-ms")),
        ])
        .bad_params(DECODE_FAILED.0, DECODE_FAILED.1)
        .help("Display current bdev list or required bdev")
        .prints(Prints::Json),
];

/// The params of methods that take a name and nothing else.
#[derive(Deserialize)]
pub(super) struct Named {
    pub(super) name: String,
}

/// The answer for an errno of a bdev.
pub(super) fn failed(error: &bdev::Error) -> RpcError {
    tracing::warn!(%error, "bdev method failed");
    match error {
        // SPDK has no such refusal, and so no text for it.
        bdev::Error::Unsupported(text) => RpcError::new(-error.errno(), text.clone()),
        _ => RpcError::errno(error.errno()),
    }
}

/// As [`failed`], for methods that say themselves what is wrong with their params.
pub(super) fn failed_in_words(error: &bdev::Error) -> RpcError {
    match error {
        bdev::Error::Invalid(text) | bdev::Error::Unsupported(text) => {
            RpcError::new(-error.errno(), text.clone())
        }
        _ => failed(error),
    }
}

/// Deletes a bdev by its type's own function; `true` when everyone has closed it and it is gone.
pub(super) fn delete_when_gone(
    params: Params,
    delete: impl FnOnce(&str, Box<dyn FnOnce() + Send>) -> Result<(), bdev::Error> + Send + 'static,
) -> Pending {
    let (gone, wait) = tokio::sync::oneshot::channel();
    Box::pin(async move {
        #[derive(Deserialize)]
        struct Delete {
            name: String,
        }
        let Delete { name } = params.parse()?;
        // The client may have gone meanwhile; the bdev goes all the same.
        let on_gone = Box::new(move || {
            let _ = gone.send(());
        });
        delete(&name, on_gone).map_err(|error| failed(&error))?;
        // A configuration that had no bdev is gone at once, and its callback with it.
        let _ = wait.await;
        Ok(true.into())
    })
}

/// Deletes a bdev of a type; `true` when everyone has closed it and it is gone.
pub(super) fn delete_of_type(target: &Arc<Target>, type_name: &'static str, params: Params) -> Pending {
    let (gone, wait) = tokio::sync::oneshot::channel();
    let started = params.parse().and_then(|Named { name }| {
        // The client may have gone meanwhile; the bdev goes all the same.
        let on_gone = move || {
            let _ = gone.send(());
        };
        target.registry.delete_of_type(type_name, &name, on_gone).map_err(|error| failed(&error))
    });
    Box::pin(async move {
        started?;
        wait.await.map_err(|_dropped| RpcError::errno(Errno::IO.raw_os_error()))?;
        Ok(true.into())
    })
}

fn set_options(target: &Arc<Target>, params: Params) -> Outcome {
    let bad = params.bad_params();
    target.registry.set_options(params.parse()?).map_err(|error| {
        tracing::warn!(%error, "bdev_set_options refused");
        bad
    })?;
    Ok(true.into())
}

fn examine(target: &Arc<Target>, params: Params) -> Outcome {
    let Named { name } = params.parse()?;
    target.registry.examine(&name).map_err(|error| failed(&error))?;
    Ok(true.into())
}

fn wait_for_examine(_target: &Arc<Target>, _params: Params) -> Outcome {
    // A bdev is examined before the call that makes it returns.
    Ok(true.into())
}

fn get_bdevs(target: Arc<Target>, params: Params) -> Pending {
    #[derive(Deserialize)]
    struct Get {
        name: Option<String>,
        timeout: Option<u64>,
    }
    Box::pin(async move {
        let Get { name, timeout } = params.parse()?;
        let Some(name) = name else {
            let all: Result<Vec<Value>, _> =
                target.registry.list().iter().map(|bdev| serde_json::to_value(bdev.describe())).collect();
            return all.map(Value::from).map_err(|error| RpcError::internal(error.to_string()));
        };
        let deadline = Instant::now() + Duration::from_millis(timeout.unwrap_or(0));
        loop {
            // Listening before looking: a bdev that appears in between is not missed.
            let appeared = target.bdev_appeared.notified();
            match target.registry.get(&name) {
                Ok(bdev) => {
                    let one = serde_json::to_value(bdev.describe());
                    return one
                        .map(|one| vec![one].into())
                        .map_err(|error| RpcError::internal(error.to_string()));
                }
                Err(error) if timeout.unwrap_or(0) == 0 => return Err(failed(&error)),
                Err(_) if timeout_at(deadline, appeared).await.is_ok() => {}
                Err(_) => return Err(RpcError::errno(Errno::TIMEDOUT.raw_os_error())),
            }
        }
    })
}
