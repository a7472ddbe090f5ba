//! DEVICE_GET_REGION_IO_FDS: eventfds for doorbells.

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, Disk},
    wire::{bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("malformed", "flags and count are zero; argsz has room for the fixed part", malformed),
    ours("too_little_room", "argsz says how much is needed, and nothing is passed", room),
    ours("entries", "offset, size, descriptor and type of each sub-region", entries),
    ours("region_without_doorbells", "an empty array", none),
    ours("kick_by_eventfd", "a signal is the write it stands for", kick),
];

fn malformed(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::GET_REGION_IO_FDS, &bytes!(15_u32, 0_u32, 4_u32, 0_u32))?.is_refused()?;
    wire.ask(cmd::GET_REGION_IO_FDS, &bytes!(16_u32, 1_u32, 4_u32, 0_u32))?.is_refused()?;
    wire.ask(cmd::GET_REGION_IO_FDS, &bytes!(16_u32, 0_u32, 4_u32, 1_u32))?.is_refused()?;
    wire.ask(cmd::GET_REGION_IO_FDS, &bytes!(16_u32, 0_u32, 99_u32, 0_u32))?.refused(errno::EINVAL)?;
    wire.ask(cmd::GET_REGION_IO_FDS, &[0; 8])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn room(kit: &Kit) -> Result<()> {
    let reply = kit.open()?.ask(cmd::GET_REGION_IO_FDS, &bytes!(16_u32, 0_u32, 4_u32, 0_u32))?;
    ensure!(reply.payload.len() == 16 && reply.fds.is_empty());
    ensure!(reply.u32(0)? == 16 + 2 * 40 && reply.u32(12)? == 2, "two queues: {reply:?}");
    Ok(())
}

fn entries(kit: &Kit) -> Result<()> {
    let reply = kit.open()?.ask(cmd::GET_REGION_IO_FDS, &bytes!(96_u32, 0_u32, 4_u32, 0_u32))?;
    ensure!(reply.payload.len() == 96 && reply.fds.len() == 2, "{reply:?}");
    for queue in 0..2_u32 {
        let at = 16 + 40 * queue as usize;
        ensure!(reply.u64(at)? == 0x3000 + 4 * u64::from(queue) && reply.u64(at + 8)? == 2);
        ensure!(reply.u32(at + 16)? == queue && reply.u32(at + 20)? == 0, "descriptor and type");
    }
    Ok(())
}

fn none(kit: &Kit) -> Result<()> {
    let reply = kit.open()?.ask(cmd::GET_REGION_IO_FDS, &bytes!(4096_u32, 0_u32, 7_u32, 0_u32))?;
    ensure!(reply.payload.len() == 16 && reply.u32(12)? == 0 && reply.fds.is_empty());
    Ok(())
}

fn kick(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.request(virtio::OUT, 1, &[7; 512])?;
    let reply = disk.wire.ask(cmd::GET_REGION_IO_FDS, &bytes!(96_u32, 0_u32, 4_u32, 0_u32))?;
    disk.make_available(virtio::IN, 1, 512)?;
    rustix::io::write(&reply.fds[0], &1_u64.to_ne_bytes())?;
    disk.wait()?;
    ensure!(disk.data(512)? == [7; 512]);
    Ok(())
}
