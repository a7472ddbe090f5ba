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
    segments: Vec<Segment>,
    readable: usize,
    entries: u16,
}

impl Chain {
    /// Buffers in one chain. A driver that obeys `seg_max` stays far below.
    pub const MAX_SEGMENTS: usize = 1026;

    /// An empty chain with room for as many buffers as there may be.
    #[must_use]
    pub fn new() -> Self {
        Self { id: 0, segments: Vec::with_capacity(Self::MAX_SEGMENTS), readable: 0, entries: 0 }
    }

    /// Starts over.
    #[inline]
    pub(super) fn clear(&mut self) {
        self.segments.clear();
        self.readable = 0;
        self.entries = 0;
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
        if self.segments.len() == Self::MAX_SEGMENTS {
            return Err(RingError::TooLong);
        }
        if !device_writes {
            if self.readable != self.segments.len() {
                return Err(RingError::Order);
            }
            self.readable += 1;
        }
        self.segments.push(segment);
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
        &self.segments[self.readable..]
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}
