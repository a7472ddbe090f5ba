//! Numbers and layouts of virtio-scsi (virtio 1.2, 5.6) and of the SCSI commands behind it (SPC-4, SBC-3). Wire structs
//! of this device type live here and nowhere else. SCSI fields are big-endian, virtio's are little-endian.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Virtio device ID.
pub const DEVICE_ID: u16 = 8;
/// Bytes of a command descriptor block, unless the driver asks for others.
pub const CDB_LEN: usize = 32;
/// Bytes of sense data, unless the driver asks for others.
pub const SENSE_LEN: usize = 96;
/// Queues in front of the request queues: control and event (virtio 1.2, 5.6.2).
pub const OWN_QUEUES: u16 = 2;
/// Targets of a device, numbered from zero.
pub const MAX_TARGETS: usize = 8;

/// Feature bits (virtio 1.2, 5.6.3).
pub mod feature {
    /// Targets come and go.
    pub const HOTPLUG: u64 = 1 << 1;
    /// Logical units change.
    pub const CHANGE: u64 = 1 << 2;
}

/// The configuration space (virtio 1.2, 5.6.4).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Config {
    /// Request queues.
    pub num_queues: u32,
    /// Most segments of a command.
    pub seg_max: u32,
    /// Most sectors of a transfer.
    pub max_sectors: u32,
    /// Commands in flight for one unit.
    pub cmd_per_lun: u32,
    /// Bytes of an event.
    pub event_info_size: u32,
    /// Bytes of sense data; the driver may write it.
    pub sense_size: u32,
    /// Bytes of a command block; the driver may write it.
    pub cdb_size: u32,
    /// Highest channel.
    pub max_channel: u16,
    /// Highest target.
    pub max_target: u16,
    /// Highest unit.
    pub max_lun: u32,
}
const _: () = assert!(size_of::<Config>() == 36);

/// What stands in front of every command (virtio 1.2, 5.6.6.1).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct CommandHeader {
    /// Target and unit, as `scsi::lun` takes it apart.
    pub lun: [u8; 8],
    /// The command's tag.
    pub id: [u8; 8],
    /// Task attribute.
    pub task_attr: u8,
    /// Priority.
    pub prio: u8,
    /// Command reference number.
    pub crn: u8,
    /// The command.
    pub cdb: [u8; CDB_LEN],
}
const _: () = assert!(size_of::<CommandHeader>() == 51);

/// What stands in front of a response's sense data.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct ResponseHeader {
    /// Bytes of sense data that are valid.
    pub sense_len: u32,
    /// Bytes that were not transferred.
    pub residual: u32,
    /// Unused.
    pub status_qualifier: u16,
    /// SCSI status, see [`status`].
    pub status: u8,
    /// How the transport sees it, see [`response`].
    pub response: u8,
}
const _: () = assert!(size_of::<ResponseHeader>() == 12);

/// SCSI status (SAM-5, 5.3).
pub mod status {
    /// Done.
    pub const GOOD: u8 = 0;
    /// See the sense data.
    pub const CHECK_CONDITION: u8 = 2;
    /// Another nexus has reserved the unit.
    pub const RESERVATION_CONFLICT: u8 = 0x18;
}

/// Response codes (virtio 1.2, 5.6.6.1 and 5.6.6.2).
pub mod response {
    /// The status counts.
    pub const OK: u8 = 0;
    /// The task management function is complete; the same value as OK.
    pub const FUNCTION_COMPLETE: u8 = 0;
    /// More data than the driver has room for.
    pub const OVERRUN: u8 = 1;
    /// No such target.
    pub const BAD_TARGET: u8 = 3;
    /// Anything else.
    pub const FAILURE: u8 = 9;
    /// The task that was asked for is there.
    pub const FUNCTION_SUCCEEDED: u8 = 10;
    /// The function was refused.
    pub const FUNCTION_REJECTED: u8 = 11;
    /// No such unit.
    pub const INCORRECT_LUN: u8 = 12;
}

