//! Shared memory behind a descriptor (memfd), in hugepages where some are free: what another process can map too.
#![expect(unsafe_code, reason = "maps and unmaps memory")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::ptr::{self, NonNull};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create};
use rustix::io::Errno;
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};

use super::meminfo::Meminfo;
use super::{Arena, Backing, PAGE_BYTES, prefault, round_up};
use crate::Error;

/// A zeroed region of a memfd, touched.
pub struct MemfdArena {
    fd: OwnedFd,
    base: NonNull<u8>,
    len: usize,
    mapped: usize,
    backing: Backing,
}

impl MemfdArena {
    /// `len` zeroed bytes: in hugepages if enough are free, in ordinary pages otherwise.
    pub fn new(len: usize) -> Result<MemfdArena, Error> {
        let no_memory = || Error::NoMemory { len_bytes: len as u64 };
        if len == 0 {
            return Err(Error::Invalid("memory of no bytes".to_owned()));
        }
        let meminfo = Meminfo::read();
        let huge = meminfo
            .hugepage_bytes
            .filter(|page| (len as u64).div_ceil(*page) <= meminfo.hugepages_unreserved);
        if let Some(page) = huge.and_then(|page| usize::try_from(page).ok())
            && let Ok(arena) = MemfdArena::map(len, page, MemfdFlags::HUGETLB, Backing::Hugepages)
        {
            return Ok(arena);
        }
        if meminfo.available_bytes.is_some_and(|available| len as u64 > available) {
            return Err(no_memory());
        }
        MemfdArena::map(len, PAGE_BYTES, MemfdFlags::empty(), Backing::Pages).map_err(|_errno| no_memory())
    }

    fn map(len: usize, page: usize, flags: MemfdFlags, backing: Backing) -> Result<MemfdArena, Errno> {
        let mapped = round_up(len, page).ok_or(Errno::NOMEM)?;
        let fd = memfd_create("ringside", flags | MemfdFlags::CLOEXEC)?;
        ftruncate(&fd, mapped as u64)?;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let base = unsafe {
            mmap(ptr::null_mut(), mapped, ProtFlags::READ | ProtFlags::WRITE, MapFlags::SHARED, &fd, 0)
        }?;
        let base = NonNull::new(base.cast()).ok_or(Errno::NOMEM)?;
        let arena = MemfdArena { fd, base, len, mapped, backing };
        // SAFETY: just mapped, by us alone.
        unsafe { prefault(base, mapped) }?;
        Ok(arena)
    }

    /// The descriptor, for whoever shall map the memory too.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for MemfdArena {
    fn drop(&mut self) {
        // SAFETY: our own mapping; nobody has the address any more. It can only fail for arguments that are none.
        let _ = unsafe { munmap(self.base.as_ptr().cast(), self.mapped) };
    }
}

// SAFETY: a mapping that only drop ends; the address is tied to no thread.
unsafe impl Send for MemfdArena {}
// SAFETY: a shared reference gives out the address and nothing else.
unsafe impl Sync for MemfdArena {}

// SAFETY: the fields are set once; the mapping covers `len`, readable and writable, until drop.
unsafe impl Arena for MemfdArena {
    fn base(&self) -> NonNull<u8> {
        self.base
    }

    fn len_bytes(&self) -> usize {
        self.len
    }

    fn backing(&self) -> Backing {
        self.backing
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::{Memory, StaticBuffer};

    #[test]
    fn what_is_written_through_the_mapping_is_read_through_the_descriptor() {
        let arena = MemfdArena::new(10_000).unwrap();
        let fd = arena.fd().try_clone_to_owned().unwrap();
        let memory = Memory::over(Box::new(arena));
        let source = StaticBuffer::new(4).unwrap().iovec(0, 4).unwrap();
        source.copy_from(0, b"ring");

        assert!(memory.copy_from(9_996, source));

        let mut seen = [0; 4];
        assert_eq!(rustix::io::pread(&fd, &mut seen, 9_996), Ok(4));
        assert_eq!(&seen, b"ring");
    }

    #[test]
    fn a_region_of_no_bytes_or_of_too_many_is_refused() {
        assert!(matches!(MemfdArena::new(0), Err(Error::Invalid(_))));
        assert!(matches!(MemfdArena::new(1 << 60), Err(Error::NoMemory { .. })));
    }
}
