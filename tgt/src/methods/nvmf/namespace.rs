//! Namespaces of a subsystem.

use std::sync::Arc;

use rpc::{Cli, Kind, Method, Outcome, Param, Params, RpcError};
use serde::Deserialize;
use serde_json::{Value, json};
use vfu::nvme::namespace::{Namespace, NamespaceOptions};

use super::{INVALID, NQN, TGT_NAME, invalid, is_default_target};
use crate::target::Target;

const NAMESPACE: &[Param] = &[
    Param::optional("nsid", Kind::U32, "the lowest free one", "The requested NSID")
        .cli(Cli::Option("-n/--nsid")),
    Param::required("bdev_name", Kind::String, "The name of the bdev that will back this namespace")
        .cli(Cli::Positional),
    Param::optional("nguid", Kind::String, "the UUID", "Namespace globally unique identifier")
        .cli(Cli::Option("-g/--nguid")),
    Param::optional("eui64", Kind::String, "none", "Namespace EUI-64 identifier")
        .cli(Cli::Option("-e/--eui64")),
    Param::optional("uuid", Kind::Uuid, "that of the bdev", "Namespace UUID").cli(Cli::Option("-u/--uuid")),
    Param::optional("ptpl_file", Kind::String, "none", "Where reservations outlive the target")
        .cli(Cli::Option("-p/--ptpl-file")),
    Param::optional("anagrpid", Kind::U32, "the NSID", "ANA group ID").cli(Cli::Option("-a/--anagrpid")),
    Param::optional("no_auto_visible", Kind::Bool, "false", "Hide until a host is added; refused if set")
        .cli(Cli::Flag("-i/--no-auto-visible")),
    Param::optional("hide_metadata", Kind::Bool, "false", "There is no metadata to hide"),
];
const NSID: Param = Param::required("nsid", Kind::U32, "The requested NSID").cli(Cli::Positional);

pub(super) const METHODS: &[Method<Target>] = &[
    Method::sync("nvmf_subsystem_add_ns", "nvmf", add)
        .relaxed_params(&[
            NQN,
            Param::required("namespace", Kind::Object(NAMESPACE), "The namespace").cli(Cli::Members),
            TGT_NAME,
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Add a namespace to an NVMe-oF subsystem")
        .example(
            r#"{"nqn": "nqn.2026-11.org.example:disk0", "namespace": {"bdev_name": "Malloc1", "nsid": 2}}"#,
        )
        .prints(rpc::Prints::Nothing),
    Method::sync("nvmf_subsystem_remove_ns", "nvmf", remove)
        .params(&[NQN, NSID, TGT_NAME])
        .bad_params(INVALID.0, INVALID.1)
        .help("Remove a namespace from an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "nsid": 1}"#),
    Method::sync("nvmf_subsystem_set_ns_ana_group", "nvmf", set_ana_group)
        .params(&[
            NQN,
            NSID,
            Param::required("anagrpid", Kind::U32, "ANA group ID").cli(Cli::Positional),
            TGT_NAME,
        ])
        .bad_params(INVALID.0, INVALID.1)
        .help("Change ANA group ID of a namespace in an NVMe-oF subsystem")
        .example(r#"{"nqn": "nqn.2026-11.org.example:disk0", "nsid": 1, "anagrpid": 2}"#),
];

/// Bytes from twice as many hexadecimal digits.
fn bytes<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    let mut bytes = [0; N];
    if digits.len() != N * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let nibble = |digit: u8| char::from(digit).to_digit(16);
        *byte = u8::try_from(nibble(pair[0])? << 4 | nibble(pair[1])?).ok()?;
    }
    Some(bytes)
}

/// Hexadecimal digits, upper-case as SPDK shows them.
pub(super) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string does not fail.
        let _ = write!(text, "{byte:02X}");
        text
    })
}

