//! Numbers and layouts of NVM Express Base 2.0c, NVM Command Set 1.0c and PCIe Transport 1.0c.
//!
//! Wire structs live here and nowhere else. Fields are in host order: the crate is for little-endian machines.

pub mod identify;
pub mod log;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Opcodes of the admin commands (Base, figure 138).
pub mod admin {
    /// Delete I/O Submission Queue.
    pub const DELETE_SQ: u8 = 0x00;
    /// Create I/O Submission Queue.
    pub const CREATE_SQ: u8 = 0x01;
    /// Get Log Page.
    pub const GET_LOG_PAGE: u8 = 0x02;
    /// Delete I/O Completion Queue.
    pub const DELETE_CQ: u8 = 0x04;
    /// Create I/O Completion Queue.
    pub const CREATE_CQ: u8 = 0x05;
    /// Identify.
    pub const IDENTIFY: u8 = 0x06;
    /// Abort.
    pub const ABORT: u8 = 0x08;
    /// Set Features.
    pub const SET_FEATURES: u8 = 0x09;
    /// Get Features.
    pub const GET_FEATURES: u8 = 0x0a;
    /// Asynchronous Event Request.
    pub const ASYNC_EVENT: u8 = 0x0c;
    /// Keep Alive.
    pub const KEEP_ALIVE: u8 = 0x18;
    /// Doorbell Buffer Config.
    pub const DOORBELL_BUFFER: u8 = 0x7c;
}

/// Opcodes of the I/O commands (NVM, figure 18, and Base, figure 391).
pub mod nvm {
    /// Flush.
    pub const FLUSH: u8 = 0x00;
    /// Write.
    pub const WRITE: u8 = 0x01;
    /// Read.
    pub const READ: u8 = 0x02;
    /// Write Uncorrectable.
    pub const WRITE_UNCORRECTABLE: u8 = 0x04;
    /// Compare.
    pub const COMPARE: u8 = 0x05;
    /// Write Zeroes.
    pub const WRITE_ZEROES: u8 = 0x08;
    /// Dataset Management.
    pub const DATASET_MANAGEMENT: u8 = 0x09;
    /// Verify.
    pub const VERIFY: u8 = 0x0c;
    /// Reservation Register.
    pub const RESERVATION_REGISTER: u8 = 0x0d;
    /// Reservation Report.
    pub const RESERVATION_REPORT: u8 = 0x0e;
    /// Reservation Acquire.
    pub const RESERVATION_ACQUIRE: u8 = 0x11;
    /// Reservation Release.
    pub const RESERVATION_RELEASE: u8 = 0x15;
    /// Copy.
    pub const COPY: u8 = 0x19;
}

/// Feature identifiers (Base, figure 317; NVM, figure 99).
pub mod feature {
    /// Arbitration.
    pub const ARBITRATION: u8 = 0x01;
    /// Power Management.
    pub const POWER: u8 = 0x02;
    /// Temperature Threshold.
    pub const TEMPERATURE: u8 = 0x04;
    /// Error Recovery.
    pub const ERROR_RECOVERY: u8 = 0x05;
    /// Volatile Write Cache.
    pub const WRITE_CACHE: u8 = 0x06;
    /// Number of Queues.
    pub const NUM_QUEUES: u8 = 0x07;
    /// Interrupt Coalescing.
    pub const COALESCING: u8 = 0x08;
    /// Interrupt Vector Configuration.
    pub const VECTOR: u8 = 0x09;
    /// Write Atomicity Normal.
    pub const WRITE_ATOMICITY: u8 = 0x0a;
    /// Asynchronous Event Configuration.
    pub const ASYNC_EVENT: u8 = 0x0b;
    /// Keep Alive Timer.
    pub const KEEP_ALIVE: u8 = 0x0f;
    /// I/O Command Set Profile.
    pub const COMMAND_SET_PROFILE: u8 = 0x19;
    /// Host Identifier.
    pub const HOST_ID: u8 = 0x81;
    /// Reservation Notification Mask.
    pub const RESERVATION_MASK: u8 = 0x82;
    /// Reservation Persistence.
    pub const RESERVATION_PERSIST: u8 = 0x83;
}

