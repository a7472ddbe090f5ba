//! One queue of a disk: requests over memory that is laid out once, a header, a status byte and a data buffer for each
//! slot.
//!
//! Nothing here blocks, and nothing allocates once the queue is made.

use super::{BlkOptions, Chains};
use crate::{
    dma::Span,
    mock::{
        memory::Memory,
        ring::{Buffer, DriverRing, MAX_BUFFERS, RingFault, RingSetup},
        transport::DriverError,
    },
    virtio::spec::{
        blk::{Header, kind},
        feature,
    },
};

/// Header and status byte have a buffer each.
const OWN_BUFFERS: usize = 2;
const HEADER_LEN: usize = size_of::<Header>();
const PAGE: usize = 4096;
/// What a status byte holds until the device writes it; no status that exists.
pub const NO_STATUS: u8 = 0xff;

/// A request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Io {
    /// What is asked: `spec::blk::kind`.
    pub kind: u32,
    /// First sector.
    pub sector: u64,
    /// Bytes of data, whichever way they go.
    pub len: u32,
}

impl Io {
    /// Whether the device writes the data.
    fn device_writes(&self) -> bool {
        matches!(self.kind, kind::IN | kind::GET_ID | kind::GET_LIFETIME)
    }
}

/// A finished request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    /// What [`BlkQueue::submit`] returned for it.
    pub slot: u16,
    /// Its status byte.
    pub status: u8,
    /// Bytes that the device says it wrote.
    pub len: u32,
}

/// One queue of a disk.
#[derive(Debug)]
pub struct BlkQueue<R> {
    ring: R,
    headers: Span,
    headers_at: u64,
    statuses: Span,
    statuses_at: u64,
    data: Span,
    data_at: u64,
    max_io: u32,
    max_buffer: u32,
    capacity: u16,
    /// Of the request that was polled last.
    last_slot: u16,
}

impl<R: DriverRing> BlkQueue<R> {
    /// Lays a queue of `size` entries out in guest memory, for a device that has agreed to these features.
    ///
    /// # Errors
    /// [`DriverError`] where memory runs out, or the chains need a feature that is not there.
    pub fn new(
        memory: &mut Memory,
        features: u64,
        size: u16,
        options: &BlkOptions,
    ) -> Result<Self, DriverError> {
        let &BlkOptions { max_io, max_buffer, chains, .. } = options;
        let buffers = max_io.div_ceil(max_buffer.max(1)) as usize + OWN_BUFFERS;
        assert!(buffers <= MAX_BUFFERS, "{buffers} buffers for {max_io} bytes");
        let entries = u16::try_from(buffers).expect("at most MAX_BUFFERS");
        let indirect = match chains {
            Chains::Direct => false,
            Chains::Indirect => true,
            Chains::Fit(depth) => u32::from(depth) * u32::from(entries) > u32::from(size),
        };
        if indirect && features & feature::INDIRECT_DESC == 0 {
            return Err(DriverError::Feature("INDIRECT_DESC"));
        }
        let setup = RingSetup { size, features, indirect: indirect.then_some(entries) };
        let ring = R::new(memory, &setup)?;
        let capacity = if indirect { size } else { size / entries };
        let mut place = |len: usize, skip: u32| -> Result<(u64, Span), DriverError> {
            let addr = memory.allocate(len + skip as usize, PAGE).map_err(DriverError::Memory)?;
            let addr = addr + u64::from(skip);
            Ok((addr, memory.span(addr, len).expect("just allocated, in one region")))
        };
        let slots = usize::from(size);
        let (headers_at, headers) = place(HEADER_LEN * slots, 0)?;
        let (statuses_at, statuses) = place(slots, 0)?;
        let (data_at, data) = place(max_io as usize * slots, options.misalign)?;
        Ok(Self {
            ring,
            headers,
            headers_at,
            statuses,
            statuses_at,
            data,
            data_at,
            max_io,
            max_buffer,
            capacity,
            last_slot: 0,
        })
    }

    /// The ring.
    pub fn ring(&mut self) -> &mut R {
        &mut self.ring
    }

