//! Finds what a virtio driver needs in configuration space: vendor capabilities and MSI-X.
//!
//! [`super::transport`] is the caller. Trusts the device no more than a kernel does: a capability list that loops, or a
//! structure outside its BAR, is an error. Offsets are PCI Local Bus 3.0's and virtio 1.2's (4.1.4).

use super::client::{Client, ClientError};
use crate::wire::spec::region;

const COMMAND: u64 = 0x04;
const CAPABILITIES: usize = 0x34;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;
const CAP_VENDOR: u8 = 0x09;
const CAP_MSIX: u8 = 0x11;
const MSIX_ENABLE: u16 = 1 << 15;
/// Vendor ID of virtio devices, and device ID of modern ones less their virtio ID (virtio 1.2, 4.1.2).
const VIRTIO_VENDOR: u16 = 0x1af4;
const MODERN_BASE: u16 = 0x1040;

/// Why a device cannot be driven.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The client's.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// Not a modern virtio device.
    #[error("PCI device {vendor:04x}:{device:04x} is not a modern virtio device")]
    NotVirtio {
        /// Vendor ID.
        vendor: u16,
        /// Device ID.
        device: u16,
    },
    /// The capability list does not end, or leaves the space.
    #[error("the capability list is broken")]
    List,
    /// A structure that a driver cannot do without.
    #[error("there is no {0} structure")]
    Missing(&'static str),
    /// A structure that is not inside its BAR.
    #[error("the {0} structure is not inside its BAR")]
    Outside(&'static str),
}

/// Where a structure is: a part of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Structure {
    /// Which BAR, which is also the region.
    pub bar: u32,
    /// From the start of the BAR.
    pub offset: u64,
    /// Bytes.
    pub len: u64,
}

/// The MSI-X capability.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Msix {
    /// Where it is in configuration space.
    at: u64,
    /// Vectors.
    pub vectors: u16,
    /// Where its table is.
    pub table: Structure,
    /// Where its pending bits are.
    pub pending: Structure,
}

/// A modern virtio PCI function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PciFunction {
    /// Virtio device ID.
    pub device_id: u16,
    /// Common configuration.
    pub common: Structure,
    /// Interrupt status.
    pub isr: Structure,
    /// Device configuration.
    pub device: Structure,
    /// Notifications.
    pub notify: Structure,
    /// Distance of the notifications of two queues.
    pub notify_multiplier: u32,
    /// MSI-X, if it has any.
    pub msix: Option<Msix>,
}

/// The configuration space's first 256 bytes.
struct Space([u8; 256]);

impl Space {
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.0[at], self.0[at + 1]])
    }

    fn dword(&self, at: usize) -> u32 {
        u32::from(self.word(at)) | u32::from(self.word(at + 2)) << 16
    }

    /// Where the capabilities start, in the order of the list.
    fn capabilities(&self) -> Result<Vec<usize>, ProbeError> {
        let (mut at, mut found) = (usize::from(self.0[CAPABILITIES] & !3), Vec::new());
        while at != 0 {
            // The shortest capability is four bytes long, so more than this is a loop.
            if !(0x40..=0xfc).contains(&at) || found.len() > 48 {
                return Err(ProbeError::List);
            }
            found.push(at);
            at = usize::from(self.0[at + 1] & !3);
        }
        Ok(found)
    }

    /// A structure of this kind, the first as the driver prefers (virtio 1.2, 4.1.4).
    fn structure(&self, list: &[usize], kind: u8) -> Option<(usize, Structure)> {
        // struct virtio_pci_cap: cfg_type at 3, bar at 4, offset at 8, length at 12.
        let at =
            *list.iter().find(|&&at| at <= 0xf0 && self.0[at] == CAP_VENDOR && self.0[at + 3] == kind)?;
        let (offset, len) = (u64::from(self.dword(at + 8)), u64::from(self.dword(at + 12)));
        Some((at, Structure { bar: u32::from(self.0[at + 4]), offset, len }))
    }

    fn msix(&self, list: &[usize]) -> Option<Msix> {
        let at = *list.iter().find(|&&at| at <= 0xf4 && self.0[at] == CAP_MSIX)?;
        let vectors = (self.word(at + 2) & 0x7ff) + 1;
        let place = |at: usize, len: u64| {
            let word = self.dword(at);
            Structure { bar: word & 7, offset: u64::from(word & !7), len }
        };
        let table = place(at + 4, u64::from(vectors) * 16);
        let pending = place(at + 8, u64::from(vectors).div_ceil(64) * 8);
        Some(Msix { at: at as u64, vectors, table, pending })
    }
}

