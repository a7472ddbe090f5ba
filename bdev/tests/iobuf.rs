//! Running out of buffers: a request that needs one waits, and nothing fails but what no buffer is long enough for.

use std::sync::Arc;

use bdev::arena::StaticBuffer;
use bdev::types::{Malloc, MallocParams};
use bdev::{
    Access, Bdev, BdevInfo, Channel, Completion, IoChannel, Op, OpKind, OpenError, Registry, Request, Status,
    Token, iobuf,
};

const BLOCK: usize = 512;
const DEPTH: u16 = 8;

/// A disk in memory that takes whole pages only.
struct Picky {
    info: Arc<BdevInfo>,
    below: Malloc,
}

impl Bdev for Picky {
    fn info(&self) -> &Arc<BdevInfo> {
        &self.info
    }

    fn supports(&self, kind: OpKind) -> bool {
        self.below.supports(kind)
    }

    fn open_channel(&self, depth: u16) -> Result<Box<dyn Channel>, OpenError> {
        self.below.open_channel(depth)
    }
}

fn open_picky(block: usize) -> IoChannel {
    let (block_size, blocks) = (block as u32, ((1 << 20) / block) as u64);
    let below = Malloc::new("below".into(), &MallocParams::new(block_size, blocks)).expect("memory");
    let mut info = BdevInfo::new("malloc", "Malloc disk", "picky".into(), block_size, blocks);
    info.buf_align = 4096;
    let registry = Registry::new();
    registry.register(Arc::new(Picky { info: Arc::new(info), below })).expect("a new registry");
    let descriptor = registry.open("picky", Access::ReadWrite, |_| ()).expect("it is there");
    descriptor.open_channel(DEPTH).expect("a channel opens")
}

/// Reaps so often that whatever can happen has happened.
fn reap(channel: &mut IoChannel) -> Vec<Completion> {
    let mut all = Vec::new();
    let mut done = [Completion::EMPTY; DEPTH as usize];
    for _ in 0..1000 {
        let n = channel.reap(&mut done);
        all.extend_from_slice(&done[..n]);
    }
    all
}

#[test]
fn a_request_without_a_buffer_waits_for_one_and_those_with_aligned_memory_go_on() {
    let mut channel = open_picky(BLOCK);
    let memory = StaticBuffer::new(64 << 10).unwrap();
    let unaligned = |at: usize| [memory.iovec(at * 8192 + 512, BLOCK).unwrap()];
    let aligned = [memory.iovec(60 << 10, 4096).unwrap()];
    let all = iobuf::exhaust();
    let before = iobuf::stats();

    for token in 0..4 {
        let iov = unaligned(token);
        iov[0].fill(0, BLOCK, token as u8 + 1);
        let request =
            Request { op: Op::WRITE, lba: token as u64, blocks: 1, iov: &iov, token: Token(token as u32) };
        assert_eq!(channel.submit(&request), Ok(()));
    }
    let request = Request { op: Op::Read, lba: 100, blocks: 8, iov: &aligned, token: Token(7) };
    assert_eq!(channel.submit(&request), Ok(()));
    channel.kick();
    let early = reap(&mut channel);
    let starved = iobuf::stats();
    drop(all);
    let late = reap(&mut channel);

    assert_eq!(early, [Completion { token: Token(7), status: Status::Ok }]);
    assert!(!channel.arm() || channel.in_flight() == 0, "who waits for a buffer does not sleep");
    assert!(starved[0].retry > before[0].retry, "{starved:?}");
    assert_eq!(late.len(), 4, "{late:?}");
    assert!(late.iter().all(|completion| completion.status == Status::Ok), "{late:?}");
    let request = Request { op: Op::Read, lba: 0, blocks: 8, iov: &aligned, token: Token(0) };
    assert_eq!(channel.submit(&request), Ok(()));
    channel.kick();
    assert_eq!(reap(&mut channel).len(), 1);
    let mut seen = vec![0; 4 * BLOCK];
    aligned[0].slice(0, 4 * BLOCK).unwrap().copy_to(0, &mut seen);
    assert!(seen.chunks(BLOCK).zip(1u8..).all(|(block, value)| block.iter().all(|byte| *byte == value)));
}

#[test]
fn a_request_for_which_there_will_never_be_a_buffer_fails() {
    let block = 256 << 10;
    let mut channel = open_picky(block);
    let memory = StaticBuffer::new(2 * block).unwrap();
    let unaligned = [memory.iovec(512, block).unwrap()];
    let aligned = [memory.iovec(0, block).unwrap()];

    for (token, iov) in [(0, unaligned), (1, aligned)] {
        let request = Request { op: Op::Read, lba: 1, blocks: 1, iov: &iov, token: Token(token) };
        assert_eq!(channel.submit(&request), Ok(()));
    }
    channel.kick();
    let mut done = reap(&mut channel);

    done.sort_by_key(|completion| completion.token);
    let failed = Completion { token: Token(0), status: Status::NoMemory };
    assert_eq!(done, [failed, Completion { token: Token(1), status: Status::Ok }]);
}
