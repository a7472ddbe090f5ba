//! thread: what SPDK's clients call threads are groups of pollers here, one per endpoint.
//!
//! A poller that sleeps is listed as paused: nobody polls it. SPDK's own are only paused when told to.

use std::{collections::BTreeMap, sync::Arc};

use reactor::{Group, PollerState, PollerStats};
use rpc::{Method, Outcome, Params, Pending, Prints};
use serde_json::{Map, Value, json};

use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("thread_get_stats", "thread", get_stats)
        .bad_params(-32602, "'thread_get_stats' requires no arguments")
        .help("Display current statistics of all the threads")
        .prints(Prints::Json),
    Method::sync("thread_get_pollers", "thread", get_pollers)
        .bad_params(-32602, "'thread_get_pollers' requires no arguments")
        .help("Display current pollers of all the threads")
        .prints(Prints::Json),
    Method::later("thread_get_io_channels", "thread", get_io_channels)
        .bad_params(-32602, "'thread_get_io_channels' requires no arguments")
        .help("Display current IO channels of all the threads")
        .prints(Prints::Json),
];

/// The threads, by id, and the pollers of each.
fn threads(target: &Target) -> Vec<(Group, Vec<PollerStats>)> {
    let mut pollers: BTreeMap<u64, Vec<PollerStats>> = BTreeMap::new();
    for poller in target.reactors.iter().flat_map(reactor::Handle::pollers) {
        pollers.entry(poller.group.id()).or_default().push(poller);
    }
    let mut groups = Group::all();
    groups.sort_by_key(Group::id);
    let with_pollers = |group: Group| {
        let pollers = pollers.remove(&group.id()).unwrap_or_default();
        (group, pollers)
    };
    groups.into_iter().map(with_pollers).collect()
}

fn in_state(pollers: &[PollerStats], state: PollerState) -> impl Iterator<Item = &PollerStats> {
    pollers.iter().filter(move |poller| poller.state == state)
}

fn get_stats(target: &Arc<Target>, _: Params) -> Outcome {
    let describe = |(group, pollers): (Group, Vec<PollerStats>)| {
        let stats = group.stats();
        json!({
            "name": group.name(),
            "id": group.id(),
            "cpumask": group.cpumask().to_string(),
            "busy": stats.busy_ticks,
            "idle": stats.idle_ticks,
            "active_pollers_count": in_state(&pollers, PollerState::Active).count(),
            "timed_pollers_count": in_state(&pollers, PollerState::Timed).count(),
            "paused_pollers_count": in_state(&pollers, PollerState::Parked).count(),
        })
    };
    let threads: Vec<Value> = threads(target).into_iter().map(describe).collect();
    Ok(json!({ "tick_rate": target.tick_rate(), "threads": threads }))
}

fn describe_poller(poller: &PollerStats) -> Value {
    let mut described = Map::new();
    let mut set = |key: &str, value: Value| drop(described.insert(key.into(), value));
    set("name", poller.name.as_ref().into());
    set("id", poller.number.into());
    set("state", if poller.state == PollerState::Parked { "paused" } else { "waiting" }.into());
    set("run_count", poller.run_count.into());
    set("busy_count", poller.busy_count.into());
    if let Some(period) = poller.period_ticks {
        set("period_ticks", period.into());
    }
    Value::Object(described)
}

fn get_pollers(target: &Arc<Target>, _: Params) -> Outcome {
    let describe = |(group, pollers): (Group, Vec<PollerStats>)| {
        let list = |state| in_state(&pollers, state).map(describe_poller).collect::<Vec<_>>();
        json!({
            "name": group.name(),
            "id": group.id(),
            "active_pollers": list(PollerState::Active),
            "timed_pollers": list(PollerState::Timed),
            "paused_pollers": list(PollerState::Parked),
        })
    };
    let threads: Vec<Value> = threads(target).into_iter().map(describe).collect();
    Ok(json!({ "tick_rate": target.tick_rate(), "threads": threads }))
}

/// One channel per running queue, by the name of the bdev it leads to.
fn get_io_channels(target: Arc<Target>, _: Params) -> Pending {
    Box::pin(async move {
        let endpoints = target.endpoints.describe(None).await;
        let describe = |(group, _): (Group, Vec<PollerStats>)| {
            let of_group = endpoints.iter().filter(|endpoint| endpoint.name == group.name());
            let channels: Vec<Value> = of_group
                .filter(|endpoint| endpoint.running_queues() > 0)
                .map(|endpoint| json!({ "name": endpoint.bdev_name, "ref": endpoint.running_queues() }))
                .collect();
            json!({ "name": group.name(), "io_channels": channels })
        };
        let threads: Vec<Value> = threads(&target).into_iter().map(describe).collect();
        Ok(json!({ "tick_rate": target.tick_rate(), "threads": threads }))
    })
}
