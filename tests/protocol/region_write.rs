//! REGION_WRITE: echo, lengths, bounds, posted writes.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    wire::{NO_REPLY, bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("echo", "the reply repeats offset, region and count", echo),
    any("posted", "No_reply: done before the next command is answered", posted),
    any("body_shorter_or_longer_than_count", "count is the length of the data", body),
    any("out_of_bounds", "behind the end, and wrapping", bounds),
    any("count_zero", "nothing is written, and that is right", zero),
    ours("one_byte_of_a_register", "MSI-X enable by a write of its upper byte", one_byte),
    ours("two_registers_at_once", "eight bytes over two registers", wide),
];

/// Interrupt Line: a byte that is the software's own (PCI Local Bus 3.0, 6.2.4).
const LINE: u64 = 0x3c;

fn echo(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.write(7, LINE, &[0x5a])?;
    ensure!(wire.read(7, LINE, 1)? == [0x5a]);
    Ok(())
}

fn posted(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for value in 0..100_u8 {
        let request = [&bytes!(LINE, 7_u32, 1_u32)[..], &[value]].concat();
        wire.send(cmd::REGION_WRITE, NO_REPLY, &request, &[])?;
        ensure!(wire.read(7, LINE, 1)? == [value]);
    }
    Ok(())
}

fn body(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let head = bytes!(LINE, 7_u32, 2_u32);
    wire.ask(cmd::REGION_WRITE, &[&head[..], &[1]].concat())?.refused(errno::EINVAL)?;
    wire.ask(cmd::REGION_WRITE, &[&head[..], &[1, 2, 3]].concat())?.refused(errno::EINVAL)?;
    wire.ask(cmd::REGION_WRITE, &head[..12])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn bounds(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let size = wire.region_size(7)?;
    for offset in [size, size - 1, u64::MAX] {
        wire.ask(cmd::REGION_WRITE, &[&bytes!(offset, 7_u32, 2_u32)[..], &[0, 0]].concat())?.is_refused()?;
    }
    wire.is_in_step()
}

fn zero(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.write(7, LINE, &[])
}

fn one_byte(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let msix = super::virtio::capability(&mut wire, 0x11)?;
    wire.write(7, msix + 3, &[0x80])?;
    ensure!(wire.read(7, msix + 2, 2)? == [2, 0x80]);
    Ok(())
}

fn wide(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    // driver_feature_select and driver_feature (virtio 1.2, 4.1.4.3).
    wire.write(4, 8, &[1, 0, 0, 0, 1, 0, 0, 0])?;
    ensure!(wire.read(4, 8, 8)? == [1, 0, 0, 0, 1, 0, 0, 0]);
    Ok(())
}
