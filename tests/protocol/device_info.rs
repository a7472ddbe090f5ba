//! DEVICE_GET_INFO.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any,
    wire::{bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("is_a_pci_device", "9 regions and 5 interrupt types of a vfio PCI device", pci),
    any("argsz_32", "argsz is the maximum: Cloud Hypervisor says 32", longer),
    any("short_argsz", "argsz below 16", short),
];

fn pci(kit: &Kit) -> Result<()> {
    let reply = kit.open()?.ask(cmd::GET_INFO, &bytes!(16_u32, 0_u32, 0_u32, 0_u32))?;
    ensure!(reply.u32(0)? == 16, "argsz is {}", reply.u32(0)?);
    ensure!(reply.u32(4)? & 2 != 0, "not a PCI device");
    ensure!(
        reply.u32(8)? == 9 && reply.u32(12)? == 5,
        "{} regions, {} interrupts",
        reply.u32(8)?,
        reply.u32(12)?
    );
    Ok(())
}

fn longer(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    ensure!(wire.ask(cmd::GET_INFO, &bytes!(32_u32, 0_u32, 0_u32, 0_u32))?.ok()?.len() == 16);
    wire.is_in_step()
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::GET_INFO, &bytes!(15_u32, 0_u32, 0_u32, 0_u32))?.refused(errno::EINVAL)?;
    wire.ask(cmd::GET_INFO, &bytes!(16_u32, 0_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}
