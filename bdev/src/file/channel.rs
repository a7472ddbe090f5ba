//! A channel to a file: requests become jobs of the thread's ring.

use std::os::fd::BorrowedFd;

use rustix::fs::FallocateFlags;

use super::{Backing, ring_failed};
use crate::ring::{Job, Kind, Port};
use crate::{Channel, Completion, Error, Op, Rejected, Request, Status};

pub(crate) struct FileChannel {
    /// Takes everything, unless reads and writes have a ring of their own.
    port: Port,
    data: Option<Port>,
    block_size: u64,
    zero_mode: Option<i32>,
}

const PUNCH: i32 = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE).bits() as i32;

impl FileChannel {
    pub(crate) fn open(backing: &Backing, depth: u16) -> Result<FileChannel, Error> {
        let port = |kind| Port::new(kind, &backing.file, depth).map_err(ring_failed);
        let data = if backing.data_ring == Kind::Plain { None } else { Some(port(backing.data_ring)?) };
        Ok(FileChannel {
            port: port(Kind::Plain)?,
            data,
            block_size: u64::from(backing.block_size),
            zero_mode: backing.zero_mode,
        })
    }
}

impl Channel for FileChannel {
    #[inline]
    fn submit(&mut self, req: &Request<'_>) -> Result<(), Rejected> {
        let (offset, len) = (req.lba * self.block_size, req.blocks * self.block_size);
        let job = match req.op {
            // A read of no bytes would be one at the end of the file; fallocate refuses no bytes.
            _ if len == 0 && req.op != Op::Flush => Job::Nothing,
            Op::Read => Job::Read { offset, iov: req.iov, len },
            Op::Write { fua } => Job::Write { offset, iov: req.iov, len, fua },
            Op::Flush => Job::Sync,
            Op::Unmap => Job::Fallocate { mode: PUNCH, offset, len, then_sync: false },
            Op::WriteZeroes { unmap: true, fua } => {
                Job::Fallocate { mode: PUNCH, offset, len, then_sync: fua }
            }
            Op::WriteZeroes { unmap: false, fua } => {
                let mode = self.zero_mode.ok_or(Rejected::Failed(Status::Unsupported))?;
                Job::Fallocate { mode, offset, len, then_sync: fua }
            }
        };
        match (&mut self.data, job) {
            (Some(data), Job::Read { .. } | Job::Write { fua: false, .. }) => data.submit(req.token, job),
            _ => self.port.submit(req.token, job),
        }
    }

    #[inline]
    fn kick(&mut self) {
        self.port.kick();
        if let Some(data) = &mut self.data {
            data.kick();
        }
    }

    #[inline]
    fn reap(&mut self, done: &mut [Completion]) -> usize {
        let n = self.port.reap(done);
        match &mut self.data {
            Some(data) => n + data.reap(&mut done[n..]),
            None => n,
        }
    }

    fn arm(&mut self) -> bool {
        // One descriptor is all there is to watch: with two rings in use, polling it is.
        match &self.data {
            Some(data) if data.in_flight() > 0 => false,
            _ => self.port.arm(),
        }
    }

    fn event_fd(&self) -> Option<BorrowedFd<'_>> {
        Some(self.port.event_fd())
    }

    fn in_flight(&self) -> usize {
        self.port.in_flight() + self.data.as_ref().map_or(0, Port::in_flight)
    }
}
