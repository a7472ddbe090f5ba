//! Memory of our own: large, zeroed, aligned, in hugepages where some are free.
//!
//! The malloc type keeps its data here; tests and pools get buffers from here. Memory is raw: it is copied to
//! and from [`IoVec`]s with bounds checked, and never becomes a reference, because two reactors may copy to
//! the same bytes at the same time. Made and released on control threads only.
#![expect(unsafe_code, reason = "maps memory and copies between raw regions; the only place besides iov.rs")]

mod budget;
mod hugepage;
mod memfd;
mod meminfo;
mod pages;

use std::fmt;
use std::ptr::NonNull;

use crate::{Error, IoVec};

pub use budget::{bytes_taken, set_budget};
pub use hugepage::HugepageArena;
pub use memfd::MemfdArena;
pub use pages::PageArena;

/// What memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backing {
    /// Reserved hugepages (hugetlb).
    Hugepages,
    /// Ordinary pages; the kernel is asked for transparent hugepages.
    Pages,
}

impl fmt::Display for Backing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Backing::Hugepages => "hugepages",
            Backing::Pages => "pages",
        })
    }
}

/// A mapping that lives as long as its owner.
///
/// # Safety
/// `base` and `len_bytes` never change, and until `drop` that many bytes at `base` are mapped, readable and
/// writable; no reference to them is ever made.
pub unsafe trait Arena: Send + Sync {
    /// Address of the first byte; aligned to at least the page size.
    fn base(&self) -> NonNull<u8>;
    /// Length in bytes.
    fn len_bytes(&self) -> usize;
    /// What it is made of.
    fn backing(&self) -> Backing;
}

/// A region of memory that can be copied to and from, by any thread at any time.
///
/// Copies that overlap in time leave a mixture of bytes; nothing else can happen.
pub struct Memory {
    base: NonNull<u8>,
    len: usize,
    arena: Box<dyn Arena>,
    /// Of the budget; none for memory that a caller brought along.
    _share: Option<budget::Share>,
}

// SAFETY: the arena is Send, and the address is the arena's.
unsafe impl Send for Memory {}
// SAFETY: through a shared reference the bytes are only reached by raw copies, which the type allows from any
// thread.
unsafe impl Sync for Memory {}

impl Memory {
    /// `len` zeroed bytes, all of them backed by real memory: in hugepages if enough of them are free, in
    /// ordinary pages otherwise.
    ///
    /// Touches every page, so it may take a while (about a second for some GiB); never call it on a reactor.
    pub fn zeroed(len: usize) -> Result<Memory, Error> {
        let share = budget::Share::take(len)?;
        let memory = if budget::hugepages_wanted() { Memory::in_hugepages(len) } else { None };
        let memory = match memory {
            Some(memory) => memory,
            None => Memory::over(Box::new(PageArena::new(len)?)),
        };
        Ok(Memory { _share: Some(share), ..memory })
    }

    /// As [`zeroed`](Self::zeroed), from hugepages alone; none if too few are free.
    fn in_hugepages(len: usize) -> Option<Memory> {
        match HugepageArena::new(len) {
            Ok(arena) => Some(Memory::over(Box::new(arena))),
            Err(why) => {
                tracing::debug!(len_bytes = len, %why, "no hugepages for this memory");
                None
            }
        }
    }

    /// Memory over an arena of the caller's choice.
    pub fn over(arena: Box<dyn Arena>) -> Memory {
        Memory { base: arena.base(), len: arena.len_bytes(), arena, _share: None }
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.len
    }

    /// What it is made of.
    pub fn backing(&self) -> Backing {
        self.arena.backing()
    }

    #[inline]
    fn contains(&self, offset: usize, len: usize) -> bool {
        offset <= self.len && len <= self.len - offset
    }

    /// Has the processor fetch `len` bytes from `offset` on, which will be copied soon. A hint: it touches nothing.
    #[inline]
    pub(crate) fn prefetch(&self, offset: usize, len: usize) {
        crate::iov::prefetch(self.base.as_ptr().wrapping_add(offset), len);
    }

