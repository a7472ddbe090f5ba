//! I/O that waits until it is done, for tests: one request at a time on a queue.

use std::{
    os::fd::AsFd,
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use zerocopy::IntoBytes;

use super::{BlkDriver, Done, Io};
use crate::{
    irq,
    mock::{
        client::ClientError,
        ring::{DriverRing, RingFault},
        transport::DriverError,
    },
    virtio::spec::blk::{self, ID_LEN, Range, kind},
};

/// Why blocking I/O failed.
#[derive(Debug, thiserror::Error)]
pub enum BlkError {
    /// The driver's.
    #[error(transparent)]
    Driver(#[from] DriverError),
    /// The device answered with this status byte.
    #[error("request status {0}")]
    Status(u8),
    /// The device did not answer.
    #[error("no completion within {0:?}")]
    Timeout(Duration),
    /// The ring is full: the caller has left requests in flight.
    #[error("the ring is full")]
    Full,
}

impl From<ClientError> for BlkError {
    fn from(error: ClientError) -> Self {
        Self::Driver(error.into())
    }
}

impl From<RingFault> for BlkError {
    fn from(error: RingFault) -> Self {
        Self::Driver(error.into())
    }
}

impl BlkError {
    /// The status byte, if that is what it is.
    #[must_use]
    pub fn status(&self) -> Option<u8> {
        if let Self::Status(status) = self { Some(*status) } else { None }
    }
}

impl<R: DriverRing> BlkDriver<R> {
    /// Waits for an interrupt of a vector. False when none comes.
    #[must_use]
    pub fn wait_interrupt(&self, vector: usize, timeout: Duration) -> bool {
        let Some(eventfd) = self.eventfds.get(vector) else { return false };
        let timeout = Timespec::try_from(timeout).ok();
        let _ = poll(&mut [PollFd::new(&eventfd.as_fd(), PollFlags::IN)], timeout.as_ref());
        irq::take_eventfd(eventfd) > 0
    }

    /// Waits for the next finished request of a queue.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn wait(&mut self, queue: usize) -> Result<Done, BlkError> {
        let timeout = self.transport.client.timeout();
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(done) = self.queues[queue].poll()? {
                return Ok(done);
            }
            if Instant::now() > deadline {
                return Err(BlkError::Timeout(timeout));
            }
            if self.options.interrupts {
                if !self.queues[queue].ring().enable_interrupts() {
                    let _ = self.wait_interrupt(queue + 1, timeout);
                }
                self.queues[queue].ring().disable_interrupts();
            } else {
                std::thread::yield_now();
            }
        }
    }

    /// Does one request on a queue with nothing else in flight, `out` being what the device is given.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn run(&mut self, queue: usize, io: Io, out: &[u8]) -> Result<Done, BlkError> {
        let slot = self.queues[queue].next_slot().ok_or(BlkError::Full)?;
        self.queues[queue].write_data(slot, out);
        self.queues[queue].submit(io).ok_or(BlkError::Full)?;
        self.publish(queue)?;
        let done = self.wait(queue)?;
        if done.status == blk::status::OK { Ok(done) } else { Err(BlkError::Status(done.status)) }
    }

    /// Reads `len` bytes.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn read(&mut self, queue: usize, sector: u64, len: u32) -> Result<Vec<u8>, BlkError> {
        let done = self.run(queue, Io { kind: kind::IN, sector, len }, &[])?;
        let mut data = vec![0; len as usize];
        self.queues[queue].read_data(done.slot, &mut data);
        Ok(data)
    }

    /// Writes.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn write(&mut self, queue: usize, sector: u64, data: &[u8]) -> Result<(), BlkError> {
        let len = u32::try_from(data.len()).expect("at most max_io");
        self.run(queue, Io { kind: kind::OUT, sector, len }, data).map(drop)
    }

    /// Flushes the device's cache.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn flush(&mut self, queue: usize) -> Result<(), BlkError> {
        self.run(queue, Io { kind: kind::FLUSH, sector: 0, len: 0 }, &[]).map(drop)
    }

    /// The ID string, without the zeroes behind it.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn get_id(&mut self, queue: usize) -> Result<Vec<u8>, BlkError> {
        let done = self.run(queue, Io { kind: kind::GET_ID, sector: 0, len: ID_LEN as u32 }, &[])?;
        let mut id = vec![0; ID_LEN];
        self.queues[queue].read_data(done.slot, &mut id);
        id.truncate(id.iter().position(|&byte| byte == 0).unwrap_or(ID_LEN));
        Ok(id)
    }

    /// Says that sectors are not needed any more.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn discard(&mut self, queue: usize, range: Range) -> Result<(), BlkError> {
        self.ranges(queue, kind::DISCARD, &[range])
    }

    /// Makes sectors read as zero.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn write_zeroes(&mut self, queue: usize, range: Range) -> Result<(), BlkError> {
        self.ranges(queue, kind::WRITE_ZEROES, &[range])
    }

    /// DISCARD or WRITE_ZEROES with any number of ranges.
    ///
    /// # Errors
    /// See [`BlkError`].
    pub fn ranges(&mut self, queue: usize, kind: u32, ranges: &[Range]) -> Result<(), BlkError> {
        let bytes = ranges.as_bytes();
        let len = u32::try_from(bytes.len()).expect("at most max_io");
        self.run(queue, Io { kind, sector: 0, len }, bytes).map(drop)
    }
}
