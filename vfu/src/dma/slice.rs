//! Contiguous pieces of guest memory, and the only ways to touch them: volatile copies and atomics.
#![expect(unsafe_code, reason = "access to memory that a guest writes at the same time")]

use std::{
    marker::PhantomData,
    ptr::NonNull,
    sync::{
        Arc,
        atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering},
    },
};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::Mapping;

/// A value at any address: what guests lay out is aligned nearly always, and one access does for both.
#[derive(Clone, Copy)]
#[repr(C, packed)]
struct Anywhere<T>(T);

/// Takes its arguments by value: a message put together on the way would cost every access that is inside.
#[cold]
#[inline(never)]
fn outside(offset: usize, len: usize, of: usize) -> ! {
    panic!("{len} bytes at {offset} of {of}")
}

/// A piece of guest memory, borrowed from whatever keeps its window mapped.
///
/// Offsets are checked against the piece's length on every access, and an access outside is a bug of the caller, not
/// of the guest: it panics. What a guest says is checked before it becomes an offset.
#[derive(Clone, Copy, Debug)]
pub struct Slice<'a> {
    base: NonNull<u8>,
    len: usize,
    window: PhantomData<&'a Mapping>,
}

impl<'a> Slice<'a> {
    /// # Safety
    /// `base..base + len` is mapped, and stays so for `'a`.
    pub(super) unsafe fn new(base: NonNull<u8>, len: usize) -> Self {
        Self { base, len, window: PhantomData }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn as_ptr(&self) -> *mut u8 {
        self.base.as_ptr()
    }

    #[inline]
    fn at(&self, offset: usize, len: usize) -> NonNull<u8> {
        if offset > self.len || len > self.len - offset {
            outside(offset, len, self.len);
        }
        // SAFETY: the offset is inside the piece, as just checked.
        unsafe { self.base.add(offset) }
    }

    /// Reads a value, once. Its parts may be of different times; the guest may be writing them.
    #[inline]
    #[must_use]
    pub fn read<T: FromBytes + Copy>(&self, offset: usize) -> T {
        let from = self.at(offset, size_of::<T>()).cast::<Anywhere<T>>();
        // SAFETY: the bytes are mapped (`at`), the wrapper asks for no alignment, and any bytes make a T.
        unsafe { from.read_volatile() }.0
    }

    /// Writes a value. The guest may look for it once an index is stored with release.
    #[inline]
    pub fn write<T: IntoBytes + Immutable + Copy>(&self, offset: usize, value: T) {
        let to = self.at(offset, size_of::<T>()).cast::<T>();
        // SAFETY: the bytes are mapped (`at`), and this write asks for no alignment.
        unsafe { to.write_unaligned(value) };
    }

    /// Has the processor fetch the cache line at an offset. A hint, good or bad: nothing is touched.
    #[inline]
    pub fn prefetch(&self, offset: usize) {
        bdev::iov::prefetch(self.base.as_ptr().wrapping_add(offset), 1);
    }

    /// The piece as a table of entries, as many as fit.
    #[inline]
    #[must_use]
    pub fn table<T: FromBytes + Copy>(self) -> Table<'a, T> {
        Table { base: self.base.cast(), entries: self.len / size_of::<T>(), window: PhantomData }
    }

    /// Copies out.
    pub fn copy_to(&self, offset: usize, to: &mut [u8]) {
        let from = self.at(offset, to.len());
        // SAFETY: the source is mapped (`at`); the target is ours alone, so they do not overlap.
        unsafe { from.copy_to_nonoverlapping(NonNull::from(&mut *to).cast(), to.len()) };
    }

    /// Copies in.
    pub fn copy_from(&self, offset: usize, from: &[u8]) {
        let to = self.at(offset, from.len());
        // SAFETY: the target is mapped (`at`); the source is ours alone, so they do not overlap.
        unsafe { NonNull::from(from).cast::<u8>().copy_to_nonoverlapping(to, from.len()) };
    }

