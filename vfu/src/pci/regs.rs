//! Offsets and bits of the configuration space.

/// Vendor ID.
pub const VENDOR_ID: usize = 0x00;
/// Device ID.
pub const DEVICE_ID: usize = 0x02;
/// Command register.
pub const COMMAND: usize = 0x04;
/// Status register.
pub const STATUS: usize = 0x06;
/// Revision ID.
pub const REVISION: usize = 0x08;
/// Class code, three bytes.
pub const CLASS: usize = 0x09;
/// Cache line size.
pub const CACHE_LINE_SIZE: usize = 0x0c;
/// First base address register.
pub const BAR0: usize = 0x10;
/// Subsystem vendor ID.
pub const SUBSYSTEM_VENDOR_ID: usize = 0x2c;
/// Subsystem ID.
pub const SUBSYSTEM_ID: usize = 0x2e;
/// First capability.
pub const CAPABILITIES: usize = 0x34;
/// Interrupt line.
pub const INTERRUPT_LINE: usize = 0x3c;
/// Interrupt pin.
pub const INTERRUPT_PIN: usize = 0x3d;
/// First byte behind the header.
pub const HEADER_END: usize = 0x40;
/// First byte of the extended space.
pub const EXTENDED: usize = 0x100;
/// First byte behind the one extended capability, the serial number; from here on everything reads zero.
pub const EXTENDED_END: usize = 0x10c;
/// Bytes of the configuration space of a PCI Express function.
pub const CONFIG_LEN: usize = 0x1000;

/// Command: memory accesses are answered.
pub const COMMAND_MEMORY: u16 = 1 << 1;
/// Command: the device may start DMA and send messages.
pub const COMMAND_BUS_MASTER: u16 = 1 << 2;
/// Command: parity error response.
pub const COMMAND_PARITY: u16 = 1 << 6;
/// Command: SERR# enable.
pub const COMMAND_SERR: u16 = 1 << 8;
/// Command: INTx is off.
pub const COMMAND_INTX_DISABLE: u16 = 1 << 10;
/// Status: INTx is up.
pub const STATUS_INTX: u16 = 1 << 3;
/// Status: there is a capability list.
pub const STATUS_CAPABILITIES: u16 = 1 << 4;
/// Status: the bits a write of one clears (parity, aborts, SERR).
pub const STATUS_RW1C: u16 = 0xf900;

/// Capability IDs.
pub mod cap {
    /// Power management.
    pub const PM: u8 = 0x01;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
    /// Extended: device serial number.
    pub const EXT_SERIAL: u16 = 0x0003;
}

/// Power management control: the power state.
pub const PM_STATE_MASK: u16 = 3;
/// MSI-X message control: enable.
pub const MSIX_ENABLE: u16 = 1 << 15;
/// MSI-X message control: all vectors masked.
pub const MSIX_FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of one MSI-X table entry.
pub const MSIX_ENTRY_LEN: usize = 16;
/// Device control of the PCI Express capability: start a function-level reset.
pub const DEVCTL_FLR: u16 = 1 << 15;
