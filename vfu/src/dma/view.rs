//! One queue's snapshot of the windows: guest addresses in, memory out.
#![expect(unsafe_code, reason = "builds the IoVecs and Slices that stand for guest memory")]

use std::{cell::Cell, ptr::NonNull, sync::Arc};

use bdev::IoVec;
use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::{Entries, Mapping, Slice, Span, Window, Windows, sigbus, windows::Snapshot};

/// An address the device may not use like this: outside every window, behind a window without memory, or against the
/// window's protection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("guest address {0:#x} is not reachable")]
pub struct Fault(pub u64);

/// What the device wants to do with memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Access {
    Read,
    Write,
}

/// The window that was used last, as all that an access needs: nearly every access is to the same one.
#[derive(Clone, Copy, Debug)]
struct Near {
    start: u64,
    /// So many bytes of it may be read, and written: all of them or none.
    readable: usize,
    writable: usize,
    base: NonNull<u8>,
}

// SAFETY: an address in a mapping, which belongs to no thread; the view that it is part of keeps the mapping.
unsafe impl Send for Near {}

impl Near {
    const NONE: Self = Self { start: 0, readable: 0, writable: 0, base: NonNull::dangling() };
}

/// A snapshot of the windows, with the one used last at hand.
///
/// One per queue, on the queue's thread. An [`IoVec`] made here points into memory that this view keeps mapped: the
/// queue takes a new snapshot ([`View::refresh`]) only when no request is in flight, or when nothing was unmapped.
#[derive(Clone, Debug)]
pub struct View {
    snapshot: Snapshot,
    near: Cell<Near>,
    generation: u64,
    removals: u64,
    /// Torn windows of the whole process when this view was looked through last, and of this view.
    torn: Cell<(u64, usize)>,
}

impl View {
    /// The windows as they are now.
    #[must_use]
    pub fn new(windows: &Windows) -> Self {
        let (snapshot, generation, removals) = windows.snapshot_with_removals();
        Self { snapshot, near: Cell::new(Near::NONE), generation, removals, torn: Cell::new((0, 0)) }
    }

    /// Takes the windows as they are now. The caller has no request in flight.
    pub fn refresh(&mut self, windows: &Windows) {
        *self = Self::new(windows);
    }

    /// Takes the windows as they are now, unless one was unmapped since the last time: requests may be in flight, and
    /// what they point into must stay mapped. False when nothing was taken.
    #[must_use]
    pub fn grow(&mut self, windows: &Windows) -> bool {
        let new = Self::new(windows);
        let only_grew = new.removals == self.removals;
        if only_grew {
            *self = new;
        }
        only_grew
    }

    /// How many windows of this view were torn: their files made shorter by their owner, so that data were lost. A
    /// request between whose start and end this changed has failed. One load and one comparison while nobody's was.
    ///
    /// A window is found torn only here: whoever translates asks once a pass before, and again when it is done with the
    /// memory.
    #[inline]
    #[must_use]
    pub fn torn(&self) -> usize {
        let count = sigbus::count();
        let (seen, torn) = self.torn.get();
        if count == seen { torn } else { self.count_torn(count) }
    }

    #[cold]
    fn count_torn(&self, count: u64) -> usize {
        let mappings = self.snapshot.windows.iter().filter_map(|window| window.mapping.as_ref());
        let torn = mappings.filter(|mapping| mapping.is_torn()).count();
        // The window at hand may be one of them: it is looked at again.
        self.near.set(Near::NONE);
        self.torn.set((count, torn));
        torn
    }

    /// Whether any part of a range is behind a window that only messages reach.
    #[must_use]
    pub fn is_remote(&self, address: u64, len: u64) -> bool {
        let last = address.saturating_add(len.saturating_sub(1));
        let from = self.snapshot.position(address);
        self.snapshot.windows[from..]
            .iter()
            .take_while(|window| window.start <= last)
            .any(|window| window.mapping.is_none())
    }

