//! DEVICE_RESET, and function-level reset.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, Disk},
    wire::{bytes, cmd, count, errno, eventfd},
};

pub(super) const CASES: &[Case] = &[
    any("no_payload_either_way", "there is no payload", plain),
    any("with_payload", "a payload is malformed", payload),
    ours("registers_are_as_after_power_on", "command, BARs and status", power_on),
    ours("windows_and_eventfds_stay", "they belong to the client", kept),
    ours("function_level_reset", "the same by Initiate Function Level Reset", flr),
    ours("under_load", "requests in flight are waited for", under_load),
];

fn plain(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    ensure!(wire.ask(cmd::RESET, &[])?.ok()?.is_empty());
    wire.is_in_step()
}

fn payload(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::RESET, &[0; 4])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn power_on(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.wire.write(7, 0x20, &[0, 0, 0, 0xfe])?;
    disk.wire.ask(cmd::RESET, &[])?.ok()?;
    ensure!(disk.wire.read(7, 4, 2)? == [0, 0] && disk.wire.read(7, 0x20, 4)? == [0; 4]);
    disk.wire.write(7, 4, &[6, 0])?;
    ensure!(disk.wire.read(4, 20, 1)? == [0], "the device status");
    Ok(())
}

fn kept(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.request(virtio::OUT, 3, &[3; 512])?;
    disk.wire.ask(cmd::RESET, &[])?.ok()?;
    disk.drive(virtio::Irq::Msix)?;
    disk.request(virtio::IN, 3, &[0; 512])?;
    ensure!(disk.data(512)? == [3; 512]);
    let fd = eventfd()?;
    disk.wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 2_u32, 0_u32, 1_u32), &[fd.as_fd()])?.ok()?;
    disk.wire.ask(cmd::RESET, &[])?.ok()?;
    disk.wire.ask(cmd::SET_IRQS, &bytes!(20_u32, 0x21_u32, 2_u32, 0_u32, 1_u32))?.ok()?;
    ensure!(count(&fd) == 1, "the eventfd is gone");
    Ok(())
}

fn flr(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    let express = virtio::capability(&mut disk.wire, 0x10)?;
    ensure!(disk.wire.read(7, express + 7, 1)?[0] & 0x10 != 0, "FLR is not offered");
    disk.wire.write(7, express + 8, &[0, 0x80])?;
    ensure!(disk.wire.read(7, 4, 2)? == [0, 0]);
    disk.drive(virtio::Irq::Msix)?;
    disk.request(virtio::OUT, 0, &[1; 512])
}

fn under_load(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    for round in 0..50 {
        disk.request(virtio::OUT, round, &[1; 512])?;
        disk.make_available(virtio::IN, round, 4096)?;
        disk.kick()?;
        disk.wire.ask(cmd::RESET, &[])?.ok()?;
        disk.drive(virtio::Irq::Msix)?;
    }
    Ok(())
}
