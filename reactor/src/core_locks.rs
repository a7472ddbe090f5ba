//! SPDK's lock files: one per core, so that two targets do not poll on the same one by mistake.
//!
//! The file is `spdk_cpu_lock_NNN` (in /var/tmp where SPDK itself is to honour it), holding the owner's pid as a native
//! 32-bit integer under an fcntl write lock. The program takes the locks at start and gives them back and takes them
//! again as the RPCs framework_disable_cpumask_locks and framework_enable_cpumask_locks say.
//!
//! fcntl locks belong to the process: hold one [`CoreLocks`] for a core at a time, a second one in the same process
//! would be granted, and end the lock when dropped.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, fcntl_lock};
use rustix::io::Errno;

use crate::cpumask::CoreMask;

/// Where SPDK keeps its lock files.
pub const CORE_LOCK_DIR: &str = "/var/tmp";

/// Tries where the file vanishes between opening and locking it: its owner was just releasing it.
const TRIES_MAX: usize = 16;

/// Why a core could not be claimed. No core is claimed then.
#[derive(Debug, thiserror::Error)]
pub enum CoreLockError {
    /// Another process has it; the text is SPDK's.
    #[error("Cannot create lock on core {core}, probably process {pid} has claimed it.")]
    Held {
        /// The core.
        core: u32,
        /// What the file says; 0 if it says nothing.
        pid: i32,
    },
    /// The file cannot be opened, locked or written.
    #[error("cannot use the lock file {} of core {core}", path.display())]
    File {
        /// The core.
        core: u32,
        /// The file.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The claimed cores. Dropping it releases them and removes the files.
#[derive(Debug)]
pub struct CoreLocks {
    locks: Vec<CoreLock>,
}

#[derive(Debug)]
struct CoreLock {
    core: u32,
    path: PathBuf,
    /// Open as long as the lock is held.
    _file: File,
}

impl Drop for CoreLock {
    fn drop(&mut self) {
        // While the lock still holds, so that nobody's new file is removed. One that is gone already is as good.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl CoreLocks {
    /// Claims all these cores, or none.
    ///
    /// # Errors
    /// The first core that another process holds, or whose file cannot be used.
    pub fn acquire(cores: &CoreMask, dir: &Path) -> Result<CoreLocks, CoreLockError> {
        let locks = cores.iter().map(|core| claim(core, dir)).collect::<Result<Vec<_>, _>>()?;
        Ok(CoreLocks { locks })
    }

    /// The claimed cores.
    pub fn cores(&self) -> CoreMask {
        self.locks.iter().map(|lock| lock.core).collect()
    }

    /// Releases them; as good as dropping.
    pub fn release(self) {}
}

fn claim(core: u32, dir: &Path) -> Result<CoreLock, CoreLockError> {
    let path = dir.join(format!("spdk_cpu_lock_{core:03}"));
    let failed = |source| CoreLockError::File { core, path: path.clone(), source };
    for _ in 0..TRIES_MAX {
        let mut file = open(&path).map_err(failed)?;
        match fcntl_lock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            // POSIX allows either for a lock that is held.
            Err(Errno::ACCESS | Errno::AGAIN) => {
                return Err(CoreLockError::Held { core, pid: owner(&mut file) });
            }
            Err(errno) => return Err(failed(errno.into())),
        }
        if is_same_file(&file, &path).map_err(failed)? {
            write_owner(&file).map_err(failed)?;
            return Ok(CoreLock { core, path, _file: file });
        }
    }
    Err(failed(io::ErrorKind::ResourceBusy.into()))
}

/// The directory is open to everyone: neither follow a link that someone left there, nor wait for the other end of a
/// pipe.
fn open(path: &Path) -> io::Result<File> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = flags.bits().cast_signed();
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(flags)
        .open(path)
}

/// Is the file that we locked still the one of that name, or did its last owner remove it in between?
fn is_same_file(file: &File, path: &Path) -> io::Result<bool> {
    let ours = file.metadata()?;
    match std::fs::symlink_metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (ours.dev(), ours.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

fn write_owner(file: &File) -> io::Result<()> {
    let pid = rustix::process::getpid().as_raw_nonzero().get();
    file.set_len(0)?;
    file.write_all_at(&pid.to_ne_bytes(), 0)
}

fn owner(file: &mut File) -> i32 {
    let mut pid = [0; 4];
    match file.read_exact(&mut pid) {
        Ok(()) => i32::from_ne_bytes(pid),
        // Locked but not yet written, or not by SPDK.
        Err(_) => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    fn lock_file(dir: &Path, core: u32) -> PathBuf {
        dir.join(format!("spdk_cpu_lock_{core:03}"))
    }

    /// Another process that holds the lock as SPDK does, until its standard input closes.
    struct Rival(Child);

    impl Rival {
        fn claim(path: &Path) -> Rival {
            let program = "import fcntl, os, struct, sys\n\
                           f = open(sys.argv[1], 'w+b')\n\
                           fcntl.lockf(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n\
                           f.write(struct.pack('=i', os.getpid())); f.flush()\n\
                           print('held', flush=True)\n\
                           sys.stdin.read()\n";
            let mut child = Command::new("python3")
                .args(["-c", program])
                .arg(path)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()
                .unwrap();
            let mut line = String::new();
            BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
            assert_eq!(line, "held\n");
            Rival(child)
        }

        fn pid(&self) -> i32 {
            i32::try_from(self.0.id()).unwrap()
        }
    }

    impl Drop for Rival {
        fn drop(&mut self) {
            drop(self.0.stdin.take());
            self.0.wait().unwrap();
        }
    }

    #[test]
    fn claimed_core_has_a_file_with_our_pid_until_released() {
        let dir = tempfile::tempdir().unwrap();
        let locks = CoreLocks::acquire(&CoreMask::from_iter([0, 12]), dir.path()).unwrap();
        let written = std::fs::read(lock_file(dir.path(), 12)).unwrap();
        assert_eq!(written, std::process::id().to_ne_bytes());
        assert_eq!(locks.cores(), CoreMask::from_iter([0, 12]));
        locks.release();
        assert!(!lock_file(dir.path(), 0).exists() && !lock_file(dir.path(), 12).exists());
    }

    #[test]
    fn core_of_another_process_is_refused_with_its_pid_and_nothing_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let rival = Rival::claim(&lock_file(dir.path(), 1));
        let error = CoreLocks::acquire(&CoreMask::from_iter([0, 1]), dir.path()).unwrap_err();
        let expected =
            format!("Cannot create lock on core 1, probably process {} has claimed it.", rival.pid());
        assert_eq!(error.to_string(), expected);
        assert!(!lock_file(dir.path(), 0).exists());
        assert!(lock_file(dir.path(), 1).exists());
    }

    #[test]
    fn file_of_a_dead_process_is_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        drop(Rival::claim(&lock_file(dir.path(), 3)));
        let locks = CoreLocks::acquire(&CoreMask::of(3), dir.path()).unwrap();
        let written = std::fs::read(lock_file(dir.path(), 3)).unwrap();
        assert_eq!(written, std::process::id().to_ne_bytes());
        drop(locks);
    }

    #[test]
    fn link_in_place_of_the_file_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("target");
        std::fs::write(&target, "precious").unwrap();
        std::os::unix::fs::symlink(&target, lock_file(dir.path(), 0)).unwrap();
        let error = CoreLocks::acquire(&CoreMask::of(0), dir.path()).unwrap_err();
        assert!(matches!(error, CoreLockError::File { core: 0, .. }), "{error}");
        assert_eq!(std::fs::read(&target).unwrap(), b"precious");
    }

    #[test]
    fn directory_that_is_missing_is_an_error_that_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let error = CoreLocks::acquire(&CoreMask::of(7), &dir.path().join("missing")).unwrap_err();
        assert!(error.to_string().contains("spdk_cpu_lock_007"), "{error}");
    }
}
