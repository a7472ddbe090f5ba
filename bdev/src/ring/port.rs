//! A port: one channel's way into the ring of its thread.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::rc::Rc;

use rustix::event::epoll;

use super::{Expect, Kind, Ring, of_this_thread, sqe};
use crate::{Completion, IoVec, Rejected, Status, Token};

/// What a file is asked for. Offsets and lengths in bytes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Job<'a> {
    Read {
        offset: u64,
        iov: &'a [IoVec],
        len: u64,
    },
    Write {
        offset: u64,
        iov: &'a [IoVec],
        len: u64,
        fua: bool,
    },
    /// fdatasync.
    Sync,
    /// fallocate, and an fdatasync behind it if asked.
    Fallocate {
        mode: i32,
        offset: u64,
        len: u64,
        then_sync: bool,
    },
    /// Completes, having done nothing.
    Nothing,
}

/// One file, one channel, one thread.
pub(crate) struct Port {
    ring: Rc<RefCell<Ring>>,
    at: u32,
    /// An epoll descriptor over the ring's event and the port's own.
    event: OwnedFd,
    in_flight: usize,
}

impl Port {
    /// A port of the calling thread's ring, with room for `depth` jobs.
    pub(crate) fn new(kind: Kind, file: &File, depth: u16) -> io::Result<Port> {
        let ring = of_this_thread(kind)?;
        let event = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let at = {
            let mut ring = ring.borrow_mut();
            let at = ring.attach(Rc::new(file.try_clone()?), depth)?;
            let data = epoll::EventData::new_u64(0);
            epoll::add(&event, ring.event.as_fd(), data, epoll::EventFlags::IN)?;
            let client = ring.client(at);
            epoll::add(&event, client.wake.as_fd(), data, epoll::EventFlags::IN)?;
            at
        };
        Ok(Port { ring, at, event, in_flight: 0 })
    }

    #[inline]
    pub(crate) fn submit(&mut self, token: Token, job: Job<'_>) -> Result<(), Rejected> {
        let ring = &mut *self.ring.borrow_mut();
        let has_table = ring.has_table;
        let file = sqe::target(self.at, &ring.client(self.at).file, has_table);
        let bytes = |len: u64| u32::try_from(len).map_err(|_long| Rejected::Failed(Status::Invalid));
        let (entry, expect) = match job {
            Job::Read { offset, iov: [one], len } => {
                (sqe::read(file, offset, *one), Expect::Bytes(bytes(len)?))
            }
            Job::Write { offset, iov: [one], len, fua } => {
                (sqe::write(file, offset, *one, fua), Expect::Bytes(bytes(len)?))
            }
            Job::Read { offset, iov, len } => {
                (sqe::read_many(file, offset, ring.keep(iov)?, iov.len() as u32), Expect::Bytes(bytes(len)?))
            }
            Job::Write { offset, iov, len, fua } => {
                let vectors = ring.keep(iov)?;
                (sqe::write_many(file, offset, vectors, iov.len() as u32, fua), Expect::Bytes(bytes(len)?))
            }
            Job::Sync => (sqe::sync(file), Expect::Success),
            Job::Fallocate { mode, offset, len, then_sync } => {
                let expect = if then_sync { Expect::ThenSync } else { Expect::Success };
                (sqe::fallocate(file, mode, offset, len), expect)
            }
            Job::Nothing => (sqe::nothing(), Expect::Success),
        };
        ring.push(&entry.user_data(u64::from(self.at) << 32 | u64::from(token.0)))?;
        let client = ring.client(self.at);
        client.in_ring += 1;
        if let Some(place) = client.expect.get_mut(token.0 as usize) {
            *place = expect;
        }
        self.in_flight += 1;
        Ok(())
    }

    #[inline]
    pub(crate) fn kick(&mut self) {
        let ring = &mut *self.ring.borrow_mut();
        if !ring.uring.submission().is_empty() {
            ring.enter();
        }
    }

    #[inline]
    pub(crate) fn reap(&mut self, done: &mut [Completion]) -> usize {
        if self.in_flight == 0 {
            return 0;
        }
        let n = self.ring.borrow_mut().reap(self.at, done);
        self.in_flight -= n;
        n
    }

    pub(crate) fn arm(&mut self) -> bool {
        self.ring.borrow_mut().arm(self.at)
    }

    pub(crate) fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    pub(crate) fn in_flight(&self) -> usize {
        self.in_flight
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ring.borrow_mut().detach(self.at);
    }
}
