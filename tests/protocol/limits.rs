//! Limits, at the limit and one past it.

use std::os::{fd::AsFd, unix::net::UnixStream};

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, BASE, Disk, Irq, LEN},
    wire::{Private, bytes, cmd, errno, memory, version},
};

pub(super) const CASES: &[Case] = &[
    any("message_size", "an access of max_data_xfer_size is long enough for a message", message_size),
    ours("windows", "65535 windows; the next is refused, and they can be taken back", windows),
    ours("descriptors_in_a_message", "16; with 17 the connection ends", descriptors),
    ours("connections", "one is served, 17 wait, the next is refused", connections),
    ours("bounce_buffer", "8 MiB a chain without shared memory; with one byte more the queue ends", bounce),
    ours("held_commands", "64 commands without an answer to ours; then DMA is given up", held),
    ours("replies_wait_for_the_reader", "a client that does not read is not read", slow_reader),
    ours("log_lines", "10 lines a second about one endpoint's clients", log_lines),
];

fn message_size(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let head = bytes!(0_u64, 7_u32, 1_u32 << 20);
    // Long, whole, and out of the region's bounds: refused for that, and the stream goes on.
    wire.ask(cmd::REGION_WRITE, &[&head[..], &vec![0; 1 << 20]].concat())?.is_refused()?;
    wire.ask(cmd::REGION_WRITE, &[&head[..], &vec![0; (1 << 20) + 1]].concat())?.is_refused()?;
    wire.is_in_step()
}

fn windows(kit: &Kit) -> Result<()> {
    const MAX: u64 = 65535;
    let mut wire = kit.open()?;
    let request = |nth: u64| bytes!(32_u32, 3_u32, 0_u64, nth * 0x2000, 0x1000_u64);
    for chunk in (0..MAX).collect::<Vec<_>>().chunks(100) {
        let ids: Vec<_> =
            chunk.iter().map(|&nth| wire.send(cmd::DMA_MAP, 0, &request(nth), &[])).collect::<Result<_>>()?;
        for id in ids {
            wire.reply(id, cmd::DMA_MAP)?.ok()?;
        }
    }
    wire.ask(cmd::DMA_MAP, &request(MAX))?.refused(errno::ENOSPC)?;
    wire.unmap(0, 0x2000, 0x1000)?.ok()?;
    wire.ask(cmd::DMA_MAP, &request(MAX))?.ok()?;
    wire.unmap(2, 0, 0)?.ok()?;
    wire.is_in_step()
}

fn descriptors(kit: &Kit) -> Result<()> {
    let file = memory(0x1000)?;
    let info = bytes!(16_u32, 0_u32, 0_u32, 0_u32);
    let mut wire = kit.open()?;
    wire.ask_with(cmd::GET_INFO, &info, &[file.as_fd(); 16])?.ok()?;
    wire.is_in_step()?;
    wire.send(cmd::GET_INFO, 0, &info, &[file.as_fd(); 17])?;
    wire.is_closed()
}

fn connections(kit: &Kit) -> Result<()> {
    let mut served = kit.open()?;
    let address = rustix::net::SocketAddrUnix::new(&kit.socket)?;
    let connect = || -> Result<rustix::io::Result<UnixStream>> {
        let flags = rustix::net::SocketFlags::NONBLOCK;
        let (family, kind) = (rustix::net::AddressFamily::UNIX, rustix::net::SocketType::STREAM);
        let socket = rustix::net::socket_with(family, kind, flags, None)?;
        Ok(rustix::net::connect(&socket, &address).map(|()| UnixStream::from(socket)))
    };
    let mut waiting = Vec::new();
    for nth in 0..17 {
        waiting.push(connect()?.map_err(|errno| anyhow::anyhow!("connection {nth} that waits: {errno}"))?);
    }
    ensure!(connect()?.err() == Some(rustix::io::Errno::AGAIN), "one more than the limit may wait");
    served.is_in_step()?;
    drop(waiting);
    drop(served);
    kit.open()?.is_in_step()
}

/// A disk whose `len` bytes of memory are reached by messages.
fn private(kit: &Kit, len: u64) -> Result<Disk> {
    let mut wire = kit.connect()?;
    wire.ask(cmd::VERSION, &version("{}"))?.ok()?;
    wire.map(3, 0, BASE, len, None)?.ok()?;
    let file = memory(len)?;
    let private = Private { file: file.try_clone()?, base: BASE, narrow: false, answered: 0, refuse: false };
    wire.serve_memory(private);
    Disk::over(wire, file, Irq::Msix)
}

fn bounce(kit: &Kit) -> Result<()> {
    // With the header's 16 bytes and the status.
    const DATA_MAX: u32 = (8 << 20) - 17;
    let mut disk = private(kit, 16 << 20)?;
    disk.make_available(virtio::OUT, 0, DATA_MAX)?;
    disk.kick()?;
    disk.wait()?;
    ensure!(disk.status()? == 1, "no whole number of blocks: status {}", disk.status()?);
    disk.request(virtio::OUT, 0, &[1; 512])?;
    disk.make_available(virtio::OUT, 0, DATA_MAX + 1)?;
    disk.kick()?;
    disk.needs_reset()?;
    disk.drive(Irq::Msix)?;
    disk.request(virtio::OUT, 0, &[1; 512])
}

fn held(kit: &Kit) -> Result<()> {
    let mut disk = private(kit, LEN)?;
    disk.request(virtio::OUT, 0, &[1; 512])?;
    disk.make_available(virtio::IN, 0, 512)?;
    disk.kick()?;
    // A reset has to wait for the request, which waits for answers that do not come; commands pile up behind it.
    let mut ids = vec![disk.wire.send(cmd::RESET, 0, &[], &[])?];
    for _ in 0..80 {
        ids.push(disk.wire.send(cmd::REGION_READ, 0, &bytes!(0_u64, 7_u32, 4_u32), &[])?);
    }
    let mut seen = Vec::new();
    while seen.len() < ids.len() {
        let message = disk.wire.receive()?.ok_or_else(|| anyhow::anyhow!("closed"))?;
        if message.flags & 0xf == 1 {
            seen.push(message.id);
        }
    }
    ensure!(seen == ids, "answers are missing, or out of order");
    Ok(())
}

fn slow_reader(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let request = bytes!(0_u64, 7_u32, 4096_u32);
    wire.stream().set_nonblocking(true)?;
    let mut sent = 0_u32;
    // The server stops reading when its own replies are not taken: then the socket is full in both directions.
    for _ in 0..1_000_000 {
        if wire.send(cmd::REGION_READ, 0, &request, &[]).is_err() {
            break;
        }
        sent += 1;
    }
    ensure!(sent < 100_000, "{sent} commands were taken from a client that reads nothing");
    drop(wire);
    kit.open()?.is_in_step()
}

fn log_lines(kit: &Kit) -> Result<()> {
    let lines = || -> Result<usize> {
        Ok(kit.target()?.log().lines().filter(|line| line.contains("a client's command is refused")).count())
    };
    let mut wire = kit.open()?;
    let before = lines()?;
    let start = std::time::Instant::now();
    // Longer than a second: the first may be used up by the cases before.
    while start.elapsed() < std::time::Duration::from_millis(1500) {
        wire.ask(99, &[0; 8])?.refused(errno::EINVAL)?;
    }
    let seconds = usize::try_from(start.elapsed().as_secs())? + 2;
    let written = lines()? - before;
    ensure!(written <= 10 * seconds, "{written} lines in {seconds} s");
    ensure!(written > 0, "nothing is logged at all");
    Ok(())
}
