//! What each check starts from: a registry with the subject in it, an open channel, and a buffer for guest
//! memory.

use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Subject;
use crate::arena::StaticBuffer;
use crate::{
    Access, BdevInfo, Completion, Descriptor, Event, IoChannel, IoVec, Op, OpKind, Registry, Rejected,
    Request, Status, Token, iov,
};

/// Bytes of the buffer of a rig: the largest subject and its guards.
const BUFFER_BYTES: usize = 8 << 20;
/// A request that is not back after this long never will be. Not a measure of speed.
const HANG: Duration = Duration::from_secs(60);

/// Buffers are never given back to the system, so they are used again.
static BUFFERS: Mutex<Vec<StaticBuffer>> = Mutex::new(Vec::new());

fn take_buffer() -> StaticBuffer {
    let used = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    used.unwrap_or_else(|| StaticBuffer::new(BUFFER_BYTES).expect("memory for a test buffer"))
}

/// A subject, opened.
pub struct Rig {
    channel: Option<IoChannel>,
    descriptor: Option<Descriptor>,
    registry: Arc<Registry>,
    name: String,
    info: Arc<BdevInfo>,
    events: Arc<Mutex<Vec<Event>>>,
    buffer: StaticBuffer,
}

impl Rig {
    /// Makes the subject and opens a channel for writing.
    pub fn new(subject: &Subject, depth: u16) -> Rig {
        Rig::with_access(subject, depth, Access::ReadWrite)
    }

    /// As [`new`](Self::new), with the access of the caller's choice.
    pub fn with_access(subject: &Subject, depth: u16, access: Access) -> Rig {
        let registry = Registry::new();
        let name = (subject.make)(&registry);
        let events = Arc::<Mutex<Vec<Event>>>::default();
        let log = events.clone();
        let descriptor = registry
            .open(&name, access, move |event| log.lock().expect("no test panics holding it").push(event))
            .expect("the subject opens");
        let channel = descriptor.open_channel(depth).expect("a channel opens");
        let info = descriptor.info().clone();
        let size_bytes = info.size_bytes();
        assert!(
            (512 << 10..=4 << 20).contains(&size_bytes),
            "a subject of {size_bytes} bytes does not fit the suite"
        );
        Rig {
            channel: Some(channel),
            descriptor: Some(descriptor),
            registry,
            name,
            info,
            events,
            buffer: take_buffer(),
        }
    }

    pub(super) fn channel(&mut self) -> &mut IoChannel {
        self.channel.as_mut().expect("not closed yet")
    }

    pub(super) fn descriptor(&self) -> &Descriptor {
        self.descriptor.as_ref().expect("not closed yet")
    }

    pub(super) fn registry(&self) -> &Arc<Registry> {
        &self.registry
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    pub(super) fn block_bytes(&self) -> usize {
        self.info.block_size as usize
    }

    pub(super) fn num_blocks(&self) -> u64 {
        self.info.num_blocks()
    }

    pub(super) fn supports(&self, kind: OpKind) -> bool {
        self.descriptor().bdev().supports(kind)
    }

    pub(super) fn events(&self) -> Vec<Event> {
        self.events.lock().expect("no test panics holding it").clone()
    }

    pub(super) fn close_channel(&mut self) {
        self.channel = None;
    }

    pub(super) fn close_descriptor(&mut self) {
        self.descriptor = None;
    }

    pub(super) fn reopen_channel(&mut self, depth: u16) {
        self.channel = None;
        self.channel = Some(self.descriptor().open_channel(depth).expect("a channel opens"));
    }

    /// A vector over part of the buffer.
    pub(super) fn vector(&self, offset: usize, len: usize) -> IoVec {
        self.buffer.iovec(offset, len).expect("inside the buffer")
    }

    pub(super) fn put(&self, offset: usize, bytes: &[u8]) {
        iov::scatter(&[self.vector(offset, bytes.len())], bytes);
    }

    pub(super) fn get(&self, offset: usize, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        iov::gather(&[self.vector(offset, len)], &mut bytes);
        bytes
    }

    /// Submits and, if that is accepted, waits for the end.
    pub(super) fn run(&mut self, op: Op, lba: u64, blocks: u64, iov: &[IoVec]) -> Result<Status, Rejected> {
        let token = Token(0);
        self.channel().submit(&Request { op, lba, blocks, iov, token })?;
        self.channel().kick();
        let done = self.drain();
        assert_eq!(done.len(), 1, "one request, one completion");
        assert_eq!(done[0].token, token);
        Ok(done[0].status)
    }

    /// Reaps until nothing is in flight.
    pub(super) fn drain(&mut self) -> Vec<Completion> {
        drain(self.channel())
    }

    pub(super) fn write(&mut self, lba: u64, bytes: &[u8]) {
        let blocks = (bytes.len() / self.block_bytes()) as u64;
        self.put(0, bytes);
        let vector = self.vector(0, bytes.len());
        assert_eq!(self.run(Op::WRITE, lba, blocks, &[vector]), Ok(Status::Ok));
    }

    pub(super) fn read(&mut self, lba: u64, blocks: u64) -> Vec<u8> {
        let len = blocks as usize * self.block_bytes();
        let vector = self.vector(0, len);
        vector.fill(0, len, 0xee);
        assert_eq!(self.run(Op::Read, lba, blocks, &[vector]), Ok(Status::Ok));
        self.get(0, len)
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        // The channel first: only then is the buffer free to be used by another test.
        self.channel = None;
        self.descriptor = None;
        BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).push(self.buffer.clone());
    }
}

/// Reaps until nothing is in flight.
pub(super) fn drain(channel: &mut IoChannel) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut done = [Completion::EMPTY; 32];
    let deadline = Instant::now() + HANG;
    while channel.in_flight() > 0 {
        let n = channel.reap(&mut done);
        all.extend_from_slice(&done[..n]);
        if n == 0 {
            assert!(Instant::now() < deadline, "{} requests never came back", channel.in_flight());
            thread::yield_now();
        }
    }
    assert_eq!(channel.reap(&mut done), 0, "nothing is handed out twice");
    all
}

/// Bytes that differ from block to block and from seed to seed.
pub(super) fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            // xorshift64, Marsaglia 2003.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}
