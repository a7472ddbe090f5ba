//! DMA_MAP: windows with and without a file, overlaps, flags.

use std::os::fd::AsFd;

use anyhow::{Result, ensure};

use super::{
    Case, Kit, any, ours,
    wire::{bytes, cmd, errno, memory},
};

pub(super) const CASES: &[Case] = &[
    any("with_file", "a file descriptor is sent: mapped; header-only reply", with_file),
    any("without_file", "no file descriptor: reached by messages", without_file),
    any("overlap", "over an existing region: EEXIST", overlap),
    any("read_only_and_write_only", "readable, writeable", protections),
    any("same_file_many_windows", "one file behind many windows", same_file),
    any("short_argsz", "argsz below 32", short_argsz),
    any("short_payload", "a payload below 32 bytes", short_payload),
    any("empty_and_wrapping", "a size of zero, a range that wraps", ranges),
    any("two_files", "at most one descriptor", two_files),
    any("unknown_flag", "flags that do not exist", unknown_flag),
    ours("identical_again", "an identical window is no overlap (libvfio-user)", identical),
    ours("offset_not_aligned", "mmap wants page-aligned offsets", unaligned),
    ours("address_not_aligned", "a mapped ring would lie at an odd address", odd_address),
    ours("file_too_short", "a range behind the end of the file would be SIGBUS", too_short),
    ours("file_that_cannot_be_mapped", "a pipe", pipe),
    ours("mode_flags", "MMAP, FILE_IO (libvfio-user, 2026-06): each needs a file, not both", modes),
];

const BOTH: u32 = 3;

fn with_file(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x20_0000)?;
    let reply = wire.map(BOTH, 0, 0x10_0000, 0x10_0000, Some(file.as_fd()))?;
    ensure!(reply.ok()?.is_empty(), "there is no payload in the reply message");
    wire.is_in_step()
}

fn without_file(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    ensure!(wire.map(BOTH, 0, 0x10_0000, 0x1000, None)?.ok()?.is_empty());
    wire.is_in_step()
}

fn overlap(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x10_0000)?;
    wire.map(BOTH, 0, 0x10_0000, 0x2000, Some(file.as_fd()))?.ok()?;
    wire.map(BOTH, 0, 0x10_1000, 0x2000, Some(file.as_fd()))?.refused(errno::EEXIST)?;
    wire.map(BOTH, 0, 0xf_f000, 0x2000, Some(file.as_fd()))?.refused(errno::EEXIST)?;
    wire.map(BOTH, 0, 0x10_2000, 0x1000, Some(file.as_fd()))?.ok()?;
    Ok(())
}

fn protections(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x10_0000)?;
    wire.map(1, 0, 0x10_0000, 0x1000, Some(file.as_fd()))?.ok()?;
    wire.map(2, 0x1000, 0x20_0000, 0x1000, Some(file.as_fd()))?.ok()?;
    wire.is_in_step()
}

fn same_file(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x100_0000)?;
    for page in 0..1000 {
        wire.map(BOTH, page * 0x1000, 0x1_0000_0000 + page * 0x2000, 0x1000, Some(file.as_fd()))?.ok()?;
    }
    wire.is_in_step()
}

fn short_argsz(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.ask(cmd::DMA_MAP, &bytes!(31_u32, BOTH, 0_u64, 0x1000_u64, 0x1000_u64))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn short_payload(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    for len in [1, 4, 24, 31] {
        wire.ask(cmd::DMA_MAP, &bytes!(32_u32, BOTH, 0_u64, 0x1000_u64, 0x1000_u64)[..len])?
            .refused(errno::EINVAL)?;
    }
    wire.ask(cmd::DMA_MAP, &[])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn ranges(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.map(BOTH, 0, 0x1000, 0, None)?.refused(errno::EINVAL)?;
    wire.map(BOTH, 0, u64::MAX - 0xfff, 0x2000, None)?.refused(errno::EINVAL)?;
    let file = memory(0x1000)?;
    wire.map(BOTH, u64::MAX - 0xfff, 0x1000, 0x1000, Some(file.as_fd()))?.is_refused()?;
    wire.is_in_step()
}

fn two_files(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x1000)?;
    let request = bytes!(32_u32, BOTH, 0_u64, 0x1000_u64, 0x1000_u64);
    wire.ask_with(cmd::DMA_MAP, &request, &[file.as_fd(), file.as_fd()])?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn unknown_flag(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    wire.map(BOTH | 1 << 4, 0, 0x1000, 0x1000, None)?.refused(errno::EINVAL)?;
    wire.map(BOTH | 1 << 31, 0, 0x1000, 0x1000, None)?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn identical(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x2000)?;
    wire.map(BOTH, 0, 0x1000, 0x1000, Some(file.as_fd()))?.ok()?;
    wire.map(BOTH, 0, 0x1000, 0x1000, Some(file.as_fd()))?.ok()?;
    wire.map(BOTH, 0x1000, 0x1000, 0x1000, Some(file.as_fd()))?.refused(errno::EEXIST)?;
    wire.map(1, 0, 0x1000, 0x1000, Some(file.as_fd()))?.refused(errno::EEXIST)?;
    wire.map(BOTH, 0, 0x1000, 0x1000, None)?.refused(errno::EEXIST)
}

fn unaligned(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x4000)?;
    wire.map(BOTH, 17, 0x1000, 0x1000, Some(file.as_fd()))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn odd_address(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x4000)?;
    for address in [0x1004, 0x1200, 0x1fff] {
        wire.map(BOTH, 0, address, 0x1000, Some(file.as_fd()))?.refused(errno::EINVAL)?;
    }
    wire.map(BOTH, 0, 0x1004, 0x1000, None)?.ok()?;
    wire.is_in_step()
}

fn too_short(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let file = memory(0x1000)?;
    wire.map(BOTH, 0, 0x1000, 0x2000, Some(file.as_fd()))?.refused(errno::EINVAL)?;
    wire.map(BOTH, 0x1000, 0x1000, 0x1000, Some(file.as_fd()))?.refused(errno::EINVAL)?;
    wire.is_in_step()
}

fn pipe(kit: &Kit) -> Result<()> {
    let mut wire = kit.open()?;
    let (reader, _writer) = std::io::pipe()?;
    wire.map(BOTH, 0, 0x1000, 0x1000, Some(reader.as_fd()))?.is_refused()?;
    wire.is_in_step()
}

fn modes(kit: &Kit) -> Result<()> {
    const MMAP: u32 = 4;
    const FILE_IO: u32 = 8;
    let mut wire = kit.open()?;
    let file = memory(0x4000)?;
    wire.map(BOTH | MMAP, 0, 0x1000, 0x1000, Some(file.as_fd()))?.ok()?;
    wire.map(BOTH | FILE_IO, 0, 0x2000, 0x1000, Some(file.as_fd()))?.ok()?;
    wire.map(BOTH | MMAP | FILE_IO, 0, 0x3000, 0x1000, Some(file.as_fd()))?.refused(errno::EINVAL)?;
    wire.map(BOTH | MMAP, 0, 0x3000, 0x1000, None)?.refused(errno::EINVAL)?;
    wire.map(BOTH | FILE_IO, 0, 0x3000, 0x1000, None)?.refused(errno::EINVAL)
}
