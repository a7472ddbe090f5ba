//! One descriptor chain, copied out of guest memory: what a driver offered, before anybody judged it.

use super::RingError;

/// A buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Guest address.
    pub addr: u64,
    /// Bytes.
    pub len: u32,
}

/// A chain: readable buffers, then writable ones. Reused from request to request; it never grows on the I/O path.
#[derive(Debug)]
pub struct Chain {
    id: u16,
    entries: u16,
    /// How many there are, and how many of them the device reads.
    len: usize,
    readable: usize,
    segments: Box<[Segment]>,
}

impl Chain {
    /// Buffers in one chain. A driver that obeys `seg_max` stays far below.
    pub const MAX_SEGMENTS: usize = 1026;

    /// An empty chain with room for as many buffers as there may be.
    #[must_use]
    pub fn new() -> Self {
        let segments = vec![Segment { addr: 0, len: 0 }; Self::MAX_SEGMENTS].into_boxed_slice();
        Self { id: 0, entries: 0, len: 0, readable: 0, segments }
    }

    /// Starts over.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.len = 0;
        self.readable = 0;
    }

    /// Names the chain, once it is complete.
    #[inline]
    pub(in crate::virtio) fn finish(&mut self, id: u16, entries: u16) {
        self.id = id;
        self.entries = entries;
    }

    /// Appends a buffer.
    #[inline]
    pub(in crate::virtio) fn push(&mut self, segment: Segment, device_writes: bool) -> Result<(), RingError> {
        let place = self.segments.get_mut(self.len).ok_or(RingError::TooLong)?;
        *place = segment;
        if !device_writes {
            if self.readable != self.len {
                return Err(RingError::Order);
            }
            self.readable += 1;
        }
        self.len += 1;
        Ok(())
    }

    /// By what name it is given back.
    #[inline]
    #[must_use]
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Ring entries it takes.
    #[inline]
    #[must_use]
    pub fn entries(&self) -> u16 {
        self.entries
    }

    /// Buffers.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks; a chain of a ring has one at least")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// What the device reads.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.readable]
    }

    /// What the device writes.
    #[inline]
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.readable..self.len]
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}
