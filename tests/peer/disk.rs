//! A disk on a server that is not ours: rust-vmm's, with a virtio-blk device in memory behind it, as small as the
//! specification lets it be. Shows that the load generator drives any server. One queue with a split ring, no feature but
//! VERSION_1, kicks by messages; it trusts its driver.

use std::{fs::File, io, os::unix::fs::FileExt, path::Path};

use vfio_bindings::bindings::vfio::{
    VFIO_PCI_BAR4_REGION_INDEX, VFIO_PCI_CONFIG_REGION_INDEX, VFIO_PCI_NUM_IRQS, VFIO_PCI_NUM_REGIONS,
    VFIO_REGION_INFO_FLAG_READ, VFIO_REGION_INFO_FLAG_WRITE, vfio_region_info,
};
use vfio_user::{DmaMapFlags, DmaUnmapFlags, IrqInfo, Server, ServerBackend, ServerRegion};

use crate::common;

const CONFIG_LEN: usize = 4096;
const BAR_LEN: usize = 0x4000;
const ISR: usize = 0x1000;
const DEVICE: usize = 0x2000;
const NOTIFY: usize = 0x3000;
const SECTOR: usize = 512;
/// Of a request (virtio 1.2, 5.2.6).
const OUT: u32 = 1;
/// Of a descriptor (virtio 1.2, 2.7.5).
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// A server that listens on a socket, for one client.
pub(crate) fn listen(socket: &Path) -> Server {
    let region = |index: u32| {
        let size = match index {
            VFIO_PCI_CONFIG_REGION_INDEX => CONFIG_LEN,
            VFIO_PCI_BAR4_REGION_INDEX => BAR_LEN,
            _ => 0,
        };
        let flags = VFIO_REGION_INFO_FLAG_READ | VFIO_REGION_INFO_FLAG_WRITE;
        let argsz = size_of::<vfio_region_info>() as u32;
        let region_info =
            vfio_region_info { argsz, flags, index, size: size as u64, ..vfio_region_info::default() };
        ServerRegion { region_info, sparse_areas: vec![], mmap_fd: None }
    };
    let irqs = (0..VFIO_PCI_NUM_IRQS).map(|index| IrqInfo { index, flags: 0, count: 0 }).collect();
    Server::new(socket, true, irqs, (0..VFIO_PCI_NUM_REGIONS).map(region).collect()).unwrap()
}

/// The device.
pub(crate) struct Disk {
    config: [u8; CONFIG_LEN],
    bar: [u8; BAR_LEN],
    /// Guest memory: address, length, file and where in it.
    memory: Vec<(u64, u64, File, u64)>,
    data: Vec<u8>,
    next: u16,
}

impl Disk {
    /// An empty disk of so many bytes.
    pub(crate) fn new(bytes: usize) -> Self {
        let mut config = [0; CONFIG_LEN];
        // Vendor and device: a modern virtio-blk; the capabilities start at 0x40.
        config[..8].copy_from_slice(&[0xf4, 0x1a, 0x42, 0x10, 0, 0, 0x10, 0]);
        (config[8], config[0x34]) = (1, 0x40);
        // Common configuration, notifications, ISR and device configuration (virtio 1.2, 4.1.4).
        let places = [(1, 0), (2, NOTIFY), (3, ISR), (4, DEVICE)];
        for (nth, (kind, offset)) in places.into_iter().enumerate() {
            let at = 0x40 + 24 * nth;
            let next = if nth == 3 { 0 } else { at + 24 };
            config[at..at + 5].copy_from_slice(&[9, next as u8, 20, kind, VFIO_PCI_BAR4_REGION_INDEX as u8]);
            config[at + 8..at + 12].copy_from_slice(&(offset as u32).to_le_bytes());
            config[at + 12..at + 16].copy_from_slice(&0x1000_u32.to_le_bytes());
        }
        let mut disk = Self { config, bar: [0; BAR_LEN], memory: Vec::new(), data: vec![0; bytes], next: 0 };
        disk.power_on();
        disk
    }

    fn power_on(&mut self) {
        self.bar = [0; BAR_LEN];
        self.bar[common::NUM_QUEUES as usize] = 1;
        self.bar[common::QUEUE_SIZE as usize] = 128;
        let sectors = (self.data.len() / SECTOR) as u64;
        self.bar[DEVICE..DEVICE + 8].copy_from_slice(&sectors.to_le_bytes());
        self.next = 0;
    }

    fn register<const N: usize>(&self, at: u64) -> [u8; N] {
        self.bar[at as usize..at as usize + N].try_into().unwrap()
    }

    fn address(&self, at: u64) -> u64 {
        u64::from_le_bytes(self.register(at))
    }

    /// The file behind an address, and where in it.
    fn place(&self, address: u64) -> io::Result<(&File, u64)> {
        let window = self.memory.iter().find(|(start, len, ..)| (*start..start + len).contains(&address));
        let (start, _, file, offset) = window.ok_or(io::ErrorKind::NotFound)?;
        Ok((file, offset + (address - start)))
    }

