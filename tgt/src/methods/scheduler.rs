//! scheduler, and what else concerns the placing and the mode of reactors and threads.

use std::{sync::Arc, time::Duration};

use reactor::{CoreMask, Group, Mode};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError, States};
use rustix::io::Errno;
use serde::Deserialize;
use serde_json::json;

use super::DECODE_FAILED;
use crate::{
    config::Entry,
    scheduler::{MAX_PERIOD_US, MIN_PERIOD_US, Policy},
    target::Target,
};

/// Longest spin that may be set: a second. A longer one is a reactor that never sleeps; that has a mode of its own.
const MAX_SPIN_US: u64 = 1_000_000;

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("framework_set_scheduler", "scheduler", set_scheduler)
        .states(States::Both)
        .relaxed_params(&[
            Param::required("name", Kind::String, "Name of a scheduler").cli(Cli::Positional),
            Param::optional("period", Kind::U64, "1000000", "Scheduling period in microseconds")
                .cli(Cli::Option("-p/--period")),
            Param::optional(
                "load_limit",
                Kind::U8,
                "20",
                "Scheduler load limit. Reserved for dynamic scheduler",
            )
            .cli(Cli::Option("--load-limit")),
            Param::optional(
                "core_limit",
                Kind::U8,
                "80",
                "Scheduler core limit. Reserved for dynamic scheduler",
            )
            .cli(Cli::Option("--core-limit")),
            Param::optional(
                "core_busy",
                Kind::U8,
                "95",
                "Scheduler core busy limit. Reserved for dynamic scheduler",
            )
            .cli(Cli::Option("--core-busy")),
            Param::optional(
                "mappings",
                Kind::String,
                "none",
                "Comma-separated list of thread:core mappings. Static scheduler only",
            )
            .cli(Cli::Option("--mappings")),
        ])
        .help("Select thread scheduler that will be activated and its period")
        .example(r#"{"name": "dynamic", "period": 1000000}"#),
    Method::sync("framework_get_scheduler", "scheduler", get_scheduler)
        .states(States::Both)
        .bad_params(-32602, "'rpc_get_scheduler' requires no arguments")
        .help("Display currently set scheduler and its properties")
        .prints(Prints::Json),
    Method::sync("framework_get_governor", "scheduler", get_governor)
        .bad_params(-32602, "'rpc_get_governor' requires no arguments")
        .help("Display currently set governor: none, frequencies are left to the kernel")
        .prints(Prints::Json),
    Method::sync("scheduler_set_options", "scheduler", set_options)
        .states(States::Startup)
        .params(&[
            Param::optional(
                "isolated_core_mask",
                Kind::String,
                "none",
                "Mask of CPU cores the scheduler leaves alone",
            )
            .cli(Cli::Option("-i/--isolated-core-mask")),
            Param::optional("scheduling_core", Kind::U32, "main core", "The core that does the scheduling")
                .cli(Cli::Option("-s/--scheduling-core")),
        ])
        .help("Set scheduler options"),
    Method::sync("thread_set_cpumask", "thread", set_cpumask)
        .params(&[
            Param::required("id", Kind::U64, "thread ID").cli(Cli::Option("-i/--id")),
            Param::required("cpumask", Kind::String, "cpumask for this thread")
                .cli(Cli::Option("-m/--cpumask")),
        ])
        .bad_params(-32602, DECODE_FAILED.1)
        .help("Set the cpumask of the thread whose ID matches to the specified value")
        .example(r#"{"id": 1, "cpumask": "0x1"}"#),
    Method::sync("framework_monitor_context_switch", "app_framework", monitor_context_switch)
        .params(&[Param::optional("enabled", Kind::Bool, "false", "Enable or disable the monitor")
            .cli(Cli::Switch("--monitor"))])
        .help("Control whether the context switch monitor is enabled")
        .prints(Prints::Json),
    Method::sync("reactor_set_mode", "app_framework", set_mode)
        .params(&[
            Param::required(
                "mode",
                Kind::Enum(&["adaptive", "poll", "interrupt"]),
                "when reactors poll and when they sleep",
            )
            .cli(Cli::Positional),
            Param::optional("lcore", Kind::U32, "all reactors", "the reactor of this core only")
                .cli(Cli::Option("-l/--lcore")),
            Param::optional(
                "spin_us",
                Kind::U64,
                "50",
                "how long an adaptive reactor polls without work, in microseconds",
            )
            .cli(Cli::Option("-s/--spin-us")),
        ])
        .help("Set when reactors poll and when they sleep")
        .example(r#"{"mode": "adaptive", "spin_us": 50}"#),
];

/// The calls that set the scheduler as it is.
pub(super) fn config(target: &Target) -> Vec<Entry> {
    let settings = target.scheduler.settings();
    let mut entries = Vec::new();
    if !settings.isolated.is_empty() {
        let params = json!({
            "isolated_core_mask": settings.isolated.to_string(),
            "scheduling_core": settings.core,
        });
        entries.push(Entry::new("scheduler_set_options", params));
    }
    let mut params = json!({ "name": settings.policy.name(), "period": settings.period_us });
    if settings.policy == Policy::Dynamic {
        params["load_limit"] = settings.load_limit.into();
        params["core_limit"] = settings.core_limit.into();
        params["core_busy"] = settings.core_busy.into();
    }
    entries.push(Entry::new("framework_set_scheduler", params));
    entries.extend(modes(target));
    entries
}

/// The calls that set the modes of reactors where they are not what the flags say.
fn modes(target: &Target) -> Vec<Entry> {
    let of = |reactor: &reactor::Handle| (reactor.core(), reactor.mode());
    let changed: Vec<(u32, Mode)> =
        target.reactors.iter().map(of).filter(|(_, mode)| *mode != target.first_mode).collect();
    let entry = |mode: Mode, core: Option<u32>| {
        let mut params = match mode {
            Mode::PollOnly => json!({ "mode": "poll" }),
            Mode::Interrupt => json!({ "mode": "interrupt" }),
            Mode::Adaptive { spin } => json!({ "mode": "adaptive", "spin_us": whole_us(spin) }),
        };
        if let Some(core) = core {
            params["lcore"] = core.into();
        }
        Entry::new("reactor_set_mode", params)
    };
    match changed.split_first() {
        Some((&(_, mode), others))
            if changed.len() == target.reactors.len() && others.iter().all(|(_, other)| *other == mode) =>
        {
            vec![entry(mode, None)]
        }
        _ => changed.into_iter().map(|(core, mode)| entry(mode, Some(core))).collect(),
    }
}

fn whole_us(span: Duration) -> u64 {
    u64::try_from(span.as_micros()).unwrap_or(u64::MAX)
}

/// SPDK's answer where no governor is loaded, as with its own scheduler `static`.
fn get_governor(_target: &Arc<Target>, _params: Params) -> Outcome {
    Ok(json!({}))
}

fn invalid(errno: Errno) -> RpcError {
    RpcError::params_errno(errno.raw_os_error())
}

fn set_scheduler(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        name: String,
        period: Option<u64>,
        load_limit: Option<u8>,
        core_limit: Option<u8>,
        core_busy: Option<u8>,
        mappings: Option<String>,
    }
    let Set { name, period, load_limit, core_limit, core_busy, mappings } = params.parse()?;
    let percent = |value: Option<u8>| value.is_none_or(|value| value <= 100);
    let policy = Policy::named(&name).ok_or_else(|| invalid(Errno::INVAL))?;
    if !period.is_none_or(|period| period == 0 || (MIN_PERIOD_US..=MAX_PERIOD_US).contains(&period))
        || ![load_limit, core_limit, core_busy].into_iter().all(percent)
    {
        return Err(invalid(Errno::INVAL));
    }
    for (thread, core) in mappings.as_deref().map_or(Ok(Vec::new()), parse_mappings)? {
        place(target, thread, &CoreMask::of(core).to_string())?;
    }
    target.scheduler.change(|settings| {
        settings.policy = policy;
        settings.period_us = period.unwrap_or(settings.period_us);
        settings.load_limit = load_limit.unwrap_or(settings.load_limit);
        settings.core_limit = core_limit.unwrap_or(settings.core_limit);
        settings.core_busy = core_busy.unwrap_or(settings.core_busy);
    });
    Ok(true.into())
}

/// `thread:core` pairs, separated by commas; threads by id.
fn parse_mappings(text: &str) -> Result<Vec<(u64, u32)>, RpcError> {
    let pair = |pair: &str| {
        let (thread, core) = pair.split_once(':')?;
        Some((thread.trim().parse().ok()?, core.trim().parse().ok()?))
    };
    text.split(',')
        .filter(|item| !item.trim().is_empty())
        .map(pair)
        .collect::<Option<_>>()
        .ok_or_else(|| invalid(Errno::INVAL))
}

fn get_scheduler(target: &Arc<Target>, _params: Params) -> Outcome {
    let settings = target.scheduler.settings();
    let mut answer = json!({
        "scheduler_name": settings.policy.name(),
        "scheduler_period": settings.period_us,
        "isolated_core_mask": settings.isolated.to_string(),
        "scheduling_core": settings.core,
    });
    if settings.policy == Policy::Dynamic {
        answer["load_limit"] = settings.load_limit.into();
        answer["core_limit"] = settings.core_limit.into();
        answer["core_busy"] = settings.core_busy.into();
    }
    Ok(answer)
}

fn set_options(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Options {
        isolated_core_mask: Option<String>,
        scheduling_core: Option<u32>,
    }
    let Options { isolated_core_mask, scheduling_core } = params.parse()?;
    let ours: CoreMask = target.reactors.iter().map(reactor::Handle::core).collect();
    let isolated = isolated_core_mask.map(|mask| mask.parse::<CoreMask>());
    let isolated = isolated.transpose().map_err(|_syntax| invalid(Errno::INVAL))?;
    let core = scheduling_core.unwrap_or(target.scheduler.settings().core);
    // The core that schedules cannot be one that is left alone.
    if !ours.contains(core) || isolated.is_some_and(|mask| !mask.is_subset(&ours) || mask.contains(core)) {
        return Err(invalid(Errno::INVAL));
    }
    target.scheduler.change(|settings| {
        settings.core = core;
        settings.isolated = isolated.unwrap_or(settings.isolated);
    });
    Ok(true.into())
}

fn set_cpumask(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        id: u64,
        cpumask: String,
    }
    let Set { id, cpumask } = params.parse()?;
    place(target, id, &cpumask)?;
    Ok(true.into())
}

