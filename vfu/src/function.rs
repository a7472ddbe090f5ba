//! One PCI function: configuration space, MSI-X table and a device model, put together as regions to read and write.
//!
//! The front door calls this; nothing here knows its messages. Accesses that hardware would not answer read as all
//! ones and drop writes: an error could wedge the client (Cloud Hypervisor reads a fixed size and ignores the flag).

use std::sync::Arc;

use crate::{
    device::{Bus, DeviceModel, Progress},
    pci::{ConfigSpace, regs},
    wire::spec::region,
};

/// A PCI function.
pub struct Function {
    config: ConfigSpace,
    /// The MSI-X table. Clients keep their own and tell us by SET_IRQS; this is what they read back.
    msix_table: Vec<u8>,
    /// Without vectors there is neither BAR.
    msix_table_bar: Option<u8>,
    msix_pba_bar: Option<u8>,
    /// The client has set the memory bit at least once. SPDK's initiators never do, and are served all the same.
    memory_bit_used: bool,
    bus: Arc<Bus>,
    model: Box<dyn DeviceModel>,
}

/// The MSI-X table after reset: every vector masked (PCI Local Bus 3.0, 6.8.2.9).
fn masked_vectors(vectors: u16) -> Vec<u8> {
    let mut table = vec![0; usize::from(vectors) * regs::MSIX_ENTRY_LEN];
    for entry in table.chunks_exact_mut(regs::MSIX_ENTRY_LEN) {
        entry[12] = 1;
    }
    table
}

/// Bytes of a BAR that holds an MSI-X structure of `len` bytes.
fn msix_bar_size(len: usize) -> u64 {
    (len as u64).next_power_of_two().max(4096)
}

impl Function {
    /// A function as after power-on.
    #[must_use]
    pub fn new(bus: Arc<Bus>, model: Box<dyn DeviceModel>) -> Self {
        let layout = model.layout();
        let msix_table = masked_vectors(layout.vectors);
        let with_vectors = |bar| (layout.vectors > 0).then_some(bar);
        Self {
            config: layout.config_space(),
            msix_table,
            msix_table_bar: with_vectors(layout.msix_table_bar),
            msix_pba_bar: with_vectors(layout.msix_pba_bar),
            memory_bit_used: false,
            bus,
            model,
        }
    }

    /// The wires to the guest.
    #[must_use]
    pub fn bus(&self) -> &Arc<Bus> {
        &self.bus
    }

    /// The device model.
    pub fn model(&mut self) -> &mut dyn DeviceModel {
        &mut *self.model
    }

    /// The device model, to look at.
    #[must_use]
    pub fn model_ref(&self) -> &dyn DeviceModel {
        &*self.model
    }

    /// Bytes of a region; zero where there is none.
    #[must_use]
    pub fn region_size(&self, index: u32) -> u64 {
        match index {
            region::CONFIG => regs::CONFIG_LEN as u64,
            index if index < region::NUM_BARS => {
                if Some(index) == self.msix_table_bar.map(u32::from) {
                    return msix_bar_size(self.msix_table.len());
                }
                if Some(index) == self.msix_pba_bar.map(u32::from) {
                    return msix_bar_size(self.msix_table.len() / regs::MSIX_ENTRY_LEN / 8);
                }
                self.model.layout().bars[index as usize].map_or(0, |bar| u64::from(bar.size))
            }
            _ => 0,
        }
    }

    fn memory_off(&self) -> bool {
        (self.memory_bit_used && !self.config.memory_enabled()) || self.config.is_asleep()
    }

    /// Reads a region. The caller has checked the range against [`Self::region_size`].
    pub fn read(&mut self, index: u32, offset: u64, data: &mut [u8]) {
        match u8::try_from(index) {
            Ok(bar) if index < region::NUM_BARS => self.read_bar(bar, offset, data),
            _ if index == region::CONFIG => {
                self.fill_window(offset, data.len());
                self.config.set_status_interrupt(self.bus.irqs.pin_is_up());
                self.config.read(offset, data);
            }
            _ => data.fill(0xff),
        }
    }

    fn read_bar(&mut self, bar: u8, offset: u64, data: &mut [u8]) {
        if self.memory_off() {
            data.fill(0xff);
        } else if Some(bar) == self.msix_table_bar {
            copy_padded(&self.msix_table, offset, data);
        } else if Some(bar) == self.msix_pba_bar {
            let bits: Vec<u8> = (0..self.msix_table.len() / regs::MSIX_ENTRY_LEN)
                .collect::<Vec<_>>()
                .chunks(8)
                .map(|byte| {
                    byte.iter().enumerate().fold(0, |bits, (bit, &vector)| {
                        bits | u8::from(self.bus.irqs.is_pending(vector)) << bit
                    })
                })
                .collect();
            copy_padded(&bits, offset, data);
        } else {
            self.model.read(bar, offset, data);
        }
    }

