//! Numbers and layouts of virtio 1.2. Wire structs live here and nowhere else.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// PCI vendor of all virtio devices (virtio 1.2, 4.1.2).
pub const PCI_VENDOR: u16 = 0x1af4;
/// PCI device ID of a modern device is this plus its virtio device ID.
pub const PCI_DEVICE_BASE: u16 = 0x1040;

/// The name of a device type over RPC (virtio 1.2, 5).
pub const fn device_name(id: u16) -> &'static str {
    match id {
        2 => "virtio_blk",
        8 => "virtio_scsi",
        26 => "virtio_fs",
        _ => "virtio",
    }
}

/// Device status bits (virtio 1.2, 2.1).
pub mod status {
    /// The guest has found the device.
    pub const ACKNOWLEDGE: u8 = 1;
    /// The guest has a driver.
    pub const DRIVER: u8 = 2;
    /// The driver is ready.
    pub const DRIVER_OK: u8 = 4;
    /// Features are agreed.
    pub const FEATURES_OK: u8 = 8;
    /// The device has a fault that only a reset mends.
    pub const NEEDS_RESET: u8 = 64;
    /// The driver has given up.
    pub const FAILED: u8 = 128;
}

/// Feature bits that belong to no device type (virtio 1.2, 6).
pub mod feature {
    /// Descriptors may point to tables of descriptors.
    pub const INDIRECT_DESC: u64 = 1 << 28;
    /// Notifications are asked for by index.
    pub const EVENT_IDX: u64 = 1 << 29;
    /// Virtio 1.0 or later.
    pub const VERSION_1: u64 = 1 << 32;
    /// Addresses go through the platform's IOMMU.
    pub const ACCESS_PLATFORM: u64 = 1 << 33;
    /// Packed rings.
    pub const RING_PACKED: u64 = 1 << 34;
    /// Buffers are used in the order they were made available.
    pub const IN_ORDER: u64 = 1 << 35;
    /// Notifications carry the ring position.
    pub const NOTIFICATION_DATA: u64 = 1 << 38;
    /// Single queues can be reset.
    pub const RING_RESET: u64 = 1 << 40;
}

/// `cfg_type` of the vendor capabilities (virtio 1.2, 4.1.4).
pub mod cap {
    /// Common configuration.
    pub const COMMON: u8 = 1;
    /// Notifications.
    pub const NOTIFY: u8 = 2;
    /// ISR status.
    pub const ISR: u8 = 3;
    /// Device-specific configuration.
    pub const DEVICE: u8 = 4;
    /// PCI configuration access.
    pub const PCI_CFG: u8 = 5;
}

/// Descriptor flags (virtio 1.2, 2.7.5).
pub mod desc {
    /// The chain goes on.
    pub const NEXT: u16 = 1;
    /// The device writes.
    pub const WRITE: u16 = 2;
    /// The buffer is a table of descriptors.
    pub const INDIRECT: u16 = 4;
    /// Packed rings: the driver's mark (virtio 1.2, 2.8.1).
    pub const AVAIL: u16 = 1 << 7;
    /// Packed rings: the device's mark.
    pub const USED: u16 = 1 << 15;
}

/// A split-ring descriptor (virtio 1.2, 2.7.5).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Desc {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
    /// See [`desc`].
    pub flags: u16,
    /// The next descriptor, with [`desc::NEXT`].
    pub next: u16,
}
const _: () = assert!(size_of::<Desc>() == 16);

/// A packed-ring descriptor (virtio 1.2, 2.8.13).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct PackedDesc {
    /// Guest address.
    pub addr: u64,
    /// Bytes; in a used descriptor, those written.
    pub len: u32,
    /// The chain's name.
    pub id: u16,
    /// See [`desc`].
    pub flags: u16,
}
const _: () = assert!(size_of::<PackedDesc>() == 16);

/// When one side of a packed ring wants to be told (virtio 1.2, 2.8.14).
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct EventSuppression {
    /// With [`event_flags::DESC`]: descriptor, and the wrap counter in the top bit.
    pub position: u16,
    /// See [`event_flags`].
    pub flags: u16,
}
const _: () = assert!(size_of::<EventSuppression>() == 4);

/// Flags of [`EventSuppression`].
pub mod event_flags {
    /// Always.
    pub const ENABLE: u16 = 0;
    /// Never.
    pub const DISABLE: u16 = 1;
    /// When a descriptor is passed; needs EVENT_IDX.
    pub const DESC: u16 = 2;
    /// The bits that count.
    pub const MASK: u16 = 3;
}

/// An element of the used ring (virtio 1.2, 2.7.8).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct UsedElem {
    /// Head of the chain.
    pub id: u32,
    /// Bytes written by the device.
    pub len: u32,
}
const _: () = assert!(size_of::<UsedElem>() == 8);

/// `avail.flags`: the driver wants no interrupt (virtio 1.2, 2.7.6).
pub const AVAIL_NO_INTERRUPT: u16 = 1;
/// `used.flags`: the device wants no kick (virtio 1.2, 2.7.8).
pub const USED_NO_NOTIFY: u16 = 1;
/// Largest split ring (virtio 1.2, 2.7).
pub const MAX_QUEUE_SIZE: u16 = 32768;

/// virtio-blk (virtio 1.2, 5.2).
pub mod blk {
    use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

    /// Virtio device ID.
    pub const DEVICE_ID: u16 = 2;
    /// Unit of sectors and of `capacity`, whatever the block size.
    pub const SECTOR: u64 = 512;
    /// Bytes of the ID string.
    pub const ID_LEN: usize = 20;

