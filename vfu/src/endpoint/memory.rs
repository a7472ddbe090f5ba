//! DMA_MAP and DMA_UNMAP.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::session::Reply;
use crate::{
    dma::Protection,
    function::Function,
    wire::spec::{DmaMap, DmaUnmap, dma_flags, unmap_flags},
};

/// DMA_MAP: a new window. Without a file only messages reach it: QEMU sends private RAM and ROM so. A file that must not
/// be mapped ([`dma_flags::FILE_IO`]) is not kept: messages reach that window too, and correctly.
pub(super) fn map(function: &mut Function, payload: &[u8], mut fds: Vec<OwnedFd>) -> Result<Reply, Errno> {
    let request = DmaMap::read_from_bytes(payload).map_err(|_length| Errno::INVAL)?;
    if (request.argsz as usize) < size_of::<DmaMap>() || request.flags & !dma_flags::ALL != 0 || fds.len() > 1
    {
        return Err(Errno::INVAL);
    }
    // The two ways exclude each other, and each needs a file.
    let mode = request.flags & (dma_flags::MMAP | dma_flags::FILE_IO);
    if mode == dma_flags::MMAP | dma_flags::FILE_IO || (mode != 0 && fds.is_empty()) {
        return Err(Errno::INVAL);
    }
    let protection = Protection {
        read: request.flags & dma_flags::READ != 0,
        write: request.flags & dma_flags::WRITE != 0,
    };
    let file = fds.pop().filter(|_| mode != dma_flags::FILE_IO).map(|file| (file, request.offset));
    let windows = &function.bus().windows;
    let before = windows.generation();
    windows.map(request.address, request.size, protection, file)?;
    if windows.generation() != before {
        function.model().adopt();
    }
    Ok(Reply::empty())
}

/// DMA_UNMAP: the reply goes out when no queue uses the window any more.
pub(super) fn unmap(function: &mut Function, payload: &[u8]) -> Result<Reply, Errno> {
    let request = DmaUnmap::read_from_bytes(payload).map_err(|_length| Errno::INVAL)?;
    if (request.argsz as usize) < size_of::<DmaUnmap>() {
        return Err(Errno::INVAL);
    }
    let windows = &function.bus().windows;
    match request.flags {
        0 => windows.unmap(request.address, request.size)?,
        unmap_flags::ALL if request.address == 0 && request.size == 0 => windows.clear(),
        _ => return Err(Errno::INVAL),
    }
    function.model().sync();
    Ok(Reply { head: request.as_bytes().to_vec(), fds: Vec::new() })
}