    fn atomic_u32(&self, offset: usize) -> &AtomicU32 {
        let at = self.at(offset, size_of::<u32>()).cast::<u32>();
        assert!(at.is_aligned(), "a doorbell or a queue entry lies at an odd address");
        // SAFETY: mapped (`at`), aligned, and touched by atomic or volatile accesses only.
        unsafe { AtomicU32::from_ptr(at.as_ptr()) }
    }

    /// Loads a 32-bit doorbell.
    #[inline]
    #[must_use]
    pub fn load_u32(&self, offset: usize, order: Ordering) -> u32 {
        self.atomic_u32(offset).load(order)
    }

    /// Stores a 32-bit doorbell, or the word of an entry that makes it valid.
    #[inline]
    pub fn store_u32(&self, offset: usize, value: u32, order: Ordering) {
        self.atomic_u32(offset).store(value, order);
    }

    fn atomic_u16(&self, offset: usize) -> &AtomicU16 {
        let at = self.at(offset, size_of::<u16>()).cast::<u16>();
        assert!(at.is_aligned(), "an index of a ring lies at an odd address");
        // SAFETY: mapped (`at`), aligned, and touched by atomic or volatile accesses only.
        unsafe { AtomicU16::from_ptr(at.as_ptr()) }
    }

    /// Loads a 16-bit index that the guest stores.
    #[inline]
    #[must_use]
    pub fn load_u16(&self, offset: usize, order: Ordering) -> u16 {
        self.atomic_u16(offset).load(order)
    }

    /// Stores a 16-bit index that the guest loads.
    #[inline]
    pub fn store_u16(&self, offset: usize, value: u16, order: Ordering) {
        self.atomic_u16(offset).store(value, order);
    }
}

/// A table of entries of one type in guest memory, for the device to read.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a, T> {
    base: NonNull<Anywhere<T>>,
    entries: usize,
    window: PhantomData<&'a Mapping>,
}

impl<T: FromBytes + Copy> Table<'_, T> {
    /// Reads an entry, once; none where the table has none.
    #[inline]
    #[must_use]
    pub fn get(&self, at: u16) -> Option<T> {
        let at = usize::from(at);
        // SAFETY: inside the table, which is inside the mapped piece it was made of; any bytes make a T.
        (at < self.entries).then(|| unsafe { self.base.add(at).read_volatile() }.0)
    }
}

/// A piece of guest memory that keeps its own window mapped.
#[derive(Clone, Debug)]
pub struct Span {
    base: NonNull<u8>,
    len: usize,
    _window: Arc<Mapping>,
}

// SAFETY: the address is inside the window, which may be sent and shared; access goes through `Slice` only.
unsafe impl Send for Span {}
// SAFETY: as above.
unsafe impl Sync for Span {}

impl Span {
    pub(super) fn new(window: Arc<Mapping>, offset: usize, len: usize) -> Self {
        assert!(offset <= window.len() && len <= window.len() - offset);
        // SAFETY: the offset is inside the mapping, as just checked.
        let base = unsafe { window.base().add(offset) };
        Self { base, len, _window: window }
    }

    /// The bytes.
    #[inline]
    #[must_use]
    pub fn slice(&self) -> Slice<'_> {
        // SAFETY: inside the mapping (`new`), which lives as long as `self`.
        unsafe { Slice::new(self.base, self.len) }
    }

    /// A part of it as a table of `count` entries, `offset` bytes from its start. None if they would not be aligned.
    #[must_use]
    pub fn entries<T>(&self, offset: usize, count: u16) -> Option<Entries<T>> {
        let len = usize::from(count) * size_of::<T>();
        assert!(offset <= self.len && len <= self.len - offset, "more entries than there is memory");
        // SAFETY: the offset is inside the piece, as just checked.
        let base = unsafe { self.base.add(offset) };
        Entries::new(Self { base, len, _window: Arc::clone(&self._window) }, count)
    }
}

/// A table of entries of one type that keeps its own window mapped: a queue, or a part of a ring.
#[derive(Clone, Debug)]
pub struct Entries<T> {
    base: NonNull<T>,
    count: u16,
    /// Of the entries that an index which goes round counts: as many as there are, if they are a power of two.
    mask: u16,
    span: Span,
}

