//! REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: accesses to configuration space and BARs.

use rustix::io::Errno;
use zerocopy::{FromBytes, IntoBytes};

use super::session::Reply;
use crate::{
    device::Progress,
    function::Function,
    wire::{
        spec::{RegionAccess, RegionWriteEntry},
        version::MAX_DATA_XFER_SIZE,
    },
};

/// Writes in one REGION_WRITE_MULTI; QEMU sends 200 at most.
const MAX_MULTI: u64 = 256;

fn check(function: &Function, access: &RegionAccess) -> Result<(), Errno> {
    let size = function.region_size(access.region);
    let fits = access.offset.checked_add(u64::from(access.count)).is_some_and(|end| end <= size);
    if access.count > MAX_DATA_XFER_SIZE || !fits { Err(Errno::INVAL) } else { Ok(()) }
}

/// REGION_READ: the request comes back with the bytes behind it.
pub(super) fn read(function: &mut Function, payload: &[u8]) -> Result<Reply, Errno> {
    let access = RegionAccess::read_from_bytes(payload).map_err(|_length| Errno::INVAL)?;
    check(function, &access)?;
    let fixed = size_of::<RegionAccess>();
    // Bounded by the region's size, which `check` has compared.
    let mut head = vec![0; fixed + access.count as usize];
    head[..fixed].copy_from_slice(access.as_bytes());
    function.read(access.region, access.offset, &mut head[fixed..]);
    Ok(Reply { head, fds: Vec::new() })
}

/// REGION_WRITE: the request comes back without its bytes.
pub(super) fn write(function: &mut Function, payload: &[u8]) -> Result<Reply, Errno> {
    let (access, data) = RegionAccess::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    if data.len() != access.count as usize {
        return Err(Errno::INVAL);
    }
    check(function, &access)?;
    function.write(access.region, access.offset, data);
    Ok(Reply::of(&access))
}

/// REGION_WRITE_MULTI: in order; says how many were done.
pub(super) fn write_multi(function: &mut Function, payload: &[u8]) -> Result<Reply, Errno> {
    let (count, entries) = u64::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
    let bytes = count.checked_mul(size_of::<RegionWriteEntry>() as u64);
    if count > MAX_MULTI || bytes != Some(entries.len() as u64) {
        return Err(Errno::INVAL);
    }
    let mut done = 0_u64;
    for entry in entries.chunks_exact(size_of::<RegionWriteEntry>()) {
        let entry = RegionWriteEntry::read_from_bytes(entry).map_err(|_length| Errno::INVAL)?;
        let RegionWriteEntry { offset, region, count, data } = entry;
        let bytes = data.get(..count as usize).ok_or(Errno::INVAL)?;
        check(function, &RegionAccess { offset, region, count })?;
        function.write(region, offset, bytes);
        done += 1;
        if function.progress() == Progress::Pending {
            // A reset among posted writes. The rest would run ahead of it, so it is refused, by number.
            break;
        }
    }
    Ok(Reply::of(&done))
}
