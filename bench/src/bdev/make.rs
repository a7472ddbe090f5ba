//! Makes bdevs from the names and params of their RPC methods.

use std::sync::Arc;

use ::bdev::{
    Registry,
    types::{aio, delay, error, malloc, null, passthru, raid, split, uring},
};
use anyhow::bail;
use serde_json::Value;

/// Makes one, and returns the name of what there is now.
pub(super) fn make(registry: &Arc<Registry>, method: &str, params: &str) -> anyhow::Result<String> {
    let params: Value = serde_json::from_str(params)?;
    let named = |key: &str| params[key].as_str().unwrap_or_default().to_owned();
    Ok(match method {
        "bdev_malloc_create" => malloc::create(registry, serde_json::from_value(params)?)?.name().to_owned(),
        "bdev_null_create" => null::create(registry, serde_json::from_value(params)?)?.name().to_owned(),
        "bdev_uring_create" => uring::create(registry, serde_json::from_value(params)?)?.name().to_owned(),
        "bdev_aio_create" => aio::create(registry, serde_json::from_value(params)?)?.name().to_owned(),
        "bdev_split_create" => {
            let parts = split::create(registry, serde_json::from_value(params)?)?;
            parts.first().cloned().unwrap_or_default()
        }
        "bdev_passthru_create" => {
            let name = named("name");
            passthru::create(registry, serde_json::from_value(params)?)?;
            name
        }
        "bdev_delay_create" => {
            let name = named("name");
            delay::create(registry, serde_json::from_value(params)?)?;
            name
        }
        "bdev_raid_create" => {
            let name = named("name");
            raid::create(registry, serde_json::from_value(params)?)?;
            name
        }
        "bdev_error_create" => {
            let name = format!("EE_{}", named("base_name"));
            error::create(registry, serde_json::from_value(params)?)?;
            name
        }
        other => bail!("{other} makes no bdev"),
    })
}
