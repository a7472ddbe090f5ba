//! DMA_READ and DMA_WRITE: a disk on memory that its client does not share.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    virtio::{self, BASE, Disk, Irq, LEN},
    wire::{Private, Wire, bytes, cmd, errno, memory, version},
};

pub(super) const CASES: &[Case] = &[
    any("from_the_client", "server -> client only", wrong_side),
    ours("disk_without_shared_memory", "the DMA region is accessed by messages", works),
    ours("shared_memory_needs_none", "a guest with shared memory never sees them", never),
    ours("narrow_layout", "QEMU's count of 32 bits is recognised", narrow),
    ours("small_transfers", "split by the client's max_data_xfer_size", small),
    ours("refused_by_the_client", "an error is an I/O error, the target lives", refused),
    ours("data_only", "shared rings, private data: the request fails, the next works", data_only),
    ours(
        "answers_wait_for_no_dma",
        "a client that answers no DMA before its own command is answered (QEMU)",
        deadlock,
    ),
    ours("reset_between_messages", "a reset under way does not lock up the two", reset),
];

fn wrong_side(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::DMA_READ, &bytes!(0_u64, 16_u64))?.refused(errno::EINVAL)?;
    wire.ask(cmd::DMA_WRITE, &bytes!(0_u64, 4_u64, 0_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

/// A disk whose client answers DMA messages.
fn private(kit: &Kit, json: &str, narrow: bool) -> Result<Disk> {
    let mut wire = kit.connect()?;
    wire.ask(cmd::VERSION, &version(json))?.ok()?;
    wire.map(3, 0, BASE, LEN, None)?.ok()?;
    let file = memory(LEN)?;
    wire.serve_memory(Private { file: file.try_clone()?, base: BASE, narrow, answered: 0, refuse: false });
    Disk::over(wire, file, Irq::Msix)
}

fn round_trip(disk: &mut Disk) -> Result<()> {
    for (sector, len) in [(0, 512), (7, 4096), (100, 65536)] {
        let text: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
        disk.request(virtio::OUT, sector, &text)?;
        disk.request(virtio::IN, sector, &vec![0xee; len])?;
        ensure!(disk.data(len)? == text, "{len} bytes came back changed");
    }
    Ok(())
}

fn works(kit: &Kit) -> Result<()> {
    let mut disk = private(kit, "{}", false)?;
    round_trip(&mut disk)?;
    ensure!(disk.wire.private()?.answered > 0);
    Ok(())
}

fn never(kit: &Kit) -> Result<()> {
    // `Wire` takes any command from the server for an error here.
    round_trip(&mut Disk::start(kit)?)
}

fn narrow(kit: &Kit) -> Result<()> {
    round_trip(&mut private(kit, "{}", true)?)
}

fn small(kit: &Kit) -> Result<()> {
    let mut disk = private(kit, r#"{"capabilities":{"max_data_xfer_size":1000}}"#, false)?;
    round_trip(&mut disk)?;
    ensure!(disk.wire.private()?.answered > 2 * 65536 / 1000);
    drop(disk);
    // The least that there is.
    round_trip(&mut private(kit, r#"{"capabilities":{"max_data_xfer_size":512}}"#, false)?)
}

fn refused(kit: &Kit) -> Result<()> {
    let mut disk = private(kit, "{}", false)?;
    disk.request(virtio::OUT, 0, &[1; 512])?;
    disk.wire.private()?.refuse = true;
    disk.make_available(virtio::IN, 0, 512)?;
    disk.kick()?;
    disk.wire.is_in_step()?;
    disk.wire.private()?.refuse = false;
    disk.drive(Irq::Msix)?;
    disk.request(virtio::OUT, 0, &[1; 512])
}

fn data_only(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(LEN)?;
    wire.map(3, 0, BASE, LEN, Some(file.as_fd()))?.ok()?;
    wire.map(3, 0, 0x4000_0000, 0x1000, None)?.ok()?;
    let mut disk = Disk::over(wire, file, Irq::Msix)?;
    disk.make_available_at(virtio::IN, 0, 0x4000_0000, 512)?;
    disk.kick()?;
    disk.wait()?;
    ensure!(disk.status()? == 1, "status {}", disk.status()?);
    disk.request(virtio::OUT, 0, &[1; 512])
}

fn deadlock(kit: &Kit) -> Result<()> {
    let elsewhere = bytes!(24_u32, 0_u32, 0x4000_0000_u64, 0x1000_u64);
    let commands = [
        (cmd::REGION_READ, bytes!(0x1000_u64, 4_u32, 1_u32)),
        // The pin is unmasked.
        (cmd::SET_IRQS, bytes!(20_u32, 0x11_u32, 0_u32, 0_u32, 1_u32)),
        // A window goes that the queue does not use, and the device stops being a bus master and becomes one again.
        (cmd::DMA_UNMAP, elsewhere),
        (cmd::REGION_WRITE, [&bytes!(4_u64, 7_u32, 2_u32)[..], &[2, 0]].concat()),
        (cmd::REGION_WRITE, [&bytes!(4_u64, 7_u32, 2_u32)[..], &[6, 0]].concat()),
    ];
    let mut disk = private(kit, "{}", false)?;
    disk.wire.map(3, 0, 0x4000_0000, 0x1000, None)?.ok()?;
    for round in 0..4 {
        for (command, payload) in &commands {
            disk.make_available(virtio::OUT, round, 65536)?;
            let mut unanswered = Vec::new();
            let kick = [&bytes!(0x3000_u64, 4_u32, 2_u32)[..], &[0, 0]].concat();
            for (command, payload) in [(cmd::REGION_WRITE, &kick), (*command, payload)] {
                let (more, reply) = disk.wire.ask_unanswering(command, payload)?;
                unanswered.extend(more);
                reply.ok()?;
            }
            disk.wire.catch_up(&unanswered)?;
            if *command == cmd::DMA_UNMAP {
                disk.wire.map(3, 0, 0x4000_0000, 0x1000, None)?.ok()?;
            }
            if payload.ends_with(&[2, 0]) {
                disk.wire.write(7, 4, &[6, 0])?;
            }
            disk.wait()?;
            ensure!(disk.status()? == 0, "command {command}: status {}", disk.status()?);
        }
    }
    Ok(())
}

fn reset(kit: &Kit) -> Result<()> {
    let mut disk = private(kit, "{}", false)?;
    for round in 0..20 {
        disk.request(virtio::OUT, round, &[1; 512])?;
        disk.make_available(virtio::IN, round, 512)?;
        disk.kick()?;
        disk.wire.ask(cmd::RESET, &[])?.ok()?;
        disk.drive(Irq::Msix)?;
    }
    Ok(())
}

/// A disk over a twin socket, and the thread that answers there.
pub(super) fn with_twin(kit: &Kit) -> Result<(Disk, std::thread::JoinHandle<Result<u64>>)> {
    let mut wire = kit.connect()?;
    let json = r#"{"capabilities":{"max_msg_fds":8,"twin_socket":{"supported":true}}}"#;
    let mut reply = wire.ask(cmd::VERSION, &version(json))?;
    ensure!(reply.fds.len() == 1, "{} descriptors", reply.fds.len());
    let text = String::from_utf8_lossy(&reply.payload[4..reply.payload.len() - 1]).into_owned();
    let json: serde_json::Value = serde_json::from_str(&text)?;
    let twin = &json["capabilities"]["twin_socket"];
    ensure!(twin["supported"] == true && twin["fd_index"] == 0, "{text}");
    let mut twin = Wire::over(reply.fds.remove(0).into())?;
    let file = memory(LEN)?;
    let private = Private { file: file.try_clone()?, base: BASE, narrow: false, answered: 0, refuse: false };
    twin.serve_memory(private);
    let answering = std::thread::spawn(move || twin.serve_until_closed());
    wire.map(3, 0, BASE, LEN, None)?.ok()?;
    Ok((Disk::over(wire, file, Irq::Msix)?, answering))
}

/// Requests over a twin socket come back as over one.
pub(super) fn round_trip_twin(kit: &Kit) -> Result<u64> {
    let (mut disk, answering) = with_twin(kit)?;
    round_trip(&mut disk)?;
    drop(disk);
    answering.join().map_err(|_panic| anyhow::anyhow!("the answering thread panicked"))?
}
