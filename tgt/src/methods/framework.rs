//! app_framework: initialisation, subsystems and their configuration.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, Prints, RpcError, States};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{config::Entry, subsystems, target::Target};

pub(super) const METHODS: &[Method<Target>] = &[
    Method::later("framework_start_init", "app_framework", start_init)
        .states(States::Startup)
        .bad_params(-32602, "framework_start_init requires no parameters")
        .help("Start initialization of subsystems"),
    Method::later("framework_wait_init", "app_framework", wait_init)
        .states(States::Both)
        .ignores_params()
        .help("Block until subsystems have been initialized"),
    Method::sync("framework_get_subsystems", "app_framework", get_subsystems)
        .bad_params(-32602, "'framework_get_subsystems' requires no arguments")
        .help("Print subsystems in initialization order, each with those it depends on")
        .prints(Prints::Json),
    Method::sync("framework_get_config", "app_framework", get_config)
        .params(&[
            Param::required("name", Kind::String, "name of the subsystem").cli(Cli::Positional),
            Param::optional("with_batches", Kind::Bool, "false", "keep batches (there are none)")
                .cli(Cli::SwitchOff("--with-batches")),
        ])
        .bad_params(-32602, "Invalid arguments")
        .help("Print subsystem configuration")
        .example(r#"{"name": "bdev"}"#)
        .prints(Prints::Json),
];

/// Clients wait while the rest of a configuration file is loaded.
fn start_init(target: Arc<Target>, _params: Params) -> Pending {
    Box::pin(async move {
        target.initialise().await.map_err(|_told_already| RpcError::internal("Internal error"))?;
        Ok(true.into())
    })
}

fn wait_init(target: Arc<Target>, _params: Params) -> Pending {
    Box::pin(async move {
        target.stage.runtime().await;
        target.stage.open().await;
        Ok(true.into())
    })
}

fn get_subsystems(_target: &Arc<Target>, _params: Params) -> Outcome {
    let describe = |subsystem: &subsystems::Subsystem| json!({ "subsystem": subsystem.name, "depends_on": subsystem.depends_on });
    Ok(subsystems::TABLE.iter().map(describe).collect())
}

fn get_config(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        name: String,
    }
    let Get { name } = params.parse()?;
    let subsystem = subsystems::TABLE.iter().find(|subsystem| subsystem.name == name);
    let Some(subsystem) = subsystem else {
        return Err(RpcError::invalid_params(format!("Subsystem '{name}' not found")));
    };
    let config: Value = (subsystem.config)(target).iter().map(Entry::to_value).collect();
    Ok(config)
}