/// Register offsets (PCIe, figure 4; Base, figure 35).
pub mod reg {
    /// Controller Capabilities.
    pub const CAP: usize = 0x00;
    /// Version.
    pub const VS: usize = 0x08;
    /// Interrupt Mask Set.
    pub const INTMS: usize = 0x0c;
    /// Interrupt Mask Clear.
    pub const INTMC: usize = 0x10;
    /// Controller Configuration.
    pub const CC: usize = 0x14;
    /// Controller Status.
    pub const CSTS: usize = 0x1c;
    /// NVM Subsystem Reset.
    pub const NSSR: usize = 0x20;
    /// Admin Queue Attributes.
    pub const AQA: usize = 0x24;
    /// Admin Submission Queue Base Address.
    pub const ASQ: usize = 0x28;
    /// Admin Completion Queue Base Address.
    pub const ACQ: usize = 0x30;
    /// Controller Ready Timeouts.
    pub const CRTO: usize = 0x68;
    /// Bytes of registers that are not all reserved.
    pub const LEN: usize = 0x70;
    /// First doorbell.
    pub const DOORBELLS: u64 = 0x1000;
}

/// Controller Configuration (Base, 3.1.3.5).
pub mod cc {
    /// Enable.
    pub const EN: u32 = 1;
    /// I/O Command Set Selected.
    #[must_use]
    pub fn css(cc: u32) -> u32 {
        cc >> 4 & 7
    }
    /// Memory Page Size, as a power of two above 4096.
    #[must_use]
    pub fn mps(cc: u32) -> u32 {
        cc >> 7 & 0xf
    }
    /// Arbitration Mechanism Selected.
    #[must_use]
    pub fn ams(cc: u32) -> u32 {
        cc >> 11 & 7
    }
    /// A shutdown with notice.
    pub const SHN_NORMAL: u32 = 1;
    /// Shutdown Notification.
    #[must_use]
    pub fn shn(cc: u32) -> u32 {
        cc >> 14 & 3
    }
    /// I/O Submission Queue Entry Size, as a power of two.
    #[must_use]
    pub fn iosqes(cc: u32) -> u32 {
        cc >> 16 & 0xf
    }
    /// I/O Completion Queue Entry Size, as a power of two.
    #[must_use]
    pub fn iocqes(cc: u32) -> u32 {
        cc >> 20 & 0xf
    }
    /// The bits that a host may write: EN, CSS, MPS, AMS, SHN, IOSQES, IOCQES.
    pub const WRITABLE: u32 = 0x00ff_fff1;
}

/// Controller Status (Base, 3.1.3.6).
pub mod csts {
    /// Ready.
    pub const RDY: u32 = 1;
    /// Controller Fatal Status.
    pub const CFS: u32 = 1 << 1;
    /// Shutdown processing complete.
    pub const SHST_COMPLETE: u32 = 2 << 2;
    /// Shutdown processing occurs.
    pub const SHST_PROCESSING: u32 = 1 << 2;
    /// Shutdown Status, both bits.
    pub const SHST: u32 = 3 << 2;
    /// NVM Subsystem Reset Occurred.
    pub const NSSRO: u32 = 1 << 4;
}

/// "NVMe" as the host writes it to NSSR (Base, 3.1.3.7).
pub const NSSR_MAGIC: u32 = 0x4e56_4d65;
/// NVMe 2.0.0 (2.0c has no number of its own).
pub const VERSION: u32 = 0x0002_0000;
/// All namespaces, or those of a broadcast.
pub const NSID_ALL: u32 = 0xffff_ffff;
/// Bytes of a page: the only memory page size there is here (CAP.MPSMIN = CAP.MPSMAX = 0).
pub const PAGE: u64 = 4096;
/// Bytes of a submission queue entry.
pub const SQE_LEN: usize = 64;
/// Bytes of a completion queue entry.
pub const CQE_LEN: usize = 16;

