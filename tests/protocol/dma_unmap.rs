//! DMA_UNMAP: exact ranges, ALL, what is not there.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    wire::{bytes, cmd, errno, memory},
};

pub(super) const CASES: &[Case] = &[
    any("echoes_the_request", "the server responds with the original DMA entry", echo),
    any("not_mapped", "what is not mapped cannot be unmapped", missing),
    any("range_is_free_again", "unmapped means it can be mapped", again),
    any("part_of_a_window", "must match exactly a previous mapping", part),
    any("short_argsz", "argsz below 24", short),
    any("unknown_flags", "flags is unused in this version", unknown_flags),
    ours("all", "ALL with a range of zero (libvfio-user; QEMU tears down with it)", all),
    ours("all_with_range", "ALL wants address and size zero", all_with_range),
    ours("range_with_many", "QEMU behind a vIOMMU unmaps ranges of many windows", many),
    ours("file_is_closed", "every reference is released before the reply", released),
];

fn echo(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x1000)?;
    wire.map(3, 0, 0x10_0000, 0x1000, Some(file.as_fd()))?.ok()?;
    let reply = wire.unmap(0, 0x10_0000, 0x1000)?.ok()?;
    ensure!(reply == bytes!(24_u32, 0_u32, 0x10_0000_u64, 0x1000_u64));
    Ok(())
}

fn missing(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.unmap(0, 0x10_0000, 0x1000)?.refused(errno::ENOENT)?;
    wire.is_in_step()
}

fn again(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x2000)?;
    for offset in [0, 0x1000, 0] {
        wire.map(3, offset, 0x10_0000, 0x1000, Some(file.as_fd()))?.ok()?;
        wire.unmap(0, 0x10_0000, 0x1000)?.ok()?;
    }
    Ok(())
}

fn part(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x4000)?;
    wire.map(3, 0, 0x10_0000, 0x4000, Some(file.as_fd()))?.ok()?;
    wire.unmap(0, 0x10_0000, 0x1000)?.is_refused()?;
    wire.unmap(0, 0x10_1000, 0x4000)?.is_refused()?;
    wire.unmap(0, 0x10_0000, 0x4000)?.ok()?;
    Ok(())
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::DMA_UNMAP, &bytes!(23_u32, 0_u32, 0_u64, 0x1000_u64))?.refused(errno::EINVAL)?;
    wire.ask(cmd::DMA_UNMAP, &bytes!(24_u32, 0_u32, 0_u64))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn unknown_flags(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.map(3, 0, 0x10_0000, 0x1000, None)?.ok()?;
    wire.unmap(1 << 7, 0x10_0000, 0x1000)?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn all(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for start in [0x1000, 0x10_0000, 0x1_0000_0000] {
        wire.map(3, 0, start, 0x1000, None)?.ok()?;
    }
    wire.unmap(2, 0, 0)?.ok()?;
    wire.unmap(2, 0, 0)?.ok()?;
    wire.unmap(0, 0x1000, 0x1000)?.refused(errno::ENOENT)
}

fn all_with_range(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.unmap(2, 0x1000, 0x1000)?.refused(errno::EINVAL)?;
    wire.unmap(3, 0, 0)?.refused(errno::EINVAL)
}

fn many(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for page in 0..16 {
        wire.map(3, 0, page * 0x2000, 0x1000, None)?.ok()?;
    }
    wire.unmap(0, 0, 0x10_0000)?.ok()?;
    wire.map(3, 0, 0, 0x10_0000, None)?.ok()?;
    Ok(())
}

fn released(kit: &Kit) -> Result<()> {
    let pid = kit.target()?.pid();
    let maps = || std::fs::read_to_string(format!("/proc/{pid}/maps"));
    let mut wire = kit.open()?;
    let file = rustix::fs::memfd_create("kit-released", rustix::fs::MemfdFlags::CLOEXEC)?;
    rustix::fs::ftruncate(&file, 0x1000)?;
    wire.map(3, 0, 0x10_0000, 0x1000, Some(file.as_fd()))?.ok()?;
    ensure!(maps()?.contains("kit-released"), "not mapped");
    wire.unmap(0, 0x10_0000, 0x1000)?.ok()?;
    ensure!(!maps()?.contains("kit-released"), "still mapped when the reply came");
    Ok(())
}
