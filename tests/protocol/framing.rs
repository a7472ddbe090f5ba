//! Header and stream: lengths, types, ids, order, descriptors that nobody asked for.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any,
    wire::{NO_REPLY, REPLY, bytes, cmd, errno, message},
};

pub(super) const CASES: &[Case] = &[
    any("id_and_command_are_echoed", "Message ID is echoed in the reply", echo),
    any("same_id_twice", "ids may be re-used, even concurrently", same_id),
    any("size_below_header", "Message size includes the header", short_size),
    any("unknown_command", "refused; the stream stays in step", unknown),
    any("too_long_message", "beyond max_data_xfer_size: refused, in step", too_long),
    any("reply_type_from_client", "a reply to nothing is no command", reply_type),
    any("byte_by_byte", "messages may be split anywhere", byte_by_byte),
    any("pipelined", "commands are answered in order", pipelined),
    any("no_reply_is_not_answered", "No_reply: no reply is needed", no_reply),
    any("no_reply_error_is_silent", "an error has no reply either", no_reply_error),
    any("unexpected_descriptors", "descriptors are closed, the stream goes on", stray_fds),
];

const INFO: [u32; 4] = [16, 0, 0, 0];

fn info() -> Vec<u8> {
    bytes!(INFO[0], INFO[1], INFO[2], INFO[3])
}

fn echo(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.raw(&message(0xbeef, cmd::GET_INFO, 0, &info()), &[])?;
    wire.reply(0xbeef, cmd::GET_INFO)?.ok()?;
    Ok(())
}

fn same_id(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let one = message(0, cmd::GET_INFO, 0, &info());
    wire.raw(&[&one[..], &one].concat(), &[])?;
    wire.reply(0, cmd::GET_INFO)?.ok()?;
    wire.reply(0, cmd::GET_INFO)?.ok()?;
    Ok(())
}

fn short_size(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.raw(&bytes!(1_u16, cmd::GET_INFO, 15_u32, 0_u32, 0_u32), &[])?;
    wire.is_closed()
}

fn unknown(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for command in [0, 14, 19, 0xffff] {
        wire.ask(command, &[0; 40])?.refused(errno::EINVAL)?;
    }
    wire.is_in_step()
}

fn too_long(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::REGION_WRITE, &vec![0; (1 << 20) + 17])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn reply_type(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let id = wire.send(cmd::GET_INFO, REPLY, &info(), &[])?;
    wire.reply(id, cmd::GET_INFO)?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn byte_by_byte(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for byte in message(7, cmd::GET_INFO, 0, &info()) {
        wire.raw(&[byte], &[])?;
    }
    wire.reply(7, cmd::GET_INFO)?.ok()?;
    Ok(())
}

fn pipelined(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let all: Vec<u8> =
        (0..200).flat_map(|id| message(id, cmd::REGION_READ, 0, &bytes!(0_u64, 7_u32, 4_u32))).collect();
    wire.raw(&all, &[])?;
    for id in 0..200 {
        ensure!(wire.reply(id, cmd::REGION_READ)?.ok()?.len() == 20);
    }
    Ok(())
}

fn no_reply(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.send(cmd::GET_INFO, NO_REPLY, &info(), &[])?;
    wire.is_in_step()
}

fn no_reply_error(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.send(cmd::GET_INFO, NO_REPLY, &[], &[])?;
    wire.send(99, NO_REPLY, &[1, 2, 3], &[])?;
    wire.is_in_step()
}

fn stray_fds(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
    wire.ask_with(cmd::GET_INFO, &info(), &[theirs.as_fd()])?;
    drop(theirs);
    wire.is_in_step()?;
    ours.set_read_timeout(Some(std::time::Duration::from_secs(20)))?;
    let end = std::io::Read::read(&mut &ours, &mut [0])?;
    ensure!(end == 0, "the server keeps a descriptor that no command wanted");
    Ok(())
}
