//! Vectors over memory that belongs to someone else: a guest, a client, a pool.
//!
//! The vfio-user front end makes them from DMA windows, types read and write through them. Memory under a
//! vector may be changed by a guest at any time, so it is never a `&[u8]`: it is copied, by the functions
//! here, and looked at afterwards. Does not own memory and does not translate addresses.
#![expect(unsafe_code, reason = "raw memory of guests; the only place besides arena/ that dereferences it")]

use std::fmt;

/// A piece of memory that outlives the requests it is part of.
///
/// Same layout as `struct iovec` (POSIX `<sys/uio.h>`), so that a slice of these is handed to the kernel as
/// it is.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct IoVec {
    base: *mut u8,
    len: usize,
}

const _: () = assert!(size_of::<IoVec>() == size_of::<rustix::io::IoSlice<'_>>());

// SAFETY: an IoVec is an address and a promise about memory (see `new`); neither is tied to a thread.
unsafe impl Send for IoVec {}
// SAFETY: no method lets go of the address through a shared reference other than as a copy; accesses to the
// memory are raw copies, which the promise of `new` allows from any thread.
unsafe impl Sync for IoVec {}

impl IoVec {
    /// A vector over `len` bytes at `ptr`.
    ///
    /// # Safety
    /// From now until every request that carries this vector (or a part or copy of it) has been reaped:
    /// - the bytes are mapped and readable, and writable if the vector is part of a read request;
    /// - no Rust reference to them exists. Others (a guest, another reactor) may change them at any moment;
    ///   then what is copied is some mixture, which every user of this type must be able to live with.
    #[inline]
    pub const unsafe fn new(ptr: *mut u8, len: usize) -> IoVec {
        IoVec { base: ptr, len }
    }

    /// A vector of no bytes.
    pub const EMPTY: IoVec = IoVec { base: std::ptr::dangling_mut(), len: 0 };

    /// Length in bytes.
    #[inline]
    #[expect(clippy::len_without_is_empty, reason = "no caller asks; lengths are summed")]
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Address of the first byte; for the kernel, and for alignment checks.
    #[inline]
    pub const fn as_ptr(&self) -> *mut u8 {
        self.base
    }

    /// The part of `len` bytes from `offset` on, or `None` where that reaches past the end.
    #[inline]
    pub fn slice(&self, offset: usize, len: usize) -> Option<IoVec> {
        let end = offset.checked_add(len)?;
        if end > self.len {
            return None;
        }
        // wrapping_add: the sum is inside the vector, and no reference is made of it here.
        Some(IoVec { base: self.base.wrapping_add(offset), len })
    }

    /// Copies bytes from `offset` on out into `dst`. Returns how many: fewer than asked at the end of the
    /// vector.
    #[inline]
    pub fn copy_to(&self, offset: usize, dst: &mut [u8]) -> usize {
        let n = dst.len().min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: offset + n <= len, and `new`'s caller vouches for the bytes; dst is ours alone and,
            // being a reference, is not part of any vector.
            unsafe { std::ptr::copy_nonoverlapping(self.base.add(offset), dst.as_mut_ptr(), n) };
        }
        n
    }

    /// Copies `src` into the vector from `offset` on. Returns how many bytes: fewer than given at the end of
    /// the vector.
    #[inline]
    pub fn copy_from(&self, offset: usize, src: &[u8]) -> usize {
        let n = src.len().min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: as in `copy_to`, the other way round.
            unsafe { std::ptr::copy_nonoverlapping(src.as_ptr(), self.base.add(offset), n) };
        }
        n
    }

    /// Has the processor fetch the first `len` bytes, which will be copied soon. A hint: it touches nothing.
    #[inline]
    pub fn prefetch(&self, len: usize) {
        prefetch(self.base, len.min(self.len));
    }

    /// Copies the other vector in, from its start, as far as both reach.
    #[inline]
    pub(crate) fn copy_from_vector(&self, other: IoVec) {
        let n = self.len.min(other.len);
        if n > 0 {
            // SAFETY: both makers vouch for their bytes. `copy`: the vectors may lie over each other.
            unsafe { std::ptr::copy(other.base, self.base, n) };
        }
    }

    /// Sets `len` bytes from `offset` on to `byte`. Returns how many: fewer than asked at the end of the
    /// vector.
    #[inline]
    pub fn fill(&self, offset: usize, len: usize, byte: u8) -> usize {
        let n = len.min(self.len.saturating_sub(offset));
        if n > 0 {
            // SAFETY: offset + n <= len, and `new`'s caller vouches for the bytes.
            unsafe { std::ptr::write_bytes(self.base.add(offset), byte, n) };
        }
        n
    }
}

