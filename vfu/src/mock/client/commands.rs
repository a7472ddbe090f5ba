//! The commands of the protocol, one method each.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::io::Errno;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Client, ClientError, Message};
use crate::{
    dma::Protection,
    mock::memory::{Memory, Region},
    wire::{
        spec::{
            Command, DeviceInfo, DmaMap, DmaUnmap, IrqInfo, IrqSet, RegionAccess, RegionInfo,
            RegionWriteEntry, SPARSE_CAP_ID, SparseArea, SparseCap, dma_flags, flags, irq_set_flags,
            region_flags, unmap_flags,
        },
        version::MAX_MSG_FDS,
    },
};

/// What a region is.
#[derive(Debug)]
pub struct RegionDetail {
    /// The fixed part of the answer.
    pub info: RegionInfo,
    /// Parts that can be mapped; a whole region that can be is one part.
    pub areas: Vec<SparseArea>,
    /// What to map.
    pub fd: Option<OwnedFd>,
}

impl Client {
    /// Sends a struct and expects one of the same kind back, as most commands do.
    fn ask<T: FromBytes + IntoBytes + Immutable>(
        &mut self,
        command: Command,
        request: &T,
    ) -> Result<T, ClientError> {
        let answer = self.request(command, &[request.as_bytes()], Vec::new())?;
        let parsed = T::read_from_bytes(&answer.payload);
        parsed.map_err(|_length| ClientError::Malformed { command: command.0, what: "has another length" })
    }

    fn expect_empty(command: Command, answer: &Message) -> Result<(), ClientError> {
        if answer.payload.is_empty() && answer.fds.is_empty() {
            return Ok(());
        }
        Err(ClientError::Malformed { command: command.0, what: "is more than a header" })
    }

    /// Offers a window; without a file it is one that the device cannot reach.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_map(
        &mut self,
        address: u64,
        size: u64,
        protection: Protection,
        file: Option<(BorrowedFd<'_>, u64)>,
    ) -> Result<(), ClientError> {
        let bits = [(protection.read, dma_flags::READ), (protection.write, dma_flags::WRITE)];
        let flags = bits.iter().filter(|(on, _)| *on).fold(0, |flags, (_, bit)| flags | bit);
        let offset = file.map_or(0, |(_, offset)| offset);
        let request = DmaMap { argsz: len32::<DmaMap>(), flags, offset, address, size };
        let fds = file.map(|(fd, _)| fd.try_clone_to_owned()).transpose();
        let fds = fds.map_err(|_limit| ClientError::Socket(Errno::MFILE))?.into_iter().collect();
        let answer = self.request(Command::DMA_MAP, &[request.as_bytes()], fds)?;
        Self::expect_empty(Command::DMA_MAP, &answer)
    }