    /// Copies from `offset` on into the whole of `iov`. False, and nothing copied, where that reaches past
    /// the end.
    #[inline]
    #[must_use]
    pub fn copy_to(&self, offset: usize, iov: IoVec) -> bool {
        if !self.contains(offset, iov.len()) {
            return false;
        }
        // SAFETY: in bounds of the arena; the vector's maker vouches for its bytes. `copy`, not
        // `copy_nonoverlapping`: a vector may lie in this very memory, and memmove is as fast.
        unsafe { std::ptr::copy(self.base.as_ptr().add(offset), iov.as_ptr(), iov.len()) };
        true
    }

    /// Copies the whole of `iov` in at `offset`. False, and nothing copied, where that reaches past the end.
    #[inline]
    #[must_use]
    pub fn copy_from(&self, offset: usize, iov: IoVec) -> bool {
        if !self.contains(offset, iov.len()) {
            return false;
        }
        // SAFETY: as in `copy_to`, the other way round.
        unsafe { std::ptr::copy(iov.as_ptr(), self.base.as_ptr().add(offset), iov.len()) };
        true
    }

    /// Zeroes `len` bytes from `offset` on. False, and nothing done, where that reaches past the end.
    #[inline]
    #[must_use]
    pub fn zero(&self, offset: usize, len: usize) -> bool {
        if !self.contains(offset, len) {
            return false;
        }
        // SAFETY: in bounds of the arena.
        unsafe { std::ptr::write_bytes(self.base.as_ptr().add(offset), 0, len) };
        true
    }
}

impl fmt::Debug for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Memory({:#x} bytes of {})", self.len, self.backing())
    }
}

/// A buffer that is never given back to the system, so that vectors over it are good for ever.
///
/// For tests, benches and load generators, which make their buffers once. Dropping one leaks it on purpose.
#[derive(Debug, Clone)]
pub struct StaticBuffer {
    memory: &'static Memory,
}

impl StaticBuffer {
    /// `len` zeroed bytes, aligned to a page.
    pub fn new(len: usize) -> Result<StaticBuffer, Error> {
        let memory = Memory::over(Box::new(PageArena::new(len)?));
        Ok(StaticBuffer { memory: Box::leak(Box::new(memory)) })
    }

    /// As [`new`](Self::new), but not touched: pages come when they are first used.
    pub(crate) fn untouched(len: usize) -> Result<StaticBuffer, Error> {
        let memory = Memory::over(Box::new(PageArena::untouched(len)?));
        Ok(StaticBuffer { memory: Box::leak(Box::new(memory)) })
    }

    /// Length in bytes.
    pub fn len_bytes(&self) -> usize {
        self.memory.len_bytes()
    }

    /// A vector over a part of it, or `None` where that reaches past the end.
    pub fn iovec(&self, offset: usize, len: usize) -> Option<IoVec> {
        // SAFETY: the memory is never unmapped, is readable and writable, and no reference to it is ever
        // made.
        let whole = unsafe { IoVec::new(self.memory.base.as_ptr(), self.memory.len) };
        whole.slice(offset, len)
    }
}

/// Rounds up to a multiple of `unit`, a power of two.
fn round_up(len: usize, unit: usize) -> Option<usize> {
    len.checked_add(unit - 1).map(|l| l & !(unit - 1))
}

/// Backs `len` bytes at `base` with real memory now, so that no reactor takes the page faults.
///
/// # Safety
/// The range is mapped readable and writable, and holds nothing but zeroes that nobody else writes yet.
unsafe fn prefault(base: NonNull<u8>, len: usize) -> Result<(), rustix::io::Errno> {
    use rustix::io::Errno;
    use rustix::mm::{Advice, madvise};
    // SAFETY: populating changes no contents; the caller vouches for the range.
    match unsafe { madvise(base.as_ptr().cast(), len, Advice::LinuxPopulateWrite) } {
        // Before Linux 5.14.
        Err(Errno::INVAL) => {}
        other => return other,
    }
    for offset in (0..len).step_by(PAGE_BYTES) {
        // SAFETY: in bounds, and the byte is zero already.
        unsafe { base.as_ptr().add(offset).write_volatile(0) };
    }
    Ok(())
}

/// The smallest page there is on the machines this runs on.
const PAGE_BYTES: usize = 4096;

#[cfg(test)]
mod tests;