/// Has the processor fetch `len` bytes. A hint: whatever the address is, nothing happens but that.
#[inline]
pub fn prefetch(from: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    for offset in (0..len).step_by(CACHE_LINE_BYTES) {
        // SAFETY: the instruction accesses nothing and cannot fault.
        unsafe {
            std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(
                from.wrapping_add(offset).cast(),
            );
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, len);
}

#[cfg(target_arch = "x86_64")]
const CACHE_LINE_BYTES: usize = 64;

impl fmt::Debug for IoVec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "IoVec({:p}+{:#x})", self.base, self.len)
    }
}

/// Sum of the lengths, or `None` where it does not fit.
#[inline]
pub fn total_len(iov: &[IoVec]) -> Option<usize> {
    iov.iter().try_fold(0usize, |sum, v| sum.checked_add(v.len))
}

/// Copies the vectors, one after the other, out into `dst`. Returns how many bytes: fewer where either side
/// ends.
pub fn gather(iov: &[IoVec], dst: &mut [u8]) -> usize {
    let mut done = 0;
    for v in iov {
        done += v.copy_to(0, &mut dst[done..]);
    }
    done
}

/// Copies `src` into the vectors, one after the other. Returns how many bytes: fewer where either side ends.
pub fn scatter(iov: &[IoVec], src: &[u8]) -> usize {
    let mut done = 0;
    for v in iov {
        done += v.copy_from(0, &src[done..]);
    }
    done
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::arena::StaticBuffer;

    fn buffer() -> StaticBuffer {
        StaticBuffer::new(64).unwrap()
    }

    #[test]
    fn a_slice_stays_inside_its_vector() {
        let v = buffer().iovec(0, 10).unwrap();

        assert_eq!(v.slice(4, 6).map(|s| (s.as_ptr().addr() - v.as_ptr().addr(), s.len())), Some((4, 6)));
        assert_eq!(v.slice(10, 0).map(|s| s.len()), Some(0));
        assert!(v.slice(4, 7).is_none());
        assert!(v.slice(11, 0).is_none());
        assert!(v.slice(usize::MAX, 2).is_none());
    }

    #[test]
    fn copies_stop_at_the_end_of_the_vector() {
        let v = buffer().iovec(0, 8).unwrap();

        assert_eq!(v.copy_from(6, &[1, 2, 3]), 2);
        assert_eq!(v.copy_from(9, &[1]), 0);
        assert_eq!(v.fill(0, 3, 9), 3);
        assert_eq!(v.fill(7, 5, 8), 1);

        let mut seen = [0xff; 10];
        assert_eq!(v.copy_to(0, &mut seen), 8);
        assert_eq!(seen, [9, 9, 9, 0, 0, 0, 1, 8, 0xff, 0xff]);
        assert_eq!(v.copy_to(usize::MAX, &mut seen), 0);
    }

    #[test]
    fn scatter_and_gather_walk_over_empty_vectors_and_stop_where_either_side_ends() {
        let b = buffer();
        let vectors =
            [b.iovec(0, 3).unwrap(), IoVec::EMPTY, b.iovec(10, 1).unwrap(), b.iovec(20, 4).unwrap()];

        assert_eq!(scatter(&vectors, &[1, 2, 3, 4, 5, 6]), 6);
        let mut seen = [0; 9];
        assert_eq!(gather(&vectors, &mut seen), 8);
        assert_eq!(seen, [1, 2, 3, 4, 5, 6, 0, 0, 0]);
        assert_eq!(scatter(&vectors, &[7; 20]), 8);
        assert_eq!(total_len(&vectors), Some(8));
    }
}
