//! Takes large mappings out of the address space, away from the reactors.
//!
//! Unmapping memory that a guest has touched takes as long as there are pages, and the last mapping of a file whose owner
//! is gone frees all of them: a hundred milliseconds for a gigabyte. A reactor would be felt by every endpoint on it, so
//! the ranges travel to a thread. Called by [`Mapping`](super::Mapping) when it is dropped.
#![expect(unsafe_code, reason = "munmap of ranges that are handed over")]

use std::{
    num::NonZeroUsize,
    ptr::NonNull,
    sync::{
        OnceLock,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread,
};

use rustix::mm::{Advice, madvise, munmap};

use super::budget::Share;

/// Up to this length a range is unmapped where it is dropped: that takes no longer than telling the thread.
const INLINE_MAX: usize = 4 << 20;
/// The thread empties so much at a time: whoever maps something meanwhile waits for one piece, not for all of it.
const PIECE: usize = 32 << 20;
/// How far the thread stands back (nice(2); on Linux it is the thread's own).
const NICE: i32 = 10;
/// Ranges that wait. With more a client is faster than the thread, and unmaps its own.
const WAITING_MAX: usize = 1024;

/// A range of addresses that nobody uses any more.
pub(super) struct Range {
    base: NonNull<u8>,
    len: NonZeroUsize,
    /// Its client gets it back when the range is gone.
    _share: Option<Share>,
}

// SAFETY: the range is mapped and nobody else knows it; a mapping belongs to the process, not to a thread.
unsafe impl Send for Range {}

impl Range {
    /// A range to let go of.
    ///
    /// # Safety
    /// It is mapped as a whole, and nobody reads, writes or unmaps it from now on.
    pub(super) unsafe fn new(base: NonNull<u8>, len: NonZeroUsize, share: Option<Share>) -> Self {
        Self { base, len, _share: share }
    }

    fn unmap(self) {
        // SAFETY: by the contract of `new` the range is ours alone, and it is gone with this value.
        let unmapped = unsafe { munmap(self.base.as_ptr().cast(), self.len.get()) };
        debug_assert!(unmapped.is_ok(), "munmap of an own mapping: {unmapped:?}");
    }

    /// Gives the pages back piece by piece before the range itself goes: `munmap` holds the lock of the address space.
    fn unmap_slowly(self) {
        for at in (0..self.len.get()).step_by(PIECE) {
            let len = PIECE.min(self.len.get() - at);
            // SAFETY: inside the range, which is ours alone by the contract of `new`. Advice only: what it leaves,
            // `munmap` takes.
            let _ = unsafe { madvise(self.base.as_ptr().add(at).cast(), len, Advice::LinuxDontNeed) };
            thread::yield_now();
        }
        self.unmap();
    }
}

/// The way to the thread; nothing where it could not be started.
static RELEASER: OnceLock<Option<SyncSender<Range>>> = OnceLock::new();

/// Starts the thread, once for the process. It inherits the affinity of the caller, so that is no reactor.
pub(crate) fn start() {
    RELEASER.get_or_init(|| {
        let (sender, ranges) = sync_channel::<Range>(WAITING_MAX);
        let thread = thread::Builder::new().name("dma-release".to_owned());
        let started = thread.spawn(move || {
            // Where reactors poll on every core it takes a tenth of one. Refused, it takes more.
            let _ = rustix::process::nice(NICE);
            ranges.into_iter().for_each(Range::unmap_slowly);
        });
        started.inspect_err(|error| tracing::warn!(%error, "reactors unmap guest memory themselves")).ok()?;
        Some(sender)
    });
}

/// Lets go of a range: at once, or soon.
pub(super) fn release(range: Range) {
    let Some(releaser) = RELEASER.get().and_then(Option::as_ref).filter(|_| range.len.get() > INLINE_MAX)
    else {
        return range.unmap();
    };
    if let Err(TrySendError::Full(range) | TrySendError::Disconnected(range)) = releaser.try_send(range) {
        range.unmap();
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::dma::{Mapping, Protection, budget::Client};

    fn is_mapped() -> bool {
        std::fs::read_to_string("/proc/self/maps").unwrap().contains("/memfd:released-in-the-end")
    }

    #[test]
    fn large_mapping_is_taken_away_in_the_end_and_its_pages_with_it() {
        start();
        let len = 3 * PIECE as u64 + 4096;
        let file = rustix::fs::memfd_create("released-in-the-end", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&file, len).unwrap();
        let share = Share::take(&Client::default(), 1).unwrap();
        let mapping = Mapping::new(file, 0, len, Protection { read: true, write: true }, share).unwrap();
        assert!(is_mapped());

        drop(mapping);

        let deadline = Instant::now() + Duration::from_secs(60);
        while is_mapped() {
            assert!(Instant::now() < deadline, "it stays");
            thread::sleep(Duration::from_millis(1));
        }
    }
}