/// Moves what SPDK's clients know as a thread.
fn place(target: &Target, thread: u64, mask: &str) -> Result<(), RpcError> {
    let outside = |_error| {
        let ours: CoreMask = target.reactors.iter().map(reactor::Handle::core).collect();
        RpcError::new(
            -Errno::INVAL.raw_os_error(),
            format!("cpumask {mask} is invalid (core mask is 0x{ours})"),
        )
    };
    if target.endpoints.set_cpumask(thread, mask).map_err(&outside)? {
        return Ok(());
    }
    let (ours, reactors) = target.endpoints.reactors_of(Some(mask)).map_err(outside)?;
    if target.nvmf.place(thread, ours, reactors) {
        return Ok(());
    }
    // A thread without queues, such as app_thread, has nothing to move.
    let group = Group::all().into_iter().find(|group| group.id() == thread);
    let group = group.ok_or_else(|| RpcError::errno(Errno::NOENT.raw_os_error()))?;
    group.set_cpumask(ours);
    Ok(())
}

fn monitor_context_switch(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Monitor {
        enabled: Option<bool>,
    }
    // Absent params only read; an empty object turns it off, as SPDK has it.
    let given = params.was_given();
    let Monitor { enabled } = params.parse()?;
    if given {
        target.monitor.set(enabled.unwrap_or(false));
    }
    Ok(json!({ "enabled": target.monitor.is_on() }))
}

fn set_mode(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Set {
        mode: String,
        lcore: Option<u32>,
        spin_us: Option<u64>,
    }
    let Set { mode, lcore, spin_us } = params.parse()?;
    if spin_us.is_some_and(|spin| spin > MAX_SPIN_US) {
        return Err(invalid(Errno::RANGE));
    }
    let mode = match mode.as_str() {
        "poll" => Mode::PollOnly,
        "interrupt" => Mode::Interrupt,
        _ => Mode::Adaptive { spin: spin_us.map_or(reactor::DEFAULT_SPIN, Duration::from_micros) },
    };
    let chosen = target.reactors.iter().filter(|reactor| lcore.is_none_or(|core| reactor.core() == core));
    let mut any = false;
    for reactor in chosen {
        reactor.set_mode(mode);
        any = true;
    }
    if any { Ok(true.into()) } else { Err(invalid(Errno::NODEV)) }
}
