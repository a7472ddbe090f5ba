//! Log pages (Base, 5.16).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Log page identifiers (Base, figure 201).
pub mod id {
    /// Supported Log Pages.
    pub const SUPPORTED: u8 = 0x00;
    /// Error Information.
    pub const ERROR: u8 = 0x01;
    /// SMART / Health Information.
    pub const HEALTH: u8 = 0x02;
    /// Firmware Slot Information.
    pub const FIRMWARE: u8 = 0x03;
    /// Changed Namespace List.
    pub const CHANGED_NAMESPACES: u8 = 0x04;
    /// Commands Supported and Effects.
    pub const EFFECTS: u8 = 0x05;
    /// Asymmetric Namespace Access.
    pub const ANA: u8 = 0x0c;
    /// Feature Identifiers Supported and Effects.
    pub const FEATURES: u8 = 0x12;
    /// Reservation Notification.
    pub const RESERVATION: u8 = 0x80;
}

/// Error Information entry (Base, figure 206).
#[derive(Clone, Copy, Debug, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct ErrorEntry {
    pub error_count: u64,
    pub sqid: u16,
    pub cid: u16,
    pub status: u16,
    pub location: u16,
    pub lba: u64,
    pub nsid: u32,
    pub vendor_log: u8,
    pub trtype: u8,
    pub reserved: [u8; 2],
    pub command_specific: u64,
    pub transport_specific: u16,
    pub reserved2: [u8; 22],
}
const _: () = assert!(size_of::<ErrorEntry>() == 64);

/// SMART / Health Information (Base, figure 207).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct Health {
    pub critical_warning: u8,
    pub temperature: u16,
    pub available_spare: u8,
    pub spare_threshold: u8,
    pub percentage_used: u8,
    pub endurance_group_summary: u8,
    pub reserved7: [u8; 25],
    pub data_units_read: u128,
    pub data_units_written: u128,
    pub host_read_commands: u128,
    pub host_write_commands: u128,
    pub controller_busy_time: u128,
    pub power_cycles: u128,
    pub power_on_hours: u128,
    pub unsafe_shutdowns: u128,
    pub media_errors: u128,
    pub error_log_entries: u128,
    pub warning_temperature_time: u32,
    pub critical_temperature_time: u32,
    pub temperature_sensors: [u16; 8],
    pub reserved216: [u8; 296],
}
const _: () = assert!(size_of::<Health>() == 512);

/// Firmware Slot Information (Base, figure 208).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct Firmware {
    pub afi: u8,
    pub reserved1: [u8; 7],
    pub revisions: [[u8; 8]; 7],
    pub reserved64: [u8; 448],
}
const _: () = assert!(size_of::<Firmware>() == 512);

/// Reservation Notification (Base, figure 258).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct ReservationNotification {
    pub count: u64,
    pub kind: u8,
    pub available: u8,
    pub reserved10: [u8; 2],
    pub nsid: u32,
    pub reserved16: [u64; 6],
}
const _: () = assert!(size_of::<ReservationNotification>() == 64);
