//! Layouts and numbers of the vfio-user protocol. Wire structs live here and nowhere else.
//!
//! All fields are in host byte order (vfio-user: "Message format"; client and server share a host). Numbers that a
//! peer chooses are open newtypes: an unknown value is data, not undefined behaviour.

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Derives what every wire struct needs and pins its size, so that a field added by accident does not compile.
macro_rules! wire {
    ($($(#[$meta:meta])* pub struct $name:ident = $size:literal { $($(#[$fmeta:meta])* $field:ident: $ty:ty,)* })*) => {$(
        $(#[$meta])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout)]
        pub struct $name { $($(#[$fmeta])* pub $field: $ty,)* }
        const _: () = assert!(size_of::<$name>() == $size);
    )*};
}

/// A message number (vfio-user: "Commands").
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, FromBytes, IntoBytes, Immutable, KnownLayout)]
pub struct Command(pub u16);

impl Command {
    /// Version and capability negotiation; always the first message.
    pub const VERSION: Self = Self(1);
    /// The client offers a window of its address space.
    pub const DMA_MAP: Self = Self(2);
    /// The client takes a window back.
    pub const DMA_UNMAP: Self = Self(3);
    /// Number of regions and interrupt types.
    pub const DEVICE_GET_INFO: Self = Self(4);
    /// Size, flags and mappable areas of one region.
    pub const DEVICE_GET_REGION_INFO: Self = Self(5);
    /// File descriptors that stand for accesses to a region.
    pub const DEVICE_GET_REGION_IO_FDS: Self = Self(6);
    /// Number and flags of one interrupt type.
    pub const DEVICE_GET_IRQ_INFO: Self = Self(7);
    /// Assigns, masks or triggers interrupts.
    pub const DEVICE_SET_IRQS: Self = Self(8);
    /// Reads from a region.
    pub const REGION_READ: Self = Self(9);
    /// Writes to a region.
    pub const REGION_WRITE: Self = Self(10);
    /// The server reads client memory.
    pub const DMA_READ: Self = Self(11);
    /// The server writes client memory.
    pub const DMA_WRITE: Self = Self(12);
    /// Resets the device.
    pub const DEVICE_RESET: Self = Self(13);
    /// Several region writes in one message.
    pub const REGION_WRITE_MULTI: Self = Self(15);
    /// Migration and dirty-page features.
    pub const DEVICE_FEATURE: Self = Self(16);
    /// Reads migration data.
    pub const MIG_DATA_READ: Self = Self(17);
    /// Writes migration data.
    pub const MIG_DATA_WRITE: Self = Self(18);
}

/// Header flag bits (vfio-user: "Header").
pub mod flags {
    /// Mask of the message type.
    pub const TYPE_MASK: u32 = 0xf;
    /// Type: a command.
    pub const COMMAND: u32 = 0;
    /// Type: a reply.
    pub const REPLY: u32 = 1;
    /// The sender wants no reply.
    pub const NO_REPLY: u32 = 1 << 4;
    /// The reply carries an errno.
    pub const ERROR: u32 = 1 << 5;
}

/// Bytes of a message header.
pub const HEADER_LEN: usize = size_of::<Header>();

wire! {
    /// The header in front of every message (vfio-user: "Header").
    pub struct Header = 16 {
        /// Chosen by the sender, echoed in the reply; may repeat.
        message_id: u16,
        /// What is asked, see [`Command`].
        command: Command,
        /// Bytes of the whole message, header included.
        message_size: u32,
        /// See [`flags`].
        flags: u32,
        /// An errno in replies with [`flags::ERROR`].
        error: u32,
    }

    /// VERSION, both ways; a NUL-terminated JSON text may follow.
    pub struct Version = 4 {
        /// Major number; only 0 exists.
        major: u16,
        /// Minor number.
        minor: u16,
    }

    /// DMA_MAP request.
    pub struct DmaMap = 32 {
        /// Bytes of this struct.
        argsz: u32,
        /// See [`dma_flags`].
        flags: u32,
        /// Where the window starts in the passed file.
        offset: u64,
        /// Guest address of the window.
        address: u64,
        /// Bytes of the window.
        size: u64,
    }

    /// DMA_UNMAP request and reply.
    pub struct DmaUnmap = 24 {
        /// Bytes of this struct.
        argsz: u32,
        /// See [`unmap_flags`].
        flags: u32,
        /// Guest address of the window.
        address: u64,
        /// Bytes of the window.
        size: u64,
    }

    /// DEVICE_GET_INFO request and reply.
    pub struct DeviceInfo = 16 {
        /// Bytes of this struct.
        argsz: u32,
        /// See [`device_flags`].
        flags: u32,
        /// Regions of the device.
        num_regions: u32,
        /// Interrupt types of the device.
        num_irqs: u32,
    }

    /// DEVICE_GET_REGION_INFO request and reply; capabilities may follow.
    pub struct RegionInfo = 32 {
        /// Bytes the whole answer needs.
        argsz: u32,
        /// See [`region_flags`].
        flags: u32,
        /// Which region.
        index: u32,
        /// Where the first capability starts, from the start of this struct.
        cap_offset: u32,
        /// Bytes of the region.
        size: u64,
        /// Where the region starts in the passed file.
        offset: u64,
    }

    /// Header of the sparse-mmap capability; `nr_areas` areas follow.
    pub struct SparseCap = 16 {
        /// Always [`SPARSE_CAP_ID`].
        id: u16,
        /// Always 1.
        version: u16,
        /// Where the next capability starts; 0 ends the list.
        next: u32,
        /// Number of areas.
        nr_areas: u32,
        /// Zero.
        reserved: u32,
    }

    /// One mappable part of a region.
    pub struct SparseArea = 16 {
        /// From the start of the region.
        offset: u64,
        /// Bytes.
        size: u64,
    }

    /// DEVICE_GET_REGION_IO_FDS request, and the fixed part of its reply.
    pub struct RegionIoFds = 16 {
        /// Bytes the whole answer needs.
        argsz: u32,
        /// Zero.
        flags: u32,
        /// Which region.
        index: u32,
        /// Number of sub-regions that follow; zero in a request.
        count: u32,
    }

    /// One entry of a DEVICE_GET_REGION_IO_FDS reply, as an ioeventfd.
    pub struct SubRegionIoEventFd = 40 {
        /// From the start of the region.
        gpa_offset: u64,
        /// Bytes.
        size: u64,
        /// Index into the passed file descriptors.
        fd_index: u32,
        /// 0: ioeventfd.
        kind: u32,
        /// Zero: any value matches.
        flags: u32,
        /// Zero.
        padding: u32,
        /// Value to match.
        datamatch: u64,
    }

    /// DEVICE_GET_IRQ_INFO request and reply.
    pub struct IrqInfo = 16 {
        /// Bytes of this struct.
        argsz: u32,
        /// See [`irq_flags`].
        flags: u32,
        /// Which interrupt type, see [`irq`].
        index: u32,
        /// Interrupts of that type.
        count: u32,
    }

    /// DEVICE_SET_IRQS request; data may follow.
    pub struct IrqSet = 20 {
        /// Bytes of this struct and its data.
        argsz: u32,
        /// One DATA and one ACTION bit, see [`irq_set_flags`].
        flags: u32,
        /// Which interrupt type, see [`irq`].
        index: u32,
        /// First interrupt.
        start: u32,
        /// Number of interrupts.
        count: u32,
    }

    /// REGION_READ and REGION_WRITE, both ways; data may follow.
    pub struct RegionAccess = 16 {
        /// From the start of the region.
        offset: u64,
        /// Which region.
        region: u32,
        /// Bytes of data.
        count: u32,
    }

    /// One write of REGION_WRITE_MULTI.
    pub struct RegionWriteEntry = 24 {
        /// From the start of the region.
        offset: u64,
        /// Which region.
        region: u32,
        /// Bytes of `data` that count, 8 at most.
        count: u32,
        /// The bytes.
        data: [u8; 8],
    }

    /// DMA_READ and DMA_WRITE, both ways; data may follow.
    pub struct DmaAccess = 16 {
        /// Guest address.
        address: u64,
        /// Bytes of data.
        count: u64,
    }

    /// DEVICE_FEATURE request and reply; data may follow.
    pub struct DeviceFeature = 8 {
        /// Bytes of this struct and its data.
        argsz: u32,
        /// Feature index and operation, see [`feature_flags`].
        flags: u32,
    }

    /// MIG_DATA_READ and MIG_DATA_WRITE; data may follow.
    pub struct MigData = 8 {
        /// Bytes of this struct and its data.
        argsz: u32,
        /// Bytes of data.
        size: u32,
    }
}

/// DMA_MAP flags.
pub mod dma_flags {
    /// The device may read the window.
    pub const READ: u32 = 1;
    /// The device may write the window.
    pub const WRITE: u32 = 1 << 1;
    /// The window is to be reached by mmap (libvfio-user extension, 2026-06).
    pub const MMAP: u32 = 1 << 2;
    /// The window is to be reached by pread and pwrite on its file (libvfio-user extension, 2026-06).
    pub const FILE_IO: u32 = 1 << 3;
    /// All flags that exist.
    pub const ALL: u32 = READ | WRITE | MMAP | FILE_IO;
}

/// DMA_UNMAP flags.
pub mod unmap_flags {
    /// Return the dirty bitmap with the reply (legacy migration).
    pub const GET_DIRTY_BITMAP: u32 = 1;
    /// Unmap everything; address and size are zero.
    pub const ALL: u32 = 1 << 1;
}

/// DEVICE_GET_INFO flags.
pub mod device_flags {
    /// DEVICE_RESET works.
    pub const RESET: u32 = 1;
    /// The device is a PCI device.
    pub const PCI: u32 = 1 << 1;
}

/// DEVICE_GET_REGION_INFO flags.
pub mod region_flags {
    /// The region can be read.
    pub const READ: u32 = 1;
    /// The region can be written.
    pub const WRITE: u32 = 1 << 1;
    /// The region, or a part of it, can be mapped.
    pub const MMAP: u32 = 1 << 2;
    /// Capabilities follow the fixed part.
    pub const CAPS: u32 = 1 << 3;
}

/// VFIO_REGION_INFO_CAP_SPARSE_MMAP.
pub const SPARSE_CAP_ID: u16 = 1;

/// Region numbers of a vfio PCI device.
pub mod region {
    /// BAR 0; BAR n is n.
    pub const BAR0: u32 = 0;
    /// Number of BARs.
    pub const NUM_BARS: u32 = 6;
    /// The expansion ROM.
    pub const ROM: u32 = 6;
    /// The PCI configuration space.
    pub const CONFIG: u32 = 7;
    /// The VGA ranges.
    pub const VGA: u32 = 8;
    /// Number of regions.
    pub const COUNT: u32 = 9;
}

/// Interrupt types of a vfio PCI device.
pub mod irq {
    /// The INTx pin.
    pub const INTX: u32 = 0;
    /// MSI.
    pub const MSI: u32 = 1;
    /// MSI-X.
    pub const MSIX: u32 = 2;
    /// Error notification.
    pub const ERR: u32 = 3;
    /// The device asks to be released.
    pub const REQ: u32 = 4;
    /// Number of types.
    pub const COUNT: u32 = 5;
}

/// DEVICE_GET_IRQ_INFO flags.
pub mod irq_flags {
    /// Signalled by eventfd.
    pub const EVENTFD: u32 = 1;
    /// Can be masked.
    pub const MASKABLE: u32 = 1 << 1;
    /// Masks itself when it fires (level-triggered).
    pub const AUTOMASKED: u32 = 1 << 2;
    /// The number in use is fixed once the type is set up.
    pub const NORESIZE: u32 = 1 << 3;
}

/// DEVICE_SET_IRQS flags.
pub mod irq_set_flags {
    /// No data: all of the range.
    pub const DATA_NONE: u32 = 1;
    /// A byte for each interrupt.
    pub const DATA_BOOL: u32 = 1 << 1;
    /// A file descriptor for each interrupt.
    pub const DATA_EVENTFD: u32 = 1 << 2;
    /// All DATA bits.
    pub const DATA_MASK: u32 = DATA_NONE | DATA_BOOL | DATA_EVENTFD;
    /// Mask the range.
    pub const ACTION_MASK: u32 = 1 << 3;
    /// Unmask the range.
    pub const ACTION_UNMASK: u32 = 1 << 4;
    /// Set the trigger of the range, or trigger it.
    pub const ACTION_TRIGGER: u32 = 1 << 5;
    /// All ACTION bits.
    pub const ACTIONS: u32 = ACTION_MASK | ACTION_UNMASK | ACTION_TRIGGER;
}

/// DEVICE_FEATURE flags.
pub mod feature_flags {
    /// Mask of the feature index.
    pub const INDEX_MASK: u32 = 0xffff;
    /// Read the feature.
    pub const GET: u32 = 1 << 16;
    /// Write the feature.
    pub const SET: u32 = 1 << 17;
    /// Ask whether the operation is supported.
    pub const PROBE: u32 = 1 << 18;
}

/// DEVICE_FEATURE indices (linux/vfio.h: VFIO_DEVICE_FEATURE_*).
pub mod feature {
    /// What kinds of migration the device can do.
    pub const MIGRATION: u32 = 1;
    /// The device's migration state.
    pub const MIG_DEVICE_STATE: u32 = 2;
    /// Starts logging of what the device writes to guest memory.
    pub const DMA_LOGGING_START: u32 = 6;
    /// Stops it.
    pub const DMA_LOGGING_STOP: u32 = 7;
    /// Reads what was logged.
    pub const DMA_LOGGING_REPORT: u32 = 8;
}

/// Kinds of an entry of DEVICE_GET_REGION_IO_FDS.
pub mod io_fd_kind {
    /// An eventfd that stands for writes.
    pub const IOEVENTFD: u32 = 0;
    /// A socket that stands for reads and writes.
    pub const IOREGIONFD: u32 = 1;
}
