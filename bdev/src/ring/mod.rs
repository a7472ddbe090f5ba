//! The io_uring of a thread, shared by all channels to files that the thread has open.
//!
//! File types (`types/uring.rs`, `types/aio.rs`) attach a [`Port`] per channel; the ring is made with the first and
//! closed with the last. Requests of a pass are batched and sent by one system call, which also runs the kernel's
//! finished work (IORING_SETUP_DEFER_TASKRUN); completions are looked for in memory first. Whoever reaps hands the
//! completions of other ports to them. Does not open files and knows no bdev.
//!
//! Sleep: the kernel signals the ring's eventfd only while a port is armed, so polling pays nothing for it. A port
//! watches that eventfd and one of its own, which is written when another port found its completions.
#![expect(
    unsafe_code,
    reason = "submission entries point at memory; entering the ring hands them to the kernel"
)]

mod port;
mod sqe;

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::{Rc, Weak};
use std::sync::atomic::{Ordering, fence};

use io_uring::{IoUring, cqueue, squeue};
use rustix::event::{EventfdFlags, eventfd};
use rustix::io::Errno;

use crate::ready::ReadyQueue;
use crate::{Completion, IoVec, Rejected, Status, Token};

pub(crate) use port::{Job, Port};

/// Entries of the submission queue: more than a pass submits, mostly.
const SQ_ENTRIES: u32 = 512;
/// Entries of the completion queue; what does not fit waits in the kernel.
const CQ_ENTRIES: u32 = 8192;
/// Ports of one thread, and places for registered files.
const PORTS_MAX: u32 = 4096;
/// Vectors that wait for the system call of a pass.
const IOVS: usize = 4 * crate::MAX_SEGMENTS as usize;
/// How long the kernel's thread polls for work before it sleeps (SQPOLL).
const SQPOLL_IDLE_MS: u32 = 50;
/// IORING_ENTER_GETEVENTS: run finished work and post its completions.
const GETEVENTS: u32 = 1;

/// How a ring is driven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Interrupts, by the submitter's own system calls. Takes every job.
    Plain,
    /// The kernel polls the device (IORING_SETUP_IOPOLL): reads and writes of O_DIRECT files only.
    IoPoll,
    /// A thread of the kernel takes the submissions (IORING_SETUP_SQPOLL).
    SqPoll,
}

thread_local! {
    static RINGS: RefCell<[Weak<RefCell<Ring>>; 3]> = const { RefCell::new([Weak::new(), Weak::new(), Weak::new()]) };
}

/// What the end of a job must look like.
#[derive(Debug, Clone, Copy)]
enum Expect {
    /// So many bytes.
    Bytes(u32),
    /// No error.
    Success,
    /// No error, and then an fdatasync.
    ThenSync,
}

/// A port as the ring knows it.
struct Client {
    file: Rc<File>,
    expect: Box<[Expect]>,
    ready: ReadyQueue,
    /// Jobs the ring has and has not handed back.
    in_ring: usize,
    wake: OwnedFd,
    is_armed: bool,
    is_signalled: bool,
}

struct Ring {
    uring: IoUring,
    kind: Kind,
    clients: Vec<Option<Client>>,
    /// Vectors of submissions that the kernel has not seen yet.
    iovs: Box<[IoVec]>,
    iovs_used: usize,
    event: OwnedFd,
    armed: usize,
    /// Files are registered: places in the kernel's table are the indices of clients.
    has_table: bool,
}

fn build(kind: Kind) -> io::Result<IoUring> {
    let with = |deferred: bool| {
        let mut builder = IoUring::builder();
        builder.setup_cqsize(CQ_ENTRIES).setup_clamp();
        match kind {
            Kind::IoPoll => drop(builder.setup_iopoll()),
            Kind::SqPoll => drop(builder.setup_sqpoll(SQPOLL_IDLE_MS)),
            Kind::Plain => {}
        }
        if deferred && kind != Kind::SqPoll {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag();
        }
        builder.build(SQ_ENTRIES)
    };
    // Before Linux 6.1 there is no deferring.
    with(true).or_else(|error| {
        if Errno::from_io_error(&error) == Some(Errno::INVAL) { with(false) } else { Err(error) }
    })
}

/// The ring of this thread and kind.
fn of_this_thread(kind: Kind) -> io::Result<Rc<RefCell<Ring>>> {
    RINGS.with_borrow_mut(|rings| {
        let place = &mut rings[kind as usize];
        if let Some(ring) = place.upgrade() {
            return Ok(ring);
        }
        let ring = Rc::new(RefCell::new(Ring::new(kind)?));
        *place = Rc::downgrade(&ring);
        Ok(ring)
    })
}

