//! A namespace: a bdev with the names by which hosts know it.

use std::sync::{
    Arc,
    atomic::{AtomicBool, AtomicU32, Ordering},
};

use bdev::{BdevInfo, Descriptor};

use super::reservation::Reservations;

/// Names of a namespace that its maker may choose.
#[derive(Clone, Debug, Default)]
pub struct NamespaceOptions {
    /// Its number; the lowest free one if absent.
    pub nsid: Option<u32>,
    /// NGUID.
    pub nguid: Option<[u8; 16]>,
    /// EUI64.
    pub eui64: Option<[u8; 8]>,
    /// UUID; that of the bdev if absent.
    pub uuid: Option<[u8; 16]>,
    /// ANA group; its number if absent.
    pub anagrpid: Option<u32>,
    /// Where reservations outlive the target.
    pub ptpl_file: Option<std::path::PathBuf>,
}

/// A namespace of a subsystem.
#[derive(Debug)]
pub struct Namespace {
    /// Its number.
    pub nsid: u32,
    /// NGUID.
    pub nguid: Option<[u8; 16]>,
    /// EUI64.
    pub eui64: Option<[u8; 8]>,
    /// UUID.
    pub uuid: [u8; 16],
    /// Reservations.
    pub reservations: Reservations,
    /// Where reservations outlive the target.
    pub ptpl_file: Option<std::path::PathBuf>,
    anagrpid: AtomicU32,
    /// A fused command is at work.
    fused: AtomicBool,
    descriptor: Descriptor,
}

impl Namespace {
    /// A namespace over an opened bdev, with what its `ptpl_file` remembers.
    #[must_use]
    pub fn new(
        nsid: u32,
        options: NamespaceOptions,
        descriptor: Descriptor,
        reservations: Reservations,
    ) -> Self {
        let uuid = options.uuid.unwrap_or_else(|| *descriptor.info().uuid.as_bytes());
        Self {
            nsid,
            nguid: options.nguid,
            eui64: options.eui64,
            uuid,
            reservations,
            ptpl_file: options.ptpl_file,
            anagrpid: AtomicU32::new(options.anagrpid.unwrap_or(nsid)),
            fused: AtomicBool::new(false),
            descriptor,
        }
    }

    /// The bdev.
    #[must_use]
    pub fn descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// What the bdev is.
    #[must_use]
    pub fn info(&self) -> &Arc<BdevInfo> {
        self.descriptor.info()
    }

    /// ANA group.
    #[must_use]
    pub fn anagrpid(&self) -> u32 {
        self.anagrpid.load(Ordering::Acquire)
    }

    /// Moves it to another ANA group.
    pub fn set_anagrpid(&self, group: u32) {
        self.anagrpid.store(group, Ordering::Release);
    }

    /// Takes the lock of fused commands, if it is free. Who has it gives it back.
    #[must_use]
    pub fn try_lock_fused(&self) -> bool {
        !self.fused.swap(true, Ordering::AcqRel)
    }

    /// Gives the lock of fused commands back.
    pub fn unlock_fused(&self) {
        self.fused.store(false, Ordering::Release);
    }

    /// Globally unique identifier: the NGUID, or the UUID where there is none.
    #[must_use]
    pub fn guid(&self) -> [u8; 16] {
        self.nguid.unwrap_or(self.uuid)
    }
}
