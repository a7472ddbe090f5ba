//! Memory whose file a peer shrinks behind the server's back: its own requests fail, the target lives.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, ours,
    virtio::{self, BASE, Disk, Irq, LEN},
    wire::memory,
};

pub(super) const CASES: &[Case] = &[
    ours("data_buffer", "the request fails; the next client is served", data),
    ours("rings", "the queue fails; the next client is served", rings),
    ours("whole_file_in_many_windows", "once, and again", many),
];

/// Where data are, in a file of their own.
const ELSEWHERE: u64 = 0x4000_0000;

fn data(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let (rings, buffer) = (memory(LEN)?, memory(0x1_0000)?);
    wire.map(3, 0, BASE, LEN, Some(rings.as_fd()))?.ok()?;
    wire.map(3, 0, ELSEWHERE, 0x1_0000, Some(buffer.as_fd()))?.ok()?;
    let mut disk = Disk::over(wire, rings, Irq::Msix)?;
    disk.make_available_at(virtio::IN, 0, ELSEWHERE, 4096)?;
    disk.kick()?;
    disk.wait()?;
    ensure!(disk.status()? == 0);
    rustix::fs::ftruncate(&buffer, 0)?;
    for kind in [virtio::IN, virtio::OUT] {
        disk.make_available_at(kind, 0, ELSEWHERE + 0x2000, 4096)?;
        disk.kick()?;
        disk.wait()?;
        ensure!(disk.status()? == 1, "kind {kind}: status {}", disk.status()?);
    }
    disk.request(virtio::OUT, 0, &[1; 512])?;
    drop(disk);
    Disk::start(kit)?.request(virtio::OUT, 0, &[1; 512])
}

fn rings(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.request(virtio::OUT, 0, &[1; 512])?;
    rustix::fs::ftruncate(&disk.file, 0)?;
    for _ in 0..10 {
        disk.kick()?;
    }
    disk.wire.is_in_step()?;
    drop(disk);
    Disk::start(kit)?.request(virtio::OUT, 0, &[1; 512])
}

fn many(kit: &Kit) -> Result<()> {
    for _ in 0..10 {
        let mut wire = kit.open()?;
        let file = memory(LEN)?;
        for part in 0..16 {
            wire.map(3, part * 0x1_0000, BASE + part * 0x1_0000, 0x1_0000, Some(file.as_fd()))?.ok()?;
        }
        let mut disk = Disk::over(wire, file, Irq::Msix)?;
        disk.request(virtio::OUT, 0, &[1; 512])?;
        rustix::fs::ftruncate(&disk.file, 0x4000)?;
        disk.make_available(virtio::OUT, 0, 512)?;
        disk.kick()?;
        disk.wait()?;
        // The status byte is in the same window, so it cannot be written either.
        ensure!(disk.status()? == 0xff, "status {}", disk.status()?);
    }
    kit.open()?.is_in_step()
}