// SAFETY: as for `Span`.
unsafe impl<T> Send for Entries<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Entries<T> {}

impl<T> Entries<T> {
    /// None if there are no entries, or they would not be aligned.
    pub(super) fn new(span: Span, count: u16) -> Option<Self> {
        assert!(usize::from(count) * size_of::<T>() <= span.len, "more entries than there is memory");
        let base = span.base.cast::<T>();
        let mask = (1 << count.checked_ilog2()?) - 1;
        base.is_aligned().then_some(Self { base, count, mask, span })
    }

    /// Where an entry is; an index outside is a bug of the caller, not of the guest.
    #[inline(always)]
    fn place(&self, at: u16) -> NonNull<T> {
        if at >= self.count {
            outside(at.into(), 1, self.count.into());
        }
        // SAFETY: inside the table, as just checked.
        unsafe { self.base.add(at.into()) }
    }

    /// Where an entry of a ring is whose index goes round: of a table with a power of two of entries.
    #[inline(always)]
    fn place_round(&self, index: u16) -> NonNull<T> {
        // SAFETY: the mask is below the number of entries (`new`).
        unsafe { self.base.add((index & self.mask).into()) }
    }

    /// Has the processor fetch so many entries. A hint, good or bad: nothing is touched.
    #[inline]
    pub fn prefetch(&self, at: u16, count: u16) {
        let bytes = usize::from(count) * size_of::<T>();
        bdev::iov::prefetch(self.base.as_ptr().wrapping_add(at.into()).cast(), bytes);
    }
}

impl<T: FromBytes + Copy> Entries<T> {
    /// Reads an entry, once, of a ring whose index goes round; it has a power of two of entries.
    #[inline(always)]
    #[must_use]
    pub fn get_round(&self, index: u16) -> T {
        // SAFETY: mapped (`place_round`), aligned, and any bytes make a T.
        unsafe { self.place_round(index).read_volatile() }
    }

    /// All of them.
    #[inline]
    #[must_use]
    pub fn table(&self) -> Table<'_, T> {
        self.span.slice().table()
    }

    /// Reads an entry, once; none where the table has none.
    #[inline(always)]
    #[must_use]
    pub fn get(&self, at: u16) -> Option<T> {
        // SAFETY: mapped, aligned, and any bytes make a T.
        (at < self.count).then(|| unsafe { self.base.add(at.into()).read_volatile() })
    }
}

impl<T: IntoBytes + Immutable + Copy> Entries<T> {
    /// Writes an entry of a ring whose index goes round; it has a power of two of entries. The guest may look for it once an
    /// index is stored with release.
    #[inline(always)]
    pub fn set_round(&self, index: u16, value: T) {
        // SAFETY: mapped (`place_round`) and aligned.
        unsafe { self.place_round(index).write(value) };
    }
}

impl<const N: usize> Entries<[u64; N]> {
    /// Reads some words of an entry, each once; none where the table has no such entry.
    #[inline(always)]
    #[must_use]
    pub fn words<const M: usize>(&self, at: u16, which: [usize; M]) -> Option<[u64; M]> {
        let read = |word| {
            assert!(word < N, "an entry has no such word");
            // SAFETY: inside an entry of the table, as just checked and below; mapped, aligned, and any bytes make a word.
            unsafe { self.base.add(at.into()).cast::<u64>().add(word).read_volatile() }
        };
        (at < self.count).then(|| which.map(read))
    }
}

impl Entries<[u64; 2]> {
    /// Writes an entry whose second half makes it valid: with it, the guest may look at the first.
    #[inline(always)]
    pub fn publish(&self, at: u16, [first, last]: [u64; 2]) {
        let place = self.place(at).cast::<u64>();
        // SAFETY: mapped (`place`), aligned, and no reference to it is ever made.
        unsafe {
            place.write(first);
            AtomicU64::from_ptr(place.add(1).as_ptr()).store(last, Ordering::Release);
        }
    }
}
