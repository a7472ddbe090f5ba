//! The transport, and settings of all subsystems.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, Prints, RpcError, States};
use serde::Deserialize;
use serde_json::{Value, json};
use vfu::nvme::controller::{ControllerOptions, oncs};

use super::{INVALID, is_default_target};
use crate::{
    nvmf::{Transport, check_transport},
    target::Target,
};

const MASKABLE_ONCS: &[&str] = &["nvmcmps", "nvmdsmsv", "nvmwzsv", "reservs", "nvmcpys"];
const MASKABLE_FUSES: &[&str] = &["fcws"];
const ONCS: Kind = Kind::Enum(MASKABLE_ONCS);
const FUSES: Kind = Kind::Enum(MASKABLE_FUSES);
const FILTERS: Kind = Kind::Enum(&["transport", "address", "svcid"]);
const DIGESTS: Kind = Kind::Enum(&["sha256", "sha384", "sha512"]);
const GROUPS: Kind = Kind::Enum(&["null", "ffdhe2048", "ffdhe3072", "ffdhe4096", "ffdhe6144", "ffdhe8192"]);

const PASSTHRU: &[Param] = &[
    passed("identify_ctrlr"),
    passed("identify_uuid_list"),
    passed("get_log_page"),
    passed("get_set_features"),
    passed("sanitize"),
    passed("security_send_recv"),
    passed("fw_update"),
    passed("nvme_mi"),
    passed("vendor_specific"),
];

/// An admin command that may be passed through.
const fn passed(name: &'static str) -> Param {
    Param::optional(name, Kind::Bool, "false", "pass it through")
}

const fn flag(name: &'static str, cli: &'static str, help: &'static str) -> Param {
    Param::optional(name, Kind::Bool, "false", help).cli(Cli::Flag(cli))
}

const fn number(
    name: &'static str,
    kind: Kind,
    default: &'static str,
    cli: &'static str,
    help: &'static str,
) -> Param {
    Param::optional(name, kind, default, help).cli(Cli::Option(cli))
}

