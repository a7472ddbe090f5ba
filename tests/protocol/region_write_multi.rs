//! REGION_WRITE_MULTI: several writes in one message.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, ours,
    virtio::{self, Disk},
    wire::{NO_REPLY, bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    ours("in_order", "applied in order; the reply says how many", in_order),
    ours("count_and_length", "as many entries as wr_cnt", lengths),
    ours("entry_above_8_bytes", "count at most 8", long_entry),
    ours("200_posted", "QEMU sends up to 200, and wants no reply", posted),
    ours("too_many", "more than the limit of 256", too_many),
    ours("writes_behind_a_reset_wait", "the rest is held while one is pending, and then done", behind_reset),
];

fn entry(region: u32, offset: u64, data: &[u8]) -> Vec<u8> {
    let mut bytes = bytes!(offset, region, u32::try_from(data.len()).expect("short"));
    bytes.extend_from_slice(data);
    bytes.resize(24, 0);
    bytes
}

fn multi(entries: &[Vec<u8>]) -> Vec<u8> {
    [&(entries.len() as u64).to_ne_bytes()[..], &entries.concat()].concat()
}

fn in_order(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let entries: Vec<_> = (1..=7).map(|value| entry(7, 0x3c, &[value])).collect();
    let reply = wire.ask(cmd::REGION_WRITE_MULTI, &multi(&entries))?;
    ensure!(reply.payload == 7_u64.to_ne_bytes());
    ensure!(wire.read(7, 0x3c, 1)? == [7]);
    Ok(())
}

fn lengths(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let one = entry(7, 0x3c, &[1]);
    wire.ask(cmd::REGION_WRITE_MULTI, &[&2_u64.to_ne_bytes()[..], &one].concat())?.refused(errno::EINVAL)?;
    wire.ask(cmd::REGION_WRITE_MULTI, &[&u64::MAX.to_ne_bytes()[..], &one].concat())?
        .refused(errno::EINVAL)?;
    wire.ask(cmd::REGION_WRITE_MULTI, &[0; 4])?.refused(errno::EINVAL)?;
    ensure!(wire.ask(cmd::REGION_WRITE_MULTI, &0_u64.to_ne_bytes())?.ok()? == 0_u64.to_ne_bytes());
    wire.is_in_step()
}

fn long_entry(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let mut bad = entry(7, 0x3c, &[0; 8]);
    bad[12] = 9;
    wire.ask(cmd::REGION_WRITE_MULTI, &multi(&[bad]))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn posted(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let entries: Vec<_> = (0..200).map(|value| entry(7, 0x3c, &[value])).collect();
    wire.send(cmd::REGION_WRITE_MULTI, NO_REPLY, &multi(&entries), &[])?;
    ensure!(wire.read(7, 0x3c, 1)? == [199]);
    Ok(())
}

fn too_many(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let entries = vec![entry(7, 0x3c, &[1]); 256];
    ensure!(wire.ask(cmd::REGION_WRITE_MULTI, &multi(&entries))?.ok()? == 256_u64.to_ne_bytes());
    let entries = vec![entry(7, 0x3c, &[1]); 257];
    wire.ask(cmd::REGION_WRITE_MULTI, &multi(&entries))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn behind_reset(kit: &Kit) -> Result<()> {
    for _ in 0..20 {
        let mut disk = Disk::start(kit)?;
        disk.request(virtio::OUT, 0, &[1; 512])?;
        // Status to zero resets; what follows is a new driver's beginning and must not get lost, or run ahead.
        let entries = [entry(4, 20, &[0]), entry(4, 20, &[1]), entry(4, 20, &[3])];
        let reply = disk.wire.ask(cmd::REGION_WRITE_MULTI, &multi(&entries))?;
        ensure!(reply.payload == 3_u64.to_ne_bytes(), "{reply:?}");
        ensure!(disk.wire.read(4, 20, 1)? == [3], "the status after the reset");
    }
    Ok(())
}
