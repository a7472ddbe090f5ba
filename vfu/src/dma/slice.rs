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

    /// Stores the 64-bit half of an entry that makes it valid.
    #[inline]
    pub fn store_u64(&self, offset: usize, value: u64, order: Ordering) {
        let at = self.at(offset, size_of::<u64>()).cast::<u64>();
        assert!(at.is_aligned(), "a queue entry lies at an odd address");
        // SAFETY: mapped (`at`), aligned, and touched by atomic or volatile accesses only.
        unsafe { AtomicU64::from_ptr(at.as_ptr()) }.store(value, order);
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
}
