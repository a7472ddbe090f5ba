//! VERSION: numbers, JSON, defaults, order.

use anyhow::{Context, Result, ensure};

use super::{
    Case, Kit, any, ours,
    wire::{bytes, cmd, errno, version},
};

pub(super) const CASES: &[Case] = &[
    any("reply_ends_in_nul", "version data: including terminating NUL", terminated),
    any("no_json", "version data is optional; SPDK sends none", no_json),
    any("empty_object", "capabilities are optional", empty_object),
    any("unknown_keys", "other keys are for others", unknown_keys),
    any("minor_is_not_raised", "equal to or less than the minor proposed", minor),
    any("major_1", "a major that does not exist: refused and closed", major),
    any("short_payload", "no room for the numbers: refused and closed", short),
    any("not_terminated", "JSON without NUL: refused and closed", not_terminated),
    any("bad_json", "not JSON, wrong types, out of range: refused and closed", bad_json),
    any("first_message_is_another", "VERSION comes first: refused and closed", not_first),
    any("second_version", "only once: refused, the connection goes on", second),
    ours("tiny_transfers", "a byte of the guest would be a message: refused and closed", tiny_transfers),
    any("no_twin_unless_asked", "if and only if the client has indicated support", no_twin),
];

fn terminated(kit: &Kit) -> Result<()> {
    let reply = kit.connect()?.ask(cmd::VERSION, &version("{}"))?.ok()?;
    ensure!(reply.last() == Some(&0), "no NUL at the end");
    let text = reply.get(4..reply.len() - 1).context("no JSON")?;
    let json: serde_json::Value = serde_json::from_slice(text)?;
    let capabilities = &json["capabilities"];
    let number = |key: &str| capabilities[key].as_u64();
    ensure!(
        number("max_msg_fds").is_none_or(|n| (1..=16).contains(&n)),
        "QEMU refuses more than 16 descriptors"
    );
    ensure!(number("max_data_xfer_size").is_none_or(|n| n <= 64 << 20), "QEMU refuses more than 64 MiB");
    ensure!(number("max_dma_maps").is_none_or(|n| n <= 65535), "QEMU refuses more than 65535 windows");
    ensure!(number("pgsizes").is_none_or(|n| n % 4096 == 0), "QEMU refuses pages below 4 KiB");
    ensure!(reply.len() <= 198, "QEMU reads no more than 198 bytes, its own request's length");
    Ok(())
}

fn no_json(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    wire.ask(cmd::VERSION, &bytes!(0_u16, 0_u16))?.ok()?;
    wire.is_in_step()
}

fn empty_object(kit: &Kit) -> Result<()> {
    for json in ["{}", r#"{"capabilities":{}}"#] {
        let mut wire = kit.connect()?;
        wire.ask(cmd::VERSION, &version(json))?.ok()?;
        wire.is_in_step()?;
    }
    Ok(())
}

fn unknown_keys(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    let json = r#"{"capabilities":{"migration":{"pgsize":4096},"later":[1,{}]},"more":null}"#;
    wire.ask(cmd::VERSION, &version(json))?.ok()?;
    wire.is_in_step()
}

fn minor(kit: &Kit) -> Result<()> {
    for offered in [0_u16, 1, 9] {
        let reply = kit.connect()?.ask(cmd::VERSION, &bytes!(0_u16, offered))?.ok()?;
        let minor = u16::from_ne_bytes([reply[2], reply[3]]);
        ensure!(minor <= offered, "minor {minor} to a client of minor {offered}");
        ensure!(reply[..2] == [0, 0], "another major");
    }
    Ok(())
}

fn refused_and_closed(kit: &Kit, payload: &[u8]) -> Result<()> {
    let mut wire = kit.connect()?;
    wire.ask(cmd::VERSION, payload)?.refused(errno::EINVAL)?;
    wire.is_closed()
}

fn major(kit: &Kit) -> Result<()> {
    refused_and_closed(kit, &bytes!(1_u16, 0_u16))
}

fn short(kit: &Kit) -> Result<()> {
    refused_and_closed(kit, &[0, 0, 0])
}

fn not_terminated(kit: &Kit) -> Result<()> {
    refused_and_closed(kit, b"\0\0\0\0{}")
}

fn bad_json(kit: &Kit) -> Result<()> {
    for json in [
        "{",
        "no",
        r#"{"capabilities":7}"#,
        r#"{"capabilities":{"max_msg_fds":-1}}"#,
        r#"{"capabilities":{"max_msg_fds":"8"}}"#,
        r#"{"capabilities":{"max_msg_fds":1048576}}"#,
        r#"{"capabilities":{"max_data_xfer_size":"big"}}"#,
        r#"{"capabilities":{"write_multiple":1}}"#,
    ] {
        refused_and_closed(kit, &version(json)).with_context(|| json.to_owned())?;
    }
    Ok(())
}

fn tiny_transfers(kit: &Kit) -> Result<()> {
    for len in [0, 1, 511] {
        refused_and_closed(kit, &version(&format!(r#"{{"capabilities":{{"max_data_xfer_size":{len}}}}}"#)))?;
    }
    Ok(())
}

fn not_first(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    wire.ask(cmd::GET_INFO, &bytes!(16_u32, 0_u32, 0_u32, 0_u32))?.refused(errno::EINVAL)?;
    wire.is_closed()
}

fn second(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::VERSION, &version("{}"))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn no_twin(kit: &Kit) -> Result<()> {
    for json in ["{}", r#"{"capabilities":{"twin_socket":{"supported":false}}}"#] {
        let reply = kit.connect()?.ask(cmd::VERSION, &version(json))?;
        ensure!(reply.fds.is_empty(), "descriptors that nobody asked for");
        let text = String::from_utf8_lossy(reply.payload.get(4..).context("no JSON")?).into_owned();
        ensure!(!text.contains(r#""supported":true"#), "a twin socket that nobody asked for");
    }
    Ok(())
}