/// An option of the transports over TCP and RDMA, which are not here. It is taken, as SPDK takes it, and does nothing.
const fn other(name: &'static str, kind: Kind, cli: Cli) -> Param {
    Param::optional(name, kind, "none", "of other transports; not used").cli(cli)
}

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("nvmf_create_transport", "nvmf", create)
        .relaxed_params(&[
            Param::required("trtype", Kind::String, "Transport type: VFIOUSER")
                .cli(Cli::Option("-t/--trtype")),
            Param::optional(
                "tgt_name",
                Kind::String,
                "the default target",
                "The name of the parent NVMe-oF target",
            )
            .cli(Cli::Option("-g/--tgt-name")),
            number(
                "max_queue_depth",
                Kind::U16,
                "256",
                "-q/--max-queue-depth",
                "Max number of outstanding I/O per queue",
            ),
            number(
                "max_io_qpairs_per_ctrlr",
                Kind::U16,
                "127",
                "-m/--max-io-qpairs-per-ctrlr",
                "Max number of IO qpairs per controller",
            ),
            number(
                "in_capsule_data_size",
                Kind::U32,
                "0",
                "-c/--in-capsule-data-size",
                "Max number of in-capsule data size; not used",
            ),
            number("max_io_size", Kind::U32, "131072", "-i/--max-io-size", "Max I/O size (bytes)"),
            number("io_unit_size", Kind::U32, "none", "--io-unit-size", "I/O unit size (bytes); not used"),
            number("max_aq_depth", Kind::U32, "32", "-a/--max-aq-depth", "Max number of admin cmds per AQ"),
            number(
                "num_shared_buffers",
                Kind::U32,
                "none",
                "--num-shared-buffers",
                "The number of pooled data buffers; not used",
            ),
            number(
                "buf_cache_size",
                Kind::U32,
                "0",
                "--buf-cache-size",
                "The number of shared buffers to reserve; not used",
            ),
            number(
                "abort_timeout_sec",
                Kind::U32,
                "1",
                "-x/--abort-timeout-sec",
                "Abort execution timeout value, in seconds",
            ),
            number(
                "acceptor_poll_rate",
                Kind::U32,
                "10000",
                "--acceptor-poll-rate",
                "Polling interval of the acceptor (usec); not used",
            ),
            number("ack_timeout", Kind::U32, "0", "--ack-timeout", "ACK timeout in milliseconds; not used"),
            number("kas", Kind::U16, "100", "--kas", "Keep alive support granularity, in 100 ms"),
            number("min_kato", Kind::U32, "10000", "--min-kato", "Least keep alive timeout (ms)"),
            flag("zcopy", "-z/--zcopy", "Use zero-copy operations; always so here"),
            flag("disable_mappable_bar0", "-M/--disable-mappable-bar0", "Disable mmap() of BAR0"),
            flag(
                "disable_adaptive_irq",
                "-I/--disable-adaptive-irq",
                "Disable adaptive interrupt feature; there is none",
            ),
            flag(
                "disable_shadow_doorbells",
                "-S/--disable-shadow-doorbells",
                "Disable shadow doorbell support",
            ),
            flag("disable_compare", "--disable-compare", "Disable the Compare command"),
            flag("disable_command_passthru", "--disable-command-passthru", "Disallow command passthru"),
            other("iobuf_small_cache_size", Kind::U32, Cli::Option("--iobuf-small-cache-size")),
            other("iobuf_large_cache_size", Kind::U32, Cli::Option("--iobuf-large-cache-size")),
            other("num_cqe", Kind::I32, Cli::Option("-d/--num-cqe")),
            other("max_srq_depth", Kind::U32, Cli::Option("-s/--max-srq-depth")),
            other("no_srq", Kind::Bool, Cli::Flag("-r/--no-srq")),
            other("c2h_success", Kind::Bool, Cli::FlagOff("-o/--c2h-success")),
            other("dif_insert_or_strip", Kind::Bool, Cli::Flag("-f/--dif-insert-or-strip")),
            other("sock_priority", Kind::U32, Cli::Option("-y/--sock-priority")),
            other("acceptor_backlog", Kind::I32, Cli::Option("-l/--acceptor-backlog")),
            other("no_wr_batching", Kind::Bool, Cli::Flag("-w/--no-wr-batching")),
            other("control_msg_num", Kind::U16, Cli::Option("-e/--control-msg-num")),
            other("data_wr_pool_size", Kind::U32, Cli::Option("--data-wr-pool-size")),
            Param::optional("masked_oncs", Kind::Array(&ONCS, 16), "none", "Optional commands to hide")
                .cli(Cli::List("--masked-oncs")),
            Param::optional("masked_fuses", Kind::Array(&FUSES, 16), "none", "Fused operations to hide")
                .cli(Cli::List("--masked-fuses")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Create NVMf transport")
        .example(r#"{"trtype": "VFIOUSER"}"#),
    Method::sync("nvmf_get_transports", "nvmf", get)
        .params(&[
            Param::optional("trtype", Kind::String, "all", "Transport type").cli(Cli::Option("--trtype")),
            Param::optional(
                "tgt_name",
                Kind::String,
                "the default target",
                "The name of the parent NVMe-oF target",
            )
            .cli(Cli::Option("-t/--tgt-name")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Display nvmf transports or required transport")
        .prints(Prints::Json),
    Method::sync("nvmf_set_max_subsystems", "nvmf", set_max_subsystems)
        .states(States::Startup)
        .params(&[Param::required("max_subsystems", Kind::U32, "Max number of NVMf subsystems")
            .cli(Cli::Option("-x/--max-subsystems"))])
        .bad_params(INVALID.0, INVALID.1)
        .help("Set the maximum number of NVMf target subsystems")
        .example(r#"{"max_subsystems": 256}"#),
    Method::sync("nvmf_set_config", "nvmf", set_config)
        .states(States::Startup)
        .params(&[
            Param::optional(
                "admin_cmd_passthru",
                Kind::Object(PASSTHRU),
                "none",
                "Admin command passthru; refused if set",
            )
            .cli(Cli::Set("-p/--passthru-admin-cmds")),
            Param::optional(
                "poll_groups_mask",
                Kind::String,
                "all cores",
                "Set cpumask for NVMf poll groups",
            )
            .cli(Cli::Option("-m/--poll-groups-mask")),
            Param::optional("discovery_filter", Kind::String, "none", "Filter of the discovery log")
                .cli(Cli::Option("-d/--discovery-filter")),
            Param::optional(
                "discovery_filters",
                Kind::Array(&FILTERS, 3),
                "none",
                "Filters of the discovery log",
            )
            .cli(Cli::List("--discovery-filters")),
            Param::optional(
                "dhchap_digests",
                Kind::Array(&DIGESTS, 3),
                "all",
                "Digests of DH-HMAC-CHAP; not used",
            )
            .cli(Cli::List("--dhchap-digests")),
            Param::optional(
                "dhchap_dhgroups",
                Kind::Array(&GROUPS, 6),
                "all",
                "Groups of DH-HMAC-CHAP; not used",
            )
            .cli(Cli::List("--dhchap-dhgroups")),
            Param::optional(
                "dup_host_policy",
                Kind::Enum(&["allow", "restrict_per_listener"]),
                "allow",
                "Whether a host may connect twice",
            )
            .cli(Cli::Option("--dup-host-policy")),
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Set NVMf target config")
        .prints(Prints::Text),
];

#[derive(Deserialize)]
struct Create {
    trtype: String,
    tgt_name: Option<String>,
    max_queue_depth: Option<u16>,
    max_io_qpairs_per_ctrlr: Option<u16>,
    max_io_size: Option<u32>,
    max_aq_depth: Option<u32>,
    abort_timeout_sec: Option<u32>,
    kas: Option<u16>,
    min_kato: Option<u32>,
    disable_mappable_bar0: Option<bool>,
    disable_adaptive_irq: Option<bool>,
    disable_shadow_doorbells: Option<bool>,
    disable_compare: Option<bool>,
    disable_command_passthru: Option<bool>,
    masked_oncs: Option<Vec<String>>,
    masked_fuses: Option<Vec<String>>,
}

fn create(target: &Arc<Target>, params: Params) -> Outcome {
    let create: Create = params.parse()?;
    is_default_target(create.tgt_name.as_ref())?;
    let trtype = &create.trtype;
    if !trtype.eq_ignore_ascii_case("VFIOUSER") {
        // Other transports belong to another target.
        return Err(RpcError::internal(format!("Transport type '{trtype}' create failed")));
    }
    let mut state = target.nvmf.lock();
    if state.transport.is_some() {
        return Err(RpcError::internal(format!("Transport type '{trtype}' already exists")));
    }
    let masked = create.masked_oncs.iter().flatten().fold(0, |bits, name| {
        bits | match name.as_str() {
            "nvmcmps" => oncs::COMPARE,
            "nvmdsmsv" => oncs::DSM,
            "nvmwzsv" => oncs::WRITE_ZEROES,
            "reservs" => oncs::RESERVATIONS,
            _ => oncs::COPY,
        }
    });
    let controller = ControllerOptions {
        max_queue_depth: create.max_queue_depth.unwrap_or(256),
        max_io_queues: create.max_io_qpairs_per_ctrlr.unwrap_or(127),
        max_io_size: create.max_io_size.unwrap_or(131_072),
        disable_compare: create.disable_compare.unwrap_or(false),
        shadow_doorbells: !create.disable_shadow_doorbells.unwrap_or(false),
        masked_oncs: masked,
        masked_fuses: u16::from(create.masked_fuses.is_some_and(|fuses| !fuses.is_empty())),
        ..ControllerOptions::default()
    };
    if let Err(reason) = check_transport(&controller) {
        tracing::warn!(reason, "the transport's options cannot be used");
        return Err(RpcError::internal(format!("Transport type '{trtype}' create failed")));
    }
    state.transport = Some(Transport {
        controller,
        max_aq_depth: create.max_aq_depth.unwrap_or(32),
        disable_mappable_bar0: create.disable_mappable_bar0.unwrap_or(false),
        disable_adaptive_irq: create.disable_adaptive_irq.unwrap_or(false),
        kas: create.kas.unwrap_or(100),
        min_kato: create.min_kato.unwrap_or(10_000),
        abort_timeout_sec: create.abort_timeout_sec.unwrap_or(1),
        disable_command_passthru: create.disable_command_passthru.unwrap_or(false),
    });
    Ok(true.into())
}

/// A transport as SPDK's clients see it.
fn shown(transport: &Transport) -> Value {
    let controller = &transport.controller;
    json!({
        "trtype": "VFIOUSER",
        "max_queue_depth": controller.max_queue_depth,
        // SPDK counts the admin queue too.
        "max_io_qpairs_per_ctrlr": controller.max_io_queues,
        "in_capsule_data_size": 0,
        "max_io_size": controller.max_io_size,
        "max_aq_depth": transport.max_aq_depth,
        "iobuf_small_cache_size": 0,
        "iobuf_large_cache_size": 0,
        "dif_insert_or_strip": false,
        "zcopy": false,
        "abort_timeout_sec": transport.abort_timeout_sec,
        "ack_timeout": 0,
        "data_wr_pool_size": 0,
        "disable_command_passthru": transport.disable_command_passthru,
        "kas": transport.kas,
        "min_kato": transport.min_kato,
    })
}

pub(super) fn config(transport: &Transport) -> Value {
    let controller = &transport.controller;
    let mut config = json!({
        "trtype": "VFIOUSER",
        "max_queue_depth": controller.max_queue_depth,
        "max_io_qpairs_per_ctrlr": controller.max_io_queues,
        "max_io_size": controller.max_io_size,
        "max_aq_depth": transport.max_aq_depth,
        "abort_timeout_sec": transport.abort_timeout_sec,
        "kas": transport.kas,
        "min_kato": transport.min_kato,
        "disable_mappable_bar0": transport.disable_mappable_bar0,
        "disable_adaptive_irq": transport.disable_adaptive_irq,
        "disable_shadow_doorbells": !controller.shadow_doorbells,
        "disable_compare": controller.disable_compare,
        "disable_command_passthru": transport.disable_command_passthru,
    });
    let bits = [oncs::COMPARE, oncs::DSM, oncs::WRITE_ZEROES, oncs::RESERVATIONS, oncs::COPY];
    let masked: Vec<&str> = MASKABLE_ONCS
        .iter()
        .zip(bits)
        .filter(|(_, bit)| controller.masked_oncs & bit != 0)
        .map(|(name, _)| *name)
        .collect();
    if !masked.is_empty() {
        config["masked_oncs"] = json!(masked);
    }
    if controller.masked_fuses != 0 {
        config["masked_fuses"] = json!(MASKABLE_FUSES);
    }
    config
}

fn get(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Get {
        trtype: Option<String>,
        tgt_name: Option<String>,
    }
    let Get { trtype, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let state = target.nvmf.lock();
    let wanted = trtype.as_ref().is_none_or(|trtype| trtype.eq_ignore_ascii_case("VFIOUSER"));
    let found: Vec<Value> = state.transport.iter().filter(|_| wanted).map(shown).collect();
    if trtype.is_some() && found.is_empty() {
        return Err(RpcError::errno(rustix::io::Errno::NODEV.raw_os_error()));
    }
    Ok(found.into())
}

fn set_max_subsystems(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Max {
        max_subsystems: u32,
    }
    let Max { max_subsystems } = params.parse()?;
    let mut state = target.nvmf.lock();
    if state.max_subsystems.is_some() {
        return Err(RpcError::internal("Subsystem count already set"));
    }
    // None stands for the default, and may be set again.
    state.max_subsystems = (max_subsystems > 0).then_some(max_subsystems);
    Ok(true.into())
}

fn set_config(target: &Arc<Target>, params: Params) -> Outcome {
    let bad = params.bad_params();
    let members = Value::Object(params.members().clone());
    // Nothing is passed through: no bdev is an NVMe drive.
    let passthrough = params.get("admin_cmd_passthru").and_then(Value::as_object);
    if passthrough.is_some_and(|switches| switches.values().any(|on| on == &Value::Bool(true))) {
        return Err(bad);
    }
    let mask = match params.get("poll_groups_mask").and_then(Value::as_str) {
        None => None,
        Some(text) => Some(text.parse::<reactor::CoreMask>().map_err(|_syntax| bad.clone())?),
    };
    let all: reactor::CoreMask = target.nvmf.reactors().iter().map(reactor::Handle::core).collect();
    if mask.is_some_and(|mask| mask.is_empty() || !mask.is_subset(&all)) {
        return Err(bad);
    }
    let mut state = target.nvmf.lock();
    state.poll_groups_mask = mask;
    state.config = Some(members);
    Ok(true.into())
}
