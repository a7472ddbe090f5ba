//! From what a device model says it is ([`Layout`]) to its configuration space.

use super::{ConfigSpace, regs, regs::cap};

/// Numbers by which drivers find the device.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID.
    pub subsystem_vendor: u16,
    /// Subsystem ID.
    pub subsystem: u16,
    /// Revision ID.
    pub revision: u8,
    /// Base class, sub-class, programming interface.
    pub class: [u8; 3],
}

/// A memory BAR.
#[derive(Clone, Copy, Debug)]
pub struct Bar {
    /// Bytes; a power of two, at least 4096.
    pub size: u32,
    /// 64-bit; takes the next BAR's register too.
    pub wide: bool,
}

/// A vendor-specific capability: its bytes behind id, next and length.
#[derive(Clone, Debug)]
pub struct VendorCap {
    /// The bytes from offset 3 on.
    pub body: Vec<u8>,
    /// Which bytes of `body` the guest may write; shorter than `body` means none further.
    pub writable: Vec<u8>,
}

/// What a device model is, as PCI: fixed for its life.
#[derive(Clone, Debug)]
pub struct Layout {
    /// Numbers by which drivers find it.
    pub identity: Identity,
    /// Its BARs.
    pub bars: [Option<Bar>; 6],
    /// MSI-X vectors; with none, there is no such capability and neither of its BARs.
    pub vectors: u16,
    /// BAR that holds nothing but the MSI-X table.
    pub msix_table_bar: u8,
    /// BAR that holds nothing but the pending bits.
    pub msix_pba_bar: u8,
    /// Vendor-specific capabilities, in order.
    pub vendor_caps: Vec<VendorCap>,
    /// Device serial number.
    pub serial: u64,
}

/// Links capabilities into a list as they are added.
struct Chain {
    /// Where the pointer to the next one goes.
    link: usize,
    /// Where the next one may start.
    free: usize,
}

impl Chain {
    fn add(&mut self, config: &mut ConfigSpace, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.free;
        assert!(at + 2 + body.len() <= regs::EXTENDED, "the capabilities fit into 256 bytes");
        config.set(self.link, &[u8::try_from(at).expect("below 256")]);
        config.set(at, &[id, 0]);
        config.set(at + 2, body);
        config.allow(at + 2, writable);
        self.link = at + 1;
        self.free = (at + 2 + body.len()).next_multiple_of(4);
        at
    }
}

impl Layout {
    /// Builds the configuration space as it is after power-on.
    #[must_use]
    pub fn config_space(&self) -> ConfigSpace {
        let mut config = ConfigSpace::empty();
        let Identity { vendor, device, subsystem_vendor, subsystem, revision, class: [base, sub, interface] } =
            self.identity;
        config.set(regs::VENDOR_ID, &vendor.to_le_bytes());
        config.set(regs::DEVICE_ID, &device.to_le_bytes());
        config.set(regs::STATUS, &regs::STATUS_CAPABILITIES.to_le_bytes());
        config.set(regs::REVISION, &[revision]);
        config.set(regs::CLASS, &[interface, sub, base]);
        config.set(regs::SUBSYSTEM_VENDOR_ID, &subsystem_vendor.to_le_bytes());
        config.set(regs::SUBSYSTEM_ID, &subsystem.to_le_bytes());
        config.set(regs::INTERRUPT_PIN, &[1]);
        let command = regs::COMMAND_MEMORY
            | regs::COMMAND_BUS_MASTER
            | regs::COMMAND_PARITY
            | regs::COMMAND_SERR
            | regs::COMMAND_INTX_DISABLE;
        config.allow(regs::COMMAND, &command.to_le_bytes());
        config.clear_on_one(regs::STATUS, regs::STATUS_RW1C);
        config.allow(regs::CACHE_LINE_SIZE, &[0xff]);
        config.allow(regs::INTERRUPT_LINE, &[0xff]);
        self.add_bars(&mut config);
        self.add_capabilities(&mut config);
        config
    }

    fn add_bars(&self, config: &mut ConfigSpace) {
        for (at, bar) in (regs::BAR0..).step_by(4).zip(&self.bars) {
            let Some(bar) = bar else { continue };
            assert!(bar.size.is_power_of_two() && bar.size >= 4096);
            // Bits below the size read as zero; that is how a driver learns it (PCI Local Bus 3.0, 6.2.5.1).
            config.allow(at, &(!(bar.size - 1)).to_le_bytes());
            if bar.wide {
                config.set(at, &[0b100]);
                config.allow(at + 4, &[0xff; 4]);
            }
        }
    }

    fn add_capabilities(&self, config: &mut ConfigSpace) {
        let mut chain = Chain { link: regs::CAPABILITIES, free: regs::HEADER_END };
        // Power management 1.2: D0 and D3hot, no PME; No_Soft_Reset, so state survives D3hot.
        let at = chain.add(config, cap::PM, &[0x03, 0x00, 0x08, 0x00, 0x00, 0x00], &[0x00, 0x00, 0x03]);
        config.power_at(at);
        // PCI Express endpoint, version 2: function-level reset, 128-byte payloads.
        let mut express = [0_u8; 58];
        express[0] = 0x02;
        express[2..6].copy_from_slice(&(1_u32 << 28 | 1 << 15).to_le_bytes());
        // Link 2.5 GT/s, one lane, as capability and as status.
        express[10..14].copy_from_slice(&0x11_u32.to_le_bytes());
        express[16..18].copy_from_slice(&0x11_u16.to_le_bytes());
        let mut writable = [0_u8; 58];
        writable[6..8].copy_from_slice(&0x7fff_u16.to_le_bytes());
        writable[14..16].copy_from_slice(&0x00ff_u16.to_le_bytes());
        let at = chain.add(config, cap::EXPRESS, &express, &writable);
        config.express_at(at);
        if self.vectors > 0 {
            let mut msix = [0_u8; 10];
            msix[0..2].copy_from_slice(&(self.vectors - 1).to_le_bytes());
            msix[2] = self.msix_table_bar;
            msix[6] = self.msix_pba_bar;
            let control = regs::MSIX_ENABLE | regs::MSIX_FUNCTION_MASK;
            let at = chain.add(config, cap::MSIX, &msix, &control.to_le_bytes());
            config.msix_at(at);
        }
        for vendor in &self.vendor_caps {
            let len = u8::try_from(vendor.body.len() + 3).expect("a capability is shorter than 256 bytes");
            let body: Vec<u8> = [len].into_iter().chain(vendor.body.iter().copied()).collect();
            let writable: Vec<u8> = [0].into_iter().chain(vendor.writable.iter().copied()).collect();
            chain.add(config, cap::VENDOR, &body, &writable);
        }
        // Device serial number, the only extended capability: version 1, no next.
        let head = u32::from(cap::EXT_SERIAL) | 1 << 16;
        config.set(regs::EXTENDED, &head.to_le_bytes());
        config.set(regs::EXTENDED + 4, &self.serial.to_le_bytes());
    }
}
