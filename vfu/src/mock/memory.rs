//! Guest RAM: one file, mapped here and passed to the device, with guest addresses handed out from it.
//!
//! Tests and drivers are the callers. Guest addresses differ from file offsets on purpose: who confuses them is caught.
//! What a device does with the memory at the same time is its own affair; access here is volatile or atomic
//! ([`Slice`](crate::dma::Slice)).

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::{
    fs::{MemfdFlags, ftruncate, memfd_create},
    io::Errno,
};

use crate::dma::{Fault, Protection, Span, View, Windows};

/// Start and length of regions are multiples of this: SPDK's target maps no window that is not.
pub const REGION_ALIGN: u64 = 2 << 20;
/// Where RAM starts unless a test says otherwise: above 4 GiB, so that cut addresses do not work by chance.
pub const DEFAULT_BASE: u64 = 0x1_0000_0000;
const PAGE: usize = 4096;

/// A contiguous part of guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Region {
    /// First guest address.
    pub address: u64,
    /// Bytes.
    pub len: u64,
    /// Where it starts in the file.
    pub offset: u64,
}

/// Guest RAM.
#[derive(Debug)]
pub struct Memory {
    file: OwnedFd,
    regions: Vec<Region>,
    view: View,
    /// Bytes handed out of the first region.
    used: u64,
}

impl Memory {
    /// `len` bytes of RAM in one region, rounded up to [`REGION_ALIGN`].
    ///
    /// # Errors
    /// The kernel's, when the file cannot be made or mapped.
    pub fn new(len: u64) -> Result<Self, Errno> {
        Self::with_regions(&[(DEFAULT_BASE, len.next_multiple_of(REGION_ALIGN))])
    }

    /// RAM in several regions of address and length, which lie in the file in reverse order: neighbours in the guest
    /// are none in the file.
    ///
    /// # Errors
    /// `EINVAL` for regions that overlap or are not page-aligned; else the kernel's.
    pub fn with_regions(regions: &[(u64, u64)]) -> Result<Self, Errno> {
        let file = memfd_create("guest", MemfdFlags::CLOEXEC)?;
        let mut offset = regions.iter().map(|(_, len)| len).sum();
        ftruncate(&file, offset)?;
        let placed = regions.iter().map(|&(address, len)| {
            offset -= len;
            Region { address, len, offset }
        });
        Self::over(file, placed.collect())
    }

    fn over(file: OwnedFd, regions: Vec<Region>) -> Result<Self, Errno> {
        let windows = Windows::default();
        let protection = Protection { read: true, write: true };
        for &Region { address, len, offset } in &regions {
            let file = file.try_clone().map_err(|_limit| Errno::MFILE)?;
            windows.map(address, len, protection, Some((file, offset)))?;
        }
        Ok(Self { file, regions, view: View::new(&windows), used: 0 })
    }

    /// The same RAM, for another thread; nothing of it is handed out there.
    pub(super) fn reopen(&self) -> Result<Self, Errno> {
        let file = self.file.try_clone().map_err(|_limit| Errno::MFILE)?;
        Self::over(file, self.regions.clone())
    }

    /// The regions, as they were asked for.
    #[must_use]
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The file behind it.
    #[must_use]
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }

    /// Hands out `len` bytes of the first region, aligned to `align`; never twice, never given back.
    ///
    /// # Errors
    /// `ENOMEM` when the region has no room left.
    pub fn allocate(&mut self, len: usize, align: usize) -> Result<u64, Errno> {
        let region = self.regions.first().ok_or(Errno::NOMEM)?;
        let start = (region.address + self.used).next_multiple_of(align as u64);
        let end = start + len as u64;
        if end > region.address + region.len {
            return Err(Errno::NOMEM);
        }
        self.used = end - region.address;
        Ok(start)
    }

    /// A range for repeated access.
    ///
    /// # Errors
    /// [`Fault`] where the range leaves the RAM.
    pub fn span(&self, address: u64, len: usize) -> Result<Span, Fault> {
        self.view.span(address, len, true)
    }

    /// Copies to guest memory, over regions.
    ///
    /// # Errors
    /// [`Fault`] where the range leaves the RAM.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        self.view.write(address, from)
    }

    /// Copies from guest memory, over regions.
    ///
    /// # Errors
    /// [`Fault`] where the range leaves the RAM.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        self.view.read(address, to)
    }

    /// Touches every page handed out, so that no page fault falls into a measurement.
    ///
    /// # Errors
    /// [`Fault`] never: what was handed out lies in the RAM.
    pub fn populate(&self) -> Result<(), Fault> {
        let Some(region) = self.regions.first() else { return Ok(()) };
        for at in (0..self.used).step_by(PAGE) {
            let mut byte = [0];
            self.read(region.address + at, &mut byte)?;
            self.write(region.address + at, &byte)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn allocations_are_aligned_apart_and_bounded() {
        let mut memory = Memory::new(REGION_ALIGN).unwrap();

        let first = memory.allocate(10, 16).unwrap();
        let second = memory.allocate(4096, 4096).unwrap();

        assert_eq!((first, second), (DEFAULT_BASE, DEFAULT_BASE + 4096));
        assert_eq!(memory.allocate(2 << 20, 1), Err(Errno::NOMEM));
    }

    #[test]
    fn neighbours_in_the_guest_are_apart_in_the_file() {
        let memory = Memory::with_regions(&[(0x10000, 0x1000), (0x11000, 0x1000)]).unwrap();
        memory.write(0x10ffe, &[1, 2, 3, 4]).unwrap();

        let mut back = [0; 4];
        memory.read(0x10ffe, &mut back).unwrap();

        assert_eq!(back, [1, 2, 3, 4]);
        assert_eq!(memory.regions().iter().map(|region| region.offset).collect::<Vec<_>>(), [0x1000, 0]);
    }

    #[test]
    fn what_was_written_survives_being_touched() {
        let mut memory = Memory::new(REGION_ALIGN).unwrap();
        let at = memory.allocate(8192, 4096).unwrap();
        memory.write(at + 4096, &[7]).unwrap();

        memory.populate().unwrap();

        let mut byte = [0];
        memory.read(at + 4096, &mut byte).unwrap();
        assert_eq!(byte, [7]);
    }
}