    /// Entries of the ring; also the bound of slots.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.ring.size()
    }

    /// Requests of full length that the ring has room for.
    #[must_use]
    pub fn capacity(&self) -> u16 {
        self.capacity
    }

    /// The slot that [`Self::submit`] will use next: its data can be written before.
    #[inline]
    #[must_use]
    pub fn next_slot(&self) -> Option<u16> {
        self.ring.next_slot()
    }

    /// Requests submitted and not yet polled.
    #[inline]
    #[must_use]
    pub fn in_flight(&self) -> u16 {
        self.ring.in_flight()
    }

    /// Guest address of a slot's data.
    #[inline]
    #[must_use]
    pub fn data_at(&self, slot: u16) -> u64 {
        self.data_at + u64::from(slot) * u64::from(self.max_io)
    }

    /// Fills a slot's data, from its start.
    #[inline]
    pub fn write_data(&self, slot: u16, from: &[u8]) {
        assert!(from.len() <= self.max_io as usize);
        self.data.slice().copy_from(usize::from(slot) * self.max_io as usize, from);
    }

    /// Copies a slot's data out, from its start.
    #[inline]
    pub fn read_data(&self, slot: u16, to: &mut [u8]) {
        assert!(to.len() <= self.max_io as usize);
        self.data.slice().copy_to(usize::from(slot) * self.max_io as usize, to);
    }

    /// Adds a request over the next slot's own memory. None when the ring is full. Not seen by the device before
    /// [`Self::publish`].
    #[inline]
    pub fn submit(&mut self, io: Io) -> Option<u16> {
        let slot = self.ring.next_slot()?;
        let at = usize::from(slot);
        self.headers.slice().write(at * HEADER_LEN, Header { kind: io.kind, reserved: 0, sector: io.sector });
        self.statuses.slice().write(at, NO_STATUS);
        let header = Buffer::readable(self.headers_at + (at * HEADER_LEN) as u64, HEADER_LEN as u32);
        let status = Buffer::writable(self.statuses_at + at as u64, 1);
        let data_at = self.data_at(slot);
        if io.len > 0 && io.len <= self.max_buffer {
            let data = Buffer { addr: data_at, len: io.len, device_writes: io.device_writes() };
            return self.ring.add(&[header, data, status]);
        }
        self.submit_cut(io, data_at, header, status)
    }

    /// The same with any number of data buffers.
    fn submit_cut(&mut self, io: Io, data_at: u64, header: Buffer, status: Buffer) -> Option<u16> {
        assert!(io.len <= self.max_io);
        let mut buffers = [header; MAX_BUFFERS];
        let mut count = 1;
        for from in (0..io.len).step_by(self.max_buffer as usize) {
            let len = self.max_buffer.min(io.len - from);
            buffers[count] =
                Buffer { addr: data_at + u64::from(from), len, device_writes: io.device_writes() };
            count += 1;
        }
        buffers[count] = status;
        self.ring.add(&buffers[..=count])
    }

    /// Makes what was submitted visible. True when the device wants a kick.
    #[inline]
    pub fn publish(&mut self) -> bool {
        self.ring.publish()
    }

    /// The same for a device that is never kicked.
    #[inline]
    pub fn publish_quietly(&mut self) {
        self.ring.publish_quietly();
    }

    /// Has the processor fetch what [`Self::poll`] looks at first. Statuses lie so close together that the next one is most likely
    /// where the last one was.
    #[inline]
    pub fn prefetch(&self) {
        self.ring.prefetch();
        self.statuses.slice().prefetch(usize::from(self.last_slot));
    }

    /// A finished request, if there is one. Its data and status stay until its slot is submitted again.
    ///
    /// # Errors
    /// See [`RingFault`].
    #[inline]
    pub fn poll(&mut self) -> Result<Option<Done>, RingFault> {
        let Some(used) = self.ring.pop()? else { return Ok(None) };
        self.last_slot = used.slot;
        let status = self.statuses.slice().read(usize::from(used.slot));
        Ok(Some(Done { slot: used.slot, status, len: used.len }))
    }
}
