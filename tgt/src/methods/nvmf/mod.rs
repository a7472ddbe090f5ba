//! nvmf: NVMe subsystems over the VFIOUSER transport, method for method as SPDK's clients speak them.

mod listener;
mod namespace;
mod query;
mod subsystem;
mod transport;

use rpc::{Cli, Kind, Method, Param, RpcError};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{config::Entry, nvmf::NvmfError, target::Target};

/// What SPDK answers to bad params here.
const INVALID: (i32, &str) = (-32602, "Invalid parameters");

const NQN: Param = Param::required("nqn", Kind::String, "Subsystem NQN").cli(Cli::Positional);
const TGT_NAME: Param =
    Param::optional("tgt_name", Kind::String, "the default target", "The name of the parent NVMe-oF target")
        .cli(Cli::Option("-t/--tgt-name"));
const ANA_STATES: &[&str] = &["optimized", "non_optimized", "inaccessible"];

pub(super) const TRANSPORT: &[Method<Target>] = transport::METHODS;
pub(super) const SUBSYSTEM: &[Method<Target>] = subsystem::METHODS;
pub(super) const NAMESPACE: &[Method<Target>] = namespace::METHODS;
pub(super) const LISTENER: &[Method<Target>] = listener::METHODS;
pub(super) const QUERY: &[Method<Target>] = query::METHODS;

/// A listener's address, as clients say it.
#[derive(Clone, Debug, Deserialize)]
struct Address {
    trtype: String,
    adrfam: Option<String>,
    traddr: String,
    trsvcid: Option<String>,
}

const ADDRESS: &[Param] = &[
    Param::required("trtype", Kind::String, "transport type").cli(Cli::Option("-t/--trtype")),
    Param::optional("adrfam", Kind::String, "none", "address family").cli(Cli::Option("-f/--adrfam")),
    Param::required("traddr", Kind::String, "transport address").cli(Cli::Option("-a/--traddr")),
    Param::optional("trsvcid", Kind::String, "none", "transport service id").cli(Cli::Option("-s/--trsvcid")),
];

impl Address {
    fn is_vfio_user(&self) -> bool {
        self.trtype.eq_ignore_ascii_case("VFIOUSER")
    }
}

/// How an address is shown.
fn shown(traddr: &str) -> Value {
    json!({ "trtype": "VFIOUSER", "adrfam": "unknown", "traddr": traddr, "trsvcid": "" })
}

fn is_default_target(name: Option<&String>) -> Result<(), RpcError> {
    match name {
        None => Ok(()),
        Some(name) if name == "nvmf_tgt" => Ok(()),
        Some(_) => Err(RpcError::internal("Unable to find a target.")),
    }
}

/// The answer where SPDK tells bad params whatever the cause.
fn invalid(error: &dyn std::error::Error) -> RpcError {
    tracing::warn!(%error, "nvmf method failed");
    RpcError::new(INVALID.0, INVALID.1)
}

fn not_found(error: &NvmfError) -> RpcError {
    tracing::warn!(%error, "nvmf method failed");
    match error {
        NvmfError::NoSubsystem(_) => RpcError::invalid_params(error.to_string()),
        _ => RpcError::new(INVALID.0, INVALID.1),
    }
}

/// The `nvmf` part of a configuration: the calls that make what there is.
pub(super) fn config(target: &Target) -> Vec<Entry> {
    let mut calls = Vec::new();
    let state = target.nvmf.lock();
    if let Some(max) = state.max_subsystems {
        calls.push(Entry::new("nvmf_set_max_subsystems", json!({ "max_subsystems": max })));
    }
    calls.extend(state.config.iter().map(|config| Entry::new("nvmf_set_config", config.clone())));
    calls.extend(
        state
            .transport
            .iter()
            .map(|transport| Entry::new("nvmf_create_transport", transport::config(transport))),
    );
    for entry in &state.subsystems {
        calls.push(Entry::new("nvmf_create_subsystem", subsystem::config(entry)));
        let nqn = &entry.core.options().nqn;
        for host in &entry.hosts {
            calls.push(Entry::new("nvmf_subsystem_add_host", json!({ "nqn": nqn, "host": host })));
        }
        for namespace in entry.core.namespaces() {
            let params = json!({ "nqn": nqn, "namespace": namespace::config(&namespace) });
            calls.push(Entry::new("nvmf_subsystem_add_ns", params));
        }
        for way in &entry.ways {
            let address = json!({ "trtype": "VFIOUSER", "traddr": way.traddr });
            let params = json!({ "nqn": nqn, "listen_address": address, "secure_channel": false });
            calls.push(Entry::new("nvmf_subsystem_add_listener", params));
            let most =
                if entry.core.options().ana_reporting { entry.core.options().max_namespaces } else { 0 };
            for (group, state) in listener::ana_groups(way, most) {
                let params =
                    json!({ "nqn": nqn, "listen_address": address, "ana_state": state, "anagrpid": group });
                calls.push(Entry::new("nvmf_subsystem_listener_set_ana_state", params));
            }
        }
    }
    calls
}