/// A UUID in its usual form.
pub(super) fn uuid(bytes: &[u8; 16]) -> String {
    let hex = hex(bytes).to_ascii_lowercase();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

fn add(target: &Arc<Target>, params: Params) -> Outcome {
    #[derive(Deserialize)]
    struct Wanted {
        nsid: Option<u32>,
        bdev_name: String,
        nguid: Option<String>,
        eui64: Option<String>,
        uuid: Option<String>,
        ptpl_file: Option<std::path::PathBuf>,
        anagrpid: Option<u32>,
        no_auto_visible: Option<bool>,
    }
    #[derive(Deserialize)]
    struct Add {
        nqn: String,
        namespace: Wanted,
        tgt_name: Option<String>,
    }
    let bad = params.bad_params();
    let Add { nqn, namespace, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    // Clients of vfio-user have no NQN by which a namespace could be shown to some of them only.
    if namespace.no_auto_visible == Some(true) {
        return Err(bad);
    }
    let parsed = |text: &Option<String>| match text {
        None => Ok(None),
        Some(text) => bytes::<16>(&text.replace('-', "")).map(Some).ok_or_else(|| bad.clone()),
    };
    let eui64 = match &namespace.eui64 {
        None => None,
        Some(text) => Some(bytes::<8>(text).ok_or_else(|| bad.clone())?),
    };
    let options = NamespaceOptions {
        nsid: namespace.nsid,
        nguid: parsed(&namespace.nguid)?,
        eui64,
        uuid: parsed(&namespace.uuid)?,
        anagrpid: namespace.anagrpid.filter(|&group| group != 0),
        ptpl_file: namespace.ptpl_file,
    };
    let added = target.nvmf.add_namespace(&target.registry, &nqn, &namespace.bdev_name, options);
    Ok(added.map_err(|error| invalid(&error))?.into())
}

#[derive(Deserialize)]
struct Of {
    nqn: String,
    nsid: u32,
    anagrpid: Option<u32>,
    tgt_name: Option<String>,
}

fn remove(target: &Arc<Target>, params: Params) -> Outcome {
    let bad = params.bad_params();
    let Of { nqn, nsid, tgt_name, .. } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let core = Arc::clone(&target.nvmf.lock().subsystem(&nqn).map_err(|error| invalid(&error))?.core);
    if core.remove_namespace(nsid) { Ok(true.into()) } else { Err(bad) }
}

fn set_ana_group(target: &Arc<Target>, params: Params) -> Outcome {
    let Of { nqn, nsid, anagrpid, tgt_name } = params.parse()?;
    is_default_target(tgt_name.as_ref())?;
    let core = Arc::clone(&target.nvmf.lock().subsystem(&nqn).map_err(|error| invalid(&error))?.core);
    let group = anagrpid.unwrap_or(0);
    let most = core.options().max_namespaces;
    if !core.options().ana_reporting || group == 0 || group > most || !core.set_ana_group(nsid, group) {
        return Err(RpcError::internal("Unable to change ANA group ID"));
    }
    Ok(true.into())
}

/// A namespace as SPDK's clients see it.
pub(super) fn shown(namespace: &Namespace, ana: bool) -> Value {
    let name = &namespace.info().name;
    let mut shown = json!({
        "nsid": namespace.nsid,
        "bdev_name": name,
        "name": name,
        "nguid": hex(&namespace.guid()),
    });
    if let Some(eui64) = &namespace.eui64 {
        shown["eui64"] = hex(eui64).into();
    }
    shown["uuid"] = uuid(&namespace.uuid).into();
    if ana {
        shown["anagrpid"] = namespace.anagrpid().into();
    }
    shown
}

pub(super) fn config(namespace: &Namespace) -> Value {
    let mut config = json!({
        "nsid": namespace.nsid,
        "bdev_name": namespace.info().name,
        "nguid": hex(&namespace.guid()),
    });
    if let Some(eui64) = &namespace.eui64 {
        config["eui64"] = hex(eui64).into();
    }
    config["uuid"] = uuid(&namespace.uuid).into();
    if let Some(file) = &namespace.ptpl_file {
        config["ptpl_file"] = file.to_string_lossy().into();
    }
    if namespace.anagrpid() != namespace.nsid {
        config["anagrpid"] = namespace.anagrpid().into();
    }
    config
}
