//! The windows of one client: mapped and unmapped on the endpoint's reactor, read as snapshots by the queues.

use std::{
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
};

use rustix::io::Errno;

use super::{
    Mapping, Protection,
    budget::{Client, Share},
};
use crate::wire::version::MAX_DMA_MAPS;

/// Where a mapped window may begin: what is aligned in the guest is so in its mapping, whose file offset `mmap` wants aligned.
/// Rings rely on it. QEMU and Cloud Hypervisor map whole pages.
const PAGE: u64 = 4096;

/// One window: a range of guest addresses and what is behind it.
#[derive(Clone, Debug)]
pub struct Window {
    /// First guest address.
    pub start: u64,
    /// Last guest address; a window may end at the top of the address space.
    pub last: u64,
    /// What the device may do with it.
    pub protection: Protection,
    /// The memory, or nothing where the client passed no file (private RAM, ROM): only messages reach that.
    pub mapping: Option<Arc<Mapping>>,
    /// Device, inode and offset of the file behind it, to tell a window mapped again from another one.
    source: Option<(u64, u64, u64)>,
}

impl Window {
    fn overlaps(&self, start: u64, last: u64) -> bool {
        self.start <= last && start <= self.last
    }
}

/// Why a window is not mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// No bytes, or more than the address space holds.
    #[error("the range is empty or wraps")]
    Range,
    /// There is a file to map, and the guest address is not that of a page.
    #[error("a mapped window does not begin at a page")]
    Unaligned,
    /// It overlaps one that is there (vfio-user: DMA_MAP).
    #[error("the range overlaps a window")]
    Overlap,
    /// The client has [`MAX_DMA_MAPS`] windows.
    #[error("more than {MAX_DMA_MAPS} windows")]
    TooMany,
    /// The client has its share of the mappings of the process, or there are none left: fewer than [`MAX_DMA_MAPS`] windows may have
    /// a file.
    #[error("too many mappings of files (vm.max_map_count)")]
    Share,
    /// The file cannot be mapped like this.
    #[error("mapping the file failed: {0}")]
    Map(Errno),
}

impl From<MapError> for Errno {
    fn from(error: MapError) -> Self {
        match error {
            MapError::Range | MapError::Unaligned => Self::INVAL,
            MapError::Overlap => Self::EXIST,
            MapError::TooMany | MapError::Share => Self::NOSPC,
            MapError::Map(errno) => errno,
        }
    }
}

/// Why a range is not unmapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnmapError {
    /// The range is empty, wraps, or cuts a window in two.
    #[error("the range is empty, wraps, or cuts a window")]
    Range,
    /// There is nothing in the range.
    #[error("no window in the range")]
    Missing,
}

impl From<UnmapError> for Errno {
    fn from(error: UnmapError) -> Self {
        match error {
            UnmapError::Range => Self::INVAL,
            UnmapError::Missing => Self::NOENT,
        }
    }
}

/// The windows at one time, shared by all who took them.
#[derive(Clone, Debug)]
pub(super) struct Snapshot {
    /// By start address; no two overlap.
    pub(super) windows: Arc<[Window]>,
    /// The last address of each, side by side: a search touches few cache lines.
    lasts: Arc<[u64]>,
}

impl Snapshot {
    fn of(windows: &[Window]) -> Self {
        Self { windows: windows.into(), lasts: windows.iter().map(|window| window.last).collect() }
    }