    /// Offers one region of guest RAM.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn map_region(&mut self, memory: &Memory, region: Region) -> Result<(), ClientError> {
        let protection = Protection { read: true, write: true };
        let file = self.private.is_none().then(|| (memory.file(), region.offset));
        self.dma_map(region.address, region.len, protection, file)
    }

    /// Offers a part of guest RAM that is shared, whatever the rest is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn share_region(&mut self, memory: &Memory, region: Region) -> Result<(), ClientError> {
        let protection = Protection { read: true, write: true };
        self.dma_map(region.address, region.len, protection, Some((memory.file(), region.offset)))
    }

    /// Offers all guest RAM.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn map_memory(&mut self, memory: &Memory) -> Result<(), ClientError> {
        memory.regions().iter().try_for_each(|&region| self.map_region(memory, region))
    }

    /// Takes a window back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_unmap(&mut self, address: u64, size: u64) -> Result<(), ClientError> {
        let request = DmaUnmap { argsz: len32::<DmaUnmap>(), flags: 0, address, size };
        self.unmap(request)
    }

    /// Takes every window back.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn dma_unmap_all(&mut self) -> Result<(), ClientError> {
        self.unmap(DmaUnmap { argsz: len32::<DmaUnmap>(), flags: unmap_flags::ALL, address: 0, size: 0 })
    }

    fn unmap(&mut self, request: DmaUnmap) -> Result<(), ClientError> {
        if self.ask(Command::DMA_UNMAP, &request)? != request {
            return Err(ClientError::Malformed {
                command: Command::DMA_UNMAP.0,
                what: "names another range",
            });
        }
        Ok(())
    }

    /// What the device is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn device_info(&mut self) -> Result<DeviceInfo, ClientError> {
        let request = DeviceInfo { argsz: len32::<DeviceInfo>(), ..DeviceInfo::default() };
        self.ask(Command::DEVICE_GET_INFO, &request)
    }

    /// What a region is. Asks twice where the first answer says that there is more.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_info(&mut self, index: u32) -> Result<RegionDetail, ClientError> {
        let mut argsz = len32::<RegionInfo>();
        loop {
            let request = RegionInfo { argsz, index, ..RegionInfo::default() };
            let mut answer =
                self.request(Command::DEVICE_GET_REGION_INFO, &[request.as_bytes()], Vec::new())?;
            let malformed =
                |what| ClientError::Malformed { command: Command::DEVICE_GET_REGION_INFO.0, what };
            let (info, _) =
                RegionInfo::read_from_prefix(&answer.payload).map_err(|_short| malformed("is too short"))?;
            if answer.payload.len() > argsz as usize {
                return Err(malformed("is longer than asked for"));
            }
            if info.argsz > argsz && info.argsz <= 4096 {
                argsz = info.argsz;
                continue;
            }
            let mut areas = sparse_areas(&info, &answer.payload).map_err(malformed)?;
            if areas.is_empty() && info.flags & region_flags::MMAP != 0 {
                areas.push(SparseArea { offset: 0, size: info.size });
            }
            return Ok(RegionDetail { info, areas, fd: answer.fds.pop() });
        }
    }

    /// How many interrupts of a type there are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn irq_info(&mut self, index: u32) -> Result<IrqInfo, ClientError> {
        self.ask(
            Command::DEVICE_GET_IRQ_INFO,
            &IrqInfo { argsz: len32::<IrqInfo>(), index, ..IrqInfo::default() },
        )
    }

    /// Reads a region.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> Result<(), ClientError> {
        let access = access(region, offset, data.len());
        let answer = self.request(Command::REGION_READ, &[access.as_bytes()], Vec::new())?;
        match RegionAccess::read_from_prefix(&answer.payload) {
            Ok((echo, bytes)) if echo == access && bytes.len() == data.len() => data.copy_from_slice(bytes),
            _ => {
                return Err(ClientError::Malformed {
                    command: Command::REGION_READ.0,
                    what: "is of another access",
                });
            }
        }
        Ok(())
    }

    /// Writes a region, and waits until it is done.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let access = access(region, offset, data.len());
        let answer = self.request(Command::REGION_WRITE, &[access.as_bytes(), data], Vec::new())?;
        match RegionAccess::read_from_bytes(&answer.payload) {
            Ok(echo) if echo == access => Ok(()),
            _ => {
                Err(ClientError::Malformed { command: Command::REGION_WRITE.0, what: "is of another access" })
            }
        }
    }

    /// Writes a region and does not wait, as QEMU does with most writes. Allocates nothing once it was called before.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_post(&mut self, region: u32, offset: u64, data: &[u8]) -> Result<(), ClientError> {
        let access = access(region, offset, data.len());
        self.send(Command::REGION_WRITE, flags::NO_REPLY, &[access.as_bytes(), data], Vec::new())?;
        Ok(())
    }

    /// Writes several times with one message. How many writes the server did.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn region_write_multi(&mut self, entries: &[RegionWriteEntry]) -> Result<u64, ClientError> {
        let count = entries.len() as u64;
        let payload = [count.as_bytes(), entries.as_bytes()];
        let answer = self.request(Command::REGION_WRITE_MULTI, &payload, Vec::new())?;
        let done = u64::read_from_bytes(&answer.payload);
        done.map_err(|_length| ClientError::Malformed {
            command: Command::REGION_WRITE_MULTI.0,
            what: "is no count",
        })
    }

    /// Sets the eventfds of interrupts `start..`, in as many messages as the server wants.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_eventfds(
        &mut self,
        index: u32,
        start: u32,
        eventfds: &[BorrowedFd<'_>],
    ) -> Result<(), ClientError> {
        let chunk = (self.capabilities.max_msg_fds as usize).clamp(1, MAX_MSG_FDS);
        for (start, eventfds) in (start..).step_by(chunk).zip(eventfds.chunks(chunk)) {
            let fds: Result<Vec<OwnedFd>, _> = eventfds.iter().map(BorrowedFd::try_clone_to_owned).collect();
            let fds = fds.map_err(|_limit| ClientError::Socket(Errno::MFILE))?;
            let flags = irq_set_flags::DATA_EVENTFD | irq_set_flags::ACTION_TRIGGER;
            let count = u32::try_from(fds.len()).expect("at most MAX_MSG_FDS");
            self.set_irqs(IrqSet { argsz: len32::<IrqSet>(), flags, index, start, count }, &[], fds)?;
        }
        Ok(())
    }

    /// Takes away, masks, unmasks or triggers `count` interrupts from `start` on: no data, `flags` as they are.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn irq_action(&mut self, flags: u32, index: u32, start: u32, count: u32) -> Result<(), ClientError> {
        self.set_irqs(IrqSet { argsz: len32::<IrqSet>(), flags, index, start, count }, &[], Vec::new())
    }

    /// SET_IRQS as it is.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn set_irqs(&mut self, request: IrqSet, data: &[u8], fds: Vec<OwnedFd>) -> Result<(), ClientError> {
        let answer = self.request(Command::DEVICE_SET_IRQS, &[request.as_bytes(), data], fds)?;
        Self::expect_empty(Command::DEVICE_SET_IRQS, &answer)
    }

    /// Resets the device.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn reset(&mut self) -> Result<(), ClientError> {
        let answer = self.request(Command::DEVICE_RESET, &[], Vec::new())?;
        Self::expect_empty(Command::DEVICE_RESET, &answer)
    }
}

