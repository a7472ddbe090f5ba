//! The lock files of the target's cores: taken at the start, given up and taken again by RPC.

use std::{
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use reactor::{CoreLockError, CoreLocks, CoreMask};

/// The cores, and the locks on them while they are held.
pub(crate) struct CoreClaims {
    cores: CoreMask,
    dir: PathBuf,
    locks: Mutex<Option<CoreLocks>>,
}

impl CoreClaims {
    /// Of these cores, by files in this folder; not held yet.
    pub(crate) fn new(cores: CoreMask, dir: PathBuf) -> CoreClaims {
        CoreClaims { cores, dir, locks: Mutex::new(None) }
    }

    /// Takes the locks, all or none. Those that are held stay.
    ///
    /// # Errors
    /// Somebody else has one.
    pub(crate) fn claim(&self) -> Result<(), CoreLockError> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        if locks.is_none() {
            *locks = Some(CoreLocks::acquire(&self.cores, &self.dir)?);
        }
        Ok(())
    }

    /// Gives them up.
    pub(crate) fn release(&self) {
        self.locks.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}
