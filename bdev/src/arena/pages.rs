//! Private memory in ordinary pages: what there is when no hugepages are free.
//!
//! Regions of 2 MiB and more are aligned to that, so that the kernel can back them with transparent
//! hugepages.
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::ptr::{self, NonNull};

use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags, madvise, mmap_anonymous, munmap};

use super::meminfo::Meminfo;
use super::{Arena, Backing, PAGE_BYTES, prefault, round_up};
use crate::Error;

/// Size and alignment of a transparent hugepage on x86-64, and on arm64 with 4 KiB pages.
const THP_BYTES: usize = 2 << 20;

/// A zeroed region of ordinary pages, touched.
pub struct PageArena {
    base: NonNull<u8>,
    /// As asked for.
    len: usize,
    /// As mapped: whole pages.
    mapped: usize,
}

impl PageArena {
    /// `len` zeroed bytes.
    ///
    /// Refused when that is more than the system says it can spare: mapping it would succeed, and touching it
    /// would have the kernel kill some process.
    pub fn new(len: usize) -> Result<PageArena, Error> {
        let arena = PageArena::untouched(len)?;
        // SAFETY: just mapped, by us alone.
        unsafe { prefault(arena.base, arena.mapped) }
            .map_err(|_errno| Error::NoMemory { len_bytes: len as u64 })?;
        Ok(arena)
    }

    /// As [`new`](Self::new), but backed as it is used.
    pub(super) fn untouched(len: usize) -> Result<PageArena, Error> {
        let no_memory = || Error::NoMemory { len_bytes: len as u64 };
        if len == 0 {
            return Err(Error::Invalid("memory of no bytes".to_owned()));
        }
        if Meminfo::read().available_bytes.is_some_and(|available| len as u64 > available) {
            return Err(no_memory());
        }
        let mapped = round_up(len, PAGE_BYTES).ok_or_else(no_memory)?;
        let align = if mapped >= THP_BYTES { THP_BYTES } else { PAGE_BYTES };
        let base = map_aligned(mapped, align).map_err(|_errno| no_memory())?;
        let arena = PageArena { base, len, mapped };
        if align == THP_BYTES {
            // A wish: a kernel without transparent hugepages answers EINVAL, and ordinary pages do as well.
            // SAFETY: advice on our own fresh mapping; contents do not change.
            let _ = unsafe { madvise(base.as_ptr().cast(), mapped, Advice::LinuxHugepage) };
        }
        Ok(arena)
    }
}

/// Maps `len` bytes, whole pages, at a multiple of `align`, a power of two: maps more, and gives back what
/// sticks out.
fn map_aligned(len: usize, align: usize) -> Result<NonNull<u8>, Errno> {
    let slack = align - PAGE_BYTES;
    let total = len.checked_add(slack).ok_or(Errno::NOMEM)?;
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let start = unsafe {
        mmap_anonymous(ptr::null_mut(), total, ProtFlags::READ | ProtFlags::WRITE, MapFlags::PRIVATE)
    }?;
    let head = start.addr().next_multiple_of(align) - start.addr();
    if head > 0 {
        // SAFETY: the first `head` bytes of our mapping, whole pages, used by nobody.
        unsafe { munmap(start, head) }?;
    }
    // SAFETY: head <= slack, so this is inside the mapping.
    let base = unsafe { start.byte_add(head) };
    if slack > head {
        // SAFETY: the bytes of our mapping after base + len, whole pages, used by nobody.
        unsafe { munmap(base.byte_add(len), slack - head) }?;
    }
    NonNull::new(base.cast()).ok_or(Errno::NOMEM)
}

impl Drop for PageArena {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nobody has the address any more. It can only fail for arguments that are
        // none.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

// SAFETY: a private mapping that only drop ends; the address is tied to no thread.
unsafe impl Send for PageArena {}
// SAFETY: a shared reference gives out the address and nothing else.
unsafe impl Sync for PageArena {}

// SAFETY: the fields are set once; the mapping covers `len`, readable and writable, until drop.
unsafe impl Arena for PageArena {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len_bytes(&self) -> usize {
        self.len
    }

    fn backing(&self) -> Backing {
        Backing::Pages
    }
}
