//! Clients that vanish, at every point of a conversation, again and again: nothing of them is left.

use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, Disk},
    wire::{bytes, cmd, eventfd, memory, message, version},
};

pub(super) const CASES: &[Case] = &[
    any("after_every_byte_of_version", "the next client is served", mid_version),
    ours("a_thousand_times_at_every_point", "no descriptor, mapping or memory is left", thousand),
];

/// Rounds of the thousand; each vanishes at another point.
const ROUNDS: usize = 1000;

fn mid_version(kit: &Kit) -> Result<()> {
    let hello = message(0, cmd::VERSION, 0, &version("{}"));
    for len in 0..=hello.len() {
        kit.connect()?.raw(&hello[..len], &[])?;
    }
    kit.open()?.is_in_step()
}

/// Descriptors, mappings and resident memory (KiB) of a process.
fn belongings(pid: u32) -> Result<(usize, usize, u64)> {
    let descriptors = std::fs::read_dir(format!("/proc/{pid}/fd"))?.count();
    let mappings = std::fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok((descriptors, mappings, resident.trim().trim_end_matches(" kB").parse()?))
}

/// One conversation, of which the first `steps` steps are done.
fn converse(kit: &Kit, steps: usize) -> Result<()> {
    let mut wire = kit.connect()?;
    let file = memory(virtio::LEN)?;
    let fd = eventfd()?;
    let info = bytes!(16_u32, 0_u32, 0_u32, 0_u32);
    match steps {
        0 => {}
        1 => wire.raw(&message(0, cmd::VERSION, 0, &version("{}"))[..20], &[])?,
        2 => {
            wire.send(cmd::VERSION, 0, &version("{}"), &[])?;
        }
        3 => wire.negotiate()?,
        4 => {
            wire.negotiate()?;
            // Half a message that carries a descriptor.
            let map = bytes!(32_u32, 3_u32, 0_u64, virtio::BASE, virtio::LEN);
            wire.raw(&message(1, cmd::DMA_MAP, 0, &map)[..30], &[file.as_fd()])?;
        }
        5 => {
            wire.negotiate()?;
            wire.map(3, 0, virtio::BASE, virtio::LEN, Some(file.as_fd()))?.ok()?;
        }
        6 => {
            wire.negotiate()?;
            wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 2_u32, 0_u32, 1_u32), &[fd.as_fd()])?
                .ok()?;
            wire.ask(cmd::GET_REGION_IO_FDS, &bytes!(96_u32, 0_u32, 4_u32, 0_u32))?.ok()?;
        }
        7 => {
            let json = r#"{"capabilities":{"twin_socket":{"supported":true}}}"#;
            let twin = wire.ask(cmd::VERSION, &version(json))?;
            ensure!(twin.fds.len() == 1, "no twin socket");
            wire.map(3, 0, virtio::BASE, virtio::LEN, None)?.ok()?;
        }
        8 => {
            drop(wire);
            let mut disk = Disk::start(kit)?;
            disk.make_available(virtio::IN, 0, 65536)?;
            disk.kick()?;
        }
        9 => {
            drop(wire);
            let mut disk = Disk::start(kit)?;
            disk.request(virtio::OUT, 0, &[1; 512])?;
            disk.wire.send(cmd::RESET, 0, &[], &[])?;
        }
        10 => {
            drop(wire);
            let mut disk = Disk::start(kit)?;
            disk.make_available(virtio::IN, 0, 65536)?;
            disk.kick()?;
            disk.wire.send(cmd::DMA_UNMAP, 0, &bytes!(24_u32, 2_u32, 0_u64, 0_u64), &[])?;
        }
        _ => {
            wire.negotiate()?;
            for _ in 0..50 {
                wire.send(cmd::GET_INFO, 0, &info, &[])?;
            }
        }
    }
    Ok(())
}

fn thousand(kit: &Kit) -> Result<()> {
    let pid = kit.target()?.pid();
    // The first rounds grow what stays: stacks, buffers, the allocator's arenas.
    for round in 0..24 {
        converse(kit, round % 12).with_context(|| format!("first round {round}"))?;
    }
    let settled = || -> Result<(usize, usize, u64)> {
        // A served client means that nothing of the one before is under way; it stays while what is there is counted.
        let mut served = kit.open()?;
        served.is_in_step()?;
        belongings(pid)
    };
    let before = settled()?;
    for round in 0..ROUNDS {
        converse(kit, round % 12).with_context(|| format!("round {round}"))?;
    }
    let after = settled()?;
    ensure!(after.0 <= before.0, "{} descriptors before, {} after", before.0, after.0);
    ensure!(after.1 <= before.1 + 4, "{} mappings before, {} after", before.1, after.1);
    ensure!(after.2 <= before.2 + 4096, "{} KiB before, {} after", before.2, after.2);
    Disk::start(kit)?.request(virtio::OUT, 0, &[1; 512])
}