/// A submission queue entry (Base, figure 87).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, PartialEq, Eq)]
#[repr(C)]
pub struct Command {
    /// Opcode.
    pub opcode: u8,
    /// Fused operation (bits 1:0), PRP or SGL (bits 7:6).
    pub flags: u8,
    /// Command identifier.
    pub cid: u16,
    /// Namespace identifier.
    pub nsid: u32,
    /// Command dwords 2 and 3.
    pub cdw2: u32,
    /// Command dword 3.
    pub cdw3: u32,
    /// Metadata pointer.
    pub mptr: u64,
    /// Data pointer: two PRPs, or one SGL descriptor.
    pub dptr: [u64; 2],
    /// Command dwords 10 to 15.
    pub cdw10: u32,
    /// Command dword 11.
    pub cdw11: u32,
    /// Command dword 12.
    pub cdw12: u32,
    /// Command dword 13.
    pub cdw13: u32,
    /// Command dword 14.
    pub cdw14: u32,
    /// Command dword 15.
    pub cdw15: u32,
}
const _: () = assert!(size_of::<Command>() == SQE_LEN);
const _: () = assert!(std::mem::offset_of!(Command, cdw10) == 40);

/// A Read or a Write as most are: not fused, and its data by PRPs. What of its entry nobody looks at is not here.
#[derive(Clone, Copy, Debug)]
pub struct Transfer {
    /// Command identifier.
    pub cid: u16,
    /// Namespace identifier.
    pub nsid: u32,
    /// It is a Write.
    pub is_write: bool,
    /// The first PRP.
    pub prp1: u64,
    /// Starting LBA.
    pub slba: u64,
    /// Command dword 12.
    pub cdw12: u32,
}

impl Transfer {
    /// Where it stands in an entry, in words of 64 bits: dwords 0 and 1, the first PRP, dwords 10 and 11, 12 and 13.
    pub const WORDS: [usize; 4] = [0, 3, 5, 6];

    /// Of these words. None for any other command.
    #[inline(always)]
    #[must_use]
    pub fn of([head, prp1, slba, tail]: [u64; 4]) -> Option<Self> {
        let [opcode, flags, ..] = head.to_le_bytes();
        if flags != 0 || !matches!(opcode, nvm::READ | nvm::WRITE) {
            return None;
        }
        #[expect(clippy::cast_possible_truncation, reason = "parts of words")]
        let (cid, cdw12) = ((head >> 16) as u16, tail as u32);
        let nsid = (head >> 32) as u32;
        Some(Self { cid, nsid, is_write: opcode == nvm::WRITE, prp1, slba, cdw12 })
    }
}

impl Command {
    /// Fused operation: none.
    pub const FUSE_NONE: u8 = 0;
    /// The first of two.
    pub const FUSE_FIRST: u8 = 1;
    /// The second of two.
    pub const FUSE_SECOND: u8 = 2;

    /// Fused operation.
    #[must_use]
    pub fn fuse(&self) -> u8 {
        self.flags & 3
    }

    /// PRP or SGL for Data Transfer: 0 PRP, 1 and 2 SGL.
    #[must_use]
    pub fn psdt(&self) -> u8 {
        self.flags >> 6
    }

    /// Starting LBA of a command that has one.
    #[must_use]
    pub fn slba(&self) -> u64 {
        u64::from(self.cdw11) << 32 | u64::from(self.cdw10)
    }

    /// Blocks of a command that has a number of them in dword 12, zero-based there.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        (self.cdw12 & 0xffff) + 1
    }
}

/// A completion queue entry (Base, figure 90).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout, PartialEq, Eq)]
#[repr(C)]
pub struct Completion {
    /// Command specific.
    pub dw0: u32,
    /// Command specific.
    pub dw1: u32,
    /// How far the submission queue has been fetched.
    pub sq_head: u16,
    /// Which submission queue.
    pub sq_id: u16,
    /// Command identifier.
    pub cid: u16,
    /// Phase tag in bit 0, status above it.
    pub status: u16,
}
const _: () = assert!(size_of::<Completion>() == CQE_LEN);

/// Status of a command: SC in bits 7:0, SCT in bits 10:8, More in bit 13, Do Not Retry in bit 14 (Base, figure 92, without the phase).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Status(pub u16);

const DNR: u16 = 1 << 14;

