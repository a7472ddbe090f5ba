//! app_framework: version, reactors, cores, memory, end.

use std::{collections::HashMap, io::Write, sync::Arc};

use reactor::{CoreLockError, Group, Handle, Mode};
use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError, States};
use rustix::{
    fs::OFlags,
    io::Errno,
    process::{Signal, getpid, kill_process},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::target::Target;

/// The signals that spdk_kill_instance takes.
const SIGNALS: &[(&str, Signal)] = &[
    ("SIGINT", Signal::INT),
    ("SIGTERM", Signal::TERM),
    ("SIGQUIT", Signal::QUIT),
    ("SIGHUP", Signal::HUP),
    ("SIGKILL", Signal::KILL),
    ("SIGUSR1", Signal::USR1),
];

const SIGNAL_NAMES: &[&str] = &["SIGINT", "SIGTERM", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1"];

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("spdk_get_version", "app_framework", get_version)
        .states(States::Both)
        .bad_params(-32602, "spdk_get_version method requires no parameters")
        .help("Get the version of the target")
        .prints(Prints::Json),
    Method::sync("spdk_kill_instance", "app_framework", kill_instance)
        .params(&[Param::required(
            "sig_name",
            Kind::Enum(SIGNAL_NAMES),
            "signal that will be sent to the target",
        )
        .cli(Cli::Positional)])
        .help("Send a signal to the target")
        .example(r#"{"sig_name": "SIGTERM"}"#),
    Method::sync("framework_get_reactors", "app_framework", get_reactors)
        .bad_params(-32602, "`framework_get_reactors` requires no arguments")
        .help("Display list of all reactors")
        .prints(Prints::Json),
    Method::sync("framework_enable_cpumask_locks", "app_framework", enable_locks)
        .states(States::Both)
        .bad_params(-32602, "framework_enable_cpumask_locksrequires no arguments")
        .help("Claim the cores by lock files"),
    Method::sync("framework_disable_cpumask_locks", "app_framework", disable_locks)
        .states(States::Both)
        .bad_params(-32602, "framework_disable_cpumask_locksrequires no arguments")
        .help("Give up the lock files of the cores"),
    Method::sync("framework_get_pci_devices", "app_framework", get_pci_devices)
        .bad_params(-32602, "framework_get_pci_devices doesn't accept any parameters.\n")
        .help("List PCI devices that the target drives itself (there are none)")
        .prints(Prints::Bare),
    Method::sync("env_dpdk_get_mem_stats", "app_framework", get_mem_stats)
        .bad_params(-32602, "env_dpdk_get_mem_stats doesn't accept any parameters.\n")
        .help("Write what memory the target uses to a file, and tell its name")
        .prints(Prints::Json),
];

fn get_version(_target: &Arc<Target>, _params: Params) -> Outcome {
    let number = |text: &str| text.parse::<u32>().unwrap_or(0);
    Ok(json!({
        "version": format!("Ringside v{}", env!("CARGO_PKG_VERSION")),
        "fields": {
            "major": number(env!("CARGO_PKG_VERSION_MAJOR")),
            "minor": number(env!("CARGO_PKG_VERSION_MINOR")),
            "patch": number(env!("CARGO_PKG_VERSION_PATCH")),
            "suffix": env!("CARGO_PKG_VERSION_PRE"),
        },
    }))
}

fn kill_instance(_target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Kill {
        sig_name: String,
    }
    let bad = params.bad_params();
    let Kill { sig_name } = params.parse()?;
    let &(_, signal) = SIGNALS.iter().find(|(name, _)| *name == sig_name).ok_or(bad)?;
    kill_process(getpid(), signal).map_err(|errno| RpcError::errno(errno.raw_os_error()))?;
    Ok(true.into())
}

fn enable_locks(target: &Arc<Target>, _params: Params) -> Outcome {
    target.core_claims.claim().map_err(|error| match error {
        CoreLockError::Held { core, .. } => RpcError::internal(format!("Failed to claim CPU core: {core}")),
        CoreLockError::File { .. } => RpcError::internal(error.to_string()),
    })?;
    Ok(true.into())
}

fn disable_locks(target: &Arc<Target>, _params: Params) -> Outcome {
    target.core_claims.release();
    Ok(true.into())
}

fn get_pci_devices(_target: &Arc<Target>, _params: Params) -> Outcome {
    Ok(Value::Array(Vec::new()))
}

/// The file that SPDK writes too.
const MEM_STATS_FILE: &str = "/tmp/spdk_mem_dump.txt";

fn get_mem_stats(_target: &Arc<Target>, _params: Params) -> Outcome {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let of_process =
        status.lines().filter(|line| ["Vm", "Rss", "Huge"].iter().any(|word| line.starts_with(word)));
    let system = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let of_system = system.lines().filter(|line| line.starts_with("Huge"));
    let mut text = format!("bytes of disks in memory: {}\n", ::bdev::arena::bytes_taken());
    for line in of_process.chain(of_system) {
        text.push_str(line);
        text.push('\n');
    }
    // The folder is everybody's: never write through a link that somebody has put there.
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let failed = |errno: Errno| RpcError::errno(errno.raw_os_error());
    let file =
        rustix::fs::open(MEM_STATS_FILE, flags, rustix::fs::Mode::from_raw_mode(0o600)).map_err(failed)?;
    std::fs::File::from(file).write_all(text.as_bytes()).map_err(|error| {
        tracing::warn!(%error, "the memory statistics cannot be written");
        failed(Errno::from_io_error(&error).unwrap_or(Errno::IO))
    })?;
    Ok(json!({ "filename": MEM_STATS_FILE }))
}

fn get_reactors(target: &Arc<Target>, _params: Params) -> Outcome {
    let times = core_times();
    let reactors: Vec<Value> = target.reactors.iter().map(|reactor| describe(reactor, &times)).collect();
    Ok(json!({ "tick_rate": target.tick_rate(), "pid": getpid().as_raw_pid(), "reactors": reactors }))
}

fn describe(reactor: &Handle, times: &HashMap<u32, CoreTimes>) -> Value {
    let stats = reactor.stats();
    let now = reactor.clock().now();
    let CoreTimes { usr, sys, irq } = times.get(&stats.core).copied().unwrap_or_default();
    let threads: Vec<Value> =
        stats.groups.iter().map(|(group, since)| thread(group, now.since(*since))).collect();
    json!({
        "lcore": stats.core,
        "numa_id": numa_node(stats.core),
        "tid": stats.tid,
        "busy": stats.busy_ticks,
        "idle": stats.idle_ticks,
        "in_interrupt": stats.asleep || stats.mode == Mode::Interrupt,
        "irq": irq,
        "sys": sys,
        "usr": usr,
        "lw_threads": threads,
    })
}

fn thread(group: &Group, elapsed: u64) -> Value {
    json!({ "name": group.name(), "id": group.id(), "cpumask": group.cpumask().to_string(), "elapsed": elapsed })
}

/// What a core did since boot, in ticks of the kernel's clock (proc(5), /proc/stat).
#[derive(Clone, Copy, Default)]
struct CoreTimes {
    usr: u64,
    sys: u64,
    irq: u64,
}

fn core_times() -> HashMap<u32, CoreTimes> {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.strip_prefix("cpu")?.split_whitespace();
        let core = words.next()?.parse().ok()?;
        let times: Vec<u64> = words.map_while(|word| word.parse().ok()).collect();
        let &[usr, _nice, sys, _idle, _iowait, irq, ..] = times.as_slice() else { return None };
        Some((core, CoreTimes { usr, sys, irq }))
    };
    text.lines().filter_map(line).collect()
}

/// The NUMA node of a core; 0 where the system has none.
fn numa_node(core: u32) -> u32 {
    let entries = std::fs::read_dir(format!("/sys/devices/system/cpu/cpu{core}")).into_iter().flatten();
    let nodes =
        entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("node")?.parse().ok());
    nodes.min().unwrap_or(0)
}