    /// The first window that does not end before `address`; their number if all do.
    #[inline]
    pub(super) fn position(&self, address: u64) -> usize {
        let lasts = &self.lasts[..];
        let (mut from, mut len) = (0, lasts.len());
        // Four parts at a time, and no branch that depends on the address: it could not be predicted.
        while len > 4 {
            let part = len / 4;
            let step = |nth: usize| if lasts[from + nth * part - 1] < address { part } else { 0 };
            from += step(1) + step(2) + step(3);
            len -= 3 * part;
        }
        from + lasts[from..from + len].iter().map(|&last| usize::from(last < address)).sum::<usize>()
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// By start address; no two overlap.
    windows: Vec<Window>,
    /// What [`Windows::snapshot`] hands out until the next change. Made on demand: a burst of maps copies once.
    snapshot: Option<Snapshot>,
    /// Counts changes; see [`Windows::generation`].
    generation: u64,
    /// Counts unmaps.
    removals: u64,
    client: Client,
}

/// The windows of one client.
#[derive(Debug, Default)]
pub struct Windows(Mutex<Inner>);

impl Windows {
    fn with<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        // A poisoned lock is still a sorted list: every change below is complete before it is visible.
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Maps `size` bytes at guest address `start`, behind which is `file` from `offset` on.
    ///
    /// An identical window may be mapped again and again: clients do so after a reset.
    ///
    /// # Errors
    /// See [`MapError`].
    pub fn map(
        &self,
        start: u64,
        size: u64,
        protection: Protection,
        file: Option<(OwnedFd, u64)>,
    ) -> Result<(), MapError> {
        let last = size.checked_sub(1).and_then(|more| start.checked_add(more)).ok_or(MapError::Range)?;
        if file.is_some() && !start.is_multiple_of(PAGE) {
            return Err(MapError::Unaligned);
        }
        let source = file.as_ref().map(|(file, offset)| {
            rustix::fs::fstat(file).map(|stat| (stat.st_dev, stat.st_ino, *offset)).map_err(MapError::Map)
        });
        let source = source.transpose()?;
        self.with(|inner| {
            let at = inner.windows.partition_point(|window| window.last < start);
            if let Some(there) = inner.windows.get(at).filter(|window| window.overlaps(start, last)) {
                let same = there.start == start
                    && there.last == last
                    && there.protection == protection
                    && there.source == source;
                return if same { Ok(()) } else { Err(MapError::Overlap) };
            }
            if inner.windows.len() >= MAX_DMA_MAPS as usize {
                return Err(MapError::TooMany);
            }
            let map = |(file, offset)| {
                let share = Share::take(&inner.client, 1).ok_or(MapError::Share)?;
                Mapping::new(file, offset, size, protection, share).map(Arc::new).map_err(MapError::Map)
            };
            let mapping = file.map(map).transpose()?;
            inner.windows.insert(at, Window { start, last, protection, mapping, source });
            inner.changed();
            Ok(())
        })
    }

    /// Unmaps every window in the range. QEMU behind a vIOMMU unmaps ranges that hold many windows, or none.
    ///
    /// # Errors
    /// See [`UnmapError`].
    pub fn unmap(&self, start: u64, size: u64) -> Result<(), UnmapError> {
        let last = size.checked_sub(1).and_then(|more| start.checked_add(more)).ok_or(UnmapError::Range)?;
        self.with(|inner| {
            let from = inner.windows.partition_point(|window| window.last < start);
            let to = inner.windows.partition_point(|window| window.start <= last);
            let hit = &inner.windows[from..to];
            let (Some(first), Some(end)) = (hit.first(), hit.last()) else { return Err(UnmapError::Missing) };
            if first.start < start || end.last > last {
                return Err(UnmapError::Range);
            }
            inner.windows.drain(from..to);
            inner.removals += 1;
            inner.changed();
            Ok(())
        })
    }

    /// Unmaps everything.
    pub fn clear(&self) {
        self.with(|inner| {
            inner.windows.clear();
            inner.removals += 1;
            inner.changed();
        });
    }

    /// The windows as they are now, and the count of changes that led there.
    #[must_use]
    pub fn snapshot(&self) -> (Arc<[Window]>, u64) {
        let (snapshot, generation, _) = self.snapshot_with_removals();
        (snapshot.windows, generation)
    }

    /// As [`Self::snapshot`], and the count of unmaps until now.
    #[must_use]
    pub(super) fn snapshot_with_removals(&self) -> (Snapshot, u64, u64) {
        self.with(|inner| {
            let snapshot = inner.snapshot.get_or_insert_with(|| Snapshot::of(&inner.windows)).clone();
            (snapshot, inner.generation, inner.removals)
        })
    }

    /// Counts changes: a queue that has acknowledged this number holds nothing that was unmapped before it.
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.with(|inner| inner.generation)
    }