#[expect(missing_docs, reason = "the names are those of Base, figures 94 to 99")]
impl Status {
    pub const SUCCESS: Self = Self(0);
    pub const INVALID_OPCODE: Self = Self(0x01 | DNR);
    pub const INVALID_FIELD: Self = Self(0x02 | DNR);
    pub const DATA_TRANSFER_ERROR: Self = Self(0x04 | DNR);
    pub const INTERNAL_ERROR: Self = Self(0x06);
    pub const ABORT_REQUESTED: Self = Self(0x07);
    pub const ABORTED_SQ_DELETION: Self = Self(0x08);
    pub const FAILED_FUSED: Self = Self(0x09 | DNR);
    pub const MISSING_FUSED: Self = Self(0x0a | DNR);
    pub const INVALID_NAMESPACE: Self = Self(0x0b | DNR);
    pub const SEQUENCE_ERROR: Self = Self(0x0c | DNR);
    pub const INVALID_SGL_SEGMENT: Self = Self(0x0d | DNR);
    pub const INVALID_SGL_COUNT: Self = Self(0x0e | DNR);
    pub const DATA_SGL_LENGTH: Self = Self(0x0f | DNR);
    pub const SGL_TYPE: Self = Self(0x11 | DNR);
    pub const INVALID_PRP_OFFSET: Self = Self(0x13 | DNR);
    pub const HOST_ID_INCONSISTENT: Self = Self(0x18 | DNR);
    pub const NAMESPACE_WRITE_PROTECTED: Self = Self(0x20 | DNR);
    pub const LBA_OUT_OF_RANGE: Self = Self(0x80 | DNR);
    pub const CAPACITY_EXCEEDED: Self = Self(0x81 | DNR);
    pub const NAMESPACE_NOT_READY: Self = Self(0x82);
    pub const KEEP_ALIVE_EXPIRED: Self = Self(0x14 | DNR);
    pub const RESERVATION_CONFLICT: Self = Self(0x83 | DNR);
    pub const INVALID_CQ: Self = Self(0x100 | DNR);
    pub const INVALID_QID: Self = Self(0x101 | DNR);
    pub const INVALID_QUEUE_SIZE: Self = Self(0x102 | DNR);
    pub const ABORT_LIMIT: Self = Self(0x103 | DNR);
    pub const ASYNC_EVENT_LIMIT: Self = Self(0x105 | DNR);
    pub const INVALID_VECTOR: Self = Self(0x108 | DNR);
    pub const INVALID_LOG_PAGE: Self = Self(0x109 | DNR);
    pub const INVALID_QUEUE_DELETION: Self = Self(0x10c | DNR);
    pub const FEATURE_NOT_SAVEABLE: Self = Self(0x10d | DNR);
    pub const FEATURE_NOT_CHANGEABLE: Self = Self(0x10e | DNR);
    pub const COMMAND_SET_REJECTED: Self = Self(0x12b | DNR);
    pub const CONFLICTING_ATTRIBUTES: Self = Self(0x180 | DNR);
    pub const COMMAND_SIZE_LIMIT: Self = Self(0x183 | DNR);
    pub const WRITE_FAULT: Self = Self(0x280);
    pub const UNRECOVERED_READ: Self = Self(0x281);
    pub const COMPARE_FAILURE: Self = Self(0x285 | DNR);
    pub const ANA_INACCESSIBLE: Self = Self(0x302);

    /// Whether the command did what it was to do.
    #[must_use]
    pub fn is_success(self) -> bool {
        self.0 == 0
    }

    /// The word in the completion queue entry.
    #[must_use]
    pub fn word(self, phase: bool) -> u16 {
        self.0 << 1 | u16::from(phase)
    }
}

impl std::fmt::Debug for Status {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Status(sct {:x} sc {:02x}{})",
            self.0 >> 8 & 7,
            self.0 & 0xff,
            if self.0 & DNR == 0 { "" } else { " dnr" }
        )
    }
}

/// A range of Dataset Management (NVM, figure 43).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct DsmRange {
    /// Context attributes, hints only.
    pub attributes: u32,
    /// Blocks.
    pub blocks: u32,
    /// First block.
    pub slba: u64,
}
const _: () = assert!(size_of::<DsmRange>() == 16);

/// A source range of Copy, descriptor format 0 (NVM, figure 35).
#[derive(Clone, Copy, Debug, Default, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C)]
pub struct CopyRange {
    /// Reserved.
    pub reserved0: u64,
    /// First block.
    pub slba: u64,
    /// Blocks, zero-based.
    pub blocks: u16,
    /// Reserved, and protection information that no namespace here has.
    pub reserved1: [u8; 14],
}
const _: () = assert!(size_of::<CopyRange>() == 32);
