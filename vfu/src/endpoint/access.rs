//! REGION_READ, REGION_WRITE and REGION_WRITE_MULTI: accesses to configuration space and BARs.

use std::collections::VecDeque;

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

/// Whether a REGION_WRITE is a doorbell, whose answer waits for nothing.
pub(super) fn is_doorbell(function: &Function, payload: &[u8]) -> bool {
    RegionAccess::read_from_prefix(payload)
        .is_ok_and(|(access, _)| function.is_doorbell(access.region, access.offset))
}

/// The writes of a REGION_WRITE_MULTI, as far as they are not done.
#[derive(Debug)]
pub(super) struct Writes {
    entries: VecDeque<RegionWriteEntry>,
    done: u64,
}

impl Writes {
    /// Takes the message apart; writes nothing.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, Errno> {
        let (count, entries) = u64::read_from_prefix(payload).map_err(|_short| Errno::INVAL)?;
        let bytes = count.checked_mul(size_of::<RegionWriteEntry>() as u64);
        if count > MAX_MULTI || bytes != Some(entries.len() as u64) {
            return Err(Errno::INVAL);
        }
        let entries = entries.chunks_exact(size_of::<RegionWriteEntry>());
        let entries = entries.filter_map(|entry| RegionWriteEntry::read_from_bytes(entry).ok()).collect();
        Ok(Self { entries, done: 0 })
    }

    /// Rings the doorbells that come first; the outcome if nothing else comes.
    pub(super) fn ring(&mut self, function: &mut Function) -> Option<Result<Reply, Errno>> {
        while let Some(entry) = self.entries.front() {
            if !function.is_doorbell(entry.region, entry.offset) {
                return None;
            }
            if let Err(errno) = self.write_next(function) {
                return Some(Err(errno));
            }
        }
        Some(Ok(Reply::of(&self.done)))
    }

    /// Writes in order until something has to be waited for (none: call again when it is done), an entry is malformed,
    /// or all are done.
    pub(super) fn go_on(&mut self, function: &mut Function) -> Option<Result<Reply, Errno>> {
        while let Some(&RegionWriteEntry { region, offset, .. }) = self.entries.front() {
            if let Err(errno) = self.write_next(function) {
                return Some(Err(errno));
            }
            let must_wait = !self.entries.is_empty() && !function.is_doorbell(region, offset);
            if must_wait && function.progress() == Progress::Pending {
                // A reset among posted writes: the rest may not run ahead of it.
                return None;
            }
        }
        Some(Ok(Reply::of(&self.done)))
    }

    fn write_next(&mut self, function: &mut Function) -> Result<(), Errno> {
        let Some(entry) = self.entries.pop_front() else { return Ok(()) };
        let RegionWriteEntry { offset, region, count, data } = entry;
        let bytes = data.get(..count as usize).ok_or(Errno::INVAL)?;
        check(function, &RegionAccess { offset, region, count })?;
        function.write(region, offset, bytes);
        self.done += 1;
        Ok(())
    }
}