    /// Number of windows.
    #[must_use]
    pub fn len(&self) -> usize {
        self.with(|inner| inner.windows.len())
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Inner {
    fn changed(&mut self) {
        self.snapshot = None;
        self.generation += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BOTH: Protection = Protection { read: true, write: true };

    fn bare(windows: &Windows, start: u64, size: u64) -> Result<(), MapError> {
        windows.map(start, size, BOTH, None)
    }

    #[test]
    fn position_is_that_of_the_first_window_that_does_not_end_before_the_address() {
        for len in 0..150 {
            let lasts: Arc<[u64]> = (0..len).map(|nth| nth * 10 + 5).collect();
            let snapshot = Snapshot { windows: Arc::new([]), lasts: Arc::clone(&lasts) };
            for address in 0..len * 10 + 10 {
                let expected = lasts.partition_point(|&last| last < address);
                assert_eq!(snapshot.position(address), expected, "{address} among {len}");
            }
        }
    }

    #[test]
    fn overlapping_window_is_refused_and_an_identical_one_is_not() {
        let windows = Windows::default();
        bare(&windows, 0x1000, 0x1000).unwrap();

        assert_eq!(bare(&windows, 0x1000, 0x1000), Ok(()));
        assert_eq!(bare(&windows, 0x1fff, 0x1000), Err(MapError::Overlap));
        assert_eq!(bare(&windows, 0, 0x1001), Err(MapError::Overlap));
        assert_eq!(bare(&windows, 0, 0x1000), Ok(()));
        assert_eq!(windows.len(), 2);
    }

    #[test]
    fn empty_and_wrapping_ranges_are_refused_and_the_top_of_the_space_is_not() {
        let windows = Windows::default();
        assert_eq!(bare(&windows, 0x1000, 0), Err(MapError::Range));
        assert_eq!(bare(&windows, u64::MAX, 2), Err(MapError::Range));
        assert_eq!(bare(&windows, u64::MAX - 4095, 4096), Ok(()));
    }

    #[test]
    fn window_with_a_file_begins_at_a_page() {
        let windows = Windows::default();
        let map = |start| {
            let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
            rustix::fs::ftruncate(&file, 0x4000).unwrap();
            windows.map(start, 0x1000, BOTH, Some((file, 0)))
        };
        assert_eq!([map(0x1004), map(0x1fff)], [Err(MapError::Unaligned); 2]);
        assert_eq!(map(0x1000), Ok(()));
        assert_eq!(bare(&windows, 0x3004, 0x100), Ok(()), "only messages reach it");
    }

    #[test]
    fn client_that_maps_all_it_can_leaves_mappings_to_others() {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&file, 0x1000).unwrap();
        let map = |windows: &Windows, nth: u64| {
            windows.map(nth * 0x2000, 0x1000, BOTH, Some((file.try_clone().unwrap(), 0)))
        };
        let (greedy, other) = (Windows::default(), Windows::default());

        let (refused, outcome) =
            (0..).map(|nth| (nth, map(&greedy, nth))).find(|(_, outcome)| outcome.is_err()).unwrap();

        assert_eq!(outcome, Err(MapError::Share));
        assert_eq!(Errno::from(MapError::Share), Errno::NOSPC);
        assert_eq!(bare(&greedy, refused * 0x2000, 0x1000), Ok(()), "only messages reach it");
        assert_eq!(map(&other, 0), Ok(()));
        // More than one: other tests map something at the same time.
        greedy.unmap(0, 100 * 0x2000).unwrap();
        assert_eq!(map(&greedy, 0), Ok(()), "what is unmapped is given back");
    }

    #[test]
    fn unmap_takes_whole_windows_only() {
        let windows = Windows::default();
        for start in [0x1000, 0x2000, 0x5000] {
            bare(&windows, start, 0x1000).unwrap();
        }
        assert_eq!(windows.unmap(0x1800, 0x1000), Err(UnmapError::Range));
        assert_eq!(windows.unmap(0x3000, 0x1000), Err(UnmapError::Missing));
        assert_eq!(windows.unmap(0, 0x4000), Ok(()));
        assert_eq!(windows.len(), 1);
    }

    #[test]
    fn snapshot_outlives_the_unmap() {
        let windows = Windows::default();
        bare(&windows, 0x1000, 0x1000).unwrap();
        let (before, generation) = windows.snapshot();
        windows.unmap(0x1000, 0x1000).unwrap();

        assert_eq!(before.len(), 1);
        assert!(windows.snapshot().0.is_empty());
        assert!(windows.generation() > generation);
    }
}