impl Ring {
    fn new(kind: Kind) -> io::Result<Ring> {
        let mut uring = build(kind)?;
        let event = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        uring.submitter().register_eventfd(event.as_raw_fd())?;
        uring.completion().disable_eventfd();
        // A table of files saves a reference count per request; without one everything works too.
        let has_table = uring.submitter().register_files_sparse(PORTS_MAX).is_ok();
        Ok(Ring {
            uring,
            kind,
            clients: Vec::new(),
            iovs: vec![IoVec::EMPTY; IOVS].into_boxed_slice(),
            iovs_used: 0,
            event,
            armed: 0,
            has_table,
        })
    }

    fn attach(&mut self, file: Rc<File>, depth: u16) -> io::Result<u32> {
        let at = self.clients.iter().position(Option::is_none).unwrap_or(self.clients.len());
        let index = u32::try_from(at).ok().filter(|at| *at < PORTS_MAX);
        let index = index.ok_or_else(|| io::Error::from(Errno::MFILE))?;
        if self.has_table {
            self.uring.submitter().register_files_update(index, &[file.as_raw_fd()])?;
        }
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        let client = Some(Client {
            file,
            expect: vec![Expect::Success; usize::from(depth)].into_boxed_slice(),
            ready: ReadyQueue::new(depth),
            in_ring: 0,
            wake,
            is_armed: false,
            is_signalled: false,
        });
        match self.clients.get_mut(at) {
            Some(place) => *place = client,
            None => self.clients.push(client),
        }
        Ok(index)
    }

    fn detach(&mut self, at: u32) {
        while self.client(at).in_ring > 0 {
            // In the end the kernel gives every job back, and nothing else may end this wait.
            let _ = self.uring.submit_and_wait(1);
            self.harvest();
        }
        self.disarm(at);
        if self.has_table {
            // The place is overwritten by the next port; until then the file stays open there, unless this succeeds.
            let _ = self.uring.submitter().register_files_update(at, &[-1]);
        }
        self.clients[at as usize] = None;
    }

    fn client(&mut self, at: u32) -> &mut Client {
        self.clients[at as usize].as_mut().expect("a port is attached until it is dropped")
    }

    /// Hands what is queued to the kernel and has it post what it has finished: one system call.
    fn enter(&mut self) {
        let queued = self.uring.submission().len();
        let entered = if self.kind == Kind::SqPoll {
            self.uring.submit()
        } else {
            // SAFETY: the entries in the queue point at vectors of `iovs`, which stay as they are until the queue is
            // empty, and at memory of requests in flight, which its owners keep until they are reaped.
            unsafe { self.uring.submitter().enter::<libc::sigset_t>(queued as u32, 0, GETEVENTS, None) }
        };
        // Interrupted or short of memory: what is still queued goes with the next call.
        let _ = entered;
        if self.uring.submission().is_empty() {
            self.iovs_used = 0;
        }
    }

