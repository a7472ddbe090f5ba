//! Subsystems and the hosts they let in.
//!
//! Clients of vfio-user have no NQN: who may open the socket is let in. The list of hosts is kept for clients that
//! expect it.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, RpcError};
use serde::Deserialize;
use serde_json::{Value, json};
use vfu::nvme::subsystem::SubsystemOptions;

use super::{INVALID, NQN, TGT_NAME, invalid, is_default_target};
use crate::{
    nvmf::{Admission, Entry},
    target::Target,
};

const HOST: Param = Param::required("host", Kind::String, "Host NQN").cli(Cli::Positional);

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("nvmf_create_subsystem", "nvmf", create)
        .params(&[
            NQN,
            TGT_NAME,
            Param::optional("serial_number", Kind::String, "20 zeroes", "Serial number")
                .cli(Cli::Option("-s/--serial-number")),
            Param::optional("model_number", Kind::String, "Ringside bdev Controller", "Model number")
                .cli(Cli::Option("-d/--model-number")),
            Param::optional("admin_label", Kind::String, "none", "Label in the discovery log")
                .cli(Cli::Option("--admin-label")),
            Param::optional("max_namespaces", Kind::U32, "32", "Maximum number of namespaces allowed")
                .cli(Cli::Option("-m/--max-namespaces")),
            Param::optional("allow_any_host", Kind::Bool, "false", "Allow any host to connect")
                .cli(Cli::Flag("-a/--allow-any-host")),
            Param::optional("ana_reporting", Kind::Bool, "false", "Enable ANA reporting feature")
                .cli(Cli::Flag("-r/--ana-reporting")),
            Param::optional("min_cntlid", Kind::U16, "1", "Minimum controller ID")
                .cli(Cli::Option("-i/--min-cntlid")),
            Param::optional("max_cntlid", Kind::U16, "65519", "Maximum controller ID")
                .cli(Cli::Option("-I/--max-cntlid")),
            Param::optional("dmrsl", Kind::U32, "2097152", "Most blocks of a Dataset Management range")
                .cli(Cli::Option("--dmrsl")),
            Param::optional("wzsl", Kind::U8, "12", "Write Zeroes size limit, as a power of two of pages")
                .cli(Cli::Option("--wzsl")),
            Param::optional(
                "passthrough",
                Kind::Bool,
                "false",
                "Forward commands unmodified; refused if set",
            )
            .cli(Cli::Flag("-p/--passthrough")),
            Param::optional("enable_nssr", Kind::Bool, "false", "Enable NVM subsystem reset")
                .cli(Cli::Flag("-n/--enable-nssr")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Create an NVMe-oF subsystem")
        .example(
            r#"{"nqn": "nqn.2026-11.org.example:disk1", "serial_number": "RS0001", "allow_any_host": true}"#,
        ),
    Method::later("nvmf_delete_subsystem", "nvmf", delete)
        .params(&[NQN, TGT_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Delete a NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0"}"#),
    Method::sync("nvmf_subsystem_add_host", "nvmf", add_host)
        .relaxed_params(&[
            NQN,
            HOST,
            TGT_NAME,
            Param::optional("psk", Kind::String, "none", "Name of a key; not used").cli(Cli::Option("--psk")),
            Param::optional("dhchap_key", Kind::String, "none", "Name of a key; not used")
                .cli(Cli::Option("--dhchap-key")),
            Param::optional("dhchap_ctrlr_key", Kind::String, "none", "Name of a key; not used")
                .cli(Cli::Option("--dhchap-ctrlr-key")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Add a host to an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "host": "nqn.2026-11.org.example:host1"}"#),
    Method::sync("nvmf_subsystem_remove_host", "nvmf", remove_host)
        .params(&[
            NQN,
            HOST,
            TGT_NAME,
            Param::optional(
                "timeout_ms",
                Kind::U64,
                "as the controller says",
                "Time to wait for its end; not used",
            )
            .cli(Cli::Option("-T/--timeout-ms")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Remove a host from an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "host": "nqn.2026-11.org.example:host0"}"#),
    Method::sync("nvmf_subsystem_allow_any_host", "nvmf", allow_any_host)
        .params(&[
            NQN,
            Param::required("allow_any_host", Kind::Bool, "Allow any host, or only those added")
                .cli(Cli::Switch("--allow-any-host")),
            TGT_NAME,
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Allow any host to connect to the subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "allow_any_host": true}"#),
];

#[derive(Deserialize)]
struct Create {
    nqn: String,
    tgt_name: Option<String>,
    serial_number: Option<String>,
    model_number: Option<String>,
    admin_label: Option<String>,
    max_namespaces: Option<u32>,
    allow_any_host: Option<bool>,
    ana_reporting: Option<bool>,
    min_cntlid: Option<u16>,
    max_cntlid: Option<u16>,
    dmrsl: Option<u32>,
    wzsl: Option<u8>,
    passthrough: Option<bool>,
    enable_nssr: Option<bool>,
}

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let create: Create = params.parse()?;
    is_default_target(create.tgt_name.as_ref())?;
    let usual = SubsystemOptions::new(create.nqn.clone());
    let refused = || RpcError::internal(format!("Unable to create subsystem {}", create.nqn));
    let passthrough = create.passthrough.unwrap_or(false);
    // No bdev is an NVMe drive to pass commands to.
    if passthrough {
        return Err(refused());
    }
    let options = SubsystemOptions {
        serial: create.serial_number.unwrap_or(usual.serial.clone()),
        model: create.model_number.unwrap_or(usual.model.clone()),
        // Zero means as many as usual, as SPDK has it.
        max_namespaces: create
            .max_namespaces
            .filter(|&n| n != 0)
            .unwrap_or(usual.max_namespaces)
            .min(vfu::nvme::subsystem::MAX_NAMESPACES),
        ana_reporting: create.ana_reporting.unwrap_or(false),
        min_cntlid: create.min_cntlid.unwrap_or(usual.min_cntlid),
        max_cntlid: create.max_cntlid.unwrap_or(usual.max_cntlid),
        dmrsl: create.dmrsl.unwrap_or(usual.dmrsl),
        wzsl: create.wzsl.unwrap_or(usual.wzsl),
        enable_nssr: create.enable_nssr.unwrap_or(false),
        ..usual
    };
    let admission = Admission {
        allow_any_host: create.allow_any_host.unwrap_or(false),
        admin_label: create.admin_label.clone(),
        passthrough,
    };
    target.nvmf.create(options, admission).map_err(|error| {
        tracing::warn!(%error, "nvmf method failed");
        refused()
    })?;
    Ok(true.into())
}

pub(super) fn config(entry: &Entry) -> Value {
    let options = entry.core.options();
    let mut config = json!({
        "nqn": options.nqn,
        "allow_any_host": entry.allow_any_host,
        "serial_number": options.serial,
        "model_number": options.model,
        "max_namespaces": options.max_namespaces,
        "min_cntlid": options.min_cntlid,
        "max_cntlid": options.max_cntlid,
        "ana_reporting": options.ana_reporting,
        "dmrsl": options.dmrsl,
        "wzsl": options.wzsl,
        "enable_nssr": options.enable_nssr,
    });
    if let Some(label) = &entry.admin_label {
        config["admin_label"] = json!(label);
    }
    config
}

#[derive(Deserialize)]
struct Named {
    nqn: String,
    tgt_name: Option<String>,
}

fn delete(target: Arc<Target>, params: Params) -> Pending {
    Box::pin(async move {
        let Named { nqn, tgt_name } = params.parse()?;
        is_default_target(tgt_name.as_ref())?;
        for gone in target.nvmf.delete(&nqn).map_err(|error| invalid(&error))? {
            // An error is an endpoint that is gone without a word.
            let _ = gone.await;
        }
        Ok(true.into())
    })
}

#[derive(Deserialize)]
struct Host {
    nqn: String,
    host: String,
    tgt_name: Option<String>,
}

fn add_host(target: &Arc<Target>, params: Params) -> Outcome {
    let Host { nqn, host, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    let entry = state.subsystem(&nqn).map_err(|error| invalid(&error))?;
    if !host.starts_with("nqn.") || host.len() > 223 || !entry.hosts.insert(host) {
        return Err(RpcError::internal("Internal error"));
    }
    Ok(true.into())
}

fn remove_host(target: &Arc<Target>, params: Params) -> Outcome {
    let Host { nqn, host, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    let entry = state.subsystem(&nqn).map_err(|error| invalid(&error))?;
    if entry.hosts.remove(&host) { Ok(true.into()) } else { Err(RpcError::internal("Internal error")) }
}

fn allow_any_host(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Allow {
        nqn: String,
        allow_any_host: bool,
        tgt_name: Option<String>,
    }
    let Allow { nqn, allow_any_host, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    target.nvmf.lock().subsystem(&nqn).map_err(|error| invalid(&error))?.allow_any_host = allow_any_host;
    Ok(true.into())
}