    /// Feature bits (virtio 1.2, 5.2.3).
    pub mod feature {
        /// `size_max` is valid.
        pub const SIZE_MAX: u64 = 1 << 1;
        /// `seg_max` is valid.
        pub const SEG_MAX: u64 = 1 << 2;
        /// `geometry` is valid.
        pub const GEOMETRY: u64 = 1 << 4;
        /// Read-only.
        pub const RO: u64 = 1 << 5;
        /// `blk_size` is valid.
        pub const BLK_SIZE: u64 = 1 << 6;
        /// There is a cache to flush.
        pub const FLUSH: u64 = 1 << 9;
        /// `topology` is valid.
        pub const TOPOLOGY: u64 = 1 << 10;
        /// The cache can be switched.
        pub const CONFIG_WCE: u64 = 1 << 11;
        /// `num_queues` is valid.
        pub const MQ: u64 = 1 << 12;
        /// DISCARD works.
        pub const DISCARD: u64 = 1 << 13;
        /// WRITE_ZEROES works.
        pub const WRITE_ZEROES: u64 = 1 << 14;
        /// GET_LIFETIME works.
        pub const LIFETIME: u64 = 1 << 15;
        /// SECURE_ERASE works.
        pub const SECURE_ERASE: u64 = 1 << 16;
    }

    /// Request types (virtio 1.2, 5.2.6).
    pub mod kind {
        /// Read.
        pub const IN: u32 = 0;
        /// Write.
        pub const OUT: u32 = 1;
        /// Flush the cache.
        pub const FLUSH: u32 = 4;
        /// Read the ID string.
        pub const GET_ID: u32 = 8;
        /// Read how worn the medium is.
        pub const GET_LIFETIME: u32 = 10;
        /// Discard ranges.
        pub const DISCARD: u32 = 11;
        /// Write zeroes to ranges.
        pub const WRITE_ZEROES: u32 = 13;
        /// Erase ranges so that nothing brings them back.
        pub const SECURE_ERASE: u32 = 14;
    }

    /// Request status (virtio 1.2, 5.2.6).
    pub mod status {
        /// Done.
        pub const OK: u8 = 0;
        /// Failed.
        pub const IOERR: u8 = 1;
        /// Not understood.
        pub const UNSUPP: u8 = 2;
    }

    /// The fixed part in front of every request.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    pub struct Header {
        /// See [`kind`].
        pub kind: u32,
        /// Unused.
        pub reserved: u32,
        /// First sector, for IN and OUT.
        pub sector: u64,
    }
    const _: () = assert!(size_of::<Header>() == 16);

    /// A range of DISCARD and WRITE_ZEROES.
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    pub struct Range {
        /// First sector.
        pub sector: u64,
        /// Sectors.
        pub num_sectors: u32,
        /// Bit 0: unmap.
        pub flags: u32,
    }
    const _: () = assert!(size_of::<Range>() == 16);

    /// What GET_LIFETIME returns (virtio 1.2, 5.2.6).
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    pub struct Lifetime {
        /// Reserved blocks used.
        pub pre_eol_info: u16,
        /// Wear of type A.
        pub device_lifetime_est_typ_a: u16,
        /// Wear of type B.
        pub device_lifetime_est_typ_b: u16,
    }
    const _: () = assert!(size_of::<Lifetime>() == 6);

    /// Offset of [`Config::writeback`], the one field that a driver may write.
    pub const WRITEBACK_AT: u64 = 32;

    /// The configuration space (virtio 1.2, 5.2.4).
    #[repr(C)]
    #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
    pub struct Config {
        /// Sectors.
        pub capacity: u64,
        /// Longest segment in bytes.
        pub size_max: u32,
        /// Most segments of a request.
        pub seg_max: u32,
        /// Cylinders.
        pub cylinders: u16,
        /// Heads.
        pub heads: u8,
        /// Sectors per track.
        pub sectors: u8,
        /// Logical block size.
        pub blk_size: u32,
        /// Logical blocks per physical block, as a power of two.
        pub physical_block_exp: u8,
        /// First aligned logical block.
        pub alignment_offset: u8,
        /// Smallest sensible request, in logical blocks.
        pub min_io_size: u16,
        /// Best request, in logical blocks.
        pub opt_io_size: u32,
        /// 1: write-back.
        pub writeback: u8,
        /// Zero.
        pub unused0: u8,
        /// Queues.
        pub num_queues: u16,
        /// Most sectors of a discard range.
        pub max_discard_sectors: u32,
        /// Most ranges of a discard.
        pub max_discard_seg: u32,
        /// Alignment of discards, in sectors.
        pub discard_sector_alignment: u32,
        /// Most sectors of a write-zeroes range.
        pub max_write_zeroes_sectors: u32,
        /// Most ranges of a write-zeroes.
        pub max_write_zeroes_seg: u32,
        /// 1: write-zeroes may unmap.
        pub write_zeroes_may_unmap: u8,
        /// Zero.
        pub unused1: [u8; 3],
        /// Most sectors of a secure-erase range.
        pub max_secure_erase_sectors: u32,
        /// Most ranges of a secure-erase.
        pub max_secure_erase_seg: u32,
        /// Alignment of secure-erases, in sectors.
        pub secure_erase_sector_alignment: u32,
    }
    const _: () = assert!(size_of::<Config>() == 72);
    const _: () = assert!(std::mem::offset_of!(Config, writeback) as u64 == WRITEBACK_AT);
}