    /// Queues an entry, and makes room for it first if need be.
    fn push(&mut self, entry: &squeue::Entry) -> Result<(), Rejected> {
        for _ in 0..2 {
            // SAFETY: see `enter`.
            if unsafe { self.uring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            self.enter();
        }
        Err(Rejected::Full)
    }

    /// Copies vectors to where they stay until the kernel has read them.
    fn keep(&mut self, iov: &[IoVec]) -> Result<*const libc::iovec, Rejected> {
        if self.iovs_used + iov.len() > self.iovs.len() {
            self.enter();
        }
        let end = self.iovs_used + iov.len();
        let place = self.iovs.get_mut(self.iovs_used..end).ok_or(Rejected::Full)?;
        place.copy_from_slice(iov);
        self.iovs_used = end;
        Ok(place.as_ptr().cast())
    }

    /// Takes completions that are in memory to their ports.
    #[inline]
    fn harvest(&mut self) {
        let has_table = self.has_table;
        let (_, mut submissions, completions) = self.uring.split();
        for cqe in completions {
            let (at, token) = ((cqe.user_data() >> 32) as u32, cqe.user_data() as u32);
            let Some(client) = self.clients.get_mut(at as usize).and_then(Option::as_mut) else { continue };
            let Some(expect) = client.expect.get_mut(token as usize) else { continue };
            let mut status = status_of(&cqe, *expect);
            if let (Expect::ThenSync, Status::Ok) = (*expect, status) {
                *expect = Expect::Success;
                let entry = sqe::sync(sqe::target(at, &client.file, has_table)).user_data(cqe.user_data());
                // SAFETY: the entry points at no memory.
                match unsafe { submissions.push(&entry) } {
                    Ok(()) => continue,
                    // The zeroes are written; that they are durable cannot be said.
                    Err(_full) => status = Status::NoMemory,
                }
            }
            client.in_ring -= 1;
            // There is a place for every token of the port.
            let _ = client.ready.push(Completion { token: Token(token), status });
            if client.is_armed && !client.is_signalled {
                client.is_signalled = true;
                // A full counter is as readable as it gets.
                let _ = rustix::io::write(&client.wake, &1u64.to_ne_bytes());
            }
        }
    }

    /// Whether the kernel wants a system call: work that is finished but not posted, or a queue that is not empty.
    #[inline]
    fn wants_enter(&mut self) -> bool {
        if self.kind == Kind::IoPoll {
            return true;
        }
        let submissions = self.uring.submission();
        submissions.taskrun() || submissions.cq_overflow() || !submissions.is_empty()
    }

    #[inline]
    fn reap(&mut self, at: u32, done: &mut [Completion]) -> usize {
        self.harvest();
        if self.client(at).ready.len() == 0 && self.client(at).in_ring > 0 && self.wants_enter() {
            self.enter();
            self.harvest();
        }
        self.disarm(at);
        self.client(at).ready.pop_into(done)
    }

    /// Has the kernel signal the eventfd from now on, and looks again. False where the port has something to reap.
    fn arm(&mut self, at: u32) -> bool {
        if self.kind == Kind::IoPoll {
            return false;
        }
        if self.client(at).is_armed {
            return self.client(at).ready.len() == 0;
        }
        drain(&self.event);
        self.uring.completion().enable_eventfd();
        // Pairs with the kernel's order: it posts, then looks whether to signal.
        fence(Ordering::SeqCst);
        if self.wants_enter() {
            self.enter();
        }
        self.harvest();
        if self.client(at).ready.len() > 0 {
            if self.armed == 0 {
                self.uring.completion().disable_eventfd();
            }
            return false;
        }
        self.client(at).is_armed = true;
        self.armed += 1;
        true
    }

    #[inline]
    fn disarm(&mut self, at: u32) {
        let client = self.client(at);
        if !client.is_armed {
            return;
        }
        client.is_armed = false;
        if std::mem::take(&mut client.is_signalled) {
            drain(&client.wake);
        }
        self.armed -= 1;
        if self.armed == 0 {
            self.uring.completion().disable_eventfd();
        }
    }
}

/// Empties an eventfd.
fn drain(event: &OwnedFd) {
    let mut count = [0; size_of::<u64>()];
    // Nothing to read is what is wanted.
    let _ = rustix::io::read(event.as_fd(), &mut count);
}

#[inline]
fn status_of(cqe: &cqueue::Entry, expect: Expect) -> Status {
    match (cqe.result(), expect) {
        (result, _) if result < 0 => status_of_errno(Errno::from_raw_os_error(-result)),
        // Fewer bytes than asked is what the kernel says at the end of a file that was truncated, or where an error
        // follows; it has tried again by itself for every other reason.
        (result, Expect::Bytes(bytes)) if result as u32 != bytes => Status::IoError,
        _ => Status::Ok,
    }
}

fn status_of_errno(errno: Errno) -> Status {
    match errno {
        Errno::NOSPC | Errno::DQUOT | Errno::FBIG => Status::NoSpace,
        Errno::OPNOTSUPP => Status::Unsupported,
        Errno::NOMEM => Status::NoMemory,
        Errno::ROFS => Status::ReadOnly,
        Errno::NODATA | Errno::ILSEQ | Errno::BADMSG => Status::MediaError,
        Errno::TIMEDOUT => Status::TimedOut,
        Errno::CANCELED => Status::Aborted,
        _ => Status::IoError,
    }
}

/// Tries a ring: one write of a scratch file, or one read of a device. `file` is open with O_DIRECT where that is wanted
/// and the vector is aligned for it.
pub(crate) fn probe(kind: Kind, file: &File, buffer: IoVec, writes: bool) -> io::Result<()> {
    let mut uring = build(kind)?;
    let target = sqe::Target::Descriptor(file.as_raw_fd());
    let entry = if writes { sqe::write(target, 0, buffer, false) } else { sqe::read(target, 0, buffer) };
    // SAFETY: the vector's maker vouches for its memory, and the job has ended before this function does.
    unsafe { uring.submission().push(&entry) }.map_err(|_full| io::Error::from(Errno::AGAIN))?;
    uring.submit_and_wait(1)?;
    let result = uring.completion().next().map_or(-Errno::IO.raw_os_error(), |cqe| cqe.result());
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}