    fn read(&self, address: u64, to: &mut [u8]) -> io::Result<()> {
        let (file, at) = self.place(address)?;
        file.read_exact_at(to, at)
    }

    fn read_u16(&self, address: u64) -> io::Result<u16> {
        let mut bytes = [0; 2];
        self.read(address, &mut bytes)?;
        Ok(u16::from_le_bytes(bytes))
    }

    fn write(&self, address: u64, from: &[u8]) -> io::Result<()> {
        let (file, at) = self.place(address)?;
        file.write_all_at(from, at)
    }

    /// All that the driver has made available (virtio 1.2, 2.7).
    fn serve_queue(&mut self) -> io::Result<()> {
        let size = u16::from_le_bytes(self.register(common::QUEUE_SIZE));
        let [driver, device] = [common::QUEUE_DRIVER, common::QUEUE_DEVICE].map(|at| self.address(at));
        while self.read_u16(driver + 2)? != self.next {
            let entry = u64::from(self.next % size);
            let head = self.read_u16(driver + 4 + 2 * entry)?;
            let written = self.request(head)?;
            let used = [u32::from(head).to_le_bytes(), written.to_le_bytes()].concat();
            self.write(device + 4 + 8 * entry, &used)?;
            self.next = self.next.wrapping_add(1);
            self.write(device + 2, &self.next.to_le_bytes())?;
        }
        Ok(())
    }

    /// A request: its header, its data, its status byte. How many bytes were written.
    fn request(&mut self, head: u16) -> io::Result<u32> {
        let (mut readable, mut writable) = (Vec::new(), Vec::new());
        let mut index = head;
        loop {
            let mut entry = [0; 16];
            self.read(self.address(common::QUEUE_DESC) + 16 * u64::from(index), &mut entry)?;
            let address = u64::from_le_bytes(entry[..8].try_into().unwrap());
            let len = u32::from_le_bytes(entry[8..12].try_into().unwrap()) as usize;
            let flags = u16::from_le_bytes([entry[12], entry[13]]);
            (if flags & WRITE == 0 { &mut readable } else { &mut writable }).push((address, len));
            if flags & NEXT == 0 {
                break;
            }
            index = u16::from_le_bytes([entry[14], entry[15]]);
        }
        let mut header = [0; 16];
        self.read(readable.remove(0).0, &mut header)?;
        let (status, _) = writable.pop().ok_or(io::ErrorKind::InvalidInput)?;
        let mut at = u64::from_le_bytes(header[8..].try_into().unwrap()) as usize * SECTOR;
        let is_out = u32::from_le_bytes(header[..4].try_into().unwrap()) == OUT;
        let mut written = 1;
        for (address, len) in if is_out { readable } else { writable } {
            let mut piece = vec![0; len];
            if is_out {
                self.read(address, &mut piece)?;
                self.data[at..at + len].copy_from_slice(&piece);
            } else {
                self.write(address, &self.data[at..at + len])?;
                written += len as u32;
            }
            at += len;
        }
        self.write(status, &[0])?;
        Ok(written)
    }
}

impl ServerBackend for Disk {
    fn region_read(&mut self, region: u32, offset: u64, data: &mut [u8]) -> io::Result<()> {
        let at = offset as usize;
        let bytes = if region == VFIO_PCI_CONFIG_REGION_INDEX { &self.config[..] } else { &self.bar[..] };
        data.copy_from_slice(&bytes[at..at + data.len()]);
        Ok(())
    }

    fn region_write(&mut self, region: u32, offset: u64, data: &[u8]) -> io::Result<()> {
        let at = offset as usize;
        if region != VFIO_PCI_BAR4_REGION_INDEX {
            return Ok(());
        }
        if at >= NOTIFY {
            return self.serve_queue();
        }
        self.bar[at..at + data.len()].copy_from_slice(data);
        match offset {
            0 => {
                // VERSION_1 is bit 32.
                let is_high = u8::from(data[0] == 1);
                self.bar[common::DEVICE_FEATURE as usize] = is_high;
            }
            common::STATUS if data[0] == 0 => self.power_on(),
            _ => {}
        }
        Ok(())
    }

    fn dma_map(
        &mut self,
        _: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        fd: Option<File>,
    ) -> io::Result<()> {
        self.memory.push((address, size, fd.ok_or(io::ErrorKind::Unsupported)?, offset));
        Ok(())
    }

    fn dma_unmap(&mut self, _: DmaUnmapFlags, address: u64, _size: u64) -> io::Result<()> {
        self.memory.retain(|(start, ..)| *start != address);
        Ok(())
    }

    fn reset(&mut self) -> io::Result<()> {
        self.power_on();
        Ok(())
    }

    fn set_irqs(&mut self, _: u32, _: u32, _: u32, _: u32, _: Vec<File>) -> io::Result<()> {
        Ok(())
    }
}
