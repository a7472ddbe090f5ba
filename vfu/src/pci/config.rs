//! The configuration space: what a guest reads, which of its writes count, and what a write sets off.

use super::regs::{self, CONFIG_LEN, EXTENDED_END};
use crate::irq::MsixControl;

/// What a write to the configuration space means for the device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The command register or the MSI-X control changed: see [`ConfigSpace::bus_master`] and its neighbours.
    pub control: bool,
    /// A function-level reset was started.
    pub reset: bool,
}

/// The configuration space of one function; only as much of it is kept as does not read zero.
#[derive(Clone, Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8; EXTENDED_END]>,
    /// Bits that a write sets.
    writable: Box<[u8; EXTENDED_END]>,
    /// Bits that a write of one clears.
    clear_on_one: Box<[u8; EXTENDED_END]>,
    /// Bytes after power-on.
    initial: Box<[u8; EXTENDED_END]>,
    express: Option<usize>,
    msix: Option<usize>,
    power: Option<usize>,
}

impl ConfigSpace {
    pub(super) fn empty() -> Self {
        let zero = || Box::new([0; EXTENDED_END]);
        Self {
            bytes: zero(),
            writable: zero(),
            clear_on_one: zero(),
            initial: zero(),
            express: None,
            msix: None,
            power: None,
        }
    }

    pub(super) fn set(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self.initial[at..at + bytes.len()].copy_from_slice(bytes);
    }

    pub(super) fn allow(&mut self, at: usize, mask: &[u8]) {
        self.writable[at..at + mask.len()].copy_from_slice(mask);
    }

    pub(super) fn clear_on_one(&mut self, at: usize, mask: u16) {
        self.clear_on_one[at..at + 2].copy_from_slice(&mask.to_le_bytes());
    }

    pub(super) fn express_at(&mut self, at: usize) {
        self.express = Some(at);
    }

    pub(super) fn power_at(&mut self, at: usize) {
        self.power = Some(at);
    }

    pub(super) fn msix_at(&mut self, at: usize) {
        self.msix = Some(at);
    }

    /// Back to power-on.
    pub fn reset(&mut self) {
        self.bytes.copy_from_slice(&*self.initial);
    }

