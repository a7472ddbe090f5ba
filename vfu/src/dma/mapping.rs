//! A file range mapped into our address space, unmapped when its last owner is gone.
#![expect(unsafe_code, reason = "mmap of client memory")]

use std::{
    num::NonZeroUsize,
    os::fd::AsFd,
    ptr::{self, NonNull},
};

use rustix::{
    fs::{FsWord, Stat, fstat, fstatfs},
    io::Errno,
    mm::{Advice, MapFlags, MremapFlags, ProtFlags, madvise, mmap, mmap_anonymous, mremap_fixed},
};

use super::{
    Slice,
    budget::Share,
    release::{Range, release},
    sigbus::{Registration, Torn},
};

/// What a device may do with a window.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protection {
    /// It may read.
    pub read: bool,
    /// It may write.
    pub write: bool,
}

/// A shared mapping of a part of a client's file.
#[derive(Debug)]
pub struct Mapping {
    base: NonNull<u8>,
    len: NonZeroUsize,
    /// The whole pages it lies in: more than it where they are huge.
    pages: (NonNull<u8>, NonZeroUsize),
    /// Gone before the memory is: see `Drop`.
    registration: Option<Registration>,
    /// Goes with the memory.
    share: Option<Share>,
}

// SAFETY: the struct is a range of addresses that stays mapped until it is dropped; nothing in it belongs to a thread.
unsafe impl Send for Mapping {}
// SAFETY: as above; access to the bytes goes through `Slice`, which uses volatile and atomic operations only.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes of `file` from `offset` on, by a share of one mapping.
    ///
    /// # Errors
    /// `EINVAL` for an empty range, an offset that is not page-aligned, or a range that the file does not cover (an
    /// access behind its end would be SIGBUS); else what `mmap` says.
    pub(super) fn new(
        file: impl AsFd,
        offset: u64,
        len: u64,
        protection: Protection,
        share: Share,
    ) -> Result<Self, Errno> {
        let stat = fstat(&file)?;
        let end = offset.checked_add(len).ok_or(Errno::INVAL)?;
        if u64::try_from(stat.st_size).map_or(true, |size| end > size) {
            return Err(Errno::INVAL);
        }
        // Of huge pages any part may be a window: QEMU splits its memory below 1 MiB. They are mapped as a whole.
        let page = page_len(&file, &stat)?;
        let before = offset % page as u64;
        if !before.is_multiple_of(rustix::param::page_size() as u64) {
            return Err(Errno::INVAL);
        }
        let non_zero = |len| usize::try_from(len).ok().and_then(NonZeroUsize::new).ok_or(Errno::INVAL);
        let (len, pages_len) = (non_zero(len)?, non_zero((before + len).next_multiple_of(page as u64))?);
        let mut flags = ProtFlags::empty();
        flags.set(ProtFlags::READ, protection.read);
        flags.set(ProtFlags::WRITE, protection.write);
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let pages = unsafe {
            mmap(ptr::null_mut(), pages_len.get(), flags, MapFlags::SHARED, file, offset - before)?
        };
        let pages = NonNull::<u8>::new(pages.cast()).ok_or(Errno::NOMEM)?;
        let registration = Registration::new(pages.addr().get(), pages_len.get(), page);
        // SAFETY: less than a page, the first of those just mapped.
        let base = unsafe { pages.add(before as usize) };
        let mapping = Self { base, len, pages: (pages, pages_len), registration, share: Some(share) };
        if mapping.registration.is_none() {
            // Unprotected against a file that gets shorter: not taken.
            return Err(Errno::NOSPC);
        }
        // A core dump of the target shall not hold the memory of its guests. Advice only: a kernel that cannot, may not.
        // SAFETY: the range is the mapping just made.
        let _ = unsafe { madvise(pages.as_ptr().cast(), pages_len.get(), Advice::LinuxDontDump) };
        Ok(mapping)
    }

    /// A second mapping of pieces of others, one behind the other, for what has to be in one piece here though it is
    /// in several windows (a ring behind a vIOMMU), by a share of as many mappings. Begins at the start of the first piece's page.
    ///
    /// # Errors
    /// `EINVAL` where two pieces do not meet at the end and the start of a page, which parts of huge pages never do for the
    /// kernel; else what the kernel says.
    pub(super) fn stitched(pieces: &[Slice<'_>], share: Share) -> Result<Self, Errno> {
        let page = rustix::param::page_size();
        let (start, end) = (
            |piece: &Slice<'_>| piece.as_ptr().addr(),
            |piece: &Slice<'_>| piece.as_ptr().addr() + piece.len(),
        );
        if !pieces
            .windows(2)
            .all(|two| end(&two[0]).is_multiple_of(page) && start(&two[1]).is_multiple_of(page))
        {
            return Err(Errno::INVAL);
        }
        let extent = |piece: &Slice<'_>| end(piece).next_multiple_of(page) - (start(piece) & !(page - 1));
        let len = NonZeroUsize::new(pieces.iter().map(extent).sum()).ok_or(Errno::INVAL)?;
        // SAFETY: no address is asked for, so no existing mapping is touched.
        let base =
            unsafe { mmap_anonymous(ptr::null_mut(), len.get(), ProtFlags::empty(), MapFlags::PRIVATE)? };
        let base = NonNull::<u8>::new(base.cast()).ok_or(Errno::NOMEM)?;
        let registration = Registration::new(base.addr().get(), len.get(), page);
        // From here on, dropping it unmaps whatever was put there.
        let mapping = Self { base, len, pages: (base, len), registration, share: Some(share) };
        if mapping.registration.is_none() {
            return Err(Errno::NOSPC);
        }
        let mut at = 0;
        for piece in pieces {
            let from = piece.as_ptr().map_addr(|addr| addr & !(page - 1));
            // SAFETY: the target is inside the reservation just made, which nobody else knows. An old length of zero
            // leaves the source, a shared mapping that `piece` keeps alive, as it is and maps its pages once more.
            unsafe {
                let to = mapping.base.add(at).as_ptr();
                mremap_fixed(from.cast(), 0, extent(piece), MremapFlags::MAYMOVE, to.cast())?;
            }
            at += extent(piece);
        }
        Ok(mapping)
    }

    /// A share of so many more mappings, if its client has room for them.
    pub(super) fn another_share(&self, count: usize) -> Option<Share> {
        self.share.as_ref()?.another(count)
    }

    /// The first byte.
    #[must_use]
    pub fn base(&self) -> NonNull<u8> {
        self.base
    }

    /// Whether its file was made shorter behind its back, and an access noticed.
    #[inline]
    #[must_use]
    pub fn is_torn(&self) -> bool {
        self.registration.as_ref().map(Registration::torn).is_some_and(Torn::is_set)
    }

    /// Bytes; never zero.
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "a mapping is never empty")]
    pub fn len(&self) -> usize {
        self.len.get()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.registration = None;
        // SAFETY: the range was mapped by `new` and nobody else unmaps it; whoever holds a pointer into it holds an
        // `Arc` of this mapping, so there is none left.
        release(unsafe { Range::new(self.pages.0, self.pages.1, self.share.take()) });
    }
}

