//! A driver for one queue of a virtio disk, by hand: as much as cases need (virtio 1.2, 2.7, 4.1 and 5.2).

use std::{
    os::fd::{AsFd, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Result, bail, ensure};

use super::{
    Kit,
    wire::{Wire, memory},
};

pub(super) const IN: u32 = 0;
pub(super) const OUT: u32 = 1;

/// Where guest memory starts, for the guest.
pub(super) const BASE: u64 = 0x10_0000;
/// Its bytes.
pub(super) const LEN: u64 = 1 << 20;
const SIZE: u64 = 8;
const HEADER: u64 = 0x3000;
const STATUS: u64 = 0x3100;
pub(super) const DATA: u64 = 0x4000;
const PATIENCE: Duration = Duration::from_secs(20);

/// How the disk tells.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Irq {
    /// Vector 1.
    Msix,
    /// INTx.
    Pin,
}

/// A disk, and the guest memory it works on.
pub(super) struct Disk {
    pub(super) wire: Wire,
    pub(super) file: OwnedFd,
    next: u16,
}

/// Where a capability of the configuration space is.
pub(super) fn capability(wire: &mut Wire, id: u8) -> Result<u64> {
    let mut at = u64::from(wire.read(7, 0x34, 1)?[0]);
    while at != 0 {
        let head = wire.read(7, at, 2)?;
        if head[0] == id {
            return Ok(at);
        }
        at = u64::from(head[1]);
    }
    bail!("no capability {id:#x}")
}

impl Disk {
    /// A running disk whose memory is shared, with MSI-X.
    pub(super) fn start(kit: &Kit) -> Result<Self> {
        Self::start_with(kit, Irq::Msix)
    }

    pub(super) fn start_with(kit: &Kit, irq: Irq) -> Result<Self> {
        let mut wire = kit.open()?;
        let file = memory(LEN)?;
        wire.map(3, 0, BASE, LEN, Some(file.as_fd()))?.ok()?;
        Self::over(wire, file, irq)
    }

    /// A running disk over a connection whose windows are mapped, with `file` behind them.
    pub(super) fn over(wire: Wire, file: OwnedFd, irq: Irq) -> Result<Self> {
        let mut disk = Self { wire, file, next: 0 };
        disk.drive(irq)?;
        Ok(disk)
    }

    /// What a driver does to a device after a reset (virtio 1.2, 3.1.1).
    pub(super) fn drive(&mut self, irq: Irq) -> Result<()> {
        self.next = 0;
        self.put(0, &vec![0; 0x3000])?;
        let wire = &mut self.wire;
        wire.write(7, 4, &[6, 0])?;
        if irq == Irq::Msix {
            let msix = capability(wire, 0x11)?;
            wire.write(7, msix + 3, &[0x80])?;
        }
        wire.write(4, 20, &[0])?;
        wire.write(4, 20, &[3])?;
        // VERSION_1 and nothing else.
        wire.write(4, 8, &1_u32.to_le_bytes())?;
        wire.write(4, 12, &1_u32.to_le_bytes())?;
        wire.write(4, 20, &[11])?;
        wire.write(4, 22, &[0, 0])?;
        wire.write(4, 32, &BASE.to_le_bytes())?;
        wire.write(4, 40, &(BASE + 0x1000).to_le_bytes())?;
        wire.write(4, 48, &(BASE + 0x2000).to_le_bytes())?;
        wire.write(4, 26, &if irq == Irq::Msix { [1, 0] } else { [0xff, 0xff] })?;
        wire.write(4, 28, &[1, 0])?;
        wire.write(4, 20, &[15])?;
        ensure!(wire.read(4, 20, 1)? == [15], "the driver's status is not accepted");
        Ok(())
    }

    pub(super) fn put(&self, at: u64, bytes: &[u8]) -> Result<()> {
        ensure!(rustix::io::pwrite(&self.file, bytes, at)? == bytes.len());
        Ok(())
    }

    pub(super) fn get(&self, at: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        ensure!(rustix::io::pread(&self.file, &mut bytes, at)? == len);
        Ok(bytes)
    }

    /// What is in the data buffer.
    pub(super) fn data(&self, len: usize) -> Result<Vec<u8>> {
        self.get(DATA, len)
    }

    fn descriptor(&self, index: u16, address: u64, len: u32, flags: u16) -> Result<()> {
        let parts = [
            &address.to_le_bytes()[..],
            &len.to_le_bytes(),
            &flags.to_le_bytes(),
            &(index + 1).to_le_bytes(),
        ];
        self.put(u64::from(index) * 16, &parts.concat())
    }

    /// One request over descriptors 0 to 2, available but not kicked.
    pub(super) fn make_available(&mut self, kind: u32, sector: u64, len: u32) -> Result<()> {
        self.make_available_at(kind, sector, BASE + DATA, len)
    }

    /// The same, with its data elsewhere.
    pub(super) fn make_available_at(&mut self, kind: u32, sector: u64, address: u64, len: u32) -> Result<()> {
        self.put(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat())?;
        self.put(STATUS, &[0xff])?;
        self.descriptor(0, BASE + HEADER, 16, 1)?;
        self.descriptor(1, address, len, if kind == OUT { 1 } else { 3 })?;
        self.descriptor(2, BASE + STATUS, 1, 2)?;
        self.put(0x1004 + 2 * (u64::from(self.next) % SIZE), &[0, 0])?;
        self.next = self.next.wrapping_add(1);
        self.put(0x1002, &self.next.to_le_bytes())
    }

    pub(super) fn kick(&mut self) -> Result<()> {
        self.wire.write(4, 0x3000, &[0, 0])
    }

    pub(super) fn is_done(&self) -> Result<bool> {
        Ok(self.get(0x2002, 2)? == self.next.to_le_bytes())
    }

    /// Waits until everything available was given back.
    pub(super) fn wait(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.is_done()? {
            ensure!(Instant::now() < deadline, "the disk does not answer");
            if self.wire.answers_dma() {
                // Something to wait for while commands of the server are answered.
                self.wire.is_in_step()?;
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// Waits until the device asks for a reset (virtio 1.2, 2.1.1).
    pub(super) fn needs_reset(&mut self) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.wire.read(4, 20, 1)?[0] & 0x40 == 0 {
            ensure!(Instant::now() < deadline, "the disk asks for no reset");
        }
        Ok(())
    }

    /// The status byte of the last request.
    pub(super) fn status(&self) -> Result<u8> {
        Ok(self.get(STATUS, 1)?[0])
    }

    /// One request, start to end, which must succeed.
    pub(super) fn request(&mut self, kind: u32, sector: u64, data: &[u8]) -> Result<()> {
        self.put(DATA, data)?;
        self.make_available(kind, sector, u32::try_from(data.len())?)?;
        self.kick()?;
        self.wait()?;
        ensure!(self.status()? == 0, "status {}", self.status()?);
        Ok(())
    }
}
