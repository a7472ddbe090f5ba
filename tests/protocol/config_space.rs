//! The configuration space as a guest finds it: header, capabilities, the command register's word.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, Disk, capability},
    wire::{bytes, cmd, count, eventfd, wait_for},
};

pub(super) const CASES: &[Case] = &[
    any("header_type_0", "an endpoint", header),
    any("capability_list_ends", "no loop, inside 256 bytes", list),
    any("read_only_bytes", "writes to vendor and device are ignored", read_only),
    any("bar_sizing", "ones read back as the size's mask", sizing),
    ours("status_rw1c", "ones clear, and set nothing", status),
    ours("power_management", "D0 and D3hot", power),
    ours("pcie_capability", "an endpoint with function-level reset", express),
    ours("serial_number", "extended capability 3", serial),
    ours("bus_master_off", "no DMA, no interrupt; latched, and served when it is on", bus_master),
    ours("memory_off", "accesses are ignored", memory_off),
    ours("msix_function_mask", "latched in the pending bits, fired on unmask", function_mask),
    ours("msix_table_and_pba", "real memory", table),
];

fn header(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    ensure!(wire.read(7, 0x0e, 1)?[0] & 0x7f == 0);
    Ok(())
}

fn list(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    if wire.read(7, 6, 1)?[0] & 0x10 == 0 {
        return Ok(());
    }
    let mut at = wire.read(7, 0x34, 1)?[0];
    let mut seen = Vec::new();
    while at != 0 {
        ensure!(at >= 0x40 && at % 4 == 0, "a capability at {at:#x}");
        ensure!(!seen.contains(&at), "the list loops");
        seen.push(at);
        at = wire.read(7, u64::from(at) + 1, 1)?[0];
    }
    Ok(())
}

fn read_only(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let before = wire.read(7, 0, 4)?;
    wire.write(7, 0, &[0x12, 0x34, 0x56, 0x78])?;
    ensure!(wire.read(7, 0, 4)? == before);
    Ok(())
}

fn sizing(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for bar in 0..6_u32 {
        let size = wire.region_size(bar)?;
        if size == 0 {
            continue;
        }
        let at = 0x10 + 4 * u64::from(bar);
        let before = wire.read(7, at, 4)?;
        wire.write(7, at, &[0xff; 4])?;
        let back = wire.read(7, at, 4)?;
        wire.write(7, at, &before)?;
        let mask = u32::from_le_bytes(back[..].try_into()?);
        let kind = if mask & 1 == 1 { 3 } else { 15 };
        let low = u64::from((!(mask & !kind)).wrapping_add(1));
        ensure!(low == size || size > u64::from(u32::MAX), "BAR {bar} of {size} bytes says {low}");
    }
    Ok(())
}

fn status(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let before = wire.read(7, 6, 2)?;
    wire.write(7, 6, &[0xff, 0xff])?;
    ensure!(wire.read(7, 6, 2)? == before);
    ensure!(before == [0x10, 0], "a capability list, and nothing else: {before:?}");
    Ok(())
}

fn power(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    let pm = capability(&mut disk.wire, 1)?;
    disk.wire.write(7, pm + 4, &[3, 0])?;
    ensure!(disk.wire.read(7, pm + 4, 1)?[0] & 3 == 3, "D3hot");
    ensure!(disk.wire.read(4, 20, 1)? == [0xff], "memory answers in D3hot");
    disk.wire.write(7, pm + 4, &[0, 0])?;
    ensure!(disk.wire.read(7, pm + 4, 1)?[0] & 0xb == 8, "D0, and No_Soft_Reset");
    disk.request(virtio::OUT, 0, &[1; 512])
}

fn express(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let at = capability(&mut wire, 0x10)?;
    let flags = u16::from_le_bytes(wire.read(7, at + 2, 2)?[..].try_into()?);
    ensure!(flags & 0xf == 2 && flags >> 4 & 0xf == 0, "version 2 endpoint: {flags:#x}");
    ensure!(wire.read(7, at + 7, 1)?[0] & 0x10 != 0, "FLR");
    Ok(())
}

fn serial(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    ensure!(wire.read(7, 0x100, 4)? == [3, 0, 1, 0]);
    ensure!(wire.read(7, 0x104, 8)? != [0; 8]);
    Ok(())
}

fn bus_master(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.request(virtio::OUT, 5, &[5; 512])?;
    let fd = eventfd()?;
    disk.wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 2_u32, 1_u32, 1_u32), &[fd.as_fd()])?.ok()?;
    // What was latched before it was assigned.
    wait_for(&fd)?;
    disk.wire.write(7, 4, &[2, 0])?;
    disk.make_available(virtio::IN, 5, 512)?;
    disk.kick()?;
    disk.wire.is_in_step()?;
    ensure!(!disk.is_done()?, "DMA without bus mastering");
    ensure!(count(&fd) == 0, "an interrupt without bus mastering");
    disk.wire.write(7, 4, &[6, 0])?;
    disk.kick()?;
    disk.wait()?;
    ensure!(disk.data(512)? == [5; 512]);
    wait_for(&fd)?;
    Ok(())
}

fn memory_off(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.wire.write(7, 4, &[4, 0])?;
    ensure!(disk.wire.read(4, 20, 1)? == [0xff], "a read without memory space");
    disk.wire.write(4, 20, &[0])?;
    disk.wire.write(7, 4, &[6, 0])?;
    ensure!(disk.wire.read(4, 20, 1)? == [15], "a write without memory space took effect");
    Ok(())
}

fn function_mask(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    let fd = eventfd()?;
    disk.wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 2_u32, 1_u32, 1_u32), &[fd.as_fd()])?.ok()?;
    let msix = capability(&mut disk.wire, 0x11)?;
    disk.wire.write(7, msix + 3, &[0xc0])?;
    disk.request(virtio::OUT, 0, &[1; 512])?;
    disk.wire.is_in_step()?;
    ensure!(count(&fd) == 0, "fired while masked");
    ensure!(disk.wire.read(2, 0, 1)?[0] & 2 != 0, "no pending bit");
    disk.wire.write(7, msix + 3, &[0x80])?;
    ensure!(wait_for(&fd)? == 1);
    ensure!(disk.wire.read(2, 0, 1)?[0] & 2 == 0, "still pending");
    Ok(())
}

fn table(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let size = wire.region_size(1)?;
    ensure!(size == 4096 && wire.region_size(2)? == 4096);
    wire.write(1, 0, &[1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0, 0, 0])?;
    ensure!(wire.read(1, 4, 4)? == [5, 6, 7, 8]);
    ensure!(wire.read(1, 28, 4)? == [1, 0, 0, 0], "vectors start masked");
    Ok(())
}