    /// Writes a region. The caller has checked the range against [`Self::region_size`], and then asks
    /// [`Self::progress`].
    pub fn write(&mut self, index: u32, offset: u64, data: &[u8]) {
        match u8::try_from(index) {
            Ok(bar) if index < region::NUM_BARS => self.write_bar(bar, offset, data),
            _ if index == region::CONFIG => self.write_config(offset, data),
            _ => {}
        }
    }

    /// Whether a write that begins there starts nothing that [`Self::progress`] would tell of.
    #[must_use]
    pub fn is_doorbell(&self, index: u32, offset: u64) -> bool {
        u8::try_from(index).is_ok_and(|bar| index < region::NUM_BARS && self.model.is_doorbell(bar, offset))
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        if self.memory_off() || Some(bar) == self.msix_pba_bar {
            return;
        }
        if Some(bar) == self.msix_table_bar {
            let len = self.msix_table.len();
            let at = usize::try_from(offset).unwrap_or(len).min(len);
            let n = data.len().min(len - at);
            self.msix_table[at..at + n].copy_from_slice(&data[..n]);
        } else {
            self.model.write(bar, offset, data);
        }
    }

    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let effects = self.config.write(offset, data);
        if effects.reset {
            self.reset();
            return;
        }
        if effects.control {
            self.memory_bit_used |= self.config.memory_bit();
            self.apply_control();
        }
        if let Some((bar, at, len)) = self.window(offset, data.len()) {
            let mut value = [0; 4];
            self.config.read(self.window_data().unwrap_or(0), &mut value);
            self.write_bar(bar, at, &value[..len]);
        }
    }

    fn apply_control(&mut self) {
        self.bus.set_bus_master(self.config.bus_master());
        let irqs = &self.bus.irqs;
        irqs.configure(self.config.bus_master(), self.config.msix(), self.config.intx_disabled());
        self.model.sync();
    }

    /// Where the data field of the capability that is a window into the BARs lies (virtio 1.2, 4.1.4.9).
    fn window_data(&self) -> Option<u64> {
        let cap = self.config.find_capability(regs::cap::VENDOR, self.model.window_cap()?)?;
        Some(cap as u64 + 16)
    }

    /// What an access to the configuration space reaches through the window: BAR, offset, length.
    fn window(&self, offset: u64, len: usize) -> Option<(u8, u64, usize)> {
        let data = self.window_data()?;
        if offset >= data + 4 || offset.checked_add(len as u64)? <= data {
            return None;
        }
        // struct virtio_pci_cap: bar at 4, offset at 8, length at 12; here from its end.
        let mut cap = [0; 16];
        self.config.read(data - 16, &mut cap);
        let word = |at: usize| u32::from_le_bytes([cap[at], cap[at + 1], cap[at + 2], cap[at + 3]]);
        let (bar, at, len) = (cap[4], u64::from(word(8)), word(12));
        let fits =
            u32::from(bar) < region::NUM_BARS && at + u64::from(len) <= self.region_size(u32::from(bar));
        (matches!(len, 1 | 2 | 4) && fits && at.is_multiple_of(u64::from(len))).then_some((
            bar,
            at,
            len as usize,
        ))
    }

    /// Reads through the window into its data field, where an access will find it.
    fn fill_window(&mut self, offset: u64, len: usize) {
        if len > 4 {
            // A dump of the whole space is not an access through the window.
            return;
        }
        if let (Some(data), Some((bar, at, len))) = (self.window_data(), self.window(offset, len)) {
            let mut value = [0; 4];
            self.read_bar(bar, at, &mut value[..len]);
            self.config.poke(usize::try_from(data).unwrap_or(0), &value);
        }
    }

    /// Starts a reset to power-on state. Memory and eventfds stay: they belong to the client.
    pub fn reset(&mut self) {
        self.model.reset();
        self.config.reset();
        self.msix_table = masked_vectors(self.model.layout().vectors);
        self.bus.set_bus_master(false);
        self.bus.irqs.reset();
    }

    /// The client is gone; the next one may be of another kind.
    pub fn forget_client(&mut self) {
        self.memory_bit_used = false;
    }

    /// Moves what was started on; the front door answers nothing before it is done, but doorbells.
    pub fn progress(&mut self) -> Progress {
        self.model.progress()
    }
}

/// Copies from `bytes` at `offset`; what lies behind reads as zero.
fn copy_padded(bytes: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let from = usize::try_from(offset).ok().and_then(|at| bytes.get(at..)).unwrap_or(&[]);
    let n = from.len().min(data.len());
    data[..n].copy_from_slice(&from[..n]);
}
