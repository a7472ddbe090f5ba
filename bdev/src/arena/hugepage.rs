//! Private memory in reserved hugepages, by way of the `hugepage-rs` crate.
//!
//! That allocator panics, and stays poisoned, on a kernel whose /proc/meminfo has no Hugepagesize line, and
//! returns NULL where too few pages are free; so the preconditions are checked here first. Its mapping is
//! private and has no descriptor: not for memory that another process shall see.
#![expect(unsafe_code, reason = "calls a raw allocator")]

use std::alloc::Layout;
use std::fmt;
use std::ptr::NonNull;

use super::meminfo::Meminfo;
use super::{Arena, Backing, prefault};

/// A zeroed region of hugepages, touched.
pub struct HugepageArena {
    base: NonNull<u8>,
    layout: Layout,
}

/// Why there are no hugepages for a request; a reason to take other memory.
#[derive(Debug)]
pub enum NoHugepages {
    /// The kernel has no hugetlb, or the length is none.
    Unsupported,
    /// Fewer are free than needed.
    TooFew {
        /// Pages needed.
        needed: u64,
        /// Pages free and not promised.
        free: u64,
    },
    /// The kernel had second thoughts (a cgroup limit, a race with another process).
    Refused,
}

impl fmt::Display for NoHugepages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            NoHugepages::Unsupported => f.write_str("hugepages are not available"),
            NoHugepages::TooFew { needed, free } => write!(f, "{needed} hugepages needed, {free} free"),
            NoHugepages::Refused => f.write_str("the kernel refused hugepages"),
        }
    }
}

impl HugepageArena {
    /// `len` zeroed bytes in hugepages.
    pub fn new(len: usize) -> Result<HugepageArena, NoHugepages> {
        HugepageArena::with(Meminfo::read(), len)
    }

    fn with(meminfo: Meminfo, len: usize) -> Result<HugepageArena, NoHugepages> {
        let page_bytes = meminfo.hugepage_bytes.ok_or(NoHugepages::Unsupported)?;
        let layout = usize::try_from(page_bytes)
            .ok()
            .and_then(|align| Layout::from_size_align(len, align).ok())
            .filter(|layout| layout.size() > 0)
            .ok_or(NoHugepages::Unsupported)?;
        let needed = (len as u64).div_ceil(page_bytes);
        let free = meminfo.hugepages_unreserved;
        if needed > free {
            return Err(NoHugepages::TooFew { needed, free });
        }
        // SAFETY: the layout has a size, and the Hugepagesize line that the allocator looks for is there.
        let base = unsafe { hugepage_rs::alloc(layout) };
        let arena = HugepageArena { base: NonNull::new(base).ok_or(NoHugepages::Refused)?, layout };
        // Hugepages are reserved when mapped, but a cgroup may still refuse them when touched, and that would
        // be a SIGBUS on a reactor later. Populating answers with an error instead. SAFETY: just mapped, by
        // us alone.
        unsafe { prefault(arena.base, len) }.map_err(|_errno| NoHugepages::Refused)?;
        Ok(arena)
    }
}

impl Drop for HugepageArena {
    fn drop(&mut self) {
        // SAFETY: from alloc with this very layout; nobody has the address any more.
        unsafe { hugepage_rs::dealloc(self.base.as_ptr(), self.layout) };
    }
}

// SAFETY: a private mapping that only drop ends; the address is tied to no thread.
unsafe impl Send for HugepageArena {}
// SAFETY: a shared reference gives out the address and nothing else.
unsafe impl Sync for HugepageArena {}

// SAFETY: base and layout are set once; the mapping covers the layout, readable and writable, until drop.
unsafe impl Arena for HugepageArena {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len_bytes(&self) -> usize {
        self.layout.size()
    }

    fn backing(&self) -> Backing {
        Backing::Hugepages
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1 << 20;

    #[test]
    fn a_kernel_without_hugetlb_is_not_asked() {
        let none = Meminfo::default();

        assert!(matches!(HugepageArena::with(none, MIB), Err(NoHugepages::Unsupported)));
    }

    #[test]
    fn too_few_free_pages_are_told_with_both_numbers() {
        let few = Meminfo { hugepage_bytes: Some(2 << 20), hugepages_unreserved: 1, ..Meminfo::default() };

        let refused = HugepageArena::with(few, 2 * MIB + 1);

        assert!(matches!(refused, Err(NoHugepages::TooFew { needed: 2, free: 1 })));
    }

    #[test]
    fn pages_that_meminfo_promises_but_the_kernel_does_not_have_are_refused() {
        // 2^20 pages of 2 MiB are 2 TiB: no machine that runs tests has reserved them.
        let lie =
            Meminfo { hugepage_bytes: Some(2 << 20), hugepages_unreserved: u64::MAX, ..Meminfo::default() };

        assert!(matches!(HugepageArena::with(lie, 2 << 40), Err(NoHugepages::Refused)));
    }
}
