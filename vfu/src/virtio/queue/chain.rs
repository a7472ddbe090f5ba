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

/// What a chain is to its ring.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// By what name it is given back.
    pub id: u16,
    /// Ring entries it takes.
    pub entries: u16,
}

/// A chain of three buffers as nearly every transfer is: the device reads the first, writes the last, and does one or the
/// other with the second. Copied out of guest memory as a [`Chain`] is, and it needs none.
#[derive(Clone, Copy, Debug)]
pub struct Triple {
    /// What it is to its ring.
    pub head: Head,
    /// Its buffers.
    pub buffers: [Segment; 3],
    /// Whether the device writes the second.
    pub is_read: bool,
}

/// A chain: readable buffers, then writable ones. Reused from request to request; it never grows on the I/O path.
#[derive(Debug)]
pub struct Chain {
    head: Head,
    counts: Counts,
    segments: Box<[Segment]>,
}

impl Chain {
    /// Buffers in one chain, whatever the device.
    pub const MAX_SEGMENTS: usize = 1026;

    /// An empty chain with room for as many buffers as there may be.
    #[must_use]
    pub fn new() -> Self {
        Self::with_room(Self::MAX_SEGMENTS)
    }

    /// The same for so many buffers, at most [`Self::MAX_SEGMENTS`]. No driver may make a chain longer than the device's
    /// queues (virtio 1.2, 2.7.5.3.1), and who does it all the same only wants to keep the reactor busy.
    #[must_use]
    pub fn with_room(buffers: usize) -> Self {
        let room = buffers.min(Self::MAX_SEGMENTS);
        let segments = vec![Segment { addr: 0, len: 0 }; room].into_boxed_slice();
        Self { head: Head::default(), counts: Counts::default(), segments }
    }

    /// Starts over: empty until [`Filling::end`]. A chain has at most as many buffers as its table has entries.
    #[inline(always)]
    pub(in crate::virtio) fn refill(&mut self, entries: u16) -> Filling<'_> {
        let room = usize::from(entries).min(self.segments.len());
        Filling {
            segments: &mut self.segments[..room],
            counts: &mut self.counts,
            entries,
            len: 0,
            readable: 0,
        }
    }

    /// Names the chain.
    #[inline(always)]
    pub(in crate::virtio) fn name(&mut self, head: Head) {
        self.head = head;
    }

    /// What it is to its ring.
    #[inline]
    #[must_use]
    pub fn head(&self) -> Head {
        self.head
    }

    /// How many buffers it may have.
    pub(in crate::virtio) fn room(&self) -> usize {
        self.segments.len()
    }

    /// By what name it is given back.
    #[inline]
    #[must_use]
    pub fn id(&self) -> u16 {
        self.head.id
    }

    /// Buffers.
    #[inline]
    #[must_use]
    #[expect(clippy::len_without_is_empty, reason = "nobody asks; a chain of a ring has one at least")]
    pub fn len(&self) -> usize {
        self.counts.all
    }

    /// What the device reads.
    #[inline]
    #[must_use]
    pub fn readable(&self) -> &[Segment] {
        &self.segments[..self.counts.readable]
    }

    /// What the device writes.
    #[inline]
    #[must_use]
    pub fn writable(&self) -> &[Segment] {
        &self.segments[self.counts.readable..self.counts.all]
    }
}

/// How many buffers there are, and how many of them the device reads.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    all: usize,
    readable: usize,
}

/// A chain that is being copied. It counts in registers, which the chain learns of at the end.
pub(in crate::virtio) struct Filling<'a> {
    segments: &'a mut [Segment],
    counts: &'a mut Counts,
    entries: u16,
    len: usize,
    readable: usize,
}

impl Filling<'_> {
    /// Appends a buffer.
    #[inline(always)]
    pub(in crate::virtio) fn push(&mut self, segment: Segment, device_writes: bool) -> Result<(), RingError> {
        let Some(place) = self.segments.get_mut(self.len) else { return Err(self.no_room()) };
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

    /// A chain longer than its table goes round in it.
    #[cold]
    fn no_room(&self) -> RingError {
        if self.segments.len() < usize::from(self.entries) { RingError::TooLong } else { RingError::Loop }
    }

    /// The chain is what was appended.
    #[inline(always)]
    pub(in crate::virtio) fn end(self) {
        *self.counts = Counts { all: self.len, readable: self.readable };
    }
}

impl Default for Chain {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How a chain of `buffers` ends in a table of `entries`, on a device with queues of 4.
    fn fill(buffers: usize, entries: u16) -> Result<usize, RingError> {
        let mut chain = Chain::with_room(4);
        let mut filling = chain.refill(entries);
        for _ in 0..buffers {
            filling.push(Segment { addr: 0, len: 1 }, true)?;
        }
        filling.end();
        Ok(chain.len())
    }

    #[test]
    fn chain_is_as_long_as_the_queue_and_as_its_table_at_most() {
        assert_eq!(fill(4, 4), Ok(4));
        assert_eq!(fill(4, 9), Ok(4));
        assert_eq!(fill(5, 9), Err(RingError::TooLong));
        assert_eq!(fill(4, 3), Err(RingError::Loop));
    }
}
