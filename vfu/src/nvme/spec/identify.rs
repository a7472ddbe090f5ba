//! Identify data structures (Base, 5.17; NVM, 4.1.5).

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

/// Controller or Namespace Structure values (Base, figure 274).
pub mod cns {
    /// A namespace.
    pub const NAMESPACE: u8 = 0x00;
    /// The controller.
    pub const CONTROLLER: u8 = 0x01;
    /// Active namespaces.
    pub const ACTIVE: u8 = 0x02;
    /// Identification descriptors of a namespace.
    pub const DESCRIPTORS: u8 = 0x03;
    /// A namespace, as its command set has it.
    pub const CSI_NAMESPACE: u8 = 0x05;
    /// The controller, as a command set has it.
    pub const CSI_CONTROLLER: u8 = 0x06;
    /// Active namespaces of a command set.
    pub const CSI_ACTIVE: u8 = 0x07;
    /// A namespace, whatever its command set.
    pub const INDEPENDENT: u8 = 0x08;
    /// Allocated namespaces.
    pub const ALLOCATED: u8 = 0x10;
    /// An allocated namespace.
    pub const ALLOCATED_NAMESPACE: u8 = 0x11;
    /// Controllers attached to a namespace.
    pub const NAMESPACE_CONTROLLERS: u8 = 0x12;
    /// Controllers of the subsystem.
    pub const CONTROLLERS: u8 = 0x13;
    /// Combinations of command sets.
    pub const COMMAND_SETS: u8 = 0x1c;
}

/// Identify Controller (Base, figure 275).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct Controller {
    pub vid: u16,
    pub ssvid: u16,
    pub sn: [u8; 20],
    pub mn: [u8; 40],
    pub fr: [u8; 8],
    pub rab: u8,
    pub ieee: [u8; 3],
    pub cmic: u8,
    pub mdts: u8,
    pub cntlid: u16,
    pub ver: u32,
    pub rtd3r: u32,
    pub rtd3e: u32,
    pub oaes: u32,
    pub ctratt: u32,
    pub rrls: u16,
    pub reserved102: [u8; 9],
    pub cntrltype: u8,
    pub fguid: [u8; 16],
    pub crdt: [u16; 3],
    pub reserved134: [u8; 122],
    pub oacs: u16,
    pub acl: u8,
    pub aerl: u8,
    pub frmw: u8,
    pub lpa: u8,
    pub elpe: u8,
    pub npss: u8,
    pub avscc: u8,
    pub apsta: u8,
    pub wctemp: u16,
    pub cctemp: u16,
    pub mtfa: u16,
    pub hmpre: u32,
    pub hmmin: u32,
    pub tnvmcap: [u8; 16],
    pub unvmcap: [u8; 16],
    pub rpmbs: u32,
    pub edstt: u16,
    pub dsto: u8,
    pub fwug: u8,
    pub kas: u16,
    pub hctma: u16,
    pub mntmt: u16,
    pub mxtmt: u16,
    pub sanicap: u32,
    pub hmminds: u32,
    pub hmmaxd: u16,
    pub nsetidmax: u16,
    pub endgidmax: u16,
    pub anatt: u8,
    pub anacap: u8,
    pub anagrpmax: u32,
    pub nanagrpid: u32,
    pub pels: u32,
    pub reserved356: [u8; 156],
    pub sqes: u8,
    pub cqes: u8,
    pub maxcmd: u16,
    pub nn: u32,
    pub oncs: u16,
    pub fuses: u16,
    pub fna: u8,
    pub vwc: u8,
    pub awun: u16,
    pub awupf: u16,
    pub icsvscc: u8,
    pub nwpc: u8,
    pub acwu: u16,
    pub ocfs: u16,
    pub sgls: u32,
    pub mnan: u32,
    pub reserved544: [u8; 224],
    pub subnqn: [u8; 256],
    pub reserved1024: [u8; 1024],
    pub psd: [[u8; 32]; 32],
    pub vendor: [u8; 1024],
}
const _: () = assert!(size_of::<Controller>() == 4096);
const _: () = assert!(std::mem::offset_of!(Controller, oacs) == 256);
const _: () = assert!(std::mem::offset_of!(Controller, anatt) == 342);
const _: () = assert!(std::mem::offset_of!(Controller, sqes) == 512);
const _: () = assert!(std::mem::offset_of!(Controller, sgls) == 536);
const _: () = assert!(std::mem::offset_of!(Controller, subnqn) == 768);
const _: () = assert!(std::mem::offset_of!(Controller, psd) == 2048);

/// Identify Namespace of the NVM command set (NVM, figure 97).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct Namespace {
    pub nsze: u64,
    pub ncap: u64,
    pub nuse: u64,
    pub nsfeat: u8,
    pub nlbaf: u8,
    pub flbas: u8,
    pub mc: u8,
    pub dpc: u8,
    pub dps: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub dlfeat: u8,
    pub nawun: u16,
    pub nawupf: u16,
    pub nacwu: u16,
    pub nabsn: u16,
    pub nabo: u16,
    pub nabspf: u16,
    pub noiob: u16,
    pub nvmcap: [u8; 16],
    pub npwg: u16,
    pub npwa: u16,
    pub npdg: u16,
    pub npda: u16,
    pub nows: u16,
    pub mssrl: u16,
    pub mcl: u32,
    pub msrc: u8,
    pub reserved81: [u8; 11],
    pub anagrpid: u32,
    pub reserved96: [u8; 3],
    pub nsattr: u8,
    pub nvmsetid: u16,
    pub endgid: u16,
    pub nguid: [u8; 16],
    pub eui64: [u8; 8],
    /// LBA formats: metadata size, data size as a power of two, relative performance.
    pub lbaf: [u32; 64],
    pub vendor: [u8; 3712],
}
const _: () = assert!(size_of::<Namespace>() == 4096);
const _: () = assert!(std::mem::offset_of!(Namespace, nguid) == 104);
const _: () = assert!(std::mem::offset_of!(Namespace, lbaf) == 128);

/// NVM command set part of Identify Controller (NVM, figure 103).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct NvmController {
    pub vsl: u8,
    pub wzsl: u8,
    pub wusl: u8,
    pub dmrl: u8,
    pub dmrsl: u32,
    pub dmsl: u64,
    pub reserved: [u8; 4080],
}
const _: () = assert!(size_of::<NvmController>() == 4096);

/// Command set independent Identify Namespace (Base, figure 280).
#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout)]
#[repr(C, packed)]
#[expect(missing_docs, reason = "the names are those of the figure")]
pub struct IndependentNamespace {
    pub nsfeat: u8,
    pub nmic: u8,
    pub rescap: u8,
    pub fpi: u8,
    pub anagrpid: u32,
    pub nsattr: u8,
    pub reserved9: u8,
    pub nvmsetid: u16,
    pub endgid: u16,
    pub nstat: u8,
    pub reserved15: [u8; 4081],
}
const _: () = assert!(size_of::<IndependentNamespace>() == 4096);
