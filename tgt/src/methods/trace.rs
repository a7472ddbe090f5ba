//! trace: which events are kept in shared memory. `ringside trace` prints them.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError, States};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use trace::Group;

use crate::{
    target::Target,
    tracepoints::{TraceError, Tracepoints},
};

const GROUP: &[Param] =
    &[Param::required("name", Kind::String, "trace group name, or all").cli(Cli::Positional)];
const POINTS: &[Param] = &[
    Param::required("name", Kind::String, "trace group name").cli(Cli::Positional),
    Param::required("tpoint_mask", Kind::U64, "tracepoint mask within the group").cli(Cli::Mask),
];

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("trace_enable_tpoint_group", "trace", enable_group)
        .states(States::Both)
        .params(GROUP)
        .help("Enable trace on a specific tpoint group")
        .example(r#"{"name": "bdev"}"#),
    Method::sync("trace_disable_tpoint_group", "trace", disable_group)
        .states(States::Both)
        .params(GROUP)
        .help("Disable trace on a specific tpoint group")
        .example(r#"{"name": "all"}"#),
    Method::sync("trace_set_tpoint_mask", "trace", set_mask)
        .states(States::Both)
        .params(POINTS)
        .help("Enable tracepoint mask on a specific tpoint group")
        .example(r#"{"name": "bdev", "tpoint_mask": 3}"#),
    Method::sync("trace_clear_tpoint_mask", "trace", clear_mask)
        .states(States::Both)
        .params(POINTS)
        .help("Disable tracepoint mask on a specific tpoint group")
        .example(r#"{"name": "bdev", "tpoint_mask": 2}"#),
    Method::sync("trace_get_tpoint_group_mask", "trace", get_mask)
        .states(States::Both)
        .bad_params(-32602, "trace_get_tpoint_group_mask requires no parameters")
        .help("Get trace point group mask")
        .prints(Prints::Json),
    Method::sync("trace_get_info", "trace", get_info)
        .states(States::Both)
        .bad_params(-32602, "trace_get_info requires no parameters")
        .help("Get name of shared memory file and list of the available trace point groups")
        .prints(Prints::Json),
    Method::sync("trace_clear", "trace", clear)
        .bad_params(-32602, "trace_clear requires no parameters")
        .help("Drop the events that the trace holds"),
];

/// What a change of points came to.
fn outcome(changed: Result<(), TraceError>, bad: RpcError) -> Outcome {
    match changed {
        Ok(()) => Ok(true.into()),
        Err(error) => {
            tracing::warn!(%error, "trace method failed");
            Err(match error {
                TraceError::None | TraceError::Select(_) => bad,
                TraceError::Buffer(trace::BufferError::InUse(_)) => {
                    RpcError::errno(Errno::BUSY.raw_os_error())
                }
                TraceError::Buffer(_) => RpcError::errno(Errno::NOMEM.raw_os_error()),
            })
        }
    }
}

/// Changes one group, or all.
fn of_group(
    tracepoints: &Tracepoints,
    params: Params,
    change: impl Fn(&'static Group) -> Result<(), TraceError>,
) -> Outcome {
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let bad = params.bad_params();
    let Named { name } = params.parse()?;
    let chosen = match tracepoints.group(&name) {
        Some(group) => vec![group],
        None if name == "all" => tracepoints.groups().to_vec(),
        None => return Err(bad),
    };
    outcome(chosen.into_iter().try_for_each(change), bad)
}

fn enable_group(target: &Arc<Target>, params: Params) -> Outcome {
    of_group(&target.tracepoints, params, |group| target.tracepoints.enable(group, group.all()))
}

fn disable_group(target: &Arc<Target>, params: Params) -> Outcome {
    of_group(&target.tracepoints, params, |group| {
        group.disable(group.all());
        Ok(())
    })
}

/// Changes points of one group.
fn of_points(
    tracepoints: &Tracepoints,
    params: Params,
    change: impl FnOnce(&'static Group, u64) -> Result<(), TraceError>,
) -> Outcome {
    #[derive(Deserialize)]
    struct Points {
        name: String,
        tpoint_mask: u64,
    }
    let bad = params.bad_params();
    let Points { name, tpoint_mask } = params.parse()?;
    let Some(group) = tracepoints.group(&name) else { return Err(bad) };
    outcome(change(group, tpoint_mask), bad)
}

fn set_mask(target: &Arc<Target>, params: Params) -> Outcome {
    of_points(&target.tracepoints, params, |group, mask| target.tracepoints.enable(group, mask))
}

fn clear_mask(target: &Arc<Target>, params: Params) -> Outcome {
    of_points(&target.tracepoints, params, |group, mask| {
        group.disable(mask);
        Ok(())
    })
}

fn hex(mask: u64) -> Value {
    format!("{mask:#x}").into()
}

/// What both listings begin with: the groups that have points on.
fn enabled_groups(target: &Target) -> Value {
    let on = target.tracepoints.groups().iter().filter(|group| group.mask() != 0);
    hex(on.fold(0, |mask, group| mask | 1 << group.id()))
}

fn get_mask(target: &Arc<Target>, _: Params) -> Outcome {
    let mut listed = Map::new();
    listed.insert("tpoint_group_mask".into(), enabled_groups(target));
    for group in target.tracepoints.groups() {
        let point = |(id, point): (usize, &trace::Point)| json!({ "name": point.name, "tpoint_id": id, "enabled": group.mask() >> id & 1 == 1 });
        let described = json!({
            "enabled": group.mask() != 0,
            "mask": hex(1 << group.id()),
            "tpoint_mask": hex(group.mask()),
            "tpoints": group.points().iter().enumerate().map(point).collect::<Vec<_>>(),
        });
        listed.insert(group.name().into(), described);
    }
    Ok(listed.into())
}

fn get_info(target: &Arc<Target>, _: Params) -> Outcome {
    let mut listed = Map::new();
    listed.insert("tpoint_shm_path".into(), target.tracepoints.path().display().to_string().into());
    listed.insert("tpoint_group_mask".into(), enabled_groups(target));
    for group in target.tracepoints.groups() {
        let described = json!({ "mask": hex(1 << group.id()), "tpoint_mask": hex(group.mask()) });
        listed.insert(group.name().into(), described);
    }
    Ok(listed.into())
}

fn clear(target: &Arc<Target>, _: Params) -> Outcome {
    target.tracepoints.clear();
    Ok(true.into())
}