    /// The longest piece of a range that lies in one window: its bytes, and whether only messages reach it.
    ///
    /// # Errors
    /// [`Fault`] where there is no window, or one that the device may not use like this.
    pub fn reach(&self, address: u64, len: u64, device_writes: bool) -> Result<(u64, bool), Fault> {
        let window = self.find(address)?;
        let protection = window.protection;
        if !(if device_writes { protection.write } else { protection.read }) {
            return Err(Fault(address));
        }
        Ok((len.min((window.last - address).saturating_add(1)), window.mapping.is_none()))
    }

    /// Whether all of a range can be reached, by mapping or by messages.
    #[must_use]
    pub fn covers(&self, address: u64, len: u64, device_writes: bool) -> bool {
        let mut done = 0;
        while done < len {
            let Some(at) = address.checked_add(done) else { return false };
            match self.reach(at, len - done, device_writes) {
                Ok((piece, _)) => done += piece,
                Err(_) => return false,
            }
        }
        true
    }

    /// The change count of this snapshot, see [`Windows::generation`].
    #[must_use]
    pub fn generation(&self) -> u64 {
        self.generation
    }

    #[cold]
    fn find(&self, address: u64) -> Result<&Window, Fault> {
        let at = self.snapshot.position(address);
        self.snapshot.windows.get(at).filter(|window| window.start <= address).ok_or(Fault(address))
    }

    /// The first byte of a range that lies in the window used last, and may be accessed so.
    #[inline]
    fn near(&self, address: u64, len: usize, access: Access) -> Option<NonNull<u8>> {
        let near = self.near.get();
        let end = match access {
            Access::Read => near.readable,
            Access::Write => near.writable,
        };
        let offset = usize::try_from(address.wrapping_sub(near.start)).ok()?;
        if offset < end && len <= end - offset {
            // SAFETY: the offset is inside the mapping, which is as long as its window and which the snapshot holds.
            Some(unsafe { near.base.add(offset) })
        } else {
            None
        }
    }

    /// Has the processor fetch the cache line at an address, if it lies in the window used last. A guess: nothing depends on it.
    #[inline]
    pub fn prefetch(&self, address: u64) {
        if let Some(byte) = self.near_iovec(address, 1, false) {
            byte.prefetch(1);
        }
    }

