//! DEVICE_GET_IRQ_INFO.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    wire::{bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("all_types", "what exists is signalled by eventfd", all),
    any("index_out_of_range", "there is no type 5", out_of_range),
    any("short_argsz", "argsz below 16", short),
    ours("counts_and_flags", "INTx 1, MSI 0, MSI-X a vector per queue and one more, ERR and REQ 1", counts),
];

fn all(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for index in 0..5_u32 {
        let reply = wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, index, 0_u32))?;
        ensure!(reply.payload.len() == 16 && reply.u32(8)? == index);
        ensure!(reply.u32(12)? == 0 || reply.u32(4)? & 1 != 0, "type {index} exists and has no eventfd");
    }
    Ok(())
}

fn out_of_range(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, 5_u32, 0_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::GET_IRQ_INFO, &bytes!(15_u32, 0_u32, 0_u32, 0_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn counts(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for (index, count, flags) in [(0_u32, 1, 0b0111), (1, 0, 0b1001), (2, 3, 0b1001), (3, 1, 1), (4, 1, 1)] {
        let reply = wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, index, 0_u32))?;
        ensure!(reply.u32(12)? == count, "type {index}: {} interrupts", reply.u32(12)?);
        ensure!(reply.u32(4)? == flags, "type {index}: flags {:#b}", reply.u32(4)?);
    }
    Ok(())
}