    /// Reads; bytes behind the end are all ones, as nothing answers there.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let start = usize::try_from(offset).unwrap_or(CONFIG_LEN).min(CONFIG_LEN);
        for (at, byte) in (start..).zip(data) {
            let behind = if at < CONFIG_LEN { 0 } else { 0xff };
            *byte = self.bytes.get(at).copied().unwrap_or(behind);
        }
    }

    /// Writes what may be written, and says what that sets off. Other bytes are ignored: drivers do write them.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Effects {
        let before = (self.command(), self.msix_control(), self.is_asleep());
        let power_before = self.power.map_or(0, |at| self.bytes[at + 4] & 3);
        let mut reset = false;
        let start = usize::try_from(offset).unwrap_or(EXTENDED_END);
        for (at, &byte) in (start..EXTENDED_END).zip(data) {
            let (writable, clear) = (self.writable[at], self.clear_on_one[at]);
            let kept = self.bytes[at] & !writable;
            self.bytes[at] = (kept | byte & writable) & !(byte & clear);
            // Initiate Function Level Reset is the top bit of device control and always reads zero.
            let flr_byte = self.express.map(|express| express + 9);
            reset |= flr_byte == Some(at) && u16::from(byte) << 8 & regs::DEVCTL_FLR != 0;
        }
        if let Some(at) = self.power.map(|at| at + 4) {
            // D1 and D2 do not exist here: such a write is discarded (PCI Power Management 1.2, 3.2.4).
            let state = self.bytes[at] & 3;
            if state == 1 || state == 2 {
                self.bytes[at] = self.bytes[at] & !3 | power_before;
            }
        }
        let control = before != (self.command(), self.msix_control(), self.is_asleep());
        Effects { control, reset }
    }

    /// A 16-bit register.
    fn word(&self, at: usize) -> u16 {
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }

    fn command(&self) -> u16 {
        self.word(regs::COMMAND)
    }

    fn msix_control(&self) -> u16 {
        self.msix.map_or(0, |at| self.word(at + 2))
    }

    /// In D3hot: only the configuration space answers (PCI Power Management 1.2, 5.4.1).
    #[must_use]
    pub fn is_asleep(&self) -> bool {
        self.power.is_some_and(|at| self.word(at + 4) & regs::PM_STATE_MASK != 0)
    }

    /// The device may start DMA and send messages.
    #[must_use]
    pub fn bus_master(&self) -> bool {
        self.command() & regs::COMMAND_BUS_MASTER != 0 && !self.is_asleep()
    }

    /// The memory bit of the command register.
    #[must_use]
    pub fn memory_bit(&self) -> bool {
        self.command() & regs::COMMAND_MEMORY != 0
    }

    /// Memory BARs answer.
    #[must_use]
    pub fn memory_enabled(&self) -> bool {
        self.memory_bit() && !self.is_asleep()
    }

    /// INTx is off.
    #[must_use]
    pub fn intx_disabled(&self) -> bool {
        self.command() & regs::COMMAND_INTX_DISABLE != 0
    }

    /// Follows the pin in the status register (PCI Local Bus 3.0, 6.2.3: Interrupt Status).
    pub fn set_status_interrupt(&mut self, is_up: bool) {
        let status = self.word(regs::STATUS) & !regs::STATUS_INTX;
        let status = if is_up { status | regs::STATUS_INTX } else { status };
        self.poke(regs::STATUS, &status.to_le_bytes());
    }

    /// Message control of MSI-X.
    #[must_use]
    pub fn msix(&self) -> MsixControl {
        let control = self.msix_control();
        MsixControl {
            enabled: control & regs::MSIX_ENABLE != 0,
            masked: control & regs::MSIX_FUNCTION_MASK != 0,
        }
    }

    /// Writes a byte that only the device may: for capabilities whose content it provides.
    pub fn poke(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Where the capability of this kind starts, counting from zero among its like.
    #[must_use]
    pub fn find_capability(&self, id: u8, nth: usize) -> Option<usize> {
        let mut at = usize::from(self.bytes[regs::CAPABILITIES]);
        let list = std::iter::from_fn(|| {
            let here = at;
            at = usize::from(*self.bytes.get(here + 1)?);
            (here != 0).then_some(here)
        });
        list.filter(|&here| self.bytes[here] == id).nth(nth)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pci::{Bar, Identity, Layout, VendorCap, regs::cap};

    fn config() -> ConfigSpace {
        let identity = Identity {
            vendor: 0x1af4,
            device: 0x1042,
            subsystem_vendor: 0x1af4,
            subsystem: 0x1100,
            revision: 1,
            class: [1, 0, 0],
        };
        let mut bars = [None; 6];
        bars[1] = Some(Bar { size: 4096, wide: false });
        bars[4] = Some(Bar { size: 0x4000, wide: false });
        let vendor_caps = vec![VendorCap { body: vec![1, 4, 0, 0], writable: vec![] }];
        Layout { identity, bars, vectors: 3, msix_table_bar: 1, msix_pba_bar: 2, vendor_caps, serial: 7 }
            .config_space()
    }

    fn read32(config: &ConfigSpace, at: u64) -> u32 {
        let mut data = [0; 4];
        config.read(at, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn header_says_what_the_device_is() {
        let config = config();
        assert_eq!(read32(&config, 0), 0x1042_1af4);
        assert_eq!(read32(&config, 8), 0x0100_0001);
        assert_eq!(read32(&config, 0x2c), 0x1100_1af4);
    }

    #[test]
    fn bar_sizing_reads_back_the_size() {
        let mut config = config();
        config.write(0x20, &[0xff; 4]);
        assert_eq!(read32(&config, 0x20), 0xffff_c000);
        config.write(0x10, &[0xff; 4]);
        assert_eq!(read32(&config, 0x10), 0, "an absent BAR takes nothing");
    }

    #[test]
    fn read_only_bytes_ignore_writes() {
        let mut config = config();
        assert_eq!(config.write(0, &[0xff; 4]), Effects::default());
        assert_eq!(read32(&config, 0), 0x1042_1af4);
    }

    #[test]
    fn command_bits_are_an_effect_once() {
        let mut config = config();
        assert!(config.write(4, &[6, 0]).control);
        assert!(!config.write(4, &[6, 0]).control);
        assert!(config.bus_master() && config.memory_enabled());
    }

    #[test]
    fn msix_enable_by_a_one_byte_write_counts() {
        let mut config = config();
        let at = config.find_capability(cap::MSIX, 0).unwrap() as u64;
        assert!(config.write(at + 3, &[0x80]).control);
        assert_eq!(config.msix(), MsixControl { enabled: true, masked: false });
        config.write(at + 3, &[0xc0]);
        assert_eq!(config.msix(), MsixControl { enabled: true, masked: true });
        assert_eq!(read32(&config, at) >> 16 & 0x7ff, 2, "three vectors");
    }

    #[test]
    fn function_level_reset_is_an_effect_and_never_reads_back() {
        let mut config = config();
        let at = config.find_capability(cap::EXPRESS, 0).unwrap() as u64;
        assert!(config.write(at + 8, &0x8000_u16.to_le_bytes()).reset);
        assert_eq!(read32(&config, at + 8) & 0x8000, 0);
    }

    #[test]
    fn reset_brings_power_on_values_back() {
        let mut config = config();
        config.write(4, &[6, 0]);
        config.write(0x20, &[0, 0x40, 0, 0xfe]);
        config.reset();
        assert_eq!(read32(&config, 0x20), 0);
        assert!(!config.bus_master());
    }

    #[test]
    fn serial_number_is_the_extended_capability() {
        let config = config();
        assert_eq!(read32(&config, 0x100), 0x0001_0003);
        assert_eq!(read32(&config, 0x104), 7);
    }

    #[test]
    fn rest_of_the_extended_space_reads_zero_and_takes_no_write() {
        let mut config = config();
        for at in [0x10c, 0x110, 0xffc] {
            config.write(at, &[0xff; 4]);
            assert_eq!(read32(&config, at), 0);
        }
    }

    #[test]
    fn reads_behind_the_end_are_all_ones() {
        let mut data = [0; 4];
        config().read(0xffe, &mut data);
        assert_eq!(data, [0, 0, 0xff, 0xff]);
    }
}