    /// The longest contiguous piece from `address` on, at most `len` bytes, at least one.
    #[inline]
    fn piece(&self, address: u64, len: usize, access: Access) -> Result<Slice<'_>, Fault> {
        match self.near(address, len, access) {
            // SAFETY: the range is inside the mapping (`near`); the snapshot, which `'_` borrows, holds it.
            Some(base) => Ok(unsafe { Slice::new(base, len) }),
            None => self.far_piece(address, len, access),
        }
    }

    #[cold]
    fn far_piece(&self, address: u64, len: usize, access: Access) -> Result<Slice<'_>, Fault> {
        let window = self.find(address)?;
        let allowed = match access {
            Access::Read => window.protection.read,
            Access::Write => window.protection.write,
        };
        // While nothing was ever torn, whether this one is need not be looked up.
        let is_torn = |mapping: &Mapping| sigbus::count() != 0 && mapping.is_torn();
        let mapping = window.mapping.as_ref().filter(|mapping| allowed && !is_torn(mapping));
        let Some(mapping) = mapping else { return Err(Fault(address)) };
        let bytes = |allowed| if allowed { mapping.len() } else { 0 };
        self.near.set(Near {
            start: window.start,
            readable: bytes(window.protection.read),
            writable: bytes(window.protection.write),
            base: mapping.base(),
        });
        let offset = (address - window.start) as usize;
        let len = len.min(mapping.len() - offset);
        // SAFETY: a mapping is as long as its window, and the address is inside the window, so offset and length are
        // inside the mapping; the snapshot, which `'_` borrows, holds the mapping.
        Ok(unsafe { Slice::new(mapping.base().add(offset), len) })
    }

    fn walk<'a>(
        &'a self,
        address: u64,
        len: usize,
        access: Access,
        mut each: impl FnMut(usize, Slice<'a>) -> Result<(), Fault>,
    ) -> Result<(), Fault> {
        let mut done = 0;
        while done < len {
            let at = address.checked_add(done as u64).ok_or(Fault(address))?;
            let piece = self.piece(at, len - done, access)?;
            each(done, piece)?;
            done += piece.len();
        }
        Ok(())
    }

    /// Appends the memory of `address..address + len` to `out`: one IoVec, or more where the range spans windows.
    ///
    /// # Errors
    /// [`Fault`] where a part is not reachable, or where `out` is at its capacity: it never grows.
    #[inline]
    pub fn translate(
        &self,
        address: u64,
        len: u32,
        device_writes: bool,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Fault> {
        if len > 0
            && out.len() < out.capacity()
            && let Some(one) = self.near_iovec(address, len, device_writes)
        {
            out.push(one);
            return Ok(());
        }
        let access = if device_writes { Access::Write } else { Access::Read };
        self.translate_far(address, len, access, out)
    }

    /// The memory of `address..address + len` if it lies in the window used last; [`Self::translate`] looks further.
    #[inline]
    #[must_use]
    pub fn near_iovec(&self, address: u64, len: u32, device_writes: bool) -> Option<IoVec> {
        let access = if device_writes { Access::Write } else { Access::Read };
        let base = self.near(address, len as usize, access)?;
        // SAFETY: the range is mapped as long as this snapshot lives; the queue keeps it until every request that was
        // built from it is reaped (see `View`).
        Some(unsafe { IoVec::new(base.as_ptr(), len as usize) })
    }

    #[cold]
    fn translate_far(
        &self,
        address: u64,
        len: u32,
        access: Access,
        out: &mut Vec<IoVec>,
    ) -> Result<(), Fault> {
        self.walk(address, len as usize, access, |_, piece| {
            if out.len() == out.capacity() {
                return Err(Fault(address));
            }
            // SAFETY: the piece is mapped as long as this snapshot lives; the queue keeps it until every request that
            // was built from it is reaped (see `View`).
            out.push(unsafe { IoVec::new(piece.as_ptr(), piece.len()) });
            Ok(())
        })
    }

    /// Reads a value from guest memory, once.
    ///
    /// # Errors
    /// [`Fault`].
    #[inline]
    pub fn get<T: FromBytes + IntoBytes + Copy>(&self, address: u64) -> Result<T, Fault> {
        match self.near(address, size_of::<T>(), Access::Read) {
            // SAFETY: the range is inside the mapping (`near`), which the snapshot holds.
            Some(base) => Ok(unsafe { Slice::new(base, size_of::<T>()) }.read(0)),
            None => self.get_far(address),
        }
    }

    #[cold]
    fn get_far<T: FromBytes + IntoBytes + Copy>(&self, address: u64) -> Result<T, Fault> {
        let piece = self.far_piece(address, size_of::<T>(), Access::Read)?;
        if piece.len() == size_of::<T>() {
            return Ok(piece.read(0));
        }
        let mut value = T::new_zeroed();
        self.read(address, value.as_mut_bytes())?;
        Ok(value)
    }

    /// Writes a value to guest memory.
    ///
    /// # Errors
    /// [`Fault`], with a part maybe written.
    #[inline]
    pub fn put<T: IntoBytes + Immutable + Copy>(&self, address: u64, value: T) -> Result<(), Fault> {
        match self.near(address, size_of::<T>(), Access::Write) {
            // SAFETY: as in `get`.
            Some(base) => unsafe { Slice::new(base, size_of::<T>()) }.write(0, value),
            None => return self.put_far(address, value),
        }
        Ok(())
    }

    #[cold]
    fn put_far<T: IntoBytes + Immutable + Copy>(&self, address: u64, value: T) -> Result<(), Fault> {
        self.write(address, value.as_bytes())
    }

    /// Copies from guest memory.
    ///
    /// # Errors
    /// [`Fault`], with a part of `to` maybe written. Also where a window was found torn meanwhile, maybe by this.
    pub fn read(&self, address: u64, to: &mut [u8]) -> Result<(), Fault> {
        let torn = self.torn();
        self.walk(address, to.len(), Access::Read, |done, piece| {
            piece.copy_to(0, &mut to[done..done + piece.len()]);
            Ok(())
        })?;
        self.unless_torn(torn, address)
    }

    /// Copies to guest memory.
    ///
    /// # Errors
    /// As of [`Self::read`], with a part maybe written.
    pub fn write(&self, address: u64, from: &[u8]) -> Result<(), Fault> {
        let torn = self.torn();
        self.walk(address, from.len(), Access::Write, |done, piece| {
            piece.copy_from(0, &from[done..done + piece.len()]);
            Ok(())
        })?;
        self.unless_torn(torn, address)
    }

    fn unless_torn(&self, torn: usize, address: u64) -> Result<(), Fault> {
        if self.torn() == torn { Ok(()) } else { Err(Fault(address)) }
    }

    /// The range as one piece for the device to read, or nothing where it spans windows.
    ///
    /// # Errors
    /// [`Fault`] where its start is not reachable.
    #[inline]
    pub fn slice(&self, address: u64, len: usize) -> Result<Option<Slice<'_>>, Fault> {
        let piece = self.piece(address, len, Access::Read)?;
        Ok((piece.len() == len).then_some(piece))
    }

    /// The range as one piece that keeps itself mapped: for rings. Where it spans windows, they are mapped once more,
    /// side by side.
    ///
    /// # Errors
    /// [`Fault`] where a part of the range has no memory behind it, or is not `writable` though asked for, or where
    /// windows do not meet at a page, or are more than the client may map once more.
    pub fn span(&self, address: u64, len: usize, writable: bool) -> Result<Span, Fault> {
        let access = if writable { Access::Write } else { Access::Read };
        if self.piece(address, len, access)?.len() < len {
            return self.stitched(address, len, access);
        }
        let window = self.find(address)?;
        let mapping = window.mapping.as_ref().ok_or(Fault(address))?;
        Ok(Span::new(Arc::clone(mapping), (address - window.start) as usize, len))
    }

    /// The same as a table of `count` entries.
    ///
    /// # Errors
    /// As of [`Self::span`]; and where the entries would not be aligned.
    pub fn entries<T>(&self, address: u64, count: u16, writable: bool) -> Result<Entries<T>, Fault> {
        let span = self.span(address, usize::from(count) * size_of::<T>(), writable)?;
        span.entries(0, count).ok_or(Fault(address))
    }

    #[cold]
    fn stitched(&self, address: u64, len: usize, access: Access) -> Result<Span, Fault> {
        let mut pieces = Vec::new();
        self.walk(address, len, access, |_, piece| {
            pieces.push(piece);
            Ok(())
        })?;
        let offset = pieces.first().map_or(0, |first| first.as_ptr().addr() % rustix::param::page_size());
        let first = self.find(address)?.mapping.as_ref();
        let share = first.and_then(|mapping| mapping.another_share(pieces.len())).ok_or(Fault(address))?;
        let mapping = Mapping::stitched(&pieces, share).map_err(|_errno| Fault(address))?;
        Ok(Span::new(Arc::new(mapping), offset, len))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Protection;

    const BOTH: Protection = Protection { read: true, write: true };
    const READ: Protection = Protection { read: true, write: false };

    /// Two windows side by side that are apart in their file, a read-only one, and one without memory.
    fn windows() -> Windows {
        let file = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&file, 0x10000).unwrap();
        let windows = Windows::default();
        windows.map(0x1000, 0x1000, BOTH, Some((file.try_clone().unwrap(), 0x8000))).unwrap();
        windows.map(0x2000, 0x1000, BOTH, Some((file.try_clone().unwrap(), 0))).unwrap();
        windows.map(0x4000, 0x1000, READ, Some((file, 0x4000))).unwrap();
        windows.map(0x6000, 0x1000, BOTH, None).unwrap();
        windows
    }

    #[test]
    fn bytes_written_across_two_windows_come_back() {
        let view = View::new(&windows());
        let text = [7_u8; 0x100];
        view.write(0x1f80, &text).unwrap();
        let mut back = [0; 0x100];
        view.read(0x1f80, &mut back).unwrap();
        assert_eq!(back, text);
    }

    #[test]
    fn range_over_two_windows_is_two_iovecs() {
        let view = View::new(&windows());
        let mut out = Vec::with_capacity(4);
        view.translate(0x1800, 0x1000, true, &mut out).unwrap();
        assert_eq!(out.iter().map(IoVec::len).collect::<Vec<_>>(), vec![0x800, 0x800]);
    }

    #[test]
    fn range_is_covered_over_windows_that_are_shared_and_not() {
        let windows = windows();
        windows.map(0x3000, 0x1000, READ, None).unwrap();
        let view = View::new(&windows);

        assert_eq!(view.reach(0x2800, 0x1000, false), Ok((0x800, false)));
        assert_eq!(view.reach(0x3800, 0x1000, false), Ok((0x800, true)));
        assert_eq!(view.reach(0x3800, 0x1000, true), Err(Fault(0x3800)));
        assert!(view.covers(0x1800, 0x3000, false));
        assert!(!view.covers(0x1800, 0x3000, true), "a part is read-only");
        assert!(!view.covers(0x6800, 0x1000, false), "its end is nowhere");
        assert!(!view.covers(u64::MAX, 2, false));
    }

    #[test]
    fn list_never_grows() {
        let view = View::new(&windows());
        let mut out = Vec::with_capacity(1);
        assert_eq!(view.translate(0x1800, 0x1000, true, &mut out), Err(Fault(0x1800)));
    }

    #[test]
    fn unreachable_addresses_fault() {
        let view = View::new(&windows());
        let mut out = Vec::with_capacity(4);
        for (address, len, write) in [
            (0, 1, false),
            (0x0fff, 2, false),
            (0x2fff, 2, false),
            (0x4000, 1, true),
            (0x6000, 1, false),
            (u64::MAX, 2, false),
        ] {
            assert!(view.translate(address, len, write, &mut out).is_err(), "{address:#x}");
        }
    }

    #[test]
    fn view_grows_by_what_was_mapped_and_not_after_an_unmap() {
        let windows = windows();
        let mut view = View::new(&windows);
        windows.map(0x8000, 0x1000, BOTH, None).unwrap();
        assert!(view.grow(&windows));
        assert_eq!(view.generation(), windows.generation());
        windows.unmap(0x8000, 0x1000).unwrap();
        assert!(!view.grow(&windows));
        assert!(view.is_remote(0x8fff, 1), "the old snapshot is still there");
    }

    #[test]
    fn span_stays_readable_after_the_unmap() {
        let windows = windows();
        let span = View::new(&windows).span(0x1000, 0x100, true).unwrap();
        span.slice().write(8, 0x1234_u16);
        windows.clear();
        assert_eq!(span.slice().read::<u16>(8), 0x1234);
    }

    #[test]
    fn span_over_two_windows_is_the_same_memory_as_both() {
        let windows = windows();
        let view = View::new(&windows);
        let span = view.span(0x1ff0, 0x20, true).unwrap();
        span.slice().write(0, 0x1111_u16);
        view.write(0x2004, &[9; 2]).unwrap();

        assert_eq!(span.slice().read::<u16>(0x14), 0x0909);
        let mut bytes = [0; 2];
        view.read(0x1ff0, &mut bytes).unwrap();
        assert_eq!(bytes, [0x11; 2]);
        windows.clear();
        drop(view);
        assert_eq!(span.slice().read::<u16>(0), 0x1111, "it keeps itself mapped");
    }

    #[test]
    fn span_over_a_hole_or_a_read_only_window_faults() {
        let view = View::new(&windows());
        assert!(view.span(0x2ff0, 0x20, false).is_err());
        assert!(view.span(0x4000, 0x20, true).is_err());
    }
}
