//! REGION_READ: any width and alignment, bounds.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    wire::{bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("config_in_one_go", "QEMU reads the whole configuration space at once", whole),
    any("every_width", "1, 2, 4 and 8 bytes read the same", widths),
    any("count_zero", "nothing is read, and that is right", zero),
    any("out_of_bounds", "behind the end, and wrapping", bounds),
    any("count_above_limit", "count above max_data_xfer_size", count),
    any("region_out_of_range", "there is no region 9", region),
    any("short_payload", "16 bytes", short),
    ours("odd_offsets", "any alignment into the registers", odd),
    ours("empty_region", "a region of no bytes has none to read", empty),
];

fn whole(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let size = u32::try_from(wire.region_size(7)?)?;
    let all = wire.read(7, 0, size)?;
    ensure!(all[0..4] != [0xff; 4] && all[0..4] != [0; 4], "no vendor and device");
    Ok(())
}

fn widths(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let bytes: Vec<u8> = (0..8).map(|at| Ok(wire.read(7, at, 1)?[0])).collect::<Result<_>>()?;
    for width in [2, 4, 8] {
        ensure!(wire.read(7, 0, width)? == bytes[..width as usize], "{width} bytes at once differ");
    }
    Ok(())
}

fn zero(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    ensure!(wire.read(7, 0, 0)?.is_empty());
    wire.is_in_step()
}

fn bounds(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let bar = wire.some_bar()?;
    for region in [7, bar] {
        let size = wire.region_size(region)?;
        for (offset, count) in [(size, 1), (size - 1, 2), (u64::MAX, 1), (u64::MAX - 1, 4)] {
            wire.ask(cmd::REGION_READ, &bytes!(offset, region, count as u32))?.is_refused()?;
        }
    }
    wire.is_in_step()
}

fn count(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::REGION_READ, &bytes!(0_u64, 7_u32, (1_u32 << 20) + 1))?.refused(errno::EINVAL)?;
    wire.ask(cmd::REGION_READ, &bytes!(0_u64, 7_u32, u32::MAX))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn region(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::REGION_READ, &bytes!(0_u64, 9_u32, 4_u32))?.is_refused()?;
    wire.ask(cmd::REGION_READ, &bytes!(0_u64, u32::MAX, 4_u32))?.is_refused()?;
    wire.is_in_step()
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::REGION_READ, &bytes!(0_u64, 7_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn odd(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let whole = wire.read(4, 0, 64)?;
    for offset in 0..16_u32 {
        for width in [1, 2, 3, 4, 5, 7, 8, 16] {
            let at = offset as usize;
            let part = wire.read(4, u64::from(offset), width)?;
            ensure!(part == whole[at..at + width as usize], "{width} bytes at {offset}");
        }
    }
    Ok(())
}

fn empty(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::REGION_READ, &bytes!(0_u64, 8_u32, 1_u32))?.refused(errno::EINVAL)
}
