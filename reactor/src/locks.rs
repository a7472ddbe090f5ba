//! Lock files that say which process runs on which core, where SPDK's targets look for them.

use std::{
    fs::File,
    io::{self, Write},
    path::{Path, PathBuf},
};

use rustix::fs::{FlockOperation, fcntl_lock};

use crate::CoreMask;

/// Where SPDK keeps them.
pub const CORE_LOCK_DIR: &str = "/var/tmp";

/// Why cores cannot be locked.
#[derive(Debug, thiserror::Error)]
pub enum CoreLockError {
    /// Somebody else runs there.
    #[error("Cannot create lock on core {core}, probably process {pid} has claimed it.")]
    Held {
        /// The core.
        core: u32,
        /// The process, as its lock file says; 0 if that cannot be read.
        pid: i32,
    },
    /// The file cannot be made.
    #[error("Cannot open or write lock file {path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's word.
        source: io::Error,
    },
}

/// Locks on cores, one file each, given back when dropped.
#[derive(Debug)]
pub struct CoreLocks(Vec<(PathBuf, File)>);

impl CoreLocks {
    /// Locks all of the cores, or none.
    ///
    /// # Errors
    /// See [`CoreLockError`].
    pub fn acquire(cores: &CoreMask, dir: &Path) -> Result<CoreLocks, CoreLockError> {
        let mut locks = CoreLocks(Vec::new());
        for core in cores.iter() {
            let path = dir.join(format!("spdk_cpu_lock_{core:03}"));
            let fail = |source| CoreLockError::File { path: path.clone(), source };
            let mut file = File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
                .map_err(fail)?;
            if fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive).is_err() {
                return Err(CoreLockError::Held { core, pid: holder(&path) });
            }
            // Four bytes, as SPDK writes its pid_t.
            file.write_all(&std::process::id().to_ne_bytes()).map_err(fail)?;
            locks.0.push((path, file));
        }
        Ok(locks)
    }

    /// Gives them back.
    pub fn release(self) {
        drop(self);
    }
}

fn holder(path: &Path) -> i32 {
    let bytes = std::fs::read(path).unwrap_or_default();
    bytes.get(..4).and_then(|bytes| bytes.try_into().ok()).map_or(0, i32::from_ne_bytes)
}

impl Drop for CoreLocks {
    fn drop(&mut self) {
        for (path, _locked) in &self.0 {
            // Removed while it is still locked: nobody can take a lock on a file that then disappears.
            let _ = std::fs::remove_file(path);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lock_file_holds_our_process_id_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let locks = CoreLocks::acquire(&"5".parse().unwrap(), dir.path()).unwrap();
        let path = dir.path().join("spdk_cpu_lock_002");
        assert_eq!(std::fs::read(&path).unwrap(), std::process::id().to_ne_bytes());
        locks.release();
        assert!(!path.exists());
    }

    #[test]
    fn directory_that_does_not_exist_is_told() {
        let error = CoreLocks::acquire(&CoreMask::of(0), Path::new("/nonexistent")).unwrap_err();
        assert!(matches!(error, CoreLockError::File { .. }));
    }
}