impl PciFunction {
    /// Looks a device over.
    ///
    /// # Errors
    /// See [`ProbeError`].
    pub fn probe(client: &mut Client) -> Result<Self, ProbeError> {
        let mut space = Space([0; 256]);
        client.region_read(region::CONFIG, 0, &mut space.0)?;
        let (vendor, device) = (space.word(0), space.word(2));
        let device_id =
            device.checked_sub(MODERN_BASE).filter(|id| vendor == VIRTIO_VENDOR && (1..=63).contains(id));
        let device_id = device_id.ok_or(ProbeError::NotVirtio { vendor, device })?;
        let list = space.capabilities()?;
        let mut find = |name, kind, least: u64| {
            let (at, place) = space.structure(&list, kind).ok_or(ProbeError::Missing(name))?;
            let inside = place.bar < region::NUM_BARS
                && place.len >= least
                && place.offset + place.len <= client.region_info(place.bar)?.info.size;
            if inside { Ok((at, place)) } else { Err(ProbeError::Outside(name)) }
        };
        // The least lengths are those of the specification's structures (4.1.4.3 to 4.1.4.6).
        let (_, common) = find("common configuration", 1, 56)?;
        let (at, notify) = find("notification", 2, 2)?;
        let (_, isr) = find("ISR", 3, 1)?;
        let (_, device) = find("device configuration", 4, 0)?;
        let notify_multiplier = if at <= 0xec { space.dword(at + 16) } else { 0 };
        Ok(Self { device_id, common, isr, device, notify, notify_multiplier, msix: space.msix(&list) })
    }

    /// Lets the device answer in its BARs and reach memory.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn enable(&self, client: &mut Client) -> Result<(), ClientError> {
        self.set_command(client, COMMAND_MEMORY | COMMAND_BUS_MASTER)
    }

    /// Answers in BARs, but reaches no memory.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn disable_bus_master(&self, client: &mut Client) -> Result<(), ClientError> {
        self.set_command(client, COMMAND_MEMORY)
    }

    fn set_command(&self, client: &mut Client, command: u16) -> Result<(), ClientError> {
        client.region_write(region::CONFIG, COMMAND, &command.to_le_bytes())
    }

    /// Switches MSI-X on.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn enable_msix(&self, client: &mut Client) -> Result<(), ClientError> {
        let Some(msix) = &self.msix else { return Ok(()) };
        client.region_write(region::CONFIG, msix.at + 2, &MSIX_ENABLE.to_le_bytes())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A space with one capability at 0x40 whose next pointer is `next`.
    fn space(next: u8) -> Space {
        let mut bytes = [0; 256];
        bytes[CAPABILITIES] = 0x40;
        bytes[0x40..0x50]
            .copy_from_slice(&[CAP_VENDOR, next, 16, 1, 4, 0, 0, 0, 0, 0x10, 0, 0, 0, 0x20, 0, 0]);
        Space(bytes)
    }

    #[test]
    fn structure_is_read_from_its_capability() {
        let space = space(0);
        let list = space.capabilities().unwrap();
        let expected = Structure { bar: 4, offset: 0x1000, len: 0x2000 };
        assert_eq!(space.structure(&list, 1), Some((0x40, expected)));
        assert_eq!(space.structure(&list, 2), None);
    }

    #[test]
    fn list_that_loops_or_leaves_the_space_is_an_error() {
        assert!(matches!(space(0x40).capabilities(), Err(ProbeError::List)));
        assert!(matches!(space(0x04).capabilities(), Err(ProbeError::List)));
    }
}
