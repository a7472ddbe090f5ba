//! A shared mapping of a file, seen as atomic words. The program's and the reader's only way to the memory.
#![expect(unsafe_code, reason = "mmap of the trace's file")]

use std::fs::File;
use std::io;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

/// Bytes of a word.
pub(crate) const WORD_BYTES: usize = size_of::<AtomicU64>();

/// The words of a file.
#[derive(Debug)]
pub(crate) struct Words {
    base: NonNull<AtomicU64>,
    len: usize,
}

// SAFETY: the struct is a range of addresses that stays mapped until it is dropped; nothing in it belongs to a thread.
unsafe impl Send for Words {}
// SAFETY: as above; the words are atomics.
unsafe impl Sync for Words {}

impl Words {
    /// Maps the first `len` words of `file`, which the file has.
    pub(crate) fn map(file: &File, len: usize, writable: bool) -> io::Result<Words> {
        let mut protection = ProtFlags::READ;
        protection.set(ProtFlags::WRITE, writable);
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base = unsafe { mmap(ptr::null_mut(), len * WORD_BYTES, protection, MapFlags::SHARED, file, 0)? };
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Words { base, len })
    }

    /// All of them. Only loads are allowed where the mapping is not writable.
    pub(crate) fn all(&self) -> &[AtomicU64] {
        // SAFETY: so many words are mapped, page-aligned, as long as `self` is; other processes change them by stores
        // of whole words only.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.len) }
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: the range is what `map` mapped; borrows of it have ended.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len * WORD_BYTES) };
        debug_assert!(unmapped.is_ok(), "{unmapped:?}");
    }
}