/// Bytes of the pages that a file is mapped by.
fn page_len(file: impl AsFd, stat: &Stat) -> Result<usize, Errno> {
    /// hugetlbfs (linux/magic.h), where memfds of huge pages are too: its blocks are its pages. Those of other file systems say
    /// nothing about pages.
    const HUGETLBFS_MAGIC: FsWord = 0x9584_58f6;
    let page = rustix::param::page_size();
    let block = usize::try_from(stat.st_blksize).unwrap_or(page);
    let is_huge = block > page && fstatfs(file)?.f_type == HUGETLBFS_MAGIC;
    Ok(if is_huge { block } else { page })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::{MapError, View, Windows, budget::Client};

    const BOTH: Protection = Protection { read: true, write: true };

    fn memfd(len: u64) -> std::os::fd::OwnedFd {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&fd, len).unwrap();
        fd
    }

    fn map(file: impl AsFd, offset: u64, len: u64) -> Result<Mapping, Errno> {
        Mapping::new(file, offset, len, BOTH, Share::take(&Client::default(), 1).unwrap())
    }

    #[test]
    fn range_behind_the_end_of_the_file_is_refused() {
        let file = memfd(8192);
        assert_eq!(map(&file, 4096, 8192).unwrap_err(), Errno::INVAL);
        assert_eq!(map(&file, u64::MAX - 4095, 8192).unwrap_err(), Errno::INVAL);
        assert_eq!(map(&file, 4096, 4096).unwrap().len(), 4096);
    }

    #[test]
    fn access_behind_a_file_made_shorter_reads_zeroes_and_is_noticed() {
        let file = memfd(0x4000);
        let window = Windows::default();
        window.map(0, 0x4000, BOTH, Some((file.try_clone().unwrap(), 0))).unwrap();
        let mut view = View::new(&window);
        view.write(0x2000, &[7; 16]).unwrap();
        assert_eq!(view.torn(), 0);
        rustix::fs::ftruncate(&file, 0x1000).unwrap();

        let mut back = [1; 16];
        view.slice(0x2000, 16).unwrap().unwrap().copy_to(0, &mut back);

        assert_eq!(back, [0; 16]);
        assert_eq!(view.torn(), 1);
        assert!(view.read(0, &mut back).is_err(), "nothing goes through a torn window");
        view.refresh(&window);
        assert_eq!(view.torn(), 1, "a window stays torn");
    }

    #[test]
    fn copy_that_finds_its_window_torn_fails() {
        for writes in [false, true] {
            let file = memfd(0x4000);
            let windows = Windows::default();
            windows.map(0, 0x4000, BOTH, Some((file.try_clone().unwrap(), 0))).unwrap();
            let view = View::new(&windows);
            view.write(0, &[7; 16]).unwrap();
            rustix::fs::ftruncate(&file, 0x1000).unwrap();

            let copied = if writes { view.write(0x2000, &[7; 16]) } else { view.read(0x2000, &mut [0; 16]) };

            assert!(copied.is_err(), "it went to, or came from, memory that is not the guest's");
        }
    }

    /// A file of huge pages (of 2 MiB here), and its name in the process's maps. None where there are none to be had.
    fn huge_memfd(name: &str, pages: u64) -> Option<(std::os::fd::OwnedFd, u64)> {
        use rustix::fs::{FallocateFlags, MemfdFlags, fallocate, ftruncate, memfd_create};
        let made = memfd_create(name, MemfdFlags::HUGETLB).and_then(|file| {
            let page = page_len(&file, &fstat(&file)?)? as u64;
            ftruncate(&file, pages * page)?;
            fallocate(&file, FallocateFlags::empty(), 0, pages * page)?;
            Ok((file, page))
        });
        made.inspect_err(|error| eprintln!("skipped, as there are no huge pages: {error}")).ok()
    }

    fn is_mapped(name: &str) -> bool {
        std::fs::read_to_string("/proc/self/maps").unwrap().contains(name)
    }

    #[test]
    fn window_is_any_part_of_huge_pages() {
        let Some((file, page)) = huge_memfd("huge-parts", 2) else { return };
        let windows = Windows::default();
        // QEMU's below and from 1 MiB on, and one over the end of a huge page.
        let parts = [(0xc_0000, 0x1000), (0x10_0000, 0x1000), (page - 0x1000, 0x3000)];
        for (offset, len) in parts {
            windows.map(offset, len, BOTH, Some((file.try_clone().unwrap(), offset))).unwrap();
        }
        let view = View::new(&windows);

        for (offset, len) in parts {
            view.write(offset + len - 8, &offset.to_le_bytes()).unwrap();
            let mut back = [0; 8];
            rustix::io::pread(&file, &mut back, offset + len - 8).unwrap();
            assert_eq!(u64::from_le_bytes(back), offset);
            assert!(view.read(offset + len, &mut back).is_err(), "the rest of the page is no part of it");
        }
        assert_eq!(
            windows.map(0x8000_0000, 0x1000, BOTH, Some((file, 0x800))),
            Err(MapError::Map(Errno::INVAL)),
            "not even at a small page"
        );

        drop((view, windows));
        assert!(!is_mapped("huge-parts"), "it stays mapped");
    }

    #[test]
    fn access_behind_a_huge_file_made_shorter_reads_zeroes_and_is_noticed() {
        let Some((file, page)) = huge_memfd("huge-shorter", 2) else { return };
        let windows = Windows::default();
        windows.map(0x1000, page, BOTH, Some((file.try_clone().unwrap(), 0x1000))).unwrap();
        let view = View::new(&windows);
        view.write(0x1000, &[7; 16]).unwrap();
        let (first, last) = (view.span(0x1000, 16, true).unwrap(), view.span(page, 16, true).unwrap());
        rustix::fs::ftruncate(&file, page).unwrap();

        let mut back = [1; 16];
        last.slice().copy_to(0, &mut back);

        assert_eq!(back, [0; 16]);
        assert_eq!(view.torn(), 1);
        first.slice().copy_to(0, &mut back);
        assert_eq!(back, [7; 16], "the page before is there");
        rustix::fs::ftruncate(&file, 0).unwrap();
        first.slice().copy_to(0, &mut back);
        assert_eq!(back, [0; 16]);

        drop((first, last, view, windows));
        assert!(!is_mapped("huge-shorter"), "it stays mapped");
    }

    #[test]
    fn empty_and_unaligned_ranges_are_refused() {
        let file = memfd(8192);
        assert_eq!(map(&file, 0, 0).unwrap_err(), Errno::INVAL);
        assert_eq!(map(&file, 17, 4096).unwrap_err(), Errno::INVAL);
    }
}
