//! The conversations of clients that exist: sequence, lengths and oddities as they are on the wire.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, Disk, Irq},
    wire::{NO_REPLY, Wire, bytes, cmd, eventfd, memory, message, version},
};

pub(super) const CASES: &[Case] = &[
    any("qemu_11_1", "as captured: VERSION of 214 bytes, MAPs, infos, SET_IRQS, reset", qemu),
    any("cloud_hypervisor", "minor 1, argsz 32, infos asked twice, no reset", cloud_hypervisor),
    any("spdk_initiator", "no JSON, id 0, requests of 4064 bytes, replies of 4096 at most", spdk),
    ours("spdk_initiator_never_kicks", "a driver that never writes the doorbell is served", never_kicks),
    ours("seabios_remaps_under_live_queues", "unmap and map of all memory in a burst", seabios),
    ours("vfio_user_1_rust_vmm", "fixed-size replies", fixed_size),
];

/// VERSION as QEMU 11.1.3 sends it: 214 bytes with the header.
const QEMU: &str = r#"{"capabilities": {"pgsizes": 4096, "max_msg_fds": 16, "max_dma_maps": 65535, "max_data_xfer_size": 1048576, "migration": {"max_bitmap_size": 268435456, "pgsize": 4096}, "write_multiple": true}}"#;

/// What a client asks of all regions: once with 32 bytes, and again where there is more.
fn regions(wire: &mut Wire, indices: &[u32]) -> Result<()> {
    for &index in indices {
        let request = |argsz: u32| bytes!(argsz, 0_u32, index, 0_u32, 0_u64, 0_u64);
        let first = wire.ask(cmd::GET_REGION_INFO, &request(32))?;
        let full = first.u32(0)?;
        ensure!(first.payload.len() <= 32);
        if full > 32 {
            let second = wire.ask(cmd::GET_REGION_INFO, &request(full))?;
            ensure!(second.payload.len() == full as usize, "message size is not 16 + argsz");
        }
    }
    Ok(())
}

fn qemu(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    let hello = message(0, cmd::VERSION, 0, &version(QEMU));
    ensure!(hello.len() == 214, "{} bytes", hello.len());
    wire.raw(&hello, &[])?;
    let answer = wire.reply(0, cmd::VERSION)?;
    ensure!(answer.payload.len() + 16 <= 214, "a longer reply is fatal to QEMU");
    let ram = memory(1 << 30)?;
    // RAM below and above the hole, ROM without a descriptor; sent in a burst.
    let maps = [
        (3_u32, 0_u64, 0_u64, 0xa_0000_u64, true),
        (1, 0, 0xc_0000, 0x1000, false),
        (3, 0x10_0000, 0x10_0000, 0x3ff0_0000, true),
    ];
    let mut ids = Vec::new();
    for (flags, offset, address, size, shared) in maps {
        let fds: Vec<_> = shared.then(|| ram.as_fd()).into_iter().collect();
        ids.push(wire.send(cmd::DMA_MAP, 0, &bytes!(32_u32, flags, offset, address, size), &fds)?);
    }
    for id in ids {
        wire.reply(id, cmd::DMA_MAP)?.ok()?;
    }
    wire.is_in_step()?;
    regions(&mut wire, &[0, 1, 2, 3, 4, 5, 7])?;
    for index in [3_u32, 2] {
        wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, index, 0_u32))?.ok()?;
    }
    let size = u32::try_from(wire.region_size(7)?)?;
    wire.read(7, 0, size)?;
    let (intx, err) = (eventfd()?, eventfd()?);
    wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 0_u32, 0_u32, 1_u32), &[intx.as_fd()])?.ok()?;
    wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 3_u32, 0_u32, 1_u32), &[err.as_fd()])?.ok()?;
    // The reset at power-on: the pin off, command 0, reset, the pin again, and unmasked.
    wire.ask(cmd::SET_IRQS, &bytes!(20_u32, 0x21_u32, 0_u32, 0_u32, 0_u32))?.ok()?;
    wire.write(7, 4, &[0, 0])?;
    wire.ask(cmd::RESET, &[])?.ok()?;
    wire.ask_with(cmd::SET_IRQS, &bytes!(20_u32, 0x24_u32, 0_u32, 0_u32, 1_u32), &[intx.as_fd()])?.ok()?;
    wire.ask(cmd::SET_IRQS, &bytes!(20_u32, 0x11_u32, 0_u32, 0_u32, 1_u32))?.ok()?;
    for bar in 0..6_u64 {
        wire.write(7, 0x10 + 4 * bar, &[0; 4])?;
    }
    wire.send(cmd::REGION_WRITE, NO_REPLY, &[&bytes!(0x3c_u64, 7_u32, 1_u32)[..], &[0xb]].concat(), &[])?;
    ensure!(wire.read(7, 0x3c, 1)? == [0xb]);
    wire.unmap(0, 0, 0xa_0000)?.ok()?;
    wire.is_in_step()
}

