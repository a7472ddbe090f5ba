//! DEVICE_GET_REGION_INFO: sizes, flags, the sparse-mmap capability.

use anyhow::{Context, Result, ensure};
use serde_json::json;

use super::{
    Case, Kit, any, ours,
    wire::{Message, Wire, bytes, cmd, errno},
};

pub(super) const CASES: &[Case] = &[
    any("all_regions", "9 regions; configuration space of 256 or 4096 bytes", all),
    any("index_out_of_range", "there is no region 9", out_of_range),
    any("short_argsz", "argsz below 32", short),
    any("reply_is_never_longer_than_argsz", "QEMU takes a longer one for an attack", never_longer),
    any("padded_request", "SPDK pads requests to 4064 bytes", padded),
    any("mmap_comes_with_a_descriptor", "with MMAP the reply includes a file descriptor", mmap_has_fd),
    ours("sparse_area", "one area, page-aligned, inside; in step with argsz and CAPS", sparse),
];

fn info(wire: &mut Wire, index: u32, argsz: u32) -> Result<Message> {
    wire.ask(cmd::GET_REGION_INFO, &bytes!(argsz, 0_u32, index, 0_u32, 0_u64, 0_u64))
}

fn all(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for index in 0..9 {
        let reply = info(&mut wire, index, 32)?;
        ensure!(reply.payload.len() == 32, "region {index}: {} bytes", reply.payload.len());
        ensure!(reply.u32(8)? == index, "another index");
        let (flags, size) = (reply.u32(4)?, reply.u64(16)?);
        ensure!((size == 0) == (flags & 3 == 0), "region {index} of {size} bytes has flags {flags:#x}");
        ensure!(index != 7 || size == 256 || size == 4096, "configuration space of {size} bytes");
    }
    Ok(())
}

fn out_of_range(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    info(&mut wire, 9, 32)?.refused(errno::EINVAL)?;
    info(&mut wire, u32::MAX, 32)?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    info(&mut wire, 7, 31)?.refused(errno::EINVAL)?;
    wire.ask(cmd::GET_REGION_INFO, &bytes!(32_u32, 0_u32, 7_u32))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn never_longer(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for index in 0..9 {
        for argsz in [32, 40, 48, 64, 4064] {
            let reply = info(&mut wire, index, argsz)?.ok()?;
            ensure!(reply.len() <= argsz as usize, "{} bytes to an argsz of {argsz}", reply.len());
        }
    }
    Ok(())
}

fn padded(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let mut request = bytes!(4064_u32, 0_u32, 7_u32, 0_u32, 0_u64, 0_u64);
    request.resize(4064, 0);
    let reply = wire.ask(cmd::GET_REGION_INFO, &request)?;
    ensure!(reply.u32(8)? == 7);
    wire.is_in_step()
}

fn mmap_has_fd(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for index in 0..9 {
        let reply = info(&mut wire, index, 4064)?;
        let mappable = reply.u32(4)? & 4 != 0;
        ensure!(reply.fds.len() == usize::from(mappable), "region {index}: {} descriptors", reply.fds.len());
    }
    Ok(())
}

fn sparse(kit: &Kit) -> Result<()> {
    let target = kit.target()?;
    let endpoint = json!({"name": "vfu.mapped", "bdev_name": "Malloc0", "doorbell": "mapped"});
    target.call("vfu_virtio_create_blk_endpoint", endpoint).map_err(|e| anyhow::anyhow!("{e:?}"))?;
    let mut wire = Wire::connect(&target.endpoint("vfu.mapped"))?;
    wire.negotiate()?;
    let first = info(&mut wire, 4, 32)?;
    ensure!(
        first.u32(0)? == 64 && first.payload.len() == 32 && first.fds.is_empty(),
        "the short answer: {first:?}"
    );
    ensure!(first.u32(4)? & 0b1100 == 0, "CAPS without an offset: QEMU gives up");
    let reply = info(&mut wire, 4, 64)?;
    ensure!(reply.u32(4)? == 0b1111, "flags {:#x}", reply.u32(4)?);
    ensure!(reply.u32(12)? == 32 && reply.payload.len() == 64, "the capability is not behind the fixed part");
    ensure!(reply.payload[32..36] == [1, 0, 1, 0], "not sparse-mmap version 1");
    ensure!(reply.u32(36)? == 0 && reply.u32(40)? == 1, "not exactly one area");
    let (offset, size) = (reply.u64(48)?, reply.u64(56)?);
    ensure!(offset.is_multiple_of(4096) && size.is_multiple_of(4096) && offset + size <= reply.u64(16)?);
    let fd = reply.fds.first().context("no descriptor")?;
    let len = rustix::fs::fstat(fd)?.st_size;
    ensure!(u64::try_from(len)? >= reply.u64(24)? + offset + size, "the file is shorter than the area");
    drop(wire);
    target
        .call("vfu_virtio_delete_endpoint", json!({"name": "vfu.mapped"}))
        .map_err(|e| anyhow::anyhow!("{e:?}"))?;
    Ok(())
}