/// The length of a wire struct, as an `argsz`.
fn len32<T>() -> u32 {
    u32::try_from(size_of::<T>()).expect("wire structs are short")
}

fn access(region: u32, offset: u64, len: usize) -> RegionAccess {
    let count = u32::try_from(len).expect("an access is at most MAX_DATA_XFER_SIZE long");
    RegionAccess { offset, region, count }
}

/// The areas of the sparse-mmap capability, if there is one.
fn sparse_areas(info: &RegionInfo, payload: &[u8]) -> Result<Vec<SparseArea>, &'static str> {
    if info.flags & region_flags::CAPS == 0 || info.cap_offset == 0 {
        return Ok(Vec::new());
    }
    let bytes = payload.get(info.cap_offset as usize..).ok_or("has its capabilities outside")?;
    let (cap, areas) = SparseCap::read_from_prefix(bytes).map_err(|_short| "has a cut capability")?;
    if cap.id != SPARSE_CAP_ID || cap.version != 1 {
        return Ok(Vec::new());
    }
    let areas: Vec<SparseArea> = areas
        .chunks_exact(size_of::<SparseArea>())
        .take(cap.nr_areas as usize)
        .filter_map(|bytes| SparseArea::read_from_bytes(bytes).ok())
        .collect();
    if areas.len() == cap.nr_areas as usize { Ok(areas) } else { Err("has fewer areas than it says") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(cap: SparseCap, areas: &[SparseArea]) -> (RegionInfo, Vec<u8>) {
        let flags = region_flags::MMAP | region_flags::CAPS;
        let info = RegionInfo { argsz: 80, flags, cap_offset: 32, ..RegionInfo::default() };
        (info, [info.as_bytes(), cap.as_bytes(), areas.as_bytes()].concat())
    }

    #[test]
    fn areas_are_read_from_the_capability() {
        let areas = [SparseArea { offset: 0x3000, size: 0x1000 }, SparseArea { offset: 0, size: 0x1000 }];
        let cap = SparseCap { id: SPARSE_CAP_ID, version: 1, nr_areas: 2, ..SparseCap::default() };
        let (info, bytes) = payload(cap, &areas);
        assert_eq!(sparse_areas(&info, &bytes), Ok(areas.to_vec()));
    }

    #[test]
    fn capability_that_promises_more_areas_than_it_has_is_malformed() {
        let cap = SparseCap { id: SPARSE_CAP_ID, version: 1, nr_areas: u32::MAX, ..SparseCap::default() };
        let (info, bytes) = payload(cap, &[SparseArea::default()]);
        assert!(sparse_areas(&info, &bytes).is_err());
    }
}