fn cloud_hypervisor(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    let json =
        r#"{"capabilities":{"max_msg_fds":1,"max_data_xfer_size":1048576,"migration":{"pgsize":4096}}}"#;
    let payload = [&bytes!(0_u16, 1_u16)[..], json.as_bytes(), &[0]].concat();
    wire.ask(cmd::VERSION, &payload)?.ok()?;
    ensure!(wire.ask(cmd::GET_INFO, &bytes!(32_u32, 0_u32, 0_u32, 0_u32))?.ok()?.len() == 16);
    regions(&mut wire, &[0, 1, 2, 3, 4, 5, 6, 7, 8])?;
    let ram = memory(1 << 20)?;
    wire.map(3, 0, 0, 1 << 20, Some(ram.as_fd()))?.ok()?;
    for index in 0..5_u32 {
        wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, index, 0_u32))?.ok()?;
    }
    let fds: Vec<_> = (0..3).map(|_| eventfd()).collect::<Result<_>>()?;
    let borrowed: Vec<_> = fds.iter().map(AsFd::as_fd).collect();
    let count = wire.ask(cmd::GET_IRQ_INFO, &bytes!(16_u32, 0_u32, 2_u32, 0_u32))?.u32(12)?.min(3);
    if count > 0 {
        let request = bytes!(20_u32, 0x24_u32, 2_u32, 0_u32, count);
        wire.ask_with(cmd::SET_IRQS, &request, &borrowed[..count as usize])?.ok()?;
    }
    ensure!(wire.unmap(0, 0, 1 << 20)?.ok()?.len() == 24);
    Ok(())
}

fn spdk(kit: &Kit) -> Result<()> {
    let mut wire = kit.connect()?;
    let mut ask = |command: u16, payload: &[u8]| -> Result<usize> {
        wire.raw(&message(0, command, 0, payload), &[])?;
        let payload = wire.reply(0, command)?.ok()?;
        ensure!(payload.len() <= 4096, "its buffer has 4096 bytes, and it does not look");
        Ok(payload.len())
    };
    ask(cmd::VERSION, &bytes!(0_u16, 1_u16))?;
    ask(cmd::GET_INFO, &bytes!(16_u32, 0_u32, 0_u32, 0_u32))?;
    for index in 0..9_u32 {
        let mut request = bytes!(4064_u32, 0_u32, index, 0_u32, 0_u64, 0_u64);
        request.resize(4064, 0);
        ask(cmd::GET_REGION_INFO, &request)?;
    }
    ask(cmd::REGION_READ, &bytes!(0_u64, 7_u32, 4_u32))?;
    ask(cmd::REGION_WRITE, &[&bytes!(4_u64, 7_u32, 2_u32)[..], &[4, 4]].concat())?;
    Ok(())
}

fn never_kicks(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    disk.make_available(virtio::IN, 0, 512)?;
    disk.wait()?;
    ensure!(disk.status()? == 0);
    Ok(())
}

fn seabios(kit: &Kit) -> Result<()> {
    let mut disk = Disk::start(kit)?;
    for round in 0..50_u8 {
        disk.request(virtio::OUT, 1, &[round; 512])?;
        let unmap =
            disk.wire.send(cmd::DMA_UNMAP, 0, &bytes!(24_u32, 0_u32, virtio::BASE, virtio::LEN), &[])?;
        let half = virtio::LEN / 2;
        let mut maps = Vec::new();
        for part in 0..2_u64 {
            let request = bytes!(32_u32, 3_u32, part * half, virtio::BASE + part * half, half);
            maps.push(disk.wire.send(cmd::DMA_MAP, 0, &request, &[disk.file.as_fd()])?);
        }
        disk.wire.reply(unmap, cmd::DMA_UNMAP)?.ok()?;
        for id in maps {
            disk.wire.reply(id, cmd::DMA_MAP)?.ok()?;
        }
        disk.request(virtio::IN, 1, &[0; 512])?;
        ensure!(disk.data(512)? == [round; 512], "the queue lost its data");
        disk.wire.unmap(2, 0, 0)?.ok()?;
        disk.wire.map(3, 0, virtio::BASE, virtio::LEN, Some(disk.file.as_fd()))?.ok()?;
    }
    Ok(())
}

fn fixed_size(kit: &Kit) -> Result<()> {
    // It ignores the error flag and reads a fixed length: what a guest can reach must never be refused.
    let mut disk = Disk::start_with(kit, Irq::Pin)?;
    disk.wire.write(7, 4, &[0, 0])?;
    for region in [1, 2, 4, 7] {
        let size = disk.wire.region_size(region)?;
        for offset in (0..size.min(0x4000)).step_by(509) {
            disk.wire.read(region, offset.min(size - 4), 4)?;
            disk.wire.write(region, offset.min(size - 4), &[0xff; 4])?;
            disk.wire.write(7, 4, &[0, 0])?;
        }
    }
    Ok(())
}