/// Control requests (virtio 1.2, 5.6.6.2).
pub mod control {
    /// Task management.
    pub const TMF: u32 = 0;
    /// Which asynchronous notifications are there?
    pub const AN_QUERY: u32 = 1;
    /// Send me these.
    pub const AN_SUBSCRIBE: u32 = 2;
    /// Task management functions.
    pub mod tmf {
        /// Abort one task.
        pub const ABORT_TASK: u32 = 0;
        /// Abort this nexus' tasks.
        pub const ABORT_TASK_SET: u32 = 1;
        /// Clear an allegiance; there is none.
        pub const CLEAR_ACA: u32 = 2;
        /// Abort all tasks of a unit.
        pub const CLEAR_TASK_SET: u32 = 3;
        /// Reset a target.
        pub const I_T_NEXUS_RESET: u32 = 4;
        /// Reset a unit.
        pub const LOGICAL_UNIT_RESET: u32 = 5;
        /// Is this task still there?
        pub const QUERY_TASK: u32 = 6;
        /// Is any task there?
        pub const QUERY_TASK_SET: u32 = 7;
    }
}

/// A task management request.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Tmf {
    /// [`control::TMF`].
    pub kind: u32,
    /// Which function.
    pub subtype: u32,
    /// Target and unit.
    pub lun: [u8; 8],
    /// The task, where it is about one.
    pub id: u64,
}
const _: () = assert!(size_of::<Tmf>() == 24);

/// An event (virtio 1.2, 5.6.6.3).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Event {
    /// See [`event`].
    pub event: u32,
    /// Target and unit.
    pub lun: [u8; 8],
    /// Why.
    pub reason: u32,
}
const _: () = assert!(size_of::<Event>() == 16);

/// Events and their reasons.
pub mod event {
    /// Some were lost for want of buffers.
    pub const MISSED: u32 = 1 << 31;
    /// Nothing but [`MISSED`].
    pub const NO_EVENT: u32 = 0;
    /// A unit came, went, or was reset.
    pub const TRANSPORT_RESET: u32 = 1;
    /// A unit changed.
    pub const PARAM_CHANGE: u32 = 3;
    /// It came, or may have come.
    pub const RESCAN: u32 = 1;
    /// It went.
    pub const REMOVED: u32 = 2;
    /// Sense code and qualifier "capacity data has changed" (SPC-4, annex D), as one little-endian number.
    pub const CAPACITY_CHANGED: u32 = 0x2a | 0x09 << 8;
}

/// Operation codes (SPC-4, table 45; SBC-3, table 13).
pub mod op {
    #![expect(missing_docs, reason = "the names are the commands'")]
    pub const TEST_UNIT_READY: u8 = 0x00;
    pub const REQUEST_SENSE: u8 = 0x03;
    pub const READ_6: u8 = 0x08;
    pub const WRITE_6: u8 = 0x0a;
    pub const INQUIRY: u8 = 0x12;
    pub const MODE_SENSE_6: u8 = 0x1a;
    pub const START_STOP_UNIT: u8 = 0x1b;
    pub const PREVENT_ALLOW: u8 = 0x1e;
    pub const READ_CAPACITY_10: u8 = 0x25;
    pub const READ_10: u8 = 0x28;
    pub const WRITE_10: u8 = 0x2a;
    pub const WRITE_VERIFY_10: u8 = 0x2e;
    pub const VERIFY_10: u8 = 0x2f;
    pub const SYNCHRONIZE_CACHE_10: u8 = 0x35;
    pub const WRITE_SAME_10: u8 = 0x41;
    pub const UNMAP: u8 = 0x42;
    pub const MODE_SENSE_10: u8 = 0x5a;
    pub const PERSISTENT_RESERVE_IN: u8 = 0x5e;
    pub const PERSISTENT_RESERVE_OUT: u8 = 0x5f;
    pub const READ_16: u8 = 0x88;
    pub const WRITE_16: u8 = 0x8a;
    pub const WRITE_VERIFY_16: u8 = 0x8e;
    pub const VERIFY_16: u8 = 0x8f;
    pub const SYNCHRONIZE_CACHE_16: u8 = 0x91;
    pub const WRITE_SAME_16: u8 = 0x93;
    pub const SERVICE_ACTION_IN_16: u8 = 0x9e;
    pub const REPORT_LUNS: u8 = 0xa0;
    pub const MAINTENANCE_IN: u8 = 0xa3;
    pub const READ_12: u8 = 0xa8;
    pub const WRITE_12: u8 = 0xaa;
    pub const WRITE_VERIFY_12: u8 = 0xae;
    pub const VERIFY_12: u8 = 0xaf;
}
