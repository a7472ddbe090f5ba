//! What there is: subsystems, listeners, controllers, queue pairs, statistics.

use std::sync::{Arc, atomic::Ordering};

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints};
use serde::Deserialize;
use serde_json::{Value, json};
use vfu::nvme::link::Link;

use super::{INVALID, NQN, TGT_NAME, is_default_target, listener::ana_name, namespace, not_found, shown};
use crate::{
    nvmf::{DISCOVERY_NQN, Entry, State, Way},
    target::Target,
};

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("nvmf_get_subsystems", "nvmf", get_subsystems)
        .params(&[
            Param::optional("nqn", Kind::String, "all", "Subsystem NQN").cli(Cli::Positional),
            TGT_NAME,
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Display nvmf subsystems or required subsystem")
        .prints(Prints::Json),
    Method::sync("nvmf_subsystem_get_listeners", "nvmf", get_listeners)
        .params(&[NQN, TGT_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Display listeners of an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0"}"#)
        .prints(Prints::Json),
    Method::sync("nvmf_subsystem_get_controllers", "nvmf", get_controllers)
        .params(&[NQN, TGT_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Display controllers of an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0"}"#)
        .prints(Prints::Json),
    Method::sync("nvmf_subsystem_get_qpairs", "nvmf", get_qpairs)
        .params(&[NQN, TGT_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Display queue pairs of an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0"}"#)
        .prints(Prints::Json),
    Method::sync("nvmf_get_stats", "nvmf", get_stats)
        .params(&[TGT_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Display current statistics for NVMf subsystem")
        .prints(Prints::Json),
];

#[derive(Deserialize)]
struct Named {
    nqn: String,
    tgt_name: Option<String>,
}

fn subsystem(entry: &Entry) -> Value {
    let options = entry.core.options();
    let addresses: Vec<Value> = entry.ways.iter().map(|way| shown(&way.traddr)).collect();
    let hosts: Vec<Value> = entry.hosts.iter().map(|host| json!({ "nqn": host })).collect();
    let namespaces: Vec<Value> =
        entry.core.namespaces().iter().map(|space| namespace::shown(space, options.ana_reporting)).collect();
    let mut shown = json!({
        "nqn": options.nqn,
        "subtype": "NVMe",
        "listen_addresses": addresses,
        "allow_any_host": entry.allow_any_host,
        "hosts": hosts,
        "serial_number": options.serial,
        "model_number": options.model,
    });
    if let Some(label) = &entry.admin_label {
        shown["admin_label"] = json!(label);
    }
    shown["max_namespaces"] = options.max_namespaces.into();
    shown["passthrough"] = entry.passthrough.into();
    shown["min_cntlid"] = options.min_cntlid.into();
    shown["max_cntlid"] = options.max_cntlid.into();
    shown["dmrsl"] = options.dmrsl.into();
    shown["wzsl"] = options.wzsl.into();
    shown["namespaces"] = namespaces.into();
    shown
}

fn discovery() -> Value {
    json!({
        "nqn": DISCOVERY_NQN,
        "subtype": "Discovery",
        "listen_addresses": [],
        "allow_any_host": true,
        "hosts": [],
    })
}

fn get_subsystems(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        nqn: Option<String>,
        tgt_name: Option<String>,
    }
    let Get { nqn, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    match nqn {
        Some(nqn) if nqn == DISCOVERY_NQN => Ok(json!([discovery()])),
        Some(nqn) => {
            let entry = state.subsystem(&nqn).map_err(|error| {
                tracing::warn!(%error, "nvmf method failed");
                rpc::RpcError::errno(rustix::io::Errno::NODEV.raw_os_error())
            })?;
            Ok(json!([subsystem(entry)]))
        }
        None => {
            let all = [discovery()].into_iter().chain(state.subsystems.iter().map(subsystem));
            Ok(all.collect::<Vec<_>>().into())
        }
    }
}

fn get_listeners(target: &Arc<Target>, params: Params) -> Outcome {
    let Named { nqn, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    let entry = state.subsystem(&nqn).map_err(|error| not_found(&error))?;
    let options = entry.core.options();
    let listener = |way: &Way| {
        let mut listener = json!({ "address": shown(&way.traddr) });
        if options.ana_reporting {
            let states = (1..=options.max_namespaces)
                .map(|group| json!({ "ana_group": group, "ana_state": ana_name(way.ana.get(group)) }));
            listener["ana_states"] = states.collect::<Vec<_>>().into();
        }
        listener
    };
    Ok(entry.ways.iter().map(listener).collect::<Vec<_>>().into())
}

/// The enabled controllers of a subsystem.
fn enabled(entry: &Entry) -> Vec<Arc<Link>> {
    entry.core.links().into_iter().filter(|link| link.is_enabled()).collect()
}

fn host_nqn(link: &Link) -> String {
    // Clients of vfio-user name themselves by Host Identifier only, if at all (Base, 4.5).
    format!("nqn.2014-08.org.nvmexpress:uuid:{}", namespace::uuid(&link.host_id()))
}

fn get_controllers(target: &Arc<Target>, params: Params) -> Outcome {
    let Named { nqn, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    let entry = state.subsystem(&nqn).map_err(|error| not_found(&error))?;
    let controller = |link: &Arc<Link>| {
        json!({
            "cntlid": link.cntlid,
            "cntrltype": "io",
            "hostnqn": host_nqn(link),
            "hostid": namespace::uuid(&link.host_id()),
            "num_io_qpairs": link.queues().len(),
        })
    };
    Ok(enabled(entry).iter().map(controller).collect::<Vec<_>>().into())
}

fn get_qpairs(target: &Arc<Target>, params: Params) -> Outcome {
    let Named { nqn, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let mut state = target.nvmf.lock();
    let entry = state.subsystem(&nqn).map_err(|error| not_found(&error))?;
    let mut pairs = Vec::new();
    for link in enabled(entry) {
        let way = entry.ways.iter().find(|way| Arc::ptr_eq(&way.ana, &link.ana));
        let address = shown(way.map_or("", |way| way.traddr.as_str()));
        let qids = [0].into_iter().chain(link.queues().into_iter().map(|queue| queue.qid));
        pairs.extend(qids.map(|qid| {
            json!({
                "cntlid": link.cntlid,
                "qid": qid,
                "state": "enabled",
                "thread": way.map_or("", |way| way.thread()),
                "hostnqn": host_nqn(&link),
                "listen_address": address,
                "peer_address": address,
            })
        }));
    }
    Ok(pairs.into())
}

/// A reactor's part, as a poll group of SPDK's.
fn poll_group(state: &State, index: usize, core: u32) -> Value {
    let (mut admin, mut io, mut pending, mut completed, mut interrupts) = (0_u64, 0_u64, 0, 0, 0);
    for link in state.subsystems.iter().flat_map(enabled) {
        let queues = link.queues();
        let here = queues.iter().filter(|queue| queue.core == core).count() as u64;
        let all = queues.len() as u64;
        io += here;
        // A controller is counted where its first queue is; work of all its queues is shared out evenly.
        let home = queues.first().map_or(index == 0, |queue| queue.core == core);
        admin += u64::from(home);
        let share = |sum: u64| (sum * here).checked_div(all).unwrap_or(0);
        pending += share(link.sum(|counters| &counters.in_flight));
        completed += share(link.sum(|counters| &counters.commands));
        interrupts += share(link.sum(|counters| &counters.interrupts));
        if home {
            completed += link.admin.commands.load(Ordering::Relaxed);
            interrupts += link.admin.interrupts.load(Ordering::Relaxed);
        }
    }
    let transports: Vec<Value> =
        state.transport.iter().map(|_| json!({ "trtype": "VFIOUSER", "intr": interrupts })).collect();
    json!({
        "name": format!("nvmf_tgt_poll_group_{index:03}"),
        "admin_qpairs": admin,
        "io_qpairs": io,
        "current_admin_qpairs": admin,
        "current_io_qpairs": io,
        "current_unassociated_qpairs": 0,
        "pending_bdev_io": pending,
        "completed_nvme_io": completed,
        "transports": transports,
    })
}

fn get_stats(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        tgt_name: Option<String>,
    }
    let Get { tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let state = target.nvmf.lock();
    let reactors = target.nvmf.reactors();
    let groups: Vec<Value> = reactors
        .iter()
        .enumerate()
        .map(|(index, reactor)| poll_group(&state, index, reactor.core()))
        .collect();
    let tick_rate = reactors.first().map_or(0, |reactor| reactor.clock().ticks_per_second());
    Ok(json!({ "tick_rate": tick_rate, "poll_groups": groups }))
}
