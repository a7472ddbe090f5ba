//! Listeners of a subsystem: each is a socket `<traddr>/cntrl`.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Pending, RpcError};
use serde::Deserialize;
use vfu::nvme::link::AnaState;

use super::{ADDRESS, ANA_STATES, Address, INVALID, TGT_NAME, invalid, is_default_target};
use crate::{
    nvmf::{NvmfError, Way},
    target::Target,
};

const LISTEN_ADDRESS: Param =
    Param::required("listen_address", Kind::Object(ADDRESS), "Where to listen").cli(Cli::Members);
const NQN: Param = super::NQN.cli(Cli::Nqn);
/// On these command lines, `-t` is the transport.
const PARENT: Param = TGT_NAME.cli(Cli::Option("-p/--tgt-name"));

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("nvmf_subsystem_add_listener", "nvmf", add)
        .relaxed_params(&[
            NQN,
            PARENT,
            LISTEN_ADDRESS,
            Param::optional("secure_channel", Kind::Bool, "false", "TLS is required; refused if set")
                .cli(Cli::Flag("-k/--secure-channel")),
            Param::optional("ana_state", Kind::Enum(ANA_STATES), "optimized", "ANA state of all groups")
                .cli(Cli::Option("-n/--ana-state")),
            Param::optional("sock_impl", Kind::String, "none", "Socket implementation; not used")
                .cli(Cli::Option("-S/--sock-impl")),
            Param::optional("numa_id", Kind::I32, "-1", "NUMA node of namespaces; not used")
                .cli(Cli::Option("--numa-id")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Add a listener to an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "listen_address": {"trtype": "VFIOUSER", "traddr": "/path/to/new"}}"#),
    Method::later("nvmf_subsystem_remove_listener", "nvmf", remove)
        .params(&[NQN, PARENT, LISTEN_ADDRESS])
        .bad_params(INVALID.0, INVALID.1)
        .help("Remove a listener from an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "listen_address": {"trtype": "VFIOUSER", "traddr": "/path/to/old"}}"#),
    Method::sync("nvmf_subsystem_listener_set_ana_state", "nvmf", set_ana_state)
        .params(&[
            super::NQN,
            PARENT,
            LISTEN_ADDRESS,
            Param::required("ana_state", Kind::Enum(ANA_STATES), "ANA state")
                .cli(Cli::Option("-n/--ana-state")),
            Param::optional("anagrpid", Kind::U32, "0: all", "ANA group ID")
                .cli(Cli::Option("-g/--anagrpid")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Set ANA state of a listener for an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "listen_address": {"trtype": "VFIOUSER", "traddr": "/path/to/old"}, "ana_state": "non_optimized"}"#),
];

#[derive(Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Ana {
    Optimized,
    NonOptimized,
    Inaccessible,
}

impl From<Ana> for AnaState {
    fn from(ana: Ana) -> Self {
        match ana {
            Ana::Optimized => Self::Optimized,
            Ana::NonOptimized => Self::NonOptimized,
            Ana::Inaccessible => Self::Inaccessible,
        }
    }
}

#[derive(Deserialize)]
struct Listen {
    nqn: String,
    tgt_name: Option<String>,
    listen_address: Address,
    secure_channel: Option<bool>,
    ana_state: Option<Ana>,
    anagrpid: Option<u32>,
}

fn add(target: &Arc<Target>, params: Params) -> Outcome {
    let bad = params.bad_params();
    let listen: Listen = params.parse()?;
    is_default_target(listen.tgt_name.as_ref())?;
    let address = &listen.listen_address;
    if listen.secure_channel == Some(true) || address.traddr.is_empty() {
        return Err(bad);
    }
    if !address.is_vfio_user() {
        tracing::warn!(trtype = address.trtype, "there is no such transport here");
        return Err(bad);
    }
    tracing::debug!(adrfam = ?address.adrfam, trsvcid = ?address.trsvcid, "a socket has neither");
    let ana = listen.ana_state.map(AnaState::from);
    let bind = |path: &std::path::Path| target.endpoints.bind_at(path);
    target.nvmf.listen(&listen.nqn, &address.traddr, ana, bind).map_err(|error| match error {
        NvmfError::NoSubsystem(_)
        | NvmfError::NoTransport(_)
        | NvmfError::Listener(_)
        | NvmfError::Bind(_) => invalid(&error),
        _ => RpcError::internal("Internal error"),
    })?;
    Ok(true.into())
}

fn remove(target: Arc<Target>, params: Params) -> Pending {
    Box::pin(async move {
        let bad = params.bad_params();
        let listen: Listen = params.parse()?;
        is_default_target(listen.tgt_name.as_ref())?;
        if !listen.listen_address.is_vfio_user() {
            return Err(bad);
        }
        let gone = target
            .nvmf
            .unlisten(&listen.nqn, &listen.listen_address.traddr)
            .map_err(|error| invalid(&error))?;
        // An error is an endpoint that is gone without a word.
        let _ = gone.await;
        Ok(true.into())
    })
}

/// How clients call a state.
pub(super) fn ana_name(state: AnaState) -> &'static str {
    match state {
        AnaState::Optimized => "optimized",
        AnaState::NonOptimized => "non_optimized",
        AnaState::Inaccessible => "inaccessible",
    }
}

/// The groups of a listener that are not as they are at first, and their states; group 0 for all of them alike.
pub(super) fn ana_groups(way: &Way, most: u32) -> Vec<(u32, &'static str)> {
    let first = way.ana.get(1);
    if most > 0 && (1..=most).all(|group| way.ana.get(group) == first) {
        return Vec::from_iter((first != AnaState::default()).then(|| (0, ana_name(first))));
    }
    let changed = (1..=most).filter(|group| way.ana.get(*group) != AnaState::default());
    changed.map(|group| (group, ana_name(way.ana.get(group)))).collect()
}

fn set_ana_state(target: &Arc<Target>, params: Params) -> Outcome {
    let bad = params.bad_params();
    let listen: Listen = params.parse()?;
    is_default_target(listen.tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    let entry = state.subsystem(&listen.nqn).map_err(|error| invalid(&error))?;
    if !entry.core.options().ana_reporting {
        return Err(bad);
    }
    let most = entry.core.options().max_namespaces;
    let address = &listen.listen_address;
    let way = entry.ways.iter().find(|way| address.is_vfio_user() && way.traddr == address.traddr);
    let (Some(way), Some(ana)) = (way, listen.ana_state) else { return Err(bad) };
    let groups = match listen.anagrpid.unwrap_or(0) {
        0 => 1..=most,
        group if group <= most => group..=group,
        _ => return Err(bad),
    };
    for group in groups {
        way.ana.set(group, ana.into());
    }
    entry.core.ana_changed();
    Ok(true.into())
}
