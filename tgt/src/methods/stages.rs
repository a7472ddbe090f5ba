//! vfu: where the time of requests goes, as the queues' owners have timed it ([`::vfu::stages`]).

use std::sync::Arc;

use ::vfu::stages::{EVERY, Stage, StageReading};
use rpc::{Cli, Kind, Method, Param, Params, Pending, Prints, RpcError};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::target::Target;

pub(super) const METHODS: &[Method<Target>] = &[Method::later("vfu_get_stages", "vfu", get_stages)
    .params(&[Param::optional("name", Kind::String, "all", "name of an endpoint, or NQN of a subsystem")
        .cli(Cli::Option("-n/--name"))])
    .bad_params(-32602, "Invalid argument")
    .help("Tell where the reactors' time per request goes, by stage, from a sample of the passes")
    .example(r#"{"name": "vfu.0"}"#)
    .prints(Prints::Json)];

fn get_stages(target: Arc<Target>, params: Params) -> Pending {
    #[derive(Deserialize)]
    struct Get {
        name: Option<String>,
    }
    Box::pin(async move {
        let Get { name } = params.parse()?;
        let name = name.as_deref();
        let tick_rate = target.reactors.first().map_or(0, |reactor| reactor.clock().ticks_per_second());
        let mut found = Vec::new();
        for endpoint in target.endpoints.describe(name).await {
            for queue in endpoint.state.iter().flat_map(|state| &state.device.queues) {
                found.push((json!({ "name": endpoint.name, "queue": queue.index }), queue.stages));
            }
        }
        for entry in &target.nvmf.lock().subsystems {
            let nqn = &entry.core.options().nqn;
            for link in entry.core.links().iter().filter(|_| name.is_none_or(|name| name == nqn)) {
                found.push((json!({ "name": nqn, "cntlid": link.cntlid }), link.stages()));
            }
        }
        if name.is_some() && found.is_empty() {
            return Err(RpcError::params_errno(Errno::NOENT.raw_os_error()));
        }
        let timed = found.into_iter().filter(|(_, stages)| stages.passes > 0);
        let shown = timed.map(|(whose, stages)| shown(whose, &stages, tick_rate)).collect::<Vec<_>>();
        Ok(json!({ "tick_rate": tick_rate, "one_pass_of": EVERY, "stages": shown }))
    })
}

/// A reading, as nanoseconds for each request.
fn shown(mut whose: Value, stages: &StageReading, tick_rate: u64) -> Value {
    let ns = |stage: Stage| stages.per_request(stage) * 1e9 / tick_rate.max(1) as f64;
    let tenths = |ns: f64| (ns * 10.0).round() / 10.0;
    let mut each: Map<String, Value> =
        Stage::ALL.iter().map(|&stage| (stage.name().to_owned(), tenths(ns(stage)).into())).collect();
    each.insert("sum".to_owned(), tenths(Stage::ALL.iter().map(|&stage| ns(stage)).sum()).into());
    whose["passes"] = stages.passes.into();
    whose["taken"] = stages.taken.into();
    whose["done"] = stages.done.into();
    whose["ns_per_request"] = each.into();
    whose
}
