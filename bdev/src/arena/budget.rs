//! How much memory the arenas of this process may take together (`-s`), and whether from hugepages (`--no-huge`).

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use crate::Error;

static BYTES_MAX: AtomicU64 = AtomicU64::new(u64::MAX);
static BYTES_TAKEN: AtomicU64 = AtomicU64::new(0);
static HUGEPAGES: AtomicBool = AtomicBool::new(true);

/// Bounds the memory of arenas to come. For the program, before it makes the first bdev.
pub fn set_budget(bytes_max: Option<u64>, hugepages: bool) {
    BYTES_MAX.store(bytes_max.unwrap_or(u64::MAX), Ordering::Relaxed);
    HUGEPAGES.store(hugepages, Ordering::Relaxed);
}

/// Bytes that arenas hold now.
pub fn bytes_taken() -> u64 {
    BYTES_TAKEN.load(Ordering::Relaxed)
}

pub(super) fn hugepages_wanted() -> bool {
    HUGEPAGES.load(Ordering::Relaxed)
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub(super) struct Share(u64);

impl Share {
    pub(super) fn take(len: usize) -> Result<Share, Error> {
        let bytes_max = BYTES_MAX.load(Ordering::Relaxed);
        let add = |taken: u64| taken.checked_add(len as u64).filter(|taken| *taken <= bytes_max);
        match BYTES_TAKEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add) {
            Ok(_before) => Ok(Share(len as u64)),
            Err(taken) => {
                tracing::warn!(len_bytes = len, taken, bytes_max, "the memory budget (-s) is used up");
                Err(Error::NoMemory { len_bytes: len as u64 })
            }
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        BYTES_TAKEN.fetch_sub(self.0, Ordering::Relaxed);
    }
}
